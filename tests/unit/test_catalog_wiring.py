"""Topic, queues and bucket know of each other; what others have there survives, and what a run made goes with it."""

import json
from uuid import uuid4

import pytest

from helpers import objectstore
from helpers.catalog import wiring
from helpers.errors import Rejected
from helpers.state import RunState

BUCKET = "wired-items"


@pytest.fixture
def aws(settings):
    """Clients, and names that no other test has."""
    clients = {name: objectstore.client(name, settings) for name in ("sns", "sqs", "s3")}
    objectstore.ensure_bucket(clients["s3"], BUCKET, None, create=True)
    return clients


@pytest.fixture
def name() -> str:
    return f"wiring-{uuid4().hex[:8]}"


@pytest.fixture
def state(settings) -> RunState:
    return RunState(settings, "catalog", "wiring")


@pytest.fixture
def wired(aws, name, state):
    """Topic -> queue -> dead letters, and bucket -> queue, as the notebook does it (topic ARN, two queue URLs)."""
    sns, sqs, s3 = aws["sns"], aws["sqs"], aws["s3"]

    def build() -> tuple[str, str, str]:
        wiring.remember(state, sns=sns, sqs=sqs, topic=name, queues=[name, f"{name}-dead"])
        topic = sns.create_topic(Name=name)["TopicArn"]
        queue, dead = (sqs.create_queue(QueueName=one)["QueueUrl"] for one in (name, f"{name}-dead"))
        arn = wiring.arn(sqs, queue)
        attributes = wiring.queue_attributes(
            arn,
            senders=[topic, f"arn:aws:s3:::{BUCKET}"],
            dead_letter_arn=wiring.arn(sqs, dead),
            receives=1,
        )
        sqs.set_queue_attributes(QueueUrl=queue, Attributes=attributes)
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes=wiring.delivery(raw=True))
        notify(arn)
        return topic, queue, dead

    def notify(arn: str) -> None:
        events = wiring.s3_events(arn, id=name, prefix="items/")
        before = s3.get_bucket_notification_configuration(Bucket=BUCKET)
        wiring.remember_notification(state, BUCKET, events)
        s3.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration=wiring.merged(before, events))

    return build


def bodies(sqs, queue: str) -> list[str]:
    """The messages that wait, without S3's test events; they are deleted."""
    found = []
    while page := sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages"):
        for message in page:
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
        found += [message["Body"] for message in page if "s3:TestEvent" not in message["Body"]]
    return found


def theirs(s3, arn: str) -> dict:
    """Somebody else's notifications: what the bucket has then."""
    one = {"Id": "theirs", "QueueArn": arn, "Events": ["s3:ObjectCreated:Put"]}
    without_id = {"QueueArn": arn, "Events": ["s3:ObjectRemoved:*"]}
    wanted = {"QueueConfigurations": [one | under("raw/"), without_id | under("raw/")]}
    s3.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration=wanted)
    return stored(s3)


def under(prefix: str) -> dict:
    return {"Filter": {"Key": {"FilterRules": [{"Name": "prefix", "Value": prefix}]}}}


def stored(s3) -> dict:
    found = s3.get_bucket_notification_configuration(Bucket=BUCKET)
    return {key: value for key, value in found.items() if key != "ResponseMetadata"}


def test_what_is_published_and_what_is_written_arrive_in_the_queue(aws, wired):
    topic, queue, _ = wired()
    aws["sns"].publish(TopicArn=topic, Message="by topic")
    aws["s3"].put_object(Bucket=BUCKET, Key="items/a.json", Body=b"{}")
    aws["s3"].put_object(Bucket=BUCKET, Key="items/a.tif", Body=b"no item")
    aws["s3"].delete_object(Bucket=BUCKET, Key="items/a.json")

    first, *events = bodies(aws["sqs"], queue)
    assert first == "by topic"
    told = [record["eventName"] for event in events for record in json.loads(event)["Records"]]
    assert [one.removeprefix("s3:") for one in told] == ["ObjectCreated:Put", "ObjectRemoved:Delete"]


def test_a_message_that_is_never_done_with_becomes_a_dead_letter(aws, wired):
    _, queue, dead = wired()
    aws["sqs"].send_message(QueueUrl=queue, MessageBody="poison")
    for _ in range(2):  # it is moved when it would be received for the second time
        aws["sqs"].receive_message(QueueUrl=queue, VisibilityTimeout=0, MaxNumberOfMessages=10)
    assert bodies(aws["sqs"], dead) == ["poison"]


def test_wiring_twice_changes_nothing(aws, wired, name):
    assert wired() == wired()
    assert len(stored(aws["s3"])["QueueConfigurations"]) == 1
    subscriptions = aws["sns"].list_subscriptions()["Subscriptions"]
    assert len([one for one in subscriptions if one["Endpoint"].endswith(f":{name}")]) == 1


def test_only_the_named_topic_and_bucket_may_send():
    queue = "arn:aws:sqs:us-west-2:123456789012:q"
    topic, bucket = "arn:aws:sns:us-west-2:123456789012:t", "arn:aws:s3:::b"
    one, other = wiring.queue_policy(queue, [topic, bucket])["Statement"]
    assert (one["Principal"], one["Action"], one["Resource"]) == (
        {"Service": "sns.amazonaws.com"},
        "sqs:SendMessage",
        queue,
    )
    assert one["Condition"] == {"ArnEquals": {"aws:SourceArn": topic}}
    # A bucket's name may be somebody else's tomorrow.
    assert other["Condition"] == {
        "ArnEquals": {"aws:SourceArn": bucket},
        "StringEquals": {"aws:SourceAccount": "123456789012"},
    }
    with pytest.raises(Rejected, match="not the ARN of a topic or a bucket"):
        wiring.queue_policy(queue, ["*"])


def test_a_topic_keeps_the_policy_that_its_owner_needs():
    before = {"Version": "2008-10-17", "Statement": [{"Sid": "__default_statement_ID", "Effect": "Allow"}]}
    topic = "arn:aws:sns:us-west-2:123456789012:t"
    after = wiring.topic_policy(topic, ["arn:aws:s3:::b"], json.dumps(before))
    assert [one["Sid"] for one in after["Statement"]] == ["__default_statement_ID", "recipes-s3-b"]
    assert wiring.topic_policy(topic, ["arn:aws:s3:::b"], after) == after


def test_a_subscription_can_choose_collections():
    assert wiring.delivery() == {}
    chosen = wiring.delivery(raw=True, collections=["rtc", "insar"])
    assert json.loads(chosen["FilterPolicy"]) == {"collection": ["insar", "rtc"]}


def test_notifications_of_others_survive_ours_and_our_cleaning_up(aws, wired, state, name):
    foreign = aws["sqs"].create_queue(QueueName=f"{name}-foreign")["QueueUrl"]
    arn = wiring.arn(aws["sqs"], foreign)
    policy = json.dumps(wiring.queue_policy(arn, [f"arn:aws:s3:::{BUCKET}"]))
    aws["sqs"].set_queue_attributes(QueueUrl=foreign, Attributes={"Policy": policy})
    before = theirs(aws["s3"], arn)

    wired()
    during = stored(aws["s3"])
    assert [one["Id"] for one in during["QueueConfigurations"]][::2] == ["theirs", name]
    assert during["QueueConfigurations"][:2] == before["QueueConfigurations"]
    wiring.clean_up(state, **aws)
    assert stored(aws["s3"]) == before


def test_a_notification_of_the_same_objects_is_refused_before_s3_does():
    here = {
        "TopicConfigurations": [{"Id": "theirs", "TopicArn": "arn:aws:sns:r:1:t", "Events": ["s3:ObjectCreated:*"]}]
    }
    ours = wiring.s3_events("arn:aws:sqs:r:1:q", id="ours", prefix="items/")
    with pytest.raises(Rejected, match=r"theirs \(arn:aws:sns:r:1:t\)"):
        wiring.merged(here, ours)
    apart = {"TopicConfigurations": [here["TopicConfigurations"][0] | under("raw/")]}
    assert wiring.merged(apart, ours) == apart | ours
    other = {"TopicConfigurations": [here["TopicConfigurations"][0] | {"Events": ["s3:ObjectRestore:*"]}]}
    assert wiring.merged(other, ours) == other | ours


def test_events_to_eventbridge_stay_on():
    ours = wiring.s3_events("arn:aws:sqs:r:1:q", id="ours")
    before = {"EventBridgeConfiguration": {}, "ResponseMetadata": {"RequestId": "x"}}
    after = wiring.merged(before, ours)
    assert after == {"EventBridgeConfiguration": {}} | ours
    assert wiring.without(after, ours) == {"EventBridgeConfiguration": {}}


def test_a_notification_that_somebody_has_changed_since_is_theirs():
    ours = wiring.s3_events("arn:aws:sqs:r:1:q", id="ours")
    changed = {"QueueConfigurations": [ours["QueueConfigurations"][0] | {"QueueArn": "arn:aws:sqs:r:1:another"}]}
    assert wiring.without(changed, ours) == changed
    assert wiring.without(ours, ours) == {}


def test_cleaning_up_removes_what_the_run_made_and_can_be_repeated(aws, wired, state, name):
    wired()
    assert wiring.clean_up(state, **aws) == {"notifications": 1, "subscriptions": 1, "topics": 1, "queues": 2}
    assert wiring.clean_up(state, **aws) == {"notifications": 0, "subscriptions": 0, "topics": 0, "queues": 0}
    assert "QueueConfigurations" not in stored(aws["s3"])
    assert not [one for one in aws["sns"].list_topics()["Topics"] if one["TopicArn"].endswith(name)]


def test_topics_and_queues_of_others_are_not_taken_for_ours(aws, state, name):
    aws["sns"].create_topic(Name=name)
    aws["sqs"].create_queue(QueueName=name)
    with pytest.raises(Rejected) as refused:
        wiring.remember(state, sns=aws["sns"], sqs=aws["sqs"], topic=name, queues=[name])
    assert f"the topic {name}" in str(refused.value) and f"the queue {name}" in str(refused.value)
    assert wiring.clean_up(state, **aws)["queues"] == 0
    assert aws["sqs"].get_queue_url(QueueName=name)


def test_a_run_killed_while_wiring_leaves_nothing_unknown(aws, state, name):
    wiring.remember(state, sns=aws["sns"], sqs=aws["sqs"], topic=name, queues=[name])
    aws["sqs"].create_queue(QueueName=name)  # and here it is killed
    again = RunState.__new__(RunState)
    again.path = state.path
    wiring.remember(again, sns=aws["sns"], sqs=aws["sqs"], topic=name, queues=[name])  # it is still ours
    assert wiring.clean_up(again, **aws) == {"notifications": 0, "subscriptions": 0, "topics": 0, "queues": 1}
