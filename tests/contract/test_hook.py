"""The Hook stand-in against the published facts of the service.

Everything is asked over HTTP. The service's forms, names and numbers are written out here once more, as they were
seen; the service itself is the other place. Where a test needs time to pass, it moves the clock of a sandbox that
stands still otherwise.
"""

import io
import json
import time
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, quote, urlsplit

import boto3
import pytest
import rasterio
import requests
from botocore.config import Config
from botocore.exceptions import ClientError

from helpers.sandbox import Deployment, Sandbox
from helpers.sandbox.clock import Clock
from helpers.sandbox.products import granule_footprint

L1C = "S2A_MSIL1C_20230910T050701_N0509_R019_T47VLH_20230910T074321.SAFE"
OTHER_L1C = "S2B_MSIL1C_20231001T102739_N0509_R108_T32TMS_20231001T123227.SAFE"
L2A = "S2A_MSIL2A_20230906T102601_N0509_R108_T32UMA_20230906T164400.SAFE"
GRD = "S1A_IW_GRDH_1SDV_20230910T054256_20230910T054321_050261_060CD9_BF21.SAFE"
SLC = "S1A_IW_SLC__1SDV_20240121T155314_20240121T155341_052207_064FA6_3AB9"
S3_SCENE = "S3A_SL_1_RBT____20161110T022134_20161110T022434_20181003T070309_0179_010_374______LR1_R_NT_003.SEN3"
COLLECTION = "EO.ESA.DAT.SENTINEL-2.MSI.L1C"
BUCKET = "my-harvest"
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)

WORKFLOWS = {
    "1": "card_bs", "2": "lai", "3": "odp-test", "5": "card_cohinf", "6": "c2rcc", "8": "copdem",
    "10": "dedl_hello_world", "11": "data-harvest", "45": "sen2cor", "46": "maja",
}  # fmt: skip
#: Options of data-harvest: default, values, "Required".
OPTIONS = {
    "output_storage": (None, ["PRIVATE", "TEMPORARY"], True),
    "output_s3_endpoint_url": (None, None, True),
    "output_s3_access_key": (None, None, True),
    "output_s3_secret_key": (None, None, True),
    "output_s3_path": (None, None, True),
    "source_type": ("EXTERNAL", ["DESP", "EXTERNAL"], True),
    "source_catalogue_api_url": (None, None, True),
    "source_catalogue_api_type": (None, ["STAC", "ODATA"], True),
    "source_token_url": (None, None, True),
    "source_grant_type": ("PASSWORD", ["PASSWORD", "CLIENT_CREDENTIALS"], True),
    "source_auth_header_name": ("Authorization", None, True),
    "source_username": (None, None, True),
    "source_password": (None, None, True),
    "source_client_id": (None, None, True),
    "source_client_secret": (None, None, False),
    "source_catalogue_collection": (None, None, False),
    "desp_source_username": (None, None, True),
    "desp_source_password": (None, None, True),
    "desp_source_collection": (None, None, True),
}


class Client:
    """One user of the service."""

    def __init__(self, sandbox: Sandbox, user: str = "sandbox-user", *roles: str):
        self.sandbox, self.root = sandbox, sandbox.environment["HOOK_API_URL"]
        self.headers = {"Authorization": f"Bearer {sandbox.identity.token(user, roles=roles or None)}"}

    def ask(self, method: str, path: str, **more) -> requests.Response:
        return requests.request(method, self.root + path, headers=self.headers, timeout=10, **more)

    def get(self, path: str) -> dict:
        answer = self.ask("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def send(self, body: object) -> requests.Response:
        return self.ask("POST", "BatchOrder/OData.CSC.Order", data=json.dumps(body))

    def order(self, *identifiers: str, workflow: str = "data-harvest", name: str = "an order", **options) -> int:
        answer = self.send(self.body(*identifiers or [L1C], workflow=workflow, name=name, **options))
        assert answer.status_code == 201, answer.text
        return answer.json()["value"]["Id"]

    def body(self, *identifiers: str, workflow: str = "data-harvest", name: str = "an order", **options) -> dict:
        """An order into temporary storage, from DESP where the workflow takes a source."""
        custom = workflow in ("copdem", "maja", "dedl_hello_world")
        options = {"output_storage": "TEMPORARY"} | ({} if custom else self.desp()) | options
        return {
            "Name": name,
            "WorkflowName": workflow,
            "IdentifierList": list(identifiers),
            "WorkflowOptions": [{"Name": n, "Value": v} for n, v in options.items() if v is not None],
        }

    def desp(self) -> dict:
        known = self.sandbox.environment
        return {
            "source_type": "DESP",
            "desp_source_username": known["DESP_USERNAME"],
            "desp_source_password": known["DESP_PASSWORD"],
            "desp_source_collection": COLLECTION,
        }

    def external(self, **more) -> dict:
        known = self.sandbox.environment
        return dict.fromkeys(self.desp()) | {
            "source_type": "EXTERNAL",
            "source_catalogue_api_url": known["HOOK_EXTERNAL_CATALOGUE_URL"],
            "source_catalogue_api_type": "STAC",
            "source_token_url": known["HOOK_EXTERNAL_TOKEN_URL"],
            "source_grant_type": "PASSWORD",
            "source_auth_header_name": "Authorization",
            "source_username": known["HOOK_EXTERNAL_USERNAME"],
            "source_password": known["HOOK_EXTERNAL_PASSWORD"],
            "source_client_id": known["HOOK_EXTERNAL_CLIENT_ID"],
            "source_client_secret": "",
            "source_catalogue_collection": COLLECTION,
            **more,
        }

    def private(self, **more) -> dict:
        known = self.sandbox.environment
        return {
            "output_storage": "PRIVATE",
            "output_s3_endpoint_url": known["HOOK_OUTPUT_STORAGE_URL"],
            "output_s3_access_key": known["HOOK_OUTPUT_STORAGE_ACCESS_KEY"],
            "output_s3_secret_key": known["HOOK_OUTPUT_STORAGE_SECRET_KEY"],
            "output_s3_path": f"s3://{BUCKET}/dedl-data-harvest-x",
            **more,
        }

    def items(self, order_id: int) -> list[dict]:
        return self.get(f"BatchOrder({order_id})/Products")["value"]

    def states(self, order_id: int) -> list[str]:
        return [item["Status"] for item in self.items(order_id)]

    def finished(self, order_id: int) -> list[dict]:
        """The items once they are over: polled as a client does, or with the clock where that stands hook."""
        deadline = time.monotonic() + 20
        while not set(self.states(order_id)) <= {"completed", "failed", "cancelled"}:
            assert time.monotonic() < deadline, self.items(order_id)
            self.pass_time(1000) if self.sandbox.clock._frozen_at else time.sleep(0.05)
        return self.items(order_id)

    def outcome(self, *identifiers: str, **options) -> tuple[str, str]:
        (item,) = self.finished(self.order(*identifiers, **options))
        return item["Status"], item.get("StatusMessage")

    def pass_time(self, seconds: float) -> None:
        control(self.sandbox, "/clock", {"advance": seconds})


def control(sandbox: Sandbox, path: str, body: object) -> dict:
    answer = requests.post(sandbox.url("control") + path, json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture
def live(sandbox) -> Client:
    """A service in real time."""
    return Client(sandbox)


@pytest.fixture(scope="module")
def standing_still():
    plays = Deployment(hook_queued=10, hook_processing=100)
    with Sandbox(clock=Clock(NOON), deployment=plays) as sandbox:
        yield sandbox


@pytest.fixture
def hook(standing_still) -> Client:
    """A service whose items wait for 10 s and take 100 s, by a clock that only moves when it is told to."""
    standing_still.reset()
    return Client(standing_still)


@pytest.fixture(scope="module")
def reader(standing_still) -> Client:
    """The same, as it was left: for questions whose answers do not depend on orders."""
    return Client(standing_still)


def with_role(client: Client, role: str, user: str = "somebody") -> Client:
    return Client(client.sandbox, user, "hook-workflows", role)


@pytest.fixture
def bucket(hook):
    """The user's bucket, seen with the pair of keys that the order is given."""
    known = hook.sandbox.environment
    client = boto3.client(
        "s3",
        endpoint_url=known["HOOK_OUTPUT_STORAGE_URL"],
        aws_access_key_id=known["HOOK_OUTPUT_STORAGE_ACCESS_KEY"],
        aws_secret_access_key=known["HOOK_OUTPUT_STORAGE_SECRET_KEY"],
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=BUCKET)
    return client


def objects(client) -> dict[str, int]:
    return {o["Key"]: o["Size"] for o in client.list_objects_v2(Bucket=BUCKET).get("Contents", [])}


# --- what the published tutorial does ---


def test_the_calls_of_the_published_tutorial_run_unchanged(sandbox, live):
    root, headers = live.root, live.headers
    listed = requests.get(f"{root}Workflows", headers=headers).json()
    assert len(listed["value"]) == 10
    listed = requests.get(f"{root}Workflows?$orderby=Id asc", headers=headers).json()
    assert [w["Name"] for w in listed["value"]] == list(WORKFLOWS.values())
    (found,) = requests.get(
        f"{root}Workflows?$expand=WorkflowOptions&$filter=(Name eq 'data-harvest')", headers=headers
    ).json()["value"]
    spelled = f"{root}Workflows?$filter=Name+eq+'data-harvest'&$expand=WorkflowOptions"
    assert requests.get(spelled, headers=headers).json()["value"] == [found]

    body = live.body(L1C, name="Tutorial data-harvest - x-1")
    answer = requests.post(root + "BatchOrder/OData.CSC.Order", json.dumps(body), headers=headers)
    order_id = answer.json()["value"]["Id"]
    named = requests.get(f"{root}ProductionOrders?$filter=(endswith(Name,'x-1'))", headers=headers).json()["value"]
    by_id = requests.get(root + "ProductionOrders", params={"$filter": f"id eq {order_id}"}, headers=headers).json()
    assert [o["Id"] for o in named] == [o["Id"] for o in by_id["value"]] == [str(order_id)]

    live.finished(order_id)
    (item,) = requests.get(f"{root}BatchOrder({order_id})/Products", headers=headers).json()["value"]
    url = f"{root}BatchOrder({order_id})/Product({item['Id']})/$value"
    answer = requests.get(url, headers=headers, allow_redirects=True)
    assert zipfile.ZipFile(io.BytesIO(answer.content)).testzip() is None
    assert answer.content == requests.get(item["DownloadLink"], timeout=10).content
    # The bearer stays behind: the storage is another host.
    assert {r.authorized for r in sandbox.traffic.received("hook-storage")} == {False}
    assert {r.authorized for r in sandbox.traffic.received("hook")} == {True}


# --- workflows ---


def test_workflows_are_ten_in_no_order_unless_asked(reader):
    listed = reader.get("Workflows")
    assert listed["@odata.context"] == "$metadata#Workflows/$entity"
    ids = [w["Id"] for w in listed["value"]]
    assert sorted(ids) == sorted(WORKFLOWS) and ids != list(WORKFLOWS)
    assert [w["Id"] for w in reader.get("Workflows?$orderby=Id asc")["value"]] == list(WORKFLOWS)
    assert [w["Id"] for w in reader.get("Workflows?$orderby=Id desc")["value"]] == list(WORKFLOWS)[::-1]
    names = [w["Name"] for w in reader.get("Workflows?$orderby=Name")["value"]]
    assert names == sorted(WORKFLOWS.values())


def test_a_workflow_has_the_published_form(reader):
    (harvest,) = reader.get("Workflows?$filter=(Name eq 'data-harvest')")["value"]
    assert harvest.pop("Description")
    assert harvest == {
        "Id": "11", "Uuid": None, "Name": "data-harvest", "DisplayName": "Data harvest", "Documentation": None,
        "InputProductType": None, "InputProductTypes": [], "OutputProductType": None, "OutputProductTypes": [],
        "WorkflowVersion": "0.0.1", "CustomInputSource": False, "InputProductStatusOffline": False,
    }  # fmt: skip


def options_of(hook: Client, workflow: str) -> dict[str, dict]:
    (found,) = hook.get(f"Workflows?$expand=WorkflowOptions&$filter=Name eq '{workflow}'")["value"]
    assert list(found).index("WorkflowOptions") == list(found).index("WorkflowVersion") + 1
    return {option["Name"]: option for option in found["WorkflowOptions"]}


def test_options_come_with_expand_and_are_those_of_the_table(reader):
    options = options_of(reader, "data-harvest")
    assert {tuple(option) for option in options.values()} == {
        ("Name", "Description", "Type", "Default", "Value", "Required")
    }
    assert {option["Type"] for option in options.values()} == {"str"}
    assert {tuple(value) for o in options.values() for value in o["Value"] or []} == {("value", "condition")}
    seen = {
        name: (o["Default"], o["Value"] and [value["value"] for value in o["Value"]], o["Required"])
        for name, o in options.items()
    }
    assert seen == OPTIONS


def test_other_workflows_have_the_options_that_were_seen(reader):
    pairs = options_of(reader, "card_cohinf")
    assert [value["value"] for value in pairs["card_producttype"]["Value"]] == ["CARD_COH", "CARD_INF"]
    assert pairs["timespan"]["Type"] == "int"
    series = options_of(reader, "maja")
    assert [value["value"] for value in series["input_type"]["Value"]] == ["TIMESPAN"]
    assert {"timeseries_end_id", "timespan"} <= set(series)
    bucket = {f"source_s3_{name}" for name in ("path", "endpoint_url", "access_key", "secret_key")}
    assert bucket <= set(options_of(reader, "dedl_hello_world"))
    custom = ("copdem", "maja", "dedl_hello_world")
    with_source = {name for name in WORKFLOWS.values() if "source_type" in options_of(reader, name)}
    assert with_source == set(WORKFLOWS.values()) - set(custom)


def test_older_option_values_are_plain_texts(reader):
    control(reader.sandbox, "/faults", {"kind": "old-options", "service": "hook"})
    reader.get("Workflows")  # has no options
    assert options_of(reader, "data-harvest")["source_type"]["Value"] == ["DESP", "EXTERNAL"]
    assert options_of(reader, "data-harvest")["source_type"]["Value"][0] == {"value": "DESP", "condition": None}


# --- filters and pages ---

FILTERS = {
    "Name eq 'lai'": {"lai"},
    "(Name eq 'lai')": {"lai"},
    "((Name eq 'lai') or (Name eq 'maja'))": {"lai", "maja"},
    "id eq 11": {"data-harvest"},
    "Id eq '11'": {"data-harvest"},
    "Id gt 11": {"sen2cor", "maja"},
    "Id le 2 and not (Name eq 'lai')": {"card_bs"},
    "not endswith(Name,'a') and Id ge 10": {"dedl_hello_world", "data-harvest", "sen2cor"},
    "startswith(Name,'card')": {"card_bs", "card_cohinf"},
    "contains(InputProductType,'MSI1C')": {"c2rcc", "maja", "sen2cor"},
    "Name in ('lai', 'maja')": {"lai", "maja"},
    "Name in ('lai')": {"lai"},
    "Uuid eq null and Id lt 2": {"card_bs"},
    "InputProductType eq null": {"data-harvest", "odp-test"},
    "InputProductType ne null and Id lt 3": {"card_bs", "lai"},
    "CustomInputSource eq false and Id eq 5": {"card_cohinf"},
    "Name eq 'LAI'": set(),  # values keep their case,
    "NAME eq 'lai'": {"lai"},  # and names of properties do not
    "DisplayName eq 'it''s'": set(),
}
BAD_FILTERS = {
    "Name eq data-harvest": "Failed to parse",
    "(Name eq 'lai'": "Failed to parse",
    "": "Failed to parse",
    "Name ~ 'lai'": "Failed to tokenize",
    "Flavour eq 'sweet'": "Could not find a property named 'Flavour'",
    "resembles(Name,'lai')": "Unknown function",
    "length(Name) eq 3": "not supported",
    "Name": "not a condition",
}


@pytest.mark.parametrize("filter_", FILTERS)
def test_filters(reader, filter_):
    raw = {w["Name"] for w in reader.get(f"Workflows?$filter={filter_}")["value"]}
    encoded = {w["Name"] for w in reader.get(f"Workflows?%24filter={quote(filter_)}")["value"]}
    plus = {w["Name"] for w in reader.get(f"Workflows?$filter={filter_.replace(' ', '+')}")["value"]}
    assert raw == encoded == plus == FILTERS[filter_]


@pytest.mark.parametrize("collection", ["Workflows", "ProductionOrders", "BatchOrder"])
def test_filters_that_cannot_be_understood_are_400(reader, collection):
    for filter_, reason in BAD_FILTERS.items():
        if filter_ == "Name" and collection != "Workflows":
            continue  # shows only where there is an entity to try it on
        answer = reader.ask("GET", f"{collection}?$filter={filter_}")
        assert (answer.status_code, reason in answer.json()["detail"]) == (400, True), (filter_, answer.text)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("$orderby=Flavour", 400), ("$orderby=Id sideways", 400), ("$expand=Everything", 400), ("$top=1001", 422),
        ("$top=-1", 422), ("$top=ten", 422), ("$skip=-1", 422), ("$count=perhaps", 422), ("$format=xml", 422),
    ],
)  # fmt: skip
def test_other_query_options_that_cannot_be_understood(reader, query, status):
    answer = reader.ask("GET", f"Workflows?{query}")
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    if status == 422:
        name = query.split("=")[0]
        assert [(set(each), each["loc"]) for each in detail] == [({"loc", "msg", "type"}, ["query", name])]
    else:
        assert isinstance(detail, str)


def test_pages_are_followed_by_their_next_link(reader):
    page = reader.get("Workflows?$orderby=Id asc&$filter=Id gt 1&$top=4&$count=true")
    seen, pages = [w["Id"] for w in page["value"]], 1
    assert page["@odata.count"] == 9
    while "@odata.nextLink" in page:
        assert page["@odata.nextLink"].startswith(reader.root + "Workflows?")
        page = requests.get(page["@odata.nextLink"], headers=reader.headers, timeout=10).json()
        seen, pages = seen + [w["Id"] for w in page["value"]], pages + 1
        assert page["@odata.count"] == 9
    assert (seen, pages) == (list(WORKFLOWS)[1:], 3)
    assert "@odata.nextLink" not in reader.get("Workflows") and "@odata.count" not in reader.get("Workflows")
    assert [w["Id"] for w in reader.get("Workflows?$orderby=Id&$skip=8")["value"]] == ["45", "46"]
    assert reader.get("Workflows?$top=0&$count=true") == {
        "@odata.context": "$metadata#Workflows/$entity", "@odata.count": 10, "value": [],
    }  # fmt: skip


# --- ordering ---


@pytest.mark.parametrize("content_type", [None, "application/json", "text/plain", "application/x-www-form-urlencoded"])
def test_an_order_is_answered_in_the_published_form_whatever_its_content_type(hook, content_type):
    body = hook.body(L1C, name="my order")
    headers = hook.headers | ({"Content-Type": content_type} if content_type else {})
    answer = requests.post(hook.root + "BatchOrder/OData.CSC.Order", json.dumps(body), headers=headers, timeout=10)
    assert answer.status_code == 201
    assert answer.json()["@odata.context"] == "#metadata/Odata.CSC.BatchOrder"
    order = answer.json()["value"]
    options = order.pop("WorkflowOptions")
    uuid = order.pop("KeycloakUUID")
    assert len(uuid) == 36
    stamp = hook.sandbox.clock.now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert order == {
        "Name": "my order", "Priority": 1, "WorkflowName": "data-harvest", "NotificationEndpoint": None,
        "NotificationEpUsername": None, "NotificationStatus": None, "Id": hook.sandbox.hook.first_order,
        "Status": "queued", "SubmissionDate": stamp, "EstimatedDate": None, "WorkflowId": 17,
        "WorkflowDisplayName": "Data harvest", "WorkflowVersion": "0.0.1",
    }  # fmt: skip
    own = [{"Name": "platform", "Value": "dedl"}, {"Name": "version", "Value": "0.0.1"}]
    assert options[:2] == own
    assert [o["Name"] for o in options[2:]] == [o["Name"] for o in body["WorkflowOptions"]]


def test_no_two_sandboxes_have_an_order_id_in_common(hook):
    """A client that keeps files by order id would take another world's for its own."""
    first = hook.sandbox.hook.first_order
    hook.sandbox.clock.advance(1)
    hook.sandbox.reset()
    assert hook.sandbox.hook.first_order >= first + 10


def test_secrets_are_echoed_as_tokens_and_user_names_in_the_clear(hook):
    body = hook.body(**hook.private() | hook.external(source_client_secret="a-client-secret"))
    body |= {"NotificationEpUsername": "me", "NotificationEpPassword": "a-callback-password", "IdentifierList": [L1C]}
    answer = hook.send(body)
    order = answer.json()["value"]
    sent = {o["Name"]: o["Value"] for o in body["WorkflowOptions"]}
    echo = {o["Name"]: o["Value"] for o in order["WorkflowOptions"] if o["Name"] in sent}
    secret = {"output_s3_secret_key", "source_password", "source_client_secret"}
    assert {name for name in sent if echo[name] != sent[name]} == secret
    assert all(echo[name].startswith("gAAAA") for name in secret)
    assert order["NotificationEpUsername"] == "me" and "IdentifierList" not in order
    texts = [answer.text] + [
        hook.ask("GET", path).text for path in (f"BatchOrder({hook.sandbox.hook.first_order})", "BatchOrder")
    ]
    texts.append(hook.ask("GET", "ProductionOrders").text)
    texts.append(str(hook.sandbox.hook.orders))
    for value in [sent[name] for name in secret] + ["a-callback-password"]:
        assert not any(value in text for text in texts)
    (production,) = hook.get("ProductionOrders")["value"]
    assert {o["Name"] for o in production["WorkflowOptions"]} == {"platform", "version", *sent} - secret


def test_values_of_options_may_be_numbers(hook):
    series = {"input_type": "TIMESPAN", "timeseries_end_id": L1C, "timespan": 18}
    for timespan in (18, "18"):
        order_id = hook.order(workflow="maja", **series | {"timespan": timespan})
        options = hook.get(f"BatchOrder({order_id})")["value"]["WorkflowOptions"]
        assert {"Name": "timespan", "Value": timespan} in options


BAD_BODIES = {
    "no WorkflowName": (lambda b: b.pop("WorkflowName"), ["body", "WorkflowName"]),
    "WorkflowName is null": (lambda b: b.update(WorkflowName=None), ["body", "WorkflowName"]),
    "no identifiers": (lambda b: b.pop("IdentifierList"), ["body", "IdentifierList"]),
    "an empty list": (lambda b: b.update(IdentifierList=[]), ["body", "IdentifierList"]),
    "identifiers as one text": (lambda b: b.update(IdentifierList=L1C), ["body", "IdentifierList"]),
    "a number among them": (lambda b: b.update(IdentifierList=[L1C, 5]), ["body", "IdentifierList", 1]),
    "options as a dictionary": (lambda b: b.update(WorkflowOptions={"a": "b"}), ["body", "WorkflowOptions"]),
    "an option without a value": (lambda b: b["WorkflowOptions"][1].pop("Value"),
                                  ["body", "WorkflowOptions", 1, "Value"]),
    "a priority too high": (lambda b: b.update(Priority=101), ["body", "Priority"]),
    "an unknown option": (lambda b: b["WorkflowOptions"][2].update(Name="input_catalogue_url"),
                          ["body", "WorkflowOptions", 2, "Name"]),
    "a value that is none of the list": (lambda b: b["WorkflowOptions"][0].update(Value="temporary"),
                                         ["body", "WorkflowOptions", 0, "Value"]),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_BODIES)
def test_bad_bodies_are_422_with_a_list(reader, what):
    change, place = BAD_BODIES[what]
    body, before = reader.body(L1C), len(reader.get("BatchOrder")["value"])
    change(body)
    answer = reader.send(body)
    assert answer.status_code == 422
    detail = answer.json()["detail"]
    assert all(set(each) == {"loc", "msg", "type"} for each in detail)
    assert place == detail[0]["loc"][: len(place)]
    assert len(reader.get("BatchOrder")["value"]) == before
    assert reader.sandbox.environment["DESP_PASSWORD"] not in answer.text


def test_no_json_and_no_number_are_422_too(reader):
    answer = reader.ask("POST", "BatchOrder/OData.CSC.Order", data="Name=x")
    assert answer.status_code == 422 and answer.json()["detail"][0]["loc"] == ["body"]
    series = {"input_type": "TIMESPAN", "timeseries_end_id": L1C, "timespan": "a week"}
    answer = reader.send(reader.body(L1C, workflow="maja", **series))
    assert answer.status_code == 422 and "integer" in answer.json()["detail"][0]["msg"]


def test_an_unknown_workflow_is_404(reader):
    answer = reader.send(reader.body(L1C) | {"WorkflowName": "data_harvest"})
    assert (answer.status_code, answer.json()) == (404, {"detail": "Workflow data_harvest not found"})


def missing(answer: requests.Response) -> set[str]:
    """The options that a 400 asks for; none when the order was taken."""
    if answer.status_code == 201:
        return set()
    assert answer.status_code == 400, answer.text
    return set(answer.json()["detail"]["message"].removeprefix("Missing workflow options: ").split(", "))


S3_OUT = {f"output_s3_{name}" for name in ("endpoint_url", "access_key", "secret_key", "path")}
CATALOGUE = {"source_catalogue_api_url", "source_catalogue_api_type", "source_token_url", "source_client_id"}
LOGIN = {"source_username", "source_password"}
DESP = {"desp_source_username", "desp_source_password", "desp_source_collection"}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"output_storage"} | CATALOGUE | LOGIN),  # no source_type: EXTERNAL
        ({"output_storage": "PRIVATE", "source_type": "DESP"}, S3_OUT | DESP),
        ({"output_storage": "TEMPORARY", "source_type": "DESP"}, DESP),
        ({"output_storage": "TEMPORARY", "source_type": "EXTERNAL"}, CATALOGUE | LOGIN),
        ({"output_storage": "TEMPORARY", "source_type": "EXTERNAL", "source_grant_type": "CLIENT_CREDENTIALS"},
         CATALOGUE),
    ],
)  # fmt: skip
def test_required_means_required_by_the_storage_and_the_source(reader, given, wanted):
    everything = dict.fromkeys(reader.desp()) | given
    assert missing(reader.send(reader.body(L1C, **{"output_storage": None} | everything))) == wanted


def test_a_temporary_order_from_desp_needs_five_of_seventeen_required_options(hook):
    required = [name for name, (*_, required) in OPTIONS.items() if required]
    body = hook.body(L1C)
    assert len(required) - len(body["WorkflowOptions"]) == 12
    assert hook.send(body).status_code == 201


def test_custom_hooks_take_no_source(reader):
    assert missing(reader.send(reader.body(L1C, workflow="copdem"))) == set()
    answer = reader.send(reader.body(L1C, workflow="copdem", source_type="DESP"))
    assert answer.status_code == 422 and "source_type" in answer.json()["detail"][0]["msg"]
    assert missing(reader.send(reader.body("Custom Hook", workflow="dedl_hello_world"))) == {
        f"source_s3_{name}" for name in ("path", "endpoint_url", "access_key", "secret_key")
    }


# --- who may do what ---


@pytest.mark.parametrize("path", ["Workflows", "BatchOrder", "BatchOrder(1)", "ProductionOrders", "nothing"])
def test_without_a_good_token_everything_is_401(reader, path):
    expired = reader.sandbox.identity.token("sandbox-user", expires_in=-60)
    for header in ({}, {"Authorization": f"Bearer {expired}"}, {"Authorization": "Bearer x"}, {"Authorization": "x"}):
        answer = requests.get(reader.root + path, headers=header, timeout=10)
        assert answer.status_code == 401 and isinstance(answer.json()["detail"], str)


def test_without_its_role_everything_is_403(reader):
    stranger = Client(reader.sandbox, "stranger", "hook-high")
    for method, path in [("GET", "Workflows"), ("GET", "BatchOrder"), ("POST", "BatchOrder/OData.CSC.Order")]:
        answer = stranger.ask(method, path)
        assert (answer.status_code, answer.json()) == (403, {"detail": "Role hook-workflows is required"})


def test_orders_belong_to_a_user(hook):
    order_id = hook.order()
    (item,) = hook.finished(order_id)
    other = with_role(hook, "hook-high")
    assert other.get("BatchOrder")["value"] == other.get("ProductionOrders")["value"] == []
    own = f"BatchOrder({order_id})"
    for method, path in [
        ("GET", own), ("GET", f"{own}/Products"), ("GET", f"{own}/Product({item['Id']})"),
        ("GET", f"{own}/Product({item['Id']})/$value"), ("POST", f"{own}/OData.CSC.Cancel"),
        ("POST", f"ProductionOrder({order_id})/OData.CSC.Cancel"), ("GET", f"ProductionOrders({order_id})"),
    ]:  # fmt: skip
        answer = other.ask(method, path, allow_redirects=False)
        assert (answer.status_code, answer.json()) == (404, {"detail": f"Order {order_id} not found"}), path
        assert hook.ask(method, path, allow_redirects=False).status_code in (200, 307), path


def test_a_service_account_orders_too(hook):
    known = hook.sandbox.environment
    hook.sandbox.identity.add_client("robot", "robot-secret", roles=("hook-workflows", "hook-low"))
    form = {"grant_type": "client_credentials", "client_id": "robot", "client_secret": "robot-secret"}
    token = requests.post(known["HOOK_EXTERNAL_TOKEN_URL"], data=form, timeout=10).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    body = json.dumps(hook.body(L1C))
    answer = requests.post(hook.root + "BatchOrder/OData.CSC.Order", body, headers=headers, timeout=10)
    assert answer.status_code == 201
    assert hook.get("BatchOrder")["value"] == []


# --- states ---


@pytest.mark.parametrize(("role", "at_a_time"), [("hook-low", 1), ("hook-medium", 2), ("hook-high", 5)])
def test_as_many_items_at_a_time_as_the_role_says(hook, role, at_a_time):
    client = with_role(hook, role)
    order_id = client.order(*[L1C] * 7)
    assert client.states(order_id) == ["queued"] * 7
    client.pass_time(9.9)
    assert client.states(order_id) == ["queued"] * 7
    client.pass_time(0.1)
    done = 0
    while done < 7:
        running = min(at_a_time, 7 - done)
        states = client.states(order_id)
        assert states == ["completed"] * done + ["in_progress"] * running + ["queued"] * (7 - done - running)
        client.pass_time(99.9)
        assert client.states(order_id) == states
        client.pass_time(0.1)
        done += running
    assert client.states(order_id) == ["completed"] * 7


def test_the_places_are_the_users_not_the_orders(hook):
    first, second = hook.order(L1C, L1C), hook.order(L1C)
    other = with_role(hook, "hook-low")
    third = other.order(L1C)
    hook.pass_time(10)
    assert hook.states(first) + hook.states(second) == ["in_progress", "in_progress", "queued"]
    assert other.states(third) == ["in_progress"]


def test_a_higher_priority_is_served_first(hook):
    client = with_role(hook, "hook-low")
    low, high = client.order(), client.send(client.body(L1C) | {"Priority": 9}).json()["value"]["Id"]
    client.pass_time(10)
    assert (client.states(low), client.states(high)) == (["queued"], ["in_progress"])


def test_a_long_time_passes_step_by_step(hook):
    """Everything that was due gets the time it was due at, however late one looks."""
    client = with_role(hook, "hook-low")
    order_id = client.order(L1C, L1C, L1C)
    client.pass_time(100_000)
    start = hook.sandbox.clock.now() - timedelta(seconds=100_000)
    ends = [datetime.fromisoformat(item["CompletedDate"]) for item in client.items(order_id)]
    assert [(end - start).total_seconds() for end in ends] == [110, 210, 310]


COUNTS = ("processing", "downloading", "done", "already_done", "queued", "failed_or_cancelled")


def summary(client: Client, order_id: int) -> tuple:
    order = client.get(f"BatchOrder({order_id})")
    assert order["@odata.context"] == "#metadata/Odata.CSC.BatchOrder"
    found = order["value"]["Summary"]
    assert list(found) == ["status", *(f"{c}_order_items_count" for c in COUNTS), "last_order_item_change_timestamp"]
    assert found["status"] == order["value"]["Status"]
    return found["status"], *(found[f"{count}_order_items_count"] for count in COUNTS)


def test_an_order_sums_up_its_items(hook):
    order_id = hook.order(L1C, L1C, L1C)
    began = hook.sandbox.clock.now()
    assert summary(hook, order_id) == ("queued", 0, 0, 0, 0, 3, 0)
    hook.pass_time(10)
    assert summary(hook, order_id) == ("in_progress", 2, 0, 0, 0, 1, 0)
    control(hook.sandbox, "/faults", {"kind": "failed-item", "service": "hook"})
    hook.pass_time(100)
    assert summary(hook, order_id) == ("in_progress", 1, 0, 1, 0, 0, 1)
    hook.pass_time(100)
    assert summary(hook, order_id) == ("failed", 0, 0, 2, 0, 0, 1)  # there is no "partially completed"
    changed = hook.get(f"BatchOrder({order_id})")["value"]["Summary"]["last_order_item_change_timestamp"]
    assert datetime.fromisoformat(changed) == began + timedelta(seconds=210)
    (listed,) = hook.get("BatchOrder")["value"]
    alone = hook.get(f"BatchOrder({order_id})")["value"]
    assert listed == {name: value for name, value in alone.items() if name != "Summary"}


def test_an_item_has_nothing_but_nulls_until_it_is_done(hook):
    order_id = hook.order(L1C)
    submitted = hook.sandbox.clock.now()
    path = f"BatchOrder({order_id})/Products"
    for seconds, status in ((0, "queued"), (10, "in_progress")):
        hook.pass_time(seconds)
        answer = hook.get(path)
        assert answer["@odata.context"] == "#metadata/OData.CSC.BatchorderItem"
        assert answer["value"] == [
            {
                "Id": hook.sandbox.hook.first_item, "BatchOrderId": order_id, "InputProductReference": L1C,
                "SubmissionDate": submitted.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "Status": status, "ProcessedName": None, "ProcessedSize": None, "OutputUUID": None,
                "CompletedDate": None, "DownloadLink": None, "NotificationStatus": None,
            }
        ]  # fmt: skip
    assert hook.ask("GET", f"BatchOrder({order_id})/Product({hook.sandbox.hook.first_item})/$value").status_code == 404
    hook.pass_time(100)
    (item,) = hook.get(path)["value"]
    assert (item["Status"], item["StatusMessage"]) == ("completed", "Processing finished successfully")
    assert item["ProcessedName"] == L1C and item["OutputUUID"] is None
    assert datetime.fromisoformat(item["CompletedDate"]) == submitted + timedelta(seconds=110)
    assert hook.get(f"BatchOrder({order_id})/Product({hook.sandbox.hook.first_item})")["value"] == item
    assert hook.ask("GET", f"BatchOrder({order_id})/Product(1)").status_code == 404


def test_production_orders_are_those_with_one_item_in_a_form_of_their_own(hook):
    order_id = hook.order(L1C, name="alone")
    hook.order(L1C, L1C, name="a pair")
    messages = []
    for seconds in (0, 10, 100):
        hook.pass_time(seconds)
        listed = hook.get("ProductionOrders")
        (order,) = listed["value"]
        messages.append((order["Status"], order["StatusMessage"]))
    assert messages == [
        ("queued", "request is queued for processing"),
        ("in_progress", "request is under processing"),
        ("completed", "requested output product is available"),
    ]
    assert listed["@odata.context"] == "$metadata#ProductionOrder/$entity"
    assert order["Id"] == str(order_id) and order["Name"] == "alone" and order["WorkflowId"] == 11
    assert order["InputProductReference"] == {"Reference": L1C, "ContentDate": None}
    assert set(order) == {
        "Id", "Status", "StatusMessage", "SubmissionDate", "Name", "EstimatedDate", "InputProductReference",
        "WorkflowOptions", "WorkflowName", "WorkflowId", "Priority", "NotificationEndpoint",
        "NotificationEpUsername", "NotificationStatus",
    }  # fmt: skip
    assert hook.get(f"ProductionOrders({order_id})")["value"] == order


@pytest.mark.parametrize(
    ("filter_", "found"),
    [
        ("id eq {}", True), ("Id eq '{}'", True), ("(id eq {})", True), ("id eq 1", False),
        ("Name eq 'Tutorial x - 1'", True), ("Name eq 'tutorial x - 1'", False), ("(endswith(Name,'- 1'))", True),
        ("contains(Name,'torial')", True), ("WorkflowName eq 'data-harvest' and Status eq 'queued'", True),
        ("WorkflowName eq 'data-harvest' and Status eq 'completed'", False),
        ("InputProductReference/Reference eq '" + L1C + "'", True),
        ("SubmissionDate gt 2026-11-21T11:59:59.000Z", True), ("SubmissionDate lt 2026-11-21T00:00:00Z", False),
    ],
)  # fmt: skip
def test_orders_are_found_with_filters(hook, filter_, found):
    order_id = hook.order(name="Tutorial x - 1")
    assert len(hook.get(f"ProductionOrders?$filter={filter_.format(order_id)}")["value"]) == found


def test_batch_orders_are_paged_and_filtered_too(hook):
    ids = [hook.order(name=name) for name in ("one", "two", "three")]
    page = hook.get("BatchOrder?$top=2&$count=true")
    assert ([o["Id"] for o in page["value"]], page["@odata.count"]) == (ids[:2], 3)
    page = requests.get(page["@odata.nextLink"], headers=hook.headers, timeout=10).json()
    assert [o["Id"] for o in page["value"]] == ids[2:]
    assert [o["Id"] for o in hook.get("BatchOrder?$filter=Name eq 'two'")["value"]] == ids[1:2]
    assert [o["Id"] for o in hook.get("BatchOrder?$orderby=Id desc")["value"]] == ids[::-1]
    items = hook.get(f"BatchOrder({hook.order(L1C, L2A)})/Products?$filter=Status eq 'queued'&$top=1")
    assert len(items["value"]) == 1 and "@odata.nextLink" in items


def test_the_estimated_date_may_pass_while_an_order_is_in_progress(hook):
    order_id = hook.order(L1C, L1C, L1C)
    hook.pass_time(110)
    order = hook.get(f"BatchOrder({order_id})")["value"]
    assert datetime.fromisoformat(order["EstimatedDate"]) <= hook.sandbox.clock.now()
    assert order["Status"] == "in_progress"


# --- quotas ---


def test_twenty_five_product_orders_a_month_and_then_429(hook):
    client = with_role(hook, "hook-low")
    client.order(*[L1C] * 20)
    assert client.send(client.body(*[L1C] * 6)).status_code == 429
    client.order(*[L1C] * 5)
    answer = client.send(client.body(L1C))
    assert answer.status_code == 429 and "25 product orders" in answer.json()["detail"]["message"]
    wait = int(answer.headers["Retry-After"])
    now = hook.sandbox.clock.now()
    assert (now + timedelta(seconds=wait)).day == 1
    hook.order(*[L1C] * 26)  # of somebody else, with another role
    client.pass_time(wait - 1)
    assert client.send(client.body(L1C)).status_code == 429
    client.pass_time(1)
    assert client.send(client.body(L1C)).status_code == 201


@pytest.mark.parametrize("role", ["hook-medium", "hook-high"])
def test_a_thousand_with_the_better_roles(hook, role):
    client = with_role(hook, role)
    client.order(*[L1C] * 999)
    client.order(L1C)
    assert client.send(client.body(L1C)).status_code == 429


# --- single orders, cost, cancelling ---


def production_body(hook: Client, **more) -> dict:
    body = hook.body(L1C, name="single")
    del body["IdentifierList"]
    return body | {"InputProductReference": {"Reference": L1C, "ContentDate": None}} | more


def test_a_production_order_is_an_order_of_one_item(hook):
    answer = hook.ask("POST", "ProductionOrder/OData.CSC.Order", data=json.dumps(production_body(hook)))
    assert answer.status_code == 201
    assert answer.json()["@odata.context"] == "$metadata#OData.CSC.Order"
    order = answer.json()["value"]
    assert hook.get("ProductionOrders")["value"] == [order]
    (item,) = hook.finished(int(order["Id"]))
    assert (item["InputProductReference"], item["Status"]) == (L1C, "completed")
    answer = hook.ask("POST", "ProductionOrder/OData.CSC.Order", data=json.dumps(hook.body(L1C)))
    assert answer.status_code == 422 and answer.json()["detail"][0]["loc"] == ["body", "InputProductReference"]


def test_the_cost_is_told_and_nothing_ordered(hook):
    path = "ProductionOrder/OData.CSC.EstimateCost"
    answer = hook.ask("POST", path, data=json.dumps(production_body(hook)))
    assert (answer.status_code, answer.json()) == (200, {"tokens": 1})
    assert hook.ask("POST", path, data=json.dumps(production_body(hook, WorkflowOptions=[]))).status_code == 400
    assert hook.get("BatchOrder")["value"] == []


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_queued_order_is_cancelled_at_once_and_one_in_processing_finishes(hook, method):
    queued, running = hook.order(), hook.order()
    answer = hook.ask(method, f"ProductionOrder({queued})/OData.CSC.Cancel")
    assert (answer.status_code, answer.json()["value"]["Status"]) == (200, "cancelled")
    hook.pass_time(10)
    answer = hook.ask(method, f"ProductionOrder({running})/OData.CSC.Cancel")
    assert answer.json()["value"]["Status"] == "in_progress"
    hook.pass_time(1000)
    assert (hook.states(queued), hook.states(running)) == (["cancelled"], ["completed"])
    assert hook.items(queued)[0]["StatusMessage"] == "Cancelled by the user"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_of_a_batch_the_items_in_the_queue_are_cancelled(hook, method):
    order_id = hook.order(L1C, L1C, L1C, L1C)
    hook.pass_time(10)
    assert hook.ask(method, f"BatchOrder({order_id})/OData.CSC.Cancel").status_code == 200
    assert hook.states(order_id) == ["in_progress", "in_progress", "cancelled", "cancelled"]
    assert hook.ask(method, f"ProductionOrder({order_id})/OData.CSC.Cancel").status_code == 404
    hook.pass_time(1000)
    assert hook.states(order_id) == ["completed", "completed", "cancelled", "cancelled"]
    assert summary(hook, order_id) == ("completed", 0, 0, 2, 0, 0, 2)


# --- what comes out ---


def download(item: dict) -> zipfile.ZipFile:
    answer = requests.get(item["DownloadLink"], timeout=10)
    assert answer.status_code == 200, answer.text
    assert len(answer.content) == item["ProcessedSize"]
    return zipfile.ZipFile(io.BytesIO(answer.content))


@pytest.mark.parametrize(
    ("workflow", "product", "collection", "name"),
    [
        ("data-harvest", L1C, COLLECTION, L1C),
        ("data-harvest", GRD.removesuffix(".SAFE"), "EO.ESA.DAT.SENTINEL-1.L1_GRD", GRD),
        ("data-harvest", L2A, "EO.ESA.DAT.SENTINEL-2.MSI.L2A", L2A),
        ("sen2cor", OTHER_L1C.removesuffix(".SAFE"), COLLECTION, OTHER_L1C.replace("L1C", "L2A")),
        ("maja", L1C, None, L1C.replace("L1C", "L2A")),
    ],
)
def test_products_are_safe_archives_with_the_right_name(hook, workflow, product, collection, name):
    series = {"input_type": "TIMESPAN", "timeseries_end_id": product, "timespan": 18} if workflow == "maja" else {}
    order_id = hook.order(product, workflow=workflow, desp_source_collection=collection, **series)
    (item,) = hook.finished(order_id)
    assert (item["Status"], item["ProcessedName"]) == ("completed", name), item
    with download(item) as archive:
        assert {member.split("/")[0] for member in archive.namelist()} == {name}
        assert f"{name}/manifest.safe" in archive.namelist()


@pytest.mark.parametrize(
    ("workflow", "product", "collection", "suffix", "low", "high"),
    [
        ("card_bs", GRD, "EO.ESA.DAT.SENTINEL-1.L1_GRD", "CARD_BS", 0, 5),
        ("card_cohinf", SLC, "EO.ESA.DAT.SENTINEL-1.L1_SLC", "CARD_INF", 0, 1),
        ("lai", L2A, "EO.ESA.DAT.SENTINEL-2.MSI.L2A", "LAI", 0, 7),
        ("c2rcc", OTHER_L1C, COLLECTION, "C2RCC", 0, 1000),
        ("copdem", S3_SCENE, None, "COPDEM", -500, 9000),
        ("odp-test", L1C, COLLECTION, "ODP_TEST", -100, 100),
    ],
)
def test_other_workflows_give_a_raster_at_the_place_of_the_product(
    hook, workflow, product, collection, suffix, low, high
):
    more = {"card_producttype": "CARD_INF", "timespan": 24} if workflow == "card_cohinf" else {}
    (item,) = hook.finished(hook.order(product, workflow=workflow, desp_source_collection=collection, **more))
    assert item["Status"] == "completed", item
    stem = product.removesuffix(".SAFE").removesuffix(".SEN3")
    name = f"{stem}_{suffix}"
    assert item["ProcessedName"] == name
    with download(item) as archive:
        tif = archive.read(f"{name}/{name}.tif")
    with rasterio.MemoryFile(tif) as memory, memory.open() as raster:
        values, (lon, lat) = raster.read(1, masked=True), raster.lnglat()
    assert low <= values.min() < values.max() <= high
    ring = granule_footprint(stem)["coordinates"][0]
    west, east = min(x for x, _ in ring), max(x for x, _ in ring)
    south, north = min(y for _, y in ring), max(y for _, y in ring)
    assert west < lon < east and south < lat < north


def test_an_identifier_of_which_nothing_can_be_made_fails_its_item_alone(hook):
    order_id = hook.order("", L1C, "S2A_MSIL1C_nonsense", "S9_UNKNOWN", L2A)
    states = {item["InputProductReference"]: item for item in hook.finished(order_id)}
    assert [item["Status"] for item in states.values()] == ["failed", "completed", "failed", "failed", "failed"]
    for name in ("", "S9_UNKNOWN", L2A):
        assert states[name]["StatusMessage"] == f"DESP: {name!r} not found in collection {COLLECTION!r}"
    assert "S2A_MSIL1C_nonsense" in states["S2A_MSIL1C_nonsense"]["StatusMessage"]
    failed = states["S9_UNKNOWN"]
    assert failed["DownloadLink"] is failed["ProcessedName"] is failed["ProcessedSize"] is None
    path = f"BatchOrder({order_id})/Product({failed['Id']})/$value"
    assert hook.ask("GET", path).status_code == 404


def test_a_workflow_says_what_it_takes(hook):
    status, message = hook.outcome(GRD, workflow="sen2cor", desp_source_collection="EO.ESA.DAT.SENTINEL-1.L1_GRD")
    assert (status, message) == ("failed", f"sen2cor takes Sentinel-2 Level-1C products, {GRD!r} is none")


# --- where it comes from ---


def as_odata(hook: Client) -> dict:
    """The same catalogue by its other API."""
    root = hook.sandbox.url("hook") + "/external"
    return {"source_catalogue_api_type": "ODATA", "source_catalogue_api_url": root}


def test_desp_credentials_are_those_of_a_user(hook):
    assert hook.outcome(desp_source_password="guessed") == ("failed", "DESP: Invalid user credentials")
    assert hook.outcome(desp_source_username="nobody") == ("failed", "DESP: Invalid user credentials")


def test_an_external_source_is_logged_in_to_and_asked_for_the_product(hook):
    assert hook.outcome(**hook.external())[0] == "completed"
    (token,) = hook.sandbox.traffic.received("identity", "POST")
    assert token.path == "/auth/realms/dedl/protocol/openid-connect/token"
    (looked_up,) = hook.sandbox.traffic.received("hook", "GET", "^/external")
    assert looked_up.path == f"/external/collections/{COLLECTION}/items/{L1C}"
    assert looked_up.authorized
    assert hook.outcome(**hook.external(**as_odata(hook), source_catalogue_collection=None))[0] == "completed"
    assert hook.sandbox.traffic.received("hook", "GET", "^/external")[-1].path == "/external/Products"


def test_an_external_source_with_a_client_instead_of_a_user(hook):
    hook.sandbox.identity.add_client("robot", "robot-secret", roles=())
    login = {"source_client_id": "robot", "source_grant_type": "CLIENT_CREDENTIALS", "source_username": None,
             "source_password": None}  # fmt: skip
    assert hook.outcome(**hook.external(**login, source_client_secret="robot-secret"))[0] == "completed"
    status, message = hook.outcome(**hook.external(**login, source_client_secret="guessed"))
    assert (status, message) == ("failed", "EXTERNAL: no token, 401 Invalid client or Invalid client credentials")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"source_password": "guessed"}, "EXTERNAL: no token, 401 Invalid user credentials"),
        ({"source_catalogue_collection": "EO.OTHER"},
         f"EXTERNAL: {L1C!r} not found, 404 Item {L1C} not found in collection EO.OTHER"),
        ({"source_auth_header_name": "X-Token"}, f"EXTERNAL: {L1C!r} not found, 401 Not authenticated"),
        ({"source_token_url": "http://127.0.0.1:9/token"}, "The source cannot be reached: ConnectionError"),
        ({"source_token_url": "your-token-url"}, "The source cannot be reached: MissingSchema"),
    ],
)  # fmt: skip
def test_what_an_external_source_says_is_why_the_item_failed(hook, wrong, reason):
    assert hook.outcome(**hook.external(**wrong)) == ("failed", reason)


def test_an_external_catalogue_that_does_not_have_the_product(hook):
    status, message = hook.outcome("it's not there", **hook.external(**as_odata(hook)))
    assert (status, message) == ("failed", 'EXTERNAL: "it\'s not there" not found')


# --- temporary storage ---


def test_a_download_link_is_signed_and_good_for_two_weeks(hook):
    (item,) = hook.finished(hook.order())
    completed = datetime.fromisoformat(item["CompletedDate"])
    link = urlsplit(item["DownloadLink"])
    assert f"{link.scheme}://{link.netloc}" == hook.sandbox.url("hook-storage") != hook.sandbox.url("hook")
    date, number, random = link.path.removeprefix("/swift/v1/tmp-storage/").removesuffix(".zip").split("_")
    assert (date, number) == (f"{completed:%Y%m%d}", str(item["Id"])) and len(random) == 8
    query = parse_qs(link.query)
    assert list(query) == ["temp_url_sig", "temp_url_expires"]
    assert len(query["temp_url_sig"][0]) == 40 and int(query["temp_url_sig"][0], 16)
    assert int(query["temp_url_expires"][0]) == int((completed + timedelta(days=14)).timestamp())
    left = completed + timedelta(days=14) - hook.sandbox.clock.now()
    hook.pass_time(left.total_seconds() - 1)
    assert requests.get(item["DownloadLink"], timeout=10).status_code == 200
    hook.pass_time(1)
    expired = requests.get(item["DownloadLink"], timeout=10)
    assert (expired.status_code, "Temp URL invalid" in expired.text) == (401, True)
    assert requests.get(item["DownloadLink"], headers=hook.headers, timeout=10).status_code == 401
    value = f"BatchOrder({item['BatchOrderId']})/Product({item['Id']})/$value"
    assert hook.ask("GET", value).status_code == 401  # its link is no better


@pytest.mark.parametrize(
    "change",
    [
        lambda link: link.split("?")[0],
        lambda link: link[:-1] + str((int(link[-1]) + 1) % 10),
        lambda link: link.replace("temp_url_sig=", "temp_url_sig=0"),
        lambda link: link.replace(".zip?", "x.zip?"),
        lambda link: link.split("&")[0],
        lambda link: link.split("temp_url_expires")[0] + "temp_url_expires=soon",
    ],
)
def test_a_link_that_was_tampered_with_is_401(hook, change):
    (item,) = hook.finished(hook.order())
    assert requests.get(change(item["DownloadLink"]), timeout=10).status_code == 401


def test_value_redirects_to_the_link_and_asks_for_the_bearer(hook):
    (item,) = hook.finished(hook.order())
    path = f"BatchOrder({item['BatchOrderId']})/Product({item['Id']})/$value"
    answer = hook.ask("GET", path, allow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (307, item["DownloadLink"])
    assert requests.get(hook.root + path, timeout=10).status_code == 401


def test_parts_are_served_if_the_object_is_still_the_same(hook):
    (item,) = hook.finished(hook.order())

    def get(**headers: str) -> requests.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.get(item["DownloadLink"], headers=named, timeout=10)

    whole = get()
    size, etag = len(whole.content), whole.headers["ETag"]
    assert whole.headers["Accept-Ranges"] == "bytes"
    head = requests.head(item["DownloadLink"], timeout=10)
    assert (int(head.headers["Content-Length"]), head.headers["ETag"], head.content) == (size, etag, b"")
    part = get(Range="bytes=1000-", If_Range=etag)
    assert (part.status_code, part.headers["Content-Range"]) == (206, f"bytes 1000-{size - 1}/{size}")
    assert part.content == whole.content[1000:] and part.headers["ETag"] == etag
    assert get(Range="bytes=10-19").content == whole.content[10:20]
    changed = get(Range="bytes=1000-", If_Range='"another"')
    assert (changed.status_code, changed.content) == (200, whole.content)
    assert get(Range=f"bytes={size}-").status_code == 416
    hook.sandbox.hook.storage.ranges = False
    unable = get(Range="bytes=1000-", If_Range=etag)
    assert (unable.status_code, unable.content) == (200, whole.content)
    assert "Accept-Ranges" not in unable.headers


# --- private storage ---


@pytest.mark.parametrize("layout", ["tree", "zip"])
def test_a_private_order_writes_into_the_bucket(hook, bucket, layout):
    hook.sandbox.hook.processor.layout = layout
    (item,) = hook.finished(hook.order(**hook.private()))
    assert (item["Status"], item["ProcessedName"], item["DownloadLink"]) == ("completed", L1C, None), item
    found = objects(bucket)
    assert sum(found.values()) == item["ProcessedSize"]
    if layout == "tree":
        assert f"dedl-data-harvest-x/{L1C}/manifest.safe" in found and len(found) > 1
    else:
        (key,) = found
        assert key == f"dedl-data-harvest-x/{L1C.removesuffix('.SAFE')}.zip"
        body = bucket.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        assert f"{L1C}/manifest.safe" in zipfile.ZipFile(io.BytesIO(body)).namelist()
    path = f"BatchOrder({item['BatchOrderId']})/Product({item['Id']})/$value"
    assert hook.ask("GET", path).status_code == 404


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"output_s3_secret_key": "guessed"}, "S3: SignatureDoesNotMatch: The request signature we calculated"),
        ({"output_s3_access_key": "your-access-key"}, "S3: InvalidAccessKeyId: The AWS Access Key Id you provided"),
        ({"output_s3_path": "s3://nobodys-bucket/x"}, "S3: NoSuchBucket: The specified bucket does not exist"),
        ({"output_s3_path": "my-harvest/x"}, "output_s3_path is not s3://bucket/prefix"),
        ({"output_s3_endpoint_url": "http://127.0.0.1:9"}, "Could not connect to the endpoint URL"),
        ({"output_s3_endpoint_url": "your-endpoint"}, "Invalid endpoint: your-endpoint"),
    ],
)
def test_what_s3_says_is_why_the_item_failed(hook, bucket, wrong, reason):
    status, message = hook.outcome(**hook.private(**wrong))
    assert status == "failed" and message.startswith(reason), message
    assert objects(bucket) == {}


def test_hello_world_reads_from_a_bucket_and_writes_in_upper_case(hook, bucket):
    source = {n.replace("output", "source"): v for n, v in hook.private().items() if n.startswith("output_s3")}
    source["source_s3_path"] = f"s3://{BUCKET}/dedl_hello_world/input"
    greet = {"workflow": "dedl_hello_world"} | source
    status, message = hook.outcome("Custom Hook", **greet)
    assert status == "failed" and message.startswith("S3: NoSuchKey")
    bucket.put_object(Bucket=BUCKET, Key="dedl_hello_world/input/example.data", Body=b"hello, world")
    (item,) = hook.finished(hook.order("Custom Hook", **greet))
    assert (item["Status"], item["ProcessedName"]) == ("completed", "example.data")
    with download(item) as archive:
        assert archive.read("example.data") == b"HELLO, WORLD"
    assert hook.outcome("Custom Hook", **greet | hook.private())[0] == "completed"
    written = bucket.get_object(Bucket=BUCKET, Key="dedl-data-harvest-x/example.data")["Body"].read()
    assert written == b"HELLO, WORLD"
    status, message = hook.outcome("Custom Hook", **greet | {"source_s3_secret_key": "guessed"})
    assert status == "failed" and message.startswith("S3: SignatureDoesNotMatch")


# --- bad days ---

#: Fault -> status, what follows "detail", whether there is a Retry-After.
FAULTS: dict[str, tuple[int, Callable, bool]] = {
    "bad-request": (400, lambda d: isinstance(d["message"], str), False),
    "expired-token": (401, lambda d: isinstance(d, str), False),
    "forbidden": (403, lambda d: "hook-workflows" in d, False),
    "unprocessable": (422, lambda d: set(d[0]) == {"loc", "msg", "type"}, False),
    "too-many-requests": (429, lambda d: isinstance(d["message"], str), True),
    "error": (500, lambda d: isinstance(d, str), False),
    "bad-gateway": (502, lambda d: isinstance(d, str), False),
    "unavailable": (503, lambda d: isinstance(d, str), True),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_speak_as_the_service_does(reader, kind):
    status, form, again = FAULTS[kind]
    control(reader.sandbox, "/faults", {"kind": kind, "service": "hook", "seconds": 3})
    answer = reader.ask("GET", "Workflows")
    assert answer.status_code == status and answer.headers["Content-Type"] == "application/json"
    assert set(answer.json()) == {"detail"} and form(answer.json()["detail"])
    assert answer.headers.get("Retry-After") == ("3" if again else None)
    assert reader.ask("GET", "Workflows").status_code == 200


def test_a_token_may_expire_while_one_waits(live):
    order_id = live.order()
    fault = {"kind": "expired-token", "service": "hook", "path": "/Products$", "skip": 2}
    control(live.sandbox, "/faults", fault)
    statuses = [live.ask("GET", f"BatchOrder({order_id})/Products").status_code for _ in range(4)]
    assert statuses == [200, 200, 401, 200]


def test_one_item_of_three_fails_or_all_do(hook):
    control(hook.sandbox, "/faults", {"kind": "failed-item", "service": "hook", "path": "T32TMS"})
    items = hook.finished(hook.order(L1C, OTHER_L1C, L1C))
    assert [item["Status"] for item in items] == ["completed", "failed", "completed"]
    assert items[1]["StatusMessage"].startswith("Processing failed")
    control(hook.sandbox, "/faults", {"kind": "failed-item", "service": "hook", "times": 3})
    assert [item["Status"] for item in hook.finished(hook.order(L1C, L1C, L1C, L1C))] == ["failed"] * 3 + ["completed"]


def test_the_operator_cancels_an_order_in_the_queue(hook):
    control(hook.sandbox, "/faults", {"kind": "cancelled", "service": "hook"})
    order_id = hook.order(L1C, L1C)
    assert hook.states(order_id) == ["queued"] * 2
    hook.pass_time(10)
    assert hook.states(order_id) == ["cancelled"] * 2
    assert hook.items(order_id)[0]["StatusMessage"] == "Cancelled by the operator"
    assert hook.get(f"BatchOrder({order_id})")["value"]["Status"] == "cancelled"
    hook.pass_time(1000)
    assert [item["Status"] for item in hook.finished(hook.order())] == ["completed"]


def test_a_link_may_have_expired_and_value_gives_a_fresh_one(hook):
    control(hook.sandbox, "/faults", {"kind": "expired-link", "service": "hook"})
    first, second = (hook.finished(hook.order())[0] for _ in range(2))
    assert requests.get(first["DownloadLink"], timeout=10).status_code == 401
    assert requests.get(second["DownloadLink"], timeout=10).status_code == 200
    path = f"BatchOrder({first['BatchOrderId']})/Product({first['Id']})/$value"
    assert len(hook.ask("GET", path).content) == first["ProcessedSize"]


def test_a_completed_item_may_have_neither_date_nor_message(hook):
    control(hook.sandbox, "/faults", {"kind": "null-dates", "service": "hook"})
    first, second = (hook.finished(hook.order())[0] for _ in range(2))
    assert first["CompletedDate"] is None and "StatusMessage" not in first and first["DownloadLink"]
    assert second["CompletedDate"] and second["StatusMessage"]


@pytest.mark.parametrize(("more", "share"), [({}, 0.6), ({"fraction": 0.9}, 0.9)])
def test_a_download_may_be_cut(hook, more, share):
    (item,) = hook.finished(hook.order())
    whole = requests.get(item["DownloadLink"], timeout=10).content
    control(hook.sandbox, "/faults", {"kind": "cut", "service": "hook-storage"} | more)
    with requests.get(item["DownloadLink"], stream=True, timeout=10) as answer:
        assert int(answer.headers["Content-Length"]) == len(whole)
        received = b""
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            for chunk in answer.iter_content(1000):
                received += chunk
    assert whole.startswith(received) and abs(len(received) - share * len(whole)) <= 1000
    rest = requests.get(item["DownloadLink"], headers={"Range": f"bytes={len(received)}-"}, timeout=10)
    assert received + rest.content == whole


# --- what is written down, and what is kept apart ---


def test_the_log_of_requests_has_no_secret(sandbox, live):
    (item,) = live.finished(live.order(**live.external()))
    requests.get(item["DownloadLink"], timeout=10)
    text = requests.get(f"{sandbox.url('control')}/requests", timeout=10).text
    signature = parse_qs(urlsplit(item["DownloadLink"]).query)["temp_url_sig"][0]
    known = sandbox.environment
    for secret in (signature, known["HOOK_EXTERNAL_PASSWORD"], live.headers["Authorization"].split()[1]):
        assert secret not in text
    assert "temp_url_expires" in text


def test_reset_forgets_orders_and_objects(hook):
    (item,) = hook.finished(hook.order())
    hook.sandbox.access_keys["another"] = "x"
    control(hook.sandbox, "/reset", {})
    assert Client(hook.sandbox).get("BatchOrder")["value"] == [] and hook.sandbox.hook.orders == {}
    assert requests.get(item["DownloadLink"], timeout=10).status_code == 401
    assert "another" not in hook.sandbox.access_keys


def test_unknown_paths_and_methods_have_a_detail_too(reader):
    assert (reader.ask("GET", "Nothing").status_code, reader.ask("GET", "Nothing").json()) == (
        404,
        {"detail": "Not Found"},
    )
    assert reader.ask("DELETE", "Workflows").json() == {"detail": "Method Not Allowed"}


# --- the pair of keys that S3 checks ---


@pytest.mark.parametrize("signature", ["s3", "s3v4"])
def test_s3_checks_the_secret_of_the_pair_in_headers_and_in_links(hook, bucket, signature):
    def client(secret: str):
        return boto3.client(
            "s3",
            endpoint_url=hook.sandbox.url("s3"),
            aws_access_key_id="sandbox-harvest",
            aws_secret_access_key=secret,
            region_name="us-east-1",
            config=Config(signature_version=signature),
        )

    where = {"Bucket": BUCKET, "Key": "a folder/ü+(1).txt"}
    bucket.put_object(**where, Body=b"x", ContentType="text/plain", Metadata={"a": "b  c"})
    assert bucket.get_object(**where)["Body"].read() == b"x"
    good = client(hook.sandbox.environment["HOOK_OUTPUT_STORAGE_SECRET_KEY"])
    bad = client("guessed")
    assert requests.get(good.generate_presigned_url("get_object", Params=where), timeout=10).content == b"x"
    put = good.generate_presigned_url("put_object", Params=where | {"ContentType": "text/csv"})
    assert requests.put(put, data=b"y", headers={"Content-Type": "text/csv"}, timeout=10).status_code == 200
    refused = requests.get(bad.generate_presigned_url("get_object", Params=where), timeout=10)
    assert refused.status_code == 403 and "<Code>SignatureDoesNotMatch</Code>" in refused.text
    if signature == "s3v4":
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            bad.list_objects_v2(Bucket=BUCKET, Prefix="a folder/")
        assert good.list_objects_v2(Bucket=BUCKET, Prefix="a folder/")["KeyCount"] == 1
