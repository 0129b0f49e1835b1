"""One run at a time: a lock on an archive, in the bucket or in the folder itself."""

import fcntl
import getpass
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError

from ..errors import Rejected
from .store import Place, explained, patiently

#: Seconds without a sign of life after which the lock of another machine is broken.
AGE = 15 * 60.0
#: Its name.
LOCK = ".archive-lock"


@contextmanager
def lock(place: Place | Path, *, age: float = AGE) -> Iterator[threading.Event]:
    """Keep other runs out of the archive until the block ends.

    In a bucket the lock is the object ``.archive-lock``, written on condition that there is none and renewed while
    the block runs; in a folder, a locked file of that name. A lock that was not renewed for ``age`` seconds, or whose
    process on this machine is gone, is taken over.

    Yields
    ------
    An event that is set should the lock be lost: ``transfer(..., stop=event)``.

    Raises
    ------
    Rejected
        Another run has it; the message says whose, and since when.
    """
    me = {"who": f"{getpass.getuser()}@{socket.gethostname()}", "pid": os.getpid(), "since": _now(), "id": uuid4().hex}
    lost = threading.Event()
    if isinstance(place, Path):
        try:
            place.mkdir(parents=True, exist_ok=True)
            (place / LOCK).touch()
        except OSError as error:
            raise Rejected(
                f"Nothing can be written to {place}: {error.strerror}. Choose another folder, or ask for the right to."
            ) from None
        with _locked_file(place / LOCK, me):
            yield lost
        return
    key, tag = {"Bucket": place.bucket, "Key": place.key(LOCK)}, patiently(lambda: _take(place, me, age))
    done = threading.Event()

    def renew() -> None:
        while not done.wait(age / 4):
            try:
                place.client.put_object(**key, Body=json.dumps(me), IfMatch=tag)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] in (404, 412):
                    return lost.set()
            except BotoCoreError:
                continue  # there is time for more tries

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        done.set()
        thread.join()
        try:
            if place.client.head_object(**key)["ETag"] == tag:
                place.client.delete_object(**key)
        except (ClientError, BotoCoreError):
            pass  # it will be old, or is another's by now


def _take(place: Place, me: dict, age: float) -> str:
    """Write the lock; its ETag."""
    s3, key = place.client, {"Bucket": place.bucket, "Key": place.key(LOCK)}
    try:
        while True:
            try:
                held = s3.get_object(**key)
            except s3.exceptions.NoSuchKey:
                condition = {"IfNoneMatch": "*"}
            else:
                holder = json.loads(held["Body"].read())
                now = parsedate_to_datetime(held["ResponseMetadata"]["HTTPHeaders"]["date"])  # S3's clock, as the other
                if (now - held["LastModified"]).total_seconds() < age and not _gone(holder):
                    raise Rejected(_busy(place.address, holder))
                condition = {"IfMatch": held["ETag"]}
            try:
                return s3.put_object(**key, Body=json.dumps(me), **condition)["ETag"]
            except ClientError as error:
                # 412: another was faster; 409: at the same time; 404: the old one has just been released.
                if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (404, 409, 412):
                    raise
    except (ClientError, BotoCoreError) as error:
        raise explained(error) from None


@contextmanager
def _locked_file(path: Path, me: dict) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Rejected(_busy(str(path.parent), json.loads(path.read_text() or "{}"))) from None
        file.truncate(0)
        file.write(json.dumps(me))
        file.flush()
        yield


def _gone(holder: dict) -> bool:
    """Whether the holder was a process of this machine that has ended."""
    if holder.get("who", "").partition("@")[2] != socket.gethostname():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _busy(address: str, holder: dict) -> str:
    return (
        f"{holder.get('who', 'Somebody')} has been archiving to {address} since {holder.get('since', 'just now')}"
        f" (process {holder.get('pid', '?')}). Wait for that run; nothing was done."
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
