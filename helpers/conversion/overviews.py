"""Overviews of a converted product: smaller versions of each image, where the GeoZarr convention says they belong."""

import io
import shutil
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from ..download import alone

#: Lines and columns of a chunk: what a map on a web page asks for at a time.
CHUNK = 512


def add_overviews(tree: Any, target: Path) -> list[dict[str, Any]]:
    """Write a Sentinel-2 product with overviews to ``target``, by eopf-geozarr; what is there already stays.

    Parameters
    ----------
    tree:
        ``xarray.open_datatree(..., chunks={}, mask_and_scale=False)`` of a Zarr that EOPF made.
    target:
        The new Zarr, a folder. It appears when it is whole.

    Returns
    -------
    Its levels, the finest first: ``level``, ``shape``, ``bytes`` (stored). Empty for other missions, of which
    eopf-geozarr 0.12 makes none, or (Sentinel-1 of EOPF 3.0.0) fails.
    """
    if "/measurements/reflectance" not in tree.groups:
        return []
    part = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    with alone(target):
        if not target.exists():
            shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
            _write(tree, part)
            part.replace(target)
    layout = _attributes(target / "measurements/reflectance")["multiscales"]["layout"]
    return [
        {
            "level": level["asset"],
            "shape": level["spatial:shape"],
            "bytes": _size(target / "measurements/reflectance" / level["asset"]),
        }
        for level in layout
    ]


def _write(tree: Any, part: Path) -> None:
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        # It asks for a table of names on the network when it is imported, warns without, and logs each step.
        warnings.simplefilter("ignore")
        from eopf_geozarr.s2_optimization.s2_converter import convert_s2_optimized

        convert_s2_optimized(
            tree,
            output_path=str(part),
            enable_sharding=False,  # GDAL 3.12 cannot read shards
            spatial_chunk=CHUNK,
            compression_level=3,
            validate_output=False,
            keep_scale_offset=True,
        )


def _attributes(group: Path) -> dict:
    import zarr

    return dict(zarr.open_group(group, mode="r").attrs)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
