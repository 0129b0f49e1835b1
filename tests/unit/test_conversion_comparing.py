"""Comparing a Zarr with its SAFE product: a difference of one number is found, wherever it is."""

import numpy as np
import pytest
import rasterio
import xarray as xr

from helpers.conversion import comparing
from helpers.conversion.overviews import add_overviews


def picture(seed, shape=(300, 200)):
    return np.random.default_rng(seed).integers(1, 60_000, shape, dtype="uint16")


def write(path, values, driver):
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"QUALITY": 100, "REVERSIBLE": "YES"} if driver == "JP2OpenJPEG" else {}
    height, width = values.shape
    with rasterio.open(path, "w", driver, width, height, 1, dtype=values.dtype, **options) as target:
        target.write(values, 1)


def image(values):
    return xr.DataArray(values, dims=("y", "x"))


@pytest.fixture
def sentinel1(tmp_path):
    """A product of two polarisations, and the tree of its Zarr."""
    images = {"VV": picture(1), "VH": picture(2)}
    for name, values in images.items():
        write(tmp_path / f"measurement/s1a-iw-grd-{name.lower()}-20230910t054256-001.tiff", values, "GTiff")

    def tree(order=("VH", "VV")):
        dimensions = ("polarization", "azimuth_time", "ground_range")
        grd = xr.DataArray(
            np.stack([images["VH"], images["VV"]]), dims=dimensions, coords={"polarization": list(order)}
        )
        return xr.DataTree.from_dict({"/S01SIWGRD_x/measurements": xr.Dataset({"grd": grd})})

    return tmp_path, tree


def test_each_polarisation_is_held_against_its_own_file(sentinel1):
    root, tree = sentinel1
    rows = [comparing.compare(pair) for pair in comparing.pairs(tree(), root)]
    assert [(row["array"].partition("[")[2], row["file"][10:13], row["different"]) for row in rows] == [
        ("VH]", "-vh", 0), ("VV]", "-vv", 0)
    ]  # fmt: skip
    assert {row["numbers"] for row in rows} == {300 * 200}


def test_swapped_polarisations_are_found(sentinel1):
    root, tree = sentinel1
    rows = [comparing.compare(pair) for pair in comparing.pairs(tree(("VV", "VH")), root)]
    assert all(row["different"] > 59_000 for row in rows)


@pytest.mark.parametrize("line", [0, 1, 255, 299])
def test_one_wrong_number_is_found_in_any_block_of_lines(tmp_path, line, monkeypatch):
    monkeypatch.setattr(comparing, "LINES", 64)
    values = picture(3)
    write(tmp_path / "GRANULE/L2A_x/IMG_DATA/R20m/T33TWM_20230815T095031_B8A_20m.jp2", values, "JP2OpenJPEG")
    wrong = values.copy()
    wrong[line, 17] += 1
    for stored, different in ((values, 0), (wrong, 1)):
        tree = xr.DataTree.from_dict({"/measurements/reflectance/r20m": xr.Dataset({"b8a": image(stored)})})
        (pair,) = comparing.pairs(tree, tmp_path)
        assert comparing.compare(pair)["different"] == different


def test_a_picture_of_another_size_is_different(tmp_path):
    values = picture(4)
    write(tmp_path / "GRANULE/L1C_x/IMG_DATA/T33TWM_20230815T095031_B02.jp2", values, "JP2OpenJPEG")
    tree = xr.DataTree.from_dict({"/measurements/reflectance/r10m": xr.Dataset({"b02": image(values[:-1])})})
    (pair,) = comparing.pairs(tree, tmp_path)
    assert comparing.compare(pair)["different"] == "(300, 200) in the file, (299, 200) here"


def test_netcdf_is_compared_as_stored_not_as_scaled(tmp_path):
    from netCDF4 import Dataset

    values = picture(5)
    with Dataset(tmp_path / "Oa01_radiance.nc", "w") as file:
        file.createDimension("rows", 300), file.createDimension("columns", 200)
        variable = file.createVariable("Oa01_radiance", "u2", ("rows", "columns"), fill_value=65535)
        variable.set_auto_maskandscale(False)
        variable.scale_factor, variable.add_offset = 0.0139, 1.5
        variable[:] = values
    removed = xr.DataArray(values[:, :5], dims=("y", "removed"))  # of these there is no file of this name
    images = {"/measurements": image(values), "/measurements/orphans": removed}
    tree = xr.DataTree.from_dict({path: xr.Dataset({"oa01_radiance": values}) for path, values in images.items()})
    (pair,) = comparing.pairs(tree, tmp_path)
    assert comparing.compare(pair)["different"] == 0


def test_thumbnails_show_the_same_numbers_of_both(sentinel1):
    root, tree = sentinel1
    file, stored = comparing.thumbnails(comparing.pairs(tree(), root)[0], longest=50)
    assert file.shape == stored.shape == (50, 34)
    assert (file == stored).all()


def test_overviews_are_for_sentinel2(sentinel1, tmp_path):
    _, tree = sentinel1
    assert add_overviews(tree(), tmp_path / "overviews.zarr") == []
    assert not list(tmp_path.glob("overviews*"))
