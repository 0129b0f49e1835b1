"""Settings: where they come from, which wins, and what a user reads when one is missing or wrong."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import requests

from helpers import hyp3 as recipe
from helpers import objectstore, redaction
from helpers import settings as room
from helpers.errors import FailedRemotely, NotConfigured, TimedOut

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLE = room.example()
#: Values of every secret setting, long enough to be found in a text.
SECRETS = {
    name: f"secret-of-{name.lower()}"
    for field in room.Settings.model_fields
    if room.is_secret(field) and field != "hook_additional"
    for name in room.names(field)
}
SECRETS["CATALOG_DSN"] = "postgresql://reader:secret-of-catalog_dsn@db.example.org/catalog"


class Listener:
    """A port that counts who connects, and hangs up."""

    def __init__(self):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        self.connections = 0
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()


@pytest.fixture
def listener():
    listener = Listener()
    yield listener
    listener.server.shutdown(socket.SHUT_RDWR)
    listener.server.close()


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An empty project of its own, with the process working somewhere else."""
    folder, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    (folder / "notebooks").mkdir(parents=True)
    elsewhere.mkdir()
    monkeypatch.setattr(room, "PROJECT", folder)
    monkeypatch.chdir(elsewhere)
    yield folder


@pytest.fixture
def live(project, listener, monkeypatch) -> Listener:
    """The live backend without credentials; every request would arrive at the listener."""
    monkeypatch.setenv("RECIPES_BACKEND", "live")
    monkeypatch.setenv("HYP3_API_URL", listener.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", listener.url)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, listener.url)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name)
    return listener


def write(folder: Path, *lines: str) -> Path:
    path = folder / ".env_tutorial"
    path.write_text("\n".join(lines) + "\n")
    return path


# --- where settings come from ---


def test_without_any_setting_the_backend_is_the_sandbox(project):
    assert room.read().backend == "sandbox"


def test_process_environment_wins_over_the_file(project, monkeypatch):
    write(project, "HOOK_ORDER_NAME=from-file", "HOOK_WORKFLOW=from-file")
    monkeypatch.setenv("HOOK_ORDER_NAME", "from-environment")
    settings = room.read()
    assert (settings.hook_order_name, settings.hook_workflow) == ("from-environment", "from-file")


def test_empty_variables_count_as_not_set(project, monkeypatch):
    write(project, "HOOK_ORDER_NAME=from-file", "AWS_PROFILE=", "RECIPES_SANDBOX_URL=")
    monkeypatch.setenv("HOOK_ORDER_NAME", "")
    settings = room.read()
    assert (settings.hook_order_name, settings.aws_profile, settings.sandbox_url) == ("from-file", None, None)


@pytest.mark.parametrize("other", ["environment", "file"])
def test_region_is_known_by_both_names_and_the_environment_wins_across_them(project, monkeypatch, other):
    write(project, "AWS_REGION=us-west-2" if other == "file" else "AWS_DEFAULT_REGION=us-west-2")
    monkeypatch.setenv("AWS_DEFAULT_REGION" if other == "file" else "AWS_REGION", "eu-central-1")
    assert room.read().aws_region == "eu-central-1"


def test_file_beside_the_notebook_wins_over_notebooks_folder_and_that_over_the_project(project, tmp_path, monkeypatch):
    def order_name() -> str:
        return room.read().hook_order_name

    mine = tmp_path / "mine"
    mine.mkdir()
    write(tmp_path / "elsewhere", "HOOK_ORDER_NAME=working-directory")
    assert order_name() == "first-order"
    write(project, "HOOK_ORDER_NAME=project")
    assert order_name() == "project"
    write(project / "notebooks", "HOOK_ORDER_NAME=notebooks")
    assert order_name() == "notebooks"
    monkeypatch.setenv("JPY_SESSION_NAME", str(mine / "copy.ipynb"))
    assert order_name() == "notebooks"
    write(mine, "HOOK_ORDER_NAME=mine")
    assert order_name() == "mine"


def test_session_name_that_is_no_path_is_harmless(project, monkeypatch):
    write(project, "HOOK_ORDER_NAME=project")
    monkeypatch.setenv("JPY_SESSION_NAME", "no/such/folder/5f1c")
    assert room.read().hook_order_name == "project"


@pytest.mark.parametrize("where", ["environment", "file"])
def test_relative_folders_start_at_the_project(project, monkeypatch, where):
    if where == "file":
        write(project, "RECIPES_STATE_DIR=memory", "RECIPES_OUTPUT_DIR=out/here")
    else:
        monkeypatch.setenv("RECIPES_STATE_DIR", "memory")
        monkeypatch.setenv("RECIPES_OUTPUT_DIR", "out/here")
    settings = room.read()
    assert (settings.state_dir, settings.output_dir) == (project / "memory", project / "out/here")


def test_absolute_folders_and_home_stay_what_they_are(project, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RECIPES_STATE_DIR", str(tmp_path / "memory"))
    monkeypatch.setenv("RECIPES_OUTPUT_DIR", "~/out")
    settings = room.read()
    assert (settings.state_dir, settings.output_dir) == (tmp_path / "memory", tmp_path / "home/out")


def test_settings_cannot_be_changed_afterwards(project):
    with pytest.raises(ValueError, match="frozen"):
        room.read().backend = "live"


# --- what people write ---


@pytest.mark.parametrize("written", ["True", "true", "TRUE", "1", "yes", "Yes", "on", '"True"', "'yes'"])
def test_true_as_people_write_it(project, written):
    write(project, f"HOOK_IS_PRIVATE_STORAGE={written}")
    assert room.read().hook_is_private_storage is True


@pytest.mark.parametrize("written", ["False", "false", "FALSE", "0", "no", "No", "off", '"False"', ""])
def test_false_as_people_write_it(project, written):
    write(project, f"HOOK_IS_PRIVATE_STORAGE={written}")
    assert room.read().hook_is_private_storage is False


def test_file_of_the_published_destine_tutorial_loads_unchanged(project):
    write(
        project / "notebooks",
        'DESP_USERNAME="jane"',
        'DESP_PASSWORD="a password with # and = in it"',
        "# ------------ the workflow ------------",
        'HOOK_WORKFLOW="data-harvest"',
        "HOOK_ORDER_NAME='my order'",
        'HOOK_COLLECTION_ID="EO.ESA.DAT.SENTINEL-2.MSI.L1C"',
        'HOOK_DATA_ID="A.SAFE,B.SAFE"',
        'HOOK_SOURCE_TYPE="EXTERNAL"',
        'HOOK_IS_PRIVATE_STORAGE="True"',
        'HOOK_OUTPUT_BUCKET="my-bucket"',
        'HOOK_OUTPUT_STORAGE_ACCESS_KEY="your-access-key"',
        'HOOK_OUTPUT_STORAGE_SECRET_KEY="your-secret-key"',
        'HOOK_EXTERNAL_USERNAME="jane@example.org"',
        'HOOK_EXTERNAL_PASSWORD="outside"',
        'HOOK_EXTERNAL_TOKEN_URL="https://identity.example.org/token"',
        'HOOK_EXTERNAL_CLIENT_ID="public"',
        'HOOK_ADDITIONAL1="NAME=timespan;VALUE=24;VALUE_TYPE=int"',
    )
    settings = room.read()
    assert settings.desp_username == "jane"
    assert settings.desp_password.get_secret_value() == "a password with # and = in it"
    assert settings.hook_workflow == "data-harvest"
    assert settings.hook_order_name == "my order"
    assert settings.hook_collection_id == "EO.ESA.DAT.SENTINEL-2.MSI.L1C"
    assert settings.hook_data_id == "A.SAFE,B.SAFE"
    assert settings.hook_source_type == "EXTERNAL"
    assert settings.hook_is_private_storage is True
    assert settings.hook_output_bucket == "my-bucket"
    assert settings.hook_output_storage_access_key.get_secret_value() == "your-access-key"
    assert settings.hook_external_username == "jane@example.org"
    assert settings.hook_external_password.get_secret_value() == "outside"
    assert str(settings.hook_external_token_url) == "https://identity.example.org/token"
    assert settings.hook_external_client_id == "public"


def test_numbered_options_are_typed_and_their_values_may_hold_anything(project, monkeypatch):
    write(
        project,
        'HOOK_ADDITIONAL1="NAME=timespan;VALUE=24;VALUE_TYPE=int"',
        'HOOK_ADDITIONAL2="NAME=query;VALUE=a=b;c==;VALUE_TYPE=str"',
        'HOOK_ADDITIONAL3="NAME=limit;VALUE=0.5;VALUE_TYPE=float"',
        'HOOK_ADDITIONAL10="NAME=verbose;VALUE=true;VALUE_TYPE=bool"',
        'HOOK_ADDITIONAL4="NAME=no_type;VALUE=text"',
        "HOOK_ADDITIONAL5=",
    )
    monkeypatch.setenv("HOOK_ADDITIONAL1", "NAME=timespan;VALUE=48;VALUE_TYPE=int")
    assert room.read().hook_additional == {
        "timespan": 48, "query": "a=b;c==", "limit": 0.5, "no_type": "text", "verbose": True
    }  # fmt: skip
    assert room.misspelt(project / ".env_tutorial") == []


@pytest.mark.parametrize("line", ["timespan=24", "NAME=a;VALUE=x;VALUE_TYPE=int", "NAME=a;VALUE=1;VALUE_TYPE=list"])
def test_a_numbered_option_that_cannot_be_read_is_named_but_not_shown(project, line):
    write(project, f'HOOK_ADDITIONAL7="{line}"')
    with pytest.raises(NotConfigured, match=r"HOOK_ADDITIONAL7 is not NAME=") as error:
        room.read()
    assert line not in str(error.value)


def test_numbered_options_with_secrets_are_masked_and_stay_out_of_the_sandbox(
    sandbox, environment, project, monkeypatch
):
    write(
        project,
        'HOOK_ADDITIONAL1="NAME=source_s3_secret_key;VALUE=secret-of-a-storage==;VALUE_TYPE=str"',
        'HOOK_ADDITIONAL2="NAME=source_s3_endpoint_url;VALUE=https://s3.example.org;VALUE_TYPE=str"',
        'HOOK_ADDITIONAL3="NAME=source_s3_path;VALUE=s3://a/b;VALUE_TYPE=str"',
    )
    assert "secret-of-a-storage" not in repr(room.read())
    assert "secret-of-a-storage==" in room.secret_values()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert room.load().hook_additional == {"source_s3_path": "s3://a/b"}


def test_what_an_order_needs_is_asked_for_by_name(live, monkeypatch):
    for service, names in {
        "destine": ["DESP_USERNAME", "DESP_PASSWORD"],
        "destine storage": ["HOOK_OUTPUT_STORAGE_ACCESS_KEY", "HOOK_OUTPUT_STORAGE_SECRET_KEY"],
        "destine catalogue": ["HOOK_EXTERNAL_TOKEN_URL", "HOOK_EXTERNAL_USERNAME", "HOOK_EXTERNAL_PASSWORD"],
    }.items():
        with pytest.raises(NotConfigured) as error:
            room.load().require(service)
        assert all(name in str(error.value) for name in names)
    monkeypatch.setenv("DEDL_CLIENT_ID", "service")
    monkeypatch.setenv("DEDL_CLIENT_SECRET", "its-secret")
    room.load().require("destine")
    with pytest.raises(NotConfigured, match="DESP_USERNAME"):
        room.load().require("destine user")


def test_empty_source_type_means_a_custom_hook(project):
    write(project, 'HOOK_SOURCE_TYPE=""')
    assert room.read().hook_source_type is None


def test_unknown_names_are_ignored(project, monkeypatch):
    write(project, "SOMETHING_ELSE=1", "RECIPES_OF_GRANDMA=2", "not a setting at all")
    monkeypatch.setenv("RECIPES_COLOUR", "blue")
    assert room.read().backend == "sandbox"


# --- what is wrong with them ---


def test_every_problem_is_in_one_message_with_name_value_and_what_is_accepted(project, monkeypatch):
    file = write(project, "RECIPES_BACKEND=lvie", "HYP3_SETTLE_SECONDS=soon")
    monkeypatch.setenv("HYP3_API_URL", "nonsense")
    monkeypatch.setenv("HOOK_IS_PRIVATE_STORAGE", "maybe")
    with pytest.raises(NotConfigured) as error:
        room.read()
    message = str(error.value)
    for name, found, accepted in [
        ("RECIPES_BACKEND", "'lvie'", "'sandbox' or 'live'"),
        ("HYP3_SETTLE_SECONDS", "'soon'", "valid number"),
        ("HYP3_API_URL", "'nonsense'", "valid URL"),
        ("HOOK_IS_PRIVATE_STORAGE", "'maybe'", "valid boolean"),
    ]:
        (line,) = [line for line in message.splitlines() if line.startswith(f"  - {name}:")]
        assert found in line and accepted in line
    assert str(file) in message


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1"])
def test_settling_time_must_be_a_time(project, monkeypatch, seconds):
    """With "nan" or "inf" the search for lost jobs would never end."""
    monkeypatch.setenv("HYP3_SETTLE_SECONDS", seconds)
    with pytest.raises(NotConfigured, match="HYP3_SETTLE_SECONDS"):
        room.read()


def test_secrets_are_masked_in_errors_and_in_the_repr(project):
    write(project, *(f"{name}={value}" for name, value in SECRETS.items()))
    settings = room.read()
    for text in (repr(settings), str(settings), f"{settings!r}"):
        assert [value for value in SECRETS.values() if value in text] == []
    assert settings.aws_secret_access_key.get_secret_value() == SECRETS["AWS_SECRET_ACCESS_KEY"]

    write(project, *(f"{name}={value}" for name, value in SECRETS.items()), "RECIPES_BACKEND=lvie")
    with pytest.raises(NotConfigured) as error:
        room.read()
    assert [value for value in SECRETS.values() if value in str(error.value)] == []
    # The validator's own error quotes its input; it must not appear in the traceback either.
    assert error.value.__cause__ is None and error.value.__context__ is None


def test_placeholders_are_refused_only_when_live(project, monkeypatch):
    write(
        project,
        "EARTHDATA_TOKEN=your-token",
        "HOOK_OUTPUT_STORAGE_ACCESS_KEY=your-access-key",
        "DESP_PASSWORD=<password>",
    )
    assert room.read().backend == "sandbox"
    monkeypatch.setenv("RECIPES_BACKEND", "live")
    with pytest.raises(NotConfigured) as error:
        room.read()
    lines = str(error.value).splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == [
        "  - EARTHDATA_TOKEN",
        "  - DESP_PASSWORD",
        "  - HOOK_OUTPUT_STORAGE_ACCESS_KEY",
    ]
    assert "https://urs.earthdata.nasa.gov" in lines[0]


# --- live: credentials before the first request ---


def test_live_without_credentials_names_all_of_them_and_where_to_get_them(live):
    with pytest.raises(NotConfigured) as error:
        room.load().require("earthdata", "aws")
    message = str(error.value)
    for name in ("EARTHDATA_TOKEN", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert name in message
    assert "https://urs.earthdata.nasa.gov > Generate Token" in message
    assert "AWS console > IAM" in message
    assert ".env_tutorial" in message
    with pytest.raises(NotConfigured, match="EARTHDATA_TOKEN"):
        recipe.connect(room.load())
    assert live.connections == 0
    # It would have been seen:
    with pytest.raises(requests.ConnectionError):
        requests.get("http://hyp3-api.asf.alaska.edu/costs", timeout=5)
    assert live.connections > 0


def test_live_with_credentials_asks_for_nothing_more(live, monkeypatch):
    monkeypatch.setenv("EARTHDATA_TOKEN", "a.real.token")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    room.load().require("earthdata", "aws")
    assert live.connections == 0


def test_a_netrc_line_is_enough_for_earthdata(live, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine other.example.org login jane password secret-elsewhere\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with pytest.raises(NotConfigured, match="EARTHDATA_TOKEN"):
        room.load().require("earthdata")
    netrc.write_text("machine urs.earthdata.nasa.gov login jane password secret-of-jane\n")
    room.load().require("earthdata")


def test_a_netrc_line_added_later_is_seen_without_a_new_kernel(live, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    with pytest.raises(NotConfigured, match=r"\.netrc"):
        room.load().require("earthdata")
    netrc.write_text("machine urs.earthdata.nasa.gov login jane password secret-of-jane\n")
    room.load().require("earthdata")


def test_login_with_netrc_but_without_network_says_so(live, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine urs.earthdata.nasa.gov login jane password secret-of-jane\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with pytest.raises(TimedOut, match=r"urs\.earthdata\.nasa\.gov"):
        recipe.connect(room.load())


@pytest.mark.parametrize(
    ("given", "missing"),
    [("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")],
)
def test_half_a_key_pair_is_refused(live, monkeypatch, given, missing):
    monkeypatch.setenv(given, "half-of-a-pair")
    with pytest.raises(NotConfigured) as error:
        room.load().require("aws")
    assert f"- {missing}:" in str(error.value)
    assert f"- {given}:" not in str(error.value)
    assert "half-of-a-pair" not in str(error.value)


def test_a_profile_that_does_not_exist_is_not_configured(live, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    with pytest.raises(NotConfigured, match=r"AWS_PROFILE.*no-such-profile"):
        room.load().require("aws")


def test_sandbox_brings_its_own_credentials(settings):
    settings.require("earthdata", "aws")
    assert objectstore.client("sts", settings).get_caller_identity()["Account"] == "123456789012"


# --- the sandbox ---


def test_sandbox_that_nobody_answers_for_is_explained(project, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("RECIPES_SANDBOX_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(NotConfigured) as error:
        room.load()
    for words in (f"127.0.0.1:{port}", "RECIPES_SANDBOX_URL", "python -m helpers sandbox"):
        assert words in str(error.value)


@pytest.mark.parametrize("service", ["hyp3", "s3"])
def test_url_of_something_else_than_a_sandbox_is_explained(sandbox, project, monkeypatch, service):
    monkeypatch.setenv("RECIPES_SANDBOX_URL", sandbox.url(service))
    with pytest.raises(NotConfigured, match="No sandbox answers"):
        room.load()


@pytest.fixture
def busy(monkeypatch):
    """URL of somebody who lets clients connect, and does not answer."""
    monkeypatch.setattr(room, "ANSWERED", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_sandbox_that_is_busy_is_waited_for_and_not_said_to_be_missing(project, monkeypatch, busy):
    monkeypatch.setenv("RECIPES_SANDBOX_URL", busy)
    with pytest.raises(TimedOut) as error:
        room.load()
    for words in (busy, "RECIPES_SANDBOX_URL", "Run this again"):
        assert words in str(error.value)


def noted_sandbox(tmp_path, monkeypatch, url: str) -> None:
    monkeypatch.delenv("RECIPES_SANDBOX_URL", raising=False)
    monkeypatch.setenv("RECIPES_STATE_DIR", str(tmp_path))
    (tmp_path / "sandbox.json").write_text(json.dumps({"url": url, "pid": 4321}))


def test_a_sandbox_of_this_machine_that_is_busy_is_not_replaced(project, tmp_path, monkeypatch, busy):
    noted_sandbox(tmp_path, monkeypatch, busy)
    monkeypatch.setattr("helpers.sandbox.start", lambda: pytest.fail("a second sandbox starts"))
    with pytest.raises(TimedOut, match=r"process 4321.*Run this again"):
        room.load()
    assert room.running_sandbox(tmp_path) == {"url": busy, "pid": 4321}


def test_a_sandbox_of_this_machine_that_has_ended_is_replaced(project, sandbox, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    noted_sandbox(tmp_path, monkeypatch, f"http://127.0.0.1:{port}")
    monkeypatch.setattr("helpers.sandbox.start", lambda: sandbox)
    assert str(room.load().sandbox_url).rstrip("/") == sandbox.url("control")


@pytest.fixture
def pretending(environment, project, monkeypatch):
    """Every real credential is in the environment or the file, and the backend is the sandbox."""
    for name, value in (SECRETS | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.example.org")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.example.org")
    write(project, "HYP3_API_URL=https://hyp3-api.asf.alaska.edu", "EARTHDATA_TOKEN=a-real-one")
    return room.load()


def test_real_credentials_are_never_used_against_the_sandbox(sandbox, pretending):
    assert pretending.earthdata_token.get_secret_value() == sandbox.environment["EARTHDATA_TOKEN"]
    credentials = room.aws_session(pretending).get_credentials().get_frozen_credentials()
    assert credentials.access_key == "sandbox-user"
    assert not {credentials.secret_key, credentials.token} & set(SECRETS.values())
    told = {
        secret
        for field in room.Settings.model_fields
        for secret in room._secrets(getattr(pretending, field))
    }  # fmt: skip
    assert told and not told & set(SECRETS.values())


def test_real_endpoints_are_never_used_by_the_sandbox(sandbox, pretending):
    assert (pretending.aws_region, str(pretending.hyp3_api_url)) == ("us-west-2", f"{sandbox.url('hyp3')}/")
    assert objectstore.client("sts", pretending).get_caller_identity()["Account"] == "123456789012"
    objectstore.client("s3", pretending).create_bucket(
        Bucket="made-in-the-sandbox", CreateBucketConfiguration={"LocationConstraint": "us-west-2"}
    )
    assert sandbox.traffic.received("s3", "PUT", "^/made-in-the-sandbox$")


def test_a_profile_in_the_environment_does_not_matter_to_the_sandbox(environment, project, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_PROFILE", "work")  # in a ~/.aws/config that is not here
    assert objectstore.client("s3", room.load()).list_buckets()["Buckets"] == []


def test_a_proxy_in_the_environment_does_not_get_between_us_and_the_sandbox(
    environment, project, listener, monkeypatch
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, listener.url)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name)
    settings = room.load()
    assert recipe.connect(settings).check_credits() == 8000
    assert objectstore.client("s3", settings).list_buckets()["Buckets"] == []
    assert listener.connections == 0


@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_hosts_that_need_no_proxy_stay_exempt(environment, project, monkeypatch, name):
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv(name, "intranet.example.org")
    room.load()
    assert requests.utils.should_bypass_proxies("http://intranet.example.org", None)
    assert requests.utils.should_bypass_proxies(environment["RECIPES_SANDBOX_URL"], None)


def test_reset_gives_the_settings_another_state_folder(sandbox, environment, project, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = room.load().service_name("hyp3")
    assert room.load().service_name("hyp3") == before
    room.reset_sandbox(sandbox.url("control"))
    assert room.load().service_name("hyp3") != before


def test_service_name_of_live_is_its_host(live):
    assert room.load().service_name("hyp3") == "127.0.0.1"


# --- the example file ---


def test_example_file_is_up_to_date():
    command = """python -c "from helpers import settings; print(settings.example(), end='')" > .env_tutorial.example"""
    path = CHECKOUT / ".env_tutorial.example"
    stored = path.read_text() if path.exists() else None
    assert stored == EXAMPLE, f"out of date; bring it up to date with:\n  {command}"


def test_example_file_used_as_it_is_changes_nothing(project, tmp_path):
    (project / ".env_tutorial").write_text(EXAMPLE)
    filled = room.read().model_dump()
    (project / ".env_tutorial").unlink()
    defaults = room.read().model_dump()
    for folder in ("state_dir", "output_dir"):  # relative in the file; the project of this test is another
        assert filled.pop(folder).name == defaults.pop(folder).name
    assert filled == defaults


def test_example_file_explains_every_setting_and_holds_no_secret():
    lines = EXAMPLE.splitlines()
    for field in room.Settings.model_fields:
        name = room.names(field)[0]
        (place,) = [i for i, line in enumerate(lines) if line.startswith(f"{name}=")]
        assert lines[place - 1].startswith("# ")
        if name in SECRETS:
            assert lines[place] == f"{name}="


# --- what redaction asks for ---


def secrets_of(tmp_path: Path, **env: str) -> dict:
    """What `secret_values` says in a process of its own, and which modules that needed."""
    code = (
        "import json, sys; from pathlib import Path; from helpers import settings;"
        f"settings.PROJECT = Path({str(tmp_path)!r}); found = settings.secret_values();"
        "print(json.dumps({'found': sorted(found), 'sandbox': 'helpers.sandbox' in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, env=os.environ | env, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_secret_values_has_every_credential_and_starts_no_sandbox(tmp_path):
    write(tmp_path, "DESP_PASSWORD=password-in-the-file", "HOOK_EXTERNAL_PASSWORD=short", "DESP_USERNAME=jane-the-user")
    netrc, aws = tmp_path / "netrc", tmp_path / "credentials"
    netrc.write_text("machine a.example.org login jane password password-in-netrc\n")
    aws.write_text(
        "[default]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = key-in-the-aws-file\n"
        "[other]\naws_access_key_id = AKIAIOSFODNN7EXAMPLF\naws_session_token = token-in-the-aws-file\n"
    )
    told = secrets_of(
        tmp_path,
        EARTHDATA_TOKEN="token-in-the-environment",
        AWS_SECRET_ACCESS_KEY="key-in-the-environment",
        NETRC=str(netrc),
        AWS_SHARED_CREDENTIALS_FILE=str(aws),
    )
    assert told["found"] == [
        "key-in-the-aws-file",
        "key-in-the-environment",
        "password-in-netrc",
        "password-in-the-file",
        "token-in-the-aws-file",
        "token-in-the-environment",
    ]
    assert told["sandbox"] is False


def test_secret_values_knows_the_file_even_when_a_setting_is_wrong(tmp_path):
    write(tmp_path, "DESP_PASSWORD=password-in-the-file", "RECIPES_BACKEND=lvie")
    told = secrets_of(tmp_path, EARTHDATA_TOKEN="token-in-the-environment")
    assert told["found"] == ["password-in-the-file", "token-in-the-environment"]


# the catalogue of notebook 6


def test_the_catalogue_is_asked_for_by_name(live, monkeypatch):
    with pytest.raises(NotConfigured, match=r"(?s)CATALOG_DSN.*CATALOG_API_URL"):
        room.load().require("catalog")
    monkeypatch.setenv("CATALOG_DSN", SECRETS["CATALOG_DSN"])
    monkeypatch.setenv("CATALOG_API_URL", "https://stac.example.org")
    room.load().require("catalog")
    assert live.connections == 0


@pytest.mark.parametrize("dsn", ["host=db password=secret-word", "mysql://me:secret-word@db/x"])
def test_another_form_of_dsn_is_refused_and_not_shown(project, monkeypatch, dsn):
    monkeypatch.setenv("CATALOG_DSN", dsn)
    with pytest.raises(NotConfigured, match=r"CATALOG_DSN: found \*+; must begin with one of postgresql://") as raised:
        room.read()
    assert "secret-word" not in str(raised.value)


def test_the_password_within_a_dsn_is_a_secret_as_written_and_as_it_is(project, monkeypatch):
    monkeypatch.setenv("CATALOG_DSN", "postgresql://reader:secret%2Fword@db.example.org/catalog")
    assert {"secret%2Fword", "secret/word"} <= room.secret_values()
    text = redaction.redact("login failed: secret/word, postgresql://reader:other-word@db.example.org/x")
    assert text == "login failed: [redacted], postgresql://reader:[redacted]@db.example.org/x"


def test_the_sandbox_has_a_catalogue_from_the_beginning_and_starts_it_when_required(sandbox, settings, monkeypatch):
    started = []
    monkeypatch.setattr(sandbox.catalogue, "start", lambda: started.append(True))
    assert settings.catalog_dsn.get_secret_value() == sandbox.catalogue.dsn
    assert str(settings.catalog_api_url).rstrip("/") == sandbox.url("stac")
    settings.require("aws", "earthdata")
    assert not started
    settings.require("catalog")
    assert started


def test_a_catalogue_that_does_not_start_says_why(sandbox, settings, monkeypatch):
    def fail():
        raise FailedRemotely("no space left on device")

    monkeypatch.setattr(sandbox.catalogue, "start", fail)
    with pytest.raises(FailedRemotely, match="no space left on device"):
        settings.require("catalog")


def test_a_real_catalogue_is_never_used_by_the_sandbox(environment, project, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CATALOG_DSN", "postgresql://me:secret-word@db.example.org/catalog")
    monkeypatch.setenv("CATALOG_API_URL", "https://stac.example.org")
    settings = room.load()
    assert "example.org" not in settings.catalog_dsn.get_secret_value() + str(settings.catalog_api_url)
