"""The conversion without any service: SAFE folders, archives or S3 in, Zarr and STAC item out, in workers of our own.

EOPF runs in worker processes, never here: its import takes seconds and half a gigabyte. They are started by the first
call (or by :func:`warm`, in the background), stay warm for the next, and end with this process, however that ends. With
the address of a Dask scheduler, its cluster does the work instead.
"""

import atexit
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from .. import safe
from .. import settings as settings_room
from ..download import in_parallel
from ..errors import Rejected
from ..settings import Settings
from ..waiting import Change, Watcher, watched
from .product import CONVERTED, FAILED, PRESENT, Converted, Order, look, storage_options
from .product import convert as convert_order

__all__ = ["CONVERTED", "FAILED", "PRESENT", "Converted", "close", "convert", "convert_many"]
__all__ += ["open_tree", "storage_options", "warm"]

#: How often a product whose worker was lost is begun again, with another worker.
AGAIN = 2
#: How workers of our own differ from what Dask makes by itself. It tells malloc to give all memory back at once, which
#: costs pictures a third more time: this is what glibc (mallopt(3)) comes to by itself if nobody tells it anything.
#: GDAL would keep a twentieth of the machine's memory of what it decoded; the rows of tiles at hand are enough (MB).
DASK = {
    "distributed.scheduler.allowed-failures": AGAIN,
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 64 << 20,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 32 << 20,
    "distributed.nanny.pre-spawn-environ.GDAL_CACHEMAX": 256,
}
#: Seconds to wait for the first worker of a cluster.
PATIENCE = 30
_own: Any = None  #: the cluster of our own, once it is needed
_starting = threading.RLock()


def convert(
    source: str | Path,
    target: str | Path,
    *,
    settings: Settings | None = None,
    scheduler: str | None = None,
    overwrite: bool = False,
    show: Callable[[str], None] = print,
) -> Converted:
    """Convert one SAFE product to a Zarr, with a STAC item beside it; what is there already is not done again.

    Parameters
    ----------
    source:
        Folder of the product, archive of one (.zip, .tar, .tgz, .tar.gz), or s3:// URL of one of these.
    target:
        Folder or s3:// URL; below it will be ``NAME.zarr`` and the item ``NAME.json``, after the product's name.
    settings:
        For s3://: the storage of RS-PYTHON if its keys are set, else Amazon's. By default those of ``settings.load``.
    scheduler:
        Address of a Dask scheduler (``tls://...``, ``tcp://...``). Its workers need this package, EOPF, and the same
        disks.
    overwrite:
        Convert again, also over a Zarr that was made of something else.

    Raises
    ------
    Rejected
        It cannot be converted, and why. Nothing is left of it.
    """
    (done,) = convert_many([source], target, settings=settings, scheduler=scheduler, overwrite=overwrite, show=show)
    if done.outcome == FAILED:
        raise Rejected(f"{Path(done.source).name} was not converted: {done.reason}")
    return done


def convert_many(
    sources: Iterable[str | Path],
    target: str | Path,
    *,
    settings: Settings | None = None,
    scheduler: str | None = None,
    workers: int = 1,
    overwrite: bool = False,
    show: Callable[[str], object] = print,
) -> list[Converted]:
    """Convert products, ``workers`` at a time or spread over a cluster; one that fails does not stop the others.

    Parameters as of :func:`convert`; ``show`` gets lines, or is a :class:`helpers.waiting.Watcher`, such as a
    notebook's board; ``workers`` counts processes of our own, of up to 4 GB each for full products. A
    product whose worker is lost is begun again with another one, twice at most (or as the cluster is configured).

    Returns
    -------
    What became of each, in the given order; the reason of those that failed.

    Raises
    ------
    Rejected
        A product is given twice, the cluster has no workers, or keys would travel to it unencrypted. Nothing was begun.
    """
    sources = [str(source) for source in sources]
    if twice := sorted({source for source in sources if sources.count(source) > 1}):
        raise Rejected.because("Every product can be given once", twice)
    remote = any(str(place).startswith("s3://") for place in (*sources, target))
    if remote and settings is None:
        settings = settings_room.load()
    kept = _for_workers(settings, scheduler) if remote else Settings(_env_file=None)
    orders = {n: Order(source, str(target), kept, overwrite) for n, source in enumerate(sources)}
    with watched(show, (CONVERTED, PRESENT, FAILED)) as watcher:
        watcher.expect(safe.name_of(source) for source in sources)
        done = {n: found for n, found in _seen(orders, scheduler).items() if found}
        for one in done.values():
            _tell(one, watcher)
        if left := {n: order for n, order in orders.items() if n not in done}:
            done |= _spread(left, scheduler, min(workers, len(left)), watcher)
        return [done[n] for n in orders]


def open_tree(zarr_uri: str, *, settings: Settings | None = None) -> Any:
    """The Zarr as a lazy ``xarray.DataTree``, with as few requests as can be: one for all metadata, times apart.

    xarray reads every coordinate when it opens a tree, one request each (37 for Sentinel-2), to index it. Here it does
    not: ``isel`` works, ``sel`` after ``dataset.set_xindex("x")``.
    """
    import xarray
    from zarr.errors import GroupNotFoundError

    remote = str(zarr_uri).startswith("s3://")
    options = {"storage_options": storage_options(settings or settings_room.load())} if remote else {}
    options |= {"engine": "zarr", "chunks": {}, "create_default_indexes": False}
    try:
        return xarray.open_datatree(str(zarr_uri), zarr_format=3, **options)
    except (FileNotFoundError, GroupNotFoundError):
        return xarray.open_datatree(str(zarr_uri), zarr_format=2, **options)


def warm(workers: int = 1) -> None:
    """Start the workers of our own in the background, so that the first conversion need not wait for EOPF."""
    threading.Thread(target=_warm, args=(workers,), daemon=True).start()


def close() -> None:
    """End the workers of our own; the next conversion starts others."""
    global _own
    with _starting:
        if _own is not None:
            _own.close()
            _own = None


def _seen(orders: dict[int, Order], scheduler: str | None) -> dict[int, Converted | None]:
    """What needs no worker: products that are there already; and, on our own disks, those that cannot be converted."""
    found, failures = in_parallel({n: lambda order=order: look(order) for n, order in orders.items()})
    if scheduler is None:
        found |= {n: Converted(orders[n].source, "", "", FAILED, reason=why) for n, why in failures.items()}
    return found


def _spread(orders: dict[int, Order], scheduler: str | None, workers: int, watcher: Watcher) -> dict[int, Converted]:
    from distributed import wait

    waiting, running, done = list(orders), {}, {}
    with _client(scheduler, workers) as client:
        while waiting or running:
            # One at a time for each worker, however many threads it has: a full product takes gigabytes.
            room = workers if scheduler is None else len(client.scheduler_info(n_workers=-1)["workers"])
            while waiting and len(running) < max(1, room):
                n = waiting.pop(0)
                watcher.changed(Change(datetime.now(UTC), safe.name_of(orders[n].source), "convert"))
                order = replace(orders[n], threads=max(1, (os.cpu_count() or 1) // workers) if scheduler is None else 0)
                running[client.submit(convert_order, order, pure=False, key=f"convert-{n}-{id(order)}")] = n
            with suppress(TimeoutError):
                for future in wait(list(running), timeout=5, return_when="FIRST_COMPLETED").done:
                    n = running.pop(future)
                    done[n] = _result(future, orders[n])
                    _tell(done[n], watcher)
    return done


def _result(future: Any, order: Order) -> Converted:
    if future.status == "finished":
        return future.result()
    error = future.exception() if future.status == "error" else None
    why = (
        "its worker was lost each time: has it enough memory?"
        if type(error).__name__ == "KilledWorker"
        else repr(error)
    )
    return Converted(order.source, "", "", FAILED, reason=why)


def _tell(one: Converted, watcher: Watcher) -> None:
    why = one.reason
    if one.outcome == CONVERTED:
        why = f"{one.bytes_in / 1e6:,.1f} MB -> {one.bytes_out / 1e6:,.1f} MB in {one.seconds:.1f} s"
    watcher.changed(Change(datetime.now(UTC), safe.name_of(one.source), one.outcome, why))


# --- the workers ---


@contextmanager
def _client(scheduler: str | None, workers: int) -> Iterator[Any]:
    from distributed import Client  # half a second

    try:
        connected = Client(scheduler or _cluster(workers), set_as_default=False)
    except (OSError, ValueError) as error:
        if scheduler is None:
            raise
        raise Rejected(f"No Dask scheduler answers at {scheduler}: {error}") from None
    with connected as client, client.as_current():
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            raise Rejected(f"The cluster at {scheduler or 'this machine'} has no workers.") from None
        yield client


def _cluster(workers: int) -> Any:
    """The cluster of our own with at least so many workers."""
    global _own
    import dask
    from distributed import Client, LocalCluster

    with _starting, dask.config.set(DASK), _without_main():
        if _own is None:
            _own = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address=":0",
                memory_limit=0,  # a large product needs what it needs
                silence_logs=logging.CRITICAL,
            )
            atexit.register(close)
            with Client(_own, set_as_default=False) as client:
                client.register_plugin(_silence())
        elif len(_own.workers) < workers:
            _own.scale(workers)
        _own.wait_for_workers(workers, timeout=60)
        return _own


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep new processes from running the caller's script: a plain one, without a guard, would start others, and so on.

    What workers need is in modules; nothing of theirs is in the script.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _silence() -> Any:
    """What each worker of our own does when it starts, and when it is replaced."""
    from distributed import WorkerPlugin

    class Silence(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            from helpers.conversion import eopf_product

            eopf_product.stay_quiet()

    return Silence()


def _warm(workers: int) -> None:
    from distributed import Client

    from . import eopf_product

    with Client(_cluster(workers), set_as_default=False) as client:
        client.run(eopf_product.warm)


def _for_workers(settings: Settings, scheduler: str | None) -> Settings:
    """The settings as workers get them: of all secrets, only the storage's keys; and these where nobody can listen."""
    secrets = [name for name in Settings.model_fields if isinstance(getattr(settings, name), SecretStr)]
    keys = [name for name in secrets if name.startswith(("rspy_s3_", "aws_"))]
    where = urlsplit(scheduler or "inproc://")
    private = where.scheme in ("tls", "wss", "inproc") or where.hostname in ("127.0.0.1", "localhost", "::1")
    if keys and not private:
        raise Rejected(
            f"Your S3 keys would travel to {scheduler} unencrypted. Use a cluster with TLS (tls://...), or set no keys"
            " and give its workers a role of their own."
        )
    return settings.model_copy(update=dict.fromkeys(set(secrets) - set(keys)) | {"hook_additional": {}})
