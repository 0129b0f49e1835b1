"""What is there: the files of a job, the files of an archive, and the checksums of both."""

import hashlib
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import requests
from botocore.exceptions import BotoCoreError, ClientError
from hyp3_sdk import Job

from .. import http
from ..errors import RecipeError
from .store import CredentialsRefused, Entry, Place, Refused, Store, explained

#: An MD5 of all bytes; with "-<count>" behind it, an ETag is one of the MD5s of the parts.
PLAIN = re.compile(r"[0-9a-f]{32}")
PARTED = re.compile(r"[0-9a-f]{32}-(\d+)")

NEW, CHANGED, PRESENT, MISSING, CLASHING = "new", "changed", "present", "missing at source", "clashing"
#: States of a file, in the order of tables; and of jobs that have none to give.
STATES = (NEW, CHANGED, PRESENT, MISSING, CLASHING)
JOBS = ("failed", "pending", "running", "expired")


@dataclass(frozen=True, slots=True)
class File:
    """One file of a product: where it is, what it will be called, and how the archive stands to it.

    ``url`` is set when only that can be read, not the bucket. ``expires``: when HyP3 deletes the source (UTC).
    ``why``: for people.
    """

    state: str
    bucket: str
    key: str
    name: str
    size: int
    etag: str
    modified: str
    job_id: str
    expires: datetime | None = None
    url: str = ""
    why: str = ""

    @property
    def source(self) -> str:
        return self.url or f"s3://{self.bucket}/{self.key}"


class Source:
    """Lists the files under a job's prefix, in whatever bucket."""

    def __init__(self, place: Place, patterns: list[str]):
        self._place, self._patterns, self._lock = place, patterns, threading.Lock()
        self._stores: dict[str, Store] = {}
        self._session = http.harden(requests.Session(), retries=1)

    def __call__(self, where: tuple[str, str], jobs: list[Job]) -> tuple[list[Entry], dict[str, str], str]:
        """The files; their links by key, if only these can be read; and what was the matter."""
        bucket, folder = where
        try:
            return self._store(bucket).files(folder), {}, ""
        except Refused as error:
            if error.status not in (403, 404) or isinstance(error, CredentialsRefused):
                raise
            return *self._by_links(folder, jobs), f"s3://{bucket} cannot be listed: {error}"

    def _store(self, bucket: str) -> Store:
        with self._lock:
            if bucket not in self._stores:
                self._stores[bucket] = Store(self._place.of_bucket(bucket))
            return self._stores[bucket]

    def _by_links(self, folder: str, jobs: list[Job]) -> tuple[list[Entry], dict[str, str]]:
        """What can be had over HTTPS. Jobs report their archive only; single rasters lie beside it."""
        entries, links = [], {}
        for reported in [file for job in jobs for file in job.files or []]:
            stem = PurePosixPath(reported["filename"]).stem
            names = {reported["filename"], *(stem + p[1:] for p in self._patterns if not is_pattern(p[1:]))}
            for name in sorted(name for name in names if matches(name, self._patterns)):
                url = reported["url"].removesuffix(reported["filename"]) + name
                try:
                    as_it_is = {"Accept-Encoding": "identity"}  # else the length would be that of something else
                    about = self._session.head(url, headers=as_it_is, allow_redirects=True).headers
                    when = parsedate_to_datetime(about["Last-Modified"])
                    size, etag = int(about["Content-Length"]), about.get("ETag", "").strip('"')
                except (RecipeError, KeyError):
                    continue
                entries.append(Entry(folder + name, size, etag, f"{when:%Y-%m-%dT%H:%M:%S}"))
                links[folder + name] = url
        return entries, links


def entries(target: Place | Path, names: Iterable[str]) -> dict[str, Entry]:
    """Those files of the archive that have one of these names, by name; none of a bucket that is still to be made."""
    if isinstance(target, Path):
        return {name: entry for name in names if (entry := _on_disk(target / name))}
    try:
        found = Store(target).look_up(map(target.key, names))
    except Refused as error:
        if error.code != "NoSuchBucket":
            raise
        found = {}
    return {key.removeprefix(target.key("")): entry for key, entry in found.items()}


def _on_disk(path: Path) -> Entry | None:
    if not path.is_file():
        return None
    about = path.stat()
    return Entry(path.name, about.st_size, "", f"{datetime.fromtimestamp(about.st_mtime, UTC):%Y-%m-%dT%H:%M:%S}")


def is_pattern(text: str) -> bool:
    return any(c in text for c in "*?[")


def matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


# --- checksums ---


def encrypted(place: Place, bucket: str, key: str) -> bool:
    """Whether an object is kept under a KMS key, or a customer's own: then its ETag is no MD5."""
    try:
        about = place.client.head_object(Bucket=bucket, Key=key)
    except (ClientError, BotoCoreError) as error:
        raise explained(error) from None
    return "kms" in about.get("ServerSideEncryption", "") or "SSECustomerAlgorithm" in about


def part_size(source: Place, file: File) -> int | None:
    """Bytes of the parts that the source's checksum was made of, 0 if of the whole; None when nobody knows."""
    if PLAIN.fullmatch(file.etag):
        return 0
    if not (parted := PARTED.fullmatch(file.etag)):
        return None
    count = int(parted[1])
    sizes = [8 << 20, 5 << 20, 16 << 20]  # boto3's, the smallest, the AWS tools' for large files
    if not file.url:
        try:
            about = source.client.head_object(Bucket=file.bucket, Key=file.key, PartNumber=1)
            sizes.insert(0, about["ContentLength"])
        except (ClientError, BotoCoreError):
            pass  # it is gone
    return next((size for size in sizes if -(-file.size // size) == count), None)


def etag_of(blocks: Iterable[bytes], part: int = 0) -> str:
    """The ETag of these bytes: their MD5 or, uploaded in parts of ``part`` bytes, the MD5 of the parts' MD5s."""
    whole, parts, room = hashlib.md5(usedforsecurity=False), [], 0
    if not part:
        for block in blocks:
            whole.update(block)
        return whole.hexdigest()
    for block in blocks:
        for piece in _cut(block, room, part):
            if not room:
                parts.append(hashlib.md5(usedforsecurity=False))
                room = part
            parts[-1].update(piece)
            room -= len(piece)
    return f"{hashlib.md5(b''.join(p.digest() for p in parts), usedforsecurity=False).hexdigest()}-{len(parts)}"


def _cut(block: bytes, room: int, part: int) -> Iterator[bytes]:
    """``block`` in pieces: the first fills the ``room`` that is left in a part, the others begin parts."""
    start, length = 0, room or part
    while start < len(block):
        yield block[start : start + length]
        start, length = start + length, part
