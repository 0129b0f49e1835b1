"""The transfer itself: inside S3 where that can be, through this machine where it must be."""

import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import requests
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError

from .. import http
from ..errors import FailedRemotely, Rejected
from .look import File
from .planning import Plan
from .run import PATIENCE, WORKERS, Manifest, Outcome, Run, Task, told_of
from .store import COPY_LIMIT, Place, Store, explained

#: Bytes from which an object is copied in parts, at the same time, and the size of a part.
LARGE, PART = 1 << 30, 256 << 20
#: Objects at a time that are copied in parts, or go through this machine; and the bytes of each that it holds.
HEAVY, BLOCK = 6, 8 << 20
#: What describes an object, by boto3's names for it.
PROPERTIES = ("CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage", "ContentType", "Metadata")


def transfer(
    plan: Plan,
    *,
    workers: int = WORKERS,
    manifest: Path | None = None,
    show: Callable[[str], object] = print,
    stop: threading.Event | None = None,
    scheduler: str | None = None,
    patience: float = PATIENCE,
    large: int = LARGE,
) -> list[Outcome]:
    """Bring what is new or changed into the archive bucket. Killed or stopped, it goes on with the next plan.

    The objects are copied inside S3, with metadata and tags, and do not come through this machine, unless the archive
    is another service or needs other credentials than the source: then they are streamed.

    Parameters
    ----------
    workers:
        Copies at a time. More are faster, and as many requests are sent in vain when credentials end in the middle.
    manifest:
        CSV file that gets a line for each outcome as it comes.
    show:
        Gets a line every few seconds; or a :class:`helpers.progress.Progress`, such as a notebook's bar.
    stop:
        Set it to finish what is under way and leave the rest.
    scheduler:
        Address of a dask scheduler whose workers do it; they need this package, and reach the same services.
    patience:
        Seconds without any success until giving up.
    large:
        Bytes from which an object is copied in parts (5 GiB at most).

    Returns
    -------
    One outcome for each file that was new or changed; nothing is raised for single ones.
    """
    if isinstance(plan.target, Path):
        raise Rejected(f"{plan.target} is a folder: use archive.to_disk.")
    tasks = plan.tasks(plan.new)
    settings = {"workers": workers, "patience": patience, "large": min(large, COPY_LIMIT)}
    with Manifest(manifest) as lines, told_of(tasks, show) as progress:
        if not tasks:
            return []
        if scheduler:
            from .cluster import spread

            return spread(tasks, plan, scheduler, settings, keep=lines.add, progress=progress, stop=stop)
        return transfer_tasks(tasks, plan.source, plan.target, **settings, keep=lines.add, show=progress, stop=stop)


def transfer_tasks(tasks: list[Task], source: Place, target: Place, *, large: int, **options: Any) -> list[Outcome]:
    """What ``transfer`` does with some of the files, on this machine; ``options`` are those of :class:`Run`."""
    places = {task.item.bucket: source.of_bucket(task.item.bucket) for task in tasks}
    store = Store(target)

    def direct(file: File) -> bool:
        return not file.url and target.reaches(places[file.bucket])

    def copy(file: File) -> str:
        return store.copy(file.bucket, file.key, target.key(file.name), file.etag)

    def copy_slowly(file: File) -> str:
        try:
            move = _copy_in_parts if direct(file) else _stream
            return move(file, places[file.bucket], target)
        except (BotoCoreError, ClientError, OSError) as error:
            raise explained(error) from None

    easy = [task for task in tasks if task.bytes < large and direct(task.item)]
    heavy = [task for task in tasks if not (task.bytes < large and direct(task.item))]
    if heavy and (left := _abort_pending(target, {target.key(task.item.name) for task in heavy})):
        options["show"](f"{left} unfinished multi-part uploads of an earlier run were removed")
    first = Run(copy, **options)
    then = Run(copy_slowly, **options | {"workers": min(HEAVY, options["workers"])})
    outcomes = first(easy)
    then.over = first.over  # with ended credentials, or no service, there is no need to try
    return outcomes + then(heavy)


def _copy_in_parts(file: File, source: Place, target: Place) -> str:
    """Copy inside S3 in parts; boto3 gives the upload up when a part fails."""
    key, there = target.key(file.name), {"Bucket": file.bucket, "Key": file.key}
    # "REPLACE" stands for "as given": what s3transfer does without differs between its versions.
    extra = {"CopySourceIfMatch": f'"{file.etag}"', "MetadataDirective": "REPLACE", "TaggingDirective": "REPLACE"}
    extra |= _properties(source, there)
    config = TransferConfig(multipart_threshold=1, multipart_chunksize=PART, max_concurrency=8)
    target.client.copy(there, target.bucket, key, extra, SourceClient=source.client, Config=config)
    return _arrived(file, target, key)


def _stream(file: File, source: Place, target: Place) -> str:
    """Through this machine, :data:`BLOCK` bytes at a time."""
    key, there = target.key(file.name), {"Bucket": file.bucket, "Key": file.key}
    if file.url:
        extra, body = {}, _over_https(file.url)
    else:
        extra = _properties(source, there)
        body = source.client.get_object(**there, IfMatch=f'"{file.etag}"')["Body"]
    config = TransferConfig(multipart_threshold=BLOCK, multipart_chunksize=BLOCK, use_threads=False)
    with closing(body):
        target.client.upload_fileobj(body, target.bucket, key, ExtraArgs=extra, Config=config)
    return _arrived(file, target, key)


def _over_https(url: str) -> Any:
    return http.harden(requests.Session()).get(url, stream=True).raw


def _properties(place: Place, there: dict[str, str]) -> dict:
    """Metadata and tags, which S3 keeps by itself in a plain copy only."""
    about = place.client.head_object(**there)
    try:
        tags = place.client.get_object_tagging(**there)["TagSet"]
    except ClientError:
        tags = []  # not everybody may read them
    found: dict[str, Any] = {name: about[name] for name in PROPERTIES if about.get(name)}
    return found | ({"Tagging": urlencode([(tag["Key"], tag["Value"]) for tag in tags])} if tags else {})


def _arrived(file: File, target: Place, key: str) -> str:
    """The checksum of what is there now.

    Raises
    ------
    FailedRemotely
        It has another size than it should.
    """
    about = target.client.head_object(Bucket=target.bucket, Key=key)
    if about["ContentLength"] != file.size:
        raise FailedRemotely(f"{about['ContentLength']:,} of {file.size:,} bytes arrived.")
    return about["ETag"].strip('"')


def _abort_pending(target: Place, keys: set[str]) -> int:
    """Remove what a killed run has left of large files: parts that nobody sees, and everybody pays for."""
    try:
        pages = target.client.get_paginator("list_multipart_uploads").paginate(
            Bucket=target.bucket, Prefix=target.key("")
        )
        left = [upload for page in pages for upload in page.get("Uploads", []) if upload["Key"] in keys]
        for upload in left:
            target.client.abort_multipart_upload(Bucket=target.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    except (ClientError, BotoCoreError):
        return 0  # not everybody may see them; what matters is still done
    return len(left)
