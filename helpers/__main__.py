"""The command line: ``python -m helpers check | sandbox | run | cleanup | reset``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

OTHER_PYTHON = f"This is {sys.executable}; use .venv/bin/python (`make setup` makes it)."
try:
    from . import settings as settings_room
except ModuleNotFoundError as error:
    print(f"{error}. {OTHER_PYTHON}", file=sys.stderr)
    sys.exit(2)
from .errors import NotConfigured, RecipeError, Rejected  # noqa: E402

if TYPE_CHECKING:
    from .settings import Settings
    from .state import RunState


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code (2 for wrong usage)."""
    argv = sys.argv[1:] if argv is None else argv
    commands = {"check": check, "sandbox": sandbox, "run": _run, "cleanup": cleanup, "reset": _reset}
    if not argv or argv[0] not in commands:
        print(__doc__)
        print("  check    say what works on this machine; exit code 1 when something required is missing")
        print("  sandbox  run the offline services until Ctrl-C, for several notebooks to share")
        print("  run      run notebooks unattended (python -m helpers run --help)")
        print("  cleanup  undo what a run added: cleanup RUN_ID")
        print("  reset    back to the initial state, live runs aside; says first what goes")
        return 0 if argv[:1] in ([], ["--help"], ["-h"], ["help"]) else 2
    try:
        return commands[argv[0]](argv[1:])
    except ModuleNotFoundError as error:
        print(f"{error}. {OTHER_PYTHON}", file=sys.stderr)
        return 2


def _run(argv: list[str]) -> int:
    from . import runner  # papermill's import costs more than the other commands take

    return runner.main(argv)


def _reset(argv: list[str]) -> int:
    from . import resetting

    return resetting.main(argv)


def cleanup(argv: list[str]) -> int:
    """Undo what a run added: in a bucket (policy statements, products), at a service (open orders), on this disk."""
    parser = argparse.ArgumentParser(prog="python -m helpers cleanup", description=cleanup.__doc__)
    parser.add_argument("run_id", metavar="RUN_ID")
    run_id = parser.parse_args(argv).run_id
    from .state import RunState

    try:
        _need_a_sandbox(run_id)
        settings = settings_room.load()
        states = {recipe: RunState(settings, recipe, run_id, cleaning=True) for recipe in CLEANERS}
        if not any(state.known for state in states.values()):
            others = sorted({path.stem for state in states.values() for path in state.path.parent.glob("*.json")})
            raise Rejected(f"No run {run_id!r} is known at this service; known: {', '.join(others) or 'none'}.")
        for recipe, state in states.items():
            if state.known:
                print(f"{recipe}: {CLEANERS[recipe](settings, state)}")
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 5 if isinstance(error, NotConfigured) else 1
    return 0


def _need_a_sandbox(run_id: str) -> None:
    """Refuse to start one for this: it would be empty, and what its runs leave ends with the sandbox they ran in."""
    settings = settings_room.read()
    if settings.backend == "live" or settings.sandbox_url or settings_room.in_process_sandbox():
        return
    if settings_room.running_sandbox(settings.state_dir) is None:
        raise Rejected(
            f"No shared sandbox is running, so there is nothing of run {run_id!r}: what a run adds to a notebook's own"
            " sandbox goes with it. `python -m helpers sandbox` starts a shared one, in which runs are kept until it"
            " ends; for the real services, set RECIPES_BACKEND=live."
        )


def _clean_hyp3(settings: Settings, state: RunState) -> str:
    from . import hyp3, objectstore

    settings.require("aws")
    gone = hyp3.clean_up(state, objectstore.client("s3", settings), objectstore.account_id(settings))
    return f"withdrawn: {gone['statements']} statements; deleted: {gone['objects']} objects"


def _clean_hook(settings: Settings, state: RunState) -> str:
    from . import hook

    gone = hook.clean_up(state, hook.connect(settings), settings)
    return f"withdrawn: {gone['cancelled']} orders; deleted: {gone['files']} files, {gone['objects']} objects"


def _clean_conversion(settings: Settings, state: RunState) -> str:
    from . import conversion

    gone = conversion.clean_up(state, settings)
    return f"deleted: {gone['items']} catalogue items, {gone['objects']} objects, {gone['files']} files"


def _clean_catalog(settings: Settings, state: RunState) -> str:
    from . import catalog

    settings.require("aws", "catalog")
    gone = catalog.clean_up(state, settings)
    return "removed: " + ", ".join(f"{count} {what}" for what, count in gone.items())


#: What cleans up after a run, by the recipe that it was a run of.
CLEANERS = {"hyp3": _clean_hyp3, "hook": _clean_hook, "conversion": _clean_conversion, "catalog": _clean_catalog}


def sandbox(argv: list[str]) -> int:
    """Run one sandbox for several kernels; with a command after ``--``, until that command ends."""
    parser = argparse.ArgumentParser(prog="python -m helpers sandbox", description=sandbox.__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port of the control endpoint (a free one)")
    parser.add_argument("--reset", action="store_true", help="reset the running sandbox to its initial state")
    parser.add_argument("command", nargs="*", help="-- COMMAND: run it beside the sandbox, and end with it")
    options = parser.parse_args(argv)
    try:
        state_dir = settings_room.read().state_dir
    except NotConfigured as error:
        print(error, file=sys.stderr)
        return 5
    running = settings_room.running_sandbox(state_dir)
    if running:
        if options.reset:
            settings_room.reset_sandbox(running["url"])
            print(f"The sandbox at {running['url']} is back in its initial state.")
            return 0
        print(f"A sandbox is running already (process {running['pid']}).\n{_how_to_use(running['url'])}")
        if options.port and f":{options.port}" not in running["url"]:
            print(f"It does not listen on port {options.port}; stop it first to have one there.", file=sys.stderr)
            return 1
        if not options.command:
            return 0
        print("It ends with that process; notebooks then start sandboxes of their own.", flush=True)
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        return _beside(options.command, stop)
    if options.reset:
        print("No sandbox is running; the next one starts in its initial state anyway.", file=sys.stderr)
        return 1
    return _serve(options, state_dir)


def _serve(options: argparse.Namespace, state_dir: Path) -> int:
    from .sandbox import Sandbox

    try:
        services = Sandbox(host=options.host, ports={"control": options.port}).start()
    except OSError as error:
        print(f"The sandbox cannot listen on {options.host}:{options.port}: {error.strerror}", file=sys.stderr)
        return 1
    note = state_dir / "sandbox.json"
    state_dir.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps({"url": services.url("control"), "pid": os.getpid()}))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        print(f"The sandbox is running.\n{_how_to_use(services.url('control'))}", flush=True)
        if options.command:
            return _beside(options.command, stop)
        print("Ctrl-C stops it.", flush=True)
        stop.wait()
    except KeyboardInterrupt:
        print()
    finally:
        note.unlink(missing_ok=True)
        services.stop()
    return 0


def _beside(command: list[str], stop: threading.Event) -> int:
    """Run ``command`` until it ends or we are told to stop; returns its exit code."""
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        print(f"Cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    try:
        while process.poll() is None and not stop.wait(0.1):
            pass
    except KeyboardInterrupt:
        pass  # Ctrl-C went to the command as well: let it end in its own way
    if stop.is_set():
        process.terminate()
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()


def _how_to_use(url: str) -> str:
    return (
        "Notebooks on this machine find it by themselves. Elsewhere, put this line into .env_tutorial:\n"
        f"  RECIPES_SANDBOX_URL={url}\n"
        f"Addresses and credentials for clients of your own: {url}/environment"
    )


def check(argv: list[str]) -> int:
    """Say what works on this machine, and exit with 1 when something required is missing."""
    argparse.ArgumentParser(prog="python -m helpers check", description=check.__doc__).parse_args(argv)
    from . import checking

    rows = checking.rows()
    for state, what, detail in rows:
        print(f"{state:8} {what:22} {detail}")
    missing = [what for state, what, _ in rows if state == "MISSING"]
    print(f"\nMissing: {', '.join(missing)}" if missing else "\nEverything required is here.")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
