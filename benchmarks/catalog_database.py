"""The row `database` of catalog.py: how long the sandbox's PostgreSQL with pgstac takes, and the STAC API over it."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.sandbox import postgres
from helpers.sandbox.stac_server import Catalogue


def database(world: Any) -> list[tuple[str, str, dict]]:
    """From nothing (initdb, start, migrate, pack), from the packed cluster, emptied again, and with the API."""
    with tempfile.TemporaryDirectory() as cache:
        clusters = [postgres.Cluster(cache_folder=Path(cache)) for _ in range(world.rounds + 1)]
        try:
            nothing, *cached = (_seconds(cluster.start) for cluster in clusters)
            clusters[-1].create("used")
            emptied = _seconds(lambda: (clusters[-1].drop("used"), clusters[-1].create("used")))
        finally:
            for cluster in clusters:
                cluster.stop()
    both = Catalogue("127.0.0.1", 0, None, lambda app: None)
    try:
        with_api = _seconds(both.start)
    finally:
        both.stop()
    found = {
        "from nothing": nothing,
        "from a cached cluster": statistics.median(cached),
        "a used database emptied": emptied,
        "cached, with the STAC API": with_api,
    }
    return [(name, f"{seconds:8.2f} s", {"seconds": seconds}) for name, seconds in found.items()]


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
