"""One product on its way: what the steps need, what is remembered of it, and how to wait for its jobs."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ..errors import FailedRemotely, RecipeError, Rejected, TimedOut
from ..state import RunState
from ..waiting import until_finished
from . import services as remote
from .planning import Plan
from .services import CONVERSION, STAGING, Services
from .storing import Store

#: What a job is when its record is not there any more.
VANISHED = "vanished"
#: How many times something is tried that must not be left undone: publishing, removing.
TRIES = 4
#: The service's clock is not ours.
GRACE = timedelta(minutes=1)


class Damaged(FailedRemotely):
    """What was staged is not the product: it has to be staged again."""


class Overdue(TimedOut):
    """The deadline has passed: no retry changes that."""


class Stopped(RecipeError):
    """The run was interrupted. What is under way remotely is found again by the next run."""


class Notes:
    """What is remembered of one product in one run."""

    def __init__(self, state: RunState, item_id: str):
        self._state, self._id = state, item_id

    def get(self, key: str, default: Any = None) -> Any:
        return self._state.get("items", {}).get(self._id, {}).get(key, default)

    def save(self, **values: Any) -> None:
        with self._state.alone():
            items = self._state.get("items", {})
            self._state.save(items=items | {self._id: items.get(self._id, {}) | values})

    def jobs(self) -> set[str]:
        """The jobs that any run on this machine has noted."""
        noted = [item for run in self._state.of_all_runs("items") for item in run.values()]
        attempts = [a for item in noted for a in [item.get("staging") or {}, *(item.get("attempts") or [])]]
        return {attempt["job"] for attempt in attempts if attempt.get("job")}


class Work:
    """One product on its way, and what the steps need."""

    def __init__(
        self,
        plan: Plan,
        services: Services,
        store: Store,
        notes: Notes,
        *,
        scratch: Path,
        poll: float,
        storage_options: dict | None = None,
        cluster: tuple[str, str] = ("", ""),
        deadline: float = 0.0,
        stop: threading.Event | None = None,
        keep_staged: bool = False,
        run_id: str = "",
    ):
        self.plan, self.services, self.store, self.notes = plan, services, store, notes
        self.storage_options, self.scratch, self.cluster = storage_options or {}, scratch, cluster
        self.poll, self.end, self.stop = poll, time.monotonic() + deadline, stop or threading.Event()
        self.keep_staged, self.run_id = keep_staged, run_id
        self.bytes_in = self.bytes_out = 0  #: of the archive (or tree), and of the Zarr
        self.mended: list[str] = []
        self.unsure = False  #: whether the item is published could not be found out

    def wait(self, service: str, job_id: str) -> dict | None:
        """The job when it is over; None if its record has vanished.

        Raises
        ------
        Overdue
            The deadline has passed.
        TimedOut
            The service does not answer.
        """
        last: dict | None = None

        def look() -> dict[str, str]:
            nonlocal last
            self.check_stop()
            last = self.services.job(service, job_id)
            return {job_id: last["status"] if last else VANISHED}

        try:
            until_finished(
                look,
                (*remote.FINISHED, VANISHED),
                deadline=self.left(),
                first=self.poll,
                longest=12 * self.poll,
                show=lambda line: None,
            )
        except TimedOut as error:
            if self.left() <= 14 * self.poll:  # no further look would have fitted in
                raise Overdue(f"the {service} job was not over at the deadline; give it more time") from None
            raise error
        return last

    def left(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self.end - time.monotonic())

    def check_stop(self) -> None:
        if self.stop.is_set():
            raise Stopped("interrupted; run again to carry on")

    def pause(self, number: int) -> None:
        """Wait after something was tried for the ``number``-th time."""
        self.stop.wait(self.poll * 2**number)
        self.check_stop()


def lost_job(work: Work, service: str, sent: str) -> str | None:
    """The job that was started by a request whose answer never came, if the service lets that be told.

    A job does not say what it is about: one that was made at that time, and that no other run has noted, will be it.
    Somebody else's does no harm: it is waited for, and then looked whether the product is there.
    """
    process = STAGING if service == "staging" else CONVERSION
    since, taken = datetime.fromisoformat(sent), work.notes.jobs()
    for job in work.services.jobs(service):
        with suppress(KeyError, ValueError, TypeError):
            near = abs(datetime.fromisoformat(job["created"]) - since) < GRACE
            if near and job["jobID"] not in taken and process in (job.get("processID"), job.get("process_id")):
                return job["jobID"]
    return None


def tried(work: Work, what: str, do: Callable[[], Any]) -> list[str]:
    """Do it, several times if need be; what remains undone, and why."""
    reason = ""
    for number in range(1, TRIES + 1):
        try:
            do()
            return []
        except Rejected as error:
            return [f"{what}: {error}"]
        except RecipeError as error:
            reason = str(error)
        if number < TRIES:
            work.stop.wait(work.poll * 2**number)
    return [f"{what}: {reason}"]
