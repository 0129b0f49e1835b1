"""Small objects of S3, many at a time: what the events of a batch point to."""

import asyncio
import re
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from .. import objectstore
from ..settings import Settings
from .messages import Located

#: Objects at a time; bytes of one at most (an item is a few kB; a collection of a thousand of them a few MB).
WORKERS, LARGEST = 96, 32 << 20
#: Keys that are no paths, like `/a`, `a//b` and `../a`.
ODD = re.compile(r"^/|/$|//|(?:^|/)\.\.?(?:/|$)")


@dataclass(frozen=True)
class Fetched:
    """What became of one object: it is there, or gone, or there is a problem."""

    body: bytes | None = None
    etag: str = ""
    problem: str = ""  #: why it could not be fetched; whether it is there is not known
    passing: bool = False  #: the problem may go away by itself

    @property
    def gone(self) -> bool:
        return self.body is None and not self.problem


class Fetcher:
    """Fetches objects with the credentials of the settings; clients are made once for each bucket.

    Parameters
    ----------
    workers:
        Objects at a time.
    largest:
        Bytes of an object at most; larger ones are a problem, and not read.
    """

    def __init__(self, settings: Settings, *, workers: int = WORKERS, largest: int = LARGEST):
        self._settings, self._workers, self._largest = settings, workers, largest
        self._stores: dict[str, Any] = {}
        self._s3: Any = None
        self._lock = threading.Lock()

    def __call__(self, objects: Iterable[Located]) -> dict[Located, Fetched]:
        """Fetch each of the objects once. Never raises for one of them."""
        wanted = list(dict.fromkeys(objects))
        if not wanted:
            return {}
        # In a thread of its own: a notebook has a running loop in this one.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, self._all(wanted)).result()

    async def _all(self, wanted: list[Located]) -> dict[Located, Fetched]:
        import obstore  # noqa: F401 - before the first of many asks for it

        found: dict[Located, Fetched] = {}
        left = iter(wanted)

        async def work() -> None:
            for one in left:
                found[one] = await self._one(one)

        await asyncio.gather(*(work() for _ in range(min(self._workers, len(wanted)))))
        return found

    async def _one(self, one: Located) -> Fetched:
        import obstore
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        if ODD.search(one.key):
            return await asyncio.to_thread(self._odd, one)
        try:
            options = {"version": one.version} if one.version else {}
            answer = await obstore.get_async(self._store(one.bucket), one.key, options=options)
            if (size := answer.meta["size"]) > self._largest:
                return _too_large(size, self._largest)
            body = bytes(await answer.bytes_async())
            return Fetched(body, (answer.meta["e_tag"] or "").strip('"'))
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                return Fetched(problem=f"bucket {one.bucket} does not exist")
            return Fetched()
        except (PermissionDeniedError, UnauthenticatedError):
            return Fetched(problem=f"S3 does not let us read s3://{one.bucket}/{one.key}", passing=True)
        except (BaseError, OSError) as error:
            return _failed(one, error)

    def _odd(self, one: Located) -> Fetched:
        """An object whose key is no path: S3 allows it; obstore refuses it, or takes it for another one."""
        from botocore.exceptions import BotoCoreError, ClientError

        with self._lock:
            self._s3 = self._s3 or objectstore.client("s3", self._settings)
        version = {"VersionId": one.version} if one.version else {}
        try:
            answer = self._s3.get_object(Bucket=one.bucket, Key=one.key, **version)
            if (size := answer["ContentLength"]) > self._largest:
                return _too_large(size, self._largest)
            return Fetched(answer["Body"].read(), answer["ETag"].strip('"'))
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "NoSuchVersion", "404"):
                return Fetched()
            return _failed(one, error)
        except (BotoCoreError, OSError) as error:
            return _failed(one, error)

    def _store(self, bucket: str) -> Any:
        if bucket not in self._stores:
            self._stores[bucket] = objectstore.store(bucket, self._settings, connections=self._workers)
        return self._stores[bucket]


def _too_large(size: int, largest: int) -> Fetched:
    return Fetched(problem=f"the object has {size:,} bytes; {largest:,} are read at most")


def _failed(one: Located, error: Exception) -> Fetched:
    # The first line: obstore shows its whole configuration after it.
    said = str(error).strip().partition("\n")[0].partition("?")[0][:200]
    return Fetched(problem=f"s3://{one.bucket}/{one.key} could not be fetched: {said}", passing=True)
