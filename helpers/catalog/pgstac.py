"""The catalogue in pgstac: pypgstac's bulk loader, and a ledger of which event each item came from, in one commit.

Whoever writes to a collection holds its advisory lock, so loaders of one collection queue up instead of meeting in
deadlocks. What would lock readers out (making partitions, rebuilding their constraints) happens in short transactions
of its own, before and after the load; the load itself takes no lock that a reader waits for.
"""

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import batched, groupby
from operator import itemgetter
from typing import Any, Self

import orjson
import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import Json, Jsonb
from pydantic import SecretStr
from pypgstac.hydration import hydrate
from pypgstac.load import Loader

from ..errors import NotConfigured, Rejected, TimedOut
from .bulk import LOCKS, Bulk, Given, alone, said
from .store import Entry, Loaded, Origin, Removal, by_item

#: Advisory locks beside those of the collections: no collection's name.
REMOVING, MAKING = "\x1fremoving", "\x1fschema"
#: Items of one transaction, as pypgstac takes them.
CHUNK = 10_000
#: Tries of a transaction that the database broke off because of others, and seconds between two at most.
TRIES, PAUSE = 10, 0.5
#: Seconds to wait for another loader of the same collection, or anybody else.
LOCK_SECONDS = 120
#: Seconds without use after which a connection is asked whether it still is one.
IDLE_SECONDS = 5
#: Seconds between two rebuilds of the partitions' statistics: readers wait while one is rebuilt.
TIDY_SECONDS = 60
#: Days that the reasons of failures are kept; no queue keeps a message for longer than 14.
KEPT_DAYS = 60
#: Nobody is there: no such host, nothing listens, or no answer (psycopg's and libpq's words).
UNREACHABLE = re.compile(
    r"resolve host|translate host name|refused|timeout expired|timed out|unreachable|No route|No such file"
)

#: The database's own troubles with others: the same again will do.
AGAIN = (
    errors.DeadlockDetected,
    errors.SerializationFailure,
    errors.LockNotAvailable,
    errors.ObjectInUse,
    errors.CheckViolation,  # somebody rebuilt a partition's constraints meanwhile
    errors.DuplicateTable,
    errors.InFailedSqlTransaction,  # pypgstac only logs it when it cannot note what is to be rebuilt
)
#: What one item in a load can cause: found by halving.
ONE_ITEM = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.InternalError,
    errors.ProgramLimitExceeded,
    errors.RaiseException,
)

SCHEMA = """
CREATE SCHEMA IF NOT EXISTS recipes;
CREATE TABLE IF NOT EXISTS recipes.ledger (
    collection text NOT NULL,
    item text NOT NULL,
    time timestamptz NOT NULL,
    sequencer text COLLATE "C" NOT NULL,
    bucket text NOT NULL,
    key text COLLATE "C" NOT NULL,
    etag text NOT NULL,
    partition text NOT NULL,
    removed boolean NOT NULL DEFAULT false,
    PRIMARY KEY (collection, item)
);
CREATE INDEX IF NOT EXISTS ledger_objects ON recipes.ledger (bucket, key);
CREATE TABLE IF NOT EXISTS recipes.removals (
    bucket text NOT NULL,
    key text COLLATE "C" NOT NULL,
    time timestamptz NOT NULL,
    sequencer text COLLATE "C" NOT NULL,
    PRIMARY KEY (bucket, key)
);
CREATE TABLE IF NOT EXISTS recipes.failures (
    message_id text PRIMARY KEY,
    collection text NOT NULL,
    item text NOT NULL,
    reason text NOT NULL,
    time timestamptz NOT NULL DEFAULT now()
);
"""

# Lists go to the database as JSON: that is made and read in a fraction of the time of arrays.

KNOWN = """
SELECT item, time, sequencer, partition, removed FROM recipes.ledger
WHERE collection = %s AND item IN (SELECT json_array_elements_text(%s))
"""
GONE = """
SELECT r.bucket, r.key, r.time, r.sequencer
FROM recipes.removals r JOIN json_to_recordset(%s) AS o (bucket text, key text) USING (bucket, key)
"""
NOTE = """
INSERT INTO recipes.ledger AS l (collection, item, time, sequencer, bucket, key, etag, partition)
SELECT %s, * FROM json_to_recordset(%s) AS n (
    item text, time timestamptz, sequencer text, bucket text, key text, etag text, partition text
)
ON CONFLICT (collection, item) DO UPDATE SET
    time = EXCLUDED.time, sequencer = EXCLUDED.sequencer, bucket = EXCLUDED.bucket, key = EXCLUDED.key,
    etag = EXCLUDED.etag, partition = EXCLUDED.partition, removed = false
"""
NOTE_REMOVALS = """
INSERT INTO recipes.removals AS r (bucket, key, time, sequencer)
SELECT * FROM unnest(%s::text[], %s::text[], %s::timestamptz[], %s::text[])
ON CONFLICT (bucket, key) DO UPDATE SET time = EXCLUDED.time, sequencer = EXCLUDED.sequencer
WHERE (r.time, r.sequencer) < (EXCLUDED.time, EXCLUDED.sequencer)
"""
#: What came from removed objects by an older event becomes the memory of the removal itself.
FORGET = """
UPDATE recipes.ledger l SET removed = true, time = r.time, sequencer = r.sequencer
FROM recipes.removals r JOIN unnest(%s::text[], %s::text[]) AS o (bucket, key) USING (bucket, key)
WHERE l.bucket = r.bucket AND l.key = r.key AND l.item <> '' AND NOT l.removed
    AND (l.time, l.sequencer) < (r.time, r.sequencer)
RETURNING l.collection, l.item
"""
#: So does what an object held before, when it holds one other item now.
REPLACE = """
UPDATE recipes.ledger l SET removed = true, time = o.time, sequencer = o.sequencer
FROM json_to_recordset(%s) AS o (bucket text, key text, time timestamptz, sequencer text)
WHERE l.bucket = o.bucket AND l.key = o.key AND l.item <> '' AND NOT l.removed
    AND (l.time, l.sequencer) < (o.time, o.sequencer)
RETURNING l.collection, l.item
"""
#: Sorted by the ledger's index, so that the first row comes at once.
LEDGER = """
SELECT l.key, l.etag, l.collection, l.item FROM recipes.ledger l
WHERE l.bucket = %s AND l.key >= %s AND starts_with(l.key, %s) AND NOT l.removed
    AND EXISTS (SELECT FROM pgstac.items i WHERE i.collection = l.collection AND i.id = l.item)
ORDER BY l.key
"""
ORIGINS = """
SELECT l.item, l.time, l.sequencer, l.bucket, l.key, l.etag FROM recipes.ledger l
WHERE l.collection = %s AND l.item IN (SELECT json_array_elements_text(%s)) AND NOT l.removed
    AND EXISTS (SELECT FROM pgstac.items i WHERE i.collection = l.collection AND i.id = l.item)
"""
NOTE_FAILURES = """
INSERT INTO recipes.failures (message_id, collection, item, reason)
SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[])
ON CONFLICT (message_id) DO UPDATE SET
    collection = EXCLUDED.collection, item = EXCLUDED.item, reason = EXCLUDED.reason, time = now()
"""


class PgStore:
    """A pgstac database as a :class:`helpers.catalog.store.Store`, over one connection that is opened again if lost.

    Parameters
    ----------
    dsn:
        ``postgresql://...``. It holds a password and is never shown.

    Raises
    ------
    NotConfigured
        The name is of the wrong form.
    TimedOut, Rejected
        The database does not answer, or refuses us, or has no pgstac of the version of pypgstac.
    """

    kind = "pgstac"

    def __init__(self, dsn: str | SecretStr):
        self._dsn = dsn if isinstance(dsn, SecretStr) else SecretStr(dsn)
        self._open: psycopg.Connection | None = None
        self._used = self._tidied = 0.0
        self._loaded: set[str] = set()  # collections with something to tidy
        with self._talking() as connection:
            _prepare(connection)

    def __repr__(self) -> str:
        return f"PgStore({'connected' if self._open else 'not connected'})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Rebuild the statistics that are due, if the database still answers, and close the connection."""
        if self._open and not self._open.closed:
            with suppress(psycopg.Error):
                self._tidy(self._open)
            self._open.close()
        self._open = None

    # --- collections ---

    def collections(self) -> dict[str, dict]:
        """All collections by id."""
        with self._talking() as connection:
            return dict(connection.execute("SELECT id, content FROM pgstac.collections ORDER BY id").fetchall())

    def put_collection(self, collection: dict, origin: Origin | None = None) -> bool:
        """Create the collection, or replace it and keep its items; whether that was done (not if a newer one is)."""
        name = collection.get("id")
        if not isinstance(name, str) or not name:
            raise Rejected("A collection needs an id.")

        try:
            orjson.dumps(collection)
        except TypeError as error:
            raise Rejected(f"The collection is no JSON: {error}.") from None

        def put() -> bool:
            with connection.transaction():
                if origin:
                    # In the ledger a collection is the item without an id.
                    last = connection.execute(KNOWN, [name, Json([""])]).fetchone()
                    if last and origin.order < (last[1], last[2]):
                        return False
                connection.execute("SELECT pgstac.upsert_collection(%s)", [Jsonb(collection)])
                if origin:
                    _note(connection, name, [Entry({"id": ""}, origin)], [""])
                return True

        with self._talking() as connection, alone(connection, name):
            return _again(put)

    def delete_collection(self, collection_id: str) -> int:
        """Delete it with its items and all memory of them; how many items that were (0: it was not there)."""

        def delete() -> int:
            with connection.transaction():
                _no_removal(connection)
                count = _count(connection, collection_id)
                connection.execute("DELETE FROM pgstac.collections WHERE id = %s", [collection_id])
                connection.execute("DELETE FROM recipes.ledger WHERE collection = %s", [collection_id])
                return count

        with self._talking() as connection, alone(connection, collection_id):
            return _again(delete)

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
        with self._talking() as connection, alone(connection, collection):
            for chunk in batched(candidates.items(), CHUNK, strict=False):
                outcome += _store(connection, collection, dict(chunk))
            self._loaded.add(collection)
            if time.monotonic() - self._tidied > TIDY_SECONDS:
                _tidy(connection, collection)
                self._tidied = time.monotonic()
        return outcome

    def remove(self, removals: list[Removal]) -> int:
        """Delete the items that came from these objects, unless by a newer event; how many."""
        newest: dict[tuple[str, str], Origin] = {}
        for removal in removals:
            place = (removal.bucket, removal.key)
            newest[place] = max(newest.get(place, removal.origin), removal.origin, key=lambda origin: origin.order)
        if not newest:
            return 0
        buckets, keys = zip(*newest, strict=True)
        times, sequencers = zip(*(origin.order for origin in newest.values()), strict=True)

        def remove() -> int:
            with connection.transaction():
                # No load is between its look at the removals and its commit then.
                connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [LOCKS, REMOVING])
                connection.execute(NOTE_REMOVALS, [*map(list, (buckets, keys, times, sequencers))])
                gone = connection.execute(FORGET, [list(buckets), list(keys)]).fetchall()
                _delete(connection, gone)
                return len(gone)

        with self._talking() as connection:
            return _again(remove)

    def item(self, collection: str, item_id: str) -> dict | None:
        """The item as it was sent, or None."""
        found = self.search(ids=[item_id], collections=[collection], limit=1)
        return found[0] if found else None

    def count(self, collection: str) -> int:
        """How many items a collection has (0: or it is not there)."""
        with self._talking() as connection:
            return _count(connection, collection)

    def search(self, **query: Any) -> list[dict]:
        """Items that meet all conditions, the newest first; see :meth:`helpers.catalog.store.Store.search`."""
        asked = {"limit": 10_000} | {name: value for name, value in query.items() if value is not None}
        # The database's own hydration drops members that are null, and `datetime` must be there when it is null.
        asked["conf"] = {"nohydrate": True}
        with self._talking() as connection:
            answer = connection.execute("SELECT pgstac.search(%s)", [Jsonb(asked)]).fetchone()[0]
        return [hydrate(item.pop("pgstac:base_item"), item) for item in answer["features"]]

    # --- memory ---

    def ledger(self, bucket: str, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
        """Key, ETag, collection and item id of all items that came from ``bucket``, in the order of the keys' bytes.

        Over a connection of its own, which is held until the last one is read.
        """
        with (
            _explained(),
            _connect(self._dsn) as connection,
            connection.transaction(),
            connection.cursor(name="ledger") as cursor,
        ):
            cursor.itersize = 10_000
            yield from cursor.execute(LEDGER, [bucket, prefix, prefix])

    def origins(self, collection: str, ids: list[str]) -> dict[str, Origin]:
        """What holds each of these items; see :meth:`helpers.catalog.store.Store.origins`."""
        found: dict[str, Origin] = {}
        with self._talking() as connection:
            for some in batched(ids, CHUNK, strict=False):
                rows = connection.execute(ORIGINS, [collection, Json(list(some))]).fetchall()
                found |= {name: Origin(*origin) for name, *origin in rows}
        return found

    def note_failures(self, failures: dict[str, tuple[str, str, str]]) -> None:
        """Remember why messages failed: message id -> (collection, item id, reason)."""
        if not failures:
            return
        rows = sorted((name, *why) for name, why in failures.items())
        columns = [[_plain(text) for text in column] for column in zip(*rows, strict=True)]
        old = "DELETE FROM recipes.failures WHERE time < now() - make_interval(days => %s)"

        def note() -> None:
            with connection.transaction():
                connection.execute(NOTE_FAILURES, columns)
                connection.execute(old, [KEPT_DAYS])

        with self._talking() as connection:
            _again(note)

    def failures(self, message_ids: list[str]) -> dict[str, str]:
        """The reasons that are known of these messages."""
        asked = "SELECT message_id, reason FROM recipes.failures WHERE message_id = ANY(%s)"
        with self._talking() as connection:
            return dict(connection.execute(asked, [list(message_ids)]).fetchall())

    # --- the connection ---

    @contextmanager
    def _talking(self) -> Iterator[psycopg.Connection]:
        with _explained():
            if not self._alive():
                self._open = _connect(self._dsn)
            try:
                yield self._open
            finally:
                self._used = time.monotonic()

    def _alive(self) -> bool:
        """The connection is there, and answers if it has not been used for a while: a server may have restarted."""
        if self._open is None or self._open.closed:
            return False
        if time.monotonic() - self._used > IDLE_SECONDS:
            with suppress(psycopg.OperationalError):
                self._open.execute("SELECT 1")
        return not self._open.closed

    def _tidy(self, connection: psycopg.Connection) -> None:
        for collection in sorted(self._loaded):
            with alone(connection, collection):
                _tidy(connection, collection)
        self._loaded.clear()


def _connect(dsn: SecretStr) -> psycopg.Connection:
    address, text = _address(dsn), dsn.get_secret_value()
    try:
        connection = psycopg.connect(text, autocommit=True, connect_timeout=10, tcp_user_timeout=60_000)
    except psycopg.OperationalError as error:
        if not UNREACHABLE.search(str(error)):
            raise
        raise TimedOut(
            f"No database answers at {address}: its server is down, or CATALOG_DSN has another address than it."
            " Look at that, or run this again later."
        ) from None
    try:
        # Queued: what the loader would do about statistics inside the load's transaction, locking readers out.
        connection.execute("SET search_path TO pgstac, public; SET pgstac.use_queue TO on; SET timezone TO 'UTC'")
        connection.execute(f"SET lock_timeout TO '{LOCK_SECONDS}s'")
        connection.execute("SELECT set_config('application_name', 'eo-cloud-recipes', false)")
    except BaseException:
        connection.close()
        raise
    return connection


def _address(dsn: SecretStr) -> str:
    """Host and port of the database, without user and password.

    Raises
    ------
    NotConfigured
        They cannot be told apart.
    """
    try:
        found = conninfo_to_dict(dsn.get_secret_value())
    except psycopg.Error:  # whose text may have a part of the password in it
        found = {"port": "none"}
    host, port = str(found.get("host") or "localhost"), str(found.get("port") or 5432)
    if not port.replace(",", "").isdigit() or "@" in f"{host}{found.get('dbname')}":
        raise NotConfigured(
            "CATALOG_DSN cannot be read. It must be postgresql:// and then USER:PASSWORD@HOST:PORT/DATABASE, with signs"
            " other than letters and digits in user and password percent-encoded (@ as %40, / as %2F, a space as %20)."
        )
    return f"{host}:{port}"


@contextmanager
def _explained() -> Iterator[None]:
    """Our own errors for those of the database; their texts name host and user, never the password."""
    try:
        yield
    except errors.InsufficientPrivilege as error:
        raise Rejected(f"The catalogue's database does not let us: {said(error)} Ask for pgstac_ingest.") from None
    except (errors.QueryCanceled, *AGAIN) as error:
        raise TimedOut(f"The catalogue's database is too busy: {said(error)} Try again later.") from None
    except psycopg.OperationalError as error:
        if any(hint in str(error) for hint in ("authentication failed", "does not exist", "no password supplied")):
            raise Rejected(f"The catalogue's database refuses us: {said(error)} Look at CATALOG_DSN.") from None
        raise TimedOut(f"The catalogue's database does not answer: {said(error)} Run this again later.") from None
    except psycopg.Error as error:
        raise Rejected(f"The catalogue's database refused: {said(error)}") from None


def _prepare(connection: psycopg.Connection) -> None:
    if connection.execute("SELECT to_regclass('pgstac.items')").fetchone()[0] is None:
        raise Rejected("The database has no pgstac. Make it one: `pypgstac migrate --dsn ...`.")
    try:
        Loader(Given(connection)).check_version()
    except psycopg.Error:
        raise
    except Exception as error:  # noqa: BLE001 - pypgstac raises nothing more exact
        raise Rejected(f"{said(error)} Migrate the database: `pypgstac migrate --dsn ...`.") from None
    if connection.execute("SELECT to_regclass('recipes.failures')").fetchone()[0] is None:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [LOCKS, MAKING])
            connection.execute(SCHEMA)


def _no_removal(connection: psycopg.Connection) -> None:
    """No removal takes place until the transaction ends; other loads do."""
    connection.execute("SELECT pg_advisory_xact_lock_shared(%s, hashtext(%s))", [LOCKS, REMOVING])


def _again[T](work: Callable[[], T]) -> T:
    """Do ``work``, a whole transaction, again when the database broke it off because of others."""
    for left in range(TRIES - 1, -1, -1):
        try:
            return work()
        except AGAIN:
            if not left:
                raise
            time.sleep(random.uniform(0, PAUSE))  # noqa: S311 - so that two do not meet again
    raise AssertionError("unreachable")


def _plain(text: str) -> str:
    """Text as a database can hold it: no NUL, no half of a surrogate pair."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def _count(connection: psycopg.Connection, collection: str) -> int:
    return connection.execute("SELECT count(*) FROM pgstac.items WHERE collection = %s", [collection]).fetchone()[0]


# --- loading ---


def _store(connection: psycopg.Connection, collection: str, candidates: dict[str, list[Entry]]) -> Loaded:
    """Store the best of each item's candidates that the database takes, all in one transaction if it takes all."""
    outcome = Loaded()
    try:
        return outcome + _again(lambda: _attempt(connection, collection, candidates))
    except ONE_ITEM as error:
        if connection.closed or isinstance(error, errors.ForeignKeyViolation):
            raise
        reason = said(error)
    if len(candidates) > 1:
        ids = list(candidates)
        for half in (ids[: len(ids) // 2], ids[len(ids) // 2 :]):
            outcome += _store(connection, collection, {name: candidates[name] for name in half})
        return outcome
    [(name, [first, *others])] = candidates.items()
    outcome.refuse(first, f"the database cannot store it: {reason}")
    return outcome + _store(connection, collection, {name: others}) if others else outcome


def _attempt(connection: psycopg.Connection, collection: str, candidates: dict[str, list[Entry]]) -> Loaded:
    bulk, outcome = Bulk(connection, collection), Loaded()
    rows: dict[int, dict] = {}
    fit: dict[str, list[Entry]] = {}
    for name, those in candidates.items():
        for entry in those:
            try:
                rows[id(entry)] = bulk.row(entry.item)
            except ValueError as error:
                outcome.refuse(entry, str(error))
            else:
                fit.setdefault(name, []).append(entry)
    if not fit:
        return outcome
    bulk.make_room()
    with connection.transaction():
        _no_removal(connection)
        chosen, known = _chosen(connection, collection, fit, outcome)
        if not chosen:
            return outcome
        new = [rows[id(entry)] for entry in chosen]
        places = [row["partition"] for row in new]  # the loader takes it out of the row
        _take_out_moved(connection, collection, new, known)
        bulk.store(new)
        _note(connection, collection, chosen, places)
        _replace(connection, chosen)
    outcome.stored = len(chosen) - outcome.duplicates
    return outcome


def _chosen(
    connection: psycopg.Connection, collection: str, fit: dict[str, list[Entry]], outcome: Loaded
) -> tuple[list[Entry], dict[str, str]]:
    """The entries to store, and where the ledger has those items now; what is not chosen is counted."""
    rows = connection.execute(KNOWN, [collection, Json(list(fit))]).fetchall()
    known = {name: ((when, sequencer), removed) for name, when, sequencer, _, removed in rows}
    gone = _gone(connection, fit)
    chosen = []
    for name, those in fit.items():
        last, removed = known.get(name, (None, False))
        for place, entry in enumerate(those):
            order = entry.origin.order
            removal = gone.get((entry.origin.bucket, entry.origin.key))
            if (last and order < last) or (removal and order < removal):
                outcome.stale += 1
                continue
            outcome.stale += len(those) - place - 1
            # A duplicate is stored again all the same: somebody else may have taken it out.
            outcome.duplicates += order == last and not removed
            chosen.append(entry)
            break
    return chosen, {name: place for name, _, _, place, removed in rows if not removed}


def _gone(connection: psycopg.Connection, fit: dict[str, list[Entry]]) -> dict[tuple[str, str], tuple[datetime, str]]:
    """When each object that holds one of the entries was removed last, if ever."""
    objects = {(e.origin.bucket, e.origin.key) for those in fit.values() for e in those if e.origin.key}
    if not objects:
        return {}
    asked = Json([{"bucket": bucket, "key": key} for bucket, key in objects])
    found = connection.execute(GONE, [asked]).fetchall()
    return {(bucket, key): (when, sequencer) for bucket, key, when, sequencer in found}


def _take_out_moved(connection: psycopg.Connection, collection: str, rows: list[dict], known: dict[str, str]) -> None:
    """Delete the rows of items that move to another partition: an upsert would leave them beside the new ones."""
    doubtful = {row["id"]: row["partition"] for row in rows if known.get(row["id"]) != row["partition"]}
    if not doubtful:
        return
    partitions = "SELECT count(*) FROM pgstac.partition_stats WHERE collection = %s"
    if connection.execute(partitions, [collection]).fetchone()[0] == 1:
        return
    where = "SELECT id, tableoid::regclass::text FROM pgstac.items WHERE collection = %s AND id = ANY(%s)"
    found = connection.execute(where, [collection, list(doubtful)]).fetchall()
    _delete(connection, [(collection, name) for name, place in found if place != doubtful[name]])


def _delete(connection: psycopg.Connection, items: list[tuple[str, str]]) -> None:
    """Delete the rows of items, given by collection and id."""
    for collection, rows in groupby(sorted(items), key=itemgetter(0)):
        ids = [name for _, name in rows]
        connection.execute("DELETE FROM pgstac.items WHERE collection = %s AND id = ANY(%s)", [collection, ids])


def _replace(connection: psycopg.Connection, entries: list[Entry]) -> None:
    """Take out what the objects of these entries held before, if that was something else."""
    newest: dict[tuple[str, str], tuple[datetime, str]] = {}
    for origin in (entry.origin for entry in entries if entry.alone and entry.origin.key):
        place = (origin.bucket, origin.key)
        newest[place] = max(newest.get(place, origin.order), origin.order)
    if newest:
        lines = [
            {"bucket": bucket, "key": key, "time": when.isoformat(), "sequencer": sequencer}
            for (bucket, key), (when, sequencer) in newest.items()
        ]
        _delete(connection, connection.execute(REPLACE, [Json(lines)]).fetchall())


def _note(connection: psycopg.Connection, collection: str, entries: list[Entry], places: list[str]) -> None:
    lines = []
    for entry, place in zip(entries, places, strict=True):
        origin, (when, sequencer) = entry.origin, entry.origin.order
        line = {"item": entry.item["id"], "time": when.isoformat(), "sequencer": sequencer, "partition": place}
        lines.append(line | {"bucket": origin.bucket, "key": origin.key, "etag": origin.etag})
    connection.execute(NOTE, [collection, Json(lines)])


def _tidy(connection: psycopg.Connection, collection: str) -> None:
    """Rebuild the statistics and constraints of the partitions that changed; each in a short transaction."""
    due = "SELECT DISTINCT p.partition FROM pgstac.partition_stats p WHERE p.collection = %s"
    for (partition,) in connection.execute(due, [collection]).fetchall():
        with connection.transaction():
            _no_removal(connection)
            queued = connection.execute(
                "DELETE FROM pgstac.query_queue WHERE query LIKE %s", [f"%('{partition}',%"]
            ).rowcount
            if queued:
                connection.execute("SET LOCAL pgstac.use_queue TO off")
                connection.execute("SELECT pgstac.update_partition_stats(%s)", [partition])
