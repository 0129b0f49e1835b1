"""One run of the recipe: what it may be asked for, what it notes before it makes anything, and how that is undone."""

import re
from collections.abc import Iterable

from .. import objectstore
from ..errors import Rejected
from ..settings import Settings
from ..state import RUN_ID, RunState
from . import wiring
from .store import connect

#: Names of queues have 80 characters at most (SQS developer guide, "Queue and message identifiers"): "eo-" and "-dead"
#: are ours.
LONGEST = 72
#: Ids of collections are a part of addresses.
COLLECTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def check(run_id: str, samples: int, collection: str, bucket: str) -> None:
    """Refuse parameters that cannot be meant, before anything is made.

    Raises
    ------
    Rejected
        All problems at once.
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


def remember(state: RunState, bucket: str = "", keys: Iterable[str] = (), *, collections: Iterable[str] = ()) -> None:
    """Note objects and collections that the run is about to make: :func:`clean_up` deletes these, and no others."""
    objects = state.get("objects", {})
    if keys := set(keys):
        objects[bucket] = sorted({*objects.get(bucket, []), *keys})
    noted = {*state.get("collections", []), *collections}
    state.save(objects=objects, collections=sorted(noted))


def clean_up(state: RunState, settings: Settings) -> dict[str, int]:
    """Remove exactly what the run noted: topic, queues and notification; objects, their items, its collections.

    Can be repeated, also after being killed half-way. Buckets stay, and so do items that came by a message alone into a
    collection that was there before.

    Returns
    -------
    How many of each were there and are gone now.
    """
    from datetime import UTC, datetime

    from .store import Origin, Removal

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
        for collection in state.get("collections", []):
            if collection in store.collections():
                counts["items"] += store.delete_collection(collection)
                counts["collections"] += 1
    state.save(cleaned=True, objects={}, collections=[])
    return counts
