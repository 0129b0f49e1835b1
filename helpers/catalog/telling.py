"""Counts in words: one thing or several, and nothing said of what there is none of."""


def some(count: int, thing: str) -> str:
    """``1 item``, ``2 items``."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def told(*parts: tuple[int, str], none: str) -> str:
    """``2 stored, 1 stale``: each count before its words, in which ``item(s)`` is ``item`` or ``items``.

    What is not there is left out; if all of it, ``none`` is all there is to say.
    """
    said = [f"{count:,} {what.replace('(s)', '' if count == 1 else 's')}" for count, what in parts if count]
    return ", ".join(said) or none
