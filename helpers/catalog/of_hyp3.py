"""STAC items of HyP3's products: RTC, InSAR, water maps, velocities; of a folder, a zip file or a prefix in S3.

What a product is called, and which files it has, is in HyP3's product guides (hyp3-docs.asf.alaska.edu/guides).
"""

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from ..errors import Rejected
from ..settings import Settings
from . import of_velocities, rasters
from .generating import between, item, register, times
from .places import Href, Place, find

NAMES = {
    "RTC_GAMMA": r"S1[A-D]_(?:IW|EW|S\d)_\d{8}T\d{6}_[SD][VH][PRO]_RTC\d\d_[GIS]_[gsb][pad][uw][nf][ec][dm]"
    r"_[0-9A-F]{4}",
    "INSAR_GAMMA": r"S1[A-D][A-D]_\d{8}T\d{6}_\d{8}T\d{6}_(?:VV|HH)[PRO]\d{3}_INT\d\d_[GIS]_[uw][ec][FB]_[0-9A-F]{4}",
    "INSAR_ISCE_BURST": r"S1_\d{6}_[IE]W\d_\d{8}_\d{8}_(?:VV|HH)_INT\d\d_[0-9A-F]{4}",
    "INSAR_ISCE_MULTI_BURST": r"S1_\d{3}_\d{6}s1n\d\d-\d{6}s2n\d\d-\d{6}s3n\d\d_[IE]W_\d{8}_\d{8}_(?:VV|HH)_INT\d\d"
    r"_[0-9A-F]{4}",
    "AUTORIFT": r"\w+_X_\w+_G\d{4}V\d\d_P\d{3}",
}
ANY = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in NAMES.items()))
#: Names of the granules that products are made of: scenes with start, end and absolute orbit; bursts.
SCENE = re.compile(
    r"S1[A-D]_\w\w_(?:SLC_|GRD\w)_1S[SD][VH]_(\d{8}T\d{6})_(\d{8}T\d{6})_(\d{6})_[0-9A-F]{6}_[0-9A-F]{4}"
)
BURST = re.compile(r"S1_\d{6}_[IE]W\d_(\d{8}T\d{6})_[VH]{2}_[0-9A-F]{4}-BURST")
#: Absolute orbit that is the first relative one, less 1 (ESA: Sentinel-1 Product Definition; as `asf_search` has it).
ORBIT_OFFSET = {"A": 73, "B": 27, "C": 172}
RTC = {"g": "gamma0", "s": "sigma0", "b": "beta0", "p": "power", "a": "amplitude", "d": "decibel"}
#: Files by what their names end in: title, unit, roles. Those that are not here are data.
LAYERS: dict[str, tuple[str, str, list[str]]] = {
    "unw_phase": ("Unwrapped phase", "rad", ["data"]),
    "wrapped_phase": ("Wrapped phase", "rad", ["data"]),
    "corr": ("Coherence", "1", ["data"]),
    "amp": ("Amplitude", "1", ["data"]),
    "los_disp": ("Displacement in line of sight", "m", ["data"]),
    "vert_disp": ("Vertical displacement", "m", ["data"]),
    "conncomp": ("Connected components of the unwrapping", "", ["data-mask"]),
    "lv_theta": ("Look vector: elevation angle", "rad", ["metadata"]),
    "lv_phi": ("Look vector: orientation angle", "rad", ["metadata"]),
    "inc_map": ("Local incidence angle", "rad", ["local-incidence-angle"]),
    "inc_map_ell": ("Incidence angle on the ellipsoid", "rad", ["incidence-angle"]),
    "dem": ("Heights of the digital elevation model", "m", ["metadata"]),
    "water_mask": ("Land (1) and water (0)", "", ["water-mask"]),
    "ls_map": ("Layover and shadow", "", ["layover-shadow-mask"]),
    "area": ("Scattering area", "m2", ["local-contributing-area"]),
    "rgb": ("False colours", "", ["visual"]),
    "WM": ("Water (1)", "", ["data"]),
    "WM_HAND": ("Height above the nearest drainage", "m", ["metadata"]),
}
FLOOD = {"WaterDepth": ("Depth of water", "m"), "FloodDepth": ("Depth of flood", "m")}
FLOOD |= {"FloodMask": ("Flooded (1)", ""), "PW": ("Permanent water (1)", "")}
TYPES = {".png": "image/png", ".txt": "text/plain", ".log": "text/plain", ".xml": "application/xml"}
#: In the order in which the one comes that the footprint and the grid are taken from.
MAIN = ("VV", "HH", "unw_phase", "WM", "VH", "HV", "corr")


@dataclass(frozen=True)
class _Product:
    """One product's files, wherever they are: some beside the package, some only in it."""

    kind: str
    stem: str
    files: dict[str, tuple[Place, str]]  #: place and path there, by the part of the name behind the stem

    def text(self) -> str:
        """What is said about the granules: parameter file and README."""
        found = [name for name in self.files if name in (".txt", ".README.md.txt", "_README.md.txt")]
        return "\n".join(_read(*self.files[name]) for name in sorted(found))


def _read(place: Place, path: str) -> str:
    return place.read(path).decode(errors="replace")


def fits(source: str) -> bool:
    """Whether it is named like a product of HyP3, but not like one of its rasters alone."""
    name = PurePosixPath(source).name
    return ANY.match(name) is not None and not name.endswith(".tif")


@register("hyp3", fits)
def create(source: str, *, href: str | Href | None = None, settings: Settings | None = None) -> dict:
    """The item of a product of HyP3.

    Its id is the product's name, with "_WM" (or "_FM") if maps of water (or of floods alone) are in it: the RTC product
    that these were made from has the same name.
    A pair of dates gives ``start_datetime`` and ``end_datetime``, and the time between them.
    """
    with find(source, settings, href) as place:
        return _item(place)


def _item(place: Place) -> dict:
    product = _product(place)
    if product.kind == "AUTORIFT":
        return of_velocities.create(product.stem, product.files, _pictures(product))
    grids = {name: found for name, found in product.files.items() if name.endswith(".tif")}
    if not grids:
        raise Rejected(f"{place.url}: no GeoTIFF of {product.stem} is there, nor a whole package with them")
    main = min(grids, key=lambda name: (_rank(_key(name)), name))
    assets, footprint, grid = {}, {}, {}
    for name in sorted(grids, key=lambda name: (name != main, name)):
        where, path = grids[name]
        with where.raster(path) as dataset:
            own = rasters.projection(dataset)
            if name == main:
                footprint, grid = rasters.footprint(dataset), own
            assets[_key(name)] = _raster(name, where.href(path), dataset, product) | (own if own != grid else {})
    assets |= _pictures(product)
    if place.archive:
        assets["package"] = _package(place.archive)
    steps = [step for step in ("_WM", "_FM") if any(name.startswith(step) for name in grids)]
    about = _properties(product, "WATER_MAP" if steps else product.kind) | grid
    return item(product.stem + "".join(steps[:1]), footprint, about, assets)


def _product(place: Place) -> _Product:
    names = {path: ANY.match(PurePosixPath(path).name) for path in place.files}
    stems = {found[0]: found.lastgroup for found in names.values() if found}
    if len(stems) != 1:
        told = f"files of {len(stems)} products ({', '.join(sorted(stems)[:3])})" if stems else "no product of HyP3"
        raise Rejected(f"{place.url} holds {told}: give the address of one, by its own name")
    ((stem, kind),) = stems.items()
    files = {PurePosixPath(path).name.removeprefix(stem): (place, path) for path, found in names.items() if found}
    packages = [name for name in files if name.endswith(".zip")]
    for name in packages:
        outer, path = files[name]
        # Beside the package, HyP3 puts pictures and some of the rasters; what says more is only in it.
        with_all = any(other.endswith(".tif") for other in files) and any(other.endswith(".txt") for other in files)
        if not with_all:
            inner = outer.unzipped(path)
            inside = {PurePosixPath(member).name: member for member in inner.files}
            found = {n.removeprefix(stem): (inner, member) for n, member in inside.items() if n.startswith(stem)}
            files = found | files
    return _Product(kind or "", stem, files)


def _key(name: str) -> str:
    """Of an asset, from the part of the file's name behind the product's."""
    if name.endswith((".tif", ".zip")):
        key = name.rpartition(".")[0].strip("_.")
        return key if name.endswith(".tif") else f"{key}_package".strip("_")
    if name.endswith(".png"):
        picture = "thumbnail" if name.endswith("_thumb.png") else "browse"
        return f"{name.removesuffix('.png').removesuffix('_thumb').strip('_')}_{picture}".strip("_")
    return {".txt": "parameters", ".log": "log"}.get(name) or ("readme" if "README" in name else name.strip("_."))


def _rank(key: str) -> int:
    return MAIN.index(key) if key in MAIN else len(MAIN)


def _raster(name: str, href: str, dataset: Any, product: _Product) -> dict:
    key = _key(name)
    title, unit, roles = _layer(key, product)
    said = {"href": href, "title": title, "type": rasters.media_type(dataset), "roles": roles}
    if key in ("VV", "VH", "HH", "HV"):
        said["sar:polarizations"] = [key]
    return said | rasters.bands(dataset, unit)


def _layer(key: str, product: _Product) -> tuple[str, str, list[str]]:
    if key in ("VV", "VH", "HH", "HV"):
        radiometry, scale = (RTC[letter] for letter in product.stem.split("_")[6][:2])
        return f"{key}: {radiometry}, {scale}", "dB" if scale == "decibel" else "1", ["data", radiometry]
    if key.startswith("FM_"):
        title, unit = FLOOD.get(key.rpartition("_")[2], (key, ""))
        return title, unit, ["data"]
    return LAYERS.get(key, (key, "", ["data"]))


def _pictures(product: _Product) -> dict[str, dict]:
    """Everything that is no raster."""
    return {_key(name): asset for name, found in product.files.items() if (asset := _other(name, *found))}


def _other(name: str, place: Place, path: str) -> dict | None:
    """An asset that is no raster: the package, pictures, texts; not the descriptions of single files."""
    if name.endswith((".tif", ".tif.xml", ".png.xml")):
        return None
    said: dict[str, Any] = {"href": place.href(path)}
    suffix = name[name.rfind(".") :]
    if suffix == ".zip":
        return _package(said["href"])
    if suffix == ".png":
        role = "thumbnail" if name.endswith("_thumb.png") else "overview"
        return said | {"type": "image/png", "roles": [role]}
    return said | {"type": TYPES[suffix], "roles": ["metadata"]} if suffix in TYPES else None


def _package(href: str) -> dict:
    return {"href": href, "title": "Package with all its files", "type": "application/zip", "roles": ["archive"]}


def _properties(product: _Product, kind: str) -> dict:
    text = product.text()
    start, end = _interval(product, text)
    times_told = {"datetime": start}
    if end != start:
        times_told = {"datetime": between(start, end), "start_datetime": start, "end_datetime": end}
    missions = _missions(product, text)
    about: dict[str, Any] = times_told | {
        "constellation": "sentinel-1",
        "instruments": ["c-sar"],
        "gsd": int(re.search(r"(?:RTC|INT)(\d\d)", product.stem)[1]),  # type: ignore[index]
        "product:type": kind,
        "sar:instrument_mode": "EW" if "_EW" in product.stem else "IW",
        "sar:frequency_band": "C",
        "sar:center_frequency": 5.405,
        "sar:polarizations": _polarizations(product),
        "sar:observation_direction": "right",
        "processing:facility": "ASF HyP3",
        "processing:lineage": _lineage(kind, product, text),
    }
    if len(missions) == 1:
        about["platform"] = f"sentinel-1{missions.pop().lower()}"
    return about | _orbit(text) | _looks(text)


def _interval(product: _Product, text: str) -> tuple[str, str]:
    """First and last moment: of the granules, if the product lists them; else as its name says."""
    granules = [found.groups()[:2] for found in SCENE.finditer(text)]
    granules += [(found[1], found[1]) for found in BURST.finditer(text)]
    stamps = [stamp for pair in granules for stamp in pair]
    found = times(" ".join(stamps)) or times(product.stem)
    if not found:
        days = re.findall(r"_(\d{4})(\d\d)(\d\d)(?=_)", product.stem)
        found = [f"{'-'.join(day)}T00:00:00Z" for day in days[:1]] + [f"{'-'.join(d)}T23:59:59Z" for d in days[-1:]]
    for time in found:
        try:
            datetime.fromisoformat(time)
        except ValueError:
            raise Rejected(f"{product.stem}: {time} is no time") from None
    return min(found), max(found)


def _missions(product: _Product, text: str) -> set[str]:
    if pair := re.match(r"S1([A-D])([A-D]?)_", product.stem):
        return {letter for letter in pair.groups() if letter}
    return {found[0][2] for found in SCENE.finditer(text)}


def _polarizations(product: _Product) -> list[str]:
    """Of the rasters, else as the name says."""
    found = [p for p in ("VV", "VH", "HH", "HV") if f"_{p}.tif" in product.files]
    if told := re.search(r"_(VV|HH)(?:[PRO]\d{3})?_INT", product.stem):
        return [told[1]]
    co = "HH" if re.search(r"_[SD]H[PRO]_", product.stem) else "VV"
    return found or [co]


def _lineage(kind: str, product: _Product, text: str) -> str:
    software = "GAMMA" if re.search(r"_G_", product.stem) else "ISCE2"
    named = [found[0] for pattern in (SCENE, BURST) for found in pattern.finditer(text)]
    of = f" of {', '.join(dict.fromkeys(named))}" if named else ""
    return f"{kind} by ASF HyP3 with {software}{of}"


def _orbit(text: str) -> dict:
    """Of the first scene, and of its parameter file."""
    found: dict[str, Any] = {}
    if direction := re.search(r"Reference Pass Direction:\s*(\w+)", text):
        found["sat:orbit_state"] = direction[1].lower()
    if scene := SCENE.search(text):
        orbit, mission = int(scene[3]), scene[0][2]
        found["sat:absolute_orbit"] = orbit
        if mission in ORBIT_OFFSET:
            found["sat:relative_orbit"] = (orbit - ORBIT_OFFSET[mission]) % 175 + 1
    return {key: value for key, value in found.items() if value not in ("", 0)}


def _looks(text: str) -> dict:
    told = {name: re.search(rf"{name} looks:\s*(\d+)", text) for name in ("Range", "Azimuth")}
    return {f"sar:looks_{name.lower()}": int(found[1]) for name, found in told.items() if found}
