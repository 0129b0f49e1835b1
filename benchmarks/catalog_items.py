"""How long one STAC item takes, by kind of product, and how many items are checked in a second; in this process.

    python benchmarks/catalog_items.py                     (half a minute; also the row "items" of catalog.py)

The products are the sandbox's, on the disk; each is described 20 times after once for the imports, and medians count.
The peer is stactools' command in an environment of its own (`uvx`), which takes 3.4 to 7.3 s an item, as measured
once: it comes from a package index, and is not run here.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from helpers.catalog.checking import problems
from helpers.catalog.generating import create_item
from helpers.sandbox.products import hyp3_products
from helpers.sandbox.safe_products import safe_zip, write_safe

ROUNDS = 20
SCENE = "S1A_IW_SLC__1SDV_20211110T234815_20211110T234842_040516_04CE0A_E717"
PAIR = [SCENE, "S1A_IW_SLC__1SDV_20211122T234815_20211122T234842_040691_04D40B_1F2E"]
BURSTS = ["S1_136231_IW2_20200604T022312_VV_7C85-BURST", "S1_136231_IW2_20200616T022313_VV_5D11-BURST"]
IMAGES = [
    "S2B_MSIL1C_20200105T152259_N0208_R039_T13CES_20200105T181230",
    "S2B_MSIL1C_20200315T152259_N0209_R039_T13CES_20200315T181115",
]
JOBS: dict[str, dict[str, Any]] = {
    "RTC_GAMMA": {"granules": [SCENE], "resolution": 30},
    "INSAR_GAMMA": {"granules": PAIR, "looks": "20x4"},
    "INSAR_ISCE_BURST": {"granules": BURSTS, "looks": "20x4"},
    "WATER_MAP": {"granules": [SCENE], "resolution": 30, "flood_depth_estimator": "iterative"},
    "AUTORIFT": {"granules": IMAGES},
}
SAFES = {
    "Sentinel-1 GRD": "S1A_IW_GRDH_1SDV_20230910T054256_20230910T054321_050261_060CD9_BF21",
    "Sentinel-2 L2A": "S2A_MSIL2A_20230910T050701_N0509_R019_T47VLH_20230910T094321",
    "Sentinel-3 OLCI": "S3A_OL_1_ERR____20230815T091500_20230815T091800_20230816T101010_0180_102_207______PS1_O_NT_003",
}
ZARR = {
    "geometry": {"type": "Polygon", "coordinates": [[[13, 47], [14, 47], [14, 48], [13, 48], [13, 47]]]},
    "properties": {"datetime": "2023-08-15T09:50:31Z", "product:type": "S02MSIL2A", "eo:cloud_cover": 13.3},
}


def sources(folder: Path) -> dict[str, Path]:
    """One product of each kind, by what it is called in the table."""
    found = {}
    for kind, options in JOBS.items():
        place = folder / kind
        place.mkdir()
        for product in hyp3_products({"job_id": "1", "job_type": kind, "job_parameters": options, "request_time": ""}):
            (place / product.name).write_bytes(product.body)
        found[kind] = place
        if packages := sorted(place.glob("*.zip"), key=lambda path: len(path.name)):
            found[f"{kind}, zip"] = packages[0]
    for kind, name in SAFES.items():
        found[f"{kind} SAFE"] = write_safe(folder, name, 120)
        found[f"{kind} SAFE, zip"] = folder / f"{name}.zip"
        found[f"{kind} SAFE, zip"].write_bytes(safe_zip(name, 120))
    found["Zarr"] = folder / "S02MSIL2A_20230815T095031_00000_A0079_TE8E.zarr"
    found["Zarr"].mkdir()
    content = {"zarr_format": 3, "node_type": "group", "attributes": {"stac_discovery": ZARR}}
    (found["Zarr"] / "zarr.json").write_text(json.dumps(content))
    found["COG"] = folder / "cog_20211110.tif"
    found["COG"].write_bytes(next((folder / "RTC_GAMMA").glob("*_VV.tif")).read_bytes())
    return found


def timed(source: Path) -> dict:
    """Milliseconds for the item of one product."""
    create_item(source)
    runs = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        create_item(source)
        runs.append((time.perf_counter() - began) * 1e3)
    return {"milliseconds": statistics.median(runs), "slowest": max(runs)}


def checked(source: Path) -> dict:
    """Items that are checked in a second of one core, each as long as that of the product."""
    item = create_item(source, collection="all").to_dict(include_self_link=False)
    began = time.process_time()
    for _ in range(1000):
        if found := problems(item):
            raise SystemExit(f"The benchmark's own item is refused: {found}")
    return {"items a second": 1000 / (time.process_time() - began), "bytes": len(json.dumps(item))}


def items(world: Any = None) -> list[tuple[str, str, dict]]:
    """The rows: name, text, figures. Needs nothing of the other rows' world."""
    with tempfile.TemporaryDirectory() as folder:
        made = sources(Path(folder))
        found = {kind: timed(source) for kind, source in made.items()}
        checks = checked(made["RTC_GAMMA"])
    rows = [(kind, f"{one['milliseconds']:8.1f} ms, at most {one['slowest']:.1f}", one) for kind, one in found.items()]
    median = statistics.median(one["milliseconds"] for one in found.values())
    text = f"{median:8.1f} ms (stactools by uvx: 3,400 to 7,300)"
    rows.append(("median of the kinds", text, {"milliseconds": median}))
    text = f"{checks['items a second']:8,.0f} items/s a core ({checks['bytes']:,} bytes each; at least 2,000)"
    return [*rows, ("check", text, checks)]


if __name__ == "__main__":
    for name, text, _ in items():
        sys.stdout.write(f"{name:28} {text}\n")
