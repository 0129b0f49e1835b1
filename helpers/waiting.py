"""One way to wait for remote work: look, say what changed, look again later, stop at a deadline."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from .errors import FailedRemotely, TimedOut

#: Errors while looking that mean nothing about the work: the next look may be fine.
PASSING = (TimedOut, FailedRemotely)


@dataclass(frozen=True)
class Change:
    """``item`` was first seen in ``state`` at ``time`` (UTC)."""

    time: datetime
    item: str
    state: str


def until_finished(
    look: Callable[[], dict[str, str]],
    finished: tuple[str, ...],
    *,
    deadline: float,
    first: float = 0.5,
    longest: float = 60.0,
    patience: int = 5,
    show: Callable[[str], None] = print,
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
        Gets one line for each change of state.

    Raises
    ------
    TimedOut
        The deadline passed. Nothing is lost: calling again carries on.
    """
    end = time.monotonic() + deadline
    seen: dict[str, str] = {}
    changes: list[Change] = []
    failures = 0
    for pause in _pauses(first, longest):
        try:
            states = look()
            failures = 0
        except PASSING as error:
            failures += 1
            if failures > patience:
                raise TimedOut(f"{failures} looks in a row failed, the last one like this: {error}") from None
            states = {}
        for item, state in states.items():
            if seen.get(item) != state:
                change = Change(datetime.now(UTC), item, state)
                show(f"{change.time:%H:%M:%S}  {item}: {f'{seen[item]} -> ' if item in seen else ''}{state}")
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
