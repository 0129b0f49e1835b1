"""S3 by the recipes' hands: nothing that others put there is lost, and nothing of ours stays behind."""

import json

import boto3
import pytest
from moto.iam.access_control import PermissionResult
from moto.s3.models import FakeBucket, s3_backends

from helpers import objectstore
from helpers import settings as room
from helpers.errors import Rejected
from helpers.sandbox import s3 as sandbox_s3

OWNER = "123456789012"
STRANGER = "999988887777"
BUCKET = "my-products"
TLS_ONLY = {
    "Sid": "TLS only",
    "Effect": "Deny",
    "Principal": "*",
    "Action": "s3:*",
    "Resource": f"arn:aws:s3:::{BUCKET}/*",
    "Condition": {"Bool": {"aws:SecureTransport": "false"}},
}
NAMELESS = {
    "Effect": "Allow",
    "Principal": {"AWS": STRANGER},
    "Action": "s3:GetObject",
    "Resource": f"arn:aws:s3:::{BUCKET}/shared/*",
}


def ours(level: str = "object", resource: str = "/*") -> dict:
    return {
        "Sid": f"HyP3 {level}-level publish permissions",
        "Effect": "Allow",
        "Principal": {"AWS": "444455556666"},
        "Action": ["s3:GetObject", "s3:PutObject"],
        "Resource": f"arn:aws:s3:::{BUCKET}{resource}",
    }


WANTED = [ours("bucket", ""), ours("object")]


def a_policy(*statements: dict, **more) -> dict:
    return {"Version": "2012-10-17", "Statement": list(statements)} | more


@pytest.fixture
def sandbox(running_sandbox):
    """The sandbox with an empty S3, which is all that matters here."""
    sandbox_s3.reset()
    running_sandbox.traffic.heal()
    running_sandbox.traffic.requests.clear()
    return running_sandbox


@pytest.fixture
def bucket(s3) -> str:
    objectstore.ensure_bucket(s3, BUCKET, OWNER, create=True)
    return BUCKET


def fill(keys: list[str], body: bytes = b"12345") -> None:
    """Objects put straight into the sandbox's store: a thousand requests would take their time."""
    for key in keys:
        s3_backends[OWNER]["aws"].put_object(BUCKET, key, body)


# --- merging a policy ---


def test_without_a_policy_the_wanted_statements_are_the_policy():
    assert objectstore.merged(None, WANTED) == a_policy(*WANTED)


def test_statements_of_others_stay_as_and_where_they_are():
    before = a_policy(TLS_ONLY, NAMELESS, Id="team policy")
    after = objectstore.merged(before, WANTED)
    assert after == a_policy(TLS_ONLY, NAMELESS, *WANTED, Id="team policy")


def test_a_statement_with_the_same_sid_is_replaced_in_its_place():
    before = a_policy(ours("object", "/old/*"), TLS_ONLY)
    assert objectstore.merged(before, [ours("object", "/new/*")]) == a_policy(ours("object", "/new/*"), TLS_ONLY)


def test_merging_twice_changes_nothing_more():
    once = objectstore.merged(a_policy(TLS_ONLY), WANTED)
    assert objectstore.merged(once, WANTED) == once


def test_a_single_statement_without_a_list_is_understood():
    before = {"Version": "2012-10-17", "Statement": TLS_ONLY}
    assert objectstore.statements(before) == [TLS_ONLY]
    assert objectstore.merged(before, WANTED) == a_policy(TLS_ONLY, *WANTED)
    assert objectstore.merged({"Version": "2012-10-17", "Statement": WANTED[0]}, WANTED) == a_policy(*WANTED)


def test_the_given_policy_is_not_changed():
    before = a_policy(TLS_ONLY)
    objectstore.merged(before, WANTED)
    assert before == a_policy(TLS_ONLY)


@pytest.mark.parametrize("sid", [None, ""])
def test_a_statement_without_a_sid_is_refused(sid):
    statement = {k: v for k, v in ours().items() if k != "Sid"} | ({} if sid is None else {"Sid": sid})
    with pytest.raises(Rejected, match="needs a Sid"):
        objectstore.merged(None, [ours("bucket", ""), statement])


def test_a_policy_that_s3_would_not_take_is_refused_before_it_is_sent():
    room = objectstore.POLICY_LIMIT - len(json.dumps(objectstore.merged(a_policy(TLS_ONLY), WANTED)))
    fits = TLS_ONLY | {"Sid": TLS_ONLY["Sid"] + "x" * room}
    assert len(json.dumps(objectstore.merged(a_policy(fits), WANTED))) == 20 * 1024
    with pytest.raises(Rejected, match="20481 characters; S3 takes 20480"):
        objectstore.merged(a_policy(fits | {"Sid": fits["Sid"] + "x"}), WANTED)


# --- taking it back ---


def test_withdrawing_leaves_exactly_what_was_there_before():
    before = a_policy(TLS_ONLY, NAMELESS, Id="team policy")
    assert objectstore.without(objectstore.merged(before, WANTED), WANTED, before) == before


def test_withdrawing_leaves_what_others_added_since():
    after = objectstore.merged(None, WANTED)
    after["Statement"].insert(1, NAMELESS)
    assert objectstore.without(after, WANTED, None) == a_policy(NAMELESS)


def test_withdrawing_restores_a_statement_that_was_replaced():
    before = a_policy(ours("object", "/theirs/*"), TLS_ONLY)
    after = objectstore.merged(before, WANTED)
    assert objectstore.without(after, WANTED, before) == before


def test_withdrawing_leaves_a_statement_that_somebody_changed_since():
    changed = WANTED[1] | {"Effect": "Deny"}
    assert objectstore.without(a_policy(WANTED[0], changed), WANTED, None) == a_policy(changed)


def test_withdrawing_a_single_statement_without_a_list():
    assert objectstore.without({"Version": "2012-10-17", "Statement": TLS_ONLY}, WANTED, None) == a_policy(TLS_ONLY)
    assert objectstore.without({"Version": "2012-10-17", "Statement": WANTED[0]}, WANTED, None) is None


def test_nothing_left_is_no_policy():
    assert objectstore.without(a_policy(*WANTED), WANTED, None) is None
    assert objectstore.without(None, WANTED, a_policy(TLS_ONLY)) is None


def test_withdrawing_twice_changes_nothing_more():
    before = a_policy(TLS_ONLY)
    once = objectstore.without(objectstore.merged(before, WANTED), WANTED, before)
    assert objectstore.without(once, WANTED, before) == once


# --- narrowing it ---


@pytest.mark.parametrize("prefix", ["HyP3", "HyP3/", "/HyP3", "a/b"])
def test_a_scope_narrows_the_objects(prefix):
    scoped = objectstore.scoped(ours("object"), prefix)
    assert scoped == ours("object") | {"Resource": f"arn:aws:s3:::{BUCKET}/{prefix.strip('/')}/*"}


def test_a_scope_leaves_the_bucket_itself_and_the_given_statement():
    statement = ours("object")
    assert objectstore.scoped(ours("bucket", ""), "HyP3") == ours("bucket", "")
    objectstore.scoped(statement, "HyP3")
    assert statement == ours("object")


# --- buckets ---


def test_a_bucket_is_created_once(sandbox, s3):
    assert objectstore.ensure_bucket(s3, BUCKET, OWNER, create=True) is True
    assert objectstore.ensure_bucket(s3, BUCKET, OWNER, create=True) is False
    assert [b["Name"] for b in s3.list_buckets()["Buckets"]] == [BUCKET]
    assert len(sandbox.traffic.received("s3", "PUT", f"^/{BUCKET}$")) == 1
    assert s3.get_bucket_location(Bucket=BUCKET)["LocationConstraint"] == "us-west-2"
    rules = s3.get_bucket_ownership_controls(Bucket=BUCKET)["OwnershipControls"]["Rules"]
    assert rules == [{"ObjectOwnership": "BucketOwnerEnforced"}]


def test_a_bucket_can_be_created_in_the_region_that_must_not_be_named(sandbox, settings):
    east = objectstore.client("s3", settings.model_copy(update={"aws_region": "us-east-1"}))
    assert objectstore.ensure_bucket(east, BUCKET, OWNER, create=True)
    assert east.get_bucket_location(Bucket=BUCKET)["LocationConstraint"] is None


def test_a_missing_bucket_is_not_created_unasked(sandbox, s3):
    with pytest.raises(Rejected, match=rf"{BUCKET} does not exist\. Create it, or set create_bucket = True"):
        objectstore.ensure_bucket(s3, BUCKET, OWNER, create=False)
    assert s3.list_buckets()["Buckets"] == []


@pytest.mark.parametrize("create", [True, False])
def test_a_bucket_of_somebody_elses_is_refused_and_left_alone(sandbox, s3, create):
    sandbox_s3.create_bucket(BUCKET, STRANGER, "us-west-2")
    with pytest.raises(Rejected, match="belongs to another account"):
        objectstore.ensure_bucket(s3, BUCKET, OWNER, create=create)
    assert [r.method for r in sandbox.traffic.received("s3", path=f"^/{BUCKET}")] == ["HEAD"]


def test_a_bucket_of_another_account_of_ours_is_refused(s3, bucket):
    """The credentials may enter, but the bucket is not where the caller believes it to be."""
    with pytest.raises(Rejected, match="belongs to another account"):
        objectstore.ensure_bucket(s3, bucket, STRANGER, create=True)


def test_the_policy_is_read_and_none_is_none(s3, bucket):
    assert objectstore.read_policy(s3, bucket, OWNER) is None
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps(a_policy(TLS_ONLY)))
    assert objectstore.read_policy(s3, bucket, OWNER) == a_policy(TLS_ONLY)


def test_the_policy_of_a_missing_or_foreign_bucket_is_refused(s3, bucket):
    with pytest.raises(Rejected, match="does not exist"):
        objectstore.read_policy(s3, "no-such-bucket", OWNER)
    with pytest.raises(Rejected, match="belongs to another account"):
        objectstore.read_policy(s3, bucket, STRANGER)


def test_public_access_is_blocked_with_one_request_however_often_it_is_asked_for(sandbox, s3, bucket):
    for _ in range(2):
        objectstore.block_public_access(s3, bucket, OWNER)
    puts = [r for r in sandbox.traffic.received("s3", "PUT") if "publicAccessBlock" in r.query]
    assert len(puts) == 1
    stored = s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
    assert stored == dict.fromkeys(stored, True) and len(stored) == 4


def test_a_half_open_bucket_is_closed(s3, bucket):
    half = {
        "BlockPublicAcls": True,
        "IgnorePublicAcls": True,
        "BlockPublicPolicy": False,
        "RestrictPublicBuckets": False,
    }
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=half)
    objectstore.block_public_access(s3, bucket, OWNER)
    assert all(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values())


def test_what_others_write_belongs_to_the_owner_with_one_request_however_often_it_is_asked_for(sandbox, s3):
    s3.create_bucket(
        Bucket=BUCKET,
        ObjectOwnership="ObjectWriter",
        CreateBucketConfiguration={"LocationConstraint": "us-west-2"},
    )
    for _ in range(2):
        objectstore.enforce_ownership(s3, BUCKET, OWNER)
    puts = [r for r in sandbox.traffic.received("s3", "PUT") if "ownershipControls" in r.query]
    assert len(puts) == 1
    rules = s3.get_bucket_ownership_controls(Bucket=BUCKET)["OwnershipControls"]["Rules"]
    assert rules == [{"ObjectOwnership": "BucketOwnerEnforced"}]


def test_a_bucket_without_a_word_on_ownership_gets_one(s3, bucket):
    s3.delete_bucket_ownership_controls(Bucket=bucket)
    objectstore.enforce_ownership(s3, bucket, OWNER)
    rules = s3.get_bucket_ownership_controls(Bucket=bucket)["OwnershipControls"]["Rules"]
    assert rules == [{"ObjectOwnership": "BucketOwnerEnforced"}]


# --- objects ---


def test_every_object_is_listed_also_beyond_one_page(sandbox, s3, bucket):
    keys = [f"many/{n:04}" for n in range(1001)]
    fill([*keys, "many", "manyfold/1", "other/1"])
    assert objectstore.objects(s3, bucket, "many/") == dict.fromkeys(keys, 5)
    assert len(sandbox.traffic.received("s3", "GET", f"^/{BUCKET}")) == 2
    assert objectstore.objects(s3, bucket, "nothing/") == {}


def test_exactly_the_given_keys_are_deleted_also_beyond_one_request(sandbox, s3, bucket):
    keys = [f"many/{n:04}" for n in range(1001)]
    others = ["many", "many/00000", "other/1"]
    fill(keys + others)
    objectstore.delete(s3, bucket, [*keys, "never/was"])
    assert sorted(objectstore.objects(s3, bucket, "")) == sorted(others)


def test_deleting_nothing_asks_nothing(sandbox, s3, bucket):
    fill(["a"])
    objectstore.delete(s3, bucket, [])
    assert list(objectstore.objects(s3, bucket, "")) == ["a"]
    assert sandbox.traffic.received("s3", "POST", f"^/{BUCKET}") == []


def test_deleting_from_a_bucket_that_is_gone_is_done(s3):
    objectstore.delete(s3, "no-such-bucket", ["a"])


def test_keys_that_s3_keeps_are_named_and_the_rest_is_deleted(s3, bucket, monkeypatch):
    fill(["a", "kept/1", "kept/2", "b"])
    monkeypatch.setattr(
        FakeBucket,
        "get_permission",
        lambda _, action, resource: (
            PermissionResult.DENIED
            if action == "s3:DeleteObject" and "/kept/" in resource
            else PermissionResult.PERMITTED
        ),
    )
    with pytest.raises(Rejected, match=r"(?s)\(2 problems\).*kept/1: AccessDenied.*kept/2: AccessDenied"):
        objectstore.delete(s3, bucket, ["a", "kept/1", "kept/2", "b"])
    assert sorted(objectstore.objects(s3, bucket, "")) == ["kept/1", "kept/2"]


# --- clients ---


def test_the_account_is_the_one_of_the_credentials(settings):
    assert objectstore.account_id(settings) == OWNER


def test_refused_credentials_are_explained(sandbox, settings):
    sandbox.traffic.fail("forbidden", service="s3", method="POST", path="^/$")
    with pytest.raises(Rejected, match=r"AWS refuses your credentials.*Renew them"):
        objectstore.account_id(settings)


def test_clients_have_time_outs_and_retries(settings):
    config = objectstore.client("s3", settings).meta.config
    assert (config.connect_timeout, config.read_timeout) == (10, 60)
    assert config.retries == {"mode": "standard", "total_max_attempts": 5}


def test_a_passing_problem_of_s3_is_waited_out(sandbox, s3, bucket):
    sandbox.traffic.fail("unavailable", service="s3", method="HEAD", times=1)
    assert objectstore.ensure_bucket(s3, bucket, OWNER, create=False) is False
    assert [r.status for r in sandbox.traffic.received("s3", "HEAD")][-2:] == [503, 200]


def test_keys_win_over_a_profile(settings, tmp_path, monkeypatch):
    config = tmp_path / "credentials"
    config.write_text("[work]\naws_access_key_id = of-the-profile\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(config))
    both = settings.model_copy(update={"aws_profile": "work"})
    assert room.aws_session(both).get_credentials().access_key == "sandbox-user"
    profile = both.model_copy(update={"aws_access_key_id": None, "aws_secret_access_key": None})
    assert room.aws_session(profile).get_credentials().access_key == "of-the-profile"
    assert isinstance(room.aws_session(profile), boto3.Session)
