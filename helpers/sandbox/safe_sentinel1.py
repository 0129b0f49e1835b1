"""Sentinel-1 IW GRDH for the sandbox: the images with their annotation, noise and calibration tables.

Left out, since no reader at hand asks for it: raw data analysis, replicas and interference reports.

Source: ESA's Sentinel-1 product specification (S1-RS-MDA-52-7441).
"""

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from .products import (
    BURST_SECONDS,
    FIRST_ORBIT,
    GROUND_SPEED,
    NEAR_RANGE,
    ORBIT_SECONDS,
    ORBITS,
    SWATH_WIDTH,
    WAVELENGTH,
    _backscatter,
    _encode,
    _false_colour,
    _Land,
    _rng,
    _scene_pass,
    _seen,
    _track,
)
from .safe_parts import LANDSCAPE, STAMP, TIME, Files, coast, facts, members, render, resized, schema, state, strips

NAME = re.compile(
    rf"(?P<mission>S1[A-D])_IW_GRDH_1S(?P<sides>[DS][HV])_(?P<begin>{TIME})_(?P<end>{TIME})"
    r"_(?P<orbit>\d{6})_(?P<take>[0-9A-F]{6})_[0-9A-F]{4}"
)
#: Pixels of real products: 10 m.
PER_KM = 100

LIGHT = 299_792_458.0  # m/s
EARTH, ORBIT = 6371.0, 7071.0  # km, radii of the sphere and of the orbit
HEIGHT = 7e5  # m, of the orbit
ROLL = 29.45  # degrees, right-looking
#: Digital number of beta nought 1 in a product of today: the calibration's one constant.
SCALE = 474.0


def make(about: dict[str, Any], files: Files) -> None:
    """Write the product that ``about`` tells of: the parts of its name, ``pixels`` (longest side or None), ``ring``.

    Raises
    ------
    ValueError
        The scene ends before it begins, or is longer than a minute.
    """
    mission, stem, orbit = about["mission"], about["stem"], int(about["orbit"])
    if not timedelta(0) < about["end"] - about["begin"] <= timedelta(minutes=1):
        raise ValueError(f"{stem!r}: a scene ends after it begins, within a minute")
    track, since, seconds = _scene_pass(stem)
    sides = np.array([seconds * GROUND_SPEED, 3 * SWATH_WIDTH])  # km
    longest = about["pixels"] or PER_KM * sides.max()
    shape = lines, samples = tuple(max(int(n), 20) for n in (sides * longest / sides.max()).round())
    ground = tuple(max(int(n), 20) for n in (sides * LANDSCAPE / sides.max()).round())
    land = coast(stem, ground, 1000 * sides[1] / ground[1], (1, 0))

    slant, incidence, _ = _slant(np.linspace(NEAR_RANGE, NEAR_RANGE + sides[1], samples))
    # The noise equivalent sigma nought is best in the middle of each sub-swath.
    noise = SCALE**2 / np.sin(incidence) * 10 ** (-2.7 + 0.4 * (np.linspace(0, 6, samples) % 2 - 1) ** 2)
    brightness = SCALE**2 / np.tan(incidence)  # squared digital number of gamma nought 1

    cycle = (orbit - FIRST_ORBIT.get(mission, 73)) // ORBITS + 1 + facts()["sentinel1"]["cycles_before"].get(mission, 0)
    about |= {"take": int(about["take"], 16), "orbit": orbit, "cycle": cycle, "track": track}
    about |= {"polarisations": facts()["sentinel1"]["polarisations"][about["sides"]]}
    about |= {"lines": lines, "samples": samples} | _geometry(about["begin"], since, seconds, shape, land.dem)
    angles = incidence[about["columns"]]
    levels = {"sigmaNought": np.sin(angles), "betaNought": angles**0, "gamma": np.tan(angles), "dn": angles**0}
    about["calibration"] = {name: SCALE / np.sqrt(level) for name, level in levels.items()}
    about |= {"range_noise": noise[about["columns"]], "slant_times": 2 * slant / LIGHT, "slant_range": slant[0]}

    times = f"{about['begin']:{STAMP}}-{about['end']:{STAMP}}"
    base = f"{mission}-iw-grd-{{}}-{times}-{orbit:06d}-{about['take']:06x}-{{:03d}}"
    names = [base.format(side, n).lower() for n, side in enumerate(about["polarisations"], start=1)]
    places = [files.place(f"measurement/{name}.tiff") for name in names]
    statistics, picture = _images(places, land, about, brightness.astype("f4"), noise.astype("f4"))
    for number, (name, polarisation) in enumerate(zip(names, about["polarisations"], strict=True), start=1):
        this = about | statistics[number - 1] | {"polarisation": polarisation, "number": f"{number:03d}"}
        files[f"annotation/{name}.xml"] = render("s1_annotation.xml", **this)
        files[f"annotation/calibration/calibration-{name}.xml"] = render("s1_calibration.xml", **this)
        files[f"annotation/calibration/noise-{name}.xml"] = render("s1_noise.xml", **this)
    files["preview/quick-look.png"] = _quicklook(picture)
    files["preview/map-overlay.kml"] = render("s1_map_overlay.kml", **about)
    files["preview/product-preview.html"] = render("index.html", stem=stem, paths=list(files))
    schemas = facts()["sentinel1"]["schemas"]
    for start, (_, path) in schemas.items():
        example = next(name for name in files if name.startswith(start))
        files[path] = schema(files[example] if start.startswith("annotation/") else b"<any/>")
    about["members"] = [
        one | {"schema": next((name for start, (name, _) in schemas.items() if one["path"].startswith(start)), "")}
        for one in members(files, "md5")
    ]
    about |= {"schemas": dict(schemas.values()), "made": about["end"] + timedelta(hours=3)}
    files["manifest.safe"] = render("s1_manifest.xml", **about)


def _images(
    places: list[Path], land: _Land, about: dict[str, Any], brightness: np.ndarray, noise: np.ndarray
) -> tuple[list[dict], list[np.ndarray]]:
    """Write the measurements; return what the annotation tells of their numbers, and a small picture of the power.

    In strips, each with fields and speckle of its own: all of a scene would need 20 GB.
    """
    shape = lines, samples = about["lines"], about["samples"]
    rng, sums, pictures = _rng("scene", about["stem"]), np.zeros((len(places), 2)), []
    with ExitStack() as opened:
        datasets = [opened.enter_context(_tiff(place, shape, about["points"], about["mission"])) for place in places]
        for first, end in strips(lines):
            fields_here = {
                f.name: resized(getattr(land, f.name), lines, samples, rows=(first, end)) for f in fields(land)
            }
            here = _Land(**fields_here)
            powers = _backscatter(here, rng, 14, here.water)[: len(places)]
            for number, (power, dataset) in enumerate(zip(powers, datasets, strict=True)):
                image = np.clip(np.sqrt(power * brightness + noise), 1, 65535).astype("u2")
                dataset.write(image, 1, window=((first, end), (0, samples)))
                sums[number] += image.sum(dtype="f8"), np.square(image, dtype="f8").sum()
            width = min(samples, 512)
            height = max((end - first) * width // samples, 1)
            pictures.append([resized(power, height, width) for power in powers])
    mean, square = sums.T / (lines * samples)
    statistics = [
        {"mean": m, "deviation": s} for m, s in zip(mean.tolist(), np.sqrt(square - mean**2).tolist(), strict=True)
    ]
    return statistics, [np.concatenate(side) for side in zip(*pictures, strict=True)]


def _slant(distance: Any) -> tuple[Any, Any, Any]:
    """Slant range (m), incidence and elevation angle (rad) at a distance in km on the ground, on a sphere."""
    arc = distance / EARTH
    slant = np.sqrt(EARTH**2 + ORBIT**2 - 2 * EARTH * ORBIT * np.cos(arc))
    incidence = np.arcsin(ORBIT * np.sin(arc) / slant)
    return 1000 * slant, incidence, incidence - arc


def _geometry(begin: datetime, since: float, seconds: float, shape: tuple[int, int], dem: np.ndarray) -> dict[str, Any]:
    """What the annotation tells of the places and times of pixels, and of the satellite.

    ``since`` is when the scene begins on its orbit, in s as `_track` counts them, ``shape`` its lines and samples, and
    ``dem`` heights in m that cover it, on any grid.
    """
    (lines, samples), width = shape, 3 * SWATH_WIDTH
    rows, columns = ((np.array(dem.shape) - 1) / (np.array(shape) - 1)).tolist()

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
            point |= {
                "longitude": (lon + 180) % 360 - 180,
                "latitude": lat,
                "height": dem[round(line * rows), round(pixel * columns)],
            }
            points.append(point | {"incidence": np.degrees(incidence), "elevation": np.degrees(elevation)})

    bursts, swaths, gain = [], [], 1 - 0.3 * np.linspace(-1, 1, 20) ** 2
    for place, swath in enumerate(facts()["sentinel1"]["sub_swaths"]):
        first, last = round(samples * place / 3), round(samples * (place + 1) / 3) - 1
        swaths.append(swath | {"first": first, "last": last})
        slant, incidence, elevation = _slant(NEAR_RANGE + width * np.linspace(first, last, 20) / (samples - 1))
        burst = {"swath": swath, "slant_times": 2 * slant / LIGHT, "height": dem.mean()}
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
        "terrain": [(at(offset), dem[round(line * rows)].mean()) for line, offset in offsets],
        "orbits": [{"time": at(offset)} | state(_track, HEIGHT, since + offset) for offset in range(-80, 90, 10)],
        "attitudes": [
            {"time": at(o), "angles": _attitude(at(o), state(_track, HEIGHT, since + o))} for _, o in offsets
        ],
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


@contextmanager
def _tiff(path: Path, shape: tuple[int, int], points: list[dict], mission: str) -> Iterator[Any]:
    """A measurement's file, opened to be written strip by strip."""
    import rasterio
    from rasterio.control import GroundControlPoint

    gcps = [GroundControlPoint(p["line"], p["pixel"], p["longitude"], p["latitude"], p["height"]) for p in points]
    profile = {"driver": "GTiff", "dtype": "uint16", "count": 1, "height": shape[0], "width": shape[1]}
    with rasterio.open(path, "w", **profile, gcps=gcps, crs="EPSG:4326") as dataset:
        dataset.update_tags(TIFFTAG_IMAGEDESCRIPTION=f"Sentinel-{mission[1:]} IW GRD HR L1, simulated")
        yield dataset


def _quicklook(powers: list[np.ndarray]) -> bytes:
    from PIL import Image

    grey = (np.clip(np.sqrt(powers[0]) / 0.6, 0, 1) * 255).astype("u1")
    image = Image.fromarray(_false_colour(*powers) if len(powers) == 2 else np.stack([grey] * 3, axis=2))
    image.thumbnail((512, 512))
    return _encode(image)
