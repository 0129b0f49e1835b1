"""STAC items of converted products: valid without a network, where the product lies, what it came from."""

import json

import pystac
import pytest
from pystac.validation.stac_validator import JsonSchemaSTACValidator

from helpers import schemas, stac
from helpers.errors import Rejected

SQUARE = {"type": "Polygon", "coordinates": [[[13.0, 47.0], [14.0, 47.0], [14.0, 48.0], [13.0, 48.0], [13.0, 47.0]]]}
FAR = {"type": "Polygon", "coordinates": [[[-60.0, 0.0], [-59.0, 0.0], [-59.0, 1.0], [-60.0, 1.0], [-60.0, 0.0]]]}
PROPERTIES = {
    "datetime": "2023-08-15T09:50:31.024000Z",
    "start_datetime": "2023-08-15T09:50:31.024Z",
    "end_datetime": "2023-08-15T09:50:31.024Z",
    "platform": "sentinel-2a",
    "gsd": "10",
    "provider": [{"name": "ESA", "roles": ["producer"]}],
    "product:type": "S02MSIL2A",
    "proj:code": "EPSG:32633",
    "eo:cloud_cover": 13.3,
    "eo:snow_cover": None,
    "sat:relative_orbit": 79,
    "bands": [
        {"name": "b01", "eo:common_name": "coastal", "eo:center_wavelength": 0.44, "raster:spatial_resolution": "60"}
    ],
}
URI = "s3://bucket/owner/collection/S2A.zarr/S02MSIL2A_20230815T095031_00000_A0079_TE8E.zarr"
NAME = "S02MSIL2A_20230815T095031_00000_A0079_TE8E"


def attributes(geometry=SQUARE, bbox=(14.0, 47.0, 13.0, 48.0), **properties) -> dict:
    found = {"type": "Feature", "id": "x", "geometry": geometry, "bbox": bbox, "properties": PROPERTIES | properties}
    return {"stac_discovery": found}


def item(*, product_type="S02MSIL2A", **options) -> pystac.Item:
    return stac.item_of(options.pop("attributes", attributes()), URI, product_type=product_type, **options)


def test_what_the_item_is():
    made = item(derived_from="https://station.example/items/S2A", properties={"owner": "me"})
    assert (made.id, made.bbox, made.geometry) == (NAME, [13.0, 47.0, 14.0, 48.0], SQUARE)
    assert made.datetime.isoformat() == "2023-08-15T09:50:31.024000+00:00"
    (asset,) = made.assets.values()
    assert list(made.assets) == [NAME]
    assert (asset.href, asset.title, asset.media_type) == (URI, NAME, "application/vnd+zarr")
    assert asset.roles == ["data", "metadata"]
    assert [(link.rel, link.href) for link in made.links] == [("derived_from", "https://station.example/items/S2A")]
    assert made.properties["product:type"] == "S02MSIL2A" and made.properties["owner"] == "me"


def test_an_eopf_release_may_name_the_type_otherwise():
    assert item(product_type="S01SIWGRH").properties["product:type"] == "S01SIWGRH"


def test_properties_become_those_of_stac():
    made = item()
    assert made.properties["gsd"] == 10.0
    assert made.properties["providers"] == [{"name": "ESA", "roles": ["producer"]}]
    assert "eo:snow_cover" not in made.properties and "bands" not in made.properties
    (band,) = made.assets[NAME].extra_fields["bands"]
    assert band["raster:spatial_resolution"] == 60.0


def test_the_extensions_that_are_used_are_declared_and_no_others():
    short = {uri.split("/")[-3] for uri in item().stac_extensions}
    assert short == {"product", "projection", "eo", "sat", "raster"}


def test_what_the_schemas_refuse_stays_in_the_zarr():
    """EOPF's classes of Sentinel-3 have the extension's name, and another content."""
    odd = {"classification:classes": [{"name": "land", "count": 3}], "proj:shape": [{"rows": 4, "columns": 5}]}
    made = item(attributes=attributes(**odd, **{"product:acquisition_type": "Earth Observation"}))
    assert "classification:classes" not in made.properties
    assert not any("classification" in uri for uri in made.stac_extensions)
    assert made.properties["proj:shape"] == [4, 5]
    assert made.properties["product:acquisition_type"] == "nominal"


def test_properties_that_were_asked_for_are_not_left_out_silently():
    with pytest.raises(Rejected, match=r"not be valid STAC.*\n.*eo:cloud_cover"):
        item(properties={"eo:cloud_cover": "much"})


def test_the_item_is_valid_by_pystac_too():
    """Its validator with the schemas at hand: it would ask the network for those of extensions."""
    validator = JsonSchemaSTACValidator()
    validator.schema_cache |= schemas.load()
    made = item()
    valid = validator.validate(made.to_dict(), "Feature", "1.1.0", made.stac_extensions)
    assert len(valid) == 1 + len(made.stac_extensions)


def test_an_item_without_a_schema_is_refused():
    content = item().to_dict()
    content["stac_extensions"].append("https://example.org/unknown/v1.0.0/schema.json")
    with pytest.raises(Rejected, match=r"unknown/v1\.0\.0"):
        stac.validate(content)


def test_the_source_knows_better_where_it_lies():
    near = json.loads(json.dumps(SQUARE).replace("13.0", "13.1"))
    assert item(geometry=near).bbox == [13.1, 47.0, 14.0, 48.0]


def test_another_place_is_another_product():
    with pytest.raises(Rejected, match=r"lies at \[13.0, 47.0, 14.0, 48.0\], its source at \[-60.0"):
        item(geometry=FAR)


@pytest.mark.parametrize(
    ("longitudes", "west", "east"), [((179, -179), 179, -179), ((-179.5, 178), 178, -179.5), ((10, 12), 10, 12)]
)
def test_bounds_across_the_antimeridian(longitudes, west, east):
    a, b = longitudes
    ring = [[a, 10], [b, 10], [b, 12], [a, 12], [a, 10]]
    assert stac.bounds({"type": "Polygon", "coordinates": [ring]}) == [west, 10, east, 12]
    assert stac.bounds({"type": "MultiPolygon", "coordinates": [[ring]]}) == [west, 10, east, 12]


def test_a_zarr_that_tells_nothing():
    for told in ({}, {"stac_discovery": {"properties": PROPERTIES}}, {"stac_discovery": None}):
        with pytest.raises(Rejected, match="stac_discovery has no"):
            item(attributes=told)


@pytest.mark.parametrize("version", [2, 3])
def test_attributes_of_both_versions(tmp_path, version):
    import zarr

    zarr.create_group(tmp_path / "x.zarr", zarr_format=version, attributes={"stac_discovery": {"id": "x"}})
    assert stac.read_attributes(str(tmp_path / "x.zarr")) == {"stac_discovery": {"id": "x"}}
    assert stac.read_attributes(f"{tmp_path}/x.zarr/") == {"stac_discovery": {"id": "x"}}


def test_attributes_of_no_zarr(tmp_path):
    with pytest.raises(Rejected, match="no Zarr at"):
        stac.read_attributes(str(tmp_path / "x.zarr"))
    (tmp_path / "x.zarr").mkdir()
    (tmp_path / "x.zarr" / "zarr.json").write_text('{"attributes": ')
    with pytest.raises(Rejected, match="no JSON object"):
        stac.read_attributes(str(tmp_path / "x.zarr"))


def test_names():
    assert stac.name_of(URI) == NAME
    assert stac.name_of("/data/a.zarr/") == "a"
