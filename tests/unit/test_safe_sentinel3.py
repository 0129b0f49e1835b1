"""The sandbox's Sentinel-3 OLCI products: names and places of real ones, variables that agree, plausible light."""

import re
from datetime import datetime
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from netCDF4 import Dataset

from helpers import safe
from helpers.sandbox.safe_products import product_footprint, safe_files, write_safe
from helpers.sandbox.safe_sentinel3 import NAME, _since_node

#: Names of real products; the footprint's corners (first and last line, from the left of the track) are those of the
#: item that an independent catalogue made of the first's manifest.
EFR = "S3A_OL_1_EFR____20210820T103153_20210820T103453_20210820T124206_0179_075_222_2160_LN1_O_NR_002"
CORNERS = [(7.266, 49.882), (-11.117, 52.449), (-12.734, 41.968), (2.511, 39.544)]
ERR = "S3B_OL_1_ERR____20210902T054142_20210902T062554_20210903T103126_2652_056_262______LN1_O_NT_002"
REAL = [
    EFR,
    "S3A_OL_1_EFR____20161020T081224_20161020T081524_20161020T102406_0179_010_078_2340_SVL_O_NR_002",
    "S3A_OL_1_EFR____20210130T025320_20210130T025620_20210131T073406_0179_068_032_2700_LN1_O_NT_002",
    "S3A_OL_1_EFR____20230702T093544_20230702T093844_20230702T113802_0179_100_307_2160_PS1_O_NR_003",
    "S3B_OL_1_EFR____20200518T162416_20200518T162716_20200519T201048_0179_039_083_1440_LN1_O_NT_002",
    "S3B_OL_1_EFR____20220517T083238_20220517T083538_20220517T205009_0179_066_078_3420_PS2_O_NT_002",
    "S3B_OL_1_EFR____20240415T074029_20240415T074329_20240415T094236_0179_092_035_1620_PS2_O_NR_003",
]
MADE_UP = EFR.replace("20210820T103153_20210820T103453", "20210820T003153_20210820T003453")
SMALL = EFR.replace("EFR", "ERR")
BANDS = [f"Oa{number:02d}" for number in range(1, 22)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("olci")


@pytest.fixture(scope="module")
def product(folder):
    """Products on the disk, by name and size. Not to be changed."""
    made = cache(lambda name, pixels: write_safe(folder / str(pixels), name, pixels))
    return lambda name=EFR, pixels=120: made(name, pixels)


def read(root: Path, file: str) -> dict[str, np.ndarray]:
    """The variables of a file in their units, NaN where there is none."""
    with Dataset(root / f"{file}.nc") as dataset:
        if file == "qualityFlags":
            return {"quality_flags": dataset["quality_flags"][:].data}
        return {name: np.ma.filled(each[:].astype("f8"), np.nan) for name, each in dataset.variables.items()}


def manifest(root: Path) -> ElementTree.Element:
    return ElementTree.fromstring((root / "xfdumanifest.xml").read_text())


def told(root: Path, tag: str) -> str:
    return manifest(root).findtext(f".//{{*}}{tag}")


def test_it_has_the_files_of_a_real_product(product):
    others = ["geo_coordinates", "instrument_data", "qualityFlags", "removed_pixels", "tie_geo_coordinates"]
    others += ["tie_geometries", "tie_meteo", "time_coordinates"]
    files = [*others, *(f"{band}_radiance" for band in BANDS), *(f"{band}_radiance_unc" for band in BANDS)]
    assert {path.name for path in product().iterdir()} == {"xfdumanifest.xml", *(f"{file}.nc" for file in files)}
    assert product().name == f"{EFR}.SEN3"
    assert {one.path for one in safe.members(product())} == {f"{file}.nc" for file in files}


# where it lies


def test_it_lies_where_the_real_product_of_that_name_lies():
    ring = product_footprint(EFR)["coordinates"][0]
    for real, mine in zip(CORNERS, ring[::10], strict=False):
        assert mine == pytest.approx(real, abs=0.1)


def test_so_does_half_an_orbit_of_the_other_satellite():
    ring = product_footprint(ERR)["coordinates"][0]
    assert ring[0] == pytest.approx((167.251, 78.119), abs=0.15)
    assert ring[20] == pytest.approx((19.479, -59.593), abs=0.15)
    assert ring[30] == pytest.approx((42.330, -64.784), abs=0.15)


@pytest.mark.parametrize("name", REAL)
def test_the_time_on_the_orbit_is_the_one_that_the_name_tells(name):
    """The frame's coordinate is a round number: real frames begin within half a minute of it."""
    about = NAME.fullmatch(name).groupdict()
    about["begin"] = datetime.strptime(about["begin"], "%Y%m%dT%H%M%S")
    assert _since_node(about) != float(about["frame"])
    assert _since_node(about) == pytest.approx(float(about["frame"]), abs=30)
    assert _since_node(about | {"frame": "1000"}) == 1000  # a made-up one is believed


def test_a_made_up_time_still_lies_in_daylight(product):
    assert read(product(MADE_UP), "tie_geometries")["SZA"].max() < 70


@pytest.mark.parametrize("name", [EFR, SMALL, ERR])
def test_footprint_coordinates_and_tie_points_agree(product, name):
    root = product(name)
    assert safe.footprint(root) == product_footprint(name)
    ring = safe.footprint(root)["coordinates"][0]
    pixels, ties = read(root, "geo_coordinates"), read(root, "tie_geo_coordinates")
    step = int(told(root, "columnsPerTiePoint"))
    for axis, key in enumerate(("longitude", "latitude")):
        corners = [pixels[key][row, column] for row, column in ((0, 0), (0, -1), (-1, -1), (-1, 0))]
        assert corners == pytest.approx([point[axis] for point in ring[:-1:10]], abs=1e-3)
        assert (pixels[key][:, ::step] == ties[key]).all()
    assert pixels["longitude"].shape == (int(told(root, "rows")), int(told(root, "columns")))


def test_orbit_and_platform_are_those_of_the_real_product(product):
    tags = ("orbitNumber", "relativeOrbitNumber", "cycleNumber", "nssdcIdentifier", "productType", "timeliness")
    assert [told(product(), tag) for tag in tags] == ["28685", "222", "75", "2016-011A", "OL_1_EFR___", "NR"]
    assert told(product(ERR), "orbitNumber") == "17474"
    orbit = manifest(product()).find(".//{*}orbitNumber")
    assert orbit.get("groundTrackDirection") == "descending"


def test_the_satellite_is_above_its_track(product):
    for state in manifest(product()).iterfind(".//{*}ephemeris"):
        position, velocity = (
            np.array([float(value.text) for value in state.find(f"{{*}}{kind}")]) for kind in ("position", "velocity")
        )
        assert np.linalg.norm(position) == pytest.approx(7.18e6, rel=0.003)
        assert 7000 < np.linalg.norm(velocity) < 7600
        assert abs(position @ velocity) < 0.01 * np.linalg.norm(position) * np.linalg.norm(velocity)


# its numbers


@pytest.mark.parametrize("name", [EFR, SMALL])
def test_sizes_and_spacings_in_the_manifest_are_those_of_the_files(product, name):
    root = product(name)
    size = int(told(root, "rows")), int(told(root, "columns"))
    assert size[1] in range(100, 121) and max(size) <= 120
    for band in BANDS:
        assert read(root, f"{band}_radiance")[f"{band}_radiance"].shape == size
    seconds = np.diff(read(root, "time_coordinates")["time_stamp"]).mean() / 1e6
    assert float(told(root, "alTimeSampling")) == pytest.approx(1e6 * seconds, abs=1)
    assert seconds * (size[0] - 1) == pytest.approx(180)
    place = read(root, "geo_coordinates")
    lon, lat = (np.radians(place[key]) for key in ("longitude", "latitude"))
    for tag, axis in (("alSpatialSampling", 0), ("acSpatialSampling", 1)):
        east = np.diff(lon, axis=axis).mean() * np.cos(lat.mean())
        metres = 6371e3 * np.hypot(east, np.diff(lat, axis=axis).mean())
        assert float(told(root, tag)) == pytest.approx(metres, rel=0.05)


@pytest.mark.parametrize(("name", "columns", "rows"), [(EFR, 4865, 4091), (SMALL, 1217, 1023), (ERR, 1217, 15069)])
def test_full_size_is_that_of_real_products(name, columns, rows):
    """4865 x 4090 and 1217 x 15070 in the catalogue's items of the real ones."""
    from helpers.sandbox import safe_products, safe_sentinel3

    about, _ = safe_products._recognised(name, None)
    safe_sentinel3._measure(about)
    assert (about["columns"], about["ties"]) == (columns, 77)
    assert about["rows"] == pytest.approx(rows, abs=1)
    assert about["across"] == pytest.approx(270 * 4864 / (columns - 1), abs=1)


def test_times_are_those_of_the_name(product):
    stamps = read(product(), "time_coordinates")["time_stamp"]
    since_2000 = np.datetime64("2000-01-01") + stamps.astype("timedelta64[us]")
    assert [str(since_2000[n])[:19] for n in (0, -1)] == ["2021-08-20T10:31:53", "2021-08-20T10:34:53"]
    assert told(product(), "startTime") == "2021-08-20T10:31:53.000000Z"


def test_radiances_are_plausible(product):
    values = {band: read(product(), f"{band}_radiance")[f"{band}_radiance"] for band in BANDS}
    flags = read(product(), "qualityFlags")["quality_flags"]
    land, bright, invalid = (flags & (1 << bit) > 0 for bit in (31, 27, 25))
    clear = ~bright & ~invalid & (flags & (1 << 26) == 0)
    sea, plants = clear & ~land, clear & land
    assert min(sea.mean(), plants.mean(), bright.mean()) > 0.01
    kinds = {"sea": sea, "land": plants, "cloud": bright & ~invalid}
    mean = {
        band: SimpleNamespace(**{kind: np.nanmean(value[where]) for kind, where in kinds.items()})
        for band, value in values.items()
    }
    assert 40 < mean["Oa03"].sea < 90 and mean["Oa17"].sea < 12 and mean["Oa03"].sea > 5 * mean["Oa17"].sea
    assert mean["Oa17"].land > 3 * mean["Oa17"].sea and mean["Oa17"].land > mean["Oa08"].land
    assert all(one.cloud > one.land for one in mean.values())
    assert mean["Oa13"].land < 0.5 * mean["Oa12"].land  # oxygen absorbs
    assert mean["Oa20"].land < 0.6 * mean["Oa18"].land  # and water vapour
    assert all(np.nanmax(value) < 700 for value in values.values())


def test_uncertainties_follow_the_radiances(product):
    radiance = read(product(), "Oa06_radiance")["Oa06_radiance"]
    uncertainty = 10 ** read(product(), "Oa06_radiance_unc")["Oa06_radiance_unc"]
    assert (np.isnan(radiance) == np.isnan(uncertainty)).all()
    assert np.nanmax(abs(uncertainty / (0.65 + 0.006 * radiance) - 1)) < 0.01


def test_what_no_camera_sees_is_missing_everywhere(product):
    invalid = read(product(), "qualityFlags")["quality_flags"] & (1 << 25) > 0
    assert invalid[:, [0, -1]].all() and 0.02 < invalid.mean() < 0.06
    counts = manifest(product()).find(".//{*}invalidPixels")
    assert int(counts.get("value")) == invalid.sum()
    assert float(counts.get("percentage")) == pytest.approx(100 * invalid.mean(), abs=1e-5)
    for band in BANDS:
        assert (np.isnan(read(product(), f"{band}_radiance")[f"{band}_radiance"]) == invalid).all()
    assert (np.isnan(read(product(), "instrument_data")["detector_index"]) == invalid).all()
    assert not np.isnan(read(product(), "geo_coordinates")["latitude"]).any()


def test_the_night_is_dark(product):
    """Half an orbit and a quarter of an hour more; the real one ends before the sun sets."""
    assert read(product(ERR), "tie_geometries")["SZA"].max() < 88
    root = product(ERR.replace("T062554", "T064054"))
    night = read(root, "tie_geometries")["SZA"] > 89
    assert 0.05 < night.mean() < 0.4
    radiance = read(root, "Oa01_radiance")["Oa01_radiance"][:, :: int(told(root, "columnsPerTiePoint"))]
    assert np.isnan(radiance[night]).all() and np.isnan(radiance).mean() < 0.5


def test_detectors_and_levels_are_described(product):
    instrument, weather = read(product(), "instrument_data"), read(product(), "tie_meteo")
    index, columns = instrument["detector_index"], int(told(product(), "columns"))
    assert instrument["lambda0"].shape == instrument["solar_flux"].shape == (21, columns // 5 * 5)
    assert np.nanmin(index) >= 0 and columns - 8 < np.nanmax(index) < columns // 5 * 5
    assert (np.diff(instrument["lambda0"].mean(axis=1)) > 0).all()
    assert 1200 < instrument["solar_flux"][0].mean() < 1700 and 600 < instrument["solar_flux"][-1].mean() < 800
    rows, ties = read(product(), "tie_geometries")["SZA"].shape
    assert weather["atmospheric_temperature_profile"].shape == (rows, ties, 25)
    assert weather["horizontal_wind"].shape == (rows, ties, 2)
    assert weather["atmospheric_temperature_profile"][..., 0].mean() == pytest.approx(288, abs=10)
    assert weather["atmospheric_temperature_profile"].min() > 200
    assert 990 < weather["sea_level_pressure"].mean() < 1030


def test_the_view_leans_to_the_west(product):
    angles = read(product(), "tie_geometries")
    assert angles["OZA"][:, 0].mean() == pytest.approx(25.6, abs=1)
    assert angles["OZA"][:, -1].mean() == pytest.approx(56, abs=1)
    assert angles["OZA"].min() < 5
    # In the west the satellite stands in the east, and it passes at about ten in the morning.
    assert 60 < angles["OAA"][:, -1].mean() < 120 and -120 < angles["OAA"][:, 0].mean() < -60
    assert (angles["SAA"] > 90).all() and (angles["SZA"] < 60).all()


def test_removed_pixels_are_pixels_of_their_row(product):
    removed = read(product(), "removed_pixels")
    counts = removed["nb_removed_pixels"]
    assert counts.max() == removed["latitude"].shape[1] and counts.min() == 0
    assert ((~np.isnan(removed["latitude"])).sum(axis=1) == counts).all()
    place = read(product(), "geo_coordinates")
    for row in np.flatnonzero(counts)[:20]:
        assert np.isin(removed["latitude"][row, : int(counts[row])], place["latitude"][row]).all()
    assert {f"{band}_radiance" for band in BANDS} <= set(removed) and "SZA" in removed


def test_a_place_keeps_its_landscape_while_days_and_sizes_differ(product):
    later = EFR.replace("20210820T10", "20210916T10").replace("_075_222_", "_076_222_")
    elsewhere = EFR.replace("_222_2160_", "_222_2340_")
    large = read(product(EFR, 240), "geo_coordinates")["altitude"]
    small = read(product(), "geo_coordinates")["altitude"]
    assert abs(large.mean() - small.mean()) < 0.1 * small.mean() and abs(large.max() - small.max()) < 0.1 * small.max()
    now, then, other = (read(product(name), "geo_coordinates")["altitude"].ravel() for name in (EFR, later, elsewhere))
    assert np.corrcoef(now, then)[0, 1] > 0.99 and abs(np.corrcoef(now, other[: now.size])[0, 1]) < 0.6
    first, second = (read(product(name), "Oa08_radiance")["Oa08_radiance"] for name in (EFR, later))
    assert np.nanmean(first != second) > 0.9


def test_flags_have_meanings(product):
    with Dataset(product() / "qualityFlags.nc") as dataset:
        flags = dataset["quality_flags"]
        meanings = flags.flag_meanings.split()
        assert (
            len(meanings) == len(flags.flag_masks) == 32 and meanings[0] == "land" and meanings[-1] == "saturated@Oa21"
        )
        assert list(flags.flag_masks) == [1 << bit for bit in range(31, -1, -1)]


def test_packed_variables_tell_how(product):
    """Scale, offset, limits and "none" of every variable, in its own type; and nothing outside of the limits."""
    for path in product().glob("*.nc"):
        with Dataset(path) as dataset:
            dataset.set_auto_maskandscale(False)
            assert dataset.product_name == product().name and re.match(r"\d{4}-\d\d-\d\dT", dataset.start_time)
            for variable in dataset.variables.values():
                if "valid_min" not in variable.ncattrs():
                    continue
                low, high = variable.valid_min, variable.valid_max
                assert low.dtype == high.dtype == variable.dtype
                values = variable[:]
                if "_FillValue" in variable.ncattrs():
                    assert variable._FillValue.dtype == variable.dtype and not low <= variable._FillValue <= high
                    values = values[values != variable._FillValue]
                assert low <= values.min() and values.max() <= high, variable.name


def test_names_may_end_in_sen3():
    assert safe_files(f"{EFR}.SEN3", 60) == safe_files(EFR, 60)
