"""What the flow knows before anything is sent: types, collections, buckets, and what the inputs are."""

import json
import warnings

import pytest

from helpers.conversion import inputs, rules
from helpers.conversion.storing import Store, _chunks_of_2, _chunks_of_3, split
from helpers.errors import Rejected

#: Legacy types and EOPF types as RS-PYTHON publishes them.
PUBLISHED = {
    "S01SIWSLC": ["IW_SLC__1S"],
    "S01SEWSLC": ["EW_SLC__1S"],
    "S01SWVSLC": ["WV_SLC__1S"],
    "S01SSMSLC": [f"S{beam}_SLC__1S" for beam in range(1, 7)],
    "S01SIWGRD": ["IW_GRDF_1S", "IW_GRDH_1S", "IW_GRDM_1S"],
    "S01SEWGRD": ["EW_GRDF_1S", "EW_GRDH_1S", "EW_GRDM_1S"],
    "S01SSMGRD": [f"S{beam}_GRD{resolution}_1S" for beam in range(1, 7) for resolution in "FHM"],
    "S01SIWOCN": ["IW_OCN__2S"],
    "S01SEWOCN": ["EW_OCN__2S"],
    "S01SWVOCN": ["WV_OCN__2S"],
    "S01SSMOCN": ["SM_OCN__2S"],
    "S01SIWRAW": ["IW_RAW__0S"],
    "S02MSIL1A": ["MSI_L1A_DS"],
    "S02MSIL1B": ["MSI_L1B_DS"],
    "S02MSIL1C": ["MSI_L1C_DS", "S2MSI1C"],
    "S02MSIL2A": ["MSI_L2A_DS", "S2MSI2A"],
    "S03OLCEFR": ["OL_1_EFR"],
    "S03OLCERR": ["OL_1_ERR"],
    "S03OLCLFR": ["OL_2_LFR"],
    "S03OLCLRR": ["OL_2_LRR"],
    "S03SLSRBT": ["SL_1_RBT"],
    "S03SLSLST": ["SL_2_LST"],
    "S03SLSFRP": ["SL_2_FRP"],
    "S03SYNSDR": ["SY_2_SYN"],
    "S03SYNAOD": ["SY_2_AOD"],
    "S03SYNVGT": ["SY_2_VGT"],
    "S03SYNVGK": ["SY_2_VGK"],
    "S03SYNV01": ["SY_2_VG1"],
    "S03SYNV10": ["SY_2_V10"],
    "S03ALT1A": ["SR_1_SRA_A_"],
    "S03ALT1B": ["SR_1_SRA_BS"],
    "S03ALT2H": ["SR_2_LAN_HY"],
}
#: Two that EOPF 3.0.0 calls otherwise.
RENAMED = {"S03ALT1A": "S03SRAL1A", "S03ALT2H": "S03ALTL2H"}
PAIRS = [(legacy, RENAMED.get(eopf, eopf)) for eopf, each in PUBLISHED.items() for legacy in each]
PAIRS += [(f"{legacy:_<11}", eopf) for legacy, eopf in PAIRS if eopf.startswith("S03")]


@pytest.mark.parametrize(("legacy", "eopf"), PAIRS)
def test_types_are_those_that_rs_python_publishes(legacy, eopf):
    assert rules.eopf_type(legacy) == eopf


@pytest.mark.parametrize(
    "legacy",
    [None, "", " ", 7, "S02MSIL2A", "IW_GRDH", "XX_9_ZZZ___", "IW_GRDH_1S|x", "IW_GRDH_1SDV", "MSI_L2A_DS2", ".*"],
)
def test_no_type_is_ever_guessed(legacy):
    with pytest.raises(Rejected, match="product:type"):
        rules.eopf_type(legacy)


def test_eopf_is_not_imported_for_its_types():
    import subprocess
    import sys

    code = "import sys; from helpers.conversion import rules; rules.eopf_type('OL_1_EFR'); print('eopf' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


def row(name, product_type="*", collection="c"):
    return {"name": name, "product_type": product_type, "collection_name": collection}


def test_a_collection_is_found_by_type_exactly_then_by_name_then_for_all():
    rows = [row("*", collection="all"), row("S02MSIL2A", collection="l2a"), row("S02MSIL2A", "S02MSIL2A", "exact")]
    assert rules.collection_for("S02MSIL2A", rows) == "exact"
    assert rules.collection_for("S02MSIL2A", rows[:2]) == "l2a"
    assert rules.collection_for("S01SIWGRD", rows) == "all"
    with pytest.raises(Rejected, match=r"S01SIWGRD; rows are there for: S02MSIL2A"):
        rules.collection_for("S01SIWGRD", rows[1:])
    with pytest.raises(Rejected, match="no collection_name"):
        rules.collection_for("S02MSIL2A", [row("S02MSIL2A", collection=None)])


RULES = [
    ["*", "*", "*", "30", "default"],
    ["*", "mine", "*", "30", "never"],
    ["jdoe", "*", "*", "30", "of-jdoe"],
    ["jdoe", "*", "S01SIWGRD", "30", "of-jdoe-grd"],
    ["jdoe", "mine", "*", "30", "of-mine"],
    ["jdoe", "yours", "S02*", "30", "pattern"],
]


@pytest.mark.parametrize(("asked", "client", "server"), [
    (("jdoe", "mine", "S02MSIL2A"), "of-mine", "of-mine"),
    (("jdoe", "other", "S02MSIL2A"), "of-jdoe", "of-jdoe"),
    (("jdoe", "other", "S01SIWGRD"), "of-jdoe", "of-jdoe-grd"),  # the first row that fits; the most exact one
    (("jdoe", "yours", "S02MSIL2A"), "pattern", "of-jdoe"),  # a pattern; a type that nothing has
    (("ann", "mine", "S02MSIL2A"), "default", "default"),  # a row without an owner never wins
])  # fmt: skip
def test_both_readings_of_the_bucket_rules(asked, client, server):
    assert (rules.client_bucket(RULES, *asked), rules.server_bucket(RULES, *asked)) == (client, server)
    if client == server:
        assert rules.bucket_for(RULES, *asked) == client
    else:
        with pytest.raises(Rejected, match=f"(?s){client}.*{server}"):
            rules.bucket_for(RULES, *asked)


def test_rules_without_a_bucket_or_of_another_form_are_refused():
    with pytest.raises(Rejected, match="no bucket"):
        rules.bucket_for([["ann", "*", "*", "30", "b"]], "jdoe", "mine", "S02MSIL2A")
    for malformed in (["*", "*", "*", "30"], ["*", "*", "*", 30, "b"], "*,*,*,30,b"):
        with pytest.raises(Rejected, match="five texts"):
            rules.bucket_for([*RULES, malformed], "jdoe", "mine", "S02MSIL2A")


def test_an_owner_is_stripped_as_the_catalogue_does():
    assert rules.stripped("j.doe-42@esa") == "jdoe42esa"


# --- inputs ---


def item(item_id="A", link="https://station/items/A", **assets):
    assets = {key: {"href": href} for key, href in (assets or {"product": "https://station/A.zip"}).items()}
    links = [{"rel": "self", "href": link}] if link else []
    return {"type": "Feature", "id": item_id, "properties": {}, "links": links, "assets": assets}


def no_network(url):
    raise AssertionError(url)


def test_items_come_from_everything_that_may_be_given(tmp_path):
    file = tmp_path / "items.json"
    file.write_text(json.dumps({"type": "FeatureCollection", "features": [item("B", "")]}))
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps([item("E", ""), "https://station/items/F/?token=1"]))
    answers = {
        "https://station/items/C": item("C", ""),
        "https://station/search": {
            "type": "FeatureCollection",
            "features": [item("D", "https://station/items/D")],
            "links": [{"rel": "next", "href": "search?page=2"}],
        },
        "https://station/search?page=2": {"type": "FeatureCollection", "features": [item("D2", "")]},
        "https://station/items/F/?token=1": item("not what the address ends with", ""),
    }
    given = [item(), str(file), "https://station/items/C", "https://station/search", listed, item()]
    found = inputs.sources(given, answers.__getitem__)
    assert [(one.id, one.link, one.problem) for one in found] == [
        ("A", "https://station/items/A", ""),
        ("B", "B", ""),
        ("C", "https://station/items/C", ""),
        ("D", "https://station/items/D", ""),
        ("D2", "D2", ""),
        ("E", "E", ""),
        ("not what the address ends with", "https://station/items/F/", ""),  # its query is a secret
    ]


@pytest.mark.parametrize(("given", "said"), [
    ({"type": "Catalog"}, "neither a STAC item"),
    ({"type": "Feature"}, "it has no id"),
    (item("../../etc"), "name of a folder"),
    (item(thumbnail="https://station/A.png"), "none of its assets is a product"),
    (item(one="https://station/1.zip", two="https://station/2.tar.gz"), "which asset is the product: one, two"),
    ("/no/such/file.json", "No such file"),
])  # fmt: skip
def test_what_is_no_item_is_named_beside_the_others(given, said):
    good, bad = inputs.sources([item("good"), given], no_network)
    assert good.problem == "" and said in bad.problem


def test_a_second_item_of_one_id_is_refused():
    first, second = inputs.sources([item(), item(link="https://elsewhere/A")], no_network)
    assert not first.problem and "another item with the id A: https://station/items/A" in second.problem


@pytest.mark.parametrize(("assets", "names"), [
    ({"thumbnail": "x/a.png", "product": "x/$value"}, ["product"]),
    ({"thumbnail": "x/a.png", "whole": "x/a.SAFE.tgz?signature=1"}, ["whole"]),
    ({"manifest": "x/a.SAFE/manifest.safe", "band": "x/a.SAFE/b.jp2"}, None),
    ({"manifest": "x/a.SEN3/xfdumanifest.xml", "data": "x/a.SEN3/d.nc"}, None),
])  # fmt: skip
def test_the_assets_that_are_the_product(assets, names):
    assert inputs.assets_of(item(**assets)) == names


# --- what is whole ---


class Objects(Store):
    """A store of these objects."""

    def __init__(self, content):
        self.content = content

    def objects(self, uri):
        return {key: len(value) for key, value in self.content.items() if key.startswith(uri)}

    def read(self, uri):
        return self.content[uri]


@pytest.mark.parametrize("version", [2, 3])
def test_a_zarr_is_whole_with_every_chunk_and_not_without_one(tmp_path, version):
    import zarr

    root = zarr.open_group(tmp_path / "P.zarr", mode="w", zarr_format=version)
    root.create_array("a/x", shape=(5, 4), chunks=(2, 3), dtype="i4")[:] = 1
    root.create_array("scalar", shape=(), dtype="i4")[...] = 1
    with warnings.catch_warnings(action="ignore"):  # for version 3, that it is not in the specification
        zarr.consolidate_metadata(root.store)
    files = {f"s3://b/out/N.zarr/{p.relative_to(tmp_path)}": p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert Objects(files).whole_zarrs("s3://b/out") == ["s3://b/out/N.zarr/P.zarr"]
    assert len(files) >= 6 + 1 + 3
    roots = (".zmetadata", ".zgroup", ".zattrs") if version == 2 else ("a/zarr.json",)
    for name in files:
        fewer = Objects({key: value for key, value in files.items() if key != name})
        if not name.endswith(roots):
            assert fewer.whole_zarrs("s3://b/out") == [], name


def test_chunks_of_arrays_with_other_keys():
    node = {"shape": [3], "chunks": [2], "dimension_separator": "/"}
    assert list(_chunks_of_2(node)) == ["0", "1"]
    grid = {"name": "regular", "configuration": {"chunk_shape": [2, 2]}}
    node = {
        "node_type": "array",
        "shape": [3, 2],
        "chunk_grid": grid,
        "chunk_key_encoding": {"name": "v2", "configuration": {"separator": "."}},
    }
    assert list(_chunks_of_3(node)) == ["0.0", "1.0"]
    assert list(_chunks_of_3({"node_type": "group"})) == []


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/", "/local", "http://bucket/key", "s3:///key", ""])
def test_only_places_in_a_bucket_are_worked_on(uri):
    with pytest.raises(Rejected, match="no place in an object storage"):
        split(uri)
