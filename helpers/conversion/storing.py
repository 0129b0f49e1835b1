"""Trees of objects in the object storage: listed, removed, uploaded whole, and whether a Zarr is all there."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from .. import objectstore, safe
from ..download import in_parallel
from ..errors import FailedRemotely, Rejected, TimedOut

#: Root metadata of a Zarr, version 3 and 2.
ROOTS = ("zarr.json", ".zgroup", ".zattrs")
#: Files that are uploaded at a time.
TRANSFERS = 8


class Store:
    """The object storage; places in it are ``s3://bucket/key``, without a "/" at the end."""

    def __init__(self, s3: Any):
        self._s3 = s3

    def objects(self, uri: str) -> dict[str, int]:
        """Size in bytes by URI: the object ``uri`` itself, and everything in the folder of this name."""
        bucket, key = split(uri)
        with _explained(uri):
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
            found = {o["Key"]: o["Size"] for page in pages for o in page.get("Contents", [])}
        # Not what merely begins with the name: X.SAFE.zip beside X.SAFE
        return {f"s3://{bucket}/{name}": size for name, size in found.items() if name == key or _in(name, key)}

    def has(self, uri: str) -> bool:
        """Whether there is an object of this name, or a folder."""
        return bool(self.objects(uri))

    def has_zarr(self, uri: str) -> bool:
        """Whether the root of a Zarr is there. Costs three requests at most, however large it is."""
        return any(self._size(f"{uri.rstrip('/')}/{name}") is not None for name in ROOTS)

    def _size(self, uri: str) -> int | None:
        bucket, key = split(uri)
        try:
            with _explained(uri):
                return self._s3.head_object(Bucket=bucket, Key=key)["ContentLength"]
        except Missing:
            return None

    def read(self, uri: str) -> bytes:
        """The content of a small object."""
        bucket, key = split(uri)
        with _explained(uri):
            return self._s3.get_object(Bucket=bucket, Key=key)["Body"].read()

    def download(self, uri: str, path: Path) -> Path:
        """Bring one object to the disk."""
        bucket, key = split(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _explained(uri):
            self._s3.download_file(bucket, key, str(path))
        return path

    def remove(self, uri: str) -> int:
        """Delete the object ``uri`` and the folder of this name; how many objects that were.

        Raises
        ------
        FailedRemotely
            Something is still there.
        """
        bucket, _ = split(uri)
        found = self.objects(uri)
        with _explained(uri):
            objectstore.delete(self._s3, bucket, [split(each)[1] for each in found])
        if found and (left := self.objects(uri)):
            raise FailedRemotely(f"{len(left)} objects are still there after deleting {uri}, the first: {min(left)}")
        return len(found)

    def upload(self, root: Path, uri: str) -> int:
        """Upload the folder ``root`` of a SAFE product as ``uri``; returns its bytes.

        In parallel, and the manifest when everything else is there: who finds it finds a whole product. What was there
        before is removed, and the sizes of all objects are looked at in the end.

        Raises
        ------
        FailedRemotely
            Not all of it arrived.
        """
        files = {f"{uri}/{path.relative_to(root)}": path for path in sorted(root.rglob("*")) if path.is_file()}
        last = {place: path for place, path in files.items() if path.parent == root and path.name in safe.MANIFESTS}
        for each in self.objects(uri).keys() - files.keys():
            self.remove(each)
        for part in ({place: path for place, path in files.items() if place not in last}, last):
            _, failures = in_parallel(
                {place: partial(self.put, path, place) for place, path in part.items()}, TRANSFERS
            )
            if failures:
                first = next(iter(failures.values()))
                raise FailedRemotely(f"{len(failures)} of {len(files)} files were not uploaded, the first: {first}")
        wanted, found = {place: path.stat().st_size for place, path in files.items()}, self.objects(uri)
        if wrong := [place for place in sorted(wanted | found) if found.get(place) != wanted.get(place)]:
            raise FailedRemotely(f"{uri} is not what was uploaded: {len(wrong)} objects differ, the first: {wrong[0]}")
        return sum(wanted.values())

    def put(self, path: Path, uri: str) -> None:
        """Upload one file; ``Rejected`` says why if the storage refuses it."""
        bucket, key = split(uri)
        with _explained(uri):
            self._s3.upload_file(str(path), bucket, key)

    def probe(self, folder: str) -> None:
        """Make sure that we may write and delete below ``folder``; what is written is deleted again.

        Raises
        ------
        Rejected
            We may not.
        """
        bucket, key = split(f"{folder}/.probe")  # the same each time: who is killed here leaves it to the next
        with _explained(f"s3://{bucket}/{key}"):
            self._s3.put_object(Bucket=bucket, Key=key, Body=b"")
            self._s3.delete_object(Bucket=bucket, Key=key)

    def manifest(self, uris: dict[str, int]) -> str:
        """The one manifest among these objects: its folder is the root of a SAFE product.

        Raises
        ------
        Rejected
            There is none, or more than one.
        """
        found = [uri for uri in uris if uri.rpartition("/")[2] in safe.MANIFESTS]
        if len(found) != 1:
            raise Rejected(f"there should be one manifest ({' or '.join(safe.MANIFESTS)}); there are {len(found)}")
        return found[0]

    def incomplete(self, manifest: str) -> str:
        """What is missing of the SAFE product that ``manifest`` belongs to, by the sizes it lists; "" if nothing is."""
        root = manifest.rpartition("/")[0]
        there, listed = self.objects(root), safe.listed(self.read(manifest))
        if not listed:
            return f"{manifest} lists no file"
        wrong = [one.path for one in listed if one.size not in (-1, there.get(f"{root}/{one.path}"))]
        wrong += [one.path for one in listed if one.size == -1 and f"{root}/{one.path}" not in there]
        return f"{len(wrong)} of {len(listed)} files are missing or differ, the first: {wrong[0]}" if wrong else ""

    def whole_zarrs(self, folder: str) -> list[str]:
        """The Zarrs below ``folder`` that are certainly all there: consolidated, with every chunk of every array.

        Certainly: a writer may leave out chunks without a value in them, and then this says nothing.
        """
        there = self.objects(folder)
        suffixes = tuple(f"/{name}" for name in ("zarr.json", ".zmetadata"))
        folders = sorted({uri.rpartition("/")[0] for uri in there if uri.endswith(suffixes)}, key=len)
        roots = [f for f in folders if not any(f.startswith(f"{other}/") for other in folders)]
        return [root for root in roots if self._whole(root, there)]

    def _whole(self, root: str, there: dict[str, int]) -> bool:
        try:
            if f"{root}/zarr.json" in there:
                nodes = json.loads(self.read(f"{root}/zarr.json"))["consolidated_metadata"]["metadata"]
                chunks = {f"{path}/zarr.json": _chunks_of_3(node) for path, node in nodes.items()}
            else:
                content = json.loads(self.read(f"{root}/.zmetadata"))["metadata"]
                arrays = {path: node for path, node in content.items() if path.endswith("/.zarray")}
                chunks = {path: _chunks_of_2(node) for path, node in arrays.items()}
            wanted = [*chunks, *(f"{folder_of(path)}/{key}" for path, keys in chunks.items() for key in keys)]
        except (KeyError, TypeError, ValueError):
            return False
        return bool(wanted) and all(f"{root}/{name}" in there for name in wanted)


def _chunks_of_3(node: dict) -> Iterator[str]:
    """Keys of the chunks of a Zarr v3 array; none of a group."""
    if node.get("node_type") == "array":
        encoding = node["chunk_key_encoding"]
        separator = encoding.get("configuration", {}).get("separator", "/")
        prefix = ["c"] if encoding["name"] == "default" else []
        for index in _grid(node["shape"], node["chunk_grid"]["configuration"]["chunk_shape"]):
            yield separator.join([*prefix, *index]) or "0"


def _chunks_of_2(node: dict) -> Iterator[str]:
    for index in _grid(node["shape"], node["chunks"]):
        yield node.get("dimension_separator", ".").join(index) or "0"


def _grid(shape: list[int], chunk: list[int]) -> Iterator[list[str]]:
    counts = [math.ceil(length / size) for length, size in zip(shape, chunk, strict=True)]
    for number in range(math.prod(counts)):
        index = []
        for count in reversed(counts):
            number, place = divmod(number, count)
            index.append(str(place))
        yield index[::-1]


class Missing(Rejected):
    """The object, or its bucket, is not there."""


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of ``s3://bucket/key``.

    Raises
    ------
    Rejected
        It is no such address, or that of a whole bucket.
    """
    parts = urlsplit(uri)
    if parts.scheme != "s3" or not parts.netloc or not parts.path.strip("/"):
        raise Rejected(f"{uri!r} is no place in an object storage (s3://bucket/key)")
    return parts.netloc, uri.split("/", 3)[3].strip("/")


def folder_of(uri: str) -> str:
    """The folder that an object is in."""
    return uri.rstrip("/").rpartition("/")[0]


def _in(name: str, folder: str) -> bool:
    return name.startswith(f"{folder}/")


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """S3's errors as ours: what is refused, what may pass, what is not there."""
    try:
        yield
    except ClientError as error:
        status, code = error.response["ResponseMetadata"].get("HTTPStatusCode", 0), error.response["Error"]["Code"]
        if status == 404 or code in ("NoSuchKey", "NoSuchBucket"):
            raise Missing(f"{uri} is not there ({code})") from None
        if status >= 500 or code in ("SlowDown", "RequestTimeout"):
            raise FailedRemotely(f"the storage has a problem with {uri} ({code}); run again later") from None
        advice = "are S3_ACCESSKEY and S3_SECRETKEY right, and may they do that?"
        raise Rejected(f"the storage refuses {uri} ({code}): {advice}") from None
    except (BotoCoreError, Boto3Error) as error:
        raise TimedOut(f"the storage does not answer about {uri} ({type(error).__name__}); run again") from None
