"""The archive recipe to a folder: whole files only, resumed, checked."""

import errno
import os
import random
import shutil
import zipfile
from collections import Counter, namedtuple
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import pytest
from moto.s3.models import s3_backends

from helpers import archive
from helpers.archive import disk
from helpers.errors import Rejected
from tests.unit.test_archive import (  # noqa: F401 - fixtures
    SUFFIXES,
    a_job,
    content,
    in_parts,
    own_bucket,
    publish,
    put,
    quiet,
    sandbox,
    states,
    stem,
)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "archive" / "HKHwatermaps"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def gets(sandbox) -> list:  # noqa: F811
    return sandbox.traffic.received("s3", "GET", r"\.\w+$")


def test_the_second_run_downloads_nothing(sandbox, content, folder):  # noqa: F811
    jobs = publish(a_job(1), a_job(2))
    plan = archive.plan(jobs, SUFFIXES, content, folder)
    assert states(plan) == {"new": 4} and not folder.exists()
    outcomes = disk.to_disk(plan, show=quiet, manifest=folder.parent / "m.csv")
    assert [outcome.outcome for outcome in outcomes] == ["copied"] * 4
    assert files(folder) == {stem(job) + suffix: b"product" + suffix.encode() for job in jobs for suffix in SUFFIXES}
    assert {line["outcome"] for line in archive.read_manifest(folder.parent / "m.csv")} == {"copied"}
    dates = {path.stat().st_mtime for path in folder.iterdir()}
    assert dates == {datetime.fromisoformat(f.modified).replace(tzinfo=UTC).timestamp() for f in plan.files}
    for deep, compared in ((False, "size"), (True, "content")):
        checks = archive.verify(plan, outcomes, deep=deep)
        assert {(check.verdict, check.compared) for check in checks} == {("ok", compared)}
    sandbox.traffic.requests.clear()
    again = archive.plan(jobs, SUFFIXES, content, folder)
    assert states(again) == {"present": 4}
    assert disk.to_disk(again, show=quiet) == [] and gets(sandbox) == []
    assert archive.summary(again)["exit_code"] == 0


def test_what_has_changed_replaces_the_old_when_it_is_whole(sandbox, content, folder):  # noqa: F811
    job = a_job()
    name = f"{stem(job)}_VV.tif"
    publish(job, suffixes=["_VV.tif"])
    disk.to_disk(archive.plan([job], ["_VV.tif"], content, folder), show=quiet)
    publish(job, suffixes=["_VV.tif"], body=b"PRODUCT")
    partition, account = s3_backends.bucket_accounts[content.bucket]
    s3_backends[account][partition].buckets[content.bucket].keys[f"{job.job_id}/{name}"].last_modified += timedelta(
        hours=1
    )
    plan = archive.plan([job], ["_VV.tif"], content, folder)
    assert states(plan) == {"changed": 1}
    sandbox.traffic.fail("forbidden", service="s3", method="GET", path=name, times=99)
    (outcome,) = disk.to_disk(plan, show=quiet)
    assert outcome.outcome == "failed" and "AccessDenied" in outcome.reason
    assert files(folder)[name] == b"product_VV.tif"
    sandbox.traffic.heal()
    disk.to_disk(plan, show=quiet)
    assert files(folder) == {name: b"PRODUCT_VV.tif"}


def test_what_one_file_has_does_not_stop_the_others(sandbox, content, folder):  # noqa: F811
    jobs = publish(*(a_job(n) for n in range(6)))
    plan = archive.plan(jobs, ["_VV.tif"], content, folder)
    partition, account = s3_backends.bucket_accounts[content.bucket]
    s3_backends[account][partition].delete_object(content.bucket, f"{jobs[1].job_id}/{stem(jobs[1])}_VV.tif")
    put(content.bucket, f"{jobs[2].job_id}/{stem(jobs[2])}_VV.tif", b"PRODUCT_VV.tif")
    for kind in ("error", "dropped", "cut", "too-many-requests"):
        sandbox.traffic.fail(kind, service="s3", method="GET", path=f"{stem(jobs[3])}_VV", times=1)
    outcomes = disk.to_disk(plan, show=quiet)
    why = {outcome.target.rpartition("/")[2]: outcome.reason for outcome in outcomes if outcome.outcome != "copied"}
    assert set(why) == {f"{stem(jobs[1])}_VV.tif", f"{stem(jobs[2])}_VV.tif"}
    assert "NoSuchKey" in why[f"{stem(jobs[1])}_VV.tif"]
    assert "its checksum is" in why[f"{stem(jobs[2])}_VV.tif"]  # other bytes than planned
    assert len(gets(sandbox)) < 20
    assert sorted(files(folder)) == sorted(f"{stem(jobs[n])}_VV.tif" for n in (0, 3, 4, 5))


def test_credentials_that_end_stop_the_run(sandbox, content, folder):  # noqa: F811
    jobs = publish(*(a_job(n) for n in range(100)))
    plan = archive.plan(jobs, ["_VV.tif"], replace(content, anonymous=False), folder)
    sandbox.traffic.fail("expired-token", service="s3", method="GET", times=999)
    outcomes = disk.to_disk(plan, show=quiet)
    assert len(gets(sandbox)) <= 50
    assert Counter(outcome.outcome for outcome in outcomes)["not tried"] >= 100 - disk.WORKERS
    assert all("ExpiredToken" in outcome.reason for outcome in outcomes)


def test_no_room_is_foreseen(content, folder, monkeypatch):  # noqa: F811
    plan = archive.plan(publish(*(a_job(n) for n in range(9))), SUFFIXES, content, folder)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, plan.bytes - 1))
    with pytest.raises(Rejected, match=r"18 files need .* nothing was downloaded"):
        disk.to_disk(plan, show=quiet)
    assert files(folder) == {}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, plan.bytes))
    assert len(disk.to_disk(plan, show=quiet)) == 18


def test_products_come_over_https_when_the_bucket_may_not_be_read(sandbox, content, folder):  # noqa: F811
    job = a_job()
    publish(job, suffixes=["_VV.tif", "_WM.tif", ".zip"])
    job.files[0]["url"] = f"{sandbox.url('s3')}/{content.bucket}/{job.job_id}/{stem(job)}.zip"
    sandbox.traffic.fail("forbidden", service="s3", method="GET", path=f"^/{content.bucket}/?$", times=99)
    plan = archive.plan([job], ["_VV.tif", ".zip", "_VH.tif"], content, folder)
    assert states(plan) == {"new": 2, "missing at source": 1}
    assert {file.source for file in plan.new} == {
        f"{sandbox.url('s3')}/{content.bucket}/{job.job_id}/{stem(job)}{suffix}" for suffix in ("_VV.tif", ".zip")
    }
    disk.to_disk(plan, show=quiet)
    assert files(folder) == {stem(job) + suffix: b"product" + suffix.encode() for suffix in ("_VV.tif", ".zip")}
    assert not any(request.authorized for request in gets(sandbox))


def test_archives_are_unpacked_and_bad_ones_named(content, folder):  # noqa: F811
    jobs = [a_job(n) for n in range(3)]
    for n, job in enumerate(jobs):
        body = BytesIO()
        with zipfile.ZipFile(body, "w") as content_of:
            content_of.writestr(f"{stem(job)}/x.tif", b"raster")
            if n == 1:
                content_of.writestr("../out.tif", b"outside")
        put(content.bucket, f"{job.job_id}/{stem(job)}.zip", body.getvalue())
    plan = archive.plan(jobs, [".zip"], content, folder)
    for _ in range(2):  # what was not unpacked is told again
        outcomes = disk.to_disk(plan, show=quiet, unpack=True)
        (bad,) = [outcome for outcome in outcomes if outcome.outcome != "copied"]
        assert stem(jobs[1]) in bad.target and "outside of the folder" in bad.reason
        assert archive.summary(plan, outcomes)["exit_code"] == 1
        plan = archive.plan(jobs, [".zip"], content, folder)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.tif")} == {
        f"{stem(jobs[n])}/x.tif" for n in (0, 2)
    }
    assert not (folder.parent / "out.tif").exists()


# --- large files ---


@pytest.fixture
def large(content, own_bucket, s3, monkeypatch):  # noqa: F811
    """A file of 11 pieces, uploaded in parts, and its plan."""
    monkeypatch.setattr(disk, "LARGE", 1 << 20)
    monkeypatch.setattr(disk, "PIECE", 1 << 20)
    job, body = a_job(bucket=own_bucket), random.Random(4).randbytes((10 << 20) + 17)
    in_parts(s3, own_bucket, f"{job.job_id}/{stem(job)}_VV.tif", body)
    return job, body


def ranges(sandbox) -> int:  # noqa: F811
    return len([request for request in gets(sandbox) if request.status == 206])


def test_large_files_come_in_pieces(sandbox, content, folder, large):  # noqa: F811
    job, body = large
    sandbox.traffic.fail("cut", service="s3", method="GET", path="_VV", times=3, skip=2, fraction=0.5)
    sandbox.traffic.fail("dropped", service="s3", method="GET", path="_VV", times=1, skip=4)
    (outcome,) = disk.to_disk(archive.plan([job], ["_VV.tif"], content, folder), show=quiet)
    assert outcome.outcome == "copied" and files(folder) == {f"{stem(job)}_VV.tif": body}
    assert 11 <= ranges(sandbox) <= 16
    again = archive.plan([job], ["_VV.tif"], content, folder)
    assert states(again) == {"present": 1} and archive.verify(again, deep=True)[0].compared == "content"


def test_pieces_that_are_there_are_not_downloaded_again(sandbox, content, folder, large):  # noqa: F811
    job, body = large
    plan = archive.plan([job], ["_VV.tif"], content, folder)
    sandbox.traffic.fail("forbidden", service="s3", method="GET", path="_VV", times=99, skip=7)
    (outcome,) = disk.to_disk(plan, show=quiet)
    assert outcome.outcome == "failed" and f"{stem(job)}_VV.tif" not in files(folder)
    sandbox.traffic.heal()
    got, notes = ranges(sandbox), folder / f"{stem(job)}_VV.tif.part.pieces"
    known = len(notes.read_text().splitlines()) - 1
    notes.write_text(notes.read_text() + "1")  # of a run killed while writing "10": piece 1 or 10 may be there, or not
    assert 1 <= known <= got == 7
    sandbox.traffic.requests.clear()
    disk.to_disk(plan, show=quiet)
    assert files(folder) == {f"{stem(job)}_VV.tif": body}
    assert ranges(sandbox) == 11 - known


def test_pieces_of_another_version_are_not_spliced(s3, sandbox, content, folder, large, own_bucket):  # noqa: F811
    job, body = large
    sandbox.traffic.fail("forbidden", service="s3", method="GET", path="_VV", times=99, skip=7)
    disk.to_disk(archive.plan([job], ["_VV.tif"], content, folder), show=quiet)
    sandbox.traffic.heal()
    other = body[::-1]
    in_parts(s3, own_bucket, f"{job.job_id}/{stem(job)}_VV.tif", other)
    disk.to_disk(archive.plan([job], ["_VV.tif"], content, folder), show=quiet)
    assert files(folder) == {f"{stem(job)}_VV.tif": other}


def test_damaged_pieces_are_noticed(content, folder, large):  # noqa: F811
    job, body = large
    plan = archive.plan([job], ["_VV.tif"], content, folder)
    folder.mkdir(parents=True)
    part = folder / f"{stem(job)}_VV.tif.part"
    part.write_bytes(bytes(len(body)))
    (file,) = plan.new
    lines = [f"{file.size} {file.etag} {disk.PIECE}", *map(str, range(11))]
    part.with_name(f"{part.name}.pieces").write_text("\n".join(lines) + "\n")
    (outcome,) = disk.to_disk(plan, show=quiet)
    assert outcome.outcome == "failed" and "checksum" in outcome.reason and files(folder) == {}
    disk.to_disk(plan, show=quiet)
    assert files(folder) == {f"{stem(job)}_VV.tif": body}


def test_a_full_disk_is_told(content, folder, large, monkeypatch):  # noqa: F811
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    (outcome,) = disk.to_disk(archive.plan([large[0]], ["_VV.tif"], content, folder), show=quiet)
    assert outcome.outcome == "failed" and "is full" in outcome.reason
