"""The whole chain at a glance: what is ordered, archived, converted and catalogued at this moment.

Everything is asked where it is (services, buckets, this disk), nothing is changed, and whatever does not answer is
shown as that. Above the recipes' rooms, as the command line is: it may use them all.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import requests
from botocore.exceptions import BotoCoreError, ClientError

from . import http, objectstore
from .errors import FailedRemotely, NotConfigured, Rejected, TimedOut
from .redaction import known_secrets, redact
from .settings import PROJECT, Service, Settings, catalogue_runs

#: The steps in their order.
STEPS = ("order", "archive", "convert", "catalogue")
#: States of a link, with a sign for each: no meaning is in a colour alone.
SIGNS = {
    "there": "✔",
    "at work": "▶",
    "failed": "✘",
    "nothing yet": "○",
    "not configured": "-",
    "refused": "!",
    "no answer": "?",
}
#: Objects of one place, or items of one collection, that are counted; more are "at least" so many.
MOST = 10_000
#: Folders of a bucket that are asked for one by one.
FEW = 20

#: State and facts.
Found = tuple[str, str]


@dataclass(frozen=True)
class Link:
    """One place of the chain: its ``step``, its ``state`` (of :data:`SIGNS`), and ``facts`` for people."""

    step: str
    place: str
    notebook: str  #: that brings something there, or "" for a place of yours
    state: str
    facts: str


def check(steps: Iterable[str], places: Iterable[str], answer_within: float) -> None:
    """Refuse parameters of :func:`look` that mean nothing.

    Raises
    ------
    Rejected
        All problems at once.
    """
    problems = [f"step {step!r} is none of {', '.join(STEPS)}" for step in steps if step not in STEPS]
    problems += [
        f"place {place!r}: use s3://bucket/prefix, or a folder"
        for place in places
        if not place.strip() or ("://" in place and not (place.startswith("s3://") and urlsplit(place).netloc))
    ]
    if not 0 < answer_within <= 3600:  # an hour: nobody waits longer, and threads cannot wait for ever
        problems.append(f"answer_within: {answer_within:g} is no time to wait; use a number above 0, at most 3600")
    if problems:
        raise Rejected.because("The chain cannot be looked at", problems)


def look(
    settings: Settings, steps: Iterable[str] = STEPS, places: Iterable[str] = (), answer_within: float = 10.0
) -> list[Link]:
    """Look at every place of the chain at once; none can keep the others waiting, or break them.

    Parameters
    ----------
    steps:
        Of :data:`STEPS`, those to look at.
    places:
        More places to look into: ``s3://bucket/prefix``, or folders (relative ones start at the project).
    answer_within:
        Seconds after which a place that has not answered is shown as "no answer".

    Raises
    ------
    Rejected
        What :func:`check` finds.
    """
    steps, places = tuple(steps), tuple(places)
    check(steps, places, answer_within)
    todo = [(step, *place) for step, *place in _PLACES if step in steps]
    todo += [("archive", place, "", _needs(place), lambda s, place=place: _stored([(place, s)])) for place in places]
    found: dict[int, Found] = {}

    def ask(number: int, needs: tuple[Service, ...], how: Callable[[Settings], Found]) -> None:
        found[number] = _asked(settings, needs, how)

    threads = [
        Thread(target=ask, args=(number, needs, how), daemon=True) for number, (*_, needs, how) in enumerate(todo)
    ]
    end = monotonic() + answer_within
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0, end - monotonic()))
    late = "no answer", f"nothing came within {answer_within:g} s"
    return [
        Link(step, place, notebook, *found.get(number, late)) for number, (step, place, notebook, *_) in enumerate(todo)
    ]


def _asked(settings: Settings, needs: tuple[Service, ...], how: Callable[[Settings], Found]) -> Found:
    """The answer of one place, or why there is none, in words that may be shown."""
    try:
        if missing := settings.missing(*needs):
            return "not configured", "missing: " + ", ".join(line.partition(":")[0] for line in missing)
        return how(settings)
    except (NotConfigured, Rejected, ClientError) as error:
        state, said = ("not configured" if isinstance(error, NotConfigured) else "refused"), str(error)
    except (TimedOut, FailedRemotely, BotoCoreError) as error:
        state, said = "no answer", str(error)
    except Exception as error:  # noqa: BLE001 - another answer than the service's must not hide the rest of the chain
        state, said = "no answer", f"what answers is not understood ({type(error).__name__})"
    return state, redact(said, known_secrets()).partition("\n")[0]


def _needs(place: str) -> tuple[Service, ...]:
    return ("aws",) if place.startswith("s3://") else ()


# --- order ---


def _jobs(settings: Settings) -> Found:
    from . import hyp3

    client = hyp3.connect(settings)
    http.harden(client.session, retries=1)
    return _states((job.status_code.lower() for job in client.find_jobs()), "job")


def _orders(settings: Settings) -> Found:
    from . import hook

    connection = hook.connect(settings)
    http.harden(connection.session, retries=1)
    return _states(map(hook.status, hook.pages(connection, "BatchOrder")), "order")


def _states(states: Iterable[str], what: str) -> Found:
    counted = Counter(state.replace("_", " ") for state in states)
    if not counted:
        return "nothing yet", f"no {what}s"
    many_first = sorted(counted.items(), key=lambda one: (-one[1], one[0]))
    facts = f"{_number(sum(counted.values()), what)}: " + ", ".join(f"{n} {state}" for state, n in many_first)
    if counted.keys() - {"succeeded", "completed", "failed", "cancelled"}:
        return "at work", facts
    return ("there" if counted["succeeded"] + counted["completed"] else "failed"), facts


# --- in buckets and on this disk ---


def _left_by(notebook: str, on_disk: bool) -> Callable[[Settings], Found]:
    """Looks at what the runs of a notebook noted that they had put somewhere."""

    def how(settings: Settings) -> Found:
        from . import catalog

        there = [(at, where) for who, at, where in catalog.noted(settings) if who == f"notebook {notebook}"]
        return _stored([(at, where) for at, where in there if at.startswith("s3://") != on_disk])

    return how


def _stored(places: list[tuple[str, Settings]]) -> Found:
    """How many objects, or files, there are at and below these addresses, and their bytes."""
    in_buckets: dict[str, tuple[Settings, list[str]]] = {}
    sizes: dict[str, int] = {}
    for address, settings in places:
        if address.startswith("s3://"):
            bucket, _, prefix = address.removeprefix("s3://").partition("/")
            in_buckets.setdefault(bucket, (settings, []))[1].append(prefix.rstrip("/"))
        else:
            sizes |= _files(PROJECT / Path(address).expanduser())
    for bucket, (settings, prefixes) in in_buckets.items():
        sizes |= _objects(objectstore.client("s3", settings), bucket, prefixes)
    if not sizes:
        return "nothing yet", "nothing is there"
    what = "object" if in_buckets else "file"
    return "there", f"{_number(len(sizes), what)}, {_amount(sum(sizes.values()))}"


def _files(path: Path) -> dict[str, int]:
    files = [path] if path.is_file() else (file for file in path.rglob("*") if file.is_file())
    return {str(file): file.stat().st_size for file in islice(files, MOST)}


def _objects(s3: Any, bucket: str, prefixes: list[str]) -> dict[str, int]:
    """Sizes by address, of :data:`MOST` objects at most; none of a bucket that is not there."""
    ours = tuple(f"{prefix}/" if prefix else "" for prefix in prefixes)
    # A request for each is too many where every job has a folder of its own: then for the folders that these are in.
    asked = set(prefixes) if len(prefixes) <= FEW else {prefix.rpartition("/")[0] for prefix in prefixes}
    sizes: dict[str, int] = {}
    try:
        for prefix in sorted(asked):
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
                keys = ((o["Key"], o["Size"]) for o in page.get("Contents", []))
                sizes |= {f"s3://{bucket}/{k}": size for k, size in keys if k in prefixes or k.startswith(ours)}
                if len(sizes) >= MOST:
                    return sizes
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchBucket":
            raise
    return sizes


# --- converted and catalogued ---


def _converted(settings: Settings) -> Found:
    """What the owner's collections have at RS-PYTHON, and how much of it lies in the storage."""
    from . import catalog
    from .conversion import services

    server = services.connect(settings)
    http.harden(server.session, retries=1)
    items: list[dict] = []
    for collection in _pages(server.session, f"{server.catalog}/collections", "collections"):
        name = collection["id"].removeprefix(f"{server.owner}_")
        if name != collection["id"]:
            address = f"{server.catalog}/collections/{server.owner}:{name}/items?limit=100"
            items += islice(_pages(server.session, address, "features"), MOST - len(items))
    if not items:
        return "nothing yet", "no items in your collections"
    places = {asset["href"] for item in items for asset in item["assets"].values()}
    return (
        "there",
        f"{_number(len(items), 'item')}; {_stored([(place, catalog.of_rspy(settings)) for place in places])[1]}",
    )


def _catalogued(settings: Settings) -> Found:
    if settings.catalog_api_url is None:
        return "not configured", "missing: CATALOG_API_URL"
    url, session = str(settings.catalog_api_url).rstrip("/"), http.harden(requests.Session(), retries=1)
    # A sandbox's catalogue is started by whoever needs it, and looking at it is no need.
    if settings.backend == "sandbox" and not catalogue_runs(str(settings.sandbox_url), settings.sandbox_user):
        return "nothing yet", "no catalogue runs"
    collections = sorted(one["id"] for one in _pages(session, f"{url}/collections", "collections"))
    items = 0
    for name in collections:
        about = session.get(f"{url}/search", params={"collections": name, "limit": 1}).json()
        if "numberMatched" not in about:  # pgstac counts only where it is told to
            about = session.get(f"{url}/search", params={"collections": name, "limit": MOST, "fields": "id"}).json()
        items += about.get("numberMatched", len(about["features"]))
    if not items:
        return "nothing yet", f"no items in {_number(len(collections), 'collection')}"
    return "there", f"{_number(items, 'item')} in {_number(len(collections), 'collection')}: {', '.join(collections)}"


def _pages(session: requests.Session, address: str, key: str) -> Iterator[dict]:
    """What a STAC API lists there, page by page."""
    seen: set[str] = set()
    while address and address not in seen:
        seen.add(address)
        page = session.get(address).json()
        yield from page[key]
        following = (link.get("href", "") for link in page.get("links", []) if link.get("rel") == "next")
        # The session's credentials go to nobody else.
        address = next((one for one in following if urlsplit(one).netloc == urlsplit(address).netloc), "")


def _number(count: int, what: str) -> str:
    more = "at least " if count >= MOST else ""
    return f"{more}{count:,} {what}{'' if count == 1 else 's'}"


def _amount(size: int) -> str:
    unit, scale = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if size >= s), ("bytes", 1))
    return f"{size / scale:,.{0 if scale == 1 else 1}f} {unit}"


#: Step, what is looked at, the notebook that brings something there, credentials that a live look needs, and how.
_PLACES: list[tuple[str, str, str, tuple[Service, ...], Callable[[Settings], Found]]] = [
    ("order", "HyP3 jobs", "1", ("earthdata",), _jobs),
    ("order", "From HyP3, in your bucket", "1", ("aws",), _left_by("1", on_disk=False)),
    ("order", "Hook orders", "2", ("destine",), _orders),
    ("order", "From Hook, on this disk", "2", (), _left_by("2", on_disk=True)),
    ("archive", "Archive in a bucket", "3", ("aws",), _left_by("3", on_disk=False)),
    ("archive", "Archive on this disk", "4", (), _left_by("4", on_disk=True)),
    ("convert", "Zarr at RS-PYTHON", "5", ("rs-python",), _converted),
    ("convert", "Zarr on this disk", "5", (), _left_by("5", on_disk=True)),
    ("catalogue", "STAC catalogue", "6", (), _catalogued),
]
