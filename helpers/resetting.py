"""Back to the beginning: `python -m helpers reset`, for whoever wants to do the notebooks again or hand them on.

What only the sandbox knows goes, and what its runs left on this disk, as far as it is known to be theirs. Settings
stay, and so does everything that could be of a live run: what such a run remembers is what keeps it from ordering
twice, and what it archived may be nowhere else any more. In doubt, it stays and is named.
"""

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from . import settings as room
from .errors import NotConfigured, RecipeError, TimedOut, bullets

#: Folders of runs that a sandbox inside a kernel leaves, whose notes are gone with it: the notebooks' own run ids.
RUNS = ("first-run", "first-harvest", "first-conversion", "first-conversion-here")
#: What `make` and the tests write; they do so in the project's own `outputs`, wherever the recipes write.
BUILT = ("demo", "site", ".site", "screenshots")
#: Records of the archives by project, and the archives that are on this disk.
ARCHIVES = RECORDS, ON_DISK = "archive", "archive-on-disk"
#: In the output folder, what is not worth a word.
NOT_OURS = ("benchmarks",)
#: In the state folder, what is no service's: see `RunState`.
NO_SERVICE = ("prefect", "notebooks-before-reset")
#: A sandbox's folder there, and what may be in it.
SANDBOX = re.compile(r"sandbox-[0-9a-f]{12}")
RECIPES = ("hyp3", "hook", "conversion", "catalog")
#: The folder of one run of an archive: see notebooks 3 and 4.
RECORD = re.compile(r"\d{8}T\d{6}Z(-disk)?")
#: What one person's own address of a shared sandbox ends in.
PERSONAL = re.compile(r"/people/\w+$")
#: What a machine or a hub sets that has a role at AWS.
ROLES = (
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


@dataclass(frozen=True)
class Step:
    """One thing that goes: what is said of it, and the act; ``needs``: what must have succeeded before."""

    text: str
    act: Callable[[], object]
    needs: "Step | None" = None


Part = tuple[list[Step], list[str]]
ERRORS = (RecipeError, OSError, subprocess.SubprocessError, room.requests.RequestException)


def main(argv: list[str]) -> int:
    """Say what would go; do it with ``--yes``, or when whoever sits at the terminal agrees. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m helpers reset", description="Back to the initial state.")
    parser.add_argument("--yes", action="store_true", help="do it; otherwise it is shown, and asked at a terminal")
    parser.add_argument("--notebooks", action="store_true", help="changed notebooks as well; copies are kept")
    parser.add_argument("--everybody", action="store_true", help="a sandbox that others share, for all of them")
    options = parser.parse_args(argv)
    try:
        steps, kept = plan(room.read(), options.notebooks, options.everybody)
    except ERRORS as error:
        print(error, file=sys.stderr)
        return 5 if isinstance(error, NotConfigured) else 1
    print("\n".join([*(f"goes   {step.text}" for step in steps), *(f"stays  {line}" for line in kept)]))
    if not steps:
        print("\nThis is the initial state already.")
        return 0
    if not options.yes and not _agreed():
        print("\nNothing was removed. To do it: python -m helpers reset --yes")
        return 0
    if failed := _do(steps):
        print(f"\n{len(failed)} of {len(steps)} steps failed, the others are done. Still there:", file=sys.stderr)
        print("\n".join(bullets(failed)), file=sys.stderr)
        return 1
    print("\nDone. Restart the kernels of notebooks that are open.")
    return 0


def _agreed() -> bool:
    if not sys.stdin.isatty():
        return False
    return input("\nRemove what goes? [y/N] ").strip().lower() in ("y", "yes")


def _do(steps: list[Step]) -> list[str]:
    """Do all that can be done; a line for each step that was not."""
    failed: list[Step] = []
    lines = []
    for step in steps:
        if step.needs in failed:
            why = "left, because a step before it failed"
        else:
            try:
                step.act()
                continue
            except ERRORS as error:
                why = (getattr(error, "stderr", None) or str(error)).strip()
        failed.append(step)
        lines.append(f"{step.text}: {why}")
    return lines


def plan(settings: room.Settings, notebooks: bool = False, everybody: bool = False) -> Part:
    """What goes, in order, and lines about what stays and why.

    Raises
    ------
    NotConfigured
        The output folder is one that has more than outputs.
    TimedOut
        The sandbox that is to be reset does not answer.
    """
    file = room.find_env_file()
    _refuse(settings, file)
    worlds = _worlds(settings, everybody)
    parts = (_notebooks(settings, notebooks), worlds.part, _state(settings, worlds), _outputs(settings, worlds))
    kept = [f"{file}: your settings"] if file else []
    return [step for part in parts for step in part[0]], kept + [line for part in parts for line in part[1]]


def _refuse(settings: room.Settings, file: Path | None) -> None:
    """Make sure that the output folder is one for outputs: nothing that matters is within it."""
    places = {"your home folder": Path.home(), "the project": room.PROJECT, "RECIPES_STATE_DIR": settings.state_dir}
    places |= {"the settings file": file} if file else {}
    folder = settings.output_dir.resolve()
    for what, place in places.items():
        for path in (place.absolute(), place.resolve()):
            if folder in (path, *path.parents):
                raise NotConfigured(
                    f"RECIPES_OUTPUT_DIR is {folder}, and {what} is there or within it ({path}): nothing was removed."
                    " Give the outputs a folder of their own, or delete by hand what you do not need."
                )


@dataclass(frozen=True)
class Worlds:
    """What becomes of the sandboxes that run: the step that resets one, and the worlds that go on."""

    part: Part
    kept: frozenset[str] = frozenset()  #: their folders below RECIPES_STATE_DIR
    only: frozenset[str] | None = None  #: if one person's world is reset: its folder
    silent: str = ""  #: a sandbox that stays and does not say which they are

    def keeps(self, folder: str) -> str:
        """Why the state of this world stays; "" if it does not."""
        if self.only is not None:
            return "" if folder in self.only else "could be of somebody else's runs, or of another sandbox"
        if self.silent:
            return f"the sandbox at {self.silent} does not answer, and this could be of runs in it"
        return "of runs in a sandbox that is not reset" if folder in self.kept else ""


def _worlds(settings: room.Settings, everybody: bool) -> Worlds:
    """What the sandbox that is in use holds: of one person, or all of it. Others that are known go on."""
    running = str((room.running_sandbox(settings.state_dir) or {}).get("url") or "").rstrip("/")
    given = str(settings.sandbox_url or "").rstrip("/")
    # One's own address of a shared sandbox; the name does not count there.
    personal, given = given if PERSONAL.search(given) else "", PERSONAL.sub("", given)
    live, user, url = settings.backend == "live", settings.sandbox_user, given or running
    whole, one = (url, None), (personal, None) if personal else (url, user)
    step, notes = None, []
    if live:
        notes.append("the live services: what runs added there goes with `python -m helpers cleanup RUN_ID`")
    elif url and not everybody and (personal or user):
        whose = f"of the person whose address {personal} is" if personal else f"{user}'s"
        step = Step(f"in the sandbox at {url}: what is {whose}, and nobody else's", lambda: room.reset_sandbox(*one))
        return Worlds(([step], notes), only=frozenset(_reached(*one)))
    elif given and not everybody:
        why = "shared, and RECIPES_SANDBOX_USER does not say who you are; --everybody resets it for all"
        notes.append(f"the sandbox at {url}: {why}")
    elif url:
        step = Step(f"in the sandbox at {url}: everything, of everybody", lambda: room.reset_sandbox(*whole))
    goes = _reached(*whole) | _asked(url, user) if step else set()
    others = {(running, None), (running, user)} | (set() if step else {(given, None), (given, user), one})
    found = {address: _asked(*address) for address in others if address[0]}
    silent = next((address for (address, _), world in found.items() if not world), "")
    return Worlds(([step] if step else [], notes), frozenset(set().union(*found.values()) - goes), silent=silent)


def _asked(url: str, user: str | None) -> set[str]:
    """The state folder of this person in the sandbox with this control URL; none if it does not answer."""
    with suppress(TimedOut):
        if told := room._ask(url, user):
            return {f"sandbox-{told['id']}"}
    return set()


def _reached(url: str, user: str | None) -> set[str]:
    """The same, of a sandbox that is to be reset."""
    if found := _asked(url, user):
        return found
    raise TimedOut(f"No sandbox answers at {url}, so that it cannot be reset: nothing was removed. Does it run?")


def _state(settings: room.Settings, worlds: Worlds) -> Part:
    """What runs in sandboxes remember; what live ones do stays."""
    steps, kept = [], []
    reset = next(iter(worlds.part[0]), None)
    for folder in _of_sandboxes(settings):
        if why := _state_stays(folder, worlds):
            kept.append(f"{folder}: {why}")
        else:
            steps.append(Step(f"{folder}: what runs in a sandbox remember", _removal(folder), reset))
    return steps, kept + [f"{folder}: what live runs remember" for folder in _live(settings)]


def _state_stays(folder: Path, worlds: Worlds) -> str:
    """Why the state folder of a sandbox stays; "" if it does not."""
    if any(each.name not in RECIPES or each.is_symlink() or not each.is_dir() for each in folder.iterdir()):
        return "has more than what runs in a sandbox remember"
    return worlds.keeps(folder.name)


def _of_sandboxes(settings: room.Settings) -> list[Path]:
    """State folders of sandboxes."""
    found = settings.state_dir.iterdir() if settings.state_dir.is_dir() else ()
    return sorted(each for each in found if SANDBOX.fullmatch(each.name) and each.is_dir() and not each.is_symlink())


def _live(settings: room.Settings) -> list[Path]:
    """State folders of live services: all that is not known to be something else."""
    found = settings.state_dir.iterdir() if settings.state_dir.is_dir() else ()
    other = {*NO_SERVICE, *(folder.name for folder in _of_sandboxes(settings))}
    return sorted(each for each in found if each.is_dir() and each.name not in other)


def _outputs(settings: room.Settings, worlds: Worlds) -> Part:
    """Files of runs in sandboxes; all stay when some could be of a live run, as a file does not tell."""
    found = settings.output_dir.iterdir() if settings.output_dir.is_dir() else ()
    found = sorted(each for each in found if each.name not in NOT_OURS)
    if not found:
        return [], []
    if why := _could_be_live(settings):
        return [], [f"{settings.output_dir}: {why}, so that some of it could be of live runs; delete it by hand"]
    steps, kept, unknown = [], [], []
    runs, staying = set(), set()
    for folder in _of_sandboxes(settings):
        names = staying if _state_stays(folder, worlds) else runs
        names.update(path.stem for path in folder.glob("*/*.json") if path.parent.name in RECIPES)
    reset = next(iter(worlds.part[0]), None)
    built = BUILT if settings.output_dir.resolve() == (room.PROJECT / "outputs").resolve() else ()
    for each in found:
        if each.is_symlink() or not each.is_dir():
            unknown.append(each.name)
        elif each.name in ARCHIVES:
            pass  # below
        elif each.name in staying:
            kept.append(f"{each}: of a run whose notes stay")
        elif each.name in (*RUNS, *built, *runs):
            steps.append(Step(f"{each}: {_size(each)}", _removal(each), reset))
        else:
            unknown.append(each.name)
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        kept.append(f"{settings.output_dir}: {', '.join(unknown[:5])}{more}, not known to be of a run in a sandbox")
    archives = _archives(settings, worlds)
    return steps + archives[0], kept + archives[1]


def _could_be_live(settings: room.Settings) -> str:
    if settings.backend == "live":
        return "the backend is live"
    if live := _live(settings):
        return f"{live[0].name} was used"
    # A hub sets its token for everybody.
    secrets = [name for name in type(settings).model_fields if room.is_secret(name) and name != "jupyterhub_api_token"]
    if found := [room.names(name)[0] for name in (*secrets, "aws_profile") if getattr(settings, name)]:
        return f"{found[0]} is set"
    if not settings.missing("earthdata"):
        return "your .netrc has an account at Earthdata"
    if found := [name for name in ROLES if os.environ.get(name)]:
        return f"{found[0]} is set"
    if _has_aws_profiles():
        return "there are profiles for AWS (~/.aws)"
    # Credentials that were typed into a form are gone by now, but archives have noted whose products they have.
    for record in sorted(settings.output_dir.glob(f"{RECORDS}/*/*/summary.json")):
        if (service := _service(record.parent)) and not SANDBOX.fullmatch(service):
            return f"{record.parent.name} archived from {service}"
    return ""


def _has_aws_profiles() -> bool:
    import botocore.session
    from botocore.exceptions import BotoCoreError

    try:
        return bool(botocore.session.Session().full_config.get("profiles"))
    except BotoCoreError:
        return True  # a file that cannot be read, but is there


def _archives(settings: room.Settings, worlds: Worlds) -> Part:
    """Archives of projects, each with its records: they go only if every record says that it was made in a sandbox."""
    steps, kept, reset = [], [], next(iter(worlds.part[0]), None)
    folders = [settings.output_dir / name for name in ARCHIVES if not (settings.output_dir / name).is_symlink()]
    projects = {each.name for folder in folders if folder.is_dir() for each in folder.iterdir()}
    for project in sorted(projects):
        both = [folder / project for folder in folders if os.path.lexists(folder / project)]
        if why := _archive_stays(
            settings.output_dir / RECORDS / project, settings.output_dir / ON_DISK / project, worlds
        ):
            kept += [f"{path}: {why}" for path in both]
        else:
            steps += [Step(f"{path}: {_size(path)}", _removal(path, and_parent=True), reset) for path in both]
    return steps, kept


def _archive_stays(records: Path, archive: Path, worlds: Worlds) -> str:
    """Why the archive of a project stays; "" if it does not."""
    linked = [path for path in (records.parent, records, archive.parent, archive) if path.is_symlink()]
    if linked:
        return f"{linked[0]} is a link"
    if not records.is_dir():
        return "no record says that it was made in a sandbox"
    known = {archive / ".archive-lock"}
    for run in sorted(records.iterdir()):
        if run.is_symlink() or not run.is_dir() or not RECORD.fullmatch(run.name):
            return f"{run.name} is no record of a run"
        if not SANDBOX.fullmatch(service := _service(run)):
            return f"{run.name} does not say that it was made in a sandbox"
        if worlds.keeps(service):
            return "made in a sandbox that is not reset"
        known |= _brought(run)
    known |= {path.with_suffix("") for path in known if path.suffix == ".zip"}  # what was unpacked
    others = sorted(set(archive.iterdir()) - known) if archive.is_dir() else [archive] if archive.exists() else []
    return f"{others[0].name} is in no record" if others else ""


def _service(run: Path) -> str:
    """Which service the record of an archive's run says it was: see `archive.summary`; "" if it does not say."""
    try:
        return str(json.loads((run / "summary.json").read_text())["service"])
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def _brought(run: Path) -> set[Path]:
    """Files that the manifest of an archive's run says it brought."""
    try:
        with (run / "manifest.csv").open(newline="") as file:
            return {Path(row["target"]) for row in csv.DictReader(file) if row.get("outcome") == "copied"}
    except (OSError, ValueError, KeyError, csv.Error):
        return set()  # then none of them is known


def _notebooks(settings: room.Settings, restore: bool) -> Part:
    """Notebooks that are not as they came, if git knows."""
    try:
        asked = _git("diff", "--relative", "--diff-filter=M", "--name-only", "-z", "HEAD", "--", "notebooks")
    except (OSError, subprocess.SubprocessError):
        return [], ["the notebooks: without git, nobody knows which of them were changed"]
    changed = [name for name in asked.split("\0") if name and (room.PROJECT / name).is_file()]
    if not changed:
        return [], []
    if not restore:
        return [], [f"{name}: changed; --notebooks brings back what it was" for name in changed]
    folder = settings.state_dir / "notebooks-before-reset" / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    return [Step(f"changes in {name}; a copy is kept in {folder}", _restoring(name, folder)) for name in changed], []


def _git(*arguments: str) -> str:
    # Names are names, also those with a "*" or a ":" in them.
    command = ["git", "--literal-pathspecs", "-C", str(room.PROJECT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


def _restoring(name: str, folder: Path) -> Callable[[], object]:
    def restore() -> None:
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(room.PROJECT / name, copy)
        _git("restore", "--source=HEAD", "--", name)  # on disk; what is staged stays so

    return restore


def _removal(path: Path, and_parent: bool = False) -> Callable[[], object]:
    """Remove a folder and what is in it, not what links in it lead to; ``and_parent``: its own, once it is empty."""

    def remove() -> None:
        shutil.rmtree(path)  # refuses a link
        if and_parent:
            with suppress(OSError):
                path.parent.rmdir()

    return remove


def _size(path: Path) -> str:
    files = [each for each in path.rglob("*") if each.is_file() and not each.is_symlink()]
    return f"{len(files)} files, {sum(each.stat().st_size for each in files) / 1e6:.1f} MB"
