"""What is wrong with an item, before it is sent or loaded: every fault at once, in words, without a network."""

import copy
import re
import subprocess
import sys

import orjson
import pytest

from helpers import schemas
from helpers.catalog.checking import collection_problems, known_extension, normalised, problems

EXTENSION = "https://stac-extensions.github.io/{}/schema.json"
ITEM = {
    "type": "Feature",
    "stac_version": "1.1.0",
    "stac_extensions": [EXTENSION.format("eo/v1.1.0"), EXTENSION.format("view/v1.0.0")],
    "id": "one",
    "collection": "all",
    "geometry": {"type": "Polygon", "coordinates": [[[1, 2], [3, 2], [3, 4], [1, 2]]]},
    "bbox": [1, 2, 3, 4],
    "properties": {"datetime": "2024-05-31T23:59:59Z", "eo:cloud_cover": 3.5, "view:off_nadir": 2},
    "links": [{"rel": "collection", "href": "all"}],
    "assets": {"data": {"href": "s3://bucket/one.tif", "roles": ["data"]}},
}
COLLECTION = {
    "type": "Collection",
    "stac_version": "1.1.0",
    "id": "all",
    "description": "All of it",
    "license": "CC0-1.0",
    "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [["2024-01-01T00:00:00Z", None]]}},
    "links": [],
}


def changed(*path, value) -> dict:
    """The item with one value changed, or a key taken out."""
    item = copy.deepcopy(ITEM)
    place = item
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return item


def test_a_right_item_has_no_problems():
    assert problems(ITEM) == []
    assert problems(changed("stac_version", value="1.0.0")) == []


def test_an_item_needs_no_link_to_its_collection():
    assert problems(changed("links", value=[])) == []


def test_an_item_without_a_collection_has_no_place():
    assert problems(changed("collection", value=...) | {"links": []}) == [
        "collection: missing; the catalogue keeps every item in a collection"
    ]


FAULTY = [
    (("geometry",), None, "geometry: null"),
    (("geometry", "coordinates"), [], "geometry.coordinates: empty"),
    (("geometry", "coordinates"), [[]], "geometry.coordinates: empty"),
    (("geometry", "coordinates", 0, 3), [1, 2.000001], r"a ring ends at \[1, 2.000001\], not where it began: \[1, 2\]"),
    (("geometry", "coordinates", 0, 1), [3, 2, 100], "positions of 2 and 3 numbers mixed"),
    (("geometry", "coordinates", 0, 1), [3, 200], r"\[3, 200\] is no longitude"),
    (("geometry", "coordinates", 0, 1), [float("nan"), 2], "nan is no number of JSON"),
    (("properties", "gsd"), float("inf"), "properties.gsd: inf is no number of JSON"),
    (("properties", "eo:cloud_cover"), 101, "properties.eo:cloud_cover: 101 is greater"),
    (("properties", "name"), "a\0b", r"properties.name: has a NUL character"),
    (("properties", "a\0b"), 1, r"has a NUL character"),
    (("properties", "name"), "\ud800", "half of a surrogate pair"),
    (("properties", "count"), 2**64, "properties.count: an integer beyond 64 bit"),
    (("properties", "blob"), b"x", "properties.blob: bytes .* nothing of JSON"),
    (("properties", "datetime"), None, "neither a datetime"),
    (("properties", "datetime"), "2024-13-31T00:00:00Z", "'2024-13-31T00:00:00Z' is no time"),
    (("properties", "datetime"), "2024-05-31T00:00:00", "is no time like"),
    (("properties", "start_datetime"), "2024-05-31T00:00:00Z", '"end_datetime" is a required property'),
    (("properties",), [], "properties: .* is not of type"),
    (("id",), "x" * 3000, "id: 3,000 characters are too long"),
    (("id",), "", "id: must be a text"),
    (("collection",), 7, "collection: must be a text"),
    (("assets", "data", "href"), ..., 'assets.data: "href" is a required property'),
    (("stac_version",), "0.9.0", "only STAC 1.0 and 1.1"),
    (("type",), "Collection", "type: 'Collection', where an item has 'Feature'"),
]


@pytest.mark.parametrize(("path", "value", "says"), FAULTY)
def test_a_fault_is_told_with_its_place(path, value, says):
    assert re.search(says, "\n".join(problems(changed(*path, value=value))))


def test_rings_of_several_polygons():
    ring = ITEM["geometry"]["coordinates"][0]
    whole = {"type": "MultiPolygon", "coordinates": [[ring, ring], [ring]]}
    assert problems(changed("geometry", value=whole)) == []
    for opened in ([[ring, [*ring[:-1], [2, 2]]], [ring]], [[ring], [[*ring[:-1], [2, 2]]]]):
        (found,) = problems(changed("geometry", value=whole | {"coordinates": opened}))
        assert "a ring ends at" in found


def test_every_fault_at_once():
    item = changed("geometry", value=None)
    item["properties"] |= {"eo:cloud_cover": "much", "start_datetime": "2024-02-01T00:00:00Z"}
    item["properties"]["end_datetime"] = "2024-01-01T00:00:00Z"
    item["id"] = 3
    found = "\n".join(problems(item))
    for says in ("id: must be", "geometry: null", "is after end_datetime", 'eo:cloud_cover: "much" is not'):
        assert says in found


@pytest.mark.parametrize("content", [None, [], "x", 3, {}, {"type": "Feature"}, {"type": "Feature", "links": 3}])
def test_what_is_no_item_at_all(content):
    assert problems(content)
    assert collection_problems(content)


def test_nesting_without_end():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert "nested too deeply" in "\n".join(problems(changed("properties", "deep", value=deep)))


def test_a_backslash_before_u0000_is_no_nul():
    assert problems(changed("properties", "path", value="\\u0000")) == []


def test_what_passes_is_json_that_can_be_read_again():
    for path, value, _ in FAULTY:
        item = changed(*path, value=value)
        if not problems(item):
            assert orjson.loads(orjson.dumps(item)) == item


def test_an_unknown_extension_is_no_fault_but_known_to_be_unknown():
    unknown = "https://example.org/unknown/v1.0.0/schema.json"
    assert problems(changed("stac_extensions", value=[unknown])) == []
    assert not known_extension(unknown) and not known_extension(None)


KNOWN = (
    "eo/v1.1.0 eo/v2.0.0 projection/v1.1.0 projection/v2.0.0 raster/v1.1.0 raster/v2.0.0 sar/v1.0.0 sar/v1.3.0"
    " sat/v1.0.0 sat/v1.1.0 view/v1.0.0 view/v1.1.0 processing/v1.2.0 product/v1.0.0 classification/v2.0.0"
    " scientific/v1.0.0 file/v2.1.0 grid/v1.1.0 timestamps/v1.1.0 mgrs/v1.0.0 version/v1.2.0 storage/v2.0.0"
)


@pytest.mark.parametrize("name", KNOWN.split())
def test_extensions_that_are_known(name):
    assert known_extension(EXTENSION.format(name))


@pytest.mark.parametrize(
    ("name", "key", "right", "wrong"),
    [
        ("file/v2.1.0", "file:size", 3, "3"),
        ("file/v2.1.0", "file:checksum", "1220ab", "AB"),
        ("file/v2.1.0", "file:length", None, 3),
        ("grid/v1.1.0", "grid:code", "MGRS-47VLH", "47VLH"),
        ("timestamps/v1.1.0", "expires", "2024-05-31T00:00:00Z", "tomorrow"),
        ("mgrs/v1.0.0", "mgrs:utm_zone", 60, 61),
        ("version/v1.2.0", "deprecated", False, "no"),
        ("storage/v2.0.0", "storage:refs", ["aws"], "aws"),
    ],
)
def test_schemas_of_our_own(name, key, right, wrong):
    item = changed("stac_extensions", value=[EXTENSION.format(name)])
    if right is not None:
        item["properties"][key] = right
        assert problems(item) == []
    item["properties"][key] = wrong
    assert any(problem.startswith("properties") for problem in problems(item))


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ("2024-01-01T00:30:00+02:00", "2023-12-31T22:30:00Z"),  # another month
        ("2024-01-01T00:30:00+00:00", "2024-01-01T00:30:00Z"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),  # a leap second, which PostgreSQL counts on
        ("2023-12-31T23:59:59.9999999Z", "2023-12-31T23:59:59.999999Z"),  # which PostgreSQL would round up
        ("2024-05-31t23:59:59.5z", "2024-05-31T23:59:59.500000Z"),
        ("2024-05-31T23:59:59.123Z", "2024-05-31T23:59:59.123Z"),
        ("yesterday", "yesterday"),
        ("2024-05-31T23:59:61Z", "2024-05-31T23:59:61Z"),
        ("0001-01-01T00:00:00+05:00", "0001-01-01T00:00:00+05:00"),
    ],
)
def test_times_become_those_that_pgstac_reads_as_they_are(given, becomes):
    item = changed("properties", "datetime", value=given)
    assert normalised(item)["properties"]["datetime"] == becomes
    assert item["properties"]["datetime"] == given  # the caller's stays


def test_a_time_in_another_zone_is_a_fault_until_it_is_normalised():
    item = changed("properties", "datetime", value="2024-01-01T00:30:00+02:00")
    assert problems(item) and problems(normalised(item)) == []


def test_what_has_no_times_is_left_alone():
    assert normalised({"properties": None}) == {"properties": None}
    assert normalised(ITEM) is ITEM


def test_collections():
    assert collection_problems(COLLECTION) == []
    assert collection_problems(COLLECTION | {"stac_version": "1.0.0"}) == []
    found = "\n".join(collection_problems(COLLECTION | {"id": "x" * 3000, "extent": {}, "title": "\0"}))
    assert "too long" in found and "NUL" in found
    assert 'extent: "spatial" is a required property' in collection_problems(COLLECTION | {"extent": {}})


def test_without_eopf_and_pystac_one_file_does(tmp_path, monkeypatch):
    """As in AWS Lambda; the script that packs the function makes the file."""
    schemas.save(tmp_path / "all.json")
    everything = schemas.load()
    monkeypatch.setattr(schemas, "PACKED", tmp_path / "all.json")
    monkeypatch.setattr(schemas, "find_spec", lambda name: None)
    schemas.load.cache_clear()
    try:
        assert schemas.load() == everything
        monkeypatch.setattr(schemas, "PACKED", tmp_path / "none.json")
        schemas.load.cache_clear()
        assert set(schemas.load()) < set(everything)
    finally:
        monkeypatch.undo()
        schemas.load.cache_clear()


def test_checking_loads_nothing_heavy():
    code = (
        "import sys, helpers.catalog.checking as c; c.problems({'type': 'Feature', 'stac_version': '1.1.0'});"
        "print({'eopf', 'pystac', 'fsspec', 'shapely', 'rasterio', 'boto3', 'psycopg'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
