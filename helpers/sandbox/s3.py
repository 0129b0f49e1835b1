"""The sandbox's S3 (and STS): moto's server behind a guard that knows who asks.

moto accepts any key and lets everybody in. The guard adds what a bucket of one's own depends on: several accounts,
bucket policies evaluated with their principal, anonymous requests, `ExpectedBucketOwner`, expiring presigned URLs,
and access keys whose secret is checked.
"""

import hmac
import io
import json
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import unescape

from botocore.auth import HmacV1QueryAuth, S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest, HTTPHeaders
from botocore.credentials import Credentials
from moto.iam.access_control import PermissionResult
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import FakeBucket, FakeKey, FakeMultipart, s3_backends

from . import events, policy

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


#: What S3 says to a secret that does not belong to the access key id, and to an id that does not exist.
WRONG_SIGNATURE = (
    "SignatureDoesNotMatch",
    "The request signature we calculated does not match the signature you provided. Check your key and signing method.",
)
UNKNOWN_KEY = "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."


def make_app(identities: dict[str, str], access_keys: dict[str, str | None]) -> Callable:
    """The guarded S3 as a WSGI application.

    Parameters
    ----------
    identities:
        ARN of the principal behind each access key id; any other key is the user's. May change while in use.
    access_keys:
        Secret by access key id, ``None`` for an id that does not exist. Only requests of these ids have their
        signature checked; ids that are not in the table are let in with any secret. May change while in use.
    """
    # The guard is the only judge: moto's own evaluation does not look at the principal.
    FakeBucket.get_permission = lambda *_: PermissionResult.PERMITTED
    events.install()
    return Guard(DomainDispatcherApplication(create_backend_app), identities, access_keys)


def create_bucket(name: str, account_id: str, region: str) -> None:
    """Make a bucket that belongs to ``account_id``; nothing happens when it is there."""
    if name not in s3_backends.bucket_accounts:
        s3_backends[account_id]["aws"].create_bucket(name, region)


def set_policy(name: str, account_id: str, policy: dict) -> None:
    """Give a bucket its policy, without a request."""
    s3_backends[account_id]["aws"].put_bucket_policy(name, json.dumps(policy).encode())


def reset() -> None:
    """Empty every account: buckets, objects, policies, topics and queues."""
    events.reset()
    s3_backends.reset()
    # moto goes through every object it ever had at each reset, and frees none.
    FakeKey.instances_tracked.clear()
    FakeMultipart.instances_tracked.clear()


def forget(account_id: str) -> None:
    """Empty one account: its buckets with all that is in them, topics and queues."""
    events.reset(account_id)
    backend = s3_backends[account_id]["aws"]
    for name in list(backend.buckets):
        bucket = backend.buckets.pop(name)
        s3_backends.bucket_accounts.pop(name, None)
        for key in list(bucket.keys):
            bucket.keys.pop(key)  # every version, with the file that holds it
        for part in bucket.multiparts.values():
            part.dispose()


def remove(bucket: str, prefix: str) -> None:
    """Delete what lies under a prefix of somebody's bucket, without a request."""
    partition, owner = s3_backends.bucket_accounts[bucket]
    keys = s3_backends[owner][partition].buckets[bucket].keys
    for key in [key for key in list(keys) if key.startswith(prefix)]:
        keys.pop(key)


class Guard:
    """WSGI layer that answers 403 where S3 would."""

    def __init__(self, app: Callable, identities: dict[str, str], access_keys: dict[str, str | None]):
        self.app = app
        self.identities = identities
        self.access_keys = access_keys

    def __call__(self, environ: dict, start_response: Callable) -> Iterable[bytes]:
        refusal = self._check_key(environ)
        if refusal is None and (reason := self._refuse(environ)):
            refusal = "AccessDenied", reason
        if refusal is None:
            self._tell_account(environ)
            return self.app(environ, start_response)
        code, message = refusal
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        start_response("403 Forbidden", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _tell_account(self, environ: dict) -> None:
        """Tell moto the account of whoever asks, where it goes by that: it knows the one user's only."""
        credential = CREDENTIAL.search(environ.get("HTTP_AUTHORIZATION", ""))
        arn = self.identities.get(credential[1] if credential else "", "")
        if credential is None or ":user/" not in arn:
            return
        bucket, _, key = environ.get("PATH_INFO", "").lstrip("/").partition("/")
        # Buckets are found by their names. What is done to objects has to stay in one account, for their tags.
        if credential[2] != "s3" or not bucket or (not key and environ["REQUEST_METHOD"] in ("PUT", "DELETE")):
            environ["HTTP_X_MOTO_ACCOUNT_ID"] = arn.split(":")[4]

    def _check_key(self, environ: dict) -> tuple[str, str] | None:
        """Code and message of S3's refusal, if the request was signed by a key of the table, but not rightly."""
        access_key = _access_key(environ)
        if access_key not in self.access_keys:
            return None
        secret = self.access_keys[access_key]
        if secret is None:
            return UNKNOWN_KEY
        given, right = _signatures(environ, Credentials(access_key, secret))
        return None if hmac.compare_digest(given, right) else WRONG_SIGNATURE

    def _refuse(self, environ: dict) -> str | None:
        query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        credential = CREDENTIAL.search(environ.get("HTTP_AUTHORIZATION", ""))
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


#: Access key id and service of a request to AWS.
CREDENTIAL = re.compile(r"Credential=([^/]+)/\d+/[^/]+/(\w+)/")
SIGNED = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/\d+/([^/]+)/s3/aws4_request, *SignedHeaders=([^,]+), *Signature=(\w+)"
)


def access_key_of(environ: dict) -> str | None:
    """The access key id that a request to any service of AWS is signed with."""
    credential = CREDENTIAL.search(environ.get("HTTP_AUTHORIZATION", ""))
    return credential[1] if credential else _access_key(environ)


def _access_key(environ: dict) -> str | None:
    """The access key id that a request to S3 is signed with, in its header or its URL."""
    if header := SIGNED.match(environ.get("HTTP_AUTHORIZATION", "")):
        return header[1]
    query = parse_qs(environ.get("QUERY_STRING", ""))
    return query.get("X-Amz-Credential", query.get("AWSAccessKeyId", [""]))[0].split("/")[0] or None


def _signatures(environ: dict, credentials: Credentials) -> tuple[str, str]:
    """The signature of a request, and the one that botocore's signers give it with these credentials."""
    url = f"http://{environ['HTTP_HOST']}{environ['REQUEST_URI']}"
    query = {name: values[0] for name, values in parse_qs(environ.get("QUERY_STRING", "")).items()}
    request = AWSRequest(environ["REQUEST_METHOD"], url)
    if "AWSAccessKeyId" in query:
        old = HmacV1QueryAuth(credentials)
        old._get_date = lambda: query["Expires"]  # in place of "now + expires"
        headers = HTTPHeaders.from_dict(_headers(environ, ["content-type", "content-md5"]))
        return query["Signature"], old.get_signature(request.method, urlsplit(url), headers)
    if header := SIGNED.match(environ.get("HTTP_AUTHORIZATION", "")):
        region, names, given = header.group(2, 3, 4)
        signer, stamp = S3SigV4Auth(credentials, "s3", region), environ.get("HTTP_X_AMZ_DATE", "")
    else:
        region, names = query["X-Amz-Credential"].split("/")[2], query["X-Amz-SignedHeaders"]
        given, stamp = query["X-Amz-Signature"], query["X-Amz-Date"]
        request.url = re.sub(r"&?X-Amz-Signature=\w+", "", url)
        signer = S3SigV4QueryAuth(credentials, "s3", region)
    for name, value in _headers(environ, names.split(";")).items():
        request.headers[name] = value
    request.context["timestamp"] = stamp
    return given, signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)


def _headers(environ: dict, names: list[str]) -> dict[str, str]:
    cgi = {name: name.upper().replace("-", "_") for name in names}
    found = {name: environ.get(key, environ.get(f"HTTP_{key}")) for name, key in cgi.items()}
    return {name: value for name, value in found.items() if value is not None}


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
