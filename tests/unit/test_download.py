"""Downloads: whole or not at all, carried on after cuts, never spliced, never twice at once."""

import errno
import gzip
import io
import itertools
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from helpers import download, http, safe
from helpers.errors import FailedRemotely, RecipeError, Rejected, TimedOut

BODY = random.Random(1).randbytes((3 << 20) + 17)
OTHER = random.Random(2).randbytes(len(BODY))
SECRET = "deadbeefcafe"
LOGIN_PAGE = b"<html>Please log in.</html>\n"
LONG_AGO = {"Last-Modified": formatdate(1_600_000_000, usegmt=True)}

#: Fetches in a process of its own, and prints how much memory it took (KiB). Not `ru_maxrss` where there is better:
#: a Linux process begins with that of the one that started it.
CHILD = """
import re, resource, sys
from pathlib import Path
import requests
from helpers import download, errors, http
if sys.argv[3:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    download.fetch(http.harden(requests.Session()), sys.argv[1], Path(sys.argv[2]), show=lambda line: None)
except errors.RecipeError as error:
    sys.exit(f"{type(error).__name__}: {error}")
if sys.platform == "linux":
    print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


class Server:
    """Sends ``body`` to whoever asks, and does to each request what :meth:`then` has planned for it.

    Attributes
    ----------
    requests:
        The headers of each request, by their names in lower case, and its ``target``.
    sent:
        Bytes of bodies that were handed to the network.
    """

    def __init__(self, body: bytes = BODY, **always):
        self.body, self.always = body, {"version": {"ETag": '"one"'}} | always
        self.plans: list[dict] = []
        self.requests: list[dict[str, str]] = []
        self.sent = 0
        self.lock = threading.Lock()
        self.open = threading.Event()  # what "hang" waits for
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/x.zip?temp_url_sig={SECRET}"
        threading.Thread(target=self._accept, daemon=True).start()

    def then(self, times: int = 1, **plan) -> "Server":
        """Plan what happens to the next ``times`` requests, after those planned before."""
        self.plans += [plan] * times
        return self

    @property
    def ranges(self) -> list[str | None]:
        return [request.get("range") for request in self.requests]

    def close(self) -> None:
        self.open.set()
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                asked = b""
                while b"\r\n\r\n" not in asked:
                    if not (more := connection.recv(65536)):
                        return
                    asked += more
                first, *lines = asked.decode().split("\r\n")
                request = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
                with self.lock:
                    self.requests.append(request | {"target": first.split()[1]})
                    plan = self.plans.pop(0) if self.plans else {}
                self._answer(connection, request, **self.always | plan)
            except OSError:
                pass  # the client has gone

    def _answer(
        self,
        connection: socket.socket,
        request: dict[str, str],
        *,
        raw: bytes = b"",  # sent instead of everything else
        body: bytes | None = None,
        version: dict[str, str],  # headers that name the version of the body
        headers: dict[str, str] | None = None,
        ranges: bool = True,  # whether Range is obeyed
        if_range: bool = True,  # whether If-Range is
        most: int | None = None,  # bytes that the answer to a Range has at most
        content_range: str | None = None,  # instead of the true one; "" for none
        chunked: bool = False,
        length: bool = True,
        cut: float = 1,  # hang up after this part of the bytes
        reset: bool = False,  # hang up rudely
        hang: float | None = None,  # wait for `open` after this part of the bytes
        pace: float = 0,  # seconds between pieces
        repeat: int = 1,  # how often the body is sent
    ) -> None:
        if raw:
            connection.sendall(raw)
            return
        body = self.body if body is None else body
        start, status = 0, "200 OK"
        wanted = re.fullmatch(r"bytes=(\d+)-", request.get("range", ""))
        if wanted and ranges and (not if_range or request.get("if-range") in version.values()):
            start, status = int(wanted[1]), "206 Partial Content"
        if start and start >= len(body):
            connection.sendall(plain_answer("416 Range Not Satisfiable", f"Content-Range: bytes */{len(body)}"))
            return
        content = body[start : start + most if start and most else None]
        head = version | (headers or {})
        if start:
            head["Content-Range"] = f"bytes {start}-{start + len(content) - 1}/{len(body)}"
            if content_range is not None:
                head["Content-Range"] = content_range.format(start=start, total=len(body))
        if chunked:
            head["Transfer-Encoding"] = "chunked"
        elif length:
            head["Content-Length"] = str(len(content) * repeat)
        lines = [f"HTTP/1.1 {status}", *(f"{n}: {v}" for n, v in head.items() if v), "Connection: close", "", ""]
        connection.sendall("\r\n".join(lines).encode())
        if hang == 0:
            self.open.wait()
        end = int(len(content) * cut)
        for _ in range(repeat):
            for at in range(0, end, 65536):
                piece = content[at : min(at + 65536, end)]
                with self.lock:
                    self.sent += len(piece)  # before the client can be ready
                connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                if pace:
                    time.sleep(pace)
                if hang and at + 65536 >= hang * end:
                    self.open.wait()
                    hang = None
        if chunked and cut == 1:
            connection.sendall(b"0\r\n\r\n")
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def plain_answer(status: str, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "Content-Length: 0", "Connection: close", "", ""]).encode()


@pytest.fixture
def serve() -> Iterator:
    """Start a server: ``serve(body, **what happens to every request)``."""
    servers = []

    def start(*args, **always) -> Server:
        servers.append(Server(*args, **always))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def session():
    """A hardened session that repeats nothing by itself: what is repeated here, `fetch` repeats."""
    session = requests.Session()
    session.trust_env = False
    with http.harden(session, retries=0) as hardened:
        yield hardened


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "new" / "x.zip"


@pytest.fixture
def get(session, target):
    """Fetch from a server; returns the bytes that are then under the final name."""

    def fetch(server: Server, **how) -> bytes:
        assert download.fetch(session, server.url, target, **{"show": lambda line: None} | how) == target
        return target.read_bytes()

    return fetch


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """No pauses between two tries."""
    monkeypatch.setattr(download, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: None))


def files(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def kept(target: Path) -> int:
    """Bytes of the unfinished file."""
    return target.with_name("x.zip.part").stat().st_size


def fails_once(problem: str = "not what was wanted"):
    """A check that refuses the first file that it sees."""
    seen = []

    def check(path: Path) -> None:
        seen.append(path)
        if len(seen) == 1:
            raise Rejected(problem)

    return check


def a_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("X.SAFE/manifest.safe", BODY[:200_000])
    return buffer.getvalue()


# --- whole files ---


@pytest.mark.parametrize("size", [0, 1, 100_000, download.BLOCK, len(BODY)])
def test_a_file_arrives_whole_and_alone(serve, get, target, size):
    server, said = serve(BODY[:size]), []
    assert get(server, show=said.append) == BODY[:size]
    assert files(target) == ["x.zip"]
    assert server.ranges == [None]
    (line,) = said
    assert line.startswith(f"x.zip: {size / 1e6:,.1f} MB in ")


def test_what_is_there_is_not_asked_for_again(serve, get, target):
    server = serve()
    get(server)
    target.with_name("x.zip.part").write_bytes(b"of a run that was killed")
    assert get(server) == BODY
    assert len(server.requests) == 1 and files(target) == ["x.zip"]


def test_until_it_is_whole_and_checked_it_has_another_name(serve, session, target):
    server, seen = serve(hang=0.5), []

    def check(path: Path) -> None:
        seen.append((path.name, path.read_bytes() == BODY, target.exists()))

    with ThreadPoolExecutor() as pool:
        fetching = pool.submit(download.fetch, session, server.url, target, check=check, show=seen.append)
        while not server.sent > len(BODY) / 3:
            time.sleep(0.01)
        assert files(target) == [".x.zip.lock", "x.zip.part", "x.zip.part.json"]
        server.open.set()
        fetching.result()
    assert seen[0] == ("x.zip.part", True, False)
    assert files(target) == ["x.zip"]


def test_a_long_download_says_how_far_it_is(serve, get, monkeypatch):
    monkeypatch.setattr(download, "TELL_EVERY", 0)
    said = []
    get(serve(), show=said.append)
    assert len(said) > 2
    assert all(re.fullmatch(r"x\.zip: \d of 3 MB, [\d,.]+ MB/s", line) for line in said[:-1])


@pytest.mark.parametrize("length", [True, False])
def test_what_is_encoded_although_nobody_asked_is_stored_as_sent(serve, get, length):
    server = serve(gzip.compress(BODY), headers={"Content-Encoding": "gzip"}, length=length)
    assert get(server) == server.body
    assert server.requests[0]["accept-encoding"] == "identity"


# --- cuts ---


@pytest.mark.parametrize("size", [len(BODY), 100_000])  # a file shorter than a block, too
@pytest.mark.parametrize("how", [{}, {"chunked": True}], ids=["length", "chunked"])
def test_a_cut_download_goes_on_where_it_ended(serve, get, target, size, how):
    server = serve(BODY[:size], **how).then(cut=0.9)
    assert get(server) == BODY[:size]
    assert server.ranges == [None, f"bytes={int(size * 0.9)}-"]
    assert server.requests[1]["if-range"] == '"one"'
    assert server.sent == size
    assert files(target) == ["x.zip"]


def test_a_connection_that_is_reset_costs_little(serve, get):
    server = serve(pace=0.002).then(cut=0.9, reset=True)
    assert get(server) == BODY
    assert len(server.requests) == 2 and server.ranges[1]
    assert server.sent < 1.15 * len(BODY)


def test_any_number_of_cuts_is_survived_as_long_as_more_arrives(serve, get):
    server = serve().then(times=20, cut=0.1)
    assert get(server, tries=1) == BODY
    assert len(server.requests) == 21 and server.sent == len(BODY)


def test_a_server_that_only_hangs_up_is_given_up_on_and_the_next_run_carries_on(serve, get, target):
    server = serve().then(cut=0.5).then(times=3, cut=0)
    with pytest.raises(TimedOut, match=r"x\.zip: the server broke off 3 times in a row\. Run again"):
        get(server, tries=3)
    assert kept(target) == len(BODY) // 2 and not target.exists()
    assert get(server) == BODY
    assert server.ranges == [None, *[f"bytes={len(BODY) // 2}-"] * 4]
    assert server.sent == len(BODY)


@pytest.mark.parametrize("fractions", [[0.6], [0.3, 0.6]])
def test_a_server_that_always_starts_again_and_always_breaks_off_is_given_up_on(serve, get, fractions):
    server = serve(ranges=False)
    for fraction in itertools.islice(itertools.cycle(fractions), 50):
        server.then(cut=fraction)
    with pytest.raises(TimedOut):
        get(server, tries=3)
    assert len(server.requests) <= 5


def test_a_server_that_cuts_ranges_short_is_asked_for_the_rest(serve, get):
    server = serve(most=1_000_000).then(cut=0.1)
    assert get(server) == BODY
    assert len(server.ranges) == 4 and server.sent == len(BODY)


def test_an_answer_that_stalls_is_left_and_carried_on(serve, get, monkeypatch):
    monkeypatch.setattr(http, "TIMEOUT", (1, 0.2))
    server = serve().then(hang=0).then(hang=0.5)
    assert get(server) == BODY
    assert server.ranges[:2] == [None, None] and int(server.ranges[2][6:-1]) > len(BODY) // 2 - 65536


def test_a_server_that_never_answers_is_given_up_on(serve, get, target, monkeypatch):
    monkeypatch.setattr(http, "TIMEOUT", (1, 0.1))
    with pytest.raises(TimedOut):
        get(serve(hang=0), tries=2)
    assert not target.exists()


def test_no_server_at_all_is_a_time_out(session, target):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/x.zip?sig={SECRET}"
    with pytest.raises(TimedOut, match="no answer"):
        download.fetch(session, url, target, tries=2)
    assert files(target) == []


# --- two versions are never spliced ---


def test_another_version_is_fetched_from_its_start(serve, get):
    server = serve(OTHER, version={"ETag": '"two"'}).then(body=BODY, version={"ETag": '"one"'}, cut=0.6)
    assert get(server) == OTHER
    assert server.requests[1]["if-range"] == '"one"'


def test_another_version_is_noticed_when_the_server_ignores_if_range(serve, get):
    server = serve(OTHER, version={"ETag": '"two"'}, if_range=False)
    server.then(body=BODY, version={"ETag": '"one"'}, cut=0.6)
    assert get(server) == OTHER
    assert [bool(wanted) for wanted in server.ranges] == [False, True, False]


def test_a_server_that_knows_no_ranges_sends_it_all_again(serve, get):
    server = serve(ranges=False).then(cut=0.6)
    assert get(server) == BODY
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "version",
    [
        {},
        {"ETag": 'W/"one"'},
        {"Last-Modified": "now", "Date": "now"},  # may change again within this second
        {"Last-Modified": "yesterday", "Date": formatdate(usegmt=True)},
        LONG_AGO,  # without a date
    ],
    ids=["none", "weak", "just-changed", "nonsense", "no-date"],
)
def test_without_a_strong_version_nothing_is_continued(serve, get, version):
    now = formatdate(usegmt=True)
    version = {name: now if value == "now" else value for name, value in version.items()}
    server = serve(version=version).then(cut=0.6)
    assert get(server) == BODY
    assert server.ranges == [None, None]


@pytest.mark.parametrize("tag", [{}, {"ETag": 'W/"one"'}])
def test_the_time_of_the_last_change_is_a_version(serve, get, tag):
    server = serve(version=LONG_AGO | tag, headers={"Date": formatdate(usegmt=True)}).then(cut=0.6)
    assert get(server) == BODY
    assert server.requests[1]["if-range"] == LONG_AGO["Last-Modified"]
    assert server.sent <= len(BODY)


@pytest.mark.parametrize(
    "wrong",
    ["", "bytes 0-9/{total}", "bytes {start}-99999999/100000000", "bytes {start}-99999999/*", "pages {start}-9/10"],
)
def test_another_range_than_wanted_is_not_believed(serve, get, wrong):
    server = serve().then(cut=0.6).then(content_range=wrong)
    assert get(server) == BODY
    assert [bool(wanted) for wanted in server.ranges] == [False, True, False]


def test_a_part_that_nobody_asked_for_is_not_taken_for_the_whole(serve, get, target):
    part = b'HTTP/1.1 206 Partial Content\r\nETag: "one"\r\nContent-Range: bytes 0-3/9\r\nContent-Length: 4\r\n\r\nabcd'
    with pytest.raises(TimedOut):
        get(serve(raw=part), tries=2)
    assert not target.exists()


def test_a_refused_range_is_followed_by_a_new_start(serve, get, target):
    server = serve(BODY[:1_000_000]).then(body=BODY, cut=0.6)  # shorter now, under the same name
    assert get(server) == BODY[:1_000_000]
    assert [bool(wanted) for wanted in server.ranges] == [False, True, False]
    assert files(target) == ["x.zip"]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_between_two_versions_splices_nothing(serve, get, monkeypatch, moment):
    server = serve(OTHER, version={"ETag": '"two"'}).then(body=BODY, version={"ETag": '"one"'}, cut=0.6)
    note = download._note
    notes = []

    def kill(*args) -> None:
        notes.append(args)
        if len(notes) == 2:
            if moment == "after":
                note(*args)
            raise KeyboardInterrupt
        note(*args)

    monkeypatch.setattr(download, "_note", kill)
    with pytest.raises(KeyboardInterrupt):
        get(server)
    assert get(server) == OTHER


@pytest.mark.parametrize("note", ["", "{", "[]", '"x"', "{}", '{"version": null, "total": 5}', '{"version": "x"}'])
def test_an_unreadable_note_means_a_new_start(serve, get, target, note):
    server = serve()
    target.parent.mkdir()
    target.with_name("x.zip.part").write_bytes(OTHER[:1000])
    target.with_name("x.zip.part.json").write_text(note)
    assert get(server) == BODY
    assert server.ranges == [None] and files(target) == ["x.zip"]


@pytest.mark.parametrize("seed", range(60))
def test_whatever_a_server_does_the_file_is_one_of_its_versions_or_not_there(serve, session, target, seed):
    rng = random.Random(seed)
    versions = [rng.randbytes(50_000) for _ in range(3)]
    server = serve(b"")
    for n in range(rng.randrange(4, 12)):
        which = min(n // rng.randrange(1, 6), 2)
        named = [{"ETag": f'"{which}"'}, {"ETag": f'W/"{which}"'}, {}]
        plan = {"body": versions[which], "version": rng.choice([named[0], *named])}
        for option, values in {
            "cut": [1, 0, 0.2, 0.5, 0.99],
            "reset": [False, True],
            "ranges": [True, True, False],
            "if_range": [True, True, False],
            "most": [None, 10_000],
            "content_range": [None, None, "", "bytes 0-9/50000", "bytes {start}-49999/*"],
            "chunked": [False, True],
            "length": [True, True, False],
        }.items():
            plan[option] = rng.choice(values)
        server.then(**plan if rng.random() < 0.9 else {"raw": plain_answer(rng.choice(["503 x", "401 x", "416 x"]))})
    server.always |= {"body": versions[2], "version": {"ETag": '"2"'}}

    def right_length(path: Path) -> None:
        """All that can be asked of a check here: one for the content would hide a splice."""
        if path.stat().st_size != 50_000:
            raise Rejected("cut")

    for _ in range(12):
        try:
            download.fetch(session, server.url, target, check=right_length, tries=2, show=lambda line: None)
            break
        except RecipeError:
            assert not target.exists()
    assert target.read_bytes() in versions
    assert files(target) == ["x.zip"]


# --- lengths that are not told ---


def test_a_server_that_does_not_say_how_long_the_file_is_can_only_end_it(serve, get):
    server = serve(length=False)
    assert get(server) == BODY
    assert len(server.requests) == 1


def test_an_early_end_that_looks_like_the_end_is_found_by_the_check(serve, get):
    server = serve(a_zip(), length=False).then(cut=0.6)
    assert get(server, check=safe.check_archive) == server.body
    assert server.ranges == [None, None]


@pytest.mark.parametrize("how", [{}, {"chunked": True}, {"length": False}], ids=["length", "chunked", "unknown"])
def test_a_whole_file_is_not_asked_for_again_when_the_check_was_killed(serve, get, how):
    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    server = serve(**how)
    with pytest.raises(KeyboardInterrupt):
        get(server, check=killed)
    assert get(server) == BODY
    assert len(server.requests) == 1


# --- files that are not what was wanted ---


def flipped(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


@pytest.mark.parametrize("wrong", [LOGIN_PAGE, flipped(a_zip()), b""], ids=["login page", "flipped bit", "nothing"])
def test_a_wrong_file_is_asked_for_once_more(serve, get, target, wrong):
    server = serve(a_zip()).then(body=wrong)
    assert get(server, check=safe.check_archive) == server.body
    assert server.ranges == [None, None] and files(target) == ["x.zip"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [(LOGIN_PAGE, "28 bytes, the first: b'<html>Please log"), (flipped(a_zip()), "manifest.safe"), (b"", "0 bytes")],
    ids=["login page", "flipped bit", "nothing"],
)
def test_a_file_that_stays_wrong_is_an_error_and_leaves_nothing(serve, get, target, wrong, words):
    server = serve(wrong)
    with pytest.raises(FailedRemotely, match=r"x\.zip arrived whole but is not usable: ") as error:
        get(server, check=safe.check_archive)
    assert words in str(error.value)
    assert len(server.requests) == 2 and files(target) == []


@pytest.mark.parametrize("status", ["202 Accepted", "204 No Content", "203 Non-Authoritative Information"])
def test_an_answer_that_is_no_file_is_not_stored(serve, get, target, status):
    with pytest.raises(FailedRemotely, match=f"answered {status[:3]} instead of sending the file"):
        get(serve(raw=plain_answer(status)), tries=2)
    assert files(target) == []


# --- refusals ---


def test_an_expired_link_is_refused_and_a_new_one_carries_on(serve, get, target):
    server = serve().then(cut=0.6).then(raw=plain_answer("401 Unauthorized"))
    with pytest.raises(http.Refused) as error:
        get(server)
    assert error.value.status == 401
    assert kept(target) == int(len(BODY) * 0.6) and not target.exists()
    server.url += "&temp_url_expires=2000000000"
    assert get(server) == BODY
    assert server.requests[2]["target"].endswith("&temp_url_expires=2000000000")
    assert server.ranges[2] == f"bytes={int(len(BODY) * 0.6)}-" and server.sent == len(BODY)


@pytest.mark.parametrize("status", ["403 Forbidden", "404 Not Found", "416 Range Not Satisfiable"])
def test_a_refusal_is_not_repeated(serve, get, target, status):
    server = serve(raw=plain_answer(status))
    with pytest.raises(http.Refused):
        get(server)
    assert len(server.requests) == 1 and files(target) == []


def test_a_request_for_a_pause_is_obeyed(serve, get, monkeypatch):
    monkeypatch.setattr(download, "time", time)
    server = serve().then(cut=0.5).then(raw=plain_answer("429 Too Many Requests", "Retry-After: 1"))
    began = time.monotonic()
    assert get(server) == BODY
    assert time.monotonic() - began >= 1
    assert len(server.requests) == 3 and server.sent == len(BODY)


def test_a_pause_that_is_too_long_is_left_to_the_user(serve, get):
    server = serve(raw=plain_answer("429 Too Many Requests", "Retry-After: 7200"))
    with pytest.raises(http.Throttled, match=r"2\.0 hours") as error:
        get(server)
    assert error.value.seconds == 7200 and len(server.requests) == 1


@pytest.mark.parametrize("status", ["500 Internal Server Error", "503 Service Unavailable"])
def test_a_problem_that_passes_costs_nothing(serve, get, status):
    server = serve().then(cut=0.5).then(raw=plain_answer(status))
    assert get(server) == BODY
    assert server.sent == len(BODY)


def test_a_problem_that_stays_is_told_in_the_servers_words(serve, get, target):
    server = serve().then(cut=0.5).then(times=9, raw=plain_answer("503 Gone Fishing"))
    with pytest.raises(FailedRemotely, match="answered 503: Gone Fishing"):
        get(server, tries=3)
    assert len(server.requests) == 4 and kept(target) == len(BODY) // 2


@pytest.mark.parametrize("link", ["", "/x.zip", "ftp://host/x.zip", "http://", "http://[::1/x.zip", "http://:x/"])
def test_a_link_that_is_none_is_refused_without_telling_it(session, target, link):
    with pytest.raises(Rejected, match=r"x\.zip: its link cannot be used") as error:
        download.fetch(session, f"{link}?sig={SECRET}", target)
    assert SECRET not in "".join(traceback.format_exception(error.value))


BAD_DAYS = {
    "hangs up": {"cut": 0},
    "cut": {"cut": 0.5, "version": {}},
    "reset": {"reset": True, "cut": 0.5, "version": {}},
    "login page": {"body": LOGIN_PAGE},
    "sent round and round": {"raw": plain_answer("302 Found", f"Location: ?sig={SECRET}")},
    "sent to nowhere": {"raw": plain_answer("302 Found", f"Location: ftp://x/?sig={SECRET}")},
    "no HTTP": {"raw": b"nonsense\r\n\r\n"},
    **{f"{n}": {"raw": plain_answer(f"{n} X")} for n in (202, 206, 401, 403, 404, 416, 429, 500, 503)},
}


@pytest.mark.parametrize("day", BAD_DAYS)
def test_signatures_are_in_no_message_no_traceback_and_no_file(serve, session, target, day):
    server, said = serve(**BAD_DAYS[day]), []
    with pytest.raises(RecipeError) as error:
        download.fetch(session, server.url, target, check=safe.check_archive, tries=2, show=said.append)
    left = b"".join(path.read_bytes() for path in target.parent.iterdir())
    assert server.requests[0]["target"].endswith(SECRET)
    assert SECRET not in "".join([*said, *traceback.format_exception(error.value)])
    assert SECRET.encode() not in left and SECRET not in str(files(target))


# --- several at once ---


def start(server: Server, target: Path, *more: int) -> subprocess.Popen:
    """Fetch in a process of its own."""
    command = [sys.executable, "-c", CHILD, server.url, str(target), *map(str, more)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_threads_that_want_the_same_file_fetch_it_once(serve, session, target):
    server = serve(pace=0.001)
    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(lambda n: download.fetch(session, server.url, target, show=lambda line: None), range(6)))
    assert got == [target] * 6
    assert len(server.requests) == 1 and target.read_bytes() == BODY
    assert files(target) == ["x.zip"]


def test_processes_that_want_the_same_file_fetch_it_once(serve, target):
    server = serve(hang=0.5)
    children = [start(server, target) for _ in range(2)]
    while not server.sent > len(BODY) / 3:
        time.sleep(0.01)
    time.sleep(0.3)  # the other one arrives, and waits
    server.open.set()
    assert [(child.communicate()[1], child.returncode) for child in children] == [("", 0)] * 2
    assert len(server.requests) == 1 and target.read_bytes() == BODY
    assert files(target) == ["x.zip"]


def test_who_waits_gets_it_done_when_the_first_one_fails(serve, session, target):
    server = serve().then(hang=0, cut=0).then(raw=plain_answer("404 Not Found"))
    with ThreadPoolExecutor() as pool:
        first = pool.submit(download.fetch, session, server.url, target, tries=2, show=lambda line: None)
        while not server.requests:
            time.sleep(0.01)
        second = pool.submit(download.fetch, session, server.url, target, show=lambda line: None)
        server.open.set()
        assert isinstance(first.exception(), http.Refused)
        assert second.result().read_bytes() == BODY
    assert files(target) == ["x.zip"]


def test_only_one_at_a_time_is_alone(tmp_path):
    """The lock file comes and goes all the time: whoever waits on one that is gone must not be let in."""
    inside, worst = [], []

    def come_and_go(n: int) -> None:
        for _ in range(300):
            with download.alone(tmp_path / "x"):
                inside.append(n)
                worst.append(len(inside))
                inside.remove(n)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(come_and_go, range(6)))
    assert len(worst) == 1800 and max(worst) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_gone_lets_nobody_in(tmp_path, monkeypatch):
    """It was removed by who had it, and another process holds the next one."""
    path, entered, next_one = tmp_path / ".x.lock", threading.Event(), []

    def too_late(lock, how: int, flock=download.fcntl.flock) -> None:
        flock(lock, how)
        if not next_one:
            path.unlink()
            next_one.append(path.open("w"))
            flock(next_one[0], how)

    def enter() -> None:
        with download.alone(tmp_path / "x"):
            entered.set()

    monkeypatch.setattr(download.fcntl, "flock", too_late)
    with ThreadPoolExecutor() as pool:
        entering = pool.submit(enter)
        assert not entered.wait(0.2)
        next_one[0].close()
        entering.result()
    assert entered.is_set() and not path.exists()


def test_killed_at_any_moment_the_next_run_carries_on(serve, target):
    server, ends = serve(random.Random(3).randbytes(6_000_000), pace=0.002), [0]
    for more in random.Random().choices(range(1, 1_200_000), k=4):
        child = start(server, target)
        while not (target.with_name("x.zip.part").exists() and kept(target) >= ends[-1] + more):
            assert child.poll() is None, child.communicate()
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert not target.exists()
        ends.append(kept(target))
    last = start(server, target)
    assert (last.communicate()[1], last.returncode) == ("", 0)
    assert target.read_bytes() == server.body and files(target) == ["x.zip"]
    # Nothing is asked for twice; what was on its way when the process died is lost.
    assert server.ranges == [None, *(f"bytes={end}-" for end in ends[1:])]
    assert server.sent < 1.7 * len(server.body)


# --- the disk ---


def disk(monkeypatch, free: int) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))


def test_a_disk_without_room_is_noticed_before_anything_is_written(serve, get, target, monkeypatch):
    disk(monkeypatch, len(BODY) - 1)
    server = serve()
    with pytest.raises(Rejected, match=r"x\.zip needs 3 MB more, and the disk of .* has 3 MB\. Make room"):
        get(server)
    assert files(target) == [] and len(server.requests) == 1


def test_only_what_is_missing_needs_room(serve, get, target, monkeypatch):
    server = serve().then(cut=0.6).then(raw=plain_answer("404 Not Found"))
    with pytest.raises(Rejected):
        get(server)
    left = len(BODY) - kept(target)
    disk(monkeypatch, left - 1)
    with pytest.raises(Rejected, match="Make room"):
        get(server)
    assert kept(target) == len(BODY) - left
    disk(monkeypatch, left)
    assert get(server) == BODY


def test_the_room_of_an_old_version_is_free_for_the_new_one(serve, get, monkeypatch, target):
    server = serve(OTHER, version={"ETag": '"two"'}).then(cut=0.6).then(raw=plain_answer("404 Not Found"))
    with pytest.raises(Rejected):
        get(server)
    free = len(BODY) - kept(target)

    def usage(path: Path) -> SimpleNamespace:
        part = target.with_name("x.zip.part")
        return SimpleNamespace(free=free + (0 if part.exists() else int(len(BODY) * 0.6)))

    monkeypatch.setattr(download.shutil, "disk_usage", usage)
    assert get(server) == OTHER


class Full(io.FileIO):
    """A file on a disk that has room for 1 MB."""

    def write(self, data) -> int:
        if self.tell() + len(data) > 1_000_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_a_disk_that_fills_up_stops_the_download_and_the_next_run_carries_on(serve, get, target, monkeypatch):
    server = serve(pace=0.001)
    opened = Path.open
    with monkeypatch.context() as patched:
        patched.setattr(
            Path,
            "open",
            lambda self, mode, **text: Full(self, mode[0]) if self.suffix == ".part" else opened(self, mode, **text),
        )
        with pytest.raises(Rejected, match=r"x\.zip cannot be written to .*: No space left on device\..*run again"):
            get(server)
    assert 0 < kept(target) <= 1_000_000 and not target.exists() and len(server.requests) == 1
    at = kept(target)
    assert get(server) == BODY
    assert server.ranges == [None, f"bytes={at}-"]


def test_a_file_that_the_disk_allows_no_longer_stops_the_download_too(serve, get, target):
    """A real limit, of the operating system: FAT has one at 4 GiB."""
    server = serve()
    child = start(server, target, 1_500_000)
    said = child.communicate()[1]
    assert said.startswith("Rejected: x.zip cannot be written to ") and "File too large" in said
    assert 0 < kept(target) <= 1_500_000
    assert files(target) == ["x.zip.part", "x.zip.part.json"]
    assert get(server) == BODY
    assert server.ranges[1] == f"bytes={1_500_000}-"


def test_a_folder_that_cannot_be_is_explained(serve, session, tmp_path):
    (tmp_path / "file").write_text("")
    server = serve()
    with pytest.raises(Rejected, match="cannot be written to"):
        download.fetch(session, server.url, tmp_path / "file" / "x.zip")
    assert server.requests == []


def test_memory_does_not_grow_with_the_file(serve, target):
    server = serve(repeat=100)  # 300 MB
    child = start(server, target)
    said, problem = child.communicate()
    assert problem == ""
    assert target.stat().st_size == 100 * len(BODY)
    assert int(said) < 120 * 1024  # KiB


# --- in parallel ---


def test_results_and_failures_are_told_apart():
    def refuse() -> None:
        raise FailedRemotely("it is raining")

    work = {"a": lambda: 1, "b": refuse, "c": lambda: None, "d": refuse}
    assert download.in_parallel(work) == ({"a": 1, "c": None}, {"b": "it is raining", "d": "it is raining"})
    assert download.in_parallel({}) == ({}, {})


def test_as_many_at_a_time_as_there_are_workers():
    barrier = threading.Barrier(3, timeout=5)
    work = dict.fromkeys("abcdef", barrier.wait)
    results, failures = download.in_parallel(work, workers=3)
    assert sorted(results.values()) == [0, 0, 1, 1, 2, 2] and failures == {}


def test_a_mistake_of_our_own_is_no_failure_of_the_work():
    with pytest.raises(ZeroDivisionError):
        download.in_parallel({"a": lambda: 1 / 0})


def test_an_interrupted_kernel_gets_away_and_begins_nothing_more():
    began = []

    def work(n: int) -> None:
        began.append(n)
        if n == 0:
            time.sleep(0.2)  # all the rest is waiting now
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        released.wait(5)

    released = threading.Event()
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        download.in_parallel({str(n): lambda n=n: work(n) for n in range(9)}, workers=2)
    assert time.monotonic() - before < 2
    released.set()
    time.sleep(0.1)
    assert set(began) <= {0, 1}


def test_files_in_parallel_each_whole(serve, session, tmp_path):
    servers = [serve(random.Random(n).randbytes(500_000)).then(cut=0.3) for n in range(6)]
    servers[4].then(raw=plain_answer("403 Forbidden"))
    work = {
        str(n): lambda n=n: download.fetch(session, servers[n].url, tmp_path / f"{n}.bin", show=lambda line: None)
        for n in range(6)
    }
    results, failures = download.in_parallel(work, workers=3)
    assert list(failures) == ["4"] and "answered 403" in failures["4"]
    for n in (0, 1, 2, 3, 5):
        assert results[str(n)].read_bytes() == servers[n].body
    assert not (tmp_path / "4.bin").exists()
