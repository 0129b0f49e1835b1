"""The catalogue without PostGIS: a store's promises are test_catalog_store.py's; here the file, and the STAC API."""

import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest
import requests
from pystac_client import Client

from helpers.catalog.embedded import EmbeddedStore
from helpers.catalog.store import Entry, Loaded, Origin
from helpers.errors import Rejected, TimedOut
from helpers.sandbox import Deployment, Sandbox, stac_server

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def item(name: str, *, at: float = 0.0, day: int = 1, collection: str = "rtc", **more) -> dict:
    ring = [[at, 0.0], [at + 1, 0.0], [at, 1.0], [at, 0.0]]  # a triangle: its box holds more than it does
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [],
        "id": name,
        "collection": collection,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [at, 0.0, at + 1, 1.0],
        "properties": {"datetime": f"2026-02-{day:02}T00:00:00Z"},
        "links": [{"rel": "self", "href": "s3://archive/item.json"}, {"rel": "via", "href": "https://example.org/"}],
        "assets": {},
    } | more


def collection(name: str = "rtc") -> dict:
    extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
    about = {"type": "Collection", "stac_version": "1.0.0", "description": name, "license": "other", "links": []}
    return about | {"id": name, "extent": extent}


def entries(*items: dict) -> list[Entry]:
    return [Entry(one, Origin(NOON)) for one in items]


@pytest.fixture
def dsn(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/deep/catalogue.sqlite"


@pytest.fixture
def store(dsn):
    with EmbeddedStore(dsn) as store:
        store.put_collection(collection())
        yield store


def test_the_shape_decides_not_its_box(store):
    store.load("rtc", entries(item("one")))
    assert [one["id"] for one in store.search(bbox=[0.1, 0.1, 0.2, 0.2])] == ["one"]
    assert store.search(bbox=[0.9, 0.9, 1.0, 1.0]) == []
    assert store.search(intersects={"type": "Point", "coordinates": [0.8, 0.8]}) == []


def test_boxes_with_heights_and_across_the_antimeridian(store):
    store.load("rtc", entries(item("west", at=178.5, day=2), item("east", at=-179.5)))
    assert [one["id"] for one in store.search(bbox=[178, 0, 0, -178, 1, 100])] == ["west", "east"]
    assert [one["id"] for one in store.search(bbox=[-180, 0, -178, 1])] == ["east"]


def test_places_follow_an_item_that_moves_and_go_with_it(store, dsn):
    store.load("rtc", entries(item("one", at=0)))
    store.load("rtc", entries(item("one", at=50)))
    assert store.search(bbox=[0, 0, 1, 1]) == []
    assert len(store.search(bbox=[50, 0, 51, 1])) == 1
    store.delete_collection("rtc")
    with sqlite3.connect(dsn.removeprefix("sqlite:///")) as connection:
        assert connection.execute("SELECT count(*) FROM places").fetchone() == (0,)
    connection.close()


@pytest.mark.parametrize(
    "when, found",
    [
        ("2026-02-03", ["d3"]),
        ("2026-02-03T00:00:00Z/2026-02-04T00:00:00Z", ["d4", "d3"]),
        ("2026-02-04T00:00:00Z/", ["d5", "d4"]),
        ("../2026-02-02T00:00:00Z", ["d2", "d1"]),
        ("../..", ["d5", "d4", "d3", "d2", "d1"]),
    ],
)
def test_times_with_open_ends(store, when, found):
    store.load("rtc", entries(*(item(f"d{day}", day=day) for day in range(1, 6))))
    assert [one["id"] for one in store.search(datetime=when)] == found


@pytest.mark.parametrize(
    "nonsense",
    [{"bbox": [1, 2]}, {"bbox": ["a", 0, 1, 1]}, {"datetime": "yesterday"}, {"intersects": {"type": "Blob"}}],
)
def test_a_search_that_means_nothing_is_refused(store, nonsense):
    with pytest.raises(Rejected, match="cannot be understood"):
        store.search(**nonsense)


def test_what_is_found_is_counted_and_cut_without_reading_the_rest(store):
    store.load("rtc", entries(*(item(f"i{n}", at=n / 10, day=n % 20 + 1) for n in range(60))))
    for query in ({}, {"bbox": [0, 0, 3, 1]}):
        found, everything = store.find(**query), store.search(**query)
        assert len(found) == len(everything)
        assert [*found[:7], *found[7:14], *found[14:]] == everything


WRITER = """
import sys
from datetime import UTC, datetime
from helpers.catalog.embedded import EmbeddedStore
from helpers.catalog.store import Entry, Origin

point = {"type": "Point", "coordinates": [0, 0]}
with EmbeddedStore(sys.argv[1]) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(20):
        names = [f"{sys.argv[2]}-{n}-{k}" for k in range(5)]
        items = [{"id": name, "geometry": point, "properties": {"datetime": "2026-02-01T00:00:00Z"}} for name in names]
        store.load("rtc", [Entry(item, Origin(datetime.now(UTC))) for item in items])
"""


def test_several_processes_write_and_one_reads_meanwhile(store, dsn):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, dsn, str(n)], **pipes) for n in range(2)]
    for writer in writers:
        writer.stdout.readline()
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    seen = []
    while any(writer.poll() is None for writer in writers):
        seen.append(store.count("rtc"))
        time.sleep(0.005)
    for writer in writers:
        writer.communicate()
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen == sorted(seen) and all(count % 5 == 0 for count in seen)
    assert store.count("rtc") == 200


def test_half_a_load_is_none(store, dsn, monkeypatch):
    monkeypatch.setattr("helpers.catalog.embedded.NOTE", "INSERT INTO nowhere VALUES (?)")
    with pytest.raises(Rejected):
        store.load("rtc", entries(item("one")))
    monkeypatch.undo()
    assert store.count("rtc") == 0
    assert store.load("rtc", entries(item("one"))) == Loaded(stored=1)


def test_a_writer_that_does_not_end_is_not_waited_for_forever(store, dsn, monkeypatch):
    monkeypatch.setattr("helpers.catalog.embedded.PATIENCE", 0.2)
    with EmbeddedStore(dsn) as other, store._writing(), pytest.raises(TimedOut, match="again later"):
        other.load("rtc", entries(item("one")))


def test_a_file_that_is_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("not a database " * 100)
    with pytest.raises(Rejected, match=r"notes\.txt"):
        EmbeddedStore(f"sqlite:///{tmp_path}/notes.txt")


# the STAC API


@pytest.fixture(scope="module")
def catalogue():
    with Sandbox(deployment=Deployment(catalogue="embedded")) as sandbox:
        sandbox.catalogue.start()
        with EmbeddedStore(sandbox.environment["CATALOG_DSN"]) as store:
            store.put_collection(collection())
            store.put_collection(collection("other"))
            store.load("rtc", entries(*(item(f"i{n:02}", at=n, day=n % 28 + 1) for n in range(45))))
        yield sandbox


@pytest.fixture
def client(catalogue) -> Client:
    return Client.open(catalogue.environment["CATALOG_API_URL"])


def test_it_is_called_embedded_with_the_command_that_brings_the_real_one(catalogue):
    assert catalogue.catalogue.label.startswith("embedded (SQLite)")
    assert "install" in catalogue.catalogue.label
    told = requests.post(f"{catalogue.url('control')}/catalog?wait=true", timeout=10).json()
    assert told == {"kind": "embedded", "label": catalogue.catalogue.label}


def test_pystac_client_works_on_it_unmodified(client):
    assert sorted(each.id for each in client.get_collections()) == ["other", "rtc"]
    for method in ("GET", "POST"):
        search = client.search(method=method, collections=["rtc"], bbox=[10, 0, 30.5, 1], limit=4)
        found = [each.id for each in search.items()]
        assert search.matched() == len(found) == len(set(found)) == 22
        found = client.search(method=method, datetime="2026-02-01/2026-02-02", ids=["i00", "i01", "i02"]).items()
        assert [each.id for each in found] == ["i01", "i00"]
    area = {"type": "Point", "coordinates": [5.1, 0.1]}
    assert [each.id for each in client.search(intersects=area).items()] == ["i05"]
    assert len(list(client.get_collection("rtc").get_items())) == 45
    one = client.get_collection("rtc").get_item("i07")
    assert one.get_single_link("via").href == "https://example.org/"
    assert [link.rel for link in one.links].count("self") == 1
    assert one.get_collection().id == "rtc"


def test_errors_say_what_is_wrong(catalogue):
    url = catalogue.environment["CATALOG_API_URL"]
    for path, status, said in (
        ("/search?bbox=1,2", 400, "4 or 6 numbers"),
        ("/search?limit=0", 400, "limit"),
        ("/search?filter=x", 400, "filter"),
        ("/collections/none", 404, "none"),
        ("/collections/none/items", 404, "none"),
        ("/collections/rtc/items/none", 404, "none"),
    ):
        answer = requests.get(url + path, timeout=10)
        assert (answer.status_code, said in answer.json()["description"]) == (status, True), path


def test_a_browser_from_elsewhere_may_read_it(catalogue):
    url = catalogue.environment["CATALOG_API_URL"]
    asked = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    answer = requests.options(f"{url}/search", headers=asked, timeout=10)
    assert answer.headers["Access-Control-Allow-Origin"] in ("*", "https://elsewhere.example")
    assert requests.get(url, headers=asked, timeout=10).headers["Access-Control-Allow-Origin"]


def test_its_folder_goes_with_it():
    catalogue = stac_server.Catalogue("127.0.0.1", 0, "embedded", lambda app: None)
    catalogue.start()
    EmbeddedStore(catalogue.dsn).close()
    assert catalogue._folder.is_dir()
    catalogue.stop()
    catalogue.stop()
    assert not catalogue._folder.exists()
