"""The transfer of a large plan, spread over the workers of a dask cluster that is running somewhere."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from ..errors import NotConfigured, RecipeError, Rejected
from ..progress import Progress
from .look import NEW, PRESENT
from .planning import Comparison, Plan
from .run import COPIED, FAILED, NOT_TRIED, Outcome, Task, tell
from .store import CredentialsRefused, Place

#: Files that a worker is given at a time: a second of work, and what is looked at again when a worker is lost.
BATCH = 500
#: Batches that each thread of the cluster has before it: one to do, one waiting.
AHEAD = 2


def spread(
    tasks: list[Task],
    plan: Plan,
    scheduler: str,
    settings: dict[str, Any],
    *,
    keep: Callable[[Outcome], None],
    progress: Progress,
    stop: threading.Event | None = None,
) -> list[Outcome]:
    """Transfer ``tasks`` with the workers of ``scheduler`` (an address: ``tcp://...``, ``tls://...``).

    A worker that dies takes nothing with it: its batch goes to another one, which first looks what had arrived.
    ``stop`` lets the batches that were given out be finished.

    Raises
    ------
    Rejected
        The cluster has no workers, or secrets would travel unencrypted.
    """
    try:
        from distributed import Client, wait  # half a second, and most runs need no cluster
    except ImportError:
        raise NotConfigured("A cluster needs dask here and on its workers: pip install distributed") from None
    source, target = _for_workers(scheduler, plan.source), _for_workers(scheduler, plan.target)
    outcomes = list[Outcome]()

    def settle(batch: list[Outcome]) -> None:
        for outcome in batch:
            outcomes.append(outcome)
            keep(outcome)
            tell(progress, outcome)

    batches, running, over = _batches(tasks), {}, ""
    with Client(scheduler, set_as_default=False) as client, client.as_current():
        try:
            client.wait_for_workers(1, timeout=30)
        except TimeoutError:
            raise Rejected(f"The cluster at {scheduler} has no workers.") from None
        while True:
            over = over or ("stopped" if stop and stop.is_set() else "")
            while not over and len(running) < AHEAD * sum(client.nthreads().values()):
                if (batch := next(batches, None)) is None:
                    break
                running[client.submit(transfer_batch, batch, source, target, settings, pure=False)] = batch
            if not running:
                break
            try:
                done = wait(list(running), timeout=1, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                continue
            for future in done:
                batch = running.pop(future)
                if future.status == "finished":
                    finished, reason = future.result()
                    settle(finished)
                    over = over or reason
                else:
                    why = f"{type(future.exception()).__name__}: {future.exception()}"
                    settle([_not_done(task, FAILED, why) for task in batch])
    settle([_not_done(task, NOT_TRIED, over) for batch in batches for task in batch])
    return outcomes


def transfer_batch(
    tasks: list[Task], source: Place, target: Place, settings: dict[str, Any]
) -> tuple[list[Outcome], str]:
    """On a worker: bring what has not arrived yet; and why no more should be tried, if so."""
    from distributed import get_worker

    from .transferring import transfer_tasks

    try:
        compare = Comparison(target, {task.item.name for task in tasks})
    except RecipeError as error:
        over = str(error) if isinstance(error, CredentialsRefused) else ""
        return [_not_done(task, NOT_TRIED if over else FAILED, str(error)) for task in tasks], over
    arrived = {task for task in tasks if compare(replace(task.item, state=NEW)).state == PRESENT}
    outcomes = [
        Outcome(t.source, t.target, t.bytes, compare.there[t.item.name].etag, 0.0, COPIED, "found there")
        for t in arrived
    ]
    threads = get_worker().state.nthreads
    settings = settings | {"workers": max(1, settings["workers"] // threads)}
    todo = [task for task in tasks if task not in arrived]
    outcomes += transfer_tasks(todo, source, target, **settings, show=lambda line: None)
    return outcomes, next((outcome.reason for outcome in outcomes if outcome.outcome == NOT_TRIED), "")


def _batches(tasks: list[Task]) -> Iterator[list[Task]]:
    return (tasks[start : start + BATCH] for start in range(0, len(tasks), BATCH))


def _not_done(task: Task, outcome: str, reason: str) -> Outcome:
    return Outcome(task.source, task.target, task.bytes, "", 0.0, outcome, reason)


def _for_workers(scheduler: str, place: Place) -> Place:
    """The place as workers get it: of all secrets, only those of AWS; and these only where nobody can listen."""
    settings = place.settings
    others = {
        name: None
        for name in type(settings).model_fields
        if isinstance(getattr(settings, name), SecretStr) and not name.startswith("aws_")
    }
    where = urlsplit(scheduler)
    private = where.scheme in ("tls", "wss", "inproc") or where.hostname in ("127.0.0.1", "localhost", "::1")
    if settings.aws_secret_access_key and not private:
        raise Rejected(
            f"Your AWS keys would travel to {scheduler} unencrypted. Use a cluster with TLS (tls://...), or set no keys"
            " (AWS_PROFILE, or a role) and give its workers a role of their own."
        )
    return replace(place, settings=settings.model_copy(update=others | {"hook_additional": {}}))
