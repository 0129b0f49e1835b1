"""One way to wait for remote work: look, say what changed, look again later, stop at a deadline."""

import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from .errors import FailedRemotely, TimedOut

#: Errors while looking that mean nothing about the work: the next look may be fine.
PASSING = (TimedOut, FailedRemotely)


@dataclass(frozen=True)
class Change:
    """``item`` was first seen in ``state`` at ``time`` (UTC); ``why``, if there is more to say about it."""

    time: datetime
    item: str
    state: str
    why: str = ""


class Watcher:
    """Is told how a wait goes, and makes a line of each change; a notebook's board makes a table of all.

    It may be told from several threads, and is given wherever ``show`` takes something that shows a line.
    """

    def __init__(self, show: Callable[[str], object] = print):
        self._show = show

    def __call__(self, line: str) -> None:
        """Something worth saying that is no change."""
        self._show(line)

    def begin(self, finished: Iterable[str], deadline: float | None = None) -> None:
        """A wait begins: the states in which an item stays, and seconds until it is given up (None: never)."""

    def expect(self, items: Iterable[str]) -> None:
        """These will come, and have not begun."""

    def changed(self, change: Change, before: str = "") -> None:
        """An item is in another state than ``before`` ("": whatever that was)."""
        why = f": {change.why}" if change.why else ""
        came = f"{before} -> " if before else ""
        self._show(f"{change.time:%H:%M:%S}  {change.item}: {came}{change.state}{why}")

    def looked(self, problem: str = "") -> None:
        """Somebody looked, and got an answer, or had this problem."""

    def end(self, error: BaseException | None = None) -> None:
        """The wait is over: because all have finished, or because of an error."""


@contextmanager
def watched(show: Callable[[str], object], finished: Iterable[str], deadline: float | None = None) -> Iterator[Watcher]:
    """``show`` as a :class:`Watcher` that is told of beginning and end."""
    watcher = show if isinstance(show, Watcher) else Watcher(show)
    try:
        watcher.begin(finished, deadline)
        yield watcher
    except BaseException as error:  # an interrupted kernel above all
        watcher.end(error)
        raise
    watcher.end()


def until_finished(
    look: Callable[[], dict[str, str]],
    finished: tuple[str, ...],
    *,
    deadline: float,
    first: float = 0.5,
    longest: float = 60.0,
    patience: int = 5,
    show: Callable[[str], object] = print,
) -> list[Change]:
    """Look until every item is in a finished state; return what changed, in order.

    Parameters
    ----------
    look:
        Asks the service; returns the state of every item by its short name.
    finished:
        States in which an item stays.
    deadline:
        Seconds until giving up.
    first, longest:
        Shortest and longest pause between two looks, in seconds. Pauses grow by a quarter, with jitter so that many
        clients do not ask in step.
    patience:
        How many looks in a row may fail because the service does not answer, or has a problem.
    show:
        Gets one line for each change of state; or a :class:`Watcher`, such as a notebook's board.

    Raises
    ------
    TimedOut
        The deadline passed. Nothing is lost: calling again carries on.
    """
    with watched(show, finished, deadline) as watcher:
        end = time.monotonic() + deadline
        seen: dict[str, str] = {}
        changes: list[Change] = []
        failures = 0
        for pause in _pauses(first, longest):
            try:
                states = look()
                failures = 0
                watcher.looked()
            except PASSING as error:
                failures += 1
                if failures > patience:
                    raise TimedOut(f"{failures} looks in a row failed, the last one like this: {error}") from None
                watcher.looked(str(error))
                states = {}
            for item, state in states.items():
                if (before := seen.get(item)) != state:
                    change = Change(datetime.now(UTC), item, state)
                    watcher.changed(change, before or "")
                    seen[item] = state
                    changes.append(change)
            if states and all(state in finished for state in states.values()):
                return changes
            if time.monotonic() + pause > end:
                left = [item for item, state in seen.items() if state not in finished]
                raise TimedOut(
                    f"Not finished after {deadline:g} s: {', '.join(left) or 'no answer yet'}."
                    " The work goes on remotely; run this cell again to carry on waiting."
                )
            time.sleep(pause)
        raise AssertionError("pauses never end")


def _pauses(pause: float, longest: float) -> Iterator[float]:
    while True:
        yield min(pause, longest) * random.uniform(0.9, 1.1)  # noqa: S311 - jitter, not cryptography
        pause = min(pause * 1.25, longest)
