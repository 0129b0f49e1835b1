"""One run of the recipe: what it may be asked for, what it notes before it makes anything, and how that is undone."""

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import requests

from .. import http, objectstore
from ..errors import NotConfigured, RecipeError, Rejected, TimedOut
from ..settings import Settings
from ..state import RUN_ID, RunState
from . import wiring
from .publishing import item_of
from .store import Entry, Origin, Removal, Store, connect

#: Names of queues have 80 characters at most (SQS developer guide, "Queue and message identifiers"): "eo-" and "-dead"
#: are ours.
LONGEST = 72
#: Ids of collections are a part of addresses.
COLLECTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def check(settings: Settings, run_id: str, samples: int, collection: str, bucket: str) -> None:
    """Refuse parameters that cannot be meant, and a catalogue that does not answer, before anything is made.

    Raises
    ------
    Rejected
        All problems with the parameters at once.
    NotConfigured
        There is no STAC API at CATALOG_API_URL.
    TimedOut
        It does not answer.
    """
    problems = []
    if not RUN_ID.fullmatch(run_id) or len(run_id) > LONGEST:
        problems.append(f"run_id {run_id!r}: use 1 to {LONGEST} letters, digits, '.', '_' or '-'")
    if samples < 0:
        problems.append(f"samples: {samples} is no number of products; 0 for none")
    if not COLLECTION.fullmatch(collection):
        problems.append(f"collection {collection!r}: use letters, digits, '.', '_' and '-', at most 128")
    if bucket and not BUCKET.fullmatch(bucket):
        problems.append(f"bucket {bucket!r}: use 3 to 63 small letters, digits, '.' and '-'")
    if problems:
        raise Rejected.because("The run cannot begin like this", problems)
    _ask(settings)


def _ask(settings: Settings) -> None:
    url = str(settings.catalog_api_url).rstrip("/")
    try:
        answer = http.harden(requests.Session()).get(f"{url}/")
        if answer.json().get("type") == "Catalog":
            return
    except TimedOut:
        raise TimedOut(f"The STAC API at {url} does not answer. Is CATALOG_API_URL right, and is it up?") from None
    except (RecipeError, ValueError, AttributeError):
        pass
    raise NotConfigured(f"CATALOG_API_URL: what answers at {url} is no STAC API. Give the address of its landing page.")


def remember(state: RunState, bucket: str = "", keys: Iterable[str] = (), *, collections: Iterable[str] = ()) -> None:
    """Note objects and collections that the run is about to make: :func:`clean_up` deletes these, and no others."""
    objects = state.get("objects", {})
    if keys := set(keys):
        objects[bucket] = sorted({*objects.get(bucket, []), *keys})
    noted = {*state.get("collections", []), *collections}
    state.save(objects=objects, collections=sorted(noted))


def clean_up(state: RunState, settings: Settings) -> dict[str, int]:
    """Remove exactly what the run noted: topic, queues and notification; objects, their items, its collections.

    Can be repeated, also after being killed half-way. Buckets stay, and so do items that came by a message alone, and
    those that objects of other runs (of this machine) describe as well, with their collection.

    Returns
    -------
    How many of each were there and are gone now.
    """
    state.save(cleaning=True)
    s3, sns, sqs = (objectstore.client(name, settings) for name in ("s3", "sns", "sqs"))
    counts = wiring.clean_up(state, sns=sns, sqs=sqs, s3=s3)  # first: the loader shall hear of nothing that follows
    counts |= {"items": 0, "objects": 0, "collections": 0}
    with connect(settings) as store:
        for bucket, keys in state.get("objects", {}).items():
            now = datetime.now(UTC)
            removals = [Removal(bucket, key, Origin(now, bucket=bucket, key=key)) for key in keys]
            counts["items"] += store.remove(removals)
            objectstore.delete(s3, bucket, keys)
            counts["objects"] += len(keys)
            counts["items"] -= _restore(state, store, s3, bucket, keys)
        for collection in state.get("collections", []):
            if collection in store.collections() and not store.count(collection):  # others may have items in it by now
                store.delete_collection(collection)
                counts["collections"] += 1
    state.save(cleaned=True, objects={}, collections=[])
    return counts


def _restore(state: RunState, store: Store, s3: Any, bucket: str, gone: list[str]) -> int:
    """Put back the items that an object of another run describes, too; how many."""
    lost = {found for key in gone if (found := item_of(key))}
    noted = {key for run in state.of_all_runs("objects") for key in run.get(bucket, [])}
    count = 0
    for key in sorted(noted - set(gone)):
        if (found := item_of(key)) not in lost or store.item(*found):
            continue
        try:
            answer = s3.get_object(Bucket=bucket, Key=key)
        except s3.exceptions.NoSuchKey:
            continue
        origin = Origin(datetime.now(UTC), bucket=bucket, key=key, etag=answer["ETag"].strip('"'))
        count += store.load(found[0], [Entry(json.loads(answer["Body"].read()), origin)]).stored
    return count
