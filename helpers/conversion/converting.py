"""The service converts a product: one attempt at a time, found again after a kill, without a trace if it fails."""

import json
import threading
import time
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from ..errors import FailedRemotely, Rejected
from . import services as remote
from .services import redacted
from .work import Overdue, Work, lost_job

#: First pauses without anything new, until a conversion whose record has vanished counts as dead.
SILENCE = 30


def convert(work: Work, safe_uri: str) -> str:
    """The address of the Zarr, as the service gives it: converted now, or by a job that an earlier run has started.

    Every attempt has a folder of its own, so that none can disturb another or what is published.

    Raises
    ------
    FailedRemotely
        The job failed, with what it said; nothing is left of it. Worth another try.
    Rejected
        Somebody cancelled it.
    Overdue
        The deadline has passed; the job was cancelled.
    """
    attempt = _attempt(work, safe_uri)
    if attempt.get("zarr"):
        return attempt["zarr"]
    told = deque[str](maxlen=remote.LOG_LINES)
    listening = threading.Thread(target=work.services.listen, args=(attempt["job"], told.append), daemon=True)
    listening.start()
    try:
        job = work.wait("dpr", attempt["job"])
    except Overdue:
        discard(work, attempt)
        raise
    attempt["over"] = True
    if job and job["status"] in (remote.FAILED, remote.DISMISSED):
        listening.join(2)  # its last words may still be on their way
        discard(work, attempt)
        if job["status"] == remote.DISMISSED:
            raise Rejected("the conversion was cancelled by somebody")
        last = f" The log ends with: {' / '.join(redacted(list(told)))}" if told else ""
        raise FailedRemotely(f"the conversion failed: {redacted(job.get('message')) or 'no reason is given'}{last}")
    zarr = _address(job, attempt) or _found_whole(work, attempt)
    if not zarr or not work.store.has_zarr(zarr):
        discard(work, attempt)
        what = f"says that it is done ({redacted(job.get('message'))})" if job else "has vanished"
        raise FailedRemotely(f"the conversion's job {what}, and there is no Zarr that is certainly whole")
    _note_attempt(work, attempt | {"zarr": zarr})
    return zarr


def _attempt(work: Work, safe_uri: str) -> dict:
    """The attempt to wait for: the last one if it can still come to something, or a new one."""
    last = (work.notes.get("attempts") or [{}])[-1]
    if last and not last.get("job") and not last.get("over"):
        # Sent, but the answer never came. Perhaps somebody else's job: it is waited for, and never cancelled.
        last |= {"job": lost_job(work, "dpr", last["sent"]), "perhaps": True}
    if last.get("zarr") and work.store.has_zarr(last["zarr"]):
        return last
    if last.get("job") and not last.get("over"):
        return last
    attempt = {"folder": f"{work.plan.output}/{work.run_id}-{uuid4().hex[:8]}", "sent": datetime.now(UTC).isoformat()}
    _note_attempt(work, attempt)
    attempt["job"] = work.services.convert(safe_uri, attempt["folder"], *work.cluster)["jobID"]
    _note_attempt(work, attempt)
    return attempt


def _note_attempt(work: Work, attempt: dict) -> None:
    others = [one for one in work.notes.get("attempts") or [] if one["folder"] != attempt["folder"]]
    work.notes.save(attempts=[*others, attempt])


def _address(job: dict | None, attempt: dict) -> str:
    """The Zarr's address in the job's message, which is JSON as text (or, in some releases, as it is); "" without."""
    message: Any = (job or {}).get("message")
    if isinstance(message, str):
        with suppress(ValueError):
            message = json.loads(message)
    found = message.get("zarr_uri") if isinstance(message, dict) else None
    # In the folder that is this attempt's alone: anything else is another job's.
    return found.rstrip("/") if isinstance(found, str) and found.startswith(f"{attempt['folder']}/") else ""


def _found_whole(work: Work, attempt: dict) -> str:
    """The Zarr in the attempt's own folder, when what the service should have said got lost; "" if none comes.

    It may still be written: as long as something arrives, there is hope.
    """
    before, since = None, time.monotonic()
    while work.left() and time.monotonic() - since < SILENCE * work.poll:
        work.check_stop()
        if len(found := work.store.whole_zarrs(attempt["folder"])) == 1:
            return found[0]
        if (now := work.store.objects(attempt["folder"])) != before:
            before, since = now, time.monotonic()
        work.stop.wait(work.poll)
    return ""


def discard(work: Work, attempt: dict) -> None:
    """Cancel an attempt's job, if need be, and remove what it wrote."""
    running = attempt.get("job") and not attempt.get("over")
    if running and not attempt.get("perhaps"):
        work.services.cancel(attempt["job"])
    _note_attempt(work, {"folder": attempt["folder"], "job": attempt.get("job"), "over": True})
    work.store.remove(attempt["folder"])
    for _ in range(3 if running else 0):  # who was cancelled may still be writing
        work.stop.wait(2 * work.poll)
        work.store.remove(attempt["folder"])
