"""Stand-in for RS-Server's catalogue: a STAC API with transactions, whose collections belong to owners.

Paths have ``{owner}:{collection}``, ids in answers ``{owner}_{collection}``. An item goes in when its assets are in
the bucket that the rules name, and takes them along when it goes.
"""

import copy
import threading
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError
from flask import Flask, jsonify, request

from . import rspy, stac_api
from .clock import Clock
from .faults import Traffic
from .osam import Osam
from .rspy import Refusal

ROOT = "/catalog"
#: Extensions that the catalogue adds to every item.
EXTENSIONS = (
    "https://home.rs-python.eu/ownership-stac-extension/v1.1.0/schema.json",
    "https://stac-extensions.github.io/alternate-assets/v1.1.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
)
#: Links that every answer makes anew.
OWN_LINKS = ("self", "parent", "collection", "root", "items")


class Catalog:
    """Collections and items of one world, and the WSGI application ``app``.

    Parameters
    ----------
    s3:
        The client with which assets are looked up and deleted.
    """

    def __init__(self, osam: Osam, s3: Any, clock: Clock, traffic: Traffic):
        self.osam, self.s3, self.clock, self.traffic = osam, s3, clock, traffic
        self.collections: dict[str, dict] = {}  #: by ``{owner}_{collection}``
        self.items: dict[str, dict[str, dict]] = {}  #: by collection, then by id
        self.lock = threading.RLock()
        self.app = _make_app(self)

    # --- reading ---

    def where(self, name: str, user: str) -> tuple[str, str]:
        """Owner and collection of a path's part: ``owner:collection``, or the user's own with or without owner."""
        owner, colon, collection = name.partition(":")
        owner, collection = (rspy.stripped(owner), collection) if colon else (user, name)
        return owner, collection.removeprefix(f"{owner}_")

    def collection(self, owner: str, collection: str) -> dict:
        """The stored collection; raises Refusal (404)."""
        found = self.collections.get(f"{owner}_{collection}")
        if found is None:
            raise Refusal(404, f"Collection {collection} does not exist.")
        return found

    def item(self, owner: str, collection: str, item_id: str) -> dict:
        """The stored item; raises Refusal (404)."""
        self.collection(owner, collection)
        found = self.items[f"{owner}_{collection}"].get(item_id)
        if found is None:
            raise Refusal(404, f"Item {item_id} in collection {collection} does not exist.")
        return found

    def search(self, wanted: dict, user: str) -> list[dict]:
        """The items that fit; raises Refusal (404) for a collection that is not there."""
        if wanted.get("collections"):
            wanted = wanted | {"collections": [self._known(name, user) for name in wanted["collections"]]}
        everything = [item for items in self.items.values() for item in items.values()]
        return stac_api.select(everything, wanted)

    def _known(self, name: str, user: str) -> str:
        for full in (name.replace(":", "_"), f"{user}_{name.replace(':', '_')}"):
            if full in self.collections:
                return full
        owner, colon, collection = name.partition(":")
        if colon and f"{rspy.stripped(owner)}_{collection}" in self.collections:
            return f"{rspy.stripped(owner)}_{collection}"
        raise Refusal(404, f"Collection {name} not found.")

    # --- writing ---

    def add_collection(self, owner: str, content: dict, replace: bool = False) -> dict:
        """Store a collection; raises Refusal (400, 409, and 404 when there is none to replace)."""
        needed = ("id", "description", "license", "extent")
        if missing := [key for key in needed if key not in (content or {})]:
            raise Refusal(400, f"Missing key in request body! {missing[0]!r}")
        name = str(content["id"]).removeprefix(f"{owner}_")
        full = f"{owner}_{name}"
        with self.lock:
            if replace:
                self.collection(owner, name)
            elif full in self.collections:
                raise Refusal(409, f"Collection {full} already exists")
            now = f"{self.clock.now():%Y-%m-%dT%H:%M:%SZ}"
            created = self.collections.get(full, {}).get("created", now)
            stored = copy.deepcopy(content) | {"id": full, "owner": owner, "created": created, "updated": now}
            self.collections[full] = stored
            self.items.setdefault(full, {})
        return stored

    def add(self, owner: str, collection: str, content: dict) -> dict:
        """Store a new item; raises Refusal (400, 403, 404, 409)."""
        return self._store(owner, collection, content, None)

    def replace(self, owner: str, collection: str, item_id: str, content: dict) -> dict:
        """Store an item that is there anew; raises Refusal (400, 403, 404)."""
        return self._store(owner, collection, content, item_id)

    def _store(self, owner: str, collection: str, content: Any, replaces: str | None) -> dict:
        self.collection(owner, collection)
        if missing := [key for key in ("id", "properties", "assets") if key not in (content or {})]:
            raise Refusal(400, f"Missing key in request body! {missing[0]!r}")
        item = copy.deepcopy(content)
        about, full = item["properties"], f"{owner}_{collection}"
        if not isinstance(about.get("product:type"), str) or not about["product:type"].strip():
            message = "Cannot create or update item: 'product:type' must be a non-empty string in 'properties'."
            raise Refusal(403, message)
        with self.lock:
            there = self.items[full].get(replaces or item["id"])
            if replaces is None and there is None and self.traffic.take("conflict", "catalog", item["id"]):
                there = self._somebody_elses(owner, collection, item)
            if replaces is None and there is not None:
                raise Refusal(409, f"Conflict error! The item {item['id']} already exists in the {full} collection")
            if replaces is not None and there is None:
                raise Refusal(400, f"Item {replaces} not found.")
            self._check_assets(owner, collection, item)
            self.items[full][item["id"]] = self._completed(owner, collection, item, there)
        return self.items[full][item["id"]]

    def _somebody_elses(self, owner: str, collection: str, item: dict) -> dict:
        """The item as another run published it a moment ago: of the same product, with less in it."""
        other = copy.deepcopy(item)
        other["links"] = [link for link in other.get("links", []) if link["rel"] != "derived_from"]
        other["properties"]["processing:facility"] = "another run"
        other = self._completed(owner, collection, other, None)
        self.items[f"{owner}_{collection}"][item["id"]] = other
        return other

    def _completed(self, owner: str, collection: str, item: dict, before: dict | None) -> dict:
        now = self.clock.now()
        days, _ = self.osam.rule(owner, collection, _type(item))
        stamp, published = f"{now:%Y-%m-%dT%H:%M:%S.%fZ}", None
        if before:
            published = before["properties"].get("published")
        about = item["properties"] | {"owner": owner, "published": published or stamp, "updated": stamp}
        about.setdefault("created", stamp)
        about["expires"] = f"{now + timedelta(days=days):%Y-%m-%dT%H:%M:%S.%fZ}"
        extensions = list(dict.fromkeys([*item.get("stac_extensions", []), *EXTENSIONS]))
        links = [link for link in item.get("links", []) if link.get("rel") not in OWN_LINKS]
        item |= {"collection": f"{owner}_{collection}", "properties": about, "stac_extensions": extensions}
        if item.get("geometry"):
            item["bbox"] = stac_api.bbox_of(item["geometry"])
        return item | {"links": links}

    def _check_assets(self, owner: str, collection: str, item: dict) -> None:
        _, bucket = self.osam.rule(owner, collection, _type(item))
        for asset in item["assets"].values():
            place = urlsplit(asset.get("href") or "")
            if place.scheme != "s3" or place.netloc != bucket or not self._keys(bucket, place.path.strip("/"), 1):
                raise Refusal(400, f"Not all assets for item {item['id']} are available in S3.")

    def _keys(self, bucket: str, key: str, most: int | None = None) -> list[str]:
        """Keys of an asset: the object of this name, and what lies below the folder of this name."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=key, PaginationConfig={"MaxItems": most and 100 * most}
        )
        try:
            found = [o["Key"] for page in pages for o in page.get("Contents", [])]
        except self.s3.exceptions.NoSuchBucket:
            return []
        return [name for name in found if name == key or name.startswith(f"{key}/")]

    def remove(self, owner: str, collection: str, item_id: str) -> None:
        """Delete the objects that the item's assets name, then the item; raises Refusal (404, 500)."""
        with self.lock:
            item = self.item(owner, collection, item_id)
            self._delete_assets(item)
            del self.items[f"{owner}_{collection}"][item_id]

    def remove_collection(self, owner: str, collection: str) -> None:
        """Delete a collection with its items and their objects; raises Refusal (404, 500)."""
        with self.lock:
            self.collection(owner, collection)
            for item_id in list(self.items[f"{owner}_{collection}"]):
                self.remove(owner, collection, item_id)
            del self.collections[f"{owner}_{collection}"], self.items[f"{owner}_{collection}"]

    def forget(self, owner: str) -> None:
        """Remove an owner's collections with their items; the objects are left to the caller."""
        with self.lock:
            for full in [name for name, each in self.collections.items() if each["owner"] == owner]:
                del self.collections[full], self.items[full]

    def _delete_assets(self, item: dict) -> None:
        try:
            for asset in item["assets"].values():
                place = urlsplit(asset["href"])
                for key in self._keys(place.netloc, place.path.strip("/")):
                    self.s3.delete_object(Bucket=place.netloc, Key=key)
        except (ClientError, BotoCoreError):
            raise Refusal(500, "Failed to delete S3 assets; catalog metadata was not deleted.") from None


def _type(item: dict) -> str | None:
    return item["properties"].get("product:type") or item["properties"].get("eopf:type")


# --- the web application ---


def _make_app(service: Catalog) -> Flask:
    app = rspy.make_app("catalog", rspy.as_code)

    def root() -> str:
        return f"{request.host_url.rstrip('/')}{ROOT}"

    def of(collection_id: str) -> str:
        stored = service.collections[collection_id]
        return f"{root()}/collections/{stored['owner']}:{collection_id.removeprefix(stored['owner'] + '_')}"

    def collection_form(stored: dict) -> dict:
        url = of(stored["id"])
        links = [link for link in stored.get("links", []) if link.get("rel") not in OWN_LINKS]
        links += [_link("self", url), _link("parent", f"{root()}/"), _link("root", f"{root()}/")]
        links.append(_link("items", f"{url}/items", "application/geo+json"))
        return {"type": "Collection", "stac_version": "1.0.0"} | stored | {"links": links}

    def item_form(item: dict) -> dict:
        url = of(item["collection"])
        links = [_link("self", f"{url}/items/{item['id']}", "application/geo+json")]
        links += [_link("collection", url), _link("parent", url), _link("root", f"{root()}/")]
        return item | {"links": [*links, *item["links"]]}

    def may_write(owner: str, user: str) -> None:
        if owner != user:
            raise Refusal(401, f"The '{user}' user cannot change a collection owned by the '{owner}' user.")

    @app.before_request
    def authorize() -> None:
        rspy.user()

    @app.get(f"{ROOT}/")
    @app.get(ROOT)
    def landing() -> Any:
        links = [_link("self", f"{root()}/"), _link("root", f"{root()}/")]
        links += [_link("data", f"{root()}/collections"), _link("conformance", f"{root()}/conformance")]
        for method in ("GET", "POST"):
            links.append(_link("search", f"{root()}/search", "application/geo+json") | {"method": method})
        links += [_link("child", of(name)) for name in service.collections]
        about = {"type": "Catalog", "id": "rs-python", "title": "RS-PYTHON catalogue", "stac_version": "1.0.0"}
        about |= {"description": "The sandbox's catalogue of converted products", "links": links}
        return jsonify(about | {"conformsTo": [*stac_api.CONFORMS_TO, stac_api.TRANSACTIONS]})

    @app.get(f"{ROOT}/conformance")
    def conformance() -> Any:
        return jsonify({"conformsTo": [*stac_api.CONFORMS_TO, stac_api.TRANSACTIONS]})

    @app.get(f"{ROOT}/collections")
    def collections() -> Any:
        stored = [collection_form(each) for each in service.collections.values()]
        return jsonify({"collections": stored, "links": [_link("self", f"{root()}/collections")]})

    @app.post(f"{ROOT}/collections")
    def add_collection() -> Any:
        user, content = rspy.user(), rspy.body()
        owner = rspy.stripped(str((content or {}).get("owner") or user))
        may_write(owner, user)
        return jsonify(collection_form(service.add_collection(owner, content))), 201

    @app.route(f"{ROOT}/collections/<name>", methods=["GET", "PUT", "DELETE"])
    def one_collection(name: str) -> Any:
        user = rspy.user()
        owner, collection = service.where(name, user)
        if request.method == "GET":
            return jsonify(collection_form(service.collection(owner, collection)))
        may_write(owner, user)
        if request.method == "PUT":
            content = (rspy.body() or {}) | {"id": collection}
            return jsonify(collection_form(service.add_collection(owner, content, replace=True)))
        service.remove_collection(owner, collection)
        return jsonify({"deleted collection": f"{owner}_{collection}"})

    @app.get(f"{ROOT}/collections/<name>/items")
    def items(name: str) -> Any:
        owner, collection = service.where(name, rspy.user())
        service.collection(owner, collection)
        wanted = stac_api.parameters() | {"collections": [f"{owner}_{collection}"]}
        return answer(wanted, request.base_url)

    @app.post(f"{ROOT}/collections/<name>/items")
    def add(name: str) -> Any:
        user = rspy.user()
        owner, collection = service.where(name, user)
        may_write(owner, user)
        return jsonify(item_form(service.add(owner, collection, rspy.body()))), 201

    @app.route(f"{ROOT}/collections/<name>/items/<item_id>", methods=["GET", "PUT", "DELETE"])
    def one_item(name: str, item_id: str) -> Any:
        user = rspy.user()
        owner, collection = service.where(name, user)
        if request.method == "GET":
            return jsonify(item_form(service.item(owner, collection, item_id)))
        may_write(owner, user)
        if request.method == "PUT":
            return jsonify(item_form(service.replace(owner, collection, item_id, rspy.body())))
        service.remove(owner, collection, item_id)
        return jsonify({"deleted item": item_id})

    @app.route(f"{ROOT}/search", methods=["GET", "POST"])
    def search() -> Any:
        return answer(stac_api.parameters(), request.base_url)

    def answer(wanted: dict, url: str) -> Any:
        with service.lock:
            found = stac_api.page(service.search(wanted, rspy.user()), wanted, url)
            return jsonify(found | {"features": [item_form(item) for item in found["features"]]})

    return app


def _link(rel: str, href: str, kind: str = "application/json") -> dict:
    return {"rel": rel, "href": href, "type": kind}
