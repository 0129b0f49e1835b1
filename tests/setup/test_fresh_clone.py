"""What a newcomer does: clone, `make demo`. On a machine where nothing of ours is installed yet."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import git, make

NOTEBOOK = "1_hyp3_user_bucket.ipynb"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not (shutil.which("make") and shutil.which("git")), reason="needs make and git"),
]


def test_make_demo_in_a_fresh_clone(demo, clone):
    assert demo.returncode == 0, demo.stdout + demo.stderr
    cells = json.loads((clone / "outputs/demo" / NOTEBOOK).read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
    assert code and all(cell["execution_count"] for cell in code)
    assert not [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"]


def test_the_demo_is_one_story(demo, clone):
    """What notebooks 1 to 5 have made is in the catalogue of notebook 6."""
    told = json.loads((clone / "outputs/demo/6_stac_ingest.results.json").read_text())
    names = told["results"]["items"]
    assert sum("_INT80_" in name for name in names) == 2  # delivered by HyP3
    assert sum(name.startswith("S2A_MSIL1C_") for name in names) == 1  # harvested
    assert sum(name.endswith("_WM") for name in names) > 4  # archived, and the samples
    assert sum(name.startswith("S02MSIL2A_") for name in names) == 1  # converted
    chain = json.loads((clone / "outputs/demo/0_start_here.results.json").read_text())["results"]["chain"]
    assert [place for place, state in chain.items() if state not in ("there", "at work")] == ["Zarr on this disk"]


def test_the_clone_uses_its_own_environment_and_its_own_helpers(demo, clone, machine):
    where = subprocess.run(
        [
            clone / ".venv/bin/python",
            "-c",
            "import helpers, sys; print(helpers.__file__, sys.prefix, sep='\\n')",
        ],
        cwd="/",
        env=machine,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert [Path(path).resolve() for path in where] == [
        (clone / "helpers/__init__.py").resolve(),
        (clone / ".venv").resolve(),
    ]


def test_what_is_set_up_is_not_set_up_again(demo, clone, machine):
    stamp = (clone / ".venv/.setup").stat().st_mtime_ns
    began = time.monotonic()
    again = make(clone, machine, "setup")
    assert time.monotonic() - began < 2  # some 0.1 s; generous, for a busy machine
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert (clone / ".venv/.setup").stat().st_mtime_ns == stamp


def test_make_test_sets_up_the_same(demo, clone, machine):
    dry = {target: make(clone, machine, "-n", target) for target in ("setup", "demo", "test")}
    assert all(done.returncode == 0 for done in dry.values())
    setup = dry["setup"].stdout
    assert "bootstrap.py" in setup
    assert dry["demo"].stdout.startswith(setup)
    test = dry["test"].stdout.replace("bootstrap.py --browser", "bootstrap.py ")  # the browser is for tests only
    assert test == setup + ".venv/bin/python -m pytest -n auto --dist worksteal\n"


def test_nothing_that_set_up_and_demo_leave_would_be_committed(demo, clone):
    status = git("status", "--porcelain", "--untracked-files=all", cwd=clone).splitlines()
    assert not [line for line in status if line.startswith("??")]
