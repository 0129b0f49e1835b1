"""What a message of the queue says: items and collections themselves, or objects that appeared or went.

One reader for every way into the queue: SQS records as Lambda hands them over or as boto3 receives them; the text
itself or in the envelope of SNS; S3 notifications (several records, form-encoded keys, versions) directly, through SNS
or through EventBridge. What a text is, it says by its structure; no word in it decides.
"""

import json
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_plus

import orjson

from .store import Origin

#: Message attribute (of SQS or SNS) that says when what is told happened, if that was before it was sent: a mended
#: message, sent again, must not pass for newer than what came meanwhile.
EVENT_TIME = "eventTime"
#: S3 events that change no content: nothing is to be done.
HARMLESS = (
    "ObjectTagging:", "ObjectAcl:", "ObjectRestore:", "Replication:", "LifecycleTransition", "IntelligentTiering",
    "ReducedRedundancyLostObject", "ObjectAnnotation:",
)  # fmt: skip
CREATED, REMOVED = "ObjectCreated:", ("ObjectRemoved:", "LifecycleExpiration:")
#: EventBridge's names of those.
BRIDGED = {"Object Created": CREATED, "Object Deleted": "ObjectRemoved:"}
#: When a record that is none was sent.
NEVER = datetime.min.replace(tzinfo=UTC)
#: More digits than 64 bits have; orjson would make a rounded number of them without a word.
LONG_NUMBER = re.compile(rb"\d{19}")


class Unreadable(ValueError):
    """A message, or an object, that says nothing that a catalogue could store. The text says why."""


@dataclass(frozen=True)
class Message:
    """An SQS message, whoever handed it over."""

    id: str  #: made up ("record 3") when the record has none
    body: str
    sent: datetime
    receipt: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    named: bool = True  #: the id is SQS's own


@dataclass(frozen=True)
class Located:
    """An object to look at: it was written, or a version of it was deleted."""

    bucket: str
    key: str
    version: str = ""  #: "": the current one


@dataclass
class Said:
    """What one message says; several things are possible, and nothing (a test event)."""

    items: list[tuple[dict, Origin]] = field(default_factory=list)
    collections: list[tuple[dict, Origin]] = field(default_factory=list)
    written: list[tuple[Located, Origin]] = field(default_factory=list)
    removed: list[Origin] = field(default_factory=list)


def message(record: Any, number: int = 0) -> Message:
    """An SQS record, of a Lambda event or of ``receive_message``, as a message.

    Parameters
    ----------
    number:
        The place of the record in its batch, for the name of one that has no id.

    Raises
    ------
    Unreadable
        It is no record at all.
    """
    if not isinstance(record, dict):
        raise Unreadable(f"record {number} is no SQS record but {type(record).__name__}")
    about = _object(_either(record, "attributes", "Attributes"))
    given = _object(_either(record, "messageAttributes", "MessageAttributes"))
    told = {key: _either(_object(one), "stringValue", "StringValue") for key, one in given.items()}
    name = _either(record, "messageId", "MessageId")
    body = _either(record, "body", "Body")
    return Message(
        id=name if isinstance(name, str) and name else f"record {number}",
        body=body if isinstance(body, str) else "",
        sent=_since_1970(about.get("SentTimestamp")),
        receipt=_either(record, "receiptHandle", "ReceiptHandle") or "",
        attributes={key: text for key, text in told.items() if isinstance(text, str)},
        named=isinstance(name, str) and bool(name),
    )


def _either(record: dict, *names: str) -> Any:
    return next((record[name] for name in names if name in record), None)


def _object(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _since_1970(milliseconds: Any) -> datetime:
    try:
        return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return datetime.now(UTC)


def read(message: Message) -> Said:
    """What the message says.

    Raises
    ------
    Unreadable
        It is not JSON, or JSON of none of the kinds above.
    """
    time = _time(message.attributes.get(EVENT_TIME)) or message.sent
    document = parse(message.body)
    if _is_envelope(document):
        told = _object(_object(document.get("MessageAttributes")).get(EVENT_TIME))
        time = _time(told.get("Value")) or _time(document.get("Timestamp")) or time
        document = parse(document["Message"])
    if not isinstance(document, dict):
        raise Unreadable(f"it is JSON, but neither STAC nor an event: {_shown(document)}")
    if "type" not in document:
        if isinstance(document.get("Records"), list):
            return _notified(document["Records"], time)
        if document.get("Event") == "s3:TestEvent":
            return Said()  # S3 says that it will notify
        if document.get("source") == "aws.s3" and isinstance(document.get("detail"), dict):
            return _bridged(document, time)
    said = Said()
    _take(document, Origin(time), said)
    return said


def contents(body: bytes, origin: Origin) -> Said:
    """The items and collections in the bytes of an object.

    Raises
    ------
    Unreadable
        It is not JSON, or no STAC.
    """
    said = Said()
    _take(parse(body), origin, said)
    return said


def parse(text: str | bytes) -> Any:
    """JSON as it is written: numbers that have no exact form beyond 64 bits stay whole numbers, NaN is refused.

    Raises
    ------
    Unreadable
        It is not JSON; the text says where it ends to be.
    """
    try:
        raw = text.encode() if isinstance(text, str) else bytes(text)
        if LONG_NUMBER.search(raw):
            return json.loads(raw, parse_constant=_refuse)
        return orjson.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"it is not JSON: {error}" if text else "it is empty") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number in JSON")


def _is_envelope(document: Any) -> bool:
    return (
        isinstance(document, dict)
        and document.get("Type") == "Notification"
        and isinstance(document.get("Message"), str)
        and "TopicArn" in document
    )


def _take(document: Any, origin: Origin, said: Said) -> None:
    kind = document.get("type") if isinstance(document, dict) else None
    if kind == "Feature":
        said.items.append((document, origin))
    elif kind == "FeatureCollection" and isinstance(document.get("features"), list):
        wrong = [one for one in document["features"] if not isinstance(one, dict) or one.get("type") != "Feature"]
        if wrong:
            raise Unreadable(f"{len(wrong)} of the features of the collection are none: {_shown(wrong[0])}")
        said.items += [(one, origin) for one in document["features"]]
    elif kind == "Collection":
        if not isinstance(document.get("id"), str) or not document["id"]:
            raise Unreadable("it is a collection without an id")
        said.collections.append((document, origin))
    elif kind:
        raise Unreadable(f"its type is {_shown(kind)}; items (Feature), item collections and collections can be stored")
    else:
        raise Unreadable(f"it is JSON, but neither STAC nor an event: {_shown(document)}")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# --- events of S3 ---


def _notified(records: list, time: datetime) -> Said:
    """An S3 notification; all records or none, so that nothing is half done."""
    said = Said()
    for record in records:
        try:
            if record["eventSource"] != "aws:s3":
                raise Unreadable(f"an event of {_shown(record['eventSource'])}; those of aws:s3 can be read")
            about = record["s3"]["object"]
            origin = Origin(
                time=_time(record.get("eventTime")) or time,
                sequencer=_text(about.get("sequencer") or ""),
                bucket=_name(record["s3"]["bucket"]["name"]),
                key=unquote_plus(_name(about["key"]), errors="strict"),
                etag=_text(about.get("eTag") or "").strip('"'),
            )
            _sort(record["eventName"].removeprefix("s3:"), origin, _text(about.get("versionId") or ""), said)
        except (KeyError, TypeError, AttributeError, UnicodeError):
            raise Unreadable(f"an S3 event without bucket, key or name: {_shown(record)}") from None
    return said


def _bridged(event: dict, time: datetime) -> Said:
    """An S3 event from EventBridge: the key is not encoded there."""
    said, detail = Said(), event["detail"]
    try:
        about = detail["object"]
        origin = Origin(
            time=_time(event.get("time")) or time,
            sequencer=_text(about.get("sequencer") or ""),
            bucket=_name(detail["bucket"]["name"]),
            key=_name(about["key"]),
            etag=_text(about.get("etag") or "").strip('"'),
        )
        name, how = BRIDGED.get(event["detail-type"], ""), detail.get("deletion-type", "").replace(" ", "")
        if name:
            _sort(name + how, origin, _text(about.get("version-id") or ""), said)
        elif not event["detail-type"].startswith("Object "):  # the others change no content
            raise Unreadable(f"an S3 event of an unknown kind: {_shown(event['detail-type'])}")
    except (KeyError, TypeError, AttributeError, UnicodeError):
        raise Unreadable(f"an S3 event without bucket, key or name: {_shown(event)}") from None
    return said


def _sort(name: str, origin: Origin, version: str, said: Said) -> None:
    if name.startswith(CREATED):
        said.written.append((Located(origin.bucket, origin.key, version), origin))
    elif name.startswith(REMOVED):
        if version and not name.endswith("DeleteMarkerCreated"):
            # One version has gone for good: whether the object has, only the bucket knows.
            said.written.append((Located(origin.bucket, origin.key), origin))
        else:
            said.removed.append(replace(origin, etag=""))
    elif not name.startswith(HARMLESS):
        raise Unreadable(f"an S3 event of an unknown kind: {_shown(name)}")


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise TypeError
    value.encode()  # raises for half a surrogate pair
    return value


def _name(value: Any) -> str:
    if not _text(value):
        raise TypeError
    return value


def _time(text: Any) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None
