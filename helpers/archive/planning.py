"""What a HyP3 project has made, and how the archive stands to it: each file new, changed, present, missing or clashing.

The layout, in one place: a product file lies in the archive as ``<prefix>/<file name>``, where the prefix is that of
the target, by custom ``<anything>/<project>``. Job ids do not occur in it. HyP3's file names are unique by
themselves (granule, options, four digits of the job), so that a project's folder is flat.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Literal

import hyp3_sdk
from hyp3_sdk import Job

from ..errors import Rejected
from .look import (
    CHANGED,
    CLASHING,
    JOBS,
    MISSING,
    NEW,
    PLAIN,
    PRESENT,
    STATES,
    File,
    Source,
    encrypted,
    entries,
    is_pattern,
    matches,
)
from .run import WORKERS, Task
from .store import Entry, Place, patiently


@dataclass(frozen=True)
class Plan:
    """What there is, and what a transfer would do. ``jobs``: ids of those without files to archive, by state."""

    source: Place
    target: Place | Path
    files: list[File]
    jobs: dict[str, list[str]]
    clash: str  #: the policy
    now: datetime
    soon: datetime  #: what expires before is called "expires soon"

    @property
    def new(self) -> list[File]:
        """What a transfer would bring: new and changed files; those first that expire first."""
        return sorted(self._of(NEW, CHANGED), key=lambda file: (file.expires is None, file.expires, file.name))

    @property
    def bytes(self) -> int:
        """How much that is."""
        return sum(file.size for file in self._of(NEW, CHANGED))

    @property
    def wanted(self) -> list[File]:
        """What the archive holds when all is done."""
        return self._of(NEW, CHANGED, PRESENT)

    def _of(self, *states: str) -> list[File]:
        return [file for file in self.files if file.state in states]

    def expires_soon(self, file: File) -> bool:
        """Whether a file that is not archived yet will soon be gone."""
        # A clashing file is left out on purpose, unless nobody has decided yet.
        states = (NEW, CHANGED, CLASHING) if self.clash == "error" else (NEW, CHANGED)
        return file.state in states and file.expires is not None and file.expires <= self.soon

    def counts(self) -> dict[str, int]:
        """How many files are in each state, how many of them expire soon, and how many jobs have none to give."""
        files = {state: len(self._of(state)) for state in STATES}
        jobs = {f"{state} jobs": len(self.jobs[state]) for state in JOBS}
        return files | {"expires soon": sum(map(self.expires_soon, self.files))} | jobs

    def table(self) -> list[dict]:
        """One row for each file, and for each job that has none to give."""
        rows = [
            {
                "state": file.state,
                "file": file.name,
                "MB": round(file.size / 1e6, 3),
                "expires": f"{file.expires:%Y-%m-%d}{' (soon)' * self.expires_soon(file)}" if file.expires else "",
                "job": file.job_id,
                "why": file.why,
            }
            for file in self.files
        ]
        jobs = [
            {"state": f"job {state}", "file": "", "MB": 0.0, "expires": "", "job": job, "why": ""}
            for state in JOBS
            for job in self.jobs[state]
        ]
        return rows + jobs

    def remarks(self) -> list[dict]:
        """What is worth a closer look, one row for each job: files that are not plainly new or present, or go soon."""
        rows: dict[tuple, dict] = {}
        for row in self.table():
            if row["why"] or "soon" in row["expires"] or row["state"].startswith("job "):
                shown = {"state": row["state"], "job": row["job"][:8], "expires": row["expires"]}
                why = re.sub(r"([0-9a-f]{8})-[0-9a-f-]{27}", r"\1", row["why"])
                kept = rows.setdefault((*shown.values(), why), shown | {"files": 0, "why": why, "such as": row["file"]})
                kept["files"] += bool(row["file"])
        return list(rows.values())

    def address(self, file: File) -> str:
        """Where the file goes."""
        if isinstance(self.target, Path):
            return str(self.target / file.name)
        return f"s3://{self.target.bucket}/{self.target.key(file.name)}"

    def tasks(self, files: Iterable[File]) -> list[Task]:
        return [Task(file.source, self.address(file), file.size, file) for file in files]


def find(
    hyp3: hyp3_sdk.HyP3,
    project: str | None = None,
    job_type: str | None = None,
    start: datetime | str | None = None,
    end: datetime | str | None = None,
    user_id: str | None = None,
) -> list[Job]:
    """The project's jobs in all states, oldest first, however many pages they are.

    ``hyp3``: a hardened client (:func:`helpers.hyp3.connect`). While HyP3 does not answer, it is asked again for a
    minute. ``project`` is the jobs' name; None: of any.
    """
    found = patiently(lambda: hyp3.find_jobs(start=start, end=end, name=project, job_type=job_type, user_id=user_id))
    return sorted({job.job_id: job for job in found}.values(), key=lambda job: (job.request_time, job.job_id))


def content_bucket(jobs: list[Job]) -> str:
    """HyP3's own bucket: the one in which the prefix of a job is its id (in buckets of users it can be anything).

    Raises
    ------
    Rejected
        There are no jobs. A schedule with a mistyped name should not look like one with nothing to do.
    """
    if not jobs:
        raise Rejected(
            "No job was found: is the project's name right, with its capitals? Look at job_type, user_id, start and"
            " end, too. `hyp3.my_info()['job_names']` has the names of your own jobs."
        )
    own = Counter(job.bucket for job in jobs if job.bucket and job.bucket_prefix == job.job_id)
    return (own or Counter(job.bucket for job in jobs)).most_common(1)[0][0]


def check(
    suffixes: list[str],
    clash: str,
    start: str = "",
    end: str = "",
    *,
    at_a_time: int = 1,
    warn_days: float = 0,
    bucket: str = "",
) -> None:
    """Make sure that the parameters of an archive run can work.

    Raises
    ------
    Rejected
        All that is wrong with them, at once.
    """
    found = [] if suffixes else ["there are no suffixes: nothing would be archived"]
    if not all(suffix.strip() for suffix in suffixes):
        found.append("a suffix is empty: every file would be archived; write '*' if that is meant")
    if at_a_time < 1:
        found.append(f"{at_a_time} files at a time: at least 1 is needed")
    if warn_days < 0:
        found.append(f"warn_days {warn_days:g} is less than none")
    if bucket and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
        found.append(f"bucket {bucket!r}: S3 takes 3 to 63 lower-case letters, digits, '-' and '.'")
    if clash not in (policies := ("newest", "first", "error")):
        found.append(f"clash {clash!r} is none of {', '.join(policies)}")
    for name, value in {"start": start, "end": end}.items():
        try:
            datetime.fromisoformat(value or "2026-01-01")
        except ValueError:
            found.append(f"{name} {value!r} is no time; write it as 2026-07-01T00:00:00Z")
    if start and end and start > end:
        found.append(f"start {start} is after end {end}")
    if found:
        raise Rejected.because("Nothing was archived", found)


# --- plan ---


def plan(
    jobs: Iterable[Job],
    suffixes: Iterable[str],
    source: Place,
    target: Place | Path,
    *,
    clash: Literal["newest", "first", "error"] = "newest",
    warn_days: float = 3,
    now: datetime | None = None,
) -> Plan:
    """Compare the products of ``jobs`` with the archive. Nothing is changed anywhere.

    Parameters
    ----------
    suffixes:
        Ends of the wanted files' names ("_VV.tif"), or patterns ("*.tif"). A name without a dot ("_VV") stands for a
        GeoTIFF ("_VV.tif"), as in the published recipe.
    source:
        HyP3's content bucket. Jobs with a bucket of their own are looked for there, signed, with the same settings. A
        bucket that may not be read is replaced by the links that HyP3 reports.
    target:
        The project's place in the archive, or a folder.
    clash:
        When two jobs would give one file, or are the same work (type and parameters): the job to take the files of.
        "error": of none.
    warn_days:
        How long before its deletion by HyP3 a file that is not archived is said to expire soon.
    now:
        The present, for tests.

    Returns
    -------
    Plan, whose files are each in one state: "new", "changed" (other size, or other checksum; where the checksums
    cannot be compared, as of multi-part uploads: written later than the copy), "present", "missing at source", or
    "clashing". Trouble with the files of one job is told in the plan.

    Raises
    ------
    Rejected, TimedOut, NotConfigured
        The archive cannot be read.
    """
    now = now or datetime.now(UTC)
    ready, others = _sorted(jobs, now)
    patterns = [_pattern(suffix) for suffix in suffixes]
    if not patterns:
        raise Rejected("There are no suffixes: nothing would be archived.")
    by_prefix: dict[tuple[str, str], list[Job]] = defaultdict(list)
    for job in ready:
        by_prefix[job.bucket or source.bucket, _folder(job)].append(job)
    look = Source(source, patterns)
    with ThreadPoolExecutor(WORKERS) as pool:
        listings = pool.map(look, by_prefix, by_prefix.values())
        files = [
            file
            for (bucket, _), jobs_there, listing in zip(by_prefix, by_prefix.values(), listings, strict=True)
            for job in jobs_there
            for file in _wanted(job, bucket, listing, patterns, alone=len(jobs_there) == 1)
        ]
    files = _without_clashes(files, ready, clash)
    compare = Comparison(target, {file.name for file in files if file.state == NEW})
    files = [compare(file) if file.state == NEW else file for file in files]
    files.sort(key=lambda file: (file.name, STATES.index(file.state)))
    return Plan(source, target, files, others, clash, now, now + timedelta(days=warn_days))


def _sorted(jobs: Iterable[Job], now: datetime) -> tuple[list[Job], dict[str, list[str]]]:
    """Jobs whose files can be archived; the ids of the others by state."""
    ready, others = [], {state: [] for state in JOBS}
    for job in {job.job_id: job for job in jobs}.values():
        if job.status_code != "SUCCEEDED":
            others.setdefault(job.status_code.lower(), []).append(job.job_id)
        elif job.expiration_time is not None and job.expiration_time <= now:
            others["expired"].append(job.job_id)
        else:
            ready.append(job)
    return ready, others


def _folder(job: Job) -> str:
    """The beginning of the keys of the job's files. HyP3 makes its keys with pathlib, and so a doubled "/" goes."""
    path = str(PurePosixPath(job.bucket_prefix or job.job_id))
    return "" if path == "." else f"{path}/"


def _pattern(suffix: str) -> str:
    return suffix if is_pattern(suffix) else f"*{suffix}" if "." in suffix else f"*{suffix}.tif"


def _wanted(job: Job, bucket: str, listing: tuple, patterns: list[str], alone: bool) -> list[File]:
    """The job's files that match a pattern; for each pattern that none matches, one that is missing."""
    entries, links, trouble = listing
    stems = tuple(PurePosixPath(file["filename"]).stem for file in job.files or [])
    expires = job.expiration_time
    files = [
        File(NEW, bucket, e.key, name, e.size, e.etag, e.modified, job.job_id, expires, links.get(e.key, ""))
        for name, e in ((PurePosixPath(entry.key).name, entry) for entry in entries)
        # Jobs that share a prefix see each other's files; but each is named after its product.
        if (alone or name.startswith(stems)) and matches(name, patterns) and name not in ("", "..")
    ]
    for pattern in patterns:
        if not any(fnmatchcase(file.name, pattern) for file in files):
            name = pattern if is_pattern(pattern[1:]) else min(stems, key=len, default=job.job_id) + pattern[1:]
            key, why = _folder(job) + name, trouble or "the job did not make it, or it was deleted"
            files.append(File(MISSING, bucket, key, name, 0, "", "", job.job_id, expires, why=why))
    return files


def _without_clashes(files: list[File], jobs: list[Job], clash: str) -> list[File]:
    """Of jobs that are the same work, and of files with the same target, all but the chosen one become clashing."""
    order = sorted(jobs, key=lambda job: (job.request_time, job.job_id), reverse=clash == "newest")
    rank = {job.job_id: n for n, job in enumerate(order)}
    leaders: dict[str, str] = {}  # by work
    leader = {}  # by job
    for job in order:
        work = json.dumps([job.job_type, job.job_parameters or job.job_id], sort_keys=True)
        leader[job.job_id] = leaders.setdefault(work, job.job_id)
    first: dict[str, File] = {}
    result, contested = [], set()
    for file in sorted(files, key=lambda file: rank[file.job_id]):
        if file.state != NEW:
            result.append(file)
        elif leader[file.job_id] != file.job_id:
            contested.add(leader[file.job_id])
            result.append(replace(file, state=CLASHING, why=f"job {leader[file.job_id]} is the same work"))
        elif (other := first.setdefault(file.name, file)) is file:
            result.append(file)
        elif other.source != file.source:  # else: the same object, seen by two jobs with one prefix
            contested.add(file.name)
            result.append(replace(file, state=CLASHING, why=f"job {other.job_id} has a file of this name"))
    if clash != "error":
        return result
    return [
        replace(file, state=CLASHING, why="another job is the same work, or has a file of this name")
        if file.state == NEW and {file.job_id, file.name} & contested
        else file
        for file in result
    ]


class Comparison:
    """How the archive stands to a file of the source."""

    def __init__(self, target: Place | Path, names: set[str]):
        self._target, self._opaque = target, None
        self.there = entries(target, names)

    def __call__(self, file: File) -> File:
        there = self.there.get(file.name)
        if there is None:
            return file
        if there.size != file.size:
            return replace(file, state=CHANGED, why=f"the archive's has {there.size:,} bytes")
        if there.etag == file.etag:
            return replace(file, state=PRESENT)
        if PLAIN.fullmatch(there.etag) and PLAIN.fullmatch(file.etag) and not self._encrypted(there):
            return replace(file, state=CHANGED, why="the archive's has another checksum")
        # What remains are parts of unlike size, and files on disk, which have the source's date.
        if there.modified < file.modified:
            return replace(file, state=CHANGED, why=f"the archive's is of {there.modified}")
        return replace(file, state=PRESENT)

    def _encrypted(self, there: Entry) -> bool:
        """Whether the archive's checksums are none. Asked once."""
        if self._opaque is None:
            self._opaque = encrypted(self._target, self._target.bucket, there.key)
        return self._opaque
