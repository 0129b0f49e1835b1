"""DestinE's Hook service: an order that is checked first, placed exactly once, watched, and its products brought home.

The service is an OData v1 API (OnDemand Processing). Facts about it that are used here, and where they were seen, are
held by ``tests/contract/test_hook.py``.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from . import destine, http, objectstore, once, safe, waiting
from .download import fetch, in_parallel
from .errors import FailedRemotely, Rejected
from .hook_order import with_secrets, without_secrets
from .progress import Moving, Progress, told, tracked
from .settings import Settings
from .state import RunState

#: States in which an item (or an order) stays. The service's spelling has been seen in both cases.
FINISHED = ("completed", "failed", "cancelled")


@dataclass(frozen=True)
class Hook:
    """A connection: ``session`` brings a token along, ``plain`` none (a link to a product is a secret of its own)."""

    url: str
    session: requests.Session
    plain: requests.Session


def connect(settings: Settings) -> Hook:
    """Connect to the configured service; the login happens with the first request, and again when its token ends.

    Raises
    ------
    NotConfigured
        There are no credentials.
    """
    settings.require("destine")
    session = http.harden(requests.Session())
    session.auth = http.Bearer(destine.token(settings))
    return Hook(str(settings.hook_api_url).rstrip("/"), session, http.harden(requests.Session()))


# --- ordering ---


def submit_or_reuse(
    order: dict,
    state: RunState,
    hook: Hook,
    *,
    post: Callable[[dict], requests.Response],
    settle: float,
    show: Callable[[str], None] = print,
) -> int:
    """Place the order of this run, or find it again; returns the order's id. There is never a second one.

    Parameters
    ----------
    order:
        The body, as for :func:`helpers.hook_order.check`.
    state:
        The run's memory. What it notes is without secrets.
    post:
        Sends a body, secrets and all: ``hook.session.post(f"{hook.url}/BatchOrder/OData.CSC.Order", json=body)``.
    settle:
        Seconds after a lost answer until the order is certainly there, or not.

    Raises
    ------
    Rejected
        This run has ordered something else before, or the service refuses; nothing was ordered.
    TimedOut
        The service does not answer, or the quota is used up; run again to carry on.
    """
    noted = without_secrets(order)
    before = [entry for entry in state.get(once.NOTES, []) if entry["sent"] or entry["id"] is not None]
    if any(entry["request"] != noted for entry in before):
        raise Rejected(
            f"This run has ordered something else already ({before[0]['request']['Name']}). One run, one order:"
            " choose another run_id, or put the parameters back."
        )
    state.save(**{once.NOTES: before})  # without what was refused: it may be corrected

    def send(_: list[dict]) -> list[int]:
        return [post(with_secrets(order)).json()["value"]["Id"]]

    def find(lost: list[dict], since: datetime | None, taken: set[int]) -> list[int | None]:
        found = {entry["Name"]: entry["Id"] for entry in pages(hook, "BatchOrder")}
        return [found.get(one["Name"]) for one in lost]

    return once.submit([noted], state, send=send, find=find, settle=settle, look_first=True, show=show)[0]


def pages(hook: Hook, path: str) -> Iterator[dict]:
    """Every entry of a list of the service, however many pages it has."""
    url = f"{hook.url}/{path}"
    while url:
        answer = hook.session.get(url).json()
        yield from answer["value"]
        url = urljoin(url, answer["@odata.nextLink"]) if answer.get("@odata.nextLink") else ""


def cancel(order_id: int, hook: Hook) -> None:
    """Withdraw what of an order is still queued; what is being processed goes on to its end."""
    hook.session.post(f"{hook.url}/BatchOrder({order_id})/OData.CSC.Cancel")


# --- waiting ---


def wait(
    order_id: int,
    hook: Hook,
    *,
    deadline: float,
    first: float = 5.0,
    show: Callable[[str], object] = print,
) -> tuple[list[dict], list[waiting.Change]]:
    """Wait until every item of the order has ended, one way or the other.

    The items are the truth: an order can be "completed" with failed items in it, and dates can be missing.

    Parameters
    ----------
    deadline, first:
        Seconds until giving up; seconds of the first pause between two looks, which grows to a minute.
    show:
        Gets a line for each change; or a :class:`helpers.waiting.Watcher`, such as a notebook's board.

    Returns
    -------
    The items, as the service describes them, and what changed while we looked.

    Raises
    ------
    TimedOut
        The deadline passed, or the service did not answer for long. Running again carries on.
    """
    items: list[dict] = []

    def look() -> dict[str, str]:
        items[:] = pages(hook, f"BatchOrder({order_id})/Products")
        if items:
            return {label(item): status(item) for item in items}
        # Not split into items yet; or cancelled before it ever was.
        return {f"order {order_id}": status(hook.session.get(f"{hook.url}/BatchOrder({order_id})").json()["value"])}

    changes = waiting.until_finished(look, FINISHED, deadline=deadline, first=first, show=show)
    return items, changes


def label(item: dict) -> str:
    """A short name of an item that no other has: the product's, and the item's number."""
    return f"{safe.short_name(product_of(item))} #{item['Id']}"


def product_of(item: dict) -> str:
    """The product that an item was ordered with; the service has two forms."""
    reference = item["InputProductReference"]
    return reference["Reference"] if isinstance(reference, dict) else reference


def status(entry: dict) -> str:
    """State of an item or an order, in lower case."""
    return entry["Status"].lower()


# --- bringing the products home ---


def download(
    items: list[dict],
    order_id: int,
    workflow: str,
    hook: Hook,
    folder: Path,
    *,
    show: Callable[[str], object] = print,
) -> tuple[dict[int, Path], dict[int, str]]:
    """Download the archives of all completed items from temporary storage, several at a time.

    Each goes to ``folder/output-<workflow>-<order>-<item>.zip``, and has that name only when it is whole and every
    checksum in it is right. See :func:`helpers.download.fetch` for what happens at a cut. ``show`` gets lines, or is a
    :class:`helpers.progress.Progress`, such as a notebook's bar.

    Returns
    -------
    Files, and for items that could not be brought home the reason, by the item's id. Failed ones stop no others.
    """
    done = [item for item in items if status(item) == "completed"]
    with told(show, len(done), lines=Progress) as progress:
        work = {}
        for item in done:
            number, target = str(item["Id"]), folder / f"output-{workflow}-{order_id}-{item['Id']}.zip"
            bring = partial(_bring, item, order_id, hook, target, progress.detail, progress.of(number))
            work[number] = tracked(progress, number, bring)
        files, failures = in_parallel(work)
    return {int(name): file for name, file in files.items()}, {int(name): why for name, why in failures.items()}


def _bring(item: dict, order_id: int, hook: Hook, target: Path, show: Callable[[str], None], moving: Moving) -> Path:
    get = partial(fetch, target=target, check=safe.check_archive, show=show, moving=moving)
    if link := item.get("DownloadLink"):
        try:
            return get(hook.plain, link)
        except http.Refused:
            pass  # it has ended; the service may give a new one
    url = f"{hook.url}/BatchOrder({order_id})/Product({item['Id']})/$value"
    # Redirections are followed here: requests would take the token along to a storage on the same host.
    with hook.session.get(url, stream=True, allow_redirects=False) as answer:
        link = urljoin(url, answer.headers["Location"]) if answer.is_redirect else ""
    try:
        return get(hook.plain, link) if link else get(hook.session, url)
    except http.Refused as error:
        raise Rejected(
            f"{label(item)}: its link is not accepted (any more): {error} Temporary storage keeps products for two"
            " weeks; order again with another run_id."
        ) from None


def unpack(files: dict[int, Path], folder: Path) -> tuple[dict[int, Path], dict[int, str]]:
    """Unpack the archives, and hold SAFE products against their manifests.

    Returns
    -------
    The products' folders, and the reason for those that cannot be used, by item id. What is damaged stays where it is;
    the reason says what to delete to have it fetched again.
    """
    roots, damaged = {}, {}
    for number, file in files.items():
        spoilt = {file.name: None}
        try:
            root = safe.unpack(file, folder) if file.suffix == ".zip" else file
            spoilt[root.name] = None
            if differences := safe.verify(root) if safe.is_product(root) else []:
                raise Rejected(f"{len(differences)} files differ from its manifest, the first: {differences[0]}")
            roots[number] = root
        except Rejected as error:
            names = " and ".join(spoilt)
            damaged[number] = f"{error} Delete {names} in {folder.name} and run again; nothing is ordered again."
    return roots, damaged


def storage(settings: Settings) -> Any:
    """A boto3 client for the storage that PRIVATE orders write to."""
    url = str(settings.hook_output_storage_url).rstrip("/")
    keys = settings.hook_output_storage_access_key, settings.hook_output_storage_secret_key
    return objectstore.elsewhere(objectstore.at(url, *keys, settings))


def delivered(item: dict, in_bucket: dict[str, int]) -> dict[str, str]:
    """The keys of one item in the bucket, and the path below its product's folder (or its file name) for each.

    ``in_bucket`` is what lies under the order's prefix. How deep, and whether as a tree or as an archive, is documented
    nowhere: what belongs to an item has its product's name, with or without .SAFE and .zip, somewhere in its path.
    """
    wanted = safe.name_of(item.get("ProcessedName") or product_of(item))
    found = {}
    for key in in_bucket:
        parts = key.split("/")
        start = next((n for n, part in enumerate(parts) if safe.name_of(part) == wanted), None)
        if start is not None and ".." not in parts[start:] and parts[-1]:
            found[key] = "/".join(parts[start:])
    return found


def verdict(keys: dict[str, str], in_bucket: dict[str, int], read: Callable[[str], bytes]) -> str:
    """Whether what :func:`delivered` found is all there: "ok", or what is wrong.

    A tree is held against its own manifest, which ``read`` gets by its key: size of every member. An archive has to be
    there; its inside is checked when it is downloaded.
    """
    if not keys:
        return "missing"
    if empty := [path for key, path in keys.items() if not in_bucket[key] and path.endswith((".zip", *safe.MANIFESTS))]:
        return f"empty: {empty[0]}"
    manifest = next((key for key in keys if key.endswith(safe.MANIFESTS)), None)
    if manifest is None:
        return "ok"
    root = manifest.rpartition("/")[0]
    try:
        listed = safe.listed(read(manifest))
    except Rejected as error:
        return str(error)
    there = {one: in_bucket.get(f"{root}/{one.path}") for one in listed}
    wrong = [one.path for one, size in there.items() if size is None or one.size not in (-1, size)]
    return f"{len(wrong)} of its files are missing or differ, the first: {wrong[0]}" if wrong else "ok"


def bring_from_bucket(
    s3: Any,
    bucket: str,
    keys: dict[str, str],
    in_bucket: dict[str, int],
    folder: Path,
    *,
    show: Callable[[str], object] = lambda line: None,
) -> Path:
    """Download the objects of one item; returns its folder, or its file. What is there with its size is not repeated.

    ``keys`` as from :func:`delivered`, ``in_bucket`` the sizes by key; ``show`` as of :func:`download`.

    Raises
    ------
    Rejected
        All objects that could not be downloaded, with S3's reasons. The others are there.
    """

    def get(key: str, target: Path, moving: Moving) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            s3.download_file(bucket, key, target, Callback=moving)  # under another name until it is whole
        except (ClientError, BotoCoreError, Boto3Error) as error:
            raise FailedRemotely(f"{key}: {error}") from None

    def missing(key: str, path: Path) -> bool:
        return not path.is_file() or path.stat().st_size != in_bucket[key]

    wanted = {key: folder / path for key, path in keys.items() if missing(key, folder / path)}
    with told(show, len(wanted), sum(in_bucket[key] for key in wanted), lines=Progress) as progress:
        work = {
            key: tracked(progress, key, partial(get, key, target, progress.of(key))) for key, target in wanted.items()
        }
        _, failures = in_parallel(work)
    if failures:
        raise Rejected.because(f"Not everything could be downloaded from {bucket}", list(failures.values()))
    return folder / next(iter(keys.values())).split("/")[0]


# --- afterwards ---


def outcome(items: list[dict], failures: dict[int, str], products: Iterable[str] = ()) -> list[dict]:
    """One row for each product: ``product``, ``status``, and ``why`` it is not here, if it is not.

    ``failures`` are reasons by item id, as :func:`download` and :func:`unpack` return them; ``products`` are those that
    were ordered: an order can end without ever having an item for them. "Partially completed" is no state that the
    service knows: it is some good rows and some bad ones.
    """
    there = {safe.name_of(product_of(item)) for item in items}
    absent = {"status": "no item", "why": "the order ended without it"}
    rows = [
        {
            "product": product_of(item),
            "status": status(item),
            "why": failures.get(item["Id"])
            or ("" if status(item) == "completed" else item.get("StatusMessage") or "the service gives no reason"),
        }
        for item in items
    ]
    return rows + [{"product": name, **absent} for name in products if safe.name_of(name) not in there]


def provenance(order: dict, order_id: int, items: list[dict], files: dict[int, Path], hook: Hook) -> dict:
    """Where the files of a run come from: service, order, options (without secrets), and a checksum of each file."""
    shown = without_secrets(order)
    return {
        "service": hook.url,
        "order": {"id": order_id, "name": order["Name"], "workflow": order["WorkflowName"]},
        "options": {entry["Name"]: entry["Value"] for entry in shown["WorkflowOptions"]},
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "items": [
            {
                "id": item["Id"],
                "product": product_of(item),
                "status": status(item),
                "completed": item.get("CompletedDate"),
                **({"file": files[item["Id"]].name, **_checksum(files[item["Id"]])} if item["Id"] in files else {}),
            }
            for item in items
        ],
    }


def _checksum(path: Path) -> dict:
    if path.is_dir():
        return {"bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file())}
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def remember(state: RunState, *, paths: Iterable[Path] = (), bucket: str = "", keys: dict | None = None) -> None:
    """Add to what :func:`clean_up` will delete: ``paths`` on this disk; in ``bucket``, the ``keys`` of each item."""
    written = state.get("written", {"paths": [], "keys": [], "bucket": bucket})
    written["paths"] = sorted({*written["paths"], *map(str, paths)})
    written["keys"] = sorted({*written["keys"], *(key for mine in (keys or {}).values() for key in mine)})
    state.save(written=written)


def clean_up(state: RunState, hook: Hook, settings: Settings) -> dict[str, int]:
    """Withdraw what is still queued of the run's order, and delete exactly what :func:`remember` noted.

    Can be repeated, also after being killed half-way. The bucket itself stays.

    Returns
    -------
    How many orders were ``cancelled``, and how many ``files`` and ``objects`` deleted.
    """
    state.save(cleaning=True)
    orders = [entry["id"] for entry in state.get(once.NOTES, []) if entry["id"] is not None]
    open_orders = [
        one for one in orders if any(status(i) == "queued" for i in pages(hook, f"BatchOrder({one})/Products"))
    ]
    for order_id in open_orders:
        cancel(order_id, hook)
    written = state.get("written", {})
    paths, keys = [Path(path) for path in written.get("paths", [])], written.get("keys", [])
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for folder in {path.parent for path in paths if path.parent.is_dir() and not any(path.parent.iterdir())}:
        folder.rmdir()
    if keys:
        objectstore.delete(storage(settings), written["bucket"], keys)
    state.save(cleaned=True, written={})
    return {"cancelled": len(open_orders), "files": len(paths), "objects": len(keys)}
