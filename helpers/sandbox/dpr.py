"""Stand-in for RS-Server's processing service (DPR): it converts SAFE products to Zarr on a Dask cluster, with EOPF.

The conversion is real, with the defaults and the faults of EOPF. The cluster is the sandbox's own, started when it
is first needed, or any that an order names by the address of its scheduler.
"""

import operator
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError
from flask import Flask, Response, jsonify, request

from . import dpr_worker, rspy
from .clock import Clock
from .faults import Traffic
from .rspy import OVER, Job, Jobs, Refusal

PROCESS = "conv_safe_zarr"
#: Seconds that a cluster takes to start at most, and between two signs of life of a silent log.
START, KEEPALIVE = 60, 1.0


class Cluster:
    """A Dask cluster of one worker in processes of its own, which end with this one however it ends."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._address, self._lock = "", threading.Lock()

    def address(self) -> str:
        """Of its scheduler; started if it is not running.

        Raises
        ------
        RuntimeError
            It does not start, and why.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            return self._address

    def _start(self) -> None:
        self._stop()
        # One thread in each library: two conversions would else have as many threads as the square of the cores.
        env = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLOSC_NTHREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-P", dpr_worker.__file__],
            stdin=subprocess.PIPE,  # closes when this process ends: then it ends too
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # converters are noisy; what matters is in the jobs' logs
            env=env,
            text=True,
            start_new_session=True,  # Ctrl-C is for us
        )
        said = (self._process.stdout.readline() if self._process.stdout else "").strip()
        if "://" not in said:
            self._stop()
            raise RuntimeError(f"The Dask cluster does not start: {said or 'it ended at once'}")
        self._address = said

    def stop(self) -> None:
        """End its processes. Safe to call twice."""
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.stdin:
                process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()


class ByValue:
    """A function that travels whole: the other side need not have its module."""

    def __init__(self, function: Callable):
        import cloudpickle

        cloudpickle.register_pickle_by_value(dpr_worker)
        self.content = cloudpickle.dumps(function)

    def __reduce__(self) -> tuple:
        import cloudpickle

        return cloudpickle.loads, (self.content,)


@dataclass(frozen=True)
class Release:
    """Which release of the service the sandbox plays."""

    naming: str = "PRODUCT_ID"  #: EOPF's naming of products; or PRODUCT_NAME
    nested: bool = True  #: the product lies in a folder of the SAFE's name; older: it has that name
    zarr_format: int = 3  #: 2: of older releases
    process_key: str = "processID"  #: or "process_id"


class Dpr:
    """Jobs of one world, and the WSGI application ``app``.

    Parameters
    ----------
    s3:
        The service's own client of the storage.
    s3_for_workers:
        endpoint, key, secret and region that workers use.
    """

    def __init__(
        self,
        s3: Any,
        s3_for_workers: dict[str, str],
        clock: Clock,
        traffic: Traffic,
        cluster: Cluster,
        release: Release = Release(),
    ):
        self.s3, self.s3_for_workers, self.traffic, self.cluster = s3, s3_for_workers, traffic, cluster
        self.release = release
        self.jobs = Jobs(clock, PROCESS, release.process_key)
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._listeners: dict[str, list[queue.SimpleQueue]] = {}
        self._where: dict[str, Any] = {}  #: the client that a running job is with
        self.app = _make_app(self)

    # --- the cluster ---

    def client(self, address: str = "") -> Any:
        """A client of the cluster at ``address``, of the sandbox's own by default."""
        from distributed import Client  # a second: only who converts pays for it

        address = address or self.cluster.address()
        with self._lock:
            if self.jobs.stopping.is_set():
                raise InterruptedError("the service shuts down")
            client = self._clients.get(address)
            if client is None or client.status != "running":
                client = self._clients[address] = Client(address, timeout=START, set_as_default=False)
        return client

    def warm(self, wait: bool = False) -> None:
        """Start the sandbox's cluster and import EOPF there, in the background unless ``wait``."""

        def work() -> None:
            with suppress(Exception):  # the first order will tell
                self.client().submit(operator.call, ByValue(dpr_worker.warm), pure=False).result(START)

        thread = threading.Thread(target=work, name="dpr-warm", daemon=True)
        thread.start()
        if wait:
            thread.join()

    # --- orders ---

    def order(self, inputs: dict, user: str) -> Job:
        """Take a user's order. What the storage says against it fails the job at once."""
        job = self.jobs.new(user)
        try:
            self._check(str(inputs.get("input_safe_path") or ""), str(inputs.get("output_zarr_dir_path") or ""))
        except (ValueError, OSError, ClientError, BotoCoreError) as error:
            self.jobs.note(job, "failed", None, str(error))
            return job
        self.jobs.note(job, "running", 0, "Processor execution started")
        self.jobs.run(job, partial(self._work, job, inputs))
        return job

    def _check(self, safe_uri: str, out_uri: str) -> None:
        for name, uri in (("input_safe_path", safe_uri), ("output_zarr_dir_path", out_uri)):
            if not uri.startswith("s3://"):
                raise ValueError(f"Invalid {name} format (must start with 's3://'): {uri}")
        bucket, key = _split(safe_uri)
        if not self._exists(bucket, key):
            raise FileNotFoundError(f"Input SAFE path does not exist: {safe_uri}")
        bucket, _ = _split(out_uri)
        if not self._exists(bucket, ""):
            raise FileNotFoundError(f"Output S3 bucket does not exist: {out_uri}")
        probe = {"Bucket": bucket, "Key": f".perm_test_{uuid4().hex}"}
        try:
            if self.traffic.take("no-write-permission", "dpr", out_uri):
                raise ClientError({"Error": {"Code": "AccessDenied"}}, "PutObject")
            self.s3.put_object(**probe, Body=b"")
            self.s3.delete_object(**probe)
        except ClientError as error:
            if error.response["Error"]["Code"] != "AccessDenied":
                raise
            raise PermissionError(f"No write permission on bucket: {out_uri}") from None

    def _exists(self, bucket: str, prefix: str) -> bool:
        try:
            if not prefix:
                self.s3.head_bucket(Bucket=bucket)
                return True
            found = self.s3.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=100).get("Contents", [])
            return any(f"{each['Key']}/".startswith(f"{prefix}/") for each in found)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            return False

    def _work(self, job: Job, inputs: dict) -> None:
        instance = str(inputs.get("cluster_instance") or "")
        release, safe_uri = self.release, inputs["input_safe_path"].rstrip("/")
        name = safe_uri.rpartition("/")[2]
        try:
            client = self.client(instance if "://" in instance else "")
        except InterruptedError:
            return
        except (OSError, RuntimeError, ValueError) as error:
            self.jobs.note(job, "failed", 0, f"Failed to start the dpr-service process: {error}")
            return
        self._where[job.id] = client
        topic = dpr_worker.LOG.format(job=job.id)
        client.subscribe_topic(topic, partial(self._tell, job.id))
        try:
            self.jobs.note(job, "running", 5, "Preparing conversion")
            if job.gone or self.jobs.stopping.is_set():
                raise InterruptedError
            if self.traffic.take("conversion-failed", "dpr", name):
                raise RuntimeError("NO FILE/DIR MATCH")
            future = client.submit(
                operator.call,
                ByValue(dpr_worker.convert),
                job.id,
                safe_uri,
                f"{inputs['output_zarr_dir_path'].rstrip('/')}/{name.split('.', 1)[0]}.zarr",
                self.s3_for_workers,
                naming=release.naming,
                nested=release.nested,
                zarr_format=release.zarr_format,
                dies=self.traffic.take("worker-killed", "dpr", name),
                key=f"convert-{job.id}",
                retries=0,
            )
            self.jobs.note(job, "running", 50, "Conversion job submitted to cluster")
            if self.traffic.take("vanished-job", "dpr", name):
                job.gone = True
            message = self._result(job, future)
            if self.traffic.take("null-message", "dpr", name):
                message = None
            self.jobs.note(job, "successful", 100, message)
        except InterruptedError:
            self.jobs.note(job, "dismissed", None, "Cancelled")
        except Exception as error:  # noqa: BLE001 - whatever the converter raises
            self.jobs.note(job, "failed", None, f"Conversion failed: {error}")
        finally:
            client.unsubscribe_topic(topic)
            self._where.pop(job.id, None)

    def _result(self, job: Job, future: Any) -> str:
        told = False
        while not future.done():
            if self.jobs.gives_up(job) and not told:
                self.cancel(job)
                told = True
            time.sleep(0.05)
        return future.result()

    def cancel(self, job: Job) -> None:
        """Let the worker give up at its next step."""
        from distributed import Event

        if (client := self._where.get(job.id)) is not None:
            Event(dpr_worker.CANCEL.format(job=job.id), client=client).set()

    # --- logs ---

    def _tell(self, job_id: str, event: tuple[float, dict]) -> None:
        for listener in self._listeners.get(job_id, []):
            listener.put(event[1]["line"])

    def listen(self, job: Job) -> Iterator[str]:
        """The job's log from now on, as server-sent events, until it is over. What was said before is not kept."""
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._listeners.setdefault(job.id, []).append(lines)

        def events() -> Iterator[str]:
            try:
                over = False
                while not over and not self.jobs.stopping.is_set():
                    try:
                        yield f"data: {lines.get(timeout=KEEPALIVE)}\n\n"
                    except queue.Empty:
                        over = job.status in OVER
                        yield ": keepalive\n\n"
            finally:
                self._listeners[job.id].remove(lines)

        return events()

    def stop(self) -> None:
        """Let running conversions give up; returns when they have, and nothing of them comes any more."""
        self.jobs.stop()
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key.strip("/")


def _make_app(service: Dpr) -> Flask:
    app = rspy.make_app("dpr", rspy.as_problem, strings=True)
    jobs = service.jobs

    @app.before_request
    def authorize() -> None:
        rspy.user()

    def known(process: str) -> None:
        if process != PROCESS:
            raise Refusal(404, f"Process {process!r} not found")

    def check_cluster(given: Any) -> None:
        if given.get("jupyter_token") is None or given.get("cluster_label") is None:
            raise Refusal(400, "Missing required fields: jupyter_token or cluster_label")

    @app.get("/dpr/processes")
    def processes() -> Any:
        service.warm()
        links = [{"rel": "self", "href": request.url, "type": "application/json", "title": "List of processes"}]
        return jsonify({"processes": [{"id": PROCESS, "version": "1.0.0"}], "links": links})

    @app.get("/dpr/processes/<process>")
    def one_process(process: str) -> Any:
        known(process)
        check_cluster(request.args)
        service.warm()
        return jsonify({"id": PROCESS, "version": "1.0.0"})

    @app.post("/dpr/processes/<process>/execution")
    def execute(process: str) -> Any:
        known(process)
        inputs = rspy.body()
        if not isinstance(inputs, dict):
            raise Refusal(400, "The body is a JSON object")
        check_cluster(inputs)
        return jsonify(jobs.form(service.order(inputs, rspy.user()))), 201

    @app.get("/dpr/jobs")
    def all_jobs() -> Any:
        return jsonify(jobs.listing())

    @app.route("/dpr/jobs/<job_id>", methods=["GET", "DELETE"])
    def one_job(job_id: str) -> Any:
        job = jobs.find(job_id)
        if request.method == "DELETE":
            job.gone = True
            service.cancel(job)
            return jsonify(jobs.form(job) | {"message": f"Job {job_id} deleted successfully"})
        return jsonify(jobs.form(job))

    @app.get("/dpr/jobs/<job_id>/logs")
    def logs(job_id: str) -> Response:
        return Response(service.listen(jobs.find(job_id)), content_type="text/event-stream")

    return app
