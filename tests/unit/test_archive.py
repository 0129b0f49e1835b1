"""The archive recipe: what is planned, what is transferred on good and bad days, what is verified."""

import csv
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote

import pytest
from hyp3_sdk import Job
from moto.s3.models import s3_backends
from pydantic import SecretStr
from urllib3 import HTTPResponse

from helpers import archive
from helpers.archive import look, run, store, transferring
from helpers.errors import Rejected, TimedOut
from helpers.sandbox import _open_for_reading, archive_project
from helpers.sandbox import s3 as sandbox_s3
from helpers.settings import Settings

PROJECT = Path(__file__).resolve().parents[2]
ARCHIVE, PREFIX = "my-archive", "archive/HKHwatermaps"
SUFFIXES = ["_VV.tif", "_WM.tif"]
USER_ACCOUNT = "123456789012"
LATER = datetime.now(UTC) + timedelta(days=10)


def quiet(line: str) -> None:
    pass


@pytest.fixture
def sandbox(running_sandbox):
    """The sandbox with no jobs and an empty S3 but for the content bucket, which is all that matters here."""
    running_sandbox.traffic.heal()
    running_sandbox.traffic.requests.clear()
    running_sandbox.hyp3.jobs.clear()
    sandbox_s3.reset()
    plays = running_sandbox.deployment
    sandbox_s3.create_bucket(plays.content_bucket, plays.account_id, "us-west-2")
    _open_for_reading(running_sandbox._s3_client("s3-itself"), plays.content_bucket)
    return running_sandbox


@pytest.fixture
def content(sandbox, settings) -> archive.Place:
    return archive.Place(settings, sandbox.deployment.content_bucket, anonymous=True)


@pytest.fixture
def target(s3, settings) -> archive.Place:
    make_bucket(s3, ARCHIVE)
    return archive.Place(settings, ARCHIVE, PREFIX)


def make_bucket(s3, name: str) -> None:
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})


def a_job(number: int = 1, **fields) -> Job:
    job_id = f"{number:08x}-0000-4000-8000-000000000000"
    stem = f"S1A_IW_2024{number:04}_DVP_RTC30_G_gpuned_{number:04X}"
    known = {
        "job_type": "WATER_MAP",
        "job_id": job_id,
        "request_time": (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=number)).isoformat(),
        "status_code": "SUCCEEDED",
        "user_id": "me",
        "name": "HKHwatermaps",
        "bucket": "hyp3-sandbox-contentbucket",
        "bucket_prefix": job_id,
        "job_parameters": {"granules": [f"scene-{number}"]},
        "files": [{"filename": f"{stem}.zip", "size": 1, "url": f"http://x/{job_id}/{stem}.zip"}],
        "expiration_time": LATER.isoformat(),
    }
    return Job.from_dict(known | fields)


def stem(job: Job) -> str:
    return job.files[0]["filename"].removesuffix(".zip")


def put(bucket: str, key: str, body: bytes) -> None:
    partition, account = s3_backends.bucket_accounts[bucket]
    s3_backends[account][partition].put_object(bucket, key, body)


def publish(*jobs: Job, suffixes=SUFFIXES, body: bytes = b"product") -> list[Job]:
    """Objects of these jobs, put straight into the sandbox's store."""
    for job in jobs:
        for suffix in suffixes:
            put(job.bucket, f"{job.bucket_prefix}/{stem(job)}{suffix}", body + suffix.encode())
    return list(jobs)


def archived(bucket: str = ARCHIVE) -> dict[str, bytes]:
    keys = s3_backends[USER_ACCOUNT]["aws"].buckets[bucket].keys
    return {key: keys[key].value for key in keys}


def states(plan: archive.Plan) -> dict[str, int]:
    return {state: count for state, count in plan.counts().items() if count}


def copies(sandbox) -> list:
    return sandbox.traffic.received("s3", "PUT", f"^/{ARCHIVE}/")


# --- plan ---


def test_every_state_of_a_project_lands_in_its_column(sandbox, hyp3, content, target):
    ids = archive_project.fill(sandbox.hyp3, "sandbox-user")
    plan = archive.plan(archive.find(hyp3, "HKHwatermaps"), archive_project.SUFFIXES, content, target)
    assert set(plan.jobs["failed"]) == {*ids["failed"], *ids["refused"]}
    assert set(plan.jobs["pending"]) == set(ids["pending"])
    assert plan.jobs["running"] == ids["running"]
    assert set(plan.jobs["expired"]) == set(ids["expired"])
    missing = [file for file in plan.files if file.state == "missing at source"]
    assert [(file.job_id, file.name[-8:]) for file in missing] == [(ids["incomplete"][0], "_rgb.tif")]
    clashing = {file.job_id for file in plan.files if file.state == "clashing"}
    # Each loses to a newer one: the same granule again, and the one whose files have the same names.
    assert clashing == {ids["succeeded"][0], ids["succeeded"][2]}
    assert {file.job_id for file in plan.files if plan.expires_soon(file)} == {ids["expiring"][0]}
    partner = [file for file in plan.files if file.job_id == ids["partner"][0]]
    assert {file.bucket for file in partner} == {archive_project.PARTNER_BUCKET} and len(partner) == 11
    assert states(plan) == {
        "new": 10 * 11 - 1,
        "missing at source": 1,
        "clashing": 22,
        "expires soon": 11,
        "failed jobs": 2,
        "pending jobs": 2,
        "running jobs": 1,
        "expired jobs": 2,
    }
    assert Counter(row["state"] for row in plan.table())["job pending"] == 2
    assert plan.new[0].job_id == ids["expiring"][0]  # first what is soon gone
    assert copies(sandbox) == []


def test_the_second_run_copies_nothing(sandbox, content, target):
    jobs = publish(a_job(1), a_job(2))
    outcomes = archive.transfer(archive.plan(jobs, SUFFIXES, content, target), show=quiet)
    assert [outcome.outcome for outcome in outcomes] == ["copied"] * 4
    names = [stem(job) + suffix for job in jobs for suffix in SUFFIXES]
    assert sorted(archived()) == sorted(f"{PREFIX}/{name}" for name in names)
    sandbox.traffic.requests.clear()
    again = archive.plan(jobs, SUFFIXES, content, target)
    assert states(again) == {"present": 4} and again.new == [] and again.bytes == 0
    assert archive.transfer(again, show=quiet) == []
    assert copies(sandbox) == []


def test_the_content_bucket_is_read_unsigned_and_the_archive_signed(sandbox, content, target):
    plan = archive.plan(publish(a_job()), SUFFIXES, content, target)
    archive.transfer(plan, show=quiet)
    listings = sandbox.traffic.received("s3", "GET", f"^/{content.bucket}")
    assert listings and not any(request.authorized for request in listings)
    assert all(request.authorized for request in sandbox.traffic.received("s3", path=f"^/{ARCHIVE}/"))


def test_size_and_checksum_tell_what_has_changed(content, target):
    jobs = publish(a_job(), suffixes=["_VV.tif", "_VH.tif", "_WM.tif"])
    name = stem(jobs[0])
    put(ARCHIVE, f"{PREFIX}/{name}_VV.tif", b"product_VV.tif")
    put(ARCHIVE, f"{PREFIX}/{name}_VH.tif", b"half")
    put(ARCHIVE, f"{PREFIX}/{name}_WM.tif", b"PRODUCT_WM.tif")
    plan = archive.plan(jobs, ["_VV.tif", "_VH.tif", "_WM.tif"], content, target)
    assert {file.name[-7:]: (file.state, file.why) for file in plan.files} == {
        "_VV.tif": ("present", ""),
        "_VH.tif": ("changed", "the archive's has 4 bytes"),
        "_WM.tif": ("changed", "the archive's has another checksum"),
    }
    archive.transfer(plan, show=quiet)
    assert archived()[f"{PREFIX}/{name}_WM.tif"] == b"product_WM.tif"
    assert states(archive.plan(jobs, ["_VV.tif", "_VH.tif", "_WM.tif"], content, target)) == {"present": 3}


def in_parts(s3, bucket: str, key: str, body: bytes, part: int = 5 << 20) -> None:
    upload = {"Bucket": bucket, "Key": key}
    upload["UploadId"] = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    tags = []
    for n, start in enumerate(range(0, len(body), part), 1):
        tag = s3.upload_part(**upload, PartNumber=n, Body=body[start : start + part])["ETag"]
        tags.append({"ETag": tag, "PartNumber": n})
    s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": tags})


@pytest.fixture
def own_bucket(s3) -> str:
    make_bucket(s3, "own-products")
    return "own-products"


def test_where_checksums_cannot_be_compared_the_dates_tell(s3, content, target, own_bucket):
    """Real products are uploaded in parts; their copies are not."""
    job, body = a_job(bucket=own_bucket), random.Random(4).randbytes(6 << 20)
    key = f"{job.bucket_prefix}/{stem(job)}_VV.tif"
    in_parts(s3, own_bucket, key, body)
    archive.transfer(archive.plan([job], ["_VV.tif"], content, target), show=quiet)
    plan = archive.plan([job], ["_VV.tif"], content, target)
    assert look.PARTED.fullmatch(plan.files[0].etag) and plan.files[0].state == "present"
    there = s3_backends[USER_ACCOUNT]["aws"].buckets[ARCHIVE].keys[f"{PREFIX}/{stem(job)}_VV.tif"]
    there.last_modified -= timedelta(hours=1)
    assert archive.plan([job], ["_VV.tif"], content, target).files[0].state == "changed"


def test_under_a_kms_key_checksums_are_none(content, target):
    """S3 gives encrypted objects ETags that are no MD5s: files would be copied again for ever."""
    jobs = publish(a_job())
    archive.transfer(archive.plan(jobs, SUFFIXES, content, target), show=quiet)
    for key in s3_backends[USER_ACCOUNT]["aws"].buckets[ARCHIVE].keys.values():
        key._etag, key.encryption = "0123456789abcdef" * 2, "aws:kms"
    assert states(archive.plan(jobs, SUFFIXES, content, target)) == {"present": 2}


@pytest.mark.parametrize("prefix", ["{name}/{job_id}", "HyP3", "a/{name}-{job_id}/b", "x//{job_id}/", "."])
def test_products_of_user_buckets_get_the_same_layout_wherever_they_lie(prefix, s3, content, target, own_bucket):
    job = a_job(7, bucket=own_bucket)
    job.bucket_prefix = prefix.format(name=job.name, job_id=job.job_id)
    clean = "" if prefix == "." else job.bucket_prefix.strip("/").replace("//", "/") + "/"
    for suffix in SUFFIXES:
        put(own_bucket, f"{clean}{stem(job)}{suffix}", b"1")
    archive.transfer(archive.plan([job], SUFFIXES, content, target), show=quiet)
    assert sorted(archived()) == [f"{PREFIX}/{stem(job)}{suffix}" for suffix in SUFFIXES]
    assert states(archive.plan([job], SUFFIXES, content, target)) == {"present": 2}


def test_jobs_that_share_a_prefix_keep_their_own_files(content, target, own_bucket):
    one, two = (a_job(n, bucket=own_bucket, bucket_prefix="HyP3") for n in (1, 2))
    publish(one, suffixes=["_VV.tif"])
    publish(two, suffixes=["_VV.tif", "_WM.tif"])
    put(own_bucket, f"HyP3/deeper/{stem(one)}_WM.tif", b"of nobody")
    put(own_bucket, f"HyP3more/{stem(one)}_WM.tif", b"of somebody else")
    plan = archive.plan([one, two], SUFFIXES, content, target)
    assert {(file.name, file.state, file.job_id) for file in plan.files} == {
        (f"{stem(one)}_VV.tif", "new", one.job_id),
        (f"{stem(one)}_WM.tif", "missing at source", one.job_id),
        (f"{stem(two)}_VV.tif", "new", two.job_id),
        (f"{stem(two)}_WM.tif", "new", two.job_id),
    }


def test_files_that_two_jobs_claim_are_archived_once(content, target, own_bucket):
    """HyP3 lists whatever is under a prefix: jobs that share one report each other's files."""
    one, two = (a_job(n, bucket=own_bucket, bucket_prefix="HyP3") for n in (1, 2))
    publish(one, two)
    one.files = two.files = one.files + two.files
    plan = archive.plan([one, two], SUFFIXES, content, target)
    assert states(plan) == {"new": 4}
    assert len(archive.transfer(plan, show=quiet)) == 4 == len(archived())


@pytest.mark.parametrize(
    ("suffixes", "found"),
    [
        (["_VV.tif"], {"_VV.tif"}),
        (["_VV"], {"_VV.tif"}),
        (["*.tif"], {"_VV.tif", "_VH.tif", "_WM.tif", "_WM_HAND.tif"}),
        (["*_V?.tif"], {"_VV.tif", "_VH.tif"}),
        (["_HAND", ".xml"], {"_WM_HAND.tif", "_VV.tif.xml"}),
        (["_WM.tif", "_WM.tif", "*_WM.tif"], {"_WM.tif"}),
    ],
)
def test_suffixes_and_patterns(suffixes, found, content, target):
    job = a_job()
    publish(job, suffixes=["_VV.tif", "_VV.tif.xml", "_VH.tif", "_WM.tif", "_WM_HAND.tif", ".zip"])
    plan = archive.plan([job], suffixes, content, target)
    assert sorted(file.name for file in plan.new) == sorted(stem(job) + suffix for suffix in found)
    assert len(plan.files) == len(found)


def test_no_suffix_is_a_mistake(content, target):
    with pytest.raises(Rejected, match="no suffixes"):
        archive.plan([a_job()], [], content, target)


@pytest.mark.parametrize(("clash", "chosen"), [("newest", {2}), ("first", {1}), ("error", set())])
def test_two_jobs_of_one_granule(clash, chosen, content, target):
    one, two = a_job(1), a_job(2)
    two.job_parameters = one.job_parameters
    plan = archive.plan(publish(two, one), SUFFIXES, content, target, clash=clash)
    assert {int(file.job_id[:8]) for file in plan.new} == chosen
    assert plan.counts()["clashing"] == 4 - 2 * len(chosen)


@pytest.mark.parametrize(("clash", "chosen"), [("newest", b"2"), ("first", b"1"), ("error", None)])
def test_two_sources_of_one_target(clash, chosen, content, target):
    one, two, other = a_job(1), a_job(2), a_job(3)
    two.files = one.files
    publish(one, suffixes=["_VV.tif"], body=b"1")
    publish(two, suffixes=["_VV.tif"], body=b"2")
    publish(other)
    plan = archive.plan([one, two, other], ["_VV.tif"], content, target, clash=clash)
    outcomes = archive.transfer(plan, show=quiet)
    assert archived().get(f"{PREFIX}/{stem(one)}_VV.tif") == (chosen and chosen + b"_VV.tif")
    assert f"{PREFIX}/{stem(other)}_VV.tif" in archived()  # nobody else is held up
    assert archive.summary(plan, outcomes)["exit_code"] == (clash == "error")


def test_expired_jobs_are_left_out_and_expiring_ones_come_first(content, target):
    now = datetime(2026, 6, 1, tzinfo=UTC)
    ends = {1: timedelta(days=9), 2: timedelta(days=2), 3: timedelta(0), 4: timedelta(seconds=1)}
    jobs = publish(*(a_job(n, expiration_time=(now + left).isoformat()) for n, left in ends.items()))
    plan = archive.plan(jobs, ["_VV.tif"], content, target, now=now, warn_days=3)
    assert [int(file.job_id[:8]) for file in plan.new] == [4, 2, 1]
    assert plan.jobs["expired"] == [jobs[2].job_id]
    assert plan.counts()["expires soon"] == 2
    assert [row["expires"] for row in plan.table() if row["job"] == jobs[1].job_id] == ["2026-06-03 (soon)"]


def test_trouble_with_one_bucket_is_told_and_holds_nobody_up(sandbox, content, target, own_bucket):
    gone, closed, good = a_job(1, bucket="no-such-bucket"), a_job(2, bucket=own_bucket), a_job(3)
    publish(closed)
    publish(good)
    sandbox.traffic.fail("forbidden", service="s3", method="GET", path=f"^/{own_bucket}", times=9)
    plan = archive.plan([gone, closed, good], ["_VV.tif"], content, target)
    why = {int(file.job_id[:8]): file.why for file in plan.files if file.state == "missing at source"}
    assert "NoSuchBucket" in why[1] and "AccessDenied" in why[2] and len(why) == 2
    assert [int(file.job_id[:8]) for file in plan.new] == [3]


def test_an_archive_that_is_still_to_be_made_is_empty_and_one_that_cannot_be_read_an_error(sandbox, content, target):
    jobs = publish(a_job())
    todo = archive.plan(jobs, SUFFIXES, content, replace(target, bucket="not-there"))
    assert todo.new and {file.state for file in todo.files} <= {"new", "missing at source"}
    sandbox.traffic.fail("expired-token", service="s3", path=f"^/{ARCHIVE}", times=9)
    with pytest.raises(store.CredentialsRefused, match=r"ExpiredToken.*Renew"):
        archive.plan(jobs, SUFFIXES, content, target)


@pytest.mark.parametrize("kind", ["unavailable", "dropped", "cut"])
def test_listings_survive_a_bad_moment(kind, sandbox, content, target):
    jobs = publish(*(a_job(n) for n in range(5)))
    archive.transfer(archive.plan(jobs, SUFFIXES, content, target), show=quiet)
    sandbox.traffic.fail(kind, service="s3", method="GET", times=4)
    assert states(archive.plan(jobs, SUFFIXES, content, target)) == {"present": 10}


def test_a_bucket_in_another_region_is_named(target):
    answer = HTTPResponse(
        b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region 'us-west-2' is wrong; expecting 'x'"
        b"</Message><Region>eu-central-1</Region></Error>",
        status=400,
    )
    error = store.Store(target)._refusal(answer)
    assert isinstance(error, store.Refused) and "my-archive is in eu-central-1, not in us-west-2" in str(error)


@pytest.mark.parametrize(
    ("bucket", "region", "url"),
    [
        ("my-archive", "us-west-2", "https://my-archive.s3.us-west-2.amazonaws.com/a%20b/%C3%A4"),
        ("my.archive", "us-west-2", "https://s3.us-west-2.amazonaws.com/my.archive/a%20b/%C3%A4"),
        ("my-archive", "cn-north-1", "https://my-archive.s3.cn-north-1.amazonaws.com.cn/a%20b/%C3%A4"),
    ],
)
def test_addresses_at_amazon(bucket, region, url):
    settings = Settings(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", AWS_REGION=region)
    assert store.Store(archive.Place(settings, bucket)).url_of("a b/ä") == url


def test_half_a_page_is_none():
    """Without a length, as some proxies send it, nothing but its end tells that a page is whole."""
    page = b"<R><Contents><Key>a</Key><ETag>x</ETag><Size>1</Size><LastModified>2</LastModified></Contents>"
    assert len(store._entries(page + b"</ListBucketResult>")[0]) == 1
    with pytest.raises(TimedOut):
        store._entries(page)


def test_jobs_are_found_on_every_page_and_through_a_bad_moment(sandbox, hyp3):
    ids = archive_project.fill_large(sandbox.hyp3, "sandbox-user", 800, "many", write=False)
    sandbox.traffic.fail("bad-gateway", service="hyp3", path="^/jobs", times=2, skip=1)
    assert sorted(job.job_id for job in archive.find(hyp3, "many")) == sorted(ids)
    assert len(sandbox.traffic.received("hyp3", path="^/jobs")) > 3  # more than one page


# --- looking up ---


def test_looking_up_finds_what_is_there_and_nothing_else(sandbox, target):
    rng = random.Random(4)
    alphabet = "ab/_-. +&%<é\u20ac"
    names = {"".join(rng.choices(alphabet, k=rng.randint(1, 4))).strip("/") for _ in range(1900)} - {"", ".", ".."}
    there = {name for name in names if rng.random() < 0.8}
    for name in there:
        put(ARCHIVE, target.key(name), name.encode())
    put(ARCHIVE, "archive/HKHwatermapsmore/a", b"")
    found = store.Store(target).look_up(map(target.key, names), threads=3)
    assert {key.removeprefix(target.key("")) for key in found} == there
    assert all(entry.size == len(key.removeprefix(target.key("")).encode()) for key, entry in found.items())


def test_pages_that_hold_nothing_wanted_are_left_out(sandbox, target):
    for n in range(5_000):
        put(ARCHIVE, target.key(f"{n:05}"), b"")
    found = store.Store(target).look_up([target.key(name) for name in ("00010", "00020", "04999", "09000")])
    assert [key[-5:] for key in sorted(found)] == ["00010", "00020", "04999"]
    assert len(sandbox.traffic.received("s3", "GET", f"^/{ARCHIVE}")) <= 3


# --- transfer ---


def test_metadata_and_tags_are_kept_also_in_parts_and_through_this_machine(
    s3, sandbox, settings, content, target, own_bucket, monkeypatch
):
    monkeypatch.setattr(transferring, "PART", 5 << 20)
    job, body = a_job(bucket=own_bucket), random.Random(4).randbytes(11 << 20)
    for suffix, data in (("_VV.tif", body), ("_WM.tif", b"small")):
        key = f"{job.bucket_prefix}/{stem(job)}{suffix}"
        about = {
            "ContentType": "image/tiff",
            "Metadata": {"made-by": "me"},
            "Tagging": "file_type=product&a=b%3Dc%2Bd+e",
        }
        s3.put_object(Bucket=own_bucket, Key=key, Body=data, **about)
    make_bucket(s3, "elsewhere")
    harvest = settings.model_copy(
        update={
            "aws_access_key_id": settings.hook_output_storage_access_key,
            "aws_secret_access_key": settings.hook_output_storage_secret_key,
        }
    )
    places = {"inside": target, "streamed": archive.Place(harvest, "elsewhere", PREFIX)}
    assert target.reaches(content) and not places["streamed"].reaches(target)
    for way, place in places.items():
        sandbox.traffic.requests.clear()
        outcomes = archive.transfer(
            archive.plan([job], SUFFIXES, content.of_bucket(own_bucket), place), show=quiet, large=6 << 20
        )
        assert [outcome.outcome for outcome in outcomes] == ["copied"] * 2, outcomes
        for suffix, data in (("_VV.tif", body), ("_WM.tif", b"small")):
            there = {"Bucket": place.bucket, "Key": place.key(stem(job) + suffix)}
            got = s3.get_object(**there)
            assert got["Body"].read() == data
            assert (got["ContentType"], got["Metadata"]) == ("image/tiff", {"made-by": "me"}), way
            tags = s3.get_object_tagging(**there)["TagSet"]
            assert {tag["Key"]: tag["Value"] for tag in tags} == {"file_type": "product", "a": "b=c+d e"}, way
        gets = [r for r in sandbox.traffic.received("s3", "GET", f"^/{own_bucket}/.*tif$") if not r.query]
        assert len(gets) == (2 if way == "streamed" else 0)
        parts = [r for r in sandbox.traffic.received("s3", "PUT") if "partNumber" in r.query]
        assert len(parts) == (2 if way == "streamed" else 3)
        checks = archive.verify(archive.plan([job], SUFFIXES, content.of_bucket(own_bucket), place), deep=True)
        assert {(check.verdict, check.compared) for check in checks} == {("ok", "content")}


def test_what_one_object_has_does_not_stop_the_others(sandbox, content, target, tmp_path):
    jobs = publish(*(a_job(n) for n in range(1, 11)))
    plan = archive.plan(jobs, SUFFIXES, content, target)
    partition, account = s3_backends.bucket_accounts[content.bucket]
    s3_backends[account][partition].delete_object(content.bucket, f"{jobs[4].bucket_prefix}/{stem(jobs[4])}_VV.tif")
    sandbox.traffic.fail("forbidden", service="s3", method="PUT", path=stem(jobs[7]), times=99)
    manifest = tmp_path / "runs" / "1.csv"
    outcomes = archive.transfer(plan, show=quiet, manifest=manifest)
    failed = {outcome.target.rpartition("/")[2]: outcome.reason for outcome in outcomes if outcome.outcome == "failed"}
    assert {name: reason.partition(":")[0] for name, reason in failed.items()} == {
        f"{stem(jobs[4])}_VV.tif": "NoSuchKey",
        f"{stem(jobs[7])}_VV.tif": "AccessDenied",
        f"{stem(jobs[7])}_WM.tif": "AccessDenied",
    }
    assert len(archived()) == 17
    lines = archive.read_manifest(manifest)
    assert Counter(line["outcome"] for line in lines) == {"copied": 17, "failed": 3}
    record = archive.summary(plan, outcomes, archive.verify(plan, outcomes), tmp_path / "run.json")
    assert record["exit_code"] == 1 and len(record["failed"]) == 3 == len(record["not_verified"])
    assert json.loads((tmp_path / "run.json").read_text()) == record
    sandbox.traffic.heal()
    again = archive.plan(jobs, SUFFIXES, content, target)
    assert states(again) == {"present": 17, "new": 2, "missing at source": 1}
    assert archive.summary(again, archive.transfer(again, show=quiet), archive.verify(again))["exit_code"] == 0


@pytest.mark.parametrize("kind", ["too-many-requests", "error", "dropped", "lost-answer"])
def test_bad_moments_are_waited_out(kind, sandbox, content, target):
    jobs = publish(*(a_job(n) for n in range(20)))
    plan = archive.plan(jobs, SUFFIXES, content, target)
    sandbox.traffic.fail(kind, service="s3", method="PUT", times=15, skip=3)
    outcomes = archive.transfer(plan, show=quiet)
    assert Counter(outcome.outcome for outcome in outcomes) == {"copied": 40}
    assert {check.verdict for check in archive.verify(plan, outcomes)} == {"ok"} and len(archived()) == 40
    assert len(copies(sandbox)) == 55


def test_one_that_never_works_is_given_up(sandbox, content, target):
    jobs = publish(*(a_job(n) for n in range(5)))
    plan = archive.plan(jobs, SUFFIXES, content, target)
    sandbox.traffic.fail("error", service="s3", method="PUT", path=f"{stem(jobs[2])}_VV", times=999)
    outcomes = archive.transfer(plan, show=quiet, patience=0.5)
    (bad,) = [outcome for outcome in outcomes if outcome.outcome != "copied"]
    assert bad.outcome == "failed" and "InternalError" in bad.reason and "nothing worked for 0.5 s" in bad.reason


def test_unfinished_uploads_of_a_killed_run_are_removed_but_not_those_of_others(s3, content, target):
    jobs = publish(a_job())
    ours, theirs = target.key(f"{stem(jobs[0])}_VV.tif"), target.key("somebody-elses.tif")
    for key in (ours, theirs):
        s3.create_multipart_upload(Bucket=ARCHIVE, Key=key)
    lines = []
    archive.transfer(archive.plan(jobs, SUFFIXES, content, target), show=lines.append, large=1)
    assert [upload["Key"] for upload in s3.list_multipart_uploads(Bucket=ARCHIVE)["Uploads"]] == [theirs]
    assert lines[0].startswith("1 unfinished multi-part upload")


def test_a_failed_copy_in_parts_leaves_no_parts(s3, sandbox, content, target, monkeypatch, own_bucket):
    monkeypatch.setattr(transferring, "PART", 5 << 20)
    job = a_job(bucket=own_bucket)
    put(own_bucket, f"{job.bucket_prefix}/{stem(job)}_VV.tif", bytes(11 << 20))
    plan = archive.plan([job], ["_VV.tif"], content, target)
    sandbox.traffic.fail("forbidden", service="s3", method="PUT", times=1, skip=1)
    (outcome,) = archive.transfer(plan, show=quiet, large=6 << 20)
    assert outcome.outcome == "failed" and "AccessDenied" in outcome.reason
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=ARCHIVE) and archived() == {}


def test_stopping_finishes_what_is_under_way_and_names_the_rest(content, target, sandbox):
    jobs = publish(*(a_job(n) for n in range(50)))
    plan, stop = archive.plan(jobs, SUFFIXES, content, target), threading.Event()
    sandbox.traffic.fail("slow", service="s3", method="PUT", times=999, seconds=0.05)
    threading.Timer(0.2, stop.set).start()
    outcomes = archive.transfer(plan, show=quiet, stop=stop, workers=4)
    counts = Counter((outcome.outcome, outcome.reason) for outcome in outcomes)
    assert counts[("copied", "")] == len(archived()) > 3
    assert counts[("not tried", "stopped")] == 100 - len(archived()) > 30


KILLED = """
import json, sys
from pathlib import Path
from hyp3_sdk import Job
from helpers import archive, settings
given = json.loads(Path(sys.argv[1]).read_text())
places = [archive.Place(settings.load(), **given[name]) for name in ("content", "target")]
plan = archive.plan(map(Job.from_dict, given["jobs"]), given["suffixes"], *places)
with archive.lock(places[1]):
    archive.transfer(plan, workers=4, manifest=Path(sys.argv[2]))
"""


def test_killed_anywhere_the_next_run_completes_it(sandbox, environment, content, target, tmp_path):
    jobs = publish(*(a_job(n) for n in range(60)))
    given = {
        "jobs": [job.to_dict() for job in jobs],
        "suffixes": SUFFIXES,
        "content": {"bucket": content.bucket, "anonymous": True},
        "target": {"bucket": ARCHIVE, "prefix": PREFIX},
    }
    (tmp_path / "given.json").write_text(json.dumps(given))
    sandbox.traffic.fail("slow", service="s3", method="PUT", times=9_999, seconds=0.02)
    manifest = tmp_path / "manifest.csv"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "given.json"), str(manifest)]
    run = subprocess.Popen(command, env=os.environ | environment, cwd=PROJECT, stdout=subprocess.DEVNULL)
    while not manifest.exists() or manifest.read_text().count("\n") < random.randint(5, 60):
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    sandbox.traffic.heal()
    time.sleep(0.3)  # what S3 had begun, it finishes
    before = set(archived()) - {f"{PREFIX}/.archive-lock"}
    assert 3 < len(before) < 120
    with archive.lock(target):  # the dead process' lock is taken over at once
        plan = archive.plan(jobs, SUFFIXES, content, target)
        outcomes = archive.transfer(plan, show=quiet)
    assert {outcome.target.removeprefix(f"s3://{ARCHIVE}/") for outcome in outcomes} | before == set(archived())
    assert len(outcomes) + len(before) == len(archived()) == 120
    assert {check.verdict for check in archive.verify(plan, outcomes, deep=True)} == {"ok"}


# --- a stub for what moto is too slow or too good for ---


class Stub:
    def __init__(self, url: str):
        self.url = url
        settings = Settings(AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b")
        self.content = archive.Place(settings, "content", anonymous=True)
        self.target = archive.Place(settings, "archive", "archive/HKHwatermaps")

    def control(self, **behaviour) -> dict:
        data = json.dumps(behaviour).encode() if behaviour else None
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/_control", data)) as answer:
            return json.load(answer)

    def plan(self, files: int) -> archive.Plan:
        jobs = [a_job(n, bucket="content", bucket_prefix=f"{n:08x}-0000-4000-8000-000000000000") for n in range(files)]
        plan = archive.plan(jobs, ["_VV.tif"], self.content, self.target)
        assert states(plan)["new"] == files
        return plan


@pytest.fixture(scope="module")
def stub_process():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    script = PROJECT / "benchmarks" / "s3_stub.py"
    process = subprocess.Popen([sys.executable, str(script), "--port", str(port)])
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.fixture
def stub(stub_process) -> Stub:
    stub = Stub(stub_process)
    stub.control(delay=0.005)
    return stub


def test_every_second_request_refused_and_all_arrive(stub):
    plan = stub.plan(300)
    stub.control(delay=0.005, throttled=0.5)
    outcomes = archive.transfer(plan, show=quiet)
    assert Counter(outcome.outcome for outcome in outcomes) == {"copied": 300}
    seen = stub.control()
    assert seen["copied"] == 300 and seen["twice"] == 0 and seen["refused"] > 150


def test_an_outage_in_the_middle_and_all_arrive(stub):
    plan = stub.plan(300)
    stub.control(delay=0.005, outage_after=100, outage=1.2)
    lines = []
    outcomes = archive.transfer(plan, show=lines.append)
    assert Counter(outcome.outcome for outcome in outcomes) == {"copied": 300}
    assert stub.control()["copied"] == 300
    assert lines[-1].startswith("300 of 300 files, 300.0 MB")


def test_an_outage_that_does_not_end_is_given_up_and_named(stub):
    plan = stub.plan(200)
    stub.control(delay=0.005, outage_after=100, outage=60)
    outcomes = archive.transfer(plan, show=quiet, patience=0.6, workers=5)
    counts = Counter(outcome.outcome for outcome in outcomes)
    assert counts["copied"] == 100 and counts["failed"] + counts["not tried"] == 100
    assert all("nothing worked for 0.6 s" in outcome.reason for outcome in outcomes if outcome.outcome != "copied")
    assert stub.control()["requests"] < 100 + 60  # a few in each pass, not all


def test_credentials_that_end_cost_few_requests_and_the_rest_is_named(stub):
    plan = stub.plan(400)
    stub.control(delay=0.02, expires_after=100)
    outcomes = archive.transfer(plan, show=quiet)
    seen = stub.control()
    assert seen["copied"] == 100 and 0 < seen["refused"] <= 50
    counts = Counter(outcome.outcome for outcome in outcomes)
    assert counts["copied"] == 100 and counts["failed"] == seen["refused"]
    assert counts["not tried"] == 300 - seen["refused"]
    assert all("ExpiredToken" in outcome.reason for outcome in outcomes if outcome.outcome != "copied")


def test_an_error_that_comes_with_status_200_is_one(stub):
    plan = stub.plan(100)
    stub.control(delay=0.005, late_errors=0.3)
    outcomes = archive.transfer(plan, show=quiet)
    assert Counter(outcome.outcome for outcome in outcomes) == {"copied": 100}
    assert stub.control()["copied"] == 100


def test_a_source_that_has_changed_since_is_not_taken_for_the_planned_one(stub):
    plan = stub.plan(10)
    plan.files[3] = replace(plan.files[3], etag="0" * 32)
    outcomes = archive.transfer(plan, show=quiet)
    (bad,) = [outcome for outcome in outcomes if outcome.outcome != "copied"]
    assert bad.source == plan.files[3].source and "plan again" in bad.reason
    assert stub.control()["copied"] == 9


def test_the_pace_slows_down_and_recovers():
    pace = run.Pace(48)
    pace.slower()
    assert pace.allowed == 24
    pace.slower()  # the same wave
    assert pace.allowed == 24
    for _ in range(10):
        pace._slowed = 0
        pace.slower()
    assert pace.allowed == 6
    at_once, most = 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal at_once, most
        with pace:
            with lock:
                at_once += 1
                most = max(most, at_once)
            time.sleep(0.01)
            with lock:
                at_once -= 1

    threads = [threading.Thread(target=work) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 6
    for _ in range(1000):
        pace.faster()
    assert pace.allowed == 48


# --- verify ---


def test_verifying_finds_what_is_missing_cut_or_other(content, target):
    jobs = publish(*(a_job(n) for n in (1, 2, 3, 4)))
    plan = archive.plan(jobs, ["_VV.tif"], content, target)
    outcomes = archive.transfer(plan, show=quiet)
    names = [f"{PREFIX}/{stem(job)}_VV.tif" for job in jobs]
    s3_backends[USER_ACCOUNT]["aws"].delete_object(ARCHIVE, names[0])
    put(ARCHIVE, names[1], b"cut")
    put(ARCHIVE, names[2], b"PRODUCT_VV.tif")
    verdicts = {check.target.rpartition("/")[2]: check.verdict for check in archive.verify(plan, outcomes)}
    assert [verdicts[name.rpartition("/")[2]].partition(":")[0] for name in names] == [
        "missing",
        "size differs",
        "checksum differs",
        "ok",
    ]


def test_content_in_parts_is_compared_by_reading(s3, content, target, own_bucket):
    job, body = a_job(bucket=own_bucket), random.Random(4).randbytes(11 << 20)
    in_parts(s3, own_bucket, f"{job.bucket_prefix}/{stem(job)}_VV.tif", body)
    plan = archive.plan([job], ["_VV.tif"], content, target)
    outcomes = archive.transfer(plan, show=quiet)
    assert [(c.verdict, c.compared) for c in archive.verify(plan, outcomes)] == [("ok", "checksum")]
    assert [(c.verdict, c.compared) for c in archive.verify(plan, outcomes, deep=True)] == [("ok", "content")]
    put(ARCHIVE, target.key(f"{stem(job)}_VV.tif"), body[:-1] + b"?")
    assert [(c.verdict, c.compared) for c in archive.verify(plan)] == [("ok", "size")]  # that is all that is known
    assert [c.verdict for c in archive.verify(plan, deep=True)] == [
        "content differs: delete it and run again, then it is fetched anew"
    ]


@pytest.mark.parametrize("size", [1, 5 << 20, (5 << 20) + 1, 12 << 20])
def test_checksums_of_parts_are_those_of_s3(size, s3, own_bucket):
    body = random.Random(size).randbytes(size)
    in_parts(s3, own_bucket, "x", body)
    blocks = (body[start : start + 700_001] for start in range(0, size, 700_001))
    assert look.etag_of(blocks, 5 << 20) == s3.head_object(Bucket=own_bucket, Key="x")["ETag"].strip('"')


# --- manifests, locks ---


def test_a_manifest_goes_on_after_half_a_line(tmp_path):
    path = tmp_path / "m.csv"
    done = archive.Outcome("s3://a/b,c", 's3://d/"e', 1, "tag", 0.1, "copied")
    with run.Manifest(path) as manifest:
        manifest.add(done)
    path.write_text(path.read_text() + "s3://a/x,s3://d/x")
    with run.Manifest(path) as manifest:
        manifest.add(done)
    lines = archive.read_manifest(path)
    assert [(line["source"], line["target"], line["bytes"]) for line in lines] == [("s3://a/b,c", 's3://d/"e', "1")] * 2


def test_a_manifest_for_batch_operations(content, target, tmp_path):
    job = a_job()
    publish(job)
    put(job.bucket, f"{job.bucket_prefix}/{stem(job)} ä+,_VV.tif", b"1")
    plan = archive.plan([job], ["_VV.tif"], content, target)
    assert archive.batch_manifest(plan, tmp_path / "batch.csv") == 2
    rows = list(csv.reader(io.StringIO((tmp_path / "batch.csv").read_text())))
    assert {(bucket, unquote(key)) for bucket, key in rows} == {(file.bucket, file.key) for file in plan.new}
    assert all(key.isascii() and " " not in key and "," not in key for _, key in rows)


@pytest.fixture(params=["bucket", "folder"])
def place(request, target, tmp_path):
    return target if request.param == "bucket" else tmp_path / "archive"


def test_a_second_run_is_refused_with_who_and_when(place):
    with (
        archive.lock(place),
        pytest.raises(Rejected, match=rf"@{socket.gethostname()} has been archiving .*since 20\d\d-.*{os.getpid()}"),
        archive.lock(place),
    ):
        pass
    with archive.lock(place):
        pass


def test_an_old_lock_of_another_machine_is_taken_over(s3, target):
    holder = {"who": "somebody@elsewhere", "pid": 1, "since": "2026-01-01T00:00:00+00:00"}
    s3.put_object(Bucket=ARCHIVE, Key=target.key(".archive-lock"), Body=json.dumps(holder))
    with pytest.raises(Rejected, match="somebody@elsewhere has been archiving"), archive.lock(target, age=60):
        pass
    time.sleep(1.1)
    with archive.lock(target, age=1) as lost:
        assert not lost.is_set()
        held = json.loads(s3.get_object(Bucket=ARCHIVE, Key=target.key(".archive-lock"))["Body"].read())
        assert held["pid"] == os.getpid()
    assert archived() == {}


def test_a_lock_is_renewed_and_its_loss_is_noticed_and_nothing_of_the_other_removed(s3, target):
    key = {"Bucket": ARCHIVE, "Key": target.key(".archive-lock")}
    with archive.lock(target, age=0.4) as lost:
        first = s3_backends[USER_ACCOUNT]["aws"].buckets[ARCHIVE].keys[key["Key"]].last_modified
        time.sleep(0.3)
        assert s3_backends[USER_ACCOUNT]["aws"].buckets[ARCHIVE].keys[key["Key"]].last_modified > first
        s3.put_object(**key, Body=b'{"who": "another"}')
        assert lost.wait(2)
    assert s3.get_object(**key)["Body"].read() == b'{"who": "another"}'


def test_of_many_at_once_one_gets_the_lock(target):
    gate, results = threading.Barrier(6), []

    def run() -> None:
        gate.wait()
        try:
            with archive.lock(target):
                results.append("held")
                time.sleep(0.5)
        except Rejected:
            results.append("refused")

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(results) == {"held": 1, "refused": 5}


def test_secrets_are_in_no_representation(settings, target):
    secret = settings.model_copy(update={"aws_secret_access_key": SecretStr("canary-4711")})
    assert "canary" not in repr(replace(target, settings=secret))


def test_patience_ends():
    with pytest.raises(TimedOut):
        store.patiently(lambda: (_ for _ in ()).throw(TimedOut("no")), patience=0.3)
