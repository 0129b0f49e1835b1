"""A converted product gets its STAC item and goes into the catalogue, once; and is found there again."""

import json
from itertools import chain
from typing import Any

from .. import http
from ..errors import FailedRemotely, RecipeError, Rejected, TimedOut
from .work import TRIES, Work


def find_published(work: Work) -> dict | None:
    """The published item that is derived from this very source, if its Zarr is there as well."""
    plan = work.plan
    noted = work.notes.get("published")
    first = [work.services.item(plan.collection, noted["item"])] if noted else []
    for item in chain(first, work.services.search(plan.collection, plan.interval)):
        if item and plan.source in derived_from(item) and work.store.has_zarr(zarr_of(item)):
            return item
    return None


def derived_from(item: dict) -> list[str]:
    """Where an item says that it comes from."""
    return [link.get("href", "") for link in item.get("links", []) if link.get("rel") == "derived_from"]


def zarr_of(item: dict) -> str:
    """The address of a converted product: that of its one asset."""
    return next((asset.get("href", "") for asset in item["assets"].values()), "").rstrip("/")


def describe(work: Work, zarr: str, safe_uri: str) -> dict:
    """Put right in the Zarr what the converter got wrong, and make its STAC item.

    Raises
    ------
    Rejected
        It is not where the source says it lies, or the item is not valid.
    """
    from .. import stac  # half a second each
    from . import mending

    work.mended = mending.mend(zarr, safe_uri, storage_options=work.storage_options)
    attributes = stac.read_attributes(zarr, storage_options=work.storage_options)
    item = stac.item_of(
        attributes,
        zarr,
        product_type=work.plan.product_type,
        geometry=work.plan.item.get("geometry"),
        derived_from=work.plan.source,
    )
    work.bytes_out = sum(work.store.objects(zarr).values())
    return item.to_dict(include_self_link=False, transform_hrefs=False)


def publish(work: Work, item: dict) -> dict:
    """Bring the item into the catalogue, once, whatever becomes of the answers; returns it as it is there.

    Raises
    ------
    Rejected
        Another product is published under its id; or the catalogue refuses it, and why.
    FailedRemotely, TimedOut
        The catalogue has a problem, or does not answer.
    """
    services, plan = work.services, work.plan
    if not services.collection(plan.collection):
        services.add_collection(plan.collection, f"Products converted to Zarr, of {plan.collection}")
    failure: RecipeError = FailedRemotely("the catalogue does not keep the item")
    sent = False
    for number in range(1, TRIES + 1):
        try:
            there = services.item(plan.collection, item["id"])
            if there is None:
                sent = True
                services.add_item(plan.collection, item)
            elif not (_same(item, there) or (sent and _ours(item, there))):
                _may_replace(work, item, there)
                sent = True
                services.replace_item(plan.collection, item)
                if zarr_of(there) != zarr_of(item):  # nobody finds it any more
                    _remove_zarr(work, zarr_of(there))
            there = services.item(plan.collection, item["id"])
            if there and _ours(item, there):
                work.notes.save(published={"collection": plan.collection, "item": item["id"], "zarr": zarr_of(item)})
                return there
        except (FailedRemotely, TimedOut) as error:
            failure = error
        except http.Refused as error:
            if error.status not in (400, 409):  # 400: it went away before it could be replaced
                raise
            failure = error
        work.pause(number)
    if sent:
        work.unsure = True
        there = services.item(plan.collection, item["id"])
        work.unsure = there is not None and _ours(item, there)
    raise failure


def _ours(ours: dict, theirs: dict) -> bool:
    """Whether an item in the catalogue is the one that was sent; it may have been written a little differently."""
    return zarr_of(ours) == zarr_of(theirs) and derived_from(ours) == derived_from(theirs)


def _same(ours: dict, theirs: dict) -> bool:
    """Whether everything that we say of an item is in the catalogue; it adds some of its own."""
    fields = [name for name in ("geometry", "assets") if _plain(ours.get(name)) != _plain(theirs.get(name))]
    about = theirs.get("properties", {})
    lacking = [k for k, v in ours["properties"].items() if k not in _CATALOGUES and _plain(about.get(k)) != _plain(v)]
    return not fields and not lacking and derived_from(ours) == derived_from(theirs)


#: Properties that the catalogue writes itself.
_CATALOGUES = ("owner", "created", "updated", "published", "expires")


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _may_replace(work: Work, item: dict, there: dict) -> None:
    other = [link for link in derived_from(there) if link != work.plan.source]
    if other and zarr_of(there) != zarr_of(item) and work.store.has_zarr(zarr_of(there)):
        raise Rejected(
            f"{item['id']} is published in {work.plan.collection} already, converted from {other[0]}."
            " Choose another collection, or remove it first."
        )


def _remove_zarr(work: Work, zarr: str) -> None:
    """Remove a Zarr that no item names any more, if it is in our folder."""
    if zarr.startswith(f"{work.plan.output}/"):
        work.store.remove(zarr)
