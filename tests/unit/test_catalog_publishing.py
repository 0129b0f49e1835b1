"""Whoever publishes hears of every fault at once; what is fit arrives, however large; unchanged objects rest."""

import json
from copy import deepcopy
from datetime import UTC, datetime
from uuid import uuid4

import pystac
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from catalog_items import item

from helpers import objectstore
from helpers.catalog import messages, publishing, sending, wiring
from helpers.catalog.publishing import Published, item_of, key_of, publish, publish_objects
from helpers.errors import FailedRemotely, NotConfigured, Rejected, TimedOut

BUCKET = "published-items"


def large(name: str, size: int = 300_000) -> dict:
    return item(name, properties={"datetime": "2026-02-03T04:05:06Z", "description": "x" * size})


class Sns:
    """A topic that behaves as it is told, and counts."""

    def __init__(self, *answers):
        self.answers, self.sent, self.requests = list(answers), [], 0

    def publish_batch(self, TopicArn, PublishBatchRequestEntries):
        self.requests += 1
        answer = self.answers.pop(0) if self.answers else lambda _: []
        failed = answer(PublishBatchRequestEntries)
        names = {one["Id"] for one in failed}
        self.sent += [one for one in PublishBatchRequestEntries if one["Id"] not in names]
        return {"Failed": failed}


@pytest.fixture
def s3(settings):
    s3 = objectstore.client("s3", settings)
    objectstore.ensure_bucket(s3, BUCKET, None, create=True)
    return s3


@pytest.fixture
def topic(settings):
    """A topic, and what its subscriber gets."""
    sns, sqs = (objectstore.client(name, settings) for name in ("sns", "sqs"))
    name = f"published-{uuid4().hex[:8]}"
    arn, queue = sns.create_topic(Name=name)["TopicArn"], sqs.create_queue(QueueName=name)["QueueUrl"]
    sqs.set_queue_attributes(QueueUrl=queue, Attributes=wiring.queue_attributes(wiring.arn(sqs, queue), senders=[arn]))
    sns.subscribe(TopicArn=arn, Protocol="sqs", Endpoint=wiring.arn(sqs, queue), Attributes=wiring.delivery(raw=True))

    def received() -> list[dict]:
        found = []
        while page := sqs.receive_message(
            QueueUrl=queue, MaxNumberOfMessages=10, MessageAttributeNames=["All"], AttributeNames=["All"]
        ).get("Messages"):
            found += page
        return found

    return sns, arn, received


def quick(monkeypatch):
    monkeypatch.setattr(sending, "PAUSE", 0.0)


def test_items_arrive_as_they_are_with_attributes_to_choose_by(topic):
    sns, arn, received = topic
    items = [item(f"scene-{n}") for n in range(25)]
    assert publish(items, sns=sns, topic_arn=arn) == Published(25, 0, 0)
    found = received()
    assert sorted((json.loads(one["Body"]) for one in found), key=lambda i: i["id"]) == sorted(
        items, key=lambda i: i["id"]
    )
    attributes = {name: one["StringValue"] for name, one in found[0]["MessageAttributes"].items()}
    assert attributes["collection"] == "rtc" and attributes["id"].startswith("scene-")
    # The loader knows when it was published, not only when the queue took it.
    age = datetime.now(UTC) - messages.read(messages.message(found[0])).items[0][1].time
    assert 0 <= age.total_seconds() < 60


def test_every_fault_of_every_item_is_named_and_nothing_is_sent():
    sns = Sns()
    no_place, no_time = item("one", geometry=None), item("two", properties={})
    no_place["properties"]["datetime"] = "yesterday"
    with pytest.raises(Rejected) as refused:
        publish([item("fine"), no_place, no_time, item("fine")], sns=sns, topic_arn="t")
    said = str(refused.value)
    assert "rtc/one" in said and "geometry" in said and "yesterday" in said
    assert "rtc/two" in said and "rtc/fine: more than once" in said
    assert sns.requests == 0


def test_what_is_no_item_is_named_too():
    with pytest.raises(Rejected, match="str is neither"):
        publish(["item.json"], sns=Sns(), topic_arn="t")
    with pytest.raises(Rejected, match=r"rtc/a: .*NaN|rtc/a: .*nan"):
        publish([item("a", bbox=[float("nan"), 0.0, 1.0, 1.0])], sns=Sns(), topic_arn="t")


def test_pystac_objects_and_collections_can_be_published():
    sns = Sns()
    extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
    about = {"type": "Collection", "stac_version": "1.1.0", "id": "rtc", "description": "RTC", "license": "other"}
    collection = about | {"extent": extent, "links": []}
    publish([pystac.Item.from_dict(item("a")), collection], sns=sns, topic_arn="t")
    first, second = (json.loads(one["Message"]) for one in sns.sent)
    assert (first["id"], first["collection"], second) == ("a", "rtc", collection)
    with pytest.raises(Rejected, match="the collection None"):
        publish([collection | {"id": None}], sns=sns, topic_arn="t")


def test_items_too_large_for_a_message_go_through_s3(topic, s3):
    sns, arn, received = topic
    assert publish([item("small"), large("big")], sns=sns, topic_arn=arn, s3=s3, bucket=BUCKET) == Published(2, 0, 1)
    said = [messages.read(messages.message(one)) for one in received()]
    (located, origin), *_ = [one for each in said for one in each.written]
    assert (located.bucket, located.key) == (BUCKET, "items/rtc/big.json")
    answer = s3.get_object(Bucket=BUCKET, Key=located.key)
    assert json.loads(answer["Body"].read()) == large("big") and answer["ETag"].strip('"') == origin.etag


def test_a_large_item_without_a_bucket_is_said_before_anything_is_sent():
    sns = Sns()
    with pytest.raises(NotConfigured, match=r"1 of the items.*rtc/big.*bucket="):
        publish([item("small"), large("big")], sns=sns, topic_arn="t")
    assert sns.requests == 0


def test_requests_hold_no_more_than_sns_takes():
    sns = Sns()
    publish([large(f"big-{n}", 100_000) for n in range(5)] + [item(f"s{n}") for n in range(21)], sns=sns, topic_arn="t")
    assert len(sns.sent) == 26
    assert sns.requests == 5  # two of 100 kB in each of two, the fifth with nine small ones, ten, two


def test_an_item_also_fits_when_an_envelope_is_put_around_it():
    # Quotes become two bytes each in the envelope.
    assert not publishing._fits({"Message": '"' * 200_000, "MessageAttributes": {}})
    assert publishing._fits({"Message": "x" * 200_000, "MessageAttributes": {}})


def test_what_sns_could_not_take_is_sent_again_and_only_that(monkeypatch):
    quick(monkeypatch)
    busy = {"Code": "InternalError", "Message": "busy", "SenderFault": False}
    sns = Sns(lambda batch: [{"Id": batch[3]["Id"]} | busy], lambda batch: [{"Id": batch[0]["Id"]} | busy])
    assert publish([item(f"s{n}") for n in range(8)], sns=sns, topic_arn="t") == Published(8, 0, 0)
    assert sns.requests == 3
    assert sorted(json.loads(one["Message"])["id"] for one in sns.sent) == [f"s{n}" for n in range(8)]


def test_what_was_never_taken_is_named(monkeypatch):
    quick(monkeypatch)
    refused = {"Code": "InvalidParameter", "Message": "no", "SenderFault": True}

    def always(batch):
        return [{"Id": one["Id"]} | refused for one in batch if json.loads(one["Message"])["id"] == "s1"]

    sns = Sns(*[always] * 9)
    with pytest.raises(FailedRemotely, match=r"(?s)1 of 3 were not published.*rtc/s1: InvalidParameter: no"):
        publish([item(f"s{n}") for n in range(3)], sns=sns, topic_arn="t")
    assert (len(sns.sent), sns.requests) == (2, 1)  # what the sender is to blame for is not tried again


def test_a_topic_that_is_not_there_or_does_not_answer_is_said_so(topic, monkeypatch):
    sns, arn, _ = topic
    with pytest.raises(Rejected, match="AWS refuses PublishBatch"):
        publish([item("a")], sns=sns, topic_arn=f"{arn}-not")

    def broken(_):
        raise EndpointConnectionError(endpoint_url="https://secret.example/?token=1")

    with pytest.raises(TimedOut) as silent:
        publish([item("a")], sns=Sns(broken), topic_arn="t")
    assert "secret" not in str(silent.value)


# --- objects ---


def test_objects_are_written_once_under_names_that_say_what_is_in_them(s3):
    items = [item(f"scene-{n}") for n in range(12)]
    assert publish_objects(items, s3=s3, bucket=BUCKET) == Published(12, 0, 0)
    keys = objectstore.objects(s3, BUCKET, "items/")
    assert sorted(keys) == sorted(f"items/rtc/scene-{n}.json" for n in range(12))
    written = s3.head_object(Bucket=BUCKET, Key="items/rtc/scene-3.json")["LastModified"]

    changed = deepcopy(items)
    changed[5]["properties"]["note"] = "new"
    shuffled = [dict(reversed(one.items())) for one in changed]  # the order of members says nothing
    assert publish_objects(shuffled, s3=s3, bucket=BUCKET) == Published(1, 11, 0)
    assert s3.head_object(Bucket=BUCKET, Key="items/rtc/scene-3.json")["LastModified"] == written
    body = s3.get_object(Bucket=BUCKET, Key="items/rtc/scene-5.json")["Body"].read()
    assert json.loads(body)["properties"]["note"] == "new"


def test_an_object_encrypted_with_a_key_of_ones_own_is_known_again(s3):
    """Its ETag is no digest of its content."""

    class Encrypting:
        writes = 0

        def put_object(self, **given):
            self.writes += 1
            return s3.put_object(**given)

        def head_object(self, **given):
            return s3.head_object(**given) | {"ETag": '"something else"'}

    encrypting = Encrypting()
    for _ in range(2):
        publish_objects([item("a")], s3=encrypting, bucket=BUCKET)
    assert encrypting.writes == 1


def test_faulty_items_leave_the_bucket_as_it_is(s3):
    with pytest.raises(Rejected, match="Nothing was sent"):
        publish_objects([item("a"), item("b", geometry=None)], s3=s3, bucket=BUCKET)
    assert not objectstore.objects(s3, BUCKET, "")


def test_a_bucket_that_refuses_is_named_and_one_that_is_busy_keeps_nobody_else(s3):
    with pytest.raises(Rejected, match="NoSuchBucket"):
        publish_objects([item("a")], s3=s3, bucket="not-there-at-all")

    class Busy:
        head_object = staticmethod(s3.head_object)

        def put_object(self, **given):
            if "scene-1" in given["Key"]:
                about = {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}
                raise ClientError(about, "PutObject")
            return s3.put_object(**given)

    with pytest.raises(FailedRemotely, match=r"(?s)1 of 3 were not written.*rtc/scene-1: .*SlowDown"):
        publish_objects([item(f"scene-{n}") for n in range(3)], s3=Busy(), bucket=BUCKET)
    assert len(objectstore.objects(s3, BUCKET, "")) == 2


def test_keys_are_folders_and_files_whatever_an_id_is_made_of():
    odd = item("a/b c:ü", collection="..")
    assert key_of(odd, "/items/") == "items/%2E%2E/a%2Fb%20c:%C3%BC.json"
    assert key_of(item("x"), "") == "rtc/x.json"
    # What would look like something else than an item gets another name.
    assert key_of(item("collection"), "i") == "i/rtc/%63ollection.json"
    assert key_of({"type": "Collection", "id": "rtc"}, "i") == "i/rtc/collection.json"


def test_a_key_tells_which_item_lies_there():
    for one in (odd := item("a/b c:ü", collection=".."), item("collection"), item("100%25"), item("x.json")):
        for prefix in ("", "/items/", "runs/one"):
            assert item_of(key_of(one, prefix)) == (one["collection"], one["id"])
    for other in (key_of({"type": "Collection", "id": odd["id"]}, "i"), "x.json", "i/rtc/scene.tif", "i/rtc/a%00.json"):
        assert item_of(other) is None


def test_what_was_published_is_said_in_words():
    assert str(Published(15, 2)) == "15 published, 2 unchanged"
    assert str(Published(1200, 0, 1)) == "1,200 published, 1 of them through S3"
    assert (str(Published()), repr(Published(1))) == (
        "nothing published",
        "Published(published=1, unchanged=0, through_s3=0)",
    )
