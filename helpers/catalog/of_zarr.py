"""The STAC item of a Zarr that EOPF, or a recipe with it, converted: from its root, or from the item beside it."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from .. import stac
from ..errors import Rejected
from ..settings import Settings
from .generating import register
from .places import Href, Missing, find

#: Bytes of a file of attributes at most: real ones have 100 kB, consolidated 5 MB.
LARGEST = 64 << 20


def fits(source: str) -> bool:
    """Whether it is named like a Zarr."""
    return source.endswith(".zarr")


@register("zarr", fits)
def create(source: str, *, href: str | Href | None = None, settings: Settings | None = None) -> dict:
    """The item of a converted product.

    The conversion writes one beside the Zarr, with the same name: that one, if it is there and of this Zarr.
    """
    address = source if "://" in source else Path(source).resolve().as_posix()
    target = href("") if callable(href) else href or address
    if (noted := _beside(source, settings)) is not None:
        for asset in noted["assets"].values():
            asset["href"] = target
        return noted
    attributes = stac.attributes_of(lambda name: _read(source, name, settings), source)
    told = (attributes.get("stac_discovery") or {}).get("properties") or {}
    if not isinstance(told, dict) or not told.get("product:type"):
        raise Rejected(f"{source}: its stac_discovery has no product:type, so it is no product that EOPF converted")
    made = stac.item_of(attributes, address, product_type=told["product:type"])
    content = made.to_dict(include_self_link=False, transform_hrefs=False)
    content["assets"][made.id]["href"] = target
    return content


def _read(source: str, name: str, settings: Settings | None) -> bytes:
    """A file of the Zarr's root.

    Raises
    ------
    FileNotFoundError
        It is not there.
    """
    try:
        place = find(f"{source}/{name}", settings)
    except Missing as error:
        raise FileNotFoundError(str(error)) from None
    if (size := next(iter(place.files.values()))) > LARGEST:
        raise Rejected(f"{source}/{name} has {size:,} bytes: that is no file of attributes")
    return place.read(next(iter(place.files)))


def _beside(source: str, settings: Settings | None) -> dict[str, Any] | None:
    parent, _, name = source.rpartition("/")
    stem = PurePosixPath(name).stem
    try:
        noted = json.loads(_read(parent or ".", f"{stem}.json", settings))
        hrefs = [PurePosixPath(asset["href"].rstrip("/")).name for asset in noted["assets"].values()]
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return noted if noted.get("type") == "Feature" and noted.get("id") == stem and set(hrefs) == {name} else None
