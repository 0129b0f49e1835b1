"""Stand-in for the DestinE Hook service (OnDemand Processing, OData v1): workflows, orders and their items.

Forms and oddities are those of published answers: `Id` is a number in a batch order and a string in a production
order, the numbers of workflows differ between the two, `InputProductReference` is a string here and an object there.
What no published source tells is chosen, and called so where it stands.
"""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import jwt
import yaml
from cryptography.fernet import Fernet
from flask import Flask, Response, g, jsonify, redirect, request
from pydantic import BaseModel, Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError
from werkzeug.exceptions import HTTPException

from . import odata
from .clock import Clock
from .faults import Traffic
from .hook_entities import (
    Item,
    Order,
    batch_order_form,
    is_secret,
    item_form,
    production_order_form,
    summary_form,
    workflow_form,
)
from .hook_processing import Processor, collection_of, stem
from .hook_storage import TemporaryStorage
from .identity import Identity

ROOT, EXTERNAL = "/odata/v1", "/external"
#: Products that may be ordered in a month, and items that are processed at a time, by role.
QUOTAS = {"hook-high": (1000, 5), "hook-medium": (1000, 2), "hook-low": (25, 1)}
#: The role without which there is nothing; alone, it is as good as the lowest of the others (chosen).
ROLE = "hook-workflows"
#: Ids of a published answer, and when it was given. They grow from there with time, so that two sandboxes have none in
#: common: to a client, an order id names one order for ever.
FIRST_ORDER, FIRST_ITEM, COUNTED_FROM = 25380, 34079, datetime(2024, 9, 2, tzinfo=UTC)
IDS_A_SECOND = 10
BATCH_CONTEXT, ITEM_CONTEXT = "#metadata/Odata.CSC.BatchOrder", "#metadata/OData.CSC.BatchorderItem"


class Refusal(Exception):
    """An answer with the service's `detail`: a text, {"message": text}, or a list of {loc, msg, type}."""

    def __init__(self, status: int, detail: Any, **headers: str):
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


class _Option(BaseModel):
    Name: str
    Value: StrictStr | StrictInt | StrictFloat | StrictBool


class _Body(BaseModel):
    """What both kinds of order have. BatchSize, BatchVolume and intermediate notifications are taken, and not used."""

    Name: str | None = None
    WorkflowName: str
    WorkflowOptions: list[_Option] = []
    Priority: int = Field(1, ge=0, le=100)
    NotificationEndpoint: str | None = None
    NotificationEpUsername: str | None = None
    NotificationEpPassword: str | None = None
    SendIntermediateNotifications: bool | None = None


class _BatchBody(_Body):
    IdentifierList: list[str] = Field(min_length=1)
    BatchSize: int | None = None
    BatchVolume: int | None = None

    @property
    def identifiers(self) -> list[str]:
        return self.IdentifierList


class _Reference(BaseModel):
    Reference: str
    ContentDate: Any = None


class _ProductionBody(_Body):
    InputProductReference: _Reference

    @property
    def identifiers(self) -> list[str]:
        return [self.InputProductReference.Reference]


class Hook:
    """The service: its orders, and the WSGI application ``app``.

    Parameters
    ----------
    identity:
        Whose tokens are accepted, and whose users DESP orders name.
    storage_url:
        Gives the address that ``storage.app`` is served at.
    queued, processing:
        Seconds that an item waits at least, and takes.
    """

    def __init__(
        self,
        identity: Identity,
        clock: Clock,
        traffic: Traffic,
        storage_url: Callable[[], str],
        queued: float = 1.0,
        processing: float = 2.0,
    ):
        self.identity, self.clock, self.traffic = identity, clock, traffic
        self.orders: dict[int, Order] = {}
        passed = int((clock.now() - COUNTED_FROM).total_seconds() * IDS_A_SECOND)
        self.first_order, self.first_item = FIRST_ORDER + passed, FIRST_ITEM + passed
        self.lock = threading.RLock()
        self.workflows, self.collections = _load()
        self.storage = TemporaryStorage(clock, storage_url)
        # Never ordered: shows which properties an order has, for filters on nothing.
        now, any_workflow = clock.now(), next(iter(self.workflows.values()))
        self.sample = Order(0, "", "", 1, any_workflow, "", [], now, items=[Item(0, "", now, now)])
        self._seal = Fernet(Fernet.generate_key())
        self.processor = Processor(self, queued, processing)
        self.app = _make_app(self)

    # --- who is asking ---

    def authenticate(self) -> dict:
        """The claims of the current request's bearer; raises Refusal (401)."""
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not bearer:
            raise Refusal(401, "Not authenticated", **{"WWW-Authenticate": "Bearer"})
        try:
            return self.identity.verify(bearer.strip())
        except jwt.InvalidTokenError as error:
            raise Refusal(401, str(error), **{"WWW-Authenticate": "Bearer"}) from None

    # --- ordering ---

    def check(self, body: _Body) -> dict:
        """The workflow that is wanted, if its options are right; raises Refusal."""
        workflow = self.workflows.get(body.WorkflowName)
        if workflow is None:
            raise Refusal(404, f"Workflow {body.WorkflowName} not found")
        known = {option["Name"]: option for option in workflow["options"]}
        wrong = []
        for i, option in enumerate(body.WorkflowOptions):
            if option.Name not in known:
                wrong.append(_wrong(i, "Name", f"{option.Name} is not an option of {body.WorkflowName}"))
                continue
            values, kind = known[option.Name].get("Value"), known[option.Name].get("Type")
            if values and option.Value not in values:
                wrong.append(_wrong(i, "Value", f"{option.Name} should be {' or '.join(values)}"))
            elif kind == "int" and not str(option.Value).lstrip("+-").isdecimal():
                wrong.append(_wrong(i, "Value", f"{option.Name} should be an integer"))
        if wrong:
            raise Refusal(422, wrong)
        given = {option.Name: option.Value for option in body.WorkflowOptions}
        if missing := [name for name in _needed(workflow, given) if name not in given]:
            raise Refusal(400, {"message": f"Missing workflow options: {', '.join(missing)}"})
        return workflow

    def order(self, body: _BatchBody | _ProductionBody) -> Order:
        """Take an order; raises Refusal."""
        workflow, now = self.check(body), self.clock.now()
        monthly, at_a_time = next((quota for role, quota in QUOTAS.items() if role in g.roles), QUOTAS["hook-low"])
        with self.lock:
            month = [o for o in self.of(g.user) if (o.submitted.year, o.submitted.month) == (now.year, now.month)]
            if sum(len(o.items) for o in month) + len(body.identifiers) > monthly:
                # Everything that was ordered counts, whatever became of it (chosen).
                wait = ceil((_next_month(now) - now).total_seconds())
                detail = {"message": f"The quota of {monthly} product orders a month is used up"}
                raise Refusal(429, detail, **{"Retry-After": str(wait)})
            order = Order(
                id=self.first_order + len(self.orders),
                owner=g.user,
                owner_id=g.user_id,
                at_a_time=at_a_time,
                workflow=workflow,
                name=body.Name,
                options=[{"Name": o.Name, "Value": self._sealed(o.Name, o.Value)} for o in body.WorkflowOptions],
                submitted=now,
                priority=body.Priority,
                endpoint=body.NotificationEndpoint,
                endpoint_user=body.NotificationEpUsername,
            )
            first = self.first_item + sum(len(o.items) for o in self.orders.values())
            ready = now + self.processor.queued
            order.items = [Item(first + i, name, ready, now) for i, name in enumerate(body.identifiers)]
            self.orders[order.id] = order
        return order

    def _sealed(self, name: str, value: Any) -> Any:
        """Secrets are kept and echoed as tokens that nobody else can read."""
        return self._seal.encrypt(str(value).encode()).decode() if is_secret(name) else value

    def options(self, order: Order) -> dict[str, Any]:
        """An order's options by name, with defaults and with its secrets readable: for the processing only."""
        values = {o["Name"]: o["Default"] for o in order.workflow["options"] if o.get("Default") is not None}
        for option in order.options:
            name, value = option["Name"], option["Value"]
            values[name] = self._seal.decrypt(value.encode()).decode() if is_secret(name) else value
        return values

    def forget(self, user: str) -> None:
        """Forget a user's orders: nobody finds them any more, and what is open ends. Ids are not given again."""
        with self.processor.pausing(), self.lock:
            for order in self.of(user):
                order.cancel(self.clock.now(), "Forgotten")
                order.owner = ""

    # --- reading ---

    def of(self, user: str) -> list[Order]:
        return [order for order in self.orders.values() if order.owner == user]

    def find(self, order_id: int, alone: bool = False) -> Order:
        """An order of the user who asks (``alone``: with a single item); raises Refusal (404)."""
        order = self.orders.get(order_id)
        if order is None or order.owner != g.user or (alone and len(order.items) != 1):
            raise Refusal(404, f"Order {order_id} not found")
        return order

    def finditem_form(self, order_id: int, item_id: int) -> Item:
        for item in self.find(order_id).items:
            if item.id == item_id:
                return item
        raise Refusal(404, f"Product {item_id} not found in order {order_id}")


# --- rules and tables ---


@cache
def _load() -> tuple[dict[str, dict], dict[str, str]]:
    """Workflows by name, each with all its options; and collections."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    tables = yaml.load((Path(__file__).parent / "hook_workflows.yml").read_text(), Loader=loader)  # noqa: S506
    for workflow in tables["workflows"]:
        workflow["options"] = [o for group in workflow["takes"] for o in tables["options"][group]]
        workflow["options"] += workflow.get("own", [])
        workflow["WorkflowVersion"] = "0.0.1"
    return {workflow["Name"]: workflow for workflow in tables["workflows"]}, tables["collections"]


def _needed(workflow: dict, given: dict) -> list[str]:
    """Names of the options that "Required" stands for with these values, and that have no default."""
    options = workflow["options"]
    values = {option["Name"]: option.get("Default") for option in options} | given
    return [
        option["Name"]
        for option in options
        if option["Required"]
        and option.get("Default") is None
        and all(values[name] == value for name, value in option.get("when", {}).items())
    ]


def _wrong(index: int, name: str, message: str) -> dict:
    return {"loc": ["body", "WorkflowOptions", index, name], "msg": message, "type": "value_error"}


def _next_month(now: datetime) -> datetime:
    first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + timedelta(days=32)).replace(day=1)


# --- the web application ---


def _make_app(service: Hook) -> Flask:
    app = Flask("hook")
    app.json.sort_keys = False

    @app.before_request
    def authorize() -> None:
        claims = service.authenticate()
        g.user, g.user_id, g.roles = claims["preferred_username"], claims["sub"], claims["realm_access"]["roles"]
        if not request.path.startswith(EXTERNAL) and ROLE not in g.roles:
            raise Refusal(403, f"Role {ROLE} is required")

    @app.errorhandler(Refusal)
    def refused(error: Refusal) -> Any:
        return jsonify({"detail": error.detail}), error.status, error.headers

    @app.errorhandler(HTTPException)
    def not_there(error: HTTPException) -> Any:
        return jsonify({"detail": error.name}), error.code

    @app.get(f"{ROOT}/Workflows")
    def workflows() -> Response:
        options = _query()
        expand = options.expand == "WorkflowOptions"
        old = expand and service.traffic.take("old-options", "hook")
        rows = [workflow_form(workflow, expand, old) for workflow in service.workflows.values()]
        return _answer(rows, list(rows[0]), "$metadata#Workflows/$entity", options, "WorkflowOptions")

    @app.post(f"{ROOT}/BatchOrder/OData.CSC.Order")
    def order_batch() -> Any:
        return _one(batch_order_form(service.order(_body(_BatchBody)))), 201

    @app.get(f"{ROOT}/BatchOrder")
    def batch_orders() -> Response:
        with service.lock:
            rows = [batch_order_form(order) for order in service.of(g.user)]
        return _answer(rows, list(batch_order_form(service.sample)), BATCH_CONTEXT)

    @app.get(f"{ROOT}/BatchOrder(<int:order_id>)")
    def batch_order(order_id: int) -> Response:
        with service.lock:
            order = service.find(order_id)
            return _one(batch_order_form(order) | {"Summary": summary_form(order)})

    @app.get(f"{ROOT}/BatchOrder(<int:order_id>)/Products")
    def items(order_id: int) -> Response:
        with service.lock:
            order = service.find(order_id)
            rows = [item_form(order, item) for item in order.items]
        return _answer(rows, [*rows[0], "StatusMessage"], ITEM_CONTEXT)

    @app.get(f"{ROOT}/BatchOrder(<int:order_id>)/Product(<int:item_id>)")
    def item(order_id: int, item_id: int) -> Response:
        with service.lock:
            found = service.finditem_form(order_id, item_id)
            return _one(item_form(service.find(order_id), found), ITEM_CONTEXT)

    @app.get(f"{ROOT}/BatchOrder(<int:order_id>)/Product(<int:item_id>)/$value")
    def download(order_id: int, item_id: int) -> Any:
        link = service.finditem_form(order_id, item_id).fresh_link
        if link is None:  # not finished, or in a private storage
            raise Refusal(404, f"Product {item_id} has nothing to download")
        # To the object storage or as a stream: no published source tells which.
        return redirect(link, 307)

    @app.route(f"{ROOT}/BatchOrder(<int:order_id>)/OData.CSC.Cancel", methods=["GET", "POST"])
    def cancel_batch(order_id: int) -> Response:
        # Not published for batch orders: chosen like that of production orders.
        with service.lock:
            order = service.find(order_id)
            order.cancel(service.clock.now(), "Cancelled by the user")
            return _one(batch_order_form(order) | {"Summary": summary_form(order)})

    @app.get(f"{ROOT}/ProductionOrders")
    def production_orders() -> Response:
        with service.lock:
            rows = [production_order_form(order) for order in service.of(g.user) if len(order.items) == 1]
        return _answer(rows, list(production_order_form(service.sample)), "$metadata#ProductionOrder/$entity")

    @app.get(f"{ROOT}/ProductionOrders(<int:order_id>)")
    def production_order(order_id: int) -> Response:
        with service.lock:
            return _one(production_order_form(service.find(order_id, alone=True)), "$metadata#OData.CSC.Order")

    @app.post(f"{ROOT}/ProductionOrder/OData.CSC.Order")
    def order_production() -> Any:
        order = service.order(_body(_ProductionBody))
        return _one(production_order_form(order), "$metadata#OData.CSC.Order"), 201

    @app.post(f"{ROOT}/ProductionOrder/OData.CSC.EstimateCost")
    def estimate() -> Response:
        body = _body(_ProductionBody)
        service.check(body)
        return jsonify({"tokens": len(body.identifiers)})  # one for a product (chosen)

    @app.route(f"{ROOT}/ProductionOrder(<int:order_id>)/OData.CSC.Cancel", methods=["GET", "POST"])
    def cancel_production(order_id: int) -> Response:
        with service.lock:
            order = service.find(order_id, alone=True)
            order.cancel(service.clock.now(), "Cancelled by the user")
            return _one(production_order_form(order), "$metadata#OData.CSC.Order")

    _serve_catalogues(app, service)
    return app


def _serve_catalogues(app: Flask, service: Hook) -> None:
    """The catalogue of somebody else, that orders with an EXTERNAL source name: as STAC and as OData."""

    @app.get(f"{EXTERNAL}/collections/<collection>/items/<product>")
    def stacitem_form(collection: str, product: str) -> Response:
        if collection_of(product, service.collections) != collection:
            raise Refusal(404, f"Item {product} not found in collection {collection}")
        from .products import granule_footprint  # numpy: not at the start

        return jsonify(
            {
                "type": "Feature",
                "stac_version": "1.0.0",
                "id": product,
                "collection": collection,
                "geometry": granule_footprint(stem(product)),
                "properties": {"datetime": None},
                "assets": {},
                "links": [],
            }
        )

    @app.get(f"{EXTERNAL}/Products")
    def odata_products() -> Response:
        options = _query()
        from . import odata_filter  # not at the start: see odata.py

        # Every product of a known collection is there: those that the filter names are enough to try it on.
        try:
            named = odata_filter.strings(options.filter or "")
        except odata.BadQuery as error:
            raise Refusal(400, str(error)) from None
        named = [name for name in named if collection_of(name, service.collections)]
        rows = [{"Id": str(i), "Name": name, "Online": True} for i, name in enumerate(named)]
        return _answer(rows, ["Id", "Name", "Online"], "$metadata#Products", options)


def _body[T: BaseModel](kind: type[T]) -> T:
    """The JSON of a request, whatever its Content-Type says."""
    try:
        return kind.model_validate_json(request.get_data())
    except ValidationError as error:
        raise Refusal(422, _details(error, "body")) from None


def _query() -> odata.Options:
    try:
        return odata.Options.of(request.args.to_dict())
    except ValidationError as error:
        raise Refusal(422, _details(error, "query")) from None


def _details(error: ValidationError, where: str) -> list[dict]:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return [{"loc": [where, *each["loc"]], "msg": each["msg"], "type": each["type"]} for each in found]


def _one(entity: dict, context: str = BATCH_CONTEXT) -> Response:
    return jsonify({"@odata.context": context, "value": entity})


def _answer(
    rows: list[dict],
    fields: list[str],
    context: str,
    options: odata.Options | None = None,
    expandable: str | None = None,
) -> Response:
    options = options or _query()
    if options.expand not in (None, expandable):
        raise Refusal(400, f"Could not find a property named '{options.expand}'")
    try:
        page = odata.page(rows, fields, options, request.base_url)
    except odata.BadQuery as error:
        raise Refusal(400, str(error)) from None
    return jsonify({"@odata.context": context} | page)
