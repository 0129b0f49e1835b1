"""JSON schemas of STAC and of its extensions, without a network; and what they say against an item or a collection.

Three sources, together: STAC itself comes with pystac; most extensions with EOPF; the files ``*.json`` beside this one
are of extensions that neither has, written for this project from what the extensions' own pages say of their fields.
Where neither package is installed (AWS Lambda), one file made by :func:`save` takes their place.
"""

import json
import re
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

#: All schemas in one file, if somebody put it there: the script that packs the function for AWS Lambda does.
PACKED = Path(__file__).with_name("all_packed.json")
ITEM = "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json"
COLLECTION = "https://schemas.stacspec.org/v1.1.0/collection-spec/json-schema/collection.json"
DRAFT = "http://json-schema.org/draft-07/schema#"
#: Characters of a message: some quote the whole item.
MESSAGE = 200


class Fault(NamedTuple):
    """What is wrong with one part of an item."""

    path: tuple[str | int, ...]  #: keys and indices that lead to it
    message: str

    def __str__(self) -> str:
        where = ".".join(str(part) for part in self.path)
        return f"{where}: {self.message}" if where else self.message


def known(uri: str) -> bool:
    """Whether the schema of the extension at ``uri`` is here."""
    return isinstance(uri, str) and uri.removesuffix("#") in load()


def faults(content: dict) -> list[Fault]:
    """What the schemas of STAC, and of the extensions that are known here, say against an item or a collection.

    STAC 1.0 is held against 1.1, which adds fields to it and takes none away. At about 40,000 items a second.
    """
    version = str(content.get("stac_version"))
    if not version.startswith(("1.0.", "1.1.")):
        return [Fault(("stac_version",), f"{version[:40]!r}: only STAC 1.0 and 1.1 are known here")]
    declared = content.get("stac_extensions") or []
    extensions = tuple(uri.removesuffix("#") for uri in declared if known(uri)) if isinstance(declared, list) else ()
    content = content if version == "1.1.0" else content | {"stac_version": "1.1.0"}
    validator = _validator(COLLECTION if content.get("type") == "Collection" else ITEM, extensions)
    if validator.is_valid(content):
        return []
    return list(dict.fromkeys(_fault(error) for error in validator.iter_errors(content) if not _of_address(error)))


def _of_address(error: Any) -> bool:
    """Whether an address is no IRI, as those with blanks: other validators do not look, and clients take them."""
    return error.kind.name == "format" and error.kind.format.startswith(("iri", "uri"))


def _fault(error: Any) -> Fault:
    error = _telling(error)
    message = error.message if len(error.message) <= MESSAGE else f"{error.message[:MESSAGE]} ..."
    return Fault(tuple(error.instance_path), message)


def _telling(error: Any) -> Any:
    """Of an error that says "none of these", the innermost one that says why the nearest of these does not fit."""
    while branches := [branch for branch in getattr(error.kind, "context", []) if branch]:
        # One branch is for items, one for collections; one for points, one for polygons: the others are no help.
        fitting = [branch for branch in branches if not any(_another_kind(e) for e in branch)]
        error = max((e for branch in fitting or branches for e in branch), key=lambda e: len(e.instance_path))
    return error


def _another_kind(error: Any) -> bool:
    return error.kind.name in ("const", "enum") and list(error.instance_path)[-1:] == ["type"]


@lru_cache(256)  # catalogues have a few combinations of extensions
def _validator(core: str, extensions: tuple[str, ...]) -> Any:
    """One for all the schemas together: the item is read once."""
    import jsonschema_rs

    schema = {"$schema": DRAFT, "allOf": [{"$ref": uri} for uri in (core, *extensions)]}
    return jsonschema_rs.Draft7Validator(schema, registry=_registry(), validate_formats=True, offline=True)


@cache
def _registry() -> Any:
    import jsonschema_rs

    return jsonschema_rs.Registry(list(load().items()), draft=jsonschema_rs.Draft7)


@cache
def load() -> dict[str, dict]:
    """All schemas that are here, by their address."""
    own = _read(Path(__file__).parent.glob("*.json"))
    if PACKED.exists():
        return own | json.loads(PACKED.read_text())
    eopf = _brought_by("eopf", "product/stac_extensions")
    return own | eopf | _brought_by("pystac", "validation/jsonschemas")


def save(path: Path) -> None:
    """Write all schemas into one file, for a place without EOPF and pystac: there it is to be :data:`PACKED`."""
    path.write_text(json.dumps(load(), separators=(",", ":")))


def _brought_by(package: str, folder: str) -> dict[str, dict]:
    """The schemas in a folder of an installed package, which is found, not imported: that takes seconds."""
    found = find_spec(package)
    places = (found.submodule_search_locations or []) if found else []
    return _read(file for place in places for file in (Path(place) / folder).rglob("*.json"))


def _read(files: Iterable[Path]) -> dict[str, dict]:
    schemas = [json.loads(file.read_text()) for file in sorted(files) if file != PACKED]
    return {_address(schema["$id"]): schema for schema in schemas if "$id" in schema}


def _address(told: str) -> str:
    """The address by which others mean it: pystac's copy of common.json lacks the dot in its own."""
    return re.sub("/commonjson$", "/common.json", told.removesuffix("#"))
