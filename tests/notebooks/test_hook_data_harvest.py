"""Notebook 2, run for real: what the stand-in received, what is on disk and in the bucket, what a second run adds."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from datetime import timedelta

import boto3
import psutil
import pytest
import yaml
from botocore.config import Config

from helpers import safe

from ..conftest import NOTEBOOKS, PROJECT

NOTEBOOK = "2_hook_data_harvest.ipynb"
TILE = "S2A_MSIL1C_20230910T050701_N0509_R019_T{}_20230910T074321.SAFE"
PRODUCT = TILE.format("47VLH")
ORDERING = r"/BatchOrder/OData\.CSC\.Order$"


def orders(sandbox) -> list:
    return list(sandbox.hook.orders.values())


def orders_received(sandbox) -> int:
    return len(sandbox.traffic.received("hook", "POST", ORDERING))


def downloads(sandbox) -> int:
    return len(sandbox.traffic.received("hook-storage", "GET"))


@pytest.fixture
def harvest_s3(sandbox):
    """A client of the storage that PRIVATE orders write to, with the sandbox's keys for it."""
    env = sandbox.environment
    client = boto3.client(
        "s3",
        endpoint_url=env["HOOK_OUTPUT_STORAGE_URL"],
        aws_access_key_id=env["HOOK_OUTPUT_STORAGE_ACCESS_KEY"],
        aws_secret_access_key=env["HOOK_OUTPUT_STORAGE_SECRET_KEY"],
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )
    yield client
    client.close()


def keys(s3, bucket: str) -> dict[str, int]:
    return {o["Key"]: o["Size"] for o in s3.list_objects_v2(Bucket=bucket).get("Contents", [])}


def test_harvests_into_temporary_storage_and_home(sandbox, run_notebook, tmp_path):
    run = run_notebook(NOTEBOOK)
    assert run.outcome == "ok", run.error
    assert run.results["order_id"] == orders(sandbox)[0].id and len(orders(sandbox)) == 1
    assert run.results["states"] == {PRODUCT: "completed"}
    (archive,) = (tmp_path / "outputs" / "first-harvest").glob("order-*/*.zip")
    assert zipfile.ZipFile(archive).testzip() is None
    root = archive.parent / PRODUCT
    assert run.results["products"] == {PRODUCT: PRODUCT}
    assert len(safe.members(root)) > 30 and safe.verify(root) == []
    assert not list(archive.parent.rglob("*.part*"))


def test_a_second_run_orders_and_downloads_nothing(sandbox, run_notebook):
    first = run_notebook(NOTEBOOK)
    assert (orders_received(sandbox), downloads(sandbox)) == (1, 1)
    second = run_notebook(NOTEBOOK)
    assert second.outcome == "ok", second.error
    assert (orders_received(sandbox), downloads(sandbox)) == (1, 1)
    assert second.results == first.results


def test_harvests_into_a_bucket_and_home(sandbox, run_notebook, harvest_s3, tmp_path):
    parameters = {"storage": "PRIVATE", "bucket": "my-harvest"}
    run = run_notebook(NOTEBOOK, **parameters)
    assert run.outcome == "ok", run.error
    there = keys(harvest_s3, "my-harvest")
    root = tmp_path / "outputs" / "first-harvest" / f"order-{run.results['order_id']}" / PRODUCT
    for member in safe.members(root):
        assert there[f"dedl-data-harvest-first-order/{PRODUCT}/{member.path}"] == member.size
    assert safe.verify(root) == []
    again = run_notebook(NOTEBOOK, **parameters)
    assert again.outcome == "ok", again.error
    assert again.results == run.results
    assert orders_received(sandbox) == 1 and downloads(sandbox) == 0
    assert keys(harvest_s3, "my-harvest") == there


def test_shows_pictures_that_read_on_paper(sandbox, run_notebook):
    import nbformat

    run = run_notebook(NOTEBOOK)
    outputs = [o for c in nbformat.read(run.output, 4).cells for o in c.get("outputs", [])]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 2
    assert all(len(o["metadata"]["image/png"]["alt"]) > 20 for o in pictures)


def test_says_where_the_files_came_from_without_secrets(sandbox, run_notebook, tmp_path):
    run = run_notebook(NOTEBOOK)
    (note,) = (tmp_path / "outputs" / "first-harvest").glob("order-*/provenance-*.json")
    told = json.loads(note.read_text())
    assert told["service"] == sandbox.environment["HOOK_API_URL"].rstrip("/")
    assert told["order"] == {"id": run.results["order_id"], "name": orders(sandbox)[0].name, "workflow": "data-harvest"}
    assert told["options"]["desp_source_collection"] == "EO.ESA.DAT.SENTINEL-2.MSI.L1C"
    assert "desp_source_password" not in told["options"]
    assert re.fullmatch("[0-9a-f]{64}", told["items"][0]["sha256"])


def test_the_bearer_never_goes_to_the_object_store(sandbox, open_notebook):
    open_notebook(NOTEBOOK).run()
    received = sandbox.traffic.received("hook-storage")
    assert received and not any(request.authorized for request in received)
    assert all(request.authorized for request in sandbox.traffic.received("hook"))


def test_several_products_are_worked_on_as_the_role_says_and_all_come_home(sandbox, open_notebook):
    products = [TILE.format(tile) for tile in ("47VLH", "47VMH", "47VLJ")]
    session = open_notebook(NOTEBOOK, products=products).run()
    assert sorted(session["roots"][item["Id"]].name for item in session["items"]) == sorted(products)
    (order,) = orders(sandbox)
    assert orders_received(sandbox) == 1
    assert session["order_id"] == order.id


@pytest.mark.parametrize("kind", ["STAC", "ODATA"])
def test_harvests_from_another_catalogue(sandbox, open_notebook, monkeypatch, kind):
    monkeypatch.setenv("HOOK_EXTERNAL_CATALOGUE_TYPE", kind)
    session = open_notebook(NOTEBOOK, source_type="EXTERNAL").run()
    assert session["products"] == [] and len(session["roots"]) == 1
    sent = {entry["Name"]: entry["Value"] for entry in session["order"]["WorkflowOptions"]}
    assert (sent["source_catalogue_api_type"], sent["source_grant_type"]) == (kind, "PASSWORD")
    assert not any(name.startswith("desp_") for name in sent)
    assert len(sandbox.traffic.received("hook", "GET", "/external/")) == 1


@pytest.mark.parametrize("file", sorted(NOTEBOOKS.glob("parameters/hook_*.yaml")), ids=lambda file: file.stem)
def test_every_parameter_file_runs(sandbox, open_notebook, harvest_s3, file):
    if "hello" in file.stem:
        harvest_s3.create_bucket(Bucket="hello-world")
        harvest_s3.put_object(Bucket="hello-world", Key="input/example.data", Body=b"hello from the data lake")
    parameters = yaml.safe_load(file.read_text())
    session = open_notebook(NOTEBOOK, **parameters).run()
    assert [row["why"] for row in session["outcome"]] == [""] * len(parameters["products"])
    assert [order.workflow["Name"] for order in orders(sandbox)] == [parameters["workflow"]]
    made = [file for root in session["roots"].values() for file in root.rglob("*") if file.is_file()]
    if "hello" in file.stem:
        assert any(b"HELLO FROM THE DATA LAKE" in one.read_bytes() for one in made)
    elif "card" in file.stem:
        assert session["rasters"]
    else:
        assert session["safes"]


def test_an_env_file_of_the_published_tutorial_works_unchanged(sandbox, open_notebook, tmp_path, monkeypatch):
    """The lines of its README for MAJA: quotes, numbered options, an empty collection and an empty source."""
    scene = "S2B_MSIL1C_20220429T102549_N0400_R108_T31UGQ_20220429T124017.SAFE"
    (tmp_path / ".env_tutorial").write_text(
        "HOOK_ORDER_NAME=jane-20250212-1\nHOOK_WORKFLOW=maja\nHOOK_COLLECTION_ID=\n"
        f"HOOK_DATA_ID={scene}\nHOOK_SOURCE_TYPE=\n"
        'HOOK_ADDITIONAL1="NAME=input_type;VALUE=TIMESPAN;VALUE_TYPE=str"\n'
        f'HOOK_ADDITIONAL2="NAME=timeseries_end_id;VALUE={scene};VALUE_TYPE=str"\n'
        'HOOK_ADDITIONAL3="NAME=timespan;VALUE=18;VALUE_TYPE=int"\n'
        "HOOK_IS_PRIVATE_STORAGE=False\n"
    )
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / NOTEBOOK))
    session = open_notebook(NOTEBOOK).run()
    (order,) = orders(sandbox)
    assert order.name.startswith("jane-20250212-1 first-harvest ")
    assert {option["Name"]: option["Value"] for option in order.options} == {
        "output_storage": "TEMPORARY", "input_type": "TIMESPAN", "timeseries_end_id": scene, "timespan": 18
    }  # fmt: skip
    assert "MSIL2A" in session["items"][0]["ProcessedName"]


def test_killed_after_any_cell_it_carries_on(sandbox, open_notebook):
    for cells, _ in enumerate(open_notebook(NOTEBOOK).cells, 1):  # each time it gets one cell further, and dies
        finished = open_notebook(NOTEBOOK).run(cells)
    assert len(orders(sandbox)) == 1 and len(finished["roots"]) == 1


def test_cleans_up_exactly_what_it_wrote(sandbox, open_notebook, harvest_s3, tmp_path):
    harvest_s3.create_bucket(Bucket="my-harvest")
    harvest_s3.put_object(Bucket="my-harvest", Key="dedl-data-harvest-first-order/mine.txt", Body=b"mine")
    session = open_notebook(NOTEBOOK, storage="PRIVATE", bucket="my-harvest", clean_up=True).run(cells=13)
    mine = session["folder"] / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    for cell in session.cells[13:]:
        session.execute(cell.source)
    assert list(keys(harvest_s3, "my-harvest")) == ["dedl-data-harvest-first-order/mine.txt"]
    assert [path.name for path in mine.parent.iterdir()] == ["mine.txt"]
    with pytest.raises(Exception, match="Choose another run_id"):
        open_notebook(NOTEBOOK, storage="PRIVATE", bucket="my-harvest").run()


def test_clean_up_withdraws_what_is_still_queued(sandbox, open_notebook, monkeypatch):
    products = [TILE.format(tile) for tile in ("47VLH", "47VMH", "47VLJ")]
    monkeypatch.setattr(sandbox.hook.processor, "queued", timedelta(hours=1))
    session = open_notebook(NOTEBOOK, products=products).run(cells=10)
    session.execute("gone = recipe.clean_up(state, hook, settings)")
    assert session["gone"]["cancelled"] == 1
    session.execute("items, _ = recipe.wait(order_id, hook, deadline=5, first=0.1)")
    assert [item["Status"].lower() for item in session["items"]] == ["cancelled"] * 3


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (
            {"storage": "SOMEWHERE", "source_type": "DISK"},
            ["neither TEMPORARY nor PRIVATE", "neither DESP nor EXTERNAL"],
        ),
        ({"storage": "PRIVATE"}, ["storage PRIVATE needs a bucket of yours", "HOOK_OUTPUT_BUCKET"]),
        ({"products": [PRODUCT, ""]}, ["product 2 is empty"]),
        ({"products": [PRODUCT, PRODUCT]}, ["product 1 again"]),
        ({"workflow": "data_harvest"}, ["There is no workflow 'data_harvest'", "Did you mean data-harvest?"]),
        ({"deadline_minutes": -5}, ["deadline_minutes: -5 is no time to wait"]),
        ({"collection": "EO.ESA.DAT.SENTINEL-1.L1_GRD"}, ["these products are of EO.ESA.DAT.SENTINEL-2.MSI.L1C"]),
        ({"options": {"timespam": 3}}, ["option 'timespam': the workflow has none of this name"]),
        ({"options": {"output_storage": "MINE"}}, ["'MINE' is none of PRIVATE, TEMPORARY"]),
        ({"workflow": "maja", "options": {"timespan": "18"}}, ["'timespan': expected int, got '18'"]),
        ({"deadline_minutes": "soon"}, ["deadline_minutes: expected float"]),
        ({"run_id": "no spaces please"}, ["run_id"]),
    ],
)
def test_bad_parameters_are_explained_before_anything_is_ordered(sandbox, open_notebook, parameters, said):
    with pytest.raises(Exception) as error:
        open_notebook(NOTEBOOK, **parameters).run()
    assert all(words in str(error.value) for words in said), error.value
    assert orders_received(sandbox) == 0


def test_what_another_order_left_is_not_taken_for_this_ones(sandbox, open_notebook, tmp_path):
    """The same run id at another service, or after a reset: the folder belongs to the order."""
    first = open_notebook(NOTEBOOK).run()
    there = first["folder"] / PRODUCT / "manifest.safe"
    there.write_text("of another world")
    sandbox.clock.advance(1)
    sandbox.reset()
    again = open_notebook(NOTEBOOK).run()
    assert again["folder"] != first["folder"] and safe.verify(again["folder"] / PRODUCT) == []


@pytest.mark.parametrize("damage", ["archive", "tree"])
def test_damaged_files_are_named_with_what_to_do_and_healed_by_it(sandbox, open_notebook, damage):
    products = [PRODUCT, TILE.format("47VMH")]
    session = open_notebook(NOTEBOOK, products=products).run()
    number = session["items"][0]["Id"]
    file, root = session["files"][number], session["roots"][number]
    if damage == "archive":
        shutil.rmtree(root)
        file.write_bytes(file.read_bytes()[:1000])
    else:
        next(root.rglob("*_B02.jp2")).write_bytes(b"short")
    names = {"archive": file.name, "tree": f"{file.name} and {root.name}"}[damage]
    again = open_notebook(NOTEBOOK, products=products)
    with pytest.raises(AssertionError, match=rf"(?s)1 of 2 products did not come.*Delete {re.escape(names)} in order-"):
        again.run()
    assert len(again["roots"]) == 1  # the other one
    file.unlink()
    shutil.rmtree(root, ignore_errors=True)
    open_notebook(NOTEBOOK, products=products).run()
    assert len(orders(sandbox)) == 1


def test_an_order_that_ends_without_items_is_no_success(sandbox, open_notebook):
    session = open_notebook(NOTEBOOK).run(cells=11)
    session.execute("items = []; done = []")
    with pytest.raises(AssertionError, match=r"1 of 1 products did not come.*the order ended without it"):
        for cell in session.cells[11:]:
            session.execute(cell.source)


def test_two_tiles_of_one_overpass_are_both_on_the_map(sandbox, open_notebook):
    session = open_notebook(NOTEBOOK, products=[PRODUCT, TILE.format("47VMH")]).run()
    assert set(session["on_map"]) == {f"S2A_MSIL1C_20230910T050701_T{tile}" for tile in ("47VLH", "47VMH")}


def test_slashes_in_a_prefix_do_not_lose_what_was_delivered(sandbox, open_notebook):
    session = open_notebook(NOTEBOOK, storage="PRIVATE", bucket="my-harvest", prefix="/a//b/").run()
    assert session["wanted"].prefix == "a/b" and len(session["roots"]) == 1


def test_a_run_that_ordered_something_else_is_refused(sandbox, open_notebook):
    open_notebook(NOTEBOOK).run()
    with pytest.raises(Exception, match=r"ordered something else already.*choose another run_id"):
        open_notebook(NOTEBOOK, products=[TILE.format("47VMH")]).run()
    assert len(orders(sandbox)) == 1


def kill_after(command: list[str], env: dict, cells: int, seconds: float) -> None:
    """Start a run and kill it, its kernel too, with SIGKILL so long after its n-th cell has ended."""
    process = subprocess.Popen(command, cwd=PROJECT, env=env, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if f" {cells}/" in line:
            break
    time.sleep(seconds)
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()
    process.stderr.close()


@pytest.mark.slow
def test_killed_at_random_moments_there_is_one_order_and_whole_files(sandbox, environment, tmp_path):
    """A real kernel, killed with SIGKILL ten times wherever it happens to be, and one run that is left alone."""
    from helpers import runner

    chance = random.Random()
    moments = [(chance.randrange(3, 20), chance.uniform(0, 0.3)) for _ in range(10)]
    print(f"killed after (cell, seconds): {moments}")
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "helpers", "run", str(NOTEBOOKS / NOTEBOOK), "-o", str(folder), "--no-html"]
    for cells, seconds in moments:
        kill_after(command, os.environ | environment, cells, seconds)
        assert len(orders(sandbox)) <= 1
    run = runner.run(NOTEBOOKS / NOTEBOOK, output=tmp_path / "again" / NOTEBOOK, env=environment)
    assert run.outcome == "ok", run.error
    assert len(orders(sandbox)) == 1
    (folder,) = (tmp_path / "outputs" / "first-harvest").iterdir()
    (archive,) = folder.glob("*.zip")
    assert zipfile.ZipFile(archive).testzip() is None
    assert safe.verify(folder / PRODUCT) == []
    left = {path.name for path in folder.iterdir() if not path.name.startswith(("output-", "provenance-"))}
    assert left == {PRODUCT}
