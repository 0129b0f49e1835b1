"""What the stand-ins of RS-Server share: who may come in, how a refusal reads, and the records of jobs."""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import uuid4

from flask import Flask, current_app, jsonify, request
from werkzeug.exceptions import HTTPException

from .clock import Clock

#: The AWS account that RS-Server's buckets belong to: any twelve digits that are not the user's.
ACCOUNT = "777788889999"
#: Users by API key of every sandbox: the one that the settings name, and somebody else. Each sandbox has a table of its
#: own that begins with these, and gives it to its services (`API_KEYS` of their configuration).
USERS = {"sandbox-rspy-apikey": "sandbox-user", "sandbox-rspy-apikey-2": "neighbour"}  # pragma: allowlist secret
JUPYTER_TOKEN = "sandbox-jupyter-token"  # pragma: allowlist secret
#: Access key ids of the storage and their secrets: the user's own, and one that may read only.
S3_KEYS = {name: f"{name}-secret" for name in ("sandbox-rspy", "sandbox-rspy-reader")}
#: Access key id of the services themselves, which go in by the back door.
SERVICE_USER = "rs-python"
OVER = ("successful", "failed", "dismissed")
#: Seconds that jobs get to give up when whoever ordered them is forgotten.
PATIENCE = 20.0
CODES = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    500: "InternalServerError",
}


def stripped(owner: str) -> str:
    """The owner as paths and ids have it: letters and digits only."""
    return re.sub(r"[^A-Za-z0-9]", "", owner)


class Refusal(Exception):
    """An answer other than the one that was asked for."""

    def __init__(self, status: int, description: str):
        super().__init__(description)
        self.status, self.description = status, description


def as_code(status: int, description: str) -> Any:
    """The catalogue's form of an error."""
    return {"code": CODES.get(status, str(status)), "description": description}


def as_problem(status: int, description: str) -> Any:
    """The form of the services that run jobs (newer releases have the catalogue's)."""
    return {"type": CODES.get(status, str(status)), "status": status, "detail": description}


def user() -> str:
    """The user that the current request's API key belongs to, in the form that paths have.

    Raises
    ------
    Refusal
        401 without a key, 403 with one that is not known.
    """
    key = request.headers.get("x-api-key")
    if not key:
        raise Refusal(401, "Not authenticated: no API key (x-api-key) and no session cookie")
    users = current_app.config["API_KEYS"]
    if key not in users:
        raise Refusal(403, "The API key is not valid")
    return stripped(users[key])


def make_app(name: str, form: Callable[[int, str], Any], strings: bool = False) -> Flask:
    """A web application whose refusals have the given form; ``strings``: a 404 is its description alone."""
    app = Flask(name)
    app.config["API_KEYS"] = USERS
    app.json.sort_keys = False

    @app.errorhandler(Refusal)
    def refused(error: Refusal) -> Any:
        bare = strings and error.status == 404
        return jsonify(error.description if bare else form(error.status, error.description)), error.status

    @app.errorhandler(HTTPException)
    def not_there(error: HTTPException) -> Any:
        return jsonify(form(error.code or 500, error.name)), error.code

    return app


def body() -> Any:
    """The JSON of a request, whatever its Content-Type says; None if it is none."""
    return request.get_json(force=True, silent=True)


@dataclass
class Job:
    """One job of the staging or the DPR service (OGC API Processes, part 1)."""

    process: str
    created: datetime
    id: str = field(default_factory=lambda: str(uuid4()))
    status: str = "accepted"
    message: str | None = "Processing Unit was created"
    progress: int = 0
    started: datetime | None = None
    updated: datetime | None = None
    finished: datetime | None = None
    gone: bool = False  #: its record was deleted, or got lost; what it does goes on
    owner: str = ""  #: who ordered it, in the form that paths have
    forgotten: bool = False  #: its owner was forgotten: it gives up at its next step, and writes nothing more
    thread: threading.Thread | None = field(default=None, repr=False)

    def form(self, process_key: str = "processID") -> dict:
        """As it travels; ``process_key``: some releases say "process_id"."""
        times = {"created": self.created, "started": self.started, "updated": self.updated, "finished": self.finished}
        return {
            "jobID": self.id,
            "type": "process",
            process_key: self.process,
            "status": self.status,
            "message": self.message,
            "progress": self.progress,
            **{name: f"{when:%Y-%m-%dT%H:%M:%SZ}" for name, when in times.items() if when},
        }


class Jobs:
    """The records of one service's jobs, and the threads that do them."""

    def __init__(self, clock: Clock, process: str, process_key: str = "processID"):
        self.clock, self.process, self.process_key = clock, process, process_key
        self.records: dict[str, Job] = {}
        self.stopping = threading.Event()  #: set when the world ends: threads give up at their next step
        self._threads: list[threading.Thread] = []

    def new(self, owner: str = "") -> Job:
        job = Job(self.process, self.clock.now(), owner=owner)
        self.records[job.id] = job
        return job

    def find(self, job_id: str) -> Job:
        """The job; raises Refusal (404)."""
        job = self.records.get(job_id)
        if job is None or job.gone:
            raise Refusal(404, f"Job with ID {job_id} not found")
        return job

    def note(self, job: Job, status: str, progress: int | None, message: str | None) -> None:
        """Change a job's record; nothing changes once it is over."""
        if job.status in OVER:
            return
        job.updated = self.clock.now()
        job.started = job.started or job.updated
        if status in OVER:
            job.finished = job.updated
        job.progress, job.message = job.progress if progress is None else progress, message
        job.status = status  # last: who sees the end sees the rest too

    def form(self, job: Job) -> dict:
        return job.form(self.process_key)

    def listing(self) -> dict:
        """All jobs that were not deleted, as OGC API - Processes lists them."""
        return {"jobs": [self.form(job) for job in self.records.values() if not job.gone], "links": []}

    def run(self, job: Job, work: Callable[[], None]) -> None:
        """Do ``work`` in a thread; what it raises fails the job."""

        def guarded() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - whatever it is, it fails this job and no other
                self.note(job, "failed", None, f"Error from tasks monitoring thread: {error}")

        thread = threading.Thread(target=guarded, name=f"{self.process}-{job.id[:8]}", daemon=True)
        thread.start()
        job.thread = thread
        self._threads.append(thread)

    def gives_up(self, job: Job) -> bool:
        """Whether the job is to end at this step: the world ends, or its owner was forgotten."""
        return job.forgotten or self.stopping.is_set()

    def forget(self, owner: str) -> None:
        """Let an owner's jobs give up, and lose their records; returns when they have, or after :data:`PATIENCE`.

        What is still under way then (a slow station, a place in the cluster's queue) writes nothing once it goes on.
        """
        theirs = [job for job in list(self.records.values()) if job.owner == owner]
        for job in theirs:
            job.gone = job.forgotten = True
        end = time.monotonic() + PATIENCE
        for job in theirs:
            if job.thread:
                job.thread.join(max(0, end - time.monotonic()))

    def stop(self) -> None:
        """Let the jobs under way give up; returns when they have."""
        self.stopping.set()
        for thread in self._threads:
            thread.join(30)
