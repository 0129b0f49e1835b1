"""The login to DestinE against the stand-in, and how a token is kept, renewed and never asked for twice."""

import threading

import pyotp
import pytest
import requests
from pydantic import SecretStr

from helpers import hook, http
from helpers.errors import FailedRemotely, NotConfigured, Rejected, TimedOut

TOTP = pyotp.random_base32()


def logins(sandbox) -> int:
    return len(sandbox.traffic.received("identity", "POST", "/auth/realms/dedl/"))


def workflows(connection: hook.Hook) -> int:
    return len(connection.session.get(f"{connection.url}/Workflows").json()["value"])


def test_a_login_costs_four_requests_and_serves_many(sandbox, settings):
    connection = hook.connect(settings)
    assert sandbox.traffic.received("identity") == []  # not before it is needed
    assert workflows(connection) == workflows(connection) == 10
    assert len(sandbox.traffic.received("identity")) == 4


def test_threads_share_one_login(sandbox, settings):
    connection = hook.connect(settings)
    threads = [threading.Thread(target=workflows, args=(connection,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert logins(sandbox) == 1


def test_a_service_account_is_used_before_the_password(sandbox, settings):
    sandbox.identity.add_client("robot", "its-secret", ("hook-workflows", "hook-low"))
    robot = {"dedl_client_id": "robot", "dedl_client_secret": SecretStr("its-secret")}
    assert workflows(hook.connect(settings.model_copy(update=robot))) == 10
    assert len(sandbox.traffic.received("identity")) == 1


def test_a_token_of_ones_own_is_used_before_everything(sandbox, settings):
    own = {"dedl_token": SecretStr(sandbox.identity.token("sandbox-user"))}
    assert workflows(hook.connect(settings.model_copy(update=own))) == 10
    assert sandbox.traffic.received("identity") == []


def test_a_token_of_ones_own_that_has_ended_is_explained_without_asking_twice(sandbox, settings):
    own = {"dedl_token": SecretStr(sandbox.identity.token("sandbox-user", expires_in=-10))}
    with pytest.raises(Rejected, match="Get a new token"):
        workflows(hook.connect(settings.model_copy(update=own)))
    assert len(sandbox.traffic.received("hook")) == 1


def test_a_one_time_code_is_made_from_its_key(sandbox, settings):
    sandbox.identity.add_user("sandbox-user", settings.desp_password.get_secret_value(), ("hook-workflows",), TOTP)
    with pytest.raises(NotConfigured, match=r"one-time code. Set DESP_TOTP_SECRET"):
        workflows(hook.connect(settings))
    assert workflows(hook.connect(settings.model_copy(update={"desp_totp_secret": SecretStr(TOTP)}))) == 10
    other = settings.model_copy(update={"desp_totp_secret": SecretStr(pyotp.random_base32())})
    with pytest.raises(Rejected, match="OTP verification failed"):
        workflows(hook.connect(other))
    for unusable in ("no base32 at all!", "JBSWY3DPEHPK3PXP"):
        with pytest.raises(NotConfigured, match=r"DESP_TOTP_SECRET in .* cannot be used") as error:
            workflows(hook.connect(settings.model_copy(update={"desp_totp_secret": SecretStr(unusable)})))
        assert unusable not in str(error.value)


@pytest.mark.parametrize("change", [
    {"desp_password": SecretStr("a-wrong-password")},
    {"dedl_client_id": "nobody", "dedl_client_secret": SecretStr("a-wrong-password")},
])  # fmt: skip
def test_wrong_credentials_are_rejected_once_and_never_shown(sandbox, settings, change):
    with pytest.raises(Rejected, match="DestinE refuses the login") as error:
        workflows(hook.connect(settings.model_copy(update=change)))
    assert "a-wrong-password" not in str(error.value)
    assert len(sandbox.traffic.received("identity", "POST")) == 1
    assert error.value.__cause__ is None and error.value.__suppress_context__


@pytest.mark.parametrize(("kind", "error"), [("bad-gateway", FailedRemotely), ("dropped", TimedOut)])
def test_an_identity_provider_with_a_problem_is_no_refusal(sandbox, settings, kind, error, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    sandbox.traffic.fail(kind, service="identity", times=1000)
    with pytest.raises(error):
        workflows(hook.connect(settings))


def test_a_refused_token_is_renewed_and_the_request_repeated_once(sandbox, settings):
    connection = hook.connect(settings)
    sandbox.traffic.fail("expired-token", service="hook")
    assert workflows(connection) == 10
    assert logins(sandbox) == 2 and len(sandbox.traffic.received("hook")) == 2
    sandbox.traffic.fail("expired-token", service="hook", times=2)
    with pytest.raises(Rejected, match="answered 401"):
        workflows(connection)
    assert len(sandbox.traffic.received("hook")) == 4


def test_a_repeated_post_brings_its_body_along(sandbox, settings):
    connection = hook.connect(settings)
    sandbox.traffic.fail("expired-token", service="hook", method="POST")
    body = {"Name": "n", "WorkflowName": "copdem", "IdentifierList": ["x"], "WorkflowOptions": [
        {"Name": "output_storage", "Value": "TEMPORARY"}]}  # fmt: skip
    answer = connection.session.post(f"{connection.url}/BatchOrder/OData.CSC.Order", json=body)
    assert answer.status_code == 201 and len(sandbox.hook.orders) == 1


def test_a_token_is_renewed_before_it_ends(sandbox):
    tokens = iter(
        [sandbox.identity.token("sandbox-user", expires_in=http.Token.MARGIN - 5), "not-a-json-web-token", "unused"]
    )
    token = http.Token(lambda: next(tokens))
    first = token()
    assert token() == "not-a-json-web-token" != first
    assert token() == "not-a-json-web-token"  # of which nobody knows when it ends
    assert repr(token) == "Token(********)"


def test_a_token_refused_to_many_is_fetched_once():
    count = iter(range(100))
    token = http.Token(lambda: f"token-{next(count)}")
    first = token()
    threads = [threading.Thread(target=token, kwargs={"refused": first}) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert token() == "token-1"


def test_what_is_addressed_to_one_place_goes_to_another(sandbox):
    session = http.harden(requests.Session())
    http.elsewhere(session, "https://auth.destine.eu", sandbox.url("identity"))
    path = "/auth/realms/dedl/.well-known/openid-configuration"
    assert session.get(f"https://auth.destine.eu{path}").status_code == 200
    assert len(sandbox.traffic.received("identity", "GET", path)) == 1


def test_the_bearer_stays_out_of_errors(sandbox, settings):
    secret = sandbox.identity.token("sandbox-user")
    sandbox.traffic.fail("forbidden", service="hook")
    with pytest.raises(Rejected) as error:
        workflows(hook.connect(settings.model_copy(update={"dedl_token": SecretStr(secret)})))
    assert secret not in str(error.value)
    assert secret not in repr(hook.connect(settings))
