"""Sentinel SAFE products for the sandbox: real names and structure, small simulated pictures, deterministic bytes.

Sentinel-1 IW GRDH, Sentinel-2 L1C and L2A. The name fixes everything: where the product lies
(`products.granule_footprint`), the landscape of that place, and what the day did to it. A picture of any size shows
the whole tile or scene: its pixels are larger than real ones, and every size and spacing in the metadata follows.

Left out, since no reader at hand asks for it: in Sentinel-2 the data strip's telemetry (ephemeris, attitudes,
temperatures) and what schemas say in detail; in Sentinel-1 raw data analysis, replicas and interference reports.

Sources: ESA's Sentinel-1 product specification (S1-RS-MDA-52-7441), Sentinel-2 products specification
(S2-PDGS-TAS-DI-PSD, issues 14 and 15), WMO's manual on codes (FM 92-IX GRIB). Templates and tables: `safe_templates`.
"""

import hashlib
import io
import math
import re
import struct
from dataclasses import fields, replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml

from .products import (
    BURST_SECONDS,
    FIRST_ORBIT,
    GROUND_SPEED,
    NEAR_RANGE,
    ORBIT_SECONDS,
    ORBITS,
    SWATH_WIDTH,
    TILE_WIDTH,
    WAVELENGTH,
    _backscatter,
    _encode,
    _false_colour,
    _fields,
    _Grid,
    _Land,
    _landscape,
    _locate,
    _noise,
    _rng,
    _scene_pass,
    _seen,
    _smoothstep,
    _tile_origin,
    _track,
    _zip,
    granule_footprint,
)

#: Longest side of a picture in pixels, and of the landscape that pictures of every size are resampled from.
PIXELS = LANDSCAPE = 480
TEMPLATES = Path(__file__).with_name("safe_templates")
STAMP = "%Y%m%dT%H%M%S"
TIME = r"\d{8}T\d{6}"
SENTINEL1 = re.compile(
    rf"(?P<mission>S1[A-D])_IW_GRDH_1S(?P<sides>[DS][HV])_(?P<begin>{TIME})_(?P<end>{TIME})"
    r"_(?P<orbit>\d{6})_(?P<take>[0-9A-F]{6})_[0-9A-F]{4}"
)
SENTINEL2 = re.compile(
    rf"(?P<mission>S2[ABC])_MSI(?P<level>L1C|L2A)_(?P<begin>{TIME})_N(?P<baseline>\d{{4}})_R(?P<track>\d{{3}})"
    rf"_(?P<tile>T(?:0[1-9]|[1-5]\d|60)[C-HJ-NP-X][A-HJ-NP-Z][A-HJ-NP-V])_(?P<made>{TIME})"
)

LIGHT = 299_792_458.0  # m/s
EARTH, ORBIT = 6371.0, 7071.0  # km, radii of the sphere and of Sentinel-1's orbit
ROLL = 29.45  # degrees, right-looking
#: Digital number of beta nought 1 in a product of today: the calibration's one constant.
SCALE = 474.0
ALTITUDE, DETECTOR_WIDTH = 786, 24.2  # km: of Sentinel-2, and a twelfth of its swath


def safe_zip(name: str, pixels: int = PIXELS) -> bytes:
    """Zip file of a product, as the archives deliver it: one folder, ``NAME.SAFE``, with everything below it.

    The same name and size give the same bytes. Arguments and errors are those of `safe_files`.
    """
    return _zip(f"{name.removesuffix('.SAFE')}.SAFE", safe_files(name, pixels))


def safe_files(name: str, pixels: int = PIXELS) -> dict[str, bytes]:
    """Content of a product's files by their path below its root folder, ``manifest.safe`` among them.

    ``name`` may end in ".SAFE". ``pixels`` is the longest side of the picture, at least 60: of a Sentinel-1 scene
    (really about 25000) or of a Sentinel-2 tile's bands of 10 m (really 10980; a multiple of 6, so that bands of 20
    and 60 m cover the same).

    Raises
    ------
    ValueError
        The name is not that of a product that can be made here, or ``pixels`` does not fit.
    """
    stem = name.removesuffix(".SAFE")
    if pixels < 60 or (pixels % 6 and stem.startswith("S2")):
        raise ValueError(f"pixels={pixels}: must be 60 or more, and for Sentinel-2 a multiple of 6")
    for pattern, make in ((SENTINEL1, _sentinel1), (SENTINEL2, _sentinel2)):
        if found := pattern.fullmatch(stem):
            about: dict[str, Any] = found.groupdict() | {"stem": stem, "pixels": pixels}
            try:
                about |= {key: datetime.strptime(about[key], STAMP) for key in ("begin", "end", "made") if key in about}
            except ValueError as error:
                raise ValueError(f"{name!r} has an impossible time in it: {error}") from None
            about["ring"] = granule_footprint(stem)["coordinates"][0]
            about["cospar"] = _facts()["cospar"].get(about["mission"], "0000-000A")
            return dict(sorted(make(about).items()))
    raise ValueError(
        f"{name!r} is no product that the sandbox can make: it knows Sentinel-1 IW GRDH (S1A_IW_GRDH_1SDV_...) and"
        " Sentinel-2 L1C and L2A (S2A_MSIL1C_..., S2A_MSIL2A_...) by their full names"
    )


# --- what both missions share ---


def _coast(stem: str, shape: tuple[int, int], spacing: float, look: tuple[float, float]) -> _Land:
    """Landscape of the product's place with a sea in it, whose ``hand`` falls with the depth, to about -100."""
    row, col = np.indices(shape, dtype="f4", sparse=True)
    land = _landscape(_Grid("", (), spacing, np.ones(shape, bool), col, row, look, np.zeros(1)), [stem])
    sea = _noise(_rng("sea", _locate(stem)[0]), shape, 2.8) - 0.6
    shore = _smoothstep(-sea / 0.5)
    hand = (land.hand + 2) * shore - 2 - 40 * np.maximum(sea, 0)
    return replace(land, hand=hand, dem=np.maximum(land.dem - land.hand, 0) * shore + np.maximum(hand, 0))


def _resized(picture: np.ndarray, height: int, width: int, smooth: bool = True) -> np.ndarray:
    """The same picture, in colours or not, on another grid: interpolated, or the nearest value if not ``smooth``."""
    from PIL import Image

    if picture.shape[:2] == (height, width):
        return picture
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize((width, height), how))


def _jpeg(rgb: np.ndarray) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=80)
    return out.getvalue()


@cache
def _facts() -> dict[str, Any]:
    return yaml.safe_load((TEMPLATES / "facts.yml").read_text())


@cache
def _templates() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    options = {"trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, **options)
    environment.filters |= {
        "sci": lambda value: f"{value:.15e}",
        "numbers": lambda values, digits=6: " ".join(f"{value:.{digits}e}" for value in values),
        "time": lambda moment: moment.isoformat(timespec="microseconds"),
        "utc": lambda moment: moment.isoformat(timespec="milliseconds") + "Z",
    }
    return environment


def _render(template: str, **values: Any) -> bytes:
    return _templates().get_template(f"{template}.j2").render(values).strip().encode() + b"\n"


def _members(files: dict[str, bytes]) -> list[dict]:
    """What the manifest tells of each file."""
    kinds = {"xml": "text/xml", "xsd": "text/xml", "kml": "text/xml", "html": "text/html"}
    kinds |= {"png": "image/png", "jpg": "image/jpeg"}
    schemas = _facts()["sentinel1"]["schemas"]
    return [
        {
            "path": path,
            "id": re.sub(r"\W+", "_", path),
            "size": len(body),
            "md5": hashlib.md5(body, usedforsecurity=False).hexdigest(),  # in Sentinel-1
            "sha3": hashlib.sha3_256(body).hexdigest(),  # in Sentinel-2, since baseline 03.01
            "mime": kinds.get(path.rpartition(".")[2], "application/octet-stream"),
            "schema": next((name for start, (name, _) in schemas.items() if path.startswith(start)), ""),
        }
        for path, body in sorted(files.items())
    ]


def _schema(example: bytes) -> bytes:
    """XML schema that a document fits and all others of its kind do: its elements, and the types of their values.

    Converters decode the annotation by it: it tells lists from single values, and numbers from texts.
    """

    def kind(text: str) -> str:
        if re.fullmatch(r"[+-]?\d+", text):
            return "xs:integer"
        if re.fullmatch(r"[+-]?\d+\.\d+e[+-]\d+", text):
            return "xs:double"
        return "xs:boolean" if text in ("true", "false") else "xs:string"

    def element(node: ElementTree.Element, many: bool = False) -> str:
        start = f'<xs:element name="{node.tag}"' + (' minOccurs="0" maxOccurs="unbounded"' if many else "")
        count = '<xs:attribute name="count" type="xs:integer"/>' if "count" in node.attrib else ""
        text = (node.text or "").strip()
        if not (len(node) or count):
            return f'{start} type="{kind(text)}"/>'
        children = {child.tag: child for child in node}
        inside = "".join(element(child, bool(count)) for child in children.values())
        inside = f"<xs:sequence>{inside}</xs:sequence>{count}"
        if text:
            inside = f'<xs:simpleContent><xs:extension base="xs:string">{count}</xs:extension></xs:simpleContent>'
        return f"{start}><xs:complexType>{inside}</xs:complexType></xs:element>"

    root = element(ElementTree.fromstring(example))  # noqa: S314  # written here
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema">'
    return f"{head}{root}</xs:schema>\n".encode()


# --- Sentinel-1 ---


def _sentinel1(about: dict[str, Any]) -> dict[str, bytes]:
    mission, stem, orbit, facts = about["mission"], about["stem"], int(about["orbit"]), _facts()["sentinel1"]
    if not timedelta(0) < about["end"] - about["begin"] <= timedelta(minutes=1):
        raise ValueError(f"{stem!r}: a scene ends after it begins, within a minute")
    track, since, seconds = _scene_pass(stem)
    sides = np.array([seconds * GROUND_SPEED, 3 * SWATH_WIDTH])  # km
    lines, samples = (max(int(n), 20) for n in (sides * about["pixels"] / sides.max()).round())
    shape = tuple(max(int(n), 20) for n in (sides * LANDSCAPE / sides.max()).round())
    land = _coast(stem, shape, 1000 * sides[1] / shape[1], (1, 0))
    land = _Land(**{field.name: _resized(getattr(land, field.name), lines, samples) for field in fields(land)})

    slant, incidence, _ = _slant(np.linspace(NEAR_RANGE, NEAR_RANGE + sides[1], samples))
    # The noise equivalent sigma nought is best in the middle of each sub-swath.
    noise = SCALE**2 / np.sin(incidence) * 10 ** (-2.7 + 0.4 * (np.linspace(0, 6, samples) % 2 - 1) ** 2)
    brightness = (SCALE**2 / np.tan(incidence)).astype("f4")  # squared digital number of gamma nought 1
    powers = _backscatter(land, _rng("scene", stem), 14, land.water)
    images = [np.clip(np.sqrt(p * brightness + noise.astype("f4")), 1, 65535).astype("u2") for p in powers]

    cycle = (orbit - FIRST_ORBIT.get(mission, 73)) // ORBITS + 1 + facts["cycles_before"].get(mission, 0)
    about |= {"take": int(about["take"], 16), "orbit": orbit, "cycle": cycle, "track": track}
    about |= {"polarisations": facts["polarisations"][about["sides"]], "lines": lines, "samples": samples}
    about |= _geometry(about["begin"], since, seconds, land)
    angles = incidence[about["columns"]]
    levels = {"sigmaNought": np.sin(angles), "betaNought": angles**0, "gamma": np.tan(angles), "dn": angles**0}
    about["calibration"] = {name: SCALE / np.sqrt(level) for name, level in levels.items()}
    about |= {"range_noise": noise[about["columns"]], "slant_times": 2 * slant / LIGHT, "slant_range": slant[0]}
    files = {}
    times = f"{about['begin']:{STAMP}}-{about['end']:{STAMP}}"
    base = f"{mission}-iw-grd-{{}}-{times}-{orbit:06d}-{about['take']:06x}-{{:03d}}"
    for number, (polarisation, image) in enumerate(zip(about["polarisations"], images, strict=False), start=1):
        name = base.format(polarisation, number).lower()
        this = about | {"polarisation": polarisation, "number": f"{number:03d}"}
        this |= {"mean": float(image.mean()), "deviation": float(image.std())}
        files[f"annotation/{name}.xml"] = _render("s1_annotation.xml", **this)
        files[f"annotation/calibration/calibration-{name}.xml"] = _render("s1_calibration.xml", **this)
        files[f"annotation/calibration/noise-{name}.xml"] = _render("s1_noise.xml", **this)
        files[f"measurement/{name}.tiff"] = _tiff(image, about["points"], mission)
    files["preview/quick-look.png"] = _quicklook(powers[: len(about["polarisations"])])
    files["preview/map-overlay.kml"] = _render("s1_map_overlay.kml", **about)
    files["preview/product-preview.html"] = _render("index.html", stem=stem, paths=sorted(files))
    for start, (_, path) in facts["schemas"].items():
        example = next(body for name, body in files.items() if name.startswith(start))
        files[path] = _schema(example if start.startswith("annotation/") else b"<any/>")
    about |= {"members": _members(files), "made": about["end"] + timedelta(hours=3)}
    about["schemas"] = dict(facts["schemas"].values())
    return files | {"manifest.safe": _render("s1_manifest.xml", **about)}


def _slant(distance: Any) -> tuple[Any, Any, Any]:
    """Slant range (m), incidence and elevation angle (rad) at a distance in km on the ground, on a sphere."""
    arc = distance / EARTH
    slant = np.sqrt(EARTH**2 + ORBIT**2 - 2 * EARTH * ORBIT * np.cos(arc))
    incidence = np.arcsin(ORBIT * np.sin(arc) / slant)
    return 1000 * slant, incidence, incidence - arc


def _geometry(begin: datetime, since: float, seconds: float, land: _Land) -> dict[str, Any]:
    """What the annotation tells of the places and times of pixels, and of the satellite.

    ``since`` is when the scene begins on its orbit, in s as `_track` counts them; ``land`` has the scene's shape.
    """
    (lines, samples), width = land.dem.shape, 3 * SWATH_WIDTH

    def at(offset: float) -> datetime:
        return begin + timedelta(seconds=float(offset))

    def spread(count: int, size: int) -> list[int]:
        return sorted({round(n) for n in np.linspace(0, size - 1, count)})

    points = []
    for line in spread(10, lines):
        for pixel in spread(21, samples):
            offset, distance = seconds * line / (lines - 1), NEAR_RANGE + width * pixel / (samples - 1)
            lon, lat = _seen(since + offset, distance)
            slant, incidence, elevation = _slant(distance)
            point = {"line": line, "pixel": pixel, "time": at(offset), "slant_time": 2 * slant / LIGHT}
            point |= {"longitude": (lon + 180) % 360 - 180, "latitude": lat, "height": land.dem[line, pixel]}
            points.append(point | {"incidence": np.degrees(incidence), "elevation": np.degrees(elevation)})

    bursts, swaths, gain = [], [], 1 - 0.3 * np.linspace(-1, 1, 20) ** 2
    for place, swath in enumerate(_facts()["sentinel1"]["sub_swaths"]):
        first, last = round(samples * place / 3), round(samples * (place + 1) / 3) - 1
        swaths.append(swath | {"first": first, "last": last})
        slant, incidence, elevation = _slant(NEAR_RANGE + width * np.linspace(first, last, 20) / (samples - 1))
        burst = {"swath": swath, "slant_times": 2 * slant / LIGHT, "height": land.dem.mean()}
        burst |= {"incidence": np.degrees(incidence), "elevation": np.degrees(elevation)}
        burst["pattern"] = np.ravel([gain, 0 * gain], "F")  # real and imaginary part by turns
        bursts += [burst | {"time": at(t)} for t in np.arange(0.92 * place, max(seconds, 2), BURST_SECONDS)]

    ground = np.linspace(0, 1000 * width, 200)
    slant = _slant(NEAR_RANGE + ground / 1000)[0]
    offsets = [(line, seconds * line / (lines - 1)) for line in spread(math.ceil(seconds) + 1, lines)]
    (lon, lat), (lon1, lat1) = _track(since), _track(since + 1)
    fm_rate = -2 * 7190**2 / (WAVELENGTH * slant[0])  # Hz/s, for the effective velocity in m/s
    return {
        "points": points,
        "swaths": swaths,
        "bursts": sorted(bursts, key=lambda burst: burst["time"]),
        "vectors": [{"line": line, "time": at(offset)} for line, offset in offsets],
        "columns": sorted({*range(0, samples, min(40, samples // 16)), samples - 1}),
        "terrain": [(at(offset), land.dem[line].mean()) for line, offset in offsets],
        "orbits": [{"time": at(offset)} | _state(since + offset) for offset in range(-80, 90, 10)],
        "attitudes": [{"time": at(o), "angles": _attitude(at(o), _state(since + o))} for _, o in offsets],
        "node": at(-(since % ORBIT_SECONDS)),
        "direction": "Ascending" if lat1 > lat else "Descending",
        "heading": np.degrees(np.arctan2(((lon1 - lon + 180) % 360 - 180) * np.cos(np.radians(lat)), lat1 - lat)),
        "to_slant": np.polynomial.Polynomial.fit(ground, slant, 8).convert().coef,
        "to_ground": np.polynomial.Polynomial.fit(slant - slant[0], ground, 8).convert().coef,
        "fm_rate": fm_rate * np.array([1, -1, 1]) / (2 * slant[0] / LIGHT) ** np.arange(3),
        "mid_incidence": np.degrees(_slant(NEAR_RANGE + width / 2)[1]),
        "range_spacing": 1000 * width / (samples - 1),
        "azimuth_spacing": 1000 * GROUND_SPEED * seconds / (lines - 1),
        "interval": seconds / (lines - 1),
        "roll": ROLL,
    }


def _state(seconds: float) -> dict[str, np.ndarray]:
    """Earth-fixed position (m) and velocity (m/s) of the satellite, 700 km above the track on the ellipsoid."""

    def position(seconds: float) -> np.ndarray:
        lon, lat = np.radians(_track(seconds))
        normal = 6378137 / np.sqrt(1 - 0.00669438 * np.sin(lat) ** 2)
        flat = (normal + 7e5) * np.cos(lat)
        return np.array([flat * np.cos(lon), flat * np.sin(lon), (0.99330562 * normal + 7e5) * np.sin(lat)])

    return {"position": position(seconds), "velocity": position(seconds + 0.5) - position(seconds - 0.5)}


def _attitude(moment: datetime, state: dict[str, np.ndarray]) -> dict[str, float]:
    """Quaternion, rates (rad/s) and Euler angles (degrees) of a satellite that looks to the right of its path."""
    days = (moment - datetime(2000, 1, 1, 12)) / timedelta(days=1)
    turn, spin = np.radians(280.46061837 + 360.98564736629 * days), [0, 0, 7.292115e-5]  # of the Earth
    inertial = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    position = inertial @ state["position"]
    velocity = inertial @ state["velocity"] + np.cross(spin, position)
    down, right = -position / np.linalg.norm(position), np.cross(velocity, position)
    right /= np.linalg.norm(right)
    roll, rate = np.radians(ROLL), -2 * np.pi / ORBIT_SECONDS
    x, z = np.cross(right, down), down * np.cos(roll) + right * np.sin(roll)
    m = np.transpose([x, np.cross(z, x), z])
    squares = 1 + np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) @ np.diag(m)
    signs = np.sign([1, m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
    quaternion = signs * np.sqrt(np.maximum(squares, 0)) / 2
    rates = 0.0, rate * np.cos(roll), rate * np.sin(roll)
    euler = np.degrees([np.arctan2(m[2, 1], m[2, 2]), -np.arcsin(m[2, 0]), np.arctan2(m[1, 0], m[0, 0])])
    names = ("q0", "q1", "q2", "q3", "wx", "wy", "wz", "roll", "pitch", "yaw")
    return dict(zip(names, [*quaternion, *rates, *euler], strict=True))


def _tiff(image: np.ndarray, points: list[dict], mission: str) -> bytes:
    from rasterio.control import GroundControlPoint
    from rasterio.io import MemoryFile

    gcps = [GroundControlPoint(p["line"], p["pixel"], p["longitude"], p["latitude"], p["height"]) for p in points]
    profile = {"driver": "GTiff", "dtype": "uint16", "count": 1, "height": image.shape[0], "width": image.shape[1]}
    with MemoryFile() as memory:
        with memory.open(**profile, gcps=gcps, crs="EPSG:4326") as dataset:
            dataset.write(image, 1)
            dataset.update_tags(TIFFTAG_IMAGEDESCRIPTION=f"Sentinel-{mission[1:]} IW GRD HR L1, simulated")
        return memory.read()


def _quicklook(powers: list[np.ndarray]) -> bytes:
    from PIL import Image

    grey = (np.clip(np.sqrt(powers[0]) / 0.6, 0, 1) * 255).astype("u1")
    image = Image.fromarray(_false_colour(*powers) if len(powers) == 2 else np.stack([grey] * 3, axis=2))
    image.thumbnail((512, 512))
    return _encode(image)


# --- Sentinel-2 ---


def _sentinel2(about: dict[str, Any]) -> dict[str, bytes]:
    about |= _facts()["sentinel2"]
    _identify(about)
    about |= _angles(about)
    scene = _scene(about)
    granule, level, begin = about["granule"], about["level"], about["begin"]
    images = _images(scene, about)
    masks, about["masks"] = _masks(scene, about)
    files = images | masks
    preview = _resized(scene["rgb"], 343, 343)
    about["preview"] = f"{granule}/QI_DATA/{about['tile']}_{begin:{STAMP}}_PVI.jp2"
    files[about["preview"]] = _jp2(np.moveaxis(preview, 2, 0), about, QUALITY=25)
    files[f"{about['stem']}-ql.jpg"] = _jpeg(preview)
    for name, parameters in about["weather"].items():
        messages = (_grib(p, begin, _locate(about["stem"])[1], _rng(begin, about["tile"], *p)) for p in parameters)
        files[f"{granule}/AUX_DATA/{name}"] = b"".join(messages)
    about |= {key: scene[key] for key in ("cloud_percentage", "shares", "mean_aerosol", "mean_vapour")}
    about |= {"images": list(images), "bands": list(about["bands"].values())}
    files[f"MTD_MSI{level}.xml"] = _render("s2_product.xml", **about)
    files[f"{granule}/MTD_TL.xml"] = _render("s2_granule.xml", **about)
    files[f"{about['datastrip']}/MTD_DS.xml"] = _render("s2_datastrip.xml", **about)
    files["INSPIRE.xml"] = _render("s2_inspire.xml", **about)
    for folder, item, elsewhere in (
        (granule, about["tile_id"], "RADIOMETRIC_QUALITY"),
        (about["datastrip"], about["datastrip_id"], "L2A_QUALITY"),
    ):
        for check in about["checks"][level]:
            if check != elsewhere:
                files[f"{folder}/QI_DATA/{check}.xml"] = _render("s2_quality.xml", item=item, check=check, **about)
    files["HTML/UserProduct_index.html"] = _render("index.html", stem=about["stem"], paths=sorted(files))
    files[f"rep_info/S2_User_Product_Level-{level[1:]}_Metadata.xsd"] = _schema(b"<any/>")
    return files | {"manifest.safe": _render("s2_manifest.xml", members=_members(files), **about)}


def _identify(about: dict[str, Any]) -> None:
    """Add the place, names, times and orbit that files of all kinds repeat."""
    mission, level, baseline, made, pixels = (about[k] for k in ("mission", "level", "baseline", "made", "pixels"))
    about["crs"], about["west"], about["north"] = _tile_origin(about["stem"])
    zone = f"{int(about['tile'][1:3])}{'N' if about['crs'].startswith('EPSG:326') else 'S'}"
    about |= {"crs_name": f"WGS84 / UTM zone {zone}", "width": TILE_WIDTH}
    about["sizes"] = {resolution: pixels * 10 // resolution for resolution in (10, 20, 60)}
    begin = about["begin"] + timedelta(milliseconds=24)
    strip, about["track"] = begin + timedelta(seconds=3), int(about["track"])
    about |= {"begin": begin, "strip": strip, "sensed": begin + timedelta(seconds=13)}
    # An offset keeps values below 0 since baseline 04.00; the namespace changed with 05.11.
    about |= {"offset": 1000 if baseline >= "0400" else 0, "baseline": f"{baseline[:2]}.{baseline[2:]}"}
    about["psd"] = f"https://psd-{15 if baseline >= '0511' else 14}.sentinel2.eo.esa.int"
    # 143 orbits in 10 days: the one on this track that is nearest in time.
    known = about["known_orbit"][mission]
    ahead, elapsed = (about["track"] - known["track"]) % 143, (begin - known["time"]) / timedelta(days=10) * 143
    about["orbit"] = orbit = max(known["orbit"] + ahead + 143 * round((elapsed - ahead) / 143), 1)
    centre = about["centre"] = f"{mission[1:]}PS"
    names = f"{mission}_OPER_MSI_{level}_{{}}_{centre}_{made:{STAMP}}_{{}}_N{about['baseline']}"
    about |= {"datastrip_id": names.format("DS", f"S{strip:{STAMP}}")}
    about |= {"tile_id": names.format("TL", f"A{orbit:06d}_{about['tile']}")}
    about["datatake_id"] = f"G{mission}_{begin:{STAMP}}_{orbit:06d}_N{about['baseline']}"
    about["granule"] = f"GRANULE/{level}_{about['tile']}_A{orbit:06d}_{strip:{STAMP}}"
    about["datastrip"] = f"DATASTRIP/DS_{centre}_{made:{STAMP}}_S{strip:{STAMP}}"
    about["sun_distance"] = round(1 + 0.0334 * math.cos(2 * math.pi * (begin.timetuple().tm_yday - 3) / 365.25), 6)
    for band in about["bands"].values():  # a plausible response, not the measured one
        x = np.linspace(-1, 1, band["longest"] - band["shortest"] + 1)
        band["spectral_response"] = " ".join(f"{value:.4g}" for value in np.exp(-((1.25 * x) ** 8)))


def _angles(about: dict[str, Any]) -> dict[str, Any]:
    """Directions of the sun and of the view on nodes every 5 km, in degrees, as the granule's metadata has them."""
    from rasterio.warp import transform

    def mean(angles: np.ndarray) -> float:
        return round(float(np.degrees(np.angle(np.exp(1j * np.radians(angles)).mean())) % 360), 6)

    def rows(grid: np.ndarray) -> list[str]:
        return [" ".join("NaN" if value != value else f"{value:.4f}" for value in row) for row in grid.tolist()]

    steps = np.arange(23) * 5000.0
    x, y = np.meshgrid(about["west"] + steps, about["north"] - steps)
    lon, lat = (np.reshape(v, x.shape) for v in transform(about["crs"], "EPSG:4326", x.ravel(), y.ravel()))
    zenith, azimuth = _sun(about["sensed"], lon, lat)
    sun = {"zenith": rows(zenith), "azimuth": rows(azimuth), "mean_zenith": mean(zenith), "mean_azimuth": mean(azimuth)}
    across = _across(about, steps[None, :], steps[:, None])
    views, means = [], []
    for band in range(len(about["bands"])):
        whole = []
        for detector in np.unique(_detector(across)).tolist():
            # Odd and even detectors look ahead and back; so do, by less, the bands one after another.
            along = (1 if detector % 2 else -1) * (14 + 1.5 * band)  # km
            off = np.degrees(np.arctan(np.hypot(across, along) / ALTITUDE))
            towards = (np.degrees(np.arctan2(across, along)) + 193) % 360  # the track heads for 193 degrees
            seen = abs(across / DETECTOR_WIDTH - (detector - 6.5)) < 0.56  # neighbours overlap
            view = {"band": band, "detector": detector, "zenith": rows(np.where(seen, off, np.nan))}
            views.append(view | {"azimuth": rows(np.where(seen, towards, np.nan))})
            whole.append((off[seen], towards[seen]))
        means.append(tuple(mean(np.concatenate(angles)) for angles in zip(*whole, strict=True)))
    return {"sun": sun, "views": views, "mean_views": means}


def _across(about: dict[str, Any], east: np.ndarray, south: np.ndarray) -> np.ndarray:
    """Distance in km to the left of the track, for places in m from the tile's corner; the swath is 290 km wide."""
    middle, tilt = _rng("swath", about["tile"], about["track"]).uniform(-75, 75), math.radians(13)
    half = TILE_WIDTH / 2
    return (middle + ((east - half) * math.cos(tilt) - (south - half) * math.sin(tilt)) / 1000).astype("f4")


def _detector(across: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(across / DETECTOR_WIDTH + 7), 1, 12).astype("u1")


def _sun(moment: datetime, lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Zenith angle and azimuth of the sun in degrees (Spencer's series, good to some hundredths of a degree)."""
    minutes = moment.hour * 60 + moment.minute + moment.second / 60
    day = 2 * math.pi * (moment.timetuple().tm_yday - 1 + (minutes - 720) / 1440) / 365
    terms = np.array([1, math.cos(day), math.sin(day), math.cos(2 * day), math.sin(2 * day)])
    declination = terms @ [0.006918, -0.399912, 0.070257, -0.006758, 0.000907]
    equation = 229.18 * (terms @ [0.000075, 0.001868, -0.032077, -0.014615, -0.040849])  # of time, in minutes
    hour, phi = np.radians((minutes + equation) / 4 + lon - 180), np.radians(lat)
    up = np.sin(phi) * np.sin(declination) + np.cos(phi) * np.cos(declination) * np.cos(hour)
    east = -np.cos(declination) * np.sin(hour)
    north = np.cos(phi) * np.sin(declination) - np.sin(phi) * np.cos(declination) * np.cos(hour)
    return np.degrees(np.arccos(up)), np.degrees(np.arctan2(east, north)) % 360


def _scene(about: dict[str, Any]) -> dict[str, Any]:
    """The tile as seen that day: reflectance (0..1) of each band, classes, probabilities (%), aerosol and vapour.

    Place and season make plants, snow and fields; the day adds clouds and their shadows. L1C and L2A see the same.
    """
    shape, latitude = (LANDSCAPE, LANDSCAPE), about["ring"][0][1]
    azimuth, slope = math.radians(about["sun"]["mean_azimuth"]), min(about["sun"]["mean_zenith"], 80.0)
    slope = math.tan(math.radians(slope))  # how far the light goes while it falls
    shine = (-math.sin(azimuth), math.cos(azimuth))  # where to, in columns and rows
    land = _coast(about["stem"], shape, TILE_WIDTH / LANDSCAPE, shine)
    day = _rng("day", about["mission"], about["begin"], about["tile"])
    year = 2 * math.pi * (about["begin"].timetuple().tm_yday - 200) / 365.25
    summer = math.cos(year) * math.copysign(min(abs(latitude) / 40, 1), latitude)
    plots = _fields(shape, _rng("plots", about["tile"])) * land.plain * (land.hand > 1)
    ripe = np.sin(3 * plots + year) * (plots != 0)  # crops sprout and are harvested at their own times
    plants = np.clip(0.55 + 0.2 * summer + 0.16 * land.cover + 0.3 * ripe, 0.03, 1)
    rock = _smoothstep((land.dem - 2400 + 30 * abs(latitude)) / 900)
    snow = _smoothstep((land.dem - 5200 + 62 * abs(latitude) - 700 * summer + 100 * land.facing) / 250)
    cloud = _smoothstep((_noise(day, shape, 2.0) - day.uniform(0.6, 1.9)) / 0.9)
    shadow = np.roll(cloud, (round(12 * slope * shine[1]), round(12 * slope * shine[0])), (0, 1)) * (1 - cloud)
    light = 1 + 0.16 * slope * np.tanh(land.facing) * (1 - 0.8 * land.plain)
    wet, turbid = land.hand < 0, np.exp(np.minimum(land.hand + 2, 0) / 12)
    bands = {}
    for name, percent in zip(about["bands"], np.transpose(list(about["spectra"].values())), strict=True):
        soil, green, stone, white, deep, mud, bright, added, passing = percent / 100
        value = soil + (green - soil) * plants + 0.03 * plots
        value = value + (stone - value) * rock
        value = (value + (white - value) * snow) * light
        value = np.where(wet, deep + (mud - deep) * turbid, value) * (1 - 0.6 * shadow)
        value = value + (bright - value) * cloud
        if about["level"] == "L1C":
            value = added + passing * value + (0.02 * cloud**2 if name == "B10" else 0)
        bands[name] = value.astype("f4")
    kinds = [cloud > 0.6, cloud > 0.2, shadow > 0.4, wet, snow > 0.5, plants * (1 - rock) > 0.45]
    classes = np.select(kinds, [9, 8, 3, 6, 11, 4], 5).astype("u1")
    shares = np.bincount(classes.ravel(), minlength=len(about["classes"])) * 100 / classes.size
    aerosol = np.clip(0.12 + 0.03 * _noise(day, shape, 2.5), 0.02, 0.6).astype("f4")
    vapour = np.clip(1.2 + 0.8 * summer + 0.2 * _noise(day, shape, 2.5) - land.dem / 4000, 0.2, 5).astype("f4")
    rgb = np.stack([bands[name] for name in ("B04", "B03", "B02")], axis=2)
    return {
        "bands": bands,
        "rgb": (np.clip(rgb / 0.3558, 0, 1) * 254 + 1).astype("u1"),  # 3558 is white, and 0 left for no data
        "SCL": classes,
        "CLDPRB": (cloud * 100).astype("u1"),
        "SNWPRB": (snow * ~wet * (1 - cloud) * 100).astype("u1"),
        "AOT": aerosol,
        "WVP": vapour,
        "shares": shares.round(6).tolist(),
        "cloud_percentage": round(float(shares[8] + shares[9]), 6),
        "mean_aerosol": round(float(aerosol.mean()), 6),
        "mean_vapour": round(float(vapour.mean()), 6),
    }


def _images(scene: dict[str, Any], about: dict[str, Any]) -> dict[str, bytes]:
    """The JPEG 2000 files of a level: each band once in L1C, at its own and coarser resolutions in L2A."""

    def layers(name: str, resolution: int) -> np.ndarray:
        size = about["sizes"][resolution]
        if name == "TCI":
            return np.moveaxis(_resized(scene["rgb"], size, size), 2, 0)
        if name == "SCL":
            return _resized(scene["SCL"], size, size, smooth=False)[None]
        if name in ("AOT", "WVP"):
            return (1000 * _resized(scene[name], size, size)).round().astype("u2")[None]
        grain = 6 * _rng("grain", about["stem"], name, size).standard_normal((size, size), dtype="f4")
        counts = 1e4 * _resized(scene["bands"][name], size, size) + about["offset"] + grain
        return np.clip(counts.round(), 1, 65534).astype("u2")[None]

    files = {}
    for resolution, names in about["layers"][about["level"]].items():
        place, end = (f"R{resolution}m/", f"_{resolution}m") if about["level"] == "L2A" else ("", "")
        for name in names:
            path = f"IMG_DATA/{place}{about['tile']}_{about['begin']:{STAMP}}_{name}{end}.jp2"
            files[f"{about['granule']}/{path}"] = _jp2(layers(name, resolution), about)
    return files


def _masks(scene: dict[str, Any], about: dict[str, Any]) -> tuple[dict[str, bytes], list[dict]]:
    """Quality masks, and how the granule's metadata lists them: detectors, defects (none), clouds and snow."""
    files, listed, shared = {}, [], {}

    def put(name: str, body: bytes, band: int | None = None) -> None:
        path = f"{about['granule']}/QI_DATA/MSK_{name}.jp2"
        files[path] = body
        listed.append({"band": band, "type": f"MSK_{name[:6]}", "path": path})

    for resolution, size in about["sizes"].items():
        middle = (np.arange(size, dtype="f4") + 0.5) * (TILE_WIDTH / size)
        detector = _detector(_across(about, middle[None, :], middle[:, None]))[None]
        shared[resolution] = _jp2(detector, about), _jp2(np.zeros((8, size, size), "u1"), about)
    for index, (name, band) in enumerate(about["bands"].items()):
        for kind, body in zip(("DETFOO", "QUALIT"), shared[band["resolution"]], strict=True):
            put(f"{kind}_{name}", body, index)
    cloudy, snowy = (_resized(scene[kind], size, size) > 50 for kind in ("CLDPRB", "SNWPRB"))
    put("CLASSI_B00", _jp2(np.stack([cloudy, 0 * cloudy, snowy]).astype("u1"), about))  # opaque, cirrus, snow
    if about["level"] == "L2A":
        for kind in ("CLDPRB", "SNWPRB"):
            for resolution in (20, 60):
                size = about["sizes"][resolution]
                put(f"{kind}_{resolution}m", _jp2(_resized(scene[kind], size, size)[None], about))
    return files, listed


def _jp2(layers: np.ndarray, about: dict[str, Any], **options: Any) -> bytes:
    """Layers (count, size, size) as JPEG 2000 on the tile's place; without loss unless ``QUALITY`` is given."""
    from rasterio import Affine
    from rasterio.io import MemoryFile

    count, size, _ = layers.shape
    step = TILE_WIDTH / size
    profile = {"driver": "JP2OpenJPEG", "dtype": layers.dtype, "count": count, "height": size, "width": size}
    profile |= {"crs": about["crs"], "transform": Affine(step, 0, about["west"], 0, -step, about["north"])}
    profile |= options or {"QUALITY": 100, "REVERSIBLE": "YES"}
    with MemoryFile(filename="layers.jp2") as memory:
        with memory.open(**profile) as dataset:
            dataset.write(layers)
        return memory.read()


def _grib(field: list, when: datetime, corners: list, rng: np.random.Generator) -> bytes:
    """A field of the weather on 9 x 9 nodes over the tile, as one message of GRIB edition 1, packed to 16 bits.

    Converters read these files with ecCodes; writing two of them is not worth its 175 MB of libraries.
    """

    def signed(value: float, size: int) -> bytes:  # sign and magnitude
        return (int(abs(value)) | (int(value < 0) << (8 * size - 1))).to_bytes(size)

    table, parameter, level, usual, varies = field
    values = usual * (1 + varies * (rng.uniform(-1, 1) + 0.3 * _noise(rng, (9, 9), 2.5).ravel()))
    low = float(values.min())
    power = max(math.floor(math.log(abs(low), 16)) + 1, -64)  # IBM's floating point: a fraction times 16 ** power
    fraction = math.floor(abs(low) / 16.0**power * 2**24) + (low < 0)  # not above the lowest value
    low = math.copysign(fraction / 2**24 * 16.0**power, low)
    binary = math.ceil(math.log2((values.max() - low) / 65000))
    packed = np.round((values - low) / 2.0**binary).astype(">u2").tobytes()
    century, year = divmod(when.year - 1, 100)
    product = bytes([table, 98, 128, 255, 128, parameter, level, 0, 0, year + 1, when.month, when.day, 0, 0])
    product += bytes([1, when.hour, 0, 0, 0, 0, 0, century + 1, 0, 0, 0])  # forecast of the day's run, in hours
    (west, south), (east, north) = (np.rint(1000 * edge(corners, axis=0)) for edge in (np.min, np.max))
    grid = bytes([0, 255, 0, 0, 9, 0, 9]) + signed(north, 3) + signed(west, 3) + b"\x80" + signed(south, 3)
    grid += signed(east, 3) + struct.pack(">2H", round((east - west) / 8), round((north - south) / 8)) + bytes(5)
    data = b"\x08" + signed(binary, 2) + bytes([64 + power | 128 * (low < 0)]) + fraction.to_bytes(3) + b"\x10"
    body = b"".join((len(part) + 3).to_bytes(3) + part for part in (product, grid, data + packed + b"\x00")) + b"7777"
    return b"GRIB" + (len(body) + 8).to_bytes(3) + b"\x01" + body
