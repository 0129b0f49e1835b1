"""A project for the archive recipe: water maps of the Hindu Kush Himalaya, ordered before the sandbox started.

Its jobs end in every way that HyP3 knows (:data:`WORK`), and their products are small rasters: scenes of the summer
monsoon and of winter over the same rivers. A stand-in keeps the project for its users (:func:`offer`) and makes it
when one of them asks for its jobs by name, so that nobody else waits for it or finds jobs that are not theirs.
:func:`fill_large` makes as many jobs as a benchmark wants, with objects but without rasters.

Sources: the project's name and region are those of ASF's monitoring service; scene names follow the orbits of
Sentinel-1A as in ``products.py``; data take numbers are read off real scene names (037439_0469D0, 040516_04CE0A).
"""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from functools import cache, lru_cache, partial
from itertools import count
from typing import Any, Self
from uuid import NAMESPACE_URL, uuid5

from moto.s3.models import FakeKey, s3_backends

from . import s3
from .hyp3 import HyP3
from .products import (
    CYCLE_DAYS,
    FIRST_ORBIT,
    NODE_TIME,
    ORBIT_SECONDS,
    ORBITS,
    Product,
    _hash,
    _product,
    product_id,
    product_name,
    water_map_products,
)

NAME = "HKHwatermaps"
#: Somebody whose jobs anybody may read, by ``user_id``.
OWNER = "hkh-monitoring"
#: The bucket of one job; it belongs to the sandbox's user, and HyP3 may write into it. (Others of one sandbox have one
#: of their own, with their account in its name.)
PARTNER_BUCKET = "hkh-partner-products"
PARTNER_PREFIX = "{name}/{job_id}"
#: Pixels with data of each raster.
PIXELS = 40_000
#: The schedule that orders the project's jobs: every so many hours, from midnight UTC.
SLOT_HOURS = 3

#: What the project's archive takes of each product.
SUFFIXES = (
    *("_VV.tif", "_VV.tif.xml", "_VH.tif", "_rgb.tif", "_dem.tif", "_WM.tif", "_WM_HAND.tif"),
    *(f"_FM_iterative_{layer}.tif" for layer in ("WaterDepth", "FloodMask", "FloodDepth", "PW")),
)
#: Every object of a product, by the end of its name.
OBJECTS = (
    *SUFFIXES,
    *(".zip", "_WM.zip", "_FM.zip", "_ls_map.tif", ".png", "_rgb.png", "_thumb.png", "_rgb_thumb.png"),
    *("_VH.tif.xml", "_rgb.tif.xml", "_dem.tif.xml", "_ls_map.tif.xml", ".png.xml", "_rgb.png.xml"),
    *(".README.md.txt", ".log"),
)

#: Start of Sentinel-1A's cycle 0, at midnight of the day, and its frames over the region: the track (from 0), and the
#: orbit's angle from the ascending node in degrees, where a scene starts.
FIRST_CYCLE = datetime(2014, 4, 8)
FRAMES = {
    "Karnali": (157, 26.9),
    "Kali Gandaki": (84, 26.9),
    "Sun Koshi": (11, 26.9),
    "Narayani": (18, 152.0),
    "Koshi": (120, 152.0),
    "Teesta": (47, 152.0),
}
SCENE_SECONDS = 25


@dataclass(frozen=True)
class Work:
    """One job: what became of it, the scene's frame and 12-day cycle, and the days since it was ordered."""

    outcome: str
    frame: str
    cycle: int
    days: float
    options: dict = field(default_factory=dict)


#: The project. Outcomes other than the plain states:
#: "again": SUCCEEDED, of a granule that another job has done, under another name;
#: "same-name": SUCCEEDED and newer, of a granule that another job has done with other options: the four digits
#: at the end of both names are the same, as happens to one pair in 65,536, so that one archived file has two sources;
#: "incomplete": SUCCEEDED without its `_rgb.tif`; "partner": SUCCEEDED, in a user's bucket;
#: "expiring": SUCCEEDED, gone within two days; "expired": SUCCEEDED, the objects are gone;
#: "refused": FAILED as its bucket does not exist, and so without any key about files.
#: The RUNNING job has done its first step: there are objects, but no product.
WORK = (
    Work("succeeded", "Koshi", 318, 9.5),
    Work("succeeded", "Koshi", 327, 9.4),
    Work("succeeded", "Narayani", 316, 8.1),
    Work("succeeded", "Narayani", 328, 6.8),
    Work("succeeded", "Karnali", 314, 5.2),
    Work("succeeded", "Teesta", 317, 4.4),
    Work("succeeded", "Kali Gandaki", 326, 3.9),
    Work("again", "Koshi", 318, 3.2),
    Work("same-name", "Narayani", 316, 2.5, {"hand_threshold": 1.0}),
    Work("incomplete", "Sun Koshi", 315, 2.2),
    Work("partner", "Teesta", 329, 1.6),
    Work("expiring", "Sun Koshi", 325, 13.0),
    Work("expired", "Karnali", 325, 27.3),
    Work("expired", "Kali Gandaki", 313, 40.0),
    Work("failed", "Karnali", 316, 7.3),
    Work("refused", "Teesta", 315, 1.1),
    Work("running", "Koshi", 319, 0.0),
    Work("pending", "Narayani", 319, 0.0),
    Work("pending", "Teesta", 319, 0.0),
)


# --- what the project holds ---


def offer(hyp3: HyP3, *users: str, name: str = NAME, account: str = s3.USER_ACCOUNT) -> None:
    """Keep a project for each of these users; it is made when its jobs are asked for by user and name.

    ``account``: their AWS account. Nothing happens in a deployment without water maps.
    """
    if "WATER_MAP" in hyp3.job_types:
        with hyp3.lock:
            hyp3.former |= {(user, name): partial(fill, hyp3, user, name, account) for user in users}


def fill(hyp3: HyP3, user: str, name: str = NAME, account: str = s3.USER_ACCOUNT) -> dict[str, list[str]]:
    """Put the project into a running stand-in: its jobs, and the objects of those that have some.

    Job ids, granules, names and rasters are the same each time; times follow the clock.

    Returns
    -------
    Job ids by outcome, as in :data:`WORK`.

    Raises
    ------
    botocore.exceptions.ClientError
        There is no content bucket.
    """
    partner = PARTNER_BUCKET if account == s3.USER_ACCOUNT else f"{PARTNER_BUCKET}-{account}"
    _make_partner_bucket(hyp3, partner, account)
    past = _Past(hyp3)
    for work, job_id in zip(WORK, _job_ids(user, name), strict=True):
        requested = _slot(hyp3.clock.now() - timedelta(days=work.days))
        past.end(hyp3.adopt(_order(work, name, partner), job_id, user, requested), work.outcome)
    return job_ids(user, name)


def restore(hyp3: HyP3, user: str, name: str = NAME, account: str = s3.USER_ACCOUNT) -> None:
    """Put back what a user's project has in the partner bucket, after the bucket's account was emptied.

    Nothing happens to a project that nobody has asked for: it is made with its bucket.
    """
    with hyp3.lock:
        theirs = [hyp3.jobs[job_id] for job_id in job_ids(user, name)["partner"] if job_id in hyp3.jobs]
    for job in theirs:
        _make_partner_bucket(hyp3, job["bucket"], account)
        _Past(hyp3).write(job, list(_products(job)), _ended(job))


def job_ids(user: str, name: str = NAME) -> dict[str, list[str]]:
    """Ids of the project's jobs by their outcome, without making anything."""
    ids: dict[str, list[str]] = {}
    for work, job_id in zip(WORK, _job_ids(user, name), strict=True):
        ids.setdefault(work.outcome, []).append(job_id)
    return ids


def scene(frame: tuple[int, float], cycle: int) -> str:
    """Name of the Sentinel-1A scene (GRD, high resolution, two polarizations) of a frame and a 12-day cycle."""
    track, degrees = frame
    orbit = FIRST_ORBIT["S1A"] + ORBITS * cycle + track
    seconds = NODE_TIME + (track + degrees / 360) * ORBIT_SECONDS
    start = FIRST_CYCLE + timedelta(days=CYCLE_DAYS * cycle, seconds=int(seconds))
    end = start + timedelta(seconds=SCENE_SECONDS)
    take = 0x469D0 + round(8.3387 * (orbit - 37439))
    times = f"{start:%Y%m%dT%H%M%S}_{end:%Y%m%dT%H%M%S}"
    return f"S1A_IW_GRDH_1SDV_{times}_{orbit:06d}_{take:06X}_{_hash(orbit, times) & 0xFFFF:04X}"


def _order(work: Work, name: str, partner: str) -> dict:
    """The body of the job's submission."""
    bucket = {"partner": partner, "refused": "hkh-bucket-that-is-gone"}.get(work.outcome)
    where = {"bucket": bucket, "bucket_prefix": PARTNER_PREFIX} if bucket else {}
    options = {"granules": [scene(FRAMES[work.frame], work.cycle)], "flood_depth_estimator": "iterative"}
    return {"job_type": "WATER_MAP", "name": name, "job_parameters": options | work.options} | where


def _slot(when: datetime) -> datetime:
    return when.replace(hour=when.hour // SLOT_HOURS * SLOT_HOURS, minute=0, second=0, microsecond=0)


def _job_ids(user: str, name: str) -> list[str]:
    """Ids of the jobs of :data:`WORK`, in its order."""
    ids = [str(uuid5(NAMESPACE_URL, f"{user}/{name}/{number}")) for number in range(len(WORK))]
    granules = [(work.frame, work.cycle) for work in WORK]
    again = next(i for i, work in enumerate(WORK) if work.outcome == "same-name")
    ids[granules.index(granules[again])], ids[again] = _with_the_same_digits(f"{user}/{name}/same-name")
    return ids


def _with_the_same_digits(start: str) -> tuple[str, str]:
    """Two job ids that give a product's name the same last four digits: found among the first few hundred."""
    seen: dict[str, str] = {}
    for number in count():
        job_id = str(uuid5(NAMESPACE_URL, f"{start}/{number}"))
        if (digits := product_id(job_id)) in seen:
            return seen[digits], job_id
        seen[digits] = job_id


def _make_partner_bucket(hyp3: HyP3, name: str, account: str) -> None:
    if name in s3_backends.bucket_accounts:
        return
    s3.create_bucket(name, account, hyp3.publisher.region(hyp3.publisher.content_bucket))
    policy = json.dumps(hyp3.bucket_policy(name))
    hyp3.publisher.clients["s3-itself"].put_bucket_policy(Bucket=name, Policy=policy)


# --- how jobs end ---


class _Past:
    """Brings adopted jobs into the state they are in, as the processor would have: objects first, then the record."""

    def __init__(self, hyp3: HyP3):
        self.hyp3 = hyp3
        self.region = cache(hyp3.publisher.region)
        # What is written on one day goes on one day.
        self._expiry = cache(lambda bucket, day: hyp3.publisher.expiry(bucket, datetime.combine(day, time(), UTC)))

    def end(self, job: dict, outcome: str) -> None:
        """Give a job one of the outcomes of :data:`WORK`."""
        if outcome == "expired":
            # Nobody can weigh what is gone: these sizes are like those of the others.
            stem = product_name(job)
            sizes = [300_000 + _hash(stem, end) % 200_000 for end in OBJECTS]
            self.report(job, [(stem + end, size, _file_type(end)) for end, size in zip(OBJECTS, sizes, strict=True)])
        elif outcome == "failed":
            self.fail(job)
        elif outcome == "refused":
            job |= {"status_code": "FAILED", "execution_started": True, "processing_times": None}
        elif outcome == "running":
            later = tuple(f"{product_name(job)}_{step}" for step in ("WM", "FM"))
            step = [product for product in _products(job) if not product.name.startswith(later)]
            self.write(job, step, datetime.fromisoformat(job["request_time"]))
            job |= {"status_code": "RUNNING", "execution_started": True}
        elif outcome != "pending":
            lacking = "_rgb.tif" if outcome == "incomplete" else "nothing"
            products = [product for product in _products(job) if not product.name.endswith(lacking)]
            self.write(job, products, _ended(job))
            self.report(job, [(product.name, len(product.body), product.file_type) for product in products])

    def fail(self, job: dict) -> None:
        start = f"{_ended(job):%Y-%m-%d %H:%M:%S} - INFO - Mapping water in {job['job_parameters']['granules'][0]}"
        error = "ValueError: all pixels of the scene have a height of 0.0 above the nearest drainage"
        log = Product(f"{job['job_id']}.log", f"{start}\n{error}\n".encode(), "log", "text/plain")
        self.write(job, [log], _ended(job))
        self.report(job, [(log.name, len(log.body), log.file_type)], "FAILED")

    def write(self, job: dict, products: list[Product], when: datetime) -> None:
        """Put a job's objects where S3 keeps them, tagged, as if they had been written at that time."""
        backend = _backend(job["bucket"])
        for product in products:
            key = f"{job['bucket_prefix']}/{product.name}"
            stored = backend.put_object(job["bucket"], key, product.body, disable_notification=True)
            stored.set_metadata({"Content-Type": product.content_type})
            stored.last_modified = when.replace(tzinfo=None)
            _tag(stored, product.file_type)

    def report(self, job: dict, files: list[tuple[str, int, str]], status: str = "SUCCEEDED") -> None:
        """Complete the record of a job that left files of these names, sizes and tags."""
        job |= {"status_code": status, "execution_started": True}
        bucket, prefix = job["bucket"], job["bucket_prefix"]
        found = [(tag, f"{prefix}/{name}", size) for name, size, tag in sorted(files)]
        expiry = self._expiry(bucket, _ended(job).date())
        job |= self.hyp3.publisher.report(bucket, self.region(bucket), found, expiry)
        job["processing_times"] = self.hyp3.job_types[job["job_type"]]["seconds"] if status == "SUCCEEDED" else None


def _ended(job: dict) -> datetime:
    """When a job ended: a quarter of an hour after it was requested."""
    return datetime.fromisoformat(job["request_time"]) + timedelta(minutes=15)


def _products(job: dict) -> tuple[Product, ...]:
    known = ("job_id", "job_type", "request_time", "job_parameters")
    return _made(json.dumps({key: job[key] for key in known}))


@lru_cache(maxsize=32)
def _made(job: str) -> tuple[Product, ...]:
    """A job's products, kept for the next reset of the sandbox: a job takes 0.1 s and 1 MB."""
    return tuple(water_map_products(json.loads(job), PIXELS))


def _file_type(name: str) -> str:
    return _product(name, b"").file_type


def _backend(bucket: str) -> Any:
    partition, account = s3_backends.bucket_accounts[bucket]
    return s3_backends[account][partition]


def _tag(stored: FakeKey, file_type: str) -> None:
    # moto looks for tags in the account of whoever asks, and takes everybody for the sandbox's user.
    tagger = s3_backends[s3.USER_ACCOUNT]["aws"].tagger
    tagger.tag_resource(stored.arn, [{"Key": "file_type", "Value": file_type}])


# --- as many as wanted ---

#: Scenes of a large project: 25 s apart along each track, and a cycle apart in time.
SLICES, CYCLES = 5, range(20, 360)


def fill_large(
    hyp3: HyP3,
    user: str,
    jobs: int = 10_000,
    name: str | None = None,
    *,
    objects: tuple[str, ...] = (*SUFFIXES, ".zip"),
    write: bool = True,
) -> list[str]:
    """Put a project of many succeeded jobs into a running stand-in; returns their ids.

    Parameters
    ----------
    user, name:
        Whose jobs they are, and what they are called; ``None``: the project's name and the number of jobs.
    jobs:
        How many. Names are sure to be unique up to 10,200 jobs: after that, granules come again.
    objects:
        Ends of names of the objects of each job. Their bodies are a few bytes, the same in all jobs.
    write:
        Put the objects into the content bucket. Otherwise there are records only, for tests that need no more.
    """
    name, past, newest = name or f"{NAME}-{jobs}", _Past(hyp3), _slot(hyp3.clock.now() - timedelta(hours=SLOT_HOURS))
    bucket = hyp3.publisher.content_bucket
    keys = _backend(bucket).get_bucket(bucket).keys
    originals = [(_original(bucket, end), _file_type(end)) for end in objects]
    frames = [(track, degrees + 1.52 * i) for i in range(SLICES) for track, degrees in FRAMES.values()]
    ids = []
    for number in range(jobs):
        cycle, frame = divmod(number, len(frames))
        options = {
            "granules": [scene(frames[frame], CYCLES[cycle % len(CYCLES)])],
            "flood_depth_estimator": "iterative",
        }
        order = {"job_type": "WATER_MAP", "name": name, "job_parameters": options}
        requested = newest - timedelta(hours=SLOT_HOURS * (number % 72))  # the last nine days
        job = hyp3.adopt(order, str(uuid5(NAMESPACE_URL, f"{user}/{name}/{number}")), user, requested)
        stem = product_name(job)
        for original, tag in originals if write else ():
            twin = _Twin(original, f"{job['job_id']}/{stem}{original.name}", _ended(job).replace(tzinfo=None))
            keys.setlist(twin.name, [twin])
            _tag(twin, tag)
        past.report(job, [(stem + original.name, original.size, tag) for original, tag in originals])
        ids.append(job["job_id"])
    return ids


class _Twin(FakeKey):
    """An object that has all but its key from another one: a tenth of the memory of an object by itself."""

    def __new__(cls, original: FakeKey, key: str, when: datetime) -> Self:
        # Past moto's own, which keeps a list of all its objects.
        return object.__new__(cls)

    def __init__(self, original: FakeKey, key: str, when: datetime):
        self.original, self.name, self.last_modified = original, key, when

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "original"), name)

    def dispose(self, garbage: bool = False) -> None:
        """Keep the body: it is not this object's alone."""


def _original(bucket: str, end: str) -> FakeKey:
    """What the objects with names of this end are twins of; it is in no bucket itself."""
    backend, body = _backend(bucket), f"{end}: no raster, only an object to be moved\n".encode()
    made = FakeKey(end, body, backend.account_id, backend.region_name, bucket_name=bucket)
    made.set_metadata({"Content-Type": _product(end, b"").content_type})
    made.etag  # noqa: B018 - worked out now: later, several threads might read the body at once
    return made
