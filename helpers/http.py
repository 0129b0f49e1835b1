"""HTTP as an unattended run needs it: time-outs, retries where repeating is harmless, errors that say what to do."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
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

    Every request gets a time-out. Harmless ones are retried on 429, 5xx and broken connections, with waits of 0.5, 1,
    2, ... s or what `Retry-After` says. What still fails is raised:

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
    )
    for scheme in ("https://", "http://"):
        session.mount(scheme, _Adapter(max_retries=retry))
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
        pause = answer.headers.get("Retry-After", "")
        raise Throttled(
            f"{where}: {said} Wait a little and run this cell again.", float(pause) if pause.isdigit() else 1
        )
    if status >= 500:
        raise FailedRemotely(f"{where}: {said} The service has a problem; run this cell again later.")
    raise Rejected(f"{where}: {said} {ADVICE.get(status, '')}".rstrip())


def _words(answer: requests.Response) -> str:
    try:
        content = answer.json()
    except ValueError:
        return answer.reason or ""
    said = str(content.get("detail", content) if isinstance(content, dict) else content)
    return said if len(said) <= 2000 else f"{said[:2000]} ..."
