"""Does a bucket policy let somebody in? The part of AWS's evaluation that a cross-account publisher meets.

Rules: an explicit Deny wins; a stranger needs an Allow that matches principal, action, resource and condition
(IAM User Guide, "Policy evaluation logic"). moto evaluates actions and resources but not who asks, so a policy for
one account would open the bucket for everybody.
"""

import re
from typing import Any

ANONYMOUS = "anonymous"


def verdict(policy: dict | None, principal: str, action: str, resource: str, **context: str) -> str | None:
    """What ``policy`` says to ``principal`` doing ``action`` on ``resource``: "Deny", "Allow", or None (nothing).

    Parameters
    ----------
    policy:
        The policy document as stored in S3, or ``None`` when the bucket has none.
    principal:
        ARN of who asks (``arn:aws:iam::<account>:role/<name>``), a service (``s3.amazonaws.com``), or
        :data:`ANONYMOUS`.
    action, resource:
        As ``s3:PutObject`` and ``arn:aws:s3:::bucket/key``.
    context:
        Condition keys with "_" for ":" and "-" (``aws_SecureTransport="true"``); those of the principal are known.
    """
    if principal.startswith("arn:"):
        context |= {"aws_PrincipalArn": principal, "aws_PrincipalAccount": principal.split(":")[4]}
    # Names of condition keys are the same in any case.
    context = {name.lower(): value for name, value in ({"aws_SecureTransport": "true"} | context).items()}
    effects = {
        statement["Effect"]
        for statement in _listed((policy or {}).get("Statement"))
        if _names(statement, principal)
        and _covers(statement, "Action", action, re.IGNORECASE)
        and _covers(statement, "Resource", resource)
        and _holds(statement.get("Condition", {}), context)
    }
    return "Deny" if "Deny" in effects else "Allow" if "Allow" in effects else None


def _listed(value: Any) -> list:
    return [] if value is None else value if isinstance(value, list) else [value]


def _like(pattern: str, text: str, flags: int = 0) -> bool:
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.fullmatch("".join(parts), text, flags | re.DOTALL) is not None


def _covers(statement: dict, element: str, text: str, flags: int = 0) -> bool:
    if (excluded := statement.get(f"Not{element}")) is not None:
        return not any(_like(pattern, text, flags) for pattern in _listed(excluded))
    return any(_like(pattern, text, flags) for pattern in _listed(statement.get(element)))


def _names(statement: dict, principal: str) -> bool:
    if "NotPrincipal" in statement:
        return not _names({"Principal": statement["NotPrincipal"]}, principal)
    named = statement.get("Principal")
    entries = ["*"] if named == "*" else _listed(named.get("AWS")) if isinstance(named, dict) else []
    if not principal.startswith("arn:"):
        services = _listed(named.get("Service")) if isinstance(named, dict) else []
        return "*" in entries or principal in services
    account = principal.split(":")[4]
    return any(entry in ("*", principal, account, f"arn:aws:iam::{account}:root") for entry in entries)


def _holds(condition: dict, context: dict[str, str]) -> bool:
    return all(
        _test(operator, _listed(wanted), context.get(re.sub("[:-]", "_", key).lower()))
        for operator, tests in condition.items()
        for key, wanted in tests.items()
    )


def _test(operator: str, wanted: list, found: str | None) -> bool:
    if operator == "Null":
        return any((found is None) == (str(w).lower() == "true") for w in wanted)
    optional = operator.endswith("IfExists")
    operator = operator.removesuffix("IfExists")
    negated = "Not" in operator
    if found is None:
        return optional or negated
    same = {
        "StringEquals": lambda w: w == found,
        "StringEqualsIgnoreCase": lambda w: w.lower() == found.lower(),
        "StringLike": lambda w: _like(w, found),
        "ArnLike": lambda w: _like(w, found),
        "ArnEquals": lambda w: _like(w, found),
        "Bool": lambda w: str(w).lower() == found.lower(),
    }.get(operator.replace("Not", ""))
    if same is None:
        raise ValueError(f"the sandbox does not know the condition operator {operator}")
    return any(same(w) for w in wanted) != negated
