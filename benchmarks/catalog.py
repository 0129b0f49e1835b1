"""The catalogue recipe beside the way of the published handler, in one run and on the same messages.

    python benchmarks/catalog.py                              (about ten minutes: the published way takes most of them)
    python benchmarks/catalog.py s500 poison --rounds 3
    python benchmarks/catalog.py --dsn postgresql://...       (a pgstac database that may be filled and emptied)

S3 is `s3_stub.py`, which answers after 35 ms: the middle of what a bucket in the same region takes (20 to 50 ms). The
database is the sandbox's own. "Published" is the way of the handler that this pattern is known from: a boto3 session
and a client for every object, one after the other, then an upsert by pypgstac; written after its description, and
without what it does not do (schemas, newest across batches, naming what is wrong). Both start with modules imported and
without connections, and end when everything is committed. Prints a table and keeps every figure in
outputs/benchmarks/catalog.json. Read the ratios: machines differ, and are noisy.
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, unquote_plus

import boto3
import catalog_database
import catalog_items
import obstore
import psycopg
from figures import Rows, keep, measure
from obstore.store import S3Store
from pypgstac import load
from pypgstac.db import PgstacDB

from helpers.catalog.fetching import Fetcher
from helpers.catalog.loading import Loader
from helpers.catalog.store import Entry, Origin, connect
from helpers.settings import Settings

PROJECT = Path(__file__).resolve().parent.parent
DELAY = 0.035
BUCKET, KEYS = "items", {"aws_access_key_id": "benchmark", "aws_secret_access_key": "benchmark"}
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
#: What is to be reached, by row.
TARGETS = {
    "s500": "at most 1.2 s, 150 times as fast as the published way",
    "s5000": "at least 600 items/s",
    "load50k": "at least 0.8 of pypgstac's Loader alone",
    "poison": "475 of 500 stored, 25 named, at most twice the clean time",
    "readers": "four loaders of one collection and a reader: no error, the reader's p95 reported",
    "items": "a median below 50 ms; at least 2,000 checked a second",
    "drift": "at most 2.5 s",
    "database": "12 s from nothing, 1 s from a cached cluster",
}


# --- the world ---


def item(n: int, collection: str = "rtc") -> dict:
    """An item like those of HyP3's RTC products: half a dozen assets, four extensions, some 4 kB."""
    west, south = n % 340 - 170.0, n // 340 % 150 - 75.0
    east, north = west + 2.9, south + 2.1
    when = (BEGIN + timedelta(minutes=n * 10)).isoformat().replace("+00:00", "Z")
    name = f"S1A_IW_{n:08}T000000_DVP_RTC30_G_gpuned_{n:05X}"
    files = {"vv": "VV.tif", "vh": "VH.tif", "rgb": "rgb.tif", "dem": "dem.tif", "inc_map": "inc_map.tif"}
    raster = {"type": "image/tiff; application=geotiff; profile=cloud-optimized", "roles": ["data"]}
    bands = {"raster:bands": [{"data_type": "float32", "nodata": 0, "unit": "1", "spatial_resolution": 30}]}
    proj = {"proj:shape": [8231, 9617], "proj:transform": [30.0, 0.0, 232_110.0, 0.0, -30.0, 4_262_730.0]}
    extensions = ("projection/v1.1.0", "raster/v1.1.0", "sar/v1.0.0", "sat/v1.0.0")
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [f"https://stac-extensions.github.io/{one}/schema.json" for one in extensions],
        "id": name,
        "collection": collection,
        "geometry": {
            "type": "Polygon",
            "coordinates": [[[west, south], [east, south], [east, north], [west, north], [west, south]]],
        },
        "bbox": [west, south, east, north],
        "properties": {
            "datetime": when,
            "created": when,
            "platform": "sentinel-1a",
            "constellation": "sentinel-1",
            "instruments": ["c-sar"],
            "gsd": 30,
            "sar:instrument_mode": "IW",
            "sar:frequency_band": "C",
            "sar:polarizations": ["VV", "VH"],
            "sar:product_type": "RTC",
            "sat:orbit_state": "descending",
            "sat:relative_orbit": n % 175 + 1,
            "proj:epsg": 32631,
        },
        "links": [{"rel": "collection", "href": f"https://stac.example/collections/{collection}"}],
        "assets": {
            key: {"href": f"s3://archive/{name}/{name}_{end}", "title": f"{key} of {name}"} | raster | bands | proj
            for key, end in files.items()
        }
        | {"thumbnail": {"href": f"s3://archive/{name}/{name}_rgb_thumb.png", "roles": ["thumbnail"]}},
    }  # fmt: skip


def collection(name: str) -> dict:
    extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
    about = {"type": "Collection", "stac_version": "1.0.0", "description": name, "license": "proprietary"}
    return about | {"id": name, "links": [], "extent": extent}


def poisoned(n: int) -> dict:
    """One of what makes a database refuse a whole batch."""
    one = item(n)
    wrong: list[dict] = [
        {"geometry": None},
        {"properties": one["properties"] | {"title": "a\0b"}},
        {"properties": one["properties"] | {"datetime": None, "start_datetime": "2026-02-02T00:00:00Z",
                                            "end_datetime": "2026-02-01T00:00:00Z"}},
        {"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 0, 5], [1, 1], [0, 0]]]}},
        {"id": "x" * 9000},
    ]  # fmt: skip
    return one | wrong[n % len(wrong)]


def key(n: int, what: str = "good") -> str:
    return f"{what} items/2026/{n:06}.json"


def records(keys: list[str]) -> list[dict]:
    """What SQS hands to Lambda: one S3 event for each object."""
    made = []
    for n, name in enumerate(keys):
        when = (BEGIN + timedelta(seconds=n)).isoformat()
        about = {"key": quote_plus(name), "eTag": "0", "size": 4000, "sequencer": f"{n:018X}"}
        event = {"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "eventTime": when}
        body = {"Records": [event | {"s3": {"bucket": {"name": BUCKET}, "object": about}}]}
        made.append({"messageId": f"message-{name}", "body": json.dumps(body), "attributes": {}})
    return made


@contextmanager
def storage() -> Iterator[Any]:
    """Settings for the S3 stub, with good and poisoned items in it."""
    with stub(delay=DELAY) as settings:
        made = {key(n): item(n) for n in range(5000)} | {key(n, "bad"): poisoned(n) for n in range(0, 500, 20)}
        url = str(settings.aws_endpoint_url)
        asyncio.run(_put(url, {name: json.dumps(content).encode() for name, content in made.items()}))
        yield settings


@contextmanager
def stub(**behaviour: Any) -> Iterator[Any]:
    """Settings for an S3 stub of one's own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, Path(__file__).with_name("s3_stub.py"), "--port", str(port)])
    url = f"http://127.0.0.1:{port}"
    try:
        _behave(url, **behaviour)
        yield Settings(AWS_ENDPOINT_URL=url, **{name.upper(): value for name, value in KEYS.items()})
    finally:
        process.terminate()
        process.wait()


def _behave(url: str, **behaviour: Any) -> None:
    for left in range(99, -1, -1):
        try:
            urllib.request.urlopen(f"{url}/_control", json.dumps(behaviour).encode()).close()  # noqa: S310
            return
        except OSError:
            if not left:
                raise
            time.sleep(0.1)


async def _put(url: str, objects: dict[str, bytes]) -> None:
    names = {name.removeprefix("aws_"): value for name, value in KEYS.items()}
    bucket = S3Store(BUCKET, endpoint=url, region="us-west-2", client_options={"allow_http": True}, **names)
    left = iter(objects.items())

    async def work() -> None:
        for name, content in left:
            await obstore.put_async(bucket, name, content, use_multipart=False)

    await asyncio.gather(*(work() for _ in range(64)))


@contextmanager
def database(dsn: str | None) -> Iterator[str]:
    """A pgstac database: that of ``dsn``, or a new one."""
    if dsn:
        yield dsn
        return
    from helpers.sandbox.postgres import Cluster

    with Cluster() as cluster:
        yield cluster.create("benchmark")


class World:
    """The database and the settings that all sides share."""

    def __init__(self, dsn: str, settings: Any, rounds: int, published: bool):
        self.dsn, self.settings, self.rounds, self.published = dsn, settings, rounds, published

    def clean(self, name: str = "rtc", partition: str | None = "month") -> None:
        """An empty collection."""
        with connect(self.dsn) as store:
            store.delete_collection(name)
            store.put_collection(collection(name))
        with psycopg.connect(self.dsn) as connection:
            connection.execute("UPDATE pgstac.collections SET partition_trunc = %s WHERE id = %s", [partition, name])

    def count(self, name: str = "rtc") -> int:
        with connect(self.dsn) as store:
            return store.count(name)


def ours(world: World, events: list[dict]) -> dict:
    """The recipe's way, from nothing to committed."""
    world.clean()
    began = time.perf_counter()
    with connect(world.dsn) as store:
        loader = Loader(store, fetch=Fetcher(world.settings))
        failed = loader.load(events)
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "stored": world.count(), "named": len(failed)}


def published(world: World, events: list[dict]) -> dict:
    """The published handler's way: everything is refused when one item is."""
    world.clean()
    began = time.perf_counter()
    found: dict[str, dict[str, dict]] = {}
    for record in events:
        about = json.loads(record["body"])["Records"][0]["s3"]
        session = boto3.Session(region_name="us-west-2", **KEYS)
        s3 = session.client("s3", endpoint_url=str(world.settings.aws_endpoint_url))
        answer = s3.get_object(Bucket=about["bucket"]["name"], Key=unquote_plus(about["object"]["key"]))
        one = json.loads(answer["Body"].read())
        found.setdefault(one["collection"], {})[one["id"]] = one
    named = 0
    for items in found.values():
        try:
            with PgstacDB(dsn=world.dsn) as db:
                load.Loader(db).load_items(iter(items.values()), load.Methods.upsert)
        except Exception as error:  # noqa: BLE001 - it is what the published way does with all of them
            print(f"      published: {type(error).__name__}: {str(error)[:80]}")
    return {"seconds": time.perf_counter() - began, "stored": world.count(), "named": named}


def medians(runs: list[dict]) -> dict:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]} | {"runs": runs}


def told(found: dict, count: int) -> str:
    return f"{found['seconds']:8.2f} s {count / found['seconds']:8,.0f} items/s {found['stored']:8,.0f} stored" + (
        f", {found['named']:.0f} named" if found["named"] else ""
    )


def beside(world: World, events: list[dict], theirs: bool = True) -> Rows:
    """Our way, several times, and the published one once: its minutes vary little."""
    mine = medians([ours(world, events) for _ in range(world.rounds)])
    rows = [("ours", told(mine, len(events)), mine)]
    if theirs and world.published:
        other = published(world, events)
        rows.append(("published", told(other, len(events)), other))
        ratio = other["seconds"] / mine["seconds"]
        rows.append(("published / ours", f"{ratio:8.0f}", {"ratio": ratio}))
    return rows


# --- the rows ---


def s500(world: World) -> Rows:
    return beside(world, records([key(n) for n in range(500)]))


def s5000(world: World) -> Rows:
    return beside(world, records([key(n) for n in range(5000)]), theirs=False)


def poison(world: World) -> Rows:
    """25 of 500 are what a database refuses; beside the same messages without them."""
    mixed = records([key(n, "good" if n % 20 else "bad") for n in range(500)])
    good = records([key(n) for n in range(500)])
    runs: dict[str, list[dict]] = {"ours": [], "ours, none poisoned": []}
    for _ in range(world.rounds):  # in turn: what else the machine does hits them alike
        runs["ours"].append(ours(world, mixed))
        runs["ours, none poisoned"].append(ours(world, good))
    found = {name: medians(some) for name, some in runs.items()}
    if world.published:
        found["published"] = published(world, mixed)
    ratio = found["ours"]["seconds"] / found["ours, none poisoned"]["seconds"]
    rows = [(name, told(side, 500), side) for name, side in found.items()]
    return [*rows, ("with / without", f"{ratio:8.2f}", {"ratio": ratio})]


def load50k(world: World) -> Rows:
    """The last stage alone: items in memory into an empty collection of twelve monthly partitions."""
    count = 50_000

    def mine() -> dict:
        world.clean()
        entries = [Entry(item(n), Origin(BEGIN, bucket=BUCKET, key=key(n))) for n in range(count)]
        with connect(world.dsn) as store:
            began = time.perf_counter()
            store.load("rtc", entries)
            return {"seconds": time.perf_counter() - began, "stored": store.count("rtc"), "named": 0}

    def alone() -> dict:
        world.clean()
        items = [item(n) for n in range(count)]
        with PgstacDB(dsn=world.dsn) as db:
            began = time.perf_counter()
            load.Loader(db).load_items(iter(items), load.Methods.upsert)
            return {"seconds": time.perf_counter() - began, "stored": world.count(), "named": 0}

    sides: dict[str, list[dict]] = {"ours": [], "pypgstac's Loader": []}
    for _ in range(world.rounds):
        sides["ours"].append(mine())
        sides["pypgstac's Loader"].append(alone())
    found = {name: medians(runs) for name, runs in sides.items()}
    ratio = found["pypgstac's Loader"]["seconds"] / found["ours"]["seconds"]
    rows = [(name, told(side, count), side) for name, side in found.items()]
    return [*rows, ("ours / pypgstac's Loader", f"{ratio:8.2f} of its speed", {"ratio": ratio})]


def drift(world: World) -> Rows:
    """100,000 objects in one folder against as many items, 1 % each missing, stale and orphaned; 100 ms a page."""
    from s3_stub import ETAG, PREFIX, products

    from helpers.catalog.drift import compare

    keys = [PREFIX + name for name in products(12_500)]
    world.clean("drift", None)
    with connect(world.dsn) as store:
        store.load("drift", [_listed(n, name, ETAG) for n, name in enumerate(keys)])
    expected = {"missing": 1000, "stale": 1000, "orphaned": 1000, "held": 0, "same": 98_000}

    def mine() -> dict:
        with connect(world.dsn) as store:
            began = time.perf_counter()
            found = compare(settings, store, "archive", PREFIX, suffix="")
            seconds = time.perf_counter() - began
        assert found.counts() == expected, found.counts()  # noqa: S101
        return {"seconds": seconds}

    def paginator() -> dict:
        began = time.perf_counter()
        s3 = boto3.client("s3", endpoint_url=str(settings.aws_endpoint_url), region_name="us-west-2", **KEYS)
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket="archive", Prefix=PREFIX)
        here = {one["Key"]: one["ETag"].strip('"') for page in pages for one in page["Contents"]}
        with connect(world.dsn) as store:
            there = {name: etag for name, etag, _, _ in store.ledger("archive", PREFIX)}
        both = here.keys() & there.keys()
        assert (len(here) - len(both), len(there) - len(both)) == (1000, 1000)  # noqa: S101
        return {"seconds": time.perf_counter() - began}

    with stub(delay=0.1, archived=100_000) as settings:
        ours, theirs = medians([mine() for _ in range(world.rounds)]), paginator()
    sides = (("ours", ours), ("boto3's paginator", theirs))
    return [
        (name, f"{side['seconds']:8.2f} s {100_000 / side['seconds']:8,.0f} objects/s", side) for name, side in sides
    ]


def _listed(n: int, name: str, etag: str) -> Entry:
    """The item of an object of the stub: of every hundredth each is another object, or is gone, or was older."""
    odd = n % 100
    name, etag = (f"{name}.gone", etag) if odd == 1 else (name, "older" if odd == 2 else etag)
    small = item(n, "drift") | {"id": f"{n:06}", "assets": {}, "stac_extensions": []}
    return Entry(small, Origin(BEGIN, bucket="archive", key=name, etag=etag))


def readers(world: World) -> Rows:
    """Searches by place and time while four processes load ten batches of 500 each."""
    world.clean()
    context = multiprocessing.get_context("spawn")
    loaders = [context.Process(target=_keep_loading, args=(world.dsn, part)) for part in range(4)]
    with connect(world.dsn) as store:
        store.load("rtc", [Entry(item(n), Origin(BEGIN - timedelta(days=1))) for n in range(500)])
        alone = _searches(store, lambda times: len(times) < 100)
        for loader in loaders:
            loader.start()
        while store.count("rtc") == 500:  # they import first
            time.sleep(0.05)
        began = time.perf_counter()
        beside = _searches(store, lambda _: any(loader.is_alive() for loader in loaders))
        seconds = time.perf_counter() - began
        stored = store.count("rtc")
    rows: Rows = []
    for name, times in (("no loader", alone), ("four loaders", beside)):
        median, p95 = statistics.median(times), statistics.quantiles(times, n=20)[-1]
        text = f"median {median * 1000:6.1f} ms, p95 {p95 * 1000:6.1f} ms, longest {max(times) * 1000:6.1f} ms"
        rows.append((name, text, {"median": median, "p95": p95, "longest": max(times), "searches": len(times)}))
    failed = sum(loader.exitcode != 0 for loader in loaders)
    found = {"seconds": seconds, "stored": stored, "named": 0, "failed": failed}
    return [*rows, ("the loaders", f"{told(found, 20_000)}, {failed} failed", found)]


def _searches(store: Any, more: Callable[[list[float]], bool]) -> list[float]:
    chance, times = random.Random(6), []  # noqa: S311
    while more(times):
        west, south, day = chance.uniform(-170, 160), chance.uniform(-75, 60), chance.randrange(1, 28)
        place, since = [west, south, west + 10, south + 10], f"2026-01-{day:02}T00:00:00Z/.."
        began = time.perf_counter()
        store.search(collections=["rtc"], bbox=place, datetime=since, limit=10)
        times.append(time.perf_counter() - began)
        time.sleep(0.01)
    return times


def _keep_loading(dsn: str, part: int) -> None:
    with connect(dsn) as store:
        for n in range(10):
            first = part * 2500 + n * 250  # half of each batch comes in the next one, too
            some = [item(k) for k in range(first, first + 500)]
            store.load("rtc", [Entry(one, Origin(BEGIN + timedelta(minutes=n))) for one in some])


ROWS: dict[str, Callable[[World], Rows]] = {
    "s500": s500,
    "s5000": s5000,
    "load50k": load50k,
    "poison": poison,
    "readers": readers,
    "items": catalog_items.items,
    "drift": drift,
    "database": catalog_database.database,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="row", help=f"of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=1, help="how often our side runs; medians count (%(default)s)")
    parser.add_argument("--dsn", help="a pgstac database to use instead of a new one; its collection rtc is deleted")
    parser.add_argument("--no-published", action="store_true", help="without the published way, which takes minutes")
    options = parser.parse_args()
    if unknown := set(options.rows) - ROWS.keys():
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    with database(options.dsn) as dsn, storage() as settings:
        world = World(dsn, settings, options.rounds, not options.no_published)
        found = measure(options.rows or ROWS, TARGETS, lambda name: ROWS[name](world))
    keep("catalog", found)


if __name__ == "__main__":
    main()
