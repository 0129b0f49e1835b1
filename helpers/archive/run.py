"""Many transfers in one run: none stops another, a bad quarter of an hour is waited out, and each is written down.

What fails for a reason that may pass is tried again in a later pass, not at once: while a service is down or asks for
fewer requests, repeating each request by itself only adds to them, and botocore's own retries end after a budget that
an outage uses up.
"""

import csv
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self

from ..errors import RecipeError
from ..progress import Progress, told
from ..waiting import PASSING
from .store import CredentialsRefused, Throttled

#: At a time. Also the most requests that can be sent in vain when credentials end: those that are under way.
WORKERS = 50
#: Seconds without any success until a run gives up: longer than S3's usual troubles.
PATIENCE = 180.0
#: Failures of one object, while others succeed, until it is given up. With every second request refused, one object in
#: a million fails so often.
TRIES = 20
#: Pauses between passes, in seconds: the first, and the longest.
FIRST, LONGEST = 0.1, 3.0

COPIED, FAILED, NOT_TRIED = "copied", "failed", "not tried"


@dataclass(frozen=True)
class Task:
    """One file to bring from ``source`` to ``target`` (addresses, for people and the manifest); ``item``: the rest."""

    source: str
    target: str
    bytes: int
    item: Any = None


@dataclass(frozen=True)
class Outcome:
    """What became of one file. ``checksum`` is the target's ETag; ``outcome`` "copied", "failed" or "not tried"."""

    source: str
    target: str
    bytes: int
    checksum: str
    seconds: float
    outcome: str
    reason: str = ""


class Manifest:
    """A CSV file with one line for each outcome, written as it comes; without a path, nothing is written.

    A run that is killed leaves all lines up to then, the last perhaps unfinished.
    """

    COLUMNS = ("source", "target", "bytes", "checksum", "time", "outcome", "reason")

    def __init__(self, path: Path | None):
        self.path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+", newline="", buffering=1)
            self._file.seek(0)
            if not (text := self._file.read()):
                csv.writer(self._file).writerow(self.COLUMNS)
            elif not text.endswith("\n"):
                self._file.write("\n")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def add(self, outcome: Outcome) -> None:
        if self._file:
            row = asdict(outcome) | {"time": datetime.now(UTC).isoformat(timespec="seconds")}
            csv.writer(self._file).writerow([row[name] for name in self.COLUMNS])


class Pace:
    """How many may work at once: halved when the service asks for less, and more again with each success."""

    def __init__(self, most: int):
        self.most, self.allowed, self.busy = most, float(most), 0
        self._changed, self._slowed = threading.Condition(), 0.0

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.busy < int(self.allowed))
            self.busy += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self.busy -= 1
            self._changed.notify()

    def slower(self) -> None:
        with self._changed:
            # One wave of refusals counts once: its requests were sent before anybody could know.
            if time.monotonic() - self._slowed > 0.5:
                self._slowed = time.monotonic()
                self.allowed = max(self.allowed / 2, self.most / 8, 1)

    def faster(self) -> None:
        with self._changed:
            self.allowed = min(self.allowed + 0.125, self.most)
            self._changed.notify()


class Run:
    """Do ``do(item)`` for every task; it returns the target's checksum, or raises.

    Parameters
    ----------
    do:
        May be repeated. TimedOut and FailedRemotely mean: perhaps later; CredentialsRefused: nothing will work any
        more; anything else: not this one.
    keep:
        Gets each outcome as it comes.
    show:
        Gets a line every few seconds; or a :class:`helpers.progress.Progress` that has begun already.
    stop:
        Set it, and what is under way is finished and the rest left.
    patience:
        Seconds without any success until giving up.
    """

    def __init__(
        self,
        do: Callable[[Any], str],
        *,
        workers: int = WORKERS,
        keep: Callable[[Outcome], None] = lambda outcome: None,
        show: Callable[[str], object] = print,
        stop: threading.Event | None = None,
        patience: float = PATIENCE,
    ):
        self.do, self.workers, self.keep, self.show, self.patience = do, workers, keep, show, patience
        self.stop = stop or threading.Event()
        self.over = ""  #: why nothing more is tried
        self._pace = Pace(workers)
        self._in_a_row = 0

    def __call__(self, tasks: list[Task]) -> list[Outcome]:
        if not tasks:
            return []
        begun = isinstance(self.show, Progress)
        with nullcontext(self.show) if begun else told_of(tasks, self.show) as progress:
            return self._all(tasks, progress)

    def _all(self, tasks: list[Task], progress: Progress) -> list[Outcome]:
        outcomes: list[Outcome] = []

        def settle(task: Task, outcome: str, *, checksum: str = "", seconds: float = 0.0, reason: str = "") -> None:
            done = Outcome(task.source, task.target, task.bytes, checksum, round(seconds, 3), outcome, reason)
            outcomes.append(done)
            self.keep(done)
            tell(progress, done)

        todo, tries, reasons = list(tasks), dict[str, int](), dict[str, str]()
        bad_since, pause = None, FIRST
        while todo:
            better, again, untried = False, [], []
            for task, result, seconds in self._pass(todo):
                if result is None:
                    untried.append(task)
                elif isinstance(result, str):
                    better = True
                    settle(task, COPIED, checksum=result, seconds=seconds)
                elif isinstance(result, PASSING):
                    again.append(task)
                    progress.tries_again(task.target, str(result))
                    reasons[task.target] = str(result)
                else:
                    settle(task, FAILED, seconds=seconds, reason=_in_words(result))
            now = time.monotonic()
            if better:
                bad_since, pause = None, FIRST
            elif bad_since is None:
                bad_since = now
            for task in again if better else ():
                tries[task.target] = tries.get(task.target, 0) + 1
            todo = untried + [task for task in again if tries.get(task.target, 0) < TRIES]
            for task in (task for task in again if tries.get(task.target, 0) >= TRIES):
                settle(task, FAILED, reason=f"tried {TRIES} times: {reasons[task.target]}")
            if bad_since is not None and now - bad_since > self.patience:
                self.over = self.over or f"nothing worked for {self.patience:g} s"
            if self.stop.is_set():
                self.over = self.over or "stopped"
            if self.over:
                break
            if todo:
                self.stop.wait(pause)
                pause = min(pause * 2, LONGEST)
        for task in todo:
            reason = reasons.get(task.target, "")
            settle(task, FAILED if reason else NOT_TRIED, reason="; ".join(filter(None, (self.over, reason))))
        return outcomes

    def _pass(self, tasks: list[Task]) -> Iterator[tuple[Task, str | Exception | None, float]]:
        """Try each once, and yield what came of it; after too many failures in a row the rest untried (None)."""
        results: queue.SimpleQueue = queue.SimpleQueue()
        waiting, taking = iter(tasks), threading.Lock()
        self._in_a_row, ended = 0, threading.Event()

        def work() -> None:
            while not (ended.is_set() or self.over or self.stop.is_set() or self._in_a_row >= self.workers):
                with taking:
                    task = next(waiting, None)
                if task is None:
                    break
                with self._pace:
                    began = time.monotonic()
                    results.put((task, self._try(task), time.monotonic() - began))
            results.put(None)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(self.workers, len(tasks)))]
        for thread in threads:
            thread.start()
        try:
            busy = len(threads)
            while busy:
                if (result := results.get()) is None:
                    busy -= 1
                else:
                    yield result
        finally:
            ended.set()  # an interrupt ends the run here: what is under way is finished
            for thread in threads:
                thread.join()
        yield from ((task, None, 0.0) for task in waiting)

    def _try(self, task: Task) -> str | Exception:
        try:
            result = self.do(task.item)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not stop the others
            if isinstance(error, PASSING):
                self._in_a_row += 1
                if isinstance(error, Throttled):
                    self._pace.slower()
            elif isinstance(error, CredentialsRefused):
                self.over = str(error)
            return error
        self._in_a_row = 0
        self._pace.faster()
        return result


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, RecipeError) else f"{type(error).__name__}: {error}"


def told_of(tasks: list[Task], show: Callable[[str], object]) -> Any:
    """The progress of these tasks, for a ``with`` statement: see :func:`helpers.progress.told`."""
    return told(show, len(tasks), sum(task.bytes for task in tasks))


def tell(progress: Progress, outcome: Outcome) -> None:
    """Say what became of one file."""
    if outcome.outcome == COPIED:
        progress.finished(outcome.target, outcome.bytes)
    else:
        progress.gave_up(outcome.target, outcome.reason)


def read_manifest(path: Path) -> list[dict[str, str]]:
    """The lines of a manifest that are whole."""
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["reason"] is not None and row["outcome"]]
