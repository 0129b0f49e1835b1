"""The catalogue in one SQLite file with an R*Tree: for machines without PostGIS, with the same promises as pgstac.

Any number of processes may use the file: one writes at a time, the others wait for it, and readers never do (WAL).
"""

import json
import math
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import batched
from pathlib import Path
from typing import Any, Self

import orjson

from .. import stac
from ..errors import Rejected, TimedOut
from ..settings import PROJECT
from .store import Entry, Loaded, Origin, Removal, by_item

#: Seconds to wait for another writer.
PATIENCE = 60
#: Items of one transaction.
CHUNK = 10_000
#: Days that the reasons of failures are kept, and bytes of an id: as in pgstac, so that both refuse the same.
KEPT_DAYS, LONGEST_ID = 60, 2600
#: Rows looked at together when the exact place decides.
TOGETHER = 500
#: The character as JSON writes it; a text that only names it has another backslash before.
NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
MICROSECOND = timedelta(microseconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

SCHEMA = """
CREATE TABLE IF NOT EXISTS collections (id TEXT PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS items (
    number INTEGER PRIMARY KEY,
    collection TEXT NOT NULL, id TEXT NOT NULL,
    first INTEGER NOT NULL, last INTEGER NOT NULL,
    west REAL NOT NULL, east REAL NOT NULL, south REAL NOT NULL, north REAL NOT NULL,
    shape BLOB NOT NULL, content BLOB NOT NULL,
    UNIQUE (collection, id)
);
CREATE INDEX IF NOT EXISTS items_by_time ON items (first DESC, id DESC);
CREATE VIRTUAL TABLE IF NOT EXISTS places USING rtree(number, west, east, south, north);
CREATE TRIGGER IF NOT EXISTS item_added AFTER INSERT ON items BEGIN
    INSERT INTO places VALUES (new.number, new.west, new.east, new.south, new.north);
END;
CREATE TRIGGER IF NOT EXISTS item_moved AFTER UPDATE ON items BEGIN
    UPDATE places SET west = new.west, east = new.east, south = new.south, north = new.north
    WHERE number = new.number;
END;
CREATE TRIGGER IF NOT EXISTS item_gone AFTER DELETE ON items BEGIN
    DELETE FROM places WHERE number = old.number;
END;
CREATE TABLE IF NOT EXISTS ledger (
    collection TEXT NOT NULL, item TEXT NOT NULL,
    time TEXT NOT NULL, sequencer TEXT NOT NULL,
    bucket TEXT NOT NULL, key TEXT NOT NULL, etag TEXT NOT NULL,
    removed INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (collection, item)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS ledger_objects ON ledger (bucket, key);
CREATE TABLE IF NOT EXISTS removals (
    bucket TEXT NOT NULL, key TEXT NOT NULL, time TEXT NOT NULL, sequencer TEXT NOT NULL,
    PRIMARY KEY (bucket, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failures (
    message_id TEXT PRIMARY KEY, collection TEXT NOT NULL, item TEXT NOT NULL, reason TEXT NOT NULL, time TEXT NOT NULL
) WITHOUT ROWID;
"""
TABLES = ("collections", "items", "ledger", "removals", "failures")

UPSERT = """
INSERT INTO items (collection, id, first, last, west, east, south, north, shape, content)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (collection, id) DO UPDATE SET
    first = excluded.first, last = excluded.last, west = excluded.west, east = excluded.east,
    south = excluded.south, north = excluded.north, shape = excluded.shape, content = excluded.content
"""
NOTE = """
INSERT INTO ledger (collection, item, time, sequencer, bucket, key, etag) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (collection, item) DO UPDATE SET
    time = excluded.time, sequencer = excluded.sequencer, bucket = excluded.bucket, key = excluded.key,
    etag = excluded.etag, removed = 0
"""
KNOWN = """
SELECT item, time, sequencer, removed FROM ledger
WHERE collection = ? AND item IN (SELECT value FROM json_each(?))
"""
GONE = """
SELECT r.bucket, r.key, r.time, r.sequencer FROM json_each(?) AS o
JOIN removals r ON r.bucket = json_extract(o.value, '$[0]') AND r.key = json_extract(o.value, '$[1]')
"""
NOTE_REMOVAL = """
INSERT INTO removals VALUES (:bucket, :key, :time, :sequencer)
ON CONFLICT (bucket, key) DO UPDATE SET time = excluded.time, sequencer = excluded.sequencer
WHERE (time, sequencer) < (excluded.time, excluded.sequencer)
"""
#: What came from a removed object by an older event becomes the memory of the removal itself; so does what an object
#: held before, when it holds one other item now.
FORGET = """
UPDATE ledger SET removed = 1, time = :time, sequencer = :sequencer
WHERE bucket = :bucket AND key = :key AND item <> '' AND NOT removed AND (time, sequencer) < (:time, :sequencer)
RETURNING collection, item
"""
LEDGER = """
SELECT l.key, l.etag, l.collection, l.item FROM ledger l
WHERE l.bucket = ? AND l.key >= ? AND substr(l.key, 1, length(?)) = ? AND NOT l.removed
    AND EXISTS (SELECT 1 FROM items i WHERE i.collection = l.collection AND i.id = l.item)
ORDER BY l.key
"""
ORIGINS = """
SELECT l.item, l.time, l.sequencer, l.bucket, l.key, l.etag FROM ledger l
WHERE l.collection = ? AND l.item IN (SELECT value FROM json_each(?)) AND NOT l.removed
    AND EXISTS (SELECT 1 FROM items i WHERE i.collection = l.collection AND i.id = l.item)
"""


class EmbeddedStore:
    """A SQLite file as a :class:`helpers.catalog.store.Store`; made if it is not there.

    Parameters
    ----------
    dsn:
        ``sqlite:///FILE``; a relative file is one of the project's.

    Raises
    ------
    Rejected
        The file cannot be opened, or is something else.
    """

    kind = "embedded"
    replaces = True  # what an object held before

    def __init__(self, dsn: str):
        self.path = PROJECT / Path(dsn.removeprefix("sqlite:///"))
        with _explained(self.path):
            self._connection = _connect(self.path)
            self._connection.executescript(SCHEMA)

    def __repr__(self) -> str:
        return f"EmbeddedStore({str(self.path)!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. It may be called twice."""
        self._connection.close()

    def empty(self) -> None:
        """Forget everything: collections, items, and all memory of them."""
        with self._writing() as connection:
            for table in TABLES:
                connection.execute(f"DELETE FROM {table}")  # noqa: S608 - one of our own tables

    # --- collections ---

    def collections(self) -> dict[str, dict]:
        """All collections by id."""
        with _explained(self.path):
            rows = self._connection.execute("SELECT id, content FROM collections ORDER BY id").fetchall()
        return {name: orjson.loads(content) for name, content in rows}

    def put_collection(self, collection: dict, origin: Origin | None = None) -> bool:
        """Create the collection, or replace it and keep its items; whether that was done (not if a newer one is)."""
        name = collection.get("id")
        if not isinstance(name, str) or not name:
            raise Rejected("A collection needs an id.")
        content = _text(collection, "The collection")
        with self._writing() as connection:
            if origin:
                # In the ledger a collection is the item without an id.
                last = connection.execute(KNOWN, [name, json.dumps([""])]).fetchone()
                if last and _order(origin) < (last[1], last[2]):
                    return False
                connection.execute(NOTE, [name, "", *_order(origin), origin.bucket, origin.key, origin.etag])
            connection.execute("INSERT OR REPLACE INTO collections VALUES (?, ?)", [name, content])
        return True

    def delete_collection(self, collection_id: str) -> int:
        """Delete it with its items and all memory of them; how many items that were (0: it was not there)."""
        with self._writing() as connection:
            connection.execute("DELETE FROM collections WHERE id = ?", [collection_id])
            connection.execute("DELETE FROM ledger WHERE collection = ?", [collection_id])
            return connection.execute("DELETE FROM items WHERE collection = ?", [collection_id]).rowcount

    # --- items in, items out ---

    def load(self, collection: str, entries: list[Entry]) -> Loaded:
        """Store items of one collection; see :meth:`helpers.catalog.store.Store.load`.

        Raises
        ------
        Rejected
            There is no such collection.
        """
        candidates, twice = by_item(entries)
        outcome = Loaded(duplicates=twice)
        for chunk in batched(candidates.items(), CHUNK, strict=False):
            outcome += self._load(collection, dict(chunk))
        return outcome

    def _load(self, collection: str, candidates: dict[str, list[Entry]]) -> Loaded:
        outcome, rows, fit = Loaded(), {}, {}
        for name, those in candidates.items():
            for entry in those:
                try:
                    rows[id(entry)] = _row(collection, entry.item)
                except ValueError as error:
                    outcome.refuse(entry, str(error))
                else:
                    fit.setdefault(name, []).append(entry)
        with self._writing() as connection:
            if not connection.execute("SELECT 1 FROM collections WHERE id = ?", [collection]).fetchone():
                raise Rejected(f"There is no collection {collection!r} in the catalogue. Store it first.")
            chosen = _chosen(connection, collection, fit, outcome)
            connection.executemany(UPSERT, [rows[id(entry)] for entry in chosen])
            origins = [(entry.item["id"], entry.origin) for entry in chosen]
            notes = [(collection, name, *_order(o), o.bucket, o.key, o.etag) for name, o in origins]
            connection.executemany(NOTE, notes)
            _take_out(connection, [e.origin for e in chosen if e.alone and e.origin.key])
        outcome.stored = len(chosen) - outcome.duplicates
        return outcome

    def remove(self, removals: list[Removal]) -> int:
        """Delete the items that came from these objects, unless by a newer event; how many."""
        events = [replace(removal.origin, bucket=removal.bucket, key=removal.key) for removal in removals]
        with self._writing() as connection:
            connection.executemany(NOTE_REMOVAL, map(_event, events))
            return _take_out(connection, events)

    def item(self, collection: str, item_id: str) -> dict | None:
        """The item as it was sent, or None."""
        found = self.search(ids=[item_id], collections=[collection], limit=1)
        return found[0] if found else None

    def count(self, collection: str) -> int:
        """How many items a collection has (0: or it is not there)."""
        with _explained(self.path):
            asked = "SELECT count(*) FROM items WHERE collection = ?"
            return self._connection.execute(asked, [collection]).fetchone()[0]

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
        """Items that meet all conditions, the newest first; see :meth:`helpers.catalog.store.Store.search`.

        Raises
        ------
        Rejected
            The place or the time is none.
        """
        found = self.find(ids=ids, collections=collections, bbox=bbox, intersects=intersects, datetime=datetime)
        return found[:limit]

    def find(self, **query: Any) -> "Found":
        """What :meth:`search` finds, counted and cut without reading all of it."""
        return Found(self, query)

    # --- memory ---

    def ledger(self, bucket: str, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
        """Key, ETag, collection and item id of all items that came from ``bucket``, in the order of the keys' bytes.

        Over a connection of its own, which is held until the last one is read.
        """
        with _explained(self.path):
            connection = _connect(self.path)
            try:
                yield from connection.execute(LEDGER, [bucket, prefix, prefix, prefix])
            finally:
                connection.close()

    def origins(self, collection: str, ids: list[str]) -> dict[str, Origin]:
        """What holds each of these items; see :meth:`helpers.catalog.store.Store.origins`."""
        with _explained(self.path):
            rows = self._connection.execute(ORIGINS, [collection, json.dumps(list(ids))]).fetchall()
        return {name: Origin(datetime.fromisoformat(time), *origin) for name, time, *origin in rows}

    def note_failures(self, failures: dict[str, tuple[str, str, str]]) -> None:
        """Remember why messages failed: message id -> (collection, item id, reason)."""
        if not failures:
            return
        now = datetime.now(UTC)
        rows = [(*map(_storable, (name, *why)), now.isoformat()) for name, why in failures.items()]
        with self._writing() as connection:
            connection.executemany("INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?)", rows)
            oldest = (now - timedelta(days=KEPT_DAYS)).isoformat()
            connection.execute("DELETE FROM failures WHERE time < ?", [oldest])

    def failures(self, message_ids: list[str]) -> dict[str, str]:
        """The reasons that are known of these messages."""
        asked = "SELECT message_id, reason FROM failures WHERE message_id IN (SELECT value FROM json_each(?))"
        with _explained(self.path):
            return dict(self._connection.execute(asked, [json.dumps(list(message_ids))]).fetchall())

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, all or nothing; other writers wait until it is over."""
        with _explained(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


class Found:
    """What a search finds: its length and any slice of it, without reading the rest."""

    def __init__(self, store: EmbeddedStore, query: dict[str, Any]):
        self._path, self._connection = store.path, store._connection
        try:
            self._area, times = stac.area(query.get("bbox"), query.get("intersects")), _interval(query.get("datetime"))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise Rejected(f"The search cannot be understood: {error}") from None
        self._where, self._values = _conditions(query, self._area, times)

    def __len__(self) -> int:
        if self._area is None:
            with _explained(self._path):
                asked = f"SELECT count(*) FROM items i WHERE {self._where}"  # noqa: S608 - of our own conditions
                return self._connection.execute(asked, self._values).fetchone()[0]
        return sum(1 for _ in self._numbers())

    def __getitem__(self, part: slice) -> list[dict]:
        first, end = part.start or 0, part.stop
        numbers = []
        for place, number in enumerate(self._numbers()):
            if end is not None and place >= end:
                break
            if place >= first:
                numbers.append(number)
        asked = "SELECT number, content FROM items WHERE number IN (SELECT value FROM json_each(?))"
        with _explained(self._path):
            contents = dict(self._connection.execute(asked, [json.dumps(numbers)]).fetchall())
        return [orjson.loads(contents[number]) for number in numbers if number in contents]

    def _numbers(self) -> Iterator[int]:
        asked = f"SELECT i.number, i.shape FROM items i WHERE {self._where} ORDER BY i.first DESC, i.id DESC"  # noqa: S608
        with _explained(self._path):
            rows = self._connection.execute(asked, self._values)
            if self._area is None:
                yield from (number for number, _ in rows)
                return
            import shapely

            shapely.prepare(self._area)
            while some := rows.fetchmany(TOGETHER):
                meets = shapely.intersects(self._area, shapely.from_wkb([shape for _, shape in some]))
                yield from (number for (number, _), met in zip(some, meets, strict=True) if met)


def _conditions(query: dict, area: Any, times: tuple[int, int] | None) -> tuple[str, list]:
    """An SQL condition about ``i``, and its values."""
    conditions: list[str] = ["true"]
    values: list[Any] = []
    for name, column in (("ids", "id"), ("collections", "collection")):
        if query.get(name) is not None:
            conditions.append(f"i.{column} IN (SELECT value FROM json_each(?))")  # noqa: S608 - of the two above
            values.append(json.dumps(list(query[name])))
    if times:
        conditions.append("i.first <= ? AND i.last >= ?")
        values += [times[1], times[0]]
    if area is not None:
        west, south, east, north = area.bounds
        inside = "SELECT number FROM places WHERE west <= ? AND east >= ? AND south <= ? AND north >= ?"
        conditions.append(f"i.number IN ({inside})")
        values += [east, west, north, south]
    return " AND ".join(conditions), values


def _interval(text: str | None) -> tuple[int, int] | None:
    if not text:
        return None
    first, slash, last = text.partition("/")
    ends = (first, last if slash else first)
    open_ends = (-(2**63), 2**63 - 1)
    first, last = (end if part in ("", "..") else _moment(part) for part, end in zip(ends, open_ends, strict=True))
    return first, last


# --- rows ---


def _row(collection: str, item: dict) -> tuple:
    """The item as a row of `items`.

    Raises
    ------
    ValueError
        It cannot be stored; the text says why. What pgstac refuses is refused here, too.
    """
    if len(item["id"].encode("utf-8", "replace")) > LONGEST_ID:
        raise ValueError(f"its id is longer than {LONGEST_ID} bytes")
    content = _text(item, "it", ValueError)
    if b"\\u0000" in content and NUL.search(content):
        raise ValueError("it holds the character \\u0000, which a database cannot store")
    about = item.get("properties")
    if not isinstance(about, dict):
        raise ValueError("it has no properties")
    first = _moment(about.get("start_datetime") or about.get("datetime"))
    last = _moment(about.get("end_datetime") or about.get("datetime"))
    if first > last:
        raise ValueError("it starts after it ends")
    shape, (west, south, east, north) = _place(item.get("geometry"))
    return collection, item["id"], first, last, west, east, south, north, shape, content


def _place(geometry: Any) -> tuple[bytes, tuple[float, float, float, float]]:
    """A geometry as WKB, and its bounds."""
    if geometry is None:
        raise ValueError("it has no geometry, and pgstac stores none without")
    import shapely

    try:
        if len(set(_dimensions(geometry))) > 1:
            raise ValueError("positions with two numbers and with three")
        shape = shapely.from_geojson(orjson.dumps(geometry))
        bounds = shape.bounds
    except (shapely.errors.GEOSException, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"its geometry is none: {error}") from None
    if not all(map(math.isfinite, bounds)):
        raise ValueError("its geometry is empty")
    return shapely.to_wkb(shapely.force_2d(shape)), bounds


def _dimensions(geometry: dict) -> Iterator[int]:
    if geometry.get("type") == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _dimensions(part)
        return
    todo = [geometry["coordinates"]]
    while todo:
        part = todo.pop()
        if part and isinstance(part[0], int | float):
            yield len(part)
        else:
            todo += part


def _moment(text: Any) -> int:
    """Microseconds since 1970."""
    try:
        moment = datetime.fromisoformat(text)
        return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH) // MICROSECOND
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{text!r} is not a time") from None


def _text(thing: dict, what: str, error: type[Exception] = Rejected) -> bytes:
    try:
        return orjson.dumps(thing)
    except (TypeError, ValueError) as problem:  # a number beyond 64 bits, half of a character
        raise error(f"{what} cannot be written as JSON: {problem}") from None


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _order(origin: Origin) -> tuple[str, str]:
    """What `Origin.order` is, as texts that compare alike."""
    time, sequencer = origin.order
    return time.isoformat(timespec="microseconds"), sequencer


def _event(origin: Origin) -> dict[str, str]:
    time, sequencer = _order(origin)
    return {"bucket": origin.bucket, "key": origin.key, "time": time, "sequencer": sequencer}


def _take_out(connection: sqlite3.Connection, events: list[Origin]) -> int:
    """Delete the items that came from these objects before these events; how many."""
    gone = [row for event in events for row in connection.execute(FORGET, _event(event))]
    connection.executemany("DELETE FROM items WHERE collection = ? AND id = ?", gone)
    return len(gone)


def _chosen(
    connection: sqlite3.Connection, collection: str, fit: dict[str, list[Entry]], outcome: Loaded
) -> list[Entry]:
    """The entries to store; what is not chosen is counted."""
    rows = connection.execute(KNOWN, [collection, json.dumps(list(fit))])
    known = {name: ((time, sequencer), removed) for name, time, sequencer, removed in rows}
    objects = {(e.origin.bucket, e.origin.key) for those in fit.values() for e in those if e.origin.key}
    gone = {(bucket, key): tuple(order) for bucket, key, *order in connection.execute(GONE, [json.dumps([*objects])])}
    chosen = []
    for name, those in fit.items():
        last, removed = known.get(name, (None, False))
        for place, entry in enumerate(those):
            order = _order(entry.origin)
            removal = gone.get((entry.origin.bucket, entry.origin.key))
            if (last and order < last) or (removal and order < removal):
                outcome.stale += 1
                continue
            outcome.stale += len(those) - place - 1
            # A duplicate is stored again all the same: somebody else may have taken it out.
            outcome.duplicates += order == last and not removed
            chosen.append(entry)
            break
    return chosen


# --- the file ---


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Closed by whichever thread ends the work; used by one at a time.
    connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Our own errors for those of SQLite."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            raise TimedOut(
                f"Somebody else has been writing to {path} for {PATIENCE} s. Run this again later."
            ) from None
        raise Rejected(f"The catalogue in {path} cannot be used: {error}.") from None
    except sqlite3.Error as error:
        raise Rejected(f"The catalogue in {path} refused: {error}.") from None
