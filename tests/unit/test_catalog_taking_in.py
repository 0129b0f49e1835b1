"""What there is to catalogue: products below an address, and what the other notebooks left; and what a run undoes."""

import json
import zipfile
from datetime import datetime

import pystac
import pytest

from helpers import catalog, objectstore
from helpers.catalog import taking_in
from helpers.errors import Rejected
from helpers.state import RunState

RTC = "S1A_IW_20240827T001923_DVP_RTC30_G_gpuned_8434"
SAFE = "S2A_MSIL1C_20230910T050701_N0509_R019_T47VLH_20230910T074321.SAFE"
FILES = [
    f"{RTC}_VV.tif",
    f"{RTC}_VH.tif",
    f"{RTC}.README.md.txt",
    f"{RTC[:-4]}FFFF/{RTC[:-4]}FFFF_VV.tif",
    f"{SAFE}/manifest.safe",
    f"{SAFE}/GRANULE/x/IMG_DATA/B02.jp2",
    "deep/a.zarr/zarr.json",
    "deep/a.zarr/c/0/0",
    "dem.TIF",
    "notes.txt",
    "items/x.json",
    "S3A_OL_1_EFR____20240815T092117.SEN3.zip",
]
PRODUCTS = [
    RTC,
    f"{RTC[:-4]}FFFF",
    SAFE,
    "S3A_OL_1_EFR____20240815T092117.SEN3.zip",
    "deep/a.zarr",
    "dem.TIF",
]


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_text(name)
    with zipfile.ZipFile(tmp_path / "p" / FILES[-1], "w") as archive:
        archive.writestr("S3A_OL_1_EFR____20240815T092117.SEN3/xfdumanifest.xml", "<a/>")
    return tmp_path / "p"


def test_each_product_is_found_once_however_many_files_it_has(folder, settings):
    assert taking_in.products(str(folder), settings) == sorted(f"{folder}/{name}" for name in PRODUCTS)


def test_in_a_bucket_it_is_the_same(folder, settings, s3):
    objectstore.ensure_bucket(s3, "mine", None, create=True)
    for name in FILES:
        s3.upload_file(str(folder / name), "mine", f"in/{name}")
    assert taking_in.products("s3://mine/in/", settings) == sorted(f"s3://mine/in/{name}" for name in PRODUCTS)


@pytest.mark.parametrize("name", [SAFE, "deep/a.zarr", "dem.TIF", FILES[-1], RTC])
def test_an_address_may_be_that_of_one_product(name, folder, settings):
    assert taking_in.products(f"{folder}/{name}", settings) == [f"{folder}/{name}"]


def test_relative_paths_begin_at_the_project(folder, settings, monkeypatch):
    """The kernel of a notebook works in its folder, papermill in the caller's."""
    monkeypatch.setattr(taking_in, "PROJECT", folder.parent)
    monkeypatch.chdir("/")
    assert [one.address for one in catalog.wanted([f"p/{SAFE}"], settings)] == [f"{folder}/{SAFE}"]


def test_all_that_is_wrong_with_sources_is_said_at_once(folder, settings):
    (folder / "empty").mkdir()
    (folder / "empty/notes.txt").write_text("x")
    with pytest.raises(Rejected) as error:
        catalog.wanted([str(folder), f"{folder}/empty", f"{folder}/none", "https://example.org/x.tif"], settings)
    assert "3 problems" in str(error.value)
    for words in ("empty: no product is there", "nothing at", "only paths and s3:// can be read here"):
        assert words in str(error.value)


def test_what_the_others_left_is_known_from_their_notes(folder, settings, s3):
    """What is gone since is left out; where RS-PYTHON keeps it, it is read with the keys of that storage."""
    objectstore.ensure_bucket(s3, "mine", None, create=True)
    s3.upload_file(str(folder / FILES[0]), "mine", f"hyp3/{FILES[0]}")
    RunState(settings, "hyp3", "a").save(written={"mine": [f"hyp3/{FILES[0]}"], "gone": ["x/y.tif"]})
    RunState(settings, "hook", "b").save(written={"paths": [str(folder / SAFE), str(folder / "notes.txt")]})
    RunState(settings, "conversion", "c").save(folder=str(folder / "deep"))
    summary = settings.output_dir / "archive/p/20260101T000000Z/summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text(json.dumps({"target": str(folder)}))
    found = {one.address: one.origin for one in catalog.left_here(settings)}
    assert found.pop(f"s3://mine/hyp3/{RTC}") == "notebook 1"
    assert found.pop(f"{folder}/{SAFE}") == "notebook 2"
    assert found.pop(f"{folder}/deep/a.zarr") in ("notebook 4", "notebook 5")
    assert set(found.values()) == {"notebook 4"}
    other = taking_in.of_rspy(settings)
    assert other.aws_access_key_id == settings.rspy_s3_access_key != settings.aws_access_key_id


def made(name: str, where: float = 10.0, when: str = "2024-08-15") -> pystac.Item:
    point = {"type": "Point", "coordinates": [where, 46.0]}
    return pystac.Item(name, point, [where, 46.0, where, 46.0], datetime.fromisoformat(f"{when}T00:00:00Z"), {})


def test_a_product_that_lies_twice_is_one_and_two_of_one_name_are_not(settings):
    places = [taking_in.Product(address, settings) for address in ("s3://b/x", "/disk/x", "/a/x", "/disk/y")]
    items = [made("x"), made("x"), made("x", where=11.0), made("y")]
    found, twice, clashing = catalog.distinct(dict(zip(places, items, strict=True)))
    assert found == [items[0], items[3]] and twice == ["/disk/x"]
    assert clashing == {"/a/x": "its id x is that of another product, s3://b/x: rename one"}


def test_an_extent_grows_with_what_comes():
    first = catalog.extent([made("x"), made("y", where=12.0)])
    assert first.spatial.bboxes == [[10.0, 46.0, 12.0, 46.0]]
    known = COLLECTION | {"extent": first.to_dict()}
    assert catalog.extent([made("z", where=11.0)], known).to_dict() == known["extent"]
    grown = catalog.extent([made("z", where=-5.0, when="2025-01-01")], known)
    assert grown.spatial.bboxes == [[-5.0, 46.0, 12.0, 46.0]]
    assert [str(time)[:10] for time in grown.temporal.intervals[0]] == ["2024-08-15", "2025-01-01"]
    assert catalog.extent([made("z")], COLLECTION).temporal.intervals == [[None, None]]


# --- what a run undoes ---

ITEM = {
    "type": "Feature", "stac_version": "1.1.0", "stac_extensions": [], "id": "one", "collection": "c",
    "geometry": {"type": "Point", "coordinates": [10.0, 46.0]}, "bbox": [10.0, 46.0, 10.0, 46.0],
    "properties": {"datetime": "2024-08-15T00:00:00Z"}, "assets": {}, "links": [{"rel": "collection", "href": "c"}],
}  # fmt: skip
COLLECTION = {
    "type": "Collection", "stac_version": "1.1.0", "id": "c", "description": "d", "license": "other", "links": [],
    "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}},
}  # fmt: skip


def test_clean_up_removes_what_the_run_noted_and_no_more(settings, s3):
    settings.require("catalog")
    sqs = objectstore.client("sqs", settings)
    objectstore.ensure_bucket(s3, "mine", None, create=True)
    queue = sqs.create_queue(QueueName="q")["QueueUrl"]
    mine, theirs = ({**ITEM, "id": name} for name in ("mine", "theirs"))
    state = RunState(settings, "catalog", "run")
    with catalog.connect(settings) as store:
        store.put_collection(COLLECTION)
        catalog.remember(state, "mine", [catalog.key_of(mine, "items/")])
        catalog.publish_objects([mine, theirs], s3=s3, bucket="mine")
        objects = [{"bucket": "mine", "key": catalog.key_of(item, "items/")} for item in (mine, theirs)]
        records = [{"eventTime": "2024-01-01T00:00:00Z", "eventName": "ObjectCreated:Put", "eventVersion": "2.1",
                    "eventSource": "aws:s3", "s3": {"bucket": {"name": o["bucket"]}, "object": {"key": o["key"]}}}
                   for o in objects]  # fmt: skip
        sqs.send_message(QueueUrl=queue, MessageBody=json.dumps({"Records": records}))
        assert catalog.consume(queue, store, settings=settings, show=lambda _: None).items.stored == 2
        counts = catalog.clean_up(state, settings)
        assert (counts["items"], counts["objects"], counts["collections"]) == (1, 1, 0)
        assert [item["id"] for item in store.search(collections=["c"])] == ["theirs"]
        assert list(objectstore.objects(s3, "mine", "")) == ["items/c/theirs.json"]
        again = catalog.clean_up(state, settings)
        assert set(again.values()) == {0}
    with pytest.raises(Rejected, match="cleaned up"):
        RunState(settings, "catalog", "run")
