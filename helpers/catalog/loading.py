"""From messages to the catalogue: fetched at once, checked one by one, stored in one load per collection.

The order of things makes a kill at any moment harmless: a message is done with only when what it says is committed, and
saying it again changes nothing.
"""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from threading import Event
from typing import TYPE_CHECKING, Any

from ..errors import NotConfigured, Rejected, TimedOut
from ..progress import Progress, told
from ..settings import Settings
from . import messages
from .fetching import Fetched, Fetcher
from .messages import Located, Message, Said, Unreadable
from .store import Entry, Loaded, Origin, Removal, Store, connect

if TYPE_CHECKING:
    from .consuming import Consumed

#: What to do about items of a collection that is not there: refuse them, create it from this template (its id is put
#: in), or ask: called with the collection's id and its items, it returns a collection, or None to refuse.
Missing = str | dict | Callable[[str, list[dict]], dict | None]
Fetch = Callable[[list[Located]], dict[Located, Fetched]]


@dataclass
class Batch:
    """What is known about the messages of one load."""

    messages: list[Message] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    collections: list[tuple[dict, Origin, str]] = field(default_factory=list)
    removals: list[Removal] = field(default_factory=list)
    #: Message id -> reasons, and -> (collection, item) of the first.
    reasons: dict[str, list[str]] = field(default_factory=dict)
    about: dict[str, tuple[str, str]] = field(default_factory=dict)
    passing: set[str] = field(default_factory=set)  #: failed, but the same again may do

    def fail(self, message_id: str, reason: str, item: dict | None = None, passing: bool = False) -> None:
        """Note that the message failed, and why; what else it says is stored all the same."""
        known, reason = self.reasons.setdefault(message_id, []), _plain(reason, 1000)
        if reason not in known and len(known) < 20:
            known.append(reason)
        names = tuple(_plain(str((item or {}).get(key) or ""), 300) for key in ("collection", "id"))
        self.about.setdefault(message_id, names)  # type: ignore[arg-type]
        if passing:
            self.passing.add(message_id)


class Loader:
    """Loads what messages say into a store.

    Parameters
    ----------
    store:
        Where to; not used by others meanwhile.
    fetch:
        Fetches the objects that events point to; by default with the settings of the environment.
    missing_collection:
        "refuse", or how to make a collection that items name and the store does not have (:data:`Missing`).
    check:
        Hold every item against STAC's schemas first; without, only what the store itself refuses is refused.
    """

    def __init__(
        self, store: Store, *, fetch: Fetch | None = None, missing_collection: Missing = "refuse", check: bool = True
    ):
        if isinstance(missing_collection, str) and missing_collection != "refuse":
            raise Rejected('missing_collection must be "refuse", a template (dict) or a function.')
        self._store, self._fetch, self._missing, self._check = store, fetch, missing_collection, check
        self._known: set[str] = set()  # collections that the store has
        self.reasons: dict[str, str] = {}  #: of the last load, by message id
        self.passing: set[str] = set()  #: ids of those whose reason may go away by itself
        self.loaded = Loaded()  #: what became of the items of the last load
        self.removed = 0  #: items that its removals took out

    def load(self, records: list[dict]) -> list[str]:
        """Load what SQS records say; return the ids of the messages that failed, in their order.

        Everything of the others is committed. Why the messages failed is in :attr:`reasons`, and in the store. A record
        without an id is called "record <its place>".

        Raises
        ------
        TimedOut
            The database does not answer. None of the messages is done with then: load them again.
        """
        batch = self._read(records)
        self._put_collections(batch)
        found = self._stored(batch, self._checked(batch))
        removed = self._store.remove(batch.removals) if batch.removals else 0
        self.reasons = {name: "; ".join(reasons) for name, reasons in batch.reasons.items()}
        self.passing, self.loaded, self.removed = batch.passing, found, removed
        named = {message.id for message in batch.messages if message.named}
        noted = {name: (*batch.about[name], why) for name, why in self.reasons.items() if name in named}
        if noted:
            self._store.note_failures(noted)
        return [message.id for message in batch.messages if message.id in self.reasons]

    # --- what the messages say ---

    def _read(self, records: list[dict]) -> Batch:
        batch = Batch()
        written: list[tuple[Located, Origin, str]] = []
        for number, record in enumerate(records):
            message = Message(id=f"record {number}", body="", sent=messages.NEVER, named=False)
            try:
                message = messages.message(record, number)
                said = messages.read(message)
            except Unreadable as error:
                batch.fail(message.id, str(error))
            else:
                self._take(said, message.id, batch)
                written += [(one, origin, message.id) for one, origin in said.written]
                batch.removals += [Removal(o.bucket, o.key, o, message.id) for o in said.removed]
            batch.messages.append(message)
        self._look(written, batch)
        return batch

    def _take(self, said: Said, message_id: str, batch: Batch) -> None:
        # One item in an object of its own, which nothing else in it could miss.
        alone = len(said.items) == 1 and not said.collections and bool(said.items[0][1].key)
        batch.entries += [Entry(item, origin, message_id, alone) for item, origin in said.items]
        batch.collections += [(collection, origin, message_id) for collection, origin in said.collections]

    def _look(self, written: list[tuple[Located, Origin, str]], batch: Batch) -> None:
        """Fetch the objects that were written, each once, and take what is in them."""
        if not written:
            return
        if self._fetch is None:
            from ..settings import load

            self._fetch = Fetcher(load())
        found = self._fetch([one for one, _, _ in written])
        for one, origin, message_id in written:
            it = found[one]
            if it.problem:
                batch.fail(message_id, it.problem, passing=it.passing)
            elif it.body is None:
                # Gone since: what an older event brought of it is to go as well.
                batch.removals.append(Removal(one.bucket, one.key, origin, message_id))
            else:
                try:
                    said = messages.contents(it.body, replace(origin, etag=it.etag or origin.etag))
                except Unreadable as error:
                    batch.fail(message_id, f"s3://{one.bucket}/{one.key}: {error}")
                else:
                    self._take(said, message_id, batch)

    # --- what can be stored of it ---

    def _checked(self, batch: Batch) -> dict[str, list[Entry]]:
        """Entries by collection; those that no catalogue could take are refused."""
        if self._check:
            from .checking import normalised, problems
        else:
            problems, normalised = _problems, _as_it_is
        fit: dict[str, list[Entry]] = {}
        known: dict[int, tuple[dict, str]] = {}  # an item may come in several entries
        for entry in batch.entries:
            if id(entry.item) not in known:
                item = normalised(entry.item)
                known[id(entry.item)] = item, "; ".join(problems(item))
            item, wrong = known[id(entry.item)]
            if wrong:
                batch.fail(entry.message_id, f"item {_shown(item.get('id'))}: {wrong}", item)
            else:
                fit.setdefault(item["collection"], []).append(replace(entry, item=item))
        return fit

    def _put_collections(self, batch: Batch) -> None:
        for collection, origin, message_id in sorted(batch.collections, key=lambda one: one[1].order):
            faults = _collection_problems(collection) if self._check else []
            try:
                if not faults:
                    self._store.put_collection(collection, origin)
                    self._known.add(collection["id"])
            except Rejected as error:
                faults = [str(error)]
            if faults:
                named = {"collection": collection["id"]}
                batch.fail(message_id, f"collection {_shown(collection['id'])}: {'; '.join(faults)}", named)

    def _stored(self, batch: Batch, by_collection: dict[str, list[Entry]]) -> Loaded:
        found = Loaded()
        for collection, entries in by_collection.items():
            try:
                found += self._load(collection, entries)
            except Rejected as error:
                for entry in entries:
                    batch.fail(entry.message_id, str(error), entry.item)
        items = {entry.named: entry.item for entry in batch.entries}
        for name, reason in found.refused.items():
            batch.fail(name, reason, items.get(name))
        return found

    def _load(self, collection: str, entries: list[Entry]) -> Loaded:
        self._ensure(collection, entries)
        try:
            return self._store.load(collection, entries)
        except Rejected:
            if collection in self._store.collections():
                raise
        self._known.discard(collection)  # somebody deleted it
        self._ensure(collection, entries)
        return self._store.load(collection, entries)

    def _ensure(self, collection: str, entries: list[Entry]) -> None:
        """Make sure that the collection is there, as far as that was asked for."""
        if collection not in self._known:
            self._known = set(self._store.collections())
        if collection in self._known:
            return
        made = self._made(collection, entries)
        if made is None:
            raise Rejected(
                f"there is no collection {_shown(collection)} in the catalogue; store it, then send this again"
            )
        self._store.put_collection(made)
        self._known.add(collection)

    def _made(self, collection: str, entries: list[Entry]) -> dict | None:
        if callable(self._missing):
            return self._missing(collection, [entry.item for entry in entries])
        return {**deepcopy(self._missing), "id": collection} if isinstance(self._missing, dict) else None


def _plain(text: str, most: int) -> str:
    """Text that any database can hold: an item's own words may be in it."""
    text = text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _as_it_is(item: dict) -> dict:
    return item


def _problems(item: dict) -> list[str]:
    """The least that a store needs."""
    names = {key: item.get(key) for key in ("id", "collection")}
    return [f"{key}: missing, or no plain text" for key, name in names.items() if not _is_name(name)]


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and name != "" and _plain(name, len(name)) == name


def _collection_problems(collection: dict) -> list[str]:
    from .checking import collection_problems

    return collection_problems(collection)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


# --- on AWS Lambda ---

_ready: list[Loader] = []  # between the calls of one process


def handler(event: dict, context: Any) -> dict:
    """AWS Lambda: load the SQS records of ``event``; answer which of them failed.

    The event source mapping needs `FunctionResponseTypes: [ReportBatchItemFailures]`. Settings come from the
    environment (CATALOG_DSN); connection and clients are kept for the next call.

    Raises
    ------
    TimedOut, NotConfigured, Rejected
        The database cannot be used at all: the whole batch comes again.
    """
    records = event.get("Records") or []
    try:
        failed = _loader().load(records)
    except TimedOut:
        # The connection of an earlier call may have died in its sleep; what is stored twice does no harm.
        failed = _loader().load(records)
    loader = _loader()
    done = loader.loaded
    told = {"records": len(records), "stored": done.stored, "stale": done.stale, "duplicates": done.duplicates}
    print(json.dumps(told | {"removed": loader.removed, "failed": loader.reasons}))
    # The empty name stands for one that has none: Lambda then sends the whole batch again.
    named = {messages.message(one).id for one in records if isinstance(one, dict)} - {"record 0"}
    return {"batchItemFailures": [{"itemIdentifier": name if name in named else ""} for name in failed]}


def _loader() -> Loader:
    if not _ready:
        from ..settings import read

        settings = read()
        if settings.catalog_dsn is None:
            raise NotConfigured("CATALOG_DSN is not set: the function needs to know the catalogue's database.")
        _ready.append(Loader(connect(settings.catalog_dsn), fetch=Fetcher(settings)))
    return _ready[0]


# --- as long as there is work ---


def consume(
    queue_url: str,
    store: Store,
    *,
    settings: Settings,
    until: str | float | Event = "empty",
    batch: int = 500,
    wait_seconds: float = 1.0,
    invisible_seconds: int = 60,
    missing_collection: Missing = "refuse",
    loader: Loader | None = None,
    show: Callable[[str], object] = print,
) -> "Consumed":
    """Load the messages of a queue, batch after batch. Stops cleanly on SIGTERM; may be killed at any moment.

    Only messages whose content is committed are deleted. Failed ones go back to the queue at once (or, when their
    reason may go away by itself, after a while): SQS moves them to the dead-letter queue when they have failed often
    enough. While the database does not answer, the messages in hand are kept and tried again.

    Parameters
    ----------
    until:
        "empty": until the queue has nothing more; seconds: for so long; an Event: until it is set.
    batch:
        Messages of one load at most. SQS gives ten at a time: several calls fill it.
    wait_seconds:
        How long to wait for messages (long polling), 20 at most.
    invisible_seconds:
        After a kill, the messages in hand come again so late; while they are worked on, that is renewed.
    missing_collection, loader:
        As of :class:`Loader`, which is made unless it is given.
    show:
        Gets a line for each batch; or a :class:`helpers.progress.Progress`, such as a notebook's bar.

    Returns
    -------
    Counts, and the reasons of the messages that failed.

    Raises
    ------
    Rejected, TimedOut
        SQS refuses us, or does not answer, or the database does not while ``until`` ends.
    """
    from .consuming import Consumer

    loader = loader or Loader(store, fetch=Fetcher(settings), missing_collection=missing_collection)
    options = {"batch": batch, "wait_seconds": wait_seconds, "invisible": invisible_seconds}
    with told(show, None, lines=Progress) as progress:
        return Consumer(queue_url, loader, settings, **options, progress=progress).run(until)
