"""Where the Hook stand-in puts its products: its own temporary storage, or a bucket of the user's."""

import hmac
import io
import zipfile
from collections.abc import Callable
from datetime import datetime
from functools import cache
from hashlib import md5, sha1
from pathlib import PurePosixPath
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from flask import Flask, Response, request

from .clock import Clock


class TemporaryStorage:
    """Swift's temporary URLs: whoever has the link gets the object, until it expires by the sandbox's clock.

    Parameters
    ----------
    url:
        Gives the address that ``app`` is served at.

    Attributes
    ----------
    ranges:
        Switched off, it sends whole objects only, whatever is asked for.
    """

    PATH = "/swift/v1/tmp-storage/"

    def __init__(self, clock: Clock, url: Callable[[], str]):
        self.clock, self.url = clock, url
        self.objects: dict[str, tuple[bytes, str]] = {}  #: body and ETag by name
        self.ranges = True
        self._key = token_hex(20).encode()
        self.app = Flask("hook-storage")
        self.app.add_url_rule(f"{self.PATH}<name>", "get", self._get)

    def keep(self, item_id: int, body: bytes, when: datetime) -> str:
        """Store an object, and return its name."""
        name = f"{when:%Y%m%d}_{item_id}_{token_hex(4)}.zip"
        self.objects[name] = body, md5(body, usedforsecurity=False).hexdigest()
        return name

    def link(self, name: str, expires: datetime) -> str:
        """The signed URL of an object."""
        until = int(expires.timestamp())
        return f"{self.url()}{self.PATH}{name}?temp_url_sig={self._sign(name, until)}&temp_url_expires={until}"

    def _sign(self, name: str, until: int) -> str:
        return hmac.new(self._key, f"GET\n{until}\n{self.PATH}{name}".encode(), sha1).hexdigest()

    def _get(self, name: str) -> Response:
        given, until = request.args.get("temp_url_sig", ""), request.args.get("temp_url_expires", "")
        valid = until.isdecimal() and hmac.compare_digest(given.encode(), self._sign(name, int(until)).encode())
        if not valid or int(until) <= self.clock.now().timestamp():
            return Response("401 Unauthorized: Temp URL invalid\n", 401, content_type="text/plain")
        if name not in self.objects:
            return Response("404 Not Found\n", 404, content_type="text/plain")
        body, etag = self.objects[name]
        answer = Response(body, content_type="application/zip")
        answer.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        answer.set_etag(etag)
        return answer.make_conditional(request, self.ranges, len(body))


@cache
def _session() -> boto3.Session:
    # No profile of the environment: an order brings its own keys, and that profile may not exist.
    return boto3.Session(botocore_session=botocore.session.Session(session_vars={"profile": (None, None, None, None)}))


def open_s3(options: dict, kind: str) -> tuple[Any, str, str]:
    """A client with the credentials given in an order, and bucket and prefix; ``kind``: output or source."""
    where = urlsplit(str(options[f"{kind}_s3_path"]))
    if where.scheme != "s3" or not where.netloc:
        raise ValueError(f"{kind}_s3_path is not s3://bucket/prefix")
    client = _session().client(
        "s3",
        endpoint_url=options[f"{kind}_s3_endpoint_url"],
        aws_access_key_id=options[f"{kind}_s3_access_key"],
        aws_secret_access_key=options[f"{kind}_s3_secret_key"],
        region_name="us-east-1",
        config=Config(
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",  # Ceph knows no trailing checksums
            retries={"total_max_attempts": 2},
            connect_timeout=5,
            read_timeout=20,
            proxies={},  # none stands between the services of the sandbox
        ),
    )
    return client, where.netloc, where.path.strip("/")


def write_private(options: dict, name: str, archive: bytes, layout: str) -> int:
    """Write an output under the order's prefix; returns the bytes written.

    ``layout``: "tree", each file by itself (``<prefix>/<NAME>.SAFE/...``), or "zip", the archive as it is
    (``<prefix>/<NAME>.zip``). Which of them the service writes is in no published source.
    """
    client, bucket, prefix = open_s3(options, "output")
    if layout == "zip":
        files = {f"{name.removesuffix('.SAFE')}.zip": archive}
    else:
        with zipfile.ZipFile(io.BytesIO(archive)) as members:
            files = {member: members.read(member) for member in members.namelist() if not member.endswith("/")}
    for file, body in files.items():
        client.put_object(Bucket=bucket, Key=str(PurePosixPath(prefix) / file), Body=body)
    return sum(map(len, files.values()))
