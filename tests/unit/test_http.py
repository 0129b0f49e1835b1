"""HTTP: how long it waits, what it repeats, and what it says when something goes wrong."""

import contextlib
import socket
import threading
import time
import traceback

import pytest
import requests

from helpers import http
from helpers.errors import FailedRemotely, Rejected, TimedOut

SECRET = "deadbeefcafe"


@pytest.fixture
def sandbox(running_sandbox):
    """The sandbox without faults and with an empty log; nothing here changes anything else about it."""
    running_sandbox.traffic.heal()
    running_sandbox.traffic.requests.clear()
    return running_sandbox


@pytest.fixture
def client():
    """A hardened session that repeats a harmless request once."""
    session = requests.Session()
    session.trust_env = False
    with http.harden(session, retries=1) as hardened:
        yield hardened


@pytest.fixture
def url(sandbox) -> str:
    """Where anybody may ask, and every method arrives: what is there does not matter behind a fault."""
    return f"{sandbox.url('hyp3')}/costs"


@pytest.fixture
def received(sandbox):
    """How many requests arrived; one that is hung up on is noted a moment after its client knows."""

    def count(method: str = "") -> int:
        time.sleep(0.05)
        return len(sandbox.traffic.received("hyp3", method, "^/costs$"))

    return count


@contextlib.contextmanager
def raw_server(answer: bytes, keep_open: float = 0, seen: list | None = None):
    """A server that sends these bytes to whoever connects, waits, and hangs up; yields its URL."""
    seen = [] if seen is None else seen
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    seen.append(connection.recv(65536))
                    connection.sendall(answer)
                    time.sleep(keep_open)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/x"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def plain_answer(status: str, body: str, content_type: str = "text/plain") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    return f"{head}\r\n{body}".encode()


@pytest.fixture
def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


# --- waiting for an answer ---


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE"])
def test_every_request_has_a_time_out(client, monkeypatch, method):
    assert http.TIMEOUT == (10, 60)
    monkeypatch.setattr(http, "TIMEOUT", (1, 0.2))
    http.harden(client, retries=0)
    with raw_server(b"", keep_open=2) as url:
        started = time.monotonic()
        with pytest.raises(TimedOut, match="no answer"):
            client.request(method, url)
        assert time.monotonic() - started < 1.5


def test_a_time_out_of_the_callers_own_wins(client, sandbox, url, monkeypatch):
    monkeypatch.setattr(http, "TIMEOUT", (1, 0.1))
    sandbox.traffic.fail("slow", seconds=0.5, path="^/costs$")
    assert client.get(url, timeout=5).status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_connection_is_a_time_out_that_names_the_host(client, closed_port, method):
    with pytest.raises(TimedOut) as error:
        client.request(method, f"{closed_port}/jobs?X-Amz-Signature={SECRET}")
    assert str(error.value).startswith(f"{method} {closed_port.removeprefix('http://')}: no answer")
    assert "Run this cell again" in str(error.value)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_answer_that_breaks_off_is_a_time_out(client, method):
    """The request may have worked: who submits must learn that from the exception."""
    half = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    with raw_server(half) as url, pytest.raises(TimedOut):
        client.request(method, url)


def test_an_answer_that_stops_half_way_is_a_time_out(client, monkeypatch):
    monkeypatch.setattr(http, "TIMEOUT", (1, 0.2))
    half = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    with raw_server(half, keep_open=2) as url, pytest.raises(TimedOut):
        client.get(url)


# --- repeating ---


@pytest.mark.parametrize("fault", ["error", "bad-gateway", "unavailable", "dropped"])
def test_a_get_is_repeated(sandbox, client, url, received, fault):
    sandbox.traffic.fail(fault, path="^/costs$")
    assert client.get(url).json()["INSAR_ISCE_BURST"]
    assert received("GET") == 2


def test_a_get_is_repeated_until_it_works_with_growing_pauses(sandbox, client, url, received):
    http.harden(client, retries=3)
    sandbox.traffic.fail("unavailable", path="^/costs$", times=2)
    started = time.monotonic()
    assert client.get(url).status_code == 200
    assert received("GET") == 3
    assert time.monotonic() - started >= 0.5


def test_a_request_for_a_pause_is_obeyed(sandbox, client, url, received):
    sandbox.traffic.fail("too-many-requests", path="^/costs$", seconds=1)
    started = time.monotonic()
    assert client.get(url).status_code == 200
    assert time.monotonic() - started >= 1
    assert received("GET") == 2


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_get_is_repeated_also_when_no_pause_is_named(client, status):
    connections = []
    server = raw_server(plain_answer(f"{status} Whatever", ""), seen=connections)
    with server as url, pytest.raises((FailedRemotely, http.Throttled)):
        client.get(url)
    assert len(connections) == 2


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT", "DELETE"])
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("error", FailedRemotely),
        ("bad-gateway", FailedRemotely),
        ("unavailable", FailedRemotely),
        ("too-many-requests", http.Throttled),
        ("dropped", TimedOut),
        ("lost-answer", TimedOut),
    ],
)
def test_what_changes_something_is_never_repeated(sandbox, client, url, received, method, fault, error):
    sandbox.traffic.fail(fault, path="^/costs$")
    with pytest.raises(error):
        client.request(method, url)
    assert received() == 1


@pytest.mark.parametrize(
    ("fault", "error"), [("error", FailedRemotely), ("too-many-requests", http.Throttled), ("dropped", TimedOut)]
)
def test_a_get_that_keeps_failing_ends_with_the_right_error(sandbox, client, url, received, fault, error):
    sandbox.traffic.fail(fault, path="^/costs$", times=10, seconds=0)
    with pytest.raises(error):
        client.get(url)
    assert received("GET") == 2


@pytest.mark.parametrize("fault", ["expired-token", "forbidden"])
def test_a_refusal_is_not_repeated(sandbox, client, url, received, fault):
    sandbox.traffic.fail(fault, path="^/costs$", times=5)
    with pytest.raises(Rejected):
        client.get(url)
    assert received("GET") == 1


# --- what is said ---


@pytest.mark.parametrize(
    ("status", "error", "advice"),
    [
        ("400 Bad Request", http.Refused, ""),
        ("401 Unauthorized", http.Refused, "Get a new token"),
        ("403 Forbidden", http.Refused, "ask for access"),
        ("404 Not Found", http.Refused, ""),
        ("409 Conflict", http.Refused, ""),
        ("422 Unprocessable Entity", http.Refused, ""),
        ("429 Too Many Requests", http.Throttled, "Wait a little"),
        ("500 Internal Server Error", FailedRemotely, "run this cell again later"),
        ("502 Bad Gateway", FailedRemotely, "run this cell again later"),
        ("503 Service Unavailable", FailedRemotely, "run this cell again later"),
        ("504 Gateway Timeout", FailedRemotely, "run this cell again later"),
    ],
)
def test_each_status_has_its_error_with_the_services_words_and_advice(client, status, error, advice):
    body = '{"detail": "The moon is full.", "title": "unused"}'
    with raw_server(plain_answer(status, body, "application/problem+json")) as url, pytest.raises(error) as raised:
        client.post(f"{url}?token={SECRET}")
    assert type(raised.value) is error
    assert str(raised.value).startswith(f"POST {url} answered {status.split()[0]}: The moon is full.")
    assert advice in str(raised.value)


@pytest.mark.parametrize("status", ["200 OK", "201 Created", "204 No Content"])
def test_good_answers_come_through(client, status):
    with raw_server(plain_answer(status, "")) as url:
        assert client.post(url).status_code == int(status[:3])


def test_redirections_are_followed(client, sandbox):
    answer = client.get(f"{sandbox.url('hyp3')}/")
    assert (answer.status_code, answer.history[0].status_code) == (200, 302)


def test_an_answer_without_json_is_told_by_its_reason_not_by_its_page(client):
    with raw_server(plain_answer("404 Not Found", "<html>" + "x" * 5000)) as url, pytest.raises(Rejected) as error:
        client.get(url)
    assert str(error.value) == f"GET {url} answered 404: Not Found"


@pytest.mark.parametrize("body", ['["a", "list"]', '"just text"', '{"message": "no detail"}', "7", "null"])
def test_any_json_is_understood(client, body):
    with raw_server(plain_answer("400 Bad Request", body, "application/json")) as url, pytest.raises(Rejected) as error:
        client.get(url)
    assert body.strip('"[]{}').split('"')[0].replace("null", "None").replace("message", "no detail") in str(error.value)


@pytest.mark.parametrize(("detail", "said"), [
    ('"Signature has expired"', "Signature has expired"),
    ('{"message": "Missing workflow options"}', "Missing workflow options"),
    ('[{"loc": ["body", "Name"], "msg": "field required", "type": "x"}, {"loc": ["body"], "msg": "odd", "type": "x"}]',
     "body.Name: field required; body: odd"),
])  # fmt: skip
def test_the_forms_in_which_services_explain_themselves(client, detail, said):
    answer = plain_answer("400 Bad Request", f'{{"detail": {detail}}}', "application/json")
    with raw_server(answer) as url, pytest.raises(http.Refused) as error:
        client.get(url)
    assert (error.value.said, error.value.status) == (said, 400)


def test_a_pause_that_is_not_worth_waiting_for_is_passed_on_at_once(client):
    answer = plain_answer("429 Too Many Requests", "").replace(b"\r\n\r\n", b"\r\nRetry-After: 90000\r\n\r\n")
    started = time.monotonic()
    with raw_server(answer) as url, pytest.raises(http.Throttled, match=r"Wait 25\.0 hours") as error:
        client.get(url)
    assert error.value.seconds == 90000 and time.monotonic() - started < 5


def test_endless_words_are_cut(client):
    with raw_server(plain_answer("400 Bad Request", '"' + "x" * 5000 + '"')) as url, pytest.raises(Rejected) as error:
        client.get(url)
    assert "x" * 2000 + " ..." in str(error.value) and len(str(error.value)) < 2200


@pytest.mark.parametrize(("pause", "seconds"), [("7", 7), ("", 1), ("soon", 1)])
def test_throttled_knows_how_long_to_pause(client, pause, seconds):
    answer = plain_answer("429 Too Many Requests", "").replace(
        b"\r\n\r\n", f"\r\nRetry-After: {pause}\r\n\r\n".encode()
    )
    with raw_server(answer) as url, pytest.raises(http.Throttled) as error:
        client.post(url)
    assert error.value.seconds == seconds
    assert isinstance(error.value, TimedOut)


@pytest.mark.parametrize("fault", ["expired-token", "forbidden", "error", "unavailable", "dropped"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_signatures_are_in_no_message_and_no_traceback(sandbox, client, url, fault, method):
    http.harden(client, retries=0)
    sandbox.traffic.fail(fault, path="^/costs$")
    with pytest.raises((Rejected, FailedRemotely, TimedOut)) as error:
        client.request(method, f"{url}?X-Amz-Signature={SECRET}&token={SECRET}")
    assert SECRET not in "".join(traceback.format_exception(error.value))
