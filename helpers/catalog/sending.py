"""Many requests to AWS at a time, what fails tried again, and in the end named: messages in batches, single objects."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import quote_plus

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from ..errors import FailedRemotely, NotConfigured, RecipeError, Rejected, TimedOut, bullets

#: Bytes that SNS takes in a message with its attributes, and in a request ("Publish", "PublishBatch", SNS API).
SNS_LIMIT = 262_144
#: The same of SQS, since August 2025; a queue may have a lower limit of its own.
SQS_LIMIT = 1_048_576
#: Messages in one request to SNS or SQS.
BATCH = 10
#: Requests at a time: as many as a boto3 client has connections.
WORKERS = 10
#: How often a message is sent that the service could not take, and seconds before the second time; doubled thereafter.
TRIES, PAUSE = 5, 0.2
#: What AWS says when it has a problem, or asks for fewer requests.
PASSING = {"Throttling", "ThrottledException", "ThrottlingException", "RequestThrottled", "SlowDown", "RequestTimeout"}


def in_parallel[Result](
    work: dict[str, Callable[[], Result]], workers: int = WORKERS
) -> tuple[dict[str, Result], dict[str, RecipeError]]:
    """Do everything in ``work``; what passes by stops nothing else.

    Returns
    -------
    What was returned, and what failed for now, each by the name of the work.

    Raises
    ------
    Rejected, NotConfigured
        A refusal: it would be the same for everything else, which is not begun.
    """
    results: dict[str, Result] = {}
    failures: dict[str, RecipeError] = {}
    pool = ThreadPoolExecutor(workers)
    try:
        futures = {name: pool.submit(_explaining, do) for name, do in work.items()}
        for name, future in futures.items():
            try:
                results[name] = future.result()
            except (FailedRemotely, TimedOut) as error:
                failures[name] = error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return results, failures


def _explaining[Result](do: Callable[[], Result]) -> Result:
    try:
        return do()
    except (ClientError, BotoCoreError) as error:
        raise explained(error) from None


def explained(error: Exception) -> RecipeError:
    """An error of boto3 as one of ours."""
    if isinstance(error, ClientError):
        about, status = error.response["Error"], error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        words = ": ".join(dict.fromkeys(word for word in (about.get("Code"), about.get("Message")) if word))
        if status >= 500 or status == 429 or about.get("Code") in PASSING:
            return FailedRemotely(f"AWS has a problem ({words}); run again later.")
        return Rejected(
            f"AWS refuses {error.operation_name} ({words}). Are names, region and rights as they should be?"
        )
    if isinstance(error, NoCredentialsError):
        return NotConfigured("There are no AWS credentials (AWS_PROFILE, or AWS_ACCESS_KEY_ID).")
    return TimedOut(f"AWS does not answer ({type(error).__name__}); run again.")


def raise_failed(failed: dict[str, RecipeError], total: int, done: str, first: int = 20) -> None:
    """Say which of ``total`` could not be ``done`` ("published"), and why; nothing if there are none."""
    if not failed:
        return
    reasons = [f"{name}: {error}" for name, error in failed.items()]
    more = [f"and {len(reasons) - first} more"] if len(reasons) > first else []
    kind = TimedOut if all(isinstance(error, TimedOut) for error in failed.values()) else FailedRemotely
    what = f"{len(failed)} of {total} were not {done}; the others were. Do all of it again later: twice does no harm."
    raise kind("\n".join([what, *bullets([*reasons[:first], *more])]))


# --- messages ---


def deliver(
    messages: dict[str, dict], send: Callable[[list[dict]], dict], limit: int = SNS_LIMIT
) -> dict[str, RecipeError]:
    """Send messages in batches, many at a time, each until it is taken.

    Parameters
    ----------
    messages:
        By name, as SNS or SQS take them in a batch, without "Id".
    send:
        Sends a batch; returns the service's answer, which names what was not taken under "Failed".
    limit:
        Bytes of a request at most.

    Returns
    -------
    Why a message was not taken after several tries, by its name.

    Raises
    ------
    Rejected, NotConfigured
        The service refuses the request as a whole.
    """
    batches = {str(number): batch for number, batch in enumerate(_batches(messages, limit))}
    work = {number: partial(_until_taken, batch, messages, send) for number, batch in batches.items()}
    results, broken = in_parallel(work)
    failed = {name: error for result in results.values() for name, error in result.items()}
    return failed | {name: error for number, error in broken.items() for name in batches[number]}


def _until_taken(names: list[str], messages: dict[str, dict], send: Callable[[list[dict]], dict]) -> dict:
    refused: dict[str, RecipeError] = {}
    left = dict.fromkeys(names)
    for attempt in range(TRIES):
        time.sleep(PAUSE * 2 ** (attempt - 1) if attempt else 0)
        waiting = list(left)
        answer = send([messages[name] | {"Id": str(number)} for number, name in enumerate(waiting)])
        left = {}
        for failure in answer.get("Failed", []):
            name = waiting[int(failure["Id"])]
            words = f"{failure.get('Code')}: {failure.get('Message', '')}"
            if failure.get("SenderFault"):
                refused[name] = FailedRemotely(words)
            else:
                left[name] = FailedRemotely(words)
        if not left:
            break
    return refused | left


def _batches(messages: dict[str, dict], limit: int) -> Iterator[list[str]]:
    """Names of messages that go together in one request."""
    batch, total = list[str](), 0
    for name, message in messages.items():
        size = size_of(message)
        if batch and (len(batch) == BATCH or total + size > limit):
            yield batch
            batch, total = [], 0
        batch.append(name)
        total += size
    if batch:
        yield batch


def size_of(message: dict) -> int:
    """Bytes as AWS counts them: the text, and name, type and value of every attribute."""
    attributes = message.get("MessageAttributes", {}).items()
    body = message["Message"] if "Message" in message else message["MessageBody"]
    return len(body.encode()) + sum(
        len(name.encode()) + len(value["DataType"]) + len(value.get("StringValue", "").encode())
        for name, value in attributes
    )


def to_topic(sns: Any, topic_arn: str) -> Callable[[list[dict]], dict]:
    """Sends a batch to a topic: for :func:`deliver`."""
    return lambda batch: sns.publish_batch(TopicArn=topic_arn, PublishBatchRequestEntries=batch)


def to_queue(sqs: Any, queue_url: str) -> Callable[[list[dict]], dict]:
    """Sends a batch to a queue: for :func:`deliver`."""
    return lambda batch: sqs.send_message_batch(QueueUrl=queue_url, Entries=batch)


def s3_event(bucket: str, key: str, *, etag: str, size: int, time: datetime, region: str = "") -> str:
    """The message that S3 itself would send of an object that was written ("Event message structure", S3 user guide).

    Without a sequencer: only S3 has these. ``time``: with its time zone.
    """
    about = {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": region,
        "eventTime": time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "eventName": "ObjectCreated:Put",
        "s3": {
            "s3SchemaVersion": "1.0",
            "bucket": {"name": bucket, "arn": f"arn:aws:s3:::{bucket}"},
            "object": {"key": quote_plus(key, safe="/"), "size": size, "eTag": etag},
        },
    }
    return json.dumps({"Records": [about]})
