"""The stand-in's products: named, tagged and packed like HyP3's, georeferenced where the granules are."""

import io
import zipfile
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.io import MemoryFile
from rasterio.warp import transform

from helpers.sandbox.products import Product, granule_footprint, hyp3_products, product_name

BURSTS = ["S1_136231_IW2_20200604T022312_VV_7C85-BURST", "S1_136231_IW2_20200616T022313_VV_5D11-BURST"]
NEIGHBOURS = [
    "S1_136232_IW2_20200604T022315_VV_7C85-BURST",
    "S1_136231_IW2_20200604T022312_VV_7C85-BURST",
    "S1_136231_IW3_20200604T022313_VV_7C85-BURST",
]
DUAL = "S1A_IW_SLC__1SDV_20211110T234815_20211110T234842_040516_04CE0A_E717"
GRD = "S1A_IW_GRDH_1SDV_20210413T235641_20210413T235706_037439_0469D0_3F2B"
SINGLE_PAIR = [
    "S1A_IW_SLC__1SSV_20150504T120217_20150504T120229_005771_00769E_EBC8",
    "S1A_IW_SLC__1SSV_20150621T120220_20150621T120232_006471_008934_72D8",
]
SENTINEL2_PAIR = [
    "S2B_MSIL1C_20200105T152259_N0208_R039_T13CES_20200105T181230",
    "S2B_MSIL1C_20200315T152259_N0209_R039_T13CES_20200315T181115",
]
EVERY_GAMMA_OPTION = dict.fromkeys(
    [
        "include_wrapped_phase",
        "include_dem",
        "include_look_vectors",
        "include_displacement_maps",
        "include_inc_map",
        "apply_water_mask",
    ],
    True,
)
EVERY_RTC_OPTION = dict.fromkeys(
    ["include_dem", "include_rgb", "include_inc_map", "include_scattering_area", "dem_matching"], True
)


def a_job(job_type: str, job_id: str = "7eb2a1c4-0000-4000-8000-000000000000", **parameters) -> dict:
    return {
        "job_id": job_id,
        "job_type": job_type,
        "name": "a test",
        "request_time": "2026-11-20T10:00:00+00:00",
        "job_parameters": parameters,
    }


JOBS = {
    "burst": a_job("INSAR_ISCE_BURST", granules=BURSTS, looks="20x4"),
    "fine burst": a_job("INSAR_ISCE_BURST", granules=BURSTS, looks="5x1", apply_water_mask=True),
    "bursts": a_job(
        "INSAR_ISCE_MULTI_BURST",
        reference=NEIGHBOURS,
        secondary=[name.replace("20200604", "20200616") for name in NEIGHBOURS],
        looks="10x2",
    ),
    "scenes": a_job("INSAR_GAMMA", granules=SINGLE_PAIR, looks="20x4"),
    "scenes, everything": a_job("INSAR_GAMMA", granules=SINGLE_PAIR, looks="10x2", **EVERY_GAMMA_OPTION),
    "rtc": a_job("RTC_GAMMA", granules=[DUAL], resolution=30),
    "rtc, everything": a_job(
        "RTC_GAMMA",
        granules=[GRD],
        resolution=10.0,
        radiometry="sigma0",
        scale="decibel",
        speckle_filter=True,
        **EVERY_RTC_OPTION,
    ),
    "rtc of one polarization": a_job("RTC_GAMMA", granules=SINGLE_PAIR[:1], resolution=20, include_rgb=True),
    "water": a_job("WATER_MAP", granules=[GRD], resolution=30, flood_depth_estimator=None),
    "flood": a_job("WATER_MAP", granules=[DUAL], resolution=20, flood_depth_estimator="iterative"),
    "ice": a_job("AUTORIFT", granules=SENTINEL2_PAIR),
    "gunw": a_job("ARIA_S1_GUNW", reference_date="2019-12-31", secondary_date="2019-12-19", frame_id=11040),
    "tiles": a_job(
        "OPERA_DISP_TMS",
        measurement_type="displacement",
        frames=[11113],
        start_date="20200101",
        end_date="20210101",
    ),
}
every_job = pytest.mark.parametrize("kind", JOBS)


@cache
def products(kind: str) -> list[Product]:
    return hyp3_products(JOBS[kind])


def by_suffix(kind: str) -> dict[str, Product]:
    stem = product_name(JOBS[kind])
    assert all(product.name.startswith(stem) for product in products(kind))
    return {product.name.removeprefix(stem): product for product in products(kind)}


def package(made: list[Product]) -> dict[str, bytes]:
    """The files of the ZIPs by their suffix after the product's name; they lie in a folder named like their ZIP."""
    archives = sorted((product for product in made if product.name.endswith(".zip")), key=lambda p: len(p.name))
    stem, held = archives[0].name.removesuffix(".zip"), {}
    for archive in archives:
        folder = archive.name.removesuffix(".zip")
        with zipfile.ZipFile(io.BytesIO(archive.body)) as opened:
            assert opened.testzip() is None
            held |= {name.removeprefix(f"{folder}/{stem}"): opened.read(name) for name in opened.namelist()}
    return held


def rasters(kind: str) -> Iterator[tuple[str, bytes]]:
    loose = {suffix: product.body for suffix, product in by_suffix(kind).items()}
    inside = package(products(kind)) if ".zip" in loose else {}
    return ((name, body) for name, body in (loose | inside).items() if name.endswith(".tif"))


def read(tif: bytes) -> np.ma.MaskedArray:
    with MemoryFile(tif) as memory, memory.open() as dataset:
        return dataset.read(1, masked=True)


def layer(kind: str, suffix: str) -> np.ma.MaskedArray:
    return read(package(products(kind))[suffix])


def made_with(job_type: str, suffix: str, **parameters) -> np.ma.MaskedArray:
    return read(package(hyp3_products(a_job(job_type, **parameters)))[suffix])


def inside(ring: list, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Which points a convex ring contains: those on the same side of every edge."""
    sides = [(x1 - x0) * (lat - y0) - (y1 - y0) * (lon - x0) for (x0, y0), (x1, y1) in pairwise(ring)]
    return np.all(np.array(sides) >= 0, axis=0) | np.all(np.array(sides) <= 0, axis=0)


def centre(granule: str) -> np.ndarray:
    return np.mean(granule_footprint(granule)["coordinates"][0][:4], axis=0)


# --- names and objects ---


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("burst", "S1_136231_IW2_20200604_20200616_VV_INT80_"),
        ("fine burst", "S1_136231_IW2_20200604_20200616_VV_INT20_"),
        ("bursts", "S1_064_000000s1n00-136231s2n02-136231s3n01_IW_20200604_20200616_VV_INT40_"),
        ("scenes", "S1AA_20150504T120217_20150621T120220_VVP048_INT80_G_ueF_"),
        ("scenes, everything", "S1AA_20150504T120217_20150621T120220_VVP048_INT40_G_weF_"),
        ("rtc", "S1A_IW_20211110T234815_DVP_RTC30_G_gpuned_"),
        ("rtc, everything", "S1A_IW_20210413T235641_DVP_RTC10_G_sdufem_"),
        ("rtc of one polarization", "S1A_IW_20150504T120217_SVP_RTC20_G_gpuned_"),
        ("water", "S1A_IW_20210413T235641_DVP_RTC30_G_gpuned_"),
    ],
)
def test_a_name_tells_what_was_made_and_ends_in_four_hexadecimal_digits(kind, name):
    stem = product_name(JOBS[kind])
    assert stem.startswith(name)
    assert int(stem.removeprefix(name), 16) < 16**4
    assert stem != product_name(JOBS[kind] | {"job_id": "another"})


def test_the_older_granule_comes_first_however_the_job_lists_them():
    turned = a_job("INSAR_ISCE_BURST", granules=BURSTS[::-1], looks="20x4")
    assert product_name(turned) == product_name(JOBS["burst"])


def test_an_autorift_name_has_both_granules_and_the_share_of_valid_pixels():
    stem = product_name(JOBS["ice"])
    assert stem.startswith("S2B_MSIL1C_20200105_X_S2B_MSIL1C_20200315_G0120V02_P")
    assert 0 < int(stem[-3:]) <= 100


UNW = {"_unw_phase.png": "amp-browse", "_unw_phase_thumb.png": "amp-thumbnail", "_unw_phase.tif": "product"}
AMPLITUDE = {".zip": "product", ".png": "amp-browse", "_thumb.png": "amp-thumbnail", "_VV.tif": "product"}
DUAL_POL = AMPLITUDE | {
    "_rgb.png": "rgb-browse",
    "_rgb_thumb.png": "rgb-thumbnail",
    "_VH.tif": "product",
}
RTC_STEP = "_rgb.tif _dem.tif _ls_map.tif .README.md.txt .log .png.xml _rgb.png.xml _VV.tif.xml _VH.tif.xml"
RTC_STEP += " _rgb.tif.xml _dem.tif.xml _ls_map.tif.xml"
WATER = DUAL_POL | dict.fromkeys([*RTC_STEP.split(), "_WM.tif", "_WM_HAND.tif", "_WM.zip"], "product")
FLOOD = ["_FM.zip", *(f"_FM_iterative_{name}.tif" for name in ("WaterDepth", "FloodMask", "FloodDepth", "PW"))]


@pytest.mark.parametrize(
    ("kind", "objects"),
    [
        ("burst", {".zip": "product"} | UNW),
        ("bursts", {".zip": "product"} | UNW),
        (
            "scenes",
            {".zip": "product", "_corr.tif": "product", "_color_phase.png": "amp-browse"}
            | {"_color_phase_thumb.png": "amp-thumbnail"}
            | UNW,
        ),
        ("rtc", DUAL_POL),
        ("rtc of one polarization", AMPLITUDE),
        (
            "rtc, everything",
            DUAL_POL | dict.fromkeys(["_rgb.tif", "_dem.tif", "_inc_map.tif", "_area.tif"], "product"),
        ),
        ("water", WATER),
        ("flood", WATER | dict.fromkeys(FLOOD, "product")),
        ("ice", {".nc": "product", ".png": "amp-browse", "_thumb.png": "amp-thumbnail"}),
    ],
)
def test_a_job_leaves_these_objects_with_these_tags(kind, objects):
    assert {suffix: product.file_type for suffix, product in by_suffix(kind).items()} == objects


def test_sorted_by_tag_the_amplitude_comes_before_the_false_colour_image():
    images = sorted((p for p in products("rtc") if "browse" in p.file_type), key=lambda p: p.file_type)
    assert [product.name.endswith("_rgb.png") for product in images] == [False, True]


def test_content_types_follow_the_extension():
    types = {p.name.rpartition(".")[2]: p.content_type for kind in ("rtc", "ice") for p in products(kind)}
    assert types == {
        "zip": "application/zip",
        "png": "image/png",
        "tif": "image/tiff",
        "nc": "application/x-netcdf",
    }


# --- the package ---


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("burst", "_unw_phase.tif _corr.tif _wrapped_phase.tif _conncomp.tif _dem.tif .txt _README.md.txt"),
        ("fine burst", "_unw_phase.tif _water_mask.tif _unw_phase.png"),
        ("scenes", "_unw_phase.tif _corr.tif _amp.tif _water_mask.tif _color_phase.png .txt .README.md.txt"),
        ("scenes, everything", "_wrapped_phase.tif _dem.tif _lv_theta.tif _lv_phi.tif _los_disp.tif"),
        ("scenes, everything", "_vert_disp.tif _inc_map.tif _inc_map_ell.tif"),
        ("rtc", "_VV.tif _VH.tif _ls_map.tif .png _rgb.png .README.md.txt .log _VV.tif.xml .png.xml"),
        ("flood", "_VV.tif _WM.tif _WM_HAND.tif _FM_iterative_WaterDepth.tif .png .README.md.txt .log"),
        ("gunw", "_unw_phase.tif _corr.tif .txt"),
    ],
)
def test_the_package_holds(kind, files):
    assert set(files.split()) <= package(products(kind)).keys()


def test_layers_nobody_asked_for_are_not_in_the_package():
    assert not {"_water_mask.tif", "_los_disp.tif", "_inc_map.tif"} & package(products("burst")).keys()
    assert not {"_wrapped_phase.tif", "_los_disp.tif", "_dem.tif"} & package(products("scenes")).keys()


def test_the_parameter_file_tells_the_pair():
    lines = package(products("burst"))[".txt"].decode().splitlines()
    told = dict(line.split(": ", 1) for line in lines)
    assert told["Reference Granule"] == BURSTS[0]
    assert told["Secondary Granule"] == BURSTS[1]
    assert told["Reference Pass Direction"] == "DESCENDING"
    assert (int(told["Reference Orbit Number"]) - 73) % 175 + 1 == 64
    assert told["UTC time"] == str(2 * 3600 + 23 * 60 + 12.0)
    assert (told["Range looks"], told["Azimuth looks"], told["Water mask"]) == ("20", "4", "no")


def test_every_package_says_that_it_is_simulated():
    for kind in JOBS.keys() - {"ice"}:
        (readme,) = (body for name, body in package(products(kind)).items() if name.endswith("README.md.txt"))
        assert b"simulated" in readme


# --- the rasters ---


@every_job
def test_rasters_have_the_spacing_of_the_name_a_crs_and_nodata(kind):
    stem = product_name(JOBS[kind])
    spacing = next((int(part[3:]) for part in stem.split("_") if part.startswith(("INT", "RTC"))), 80)
    for suffix, body in rasters(kind):
        with MemoryFile(body) as memory, memory.open() as dataset:
            assert dataset.res == (spacing, spacing), suffix
            assert dataset.crs.to_string().startswith(("EPSG:326", "EPSG:327")), suffix
            assert dataset.nodata is not None, suffix
            assert dataset.profile["tiled"], suffix
            assert 150 < max(dataset.shape) <= 700, suffix


@pytest.mark.parametrize("kind", ["burst", "fine burst", "bursts", "scenes", "rtc, everything", "flood"])
def test_what_was_measured_lies_in_the_granules(kind):
    parameters = JOBS[kind]["job_parameters"]
    rings = [
        granule_footprint(g)["coordinates"][0] for g in parameters.get("granules", parameters.get("reference", []))
    ]
    for suffix, body in rasters(kind):
        with MemoryFile(body) as memory, memory.open() as dataset:
            rows, cols = np.nonzero(dataset.dataset_mask())
            x, y = dataset.xy(rows[::97], cols[::97])
            lon, lat = map(np.array, transform(dataset.crs, "EPSG:4326", x, y))
        assert lon.size > 100
        assert np.any([inside(ring, lon, lat) for ring in rings], axis=0).all(), suffix


@pytest.mark.parametrize("kind", ["burst", "rtc"])
def test_a_geocoded_swath_is_tilted_so_the_corners_are_empty(kind):
    picture = read(next(body for _, body in rasters(kind)))
    assert picture.mask[[0, 0, -1, -1], [0, -1, 0, -1]].all()
    assert 0.1 < picture.mask.mean() < 0.5


def test_a_multi_burst_interferogram_joins_the_bursts():
    assert (~layer("bursts", "_corr.tif").mask).sum() > 100_000


def test_the_velocities_are_a_netcdf_that_gdal_reads(tmp_path):
    file = tmp_path / "ice.nc"
    file.write_bytes(by_suffix("ice")[".nc"].body)
    grids = {}
    for name in ("v", "vx", "vy", "v_error"):
        with rasterio.open(f"netcdf:{file}:{name}") as dataset:
            assert dataset.res == (120, 120)
            assert dataset.crs.to_epsg() == 3031
            assert dataset.tags(1)["units"] == "meter/year"
            grids[name] = dataset.read(1, masked=True)
    speed = np.ma.hypot(grids["vx"].astype(float), grids["vy"].astype(float))
    assert abs(speed - grids["v"]).max() <= 1.5
    assert grids["v"].max() > 1000
    assert 0.4 < grids["v"].count() / grids["v"].size < 1


# --- the pictures ---


@every_job
def test_browse_images_are_large_and_colourful_and_thumbnails_small(kind):
    pictures = [p for p in products(kind) if p.name.endswith(".png")]
    assert pictures
    for product in pictures:
        image = Image.open(io.BytesIO(product.body))
        if "thumbnail" in product.file_type:
            assert max(image.size) <= 100
            continue
        assert max(image.size) >= 600
        rgba = np.asarray(image.convert("RGBA"))
        seen = rgba[rgba[..., 3] > 0][:, :3]
        assert (rgba[..., 3] == 0).any()
        assert len(np.unique(seen, axis=0)) >= 50
        assert seen.mean(axis=1).std() > 20


# --- always the same, never too much ---


@every_job
def test_the_same_job_gives_the_same_bytes(kind):
    assert hyp3_products(JOBS[kind]) == products(kind)


@every_job
def test_a_job_takes_at_most_three_megabytes(kind):
    assert sum(len(product.body) for product in products(kind)) <= 3_000_000


def test_a_pair_ordered_again_shows_the_same_and_has_another_name():
    again = hyp3_products(JOBS["burst"] | {"job_id": "another"})
    assert again[0].name != products("burst")[0].name
    np.testing.assert_array_equal(read(package(again)["_unw_phase.tif"]), layer("burst", "_unw_phase.tif"))


def test_the_landscape_stays_while_the_phase_changes_from_pair_to_pair():
    later = [BURSTS[1], BURSTS[1].replace("20200616", "20200628")]
    kept = made_with("INSAR_ISCE_BURST", "_dem.tif", granules=later)
    changed = made_with("INSAR_ISCE_BURST", "_unw_phase.tif", granules=later)
    np.testing.assert_array_equal(kept, layer("burst", "_dem.tif"))
    assert abs(changed - layer("burst", "_unw_phase.tif")).mean() > 1


# --- parameters ---


def test_the_wrapped_phase_is_the_unwrapped_one_modulo_a_cycle():
    difference = layer("burst", "_unw_phase.tif") - layer("burst", "_wrapped_phase.tif")
    assert abs(np.exp(1j * difference.compressed()) - 1).max() < 0.1
    assert np.ptp(layer("burst", "_unw_phase.tif")) > 4 * np.pi


def test_water_has_no_coherence_and_is_masked_on_demand():
    dry = layer("fine burst", "_water_mask.tif") == 1
    wet = layer("fine burst", "_water_mask.tif") == 0
    assert wet.sum() > 100
    coherence, phase = layer("fine burst", "_corr.tif"), layer("fine burst", "_unw_phase.tif")
    assert coherence[wet].mean() < 0.2 < coherence[dry].mean()
    assert phase.mask[wet].all()
    assert not phase.mask[dry].any()
    unmasked = made_with("INSAR_ISCE_BURST", "_unw_phase.tif", granules=BURSTS, looks="5x1")
    assert not unmasked.mask[wet].any()


def test_longer_pairs_keep_less_coherence():
    years_later = [BURSTS[0], BURSTS[0].replace("20200604", "20230604")]
    assert made_with("INSAR_ISCE_BURST", "_corr.tif", granules=years_later).mean() < layer("burst", "_corr.tif").mean()


def test_displacement_is_half_a_wavelength_per_cycle_of_phase():
    phase, displacement = (
        layer("scenes, everything", "_unw_phase.tif"),
        layer("scenes, everything", "_los_disp.tif"),
    )
    np.testing.assert_allclose(displacement, -phase * 0.0555 / (4 * np.pi), atol=2e-3, rtol=0.02)


def test_scale_and_radiometry_change_the_backscatter():
    power = layer("rtc", "_VV.tif")
    decibel = made_with("RTC_GAMMA", "_VV.tif", granules=[DUAL], resolution=30, scale="decibel")
    amplitude = made_with("RTC_GAMMA", "_VV.tif", granules=[DUAL], resolution=30, scale="amplitude")
    sigma = made_with("RTC_GAMMA", "_VV.tif", granules=[DUAL], resolution=30, radiometry="sigma0")
    np.testing.assert_allclose(decibel, 10 * np.ma.log10(power), atol=0.15)
    np.testing.assert_allclose(amplitude, np.sqrt(power), rtol=0.02)
    assert 0.6 < (sigma / power).mean() < 0.95


def test_the_speckle_filter_takes_noise_away():
    filtered = made_with("RTC_GAMMA", "_VV.tif", granules=[DUAL], resolution=30, speckle_filter=True)

    unfiltered = layer("rtc", "_VV.tif")
    lake = unfiltered < 0.015  # the same backscatter everywhere, but for speckle
    assert np.ma.log(filtered)[lake].std() < 0.7 * np.ma.log(unfiltered)[lake].std()


def test_cross_polarized_backscatter_is_weaker():
    assert layer("rtc", "_VH.tif").mean() < 0.5 * layer("rtc", "_VV.tif").mean()


# --- water ---


def test_water_is_low_and_dark():
    wet, hand = layer("flood", "_WM.tif"), layer("flood", "_WM_HAND.tif")
    dark = 10 * np.ma.log10(layer("flood", "_VV.tif"))
    assert 0.005 < wet.mean() < 0.6
    assert hand[wet == 1].max() <= hand[wet == 0].min() + 0.1
    assert np.ma.median(dark[wet == 1]) < -18
    assert np.ma.median(dark[wet == 0]) > -15


def test_a_flood_has_depth_where_the_land_is_usually_dry():
    wet = layer("flood", "_WM.tif").filled(0) == 1
    flooded, usual = (layer("flood", f"_FM_iterative_{name}.tif").filled(0) for name in ("FloodMask", "PW"))
    depth, flood_depth = (
        layer("flood", f"_FM_iterative_{name}.tif").filled(0) for name in ("WaterDepth", "FloodDepth")
    )
    assert flooded.any()
    assert usual.any()
    np.testing.assert_array_equal(wet, flooded == 1)
    np.testing.assert_array_equal(depth > 0, wet)
    np.testing.assert_array_equal(flood_depth > 0, wet & (usual == 0))
    assert depth.max() < 15
    assert depth[usual == 1].mean() > depth[wet & (usual == 0)].mean()


def test_the_flood_maps_carry_the_name_of_their_estimator():
    job = a_job("WATER_MAP", granules=[DUAL], resolution=30, flood_depth_estimator="nmad")
    assert any("_FM_nmad_PW" in product.name for product in hyp3_products(job))
    job["job_parameters"]["flood_depth_estimator"] = "None"
    assert not any("_FM_" in product.name for product in hyp3_products(job))


def test_a_lower_hand_threshold_finds_less_water():
    low = made_with("WATER_MAP", "_WM.tif", granules=[DUAL], resolution=20, hand_threshold=0)
    assert 0 < low.sum() < layer("flood", "_WM.tif").sum()


# --- footprints ---


@pytest.mark.parametrize(
    "granule", [*NEIGHBOURS, DUAL, GRD, *SENTINEL2_PAIR, "LC08_L1GT_118112_20210107_20210107_02_T2", "?", ""]
)
def test_a_footprint_is_a_closed_ring_on_the_globe(granule):
    footprint = granule_footprint(granule)
    (ring,) = footprint["coordinates"]
    assert footprint["type"] == "Polygon"
    assert len(ring) == 5
    assert ring[0] == ring[-1]
    assert all(-180 <= lon < 180 and -90 <= lat <= 90 for lon, lat in ring)
    assert len({tuple(corner) for corner in ring}) == 4


def test_a_burst_is_one_place_on_every_date():
    assert granule_footprint(BURSTS[0]) == granule_footprint(BURSTS[1])


def test_the_next_burst_lies_one_burst_further_and_the_next_sub_swath_one_swath_to_the_right():
    ahead, here, beside = (centre(name) for name in NEIGHBOURS)
    kilometres = 111.2 * np.array([np.cos(np.radians(here[1])), 1])
    assert np.linalg.norm((ahead - here) * kilometres) == pytest.approx(19, abs=2)
    assert np.linalg.norm((beside - here) * kilometres) == pytest.approx(85, abs=8)


@pytest.mark.parametrize(
    ("granule", "place"),
    [
        (BURSTS[0], (53.6, 27.6)),
        ("S2A_MSIL1C_20200627T150921_N0209_R025_T22WEB_20200627T170912", (-49.6, 69.2)),
        ("LC08_L1TP_042035_20210107_20210114_02_T1", (-119.5, 36.0)),
        ("S1A_IW_SLC__1SDV_20200604T022251_20200604T022318_032861_03CE65_7C85", (53.6, 27.6)),
    ],
    ids=["burst", "Sentinel-2 tile", "Landsat scene", "Sentinel-1 scene"],
)
def test_granules_lie_where_the_real_ones_do(granule, place):
    (ring,) = granule_footprint(granule)["coordinates"]
    assert inside(ring, *map(np.array, place))


def test_the_scenes_of_a_pair_overlap():
    first, second = (granule_footprint(scene)["coordinates"][0] for scene in SINGLE_PAIR)
    assert np.abs(np.subtract(first, second)).max() < 0.25
    assert inside(first, *centre(SINGLE_PAIR[1]))


def test_a_ring_across_the_antimeridian_jumps_from_one_edge_of_the_map_to_the_other():
    numbers = range(1, 375_887, 997)
    rings = [granule_footprint(f"S1_{n:06d}_IW1_20200604T022312_VV_7C85-BURST")["coordinates"][0] for n in numbers]
    widths = [np.ptp([lon for lon, _ in ring]) for ring in rings]
    assert all(width < 15 or width > 300 for width in widths)
    assert any(width > 300 for width in widths)


def test_an_unknown_name_is_one_place_without_regard_to_its_date():
    assert granule_footprint("FRAME 1_20200101") == granule_footprint("FRAME 1_20210101")
    assert granule_footprint("FRAME 1_20200101") != granule_footprint("FRAME 2_20200101")
