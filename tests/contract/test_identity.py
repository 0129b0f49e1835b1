"""The identity stand-in against the client that people use: destinelab's own classes log in to it, over HTTP.

destinelab's addresses are constants; its classes take what they send requests with, so the sessions given to them here
bring requests for the two real hosts to the stand-in. Answers that destinelab does not look at are read directly.
"""

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
import pyotp
import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import rsa
from destinelab import AuthHandler, DEDLAuth, DEDLServiceAccountAuth, DESPAuth
from destinelab.errors import InvalidCredentialsError, OTPRequiredError, TokenExchangeError
from destinelab.tools.token_tools import is_dedl_token_valid
from keycloak import KeycloakOpenID
from lxml import html
from requests.adapters import HTTPAdapter
from werkzeug.serving import WSGIRequestHandler, make_server

from helpers.sandbox.clock import Clock
from helpers.sandbox.faults import Traffic
from helpers.sandbox.identity import DEDL, DEFAULT_ROLES, Identity, Realm, _signing_key

HOSTS = ("https://auth.destine.eu", "https://identity.data.destination-earth.eu")
AUTH = "/realms/desp/protocol/openid-connect/auth"
FORM = "/realms/desp/login-actions/authenticate"
DESP_TOKEN = "/realms/desp/protocol/openid-connect/token"
DEDL_TOKEN = "/auth/realms/dedl/protocol/openid-connect/token"
LOGIN = [("GET", AUTH), ("POST", FORM), ("POST", DESP_TOKEN), ("POST", DEDL_TOKEN)]
CHECK = [
    ("GET", "/auth/realms/dedl/.well-known/openid-configuration"),
    ("GET", "/auth/realms/dedl/protocol/openid-connect/certs"),
]
ASKED = {
    "client_id": "dedl-hda",
    "redirect_uri": "https://hda.data.destination-earth.eu/stac",
    "response_type": "code",
    "scope": "openid",
}
EXCHANGE = {
    "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
    "client_id": "hda-public",
    "audience": "hda-public",
    "subject_issuer": "desp-oidc",
    "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
}
PASSWORD = "correct-horse-of-ada"
OTP_SECRET = pyotp.random_base32()


class _Quiet(WSGIRequestHandler):
    def log(self, *_) -> None:
        """`Traffic` has the requests."""


class World:
    """The stand-in, served, and the ways to reach it."""

    def __init__(self):
        self.identity, self.traffic = Identity(), Traffic()
        app = self.traffic.in_front_of(lambda *args: self.identity.app(*args), "identity")
        self.server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
        self.url = f"http://127.0.0.1:{self.server.port}"

    def received(self) -> list[tuple[str, str]]:
        return [(r.method, r.path) for r in self.traffic.received()]

    def session(self) -> requests.Session:
        session = requests.Session()
        for host in HOSTS:
            session.mount(host, ToStandIn(self.url))
        return session

    def post(self, url: str, **options) -> requests.Response:
        with self.session() as session:
            return session.post(url, **options)

    def handler(self, username="ada", password=PASSWORD, otp_provider=None) -> AuthHandler:
        return AuthHandler(
            username,
            password,
            desp_auth_class=partial(DESPAuth, session_factory=self.session, otp_provider=otp_provider),
            dedl_auth_class=partial(DEDLAuth, request_post=self.post),
            token_validator=self.is_valid,
        )

    def is_valid(self, token: str) -> bool:
        """destinelab's own check, through the key set."""

        def keycloak(server_url: str, **options) -> KeycloakOpenID:
            return KeycloakOpenID(server_url=f"{self.url}{urlsplit(server_url).path}", **options)

        return is_dedl_token_valid(token, keycloak_openid_class=keycloak)

    def open_form(self, session: requests.Session, **asked) -> str:
        """Open the login page; where its form is sent to."""
        answer = session.get(f"{self.url}{AUTH}", params=ASKED | asked, timeout=5)
        assert answer.status_code == 200, answer.text
        return html.fromstring(answer.text).forms[0].action

    def code(self, username="ada", **asked) -> str:
        with requests.Session() as session:
            form = {"username": username, "password": PASSWORD}
            answer = session.post(self.open_form(session, **asked), data=form, allow_redirects=False, timeout=5)
        return parse_qs(urlsplit(answer.headers["Location"]).query)["code"][0]

    def trade(self, code: str, **changed) -> requests.Response:
        form = {"grant_type": "authorization_code", "code": code} | ASKED | changed
        return requests.post(f"{self.url}{DESP_TOKEN}", data=form, timeout=5)

    def ask_dedl(self, form: dict, **options) -> requests.Response:
        return requests.post(f"{self.url}{DEDL_TOKEN}", data=form, timeout=5, **options)


class ToStandIn(HTTPAdapter):
    """Takes requests for the real hosts to the stand-in."""

    def __init__(self, url: str):
        super().__init__()
        self.url = url

    def send(self, request, **options):
        # Changed in place: the session files cookies under the address that the request then has.
        request.url = f"{self.url}{request.path_url}"
        return super().send(request, **options | {"proxies": {}})  # chosen for the real host


@pytest.fixture(scope="module")
def served():
    world = World()
    threading.Thread(target=world.server.serve_forever, args=(0.05,), daemon=True).start()
    yield world
    world.server.shutdown()
    world.server.server_close()


@pytest.fixture
def world(served):
    served.identity = Identity(Clock())
    served.identity.add_user("ada", PASSWORD, roles=("hook-workflows", "hook-high", "DPAD_Direct_Access"))
    served.identity.add_user("bob", PASSWORD)
    served.identity.add_user("otto", PASSWORD, totp_secret=OTP_SECRET)
    served.identity.add_client("robot", "secret-of-robot", roles=("hook-workflows", "hook-medium"))
    served.traffic.requests.clear()
    return served


@pytest.fixture(scope="module")
def foreign_key():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def refusal(answer: requests.Response) -> tuple[int, str]:
    assert set(answer.json()) == {"error", "error_description"}
    return answer.status_code, answer.json()["error"]


# --- destinelab logs in ---


def test_a_login_takes_four_requests_and_gives_a_token_of_the_data_lake(world):
    handler = world.handler()
    token = handler.get_token()

    assert world.received() == LOGIN
    claims = world.identity.verify(token)
    assert claims["preferred_username"] == "ada"
    assert claims["iss"] == "https://identity.data.destination-earth.eu/auth/realms/dedl"
    assert claims["exp"] - time.time() == pytest.approx(36_000, abs=60)
    assert handler.get_roles(token) == ["hook-workflows", "hook-high", "DPAD_Direct_Access"]
    assert handler.is_DTaccess_allowed(token)
    desp = handler.get_decoded_token(handler.desp_access_token)
    assert desp["iss"] == "https://auth.destine.eu/realms/desp"
    assert desp["azp"] == "dedl-hda"


def test_a_user_is_the_same_at_each_login(world):
    subjects = [world.identity.verify(world.handler(name).get_token())["sub"] for name in ("ada", "ada", "bob")]
    assert subjects[0] == subjects[1] != subjects[2]


def test_a_new_user_has_the_least_quota(world):
    handler = world.handler("bob")
    token = handler.get_token()
    assert handler.get_roles(token) == list(DEFAULT_ROLES) == ["hook-workflows", "hook-low"]
    assert not handler.is_DTaccess_allowed(token)


@pytest.mark.parametrize(("username", "password"), [("ada", "wrong"), ("ada", ""), ("nobody", PASSWORD)])
def test_a_wrong_password_is_told_in_the_pages_words(world, username, password):
    with pytest.raises(InvalidCredentialsError, match=r"^Invalid username or password\.$"):
        world.handler(username, password).get_token()
    assert world.received() == LOGIN[:2]


# --- one-time passwords ---


def test_an_account_with_otp_asks_the_provider_once(world):
    asked = []
    token = world.handler("otto", otp_provider=lambda: asked.append(1) or pyotp.TOTP(OTP_SECRET).now()).get_token()
    assert world.identity.verify(token)["preferred_username"] == "otto"
    assert asked == [1]
    assert world.received() == [LOGIN[0], ("POST", FORM), *LOGIN[1:]]


def test_a_watch_may_be_half_a_minute_fast_but_not_an_hour_slow(world):
    totp = pyotp.TOTP(OTP_SECRET)
    assert world.handler("otto", otp_provider=lambda: totp.at(time.time() + 30)).get_token()
    with pytest.raises(OTPRequiredError):
        world.handler("otto", otp_provider=lambda: totp.at(time.time() - 3600)).get_token()


@pytest.mark.parametrize("code", ["000", "not a number"])
def test_a_wrong_otp_is_refused(world, code):
    with pytest.raises(OTPRequiredError, match="OTP verification failed"):
        world.handler("otto", otp_provider=lambda: code).get_token()
    assert world.received() == [*LOGIN[:2], ("POST", FORM)]


def test_a_wrong_password_is_told_before_otp_is_asked_for(world):
    with pytest.raises(InvalidCredentialsError):
        world.handler("otto", "wrong", otp_provider=lambda: pytest.fail("asked")).get_token()


def test_without_a_provider_destinelab_reads_the_terminal_and_fails_where_there_is_none(world, monkeypatch):
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.raises(EOFError):
            world.handler("otto").get_token()
    assert world.received() == LOGIN[:2]


def test_a_secret_that_makes_no_codes_is_refused(world):
    with pytest.raises(ValueError, match=r"(?i)base32|padding"):
        world.identity.add_user("eve", "x", totp_secret="1!")


# --- checking tokens, and logging in again ---


def test_destinelab_accepts_a_fresh_token_and_no_other(world, foreign_key):
    token = world.identity.token("ada")
    assert world.is_valid(token)
    assert world.received() == CHECK

    claims, kid = world.identity.verify(token), jwt.get_unverified_header(token)["kid"]
    assert not world.is_valid(world.identity.token("ada", expires_in=-1))
    assert not world.is_valid(jwt.encode(claims, foreign_key, "RS256", headers={"kid": kid}))
    assert not world.is_valid(jwt.encode(claims, foreign_key, "RS256", headers={"kid": "of somebody else"}))
    handler = world.handler()
    handler.get_token()
    assert not world.is_valid(handler.desp_access_token)


def test_a_token_is_kept_while_valid_and_fetched_again_after(world):
    handler = world.handler()
    first = handler.get_token()
    world.traffic.requests.clear()
    assert handler.get_token() == first
    assert world.received() == CHECK

    world.identity.lifetime = 0
    handler = world.handler()
    expired = handler.get_token()
    world.identity.lifetime = 36_000
    world.traffic.requests.clear()
    renewed = handler.get_token()
    assert renewed != expired
    assert world.received() == [*CHECK, *LOGIN]
    with pytest.raises(jwt.ExpiredSignatureError):
        world.identity.verify(expired)
    assert world.identity.verify(renewed)


def test_a_short_life_ends_in_real_time(world):
    world.identity.lifetime = 1
    token = world.handler().get_token()
    ends = jwt.decode(token, options={"verify_signature": False})["exp"]
    while time.time() < ends:
        time.sleep(0.05)
    with pytest.raises(jwt.ExpiredSignatureError):
        world.identity.verify(token)


# --- service accounts, and passwords without a form ---


def test_a_service_account_gets_a_token_in_one_request(world):
    token = DEDLServiceAccountAuth("robot", "secret-of-robot", request_post=world.post).get_token()
    claims = world.identity.verify(token)
    assert (claims["azp"], claims["preferred_username"]) == ("robot", "service-account-robot")
    assert claims["realm_access"]["roles"] == ["hook-workflows", "hook-medium"]
    assert world.received() == LOGIN[-1:]


@pytest.mark.parametrize(
    ("client_id", "secret"), [("robot", "wrong"), ("robot", ""), ("nobody", "x"), ("hda-public", "x")]
)
def test_a_service_account_needs_its_secret(world, client_id, secret):
    with pytest.raises(InvalidCredentialsError, match="HTTP 401"):
        DEDLServiceAccountAuth(client_id, secret, request_post=world.post).get_token()


def test_a_service_account_may_send_its_secret_as_basic(world):
    form = {"grant_type": "client_credentials"}
    assert world.ask_dedl(form, auth=("robot", "secret-of-robot")).status_code == 200
    assert refusal(world.ask_dedl(form, auth=("robot", "wrong"))) == (401, "unauthorized_client")


def test_a_user_gets_a_token_for_the_password_alone(world):
    form = {"grant_type": "password", "client_id": "hda-public", "username": "ada", "password": PASSWORD}
    answer = world.ask_dedl(form).json()
    assert world.identity.verify(answer["access_token"])["preferred_username"] == "ada"
    assert answer["expires_in"] == 36_000
    assert "refresh_token" not in answer
    assert refusal(world.ask_dedl(form | {"password": "wrong"})) == (401, "invalid_grant")
    assert refusal(world.ask_dedl(form | {"username": "nobody"})) == (401, "invalid_grant")


def test_a_password_alone_is_not_enough_for_an_account_with_otp(world):
    form = {"grant_type": "password", "client_id": "hda-public", "username": "otto", "password": PASSWORD}
    assert refusal(world.ask_dedl(form)) == (401, "invalid_grant")
    assert world.ask_dedl(form | {"otp": pyotp.TOTP(OTP_SECRET).now()}).status_code == 200


def test_knows_its_users_passwords(world):
    assert world.identity.accepts("ada", PASSWORD)
    assert not world.identity.accepts("ada", "wrong")
    assert not world.identity.accepts("nobody", PASSWORD)


# --- codes ---


def test_a_code_is_good_once(world):
    code = world.code()
    answer = world.trade(code)
    assert answer.status_code == 200
    assert answer.json()["expires_in"] == 36_000
    assert "refresh_token" not in answer.json()
    assert refusal(world.trade(code)) == (400, "invalid_grant")


@pytest.mark.parametrize(
    ("changed", "refused"),
    [
        ({"redirect_uri": "https://hda.data.destination-earth.eu/stac/"}, (400, "invalid_grant")),
        ({"client_id": "dedl-hook"}, (400, "invalid_grant")),
        ({"client_id": "nobody"}, (401, "invalid_client")),
        ({"client_id": ""}, (400, "invalid_client")),
        ({"code": "made-up"}, (400, "invalid_grant")),
        ({"code": None}, (400, "invalid_request")),
        ({"grant_type": None}, (400, "invalid_request")),
        ({"grant_type": "password"}, (400, "unsupported_grant_type")),
    ],
    ids=str,
)
def test_a_code_is_for_whom_it_was_given_to(world, changed, refused):
    assert refusal(world.trade(**{"code": world.code()} | changed)) == refused


def test_a_code_lasts_a_minute_and_a_form_half_an_hour(world):
    good, late = world.code(), world.code()
    world.identity.clock.advance(59)
    assert world.trade(good).status_code == 200
    world.identity.clock.advance(2)
    assert refusal(world.trade(late)) == (400, "invalid_grant")

    with requests.Session() as session:
        action = world.open_form(session)
        world.identity.clock.advance(1801)
        answer = session.post(action, data={"username": "ada", "password": PASSWORD}, timeout=5)
    assert answer.status_code == 400


# --- the exchange ---


def test_the_exchange_takes_only_a_valid_token_of_the_platform(world, foreign_key):
    good = world.trade(world.code()).json()["access_token"]
    claims = jwt.decode(good, options={"verify_signature": False})
    kid = jwt.get_unverified_header(good)["kid"]
    bad = {
        "garbage": "garbage",
        "nothing": "",
        "the data lake's own": world.identity.token("ada"),
        "forged": jwt.encode(claims, foreign_key, "RS256", headers={"kid": kid}),
        "unsigned": jwt.encode(claims, None, "none"),
    }
    for name, token in bad.items():
        assert refusal(world.ask_dedl(EXCHANGE | {"subject_token": token})) == (400, "invalid_token"), name
    with pytest.raises(TokenExchangeError, match="HTTP 400"):
        DEDLAuth("garbage", request_post=world.post).get_token()
    assert world.ask_dedl(EXCHANGE | {"subject_token": good}).status_code == 200


def test_the_exchange_refuses_an_expired_token_and_an_unknown_user(world, monkeypatch):
    monkeypatch.setattr("helpers.sandbox.identity.TOKEN_SECONDS", -1)
    expired = world.trade(world.code()).json()["access_token"]
    monkeypatch.undo()
    assert refusal(world.ask_dedl(EXCHANGE | {"subject_token": expired})) == (400, "invalid_token")

    token = world.trade(world.code()).json()["access_token"]
    world.identity = Identity()  # as after a reset of the sandbox
    assert refusal(world.ask_dedl(EXCHANGE | {"subject_token": token})) == (400, "invalid_token")


@pytest.mark.parametrize(
    ("changed", "refused"),
    [
        ({"subject_issuer": "somebody"}, (400, "invalid_issuer")),
        ({"audience": "somebody"}, (400, "invalid_client")),
        ({"subject_token_type": "urn:ietf:params:oauth:token-type:saml2"}, (400, "invalid_token")),
        ({"client_id": "nobody"}, (401, "invalid_client")),
        ({"grant_type": "authorization_code"}, (400, "unsupported_grant_type")),
    ],
    ids=str,
)
def test_the_exchange_is_particular(world, changed, refused):
    token = world.trade(world.code()).json()["access_token"]
    assert refusal(world.ask_dedl(EXCHANGE | {"subject_token": token} | changed)) == refused


# --- what the services check tokens with ---


def test_verifies_only_tokens_of_the_data_lake(world, foreign_key):
    token = world.identity.token("ada")
    claims, kid = world.identity.verify(token), jwt.get_unverified_header(token)["kid"]
    assert claims["realm_access"]["roles"] == ["hook-workflows", "hook-high", "DPAD_Direct_Access"]
    body, signature = token.rsplit(".", 1)
    bad = {
        "the platform's": world.trade(world.code()).json()["access_token"],
        "expired": world.identity.token("ada", expires_in=-1),
        "forged": jwt.encode(claims, foreign_key, "RS256", headers={"kid": kid}),
        "unsigned": jwt.encode(claims, None, "none"),
        "changed": f"{body}x.{signature}",
        "symmetric": jwt.encode(claims, "x" * 32, "HS256", headers={"kid": kid}),
        "empty": "",
    }
    for name, bearer in bad.items():
        with pytest.raises(jwt.InvalidTokenError):
            pytest.fail(f"{name}: {world.identity.verify(bearer)}")


def test_an_issuer_of_another_name_is_refused(world):
    claims = world.identity.verify(world.identity.token("ada")) | {"iss": "https://elsewhere.example/auth/realms/dedl"}
    with pytest.raises(jwt.InvalidIssuerError):
        world.identity.verify(jwt.encode(claims, _signing_key(DEDL), "RS256"))


def test_a_token_can_be_made_with_roles_of_choice(world):
    assert world.identity.verify(world.identity.token("anybody", roles=()))["realm_access"]["roles"] == []
    with pytest.raises(KeyError):
        world.identity.token("anybody")


def test_each_realm_describes_itself_and_has_its_own_key(world):
    keys = {}
    for path in ("/realms/desp", "/auth/realms/dedl"):
        said = requests.get(f"{world.url}{path}/.well-known/openid-configuration", timeout=5).json()
        assert urlsplit(said["issuer"]).path == path
        assert said["token_endpoint"] == f"{world.url}{path}/protocol/openid-connect/token"
        [keys[path]] = requests.get(said["jwks_uri"], timeout=5).json()["keys"]
    assert keys["/realms/desp"]["kid"] != keys["/auth/realms/dedl"]["kid"]
    assert keys["/realms/desp"]["n"] != keys["/auth/realms/dedl"]["n"]


def test_requests_that_come_together_share_one_key():
    ready, realm = threading.Barrier(4), Realm("/realms/new", "https://new.example")

    def key(_: int) -> object:
        ready.wait()
        return _signing_key(realm)

    with ThreadPoolExecutor(4) as pool:
        assert len(set(map(id, pool.map(key, range(4))))) == 1


def test_users_log_in_side_by_side(world):
    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(lambda name: world.handler(name).get_token(), ["ada", "bob"] * 8))
    assert [world.identity.verify(token)["preferred_username"] for token in tokens] == ["ada", "bob"] * 8


# --- the login page ---


@pytest.mark.parametrize(
    "changed",
    [
        {"client_id": "nobody"},
        {"client_id": None},
        {"redirect_uri": "https://elsewhere.example/stac"},
        {"redirect_uri": "https://hda.data.destination-earth.eu.elsewhere.example/"},
        {"redirect_uri": None},
        {"client_id": "dedl-hook"},  # with the other client's address
    ],
    ids=str,
)
def test_an_unknown_client_or_address_gets_no_form(world, changed):
    answer = requests.get(f"{world.url}{AUTH}", params=ASKED | changed, allow_redirects=False, timeout=5)
    assert answer.status_code == 400
    assert not html.fromstring(answer.text).forms


def test_a_wrong_response_type_is_told_to_the_application(world):
    asked = ASKED | {"response_type": "token", "state": "s"}
    answer = requests.get(f"{world.url}{AUTH}", params=asked, allow_redirects=False, timeout=5)
    assert answer.status_code == 302
    assert answer.headers["Location"].startswith(f"{ASKED['redirect_uri']}?error=unsupported_response_type&state=s")


def test_the_older_client_and_the_older_address_still_work(world):
    hook = {"client_id": "dedl-hook", "redirect_uri": "https://odp.data.destination-earth.eu/odata/v1/"}
    assert world.trade(world.code(**hook), **hook).status_code == 200
    # Published scripts put a "/" too many between host and path.
    with requests.Session() as session:
        answer = session.get(f"{world.url}/{AUTH}", params=ASKED, timeout=5)
        assert len(html.fromstring(answer.text).forms) == 1


def test_the_way_back_has_the_state_and_a_code(world):
    with requests.Session() as session:
        action = world.open_form(session, state="a&b")
        form = {"username": "ada", "password": PASSWORD}
        answer = session.post(action, data=form, allow_redirects=False, timeout=5)
    assert answer.status_code == 302
    back = urlsplit(answer.headers["Location"])
    assert back._replace(query="").geturl() == ASKED["redirect_uri"]
    assert parse_qs(back.query)["state"] == ["a&b"]


def test_a_form_is_sent_once_and_with_its_cookie(world):
    form = {"username": "ada", "password": PASSWORD}
    with requests.Session() as session:
        action = world.open_form(session)
        refused = session.post(action, data=form | {"password": "wrong"}, timeout=5)
        assert refused.status_code == 200
        assert session.post(action, data=form, timeout=5).status_code == 400  # that page is gone
        again = html.fromstring(refused.text).forms[0].action
        assert session.post(again, data=form, allow_redirects=False, timeout=5).status_code == 302
        fresh = world.open_form(session)
    assert requests.post(fresh, data=form, allow_redirects=False, timeout=5).status_code == 400


def test_the_otp_page_cannot_be_skipped_or_used_for_another_account(world):
    with requests.Session() as session:
        action = world.open_form(session)
        page = session.post(action, data={"username": "otto", "password": PASSWORD}, timeout=5)
        action = html.fromstring(page.text).forms[0].action
        form = {"username": "ada", "password": PASSWORD}
        answer = session.post(action, data=form, allow_redirects=False, timeout=5)
        assert answer.status_code == 200
        wrong = html.fromstring(answer.text)
        assert wrong.xpath('//span[@id="input-error-otp-code"]/text()') == ["Invalid authenticator code."]
        form = {"otp": pyotp.TOTP(OTP_SECRET).now()}
        answer = session.post(wrong.forms[0].action, data=form, allow_redirects=False, timeout=5)
    assert answer.status_code == 302


# --- discretion ---


def test_no_answer_repeats_a_secret(world, caplog, capfd):
    canary = "canary-<b>7d1f"
    with requests.Session() as session:
        answers = [session.post(world.open_form(session), data={"username": canary, "password": canary}, timeout=5)]
    answers += [
        requests.get(f"{world.url}{AUTH}?{urlencode(ASKED | {'client_id': canary})}", timeout=5),
        world.trade(canary),
        world.ask_dedl({"grant_type": "password", "client_id": "hda-public", "username": "ada", "password": canary}),
        world.ask_dedl({"grant_type": "client_credentials", "client_id": "robot", "client_secret": canary}),
        world.ask_dedl(EXCHANGE | {"subject_token": canary}),
    ]
    said = "".join(answer.text for answer in answers)
    assert len(said) > 500
    assert "7d1f" not in said + caplog.text + "".join(capfd.readouterr())
