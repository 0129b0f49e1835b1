"""Notebook 5 end to end, in real kernels: what is in the catalogue and the storage afterwards, what was asked for."""

import os
import re
import subprocess
import sys

import pytest
import xarray as xr
import yaml

from helpers.conversion import here
from helpers.conversion.comparing import compare, pairs
from helpers.sandbox.safe_products import write_safe

from ..conftest import NOTEBOOKS

NAME = "5_safe_to_zarr.ipynb"
PARAMETERS = NOTEBOOKS / "parameters"
#: Requests that start work at the services, or change the catalogue.
CHANGES = (("staging", "POST", ""), ("dpr", "POST", ""), ("catalog", "POST|PUT|DELETE", "items"))


def parameters(name: str) -> dict:
    return yaml.safe_load((PARAMETERS / f"convert_{name}.yaml").read_text())


def published(sandbox, collection: str) -> dict[str, dict]:
    return sandbox.catalog.items.get(f"sandboxuser_{collection}", {})


def stored(s3_inside, prefix: str = "") -> list[str]:
    pages = s3_inside.get_paginator("list_objects_v2").paginate(Bucket="rspy-products", Prefix=prefix)
    return [o["Key"] for page in pages for o in page.get("Contents", [])]


def changes(sandbox) -> list:
    return [
        request
        for service, methods, path in CHANGES
        for request in sandbox.traffic.received(service, path=path)
        if re.fullmatch(methods, request.method) and "search" not in request.path
    ]


@pytest.fixture
def storage(sandbox):
    return sandbox._s3_client("rs-python")


@pytest.mark.slow
def test_twice_makes_one_item_and_one_zarr_of_each_mission(sandbox, storage, run_notebook, prefect, tmp_path):
    """And a clean-up afterwards deletes what its own run made, and no more."""
    inputs = [parameters(f"sentinel{mission}")["inputs"][-1] for mission in (1, 2, 3)]
    wanted = {"inputs": inputs, "collection": "sentinel-zarr", "run_id": "kept"}
    first = run_notebook(NAME, prefect, **wanted)
    assert first.outcome == "ok", first.error
    assert list(first.results["results"].values()) == ["converted"] * 3

    items = published(sandbox, wanted["collection"])
    addresses = {next(iter(item["assets"].values()))["href"] for item in items.values()}
    assert addresses == set(first.results["zarr"].values())
    sources = {link["href"] for item in items.values() for link in item["links"] if link["rel"] == "derived_from"}
    assert sources == {f"{sandbox.url('station')}/{one}" for one in inputs}
    assert published(sandbox, f"{wanted['collection']}-staging") == {}
    folders = tuple(address.removeprefix("s3://rspy-products/") for address in addresses)
    assert stored(storage) and all(key.startswith(folders) for key in stored(storage))
    before = (items.copy(), sorted(stored(storage)))

    sandbox.traffic.requests.clear()
    again = run_notebook(NAME, prefect, **wanted)
    assert again.outcome == "ok", again.error
    assert set(again.results["results"].values()) == {"present"}
    assert again.results["zarr"] == first.results["zarr"]
    assert changes(sandbox) == []
    assert (published(sandbox, wanted["collection"]), sorted(stored(storage))) == before

    other = wanted | {"inputs": [inputs[1].replace("T32TQR", "T32TQS")], "run_id": "gone", "clean_up": True}
    gone = run_notebook(NAME, prefect, **other | {"overviews": False})
    assert gone.outcome == "ok", gone.error
    assert list(gone.results["results"].values()) == ["converted"]
    assert (published(sandbox, wanted["collection"]), sorted(stored(storage))) == before
    assert list((tmp_path / "outputs").iterdir()) == [tmp_path / "outputs/kept"]


@pytest.mark.slow
def test_here_it_needs_no_service_at_all(sandbox, run_notebook, tmp_path):
    """SAFE folders on this disk, such as notebook 2 leaves them; the numbers of the Zarr are those of the files."""
    root = write_safe(tmp_path, "S2A_MSIL1C_20240815T100601_N0511_R022_T32TQR_20240815T135034", 120)
    wanted = {"converter": "here", "inputs": [str(root)], "overviews": False}
    run = run_notebook(NAME, **wanted)
    assert run.outcome == "ok", run.error
    assert list(run.results["results"].values()) == ["converted"]
    (place,) = run.results["zarr"].values()
    tree = xr.open_datatree(place, engine="zarr", mask_and_scale=False)
    compared = [compare(pair) for pair in pairs(tree, root)]
    assert len(compared) == 13 and all(row["different"] == 0 for row in compared)
    assert {request.service for request in sandbox.traffic.received()} == set()


@pytest.mark.slow
def test_a_plain_script_needs_no_guard(tmp_path, environment):
    """Python's way to start processes runs a script again in each, unless it is written with care: nobody does."""
    root = write_safe(tmp_path, "S2A_MSIL1C_20240815T100601_N0511_R022_T32TQR_20240815T135034", 60)
    script = tmp_path / "script.py"
    lines = ["from helpers import conversion", f"done = conversion.convert({str(root)!r}, {str(tmp_path / 'out')!r})"]
    script.write_text("\n".join([*lines, "print('outcome', done.outcome)"]))
    command, env = [sys.executable, str(script)], os.environ | environment
    run = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.splitlines()[-1] == "outcome converted" and run.stdout.count("outcome") == 1


@pytest.mark.parametrize("wrong, said", [
    ({"converter": "there"}, ["'service' or 'here'"]),
    ({"inputs": ["some/folder.SAFE"]}, ["'some/folder.SAFE' is no address of STAC items", "the converter 'here'"]),
    ({"look_at": -1, "workers": 0, "run_id": "../x"}, ["look_at: -1", "workers: 0", "run_id '../x'"]),
    ({"converter": "here", "inputs": ["no/such/folder.SAFE"]}, ["no such file or folder", "no/such/folder.SAFE"]),
    ({"converter": "here", "inputs": [f"{NOTEBOOKS}", f"{NOTEBOOKS}/../notebooks"]}, ["the same product as"]),
    ({"collection": "a b"}, ["collection 'a b': use letters"]),
    ({"collection": ""}, ["collection '': use letters"]),
])  # fmt: skip
def test_wrong_parameters_are_refused_before_anything_is_sent(wrong, said, sandbox, open_notebook):
    from helpers.errors import Rejected

    before = here._own  # a test before may have left workers
    with pytest.raises(Rejected) as error:
        open_notebook(NAME, **wrong).run(8)
    assert all(words in str(error.value) for words in said)
    assert changes(sandbox) == []
    assert here._own is before  # no worker was started either
