"""HTTP as an unattended run needs it: time-outs, retries where repeating is harmless, errors that say what to do."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import InvalidHeader
from urllib3.util.retry import Retry

from .errors import FailedRemotely, Rejected, TimedOut

#: Seconds to wait for a connection, and for the next bytes of an answer.
TIMEOUT = (10, 60)
#: Repeating these cannot do anything twice. A POST is repeated only by who knows how to look first.
HARMLESS = ("GET", "HEAD", "OPTIONS")
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


class Throttled(TimedOut):
    """429: the service asks for a pause of ``seconds``. What was asked for has not been done."""

    def __init__(self, message: str, seconds: float):
        super().__init__(message)
        self.seconds = seconds


def harden(session: requests.Session, retries: int = 4) -> requests.Session:
    """Make ``session`` fit for unattended use, and return it.

    Every request gets a time-out. Harmless ones are retried on 429, 5xx and broken connections, with waits of 0, 1, 2,
    4 s, or what `Retry-After` says, five minutes at most. What still fails is raised:

    Raises (from every request of the session)
    ------
    TimedOut
        No connection, no answer in time, or (as :class:`Throttled`) a request for a pause.
    FailedRemotely
        5xx.
    Rejected
        Any other 4xx, with the service's own words.
    """
    retry = Retry(
        total=retries,
        backoff_factor=0.5,
        status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=HARMLESS,
        raise_on_status=False,
        retry_after_max=300,
    )
    for scheme in ("https://", "http://"):
        session.mount(scheme, _Adapter(max_retries=retry))
    if _refuse not in session.hooks["response"]:  # hardened again, only the retries change
        session.send = _explaining(session.send)  # type: ignore[method-assign]
        session.hooks["response"].append(_refuse)
    return session


class _Adapter(HTTPAdapter):
    def send(self, request: Any, *args: Any, **options: Any) -> requests.Response:
        if options.get("timeout") is None:
            options["timeout"] = TIMEOUT
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
    if status == 429:
        message = f"{where}: {said} Wait a little and run this cell again."
        raise Throttled(message, _pause(answer.headers.get("Retry-After")))
    if status >= 500:
        raise FailedRemotely(f"{where}: {said} The service has a problem; run this cell again later.")
    raise Rejected(f"{where}: {said} {ADVICE.get(status, '')}".rstrip())


def _pause(retry_after: str | None) -> float:
    """Seconds that a `Retry-After` header asks for, whether a number or a date; 1 without one."""
    try:
        return min(Retry().parse_retry_after(retry_after), 300) if retry_after else 1
    except InvalidHeader:
        return 1


def _words(answer: requests.Response) -> str:
    try:
        content = answer.json()
    except ValueError:
        return answer.reason or ""
    said = str(content.get("detail", content) if isinstance(content, dict) else content)
    return said if len(said) <= 2000 else f"{said[:2000]} ..."
