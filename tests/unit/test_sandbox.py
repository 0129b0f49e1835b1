"""The sandbox: does it let in, refuse, fail and start over as the services it stands in for?"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import boto3
import psutil
import pytest
import requests
from botocore.config import Config

from helpers import objectstore
from helpers import settings as room
from helpers.sandbox import SERVICES, Deployment, Sandbox, dpr, faults
from helpers.sandbox.clock import Clock
from helpers.sandbox.products import Product

CHECKOUT = Path(__file__).resolve().parents[2]
ACCOUNT = "444455556666"  # HyP3's
OWNER = "123456789012"
BUCKET = "my-products"
CONTENT_BUCKET = "hyp3-sandbox-contentbucket"
ROLES = [f"arn:aws:iam::{ACCOUNT}:role/hyp3-{role}" for role in ("compute", "upload-log", "get-files")]
GRANULES = ["S1_136231_IW2_20200604T022312_VV_7C85-BURST", "S1_136231_IW2_20200616T022313_VV_5D11-BURST"]
#: What a job lacks that HyP3 could not write for.
FILE_KEYS = {"files", "logs", "browse_images", "thumbnail_images", "expiration_time"}


def submit(sandbox: Sandbox, count: int = 1, token: str | None = None, **where) -> list[str]:
    """Submit jobs over HTTP, and return their ids."""
    job = {"job_type": "INSAR_ISCE_BURST", "name": "coast", "job_parameters": {"granules": GRANULES}} | where
    answer = requests.post(
        f"{sandbox.url('hyp3')}/jobs",
        json={"jobs": [job] * count},
        headers={"Authorization": f"Bearer {token or sandbox.environment['EARTHDATA_TOKEN']}"},
        timeout=10,
    )
    answer.raise_for_status()
    return [job["job_id"] for job in answer.json()["jobs"]]


def small_products(_: dict) -> list[Product]:
    kinds = {"x.zip": "product", "x.tif": "product", "x.png": "browse", "x_thumb.png": "thumbnail"}
    return [Product(name, b"12345", kind, "application/octet-stream") for name, kind in kinds.items()]


def control(sandbox: Sandbox, path: str, body: object = None, method: str = "POST") -> requests.Response:
    return requests.request(method, f"{sandbox.url('control')}{path}", json=body, timeout=10)


# --- whom S3 lets in ---


@pytest.fixture
def bucket(s3) -> str:
    objectstore.ensure_bucket(s3, BUCKET, OWNER, create=True)
    return BUCKET


@pytest.fixture
def finished(sandbox):
    """Submit a job into the user's bucket (or elsewhere), let it end, and return it as the service stores it."""
    sandbox.hyp3.processor.stop()
    # Small products, written faster than the sandbox's own rasters.
    sandbox.hyp3.processor.make_products = small_products

    def submit_and_finish(**where) -> dict:
        (job_id,) = submit(sandbox, **({"bucket": BUCKET, "bucket_prefix": "HyP3/{job_id}"} | where))
        sandbox.hyp3.processor.start(job_id)
        sandbox.hyp3.processor.finish(job_id)
        return sandbox.hyp3.jobs[job_id]

    return submit_and_finish


def hyp3s_policy(
    bucket: str = BUCKET, principal: object = ACCOUNT, scope: str = "", lacking: tuple[str, ...] = ()
) -> dict:
    """The policy that HyP3 hands out, with changes."""
    answer = {
        "bucket": (["s3:ListBucket", "s3:getBucketLocation"], ""),
        "object": (["s3:GetObject", "s3:GetObjectTagging", "s3:PutObject", "s3:PutObjectTagging"], f"{scope}/*"),
    }
    statements = [
        {
            "Sid": level,
            "Effect": "Allow",
            "Principal": {"AWS": principal},
            "Action": [action for action in actions if action not in lacking],
            "Resource": f"arn:aws:s3:::{bucket}{ending}",
        }
        for level, (actions, ending) in answer.items()
    ]
    return {"Version": "2012-10-17", "Statement": statements}


def deny(principal: object, action: str) -> dict:
    statement = {
        "Effect": "Deny",
        "Principal": {"AWS": principal},
        "Action": action,
        "Resource": f"arn:aws:s3:::{BUCKET}/*",
    }
    policy = hyp3s_policy()
    return policy | {"Statement": [*policy["Statement"], statement]}


def put_policy(s3, policy: dict) -> None:
    s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(policy))


#: Policies that do not let HyP3 in far enough.
REFUSING = {
    "another account": hyp3s_policy(principal="111122223333"),
    "only one of its roles": hyp3s_policy(principal=ROLES[0]),
    "a Deny for everybody": deny("*", "s3:PutObject"),
    "another folder": hyp3s_policy(scope="/elsewhere"),
    "the folder in other letters": hyp3s_policy(scope="/hyp3"),
    "another bucket": hyp3s_policy("my-products-2"),
    "no right to write": hyp3s_policy(lacking=("s3:PutObject",)),
    "no right to tag": hyp3s_policy(lacking=("s3:PutObjectTagging",)),
    "no right to list": hyp3s_policy(lacking=("s3:ListBucket",)),
    "no right to read tags": hyp3s_policy(lacking=("s3:GetObjectTagging",)),
}
#: Policies that let HyP3 in, narrower than the one that it hands out.
ADMITTING = {
    "its three roles": hyp3s_policy(principal=ROLES),
    "its account as an ARN": hyp3s_policy(principal=f"arn:aws:iam::{ACCOUNT}:root"),
    "scoped to the folder": hyp3s_policy(scope="/HyP3"),
    "a Deny for others": deny("111122223333", "s3:*"),
    "a Deny of something else": deny("*", "s3:DeleteObject"),
}


def test_a_job_that_cannot_publish_fails_without_any_file_keys(finished, s3, bucket):
    jobs = {"no policy": finished()}
    for reason, policy in REFUSING.items():
        put_policy(s3, policy)
        jobs[reason] = finished()
    ends = {reason: (job["status_code"], FILE_KEYS & set(job)) for reason, job in jobs.items()}
    assert ends == dict.fromkeys(ends, ("FAILED", set()))
    assert {job["processing_times"] for job in jobs.values()} == {None}


def test_narrower_policies_work_too(finished, s3, bucket):
    ends = {}
    for reason, policy in ADMITTING.items():
        put_policy(s3, policy)
        ends[reason] = finished()["status_code"]
    assert ends == dict.fromkeys(ADMITTING, "SUCCEEDED")


def test_a_job_that_may_only_write_its_log_fails_with_it(finished, s3, bucket):
    put_policy(s3, deny(ROLES[0], "s3:*"))
    job = finished()
    assert (job["status_code"], job["files"]) == ("FAILED", [])
    key = f"{job['bucket_prefix']}/{job['job_id']}.log"
    assert list(objectstore.objects(s3, BUCKET, "")) == [key]
    assert [url.endswith(key) for url in job["logs"]] == [True]


def test_a_job_for_a_bucket_that_is_not_there_fails_without_any_file_keys(finished):
    job = finished()
    assert job["status_code"] == "FAILED" and FILE_KEYS & set(job) == set()


@pytest.mark.parametrize(
    ("algorithm", "state"), [("aws:kms", "FAILED"), ("aws:kms:dsse", "FAILED"), ("AES256", "SUCCEEDED")]
)
def test_a_bucket_with_a_kms_key_keeps_hyp3_out(finished, s3, bucket, algorithm, state):
    put_policy(s3, hyp3s_policy())
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": algorithm}}
    s3.put_bucket_encryption(Bucket=BUCKET, ServerSideEncryptionConfiguration={"Rules": [rule]})
    job = finished()
    assert job["status_code"] == state
    assert bool(FILE_KEYS & set(job)) == (state == "SUCCEEDED")


def test_with_the_policy_that_hyp3_hands_out_the_products_arrive(sandbox, finished, s3, bucket):
    handed_out = requests.get(
        f"{sandbox.url('hyp3')}/bucket-policy/{BUCKET}", headers={"Authorization": "Bearer anything"}, timeout=10
    ).json()
    put_policy(s3, handed_out)
    job = finished()
    assert job["status_code"] == "SUCCEEDED"
    assert set(job) >= FILE_KEYS
    in_bucket = objectstore.objects(s3, BUCKET, "")
    assert [in_bucket[file["s3"]["key"]] for file in job["files"]] == [file["size"] for file in job["files"]] != []
    assert all(key.startswith(f"HyP3/{job['job_id']}/") for key in in_bucket)


def test_the_content_bucket_needs_nothing_of_the_user(sandbox, finished):
    job = finished(bucket=None, bucket_prefix=None)
    assert job["status_code"] == "SUCCEEDED"
    assert (job["bucket"], job["bucket_prefix"]) == (CONTENT_BUCKET, job["job_id"])
    (file,) = job["files"]
    assert len(requests.get(file["url"], timeout=10).content) == file["size"]


def test_anonymous_reading_is_for_the_content_bucket_only(sandbox, finished, s3, bucket):
    put_policy(s3, hyp3s_policy())
    private, public = finished(), finished(bucket=None, bucket_prefix=None)
    assert requests.get(private["files"][0]["url"], timeout=10).status_code == 403
    assert requests.get(public["files"][0]["url"], timeout=10).status_code == 200
    for name, status in ((BUCKET, 403), (CONTENT_BUCKET, 200)):
        assert requests.get(f"{sandbox.url('s3')}/{name}?list-type=2", timeout=10).status_code == status
        assert requests.put(f"{sandbox.url('s3')}/{name}/x", data=b"x", timeout=10).status_code == 403
        assert requests.get(f"{sandbox.url('s3')}/{name}?policy", timeout=10).status_code == 403


@pytest.mark.parametrize("signature", [None, "s3v4"])
def test_presigned_urls_open_a_private_object_until_they_expire(sandbox, settings, s3, bucket, signature):
    """Signed in boto3's default way, which for this region is still the old one, and in the new one."""
    signer = room.aws_session(settings).client(
        "s3", endpoint_url=sandbox.url("s3"), config=Config(signature_version=signature)
    )
    s3.put_object(Bucket=BUCKET, Key="folder/a b.txt", Body=b"private")
    plain = f"{sandbox.url('s3')}/{BUCKET}/folder/a%20b.txt"
    where = {"Bucket": BUCKET, "Key": "folder/a b.txt"}
    good = signer.generate_presigned_url("get_object", Params=where, ExpiresIn=60)
    short = signer.generate_presigned_url("get_object", Params=where, ExpiresIn=1)
    assert good.startswith(plain) and requests.get(plain, timeout=10).status_code == 403
    assert requests.get(good, timeout=10).content == b"private"
    upload = signer.generate_presigned_url("put_object", Params=where, ExpiresIn=60)
    assert requests.put(upload, data=b"changed", timeout=10).status_code == 200
    time.sleep(1.1)
    expired = requests.get(short, timeout=10)
    assert (expired.status_code, "Request has expired" in expired.text) == (403, True)
    assert requests.get(good, timeout=10).content == b"changed"


def test_the_owner_can_be_shut_out_but_can_always_take_the_policy_back(s3, bucket):
    s3.put_object(Bucket=BUCKET, Key="a", Body=b"a")
    put_policy(s3, {"Statement": [{"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": "*"}]})
    with pytest.raises(s3.exceptions.ClientError, match="AccessDenied"):
        s3.get_object(Bucket=BUCKET, Key="a")
    s3.delete_bucket_policy(Bucket=BUCKET)
    assert s3.get_object(Bucket=BUCKET, Key="a")["Body"].read() == b"a"


def test_a_denied_key_is_not_deleted_together_with_others_either(s3, bucket):
    for key in ("kept/1", "gone"):
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    rule = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:DeleteObject",
        "Resource": f"arn:aws:s3:::{BUCKET}/kept/*",
    }
    put_policy(s3, {"Statement": [rule]})
    with pytest.raises(s3.exceptions.ClientError, match="AccessDenied"):
        s3.delete_object(Bucket=BUCKET, Key="kept/1")
    with contextlib.suppress(s3.exceptions.ClientError):
        s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": "kept/1"}, {"Key": "gone"}]})
    assert "kept/1" in objectstore.objects(s3, BUCKET, "")


# --- time ---


@pytest.fixture
def still() -> Iterator[Sandbox]:
    """A sandbox of its own whose clock moves only when it is told to."""
    with Sandbox(
        clock=Clock(datetime(2026, 11, 21, 12, tzinfo=UTC)),
        deployment=Deployment(pending=0.1, running=0.2, make_products=small_products),
    ) as sandbox:
        yield sandbox


def states(sandbox: Sandbox, ids: list[str]) -> list[str]:
    return [sandbox.hyp3.jobs[job_id]["status_code"] for job_id in ids]


def test_jobs_advance_with_the_clock_and_with_nothing_else(still):
    (job_id,) = submit(still)
    assert still.hyp3.jobs[job_id]["request_time"] == "2026-11-21T12:00:00+00:00"
    time.sleep(0.4)  # of real time, in which the job would be done
    assert states(still, [job_id]) == ["PENDING"]
    for seconds, state in [(0.09, "PENDING"), (0.01, "RUNNING"), (0.19, "RUNNING"), (0.01, "SUCCEEDED")]:
        assert control(still, "/clock", {"advance": seconds}).status_code == 200
        # Its effects are there when the answer is: no waiting, no polling.
        assert states(still, [job_id]) == [state]
    assert still.hyp3.jobs[job_id]["files"]
    assert control(still, "/clock", {"advance": 3600}).json() == {"now": "2026-11-21T13:00:00.300000+00:00"}


def test_later_jobs_of_a_submission_follow_a_little_later(still):
    ids = submit(still, count=3)
    seen = []
    for _ in range(40):
        control(still, "/clock", {"advance": 0.01})
        if states(still, ids) not in seen:
            seen.append(states(still, ids))
    assert seen[0] == ["PENDING"] * 3 and seen[-1] == ["SUCCEEDED"] * 3
    order = ["PENDING", "RUNNING", "SUCCEEDED"].index
    assert all(sorted(each, key=order, reverse=True) == each for each in seen)
    assert ["RUNNING", "RUNNING", "PENDING"] in seen


def test_products_in_the_content_bucket_expire_at_the_midnight_after_two_weeks(still):
    (job_id,) = submit(still)
    control(still, "/clock", {"advance": 10})
    control(still, "/clock", {"advance": 10})
    assert still.hyp3.jobs[job_id]["expiration_time"] == "2026-12-06T00:00:00+00:00"


@pytest.mark.parametrize("wrong", [{"advance": -1}, {"advance": "soon"}, {}])
def test_a_clock_that_cannot_go_there_says_so(sandbox, wrong):
    before = sandbox.clock.now()
    assert control(sandbox, "/clock", wrong).status_code == 400
    assert (sandbox.clock.now() - before).total_seconds() < 5


# --- faults ---

#: Kind -> status of the answer (None: none comes), and whether the request was carried out.
FAULTS = {
    "bad-request": (400, False),
    "expired-token": (401, False),
    "forbidden": (403, False),
    "unprocessable": (422, False),
    "too-many-requests": (429, False),
    "error": (500, False),
    "bad-gateway": (502, False),
    "unavailable": (503, False),
    "slow": (200, True),
    "cut": (None, True),
    "dropped": (None, False),
    "lost-answer": (None, True),
}


def test_every_fault_is_tried():
    assert set(FAULTS) == {*faults.ANSWERS, *faults.BEHAVIOURS}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_does_once_what_its_name_says(sandbox, kind):
    status, acts = FAULTS[kind]
    fault = {"kind": kind, "service": "hyp3", "method": "post", "path": "^/jobs$", "seconds": 0.4}
    assert control(sandbox, "/faults", fault).status_code == 200
    requests.get(f"{sandbox.url('hyp3')}/costs", timeout=10).raise_for_status()  # not what it is for
    started = time.monotonic()
    if status is None:
        with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
            submit(sandbox)
    elif status == 200:
        submit(sandbox)
        assert time.monotonic() - started >= 0.4
    else:
        with pytest.raises(requests.HTTPError) as error:
            submit(sandbox)
        answer = error.value.response
        assert answer.status_code == status
        assert ("detail" in answer.json()) if "json" in answer.headers["Content-Type"] else "<title>" in answer.text
        assert answer.headers.get("Retry-After") == ("1" if status == 429 else None)  # whole seconds
    assert len(sandbox.hyp3.jobs) == acts
    submit(sandbox)  # used up
    assert len(sandbox.hyp3.jobs) == acts + 1
    logged = 200 if kind == "cut" else status or 0
    assert [r.status for r in sandbox.traffic.received("hyp3", "POST")] == [logged, 200]


def test_what_a_service_does_to_itself_strikes_no_request(sandbox):
    """The Hook takes these faults; `tests/contract/test_hook.py` has what it does with each."""
    for kind in faults.EVENTS:
        fault = {"kind": kind, "service": "hook", "path": "T32TMS$", "times": 2, "skip": 1}
        assert control(sandbox, "/faults", fault).status_code == 200
        assert requests.get(f"{sandbox.url('hook')}/T32TMS", timeout=10).status_code == 401
        take = sandbox.traffic.take
        assert not take(kind, "hyp3", "T32TMS") and not take(kind, "hook", "T47VLH") and not take("slow", "hook")
        assert [take(kind, "hook", "S2_T32TMS") for _ in range(4)] == [False, True, True, False]


@pytest.mark.parametrize(
    ("service", "words"),
    [
        ("hyp3", lambda answer: answer.json()["title"] == "Forbidden"),
        ("hook", lambda answer: set(answer.json()) == {"detail"}),
        ("identity", lambda answer: set(answer.json()) == {"error", "error_description"}),
        ("hook-storage", lambda answer: answer.headers["Content-Type"] == "text/plain"),
        ("s3", lambda answer: "<Code>AccessDenied</Code>" in answer.text),
    ],
)
def test_each_service_words_a_fault_in_its_own_way(sandbox, service, words):
    control(sandbox, "/faults", {"kind": "forbidden", "service": service})
    answer = requests.get(f"{sandbox.url(service)}/anything", timeout=10)
    assert answer.status_code == 403 and words(answer)


def test_a_cut_answer_promises_the_whole_and_sends_a_part(sandbox):
    whole = requests.get(f"{sandbox.url('hyp3')}/openapi.json", timeout=10).content
    control(sandbox, "/faults", {"kind": "cut", "fraction": 0.25})
    with requests.get(f"{sandbox.url('hyp3')}/openapi.json", stream=True, timeout=10) as answer:
        assert int(answer.headers["Content-Length"]) == len(whole)
        part = b""
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            for chunk in answer.iter_content(1):
                part += chunk
    assert part == whole[: len(whole) // 4]


def test_faults_strike_as_often_as_told_after_as_many_as_told_and_can_be_healed(sandbox):
    def statuses(count: int) -> list[int]:
        return [requests.get(f"{sandbox.url('hyp3')}/costs", timeout=10).status_code for _ in range(count)]

    control(sandbox, "/faults", {"kind": "error", "times": 2, "skip": 1})
    assert statuses(5) == [200, 500, 500, 200, 200]
    control(sandbox, "/faults", {"kind": "error", "times": 100})
    assert statuses(1) == [500]
    assert control(sandbox, "/faults", method="DELETE").status_code == 200
    assert statuses(2) == [200, 200]


def test_a_fault_of_one_service_spares_the_others(sandbox, s3):
    control(sandbox, "/faults", {"kind": "forbidden", "service": "s3"})
    assert requests.get(f"{sandbox.url('hyp3')}/costs", timeout=10).status_code == 200
    with pytest.raises(s3.exceptions.ClientError, match="AccessDenied"):
        s3.list_buckets()
    assert s3.list_buckets()["Buckets"] == []


def test_an_unknown_fault_is_refused_with_the_known_ones(sandbox):
    answer = control(sandbox, "/faults", {"kind": "earthquake"})
    assert answer.status_code == 400
    assert "'earthquake'" in answer.json()["detail"]
    assert all(kind in answer.json()["detail"] for kind in {*FAULTS, *faults.EVENTS})
    assert sandbox.traffic.faults == []


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"kind": "error", "tims": 2},
        {"kind": "error", "times": "2"},
        {"kind": "error", "path": "("},
        {"kind": "cut", "fraction": 1},
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_and_breaks_nothing(sandbox, wrong):
    assert control(sandbox, "/faults", wrong).status_code == 400
    assert requests.get(f"{sandbox.url('hyp3')}/costs", timeout=10).status_code == 200


# --- the control endpoint ---


def test_it_says_what_it_is_and_where_its_services_are(sandbox):
    told = control(sandbox, "/", method="GET").json()
    assert (told["name"], told["pid"]) == ("eo-cloud-recipes sandbox", os.getpid())
    assert told["services"] == {name: sandbox.url(name) for name in SERVICES}


def test_other_users_have_jobs_of_their_own(sandbox):
    token = control(sandbox, "/token", {"user_id": "neighbour"}).json()["token"]
    (mine,), (theirs,) = submit(sandbox), submit(sandbox, token=token)
    answer = requests.get(f"{sandbox.url('hyp3')}/jobs", headers={"Authorization": f"Bearer {token}"}, timeout=10)
    assert [job["job_id"] for job in answer.json()["jobs"]] == [theirs]
    assert sandbox.hyp3.jobs[mine]["user_id"] == "sandbox-user"
    expired = control(sandbox, "/token", {"user_id": "neighbour", "expires_in": -60}).json()["token"]
    with pytest.raises(requests.HTTPError, match="401"):
        submit(sandbox, token=expired)


def test_the_log_of_requests_has_what_happened_and_no_credentials(sandbox):
    submit(sandbox)
    requests.get(f"{sandbox.url('hyp3')}/costs?a=b", timeout=10)
    answer = control(sandbox, "/requests", method="GET")
    of_hyp3 = [r for r in answer.json() if r["service"] == "hyp3"]
    assert of_hyp3 == [
        {"service": "hyp3", "method": "POST", "path": "/jobs", "query": "", "status": 200, "authorized": True},
        {"service": "hyp3", "method": "GET", "path": "/costs", "query": "a=b", "status": 200, "authorized": False},
    ]
    assert sandbox.environment["EARTHDATA_TOKEN"] not in answer.text and "Bearer" not in answer.text


def test_the_log_of_requests_has_no_signatures(sandbox, s3, bucket):
    s3.put_object(Bucket=BUCKET, Key="a", Body=b"a")
    url = s3.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": "a"})
    assert requests.get(url, timeout=10).content == b"a"
    requests.get(f"{sandbox.url('hyp3')}/costs?code=abc&start_token=x&session_code=abc&temp_url_sig=abc", timeout=10)
    signed, plain = (sandbox.traffic.received(service)[-1].query for service in ("s3", "hyp3"))
    assert plain == "code=&start_token=x&session_code=&temp_url_sig="
    given = dict(pair.split("=") for pair in url.partition("?")[2].split("&"))
    logged = dict(pair.split("=") for pair in signed.split("&"))
    assert {name for name in given if logged[name] != given[name]} <= {"Signature", "X-Amz-Signature"}
    assert set(logged) == set(given) and logged != given


# --- finding it ---


def test_boto3_needs_nothing_but_the_environment(sandbox, monkeypatch):
    for name, value in sandbox.environment.items():
        monkeypatch.setenv(name, value)
    assert boto3.Session().region_name == sandbox.environment["AWS_REGION"]
    assert boto3.client("sqs").meta.endpoint_url == sandbox.url("s3")


# --- starting over ---


def test_reset_brings_back_the_initial_state_as_a_new_world(sandbox, s3, bucket):
    old = sandbox.environment
    s3.put_object(Bucket=BUCKET, Key="a", Body=b"a")
    submit(sandbox)
    sandbox.hyp3.catalogue_up = sandbox.hyp3.available = False
    control(sandbox, "/faults", {"kind": "error", "times": 100})
    control(sandbox, "/reset")
    new = sandbox.environment
    assert new["id"] != old["id"]
    assert {k: v for k, v in new.items() if k not in ("id", "EARTHDATA_TOKEN")} == {
        k: v for k, v in old.items() if k not in ("id", "EARTHDATA_TOKEN")
    }
    assert sandbox.hyp3.jobs == {} and sandbox.traffic.faults == []
    assert s3.list_buckets()["Buckets"] == []
    user = {"Authorization": f"Bearer {new['EARTHDATA_TOKEN']}"}
    assert requests.get(f"{sandbox.url('hyp3')}/user", headers=user, timeout=10).json()["remaining_credits"] == 8000
    submit(sandbox)
    with pytest.raises(requests.HTTPError, match="401"):
        submit(sandbox, token=old["EARTHDATA_TOKEN"])
    assert requests.get(f"{sandbox.url('s3')}/{CONTENT_BUCKET}?list-type=2", timeout=10).status_code == 200


def test_reset_empties_the_log_of_requests(sandbox):
    submit(sandbox)
    control(sandbox, "/reset")
    assert control(sandbox, "/requests", method="GET").json() == []


def test_a_job_that_is_publishing_during_a_reset_leaves_nothing_in_the_new_world():
    publishing, may_go_on = threading.Event(), threading.Event()

    def slow_products(_: dict) -> list[Product]:
        publishing.set()
        may_go_on.wait(10)
        return [Product("late.zip", b"late", "product", "application/zip")]

    plays = Deployment(pending=0, running=0, make_products=slow_products, content_bucket="another-contentbucket")
    with Sandbox(deployment=plays) as sandbox:
        submit(sandbox)
        assert publishing.wait(10)
        reset = threading.Thread(target=sandbox.reset)
        reset.start()
        reset.join(0.5)  # it may well wait for the job
        may_go_on.set()
        reset.join(10)
        time.sleep(0.5)
        assert objectstore.objects(sandbox._s3_client("s3-itself"), "another-contentbucket", "") == {}


def test_sandboxes_of_one_process_share_one_s3(sandbox, s3, bucket):
    """A limit, not a feature: buckets are the process's. Two independent sandboxes need two processes."""
    with Sandbox(deployment=Deployment(content_bucket="another-contentbucket")) as second:
        assert second.url("s3") != sandbox.url("s3") and second.id != sandbox.id
        answer = requests.get(f"{second.url('s3')}/{BUCKET}?list-type=2", timeout=10)
        assert answer.status_code == 403  # there, and private
        submit(second)
        assert sandbox.hyp3.jobs == {}  # jobs are apart
    assert s3.list_buckets()["Buckets"] == []  # gone with the second


def test_stopping_is_final_and_can_be_repeated():
    sandbox = Sandbox(deployment=Deployment(content_bucket="another-contentbucket")).start()
    url = sandbox.url("control")
    assert requests.get(url, timeout=10).ok
    sandbox.stop()
    sandbox.stop()
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=10)


def test_a_taken_port_is_an_error_and_leaves_nothing_running():
    before = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as server:
        sandbox = Sandbox(ports={"hyp3": server.getsockname()[1]})
        with pytest.raises(OSError, match=r"[Aa]ddress already in use"):
            sandbox.start()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


# --- processes ---

READY = """
import time; began = time.monotonic()
from helpers import settings
assert not settings.in_process_sandbox()
from helpers import sandbox
first = sandbox.start()
import requests
requests.get(first.url("hyp3") + "/costs", timeout=10).raise_for_status()
elapsed = time.monotonic() - began
assert sandbox.start() is first and settings.in_process_sandbox()
assert all(first.url(name).startswith("http://127.0.0.1:") for name in sandbox.SERVICES)
import sys
assert not {"distributed", "eopf", "pystac", "shapely", "prefect"} & set(sys.modules)  # nobody should wait for them
print(elapsed)
"""


def python(*args: str, state_dir: Path, **more) -> subprocess.Popen:
    env = os.environ | {"RECIPES_STATE_DIR": str(state_dir), "RECIPES_BACKEND": "sandbox", "PYTHONUNBUFFERED": "1"}
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.Popen([sys.executable, *args], cwd=CHECKOUT, env=env, text=True, **more)


def ended(process: subprocess.Popen, timeout: float = 30) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, out, err


def line_of(process: subprocess.Popen, start: str) -> str:
    """What follows ``start`` in the next line of the output that begins with it."""
    line = next(line.strip() for line in process.stdout if line.strip().startswith(start))
    return line.removeprefix(start)


@contextlib.contextmanager
def command_line(state_dir: Path, *args: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """`python -m helpers sandbox` running; the process, and its URL."""
    process = python("-m", "helpers", "sandbox", *args, state_dir=state_dir)
    try:
        assert process.stdout.readline() == "The sandbox is running.\n", process.poll()
        yield process, line_of(process, "RECIPES_SANDBOX_URL=")
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One sandbox of the command line for several tests: its state folder, URL and process id."""
    state_dir = tmp_path_factory.mktemp("state")
    with command_line(state_dir) as (process, url):
        yield state_dir, url, process.pid


def test_it_is_ready_within_two_seconds(tmp_path):
    code, out, err = ended(python("-c", READY, state_dir=tmp_path))
    assert code == 0, err
    assert float(out) < 6  # less than 2 on an idle machine; this one may be busy with other tests


CONVERTING = """
import os, time
from helpers.sandbox import Sandbox
sandbox = Sandbox().start()
workers = sandbox.dpr.client().run(os.getpid).values()
print(sandbox.cluster._process.pid, *workers, flush=True)
time.sleep(60)
"""


def test_the_cluster_of_the_conversions_ends_with_a_sandbox_that_is_killed(tmp_path):
    process = python("-c", CONVERTING, state_dir=tmp_path)
    try:
        pids = [int(pid) for pid in process.stdout.readline().split()]
    finally:
        process.kill()
        process.communicate()
    assert len(pids) == 2  # scheduler and worker
    until = time.monotonic() + 10
    while alive := [pid for pid in pids if psutil.pid_exists(pid)]:
        assert time.monotonic() < until, alive
        time.sleep(0.1)


def test_a_cluster_that_does_not_start_says_why(monkeypatch, tmp_path):
    (tmp_path / "distributed.py").write_text("raise ImportError('broken here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="ImportError: broken here"):
        dpr.Cluster().address()


def test_the_cluster_of_the_conversions_stays_over_a_reset_and_stops_with_the_sandbox(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a cluster that is killed cannot tidy up
    with Sandbox(deployment=Deployment(content_bucket="another-contentbucket")) as sandbox:
        assert sandbox.cluster._process is None  # nobody has asked
        address, process = sandbox.cluster.address(), sandbox.cluster._process
        control(sandbox, "/reset")
        assert sandbox.cluster.address() == address and process.poll() is None
        process.kill()
        process.wait()
        assert sandbox.dpr.client().submit(sum, [1, 2]).result(30) == 3  # another one
    assert sandbox.cluster._process is None


def test_the_shared_sandbox_says_how_to_use_it_and_notes_where_it_is(shared):
    state_dir, url, pid = shared
    assert requests.get(f"{url}/environment", timeout=10).json()["RECIPES_SANDBOX_URL"] == url
    assert json.loads((state_dir / "sandbox.json").read_text()) == {"url": url, "pid": pid}


def test_notebooks_find_the_shared_sandbox_by_themselves(shared, monkeypatch, tmp_path):
    state_dir, url, _ = shared
    monkeypatch.setattr(room, "PROJECT", tmp_path)
    monkeypatch.setenv("RECIPES_STATE_DIR", str(state_dir))
    assert str(room.load().sandbox_url).rstrip("/") == url
    assert not room.in_process_sandbox()


def test_a_second_start_says_that_one_is_running_already(shared):
    state_dir, url, pid = shared
    code, out, err = ended(python("-m", "helpers", "sandbox", state_dir=state_dir))
    assert (code, err) == (0, "")
    assert f"running already (process {pid})" in out and f"RECIPES_SANDBOX_URL={url}" in out


def test_a_second_start_with_a_command_runs_it_beside_the_first(shared):
    state_dir, url, _ = shared
    code, _, _ = ended(python("-m", "helpers", "sandbox", "--", sys.executable, "-c", "exit(7)", state_dir=state_dir))
    assert code == 7
    assert requests.get(url, timeout=10).ok


def test_reset_resets_the_running_one(shared):
    state_dir, url, _ = shared
    before = requests.get(f"{url}/environment", timeout=10).json()["id"]
    code, out, _ = ended(python("-m", "helpers", "sandbox", "--reset", state_dir=state_dir))
    assert (code, out) == (0, f"The sandbox at {url} is back in its initial state.\n")
    assert requests.get(f"{url}/environment", timeout=10).json()["id"] != before


def test_reset_without_a_running_one_says_so(tmp_path):
    code, out, err = ended(python("-m", "helpers", "sandbox", "--reset", state_dir=tmp_path))
    assert (code, out) == (1, "") and "No sandbox is running" in err


def test_a_command_that_is_not_there_is_a_message(shared):
    state_dir, _, _ = shared
    code, _, err = ended(python("-m", "helpers", "sandbox", "--", "no-such-command", state_dir=state_dir))
    assert code not in (0, None)
    assert "no-such-command" in err and "Traceback" not in err


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_and_removes_its_note(tmp_path, how):
    with command_line(tmp_path) as (process, url):
        assert (tmp_path / "sandbox.json").exists()
        process.send_signal(how)
        code, _, err = ended(process, timeout=10)
        assert (code, err) == (0, "")
    assert not (tmp_path / "sandbox.json").exists()
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=5)


BESIDE = """
import sys
from helpers import settings
loaded = settings.load()
sys.exit(0 if settings.in_process_sandbox() else 7)
"""


def test_with_a_command_it_ends_with_the_command_and_its_exit_code(tmp_path):
    code, out, err = ended(python("-m", "helpers", "sandbox", "--", sys.executable, "-c", BESIDE, state_dir=tmp_path))
    assert code == 7, err
    assert "The sandbox is running." in out
    assert not (tmp_path / "sandbox.json").exists()


def test_a_signal_also_stops_the_command_beside_it(tmp_path):
    waiting = "import os, time; print('beside', os.getpid(), flush=True); time.sleep(60)"
    with command_line(tmp_path, "--", sys.executable, "-c", waiting) as (process, _):
        pid = int(line_of(process, "beside "))
        try:
            process.terminate()
            process.wait(timeout=5)
            time.sleep(0.2)
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert not (tmp_path / "sandbox.json").exists()


def test_a_taken_port_is_a_message_and_no_traceback(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code, out, err = ended(python("-m", "helpers", "sandbox", "--port", str(port), state_dir=tmp_path))
    assert (code, out) == (1, "")
    assert f"cannot listen on 127.0.0.1:{port}" in err and "Traceback" not in err
    assert not (tmp_path / "sandbox.json").exists()


@pytest.mark.parametrize("note", [None, "", "not json", "[]", "{}", '{"url": "http://127.0.0.1:9", "pid": 1}'])
def test_a_note_that_a_killed_sandbox_left_is_no_running_sandbox(tmp_path, note):
    if note is not None:
        (tmp_path / "sandbox.json").write_text(note)
    assert room.running_sandbox(tmp_path) is None
