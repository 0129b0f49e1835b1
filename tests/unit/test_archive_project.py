"""The project that waits in the sandbox: is it there for whoever asks, in every state, with rasters to believe?"""

import io
import zipfile
from datetime import UTC, datetime, timedelta

import boto3
import hyp3_sdk
import numpy as np
import pytest
import requests
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from rasterio.io import MemoryFile

from helpers.sandbox import Deployment, Sandbox, archive_project
from helpers.sandbox.archive_project import FRAMES, NAME, OBJECTS, OWNER, PARTNER_BUCKET, SUFFIXES, WORK, scene
from helpers.sandbox.clock import Clock
from helpers.sandbox.products import granule_footprint, product_name, water_map_products

NOW = datetime(2026, 11, 21, 16, 34, 56, tzinfo=UTC)
CONTENT_BUCKET = "hyp3-sandbox-contentbucket"
#: Outcomes that leave a product.
DONE = ("succeeded", "again", "same-name", "incomplete", "partner", "expiring")
#: What a job lacks that HyP3 could not write for.
FILE_KEYS = {"files", "logs", "browse_images", "thumbnail_images", "expiration_time"}


@pytest.fixture(scope="module")
def still_sandbox():
    """A sandbox whose clock moves by hand only."""
    with Sandbox(clock=Clock(NOW)) as sandbox:
        yield sandbox


@pytest.fixture
def offered(still_sandbox):
    """The sandbox in its initial state, with a project that nobody has asked for."""
    still_sandbox.reset()
    archive_project.offer(still_sandbox.hyp3, "sandbox-user", OWNER)
    return still_sandbox


@pytest.fixture
def hyp3(offered) -> hyp3_sdk.HyP3:
    """The sandbox user's client, to a service in its initial state."""
    return connect(offered)


@pytest.fixture(scope="module")
def found() -> dict:
    return {}


@pytest.fixture
def jobs(still_sandbox, found) -> dict[str, list[hyp3_sdk.Job]]:
    """The sandbox user's jobs as found through the API, by their outcome; made anew after a reset only."""
    if found.get("world") != still_sandbox.id:
        still_sandbox.reset()
        archive_project.offer(still_sandbox.hyp3, "sandbox-user")
        by_id = {job.job_id: job for job in connect(still_sandbox).find_jobs(name=NAME)}
        outcomes = archive_project.job_ids("sandbox-user")
        assert sorted(by_id) == sorted(job_id for ids in outcomes.values() for job_id in ids)
        found["jobs"] = {outcome: [by_id[job_id] for job_id in ids] for outcome, ids in outcomes.items()}
        found["world"] = still_sandbox.id
    return found["jobs"]


@pytest.fixture
def s3(still_sandbox):
    return client(still_sandbox)


def connect(sandbox: Sandbox) -> hyp3_sdk.HyP3:
    return hyp3_sdk.HyP3(sandbox.url("hyp3"), token=sandbox.environment["EARTHDATA_TOKEN"])


def client(sandbox: Sandbox, **options):
    keys = {"aws_access_key_id": "sandbox-user", "aws_secret_access_key": "sandbox"} if not options else {}
    config = Config(s3={"addressing_style": "path"}, **options)
    return boto3.client("s3", endpoint_url=sandbox.url("s3"), region_name="us-west-2", config=config, **keys)


def stem(job: hyp3_sdk.Job) -> str:
    return product_name(job.to_dict())


def objects(s3, job: hyp3_sdk.Job) -> dict[str, dict]:
    """What lies under a job's prefix, by the end of its name after the product's."""
    found = s3.list_objects_v2(Bucket=job.bucket, Prefix=f"{job.bucket_prefix}/").get("Contents", [])
    prefix = f"{job.bucket_prefix}/{stem(job)}"
    assert all(entry["Key"].startswith(prefix) for entry in found)
    return {entry["Key"].removeprefix(prefix): entry for entry in found}


def body(s3, job: hyp3_sdk.Job, ending: str) -> bytes:
    return s3.get_object(Bucket=job.bucket, Key=f"{job.bucket_prefix}/{stem(job)}{ending}")["Body"].read()


def done(jobs: dict) -> list[hyp3_sdk.Job]:
    return [job for outcome in DONE for job in jobs[outcome]]


# --- who finds it ---


@pytest.mark.parametrize("query", [{}, {"name": "coast"}, {"user_id": OWNER}, {"user_id": "x", "name": NAME}])
def test_nobody_has_it_who_does_not_ask_for_it_by_name(offered, hyp3, query):
    assert len(hyp3.find_jobs(**query)) == 0
    assert offered.hyp3.jobs == {}


def test_the_user_finds_it_once_and_for_nothing(offered, hyp3):
    before = hyp3.my_info()
    assert before["job_names"] == [NAME]
    first, again = hyp3.find_jobs(name=NAME), hyp3.find_jobs(name=NAME)
    assert {job.user_id for job in first} == {"sandbox-user"}
    assert len(first) == len(WORK) == len(offered.hyp3.jobs)
    assert [job.to_dict() for job in again] == [job.to_dict() for job in first]
    assert hyp3.my_info() == before


def test_what_somebody_does_to_it_is_not_undone(offered, hyp3, s3):
    job_id = archive_project.job_ids("sandbox-user")["succeeded"][0]
    (job,) = [job for job in hyp3.find_jobs(name=NAME) if job.job_id == job_id]
    offered._s3_client("s3-itself").delete_object(Bucket=job.bucket, Key=job.files[0]["s3"]["key"])
    hyp3.update_jobs(job, name="mine")
    assert len(hyp3.find_jobs(name=NAME)) == len(WORK) - 1
    assert objects(s3, job).keys() == set(OBJECTS) - {".zip"}


def test_it_is_found_among_somebody_elses_jobs(hyp3):
    theirs = hyp3.find_jobs(name=NAME, user_id=OWNER)
    assert {job.user_id for job in theirs} == {OWNER}
    assert len(theirs) == len(WORK)
    mine = hyp3.find_jobs(name=NAME)
    assert not {job.job_id for job in mine} & {job.job_id for job in theirs}
    assert {job.job_parameters["granules"][0] for job in mine} == {job.job_parameters["granules"][0] for job in theirs}


def test_filters_apply_to_it(hyp3):
    pending = hyp3.find_jobs(name=NAME, status_code="PENDING", job_type="WATER_MAP")
    assert {job.job_id for job in pending} == set(archive_project.job_ids("sandbox-user")["pending"])
    assert len(hyp3.find_jobs(name=NAME, job_type="RTC_GAMMA")) == 0
    old = hyp3.find_jobs(name=NAME, end=NOW - timedelta(days=20))
    assert {job.job_id for job in old} == set(archive_project.job_ids("sandbox-user")["expired"])


def test_two_who_ask_at_the_same_time_find_the_same(offered):
    from concurrent.futures import ThreadPoolExecutor

    url, headers = f"{offered.url('hyp3')}/jobs?name={NAME}", {"Authorization": f"Bearer {offered.hyp3.token(OWNER)}"}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: requests.get(url, headers=headers, timeout=60).json()["jobs"], range(4)))
    assert [len(answer) for answer in answers] == [len(WORK)] * 4


def test_a_reset_takes_it_away(offered, hyp3, s3):
    hyp3.find_jobs(name=NAME)
    offered.reset()
    assert offered.hyp3.jobs == {}
    assert s3.list_objects_v2(Bucket=CONTENT_BUCKET)["KeyCount"] == 0
    with pytest.raises(ClientError, match="NoSuchBucket"):
        s3.list_objects_v2(Bucket=PARTNER_BUCKET)


def test_a_deployment_without_water_maps_has_none():
    with Sandbox(deployment=Deployment(job_types="edc")) as sandbox:
        archive_project.offer(sandbox.hyp3, "sandbox-user")
        assert sandbox.hyp3.former == {}


# --- in which states its jobs are ---


@pytest.mark.parametrize(
    ("outcome", "status", "count"),
    [
        ("succeeded", "SUCCEEDED", 7),
        ("again", "SUCCEEDED", 1),
        ("same-name", "SUCCEEDED", 1),
        ("incomplete", "SUCCEEDED", 1),
        ("partner", "SUCCEEDED", 1),
        ("expiring", "SUCCEEDED", 1),
        ("expired", "SUCCEEDED", 2),
        ("failed", "FAILED", 1),
        ("refused", "FAILED", 1),
        ("running", "RUNNING", 1),
        ("pending", "PENDING", 2),
    ],
)
def test_every_state_is_there(jobs, outcome, status, count):
    assert [job.status_code for job in jobs[outcome]] == [status] * count


def test_a_record_is_like_one_of_a_submitted_job(still_sandbox, jobs):
    headers = {"Authorization": f"Bearer {still_sandbox.environment['EARTHDATA_TOKEN']}"}
    former = requests.get(
        f"{still_sandbox.url('hyp3')}/jobs/{jobs['succeeded'][0].job_id}", headers=headers, timeout=10
    )
    given = {key: former.json()[key] for key in ("job_type", "name", "job_parameters")}
    answer = requests.post(f"{still_sandbox.url('hyp3')}/jobs", json={"jobs": [given]}, headers=headers, timeout=10)
    answer.raise_for_status()
    job_id = answer.json()["jobs"][0]["job_id"]
    still_sandbox.hyp3.processor.start(job_id)
    still_sandbox.hyp3.processor.finish(job_id)
    new = requests.get(f"{still_sandbox.url('hyp3')}/jobs/{job_id}", headers=headers, timeout=10).json()
    assert list(former.json()) == list(new)
    volatile = {"job_id", "bucket_prefix", "request_time", "expiration_time", "priority"}
    volatile |= {"files", "browse_images", "thumbnail_images"}
    assert {k: v for k, v in former.json().items() if k not in volatile} == {
        k: v for k, v in new.items() if k not in volatile
    }
    assert list(former.json()["files"][0]) == list(new["files"][0])


def test_nothing_happens_to_it_later(offered, hyp3):
    before = [job.to_dict() for job in hyp3.find_jobs(name=NAME)]
    offered.clock.advance(60)
    offered.hyp3.processor.run_due()
    assert [job.to_dict() for job in hyp3.find_jobs(name=NAME)] == before


def test_one_job_expires_within_two_days_and_the_others_later(still_sandbox, jobs):
    now = still_sandbox.clock.now()
    (soon,) = jobs["expiring"]
    assert timedelta() < soon.expiration_time - now <= timedelta(days=2)
    others = [job for job in done(jobs) if job is not soon]
    assert min(job.expiration_time - now for job in others) > timedelta(days=4)


def test_an_expired_job_has_a_record_but_no_objects(jobs, s3):
    for job in jobs["expired"]:
        assert job.expiration_time < NOW - timedelta(days=7)
        assert job.expired()
        assert [file["filename"] for file in job.files] == [f"{stem(job)}{end}.zip" for end in ("", "_FM", "_WM")]
        assert requests.get(job.files[0]["url"], timeout=10).status_code == 404
        assert objects(s3, job) == {}


def test_a_failed_job_has_a_log_and_nothing_else(jobs, s3):
    (job,) = jobs["failed"]
    assert job.files == job.browse_images == job.thumbnail_images == []
    assert job.processing_times is None
    assert "ValueError" in requests.get(job.logs[0], timeout=10).text
    (entry,) = s3.list_objects_v2(Bucket=job.bucket, Prefix=job.bucket_prefix)["Contents"]
    assert entry["Key"] == f"{job.job_id}/{job.job_id}.log"


def test_a_job_whose_bucket_is_gone_has_no_word_of_files(jobs):
    (job,) = jobs["refused"]
    assert not FILE_KEYS & {key for key, value in job.to_dict().items() if value is not None}


def test_a_running_job_has_objects_but_no_product(jobs, s3):
    (job,) = jobs["running"]
    assert job.files is None
    there = objects(s3, job)
    assert {".zip", "_VV.tif", "_VV.tif.xml"} < set(there)
    assert not any(end.startswith(("_WM", "_FM")) for end in there)
    assert {entry["LastModified"] for entry in there.values()} == {job.request_time}


def test_a_pending_job_has_nothing(jobs, s3):
    for job in jobs["pending"]:
        assert job.files is None
        assert objects(s3, job) == {}


# --- what it has in S3 ---


def test_every_product_has_all_its_objects_but_one(jobs, s3):
    assert len(set(OBJECTS)) == len(OBJECTS)
    for job in done(jobs):
        lacking = {"_rgb.tif"} if job in jobs["incomplete"] else set()
        assert objects(s3, job).keys() == set(OBJECTS) - lacking


def test_names_are_those_of_water_maps(jobs):
    names = [stem(job) for job in done(jobs)]
    for job, name in zip(done(jobs), names, strict=True):
        acquired = job.job_parameters["granules"][0].split("_")[4]
        assert name.rpartition("_")[0] == f"S1A_IW_{acquired}_DVP_RTC30_G_gpuned"
    assert len(set(names)) == len(names) - 1  # two are the same


def test_files_lists_the_three_packages_with_their_sizes(jobs, s3):
    for job in done(jobs):
        there = objects(s3, job)
        assert [file["filename"] for file in job.files] == [f"{stem(job)}{end}.zip" for end in ("", "_FM", "_WM")]
        for file in job.files:
            assert file["s3"] == {"bucket": job.bucket, "key": f"{job.bucket_prefix}/{file['filename']}"}
            assert file["size"] == there[file["filename"].removeprefix(stem(job))]["Size"]


def test_urls_lead_to_the_products(jobs, s3):
    job = jobs["succeeded"][0]
    for url in [job.files[0]["url"], *job.browse_images, *job.thumbnail_images]:
        answer = requests.get(url, timeout=10)
        answer.raise_for_status()
        assert answer.content == body(s3, job, url.rpartition("/")[2].removeprefix(stem(job)))


def test_objects_carry_the_tag_and_the_type_of_hyp3(jobs, s3):
    job = jobs["succeeded"][0]
    tags, types = {}, {}
    for end, entry in objects(s3, job).items():
        (tag,) = s3.get_object_tagging(Bucket=job.bucket, Key=entry["Key"])["TagSet"]
        assert tag["Key"] == "file_type"
        tags[end] = tag["Value"]
        types[end.rpartition(".")[2]] = s3.head_object(Bucket=job.bucket, Key=entry["Key"])["ContentType"]
    images = {".png": "amp-browse", "_rgb.png": "rgb-browse", "_thumb.png": "amp-thumbnail"}
    images["_rgb_thumb.png"] = "rgb-thumbnail"
    assert tags == dict.fromkeys(OBJECTS, "product") | images
    assert types == {
        "tif": "image/tiff",
        "png": "image/png",
        "zip": "application/zip",
        "xml": "text/xml",
        "txt": "text/plain",
        "log": "text/plain",
    }


def test_tags_and_types_survive_a_copy(jobs, s3):
    job = jobs["succeeded"][0]
    s3.create_bucket(Bucket="archive", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    s3.copy_object(Bucket="archive", Key="x", CopySource={"Bucket": job.bucket, "Key": job.files[0]["s3"]["key"]})
    assert s3.get_object_tagging(Bucket="archive", Key="x")["TagSet"] == [{"Key": "file_type", "Value": "product"}]
    assert s3.head_object(Bucket="archive", Key="x")["ContentType"] == "application/zip"


def test_objects_are_as_old_as_their_jobs(jobs, s3):
    for job in done(jobs):
        ages = {entry["LastModified"] - job.request_time for entry in objects(s3, job).values()}
        assert ages == {timedelta(minutes=15)}


def test_the_partners_product_is_in_the_partners_bucket_under_its_own_prefix(still_sandbox, jobs, s3):
    (job,) = jobs["partner"]
    assert (job.bucket, job.bucket_prefix) == (PARTNER_BUCKET, f"{NAME}/{job.job_id}")
    assert job.expiration_time.year == 2120
    with pytest.raises(ClientError, match="AccessDenied"):
        client(still_sandbox, signature_version=UNSIGNED).list_objects_v2(Bucket=PARTNER_BUCKET)
    # The bucket is one that HyP3 may write into.
    still_sandbox.hyp3.publisher.put("compute", PARTNER_BUCKET, "x", b"x", "product", "text/plain")
    everybody = [other for others in jobs.values() for other in others if other is not job]
    assert PARTNER_BUCKET not in {other.bucket for other in everybody}


def test_a_granule_done_twice_has_two_names(jobs):
    (again,) = jobs["again"]
    (first,) = [job for job in jobs["succeeded"] if job.job_parameters == again.job_parameters]
    assert stem(first) != stem(again)
    assert stem(first)[:-4] == stem(again)[:-4]


def test_a_granule_done_twice_can_have_one_name_for_two_products(jobs, s3):
    (newer,) = jobs["same-name"]
    (older,) = [job for job in jobs["succeeded"] if stem(job) == stem(newer)]
    assert older.job_parameters["granules"] == newer.job_parameters["granules"]
    assert older.request_time < newer.request_time
    assert body(s3, older, "_VV.tif") == body(s3, newer, "_VV.tif")
    assert body(s3, older, "_WM.tif") != body(s3, newer, "_WM.tif")


def test_it_is_the_same_each_time(offered, s3):
    def world() -> list:
        contents = [
            (bucket, entry["Key"], entry["ETag"], entry["LastModified"])
            for bucket in (CONTENT_BUCKET, PARTNER_BUCKET)
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
            for entry in page["Contents"]
        ]
        return [list(offered.hyp3.jobs.values()), contents]

    archive_project.fill(offered.hyp3, "sandbox-user")
    before = world()
    archive_project._made.cache_clear()
    offered.reset()
    archive_project.fill(offered.hyp3, "sandbox-user")
    assert world() == before
    assert len(before[1]) > 12 * len(OBJECTS)


# --- where and when ---


def test_its_scenes_lie_in_the_hindu_kush_himalaya():
    places = set()
    for work in WORK:
        ring = granule_footprint(scene(FRAMES[work.frame], work.cycle))["coordinates"][0]
        lon, lat = np.mean(ring[:4], axis=0)
        assert 82 < lon < 90
        assert 27 < lat < 30
        places.add((round(lon, 3), round(lat, 3)))
    assert len(places) == len(FRAMES) == 6


def test_its_scenes_are_of_several_days_in_both_seasons():
    days = {datetime.fromisoformat(scene(FRAMES[work.frame], work.cycle)[17:25]) for work in WORK}
    assert len(days) >= 12
    months = [day.month for day in days]
    assert sum(month in (7, 8, 9) for month in months) >= 5
    assert sum(month in (12, 1, 2) for month in months) >= 5


@pytest.mark.parametrize(
    ("name", "place"),
    [  # scenes that exist: the mission's orbit numbers and days
        ("S1A_IW_GRDH_1SDV_20210413T235641_20210413T235706_037439_0469D0_3F2B", (91, 39.2, 213)),
        ("S1A_IW_SLC__1SDV_20211110T234815_20211110T234842_040516_04CE0A_E717", (18, 38.4, 231)),
    ],
)
def test_scene_names_follow_the_mission(name, place):
    track, degrees, cycle = place
    ours, theirs = scene((track, degrees), cycle).split("_"), name.split("_")
    assert ours[6:8] == theirs[7 if "SLC" in name else 6 :][:2]
    begins = [datetime.fromisoformat(parts[-5]) for parts in (ours, theirs)]
    assert abs(begins[0] - begins[1]) < timedelta(seconds=30)


def test_the_service_takes_its_granules(offered):
    granules = {scene(FRAMES[work.frame], work.cycle) for work in WORK}
    orders = [{"job_type": "WATER_MAP", "job_parameters": {"granules": [granule]}} for granule in sorted(granules)]
    answer = requests.post(
        f"{offered.url('hyp3')}/jobs",
        json={"jobs": orders, "validate_only": True},
        headers={"Authorization": f"Bearer {offered.environment['EARTHDATA_TOKEN']}"},
        timeout=10,
    )
    answer.raise_for_status()


def test_the_schedule_orders_every_three_hours(jobs):
    times = {job.request_time for others in jobs.values() for job in others}
    assert all(time.hour % 3 == time.minute == time.second == 0 and time <= NOW for time in times)
    assert max(times) == NOW.replace(hour=15, minute=0, second=0)


# --- what its rasters show ---


def layers(frame: str, cycle: int) -> dict[str, np.ma.MaskedArray]:
    options = {"granules": [scene(FRAMES[frame], cycle)], "flood_depth_estimator": "iterative"}
    job = {"job_id": "x", "job_type": "WATER_MAP", "request_time": "", "job_parameters": options}
    read = {}
    for product in water_map_products(job, archive_project.PIXELS):
        if product.name.endswith(".tif"):
            with MemoryFile(product.body) as memory, memory.open() as dataset:
                read[product.name.removeprefix(product_name(job))] = dataset.read(1, masked=True)
    return read


@pytest.fixture(scope="module")
def seasons() -> dict[str, dict]:
    """The rasters of one frame, in the monsoon and in winter."""
    return {"monsoon": layers("Narayani", 316), "winter": layers("Narayani", 328)}


@pytest.mark.parametrize("frame", FRAMES)
def test_rivers_swell_in_the_monsoon(frame):
    monsoon, winter = (layers(frame, cycle)["_WM.tif"].filled(0) == 1 for cycle in (316, 328))
    assert 0.01 < winter.mean() < monsoon.mean() < 0.4
    assert monsoon.sum() > 1.15 * winter.sum()
    assert monsoon[winter].all()


def test_in_the_south_rivers_swell_half_a_year_later():
    south = [(track, degrees + 180) for track, degrees in FRAMES.values()]
    name = [scene(frame, 316) for frame in south], [scene(frame, 328) for frame in south]
    assert all(granule_footprint(granule)["coordinates"][0][0][1] < 0 for granules in name for granule in granules)
    from helpers.sandbox.products import _rng, _stage

    august, january = ([_stage(granule, _rng(granule)) for granule in granules] for granules in name)
    assert max(august) < 2 < 3 < min(january)


def test_the_land_stays_the_same(seasons):
    for name in ("_dem.tif", "_WM_HAND.tif"):
        np.testing.assert_array_equal(*(season[name].filled(0) for season in seasons.values()))


@pytest.mark.parametrize("season", ["monsoon", "winter"])
def test_water_is_low_and_one_level_deep(seasons, season):
    wet, hand, depth, usual = (
        seasons[season][name]
        for name in ("_WM.tif", "_WM_HAND.tif", "_FM_iterative_WaterDepth.tif", "_FM_iterative_PW.tif")
    )
    flooded = (wet.filled(0) == 1) & (usual.filled(0) == 0)
    assert hand[flooded].max() < hand[wet.filled(1) == 0].min() + 0.05
    level = (hand + depth)[flooded]
    assert np.ptp(level) < 0.05
    np.testing.assert_array_equal(seasons[season]["_FM_iterative_FloodDepth.tif"].filled(0) > 0, flooded)


def test_rasters_are_small_and_lie_on_one_grid(jobs, s3):
    grids = set()
    for end in SUFFIXES:
        if end.endswith(".tif"):
            with MemoryFile(body(s3, jobs["succeeded"][0], end)) as memory, memory.open() as dataset:
                grids.add((dataset.shape, dataset.transform, dataset.crs.to_epsg()))
    ((shape, transform, epsg),) = grids
    assert max(shape) < 260
    assert transform.a == 30
    assert epsg == 32645


def test_each_package_holds_its_steps_files(jobs, s3):
    job = jobs["succeeded"][0]
    held = {}
    for step in ("", "_WM", "_FM"):
        with zipfile.ZipFile(io.BytesIO(body(s3, job, f"{step}.zip"))) as package:
            assert package.testzip() is None
            folder = f"{stem(job)}{step}/{stem(job)}"
            held[step] = {name.removeprefix(folder): package.read(name) for name in package.namelist()}
    assert held["_WM"].keys() == {"_WM.tif", "_WM_HAND.tif"}
    assert held["_FM"].keys() == set(SUFFIXES[-4:])
    loose = {end for end in OBJECTS if not end.endswith((".zip", "_thumb.png"))}
    assert held[""].keys() == loose - held["_WM"].keys() - held["_FM"].keys()
    for files in held.values():
        for end, content in files.items():
            assert content == body(s3, job, end)


# --- as many as wanted ---


def test_ten_thousand_jobs_are_found_page_by_page(offered):
    ids = archive_project.fill_large(offered.hyp3, "sandbox-user", write=False)
    assert len(set(ids)) == 10_000
    headers = {"Authorization": f"Bearer {offered.environment['EARTHDATA_TOKEN']}"}
    url, found, pages = f"{offered.url('hyp3')}/jobs?name={NAME}-10000", [], 0
    while url:
        answer = requests.get(url, headers=headers, timeout=10).json()
        found, url, pages = found + answer["jobs"], answer.get("next"), pages + 1
    assert pages > 5
    assert {job["job_id"] for job in found} == set(ids)
    assert {job["status_code"] for job in found} == {"SUCCEEDED"}
    assert len({job["files"][0]["filename"] for job in found}) == 10_000
    expiry = min(datetime.fromisoformat(job["expiration_time"]) for job in found)
    assert expiry - NOW > timedelta(days=4)


def test_of_many_jobs_too_the_records_tell_what_is_in_the_bucket(offered, hyp3, s3):
    ids = archive_project.fill_large(offered.hyp3, OWNER, 40, "many")
    jobs = hyp3.find_jobs(name="many", user_id=OWNER)
    assert {job.job_id for job in jobs} == set(ids)
    for job in jobs:
        there = objects(s3, job)
        assert there.keys() == {*SUFFIXES, ".zip"}
        (file,) = job.files
        assert file["size"] == there[".zip"]["Size"]
        assert {entry["LastModified"] - job.request_time for entry in there.values()} == {timedelta(minutes=15)}
    assert hyp3.my_info()["remaining_credits"] == 8000


def test_objects_of_many_jobs_lead_lives_of_their_own(offered, s3):
    archive_project.fill_large(offered.hyp3, OWNER, 3, objects=("_VV.tif", ".png"))
    keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket=CONTENT_BUCKET)["Contents"]]
    tifs, pngs = ([key for key in keys if key.endswith(end)] for end in (".tif", ".png"))
    itself = offered._s3_client("s3-itself")
    itself.delete_object(Bucket=CONTENT_BUCKET, Key=tifs[0])
    itself.put_object(Bucket=CONTENT_BUCKET, Key=tifs[1], Body=b"other")
    itself.put_object_tagging(
        Bucket=CONTENT_BUCKET, Key=pngs[0], Tagging={"TagSet": [{"Key": "file_type", "Value": "other"}]}
    )
    with pytest.raises(ClientError, match="NoSuchKey"):
        s3.get_object(Bucket=CONTENT_BUCKET, Key=tifs[0])
    assert s3.get_object(Bucket=CONTENT_BUCKET, Key=tifs[1])["Body"].read() == b"other"
    whole = s3.get_object(Bucket=CONTENT_BUCKET, Key=tifs[2])
    assert whole["Body"].read().startswith(b"_VV.tif")
    assert whole["ContentType"] == "image/tiff"
    tags = [s3.get_object_tagging(Bucket=CONTENT_BUCKET, Key=key)["TagSet"][0]["Value"] for key in pngs]
    assert tags == ["other", "amp-browse", "amp-browse"]
