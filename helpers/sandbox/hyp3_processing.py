"""What the HyP3 stand-in does with a job after accepting it: run it, publish its products, report its files.

Follows the service's state machine as recorded: a job's products, or the log of its failure, are written into the
job's bucket; then everything under its prefix is listed and sorted by the tag `file_type`. Each step asks S3 as its
own role of HyP3's account, and S3 lets it in only if the bucket's policy says so.
"""

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urljoin

from botocore.exceptions import BotoCoreError, ClientError

from .clock import Clock

#: The example pair of the user-bucket feature: its AUTORIFT job fails in the service as well.
FAILING_GRANULES = {
    "S2B_MSIL1C_20260415T005509_N0512_R059_T51DWE_20260415T031050",
    "S2B_MSIL1C_20251116T005509_N0511_R059_T51DWE_20251116T020121",
}

#: What `files` lists; anything else tagged as product is in the bucket only.
LISTED_SUFFIXES = (".zip", ".nc", ".geojson", ".parquet")
#: `expiration_time` of products in a bucket without a lifecycle rule.
NEVER = "2120-10-21T00:00:00+00:00"
#: Objects that one listing reports: the service does not ask for a second page.
LISTING_LIMIT = 1000


class Publisher:
    """HyP3's hands in S3.

    Parameters
    ----------
    clients:
        boto3 clients by role: "compute" writes products, "upload-log" logs, "get-files" lists; "s3-itself" knows
        what S3 applies to any bucket (encryption, lifecycle).
    account_id:
        HyP3's twelve-digit account: the principal that a bucket policy must name.
    content_bucket, distribution_url:
        The service's own bucket, and the URL (ending in "/") that serves it.
    bucket_url:
        URL of an object in a user's bucket, with ``{bucket}``, ``{region}`` and ``{key}``.
    """

    def __init__(
        self,
        clients: dict[str, Any],
        *,
        account_id: str,
        content_bucket: str,
        distribution_url: str,
        bucket_url: str = "https://{bucket}.s3.{region}.amazonaws.com/{key}",
    ):
        self.clients = clients
        self.account_id = account_id
        self.content_bucket = content_bucket
        self.distribution_url = distribution_url
        self.bucket_url = bucket_url

    def put(self, role: str, bucket: str, key: str, body: bytes, file_type: str, content_type: str) -> None:
        """Write one tagged object, as the service's tasks do: first the object, then its tag.

        Raises
        ------
        ClientError
            The bucket does not exist, or S3 does not let the role in.
        """
        if self._kms_encrypted(bucket):
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "kms:GenerateDataKey"}}, "PutObject")
        s3 = self.clients[role]
        s3.put_object(Bucket=bucket, Key=key, Body=body, ContentType=content_type)
        tags = {"TagSet": [{"Key": "file_type", "Value": file_type}]}
        s3.put_object_tagging(Bucket=bucket, Key=key, Tagging=tags)

    def files(self, bucket: str, prefix: str, now: datetime) -> dict:
        """Sort what lies under ``prefix`` into the fields of a finished job.

        Raises
        ------
        ClientError
            S3 does not let the role list the bucket or read an object's tags.
        KeyError, TypeError
            Nothing lies there; an object has no `file_type` tag. The service fails the job in both cases.
        """
        s3 = self.clients["get-files"]
        region = self.region(bucket)
        # No "/" is added: jobs with the prefixes `share` and `shared` see each other's files, as in reality.
        listing = s3.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=LISTING_LIMIT)
        found = [(self._file_type(bucket, o["Key"]), o["Key"], o["Size"]) for o in listing["Contents"]]
        if any(tag is None for tag, *_ in found):
            raise TypeError("argument of type 'NoneType' is not iterable")
        return self.report(bucket, region, found, self.expiry(bucket, now))

    def report(self, bucket: str, region: str, found: list[tuple[str, str, int]], expiry: str) -> dict:
        """The fields of a finished job that has these objects: their tags, keys (in order) and sizes."""

        def urls(kind: str) -> list[str]:
            return [self.url(bucket, region, key) for tag, key, _ in sorted(found) if kind in tag]

        return {
            "files": [
                {
                    "url": self.url(bucket, region, key),
                    "size": size,
                    "filename": PurePosixPath(key).name,
                    "s3": {"bucket": bucket, "key": key},
                }
                for tag, key, size in found
                if tag == "product" and key.endswith(LISTED_SUFFIXES)
            ],
            "browse_images": urls("browse"),
            "thumbnail_images": urls("thumbnail"),
            "logs": urls("log"),
            "expiration_time": expiry if {"product", "log"} & {t for t, *_ in found} else None,
        }

    def region(self, bucket: str) -> str:
        """The bucket's region. Raises ``ClientError`` when S3 does not let the role see the bucket."""
        answer = self.clients["get-files"].head_bucket(Bucket=bucket)
        return answer["ResponseMetadata"]["HTTPHeaders"]["x-amz-bucket-region"]

    def url(self, bucket: str, region: str, key: str) -> str:
        if bucket == self.content_bucket:
            return urljoin(self.distribution_url, key)
        return self.bucket_url.format(bucket=bucket, region=region, key=key)

    def _kms_encrypted(self, bucket: str) -> bool:
        try:
            answer = self.clients["s3-itself"].get_bucket_encryption(Bucket=bucket)
        except (ClientError, BotoCoreError):
            return False
        rules = answer["ServerSideEncryptionConfiguration"]["Rules"]
        return any("kms" in r["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] for r in rules)

    def _file_type(self, bucket: str, key: str) -> str | None:
        tags = self.clients["get-files"].get_object_tagging(Bucket=bucket, Key=key)["TagSet"]
        return next((t["Value"] for t in tags if t["Key"] == "file_type"), None)

    def expiry(self, bucket: str, now: datetime) -> str:
        """When what is written ``now`` goes, by the bucket's lifecycle; :data:`NEVER` without one."""
        try:
            rules = self.clients["s3-itself"].get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
        except ClientError:
            return NEVER
        days = next((r["Expiration"]["Days"] for r in rules if "Days" in r.get("Expiration", {})), None)
        if days is None:
            return NEVER
        # S3 rounds the expiry up to the next midnight UTC.
        end = now + timedelta(days=days + 1)
        return end.replace(hour=0, minute=0, second=0, microsecond=0).isoformat(timespec="seconds")


class Processor:
    """Moves jobs PENDING -> RUNNING -> SUCCEEDED | FAILED as the clock passes, and publishes what they made.

    Parameters
    ----------
    jobs:
        The service's jobs by id, changed in place under ``lock``.
    clock, publisher:
        Time, and HyP3's access to S3.
    make_products:
        From a job to the objects it publishes (``name``, ``body``, ``file_type``, ``content_type``).
    pending, running:
        Seconds that a job stays in each state; later jobs of a submission follow a little later each.
    """

    def __init__(
        self,
        jobs: dict[str, dict],
        lock: threading.RLock,
        clock: Clock,
        publisher: Publisher,
        make_products: Callable[[dict], list],
        step_seconds: Callable[[dict], list[int]],
        pending: float,
        running: float,
    ):
        self.jobs, self.lock, self.clock, self.publisher = jobs, lock, clock, publisher
        self.make_products, self.step_seconds = make_products, step_seconds
        self.pending, self.running = pending, running
        self._due: dict[str, tuple[datetime, datetime]] = {}
        self._stop = threading.Event()
        self._working = threading.Lock()

    def accept(self, job_ids: list[str]) -> None:
        """Plan the new jobs' starts and ends."""
        now = self.clock.now()
        for i, job_id in enumerate(job_ids):
            start = now + timedelta(seconds=self.pending + 0.15 * self.running * i)
            self._due[job_id] = start, start + timedelta(seconds=self.running)

    def pausing(self) -> threading.Lock:
        """A context in which no transition is taken."""
        return self._working

    def drop(self, job_id: str) -> None:
        """Plan nothing more for a job."""
        self._due.pop(job_id, None)

    def run_due(self) -> None:
        """Take every transition that the clock has passed; returns when their effects are in the bucket."""
        with self._working:
            now = self.clock.now()
            for job_id, (start, end) in list(self._due.items()):
                if self._stop.is_set():
                    return
                job = self.jobs[job_id]
                if job["status_code"] == "PENDING" and now >= start:
                    self.start(job_id)
                if job["status_code"] == "RUNNING" and now >= end:
                    self.finish(job_id)

    def start(self, job_id: str) -> None:
        with self.lock:
            self.jobs[job_id] |= {"status_code": "RUNNING", "execution_started": True}

    def finish(self, job_id: str, fails: bool | None = None) -> None:
        """End a job now; ``fails`` overrides what its granules decide."""
        job = self.jobs[job_id]
        if fails is None:
            fails = bool(FAILING_GRANULES & set(job["job_parameters"].get("granules", [])))
        ended = {"execution_started": True, "status_code": "FAILED"}
        succeeded = not fails and self._publish_products(job)
        try:
            if not succeeded:
                self._publish_log(job)
            ended |= self.publisher.files(job["bucket"], job["bucket_prefix"], self.clock.now())
            if succeeded:
                ended["status_code"] = "SUCCEEDED"
        except (ClientError, BotoCoreError, KeyError, TypeError):
            pass  # the service ends such a job without any of the file keys
        ended["processing_times"] = self.step_seconds(job) if ended["status_code"] == "SUCCEEDED" else None
        with self.lock:
            job |= ended
        self._due.pop(job_id, None)

    def _publish_products(self, job: dict) -> bool:
        try:
            for product in self.make_products(job):
                # Keys are made by pathlib in the service too: a doubled or trailing "/" disappears.
                key = str(PurePosixPath(job["bucket_prefix"]) / product.name)
                self.publisher.put("compute", job["bucket"], key, product.body, product.file_type, product.content_type)
        except (ClientError, BotoCoreError):
            return False
        return True

    def _publish_log(self, job: dict) -> None:
        key = f"{job['bucket_prefix']}/{job['job_id']}.log"
        body = _log_of_failure(job, self.clock.now()).encode()
        self.publisher.put("upload-log", job["bucket"], key, body, "log", "text/plain")

    def keep_running(self) -> None:
        """Run due jobs in a background thread until :meth:`stop`."""

        def loop() -> None:
            while not self._stop.wait(0.1):
                self.run_due()

        threading.Thread(target=loop, name="hyp3-processor", daemon=True).start()

    def stop(self) -> None:
        """Take no further transition; returns when the one under way is done."""
        self._stop.set()
        with self._working:
            pass


def _log_of_failure(job: dict, now: datetime) -> str:
    stamp = now.strftime("%Y-%m-%d %H:%M:%S")
    granules = job["job_parameters"].get("granules") or job["job_parameters"].get("reference", [])
    lines = [
        f"{stamp} - INFO - {job['job_type']} {job['job_id']} started",
        *(f"{stamp} - INFO - Downloading {granule}" for granule in granules),
        f"{stamp} - INFO - Matching features between the two images",
        "Traceback (most recent call last):",
        '  File "process.py", line 212, in main',
        "    offsets = match(reference, secondary, chip_size=240)",
        '  File "process.py", line 147, in match',
        '    raise ValueError("no valid pixels left after masking: the images share no usable features")',
        "ValueError: no valid pixels left after masking: the images share no usable features",
    ]
    return "\n".join(lines) + "\n"
