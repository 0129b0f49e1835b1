"""HyP3 into a bucket of one's own: what is refused in time, what is paid for once, what is cleaned up."""

import json
import re
import threading
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hyp3_sdk import Job

from helpers import http, objectstore, once
from helpers import hyp3 as recipe
from helpers.errors import FailedRemotely, Rejected, TimedOut
from helpers.sandbox.products import Product
from helpers.state import RunState

OWNER = "123456789012"
BUCKET = "my-products"
PREFIX = "HyP3/{name}/{job_id}"
CONTENT_BUCKET = "hyp3-sandbox-contentbucket"
POST = {"service": "hyp3", "method": "POST", "path": "^/jobs$"}
FAILING = [
    "S2B_MSIL1C_20260415T005509_N0512_R059_T51DWE_20260415T031050",
    "S2B_MSIL1C_20251116T005509_N0511_R059_T51DWE_20251116T020121",
]


def a_job(burst: int = 136231, **more) -> dict:
    granules = [f"S1_{burst}_IW2_20200604T022312_VV_7C85-BURST", f"S1_{burst}_IW2_20200616T022313_VV_5D11-BURST"]
    job = {"job_type": "INSAR_ISCE_BURST", "job_parameters": {"granules": granules}, "name": "coast"}
    job |= {"bucket": BUCKET, "bucket_prefix": PREFIX} | more
    return {key: value for key, value in job.items() if value is not None}


def problems_of(*jobs: dict) -> list[str]:
    """The problems that `check` finds; none when it lets the jobs through."""
    try:
        recipe.check(list(jobs))
    except Rejected as error:
        first, *rest = str(error).splitlines()
        assert first == f"Nothing was submitted ({len(rest)} problem{'s' * (len(rest) > 1)}):"
        return [line.removeprefix("  - ") for line in rest]
    return []


@pytest.fixture
def idle(sandbox):
    """The sandbox with jobs that end only when the test says so."""
    sandbox.hyp3.processor.stop()
    return sandbox


@pytest.fixture
def run(idle, settings, hyp3):
    """Submit or reuse in a fresh process with this run id; returns the job ids."""

    def submit_or_reuse(jobs: list[dict], run_id: str = "one", **how) -> list[str]:
        how = {"submit": hyp3.submit_prepared_jobs, "settle": 0.2, "show": lambda _: None} | how
        batch = recipe.submit_or_reuse(jobs, RunState(settings, "hyp3", run_id), hyp3, **how)
        return [job.job_id for job in batch]

    return submit_or_reuse


@pytest.fixture
def posts(idle):
    """How many submissions have arrived."""
    return lambda: len(idle.traffic.received(**POST))


@pytest.fixture
def bucket(s3, idle) -> str:
    """The user's bucket, open for HyP3."""
    objectstore.ensure_bucket(s3, BUCKET, OWNER, create=True)
    s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(idle.hyp3.bucket_policy(BUCKET)))
    return BUCKET


@pytest.fixture
def finished(idle, hyp3):
    """Submit a job, let it end, and return it as the service then reports it."""

    def small_products(job: dict) -> list[Product]:
        """Written faster than the sandbox's own, which are real rasters."""
        kinds = {"x.zip": "product", "x.tif": "product", "x.png": "browse"}
        return [Product(name, b"12345", kind, "application/octet-stream") for name, kind in kinds.items()]

    def submit_and_finish(job: dict) -> Job:
        idle.hyp3.processor.make_products = small_products
        job_id = hyp3.submit_prepared_jobs([job])[0].job_id
        idle.hyp3.processor.start(job_id)
        idle.hyp3.processor.finish(job_id)
        return hyp3.get_job_by_id(job_id)

    return submit_and_finish


class Killed(BaseException):
    """What no handler of ours catches: the end of a process."""


# --- where files will go ---


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ({"bucket_prefix": "a/{name}/{job_id}", "name": "n"}, "a/n/ID"),
        ({"bucket_prefix": "{name}-{name}/{job_id}{job_id}", "name": "n"}, "n-n/IDID"),
        ({"bucket_prefix": "a/{job_id}"}, "a/ID"),
        ({"bucket_prefix": "plain", "name": "n"}, "plain"),
        # both at once: what a value brings in is not expanded again
        ({"bucket_prefix": "{name}/{job_id}", "name": "{job_id}"}, "{job_id}/ID"),
        ({"bucket_prefix": "{name}/{job_id}", "name": "a{name}b"}, "a{name}b/ID"),
        ({"bucket_prefix": "{name}/{job_id}", "name": r"a\1{b}"}, r"a\1{b}/ID"),
        ({"bucket": "b"}, "ID"),
        ({"bucket": "b", "bucket_prefix": None}, "ID"),
        ({}, None),
    ],
)
def test_prefix_is_expanded(job, expected):
    assert recipe.expanded_prefix(job, "ID") == expected


def test_prefix_is_expanded_as_the_service_does(idle, hyp3):
    names = ["n", "{job_id}", "a{name}b", "{}", "{0}", "%s", "ä b"]
    jobs = [a_job(name=name, bucket_prefix="x/{name}/{job_id}-{name}") for name in names]
    stored = hyp3.submit_prepared_jobs(jobs)
    assert [job.bucket_prefix for job in stored] == [
        recipe.expanded_prefix(given, job.job_id) for given, job in zip(jobs, stored, strict=True)
    ]


# --- what is wrong with jobs ---

BAD_BUCKETS = {
    "": "3 to 63",
    "ab": "3 to 63",
    "a" * 64: "3 to 63",
    "Upper-Case": "lower-case",
    "under_score": "lower-case",
    "with space": "lower-case",
    "ümlaut": "lower-case",
    "new-line\n": "lower-case",
    "-dash": "letter or digit at both ends",
    "dash-": "letter or digit at both ends",
    ".dot": "letter or digit at both ends",
    "dot.": "letter or digit at both ends",
    "two..dots": "two dots in a row",
    "dot.-dash": "a dash beside a dot",
    "dash-.dot": "a dash beside a dot",
    "192.168.5.4": "an IP address",
    "256.1.1.1": "an IP address",
    "xn--bucket": "a reserved beginning",
    "sthree-bucket": "a reserved beginning",
    "amzn-s3-demo-bucket": "a reserved beginning",
    "bucket-s3alias": "a reserved ending",
    "bucket--ol-s3": "a reserved ending",
    "bucket--x-s3": "a reserved ending",
    "bucket.mrap": "a reserved ending",
    "bucket--table-s3": "a reserved ending",
    "123456789012": "HyP3 refuses it although S3 does not",
    "1-2-3-4": "HyP3 refuses it although S3 does not",
    "my-example-bucket": "the API's example",
}
GOOD_BUCKETS = [
    "abc",
    "a" * 63,
    "my.bucket-1",
    "1bucket",
    "hyp3-products-123456789012",
    "xn-bucket",
    "s3alias",
    CONTENT_BUCKET,
]
BAD_PREFIXES = {
    "": ["1 to 100", "lacks {job_id}"],
    "/{job_id}": ["no '/' at the start"],
    "a//{job_id}": ["no '//'"],
    "a b/{job_id}": ["letters, digits"],
    **{f"a{c}/{{job_id}}": ["letters, digits"] for c in "+=!*()'@:~%&$#?\\,ä\n"},
    "{bad_expansion}/{job_id}": ["letters, digits"],
    "{}/{job_id}": ["letters, digits"],
    "{0}/{job_id}": ["letters, digits"],
    "{{job_id}}": ["letters, digits"],
    "x" * 92 + "/{job_id}": ["1 to 100"],
    "fixed": ["lacks {job_id}"],
    "{name}": ["lacks {job_id}"],
    "a/{job_id}/": ["ends in '/'"],
    "HyP3/": ["lacks {job_id}", "ends in '/'"],
    "./{job_id}": ["'.' or '..' step"],
    "a/../{job_id}": ["'.' or '..' step"],
    "{job_id}/..": ["'.' or '..' step"],
}
GOOD_PREFIXES = [
    "{job_id}",
    "{name}/{job_id}",
    "a.b_c-D9/{job_id}",
    "x{job_id}y",
    "a/{job_id}/b",
    "x" * 91 + "/{job_id}",
    ".hidden/{job_id}",
    "a..b/{job_id}",
]
BAD_NAMES_IN_KEYS = {
    "a/b": "'/' into the keys",
    "..": "'..' into the keys",
    "a..b": "'..' into the keys",
    "a b": "' ' would need encoding",
    "a#b": "'#' would need encoding",
    "a{job_id}": "'{' '}' would need encoding",
    "Größe": "'ß' 'ö' would need encoding",
    "a\tb": "'\\t' would need encoding",
}
BAD_NAMES = ["", "n" * 101, 5]


@pytest.mark.parametrize("bucket", BAD_BUCKETS)
def test_bad_bucket_names_are_explained(bucket):
    (problem,) = problems_of(a_job(bucket=bucket))
    assert BAD_BUCKETS[bucket] in problem and problem.startswith("job 1 (coast): ")
    assert recipe.bucket_problems(bucket) == [problem.removeprefix("job 1 (coast): ")]


@pytest.mark.parametrize("prefix", BAD_PREFIXES)
def test_bad_prefixes_are_explained(prefix):
    problems = problems_of(a_job(bucket_prefix=prefix))
    assert len(problems) == len(BAD_PREFIXES[prefix])
    for problem, words in zip(problems, BAD_PREFIXES[prefix], strict=True):
        assert words in problem


@pytest.mark.parametrize("name", BAD_NAMES_IN_KEYS)
def test_names_that_make_bad_keys_are_explained_where_they_get_into_keys(name):
    (problem,) = problems_of(a_job(name=name))
    assert BAD_NAMES_IN_KEYS[name] in problem
    assert problems_of(a_job(name=name, bucket_prefix="HyP3/{job_id}")) == []
    assert problems_of(a_job(name=name, bucket_prefix=None)) == []


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_the_service_refuses_are_explained(name):
    (problem,) = problems_of(a_job(name=name))
    assert "HyP3 takes 1 to 100 characters" in problem


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"name": None}, "a bucket_prefix needs a job name: without one HyP3 answers 500"),
        ({"name": None, "bucket_prefix": "{job_id}"}, "needs a job name"),
        ({"bucket": None}, "needs a bucket of your own"),
        ({"name": "n" * 100, "bucket_prefix": "{name}/" * 10 + "{job_id}"}, "grows to 1046 bytes"),
    ],
)
def test_other_problems_are_explained(more, words):
    (problem,) = problems_of(a_job(**more))
    assert words in problem


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"bucket_prefix": None},
        {"bucket_prefix": None, "name": None},
        {"bucket": None, "bucket_prefix": None},
        {"bucket": None, "bucket_prefix": "{job_id}"},
        {"name": "n" * 100},
        {"name": "a-b_c.d!*'()"},
    ],
)
def test_good_jobs_pass(more):
    assert problems_of(a_job(**more)) == []


def test_all_problems_of_all_jobs_come_at_once():
    bad = a_job(name="a/b", bucket="my-example-bucket", bucket_prefix="HyP3/{name}/")
    problems = problems_of(a_job(), bad, a_job(), a_job(bucket="two..dots", bucket_prefix="../{name}"))
    assert [problem.split(": ")[0] for problem in problems] == [
        *["job 2 (a/b)"] * 4,
        "job 3 (coast)",
        *["job 4 (coast)"] * 3,
    ]
    assert "same as job 1; it would be paid for twice" in problems[4]


def test_the_same_job_twice_is_refused_and_similar_ones_are_not():
    (problem,) = problems_of(a_job(), a_job(1), a_job())
    assert problem.startswith("job 3") and "same as job 1" in problem
    assert problems_of(a_job(), a_job(1), a_job(name="other")) == []


def test_no_job_at_all_is_refused():
    assert problems_of() == ["there is no job to submit"]


def test_what_passes_the_check_is_taken_by_the_service_and_what_it_refuses_does_not_pass(idle, hyp3):
    def status(job: dict) -> int:
        answer = idle.hyp3.app.test_client().post(
            "/jobs",
            json={"jobs": [job], "validate_only": True},
            headers={"Authorization": hyp3.session.headers["Authorization"]},
        )
        return answer.status_code

    good = [a_job(bucket=name) for name in GOOD_BUCKETS[:-1]] + [a_job(bucket_prefix=p) for p in GOOD_PREFIXES]
    good.append(a_job(bucket=CONTENT_BUCKET, bucket_prefix=None))
    assert [job for job in good if problems_of(job) or status(job) != 200] == []
    tried = [a_job(bucket=name) for name in BAD_BUCKETS] + [a_job(bucket_prefix=p) for p in BAD_PREFIXES]
    tried += [a_job(name=""), a_job(name="n" * 101)]
    refused = [job for job in tried if status(job) == 400]
    assert len(refused) > 40
    assert [job for job in refused if not problems_of(job)] == []


def test_costs_beyond_the_limit_are_refused_and_the_limit_itself_is_not():
    recipe.check_cost(50, limit=50)
    with pytest.raises(Rejected, match=r"cost 50\.5 credits, more than the limit of 50; nothing was submitted"):
        recipe.check_cost(50.5, limit=50)


# --- submitting once ---


def test_the_same_run_submits_the_same_jobs_once(idle, run, posts):
    jobs = [a_job(), a_job(136232)]
    first = run(jobs)
    assert run(jobs) == first
    assert run(jobs[::-1]) == first[::-1]  # in the given order
    assert set(idle.hyp3.jobs) == set(first)
    assert posts() == 1
    assert idle.hyp3.user("sandbox-user")["remaining_credits"] == 8000 - 2


def test_only_new_jobs_are_submitted(idle, run, settings):
    first = run([a_job()])
    jobs = [a_job(136232), a_job()]
    state = RunState(settings, "hyp3", "one")
    assert once.not_yet(jobs, state) == [a_job(136232)]
    both = run(jobs)
    assert both[1:] == first and set(idle.hyp3.jobs) == set(both)
    assert once.not_yet(jobs, state) == []


def test_what_happened_is_said(run):
    said = []
    run([a_job()], show=said.append)
    run([a_job(), a_job(136232)], show=said.append)
    assert said == ["1 submitted", "1 submitted, 1 reused"]


def test_bad_jobs_are_refused_before_anything_is_sent_or_noted(run, posts, settings):
    with pytest.raises(Rejected, match="same as job 1"):
        run([a_job(), a_job()])
    assert posts() == 0
    assert RunState(settings, "hyp3", "one").get(once.NOTES) is None


def test_a_lost_answer_does_not_lose_or_double_jobs(idle, run, posts):
    idle.traffic.fail("lost-answer", **POST)
    said = []
    ids = run([a_job(), a_job(136232)], show=said.append)
    assert set(idle.hyp3.jobs) == set(ids) and len(ids) == 2
    assert posts() == 1
    assert run([a_job(), a_job(136232)]) == ids


@pytest.mark.parametrize("fault", ["dropped", "error", "bad-gateway", "unavailable"])
def test_a_submission_that_failed_is_sent_again_once_it_is_certain(idle, run, posts, fault):
    idle.traffic.fail(fault, **POST)
    started = time.monotonic()
    ids = run([a_job()], settle=0.4)
    assert set(idle.hyp3.jobs) == set(ids) and len(ids) == 1
    assert posts() == 2
    assert time.monotonic() - started > 0.4  # until then, the first could still have arrived


def test_a_lost_answer_is_looked_up_by_the_next_run_when_looking_fails_too(idle, run, hyp3, posts):
    hyp3.session.mount("http://", http._Adapter(max_retries=0))
    idle.traffic.fail("lost-answer", **POST)
    idle.traffic.fail("error", service="hyp3", method="GET", path="^/jobs$")
    with pytest.raises(FailedRemotely, match="answered 500"):
        run([a_job()])
    assert set(run([a_job()])) == set(idle.hyp3.jobs)
    assert posts() == len(idle.hyp3.jobs) == 1


def test_a_service_that_takes_nothing_is_given_up_on_and_asked_again_by_the_next_run(idle, run, posts):
    idle.traffic.fail("error", times=2, **POST)
    with pytest.raises(TimedOut, match="took none of 2 submissions"):
        run([a_job()], tries=2)
    assert posts() == 2 and idle.hyp3.jobs == {}
    assert set(run([a_job()])) == set(idle.hyp3.jobs)
    assert len(idle.hyp3.jobs) == 1


def test_a_request_for_a_pause_is_obeyed(idle, run, posts):
    idle.traffic.fail("too-many-requests", seconds=1, **POST)
    started = time.monotonic()
    ids = run([a_job()], settle=30)  # nothing was done: no need to look
    assert 1 <= time.monotonic() - started < 10
    assert set(idle.hyp3.jobs) == set(ids) and len(ids) == 1
    assert posts() == 2


def test_an_expired_token_is_explained_and_nothing_is_noted_as_sent(idle, run, settings):
    idle.traffic.fail("expired-token", **POST)
    with pytest.raises(Rejected, match=r"answered 401.*expired.*Get a new token.*run this cell again"):
        run([a_job()], settle=30)
    assert [entry["sent"] for entry in RunState(settings, "hyp3", "one").get(once.NOTES)] == [None]
    started = time.monotonic()
    ids = run([a_job()], settle=30)
    assert time.monotonic() - started < 10
    assert set(idle.hyp3.jobs) == set(ids) and len(ids) == 1


def test_a_refusal_is_passed_on_in_the_services_own_words(idle, run, posts):
    idle.hyp3.user("sandbox-user")["remaining_credits"] = Decimal(1)
    with pytest.raises(Rejected, match=r"These jobs would cost 2\.0 credits, but you have only 1 remaining"):
        run([a_job(), a_job(136232)], settle=30)
    assert posts() == 1 and idle.hyp3.jobs == {}


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_process_killed_around_the_request_is_carried_on(idle, run, hyp3, settings, posts, when):
    def killed(jobs: list[dict]) -> None:
        if when == "after":
            hyp3.submit_prepared_jobs(jobs)
        raise Killed

    with pytest.raises(Killed):
        run([a_job(), a_job(136232)], submit=killed)
    noted = RunState(settings, "hyp3", "one").get(once.NOTES)
    assert all(entry["sent"] and entry["id"] is None for entry in noted)
    there = set(idle.hyp3.jobs)
    said = []
    ids = run([a_job(), a_job(136232)], show=said.append)
    assert set(idle.hyp3.jobs) == set(ids) and len(ids) == 2
    assert posts() == 1
    if when == "after":
        assert set(ids) == there
        assert said == ["2 found again after a lost answer"]


def test_jobs_lost_long_ago_are_found_without_waiting(idle, run, hyp3, settings):
    """The state file of a process killed right after the POST, picked up the next morning."""
    there = hyp3.submit_prepared_jobs([a_job()])[0].job_id
    sent = (datetime.now(UTC) - timedelta(hours=12)).isoformat()
    idle.hyp3.jobs[there]["request_time"] = sent[:19] + "+00:00"
    RunState(settings, "hyp3", "one").save(submissions=[{"request": a_job(), "id": None, "sent": sent}])
    started = time.monotonic()
    assert run([a_job()], settle=60) == [there]
    assert time.monotonic() - started < 10
    assert set(idle.hyp3.jobs) == {there}


def test_jobs_of_before_the_run_are_not_taken_for_lost_ones(idle, run, hyp3, settings):
    old = hyp3.submit_prepared_jobs([a_job()])[0].job_id
    idle.hyp3.jobs[old]["request_time"] = "2024-01-01T00:00:00+00:00"
    idle.traffic.fail("dropped", **POST)
    ids = run([a_job()])
    assert old not in ids and len(idle.hyp3.jobs) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"name": "other"},
        {"bucket": "their-products"},
        {"bucket_prefix": "elsewhere/{job_id}"},
        {"burst": 136232},
        {"job_parameters": {"granules": a_job()["job_parameters"]["granules"], "looks": "5x1"}},
    ],
)
def test_a_job_that_differs_is_not_taken_for_the_lost_one(idle, run, hyp3, other):
    lost = a_job(job_parameters=a_job()["job_parameters"] | {"looks": "20x4"})
    similar = hyp3.submit_prepared_jobs([a_job(**other)])[0].job_id
    idle.traffic.fail("dropped", **POST)
    ids = run([lost])
    assert similar not in ids and len(idle.hyp3.jobs) == 2


def test_two_runs_with_the_same_jobs_have_jobs_of_their_own(idle, run):
    jobs = [a_job(), a_job(136232)]
    one, two = run(jobs, "one"), run(jobs, "two")
    assert not set(one) & set(two)
    assert set(idle.hyp3.jobs) == {*one, *two}
    assert (run(jobs, "one"), run(jobs, "two")) == (one, two)


@pytest.mark.parametrize("lost", ["one", "two"])
def test_two_runs_do_not_take_each_others_jobs_when_an_answer_is_lost(idle, run, lost):
    ids = {}
    for run_id in ("one", "two"):
        if run_id == lost:
            idle.traffic.fail("lost-answer", **POST)
        ids[run_id] = run([a_job()], run_id)
    assert ids["one"] != ids["two"]
    assert set(idle.hyp3.jobs) == {*ids["one"], *ids["two"]}


def test_two_killed_runs_with_the_same_jobs_each_find_one_of_them(idle, run, hyp3):
    def killed(jobs: list[dict]) -> None:
        hyp3.submit_prepared_jobs(jobs)
        raise Killed

    for run_id in ("one", "two"):
        with pytest.raises(Killed):
            run([a_job()], run_id, submit=killed)
    assert {*run([a_job()], "one"), *run([a_job()], "two")} == set(idle.hyp3.jobs)
    assert len(idle.hyp3.jobs) == 2


def test_kernels_with_the_same_run_id_submit_once(idle, run, hyp3):
    both_here = threading.Barrier(2)
    ids = []

    def slowly(jobs: list[dict]):
        time.sleep(0.3)
        return hyp3.submit_prepared_jobs(jobs)

    def kernel() -> None:
        both_here.wait()
        ids.append(run([a_job(), a_job(136232)], submit=slowly))

    threads = [threading.Thread(target=kernel) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 2 and ids[0] == ids[1]
    assert set(idle.hyp3.jobs) == set(ids[0])


def test_a_chunk_that_is_refused_does_not_undo_the_one_before(idle, run, monkeypatch):
    monkeypatch.setattr(recipe, "CHUNK", 2)
    jobs = [a_job(136231 + n) for n in range(3)]
    idle.traffic.fail("forbidden", skip=1, **POST)
    with pytest.raises(Rejected, match="answered 403"):
        run(jobs, settle=30)
    first = set(idle.hyp3.jobs)
    assert len(first) == 2
    ids = run(jobs, settle=30)
    assert first < set(ids) == set(idle.hyp3.jobs) and len(ids) == 3


def test_the_client_is_hardened(idle, hyp3):
    idle.traffic.fail("unavailable", service="hyp3", method="GET", path="^/user$")
    assert hyp3.check_credits() == 8000
    idle.traffic.fail("forbidden", service="hyp3", method="GET", path="^/user$")
    with pytest.raises(Rejected, match="answered 403"):
        hyp3.check_credits()
    assert isinstance(hyp3.session.get_adapter(hyp3.url), http._Adapter)


# --- submitting anew ---


def resubmitted(hyp3, job: Job) -> tuple[dict, Job]:
    again = recipe.resubmission(job)
    recipe.check([again])
    return again, hyp3.submit_prepared_jobs([again])[0]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        # the SDK would make "d{name}t{name}/{name}/{job_id}" of the first
        ({"name": "a", "bucket_prefix": "data/a/{job_id}"}, "data/a/{}"),
        ({"name": "a", "bucket_prefix": "data/{name}/{job_id}"}, "data/a/{}"),
        ({"bucket_prefix": "{job_id}"}, "{}"),
        ({"bucket_prefix": "x{job_id}/y-{job_id}"}, "x{0}/y-{0}"),
        ({"bucket_prefix": None}, "{}"),
        ({"bucket_prefix": None, "name": None}, "{}"),
        ({"bucket": None, "bucket_prefix": None}, "{}"),
        ({"bucket": None, "bucket_prefix": None, "name": None}, "{}"),
    ],
)
def test_a_resubmitted_job_goes_to_the_same_place(idle, hyp3, more, expected):
    job = hyp3.get_job_by_id(hyp3.submit_prepared_jobs([a_job(**more)])[0].job_id)
    again, new = resubmitted(hyp3, job)
    assert new.job_id != job.job_id
    assert job.bucket_prefix == expected.format(job.job_id)
    assert (new.bucket, new.bucket_prefix) == (job.bucket, expected.format(new.job_id))
    assert (new.name, new.job_type, new.job_parameters) == (job.name, job.job_type, job.job_parameters)
    assert new.bucket == (BUCKET if more.get("bucket", BUCKET) else CONTENT_BUCKET)
    assert ("name" in again) == ("name" not in more or more["name"] is not None)


def test_a_renamed_job_is_resubmitted_to_its_old_place_under_its_new_name(idle, hyp3):
    job_id = hyp3.submit_prepared_jobs([a_job(name="old")])[0].job_id
    hyp3.session.patch(f"{hyp3.url}/jobs/{job_id}", json={"name": "new"})
    _, new = resubmitted(hyp3, hyp3.get_job_by_id(job_id))
    assert (new.name, new.bucket_prefix) == ("new", f"HyP3/old/{new.job_id}")


def test_a_fixed_prefix_is_kept_letter_by_letter(idle, hyp3):
    job = hyp3.submit_prepared_jobs([a_job(name="a", bucket_prefix="data/a")])[0]
    assert recipe.resubmission(job)["bucket_prefix"] == "data/a"


def test_a_nameless_job_with_a_prefix_cannot_be_resubmitted(idle, hyp3, posts):
    job_id = hyp3.submit_prepared_jobs([a_job()])[0].job_id
    hyp3.session.patch(f"{hyp3.url}/jobs/{job_id}", json={"name": None})
    with pytest.raises(Rejected, match=rf"{job_id} has no name but the prefix 'HyP3/coast/{job_id}': name it first"):
        recipe.resubmission(hyp3.get_job_by_id(job_id))


# --- what arrived, and why not ---


def a_file(key: str, size: int) -> dict:
    return {"url": f"https://example.org/{key}", "size": size, "filename": key, "s3": {"bucket": BUCKET, "key": key}}


@pytest.mark.parametrize(
    ("reported", "in_bucket", "verdict"),
    [
        (10, 10, "ok"),
        (0, 0, "ok"),
        (10, 9, "size differs"),
        (10, 0, "size differs"),
        (10, None, "missing"),
        (None, 10, "not listed"),
    ],
)
def test_what_arrived_is_compared_key_by_key(reported, in_bucket, verdict):
    files = [] if reported is None else [a_file("k", reported)]
    job = Job("T", "id", datetime.now(UTC), "SUCCEEDED", "me", files=files)
    rows = recipe.arrived(job, {} if in_bucket is None else {"k": in_bucket})
    assert rows == [{"key": "k", "bytes": in_bucket, "reported": reported, "verdict": verdict}]


def test_a_job_that_hyp3_could_not_write_for_reports_nothing():
    job = Job("T", "id", datetime.now(UTC), "FAILED", "me")
    assert recipe.arrived(job, {}) == []
    assert [row["verdict"] for row in recipe.arrived(job, {"b": 1, "a": 1})] == ["not listed"] * 2


def test_what_a_real_job_reports_is_in_the_bucket(bucket, finished, s3):
    job = finished(a_job())
    assert job.succeeded()
    rows = recipe.arrived(job, objectstore.objects(s3, bucket, f"{job.bucket_prefix}/"))
    assert {row["verdict"] for row in rows} == {"ok", "not listed"}
    (ok,) = [row for row in rows if row["verdict"] == "ok"]
    assert ok["key"].endswith(".zip") and ok["bytes"] == job.files[0]["size"]
    s3.delete_object(Bucket=bucket, Key=ok["key"])
    rows = recipe.arrived(job, objectstore.objects(s3, bucket, f"{job.bucket_prefix}/"))
    assert next(row for row in rows if row["key"] == ok["key"])["verdict"] == "missing"


@pytest.mark.parametrize("where", [{}, {"bucket": None, "bucket_prefix": None}])
def test_the_end_of_the_log_says_why_a_job_failed(bucket, finished, s3, where):
    job = finished(a_job(**where) | {"job_type": "AUTORIFT", "job_parameters": {"granules": FAILING}})
    assert job.failed()
    said = recipe.why_failed(job, s3).splitlines()
    assert len(said) == 6
    assert said[-1].startswith("ValueError: no valid pixels left")
    assert recipe.why_failed(job, s3, lines=1) == said[-1]


def test_a_missing_log_says_what_may_be_wrong_with_the_bucket(idle, finished, s3):
    job = finished(a_job())  # into a bucket that is not there
    assert job.failed() and job.logs is None
    said = recipe.why_failed(job, s3)
    assert BUCKET in said
    for cause in ("policy", "exist", "KMS", "untagged"):
        assert cause in said


# --- cleaning up ---

THEIRS = {
    "Sid": "theirs",
    "Effect": "Allow",
    "Principal": {"AWS": "999988887777"},
    "Action": "s3:GetObject",
    "Resource": f"arn:aws:s3:::{BUCKET}/theirs/*",
}


def stored_policy(s3) -> dict | None:
    return objectstore.read_policy(s3, BUCKET, OWNER)


@pytest.fixture
def done(idle, s3, settings, finished):
    """A run as the notebook leaves it: policy merged, products written, both noted; and things of others."""

    def do(before: dict | None = None) -> RunState:
        state = RunState(settings, "hyp3", "one")
        objectstore.ensure_bucket(s3, BUCKET, OWNER, create=True)
        if before:
            s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(before))
        wanted = idle.hyp3.bucket_policy(BUCKET)["Statement"]
        after = objectstore.merged(before, wanted)
        recipe.remember_policy(state, BUCKET, before, wanted)
        s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(after))
        job = finished(a_job())
        recipe.remember_written(state, BUCKET, list(objectstore.objects(s3, BUCKET, f"{job.bucket_prefix}/")))
        for key in ("HyP3/mine.txt", f"{job.bucket_prefix}-beside", f"{job.bucket_prefix}/notes-of-mine.txt"):
            s3.put_object(Bucket=BUCKET, Key=key, Body=b"mine")
        return state

    return do


def of_others(s3) -> list[str]:
    return [re.sub(r"[0-9a-f-]{36}", "ID", key) for key in objectstore.objects(s3, BUCKET, "")]


LEFT = ["HyP3/coast/ID-beside", "HyP3/coast/ID/notes-of-mine.txt", "HyP3/mine.txt"]


def test_clean_up_removes_what_the_run_added_and_nothing_else(done, s3):
    before = {"Version": "2012-10-17", "Statement": [THEIRS]}
    state = done(before)
    gone = recipe.clean_up(state, s3, OWNER)
    assert gone["statements"] == 2 and gone["objects"] == len(state.get("written")[BUCKET]) > 1
    assert stored_policy(s3) == before
    assert of_others(s3) == LEFT
    s3.head_bucket(Bucket=BUCKET)  # the bucket itself stays


def test_clean_up_removes_a_policy_that_is_empty_then(done, s3):
    recipe.clean_up(done(), s3, OWNER)
    assert stored_policy(s3) is None


def test_clean_up_leaves_what_others_did_to_the_policy_since(done, s3):
    state = done()
    policy = stored_policy(s3)
    policy["Statement"][0]["Effect"] = "Deny"
    policy["Statement"].append(THEIRS)
    s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(policy))
    recipe.clean_up(state, s3, OWNER)
    assert stored_policy(s3)["Statement"] == [policy["Statement"][0], THEIRS]


@pytest.mark.parametrize("before", [None, {"Version": "2012-10-17", "Statement": [THEIRS]}])
def test_clean_up_can_be_repeated(done, s3, settings, before):
    first = recipe.clean_up(done(before), s3, OWNER)
    again = recipe.clean_up(RunState(settings, "hyp3", "one", cleaning=True), s3, OWNER)
    assert again == first
    assert stored_policy(s3) == before and of_others(s3) == LEFT


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", rf"^/{BUCKET}$"), ("DELETE", rf"^/{BUCKET}$"), ("POST", rf"^/{BUCKET}$")],
    ids=["reading the policy", "withdrawing it", "deleting objects"],
)
def test_clean_up_that_was_interrupted_is_finished_by_the_next(idle, done, s3, settings, method, path):
    state = done()
    idle.traffic.fail("forbidden", service="s3", method=method, path=path)
    with pytest.raises(Exception, match=r"AccessDenied|refuses"):
        recipe.clean_up(state, s3, OWNER)
    with pytest.raises(Rejected, match=r"interrupted\. Finish it: python -m helpers cleanup one"):
        RunState(settings, "hyp3", "one")
    recipe.clean_up(RunState(settings, "hyp3", "one", cleaning=True), s3, OWNER)
    assert stored_policy(s3) is None and of_others(s3) == LEFT
    with pytest.raises(Rejected, match="Choose another run_id"):
        RunState(settings, "hyp3", "one")


def test_clean_up_of_a_run_that_did_nothing_does_nothing(sandbox, settings, s3):
    state = RunState(settings, "hyp3", "one", cleaning=True)
    assert recipe.clean_up(state, s3, OWNER) == {"statements": 0, "objects": 0}
    assert sandbox.traffic.received("s3", path=f"^/{BUCKET}") == []


def test_clean_up_after_the_bucket_itself_is_gone_is_done(done, s3, settings):
    state = done()
    objectstore.delete(s3, BUCKET, list(objectstore.objects(s3, BUCKET, "")))
    s3.delete_bucket(Bucket=BUCKET)
    recipe.clean_up(state, s3, OWNER)
    with pytest.raises(Rejected, match="Choose another run_id"):
        RunState(settings, "hyp3", "one")


def test_written_keys_add_up(settings):
    state = RunState(settings, "hyp3", "one")
    recipe.remember_written(state, "a", ["2", "1"])
    recipe.remember_written(state, "b", ["1"])
    recipe.remember_written(state, "a", ["3", "1"])
    assert state.get("written") == {"a": ["1", "2", "3"], "b": ["1"]}
