"""The chain's places: what is counted, and what is said of a place that does not answer, or is not the service."""

import json
import time
from datetime import UTC, datetime

import pytest

from helpers import catalog, chain, checking
from helpers.catalog.store import Entry, Origin
from helpers.sandbox import Deployment, Sandbox
from helpers.state import RunState

from ..catalog_items import item

ITEMS = "STAC catalogue"


def at(settings, *steps: str, **more) -> dict[str, chain.Link]:
    return {link.place: link for link in chain.look(settings, steps or chain.STEPS, **more)}


def put(s3, bucket: str, **sizes: int) -> None:
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    for name, size in sizes.items():
        s3.put_object(Bucket=bucket, Key=name.replace("__", "/"), Body=b"x" * size)


def test_only_what_the_runs_noted_is_counted_and_only_if_it_is_there(settings, s3):
    put(s3, "mine", hyp3__a__x=1000, hyp3__b__y=500, hyp3__bb__z=7, other=9)
    written = {"mine": ["hyp3/a/x", "hyp3/b/y", "hyp3/gone/z"], "no-bucket": ["a/b"]}
    RunState(settings, "hyp3", "a").save(written=written)
    found = at(settings, "order")["From HyP3, in your bucket"]
    assert (found.state, found.facts) == ("there", "2 objects, 1.5 kB")
    s3.delete_object(Bucket="mine", Key="hyp3/a/x")
    s3.delete_object(Bucket="mine", Key="hyp3/b/y")
    assert at(settings, "order")["From HyP3, in your bucket"].state == "nothing yet"


@pytest.mark.parametrize("runs", [2, chain.FEW + 5])
def test_what_others_have_in_the_bucket_hides_nothing(settings, s3, monkeypatch, runs):
    """However much it is; and however many runs there were, each with a folder of its own."""
    put(s3, "mine", **{f"a{n:03}": 1 for n in range(30)}, **{f"runs__r{n:03}__x": 2 for n in range(runs)})
    monkeypatch.setattr(chain, "MOST", runs + 5)
    RunState(settings, "hyp3", "a").save(written={"mine": [f"runs/r{n:03}/x" for n in range(runs)]})
    found = at(settings, "order")["From HyP3, in your bucket"]
    assert found.facts == f"{runs} objects, {2 * runs} bytes"
    monkeypatch.setattr(chain, "MOST", 1)
    assert at(settings, "order")["From HyP3, in your bucket"].facts.startswith("at least ")


def test_items_on_later_pages_count(sandbox, settings):
    owner = settings.rspy_owner_id.replace("-", "")
    about = {"owner": owner, "datetime": "2026-02-03T04:05:06Z"}
    items = {f"i{n}": item(f"i{n}", collection=f"{owner}_c", properties=about) for n in range(250)}
    sandbox.catalog.items[f"{owner}_c"] = items
    sandbox.catalog.collections[f"{owner}_c"] = COLLECTION | {"id": f"{owner}_c", "owner": owner}
    found = at(settings, "convert")["Zarr at RS-PYTHON"]
    assert found.state == "there" and found.facts.startswith("250 items;"), found


def test_looking_leaves_nothing_and_a_run_of_any_name_may_have_been_cleaned_up(settings):
    RunState(settings, "hyp3", "chain").save(cleaning=True, cleaned=True)
    before = sorted(settings.state_dir.rglob("*"))
    assert not [link for link in chain.look(settings) if link.state == "refused"]
    assert sorted(settings.state_dir.rglob("*")) == before


def test_archives_are_where_the_records_say(settings, s3, tmp_path):
    put(s3, "archive", p__a=3, p__b=4, q__c=5)
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/a").write_bytes(b"12345")
    for number, target in enumerate(("s3://archive/p", str(tmp_path / "disk"))):
        summary = settings.output_dir / f"archive/p/{number}/summary.json"
        summary.parent.mkdir(parents=True)
        summary.write_text(json.dumps({"target": target, "service": settings.service_name("hyp3")}))
    other = settings.output_dir / "archive/p/other/summary.json"
    other.parent.mkdir()
    other.write_text(json.dumps({"target": "s3://archive/q", "service": "hyp3-api.asf.alaska.edu"}))
    found = at(settings, "archive")
    assert found["Archive in a bucket"].facts == "2 objects, 7 bytes"
    assert found["Archive on this disk"].facts == "1 file, 5 bytes"


def test_a_place_of_somebody_elses_is_refused(settings):
    from helpers.sandbox import s3 as sandbox_s3

    sandbox_s3.create_bucket("their-bucket", "999988887777", "us-west-2")
    found = at(settings, "archive", places=["s3://their-bucket", "no/such/folder"])
    assert found["s3://their-bucket"].state == "refused" and "AccessDenied" in found["s3://their-bucket"].facts
    assert found["no/such/folder"].state == "nothing yet"


@pytest.mark.parametrize("fault, state, said", [
    ({"kind": "expired-token"}, "refused", "401: Invalid authorization token provided: Signature has expired"),
    ({"kind": "unavailable"}, "no answer", "503"),
    ({"kind": "dropped"}, "no answer", "no answer (ConnectionError)"),
    ({"kind": "slow", "seconds": 2}, "no answer", "nothing came within 0.5 s"),
])  # fmt: skip
def test_one_that_does_not_answer_hides_nobody_else(sandbox, settings, fault, state, said):
    at(settings, "order")  # imports take longer than half a second
    sandbox.traffic.fail(**fault, service="hyp3", times=9)
    began = time.monotonic()
    found = at(settings, "order", answer_within=0.5 if fault["kind"] == "slow" else 10)
    assert time.monotonic() - began < 2
    assert found["HyP3 jobs"].state == state and said in found["HyP3 jobs"].facts
    assert found["Hook orders"].state == "nothing yet"


def test_another_service_at_the_address_hides_nobody_else(sandbox, settings, monkeypatch):
    monkeypatch.setattr(sandbox.catalogue, "running", True)
    other = settings.model_copy(update={"catalog_api_url": f"{sandbox.url('identity')}/realms/desp/x"})
    found = at(other, "catalogue", "archive")
    assert found[ITEMS].state in ("no answer", "refused") and found["Archive on this disk"].state == "nothing yet"
    page = settings.model_copy(update={"catalog_api_url": sandbox.url("control")})
    assert at(page, "catalogue")[ITEMS].state in ("no answer", "refused")


def test_jobs_that_wait_or_run_are_work_and_only_failures_are_failed():
    assert chain._states(["succeeded", "failed", "succeeded"], "job") == ("there", "3 jobs: 2 succeeded, 1 failed")
    assert chain._states(["in_progress", "completed"], "order")[0] == "at work"
    assert chain._states(["failed", "cancelled"], "order")[0] == "failed"
    assert chain._states([], "order") == ("nothing yet", "no orders")


def load(settings, count: int) -> None:
    settings.require("catalog")
    with catalog.connect(settings) as store:
        for name in ("one", "two"):
            store.put_collection(COLLECTION | {"id": name})
        entries = [Entry(item(f"item-{n}", collection="one"), Origin(datetime.now(UTC))) for n in range(count)]
        assert store.load("one", entries).stored == count


COLLECTION = {
    "type": "Collection",
    "stac_version": "1.0.0",
    "description": "x",
    "license": "other",
    "links": [],
    "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}},
}


def test_somebody_elses_catalogue_is_not_ones_own(settings, monkeypatch):
    from helpers import settings as room

    monkeypatch.setenv("RECIPES_SANDBOX_USER", "berta")
    settings.require("catalog")
    assert at(room.load(), "catalogue")[ITEMS] == chain.Link(
        "catalogue", ITEMS, "6", "nothing yet", "no catalogue runs"
    )


@pytest.mark.slow
def test_items_of_all_collections_are_counted(settings):
    load(settings, 12)
    assert at(settings, "catalogue")[ITEMS].facts == "12 items in 2 collections: one, two"


def test_and_in_the_embedded_catalogue_of_machines_without_postgis(tmp_path, monkeypatch):
    from helpers import settings as room

    with Sandbox(deployment=Deployment(catalogue="embedded")) as sandbox:
        monkeypatch.setenv("RECIPES_SANDBOX_URL", sandbox.url("control"))
        monkeypatch.setenv("RECIPES_STATE_DIR", str(tmp_path))
        settings = room.load()
        assert at(settings, "catalogue")[ITEMS].state == "nothing yet"
        assert not sandbox.catalogue.running
        load(settings, 3)
        assert at(settings, "catalogue")[ITEMS].facts == "3 items in 2 collections: one, two"


def test_check_and_notebook_tell_the_same_and_no_secrets(monkeypatch, capsys):
    from helpers.__main__ import main

    monkeypatch.setenv("EARTHDATA_TOKEN", "canary-token-0000000001")
    monkeypatch.setenv("RECIPES_BACKEND", "live")
    rows = {what: (state, detail) for state, what, detail in checking.rows() if what != "Ports"}
    assert main(["check"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{state:8} {what:22} {detail}" in printed for what, (state, detail) in rows.items())
    assert rows["Notebook 4 (to disk)"][0] == "ok" and rows["Notebook 2 (Hook)"][0] == "absent"
    assert "canary" not in str(rows) + printed + str(checking.credentials())


def test_a_document_for_others_has_no_folders_of_ours():
    from helpers.settings import PROJECT

    assert any(str(PROJECT) in detail for *_, detail in checking.rows())
    assert not any(str(PROJECT) in detail for *_, detail in checking.rows(folders=False))
