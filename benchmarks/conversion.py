"""The conversion recipe beside EOPF's own command, in one run: full products, many small ones, reading the result.

    python benchmarks/conversion.py                        (about half an hour, 6 GB of disk)
    python benchmarks/conversion.py s1 read --rounds 3
    python benchmarks/conversion.py --pixels-s1 4000 --pixels-s2 2400        (smaller "full" products)

The products are the sandbox's, kept in outputs/benchmarks/conversion between runs. Ours is `helpers.conversion.convert`
in a process that starts with nothing: worker, EOPF's import, checksums, mending and the item are in the time; "warm" is
the same with a worker that has converted something before. The peer is `eopf convert`, which imports EOPF as well, and
does none of the rest. Memory is what all processes of a side hold together, at
most. Prints a table and keeps every figure in outputs/benchmarks/conversion.json. Read the ratios: machines differ,
and are noisy.
"""

import argparse
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from figures import OUTPUT, Rows, keep, measure

PROJECT = Path(__file__).resolve().parent.parent
GRD = "S1A_IW_GRDH_1SDV_20230815T060112_20230815T060137_049881_05FF5E_1A2B"
L2A = "S2A_MSIL2A_20230815T095031_N0509_R079_T33UVP_20230815T142759"
OLCI = "S3A_OL_1_ERR____20230815T091500_20230815T091800_20230816T101010_0180_102_207______PS1_O_NT_003"
DELAY = 0.04
#: What is to be reached, by row.
TARGETS = {
    "s2": "within 1.1 of eopf convert, peak memory not above it",
    "s1": "at most half of eopf convert, below 2 GB",
    "eight": "at most half of eight eopf commands",
    "two": "at least 1.7 times one worker",
    "read": "fewer requests than EOPF's default output",
}
Run = dict[str, float]


# --- measuring ---


def run(command: list[str]) -> Run:
    """Seconds, those of the CPU, and the MB that all processes held together at most (looked at every 50 ms)."""
    began, before = time.perf_counter(), _cpu()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=PROJECT)
    said: list[bytes] = []
    reader = threading.Thread(target=lambda: said.append(process.stdout.read()), daemon=True)
    reader.start()
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, sum(map(_held, _tree(process.pid))))
        time.sleep(0.05)
    reader.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {said[0].decode()[-2000:]}")
    own = re.search(rb"took (\S+) s, (\S+) s of CPU$", said[0].strip())
    seconds, cpu = map(float, own.groups()) if own else (time.perf_counter() - began, _cpu() - before)
    return {"seconds": seconds, "cpu": cpu, "peak": peak}


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _tree(pid: int) -> list[int]:
    found = [pid]
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _tree(int(child))
    return found


def _held(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    _, found, rest = status.partition("VmRSS:")
    return int(rest.split()[0]) / 1024 if found else 0.0


def medians(runs: list[Run]) -> Run:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]} | {"runs": runs}  # type: ignore[dict-item]


def in_turn(rounds: int, sides: dict[str, Callable[[], Run]]) -> dict[str, Run]:
    """The sides one after the other, several times: what else the machine does then hits them alike."""
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            runs[name].append(side())
    return {name: medians(those) for name, those in runs.items()}


# --- the sides ---


def product(folder: Path, name: str, pixels: int) -> Path:
    """The sandbox's product of this size, made if it is not there."""
    from helpers.sandbox.safe_products import write_safe

    place = folder / f"{pixels}"
    found = [root for root in place.glob(f"{name}.*") if _is_whole(root)]
    return found[0] if found else write_safe(place, name, pixels)


def _is_whole(root: Path) -> bool:
    from helpers import safe

    return safe.is_product(root) and not [m for m in safe.members(root) if not (root / m.path).is_file()]


def eopf(root: Path, target: Path) -> Run:
    shutil.rmtree(target, ignore_errors=True)
    return run([str(Path(sys.executable).with_name("eopf")), "convert", str(root), str(target)])


def ours(*roots: Path, target: Path) -> Run:
    shutil.rmtree(target, ignore_errors=True)
    return run([sys.executable, __file__, "--one", *map(str, roots), str(target)])


def ours_warm(root: Path, before: Path, target: Path) -> Run:
    shutil.rmtree(target, ignore_errors=True)
    return run([sys.executable, __file__, "--warm", str(before), str(root), str(target)])


def warm(places: list[str]) -> None:
    """Two products, one after the other; what the second one takes is said."""
    from helpers.conversion import here

    first, second, target = places
    here.convert(first, target, show=lambda line: None)
    (worker,) = (each.pid for each in here._own.workers.values())
    began, before = time.perf_counter(), time.process_time() + _cpu_of(worker)
    here.convert(second, target, show=lambda line: None)
    seconds, cpu = time.perf_counter() - began, time.process_time() + _cpu_of(worker) - before
    print(f"took {seconds:.2f} s, {cpu:.1f} s of CPU")


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def one(places: list[str]) -> None:
    """What a user does, in a process of its own."""
    from helpers import conversion

    *roots, target = places
    done = conversion.convert_many(roots, target, show=lambda line: None)
    if failed := [f"{each.source}: {each.reason}" for each in done if each.outcome != "converted"]:
        raise SystemExit("\n".join(failed))


def floor(root: Path, target: Path) -> Run:
    """The pictures of a Sentinel-1 product alone, with rasterio and zarr: nothing could be faster."""
    shutil.rmtree(target, ignore_errors=True)
    return run([sys.executable, __file__, "--floor", str(root), str(target)])


def copy_pictures(root: str, target: str) -> None:
    from helpers.conversion import eopf_product

    eopf_product._copy(eopf_product._tiffs(Path(root)), Path(target))


# --- the rows ---


def s2(options: argparse.Namespace, folder: Path) -> Rows:
    return _full(options, folder, L2A, options.pixels_s2, {})


def s1(options: argparse.Namespace, folder: Path) -> Rows:
    root = product(folder / "products", GRD, options.pixels_s1)
    return _full(
        options, folder, GRD, options.pixels_s1, {"rasterio + zarr": lambda: floor(root, folder / "floor.zarr")}
    )


def _full(options: argparse.Namespace, folder: Path, name: str, pixels: int, more: dict) -> Rows:
    root = product(folder / "products", name, pixels)
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    sides = {
        "eopf convert": lambda: eopf(root, folder / "eopf" / f"{name}.zarr"),
        "ours": lambda: ours(root, target=folder / "ours"),
        "ours, warm": lambda: ours_warm(root, _small(folder, 1)[0], folder / "ours"),
    }
    found = in_turn(options.rounds, sides | more)
    peer = found["eopf convert"]["seconds"]
    return [
        (
            side,
            f"{one['seconds']:.1f} s, x {one['seconds'] / peer:.2f}, {one['cpu']:.0f} s of CPU, {one['peak']:,.0f} MB",
            one | {"input_bytes": size},
        )
        for side, one in found.items()
    ]


def _small(folder: Path, count: int) -> list[Path]:
    """Products of three missions, each of another day."""
    names = [name.replace("0815T", f"08{day:02}T") for day in range(1, 29) for name in (GRD, L2A, OLCI)]
    pixels = {"S1": 240, "S2": 120, "S3": 60}
    return [product(folder / "products", name, pixels[name[:2]]) for name in names[:count]]


def eight(options: argparse.Namespace, folder: Path) -> Rows:
    roots = _small(folder, 8)

    def commands() -> Run:
        runs = [eopf(root, folder / "eopf" / f"{root.stem}.zarr") for root in roots]
        sums = {key: sum(run[key] for run in runs) for key in ("seconds", "cpu")}
        return sums | {"peak": max(run["peak"] for run in runs)}

    sides = {"eight eopf commands": commands, "ours, one worker": lambda: ours(*roots, target=folder / "ours")}
    found = in_turn(options.rounds, sides)
    peer = found["eight eopf commands"]["seconds"]
    return [
        (side, f"{one['seconds']:.1f} s, x {one['seconds'] / peer:.2f}, {one['cpu']:.0f} s of CPU", one)
        for side, one in found.items()
    ]


def two(options: argparse.Namespace, folder: Path) -> Rows:
    """On Dask clusters by address, warm: what is compared is the work."""
    from distributed import Client, LocalCluster

    from helpers import conversion
    from helpers.conversion import eopf_product

    roots = _small(folder, 16)

    def spread(workers: int) -> Run:
        local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": 50}
        with LocalCluster(memory_limit=0, **local) as cluster, Client(cluster, set_as_default=False) as client:
            client.wait_for_workers(workers)
            client.run(eopf_product.warm)
            shutil.rmtree(folder / "ours", ignore_errors=True)
            began = time.perf_counter()
            done = conversion.convert_many(
                roots, folder / "ours", scheduler=cluster.scheduler_address, show=lambda line: None
            )
            seconds = time.perf_counter() - began
        assert all(each.outcome == "converted" for each in done), done  # noqa: S101
        return {"seconds": seconds}

    found = in_turn(options.rounds, {"one worker": lambda: spread(1), "two workers": lambda: spread(2)})
    single = found["one worker"]["seconds"]
    return [(side, f"{one['seconds']:.1f} s, {single / one['seconds']:.2f} times", one) for side, one in found.items()]


def read(options: argparse.Namespace, folder: Path) -> Rows:
    """Each answer after 40 ms: the tree opened as xarray does by itself, and with `open_tree`; then one window."""
    rows: Rows = []
    places = {L2A: "measurements/reflectance/r10m/b02", GRD: "measurements/grd"}
    for name, pixels in ((L2A, options.pixels_s2), (GRD, options.pixels_s1)):
        root = product(folder / "products", name, pixels)
        zarrs = {"EOPF's": folder / "eopf" / f"{name}.zarr", "ours": folder / "ours" / f"{name}.zarr"}
        for side, make in (("EOPF's", lambda z, root=root: eopf(root, z)), ("ours", None)):
            if not (zarrs[side] / "zarr.json").exists():
                make(zarrs[side]) if make else ours(root, target=folder / "ours")
        for way in ("xarray", "open_tree"):
            for side, place in zarrs.items():
                runs = [_window(place, places[name], way) for _ in range(max(3, options.rounds))]
                found = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
                text = f"{found['requests']:.0f} requests, {found['seconds']:.2f} s"
                rows.append((f"{name[:2]}, {side}, {way}", text, found))
    return rows


def _window(zarr: Path, path: str, way: str) -> Run:
    import xarray

    from helpers.conversion import here

    with _served(zarr.parent) as (url, asked):
        began = time.perf_counter()
        address = f"{url}/{zarr.name}"
        by_itself = {"engine": "zarr", "chunks": {}}
        tree = here.open_tree(address) if way == "open_tree" else xarray.open_datatree(address, **by_itself)
        group, _, name = path.rpartition("/")
        (picture,) = [node[name] for node in tree.subtree if node.path.endswith(f"/{group}")]
        height, width = picture.shape[-2:]
        rows, columns = (slice(size // 2 - 256, size // 2 + 256) for size in (height, width))
        picture[(0,) * (picture.ndim - 2) + (rows, columns)].compute()
        return {"requests": len(asked), "seconds": time.perf_counter() - began}


@contextmanager
def _served(folder: Path) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def do_GET(self) -> None:
            asked.append(self.path)
            time.sleep(DELAY)
            super().do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


ROWS = {"s2": s2, "s1": s1, "eight": eight, "two": two, "read": read}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="row", help=f"of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=1, help="how often each side runs; medians count (%(default)s)")
    parser.add_argument("--pixels-s1", type=int, default=25_000, help="longest side of the GRD picture (%(default)s)")
    parser.add_argument("--pixels-s2", type=int, default=10_980, help="of the 10 m bands (%(default)s)")
    parser.add_argument("--folder", type=Path, default=OUTPUT / "conversion", help="products and results (%(default)s)")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--warm", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--floor", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return one(options.one)
    if options.warm:
        return warm(options.warm)
    if options.floor:
        return copy_pictures(*options.floor)
    if unknown := set(options.rows) - ROWS.keys():
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    found = measure(options.rows or ROWS, TARGETS, lambda name: ROWS[name](options, options.folder))
    keep("conversion", found)


if __name__ == "__main__":
    main()
