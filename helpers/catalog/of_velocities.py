"""The STAC item of surface velocities by autoRIFT: one NetCDF file of an image pair, as ITS_LIVE describes it."""

import re
from typing import Any

import numpy as np

from ..errors import Rejected
from . import rasters
from .generating import between, item
from .places import Place

TITLES = {"v": "speed", "vx": "velocity along x", "vy": "velocity along y", "v_error": "error of the speed"}


def create(stem: str, files: dict[str, tuple[Place, str]], others: dict[str, dict]) -> dict:
    """The item of a pair; its footprint is where there are velocities, its times those of the two images.

    Raises
    ------
    Rejected
        The file is none of velocities.
    """
    if ".nc" not in files:
        raise Rejected(f"{stem}: its NetCDF file is not there")
    place, path = files[".nc"]
    with _opened(place.read(path), stem) as data:
        try:
            mapping = data["mapping"]
            grid = _grid(mapping, data["x"][:], data["y"][:])
            footprint = rasters.outline(
                *_small(~np.ma.getmaskarray(data["v"][:]).squeeze(), grid["transform"]), grid["crs"]
            )
            layers = [name for name in TITLES if name in data.variables]
            about = _properties(stem, data) | _projection(grid, data["v"].shape[-2:])
        except (IndexError, KeyError, AttributeError, ValueError) as error:
            raise Rejected(f"{stem}.nc is no file of velocities as ITS_LIVE has them ({error})") from None
    asset = {"href": place.href(path), "type": "application/netcdf", "roles": ["data"], "unit": "m year-1"}
    asset["bands"] = [{"name": name, "description": TITLES[name]} for name in layers]
    asset["raster:spatial_resolution"] = about["gsd"]
    return item(stem, footprint, about, {"velocity": asset} | others)


def _opened(content: bytes, stem: str) -> Any:
    import netCDF4

    try:
        return netCDF4.Dataset(f"{stem}.nc", memory=content)
    except OSError as error:
        raise Rejected(f"{stem}.nc is no NetCDF file ({error.strerror or error})") from None


def _grid(mapping: Any, x: np.ndarray, y: np.ndarray) -> dict:
    """The reference system, and the transformation from columns and rows: coordinates are those of pixels' centres."""
    from rasterio import Affine
    from rasterio.crs import CRS

    across, down = float(x[1] - x[0]), float(y[1] - y[0])
    return {
        "crs": CRS.from_wkt(mapping.spatial_ref),
        "transform": Affine(across, 0, float(x[0]) - across / 2, 0, down, float(y[0]) - down / 2),
    }


def _small(mask: np.ndarray, transform: Any) -> tuple[np.ndarray, Any]:
    step = -(-max(mask.shape) // rasters.PIXELS)
    return mask[::step, ::step], transform @ transform.scale(step)


def _projection(grid: dict, shape: tuple[int, int]) -> dict:
    code, transform = grid["crs"].to_epsg(), grid["transform"]
    left, top = transform.c, transform.f
    right, bottom = transform @ (shape[1], shape[0])
    return {
        **({"proj:code": f"EPSG:{code}"} if code else {"proj:wkt2": grid["crs"].to_wkt()}),
        "proj:shape": list(shape),
        "proj:transform": list(transform),
        "proj:bbox": [left, bottom, right, top],
    }


def _properties(stem: str, data: Any) -> dict:
    pair = data["img_pair_info"]
    start, end = sorted(_time(getattr(pair, f"acquisition_date_img{number}")) for number in (1, 2))
    images = " and ".join(str(getattr(pair, f"id_img{number}")) for number in (1, 2))
    return {
        "datetime": between(start, end),
        "start_datetime": start,
        "end_datetime": end,
        "gsd": int(re.search(r"_G(\d{4})V", stem)[1]),  # type: ignore[index]
        "product:type": "AUTORIFT",
        "processing:facility": "ASF HyP3",
        "processing:lineage": f"AUTORIFT by ASF HyP3 of {images}",
    }


def _time(text: str) -> str:
    """RFC 3339, of 20200105T152259 or 20200105T15:22:59.02 or 20200105."""
    digits = re.sub(r"\..*|\D", "", str(text)).ljust(14, "0")
    if len(digits) != 14:
        raise ValueError(f"{text!r} is no time")
    return "{}-{}-{}T{}:{}:{}Z".format(digits[:4], *(digits[i : i + 2] for i in range(4, 14, 2)))
