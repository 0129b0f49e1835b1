"""What a run must remember to be repeatable: one small JSON file for each run, written before and after each act."""

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import Rejected
from .settings import Settings

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class RunState:
    """The memory of one run: ``state["key"]`` reads, :meth:`save` writes through to disk atomically.

    Parameters
    ----------
    settings:
        Decide the folder; every service (and every sandbox) has its own, so that state of one is never taken for
        another's.
    recipe, run_id:
        Name the file. ``run_id``: letters, digits, ".", "_", "-", at most 64.

    Raises
    ------
    Rejected
        The run id does not fit, or the run was cleaned up (``cleaning``: that is what we are here for).
    """

    def __init__(self, settings: Settings, recipe: str, run_id: str, *, cleaning: bool = False):
        if not RUN_ID.fullmatch(run_id):
            raise Rejected(
                f"run_id {run_id!r}: use 1 to 64 letters, digits, '.', '_' or '-', beginning with one of the first two."
            )
        self.path = settings.state_dir / settings.service_name(recipe) / recipe / f"{run_id}.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.get("cleaning") and not cleaning:
            raise Rejected(
                f"Run {run_id} was cleaned up: its products are gone. Choose another run_id."
                if self.get("cleaned")
                else f"Cleaning up run {run_id} was interrupted. Finish it: python -m helpers cleanup {run_id}"
            )

    def get(self, key: str, default: Any = None) -> Any:
        """The remembered value of ``key``."""
        return self._read(self.path).get(key, default)

    def save(self, **values: Any) -> None:
        """Remember ``values`` (JSON): on disk when this returns, never half written."""
        content = self._read(self.path) | values
        part = self.path.with_suffix(f".{os.getpid()}.part")
        with part.open("w") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)

    def of_all_runs(self, key: str) -> list[Any]:
        """What every run of this recipe remembers under ``key``."""
        return _of_all_runs(self.path.parent, key)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs of this recipe on this machine waiting until the block ends.

        All of them, not only those with the same run id: who looks for his lost jobs must not find another's new ones.
        """
        with (self.path.parent / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @property
    def known(self) -> bool:
        """Whether this run has remembered anything."""
        return self.path.exists()

    @staticmethod
    def _read(path: Path) -> dict:
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            return {}


def of_all_runs(settings: Settings, recipe: str, key: str) -> list[Any]:
    """What every run of a recipe at this service remembers under ``key``, for who only looks: nothing is made."""
    return _of_all_runs(settings.state_dir / settings.service_name(recipe) / recipe, key)


def _of_all_runs(folder: Path, key: str) -> list[Any]:
    runs = (RunState._read(path) for path in folder.glob("*.json"))
    return [run[key] for run in runs if key in run]
