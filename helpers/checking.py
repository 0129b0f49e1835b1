"""What works on this machine, what is configured and what is missing: for the command line and for notebook 0.

Names of settings are told, never their values; nothing is sent to any service of the recipes.
"""

import os
import shutil
import socket
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import settings as settings_room
from .errors import NotConfigured
from .settings import Service, Settings

#: State ("ok", "note", "absent" or "MISSING"), what it is about, and a detail.
Row = tuple[str, str, str]
#: What each notebook needs to run live.
NEEDS: dict[str, tuple[Service, ...]] = {
    "Notebooks 1, 3 (HyP3)": ("earthdata", "aws"),
    "Notebook 2 (Hook)": ("destine",),
    "Notebook 4 (to disk)": ("earthdata",),
    "Notebook 5 (RS-PYTHON)": ("rs-python",),
    "Notebook 6 (catalogue)": ("catalog", "aws"),
}


def rows(folders: bool = True) -> list[Row]:
    """Everything that ``python -m helpers check`` says, a row for each thing; without what is "MISSING", nothing works.

    ``folders=False``: paths below the project or the home folder are shortened, for a document that others will read.
    """
    found = [_python(), *_packages(), *_converter(), _database(), _kernel(), _ports()]
    found += [_folder("state"), _folder("output"), *_backend()]
    return found if folders else [(state, what, _shortened(detail)) for state, what, detail in found]


def _shortened(detail: str) -> str:
    for folder, short in ((settings_room.PROJECT, "."), (Path.home(), "~")):
        detail = detail.replace(f"{folder}{os.sep}", f"{short}{os.sep}")
    return detail


def credentials() -> list[Row]:
    """Which notebooks could run live: "ok", or "absent" with the names of the settings that are missing.

    Also while the backend is the sandbox: as the environment and ``.env_tutorial`` are.

    Raises
    ------
    NotConfigured
        The settings are unusable.
    """
    return _recipes(settings_room.read())


def _python() -> Row:
    found = ".".join(map(str, sys.version_info[:3]))
    fits = sys.version_info >= (3, 13)
    return (
        "ok" if fits else "MISSING",
        "Python",
        f"{found} at {sys.executable}" + ("" if fits else "; needs 3.13"),
    )


def _packages() -> list[Row]:
    rows: list[Row] = []
    for name in ("jupyterlab", "papermill", "boto3", "hyp3-sdk", "destinelab", "rasterio", "moto"):
        try:
            rows.append(("ok", name, version(name)))
        except PackageNotFoundError:
            rows.append(("MISSING", name, "run `make check` again; it installs what is missing"))
    return rows


def _converter() -> list[Row]:
    try:
        return [("ok", "eopf", f"{version('eopf')}: notebook 5 converts here")]  # not imported: that takes ten seconds
    except PackageNotFoundError:
        return [("note", "eopf", "not here: notebook 5 cannot convert on this machine")]


def _database() -> Row:
    from .sandbox import postgres

    found, command = postgres.find(), postgres.how_to_install()
    if found and found.postgis:
        return "ok", "PostgreSQL", f"{found.version} with PostGIS {found.postgis} at {found.folder}"
    here = f"{found.version}, but no PostGIS" if found else "not here"
    return "note", "PostgreSQL", f"{here}: notebook 6 uses the embedded store; for pgstac: {command}"


def _kernel() -> Row:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return "MISSING", "Jupyter kernel", "no kernel named python3; is ipykernel installed?"
    # A bare name is replaced by the running interpreter when the kernel starts.
    ours = (
        command in ("python", "python3")
        or Path(shutil.which(command) or command).resolve() == Path(sys.executable).resolve()
    )
    return ("ok", "Jupyter kernel", "python3, this environment") if ours else (
        "note", "Jupyter kernel", f"python3 is {command}, another environment; `make lab` uses the right one"
    )  # fmt: skip


def _ports() -> Row:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return "ok", "Ports", f"free ones can be opened on 127.0.0.1 (tried {server.getsockname()[1]})"
    except OSError as error:
        return "MISSING", "Ports", f"nothing can listen on 127.0.0.1: {error.strerror}"


def _folder(which: str) -> Row:
    try:
        folder = getattr(settings_room.read(), f"{which}_dir")
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except NotConfigured:
        return "note", f"{which.title()} folder", "not known: settings are unusable, see below"
    except OSError as error:
        return "MISSING", f"{which.title()} folder", str(error)
    return ("ok" if writable else "MISSING", f"{which.title()} folder", str(folder))


def _backend() -> list[Row]:
    rows: list[Row] = []
    file = settings_room.find_env_file()
    rows.append(("ok", "Settings file", str(file) if file else "none: the sandbox needs none"))
    try:
        settings = settings_room.read()
    except NotConfigured as error:
        return [*rows, ("MISSING", "Settings", str(error))]
    rows += [("note", "Unknown setting", hint) for hint in settings_room.misspelt(file)]
    live = settings.backend == "live"
    rows.append(("ok", "Backend", f"live, {settings.hyp3_api_url}, {settings.hook_api_url}" if live else "sandbox"))
    if live:
        recipes = _recipes(settings)
        # Nobody needs all; with none, something required is missing.
        none = all(state == "absent" for state, *_ in recipes)
        rows += [("MISSING", *told) for _, *told in recipes] if none else recipes
    if not live:
        running = settings_room.running_sandbox(settings.state_dir)
        rows.append(("ok", "Shared sandbox", running["url"] if running else "none; notebooks start their own"))
    return rows


def _recipes(settings: Settings) -> list[Row]:
    rows: list[Row] = []
    for name, services in NEEDS.items():
        if missing := settings.missing(*services):
            names = ", ".join(line.partition(":")[0] for line in missing)
            rows.append(("absent", name, f"{names}; .env_tutorial.example says where to get them"))
        else:
            rows.append(("ok", name, "credentials present"))
    return rows
