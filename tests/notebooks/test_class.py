"""A class: three people run notebooks 1, 3 and 6 at the same time, in real kernels, on one sandbox."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from moto.s3.models import s3_backends
from moto.sns.models import sns_backends

from helpers import runner
from helpers.sandbox import REGION, people

from ..conftest import NOTEBOOKS

PAIR = ["S1_136231_IW2_20200604T022312_VV_7C85-BURST", "S1_136231_IW2_20200616T022313_VV_5D11-BURST"]
#: Each notebook with little to do.
LITTLE = {
    "1_hyp3_user_bucket.ipynb": {"interferograms": [PAIR], "velocity_pairs": []},
    "3_archive_to_s3.ipynb": {"suffixes": ["_WM.tif"], "dry_run": False},
    "6_stac_ingest.ipynb": {"samples": 1, "take_in": False, "break_things": False},
}
NAMES = ("anna", "ben", "cleo@example.org")
#: Who deletes what they made, with the notebooks' last step.
TIDY = "ben"


def world(account: str) -> dict[str, int]:
    """Objects in each bucket of an account, and its topics."""
    buckets = s3_backends[account]["aws"].buckets
    topics = sns_backends[account][REGION].topics
    return {name: len(bucket.keys) for name, bucket in buckets.items()} | {"topics": len(topics)}


@pytest.mark.slow
def test_each_finds_only_their_own_things_and_no_clean_up_takes_anothers(sandbox, environment, tmp_path):
    def run(name: str) -> list[runner.RunResult]:
        folder = tmp_path / name
        env = environment | {"RECIPES_SANDBOX_USER": name, "RECIPES_STATE_DIR": f"{folder}/state"}
        env |= {"RECIPES_OUTPUT_DIR": f"{folder}/outputs"}
        return [
            runner.run(NOTEBOOKS / notebook, little | {"clean_up": name == TIDY}, folder / notebook, 240, env=env)
            for notebook, little in LITTLE.items()
        ]

    with ThreadPoolExecutor(len(NAMES)) as pool:
        results = dict(zip(NAMES, pool.map(run, NAMES), strict=True))
    for name, (delivered, archived, catalogued) in results.items():
        account = people.make(name).account
        assert [each.outcome for each in results[name]] == ["ok"] * 3, [each.error for each in results[name]]
        assert delivered.results["bucket"] == f"hyp3-products-{account}"
        assert len(delivered.results["job_ids"]) == len(delivered.results["products"]) == 1
        assert archived.results["plan"]["present"] == 0 < archived.results["plan"]["new"]
        assert catalogued.results["loaded"]["stored"] == catalogued.results["loaded"]["in"] == 1
    # Anna and Cleo have the same in their worlds; Ben's is empty but for the project's own bucket.
    found = {name: world(people.make(name).account) for name in NAMES}
    for name in NAMES:
        account = people.make(name).account
        of_notebooks = [found[name][f"{kind}-{account}"] for kind in ("hyp3-products", "hyp3-archive", "eo-catalogue")]
        assert all(of_notebooks) == (name != TIDY), found
        assert found[name]["topics"] == (name != TIDY)
    same = [
        {key.replace(people.make(n).account, ""): count for key, count in found[n].items()} for n in ("anna", NAMES[2])
    ]
    assert same[0] == same[1]
    assert not any(world("123456789012").values())  # nobody was taken for somebody else
    for name in NAMES:
        api = sandbox.environment_of(people.make(name))["CATALOG_API_URL"]
        collections = [each["id"] for each in requests.get(f"{api}/collections", timeout=30).json()["collections"]]
        assert collections == ([] if name == TIDY else ["my-products"])
