"""Sentinel SAFE products for the sandbox: real names and structure, small simulated pictures, deterministic bytes.

Sentinel-1 IW GRDH, Sentinel-2 L1C and L2A, Sentinel-3 OLCI L1. The name fixes everything: where the product lies, the
landscape of that place, and what the day did to it. A picture of any size shows the whole scene, tile or frame: its
pixels are larger than real ones, and every size and spacing in the metadata follows.

Each mission has a module (`safe_sentinel1`, ...) with its sources; templates and tables are in `safe_templates`.
"""

import io
import tarfile
from datetime import datetime
from gzip import GzipFile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from . import safe_sentinel1, safe_sentinel2, safe_sentinel3
from .products import _zip, granule_footprint
from .safe_parts import STAMP, Files, facts

#: Longest side of a picture in pixels, if nothing else is asked for: what makes a product of 1 to 3 MB.
PIXELS = {"S1": 480, "S2": 480, "S3": 240}


def safe_zip(name: str, pixels: int | None = None) -> bytes:
    """Zip file of a product, as the archives deliver it: one folder, ``NAME.SAFE``, with everything below it.

    The same name and size give the same bytes. Arguments and errors are those of `safe_files`.
    """
    return safe_archive(name, pixels)


def safe_archive(name: str, pixels: int | None = None, suffix: str = ".zip") -> bytes:
    """Archive of a product: ``.zip``, ``.tar``, ``.tar.gz`` or ``.tgz``. As `safe_zip` otherwise."""
    if suffix not in (".zip", ".tar", ".tar.gz", ".tgz"):
        raise ValueError(f"{suffix!r}: archives are .zip, .tar, .tar.gz or .tgz")
    root, files = _folder(name), safe_files(name, pixels)
    if suffix == ".zip":
        return _zip(root, files)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, body in files.items():
            member = tarfile.TarInfo(f"{root}/{path}")
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    if suffix == ".tar":
        return out.getvalue()
    packed = io.BytesIO()
    with GzipFile(fileobj=packed, mode="wb", compresslevel=6, mtime=0) as file:
        file.write(out.getvalue())
    return packed.getvalue()


def safe_files(name: str, pixels: int | None = None) -> dict[str, bytes]:
    """Content of a product's files by their path below its root folder, the manifest among them.

    ``name`` may end in ".SAFE" or ".SEN3". ``pixels`` is the longest side of the picture, at least 60, by default that
    of a small product: of a Sentinel-1 scene (really about 25000), of a Sentinel-2 tile's bands of 10 m (really 10980;
    a multiple of 6, so that bands of 20 and 60 m cover the same) or of a Sentinel-3 frame (really 4865, or 1217 of
    reduced resolution).

    Raises
    ------
    ValueError
        The name is not that of a product that can be made here, or ``pixels`` does not fit.
    """
    with TemporaryDirectory() as folder:
        files = Files(write_safe(Path(folder), name, pixels or PIXELS.get(name[:2], 480)))
        return {path: files[path] for path in files}


def write_safe(folder: Path, name: str, pixels: int | None = None) -> Path:
    """Write a product as a folder ``NAME.SAFE`` (or ``.SEN3``) into ``folder``, which is made; return it.

    By default with as many pixels as real ones have: that takes minutes and a gigabyte or two, of the disk and of
    memory. The folder appears when it is complete.

    Raises
    ------
    FileExistsError
        It is there already.
    ValueError
        As `safe_files`.
    """
    about, make = _recognised(name, pixels)
    root = folder / _folder(name)
    if root.exists():
        raise FileExistsError(f"{root} is there already")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".", dir=folder) as part:
        files = Files(Path(part) / root.name)
        make(about, files)
        files.root.rename(root)
    return root


def product_footprint(name: str) -> dict:
    """GeoJSON Polygon of a product: longitude and latitude in degrees, a closed ring, as in its manifest.

    Raises
    ------
    ValueError
        As `safe_files`.
    """
    return {"type": "Polygon", "coordinates": [_recognised(name, None)[0]["ring"]]}


def _stem(name: str) -> str:
    return name.removesuffix(".SAFE").removesuffix(".SEN3")


def _folder(name: str) -> str:
    return _stem(name) + (".SEN3" if name.startswith("S3") else ".SAFE")


def _recognised(name: str, pixels: int | None) -> tuple[dict[str, Any], Any]:
    """What a product's name tells, and what makes its files of it."""
    stem = _stem(name)
    if pixels is not None and (pixels < 60 or (pixels % 6 and stem.startswith("S2"))):
        raise ValueError(f"pixels={pixels}: must be 60 or more, and for Sentinel-2 a multiple of 6")
    for mission in (safe_sentinel1, safe_sentinel2, safe_sentinel3):
        if found := mission.NAME.fullmatch(stem):
            about: dict[str, Any] = found.groupdict() | {"stem": stem, "pixels": pixels}
            try:
                about |= {key: datetime.strptime(about[key], STAMP) for key in ("begin", "end", "made") if key in about}
            except ValueError as error:
                raise ValueError(f"{name!r} has an impossible time in it: {error}") from None
            olci = mission is safe_sentinel3
            about["ring"] = safe_sentinel3.ring(about) if olci else granule_footprint(stem)["coordinates"][0]
            about["cospar"] = facts()["cospar"].get(about["mission"], "0000-000A")
            return about, mission.make
    # Measured with EOPF 3.0.0 at 80 x 120 pixels: 16 s with one burst a sub-swath, 41 s with three, minutes with nine.
    slc = "; SLC is not made: even a small one with all its bursts takes EOPF minutes" * ("_SLC_" in name)
    raise ValueError(
        f"{name!r} is no product that the sandbox can make: it knows Sentinel-1 IW GRDH (S1A_IW_GRDH_1SDV_...),"
        " Sentinel-2 L1C and L2A (S2A_MSIL1C_..., S2A_MSIL2A_...) and Sentinel-3 OLCI L1 (S3A_OL_1_EFR____...,"
        f" S3A_OL_1_ERR____...) by their full names{slc}"
    )
