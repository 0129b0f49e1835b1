"""S3's notifications, SNS and SQS as Amazon documents them, where moto is simpler.

* Event records have everything that the real ones have (userguide, "Event message structure"): the sequencer above all.
* Deletes in versioned buckets are told, and a deleted object has no size any more.
* Whoever sends needs the receiver's permission: S3 asks for it when notifications are configured; SNS does not, and
  what it may not deliver is gone.
* Sizes are bytes, with their attributes, and of a batch together.
* Queues keep what is sent while something else is deleted, and do not get slow when they are long.
"""

import json
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from typing import Any
from urllib.parse import quote_plus
from uuid import uuid4

from moto.s3 import notifications
from moto.s3.exceptions import S3ClientError
from moto.s3.models import FakeBucket, FakeDeleteMarker, S3Backend
from moto.sns.exceptions import InvalidParameterValue as TooLong
from moto.sns.exceptions import SNSException
from moto.sns.models import SNSBackend, Subscription, Topic, sns_backends
from moto.sqs.exceptions import InvalidParameterValue, ReceiptHandleIsInvalid
from moto.sqs.models import Message, Queue, SQSBackend, sqs_backends

from . import policy

#: Bytes of a message to SNS at most, its attributes included, and of a batch together (SNS quotas; what a topic has
#: unless its MaximumMessageSize says otherwise).
SNS_LIMIT = 262_144
#: The version of the event structure, of which the first number is what counts.
EVENT_VERSION = "2.5"
S3, SNS = "s3.amazonaws.com", "sns.amazonaws.com"
#: ETag of nothing: what the event of a new delete marker has.
NOTHING = "d41d8cd98f00b204e9800998ecf8427e"


@cache
def install() -> None:
    """Change moto, once for this process."""
    notifications.send_event = _send_event
    notifications.send_test_event = _send_test_event
    FakeBucket.set_notification_configuration = _with_permission(FakeBucket.set_notification_configuration)
    S3Backend.delete_object = _told(S3Backend.delete_object)
    Subscription.publish = _if_allowed(Subscription.publish)
    Subscription.get_post_data = _envelope
    SNSBackend.publish = _within_limit(SNSBackend.publish)
    SNSBackend.publish_batch = _together_within_limit(SNSBackend.publish_batch)
    SQSBackend.receive_message = _alone(SQSBackend.receive_message)
    SQSBackend.change_message_visibility = _alone(SQSBackend.change_message_visibility)
    SQSBackend._validate_message = _in_bytes(SQSBackend._validate_message)
    SQSBackend.send_message = _without_counting(SQSBackend.send_message)
    Queue.attributes = property(_unless_sending(Queue.attributes.fget))
    SQSBackend.is_message_valid_based_on_retention_period = _is_kept
    Message.visible = property(lambda message: time.time() * 1000 > message.visible_at)
    Message.delayed = property(lambda message: time.time() * 1000 < message.delayed_until)
    Queue.messages = property(_visible)
    Queue.delete_message = _delete_message


def reset(account_id: str | None = None) -> None:
    """No topics and no queues, in any account or in this one."""
    if account_id is None:
        sns_backends.reset()
        sqs_backends.reset()
        return
    for backends in (sns_backends, sqs_backends):
        for backend in list(backends[account_id].values()):
            backend.reset()


# --- S3 ---

_sequence = threading.Lock()
_last = 0


def _sequencer() -> str:
    """Greater for every later event; hexadecimal, of one length."""
    global _last
    with _sequence:
        _last = max(_last + 1, time.time_ns())
        return f"00{_last:016X}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _record(event: str, bucket: Any, key: Any, configuration: str, sequencer: str, when: str) -> dict:
    about: dict[str, Any] = {"key": quote_plus(key.name, safe="/")}
    if isinstance(key, FakeDeleteMarker):
        about["eTag"] = NOTHING
    elif "ObjectRemoved" not in event:
        about |= {"size": key.size, "eTag": key.etag.strip('"')}
    if bucket.is_versioned:
        about["versionId"] = key.version_id
    if "ObjectCreated" in event or "ObjectRemoved" in event:
        about["sequencer"] = sequencer
    return {
        "eventVersion": EVENT_VERSION,
        "eventSource": "aws:s3",
        "awsRegion": bucket.region_name,
        "eventTime": when,
        "eventName": event.removeprefix("s3:"),
        "userIdentity": {"principalId": "AWS:AIDASANDBOXUSER000000"},
        "requestParameters": {"sourceIPAddress": "127.0.0.1"},
        "responseElements": {"x-amz-request-id": uuid4().hex[:16].upper(), "x-amz-id-2": uuid4().hex},
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": configuration,
            "bucket": {
                "name": bucket.name,
                "ownerIdentity": {"principalId": f"A{bucket.account_id}"},
                "arn": bucket.arn,
            },
            "object": about,
        },
    }


def _send_event(account_id: str, event_name: str, bucket: Any, key: Any) -> None:
    """Tell the queues and topics that asked for such an event."""
    wanted = bucket.notification_configuration
    if wanted is None:
        return
    event, sequencer, when = getattr(event_name, "value", event_name), _sequencer(), _now()
    for receiver in (*wanted.queue, *wanted.topic):
        if receiver.matches(event, key.name):
            record = _record(event, bucket, key, receiver.id, sequencer, when)
            _deliver(bucket, receiver.arn, {"Records": [record]})


def _send_test_event(account_id: str, bucket: Any) -> None:
    wanted = bucket.notification_configuration
    ids = {"RequestId": uuid4().hex[:16].upper(), "HostId": uuid4().hex}
    event = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Time": _now(), "Bucket": bucket.name} | ids
    for arn in dict.fromkeys(receiver.arn for receiver in (*wanted.queue, *wanted.topic)):
        _deliver(bucket, arn, event)


def _deliver(bucket: Any, arn: str, event: dict) -> None:
    if not _lets_in(arn, S3, bucket.arn, bucket.account_id):
        return  # as with S3: nobody is told
    account, region, name = _parts(arn)
    if ":sns:" in arn:
        sns_backends[account][region].publish(json.dumps(event), arn, subject="Amazon S3 Notification")
    else:
        sqs_backends[account][region].send_message(name, json.dumps(event))


def _parts(arn: str) -> tuple[str, str, str]:
    """Account, region and name in an ARN."""
    *_, region, account, name = arn.split(":")
    return account, region, name


def _receiver(arn: str) -> Topic | Queue | None:
    account, region, name = _parts(arn)
    if ":sns:" in arn:
        return sns_backends[account][region].topics.get(arn)
    return sqs_backends[account][region].queues.get(name)


def _lets_in(arn: str, service: str, source: str, source_account: str) -> bool:
    """Whether a queue or topic is there, and its policy lets a service send, on behalf of ``source``."""
    receiver = _receiver(arn)
    if receiver is None:
        return False
    stored = json.loads(receiver.policy) if receiver.policy else None
    action = "sns:Publish" if ":sns:" in arn else "sqs:SendMessage"
    whose = {"aws_SourceArn": source, "aws_SourceAccount": source_account}
    return policy.verdict(stored, service, action, arn, **whose) == "Allow"


def _with_permission(original: Any) -> Any:
    def set_notification_configuration(bucket: Any, wanted: dict | None) -> None:
        given = [(wanted or {}).get(f"{kind}Configuration") or [] for kind in ("Queue", "Topic")]
        arns = [one.get(kind) for kind, some in zip(("Queue", "Topic"), given, strict=True) for one in some]
        for arn in filter(None, arns):
            if not _lets_in(arn, S3, bucket.arn, bucket.account_id):
                message = "Unable to validate the following destination configurations"
                raise S3ClientError("InvalidArgument", message)
        original(bucket, wanted)

    return set_notification_configuration


def _told(original: Any) -> Any:
    def delete_object(backend: Any, bucket_name: str, key_name: str, version_id: Any = None, **options: Any) -> Any:
        bucket = backend.get_bucket(bucket_name)
        before = bucket.keys.getlist(key_name, []) if bucket.is_versioned else []
        answer = original(backend, bucket_name, key_name, version_id=version_id, **options)
        after = bucket.keys.getlist(key_name, []) if before else []  # moto tells of the last version itself
        if after and version_id is None:
            _send_event(backend.account_id, "s3:ObjectRemoved:DeleteMarkerCreated", bucket, after[-1])
        elif after:
            for key in before:
                if str(key.version_id) == str(version_id):
                    _send_event(backend.account_id, "s3:ObjectRemoved:Delete", bucket, key)
        return answer

    return delete_object


# --- SNS ---


def _size(message: str, attributes: dict[str, Any] | None) -> int:
    size = len(message.encode())
    for name, value in (attributes or {}).items():
        content = value.get("Value", "")
        content = content if isinstance(content, bytes) else str(content).encode()
        size += len(name.encode()) + len(value.get("Type", "")) + len(content)
    return size


def _within_limit(original: Any) -> Any:
    def publish(backend: Any, message: str, arn: str | None, *args: Any, **options: Any) -> str:
        if _size(message, options.get("message_attributes")) > SNS_LIMIT:
            raise TooLong("Invalid parameter: Message too long")
        return original(backend, message, arn, *args, **options)

    return publish


class _BatchTooLong(SNSException):
    code = "BatchRequestTooLong"
    message = "The length of all the messages put together is more than the limit."


def _together_within_limit(original: Any) -> Any:
    def publish_batch(backend: Any, topic_arn: str, publish_batch_request_entries: list[dict]) -> Any:
        entries = publish_batch_request_entries
        if sum(_size(entry["Message"], entry.get("MessageAttributes")) for entry in entries) > SNS_LIMIT:
            raise _BatchTooLong(_BatchTooLong.message)
        return original(backend, topic_arn, entries)

    return publish_batch


def _if_allowed(original: Any) -> Any:
    def publish(subscription: Any, *args: Any, **options: Any) -> None:
        topic = subscription.topic
        if subscription.protocol != "sqs" or _lets_in(subscription.endpoint, SNS, topic.arn, topic.account_id):
            original(subscription, *args, **options)

    return publish


def _envelope(
    subscription: Any, message: str, message_id: str, subject: str | None, message_attributes: dict | None = None
) -> dict[str, Any]:
    """What SNS puts around a message. Signed with nothing: nobody could get the sandbox's certificate from Amazon."""
    host = f"https://sns.{_parts(subscription.topic.arn)[1]}.amazonaws.com"
    told = {
        "Type": "Notification",
        "MessageId": message_id,
        "TopicArn": subscription.topic.arn,
        "Subject": subject,
        "Message": message,
        "Timestamp": _now(),
        "SignatureVersion": "1",
        "Signature": "U2FuZGJveA==",
        "SigningCertURL": f"{host}/SimpleNotificationService-sandbox.pem",
        "UnsubscribeURL": f"{host}/?Action=Unsubscribe&SubscriptionArn={subscription.arn}",
        "MessageAttributes": message_attributes,
    }
    return {name: value for name, value in told.items() if value}


# --- SQS ---


def _alone(original: Any) -> Any:
    """Nobody else changes the queue meanwhile; a long poll lets others in while it waits."""

    def changed(backend: Any, queue_name: str, *args: Any, **options: Any) -> Any:
        with backend.get_queue(queue_name)._messages_lock:
            return original(backend, queue_name, *args, **options)

    return changed


def _in_bytes(original: Any) -> Any:
    def _validate_message(backend: Any, queue: Queue, message_body: str, *args: Any, **options: Any) -> None:
        if len(message_body.encode()) > queue.maximum_message_size:
            limit = f"Message must be shorter than {queue.maximum_message_size} bytes."
            raise InvalidParameterValue(f"One or more parameters are invalid. Reason: {limit}")
        original(backend, queue, message_body, *args, **options)

    return _validate_message


_sending = threading.local()


def _without_counting(original: Any) -> Any:
    """To send to a queue, moto looks at all of its attributes, and counts its messages three times for them."""

    def send_message(*args: Any, **options: Any) -> Message:
        _sending.now = True
        try:
            return original(*args, **options)
        finally:
            _sending.now = False

    return send_message


def _unless_sending(original: Any) -> Any:
    def attributes(queue: Queue) -> dict[str, Any]:
        needed = queue.fifo_queue or not getattr(_sending, "now", False)
        return original(queue) if needed else {}

    return attributes


def _is_kept(backend: SQSBackend, queue_name: str, message: Message) -> bool:
    return message.sent_timestamp / 1000 + backend.queues[queue_name].message_retention_period > time.time()


def _visible(queue: Queue) -> list[Message]:
    now = time.time() * 1000  # once, not for each message
    return [message for message in queue._messages if now > message.visible_at and now >= message.delayed_until]


def _delete_message(queue: Queue, receipt_handle: str) -> None:
    with queue._messages_lock:
        if receipt_handle in queue.deleted_messages:
            return
        message = _holder(queue.pending_messages, receipt_handle) or _holder(queue._messages, receipt_handle)
        if message is None:
            raise ReceiptHandleIsInvalid()
        queue.pending_messages.discard(message)
        queue.deleted_messages.update(message.all_receipt_handles)
        queue._messages.remove(message)


def _holder(messages: Iterable[Message], receipt_handle: str) -> Message | None:
    """The message that was given out under a receipt handle, the latest or an earlier one."""
    for message in messages:
        if message.receipt_handle == receipt_handle or receipt_handle in message._old_receipt_handles:
            return message
    return None
