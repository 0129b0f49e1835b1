"""Downloads: ours beside the published tutorial's cell and curl, from the same server, in turn, in one run.

    make bench                                   (or: python benchmarks/downloads.py --rounds 3)

Prints tables of medians and keeps every figure in outputs/benchmarks/downloads.json. The server is a process of its own
on the loopback interface, and so is each download; its memory is what the operating system says at its end. Seconds do
not include the start of Python. Before each download what is still to be written to the disk is written; after it the
file is compared with the original. Read the ratios: machines differ, and are noisy.
"""

import argparse
import filecmp
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

PROJECT = Path(__file__).resolve().parent.parent
GIB, ITEMS, ITEM = 1 << 30, 8, 100_000_000
#: Of the connections in the second table: seconds before each answer, bytes a second of each.
LATENCY, RATE = 0.02, 25_000_000


# --- the server ---


class Files(BaseHTTPRequestHandler):
    """Sends the files of a folder. The query says how: ``latency``, ``rate``, ``cut``, ``length=no``."""

    protocol_version = "HTTP/1.1"
    folder = Path()
    sent = 0  #: bytes of files since last asked for

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/_sent":
            body, Files.sent = str(Files.sent).encode(), 0
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        how = dict(parse_qsl(url.query))
        time.sleep(float(how.get("latency", 0)))
        with (self.folder / url.path.split("/")[1]).open("rb") as file:
            self._send(file, how)

    def _send(self, file, how: dict[str, str]) -> None:
        size = os.fstat(file.fileno()).st_size
        wanted = self.headers.get("Range", "")
        start = int(wanted[6:-1]) if wanted and self.headers.get("If-Range") == '"1"' else 0
        # Only the first answer is cut, not the one that carries on.
        end = int(size * float(how["cut"])) if "cut" in how and not wanted else size
        self.close_connection = end < size or "length" in how
        self.send_response(206 if start else 200)
        self.send_header("ETag", '"1"')
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if "length" not in how:
            self.send_header("Content-Length", str(size - start))
        self.end_headers()
        self.wfile.flush()
        rate = float(how.get("rate", 0))
        step, began, at = 262_144 if rate else end, time.monotonic(), start
        while at < end:
            at += self.connection.sendfile(file, at, min(step, end - at))
            if rate:
                time.sleep(max(0, (at - start) / rate - (time.monotonic() - began)))
        Files.sent += end - start

    def log_message(self, *args) -> None:
        pass


def serve(folder: Path) -> None:
    Files.folder = folder
    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


def make_files(folder: Path) -> None:
    """Valid zip files that no compression makes smaller, of a GiB and of 100 MB."""
    for name, size in (("product.zip", GIB), ("item.zip", ITEM)):
        with zipfile.ZipFile(folder / name, "w") as archive, archive.open("X.SAFE/pixels.bin", "w") as pixels:
            # In small pieces: a process that this one starts begins with the memory that this one once had.
            for at in range(0, size, 1 << 20):
                pixels.write(os.urandom(min(1 << 20, size - at)))


# --- what is measured, each in a process of its own ---


def ours(urls: list[str], folder: Path, check: bool = True, workers: int = 1) -> None:
    import requests

    from helpers import download, http, safe

    session = http.harden(requests.Session())
    how = {"check": safe.check_archive} if check else {}
    work = {
        str(n): partial(download.fetch, session, url, folder / f"{n}.zip", show=lambda line: None, **how)
        for n, url in enumerate(urls)
    }
    began = time.perf_counter()
    _, failures = download.in_parallel(work, workers)
    print(time.perf_counter() - began, *failures.values())


def the_tutorials_cell(urls: list[str], folder: Path) -> None:
    import requests

    began = time.perf_counter()
    for n, url in enumerate(urls):
        try:
            answer = requests.get(url)  # noqa: S113 - as published
            with (folder / f"{n}.zip").open("wb") as file:
                file.write(answer.content)
        except requests.RequestException as error:
            print(time.perf_counter() - began, type(error).__name__)
            return
    print(time.perf_counter() - began)


def curl(urls: list[str], folder: Path) -> None:
    outputs = [word for n, url in enumerate(urls) for word in ("-o", f"{folder}/{n}.zip", url)]
    os.execlp("curl", "curl", "-sf", "--noproxy", "*", "-w", "%{time_total}", *outputs)  # noqa: S606 - not through a shell


WAYS: dict[str, Callable] = {
    "curl": curl,
    "ours": partial(ours, check=False),
    "ours, zip checked": ours,
    "ours, in parallel": partial(ours, workers=ITEMS),
    "tutorial's cell": the_tutorials_cell,
}


def measured(way: str, urls: list[str], original: Path) -> dict:
    """Download in a new process; ``seconds``, ``peak`` (bytes of memory), ``said``, and what is on ``disk`` then."""
    with tempfile.TemporaryDirectory(dir=original.parent) as folder:
        os.sync()
        command = [sys.executable, __file__, "--measure", way, folder, *urls]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        seconds, *said = process.stdout.read().split(maxsplit=1)
        process.stdout.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{way} failed")
        disk = {
            file.name: "whole" if filecmp.cmp(file, original, shallow=False) else f"{file.stat().st_size:,} bytes"
            for file in sorted(Path(folder).iterdir())
        }
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"way": way, "seconds": float(seconds), "peak": peak, "said": " ".join(said).strip(), "disk": disk}


# --- the three questions ---


def one_product(folder: Path, base: str, rounds: int) -> list[dict]:
    """A product of a GiB: memory and speed."""
    ways = [way for way in ("curl", "ours", "ours, zip checked", "tutorial's cell") if way != "curl" or has_curl()]
    runs = [
        measured(way, [f"{base}/product.zip"], folder / "product.zip")
        for n in range(rounds)
        for way in ways[:: (-1) ** n]  # to and fro: none has the better place
    ]
    print("\nOne product of 1 GiB (a zip file); the aim: a peak below 120 MB, 0.8 of curl")
    table(runs, GIB, "curl" if has_curl() else "tutorial's cell")
    return runs


def many_items(folder: Path, base: str, rounds: int) -> list[dict]:
    """Eight items over connections that are slow: one after the other and in parallel."""
    urls = [f"{base}/item.zip/{n}?latency={LATENCY}&rate={RATE}" for n in range(ITEMS)]
    ways = ("ours, zip checked", "ours, in parallel", "tutorial's cell")
    runs = [measured(way, urls, folder / "item.zip") for _ in range(rounds) for way in ways]
    print(
        f"\n{ITEMS} items of 100 MB; {LATENCY * 1000:.0f} ms before each answer, no connection faster than"
        f" {RATE / 1e6:.0f} MB/s (a limit of this test's server: loopback has none); the aim: 3 times faster"
    )
    table(runs, ITEMS * ITEM, "ours, zip checked")
    return runs


def cut_downloads(folder: Path, base: str) -> list[dict]:
    """A connection that breaks at 90 %: what it costs until the file is there, and what is on disk until then."""
    print("\nOne item of 100 MB, the first answer cut at 90 %: bytes sent, by an uncut download's; the aim: 1.15")
    size, runs = (folder / "item.zip").stat().st_size, []
    for what, way, query, again in (
        ("ours, uncut", "ours, zip checked", "", 0),
        ("ours", "ours, zip checked", "?cut=0.9", 0),
        ("ours, length not told", "ours, zip checked", "?cut=0.9&length=no", 0),
        ("tutorial's cell", "tutorial's cell", "?cut=0.9", 1),
        ("tutorial's cell, length not told", "tutorial's cell", "?cut=0.9&length=no", 0),
    ):
        sent(base)
        first = measured(way, [f"{base}/item.zip{query}"], folder / "item.zip")
        more = [measured(way, [f"{base}/item.zip"], folder / "item.zip") for _ in range(again)]
        run = first | {"what": what, "sent": sent(base), "runs": 1 + again}
        left = ", ".join(f"{name} ({state})" for name, state in run["disk"].items()) or "nothing"
        said = f" ({run['said'][:60]})" if run["said"] else ""
        then = "; run again: whole" if more and set(more[0]["disk"].values()) == {"whole"} else ""
        print(f"  {what:34} {run['sent'] / size:5.2f}   leaves {left}{said}{then}")
        runs.append(run)
    return runs


def table(runs: list[dict], size: int, peer: str) -> None:
    ways = [way for way in WAYS if any(run["way"] == way for run in runs)]
    seconds = {way: statistics.median(run["seconds"] for run in runs if run["way"] == way) for way in ways}
    for way in ways:
        peak = max(run["peak"] for run in runs if run["way"] == way)
        whole = all(set(run["disk"].values()) == {"whole"} for run in runs if run["way"] == way)
        print(
            f"  {way:20} {seconds[way]:6.2f} s {size / 1e6 / seconds[way]:7,.0f} MB/s"
            f"  x {seconds[peer] / seconds[way]:5.2f} of {peer}   peak {peak / 1e6:6,.0f} MB"
            f"   {'whole' if whole else 'NOT WHOLE'}"
        )


def sent(base: str) -> int:
    """Bytes that the server has sent since it was last asked."""
    connection = HTTPConnection(base.removeprefix("http://"))
    connection.request("GET", "/_sent")
    number = int(connection.getresponse().read())
    connection.close()
    return number


def has_curl() -> bool:
    return shutil.which("curl") is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (%(default)s)")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.serve)
    if arguments.measure:
        way, folder, *urls = arguments.measure
        return WAYS[way](urls, Path(folder))
    os.environ |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_files(folder)
        server = subprocess.Popen([sys.executable, __file__, "--serve", folder], stdout=subprocess.PIPE, text=True)
        try:
            base = f"http://127.0.0.1:{server.stdout.readline().strip()}"
            figures = {
                "one product": one_product(folder, base, arguments.rounds),
                "many items": many_items(folder, base, arguments.rounds),
                "cut": cut_downloads(folder, base),
            }
        finally:
            server.terminate()
            server.wait()
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    target = PROJECT / "outputs" / "benchmarks" / "downloads.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(machine | figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
