"""Sentinel-3 OLCI level 1 for the sandbox, of full and reduced resolution: netCDF files of radiances and annotation.

Left out, since no reader at hand asks for it: the browse image, and the history of processing before level 1.

Sources: Sentinel-3 product data format specification, OLCI level 1 (S3IPF.PDS.004.1); names and places are held against
those of real products.
"""

import math
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from .products import _noise, _rng, _shift
from .safe_parts import LANDSCAPE, TIME, Files, View, facts, members, render, resized, state, strips, sun

NAME = re.compile(
    rf"(?P<mission>S3[A-D])_OL_1_(?P<kind>EFR|ERR)____(?P<begin>{TIME})_(?P<end>{TIME})_(?P<made>{TIME})"
    r"_(?P<seconds>\d{4})_(?P<cycle>\d{3})_(?P<track>\d{3})_(?P<frame>\d{4}|____)_(?P<centre>[A-Z0-9]{3})"
    r"_[A-Z]_(?P<timeliness>N[RT]|ST)_(?P<collection>[A-Z0-9]{3})"
)
ORBITS, CYCLE = 385, timedelta(days=27)
PERIOD = CYCLE.total_seconds() / ORBITS  # s, of an orbit
INCLINATION = math.radians(98.65)
#: Local mean time, in hours, at the ascending node.
NODE_TIME = 22
HEIGHT = 814.5  # km, of the orbit
GROUND_SPEED = 6.72  # km/s
#: km to the left and right of the track; cameras are tilted away from the sun's glint.
SWATH = (-345.0, 968.28)
#: The part of a line, at each of its ends, that no camera sees.
UNSEEN = 0.015
CAMERAS, DETECTORS = 5, 740  # the second of each camera
EPOCH = datetime(2000, 1, 1)
#: Dimensions of pixels, and of the points that hold what changes slowly.
PIXEL, TIE = ("rows", "columns"), ("tie_rows", "tie_columns")
#: What stands for "none" in variables of a type.
FILL = {"u1": 255, "i1": -128, "u2": 65535, "i2": -32768, "u4": 4294967295, "i4": -2147483648, "f4": -1.0}
#: Dimensions, values and attributes of a variable.
Variable = tuple[tuple[str, ...], np.ndarray, dict[str, Any]]


def ring(about: dict[str, Any]) -> list[list[float]]:
    """Where a frame lies: [longitude, latitude] in degrees, along its sides, closed.

    ``about`` has the parts of its name. The time since the ascending node tells the latitude; and the longitude, since
    the node lies where its local time is 22 h.

    Raises
    ------
    ValueError
        The frame ends before it begins, or is longer than an hour.
    """
    seconds = (about["end"] - about["begin"]).total_seconds()
    if not 0 < seconds <= 3600:
        raise ValueError(f"{about['stem']!r}: a frame ends after it begins, within an hour")
    steps = np.linspace(0, 1, 11)
    sides = [(0 * steps, steps), (steps, 0 * steps + 1), (0 * steps + 1, steps[::-1]), (steps[::-1], 0 * steps)]
    later, across = (np.concatenate([side[axis][:-1] for side in sides]) for axis in (0, 1))
    lon, lat = _seen(about, later * seconds, SWATH[0] + across * (SWATH[1] - SWATH[0]))
    points = np.round(np.transpose([lon, lat]), 4).tolist()
    return [*points, points[0]]


def _since_node(about: dict[str, Any]) -> float:
    """Seconds from the ascending node to the beginning: after 27 days to the second, the satellite is where it was.

    A name that tells another time (as the frame's coordinate, a multiple of 180 s or nearly so) is believed: made-up
    ones should lie in daylight, too.
    """
    known = facts()["sentinel3"]["known_node"]
    since = (about["begin"] - known.get(about["mission"], known["S3A"])).total_seconds() % PERIOD
    frame = since if about["frame"] == "____" else float(about["frame"])
    return frame if abs(frame - since) > 60 else since


def _track(about: dict[str, Any], later: Any) -> tuple[Any, Any]:
    """Longitude and latitude in degrees below the satellite, ``later`` seconds after the beginning."""
    since = _since_node(about)
    node = about["begin"] - timedelta(seconds=since)
    west = NODE_TIME - (node.hour + node.minute / 60 + node.second / 3600)  # of the node, in hours of the Earth's turn
    angle = 2 * np.pi * (since + later) / PERIOD
    lat = np.arctan(1.00674 * np.tan(np.arcsin(math.sin(INCLINATION) * np.sin(angle))))
    lon = np.arctan2(math.cos(INCLINATION) * np.sin(angle), np.cos(angle)) + 2 * np.pi * west / 24
    return np.degrees(lon - 2 * np.pi * (since + later) / 86400), np.degrees(lat)


def _seen(about: dict[str, Any], later: Any, across: Any) -> tuple[Any, Any]:
    """Longitude and latitude in degrees at a distance in km to the right of the track."""
    (lon, lat), (lon1, lat1) = _track(about, later), _track(about, later + 1)
    heading = np.arctan2(((lon1 - lon + 180) % 360 - 180) * np.cos(np.radians(lat)), lat1 - lat)
    lon, lat = _shift(lon, lat, heading + np.pi / 2, across)
    return (lon + 180) % 360 - 180, lat


def make(about: dict[str, Any], files: Files) -> None:
    """Write the product that ``about`` tells of: the parts of its name, ``pixels`` (longest side) or None, ``ring``."""
    _measure(about)
    scene = _scene(about)
    about |= _summary(scene["flags"], about)

    def write(name: str, variables: dict[str, Variable]) -> None:
        _write(files.place(f"{name}.nc"), name, variables, about)

    pixels = _places(about, PIXEL) | {"altitude": _altitude(scene["dem"])}
    write("geo_coordinates", pixels)
    detectors = _detectors(scene["missing"])
    write("instrument_data", _characterised(about) | detectors)
    write("qualityFlags", flags := _flags(scene["flags"], about))
    removed = _Removed(about)
    gone = removed.of(pixels | detectors | flags) | removed.own(about)
    for name, band in about["bands"].items():
        radiance, uncertainty = _band(scene, about, name, band)
        write(f"{name}_radiance", radiance)
        write(f"{name}_radiance_unc", uncertainty)
        gone |= removed.of(radiance | uncertainty)
    write("removed_pixels", gone)
    write("time_coordinates", _times(about))
    write("tie_geo_coordinates", _places(about, TIE))
    write("tie_geometries", _angles(about))
    write("tie_meteo", _weather(about))
    listed = members(files, "md5")
    for member in listed:
        member["id"] = member["path"].removesuffix(".nc")
    files["xfdumanifest.xml"] = render("s3_manifest.xml", members=listed, **about)


def _measure(about: dict[str, Any]) -> None:
    """Add sizes, spacings, numbers of the orbit, and the distance of the sun."""
    about |= facts()["sentinel3"]
    kind, seconds = about["kinds"][about["kind"]], (about["end"] - about["begin"]).total_seconds()
    real = np.array([seconds / kind["interval"], kind["columns"]])
    rows, columns = (max(int(n), 20) for n in (real * (about["pixels"] or real.max()) / real.max()).round())
    step = min(kind["step"], max((columns - 1) // 12, 1))
    columns = (columns - 1) // step * step + 1  # the last tie point is the last column
    about |= {"rows": rows, "columns": columns, "step": step, "ties": (columns - 1) // step + 1}
    about |= {"resolution": kind["resolution"], "interval": seconds / (rows - 1), "seconds": round(seconds)}
    about["along"] = round(1000 * GROUND_SPEED * about["interval"])
    about["across"] = round(1000 * (SWATH[1] - SWATH[0]) / (columns - 1))
    about["cycle"], about["track"] = int(about["cycle"]), int(about["track"])
    about["orbit"] = (about["cycle"] - 1) * ORBITS + about["track"] + about["orbits_before"].get(about["mission"], 0)
    about["orbit"] = max(about["orbit"], 1)
    day = about["begin"].timetuple().tm_yday
    about["sun_distance"] = 149.6e6 * (1 + 0.0167 * math.sin(2 * math.pi * (day - 94) / 365.25))  # km
    (_, lat), (_, lat1) = _track(about, 0.0), _track(about, 1.0)
    about["direction"] = "ascending" if lat1 > lat else "descending"
    about["states"] = [
        {"utc": moment, "tai": moment + timedelta(seconds=37)}
        | state(lambda later: _track(about, later), 1000 * HEIGHT, (moment - about["begin"]).total_seconds())
        for moment in (about["begin"], about["end"])
    ]


def _grid(about: dict[str, Any], rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds after the beginning (rows, 1) and km to the right of the track (1, columns), the ends included."""
    later = np.linspace(0, (about["end"] - about["begin"]).total_seconds(), rows)
    return later[:, None], np.linspace(*SWATH, columns)[None, :]


# --- what is seen ---


def _scene(about: dict[str, Any]) -> dict[str, Any]:
    """The frame that day: what there is to see, in which light, and of the pixels their flags, gaps and heights (m)."""
    rows, columns = about["rows"], about["columns"]
    shape = tuple(max(int(n), 20) for n in np.array([rows, columns]) * LANDSCAPE / max(rows, columns))
    later, across = _grid(about, *shape)
    lon, lat = _seen(about, later, across)
    zenith, azimuth = sun(about["begin"], lon, lat, later)
    middle = shape[0] // 2, shape[1] // 2
    place = f"OLCI {about['track']:03d} {about['frame']}"
    view = View.of(
        (place, place),
        _rng("day", about["mission"], about["begin"], place),
        shape,
        1000 * (SWATH[1] - SWATH[0]) / shape[1],
        about["begin"],
        float(lat[middle]),
        (float(zenith[middle]), float(azimuth[middle])),
    )
    wet = view.wet
    kinds = {"land": ~wet, "coastline": wet ^ (np.roll(wet, 1, 0) | np.roll(wet, 1, 1)), "invalid": zenith > 88}
    kinds |= {"fresh_inland_water": wet & (view.land.hand > -2), "straylight_risk": view.cloud > 0.1}
    kinds |= {"bright": (view.cloud > 0.4) | (view.snow > 0.5)}
    bits = np.bitwise_or.reduce([kind * _bit(name, about) for name, kind in kinds.items()])
    flags = resized(bits.view("i4"), rows, columns, smooth=False).view("u4").copy()
    unseen = max(round(UNSEEN * columns), 1)
    flags[:, :unseen] = flags[:, -unseen:] = _bit("invalid", about)
    return {
        "view": view,
        "light": np.cos(np.radians(zenith)).clip(0) / np.pi,  # of an irradiance of 1, sent back by a white surface
        "flags": flags,
        "missing": flags & _bit("invalid", about) > 0,
        "dem": resized(view.land.dem, rows, columns),
    }


def _bit(name: str, about: dict[str, Any]) -> np.uint32:
    return np.uint32(1 << (31 - about["flags"].index(name)))


def _summary(flags: np.ndarray, about: dict[str, Any]) -> dict[str, Any]:
    """How many pixels have each flag, and which share of all (%)."""
    counts = {name: int(np.count_nonzero(flags & _bit(name, about))) for name in about["flags"]}
    counts |= {
        "saturated": 0,
        "saline_water": flags.size - sum(counts[n] for n in ("invalid", "land", "fresh_inland_water")),
    }
    return {"counts": counts, "shares": {name: 100 * count / flags.size for name, count in counts.items()}}


def _band(
    scene: dict[str, Any], about: dict[str, Any], name: str, band: dict[str, float]
) -> tuple[dict[str, Variable], dict[str, Variable]]:
    """A band's radiance (mW/m2/sr/nm), and the logarithm of its uncertainty."""
    other = facts()["sentinel2"]  # tells the spectra of what lies on the ground
    wavelengths = [one["centre"] for one in other["bands"].values()]
    *spectrum, _, _ = (np.interp(band["centre"], wavelengths, row) / 100 for row in other["spectra"].values())
    value = (band["added"] + band["passing"] * scene["view"].reflectance(np.array(spectrum))) / 100
    value = resized((value * scene["light"] * band["irradiance"]).astype("f4"), about["rows"], about["columns"])
    grain = _rng("grain", about["stem"], name).standard_normal(value.shape, dtype="f4")
    value = value * (1 + grain / 800)  # the signal is some 800 times the noise
    text = {"long_name": f"TOA radiance for OLCI acquisition band {name}", "units": "mW.m-2.sr-1.nm-1"}
    text |= {"standard_name": "toa_upwelling_spectral_radiance", "ancillary_variables": f"{name}_radiance_unc"}
    radiance = _packed(PIXEL, value, "u2", text, band["scale"], 0.0, missing=scene["missing"])
    text = {"long_name": f"log10 scaled radiometric uncertainty estimate for OLCI acquisition band {name}"}
    text |= {"units": "lg(re mW.m-2.sr-1.nm-1)"}
    unsure = np.log10(0.65 + 0.006 * value)
    uncertainty = _packed(PIXEL, unsure, "u1", text, 0.005472, -0.193583, missing=scene["missing"])
    return {f"{name}_radiance": radiance}, {f"{name}_radiance_unc": uncertainty}


# --- what is known about pixels and tie points ---


def _packed(
    dimensions: tuple[str, ...],
    values: np.ndarray,
    code: str,
    text: dict[str, Any],
    scale: float | None = None,
    offset: float | None = None,
    limits: tuple[float, float] | None = None,
    missing: np.ndarray | None = None,
) -> Variable:
    """A variable of the type ``code`` for values in their units, counted in steps of ``scale`` from ``offset``.

    ``limits`` are those of the counts, by default what the type can hold besides "none".
    """
    kind = np.dtype(code).type
    low, high = limits or (0, np.iinfo(code).max - 1)
    if scale is not None:
        text = text | {"scale_factor": scale} | ({"add_offset": offset} if offset is not None else {})
        values = (values - (offset or 0)) / scale
    counts = np.clip(values if code == "f4" else np.rint(values), low, high).astype(code)
    if missing is not None:
        counts[missing] = FILL[code]
    return dimensions, counts, text | {"_FillValue": kind(FILL[code]), "valid_min": kind(low), "valid_max": kind(high)}


def _flags(flags: np.ndarray, about: dict[str, Any]) -> dict[str, Variable]:
    names = [*about["flags"], *(f"saturated@{name}" for name in about["bands"])]
    text = {"long_name": "Classification and quality flags", "flag_meanings": " ".join(names)}
    return {"quality_flags": (PIXEL, flags, text | {"flag_masks": np.array([1 << (31 - n) for n in range(32)], "u4")})}


def _places(about: dict[str, Any], dimensions: tuple[str, str]) -> dict[str, Variable]:
    """Longitude and latitude of the pixels or of the tie points."""
    later, across = _grid(about, about["rows"], about["columns" if dimensions == PIXEL else "ties"])
    found = [_seen(about, later[slice(*strip)], across) for strip in strips(about["rows"])]  # in less memory
    lon, lat = (np.concatenate(values) for values in zip(*found, strict=True))
    return {
        name: _packed(
            dimensions,
            values,
            "i4",
            {"long_name": name, "standard_name": name, "units": unit},
            scale=1e-6,
            limits=(-limit * 10**6, limit * 10**6),
        )
        for name, values, unit, limit in (
            ("longitude", lon, "degrees_east", 180),
            ("latitude", lat, "degrees_north", 90),
        )
    }


def _altitude(dem: np.ndarray) -> Variable:
    text = {"long_name": "DEM corrected altitude", "standard_name": "altitude", "units": "m"}
    return _packed(PIXEL, dem, "i2", text, limits=(-1000, 9000))


def _count(columns: int) -> int:
    """Detectors of all cameras together, no more than the image has columns."""
    return CAMERAS * min(DETECTORS, max(columns // CAMERAS, 1))


def _detectors(missing: np.ndarray) -> dict[str, Variable]:
    """Which detector saw a pixel, and how many lines earlier or later than the others."""
    count = _count(missing.shape[1])
    detector = np.broadcast_to(np.linspace(count - 1, 0, missing.shape[1]), missing.shape)  # the first looks west
    text = {"long_name": "detector index for each pixel", "coordinates": "latitude longitude"}
    index = _packed(PIXEL, detector, "i2", text, limits=(0, count - 1))
    index[1][missing], index[2]["_FillValue"] = -1, np.int16(-1)
    text = {"long_name": "resampling along-track frame offset"}
    offset = _packed(PIXEL, detector // (count / CAMERAS) % 2, "i1", text, limits=(-15, 15), missing=missing)
    return {"detector_index": index, "frame_offset": offset}


def _characterised(about: dict[str, Any]) -> dict[str, Variable]:
    """Wavelength and width (nm) of each band in each detector, and the sun's irradiance that day (mW/m2/nm)."""
    bands = about["bands"].values()
    centre, width, irradiance = (np.array([[band[key]] for band in bands]) for key in ("centre", "width", "irradiance"))
    smile = np.tile(
        np.linspace(-1, 1, _count(about["columns"]) // CAMERAS) ** 2, CAMERAS
    )  # each camera bends its spectrum
    nearer = (149.6e6 / about["sun_distance"]) ** 2
    covariance = np.exp(-(((centre - centre.T) / 150) ** 2)).astype("f4")
    variables: dict[str, Variable] = {
        "relative_spectral_covariance": (("bands", "bands"), covariance, {"long_name": "relative spectral covariance"})
    }
    for name, text, unit, values, limits in (
        ("lambda0", "OLCI characterised central wavelength", "nm", centre + 0.6 * smile, (390, 1040)),
        ("FWHM", "OLCI bandwidth (Full Width at Half Maximum)", "nm", width + 0.02 * smile, (0, 650)),
        (
            "solar_flux",
            "In-band solar irradiance, seasonally corrected",
            "mW.m-2.nm-1",
            irradiance * nearer + 0 * smile,
            (500, 2500),
        ),
    ):
        variables[name] = _packed(
            ("bands", "detectors"), values, "f4", {"long_name": text, "units": unit}, limits=limits
        )
    return variables


def _times(about: dict[str, Any]) -> dict[str, Variable]:
    later, _ = _grid(about, about["rows"], 1)
    text = {"long_name": "elapsed time since 01 Jan 2000 0h", "standard_name": "time"}
    text |= {"units": "microseconds since 2000-01-01 00:00:00"}
    stamps = np.rint(1e6 * later[:, 0]).astype("i8") + round(1e6 * (about["begin"] - EPOCH).total_seconds())
    return {"time_stamp": (("rows",), stamps, text)}


def _angles(about: dict[str, Any]) -> dict[str, Variable]:
    """Directions of the sun and of the satellite at the tie points, in degrees."""
    later, across = _grid(about, about["rows"], about["ties"])
    lon, lat = _seen(about, later, across)
    below, north = _track(about, later)
    zenith, azimuth = sun(about["begin"], lon, lat, later)
    arc = np.abs(across) / 6371
    view = np.degrees(arc + np.arctan2(6371 * np.sin(arc), 6371 + HEIGHT - 6371 * np.cos(arc)))
    east, here, there = np.radians(below - lon), np.radians(lat), np.radians(north)
    towards = np.arctan2(
        np.sin(east) * np.cos(there),
        np.cos(here) * np.sin(there) - np.sin(here) * np.cos(there) * np.cos(east),
    )
    around, up = (-180 * 10**6, 180 * 10**6), (0, 180 * 10**6)
    return {
        name: _packed(TIE, values + 0 * lon, code, {"long_name": text, "units": "degrees"}, scale=1e-6, limits=limits)
        for name, text, values, code, limits in (
            ("SZA", "Sun Zenith Angle", zenith, "u4", up),
            ("SAA", "Sun Azimuth Angle", (azimuth + 180) % 360 - 180, "i4", around),
            ("OZA", "Observation (Viewing) Zenith Angle", view, "u4", up),
            ("OAA", "Observation (Viewing) Azimuth Angle", np.degrees(towards), "i4", around),
        )
    }


def _weather(about: dict[str, Any]) -> dict[str, Variable]:
    """The forecast at the tie points; its numbers are rounded, which packs well."""
    shape, rng = (about["rows"], about["ties"]), _rng("weather", about["stem"])
    levels = np.array(about["levels"], "f4")
    # The standard atmosphere: 6.5 K less each km, up to 11 km.
    height = 44.33 * (1 - (levels / 1013.25) ** 0.19)
    profile = 288.15 - 6.5 * np.minimum(height, 11) + np.maximum(height - 20, 0)
    warmer = (6 * resized(_noise(rng, (32, 32), 2.5).astype("f4"), *shape)).round(1)[..., None]
    wind = np.stack([resized((3 * _noise(rng, (32, 32), 2.5)).astype("f4"), *shape).round(1) for _ in range(2)], axis=2)
    text = {"long_name": "coordinates of the vertical temperature profile", "units": "hPa"}
    variables: dict[str, Variable] = {"reference_pressure_level": (("tie_pressure_levels",), levels, text)}
    text = {"long_name": "Air temperature vertical profile", "standard_name": "air_temperature", "units": "K"}
    profiles = profile.round(1) + warmer * (levels > 200)
    variables["atmospheric_temperature_profile"] = _packed(
        (*TIE, "tie_pressure_levels"), profiles, "f4", text, limits=(170, 350)
    )
    text = {"long_name": "Horizontal wind vector at 10m altitude", "units": "m.s-1"}
    text |= {"valid_min": np.float32(-100), "valid_max": np.float32(100)}
    variables["horizontal_wind"] = ((*TIE, "wind_vectors"), wind.astype("f4"), text)
    for name, long_name, standard_name, unit, usual, varies in about["weather"]:
        text = {"long_name": long_name, "standard_name": standard_name, "units": unit}
        field = resized(_noise(rng, (32, 32), 2.5).astype("f4"), *shape).round(2)
        variables[name] = _packed(TIE, usual * (1 + varies * field / 3), "f4", text, limits=(0, 1200))
    return variables


class _Removed:
    """Pixels that were seen twice, of which the image has one: a few in each row, with all that is known about them."""

    def __init__(self, about: dict[str, Any]):
        rng, rows, columns = _rng("removed", about["stem"]), about["rows"], about["columns"]
        most = max(columns // 40, 2)
        self._columns = np.sort(rng.integers(0, columns, (rows, most)), axis=1)
        self._count = rng.integers(0, most + 1, rows).astype("u2")
        self._none = np.arange(most)[None, :] >= self._count[:, None]

    def of(self, variables: dict[str, Variable]) -> dict[str, Variable]:
        return {name: self._of(*variable) for name, variable in variables.items()}

    def _of(self, dimensions: tuple[str, ...], values: np.ndarray, text: dict[str, Any]) -> Variable:
        taken = np.take_along_axis(values, self._columns, axis=1)
        taken[self._none] = text.get("_FillValue", 0)
        return ("rows", "removed_pixels"), taken, text

    def own(self, about: dict[str, Any]) -> dict[str, Variable]:
        """How many there are in each row, and the height of the sun, which other pixels have from tie points."""
        later, across = _grid(about, about["rows"], about["columns"])
        lon, lat = _seen(about, later, across[0][self._columns])
        zenith, _ = sun(about["begin"], lon, lat, later)
        text = {"long_name": "sun zenith angle for removed pixels", "units": "degrees"}
        angle = _packed(
            ("rows", "removed_pixels"), zenith, "u4", text, 1e-6, limits=(0, 180 * 10**6), missing=self._none
        )
        return {"SZA": angle, "nb_removed_pixels": (("rows",), self._count, {"long_name": "number of removed pixels"})}


def _write(path: Path, name: str, variables: dict[str, Variable], about: dict[str, Any]) -> None:
    """A netCDF-4 file, compressed as real ones are."""
    from netCDF4 import Dataset

    step = about["step"] if name.startswith("tie_") else 1
    spacing = f"[ {about['across'] * step} {about['along']} ]"
    with Dataset(path, "w", format="NETCDF4") as dataset:
        dataset.setncatts(
            {
                "absolute_orbit_number": np.uint32(about["orbit"]),
                "comment": "Simulated: nothing here was measured",
                "creation_time": f"{about['made']:%Y-%m-%dT%H:%M:%SZ}",
                "institution": about["centre"],
                "netCDF_version": "4",
                "product_name": f"{about['stem']}.SEN3",
                "resolution": spacing,
                "source": "Sandbox of EO Cloud Recipes",
                "start_time": f"{about['begin'].isoformat(timespec='microseconds')}Z",
                "stop_time": f"{about['end'].isoformat(timespec='microseconds')}Z",
                "title": f"OLCI Level 1b Product, {name}",
            }
        )
        if name.startswith("tie_"):
            dataset.setncatts({"ac_subsampling_factor": np.int16(step), "al_subsampling_factor": np.int16(1)})
        for variable, (dimensions, values, text) in variables.items():
            for dimension, size in zip(dimensions, values.shape, strict=True):
                if dimension not in dataset.dimensions:
                    dataset.createDimension(dimension, size)
            attributes = dict(text)
            fill = attributes.pop("_FillValue", None)
            made = dataset.createVariable(variable, values.dtype, dimensions, zlib=True, complevel=1, fill_value=fill)
            made.set_auto_maskandscale(False)
            made.setncatts(attributes)
            made[...] = values
