"""Dead letters are seen with their reasons, mended and sent again, or archived; and none is ever lost on the way."""

import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from botocore.exceptions import EndpointConnectionError
from catalog_items import item

from helpers import objectstore
from helpers.catalog import dead_letters, messages
from helpers.catalog import store as stores
from helpers.catalog.dead_letters import Archived, Letter, Redriven
from helpers.catalog.loading import Loader
from helpers.catalog.publishing import encoded
from helpers.catalog.sending import s3_event
from helpers.errors import Rejected, TimedOut

BUCKET = "letters-and-items"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def timeless(name: str) -> dict:
    return item(name, properties={"datetime": "yesterday"})


def mend(one: dict) -> dict:
    return one | {"properties": one["properties"] | {"datetime": "2026-02-03T04:05:06Z"}}


class Queues:
    """A queue that the loader reads, and its dead letters."""

    def __init__(self, sqs):
        self.sqs, name = sqs, f"letters-{uuid4().hex[:8]}"
        self.main, self.dead = (sqs.create_queue(QueueName=one)["QueueUrl"] for one in (name, f"{name}-dead"))

    def bury(self, *bodies: dict | str, **attributes: str) -> None:
        given = {name: {"DataType": "String", "StringValue": text} for name, text in attributes.items()}
        for body in bodies:
            text = body if isinstance(body, str) else json.dumps(body)
            self.sqs.send_message(QueueUrl=self.dead, MessageBody=text, MessageAttributes=given)

    def letters(self, **more) -> list[Letter]:
        return dead_letters.letters(self.sqs, self.dead, wait=0, **more)

    def redrive(self, letters, **more) -> Redriven:
        return dead_letters.redrive(letters, self.sqs, self.main, wait=0, **more)

    def archive(self, letters, s3) -> Archived:
        return dead_letters.archive(letters, self.sqs, s3, BUCKET, wait=0)

    def count(self, url: str) -> int:
        """Messages in a queue, those that are hidden included."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        return sum(map(int, self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"].values()))

    def visible(self) -> int:
        """Dead letters that anybody can read now."""
        about = self.sqs.get_queue_attributes(QueueUrl=self.dead, AttributeNames=["ApproximateNumberOfMessages"])
        return int(about["Attributes"]["ApproximateNumberOfMessages"])

    def arrived(self) -> list[dict]:
        """What came into the loader's queue; it is gone from there."""
        found = []
        while page := self.sqs.receive_message(
            QueueUrl=self.main, MaxNumberOfMessages=10, MessageAttributeNames=["All"], AttributeNames=["All"]
        ).get("Messages"):
            found += page
        return found


class Failing:
    """A client one of whose calls ends as if the process were killed there."""

    def __init__(self, client, call: str, after: int = 0):
        self._client, self._call, self._left = client, call, after

    def __getattr__(self, name: str):
        if name == self._call:
            if not self._left:
                raise KeyboardInterrupt
            self._left -= 1
        return getattr(self._client, name)


@pytest.fixture
def queues(settings) -> Queues:
    return Queues(objectstore.client("sqs", settings))


@pytest.fixture
def s3(settings):
    s3 = objectstore.client("s3", settings)
    objectstore.ensure_bucket(s3, BUCKET, None, create=True)
    return s3


def written(s3, name: str, content: dict | str) -> str:
    """Put an item into the bucket; the event of it."""
    text = content if isinstance(content, str) else json.dumps(content)
    etag = s3.put_object(Bucket=BUCKET, Key=f"items/{name}.json", Body=text.encode())["ETag"].strip('"')
    return s3_event(BUCKET, f"items/{name}.json", etag=etag, size=len(text), time=NOON)


# --- look ---


def test_all_letters_are_listed_with_what_is_wrong_and_stay_where_they_are(queues):
    queues.bury(*(timeless(f"s{n}") for n in range(23)), "no JSON at all", item("fine"))
    found = queues.letters()
    assert len(found) == len({one.id for one in found}) == 25
    reasons = {one.about: one.reason for one in found}
    assert "yesterday" in reasons[("rtc/s7",)]
    assert "not JSON" in reasons[()]
    assert reasons[("rtc/fine",)] == dead_letters.NO_FAULT
    assert not any(one.noted for one in found)
    assert queues.visible() == 25  # for whoever comes next, at once
    assert [one.id for one in queues.letters()] == [one.id for one in found]


def test_letters_that_only_say_where_an_item_is_are_looked_into(queues, s3):
    gone = written(s3, "gone", item("gone"))
    s3.delete_object(Bucket=BUCKET, Key="items/gone.json")
    queues.bury(written(s3, "bad", timeless("bad")), written(s3, "text", "{"), gone)
    reasons = {one.about[0]: one.reason for one in queues.letters(s3=s3)}
    assert "yesterday" in reasons[f"s3://{BUCKET}/items/bad.json"]
    assert "not JSON" in reasons[f"s3://{BUCKET}/items/text.json"]
    assert "NoSuchKey" in reasons[f"s3://{BUCKET}/items/gone.json"]
    assert "give s3=" in queues.letters()[0].reason


def test_the_reason_that_the_loader_noted_comes_first(queues, catalog_database):
    queues.bury(timeless("a"), timeless("a2"), item("b", collection="unheard-of"))
    with stores.connect(catalog_database) as store:
        loader = Loader(store, fetch=lambda _: {})
        found = queues.sqs.receive_message(QueueUrl=queues.dead, MaxNumberOfMessages=10, VisibilityTimeout=0)
        assert len(loader.load(found["Messages"])) == 3
        letters = queues.letters(store=store)
        assert [one.noted for one in letters] == [True] * 3
        assert {one.reason for one in letters} == set(loader.reasons.values())
        first, second = dead_letters.grouped(letters)
        assert (first["letters"], second["letters"]) == (2, 1) and first["reason"].startswith(
            "properties.datetime: ..."
        )
        # What it did not note is found out: also that there is no such collection.
        queues.bury(item("c", collection="nowhere"))
        last = queues.letters(store=store)[-1]
        assert not last.noted and "no collection 'nowhere'" in last.reason


def test_letters_are_grouped_by_reason_with_counts_and_examples(queues):
    queues.bury(*(timeless(f"s{n}") for n in range(5)), item("lost", geometry={"type": "Polygon"}))
    queues.bury(*(item(f"x{n}", properties={"datetime": f"day {n}"}) for n in range(3)))
    first, second = dead_letters.grouped(queues.letters())
    assert (first["letters"], second["letters"]) == (8, 1)  # "yesterday" and "day 2" are one reason
    assert first["examples"].startswith("rtc/s0, rtc/s1, rtc/s2, and 5 more")
    assert second["examples"] == "rtc/lost" and "geometry" in second["reason"]
    assert dead_letters.grouped([]) == []


def test_examples_that_are_addresses_are_shown_by_their_ends(queues):
    events = [s3_event("a-bucket", f"items/of/run/rtc/s{n}.json", etag="e", size=1, time=NOON) for n in range(2)]
    queues.bury(*events, s3_event("a-bucket", "top.json", etag="e", size=1, time=NOON))
    (row,) = dead_letters.grouped(queues.letters())
    assert sorted(row["examples"].split(", ")) == [".../rtc/s0.json", ".../rtc/s1.json", "s3://a-bucket/top.json"]


def test_what_became_of_letters_is_said_in_words():
    assert str(Redriven(1, 1, 1)) == "1 sent again, 1 of them mended, 1 object written anew"
    assert str(Redriven(left=1, gone=2)) == "1 left where it is, 2 gone meanwhile"
    assert (str(Redriven()), repr(Redriven(2))[:23]) == ("nothing sent again", "Redriven(sent=2, fixed=")
    assert str(Archived(11, 1, 2)) == "11 archived, 2 of them still in the queue as well, 1 gone meanwhile"
    assert str(Archived()) == "nothing archived"


def test_a_queue_that_is_not_there_is_said_so(queues):
    with pytest.raises(Rejected, match="AWS refuses ReceiveMessage"):
        dead_letters.letters(queues.sqs, queues.dead + "-not", wait=0)


def test_more_letters_than_can_be_read_before_the_first_are_visible_again_come_once(queues):
    queues.bury(*(timeless(f"s{n}") for n in range(12)))
    found = queues.letters(hold=0)
    assert len({one.id for one in found}) == len(found)
    assert queues.count(queues.dead) == 12


# --- send again ---


def test_letters_are_sent_again_as_they_were_and_with_the_time_of_their_event(queues):
    queues.bury(item("a"), collection="rtc")
    (letter,) = queues.letters()
    assert queues.redrive([letter]) == Redriven(sent=1)
    (arrived,) = queues.arrived()
    assert json.loads(arrived["Body"]) == item("a")
    assert arrived["MessageAttributes"]["collection"]["StringValue"] == "rtc"
    assert messages.read(messages.message(arrived)).items[0][1].time == letter.sent
    assert queues.count(queues.dead) == 0


def test_fixed_items_are_sent_and_the_rest_stays(queues):
    queues.bury(*(timeless(f"s{n}") for n in range(12)), item("placeless", geometry={"type": "Point"}), "no JSON")
    letters = queues.letters()
    done = queues.redrive(letters, fix=lambda one: None if one["id"] == "placeless" else mend(one))
    assert done == Redriven(sent=12, fixed=12, left=2)
    bodies = [json.loads(one["Body"]) for one in queues.arrived()]
    assert sorted(body["id"] for body in bodies) == sorted(f"s{n}" for n in range(12))
    assert all(body["properties"]["datetime"] == "2026-02-03T04:05:06Z" for body in bodies)
    assert [one.about for one in queues.letters()] == [("rtc/placeless",), ()]


def test_a_fix_that_leaves_faults_sends_nothing_and_names_them_all(queues):
    queues.bury(timeless("a"), timeless("b"), timeless("c"))
    with pytest.raises(Rejected) as refused:
        queues.redrive(queues.letters(), fix=lambda one: mend(one) if one["id"] == "b" else one | {"bbox": [1]})
    said = str(refused.value)
    assert "rtc/a: " in said and "rtc/c: " in said and "rtc/b" not in said
    assert (queues.count(queues.dead), queues.count(queues.main)) == (3, 0)


def test_what_is_redriven_is_chosen(queues):
    queues.bury(timeless("a"), item("b"), item("c"))
    done = queues.redrive(queues.letters(), only=lambda one: one.about == ("rtc/b",))
    assert done == Redriven(sent=1, left=2)
    assert [json.loads(one["Body"])["id"] for one in queues.arrived()] == ["b"]


@pytest.mark.parametrize("call", ["send_message_batch", "delete_message_batch"])
def test_killed_while_sending_nothing_is_lost_and_at_worst_something_is_there_twice(queues, call):
    queues.bury(*(item(f"s{n}") for n in range(25)))
    letters = queues.letters()
    killed = Failing(queues.sqs, call, after=1)
    with pytest.raises(KeyboardInterrupt):
        dead_letters.redrive(letters, killed, queues.main, wait=0)
    there = [json.loads(one["Body"])["id"] for one in queues.arrived()]
    dead = [one.about[0].removeprefix("rtc/") for one in queues.letters()]
    assert {*there, *dead} == {f"s{n}" for n in range(25)}
    # The next one finishes it: whatever was done already is gone, and not sent again unless it is still there.
    done = queues.redrive(letters)
    assert (done.sent, done.gone) == (len(dead), 25 - len(dead))
    assert queues.count(queues.dead) == 0


def test_letters_that_somebody_else_took_meanwhile_are_not_sent_twice(queues):
    queues.bury(item("a"), item("b"))
    letters = queues.letters()
    assert queues.redrive(letters).sent == 2
    assert queues.redrive(letters) == Redriven(gone=2)
    assert len(queues.arrived()) == 2


def test_what_sqs_does_not_delete_is_said(queues):
    class Keeping:
        def __getattr__(self, name):
            return getattr(queues.sqs, name)

        def delete_message_batch(self, QueueUrl, Entries):
            return {"Failed": [{"Id": one["Id"], "Code": "InternalError"} for one in Entries]}

    queues.bury(item("a"))
    assert dead_letters.redrive(queues.letters(), Keeping(), queues.main, wait=0) == Redriven(sent=1, twice=1)
    assert queues.visible() == 1


def test_sending_letters_to_where_they_are_is_refused(queues):
    queues.bury(item("a"))
    with pytest.raises(Rejected, match="in that queue already"):
        dead_letters.redrive(queues.letters(), queues.sqs, queues.dead)


def test_sqs_that_does_not_answer_is_said_so(queues):
    class Silent:
        def receive_message(self, **_):
            raise EndpointConnectionError(endpoint_url="https://x")

    with pytest.raises(TimedOut):
        dead_letters.letters(Silent(), queues.dead)


# --- items in S3 ---


def test_the_item_of_an_object_is_fixed_and_sent_itself(queues, s3):
    queues.bury(written(s3, "bad", timeless("bad")))
    assert queues.redrive(queues.letters(s3=s3), fix=mend, s3=s3) == Redriven(sent=1, fixed=1)
    (arrived,) = queues.arrived()
    ((said, origin),) = messages.read(messages.message(arrived)).items
    assert said == mend(timeless("bad"))
    assert origin.time == NOON  # the event's: what has been written since is newer
    assert json.loads(s3.get_object(Bucket=BUCKET, Key="items/bad.json")["Body"].read()) == timeless("bad")


def test_or_it_is_fixed_in_its_object(queues, s3):
    queues.bury(written(s3, "bad", timeless("bad")))
    done = queues.redrive(queues.letters(s3=s3), fix=mend, s3=s3, rewrite=True)
    assert done == Redriven(sent=1, fixed=1, rewritten=1)
    answer = s3.get_object(Bucket=BUCKET, Key="items/bad.json")
    assert json.loads(answer["Body"].read()) == mend(timeless("bad"))
    ((located, origin),) = messages.read(messages.message(*queues.arrived())).written
    assert (located.key, origin.etag) == ("items/bad.json", answer["ETag"].strip('"'))
    assert datetime.now(UTC) - origin.time < timedelta(minutes=1)


def test_an_object_that_somebody_else_fixed_meanwhile_is_not_overwritten(queues, s3):
    queues.bury(written(s3, "bad", timeless("bad")))
    theirs = encoded(item("bad", assets={}))

    def slow_fix(one: dict) -> dict:
        s3.put_object(Bucket=BUCKET, Key="items/bad.json", Body=theirs)
        return mend(one)

    with pytest.raises(Rejected, match="has changed or gone since"):
        queues.redrive(queues.letters(s3=s3), fix=slow_fix, s3=s3, rewrite=True)
    assert s3.get_object(Bucket=BUCKET, Key="items/bad.json")["Body"].read() == theirs
    assert (queues.visible(), queues.count(queues.main)) == (1, 0)


def test_an_item_too_large_for_a_message_must_be_fixed_in_its_object(queues, s3):
    large = timeless("large")
    large["assets"] = {"a": {"href": "x" * 1_100_000}}
    queues.bury(written(s3, "large", large))
    letters = queues.letters(s3=s3)
    with pytest.raises(Rejected, match=r"too large for a message.*rewrite=True"):
        queues.redrive(letters, fix=mend, s3=s3)
    assert queues.redrive(letters, fix=mend, s3=s3, rewrite=True).rewritten == 1


# --- archive ---


def test_archived_letters_are_whole_in_the_bucket_and_gone_from_the_queue(queues, s3):
    queues.bury(*(timeless(f"s{n}") for n in range(11)), collection="rtc")
    letters = queues.letters()
    queues.bury(item("late"))  # nobody has seen this one
    assert queues.archive(letters, s3) == Archived(archived=11)
    assert [one.about for one in queues.letters()] == [("rtc/late",)]
    one = letters[0]
    key = f"dead-letters/{one.sent:%Y-%m-%d}/{one.id}.json"
    kept = json.loads(s3.get_object(Bucket=BUCKET, Key=key)["Body"].read())
    assert kept["reason"] == one.reason and kept["about"] == list(one.about)
    message = kept["message"]
    assert (message["MessageId"], message["Body"]) == (one.id, one.record["Body"])
    assert message["MessageAttributes"]["collection"]["StringValue"] == "rtc"
    assert "SentTimestamp" in message["Attributes"] and "ReceiptHandle" not in message
    assert len(objectstore.objects(s3, BUCKET, "dead-letters/")) == 11
    assert queues.archive(letters, s3) == Archived(gone=11)


def test_what_cannot_be_archived_is_still_a_dead_letter(queues, s3):
    queues.bury(*(timeless(f"s{n}") for n in range(11)))
    letters = queues.letters()
    with pytest.raises(KeyboardInterrupt):
        queues.archive(letters, Failing(s3, "put_object", after=3))
    assert queues.visible() == 11
    with pytest.raises(Rejected, match="NoSuchBucket"):
        dead_letters.archive(letters, queues.sqs, s3, "not-there-at-all", wait=0)
    assert queues.visible() == 11
    with pytest.raises(KeyboardInterrupt):  # written, and killed before anything is deleted
        dead_letters.archive(letters, Failing(queues.sqs, "delete_message_batch"), s3, BUCKET, wait=0)
    assert queues.visible() == 11
    assert queues.archive(letters, s3) == Archived(archived=11)
    assert len(objectstore.objects(s3, BUCKET, "dead-letters/")) == 11
