"""STAC items of SAFE products of Sentinel-1, -2 and -3: a folder, a zip file, or a prefix in S3; from the manifest."""

import re
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from defusedxml import ElementTree

from .. import safe, stac
from ..errors import Rejected
from ..settings import Settings
from .generating import item, register, times
from .places import Href, Place, find

#: Names of products, as far as they tell them from others: level and type of Sentinel-1, -2 and -3.
NAME = re.compile(r"(S1[A-D]_\w\w_(RAW|SLC|GRD|OCN)\w_\d|S2[A-D]_MSIL\d|S3[A-D_]_[A-Z]{2}_\d_)\w{20,}")
INSTRUMENTS = {"OL": ["olci"], "SL": ["slstr"], "SR": ["sral"], "MW": ["mwr"], "SY": ["olci", "slstr"]}
#: Bands of MSI: common name and centre in micrometres (Sentinel-2 User Handbook, table 1).
BANDS = {
    "B01": ("coastal", 0.443),
    "B02": ("blue", 0.49),
    "B03": ("green", 0.56),
    "B04": ("red", 0.665),
    "B05": ("rededge071", 0.705),
    "B06": ("rededge075", 0.74),
    "B07": ("rededge078", 0.783),
    "B08": ("nir", 0.842),
    "B8A": ("nir08", 0.865),
    "B09": ("nir09", 0.945),
    "B10": ("cirrus", 1.375),
    "B11": ("swir16", 1.61),
    "B12": ("swir22", 2.19),
}
#: Bands whose spacing is not in the files' names, those of Level-1C, in m.
FINE, COARSE = ("B02", "B03", "B04", "B08", "TCI"), ("B01", "B09", "B10")
#: First bytes of checksums, which say of what kind and how long they are (multihash, as the file extension has it).
MULTIHASH = {"md5": "d50110", "sha256": "1220", "sha3_256": "1620"}


def fits(source: str) -> bool:
    """Whether it is named like a product of Sentinel-1, -2 or -3, packed or not."""
    name = PurePosixPath(source).name
    if name.endswith((".SAFE", ".SEN3")):
        return True
    return safe.is_archive(name) and NAME.match(name) is not None


@register("safe", fits)
def create(source: str, *, href: str | Href | None = None, settings: Settings | None = None) -> dict:
    """The item of a SAFE product; its id is the product's name without suffix, its footprint that of the manifest."""
    with find(source, settings, href) as place:
        return _item(place)


def _item(place: Place) -> dict:
    manifest = next((name for name in safe.MANIFESTS if name in place.files), "")
    name = safe.name_of(place.name)
    outline = safe.footprint(place)  # type: ignore[arg-type]  # what it asks of a path, a place has
    if not NAME.fullmatch(name):
        raise Rejected(f"{place.url}: {name!r} is no name of a product of Sentinel-1, -2 or -3")
    told = ElementTree.fromstring(place.read(manifest))
    assets = _assets(place, name, manifest)
    return item(name, _ground(outline), _properties(place, name, told), assets)


def _ground(outline: dict) -> dict:
    from shapely.geometry import shape

    return stac.on_earth(shape(outline))


def _properties(place: Place, name: str, told: Any) -> dict:
    start = _time(told.findtext(".//{*}acquisitionPeriod/{*}startTime")) or next(iter(times(name)), "")
    end = _time(told.findtext(".//{*}acquisitionPeriod/{*}stopTime"))
    if not start:
        raise Rejected(f"{name}: neither its manifest nor its name say when it was taken")
    about: dict[str, Any] = {"datetime": start}
    if end and end > start:
        about |= {"start_datetime": start, "end_datetime": end}
    about |= {"platform": f"sentinel-{name[1:3].lower()}", "constellation": f"sentinel-{name[1]}"}
    own = {"1": _sentinel1, "2": _sentinel2, "3": _sentinel3}[name[1]]
    return about | _orbit(told) | _processing(told) | own(place, name, told)


def _time(text: str | None) -> str:
    """RFC 3339; Sentinel-1 writes no zone. Empty if there is none."""
    try:
        time = datetime.fromisoformat((text or "").strip())
    except ValueError:
        return ""
    return time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC).isoformat().replace("+00:00", "Z")


def _orbit(told: Any) -> dict:
    found: dict[str, Any] = {}
    for key, tag in (("absolute", "orbitNumber"), ("relative", "relativeOrbitNumber")):
        number = (told.findtext(f".//{{*}}orbitReference/{{*}}{tag}") or "").strip()
        if number.isdigit() and int(number):
            found[f"sat:{key}_orbit"] = int(number)
    orbit = told.find(".//{*}orbitReference/{*}orbitNumber")
    direction = orbit.get("groundTrackDirection") if orbit is not None else None
    direction = (direction or told.findtext(".//{*}orbitReference//{*}pass") or "").strip().lower()
    if direction in ("ascending", "descending"):
        found["sat:orbit_state"] = direction
    if designator := (told.findtext(".//{*}platform/{*}nssdcIdentifier") or "").strip():
        found["sat:platform_international_designator"] = designator
    return found


def _processing(told: Any) -> dict:
    found: dict[str, Any] = {}
    facility, software = told.find(".//{*}processing/{*}facility"), told.find(".//{*}processing//{*}software")
    if facility is not None and facility.get("name"):
        found["processing:facility"] = facility.get("name")
    if software is not None and software.get("name") and software.get("version"):
        found["processing:software"] = {software.get("name"): software.get("version")}
    step = told.find(".//{*}processing")
    if step is not None and (time := _time(step.get("stop") or step.get("start"))):
        found["processing:datetime"] = time
    return found


def _sentinel1(place: Place, name: str, told: Any) -> dict:
    channels = {"SH": ["HH"], "SV": ["VV"], "DH": ["HH", "HV"], "DV": ["VV", "VH"]}
    return {
        "instruments": ["c-sar"],
        "product:type": name[4:14],
        "processing:level": f"L{name[12]}",
        "sar:instrument_mode": name[4:6],
        "sar:frequency_band": "C",
        "sar:center_frequency": 5.405,
        "sar:polarizations": channels.get(name[14:16]) or [name[14:16]],
        "sar:observation_direction": "right",
    }


def _sentinel2(place: Place, name: str, told: Any) -> dict:
    parts = re.fullmatch(r"S2._MSI(L\d\w)_\w{15}_N(\d\d)(\d\d)_R\d{3}_T((\d\d)([C-X])\w{2})_.*", name)
    about: dict[str, Any] = {"instruments": ["msi"], "gsd": 10}
    if parts:
        level, major, minor, tile, zone, band = parts.groups()
        about |= {"product:type": f"S2MSI{level[1:]}", "processing:level": level}
        about |= {"processing:version": f"{major}.{minor}", "grid:code": f"MGRS-{tile}"}
        about["proj:code"] = f"EPSG:{326 if band >= 'N' else 327}{zone}"
    if metadata := next((path for path in place.files if re.fullmatch(r"MTD_MSIL\w\w\.xml", path)), None):
        cover = re.search(rb"<Cloud_Coverage_Assessment>([\d.]+)<", place.read(metadata))
        if cover and float(cover[1]) <= 100:
            about["eo:cloud_cover"] = float(cover[1])
    return about


def _sentinel3(place: Place, name: str, told: Any) -> dict:
    return {
        "instruments": INSTRUMENTS.get(name[4:6], [name[4:6].lower()]),
        "product:type": name[4:15],
        "processing:level": f"L{name[7]}",
    }


def _assets(place: Place, name: str, manifest: str) -> dict:
    """What was measured, and what describes it; with sizes and checksums where the manifest has them."""
    sums = {one.path: one for one in safe.listed(place.read(manifest))}
    describe = {"1": _file_of_1, "2": _file_of_2, "3": _file_of_3}[name[1]]
    assets = {}
    for path in place.files:
        if found := describe(path, path.rpartition("/")[2]):
            key, said = found
            assets[key] = (
                {"href": place.href(path)} | said | {"file:size": place.files[path]} | _checksum(sums.get(path))
            )
    about = {"type": "application/xml", "roles": ["metadata"], "file:size": place.files[manifest]}
    assets["manifest"] = {"href": place.href(manifest)} | about
    if place.archive:
        assets["package"] = {"href": place.archive, "type": "application/zip", "roles": ["archive"]}
    return assets


def _checksum(member: safe.Member | None) -> dict:
    algorithm = safe.CHECKSUMS.get(member.algorithm.upper()) if member and member.checksum else None
    return {"file:checksum": MULTIHASH[algorithm] + member.checksum} if algorithm and member else {}


def _file_of_1(path: str, name: str) -> tuple[str, dict] | None:
    if found := re.fullmatch(r"measurement/s1.-(\w+)-\w+-([vh]{2})-.*\.tiff", path):
        swath, channel = found.groups()
        key = channel if not swath[-1].isdigit() else f"{swath}_{channel}"
        cog = "; profile=cloud-optimized" if name.endswith("-cog.tiff") else ""
        said = {"type": f"image/tiff; application=geotiff{cog}", "roles": ["data"]}
        return key, said | {"sar:polarizations": [channel.upper()]}
    if path == "preview/quick-look.png":
        return "thumbnail", {"type": "image/png", "roles": ["thumbnail"]}
    return None


def _file_of_2(path: str, name: str) -> tuple[str, dict] | None:
    if found := re.fullmatch(r"GRANULE/[^/]+/IMG_DATA/(?:R\d\dm/)?T\w{5}_\w{15}_(\w{3})(?:_(\d\d)m)?\.jp2", path):
        return _picture_of_2(found[1], found[2])
    if re.fullmatch(r"GRANULE/[^/]+/QI_DATA/[^/]*PVI[^/]*\.jp2", path):
        return "preview", {"type": "image/jp2", "roles": ["overview"]}
    if re.fullmatch(r"[^/]+-ql\.jpg", path):
        return "thumbnail", {"type": "image/jpeg", "roles": ["thumbnail"]}
    if found := re.fullmatch(r"(?:GRANULE/[^/]+/)?MTD_(MSIL\w\w|TL)\.xml", path):
        key = "granule_metadata" if found[1] == "TL" else "product_metadata"
        return key, {"type": "application/xml", "roles": ["metadata"]}
    return None


def _picture_of_2(band: str, metres: str | None) -> tuple[str, dict]:
    said: dict[str, Any] = {"type": "image/jp2", "roles": ["visual" if band == "TCI" else "data"]}
    said["raster:spatial_resolution"] = int(metres or (10 if band in FINE else 60 if band in COARSE else 20))
    if band in BANDS:
        common, centre = BANDS[band]
        said["bands"] = [{"name": band, "eo:common_name": common, "eo:center_wavelength": centre}]
    return f"{band}_{metres}m" if metres else band, said


def _file_of_3(path: str, name: str) -> tuple[str, dict] | None:
    if name.endswith(".nc"):
        kind = ["data"] if re.search(r"radiance|reflectance|_BT_|chl|lst|measurement", name, re.IGNORECASE) else []
        return name.removesuffix(".nc"), {"type": "application/netcdf", "roles": kind or ["metadata"]}
    if name.endswith((".jpg", ".png")):
        return "thumbnail", {"type": f"image/{'jpeg' if name.endswith('.jpg') else 'png'}", "roles": ["thumbnail"]}
    return None
