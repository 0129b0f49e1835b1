"""A catalogue as the recipe sees it: whichever database is behind, items go in newest-wins and come out as sent."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol, Self

from pydantic import SecretStr

from ..errors import NotConfigured, Rejected
from ..settings import Settings

#: What a data source name may begin with, and whose it is.
PGSTAC, EMBEDDED = ("postgresql://", "postgres://"), ("sqlite://",)


@dataclass(frozen=True)
class Origin:
    """Where an item's text came from, and when: what "newest" means."""

    time: datetime  #: of the event: S3's `eventTime`, else when SNS, else when SQS took the message
    sequencer: str = ""  #: of the S3 event, hexadecimal: which of two events of the same moment came later
    bucket: str = ""
    key: str = ""  #: of the object that holds the item, if there is one
    etag: str = ""

    @property
    def order(self) -> tuple[datetime, str]:
        """Greater is newer; equal is the same event, or one that may take its place.

        Sequencers of unlike length are compared as if filled with zeros on the right (Amazon S3 User Guide, "Event
        message structure"); without the zeros at its end each compares as text, in Python and in a database.
        """
        time = self.time if self.time.tzinfo else self.time.replace(tzinfo=UTC)
        return time.astimezone(UTC), self.sequencer.upper().rstrip("0")


@dataclass(frozen=True)
class Entry:
    """One item to store."""

    item: dict
    origin: Origin
    message_id: str = ""  #: of the message that brought it
    alone: bool = False  #: its object holds this item and nothing else

    @property
    def named(self) -> str:
        """What a refusal is filed under: the message, or the item when there was none."""
        return self.message_id or str(self.item.get("id"))


@dataclass(frozen=True)
class Removal:
    """The object ``key`` is gone: what came out of it is to go as well."""

    bucket: str
    key: str
    origin: Origin
    message_id: str = ""


@dataclass
class Loaded:
    """What became of the entries of one load; each is counted once, or named in ``refused``."""

    stored: int = 0
    stale: int = 0  #: something newer was there, or came along in the same load
    duplicates: int = 0  #: the very event had been stored before, or came twice; storing it again changed nothing
    refused: dict[str, str] = field(default_factory=dict)  #: message id (else item id) -> reason

    def refuse(self, entry: Entry, reason: str) -> None:
        """File ``reason``, beside those of other items of the same message."""
        known = self.refused.get(entry.named)
        self.refused[entry.named] = f"{known}; {reason}" if known else reason

    def __add__(self, other: "Loaded") -> "Loaded":
        refused = dict(self.refused)
        for name, reason in other.refused.items():
            refused[name] = f"{refused[name]}; {reason}" if name in refused else reason
        counts = (getattr(self, name) + getattr(other, name) for name in ("stored", "stale", "duplicates"))
        return Loaded(*counts, refused)


class Store(Protocol):
    """A catalogue with a memory of which event each item came from. Safe to kill at any moment; not for two threads.

    Every method raises :class:`helpers.errors.TimedOut` when the database does not answer (nothing of the call is
    lost then: call it again) and :class:`helpers.errors.Rejected` when it refuses what was asked.
    """

    kind: str  #: "pgstac" or "embedded"

    def collections(self) -> dict[str, dict]:
        """All collections by id."""
        ...

    def put_collection(self, collection: dict, origin: Origin | None = None) -> bool:
        """Create the collection, or replace it and keep its items; whether that was done.

        It was not when ``origin`` is given and one with a greater order was stored before: the newest wins here too.
        """
        ...

    def delete_collection(self, collection_id: str) -> int:
        """Delete it with its items and all memory of them; how many items that were (0: it was not there)."""
        ...

    def load(self, collection: str, entries: list[Entry]) -> Loaded:
        """Store items of one collection, which is there, in one bulk load.

        Of several entries for one item the one with the greatest ``origin.order`` wins, within this call and against
        everything earlier calls stored or removed; of equal ones the last. What the database cannot take is refused,
        with an older entry that it can take stored instead; the others are stored all the same. What an object held
        before it held an item alone goes: such an object was given another content.
        """
        ...

    def remove(self, removals: list[Removal]) -> int:
        """Delete the items that came from these objects, unless by a newer event; how many.

        Remembered: an older entry of such an object, arriving later, is stale. An entry of the very same order stays.
        """
        ...

    def item(self, collection: str, item_id: str) -> dict | None:
        """The item as it was sent, or None."""
        ...

    def count(self, collection: str) -> int:
        """How many items a collection has (0: or it is not there)."""
        ...

    def search(
        self,
        *,
        ids: list[str] | None = None,
        collections: list[str] | None = None,
        bbox: list[float] | None = None,
        intersects: dict | None = None,
        datetime: str | None = None,
        limit: int = 10_000,
    ) -> list[dict]:
        """Items that meet all conditions, the newest first; ``datetime`` and the others as in a STAC API."""
        ...

    def ledger(self, bucket: str, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
        """Key, ETag, collection and item id of all items in the catalogue that came from ``bucket``, streamed.

        Ordered by the key's bytes, as S3 lists. Items that somebody else took out of the catalogue are left out.
        """
        ...

    def origins(self, collection: str, ids: list[str]) -> dict[str, Origin]:
        """What holds each of these items: the event that brought it, with the object, or without when it was a message.

        Only items that are in the catalogue, and whose event is known.
        """
        ...

    def note_failures(self, failures: dict[str, tuple[str, str, str]]) -> None:
        """Remember why messages failed: message id -> (collection, item id, reason)."""
        ...

    def failures(self, message_ids: list[str]) -> dict[str, str]:
        """The reasons that are known of these messages."""
        ...

    def close(self) -> None:
        """Give back what the store holds. It may be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: Any) -> None: ...


def connect(where: str | SecretStr | Settings | None = None) -> Store:
    """Open the catalogue at a data source name, or that of the settings (CATALOG_DSN).

    Parameters
    ----------
    where:
        ``postgresql://...`` of a database with pgstac, ``sqlite:///file`` of the embedded store (made if it is not
        there), settings, or None for those of the environment.

    Raises
    ------
    NotConfigured
        No data source name, or one of a kind that is not known. It is never shown: it holds a password.
    TimedOut, Rejected
        The database does not answer, or refuses us, or has no pgstac.
    """
    dsn = _dsn(where)
    if dsn.startswith(PGSTAC):
        from .pgstac import PgStore

        return PgStore(dsn)
    if dsn.startswith(EMBEDDED):
        from .embedded import EmbeddedStore

        return EmbeddedStore(dsn)
    raise NotConfigured("CATALOG_DSN must begin with postgresql:// (a pgstac database) or sqlite:/// (a file).")


def _dsn(where: str | SecretStr | Settings | None) -> str:
    if isinstance(where, str):
        return where
    if isinstance(where, SecretStr):
        return where.get_secret_value()
    if where is None:
        from ..settings import load

        where = load()
    where.require("catalog database")
    return where.catalog_dsn.get_secret_value() if where.catalog_dsn else ""


# --- what both stores do alike ---


def by_item(entries: list[Entry]) -> tuple[dict[str, list[Entry]], int]:
    """Entries by item id, each list with the winner first and then what may take its place; and how many came twice.

    Raises
    ------
    Rejected
        An entry has no id: checks come before the store.
    """
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        item_id = entry.item.get("id")
        if not isinstance(item_id, str):
            raise Rejected(f"An item without an id cannot be stored (message {entry.message_id or 'unknown'}).")
        found.setdefault(item_id, []).append(entry)
    twice = 0
    for item_id, those in found.items():
        if len(those) == 1:
            continue
        # Reversed before a stable sort: of equals the last goes first.
        ranked = sorted(reversed(those), key=lambda entry: entry.origin.order, reverse=True)
        kept = [ranked[0]]
        for entry in ranked[1:]:
            if entry.origin.order == kept[-1].origin.order and entry.item == kept[-1].item:
                twice += 1
            else:
                kept.append(entry)
        found[item_id] = kept
    return found, twice
