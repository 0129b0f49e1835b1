"""What a raster says for a STAC item: its footprint from the pixels that have data, its grid, its bands."""

from math import ceil, isnan
from typing import Any

import numpy as np

from .. import stac

#: Pixels along the longer side that the footprint is found in: errors are below one of these.
PIXELS = 400
#: Parts and corners of a footprint at most; of more, the hull is taken.
PARTS, CORNERS = 5, 100
COG = "image/tiff; application=geotiff; profile=cloud-optimized"
GEOTIFF = "image/tiff; application=geotiff"


def footprint(dataset: Any) -> dict:
    """GeoJSON of where an opened raster has data: longitude and latitude in degrees, cut at the antimeridian.

    Found in a picture of :data:`PIXELS` pixels, which a raster with overviews gives without being read as a whole.
    Where nothing is valid, or everything, it is the raster's frame.
    """
    shrink = max(1, max(dataset.shape) / PIXELS)
    height, width = (ceil(side / shrink) for side in dataset.shape)
    mask = dataset.read_masks(1, out_shape=(height, width)) > 0
    transform = dataset.transform @ dataset.transform.scale(dataset.width / width, dataset.height / height)
    return outline(mask, transform, dataset.crs)


def outline(mask: np.ndarray, transform: Any, crs: Any) -> dict:
    """GeoJSON of where a mask is true; ``transform`` leads from its columns and rows to coordinates of ``crs``."""
    from shapely.geometry import Polygon, shape
    from shapely.ops import unary_union

    height, width = mask.shape
    place = Polygon([transform @ corner for corner in ((0, 0), (width, 0), (width, height), (0, height))])
    if mask.any() and not mask.all():
        from rasterio.features import shapes

        found = shapes(mask.astype("u1"), mask=mask, transform=transform, connectivity=8)
        parts = [Polygon(shape(one).exterior).buffer(0) for one, _ in found]
        largest = max(part.area for part in parts)
        place = unary_union([part for part in parts if part.area > largest / 100])
        place = _simple(place, 2 * max(abs(transform.a), abs(transform.e)))
    return stac.on_earth(place, crs)


def _simple(place: Any, tolerance: float) -> Any:
    """With few corners: the edge of the data is stairs."""
    simple = place.simplify(tolerance)
    parts = getattr(simple, "geoms", [simple])
    if len(parts) > PARTS or sum(len(part.exterior.coords) for part in parts) > CORNERS:
        return place.convex_hull.simplify(tolerance)
    return simple


def projection(dataset: Any) -> dict:
    """Properties of the projection extension, version 2."""
    from rio_stac.stac import get_projection_info

    found = get_projection_info(dataset)
    code = {"proj:code": f"EPSG:{found['epsg']}"} if found["epsg"] else {}
    wkt = {"proj:wkt2": found["wkt2"]} if not code and "wkt2" in found else {}
    whole = {f"proj:{key}": [float(n) for n in found[key]] for key in ("bbox", "transform")}
    return code | wkt | {"proj:shape": found["shape"]} | whole


def bands(dataset: Any, unit: str = "") -> dict:
    """What an asset says of its pixels: type, nodata, unit, spacing; and of its bands, if there are several."""
    said: dict[str, Any] = {"data_type": _type(dataset.dtypes[0])}
    if dataset.nodata is not None:
        said["nodata"] = "nan" if isnan(dataset.nodata) else _whole(dataset.nodata)
    if unit:
        said["unit"] = unit
    if dataset.crs is not None and dataset.crs.is_projected:
        said["raster:spatial_resolution"] = _whole(round(abs(dataset.transform.a), 6))
    if dataset.count > 1:
        names = [dataset.descriptions[i] or dataset.colorinterp[i].name for i in range(dataset.count)]
        names = names if len(set(names)) == len(names) else [str(i + 1) for i in range(dataset.count)]
        said["bands"] = [{"name": name} for name in names]
    return said


def _type(name: str) -> str:
    return {"complex64": "cfloat32", "complex128": "cfloat64", "complex_int16": "cint16"}.get(name, name)


def _whole(number: float) -> float | int:
    return int(number) if np.isfinite(number) and number == int(number) else float(number)


def media_type(dataset: Any) -> str:
    """Of a GeoTIFF: that of a cloud-optimized one, if it says so."""
    layout = dataset.tags(ns="IMAGE_STRUCTURE").get("LAYOUT")
    return COG if layout == "COG" else GEOTIFF
