"""A Prefect server that is there when it is needed, and never longer than who started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from helpers import settings as settings_room
from helpers.conversion import prefect_server
from helpers.errors import FailedRemotely, TimedOut

#: Starts a server with a made-up credential around, says where it is, and waits to be killed.
STARTING = """
import sys, time
from pathlib import Path
from helpers import settings
from helpers.conversion import prefect_server
began = time.monotonic()
server = prefect_server.ensure(settings.read().model_copy(update={"state_dir": Path(sys.argv[1])}))
print(server.url, server.process.pid, time.monotonic() - began, flush=True)
server.ready()
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def settings(tmp_path):
    return settings_room.read().model_copy(update={"state_dir": tmp_path, "prefect_api_url": None})


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def lock_taken(state_dir: Path) -> str:
    with prefect_server._database(state_dir / "prefect") as lock:
        return Path(lock.name).name


def test_it_starts_in_the_background_serves_and_dies_with_its_parent(tmp_path):
    env = os.environ | {"S3_SECRETKEY": "a-made-up-secret"}
    command = [sys.executable, "-c", STARTING, str(tmp_path)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as parent:
        url, pid, seconds = parent.stdout.readline().split()
        assert float(seconds) < 3.0  # less than it takes to be ready
        assert b"a-made-up-secret" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert parent.stdout.readline() == "ready\n"
        assert requests.get(f"{url}/health", timeout=10).json() is True
        assert requests.get(url.removesuffix("/api"), timeout=10).headers["Content-Type"].startswith("text/html")
        # A second one beside it has a database of its own.
        with prefect_server._database(tmp_path / "prefect") as lock:
            assert Path(lock.name).name == "server-2.lock"
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 30
    while alive(int(pid)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(int(pid))
    assert (tmp_path / "prefect" / "server-1.db").exists()
    while (which := lock_taken(tmp_path)) != "server-1.lock" and time.monotonic() < end:
        time.sleep(0.05)  # its last thread may take a moment longer
    assert which == "server-1.lock"  # which is free again


def test_somebody_elses_server_is_used_and_left_alone(settings):
    elsewhere = settings.model_copy(update={"prefect_api_url": "http://127.0.0.1:9/api/"})
    server = prefect_server.ensure(elsewhere)
    assert server.url == "http://127.0.0.1:9/api" and server.process is None
    with pytest.raises(TimedOut, match="PREFECT_API_URL"):
        server.ready(patience=0.3)
    server.stop()


def test_a_server_that_cannot_start_says_why_and_is_started_again(settings, monkeypatch):
    monkeypatch.setitem(prefect_server.QUIET, "PREFECT_SERVER_LOGGING_LEVEL", "no such level")
    broken = prefect_server.ensure(settings)
    assert prefect_server.ensure(settings) is broken or broken.process.poll() is not None
    with pytest.raises(FailedRemotely, match="has ended"):
        broken.ready()
    monkeypatch.undo()
    again = prefect_server.ensure(settings)
    assert again is not broken and again.process.poll() is None
    again.stop()
    assert not alive(again.process.pid)
