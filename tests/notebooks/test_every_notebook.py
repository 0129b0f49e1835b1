"""What holds for each notebook: how it is written, that it leaks nothing, and that it stays on this machine."""

import ast
import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from urllib.parse import urlsplit

import nbformat
import pytest

from helpers.conversion.bringing import EXAMPLE
from helpers.sandbox.archive_project import OWNER

from ..conftest import NOTEBOOKS, PROJECT, SEAL, notebook_files

FILES = [pytest.param(path, id=path.stem) for path in notebook_files()]
#: Those that stop when a service or a credential is missing; notebook 0 goes on and shows it (test_start_here.py).
RECIPES = [pytest.param(path, id=path.stem) for path in notebook_files() if path.stem[0] != "0"]
PARAMETER_FILES = sorted((NOTEBOOKS / "parameters").glob("*.yaml"))


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


# --- how it is written ---


@pytest.mark.parametrize("path", FILES)
def test_is_committed_clean(path):
    notebook = read(path)
    nbformat.validate(notebook)
    dirty = [c.id for c in code_cells(path) if c.outputs or c.execution_count]
    assert not dirty, "run: nbstripout notebooks/*.ipynb"
    assert "papermill" not in notebook.metadata
    assert notebook.metadata.kernelspec.name == "python3"
    assert not any("injected-parameters" in c.metadata.get("tags", []) for c in notebook.cells)


@pytest.mark.parametrize("path", FILES)
def test_has_one_parameters_cell_of_literals(path):
    cells = [c for c in code_cells(path) if "parameters" in c.metadata.get("tags", [])]
    assert [cell.id for cell in cells] == [code_cells(path)[0].id]
    for node in ast.parse(cells[0].source).body:
        assert isinstance(node, ast.AnnAssign), "write `name: type = value  # meaning, unit`"
        ast.literal_eval(node.value)
        comment = cells[0].source.splitlines()[node.lineno - 1].partition("#")[2]
        assert len(comment) > 10, f"{node.target.id}: say what it means"


@pytest.mark.parametrize("path", FILES)
def test_form_and_setup_follow_the_parameters(path):
    """The form changes what setup checks, and setup says which backend it will be."""
    assert code_cells(path)[1].source == "from helpers import notebook\n\nnotebook.form()"
    assert "notebook.setup(" in code_cells(path)[2].source


@pytest.mark.parametrize("path", FILES)
def test_reads_well(path):
    cells = read(path).cells
    code, text = code_cells(path), [c for c in cells if c.cell_type == "markdown"]
    headings = re.findall(r"^(#+) (.+)$", "\n".join(c.source for c in text), re.MULTILINE)
    assert [level for level, _ in headings].count("#") == 1 and headings[0][0] == "#"
    levels = [len(level) for level, _ in headings]
    assert all(after <= before + 1 for before, after in pairwise(levels)), "no level left out"
    assert len(text) >= 1.1 * len(code), "explain more"
    lengths = [len(c.source.splitlines()) for c in code]
    assert sum(lengths) / len(code) <= 8 and max(lengths) <= 25
    assert not any(a.cell_type == b.cell_type == "code" for a, b in pairwise(cells)), "a sentence before each cell"
    titles = [title for _, title in headings]
    for wanted in ("Before you begin", "Parameters", "Setup", "Your turn", "Summary"):
        assert wanted in titles
    steps = [t for t in titles if re.match(r"\d+\. ", t)]
    promised = re.findall(r"^(\d+\. .+)$", text[1].source, re.MULTILINE)
    assert [p.split(". ")[0] for p in promised] == [s.split(". ")[0] for s in steps]


@pytest.mark.parametrize("path", FILES)
def test_uses_no_forbidden_words(path):
    for cell in code_cells(path):
        assert not re.search(r"^\s*[%!]", cell.source, re.MULTILINE), f"{cell.id}: no magics, no shell"
        tree = ast.parse(cell.source)
        calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        assert not calls & {"input", "exit", "quit", "getpass"}, cell.id
        imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        assert not any(alias.name == "*" for n in imports for alias in n.names), cell.id
        assert "os.environ" not in cell.source and "getenv" not in cell.source, (
            f"{cell.id}: settings read the environment"
        )
        assert "helpers.sandbox" not in cell.source and "if sandbox" not in cell.source, cell.id


@pytest.mark.parametrize("path", FILES)
def test_has_three_exercises_with_folded_solutions(path):
    text = "\n".join(c.source for c in read(path).cells if c.cell_type == "markdown")
    assert len(re.findall(r"<details><summary>Solution</summary>", text)) >= 3


@pytest.mark.parametrize("file", PARAMETER_FILES, ids=lambda file: file.stem)
def test_parameter_files_fit_their_notebook(file):
    """The runner's own dry check: unknown names and wrong types are refused before a kernel starts."""
    import yaml

    from helpers.parameters import declared

    values = yaml.safe_load(file.read_text())
    fitting = []
    for path in notebook_files():
        known = declared(code_cells(path)[0].source)
        if set(values) <= set(known):
            fitting.append(path)
            for name, value in values.items():
                known[name].check(value)
    assert fitting, f"{file.name} has names that no notebook knows"


# --- what it must not do ---

CANARIES = {
    "EARTHDATA_TOKEN": "",  # a real token of the sandbox, minted by the test
    "AWS_ACCESS_KEY_ID": "AKIACANARYCANARY0001",
    "AWS_SECRET_ACCESS_KEY": "canary/secret+key/0000000000000000000001",
    "AWS_SESSION_TOKEN": "canary-session-token-000000000000000001",
    "DESP_PASSWORD": "canary-desp password;with=odd&signs-01",
    "HOOK_OUTPUT_STORAGE_ACCESS_KEY": "canary0harvest0key0001",
    "HOOK_OUTPUT_STORAGE_SECRET_KEY": "canary0harvest0secret0/+0000000000000001",
    "HOOK_EXTERNAL_PASSWORD": "canary-external-password-01",
    "RSPY_APIKEY": "canary-rspy-apikey-0000000001",
    "S3_SECRETKEY": "canary0rspy0secret0/+0000000000000000001",
    "JUPYTERHUB_API_TOKEN": "canary-jupyterhub-token-00000001",
    "CATALOG_DSN": "",  # the sandbox's: its password is made when it starts
}
#: What services make on the way: tokens, and links with a signature in them.
MADE = (rb"eyJ[\w-]{6,}\.[\w-]{6,}\.[\w-]+", rb"temp_url_sig(?:=|%3D)[0-9a-f]{8,}", rb"Signature=[\w%]{8,}")

#: The service that a notebook talks to first, and the settings that a live run of it cannot do without.
EARTHDATA = ["EARTHDATA_TOKEN", "Generate Token"]
AWS = ["AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
SERVICES = {
    "1_hyp3_user_bucket": ("hyp3", EARTHDATA + AWS),
    "2_hook_data_harvest": ("hook", ["DESP_USERNAME", "DESP_PASSWORD", "https://platform.destine.eu"]),
    "3_archive_to_s3": ("hyp3", EARTHDATA + AWS),
    "4_archive_to_disk": ("hyp3", EARTHDATA),
    "5_safe_to_zarr": ("station", ["RSPY_WEBSITE", "RSPY_OWNER_ID", "S3_ENDPOINT", "S3_ACCESSKEY", "S3_SECRETKEY"]),
    "6_stac_ingest": ("s3", ["CATALOG_DSN", "CATALOG_API_URL", *EARTHDATA, *AWS]),
}


#: What a live run of it needs to have something to do.
LIVE = {
    "3_archive_to_s3": {"user_id": OWNER, "dry_run": False},
    "4_archive_to_disk": {"user_id": OWNER, "dry_run": False},
    "5_safe_to_zarr": {"inputs": [EXAMPLE], "overviews": False},
    "6_stac_ingest": {"user_id": OWNER},
}


def live_environment(sandbox, environment) -> dict[str, str]:
    """The live backend, with the addresses of the stand-ins: every credential comes from the environment."""
    token = sandbox.hyp3.token("live-user")
    roles = ("hook-workflows", "hook-medium")
    sandbox.identity.add_user("live-user", CANARIES["DESP_PASSWORD"], roles=roles)
    sandbox.identity.add_user("outside-user", CANARIES["HOOK_EXTERNAL_PASSWORD"], roles=())
    key, secret = CANARIES["HOOK_OUTPUT_STORAGE_ACCESS_KEY"], CANARIES["HOOK_OUTPUT_STORAGE_SECRET_KEY"]
    sandbox.access_keys[key] = secret
    sandbox.api_keys[CANARIES["RSPY_APIKEY"]] = "live-user"
    sandbox.access_keys["sandbox-rspy"] = CANARIES["S3_SECRETKEY"]
    sandbox.catalogue.start()
    addresses = {name: value for name, value in sandbox.environment.items() if name.endswith("_URL")}
    return environment | addresses | CANARIES | {
        "RECIPES_BACKEND": "live",
        "RECIPES_SANDBOX_URL": "",
        "EARTHDATA_TOKEN": token,
        "CATALOG_DSN": sandbox.environment["CATALOG_DSN"],
        "HYP3_SETTLE_SECONDS": "1",
        "DESP_USERNAME": "live-user",
        "HOOK_EXTERNAL_USERNAME": "outside-user",
        "HOOK_EXTERNAL_CLIENT_ID": "hda-public",
        "HOOK_POLL_SECONDS": "0.2",
        "HOOK_DATA_ID": "S2A_MSIL1C_20230910T050701_N0509_R019_T47VLH_20230910T074321.SAFE",
        "RSPY_WEBSITE": sandbox.url("rs-server"),
        "RSPY_OWNER_ID": "live-user",
        "RSPY_POLL_SECONDS": "0.2",
        "S3_ENDPOINT": sandbox.url("s3"),
        "S3_ACCESSKEY": "sandbox-rspy",
        "S3_REGION": "us-west-2",
    }  # fmt: skip


#: All that is somebody's own: secrets, names, and addresses that have no default.
CREDENTIALS = (*CANARIES, "RSPY_WEBSITE", "RSPY_OWNER_ID", "S3_ENDPOINT", "S3_ACCESSKEY", "CATALOG_API_URL")
CREDENTIALS += ("DESP_USERNAME",)


def secrets_in(env: dict[str, str]) -> dict[str, str]:
    """The credentials by their names; of a data source name the password, which is shown in no other way either."""
    found = {name: env[name] for name in CANARIES}
    return found | {"CATALOG_DSN": urlsplit(env["CATALOG_DSN"]).password}


@pytest.fixture
def shared(request, environment) -> dict[str, str]:
    """The environment; the notebook that would start a Prefect server of its own each time is given one."""
    path = getattr(request.node, "callspec", None) and request.node.callspec.params["path"]
    return environment | (request.getfixturevalue("prefect") if path is None or path.stem[0] == "5" else {})


def leaks(folder, secrets) -> list[str]:
    found = []
    for file in (f for f in folder.rglob("*") if f.is_file()):
        content = file.read_bytes()
        found += [f"{name} in {file}" for name, secret in secrets.items() if secret.encode() in content]
        found += [f"{pattern!r} in {file}" for pattern in MADE if re.search(pattern, content)]
    return found


@pytest.mark.parametrize("path", FILES)
def test_runs_live_and_leaks_no_secret(path, sandbox, environment, tmp_path, capfd):
    """The same notebook with the live backend; nothing that it leaves behind has a credential in it."""
    from helpers import runner

    env = live_environment(sandbox, environment)
    secrets = secrets_in(env)
    output = tmp_path / "executed" / path.name
    run = runner.run(path, LIVE.get(path.stem), output=output, html=True, deadline=120, env=env)
    assert run.outcome == "ok", run.error
    owners = [job["user_id"] for job in sandbox.hyp3.jobs.values()]
    owners += [order.owner for order in sandbox.hook.orders.values()]
    published = [item for items in sandbox.catalog.items.values() for item in items.values()]
    owners += ["live-user" for item in published if item["properties"]["owner"] == "liveuser"]
    mine = {OWNER} if path.stem[0] in "346" else {"live-user"}
    assert set(owners) == (set() if path.stem[0] == "0" else mine)
    assert leaks(tmp_path, secrets) == []
    said = "".join(capfd.readouterr())
    assert not any(secret in said for secret in secrets.values())
    # The canary must be able to fail: planted, it is found.
    (tmp_path / "planted.txt").write_text(secrets["AWS_SECRET_ACCESS_KEY"])
    assert leaks(tmp_path, secrets) == [f"AWS_SECRET_ACCESS_KEY in {tmp_path / 'planted.txt'}"]
    (tmp_path / "planted.txt").write_text(f"https://example.org/x.zip?temp_url_sig={'a1' * 20}")
    assert len(leaks(tmp_path, secrets)) == 1


@pytest.mark.parametrize("parameters", [
    {"storage": "PRIVATE", "bucket": "canary-bucket"},
    {"source_type": "EXTERNAL", "collection": "EO.ESA.DAT.SENTINEL-2.MSI.L1C"},
], ids=["private", "external"])  # fmt: skip
def test_an_order_with_credentials_in_it_leaks_none(sandbox, environment, tmp_path, parameters):
    from helpers import runner

    env = live_environment(sandbox, environment)
    path = NOTEBOOKS / "2_hook_data_harvest.ipynb"
    run = runner.run(path, parameters, output=tmp_path / "executed" / path.name, html=True, deadline=120, env=env)
    assert run.outcome == "ok", run.error
    assert leaks(tmp_path, secrets_in(env)) == []


@pytest.mark.parametrize("path", RECIPES)
@pytest.mark.parametrize("kind", ["expired-token", "error"])
def test_leaks_no_secret_when_it_fails(path, kind, sandbox, shared, tmp_path):
    from helpers import runner

    env = live_environment(sandbox, shared)
    if "archive" in path.stem and kind == "error":
        kind = "forbidden"  # an outage is waited out for a minute
    sandbox.traffic.fail(kind, service=SERVICES[path.stem][0], times=1000)
    wanted = LIVE.get(path.stem) if path.stem == "5_safe_to_zarr" else None
    run = runner.run(path, wanted, output=tmp_path / "executed" / path.name, html=True, deadline=120, env=env)
    assert run.outcome == "failed"
    assert leaks(tmp_path, secrets_in(env)) == []


@pytest.mark.parametrize("path", RECIPES)
def test_live_without_credentials_stops_before_the_first_request(path, sandbox, environment, tmp_path):
    from helpers import runner

    env = live_environment(sandbox, environment) | dict.fromkeys(CREDENTIALS, "")
    sandbox.traffic.requests.clear()
    run = runner.run(path, output=tmp_path / path.name, env=env)
    assert (run.outcome, run.exit_code) == ("not configured", 5)
    for words in SERVICES[path.stem][1]:
        assert words in run.error["message"]
    assert sandbox.traffic.received() == []


def test_needs_nothing_but_this_machine(tmp_path):
    """No shared sandbox, no file, a closed proxy for everything else: as in a train. (As scripts, all of them do.)"""
    from helpers import runner

    path = NOTEBOOKS / "1_hyp3_user_bucket.ipynb"
    run = runner.run(path, output=tmp_path / path.name, env={
        "RECIPES_BACKEND": "sandbox",
        "RECIPES_STATE_DIR": str(tmp_path / "state"),
        "RECIPES_OUTPUT_DIR": str(tmp_path / "outputs"),
    })  # fmt: skip
    assert run.outcome == "ok", run.error


def test_the_seal_holds():
    import requests

    assert {name: os.environ[name] for name in SEAL} == SEAL
    with pytest.raises(requests.exceptions.ProxyError):
        requests.get("https://example.org", timeout=5)


def test_nbval_finds_no_broken_cell(environment):
    """A second opinion, cell by cell, from another harness; of all but the one whose conversions take half a minute."""
    files = [path for path in notebook_files() if path.stem[0] != "5"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval-lax",
        "-x",
        "-q",
        "-c",
        os.devnull,
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, "--rootdir", str(PROJECT), *map(str, files)],
        env=os.environ | environment, capture_output=True, text=True, timeout=400, cwd=PROJECT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_plain_papermill_runs_a_notebook_from_any_folder(environment, tmp_path):
    """One of them: the runner, which all others go through, calls the same papermill."""
    path = NOTEBOOKS / "3_archive_to_s3.ipynb"
    command = [sys.executable, "-m", "papermill", str(path), "out.ipynb", "--no-progress-bar"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "out.ipynb").read_text())["metadata"]["papermill"]["exception"] is None
