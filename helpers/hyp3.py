"""HyP3 with a bucket of one's own: what to check before spending credits, and how never to spend them twice."""

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import hyp3_sdk
import hyp3_sdk.util
import requests
from hyp3_sdk import Batch, Job

from . import http, objectstore, once
from .errors import Rejected
from .settings import EARTHDATA_HOST, Settings
from .state import RunState

#: Jobs that one request may submit (HyP3 API).
CHUNK = 200
#: Names in the API's own examples; HyP3 silently writes to its content bucket instead.
EXAMPLE_BUCKET = "my-example-bucket"
#: What HyP3 accepts (its OpenAPI document); S3 is stricter in places, and looser in others.
HYP3_BUCKET = re.compile(
    r"(?!(^((2(5[0-5]|[0-4][0-9])|[01]?[0-9]{1,2}).){3}(2(5[0-5]|[0-4][0-9])|[01]?[0-9]{1,2})$|^xn--|.+-s3alias$))"
    r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
)
HYP3_PREFIX = re.compile(r"(?!/)(?!.*//)(?:[A-Za-z0-9._/-]|\{job_id\}|\{name\})+")
#: S3's bucket naming rules beyond HyP3's pattern ("General purpose bucket naming rules").
S3_FORBIDS = {
    r"\.\.": "two dots in a row",
    r"\.-|-\.": "a dash beside a dot",
    r"^\d+\.\d+\.\d+\.\d+$": "an IP address",
    r"^(xn--|sthree-|amzn-s3-demo-)": "a reserved beginning",
    r"(-s3alias|--ol-s3|--x-s3|\.mrap|--table-s3)$": "a reserved ending",
}
#: Characters that S3 keys carry everywhere without encoding ("Safe characters" of the S3 user guide, and "/").
SAFE_KEY = re.compile(r"[A-Za-z0-9!_.*'()/-]+")
#: Bytes of an S3 key, less what HyP3 appends: file names have been seen with up to 120 bytes.
KEY_ROOM = 1024 - 120
JOB_ID = "00000000-0000-0000-0000-000000000000"


def connect(settings: Settings) -> hyp3_sdk.HyP3:
    """The SDK's client for the configured deployment, its session hardened (see :func:`helpers.http.harden`).

    Raises
    ------
    NotConfigured
        Live, and there is neither a token nor a ``.netrc`` line for Earthdata Login.
    Rejected, TimedOut
        The login with ``.netrc`` was refused, or had no answer.
    """
    settings.require("earthdata")
    url, token = str(settings.hyp3_api_url).rstrip("/"), settings.earthdata_token
    # Always with a token: without one, the client would log in at once, with no time-out.
    hyp3 = hyp3_sdk.HyP3(url, token=token.get_secret_value() if token else "none")
    http.harden(hyp3.session)
    if token is None:
        _log_in(hyp3.session)
    return hyp3


def _log_in(session: requests.Session) -> None:
    """Log in with the line of ``.netrc``: Earthdata Login answers with a cookie for HyP3."""
    del session.headers["Authorization"]
    answer = session.get(hyp3_sdk.util.AUTH_URL)
    # Refusals come as a page that was redirected to, with the reason in its address.
    if refusal := parse_qs(urlsplit(answer.url).query).get("error_msg"):
        raise Rejected(f"{EARTHDATA_HOST} refuses the login: {refusal[0]} See https://{EARTHDATA_HOST}/profile")


# --- before anything is sent ---


def expanded_prefix(job: dict, job_id: str = "<job_id>") -> str | None:
    """Where HyP3 will put the job's files: ``{job_id}`` and ``{name}`` filled in, both at once, as the API does."""
    prefix = job.get("bucket_prefix")
    if prefix is None:
        return job_id if job.get("bucket") else None
    values = {"{job_id}": job_id, "{name}": str(job.get("name") or "{name}")}
    return re.sub(r"\{job_id\}|\{name\}", lambda m: values[m[0]], prefix)


def check(jobs: list[dict]) -> None:
    """Find what would fail, cost credits for nothing, or mix up files, before anything is sent.

    Parameters
    ----------
    jobs:
        Prepared jobs as for ``submit_prepared_jobs``: job_type, job_parameters, and optionally name, bucket,
        bucket_prefix.

    Raises
    ------
    Rejected
        All problems of all jobs at once.
    """
    problems: list[str] = []
    for i, job in enumerate(jobs, 1):
        label = f"job {i}" + (f" ({job['name']})" if job.get("name") else "")
        problems += [f"{label}: {problem}" for problem in (*_name_problems(job), *_place_problems(job))]
        if (first := jobs.index(job) + 1) < i:
            problems.append(f"{label}: is the same as job {first}; it would be paid for twice. Remove one.")
    if not jobs:
        problems = ["there is no job to submit"]
    if problems:
        raise Rejected.because("Nothing was submitted", problems)


def _name_problems(job: dict) -> list[str]:
    name = job.get("name")
    if name is None:
        return []
    if not isinstance(name, str) or not 1 <= len(name) <= 100:
        return [f"name {name!r}: HyP3 takes 1 to 100 characters"]
    if "{name}" not in (job.get("bucket_prefix") or ""):
        return []
    problems = []
    if "/" in name:
        problems.append(f"name {name!r} would put '/' into the keys, making folders you did not ask for")
    if ".." in name:
        problems.append(f"name {name!r} would put '..' into the keys; many tools refuse such keys")
    if odd := sorted({c for c in name if c != "/" and not SAFE_KEY.fullmatch(c)}):
        odd_ones = " ".join(map(repr, odd))
        problems.append(f"name {name!r}: {odd_ones} would need encoding in every URL; use letters, digits, - _ .")
    return problems


def _place_problems(job: dict) -> list[str]:
    bucket, prefix = job.get("bucket"), job.get("bucket_prefix")
    if bucket is None:
        return [] if prefix in (None, "{job_id}") else [f"bucket_prefix {prefix!r} needs a bucket of your own"]
    problems = bucket_problems(bucket)
    if prefix is None:
        return problems
    if job.get("name") is None:
        problems.append("a bucket_prefix needs a job name: without one HyP3 answers 500")
    if not HYP3_PREFIX.fullmatch(prefix) or len(prefix) > 100:
        problems.append(
            f"bucket_prefix {prefix!r}: HyP3 takes 1 to 100 letters, digits, . _ - / and the words {{job_id}} and"
            " {name}; no '/' at the start, no '//'"
        )
    if "{job_id}" not in prefix:
        problems.append(f"bucket_prefix {prefix!r} lacks {{job_id}}: jobs would claim each other's files")
    if prefix.endswith("/"):
        problems.append(f"bucket_prefix {prefix!r} ends in '/': the log of a failed job would get a '//' key")
    if {".", ".."} & set(prefix.split("/")):
        problems.append(f"bucket_prefix {prefix!r} has a '.' or '..' step, which S3 does not resolve but tools do")
    if (size := len((expanded_prefix(job, JOB_ID) or "").encode())) > KEY_ROOM:
        problems.append(
            f"bucket_prefix grows to {size} bytes with its values; keys end at 1,024 bytes with the file name"
        )
    return problems


def bucket_problems(bucket: str) -> list[str]:
    """What is wrong with a bucket's name, for S3 or for HyP3; an empty list when nothing is."""
    if bucket == EXAMPLE_BUCKET:
        return [f"{bucket} is the API's example: HyP3 would silently use its own bucket. Use the name of yours"]
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
        return [
            f"bucket {bucket!r}: S3 takes 3 to 63 lower-case letters, digits, '-' and '.',"
            " with a letter or digit at both ends"
        ]
    problems = [f"bucket {bucket!r}: S3 forbids {why}" for rule, why in S3_FORBIDS.items() if re.search(rule, bucket)]
    if not problems and not HYP3_BUCKET.fullmatch(bucket):
        problems.append(f"bucket {bucket!r}: HyP3 refuses it although S3 does not (it takes it for an IP address)")
    return problems


def check_cost(cost: float, limit: float) -> None:
    """Stop before spending more than ``limit`` credits.

    Raises
    ------
    Rejected
        ``cost`` is higher; nothing was submitted.
    """
    if cost > limit:
        raise Rejected(
            f"These jobs cost {cost:g} credits, more than the limit of {limit:g}; nothing was submitted."
            " Remove jobs, or raise max_credits."
        )


def scope_problems(prefix: str, scope: str) -> list[str]:
    """What is wrong when jobs go to ``prefix`` and the policy lets HyP3 write under ``scope`` only ("": anywhere)."""
    if not scope or prefix.startswith(f"{scope.strip('/')}/"):
        return []
    return [
        f"policy_scope {scope!r} does not cover bucket_prefix {prefix!r}: HyP3 could not write there, and every job"
        f" would fail. Begin the prefix with {scope.strip('/') + '/'!r}, or change the scope"
    ]


# --- submit or reuse ---


def submit_or_reuse(
    jobs: list[dict],
    state: RunState,
    hyp3: hyp3_sdk.HyP3,
    *,
    submit: Callable[[list[dict]], Batch],
    settle: float,
    tries: int = 3,
    show: Callable[[str], None] = print,
) -> Batch:
    """Submit the jobs that this run has not submitted yet; return all of them in the given order.

    Notes are written before and after each request, and lost answers looked up: see :func:`helpers.once.submit`.

    Parameters
    ----------
    jobs:
        Prepared jobs; more than 200 are sent in chunks.
    state:
        The run's memory. The same run id never submits the same job twice.
    hyp3, submit:
        The client, and what submits a chunk: ``hyp3.submit_prepared_jobs``.
    settle:
        Seconds after a lost request until it certainly either worked or did not.
    tries:
        How often a chunk is sent at most.

    Raises
    ------
    Rejected
        What :func:`check` finds, or what HyP3 says; nothing of that chunk was stored.
    TimedOut
        HyP3 does not answer; run again to carry on.
    """
    check(jobs)

    def send(chunk: list[dict]) -> list[str]:
        return [job.job_id for job in submit(chunk)]

    def find(lost: list[dict], since: datetime | None, taken: set[str]) -> list[str | None]:
        return _find(lost, hyp3.find_jobs(start=since), taken)

    ids = once.submit(jobs, state, send=send, find=find, settle=settle, chunk=CHUNK, tries=tries, show=show)
    return Batch([hyp3.get_job_by_id(job_id) for job_id in ids])


def _find(lost: list[dict], jobs: Batch, taken: set[str]) -> list[str | None]:
    """The id of the first job not yet taken that was made from each of ``lost``, or None."""
    found, left = [], sorted((job for job in jobs if job.job_id not in taken), key=lambda job: job.request_time)
    for prepared in lost:
        job = next((job for job in left if _is(job, prepared)), None)
        if job:
            left.remove(job)
        found.append(job and job.job_id)
    return found


def _is(job: Job, prepared: dict) -> bool:
    """Whether a job of the service was made from ``prepared``."""
    if (job.job_type, job.name) != (prepared["job_type"], prepared.get("name")):
        return False
    if prepared.get("bucket") and (
        job.bucket != prepared["bucket"] or job.bucket_prefix != expanded_prefix(prepared, job.job_id)
    ):
        return False
    given = job.job_parameters or {}  # with the service's defaults added
    return all(given.get(name) == value for name, value in prepared["job_parameters"].items())


# --- afterwards ---


def resubmission(job: Job) -> dict:
    """A finished job as one to submit anew, to the same place in the bucket.

    The SDK's ``to_dict(for_resubmit=True)`` replaces the job's name wherever it occurs in the prefix (``data/a`` of a
    job named "a" becomes ``d{name}t{name}/{name}``). Here only the job id is made variable again; the rest of the
    prefix is kept letter by letter, which also holds for a job renamed since.

    Raises
    ------
    Rejected
        The job has no name but a prefix of its own: HyP3 would answer 500.
    """
    again = {"job_type": job.job_type, "job_parameters": job.job_parameters}
    if job.name is not None:
        again["name"] = job.name
    prefix = (job.bucket_prefix or job.job_id).replace(job.job_id, "{job_id}")
    if prefix == "{job_id}":
        # The default of any bucket; naming it would demand a job name.
        return again | ({"bucket": job.bucket} if job.bucket else {})
    if job.name is None:
        raise Rejected(
            f"Job {job.job_id} has no name but the prefix {job.bucket_prefix!r}: name it first (hyp3.update_jobs)."
        )
    return again | {"bucket": job.bucket, "bucket_prefix": prefix}


def arrived(job: Job, in_bucket: dict[str, int]) -> list[dict]:
    """Compare what a job reports with what is in the bucket.

    Parameters
    ----------
    job:
        A finished job. A failed one that HyP3 could not write for reports no files at all.
    in_bucket:
        Size by key of the objects under the job's prefix.

    Returns
    -------
    One row for each key: ``key``, ``bytes`` (in the bucket, or None), ``reported`` (by the job, or None), ``verdict``:
    "ok", "missing", "size differs", or "not listed" (in the bucket only: images, logs, single layers).
    """
    reported = {file["s3"]["key"]: file["size"] for file in job.files or []}
    rows = []
    for key in sorted(reported | in_bucket):
        here, there = in_bucket.get(key), reported.get(key)
        verdict = (
            "not listed" if there is None else "missing" if here is None else "ok" if here == there else "size differs"
        )
        rows.append({"key": key, "bytes": here, "reported": there, "verdict": verdict})
    return rows


def why_failed(job: Job, s3: Any, lines: int = 6) -> str:
    """The end of a failed job's log, or what the missing log means."""
    if job.logs is None:
        return (
            f"HyP3 could not write to s3://{job.bucket}/{job.bucket_prefix} at all: no log, no files."
            " Is the bucket policy in place, does its scope cover this prefix, does the bucket exist, is it encrypted"
            " with a KMS key, or was an untagged file under the prefix?"
        )
    key = f"{job.bucket_prefix}/{job.job_id}.log"
    body = s3.get_object(Bucket=job.bucket, Key=key)["Body"].read().decode(errors="replace")
    return "\n".join(body.splitlines()[-lines:])


def clean_up(state: RunState, s3: Any, owner: str) -> dict[str, int]:
    """Withdraw exactly the policy statements that the run added, and delete exactly the objects its jobs wrote.

    Can be repeated, also after being killed half-way. The bucket itself stays.

    Returns
    -------
    How many ``statements`` and ``objects`` the run had added.
    """
    state.save(cleaning=True)
    policies = state.get("policies", {})
    for bucket, noted in policies.items():
        _withdraw(bucket, noted, s3, owner)
    written = state.get("written", {})
    for bucket, keys in written.items():
        objectstore.delete(s3, bucket, keys)
    state.save(cleaned=True)
    statements = sum(len(noted["added"]) for noted in policies.values())
    return {"statements": statements, "objects": sum(map(len, written.values()))}


def _withdraw(bucket: str, noted: dict, s3: Any, owner: str) -> None:
    try:
        stored = objectstore.read_policy(s3, bucket, owner)
    except objectstore.NoSuchBucket:
        return
    left = objectstore.without(stored, noted["added"], noted["before"])
    if left == stored:
        return
    if left:
        s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps(left), ExpectedBucketOwner=owner)
    else:
        s3.delete_bucket_policy(Bucket=bucket, ExpectedBucketOwner=owner)


def remember_policy(state: RunState, bucket: str, before: dict | None, added: list[dict]) -> None:
    """Note what :func:`clean_up` will withdraw from the policy of ``bucket``, which was ``before``.

    Noted again (another scope, say), the statements add up, and the first ``before`` stays: it is what the bucket had
    without us.
    """
    policies = state.get("policies", {})
    noted = policies.setdefault(bucket, {"before": before, "added": []})
    noted["added"] += [statement for statement in added if statement not in noted["added"]]
    state.save(policies=policies)


def remember_written(state: RunState, bucket: str, keys: list[str]) -> None:
    """Add ``keys`` to what :func:`clean_up` will delete."""
    written = state.get("written", {})
    state.save(written=written | {bucket: sorted({*written.get(bucket, []), *keys})})
