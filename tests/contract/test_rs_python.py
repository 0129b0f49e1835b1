"""The stand-ins of RS-PYTHON's services against the published facts: staging, catalogue, DPR, bucket rules, station.

Everything is asked over HTTP. The services' forms, messages and rules are written out here once more, as they were
read in the published sources; the services themselves are the other place.
"""

import io
import json
import re
import threading
import time
import zipfile
from collections.abc import Callable
from datetime import datetime
from uuid import UUID

import boto3
import pystac
import pystac_client
import pytest
import requests
from botocore.config import Config

from helpers import objectstore
from helpers.sandbox import Deployment, Sandbox, dpr
from helpers.sandbox.dpr import Release
from helpers.sandbox.products import granule_footprint
from helpers.sandbox.rspy import S3_KEYS
from helpers.sandbox.safe_products import product_footprint

S1 = "S1A_IW_GRDH_1SDV_20240814T170519_20240814T170544_055216_06BAA8_5B57"
L2A = "S2A_MSIL2A_20240815T100601_N0511_R022_T32TQR_20240815T153456"
L1C = "S2A_MSIL1C_20240815T100601_N0511_R022_T32TQR_20240815T135034"
OTHER_L2A = "S2B_MSIL2A_20240820T100559_N0511_R022_T32TQR_20240820T131234"
OLCI = "S3A_OL_1_EFR____20240815T092117_20240815T092417_20240816T093811_0179_115_364_2160_PS1_O_NT_004"
SLC = "S1A_IW_SLC__1SDV_20240121T155314_20240121T155341_052207_064FA6_3AB9"

OWNER, SHOWN_OWNER = "sandbox-user", "sandboxuser"
STAGING, OUTPUT = "s2-staging", "s2-zarr"
BUCKET = "rspy-products"  # of this owner, by the rules of the beginning
FOLDER = f"{SHOWN_OWNER}/{STAGING}/{L2A}"
ZARR = "S02MSIL2A_20240815T100601_00000_A0022_T14A"
OVER = ("successful", "failed", "dismissed")


class Client:
    """A user of RS-Server."""

    def __init__(self, sandbox: Sandbox, key: str | None = None):
        self.sandbox, self.known = sandbox, sandbox.environment
        self.headers = {"x-api-key": self.known["RSPY_APIKEY"] if key is None else key}
        self.s3 = storage(sandbox)

    def ask(self, service: str, method: str, path: str, body: object = None, **more) -> requests.Response:
        url = self.sandbox.url(service) + path
        return requests.request(method, url, json=body, headers=self.headers, timeout=10, **more)

    def item(self, name: str = L2A) -> dict:
        answer = self.ask("station", "GET", f"/search?ids={name}")
        (found,) = answer.json()["features"]
        return found

    def stage(self, *names: str, names_of_assets: list | None = None, collection: str = STAGING, **items) -> dict:
        """The job's first answer."""
        features = [self.item(name) for name in names]
        items = items or {"value": {"type": "FeatureCollection", "features": features}}
        inputs = {"collection": collection, "items": items}
        if names_of_assets is not None:
            inputs["asset_names"] = names_of_assets
        answer = self.ask("staging", "POST", "/processes/staging/execution", {"inputs": inputs})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def staged(self, *names: str, **how) -> dict:
        return self.end("staging", self.stage(*names, **{"names_of_assets": ["product"]} | how))

    def convert(self, safe: str = f"s3://{BUCKET}/in/{L2A}.SAFE", **more) -> requests.Response:
        body = {"input_safe_path": safe, "output_zarr_dir_path": f"s3://{BUCKET}/{SHOWN_OWNER}/{OUTPUT}"}
        body |= {"jupyter_token": "a token", "cluster_label": "dask-eopf", "cluster_instance": ""} | more
        body = {name: value for name, value in body.items() if value is not None}
        return self.ask("dpr", "POST", "/dpr/processes/conv_safe_zarr/execution", body)

    def end(self, service: str, job: dict, seconds: float = 60) -> dict:
        """The job when it is over."""
        path = ("/dpr" if service == "dpr" else "") + f"/jobs/{job['jobID']}"
        until = time.monotonic() + seconds
        while (now := self.ask(service, "GET", path).json())["status"] not in OVER:
            assert time.monotonic() < until, now
            time.sleep(0.05)
        return now

    def catalog(self, method: str, path: str, body: object = None) -> requests.Response:
        return self.ask("catalog", method, f"/catalog{path}", body)

    def objects(self, prefix: str = "", bucket: str = BUCKET) -> dict[str, int]:
        return objectstore.objects(self.s3, bucket, prefix)


def storage(sandbox: Sandbox, key: str = "sandbox-rspy", secret: str | None = None) -> object:
    return boto3.client(
        "s3",
        endpoint_url=sandbox.environment["S3_ENDPOINT"],
        aws_access_key_id=key,
        aws_secret_access_key=secret or S3_KEYS[key],
        region_name="sbg",
        config=Config(s3={"addressing_style": "path"}),
    )


@pytest.fixture
def client(sandbox) -> Client:
    sandbox.staging.seconds = 0.0
    return Client(sandbox)


@pytest.fixture
def fault(sandbox) -> Callable:
    return sandbox.traffic.fail


@pytest.fixture
def published(client) -> Callable:
    """Put an item with one object into the output collection."""
    assert client.catalog("POST", "/collections", collection()).status_code == 201

    def publish(item_id: str = "a-product", **more) -> requests.Response:
        href = f"s3://{BUCKET}/{SHOWN_OWNER}/{OUTPUT}/{item_id}.zarr"
        client.s3.put_object(Bucket=BUCKET, Key=href.removeprefix(f"s3://{BUCKET}/") + "/zarr.json", Body=b"{}")
        return client.catalog("POST", f"/collections/{OWNER}:{OUTPUT}/items", converted(item_id, href, **more))

    return publish


def collection(name: str = OUTPUT, **more) -> dict:
    extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
    about = {"type": "Collection", "stac_version": "1.0.0", "license": "other", "links": [], "extent": extent}
    return about | {"id": name, "description": "Converted products"} | more


def converted(item_id: str, href: str, product_type: str | None = "S02MSIL2A", **properties) -> dict:
    geometry = {"type": "Polygon", "coordinates": [[[10, 45], [11, 45], [11, 46], [10, 46], [10, 45]]]}
    about = {"datetime": "2024-08-15T10:06:01Z", "product:type": product_type} | properties
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [],
        "id": item_id,
        "geometry": geometry,
        "bbox": [0, 0, 0, 0],
        "properties": about,
        "assets": {item_id: {"href": href, "type": "application/vnd+zarr", "roles": ["data", "metadata"]}},
        "links": [{"rel": "derived_from", "href": "https://station/items/x", "type": "application/geo+json"}],
    }


# --- 1: jobs ---


def check_form(job: dict, process: str) -> None:
    assert UUID(job["jobID"]).version == 4
    assert (job["type"], job["processID"]) == ("process", process)
    assert job["status"] in ("accepted", "running", *OVER) and 0 <= job["progress"] <= 100
    for name in ("created", *{"started", "updated", "finished"} & set(job)):
        datetime.strptime(job[name], "%Y-%m-%dT%H:%M:%SZ")


def test_a_job_has_the_published_form(client):
    job = client.stage(L2A)
    check_form(job, "staging")
    assert "finished" not in job
    over = client.end("staging", job)
    check_form(over, "staging")
    assert over["finished"] and (over["status"], over["progress"]) == ("successful", 100)
    refused = client.convert(safe="s3://rspy-products/nowhere.SAFE")
    check_form(refused.json(), "conv_safe_zarr")
    # An execution is answered by 201 even when its job has failed by then.
    assert (refused.status_code, refused.json()["status"]) == (201, "failed")


def test_some_releases_spell_the_process_id_otherwise():
    with Sandbox(deployment=Deployment(rs_server=Release(process_key="process_id"))) as sandbox:
        client = Client(sandbox)
        for job in (client.stage(href="http://127.0.0.1:9/"), client.convert().json()):
            assert {"jobID", "status", "type", "process_id"} <= set(job) and "processID" not in job


# --- 2: staging ---


def test_staging_stores_the_product_and_catalogues_it(client):
    over = client.staged(L2A)
    archive = f"{L2A}.SAFE.zip"
    assert (over["status"], over["message"]) == ("successful", "Finished")
    # The asset's key becomes the file's name, in the storage and in the catalogue.
    item = client.catalog("GET", f"/collections/{OWNER}:{STAGING}/items/{L2A}").json()
    assert {name: asset["href"] for name, asset in item["assets"].items()} == {
        archive: f"s3://{BUCKET}/{FOLDER}/{archive}"
    }
    stored = client.s3.get_object(Bucket=BUCKET, Key=f"{FOLDER}/{archive}")["Body"].read()
    assert stored == requests.get(client.item()["assets"]["product"]["href"], timeout=10).content
    with zipfile.ZipFile(io.BytesIO(stored)) as content:
        assert content.testzip() is None and f"{L2A}.SAFE/manifest.safe" in content.namelist()
    assert (item["collection"], item["properties"]["owner"]) == (f"{SHOWN_OWNER}_{STAGING}", SHOWN_OWNER)
    assert item["properties"]["product:type"] == "S2MSI2A"


def test_without_names_every_asset_is_staged_by_its_key(client):
    client.staged(L2A, names_of_assets=None)
    assert set(client.objects()) == {f"{FOLDER}/product", f"{FOLDER}/quicklook"}


@pytest.mark.parametrize("path", [f"/search?ids={L2A}", f"/collections/sentinel-2-l2a/items/{L2A}"])
def test_items_may_come_from_a_link(client, path):
    over = client.end("staging", client.stage(href=client.sandbox.url("station") + path, names_of_assets=["product"]))
    assert over["message"] == "Finished"
    assert set(client.objects()) == {f"{FOLDER}/{L2A}.SAFE.zip"}


def test_staging_tells_what_it_does(client):
    client.sandbox.staging.seconds = 0.3
    job = client.stage(L2A, L1C, names_of_assets=["product"])
    seen = []
    while (now := client.ask("staging", "GET", f"/jobs/{job['jobID']}").json())["status"] != "successful":
        seen.append((now["status"], now["message"]))
    assert set(seen) <= {
        ("accepted", "Processing Unit was created"),
        ("running", "Sending tasks to the dask cluster"),
        ("running", "In progress"),
    }
    assert seen[-1] == ("running", "In progress")
    assert client.ask("staging", "GET", f"/jobs/{job['jobID']}/results").text.strip() == '"successful"'
    assert [each["jobID"] for each in client.ask("staging", "GET", "/jobs").json()["jobs"]] == [job["jobID"]]
    assert len(client.objects()) == 2


def test_ids_that_are_catalogued_are_skipped_whatever_became_of_their_files(client):
    client.staged(L2A)
    client.s3.delete_object(Bucket=BUCKET, Key=f"{FOLDER}/{L2A}.SAFE.zip")
    over = client.staged(L2A)
    assert (over["status"], over["message"]) == ("successful", "Finished without processing any tasks")
    assert client.objects() == {}
    assert client.staged(L2A, L1C)["message"] == "Finished"
    assert [key.split("/")[2] for key in client.objects()] == [L1C]


def test_a_job_without_assets_is_successful_and_does_nothing(client):
    over = client.staged(L2A, names_of_assets=["no-such-asset"])
    message = "No items with assets were found in the input for staging"
    assert (over["status"], over["message"]) == ("successful", message)
    assert client.objects() == {}


def test_a_link_that_leads_nowhere_fails_the_job_at_once(client):
    for href in (f"{client.sandbox.url('station')}/collections/x/items/y", "http://127.0.0.1:9/search"):
        job = client.stage(href=href)
        assert job["status"] == "failed"
        assert job["message"].startswith("Failed to retrieve the ItemCollection from the input link: ")


def test_a_job_that_fails_takes_back_what_it_stored(client):
    good, bad = client.item(L1C), client.item(L2A)
    bad["assets"]["product"]["href"] += ".gone"
    value = {"type": "FeatureCollection", "features": [good, bad]}
    over = client.end("staging", client.stage(value=value, names_of_assets=["product"]))
    assert over["status"] == "failed" and over["message"].startswith("At least one of the tasks failed: ")
    assert client.objects() == {}
    assert client.catalog("GET", f"/search?collections={OWNER}:{STAGING}").json()["features"] == []


def test_an_item_that_the_catalogue_refuses_fails_the_job(client, fault):
    fault("null-type", service="station")
    over = client.staged(L2A)
    assert (over["status"], client.objects()) == ("failed", {})
    assert over["message"] == f"The item {L2A} couldn't be published in the catalog. Cleaning up"


def test_deleting_a_staging_job_deletes_its_record_and_stops_nothing(client):
    client.sandbox.staging.seconds = 0.3
    job = client.stage(L2A, names_of_assets=["product"])
    assert client.ask("staging", "DELETE", f"/jobs/{job['jobID']}").status_code == 200
    for method in ("GET", "DELETE"):
        assert client.ask("staging", method, f"/jobs/{job['jobID']}").status_code == 404
    client.sandbox.staging.jobs._threads[-1].join(10)
    assert client.catalog("GET", f"/collections/{STAGING}/items/{L2A}").status_code == 200


def test_what_staging_refuses(client):
    execution = "/processes/staging/execution"
    good = {"collection": STAGING, "items": {"href": "http://127.0.0.1:9/"}}
    wrong = [None, {}, {"inputs": {}}, {"inputs": good | {"items": {}}}, {"inputs": good | {"collection": ""}}]
    for body in wrong:
        answer = client.ask("staging", "POST", execution, body)
        assert answer.status_code == 500 and set(answer.json()) == {"type", "status", "detail"}
    for key in ("", "wrong"):
        answer = Client(client.sandbox, key).ask("staging", "POST", execution, {"inputs": good})
        assert answer.status_code == 500 and "authorised" in answer.json()["detail"]
    for path in ("/processes/other", "/jobs/other", "/jobs/other/results"):
        assert client.ask("staging", "GET", path).status_code == 404
    assert client.ask("staging", "POST", "/processes/other/execution", {"inputs": good}).status_code == 404
    for path in ("/processes", "/processes/staging"):
        assert client.ask("staging", "GET", path).status_code == 200


# --- 3: catalogue ---


def test_pystac_client_works_on_the_catalogue(client, published):
    for number, day in enumerate(("2024-08-15", "2024-08-20", "2024-08-25")):
        assert published(f"product-{number}", datetime=f"{day}T10:00:00Z").status_code == 201
    catalog = pystac_client.Client.open(f"{client.known['RSPY_HOST_CATALOG']}/catalog/", headers=client.headers)
    assert catalog.conforms_to("ITEM_SEARCH")
    name = f"{SHOWN_OWNER}_{OUTPUT}"
    assert [each.id for each in catalog.get_collections()] == [name]
    assert catalog.get_collection(name).id == catalog.get_collection(f"{OWNER}:{OUTPUT}").id == name

    def found(**how) -> list[str]:
        return [item.id for item in catalog.search(**{"collections": [name]} | how).items()]

    everything = ["product-2", "product-1", "product-0"]  # the latest first
    assert found() == found(limit=1) == found(method="GET", limit=2) == everything  # over pages
    assert found(ids=["product-1"]) == found(ids=["product-1"], method="GET") == ["product-1"]
    assert found(collections=[f"{OWNER}:{OUTPUT}"]) == found(collections=[OUTPUT]) == everything
    assert found(datetime="2024-08-20") == ["product-1"]
    assert found(datetime="2024-08-20T10:00:01Z") == []  # a moment
    assert found(datetime="2024-08-20/..") == ["product-2", "product-1"]
    assert (found(bbox=[10.5, 45.5, 20, 50]), found(bbox=[11.1, 45, 12, 46])) == (everything, [])
    point = {"type": "Point", "coordinates": [10.5, 45.5]}
    assert found(intersects=point) == found(intersects=point, method="GET") == everything
    assert found(intersects={"type": "Point", "coordinates": [9, 9]}) == []
    assert {item.id for item in catalog.get_collection(name).get_items()} == set(everything)
    assert catalog.search(collections=[name], limit=1).matched() == 3


def test_paths_have_the_owner_and_ids_too_in_another_way(client, published):
    answer = published()
    assert answer.status_code == 201
    item = answer.json()
    assert item["collection"] == f"{SHOWN_OWNER}_{OUTPUT}"
    links = {link["rel"]: link["href"] for link in item["links"]}
    root = f"{client.sandbox.url('catalog')}/catalog"
    assert links["self"] == f"{root}/collections/{SHOWN_OWNER}:{OUTPUT}/items/a-product"
    assert links["derived_from"] == "https://station/items/x"
    for way in (f"{OWNER}:{OUTPUT}", f"{SHOWN_OWNER}:{OUTPUT}", OUTPUT, f"{SHOWN_OWNER}_{OUTPUT}"):
        assert client.catalog("GET", f"/collections/{way}/items/a-product").json() == item
        assert client.catalog("GET", f"/collections/{way}").json()["id"] == f"{SHOWN_OWNER}_{OUTPUT}"
    assert pystac.Item.from_dict(item).id == "a-product"


def test_a_stored_item_has_its_owner_its_times_and_the_bbox_of_its_geometry(client, published):
    item = published().json()
    about = item["properties"]
    assert about["owner"] == SHOWN_OWNER and item["bbox"] == [10, 45, 11, 46]
    published_at, expires = (datetime.fromisoformat(about[name]) for name in ("published", "expires"))
    assert (expires - published_at).days == 90  # of the rule
    assert about["updated"] == about["published"] and about["created"]
    item["properties"]["title"] = "changed"
    changed = client.catalog("PUT", f"/collections/{OUTPUT}/items/a-product", item)
    assert changed.status_code == 200
    stored = client.catalog("GET", f"/collections/{OUTPUT}/items/a-product").json()["properties"]
    assert (stored["title"], stored["published"]) == ("changed", about["published"])
    assert stored["updated"] > about["updated"]


def test_what_the_catalogue_refuses(client, published):
    def refused(answer: requests.Response) -> tuple[int, str]:
        assert set(answer.json()) == {"code", "description"}
        return answer.status_code, answer.json()["description"]

    items, there = f"/collections/{OWNER}:{OUTPUT}/items", f"s3://{BUCKET}/{SHOWN_OWNER}/{OUTPUT}/a-product.zarr"
    assert published().status_code == 201
    message = f"Conflict error! The item a-product already exists in the {SHOWN_OWNER}_{OUTPUT} collection"
    assert refused(published()) == (409, message)
    assert refused(published("b", product_type=""))[0] == refused(published("b", product_type=None))[0] == 403
    assert refused(client.catalog("POST", "/collections/nowhere/items", converted("b", there)))[0] == 404
    for href in (f"{there}/gone", there.replace(BUCKET, "rspy-catalog"), "https://elsewhere/b.zarr", ""):
        wanted = 400, "Not all assets for item b are available in S3."
        assert refused(client.catalog("POST", items, converted("b", href))) == wanted
    assert refused(client.catalog("PUT", f"{items}/b", converted("b", there))) == (400, "Item b not found.")
    assert refused(client.catalog("POST", items, {"id": "b"}))[0] == 400
    for path in ("/collections/nowhere", "/collections/nowhere/items", f"{items}/b", "/search?collections=nowhere"):
        assert refused(client.catalog("GET", path))[0] == 404
    assert refused(client.catalog("DELETE", f"{items}/b"))[0] == 404
    assert refused(client.catalog("POST", "/collections", collection()))[0] == 409
    assert refused(client.catalog("POST", "/collections", {"id": "no more"}))[0] == 400
    assert refused(client.catalog("GET", "/search?bbox=1,2,3"))[0] == 400
    assert refused(client.catalog("GET", "/search?filter=id='b'"))[0] == 400  # not ignored: it would find too much
    assert client.catalog("GET", "/search").json()["numberMatched"] == 1


def test_deleting_an_item_deletes_what_its_assets_name_and_nothing_else(client, published):
    client.staged(L2A)
    beside = {f"{FOLDER}/{L2A}.SAFE/manifest.safe", f"{FOLDER}/{L2A}.SAFE.zip.md5"}
    for key in beside:
        client.s3.put_object(Bucket=BUCKET, Key=key, Body=b"unpacked")
    published()
    item = f"/collections/{OWNER}:{STAGING}/items/{L2A}"
    assert client.catalog("DELETE", item).status_code == 200
    assert client.catalog("GET", item).status_code == 404
    assert set(client.objects()) == beside | {f"{SHOWN_OWNER}/{OUTPUT}/a-product.zarr/zarr.json"}
    assert client.catalog("DELETE", f"/collections/{OWNER}:{OUTPUT}").status_code == 200  # with its items
    assert set(client.objects()) == beside


def test_what_cannot_be_deleted_stays_catalogued(client, published):
    published()
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject", "Resource": f"arn:aws:s3:::{BUCKET}/*"}
    client.s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Statement": [deny]}))
    answer = client.catalog("DELETE", f"/collections/{OUTPUT}/items/a-product")
    description = "Failed to delete S3 assets; catalog metadata was not deleted."
    assert (answer.status_code, answer.json()["description"]) == (500, description)
    assert client.catalog("GET", f"/collections/{OUTPUT}/items/a-product").status_code == 200


def test_who_may_do_what(client, published):
    published()
    path = f"/collections/{OWNER}:{OUTPUT}/items"
    for key, status in (("", 401), ("wrong", 403)):
        other = Client(client.sandbox, key)
        for method, where in (("GET", "/"), ("GET", "/search"), ("POST", path), ("DELETE", f"{path}/a-product")):
            answer = other.catalog(method, where)
            assert (answer.status_code, set(answer.json())) == (status, {"code", "description"})
        for method, where in (("GET", "/dpr/processes"), ("POST", "/dpr/processes/conv_safe_zarr/execution")):
            assert other.ask("dpr", method, where).status_code == status
    neighbour = Client(client.sandbox, "sandbox-rspy-apikey-2")
    item = converted("b", f"s3://{BUCKET}/{SHOWN_OWNER}/{OUTPUT}/a-product.zarr")
    assert neighbour.catalog("GET", f"{path}/a-product").status_code == 200
    for method, where in (("POST", path), ("PUT", f"{path}/a-product"), ("DELETE", f"{path}/a-product")):
        assert neighbour.catalog(method, where, item).status_code == 401
    assert neighbour.catalog("POST", "/collections", collection("x", owner=OWNER)).status_code == 401
    assert neighbour.catalog("POST", "/collections", collection()).status_code == 201  # its own of that name


def test_all_services_are_at_the_one_address_too(client):
    front = client.known["RSPY_WEBSITE"]
    for path, status in (("/catalog/", 200), ("/processes", 200), ("/dpr/jobs", 200), ("/internal/configuration", 200)):
        assert requests.get(front + path, headers=client.headers, timeout=10).status_code == status
    assert requests.get(f"{front}/jobs/x", headers=client.headers, timeout=10).status_code == 404
    seen = [request.service for request in client.sandbox.traffic.requests]
    assert seen == ["catalog", "staging", "dpr", "osam", "staging"]


# --- 4: DPR ---


@pytest.fixture
def safe(client) -> Callable:
    """Put a product into the storage, unpacked: returns its URI."""

    def put(name: str = L2A, ending: str = "SAFE") -> str:
        client.sandbox.station.pixels = 120
        with zipfile.ZipFile(io.BytesIO(client.sandbox.station.archive(name, ".zip"))) as content:
            for member in content.namelist():
                client.s3.put_object(Bucket=BUCKET, Key=f"in/{member}", Body=content.read(member))
        return f"s3://{BUCKET}/in/{name}.{ending}"

    return put


@pytest.fixture
def warm(running_sandbox) -> None:
    url = f"{running_sandbox.url('control')}/warm?wait=true"
    assert requests.post(url, timeout=60).status_code == 200


@pytest.mark.usefixtures("warm")
def test_dpr_converts_for_real(client, safe):
    job = client.convert(safe()).json()
    lines, progress = [], []

    def listen() -> None:
        with client.ask("dpr", "GET", f"/dpr/jobs/{job['jobID']}/logs", stream=True) as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            lines.extend(line.decode() for line in answer.iter_lines() if line)

    listener = threading.Thread(target=listen)
    listener.start()
    while (now := client.ask("dpr", "GET", f"/dpr/jobs/{job['jobID']}").json())["status"] == "running":
        progress.append(now["progress"])
        time.sleep(0.05)
    listener.join(10)
    assert now["status"] == "successful", now["message"]
    assert progress == sorted(progress) and set(progress) <= {0, 5, 50} and now["progress"] == 100
    told = json.loads(now["message"])
    target = f"{SHOWN_OWNER}/{OUTPUT}/{L2A}.zarr/{ZARR}.zarr"
    assert told == {
        "message": "Conversion finished",
        "eopf_version": "3.0.0",
        "safe_uri": f"s3://{BUCKET}/in/{L2A}.SAFE",
        "zarr_uri": f"s3://{BUCKET}/{target}",
    }
    for told in (f"Uploading s3://{BUCKET}/{target}", "valid"):  # the service's, EOPF's
        assert any(line.startswith("data: INFO") and told in line for line in lines)
    assert {line[:5] for line in lines} <= {"data:", ": kee"}
    root = json.loads(client.s3.get_object(Bucket=BUCKET, Key=f"{target}/zarr.json")["Body"].read())
    # With EOPF's own faults: the bbox is not in STAC's order, and the id is not the name.
    found = root["attributes"]["stac_discovery"]
    west, south, east, north = box_of(granule_footprint(L2A)["coordinates"][0])
    assert [round(number, 1) for number in found["bbox"]] == pytest.approx([east, south, west, north], abs=0.2)
    assert found["id"] != ZARR and found["properties"]["product:type"] == "S02MSIL2A"
    band = [key for key in client.objects(target) if "/measurements/reflectance/r10m/b02/c/" in key]
    assert len(band) == 1


def box_of(ring: list) -> tuple[float, float, float, float]:
    lons, lats = zip(*ring, strict=True)
    return min(lons), min(lats), max(lons), max(lats)


@pytest.mark.usefixtures("warm")
def test_an_older_release_on_a_cluster_by_address_whose_message_is_null(client, safe, fault):
    """One conversion for all three."""
    client.sandbox.dpr.release = Release(naming="PRODUCT_NAME", nested=False, zarr_format=2)
    fault("null-message", service="dpr", path=L1C)
    now = client.end("dpr", client.convert(safe(L1C), cluster_instance=client.sandbox.cluster.address()).json())
    assert (now["status"], now["message"], now["progress"]) == ("successful", None, 100)
    zarr = client.objects(f"{SHOWN_OWNER}/{OUTPUT}/{L1C}.zarr/")
    assert f"{SHOWN_OWNER}/{OUTPUT}/{L1C}.zarr/.zattrs" in zarr
    assert not any(key.endswith("zarr.json") for key in zarr)


@pytest.mark.usefixtures("warm")
def test_a_killed_worker_fails_its_job_and_leaves_half_a_zarr(client, safe, fault):
    fault("worker-killed", service="dpr")
    now = client.end("dpr", client.convert(safe(L1C)).json())
    assert now["status"] == "failed" and now["message"].startswith("Conversion failed: ")
    left = client.objects(f"{SHOWN_OWNER}/{OUTPUT}/")
    assert any(key.endswith(".zarr/zarr.json") for key in left)  # looks whole, and is not
    assert not any("/measurements/" in key and "/c/" in key for key in left)
    # The cluster has another worker soon.
    assert client.sandbox.dpr.client().submit(sum, [1, 2], pure=False).result(30) == 3


@pytest.mark.usefixtures("warm")
def test_a_conversion_can_be_cancelled_and_its_record_can_get_lost(client, safe, fault):
    uri = safe()
    job = client.convert(uri).json()
    while client.ask("dpr", "GET", f"/dpr/jobs/{job['jobID']}").json()["progress"] < 50:
        time.sleep(0.02)  # until a worker has it
    answer = client.ask("dpr", "DELETE", f"/dpr/jobs/{job['jobID']}")
    assert (answer.status_code, answer.json()["message"]) == (200, f"Job {job['jobID']} deleted successfully")
    client.sandbox.dpr.jobs._threads[-1].join(30)
    assert client.objects(f"{SHOWN_OWNER}/{OUTPUT}/") == {}
    fault("vanished-job", service="dpr")
    lost = client.convert(uri).json()
    assert lost["status"] == "running"
    for each in (job, lost):
        until = time.monotonic() + 5
        while (answer := client.ask("dpr", "GET", f"/dpr/jobs/{each['jobID']}")).status_code == 200:
            assert time.monotonic() < until
        # In the service's words: a bare text.
        assert answer.json() == f"Job with ID {each['jobID']} not found"
    assert client.ask("dpr", "GET", "/dpr/jobs").json()["jobs"] == []
    # A reset ends what is under way: nothing of it comes to the new world.
    client.sandbox.reset()
    time.sleep(0.3)
    assert client.objects() == {}


def test_what_dpr_refuses(client, safe):
    for missing in ("jupyter_token", "cluster_label"):
        answer = client.convert(**{missing: None})
        assert answer.status_code == 400 and "jupyter_token or cluster_label" in answer.text
    assert client.ask("dpr", "POST", "/dpr/processes/other/execution", {}).status_code == 404
    assert client.ask("dpr", "GET", "/dpr/processes/other").status_code == 404
    for path in ("/dpr/jobs/other", "/dpr/jobs/other/logs"):
        assert client.ask("dpr", "GET", path).status_code == 404
    assert client.ask("dpr", "DELETE", "/dpr/jobs/other").status_code == 404


def test_dpr_names_its_process(client):
    listed = client.ask("dpr", "GET", "/dpr/processes").json()["processes"]
    assert [process["id"] for process in listed] == ["conv_safe_zarr"]
    path = "/dpr/processes/conv_safe_zarr"
    assert client.ask("dpr", "GET", path).status_code == 400  # newer releases ask the cluster
    assert client.ask("dpr", "GET", f"{path}?jupyter_token=x&cluster_label=y").status_code == 200


def test_what_the_storage_says_against_a_conversion_fails_it_at_once(client, fault):
    safe = f"s3://{BUCKET}/in/{L2A}.SAFE"

    def message(**more) -> str:
        job = client.convert(**more).json()
        assert job["status"] == "failed"
        return job["message"]

    assert message(safe=safe) == f"Input SAFE path does not exist: {safe}"
    assert message(safe="/in/x").startswith("Invalid input_safe_path format")
    client.s3.put_object(Bucket=BUCKET, Key=f"in/{L2A}.SAFE/manifest.safe", Body=b"x")
    out = "s3://no-such-bucket/x"
    assert message(safe=safe, output_zarr_dir_path=out) == f"Output S3 bucket does not exist: {out}"
    out = f"s3://{BUCKET}/x"
    fault("no-write-permission", service="dpr")
    assert message(safe=safe, output_zarr_dir_path=out) == f"No write permission on bucket: {out}"
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{BUCKET}/*"}
    client.s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Statement": [deny]}))
    assert message(safe=safe, output_zarr_dir_path=out) == f"No write permission on bucket: {out}"
    assert set(client.objects()) == {f"in/{L2A}.SAFE/manifest.safe"}  # the probes are gone


@pytest.mark.usefixtures("warm")
def test_a_conversion_that_fails_says_why(client, fault, monkeypatch):
    uri = f"s3://{BUCKET}/in/{L2A}.SAFE"
    client.s3.put_object(Bucket=BUCKET, Key=f"in/{L2A}.SAFE/readme.txt", Body=b"no product")
    now = client.end("dpr", client.convert(uri).json())
    assert now["status"] == "failed" and re.match("Conversion failed: .{10}", now["message"])
    fault("conversion-failed", service="dpr", path=L2A)
    assert client.end("dpr", client.convert(uri).json())["message"] == "Conversion failed: NO FILE/DIR MATCH"
    monkeypatch.setattr(dpr, "START", 1)
    now = client.end("dpr", client.convert(uri, cluster_instance="tcp://127.0.0.1:9").json())
    assert now["status"] == "failed" and now["message"].startswith("Failed to start the dpr-service process: ")
    assert set(client.objects()) == {f"in/{L2A}.SAFE/readme.txt"}


# --- 5: bucket rules ---

DEFAULT = ["*", "*", "*", "30", "rspy-catalog"]


def test_the_rules_are_rows_of_five_strings_for_everybody(sandbox):
    rows = requests.get(f"{sandbox.url('osam')}/internal/configuration", timeout=10).json()
    assert DEFAULT in rows
    assert all(len(row) == 5 and all(isinstance(text, str) for text in row) for row in rows)


@pytest.mark.parametrize(
    ("first", "wins"),
    [
        (["sandboxuser", "c", "S2MSI2A"], True),
        (["sandboxuser", "c", "*"], True),
        (["sandboxuser", "*", "S2MSI2A"], True),
        (["sandboxuser", "*", "*"], True),
        (["*", "c", "*"], False),
        (["*", "*", "S2MSI2A"], False),
        (["sandboxuser", "c", "S2*"], False),  # no patterns
        (["sandbox-user", "c", "*"], False),  # with what was stripped
    ],
)
def test_servers_find_a_bucket_by_equality(client, first, wins):
    rows = [DEFAULT, [*first, "7", "rspy-archive"]]
    assert requests.put(f"{client.sandbox.url('control')}/rules", json=rows, timeout=10).status_code == 200
    assert client.staged(L2A, collection="c")["status"] == "successful"
    bucket = "rspy-archive" if wins else "rspy-catalog"
    assert list(client.objects(bucket=bucket)) == [f"{SHOWN_OWNER}/c/{L2A}/{L2A}.SAFE.zip"]


def test_the_more_a_row_says_the_sooner_it_wins(client):
    said = [("c", "S2MSI2A"), ("c", "*"), ("*", "S2MSI2A"), ("*", "*")]
    rows = [[SHOWN_OWNER, *columns, "7", f"bucket-{number}"] for number, columns in enumerate(said)]
    for number in range(4):
        client.sandbox.osam.rows = [DEFAULT, *reversed(rows[number:])]
        assert client.sandbox.osam.rule(SHOWN_OWNER, "c", "S2MSI2A") == (7, f"bucket-{number}")


def test_the_storage_knows_its_users(sandbox, client):
    reader = storage(sandbox, "sandbox-rspy-reader")
    client.s3.put_object(Bucket=BUCKET, Key="a", Body=b"a")
    assert reader.get_object(Bucket=BUCKET, Key="a")["Body"].read() == b"a"
    with pytest.raises(reader.exceptions.ClientError, match="AccessDenied"):
        reader.put_object(Bucket=BUCKET, Key="b", Body=b"b")
    with pytest.raises(reader.exceptions.ClientError, match="AccessDenied"):
        reader.delete_object(Bucket=BUCKET, Key="a")
    with pytest.raises(reader.exceptions.ClientError, match="SignatureDoesNotMatch"):
        storage(sandbox, "sandbox-rspy", "another secret").list_objects_v2(Bucket=BUCKET)
    stranger = storage(sandbox, "somebody", "anything")
    with pytest.raises(reader.exceptions.ClientError, match="AccessDenied"):
        stranger.list_objects_v2(Bucket=BUCKET)


# --- 6: the station, and its product types ---

#: Legacy types of names.
TYPES = {S1: "IW_GRDH_1S", SLC: "IW_SLC__1S", L1C: "S2MSI1C", L2A: "S2MSI2A", OLCI: "OL_1_EFR___"}


@pytest.mark.parametrize("name", TYPES)
def test_every_product_is_at_the_station_with_its_legacy_type(client, name):
    item = client.item(name)
    assert (item["id"], item["properties"]["product:type"]) == (name, TYPES[name])
    # Nothing is made of an SLC's name: its item says where the granule lies.
    assert item["geometry"] == (granule_footprint if name == SLC else product_footprint)(name)
    again = requests.get(next(link["href"] for link in item["links"] if link["rel"] == "self"), timeout=10).json()
    assert again == item
    assert item["assets"]["product"]["file:local_path"] == item["assets"]["product"]["href"].rpartition("/")[2]
    pystac.Item.from_dict(item)


def test_pystac_client_works_on_the_station(sandbox):
    station = pystac_client.Client.open(sandbox.environment["RSPY_STATION_URL"])
    listed = {item.id for item in station.search().items()}
    assert {S1, L2A, OTHER_L2A, L1C, OLCI} < listed
    assert {item.id for item in station.search(method="GET", limit=2).items()} == listed
    where = granule_footprint(L2A)["coordinates"][0][0]
    found = station.search(collections=["sentinel-2-l2a"], intersects={"type": "Point", "coordinates": where})
    assert {item.id for item in found.items()} == {L2A, OTHER_L2A}
    assert [item.id for item in station.search(ids=[SLC, "no product"]).items()] == [SLC]
    assert {each.id for each in station.get_collections()} >= {"sentinel-1-grd", "sentinel-3-olci-l1"}


@pytest.mark.parametrize("name", [S1, OLCI])
def test_a_product_can_be_fetched_in_parts(client, name):
    client.sandbox.station.pixels = 120
    href = client.item(name)["assets"]["product"]["href"]
    whole = requests.get(href, timeout=20)
    assert int(whole.headers["Content-Length"]) == len(whole.content)
    part = requests.get(href, headers={"Range": "bytes=10-", "If-Range": whole.headers["ETag"]}, timeout=10)
    assert (part.status_code, part.content) == (206, whole.content[10:])
    with zipfile.ZipFile(io.BytesIO(whole.content)) as content:
        (root,) = {member.split("/")[0] for member in content.namelist()}
    assert root == href.rpartition("/")[2].removesuffix(".zip")


def test_a_station_may_pack_its_products_otherwise(client):
    client.sandbox.station.suffix = ".tar.gz"
    client.sandbox.station.pixels = 120
    assert client.staged(S1)["status"] == "successful"
    (key,) = client.objects()
    assert key.endswith(f"{S1}/{S1}.SAFE.tar.gz")
    assert client.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read(2) == b"\x1f\x8b"


def test_what_the_station_does_not_have(client):
    wrong = L2A.replace("20240815T100601", "20241315T100601")
    for path in (
        f"/collections/sentinel-2-l2a/items/{wrong}",
        f"/collections/sentinel-2-l1c/items/{L2A}",
        "/collections/x",
        "/files/x.SAFE.zip",
        f"/files/{wrong}.SAFE.zip",
    ):
        assert client.ask("station", "GET", path).status_code == 404
    assert client.ask("station", "GET", f"/search?ids={wrong}").json()["features"] == []
    answer = client.ask("station", "GET", f"/files/{SLC}.SAFE.zip")
    assert answer.status_code == 404 and SLC in answer.json()["description"]  # listed, and cannot be made


def test_there_is_a_quicklook(client):
    for name in (S1, L2A):
        answer = requests.get(client.item(name)["assets"]["quicklook"]["href"], timeout=10)
        assert answer.headers["Content-Type"] in ("image/png", "image/jpeg") and answer.content[:4] != b"PK"


# --- what the services do to themselves ---


@pytest.mark.parametrize(
    ("kind", "wanted"), [("null-type", None), ("unknown-type", "XX_9_ZZZ___"), ("slow", "S2MSI2A")]
)
def test_a_product_type_may_be_missing_or_unknown_once(client, fault, kind, wanted):
    fault(kind, service="station", path=L2A if kind != "slow" else "", seconds=0.0)
    assert client.item(L1C)["properties"]["product:type"] == "S2MSI1C"
    assert [client.item()["properties"]["product:type"] for _ in range(2)] == [wanted, "S2MSI2A"]


def test_staging_may_be_successful_and_have_done_nothing(client, fault):
    fault("nothing-staged", service="staging")
    over = client.staged(L2A)
    assert (over["status"], over["message"]) == ("successful", "Finished without processing any tasks")
    assert client.objects() == {}
    assert client.staged(L2A)["message"] == "Finished"


def test_staging_may_fail(client, fault):
    fault("staging-failed", service="staging")
    over = client.staged(L2A)
    assert over["status"] == "failed" and over["message"].startswith("At least one of the tasks failed: ")
    assert client.objects() == {}


def test_a_staged_archive_may_be_damaged(client, fault):
    fault("corrupt-archive", service="staging")
    assert client.staged(L2A)["message"] == "Finished"
    (key,) = client.objects()
    with zipfile.ZipFile(io.BytesIO(client.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read())) as content:
        try:
            damaged = content.testzip()
        except Exception as error:  # noqa: BLE001 - depends on what lies in the middle
            damaged = str(error)
    assert damaged


def test_the_record_of_a_staging_job_may_get_lost(client, fault):
    client.sandbox.staging.seconds = 0.2
    fault("vanished-job", service="staging")
    job = client.stage(L2A)
    until = time.monotonic() + 10
    while client.ask("staging", "GET", f"/jobs/{job['jobID']}").status_code == 200:
        assert time.monotonic() < until
    client.sandbox.staging.jobs._threads[-1].join(10)
    assert client.catalog("GET", f"/collections/{STAGING}/items/{L2A}").status_code == 200


def test_the_rules_may_begin_to_mean_two_things(client, fault):
    fault("disputed-rules", service="osam")
    for _ in range(2):  # for good
        rows = client.ask("osam", "GET", "/internal/configuration").json()
        assert rows[0] == [SHOWN_OWNER, "*", "S0*", "30", "rspy-archive"]
    # Whoever takes the type for a pattern puts the product there; the catalogue does not look there.
    href = f"s3://rspy-archive/{SHOWN_OWNER}/{OUTPUT}/x.zarr"
    client.s3.put_object(Bucket="rspy-archive", Key=f"{SHOWN_OWNER}/{OUTPUT}/x.zarr/zarr.json", Body=b"{}")
    client.catalog("POST", "/collections", collection())
    assert client.catalog("POST", f"/collections/{OUTPUT}/items", converted("x", href)).status_code == 400


def test_somebody_else_may_publish_first(client, published, fault):
    fault("conflict", service="catalog", path="a-product")
    assert published("another").status_code == 201
    assert published("a-product").status_code == 409
    stored = client.catalog("GET", f"/collections/{OUTPUT}/items/a-product").json()
    assert "derived_from" not in {link["rel"] for link in stored["links"]}  # it is not the same
    wanted = converted("a-product", stored["assets"]["a-product"]["href"])
    assert client.catalog("PUT", f"/collections/{OUTPUT}/items/a-product", wanted).status_code == 200
    stored = client.catalog("GET", f"/collections/{OUTPUT}/items/a-product").json()
    assert "derived_from" in {link["rel"] for link in stored["links"]}


def test_the_catalogue_may_be_down_for_one_method(client, published, fault):
    published()
    fault("unavailable", service="catalog", method="DELETE", times=2)
    path = f"/collections/{OUTPUT}/items/a-product"
    answers = [client.catalog("DELETE", path) for _ in range(2)]
    assert {answer.status_code for answer in answers} == {503}
    assert client.catalog("GET", path).status_code == 200
    assert client.catalog("DELETE", path).status_code == 200


def test_no_key_is_in_the_log_of_requests(client):
    client.catalog("GET", "/")
    told = requests.get(f"{client.sandbox.url('control')}/requests", timeout=10)
    assert told.json()[-1]["authorized"] is True
    assert client.known["RSPY_APIKEY"] not in told.text
