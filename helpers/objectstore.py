"""S3: clients from the settings, bucket policies changed without destroying what is there, listing, deleting."""

import json
from datetime import timedelta
from typing import Any

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import SecretStr

from .errors import NotConfigured, Rejected, TimedOut
from .settings import Settings, aws_session

#: Characters of a bucket policy at most (Amazon S3 quota: 20 KB).
POLICY_LIMIT = 20 * 1024


class NoSuchBucket(Rejected):
    """The bucket is not there (any more)."""


def client(service: str, settings: Settings, **config: Any) -> Any:
    """A boto3 client ("s3", "sts", ...) with endpoint, time-outs and retries that suit unattended runs.

    ``config`` goes to botocore's ``Config`` beside these.
    """
    retries = {"mode": "standard", "total_max_attempts": 5}
    return aws_session(settings).client(
        service,
        endpoint_url=str(settings.aws_endpoint_url) if settings.aws_endpoint_url else None,
        config=Config(connect_timeout=10, read_timeout=60, retries=retries, **config),
    )


def at(
    url: str | None,
    access_key: SecretStr | None,
    secret_key: SecretStr | None,
    settings: Settings,
    region: str = "us-east-1",  # the one that stands for "no region": others would be asked for when creating
) -> Settings:
    """The settings with another storage, and the keys for it, in place of Amazon's."""
    return settings.model_copy(
        update={
            "aws_endpoint_url": url,
            "aws_access_key_id": access_key,
            "aws_secret_access_key": secret_key,
            "aws_session_token": None,
            "aws_region": region,
        }
    )


def elsewhere(settings: Settings, **config: Any) -> Any:
    """An S3 client for a storage that is not Amazon's (Ceph, MinIO): see :func:`at`.

    ``config`` goes to botocore's ``Config`` beside what such a storage needs.
    """
    return client(
        "s3",
        settings,
        s3={"addressing_style": "path"},  # Ceph has no names like bucket.host
        request_checksum_calculation="when_required",  # and refuses the checksums that boto3 adds otherwise
        response_checksum_validation="when_required",
        **config,
    )


def store(bucket: str, settings: Settings, *, connections: int = 64) -> Any:
    """A bucket as an ``obstore`` store, which lists and fetches many objects several times as fast as boto3 does.

    Parameters
    ----------
    connections:
        Idle ones that are kept.

    Raises
    ------
    NotConfigured
        There are no AWS credentials: obstore would look for some in places of its own.
    """
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    session = aws_session(settings)
    if session.get_credentials() is None:
        raise NotConfigured("There are no AWS credentials (AWS_PROFILE, or AWS_ACCESS_KEY_ID).")
    endpoint = str(settings.aws_endpoint_url).rstrip("/") if settings.aws_endpoint_url else ""
    return S3Store(
        bucket,
        region=settings.aws_region,
        credential_provider=Boto3CredentialProvider(session),
        virtual_hosted_style_request=not endpoint and "." not in bucket,  # stand-ins have no names like bucket.host
        client_options={
            "allow_http": endpoint.startswith("http:"),
            "connect_timeout": "10s",
            "timeout": "60s",
            "pool_max_idle_per_host": str(connections),
        },
        retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=60)},
        **({"endpoint": endpoint} if endpoint else {}),
    )


def account_id(settings: Settings) -> str:
    """The twelve-digit AWS account that the credentials belong to.

    Raises
    ------
    Rejected, TimedOut
        AWS refuses the credentials, or does not answer.
    """
    try:
        return client("sts", settings).get_caller_identity()["Account"]
    except ClientError as error:
        raise Rejected(
            f"AWS refuses your credentials: {error.response['Error']['Code']}. Renew them (`aws sso login`, or new keys"
            " in .env_tutorial), then run this cell again."
        ) from None
    except BotoCoreError as error:
        raise TimedOut(f"AWS does not answer: {error} Is the network there? Run this cell again.") from None


def read_policy(s3: Any, bucket: str, owner: str) -> dict | None:
    """The bucket's policy, or ``None`` when it has none.

    Raises
    ------
    Rejected
        The bucket does not exist or does not belong to the account ``owner``.
    """
    try:
        return json.loads(s3.get_bucket_policy(Bucket=bucket, ExpectedBucketOwner=owner)["Policy"])
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchBucketPolicy":
            return None
        raise _explained(error, bucket, owner) from None


def ensure_bucket(s3: Any, bucket: str, owner: str | None, create: bool) -> bool:
    """Make sure that ``bucket`` exists and is ours; say whether it was created now.

    ``owner`` is our AWS account; None at a storage that knows no accounts, where being let in must do.

    Raises
    ------
    Rejected
        It belongs to another account than ``owner``, or does not exist and ``create`` is off.
    """
    try:
        s3.head_bucket(Bucket=bucket, **({"ExpectedBucketOwner": owner} if owner else {}))
        return False
    except ClientError as error:
        missing = error.response["ResponseMetadata"]["HTTPStatusCode"] == 404
        if not (missing and create):
            raise _explained(error, bucket, owner) from None
    region = s3.meta.region_name
    # us-east-1 is the one region that must not be named.
    options = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    if owner:
        options["ObjectOwnership"] = "BucketOwnerEnforced"
    s3.create_bucket(Bucket=bucket, **options)
    return True


def block_public_access(s3: Any, bucket: str, owner: str) -> None:
    """Make sure that no policy and no access list can ever open ``bucket`` to the public."""
    wanted = dict.fromkeys(("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True)
    try:
        answer = s3.get_public_access_block(Bucket=bucket, ExpectedBucketOwner=owner)
        if answer["PublicAccessBlockConfiguration"] == wanted:
            return
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchPublicAccessBlockConfiguration":
            raise
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=wanted, ExpectedBucketOwner=owner)


def enforce_ownership(s3: Any, bucket: str, owner: str) -> None:
    """Make whatever others write into ``bucket`` belong to its owner; buckets made before April 2023 may not do so."""
    rule = {"ObjectOwnership": "BucketOwnerEnforced"}
    try:
        answer = s3.get_bucket_ownership_controls(Bucket=bucket, ExpectedBucketOwner=owner)
        if answer["OwnershipControls"]["Rules"] == [rule]:
            return
    except ClientError as error:
        if error.response["Error"]["Code"] != "OwnershipControlsNotFoundError":
            raise
    controls = {"Rules": [rule]}
    s3.put_bucket_ownership_controls(Bucket=bucket, OwnershipControls=controls, ExpectedBucketOwner=owner)


def _explained(error: ClientError, bucket: str, owner: str | None) -> Exception:
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    if status == 404:
        return NoSuchBucket(f"Bucket {bucket} does not exist. Create it, or set create_bucket = True.")
    if status == 403:
        return Rejected(
            f"Bucket {bucket} refuses you: it belongs to another account than yours{f' ({owner})' if owner else ''}, or"
            " your credentials lack the right. Choose another name, or ask the bucket's owner."
        )
    if status == 301:
        return Rejected(f"Bucket {bucket} is in another region than {error.response['Error'].get('Region', 'yours')}.")
    return error


def merged(policy: dict | None, wanted: list[dict]) -> dict:
    """``policy`` with the statements ``wanted`` in it, matched by `Sid`; everything else stays as it is.

    A statement whose `Sid` is there already takes its place; merging twice changes nothing more.

    Raises
    ------
    Rejected
        A statement has no `Sid`, or the result is larger than S3 accepts.
    """
    if not all(s.get("Sid") for s in wanted):
        raise Rejected("Each statement needs a Sid: without one it could not be found again, or withdrawn.")
    result = json.loads(json.dumps(policy)) if policy else {"Version": "2012-10-17", "Statement": []}
    kept = statements(result)
    for new in wanted:
        places = [i for i, old in enumerate(kept) if old.get("Sid") == new["Sid"]]
        if places:
            kept[places[0]] = new
        else:
            kept.append(new)
    result["Statement"] = kept
    if (size := len(json.dumps(result))) > POLICY_LIMIT:
        raise Rejected(
            f"The bucket policy would have {size} characters; S3 takes {POLICY_LIMIT}. Remove statements first."
        )
    return result


def without(policy: dict | None, added: list[dict], before: dict | None) -> dict | None:
    """``policy`` as it would be had ``added`` never been merged into ``before``; ``None`` when nothing is left.

    Only statements that are still exactly as we added them go (or become again what they replaced): one that somebody
    changed since is theirs.
    """
    if policy is None:
        return None
    earlier = {s.get("Sid"): s for s in statements(before)}
    kept = []
    for statement in statements(policy):
        if statement not in added:
            kept.append(statement)
        elif statement["Sid"] in earlier:
            kept.append(earlier[statement["Sid"]])
    return policy | {"Statement": kept} if kept else None


def statements(policy: dict | None) -> list[dict]:
    """The policy's statements; none of no policy."""
    found = policy["Statement"] if policy else []
    # S3 also stores a single statement without a list around it.
    return found if isinstance(found, list) else [found]


def scoped(statement: dict, prefix: str) -> dict:
    """The statement for the objects under ``prefix`` only; one about the bucket itself stays as it is."""
    if not statement["Resource"].endswith("/*"):
        return statement
    return statement | {"Resource": statement["Resource"].removesuffix("/*") + f"/{prefix.strip('/')}/*"}


def objects(s3: Any, bucket: str, prefix: str) -> dict[str, int]:
    """Size in bytes of every object under ``prefix``, by key, however many there are.

    Raises
    ------
    Rejected
        The bucket is not there, or is closed to these credentials.
    """
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    try:
        return {o["Key"]: o["Size"] for page in pages for o in page.get("Contents", [])}
    except ClientError as error:
        raise _explained(error, bucket, None) from None


def delete(s3: Any, bucket: str, keys: list[str]) -> None:
    """Delete exactly ``keys``; what is not there any more, with or without its bucket, counts as deleted.

    Raises
    ------
    Rejected
        S3 kept some of them; the message names each with the reason.
    """
    failed = []
    for start in range(0, len(keys), 1000):  # DeleteObjects takes 1,000 keys
        batch = [{"Key": key} for key in keys[start : start + 1000]]
        try:
            answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": batch, "Quiet": True})
        except s3.exceptions.NoSuchBucket:
            return
        failed += [f"{e['Key']}: {e['Code']}" for e in answer.get("Errors", [])]
    if failed:
        raise Rejected.because(f"S3 did not delete everything from {bucket}", failed)
