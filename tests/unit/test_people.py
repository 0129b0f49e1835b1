"""Many people, one sandbox: is each somebody of their own, at every service?"""

import dataclasses
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
    many = [people.FIRST, *(people.make(name) for name in ("anna", "anna.b", "annab", "anna b", "Anna", "ännchen"))]
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
