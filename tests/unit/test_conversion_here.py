"""The conversion without a service: SAFE products become Zarrs with the same numbers, whole or not at all, once."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import contextmanager
from dataclasses import asdict
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray
import zarr
from pydantic import SecretStr

from helpers import stac
from helpers.conversion import comparing, here, mending, product
from helpers.download import alone
from helpers.errors import Rejected
from helpers.sandbox.safe_products import safe_archive, write_safe
from helpers.settings import Settings

GRD = "S1A_IW_GRDH_1SDV_20230910T054256_20230910T054321_050261_060CD9_BF21"
L1C = "S2A_MSIL1C_20230910T050701_N0509_R019_T47VLH_20230910T074321"
L2A = "S2A_MSIL2A_20230910T050701_N0509_R019_T47VLH_20230910T094321"
OLCI = "S3A_OL_1_ERR____20230815T091500_20230815T091800_20230816T101010_0180_102_207______PS1_O_NT_003"
PIXELS = {GRD: 200, L1C: 120, L2A: 120, OLCI: 60}
ALL = list(PIXELS)
PROJECT = Path(__file__).resolve().parents[2]
#: EOPF as it is, with its defaults: what a service does.
EOPF_ALONE = """
import dask, logging
from eopf.store.convert import convert
logging.disable(logging.CRITICAL)
with dask.config.set(scheduler="threads"):
    convert({source!r}, {target!r})
"""


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A folder with products (safe/), our Zarrs of them (ours/), and EOPF's own (eopf/): made once for all tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "conversion"
    folder.mkdir(exist_ok=True)
    with alone(folder / "made"):  # the suite runs in several processes
        if not (folder / "made").exists():
            roots = [write_safe(folder / "safe", name, PIXELS[name]) for name in ALL]
            with_tables_that_differ(roots[0], "vh")
            done = here.convert_many(roots, folder / "ours", show=quiet)
            (folder / "done.json").write_text(json.dumps([asdict(one) for one in done]))
            with here._client(None, 1) as client:
                for name in (GRD, L2A, OLCI):
                    source, target = str(safe(folder, name)), str(folder / "eopf" / f"{name}.zarr")
                    client.submit(exec, EOPF_ALONE.format(source=source, target=target), {}, pure=False).result()
            (folder / "made").touch()
    return folder


def with_tables_that_differ(root: Path, polarisation: str) -> None:
    """Give one polarisation of a Sentinel-1 product noise of its own: a swap would not be seen otherwise."""
    (path,) = root.glob(f"annotation/calibration/noise-*-{polarisation}-*.xml")
    before = path.read_bytes()
    path.write_bytes(after := re.sub(rb"(<noiseRangeLut[^>]*>)", rb"\g<1>7", before))
    sums = [hashlib.md5(body).hexdigest() for body in (before, after)]
    manifest = (root / "manifest.safe").read_text()
    place = manifest.index(sums[0])
    start = manifest.rindex("<byteStream", 0, place)
    entry = manifest[start:place].replace(f'size="{len(before)}"', f'size="{len(after)}"')
    (root / "manifest.safe").write_text(manifest[:start] + entry + manifest[place:].replace(*sums))


def safe(folder: Path, name: str) -> Path:
    return folder / "safe" / f"{name}.{'SEN3' if name.startswith('S3') else 'SAFE'}"


def ours(folder: Path, name: str) -> str:
    return str(folder / "ours" / f"{name}.zarr")


def tree(uri: str, **options) -> xarray.DataTree:
    return xarray.open_datatree(uri, engine="zarr", chunks={}, **options)


def everything(folder: Path) -> dict[str, str]:
    """What is in a folder, with its content."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def all_but_the_time(zarr_folder: str | Path) -> dict[str, str]:
    """Everything in a Zarr but its root's metadata, which says when it was made; that it is there."""
    return everything(Path(zarr_folder)) | {"zarr.json": ""}


# --- what comes out ---


def test_every_product_is_converted_with_an_item_beside_it(made):
    done = json.loads((made / "done.json").read_text())
    assert [(one["outcome"], one["reason"]) for one in done] == [("converted", "")] * len(ALL)
    for one, name in zip(done, ALL, strict=True):
        assert one["id"] == name and one["zarr"] == ours(made, name)
        assert one["bytes_in"] == sum(p.stat().st_size for p in safe(made, name).rglob("*") if p.is_file())
        assert one["bytes_out"] == sum(p.stat().st_size for p in Path(one["zarr"]).rglob("*") if p.is_file())
        assert {"fetch", "read", "write", "mend", "check", "store"} == set(one["steps"])
        assert one["item"] == json.loads((made / "ours" / f"{name}.json").read_text())
        stac.validate(one["item"])
        assert one["item"]["id"] == name
        assert [link["rel"] for link in one["item"]["links"]] == ["derived_from"]
    left = [path.name for path in (made / "ours").iterdir()]
    assert sorted(left) == sorted(f"{name}{suffix}" for name in ALL for suffix in (".zarr", ".json"))


@pytest.mark.parametrize(("name", "pictures"), [(GRD, 2), (L1C, 13), (L2A, 25), (OLCI, 21)])
def test_every_number_is_that_of_the_file(made, name, pictures):
    found = comparing.pairs(tree(ours(made, name), mask_and_scale=False), safe(made, name))
    found = [pair for pair in found if "/orphans/" not in pair.array]  # pixels that OLCI's grid has no place for
    assert len(found) >= pictures
    assert {row["array"]: row["different"] for row in map(comparing.compare, found) if row["different"] != 0} == {}


def test_tables_have_the_polarisation_of_their_file(made):
    (child,) = tree(ours(made, GRD)).children.values()
    noise, calibration = child["quality/noise_range/noise_range_lut"], child["quality/calibration/sigma_nought"]
    seen = set()
    for polarisation in map(str, noise["polarization"].values):
        for table, kind, tag in ((noise, "noise", "noiseRangeLut"), (calibration, "calibration", "sigmaNought")):
            (file,) = safe(made, GRD).glob(f"annotation/calibration/{kind}-*-{polarisation.lower()}-*.xml")
            wanted = np.array(ElementTree.parse(file).findtext(f".//{tag}").split(), dtype="f4")
            assert np.array_equal(table.sel(polarization=polarisation)[0].values[: wanted.size], wanted)
            seen.add((kind, hashlib.sha256(wanted.tobytes()).hexdigest()))
    assert len(seen) >= 3  # they differ: a swap would be seen


def history(data: xarray.Dataset) -> list[list[str]]:
    levels = data.attrs.get("processing_history", {}).values()
    return [[f"{entry['processor']} {entry['version']}" for entry in level] for level in levels]


@pytest.mark.parametrize("name", [GRD, L2A, OLCI])
def test_all_else_is_as_eopf_has_it(made, name):
    """The shortcuts change nothing: neither those of reading the annotation, nor the copied pictures."""
    theirs, mine = (tree(str(made / of / f"{name}.zarr"), mask_and_scale=False) for of in ("eopf", "ours"))
    assert set(theirs.groups) == set(mine.groups)
    compared = 0
    for path in theirs.groups:
        a, b = theirs[path].to_dataset(inherit=False), mine[path].to_dataset(inherit=False)
        assert {"spatial_ref", *a.variables} == {"spatial_ref", *b.variables}
        assert a.attrs.get("other_metadata") == b.attrs.get("other_metadata")
        assert history(a) == history(b)
        for key in a.variables:
            if key == "polarization":
                continue
            where, first, second = f"{path}/{key}", a[key], b[key]
            assert (first.dims, first.dtype) == (second.dims, second.dtype), where
            assert np.array_equal(first.values, second.values, equal_nan=first.dtype.kind in "fM"), where
            assert repr(first.attrs) == repr({k: v for k, v in second.attrs.items() if k != "grid_mapping"}), where
            compared += 1
    assert compared > 50


def test_the_codec_is_applied_and_coordinates_are_one_chunk(made):
    for name in ALL:
        root = zarr.open_group(ours(made, name), mode="r")
        assert root.metadata.zarr_format == 3 and root.metadata.consolidated_metadata is not None
        for path, array in root.members(max_depth=None):
            if isinstance(array, zarr.Array) and array.ndim == 1:
                assert array.chunks == array.shape, path
            if isinstance(array, zarr.Array) and array.ndim > 1:
                (codec,) = array.compressors
                assert (str(codec.cname), codec.clevel) == ("zstd", 3), path


def test_the_source_is_left_as_it_was(made, tmp_path):
    for name in (L1C, L2A, OLCI):
        assert everything(safe(made, name)) == everything(write_safe(tmp_path, name, PIXELS[name]))


def test_opening_takes_few_requests(made):
    """Of S3, each costs 40 ms: EOPF's output opened as xarray does by itself, and ours."""
    with served(made) as (url, asked):
        xarray.open_datatree(f"{url}/eopf/{L2A}.zarr", engine="zarr", chunks={})["/measurements/reflectance/r10m/b02"][
            :60, :60
        ].compute()
        default = len(asked)
        asked.clear()
        opened = here.open_tree(f"{url}/ours/{L2A}.zarr")
        assert len(asked) == 1
        opened["/measurements/reflectance/r10m/b02"][:60, :60].compute()
        assert len(asked) <= 5 < default / 5, (asked, default)


@contextmanager
def served(folder: Path):
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


# --- the grid mapping ---


@pytest.mark.parametrize("group", ["measurements/reflectance/r10m", "quality/mask/r20m", "conditions/geometry"])
def test_the_grid_of_sentinel_2_has_a_crs_for_all(made, group):
    import rasterio
    import rioxarray  # noqa: F401

    data = xarray.open_zarr(ours(made, L2A), group=group)
    for picture in [v for v in data.data_vars.values() if v.dims[-2:] == ("y", "x")]:
        assert picture.rio.crs.to_epsg() == 32647
    if group != "conditions/geometry":
        name = next(iter(data.data_vars))
        with rasterio.open(f'ZARR:"{ours(made, L2A)}":/{group}/{name}') as picture:
            assert picture.crs.to_epsg() == 32647
            (file, *_) = safe(made, L2A).glob("GRANULE/*/IMG_DATA/R10m/*_B02_10m.jp2")
            with rasterio.open(file) as source:
                assert np.allclose(picture.bounds, source.bounds)


@pytest.mark.parametrize("name", [GRD, OLCI])
def test_what_is_in_no_projection_gets_none(made, name):
    assert not [path for path, _ in zarr.open_group(ours(made, name)).members(max_depth=None) if "spatial_ref" in path]


# --- mending ---


def copied(folder: Path, name: str, to: Path) -> str:
    shutil.copytree(folder / "eopf" / f"{name}.zarr", to / f"{name}.zarr")
    return str(to / f"{name}.zarr")


def labels(uri: str) -> set[tuple[str, ...]]:
    nodes = zarr.open_group(uri, mode="r").members(max_depth=None)
    return {tuple(map(str, array[:])) for path, array in nodes if path.endswith("/polarization")}


def test_what_eopf_has_wrong(made, tmp_path):
    """If this fails with another release of EOPF, it has learned something: see `mending`."""
    found = stac.read_attributes(str(made / "eopf" / f"{GRD}.zarr"))["stac_discovery"]
    assert found["id"] == "SAR Standard L1 Product" and found["bbox"][0] > found["bbox"][2]
    assert labels(str(made / "eopf" / f"{GRD}.zarr")) == {("VV", "VH")}
    assert stac.read_attributes(str(made / "eopf" / f"{L2A}.zarr"))["stac_discovery"]["id"].startswith("S02MSIL2A_")


def test_a_zarr_of_a_service_is_mended_once(made, tmp_path):
    for name in (GRD, L2A, OLCI):
        uri = copied(made, name, tmp_path)
        pixels = {k: v for k, v in everything(Path(uri)).items() if "/c/" in k and "polarization" not in k}
        done = mending.mend(uri, str(safe(made, name)))
        assert any(f"id is {name}" in line for line in done) and any("bbox is" in line for line in done)
        assert mending.mend(uri, str(safe(made, name))) == []
        after = everything(Path(uri))
        assert {k: after[k] for k in pixels} == pixels
        noted, mine = (stac.read_attributes(of)["stac_discovery"] for of in (uri, ours(made, name)))
        assert (noted["id"], noted["bbox"]) == (name, mine["bbox"])
        west, south, east, north = noted["bbox"]
        assert west < east and south < north
    assert labels(f"{tmp_path}/{GRD}.zarr") == {("VH", "VV")}
    assert (
        sum("EPSG:32647" in line for line in mending.mend(copied(made, L2A, tmp_path / "b"), str(safe(made, L2A)))) > 9
    )


@pytest.mark.parametrize("name", [GRD, L2A])
def test_an_interrupted_mending_is_taken_up_again(made, tmp_path, monkeypatch, name):
    uri = copied(made, name, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(mending, "_write_root", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mending.mend(uri, str(safe(made, name)))
    mending.mend(uri, str(safe(made, name)))
    assert mending.mend(uri, str(safe(made, name))) == []
    root = zarr.open_group(uri, mode="r", use_consolidated=False)
    assert root.attrs["stac_discovery"]["id"] == name
    # The root's copy tells of every node as it is.
    copies = {path: node.attrs.asdict() for path, node in zarr.open_consolidated(uri).members(max_depth=None)}
    assert copies == {path: node.attrs.asdict() for path, node in root.members(max_depth=None)}
    if name != GRD:
        return
    # Labels of some groups only: those of the picture are written last.
    (child,) = root.groups()
    array = zarr.open_array(f"{uri}/{child[0]}/measurements/polarization", mode="r+")
    array[:] = np.array(["VV", "VH"])
    assert len(mending.mend(uri, str(safe(made, GRD)))) == 1
    assert labels(uri) == {("VH", "VV")}


def test_a_zarr_of_version_2(made, tmp_path):
    """As EOPF 2 wrote them: attributes in .zattrs, dimensions among them."""
    for name in (GRD, L2A):
        uri = str(tmp_path / f"{name}.zarr")
        old = tree(str(made / "eopf" / f"{name}.zarr"), mask_and_scale=False).load()
        for node in old.subtree:
            for variable in node.variables.values():
                variable.encoding = {}
        old.to_zarr(uri, zarr_format=2, consolidated=True)
        assert mending.mend(uri, str(safe(made, name)))
        assert mending.mend(uri, str(safe(made, name))) == []
        noted = stac.read_attributes(uri)["stac_discovery"]
        assert noted["id"] == name and noted["bbox"][0] < noted["bbox"][2]
        told = json.loads((Path(uri) / ".zmetadata").read_text())["metadata"]
        assert told[".zattrs"]["stac_discovery"] == noted
    import rioxarray  # noqa: F401

    assert xarray.open_zarr(uri, group="measurements/reflectance/r20m")["b05"].rio.crs.to_epsg() == 32647
    assert labels(f"{tmp_path}/{GRD}.zarr") == {("VH", "VV")}


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_looking_at_the_labels_reads_little_of_the_pictures(tmp_path):
    """In S3, the pictures have 900 MB each: a few lines of them are enough."""
    import fsspec
    import rasterio

    picture = np.zeros((3000, 4000), "uint16")
    with rasterio.open(
        tmp_path / "x.tiff", "w", driver="GTiff", width=4000, height=3000, count=1, dtype="uint16"
    ) as to:
        to.write(picture, 1)
    files, amount = fsspec.filesystem("file"), []

    class Counting:
        def open(self, path: str, mode: str = "rb"):
            file = files.open(path, mode)
            read = file.read
            file.read = lambda *size: amount.append(len(found := read(*size))) or found
            return file

    with mending._opened(Counting(), str(tmp_path / "x.tiff")) as tiff:
        nothing = np.zeros((16, 512), "uint16")
        assert mending._fitting(nothing, slice(1500, 1516), slice(0, 512), 3000, {"VV": [tiff]}) == {"VV"}
    assert 0 < sum(amount) < 1e6


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_the_labels_of_bursts(tmp_path):
    """An SLC product has a TIFF for each swath and polarisation, EOPF a group for each burst, in parts of these lines.

    EOPF takes minutes and 8 GB for one: this is its structure by hand.
    """
    import rasterio

    rng, lines = np.random.default_rng(1), 30
    (safe_root := tmp_path / "x.SAFE" / "measurement").mkdir(parents=True)
    swaths: dict[tuple[str, str], np.ndarray] = {}
    about = {"driver": "GTiff", "count": 1, "dtype": "complex_int16", "transform": rasterio.Affine(1, 0, 0, 0, -1, 0)}
    for swath, width in (("iw1", 40), ("iw2", 40)):
        for name in ("vh", "vv"):
            numbers = rng.integers(-99, 99, (2, 3 * lines, width)).astype("f4")
            swaths[swath, name] = (numbers[0] + 1j * numbers[1]).astype("c8")
            path = safe_root / f"s1a-{swath}-slc-{name}-20230910t054256.tiff"
            with rasterio.open(path, "w", width=width, height=3 * lines, **about) as to:
                to.write(swaths[swath, name], 1)
    root = zarr.create_group(tmp_path / "x.zarr")
    for swath, first in (("iw1", 0), ("iw2", lines)):
        burst = root.create_group(f"{swath}_burst")
        parts = np.stack([swaths[swath, name][first : first + lines] for name in ("vh", "vv")])
        burst.create_array("measurements/slc", data=parts)
        for group in ("measurements", "quality/noise_range"):
            burst.create_array(f"{group}/polarization", data=np.array(["VV", "VH"]))
    done = mending.mend(str(tmp_path / "x.zarr"), str(tmp_path / "x.SAFE"))
    assert len(done) == 2 and all("polarisations are VH, VV" in line for line in done)
    assert labels(str(tmp_path / "x.zarr")) == {("VH", "VV")}
    assert mending.mend(str(tmp_path / "x.zarr"), str(tmp_path / "x.SAFE")) == []
    root["iw1_burst/measurements/slc"][1, 3:25] = 0
    with pytest.raises(Rejected, match="made of something else"):
        mending.mend(str(tmp_path / "x.zarr"), str(tmp_path / "x.SAFE"))


def test_a_zarr_of_another_product_is_refused(made, tmp_path):
    other = write_safe(tmp_path, GRD.replace("BF21", "0001").replace("054256", "054255"), PIXELS[GRD])
    with pytest.raises(Rejected, match="made of something else"):
        mending.mend(copied(made, GRD, tmp_path), str(other))
    with pytest.raises(Rejected, match="no Zarr at"):
        mending.mend(str(tmp_path / "none.zarr"), str(other))
    assert labels(f"{tmp_path}/{GRD}.zarr") == {("VV", "VH")}


# --- once, and whole ---


def test_a_second_run_converts_nothing_and_says_so(made):
    before, lines = everything(made / "ours"), list[str]()
    done = here.convert_many([safe(made, name) for name in ALL], made / "ours", show=lines.append)
    assert [one.outcome for one in done] == ["present"] * len(ALL)
    assert [line.partition("  ")[2] for line in lines] == [f"{name}: present" for name in ALL]
    assert [one.item for one in done] == [one["item"] for one in json.loads((made / "done.json").read_text())]
    assert everything(made / "ours") == before


def test_an_archive_of_the_same_product_is_the_same(made, tmp_path):
    for suffix in (".zip", ".tar.gz"):
        (archive := tmp_path / f"{L1C}.SAFE{suffix}").write_bytes(safe_archive(L1C, PIXELS[L1C], suffix))
        assert here.convert(archive, made / "ours", show=quiet).outcome == "present"


def test_another_product_of_the_name_is_not_overwritten(made, tmp_path):
    other = write_safe(tmp_path, L1C, 180)
    before = everything(made / "ours")
    with pytest.raises(Rejected, match=rf"(?s){L1C}.*is there already, made of something else"):
        here.convert(other, made / "ours", show=quiet)
    (tmp_path / "t" / f"{L1C}.zarr").mkdir(parents=True)
    with pytest.raises(Rejected, match=r"neither zarr\.json nor"):
        here.convert(other, tmp_path / "t", show=quiet)
    assert everything(made / "ours") == before


def test_an_archive_is_converted_and_overwritten_if_asked_to(made, tmp_path):
    (archive := tmp_path / f"{L1C}.zip").write_bytes(safe_archive(L1C, PIXELS[L1C], ".zip"))
    shutil.copytree(ours(made, L2A), tmp_path / "to" / f"{L1C}.zarr")
    done = here.convert(archive, tmp_path / "to", overwrite=True, show=quiet)
    assert done.outcome == "converted"
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == [f"{L1C}.json", f"{L1C}.zarr"]
    found = comparing.pairs(tree(done.zarr, mask_and_scale=False), safe(made, L1C))
    assert len(found) >= 13 and not any(comparing.compare(pair)["different"] for pair in found)


def without(archive: bytes, ending: str, to: Path) -> Path:
    """The archive without the member of this ending."""
    (to.with_suffix(".all")).write_bytes(archive)
    with zipfile.ZipFile(to.with_suffix(".all")) as whole, zipfile.ZipFile(to, "w") as part:
        for member in whole.infolist():
            if not member.filename.endswith(ending):
                part.writestr(member, whole.read(member))
    return to


def test_what_cannot_be_converted_is_named_and_stops_nothing_else(made, tmp_path):
    missing = without(safe_archive(L2A, PIXELS[L2A], ".zip"), "_B03_10m.jp2", tmp_path / "missing.zip")
    damaged = write_safe(tmp_path, L1C.replace("T47VLH", "T47VLJ"), 60)
    (report,) = damaged.glob("GRANULE/*/QI_DATA/GENERAL_QUALITY.xml")
    report.write_bytes(report.read_bytes().replace(b"1", b"2", 1))
    odd = tmp_path / f"{OLCI}.SEN3"
    odd.mkdir()
    (odd / "xfdumanifest.xml").write_text(
        "<a><byteStream size='-1'><fileLocation href='xfdumanifest.xml'/></byteStream></a>"
    )
    (no := tmp_path / "no.zip").write_bytes(b"PK")
    sources = [missing, damaged, odd, no, tmp_path / "nowhere", safe(made, L1C)]
    lines: list[str] = []
    done = here.convert_many(sources, tmp_path / "to", show=lines.append)
    assert [one.outcome for one in done] == ["failed"] * 5 + ["converted"]
    reasons = [one.reason for one in done]
    assert reasons[0].splitlines()[0] == f"{L2A}.SAFE is not what its manifest says (1 problem):"
    assert reasons[0].endswith("_B03_10m.jp2: missing")
    assert "is damaged" in reasons[1] and f"{report.name}: other content (" in reasons[1]
    assert reasons[2].startswith("EOPF 3") and "cannot read" in reasons[2]
    assert "no manifest" in reasons[3]
    assert (
        reasons[4] == f"{tmp_path}/nowhere: no folder, no archive (.zip, .tar, .tgz, .tar.gz), and no s3:// URL of one"
    )
    assert len([line for line in lines if not line.endswith(": convert")]) == 6
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == [f"{L1C}.json", f"{L1C}.zarr"]
    with pytest.raises(Rejected, match=r"(?s)missing.zip was not converted: .*_B03_10m"):
        here.convert(missing, tmp_path / "to", show=quiet)


def test_a_product_given_twice(tmp_path):
    with pytest.raises(Rejected, match=r"(?s)given once.*a.SAFE"):
        here.convert_many(["a.SAFE", "b.SAFE", "a.SAFE"], tmp_path)


SCRIPT = """
import sys
from helpers.conversion import here
if __name__ == "__main__":
    print(here.convert(sys.argv[1], sys.argv[2]).outcome)
"""


@pytest.mark.slow
def test_killed_at_any_time_and_run_again(made, tmp_path):
    """As soon as something is written, and a little later: whole or not there; workers end with their parent."""
    (script := tmp_path / "run.py").write_text(SCRIPT)
    target = tmp_path / "to"
    for pause in (0.1, 2.5):
        process = subprocess.Popen([sys.executable, script, safe(made, L1C), target], cwd=PROJECT)
        while process.poll() is None and not list(target.glob(".*.part/*")):
            time.sleep(0.02)
        time.sleep(pause)
        workers = children(process.pid)
        process.kill()
        process.wait()
        assert workers
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() < deadline, "a worker outlives its parent"
            time.sleep(0.05)
        if (target / f"{L1C}.zarr").exists():
            assert all_but_the_time(target / f"{L1C}.zarr") == all_but_the_time(ours(made, L1C))
    done = here.convert(safe(made, L1C), target, show=quiet)
    assert done.outcome in ("converted", "present")
    assert sorted(path.name for path in target.iterdir()) == [f"{L1C}.json", f"{L1C}.zarr"]
    assert all_but_the_time(target / f"{L1C}.zarr") == all_but_the_time(ours(made, L1C))


def children(pid: int) -> list[int]:
    """The processes that ``pid`` has begun, directly or not; without what only looks after memory of others."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes():
                found += [child, *children(child)]
    return found


# --- workers ---


@pytest.mark.slow
def test_a_lost_worker_costs_a_product_nothing_but_time(made, tmp_path):
    sources = [write_safe(tmp_path / "safe", L1C.replace("T47VLH", f"T47VL{letter}"), 60) for letter in "GHJ"]
    killed = threading.Event()

    def kill() -> None:
        while not list((tmp_path / "to").glob(".*.part/*.zarr")):
            time.sleep(0.02)
        os.kill(next(iter(here._own.workers.values())).pid, signal.SIGKILL)
        killed.set()

    thread = threading.Thread(target=kill)
    thread.start()
    done = here.convert_many(sources, tmp_path / "to", workers=2, show=quiet)
    thread.join()
    assert killed.is_set()
    assert [(one.outcome, one.reason) for one in done] == [("converted", "")] * 3
    left = sorted(path.name for path in (tmp_path / "to").iterdir())
    assert left == sorted(f"{one.id}{suffix}" for one in done for suffix in (".zarr", ".json"))
    # The address of a scheduler does as well.
    again = here.convert(sources[0], tmp_path / "by", scheduler=here._own.scheduler_address, show=quiet)
    assert again.outcome == "converted" and again.mended == done[0].mended


def test_a_cluster_without_workers_says_so(made, tmp_path, monkeypatch):
    from distributed import LocalCluster

    monkeypatch.setattr(here, "PATIENCE", 0.5)
    with (
        LocalCluster(n_workers=0, dashboard_address=":0", silence_logs=50) as empty,
        pytest.raises(Rejected, match="no workers"),
    ):
        here.convert_many([safe(made, L1C)], tmp_path, scheduler=empty.scheduler_address, show=quiet)


def test_keys_travel_only_where_nobody_can_listen(tmp_path):
    secrets = {"rspy_s3_access_key": SecretStr("a"), "rspy_s3_secret_key": SecretStr("b")}
    settings = Settings(_env_file=None).model_copy(
        update=secrets | {"rspy_apikey": SecretStr("canary"), "desp_password": SecretStr("canary")}
    )
    with pytest.raises(Rejected, match="unencrypted"):
        here.convert_many(["s3://b/x"], tmp_path, settings=settings, scheduler="tcp://scheduler.example:1", show=quiet)
    kept = here._for_workers(settings, "tls://scheduler.example:1")
    values = [value.get_secret_value() for _, value in kept if isinstance(value, SecretStr)]
    assert sorted(values) == ["a", "b"]
    assert "canary" not in repr(product.Order("s", "t", settings)) and "'b'" not in repr(
        product.Order("s", "t", settings)
    )


# --- S3 ---


@pytest.fixture
def bucket(settings) -> str:
    from helpers.sandbox.osam import BUCKETS

    return BUCKETS[0]


def test_from_s3_to_s3(made, settings, bucket):
    store, options = product.store_of(settings), here.storage_options(settings)
    store.upload(safe(made, GRD), f"s3://{bucket}/in/{GRD}.SAFE")
    done = here.convert(f"s3://{bucket}/in/{GRD}.SAFE", f"s3://{bucket}/out", settings=settings, show=quiet)
    assert done.outcome == "converted" and done.zarr == f"s3://{bucket}/out/{GRD}.zarr"
    local = {k: v.stat().st_size for k, v in files_of(Path(ours(made, GRD))).items()}
    remote = {k.removeprefix(f"{done.zarr}/"): size for k, size in store.objects(done.zarr).items()}
    assert remote == local
    assert json.loads(store.read(f"s3://{bucket}/out/{GRD}.json")) == done.item
    assert done.item["links"][0]["href"] == f"s3://{bucket}/in/{GRD}.SAFE"
    found = comparing.pairs(tree(done.zarr, mask_and_scale=False, storage_options=options), safe(made, GRD))
    assert len(found) == 2 and not any(comparing.compare(pair)["different"] for pair in found)
    again = here.convert(f"s3://{bucket}/in/{GRD}.SAFE", f"s3://{bucket}/out", settings=settings, show=quiet)
    assert (again.outcome, again.item) == ("present", done.item)


def files_of(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def test_an_upload_that_breaks_off_leaves_no_zarr(made, settings, bucket, tmp_path, monkeypatch):
    order = product.Order(str(safe(made, L1C)), f"s3://{bucket}/out", settings)
    place = product._place(order, L1C)
    put, count = product.Store.put, iter(range(1000))

    def breaks_off(self, path, uri):
        if next(count) == 40:
            raise Rejected("no more room")
        put(self, path, uri)

    shutil.copytree(ours(made, L1C), tmp_path / "work" / f"{L1C}.zarr")
    with monkeypatch.context() as patch, pytest.raises(Exception, match="no more room"):
        patch.setattr(product.Store, "put", breaks_off)
        place.take(tmp_path / "work" / f"{L1C}.zarr")
    assert len(product.store_of(settings).objects(place.zarr)) > 10
    assert not place.exists() and product.look(order) is None
    shutil.rmtree(tmp_path / "work")
    shutil.copytree(ours(made, L1C), tmp_path / "work" / f"{L1C}.zarr")
    place.take(tmp_path / "work" / f"{L1C}.zarr")
    assert place.holds(stac.read_attributes(ours(made, L1C))[product.ORIGIN])


def test_mending_in_s3(made, settings, bucket):
    store, options = product.store_of(settings), here.storage_options(settings)
    store.upload(made / "eopf" / f"{GRD}.zarr", zarr_uri := f"s3://{bucket}/out/x.zarr/{GRD}.zarr")
    store.upload(safe(made, GRD), safe_uri := f"s3://{bucket}/in/{GRD}.SAFE")
    assert len(mending.mend(zarr_uri, safe_uri, options)) == 5
    assert mending.mend(zarr_uri, safe_uri, options) == []
    assert stac.read_attributes(zarr_uri, options)["stac_discovery"]["id"] == GRD
    told = zarr.open_group(zarr_uri, mode="r", storage_options=options).members(max_depth=None)
    assert {tuple(map(str, a[:])) for path, a in told if path.endswith("/polarization")} == {("VH", "VV")}


def test_an_archive_in_s3_without_the_keys_in_what_goes_wrong(made, settings, bucket, tmp_path):
    store = product.store_of(settings)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"{L1C}.SAFE.zip").write_bytes(safe_archive(L1C, PIXELS[L1C], ".zip"))
    store.upload(tmp_path / "in", f"s3://{bucket}/in")
    done = here.convert(f"s3://{bucket}/in/{L1C}.SAFE.zip", made / "ours", settings=settings, show=quiet)
    assert done.outcome == "present"  # known from the manifest, without fetching the archive
    wrong = settings.model_copy(update={"rspy_s3_secret_key": SecretStr("distinctive-secret")})
    with pytest.raises(Rejected) as caught:
        here.convert(f"s3://{bucket}/in/{GRD}.SAFE", tmp_path / "to", settings=wrong, show=quiet)
    assert "distinctive" not in str(caught.value)
