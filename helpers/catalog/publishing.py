"""Announce items: checked first, then sent to a topic, or written as JSON into a bucket that tells of its objects.

Whoever publishes a bad item hears of it at once, with every fault of every item, and nothing has been sent. What is
sent twice does no harm: the loader keeps one.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import quote, unquote

from botocore.exceptions import ClientError

from ..errors import NotConfigured, Rejected
from .messages import EVENT_TIME
from .sending import SNS_LIMIT, deliver, in_parallel, raise_failed, s3_event, size_of, to_topic
from .telling import told

#: Bytes that SNS's envelope adds around a message where delivery is not raw: ARNs, URLs, signature, attributes.
ENVELOPE = 3_072
#: Bytes of an object's key at most.
KEY_LIMIT = 1_024
#: File names in a bucket that mean something else than an item (STAC best practices, "Use of links").
NOT_ITEMS = ("collection.json", "catalog.json")
#: Characters of a key that need no care anywhere ("Naming Amazon S3 objects", S3 user guide), and ":", "=", "@".
PLAIN = "!*'():=@,"


@dataclass(frozen=True)
class Published:
    """What became of the items."""

    published: int = 0  #: sent, or written
    unchanged: int = 0  #: lay in the bucket already, byte by byte: no event
    through_s3: int = 0  #: of those published, too large for a message: written into the bucket, and that was announced

    def __str__(self) -> str:
        through = (self.through_s3, "of them through S3")
        return told((self.published, "published"), through, (self.unchanged, "unchanged"), none="nothing published")


def publish(
    items: Iterable[Any],
    *,
    sns: Any,
    topic_arn: str,
    s3: Any = None,
    bucket: str | None = None,
    prefix: str = "items/",
) -> Published:
    """Check all items, then send each as a message to a topic.

    An item too large for a message is written to ``bucket``, under ``prefix``, and announced as S3 would announce it:
    the loader fetches it from there. Subscribers can choose by the message attributes ``collection`` and ``id``.

    Parameters
    ----------
    items:
        STAC items (or collections) as dictionaries or pystac objects; each once.
    sns, s3:
        boto3 clients (:func:`helpers.objectstore.client`); S3 only for large items.

    Raises
    ------
    Rejected
        Items are faulty: the message names every fault of every item. Nothing was sent.
    NotConfigured
        Items are too large for a message, and no bucket is given for them. Nothing was sent.
    FailedRemotely
        Some were not taken after several tries: they are named. The others are published; to publish all once more does
        no harm.
    TimedOut
        The same, and the reason is that the service does not answer.
    """
    texts = checked(items)
    now = datetime.now(UTC)
    small, large = [], []
    for item, text in texts:
        message = _message(item, text.decode(), now.isoformat(timespec="milliseconds"))
        (small if _fits(message) else large).append((item, message, text))
    if large and not (s3 and bucket):
        raise NotConfigured(
            f"{len(large)} of the items are larger than a message may be ({SNS_LIMIT // 1024} KB), the first:"
            f" {named(large[0][0])}. Give s3= and bucket=: a place from which the loader can fetch them."
        )
    announced = _write_large([(item, text) for item, _, text in large], s3, bucket, prefix, now)
    entries = {named(item): message for item, message, _ in small} | announced
    raise_failed(deliver(entries, to_topic(sns, topic_arn)), len(entries), "published")
    return Published(len(entries), 0, len(announced))


def publish_objects(items: Iterable[Any], *, s3: Any, bucket: str, prefix: str = "items/") -> Published:
    """Check all items, then write each as JSON into a bucket that tells of its objects.

    The key says what is in it (``prefix/collection/id.json``), so that the same item is always the same object. One
    that lies there already, byte by byte, is not written again, and causes no event.

    Raises
    ------
    Rejected
        Items are faulty: the message names every fault of every item. Nothing was written.
    FailedRemotely, TimedOut
        Some could not be written; they are named. To publish all once more does no harm.
    """
    texts = checked(items, prefix)
    work = {named(item): partial(put, s3, bucket, key_of(item, prefix), text, unless_same=True) for item, text in texts}
    results, failed = in_parallel(work)
    raise_failed(failed, len(work), "written")
    written = sum(changed for changed, _ in results.values())
    return Published(written, len(work) - written, 0)


# --- checks ---


def checked(items: Iterable[Any], prefix: str = "items/") -> list[tuple[dict, bytes]]:
    """Every item with its JSON, if all are fit for the catalogue.

    Raises
    ------
    Rejected
        With every fault of every item.
    """
    items = [item if isinstance(item, dict) else _as_dict(item) for item in items]
    found: list[tuple[dict, bytes]] = []
    faults = []
    twice = {name for name, count in Counter(map(named, items)).items() if count > 1}
    for item in items:
        wrong, text = _faults(item, prefix), b""
        if not wrong:
            try:
                text = encoded(item)
            except (TypeError, ValueError) as error:
                wrong = [f"it cannot be written as JSON: {error}"]
        if wrong:
            faults.append(f"{named(item)}: {'; '.join(wrong)}")
        found.append((item, text))
    faults += [f"{name}: more than once among these items: which is the right one?" for name in sorted(twice)]
    if faults:
        raise Rejected.because("Nothing was sent: mend these items first", faults)
    return found


def _as_dict(item: Any) -> dict:
    if hasattr(item, "to_dict"):
        return item.to_dict(include_self_link=False, transform_hrefs=False)
    raise Rejected(f"{type(item).__name__} is neither a dictionary nor a pystac object.")


def _faults(item: dict, prefix: str) -> list[str]:
    from . import checking

    collection = item.get("type") == "Collection"
    found = checking.collection_problems(item) if collection else checking.problems(item)
    if not found and (size := len(key_of(item, prefix).encode())) > KEY_LIMIT:
        found = [f"its key in a bucket would have {size} bytes; S3 takes {KEY_LIMIT}"]
    return found


def named(item: dict) -> str:
    """How messages speak of an item: ``collection/id``."""
    if item.get("type") == "Collection":
        return f"the collection {item.get('id')}"
    return f"{item.get('collection') or '(no collection)'}/{item.get('id') or '(no id)'}"


def encoded(item: dict) -> bytes:
    """The item as JSON: the same item is always the same bytes."""
    import orjson

    return orjson.dumps(item, option=orjson.OPT_SORT_KEYS)


def key_of(item: dict, prefix: str) -> str:
    """Where in a bucket an item lies: ``prefix/collection/id.json``; odd characters of the two are percent-encoded."""
    folder = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    if item.get("type") == "Collection":
        return f"{folder}{_part(item['id'])}/collection.json"
    name = f"{_part(item['id'])}.json"
    if name in NOT_ITEMS:
        name = f"%{ord(name[0]):02X}{name[1:]}"
    return f"{folder}{_part(item['collection'])}/{name}"


def item_of(key: str) -> tuple[str, str] | None:
    """Collection and id of the item that lies at such a key, the inverse of :func:`key_of`; None: at no such key."""
    folder, slash, name = key.rpartition("/")
    if not slash or not name.endswith(".json") or name in NOT_ITEMS or "%00" in key:  # no database has the character 0
        return None
    return unquote(folder.rpartition("/")[2]), unquote(name.removesuffix(".json"))


def _part(text: str) -> str:
    part = quote(text, safe=PLAIN)
    # "." and ".." are folders to many tools.
    return part.replace(".", "%2E") if set(part) == {"."} else part


# --- messages ---


def _message(item: dict, text: str, time: str) -> dict:
    collection = item["id"] if item.get("type") == "Collection" else item["collection"]
    # The time is for subscriptions that deliver the text alone: the queue only knows when it took it.
    kinds = {"collection": collection, "id": item["id"], EVENT_TIME: time}
    attributes = {name: {"DataType": "String", "StringValue": value} for name, value in kinds.items()}
    return {"Message": text, "MessageAttributes": attributes}


def _fits(message: dict) -> bool:
    """Whether it can be sent, also in an envelope to a queue that takes no more than SNS does."""
    return size_of(message) <= SNS_LIMIT and len(json.dumps(message["Message"])) + ENVELOPE <= SNS_LIMIT


def _write_large(
    large: list[tuple[dict, bytes]], s3: Any, bucket: str | None, prefix: str, now: datetime
) -> dict[str, dict]:
    """Put the large ones into the bucket; the messages that announce them."""
    work = {named(item): partial(put, s3, bucket, key_of(item, prefix), text) for item, text in large}
    results, failed = in_parallel(work)
    raise_failed(failed, len(work), "written to the bucket, and so nothing was sent")
    messages = {}
    for item, text in large:
        _, etag = results[named(item)]
        about = s3_event(bucket or "", key_of(item, prefix), etag=etag, size=len(text), time=now)
        messages[named(item)] = _message(item, about, now.isoformat(timespec="milliseconds"))
    return messages


def put(
    s3: Any, bucket: str, key: str, text: bytes, *, unless_same: bool = False, if_match: str = ""
) -> tuple[bool, str]:
    """Write a JSON object; whether that was necessary, and the object's ETag.

    ``unless_same``: not if it lies there already, byte by byte. The digest is kept beside the object, since its ETag is
    one only without a KMS key ("Object", S3 API reference). ``if_match``: only in place of what has this ETag.
    """
    digest = hashlib.md5(text, usedforsecurity=False).hexdigest()
    if unless_same and (there := _head(s3, bucket, key)):
        etag = there["ETag"].strip('"')
        if digest in (etag, there["Metadata"].get("md5")):
            return False, etag
    condition = {"IfMatch": if_match} if if_match else {}
    about = {"ContentType": "application/geo+json", "Metadata": {"md5": digest}}
    answer = s3.put_object(Bucket=bucket, Key=key, Body=text, **about, **condition)
    return True, answer["ETag"].strip('"')


def _head(s3: Any, bucket: str, key: str) -> dict | None:
    try:
        return s3.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return None  # or there is no bucket: which writing will say
        raise
