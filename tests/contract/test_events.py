"""S3's notifications, SNS and SQS in the sandbox against what Amazon documents of them.

Facts: Amazon S3 User Guide ("Event message structure", "Event notification types and destinations", "Granting
permissions to publish event notification messages"), SNS Developer Guide ("HTTP/HTTPS notification JSON format",
"Large message payloads"), SQS Developer Guide ("Amazon SQS message quotas", "Dead-letter queues").
"""

import json
import re
import threading
import time
from datetime import UTC, datetime
from urllib.parse import unquote_plus

import pytest
from botocore.exceptions import ClientError

from helpers import objectstore

BUCKET, ACCOUNT = "event-source", "123456789012"
KEY = "items/red flower=1/Ä+b.json"


@pytest.fixture
def sqs(settings):
    return objectstore.client("sqs", settings)


@pytest.fixture
def sns(settings):
    return objectstore.client("sns", settings)


@pytest.fixture
def bucket(s3):
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": s3.meta.region_name})
    return BUCKET


@pytest.fixture
def queue(sqs, bucket):
    return make_queue(sqs, "items", allowed("s3.amazonaws.com", "sqs:SendMessage", f"arn:aws:s3:::{bucket}"))


def allowed(service: str, action: str, source: str) -> str:
    statement = {"Effect": "Allow", "Principal": {"Service": service}, "Action": action, "Resource": "*"}
    statement["Condition"] = {"ArnLike": {"aws:SourceArn": source}}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def make_queue(sqs, name: str, policy: str = "", **attributes) -> str:
    given = attributes | ({"Policy": policy} if policy else {})
    return sqs.create_queue(QueueName=name, Attributes=given)["QueueUrl"]


def arn(sqs, url: str) -> str:
    return sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]


def notify(s3, kind: str, target: str, *events: str, **rules: str) -> None:
    one = {f"{kind}Arn": target, "Events": list(events or ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"])}
    if rules:
        one["Filter"] = {"Key": {"FilterRules": [{"Name": name, "Value": value} for name, value in rules.items()]}}
    s3.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration={f"{kind}Configurations": [one]})


def received(sqs, url: str, **options) -> list[dict]:
    """Every message that is there; they are deleted."""
    found = []
    while some := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, **options).get("Messages"):
        found += some
        entries = [{"Id": str(n), "ReceiptHandle": one["ReceiptHandle"]} for n, one in enumerate(some)]
        sqs.delete_message_batch(QueueUrl=url, Entries=entries)
    return found


def records(sqs, url: str) -> list[dict]:
    bodies = [json.loads(one["Body"]) for one in received(sqs, url)]
    return [record for body in bodies for record in body.get("Records", [])]


def error_code(call, **arguments) -> str:
    with pytest.raises(ClientError) as raised:
        call(**arguments)
    return raised.value.response["Error"]["Code"]


def test_a_test_event_says_that_notifications_are_configured(s3, sqs, queue):
    notify(s3, "Queue", arn(sqs, queue))
    [message] = received(sqs, queue)
    event = json.loads(message["Body"])
    assert {name: event[name] for name in ("Service", "Event", "Bucket")} == {
        "Service": "Amazon S3",
        "Event": "s3:TestEvent",
        "Bucket": BUCKET,
    }
    assert set(event) == {"Service", "Event", "Time", "Bucket", "RequestId", "HostId"}


def test_the_record_of_a_new_object(s3, sqs, queue):
    notify(s3, "Queue", arn(sqs, queue))
    etag = s3.put_object(Bucket=BUCKET, Key=KEY, Body=b"{}")["ETag"].strip('"')
    [record] = records(sqs, queue)
    assert record["eventVersion"].startswith("2.") and record["eventSource"] == "aws:s3"
    assert record["eventName"] == "ObjectCreated:Put"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["eventTime"])
    assert abs((datetime.now(UTC) - datetime.fromisoformat(record["eventTime"])).total_seconds()) < 60
    assert record["awsRegion"] == s3.meta.region_name
    assert {"userIdentity", "requestParameters", "responseElements"} <= set(record)
    assert record["s3"]["bucket"]["name"] == BUCKET and record["s3"]["bucket"]["arn"] == f"arn:aws:s3:::{BUCKET}"
    about = record["s3"]["object"]
    assert (about["size"], about["eTag"]) == (2, etag)
    assert about["key"] == "items/red+flower%3D1/%C3%84%2Bb.json"  # form-urlencoded, but "/" as it is
    assert unquote_plus(about["key"]) == KEY
    assert re.fullmatch(r"[0-9A-F]{16,}", about["sequencer"])
    assert "versionId" not in about


def test_later_events_of_a_key_have_greater_sequencers(s3, sqs, queue):
    notify(s3, "Queue", arn(sqs, queue), "s3:ObjectCreated:*", "s3:ObjectRemoved:*")
    for n in range(4):
        s3.put_object(Bucket=BUCKET, Key="k", Body=str(n).encode())
    s3.copy_object(Bucket=BUCKET, Key="k", CopySource={"Bucket": BUCKET, "Key": "k"}, MetadataDirective="REPLACE")
    s3.delete_object(Bucket=BUCKET, Key="k")
    found = records(sqs, queue)
    names = [record["eventName"] for record in found]
    assert names == ["ObjectCreated:Put"] * 4 + ["ObjectCreated:Copy", "ObjectRemoved:Delete"]
    sequencers = [record["s3"]["object"]["sequencer"] for record in found]
    longest = max(map(len, sequencers))
    padded = [sequencer.ljust(longest, "0") for sequencer in sequencers]
    assert padded == sorted(set(padded))


def test_a_deleted_object_has_neither_size_nor_etag(s3, sqs, queue):
    notify(s3, "Queue", arn(sqs, queue), "s3:ObjectRemoved:*")
    s3.put_object(Bucket=BUCKET, Key="k", Body=b"{}")
    s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": "k"}]})
    [record] = records(sqs, queue)
    assert record["eventName"] == "ObjectRemoved:Delete"
    assert set(record["s3"]["object"]) == {"key", "sequencer"}


def test_in_a_versioned_bucket_deleting_makes_a_marker(s3, sqs, queue):
    s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    notify(s3, "Queue", arn(sqs, queue))
    first = s3.put_object(Bucket=BUCKET, Key="k", Body=b"1")["VersionId"]
    second = s3.put_object(Bucket=BUCKET, Key="k", Body=b"2")["VersionId"]
    marker = s3.delete_object(Bucket=BUCKET, Key="k")["VersionId"]
    for version in (first, second, marker):
        s3.delete_object(Bucket=BUCKET, Key="k", VersionId=version)
    found = [(record["eventName"], record["s3"]["object"]["versionId"]) for record in records(sqs, queue)]
    assert found == [
        ("ObjectCreated:Put", first),
        ("ObjectCreated:Put", second),
        ("ObjectRemoved:DeleteMarkerCreated", marker),
        ("ObjectRemoved:Delete", first),
        ("ObjectRemoved:Delete", second),
        ("ObjectRemoved:Delete", marker),
    ]


def test_notifications_go_by_prefix_suffix_and_kind(s3, sqs, queue):
    notify(s3, "Queue", arn(sqs, queue), "s3:ObjectCreated:*", prefix="items/", suffix=".json")
    for key in ("items/a.json", "items/a.tif", "other/a.json"):
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"{}")
        s3.delete_object(Bucket=BUCKET, Key=key)
    assert [record["s3"]["object"]["key"] for record in records(sqs, queue)] == ["items/a.json"]


def test_s3_asks_whether_it_may_send_before_it_takes_a_configuration(s3, sqs, sns, bucket):
    closed = make_queue(sqs, "closed")
    others = make_queue(sqs, "others", allowed("s3.amazonaws.com", "sqs:SendMessage", "arn:aws:s3:::another"))
    topic = sns.create_topic(Name="closed")["TopicArn"]
    missing = arn(sqs, closed).replace("closed", "missing")
    for kind, target in (
        ("Queue", arn(sqs, closed)),
        ("Queue", arn(sqs, others)),
        ("Queue", missing),
        ("Topic", topic),
    ):
        assert error_code(lambda kind=kind, target=target: notify(s3, kind, target)) == "InvalidArgument"
    configured = s3.get_bucket_notification_configuration(Bucket=BUCKET)
    assert not {"QueueConfigurations", "TopicConfigurations"} & set(configured)


def test_from_s3_through_a_topic_to_a_queue(s3, sqs, sns, bucket):
    policy = allowed("s3.amazonaws.com", "sns:Publish", f"arn:aws:s3:::{bucket}")
    topic = sns.create_topic(Name="items", Attributes={"Policy": policy})["TopicArn"]
    queue = make_queue(sqs, "items", allowed("sns.amazonaws.com", "sqs:SendMessage", topic))
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn(sqs, queue))
    notify(s3, "Topic", topic, "s3:ObjectCreated:*")
    s3.put_object(Bucket=BUCKET, Key=KEY, Body=b"{}")
    test, event = [json.loads(one["Body"]) for one in received(sqs, queue)]
    assert {"Type", "MessageId", "TopicArn", "Message", "Timestamp", "SignatureVersion", "Signature"} <= set(event)
    assert {"SigningCertURL", "UnsubscribeURL", "Subject"} <= set(event)
    assert (event["Type"], event["TopicArn"], event["Subject"]) == ("Notification", topic, "Amazon S3 Notification")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["Timestamp"])
    assert json.loads(test["Message"])["Event"] == "s3:TestEvent"
    assert unquote_plus(json.loads(event["Message"])["Records"][0]["s3"]["object"]["key"]) == KEY


def test_what_a_queue_does_not_let_in_is_gone(sqs, sns):
    topic = sns.create_topic(Name="items")["TopicArn"]
    closed, open_one = make_queue(sqs, "closed"), make_queue(sqs, "open")
    sqs.set_queue_attributes(
        QueueUrl=open_one, Attributes={"Policy": allowed("sns.amazonaws.com", "sqs:SendMessage", topic)}
    )
    for url in (closed, open_one):
        attributes = {"RawMessageDelivery": "true" if url == open_one else "false"}
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn(sqs, url), Attributes=attributes)
    attribute = {"kind": {"DataType": "String", "StringValue": "item"}}
    sns.publish(TopicArn=topic, Message="{}", MessageAttributes=attribute)
    assert received(sqs, closed) == []
    [message] = received(sqs, open_one, MessageAttributeNames=["All"])
    assert message["Body"] == "{}"
    assert message["MessageAttributes"]["kind"]["StringValue"] == "item"


def test_sns_counts_bytes_with_attributes_and_batches_together(sns):
    topic = sns.create_topic(Name="items")["TopicArn"]
    attribute = {"kind": {"DataType": "String", "StringValue": "item"}}
    sns.publish(TopicArn=topic, Message="x" * 262_144)
    assert error_code(sns.publish, TopicArn=topic, Message="x" * 262_145) == "InvalidParameter"
    assert error_code(sns.publish, TopicArn=topic, Message="é" * 131_073) == "InvalidParameter"
    full = {"TopicArn": topic, "Message": "x" * 262_144, "MessageAttributes": attribute}
    assert error_code(sns.publish, **full) == "InvalidParameter"
    batch = [{"Id": str(n), "Message": "x" * 87_382} for n in range(3)]
    code = error_code(sns.publish_batch, TopicArn=topic, PublishBatchRequestEntries=batch)
    assert code.endswith("BatchRequestTooLong")
    many = [{"Id": str(n), "Message": "x"} for n in range(11)]
    code = error_code(sns.publish_batch, TopicArn=topic, PublishBatchRequestEntries=many)
    assert code.endswith("TooManyEntriesInBatchRequest")


def test_sqs_counts_bytes(sqs):
    queue, small = make_queue(sqs, "items"), make_queue(sqs, "small", MaximumMessageSize="2048")
    sqs.send_message(QueueUrl=queue, MessageBody="x" * 1_048_576)
    assert error_code(sqs.send_message, QueueUrl=queue, MessageBody="é" * 524_289).endswith("InvalidParameterValue")
    assert error_code(sqs.send_message, QueueUrl=small, MessageBody="é" * 1_025).endswith("InvalidParameterValue")


def test_a_message_goes_to_the_dead_letters_when_it_was_received_too_often(sqs):
    dead = make_queue(sqs, "dead")
    redrive = {"deadLetterTargetArn": arn(sqs, dead), "maxReceiveCount": 2}
    queue = make_queue(sqs, "items", RedrivePolicy=json.dumps(redrive), VisibilityTimeout="30")
    sent = sqs.send_message(QueueUrl=queue, MessageBody="poison")["MessageId"]
    for expected in ("1", "2"):
        [message] = sqs.receive_message(QueueUrl=queue, AttributeNames=["All"])["Messages"]
        assert message["Attributes"]["ApproximateReceiveCount"] == expected
        assert "Messages" not in sqs.receive_message(QueueUrl=queue)  # in flight
        sqs.change_message_visibility(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0)
    assert "Messages" not in sqs.receive_message(QueueUrl=dead)  # moved by the next look at the queue only
    assert "Messages" not in sqs.receive_message(QueueUrl=queue)
    [letter] = received(sqs, dead, AttributeNames=["All"])
    assert (letter["MessageId"], letter["Body"]) == (sent, "poison")
    assert letter["Attributes"]["SentTimestamp"] == message["Attributes"]["SentTimestamp"]


def test_a_long_poll_ends_with_the_first_message_and_lets_others_send(sqs):
    queue = make_queue(sqs, "items")
    threading.Timer(0.3, lambda: sqs.send_message(QueueUrl=queue, MessageBody="late")).start()
    began = time.monotonic()
    [message] = sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=10)["Messages"]
    assert message["Body"] == "late"
    assert 0.2 < time.monotonic() - began < 5


def test_nothing_is_lost_or_given_out_twice_when_many_use_a_queue(sqs):
    queue, found = make_queue(sqs, "items", VisibilityTimeout="60"), []
    sending = threading.Event()
    sending.set()

    def consume() -> None:
        while (some := received(sqs, queue)) or sending.is_set():
            found.extend(one["Body"] for one in some)

    consumers = [threading.Thread(target=consume) for _ in range(3)]
    for consumer in consumers:
        consumer.start()
    for start in range(0, 400, 10):
        entries = [{"Id": str(n), "MessageBody": str(n)} for n in range(start, start + 10)]
        sqs.send_message_batch(QueueUrl=queue, Entries=entries)
    sending.clear()
    for consumer in consumers:
        consumer.join()
    assert sorted(found, key=int) == [str(n) for n in range(400)]


def test_a_reset_leaves_no_topic_and_no_queue(sandbox, sqs, sns, queue):
    sns.create_topic(Name="items")
    sandbox.reset()
    assert "QueueUrls" not in sqs.list_queues()
    assert sns.list_topics()["Topics"] == []


def test_faults_strike_sqs_in_its_own_words(sandbox, sqs):
    queue = make_queue(sqs, "items")
    sandbox.traffic.fail("forbidden", service="s3")
    assert error_code(sqs.send_message, QueueUrl=queue, MessageBody="x") == "AccessDenied"
