"""A newcomer's machine: a fresh clone, nothing of ours installed yet; `make demo` is what they do first."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..browser.conftest import chromium  # noqa: F401 - a fixture

ROOT = Path(__file__).resolve().parents[2]
#: How this machine reaches a package index at all: all that a clone may inherit.
NETWORK = (
    "PIP_",
    "UV_",
    "SSL_CERT_",
    "REQUESTS_CA_BUNDLE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
)


def git(*args: str, cwd: Path = ROOT) -> str:
    return subprocess.run(["git", *args], cwd=cwd, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session")
def clone(tmp_path_factory) -> Path:
    """A clone of this repository, brought to the state of this work tree: what a commit of it would hold."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    clone = tmp_path_factory.mktemp("newcomer") / "eo-cloud-recipes"
    git("clone", "--quiet", str(ROOT), str(clone))
    here = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, {*here, *git("ls-files", "-z", cwd=clone).split("\0")}):
        (clone / name).unlink(missing_ok=True)
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    git("add", "--all", cwd=clone)
    assert not (clone / ".venv").exists()
    return clone


@pytest.fixture(scope="session")
def machine(tmp_path_factory, unsealed) -> dict[str, str]:
    """A newcomer's environment: an empty home, the system's programs, our Python under its full name only."""
    home, programs = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("bin")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for name, path in {
        "make": shutil.which("make"),
        "git": shutil.which("git"),
        version: sys._base_executable,
    }.items():
        (programs / name).symlink_to(path)
    inherited = {name: value for name, value in unsealed.items() if name.upper().startswith(NETWORK)}
    inherited.pop("UV_PYTHON", None)
    # Downloads that are on this machine already need not be fetched again; a new machine simply has none.
    cache = Path(unsealed.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uv"
    return {
        "UV_CACHE_DIR": str(cache),
        **inherited,
        "HOME": str(home),
        "PATH": f"{programs}:/usr/bin:/bin",
        "LANG": "C.UTF-8",
    }


def make(clone: Path, machine: dict[str, str], *args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["make", *args], cwd=clone, env=machine, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


@pytest.fixture(scope="session")
def demo(clone, machine) -> subprocess.CompletedProcess:
    return make(clone, machine, "demo")
