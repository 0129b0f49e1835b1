"""Notebooks 3 and 4, run for real on the sandbox's project: each job in its column, everything once, nothing half."""

import csv
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from helpers.sandbox import archive_project

from ..conftest import NOTEBOOKS, PROJECT

TO_S3, TO_DISK = "3_archive_to_s3.ipynb", "4_archive_to_disk.ipynb"
BUCKET, PREFIX = "hyp3-archive-123456789012", "archive/HKHwatermaps/"
ARCHIVES = pytest.mark.parametrize("name", [TO_S3, TO_DISK], ids=["bucket", "disk"])


class Archive:
    """What is in an archive, in a bucket or on a disk, by file name: size and MD5."""

    def __init__(self, name: str, sandbox, tmp_path: Path):
        self.in_bucket, self.sandbox = name == TO_S3, sandbox
        self.folder = tmp_path / "outputs" / "archive-on-disk" / "HKHwatermaps"

    def files(self) -> dict[str, tuple[int, str]]:
        if not self.in_bucket:
            found = [path for path in self.folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
            return {path.name: (path.stat().st_size, md5(path.read_bytes())) for path in found}
        s3 = self.sandbox._s3_client("sandbox-user")
        listing = s3.list_objects_v2(Bucket=BUCKET, Prefix=PREFIX).get("Contents", [])
        bodies = {o["Key"]: s3.get_object(Bucket=BUCKET, Key=o["Key"])["Body"].read() for o in listing}
        return {k.removeprefix(PREFIX): (len(body), md5(body)) for k, body in bodies.items() if "/." not in k}

    def changes(self) -> int:
        """Requests that have put something into the archive bucket, locks aside."""
        received = self.sandbox.traffic.received("s3", "PUT", f"^/{BUCKET}/{PREFIX}")
        return len([request for request in received if ".archive-lock" not in request.path])


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def archive(request, sandbox, tmp_path):
    return Archive(request.getfixturevalue("name"), sandbox, tmp_path)


def sources(sandbox, suffixes: list[str]) -> dict[str, tuple[int, str]]:
    """What the project's succeeded jobs have, by file name; of one name, what the newest job has."""
    s3 = sandbox._s3_client("sandbox-user")
    anybody = sandbox._s3_client("s3-itself")
    jobs = sorted(
        (j for j in sandbox.hyp3.jobs.values() if j["status_code"] == "SUCCEEDED"), key=lambda j: j["request_time"]
    )
    found = {}
    for job in jobs:
        client = s3 if job["bucket"] == archive_project.PARTNER_BUCKET else anybody
        for one in client.list_objects_v2(Bucket=job["bucket"], Prefix=f"{job['bucket_prefix']}/").get("Contents", []):
            if one["Key"].endswith(tuple(suffixes)):
                body = client.get_object(Bucket=job["bucket"], Key=one["Key"])["Body"].read()
                found[one["Key"].rpartition("/")[2]] = len(body), md5(body)
    return found


@ARCHIVES
def test_a_dry_run_is_the_default_and_changes_nothing(sandbox, open_notebook, name, archive, tmp_path):
    session = open_notebook(name).run()
    assert session["todo"].counts()["new"] > 30
    assert sandbox.traffic.received("s3", "PUT") == []
    assert not (tmp_path / "outputs" / "archive-on-disk").exists()


@ARCHIVES
def test_archives_everything_once_and_a_second_run_nothing(sandbox, run_notebook, name, archive):
    run = run_notebook(name, dry_run=False)
    assert run.outcome == "ok", run.error
    import nbformat

    declared = nbformat.read(NOTEBOOKS / name, 4).cells
    cell = next(c.source for c in declared if "parameters" in c.metadata.get("tags", []))
    suffixes = re.findall(r'"(_\w+\.tif)"', cell)
    expected = sources(sandbox, suffixes)
    # Of two jobs with the same work only the newest is archived, whatever its files are called.
    there = archive.files()
    assert there and set(there) <= set(expected)
    assert all(expected[file] == content for file, content in there.items())
    assert len(there) == run.results["summary"]["plan"]["new"]
    copied = archive.changes()
    again = run_notebook(name, dry_run=False)
    assert again.outcome == "ok", again.error
    assert again.results["plan"]["new"] == again.results["plan"]["changed"] == 0
    assert again.results["plan"]["present"] == len(there)
    assert archive.files() == there and archive.changes() == copied


@ARCHIVES
def test_every_state_is_in_its_column(sandbox, open_notebook, name, archive):
    session = open_notebook(name).run()
    counts, jobs = session["todo"].counts(), archive_project.job_ids("sandbox-user")
    for state in ("failed", "pending", "running", "expired"):
        with_state = [i for i in sandbox.hyp3.jobs.values() if i["status_code"].lower() == state]
        expected = len(jobs["expired"]) if state == "expired" else len(with_state)
        assert counts[f"{state} jobs"] == expected > 0
    rows = session["todo"].table()
    (incomplete,) = jobs["incomplete"]
    assert [row["job"] for row in rows if row["state"] == "missing at source" and "_rgb" in row["file"]] == [incomplete]
    (expiring,) = jobs["expiring"]
    assert {row["job"] for row in rows if "(soon)" in row["expires"]} == {expiring}
    assert counts["clashing"] > 0
    (partner,) = jobs["partner"]
    assert any(
        file.bucket == archive_project.PARTNER_BUCKET for file in session["todo"].files if file.job_id == partner
    )


@ARCHIVES
def test_leaves_a_record_and_a_manifest(sandbox, open_notebook, name, archive, tmp_path):
    session = open_notebook(name, dry_run=False).run()
    record = json.loads((session["folder"] / "summary.json").read_text())
    assert record["exit_code"] == 0 and record["outcomes"] == {"copied": len(archive.files())}
    with (session["folder"] / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(archive.files())
    assert {row["outcome"] for row in rows} == {"copied"} and all(row["checksum"] and row["time"] for row in rows)


@ARCHIVES
def test_one_failure_stops_nothing_else_and_the_run_says_which(sandbox, open_notebook, name, archive):
    session = open_notebook(name, dry_run=False)
    session.run(cells=6)
    victim = session["todo"].new[0]
    sandbox._s3_client("s3-itself").delete_object(Bucket=victim.bucket, Key=victim.key)
    with pytest.raises(AssertionError, match="1 files not brought"):
        for cell in session.cells[6:]:
            session.execute(cell.source)
    assert len(archive.files()) == len(session["todo"].new) - 1
    assert [row["file"].rpartition("/")[2] for row in session["bad"]] == [victim.name] and session["bad"][0]["why"]


@ARCHIVES
def test_throttling_is_survived(sandbox, open_notebook, name, archive):
    session = open_notebook(name, dry_run=False)
    session.run(cells=6)
    for skip in range(0, 60, 10):
        sandbox.traffic.fail("too-many-requests", service="s3", skip=skip)
    for cell in session.cells[6:]:
        session.execute(cell.source)
    assert len(archive.files()) == len(session["todo"].wanted)


@pytest.mark.parametrize(("name", "parameters"), [
    (TO_S3, {"workers": 0}), (TO_DISK, {"downloads": -3}), (TO_S3, {"bucket": "Invalid_Bucket"}),
])  # fmt: skip
def test_what_would_hang_or_be_refused_by_amazon_is_refused_first(sandbox, open_notebook, name, parameters):
    with pytest.raises(Exception, match=r"at least 1 is needed|S3 takes 3 to 63"):
        open_notebook(name, dry_run=False, **parameters).run()
    assert sandbox.traffic.received("hyp3") == []


@ARCHIVES
def test_contested_files_and_suffixes_of_nothing_fail_with_what_to_do(sandbox, open_notebook, name):
    with pytest.raises(AssertionError, match='files have two sources: choose clash = "newest" or "first"'):
        open_notebook(name, dry_run=False, clash="error").run()
    with pytest.raises(AssertionError, match="no job has a file with any of these suffixes"):
        open_notebook(name, dry_run=False, suffixes=["_vv.tif"]).run()


def test_a_damaged_file_on_disk_is_told_with_what_to_do(sandbox, open_notebook):
    session = open_notebook(TO_DISK, dry_run=False).run()
    victim = session["target"] / session["todo"].wanted[0].name
    content, times = bytearray(victim.read_bytes()), victim.stat()
    content[-1] ^= 1
    victim.write_bytes(content)
    os.utime(victim, (times.st_atime, times.st_mtime))
    again = open_notebook(TO_DISK, dry_run=False)
    with pytest.raises(AssertionError, match="1 files not as at the source"):
        again.run()
    assert "delete it and run again" in again["wrong"][0]["verdict"]
    victim.unlink()
    open_notebook(TO_DISK, dry_run=False).run()


def test_a_folder_that_cannot_be_written_is_explained(sandbox, open_notebook, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Exception, match=r"Nothing can be written to .*file: .* Choose another folder"):
        open_notebook(TO_DISK, dry_run=False, target_folder=str(tmp_path / "file")).run()


def test_two_runs_do_not_overlap(sandbox, open_notebook):
    from helpers import archive

    first = open_notebook(TO_S3, dry_run=False).run(cells=5)
    first.execute("objectstore.ensure_bucket(s3, target.bucket, owner=account, create=True)")
    with archive.lock(first["target"]), pytest.raises(Exception, match="Wait for that run; nothing was done"):
        open_notebook(TO_S3, dry_run=False).run()


@ARCHIVES
def test_cleans_up_exactly_what_it_brought(sandbox, open_notebook, name, archive):
    session = open_notebook(name, dry_run=False).run()
    mine = archive.files()
    kept, gone = sorted(mine)[:3], sorted(mine)[3:]
    if archive.in_bucket:
        for file in gone:
            session["s3"].delete_object(Bucket=BUCKET, Key=PREFIX + file)
    else:
        for file in gone:
            (archive.folder / file).unlink()
    open_notebook(name, dry_run=False, clean_up=True).run()
    assert sorted(archive.files()) == kept


@pytest.mark.parametrize(("parameters", "said"), [
    ({"clash": "oldest", "suffixes": []}, ["clash 'oldest'", "no suffixes"]),
    ({"start": "yesterday"}, ["start 'yesterday'"]),
    ({"start": "2026-12-01", "end": "2026-11-01"}, ["start 2026-12-01 is after end 2026-11-01"]),
    ({"suffixes": ["_VV.tif", ""], "warn_days": -1.0}, ["a suffix is empty", "warn_days -1 is less than none"]),
    ({"warn_days": "three"}, ["warn_days: expected float"]),
])  # fmt: skip
@ARCHIVES
def test_bad_parameters_are_explained_before_anything_is_asked(sandbox, open_notebook, name, parameters, said):
    with pytest.raises(Exception) as error:
        open_notebook(name, **parameters).run()
    assert all(words in str(error.value) for words in said), error.value
    assert sandbox.traffic.received("hyp3") == []


@pytest.mark.parametrize("file", sorted(NOTEBOOKS.glob("parameters/archive_*.yaml")), ids=lambda file: file.stem)
@ARCHIVES
def test_every_parameter_file_runs_with_both_notebooks(sandbox, open_notebook, name, archive, file):
    parameters = yaml.safe_load(file.read_text())
    if "hkh" not in file.stem:  # no project of that name is in the sandbox: a schedule with a typing error
        with pytest.raises(Exception, match="No job was found: is the project's name right"):
            open_notebook(name, **parameters).run()
        parameters["project"] = "HKHwatermaps"
    session = open_notebook(name, **parameters).run()
    assert session["record"]["exit_code"] == 0 and len(archive.files()) > 50


@pytest.mark.slow
@ARCHIVES
def test_killed_at_random_moments_everything_is_there_once(sandbox, environment, tmp_path, name, archive):
    """A process that does what the notebook does, killed with SIGKILL wherever it is, and a run left alone."""
    from helpers import runner

    script = tmp_path / "run.py"
    place = "archive.Place(settings, 'hyp3-archive-123456789012', 'archive/HKHwatermaps')"
    folder = f"__import__('pathlib').Path({str(archive.folder)!r})"
    script.write_text(
        "from helpers import archive, hyp3, objectstore, settings as room\n"
        "settings = room.load()\n"
        "jobs = archive.find(hyp3.connect(settings), 'HKHwatermaps')\n"
        "source = archive.Place(settings, archive.content_bucket(jobs), anonymous=True)\n"
        f"target = {place if archive.in_bucket else folder}\n"
        + ("objectstore.ensure_bucket(target.client, target.bucket, owner=None, create=True)\n" * archive.in_bucket)
        + "todo = archive.plan(jobs, ['_VV.tif', '_WM.tif', '_rgb.tif'], source, target)\n"
        "print('begins', flush=True)\n"
        f"archive.{'transfer' if archive.in_bucket else 'to_disk'}(todo, workers=2, show=lambda line: None)\n"
    )
    chance = random.Random()
    for _ in range(10):
        process = subprocess.Popen(
            [sys.executable, str(script)],
            env=os.environ | environment | {"PYTHONPATH": str(PROJECT)},
            stdout=subprocess.PIPE,
        )
        assert process.stdout.readline() == b"begins\n"
        time.sleep(chance.uniform(0, 0.1))
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            each.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    suffixes = ["_VV.tif", "_WM.tif", "_rgb.tif"]
    run = runner.run(
        NOTEBOOKS / name, {"dry_run": False, "suffixes": suffixes}, output=tmp_path / "again" / name, env=environment
    )
    assert run.outcome == "ok", run.error
    expected, there = sources(sandbox, suffixes), archive.files()
    assert len(there) == run.results["plan"]["new"] + run.results["plan"]["present"]
    assert all(expected[file] == content for file, content in there.items())
