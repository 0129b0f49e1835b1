"""What the loader could not store: seen whole and with reasons, mended and sent again, or archived. Nothing is lost.

A message is sent, or written to the archive, before it is deleted from its queue: killed in between, it is there twice,
which does no harm. Only what was listed is ever deleted; whatever arrives meanwhile stays.
"""

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Self

from botocore.exceptions import BotoCoreError, ClientError

from ..errors import Rejected
from . import messages
from .publishing import encoded, named, put
from .sending import BATCH, SNS_LIMIT, WORKERS, deliver, explained, in_parallel, raise_failed, s3_event, to_queue
from .store import Origin, Store
from .telling import told

#: Seconds for which letters are hidden from others while they are read.
HOLD = 300
#: What is said of a letter in which nothing is wrong.
NO_FAULT = "no fault is found in it now: what failed (a database, a bucket?) may be well again; send it again"
#: Parts of a reason that differ from item to item: what is in quotes, and numbers.
PARTICULAR = re.compile(r"'[^']*'|\"[^\"]*\"|\d+(?:[.:,-]\d+)*")


@dataclass(frozen=True)
class Letter:
    """A message that the loader gave up."""

    id: str  #: the message's, which it keeps from queue to queue
    reason: str
    noted: bool  #: the loader noted the reason; otherwise it was worked out again just now
    about: tuple[str, ...]  #: what it brings: ``collection/id``, or the address of an object
    sent: datetime  #: when it was sent first; a queue keeps it for a time from then (14 days at most)
    receives: int
    queue_url: str  #: the queue that it is in
    record: dict = field(repr=False)  #: the whole of it, as SQS gives it


@dataclass(frozen=True)
class Redriven:
    """What became of the letters that were to be sent again."""

    sent: int = 0
    fixed: int = 0  #: of those, with an item that was changed
    rewritten: int = 0  #: objects that were written anew
    left: int = 0  #: still dead letters: not chosen, or with nothing in them that could be fixed
    gone: int = 0  #: no longer in the queue, or somebody else is reading them: not sent
    twice: int = 0  #: of those sent, still dead letters as well, as SQS did not delete them

    def __str__(self) -> str:
        return told(
            (self.sent, "sent again"),
            (self.fixed, "of them mended"),
            (self.twice, "of them still dead letters as well"),
            (self.rewritten, "object(s) written anew"),
            (self.left, "left where they are" if self.left > 1 else "left where it is"),
            (self.gone, "gone meanwhile"),
            none="nothing sent again",
        )


@dataclass(frozen=True)
class Archived:
    """What became of the letters that were to be archived."""

    archived: int = 0
    gone: int = 0  #: no longer in the queue, or somebody else is reading them
    twice: int = 0  #: of those archived, still in the queue as well

    def __str__(self) -> str:
        kept = (self.twice, "of them still in the queue as well")
        return told((self.archived, "archived"), kept, (self.gone, "gone meanwhile"), none="nothing archived")


# --- look ---


def letters(
    sqs: Any, queue_url: str, *, store: Store | None = None, s3: Any = None, hold: int = HOLD, wait: int = 1
) -> list[Letter]:
    """All letters of a dead-letter queue, the oldest first; they stay there, and are visible again afterwards.

    Those that somebody else is reading at this moment are not among them.

    Parameters
    ----------
    store:
        The catalogue, in which the loader notes its reasons. Without it, and where it notes nothing, the item is
        checked again.
    s3:
        A boto3 client, for letters that only say where an item is.
    hold, wait:
        Seconds: how long letters are hidden while the others are read; how long to wait for one more.

    Raises
    ------
    Rejected, TimedOut, FailedRemotely
        SQS refuses, does not answer, or has a problem.
    """
    with _Reading(sqs, queue_url, hold, wait) as reading:
        records = [record for page in reading for record in page]
    noted = store.failures([record["MessageId"] for record in records]) if store and records else {}
    collections = set(store.collections()) if store and len(noted) < len(records) else None
    with ThreadPoolExecutor(WORKERS) as pool:  # most of the time is S3's
        found = list(pool.map(lambda one: _letter(one, queue_url, noted, s3, collections), records))
    return sorted(found, key=lambda letter: (letter.sent, letter.id))


def _letter(record: dict, queue_url: str, noted: dict[str, str], s3: Any, collections: set[str] | None) -> Letter:
    message = messages.message(record)
    about, reason = list[str](), noted.get(message.id)
    try:
        said = messages.read(message)
        about = _about(said)
        reason = reason or "; ".join(_faults(said, s3, collections)) or NO_FAULT
    except messages.Unreadable as error:
        reason = reason or str(error)
    receives = int(record.get("Attributes", {}).get("ApproximateReceiveCount", 1))
    place = (message.sent, receives, queue_url, record)
    return Letter(message.id, reason, message.id in noted, tuple(about), *place)


def _about(said: messages.Said) -> list[str]:
    inside = [named(item) for item, _ in (*said.items, *said.collections)]
    return inside + [_address(origin) for origin in (*(o for _, o in said.written), *said.removed)]


def _address(origin: Origin) -> str:
    return f"s3://{origin.bucket}/{origin.key}"


def _faults(said: messages.Said, s3: Any, collections: set[str] | None) -> Iterator[str]:
    """What is wrong with that which a message says, as far as can be told from here."""
    from . import checking

    several = len(said.items) + len(said.written) > 1
    for content in _contents(said, s3):
        if content.reason:
            yield content.reason
            continue
        item = content.item
        wrong = checking.problems(item)
        if not wrong and collections is not None and item["collection"] not in collections:
            wrong = [f"there is no collection {item['collection']!r} in the catalogue"]
        if wrong:
            yield f"{named(item)}: {'; '.join(wrong)}" if several else "; ".join(wrong)
    for collection, _ in said.collections:
        yield from checking.collection_problems(collection)


@dataclass(frozen=True)
class Content:
    """An item that a message brings, or why it does not."""

    origin: Origin
    item: dict | None = None
    reason: str = ""
    through_s3: bool = False
    alone: bool = True  #: in its object


def _contents(said: messages.Said, s3: Any) -> Iterator[Content]:
    for item, origin in said.items:
        yield Content(origin, item)
    for located, origin in said.written:
        yield from _fetched(located, origin, s3)


def _fetched(located: messages.Located, origin: Origin, s3: Any) -> Iterator[Content]:
    """The items in an object as it is now."""
    address = _address(origin)
    if s3 is None:
        yield Content(origin, reason=f"the item is in {address}: give s3= to look into it", through_s3=True)
        return
    version = {"VersionId": located.version} if located.version else {}
    try:
        answer = s3.get_object(Bucket=located.bucket, Key=located.key, **version)
        body, etag = answer["Body"].read(), answer["ETag"].strip('"')
        origin = Origin(origin.time, origin.sequencer, origin.bucket, origin.key, etag)
        said = messages.contents(body, origin)
    except messages.Unreadable as error:
        yield Content(origin, reason=f"{address}: {error}", through_s3=True)
    except ClientError as error:
        yield Content(origin, reason=f"{address} cannot be read: {error.response['Error']['Code']}", through_s3=True)
    except BotoCoreError as error:
        raise explained(error) from None
    else:
        for item, _ in said.items:
            yield Content(origin, item, through_s3=True, alone=len(said.items) == 1)


def grouped(letters: Iterable[Letter], examples: int = 3) -> list[dict]:
    """Letters by reason, as rows of a table, the most frequent first.

    Reasons that differ only in what they quote (a value, a number, the item's name) are one.
    """
    groups: dict[str, list[Letter]] = {}
    for letter in letters:
        groups.setdefault(_kind(letter), []).append(letter)
    rows = []
    for kind, those in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
        reasons, names = {one.reason for one in those}, [name for one in those for name in one.about or (one.id,)]
        shown = [
            *map(_short, names[:examples]),
            *([f"and {len(names) - examples} more"] if len(names) > examples else []),
        ]
        oldest = min(one.sent for one in those)
        reason = min(reasons) if len(reasons) == 1 else kind
        rows.append(
            {
                "reason": reason,
                "letters": len(those),
                "examples": ", ".join(shown),
                "oldest": f"{oldest:%Y-%m-%d %H:%M}",
            }
        )
    return rows


def _short(name: str) -> str:
    """The address of an object by the end of its key; ``collection/id`` as it is."""
    parts = name.removeprefix("s3://").split("/")
    return name if not name.startswith("s3://") or len(parts) < 4 else f".../{'/'.join(parts[-2:])}"


def _kind(letter: Letter) -> str:
    reason = letter.reason
    for name in letter.about:  # "collection/id", or an address
        reason = reason.replace(name, "...")
    return PARTICULAR.sub("...", reason).removeprefix("item ...: ")  # as the loader begins; the examples name it


# --- send again ---


def redrive(
    letters: Iterable[Letter],
    sqs: Any,
    queue_url: str,
    *,
    fix: Callable[[dict], dict | None] | None = None,
    only: Callable[[Letter], bool] | None = None,
    s3: Any = None,
    rewrite: bool = False,
    hold: int = HOLD,
    wait: int = 1,
) -> Redriven:
    """Send letters back to a queue, as they are or with their items mended, and delete them after that.

    They keep the time of their event: what has come since and is newer stays.

    Parameters
    ----------
    queue_url:
        Where to: the queue that the loader reads.
    fix:
        Gets each item and returns it as it should be, or None to leave its letter where it is. All results are checked
        before anything is sent.
    only:
        Choose letters.
    s3:
        A boto3 client, to fix letters that only say where an item is.
    rewrite:
        Such an item is fixed in its object: it is written anew (unless somebody else has done so meanwhile) and
        announced. Otherwise the fixed item itself is sent, and the object stays bad: :mod:`helpers.catalog.drift` will
        say that its item is held by a message, or, if its key does not tell the item, that it is missing.

    Raises
    ------
    Rejected
        Fixed items are still faulty, or do not fit into a message: all are named. Nothing was sent.
    FailedRemotely, TimedOut
        Some could not be sent; they are named, and still dead letters.
    """
    given = {letter.id: letter for letter in letters}
    chosen = [letter for letter in given.values() if only is None or only(letter)]
    if any(letter.queue_url == queue_url for letter in chosen):
        raise Rejected("These letters are in that queue already: give the URL of the queue that the loader reads.")
    plans = _fixed(chosen, fix, s3, rewrite, _limit(sqs, queue_url)) if fix else {one.id: Plan() for one in chosen}
    rewritten = _rewrite(plans, s3)
    sent, twice = list[str](), 0
    for dead in dict.fromkeys(letter.queue_url for letter in chosen):
        wanted = {name for name in plans if given[name].queue_url == dead}
        with _Reading(sqs, dead, hold, wait) as reading:
            for page in reading.until_found(wanted):
                outgoing = {record["MessageId"]: _again(record, plans[record["MessageId"]]) for record in page}
                failed = deliver(outgoing, to_queue(sqs, queue_url))
                taken = [name for name in outgoing if name not in failed]
                twice += reading.delete(taken)
                sent += taken
                raise_failed(failed, len(outgoing), "sent again (and are still dead letters)")
    fixed = sum(plans[name].changed for name in sent)
    return Redriven(len(sent), fixed, rewritten, len(given) - len(plans), len(plans) - len(sent), twice)


@dataclass
class Plan:
    """How one letter is sent again: as it is, or with another body."""

    body: str | None = None
    time: datetime | None = None  #: of the event, if the body does not say it
    objects: list[tuple[Content, bytes]] = field(default_factory=list)  #: to be written anew

    @property
    def changed(self) -> bool:
        return self.body is not None or bool(self.objects)


def _fixed(
    letters: list[Letter], fix: Callable[[dict], dict | None], s3: Any, rewrite: bool, limit: int
) -> dict[str, Plan]:
    """A plan for each letter that can be fixed, by its id.

    Raises
    ------
    Rejected
        With everything that is still wrong.
    """
    plans, faults = dict[str, Plan](), list[str]()
    with ThreadPoolExecutor(WORKERS) as pool:
        contents = pool.map(lambda letter: _fixable(letter, s3), letters)
    for letter, inside in zip(letters, contents, strict=True):
        if not inside:
            continue
        items = [fix(deepcopy(content.item)) for content in inside]
        if None in items:
            continue
        wrong = _still_wrong(letter, inside, items, rewrite)
        plan = Plan() if wrong else _plan(inside, items, rewrite)
        if plan.body and (size := len(plan.body.encode())) > limit - 1024:  # its attributes count as well
            wrong = [f"{', '.join(letter.about)}: too large for a message ({size} bytes): fix it with rewrite=True"]
        faults += wrong
        plans[letter.id] = plan
    if faults:
        raise Rejected.because("Nothing was sent: these are not right yet", faults)
    return plans


def _fixable(letter: Letter, s3: Any) -> list[Content]:
    """The items of a letter, if it brings items and nothing else, and all can be read."""
    try:
        said = messages.read(messages.message(letter.record))
    except messages.Unreadable:
        return []
    if said.collections or said.removed:
        return []
    contents = list(_contents(said, s3))
    return [] if any(content.item is None for content in contents) else contents


def _still_wrong(letter: Letter, inside: list[Content], items: list[Any], rewrite: bool) -> list[str]:
    from . import checking

    found = [(item, checking.problems(item)) for item in items]
    faults = [f"{named(item) if isinstance(item, dict) else letter.id}: {'; '.join(why)}" for item, why in found if why]
    if rewrite and any(content.through_s3 and not content.alone for content in inside):
        faults.append(f"{letter.about[0]}: several items are in one object, which cannot be written anew from here")
    return faults


def _plan(inside: list[Content], items: list[dict], rewrite: bool) -> Plan:
    if all(content.item == item for content, item in zip(inside, items, strict=True)):
        return Plan()
    if rewrite and all(content.through_s3 for content in inside):
        changed = ((content, item) for content, item in zip(inside, items, strict=True) if content.item != item)
        return Plan(objects=[(content, encoded(item)) for content, item in changed])
    body = items[0] if len(items) == 1 else {"type": "FeatureCollection", "features": items}
    return Plan(encoded(body).decode(), min(content.origin.time for content in inside))


def _rewrite(plans: dict[str, Plan], s3: Any) -> int:
    """Write fixed objects anew; the plans then announce them. How many."""
    work = {
        f"{letter_id} {content.origin.key}": partial(_write, s3, content, text)
        for letter_id, plan in plans.items()
        for content, text in plan.objects
    }
    etags, failed = in_parallel(work)
    raise_failed(failed, len(work), "written anew, and so nothing was sent")
    for letter_id, plan in plans.items():
        if plan.objects:
            plan.body = _announcement(
                [(content, etags[f"{letter_id} {content.origin.key}"], len(text)) for content, text in plan.objects]
            )
    return len(work)


def _write(s3: Any, content: Content, text: bytes) -> str:
    """Write the object, if it is still the one that was read; its ETag."""
    origin = content.origin
    try:
        return put(s3, origin.bucket, origin.key, text, if_match=origin.etag)[1]
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (404, 409, 412):
            raise
        raise Rejected(
            f"{_address(origin)} has changed or gone since it was read: nothing was sent. List the letters again."
        ) from None


def _announcement(objects: list[tuple[Content, str, int]]) -> str:
    now = datetime.now(UTC)
    events = [
        s3_event(content.origin.bucket, content.origin.key, etag=etag, size=size, time=now)
        for content, etag, size in objects
    ]
    return json.dumps({"Records": [record for event in events for record in json.loads(event)["Records"]]})


def _again(record: dict, plan: Plan) -> dict:
    """The message to send: what was received, with the time of its event, and another body if it was fixed."""
    kept = ("DataType", "StringValue", "BinaryValue")
    given = record.get("MessageAttributes", {})
    attributes = {name: {key: one[key] for key in kept if key in one} for name, one in given.items()}
    time = plan.time or messages.message(record).sent
    stamp = {"DataType": "String", "StringValue": time.astimezone(UTC).isoformat(timespec="milliseconds")}
    if plan.time:
        attributes[messages.EVENT_TIME] = stamp
    else:
        attributes.setdefault(messages.EVENT_TIME, stamp)
    return {"MessageBody": record["Body"] if plan.body is None else plan.body, "MessageAttributes": attributes}


def _limit(sqs: Any, queue_url: str) -> int:
    """Bytes that a message to the queue may have."""
    try:
        answer = sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["MaximumMessageSize"])
    except (ClientError, BotoCoreError) as error:
        raise explained(error) from None
    return int(answer.get("Attributes", {}).get("MaximumMessageSize", SNS_LIMIT))


# --- archive ---


def archive(
    letters: Iterable[Letter],
    sqs: Any,
    s3: Any,
    bucket: str,
    prefix: str = "dead-letters/",
    *,
    hold: int = HOLD,
    wait: int = 1,
) -> Archived:
    """Write letters to a bucket, whole and with their reasons, as ``prefix/year-month-day/id.json``; then delete them.

    Raises
    ------
    Rejected, FailedRemotely, TimedOut
        Some could not be written; they are still dead letters.
    """
    given = {letter.id: letter for letter in letters}
    done, twice = 0, 0
    for dead in dict.fromkeys(letter.queue_url for letter in given.values()):
        wanted = {letter.id for letter in given.values() if letter.queue_url == dead}
        with _Reading(sqs, dead, hold, wait) as reading:
            for page in reading.until_found(wanted):
                work = {
                    one["MessageId"]: partial(_file, s3, bucket, prefix, one, given[one["MessageId"]]) for one in page
                }
                written, failed = in_parallel(work)
                twice += reading.delete(list(written))
                done += len(written)
                raise_failed(failed, len(work), "archived (and are still dead letters)")
    return Archived(done, len(given) - done, twice)


def _file(s3: Any, bucket: str, prefix: str, record: dict, letter: Letter) -> None:
    folder = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    whole = {"reason": letter.reason, "about": letter.about, "queue": letter.queue_url}
    whole |= {"sent": letter.sent.isoformat(), "message": {k: v for k, v in record.items() if k != "ReceiptHandle"}}
    text = json.dumps(whole, indent=1, default=lambda value: base64.b64encode(value).decode())
    key = f"{folder}{letter.sent:%Y-%m-%d}/{letter.id}.json"
    s3.put_object(Bucket=bucket, Key=key, Body=text.encode(), ContentType="application/json")


# --- reading a queue without emptying it ---


class _Reading:
    """Every message of a queue once, hidden from others until the block ends; what was not deleted is then given back.

    Iterating gives the messages in pages, as SQS does.
    """

    def __init__(self, sqs: Any, queue_url: str, hold: int, wait: int):
        self._sqs, self._url, self._hold, self._wait = sqs, queue_url, hold, wait
        self._held: dict[str, str] = {}  # receipt handle by message id; a message's last one is the one that counts
        self._deleted: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __iter__(self) -> Iterator[list[dict]]:
        while page := self._receive():
            new = [one for one in page if one["MessageId"] not in self._held and one["MessageId"] not in self._deleted]
            self._held |= {one["MessageId"]: one["ReceiptHandle"] for one in page}
            if not new:
                return  # the first ones are visible again: that was all, or it takes longer than they are hidden
            # One message may be on a page twice.
            yield list({one["MessageId"]: one for one in new}.values())

    def until_found(self, wanted: set[str]) -> Iterator[list[dict]]:
        """Pages with those of ``wanted`` only; ends when all are found."""
        left = set(wanted)
        for page in self if left else ():
            found = [one for one in page if one["MessageId"] in left]
            left -= {one["MessageId"] for one in found}
            if found:
                yield found
            if not left:
                return

    def _receive(self) -> list[dict]:
        try:
            answer = self._sqs.receive_message(
                QueueUrl=self._url,
                MaxNumberOfMessages=BATCH,
                VisibilityTimeout=self._hold,
                WaitTimeSeconds=self._wait,
                MessageSystemAttributeNames=["All"],
                MessageAttributeNames=["All"],
            )
        except (ClientError, BotoCoreError) as error:
            raise explained(error) from None
        return answer.get("Messages", [])

    def delete(self, ids: list[str]) -> int:
        """Delete messages that were read here; how many SQS kept."""
        kept = 0
        for start in range(0, len(ids), BATCH):
            some = ids[start : start + BATCH]
            entries = [{"Id": str(n), "ReceiptHandle": self._held[name]} for n, name in enumerate(some)]
            try:
                answer = self._sqs.delete_message_batch(QueueUrl=self._url, Entries=entries)
            except (ClientError, BotoCoreError) as error:
                raise explained(error) from None
            failed = {some[int(one["Id"])] for one in answer.get("Failed", [])}
            for name in set(some) - failed:
                self._deleted.add(name)
                del self._held[name]
            kept += len(failed)
        return kept

    def __exit__(self, *_: Any) -> None:
        handles = list(self._held.values())
        for start in range(0, len(handles), BATCH):
            some = handles[start : start + BATCH]
            entries = [{"Id": str(n), "ReceiptHandle": one, "VisibilityTimeout": 0} for n, one in enumerate(some)]
            try:
                self._sqs.change_message_visibility_batch(QueueUrl=self._url, Entries=entries)
            except (ClientError, BotoCoreError):
                return  # they become visible by themselves
