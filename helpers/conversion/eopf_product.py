"""EOPF at work, in a process of its own (its import takes seconds and half a GB): a SAFE folder read, a Zarr written.

Everything comes from EOPF but the pictures of Sentinel-1 GRD. EOPF 3.0.0 takes each of the two into memory as a whole
(3.5 GB at full size, more than a third of its time), and so they are copied here, a strip at a time, while EOPF is
still reading the annotation. The same numbers, in the same chunks and of the same order; `mending` proves the labels.
"""

import atexit
import functools
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..errors import Rejected

#: The release that the shortcuts here were written for, and held against; any other does everything by itself.
KNOWN = "3.0.0"
#: Longest side of a chunk of a GRD picture, as EOPF has it; so many lines are copied at a time (200 MB at full size).
CHUNK = 4096
#: Bytes that GDAL may keep of a TIFF: every line is read once.
GDAL_CACHE = 64 << 20
#: Chunks without a value are written like all others: looking for them takes as long as compressing.
EMPTY_CHUNKS = {"write_empty_chunks": True}
#: Loggers that say a lot, and nothing about the result.
NOISY = ("eopf", "cfgrib", "gribapi")
CODEC = {"cname": "zstd", "clevel": 3, "shuffle": "bitshuffle"}
_importing = threading.Lock()
Step = Callable[[str], AbstractContextManager]


def warm() -> None:
    """Import what a conversion needs, so that the first one need not wait for it."""
    with quiet():
        _eopf()
        from .. import schemas, stac  # noqa: F401
        from . import mending  # noqa: F401

        schemas.load()


def _eopf() -> Any:
    """The package, imported by one thread at a time: two get in each other's way in its circles."""
    with _importing:
        import eopf
        import eopf.store.safe_reader
        import eopf.store.zarr_writer

        return eopf


def stay_quiet() -> None:
    """For a process that converts and does nothing else: no word of the libraries, from now to the end of Python."""
    warnings.simplefilter("ignore")  # `quiet` alone is not made for several threads
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # ecCodes makes Python print "Error in sys.excepthook" dozens of times when it ends.
    atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))


def write(root: Path, zarr: Path, *, threads: int, step: Step, attributes: dict) -> None:
    """Write the product at ``root`` as a Zarr (version 3, zstd), not consolidated yet.

    Parameters
    ----------
    root, zarr:
        Folder of the product, ending in .SAFE or .SEN3; the Zarr to make, ending in .zarr.
    threads:
        How many pictures are decoded at a time.
    step:
        Gets the names "read" and "write", for what is measured.
    attributes:
        More attributes of the Zarr's root.

    Raises
    ------
    Rejected
        EOPF cannot read or write it, and why.
    """
    with quiet(), ThreadPoolExecutor(1) as aside:
        import rasterio  # noqa: F401 - by this thread, which imports EOPF, and not by two at a time
        import zarr as _  # noqa: F401

        tiffs = _tiffs(root)
        copied = aside.submit(_copy, tiffs, zarr.with_name(f"{zarr.name}.picture")) if tiffs else None
        with step("read"):
            tree = _read(root)
        with step("write"):
            place = _place_of(copied.result(), tree) if copied else ""
            kept = _taken_out(tree, place) if place else {}
            tree.attrs.update(attributes)
            _write(tree, root, zarr, threads)
            if place:
                copied.result().attrs.update(kept)
                Path(copied.result().store.root).replace(zarr / place)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the hundreds of lines that EOPF and its libraries log: what goes wrong is known from the result."""
    noisy = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in noisy]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in noisy:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(noisy, levels, strict=True):
                logger.setLevel(level)


# --- EOPF ---


def _read(root: Path) -> Any:
    """The product as a lazy ``xarray.DataTree``."""
    eopf = _eopf()
    try:
        with _shortcuts():
            return eopf.open_datatree(str(root))
    except Exception:  # noqa: BLE001 - whatever the shortcuts do to it, EOPF must have the last word
        try:
            return eopf.open_datatree(str(root))
        except Exception as error:  # noqa: BLE001 - it raises anything
            raise Rejected(f"EOPF {version('eopf')} cannot read {root.name}: {_said(error)}") from None


def _write(tree: Any, root: Path, zarr: Path, threads: int) -> None:
    import dask
    from eopf.common.yaml_codecs import BloscSpec
    from eopf.product.history_utils import add_eopf_cpm_entry_to_history

    codec = BloscSpec("zstd", 3, 2)
    # Inside a Dask worker, the pictures would otherwise be handed to its cluster, and wait for themselves.
    with dask.config.set(scheduler="threads", num_workers=threads):
        try:
            add_eopf_cpm_entry_to_history(tree, safe_output=root.name, cpm_output=zarr.name)
            # Without "encoding" the codec is ignored; with it, it is not used for coordinates, some of which are whole
            # pictures in Sentinel-3 (eopf/common/xarray_utils.py). The mending consolidates, once, not for each group.
            encoding = {
                node.path: {name: {"compressors": codec} for name, values in node.coords.items() if values.ndim > 1}
                for node in tree.subtree
            }
            options = {"encoding": encoding, "default_codec": codec, "consolidated": False, **EMPTY_CHUNKS}
            _eopf().write_datatree(tree, str(zarr), engine="cpm_zarr", **options)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - it raises anything
            raise Rejected(f"EOPF {version('eopf')} cannot convert {zarr.stem}: {_said(error)}") from None


def _said(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 500 else f"{text[:500]} ..."


@contextmanager
def _shortcuts() -> Iterator[None]:
    """Leave out two detours of EOPF 3.0.0, which take two thirds of the 17 s that it reads a Sentinel-1 annotation.

    For each number of an annotation it calls ``numpy.pad`` to bring an index to the right length, 380,000 times; and it
    compiles the XML schema anew for each section of each file. The results are the same: a test holds them to it. There
    is no other way in, neither function can be given. Any other release is left as it is.
    """
    if version("eopf") != KNOWN:
        yield
        return
    from eopf.accessor.xml_accessors import NDimensionalXPath
    from eopf.store.product_specific import S01

    def to_ndarray(self: Any, decode: Callable, dtype: str, default: Any) -> np.ndarray:
        shape = self.get_ndarray_shape()
        array = np.full(shape, default, dtype=dtype)
        for index, value in self.enumerate():
            array[(*index, *(0,) * (len(shape) - len(index)))] = decode(value)
        return array

    with _replaced(NDimensionalXPath, "to_ndarray", to_ndarray):
        once = SimpleNamespace(XMLSchema=functools.cache(S01.xmlschema.XMLSchema))
        with _replaced(S01, "xmlschema", once):
            yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


# --- Sentinel-1 GRD pictures ---


def _tiffs(root: Path) -> dict[str, Path]:
    """The TIFFs by polarisation, in the order in which EOPF 3.0.0 puts them together; nothing for other products."""
    found = {path.name.split("-")[3]: path for path in root.glob("measurement/s1?-*-grd-*.tiff")}
    return dict(sorted(found.items())) if version("eopf") == KNOWN else {}


def _copy(tiffs: dict[str, Path], folder: Path) -> Any:
    """The pictures as one Zarr array (polarisation, line, sample); None if they are not what EOPF would take."""
    import rasterio
    import zarr
    from rasterio.windows import Window
    from zarr.codecs import BloscCodec

    # Two chunks at a time: more would only keep the thread waiting that reads the annotation.
    with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE), zarr.config.set({"async.concurrency": 2}), ExitStack() as opened:
        pictures = [opened.enter_context(rasterio.open(path)) for path in tiffs.values()]
        if {(one.shape, one.dtypes) for one in pictures} != {(pictures[0].shape, ("uint16",))}:
            return None
        height, width = pictures[0].shape
        array = zarr.create_array(
            str(folder),
            shape=(len(pictures), height, width),
            chunks=(1, min(CHUNK, height), min(CHUNK, width)),
            dtype="uint16",
            compressors=BloscCodec(**CODEC),
            dimension_names=("polarization", "azimuth_time", "ground_range"),
            config=EMPTY_CHUNKS,
        )
        for number, picture in enumerate(pictures):
            for line in range(0, height, CHUNK):
                lines = min(CHUNK, height - line)
                array[number, line : line + lines] = picture.read(1, window=Window(0, line, width, lines))
    return array


def _place_of(array: Any, tree: Any) -> str:
    """Where in the tree the picture is that was copied; "" if there is none like it."""
    found = [node for node in tree.subtree if node.name == "measurements" and "grd" in node.data_vars]
    if array is None or len(found) != 1:
        return ""
    picture = found[0]["grd"]
    alike = (picture.dims, picture.shape, picture.dtype) == (array.metadata.dimension_names, array.shape, array.dtype)
    return f"{found[0].path.strip('/')}/grd" if alike else ""


def _taken_out(tree: Any, place: str) -> dict:
    """Leave the picture out of the tree; its attributes."""
    node = tree[place.rpartition("/")[0]]
    attributes = dict(node["grd"].attrs)
    node.dataset = node.to_dataset(inherit=False).drop_vars("grd")
    return attributes
