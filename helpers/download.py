"""Files over HTTP, whole or not at all: streamed, resumed after a cut, checked before they get their final name."""

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import requests
import urllib3

from .errors import FailedRemotely, RecipeError, Rejected, TimedOut
from .http import LONGEST_PAUSE, NO_ANSWER, Refused, Throttled
from .progress import Moving, Progress

#: Bytes read and written at a time, at most. More gains nothing; with less, Python's part in each begins to cost.
BLOCK = 1 << 20
#: Seconds between two lines about a file that takes long.
TELL_EVERY = 10.0


def fetch(
    session: requests.Session,
    url: str,
    target: Path,
    *,
    check: Callable[[Path], None] = lambda path: None,
    tries: int = 5,
    show: Callable[[str], None] = print,
    moving: Moving | None = None,
) -> Path:
    """Download ``url`` to ``target`` and return it; nothing is asked for when it is there already.

    Until all bytes are there and ``check`` has found nothing wrong with them, they are in ``<target>.part``. After a
    cut, or in the next run (also with another link to the same file), the download goes on where it ended, if the
    server names its version of the file and still has that version; otherwise from the start: two versions are never
    spliced. Whoever wants the same target at the same time, here or in another process, waits and finds it there.

    What arrives is stored as it is sent, also if it has a `Content-Encoding`.

    Parameters
    ----------
    session:
        A hardened one (see :func:`helpers.http.harden`): it has tried more than once before an answer counts as bad.
    check:
        Raises :class:`Rejected` for a file that is not what was wanted.
    tries:
        How many times in a row the server may break off, or have a problem, without more of the file arriving.
    show:
        Gets a line every ten seconds, and one at the end.
    moving:
        Is told where the file is, as it comes (``progress.of(name)``).

    Raises
    ------
    Rejected
        The server refuses, the link is none, or the file cannot be written (no room).
    FailedRemotely
        The file arrives whole, and ``check`` refuses it twice; or the server has a problem that does not pass.
    TimedOut
        The server does not answer, asks for a long pause, or breaks off again and again. Running again carries on.
    """
    began = time.monotonic()
    part = target.with_name(f"{target.name}.part")
    moving = moving or Progress().of(target.name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with alone(target):
            if target.exists():
                _forget(part)
                moving.start(size := target.stat().st_size, size)
                return target
            for last in (False, True):
                _complete(session, url, part, target.name, tries, show, moving)
                try:
                    check(part)
                    break
                except Rejected as error:
                    _forget(part)  # kept, it would be taken for the beginning of a good one
                    if last:
                        raise FailedRemotely(f"{target.name} arrived whole but is not usable: {error}") from None
            # In this order: killed in between, the file comes once more; the other way round, the note would stay.
            _note_of(part).unlink(missing_ok=True)
            part.replace(target)
    except OSError as error:
        raise Rejected(
            f"{target.name} cannot be written to {target.parent}: {error.strerror or error}."
            " What has arrived is kept: once there is room, run again to carry on."
        ) from None
    show(f"{target.name}: {_amount(target.stat().st_size, time.monotonic() - began)}")
    return target


def in_parallel[Result](
    work: dict[str, Callable[[], Result]], workers: int = 8
) -> tuple[dict[str, Result], dict[str, str]]:
    """Do everything in ``work``, ``workers`` at a time; one failure stops nothing else.

    An interrupted kernel gets away at once: what has not begun never does, what has begun ends in the background.

    Returns
    -------
    What was returned, and the message of the :class:`RecipeError` that was raised, each by the name of the work.
    """
    results, failures = {}, {}
    pool = ThreadPoolExecutor(workers)
    try:
        futures = {name: pool.submit(do) for name, do in work.items()}
        for name, future in futures.items():
            try:
                results[name] = future.result()
            except RecipeError as error:
                failures[name] = str(error)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return results, failures


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Keep every other process and thread that wants to make ``target`` waiting until the block ends."""
    path = target.with_name(f".{target.name}.lock")
    while True:
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Who had it before us has removed the file, and another may hold its successor by now: then once more.
            ours = False
            with suppress(FileNotFoundError):
                ours = os.path.samestat(path.stat(), os.fstat(lock.fileno()))
            if ours:
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return


def _note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note_of(part).unlink(missing_ok=True)


def _complete(
    session: requests.Session, url: str, part: Path, name: str, tries: int, show: Callable, moving: Moving
) -> None:
    """Bring the unfinished file to its full length."""
    failures, most = 0, _size(part)
    while True:
        error: RecipeError = TimedOut(f"{name}: the server broke off {tries} times in a row. Run again to carry on.")
        try:
            if _go_on(session, url, part, name, show, moving):
                return
        except Throttled as throttled:
            if throttled.seconds > LONGEST_PAUSE:
                raise
            error = throttled
            time.sleep(throttled.seconds)
        except (TimedOut, FailedRemotely) as failed:
            error = failed
        except (*NO_ANSWER, urllib3.exceptions.HTTPError):
            pass
        except requests.RequestException as unusable:  # their messages may have the link in them
            raise Rejected(f"{name}: its link cannot be used ({type(unusable).__name__}).") from None
        # More than there has ever been: a server that always starts again, and always breaks off, is given up on.
        failures = 0 if (size := _size(part)) > most else failures + 1
        most = max(most, size)
        if failures >= tries:
            raise error from None
        time.sleep(min(0.2 * 2**failures, 10))


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _go_on(session: requests.Session, url: str, part: Path, name: str, show: Callable, moving: Moving) -> bool:
    """Get what is missing of the file; whether all of it is there now."""
    have, version, total = _so_far(part)
    if have == total:
        moving.start(have, total)
        return True
    headers = {"Accept-Encoding": "identity"}  # else the length would be that of something else
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    try:
        answer = session.get(url, headers=headers, stream=True)
    except Refused as error:
        if error.status != 416 or not have:
            raise
        _forget(part)  # longer than the file: not its beginning
        return False
    with answer:
        if answer.status_code == 206:
            # Servers have been seen to ignore If-Range, or to send another range: believed only if all of it fits.
            sent = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
            fits = sent and have and int(sent[1]) == have and total in (None, int(sent[2]))
            if not fits or _version(answer) != version:
                _forget(part)
                return False
            total = int(sent[2])
            _require_room(part.parent, name, total - have)
        elif answer.status_code == 200:
            # In this order: whenever this process ends, no note of one version is beside the bytes of another.
            _forget(part)
            length = answer.headers.get("Content-Length", "")
            have, version, total = 0, _version(answer), int(length) if length.isdecimal() else None
            _require_room(part.parent, name, total or 0)
            _note(part, version, total)
        else:
            raise FailedRemotely(f"{name}: the server answered {answer.status_code} instead of sending the file.")
        moving.start(have, total)
        have = _copy(answer, part, have, total, name, show, moving)
    if total is None:
        # A server that does not say how long the file is can only say that it ends.
        _note(part, version, have)
        return True
    return have == total


def _note(part: Path, version: str, total: int | None) -> None:
    _note_of(part).write_text(json.dumps({"version": version, "total": total}))


def _so_far(part: Path) -> tuple[int, str, int | None]:
    """How many bytes can be kept, of which version of the file, and how many there will be (None: not known)."""
    try:
        note = json.loads(_note_of(part).read_text())
        have, version, total = part.stat().st_size, note["version"], note["total"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0, "", None
    return (have, version, total) if version and (total is None or have <= total) else (0, "", None)


def _version(answer: requests.Response) -> str:
    """What names the server's version of the file beyond doubt, or "": only that allows to go on in the middle.

    A weak ETag promises too little, and so does a file changed less than a second before it was sent: it may change
    again within that second (RFC 9110, 8.8.2.2).
    """
    tag = answer.headers.get("ETag", "")
    if tag and not tag.startswith("W/"):
        return tag
    try:
        changed, sent = (parsedate_to_datetime(answer.headers[name]) for name in ("Last-Modified", "Date"))
        return answer.headers["Last-Modified"] if sent - changed >= timedelta(seconds=1) else ""
    except (KeyError, ValueError, TypeError):
        return ""


def _copy(
    answer: requests.Response,
    part: Path,
    have: int,
    total: int | None,
    name: str,
    show: Callable,
    moving: Callable[[int], None],
) -> int:
    began = told = time.monotonic()
    start = have
    with part.open("ab" if have else "wb") as file:
        # What has arrived, not when a block is full: a connection that breaks would take the unfinished one with it.
        while block := answer.raw.read1(BLOCK, decode_content=False):
            file.write(block)
            have += len(block)
            moving(len(block))
            if (now := time.monotonic()) - told > TELL_EVERY:
                told = now
                of = f" of {total / 1e6:,.0f}" if total else ""
                show(f"{name}: {have / 1e6:,.0f}{of} MB, {(have - start) / 1e6 / (now - began):,.1f} MB/s")
    return have


def _require_room(folder: Path, name: str, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise Rejected(
            f"{name} needs {needed / 1e6:,.0f} MB more, and the disk of {os.fspath(folder)} has {free / 1e6:,.0f} MB."
            " Make room, or choose another folder (RECIPES_OUTPUT_DIR); nothing more was downloaded."
        )


def _amount(size: int, seconds: float) -> str:
    return f"{size / 1e6:,.1f} MB in {seconds:,.1f} s ({size / 1e6 / max(seconds, 0.001):,.0f} MB/s)"
