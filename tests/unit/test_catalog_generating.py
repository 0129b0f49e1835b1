"""STAC items from products: valid without a network, each value held against what the product itself says."""

import io
import json
import shutil
import sys
import warnings
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pystac
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds, transform_geom
from shapely import contains_xy, get_coordinates
from shapely.geometry import Polygon, box, shape

from helpers import objectstore, safe, schemas, stac
from helpers.catalog import generating, of_stactools, places
from helpers.catalog.generating import create_item, kinds, register
from helpers.errors import NotConfigured, Rejected, TimedOut
from helpers.sandbox.products import hyp3_products, water_map_products
from helpers.sandbox.safe_products import safe_zip, write_safe

SCENE = "S1A_IW_SLC__1SDV_20211110T234815_20211110T234842_040516_04CE0A_E717"
SCENES = [
    "S1A_IW_SLC__1SSV_20150504T120217_20150504T120229_005771_00769E_EBC8",
    "S1A_IW_SLC__1SSV_20150621T120220_20150621T120232_006471_008934_72D8",
]
BURSTS = ["S1_136231_IW2_20200604T022312_VV_7C85-BURST", "S1_136231_IW2_20200616T022313_VV_5D11-BURST"]
IMAGES = [
    "S2B_MSIL1C_20200105T152259_N0208_R039_T13CES_20200105T181230",
    "S2B_MSIL1C_20200315T152259_N0209_R039_T13CES_20200315T181115",
]
GRD = "S1A_IW_GRDH_1SDV_20230910T054256_20230910T054321_050261_060CD9_BF21"
L1C = "S2A_MSIL1C_20230910T050701_N0509_R019_T47VLH_20230910T074321"
L2A = "S2A_MSIL2A_20230910T050701_N0509_R019_T47VLH_20230910T094321"
OLCI = "S3A_OL_1_ERR____20230815T091500_20230815T091800_20230816T101010_0180_102_207______PS1_O_NT_003"
#: A tile on both sides of the antimeridian.
DATE_LINE = "S2A_MSIL1C_20230910T221701_N0509_R029_T01KAB_20230911T000000"


def job(kind: str, **parameters) -> dict:
    return {"job_id": "7eb2a1c4", "job_type": kind, "request_time": "2026-11-20", "job_parameters": parameters}


JOBS = {
    "rtc": job("RTC_GAMMA", granules=[SCENE], resolution=30),
    "scenes": job("INSAR_GAMMA", granules=SCENES, looks="20x4", apply_water_mask=True),
    "burst": job("INSAR_ISCE_BURST", granules=BURSTS, looks="20x4"),
    "bursts": job("INSAR_ISCE_MULTI_BURST", reference=BURSTS[:1], secondary=BURSTS[1:], looks="20x4"),
    "ice": job("AUTORIFT", granules=IMAGES),
}


@pytest.fixture(scope="module")
def hyp3_folders(tmp_path_factory) -> dict[str, Path]:
    """What HyP3 leaves under each job's prefix."""
    root, folders = tmp_path_factory.mktemp("hyp3"), {}
    made = {kind: hyp3_products(a_job) for kind, a_job in JOBS.items()}
    water = job("WATER_MAP", granules=[SCENE], resolution=30, flood_depth_estimator="iterative")
    made["water"] = water_map_products(water, pixels=20_000)
    for kind, products in made.items():
        folders[kind] = root / kind
        folders[kind].mkdir()
        for product in products:
            (folders[kind] / product.name).write_bytes(product.body)
    return folders


@pytest.fixture(scope="module")
def safes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("safe")
    for name in (GRD, L1C, OLCI, DATE_LINE):
        write_safe(root, name, 60)
    (root / f"{L2A}.zip").write_bytes(safe_zip(L2A, 60))
    return root


def checked(item: pystac.Item) -> dict:
    """The item's JSON: valid, by schemas that are all here."""
    content = item.to_dict(include_self_link=False, transform_hrefs=False)
    stac.validate(content)
    assert set(content["stac_extensions"]) == set(stac.extensions_of([content["properties"], content["assets"]]))
    return content


def package(folder: Path) -> Path:
    return min(folder.glob("*.zip"), key=lambda path: len(path.name))


def valid_pixels(path: Path | str) -> Polygon:
    """Frame of the pixels that have data, in the raster's own coordinates."""
    with rasterio.open(path) as dataset:
        rows, columns = np.nonzero(dataset.read_masks(1))
        left, top = dataset.transform @ (columns.min(), rows.min())
        right, bottom = dataset.transform @ (columns.max() + 1, rows.max() + 1)
        return box(left, bottom, right, top)


# --- HyP3 ---


@pytest.mark.parametrize("kind", ["rtc", "scenes", "burst", "bursts", "water", "ice"])
def test_items_of_hyp3_are_valid_and_always_the_same(hyp3_folders, kind):
    made = checked(create_item(hyp3_folders[kind], collection="mine"))
    assert made == checked(create_item(hyp3_folders[kind], collection="mine"))
    assert made["collection"] == "mine"
    assert made["id"].startswith(min(hyp3_folders[kind].glob("*.*")).name.partition(".")[0][:40])
    thumbnails = [a for a in made["assets"].values() if "thumbnail" in a["roles"]]
    assert thumbnails and all(Path(a["href"]).exists() for a in thumbnails)


def test_values_of_an_rtc_product(hyp3_folders):
    made = checked(create_item(hyp3_folders["rtc"]))
    about, assets = made["properties"], made["assets"]
    assert made["id"].startswith("S1A_IW_20211110T234815_DVP_RTC30_G_gpuned_")
    assert (about["start_datetime"], about["end_datetime"]) == ("2021-11-10T23:48:15Z", "2021-11-10T23:48:42Z")
    assert (about["platform"], about["sar:instrument_mode"], about["sar:polarizations"]) == (
        "sentinel-1a",
        "IW",
        ["VV", "VH"],
    )
    assert (about["sat:absolute_orbit"], about["sat:relative_orbit"]) == (40516, (40516 - 73) % 175 + 1)
    assert SCENE in about["processing:lineage"] and about["product:type"] == "RTC_GAMMA"
    assert {"VV", "VH", "ls_map", "browse", "thumbnail", "rgb_browse", "package", "readme"} <= set(assets)
    with rasterio.open(assets["VV"]["href"]) as dataset:
        assert about["proj:code"] == f"EPSG:{dataset.crs.to_epsg()}"
        assert about["proj:bbox"] == list(dataset.bounds) and about["proj:shape"] == list(dataset.shape)
        assert about["proj:transform"] == list(dataset.transform)
        assert (assets["VV"]["data_type"], assets["VV"]["nodata"]) == (dataset.dtypes[0], dataset.nodata)
        assert assets["VV"]["raster:spatial_resolution"] == about["gsd"] == dataset.res[0] == 30
    assert assets["VV"]["title"] == "VV: gamma0, power" and "gamma0" in assets["VV"]["roles"]
    with rasterio.open(assets["ls_map"]["href"]) as member:  # only in the package; rasterio opens it there
        assert member.shape == tuple(about["proj:shape"])


@pytest.mark.parametrize("kind", ["rtc", "burst", "scenes"])
def test_the_footprint_is_that_of_the_data(hyp3_folders, kind):
    """It holds all pixels with data, and is not the raster's frame, of which a good part is empty."""
    made = checked(create_item(hyp3_folders[kind]))
    main = made["assets"]["VV" if kind == "rtc" else "unw_phase"]["href"]
    with rasterio.open(main) as dataset:
        mask, transform = dataset.read_masks(1) > 0, dataset.transform
        rows, columns = np.nonzero(mask)
        inside = shape(transform_geom("EPSG:4326", dataset.crs, made["geometry"])).buffer(3 * dataset.res[0])
        assert contains_xy(inside, *(transform @ (columns + 0.5, rows + 0.5))).all()
        data = mask.sum() * dataset.res[0] ** 2
        assert data * 0.97 < shape(transform_geom("EPSG:4326", dataset.crs, made["geometry"])).area < data * 1.2
        assert transform_bounds(dataset.crs, "EPSG:4326", *valid_pixels(main).bounds) == pytest.approx(
            made["bbox"], abs=0.02
        )


def test_a_pair_is_of_both_its_dates(hyp3_folders):
    about = checked(create_item(hyp3_folders["scenes"]))["properties"]
    assert (about["start_datetime"], about["end_datetime"]) == ("2015-05-04T12:02:17Z", "2015-06-21T12:02:32Z")
    assert about["datetime"] == "2015-05-28T12:02:24Z"
    assert about["sat:orbit_state"] in ("ascending", "descending")
    assert (about["sar:looks_range"], about["sar:looks_azimuth"]) == (20, 4)
    bursts = checked(create_item(hyp3_folders["burst"]))["properties"]
    assert (bursts["start_datetime"], bursts["end_datetime"]) == ("2020-06-04T02:23:12Z", "2020-06-16T02:23:13Z")
    assert "with ISCE2" in bursts["processing:lineage"] and "with GAMMA" in about["processing:lineage"]


def test_without_the_package_the_name_tells_the_days(hyp3_folders, tmp_path):
    (raster,) = hyp3_folders["burst"].glob("*_unw_phase.tif")
    (picture,) = hyp3_folders["burst"].glob("*_unw_phase.png")
    for file in (raster, picture):
        shutil.copy(file, tmp_path)
    about = checked(create_item(tmp_path))["properties"]
    assert (about["start_datetime"], about["end_datetime"]) == ("2020-06-04T00:00:00Z", "2020-06-16T23:59:59Z")


@pytest.mark.parametrize("kind", ["rtc", "burst", "water"])
def test_a_package_is_described_as_its_prefix_is(hyp3_folders, kind):
    packed, loose = (checked(create_item(s)) for s in (package(hyp3_folders[kind]), hyp3_folders[kind]))
    assert packed["geometry"] == loose["geometry"]
    assert packed["assets"]["package"]["href"] == str(package(hyp3_folders[kind]))
    inside = packed["assets"]["unw_phase" if kind == "burst" else "VV"]["href"]
    assert inside.startswith("zip:///") and rasterio.open(inside).crs
    assert {k for k in loose["assets"] if "thumbnail" not in k} >= set(packed["assets"])


def test_water_maps_are_other_items_than_what_they_are_made_of(hyp3_folders):
    folder = hyp3_folders["water"]
    made, rtc = checked(create_item(folder)), checked(create_item(package(folder)))
    floods = checked(create_item(next(folder.glob("*_FM.zip"))))
    assert made["id"] == f"{rtc['id']}_WM" and floods["id"] == f"{rtc['id']}_FM"
    assert (made["properties"]["product:type"], rtc["properties"]["product:type"]) == ("WATER_MAP", "RTC_GAMMA")
    assert made["assets"]["WM_HAND"]["unit"] == made["assets"]["FM_iterative_WaterDepth"]["unit"] == "m"


def test_velocities(hyp3_folders):
    made = checked(create_item(hyp3_folders["ice"]))
    about, asset = made["properties"], made["assets"]["velocity"]
    assert (about["start_datetime"], about["end_datetime"]) == ("2020-01-05T15:22:59Z", "2020-03-15T15:22:59Z")
    assert [band["name"] for band in asset["bands"]] == ["v", "vx", "vy", "v_error"]
    with rasterio.open(f"netcdf:{asset['href']}:v") as dataset:
        assert about["proj:code"] == f"EPSG:{dataset.crs.to_epsg()}"
        assert about["proj:bbox"] == pytest.approx(list(dataset.bounds))
        assert about["proj:shape"] == list(dataset.shape)


def test_assets_are_where_they_will_be(hyp3_folders):
    made = checked(create_item(hyp3_folders["rtc"], href="s3://bucket/jobs/1/"))
    assert made["assets"]["VV"]["href"] == f"s3://bucket/jobs/1/{made['id']}_VV.tif"
    assert made["assets"]["ls_map"]["href"].startswith(f"zip+s3://bucket/jobs/1/{made['id']}.zip!{made['id']}/")
    made = checked(create_item(hyp3_folders["rtc"], href=lambda path: f"https://files.example/{path}?x"))
    assert made["assets"]["VV"]["href"] == f"https://files.example/{made['id']}_VV.tif?x"


def test_several_products_in_one_folder(hyp3_folders, tmp_path):
    for kind in ("rtc", "burst"):
        shutil.copy(package(hyp3_folders[kind]), tmp_path)
    with pytest.raises(Rejected, match=r"files of 2 products \(S1A?_.*one, by its own name"):
        create_item(tmp_path)


def test_a_product_among_others_by_its_name(hyp3_folders, tmp_path):
    """HyP3's files may lie beside those of other products: the address then ends in the product's name."""
    for kind in ("rtc", "burst"):
        shutil.copytree(hyp3_folders[kind], tmp_path, dirs_exist_ok=True)
    alone = checked(create_item(hyp3_folders["rtc"], href="s3://bucket/all"))
    assert checked(create_item(tmp_path / alone["id"], href=f"s3://bucket/all/{alone['id']}")) == alone


def test_a_folder_with_a_blank_in_its_name(hyp3_folders, tmp_path):
    folder = tmp_path / "my products"
    shutil.copytree(hyp3_folders["rtc"], folder)
    href = checked(create_item(folder))["assets"]["VV"]["href"]
    assert href.startswith("file:///") and "my%20products" in href


# --- SAFE ---


@pytest.mark.parametrize("name", [GRD, L1C, OLCI])
def test_items_of_safe_say_what_the_manifest_says(safes, name):
    (root,) = (path for path in safes.glob(f"{name}.S*") if path.is_dir())
    made = checked(create_item(root, collection="safe"))
    assert made["id"] == name
    assert shape(made["geometry"]).normalize().equals_exact(shape(safe.footprint(root)).normalize(), 1e-6)
    manifest = next((root / m).read_text() for m in safe.MANIFESTS if (root / m).exists())
    assert made["properties"]["start_datetime" if name != L1C else "datetime"][:19] in manifest
    listed = {member.path: member for member in safe.members(root)}
    for key, asset in made["assets"].items():
        path = Path(asset["href"])
        assert path.stat().st_size == asset["file:size"]
        if key != "manifest":
            assert asset["file:checksum"].endswith(listed[path.relative_to(root).as_posix()].checksum)


def test_values_of_the_three_missions(safes):
    one, two, three = (checked(create_item(next(safes.glob(f"{name}.S*"))))["properties"] for name in (GRD, L1C, OLCI))
    assert (one["platform"], one["product:type"], one["sar:polarizations"]) == (
        "sentinel-1a",
        "IW_GRDH_1S",
        ["VV", "VH"],
    )
    assert (one["sat:absolute_orbit"], one["sat:relative_orbit"]) == (50261, (50261 - 73) % 175 + 1)
    assert (two["grid:code"], two["proj:code"], two["processing:level"]) == ("MGRS-47VLH", "EPSG:32647", "L1C")
    assert 0 <= two["eo:cloud_cover"] <= 100 and two["sat:relative_orbit"] == 19
    assert (three["product:type"], three["instruments"], three["sat:relative_orbit"]) == ("OL_1_ERR___", ["olci"], 207)


def test_a_zip_file_of_a_safe_product(safes):
    made = checked(create_item(safes / f"{L2A}.zip"))
    assert made["id"] == L2A and made["properties"]["product:type"] == "S2MSI2A"
    assert made["assets"]["B04_10m"]["bands"][0]["eo:common_name"] == "red"
    with rasterio.open(made["assets"]["B04_10m"]["href"]) as dataset:
        assert f"EPSG:{dataset.crs.to_epsg()}" == made["properties"]["proj:code"]


def test_a_tile_on_the_antimeridian(safes):
    made = checked(create_item(safes / f"{DATE_LINE}.SAFE"))
    west, _, east, _ = made["bbox"]
    assert made["geometry"]["type"] == "MultiPolygon" and west > 179 and east < -178
    places_of = get_coordinates(shape(made["geometry"]))
    assert all(abs(longitude) > 178 for longitude, _ in places_of)  # none goes round the earth
    whole = get_coordinates(shape(safe.footprint(safes / f"{DATE_LINE}.SAFE")))
    unwrapped = Polygon([(longitude % 360, latitude) for longitude, latitude in whole])
    assert shape(made["geometry"]).area == pytest.approx(unwrapped.area, rel=1e-4)


# --- rasters ---


def write_raster(path: Path, crs: str, left: float, top: float, step: float, data: np.ndarray, **tags) -> Path:
    profile = {"driver": "GTiff", "dtype": data.dtype, "count": 1, "height": data.shape[0], "width": data.shape[1]}
    with rasterio.open(path, "w", crs=crs, transform=from_origin(left, top, step, step), nodata=0, **profile) as to:
        to.write(data, 1)
        to.update_tags(**tags)
    return path


def test_any_raster(tmp_path):
    data = np.zeros((60, 80), "f4")
    data[10:30, 20:70] = 1
    path = write_raster(tmp_path / "dem_2024-05-31.tif", "EPSG:32633", 500000, 5200000, 100, data)
    made = checked(create_item(path))
    inside = transform_bounds("EPSG:32633", "EPSG:4326", 502000, 5197000, 507000, 5199000)
    assert made["bbox"] == pytest.approx(inside, abs=1e-5)
    assert made["properties"]["datetime"] == "2024-05-31T00:00:00Z"
    assert made["assets"]["data"] == {
        "href": str(path),
        "title": path.name,
        "type": "image/tiff; application=geotiff",
        "roles": ["data"],
        "data_type": "float32",
        "nodata": 0,
        "raster:spatial_resolution": 100,
    }


@pytest.mark.parametrize(
    ("name", "options", "tags", "times"),
    [
        ("a", {"datetime": "2024-05-31"}, {}, ["2024-05-31T00:00:00Z"]),
        ("a", {"datetime": "2024-05-31T00:30:00+02:00"}, {}, ["2024-05-30T22:30:00Z"]),
        ("a", {}, {"TIFFTAG_DATETIME": "2024:05:31 10:11:12"}, ["2024-05-31T10:11:12Z"]),
        ("x_20240531T101112_y", {}, {}, ["2024-05-31T10:11:12Z"]),
        ("m_20240101_20240131", {}, {}, ["2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z", "2024-01-31T00:00:00Z"]),
    ],
)
def test_when_a_raster_was_taken(tmp_path, name, options, tags, times):
    path = write_raster(tmp_path / f"{name}.tif", "EPSG:32633", 500000, 5200000, 100, np.ones((4, 4), "u1"), **tags)
    about = checked(create_item(path, **options))["properties"]
    keys = ("datetime", "start_datetime", "end_datetime")
    assert [about[key] for key in keys if key in about] == times


def test_a_raster_without_a_date_a_place_or_a_sense(tmp_path):
    path = write_raster(tmp_path / "a.tif", "EPSG:32633", 500000, 5200000, 100, np.ones((4, 4), "u1"))
    ways = r"YYYYMMDD, .*YYYYMMDDTHHMMSS.*TIFFTAG_DATETIME.*create_item\(\.\.\., datetime='2024-05-31'\)"
    with pytest.raises(Rejected, match=rf"a: neither its tags nor its name .*{ways}"):
        create_item(path)
    with pytest.raises(Rejected, match="'soon' is no time"):
        create_item(path, datetime="soon")
    nowhere = write_raster(tmp_path / "b_20240531.tif", "", 5, 5, 2, np.ones((4, 4), "u1"))
    with pytest.raises(Rejected, match="no coordinate reference system"):
        create_item(nowhere)
    shape_of = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": 4, "width": 4}
    with pytest.warns(NotGeoreferencedWarning), rasterio.open(tmp_path / "d_20240531.tif", "w", **shape_of):
        pass
    with warnings.catch_warnings(action="error"), pytest.raises(Rejected, match="no coordinate reference system"):
        create_item(tmp_path / "d_20240531.tif")
    (tmp_path / "c_20240531.tif").write_bytes(path.read_bytes()[:100])
    with pytest.raises(Rejected, match="cannot be read as a raster"):
        create_item(tmp_path / "c_20240531.tif")


def test_rasters_across_the_antimeridian_and_the_pole(tmp_path):
    data = np.ones((100, 300), "u1")
    made = checked(create_item(write_raster(tmp_path / "a_20240531.tif", "EPSG:32660", 6e5, 5.1e6, 1e3, data)))
    west, _, east, _ = made["bbox"]
    assert (made["geometry"]["type"], west > 178, east < -177) == ("MultiPolygon", True, True)
    pole = write_raster(tmp_path / "b_20240531.tif", "EPSG:3413", -1.5e5, 5e4, 1e3, data)
    made = checked(create_item(pole))
    assert (made["bbox"][0], *made["bbox"][2:]) == (-180, 180, 90)
    world = write_raster(tmp_path / "c_20240531.tif", "EPSG:4326", -180, 90, 1.2, np.ones((150, 300), "u1"))
    assert checked(create_item(world))["bbox"] == [-180, -90, 180, 90]


# --- Zarr ---

ZARR = "S02MSIL2A_20230815T095031_00000_A0079_TE8E"
SQUARE = {"type": "Polygon", "coordinates": [[[13.0, 47.0], [14.0, 47.0], [14.0, 48.0], [13.0, 48.0], [13.0, 47.0]]]}
DISCOVERY = {
    "type": "Feature",
    "geometry": SQUARE,
    "bbox": [14.0, 47.0, 13.0, 48.0],
    "properties": {
        "datetime": "2023-08-15T09:50:31.024000Z",
        "platform": "sentinel-2a",
        "gsd": "10",
        "product:type": "S02MSIL2A",
        "eo:cloud_cover": 13.3,
        "eo:snow_cover": None,
    },
}


def write_zarr(folder: Path, attributes: dict) -> Path:
    root = folder / f"{ZARR}.zarr"
    root.mkdir()
    content = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (root / "zarr.json").write_text(json.dumps(content))
    return root


def test_a_zarr_that_eopf_made(tmp_path):
    made = checked(create_item(write_zarr(tmp_path, {"stac_discovery": DISCOVERY})))
    assert (made["id"], made["bbox"], made["geometry"]) == (ZARR, [13, 47, 14, 48], SQUARE)
    assert made["properties"]["gsd"] == 10 and "eo:snow_cover" not in made["properties"]
    assert made["assets"][ZARR]["href"] == str(tmp_path / f"{ZARR}.zarr")


def test_the_item_beside_a_zarr_is_the_one(tmp_path):
    root = write_zarr(tmp_path, {"stac_discovery": DISCOVERY})
    noted = checked(create_item(root)) | {"links": [{"rel": "derived_from", "href": "s3://bucket/x.SAFE"}]}
    (tmp_path / f"{ZARR}.json").write_text(json.dumps(noted))
    assert checked(create_item(root))["links"] == noted["links"]
    moved = checked(create_item(root, href="s3://mine/a.zarr"))
    assert moved["assets"][ZARR]["href"] == "s3://mine/a.zarr"
    (tmp_path / f"{ZARR}.json").write_text('{"id": "other"}')
    assert checked(create_item(root))["links"] == []


def test_a_zarr_that_tells_too_little(tmp_path):
    with pytest.raises(Rejected, match=r"no product:type"):
        create_item(write_zarr(tmp_path, {"title": "mine"}))
    with pytest.raises(Rejected, match="no Zarr at"):
        create_item(tmp_path / "none.zarr")


# --- in S3 ---


def test_what_is_in_a_bucket(settings, s3, hyp3_folders, safes, tmp_path):
    """The same items as of the same files on a disk, but for the addresses; without reading the rasters as a whole."""
    objectstore.ensure_bucket(s3, "my-products", None, create=True)
    zarr = write_zarr(tmp_path, {"stac_discovery": DISCOVERY})
    for source in (hyp3_folders["rtc"], safes / f"{L2A}.zip", safes / f"{GRD}.SAFE", zarr):
        for file in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if file.is_file():
                s3.upload_file(str(file), "my-products", f"in/{file.relative_to(source.parent).as_posix()}")
        there = create_item(f"s3://my-products/in/{source.name}", settings=settings)
        here = create_item(source, href=f"s3://my-products/in/{source.name}")
        assert checked(there) == checked(here)
        assert all("s3://my-products/in/" in asset.href for asset in there.assets.values())
    rtc = create_item(hyp3_folders["rtc"], href="s3://my-products/in/rtc")
    assert checked(create_item(f"s3://my-products/in/rtc/{rtc.id}", settings=settings)) == checked(rtc)
    with pytest.raises(Rejected, match=r"no file at s3://my-products/in/none"):
        create_item("s3://my-products/in/none", settings=settings)
    with pytest.raises(Rejected, match=r"s3://not-there/x cannot be read: NoSuchBucket"):
        create_item("s3://not-there/x", settings=settings)


def test_s3_needs_settings():
    with pytest.raises(NotConfigured, match="give the settings"):
        create_item("s3://bucket/x.tif")


def test_an_object_is_read_by_ranges(settings, s3):
    objectstore.ensure_bucket(s3, "my-products", None, create=True)
    body = bytes(range(256)) * 1000
    s3.put_object(Bucket="my-products", Key="a/b.bin", Body=body)
    with places.find("s3://my-products/a/b.bin", settings).open("b.bin") as file:
        assert file.seek(-3, io.SEEK_END) == len(body) - 3 and file.read() == body[-3:]
        file.seek(70_000)
        assert file.read(200_000) == body[70_000:] and file.read(1) == b""


# --- what is none of these ---


def test_sources_that_are_of_no_kind(tmp_path):
    with pytest.raises(Rejected, match=r"There is no(thing| file) at .*none\.tif"):
        create_item(tmp_path / "none.tif")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(Rejected, match=r"notes\.txt.*no kind that is known.*cog, hyp3, safe, zarr"):
        create_item(tmp_path)
    with pytest.raises(Rejected, match="'dem' is no kind"):
        create_item(tmp_path, kind="dem")
    with pytest.raises(Rejected, match="Download it first"):
        create_item("https://files.example/notes?token=x")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04broken", None])
def test_packages_that_are_broken(hyp3_folders, tmp_path, content):
    whole = package(hyp3_folders["rtc"])
    (tmp_path / whole.name).write_bytes(whole.read_bytes()[:2000] if content is None else content)
    with pytest.raises(Rejected, match="no whole zip file"):
        create_item(tmp_path / whole.name)


def test_a_member_that_is_damaged(safes, tmp_path):
    path = tmp_path / f"{L2A}.zip"
    with zipfile.ZipFile(safes / f"{L2A}.zip") as archive:
        at = archive.getinfo(f"{L2A}.SAFE/manifest.safe").header_offset + 300
    body = bytearray((safes / f"{L2A}.zip").read_bytes())
    body[at : at + 20] = bytes(20)
    path.write_bytes(body)
    with pytest.raises(Rejected, match=r"manifest\.safe is damaged"):
        create_item(path)


def test_a_manifest_that_is_none(safes, tmp_path):
    root = tmp_path / f"{GRD}.SAFE"
    root.mkdir()
    for content, says in ((b"<xfdu", "cannot be read"), (b"<xfdu/>", "no footprint")):
        (root / "manifest.safe").write_bytes(content)
        with pytest.raises(Rejected, match=says):
            create_item(root)
    (root / "manifest.safe").rename(root / "other.xml")
    with pytest.raises(Rejected, match="no manifest"):
        create_item(root)
    (tmp_path / f"{GRD}.tar.gz").write_bytes(b"x")
    with pytest.raises(Rejected, match="Unpack it first"):
        create_item(tmp_path / f"{GRD}.tar.gz")


# --- kinds of one's own, and stactools ---


@pytest.fixture
def own_kinds(monkeypatch):
    kinds()
    monkeypatch.setattr(generating, "_kinds", dict(generating._kinds))


def an_item(name: str, **changes) -> dict:
    return generating.item(name, SQUARE, {"datetime": "2024-05-31T00:00:00Z"}, {}) | changes


def test_a_kind_of_ones_own(own_kinds, tmp_path):
    @register("notes", lambda source: source.endswith(".txt"))
    def create(source, *, href, settings, shout=False):
        return an_item(Path(source).stem.upper() if shout else Path(source).stem)

    assert kinds() == ["cog", "hyp3", "notes", "safe", "zarr"]
    assert create_item(tmp_path / "one.txt", shout=True).id == "ONE"
    assert create_item("two", kind="notes").id == "two"


def test_ones_own_kind_comes_before_those_that_are_here(own_kinds, tmp_path):
    @register("dem", lambda source: source.endswith("_dem.tif"))
    def create(source, **_):
        return an_item("height")

    assert create_item(tmp_path / "alps_dem.tif").id == "height"


def test_a_kind_that_makes_no_valid_item(own_kinds):
    @register("bad", lambda source: source.endswith(".bad"))
    def create(source, **_):
        return an_item("one", bbox=[1], assets={"a": {}})

    with pytest.raises(Rejected, match=r"one\.bad would not be valid STAC \(2 problems\)"):
        create_item("one.bad")


def test_stactools_that_is_installed(monkeypatch, tmp_path):
    module = ModuleType("stactools.fake_one.stac")
    module.create_item = lambda href, **options: pystac.Item.from_dict(
        an_item("one", assets={"data": {"href": f"{href}/a.tif"}}) | {"stac_extensions": ["https://example.org/x.json"]}
    )
    for name in ("stactools", "stactools.fake_one"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "stactools.fake_one.stac", module)
    made = create_item("/data/product", kind="stactools:fake-one", href="s3://bucket/product", collection="c")
    assert made.assets["data"].href == "s3://bucket/product/a.tif" and made.collection_id == "c"


@pytest.fixture
def fake_uv(monkeypatch, tmp_path):
    """A `uv` that runs Python with a tiny package of stactools, and notes what it was asked."""
    package = tmp_path / "lib" / "stactools" / "tiny"
    package.mkdir(parents=True)
    (package / "stac.py").write_text(
        "class Item:\n    def __init__(self, content): self.content = content\n"
        "    def to_dict(self, **_): return self.content\n"
        "def create_item(href, fail=False):\n    print('reading')\n"
        "    if fail: raise ValueError('no such product')\n"
        f"    return Item({an_item('tiny')!r} | {{'assets': {{'data': {{'href': href}}}}}})\n"
    )
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(
        f'#!/bin/sh\necho "$@" | head -1 > {tmp_path}/asked\nwhile [ "$1" != python ]; do shift; done\nshift\n'
        f'PYTHONPATH={tmp_path}/lib exec {sys.executable} -S "$@"\n'
    )
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(uv.parent), prepend=":")
    monkeypatch.setattr(of_stactools.sys, "executable", str(tmp_path / "none"))
    return tmp_path / "asked"


def test_stactools_apart(fake_uv):
    made = create_item("/data/p.zip", kind="stactools:tiny")
    assert (made.id, made.assets["data"].href) == ("tiny", "/data/p.zip")
    assert fake_uv.read_text().startswith("run --isolated --no-project --quiet --with stactools-tiny python -c")
    with pytest.raises(Rejected, match=r"stactools-tiny made no item of /data/p\.zip: ValueError: no such product"):
        create_item("/data/p.zip", kind="stactools:tiny", fail=True)


def test_stactools_that_takes_for_ever(fake_uv, monkeypatch):
    monkeypatch.setattr(of_stactools, "TIMEOUT", 0.001)
    with pytest.raises(TimedOut, match="made no item"):
        create_item("/data/p.zip", kind="stactools:tiny")


def test_stactools_that_cannot_be_had(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(of_stactools.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(NotConfigured, match="pip install uv"):
        create_item("x", kind="stactools:sentinel2")
    for name in ("Sentinel2", "a; rm", "", "../x"):
        with pytest.raises(Rejected, match="no name of a package"):
            create_item("x", kind=f"stactools:{name}")


def test_every_extension_that_is_used_here_has_its_schema():
    assert all(schemas.known(uri) for uri in stac.EXTENSIONS.values())
