"""Bucket and catalogue are compared key by key, however many there are, and repaired by announcing again."""

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from uuid import uuid4

import catalog_items
import pytest

from helpers import objectstore
from helpers.catalog import drift as room
from helpers.catalog import messages
from helpers.catalog import store as stores
from helpers.catalog.drift import Repaired, compare, repair
from helpers.catalog.fetching import Fetched
from helpers.catalog.loading import Loader
from helpers.catalog.messages import Located
from helpers.catalog.publishing import key_of, publish_objects
from helpers.catalog.store import Entry, Origin, Removal
from helpers.errors import Rejected

BUCKET = "drifting-items"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def item(name: str, *, collection: str = "rtc", **properties) -> dict:
    made = catalog_items.item(name, collection=collection)
    return made | {"properties": made["properties"] | properties}


class Ledger:
    """A catalogue of which only the ledger is asked: rows by key."""

    def __init__(self, rows: dict[str, str]):
        self.rows, self.removed = rows, []

    def ledger(self, bucket: str, prefix: str = ""):
        keys = sorted((key for key in self.rows if key.startswith(prefix)), key=str.encode)
        return ((key, self.rows[key], "rtc", key) for key in keys)

    def origins(self, collection, ids):
        return {}

    def remove(self, removals) -> int:
        self.removed += removals
        return len(removals)


class Bucket:
    """An S3 client over keys with ETags, that counts the pages it was asked for."""

    def __init__(self, objects: dict[str, str], page: int):
        self.keys, self.objects, self.page, self.pages = sorted(objects, key=str.encode), objects, page, 0

    def head_bucket(self, Bucket):
        return {"ResponseMetadata": {"HTTPHeaders": {"date": format_datetime(datetime.now(UTC), usegmt=True)}}}

    def get_paginator(self, _):
        return self

    def paginate(self, Bucket, Prefix, StartAfter=""):
        keys = [key for key in self.keys if key.startswith(Prefix) and key > StartAfter]
        for start in range(0, max(len(keys), 1), self.page):
            self.pages += 1
            page = keys[start : start + self.page]
            yield {
                "Contents": [{"Key": k, "ETag": f'"{self.objects[k]}"', "Size": 1, "LastModified": NOON} for k in page]
            }


@pytest.fixture
def s3(settings):
    s3 = objectstore.client("s3", settings)
    objectstore.ensure_bucket(s3, BUCKET, None, create=True)
    return s3


def put(s3, key: str, text: str = "{}") -> str:
    return s3.put_object(Bucket=BUCKET, Key=key, Body=text.encode())["ETag"].strip('"')


def keys(found) -> list[str]:
    return [one.key for one in found]


# --- compare ---


@pytest.mark.parametrize("way", ["settings", "client"])
def test_what_differs_is_told_apart(s3, settings, way):
    etags = {name: put(s3, f"items/{name}.json", name) for name in ("same", "stale", "missing")}
    for other in ("items/scene.tif", "items/collection.json", "elsewhere/x.json", "itemsofothers/x.json"):
        put(s3, other)
    ledger = Ledger({"items/same.json": etags["same"], "items/stale.json": "of before", "items/gone.json": "e"})
    found = compare(settings if way == "settings" else s3, ledger, BUCKET, "items/")
    assert keys(found.missing) == ["items/missing.json"] and found.missing[0].etag == etags["missing"]
    assert keys(found.stale) == ["items/stale.json"]
    assert [(one.key, one.item_id) for one in found.orphaned] == [("items/gone.json", "items/gone.json")]
    assert found.counts() == {"missing": 1, "stale": 1, "orphaned": 1, "held": 0, "same": 1}
    assert found.others == 2 and found
    assert [row["drift"] for row in found.table()] == ["missing", "stale", "orphaned"]
    assert found.report() == f"s3://{BUCKET}/items/ and the catalogue differ: 1 missing, 1 stale, 1 orphaned, 1 same."


def test_where_nothing_differs_it_says_so(s3, settings):
    ledger = Ledger({"items/a.json": put(s3, "items/a.json")})
    found = compare(settings, ledger, BUCKET, "items/")
    assert not found and found.report() == f"s3://{BUCKET}/items/ and the catalogue agree about 1 item."
    assert not compare(settings, Ledger({}), BUCKET, "nothing/here/")


def test_a_prefix_may_end_in_the_middle_of_a_name(s3, settings):
    for name in ("S1A_1", "S1A_2", "S1B_1", "S1", "S1@\N{ROCKET}"):
        put(s3, f"items/{name}.json")
    for way in (settings, s3):
        assert keys(compare(way, Ledger({}), BUCKET, "items/S1A").missing) == ["items/S1A_1.json", "items/S1A_2.json"]
        assert len(compare(way, Ledger({}), BUCKET, "items/S1A_1.json").missing) == 1


def test_keys_of_every_kind_are_compared(s3, settings):
    odd = ["a//b", "a%2Fb", "a b+c", "ü", "~", "a#b", "a/./b", "\N{SNOWMAN}", "\N{ROCKET}", "\uff5e"]
    etags = {f"i/{name}.json": put(s3, f"i/{name}.json", name) for name in odd}
    found = compare(settings, Ledger(etags), BUCKET, "i/")
    assert (found.counts()["same"], bool(found)) == (len(odd), False)


def test_several_items_of_one_object_are_one_object(s3, settings):
    class Several(Ledger):
        def ledger(self, bucket, prefix=""):
            for key, etag, collection, _ in super().ledger(bucket, prefix):
                yield from ((key, etag, collection, f"{key}{n}") for n in range(3))

    etags = {f"i/{n:04}.json": put(s3, f"i/{n:04}.json") for n in range(4)}
    found = compare(settings, Several(etags | {"i/9.json": "gone"}), BUCKET, "i/")
    assert found.counts() == {"missing": 0, "stale": 0, "orphaned": 3, "held": 0, "same": 4}


def test_a_bucket_that_is_not_there_is_said_so(settings):
    with pytest.raises(Rejected, match="does not exist"):
        compare(settings, Ledger({}), "not-there-at-all")


def names(count: int, chance: random.Random) -> list[str]:
    """Keys as people make them: dates, tiles, hexadecimal, few or many folders."""
    kinds = [
        lambda: (
            f"items/{chance.choice('ab')}/S2A_{chance.randrange(2014, 2027)}{chance.randrange(1, 13):02}"
            f"{chance.randrange(1, 29):02}_T{chance.randrange(10, 60)}{chance.choice('ABCXYZ')}.json"
        ),
        lambda: f"items/{chance.getrandbits(48):012x}.json",
        lambda: f"items/{chance.randrange(10_000)}.json",
        lambda: f"items/ü{chance.choice('äöü~%')}/{chance.random()}.json",
    ]
    make = chance.choice(kinds)
    return list({make() for _ in range(count)})


@pytest.mark.parametrize("seed", range(12))
def test_pages_fetched_at_a_time_are_as_good_as_one_long_listing(monkeypatch, seed):
    chance = random.Random(seed)
    monkeypatch.setattr(room, "PAGE", 10)
    monkeypatch.setattr(room, "STEP", 9)
    here = {key: f"e{chance.randrange(2)}" for key in names(1_200, chance)}
    share = chance.choice([0.0, 0.02, 0.5, 0.98])
    there = {key: "e0" for key in here if chance.random() < share}
    there |= dict.fromkeys(names(30, chance), "e0")
    found = compare(Bucket(here, 10), Ledger(there), BUCKET, "items/", workers=4)
    order = sorted({*here, *there}, key=str.encode)
    assert keys(found.missing) == [key for key in order if key in here and key not in there]
    assert keys(found.stale) == [key for key in order if key in here and key in there and here[key] != there[key]]
    assert keys(found.orphaned) == [key for key in order if key not in here]
    assert found.counts()["same"] == sum(here.get(key) == "e0" for key in there)


def test_a_long_stretch_that_the_catalogue_does_not_know_is_shared_out(monkeypatch):
    """100 pages in one folder, and an empty catalogue: no more pages one after the other than a few."""
    monkeypatch.setattr(room, "PAGE", 100)
    keys_ = [f"items/S1A_IW_{day:%Y%m%d}T{hour:02}.json" for day in days() for hour in range(24)]
    longest = []

    class Watched(room.Listing):
        def stretch(self, after, until):
            found = super().stretch(after, until)
            longest.append(len(found.items))
            return found

    monkeypatch.setattr(room, "Listing", Watched)
    bucket = Bucket(dict.fromkeys(keys_, "e"), 100)
    found = compare(bucket, Ledger({}), BUCKET, "items/", workers=8)
    assert len(found.missing) == len(keys_)
    assert max(longest) <= 100 * room.LONG and bucket.pages < 5 * len(keys_) / 100


def days() -> list[datetime]:
    return [NOON + timedelta(days=n) for n in range(420)]


# --- repair ---


@pytest.fixture
def queue(settings):
    sqs = objectstore.client("sqs", settings)
    url = sqs.create_queue(QueueName=f"drift-{uuid4().hex[:8]}")["QueueUrl"]

    def received() -> list[dict]:
        found = []
        while page := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, AttributeNames=["All"]).get("Messages"):
            found += page
            for one in page:
                sqs.delete_message(QueueUrl=url, ReceiptHandle=one["ReceiptHandle"])
        return found

    return sqs, url, received


def test_after_a_repair_bucket_and_catalogue_agree(s3, settings, queue, catalog_database):
    """Over the real thing: events that were lost, an update that was lost, an object deleted without a word."""
    sqs, url, received = queue

    def fetch(objects: list[Located]) -> dict[Located, Fetched]:
        answers = {one: s3.get_object(Bucket=one.bucket, Key=one.key) for one in objects}
        return {one: Fetched(answer["Body"].read(), answer["ETag"].strip('"')) for one, answer in answers.items()}

    with stores.connect(catalog_database) as store:
        extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
        about = {"type": "Collection", "stac_version": "1.1.0", "description": "", "license": "other", "links": []}
        store.put_collection(about | {"id": "rtc", "extent": extent})
        loader = Loader(store, fetch=fetch)
        publish_objects([item(f"s{n}") for n in range(6)], s3=s3, bucket=BUCKET)

        first = compare(settings, store, BUCKET, "items/")
        assert first.counts() == {"missing": 6, "stale": 0, "orphaned": 0, "held": 0, "same": 0}
        assert repair(first, sqs=sqs, queue_url=url) == Repaired(announced=6)
        assert loader.load(received()) == [] and store.count("rtc") == 6
        assert not compare(settings, store, BUCKET, "items/")

        publish_objects([item("s1", note="new"), item("new")], s3=s3, bucket=BUCKET)
        s3.delete_object(Bucket=BUCKET, Key="items/rtc/s2.json")
        second = compare(settings, store, BUCKET, "items/")
        assert second.counts() == {"missing": 1, "stale": 1, "orphaned": 1, "held": 0, "same": 4}
        assert repair(second, sqs=sqs, queue_url=url) == Repaired(announced=2, left=1)
        assert loader.load(received()) == []
        assert store.item("rtc", "s1")["properties"]["note"] == "new" and store.item("rtc", "s2")

        third = compare(settings, store, BUCKET, "items/")
        assert third.counts() == {"missing": 0, "stale": 0, "orphaned": 1, "held": 0, "same": 6}
        assert repair(third, store=store, remove_orphans=True) == Repaired(removed=1)
        assert store.item("rtc", "s2") is None
        assert not compare(settings, store, BUCKET, "items/")
        # What was announced twice changes nothing.
        repair(second, sqs=sqs, queue_url=url)
        assert loader.load(received()) == [] and not compare(settings, store, BUCKET, "items/")


@pytest.fixture
def catalogue(tmp_path):
    extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
    about = {"type": "Collection", "stac_version": "1.1.0", "description": "", "license": "other", "links": []}
    with stores.connect(f"sqlite:///{tmp_path}/catalogue.sqlite") as store:
        for name in ("rtc", "odd/name"):
            store.put_collection(about | {"id": name, "extent": extent})
        yield store


def test_an_object_whose_item_came_by_a_newer_one_is_held_and_no_difference(s3, settings, queue, catalogue):
    sqs, url, received = queue
    for run in ("runs/one", "runs/two"):
        publish_objects(
            [item("both"), item("a b", collection="odd/name"), item(run[5:])], s3=s3, bucket=BUCKET, prefix=run
        )
    put(s3, "runs/one/rtc/told.json")
    later = datetime.now(UTC) + timedelta(seconds=5)
    of = [(run, "rtc", name) for run, name in (("one", "one"), ("two", "two"), ("two", "both"))] + [
        ("two", "odd/name", "a b")
    ]
    for run, name, item_id in of:
        key = key_of(item(item_id, collection=name), f"runs/{run}")
        etag = s3.head_object(Bucket=BUCKET, Key=key)["ETag"].strip('"')
        origin = Origin(later, bucket=BUCKET, key=key, etag=etag)
        catalogue.load(name, [Entry(item(item_id, collection=name), origin)])
    catalogue.load("rtc", [Entry(item("told"), Origin(later))])

    found = compare(settings, catalogue, BUCKET, "runs/")
    assert {one.key: one.by for one in found.held} == {
        "runs/one/rtc/both.json": f"s3://{BUCKET}/runs/two/rtc/both.json",
        "runs/one/odd%2Fname/a%20b.json": f"s3://{BUCKET}/runs/two/odd%2Fname/a%20b.json",
        "runs/one/rtc/told.json": "a message",
    }
    assert found.counts() == {"missing": 0, "stale": 0, "orphaned": 0, "held": 3, "same": 4} and not found
    assert {"drift": "held", "key": "runs/one/rtc/told.json", "known": "held by a message"} in found.table()
    assert "agree about 4 items; 3 objects held" in found.report()
    assert repair(found, sqs=sqs, queue_url=url) == Repaired() and received() == []


def test_an_object_that_is_newer_than_what_holds_its_item_is_missing(s3, settings, catalogue):
    publish_objects([item("both")], s3=s3, bucket=BUCKET, prefix="newer")
    for origin in (Origin(NOON, bucket=BUCKET, key="older/rtc/both.json"), Origin(NOON + timedelta(days=1))):
        catalogue.load("rtc", [Entry(item("both"), origin)])
        found = compare(settings, catalogue, BUCKET, "newer/")
        assert keys(found.missing) == ["newer/rtc/both.json"] and not found.held


def test_what_somebody_else_took_out_of_the_catalogue_holds_nothing(s3, settings, catalogue):
    publish_objects([item("out")], s3=s3, bucket=BUCKET, prefix="out")
    origin = Origin(datetime.now(UTC) + timedelta(hours=1), bucket=BUCKET, key="elsewhere.json")
    catalogue.load("rtc", [Entry(item("out"), origin)])
    assert catalogue.remove([Removal(BUCKET, "elsewhere.json", replace(origin, time=origin.time + timedelta(1)))]) == 1
    assert keys(compare(settings, catalogue, BUCKET, "out/").missing) == ["out/rtc/out.json"]


def test_what_was_repaired_is_said_in_words():
    assert str(Repaired(2, 1, 3)) == "2 announced again, 1 orphaned item removed, 3 orphaned items left"
    assert (str(Repaired()), repr(Repaired(1))) == ("nothing to repair", "Repaired(announced=1, removed=0, left=0)")


def test_what_is_announced_is_an_event_of_the_time_it_happened(s3, settings, queue):
    sqs, url, received = queue
    put(s3, "i/old one.json")
    found = compare(settings, Ledger({}), BUCKET, "i/")
    found.missing = [found.missing[0]._replace(modified=NOON)]

    def origin():
        ((_, origin),) = [one for each in received() for one in messages.read(messages.message(each)).written]
        return origin

    repair(found, sqs=sqs, queue_url=url)
    told = origin()
    # A listing knows the second only.
    assert (told.key, told.etag) == ("i/old one.json", found.missing[0].etag)
    assert NOON <= told.time < NOON + timedelta(seconds=1)
    repair(found, sqs=sqs, queue_url=url, insist=True)
    assert abs(origin().time - found.at) < timedelta(milliseconds=2)


def test_orphans_are_removed_only_when_asked_and_as_of_the_comparison(s3, settings):
    ledger = Ledger({"i/gone.json": "e"})
    found = compare(settings, ledger, BUCKET, "i/")
    assert repair(found) == Repaired(left=1) and ledger.removed == []
    with pytest.raises(Rejected, match="store="):
        repair(found, remove_orphans=True)
    assert repair(found, store=ledger, remove_orphans=True) == Repaired(removed=1)
    ((removal),) = ledger.removed
    assert (removal.bucket, removal.key, removal.origin.time) == (BUCKET, "i/gone.json", found.at)


def test_a_repair_without_a_place_to_announce_to_is_refused(s3, settings):
    put(s3, "i/a.json")
    with pytest.raises(Rejected, match="queue_url="):
        repair(compare(settings, Ledger({}), BUCKET, "i/"))
