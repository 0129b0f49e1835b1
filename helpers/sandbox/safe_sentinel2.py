"""Sentinel-2 L1C and L2A for the sandbox: JPEG 2000 images and masks, the metadata of product, granule and data strip.

Left out, since no reader at hand asks for it: the data strip's telemetry (ephemeris, attitudes, temperatures) and what
schemas say in detail.

Sources: Sentinel-2 products specification (S2-PDGS-TAS-DI-PSD, issues 14 and 15); for the weather files WMO's manual on
codes (FM 92-IX GRIB).
"""

import math
import re
import struct
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from .products import TILE_WIDTH, _locate, _noise, _rng, _tile_origin
from .safe_parts import LANDSCAPE, STAMP, TIME, Files, View, facts, jpeg, members, render, resized, schema, strips, sun

NAME = re.compile(
    rf"(?P<mission>S2[ABC])_MSI(?P<level>L1C|L2A)_(?P<begin>{TIME})_N(?P<baseline>\d{{4}})_R(?P<track>\d{{3}})"
    rf"_(?P<tile>T(?:0[1-9]|[1-5]\d|60)[C-HJ-NP-X][A-HJ-NP-Z][A-HJ-NP-V])_(?P<made>{TIME})"
)
#: Pixels of a real tile's bands of 10 m.
PIXELS = 10_980
ALTITUDE, DETECTOR_WIDTH = 786, 24.2  # km: of the orbit, and a twelfth of the swath


def make(about: dict[str, Any], files: Files) -> None:
    """Write the product that ``about`` tells of: parts of its name, ``pixels`` (of 10 m bands) or None, ``ring``."""
    about["pixels"] = about["pixels"] or PIXELS
    about |= facts()["sentinel2"]
    _identify(about)
    about |= _angles(about)
    scene = _scene(about)
    granule, level, begin = about["granule"], about["level"], about["begin"]
    about["images"] = _images(scene, about, files)
    about["masks"] = _masks(scene, about, files)
    preview = resized(scene["rgb"], 343, 343)
    about["preview"] = f"{granule}/QI_DATA/{about['tile']}_{begin:{STAMP}}_PVI.jp2"
    _jp2(files.place(about["preview"]), np.moveaxis(preview, 2, 0), about, QUALITY=25)
    files[f"{about['stem']}-ql.jpg"] = jpeg(preview)
    for name, parameters in about["weather"].items():
        messages = (_grib(p, begin, _locate(about["stem"])[1], _rng(begin, about["tile"], *p)) for p in parameters)
        files[f"{granule}/AUX_DATA/{name}"] = b"".join(messages)
    about |= {key: scene[key] for key in ("cloud_percentage", "shares", "mean_aerosol", "mean_vapour")}
    about["bands"] = list(about["bands"].values())
    files[f"MTD_MSI{level}.xml"] = render("s2_product.xml", **about)
    files[f"{granule}/MTD_TL.xml"] = render("s2_granule.xml", **about)
    files[f"{about['datastrip']}/MTD_DS.xml"] = render("s2_datastrip.xml", **about)
    files["INSPIRE.xml"] = render("s2_inspire.xml", **about)
    for folder, item, elsewhere in (
        (granule, about["tile_id"], "RADIOMETRIC_QUALITY"),
        (about["datastrip"], about["datastrip_id"], "L2A_QUALITY"),
    ):
        for check in about["checks"][level]:
            if check != elsewhere:
                files[f"{folder}/QI_DATA/{check}.xml"] = render("s2_quality.xml", item=item, check=check, **about)
    files["HTML/UserProduct_index.html"] = render("index.html", stem=about["stem"], paths=list(files))
    files[f"rep_info/S2_User_Product_Level-{level[1:]}_Metadata.xsd"] = schema(b"<any/>")
    files["manifest.safe"] = render("s2_manifest.xml", members=members(files, "sha3_256"), **about)


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
    zenith, azimuth = sun(about["sensed"], lon, lat)
    light = {"zenith": rows(zenith), "azimuth": rows(azimuth)}
    light |= {"mean_zenith": mean(zenith), "mean_azimuth": mean(azimuth)}
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
    return {"sun": light, "views": views, "mean_views": means}


def _across(about: dict[str, Any], east: np.ndarray, south: np.ndarray) -> np.ndarray:
    """Distance in km to the left of the track, for places in m from the tile's corner; the swath is 290 km wide."""
    middle, tilt = _rng("swath", about["tile"], about["track"]).uniform(-75, 75), math.radians(13)
    half = TILE_WIDTH / 2
    return (middle + ((east - half) * math.cos(tilt) - (south - half) * math.sin(tilt)) / 1000).astype("f4")


def _detector(across: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(across / DETECTOR_WIDTH + 7), 1, 12).astype("u1")


def _scene(about: dict[str, Any]) -> dict[str, Any]:
    """The tile as seen that day: reflectance (0..1) of each band, classes, probabilities (%), aerosol and vapour.

    L1C and L2A see the same.
    """
    shape, latitude = (LANDSCAPE, LANDSCAPE), about["ring"][0][1]
    day = _rng("day", about["mission"], about["begin"], about["tile"])
    angles = about["sun"]["mean_zenith"], about["sun"]["mean_azimuth"]
    place = about["stem"], about["tile"]
    view = View.of(place, day, shape, TILE_WIDTH / LANDSCAPE, about["begin"], latitude, angles)
    bands = {}
    for name, percent in zip(about["bands"], np.transpose(list(about["spectra"].values())), strict=True):
        *spectrum, added, passing = percent / 100
        value = view.reflectance(spectrum)
        if about["level"] == "L1C":
            value = added + passing * value + (0.02 * view.cloud**2 if name == "B10" else 0)
        bands[name] = value.astype("f4")
    cloud, snow = view.cloud, view.snow
    kinds = [cloud > 0.6, cloud > 0.2, view.shadow > 0.4, view.wet, snow > 0.5, view.plants * (1 - view.rock) > 0.45]
    classes = np.select(kinds, [9, 8, 3, 6, 11, 4], 5).astype("u1")
    shares = np.bincount(classes.ravel(), minlength=len(about["classes"])) * 100 / classes.size
    aerosol = np.clip(0.12 + 0.03 * _noise(day, shape, 2.5), 0.02, 0.6).astype("f4")
    vapour = np.clip(1.2 + 0.8 * view.summer + 0.2 * _noise(day, shape, 2.5) - view.land.dem / 4000, 0.2, 5).astype(
        "f4"
    )
    rgb = np.stack([bands[name] for name in ("B04", "B03", "B02")], axis=2)
    return {
        "bands": bands,
        "rgb": (np.clip(rgb / 0.3558, 0, 1) * 254 + 1).astype("u1"),  # 3558 is white, and 0 left for no data
        "SCL": classes,
        "CLDPRB": (cloud * 100).astype("u1"),
        "SNWPRB": (snow * ~view.wet * (1 - cloud) * 100).astype("u1"),
        "AOT": aerosol,
        "WVP": vapour,
        "shares": shares.round(6).tolist(),
        "cloud_percentage": round(float(shares[8] + shares[9]), 6),
        "mean_aerosol": round(float(aerosol.mean()), 6),
        "mean_vapour": round(float(vapour.mean()), 6),
    }


def _images(scene: dict[str, Any], about: dict[str, Any], files: Files) -> list[str]:
    """Write the images of a level: each band once in L1C, at its own and coarser resolutions in L2A. Their paths."""

    # What the landscape leaves out, in counts: the more, the finer its pixels. At full size real images pack as well.
    texture = 6 * max(about["pixels"] / LANDSCAPE, 1) ** (2 / 3)

    def layers(name: str, size: int) -> np.ndarray:
        if name == "SCL":
            return resized(scene["SCL"], size, size, smooth=False)[None]
        count, kind = (3, "u1") if name == "TCI" else (1, "u2")
        counts, rng = np.empty((count, size, size), kind), _rng("grain", about["stem"], name, size)
        for rows in strips(size):
            if name in ("AOT", "WVP"):
                values = 1000 * resized(scene[name], size, size, rows=rows)
            elif name == "TCI":
                values = np.moveaxis(resized(scene["rgb"], size, size, rows=rows), 2, 0)
                if texture > 6:
                    grain = rng.standard_normal(values.shape, dtype="f4") * (texture * 254 / 3558)
                    values = np.clip(values + grain, 1, 255)
            else:
                grain = texture * rng.standard_normal((rows[1] - rows[0], size), dtype="f4")
                values = 1e4 * resized(scene["bands"][name], size, size, rows=rows) + about["offset"] + grain
                values = np.clip(values, 1, 65534)
            counts[:, slice(*rows)] = values.round()
        return counts

    paths = []
    for resolution, names in about["layers"][about["level"]].items():
        place, end = (f"R{resolution}m/", f"_{resolution}m") if about["level"] == "L2A" else ("", "")
        for name in names:
            path = f"IMG_DATA/{place}{about['tile']}_{about['begin']:{STAMP}}_{name}{end}.jp2"
            paths.append(f"{about['granule']}/{path}")
            _jp2(files.place(paths[-1]), layers(name, about["sizes"][resolution]), about)
    return paths


def _masks(scene: dict[str, Any], about: dict[str, Any], files: Files) -> list[dict]:
    """Write the quality masks: detectors, defects (none), clouds and snow. How the granule's metadata lists them."""
    listed: list[dict] = []
    quality = f"{about['granule']}/QI_DATA"

    def put(name: str, layers: np.ndarray | bytes, band: int | None = None) -> None:
        path = f"{quality}/MSK_{name}.jp2"
        if isinstance(layers, bytes):
            files[path] = layers
        else:
            _jp2(files.place(path), layers, about)
        listed.append({"band": band, "type": f"MSK_{name[:6]}", "path": path})

    first: dict[tuple[str, int], str] = {}  # masks of bands of one resolution are the same
    for index, (name, band) in enumerate(about["bands"].items()):
        size = about["sizes"][band["resolution"]]
        for kind in ("DETFOO", "QUALIT"):
            if same := first.get((kind, size)):
                put(f"{kind}_{name}", files[same], index)
            else:
                put(
                    f"{kind}_{name}",
                    _detectors(size, about) if kind == "DETFOO" else np.zeros((8, size, size), "u1"),
                    index,
                )
                first[kind, size] = listed[-1]["path"]
    size = about["sizes"][60]
    cloudy, snowy = (resized(scene[kind], size, size) > 50 for kind in ("CLDPRB", "SNWPRB"))
    put("CLASSI_B00", np.stack([cloudy, 0 * cloudy, snowy]).astype("u1"))  # opaque, cirrus, snow
    if about["level"] == "L2A":
        for kind in ("CLDPRB", "SNWPRB"):
            for resolution in (20, 60):
                size = about["sizes"][resolution]
                put(f"{kind}_{resolution}m", resized(scene[kind], size, size)[None])
    return listed


def _detectors(size: int, about: dict[str, Any]) -> np.ndarray:
    middle = (np.arange(size, dtype="f4") + 0.5) * (TILE_WIDTH / size)
    rows = (_detector(_across(about, middle[None, :], middle[slice(*strip), None])) for strip in strips(size))
    return np.concatenate(list(rows))[None]


def _jp2(path: Path, layers: np.ndarray, about: dict[str, Any], **options: Any) -> None:
    """Write layers (count, size, size) as JPEG 2000 on the tile's place; without loss unless ``QUALITY`` is given."""
    import rasterio

    count, size, _ = layers.shape
    step = TILE_WIDTH / size
    profile = {"driver": "JP2OpenJPEG", "dtype": layers.dtype, "count": count, "height": size, "width": size}
    profile |= {"crs": about["crs"], "transform": rasterio.Affine(step, 0, about["west"], 0, -step, about["north"])}
    profile |= options or {"QUALITY": 100, "REVERSIBLE": "YES"}
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(layers)


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
