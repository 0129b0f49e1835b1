"""The STAC API over the sandbox's pgstac: stac-fastapi-pgstac itself, started when asked, and gone with its owner."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from pystac_client import Client

from helpers.catalog import store as stores
from helpers.catalog.store import Entry, Origin
from helpers.errors import FailedRemotely
from helpers.sandbox import postgres, stac_server
from helpers.sandbox.stac_server import Catalogue

pytestmark = pytest.mark.skipif(not postgres.usable(), reason=f"no PostGIS: {postgres.how_to_install()}")


@pytest.fixture(scope="module")
def catalogue():
    catalogue = Catalogue("127.0.0.1", 0, None, lambda app: None)
    with pytest.raises(requests.ConnectionError):  # nobody answers there before it is asked for
        requests.get(f"http://127.0.0.1:{catalogue.port}/", timeout=5)
    catalogue.start()
    yield catalogue
    catalogue.stop()


@pytest.fixture
def url(catalogue) -> str:
    catalogue.reset()
    return f"http://127.0.0.1:{catalogue.port}"


def fill(dsn: str, count: int) -> None:
    from datetime import UTC, datetime

    extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
    about = {"type": "Collection", "stac_version": "1.0.0", "description": "rtc", "license": "other", "links": []}
    item = {"type": "Feature", "stac_version": "1.0.0", "collection": "rtc", "links": [], "assets": {}}
    items = [
        item
        | {"id": f"i{n}", "properties": {"datetime": f"2026-02-{n + 1:02}T00:00:00Z"}}
        | {"geometry": {"type": "Point", "coordinates": [n, 0]}, "bbox": [n, 0, n, 0]}
        for n in range(count)
    ]
    with stores.connect(dsn) as store:
        store.put_collection(about | {"id": "rtc", "extent": extent})
        store.load("rtc", [Entry(one, Origin(datetime.now(UTC))) for one in items])


def test_pystac_client_finds_what_was_loaded(catalogue, url):
    fill(catalogue.dsn, 15)
    client = Client.open(url)
    assert [each.id for each in client.get_collections()] == ["rtc"]
    found = client.search(collections=["rtc"], bbox=[2, -1, 5, 1], limit=2).items()
    assert [each.id for each in found] == ["i5", "i4", "i3", "i2"]
    assert client.get_collection("rtc").get_item("i7").properties["datetime"] == "2026-02-08T00:00:00Z"


def test_a_reset_empties_it_and_the_api_goes_on(catalogue, url):
    fill(catalogue.dsn, 3)
    assert len(requests.get(f"{url}/search", timeout=30).json()["features"]) == 3
    catalogue.reset()
    for _ in range(3):  # each of its connections was cut
        answer = requests.get(f"{url}/search", timeout=30)
        assert (answer.status_code, answer.json()["features"]) == (200, [])
    assert list(Client.open(url).get_collections()) == []


def test_it_only_reads(url):
    answer = requests.post(f"{url}/collections", json={"id": "x"}, timeout=30)
    assert answer.status_code == 405


def test_stac_browser_may_read_it_from_elsewhere(url):
    asked = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    asked |= {"Access-Control-Request-Headers": "content-type"}
    answer = requests.options(f"{url}/search", headers=asked, timeout=30)
    assert answer.ok
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]


def test_one_that_cannot_start_says_why():
    api = stac_server.Api("127.0.0.1")
    try:
        api.prepare("postgresql://nobody:secret-word@127.0.0.1:9/catalog")
        with pytest.raises(FailedRemotely, match=r"refused|[Cc]onnect") as raised:
            api.serve()
        assert "secret-word" not in str(raised.value)
    finally:
        api.stop()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for a process in /proc")
def test_it_ends_with_a_killed_owner():
    lines = [
        "import time; from helpers.sandbox.stac_server import Api",
        "api = Api('127.0.0.1'); api.prepare('postgresql://a:b@127.0.0.1:9/c')",
        "api._process.stdin.write(b'\\n'); api._process.stdin.flush()",
        "print(api._process.pid, flush=True); time.sleep(60)",
    ]
    owner = subprocess.Popen([sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE, text=True)
    server = int(owner.stdout.readline())
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    end = time.monotonic() + 30
    while Path(f"/proc/{server}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{server}").exists()
