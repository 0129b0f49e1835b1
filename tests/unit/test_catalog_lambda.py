"""The zip file for AWS Lambda holds what the handler needs, little else, and works on real events."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from helpers.catalog import lambda_zip
from helpers.catalog.store import connect
from helpers.errors import NotConfigured

#: What would make the function large, and start slowly.
UNWANTED = ("matplotlib", "papermill", "moto", "eopf", "rasterio", "xarray", "prefect", "helpers.sandbox")
#: As Lambda does it: files unpacked, the event in, the answer out; then a second call of the same process.
CALLS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from helpers.catalog.loading import handler
answers = [handler(event, None) for event in json.loads(sys.argv[2])]
import helpers.catalog.loading
print(json.dumps({"answers": answers, "from": helpers.catalog.loading.__file__, "modules": list(sys.modules)}))
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lambda")
    with zipfile.ZipFile(lambda_zip.build(folder / "loader.zip", dependencies=False)) as archive:
        archive.extractall(folder / "task")
    return folder / "task"


def record(name: str, body: object) -> dict:
    """An SQS record as Lambda gets it (AWS Lambda guide, "Using Lambda with Amazon SQS")."""
    return {
        "messageId": name,
        "receiptHandle": "AQEBwJnKyrHigUMZj6rYigCgxlaS3SLy0a...",
        "body": body if isinstance(body, str) else json.dumps(body),
        "attributes": {
            "ApproximateReceiveCount": "1",
            "SentTimestamp": "1772366400000",
            "SenderId": "AIDAIENQZJOLO23YVJ4VO",
            "ApproximateFirstReceiveTimestamp": "1772366400010",
        },
        "messageAttributes": {},
        "md5OfBody": "e4e68fb7bd0e697a0ae8f1bb342846b3",
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:us-west-2:123456789012:stac",
        "awsRegion": "us-west-2",
    }


def item(name: str) -> dict:
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "rtc",
        "geometry": {"type": "Point", "coordinates": [7.5, 47.5]},
        "bbox": [7.5, 47.5, 7.5, 47.5],
        "properties": {"datetime": "2026-03-01T12:00:00Z"},
        "links": [],
        "assets": {},
    }


COLLECTION = {
    "type": "Collection",
    "stac_version": "1.0.0",
    "id": "rtc",
    "description": "RTC",
    "license": "proprietary",
    "links": [],
    "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}},
}


def test_the_handler_works_from_the_zip_alone(unpacked, s3, sandbox, settings, catalog_database, tmp_path):
    s3.create_bucket(Bucket="items", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    s3.put_object(Bucket="items", Key="new items/é+1.json", Body=json.dumps(item("by event")))
    about = {"bucket": {"name": "items"}, "object": {"key": "new+items/%C3%A9%2B1.json", "sequencer": "0055"}}
    told = {"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "eventTime": "2026-03-01T12:00:00.000Z"}
    envelope = {"Type": "Notification", "TopicArn": "arn:aws:sns:us-west-2:1:t", "Timestamp": "2026-03-01T12:00:00Z"}
    first = [
        record("collection", COLLECTION),
        record("item", item("by itself")),
        record("event", {"Records": [told | {"s3": about}]}),
        record("sns", envelope | {"Message": json.dumps(item("by SNS"))}),
        record("test", {"Service": "Amazon S3", "Event": "s3:TestEvent"}),
        record("poison", item("poison") | {"geometry": None}),
        record("rubbish", "{"),
    ]
    nameless = record("", item("nameless") | {"geometry": None})
    second = [record("item", item("by itself")), {k: v for k, v in nameless.items() if k != "messageId"}]
    keys = {"AWS_ACCESS_KEY_ID": "aws_access_key_id", "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key"}
    environment = {name: getattr(settings, field).get_secret_value() for name, field in keys.items()}
    environment |= {"RECIPES_BACKEND": "live", "AWS_REGION": "us-west-2", "CATALOG_DSN": catalog_database}
    environment |= {"AWS_ENDPOINT_URL": str(settings.aws_endpoint_url)}
    events = json.dumps([{"Records": first}, {"Records": second}, {"Records": []}])
    # Isolated (-I): neither the project's folder nor its own copy of the package is in the way.
    command = [sys.executable, "-I", "-c", CALLS, str(unpacked), events]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    *logged, last = run.stdout.splitlines()
    answer = json.loads(last)
    assert answer["answers"] == [
        {"batchItemFailures": [{"itemIdentifier": "poison"}, {"itemIdentifier": "rubbish"}]},
        {"batchItemFailures": [{"itemIdentifier": ""}]},
        {"batchItemFailures": []},
    ]
    assert answer["from"].startswith(str(unpacked))
    assert not [name for name in answer["modules"] if name.startswith(UNWANTED)]
    assert [json.loads(line)["stored"] for line in logged] == [3, 0, 0]
    assert "geometry" in json.loads(logged[0])["failed"]["poison"]
    with connect(catalog_database) as store:
        assert {one["id"] for one in store.search()} == {"by itself", "by event", "by SNS"}
        assert set(store.failures(["poison", "rubbish"])) == {"poison", "rubbish"}


def test_the_zip_holds_the_loader_and_the_schemas_and_is_the_same_each_time(unpacked, tmp_path):
    files = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*.*")}
    assert {"helpers/catalog/loading.py", "helpers/catalog/pgstac.py", "helpers/schemas/all_packed.json"} <= files
    assert not [name for name in files if "sandbox" in name or "notebook" in name]
    first, second = (lambda_zip.build(tmp_path / f"{n}.zip", dependencies=False).read_bytes() for n in range(2))
    assert first == second


def test_without_dependencies_it_says_what_the_layer_must_bring(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lambda_zip, "_copy", lambda root: (root / "ours.py").touch())
    command = ["lambda_zip", str(tmp_path / "loader.zip"), "--no-dependencies", "--architecture", "arm64"]
    monkeypatch.setattr(sys, "argv", command)
    lambda_zip.main()
    *_, last = capsys.readouterr().out.splitlines()
    assert "layer must bring" in last and "aarch64" in last
    assert all(name in last for name in lambda_zip.DEPENDENCIES)


def test_without_uv_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(NotConfigured, match="--no-dependencies"):
        lambda_zip.build(tmp_path / "loader.zip")
    assert not (tmp_path / "loader.zip").exists()
