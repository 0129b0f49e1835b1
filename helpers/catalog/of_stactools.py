"""Items by the packages of stactools: in this process if the package is installed, else in an environment of its own.

stactools' packages pin versions that do not go together with each other or with ours, so most can only be had apart:
`uv` makes such an environment in seconds and keeps it. Each item costs a start of Python then.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import NotConfigured, Rejected, TimedOut
from ..settings import Settings
from .places import Href

#: Seconds for one item in an environment of its own, which may have to be made first.
TIMEOUT = 600
#: What runs there: the item is the last line.
SCRIPT = """
import json, sys
from importlib import import_module
item = import_module(sys.argv[1]).create_item(sys.argv[2], **json.loads(sys.argv[3]))
print()
print(json.dumps(item.to_dict(include_self_link=False, transform_hrefs=False)))
"""


def maker(package: str) -> Callable[..., dict]:
    """What makes items with ``stactools-PACKAGE``: with its ``stactools.PACKAGE.stac.create_item``.

    Raises
    ------
    NotConfigured
        It is not installed, and there is no `uv` to bring it.
    Rejected
        ``package`` is no name of a package.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", package):
        raise Rejected(f"{package!r} is no name of a package of stactools, like 'sentinel2'")
    module = f"stactools.{package.replace('-', '_')}.stac"
    here = _installed(module)
    run = here or _apart(package, module)

    def make(source: str, *, href: str | Href | None = None, settings: Settings | None = None, **options: Any) -> dict:
        return _moved(run(source, options), source, href)

    return make


def _installed(module: str) -> Callable[[str, dict], dict] | None:
    try:
        create_item = import_module(module).create_item
    except ModuleNotFoundError as error:
        if error.name and module.startswith(error.name):  # not something that it needs itself
            return None
        raise
    return lambda source, options: create_item(source, **options).to_dict(
        include_self_link=False, transform_hrefs=False
    )


def _apart(package: str, module: str) -> Callable[[str, dict], dict]:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise NotConfigured(
            f"stactools-{package} is not installed here, and there is no `uv` to run it apart: pip install uv (or"
            f" stactools-{package}, if it goes together with what is installed)"
        )
    python = [uv, "run", "--isolated", "--no-project", "--quiet", "--with", f"stactools-{package}", "python", "-c"]
    return lambda source, options: _ran([*python, SCRIPT, module, source, json.dumps(options)], package, source)


def _ran(command: list[str], package: str, source: str) -> dict:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise TimedOut(f"stactools-{package} made no item of {source} in {TIMEOUT} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise Rejected(f"stactools-{package} made no item of {source}: {said[0][:300]}")
    try:
        return json.loads(done.stdout.strip().rpartition("\n")[2])
    except ValueError:
        raise Rejected(f"stactools-{package} gave no item for {source}, but: {done.stdout[-200:]!r}") from None


def _moved(content: dict, source: str, href: str | Href | None) -> dict:
    """The item with its assets where ``href`` says."""
    if href is not None:
        for asset in content["assets"].values():
            path = asset["href"].removeprefix(source).lstrip("/")
            asset["href"] = href(path) if callable(href) else f"{href.rstrip('/')}/{path}".rstrip("/")
    return content
