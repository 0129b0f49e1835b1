"""One Prefect server for a notebook: started early and in the background, gone with the process that started it.

Without one, Prefect starts its own with the first flow, which then takes some 15 s: most of them importing the server
(5 s) and, in a new folder, filling its database (5 s).
"""

import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import requests

from ..errors import FailedRemotely, TimedOut
from ..settings import PROJECT, Settings

#: Of this process's environment, what the server needs: it must not know any credentials.
NEEDED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV")
#: No telemetry, no advertisements, and no lines that nobody reads.
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
}
#: Seconds until a server answers, at most; 5 to 12 were seen.
PATIENCE = 120.0
#: How often the server's own background workers look for something to do.
LOOK_EVERY = timedelta(seconds=2)


@dataclass
class Server:
    """A Prefect server: ``url`` is what PREFECT_API_URL wants. Its pages are at the same address without "/api"."""

    url: str
    process: Any = field(default=None, repr=False)  #: None: somebody else's
    log: Path | None = None  #: what it says

    def ready(self, patience: float = PATIENCE) -> "Server":
        """Wait until it answers; returns itself.

        Raises
        ------
        FailedRemotely
            It has ended; with its last words.
        TimedOut
            It does not answer.
        """
        end, session = time.monotonic() + patience, requests.Session()
        session.trust_env = self.process is None  # no proxy stands between us and our own
        while time.monotonic() < end:
            with suppress(requests.RequestException):
                if session.get(f"{self.url}/health", timeout=5).ok:
                    return self
            if self.process and self.process.poll() is not None:
                said = " / ".join(self.log.read_text().strip().splitlines()[-3:]) if self.log else ""
                raise FailedRemotely(f"The Prefect server has ended ({self.process.returncode}): {said or 'no reason'}")
            time.sleep(0.1)
        raise TimedOut(f"The Prefect server at {self.url} does not answer. Is PREFECT_API_URL right? Then run again.")

    def stop(self) -> None:
        """End it, if it is ours. Safe to call twice."""
        if self.process:
            self.process.stdin.close()
            self.process.wait(timeout=30)


_lock = threading.Lock()
_running: dict[Path, Server] = {}


def ensure(settings: Settings) -> Server:
    """The Prefect server to use. Returns at once: one that has to be started may not be ready yet.

    Somebody else's if the settings name one (PREFECT_API_URL), else one of this process, started by the first call. Its
    database is under the state folder: what ran can be looked at another day.
    """
    if settings.prefect_api_url:
        return Server(str(settings.prefect_api_url).rstrip("/"))
    folder = settings.state_dir / "prefect"
    with _lock:
        server = _running.get(folder)
        if server is None or server.process.poll() is not None:
            server = _running[folder] = _start(folder)
        return server


def _start(folder: Path) -> Server:
    folder.mkdir(parents=True, exist_ok=True)
    # Listening from now on: whoever connects before the server is there waits instead of being refused.
    with socket.create_server(("127.0.0.1", 0)) as listener, _database(folder) as lock:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        database = Path(lock.name).with_suffix(".db")
        environment = {name: os.environ[name] for name in NEEDED if name in os.environ} | QUIET
        environment |= {
            "PREFECT_HOME": str(folder),
            "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}",
            "PREFECT_SERVER_UI_API_URL": url,
            "PYTHONPATH": str(PROJECT),
        }
        log = database.with_suffix(".log")
        with log.open("wb") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(listener.fileno())],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                pass_fds=(listener.fileno(), lock.fileno()),  # the child holds the lock as long as it lives
                env=environment,
                cwd=folder,
                start_new_session=True,  # an interrupted cell must not take it along
            )
    return Server(url, process, log)


def _database(folder: Path) -> Any:
    """The locked lock file of a database that no other server is using."""
    for number in count(1):
        lock = (folder / f"server-{number}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
        else:
            return lock
    raise AssertionError("there is always one more")


def _serve(listener: int) -> None:
    """In the child: serve until the parent, which holds the other end of our stdin, is gone."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(0)  # at once: SQLite survives that

    threading.Thread(target=watch, daemon=True).start()
    import uvicorn
    from prefect.server.api import background_workers
    from prefect.server.api.server import create_app

    # Prefect has no setting for how often its workers look for something to do; by default ten times a second, which
    # costs a tenth of a core as long as the server lives (6 s a minute; so 0.6). No flow waits for them.
    background_workers.Worker = partial(
        background_workers.Worker, minimum_check_interval=LOOK_EVERY, scheduling_resolution=LOOK_EVERY
    )

    config = uvicorn.Config(create_app(final=True), log_level="warning")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=listener)])


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
