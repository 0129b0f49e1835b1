"""A STAC API over the embedded catalogue, for machines without PostGIS: what pystac-client and STAC Browser need."""

from typing import Any

from flask import Flask, jsonify, request
from flask_cors import CORS

from ..catalog.embedded import EmbeddedStore
from ..errors import RecipeError, Rejected
from . import stac_api
from .rspy import Refusal, as_code

JSON, GEOJSON = "application/json", "application/geo+json"


def make_app(dsn: str) -> Flask:
    """The application over the catalogue in the file that ``dsn`` names. Reading only, as eoAPI's."""
    app = Flask("stac-embedded")
    CORS(app)  # STAC Browser comes from another address

    def root() -> str:
        return request.root_url.rstrip("/")

    def of_collection(collection: dict) -> dict:
        url = f"{root()}/collections/{collection['id']}"
        links = [_link("self", url), _link("items", f"{url}/items", GEOJSON)]
        return _with_links(collection, [*links, _link("parent", f"{root()}/"), _link("root", f"{root()}/")])

    def of_item(item: dict) -> dict:
        parent = f"{root()}/collections/{item['collection']}"
        links = [_link("self", f"{parent}/items/{item['id']}", GEOJSON), _link("root", f"{root()}/")]
        return _with_links(item, [*links, _link("collection", parent), _link("parent", parent)])

    def collection(store: EmbeddedStore, name: str) -> dict:
        found = store.collections().get(name)
        if found is None:
            raise Refusal(404, f"Collection {name} does not exist.")
        return found

    def page(wanted: dict) -> Any:
        asked = {name: wanted.get(name) for name in ("ids", "collections", "bbox", "intersects", "datetime")}
        with EmbeddedStore(dsn) as store:
            found = stac_api.page(store.find(**asked), wanted, request.base_url)
        return jsonify(found | {"features": [of_item(item) for item in found["features"]]})

    @app.errorhandler(Refusal)
    def refuse(refusal: Refusal) -> Any:
        return jsonify(as_code(refusal.status, refusal.description)), refusal.status

    @app.errorhandler(RecipeError)
    def explain(error: RecipeError) -> Any:
        status = 400 if isinstance(error, Rejected) else 503
        return jsonify(as_code(status, str(error))), status

    @app.get("/_mgmt/ping")
    def ping() -> Any:
        return jsonify({"message": "PONG"})

    @app.get("/")
    def landing() -> Any:
        links = [_link("self", f"{root()}/"), _link("root", f"{root()}/"), _link("data", f"{root()}/collections")]
        links.append(_link("conformance", f"{root()}/conformance"))
        links += [_link("search", f"{root()}/search", GEOJSON) | {"method": method} for method in ("GET", "POST")]
        with EmbeddedStore(dsn) as store:
            links += [_link("child", f"{root()}/collections/{name}") for name in store.collections()]
        about = {"type": "Catalog", "id": "eo-cloud-recipes", "title": "EO Cloud Recipes (sandbox, embedded)"}
        about |= {"description": "The catalogue that notebook 6 loads, in SQLite", "stac_version": "1.0.0"}
        return jsonify(about | {"conformsTo": stac_api.CONFORMS_TO, "links": links})

    @app.get("/conformance")
    def conformance() -> Any:
        return jsonify({"conformsTo": stac_api.CONFORMS_TO})

    @app.get("/collections")
    def collections() -> Any:
        with EmbeddedStore(dsn) as store:
            found = [of_collection(each) for each in store.collections().values()]
        links = [_link("self", f"{root()}/collections"), _link("root", f"{root()}/")]
        return jsonify({"collections": found, "links": links, "numberReturned": len(found)})

    @app.get("/collections/<name>")
    def one_collection(name: str) -> Any:
        with EmbeddedStore(dsn) as store:
            return jsonify(of_collection(collection(store, name)))

    @app.get("/collections/<name>/items")
    def items(name: str) -> Any:
        with EmbeddedStore(dsn) as store:
            collection(store, name)
        return page(stac_api.parameters() | {"collections": [name]})

    @app.get("/collections/<name>/items/<item_id>")
    def one_item(name: str, item_id: str) -> Any:
        with EmbeddedStore(dsn) as store:
            found = store.item(name, item_id)
        if found is None:
            raise Refusal(404, f"Item {item_id} in collection {name} does not exist.")
        return jsonify(of_item(found))

    @app.route("/search", methods=["GET", "POST"])
    def search() -> Any:
        return page(stac_api.parameters())

    return app


def _link(rel: str, href: str, kind: str = JSON) -> dict:
    return {"rel": rel, "href": href, "type": kind}


def _with_links(thing: dict, links: list[dict]) -> dict:
    """``thing`` with our links in place of its own of the same kinds; the others stay."""
    ours = {link["rel"] for link in links}
    return thing | {"links": [*links, *(link for link in thing.get("links", []) if link["rel"] not in ours)]}
