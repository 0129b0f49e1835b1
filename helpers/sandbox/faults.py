"""Faults on demand and a log of the requests received, as a layer in front of any stand-in service.

The faults are what a remote service does to its clients on a bad day. A test or an exercise asks for one with
:meth:`Traffic.fail` (over the control endpoint: ``POST /faults``); it strikes the next matching requests, and is
then used up.
"""

import json
import math
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import Any

JSON, PROBLEM, PAGE = "application/json", "application/problem+json", "text/html"
#: Answers of HyP3 by name of the fault: status, content type, body. Shapes as the real services send them.
ANSWERS: dict[str, tuple[int, str, str]] = {
    "bad-request": (400, PROBLEM, "The request cannot be carried out."),
    "expired-token": (401, PROBLEM, "Invalid authorization token provided: Signature has expired"),
    "forbidden": (403, PROBLEM, "You do not have permission to use this service."),
    "unprocessable": (422, PROBLEM, "The request cannot be understood."),
    "too-many-requests": (429, PROBLEM, "Too many requests."),
    "error": (500, PAGE, "<!doctype html><title>500 Internal Server Error</title>"),
    "bad-gateway": (502, PAGE, "<!doctype html><title>502 Bad Gateway</title>"),
    "unavailable": (503, JSON, "HyP3 is currently unavailable. Please try again later."),
}

#: Status and error code of the same faults at S3, which throttles with 503.
S3_ANSWERS = {
    "bad-request": (400, "InvalidRequest"),
    "expired-token": (400, "ExpiredToken"),
    "forbidden": (403, "AccessDenied"),
    "unprocessable": (400, "MalformedXML"),
    "too-many-requests": (503, "SlowDown"),
    "error": (500, "InternalError"),
    "bad-gateway": (502, "BadGateway"),
    "unavailable": (503, "ServiceUnavailable"),
}

#: What the Hook puts under "detail", in the three forms that it uses.
HOOK_DETAILS: dict[str, Any] = {
    "bad-request": {"message": "Missing workflow options: output_storage"},
    "expired-token": "Signature has expired",
    "forbidden": "Role hook-workflows is required",
    "unprocessable": [
        {"loc": ["body", "WorkflowOptions", 0, "Value"], "msg": "value is not allowed", "type": "value_error"}
    ],
    "too-many-requests": {"message": "Too many requests"},
    "error": "Internal Server Error",
    "bad-gateway": "Bad Gateway",
    "unavailable": "Service temporarily unavailable",
}

#: Faults that are no answers: the service answers late, hangs up before it acts, acts and then hangs up, or hangs
#: up in the middle of its answer.
HANG_UPS = ("dropped", "lost-answer")
BEHAVIOURS = ("slow", "cut", *HANG_UPS)

#: What services do to themselves, by themselves (:meth:`Traffic.take`). ``path`` of the fault is searched in what is
#: named in brackets.
EVENTS = {
    # the Hook (an order's name, a product's)
    "failed-item": "hook: the next item to finish fails (product)",
    "cancelled": "hook: the next order to start is cancelled by the operator (order)",
    "expired-link": "hook: the next link has expired when it is given (product)",
    "null-dates": "hook: the next item to finish has neither date nor message (product)",
    "old-options": "hook: the next list of options has their values in the older form",
    # the conversion (a product's name without ending, unless said otherwise)
    "null-type": "station: the next item that is sent has no product type (product)",
    "unknown-type": "station: the next item that is sent has a product type that no converter knows (product)",
    "nothing-staged": "staging: the next job is successful without having done anything (product)",
    "staging-failed": "staging: the next job fails, and takes back what it stored (product)",
    "corrupt-archive": "staging: the next file that is stored has 512 wrong bytes in the middle (product)",
    "disputed-rules": "osam: from the next answer on, clients and servers find different buckets for all products",
    "conflict": "catalog: somebody else publishes the next new item just before, so that it is a 409 (item)",
    "no-write-permission": "dpr: the service may not write where the next job should (output folder's URI)",
    "conversion-failed": "dpr: the next conversion fails (SAFE's name)",
    "worker-killed": "dpr: the worker is killed with half of the next result written (SAFE's name)",
    "null-message": "dpr: the next job to succeed has no message (SAFE's name)",
    "vanished-job": "staging, dpr: the record of the next job is lost while it runs: 404 (product, SAFE's name)",
}

REASONS = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    503: "Service Unavailable",
}
#: Signatures and codes in a URL open what it points at.
SECRETS = re.compile(r"(?i)(?<![^&])(temp_url_sig|(?:X-Amz-)?Signature|X-Amz-Security-Token|(?:session_)?code)=[^&]*")


@dataclass
class Fault:
    """One fault: what happens (``kind``), to which requests, and how many times."""

    kind: str
    service: str = ""  #: name of the stand-in, "" for any
    method: str = ""  #: HTTP method, "" for any
    path: str = ""  #: regular expression searched in the path, "" for any
    times: int = 1  #: how many requests it strikes
    skip: int = 0  #: how many matching requests it lets pass first
    seconds: float = 1.0  #: how late a "slow" answer is; Retry-After of those that have one
    fraction: float = 0.6  #: how much of the body a "cut" answer has
    user: str = ""  #: only this person's requests, and those that do not tell whose they are; "" for any

    def __post_init__(self) -> None:
        known = (*ANSWERS, *BEHAVIOURS, *EVENTS)
        if self.kind not in known:
            raise ValueError(f"unknown fault {self.kind!r}; known: {', '.join(known)}")
        if not all(isinstance(count, int) and count >= 0 for count in (self.times, self.skip)):
            raise ValueError("times and skip are whole numbers, 0 or more")
        if not isinstance(self.seconds, int | float) or self.seconds < 0:
            raise ValueError("seconds is a number, 0 or more")
        if not isinstance(self.fraction, int | float) or not 0 <= self.fraction < 1:
            raise ValueError("fraction is a number from 0 to below 1")
        try:
            re.compile(self.path)
        except re.error as error:
            raise ValueError(f"path {self.path!r} is no regular expression: {error}") from None

    def strikes(self, service: str, method: str, path: str, user: str = "") -> bool:
        return (
            self.times > 0
            and (not user or self.user in ("", user))
            and self.service in ("", service)
            and self.method.upper() in ("", method)
            and re.search(self.path, path) is not None
        )


@dataclass(frozen=True)
class Request:
    """One request as received. No headers: they carry credentials. Signatures are taken out of the query."""

    service: str
    method: str
    path: str
    query: str
    status: int  #: 0 when the connection was dropped without an answer
    authorized: bool  #: it came with an Authorization header or an API key, right or wrong


@dataclass
class Traffic:
    """Records requests and injects faults; shared by every service of one sandbox."""

    faults: list[Fault] = field(default_factory=list)
    requests: deque[Request] = field(default_factory=lambda: deque(maxlen=20_000))
    #: Gives the name of whoever sends a request to a service, "" when it does not tell.
    whose: Callable[[str, dict], str] = field(default=lambda service, environ: "", repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def fail(self, kind: str, **where: Any) -> Fault:
        """Arrange a fault (see :class:`Fault` for the fields) and return it."""
        fault = Fault(kind, **where)
        with self._lock:
            self.faults.append(fault)
        return fault

    def heal(self, user: str | None = None) -> None:
        """Forget every fault not yet struck, or those that are for this person ("": for nobody in particular)."""
        with self._lock:
            self.faults[:] = [fault for fault in self.faults if user is not None and fault.user != user]

    def received(self, service: str = "", method: str = "", path: str = "") -> list[Request]:
        """The requests so far, oldest first, that match (``path`` is a regular expression)."""
        return [
            r
            for r in list(self.requests)
            if service in ("", r.service) and method.upper() in ("", r.method) and re.search(path, r.path)
        ]

    def as_dicts(self) -> list[dict]:
        return [asdict(r) for r in list(self.requests)]

    def take(self, kind: str, service: str, path: str = "") -> bool:
        """Does a fault of this kind strike now? For what a service does to itself (:data:`EVENTS`).

        ``path``: what happens it to, for faults that are meant for one: the name of an order, of a product.
        """
        return self._take((kind,), service, "", path) is not None

    def _take(
        self, kinds: Iterable[str], service: str, method: str, path: str, environ: dict | None = None
    ) -> Fault | None:
        if not self.faults:
            return None
        user = self.whose(service, environ) if environ else ""
        with self._lock:
            for fault in self.faults:
                if fault.kind not in kinds or not fault.strikes(service, method, path, user):
                    continue
                if fault.skip:
                    fault.skip -= 1
                else:
                    fault.times -= 1
                    return fault
        return None

    def in_front_of(self, app: Callable, service: str) -> Callable:
        """Wrap the WSGI application ``app``; ``service`` names it in faults and in the log."""

        def layer(environ: dict, start_response: Callable) -> Iterable[bytes]:
            method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
            seen = {"status": 0}

            def remember(status: str, headers: list, exc_info: Any = None) -> Any:
                seen["status"] = int(status.split()[0])
                return start_response(status, headers, exc_info) if exc_info else start_response(status, headers)

            fault = self._take((*ANSWERS, *BEHAVIOURS), service, method, path, environ)
            try:
                if fault is None:
                    return app(environ, remember)
                return self._strike(fault, service, app, environ, remember)
            finally:
                query = SECRETS.sub(r"\1=", environ.get("QUERY_STRING", ""))
                authorized = "HTTP_AUTHORIZATION" in environ or "HTTP_X_API_KEY" in environ
                self.requests.append(Request(service, method, path, query, seen["status"], authorized))
                if fault and fault.kind in HANG_UPS:
                    _hang_up(environ)  # last, so that whoever notices finds the request in the log

        return layer

    def _strike(
        self, fault: Fault, service: str, app: Callable, environ: dict, start_response: Callable
    ) -> Iterable[bytes]:
        if fault.kind == "slow":
            time.sleep(fault.seconds)
            return app(environ, start_response)
        if fault.kind == "cut":
            return _cut(b"".join(app(environ, start_response)), fault.fraction, environ)
        if fault.kind == "lost-answer":
            # Run the request for real, then hang up: the client cannot know that it worked.
            b"".join(app(environ, lambda *_: lambda _: None))
        if fault.kind in HANG_UPS:
            # What werkzeug takes for a client that is gone: it closes, and says nothing.
            raise ConnectionAbortedError(fault.kind)
        status, content_type, body = WORDS.get(service, _as_hyp3)(environ, fault.kind)
        # HTTP knows whole seconds only.
        again = status == 429 or (status == 503 and service == "hook")
        headers = {"Retry-After": str(math.ceil(fault.seconds))} if again else {}
        start_response(
            f"{status} {REASONS.get(status, 'Error')}",
            [("Content-Type", content_type), ("Content-Length", str(len(body))), *headers.items()],
        )
        return [body.encode()]


def _cut(body: bytes, fraction: float, environ: dict) -> Iterable[bytes]:
    """The first part of the body, after headers that promise all of it."""
    yield body[: int(len(body) * fraction)]
    _hang_up(environ)
    raise ConnectionAbortedError("cut")


def _as_hyp3(_: dict, kind: str) -> tuple[int, str, str]:
    status, content_type, body = ANSWERS[kind]
    if "json" in content_type:
        body = json.dumps({"status": status, "detail": body, "title": REASONS[status], "type": "about:blank"})
    return status, content_type, body


def _as_hook(_: dict, kind: str) -> tuple[int, str, str]:
    return ANSWERS[kind][0], JSON, json.dumps({"detail": HOOK_DETAILS[kind]})


def _as_identity(_: dict, kind: str) -> tuple[int, str, str]:
    """As Keycloak's token endpoint words an error."""
    return ANSWERS[kind][0], JSON, json.dumps({"error": kind.replace("-", "_"), "error_description": kind})


def _as_swift(_: dict, kind: str) -> tuple[int, str, str]:
    return ANSWERS[kind][0], "text/plain", f"{ANSWERS[kind][0]} {kind}\n"


def _as_s3(environ: dict, kind: str) -> tuple[int, str, str]:
    """The same fault in the words of S3 or, for a POST to "/", of AWS's other services."""
    status, code = S3_ANSWERS[kind]
    if "HTTP_X_AMZ_TARGET" in environ:  # SQS speaks JSON
        return status, "application/x-amz-json-1.0", json.dumps({"__type": code, "message": kind})
    error = f"<Error><Code>{code}</Code><Message>{kind}</Message></Error>"
    if environ["REQUEST_METHOD"] == "POST" and environ["PATH_INFO"] == "/":
        error = f"<ErrorResponse>{error}</ErrorResponse>"
    return status, "application/xml", error


def _as_rs_server(_: dict, kind: str) -> tuple[int, str, str]:
    status = ANSWERS[kind][0]
    return status, JSON, json.dumps({"code": REASONS.get(status, "Error").replace(" ", ""), "description": kind})


#: How each service words a fault.
WORDS = {"s3": _as_s3, "hook": _as_hook, "hook-storage": _as_swift, "identity": _as_identity}
WORDS |= dict.fromkeys(("station", "staging", "catalog", "dpr", "osam"), _as_rs_server)


def _hang_up(environ: dict) -> None:
    connection = environ["werkzeug.socket"]
    connection.shutdown(socket.SHUT_RDWR)
    connection.close()
