"""Both catalogues keep one promise: the newest wins in whatever order events arrive, and items come out as sent."""

import itertools
import random
import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote, urlsplit

import psycopg
import pytest

from helpers.catalog import store as stores
from helpers.catalog.store import Entry, Loaded, Origin, Removal
from helpers.errors import NotConfigured, Rejected, TimedOut

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def database(catalog_cluster):
    """One database for the whole file: what a test leaves in it is deleted before the next."""
    yield catalog_cluster.create("store_spec")
    catalog_cluster.drop("store_spec")


@pytest.fixture(params=["pgstac", "embedded"])
def dsn(request, tmp_path):
    if request.param == "pgstac":
        dsn = request.getfixturevalue("database")
        with stores.connect(dsn) as store, psycopg.connect(dsn) as connection:
            for name in store.collections():
                store.delete_collection(name)
            connection.execute("TRUNCATE recipes.ledger, recipes.removals, recipes.failures")
        return dsn
    pytest.importorskip("helpers.catalog.embedded")
    return f"sqlite:///{tmp_path}/catalogue.sqlite"


@pytest.fixture
def store(dsn):
    with stores.connect(dsn) as store:
        store.put_collection(collection("rtc"))
        yield store


def collection(name: str, **more) -> dict:
    extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
    about = {"type": "Collection", "stac_version": "1.0.0", "description": name, "license": "proprietary", "links": []}
    return about | {"id": name, "extent": extent} | more


def item(name: str, *, when: str = "2026-02-03T04:05:06Z", at: float = 0.0, **properties) -> dict:
    ring = [[at, 0.0], [at + 1, 0.0], [at + 1, 1.0], [at, 1.0], [at, 0.0]]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [],
        "id": name,
        "collection": "rtc",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [at, 0.0, at + 1, 1.0],
        "properties": {"datetime": when} | properties,
        "links": [],
        "assets": {"vv": {"href": f"s3://archive/{name}_VV.tif", "roles": ["data"]}},
    }


def after(minutes: float, **more) -> Origin:
    return Origin(NOON + timedelta(minutes=minutes), **more)


def of(key: str, minutes: float, etag: str = "e1", sequencer: str = "") -> Origin:
    return after(minutes, bucket="items", key=key, etag=etag, sequencer=sequencer)


def entry(name: str, minutes: float = 0, message: str = "", origin: Origin | None = None, **more) -> Entry:
    return Entry(item(name, **more), origin or after(minutes), message)


def test_items_come_out_as_they_went_in(store):
    sent = [
        item("plain"),
        item("offset", when="2026-02-28T23:30:00.25-02:00"),
        item("range", when=None, start_datetime="2026-02-01T00:00:00Z", end_datetime="2026-04-01T00:00:00Z"),
        item(
            "words",
            title='Über \N{SNOWMAN}nicode\'s "quotes" \\ and\nlines',
            none=None,
            empty=[],
            deep={"a": [None, {}]},
        ),
        item("numbers", big=9007199254740993, small=1e-300, negative=-9223372036854775808, pi=3.141592653589793),
        item("at an odd place", at=12.345678901234567),
    ]
    assert store.load("rtc", [Entry(one, after(0)) for one in sent]) == Loaded(stored=6)
    assert {one["id"]: one for one in store.search(collections=["rtc"])} == {one["id"]: one for one in sent}
    assert store.item("rtc", "plain") == sent[0]
    assert store.item("rtc", "another") is None
    assert store.item("another", "plain") is None
    assert store.count("rtc") == 6


def test_a_backslash_is_not_taken_for_the_beginning_of_a_nul(store):
    outcome = store.load("rtc", [entry("one", title="\\u0000"), entry("two", title="\\\0")])
    if store.kind == "embedded" and outcome.stored == 0:
        pytest.skip("the embedded store refuses both")
    assert (outcome.stored, list(outcome.refused)) == (1, ["two"])
    assert store.item("rtc", "one")["properties"]["title"] == "\\u0000"


def test_what_a_collection_says_of_its_assets_changes_no_item(store):
    described = {"vv": {"title": "VV", "roles": ["data", "sar"], "description": "d"}, "vh": {"title": "VH"}}
    store.put_collection(collection("rtc", item_assets=described))
    sent = item("one")
    sent["assets"] = {
        "vv": {"href": "s3://a/b", "roles": [], "title": "VV", "description": None},
        "x": {"href": "s3://a/x"},
    }
    store.load("rtc", [Entry(sent, after(0))])
    assert store.item("rtc", "one") == sent
    store.put_collection(collection("rtc", item_assets={"vv": {"type": "image/tiff"}}))
    assert store.item("rtc", "one") == sent


@pytest.mark.parametrize("at_once", [True, False], ids=["within a load", "across loads"])
def test_the_newest_wins_in_whatever_order_events_arrive(store, at_once):
    versions = [entry("one", minute, version=minute) for minute in range(3)]
    for n, order in enumerate(itertools.permutations(versions)):
        renamed = [Entry(e.item | {"id": f"one-{n}"}, e.origin) for e in order]
        if at_once:
            assert store.load("rtc", renamed) == Loaded(stored=1, stale=2)
        else:
            outcomes = [store.load("rtc", [each]) for each in renamed]
            assert sum(o.stored + o.stale for o in outcomes) == 3
        assert store.item("rtc", f"one-{n}")["properties"]["version"] == 2


def test_events_of_the_same_moment_are_ordered_by_their_sequencer(store):
    older, newer = of("k", 0, sequencer="0055AED6DCD902"), of("k", 0, sequencer="0055aed6dcd90281e5")
    for order in ([older, newer], [newer, older]):
        for origin in order:
            store.load("rtc", [entry("one", origin=origin, newer=origin is newer)])
        assert store.item("rtc", "one")["properties"]["newer"]
    assert of("k", 0, sequencer="AB").order == of("k", 0, sequencer="ab00").order < of("k", 0, sequencer="AB01").order


def test_of_equal_events_the_last_is_kept(store):
    store.load("rtc", [entry("one", version=1)])
    store.load("rtc", [entry("one", version=2)])
    assert store.item("rtc", "one")["properties"]["version"] == 2


def test_duplicates_are_counted_and_harmless(store):
    twice = [entry("one", message="m1"), entry("one", message="m2"), entry("two", message="m3")]
    assert store.load("rtc", twice) == Loaded(stored=2, duplicates=1)
    assert store.load("rtc", twice) == Loaded(stored=0, duplicates=3)
    assert store.count("rtc") == 2


def test_a_poison_item_is_named_and_the_rest_is_stored(store):
    good = [entry(f"good-{n}", message=f"g{n}") for n in range(20)]
    bad = [
        Entry(item("null") | {"geometry": None}, after(0), "no geometry"),
        entry("nul", message="nul", title="a\0b"),
        entry("surrogate", message="surrogate", title="\ud800"),
        entry("backwards", message="backwards", when=None, start_datetime="2026-02-02T00:00:00Z",
              end_datetime="2026-02-01T00:00:00Z"),
        entry("never", message="never", when="tomorrow"),
        entry("huge", message="huge", number=2**70),
        entry("x" * 5000, message="long"),
        Entry(item("odd") | {"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1, 5]]]}}, after(0), "odd"),
    ]  # fmt: skip
    mixed = good + bad
    random.Random(6).shuffle(mixed)
    outcome = store.load("rtc", mixed)
    assert set(outcome.refused) == {e.message_id for e in bad}
    assert all(outcome.refused.values())
    assert outcome.stored == store.count("rtc") == 20


def test_what_contradicts_the_collection_is_refused_before_it_spoils_every_search(store):
    store.put_collection(collection("rtc", item_assets={"vv": {"title": "VV"}}))
    odd = [item("a") | {"assets": {"vv": {"href": "x", "title": {"en": "VV"}}}}, item("b") | {"stac_version": {"a": 1}}]
    odd += [item("c") | {"assets": [1]}, item("d") | {"assets": {"vv": "x"}}]
    outcome = store.load("rtc", [Entry(one, after(0)) for one in [*odd, item("good")]])
    if store.kind == "pgstac":
        assert sorted(outcome.refused) == ["a", "b", "c", "d"]
    assert "good" in {one["id"] for one in store.search()}


def test_a_newer_poison_item_does_not_hide_an_older_good_one(store):
    poison = entry("one", 5, message="bad", title="a\0b")
    outcome = store.load("rtc", [entry("one", 0, message="good", version=1), poison])
    assert (outcome.stored, set(outcome.refused)) == (1, {"bad"})
    assert store.item("rtc", "one")["properties"]["version"] == 1


def test_an_item_that_moves_to_another_month_is_there_once(store, dsn):
    by_month(dsn)
    for minute, month in enumerate(["2026-02", "2026-03", "2026-02"]):
        others = [entry(f"other-{month}-{n}", when=f"{month}-05T00:00:00Z") for n in range(3)]
        store.load("rtc", [entry("mover", minute, when=f"{month}-10T00:00:00Z"), *others])
        assert [one["properties"]["datetime"] for one in store.search(ids=["mover"])] == [f"{month}-10T00:00:00Z"]
    assert store.count("rtc") == 7


def test_the_month_is_that_of_the_moment_not_of_how_it_is_written(store, dsn):
    by_month(dsn)
    store.load("rtc", [entry("one", when="2026-01-31T23:30:00-02:00"), entry("two", when="2026-01-31T23:30:00Z")])
    found = store.search(datetime="2026-02-01T00:00:00Z/2026-02-02T00:00:00Z")
    assert [one["id"] for one in found] == ["one"]


def by_month(dsn: str) -> None:
    if dsn.startswith("postgresql"):
        with psycopg.connect(dsn) as connection:
            connection.execute("UPDATE pgstac.collections SET partition_trunc = 'month'")


def test_what_came_from_a_removed_object_goes_and_no_late_event_brings_it_back(store):
    store.load("rtc", [entry("one", origin=of("a.json", 0)), entry("two", origin=of("b.json", 0))])
    assert store.remove([Removal("items", "a.json", of("a.json", 5))]) == 1
    assert store.load("rtc", [entry("one", origin=of("a.json", 3)), entry("one", 4)]).stale == 2
    assert [one["id"] for one in store.search()] == ["two"]
    assert store.load("rtc", [entry("one", origin=of("a.json", 6))]).stored == 1
    assert store.remove([Removal("items", "a.json", of("a.json", 5))]) == 0
    assert store.count("rtc") == 2


def test_a_removal_that_comes_before_its_object_counts_all_the_same(store):
    assert store.remove([Removal("items", "a.json", of("a.json", 5))]) == 0
    assert store.load("rtc", [entry("one", origin=of("a.json", 3)), entry("two", origin=of("b.json", 3))]).stale == 1
    assert [one["id"] for one in store.search()] == ["two"]


def test_a_removal_spares_what_came_at_that_very_event(store):
    store.load("rtc", [entry("old", origin=of("a.json", 0)), entry("new", origin=of("a.json", 5))])
    assert store.remove([Removal("items", "a.json", of("a.json", 5))]) == 1
    assert [one["id"] for one in store.search()] == ["new"]


def test_an_object_that_holds_another_item_now_no_longer_holds_the_old_one(store):
    if store.kind == "embedded" and not hasattr(store, "replaces"):
        pytest.skip("the embedded store leaves the old item; drift shows it as stale")
    store.load("rtc", [entry("old", origin=of("a.json", 0)), entry("other", origin=of("b.json", 0))])
    store.load(
        "rtc", [Entry(item("new"), of("a.json", 5), alone=True), Entry(item("other"), of("b.json", 5), alone=True)]
    )
    assert sorted(one["id"] for one in store.search()) == ["new", "other"]
    assert store.load("rtc", [Entry(item("old"), of("a.json", 3), alone=True)]).stale == 1
    several = [Entry(item("one"), of("a.json", 9)), Entry(item("two"), of("a.json", 9))]
    store.load("rtc", several)  # of a collection of items: whether others are in it is not known
    assert sorted(one["id"] for one in store.search()) == ["new", "one", "other", "two"]


def test_the_ledger_lists_objects_in_the_order_of_their_bytes(store, dsn):
    keys = ["a/1.json", "a-b/1.json", "a/É.json", "a/Z.json", "a_/2.json", "b/1.json", "a%/3.json"]
    store.load("rtc", [entry(f"item {key}", origin=of(key, 0, etag=f"etag {key}")) for key in keys])
    store.load("rtc", [entry("without an object"), entry("elsewhere", origin=after(0, bucket="other", key="a/1.json"))])
    ordered = sorted(keys, key=str.encode)
    assert list(store.ledger("items")) == [(key, f"etag {key}", "rtc", f"item {key}") for key in ordered]
    assert [key for key, *_ in store.ledger("items", "a/")] == ["a/1.json", "a/Z.json", "a/É.json"]
    assert [key for key, *_ in store.ledger("items", "a%")] == ["a%/3.json"]
    store.remove([Removal("items", "b/1.json", of("b/1.json", 1))])
    assert "b/1.json" not in {key for key, *_ in store.ledger("items")}


def test_it_tells_what_holds_an_item(store, dsn):
    entries = [entry("message", 1), entry("object", origin=of("a.json", 2)), entry("gone", origin=of("b.json", 3))]
    store.load("rtc", [*entries, entry("taken", 4)])
    store.remove([Removal("items", "b.json", after(5))])
    with closing(psycopg.connect(dsn) if store.kind == "pgstac" else sqlite3.connect(store.path)) as somebody:
        somebody.execute(f"DELETE FROM {'pgstac.' if store.kind == 'pgstac' else ''}items WHERE id = 'taken'")
        somebody.commit()
    asked = ["message", "object", "gone", "taken", "it's \N{SNOWMAN}", ""]
    assert store.origins("rtc", asked) == {"message": after(1), "object": of("a.json", 2)}
    assert store.origins("another", asked) == store.origins("rtc", []) == {}


def test_a_deleted_collection_takes_its_items_and_its_memory_along(store):
    store.put_collection(collection("other"))
    store.load("rtc", [entry("one", 5), entry("two", 5)])
    store.load("other", [Entry(item("one") | {"collection": "other"}, after(5))])
    assert store.delete_collection("rtc") == 2
    assert store.delete_collection("rtc") == 0
    assert set(store.collections()) == {"other"}
    assert store.count("other") == 1
    store.put_collection(collection("rtc"))
    assert store.load("rtc", [entry("one", 0)]).stored == 1


def test_a_collection_is_replaced_without_its_items(store):
    store.load("rtc", [entry("one")])
    store.put_collection(collection("rtc") | {"description": "better"})
    assert store.collections()["rtc"]["description"] == "better"
    assert store.count("rtc") == 1
    with pytest.raises(Rejected, match="id"):
        store.put_collection({"type": "Collection"})


def test_the_newest_text_of_a_collection_stays(store):
    for minute, kept in [(5, True), (3, False), (7, True), (7, True)]:
        assert store.put_collection(collection("timed") | {"description": f"at {minute}"}, after(minute)) is kept
    assert store.collections()["timed"]["description"] == "at 7"
    assert store.put_collection(collection("timed"))  # without a time: as asked
    store.delete_collection("timed")
    assert store.put_collection(collection("timed"), after(1))


def test_a_collection_that_is_not_there_is_refused(store):
    with pytest.raises(Rejected, match="'; DROP SCHEMA pgstac; --"):
        store.load("'; DROP SCHEMA pgstac; --", [entry("one")])
    assert store.load("rtc", [entry("'; DROP SCHEMA pgstac; --")]).stored == 1


def test_search_by_place_and_time(store):
    store.load("rtc", [entry(f"at-{n}", at=10.0 * n, when=f"2026-02-{n + 1:02}T00:00:00Z") for n in range(10)])

    def ids(**query) -> list[str]:
        return [one["id"] for one in store.search(**query)]

    assert ids(bbox=[19.0, 0.0, 31.5, 1.0]) == ["at-3", "at-2"]  # the newest first
    assert ids(intersects={"type": "Point", "coordinates": [40.5, 0.5]}) == ["at-4"]
    assert ids(datetime="2026-02-09T00:00:00Z/..") == ["at-9", "at-8"]
    assert ids(ids=["at-1", "at-7"], collections=["rtc"]) == ["at-7", "at-1"]
    assert ids(collections=["other"]) == []
    assert ids(limit=2) == ["at-9", "at-8"]


def test_reasons_of_failures_are_kept_by_message(store):
    store.note_failures({"m1": ("rtc", "one", "no geometry"), "m2": ("", "", "not JSON \0")})
    store.note_failures({"m1": ("rtc", "one", "start after end")})
    store.note_failures({})
    known = store.failures(["m1", "m2", "m3"])
    assert known["m1"] == "start after end"
    assert known["m2"].startswith("not JSON")
    assert "m3" not in known


def test_everything_is_still_there_when_the_store_is_opened_again(store, dsn):
    store.load("rtc", [entry("one", origin=of("a.json", 5))])
    store.note_failures({"m": ("rtc", "one", "why")})
    store.close()
    store.close()
    with stores.connect(dsn) as again:
        assert again.load("rtc", [entry("one", origin=of("a.json", 3))]).stale == 1
        assert again.failures(["m"]) == {"m": "why"}
        assert again.kind in ("pgstac", "embedded")


def test_writers_of_one_collection_and_a_remover_take_turns(store, dsn):
    """Whatever the order in which they come to it: every item has its newest version, none of the removed is left."""
    failed: list[BaseException] = []

    def write(seed: int) -> None:
        chance = random.Random(seed)
        try:
            with stores.connect(dsn) as mine:
                for minute in chance.sample(range(10), 10):
                    names = chance.sample(range(30), 30)
                    mine.load("rtc", [entry(f"i{n}", origin=of(f"{n}.json", minute), minute=minute) for n in names])
                    mine.remove([Removal("items", f"{n}.json", of(f"{n}.json", 9.5)) for n in names if n % 10 == 0])
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            failed.append(error)

    threads = [threading.Thread(target=write, args=[seed]) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    found = store.search()
    assert sorted(one["id"] for one in found) == sorted(f"i{n}" for n in range(30) if n % 10)
    assert {one["properties"]["minute"] for one in found} == {9}


@pytest.mark.parametrize("dsn", ["pgstac"], indirect=True)
def test_a_load_and_a_removal_do_not_overlap(store, dsn):
    """A load must not miss a removal that is committed while it runs: it would bring the item back."""
    from helpers.catalog.pgstac import LOCKS, REMOVING

    store.load("rtc", [entry("before")])
    loading = threading.Thread(target=store.load, args=["rtc", [entry("one", origin=of("a.json", 0))]])
    with psycopg.connect(dsn) as removing:
        removing.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [LOCKS, REMOVING])
        loading.start()
        loading.join(0.5)
        assert loading.is_alive()
        removing.execute("INSERT INTO recipes.removals VALUES ('items', 'a.json', %s, '')", [NOON + timedelta(hours=1)])
    loading.join(30)
    assert [one["id"] for one in store.search()] == ["before"]


def test_a_data_source_name_of_an_unknown_kind_is_refused_and_not_shown():
    with pytest.raises(NotConfigured) as raised:
        stores.connect("mysql://me:hunter2@host/db")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("host", ["127.0.0.1:1", "no-such-host.invalid:5433", "%2Ftmp%2Fnone:5432"])
def test_a_database_that_is_not_there_is_one_sentence_with_its_address(host):
    with pytest.raises(TimedOut) as raised:
        stores.connect(f"postgresql://me-myself:hunter2@{host}/db")
    said = str(raised.value)
    assert f"No database answers at {unquote(host)}: " in said and "CATALOG_DSN" in said
    assert not any(word in said for word in ("hunter2", "me-myself", "Is the server running", "Errno"))


@pytest.mark.parametrize("password", ["hun ter2", "hun/ter2", "77/ter2", "hun@ter2", "hunter2%"])
def test_a_password_that_is_not_encoded_is_said_so_and_not_shown(password):
    with pytest.raises(NotConfigured, match=r"CATALOG_DSN cannot be read.*percent-encoded") as raised:
        stores.connect(f"postgresql://me:{password}@127.0.0.1:1/db")
    assert not any(part in str(raised.value) for part in ("hun", "ter2", "77"))


def test_what_a_database_says_in_lines_is_said_in_sentences():
    from helpers.catalog.bulk import said

    assert said(psycopg.OperationalError("it closed\n\tThis is\n\tbad")) == "it closed. This is bad."
    assert said(psycopg.OperationalError("refused\n\tIs it there?\n")) == "refused. Is it there?"


def test_a_password_is_neither_in_an_error_nor_in_the_repr(database):
    password = urlsplit(database).password
    with stores.connect(database) as store:
        assert password not in repr(store)
    for wrong in (database + "-not-there", database.replace(password, password + "x")):
        with pytest.raises(Rejected) as raised:
            stores.connect(wrong)
        assert password not in str(raised.value)
