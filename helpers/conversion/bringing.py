"""The SAFE product of an item, brought here: to look at, to compare with its Zarr, to convert without a service."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import requests

from .. import http, safe
from ..download import fetch
from ..errors import Rejected
from ..settings import Settings
from .inputs import Source, assets_of, sources

#: What the sandbox's station has, for those who name nothing.
EXAMPLE = "collections/sentinel-2-l2a/items/S2A_MSIL2A_20240815T100601_N0511_R022_T32TQR_20240815T153456"
#: How the addresses begin of what the station has.
AT_STATION = ("collections/", "search?")
SERVICE, HERE = "service", "here"


def wanted(settings: Settings, inputs: list[str], converter: str, **counts: int) -> list[str]:
    """The inputs, those that begin with "collections/" or "search?" at the station of the settings (RSPY_STATION_URL).

    In the sandbox, if there are none: one product of its station.

    Raises
    ------
    Rejected
        There is nothing to convert, or the notebook's other parameters (``counts``: numbers from 0) do not fit.
    """
    problems = [
        f"{name}: {count} is no number of products; use 0 or more" for name, count in counts.items() if count < 0
    ]
    if converter not in (SERVICE, HERE):
        problems.append(f"converter: {converter!r} is not known; use {SERVICE!r} or {HERE!r}")
    if not inputs and not (settings.backend == "sandbox" and settings.station_url):
        problems.append("inputs: name what to convert, such as the URL of a STAC item")
    if converter == SERVICE and (local := [one for one in inputs if _is_place(one)]):
        problems.append(f"inputs: the service takes STAC items, not {local[0]!r}; for that, set converter to {HERE!r}")
    asked = [one for one in inputs if one.startswith(AT_STATION)]
    if asked and not settings.station_url:
        problems.append(f"inputs: RSPY_STATION_URL is not set, where {asked[0]!r} would be")
    if problems:
        raise Rejected.because("The parameters do not fit", problems)
    station = str(settings.station_url).rstrip("/")
    return [f"{station}/{one}" if one.startswith(AT_STATION) else one for one in inputs or [EXAMPLE]]


def _is_place(one: str) -> bool:
    """Whether it is a product itself, not something that names one."""
    named = one.startswith(("http://", "https://", *AT_STATION)) or one.endswith(".json")
    return one.startswith("s3://") or not named


def products(given: Iterable[str]) -> dict[str, Path | str]:
    """Folders and archives of SAFE products on this disk, and ``s3://`` addresses, by the product's name.

    Whatever else is given is left out: it names a product, and is none itself.

    Raises
    ------
    Rejected
        A file or folder is not there: all of them.
    """
    places = {
        name_of(one): one if one.startswith("s3://") else Path(one).expanduser() for one in given if _is_place(one)
    }
    if missing := [str(place) for place in places.values() if isinstance(place, Path) and not place.exists()]:
        raise Rejected.because("There is no such file or folder", missing)
    return places


def items(given: Iterable[str]) -> list[Source]:
    """The STAC items that addresses and files name, each once; those with a ``problem`` cannot be converted."""
    session = http.harden(requests.Session())
    return sources([one for one in given if not _is_place(one)], lambda url: session.get(url).json())


def archive(
    source: Source, folder: Path, session: requests.Session | None = None, *, show: Callable[[str], None] = print
) -> Path:
    """Download the archive that an item names, whole and checked; what is there already is not fetched again.

    Raises
    ------
    Rejected
        The item has its files one by one, not in an archive; or the server refuses.
    """
    names = assets_of(source.item)
    if names is None:
        raise Rejected(f"{source.id} is not packed: its files are assets of their own, and are not fetched one by one.")
    href = source.item["assets"][names[0]]["href"]
    name = href.partition("?")[0].rstrip("/").rpartition("/")[2]
    name = name if safe.is_archive(name) else f"{source.id}.zip"
    session = session or http.harden(requests.Session())
    return fetch(session, href, folder / name, check=safe.check_archive, show=show)


def unpacked(product: Path, folder: Path) -> Path:
    """The SAFE folder of a product: itself, or what its archive has in it, held against the manifest.

    Raises
    ------
    Rejected
        It is no SAFE product, or files of it are missing or damaged: all of them.
    """
    root = safe.root_of(product if product.is_dir() else safe.unpack(product, folder))
    if damage := safe.verify(root):
        raise Rejected.because(f"{root.name} is damaged", damage)
    return root


def name_of(place: str) -> str:
    """A product's name, from that of its folder or archive."""
    return re.sub(r"(\.SAFE|\.SEN3)?(\.zip|\.tar|\.tgz|\.tar\.gz)?$", "", place.rstrip("/").rpartition("/")[2])
