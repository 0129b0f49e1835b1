"""EOPF converts what the sandbox makes: every kind of product, every number of it.

The converter runs in one process of its own, for all of them: importing it takes seconds and half a gigabyte.
"""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
import zarr
from netCDF4 import Dataset

from helpers import safe
from helpers.sandbox.safe_products import product_footprint, write_safe

#: By the type that EOPF recognises: the product's name, and the longest side of its picture.
PRODUCTS = {
    "S01SIWGRD": ("S1A_IW_GRDH_1SDV_20230910T054256_20230910T054321_050261_060CD9_BF21", 60),
    "S02MSIL1C": ("S2A_MSIL1C_20230910T050701_N0509_R019_T47VLH_20230910T074321", 120),
    "S02MSIL2A": ("S2A_MSIL2A_20230910T050701_N0509_R019_T47VLH_20230910T094321", 120),
    "S03OLCEFR": ("S3A_OL_1_EFR____20210820T103153_20210820T103453_20210820T124206_0179_075_222_2160_LN1_O_NR_002", 60),
}
#: What differs from another by its name only, as far as EOPF is concerned.
SAME = {"S03OLCERR": "S3B_OL_1_ERR____20230910T050701_20230910T051001_20230910T074321_0179_083_090_1980_PS2_O_NT_003"}
CONVERT = """
import sys
from eopf import open_datatree, write_datatree
for root, target in zip(sys.argv[1::2], sys.argv[2::2]):
    write_datatree(open_datatree(root), target, engine="cpm_zarr", encoding={})
"""
#: Where the variables of an OLCI file go, by the beginning of the file's name; what is not named goes to the first.
GROUPS = {
    "Oa.._radiance_unc": "quality",
    "Oa.._radiance": "measurements",
    "geo_coordinates": "measurements",
    "qualityFlags": "quality",
    "instrument_data": "conditions/instrument",
    "tie_geo_coordinates": "conditions/geometry",
    "tie_geometries": "conditions/geometry",
    "tie_meteo": "conditions/meteorology",
    "time_coordinates": "measurements",
    "removed_pixels": "conditions/orphans",
}
ELSEWHERE = {
    ("instrument_data", "detector_index"): "conditions/image",
    ("instrument_data", "frame_offset"): "conditions/image",
    ("removed_pixels", "quality_flags"): "quality/orphans",
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, zarr.Group]]:
    """The products (beside which the converter leaves files of its own) and their Zarr, by type."""
    folder = tmp_path_factory.mktemp("eopf")
    roots = {kind: write_safe(folder, name, pixels) for kind, (name, pixels) in PRODUCTS.items()}
    arguments = [part for kind, root in roots.items() for part in (str(root), str(folder / f"{kind}.zarr"))]
    done = subprocess.run([sys.executable, "-c", CONVERT, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return {kind: (root, zarr.open_group(folder / f"{kind}.zarr", mode="r")) for kind, root in roots.items()}


@pytest.mark.parametrize("kind", ["S01SIWGRD", "S03OLCEFR", "S03OLCERR"])
def test_the_name_is_that_of_one_type(kind):
    """By the patterns in the files that EOPF keeps about types; Sentinel-2 it knows by a namespace in the metadata."""
    folder = Path(importlib.util.find_spec("eopf").origin).parent / "store" / "mapping"
    rules = [json.loads(path.read_text()) for path in folder.glob("S0*.json")]
    patterns = {rule["product_type"]: rule["recognition"].get("filename_pattern") for rule in rules}
    name = SAME.get(kind) or PRODUCTS[kind][0]
    assert product_footprint(name)  # a name that products are made for
    root = name + (".SEN3" if kind.startswith("S03") else ".SAFE")
    assert [found for found, pattern in patterns.items() if pattern and re.match(pattern, root)] == [kind]


def pixels(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PRODUCTS)
def test_the_type_is_recognised_and_the_metadata_are_read(converted, kind):
    root, tree = converted[kind]
    properties = tree.attrs["stac_discovery"]["properties"]
    assert properties["product:type"] == kind
    assert properties["start_datetime"][:16] == re.sub(
        r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)", r"\1-\2-\3T\4:\5", re.search(r"\d{8}T\d{4}", root.name)[0]
    )
    (ring,) = tree.attrs["stac_discovery"]["geometry"]["coordinates"]
    assert ring == safe.footprint(root)["coordinates"][0]
    assert safe.verify(root) == []
    json.dumps(dict(tree.attrs), allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("S02MSIL1C", 13), ("S02MSIL2A", 33)])
def test_every_image_of_sentinel2_is_there(converted, kind, count):
    root, tree = converted[kind]
    compared = 0
    for path in root.glob("GRANULE/*/IMG_DATA/**/*.jp2"):
        found = re.search(r"_(B\d[\dA]|AOT|WVP|SCL)(?:_\d0m)?\.jp2$", path.name)
        if not found:
            continue  # true colours, which EOPF leaves to viewers
        image, band = pixels(path), found[1].lower()
        size = {120: "r10m", 60: "r20m", 20: "r60m"}[image.shape[0]]
        group = {"aot": "quality/atmosphere", "wvp": "quality/atmosphere", "scl": "conditions/mask/l2a_classification"}
        array = tree[f"{group.get(band, 'measurements/reflectance')}/{size}/{band}"]
        assert (array[:] == image).all(), path.name
        compared += 1
    assert compared == count


@pytest.mark.slow
def test_every_polarisation_of_sentinel1_is_there(converted):
    root, tree = converted["S01SIWGRD"]
    ((_, product),) = tree.groups()
    array = product["measurements/grd"]
    # EOPF 3.0.0 swaps the labels of VV and VH: the images are there in the order of their names.
    images = [pixels(path) for path in sorted(root.glob("measurement/*.tiff"))]
    assert all((array[n] == image).all() for n, image in enumerate(images)) and len(images) == 2
    assert product["conditions/gcp/latitude"].shape == (2, 10, 21)


def variables(root: Path) -> Iterator[tuple[str, str, np.ndarray, dict]]:
    """All of an OLCI product: file, name, values as they are in the file, attributes."""
    for path in sorted(root.glob("*.nc")):
        with Dataset(path) as dataset:
            dataset.set_auto_maskandscale(False)
            for name, variable in dataset.variables.items():
                yield path.stem, name, variable[:], {key: variable.getncattr(key) for key in variable.ncattrs()}


@pytest.mark.slow
def test_every_variable_of_olci_is_there_with_scale_and_offset(converted):
    root, tree = converted["S03OLCEFR"]
    compared = scaled = 0
    for file, name, values, text in variables(root):
        group = next(group for begin, group in GROUPS.items() if re.fullmatch(begin, file))
        group = ELSEWHERE.get((file, name), group)
        if file == "removed_pixels" and name.startswith("Oa"):
            group = "quality/orphans" if name.endswith("_unc") else "measurements/orphans"
        target = {"reference_pressure_level": "pressure_level"}.get(name, name.lower())
        array = tree[f"{group}/{target}"]
        if values.ndim == 3:
            values = np.moveaxis(values, 2, 0)  # levels and directions come first
        if name == "time_stamp":
            values = 1000 * values + 946_684_800 * 10**9  # ns since 1970
        assert array.dtype == values.dtype and array.shape == values.shape, (file, name)
        assert (array[:] == values).all(), (file, name)
        for theirs, ours in (
            ("scale_factor", "scale_factor"),
            ("add_offset", "add_offset"),
            ("fill_value", "_FillValue"),
        ):
            if ours in text:
                assert array.attrs[theirs] == pytest.approx(float(text[ours])), (file, name)
                scaled += ours == "scale_factor"
        compared += 1
    assert compared == sum(1 for _ in variables(root)) == 116
    assert scaled == 21 * 4 + 11
