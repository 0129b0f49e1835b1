"""Many people, one sandbox: is each somebody of their own, at every service?"""

import dataclasses
import threading
import time

import pytest
import requests
from botocore.exceptions import ClientError

from helpers import hook, hyp3, objectstore
from helpers import settings as room
from helpers.catalog import connect
from helpers.errors import NotConfigured
from helpers.sandbox import Deployment, Sandbox, archive_project, people, rspy

PAIR = ["S1_136231_IW2_20200604T022312_VV_7C85-BURST", "S1_136231_IW2_20200616T022313_VV_5D11-BURST"]
TILE = "S2A_MSIL1C_20230910T050701_N0509_R019_T47VLH_20230910T074321.SAFE"
COLLECTION = {
    "type": "Collection",
    "id": "mine",
    "stac_version": "1.0.0",
    "license": "other",
    "links": [],
    "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [["2020-01-01T00:00:00Z", None]]}},
}


@pytest.fixture
def settings_of(environment, monkeypatch):
    """The settings of the person with this name."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def of(name: str) -> room.Settings:
        monkeypatch.setenv("RECIPES_SANDBOX_USER", name)
        return room.load()

    return of


def submit(settings) -> str:
    service = hyp3.connect(settings)
    return service.submit_prepared_jobs(service.prepare_insar_isce_burst_job(*PAIR, name="mine")).jobs[0].job_id


def order(settings) -> int:
    service = hook.connect(settings)
    options = {"output_storage": "TEMPORARY", "source_type": "DESP", "desp_source_collection": "EO.ESA.DAT.SENTINEL-2"}
    options |= {"desp_source_username": settings.desp_username}
    options |= {"desp_source_password": settings.desp_password.get_secret_value()}
    body = {"Name": "mine", "WorkflowName": "data-harvest", "IdentifierList": [TILE]}
    body["WorkflowOptions"] = [{"Name": name, "Value": value} for name, value in options.items()]
    answer = service.session.post(f"{service.url}/BatchOrder/OData.CSC.Order", json=body)
    assert answer.ok, answer.text
    return answer.json()["value"]["Id"]


# --- who somebody is ---


def test_the_same_name_is_the_same_person_in_every_sandbox():
    anna = people.make("anna")
    assert anna == people.make("anna")
    assert len(anna.account) == 12 and anna.account.isdecimal()


def test_no_two_people_have_anything_in_common():
    many = [
        people.FIRST,
        *(people.make(name) for name in ("anna", "anna.b", "annab", "anna b", "Anna", "ännchen", "sandboxuser")),
    ]
    for field in dataclasses.fields(people.Person):
        assert len({getattr(person, field.name) for person in many}) == len(many), field.name
    assert len({rspy.stripped(person.owner) for person in many}) == len(many)


@pytest.mark.parametrize("name", ["neighbour", "hkh-monitoring", "sandbox-external", "x" * 61, " ", "a\nb"])
def test_a_name_that_nobody_can_have_is_said_with_the_setting_it_comes_from(settings_of, name):
    with pytest.raises(NotConfigured, match=r"RECIPES_SANDBOX_USER.*no name for the sandbox"):
        settings_of(name)


def test_without_a_name_everybody_is_the_same_person(settings, sandbox):
    assert (objectstore.account_id(settings), settings.desp_username) == ("123456789012", "sandbox-user")
    assert sandbox.environment == sandbox.environment_of(sandbox.person("sandbox-user")) | {
        "EARTHDATA_TOKEN": sandbox.environment["EARTHDATA_TOKEN"]  # signed anew each time
    }


def test_in_a_jupyterhub_the_name_is_the_one_there_unless_it_is_set(environment, monkeypatch, tmp_path):
    monkeypatch.setenv("JUPYTERHUB_USER", "from-the-hub")
    assert room.read().sandbox_user == "from-the-hub"
    file = tmp_path / ".env_tutorial"
    file.write_text("RECIPES_SANDBOX_USER=from-the-file\n")
    assert room.read(file).sandbox_user == "from-the-file"


def test_a_notebooks_own_sandbox_knows_the_name_as_well(monkeypatch, tmp_path):
    import helpers.sandbox as sandboxes

    with Sandbox() as own:
        monkeypatch.setattr(sandboxes, "_running", own)
        monkeypatch.setenv("RECIPES_STATE_DIR", str(tmp_path))
        monkeypatch.setenv("JUPYTERHUB_USER", "anna")
        assert room.load().desp_username == "anna"
        monkeypatch.setenv("JUPYTERHUB_USER", "neighbour")
        with pytest.raises(NotConfigured, match="somebody else in the sandbox"):
            room.load()


# --- what is whose ---


def test_each_has_an_account_with_buckets_topics_and_queues_of_their_own(settings_of):
    found = {}
    for name in ("anna", "ben"):
        settings = settings_of(name)
        account = objectstore.account_id(settings)
        s3, sns, sqs = (objectstore.client(service, settings) for service in ("s3", "sns", "sqs"))
        objectstore.ensure_bucket(s3, f"hyp3-products-{account}", owner=account, create=True)
        s3.put_object(Bucket=f"hyp3-products-{account}", Key="x", Body=b"mine")
        sns.create_topic(Name="eo-first")
        sqs.create_queue(QueueName="eo-first")
        buckets = [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]
        topics = [topic["TopicArn"] for topic in sns.list_topics()["Topics"]]
        found[name] = buckets, topics, sqs.list_queues()["QueueUrls"]
        assert all(len(of_one_kind) == 1 and account in of_one_kind[0] for of_one_kind in found[name])
    with pytest.raises(ClientError, match="AccessDenied"):
        s3.get_object(Bucket=found["anna"][0][0], Key="x")
    s3.delete_object(Bucket=found["ben"][0][0], Key="x")
    s3.delete_bucket(Bucket=found["ben"][0][0])
    assert s3.list_buckets()["Buckets"] == []


def test_each_has_credits_and_jobs_of_their_own(settings_of):
    job = submit(settings_of("anna"))
    anna, ben = hyp3.connect(settings_of("anna")), hyp3.connect(settings_of("ben"))
    assert (anna.check_credits(), ben.check_credits()) == (7999, 8000)
    assert [each.job_id for each in anna.find_jobs()] == [job] and not list(ben.find_jobs())


def test_each_finds_a_project_to_archive_that_they_can_read(settings_of, sandbox, monkeypatch):
    from helpers import archive

    monkeypatch.setattr(archive_project, "_products", lambda job: (archive_project._product("x_VV.tif", b"12"),))
    settings = settings_of("anna")
    jobs = archive.find(hyp3.connect(settings), "HKHwatermaps")
    assert len(jobs) == len(archive_project.WORK)
    partner = next(job for job in jobs if job.bucket and job.bucket.startswith(archive_project.PARTNER_BUCKET))
    assert objectstore.objects(objectstore.client("s3", settings), partner.bucket, partner.bucket_prefix)
    of_another = archive_project.job_ids("sandbox-user").values()
    assert {job.job_id for job in jobs}.isdisjoint(job_id for ids in of_another for job_id in ids)


def test_each_orders_at_destine_from_a_quota_of_their_own(settings_of, sandbox):
    order(settings_of("anna"))
    counts = []
    for name in ("anna", "ben"):
        service = hook.connect(settings_of(name))
        counts.append(len(service.session.get(f"{service.url}/BatchOrder").json()["value"]))
    assert counts == [1, 0]
    assert {each.owner for each in sandbox.hook.orders.values()} == {"anna"}


def test_the_bucket_for_harvested_products_is_of_the_same_account(settings_of):
    settings = settings_of("anna")
    objectstore.ensure_bucket(hook.storage(settings), "annas-harvest", owner=None, create=True)
    mine = objectstore.client("s3", settings)
    mine.put_object(Bucket="annas-harvest", Key="x", Body=b"", ExpectedBucketOwner=objectstore.account_id(settings))
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        sealed = {"hook_output_storage_secret_key": "wrong"}  # pragma: allowlist secret
        hook.storage(settings.model_copy(update={k: room.SecretStr(v) for k, v in sealed.items()})).list_buckets()


def test_each_owns_collections_at_rs_python(settings_of, sandbox):
    url = sandbox.url("catalog")
    for name in ("anna", "ben"):
        key = {"x-api-key": settings_of(name).rspy_apikey.get_secret_value()}
        body = {"id": "zarr", "description": "x", "license": "other", "extent": COLLECTION["extent"]}
        assert requests.post(f"{url}/catalog/collections", json=body | {"owner": name}, headers=key, timeout=5).ok
    assert {"anna_zarr", "ben_zarr"} == {*sandbox.catalog.collections}
    assert sandbox.osam.rule("anna", "zarr", "S02MSIL1C") == sandbox.osam.rule("sandboxuser", "zarr", "S02MSIL1C")


@pytest.mark.parametrize("kind", ["pgstac", "embedded"])
def test_each_has_a_catalogue_of_their_own(kind, monkeypatch, tmp_path, request):
    if kind == "pgstac":
        request.getfixturevalue("catalog_cluster")  # skips where there is none
    monkeypatch.setenv("RECIPES_STATE_DIR", str(tmp_path))
    with Sandbox(deployment=Deployment(catalogue=kind)) as sandbox:
        monkeypatch.setenv("RECIPES_SANDBOX_URL", sandbox.url("control"))
        urls = []
        for name in ("sandbox-user", "anna", "ben"):
            monkeypatch.setenv("RECIPES_SANDBOX_USER", name)
            settings = room.load()
            settings.require("catalog")
            with connect(settings) as store:
                assert not store.collections()
                store.put_collection(COLLECTION | {"description": f"of {name}"})
            urls.append(str(settings.catalog_api_url).rstrip("/"))
        for url, name in zip(urls, ("sandbox-user", "anna", "ben"), strict=True):
            (found,) = requests.get(f"{url}/collections", timeout=10).json()["collections"]
            assert found["description"] == f"of {name}"
            links = {link["rel"]: link["href"] for link in found["links"]}
            assert links["self"] == f"{url}/collections/mine"
            assert requests.get(links["items"], timeout=10).json()["features"] == []
        sandbox.forget(sandbox.person("anna"))
        left = [requests.get(f"{url}/collections", timeout=10) for url in urls]
        assert [answer.ok and len(answer.json()["collections"]) for answer in left] == [1, False, 1]
        sandbox.catalogue.start(people.make("anna").database)
        assert requests.get(f"{urls[1]}/collections", timeout=10).json()["collections"] == []


# --- beginning anew ---


def test_one_person_begins_anew_and_the_others_notice_nothing(settings_of, sandbox):
    def world(name: str) -> tuple:
        settings = settings_of(name)
        service, s3 = hyp3.connect(settings), objectstore.client("s3", settings)
        orders = hook.connect(settings)
        return (
            len(service.find_jobs()),
            service.check_credits(),
            [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]],
            len(orders.session.get(f"{orders.url}/BatchOrder").json()["value"]),
            settings.service_name("hyp3"),
        )

    for name in ("anna", "ben"):
        submit(settings := settings_of(name))
        order(settings)
        objectstore.client("s3", settings).create_bucket(
            Bucket=f"of-{name}", CreateBucketConfiguration={"LocationConstraint": "us-west-2"}
        )
    before = world("ben")
    name_before = world("anna")[-1]
    room.reset_sandbox(sandbox.url("control"), "anna")
    jobs, credits, buckets, orders, name = world("anna")
    assert (jobs, credits, buckets, orders) == (0, 8000, [], 0)
    assert name != name_before  # no note about the old world applies
    assert world("ben") == before
    assert {each.owner for each in sandbox.hook.orders.values()} == {"", "ben"}
    ordered = {*sandbox.hook.orders}
    assert order(settings_of("anna")) not in ordered


def test_products_of_a_job_go_with_whoever_ordered_it(settings_of, sandbox):
    submit(settings_of("anna"))
    kept = submit(settings_of("ben"))
    deadline = time.monotonic() + 20
    while not all(job["status_code"] == "SUCCEEDED" for job in sandbox.hyp3.jobs.values()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    room.reset_sandbox(sandbox.url("control"), "anna")
    anybody = objectstore.client("s3", settings_of("ben"))
    listed = anybody.list_objects_v2(Bucket="hyp3-sandbox-contentbucket")["Contents"]
    assert {key["Key"].partition("/")[0] for key in listed} == {kept}


def test_after_a_reset_of_all_everybody_is_who_they_were(settings_of, sandbox):
    before = settings_of("anna")
    submit(before)
    sandbox.reset()
    # With the keys of before: nobody becomes somebody else.
    assert objectstore.account_id(before) == people.make("anna").account
    after = settings_of("anna")
    assert after.service_name("hyp3") != before.service_name("hyp3")
    assert not list(hyp3.connect(after).find_jobs()) and order(after)


@pytest.mark.parametrize("waits_for", ["hyp3", "hook", "catalogue"])
def test_whoever_comes_is_let_in_while_the_reset_of_another_waits(sandbox, waits_for):
    sandbox.person("anna")
    locks = {"hyp3": sandbox.hyp3.processor.pausing(), "hook": sandbox.hook.processor.pausing()}
    waiting = threading.Thread(target=sandbox.forget, args=(people.make("anna"),))
    with locks.get(waits_for) or sandbox.catalogue._lock:
        waiting.start()
        for name in (None, "anna", f"ben-{waits_for}"):
            about = {"params": {"user": name}, "timeout": 3}
            assert requests.get(f"{sandbox.url('control')}/environment", **about).ok
        assert waiting.is_alive()
    waiting.join(10)
    assert not waiting.is_alive()


def test_the_project_that_everybody_may_read_outlives_a_reset_of_the_first_person(sandbox, monkeypatch):
    monkeypatch.setattr(archive_project, "_products", lambda job: (archive_project._product("x_VV.tif", b"12"),))
    sandbox.hyp3.find(archive_project.OWNER, {"name": archive_project.NAME})
    sandbox.hyp3.find("sandbox-user", {"name": archive_project.NAME})
    s3, (job,) = sandbox._s3_client("s3-itself"), archive_project.job_ids(archive_project.OWNER)["partner"]
    room.reset_sandbox(sandbox.url("control"), "sandbox-user")
    keys = [key["Key"] for key in s3.list_objects_v2(Bucket=archive_project.PARTNER_BUCKET)["Contents"]]
    assert keys == [f"{archive_project.NAME}/{job}/x_VV.tif"]  # and nothing of the first person's
    read = {"Bucket": archive_project.PARTNER_BUCKET, "Key": keys[0]}
    assert sandbox._s3_client("hyp3-get-files").get_object(**read)["Body"].read() == b"12"


def stage(settings, item: dict) -> str:
    """URL of the job; the key that asks for it is the person's."""
    inputs = {"collection": "in", "items": {"value": item}, "asset_names": ["product"]}
    url, key = str(settings.rspy_host_staging).rstrip("/"), settings.rspy_apikey.get_secret_value()
    answer = requests.post(
        f"{url}/processes/staging/execution", json={"inputs": inputs}, headers={"x-api-key": key}, timeout=10
    )
    assert answer.status_code == 201, answer.text
    return f"{url}/jobs/{answer.json()['jobID']}"


def test_a_staging_job_under_way_writes_nothing_once_its_owner_is_forgotten(settings_of, sandbox):
    name = "S2A_MSIL2A_20240815T100601_N0511_R022_T32TQR_20240815T153456"
    (item,) = requests.get(f"{sandbox.url('station')}/search?ids={name}", timeout=10).json()["features"]
    anna, ben = settings_of("anna"), settings_of("ben")
    sandbox.traffic.fail("slow", service="station", seconds=0.5, times=2)
    jobs = [stage(anna, item), stage(ben, item)]
    room.reset_sandbox(sandbox.url("control"), "anna")
    for thread in sandbox.staging.jobs._threads:
        thread.join(20)
    answers = [requests.get(job, headers={"x-api-key": ben.rspy_apikey.get_secret_value()}, timeout=5) for job in jobs]
    assert (answers[0].status_code, answers[1].json()["status"]) == (404, "successful")
    s3 = sandbox._s3_client(rspy.SERVICE_USER)
    kept = [key["Key"] for bucket in ("rspy-products", "rspy-catalog", "rspy-archive")
            for key in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]  # fmt: skip
    assert [key.partition("/")[0] for key in kept] == ["ben"]
    assert {*sandbox.catalog.collections} == {"ben_in"}


def test_a_conversion_under_way_is_cancelled_when_its_owner_is_forgotten(sandbox, monkeypatch):
    cancelled = {"anna": threading.Event(), "ben": threading.Event()}

    class Cluster:
        """In place of the real one, that takes half a minute: what it is doing ends when it is told to."""

        def submit(self, call, convert, job_id, safe_uri, *_, **__):
            self.stop = cancelled[sandbox.dpr.jobs.records[job_id].owner]
            return self

        subscribe_topic = unsubscribe_topic = lambda *_: None

        def done(self) -> bool:
            return self.stop.is_set()

        def result(self) -> str:
            raise InterruptedError

    monkeypatch.setattr(sandbox.dpr, "client", lambda address="": Cluster())
    monkeypatch.setattr(sandbox.dpr, "cancel", lambda job: cancelled[job.owner].set())
    s3, jobs = sandbox._s3_client(rspy.SERVICE_USER), {}
    for name in ("anna", "ben"):
        key = {"x-api-key": sandbox.environment_of(sandbox.person(name))["RSPY_APIKEY"]}
        s3.put_object(Bucket="rspy-products", Key=f"{name}/in/x.SAFE/manifest.safe", Body=b"")
        body = {"jupyter_token": "x", "cluster_label": "x", "input_safe_path": f"s3://rspy-products/{name}/in/x.SAFE"}
        body["output_zarr_dir_path"] = f"s3://rspy-products/{name}/out"
        url = f"{sandbox.url('dpr')}/dpr/processes/conv_safe_zarr/execution"
        jobs[name] = requests.post(url, json=body, headers=key, timeout=10).json()["jobID"]
    room.reset_sandbox(sandbox.url("control"), "anna")
    records = sandbox.dpr.jobs.records
    assert {name: records[job].status for name, job in jobs.items()} == {"anna": "dismissed", "ben": "running"}
    assert records[jobs["anna"]].gone and not records[jobs["anna"]].thread.is_alive()
    assert not cancelled["ben"].is_set()
    cancelled["ben"].set()


def test_who_is_known_to_one_sandbox_is_not_known_to_others(sandbox):
    sandbox.person("only-here")
    assert people.make("only-here").apikey in sandbox.api_keys
    assert list(rspy.USERS.values()) == ["sandbox-user", "neighbour"]
    with Sandbox(deployment=Deployment(catalogue="embedded")) as another:
        key = {"x-api-key": people.make("only-here").apikey}
        urls = [f"{each.url('catalog')}/catalog/collections" for each in (sandbox, another)]
        assert [requests.get(url, headers=key, timeout=5).status_code for url in urls] == [200, 403]


# --- faults ---


def test_a_fault_that_somebody_makes_strikes_nobody_else(settings_of):
    anna, ben = settings_of("anna"), settings_of("ben")
    for service in ("hyp3", "s3", "catalog"):
        fault = {"kind": "forbidden", "service": service, "times": 2}
        requests.post(f"{anna.sandbox_url}faults", json=fault, timeout=5).raise_for_status()

    def answers(settings) -> list[int]:
        key = {"x-api-key": settings.rspy_apikey.get_secret_value()}
        token = {"Authorization": f"Bearer {settings.earthdata_token.get_secret_value()}"}
        s3 = objectstore.client("s3", settings)
        try:
            listed = s3.list_buckets()["ResponseMetadata"]["HTTPStatusCode"]
        except ClientError as error:
            listed = error.response["ResponseMetadata"]["HTTPStatusCode"]
        return [
            requests.get(f"{settings.hyp3_api_url}user", headers=token, timeout=5).status_code,
            listed,
            requests.get(f"{settings.rspy_host_catalog}catalog/collections", headers=key, timeout=5).status_code,
        ]

    assert answers(ben) == [200, 200, 200]
    assert answers(anna) == [403, 403, 403]
    requests.delete(f"{ben.sandbox_url}faults", timeout=5).raise_for_status()
    assert answers(anna) == [403, 403, 403]  # Ben heals what is his, and nothing was
    assert answers(anna) == [200, 200, 200]


def test_ones_own_address_of_the_sandbox_is_about_oneself(settings_of, sandbox):
    anna = settings_of("anna")
    told = requests.get(f"{anna.sandbox_url}environment", timeout=5).json()
    assert told["DESP_USERNAME"] == "anna" and told["RECIPES_SANDBOX_URL"] == str(anna.sandbox_url)
    unknown = requests.get(f"{sandbox.url('control')}/people/catalog_1/environment", timeout=5)
    assert unknown.status_code == 400 and "nobody here" in unknown.json()["detail"]


def test_faults_are_taken_back_by_whom_they_are_for(settings_of, sandbox):
    everybody = sandbox.url("control")
    anna, ben = (str(settings_of(name).sandbox_url).rstrip("/") for name in ("anna", "ben"))

    def left(*taken_back_at: str) -> set[str]:
        for url in (everybody, anna, ben):
            requests.post(f"{url}/faults", json={"kind": "forbidden", "service": "osam"}, timeout=5).raise_for_status()
        for url in taken_back_at:
            requests.delete(f"{url}/faults", timeout=5).raise_for_status()
        users = {fault.user for fault in sandbox.traffic.faults}
        sandbox.traffic.heal()
        assert not sandbox.traffic.faults
        return users

    assert left(everybody) == {"anna", "ben"}
    assert left(anna) == {"", "ben"}
    assert left(anna, ben, everybody) == set()


def test_the_rules_of_all_cannot_be_replaced_at_ones_own_address(settings_of, sandbox):
    anna, rules = settings_of("anna"), list(sandbox.osam.rows)
    rows = [["*", "*", "*", "7", "rspy-archive"]]
    for url in (f"{anna.sandbox_url}rules", f"{sandbox.url('control')}/rules?user=anna"):
        answer = requests.put(url, json=rows, timeout=5)
        assert answer.status_code == 400 and "of everybody" in answer.json()["detail"]
    assert sandbox.osam.rows == rules
    assert requests.put(f"{sandbox.url('control')}/rules", json=rows, timeout=5).ok and sandbox.osam.rows == rows
