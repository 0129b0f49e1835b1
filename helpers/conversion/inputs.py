"""What is to be converted: STAC items from addresses, files, and what is already in hand."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from .. import safe
from ..errors import RecipeError, Rejected
from ..redaction import redact

#: Pages of a search that are followed.
PAGES = 200


@dataclass(frozen=True)
class Source:
    """One item to convert; or, with a ``problem``, what was given in place of one."""

    item: dict
    link: str  #: where the item has its place: what "derived_from" will say
    problem: str = ""

    @property
    def id(self) -> str:
        return str(self.item.get("id") or "")


def sources(given: Any, read: Callable[[str], Any]) -> list[Source]:
    """Every item of what is given, in its order; the same one only once.

    Parameters
    ----------
    given:
        An address (of an item, a search, an ItemCollection: all its pages), a file's path, a Feature, a
        FeatureCollection, or a list of those.
    read:
        Gets the JSON of an address.
    """
    found: dict[tuple[str, str], Source] = {}
    for one in given if isinstance(given, list | tuple) else [given]:
        try:
            for source in _sources(one, read):
                found.setdefault((source.id, source.link), source)
        except (RecipeError, OSError, ValueError) as error:
            name = _without_secrets(str(one)[:200])
            found[name, ""] = Source({}, name, str(error))
    several = {}
    for source in found.values():
        several.setdefault(source.id, []).append(source)
    return [
        # One folder, one item each: the second would take the first one's place.
        Source(s.item, s.link, f"there is another item with the id {s.id}: {several[s.id][0].link}")
        if s.id and not s.problem and several[s.id][0] is not s
        else s
        for s in found.values()
    ]


def _sources(one: Any, read: Callable[[str], Any]) -> Iterator[Source]:
    place = ""
    if isinstance(one, str | Path) and not str(one).startswith(("http://", "https://")):
        content = json.loads(Path(one).expanduser().read_text())
    elif isinstance(one, str):
        place, content = one, read(one)
    else:
        content = one
    if isinstance(content, list) and not isinstance(one, list):  # a file with a list
        for each in content:
            yield from _sources(each, read)
        return
    if not isinstance(content, dict) or content.get("type") not in ("Feature", "FeatureCollection"):
        raise Rejected("it is neither a STAC item (Feature) nor a FeatureCollection")
    if content["type"] == "Feature":
        yield _source(content, place)
        return
    for page in _pages(content, place, read):
        yield from (_source(item, "") for item in page.get("features", []))


def _pages(page: dict, place: str, read: Callable[[str], Any]) -> Iterator[dict]:
    seen = set()
    for _ in range(PAGES):
        yield page
        link = next((link for link in page.get("links", []) if link.get("rel") == "next"), None)
        if not place or link is None or link.get("href") in seen:
            return
        if link.get("method", "GET") != "GET":
            raise Rejected("its next page has to be asked for with a POST; give the items themselves instead")
        seen.add(link["href"])
        page = read(urljoin(place, link["href"]))
    raise Rejected(f"it has more than {PAGES} pages")


def _source(item: Any, place: str) -> Source:
    if not isinstance(item, dict) or not item.get("id"):
        return Source({}, _without_secrets(place), "it is no STAC item: it has no id")
    own = next((link.get("href") for link in item.get("links") or [] if link.get("rel") == "self"), "")
    return Source(item, _without_secrets(own or place or item["id"]), _problem(item))


def _problem(item: dict) -> str:
    problems = []
    if "/" in str(item["id"]) or str(item["id"]).startswith("."):
        problems.append(f"its id {item['id']!r} cannot be the name of a folder")
    try:
        if not assets_of(item):
            problems.append("it has no assets")
    except Rejected as error:
        problems.append(str(error))
    return "; ".join(problems)


def assets_of(item: dict) -> list[str] | None:
    """The assets of an item that are its product; None: all of them are.

    "product", where there is one; else the one archive. Without either, the item is a product that is not packed, and
    its files are the assets.

    Raises
    ------
    Rejected
        It cannot be told: there are several archives; or nothing that is a product.
    """
    assets = item.get("assets") or {}
    if "product" in assets:
        return ["product"]
    archives = [key for key, asset in assets.items() if safe.is_archive(_name(asset))]
    if len(archives) > 1:
        raise Rejected(f"it is not clear which asset is the product: {', '.join(archives)}")
    if archives:
        return archives
    if not any(_name(asset) in safe.MANIFESTS for asset in assets.values()):
        raise Rejected("none of its assets is a product: an archive, or a manifest with the files it lists")
    return None


def _name(asset: dict) -> str:
    return str(asset.get("href") or "").partition("?")[0].rstrip("/").rpartition("/")[2]


def _without_secrets(url: str) -> str:
    """The address without its query if that is a signature."""
    return url if redact(url, ()) == url else url.partition("?")[0]
