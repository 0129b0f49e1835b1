"""The conversion as a Prefect flow: SAFE products that are ordered become Zarr products in the catalogue.

In a notebook, :func:`convert_on_demand` runs it with nothing started beforehand. On a server it is deployed as it is:
its parameters are plain JSON, and settings are read where it runs, so that no secret is ever a parameter, a result or
a state, all of which Prefect keeps.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging.handlers import APILogHandler, PrefectConsoleHandler
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Failed
from prefect.task_runners import ThreadPoolTaskRunner

from .. import settings as settings_room
from ..download import alone
from ..errors import FailedRemotely, RecipeError, TimedOut
from ..settings import Settings
from ..state import RunState
from ..waiting import Change, watched
from . import cleaning, converting, given, prefect_server, publishing, rules, staging
from .here import storage_options
from .planning import Plan, Wanted, check_secrets, plan
from .services import connect, redacted, storage
from .storing import Store
from .work import Damaged, Notes, Overdue, Stopped, Work

CONVERTED, PRESENT, FAILED = "converted", "present", "failed"
#: Products that are worked on at a time, at most, whatever a run asks for.
MOST = 32
#: Bytes of inputs that Prefect takes as a parameter (its limit is 512 KB for all of them).
PARAMETER = 400_000


def convert_on_demand(
    settings: Settings,
    inputs: Any,
    *,
    collection: str | list[dict],
    run_id: str,
    dask_cluster_label: str,
    show: Callable[[str], object] = print,
    **options: Any,
) -> tuple[list[dict], list[Change]]:
    """Run the flow from here, on the Prefect server of the settings or one of our own.

    Parameters
    ----------
    settings, show:
        Where to work; and what gets a line when a step of a product begins, or a :class:`helpers.waiting.Watcher`,
        such as a notebook's board.
    inputs, collection, run_id, dask_cluster_label, options:
        As for :func:`on_demand_conversion`; items may also be those of pystac.

    Returns
    -------
    A row for each product, as from :func:`on_demand_conversion`; and when each began each of its steps.

    Raises
    ------
    Rejected, NotConfigured
        The run cannot work at all: all problems at once, and nothing was staged.
    TimedOut, FailedRemotely
        The services, or the Prefect server, do not answer.
    """
    wanted = _as_parameter(inputs, settings, run_id)
    server = prefect_server.ensure(settings).ready()
    # The signs of life are for runs that somebody else may find dead; waiting for the last one takes a second.
    changed = {PREFECT_API_URL: server.url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    with (
        temporary_settings(changed),
        _quiet(),
        watched(show, (CONVERTED, PRESENT, FAILED)) as watcher,
        given.given(settings, watcher),
    ):
        state = on_demand_conversion(
            wanted,
            collection=collection,
            run_id=run_id,
            dask_cluster_label=dask_cluster_label,
            **options,
            return_state=True,
        )
        rows = state.result(raise_on_failure=False, _sync=True)
    if isinstance(rows, BaseException):
        raise rows.with_traceback(None)
    return rows, changes(rows)


def changes(rows: list[dict]) -> list[Change]:
    """When each product began each of its steps, for a timeline."""
    begun = [(row["name"], step) for row in rows for step in row["timeline"]]
    found = [Change(datetime.fromisoformat(step["time"]), name, step["step"]) for name, step in begun]
    return sorted(found, key=lambda change: change.time)


@flow(
    name="on-demand-conversion",
    flow_run_name="{run_id}",
    task_runner=ThreadPoolTaskRunner(max_workers=MOST),
    persist_result=False,
)
def on_demand_conversion(
    inputs: Any,
    collection: str | list[dict[str, Any]],
    run_id: str,
    dask_cluster_label: str,
    dask_cluster_instance: str = "",
    product_type: str = rules.ANY,
    owner: str | None = None,
    staging_collection: str | None = None,
    keep_staged: bool = False,
    workers: int = 4,
    deadline_minutes: float = 120.0,
    staging_retries: int = 3,
    conversion_retries: int = 2,
    retry_delay_seconds: float = 60.0,
) -> Any:
    """Stage SAFE products, convert them with EOPF on a Dask cluster, publish the Zarr products, remove what was staged.

    Everything that can be known is checked first. Then each product goes its own way: one that fails stops no other,
    leaves nothing behind, and says why. Running again with the same ``run_id`` carries on what was interrupted;
    products that are published already are not converted again, whoever published them.

    Parameters
    ----------
    inputs:
        STAC items of SAFE products: the address of one, of a search or an ItemCollection; a Feature or a
        FeatureCollection; a file with one of these; or a list of all that.
    collection:
        The collection that converted products go to; or rows {"name", "product_type", "collection_name"}, with an EOPF
        type (or "*") as the name, if it depends on their type.
    run_id:
        Names this run's memory.
    dask_cluster_label, dask_cluster_instance:
        The cluster that converts.
    product_type:
        Take products of this EOPF type only ("*": all), when ``collection`` is one.
    owner:
        Whose collections they are: has to be the RSPY_OWNER_ID of the settings.
    staging_collection:
        Where products wait for their conversion: by default the collection's name with "-staging" behind it. Never the
        collection itself.
    keep_staged:
        Leave what was staged where it is, unpacked.
    workers:
        Products to work on at a time.
    deadline_minutes:
        Time that one product may take. Its conversion is cancelled then.
    staging_retries, conversion_retries, retry_delay_seconds:
        How many times a job that fails is started again, and after how long.

    Returns
    -------
    A row for each product: ``id`` and ``name`` (short) and ``source`` of what was given; ``outcome``: "converted",
    "present" (published already) or "failed", then with a ``reason``; ``item``, ``collection``, ``product_type`` and
    ``zarr_uri`` of the result; ``bytes_in`` and ``bytes``; ``steps`` (seconds), ``timeline``; what was ``mended``; what
    is ``left`` and should not be. The final state is a failure if a product failed.
    """
    settings = given.settings() or settings_room.load()
    services, store = connect(settings), Store(storage(settings))
    state = RunState(settings, "conversion", run_id)
    wanted = Wanted(inputs, collection, dask_cluster_label, product_type, staging_collection, owner)
    try:
        plans = make_plans(lambda: plan(wanted, services, store))
    except RecipeError as error:
        return Failed(data=error, message=str(error))  # raised, Prefect would store it in a file
    given.watcher().expect(plan.name for plan in plans)
    stop, turn = threading.Event(), threading.Semaphore(max(1, min(workers, MOST)))
    retries = {"stage": staging_retries, "convert": conversion_retries}

    def work_on(plan: Plan) -> Work:
        return Work(
            plan,
            services,
            store,
            Notes(state, plan.id),
            storage_options=storage_options(settings),
            scratch=state.path.parent / "scratch" / run_id / plan.id,
            cluster=(dask_cluster_label, dask_cluster_instance),
            poll=settings.rspy_poll_seconds,
            deadline=60 * deadline_minutes,
            stop=stop,
            keep_staged=keep_staged,
            run_id=run_id,
        )

    try:
        futures = [
            convert_product.with_options(task_run_name=plan.name).submit(
                lambda plan=plan: _Journey(work_on(plan), retries, retry_delay_seconds), plan, turn, state.path.parent
            )
            for plan in plans
        ]
        rows = [future.result(raise_on_failure=False) for future in futures]
    except BaseException:
        stop.set()  # what is under way notices at its next look
        raise
    _report(rows, run_id)
    failed = [row for row in rows if row["outcome"] == FAILED]
    if failed:
        return Failed(data=rows, message=f"{len(failed)} of {len(rows)} products failed: {failed[0]['reason']}")
    return rows


# --- tasks ---


def _worth_another_try(_: Any, __: Any, state: Any) -> bool:
    """What failed remotely, or got no answer, may work the next time. What is refused will be refused again."""
    error = state.data
    return isinstance(error, FailedRemotely | TimedOut) and not isinstance(error, Damaged | Overdue)


def _not_foreseen(_: Any, __: Any, state: Any) -> bool:
    """A library stumbled, over the network most likely."""
    return not isinstance(state.data, RecipeError)


# Parameters of tasks are neither stored nor hashed: they are what this process has in hand.
_options: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}


@task(name="check", **_options)
def make_plans(make: Callable[[], list[Plan]]) -> list[Plan]:
    """Find out what can be known before a byte is moved."""
    return make()


@task(name="look", **_options)
def look(work: Work) -> dict | None:
    """Is the product published already?"""
    return publishing.find_published(work)


@task(name="stage", retry_condition_fn=_worth_another_try, **_options)
def stage(work: Work) -> dict:
    """Have it brought into the object storage, and catalogued."""
    return staging.stage(work)


@task(name="unpack", **_options)
def unpack(work: Work, item: dict) -> str:
    """Out of its archive, checked against its manifest."""
    return staging.unpack(work, item)


@task(name="convert", retry_condition_fn=_worth_another_try, **_options)
def convert(work: Work, safe_uri: str) -> str:
    """Have it converted."""
    return converting.convert(work, safe_uri)


@task(name="describe", retries=1, retry_condition_fn=_not_foreseen, **_options)
def describe(work: Work, zarr: str, safe_uri: str) -> dict:
    """Mend the Zarr, make its STAC item."""
    return publishing.describe(work, zarr, safe_uri)


@task(name="publish", **_options)
def publish(work: Work, item: dict) -> dict:
    """Into the catalogue."""
    return publishing.publish(work, item)


@task(name="clean up", **_options)
def tidy(work: Work, zarr: str | None) -> list[str]:
    """Remove what is not the result."""
    return cleaning.tidy(work, zarr)


@task(name="convert product", **_options)
def convert_product(begin: Callable[[], "_Journey"], plan: Plan, turn: threading.Semaphore, folder: Path) -> Any:
    """All steps of one product; its row, whatever happens."""
    if plan.problems:
        row = _row(plan, FAILED, "; ".join(plan.problems))
        _tell(plan.name, "failed", f"not touched. {row['reason']}")
        return Failed(data=row, message=row["reason"])
    lock = folder / "items" / f"{plan.collection}-{plan.id}"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with turn, alone(lock):  # not beside another run that has the same in hand
        row = begin().go()
    return Failed(data=row, message=row["reason"]) if row["outcome"] == FAILED else row


class _Journey:
    """One product through all its steps."""

    def __init__(self, work: Work, retries: dict[str, int], delay: float):
        self.work, self.plan = work, work.plan
        self.stage, self.convert = (
            task.with_options(retries=retries[name], retry_delay_seconds=delay)
            for name, task in (("stage", stage), ("convert", convert))
        )
        self.steps: dict[str, float] = {}
        self.timeline: list[dict[str, str]] = []

    def go(self) -> dict:
        outcome, reason, zarr, item, left = FAILED, "", None, {}, []
        try:
            if item := self._step("look", look, self.work) or {}:
                outcome, zarr = PRESENT, publishing.zarr_of(item)
            else:
                item = self._convert()
                outcome, zarr = CONVERTED, publishing.zarr_of(item)
        except Stopped as error:
            return self._row(FAILED, str(error))  # nothing is removed: the next run carries on
        except RecipeError as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 - it must not stop the other products
            reason = redacted(f"{type(error).__name__}: {error}")
        if cleaning.unfinished(self.work):
            left = self._step("clean up", tidy, self.work, zarr)
        return self._row(outcome, reason, item=item, zarr=zarr, left=left)

    def _convert(self) -> dict:
        item = self._step("stage", self.stage, self.work)
        try:
            safe_uri = self._step("unpack", unpack, self.work, item)
        except Damaged:
            staging.remove_staged(self.work)
            item = self._step("stage", self.stage, self.work)
            safe_uri = self._step("unpack", unpack, self.work, item)
        zarr = self._step("convert", self.convert, self.work, safe_uri)
        item = self._step("describe", describe, self.work, zarr, safe_uri)
        return self._step("publish", publish, self.work, item)

    def _step[Result](self, name: str, do: Callable[..., Result], *arguments: Any) -> Result:
        self.work.check_stop()
        began = time.monotonic()
        self._note(name)
        try:
            return do(*arguments)
        finally:
            self.steps[name] = round(self.steps.get(name, 0.0) + time.monotonic() - began, 3)

    def _note(self, step: str, why: str = "") -> None:
        change = _tell(self.plan.name, step, why)
        self.timeline.append({"time": change.time.isoformat(), "step": step})

    def _row(self, outcome: str, reason: str, item: dict | None = None, zarr: str | None = None, **more: Any) -> dict:
        self._note(outcome, reason)
        work = self.work
        return _row(
            self.plan,
            outcome,
            reason,
            item=(item or {}).get("id") if zarr else None,
            zarr_uri=zarr,
            bytes_in=work.bytes_in,
            bytes=work.bytes_out,
            steps=self.steps,
            timeline=self.timeline,
            mended=work.mended,
            **more,
        )


def _row(plan: Plan, outcome: str, reason: str = "", **more: Any) -> dict:
    return {
        "id": plan.id,
        "name": plan.name,
        "source": plan.source,
        "outcome": outcome,
        "reason": reason,
        "item": None,
        "collection": plan.collection,
        "product_type": plan.product_type,
        "zarr_uri": None,
        "bytes_in": 0,
        "bytes": 0,
        "steps": {},
        "timeline": [],
        "mended": [],
        "left": [],
    } | more


def _tell(product: str, step: str, why: str = "") -> Change:
    """Say, here and on the run's page, what a product has come to."""
    change = Change(datetime.now(UTC), product, step, why)
    get_run_logger().info(f"{product}: {step}{f': {why}' if why else ''}")
    given.watcher().changed(change)
    return change


def _report(rows: list[dict], run_id: str) -> None:
    """The rows as a table on the run's page: what somebody sees who did not call the flow."""
    shown = ("id", "outcome", "reason", "item", "zarr_uri", "bytes")
    create_table_artifact([{key: row[key] for key in shown} for row in rows], key="conversion", description=run_id)


# --- in a notebook ---


def _as_parameter(inputs: Any, settings: Settings, run_id: str) -> Any:
    """The inputs as Prefect takes them: JSON, without secrets, and not too long."""

    def plain(one: Any) -> Any:
        if hasattr(one, "to_dict"):  # of pystac, or pystac-client
            return one.to_dict()
        return str(one) if isinstance(one, Path) else one

    inputs = [plain(one) for one in inputs] if isinstance(inputs, list | tuple) else plain(inputs)
    check_secrets(inputs)
    if len(text := json.dumps(inputs)) <= PARAMETER:
        return inputs
    file = settings.state_dir / "prefect" / f"inputs-{run_id}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return str(file)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Prefect's own lines from the notebook; they are on its server's pages."""
    # Its server goes with this process: what is still to be told to it has to be told before.
    last_words = threading.Thread(target=APILogHandler().flush)
    handlers = [h for h in logging.getLogger().handlers if isinstance(h, PrefectConsoleHandler)]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        last_words.start()
        last_words.join(5)
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)
