"""STAC items from what lies in a bucket or on a disk: one function, and a registry of the kinds that it knows.

A kind is a function that makes an item of a source, and a test of the source's name; :func:`register` adds one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from .. import schemas, stac
from ..errors import Rejected
from ..settings import Settings
from .places import Href, find

if TYPE_CHECKING:
    import pystac

#: Modules of the kinds that are here.
KINDS = ("of_zarr", "of_safe", "of_hyp3", "of_cog")
#: Prefix of kinds that are packages of stactools: "stactools:sentinel2".
STACTOOLS = "stactools:"


@dataclass(frozen=True)
class _Kind:
    fits: Callable[[str], bool]
    make: Callable[..., "dict | pystac.Item"]


_kinds: dict[str, _Kind] = {}


def register(kind: str, fits: Callable[[str], bool]) -> Callable:
    """Make the decorated function the one that makes items of a ``kind``.

    Another one of that name gives way; of several that fit a source, the last that was registered makes its item.

    Parameters
    ----------
    fits:
        Says by the address of a source (a path or a URL, without a slash at its end) whether it is of that kind.

    The function gets the source, and by name ``href`` and ``settings`` as :func:`create_item` does, and its other
    options; it returns an item or its JSON, which is checked then.
    """

    def decorate(make: Callable) -> Callable:
        if not make.__module__.startswith(f"{__package__}."):
            _load()  # before it
        _kinds[kind] = _Kind(fits, make)
        return make

    return decorate


def kinds() -> list[str]:
    """The kinds that sources can be of, besides ``stactools:PACKAGE``."""
    _load()
    return sorted(_kinds)


def create_item(
    source: str | Path,
    *,
    kind: str | None = None,
    collection: str | None = None,
    href: str | Href | None = None,
    settings: Settings | None = None,
    **options: Any,
) -> "pystac.Item":
    """The STAC item of a product; valid by STAC's schema and those of its extensions, and the same each time.

    A kind that is not from here may use extensions whose schemas are not here; with these, nothing is compared.

    Of what is in S3 only the headers, metadata and a small picture for the footprint are read.

    Parameters
    ----------
    source:
        A path, or ``s3://bucket/key``: of a folder or prefix, of a zip file, of a Zarr, of one raster.
    kind:
        One of :func:`kinds`, or ``stactools:PACKAGE`` with the name of one of its packages ("sentinel2"). By default
        the one that fits the source's name, or that of a file in it.
    collection:
        Id of the collection that the item belongs to.
    href:
        Where the assets will be, if not where they are read: the address that takes the place of ``source``, or a
        function from a file's path below ``source`` to its address.
    settings:
        Credentials for S3.
    options:
        For the kind: ``datetime`` for "cog", if the file does not tell.

    Raises
    ------
    NotConfigured
        Something is missing that is needed for this source: settings for S3; a package of stactools.
    Rejected
        There is nothing at ``source``, it is of no kind that is known, it is broken, or tells too little.
    """
    import pystac  # takes a third of a second

    address = str(source).rstrip("/")
    make = _maker(kind or _kind_of(address, settings))
    made = make(address, href=href, settings=settings, **options)
    content = made.to_dict(include_self_link=False, transform_hrefs=False) if isinstance(made, pystac.Item) else made
    if collection:
        links = [link for link in content["links"] if link["rel"] != "collection"]
        # The schema asks for a link; the catalogue's API writes its own in its place.
        content |= {"collection": collection, "links": [*links, {"rel": "collection", "href": collection}]}
    if wrong := [str(fault) for fault in schemas.faults(content)]:
        raise Rejected.because(f"The item of {address} would not be valid STAC", wrong)
    return pystac.Item.from_dict(content)


def _maker(kind: str) -> Callable:
    if kind.startswith(STACTOOLS):
        from .of_stactools import maker

        return maker(kind.removeprefix(STACTOOLS))
    if kind not in kinds():
        raise Rejected(f"{kind!r} is no kind of source: choose one of {', '.join(kinds())}, or {STACTOOLS}PACKAGE")
    return _kinds[kind].make


def _kind_of(address: str, settings: Settings | None) -> str:
    """By its name; else by the names of the files in it."""
    _load()
    for name, kind in reversed(_kinds.items()):
        if kind.fits(address):
            return name
    with find(address, settings) as place:
        own, inside = place.name, list(place.files)
    # Of several files, none may be taken for the whole because of its suffix: no raster for a product.
    named = inside if len(inside) == 1 else [PurePosixPath(file).name.partition(".")[0] for file in inside]
    for name, kind in reversed(_kinds.items()):
        if any(kind.fits(file) for file in (own, *named)):  # an archive may be called otherwise than its content
            return name
    such_as = f" ({', '.join(inside[:3])})" if inside else ""
    raise Rejected(
        f"{address}{such_as} is of no kind that is known by its name: {', '.join(kinds())}. Say which: kind='...', or"
        f" kind='{STACTOOLS}PACKAGE', or register one of your own."
    )


@cache
def _load() -> None:
    """The kinds that are here."""
    for module in KINDS:
        import_module(f".{module}", __package__)


def times(name: str) -> list[str]:
    """The times (UTC, RFC 3339) in a name of Sentinel's manner: 20230910T054256."""
    found = re.findall(r"(?<!\d)(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)(?!\d)", name)
    return ["{}-{}-{}T{}:{}:{}Z".format(*parts) for parts in found]


def between(start: str, end: str) -> str:
    """The time in the middle of two, in whole seconds (UTC, RFC 3339)."""
    first, last = (datetime.fromisoformat(time) for time in (start, end))
    middle = first + (last - first) / 2
    return middle.astimezone(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")


def item(name: str, geometry: dict, properties: dict, assets: dict) -> dict:
    """The JSON of an item that lies at ``geometry``, with the extensions that it uses."""
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": stac.extensions_of([properties, assets]),
        "id": name,
        "geometry": geometry,
        "bbox": stac.bounds(geometry),
        "properties": properties,
        "links": [],
        "assets": assets,
    }
