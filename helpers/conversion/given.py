"""What a notebook gives to the flow that it runs, and a deployed flow does without.

In a module of its own: Prefect sends the flow's module to other processes as it is, and context variables cannot go
along.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..settings import Settings

_settings: ContextVar[Settings | None] = ContextVar("settings", default=None)
_show: ContextVar[Callable[[str], object] | None] = ContextVar("show", default=None)


@contextmanager
def given(settings: Settings, show: Callable[[str], object]) -> Iterator[None]:
    """For the flows that run within: these settings, and who gets their lines."""
    tokens = _settings.set(settings), _show.set(show)
    try:
        yield
    finally:
        _settings.reset(tokens[0])
        _show.reset(tokens[1])


def settings() -> Settings | None:
    """The settings, if they were given."""
    return _settings.get()


def show(line: str) -> None:
    """Show a line to who asked for it, if anybody."""
    if shown := _show.get():
        shown(line)
