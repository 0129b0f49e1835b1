"""What is known before anything is sent: EOPF types of SAFE products, their collections, and the buckets of these.

Bucket rules are rows of five texts: owner, collection, product type, days until objects expire, bucket. RS-PYTHON's
client and its services read the same rows in different ways, so both are computed here, and must agree.
"""

import json
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from ..errors import NotConfigured, Rejected

ANY = "*"
#: What EOPF's files say nothing about: Sentinel-2 and ocean products, which it knows by their content, and names that
#: RS-PYTHON's own table has beyond those of EOPF 3.0.0 (its services may run another release).
BEYOND = (
    (r"MSI_(L1A|L1B|L1C|L2A)_DS", r"S02MSI\1"),
    (r"S2MSI(1C|2A)", r"S02MSIL\1"),
    (r"(IW|EW|WV|SM)_OCN__2S", r"S01S\1OCN"),
    (r"(IW|EW)_GRDF_1S", r"S01S\1GRD"),
    (r"S[1-6]_GRDF_1S", r"S01SSMGRD"),
    (r"SY_2_VGT_*", r"S03SYNVGT"),
    (r"SR_1_SRA_BS_*", r"S03ALT1B"),
)
#: Collections as the services take them: they stand in URLs, in keys, and after "owner:".
COLLECTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def eopf_type(legacy: str | None) -> str:
    """The EOPF product type (``S01SIWGRD``) for a ``product:type`` of a SAFE product (``IW_GRDH_1S``).

    Taken from the files with which EOPF itself recognises products by their names; and from :data:`BEYOND`.

    Raises
    ------
    Rejected
        There is none for it, or it is missing: never guessed.
    NotConfigured
        EOPF is not installed.
    """
    if not isinstance(legacy, str) or not legacy.strip():
        raise Rejected(f"product:type is {'missing' if legacy is None else repr(legacy)}: it says what to convert")
    if found := _by_name(legacy):
        return found
    for pattern, replacement in BEYOND:
        if match := re.fullmatch(pattern, legacy):
            return match.expand(replacement)
    raise Rejected(f"product:type {legacy!r} is none that EOPF converts, such as IW_GRDH_1S, MSI_L2A_DS, OL_1_EFR___")


@cache
def _by_name(legacy: str) -> str | None:
    """What EOPF takes a product for whose name has this type in it."""
    if re.fullmatch(r"[A-Z][A-Z0-9]_[A-Z0-9_]{4}_\d[A-Z]", legacy):
        name = f"S1A_{legacy}DV_.SAFE"
    elif re.fullmatch(r"[A-Z]{2}_\d_[A-Z0-9_]{3,6}", legacy):
        name = f"S3A_{legacy:_<11}_.SEN3"
    else:
        return None
    return next((product_type for pattern, product_type in _patterns() if pattern.fullmatch(name)), None)


@cache
def _patterns() -> list[tuple[re.Pattern, str]]:
    """EOPF's patterns for names of products, and the type that each means. Read as data: importing it takes seconds."""
    found = find_spec("eopf")
    if found is None or not found.submodule_search_locations:
        raise NotConfigured("EOPF is not installed, which knows the types of products: pip install 'eopf[parallel]'")
    files = Path(found.submodule_search_locations[0], "store", "mapping").glob("*.json")
    mappings = [json.loads(file.read_bytes()) for file in sorted(files)]
    return [
        (re.compile(mapping["recognition"]["filename_pattern"]), mapping["product_type"])
        for mapping in mappings
        if "filename_pattern" in mapping.get("recognition", {})
    ]


def collection_for(product_type: str, generated: list[dict]) -> str:
    """The collection that products of an EOPF type go to.

    ``generated`` has rows ``{"name", "product_type", "collection_name"}``, as RS-PYTHON's flows take them: ``name`` is
    an EOPF type, or "*" for all others (which theirs do not know); ``product_type`` the same, or "*".

    Raises
    ------
    Rejected
        No row is about this type, or the one that is has no collection.
    """
    for name, wanted in ((product_type, product_type), (product_type, ANY), (ANY, ANY)):
        for row in generated:
            if (row.get("name"), row.get("product_type", ANY)) == (name, wanted):
                if not row.get("collection_name"):
                    raise Rejected(f"the row for {product_type} has no collection_name")
                return row["collection_name"]
    known = ", ".join(str(row.get("name")) for row in generated) or "none"
    raise Rejected(f"no collection is given for products of type {product_type}; rows are there for: {known}")


def stripped(owner: str) -> str:
    """An owner as the catalogue writes it: letters and digits only."""
    return re.sub(r"[^A-Za-z0-9]", "", owner)


def bucket_for(rows: Iterable[list[str]], owner: str, collection: str, product_type: str) -> str:
    """The bucket of a collection's products, on which the client's and the services' rules agree.

    Raises
    ------
    Rejected
        They do not, or one of them finds none. With what each says: a rule has to be changed, or another collection
        chosen, before anything is stored where the other one does not look.
    """
    rows = list(rows)
    if malformed := [row for row in rows if not _is_rule(row)]:
        raise Rejected(f"a bucket rule is not five texts: {malformed[0]!r}")
    client, server = (
        client_bucket(rows, owner, collection, product_type),
        server_bucket(rows, owner, collection, product_type),
    )
    if client != server or client is None:
        raise Rejected(
            f"the bucket rules do not agree on products of type {product_type} in {owner}:{collection}:"
            f" the client's reading gives {client or 'no bucket'}, the services' {server or 'no bucket'}."
            " Ask the operator for a rule that names the owner, or choose another collection."
        )
    return client


def client_bucket(rows: Iterable[list[str]], owner: str, collection: str, product_type: str) -> str | None:
    """As RS-PYTHON's client reads the rules: columns are shell patterns, but only three forms of rows ever win.

    The first row with the owner and the collection as they are, else with the owner and "*", else ``*,*,*``.
    """
    wanted = (owner, collection, product_type)
    matching = [row for row in rows if all(map(fnmatchcase, wanted, row[:3]))]
    forms = (
        lambda row: row[0] == owner and row[1] == collection,
        lambda row: row[0] == owner and row[1] == ANY,
        lambda row: row[:3] == [ANY] * 3,
    )
    return next((row[4] for form in forms for row in matching if form(row)), None)


def server_bucket(rows: Iterable[list[str]], owner: str, collection: str, product_type: str) -> str | None:
    """As the staging service and the catalogue read them: columns are literal, the most exact row wins."""
    places = {tuple(row[:3]): row[4] for row in reversed(list(rows))}  # of two equal rows the first
    orders = (
        (owner, collection, product_type),
        (owner, collection, ANY),
        (owner, ANY, product_type),
        (owner, ANY, ANY),
        (ANY, ANY, ANY),
    )
    return next((places[order] for order in orders if order in places), None)


def _is_rule(row: object) -> bool:
    return isinstance(row, list) and len(row) == 5 and all(isinstance(text, str) for text in row)
