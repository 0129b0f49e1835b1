"""Stand-in for DestinE's two identity providers, both Keycloaks: realm ``desp`` (platform) and ``dedl`` (Data Lake).

A user logs in at the platform with a form, and gets a code; the code is traded for the platform's token, and that for
a token of the Data Lake, which its services accept. Paths, fields and the order of the steps are those of destinelab
1.14; statuses, error words, cookies and claims are Keycloak's. Not here: refresh tokens (the real answers bring none),
single sign-on between two logins, and a one-time password that is refused the second time within its 30 seconds.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from hashlib import sha256
from threading import Lock
from typing import Any, NamedTuple
from urllib.parse import urlencode
from uuid import NAMESPACE_URL, uuid4, uuid5

import jwt
import pyotp
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flask import Flask, Response, jsonify, make_response, redirect, render_template_string, request
from jwt.algorithms import RSAAlgorithm

from .clock import Clock


class Realm(NamedTuple):
    """One Keycloak realm: where its paths begin, and the issuer that its tokens name."""

    path: str
    issuer: str

    @property
    def openid(self) -> str:
        return f"{self.path}/protocol/openid-connect"


DESP = Realm("/realms/desp", "https://auth.destine.eu/realms/desp")
DEDL = Realm("/auth/realms/dedl", "https://identity.data.destination-earth.eu/auth/realms/dedl")
#: Clients that may send a user to the login page, and where each may have the user sent back to. The first is
#: destinelab's; where the second returns to is in no published source: the root of the service it is named after.
REDIRECTS = {
    "dedl-hda": "https://hda.data.destination-earth.eu/",
    "dedl-hook": "https://odp.data.destination-earth.eu/",
}
#: The Data Lake's client without a secret: for token exchange and passwords.
PUBLIC_CLIENT = "hda-public"
#: The platform's name at the Data Lake.
SUBJECT_ISSUER = "desp-oidc"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
#: Lifetime of tokens, s: about ten hours.
TOKEN_SECONDS = 36_000
#: Keycloak's defaults, s: for trading a code in, and for filling in the login form.
CODE_SECONDS, LOGIN_SECONDS = 60, 1800
#: What a newly registered user may do at the Hook.
DEFAULT_ROLES = ("hook-workflows", "hook-low")

WRONG_PASSWORD = "Invalid username or password."  # pragma: allowlist secret
WRONG_OTP = "Invalid authenticator code."
WRONG_CLIENT = "Invalid client or Invalid client credentials"
PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>DestinE (sandbox)</title></head>
<body>
{%- if action %}
<form id="{{ form }}" action="{{ action }}" method="post">
{%- if form == "kc-form-login" %}
  <label>Username or email <input id="username" name="username" type="text" autocomplete="username"></label>
  <label>Password <input id="password" name="password" type="password" autocomplete="current-password"></label>
  {%- if error %}<span id="input-error" aria-live="polite">{{ error }}</span>{% endif %}
{%- else %}
  <label>Code <input id="otp" name="otp" type="text" autocomplete="one-time-code" inputmode="numeric"></label>
  {%- if error %}<span id="input-error-otp-code" aria-live="polite">{{ error }}</span>{% endif %}
{%- endif %}
  <input id="kc-login" name="login" type="submit" value="Sign In">
</form>
{%- else %}
<p class="instruction">{{ error }}</p>
{%- endif %}
</body>
</html>
"""

_generating = Lock()


@cache
def _generate(_: Realm) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _signing_key(realm: Realm) -> rsa.RSAPrivateKey:
    """The realm's key, the same for all stand-ins of a process: making one takes 0.1 s and waits for the first use."""
    with _generating:  # two at once would each get, and sign with, a key of their own
        return _generate(realm)


def _key_id(realm: Realm) -> str:
    public = _signing_key(realm).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return sha256(public).hexdigest()[:32]


@dataclass(frozen=True, repr=False)
class _User:
    password: str
    roles: tuple[str, ...]
    totp: pyotp.TOTP | None


@dataclass(frozen=True, repr=False)
class _Client:
    secret: str
    roles: tuple[str, ...]


@dataclass(frozen=True)
class _Login:
    """A user on the way through the forms, or (under a code) arrived."""

    client_id: str
    redirect_uri: str
    state: str | None
    session: str  #: what the cookie holds
    ends: datetime
    username: str = ""  #: once the password was right


class _Refused(Exception):
    """What the token endpoint says no to, with its status and Keycloak's words."""

    def __init__(self, status: int, error: str, description: str):
        super().__init__(description)
        self.status, self.error = status, error


class Identity:
    """Both identity providers: their users and service accounts, and the WSGI application ``app`` that serves them.

    Parameters
    ----------
    clock:
        The sandbox's time, for login forms and codes. Tokens expire in real time: the libraries that check them know
        no other.

    Attributes
    ----------
    lifetime:
        Lifetime of the Data Lake's tokens issued from now on, whole seconds (what checks them cuts fractions off).
        0 or less: expired when issued. The platform's tokens always last `TOKEN_SECONDS`.
    """

    def __init__(self, clock: Clock | None = None):
        self.clock = clock or Clock()
        self.lifetime: float = TOKEN_SECONDS
        self.users: dict[str, _User] = {}
        self.clients: dict[str, _Client] = {}
        self._logins: dict[str, _Login] = {}
        self._codes: dict[str, _Login] = {}
        self._lock = Lock()
        self.app = _make_app(self)

    def add_user(
        self, username: str, password: str, roles: Iterable[str] = DEFAULT_ROLES, totp_secret: str | None = None
    ) -> None:
        """Register a user, or change one. ``roles`` are those at the Data Lake.

        Raises
        ------
        ValueError
            ``totp_secret`` is not base32.
        """
        totp = pyotp.TOTP(totp_secret) if totp_secret else None
        self.users[username] = _User(password, tuple(roles), totp)

    def add_client(self, client_id: str, client_secret: str, roles: Iterable[str]) -> None:
        """Register a service account of the Data Lake, or change one."""
        self.clients[client_id] = _Client(client_secret, tuple(roles))

    def accepts(self, username: str, password: str) -> bool:
        """Is this the user's password?"""
        return username in self.users and self.users[username].password == password

    def token(self, username: str, roles: tuple[str, ...] | None = None, expires_in: float = TOKEN_SECONDS) -> str:
        """An access token of the Data Lake, without a login. ``roles``: those of the user by default.

        Raises
        ------
        KeyError
            No roles given, and no such user.
        """
        roles = self.users[username].roles if roles is None else roles
        return _sign(DEDL, username, roles, PUBLIC_CLIENT, expires_in)

    def verify(self, bearer: str) -> dict:
        """The claims of an access token of the Data Lake (without the word "Bearer").

        Raises
        ------
        jwt.InvalidTokenError
            Expired, not signed by the Data Lake's identity provider, or not a token at all.
        """
        return _verify(DEDL, bearer)

    # --- the login form ---

    def open_login(self, client_id: str, redirect_uri: str, state: str | None) -> Response:
        """The first page; the cookie that comes with it is asked for with each form sent."""
        ends = self.clock.now() + timedelta(seconds=LOGIN_SECONDS)
        login = _Login(client_id, redirect_uri, state, str(uuid4()), ends)
        answer = self._page("kc-form-login", login)
        answer.set_cookie("AUTH_SESSION_ID", login.session, path=f"{DESP.path}/", httponly=True)
        return answer

    def submit(self, session_code: str, session: str | None, form: Any) -> Response:
        """Take a form: on to the next page, or back to the same one with an error. Each can be sent once."""
        login = self._take(self._logins, session_code)
        if login is None:
            return _problem_page("Page has expired.")
        if session != login.session:
            return _problem_page("Cookie not found. Please make sure cookies are enabled in your browser.")
        if not login.username:
            username = form.get("username", "")
            if not self.accepts(username, form.get("password", "")):
                return self._page("kc-form-login", login, WRONG_PASSWORD)
            login = replace(login, username=username)
            if self.users[username].totp:
                return self._page("kc-otp-login-form", login)
        elif not self._knows_otp(login.username, form.get("otp", "")):
            return self._page("kc-otp-login-form", login, WRONG_OTP)
        login = replace(login, ends=self.clock.now() + timedelta(seconds=CODE_SECONDS))
        query = {"state": login.state, "session_state": login.session, "iss": DESP.issuer}
        return _send_back(login.redirect_uri, query | {"code": self._keep(self._codes, login)})

    def _knows_otp(self, username: str, otp: str) -> bool:
        totp = self.users[username].totp
        return totp is None or totp.verify(otp, valid_window=1)  # Keycloak's look-around window

    def _page(self, form: str, login: _Login, error: str = "") -> Response:
        place = {"execution": form, "client_id": login.client_id, "tab_id": login.session[:11]}
        query = urlencode({"session_code": self._keep(self._logins, login)} | place)
        action = f"{request.url_root.rstrip('/')}{DESP.path}/login-actions/authenticate?{query}"
        answer = make_response(render_template_string(PAGE, form=form, action=action, error=error))
        answer.headers["Cache-Control"] = "no-store, must-revalidate, max-age=0"
        return answer

    def _keep(self, where: dict[str, _Login], login: _Login) -> str:
        """Keep a login under a new key, and let go of those that nobody finished."""
        key, now = str(uuid4()), self.clock.now()
        with self._lock:
            for old in [old for old, kept in where.items() if kept.ends <= now]:
                del where[old]
            where[key] = login
        return key

    def _take(self, where: dict[str, _Login], key: str) -> _Login | None:
        with self._lock:
            login = where.pop(key, None)
        return login if login and login.ends > self.clock.now() else None

    # --- the token endpoints ---

    def trade_code(self, form: Any) -> dict:
        """The platform's token for a code. A code that was once sent is gone, whether it was traded in or not."""
        client_id = form.get("client_id")
        if not client_id:
            raise _Refused(400, "invalid_client", "Missing client_id parameter")
        if client_id not in REDIRECTS:
            raise _Refused(401, "invalid_client", WRONG_CLIENT)
        if "code" not in form:
            raise _Refused(400, "invalid_request", "Missing parameter: code")
        login = self._take(self._codes, form["code"])
        if login is None:
            raise _Refused(400, "invalid_grant", "Code not valid")
        if login.client_id != client_id:
            raise _Refused(400, "invalid_grant", "Auth error")
        if login.redirect_uri != form.get("redirect_uri"):
            raise _Refused(400, "invalid_grant", "Incorrect redirect_uri")
        return _answer(_sign(DESP, login.username, (), client_id, TOKEN_SECONDS), TOKEN_SECONDS)

    def exchange(self, form: Any) -> dict:
        """The Data Lake's token for the platform's."""
        self._client(form)
        if form.get("subject_issuer") != SUBJECT_ISSUER:
            raise _Refused(400, "invalid_issuer", "Invalid subject_issuer parameter")
        if form.get("subject_token_type", ACCESS_TOKEN) != ACCESS_TOKEN:
            raise _Refused(400, "invalid_token", "invalid token type")
        if form.get("audience", PUBLIC_CLIENT) != PUBLIC_CLIENT:
            raise _Refused(400, "invalid_client", "Audience not found")
        try:
            username = _verify(DESP, form.get("subject_token", ""))["preferred_username"]
            return self._log_in(username, self.users[username].roles, PUBLIC_CLIENT)
        except (jwt.InvalidTokenError, KeyError):  # the second: a user of before the sandbox's reset
            raise _Refused(400, "invalid_token", "invalid token") from None

    def check_password(self, form: Any) -> dict:
        """The Data Lake's token for a user's name and password (and one-time password, where the account has one)."""
        client_id, username = self._client(form), form.get("username", "")
        right = self.accepts(username, form.get("password", ""))
        if not right or not self._knows_otp(username, form.get("otp") or form.get("totp", "")):
            raise _Refused(401, "invalid_grant", "Invalid user credentials")
        return self._log_in(username, self.users[username].roles, client_id)

    def check_secret(self, form: Any) -> dict:
        """The Data Lake's token for a service account."""
        client_id = self._client(form)
        if client_id == PUBLIC_CLIENT:
            raise _Refused(401, "unauthorized_client", "Public client not allowed to retrieve service account")
        return self._log_in(f"service-account-{client_id}", self.clients[client_id].roles, client_id)

    def _client(self, form: Any) -> str:
        """The client that asks: the public one, or a service account with its secret in the form or as Basic."""
        basic = request.authorization
        if basic and basic.type == "basic":
            client_id, secret = basic.username, basic.password
        else:
            client_id, secret = form.get("client_id"), form.get("client_secret")
        if not client_id:
            raise _Refused(400, "invalid_client", "Missing client_id parameter")
        if client_id != PUBLIC_CLIENT:
            if client_id not in self.clients:
                raise _Refused(401, "invalid_client", WRONG_CLIENT)
            if secret != self.clients[client_id].secret:
                raise _Refused(401, "unauthorized_client", WRONG_CLIENT)
        return client_id

    def _log_in(self, username: str, roles: tuple[str, ...], client_id: str) -> dict:
        return _answer(_sign(DEDL, username, roles, client_id, self.lifetime), self.lifetime)


def _sign(realm: Realm, username: str, roles: Iterable[str], client_id: str, seconds: float) -> str:
    now = time.time()  # real time: see Identity
    claims = {
        "exp": int(now + seconds),
        "iat": int(now),
        "jti": str(uuid4()),
        "iss": realm.issuer,
        "aud": "account",
        "sub": str(uuid5(NAMESPACE_URL, f"{realm.issuer}/{username}")),  # the same at each login
        "typ": "Bearer",
        "azp": client_id,
        "realm_access": {"roles": list(roles)},
        "scope": "openid profile email",
        "preferred_username": username,
    }
    return jwt.encode(claims, _signing_key(realm), algorithm="RS256", headers={"kid": _key_id(realm)})


def _verify(realm: Realm, token: str) -> dict:
    return jwt.decode(
        token,
        _signing_key(realm).public_key(),
        algorithms=["RS256"],
        issuer=realm.issuer,
        options={"verify_aud": False, "require": ["exp"]},
    )


def _answer(token: str, seconds: float) -> dict:
    return {
        "access_token": token,
        "expires_in": int(seconds),
        "refresh_expires_in": 0,
        "token_type": "Bearer",
        "not-before-policy": 0,
        "scope": "openid profile email",
    }


def _problem_page(error: str) -> Response:
    return make_response(render_template_string(PAGE, error=error), 400)


def _send_back(redirect_uri: str, query: dict[str, str | None]) -> Any:
    sent = urlencode({name: value for name, value in query.items() if value is not None})
    return redirect(f"{redirect_uri}{'&' if '?' in redirect_uri else '?'}{sent}")


def _make_app(identity: Identity) -> Flask:
    app = Flask("identity")
    grants = {
        DESP: {"authorization_code": identity.trade_code},
        DEDL: {
            "urn:ietf:params:oauth:grant-type:token-exchange": identity.exchange,
            "client_credentials": identity.check_secret,
            "password": identity.check_password,
        },
    }

    @app.errorhandler(_Refused)
    def refused(refusal: _Refused) -> Any:
        return jsonify({"error": refusal.error, "error_description": str(refusal)}), refusal.status

    @app.get(f"{DESP.openid}/auth")
    def auth() -> Response:
        asked = request.args
        client_id, redirect_uri = asked.get("client_id"), asked.get("redirect_uri")
        if not client_id:
            return _problem_page("Missing parameter: client_id")
        if client_id not in REDIRECTS:
            return _problem_page("Client not found.")
        if not redirect_uri or not redirect_uri.startswith(REDIRECTS[client_id]):
            return _problem_page("Invalid parameter: redirect_uri")
        if asked.get("response_type") != "code":
            error = "unsupported_response_type" if "response_type" in asked else "invalid_request"
            return _send_back(redirect_uri, {"error": error, "state": asked.get("state"), "iss": DESP.issuer})
        return identity.open_login(client_id, redirect_uri, asked.get("state"))

    @app.post(f"{DESP.path}/login-actions/authenticate")
    def authenticate() -> Response:
        code = request.args.get("session_code", "")
        return identity.submit(code, request.cookies.get("AUTH_SESSION_ID"), request.form)

    def serve(realm: Realm) -> None:
        name = realm.path.rpartition("/")[2]

        def token() -> Any:
            wanted = request.form.get("grant_type")
            if not wanted:
                raise _Refused(400, "invalid_request", "Missing form parameter: grant_type")
            if wanted not in grants[realm]:
                raise _Refused(400, "unsupported_grant_type", "Unsupported grant_type")
            answer = jsonify(grants[realm][wanted](request.form))
            answer.headers["Cache-Control"] = "no-store"
            return answer

        def certs() -> Any:
            key = RSAAlgorithm.to_jwk(_signing_key(realm).public_key(), as_dict=True)
            del key["key_ops"]  # says the same as "use", and a key has one or the other
            return jsonify({"keys": [key | {"kid": _key_id(realm), "alg": "RS256", "use": "sig"}]})

        def configuration() -> Any:
            # The issuer has its public name; the endpoints are named as they were reached.
            root = f"{request.url_root.rstrip('/')}{realm.openid}"
            login = {"authorization_endpoint": f"{root}/auth"} if realm is DESP else {}
            return jsonify(
                {
                    "issuer": realm.issuer,
                    **login,
                    "token_endpoint": f"{root}/token",
                    "jwks_uri": f"{root}/certs",
                    "grant_types_supported": list(grants[realm]),
                    "response_types_supported": ["code"],
                    "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["RS256"],
                    "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
                }
            )

        app.add_url_rule(f"{realm.openid}/token", f"{name}-token", token, methods=["POST"])
        app.add_url_rule(f"{realm.openid}/certs", f"{name}-certs", certs)
        app.add_url_rule(f"{realm.path}/.well-known/openid-configuration", f"{name}-configuration", configuration)

    serve(DESP)
    serve(DEDL)
    return app
