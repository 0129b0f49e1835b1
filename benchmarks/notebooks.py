"""How long a notebook takes, warm: our runner beside the papermill command line, in turn, in one run.

    make bench                                   (or: python benchmarks/notebooks.py --rounds 5)

Prints a table of medians and keeps every figure in outputs/benchmarks/notebooks.json. Each run has a sandbox and a
state folder of its own, so that none finds its work done. Read the ratios: machines differ, and are noisy.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def commands(notebook: Path, folder: Path) -> dict[str, list[str]]:
    """What is compared: name and command line."""
    return {
        "runner": [sys.executable, "-m", "helpers", "run", str(notebook), "-o", str(folder)],
        "runner, no web page": [sys.executable, "-m", "helpers", "run", str(notebook), "-o", str(folder), "--no-html"],
        "papermill": [sys.executable, "-m", "papermill", str(notebook), str(folder / "out.ipynb"), "--no-progress-bar"],
    }


def seconds(name: str, notebook: Path) -> float:
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"RECIPES_STATE_DIR": f"{folder}/state", "RECIPES_OUTPUT_DIR": f"{folder}/outputs"}
        began = time.perf_counter()
        command = commands(notebook, Path(folder))[name]
        subprocess.run(command, env=env, check=True, capture_output=True, cwd=PROJECT)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds after one that is not (%(default)s)")
    rounds = parser.parse_args().rounds
    figures = []
    for notebook in sorted((PROJECT / "notebooks").glob("[1-9]_*.ipynb")):
        names = commands(notebook, Path())
        times: dict[str, list[float]] = {name: [] for name in names}
        for n in range(rounds + 1):
            for name in names:
                taken = seconds(name, notebook)
                if n:  # the first round warms the disk cache
                    times[name].append(taken)
        peer = statistics.median(times["papermill"])
        for name, taken in times.items():
            median = statistics.median(taken)
            print(f"{notebook.stem:28} {name:22} median {median:5.1f} s   x {median / peer:.2f} of papermill")
            figures.append({"notebook": notebook.stem, "what": name, "seconds": taken, "median": median})
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    target = PROJECT / "outputs" / "benchmarks" / "notebooks.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(machine | {"figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
