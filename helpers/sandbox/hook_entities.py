"""Orders and items of the Hook stand-in: what they are, and the forms in which they travel."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

QUEUED, IN_PROGRESS, COMPLETED, FAILED, CANCELLED = "queued", "in_progress", "completed", "failed", "cancelled"
#: A batch order's WorkflowId less that of the workflow: 17 and 11 for data-harvest, chosen for the others.
BATCH_WORKFLOW = 6
#: StatusMessage of an order; an order that failed or was cancelled says what its item says (chosen).
MESSAGES = {
    QUEUED: "request is queued for processing",
    IN_PROGRESS: "request is under processing",
    COMPLETED: "requested output product is available",
}


@dataclass
class Item:
    """One product of an order."""

    id: int
    identifier: str
    ready: datetime  #: it waits at least until then
    changed: datetime
    status: str = QUEUED
    message: str | None = None
    ends: datetime | None = None  #: when processing will be over
    completed: datetime | None = None
    name: str | None = None
    size: int | None = None  #: bytes in the storage
    link: str | None = None
    fresh_link: str | None = None  #: good for all of the object's time, whatever became of ``link``

    def become(self, status: str, when: datetime, message: str | None = None, **more: Any) -> None:
        self.status, self.changed, self.message = status, when, message
        for name, value in more.items():
            setattr(self, name, value)


@dataclass
class Order:
    """One order of one user, with one item for each product. ``options`` as sent, but with secrets sealed."""

    id: int
    owner: str
    owner_id: str
    at_a_time: int  #: items that are processed together, by the user's role
    workflow: dict
    name: str | None
    options: list[dict]
    submitted: datetime
    priority: int = 1
    endpoint: str | None = None
    endpoint_user: str | None = None
    estimated: datetime | None = None
    items: list[Item] = field(default_factory=list)

    @property
    def status(self) -> str:
        """Of all items together. There is no "partially": one that failed makes the order failed (chosen)."""
        found = {item.status for item in self.items}
        if found == {QUEUED}:
            return QUEUED
        if found & {QUEUED, IN_PROGRESS}:
            return IN_PROGRESS
        return next(status for status in (FAILED, COMPLETED, CANCELLED) if status in found)

    def cancel(self, when: datetime, message: str) -> None:
        """Items in the queue end at once; items in processing finish."""
        for item in self.items:
            if item.status == QUEUED:
                item.become(CANCELLED, when, message)


def is_secret(name: str) -> bool:
    """Is the value of an option with this name a secret?"""
    return any(word in name for word in ("password", "secret"))


# --- as they travel ---


def workflow_form(workflow: dict, options: bool, old: bool) -> dict:
    kind = workflow.get("InputProductType")
    entity = {
        "Id": workflow["Id"],
        "Uuid": None,
        "Name": workflow["Name"],
        "DisplayName": workflow["DisplayName"],
        "Documentation": None,
        "Description": workflow["Description"],
        "InputProductType": kind,
        "InputProductTypes": [kind] if kind else [],
        "OutputProductType": None,
        "OutputProductTypes": [],
        "WorkflowVersion": workflow["WorkflowVersion"],
        "WorkflowOptions": [_option(option, old) for option in workflow["options"]],
        "CustomInputSource": False,
        "InputProductStatusOffline": False,
    }
    if not options:
        del entity["WorkflowOptions"]
    return entity


def _option(option: dict, old: bool) -> dict:
    values = option.get("Value")
    if values and not old:
        values = [{"value": value, "condition": None} for value in values]
    return {
        "Name": option["Name"],
        "Description": option["Description"],
        "Type": option.get("Type", "str"),
        "Default": option.get("Default"),
        "Value": values,
        "Required": option["Required"],
    }


def batch_order_form(order: Order) -> dict:
    workflow = order.workflow
    own = [{"Name": "platform", "Value": "dedl"}, {"Name": "version", "Value": workflow["WorkflowVersion"]}]
    return {
        "Name": order.name,
        "Priority": order.priority,
        "WorkflowName": workflow["Name"],
        "NotificationEndpoint": order.endpoint,
        "NotificationEpUsername": order.endpoint_user,
        "NotificationStatus": None,
        "WorkflowOptions": own + order.options,
        "Id": order.id,
        "Status": order.status,
        "SubmissionDate": _date(order.submitted),
        "EstimatedDate": _date(order.estimated),
        "KeycloakUUID": order.owner_id,
        "WorkflowId": int(workflow["Id"]) + BATCH_WORKFLOW,
        "WorkflowDisplayName": workflow["DisplayName"],
        "WorkflowVersion": workflow["WorkflowVersion"],
    }


def summary_form(order: Order) -> dict:
    def count(*statuses: str) -> int:
        return sum(item.status in statuses for item in order.items)

    return {
        "status": order.status,
        "processing_order_items_count": count(IN_PROGRESS),
        "downloading_order_items_count": 0,
        "done_order_items_count": count(COMPLETED),
        "already_done_order_items_count": 0,
        "queued_order_items_count": count(QUEUED),
        "failed_or_cancelled_order_items_count": count(FAILED, CANCELLED),
        "last_order_item_change_timestamp": _date(max(item.changed for item in order.items)),
    }


def item_form(order: Order, item: Item) -> dict:
    entity = {
        "Id": item.id,
        "BatchOrderId": order.id,
        "InputProductReference": item.identifier,
        "SubmissionDate": _date(order.submitted),
        "Status": item.status,
        "ProcessedName": item.name,
        "ProcessedSize": item.size,
        "OutputUUID": None,
        "StatusMessage": item.message,
        "CompletedDate": _date(item.completed),
        "DownloadLink": item.link,
        "NotificationStatus": None,
    }
    if item.message is None:  # not null but absent, as long as there is nothing to say
        del entity["StatusMessage"]
    return entity


def production_order_form(order: Order) -> dict:
    (item,) = order.items
    batch = batch_order_form(order)
    return {
        "Id": str(order.id),
        "Status": order.status,
        "StatusMessage": MESSAGES.get(order.status, item.message),
        **{name: batch[name] for name in ("SubmissionDate", "Name", "EstimatedDate")},
        "InputProductReference": {"Reference": item.identifier, "ContentDate": None},
        "WorkflowOptions": [option for option in batch["WorkflowOptions"] if not is_secret(option["Name"])],
        "WorkflowName": batch["WorkflowName"],
        "WorkflowId": int(order.workflow["Id"]),
        **{name: batch[name] for name in batch if name == "Priority" or name.startswith("Notification")},
    }


def _date(moment: datetime | None) -> str | None:
    return moment and moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
