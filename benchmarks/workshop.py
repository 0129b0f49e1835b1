"""What an instructor wants to know: seconds per section, and whether a class of 30 fits on one machine.

    python benchmarks/workshop.py                             (all three: ten minutes; better with nothing else running)
    python benchmarks/workshop.py class --people 10

*sections*: each notebook in a real kernel, seconds per numbered step, cold (a sandbox that was just started) and warm
(again, another run, in the same sandbox). Reading times are an estimate: the words of the step, 200 a minute.

*class*: so many people at the same time against one shared sandbox, each a process that runs the cells of the notebooks
one after the other, as they are in the files, beginning together. Beside it one person alone. Clients and sandbox share
the machine, the sandbox first (the clients are "nice"): on a hub, people's kernels have cores of their own.

*own*: what a sandbox of one's own takes, inside the notebook's process: the other way for a class.

Prints tables, and keeps every figure in outputs/benchmarks/workshop.json. Machines differ: read the load that is
printed, too.
"""

import argparse
import contextlib
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import psutil
from figures import keep

PROJECT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("[0-9]_*.ipynb"))
WORDS_A_MINUTE = 200
#: What the class runs, and with what.
CLASS = {"1": {}, "2": {}, "3": {"dry_run": False}, "6": {"take_in": False}}
#: Parameters for the sections: all of each notebook.
WHOLE = {"3": {"dry_run": False}, "4": {"dry_run": False}}
#: The step of notebook 1 after which the products are in the bucket.
DELIVERED = "6"
MB = 1_000_000


# --- notebooks by section ---


def sections(cells: list) -> Iterator[tuple[str, Any]]:
    """Each cell with the title of its section: the last heading of the second level."""
    title = ""
    for cell in cells:
        if cell.cell_type == "markdown" and (found := re.match(r"## (.+)", cell.source)):
            title = found[1].strip()
        yield title, cell


def words(cells: list) -> dict[str, int]:
    """Words to read per section, of text and code; folded solutions are not read."""
    count: dict[str, int] = {}
    for title, cell in sections(cells):
        text = re.sub(r"<details>.*?</details>", "", cell.source, flags=re.DOTALL)
        count[title] = count.get(title, 0) + len(re.findall(r"\w+", text))
    return count


def executed(path: Path) -> dict[str, float]:
    """Seconds per section of an executed notebook."""
    taken: dict[str, float] = {}
    for title, cell in sections(nbformat.read(path, as_version=4).cells):
        if cell.cell_type == "code":
            duration = cell.metadata.get("papermill", {}).get("duration") or 0
            taken[title] = taken.get(title, 0) + duration
    return taken


def measure_sections() -> dict[str, Any]:
    from helpers import runner

    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, shared(Path(folder)) as (url, _):
        for path in NOTEBOOKS:
            env = {"RECIPES_SANDBOX_URL": url, "RECIPES_STATE_DIR": f"{folder}/state"}
            env["RECIPES_OUTPUT_DIR"] = f"{folder}/outputs"
            node = nbformat.read(path, as_version=4)
            taken, whole = {}, {}
            for how in ("cold", "warm"):
                more = dict(WHOLE.get(path.stem[0], {}))
                if any("run_id" in cell.source for cell in node.cells if "parameters" in cell.metadata.get("tags", ())):
                    more["run_id"] = f"workshop-{how}"
                began = time.perf_counter()
                output = Path(folder) / f"{path.stem}-{how}.ipynb"
                result = runner.run(path, more, output=output, deadline=600, env=env)
                whole[how] = time.perf_counter() - began
                if result.outcome != "ok":
                    raise SystemExit(f"{path.name}: {result.error}")
                taken[how] = executed(output)
            read = words(node.cells)
            figures[path.stem] = {"whole": whole, "sections": {}}
            print(f"\n{path.stem}: {whole['cold']:.0f} s cold, {whole['warm']:.0f} s warm, with the kernel's start")
            for title in taken["cold"]:
                row = {"cold": taken["cold"][title], "warm": taken["warm"][title]}
                row["reading, estimated"] = 60 * read[title] / WORDS_A_MINUTE
                figures[path.stem]["sections"][title] = row
                seconds = "  ".join(f"{name} {value:5.1f} s" for name, value in row.items())
                print(f"    {title[:60]:60} {seconds}", flush=True)
    return figures


# --- a class ---


@contextmanager
def shared(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A shared sandbox in a process of its own: its URL, and the process."""
    env = os.environ | {"RECIPES_STATE_DIR": str(folder / "sandbox")}
    command = [sys.executable, "-m", "helpers", "sandbox"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=PROJECT)
    try:
        url = next(found[1] for line in process.stdout if (found := re.search(r"RECIPES_SANDBOX_URL=(\S+)", line)))
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


class Watch(threading.Thread):
    """Looks at a process and its children every half second, until :meth:`stop`."""

    def __init__(self, process: psutil.Process):
        super().__init__(daemon=True)
        self.process, self._stop_it = process, threading.Event()
        self.peak, self.own_peak, self.cpu = 0, 0, {}

    def run(self) -> None:
        while not self._stop_it.wait(0.5):
            with contextlib.suppress(psutil.Error):
                family = [self.process, *self.process.children(recursive=True)]
                # PSS: the pages that PostgreSQL's processes share count once.
                sizes = [each.memory_full_info().pss for each in family]
                self.peak, self.own_peak = max(self.peak, sum(sizes)), max(self.own_peak, sizes[0])
                for each in family:
                    times = each.cpu_times()
                    self.cpu[each.pid] = times.user + times.system

    def stop(self) -> None:
        self._stop_it.set()
        self.join()


def client() -> None:
    """One person: the cells of the notebooks, one after the other; says when it is ready, and begins when told."""
    from helpers import notebook, settings  # noqa: F401 - as far as a kernel is before somebody presses Run

    told = sys.stdout
    os.nice(10)
    print("ready", file=told, flush=True)
    sys.stdin.readline()
    began, figures, error = time.perf_counter(), {}, ""
    for number, parameters in CLASS.items():
        path = next(path for path in NOTEBOOKS if path.stem.startswith(number))
        start, space = time.perf_counter(), {"__name__": "__main__"}
        try:
            for title, cell in sections(nbformat.read(path, as_version=4).cells):
                if cell.cell_type != "code":
                    continue
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(cell.source, f"{path.stem}: {title}", "exec"), space)  # noqa: S102 - our notebooks
                if "parameters" in cell.metadata.get("tags", ()):
                    space |= parameters
                if number == "1" and title.startswith(DELIVERED):
                    figures["products in my bucket"] = time.perf_counter() - began
        except BaseException as problem:  # noqa: BLE001 - counted, and said
            error = f"{path.stem}: {type(problem).__name__}: {problem}"
            break
        figures[path.stem] = time.perf_counter() - start
    figures["everything"] = time.perf_counter() - began
    memory = psutil.Process().memory_info().rss
    print(json.dumps({"figures": figures, "error": error, "memory": memory}), file=told, flush=True)


def measure_class(count: int) -> dict[str, Any]:
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, shared(Path(folder)) as (url, process):
        people = []
        for number in range(count):
            home = f"{folder}/person-{number}"
            env = os.environ | {"RECIPES_SANDBOX_URL": url, "RECIPES_SANDBOX_USER": f"person-{number}"}
            env |= {"RECIPES_STATE_DIR": f"{home}/state", "RECIPES_OUTPUT_DIR": f"{home}/outputs"}
            # A kernel's libraries would start a thread per core each.
            env |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
            command = [sys.executable, __file__, "client"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            people.append(subprocess.Popen(command, env=env, cwd=PROJECT, stderr=subprocess.DEVNULL, **pipes))
        for person in people:
            assert person.stdout.readline().strip() == "ready"  # noqa: S101
        watch, began = Watch(process), time.perf_counter()
        idle = process.memory_full_info().pss
        watch.start()
        for person in people:
            person.stdin.write("go\n")
            person.stdin.flush()
        told = [json.loads(person.stdout.readline()) for person in people]
        wall = time.perf_counter() - began
        watch.stop()
        for person in people:
            person.wait(60)
    errors = [each["error"] for each in told if each["error"]]
    names = [name for name in told[0]["figures"] if all(name in each["figures"] for each in told)]
    times = {name: sorted(each["figures"][name] for each in told) for name in names}
    found = {
        "people": count,
        "load before": load,
        "errors": errors,
        "seconds": {n: {"p50": statistics.median(t), "p95": t[-1 - len(t) // 20]} for n, t in times.items()},
        "wall": wall,
        "sandbox: MB idle": idle / MB,
        "sandbox: MB at most": watch.own_peak / MB,
        "sandbox with database and API: MB at most": watch.peak / MB,
        "sandbox: CPU seconds": watch.cpu.get(process.pid, 0),
        "sandbox with database and API: CPU seconds": sum(watch.cpu.values()),
        "client: MB": statistics.median(each["memory"] for each in told) / MB,
    }
    print(f"\n{count} at a time (load before: {load:.1f}): {len(errors)} errors, all done after {wall:.0f} s")
    for name, each in found["seconds"].items():
        print(f"    {name:28} p50 {each['p50']:6.1f} s   p95 {each['p95']:6.1f} s")
    for name, value in found.items():
        if name.startswith(("sandbox", "client")):
            print(f"    {name:44} {value:8.0f}")
    for error in errors[:5]:
        print(f"    {error[:300]}")
    return found


# --- a sandbox of one's own ---

OWN = """
import time, psutil
process = psutil.Process()
from helpers import notebook, settings
before, began = process.memory_full_info().pss, time.perf_counter()
loaded = settings.load()
started, idle = time.perf_counter() - began, process.memory_full_info().pss - before
began = time.perf_counter()
loaded.require("catalog")
print(started, idle / 1e6, time.perf_counter() - began)
"""


def measure_own() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"RECIPES_STATE_DIR": folder, "RECIPES_OUTPUT_DIR": folder, "MPLBACKEND": "Agg"}
        pipes = {"stdout": subprocess.PIPE, "text": True, "env": env, "cwd": PROJECT}
        names = ("seconds to start", "MB when it has started", "seconds to start the catalogue")
        answer = subprocess.run([sys.executable, "-c", OWN], check=True, **pipes)
        found = dict(zip(names, map(float, answer.stdout.split()), strict=True))
        person = subprocess.Popen([sys.executable, __file__, "client"], stdin=subprocess.PIPE, **pipes)
        person.stdout.readline()
        watch = Watch(psutil.Process(person.pid))
        watch.start()
        person.stdin.write("go\n")
        person.stdin.flush()
        told = json.loads(person.stdout.readline())
        watch.stop()
        person.wait(60)
    if told["error"]:
        raise SystemExit(told["error"])
    found["MB at most, notebook, sandbox, database and API together"] = watch.peak / MB
    print("\nA sandbox of one's own, in the notebook's process:")
    for name, value in found.items():
        print(f"    {name:58} {value:8.1f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", choices=["sections", "class", "own", "client", []], help="(all)")
    parser.add_argument("--people", type=int, default=30, help="of the class (%(default)s)")
    options = parser.parse_args()
    what = options.what or ["sections", "class", "own"]
    if what == ["client"]:
        return client()
    if "sections" in what:
        keep("workshop", {"sections": measure_sections()})
    if "class" in what:
        keep("workshop", {"class of 1": measure_class(1), f"class of {options.people}": measure_class(options.people)})
    if "own" in what:
        keep("workshop", {"own": measure_own()})
    return None


if __name__ == "__main__":
    main()
