"""An S3 that answers at once with what can be computed, behind a delay: it measures clients, and nothing else.

Two buckets. ``content`` holds the products of any number of jobs, and files of zeros of any size
(``data/<bytes>/<n>.bin``); ``archive`` begins with as many of the products as it is told and takes copies. Time of an
answer, bytes a second of a connection and faults are set over ``POST /_control``. Run by ``archive.py``, in a process
of its own:

    python benchmarks/s3_stub.py --port 9000
"""

import argparse
import asyncio
import bisect
import hashlib
import json
import random
import re
import time
from functools import cache
from typing import Any
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

SUFFIXES = ("_VV.tif", "_VH.tif", "_rgb.tif", "_dem.tif", "_WM.tif", "_WM_HAND.tif", "_VV.tif.xml", "_WaterDepth.tif")
SIZE, ETAG = 1_000_000, hashlib.md5(b"stub").hexdigest()  # noqa: S324 - what S3 calls an ETag
PREFIX = "archive/HKHwatermaps/"
MODIFIED, LATER = "2026-01-01T00:00:00.000Z", "2026-01-02T00:00:00.000Z"
BLOCK = bytes(256 * 1024)


def job_id(n: int) -> str:
    return f"{n:08x}-0000-4000-8000-000000000000"


def stem(n: int) -> str:
    """Name of the product of job ``n``: as HyP3 names it, later ones sort behind."""
    seconds = n * 997 % 86_400
    clock = f"{seconds // 3600:02}{seconds // 60 % 60:02}{seconds % 60:02}"
    return (
        f"S1A_IW_{2014 + n // 12_000:04}{n // 1000 % 12 + 1:02}{n // 36 % 28 + 1:02}T{clock}_DVP_RTC30_G_gpuned_{n:05X}"
    )


def products(jobs: int) -> list[str]:
    """File names of the first ``jobs`` jobs."""
    return [stem(n) + suffix for n in range(jobs) for suffix in SUFFIXES]


@cache
def zeros_etag(size: int) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for start in range(0, size, len(BLOCK)):
        digest.update(BLOCK[: min(len(BLOCK), size - start)])
    return digest.hexdigest()


class World:
    """What the stub holds, how it behaves, and what it has seen."""

    def __init__(self) -> None:
        self.set({})

    def set(self, wanted: dict) -> None:
        self.delay: float = wanted.get("delay", 0.04)
        self.rate: float = wanted.get("rate", 0)  # bytes a second of a connection; 0: no limit
        self.archive = sorted(PREFIX + name for name in products(wanted.get("archived", 0) // len(SUFFIXES)))
        self.others: dict[str, bytes] = {}  # small objects with a body: locks
        self.throttled: float = wanted.get("throttled", 0.0)  # share of the copies that are answered SlowDown
        self.outage_after, self.outage = wanted.get("outage_after", -1), wanted.get("outage", 12.0)
        self.expires_after = wanted.get("expires_after", -1)
        self.late_errors: float = wanted.get("late_errors", 0.0)  # share of copies: status 200, and an error
        self.down_until = 0.0
        self.seen = {"requests": 0, "copies": 0, "refused": 0, "lists": 0, "sent": 0, "twice": 0}
        self.copied: set[str] = set()
        self.random = random.Random(4)  # noqa: S311

    def add(self, key: str) -> None:
        self.copied.add(key)
        place = bisect.bisect_left(self.archive, key)
        if place == len(self.archive) or self.archive[place] != key:
            self.archive.insert(place, key)

    # --- answers ---

    def page(self, bucket: str, query: dict[str, str]) -> bytes:
        prefix, after = query.get("prefix", ""), query.get("continuation-token") or query.get("start-after", "")
        after = after or query.get("marker", "")
        most = int(query.get("max-keys", 1000))
        if bucket == "archive":
            keys = self.archive
            first = max(bisect.bisect_left(keys, prefix), bisect.bisect_right(keys, after))
            page = keys[first : first + most]
            if page and not page[-1].startswith(prefix):
                page = [key for key in page if key.startswith(prefix)]
            more = first + most < len(keys) and keys[first + most].startswith(prefix)
            rows = [row(key, SIZE, ETAG, LATER) for key in page]
        else:
            page, rows, more = self._content(prefix, after)
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        return (
            f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{bucket}</Name><Prefix>{prefix}</Prefix><KeyCount>{len(page)}</KeyCount><MaxKeys>{most}</MaxKeys>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(rows)}</ListBucketResult>"
        ).encode()

    def _content(self, prefix: str, after: str) -> tuple[list[str], list[str], bool]:
        if found := re.match(r"data/(\d+)/", prefix):
            size = int(found[1])
            keys = [f"data/{size}/{n:03}.bin" for n in range(100 if size < 100_000_000 else 2)]
            return keys, [row(key, size, zeros_etag(size)) for key in keys], False
        if re.match(r"[0-9a-f]{8}-", prefix):
            keys = sorted(f"{prefix}{stem(int(prefix[:8], 16))}{suffix}" for suffix in SUFFIXES)
            return keys, [row(key) for key in keys], False
        return [], [], False

    def find(self, bucket: str, key: str) -> tuple[int, str] | None:
        """Size and ETag of an object."""
        if found := re.fullmatch(r"data/(\d+)/\d+\.bin", key):
            return int(found[1]), zeros_etag(int(found[1]))
        if key in self.others:
            return len(self.others[key]), ETAG
        if bucket == "content":
            return (SIZE, ETAG) if key.endswith((".tif", ".xml")) else None
        place = bisect.bisect_left(self.archive, key)
        return (SIZE, ETAG) if place < len(self.archive) and self.archive[place] == key else None


def row(key: str, size: int = SIZE, etag: str = ETAG, modified: str = MODIFIED) -> str:
    return (
        f"<Contents><Key>{key}</Key><LastModified>{modified}</LastModified><ETag>&quot;{etag}&quot;</ETag>"
        f"<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )


class Connection(asyncio.Protocol):
    """One connection of a client; requests one after the other."""

    def __init__(self, world: World):
        self.world, self.buffer, self.queue = world, b"", None
        self.transport: asyncio.Transport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, rest = self.buffer.partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            length = int(headers.get("content-length", 0))
            if headers.get("expect") and len(rest) < length:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if len(rest) < length:
                return
            self.buffer = rest[length:]
            method, target, _ = lines[0].split(" ")
            self.answer(method, target, headers, rest[:length])

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> None:
        world, seen = self.world, self.world.seen
        path, _, query_string = target.partition("?")
        if path == "/_control":
            if method == "POST":
                world.set(json.loads(body))
            return self.reply(200, json.dumps(seen | {"copied": len(world.copied)}).encode(), delay=0)
        seen["requests"] += 1
        if time.monotonic() < world.down_until:
            return self.transport.abort()
        query = {name: values[0] for name, values in parse_qs(query_string, keep_blank_values=True).items()}
        bucket, _, key = unquote(path.removeprefix("/")).partition("/")
        if method == "PUT" and "x-amz-copy-source" in headers:
            if headers.get("x-amz-copy-source-if-match", f'"{ETAG}"') != f'"{ETAG}"':
                return self.refuse(412, "PreconditionFailed")
            return self.copy(key)
        if 0 <= world.expires_after <= seen["copies"]:
            return self.refuse(400, "ExpiredToken")
        if method == "GET" and not key:
            if "location" in query:
                return self.reply(200, b"<LocationConstraint>us-west-2</LocationConstraint>")
            if "uploads" in query:
                return self.reply(200, b"<ListMultipartUploadsResult></ListMultipartUploadsResult>")
            seen["lists"] += 1
            return self.reply(200, world.page(bucket, query))
        if method in ("GET", "HEAD") and key:
            return self.object(method, bucket, key, headers)
        if method == "PUT":
            world.others[key] = body
        if method == "DELETE":
            world.others.pop(key, None)
        return self.reply(204 if method == "DELETE" else 200, b"", {"ETag": f'"{ETAG}"'})

    def copy(self, key: str) -> None:
        world, seen = self.world, self.world.seen
        if world.random.random() < world.throttled:
            return self.refuse(503, "SlowDown")
        if 0 <= world.expires_after <= seen["copies"]:
            return self.refuse(400, "ExpiredToken")
        if seen["copies"] == world.outage_after:
            world.outage_after, world.down_until = -1, time.monotonic() + world.outage
            return self.transport.abort()
        if world.random.random() < world.late_errors:
            return self.reply(200, b"<Error><Code>InternalError</Code><Message>late</Message></Error>")
        seen["copies"] += 1
        seen["twice"] += key in world.copied
        world.add(key)
        result = f"<ETag>&quot;{ETAG}&quot;</ETag><LastModified>{LATER}</LastModified>"
        self.reply(200, f"<CopyObjectResult>{result}</CopyObjectResult>".encode())

    def refuse(self, status: int, code: str) -> None:
        self.world.seen["refused"] += 1
        self.reply(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def object(self, method: str, bucket: str, key: str, headers: dict[str, str]) -> None:
        found = self.world.find(bucket, key)
        if found is None:
            return self.reply(404, b"" if method == "HEAD" else b"<Error><Code>NoSuchKey</Code></Error>")
        size, etag = found
        about = {"ETag": f'"{etag}"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", "Accept-Ranges": "bytes"}
        if key in self.world.others:
            return self.reply(200, b"" if method == "HEAD" else self.world.others[key], about, size=size)
        start, end, status = 0, size, 200
        if wanted := re.match(r"bytes=(\d+)-(\d*)", headers.get("range", "")):
            start, end, status = int(wanted[1]), min(int(wanted[2] or size - 1) + 1, size), 206
            about["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        if method == "HEAD":
            return self.reply(status, b"", about, size=end - start)
        self.reply(status, b"", about, size=end - start)
        loop = asyncio.get_running_loop()
        loop.call_later(self.world.delay, self.stream, end - start, loop.time() + self.world.delay, 0)

    def stream(self, total: int, began: float, sent: int) -> None:
        """Send zeros, no faster than the world allows."""
        loop, rate = asyncio.get_running_loop(), self.world.rate
        while sent < total:
            if self.transport.is_closing():
                return
            ahead = began + sent / rate - loop.time() if rate else 0
            if ahead > 0 or self.transport.get_write_buffer_size() > 1 << 20:
                loop.call_later(max(ahead, 0.002), self.stream, total, began, sent)
                return
            block = memoryview(BLOCK)[: min(len(BLOCK), total - sent)]
            self.transport.write(block)
            sent += len(block)
            self.world.seen["sent"] += len(block)

    def reply(
        self, status: int, body: bytes, headers: dict | None = None, *, size: int | None = None, delay: float = -1
    ) -> None:
        length = len(body) if size is None else size
        kind = {"Content-Type": "application/xml", "x-amz-request-id": "stub", "x-amz-bucket-region": "us-west-2"}
        lines = [f"{name}: {value}" for name, value in (kind | (headers or {})).items()]
        head = "\r\n".join([f"HTTP/1.1 {status} X", *lines, f"Content-Length: {length}", "", ""]).encode()
        delay = self.world.delay if delay < 0 else delay
        asyncio.get_running_loop().call_later(delay, self.send, head + body)

    def send(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)


async def serve(port: int) -> None:
    world = World()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(world), "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=9000)
    asyncio.run(serve(parser.parse_args().port))
