"""The files around the code agree: dependencies, Makefile, CI, hooks and the set-up script."""

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, GROUPS = PYPROJECT["project"], PYPROJECT["dependency-groups"]
PYTHONS = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
CONSTRAINTS = (ROOT / "constraints.txt").read_text()

#: What a package is called on conda-forge, where the two differ. Extras are separate packages there.
ON_CONDA_FORGE = {
    "hyp3-sdk": ["hyp3_sdk"],
    "matplotlib": ["matplotlib-base"],  # without the Qt windows that nobody needs in a notebook
    "moto[server]": ["moto"],
    "psycopg[binary,pool]": ["psycopg", "psycopg-pool"],  # its libpq comes from conda as well
    "pyjwt[crypto]": ["pyjwt", "cryptography"],
    "pystac[validation]": ["pystac", "jsonschema"],
}
#: Not on conda-forge at all; only these may stand in the pip section, beside the project itself.
NOT_ON_CONDA_FORGE: set[str] = {
    "destinelab",
    "eopf",
    "eopf-geozarr",
    "odata-query",
    "pypgstac",
    "stac-fastapi-pgstac",
}
#: What conda has and no wheel does: the database of notebook 6.
ONLY_FROM_CONDA = {"postgresql", "postgis", "nbgitpuller"}

#: Modules that helpers/ may import although pyproject.toml names only the package that brings them along.
COMES_WITH = {
    "botocore": "boto3",
    "cloudpickle": "distributed",
    "cryptography": "pyjwt",
    "dask": "distributed",
    "flask-cors": "moto",
    "fsspec": "s3fs",
    "ipython": "ipykernel",
    "jsonschema": "pystac",
    "jupyter-client": "ipykernel",
    "jupyter-core": "ipykernel",
    "lxml": "destinelab",
    "nbformat": "nbclient",
    "netcdf4": "eopf",
    "pydantic": "pydantic-settings",
    "pyproj": "eopf",
    "referencing": "pystac",
    "shapely": "eopf",
    "traitlets": "ipykernel",
    "urllib3": "requests",
    "werkzeug": "flask",
}


def requirements(*lists: list[str]) -> list[Requirement]:
    return [Requirement(line) for lines in lists for line in lines]


def names(found: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in found}


def files_of_the_project() -> list[Path]:
    """Everything that is, or on the next commit could be, in the repository."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.split("\0") if (path := ROOT / name).is_file()]


# dependencies


def test_environment_yml_lists_what_pyproject_lists():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]

    expected = {}
    for requirement in requirements(PROJECT["dependencies"], GROUPS["test"]):
        if requirement.name in NOT_ON_CONDA_FORGE:
            assert str(requirement) in pip
            continue
        extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        first, *more = ON_CONDA_FORGE.get(requirement.name + extras, [requirement.name])
        expected[first] = str(requirement.specifier)
        expected |= dict.fromkeys(more, "")
    listed = {match[1]: match[2] for entry in conda if (match := re.fullmatch(r"([\w.-]+?)\s*([<>=!~].*)?", entry))}
    python = listed.pop("python")
    assert listed.pop("pip") is None
    assert {listed.pop(name) for name in ONLY_FROM_CONDA} == {None}
    assert {name: spec or "" for name, spec in listed.items()} == expected

    # repo2docker reads the version only from `python=3.x`
    assert python.removeprefix("=") in PYTHONS
    assert pip[0] == "-e ."
    assert names(requirements(pip[1:])) <= NOT_ON_CONDA_FORGE
    assert set(environment["channels"]) == {"conda-forge", "nodefaults"}


def test_the_tables_of_names_hold_nothing_superfluous():
    written = {line.split(">")[0] for line in [*PROJECT["dependencies"], *GROUPS["test"]]}
    assert set(ON_CONDA_FORGE) <= written
    assert set(COMES_WITH.values()) <= names(requirements(PROJECT["dependencies"]))


def test_constraints_pin_every_direct_dependency_to_a_version_that_fits():
    pins = dict(re.findall(r"^([a-z0-9.-]+)==([^\s;]+)", CONSTRAINTS, re.M))
    for requirement in requirements(PROJECT["dependencies"], *GROUPS.values(), PYPROJECT["build-system"]["requires"]):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_constraints_are_names_versions_markers_and_hashes_only():
    logical_lines = CONSTRAINTS.replace("\\\n", "").splitlines()
    assert len(logical_lines) > 100
    for line in logical_lines:
        assert re.fullmatch(
            r"[a-z0-9.-]+==[\w.!+]+(?: ; [\w .<>=!'()]+?)?\s*(?:\s+--hash=sha256:[0-9a-f]{64})+\s*", line
        ), line
    assert "/" not in CONSTRAINTS


def test_helpers_import_only_what_is_declared():
    imported = set()
    for path in (ROOT / "helpers").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    imported -= sys.stdlib_module_names | {"helpers"}
    assert imported

    packages = packages_distributions()
    declared = names(requirements(PROJECT["dependencies"]))
    for module in imported:
        providers = {canonicalize_name(name) for name in packages.get(module, [module])}
        assert providers & (declared | set(COMES_WITH)), f"`{module}`: not in [project] dependencies"


def test_python_versions_agree_everywhere():
    assert SpecifierSet(PROJECT["requires-python"]) == SpecifierSet(f">={PYTHONS[0]}")
    matrix = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]["tests"]["strategy"]["matrix"]
    assert matrix["python"] == PYTHONS
    assert set(matrix["os"]) == {"ubuntu-latest", "macos-latest"}
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + PYTHONS[0].replace(".", "")


def test_citation_and_changelog_belong_to_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert re.search(r"^## \[Unreleased\]", (ROOT / "CHANGELOG.md").read_text(), re.M)


# what is tracked, and what is not


@pytest.mark.parametrize("name", [".env_tutorial", ".venv/", ".tools/", "outputs/", ".state/", "__pycache__/"])
def test_gitignore_covers(name):
    assert name in (ROOT / ".gitignore").read_text().splitlines()


def test_no_file_names_a_machine_or_a_package_registry():
    home = r"(?<![\w.~$}])/(?:root|home/\w+|Users/\w+)/"
    registry = r"(?:[\w-]+\.)*(?:pypi|pythonhosted|npmjs|debian)\.(?:org|com)\b"
    here = "|".join(re.escape(f"{path}/") for path in (ROOT, Path.home()) if len(path.parts) > 2)
    forbidden = re.compile("|".join(filter(None, [home, registry, here])))
    files = files_of_the_project()
    assert ROOT / "bootstrap.py" in files
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in files
        for number, line in enumerate(path.read_bytes().decode(errors="ignore").splitlines(), 1)
        if (match := forbidden.search(line))
    ]
    assert not found


# Makefile, CI, hooks


def make(*args: str) -> subprocess.CompletedProcess:
    """Not as a part of the `make test` that may be running us."""
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(["make", *args], cwd=ROOT, env=env, capture_output=True, text=True)


def makefile_help() -> dict[str, str]:
    done = make()
    assert done.returncode == 0, done.stderr
    return dict(line.split(None, 2)[1:] for line in done.stdout.splitlines())


#: Targets that are parts of others.
INNER = {"recipes"}


def test_make_alone_lists_every_target():
    listed = makefile_help()
    assert {"help", "demo", "test", "lab", "check", "lint", "clean"} <= set(listed)
    (phony,) = re.findall(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.M)
    assert set(phony.split()) == set(listed) | INNER


def test_every_listed_target_exists_and_sets_up_first():
    for target in set(makefile_help()) - {"help", "clean"}:
        done = make("-n", target)
        assert done.returncode == 0, done.stderr
        assert "bootstrap.py" in done.stdout.split(".venv/bin/python -m")[0], target


def test_only_the_tests_bring_a_browser():
    assert "bootstrap.py --browser" in make("-n", "test").stdout
    for target in ("setup", "demo", "lab"):
        assert "--browser" not in make("-n", target).stdout, target


def test_ci_sets_up_says_its_python_and_passes_the_exit_code_on(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    script(
        tmp_path / "bin/make", 'echo "$1 browser $RECIPES_BROWSER" >> calls', 'if [ "$1" = test ]; then cat; exit 7; fi'
    )
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    done = subprocess.run(
        [tmp_path / ".ci/run"],
        cwd="/",
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"},
        input="must not arrive",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 7
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["setup browser required", "test browser required"]
    assert f"Python: {sys.version.split()[0]}" in done.stdout
    assert "must not arrive" not in done.stdout


def test_workflows_pin_their_actions_and_run_what_we_run_here():
    workflows = {path.name: path.read_text() for path in (ROOT / ".github/workflows").glob("*.yml")}
    for name, text in workflows.items():
        assert yaml.safe_load(text)["permissions"] == {"contents": "read"}, name
        for action in re.findall(r"uses: (.*)", text):
            assert re.fullmatch(r"actions/[\w-]+@v\d+", action), action
    assert "run: .ci/run" in workflows["tests.yml"]
    assert "constraints.txt" not in re.sub(r"(?m)^#.*", "", workflows["newest.yml"])


def test_the_archive_workflow_runs_what_is_here():
    workflow = yaml.safe_load((ROOT / "docs/archive.workflow.yml").read_text())
    job = workflow["jobs"]["archive"]
    assert job["concurrency"]["cancel-in-progress"] is False and workflow["permissions"]["id-token"] == "write"
    files = [ROOT / f"notebooks/parameters/{name}.yaml" for name in job["strategy"]["matrix"]["project"]]
    assert sorted(files) == sorted((ROOT / "notebooks/parameters").glob("archive_*.yaml"))
    (command,) = [step["run"] for step in job["steps"] if "helpers run" in step.get("run", "")]
    words = shlex.split(command.replace("${{ matrix.project }}", files[0].stem))
    assert all((ROOT / word).exists() for word in words if word.startswith("notebooks/"))


@pytest.mark.parametrize("page", sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]))
def test_links_between_pages_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)#]*)", page.read_text()):
        assert not link or (page.parent / link).exists(), f"{page.name}: {link}"


def test_hooks_and_make_lint_strip_notebooks_the_same_way():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    (hook,) = [hook for hook in hooks if hook["id"] == "nbstripout"]
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", "")
    assert hook["args"] == shlex.split(re.search(r"nbstripout (--.*)", makefile)[1])


# bootstrap.py, with made-up interpreters


def script(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


def python(path: Path, version: str, kind: str = "cpython|final|") -> Path:
    """A stand-in that says of itself what a real interpreter says when bootstrap.py asks it."""
    return script(path, f"echo '{path}|{version}|{kind}'")


class Checkout:
    """A folder with bootstrap.py, among made-up interpreters and a made-up uv that writes its calls down."""

    def __init__(self, path: Path):
        self.path, self.bin, self.home = path / "project", path / "bin", path / "home"
        self.path.mkdir()
        self.home.mkdir()
        shutil.copy(ROOT / "bootstrap.py", self.path)
        classifiers = "".join(f'"Programming Language :: Python :: {version}",\n' for version in ("3.13", "3.14"))
        (self.path / "pyproject.toml").write_text(f"classifiers = [\n{classifiers}]\n")
        (self.path / "constraints.txt").write_text("a==1\n")
        self.log = path / "uv.log"
        script(
            self.bin / "uv",
            "PATH=/usr/bin:/bin",
            f'if [ "$1" = --version ]; then echo "uv 0.9.0"; exit; fi; echo "$@" >> "{self.log}"',
            "for last; do :; done",
            'if [ "$1" = venv ]; then mkdir -p "$last/bin"; cp "$4" "$last/bin/python"; fi',
            f'if [ "$1 $2" = "pip sync" ] && [ -e "{path}/broken" ]; then exit 9; fi',
            '[ "$1" != python ]',
        )

    def run(self, *args: str, **env: str) -> subprocess.CompletedProcess:
        self.log.write_text("")
        return subprocess.run(
            [sys.executable, "-B", self.path / "bootstrap.py", *args],
            env={"PATH": str(self.bin), "HOME": str(self.home)} | env,
            cwd=self.home,
            capture_output=True,
            text=True,
        )

    def find(self, **env: str) -> str:
        done = self.run("--find", **env)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def set_up(self, **env: str) -> list[str]:
        """The uv commands of one set-up that succeeds."""
        done = self.run(**env)
        assert done.returncode == 0, done.stderr
        calls = self.log.read_text().splitlines()
        return [re.match(r"venv|pip sync|pip install", call)[0] for call in calls]


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_finder_takes_the_users_own_python_when_it_fits(checkout):
    own = python(checkout.bin / "python3", "3.13.2")
    python(checkout.bin / "python3.14", "3.14.1")
    assert checkout.find() == str(own)


def test_finder_gets_past_shims_that_fail_and_interpreters_that_do_not_fit(checkout, tmp_path):
    script(checkout.bin / "python3", "exit 127")
    script(checkout.bin / "python3.13", "exit 127")
    python(checkout.bin / "python", "3.11.7")
    python(checkout.bin / "python3.14", "3.14.0", "cpython|candidate|")
    (checkout.bin / "folder").mkdir()
    right = python(tmp_path / "further" / "python3.13", "3.13.0")
    assert checkout.find(PATH=f"{checkout.bin}:{tmp_path}/nowhere:{right.parent}") == str(right)


@pytest.mark.parametrize("where", ["home", "PYENV_ROOT"])
def test_finder_looks_through_pyenvs_versions_newest_first(checkout, tmp_path, where):
    python(checkout.bin / "python3", "3.11.7")
    root = checkout.home / ".pyenv" if where == "home" else tmp_path / "elsewhere"
    for version in ("3.9.18", "3.13.0", "3.13.10", "3.13.9", "3.99.0"):
        python(root / "versions" / version / "bin/python", version)
    env = {} if where == "home" else {"PYENV_ROOT": str(root)}
    assert checkout.find(**env) == str(root / "versions/3.13.10/bin/python")


@pytest.mark.parametrize("kind", ["cpython|candidate|", "cpython|final|t", "pypy|final|"])
def test_finder_wants_an_ordinary_release_of_cpython(checkout, kind):
    python(checkout.bin / "python3", "3.13.0", kind)
    right = python(checkout.bin / "python3.13", "3.13.0")
    assert checkout.find() == str(right)


def test_finder_explains_when_nothing_fits(checkout):
    python(checkout.bin / "python3", "3.11.7")
    script(checkout.bin / "python3.13", "exit 127")
    python(checkout.home / ".pyenv/versions/3.99.0/bin/python", "3.99.0")
    done = checkout.run()
    assert done.returncode == 1
    assert "Needed: 3.13 or 3.14" in done.stderr
    assert re.search(r"bin/python3  3\.11\.7 \(not a version we test\)", done.stderr)
    assert re.search(r"bin/python3\.13 .*does not run", done.stderr)
    assert "3.99.0" in done.stderr
    assert "uv python install 3.13" in done.stderr and "conda env create" in done.stderr
    assert "venv --quiet --python 3.13" in checkout.log.read_text(), "uv was not asked to fetch one"
    assert not (checkout.path / ".venv").exists()


def test_finder_obeys_an_explicit_choice(checkout, tmp_path):
    python(checkout.bin / "python3", "3.13.2")
    newer = python(tmp_path / "mine", "3.99.0")
    older = python(tmp_path / "old", "3.11.7")
    assert checkout.find(PYTHON=str(newer)) == str(newer)
    done = checkout.run("--find", PYTHON=str(older))
    assert done.returncode == 1 and "3.11.7" in done.stderr and not done.stdout
    assert checkout.run("--find", PYTHON="no-such-python").returncode == 1


def test_set_up_does_each_thing_once(checkout, tmp_path):
    python(checkout.bin / "python3", "3.13.2")
    assert checkout.set_up() == ["venv", "pip sync", "pip install"]
    assert "--require-hashes --compile-bytecode" in checkout.log.read_text()
    assert checkout.set_up() == []

    (checkout.path / "constraints.txt").write_text("a==2\n")
    assert checkout.set_up() == ["pip sync", "pip install"]
    assert checkout.set_up() == []

    other = python(tmp_path / "other", "3.14.0")
    assert checkout.set_up(PYTHON=str(other)) == ["venv", "pip sync", "pip install"]
    assert checkout.set_up(PYTHON=str(other)) == checkout.set_up() == []


def test_set_up_mends_what_was_cut_short(checkout, tmp_path):
    python(checkout.bin / "python3", "3.13.2")
    (tmp_path / "broken").touch()
    done = checkout.run()
    assert done.returncode == 1 and "exit code 9" in done.stderr
    (tmp_path / "broken").unlink()
    assert checkout.set_up() == ["venv", "pip sync", "pip install"]
    assert checkout.set_up() == []


def test_set_up_starts_anew_when_python_went_away_or_the_folder_moved(checkout):
    python(checkout.bin / "python3", "3.13.2")
    checkout.set_up()
    (checkout.path / ".venv/bin/python").unlink()
    assert checkout.set_up() == ["venv", "pip sync", "pip install"]
    checkout.path = checkout.path.rename(checkout.path.with_name("moved"))
    assert checkout.set_up() == ["venv", "pip sync", "pip install"]


def test_bootstrap_needs_nothing_but_an_old_python():
    tree = ast.parse((ROOT / "bootstrap.py").read_text(), feature_version=(3, 8))
    imports = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imports |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imports <= sys.stdlib_module_names


# bootstrap.py and the database of notebook 6


@pytest.fixture
def bootstrap(tmp_path, monkeypatch):
    """bootstrap.py as a module, on a machine with Debian's apt-get (made up) and without PostGIS."""
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    postgis, self = tmp_path / "extension/postgis.control", tmp_path / "apt.log"
    clusters = tmp_path / "etc/createcluster.conf"
    script(
        tmp_path / "bin/apt-get",
        f'echo "$DEBIAN_FRONTEND $@" >> "{self}"',
        f'case "$*" in *--download-only*) [ ! -e "{tmp_path}/stale" ]; exit;; esac',
        f'case "$*" in *update*) rm -f "{tmp_path}/stale"; [ ! -e "{tmp_path}/offline" ]; exit;; esac',
        f'case "$*" in *postgresql-common) mkdir "{tmp_path}/etc"; echo "a = b" > "{clusters}";;',
        f'*postgis*) cat "{clusters}" >> "{self}"; mkdir "{postgis.parent}"; touch "{postgis}";; esac',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.delenv("RECIPES_INSTALL_POSTGIS", raising=False)
    monkeypatch.setattr(module.os, "geteuid", lambda: 0)
    for name, value in {"TOOLS": tmp_path / "tools", "POSTGIS": [str(postgis)], "SERVERS": "/none/*"}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "CLUSTERS", str(clusters))
    module.calls = lambda: self.read_text() if self.exists() else ""
    return module


def test_root_on_debian_gets_postgis_without_a_server_of_the_systems_own(bootstrap, tmp_path, capfd):
    (tmp_path / "stale").touch()
    bootstrap.ensure_postgis()
    calls = bootstrap.calls()
    assert calls.count("noninteractive -qq ") == len(re.findall("Acquire::http::Timeout", calls)) == 5
    assert [word in calls for word in (" update", "postgresql-postgis", "create_main_cluster = false")] == [True] * 3
    assert (tmp_path / "etc/createcluster.conf").read_text() == "a = b\n"
    assert "embedded" not in capfd.readouterr().err
    bootstrap.ensure_postgis()
    assert bootstrap.calls() == calls  # a glance at files


def test_postgis_that_cannot_be_fetched_is_named_once_and_stops_nothing(bootstrap, tmp_path, capfd):
    (tmp_path / "stale").touch()
    (tmp_path / "offline").touch()
    bootstrap.ensure_postgis()
    told = capfd.readouterr().err
    assert "embedded store" in told and "apt-get install" in told
    calls = bootstrap.calls()
    bootstrap.ensure_postgis()
    assert capfd.readouterr().err == "" and bootstrap.calls() == calls


def test_nobody_but_root_installs_postgis_and_the_command_is_printed(bootstrap, monkeypatch, capfd):
    monkeypatch.setattr(bootstrap.os, "geteuid", lambda: 1000)
    bootstrap.ensure_postgis()
    assert bootstrap.calls() == ""
    assert "sudo apt-get install -y --no-install-recommends postgresql-postgis" in capfd.readouterr().err


def test_postgis_is_left_when_asked_and_fits_the_server_that_is_here(bootstrap, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("RECIPES_INSTALL_POSTGIS", "no")
    bootstrap.ensure_postgis()
    assert (bootstrap.calls(), capfd.readouterr().err) == ("", "")
    for version in (9, 16, 17):
        (tmp_path / f"lib/{version}/bin").mkdir(parents=True)
        (tmp_path / f"lib/{version}/bin/postgres").touch()
    monkeypatch.setattr(bootstrap, "SERVERS", str(tmp_path / "lib/*/bin/postgres"))
    assert bootstrap.postgis_command()[-1] == "postgresql-17-postgis-3"


# bootstrap.py and the browser of the tests


@pytest.fixture
def browserless(bootstrap, tmp_path, monkeypatch):
    """The same machine without a browser; apt-get brings one that runs, or none when `offline` is there."""
    ours = tmp_path / "bin/chromium-of-the-tests"
    script(
        tmp_path / "bin/apt-get",
        f'echo "$@" >> "{tmp_path}/apt.log"',
        f'if [ -e "{tmp_path}/offline" ]; then exit 100; fi',
        'case "$*" in *--download-only*|*update*) exit;; esac',
        f"printf '#!/bin/sh\\necho Chromium 150.0\\n' > '{ours}'; chmod +x '{ours}'",
    )
    monkeypatch.delenv("RECIPES_INSTALL_CHROMIUM", raising=False)
    monkeypatch.delenv("RECIPES_CHROMIUM", raising=False)
    monkeypatch.setattr(bootstrap, "BROWSERS", [ours.name])
    monkeypatch.setattr(bootstrap, "BROWSER_FILES", [])
    return bootstrap


def test_root_on_debian_gets_a_browser_with_a_font_once(browserless, tmp_path, capfd):
    assert browserless.find_browser() == ""
    browserless.ensure_browser()
    assert browserless.find_browser() == str(tmp_path / "bin/chromium-of-the-tests")
    calls = browserless.calls().splitlines()
    assert len(calls) == 2 and all("--no-install-recommends chromium fonts-dejavu-core" in call for call in calls)
    assert "skipped" not in capfd.readouterr().err
    browserless.ensure_browser()
    assert browserless.calls().splitlines() == calls


@pytest.mark.parametrize("why", ["offline", "user", "asked"])
def test_without_a_browser_it_is_said_once_what_to_do(browserless, why, tmp_path, monkeypatch, capfd):
    if why == "offline":
        (tmp_path / "offline").touch()
    if why == "user":
        monkeypatch.setattr(browserless.os, "geteuid", lambda: 1000)
    if why == "asked":
        monkeypatch.setenv("RECIPES_INSTALL_CHROMIUM", "no")
    browserless.ensure_browser()
    told, calls = capfd.readouterr().err, browserless.calls()
    assert bool(calls) == (why == "offline")
    assert ("apt-get install" in told and "RECIPES_CHROMIUM" in told) == (why != "asked")
    assert told.count("sudo ") == (why == "user")
    browserless.ensure_browser()
    assert (capfd.readouterr().err, browserless.calls()) == ("", calls)


def test_a_browser_is_one_that_runs_and_the_users_own_choice_comes_first(browserless, tmp_path, monkeypatch):
    script(tmp_path / "bin/chromium-of-the-tests", "echo 'get it from the shop'; exit 1")
    assert browserless.find_browser() == ""
    cached = script(tmp_path / "cache/chromium-1200/chrome-linux64/chrome", "echo Chromium 140.1")
    monkeypatch.setattr(browserless, "BROWSER_FILES", [str(tmp_path / "cache/chromium-*/chrome-*/chrome")])
    assert browserless.find_browser() == str(cached)
    own = script(tmp_path / "own", "echo Chrome 1.2")
    monkeypatch.setenv("RECIPES_CHROMIUM", str(own))
    assert browserless.find_browser() == str(own)
