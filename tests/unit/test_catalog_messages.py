"""Whatever comes out of the queue is understood for what it is, or is named with the reason why not."""

import json
from datetime import UTC, datetime
from urllib.parse import quote_plus

import pytest

from helpers.catalog import messages
from helpers.catalog.fetching import Fetched
from helpers.catalog.loading import Loader
from helpers.catalog.messages import Located, Unreadable
from helpers.catalog.store import Loaded, Origin

SENT = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
MOMENT = "2026-03-01T11:59:59.123Z"
ITEM = {"type": "Feature", "id": "one", "collection": "rtc", "properties": {"keywords": ["aws:s3", "Records"]}}


def of_lambda(body, **more) -> dict:
    text = body if isinstance(body, str) else json.dumps(body)
    about = {"ApproximateReceiveCount": "1", "SentTimestamp": str(int(SENT.timestamp() * 1000))}
    return {
        "messageId": "059f36b4-87a3-44ab-83d2-661975830a7d",
        "receiptHandle": "AQEBwJnKyrHigUMZj6rYigCgxlaS3SLy0a",
        "body": text,
        "attributes": about,
        "messageAttributes": {},
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:us-west-2:123456789012:stac",
        "awsRegion": "us-west-2",
    } | more


def received(body) -> dict:
    """The same as boto3 hands it over."""
    record = of_lambda(body)
    names = {"messageId": "MessageId", "receiptHandle": "ReceiptHandle", "body": "Body", "attributes": "Attributes"}
    return {ours: record[theirs] for theirs, ours in names.items()}


def by_sns(message, **more) -> dict:
    return {
        "Type": "Notification",
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": "arn:aws:sns:us-west-2:123456789012:stac",
        "Message": message if isinstance(message, str) else json.dumps(message),
        "Timestamp": MOMENT,
        "SignatureVersion": "1",
    } | more


def by_s3(key: str, event: str = "ObjectCreated:Put", /, **about) -> dict:
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": "us-west-2",
        "eventTime": MOMENT,
        "eventName": event,
        "s3": {
            "s3SchemaVersion": "1.0",
            "bucket": {"name": "items", "arn": "arn:aws:s3:::items"},
            "object": {"key": quote_plus(key), "size": 9, "eTag": "abc", "sequencer": "0055AED6DCD90281E5"} | about,
        },
    }


def said(body) -> messages.Said:
    return messages.read(messages.message(of_lambda(body)))


def when(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize("record", [of_lambda(ITEM), received(ITEM)], ids=["Lambda", "boto3"])
def test_both_forms_of_a_record_are_one(record):
    message = messages.message(record)
    assert (message.id, message.sent) == ("059f36b4-87a3-44ab-83d2-661975830a7d", SENT)
    assert message.receipt.startswith("AQEB")
    assert messages.read(message).items == [(ITEM, Origin(SENT))]


def test_a_record_without_an_id_is_named_by_its_place():
    record = of_lambda(ITEM)
    del record["messageId"], record["attributes"]
    assert messages.message(record, 3).id == "record 3"
    with pytest.raises(Unreadable, match="record 4 is no SQS record"):
        messages.message(None, 4)


def test_items_and_collections_come_as_they_are_or_through_sns():
    collection = {"type": "Collection", "id": "rtc"}
    assert said(by_sns(ITEM)).items == [(ITEM, Origin(when(MOMENT)))]
    assert said(collection).collections == [(collection, Origin(SENT))]
    several = {"type": "FeatureCollection", "features": [ITEM, ITEM | {"id": "two"}]}
    assert [item["id"] for item, _ in said(by_sns(several)).items] == ["one", "two"]


def test_the_word_of_s3_in_an_item_makes_no_event_of_it():
    tricky = ITEM | {"eventSource": "aws:s3", "Records": [{"eventSource": "aws:s3"}], "Event": "s3:TestEvent"}
    assert said(tricky).items[0][0] == tricky


@pytest.mark.parametrize("wrap", [lambda event: event, by_sns], ids=["direct", "SNS"])
def test_an_s3_notification_may_tell_of_several_objects(wrap):
    keys = ["a/plain.json", "a/red flower+1 é%2F.json"]
    event = {"Records": [by_s3(keys[0]), by_s3(keys[1], versionId="v1"), by_s3("a/gone.json", "ObjectRemoved:Delete")]}
    found = said(wrap(event))
    assert [one for one, _ in found.written] == [Located("items", keys[0]), Located("items", keys[1], "v1")]
    origin = found.written[1][1]
    assert origin == Origin(when(MOMENT), "0055AED6DCD90281E5", "items", keys[1], "abc")
    assert [(o.key, o.etag) for o in found.removed] == [("a/gone.json", "")]


@pytest.mark.parametrize(
    ("event", "version", "look", "gone"),
    [
        ("ObjectCreated:CompleteMultipartUpload", "", True, False),
        ("s3:ObjectCreated:Copy", "", True, False),
        ("ObjectRemoved:Delete", "", False, True),
        ("ObjectRemoved:DeleteMarkerCreated", "marker", False, True),
        ("ObjectRemoved:Delete", "an old version", True, False),  # the current one may be there
        ("LifecycleExpiration:Delete", "", False, True),
        ("ObjectTagging:Put", "", False, False),
    ],
)
def test_what_an_s3_event_means(event, version, look, gone):
    found = said({"Records": [by_s3("k", event, **({"versionId": version} if version else {}))]})
    assert (bool(found.written), bool(found.removed)) == (look, gone)
    if look and version:
        assert found.written[0][0].version == ""


def test_events_through_eventbridge_have_plain_keys():
    detail = {"bucket": {"name": "items"}, "object": {"key": "a+b c.json", "etag": "e", "sequencer": "01"}}
    event = {"version": "0", "source": "aws.s3", "time": "2026-03-01T11:59:59Z", "detail": detail}
    [(one, origin)] = said(event | {"detail-type": "Object Created"}).written
    assert (one, origin.etag) == (Located("items", "a+b c.json"), "e")
    assert said(event | {"detail-type": "Object Deleted"}).removed[0].key == "a+b c.json"
    assert said(event | {"detail-type": "Object Tags Added"}) == messages.Said()


def test_a_test_event_says_nothing():
    event = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Time": MOMENT, "Bucket": "items"}
    assert said(event) == said(by_sns(event)) == messages.Said()


def test_a_message_sent_again_keeps_the_time_of_its_event():
    earlier = "2026-02-01T00:00:00+00:00"
    sns = by_sns(ITEM, MessageAttributes={"eventTime": {"Type": "String", "Value": earlier}})
    sqs = of_lambda(ITEM, messageAttributes={"eventTime": {"stringValue": earlier, "dataType": "String"}})
    boto = received(ITEM) | {"MessageAttributes": {"eventTime": {"StringValue": earlier, "DataType": "String"}}}
    for record in (of_lambda(sns), sqs, boto):
        [(_, origin)] = messages.read(messages.message(record)).items
        assert origin.time == when(earlier)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "empty"),
        ("{not json", "not JSON"),
        ('{"type": "Feature", "id": NaN}', "not JSON"),
        ('{"type": "Feature", "id": NaN, "n": 12345678901234567890123}', "NaN is no number"),
        ("[" * 100_000, "not JSON"),
        ("[1, 2]", "neither STAC nor an event"),
        ('"aws:s3"', "neither STAC nor an event"),
        ({"type": "Catalog", "id": "c"}, "Catalog"),
        ({"type": "Collection"}, "without an id"),
        ({"type": "FeatureCollection", "features": [ITEM, 3]}, "1 of the features"),
        ({"Records": [by_s3("k"), {"eventSource": "aws:sns"}]}, "aws:sns"),
        ({"Records": [{"eventSource": "aws:s3"}]}, "without bucket, key"),
        ({"Records": [by_s3("k", "ObjectMangled:Put")]}, "ObjectMangled"),
        ({"Records": [by_s3("k", key="%ff")]}, "without bucket, key"),
        (by_sns("nothing"), "not JSON"),
        ({"Type": "SubscriptionConfirmation", "TopicArn": "a", "Message": "m"}, "neither STAC nor an event"),
    ],
)
def test_what_cannot_be_understood_is_refused_with_a_reason(body, reason):
    with pytest.raises(Unreadable, match=reason):
        said(body)


def test_integers_beyond_64_bits_are_not_rounded_in_silence():
    [(item, _)] = said('{"type": "Feature", "id": "one", "n": 18446744073709551617}').items
    assert item["n"] == 18446744073709551617


# --- the loader, over a store that only remembers ---


class Remembering:
    def __init__(self, *collections: str):
        self.has, self.loads, self.removals, self.noted = {name: {} for name in collections}, [], [], {}

    def collections(self):
        return dict(self.has)

    def put_collection(self, collection, origin=None):
        self.has[collection["id"]] = collection
        return True

    def load(self, collection, entries):
        self.loads.append((collection, entries))
        return Loaded(stored=len(entries))

    def remove(self, removals):
        self.removals += removals
        return len(removals)

    def note_failures(self, failures):
        self.noted |= failures


def record(name: str, body) -> dict:
    return of_lambda(body, messageId=name)


def fetched(**bodies):
    def fetch(objects):
        return {one: bodies.get(one.key.removesuffix(".json"), Fetched()) for one in objects}

    return fetch


def test_a_batch_is_one_load_for_each_collection():
    store = Remembering("rtc", "insar")
    fetch = fetched(a=Fetched(json.dumps(ITEM).encode(), "e2"), b=Fetched(json.dumps(ITEM | {"id": "b"}).encode()))
    records = [
        record("m1", {"Records": [by_s3("a.json"), by_s3("b.json")]}),
        record("m2", ITEM | {"id": "three", "collection": "insar"}),
        record("m3", by_sns(ITEM | {"id": "four"})),
    ]
    loader = Loader(store, fetch=fetch, check=False)
    assert loader.load(records) == []
    assert {name: [e.item["id"] for e in entries] for name, entries in store.loads} == {
        "insar": ["three"],
        "rtc": ["four", "one", "b"],
    }
    assert loader.loaded.stored == 4
    assert {e.origin.etag for _, entries in store.loads for e in entries} == {"", "abc", "e2"}


def test_failures_are_named_and_noted_and_the_rest_is_loaded():
    store = Remembering("rtc")
    denied = Fetched(problem="S3 does not let us", passing=True)
    fetch = fetched(denied=denied, bad=Fetched(b"{"), ok=Fetched(json.dumps(ITEM).encode()))
    nameless = record("", "rubbish")
    records = [
        record("ok", {"Records": [by_s3("ok.json")]}),
        record("rubbish", "rubbish"),
        record("half", {"type": "FeatureCollection", "features": [ITEM | {"id": "h"}, {"type": "Feature"}]}),
        record("denied", {"Records": [by_s3("denied.json")]}),
        record("bad", {"Records": [by_s3("bad.json")]}),
        record("homeless", ITEM | {"collection": "nowhere"}),
        record("gone", {"Records": [by_s3("gone.json")]}),
        nameless,
        None,
    ]
    loader = Loader(store, fetch=fetch, check=False)
    failed = loader.load(records)
    assert failed == ["rubbish", "half", "denied", "bad", "homeless", "record 7", "record 8"]
    assert loader.passing == {"denied"}
    assert "nowhere" in loader.reasons["homeless"]
    assert "s3://items/bad.json: it is not JSON" in loader.reasons["bad"]
    assert sorted(store.noted) == ["bad", "denied", "half", "homeless", "rubbish"]
    assert store.noted["homeless"][:2] == ("nowhere", "one")
    assert {e.item["id"] for _, entries in store.loads for e in entries} == {"one", "h"}
    assert [(r.key, r.message_id) for r in store.removals] == [("gone.json", "gone")]


def test_an_item_is_held_against_the_schemas():
    loader = Loader(Remembering("rtc"))
    assert loader.load([record("m", ITEM)]) == ["m"]
    assert "geometry" in loader.reasons["m"]


@pytest.mark.parametrize(
    "template", [{"type": "Collection", "title": "T"}, lambda name, items: {"id": name, "n": len(items)}]
)
def test_a_collection_that_is_missing_is_made_as_asked(template):
    store = Remembering()
    assert Loader(store, check=False, missing_collection=template).load([record("m", ITEM)]) == []
    assert store.has["rtc"]["id"] == "rtc"
    assert len(store.loads) == 1


def test_a_collection_in_the_same_batch_is_stored_before_its_items():
    store = Remembering()
    records = [record("m1", ITEM), record("m2", {"type": "Collection", "id": "rtc"})]
    assert Loader(store, check=False).load(records) == []
    assert [name for name, _ in store.loads] == ["rtc"]


def test_an_object_that_several_events_tell_of_is_fetched_once():
    asked = []

    def fetch(objects):
        asked.extend(dict.fromkeys(objects))
        return {one: Fetched(json.dumps(ITEM).encode()) for one in objects}

    store = Remembering("rtc")
    Loader(store, fetch=fetch, check=False).load([record(f"m{n}", {"Records": [by_s3("k.json")]}) for n in range(3)])
    assert len(asked) == 1
    assert len(store.loads[0][1]) == 3
