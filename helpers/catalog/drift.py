"""Compare a bucket with the catalogue, and announce again what one has and the other has not.

Both are read once, side by side, in the order of the keys: however many there are, only the differences are kept. The
catalogue says where a page of the listing may begin, so that many pages are fetched at a time, also where all objects
lie in one folder, which S3 by itself lists one page after the other.
"""

import sys
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from itertools import pairwise
from operator import itemgetter
from string import ascii_lowercase, ascii_uppercase, digits
from typing import Any, NamedTuple

from botocore.exceptions import BotoCoreError, ClientError

from .. import objectstore
from ..errors import FailedRemotely, Rejected
from ..settings import Settings
from .publishing import NOT_ITEMS, item_of
from .sending import SNS_LIMIT, deliver, explained, raise_failed, s3_event, to_queue, to_topic
from .store import Origin, Removal, Store
from .telling import some, told

#: Objects on a page ("ListObjectsV2", S3 API), and items to look for on one: there may be objects that are new.
PAGE, STEP = 1000, 900
#: Pages fetched at a time, and pages of one stretch after which it is split up for the others to help.
WORKERS, LONG = 48, 2
#: Stretches that one is split into at most.
SPLITS = 400
#: How keys end that are no items.
NO_ENDS = tuple(f"/{name}" for name in NOT_ITEMS)


class Found(NamedTuple):
    """An object of the listing."""

    key: str
    etag: str
    size: int
    modified: datetime


class Row(NamedTuple):
    """An item of the catalogue, and the object it came from."""

    key: str
    etag: str
    collection: str
    item_id: str


class Held(NamedTuple):
    """An object whose item is in the catalogue by something else, which is not older."""

    key: str
    collection: str
    item_id: str
    by: str  #: the address of that object, or "a message"


@dataclass
class Drift:
    """What differs between a bucket and the catalogue, as of ``at``."""

    bucket: str
    prefix: str
    at: datetime  #: when the listing began, by S3's clock
    missing: list[Found] = field(default_factory=list)  #: objects whose item is not in the catalogue
    stale: list[Found] = field(default_factory=list)  #: objects that were written since the item was loaded
    orphaned: list[Row] = field(default_factory=list)  #: items whose object is gone
    #: Objects whose items are in the catalogue by another object, or by a message: that is no difference.
    held: list[Held] = field(default_factory=list)
    same: int = 0
    others: int = 0  #: objects that are no items, by their names

    def __bool__(self) -> bool:
        return bool(self.missing or self.stale or self.orphaned)

    def counts(self) -> dict[str, int]:
        """How many there are of each kind."""
        lists = {name: len(getattr(self, name)) for name in ("missing", "stale", "orphaned", "held")}
        return lists | {"same": self.same}

    def table(self, first: int = 20) -> list[dict]:
        """The first objects of each kind, as rows: what is wrong, the key, and what is known of it."""
        rows = [
            {"drift": kind, "key": one.key, "known": f"written {one.modified:%Y-%m-%d %H:%M:%S}, {one.size} bytes"}
            for kind in ("missing", "stale")
            for one in getattr(self, kind)[:first]
        ]
        known = ({"key": one.key, "known": f"item {one.collection}/{one.item_id}"} for one in self.orphaned[:first])
        rows += [{"drift": "orphaned"} | row for row in known]
        return rows + [{"drift": "held", "key": one.key, "known": f"held by {one.by}"} for one in self.held[:first]]

    def report(self) -> str:
        """One sentence."""
        place = f"s3://{self.bucket}/{self.prefix}"
        if not self:
            others = f"; {some(len(self.held), 'object')} held: the item came by something newer" if self.held else ""
            return f"{place} and the catalogue agree about {some(self.same, 'item')}{others}."
        counts = told(*((count, kind) for kind, count in self.counts().items()), none="")
        return f"{place} and the catalogue differ: {counts}."


@dataclass(frozen=True)
class Repaired:
    """What was done about it."""

    announced: int = 0
    removed: int = 0
    left: int = 0  #: orphaned items that stay, as nobody asked to remove them

    def __str__(self) -> str:
        return told(
            (self.announced, "announced again"),
            (self.removed, "orphaned item(s) removed"),
            (self.left, "orphaned item(s) left"),
            none="nothing to repair",
        )


def compare(
    s3: Any,
    store: Store,
    bucket: str,
    prefix: str = "",
    *,
    workers: int = WORKERS,
    suffix: str = ".json",
) -> Drift:
    """Hold the objects under ``prefix`` against the items that came from there.

    Of several objects with the same item, by their keys, the newest holds it: the others are *held*, not missing.

    Parameters
    ----------
    s3:
        Settings, or a boto3 S3 client. With settings it is ten times as fast: boto3 is slow to read a page.
    workers:
        Pages fetched at a time.
    suffix:
        Objects whose keys end otherwise are no items; nor are ``collection.json`` and ``catalog.json``.

    Raises
    ------
    Rejected
        The bucket is not there, or not open to us; the catalogue refuses.
    TimedOut, FailedRemotely
        S3 or the catalogue does not answer.
    """
    client = objectstore.client("s3", s3) if isinstance(s3, Settings) else s3
    drift = Drift(bucket, prefix, _now(client, bucket))
    listing = Listing(client, s3 if isinstance(s3, Settings) else None, bucket, prefix, suffix)
    known = _by_key(store.ledger(bucket, prefix))
    pool = ThreadPoolExecutor(workers)
    try:
        for rows, found in _side_by_side(known, listing, pool, workers):
            _note(drift, rows, found)
            drift.orphaned += [Row(*row) for those in rows.values() for row in those if is_item(row[0], suffix)]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    _tell_held(drift, store)
    return drift


def _tell_held(drift: Drift, store: Store) -> None:
    """Move the objects out of ``missing`` that lost to something newer: to announce them again would change nothing."""
    named = {one.key: item_of(one.key) for one in drift.missing}
    ids: dict[str, list[str]] = {}
    for name, item_id in filter(None, named.values()):
        ids.setdefault(name, []).append(item_id)
    origins = {name: store.origins(name, those) for name, those in ids.items()}
    missing = []
    for one in drift.missing:
        name, item_id = named[one.key] or ("", "")
        origin = origins.get(name, {}).get(item_id)
        # Listings know the second in which an object was written. Within one, what holds the item is taken for newer:
        # otherwise two such objects would take it from each other with every repair.
        if origin is None or (origin.bucket, origin.key) == (drift.bucket, one.key) or origin.time < one.modified:
            missing.append(one)
        else:
            by = f"s3://{origin.bucket}/{origin.key}" if origin.key else "a message"
            drift.held.append(Held(one.key, name, item_id, by))
    drift.missing = missing


def _now(s3: Any, bucket: str) -> datetime:
    """Our time, moved into the second that S3 has: that is what events are dated by."""
    try:
        answer = s3.head_bucket(Bucket=bucket)
    except ClientError:
        objectstore.ensure_bucket(s3, bucket, None, create=False)  # says what is the matter
        raise
    except BotoCoreError as error:
        raise explained(error) from None
    now, said = datetime.now(UTC), answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    second = parsedate_to_datetime(said).astimezone(UTC) if said else now
    return min(max(now, second), second + timedelta(milliseconds=999))


def is_item(key: str, suffix: str) -> bool:
    """Whether an object is an item, by its name."""
    return key.endswith(suffix) and not key.endswith(NO_ENDS) and key not in NOT_ITEMS


def _by_key(rows: Iterator[tuple[str, str, str, str]]) -> Iterator[dict[str, list[tuple]]]:
    """The ledger's rows by key, a page at a time; an object may hold several items."""
    page: dict[str, list[tuple]] = {}
    for row in rows:
        if len(page) >= STEP and row[0] not in page:
            yield page
            page = {}
        page.setdefault(row[0], []).append(row)
    if page:
        yield page


def _note(drift: Drift, rows: dict[str, list[tuple]], found: "Stretch") -> None:
    """File the objects of one stretch of keys, and take them out of the catalogue's ``rows``."""
    drift.others += found.others
    for one in found.items:
        known = rows.pop(one[0], None)
        if known is None:
            drift.missing.append(one)
        elif known[0][1] == one[1] and (len(known) == 1 or all(row[1] == one[1] for row in known)):
            drift.same += 1
        else:
            drift.stale.append(one)


def _side_by_side(
    known: Iterator[dict[str, list[tuple]]], listing: "Listing", pool: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[dict[str, list[tuple]], "Stretch"]]:
    """The catalogue's rows a page at a time, each with all objects of the same stretch of keys."""
    waiting: deque[tuple[dict, Future]] = deque()
    after = ""

    def finished() -> tuple[dict, Stretch]:
        rows, future = waiting.popleft()
        return rows, _whole(listing, pool, future)

    for rows in known:
        last = next(reversed(rows))
        waiting.append((rows, pool.submit(listing.stretch, after, last)))
        after = last
        if len(waiting) > ahead:
            yield finished()
    waiting.append(({}, pool.submit(listing.stretch, after, None)))
    while waiting:
        yield finished()


def _whole(listing: "Listing", pool: ThreadPoolExecutor, future: Future) -> "Stretch":
    """The stretch with all that belongs to it: a long one is split up, and its parts again."""
    items, others, going = list[Found](), 0, {future}
    while going:
        done, going = wait(going, return_when=FIRST_COMPLETED)
        for stretch in (one.result() for one in done):
            items += stretch.items
            others += stretch.others
            going |= {pool.submit(listing.stretch, *part) for part in stretch.rest}
    return Stretch(sorted(items, key=itemgetter(0)), others)


# --- listing ---


class Stretch(NamedTuple):
    """The objects between two keys."""

    items: list[Found]
    others: int  #: objects that are no items
    rest: tuple[tuple[str, str | None], ...] = ()  #: what is left to list, behind and up to which keys


class Listing:
    """Lists stretches of a bucket; safe to use from many threads. Public for tests and benchmarks."""

    def __init__(self, s3: Any, settings: Settings | None, bucket: str, prefix: str, suffix: str):
        self._s3, self._bucket, self._prefix, self._suffix = s3, bucket, prefix, suffix
        self._store = objectstore.store(bucket, settings) if settings else None

    def stretch(self, after: str, until: str | None) -> Stretch:
        """Objects behind ``after`` and up to ``until``; of a long stretch the first pages only, and where to go on."""
        items, others, first = list[Found](), 0, ""
        for number, page in enumerate(self._pages(after), 1):
            first, last = first or page[0][0], page[-1][0]
            whole, end = len(page) >= PAGE, until is not None and last >= until
            if end:
                page = page[: bisect_right(page, until, key=itemgetter(0))]
            found = [one for one in page if is_item(one[0], self._suffix)]
            items += found
            others += len(page) - len(found)
            if end:
                break
            if number >= LONG and whole:
                return Stretch(items, others, _split(first, last, until, len(self._prefix)))
        return Stretch(items, others)

    def _pages(self, after: str) -> Iterator[list[Found]]:
        if self._store is None:
            yield from self._slow_pages(after)
            return
        from obstore.exceptions import InvalidPathError

        try:
            for page in self._fast_pages(after):
                yield page
                after = page[-1].key
        except InvalidPathError:  # a key that obstore has no name for, "a//b": any key is allowed in S3
            yield from self._slow_pages(after)

    def _fast_pages(self, after: str) -> Iterator[list[Found]]:
        import obstore
        from obstore import exceptions

        # obstore takes folders only; a prefix that ends in the middle of a name begins there, and ends when it does.
        folder = self._prefix[: self._prefix.rfind("/") + 1]
        after = max(after, "" if folder == self._prefix else _below(self._prefix))
        pages = obstore.list(self._store, folder or None, offset=after or None, chunk_size=PAGE)
        try:
            for page in pages:
                found = [
                    Found(o["path"], (o["e_tag"] or "").strip('"'), o["size"], o["last_modified"])
                    for o in page
                    if o["path"].startswith(self._prefix)
                ]
                if found:
                    yield found
                if not (last := page[-1]["path"]).startswith(self._prefix) and last > self._prefix:
                    return
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError):
            raise Rejected(f"S3 does not let you list s3://{self._bucket}/{self._prefix} (s3:ListBucket).") from None
        except exceptions.InvalidPathError:
            raise
        except exceptions.BaseError as error:
            # Without its words: they are long, and have addresses in them.
            raise FailedRemotely(
                f"The listing of s3://{self._bucket} broke off ({type(error).__name__}); run again."
            ) from None

    def _slow_pages(self, after: str) -> Iterator[list[Found]]:
        start = {"StartAfter": after} if after else {}
        try:
            pages = self._s3.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix, **start
            )
            for page in pages:
                found = page.get("Contents", [])
                if found:
                    yield [Found(o["Key"], o["ETag"].strip('"'), o["Size"], o["LastModified"]) for o in found]
        except (ClientError, BotoCoreError) as error:
            raise explained(error) from None


def _below(prefix: str) -> str:
    """What sorts just before everything that begins with ``prefix``."""
    return prefix[:-1] + chr(ord(prefix[-1]) - 1) + chr(sys.maxunicode)


def _split(first: str, last: str, until: str | None, depth: int) -> tuple[tuple[str, str | None], ...]:
    """The keys behind ``last`` and up to ``until`` in parts that can be listed at the same time.

    Nobody knows which keys there are. A page, from ``first`` to ``last``, shows how they are made: a next one has a
    greater digit, or letter, where these two differ, or before. Each such place costs a request, if it is empty too.
    """
    same = _alike(first, last)
    begin = depth if until is None else _alike(last, until)
    cuts = sorted(
        cut
        for place in range(begin, min(same + 1, len(last)))
        for cut in (last[:place] + sign for sign in _following(last[place]))
        if until is None or cut < until
    )
    cuts = cuts[:: len(cuts) // SPLITS + 1]
    return tuple(pairwise([last, *cuts, until]))


def _following(sign: str) -> str:
    """The digits, or letters, behind this one."""
    kind = next((kind for kind in (digits, ascii_uppercase, ascii_lowercase) if sign in kind), "")
    return kind.partition(sign)[2]


def _alike(one: str, other: str) -> int:
    """How many signs two texts begin with alike."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


# --- repair ---


def repair(
    drift: Drift,
    *,
    sqs: Any = None,
    queue_url: str = "",
    sns: Any = None,
    topic_arn: str = "",
    store: Store | None = None,
    remove_orphans: bool = False,
    insist: bool = False,
) -> Repaired:
    """Announce missing and stale objects again, as S3 would; the loader does the rest. Twice does no harm.

    Parameters
    ----------
    sqs, queue_url, sns, topic_arn:
        Where the loader listens: a queue, or else a topic.
    store, remove_orphans:
        The catalogue, to remove the items from whose objects are gone. Never unasked; and not if an object came back
        meanwhile and was loaded, which is newer than the comparison.
    insist:
        Announce missing objects as new, not as of when they were written: then they also win over what the catalogue
        remembers as newer. So it must be where an older version of an object has been restored; where items also
        arrive by other ways than this bucket, they would be replaced.

    Raises
    ------
    Rejected
        Neither queue nor topic is given, or no catalogue to remove orphans from; or one of them refuses.
    FailedRemotely, TimedOut
        Some could not be announced; compare and repair again.
    """
    if remove_orphans and drift.orphaned and store is None:
        raise Rejected("Give store=, the catalogue from which orphaned items shall be removed.")
    wanted = [(one, drift.at if insist else _written(one, drift)) for one in drift.missing]
    wanted += [(one, drift.at) for one in drift.stale]
    if wanted and not queue_url and not topic_arn:
        raise Rejected("Where shall the objects be announced? Give sqs= and queue_url=, or sns= and topic_arn=.")
    body = "MessageBody" if queue_url else "Message"
    messages = {
        one.key: {body: s3_event(drift.bucket, one.key, etag=one.etag, size=one.size, time=time)}
        for one, time in wanted
    }
    send = to_queue(sqs, queue_url) if queue_url else to_topic(sns, topic_arn)
    raise_failed(deliver(messages, send, SNS_LIMIT), len(messages), "announced")
    if not remove_orphans:
        return Repaired(len(messages), 0, len(drift.orphaned))
    removals = [
        Removal(drift.bucket, one.key, Origin(drift.at, bucket=drift.bucket, key=one.key)) for one in drift.orphaned
    ]
    removed = store.remove(removals) if store and removals else 0
    return Repaired(len(messages), removed, len(drift.orphaned) - removed)


def _written(one: Found, drift: Drift) -> datetime:
    """When the object was written, at the latest: a listing knows the second, events know the millisecond."""
    return min(one.modified.astimezone(UTC) + timedelta(milliseconds=999), drift.at)
