"""Back to the beginning: `python -m helpers reset`, for whoever wants to do the notebooks again or hand them on.

What only the sandbox knows goes, and what its runs left on this disk. Settings stay, and so does everything that could
be of a live run: what such a run remembers is what keeps it from ordering twice.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from . import settings as room
from .errors import NotConfigured, RecipeError

#: In the output folder, what no recipe wrote.
NOT_OURS = ("benchmarks",)
#: In the state folder, what is no service's: see `RunState`.
NO_SERVICE = ("sandbox.json", "prefect", "prefect.json", "prefect.lock", "notebooks-before-reset")


@dataclass(frozen=True)
class Step:
    """One thing that goes: what is said of it, and the act."""

    text: str
    act: Callable[[], object]


def main(argv: list[str]) -> int:
    """Say what would go; do it with ``--yes``, or when whoever sits at the terminal agrees. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m helpers reset", description="Back to the initial state.")
    parser.add_argument("--yes", action="store_true", help="do it; otherwise it is shown, and asked at a terminal")
    parser.add_argument("--notebooks", action="store_true", help="changed notebooks as well; copies are kept")
    parser.add_argument("--everybody", action="store_true", help="a sandbox that others share, for all of them")
    options = parser.parse_args(argv)
    try:
        steps, kept = plan(room.read(), options.notebooks, options.everybody)
        print("\n".join([*(f"goes   {step.text}" for step in steps), *(f"stays  {line}" for line in kept)]))
        if not steps:
            print("\nThis is the initial state already.")
            return 0
        if not options.yes and not _agreed():
            print("\nNothing was removed. To do it: python -m helpers reset --yes")
            return 0
        for step in steps:
            step.act()
    except (RecipeError, OSError, subprocess.SubprocessError, room.requests.RequestException) as error:
        print(error, file=sys.stderr)
        return 5 if isinstance(error, NotConfigured) else 1
    print("\nDone. Restart the kernels of notebooks that are open.")
    return 0


def _agreed() -> bool:
    if not sys.stdin.isatty():
        return False
    return input("\nRemove what goes? [y/N] ").strip().lower() in ("y", "yes")


def plan(settings: room.Settings, notebooks: bool = False, everybody: bool = False) -> tuple[list[Step], list[str]]:
    """What goes, in order, and lines about what stays and why."""
    steps, kept = [], []
    if file := room.find_env_file():
        kept.append(f"{file}: your settings")
    for part in (_world(settings, everybody), _state(settings), _outputs(settings), _notebooks(settings, notebooks)):
        steps += part[0]
        kept += part[1]
    return steps, kept


Part = tuple[list[Step], list[str]]


def _world(settings: room.Settings, everybody: bool) -> Part:
    """What the sandbox that is in use holds: of one person, or all of it."""
    if settings.backend == "live":
        return [], ["the live services: what runs added there goes with `python -m helpers cleanup RUN_ID`"]
    running = room.running_sandbox(settings.state_dir)
    url = str(settings.sandbox_url or (running or {}).get("url") or "").rstrip("/")
    if not url:
        return [], []
    user = None if everybody else settings.sandbox_user
    if user:
        text = f"in the sandbox at {url}: what is {user}'s, and nobody else's"
    elif settings.sandbox_url and not everybody:
        why = "shared, and RECIPES_SANDBOX_USER does not say who you are; --everybody resets it for all"
        return [], [f"the sandbox at {url}: {why}"]
    else:
        text = f"in the sandbox at {url}: everything, of everybody"
    return [Step(text, lambda: room.reset_sandbox(url, user))], []


def _state(settings: room.Settings) -> Part:
    """What runs in sandboxes remember; what live ones do stays."""
    folders = sorted(settings.state_dir.glob("sandbox-*/"))
    steps = [Step(f"{folder}: what runs in a sandbox remember", _removal(folder)) for folder in folders]
    return steps, [f"{folder}: what live runs remember" for folder in _live(settings)]


def _live(settings: room.Settings) -> list[Path]:
    """State folders of live services."""
    found = settings.state_dir.iterdir() if settings.state_dir.is_dir() else ()
    return sorted(
        each for each in found if each.is_dir() and not each.name.startswith("sandbox-") and each.name not in NO_SERVICE
    )


def _outputs(settings: room.Settings) -> Part:
    """Files of the runs; all stay when some could be of a live run, as a file does not tell."""
    found = settings.output_dir.iterdir() if settings.output_dir.is_dir() else ()
    ours = sorted(each for each in found if each.name not in NOT_OURS)
    if not ours:
        return [], []
    if why := _could_be_live(settings):
        return [], [f"{settings.output_dir}: {why}, so that some of it could be of live runs; delete it by hand"]
    return [Step(f"{each}: {_size(each)}", _removal(each)) for each in ours], []


def _could_be_live(settings: room.Settings) -> str:
    if settings.backend == "live":
        return "the backend is live"
    if live := _live(settings):
        return f"{live[0].name} was used"
    # A hub sets its token for everybody.
    secrets = [name for name in type(settings).model_fields if room.is_secret(name) and name != "jupyterhub_api_token"]
    found = [room.names(name)[0] for name in secrets if getattr(settings, name)]
    return f"{found[0]} is set" if found else ""


def _notebooks(settings: room.Settings, restore: bool) -> Part:
    """Notebooks that are not as they came, if git knows."""
    try:
        command = ["git", "-C", str(room.PROJECT), "diff", "--name-only", "HEAD", "--", "notebooks"]
        asked = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return [], ["the notebooks: without git, nobody knows which of them were changed"]
    changed = [name for name in asked.stdout.splitlines() if (room.PROJECT / name).is_file()]
    if not changed:
        return [], []
    if not restore:
        return [], [f"{name}: changed; --notebooks brings back what it was" for name in changed]
    folder = settings.state_dir / "notebooks-before-reset" / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    return [Step(f"changes in {name}; a copy is kept in {folder}", _restoring(name, folder)) for name in changed], []


def _restoring(name: str, folder: Path) -> Callable[[], object]:
    def restore() -> None:
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(room.PROJECT / name, copy)
        command = ["git", "-C", str(room.PROJECT), "checkout", "-q", "HEAD", "--", name]
        subprocess.run(command, timeout=30, check=True)

    return restore


def _removal(path: Path) -> Callable[[], object]:
    if path.is_dir() and not path.is_symlink():
        return lambda: shutil.rmtree(path)
    return path.unlink


def _size(path: Path) -> str:
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    return f"{len(files)} files, {sum(each.stat().st_size for each in files) / 1e6:.1f} MB"
