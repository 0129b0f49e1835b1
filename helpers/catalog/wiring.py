"""What topic, queues and bucket must know of each other, as the JSON that boto3's calls take; and its removal.

The calls themselves stay where they can be read (``sns.create_topic(...)``, ``sqs.set_queue_attributes(...)``). Here is
what is dull or dangerous about them: policies that let exactly one sender in, and the notifications of a bucket, of
which S3 forgets all that are not given again.
"""

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from botocore.exceptions import ClientError

from .. import objectstore
from ..errors import Rejected
from ..state import RunState

#: The lists in a bucket's notification configuration and what each calls its destination, by the destination's service.
KINDS = {
    "sqs": ("QueueConfigurations", "QueueArn"),
    "sns": ("TopicConfigurations", "TopicArn"),
    "lambda": ("LambdaFunctionConfigurations", "LambdaFunctionArn"),
}
#: Where in a run's state the notes are: names of the run's own topics and queues; notifications it put on buckets.
OWN, NOTIFICATIONS = "wired", "notifications"
#: What SQS, SNS and S3 say of something that is not there.
GONE = {
    "AWS.SimpleQueueService.NonExistentQueue",
    "QueueDoesNotExist",
    "NotFound",
    "NotFoundException",
    "NoSuchBucket",
}


# --- queues and topics ---


def arn(sqs: Any, queue_url: str) -> str:
    """The ARN of a queue.

    Raises
    ------
    Rejected
        The queue is not there.
    """
    try:
        answer = sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn"])
    except ClientError as error:
        raise _explained(error, f"queue {queue_url}") from None
    return answer["Attributes"]["QueueArn"]


def queue_attributes(
    queue_arn: str, *, senders: Iterable[str], dead_letter_arn: str = "", receives: int = 5, hold: int = 120
) -> dict[str, str]:
    """What ``sqs.set_queue_attributes`` must be told of a queue of one's own. It replaces the policy that is there.

    Parameters
    ----------
    senders:
        ARNs of the topics and buckets that may send, and nobody else: see :func:`queue_policy`.
    dead_letter_arn, receives:
        The queue that a message goes to when it has been received ``receives`` times and never deleted. A loader that
        is killed has received its messages too: few times would take good ones for bad.
    hold:
        Seconds that a received message stays hidden from other readers: longer than the loader takes for a batch; for
        a Lambda function six times its time-out ("Using Lambda with Amazon SQS", AWS Lambda guide).
    """
    attributes = {"Policy": json.dumps(queue_policy(queue_arn, senders)), "VisibilityTimeout": str(hold)}
    if dead_letter_arn:
        attributes["RedrivePolicy"] = json.dumps(
            {"deadLetterTargetArn": dead_letter_arn, "maxReceiveCount": str(receives)}
        )
    return attributes


def queue_policy(queue_arn: str, senders: Iterable[str], before: dict | str | None = None) -> dict:
    """A policy that lets exactly ``senders`` (ARNs of topics and buckets) send to a queue.

    ``before``: the policy that is there, if its other statements shall stay.
    """
    return _policy(queue_arn, "sqs:SendMessage", senders, before)


def topic_policy(topic_arn: str, senders: Iterable[str], before: dict | str | None) -> dict:
    """A policy that also lets ``senders`` (ARNs of buckets) publish to a topic.

    ``before``: the policy that is there. A topic has one from the start, which its owner needs.
    """
    return _policy(topic_arn, "sns:Publish", senders, before)


def _policy(resource: str, action: str, senders: Iterable[str], before: dict | str | None) -> dict:
    before = json.loads(before) if isinstance(before, str) and before else before or None
    return objectstore.merged(before, [_statement(resource, action, sender) for sender in senders])


def _statement(resource: str, action: str, sender: str) -> dict:
    """Lets ``sender`` do ``action``, by its service, and only on its own behalf."""
    parts = sender.split(":", 5)
    if len(parts) != 6 or parts[2] not in ("sns", "s3"):
        raise Rejected(f"{sender!r} is not the ARN of a topic or a bucket.")
    service, name = parts[2], parts[5]
    condition: dict[str, dict] = {"ArnEquals": {"aws:SourceArn": sender}}
    if service == "s3":
        # The ARN of a bucket names no account: who deletes his bucket leaves its name, and this permission, to others.
        condition["StringEquals"] = {"aws:SourceAccount": resource.split(":")[4]}
    return {
        "Sid": re.sub(r"[^A-Za-z0-9-]", "-", f"recipes-{service}-{name}"),
        "Effect": "Allow",
        "Principal": {"Service": f"{service}.amazonaws.com"},
        "Action": action,
        "Resource": resource,
        "Condition": condition,
    }


def delivery(*, raw: bool = False, collections: Iterable[str] = ()) -> dict[str, str]:
    """What ``sns.subscribe(Attributes=...)`` must be told.

    Parameters
    ----------
    raw:
        The message alone, which is smaller. SNS's envelope also says when it was published, which is what tells the
        newer of two: without, that is in an attribute of what :func:`helpers.catalog.publish` sends, and of what others
        send the time counts at which the queue took it; SNS promises no order.
    collections:
        Deliver only items of these collections, which publishers name in a message attribute; all by default.
    """
    attributes = {"RawMessageDelivery": "true"} if raw else {}
    if wanted := sorted(collections):
        attributes["FilterPolicy"] = json.dumps({"collection": wanted})
    return attributes


# --- the notifications of a bucket ---


def s3_events(target_arn: str, *, id: str, prefix: str = "", suffix: str = ".json") -> dict:
    """A notification: tell ``target_arn`` (queue, topic, function) of objects that were written or deleted.

    ``id`` tells it from those of others, who may have theirs on the same bucket.
    """
    service = (target_arn.split(":") + [""] * 3)[2]
    if service not in KINDS:
        raise Rejected(f"{target_arn!r} is no ARN of a queue, a topic or a function.")
    kind, field = KINDS[service]
    rules = [{"Name": name, "Value": value} for name, value in (("prefix", prefix), ("suffix", suffix)) if value]
    one = {"Id": id, field: target_arn, "Events": ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]}
    return {kind: [one | ({"Filter": {"Key": {"FilterRules": rules}}} if rules else {})]}


def merged(configuration: dict, wanted: dict) -> dict:
    """``configuration`` of a bucket with the notifications ``wanted`` in it, matched by Id; all others stay.

    S3 replaces the whole configuration at each ``put_bucket_notification_configuration``: what is not in it is gone.

    Raises
    ------
    Rejected
        One of others is about the same objects and events: S3 takes no two of these ("Configuring event notifications
        using object key name filtering", S3 user guide).
    """
    result, ids = _without(configuration, _ids(wanted)), _ids(wanted)
    clashes = [
        f"{theirs.get('Id', 'one without an Id')} ({_target(theirs)})"
        for theirs in _all(result)
        for ours in _all(wanted)
        if _overlap(theirs, ours)
    ]
    if clashes:
        raise Rejected.because(
            f"The bucket already tells somebody else of these objects; S3 allows one notification for each. Choose"
            f" another prefix than that of {', '.join(sorted(ids))}, or let a topic tell both",
            clashes,
        )
    for kind, ours in wanted.items():
        result[kind] = result.get(kind, []) + ours
    return result


def without(configuration: dict, added: dict) -> dict:
    """``configuration`` as it would be had ``added`` never been merged into it.

    One that has our Id but goes elsewhere by now is somebody's who changed it, and stays.
    """
    ours = {(one["Id"], _target(one)) for one in _all(added)}
    return _without(configuration, {one["Id"] for one in _all(configuration) if (one.get("Id"), _target(one)) in ours})


def _without(configuration: dict, ids: set[str]) -> dict:
    lists = {kind for kind, _ in KINDS.values()}
    result = {name: value for name, value in configuration.items() if name != "ResponseMetadata"}
    for kind in lists & result.keys():
        result[kind] = [one for one in result[kind] if one.get("Id") not in ids]
    return {name: value for name, value in result.items() if value or name not in lists}


def _all(configuration: dict) -> list[dict]:
    return [one for kind, _ in KINDS.values() for one in configuration.get(kind, [])]


def _ids(configuration: dict) -> set[str]:
    return {one["Id"] for one in _all(configuration)}


def _target(one: dict) -> str:
    return next((one[field] for _, field in KINDS.values() if field in one), "")


def _overlap(one: dict, other: dict) -> bool:
    """Whether there can be an object and an event that both are about."""
    events = any(_within(a, b) or _within(b, a) for a in one["Events"] for b in other["Events"])
    (before, after), (prefix, suffix) = _rules(one), _rules(other)
    starts = before.startswith(prefix) or prefix.startswith(before)
    return events and starts and (after.endswith(suffix) or suffix.endswith(after))


def _within(event: str, events: str) -> bool:
    return event.startswith(events.removesuffix("*"))


def _rules(one: dict) -> tuple[str, str]:
    """Prefix and suffix; S3 gives their names back with a capital."""
    rules = one.get("Filter", {}).get("Key", {}).get("FilterRules", [])
    values = {rule["Name"].lower(): rule["Value"] for rule in rules}
    return values.get("prefix", ""), values.get("suffix", "")


# --- what a run made, and its removal ---


def remember(state: RunState, *, sns: Any, sqs: Any, topic: str = "", queues: Iterable[str] = ()) -> None:
    """Note the names of a topic and of queues that this run is about to create, for :func:`clean_up`.

    Before they are created: a run that is killed right after leaves nothing behind that nobody knows of.

    Raises
    ------
    Rejected
        Some are there already, and not from this run: they are somebody's, and would be deleted with ours.
    """
    own = state.get(OWN, {"topics": [], "queues": []})
    queues = list(queues)
    foreign = [f"the topic {topic}" for _ in [topic] if topic and topic not in own["topics"] and _topic(sns, topic)]
    foreign += [f"the queue {name}" for name in queues if name not in own["queues"] and _queue(sqs, name)]
    if foreign:
        raise Rejected.because("These are there already, and this run did not make them: choose another name", foreign)
    own["topics"] = sorted({*own["topics"], *([topic] if topic else [])})
    own["queues"] = sorted({*own["queues"], *queues})
    state.save(**{OWN: own})


def remember_notification(state: RunState, bucket: str, added: dict) -> None:
    """Note what :func:`clean_up` will take from the notifications of ``bucket``: before it is put there."""
    noted = state.get(NOTIFICATIONS, [])
    if (entry := {"bucket": bucket, "added": added}) not in noted:
        state.save(**{NOTIFICATIONS: [*noted, entry]})


def clean_up(state: RunState, *, sns: Any, sqs: Any, s3: Any) -> dict[str, int]:
    """Remove exactly what the run noted: notifications, subscriptions of its queues, topics, and queues.

    Can be repeated, also after being killed half-way. In this order, so that nothing is sent to where nobody reads.
    Messages that are still in the queues go with them: archive dead letters first.

    Returns
    -------
    How many ``notifications``, ``subscriptions``, ``topics`` and ``queues`` were there and are gone now.
    """
    own = state.get(OWN, {"topics": [], "queues": []})
    notifications = sum(_withdraw(s3, noted["bucket"], noted["added"]) for noted in state.get(NOTIFICATIONS, []))
    urls = [url for name in own["queues"] if (url := _queue(sqs, name))]
    arns = {arn(sqs, url) for url in urls}
    subscriptions = _subscriptions(sns, arns) if arns else []
    for one in subscriptions:
        sns.unsubscribe(SubscriptionArn=one)
    topics = [found for name in own["topics"] if (found := _topic(sns, name))]
    for one in topics:
        sns.delete_topic(TopicArn=one)
    for url in urls:
        with suppress(sqs.exceptions.QueueDoesNotExist):
            sqs.delete_queue(QueueUrl=url)
    counts = {"notifications": notifications, "subscriptions": len(subscriptions)}
    return counts | {"topics": len(topics), "queues": len(urls)}


def _withdraw(s3: Any, bucket: str, added: dict) -> int:
    try:
        stored = s3.get_bucket_notification_configuration(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] in GONE:
            return 0
        raise _explained(error, f"bucket {bucket}") from None
    left = without(stored, added)
    count = len(_all(stored)) - len(_all(left))
    if count:
        s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration=left)
    return count


def _topic(sns: Any, name: str) -> str | None:
    """The ARN of the topic, if there is one."""
    pages = sns.get_paginator("list_topics").paginate()
    return next((t["TopicArn"] for page in pages for t in page["Topics"] if t["TopicArn"].endswith(f":{name}")), None)


def _queue(sqs: Any, name: str) -> str | None:
    """The URL of the queue, if there is one."""
    try:
        return sqs.get_queue_url(QueueName=name)["QueueUrl"]
    except ClientError as error:
        if error.response["Error"]["Code"] in GONE:
            return None
        raise _explained(error, f"queue {name}") from None


def _subscriptions(sns: Any, endpoints: set[str]) -> list[str]:
    """ARNs of the subscriptions that deliver to ``endpoints``; one that nobody has confirmed yet has none."""
    pages = sns.get_paginator("list_subscriptions").paginate()
    found = [s["SubscriptionArn"] for page in pages for s in page["Subscriptions"] if s["Endpoint"] in endpoints]
    return [one for one in found if one.startswith("arn:")]


def _explained(error: ClientError, what: str) -> Exception:
    code = error.response["Error"]["Code"]
    if code in GONE:
        return Rejected(f"The {what} is not there (any more). Is it in this region? Was it cleaned up?")
    return Rejected(f"AWS refuses the {what} ({code}): {error.response['Error'].get('Message', '')}")
