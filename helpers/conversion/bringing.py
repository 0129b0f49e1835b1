"""The SAFE product of an item, brought here: to look at, to compare with its Zarr, to convert without a service."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import requests

from .. import http, safe
from ..download import fetch, in_parallel
from ..errors import Rejected
from ..progress import Moving, Progress, told, tracked
from ..settings import Settings
from ..state import RUN_ID
from . import rules
from .inputs import Source, assets_of, sources

#: What the sandbox's station has, for those who name nothing.
EXAMPLE = "collections/sentinel-2-l2a/items/S2A_MSIL2A_20240815T100601_N0511_R022_T32TQR_20240815T153456"
#: How the addresses begin of what the station has.
AT_STATION = ("collections/", "search?")
SERVICE, HERE = "service", "here"


def wanted(
    settings: Settings,
    inputs: list[str],
    converter: str,
    *,
    run_id: str = "run",
    collections: Iterable[str] = (),
    workers: int = 1,
    look_at: int = 0,
) -> list[str]:
    """The inputs, those that begin with "collections/" or "search?" at the station of the settings (RSPY_STATION_URL).

    In the sandbox, if there are none: one product of its station.

    Raises
    ------
    Rejected
        There is nothing to convert, or the notebook's other parameters do not fit: all problems at once.
    """
    least = (("workers", workers, 1), ("look_at", look_at, 0))
    problems = [f"{name}: {count} is not possible; use {low} or more" for name, count, low in least if count < low]
    problems += [
        f"collection {name!r}: use letters, digits, '.', '_' and '-'"
        for name in collections
        if not rules.COLLECTION.fullmatch(name)
    ]
    if not RUN_ID.fullmatch(run_id):
        problems.append(f"run_id {run_id!r}: use 1 to 64 letters, digits, '.', '_' or '-'")
    if converter not in (SERVICE, HERE):
        problems.append(f"converter: {converter!r} is not known; use {SERVICE!r} or {HERE!r}")
    if not inputs and not (settings.backend == "sandbox" and settings.station_url):
        problems.append("inputs: name what to convert, such as the URL of a STAC item")
    if converter == SERVICE and (local := [one for one in inputs if _is_place(one)]):
        problems.append(
            f"inputs: {local[0]!r} is no address of STAC items (http..., collections/..., search?...), and no file"
            f" (.json) of them. Products on this disk or in S3 are converted with the converter {HERE!r}."
        )
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
        A file or folder is not there, or two have the same product's name: all of them.
    """
    places: dict[str, Path | str] = {}
    problems = []
    for one in filter(_is_place, given):
        place = one if one.startswith("s3://") else Path(one).expanduser()
        if isinstance(place, Path) and not place.exists():
            problems.append(f"{one}: there is no such file or folder")
        elif (other := places.setdefault(safe.name_of(one), place)) is not place:
            problems.append(f"{one}: the same product as {other}")
    if problems:
        raise Rejected.because("The inputs cannot be converted like this", problems)
    return places


def items(given: Iterable[str]) -> list[Source]:
    """The STAC items that addresses and files name, each once; those with a ``problem`` cannot be converted."""
    session = http.harden(requests.Session())
    return sources([one for one in given if not _is_place(one)], lambda url: session.get(url).json())


def archives(
    wanted: list[Source], folder: Path, workers: int = 4, *, show: Callable[[str], object] = print
) -> tuple[dict[str, Path], dict[str, str]]:
    """Download the archives of several items, as :func:`archive`; one that cannot be had stops no other.

    ``show`` gets lines, or is a :class:`helpers.progress.Progress`, such as a notebook's bar.

    Returns
    -------
    The archives, and why there is none, both by the products' names.
    """
    with told(show, len(wanted), lines=Progress) as progress:
        work = {}
        for source in wanted:
            bring = partial(archive, source, folder, show=progress.detail, moving=progress.of(source.id))
            work[source.id] = tracked(progress, source.id, bring)
        return in_parallel(work, workers)


def unpack(products: dict[str, Path], folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The SAFE folders of several products, as :func:`unpacked`; and what is wrong with those that have none."""
    return in_parallel({name: partial(unpacked, product, folder) for name, product in products.items()}, workers=2)


def archive(
    source: Source,
    folder: Path,
    session: requests.Session | None = None,
    *,
    show: Callable[[str], None] = print,
    moving: Moving | None = None,
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
    return fetch(session, href, folder / name, check=safe.check_archive, show=show, moving=moving)


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
