"""What is in the archive, held against what should be there."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from .look import PLAIN, PRESENT, File, entries, etag_of, part_size
from .planning import Plan
from .run import COPIED, Outcome
from .store import Entry, Place, explained

#: Files that are read at the same time.
READERS = 6
#: Only reading finds it, and so no plan will: it takes somebody to decide.
DAMAGED = "content differs: delete it and run again, then it is fetched anew"


@dataclass(frozen=True)
class Check:
    """One file in the archive. ``verdict``: "ok", or what is wrong; ``compared``: "size", "checksum" or "content"."""

    target: str
    bytes: int | None
    checksum: str
    verdict: str
    compared: str


def verify(plan: Plan, outcomes: Iterable[Outcome] = (), *, deep: bool = False) -> list[Check]:
    """Look again at everything that the archive should hold now, with one listing.

    Sizes are those of the source. Checksums must be the source's or, where the archive's are of another kind (parts,
    encryption), those that S3 gave when it copied (``outcomes``); without any of these, only the size is compared.

    ``deep``: read every file that the listing finds good, and compute the source's checksum from its content. That
    takes as long as a download.
    """
    known = {outcome.target: outcome.checksum for outcome in outcomes if outcome.outcome == COPIED}
    there = entries(plan.target, [file.name for file in plan.wanted])
    checks = [_check(plan, file, there.get(file.name), known.get(plan.address(file), "")) for file in plan.wanted]
    if not deep:
        return checks
    places = {file.bucket: plan.source.of_bucket(file.bucket) for file in plan.wanted}
    with ThreadPoolExecutor(READERS) as pool:
        read = pool.map(lambda file, check: _read(plan, places[file.bucket], file, check), plan.wanted, checks)
        return list(read)


def _check(plan: Plan, file: File, there: Entry | None, known: str) -> Check:
    address = plan.address(file)
    if there is None:
        return Check(address, None, "", "missing", "")
    if there.size != file.size:
        return Check(address, there.size, there.etag, f"size differs: {file.size:,} at the source", "size")
    if there.etag and there.etag in (known, file.etag):
        return Check(address, there.size, there.etag, "ok", "checksum")
    both_plain = PLAIN.fullmatch(there.etag) and PLAIN.fullmatch(file.etag)
    if there.etag and (known or (both_plain and file.state != PRESENT)):  # files on disk have none
        return Check(address, there.size, there.etag, f"checksum differs: {known or file.etag} expected", "checksum")
    return Check(address, there.size, there.etag, "ok", "size")


def _read(plan: Plan, source: Place, file: File, check: Check) -> Check:
    if check.verdict != "ok":
        return check
    try:
        part = part_size(source, file)
        if part is None:
            return check
        found = etag_of(_blocks(plan.target, file.name), part)
    except (OSError, BotoCoreError, ClientError) as error:
        return replace(check, verdict=f"cannot be read: {explained(error)}")
    return replace(check, verdict="ok" if found == file.etag else DAMAGED, compared="content")


def _blocks(target: Place | Path, name: str) -> Iterator[bytes]:
    if isinstance(target, Path):
        with (target / name).open("rb") as file:
            yield from iter(lambda: file.read(1 << 20), b"")
    else:
        with closing(target.client.get_object(Bucket=target.bucket, Key=target.key(name))["Body"]) as body:
            yield from body.iter_chunks(1 << 20)
