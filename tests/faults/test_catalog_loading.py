"""The loader killed, disturbed and flooded: the catalogue is what the events say, and no message is lost.

The promise at its full size takes minutes: FAULT_MESSAGES=10000 FAULT_KILLS=10 pytest -s -k killed (this file).
"""

import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from itertools import batched
from urllib.parse import quote_plus

import psycopg
import pytest

from helpers import objectstore
from helpers.catalog import loading
from helpers.catalog.fetching import Fetched, Fetcher
from helpers.catalog.store import Entry, Origin, connect
from helpers.errors import TimedOut

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
#: The size of the test below.
MESSAGES, KILLS = int(os.environ.get("FAULT_MESSAGES", 2000)), int(os.environ.get("FAULT_KILLS", 3))
BUCKET, COLLECTIONS = "events", ("rtc", "insar", "water")
CONSUMER = """
import sys
from helpers import settings
from helpers.catalog import store, pgstac, checking, consuming, loading
known = settings.load()
with store.connect(sys.argv[2]) as catalogue:
    print("ready", flush=True)
    loading.consume(sys.argv[1], catalogue, settings=known, until=3600, batch=100, invisible_seconds=3,
                    show=lambda line: print(line, flush=True))
"""


def item(name: str, collection: str = "rtc", version: int = 0) -> dict:
    month = version % 3 + 1  # an item that changes also moves
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": collection,
        "geometry": {"type": "Point", "coordinates": [version % 180, 0.5]},
        "bbox": [version % 180, 0.5, version % 180, 0.5],
        "properties": {"datetime": f"2026-{month:02}-03T04:05:06Z", "version": version},
        "links": [{"rel": "collection", "href": f"https://stac.example/collections/{collection}"}],
        "assets": {"data": {"href": f"s3://archive/{name}.tif"}},
    }


def collection(name: str) -> dict:
    extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
    about = {"type": "Collection", "stac_version": "1.0.0", "description": name, "license": "proprietary"}
    return about | {"id": name, "links": [], "extent": extent}


@pytest.fixture
def catalogue(catalog_database):
    with connect(catalog_database) as store:
        for name in COLLECTIONS:
            store.put_collection(collection(name))
        with psycopg.connect(catalog_database) as connection:
            connection.execute("UPDATE pgstac.collections SET partition_trunc = 'month'")
        yield store


@pytest.fixture
def sqs(settings):
    return objectstore.client("sqs", settings)


@pytest.fixture
def queue(sqs):
    return new_queue(sqs)[0]


def new_queue(sqs, receives: int = 3) -> tuple[str, str]:
    """URLs of a queue and of its dead-letter queue."""
    dead = sqs.create_queue(QueueName="dead")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": str(receives)})
    return sqs.create_queue(QueueName="live", Attributes={"RedrivePolicy": policy})["QueueUrl"], dead


def send(sqs, queue: str, messages: list[dict]) -> list[str]:
    """Send messages ({"body", "time"?}); their ids, in order."""
    ids: dict[int, str] = {}
    for some in batched(enumerate(messages), 10, strict=False):
        entries = [{"Id": str(n), "MessageBody": one["body"]} for n, one in some]
        for entry, (_, one) in zip(entries, some, strict=True):
            if "time" in one:
                entry["MessageAttributes"] = {"eventTime": {"DataType": "String", "StringValue": one["time"]}}
        answer = sqs.send_message_batch(QueueUrl=queue, Entries=entries)
        assert not answer.get("Failed")
        ids |= {int(one["Id"]): one["MessageId"] for one in answer["Successful"]}
    return [ids[n] for n in range(len(messages))]


def drained(sqs, queue: str) -> dict[str, str]:
    """Bodies of all messages of a queue by their ids; they are taken out."""
    found: dict[str, str] = {}
    while some := sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages"):
        found |= {one["MessageId"]: one["Body"] for one in some}
        entries = [{"Id": str(n), "ReceiptHandle": one["ReceiptHandle"]} for n, one in enumerate(some)]
        sqs.delete_message_batch(QueueUrl=queue, Entries=entries)
    return found


def waiting(sqs, queue: str) -> int:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    answer = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=names)
    return sum(map(int, answer["Attributes"].values()))


def notification(key: str, when: datetime) -> str:
    about = {"bucket": {"name": BUCKET}, "object": {"key": quote_plus(key), "sequencer": "00"}}
    record = {"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "eventTime": when.isoformat(), "s3": about}
    return json.dumps({"Records": [record]})


def history(count: int, chance: random.Random) -> tuple[list[dict], dict[tuple[str, str], int], set[int]]:
    """Messages in the order of sending, the version that each item is to have, and which messages are poison.

    Every fifth item is told of again later, with something new.
    """
    told: list[dict] = []
    expected: dict[tuple[str, str], int] = {}
    while len(told) < count * 0.95:
        n = len(told)
        name = f"item-{chance.randrange(n) if n and chance.random() < 0.2 else n:05}"
        where = COLLECTIONS[int(name[-2:]) % 3]
        made = item(name, where, version=n)
        poison = chance.random() < 0.02
        if poison:
            made |= chance.choice([{"geometry": None}, {"properties": {"datetime": "soon"}}, {"links": 5}])
        else:
            expected[where, name] = n
        told.append({"item": made, "when": NOON + timedelta(seconds=n), "poison": poison})
    for n in chance.sample(range(len(told) - 30), len(told) // 20):  # out of order
        told.insert(n + chance.randrange(1, 30), told.pop(n))
    for one in chance.choices([one for one in told if not one["poison"]], k=count - len(told)):  # twice
        told.insert(chance.randrange(len(told)), one)
    return told, expected, {n for n, one in enumerate(told) if one["poison"]}


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_exactly_what_the_events_say(
    catalogue, catalog_database, sqs, s3, environment
):
    chance = random.Random(6)
    told, expected, poison = history(MESSAGES, chance)
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    queue, dead = new_queue(sqs, receives=KILLS + 3)
    messages = []
    for n, one in enumerate(told):
        text, when = json.dumps(one["item"]), one["when"]
        if n % 6 == 5:  # some point to an object, most hold the item
            key = f"new items/{one['item']['id']}+{int((when - NOON).total_seconds())}.json"
            s3.put_object(Bucket=BUCKET, Key=key, Body=text)
            messages.append({"body": notification(key, when)})
        else:
            messages.append({"body": text, "time": when.isoformat()})
    ids = send(sqs, queue, messages)
    began = time.monotonic()

    for _ in range(KILLS):
        command = [sys.executable, "-c", CONSUMER, queue, catalog_database]
        child = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)
        try:
            for _ in range(1 + chance.randrange(4)):  # it is ready, and has loaded so many batches
                child.stdout.readline()
            time.sleep(chance.uniform(0, 0.5))
        finally:
            child.kill()
            child.communicate()
    killed_with = sum(map(catalogue.count, COLLECTIONS))
    loader = loading.Loader(catalogue, fetch=Fetcher(room_of(environment)))
    while waiting(sqs, queue):
        loading.consume(
            queue, catalogue, settings=room_of(environment), loader=loader, until="empty", batch=1000, show=quiet
        )
    print(f"{len(told):,} messages, {KILLS} kills ({killed_with:,} items then): {time.monotonic() - began:.1f} s")

    found = {(one["collection"], one["id"]): one for one in catalogue.search(limit=2 * len(told))}
    assert {name: one["properties"]["version"] for name, one in found.items()} == expected
    assert sum(map(catalogue.count, COLLECTIONS)) == len(expected)  # and none is there twice
    latest = {(o["item"]["collection"], o["item"]["id"], o["item"]["properties"].get("version")): o for o in told}
    assert all(one == latest[*name, one["properties"]["version"]]["item"] for name, one in found.items())
    refused = drained(sqs, dead)
    assert set(refused) == {ids[n] for n in poison}
    reasons = catalogue.failures(list(refused))
    assert set(reasons) == set(refused)
    assert all(any(word in why for word in ("geometry", "properties", "links")) for why in reasons.values())


def room_of(environment):
    from helpers import settings

    return settings.load()


def quiet(line: str) -> None:
    pass


def test_it_ends_when_the_queue_is_empty_and_says_what_it_did(catalogue, settings, sqs, queue):
    send(sqs, queue, [{"body": json.dumps(item(f"i{n}"))} for n in range(25)] + [{"body": "rubbish"}])
    lines: list[str] = []
    done = loading.consume(queue, catalogue, settings=settings, batch=100, wait_seconds=0, show=lines.append)
    assert done.items.stored == catalogue.count("rtc") == 25
    assert [why[:14] for why in done.failed.values()] == ["it is not JSON"]
    assert lines[0] == "26 messages: 25 items stored, 1 failed"
    assert str(done).startswith(f"{done.messages} messages in ")  # the one that failed came several times
    assert str(done).endswith(" s: 25 items stored, 1 failed")
    assert waiting(sqs, queue) == 0


def test_what_a_batch_did_is_told_whole_and_without_zeros(catalogue, settings, sqs, queue):
    lines: list[str] = []

    def consume(*messages: dict):
        send(sqs, queue, list(messages))
        return loading.consume(queue, catalogue, settings=settings, wait_seconds=0, show=lines.append)

    fresh = {"body": json.dumps(item("i1")), "time": NOON.isoformat()}
    consume(fresh)
    old = consume(fresh, fresh | {"time": (NOON - timedelta(days=1)).isoformat()})
    assert lines == ["1 message: 1 item stored", "2 messages: 1 stale, 1 duplicate"]
    assert str(old).endswith(" s: 1 stale, 1 duplicate") and "Consumed(messages=2, " in repr(old)
    assert str(consume()).startswith("no messages in ") and len(lines) == 2


def test_sigterm_ends_it_between_two_batches_and_nothing_stays_in_hand(
    catalogue, catalog_database, sqs, queue, environment
):
    send(sqs, queue, [{"body": json.dumps(item(f"i{n}"))} for n in range(300)])
    command = [sys.executable, "-c", CONSUMER.replace("batch=100", "batch=20"), queue, catalog_database]
    with subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True) as child:
        for _ in range(3):
            child.stdout.readline()
        child.terminate()
        child.communicate(timeout=30)
    assert child.returncode == 0
    left = waiting(sqs, queue)
    assert 0 < left < 300
    assert catalogue.count("rtc") == 300 - left
    assert len(drained(sqs, queue)) == left  # visible at once: none was in hand


def test_an_event_ends_it(catalogue, settings, queue):
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    loading.consume(queue, catalogue, settings=settings, until=stop, wait_seconds=0, show=quiet)
    assert loading.consume(queue, catalogue, settings=settings, until=0.2, wait_seconds=0, show=quiet).messages == 0


class Flaky:
    """A loader whose database is away at first."""

    def __init__(self, loader, failures: int):
        self._loader, self.left = loader, failures

    def __getattr__(self, name: str):
        return getattr(self._loader, name)

    def load(self, records):
        self.left -= 1
        if self.left >= 0:
            raise TimedOut("The database does not answer.")
        return self._loader.load(records)


def test_while_the_database_is_away_messages_are_kept(catalogue, settings, sqs, queue, monkeypatch):
    monkeypatch.setattr("helpers.catalog.consuming.FIRST", 0.01)
    send(sqs, queue, [{"body": json.dumps(item("one"))}])
    loader = Flaky(loading.Loader(catalogue, fetch=Fetcher(settings)), failures=4)
    done = loading.consume(queue, catalogue, settings=settings, loader=loader, wait_seconds=0, show=quiet)
    assert (done.messages, catalogue.count("rtc")) == (1, 1)  # it was received once, and not given back


def test_when_the_database_stays_away_messages_are_given_back(catalogue, settings, sqs, queue, monkeypatch):
    monkeypatch.setattr("helpers.catalog.consuming.FIRST", 0.01)
    monkeypatch.setattr("helpers.catalog.consuming.PATIENCE", 0.05)
    send(sqs, queue, [{"body": json.dumps(item("one"))}])
    loader = Flaky(loading.Loader(catalogue), failures=10_000)
    with pytest.raises(TimedOut):
        loading.consume(queue, catalogue, settings=settings, loader=loader, wait_seconds=0, show=quiet)
    assert len(drained(sqs, queue)) == 1


def test_messages_in_hand_stay_invisible_however_long_they_take(catalogue, settings, sqs, queue):
    send(sqs, queue, [{"body": json.dumps(item("one"))}])
    seen: list[dict] = []

    class Slow(Flaky):
        def load(self, records):
            for _ in range(8):
                time.sleep(0.3)
                seen.extend(sqs.receive_message(QueueUrl=queue).get("Messages", []))
            return super().load(records)

    slow = Slow(loading.Loader(catalogue), failures=0)
    loading.consume(queue, catalogue, settings=settings, loader=slow, invisible_seconds=1, wait_seconds=0, show=quiet)
    assert not seen
    assert waiting(sqs, queue) == 0


def test_a_database_that_cuts_connections_again_and_again_gets_everything(
    catalogue, catalog_database, settings, sqs, queue, monkeypatch
):
    monkeypatch.setattr("helpers.catalog.consuming.FIRST", 0.02)
    send(sqs, queue, [{"body": json.dumps(item(f"i{n % 150}", version=n))} for n in range(300)])
    others = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = %s"
    )
    cuts, stop = [], threading.Event()

    def cut() -> None:
        with psycopg.connect(catalog_database, autocommit=True) as connection:
            while not stop.wait(0.3) and len(cuts) < 5:
                cuts.append(connection.execute(others, [catalog_database.rpartition("/")[2]]).fetchone()[0])

    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        done = loading.consume(queue, catalogue, settings=settings, batch=20, wait_seconds=0, show=quiet)
    finally:
        stop.set()
        cutter.join()
    assert sum(cuts) > 1
    assert not done.failed
    assert waiting(sqs, queue) == 0
    with connect(catalog_database) as store:
        found = store.search()
        assert len(found) == store.count("rtc") == 150
    assert all(one["properties"]["version"] >= 150 for one in found)


def test_connections_that_the_server_cut_are_opened_again(catalogue, catalog_database):
    catalogue.load("rtc", [Entry(item("one"), Origin(NOON))])
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = %s"
    with psycopg.connect(catalog_database) as connection:
        connection.execute(others, [catalog_database.rpartition("/")[2]])
    with pytest.raises(TimedOut):
        catalogue.load("rtc", [Entry(item("two"), Origin(NOON))])
    assert catalogue.load("rtc", [Entry(item("two"), Origin(NOON))]).stored == 1


def test_a_missing_permission_or_bucket_is_a_failure_and_a_missing_object_is_not(catalogue, settings, s3):
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    keys = ["a b/é+1.json", "a%2Fb.json", "odd//twice.json", "/odd.json"]
    for key in keys:
        s3.put_object(Bucket=BUCKET, Key=key, Body=json.dumps(item(key)))
    records = [{"messageId": key, "body": notification(key, NOON)} for key in [*keys, "gone.json"]]
    nowhere = {"messageId": "nowhere", "body": notification("x.json", NOON).replace(BUCKET, "nowhere-at-all")}
    large = {"messageId": "large", "body": notification("large.json", NOON)}
    s3.put_object(Bucket=BUCKET, Key="large.json", Body=b" " * 5000)
    loader = loading.Loader(catalogue, fetch=Fetcher(settings, largest=4000))
    assert loader.load([*records, nowhere, large]) == ["nowhere", "large"]
    assert "nowhere-at-all does not exist" in loader.reasons["nowhere"]
    assert "5,000 bytes" in loader.reasons["large"]
    assert {one["id"] for one in catalogue.search()} == set(keys)
    etags = {key: etag for key, etag, *_ in catalogue.ledger(BUCKET)}
    assert etags[keys[0]] == s3.head_object(Bucket=BUCKET, Key=keys[0])["ETag"].strip('"')


#: What turns up in places where something else belongs.
JUNK: list = [
    None,
    True,
    2**63,
    2**70,
    1e308,
    float("nan"),
    "",
    "x" * 3000,
    "a\0b",
    "\ud800",
    [],
    {},
    [None],
    "infinity",
]
JUNK += ["9999-12-31T23:59:59-12:00", {"type": "Point"}, {"type": "Polygon", "coordinates": [[[0, 0], [1, 1, 1]]]}]


@pytest.mark.parametrize("check", [True, False])
def test_whatever_is_sent_the_good_ones_are_stored_and_the_rest_is_named(catalogue, check):
    chance, records = random.Random(6), []
    for n in range(300):
        body = json.loads(notification("k", NOON)) if n % 10 == 3 else item(f"i{n}")
        if n % 10:
            place = chance.choice([body, *(value for value in body.values() if isinstance(value, dict))])
            place[chance.choice(list(place))] = chance.choice(JUNK)
        records.append({"messageId": f"m{n}", "body": json.dumps(body)})
    loader = loading.Loader(catalogue, check=check, fetch=lambda objects: dict.fromkeys(objects, Fetched()))
    failed = loader.load(records)
    assert all(loader.reasons[name] for name in failed)
    assert set(catalogue.failures(failed)) == set(failed)
    good = {f"i{n}" for n in range(0, 300, 10)}
    assert good <= {one["id"] for one in catalogue.search()}
    assert len(failed) > 200 if check else len(failed) > 20


def test_an_old_version_is_loaded_as_it_was(catalogue, settings, s3):
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    old = s3.put_object(Bucket=BUCKET, Key="k", Body=json.dumps(item("one", version=1)))["VersionId"]
    s3.put_object(Bucket=BUCKET, Key="k", Body=json.dumps(item("one", version=2)))
    event = json.loads(notification("k", NOON))
    event["Records"][0]["s3"]["object"]["versionId"] = old
    loader = loading.Loader(catalogue, fetch=Fetcher(settings))
    loader.load([{"messageId": "m", "body": json.dumps(event)}])
    assert catalogue.item("rtc", "one")["properties"]["version"] == 1


def test_four_loaders_of_one_collection_and_a_reader_do_not_disturb_each_other(catalogue, catalog_database):
    failed: list[BaseException] = []
    stop, times = threading.Event(), []

    def write(part: int) -> None:
        try:
            with connect(catalog_database) as store:
                for n in range(6):
                    some = [item(f"i{k}", version=n + k) for k in range(part * 50, part * 50 + 200)]
                    store.load("rtc", [Entry(one, Origin(NOON + timedelta(minutes=n))) for one in some])
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            failed.append(error)

    def look() -> None:
        try:
            with connect(catalog_database) as store:
                while not stop.is_set():
                    began = time.perf_counter()
                    store.search(collections=["rtc"], datetime="2026-02-01T00:00:00Z/2026-03-31T00:00:00Z", limit=10)
                    times.append(time.perf_counter() - began)
                    stop.wait(0.01)
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    reader = threading.Thread(target=look)
    writers = [threading.Thread(target=write, args=[part]) for part in range(4)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert not failed
    found = catalogue.search(collections=["rtc"])
    assert len(found) == catalogue.count("rtc") == 350
    assert all(one["properties"]["version"] == int(one["id"][1:]) + 5 for one in found)
    p95 = statistics.quantiles(times, n=20)[-1]
    print(f"{len(times)} searches beside four loaders: median {statistics.median(times):.3f} s, p95 {p95:.3f} s")
    assert p95 < 2


def test_a_time_of_another_zone_is_stored_in_utc(catalogue):
    """pgstac cuts the month from the text: in UTC it is that of the day before."""
    late = item("late")
    late["properties"]["datetime"] = "2024-03-01T00:30:00+02:00"
    loader = loading.Loader(catalogue)
    assert loader.load([{"messageId": "m", "body": json.dumps(late)}]) == [], loader.reasons
    assert catalogue.item("rtc", "late")["properties"]["datetime"] == "2024-02-29T22:30:00Z"
