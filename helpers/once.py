"""Ask a service for work exactly once, whatever becomes of the answer: note before and after, look before repeating."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from . import http
from .errors import FailedRemotely, Rejected, TimedOut
from .state import RunState

#: Where in a run's state the notes are: a list of {"request", "id" (None: not known to be there), "sent" (or None)}.
NOTES = "submissions"


def submit(
    requests: list,
    state: RunState,
    *,
    send: Callable[[list], list],
    find: Callable[[list, datetime | None, set], list],
    settle: float,
    chunk: int = 1,
    tries: int = 3,
    look_first: bool = False,
    show: Callable[[str], None] = print,
) -> list:
    """Send the requests that this run has not sent yet; return the ids of all of them, in the given order.

    A note is written before and after each sending. When an answer is lost (broken connection, killed kernel, 5xx),
    the service is asked whether it has the request before anything is sent again.

    Parameters
    ----------
    requests:
        What to ask for, as JSON, each once. They are stored: no secrets in them.
    state:
        The run's memory: the same run id never sends the same request twice.
    send:
        Sends some requests at once, all or none of which the service takes; returns their ids.
    find:
        ``find(lost, since, taken)``: the id of each request in ``lost`` that the service has, or None; nothing from
        before ``since`` (None: of any age), and none of the ids in ``taken``, which belong to other requests.
    settle:
        Seconds after a lost request until it certainly either worked or did not.
    chunk, tries:
        How many requests are sent at once; how often they are sent at most.
    look_first:
        Look even for what this machine has not sent: another one may have, under the same unique name.

    Raises
    ------
    Rejected
        What the service says; nothing of that chunk was taken.
    TimedOut
        The service does not answer; run again to carry on.
    """
    with state.alone():
        entries = _entries(requests, state)
        known = sum(entry["id"] is not None for entry in entries)
        _recover(entries, state, find, settle, look_first)
        missing = [entry for entry in entries if entry["id"] is None]
        found = len(entries) - len(missing) - known
        for start in range(0, len(missing), chunk):
            _send(missing[start : start + chunk], state, send, find, settle, tries)
    counts = {"submitted": len(missing), "reused": known, "found again after a lost answer": found}
    show(", ".join(f"{count} {what}" for what, count in counts.items() if count))
    return [entry["id"] for entry in entries]


def not_yet(requests: list, state: RunState) -> list:
    """Those of ``requests`` that this run has not sent, as far as its notes say."""
    sent = {key for key, entry in _noted(state).items() if entry["id"] is not None}
    return [request for request in requests if _key(request) not in sent]


def _key(request: object) -> str:
    return json.dumps(request, sort_keys=True)


def _noted(state: RunState) -> dict[str, dict]:
    return {_key(entry["request"]): entry for entry in state.get(NOTES, [])}


def _entries(requests: list, state: RunState) -> list[dict]:
    """The run's notes for ``requests``: old ones where there are any, new ones otherwise."""
    noted = _noted(state)
    entries = [noted.setdefault(_key(one), {"request": one, "id": None, "sent": None}) for one in requests]
    state.save(**{NOTES: list(noted.values())})
    return entries


def _note(entries: list[dict], state: RunState) -> None:
    noted = _noted(state) | {_key(entry["request"]): entry for entry in entries}
    state.save(**{NOTES: list(noted.values())})


def _recover(entries: list[dict], state: RunState, find: Callable, settle: float, look_first: bool = False) -> None:
    """Look for requests that were sent but whose answer never came, until they can no longer appear."""
    lost = [entry for entry in entries if entry["id"] is None and (entry["sent"] or look_first)]
    while lost:
        _look(lost, state, find)
        lost = [entry for entry in lost if entry["id"] is None and entry["sent"]]
        ages = [(datetime.now(UTC) - datetime.fromisoformat(entry["sent"])).total_seconds() for entry in lost]
        if not lost or min(ages) > settle:
            return
        time.sleep(min(1.0, settle / 5))


def _look(lost: list[dict], state: RunState, find: Callable) -> None:
    taken = {entry["id"] for notes in state.of_all_runs(NOTES) for entry in notes}
    times = [entry["sent"] and datetime.fromisoformat(entry["sent"]) for entry in lost]
    # A minute of grace: the service's clock is not ours.
    since = min(times) - timedelta(minutes=1) if all(times) else None
    for entry, found in zip(lost, find([entry["request"] for entry in lost], since, taken), strict=True):
        entry["id"] = found
    _note(lost, state)


def _send(chunk: list[dict], state: RunState, send: Callable, find: Callable, settle: float, tries: int) -> None:
    for _ in range(tries):
        _mark(chunk, state, datetime.now(UTC).isoformat())
        try:
            ids = send([entry["request"] for entry in chunk])
        except Rejected:
            _mark(chunk, state, None)
            raise
        except http.Throttled as error:
            _mark(chunk, state, None)
            if error.seconds > http.LONGEST_PAUSE:
                raise
            time.sleep(error.seconds)
        except (TimedOut, FailedRemotely):
            # Did it work? All of the chunk are there, or none.
            _recover(chunk, state, find, settle)
            if all(entry["id"] is not None for entry in chunk):
                return
        else:
            for entry, new in zip(chunk, ids, strict=True):
                entry["id"] = new
            _note(chunk, state)
            return
    raise TimedOut(f"The service took none of {tries} submissions; nothing was submitted. Run again later.")


def _mark(chunk: list[dict], state: RunState, sent: str | None) -> None:
    for entry in chunk:
        entry["sent"] = sent
    _note(chunk, state)
