"""What to order from the Hook service: parameters completed from the settings, options typed, everything checked.

Nothing here talks to the service. Which options there are, and which values they take, the service says; which of the
"required" ones an order really needs follows from its storage and its source.
"""

import difflib
import json
import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pydantic import SecretStr

from .errors import NotConfigured, Rejected, bullets
from .settings import PLACEHOLDER, Settings
from .state import RUN_ID

#: The Data Lake's collections by how the names of their products begin.
COLLECTIONS = {
    r"S2._MSIL1C_": "EO.ESA.DAT.SENTINEL-2.MSI.L1C",
    r"S2._MSIL2A_": "EO.ESA.DAT.SENTINEL-2.MSI.L2A",
    r"S1._.._GRD._": "EO.ESA.DAT.SENTINEL-1.L1_GRD",
    r"S1._.._SLC__": "EO.ESA.DAT.SENTINEL-1.L1_SLC",
}
#: Workflows that take no source, and so no user's password; others may come (the service's options tell).
WITHOUT_SOURCE = ("copdem", "maja", "dedl_hello_world")
#: Names of buckets that S3-like storages take; Amazon's own rules are stricter.
BUCKET = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{2,62}")
#: Python's types by the names that the service has for types of options.
TYPES = {"str": str, "int": int, "float": float, "bool": bool}
#: What sets an option that is missing, where it is not the parameter `options`.
HINTS = dict.fromkeys(
    ("desp_source_collection", "source_catalogue_collection"),
    ": set `collection`, the products' names do not tell it",
) | dict.fromkeys(
    ("output_s3_endpoint_url", "output_s3_access_key", "output_s3_secret_key", "output_s3_path"),
    ": set `storage` and `bucket`, not the option",
)
#: What can be the value of a workflow's option.
Value = str | int | float | bool | SecretStr


@dataclass(frozen=True)
class Wanted:
    """What is to be ordered, after filling in from the settings what the parameters leave empty."""

    workflow: str
    products: list[str]
    collection: str  #: "" if no product tells it
    source_type: str  #: DESP or EXTERNAL, for workflows that ask for it
    storage: str  #: TEMPORARY or PRIVATE
    bucket: str  #: "" if TEMPORARY
    prefix: str  #: where in the bucket
    name: str  #: what the order's name begins with


def fill_in(
    settings: Settings,
    *,
    run_id: str,
    workflow: str = "",
    products: list[str] | tuple[str, ...] = (),
    collection: str = "",
    source_type: str = "",
    storage: str = "",
    bucket: str = "",
    prefix: str = "",
) -> Wanted:
    """What a run wants: its parameters and, for empty ones, the settings (those of the published tutorial).

    Raises
    ------
    Rejected
        All that is wrong with them, at once.
    NotConfigured
        The same, and credentials that such an order needs are missing.
    """
    workflow = workflow or settings.hook_workflow
    named = bool(products) or "hook_data_id" in settings.model_fields_set
    products = list(products) or [name.strip() for name in settings.hook_data_id.split(",")]
    source_type = source_type or settings.hook_source_type or "DESP"
    storage = storage or ("PRIVATE" if settings.hook_is_private_storage else "TEMPORARY")
    private, external = storage == "PRIVATE", source_type == "EXTERNAL"
    wanted = Wanted(
        workflow=workflow,
        products=products,
        collection=collection or settings.hook_collection_id or _collection_of(products),
        source_type=source_type,
        storage=storage,
        bucket=(bucket or settings.hook_output_bucket or "") if private else "",
        # S3 keeps "a//b" and "a/b" apart, the service does not.
        prefix=re.sub("/+", "/", prefix or f"dedl-{workflow}-{settings.hook_order_name}").strip("/") if private else "",
        name=f"{settings.hook_order_name} {run_id}",
    )
    problems = _identifier_problems(products)
    if not named and settings.backend == "live":
        problems = ["there are no products: set `products` (or HOOK_DATA_ID in .env_tutorial)"]
    told = _collection_of(products)
    if told and wanted.collection != told and wanted.collection in COLLECTIONS.values():
        problems.append(f"collection {wanted.collection!r}: by their names, these products are of {told}")
    if not RUN_ID.fullmatch(run_id):
        problems.append(
            f"run_id {run_id!r}: 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit"
        )
    if storage not in ("TEMPORARY", "PRIVATE"):
        problems.append(f"storage {storage!r} is neither TEMPORARY nor PRIVATE")
    if source_type not in ("DESP", "EXTERNAL"):
        problems.append(f"source_type {source_type!r} is neither DESP nor EXTERNAL")
    if private and not wanted.bucket:
        problems.append("storage PRIVATE needs a bucket of yours: set `bucket` (or HOOK_OUTPUT_BUCKET)")
    elif private and (PLACEHOLDER.match(wanted.bucket) or not BUCKET.fullmatch(wanted.bucket)):
        problems.append(f"bucket {wanted.bucket!r} is no name of a bucket")
    user = source_type == "DESP" and workflow not in WITHOUT_SOURCE
    needed = {"destine user": user, "destine storage": private, "destine catalogue": external}
    try:
        settings.require(*(service for service, is_needed in needed.items() if is_needed))  # type: ignore[arg-type]
    except NotConfigured as error:
        raise NotConfigured("\n".join([str(error), *bullets(problems)])) from None
    if problems:
        raise Rejected.because("Nothing was ordered", problems)
    return wanted


def _collection_of(products: list[str]) -> str:
    found = {name for start, name in COLLECTIONS.items() for product in products if re.match(start, product)}
    return found.pop() if len(found) == 1 else ""


def _identifier_problems(products: list[str]) -> list[str]:
    problems = []
    for place, product in enumerate(products, 1):
        label = f"product {place}"
        if not product.strip():
            problems.append(f"{label} is empty: a comma too many? An empty product would be ordered")
        elif PLACEHOLDER.match(product):
            problems.append(f"{label} {product!r} is still the example's placeholder")
        elif product != product.strip():
            problems.append(f"{label} {product!r} has blanks around it")
        elif (first := products.index(product) + 1) < place:
            problems.append(f"{label} {product!r} is product {first} again: it would count twice against your quota")
    return problems


@dataclass(frozen=True)
class Option:
    """One option of a workflow as the service describes it."""

    name: str
    type: str  #: "str", "int", ...
    default: Any  #: None if there is none
    choices: tuple[str, ...]  #: empty: any value
    required: bool  #: if it applies at all, see :func:`check`
    description: str


def options_of(answer: dict, workflow: str, names: list[str] | tuple[str, ...] = ()) -> list[Option]:
    """The options of a workflow, from the answer to ``Workflows?$expand=WorkflowOptions``.

    ``names`` are those of all workflows, for the message when there is none of this name.

    Raises
    ------
    Rejected
        There is no such workflow.
    """
    known = {entry["Name"]: entry for entry in answer["value"]}
    if workflow not in known:
        raise Rejected(f"There is no workflow {workflow!r}. {_meant(workflow, [*known, *names])}")
    return [
        Option(
            name=raw["Name"],
            type=raw.get("Type") or "str",
            default=raw.get("Default"),
            # Releases differ: a plain list of values, or a list of values with conditions.
            choices=tuple(v["value"] if isinstance(v, dict) else v for v in raw.get("Value") or ()),
            required=bool(raw.get("Required")),
            description=raw.get("Description") or "",
        )
        for raw in known[workflow].get("WorkflowOptions") or ()
    ]


def _meant(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"Did you mean {close[0]}?" if close else f"There are: {', '.join(sorted(known)) or 'none'}."


def option_values(
    wanted: Wanted, settings: Settings, known: list[Option], more: dict[str, Value] | None = None
) -> dict[str, Value]:
    """Values by name for the options of the wanted order; secrets stay masked until they are sent.

    ``more`` are options of your own; so are the ``HOOK_ADDITIONALn`` of the settings, which belong to the settings'
    workflow and are left out for another one.
    """
    names = {option.name for option in known}
    values: dict[str, Any] = {"output_storage": wanted.storage}
    if wanted.storage == "PRIVATE":
        values |= _storage("output_s3", settings) | {"output_s3_path": f"s3://{wanted.bucket}/{wanted.prefix}"}
    if "source_type" in names:
        values |= {"source_type": wanted.source_type}
        values |= _from_desp(wanted, settings) if wanted.source_type == "DESP" else _from_outside(wanted, settings)
    # A hook that reads from a storage reads from yours, unless told otherwise.
    values |= {name: value for name, value in _storage("source_s3", settings).items() if name in names}
    if wanted.workflow == settings.hook_workflow:
        values |= settings.hook_additional
    return {name: value for name, value in (values | (more or {})).items() if value not in (None, "")}


def _storage(prefix: str, settings: Settings) -> dict[str, Any]:
    return {
        f"{prefix}_endpoint_url": str(settings.hook_output_storage_url).rstrip("/"),
        f"{prefix}_access_key": settings.hook_output_storage_access_key,
        f"{prefix}_secret_key": settings.hook_output_storage_secret_key,
    }


def _from_desp(wanted: Wanted, settings: Settings) -> dict[str, Any]:
    settings.require("destine user")
    return {
        "desp_source_username": settings.desp_username,
        "desp_source_password": settings.desp_password,
        "desp_source_collection": wanted.collection,
    }


def _from_outside(wanted: Wanted, settings: Settings) -> dict[str, Any]:
    grant = "PASSWORD" if settings.hook_external_username else "CLIENT_CREDENTIALS"
    return {
        "source_catalogue_api_url": str(settings.hook_external_catalogue_url).rstrip("/"),
        "source_catalogue_api_type": settings.hook_external_catalogue_type,
        "source_catalogue_collection": wanted.collection,
        "source_token_url": str(settings.hook_external_token_url),
        "source_grant_type": grant,
        "source_username": settings.hook_external_username,
        "source_password": settings.hook_external_password,
        "source_client_id": settings.hook_external_client_id,
        "source_client_secret": settings.hook_external_client_secret,
    }


def unique_name(wanted: Wanted, values: dict[str, Value]) -> str:
    """A name that only this order has: an order whose answer was lost is found by it, from any machine."""
    open_values = {name: value for name, value in values.items() if not isinstance(value, SecretStr)}
    content = json.dumps([wanted.workflow, wanted.products, open_values], sort_keys=True)
    return f"{wanted.name} {sha256(content.encode()).hexdigest()[:8]}"


def check(order: dict, known: list[Option]) -> None:
    """Find what the service would refuse, or accept and fail on, before anything is ordered.

    Parameters
    ----------
    order:
        The body of the order; secret values as ``SecretStr``.
    known:
        The workflow's options as the service describes them today: names change between releases.

    Raises
    ------
    Rejected
        All problems at once; no secret is in the message.
    """
    given = {entry["Name"]: entry["Value"] for entry in order["WorkflowOptions"]}
    options = {option.name: option for option in known}
    problems = _identifier_problems(order["IdentifierList"]) or ["there is no product"] * (not order["IdentifierList"])
    for name, value in given.items():
        if name not in options:
            problems.append(f"option {name!r}: the workflow has none of this name. {_meant(name, list(options))}")
        else:
            problems += [f"option {name!r}: {problem}" for problem in _value_problems(value, options[name])]
    problems += [
        f"option {name!r} is missing" + (f" ({option.description})" if option.description else "") + HINTS.get(name, "")
        for name, option in options.items()
        if option.required and option.default is None and name not in given and _applies(name, given, options)
    ]
    if problems:
        raise Rejected.because("Nothing was ordered", problems)


def _value_problems(value: Value, option: Option) -> list[str]:
    if isinstance(value, SecretStr):
        return ["still the example's placeholder"] if PLACEHOLDER.match(value.get_secret_value()) else []
    problems = []
    if isinstance(value, str) and any(PLACEHOLDER.match(part) for part in re.split(r"[/.@]", value)):
        problems.append(f"{value!r} has a placeholder of the example in it")
    kind = TYPES.get(option.type, object)
    fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    # A number does for a text: published orders have both.
    if not (fits or (kind in (str, float) and isinstance(value, int | float) and not isinstance(value, bool))):
        problems.append(f"expected {option.type}, got {value!r}")
    if option.choices and str(value) not in option.choices:
        problems.append(f"{value!r} is none of {', '.join(option.choices)}")
    return problems


def _applies(name: str, given: dict[str, Value], options: dict[str, Option]) -> bool:
    """Whether a "required" option is required here: the service means it for one storage and one source only."""
    if name.startswith("output_s3_"):
        return given.get("output_storage") == "PRIVATE"
    if "source_type" not in options:
        return True
    # Without a source_type the service takes EXTERNAL.
    source = given.get("source_type", "EXTERNAL")
    if name.startswith("desp_source_"):
        return source == "DESP"
    if name in ("source_username", "source_password") and given.get("source_grant_type") == "CLIENT_CREDENTIALS":
        return False
    return not name.startswith("source_") or name == "source_type" or source == "EXTERNAL"


def without_secrets(order: dict) -> dict:
    """The body of an order as it may be noted and shown: options with secret values are left out."""
    values = [entry for entry in order["WorkflowOptions"] if not isinstance(entry["Value"], SecretStr)]
    return order | {"WorkflowOptions": values}


def with_secrets(order: dict) -> dict:
    """The body of an order as it is sent."""

    def revealed(value: Value) -> Value:
        return value.get_secret_value() if isinstance(value, SecretStr) else value

    values = [entry | {"Value": revealed(entry["Value"])} for entry in order["WorkflowOptions"]]
    return order | {"WorkflowOptions": values}
