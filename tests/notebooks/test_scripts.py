"""Each notebook runs as a plain script, from any folder, with a sandbox of its own, and prints what can be read.

So each needs nothing but this machine: the processes of the tests reach no other.
"""

import os
import re
import subprocess
import sys

import pytest

from ..conftest import notebook_files

FILES = [pytest.param(path, id=path.stem) for path in notebook_files()]
#: What each prints in the end, and cannot if it has not done its work.
SAID = {
    "0_start_here": "chain = {'HyP3 jobs': 'nothing yet'",
    "1_hyp3_user_bucket": "2 of 3 jobs succeeded; their products are in s3://",
    "2_hook_data_harvest": "all 1 products are here",
    "3_archive_to_s3": "dry run: nothing was done",
    "4_archive_to_disk": "dry run: nothing was done",
    "5_safe_to_zarr": "all 1 products are converted",
    "6_stac_ingest": "no difference is left",
}


@pytest.fixture(scope="session")
def scripts(tmp_path_factory):
    """All notebooks as scripts, made as a reader makes them: its start costs more than the work."""
    folder = tmp_path_factory.mktemp("scripts")
    command = [sys.executable, "-m", "nbconvert", "--to", "script", "--output-dir", str(folder)]
    subprocess.run([*command, *map(str, notebook_files())], check=True, capture_output=True, timeout=120)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES)
def test_runs_as_a_plain_script_whose_output_is_readable(path, scripts, request, tmp_path):
    own = {"RECIPES_STATE_DIR": str(tmp_path / "state"), "RECIPES_OUTPUT_DIR": str(tmp_path / "outputs")}
    prefect = request.getfixturevalue("prefect") if path.stem[0] == "5" else {}
    done = subprocess.run(
        [sys.executable, str(scripts / f"{path.stem}.py")],
        cwd=tmp_path,
        env=os.environ | {"RECIPES_BACKEND": "sandbox"} | own | prefect,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert SAID[path.stem] in done.stdout
    assert "parameter: " in done.stdout, "what is in force"
    unreadable = re.findall(r"<IPython|<Figure|<\w+ object at|</?(?:table|div|p|td|span)\b|\x1b\[", done.stdout)
    assert unreadable == [] and "Traceback" not in done.stderr
    pictures = re.findall(r"\[picture: (.*)", done.stdout)
    assert all(len(alt) > 20 for alt in pictures) and (pictures or path.stem[0] in "34")
    assert [name.name for name in tmp_path.iterdir() if name.name not in ("outputs", "state")] == []
