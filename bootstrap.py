#!/usr/bin/env python3
"""Make .venv ready: find a fitting Python, get uv, install exactly what constraints.txt lists; then look for PostGIS.

The Makefile runs this before every target that needs the environment; when nothing has changed it looks
and returns. It runs before we have our Python, hence: any Python from 3.8 on, standard library only.
PYTHON=/path/to/python overrides the search; `bootstrap.py --find` only prints what would be used.
PostGIS, the database of notebook 6, and with `bootstrap.py --browser` Chromium, for the tests, are installed only by
root and from Debian's packages; elsewhere the command is printed, once. RECIPES_INSTALL_POSTGIS=no and
RECIPES_INSTALL_CHROMIUM=no leave them.
"""

import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
TOOLS, VENV_PYTHON, STAMP = ROOT / ".tools", ROOT / ".venv/bin/python", ROOT / ".venv/.setup"
LAB_SETTINGS = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}
PYPROJECT, CONSTRAINTS = ROOT / "pyproject.toml", ROOT / "constraints.txt"
SUPPORTED = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT.read_text(encoding="utf-8"))
ASK = (  # in a venv, name the interpreter behind it: that venv may be the one about to be replaced
    "import sys; print(getattr(sys, '_base_executable', '') or sys.executable, '.'.join(map(str,"
    " sys.version_info[:3])), sys.implementation.name, sys.version_info[3], sys.abiflags, sep='|')"
)


#: Where PostGIS is when it is installed: Debian, Red Hat, Homebrew (both kinds of Mac), conda.
POSTGIS = [
    folder + "/extension/postgis.control"
    for folder in (
        "/usr/share/postgresql/*",
        "/usr/pgsql-*/share",
        "/opt/homebrew/share/postgresql*",
        "/opt/homebrew/opt/postgresql*/share/postgresql*",
        "/usr/local/share/postgresql*",
        "/usr/local/opt/postgresql*/share/postgresql*",
        os.environ.get("CONDA_PREFIX", "/none") + "/share",
    )
]
SERVERS, CLUSTERS = "/usr/lib/postgresql/*/bin/postgres", "/etc/postgresql-common/createcluster.conf"
#: Browsers that the tests can use, by their names on the PATH and where macOS and Playwright have them.
BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"]
BROWSER_FILES = [
    "/Applications/*Chrom*.app/Contents/MacOS/*Chrom*",
    *(
        folder + "/chromium-*/chrome-*/" + program
        for folder in (
            os.environ.get("PLAYWRIGHT_BROWSERS_PATH", "/none"),
            str(Path.home() / ".cache/ms-playwright"),
            str(Path.home() / "Library/Caches/ms-playwright"),
        )
        for program in ("chrome", "*.app/Contents/MacOS/*Chrom*")
    ),
]
#: Neither a dead mirror nor somebody else's apt may hold us up.
APT = ["-qq", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::Retries=1", "-o", "DPkg::Lock::Timeout=60"]


def number(text):
    return tuple(map(int, re.findall(r"\d+", text)))


def output(*command):
    """What a command prints; '' when it cannot be run, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def run(*command, **env):
    code = subprocess.run(command, env={**os.environ, **env}, close_fds=False).returncode
    if code:
        sys.exit(f"Set-up stopped, exit code {code}: {' '.join(command)}\nRun make again to go on.")


def ask(python):
    """(interpreter, version, what is wrong), by running it: pyenv's shims are there but may exit 127."""
    answer = output(str(python), "-I", "-S", "-c", ASK).split("|")
    if len(answer) != 5:
        return "", "", "does not run"
    path, version, name, level, flags = answer
    if name != "cpython" or level != "final" or "t" in flags:
        return path, version, "not an ordinary CPython release"
    return path, version, "" if ".".join(version.split(".")[:2]) in SUPPORTED else "not a version we test"


def candidates():
    """Interpreters on the PATH, the user's own choice first; then pyenv's, newest first."""
    for name in ["python3", "python"] + ["python" + version for version in SUPPORTED]:
        yield from (Path(folder, name) for folder in os.get_exec_path())
    for root in (os.environ.get("PYENV_ROOT"), Path.home() / ".pyenv"):
        found = Path(root, "versions").glob("*/bin/python") if root else ()
        yield from sorted(found, key=lambda path: number(path.parts[-3]), reverse=True)


def find_python():
    """The interpreter to build with. Last of all, uv looks for one that it manages, or fetches one."""
    wanted, oldest, seen = os.environ.get("PYTHON"), SUPPORTED[0], {}
    if wanted:
        path, version, problem = ask(wanted)
        if number(version) < number(oldest):  # a newer one than we test is the user's own decision
            needed = " or ".join(SUPPORTED)
            sys.exit(f"PYTHON={wanted} ({version or problem}) does not fit. Needed: {needed}. Or unset PYTHON.")
        return path
    for candidate in candidates():
        real = os.path.realpath(str(candidate))
        if real not in seen and os.path.isfile(real) and os.access(real, os.X_OK):
            path, version, problem = ask(candidate)
            if not problem:
                return path
            seen[real] = f"  {candidate}  {version} ({problem})"
    uv, trial = find_uv(), str(TOOLS / "trial")
    for version in SUPPORTED:
        path, _, problem = ask(output(uv, "python", "find", version) or "none")
        if not problem:
            return path
    print(f"No fitting Python is installed: uv tries to fetch {oldest} ...", file=sys.stderr)
    shutil.rmtree(trial, ignore_errors=True)
    subprocess.run([uv, "venv", "--quiet", "--python", oldest, trial])
    path, _, problem = ask(trial + "/bin/python")
    if not problem:
        return path
    sys.exit(
        "\n".join([f"\nNo fitting Python. Needed: {' or '.join(SUPPORTED)}. Found:", *seen.values()])
        + f"\nGet one with a version manager:  uv python install {oldest}   (or: pyenv install {oldest})"
        "\nor as a conda environment, used without make:  conda env create -f environment.yml"
        f"\nOr name one that you have:  make demo PYTHON=/path/to/python{oldest}"
    )


def find_uv(*pythons):
    """uv from the PATH or its usual place; else pip puts it into .tools, by its hash in constraints.txt."""
    ours, helper, pin_file = (str(TOOLS / name) for name in ("bin/uv", "pip/bin/python", "uv.txt"))
    for uv in ("uv", str(Path.home() / ".local/bin/uv"), ours):
        if number(output(uv, "--version"))[:2] >= (0, 5):
            return uv
    print("Fetching uv, which installs the rest ...", file=sys.stderr)
    pin = re.search(r"^uv==.*(\n +--hash.*)+", CONSTRAINTS.read_text(encoding="utf-8"), re.M)
    TOOLS.mkdir(exist_ok=True)
    Path(pin_file).write_text(pin.group() + "\n", encoding="utf-8")
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    allow = {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}  # either setting would forbid --target
    pythons = (getattr(sys, "_base_executable", sys.executable), *pythons)
    for python in (*pythons, helper):
        if python == helper:  # no pip anywhere: a venv often brings one
            output(pythons[-1], "-m", "venv", "--clear", str(TOOLS / "pip"))
        if output(python, "-m", "pip", "--version"):
            pip = (python, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(TOOLS))
            run(*pip, "--require-hashes", "-r", pin_file, **quiet, **allow)
            return ours
    sys.exit("Neither uv nor pip is here. On Debian or Ubuntu:  sudo apt install python3-pip")


def look():
    """(is .venv as it should be? can it be brought up to date in place? the key it should carry)"""
    python, wanted = ask(VENV_PYTHON), os.environ.get("PYTHON")
    parts = [path.read_bytes() for path in (PYPROJECT, CONSTRAINTS, Path(__file__))] + [repr(python).encode()]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest() + f"\n{ROOT}"
    stamp = STAMP.read_text(encoding="utf-8") if STAMP.is_file() else ""
    whole = not stamp or stamp.endswith(f"\n{ROOT}")  # neither cut short nor moved here from another folder
    usable = whole and number(python[1]) >= number(SUPPORTED[0])
    if wanted and os.path.realpath(ask(wanted)[0]) != os.path.realpath(python[0]):
        usable = False
    return usable and stamp == key, usable, key


def install(rebuild):
    python = find_python() if rebuild else ask(VENV_PYTHON)[0]
    uv, quiet = find_uv(python), [] if sys.stderr.isatty() else ["--quiet"]
    print(f"Setting up .venv with {python} (a minute or two the first time) ...", file=sys.stderr)
    if rebuild:
        if STAMP.parent.exists():  # aside in one step: half a .venv must never pass for a whole one
            shutil.rmtree(TOOLS / "old", ignore_errors=True)
            STAMP.parent.rename(TOOLS / "old")
            shutil.rmtree(TOOLS / "old", ignore_errors=True)
        run(uv, "venv", "--quiet", "--python", python, "--prompt", ROOT.name, str(STAMP.parent))
    STAMP.write_text("unfinished", encoding="utf-8")
    into = ["--python", str(VENV_PYTHON), *quiet]
    # Where Python keeps no bytecode, each new process would pay again; elsewhere the first one leaves what it needs.
    bytecode = ["--compile-bytecode"] if sys.dont_write_bytecode else []
    run(uv, "pip", "sync", *into, "--require-hashes", *bytecode, str(CONSTRAINTS))
    # hatchling is in constraints.txt and installed by now: no isolated build that fetches an unpinned one.
    run(uv, "pip", "install", *into, "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    # On its first day JupyterLab asks whether it may fetch news from the network, and covers the page with it.
    lab = STAMP.parent / "share/jupyter/lab/settings"
    lab.mkdir(parents=True, exist_ok=True)
    (lab / "overrides.json").write_text(json.dumps(LAB_SETTINGS, indent=1) + "\n", encoding="utf-8")
    STAMP.write_text(look()[2], encoding="utf-8")


def has_postgis():
    return any(glob.glob(pattern) for pattern in POSTGIS)


def postgis_command():
    """What brings PostGIS to this machine."""
    if shutil.which("apt-get"):
        servers = sorted((number(Path(path).parts[-3])[0] for path in glob.glob(SERVERS)), reverse=True)
        package = f"postgresql-{servers[0]}-postgis-3" if servers else "postgresql-postgis"
        return ["apt-get", "install", "-y", "--no-install-recommends", package]
    if shutil.which("brew"):
        return ["brew", "install", "postgis"]
    return ["conda", "install", "-c", "conda-forge", "postgresql", "postgis"]


def browser_candidates():
    named = os.environ.get("RECIPES_CHROMIUM")
    if named:
        return [named]
    return BROWSERS + [path for pattern in BROWSER_FILES for path in sorted(glob.glob(pattern), reverse=True)]


def find_browser():
    """A Chromium or Chrome that runs, RECIPES_CHROMIUM if that is set; '' if there is none."""
    for name in browser_candidates():
        path = shutil.which(name)
        if path and number(output(path, "--version")):  # Ubuntu's chromium-browser may only say where to get it
            return path
    return ""


def browser_command():
    """What brings Chromium to this machine; without a font of its own, a bare machine's pages have no letters."""
    if shutil.which("apt-get"):
        return ["apt-get", "install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"]
    return [os.path.relpath(str(VENV_PYTHON.with_name("playwright"))), "install", "chromium"]


def ensure(name, purpose, without, is_there, command, install):
    """Install a program where that is ours to do, and say once what to do elsewhere; nothing depends on it."""
    told, variable = TOOLS / (name.lower() + ".log"), "RECIPES_INSTALL_" + name.upper()
    if is_there() or told.exists() or os.environ.get(variable, "").lower() in ("no", "0", "false"):
        return
    TOOLS.mkdir(exist_ok=True)
    root = os.geteuid() == 0
    with open(str(told), "w", encoding="utf-8") as log:
        if command[0] == "apt-get" and root:
            print(f"Installing {name} for {purpose} ({variable}=no leaves it) ...", file=sys.stderr)
            install(command[1:], log)
    if is_there():
        told.unlink()
        return
    by_hand = ("" if root or command[0] != "apt-get" else "sudo ") + " ".join(command)
    tried = f" could not be installed ({told})" if told.stat().st_size else " is not here"
    print(f"{name}{tried}: {without}:  {by_hand}", file=sys.stderr)


def ensure_postgis():
    without = "notebook 6 uses its embedded store. For the real one"
    ensure("PostGIS", "notebook 6", without, has_postgis, postgis_command(), install_postgis)


def ensure_browser():
    without = "the tests in a browser are skipped. RECIPES_CHROMIUM names one that is elsewhere; to get one"
    ensure("Chromium", "the tests", without, find_browser, browser_command(), install_packages)


def apt(log, *arguments, **limit):
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    quiet = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "env": env}
    try:
        return subprocess.run(["apt-get", *APT, *arguments], **quiet, **limit).returncode == 0
    except (OSError, subprocess.TimeoutExpired) as error:
        log.write(f"{error}\n")
        return False


def fetch_packages(arguments, log):
    """Only what is here by then is installed, and that is not interrupted: half of it would be worse than nothing."""
    fetch = [*arguments, "--download-only"]
    return apt(log, *fetch, timeout=600) or (apt(log, "update", timeout=300) and apt(log, *fetch, timeout=600))


def install_packages(arguments, log):
    if fetch_packages(arguments, log):
        apt(log, *arguments)


def install_postgis(arguments, log):
    """Install it without the database server that the system would start for itself."""
    if not fetch_packages([*arguments, "postgresql-common"], log):
        return
    if not os.path.exists(CLUSTERS) and apt(log, "install", "-y", "--no-install-recommends", "postgresql-common"):
        before = Path(CLUSTERS).read_text(encoding="utf-8")
        Path(CLUSTERS).write_text(before + "\ncreate_main_cluster = false\n", encoding="utf-8")
        apt(log, *arguments)
        Path(CLUSTERS).write_text(before, encoding="utf-8")
    else:
        apt(log, *arguments)


def main():
    if "--find" in sys.argv:
        print(find_python())
        return
    if not look()[0]:
        TOOLS.mkdir(exist_ok=True)
        with open(TOOLS / "lock", "w", encoding="utf-8") as lock:
            os.set_inheritable(lock.fileno(), True)  # so that it holds until the last of our children is gone
            fcntl.flock(lock, fcntl.LOCK_EX)
            done, usable, _ = look()  # another make may have finished while we waited
            if not done:
                install(rebuild=not usable)
    ensure_postgis()
    if "--browser" in sys.argv:
        ensure_browser()


if __name__ == "__main__":
    main()
