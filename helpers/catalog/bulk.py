"""pypgstac's bulk loader taken apart: rows are made, then room for them, then they are stored in a given transaction.

As a whole it keeps readers waiting while it stores, and one item that cannot be stored fails all others. In steps,
what readers wait for happens before, and each item is looked at by itself.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter

import orjson
import psycopg
from pypgstac.db import PgstacDB
from pypgstac.hydration import hydrate
from pypgstac.load import Loader, Methods

from ..errors import Rejected

#: Namespace of our advisory locks ("STAC"); and one beside those of the collections, which is no collection's name.
LOCKS, PARTITIONS = 0x53544143, "\x1fpartitions"
#: Bytes of an item's id that an index can hold (PostgreSQL: a third of a page).
LONGEST_ID = 2600
#: Digits of a time that name the partition.
PERIOD = {"year": 4, "month": 6}
#: The character 0 as JSON writes it; behind an even number of backslashes, which are backslashes.
NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class Given(PgstacDB):
    """pypgstac's access to the database, over a connection of ours: our transaction is the loader's."""

    def __init__(self, connection: psycopg.Connection):
        super().__init__(connection=connection)

    def connect(self) -> psycopg.Connection:
        return self.connection


class Bulk(Loader):
    """pypgstac's loader in steps: rows are made, then room for them, then they are stored."""

    def __init__(self, connection: psycopg.Connection, collection: str):
        super().__init__(Given(connection))
        self.connection, self.collection = connection, collection
        try:
            self.base, self.key, self.by, _ = self.collection_json(collection)
        except psycopg.Error:
            raise
        except Exception:  # noqa: BLE001 - pypgstac raises nothing more exact
            raise Rejected(f"There is no collection {collection!r} in the catalogue. Store it first.") from None

    def row(self, item: dict) -> dict:
        """The item as pgstac stores it.

        Raises
        ------
        ValueError
            It cannot be stored; the text says why.
        """
        if len(item["id"].encode("utf-8", "replace")) > LONGEST_ID:
            raise ValueError(f"its id is longer than {LONGEST_ID} bytes")
        if item.get("geometry") is None:
            raise ValueError("it has no geometry, and pgstac stores none without")
        if wrong := _odd(item):
            raise ValueError(f"not of the kind that it must be: {wrong}")
        try:
            row = self.format_item(item)
        except Exception as error:  # noqa: BLE001 - pypgstac and what it uses raise anything
            raise ValueError(f"{type(error).__name__}: {said(error)}") from None
        if ("\\u0000" in row["content"] and NUL.search(row["content"])) or "\0" in row["id"]:
            raise ValueError("it holds the character \\u0000, which PostgreSQL cannot store")
        # What places the row is the moment, not how it was written; the item keeps its own text.
        one_moment = row["datetime"] == row["end_datetime"]
        row["datetime"] = moment = _moment(row["datetime"])
        row["end_datetime"] = moment if one_moment else _moment(row["end_datetime"])
        if self.by:  # cut from the text as it was
            row["partition"] = f"_items_{self.key}_{moment.replace('-', '')[: PERIOD[self.by]]}"
        self._partition_update(row)
        if self.base.get("assets"):
            row["content"] = _exact(self.base, item, row["content"])
        return row

    def make_room(self) -> None:
        """Partitions wide enough for all rows that were made, each in a transaction of its own: readers wait for it."""
        narrow = [partition for partition in self._partition_cache.values() if partition.requires_update]
        if not narrow:
            return
        with alone(self.connection, PARTITIONS):
            for partition in narrow:
                self.connection.execute(
                    "SELECT pgstac.check_partition(%s, tstzrange(%s, %s, '[]'), tstzrange(%s, %s, '[]'))",
                    [
                        self.collection,
                        partition.datetime_range_min,
                        partition.datetime_range_max,
                        partition.end_datetime_range_min,
                        partition.end_datetime_range_max,
                    ],
                )
                partition.requires_update = False

    def store(self, rows: list[dict]) -> None:
        """Upsert the rows; within the transaction that is open."""
        for name, those in groupby(sorted(rows, key=itemgetter("partition")), key=itemgetter("partition")):
            # Without its own repeating: what is broken off ends our transaction, and that is repeated.
            Loader.load_partition.__wrapped__(self, self._partition_cache[name], list(those), Methods.upsert)


def _moment(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{text!r} is not a time") from None


def _odd(item: dict) -> str:
    """What would be stored, and then break the answers to all searches that find it."""
    wrong = [key for key in ("type", "stac_version", "collection") if not isinstance(item.get(key), str)]
    assets = item.get("assets", {})
    if not isinstance(assets, dict) or not all(isinstance(asset, dict) for asset in assets.values()):
        wrong.append("assets")
    return ", ".join(wrong)


def _exact(base: dict, item: dict, content: str) -> str:
    """``content`` with the null and [] of the item that pypgstac leaves out where the collection has another value.

    Raises
    ------
    ValueError
        The item cannot be put together again from it.
    """
    slim = orjson.loads(content)
    if _lost(base, item):
        _put_back(base, item, slim)
        content = orjson.dumps(slim).decode()
    try:
        hydrate(base, slim)
    except ValueError as error:
        raise ValueError(f"its assets contradict the collection's item_assets: {error}") from None
    return content


def _lost(base: dict, item: dict) -> bool:
    for key, value in item.items():
        if key not in base or base[key] == value:
            continue
        if value is None or value == []:
            return True
        if isinstance(value, dict) and isinstance(base[key], dict) and _lost(base[key], value):
            return True
    return False


def _put_back(base: dict, item: dict, slim: dict) -> None:
    for key, value in item.items():
        if key not in base or base[key] == value:
            continue
        if value is None or value == []:
            slim[key] = value
        elif isinstance(value, dict) and isinstance(base[key], dict):
            _put_back(base[key], value, slim[key])


@contextmanager
def alone(connection: psycopg.Connection, name: str) -> Iterator[None]:
    """Hold the lock ``name``; a killed process gives it back because its connection ends."""
    connection.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", [LOCKS, name])
    try:
        yield
    finally:
        if not connection.closed:
            with suppress(psycopg.OperationalError):
                connection.execute("SELECT pg_advisory_unlock(%s, hashtext(%s))", [LOCKS, name])


def said(error: Exception) -> str:
    """What an error says, in one line; lines that begin anew are sentences."""
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    text = re.sub(r"(?<=[^\s.:?!])\s*\n\s*(?=[A-Z])", ". ", (primary or str(error)).strip())
    text = " ".join(text.split())[:500]
    return text if text.endswith((".", "?", "!")) else f"{text}."
