"""What becomes of an order at the Hook stand-in: its items are queued, processed, and written to a storage.

An item's input must be found at its source, its workflow must be able to make something of it, and the storage must
take it; whatever says no fails the item with its words, and no other item.
"""

import io
import re
import threading
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache, partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import requests
from botocore.exceptions import BotoCoreError, ClientError

from .hook_entities import COMPLETED, FAILED, IN_PROGRESS, QUEUED, Item, Order
from .hook_storage import open_s3, write_private
from .identity import Identity

if TYPE_CHECKING:
    from .hook import Hook

#: How long temporary storage keeps an object, and its link is good.
TEMPORARY_DAYS = 14
#: What a finished item says.
SUCCESS = "Processing finished successfully"


class Failure(Exception):
    """An item fails; the message is its StatusMessage."""


@dataclass(frozen=True)
class Output:
    """What a workflow made: a name, and a ZIP archive of the files."""

    name: str
    archive: bytes


# --- sources ---


def find_input(identifier: str, options: dict, identity: Identity, collections: dict[str, str]) -> None:
    """Look the product up where the order says; workflows without a source_type bring their own input.

    Raises
    ------
    Failure
        The login fails there, or the product is not there.
    """
    source = options.get("source_type")
    if source == "DESP":
        if not identity.accepts(str(options["desp_source_username"]), str(options["desp_source_password"])):
            raise Failure("DESP: Invalid user credentials")
        collection = options["desp_source_collection"]
        if collection != collection_of(identifier, collections):
            raise Failure(f"DESP: {identifier!r} not found in collection {collection!r}")
    elif source == "EXTERNAL":
        with requests.Session() as session:
            session.trust_env = False  # no proxy stands between the services of the sandbox
            _look_up(session, identifier, options)


def _look_up(session: requests.Session, identifier: str, options: dict) -> None:
    form = {"grant_type": "password" if options["source_grant_type"] == "PASSWORD" else "client_credentials"}
    form |= {name: str(options.get(f"source_{name}") or "") for name in ("client_id", "client_secret")}
    if form["grant_type"] == "password":
        form |= {name: str(options[f"source_{name}"]) for name in ("username", "password")}
    answer = session.post(str(options["source_token_url"]), data=form, timeout=10)
    if not answer.ok:
        raise Failure(f"EXTERNAL: no token, {answer.status_code} {_reason(answer)}")
    session.headers[str(options["source_auth_header_name"])] = f"Bearer {answer.json()['access_token']}"
    api, collection = str(options["source_catalogue_api_url"]).rstrip("/"), options.get("source_catalogue_collection")
    if options["source_catalogue_api_type"] == "STAC":
        answer = session.get(f"{api}/collections/{collection}/items/{quote(identifier)}", timeout=10)
        found = answer.ok
    else:
        query = {"$filter": "Name eq '{}'".format(identifier.replace("'", "''"))}
        answer = session.get(f"{api}/Products", params=query, timeout=10)
        found = answer.ok and bool(answer.json().get("value"))
    if not answer.ok:
        raise Failure(f"EXTERNAL: {identifier!r} not found, {answer.status_code} {_reason(answer)}")
    if not found:
        raise Failure(f"EXTERNAL: {identifier!r} not found")


def _reason(answer: requests.Response) -> str:
    """What the other side says, in the words of Keycloak, FastAPI or STAC."""
    with suppress(ValueError, AttributeError):
        body = answer.json()
        return str(body.get("error_description") or body.get("detail") or body.get("description") or answer.reason)
    return answer.reason


def collection_of(identifier: str, collections: dict[str, str]) -> str | None:
    """The collection that a product belongs to by its name, if it is one of those the catalogues have."""
    return next((name for pattern, name in collections.items() if re.match(pattern, identifier)), None)


# --- what workflows make ---


def stem(identifier: str) -> str:
    return re.sub(r"\.(SAFE|SEN3|zip)$", "", identifier)


def make(workflow: dict, identifier: str, options: dict) -> Output:
    """What the workflow makes of a product.

    Raises
    ------
    Failure, ValueError
        It cannot: the wrong kind of product, or a name that the sandbox has no product for.
    """
    if workflow["makes"] == "greeting":
        client, bucket, prefix = open_s3(options, "source")
        found = client.get_object(Bucket=bucket, Key=str(PurePosixPath(prefix) / "example.data"))
        return _packed("example.data", "example.data", found["Body"].read().upper())
    if not re.match(workflow["accepts"], identifier):
        raise Failure(f"{workflow['Name']} takes {workflow['of']}, {identifier!r} is none")
    if workflow["makes"] == "raster":
        name = f"{stem(identifier)}_{workflow['suffix'].format_map(options)}"
        return _packed(name, f"{name}/{name}.tif", _raster(workflow["Name"], stem(identifier)))
    # The same times and baseline as the input: the name of what these processors really write is another.
    name = stem(identifier)
    if workflow["makes"] == "level-2a":
        name = name.replace("_MSIL1C_", "_MSIL2A_")
    return Output(f"{name}.SAFE", _safe(name))


@lru_cache(maxsize=16)
def _safe(name: str) -> bytes:
    """The archive of a product, made once: the same name gives the same bytes."""
    from .safe_products import safe_zip  # here: nobody should wait for what it needs at the start

    return safe_zip(name)


def _packed(name: str, member: str, body: bytes) -> Output:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(member, body)
    return Output(name, out.getvalue())


def _raster(workflow: str, product: str) -> bytes:
    """A GeoTIFF at the place of the product, with values in the range of what the workflow computes."""
    import numpy as np

    from . import products

    grid = products._grid([product], spacing=200, pixels=60_000)
    land = products._landscape(grid, [product])
    values = {
        "card_bs": lambda: 10 ** ((1.5 * land.facing + land.cover - 12) / 10),  # gamma0
        "card_cohinf": lambda: np.clip(0.6 - 0.2 * land.cover, 0, 1),  # coherence
        "lai": lambda: np.clip(2.5 + land.cover, 0, 7),  # m2/m2
        "c2rcc": lambda: np.exp(0.5 + 0.6 * land.cover),  # chlorophyll, mg/m3
        "copdem": lambda: land.dem,  # m
        "odp-test": lambda: land.cover,
    }[workflow]()
    return products._geotiff(grid, values.astype("f4"), grid.mask, empty=float("nan"))


# --- time ---


class Processor:
    """Moves items queued -> in_progress -> completed | failed as the clock passes, so many at a time for each user.

    Parameters
    ----------
    service:
        Whose orders they are; changed in place under its lock.
    queued, processing:
        Seconds that an item waits at least, and takes.
    """

    #: How private storage is written: see `write_private`.
    layout = "tree"

    def __init__(self, service: "Hook", queued: float, processing: float):
        self.service, self.clock, self.traffic = service, service.clock, service.traffic
        self.queued, self.processing = timedelta(seconds=queued), timedelta(seconds=processing)
        self._freed: dict[str, datetime] = {}  # when a user's last place became free
        self._stop = threading.Event()
        self._working = threading.Lock()

    def pausing(self) -> threading.Lock:
        """A context in which no step is taken."""
        return self._working

    def run_due(self) -> None:
        """Take every step that the clock has passed, one after the other; returns when their effects are there."""
        with self._working:
            while not self._stop.is_set() and (due := self._next(self.clock.now())):
                due()

    def _next(self, now: datetime) -> Callable[[], None] | None:
        """The earliest step not after ``now``; ends before starts, so that a place is free when it is wanted."""
        steps: list[tuple[datetime, int, int, Callable[[], None]]] = []
        with self.service.lock:
            open_items = [
                (o, i) for o in self.service.orders.values() for i in o.items if i.status in (QUEUED, IN_PROGRESS)
            ]
            busy: dict[str, int] = {}
            for order, item in open_items:
                if item.status == IN_PROGRESS:
                    busy[order.owner] = busy.get(order.owner, 0) + 1
                    steps.append((item.ends, -1000, item.id, partial(self.finish, order, item)))
            for order, item in open_items:
                if item.status == QUEUED and busy.get(order.owner, 0) < order.at_a_time:
                    when = max(item.ready, self._freed.get(order.owner, item.ready))
                    steps.append((when, -order.priority, item.id, partial(self.start, order, item, when)))
        due = [step for step in steps if step[0] <= now]
        return min(due, key=lambda step: step[:3])[3] if due else None

    def start(self, order: Order, item: Item, when: datetime) -> None:
        cancelled = self.traffic.take("cancelled", "hook", order.name or "")
        with self.service.lock:
            if cancelled:
                order.cancel(when, "Cancelled by the operator")
            elif item.status == QUEUED:
                item.become(IN_PROGRESS, when, ends=when + self.processing)
                order.estimated = order.estimated or item.ends  # of the first item: the others take longer

    def finish(self, order: Order, item: Item) -> None:
        when = item.ends
        try:
            if self.traffic.take("failed-item", "hook", item.identifier):
                raise Failure("Processing failed: the processor ended with exit code 1")
            made = self._process(order, item, when)
            status, message = COMPLETED, SUCCESS
            made["completed"] = when
            if self.traffic.take("null-dates", "hook", item.identifier):
                made["completed"] = message = None
        except Exception as error:  # noqa: BLE001 - whatever it is, it fails this item and no other
            status, message, made = FAILED, _words(error), {"completed": when}
        with self.service.lock:
            item.become(status, when, message, **made)
            self._freed[order.owner] = when

    def _process(self, order: Order, item: Item, when: datetime) -> dict[str, Any]:
        options = self.service.options(order)
        find_input(item.identifier, options, self.service.identity, self.service.collections)
        output = make(order.workflow, item.identifier, options)
        if options["output_storage"] == "PRIVATE":
            return {"name": output.name, "size": write_private(options, output.name, output.archive, self.layout)}
        storage = self.service.storage
        name = storage.keep(item.id, output.archive, when)
        link = fresh = storage.link(name, when + timedelta(days=TEMPORARY_DAYS))
        if self.traffic.take("expired-link", "hook", item.identifier):
            link = storage.link(name, when)
        return {"name": output.name, "size": len(output.archive), "link": link, "fresh_link": fresh}

    def keep_running(self) -> None:
        """Run due steps in a background thread until :meth:`stop`."""

        def loop() -> None:
            while not self._stop.wait(0.05):
                self.run_due()

        threading.Thread(target=loop, name="hook-processor", daemon=True).start()

    def stop(self) -> None:
        """Take no further step; returns when the one under way is done."""
        self._stop.set()
        with self._working:
            pass


def _words(error: Exception) -> str:
    """The reason as the other side gave it, without URLs that could hold a secret."""
    if isinstance(error, ClientError):
        return "S3: {Code}: {Message}".format_map({"Message": ""} | error.response["Error"])
    if isinstance(error, requests.RequestException):
        return f"The source cannot be reached: {type(error).__name__}"
    return str(error) if isinstance(error, Failure | ValueError | BotoCoreError) else repr(error)
