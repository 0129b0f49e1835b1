"""How copies and downloads go: counted as they come, from any thread, for whoever shows it.

A room that moves files is given ``show``: something that shows a line, or a :class:`Progress`, such as a notebook's
bar.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

#: Seconds between two lines about a long run.
TELL_EVERY = 5.0


class Moving:
    """One file on its way: where it is, and how long it will be. Called with the bytes that came, as boto3 does."""

    def __init__(self, progress: "Progress"):
        self._progress, self.at, self.size = progress, 0, None

    def start(self, at: int, size: int | None = None) -> None:
        """It goes on (or begins again) at this byte, of ``size`` (None: not known). What is there, did not come now."""
        with self._progress.lock:
            self._progress.set_position(self, at)
            self._progress.set_size(self, size)

    def __call__(self, came: int) -> None:
        with self._progress.lock:
            self._progress.set_position(self, self.at + came, came)


class Progress:
    """Counts; what is shown of it, if anything, is made by others from the counts. Each call costs the same, always.

    Attributes
    ----------
    files, bytes:
        How many there are to bring (None: not known).
    done, failed, again:
        Files that are there; that will not come; and how often one is tried again.
    there, came:
        Bytes of them that are there; and those that came now: what was there before makes no speed.
    """

    def __init__(self, show: Callable[[str], object] = print):
        self._show, self.lock = show, threading.RLock()
        self._reset(None, None)

    def _reset(self, files: int | None, size: int | None) -> None:
        self.files, self.bytes, self._sizes = files, size, size is None
        self.done = self.failed = self.again = self.there = self.came = 0
        self.began, self.ended = time.monotonic(), None
        self._moving: dict[str, Moving] = {}

    def __call__(self, line: str) -> None:
        """Something worth saying."""
        self._show(line)

    def detail(self, line: str) -> None:
        """A line about one file: nothing new for whoever shows the counts."""
        self._show(line)

    def begin(self, files: int | None, size: int | None = None) -> None:
        """So many files, and bytes in all; without these, what the files say when they start."""
        with self.lock:
            self._reset(files, size)
        self._changed()

    def of(self, name: str) -> Moving:
        """The file of this name, for who brings it; the same at each call."""
        with self.lock:
            return self._moving.setdefault(name, Moving(self))

    def finished(self, name: str, size: int | None = None) -> None:
        """It is there, with ``size`` bytes, however many of them were told before."""
        with self.lock:
            moving = self._moving.pop(name, None) or Moving(self)
            if size is not None:
                self.set_size(moving, size)
                self.set_position(moving, size, size - moving.at)
            self.done += 1
        self._changed()

    def gave_up(self, name: str, why: str = "") -> None:
        """It will not come."""
        with self.lock:
            if moving := self._moving.pop(name, None):
                self.set_position(moving, 0)
            self.failed += 1
        self._changed()

    def tries_again(self, name: str, why: str = "") -> None:
        """It did not come, and will be tried again."""
        with self.lock:
            self.again += 1
        self._changed()

    def end(self, error: BaseException | None = None) -> None:
        """No more will come: all did, or there was an error."""
        with self.lock:
            self.ended = time.monotonic()
        self._changed()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, where: object) -> None:
        self.end(error)

    # --- for Moving, with the lock held ---

    def set_position(self, moving: Moving, at: int, came: int = 0) -> None:
        self.there += at - moving.at
        self.came += max(came, 0)
        moving.at = at

    def set_size(self, moving: Moving, size: int | None) -> None:
        if self._sizes and size is not None:
            self.bytes = (self.bytes or 0) + size - (moving.size or 0)
            moving.size = size

    def _changed(self) -> None:
        """Somebody may want to look."""


class Lines(Progress):
    """A line every few seconds, and one at the end: done of all, failures, amount, speed."""

    def begin(self, files: int | None, size: int | None = None) -> None:
        self._told = time.monotonic()
        super().begin(files, size)

    def _changed(self) -> None:
        with self.lock:
            ended = self.done + self.failed
            now = time.monotonic()
            if not ended or self.ended or (now - self._told < TELL_EVERY and ended < (self.files or 0)):
                return
            self._told, seconds = now, max(now - self.began, 0.001)
            failed = f", {self.failed:,} failed" if self.failed else ""
            self(
                f"{self.done:,} of {self.files or 0:,} files{failed}, {self.there / 1e6:,.1f} MB,"
                f" {self.done / seconds:,.0f} files/s, {self.came / 1e6 / seconds:,.0f} MB/s"
            )


@contextmanager
def told(
    show: Callable[[str], object], files: int | None, size: int | None = None, *, lines: type[Progress] = Lines
) -> Iterator[Progress]:
    """``show`` as a :class:`Progress` that is told of beginning and end; as ``lines``, if it shows lines only."""
    progress = show if isinstance(show, Progress) else lines(show)
    try:
        progress.begin(files, size)
        yield progress
    except BaseException as error:
        progress.end(error)
        raise
    progress.end()


def tracked[Result](progress: Progress, name: str, do: Callable[[], Result]) -> Callable[[], Result]:
    """``do``, which tells how it ended."""

    def work() -> Result:
        try:
            result = do()
        except Exception as error:
            progress.gave_up(name, str(error))
            raise
        progress.finished(name)
        return result

    return work
