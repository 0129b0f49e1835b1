"""Stand-in for RS-Server's staging service: it fetches products from a station into the storage, and catalogues them.

The bytes are really fetched and stored, below ``{bucket}/{user}/{collection}/{item}/``.
"""

import copy
import time
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import requests
from botocore.exceptions import BotoCoreError, ClientError
from flask import Flask, jsonify

from . import rspy
from .clock import Clock
from .faults import Traffic
from .rspy import Job, Jobs, Refusal
from .stac_catalog import Catalog

PROCESS = "staging"
PART = 1 << 20  #: bytes that are fetched at a time
#: Bytes in the middle of an archive that the fault "corrupt-archive" turns over: a disk sector's worth.
DAMAGE = 512
FAILED = "At least one of the tasks failed: "


class Staging:
    """Jobs of one world, and the WSGI application ``app``.

    Parameters
    ----------
    catalog:
        Where staged items are published, by whose rules buckets are chosen, and with whose S3 client it stores.
    seconds:
        How long a job takes at least.
    """

    def __init__(
        self, catalog: Catalog, clock: Clock, traffic: Traffic, seconds: float = 0.5, process_key: str = "processID"
    ):
        self.catalog, self.traffic, self.seconds = catalog, traffic, seconds
        self.jobs = Jobs(clock, PROCESS, process_key)
        self.app = _make_app(self)

    def order(self, user: str, inputs: dict) -> Job:
        """Take an order; what can be told at once may end the job at once."""
        job = self.jobs.new(user)
        fail = partial(self.jobs.note, job, "failed", 0)
        try:
            items = self._items(inputs["items"])
        except (requests.RequestException, ValueError) as error:
            fail(f"Failed to retrieve the ItemCollection from the input link: {error}")
            return job
        if items is None:
            fail("Invalid input type: must be Feature or FeatureCollection")
            return job
        names = inputs.get("asset_names")
        for item in items:
            item["assets"] = {k: v for k, v in (item.get("assets") or {}).items() if not names or k in names}
        with_assets = [item for item in items if item["assets"]]
        if items and not with_assets:
            message = "No items with assets were found in the input for staging"
            self.jobs.note(job, "successful", 0, message)
            return job
        try:
            wanted = self._not_there(user, inputs["collection"], with_assets)
        except Refusal as refusal:
            fail(f"Failed to search catalog: {refusal}")
            return job
        if not wanted or self.traffic.take("nothing-staged", PROCESS, wanted[0]["id"]):
            self.jobs.note(job, "successful", 100, "Finished without processing any tasks")
            return job
        self.jobs.run(job, partial(self._stage, job, user, inputs["collection"], wanted, bool(names)))
        return job

    def _items(self, where: dict) -> list[dict] | None:
        value = copy.deepcopy(where.get("value"))
        if value is None:
            with _session() as session:
                answer = session.get(str(where["href"]), timeout=10)
                answer.raise_for_status()
                value = answer.json()
        if not isinstance(value, dict) or value.get("type") not in ("Feature", "FeatureCollection"):
            return None
        return [value] if value["type"] == "Feature" else list(value.get("features") or [])

    def _not_there(self, user: str, collection: str, items: list[dict]) -> list[dict]:
        """The items that are not catalogued, whatever is left of their files; makes the collection if need be."""
        try:
            self.catalog.collection(user, collection)
        except Refusal:
            content = {"id": collection, "description": f"This is the collection {collection}.", "license": "other"}
            extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
            self.catalog.add_collection(user, content | {"extent": extent})
        there = self.catalog.items[f"{user}_{collection}"]
        return [item for item in items if item["id"] not in there or not there[item["id"]]["assets"]]

    def _stage(self, job: Job, user: str, collection: str, items: list[dict], named: bool) -> None:
        self.jobs.note(job, "running", 0, "Sending tasks to the dask cluster")
        until, stored = time.monotonic() + self.seconds, []
        try:
            total = sum(len(item["assets"]) for item in items)
            for item in items:
                for name, asset in list(item["assets"].items()):
                    final = asset.get("file:local_path", name) if named else name
                    asset["href"] = self._fetch(job, user, collection, item, asset["href"], final, stored)
                    item["assets"] = {final if key == name else key: value for key, value in item["assets"].items()}
                    self.jobs.note(job, "running", min(99, 100 * len(stored) // total), "In progress")
                if self.traffic.take("staging-failed", PROCESS, item["id"]):
                    raise OSError(f"Dask task failed to stream file from {item['id']}: the station hung up")
                if self.traffic.take("vanished-job", PROCESS, item["id"]):
                    job.gone = True
        except (OSError, requests.RequestException, BotoCoreError, ClientError, Refusal) as error:
            self._delete(stored)
            self.jobs.note(job, "failed", None, f"{FAILED}{error}")
            return
        self.jobs.stopping.wait(max(0, until - time.monotonic()))
        if job.forgotten:
            self._delete(stored)
        elif not self.jobs.stopping.is_set():
            self._publish(job, user, collection, items, stored)

    def _fetch(
        self, job: Job, user: str, collection: str, item: dict, href: str, name: str, stored: list[tuple[str, str]]
    ) -> str:
        """Bring one file; returns its new address."""
        _, bucket = self.catalog.osam.rule(user, collection, item["properties"].get("product:type"))
        if urlsplit(href).scheme not in ("http", "https"):
            raise OSError(f"Missing field 'storage:refs' in asset {name}.")
        body = bytearray()
        with _session() as session, session.get(href, stream=True, timeout=30) as answer:
            answer.raise_for_status()
            for part in answer.iter_content(PART):
                body += part
                if self.jobs.gives_up(job):
                    raise OSError("the service shuts down")
        promised = int(answer.headers.get("Content-Length", len(body)))
        if len(body) != promised:
            raise OSError(f"{len(body)} of {promised} bytes came")
        if self.traffic.take("corrupt-archive", PROCESS, item["id"]):
            middle = len(body) // 2
            body[middle : middle + DAMAGE] = bytes(byte ^ 0xFF for byte in body[middle : middle + DAMAGE])
        if job.forgotten:
            raise OSError("the job was forgotten")
        key = f"{user}/{collection}/{item['id']}/{name}"
        self.catalog.s3.put_object(Bucket=bucket, Key=key, Body=bytes(body))
        stored.append((bucket, key))
        return f"s3://{bucket}/{key}"

    def _publish(self, job: Job, user: str, collection: str, items: list[dict], stored: list[tuple[str, str]]) -> None:
        done: list[dict] = []
        for item in items:
            try:
                if item["id"] in self.catalog.items[f"{user}_{collection}"]:  # one without assets
                    self.catalog.replace(user, collection, item["id"], item)
                else:
                    self.catalog.add(user, collection, item)
                done.append(item)
            except Refusal:
                self._delete(stored)
                for each in done:
                    self.catalog.remove(user, collection, each["id"])
                message = f"The item {item['id']} couldn't be published in the catalog. Cleaning up"
                self.jobs.note(job, "failed", None, message)
                return
        self.jobs.note(job, "successful", 100, "Finished")

    def _delete(self, stored: list[tuple[str, str]]) -> None:
        for bucket, key in stored:
            self.catalog.s3.delete_object(Bucket=bucket, Key=key)


def _session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # no proxy stands between the services of the sandbox
    return session


def _make_app(service: Staging) -> Flask:
    app = rspy.make_app(PROCESS, rspy.as_problem)
    jobs = service.jobs
    about = {"id": PROCESS, "title": "Staging", "version": "1.0.0", "jobControlOptions": ["async-execute"]}

    @app.before_request
    def authorize() -> None:
        try:
            rspy.user()
        except Refusal as refusal:  # whatever the reason, this service calls it an error of its own
            raise Refusal(500, f"Not authorised: {refusal}") from None

    def known(process: str) -> None:
        if process != PROCESS:
            raise Refusal(404, f"Resource {process!r} not found")

    @app.get("/processes")
    def processes() -> Any:
        return jsonify({"processes": [about], "links": []})

    @app.get("/processes/<process>")
    def one_process(process: str) -> Any:
        known(process)
        return jsonify(about)

    @app.post("/processes/<process>/execution")
    def execute(process: str) -> Any:
        known(process)
        inputs = (rspy.body() or {}).get("inputs")
        items = inputs.get("items") if isinstance(inputs, dict) else None
        right = isinstance(items, dict) and (items.get("href") or items.get("value"))
        if not right or not isinstance(inputs.get("collection"), str) or not inputs["collection"]:
            raise Refusal(500, "Invalid body: inputs has collection, items (href or value), and asset_names if any")
        return jsonify(jobs.form(service.order(rspy.user(), inputs))), 201

    @app.get("/jobs")
    def all_jobs() -> Any:
        return jsonify(jobs.listing())

    @app.route("/jobs/<job_id>", methods=["GET", "DELETE"])
    def one_job(job_id: str) -> Any:
        job = jobs.find(job_id)
        if rspy.request.method == "DELETE":
            job.gone = True  # the transfer goes on
            return jsonify(jobs.form(job) | {"message": f"Job {job_id} deleted successfully"})
        return jsonify(jobs.form(job))

    @app.get("/jobs/<job_id>/results")
    def results(job_id: str) -> Any:
        return jsonify(jobs.find(job_id).status)

    return app
