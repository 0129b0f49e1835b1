"""The STAC item of a converted product: from what EOPF noted in the Zarr's root, put right where that is not STAC."""

import json
import posixpath
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import pystac

from ..errors import NotConfigured, Rejected

MEDIA_TYPE = "application/vnd+zarr"
#: Schemas of the STAC extensions, by the beginning of the properties that they describe. EOPF brings all of them, so
#: that an item is validated without a network.
EXTENSIONS = {
    "classification": "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "eo": "https://stac-extensions.github.io/eo/v2.0.0/schema.json",
    "eopf": "https://cs-si.github.io/eopf-stac-extension/v1.2.0/schema.json",
    "processing": "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "product": "https://stac-extensions.github.io/product/v1.0.0/schema.json",
    "proj": "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "raster": "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "sar": "https://stac-extensions.github.io/sar/v1.3.0/schema.json",
    "sat": "https://stac-extensions.github.io/sat/v1.1.0/schema.json",
    "sci": "https://stac-extensions.github.io/scientific/v1.0.0/schema.json",
    "view": "https://stac-extensions.github.io/view/v1.1.0/schema.json",
}


def name_of(zarr_uri: str) -> str:
    """The product's id: the Zarr's name without ``.zarr``."""
    return posixpath.basename(str(zarr_uri).rstrip("/")).removesuffix(".zarr")


def read_attributes(zarr_uri: str, storage_options: dict | None = None) -> dict:
    """The root attributes of a Zarr, version 3 (``zarr.json``) or 2 (``.zattrs``).

    Raises
    ------
    Rejected
        There is no Zarr at ``zarr_uri``, or its attributes cannot be read.
    """
    files, root = fsspec.core.url_to_fs(str(zarr_uri), **(storage_options or {}))
    for file, take in (("zarr.json", lambda content: content.get("attributes", {})), (".zattrs", lambda c: c)):
        try:
            return take(json.loads(files.cat_file(posixpath.join(root, file))))
        except FileNotFoundError:
            continue
        except (ValueError, AttributeError):
            raise Rejected(f"{zarr_uri}/{file} cannot be read: it is no JSON object") from None
    raise Rejected(f"There is no Zarr at {zarr_uri}: it has neither zarr.json nor .zattrs")


def item_of(
    attributes: dict,
    zarr_uri: str,
    *,
    product_type: str,
    geometry: dict | None = None,
    derived_from: str | None = None,
    properties: dict | None = None,
) -> pystac.Item:
    """The STAC item of the converted product at ``zarr_uri``; it is valid.

    Parameters
    ----------
    attributes:
        The Zarr's root attributes (:func:`read_attributes`).
    product_type:
        The EOPF product type, for ``product:type``.
    geometry:
        GeoJSON geometry of the source's item, kept in place of the Zarr's own if they overlap.
    derived_from:
        Address of the source: of an item that stays, not of one that is deleted after the conversion.
    properties:
        More properties, or others than those of the Zarr.

    Raises
    ------
    Rejected
        The Zarr says too little about itself, lies elsewhere than ``geometry``, or the item would not be valid.
    """
    noted = attributes.get("stac_discovery") or {}
    if missing := [key for key in ("geometry", "properties") if not noted.get(key)]:
        raise Rejected(
            f"{zarr_uri}: its stac_discovery has no {' and no '.join(missing)}, so no item can be made of it"
        )
    if geometry is not None and not _overlap(geometry, noted["geometry"]):
        raise Rejected(
            f"{zarr_uri} lies at {bounds(noted['geometry'])}, its source at {bounds(geometry)} (west, south, east,"
            " north): this is not the product that was to be converted"
        )
    name, place = name_of(zarr_uri), geometry or noted["geometry"]
    told, bands = _as_stac(noted["properties"] | {"product:type": product_type} | (properties or {}))
    asset = {"href": str(zarr_uri), "title": name, "type": MEDIA_TYPE, "roles": ["data", "metadata"]} | bands
    content = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": _extensions([told, asset]),
        "id": name,
        "geometry": place,
        "bbox": bounds(place),
        "properties": told,
        "links": [{"rel": "derived_from", "href": derived_from}] if derived_from else [],
        "assets": {name: asset},
    }
    for error in _errors(content):  # of what EOPF notes in its own way; it stays in the Zarr
        where = list(error.absolute_path)
        if where[:1] == ["properties"] and where[1:2] and where[1] not in ("product:type", *(properties or {})):
            told.pop(where[1], None)
    content["stac_extensions"] = _extensions([told, asset])
    validate(content)
    return pystac.Item.from_dict(content)


def _as_stac(noted: dict) -> tuple[dict, dict]:
    """Properties as STAC has them, and the bands, which belong to the asset.

    EOPF 3.0.0 has the bands in the properties, numbers and lists as texts, "provider" for "providers", null for what it
    did not find, and words of Sentinel-3's own.
    """
    told = _typed(noted)
    if "provider" in told:
        told.setdefault("providers", told.pop("provider"))
    if told.get("product:acquisition_type") == "Earth Observation":
        told["product:acquisition_type"] = "nominal"
    match told.get("proj:shape"):
        case [{"rows": rows, "columns": columns}]:
            told["proj:shape"] = [rows, columns]
    bands = [_typed(band) for band in told.pop("bands", [])]
    return told, {"bands": bands} if bands else {}


def _typed(noted: dict) -> dict:
    told = {key: value for key, value in noted.items() if value is not None}
    for key in ("gsd", "raster:spatial_resolution"):
        if isinstance(told.get(key), str):
            told[key] = float(told[key])
    for key in ("instruments", "sar:beam_ids", "sar:polarizations"):
        if isinstance(told.get(key), str):
            told[key] = told[key].split()
    return told


def _extensions(content: list[dict]) -> list[str]:
    return sorted({EXTENSIONS[prefix] for prefix in _prefixes(content) if prefix in EXTENSIONS})


def _prefixes(value: Any) -> Iterator[str]:
    """What the keys in ``value`` begin with, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if ":" in key:
                yield key.partition(":")[0]
            yield from _prefixes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _prefixes(inner)


def bounds(geometry: dict) -> list[float]:
    """West, south, east and north in degrees of a GeoJSON geometry.

    One that crosses the antimeridian has its west greater than its east (RFC 7946, section 5.2).
    """
    points = list(_points(geometry["coordinates"]))
    longitudes, latitudes = [point[0] for point in points], [point[1] for point in points]
    if max(longitudes) - min(longitudes) > 180:  # no product is that large: it goes round the other way
        longitudes = [longitude % 360 for longitude in longitudes]
    west, east = ((longitude + 180) % 360 - 180 if longitude > 180 else longitude for longitude in _ends(longitudes))
    return [west, min(latitudes), east, max(latitudes)]


def _ends(numbers: list[float]) -> tuple[float, float]:
    return min(numbers), max(numbers)


def _points(coordinates: list) -> Iterator[list[float]]:
    if isinstance(coordinates[0], int | float):
        yield coordinates
    else:
        for inner in coordinates:
            yield from _points(inner)


def _overlap(one: dict, other: dict) -> bool:
    from shapely import make_valid
    from shapely.geometry import shape

    return make_valid(shape(one)).intersects(make_valid(shape(other)))


def validate(item: dict) -> None:
    """Hold an item against the schemas of STAC and of its extensions, without a network.

    Raises
    ------
    Rejected
        With all problems at once.
    """
    problems = [
        f"{uri}: an extension whose schema is not here" for uri in item["stac_extensions"] if uri not in _schemas()
    ]
    problems += [f"{error.json_path}: {error.message[:200]}" for error in _errors(item)]
    if problems:
        raise Rejected.because(f"The item of {item['id']} would not be valid STAC", problems)


def _errors(item: dict) -> list[Any]:
    """What the schemas say against an item: one error for each of its parts that is wrong."""
    import jsonschema
    from referencing import Registry, Resource

    schemas, errors = _schemas(), []
    registry = Registry().with_resources((uri, Resource.from_contents(schema)) for uri, schema in schemas.items())
    for uri in (_CORE, *item["stac_extensions"]):
        if schema := schemas.get(uri):
            found = jsonschema.validators.validator_for(schema)(schema, registry=registry).iter_errors(item)
            errors += [jsonschema.exceptions.best_match([error]) for error in found]
    return errors


_CORE = "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json"


@cache
def _schemas() -> dict[str, dict]:
    """JSON schemas by their address: pystac's, and those of extensions that EOPF brings."""
    from pystac.validation.local_validator import get_local_schema_cache

    eopf = find_spec("eopf")  # found, not imported
    if eopf is None:
        raise NotConfigured("The schemas of STAC extensions come with EOPF: pip install 'eopf>=3'")
    folder = Path(eopf.submodule_search_locations[0]) / "product" / "stac_extensions"
    brought = [json.loads(file.read_text()) for file in sorted(folder.rglob("*.json"))]
    return {schema["$id"].removesuffix("#"): schema for schema in brought if "$id" in schema} | get_local_schema_cache()
