"""SAFE products become Zarr products in a catalogue: with the services of RS-PYTHON, or on this machine.

With the services, :func:`convert_on_demand` runs the Prefect flow :func:`on_demand_conversion`; without,
:func:`convert` and :func:`convert_many` do the same with EOPF and Dask. What takes long to import comes when it is
used.
"""

from importlib import import_module
from typing import Any

#: The room's modules that callers need, by the names in them.
_FROM = {
    "changes": "flow",
    "check": "planning",
    "clean_up": "cleaning",
    "convert_on_demand": "flow",
    "on_demand_conversion": "flow",
    "Converted": "here",
    "convert": "here",
    "convert_many": "here",
    "storage_options": "here",
}
__all__ = [*_FROM]


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_FROM[name]}", __name__), name)
