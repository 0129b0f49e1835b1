"""The catalogue of recipe 5 (notebook 6): a database and a STAC API over it, started when somebody first asks.

With PostgreSQL and PostGIS on this machine, pgstac and stac-fastapi-pgstac, as eoAPI runs them; without, the embedded
store and a small STAC API over that. Both listen at addresses that are known from the beginning.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from ..errors import FailedRemotely, TimedOut
from . import guard, postgres

#: Seconds until the API answers, at most; 3 to 7 are usual.
PATIENCE = 90.0
#: What a STAC Browser on another address sends and asks for comes from the API's defaults: any origin, GET and POST.
SETTINGS = {
    "USE_API_HYDRATE": "true",  # half the time of large answers
    "DB_MIN_CONN_SIZE": "1",
    "DB_MAX_CONN_SIZE": "8",
    "STAC_FASTAPI_TITLE": "EO Cloud Recipes (sandbox)",
    "STAC_FASTAPI_DESCRIPTION": "The catalogue that notebook 6 loads",
    "STAC_FASTAPI_LANDING_ID": "eo-cloud-recipes",
    "STAC_FASTAPI_VERSION": "1",
}


class Api:
    """stac-fastapi-pgstac in a process of its own, which ends with this one."""

    def __init__(self, host: str, port: int = 0):
        self.host = host
        self._reserved: socket.socket | None = _bind(host, port)
        self.port = self._reserved.getsockname()[1]
        self._process: subprocess.Popen | None = None
        self._log: Any = None

    def prepare(self, dsn: str) -> None:
        """Start the process, which has a lot to import; it serves after :meth:`serve`."""
        where = urlsplit(dsn)
        environment = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ} | SETTINGS
        environment |= {"PGHOST": where.hostname or "", "PGPORT": str(where.port), "PGUSER": where.username or ""}
        environment |= {"PGPASSWORD": where.password or "", "PGDATABASE": where.path.strip("/")}
        listener = self._reserved or _bind(self.host, self.port)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", Path(__file__).with_name("stac_app.py"), str(os.getpid()), str(listener.fileno())],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            pass_fds=[listener.fileno()],
            env=environment,
            cwd="/",  # no .env of somebody else's
            start_new_session=True,  # an interrupted cell must not take it along
        )
        listener.close()
        self._reserved = None

    def serve(self) -> None:
        """Let the process connect to its database, and wait until it answers.

        Raises
        ------
        FailedRemotely, TimedOut
            It ends, with its last words; or does not answer.
        """
        assert self._process and self._process.stdin  # noqa: S101
        with suppress(BrokenPipeError):  # said below
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        end, session = time.monotonic() + PATIENCE, requests.Session()
        session.trust_env = False
        url = f"http://{'127.0.0.1' if self.host in ('', '0.0.0.0') else self.host}:{self.port}/_mgmt/ping"  # noqa: S104
        while True:
            with suppress(requests.RequestException):
                if session.get(url, timeout=5).ok:
                    return
            if self._process.poll() is not None:
                raise FailedRemotely(f"The STAC API ended at its start: {postgres._last_words(self._log)}")
            if time.monotonic() > end:
                raise TimedOut(f"The STAC API does not answer: {postgres._last_words(self._log)}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it. Safe to call twice."""
        if self._reserved:
            self._reserved.close()
        if self._process:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait(timeout=30)
            self._process = None
            self._log.close()


class Catalogue:
    """Database and STAC API of one sandbox.

    Parameters
    ----------
    host, port:
        Where the API listens; the database always at 127.0.0.1.
    kind:
        "pgstac" or "embedded"; None: pgstac where it can be.
    serve:
        ``serve(app)`` serves a WSGI application at ``host`` and the API's port: for the embedded one.
    """

    def __init__(self, host: str, port: int, kind: str | None, serve: Callable[[Any], None]):
        self.kind = kind or ("pgstac" if postgres.usable() else "embedded")
        self.running = False
        self._api, self._serve = Api(host, port), serve
        self._lock = threading.RLock()
        self.port = self._api.port
        self._folder = Path(tempfile.gettempdir(), f"eo-catalog-{secrets.token_hex(6)}")
        self._guard: subprocess.Popen | None = None
        self._cluster = postgres.Cluster() if self.kind == "pgstac" else None
        self.dsn = self.dsn_of(postgres.DATABASE)
        self._more: set[str] = set()  # databases of others than the first person

    def dsn_of(self, database: str) -> str:
        """How to connect to a database, whether or not it is there yet."""
        return self._cluster.dsn_of(database) if self._cluster else f"sqlite:///{self._folder / database}.sqlite"

    @property
    def label(self) -> str:
        """What a user should know about it, in one line."""
        if self.kind == "pgstac":
            found = postgres.usable()
            return f"pgstac on PostgreSQL {found.version} with PostGIS {found.postgis}" if found else "pgstac"
        return f"embedded (SQLite): no PostgreSQL with PostGIS here. For the real one: {postgres.how_to_install()}"

    def has(self, database: str = postgres.DATABASE) -> bool:
        """Whether both run, and have this database."""
        return self.running and database in (postgres.DATABASE, *self._more)

    def start(self, database: str = postgres.DATABASE) -> None:
        """Start both, empty, if they are not running; ready when this returns.

        ``database``: one that is made if it is not there, beside the usual one, and served at ``/people/{database}``.

        Raises
        ------
        NotConfigured, FailedRemotely, TimedOut
            The database or the API does not start, and why.
        """
        with self._lock:
            if not self.running:
                self._start()
            if database not in (postgres.DATABASE, *self._more):
                self._add(database)

    def _start(self) -> None:
        try:
            if self._cluster:
                self._api.prepare(self.dsn)
                self._cluster.start()
                self._api.serve()
            else:
                self._start_embedded()
        except BaseException:
            self.stop()
            raise
        self.running = True

    def _start_embedded(self) -> None:
        from werkzeug.middleware.dispatcher import DispatcherMiddleware

        from .stac_embedded import make_app

        self._folder.mkdir(mode=0o700)
        self._guard = guard.start([], self._folder)
        self._api.stop()  # its address is free now
        app = DispatcherMiddleware(make_app(self.dsn))
        self._mounts = app.mounts
        self._serve(app)

    def _add(self, database: str) -> None:
        if self._cluster:
            self._cluster.create(database)
        else:
            from .stac_embedded import make_app

            self._mounts[f"/people/{database}"] = make_app(self.dsn_of(database))
        self._more.add(database)

    def reset(self) -> None:
        """Empty, if it is running; the databases of others are gone."""
        with self._lock:
            for database in [*self._more]:
                self.remove(database)
            self.empty()

    def empty(self) -> None:
        """Empty the usual database, if it is running."""
        with self._lock:
            if self.running and self._cluster:
                self._cluster.reset()
            elif self.running:
                self._empty(self.dsn)

    def remove(self, database: str) -> None:
        """Remove a database that was added; nothing happens when there is none."""
        with self._lock:
            if database not in self._more:
                return
            self._more.discard(database)
            if self._cluster:
                self._cluster.drop(database)
            else:
                del self._mounts[f"/people/{database}"]
                self._empty(self.dsn_of(database))

    @staticmethod
    def _empty(dsn: str) -> None:
        from ..catalog.embedded import EmbeddedStore

        with EmbeddedStore(dsn) as store:
            store.empty()

    def stop(self) -> None:
        """End both. Safe to call twice."""
        with self._lock:
            self.running = False
            self._more.clear()
            self._api.stop()
            if self._cluster:
                self._cluster.stop()
            if self._guard:
                guard.stop(self._guard)
                self._guard = None
            shutil.rmtree(self._folder, ignore_errors=True)


def _bind(host: str, port: int) -> socket.socket:
    """A port that is ours, where nobody answers yet."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        reserved.bind((host, port))
    except OSError:
        reserved.close()
        raise
    return reserved
