"""Is the Zarr what the SAFE product was? Every image of the one beside its file in the other, number for number."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.windows import Window

#: Lines that are compared at a time: a full Sentinel-1 picture is 800 MB in memory.
LINES = 2048


@dataclass(frozen=True, eq=False)
class Pair:
    """An image of the Zarr, and the file of the SAFE product that has the same numbers."""

    array: str  #: path in the tree, with "[VV]" behind it for one polarisation
    values: Any  #: the image: a lazy xarray.DataArray (rows, columns) of stored numbers
    file: Path


def pairs(tree: Any, root: Path) -> list[Pair]:
    """The images of ``tree`` that the SAFE product at ``root`` has a file for, in the order of the tree.

    Parameters
    ----------
    tree:
        ``xarray.open_datatree(..., mask_and_scale=False)``: stored numbers, as they are in the files.
    root:
        Folder of a Sentinel-1 GRD, Sentinel-2 L1C or L2A, or Sentinel-3 OLCI product.
    """
    nodes = [node for node in tree.subtree if "measurements" in node.path.split("/")]
    return [
        pair
        for node in nodes
        for name, values in node.data_vars.items()
        for pair in _pairs(f"{node.path}/{name}", values, root)
    ]


def _pairs(path: str, values: Any, root: Path) -> Iterator[Pair]:
    group, _, name = path.rpartition("/")
    if "polarization" in values.dims:
        for polarization in map(str, values["polarization"].values):
            for file in root.glob(f"measurement/*-grd-{polarization.lower()}-*.tiff"):
                yield Pair(f"{path}[{polarization}]", values.sel(polarization=polarization), file)
    elif resolution := re.search(r"/r(\d+m)$", group):
        level_2 = list(root.glob(f"GRANULE/*/IMG_DATA/R{resolution[1]}/*_{name.upper()}_{resolution[1]}.jp2"))
        for file in level_2 or root.glob(f"GRANULE/*/IMG_DATA/*_{name.upper()}.jp2"):
            yield Pair(path, values, file)
    elif values.ndim == 2 and not group.endswith("/orphans"):  # pixels that are in no image, under the same names
        for file in root.glob(f"{name[:1].upper()}{name[1:]}.nc"):
            yield Pair(path, values, file)


def compare(pair: Pair) -> dict[str, Any]:
    """Hold every number of the image against its file; a row: ``array``, ``file``, ``numbers``, ``different``."""
    row = {"array": pair.array, "file": pair.file.name, "numbers": pair.values.size}
    different = 0
    with _opened(pair.file) as (shape, read):
        if shape != pair.values.shape:
            return row | {"different": f"{shape} in the file, {pair.values.shape} here"}
        for start in range(0, shape[0], LINES):
            lines = slice(start, min(start + LINES, shape[0]))
            different += int(np.count_nonzero(read(lines) != pair.values[lines].values))
    return row | {"different": different}


@contextmanager
def _opened(file: Path) -> Iterator[tuple[tuple[int, int], Callable[[slice], np.ndarray]]]:
    """Shape of the picture in a TIFF, JPEG 2000 or netCDF file, and a function that reads some lines of it."""
    if file.suffix == ".nc":
        from netCDF4 import Dataset

        with Dataset(file) as content:
            content.set_auto_maskandscale(False)
            variable = next(v for name, v in content.variables.items() if name.lower() == file.stem.lower())
            yield variable.shape, lambda lines: variable[lines]
    else:
        with rasterio.open(file) as source:
            across = source.width
            yield (
                source.shape,
                lambda lines: source.read(1, window=Window(0, lines.start, across, lines.stop - lines.start)),
            )


def thumbnails(pair: Pair, longest: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """The image from its file and from the Zarr, both thinned out to ``longest`` lines and columns at most."""
    step = max(1, -(-max(pair.values.shape) // longest))
    with _opened(pair.file) as (shape, read):
        blocks = [
            slice(start, min(start + LINES // step * step, shape[0]))
            for start in range(0, shape[0], LINES // step * step)
        ]
        file = np.concatenate([np.asarray(read(block))[::step, ::step] for block in blocks])
    return file, pair.values[::step, ::step].values


def showpiece(found: list[Pair], most: int = 4_000_000) -> Pair:
    """The largest of the images that have ``most`` numbers at most; if none has, the smallest."""
    size = {pair: pair.values.size for pair in found}
    small = [pair for pair in found if size[pair] <= most]
    return max(small, key=lambda pair: size[pair]) if small else min(found, key=lambda pair: size[pair])
