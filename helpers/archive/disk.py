"""The same plan against a folder: downloads that are resumed, checked, and there only when they are whole."""

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import requests

from .. import http, safe
from ..download import fetch
from ..errors import FailedRemotely, Rejected, TimedOut
from ..progress import Moving, Progress
from .look import CHANGED, File, encrypted, etag_of, part_size
from .planning import Plan
from .run import COPIED, PATIENCE, Manifest, Outcome, Run, Task, told_of
from .store import CredentialsRefused, Place, Store

#: Files at a time; those from LARGE bytes two at a time, in RANGES pieces at a time of PIECE bytes.
WORKERS, LARGE, HEAVY, RANGES, PIECE = 32, 64 << 20, 2, 8, 32 << 20
#: Bytes of each connection that are held at a time.
BLOCK = 256 << 10
#: Times in a row that a piece may break off before another byte has arrived.
TRIES = 5


def to_disk(
    plan: Plan,
    *,
    unpack: bool = False,
    manifest: Path | None = None,
    show: Callable[[str], object] = print,
    stop: threading.Event | None = None,
    workers: int = WORKERS,
    patience: float = PATIENCE,
) -> list[Outcome]:
    """Download what is new or changed into the plan's folder. Killed or stopped, it goes on where it was.

    Files get their names, and the dates of their sources, when size and checksum are right: until then they are
    ``<name>.part``. An older file stays until the newer one is whole.

    Parameters
    ----------
    unpack:
        Unpack each ``.zip`` beside itself (:func:`helpers.safe.unpack`), where there is no folder of its name yet.
    manifest, show, stop, patience:
        As of ``archive.transfer``.

    Returns
    -------
    One outcome for each file that was new or changed, and for each archive that could not be unpacked.

    Raises
    ------
    Rejected
        The disk has no room for all of them; nothing was downloaded.
    """
    if not isinstance(plan.target, Path):
        raise Rejected(f"{plan.target.address} is a bucket: use archive.transfer.")
    folder = plan.target
    folder.mkdir(parents=True, exist_ok=True)
    tasks = plan.tasks(plan.new)
    _require_room(folder, tasks)
    with Manifest(manifest) as lines, told_of(tasks, show) as progress:
        get = _Download(plan.source, folder, progress)
        options: dict[str, Any] = {"keep": lines.add, "show": progress, "stop": stop, "patience": patience}
        outcomes: list[Outcome] = []
        over = ""
        for large, most in ((False, workers), (True, min(HEAVY, workers))):
            run = Run(get, **options | {"workers": most})
            run.over = over
            outcomes += run([task for task in tasks if (task.bytes >= LARGE) == large])
            over = run.over
        return outcomes + (_unpack_all(plan, options) if unpack else [])


def _require_room(folder: Path, tasks: list[Task]) -> None:
    parts = [folder / f"{task.item.name}.part" for task in tasks]
    needed = sum(task.bytes for task in tasks) - sum(part.stat().st_blocks * 512 for part in parts if part.exists())
    if needed > (free := shutil.disk_usage(folder).free):
        raise Rejected(
            f"{len(tasks):,} files need {needed / 1e6:,.1f} MB, and the disk of {folder} has {free / 1e6:,.1f} MB free."
            " Make room, choose another folder or fewer suffixes; nothing was downloaded."
        )


def _unpacked(folder: Path, file: File) -> Path:
    return folder / file.name.removesuffix(".zip")


def _unpack_all(plan: Plan, options: dict) -> list[Outcome]:
    """Unpack what is not yet; the outcomes of those that cannot be."""
    folder = plan.target
    archives = [file for file in plan.wanted if file.name.endswith(".zip") and (folder / file.name).exists()]
    todo = [file for file in archives if file.state == CHANGED or not _unpacked(folder, file).exists()]

    def unpack(file: File) -> str:
        shutil.rmtree(_unpacked(folder, file), ignore_errors=True)
        safe.unpack(folder / file.name, folder)
        return file.etag

    tasks = [Task(str(folder / file.name), str(_unpacked(folder, file)), file.size, file) for file in todo]
    keep, failed = options["keep"], list[Outcome]()
    if tasks:
        options["show"](f"unpacking {len(tasks):,} archives")

    def note(outcome: Outcome) -> None:
        if outcome.outcome != COPIED:
            failed.append(outcome)
            keep(outcome)

    # These are no files that come: they count for themselves.
    Run(unpack, **options | {"workers": HEAVY, "keep": note, "show": lambda line: None})(tasks)
    return failed


class _Signed(requests.auth.AuthBase):
    """Signs each request when it is sent: a link made before would end some time."""

    def __init__(self, store: Store):
        self.store = store

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.update(self.store.signed(request.method, request.url))
        return request


class _Download:
    """Brings one file to its place in the folder; returns its checksum."""

    def __init__(self, source: Place, folder: Path, progress: Progress):
        self.source, self.folder, self.progress = source, folder, progress
        self._stores: dict[str, Store] = {}
        self._making, self._asking, self._own = threading.Lock(), threading.Lock(), threading.local()
        self._ended: CredentialsRefused | None = None

    def __call__(self, file: File) -> str:
        target = self.folder / file.name
        # Beside the old one, until it is whole.
        new = target.with_name(f".{file.name}.new") if file.state == CHANGED else target
        store = None if file.url else self._store(file.bucket)
        session, url = self._session(store), file.url or store.url_of(file.key)
        problems: list[str] = []
        moving = self.progress.of(str(target))

        def check(part: Path) -> None:
            if problem := self._problem(file, part):
                problems.append(problem)
                raise Rejected(problem)
            when = datetime.fromisoformat(file.modified).replace(tzinfo=UTC).timestamp()
            os.utime(part, (when, when))

        try:
            if not (file.size >= LARGE and in_ranges(session, url, new, file.size, file.etag, check, moving)):
                fetch(session, url, new, check=check, show=lambda line: None, moving=moving)
        except FailedRemotely:
            if problems:  # twice: it would be so again
                raise Rejected(f"It arrived whole, but {problems[-1]}.") from None
            raise
        except http.Refused:
            if store:
                self._ask_why(store, file)
            raise
        new.replace(target)
        return file.etag

    def _ask_why(self, store: Store, file: File) -> None:
        """Raise what S3 says about a file, in its own words; ended credentials are asked about once."""
        with self._asking:
            if self._ended is not None:
                raise self._ended
            try:
                store.request("GET", file.key, headers={"Range": "bytes=0-0"})
            except CredentialsRefused as error:
                self._ended = error
                raise

    def _problem(self, file: File, part: Path) -> str:
        """What is wrong with the content, if anything is."""
        if (size := part.stat().st_size) != file.size:
            return f"it has {size:,} bytes instead of {file.size:,}"
        source = self.source if file.url else self._store(file.bucket).place
        pieces = part_size(source, file)
        if pieces is None:
            return ""
        with part.open("rb") as content:
            found = etag_of(iter(partial(content.read, BLOCK), b""), pieces)
        if found == file.etag or (not file.url and encrypted(source, file.bucket, file.key)):
            return ""
        return f"its checksum is {found} instead of {file.etag}"

    def _store(self, bucket: str) -> Store:
        with self._making:
            if bucket not in self._stores:
                self._stores[bucket] = Store(self.source.of_bucket(bucket))
            return self._stores[bucket]

    def _session(self, store: Store | None) -> requests.Session:
        """One for each thread and store, so that nobody waits for another's connection."""
        sessions = self._own.__dict__.setdefault("sessions", {})
        if store not in sessions:
            sessions[store] = http.harden(requests.Session())
            if store and store.credentials:
                sessions[store].auth = _Signed(store)
        return sessions[store]


def in_ranges(
    session: requests.Session,
    url: str,
    target: Path,
    size: int,
    etag: str,
    check: Callable[[Path], None],
    moving: Moving,
) -> bool:
    """Download one large file over several connections; False when the server gives no ranges of it.

    Pieces that are there are noted in ``<name>.part.pieces``; another run gets the others only.

    Raises
    ------
    Rejected
        The server refuses, the disk is full, or ``check`` does.
    TimedOut
        A connection broke again and again.
    """
    part = target.with_name(f"{target.name}.part")
    notes = part.with_name(f"{part.name}.pieces")
    version = f"{size} {etag} {PIECE}"
    text = notes.read_text() if notes.exists() and part.exists() else ""
    head, *done = text[: text.rfind("\n") + 1].splitlines() or [""]
    if head != version:
        part.unlink(missing_ok=True)
        done = []
    moving.start(sum(min(PIECE, size - int(n) * PIECE) for n in set(done)), size)
    notes.write_text("\n".join([version, *done, ""]))  # without half a line of a run that was killed
    with part.open("r+b" if part.exists() else "w+b") as file, notes.open("ab") as note:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise Rejected(f"The disk of {target.parent} is full; make room and run again.") from None

        def get(n: int) -> None:
            _piece(session, url, file.fileno(), n, size, etag, moving)
            os.write(note.fileno(), f"{n}\n".encode())  # all of it at once, whatever the others do

        with ThreadPoolExecutor(RANGES) as pool:
            waiting = [pool.submit(get, n) for n in range(-(-size // PIECE)) if str(n) not in done]
            try:
                for piece in as_completed(waiting):
                    piece.result()
            except _NoRanges:
                notes.unlink()
                part.unlink()
                return False
            finally:
                pool.shutdown(cancel_futures=True)
    try:
        check(part)
    except Rejected:
        part.unlink()
        notes.unlink()
        raise
    part.replace(target)
    notes.unlink()
    return True


class _NoRanges(Exception):
    """The server answers with the whole file."""


def _piece(
    session: requests.Session, url: str, file: int, n: int, size: int, etag: str, moving: Callable[[int], None]
) -> None:
    at, end, failures = n * PIECE, min((n + 1) * PIECE, size), 0
    while at < end:
        before = at
        headers = {"Range": f"bytes={at}-{end - 1}", "If-Match": f'"{etag}"', "Accept-Encoding": "identity"}
        try:
            with session.get(url, headers=headers, stream=True) as answer:
                if not answer.headers.get("Content-Range", "").startswith(f"bytes {at}-"):
                    raise _NoRanges
                for block in answer.iter_content(BLOCK):
                    os.pwrite(file, block[: end - at], at)
                    moving(min(len(block), end - at))
                    at += len(block)
        except (*http.NO_ANSWER, TimedOut):
            failures = 0 if at > before else failures + 1
            if failures >= TRIES:
                raise TimedOut(f"The connection broke {failures} times in a row.") from None
            time.sleep(min(0.2 * 2**failures, 5))
