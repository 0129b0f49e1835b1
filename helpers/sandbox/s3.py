"""The sandbox's S3 (and STS): moto's server behind a guard that knows who asks.

moto accepts any key and lets everybody in. The guard adds what a bucket of one's own depends on: several accounts,
bucket policies evaluated with their principal, anonymous requests, `ExpectedBucketOwner`, expiring presigned URLs.
"""

import io
import json
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import unescape

from moto.iam.access_control import PermissionResult
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import FakeBucket, FakeKey, FakeMultipart, s3_backends

from . import policy

#: The sandbox user's account: moto's default for any key it does not know.
USER_ACCOUNT = "123456789012"

#: Stand for a principal: a presigned URL past its time; the service itself, which every policy lets in.
EXPIRED, S3_ITSELF = "expired", "s3-itself"

#: S3 actions by method, for requests on an object and on a bucket; subresources first.
OBJECT_ACTIONS = {
    "GET": "GetObject",
    "HEAD": "GetObject",
    "PUT": "PutObject",
    "POST": "PutObject",
    "DELETE": "DeleteObject",
}
BUCKET_ACTIONS = {
    "GET": "ListBucket",
    "HEAD": "ListBucket",
    "PUT": "CreateBucket",
    "POST": "DeleteObject",
    "DELETE": "DeleteBucket",
}
VERBS = {"GET": "Get", "HEAD": "Get", "PUT": "Put", "POST": "Put", "DELETE": "Delete"}
#: Subresources of a bucket that name an action of their own (the rest counts as the plain action).
SUBRESOURCES = {
    "policy": "BucketPolicy",
    "location": "BucketLocation",
    "lifecycle": "LifecycleConfiguration",
    "encryption": "EncryptionConfiguration",
    "publicAccessBlock": "BucketPublicAccessBlock",
    "ownershipControls": "BucketOwnershipControls",
    "versioning": "BucketVersioning",
    "acl": "BucketAcl",
}


def make_app(identities: dict[str, str]) -> Callable:
    """The guarded S3 as a WSGI application.

    Parameters
    ----------
    identities:
        ARN of the principal behind each access key id; any other key is the user's.
    """
    # The guard is the only judge: moto's own evaluation does not look at the principal.
    FakeBucket.get_permission = lambda *_: PermissionResult.PERMITTED
    return Guard(DomainDispatcherApplication(create_backend_app), identities)


def create_bucket(name: str, account_id: str, region: str) -> None:
    """Make a bucket that belongs to ``account_id``; nothing happens when it is there."""
    if name not in s3_backends.bucket_accounts:
        s3_backends[account_id]["aws"].create_bucket(name, region)


def reset() -> None:
    """Empty every account: buckets, objects, policies."""
    s3_backends.reset()
    # moto goes through every object it ever had at each reset, and frees none.
    FakeKey.instances_tracked.clear()
    FakeMultipart.instances_tracked.clear()


class Guard:
    """WSGI layer that answers 403 where S3 would."""

    def __init__(self, app: Callable, identities: dict[str, str]):
        self.app = app
        self.identities = identities

    def __call__(self, environ: dict, start_response: Callable) -> Iterable[bytes]:
        refusal = self._refuse(environ)
        if refusal is None:
            return self.app(environ, start_response)
        body = f"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>{refusal}</Message></Error>".encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        start_response("403 Forbidden", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _refuse(self, environ: dict) -> str | None:
        query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        credential = re.search(r"Credential=([^/]+)/\d+/[^/]+/(\w+)/", environ.get("HTTP_AUTHORIZATION", ""))
        if credential and credential[2] != "s3":
            return None
        principal = self._principal(credential and credential[1], query)
        if principal == S3_ITSELF:
            return None
        if principal == EXPIRED:
            return "Request has expired"
        bucket_name, _, key = unquote(environ.get("PATH_INFO", "")).lstrip("/").partition("/")
        if bucket_name not in s3_backends.bucket_accounts:
            return None
        partition, owner = s3_backends.bucket_accounts[bucket_name]
        if environ.get("HTTP_X_AMZ_EXPECTED_BUCKET_OWNER", owner) != owner:
            return "Access Denied"
        method = environ["REQUEST_METHOD"]
        if method == "PUT" and not key and not query:
            return None  # CreateBucket: moto answers whether the name is free
        bucket = s3_backends[owner][partition].buckets[bucket_name]
        stored = json.loads(bucket.policy) if bucket.policy else None
        if method == "POST" and "delete" in query:
            # S3 would refuse single keys of the list; here one that is denied stops them all.
            resources = [f"arn:aws:s3:::{bucket_name}/{k}" for k in _keys_to_delete(environ)]
        else:
            resources = [f"arn:aws:s3:::{bucket_name}" + (f"/{key}" if key else "")]
        action = _action(method, key, query)
        context = {"s3_prefix": query["prefix"][0]} if "prefix" in query else {}
        try:
            says = {policy.verdict(stored, principal, action, resource, **context) for resource in resources}
        except ValueError as error:
            return str(error)
        if f"::{owner}:" in principal:
            # The owner gets in without a policy, and can always take a policy back.
            return "Access Denied" if "Deny" in says and "policy" not in query else None
        return None if says == {"Allow"} else "Access Denied"

    def _principal(self, access_key: str | None, query: dict) -> str:
        if access_key is None and (signed := _presigned(query)):
            access_key, until = signed
            if datetime.now(UTC) > until:
                return EXPIRED
        if access_key is None:
            return policy.ANONYMOUS
        return self.identities.get(access_key, f"arn:aws:iam::{USER_ACCOUNT}:user/{access_key}")


def _presigned(query: dict) -> tuple[str, datetime] | None:
    """Access key id and end of a presigned URL, of either signature version (boto3 still signs URLs with the old)."""
    if "X-Amz-Credential" in query:
        signed = datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        return query["X-Amz-Credential"][0].split("/")[0], signed + timedelta(seconds=int(query["X-Amz-Expires"][0]))
    if "AWSAccessKeyId" in query:
        return query["AWSAccessKeyId"][0], datetime.fromtimestamp(int(query["Expires"][0]), UTC)
    return None


def _keys_to_delete(environ: dict) -> list[str]:
    """The keys in the body of a DeleteObjects request; the body is put back."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    return [unescape(key) for key in re.findall(r"<Key>(.*?)</Key>", body.decode(), re.DOTALL)]


def _action(method: str, key: str, query: dict) -> str:
    if key:
        return f"s3:{VERBS[method]}ObjectTagging" if "tagging" in query else f"s3:{OBJECT_ACTIONS[method]}"
    for name, resource in SUBRESOURCES.items():
        if name in query:
            return f"s3:{VERBS[method]}{resource}"
    return f"s3:{BUCKET_ACTIONS[method]}"
