"""Notebook 1, run for real: what is in the bucket afterwards, and what a second run adds to it."""

import json

import pytest

NOTEBOOK = "1_hyp3_user_bucket.ipynb"
BUCKET = "hyp3-products-123456789012"


def objects(sandbox, bucket=BUCKET) -> dict[str, int]:
    from helpers.objectstore import objects

    return objects(sandbox._s3_client("sandbox-user"), bucket, "")


def changing(sandbox) -> list:
    """Requests that create, change or delete something."""
    hyp3 = [r for r in sandbox.traffic.received("hyp3") if r.method in ("POST", "PATCH")]
    # STS is asked by POST, on "/".
    s3 = [r for r in sandbox.traffic.received("s3") if r.method in ("PUT", "POST", "DELETE") and r.path != "/"]
    return hyp3 + [r for r in s3 if r.path.startswith(f"/{BUCKET}")]


def test_delivers_products_and_records_what_it_did(sandbox, run_notebook):
    run = run_notebook(NOTEBOOK)
    assert run.outcome == "ok", run.error
    jobs = sandbox.hyp3.jobs
    assert set(run.results["job_ids"]) == set(jobs)
    assert sorted(j["status_code"] for j in jobs.values()) == ["FAILED", "SUCCEEDED", "SUCCEEDED"]
    in_bucket = objects(sandbox)
    for job in jobs.values():
        assert job["bucket_prefix"] == f"HyP3/zagros-coast/{job['job_id']}"
        for file in job.get("files", []):
            assert in_bucket[file["s3"]["key"]] == file["size"]
    assert set(run.results["products"]) == {f["s3"]["key"] for j in jobs.values() for f in j.get("files", [])}
    assert len(run.results["products"]) == 2


def test_shows_pictures_that_read_on_paper(sandbox, run_notebook):
    import nbformat

    run = run_notebook(NOTEBOOK)
    outputs = [o for c in nbformat.read(run.output, 4).cells for o in c.get("outputs", [])]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 3
    assert all(len(o["metadata"]["image/png"]["alt"]) > 20 for o in pictures)


def test_second_run_changes_nothing(sandbox, run_notebook):
    first = run_notebook(NOTEBOOK)
    before = objects(sandbox), dict(sandbox.hyp3.jobs), sandbox.hyp3.user("sandbox-user")["remaining_credits"]
    sandbox.traffic.requests.clear()
    second = run_notebook(NOTEBOOK)
    assert second.outcome == "ok", second.error
    assert changing(sandbox) == []
    after = objects(sandbox), dict(sandbox.hyp3.jobs), sandbox.hyp3.user("sandbox-user")["remaining_credits"]
    assert after == before
    assert second.results == first.results


def test_changed_jobs_are_new_jobs_and_only_those(sandbox, open_notebook):
    open_notebook(NOTEBOOK).run()
    again = open_notebook(NOTEBOOK, job_name="another-name").run()
    assert len(sandbox.hyp3.jobs) == 6
    assert len(again["batch"]) == 3


def test_killed_after_any_cell_it_carries_on(sandbox, open_notebook):
    for cells, _ in enumerate(open_notebook(NOTEBOOK).cells, 1):  # each time it gets one cell further, and dies
        finished = open_notebook(NOTEBOOK).run(cells)
    assert len(sandbox.hyp3.jobs) == 3
    assert sandbox.hyp3.user("sandbox-user")["remaining_credits"] == 8000 - 27
    assert len(finished["done"]) == 2


def test_keeps_the_statements_of_others(sandbox, open_notebook, s3):
    session = open_notebook(NOTEBOOK).run(cells=7)
    theirs = {
        "Sid": "TLS only",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": f"arn:aws:s3:::{BUCKET}/*",
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }
    s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": theirs}))
    session.run()
    stored = json.loads(s3.get_bucket_policy(Bucket=BUCKET)["Policy"])["Statement"]
    assert theirs in stored and len(stored) == 3


def test_scope_keeps_hyp3_out_of_the_rest(sandbox, open_notebook):
    session = open_notebook(NOTEBOOK).run()
    place = {"bucket": BUCKET, "bucket_prefix": "elsewhere/{name}/{job_id}"}
    session.execute(f"stray = hyp3.submit_prepared_jobs([jobs[0] | {place!r}])")
    session.execute("stray = hyp3.watch(stray, timeout=10, interval=0.2)[0]; reason = recipe.why_failed(stray, s3)")
    assert session["stray"].failed() and "scope" in session["reason"]
    assert all(key.startswith("HyP3/") for key in objects(sandbox))


def test_cleans_up_exactly_what_it_added(sandbox, open_notebook, s3):
    open_notebook(NOTEBOOK).run(cells=7)
    s3.put_object(Bucket=BUCKET, Key="HyP3/mine.txt", Body=b"mine")
    open_notebook(NOTEBOOK, clean_up=True).run()
    assert list(objects(sandbox)) == ["HyP3/mine.txt"]
    with pytest.raises(s3.exceptions.ClientError, match="NoSuchBucketPolicy"):
        s3.get_bucket_policy(Bucket=BUCKET)
    with pytest.raises(Exception, match="Choose another run_id"):
        open_notebook(NOTEBOOK).run()


def test_resubmits_failed_jobs_once(sandbox, open_notebook):
    session = open_notebook(NOTEBOOK, resubmit_failed=True).run()
    assert len(sandbox.hyp3.jobs) == 4
    retried = session["retried"][0]
    assert retried.job_type == "AUTORIFT"
    assert retried.bucket_prefix == f"HyP3/zagros-coast/{retried.job_id}"
    open_notebook(NOTEBOOK, resubmit_failed=True).run()
    assert len(sandbox.hyp3.jobs) == 4


def test_refuses_a_bucket_of_somebody_elses(sandbox, open_notebook):
    from helpers.sandbox import s3 as sandbox_s3

    sandbox_s3.create_bucket("their-bucket", "999988887777", "us-west-2")
    with pytest.raises(Exception, match="belongs to another account"):
        open_notebook(NOTEBOOK, bucket="their-bucket").run()
    assert sandbox.traffic.received("s3", "PUT", "/their-bucket") == []


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"bucket": "my-example-bucket"}, ["the API's example"]),
        (
            {"bucket": "Not_A_Bucket", "deadline_minutes": "soon"},
            ["lower-case", "deadline_minutes: expected float"],
        ),
        ({"job_name": "a/b"}, ["'/' into the keys"]),
        ({"bucket_prefix": "HyP3/"}, ["lacks {job_id}", "ends in '/'"]),
        ({"bucket_prefix": "data/{name}/{job_id}"}, ["policy_scope 'HyP3' does not cover", "every job would fail"]),
        ({"max_credits": 3}, ["more than the limit of 3"]),
        ({"run_id": "no spaces please"}, ["run_id"]),
    ],
)
def test_bad_parameters_are_explained_before_anything_is_submitted(sandbox, open_notebook, parameters, said):
    with pytest.raises(Exception) as error:
        open_notebook(NOTEBOOK, **parameters).run()
    assert all(words in str(error.value) for words in said), error.value
    assert sandbox.hyp3.jobs == {}


def test_more_than_200_jobs_go_in_chunks(sandbox, open_notebook):
    pairs = [[f"S1_{n:06}_IW2_20200604T022312_VV_7C85-BURST", f"S1_{n:06}_IW2_20200616T022313_VV_5D11-BURST"]
             for n in range(100_000, 100_205)]  # fmt: skip
    session = open_notebook(NOTEBOOK, interferograms=pairs, velocity_pairs=[], max_credits=1000)
    waiting = next(i for i, cell in enumerate(session.cells) if "until_finished" in cell.source)
    session.run(cells=waiting)
    assert len(sandbox.hyp3.jobs) == 205
    assert len(sandbox.traffic.received("hyp3", "POST", "^/jobs$")) == 4  # two to validate, two to submit
    sandbox.hyp3.processor._due.clear()
