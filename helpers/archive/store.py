"""S3 where boto3 is the bottleneck: looking up and copying very many objects; and whose words its errors are.

The requests are signed by botocore and sent by urllib3: a copy costs 0.6 ms of a processor, where boto3 needs 2 ms,
and boto3 parses each page of a listing twice. Everything else goes to the boto3 client of the :class:`Place`.
"""

import html
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Container, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_plus, urlencode

import botocore.session
import requests
import urllib3
from boto3.exceptions import Boto3Error
from botocore import UNSIGNED
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from .. import objectstore
from ..errors import FailedRemotely, NotConfigured, RecipeError, Rejected, TimedOut
from ..settings import Settings, aws_session

#: Bytes that one CopyObject request takes ("Copying objects" of the S3 user guide: 5 GiB).
COPY_LIMIT = 5 << 30
#: Connections to one bucket, and threads that use them.
CONNECTIONS = 64
#: Seconds for which a listing asks again when S3 does not answer.
PATIENCE = 60.0
#: Codes that mean: these credentials will do for nothing any more. Asking on is of no use.
CREDENTIALS = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestExpired",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
#: Codes that mean: slower; and: again (whatever the status is, "200" of a copy included).
THROTTLING = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "BandwidthLimitExceeded"}
PASSING = {"InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted", "BadGateway"}
#: What only encoded keys have.
ENCODED = re.compile(r"[%+&]")


class Refused(Rejected):
    """S3 says no: its ``status`` and ``code``."""

    def __init__(self, message: str, status: int, code: str):
        super().__init__(message)
        self.status, self.code = status, code


class CredentialsRefused(Refused):
    """The credentials have expired, or are not known: nothing else will work with them either."""


class Throttled(TimedOut):
    """S3 asks for fewer requests."""


class Entry(NamedTuple):
    """One object in a listing: bytes, ETag without quotes, and time of its last change ("2026-01-31T12:00:00", UTC)."""

    key: str
    size: int
    etag: str
    modified: str


@dataclass(frozen=True, eq=False)
class Place:
    """A bucket, or what lies under a prefix in it, and as whom it is asked.

    ``anonymous``: requests are not signed, as public buckets allow. Secrets are in the settings only, which mask them.
    """

    settings: Settings
    bucket: str
    prefix: str = ""
    anonymous: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix", self.prefix.strip("/"))

    def key(self, name: str) -> str:
        """The key of the file ``name`` here."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def of_bucket(self, bucket: str) -> "Place":
        """The same, in another bucket, which is nobody's to read without signing."""
        return self if bucket == self.bucket else replace(self, bucket=bucket, anonymous=False)

    @property
    def address(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @cached_property
    def client(self) -> Any:
        """A boto3 client: for all that need not be fast."""
        options: dict[str, Any] = {"signature_version": UNSIGNED} if self.anonymous else {}
        if self.settings.aws_endpoint_url:
            options["s3"] = {"addressing_style": "path"}  # other stores have no names like bucket.host
        return objectstore.client("s3", self.settings, max_pool_connections=CONNECTIONS, **options)

    def reaches(self, other: "Place") -> bool:
        """Whether our S3 can copy from ``other`` by itself: the same service, and our credentials may read there."""
        ours, theirs = self.settings, other.settings
        if ours.aws_endpoint_url != theirs.aws_endpoint_url or self.anonymous:
            return False
        fields = ("aws_profile", "aws_access_key_id", "aws_secret_access_key")
        return other.anonymous or all(getattr(ours, name) == getattr(theirs, name) for name in fields)

    def __getstate__(self) -> dict:
        # A client cannot travel to another process, and need not.
        return {name: value for name, value in vars(self).items() if name != "client"}


class Store:
    """Signed requests to the bucket of one place. Safe to use from many threads.

    Raises (from every request)
    ------
    CredentialsRefused, Refused
        S3 says no, and why.
    Throttled, TimedOut, FailedRemotely
        It may work later.
    NotConfigured
        There are no credentials.
    """

    def __init__(self, place: Place):
        self.place, self.region = place, place.settings.aws_region
        self.credentials = None if place.anonymous else aws_session(place.settings).get_credentials()
        if self.credentials is None and not place.anonymous:
            raise NotConfigured(f"There are no credentials for {place.address} (AWS_PROFILE, or AWS_ACCESS_KEY_ID).")
        scheme, host = place.client.meta.endpoint_url.rstrip("/").split("://")
        with_name = host.endswith((".amazonaws.com", ".amazonaws.com.cn")) and "." not in place.bucket
        self.url = f"{scheme}://{place.bucket}.{host}" if with_name else f"{scheme}://{host}/{place.bucket}"
        self._pool = _pool(self.url)

    def request(self, method: str, key: str = "", query: str = "", headers: dict | None = None) -> urllib3.HTTPResponse:
        """The answer to one request, whole; ``query`` is encoded already."""
        url = self.url_of(key) + (f"?{query}" if query else "")
        try:
            answer = self._pool.request(method, url, headers=self.signed(method, url, headers))
        except urllib3.exceptions.HTTPError as error:
            raise TimedOut(f"S3 does not answer ({type(error).__name__}).") from None
        if answer.status >= 300:
            raise self._refusal(answer)
        return answer

    def url_of(self, key: str) -> str:
        return f"{self.url}/{quote(key, safe='/~')}"

    def signed(self, method: str, url: str, headers: dict | None = None) -> dict[str, str]:
        """The headers of a request, with its signature."""
        if self.credentials is None:
            return headers or {}
        request = AWSRequest(method, url, headers=headers)
        # Frozen each time: credentials that end are renewed by botocore before they do.
        S3SigV4Auth(self.credentials.get_frozen_credentials(), "s3", self.region).add_auth(request)
        return dict(request.headers.items())

    def copy(self, bucket: str, key: str, to: str, etag: str = "") -> str:
        """Copy an object of ``bucket`` to the key ``to`` here, inside S3, with its metadata and tags; return its ETag.

        ``etag``: only if that is still the source's.
        """
        headers = {"x-amz-copy-source": quote(f"{bucket}/{key}", safe="/~")}
        if etag:
            headers["x-amz-copy-source-if-match"] = f'"{etag}"'
        answer = self.request("PUT", to, headers=headers)
        if found := re.search(rb"<ETag>(?:&quot;|&#34;|\")?([^<&\"]+)", answer.data):
            return found[1].decode()
        # The status comes before the work is done, the error after it ("CopyObject" of the S3 API reference).
        raise refusal(500, *_words(answer.data))

    def page(
        self, prefix: str, after: str = "", *, delimiter: str = "", sought: Container[str] | None = None
    ) -> tuple[list[Entry], str]:
        """One request: up to 1,000 objects whose keys begin with ``prefix`` and sort behind ``after``.

        Returns
        -------
        Those of them that are in ``sought`` (None: all), and the last key of the page if there are more ("" if not).
        """
        asked = {"delimiter": delimiter, "encoding-type": "url", "list-type": "2", "prefix": prefix}
        asked = {name: value for name, value in (asked | {"start-after": after}).items() if value}
        query = urlencode(asked, quote_via=quote, safe="~")
        return patiently(lambda: _entries(self.request("GET", query=query).data, sought))

    def files(self, prefix: str) -> list[Entry]:
        """All objects directly under ``prefix`` ("" or ending in "/"); not those in its folders."""
        found, after = self.page(prefix, delimiter="/")
        while after:
            page, after = self.page(prefix, after, delimiter="/")
            found += page
        return found

    def look_up(self, keys: Iterable[str], threads: int = 32) -> dict[str, Entry]:
        """Those of ``keys`` that are there.

        Asks for pages, not for single keys: of 1,000,000 objects, 1,000 pages. Pages that none of the keys can be on
        are left out, and many are asked for at once, since the keys themselves say where to begin. Only what was
        looked for is kept.
        """
        wanted = sorted(set(keys))
        share = max(32, -(-len(wanted) // (4 * threads)))
        shares = [wanted[start : start + share] for start in range(0, len(wanted), share)]
        found: dict[str, Entry] = {}
        with ThreadPoolExecutor(threads) as pool:
            for part in pool.map(self._look_up, shares):
                found |= part
        return found

    def _look_up(self, wanted: list[str]) -> dict[str, Entry]:
        found, place, after, sought = dict[str, Entry](), 0, "", frozenset(wanted)
        folder = self.place.key("")
        while place < len(wanted):
            # What sorts just before a key is, nearly always, the key without its last character.
            entries, after = self.page(folder, max(after, wanted[place][:-1]), sought=sought)
            found |= {entry.key: entry for entry in entries}
            if not after:
                break
            place = bisect_right(wanted, after)
        return found

    def _refusal(self, answer: urllib3.HTTPResponse) -> RecipeError:
        code, said = _words(answer.data)
        if answer.status in (301, 307) or code == "AuthorizationHeaderMalformed":
            named = re.search(r"<Region>(.*?)<", answer.data.decode())
            region = answer.headers.get("x-amz-bucket-region") or (named[1] if named else "another region")
            said = f"{self.place.bucket} is in {region}, not in {self.region}: set its region (AWS_REGION)"
        return refusal(answer.status, code, said)


def _pool(url: str) -> urllib3.PoolManager:
    """Connections as boto3 and requests would make them: proxies and certificates from the environment."""
    environment = requests.Session().merge_environment_settings(url, {}, False, None, None)
    bundle = botocore.session.get_session().get_config_variable("ca_bundle") or environment["verify"]
    options: dict[str, Any] = {
        "maxsize": CONNECTIONS,
        "retries": False,
        "timeout": urllib3.Timeout(connect=10, read=60),
        "ca_certs": bundle if isinstance(bundle, str) else requests.certs.where(),
    }
    proxy = requests.utils.select_proxy(url, environment["proxies"])
    return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)


def _entries(data: bytes, sought: Container[str] | None = None) -> tuple[list[Entry], str]:
    """The objects of a page, or those of ``sought``; and its last key if more follow ("": none do)."""
    text, key = data.decode(), ""
    if not text.rstrip().endswith("</ListBucketResult>"):
        raise TimedOut("A listing broke off.")
    entries = []
    for content in text.split("<Contents>")[1:]:
        key = _inside(content, "Key")
        if ENCODED.search(key):
            key = unquote_plus(html.unescape(key))
        if sought is None or key in sought:
            etag = html.unescape(_inside(content, "ETag")).strip('"')
            entries.append(Entry(key, int(_inside(content, "Size")), etag, _inside(content, "LastModified")[:19]))
    return entries, key if "<IsTruncated>true</IsTruncated>" in text else ""


def _inside(text: str, tag: str) -> str:
    start = text.index(f"<{tag}>") + len(tag) + 2
    return text[start : text.index("<", start)]


def _words(data: bytes) -> tuple[str, str]:
    text = data.decode(errors="replace")
    code, said = (re.search(f"<{name}>([^<]*)<", text) for name in ("Code", "Message"))
    return code[1] if code else "", html.unescape(said[1]) if said else ""


def refusal(status: int, code: str, said: str = "") -> RecipeError:
    """An error answer of S3 as one of ours."""
    words = ": ".join(dict.fromkeys(word for word in (code or str(status), said) if word))
    if status == 412:
        return Refused(f"{words}. It is not what it was when it was listed: plan again.", status, code)
    if code in CREDENTIALS or status == 401:
        return CredentialsRefused(f"S3 refuses the credentials ({words}). Renew them, then run again.", status, code)
    if code in THROTTLING or status in (429, 503):
        return Throttled(f"S3 asks for fewer requests ({words}).")
    if code in PASSING or status >= 500:
        return FailedRemotely(f"S3 has a problem ({words}).")
    return Refused(words, status, code or str(status))


def explained(error: Exception) -> Exception:
    """What boto3 raised, as one of our errors where it is about S3 or the network."""
    if isinstance(error, ClientError):
        answer = error.response
        return refusal(
            answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0),
            answer["Error"].get("Code", ""),
            answer["Error"].get("Message", ""),
        )
    if isinstance(error, NoCredentialsError):
        return NotConfigured(str(error))
    if isinstance(error, Boto3Error | BotoCoreError | urllib3.exceptions.HTTPError):
        return TimedOut(f"S3 does not answer ({type(error).__name__}).")
    return error


def patiently[Result](do: Callable[[], Result], patience: float = PATIENCE) -> Result:
    """Do something that may be repeated until S3 answers, for ``patience`` seconds at most."""
    end, pause = time.monotonic() + patience, 0.2
    while True:
        try:
            return do()
        except (TimedOut, FailedRemotely):
            if time.monotonic() + pause > end:
                raise
        time.sleep(pause)
        pause = min(pause * 2, 10)
