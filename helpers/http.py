"""HTTP as an unattended run needs it: time-outs, retries where repeating is harmless, errors that say what to do."""

import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import jwt
import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import InvalidHeader, MaxRetryError
from urllib3.util.retry import Retry

from .errors import FailedRemotely, Rejected, TimedOut

#: Seconds to wait for a connection, and for the next bytes of an answer.
TIMEOUT = (10, 60)
#: Repeating these cannot do anything twice. A POST is repeated only by who knows how to look first.
HARMLESS = ("GET", "HEAD", "OPTIONS")
#: Seconds that are worth waiting for when a service asks for a pause: a quota of the month is not.
LONGEST_PAUSE = 300
YEAR = 366 * 86400
#: What requests raises when no answer comes, or half of one.
NO_ANSWER = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
    requests.exceptions.RetryError,
)
#: What to do about an answer.
ADVICE = {
    401: "Get a new token (`.env_tutorial` says where), then run this cell again.",
    403: "Your account may not do this; the service's documentation says how to ask for access.",
}


class Refused(Rejected):
    """A 4xx answer: its ``status``, and what the service ``said``."""

    def __init__(self, message: str, status: int, said: str):
        super().__init__(message)
        self.status, self.said = status, said


class Throttled(TimedOut):
    """429: the service asks for a pause of ``seconds``. What was asked for has not been done."""

    def __init__(self, message: str, seconds: float):
        super().__init__(message)
        self.seconds = seconds


class Token:
    """A bearer token that is fetched when it is first needed, and again shortly before it ends.

    Parameters
    ----------
    fetch:
        Logs in and returns a token, and is called as seldom as can be: a login may cost several requests. The end of
        a JSON Web Token is read from the token itself; any other is kept until the service refuses it.
    """

    #: Seconds before its end from which a token is not used any more: a request may take a while to arrive.
    MARGIN = 60

    def __init__(self, fetch: Callable[[], str]):
        self._fetch, self._lock = fetch, threading.Lock()
        self._token, self._ends = "", 0.0

    def __call__(self, refused: str = "") -> str:
        """The token to use now; a new one if the last one is about to end, or was ``refused``."""
        with self._lock:
            if time.time() > self._ends - self.MARGIN or (refused and refused == self._token):
                self._token = self._fetch()
                self._ends = _end(self._token)
            return self._token

    def __repr__(self) -> str:
        return "Token(********)"


def _end(token: str) -> float:
    try:
        return jwt.decode(token, options={"verify_signature": False}).get("exp", float("inf"))
    except jwt.InvalidTokenError:
        return float("inf")


class Bearer(requests.auth.AuthBase):
    """``Authorization: Bearer ...``, asked of ``token`` for each request; a refused one is renewed, once a request."""

    def __init__(self, token: Token):
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.token()}"
        request.register_hook("response", self._renew)
        return request

    def _renew(self, answer: requests.Response, **options: Any) -> requests.Response:
        sent = answer.request.headers.get("Authorization", "").removeprefix("Bearer ")
        if answer.status_code != 401 or not sent or (new := self.token(refused=sent)) == sent:
            return answer
        answer.content  # noqa: B018 - read to its end, the connection can be used again
        again = answer.request.copy()
        again.headers["Authorization"] = f"Bearer {new}"
        # What was refused has not been done: it may be sent again, whatever the method.
        return answer.connection.send(again, **options)


def harden(session: requests.Session, retries: int = 4) -> requests.Session:
    """Make ``session`` fit for unattended use, and return it.

    Every request gets a time-out. Harmless ones are retried on 429, 5xx and broken connections, with waits of 0, 1, 2,
    4 s, or what `Retry-After` says; more than five minutes are not waited for. What still fails is raised:

    Raises (from every request of the session)
    ------
    TimedOut
        No connection, no answer in time, or (as :class:`Throttled`) a request for a pause.
    FailedRemotely
        5xx.
    Refused
        Any other 4xx, with the service's own words.
    """
    retry = _Retry(
        total=retries,
        backoff_factor=0.5,
        status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=HARMLESS,
        raise_on_status=False,
        retry_after_max=YEAR,
    )
    for scheme in ("https://", "http://"):
        session.mount(scheme, _Adapter(max_retries=retry))
    if _refuse not in session.hooks["response"]:  # hardened again, only the retries change
        session.send = _explaining(session.send)  # type: ignore[method-assign]
        session.hooks["response"].append(_refuse)
    return session


def elsewhere(session: requests.Session, built_in: str, configured: str) -> None:
    """Send what a library addresses to ``built_in`` (scheme and host) to the ``configured`` address instead."""
    session.mount(built_in, _Elsewhere(built_in, configured, max_retries=session.get_adapter(built_in).max_retries))


class _Retry(Retry):
    """urllib3's, but it does not wait for what is not worth waiting for: the answer is passed on at once."""

    def increment(self, method: Any = None, url: Any = None, response: Any = None, *args: Any, **more: Any) -> Retry:
        if response is not None and (self.get_retry_after(response) or 0) > LONGEST_PAUSE:
            raise MaxRetryError(None, url)  # type: ignore[arg-type]
        return super().increment(method, url, response, *args, **more)


class _Adapter(HTTPAdapter):
    def send(self, request: Any, *args: Any, **options: Any) -> requests.Response:
        if options.get("timeout") is None:
            options["timeout"] = TIMEOUT
        return super().send(request, *args, **options)


class _Elsewhere(_Adapter):
    def __init__(self, built_in: str, configured: str, **options: Any):
        super().__init__(**options)
        self.built_in, self.configured = built_in, configured.rstrip("/")

    def send(self, request: Any, *args: Any, **options: Any) -> requests.Response:
        request.url = self.configured + request.url.removeprefix(self.built_in)
        options["proxies"] = requests.utils.get_environ_proxies(request.url)  # those chosen are for the old address
        return super().send(request, *args, **options)


def _explaining(send: Callable[..., requests.Response]) -> Callable[..., requests.Response]:
    """``Session.send`` with our error for no answer, and for one that breaks off."""

    def explained(request: Any, **options: Any) -> requests.Response:
        try:
            return send(request, **options)
        except NO_ANSWER as error:
            host = urlsplit(request.url).netloc
            raise TimedOut(
                f"{request.method} {host}: no answer ({type(error).__name__})."
                " Is the network there? Run this cell again to carry on."
            ) from None

    return explained


def _refuse(answer: requests.Response, **_: Any) -> None:
    status = answer.status_code
    if status < 400:
        return
    # Without the query: it may be a signature.
    where = f"{answer.request.method} {answer.url.partition('?')[0]} answered {status}"
    said = _words(answer)
    sentence = said if not said or said.endswith((".", "!", "?")) else f"{said}."
    if status == 429:
        pause = _pause(answer.headers.get("Retry-After"))
        when = f"Wait {pause / 3600:,.1f} hours" if pause > LONGEST_PAUSE else "Wait a little"
        raise Throttled(f"{where}: {sentence} {when} and run this cell again.", pause)
    if status >= 500:
        raise FailedRemotely(f"{where}: {sentence} The service has a problem; run this cell again later.")
    advice = ADVICE.get(status)
    raise Refused(f"{where}: {sentence} {advice}" if advice else f"{where}: {said}", status, said)


def _pause(retry_after: str | None) -> float:
    """Seconds that a `Retry-After` header asks for, whether a number or a date; 1 without one."""
    try:
        return Retry(retry_after_max=YEAR).parse_retry_after(retry_after) if retry_after else 1
    except InvalidHeader:
        return 1


def _words(answer: requests.Response) -> str:
    try:
        content = answer.json()
    except ValueError:
        return answer.reason or ""
    said = _flat(content.get("detail", content) if isinstance(content, dict) else content)
    return said if len(said) <= 2000 else f"{said[:2000]} ..."


def _flat(detail: Any) -> str:
    """A text from the forms in which services explain themselves: a text, {"message"}, {"description"}, or a list."""
    match detail:
        case {"message": message} | {"description": message}:
            return str(message)
        case [{"msg": _}, *_]:
            return "; ".join(f"{'.'.join(map(str, one.get('loc', ())))}: {one.get('msg')}" for one in detail)
    return str(detail)
