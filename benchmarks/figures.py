"""What every benchmark does with its figures: rows told as they come, all kept beside those of earlier runs."""

import json
import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).resolve().parent.parent / "outputs" / "benchmarks"
#: Name of a side, what is told of it, its figures.
Rows = list[tuple[str, str, dict]]


def measure(names: Iterable[str], targets: dict[str, str], of: Callable[[str], Rows]) -> dict[str, Any]:
    """The figures of each row in ``names``, by side; ``of`` measures one."""
    figures: dict[str, Any] = {}
    for name in names:
        print(f"{name}: to reach {targets[name]}", flush=True)
        rows = of(name)
        for side, text, _ in rows:
            print(f"    {side:28} {text}", flush=True)
        figures[name] = {side: found for side, _, found in rows}
    return figures


def keep(benchmark: str, figures: dict[str, Any]) -> None:
    """Write ``outputs/benchmarks/<benchmark>.json``; rows that were not measured this time stay as they are."""
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    target = OUTPUT / f"{benchmark}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(target.read_text()).get("figures", {}) if target.exists() else {}
    target.write_text(json.dumps(machine | {"figures": before | figures}, indent=1) + "\n")
