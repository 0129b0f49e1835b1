"""The conversion on a bad day: every fault of the services, kills at any moment; and that nothing of it stays behind.

The services are the sandbox's, the conversion itself is a quick one: what EOPF writes is the business of other tests
(that of notebook 5 converts products of three missions at these services).
"""

import hashlib
import io
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import cloudpickle
import pystac
import pytest

from helpers.conversion import cleaning, flow
from helpers.conversion.services import Services, storage
from helpers.conversion.storing import Store
from helpers.errors import Rejected
from helpers.sandbox import dpr, osam
from helpers.sandbox.products import granule_footprint
from helpers.state import RunState

PRODUCTS = [f"S2A_MSIL2A_20240815T100601_N0511_R022_T32T{square}_20240815T153456" for square in ("QR", "PR", "QS")]
PRODUCT = PRODUCTS[0]
COLLECTION, STAGING = "s2-zarr", "s2-zarr-staging"
ORDERING = {"service": "staging", "method": "POST"}
CONVERTING = {"service": "dpr", "method": "POST"}


def small_safe(stem: str, suffix: str) -> bytes:
    """An archive of what the flow looks at: a manifest, and a file that it lists with its checksum."""
    content = f"the pixels of {stem}".encode() * 100
    checksum = f'<checksum checksumName="MD5">{hashlib.md5(content, usedforsecurity=False).hexdigest()}</checksum>'
    place = '<fileLocation locatorType="URL" href="./measurement/pixels.bin"/>'
    listed = f'<byteStream mimeType="binary" size="{len(content)}">{place}{checksum}</byteStream>'
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(
                f"{stem}.SAFE/manifest.safe", f"<XFDU><dataObjectSection>{listed}</dataObjectSection></XFDU>"
            )
            archive.writestr(f"{stem}.SAFE/measurement/pixels.bin", content)
        return file.getvalue()


def convert_quickly(client, safe_uri: str, target_uri: str, dies: bool, step) -> str:
    """What the service's worker does, without EOPF: a Zarr of one array that says where and when it is from."""
    stem = safe_uri.rpartition("/")[2].partition(".")[0]
    product = f"S02MSIL2A_{stem[11:26]}_{stem[38:44]}"
    about = {"datetime": "2024-08-15T10:06:01Z", "product:type": "S02MSIL2A", "platform": "sentinel-2a"}
    noted = {"id": product, "geometry": granule_footprint(stem), "properties": about, "bbox": [0, 0, 1, 1]}
    array = {
        "shape": [4], "data_type": "uint8", "fill_value": 0, "node_type": "array", "zarr_format": 3, "attributes": {},
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2]}}, "codecs": [{"name": "bytes"}],
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}}, "dimension_names": ["x"],
    }  # fmt: skip
    nodes = {"kind": "inline", "must_understand": False, "metadata": {"counts": array}}
    root = {"zarr_format": 3, "node_type": "group", "attributes": {"stac_discovery": noted}}
    files = {
        "zarr.json": json.dumps(root | {"consolidated_metadata": nodes}).encode(),
        "counts/zarr.json": json.dumps(array).encode(),
        "counts/c/0": b"\1\2",
        "counts/c/1": b"\3\4",
    }
    bucket, _, key = f"{target_uri}/{product}.zarr".removeprefix("s3://").partition("/")
    for number, (name, content) in enumerate(files.items()):
        if dies and number == 2:
            raise RuntimeError("the worker died")
        step()
        client.put_object(Bucket=bucket, Key=f"{key}/{name}", Body=content)
    zarr = f"s3://{bucket}/{key}"
    return json.dumps({"message": "Conversion finished", "eopf_version": "0", "safe_uri": safe_uri, "zarr_uri": zarr})


class QuickCluster:
    """A Dask client as far as the service needs one; it works in this process."""

    status = "running"

    def __init__(self, s3):
        self.pool, self.s3 = ThreadPoolExecutor(1), s3
        self.seconds, self.cancelled = 0.03, set()  #: that a step of a conversion takes; jobs that were cancelled

    def submit(self, *given, **options):
        job, safe_uri, target_uri, _ = given[-4:]

        def step():
            sleep(self.seconds)
            self.tell((0.0, {"line": "INFO one step further"}))
            if job in self.cancelled:
                raise InterruptedError

        return self.pool.submit(convert_quickly, self.s3, safe_uri, target_uri, options["dies"], step)

    def subscribe_topic(self, topic, tell):
        self.tell = tell

    def unsubscribe_topic(self, topic):
        pass


sleep = time.sleep


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Of clients between two tries."""
    monkeypatch.setattr("time.sleep", lambda seconds: sleep(min(seconds, 0.1)))


@pytest.fixture
def quick(sandbox, monkeypatch):
    cluster = QuickCluster(sandbox.catalog.s3)
    monkeypatch.setattr(dpr.Dpr, "client", lambda self, address="": cluster)
    monkeypatch.setattr(dpr.Dpr, "cancel", lambda self, job: cluster.cancelled.add(job.id))
    monkeypatch.setattr(sandbox.staging, "seconds", 0.03)
    monkeypatch.setattr(sandbox.station, "archive", small_safe)
    yield cluster
    cluster.pool.shutdown()


class World:
    """The services as the tests see them: what is there in the end, and what was asked for."""

    def __init__(self, sandbox, settings):
        self.sandbox, self.settings, self.lines = sandbox, settings, []
        self.fail = sandbox.traffic.fail

    def convert(self, *products, run_id="run", **options):
        """The rows of one run."""
        url = str(self.settings.station_url).rstrip("/")
        inputs = options.pop("inputs", f"{url}/search?ids={','.join(products or [PRODUCT])}")
        options = {"collection": COLLECTION, "dask_cluster_label": "dask", "retry_delay_seconds": 0.05} | options
        options |= {"deadline_minutes": options.get("deadline_minutes", 1)}
        rows, _ = flow.convert_on_demand(self.settings, inputs, run_id=run_id, show=self.lines.append, **options)
        return rows

    def objects(self) -> list[str]:
        """Everything in the object storage."""
        s3 = self.sandbox.catalog.s3
        pages = {name: s3.get_paginator("list_objects_v2").paginate(Bucket=name) for name in osam.BUCKETS}
        return [f"s3://{name}/{o['Key']}" for name in pages for page in pages[name] for o in page.get("Contents", [])]

    def items(self, collection: str = COLLECTION) -> list[dict]:
        return list(self.sandbox.catalog.items.get(f"sandboxuser_{collection}", {}).values())

    def asked(self, service: str, method: str = "POST", path: str = "execution$") -> int:
        return len(self.sandbox.traffic.received(service, method, path))

    def check(self, *products: str, staged: int = 0) -> None:
        """There is one item and one whole Zarr for each of these products, and nothing else."""
        items, station = self.items(), str(self.settings.station_url).rstrip("/")
        sources = [link["href"] for item in items for link in item["links"] if link["rel"] == "derived_from"]
        wanted = [f"{station}/collections/sentinel-2-l2a/items/{product}" for product in products]
        assert sorted(sources) == sorted(wanted)
        zarrs = [asset["href"] for item in items for asset in item["assets"].values()]
        assert len(zarrs) == len(products)
        there = self.objects()
        assert [uri for uri in there if not uri.startswith(tuple(f"{zarr}/" for zarr in zarrs))] == []
        store = Store(storage(self.settings))
        assert all(store.whole_zarrs(zarr) == [zarr] for zarr in zarrs)
        assert len(self.items(STAGING)) == staged
        scratch = self.settings.state_dir.glob("*/conversion/scratch/*/*")
        assert not list(scratch)


@pytest.fixture
def world(sandbox, quick, prefect_server, settings):
    return World(
        sandbox, settings.model_copy(update={"prefect_api_url": prefect_server.url, "rspy_poll_seconds": 0.05})
    )


def the_row(rows: list[dict]) -> dict:
    (row,) = rows
    assert row["left"] == []
    return row


# --- without faults ---


def test_a_product_is_converted_published_and_nothing_else_stays(world):
    row = the_row(world.convert())
    world.check(PRODUCT)
    (item,) = world.items()
    assert row["outcome"] == "converted" and row["item"] == item["id"] and row["reason"] == ""
    assert row["zarr_uri"] == item["assets"][item["id"]]["href"] and row["zarr_uri"].endswith(f"/{item['id']}.zarr")
    assert item["geometry"] == granule_footprint(PRODUCT) and item["properties"]["product:type"] == "S02MSIL2A"
    assert row["bytes_in"] > 1000 and row["bytes"] > 4
    assert list(row["steps"]) == ["look", "stage", "unpack", "convert", "describe", "publish", "clean up"]
    assert [step["step"] for step in row["timeline"]] == [*row["steps"], "converted"]
    assert [line.partition(": ")[2] for line in world.lines] == [*row["steps"], "converted"]
    json.dumps(row)


def test_a_second_run_converts_nothing_and_says_so(world, tmp_path):
    first = the_row(world.convert())
    asked = world.asked("staging"), world.asked("dpr")
    elsewhere = world.settings.model_copy(update={"state_dir": tmp_path / "another machine"})
    for settings, run_id in ((world.settings, "run"), (world.settings, "another"), (elsewhere, "third")):
        row = the_row(World(world.sandbox, settings).convert(run_id=run_id))
        assert row["outcome"] == "present" and row["zarr_uri"] == first["zarr_uri"]
    assert (world.asked("staging"), world.asked("dpr")) == asked == (1, 1)
    world.check(PRODUCT)
    world.sandbox.catalog.s3.delete_object(
        Bucket="rspy-products", Key=f"{first['zarr_uri'].split('/', 3)[3]}/zarr.json"
    )
    assert the_row(world.convert())["outcome"] == "converted"  # an item without its Zarr is no product
    world.check(PRODUCT)


def test_each_product_of_a_batch_has_its_own_outcome(world):
    world.fail("null-type", service="station", path=PRODUCTS[1])
    station = str(world.settings.station_url).rstrip("/")
    good = world.sandbox.station.item(PRODUCTS[0], station)
    nameless = {"type": "Feature", "properties": {}, "assets": {}}
    world.fail("staging-failed", service="staging", path=PRODUCTS[2], times=10)
    inputs = [
        good,
        f"{station}/search?ids={','.join(PRODUCTS)}",
        nameless,
        f"{station}/no-such-page",
        "no-such-file.json",
    ]
    rows = world.convert(inputs=inputs)
    by_id = {row["id"] or row["source"]: (row["outcome"], row["reason"]) for row in rows}
    assert len(rows) == len(by_id) == 6
    assert by_id[PRODUCTS[0]][0] == "converted" and [outcome for outcome, _ in by_id.values()].count("failed") == 5
    assert "product:type is missing" in by_id[PRODUCTS[1]][1] and "the station hung up" in by_id[PRODUCTS[2]][1]
    assert "404" in by_id[f"{station}/no-such-page"][1] and "No such file" in by_id["no-such-file.json"][1]
    assert "no id" in by_id[""][1]
    world.check(PRODUCTS[0])


def test_what_was_staged_can_be_kept_and_is_used_again(world):
    the_row(world.convert(keep_staged=True))
    (item,) = world.items(STAGING)
    manifest = item["assets"]["product"]["href"]
    assert manifest.endswith(f"{PRODUCT}.SAFE/manifest.safe") and manifest in world.objects()
    assert not [uri for uri in world.objects() if uri.endswith(".zip")]
    rows = world.convert(collection="another", staging_collection=STAGING)
    assert the_row(rows)["outcome"] == "converted" and world.asked("staging") == 1
    assert not world.items(STAGING) and not [uri for uri in world.objects() if STAGING in uri]


def test_a_run_can_be_taken_back(world):
    world.convert(*PRODUCTS[:2])
    world.convert(PRODUCTS[2], run_id="other")
    state = RunState(world.settings, "conversion", "run", cleaning=True)
    counts = cleaning.clean_up(state, world.settings)
    assert counts == {"items": 2, "objects": 8, "files": 0}
    world.check(PRODUCTS[2])
    assert cleaning.clean_up(state, world.settings) == {"items": 0, "objects": 0, "files": 0}


def test_the_flow_can_be_sent_to_another_process():
    """As `flow.serve` does it: its module by value."""
    cloudpickle.register_pickle_by_value(flow)
    try:
        again = cloudpickle.loads(cloudpickle.dumps(flow.on_demand_conversion))
    finally:
        cloudpickle.unregister_pickle_by_value(flow)
    assert again.name == "on-demand-conversion"


# --- found out beforehand ---


@pytest.mark.parametrize(("fault", "said"), [
    ({"kind": "null-type", "service": "station"}, "product:type is missing"),
    ({"kind": "unknown-type", "service": "station"}, "'XX_9_ZZZ___' is none that EOPF converts"),
    ({"kind": "disputed-rules", "service": "osam"}, "client's reading gives rspy-archive, the services' rspy-products"),
])  # fmt: skip
def test_what_can_be_known_is_known_before_a_byte_is_staged(world, fault, said):
    world.fail(**fault)
    row = the_row(world.convert())
    assert row["outcome"] == "failed" and said in row["reason"]
    assert world.asked("staging") == world.asked("dpr") == 0
    world.check()


def test_without_the_right_to_write_nothing_is_staged(world):
    secret = world.settings.rspy_s3_secret_key.__class__
    reader = {
        "rspy_s3_access_key": secret("sandbox-rspy-reader"),
        "rspy_s3_secret_key": secret("sandbox-rspy-reader-secret"),
    }
    world.settings = world.settings.model_copy(update=reader)
    row = the_row(world.convert())
    assert row["outcome"] == "failed" and "AccessDenied" in row["reason"] and "reader-secret" not in row["reason"]
    assert world.asked("staging") == 0


def test_all_that_is_wrong_with_a_run_is_said_at_once(world):
    world.fail("unavailable", service="osam", times=100)
    world.fail("forbidden", service="dpr", times=100)
    with pytest.raises(Rejected) as refused:
        world.convert(owner="somebody-else", collection="a:b", staging_collection="a:b", dask_cluster_label="")
    said = str(refused.value)
    for each in (
        "'somebody-else'",
        "dask_cluster_label",
        "'a:b' is no name",
        "where converted ones go",
        "bucket rules",
        "403",
    ):
        assert each in said
    assert world.asked("staging") == 0
    world.check()


def test_a_signed_link_is_not_given_to_prefect(world, prefect_server):
    item = world.sandbox.station.item(PRODUCT, "http://127.0.0.1:9")
    world.convert(inputs={"type": "Feature", "id": "before"})
    item["assets"]["product"]["href"] += "?X-Amz-Signature=0123456789abcdef"
    with pytest.raises(Rejected, match="hold a secret") as refused:
        world.convert(inputs=item)
    assert "0123456789abcdef" not in str(refused.value)
    with closing(sqlite3.connect(prefect_server.log.with_suffix(".db"))) as database:
        kept = "\n".join(database.iterdump())
    assert '"before"' in kept and "0123456789abcdef" not in kept


# --- staging ---


@pytest.mark.parametrize("kind", ["nothing-staged", "staging-failed", "corrupt-archive", "vanished-job"])
def test_staging_that_goes_wrong_once_is_repeated(world, kind):
    world.fail(kind, service="staging")
    assert the_row(world.convert())["outcome"] == "converted"
    assert world.asked("staging") == (2 if kind != "vanished-job" else world.asked("staging"))
    world.check(PRODUCT)


@pytest.mark.parametrize(("kind", "said"), [
    ("nothing-staged", "Finished without processing any tasks"),
    ("staging-failed", "At least one of the tasks failed"),
    ("corrupt-archive", "the archive that was staged is damaged"),
])  # fmt: skip
def test_staging_that_keeps_going_wrong_ends_with_its_reason(world, kind, said):
    world.fail(kind, service="staging", times=100)
    row = the_row(world.convert(staging_retries=1))
    assert row["outcome"] == "failed" and said in row["reason"]
    assert world.asked("staging") == 2 and world.asked("dpr") == 0
    world.check()


def test_an_order_whose_answer_is_lost_is_not_repeated(world):
    world.fail("lost-answer", **ORDERING)
    world.fail("lost-answer", **CONVERTING)
    assert the_row(world.convert())["outcome"] == "converted"
    assert world.asked("staging") == 1 and world.asked("dpr") == 1
    world.check(PRODUCT)


@pytest.mark.parametrize("gone", [".bin", ".safe", ""])
def test_an_item_that_was_left_without_its_files_is_healed(world, gone):
    """The staging service skips what is catalogued, and says that it was successful."""
    world.fail("conversion-failed", service="dpr", times=100)
    world.convert(keep_staged=True, conversion_retries=0)
    world.sandbox.traffic.heal()
    for uri in world.objects():
        if uri.endswith(gone):
            world.sandbox.catalog.s3.delete_object(Bucket=uri.split("/")[2], Key=uri.split("/", 3)[3])
    assert len(world.items(STAGING)) == 1
    assert the_row(world.convert(staging_retries=0))["outcome"] == "converted"
    world.check(PRODUCT)


# --- conversion ---


@pytest.mark.parametrize(
    "kind", ["conversion-failed", "worker-killed", "no-write-permission", "null-message", "vanished-job"]
)
def test_a_conversion_that_goes_wrong_once_comes_to_a_good_end(world, kind):
    world.fail(kind, service="dpr")
    assert the_row(world.convert())["outcome"] == "converted"
    # What was converted all the same is not converted again.
    assert world.asked("dpr") == (1 if kind in ("null-message", "vanished-job") else 2)
    world.check(PRODUCT)


@pytest.mark.parametrize(("kind", "said"), [
    ("conversion-failed", "Conversion failed: NO FILE/DIR MATCH"),
    ("worker-killed", "the worker died The log ends with: INFO one step"),
    ("no-write-permission", "No write permission on bucket"),
])  # fmt: skip
def test_a_conversion_that_keeps_going_wrong_ends_with_its_reason(world, kind, said):
    world.fail(kind, service="dpr", times=100)
    row = the_row(world.convert(conversion_retries=1))
    assert row["outcome"] == "failed" and said in row["reason"] and row["zarr_uri"] is None
    assert world.asked("dpr") == 2
    world.check()


def test_a_conversion_that_is_not_over_at_the_deadline_is_cancelled(world, quick):
    quick.seconds = 2.0
    row = the_row(world.convert(deadline_minutes=0.08))
    assert row["outcome"] == "failed" and "not over at the deadline" in row["reason"]
    assert world.asked("dpr") == world.asked("dpr", "DELETE", "/jobs/") == 1
    world.check()
    quick.seconds = 0.03
    assert the_row(world.convert())["outcome"] == "converted"
    world.check(PRODUCT)


# --- publishing, cleaning up ---


@pytest.mark.parametrize("kind", ["conflict", "lost-answer", "unavailable", "dropped"])
def test_publishing_converges_whatever_becomes_of_the_answers(world, kind):
    where = {} if kind == "conflict" else {"method": "POST", "path": f"{COLLECTION}/items"}
    world.fail(kind, service="catalog", **where)
    assert the_row(world.convert())["outcome"] == "converted"
    world.check(PRODUCT)


def test_a_catalogue_that_takes_no_item_gets_none(world):
    world.fail("forbidden", service="catalog", method="POST", path=f"{COLLECTION}/items", times=100)
    row = the_row(world.convert())
    assert row["outcome"] == "failed" and "403" in row["reason"]
    world.check()


def test_a_zarr_that_may_be_published_is_not_removed(world):
    """The answer to the publication is lost, and the catalogue is silent from then on."""
    world.fail("lost-answer", service="catalog", method="POST", path=f"{COLLECTION}/items")
    world.fail("dropped", service="catalog", method="GET", path=f"{COLLECTION}/items/S02", skip=1, times=1000)
    (row,) = world.convert()
    assert row["outcome"] == "failed" and "may be published" in " ".join(row["left"])
    world.sandbox.traffic.heal()
    assert the_row(world.convert())["outcome"] == "present"
    world.check(PRODUCT)


def test_another_products_item_is_not_replaced(world):
    """Two sources of one name: the second is refused, the first stays whole."""
    the_row(world.convert())
    item = world.sandbox.station.item(PRODUCT, str(world.settings.station_url).rstrip("/"))
    item["links"] = [{"rel": "self", "href": "https://elsewhere.example/items/1"}]
    row = the_row(world.convert(inputs=pystac.Item.from_dict(item), run_id="second"))
    assert row["outcome"] == "failed" and "is published in s2-zarr already, converted from http" in row["reason"]
    world.check(PRODUCT)


def test_what_could_not_be_removed_is_told_and_removed_by_the_next_run(world):
    world.fail("unavailable", service="catalog", method="DELETE", times=100)
    (row,) = world.convert()
    assert row["outcome"] == "converted"
    assert len(row["left"]) == 1 and row["left"][0].startswith(f"the item {PRODUCT} in sandboxuser:{STAGING}: ")
    assert not [uri for uri in world.objects() if STAGING in uri]
    world.check(PRODUCT, staged=1)
    world.sandbox.traffic.heal()
    assert the_row(world.convert())["outcome"] == "present"
    world.check(PRODUCT)


# --- secrets ---


def test_no_secret_is_in_what_prefect_and_the_run_keep(world, prefect_server):
    world.fail("conversion-failed", service="dpr", times=100)
    rows = world.convert(*PRODUCTS[:2], conversion_retries=0)
    secrets = [
        getattr(world.settings, name).get_secret_value()
        for name in ("rspy_apikey", "jupyterhub_api_token", "rspy_s3_secret_key", "rspy_s3_access_key")
    ]
    kept = json.dumps(rows) + "\n".join(world.lines)
    for file in [*world.settings.state_dir.rglob("*"), *prefect_server.log.parent.rglob("*")]:
        if file.is_file():
            kept += file.read_bytes().decode("latin-1")
    with closing(sqlite3.connect(prefect_server.log.with_suffix(".db"))) as database:
        kept += "\n".join(database.iterdump())
    assert PRODUCT in kept and "NO FILE/DIR MATCH" in kept  # it is the right database
    # "sandbox-rspy" also begins the words of other things
    assert [secret for secret in secrets if secret != "sandbox-rspy" and secret in kept] == []


# --- kills ---

#: Runs conversions in forks of a process that has imported everything: one line of standard input each.
FORKING = """
import json, os, sys
from helpers import settings
from helpers.conversion import flow
print("ready", flush=True)
for line in sys.stdin:
    inputs, run_id = json.loads(line)
    if (child := os.fork()) == 0:
        options = {"collection": "s2-zarr", "dask_cluster_label": "dask", "retry_delay_seconds": 0.05}
        rows, _ = flow.convert_on_demand(settings.load(), inputs, run_id=run_id, show=lambda line: None, **options)
        os._exit(any(row["outcome"] == "failed" or row["left"] for row in rows))
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize(("what", "method"), [
    (Services, "stage"),
    (Store, "upload"),
    (Services, "replace_item"),
    (Services, "convert"),
    (Services, "add_collection"),
    (Services, "add_item"),
    (Services, "remove_item"),
])  # fmt: skip
def test_killed_right_after_it_asked_for_something_it_knows_so(world, monkeypatch, what, method):
    """The request has its effect, and its answer is never noted: the narrowest places for a kill."""
    do = getattr(what, method)

    def killed(*arguments):
        do(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(what, method, killed)
        with pytest.raises(Killed):
            world.convert()
    row = the_row(world.convert())
    assert row["outcome"] == ("present" if method in ("add_item", "remove_item") else "converted")
    assert world.asked("staging") == world.asked("dpr") == 1
    world.check(PRODUCT)


def test_killed_while_it_tries_whether_it_may_write_it_leaves_nothing(world, monkeypatch):
    def killed(**_):
        raise Killed

    with monkeypatch.context() as patch:
        store = storage(world.settings)
        patch.setattr(store, "delete_object", killed)
        patch.setattr(flow, "storage", lambda settings: store)
        with pytest.raises(Killed):
            world.convert()
    assert len(world.objects()) == 1
    assert the_row(world.convert())["outcome"] == "converted"
    world.check(PRODUCT)


def test_killed_at_ten_random_moments_it_carries_on(world, environment, prefect):
    random.seed(time.time_ns())
    env = os.environ | environment | prefect
    command = [sys.executable, "-c", FORKING]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    kills, done, station = 0, 0, str(world.settings.station_url).rstrip("/")
    squares = [f"{first}{second}" for first in "QPRSTU" for second in "RSTUVW"]
    products = [PRODUCT.replace("T32TQR", f"T32T{square}") for square in squares]
    with subprocess.Popen(command, env=env, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        while kills < 10:
            product = products[done]
            print(json.dumps([f"{station}/search?ids={product}", f"run-{done}"]), file=process.stdin, flush=True)
            child = int(process.stdout.readline())
            sleep(random.uniform(0.2, 3.5))
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            status = int(process.stdout.readline())
            assert status in (0, signal.SIGKILL)
            kills += status == signal.SIGKILL
            done += status == 0
        process.stdin.close()
    for number in range(done + 1):
        (row,) = world.convert(products[number], run_id=f"run-{number}")
        assert row["outcome"] in ("converted", "present") and row["left"] == []
    assert row["outcome"] == "converted" or done  # the last one was killed before it was published, or after
    world.check(*products[: done + 1])
