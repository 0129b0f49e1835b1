"""The sandbox's SAFE products: whole by their manifests, true by their metadata, readable, and believable pictures."""

import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.io import MemoryFile
from rasterio.warp import transform_bounds

from helpers import safe
from helpers.sandbox.products import granule_footprint
from helpers.sandbox.safe_products import product_footprint, safe_archive, safe_files, safe_zip, write_safe

GRD = "S1A_IW_GRDH_1SDV_20230910T054256_20230910T054321_050261_060CD9_BF21"
L1C = "S2A_MSIL1C_20230910T050701_N0509_R019_T47VLH_20230910T074321"
L2A = "S2A_MSIL2A_20230910T050701_N0509_R019_T47VLH_20230910T094321"
EFR = "S3A_OL_1_EFR____20230910T050701_20230910T051001_20230910T074321_0179_103_090_1980_PS1_O_NR_003"
ERR = "S3B_OL_1_ERR____20210902T054142_20210902T062554_20210903T103126_2652_056_262______LN1_O_NT_002"
MORE = [
    "S1C_IW_GRDH_1SSH_20250910T174256_20250910T174325_004261_060CD9_0000",
    "S1A_IW_GRDH_1SDH_20230910T235950_20230911T000015_050272_0A1B2C_BF21",
    "S2B_MSIL1C_20210310T140701_N0209_R067_T21JUK_20210310T160000",
    "S2C_MSIL2A_20250710T100701_N0511_R022_T32TQM_20250710T120000",
    "S2B_MSIL2A_20231217T221659_N0510_R001_T01CDH_20231217T235959",  # near the antimeridian, and in the south
]
SIZES = {"10": 240, "20": 120, "60": 40}
L1C_LAYERS = {"B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12", "TCI"}
COARSE = {"B01", "B02", "B03", "B04", "B05", "B06", "B07", "B8A", "B11", "B12", "TCI", "AOT", "WVP", "SCL"}
L2A_LAYERS = {"10": {"B02", "B03", "B04", "B08", "TCI", "AOT", "WVP"}, "20": COARSE, "60": COARSE | {"B09"}}


@cache
def files(name: str, pixels: int = 240) -> dict[str, bytes]:
    return safe_files(name, pixels)


def one(name: str, pattern: str) -> bytes:
    (path,) = [path for path in files(name) if fnmatch(path, pattern)]
    return files(name)[path]


def xml(name: str, pattern: str) -> ElementTree.Element:
    return ElementTree.fromstring(one(name, pattern))


def text(name: str, pattern: str, tag: str) -> str:
    found = xml(name, pattern).findtext(f".//{{*}}{tag}")
    assert found is not None, tag
    return found


def open_raster(path: str, body: bytes) -> tuple[dict, np.ndarray]:
    with MemoryFile(body, filename=Path(path).name) as memory, memory.open() as dataset:
        return dataset.profile | {"gcps": dataset.gcps}, dataset.read()


def layer(name: str, band: str) -> np.ndarray:
    """One band, as reflectance or digital numbers; without the offset."""
    return open_raster("x.jp2", one(name, f"*/IMG_DATA/*_{band}.jp2"))[1].astype(float) - 1000


def unpacked(name: str, folder: Path) -> Path:
    for path, body in files(name).items():
        target = folder / f"{name}.SAFE" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(body)
    return folder / f"{name}.SAFE"


def manifest_ring(name: str) -> list[list[float]]:
    numbers = [float(n) for n in re.split(r"[\s,]+", text(name, "manifest.safe", "coordinates").strip())]
    ring = [[lon, lat] for lat, lon in zip(numbers[::2], numbers[1::2], strict=True)]
    return ring if ring[0] == ring[-1] else [*ring, ring[0]]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


# the archive


@pytest.mark.parametrize("name", [GRD, L1C, L2A, EFR])
def test_the_zip_holds_one_folder_named_like_the_product_with_its_files(name: str):
    root = name + (".SEN3" if name == EFR else ".SAFE")
    archive = zipfile.ZipFile(io.BytesIO(safe_zip(root, 60)))
    assert archive.testzip() is None
    assert {m.date_time for m in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    content = {m.removeprefix(f"{root}/"): archive.read(m) for m in archive.namelist()}
    assert content == files(name, 60)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
def test_the_tar_file_holds_the_same(suffix: str):
    content = safe_archive(EFR, 60, suffix)
    assert (content[:2] == b"\x1f\x8b") == (suffix != ".tar")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        found = {m.name: archive.extractfile(m).read() for m in archive}
        assert {(m.mtime, m.uid, m.uname) for m in archive} == {(0, 0, "")}
    assert found == {f"{EFR}.SEN3/{path}": body for path, body in files(EFR, 60).items()}


def test_other_archives_are_not_made():
    with pytest.raises(ValueError, match=r"'\.rar': archives are \.zip, \.tar, \.tar\.gz or \.tgz"):
        safe_archive(GRD, 60, ".rar")


def test_another_process_makes_the_same_bytes():
    code = "import hashlib; from helpers.sandbox.safe_products import safe_archive as a"
    code += f"; print(*(hashlib.sha256(a(name, 60, '.tgz')).hexdigest() for name in {[GRD, L2A, EFR]}))"
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == [
        hashlib.sha256(safe_archive(name, 60, ".tgz")).hexdigest() for name in (GRD, L2A, EFR)
    ]


@pytest.mark.parametrize("name", [GRD, L1C, L2A, EFR])
def test_a_product_of_usual_size_is_small(name: str):
    assert 0.4e6 < len(safe_zip(name)) < 3e6


@pytest.mark.parametrize("name", [GRD, L1C, EFR])
def test_a_product_on_the_disk_has_the_same_files(tmp_path: Path, name: str):
    root = write_safe(tmp_path / "new", name, 60)
    assert root.name == name + (".SEN3" if name == EFR else ".SAFE")
    assert {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()} == files(name, 60)
    assert safe.verify(root) == [] and list(root.parent.iterdir()) == [root]
    with pytest.raises(FileExistsError, match="is there already"):
        write_safe(tmp_path / "new", name, 60)


def test_a_product_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("helpers.sandbox.safe_sentinel1._quicklook", lambda picture: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_safe(tmp_path, GRD, 60)
    assert list(tmp_path.iterdir()) == []


def test_large_pictures_are_made_in_strips_and_show_no_seams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The same product in one piece and in strips of 50 rows; Sentinel-1 has other speckle then."""

    def product(folder: str, name: str) -> Path:
        return write_safe(tmp_path / folder, name, 240)

    whole = {name: product("whole", name) for name in (GRD, L1C, EFR)}
    for module in ("safe_sentinel1", "safe_sentinel2", "safe_sentinel3"):
        monkeypatch.setattr(
            f"helpers.sandbox.{module}.strips", lambda height: [(n, min(n + 50, height)) for n in range(0, height, 50)]
        )
    strips = {name: product("strips", name) for name in (GRD, L1C, EFR)}
    assert safe.verify(strips[EFR]) == safe.verify(strips[L1C]) == safe.verify(strips[GRD]) == []
    assert sorted(p.name for p in strips[GRD].rglob("*")) == sorted(p.name for p in whole[GRD].rglob("*"))
    for name, pattern in ((L1C, "GRANULE/*/*/*.jp2"), (EFR, "*.nc")):
        for path in whole[name].glob(pattern):
            assert path.read_bytes() == (strips[name] / path.relative_to(whole[name])).read_bytes(), path.name
    images = [open_raster("x", next(p[GRD].glob("measurement/*-vv-*")).read_bytes())[1][0] for p in (whole, strips)]
    now, then = (np.log(image.astype(float)) for image in images)
    assert correlation(now, then) > 0.8
    jumps = np.abs(np.diff(then, axis=0)).mean(axis=1)
    assert jumps[49::50].mean() < 1.5 * jumps.mean()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "S1A_IW_RAW__0SDV_20230910T054256_20230910T054321_050261_060CD9_BF21",
        "S1A_EW_GRDM_1SDH_20230910T054256_20230910T054321_050261_060CD9_BF21",
        "S2A_MSIL1C_20230910T050701_N0509_R019_T61VLH_20230910T074321",  # there are 60 zones
        EFR.replace("OL_1_EFR", "OL_2_LFR"),
        L1C + "/../x",
    ],
)
def test_a_name_that_is_no_known_product_is_refused_with_the_kinds_there_are(name: str):
    for make in (safe_files, product_footprint):
        with pytest.raises(ValueError, match=r"Sentinel-1 IW GRDH .* Sentinel-2 L1C and L2A .* Sentinel-3 OLCI L1"):
            make(name)


def test_slc_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"; SLC is not made: even a small one .* takes EOPF minutes$"):
        safe_files(GRD.replace("GRDH", "SLC_"))
    with pytest.raises(ValueError, match=r"by their full names$"):
        safe_files(GRD.replace("GRDH", "GRDX"))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (L1C.replace("20230910T050701", "20230931T050701"), "impossible time"),
        (GRD.replace("T054321", "T055321"), "within a minute"),
        (GRD.replace("T054321", "T054256"), "after it begins"),
        (EFR.replace("T051001", "T071001"), "within an hour"),
        (EFR.replace("T051001", "T050701"), "after it begins"),
    ],
)
def test_impossible_times_are_refused(name: str, problem: str):
    with pytest.raises(ValueError, match=problem):
        safe_files(name)


@pytest.mark.parametrize(("name", "pixels"), [(L1C, 100), (L1C, 54), (GRD, 10), (EFR, 59)])
def test_sizes_that_do_not_fit_are_refused(name: str, pixels: int):
    with pytest.raises(ValueError, match=f"pixels={pixels}"):
        safe_files(name, pixels)


# what every product has


@pytest.mark.parametrize("name", [GRD, L1C, L2A, EFR, ERR, *MORE])
def test_the_manifest_lists_every_file_with_its_size_and_checksum(name: str):
    listed, ids = {}, []
    manifest = "xfdumanifest.xml" if name.startswith("S3") else "manifest.safe"
    algorithm, digest = ("SHA3-256", hashlib.sha3_256) if name.startswith("S2") else ("MD5", hashlib.md5)
    for item in xml(name, manifest).iterfind(".//dataObject"):
        stream = item.find("byteStream")
        path = stream.find("fileLocation").get("href").removeprefix("./")
        assert stream.find("checksum").get("checksumName") == algorithm
        listed[path] = int(stream.get("size")), stream.findtext("checksum")
        ids.append(item.get("ID"))
    content = {path: body for path, body in files(name).items() if path != manifest}
    assert listed == {path: (len(body), digest(body).hexdigest()) for path, body in content.items()}
    pointers = {p.get("dataObjectID") for p in xml(name, manifest).iter("dataObjectPointer")}
    assert len(ids) == len(set(ids)) and set(ids) == pointers


@pytest.mark.parametrize("name", [GRD, L1C, L2A, *MORE])
def test_place_and_time_are_those_that_the_name_tells(name: str):
    ring = granule_footprint(name)["coordinates"][0]
    assert manifest_ring(name) == ring
    assert re.sub(r"\D", "", text(name, "manifest.safe", "startTime")).startswith(
        re.sub(r"\D", "", re.search(r"\d{8}T\d{6}", name)[0])
    )
    assert text(name, "manifest.safe", "number") == name[1:3] if name.startswith("S2") else name[2]
    if name.startswith("S2"):
        numbers = text(name, "MTD_MSIL*.xml", "EXT_POS_LIST").split()
        assert [[float(lon), float(lat)] for lat, lon in zip(numbers[::2], numbers[1::2], strict=True)] == ring


@pytest.mark.parametrize("name", [GRD, L1C, L2A, *MORE])
def test_every_xml_file_is_well_formed_and_every_picture_opens(name: str):
    rasters = 0
    for path, body in files(name).items():
        if path.endswith((".xml", ".safe", ".xsd", ".kml")):
            ElementTree.fromstring(body)
        elif path.endswith((".png", ".jpg")):
            assert min(Image.open(io.BytesIO(body)).convert("RGB").size) >= 60
        elif path.endswith((".jp2", ".tiff")):
            rasters += 1
            assert open_raster(path, body)[1].size
    assert rasters == (1 + (name[14] == "D") if name.startswith("S1") else {"L1C": 42, "L2A": 68}[name[7:10]])


# Sentinel-2


@pytest.mark.parametrize("name", [L1C, *MORE[2:]])
def test_sizes_and_places_of_a_granule_are_those_of_its_images(name: str):
    granule = xml(name, "GRANULE/*/MTD_TL.xml")
    crs = granule.findtext(".//HORIZONTAL_CS_CODE")
    sizes = {size.get("resolution"): int(size.findtext("NROWS")) for size in granule.iter("Size")}
    assert sizes == SIZES
    corners = {
        place.get("resolution"): tuple(float(place.findtext(tag)) for tag in ("ULX", "ULY", "XDIM", "YDIM"))
        for place in granule.iter("Geoposition")
    }
    for path, body in files(name).items():
        if not path.endswith(".jp2") or path.endswith("_PVI.jp2"):
            continue
        profile, _ = open_raster(path, body)
        resolution = {240: "10", 120: "20", 40: "60"}[profile["width"]]
        assert profile["height"] == profile["width"] and profile["crs"].to_string() == crs
        west, north, step, down = corners[resolution]
        assert profile["transform"].to_gdal() == pytest.approx((west, step, 0, north, 0, down))
        if found := re.search(r"_(\d0)m\.jp2", path):
            assert found[1] == resolution
    (west, north, step, _), lonlat = corners["10"], np.array(granule_footprint(name)["coordinates"][0])
    bounds = transform_bounds(crs, "EPSG:4326", west, north - 240 * step, west + 240 * step, north)
    assert bounds[1] <= lonlat[:, 1].min() + 1e-3 and bounds[3] >= lonlat[:, 1].max() - 1e-3


def test_names_are_those_of_the_real_product():
    """Folder, absolute orbit and file names as in a real product of that name."""
    real = "S2A_MSIL1C_20210713T032051_N0301_R032_T48LWP_20210713T054224"
    granule = "GRANULE/L1C_T48LWP_A031632_20210713T032054"
    assert {f"{granule}/MTD_TL.xml", f"{granule}/QI_DATA/T48LWP_20210713T032051_PVI.jp2"} <= set(files(real))
    assert {f"{granule}/IMG_DATA/T48LWP_20210713T032051_{layer}.jp2" for layer in L1C_LAYERS} <= set(files(real))
    assert {f"{granule}/AUX_DATA/AUX_ECMWFT", "MTD_MSIL1C.xml", "INSPIRE.xml"} <= set(files(real))
    assert text(real, "MTD_MSIL1C.xml", "PRODUCT_URI") == real + ".SAFE"


@pytest.mark.parametrize(
    ("name", "orbit"),
    [
        ("S2B_MSIL2A_20231217T135659_N0510_R067_T21JUK_20231217T175625", "A035414"),
        ("S2B_MSIL2A_20200709T163839_N0214_R126_T16TDM_20200709T211044", "A017455"),
    ],
)
def test_absolute_orbits_are_those_of_real_products(name: str, orbit: str):
    assert [path for path in safe_files(name, 60) if f"_{orbit}_" in path]


def test_layers_and_masks_of_both_levels_are_complete():
    images = [node.text for node in xml(L1C, "MTD_MSIL1C.xml").iter("IMAGE_FILE")]
    assert {path.rpartition("_")[2] for path in images} == L1C_LAYERS
    assert {f"{path}.jp2" for path in images} <= set(files(L1C))
    images = [node.text for node in xml(L2A, "MTD_MSIL2A.xml").iter("IMAGE_FILE")]
    assert {f"{path}.jp2" for path in images} <= set(files(L2A))
    found = {resolution: set() for resolution in L2A_LAYERS}
    for path in images:
        folder, name, end = re.search(r"/R(\d0)m/\w+_(\w{3})_(\d0)m$", path).groups()
        assert folder == end
        found[folder].add(name)
    assert found == L2A_LAYERS
    for name in (L1C, L2A):
        masks = [node.text for node in xml(name, "GRANULE/*/MTD_TL.xml").iter("MASK_FILENAME")]
        assert set(masks) == {path for path in files(name) if "/MSK_" in path}
        assert len(masks) == {L1C: 27, L2A: 31}[name]


@pytest.mark.parametrize(
    ("name", "namespace", "offset"), [(MORE[2], "psd-14", None), (L1C, "psd-14", "-1000"), (MORE[3], "psd-15", "-1000")]
)
def test_baselines_differ_in_namespace_and_offset(name: str, namespace: str, offset: str | None):
    product = xml(name, "MTD_MSIL*.xml")
    for pattern in ("MTD_MSIL*.xml", "GRANULE/*/MTD_TL.xml", "DATASTRIP/*/MTD_DS.xml"):
        assert xml(name, pattern).tag.startswith(f"{{https://{namespace}.sentinel2.eo.esa.int/PSD/")
    offsets = {node.text for tag in ("RADIO_ADD_OFFSET", "BOA_ADD_OFFSET") for node in product.iter(tag)}
    assert offsets == ({offset} if offset else set())
    darkest = layer(name, "B12" if "L1C" in name else "B12_20m").min() + 1000
    assert (darkest > 900) == bool(offset)


def test_the_sun_stands_where_it_stood_that_day():
    """Mean angles of the real product of that name: 40.928 and 37.890 degrees."""
    real = "S2A_MSIL1C_20210713T032051_N0301_R032_T48LWP_20210713T054224"
    mean = xml(real, "GRANULE/*/MTD_TL.xml").find(".//Mean_Sun_Angle")
    assert float(mean.findtext("ZENITH_ANGLE")) == pytest.approx(40.928, abs=0.1)
    assert float(mean.findtext("AZIMUTH_ANGLE")) == pytest.approx(37.890, abs=0.4)


def test_detectors_of_the_mask_have_angles_in_the_metadata():
    _, mask = open_raster("m.jp2", one(L1C, "*/MSK_DETFOO_B02.jp2"))
    granule = xml(L1C, "GRANULE/*/MTD_TL.xml")
    views = [view for view in granule.iter("Viewing_Incidence_Angles_Grids") if view.get("bandId") == "1"]
    assert {int(view.get("detectorId")) for view in views} == set(np.unique(mask).tolist())
    grids = np.array([[row.text.split() for row in view.find("Zenith").iter("VALUES")] for view in views], float)
    assert grids.shape[1:] == (23, 23)
    assert np.isfinite(grids).any(axis=0).all() and np.isnan(grids).any()
    assert np.nanmin(grids) > 0 and np.nanmax(grids) < 12


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # of the list of subdatasets
def test_gdal_knows_the_product_and_shows_its_bands(tmp_path: Path):
    for name, level, counts in ((L1C, "L1C", [4, 6, 3]), (L2A, "L2A", [6, 11, 7])):
        root = unpacked(name, tmp_path)
        with rasterio.open(root / f"MTD_MSI{level}.xml") as product:
            assert product.driver == "SENTINEL2" and product.tags()["PRODUCT_URI"] == root.name
            subdatasets = product.subdatasets
        for subdataset, count, size in zip(subdatasets, counts, SIZES.values(), strict=False):
            with rasterio.open(subdataset) as dataset:
                assert (dataset.count, dataset.width, dataset.height) == (count, size, size)
                assert dataset.read().min(axis=(1, 2)).shape == (count,)
        with rasterio.open(subdatasets[0]) as dataset:
            red = layer(name, "B04" if level == "L1C" else "B04_10m")[0] + 1000
            assert (dataset.read(1) == red).all()


def test_weather_files_are_grib_over_the_tile():
    elements = {}
    for file in ("AUX_ECMWFT", "AUX_CAMSFO"):
        with MemoryFile(one(L2A, f"*/{file}")) as memory, memory.open(driver="GRIB") as dataset:
            assert dataset.shape == (9, 9) and dataset.count == {"AUX_ECMWFT": 6, "AUX_CAMSFO": 11}[file]
            lonlat = np.array(granule_footprint(L2A)["coordinates"][0])
            middle = (dataset.bounds.left + dataset.bounds.right) / 2, (dataset.bounds.top + dataset.bounds.bottom) / 2
            assert middle == pytest.approx((lonlat.min(axis=0) + lonlat.max(axis=0)) / 2, abs=0.01)
            for index in dataset.indexes:
                times = [int(dataset.tags(index)[f"GRIB_{kind}_TIME"]) for kind in ("REF", "VALID")]
                assert times == [1694304000, 1694322000]  # the day's run at 00:00, for 05:00
                elements[file, index] = dataset.read(index)
    vapour, pressure, ozone, east, north, humidity = (elements["AUX_ECMWFT", n].mean() for n in range(1, 7))
    assert 5 < vapour < 40 and 98_000 < pressure < 104_000 and 0.005 < ozone < 0.008
    assert 0 < east < 5 and -3 < north < 0 and 20 < humidity < 100
    assert all(np.ptp(field) > 0 for field in elements.values())


def test_spectra_are_plausible():
    red, near, green, blue = (layer(L2A, f"{band}_20m") for band in ("B04", "B8A", "B03", "B02"))
    short = layer(L2A, "B11_20m")
    kinds = layer(L2A, "SCL_20m") + 1000
    water, plants, clouds = (kinds == kind for kind in (6, 4, 9))
    assert min(water.mean(), plants.mean(), clouds.mean()) > 0.02
    index = (near - red) / (near + red)
    assert index[plants].mean() > 0.4 > 0.1 > index[clouds].mean()
    assert near[water].mean() < green[water].mean() < 1500 and short[water].mean() < 300
    assert min(band[clouds].mean() for band in (red, green, blue)) > 4000
    assert near[plants].mean() > 2 * green[plants].mean() and red[plants].mean() < short[plants].mean()


def test_the_air_is_in_level_1_and_not_in_level_2():
    blue, above = layer(L2A, "B02_10m"), layer(L1C, "B02")
    dark = blue < 600
    assert above[dark].mean() > blue[dark].mean() + 400
    assert np.median(layer(L1C, "B10")) < 100
    assert text(L1C, "MTD_MSIL1C.xml", "Cloud_Coverage_Assessment") == text(
        L2A, "MTD_MSIL2A.xml", "Cloud_Coverage_Assessment"
    )


def test_shares_in_the_metadata_are_those_of_the_classification():
    kinds = layer(L2A, "SCL_20m") + 1000
    for tag, kind in (("WATER", 6), ("VEGETATION", 4), ("HIGH_PROBA_CLOUDS", 9), ("SNOW_ICE", 11)):
        told = float(text(L2A, "GRANULE/*/MTD_TL.xml", f"{tag}_PERCENTAGE"))
        assert told == pytest.approx(100 * (kinds == kind).mean(), abs=0.5), tag


def test_a_place_keeps_its_landscape_while_days_and_sizes_differ():
    later = "S2B_MSIL1C_20230925T050701_N0509_R019_T47VLH_20230925T074321"
    elsewhere = "S2A_MSIL1C_20230910T050701_N0509_R019_T47VLJ_20230910T074321"
    now, then, other = (np.log(np.clip(layer(name, "B11"), 30, 4000)) for name in (L1C, later, elsewhere))
    assert correlation(now, then) > 0.4 > abs(correlation(now, other))
    assert (now != then).mean() > 0.5
    (path,) = [path for path in files(L1C) if path.endswith("_B11.jp2") and "IMG_DATA" in path]
    large = open_raster(path, safe_files(L1C, 480)[path])[1][0].reshape(120, 2, 120, 2).mean(axis=(1, 3))
    assert correlation(large, layer(L1C, "B11")) > 0.99


# Sentinel-1


@pytest.mark.parametrize("name", [GRD, *MORE[:2]])
def test_polarisations_are_those_of_the_name_and_sizes_those_of_the_annotation(name: str):
    sides = {"DV": ["vv", "vh"], "DH": ["hh", "hv"], "SV": ["vv"], "SH": ["hh"]}[name[14:16]]
    told = [node.text.lower() for node in xml(name, "manifest.safe").iterfind(".//{*}transmitterReceiverPolarisation")]
    assert told == sides
    begin, end, orbit, take = name.lower().split("_")[4:8]
    for number, side in enumerate(sides, start=1):
        base = f"{name[:3].lower()}-iw-grd-{side}-{begin}-{end}-{orbit}-{take}-{number:03d}"
        profile, image = open_raster("x.tiff", files(name)[f"measurement/{base}.tiff"])
        annotation = ElementTree.fromstring(files(name)[f"annotation/{base}.xml"])
        size = int(annotation.findtext(".//numberOfLines")), int(annotation.findtext(".//numberOfSamples"))
        assert image.shape == (1, *size) and image.dtype == np.uint16 and max(size) == 240
        assert annotation.findtext("adsHeader/polarisation") == side.upper()
        for kind in ("calibration", "noise"):
            ElementTree.fromstring(files(name)[f"annotation/calibration/{kind}-{base}.xml"])
        points, crs = profile["gcps"]
        corners = [points[0], points[20], points[-1], points[-21]]
        assert crs.to_epsg() == 4326 and len(points) == 210
        ring = granule_footprint(name)["coordinates"][0][:4]
        assert [(p.x, p.y) for p in corners] == [pytest.approx(corner, abs=1e-5) for corner in ring]
        assert (corners[2].row, corners[2].col) == (size[0] - 1, size[1] - 1)
        mean = float(annotation.findtext("imageAnnotation//outputDataMean/re"))
        assert mean == pytest.approx(image.mean())


def test_orbit_and_direction_are_those_of_a_real_scene():
    """Manifest and annotation of the real product of that name: orbit 79 of cycle 221, heading -167.768 degrees."""
    real = "S1A_IW_GRDH_1SDV_20210119T031653_20210119T031718_036201_043ED0_8255"
    manifest = {tag: text(real, "manifest.safe", tag) for tag in ("relativeOrbitNumber", "cycleNumber", "pass")}
    assert manifest == {"relativeOrbitNumber": "79", "cycleNumber": "221", "pass": "DESCENDING"}
    assert text(real, "manifest.safe", "missionDataTakeID") == "278224"
    assert text(real, "manifest.safe", "ascendingNodeTime")[:16] == "2021-01-19T02:22"
    heading = float(text(real, "annotation/s1a-iw-grd-vv*", "platformHeading"))
    assert heading == pytest.approx(-167.768, abs=0.1)


def annotated(path: str) -> np.ndarray:
    """Numbers of all elements at a path of the annotation."""
    return np.array([float(node.text) for node in xml(GRD, "annotation/s1a-iw-grd-vv*").iterfind(path)])


def test_the_satellite_is_where_the_scene_is_seen_from():
    """The distance to the first corner is its slant range, and the view is square to the path."""
    place = [annotated(f".//geolocationGridPoint/{tag}")[0] for tag in ("latitude", "longitude", "slantRangeTime")]
    lat, lon = np.radians(place[:2])
    normal = 6378137 / np.sqrt(1 - 0.00669438 * np.sin(lat) ** 2)
    across = normal * np.cos(lat)
    corner = np.array([across * np.cos(lon), across * np.sin(lon), 0.99330562 * normal * np.sin(lat)])
    states = [[annotated(f".//orbit/{kind}/{axis}") for axis in "xyz"] for kind in ("position", "velocity")]
    position, velocity = np.array(states)[:, :, 8]  # eight times ten seconds after the first: the scene's begin
    sight = corner - position
    assert np.linalg.norm(sight) == pytest.approx(place[2] * 299792458 / 2, rel=0.005)
    assert np.linalg.norm(velocity) == pytest.approx(7590, rel=0.01)
    assert abs(sight @ velocity) / np.linalg.norm(sight) / np.linalg.norm(velocity) < 0.01
    quaternions = np.array([annotated(f".//attitude/q{n}") for n in range(4)])
    assert np.linalg.norm(quaternions, axis=0) == pytest.approx(1)


def test_ground_and_slant_range_convert_into_each_other():
    conversion = xml(GRD, "annotation/s1a-iw-grd-vv*").find(".//coordinateConversionList/*")
    to_slant, to_ground = (
        np.polynomial.Polynomial([float(c) for c in conversion.findtext(f"{kind}Coefficients").split()])
        for kind in ("grsr", "srgr")
    )
    ground = np.linspace(0, 255_000, 50)
    slant = to_slant(ground)
    assert slant[0] == pytest.approx(float(conversion.findtext("sr0")), abs=0.1)
    assert to_ground(slant - float(conversion.findtext("sr0"))) == pytest.approx(ground, abs=1)
    pixels, times = annotated(".//geolocationGridPoint/pixel"), annotated(".//geolocationGridPoint/slantRangeTime")
    spacing = annotated(".//rangePixelSpacing")[0]
    assert to_slant(pixels * spacing) == pytest.approx(times * 299792458 / 2, abs=1)


def calibrated(side: str) -> np.ndarray:
    """Sigma nought in dB, with the calibration and noise tables of the product."""
    _, image = open_raster("x.tiff", one(GRD, f"measurement/*-{side}-*"))
    tables = {}
    for kind, tag in (("calibration", "sigmaNought"), ("noise", "noiseRangeLut")):
        vector = next(
            node
            for node in xml(GRD, f"annotation/calibration/{kind}-*-{side}-*").iter()
            if node.find("pixel") is not None
        )
        columns = [int(n) for n in vector.findtext("pixel").split()]
        tables[kind] = np.interp(np.arange(image.shape[2]), columns, [float(n) for n in vector.findtext(tag).split()])
    power = (image[0].astype(float) ** 2 - tables["noise"]) / tables["calibration"] ** 2
    return 10 * np.log10(np.maximum(power, 1e-4))


def test_water_is_dark_land_is_bright_and_cross_polarisation_weaker():
    copol, cross = calibrated("vv"), calibrated("vh")
    dark, bright = np.percentile(copol, (10, 80))
    assert -26 < dark < -17 and -14 < bright < -5
    assert 4 < np.median(copol - cross) < 10
    assert (copol > cross).mean() > 0.9


def test_there_is_speckle_and_it_differs_from_day_to_day():
    later = "S1A_IW_GRDH_1SDV_20230922T054256_20230922T054321_050436_060F00_1234"
    elsewhere = "S1A_IW_GRDH_1SDV_20230911T054256_20230911T054321_050275_060F00_1234"
    images = [open_raster("x.tiff", one(name, "measurement/*-vv-*"))[1][0] for name in (GRD, later, elsewhere)]
    now, then, other = (np.log(image.astype(float)) for image in images)
    assert correlation(now, then) > 0.8 > 0.4 > abs(correlation(now, other))
    steps = np.abs(np.diff(images[0].astype(float), axis=1)) / images[0].mean()
    assert 0.05 < np.median(steps) < 0.4
    assert (images[0] != images[1]).mean() > 0.9


def test_gdal_finds_the_measurements_through_the_manifest(tmp_path: Path):
    root = unpacked(GRD, tmp_path)
    with rasterio.open(root / "manifest.safe") as product:
        assert (product.driver, product.count, len(product.gcps[0])) == ("SAFE", 2, 210)
        assert product.tags()["ORBIT_DIRECTION"] == "DESCENDING"
        bands = product.read()
    images = [open_raster("x.tiff", one(GRD, f"measurement/*-{side}-*"))[1][0] for side in ("vh", "vv")]
    assert (bands == np.array(images)).all()


def test_annotations_fit_the_schema_that_comes_along():
    etree = pytest.importorskip("lxml.etree")
    for pattern, schema in (
        ("annotation/s1a-*-{}-*", "product"),
        ("annotation/calibration/noise-*-{}-*", "noise"),
        ("annotation/calibration/calibration-*-{}-*", "calibration"),
    ):
        rules = etree.XMLSchema(etree.fromstring(one(GRD, f"support/s1-level-1-{schema}.xsd")))
        for side in ("vv", "vh"):
            rules.assertValid(etree.fromstring(one(GRD, pattern.format(side))))
        broken = etree.fromstring(one(GRD, pattern.format("vv")).replace(b"<imageNumber>001<", b"<imageNumber>one<"))
        assert not rules.validate(broken)
