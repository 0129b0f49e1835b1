"""Stand-in for the HyP3 API (release 10.17.6): the same rules, in the same order, with the same answers.

Requests are validated by openapi-core against an OpenAPI document, as the service does; the order of checks,
the error texts and the oddities (an unnamed job with a bucket prefix is a 500) are recorded facts, held by
``tests/contract``.
"""

import base64
import json
import threading
from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import cache
from http.client import responses
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit
from uuid import uuid4

import jwt
import yaml
from cryptography.hazmat.primitives.asymmetric import rsa
from flask import Flask, Response, abort, g, jsonify, redirect, request
from flask.json.provider import JSONProvider
from flask_cors import CORS
from openapi_core import Config, OpenAPI
from openapi_core.contrib.flask.decorators import FlaskOpenAPIViewDecorator
from openapi_core.contrib.flask.handlers import FlaskOpenAPIErrorsHandler

from .clock import Clock
from .hyp3_processing import Processor, Publisher
from .products import granule_footprint, hyp3_products

HERE = Path(__file__).parent
SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where libyaml is there
#: The bucket of the API's own examples: silently replaced by the content bucket.
EXAMPLE_BUCKET = "my-example-bucket"
DEFAULT_CREDITS = Decimal(8000)
#: A page of `GET /jobs` ends after this many bytes of stored jobs, before any filter (DynamoDB's query limit).
PAGE_BYTES = 1_000_000
HELP = "https://hyp3-docs.asf.alaska.edu/using/requesting_access"
APPLICATION = {
    "NOT_STARTED": "{} must request access before submitting jobs. Visit " + HELP,
    "PENDING": "{}'s request for access is pending review. For more information, visit " + HELP,
    "REJECTED": "{}'s request for access has been rejected. For more information, visit " + HELP,
    "APPROVED": "{}'s request for access is already approved. For more information, visit " + HELP,
}


class Invalid(Exception):
    """A job that the service refuses with 400 after the schema let it through."""


class HyP3:
    """One deployment of the service: its users, jobs and credits, and the WSGI application ``app``.

    Parameters
    ----------
    publisher:
        Where and as whom products are written.
    clock:
        The sandbox's time.
    job_types:
        "sandbox" (every job type) or "edc" (those of the public API); see ``hyp3_jobs.yml``.
    make_products:
        From a finished job to the objects it publishes.
    pending, running:
        Seconds a job spends in each state.
    """

    def __init__(
        self,
        publisher: Publisher,
        clock: Clock | None = None,
        *,
        job_types: str = "sandbox",
        make_products: Callable[[dict], list] = hyp3_products,
        pending: float = 1.0,
        running: float = 2.0,
    ):
        self.clock = clock or Clock()
        self.publisher = publisher
        self.users: dict[str, dict] = {}
        self.access_codes: dict[str, tuple[str, str]] = {}
        self.jobs: dict[str, dict] = {}
        #: Jobs of before the sandbox's start, by user and job name: they are made when somebody asks for that name,
        #: and are no part of `jobs` until then.
        self.former: dict[tuple[str, str], Callable[[], Any]] = {}
        self.lock = threading.RLock()
        self.catalogue_up = True
        self.available = True
        self._signing_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._cookie_key = str(uuid4())
        catalogue = _load("hyp3_jobs.yml")
        self.job_types = {t: catalogue["job_types"][t] for t in catalogue["deployments"][job_types]}
        self.processor = Processor(
            self.jobs,
            self.lock,
            self.clock,
            publisher,
            make_products,
            lambda job: self.job_types[job["job_type"]]["seconds"],
            pending,
            running,
        )
        self.app = _make_app(self)

    # --- who is asking ---

    def token(self, user_id: str | None, expires_in: float = 86_400, key: Any = None) -> str:
        """An Earthdata Login bearer token that this deployment accepts (``key``: signed by somebody else)."""
        claims: dict[str, Any] = {"exp": self._expiry(expires_in), "iss": "sandbox"}
        if user_id is not None:
            claims["uid"] = user_id
        return jwt.encode(claims, key or self._signing_key, algorithm="RS256")

    def cookie(self, user_id: str, expires_in: float = 86_400) -> str:
        """The value of an `asf-urs` cookie."""
        claims = {"urs-user-id": user_id, "urs-access-token": "", "exp": self._expiry(expires_in)}
        return jwt.encode(claims, self._cookie_key, algorithm="HS256")

    def _expiry(self, seconds: float) -> datetime:
        # Real time: the JWT library checks against it, whatever the sandbox's clock says.
        return datetime.now(UTC) + timedelta(seconds=seconds)

    def authenticate(self) -> str:
        """The user of the current request; aborts with 401."""
        kind, key, algorithm, needed = "token", self._signing_key.public_key(), "RS256", ("uid",)
        if request.authorization and request.authorization.type == "bearer":
            secret = str(request.authorization.token)
        elif "asf-urs" in request.cookies:
            secret = request.cookies["asf-urs"]
            kind, key, algorithm = "cookie", self._cookie_key, "HS256"
            needed = ("urs-user-id", "urs-access-token")
        else:
            abort(_problem(401, "No authorization token provided"))
        try:
            claims = jwt.decode(secret, key, algorithms=[algorithm])
        except jwt.InvalidTokenError as error:
            abort(_problem(401, f"Invalid authorization {kind} provided: {error}"))
        user, *_ = [claims[name] for name in needed]  # a missing claim is an unhandled error: 500
        return user

    def user(self, user_id: str) -> dict:
        """The user's record, made on first sight."""
        with self.lock:
            return self.users.setdefault(
                user_id,
                {
                    "user_id": user_id,
                    "application_status": "APPROVED",
                    "remaining_credits": DEFAULT_CREDITS,
                },
            )

    def forget(self, user_id: str) -> list[str]:
        """Forget a user: credits, jobs, and what is offered to them. Returns the jobs' prefixes in our own bucket."""
        with self.processor.pausing(), self.lock:
            self.users.pop(user_id, None)
            for offered in [key for key in self.former if key[0] == user_id]:
                del self.former[offered]
            theirs = [job for job in self.jobs.values() if job["user_id"] == user_id]
            for job in theirs:
                self.processor.drop(job["job_id"])
                del self.jobs[job["job_id"]]
        return [job["bucket_prefix"] for job in theirs if job["bucket"] == self.publisher.content_bucket]

    # --- submitting ---

    def post_jobs(self, body: dict, user_id: str) -> dict:
        try:
            self._validate(body["jobs"])
        except Invalid as error:
            abort(_problem(400, str(error)))
        with self.lock:
            user = self.user(user_id)
            if user["application_status"] != "APPROVED":
                abort(_problem(403, APPLICATION[user["application_status"]].format(user_id)))
            try:
                jobs = self._prepare(body["jobs"], user)
            except Invalid as error:
                abort(_problem(400, str(error)))
            if not body.get("validate_only"):
                self._store(jobs, user)
        return body | {"jobs": jobs}

    def _prepare(self, given: list[dict], user: dict) -> list[dict]:
        requested = self.clock.now().isoformat(timespec="seconds")
        left, total, jobs = user["remaining_credits"], Decimal("0.0"), []
        for job in given:
            priority = 0 if left is None else min(round(left - total), 9999)
            priority = user.get("priority_override") or priority
            job = self._complete(job, str(uuid4()), user["user_id"], requested, priority)
            total += job["credit_cost"]
            jobs.append(job)
        if left is not None and total > left:
            raise Invalid(f"These jobs would cost {total} credits, but you have only {left} remaining.")
        return jobs

    def _complete(self, given: dict, job_id: str, user_id: str, requested: str, priority: int) -> dict:
        job = {
            "job_id": job_id,
            "user_id": user_id,
            "status_code": "PENDING",
            "execution_started": False,
            "request_time": requested,
            "priority": priority,
            **given,
        }
        self._place(job)
        job["job_parameters"] = self._defaults(job["job_type"]) | job["job_parameters"]
        job["credit_cost"] = self._cost(job)
        return job

    def adopt(self, given: dict, job_id: str, user_id: str, requested: datetime) -> dict:
        """Store a job of former times, PENDING: it costs nobody's credits, and no processor will touch it.

        Parameters
        ----------
        given:
            The job as in a request's body.
        requested:
            When it was submitted.

        Returns
        -------
        The stored job, for the caller to bring into the state it is in.
        """
        when = requested.isoformat(timespec="seconds")
        job = _as_stored(self._complete(given, job_id, user_id, when, int(DEFAULT_CREDITS)))
        with self.lock:
            self.jobs[job_id] = job
        return job

    def _place(self, job: dict) -> None:
        """Decide bucket and prefix, expanding ``{job_id}`` and ``{name}``."""
        bucket, prefix = job.get("bucket"), job.get("bucket_prefix")
        if bucket in (None, EXAMPLE_BUCKET, self.publisher.content_bucket):
            if prefix not in (None, "{job_id}"):
                raise Invalid("A custom bucket prefix can not be used with the default content bucket.")
            bucket, prefix = self.publisher.content_bucket, job["job_id"]
        elif prefix is None:
            prefix = job["job_id"]
        else:
            # job["name"] and not .get(): a missing name is an unhandled error in the service as well (500).
            prefix = prefix.format(job_id=job["job_id"], name=job["name"])
        job["bucket"], job["bucket_prefix"] = bucket, prefix

    def _defaults(self, job_type: str) -> dict:
        parameters = self.job_types[job_type]["parameters"]
        return {name: schema["default"] for name, schema in parameters.items() if "default" in schema}

    def _cost(self, job: dict) -> Decimal:
        entry = self.job_types[job["job_type"]]["cost"]
        if "cost" in entry:
            return Decimal(str(entry["cost"]))
        table = entry["cost_table"]
        for parameter in entry["cost_parameters"]:
            value = job["job_parameters"][parameter]
            key = str(len(value)) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else value
            table = table[str(key)]
        return Decimal(str(table))

    def _store(self, jobs: list[dict], user: dict) -> None:
        if user["remaining_credits"] is not None:
            user["remaining_credits"] -= sum(job["credit_cost"] for job in jobs)
        for job in jobs:
            self.jobs[job["job_id"]] = _as_stored(job)
        self.processor.accept([job["job_id"] for job in jobs])

    # --- what the schema cannot say ---

    def _validate(self, jobs: list[dict]) -> None:
        """One look into the granule catalogue for all jobs, then each job's own rules; the first error wins."""
        footprints = self._look_up({g for job in jobs for g in _granules(job)})
        for job in jobs:
            own = {g: footprints[g] for g in _granules(job) if g in footprints}
            for rule in self.job_types[job["job_type"]]["validators"]:
                RULES[rule](job["job_parameters"], own)

    def _look_up(self, granules: set[str]) -> dict[str, list]:
        if not self.catalogue_up:
            return {}  # the service accepts jobs unchecked when the catalogue does not answer
        # Granules of other agencies are not in the catalogue and are not looked up.
        ours = sorted(g for g in granules if not g.startswith(("S2", "L")))
        missing = [g for g in ours if g.removesuffix("-BURST").endswith("_FFFF")]
        if missing:
            raise Invalid(f"Some requested scenes could not be found: {', '.join(missing)}")
        return {g: granule_footprint(g)["coordinates"][0] for g in ours}

    # --- reading and renaming ---

    def find(self, user_id: str, query: dict) -> tuple[list[dict], dict | None]:
        """One page of the user's jobs, newest first, and the key to go on from (or ``None``)."""
        with self.lock:
            former = user_id, query.get("name")
            if former in self.former:
                self.former[former]()
                del self.former[former]
            mine = [job for job in self.jobs.values() if job["user_id"] == user_id]
        mine.sort(key=lambda job: (job["request_time"], job["job_id"]), reverse=True)
        start, end = query.get("start"), query.get("end")
        mine = [
            job
            for job in mine
            if (start is None or job["request_time"] >= start) and (end is None or job["request_time"] <= end)
        ]
        if (after := query.get("after")) is not None:
            place = (after["request_time"], after["job_id"])
            mine = [job for job in mine if (job["request_time"], job["job_id"]) < place]
        page, size = [], 0
        for job in mine:
            size += len(json.dumps(job, default=str))
            page.append(job)
            if size >= PAGE_BYTES:
                break
        last = page[-1] if len(page) < len(mine) else None
        key = last and {k: last[k] for k in ("job_id", "user_id", "request_time")}
        wanted = {k: query[k] for k in ("status_code", "name", "job_type") if query.get(k) is not None}
        return [job for job in page if all(job.get(k) == v for k, v in wanted.items())], key

    def rename(self, job_id: str, name: str | None, user_id: str) -> dict:
        with self.lock:
            job = self.jobs.get(job_id)
            if job is None:
                abort(_problem(404, f"Job {job_id} does not exist"))
            if job["user_id"] != user_id:
                abort(_problem(403, f"You cannot modify job {job_id} because it belongs to a different user"))
            if name is None:
                job.pop("name", None)
            else:
                job["name"] = name
            return job

    def describe_user(self, user_id: str) -> dict:
        with self.lock:
            names = {j["name"] for j in self.jobs.values() if j["user_id"] == user_id and "name" in j}
            names |= {name for user, name in self.former if user == user_id}
        return self.user(user_id) | {"job_names": sorted(names)}

    def apply(self, body: dict, user_id: str) -> dict:
        """Request access (``PATCH /user``)."""
        user = self.user(user_id)
        if user["application_status"] not in ("NOT_STARTED", "PENDING"):
            abort(_problem(403, APPLICATION[user["application_status"]].format(user_id)))
        code = body.get("access_code")
        if code:
            self._check_access_code(code)
            user |= {"application_status": "APPROVED", "remaining_credits": DEFAULT_CREDITS}
        else:
            user["application_status"] = "PENDING"
        user |= body
        return self.describe_user(user_id)

    def _check_access_code(self, code: str) -> None:
        now = self.clock.now().isoformat(timespec="seconds")
        start, end = self.access_codes.get(code, (None, None))
        if start is None:
            abort(_problem(403, f"{code} is not a valid access code"))
        if now < start:
            abort(_problem(403, f"Access code {code} will become active on {start}"))
        if now >= end:
            abort(_problem(403, f"Access code {code} expired on {end}"))

    def bucket_policy(self, bucket: str) -> dict:
        """The policy that lets HyP3 publish into ``bucket``; given for any name, existing or not."""

        def statement(level: str, actions: list[str], resource: str) -> dict:
            return {
                "Sid": f"HyP3 {level}-level publish permissions",
                "Effect": "Allow",
                "Principal": {"AWS": self.publisher.account_id},
                "Action": actions,
                "Resource": resource,
            }

        objects = ["s3:GetObject", "s3:GetObjectTagging", "s3:PutObject", "s3:PutObjectTagging"]
        arn = f"arn:aws:s3:::{bucket}"
        return {
            "Version": "2012-10-17",
            "Statement": [
                statement("bucket", ["s3:ListBucket", "s3:getBucketLocation"], arn),
                statement("object", objects, f"{arn}/*"),
            ],
        }


# --- the rules of single job types ---


def _single_burst_pair(parameters: dict, _: dict) -> None:
    one, two = parameters["granules"]
    if one.split("_")[1:3] != two.split("_")[1:3]:
        raise Invalid(f"Burst IDs do not match for {one} and {two}.")
    polarizations = one.split("_")[4], two.split("_")[4]
    if polarizations[0] != polarizations[1]:
        raise Invalid(f"The requested scenes need to have the same polarization, got: {', '.join(polarizations)}")
    if polarizations[0] not in ("VV", "HH"):
        raise Invalid(f"Only VV and HH polarizations are currently supported, got: {polarizations[0]}")


def _multi_burst_max_length(parameters: dict, _: dict) -> None:
    counts = len(parameters["reference"]), len(parameters["secondary"])
    if max(counts) > 15:
        raise Invalid(f"Must provide no more than 15 scene pairs, got {counts[0]} reference and {counts[1]} secondary")


def _multi_burst_pairs(parameters: dict, _: dict) -> None:
    reference, secondary = parameters["reference"], parameters["secondary"]
    if not reference or not secondary:
        raise Invalid("Must include at least 1 reference scene and 1 secondary scene")
    if len(reference) != len(secondary):
        raise Invalid(
            "Must provide the same number of reference and secondary scenes,"
            f" got {len(reference)} reference and {len(secondary)} secondary"
        )
    ids = {tuple(g.split("_")[i] for i in (1, 2, 4)) for g in reference}
    if ids != {tuple(g.split("_")[i] for i in (1, 2, 4)) for g in secondary}:
        raise Invalid(
            "Burst number + swath + polarization identifiers must be the same for reference scenes and secondary scenes"
        )
    if len(ids) != len(reference):
        raise Invalid("Each reference scene must have a unique burst number + swath + polarization identifier")
    polarizations = sorted({g.split("_")[4] for g in reference})
    if len(polarizations) > 1:
        raise Invalid(f"Scenes must have the same polarization. Polarizations present: {', '.join(polarizations)}")
    if polarizations[0] not in ("VV", "HH"):
        raise Invalid(f"{polarizations[0]} polarization is not currently supported, only VV and HH")
    times = [
        sorted(datetime.strptime(g.split("_")[3], "%Y%m%dT%H%M%S") for g in side) for side in (reference, secondary)
    ]
    for side, (first, *_, last) in zip(("Reference", "Secondary"), ([*t, t[-1]] for t in times), strict=True):
        if last - first > timedelta(minutes=2):
            raise Invalid(
                f"{side} scenes must fall within a 2-minute window"
                " in order to ensure they were collected during the same pass"
            )
    if times[0][-1] >= times[1][0]:
        raise Invalid("Reference scenes must be older than secondary scenes")


def _dem_coverage(_: dict, footprints: dict[str, list]) -> None:
    # The service intersects with the Copernicus GLO-30 tiles; what they lack for certain is the far south.
    bare = [g for g, ring in footprints.items() if max(lat for _, lat in ring) < -85]
    if bare:
        raise Invalid(f"Some requested scenes do not have DEM coverage: {', '.join(bare)}")


def _not_antimeridian(_: dict, footprints: dict[str, list]) -> None:
    for granule, ring in footprints.items():
        west, east = min(lon for lon, _ in ring), max(lon for lon, _ in ring)
        if east - west > 180 and west * east < 0:
            raise Invalid(
                f"Granule {granule} crosses the antimeridian."
                " Processing across the antimeridian is not currently supported."
            )


def _aria_dates(parameters: dict, _: dict) -> None:
    start = date(2014, 6, 15)
    dates = {name: date.fromisoformat(parameters[name]) for name in ("reference_date", "secondary_date")}
    for name, value in dates.items():
        if value > date.today():
            raise Invalid(f'"{name}" is {value} which is a date in the future.')
        if value < start:
            raise Invalid(f'"{name}" is {value} which is before the start of the sentinel 1 mission ({start}).')
    if dates["secondary_date"] >= dates["reference_date"]:
        raise Invalid("secondary date must be earlier than reference date.")


RULES: dict[str, Callable[[dict, dict], None]] = {
    "single_burst_pair": _single_burst_pair,
    "multi_burst_max_length": _multi_burst_max_length,
    "multi_burst_pairs": _multi_burst_pairs,
    "dem_coverage": _dem_coverage,
    "not_antimeridian": _not_antimeridian,
    "aria_dates": _aria_dates,
}


def _granules(job: dict) -> list[str]:
    parameters = job["job_parameters"]
    return [g for name in ("granules", "reference", "secondary") for g in parameters.get(name, [])]


def _as_stored(value: Any) -> Any:
    """As the database gives a value back: 30.0 becomes 30."""
    if isinstance(value, dict):
        return {k: _as_stored(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_as_stored(v) for v in value]
    if isinstance(value, float | Decimal) and value == int(value):
        return int(value)
    return value


# --- the web application ---


@cache
def _text(name: str) -> dict:
    return yaml.load((HERE / name).read_text(), Loader=SAFE_LOADER)  # noqa: S506 - it is safe


def _load(name: str) -> dict:
    return deepcopy(_text(name))


def _openapi(job_types: dict) -> dict:
    document = _load("hyp3_openapi.yml")
    schemas = document["components"]["schemas"]
    schemas["job_type"] = {"type": "string", "enum": list(job_types)}
    schemas["new_job"] = {"oneOf": [{"$ref": f"#/components/schemas/{name}"} for name in job_types]}
    for name, entry in job_types.items():
        schemas[name] = {
            "type": "object",
            "additionalProperties": False,
            "required": ["job_type", "job_parameters"],
            "properties": {
                "job_type": {"type": "string", "enum": [name]},
                "job_parameters": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": entry["required"],
                    "properties": entry["parameters"],
                },
                **{k: {"$ref": f"#/components/schemas/{k}"} for k in ("name", "bucket", "bucket_prefix")},
            },
        }
    return document


def _problem(status: int, detail: str) -> Response:
    answer = jsonify({"status": status, "detail": detail, "title": responses[status], "type": "about:blank"})
    answer.status_code = status
    answer.headers["Content-Type"] = "application/problem+json"
    return answer


class _Json(JSONProvider):
    def dumps(self, obj: Any, **_: Any) -> str:
        def number(value: Any) -> int | float:
            return int(value) if value == int(value) else float(value)

        return json.dumps(obj, default=number)

    def loads(self, s: str | bytes, **_: Any) -> Any:
        return json.loads(s)


class _Errors(FlaskOpenAPIErrorsHandler):
    def __call__(self, errors: Any) -> Response:
        error = json.loads(super().__call__(errors).get_data())["errors"][0]
        return _problem(error["status"], error["title"])


def _make_app(service: HyP3) -> Flask:
    app = Flask("hyp3")
    app.json = _Json(app)
    CORS(app, origins=r"https?://([-\w]+\.)*asf\.alaska\.edu", supports_credentials=True)
    document = _openapi(service.job_types)
    # The document is ours and tested: checking it against the OpenAPI schema at each start would cost 0.4 s.
    spec = OpenAPI.from_dict(document, config=Config(spec_validator_cls=None))
    validated = FlaskOpenAPIViewDecorator(spec, response_cls=None, errors_handler_cls=_Errors)

    @app.before_request
    def system_available() -> Response | None:
        if service.available:
            return None
        answer = jsonify(
            {
                "detail": "HyP3 is currently unavailable. Please try again later.",
                "status": 503,
                "title": "Service Unavailable",
                "type": "about:blank",
            }
        )
        answer.status_code = 503
        return answer

    @app.before_request
    def authenticate() -> None:
        if request.path.startswith(("/jobs", "/user")) and request.method != "OPTIONS":
            g.user = service.authenticate()

    @app.errorhandler(404)
    def not_found(_: Any) -> Response:
        return _problem(
            404,
            "The requested URL was not found on the server."
            " If you entered the URL manually please check your spelling and try again.",
        )

    @app.get("/")
    def root() -> Any:
        return redirect("/ui/")

    @app.get("/ui/")
    def ui() -> str:
        return "<!doctype html><title>HyP3 (sandbox)</title><p>See <a href='/openapi.json'>openapi.json</a>.</p>"

    @app.get("/openapi.json")
    def openapi_json() -> Response:
        return jsonify(document)

    @app.get("/openapi.yaml")
    def openapi_yaml() -> str:
        return yaml.safe_dump(document)

    @app.get("/costs")
    def costs() -> Response:
        return jsonify({name: _as_stored(entry["cost"]) for name, entry in service.job_types.items()})

    @app.post("/jobs")
    @validated
    def post_jobs() -> Response:
        return jsonify(service.post_jobs(request.get_json(), g.user))

    @app.patch("/jobs")
    @validated
    def patch_jobs() -> Response:
        body = request.get_json()
        if not body["job_ids"]:
            abort(_problem(400, "Must provide at least one job ID"))
        if len(body["job_ids"]) > 100:
            abort(_problem(400, "Cannot update more than 100 jobs"))
        for job_id in set(body["job_ids"]):
            service.rename(job_id, body["name"], g.user)
        return jsonify({})

    @app.get("/jobs")
    @validated
    def get_jobs() -> Response:
        query = dict(request.openapi.parameters.query)
        if token := query.get("start_token"):
            query["after"] = _start_key(token)
        for end in ("start", "end"):
            if query.get(end) is not None:
                query[end] = query[end].astimezone(UTC).isoformat(timespec="seconds")
        jobs, key = service.find(query.get("user_id") or g.user, query)
        return jsonify({"jobs": jobs} | ({"next": _next_url(request.url, key)} if key else {}))

    @app.get("/jobs/<job_id>")
    @validated
    def get_job(job_id: str) -> Response:
        if job_id not in service.jobs:
            abort(_problem(404, f"job_id does not exist: {job_id}"))
        return jsonify(service.jobs[job_id])

    @app.patch("/jobs/<job_id>")
    @validated
    def patch_job(job_id: str) -> Response:
        return jsonify(service.rename(job_id, request.get_json()["name"], g.user))

    @app.get("/user")
    @validated
    def get_user() -> Response:
        return jsonify(service.describe_user(g.user))

    @app.patch("/user")
    @validated
    def patch_user() -> Response:
        return jsonify(service.apply(request.get_json(), g.user))

    @app.get("/bucket-policy/<bucket_name>")
    @validated
    def get_bucket_policy(bucket_name: str) -> Response:
        return jsonify(service.bucket_policy(bucket_name))

    return app


def _start_key(token: str) -> dict:
    try:
        return json.loads(base64.b64decode(token.encode()))
    except ValueError:
        abort(_problem(400, "Invalid start_token value"))


def _next_url(url: str, key: dict) -> str:
    parts = urlsplit(url)
    parts = parts._replace(netloc=request.headers.get("X-Forwarded-Host", parts.netloc))
    token = base64.b64encode(json.dumps(key).encode()).decode()
    query = dict(parse_qsl(parts.query)) | {"start_token": token}
    return urlunsplit(parts._replace(query=urlencode(query)))
