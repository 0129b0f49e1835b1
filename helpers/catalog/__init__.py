"""From objects in a bucket to a searchable STAC catalogue: items, messages, the loader, and what repairs them.

``wanted`` and ``left_here`` say what there is, ``create_item`` describes it, ``publish`` and ``publish_objects``
announce it, ``consume`` loads it into the catalogue that ``connect`` opens; ``letters`` and ``compare`` find what went
wrong on the way. For AWS Lambda there is ``helpers.catalog.loading.handler``.
"""

from importlib import import_module
from typing import Any

#: Where the public names are. Imported when they are asked for: a Lambda function has no use for most, nor time.
_PLACES = {
    "dead_letters": ("grouped", "letters", "redrive"),
    "drift": ("compare", "repair"),
    "gdal": ("reading",),
    "generating": ("create_item", "kinds", "register"),
    "loading": ("Loader", "consume"),
    "publishing": ("key_of", "publish", "publish_objects"),
    "running": ("check", "clean_up", "remember"),
    "store": ("connect",),
    "taking_in": ("distinct", "extent", "left_here", "noted", "of_rspy", "wanted"),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}
__all__ = ["archive_letters", *_MODULES]


def __getattr__(name: str) -> Any:
    if name == "archive_letters":
        return import_module(".dead_letters", __name__).archive
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
