"""The bucket policy's evaluation against AWS's rules, statement by statement."""

import pytest

from helpers.sandbox.policy import ANONYMOUS, verdict

ACCOUNT = "444455556666"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/hyp3-compute"
KEY = "arn:aws:s3:::bucket/HyP3/a.zip"
BUCKET = "arn:aws:s3:::bucket"


def a_statement(**more) -> dict:
    """Everybody may do everything, but for what is said; an element given as None is left out."""
    statement = {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "*"} | more
    return {name: value for name, value in statement.items() if value is not None}


def says(*statements: dict, principal: str = ROLE, action: str = "s3:PutObject", resource: str = KEY, **context: str):
    policy = {"Version": "2012-10-17", "Statement": list(statements)}
    return verdict(policy, principal, action, resource, **context)


# --- no opinion ---


def test_no_policy_and_no_statement_say_nothing():
    assert verdict(None, ROLE, "s3:GetObject", KEY) is None
    assert verdict({"Version": "2012-10-17", "Statement": []}, ROLE, "s3:GetObject", KEY) is None


def test_a_single_statement_needs_no_list():
    assert verdict({"Statement": a_statement()}, ROLE, "s3:GetObject", KEY) == "Allow"
    assert verdict({"Statement": a_statement(Effect="Deny")}, ROLE, "s3:GetObject", KEY) == "Deny"


def test_deny_wins_wherever_it_stands():
    allow, deny = a_statement(), a_statement(Effect="Deny", Action="s3:PutObject")
    assert says(allow, deny) == says(deny, allow) == "Deny"
    assert says(allow, deny, action="s3:GetObject") == "Allow"
    assert says(allow, a_statement(Effect="Deny", Resource="arn:aws:s3:::bucket/other/*")) == "Allow"


def test_one_statement_that_matches_is_enough():
    assert says(a_statement(Action="s3:GetObject"), a_statement(Action="s3:PutObject")) == "Allow"
    # ... but it must match all by itself
    halves = a_statement(Action="s3:GetObject"), a_statement(Resource="arn:aws:s3:::bucket/other/*")
    assert says(*halves) is None


# --- who asks ---

PRINCIPALS = [
    # principal element, does it name HyP3's role, does it name an anonymous caller
    ({"Principal": "*"}, True, True),
    ({"Principal": {"AWS": "*"}}, True, True),
    ({"Principal": {"AWS": ["*"]}}, True, True),
    ({"Principal": {"AWS": ACCOUNT}}, True, False),
    ({"Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}}, True, False),
    ({"Principal": {"AWS": ROLE}}, True, False),
    ({"Principal": {"AWS": ["111122223333", ROLE]}}, True, False),
    ({"Principal": {"AWS": "111122223333"}}, False, False),
    ({"Principal": {"AWS": "arn:aws:iam::111122223333:root"}}, False, False),
    ({"Principal": {"AWS": ROLE.replace("compute", "other")}}, False, False),
    ({"Principal": {"AWS": ROLE.replace(ACCOUNT, "111122223333")}}, False, False),
    ({"Principal": {"AWS": ROLE.upper()}}, False, False),
    # wildcards stand for parts of nothing here
    ({"Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:role/*"}}, False, False),
    ({"Principal": {"AWS": "4444*"}}, False, False),
    ({"Principal": {"AWS": []}}, False, False),
    ({"Principal": {"Service": "logging.s3.amazonaws.com"}}, False, False),
    ({"Principal": {"CanonicalUser": "79a59df900b9"}}, False, False),
    ({"Principal": None}, False, False),
    ({"Principal": None, "NotPrincipal": {"AWS": ROLE}}, False, True),
    ({"Principal": None, "NotPrincipal": {"AWS": ["111122223333", ROLE]}}, False, True),
    ({"Principal": None, "NotPrincipal": {"AWS": "111122223333"}}, True, True),
]


@pytest.mark.parametrize(("element", "role", "anonymous"), PRINCIPALS, ids=lambda value: str(value)[:60])
def test_principals(element, role, anonymous):
    assert says(a_statement(**element)) == ("Allow" if role else None)
    assert says(a_statement(**element), principal=ANONYMOUS) == ("Allow" if anonymous else None)
    assert says(a_statement(Effect="Deny", **element)) == ("Deny" if role else None)


# --- what for ---


@pytest.mark.parametrize(
    ("element", "matches"),
    [
        ({"Action": "s3:PutObject"}, True),
        ({"Action": ["s3:GetObject", "s3:PutObject"]}, True),
        ({"Action": "*"}, True),
        ({"Action": "s3:*"}, True),
        ({"Action": "s3:Put*"}, True),
        ({"Action": "s3:*Object"}, True),
        ({"Action": "s3:P?tObject"}, True),
        ({"Action": "S3:PUTOBJECT"}, True),
        ({"Action": "s3:putobject"}, True),
        ({"Action": "s3:GetObject"}, False),
        ({"Action": "s3:PutObjectTagging"}, False),
        ({"Action": "s3:PutObjec"}, False),
        ({"Action": "s3:PutObjec?t"}, False),
        ({"Action": "s3:Put.bject"}, False),
        ({"Action": []}, False),
        ({"Action": None}, False),
        ({"Action": None, "NotAction": "s3:GetObject"}, True),
        ({"Action": None, "NotAction": ["s3:GetObject", "s3:putobject"]}, False),
        ({"Action": None, "NotAction": "s3:Put*"}, False),
    ],
    ids=str,
)
def test_actions(element, matches):
    assert says(a_statement(**element)) == ("Allow" if matches else None)


def test_the_right_to_write_is_not_the_right_to_tag():
    statement = a_statement(Action="s3:PutObject")
    assert says(statement, action="s3:PutObject") == "Allow"
    assert says(statement, action="s3:PutObjectTagging") is None


@pytest.mark.parametrize(
    ("element", "of_object", "of_bucket"),
    [
        ({"Resource": KEY}, True, False),
        ({"Resource": BUCKET}, False, True),
        ({"Resource": f"{BUCKET}/*"}, True, False),
        ({"Resource": [BUCKET, f"{BUCKET}/*"]}, True, True),
        ({"Resource": "*"}, True, True),
        ({"Resource": "arn:aws:s3:::bucket*"}, True, True),
        ({"Resource": "arn:aws:s3:::buck?t/HyP3/?.zip"}, True, False),
        ({"Resource": f"{BUCKET}/HyP3/*"}, True, False),
        ({"Resource": f"{BUCKET}/*.zip"}, True, False),
        ({"Resource": f"{BUCKET}/hyp3/*"}, False, False),  # keys have cases
        ({"Resource": f"{BUCKET}/other/*"}, False, False),
        ({"Resource": f"{BUCKET}/HyP3"}, False, False),
        ({"Resource": "arn:aws:s3:::bucket2/*"}, False, False),
        ({"Resource": f"{BUCKET}/HyP3/a+zip"}, False, False),
        ({"Resource": None}, False, False),
        ({"Resource": None, "NotResource": f"{BUCKET}/other/*"}, True, True),
        ({"Resource": None, "NotResource": [f"{BUCKET}/other/*", f"{BUCKET}/HyP3/*"]}, False, True),
    ],
    ids=str,
)
def test_resources(element, of_object, of_bucket):
    assert says(a_statement(**element)) == ("Allow" if of_object else None)
    assert says(a_statement(**element), resource=BUCKET) == ("Allow" if of_bucket else None)


@pytest.mark.parametrize("key", ["a[b]", "a(b)", "a.b", "a\nb", "ä"])
def test_keys_with_odd_characters_are_matched_as_they_are(key):
    assert says(a_statement(Resource=f"{BUCKET}/{key}"), resource=f"{BUCKET}/{key}") == "Allow"
    assert says(a_statement(Resource=f"{BUCKET}/*"), resource=f"{BUCKET}/{key}") == "Allow"
    assert says(a_statement(Resource=f"{BUCKET}/{key}"), resource=f"{BUCKET}/axb") is None


# --- on which condition ---

ORG = {"aws_PrincipalOrgID": "o-123"}
CONDITIONS = [
    # condition, does it hold for HyP3's role over TLS, with PrincipalOrgID o-123
    ({}, True),
    ({"StringEquals": {"aws:PrincipalAccount": ACCOUNT}}, True),
    ({"StringEquals": {"aws:PrincipalAccount": "111122223333"}}, False),
    ({"StringEquals": {"aws:PrincipalAccount": ["111122223333", ACCOUNT]}}, True),
    ({"StringEquals": {"aws:PrincipalOrgID": "o-123"}}, True),
    ({"StringEquals": {"aws:PrincipalOrgID": "O-123"}}, False),
    ({"StringEqualsIgnoreCase": {"aws:PrincipalOrgID": "O-123"}}, True),
    ({"StringNotEqualsIgnoreCase": {"aws:PrincipalOrgID": "O-123"}}, False),
    ({"StringEquals": {"aws:PrincipalOrgID": "o-*"}}, False),  # only Like knows wildcards
    ({"StringLike": {"aws:PrincipalOrgID": "o-*"}}, True),
    ({"StringLike": {"aws:PrincipalOrgID": ["x*", "o-12?"]}}, True),
    ({"StringLike": {"aws:PrincipalOrgID": "x*"}}, False),
    ({"StringNotEquals": {"aws:PrincipalOrgID": "o-123"}}, False),
    ({"StringNotEquals": {"aws:PrincipalOrgID": "o-999"}}, True),
    ({"StringNotEquals": {"aws:PrincipalOrgID": ["o-999", "o-123"]}}, False),  # none of them
    ({"StringNotLike": {"aws:PrincipalOrgID": "o-*"}}, False),
    ({"StringNotLike": {"aws:PrincipalOrgID": "x-*"}}, True),
    ({"ArnLike": {"aws:PrincipalArn": f"arn:aws:iam::{ACCOUNT}:role/*"}}, True),
    ({"ArnLike": {"aws:PrincipalArn": f"arn:aws:iam::{ACCOUNT}:user/*"}}, False),
    ({"ArnEquals": {"aws:PrincipalArn": ROLE}}, True),
    ({"ArnEquals": {"aws:PrincipalArn": f"arn:aws:iam::{ACCOUNT}:role/*"}}, True),  # as ArnLike, in AWS too
    ({"ArnNotLike": {"aws:PrincipalArn": f"arn:aws:iam::{ACCOUNT}:role/*"}}, False),
    ({"ArnNotEquals": {"aws:PrincipalArn": "arn:aws:iam::111122223333:root"}}, True),
    ({"Bool": {"aws:SecureTransport": "true"}}, True),
    ({"Bool": {"aws:SecureTransport": True}}, True),
    ({"Bool": {"aws:SecureTransport": "false"}}, False),
    ({"Bool": {"aws:SecureTransport": False}}, False),
    # keys that are not known
    ({"StringEquals": {"aws:SourceVpce": "vpce-1"}}, False),
    ({"StringLike": {"aws:SourceVpce": "*"}}, False),
    ({"Bool": {"aws:ViaAWSService": "false"}}, False),
    ({"StringEqualsIfExists": {"aws:SourceVpce": "vpce-1"}}, True),
    ({"StringLikeIfExists": {"aws:SourceVpce": "vpce-1"}}, True),
    ({"BoolIfExists": {"aws:ViaAWSService": "true"}}, True),
    ({"StringNotEquals": {"aws:SourceVpce": "vpce-1"}}, True),
    ({"StringNotLike": {"aws:SourceVpce": "vpce-*"}}, True),
    ({"StringNotEqualsIfExists": {"aws:SourceVpce": "vpce-1"}}, True),
    # keys that are known after all
    ({"StringEqualsIfExists": {"aws:PrincipalOrgID": "o-999"}}, False),
    ({"StringNotEqualsIfExists": {"aws:PrincipalOrgID": "o-123"}}, False),
    # all of several
    ({"StringEquals": {"aws:PrincipalAccount": ACCOUNT, "aws:PrincipalOrgID": "o-123"}}, True),
    ({"StringEquals": {"aws:PrincipalAccount": ACCOUNT, "aws:PrincipalOrgID": "o-999"}}, False),
    ({"Bool": {"aws:SecureTransport": "true"}, "StringEquals": {"aws:PrincipalOrgID": "o-999"}}, False),
    # AWS: names of condition keys have no case
    ({"StringEquals": {"AWS:principalaccount": ACCOUNT}}, True),
    ({"Bool": {"aws:securetransport": "true"}}, True),
    # Null asks whether the key is there
    ({"Null": {"aws:SourceVpce": "true"}}, True),
    ({"Null": {"aws:SourceVpce": "false"}}, False),
    ({"Null": {"aws:PrincipalOrgID": "false"}}, True),
    ({"Null": {"aws:PrincipalOrgID": "true"}}, False),
]


@pytest.mark.parametrize(("condition", "holds"), CONDITIONS, ids=lambda value: str(value))
def test_conditions(condition, holds):
    assert says(a_statement(Condition=condition), **ORG) == ("Allow" if holds else None)
    assert says(a_statement(Effect="Deny", Condition=condition), **ORG) == ("Deny" if holds else None)


def test_an_anonymous_caller_has_no_account():
    statement = a_statement(Condition={"StringEquals": {"aws:PrincipalAccount": ACCOUNT}})
    assert says(statement) == "Allow"
    assert says(statement, principal=ANONYMOUS) is None


def test_the_usual_rule_for_encrypted_connections_lets_encrypted_ones_pass():
    rule = a_statement(Effect="Deny", Condition={"Bool": {"aws:SecureTransport": "false"}})
    assert says(a_statement(), rule) == "Allow"
    assert says(a_statement(), rule, aws_SecureTransport="false") == "Deny"


# --- HyP3's own policy ---


def test_the_policy_that_hyp3_hands_out(sandbox):
    policy = sandbox.hyp3.bucket_policy("bucket")
    actions = ("GetObject", "GetObjectTagging", "PutObject", "PutObjectTagging", "DeleteObject")
    actions += ("ListBucket", "GetBucketLocation", "GetBucketPolicy", "PutBucketPolicy")
    allowed = {
        (action, resource)
        for action in actions
        for resource in (KEY, BUCKET, "arn:aws:s3:::other/a", "arn:aws:s3:::other")
        if verdict(policy, ROLE, f"s3:{action}", resource) == "Allow"
    }
    assert allowed == {
        ("ListBucket", BUCKET),
        ("GetBucketLocation", BUCKET),
        ("GetObject", KEY),
        ("GetObjectTagging", KEY),
        ("PutObject", KEY),
        ("PutObjectTagging", KEY),
    }
    for stranger in (ANONYMOUS, ROLE.replace(ACCOUNT, "111122223333")):
        assert verdict(policy, stranger, "s3:GetObject", KEY) is None
