"""What runs outside of the sandbox's process: the conversion with EOPF, on a Dask worker; and a cluster to run it on.

Workers get :func:`convert` itself, so that those of a foreign cluster need eopf and boto3, and nothing of ours.
Run as a script, it is the sandbox's own cluster: one worker, up until its standard input closes.
"""

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# As helpers/__init__.py, which is not imported here: jsonschema builds a grammar for 1.5 s otherwise.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

#: Set by the service: give up. Watched between steps.
CANCEL = "dpr-cancel-{job}"
#: Topic of a job's log lines.
LOG = "dpr-log-{job}"
LINE = 300  #: characters of a log line at most: EOPF also logs all of a product's metadata
TRANSFERS = 8  #: files that travel at a time
THREADS = 2  #: of EOPF in a worker


def warm() -> str:
    """Pay for the imports now; returns EOPF's version."""
    import eopf
    import eopf.store.convert

    return eopf.__version__


def convert(
    job: str,
    safe_uri: str,
    target_uri: str,
    s3: dict[str, str],
    naming: str = "PRODUCT_ID",
    nested: bool = True,
    zarr_format: int = 3,
    dies: bool = False,
) -> str:
    """Convert a SAFE product in the storage to a Zarr in the storage, as EOPF does it by itself.

    Parameters
    ----------
    job:
        Its id: for cancelling, and for the log.
    safe_uri, target_uri:
        ``s3://bucket/.../NAME.SAFE``, and ``s3://bucket/.../NAME.zarr``, below which (``nested``) the product is put.
    s3:
        endpoint, key, secret, region of the storage.
    naming:
        EOPF's naming strategy: PRODUCT_ID or PRODUCT_NAME (the legacy name).
    dies:
        The worker is killed in the middle of writing the result.

    Returns
    -------
    str
        The message of the finished job: JSON text with ``zarr_uri`` in it.
    """
    import dask
    import eopf
    from distributed import Event, get_worker
    from eopf.store.convert import NamingStrategy
    from eopf.store.convert import convert as convert_with_eopf

    worker = get_worker()
    client = _client(s3)

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told = record.getMessage().strip().partition("\n")[0]
            worker.log_event(LOG.format(job=job), {"line": f"{record.levelname} {told[:LINE]}"})

    def step(line: str) -> None:
        worker.log_event(LOG.format(job=job), {"line": f"INFO {line}"})
        if Event(CANCEL.format(job=job)).is_set():
            raise InterruptedError("the job was cancelled")

    lines, logger = Lines(logging.INFO), logging.getLogger("eopf")
    before, level = logger.handlers[:], logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    try:
        with tempfile.TemporaryDirectory(dir=worker.local_directory, prefix="safe-to-zarr-") as scratch:
            step(f"Downloading {safe_uri}")
            safe = Path(scratch) / safe_uri.rstrip("/").rpartition("/")[2]
            _download(client, safe_uri, safe)
            step(f"Converting {safe.name}")
            output = Path(scratch) / "output"
            output.mkdir()
            # Its own threads: with the cluster's scheduler, every chunk would go through the network.
            with dask.config.set(scheduler="threads", num_workers=THREADS):
                convert_with_eopf(
                    str(safe),
                    str(output),
                    target_store_kwargs={"engine": "cpm_zarr"} | ({"zarr_format": 2} if zarr_format == 2 else {}),
                    naming_strategy=NamingStrategy(naming),
                )
            (product,) = output.iterdir()
            zarr_uri = f"{target_uri.rstrip('/')}/{product.name}" if nested else target_uri.rstrip("/")
            step(f"Uploading {zarr_uri}")
            _upload(client, product, zarr_uri, dies)
            step(f"Uploaded {zarr_uri}")
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)
        logger.handlers[:] = before
    about = {"eopf_version": eopf.__version__, "safe_uri": safe_uri, "zarr_uri": zarr_uri}
    return json.dumps({"message": "Conversion finished"} | about)


def _client(s3: dict[str, str]) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=s3["endpoint"],
        aws_access_key_id=s3["key"],
        aws_secret_access_key=s3["secret"],
        region_name=s3["region"],
        config=Config(
            s3={"addressing_style": "path"},
            proxies={},  # none stands between the services of the sandbox
            max_pool_connections=TRANSFERS,
            connect_timeout=5,
            retries={"total_max_attempts": 2},
        ),
    )


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key.strip("/")


def _keys(client: Any, bucket: str, prefix: str) -> list[str]:
    """The object of this name, and what lies below the folder of this name."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
    return [key for key in keys if key == prefix or key.startswith(f"{prefix}/")]


def _download(client: Any, uri: str, folder: Path) -> None:
    bucket, prefix = _split(uri)

    def bring(key: str) -> None:
        path = folder / key.removeprefix(prefix).lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            shutil.copyfileobj(client.get_object(Bucket=bucket, Key=key)["Body"], file)

    with ThreadPoolExecutor(TRANSFERS) as pool:
        list(pool.map(bring, _keys(client, bucket, prefix)))


def _upload(client: Any, folder: Path, uri: str, dies: bool) -> None:
    """Write a tree in place of whatever is there; short paths first, so that half a tree looks like a whole one."""
    bucket, prefix = _split(uri)
    there = [{"Key": key} for key in _keys(client, bucket, prefix)]
    for start in range(0, len(there), 1000):  # DeleteObjects takes 1,000 keys
        client.delete_objects(Bucket=bucket, Delete={"Objects": there[start : start + 1000]})
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: (len(path.parts), path))
    if dies:
        files = files[: len(files) // 2]
    with ThreadPoolExecutor(TRANSFERS) as pool:

        def send(path: Path) -> None:
            with path.open("rb") as file:
                client.put_object(Bucket=bucket, Key=f"{prefix}/{path.relative_to(folder).as_posix()}", Body=file)

        list(pool.map(send, files))
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)


def _run_cluster() -> None:
    import dask
    from distributed import LocalCluster

    # A killed worker is not given the same task again: the service reports the failure.
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0, "distributed.admin.event-loop": "tornado"}),
        tempfile.TemporaryDirectory(prefix="sandbox-dpr-") as scratch,
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            memory_limit=None,
            local_directory=scratch,
        ) as cluster,
    ):
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()  # until whoever started us is gone, in whichever way


if __name__ == "__main__":
    try:
        _run_cluster()
    except Exception as error:  # whoever started us reads this in place of the address
        print(f"{type(error).__name__}: {error}", flush=True)
        raise
