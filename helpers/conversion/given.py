"""What a notebook gives to the flow that it runs, and a deployed flow does without.

In a module of its own: Prefect sends the flow's module to other processes as it is, and context variables cannot go
along.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..settings import Settings
from ..waiting import Watcher

_settings: ContextVar[Settings | None] = ContextVar("settings", default=None)
_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def given(settings: Settings, watcher: Watcher) -> Iterator[None]:
    """For the flows that run within: these settings, and who is told of their steps."""
    tokens = _settings.set(settings), _watcher.set(watcher)
    try:
        yield
    finally:
        _settings.reset(tokens[0])
        _watcher.reset(tokens[1])


def settings() -> Settings | None:
    """The settings, if they were given."""
    return _settings.get()


def watcher() -> Watcher:
    """Who asked to be told of the steps; somebody who says nothing, if nobody did."""
    return _watcher.get() or Watcher(lambda line: None)
