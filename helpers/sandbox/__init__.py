"""The offline services: S3 and the stand-ins for the remote systems, started together.

Either inside the caller's process (:func:`start`: free ports, gone with the process), or once for several kernels
(``python -m helpers sandbox``). What a client needs to use one is in :attr:`Sandbox.environment`.
"""

import json
import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from threading import Lock, RLock, Thread
from typing import Any, Self
from uuid import uuid4

import boto3
import jwt
from botocore.config import Config
from flask import Flask, jsonify, request
from moto.moto_server.werkzeug_app import MotoRequestHandler
from werkzeug.serving import make_server

from ..errors import RecipeError
from . import archive_project, osam, people, rspy, s3
from .clock import Clock
from .dpr import Cluster, Dpr, Release
from .faults import Traffic
from .hook import Hook
from .hyp3 import HyP3
from .hyp3_processing import Publisher
from .identity import DEDL, PUBLIC_CLIENT, Identity
from .osam import Osam
from .products import hyp3_products
from .stac_catalog import Catalog
from .stac_server import Catalogue
from .staging import Staging
from .station import Station

#: The services of RS-Server, and the first parts of their paths at its one address, "rs-server".
RS_SERVER = {"staging": ("processes", "jobs"), "catalog": ("catalog",), "dpr": ("dpr",), "osam": ("internal",)}
#: What the sandbox serves, each on a port of its own.
SERVICES = ("control", "s3", "hyp3", "identity", "hook", "hook-storage", "station", "rs-server", *RS_SERVER, "stac")
REGION = "us-west-2"
#: Days that products stay in the content bucket, as in the service.
CONTENT_DAYS = 14
#: Access key ids of HyP3's roles, for the guard in front of S3.
ROLES = ("compute", "upload-log", "get-files")
#: The user at DestinE, and one at somebody else's catalogue: names and passwords.
USER = people.FIRST.name, people.FIRST.password
EXTERNAL_USER = "sandbox-external", "sandbox-password-2"
#: Secrets by access key id, of those that S3 checks: the pair for harvested products, and two ids that are not known.
ACCESS_KEYS = {people.FIRST.harvest_key: people.FIRST.harvest_secret, "wrong-access-key": None, "your-access-key": None}
ACCESS_KEYS |= rspy.S3_KEYS


@dataclass(frozen=True)
class Deployment:
    """Which HyP3 and which RS-Server the sandbox plays, and how long things take."""

    job_types: str = "sandbox"  #: "sandbox" (all) or "edc" (the public API's)
    account_id: str = "444455556666"  #: HyP3's AWS account: any twelve digits that are not the user's
    content_bucket: str = "hyp3-sandbox-contentbucket"
    #: URL that serves the content bucket, and URL of an object in a user's bucket; None: the sandbox's S3
    distribution_url: str | None = None
    bucket_url: str | None = None
    pending: float = 1.0  #: seconds that a job is PENDING ...
    running: float = 2.0  #: ... and RUNNING
    make_products: Callable[[dict], list] = hyp3_products
    hook_queued: float = 1.0  #: seconds that an item of a Hook order is queued at least ...
    hook_processing: float = 2.0  #: ... and in progress
    staging: float = 0.5  #: seconds that a staging job takes at least
    rs_server: Release = field(default_factory=Release)
    station_pixels: int | None = None  #: longest side of the pictures of the station's products; None: a small one
    station_suffix: str = ".zip"  #: or ".tar.gz": how the station packs them
    catalogue: str | None = None  #: "pgstac" or "embedded"; None: pgstac on a machine that has PostgreSQL with PostGIS


class _Handler(MotoRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections open: half the time of a request is opening one

    def log(self, *_: Any) -> None:
        """Requests are in `Traffic`; a line for each in the notebook would bury what it shows."""


class _when_needed:
    """A service that is made when somebody first asks for it: most tests and notebooks talk to one or two."""

    def __init__(self, make: Callable[[Any], Any]):
        self.make, self.__doc__ = make, make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, sandbox: Any, owner: type) -> Any:
        if sandbox is None:
            return self
        with sandbox._making:  # once it is made, it is found before we are asked
            if self.name not in sandbox.__dict__:
                sandbox.__dict__[self.name] = self.make(sandbox)
            return sandbox.__dict__[self.name]


class Sandbox:
    """All services of one sandbox. Use :meth:`start`; or as a context manager.

    Parameters
    ----------
    host:
        Address to listen on. Keep to the loopback: the services know no real secrets but check none either.
    ports:
        Fixed ports by service (:data:`SERVICES`); a free one where none is given.
    clock:
        A clock to share with a test; real time by default.
    deployment:
        Which HyP3 to play.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        ports: dict[str, int] | None = None,
        clock: Clock | None = None,
        deployment: Deployment = Deployment(),
    ):
        self.host, self._ports = host, dict(ports or {})
        # Listening everywhere, it is known to others by the machine's name.
        self.name = socket.gethostname() if host in ("", "0.0.0.0") else host  # noqa: S104
        self.clock = clock or Clock()
        self.traffic = Traffic(whose=self._whose)
        self.deployment = deployment
        self._servers: dict[str, Any] = {}
        self._clients: dict[str, Any] = {}
        self.access_keys: dict[str, str | None] = {}  #: the keys that S3 checks: see `s3.make_app`
        self.people = {people.FIRST.name: people.FIRST}  #: who has been here, by name
        self.api_keys = dict(rspy.USERS)  #: users of RS-PYTHON by API key
        self._worlds: dict[str, str] = {}  # an id for each of them
        self._making = RLock()  # for moments only: whoever comes needs it
        self._anew = Lock()  # one beginning anew at a time; it waits for much
        self.hyp3: HyP3
        self.cluster = Cluster()  #: of the conversions; survives a reset, as it takes long to warm up
        self.catalogue: Catalogue  #: of recipe 5; its processes survive a reset as well

    def start(self) -> Self:
        """Start every service; ready for requests when this returns.

        Raises
        ------
        OSError
            A fixed port is taken.
        """
        try:
            account = self.deployment.account_id
            identities = {f"hyp3-{role}": f"arn:aws:iam::{account}:role/hyp3-{role}" for role in ROLES}
            identities |= {key: _rspy_arn(key) for key in (*rspy.S3_KEYS, rspy.SERVICE_USER)}
            self._identities = identities | {"s3-itself": s3.S3_ITSELF}
            app = s3.make_app(self._identities, self.access_keys)
            self._serve("s3", app)
            self._serve("s3-inside", app, watched=False)  # HyP3's own way in: no faults, not in the log
            self._fill()
            self._serve("hyp3", lambda *args: self.hyp3.app(*args))
            self._serve("identity", lambda *args: self.identity.app(*args))
            self._serve("hook", lambda *args: self.hook.app(*args))
            # Another port is another host to a client: it takes no bearer along.
            self._serve("hook-storage", lambda *args: self.hook.storage.app(*args))
            for name in ("station", *RS_SERVER):
                self._serve(name, lambda *args, name=name: getattr(self, name).app(*args))
            self._serve("rs-server", self._rs_server, watched=False)  # in the log by the name of the service
            self.catalogue = Catalogue(
                self.host, self._ports.get("stac", 0), self.deployment.catalogue, lambda app: self._serve("stac", app)
            )
            self._ports["stac"] = self.catalogue.port
            self._serve("control", _by_person(_control(self)), watched=False)
        except BaseException:
            self.stop()
            raise
        return self

    def _rs_server(self, environ: dict, start_response: Callable) -> Any:
        """RS-Server's front door: all of its services at one address."""
        first = environ.get("PATH_INFO", "").strip("/").partition("/")[0]
        name = next((name for name, parts in RS_SERVER.items() if first in parts), "catalog")
        return self.traffic.in_front_of(getattr(self, name).app, name)(environ, start_response)

    def _serve(self, name: str, app: Any, watched: bool = True) -> None:
        app = self.traffic.in_front_of(app, name) if watched else app
        # Our own socket: for a taken port, werkzeug's would print advice and leave the process.
        with socket.create_server((self.host, self._ports.get(name, 0))) as listener:
            port = listener.getsockname()[1]
            options = {"threaded": True, "request_handler": _Handler, "fd": listener.fileno()}
            server = make_server(self.host, port, app, **options)
        Thread(target=server.serve_forever, args=(0.05,), name=f"sandbox-{name}", daemon=True).start()
        self._servers[name] = server

    def _fill(self) -> None:
        """The initial state: HyP3's content bucket, no jobs, no orders, a user with credits and roles."""
        # A new world: nobody's notes about the old one apply.
        self._worlds.update({name: uuid4().hex[:12] for name in list(self.people)})
        plays, s3_url = self.deployment, self.url("s3")
        s3.create_bucket(plays.content_bucket, plays.account_id, REGION)
        s3_itself = self._s3_client("s3-itself")
        _open_for_reading(s3_itself, plays.content_bucket)
        publisher = Publisher(
            {"s3-itself": s3_itself} | {role: self._s3_client(f"hyp3-{role}") for role in ROLES},
            account_id=plays.account_id,
            content_bucket=plays.content_bucket,
            distribution_url=plays.distribution_url or f"{s3_url}/{plays.content_bucket}/",
            bucket_url=plays.bucket_url or f"{s3_url}/{{bucket}}/{{key}}",
        )
        self.hyp3 = HyP3(
            publisher,
            self.clock,
            job_types=plays.job_types,
            make_products=plays.make_products,
            pending=plays.pending,
            running=plays.running,
        )
        archive_project.offer(self.hyp3, USER[0], archive_project.OWNER)
        self.hyp3.processor.keep_running()
        self.access_keys.clear()
        self.access_keys.update(ACCESS_KEYS)
        for bucket in osam.BUCKETS:
            s3.create_bucket(bucket, rspy.ACCOUNT, REGION)
            s3.set_policy(bucket, rspy.ACCOUNT, _read_only(bucket, _rspy_arn(READER)))
        for person in list(self.people.values())[1:]:
            self._let_in(person)

    @property
    def id(self) -> str:
        """Names the first person's world, from one reset to the next."""
        return self._worlds[people.FIRST.name]

    def person(self, name: str | None = None) -> people.Person:
        """Who has this name: made on first sight, with credits, roles and an account; the first one without a name.

        Raises
        ------
        ValueError
            Nobody can be called that.
        """
        person = people.make(name) if name else people.FIRST
        if person.name in self.people:  # waits for nothing
            return person
        with self._making:
            if person.name not in self.people:
                self._let_in(person)
                self._worlds[person.name] = uuid4().hex[:12]
                self.people[person.name] = person
        return person

    def _whose(self, service: str, environ: dict) -> str:
        """Who sends a request, by what it claims: nobody has an interest in faults that are meant for others."""
        access_key, apikey = s3.access_key_of(environ), environ.get("HTTP_X_API_KEY")
        claims = {}
        if bearer := environ.get("HTTP_AUTHORIZATION", "").partition("Bearer ")[2]:
            with suppress(jwt.InvalidTokenError):
                claims = jwt.decode(bearer, options={"verify_signature": False})
        named = claims.get("uid") or claims.get("preferred_username")
        people_here = list(self.people.values())
        return next(
            (
                person.name
                for person in people_here
                if named == person.name
                or apikey == person.apikey
                or (access_key and access_key in (person.access_key, person.harvest_key))
            ),
            "",
        )

    def _let_in(self, person: people.Person) -> None:
        arn = f"arn:aws:iam::{person.account}:user/"
        self._identities |= {key: f"{arn}{key}" for key in (person.access_key, person.harvest_key)}
        self.access_keys[person.harvest_key] = person.harvest_secret
        archive_project.offer(self.hyp3, person.name, account=person.account)
        self.api_keys[person.apikey] = person.owner
        if "osam" in self.__dict__:
            self.osam.add(person.owner)
        if "identity" in self.__dict__:
            _register(self.identity, person)

    @_when_needed
    def identity(self) -> Identity:
        """A user with roles, and one at somebody else's catalogue."""
        identity = Identity(self.clock)
        for person in self.people.values():
            _register(identity, person)
        identity.add_user(*EXTERNAL_USER, roles=())
        return identity

    @_when_needed
    def hook(self) -> Hook:
        """No orders."""
        plays = self.deployment
        hook = Hook(
            self.identity,
            self.clock,
            self.traffic,
            lambda: self.url("hook-storage"),
            queued=plays.hook_queued,
            processing=plays.hook_processing,
        )
        hook.processor.keep_running()
        return hook

    @_when_needed
    def osam(self) -> Osam:
        """The rules of the beginning."""
        rules = Osam(self.traffic)
        for person in list(self.people.values())[1:]:
            rules.add(person.owner)
        return rules

    @_when_needed
    def station(self) -> Station:
        """Every product, made when it is fetched."""
        return Station(self.traffic, _make_archive, self.deployment.station_pixels, self.deployment.station_suffix)

    @_when_needed
    def catalog(self) -> Catalog:
        """RS-Server's, empty."""
        return self._knowing(Catalog(self.osam, self._s3_client(rspy.SERVICE_USER), self.clock, self.traffic))

    @_when_needed
    def staging(self) -> Staging:
        """No jobs."""
        keys = self.deployment.rs_server.process_key
        return self._knowing(Staging(self.catalog, self.clock, self.traffic, self.deployment.staging, keys))

    @_when_needed
    def dpr(self) -> Dpr:
        """No jobs."""
        service = self._s3_client(rspy.SERVICE_USER)
        inside = {"endpoint": self.url("s3-inside"), "region": REGION}
        for_workers = inside | {"key": rspy.SERVICE_USER, "secret": "sandbox"}
        plays = self.deployment.rs_server
        return self._knowing(Dpr(service, for_workers, self.clock, self.traffic, self.cluster, plays))

    def _knowing(self, service: Any) -> Any:
        """The service, which lets in whom this sandbox knows."""
        service.app.config["API_KEYS"] = self.api_keys
        return service

    def warm(self, wait: bool = False) -> None:
        """Start the cluster that converts, in the background unless ``wait``: it takes some seconds."""
        self.dpr.warm(wait)

    def _s3_client(self, access_key: str) -> Any:
        if access_key not in self._clients:
            self._clients[access_key] = self._new_s3_client(access_key)
        return self._clients[access_key]

    def _new_s3_client(self, access_key: str) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self._servers['s3-inside'].port}",
            region_name=REGION,
            aws_access_key_id=access_key,
            aws_secret_access_key="sandbox",
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )

    def url(self, service: str) -> str:
        """Base URL of a service, without a "/" at the end."""
        port = self.catalogue.port if service == "stac" else self._servers[service].port
        return f"http://{self.name}:{port}"

    @property
    def environment(self) -> dict[str, str]:
        """Settings that point a client at this sandbox, by their names in ``.env_tutorial``; and ``id``."""
        return self.environment_of(people.FIRST)

    def environment_of(self, person: people.Person) -> dict[str, str]:
        """The same for one of many: what :meth:`person` returns."""
        return {
            "id": self._worlds[person.name],
            "RECIPES_SANDBOX_URL": self.url("control") + (f"{person.path}/" if person.path else ""),
            "HYP3_API_URL": self.url("hyp3"),
            "EARTHDATA_TOKEN": self.hyp3.token(person.name),
            "AWS_ENDPOINT_URL": self.url("s3"),
            "AWS_ACCESS_KEY_ID": person.access_key,
            "AWS_SECRET_ACCESS_KEY": "sandbox",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,  # the one that boto3 reads
            "HYP3_SETTLE_SECONDS": "1",  # there is no gateway between us
            "HOOK_API_URL": f"{self.url('hook')}/odata/v1/",
            "DESP_AUTH_URL": self.url("identity"),
            "DEDL_AUTH_URL": self.url("identity"),
            "DESP_USERNAME": person.name,
            "DESP_PASSWORD": person.password,
            "HOOK_OUTPUT_STORAGE_URL": self.url("s3"),
            "HOOK_OUTPUT_STORAGE_ACCESS_KEY": person.harvest_key,
            "HOOK_OUTPUT_STORAGE_SECRET_KEY": self.access_keys[person.harvest_key],
            "HOOK_EXTERNAL_USERNAME": EXTERNAL_USER[0],
            "HOOK_EXTERNAL_PASSWORD": EXTERNAL_USER[1],
            "HOOK_EXTERNAL_TOKEN_URL": f"{self.url('identity')}{DEDL.openid}/token",
            "HOOK_EXTERNAL_CLIENT_ID": PUBLIC_CLIENT,
            "HOOK_EXTERNAL_CATALOGUE_URL": f"{self.url('hook')}/external",
            "HOOK_POLL_SECONDS": "0.2",
            "HOOK_SETTLE_SECONDS": "1",
            "RSPY_WEBSITE": self.url("rs-server"),
            "RSPY_APIKEY": person.apikey,
            "RSPY_OWNER_ID": person.owner,
            "RSPY_HOST_STAGING": self.url("staging"),
            "RSPY_HOST_CATALOG": self.url("catalog"),
            "RSPY_HOST_DPR_SERVICE": self.url("dpr"),
            "RSPY_HOST_OSAM": self.url("osam"),
            "JUPYTERHUB_API_TOKEN": rspy.JUPYTER_TOKEN,
            "S3_ENDPOINT": self.url("s3"),
            "S3_ACCESSKEY": "sandbox-rspy",
            "S3_SECRETKEY": rspy.S3_KEYS["sandbox-rspy"],
            "S3_REGION": REGION,
            "RSPY_POLL_SECONDS": "0.2",
            "RSPY_STATION_URL": self.url("station"),
            "CATALOG_DSN": self.catalogue.dsn_of(person.database),
            "CATALOG_API_URL": f"{self.url('stac')}{person.path}",
        }

    def _end(self) -> None:
        """End the world's services; those that were needed come anew when they are needed again."""
        names = [name for name, kind in vars(type(self)).items() if isinstance(kind, _when_needed)]
        with self._making:
            there = {name: self.__dict__.pop(name) for name in names if name in self.__dict__}
        # These first: what they do may need the other services.
        if "staging" in there:
            there["staging"].jobs.stop()
        if "dpr" in there:
            there["dpr"].stop()
        if "hook" in there:
            there["hook"].processor.stop()
        if hasattr(self, "hyp3"):
            self.hyp3.processor.stop()

    def forget(self, person: people.Person) -> None:
        """Back to the initial state for one person; the others notice nothing. Faults and the request log stay.

        Waits for what is under way: jobs of theirs at RS-PYTHON, steps of HyP3 and the Hook, a catalogue that starts.
        """
        owner = rspy.stripped(person.owner)
        with self._anew:
            for name in ("staging", "dpr"):  # first: what they still write has to go, too
                if name in self.__dict__:
                    self.__dict__[name].jobs.forget(owner)
            prefixes = self.hyp3.forget(person.name)
            for prefix in prefixes:
                s3.remove(self.deployment.content_bucket, f"{prefix}/")
            s3.forget(person.account)
            if "hook" in self.__dict__:
                self.hook.forget(person.name)
            if "catalog" in self.__dict__:
                self.catalog.forget(owner)
            for bucket in osam.BUCKETS:
                s3.remove(bucket, f"{owner}/")
            if person == people.FIRST:
                self.catalogue.empty()
                archive_project.offer(self.hyp3, person.name)
                # Whose project everybody may read has its bucket in the same account.
                archive_project.restore(self.hyp3, archive_project.OWNER)
                self.access_keys[person.harvest_key] = person.harvest_secret
            else:
                self.catalogue.remove(person.database)
                with self._making:
                    self._let_in(person)
            self._worlds[person.name] = uuid4().hex[:12]

    def reset(self) -> None:
        """Back to the initial state: no user buckets, jobs or orders, no faults, an empty request log. Time stays."""
        with self._anew:
            self._end()
            s3.reset()
            self.catalogue.reset()
            self.traffic.heal()
            self.traffic.requests.clear()
            self._fill()

    def stop(self) -> None:
        """Stop listening and forget everything. Safe to call twice."""
        self._end()
        self.cluster.stop()
        if hasattr(self, "catalogue"):
            self.catalogue.stop()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()
        self._servers.clear()
        self._clients.clear()
        s3.reset()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _open_for_reading(client: Any, bucket: str) -> None:
    """The content bucket's own rules: anybody may read, and products go after two weeks."""
    statement = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": ["s3:GetObject", "s3:GetObjectTagging", "s3:ListBucket"],
        "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
    }
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    rule = {
        "ID": "expire",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "Expiration": {"Days": CONTENT_DAYS},
    }
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [rule]})


def _register(identity: Identity, person: people.Person) -> None:
    identity.add_user(person.name, person.password, roles=("hook-workflows", "hook-medium"))


#: The access key id of the storage that may not write.
READER = list(rspy.S3_KEYS)[1]


def _rspy_arn(access_key: str) -> str:
    return f"arn:aws:iam::{rspy.ACCOUNT}:user/{access_key}"


def _read_only(bucket: str, principal: str) -> dict:
    """A policy that takes all writing from one of the bucket's owner's users."""
    statement = {
        "Effect": "Deny",
        "Principal": {"AWS": principal},
        "Action": ["s3:PutObject", "s3:DeleteObject"],
        "Resource": f"arn:aws:s3:::{bucket}/*",
    }
    return {"Version": "2012-10-17", "Statement": [statement]}


@lru_cache(maxsize=8)  # the same name gives the same bytes, in every world
def _make_archive(name: str, pixels: int | None, suffix: str) -> bytes:
    from .safe_products import safe_archive  # half a second: not at the start

    return safe_archive(name, pixels, suffix)


_running: Sandbox | None = None


def start() -> Sandbox:
    """The sandbox of this process, started on the first call; it ends with the process."""
    global _running
    if _running is None:
        _running = Sandbox().start()
    return _running


def _in_background(start: Callable[[], None]) -> None:
    with suppress(RecipeError):  # whoever waits for it is told
        start()


def _by_person(app: Flask) -> Callable:
    """The control endpoint as one person has it, below ``/people/{database}``: what is asked there is about them."""

    def layer(environ: dict, start_response: Callable) -> Any:
        if found := re.fullmatch(r"/people/(\w+)(/.*)?", environ.get("PATH_INFO", "")):
            environ["recipes.database"], environ["PATH_INFO"] = found[1], found[2] or "/"
        return app(environ, start_response)

    return layer


class NoSuchName(Exception):
    """Nobody can be called that."""


def _control(sandbox: Sandbox) -> Flask:
    """The endpoint that tests, exercises and other kernels talk to."""
    app = Flask("control")

    @app.get("/")
    def about() -> Any:
        services = {name: sandbox.url(name) for name in SERVICES}
        return jsonify({"name": "eo-cloud-recipes sandbox", "pid": os.getpid(), "services": services})

    @app.errorhandler(NoSuchName)
    def explain(error: NoSuchName) -> Any:
        return jsonify({"detail": str(error)}), 400

    def who() -> people.Person:
        """Whom a request is about: who is named in its path, or ``?user=``."""
        try:
            if database := request.environ.get("recipes.database"):
                found = [person for person in list(sandbox.people.values()) if person.database == database]
                if not found:
                    raise ValueError(f"nobody here has the catalogue {database}")
                return found[0]
            return sandbox.person(request.args.get("user"))
        except ValueError as error:
            raise NoSuchName(str(error)) from None

    @app.get("/environment")
    def environment() -> Any:
        return jsonify(sandbox.environment_of(who()))

    @app.post("/token")
    def token() -> Any:
        wanted = request.get_json()
        return jsonify({"token": sandbox.hyp3.token(wanted["user_id"], wanted.get("expires_in", 86_400))})

    @app.post("/project")
    def project() -> Any:
        try:
            ids = archive_project.fill_large(sandbox.hyp3, **({"user": who().name} | request.get_json()))
        except TypeError as error:
            return jsonify({"detail": str(error)}), 400
        return jsonify({"job_ids": ids})

    @app.get("/requests")
    def requests_received() -> Any:
        return jsonify(sandbox.traffic.as_dicts())

    @app.post("/faults")
    def fail() -> Any:
        try:
            person = who()
            mine = {} if person == people.FIRST else {"user": person.name}
            fault = sandbox.traffic.fail(**(mine | request.get_json()))
        except (TypeError, ValueError) as error:
            return jsonify({"detail": str(error)}), 400
        return jsonify(vars(fault))

    @app.delete("/faults")
    def heal() -> Any:
        person = who()
        sandbox.traffic.heal("" if person == people.FIRST else person.name)
        return jsonify({})

    @app.post("/warm")
    def warm() -> Any:
        sandbox.warm(wait=request.args.get("wait") == "true")
        return jsonify({})

    @app.get("/catalog")
    def has_catalog() -> Any:
        person = who()
        return jsonify({"running": sandbox.catalogue.has(*[] if person == people.FIRST else [person.database])})

    @app.post("/catalog")
    def catalog() -> Any:
        person = who()
        start = partial(sandbox.catalogue.start, *[] if person == people.FIRST else [person.database])
        if request.args.get("wait") != "true":
            Thread(target=_in_background, args=(start,), daemon=True).start()
            return jsonify({"kind": sandbox.catalogue.kind, "label": sandbox.catalogue.label}), 202
        try:
            start()
        except RecipeError as error:
            return jsonify({"detail": str(error)}), 503
        return jsonify({"kind": sandbox.catalogue.kind, "label": sandbox.catalogue.label})

    @app.put("/rules")
    def rules() -> Any:
        if who() != people.FIRST:
            message = "the rules are one table, of everybody: change it at the sandbox's own address, without a person"
            return jsonify({"detail": message}), 400
        rows = request.get_json()
        if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 5 for row in rows):
            return jsonify({"detail": "send a list of rows: owner, collection, product type, days, bucket"}), 400
        sandbox.osam.rows = rows
        return jsonify(rows)

    @app.post("/clock")
    def advance() -> Any:
        try:
            now = sandbox.clock.advance(float(request.get_json()["advance"]))
        except (KeyError, TypeError, ValueError) as error:
            return jsonify({"detail": f'send {{"advance": seconds}}: {error}'}), 400
        sandbox.hyp3.processor.run_due()
        sandbox.hook.processor.run_due()
        return jsonify({"now": now.isoformat()})

    @app.post("/reset")
    def reset() -> Any:
        if request.args.get("user") or "recipes.database" in request.environ:
            sandbox.forget(who())
        else:
            sandbox.reset()
        return jsonify({})

    return app
