"""The HyP3 stand-in against recorded requests and answers of the real API.

Every case of ``hyp3_recordings.json`` is replayed over HTTP, in the order of the recording. Job ids, request times
and credits left differ from run to run and are masked; texts that the schema validator makes are compared in shape.
A case that needs the world in a certain state (a full bucket, a broken catalogue) has a line in ``SCENES``.
"""

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import boto3
import hyp3_sdk
import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import rsa

from helpers.sandbox import Deployment, Sandbox, s3
from helpers.sandbox.clock import Clock
from helpers.sandbox.products import Product

RECORDED = json.loads((Path(__file__).parent / "hyp3_recordings.json").read_text())
CASES = {case["id"]: case for case in RECORDED["cases"]}
ACCOUNT = "123456789012"  # HyP3's account in the recordings
OWNER = "999988887777"  # whom the "user's" buckets belong to
CONTENT_BUCKET = "hyp3-edc-uat-contentbucket-1cesvjwsurrfn"
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
#: Fields whose values depend on the moment or on jobs of the recording that were not kept.
VOLATILE = ("job_id", "request_time", "priority", "remaining_credits", "job_names")
BURSTS = ["S1_136231_IW2_20200604T022312_VV_7C85-BURST", "S1_136231_IW2_20200616T022313_VV_5D11-BURST"]


def recorder_products(job: dict) -> list[Product]:
    """What the recorder's processing put into the bucket: names and sizes as in the recording."""
    plan = WORLD.plans.get(job["job_id"], {})
    stem = plan.get("stem", "S1_136231_IW2_20200604_20200616_VV_INT80_7EB2")
    if plan.get("nothing"):
        return []
    if plan.get("many"):
        return [Product(f"f{i:05}.zip", b"", "product", "application/zip") for i in range(plan["many"])]
    if job["job_type"] == "RTC_GAMMA":
        stem = "S1A_IW_20211110T234815_DVP_RTC30_G_gpuned_9BF9"
        wanted = [(".zip", 5000, "product"), ("_VV.tif", 10, "product"), ("_rgb.png", 10, "rgb_browse"),
                  ("_rgb_thumb.png", 10, "rgb_thumbnail"), (".png", 10, "amp_browse"),
                  ("_thumb.png", 10, "amp_thumbnail")]  # fmt: skip
    elif job["job_type"] == "AUTORIFT":
        stem = "S2B_MSIL1C_20200105_X_S2B_MSIL1C_20200315_G0120V02_P099"
        wanted = [(".nc", 9000, "product"), (".png", 10, "browse"), ("_thumb.png", 10, "thumbnail")]
    else:
        wanted = [(".zip", 4096, "product"), ("_unw_phase.png", 10, "browse"),
                  ("_unw_phase.tif", 10, "product"), ("_unw_phase_thumb.png", 10, "thumbnail")]  # fmt: skip
    return [Product(stem + end, bytes(size), kind, "application/octet-stream") for end, size, kind in wanted]


@dataclass
class World:
    """The service under replay, and what the replay has learned so far."""

    sandbox: Sandbox | None = None
    ours: dict[str, str] = field(default_factory=dict)  #: recorded job id -> ours
    plans: dict[str, dict] = field(default_factory=dict)  #: our job id -> what its processing makes
    answers: dict[str, requests.Response] = field(default_factory=dict)  #: by case, of those replayed so far

    def client(self):
        return boto3.client("s3", endpoint_url=self.sandbox.url("s3"), region_name="us-west-2",
                            aws_access_key_id="s3-itself", aws_secret_access_key="x")  # fmt: skip

    def bucket(self, name: str, region: str = "us-west-2") -> None:
        """A bucket of somebody else's that lets HyP3 publish."""
        s3.create_bucket(name, OWNER, region)
        policy = json.dumps(self.sandbox.hyp3.bucket_policy(name))
        self.client().put_bucket_policy(Bucket=name, Policy=policy)

    def headers(self, auth: str) -> dict:
        hyp3 = self.sandbox.hyp3
        if auth == "none":
            return {}
        if uid := re.fullmatch(r"valid EDL bearer token, uid=(\S+)", auth):
            return {"Authorization": f"Bearer {hyp3.token(uid[1])}"}
        return {
            "raw header: Bearer foo": {"Authorization": "Bearer foo"},
            "raw header: Basic dTpw": {"Authorization": "Basic dTpw"},
            "raw header: bearer eyJhb...": {"Authorization": f"bearer {hyp3.token('prio')}"},
            # The recording cut this one short: the case's scene says which token it was.
            "raw header: Bearer eyJhb...": {},
            "asf-urs cookie": {"Cookie": f"asf-urs={hyp3.cookie('demo-user')}"},
        }[auth]

    def submit(self, job: dict, user: str = "demo-user") -> str:
        """Submit a job of the recording whose own request was not kept; its id."""
        answer = requests.post(
            f"{self.sandbox.url('hyp3')}/jobs",
            json={"jobs": [job]},
            headers={"Authorization": f"Bearer {self.sandbox.hyp3.token(user)}"},
            timeout=10,
        )
        assert answer.status_code == 200, answer.text
        return answer.json()["jobs"][0]["job_id"]

    def finish(self, job_id: str, fails: bool = False, **plan) -> None:
        self.plans[job_id] = plan
        self.sandbox.hyp3.processor.start(job_id)
        self.sandbox.hyp3.processor.finish(job_id, fails=fails)

    def replay(self, case: dict) -> requests.Response:
        asked = case["request"]
        headers = self.headers(asked["auth"]) | SCENES.get(case["id"], Scene()).headers(self)
        if "Access-Control-Allow-Origin" in case["response"].get("headers", {}):
            headers["Origin"] = case["response"]["headers"]["Access-Control-Allow-Origin"]
        body = asked.get("body")
        if "content_type" in asked:
            headers["Content-Type"] = asked["content_type"]
            body = self.with_our_ids(body if isinstance(body, str) else json.dumps(body))
        return requests.request(
            asked["method"],
            self.sandbox.url("hyp3") + self.with_our_ids(asked["path"]),
            data=body,
            headers=headers,
            timeout=10,
            allow_redirects=False,
        )

    def with_our_ids(self, text: str) -> str:
        return UUID.sub(lambda m: self.ours.get(m[0], m[0]), text)

    def learn(self, recorded: dict, answered: dict) -> None:
        for theirs, our in zip(recorded.get("jobs", []), answered.get("jobs", []), strict=False):
            if isinstance(theirs, dict):
                self.ours[theirs["job_id"]] = our["job_id"]


WORLD = World()


@pytest.fixture(scope="module")
def world():
    recorded_at = datetime(2026, 11, 21, 19, 42, 26, tzinfo=UTC)
    deployment = Deployment(
        job_types="edc",
        account_id=ACCOUNT,
        content_bucket=CONTENT_BUCKET,
        distribution_url="https://d1riv60tezqha9.cloudfront.net/",
        bucket_url="https://{bucket}.s3.{region}.amazonaws.com/{key}",
        make_products=recorder_products,
    )
    with Sandbox(clock=Clock(frozen_at=recorded_at), deployment=deployment) as sandbox:
        WORLD.sandbox = sandbox
        hyp3 = sandbox.hyp3
        hyp3.processor.stop()  # jobs end when a scene says so
        hyp3.user("poor")["remaining_credits"] = Decimal(3)
        hyp3.user("infinite")["remaining_credits"] = None
        hyp3.user("prio")["priority_override"] = 42
        for name, status in (("pending", "PENDING"), ("rejected", "REJECTED"), ("notstarted", "NOT_STARTED")):
            hyp3.user(name).update(application_status=status, remaining_credits=Decimal(0))
        hyp3.access_codes["old"] = ("2020-01-01T00:00:00+00:00", "2020-02-01T00:00:00+00:00")
        hyp3.access_codes["good"] = ("2020-01-01T00:00:00+00:00", "2120-01-01T00:00:00+00:00")
        WORLD.bucket("my-products-bucket")
        yield WORLD


# --- the state that single cases need ---


@dataclass
class Scene:
    before: callable = lambda world, case: None
    after: callable = lambda world: None
    headers: callable = lambda world: {}


def ended(fails: bool = False, before=None, **plan) -> Scene:
    """The job of the case has ended. A job whose POST was not kept in the recording is submitted first."""

    def prepare(world: World, case: dict) -> None:
        recorded = case["response"]["json"]
        if recorded["job_id"] not in world.ours:
            world.ours[recorded["job_id"]] = world.submit(as_submitted(recorded))
        if before:
            before(world)
        world.finish(world.ours[recorded["job_id"]], fails, **plan)

    return Scene(prepare)


def as_submitted(recorded: dict) -> dict:
    job = {k: recorded[k] for k in ("job_type", "name", "job_parameters") if k in recorded}
    if recorded["bucket"] != CONTENT_BUCKET:
        job["bucket"] = recorded["bucket"]
        job["bucket_prefix"] = recorded["bucket_prefix"].replace(recorded["job_id"], "{job_id}")
    return job


def another_job_shares_the_prefix(world: World) -> None:
    first = world.submit({"job_type": "INSAR_ISCE_BURST", "name": "one", "job_parameters": {"granules": BURSTS},
                          "bucket": "my-products-bucket", "bucket_prefix": "shared"})  # fmt: skip
    world.finish(first, stem="FIRST")


def a_file_of_the_users_own(world: World) -> None:
    world.client().put_object(Bucket="my-products-bucket", Key="mine/README.txt", Body=b"hello")


def running(world: World, case: dict) -> None:
    recorded = case["response"]["json"]
    world.ours[recorded["job_id"]] = world.submit(as_submitted(recorded))
    world.sandbox.hyp3.processor.start(world.ours[recorded["job_id"]])


def catalogue(up: bool):
    def switch(world: World, *_) -> None:
        world.sandbox.hyp3.catalogue_up = up

    return switch


def four_hundred_jobs(world: World, case: dict) -> None:
    """As in the recording: 400 padded jobs of one user, a minute apart."""
    kept = case["response"]["json"]["jobs"][0]
    for i in range(400):
        job_id = f"00000000-0000-4000-8000-{i:012}"
        world.sandbox.hyp3.jobs[job_id] = kept | {
            "job_id": job_id,
            "name": f"page-{i % 3}",
            "status_code": "FAILED" if i % 4 == 1 else "SUCCEEDED",
            "bucket_prefix": job_id,
            "request_time": f"2026-05-01T{i // 60:02}:{i % 60:02}:00+00:00",
            "logs": ["x" * 6000],
        }
    case["response"]["json"]["jobs"] = [
        job | {"logs": ["x" * 6000]} if isinstance(job, dict) else job for job in case["response"]["json"]["jobs"]
    ]


def jobs_in_all_states(world: World, case: dict) -> None:
    world.finish(world.ours[CASES["seed-6-autorift-prefix-job_id"]["response"]["json"]["jobs"][0]["job_id"]], True)


def bearer(token: str) -> dict:
    return {"Authorization": f"Bearer {token}"}


STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SCENES: dict[str, Scene] = {
    "cmr-down": Scene(catalogue(up=False), catalogue(up=True)),
    "cmr-down-rtc": Scene(catalogue(up=False), catalogue(up=True)),
    "poor-none-left": Scene(lambda world, _: [world.submit(
        {"job_type": "INSAR_ISCE_BURST", "job_parameters": {"granules": BURSTS}}, "poor") for _ in range(3)]),
    "wrong-key-token": Scene(headers=lambda w: bearer(w.sandbox.hyp3.token("demo-user", key=STRANGER))),
    "token-without-uid": Scene(headers=lambda w: bearer(w.sandbox.hyp3.token(None))),
    "cookie-expired": Scene(headers=lambda w: {"Cookie": f"asf-urs={w.sandbox.hyp3.cookie('demo-user', -60)}"}),
    "complete-content-bucket": ended(),
    "complete-user-bucket": ended(),
    "complete-user-bucket-prefix": ended(),
    "complete-failed-content-bucket": ended(fails=True),
    "complete-bucket-not-writable": ended(),
    "complete-failed-prefix-trailing-slash": ended(fails=True),
    "complete-prefix-trailing-slash": ended(),
    "complete-shared-prefix-second": ended(stem="SECOND", before=another_job_shares_the_prefix),
    "complete-untagged-object-under-prefix": ended(stem="FOURTH", before=a_file_of_the_users_own),
    "complete-no-output-at-all": ended(nothing=True),
    "complete-dotted-bucket-missing": ended(),
    "complete-rtc-content-bucket": ended(),
    "complete-autorift": ended(),
    "complete-failed-no-log-stream": ended(fails=True),
    "running": Scene(running),
    "list-name": Scene(jobs_in_all_states),
    "page-filter-empty-page": Scene(four_hundred_jobs),
}  # fmt: skip

# --- comparing ---


def masked(value, swap: dict[str, str]):
    """The value without what changes from run to run, and with recorded job ids replaced by ours."""
    if isinstance(value, dict):
        return {k: "..." if k in VOLATILE else masked(v, swap) for k, v in value.items()}
    if isinstance(value, list):
        return [masked(v, swap) for v in value]
    if isinstance(value, str):
        return UUID.sub(lambda m: swap.get(m[0], m[0]), value)
    return value


def in_shape(detail: str) -> str:
    """A schema validator's text without the values it quotes: which kind of error it is."""
    if match := re.match(r"Value .*? not valid for schema of type (\w+): ", detail, re.DOTALL):
        return f"Value ... not valid for schema of type {match[1]}"
    return detail


def summary(body: dict) -> dict:
    """A page of jobs as far as the recording keeps it: the first and the last job, and whether there is more."""
    jobs = [job for job in body["jobs"] if isinstance(job, dict)]
    times = [job["request_time"] for job in jobs]
    return {
        "newest first": times == sorted(times, reverse=True),
        "name": {job["name"] for job in jobs},
        "next": "start_token=" in body.get("next", ""),
    }


def replayed(world: World, case_id: str) -> requests.Response:
    """The answer to a case, after all that were recorded before it: each process replays them for itself, once."""
    for name, case in CASES.items():
        if name not in world.answers:
            scene = SCENES.get(name, Scene())
            scene.before(world, case)
            world.answers[name] = answer = world.replay(case)
            scene.after(world)
            if case["request"]["method"] == "POST" and "json" in case["response"] and answer.ok:
                world.learn(case["response"]["json"], answer.json())
        if name == case_id:
            break
    return world.answers[case_id]


@pytest.mark.parametrize("case_id", CASES)
def test_answers_as_recorded(world, case_id):
    case = CASES[case_id]
    answer = replayed(world, case_id)

    recorded = case["response"]
    assert answer.status_code == recorded["status"], answer.text
    assert answer.headers["Content-Type"] == recorded["content_type"]
    for name, value in recorded.get("headers", {}).items():
        assert set(answer.headers[name].split(", ")) == set(value.split(", ")), name
    if "text" in recorded:
        assert answer.text == recorded["text"]
        return
    body = answer.json()
    if "detail" in recorded["json"]:
        recorded["json"]["detail"], body["detail"] = (
            in_shape(recorded["json"]["detail"]),
            in_shape(body["detail"]),
        )
    if "n_jobs" in recorded:  # the recording keeps the first and the last job of the page
        assert summary(body) == summary(recorded["json"])
        by_id = {job["job_id"]: job for job in body["jobs"]}
        for job in (recorded["json"]["jobs"][0], recorded["json"]["jobs"][-1]):
            assert masked(by_id[world.ours.get(job["job_id"], job["job_id"])], {}) == masked(job, world.ours)
    else:
        assert masked(body, {}) == masked(recorded["json"], world.ours)
        if "job_id" in recorded["json"]:
            assert list(body) == list(recorded["json"])  # the order of the keys is part of the wire format


def test_every_recorded_case_is_replayed():
    assert len(CASES) == len(RECORDED["cases"])
    assert set(SCENES) <= set(CASES)


@pytest.mark.parametrize("row", RECORDED["bucket_name_table"], ids=lambda row: row["label"])
def test_accepts_the_same_bucket_names(world, row):
    token = {"Authorization": f"Bearer {world.sandbox.hyp3.token('demo-user')}"}
    job = {
        "job_type": "INSAR_ISCE_BURST",
        "name": "x",
        "job_parameters": {"granules": BURSTS},
        "bucket": row["bucket"],
    }
    url = world.sandbox.url("hyp3")
    body = {"jobs": [job], "validate_only": True}
    answer = requests.post(f"{url}/jobs", json=body, headers=token, timeout=10)
    assert answer.status_code == row["status"]
    if row["status"] == 200:
        assert answer.json()["jobs"][0]["bucket"] == row["result"]

    name = requests.utils.quote(row["bucket"], safe="")
    answer = requests.get(f"{url}/bucket-policy/{name}", headers={"Authorization": "Bearer anything"}, timeout=10)
    assert answer.status_code == row["policy_status"]
    if row["policy_status"] == 200:
        assert answer.json()["Statement"][0]["Resource"] == row["policy_result"]


@pytest.mark.parametrize("row", RECORDED["prefix_table"], ids=lambda row: row["label"])
def test_accepts_the_same_prefixes(world, row):
    job = {"job_type": "INSAR_ISCE_BURST", "name": "my-name", "job_parameters": {"granules": BURSTS},
           "bucket": "my-products-bucket", "bucket_prefix": row["bucket_prefix"]}  # fmt: skip
    answer = requests.post(
        f"{world.sandbox.url('hyp3')}/jobs",
        json={"jobs": [job], "validate_only": True},
        headers={"Authorization": f"Bearer {world.sandbox.hyp3.token('demo-user')}"},
        timeout=10,
    )
    assert answer.status_code == row["status"], answer.text
    if row["status"] == 200:
        made = answer.json()["jobs"][0]
        assert made["bucket_prefix"] == row["result"].replace("<JOB_ID>", made["job_id"])


TRACES = {
    "content-bucket": {},
    "user-bucket-prefix": {"bucket_prefix": "HyP3/{name}/{job_id}"},
    "failed-content-bucket": {"fails": True},
    "user-bucket-us-east-1": {"bucket": "user-bucket-us-east-1", "bucket_prefix": "p/{job_id}"},
    "prefix-trailing-slash": {"bucket_prefix": "slash-ok/{name}/"},
    "shared-prefix-second": {
        "bucket_prefix": "shared",
        "stem": "SECOND",
        "before": another_job_shares_the_prefix,
    },
    "untagged-object-under-prefix": {
        "bucket_prefix": "mine",
        "stem": "FOURTH",
        "before": a_file_of_the_users_own,
    },
    "name-leading-slash": {"name": "/lead", "bucket_prefix": "{name}/x"},
    "dotted-bucket-missing": {"bucket": "my.dotted.bucket"},
    "autorift": {"job_type": "AUTORIFT"},
    "over-1000-objects": {"bucket_prefix": "many/{job_id}", "many": 1005},
}


@pytest.mark.parametrize("trace", RECORDED["completion_traces"], ids=lambda trace: trace["label"])
def test_leaves_the_same_objects_in_the_bucket(world, trace):
    how = dict(TRACES[trace["label"]])
    job = {
        "job_type": "INSAR_ISCE_BURST",
        "name": how.pop("name", "test-user-bucket"),
        "job_parameters": {"granules": BURSTS},
    }
    if how.get("job_type"):
        job |= {"job_type": how.pop("job_type"), "job_parameters": {"granules": [
            "S2B_MSIL1C_20260415T005509_N0512_R059_T51DWE_20260415T031050",
            "S2B_MSIL1C_20251116T005509_N0511_R059_T51DWE_20251116T020121"]}}  # fmt: skip
    if "bucket" in how or "bucket_prefix" in how:
        job["bucket"] = how.pop("bucket", "my-products-bucket")
        if job["bucket"] == "user-bucket-us-east-1":
            world.bucket(job["bucket"], "us-east-1")
    if "bucket_prefix" in how:
        job["bucket_prefix"] = how.pop("bucket_prefix")
    how.pop("before", lambda _: None)(world)
    job_id = world.submit(job)
    world.finish(job_id, how.pop("fails", False), **how)

    state = world.sandbox.hyp3.jobs[job_id]
    expected_state = "SUCCEEDED" if trace["final_state"] == "JOB_SUCCEEDED" else "FAILED"
    assert state["status_code"] == expected_state
    recorded_id = next((m[0] for o in trace["objects"] if (m := UUID.search(o))), None)
    expected = [o.replace(recorded_id, job_id) if recorded_id else o for o in trace["objects"]]
    if state["bucket"] == "my.dotted.bucket":
        assert expected == []
        return
    root = state["bucket_prefix"].rstrip("/")
    found = [o["Key"] for o in world.client().list_objects_v2(Bucket=state["bucket"], Prefix=root).get("Contents", [])]
    if "..." in expected:
        assert found[0] == expected[0] and len(found) == 1000
        assert len(state["files"]) == 1000  # of 1,005: the service never asks for the second page
    else:
        assert sorted(found) == sorted(expected)
    if trace["label"] == "user-bucket-us-east-1":
        assert state["files"][0]["url"].startswith("https://user-bucket-us-east-1.s3.us-east-1.amazonaws.com/p/")


# --- facts that are written down but not in the kept part of the recording ---


def call(world, method, path, **options):
    headers = {"Authorization": f"Bearer {world.sandbox.hyp3.token('demo-user')}"} | options.pop("headers", {})
    return requests.request(method, world.sandbox.url("hyp3") + path, headers=headers, timeout=10, **options)


def burst_job(**more) -> dict:
    return {"job_type": "INSAR_ISCE_BURST", "job_parameters": {"granules": BURSTS}} | more


def test_unavailable_system_answers_503_before_anything_else(world):
    world.sandbox.hyp3.available = False
    try:
        answer = requests.get(f"{world.sandbox.url('hyp3')}/jobs", timeout=10)
    finally:
        world.sandbox.hyp3.available = True
    assert (answer.status_code, answer.headers["Content-Type"]) == (503, "application/json")
    assert answer.json()["title"] == "Service Unavailable"


@pytest.mark.parametrize("path", ["/no-such-thing", "/jobs/"])
def test_unknown_routes_are_problems(world, path):
    answer = call(world, "GET", path)
    assert (answer.status_code, answer.headers["Content-Type"]) == (404, "application/problem+json")


def test_policy_without_any_credentials_is_403(world):
    answer = requests.get(f"{world.sandbox.url('hyp3')}/bucket-policy/my-products-bucket", timeout=10)
    assert (answer.status_code, answer.headers["Content-Type"]) == (403, "application/problem+json")


def test_malformed_json_is_400_and_a_missing_type_415(world):
    answer = call(world, "POST", "/jobs", data="{", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert call(world, "POST", "/jobs", data="{}").status_code == 415


@pytest.mark.parametrize(("count", "status"), [(0, 400), (200, 200), (201, 400)])
def test_takes_1_to_200_jobs(world, count, status):
    body = {"jobs": [burst_job()] * count, "validate_only": True}
    assert call(world, "POST", "/jobs", json=body).status_code == status


def test_one_bad_job_stores_none(world):
    before = len(world.sandbox.hyp3.jobs)
    bad = burst_job(bucket_prefix="x")
    assert call(world, "POST", "/jobs", json={"jobs": [burst_job(), bad]}).status_code == 400
    assert len(world.sandbox.hyp3.jobs) == before


def test_validate_only_stores_nothing_and_takes_nothing(world):
    credits = call(world, "GET", "/user").json()["remaining_credits"]
    made = call(world, "POST", "/jobs", json={"jobs": [burst_job()], "validate_only": True}).json()["jobs"][0]
    assert call(world, "GET", f"/jobs/{made['job_id']}").status_code == 404
    assert call(world, "GET", "/user").json()["remaining_credits"] == credits


def test_job_ids_must_be_dashed_uuids(world):
    assert call(world, "GET", "/jobs/123e4567e89b12d3a456426614174000").status_code == 400
    assert call(world, "GET", "/jobs/foo").status_code == 400


def test_floats_come_back_as_sent_and_later_as_integers(world):
    job = {"job_type": "RTC_GAMMA", "job_parameters": {"granules": [
        "S1A_IW_SLC__1SSV_20150621T120220_20150621T120232_006471_008934_72D8"]}}  # fmt: skip
    made = call(world, "POST", "/jobs", json={"jobs": [job]})
    assert '"resolution": 30.0' in made.text
    assert '"resolution": 30,' in call(world, "GET", f"/jobs/{made.json()['jobs'][0]['job_id']}").text


def test_pages_are_cut_before_the_filter_and_can_be_followed(world):
    replayed(world, list(CASES)[-1])
    found, url, pages = [], "/jobs?user_id=pager&status_code=FAILED", 0
    while url:
        page = call(world, "GET", url).json()
        found += [job["job_id"] for job in page["jobs"]]
        url = page.get("next", "").removeprefix(world.sandbox.url("hyp3"))
        pages += 1
    assert pages > 1 and len(found) == len(set(found)) == 100
    answer = call(world, "GET", "/jobs?start_token=foo")
    assert (answer.status_code, answer.json()["detail"]) == (400, "Invalid start_token value")


def test_multi_burst_pairs_are_checked(world):
    def detail(reference, secondary):
        job = {
            "job_type": "INSAR_ISCE_MULTI_BURST",
            "job_parameters": {"reference": reference, "secondary": secondary},
        }
        return call(world, "POST", "/jobs", json={"jobs": [job], "validate_only": True}).json().get("detail", "")

    assert detail([BURSTS[0]], [BURSTS[1]]) == ""
    assert "same number" in detail(BURSTS, [BURSTS[1]])
    assert "must be older" in detail([BURSTS[1]], [BURSTS[0]])
    assert "at least 1" in detail([], [])
    assert "no more than 15" in detail([BURSTS[0]] * 16, [BURSTS[1]] * 16)


def test_renaming_many_takes_1_to_100_jobs(world):
    assert call(world, "PATCH", "/jobs", json={"job_ids": [], "name": "x"}).status_code == 400
    ids = ["123e4567-e89b-12d3-a456-426614174000"] * 101
    assert call(world, "PATCH", "/jobs", json={"job_ids": ids, "name": "x"}).status_code == 400


def test_the_real_sdk_talks_to_it_unmodified(world):
    hyp3 = hyp3_sdk.HyP3(world.sandbox.url("hyp3"), token=world.sandbox.hyp3.token("sdk-user"))
    prepared = hyp3.prepare_insar_isce_burst_job(*BURSTS, name="sdk-job")
    batch = hyp3.submit_prepared_jobs(
        [prepared | {"bucket": "my-products-bucket", "bucket_prefix": "sdk/{name}/{job_id}"}]
    )
    assert batch[0].bucket_prefix == f"sdk/sdk-job/{batch[0].job_id}"
    assert [job.job_id for job in hyp3.find_jobs(name="sdk-job")] == [batch[0].job_id]
    world.finish(batch[0].job_id)
    done = hyp3.watch(batch, timeout=5, interval=0.1)
    assert done.succeeded() and done[0].files[0]["s3"]["bucket"] == "my-products-bucket"
    assert hyp3.check_credits() == 7999
    assert hyp3.update_jobs(batch, name="renamed")[0].name == "renamed"
    with pytest.raises(hyp3_sdk.exceptions.HyP3Error, match="does not exist"):
        hyp3.get_job_by_id("123e4567-e89b-12d3-a456-426614174000")
    with pytest.raises(hyp3_sdk.exceptions.HyP3Error, match="not valid"):
        hyp3.submit_prepared_jobs(prepared | {"bucket": "Bad_Bucket"})
