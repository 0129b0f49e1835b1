"""STAC items: where something lies, which extensions it uses, and the item of a Zarr that EOPF converted.

The item of a Zarr is made from what EOPF noted in its root, put right where that is not STAC.
"""

import json
import posixpath
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from . import schemas
from .errors import Rejected

if TYPE_CHECKING:
    import pystac

MEDIA_TYPE = "application/vnd+zarr"
#: Schemas of the STAC extensions, by the beginning of the properties that they describe; all are in :mod:`schemas`.
EXTENSIONS = {
    "classification": "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "eo": "https://stac-extensions.github.io/eo/v2.0.0/schema.json",
    "eopf": "https://cs-si.github.io/eopf-stac-extension/v1.2.0/schema.json",
    "file": "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "grid": "https://stac-extensions.github.io/grid/v1.1.0/schema.json",
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
    import fsspec  # here, and pystac below: what only looks at the schemas need not wait for them

    files, root = fsspec.core.url_to_fs(str(zarr_uri), **(storage_options or {}))
    return attributes_of(lambda file: files.cat_file(posixpath.join(root, file)), zarr_uri)


def attributes_of(read: Callable[[str], bytes], zarr_uri: str) -> dict:
    """As :func:`read_attributes`, of a Zarr whose files ``read`` gives by their names (or FileNotFoundError)."""
    for file, take in (("zarr.json", lambda content: content.get("attributes", {})), (".zattrs", lambda c: c)):
        try:
            return take(json.loads(read(file)))
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
) -> "pystac.Item":
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
        "stac_extensions": extensions_of([told, asset]),
        "id": name,
        "geometry": place,
        "bbox": bounds(place),
        "properties": told,
        "links": [{"rel": "derived_from", "href": derived_from}] if derived_from else [],
        "assets": {name: asset},
    }
    for fault in schemas.faults(content):  # of what EOPF notes in its own way; it stays in the Zarr
        match fault.path:
            case ["properties", str(name), *_] if name not in ("product:type", *(properties or {})):
                told.pop(name, None)
    content["stac_extensions"] = extensions_of([told, asset])
    validate(content)
    import pystac

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


def extensions_of(content: Any) -> list[str]:
    """The extensions that properties and assets use, of those in :data:`EXTENSIONS`."""
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
    rings = list(_rings(geometry["coordinates"]))
    longitudes, latitudes = ([point[axis] for ring in rings for point in ring] for axis in (0, 1))
    if 90 in map(abs, latitudes):  # all longitudes meet there
        return [-180.0, min(latitudes), 180.0, max(latitudes)]
    if max(longitudes) - min(longitudes) > 180 and not any(map(_wide, rings)):  # it goes round the other way
        longitudes = [longitude % 360 for longitude in longitudes]
    west, east = ((longitude + 180) % 360 - 180 if longitude > 180 else longitude for longitude in _ends(longitudes))
    return [west, min(latitudes), east, max(latitudes)]


def _ends(numbers: list[float]) -> tuple[float, float]:
    return min(numbers), max(numbers)


def _wide(ring: list[list[float]]) -> bool:
    """Whether it goes round half of the earth step by step; one that crosses the antimeridian leaps."""
    longitudes = [point[0] for point in ring]
    steps = [abs(one - other) for one, other in pairwise(longitudes)]
    return max(longitudes) - min(longitudes) > 180 and all(step <= 180 or step == 360 for step in steps)


def _rings(coordinates: list) -> Iterator[list[list[float]]]:
    """The lists of positions in the coordinates of any GeoJSON geometry."""
    if isinstance(coordinates[0], int | float):
        yield [coordinates]
    elif isinstance(coordinates[0][0], int | float):
        yield coordinates
    else:
        for inner in coordinates:
            yield from _rings(inner)


def on_earth(place: Any, crs: Any = None) -> dict:
    """A shapely polygon, or several, as GeoJSON: longitude and latitude in degrees, cut at the antimeridian.

    Outlines only, counter-clockwise (RFC 7946, sections 3.1.6 and 3.1.9), with 6 decimals: 0.1 m.

    Parameters
    ----------
    place:
        In the coordinates of ``crs``; long edges are divided first, because on the earth they are no straight lines.
        Of longitudes and latitudes if there is none: then an edge of more than 180 degrees goes round the other way.
    """
    from shapely import affinity, box, make_valid, segmentize, set_precision
    from shapely.geometry import MultiPolygon, mapping
    from shapely.geometry.polygon import orient

    if crs is not None:
        place = segmentize(place, place.length / 16)
    world, pieces = box(-180, -90, 180, 90), []
    for part in getattr(place, "geoms", [place]):
        outline = make_valid(_unwrapped(list(part.exterior.coords), crs))
        for turn in (-360, 0, 360):
            pieces.append(set_precision(affinity.translate(outline, turn).intersection(world), 1e-6))
    polygons = [orient(one) for piece in pieces for one in getattr(piece, "geoms", [piece]) if one.area > 0]
    shape = polygons[0] if len(polygons) == 1 else MultiPolygon(polygons)
    return json.loads(json.dumps(mapping(shape)), parse_float=lambda text: round(float(text), 6))


def _unwrapped(points: list[tuple], crs: Any) -> Any:
    """The polygon on the earth with longitudes that run on across the antimeridian, and along a pole that is in it."""
    from rasterio.crs import CRS
    from rasterio.warp import transform
    from shapely.geometry import Polygon

    x, y = [point[0] for point in points], [point[1] for point in points]
    if crs is not None and CRS.from_user_input(crs) != CRS.from_epsg(4326):
        x, y, *_ = transform(crs, "EPSG:4326", x, y)
    for i in range(1, len(x)):
        x[i] += 360 * round((x[i - 1] - x[i]) / 360)
    ring = list(zip(x, y, strict=True))
    if abs(x[-1] - x[0]) > 180:
        pole = 90.0 if sum(y) > 0 else -90.0
        ring += [(x[-1], pole), (x[0], pole)]
    return Polygon(ring)


def area(bbox: list[float] | None, intersects: dict | None) -> Any:
    """The place that a search is about (degrees), as a `shapely` geometry; None if it is about none.

    Raises
    ------
    ValueError, TypeError
        It is no place.
    """
    if not (bbox or intersects):
        return None
    import shapely
    from shapely.geometry import box

    if intersects:
        try:
            return shapely.from_geojson(json.dumps(intersects))
        except shapely.errors.ShapelyError as error:
            raise ValueError(f"intersects is no geometry: {error}") from None
    numbers = [float(number) for number in bbox or ()]
    if len(numbers) not in (4, 6):
        raise ValueError("bbox has 4 or 6 numbers")
    west, south, east, north = numbers if len(numbers) == 4 else (*numbers[:2], *numbers[3:5])
    if west > east:  # across the antimeridian
        return box(west, south, 180, north).union(box(-180, south, east, north))
    return box(west, south, east, north)


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
        f"{uri}: an extension whose schema is not here"
        for uri in item.get("stac_extensions", [])
        if not schemas.known(uri)
    ]
    problems += [str(fault) for fault in schemas.faults(item)]
    if problems:
        raise Rejected.because(f"The item of {item['id']} would not be valid STAC", problems)
