"""What changes while a cell runs: a board of things that are waited for, and how far copies and downloads are.

Both are one output of the cell, replaced as things go on: no widgets. They move in JupyterLab and under papermill, and
what they were last stays on paper. A terminal and a plain script get lines.
"""

import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import copy_context
from datetime import UTC, datetime
from html import escape
from typing import Any

from IPython import get_ipython
from IPython.display import display, update_display

from ..progress import Lines, Moving, Progress
from ..waiting import Change, Watcher
from . import front_end

#: A sign for each kind of state; the words beside it say the same.
WAITS, WORKS, GOOD, BAD = "○", "●", "✓", "✗"
SIGNS = {
    **dict.fromkeys(("pending", "queued", "accepted", "expected"), WAITS),
    **dict.fromkeys(("succeeded", "completed", "converted", "present", "successful"), GOOD),
    **dict.fromkeys(("failed", "cancelled", "dismissed", "vanished"), BAD),
}
#: Colour-blind safe (Okabe and Ito), and only ever beside sign and word.
COLOURS = {WAITS: "#999999", WORKS: "#56B4E9", GOOD: "#009E73", BAD: "#D55E00"}
#: Of what was announced, and has not begun.
EXPECTED = "expected"
#: Seconds between two pictures of a board, and of a progress, at least.
BOARD_EVERY, PROGRESS_EVERY = 0.5, 0.25
#: Seconds after which time has to go on although nothing happens: while somebody looks, and for the record.
LOOKED_AT, ON_PAPER = 1.0, 60.0
#: Seconds over which a speed is taken, and from which on one is told at all.
WINDOW, KNOWN = 10.0, 0.5
#: How much of each new estimate of the time left is believed.
TRUST = 0.3

#: Lines beside board and bar: the last so many.
NOTES = 20
#: Rows of a board at most; and characters of a picture from which on it is painted less often: all of it is sent.
ROWS, LARGE = 100, 10_000
COLUMNS = ("name", "state", "for", "so far (UTC)")
MUTED = "color:var(--jp-ui-font-color2,#595959)"
LEFT = "text-align:left;vertical-align:top"


def board(title: str) -> Watcher:
    """A board for ``show`` of whatever waits: a row for each item, with its state, since when, and those before.

    Parameters
    ----------
    title:
        What is waited for: "HyP3 jobs". Where there is no notebook, lines are shown as ever.
    """
    return Board(title) if _in_a_notebook() else Watcher()


def progress(title: str, unit: str = "files") -> Progress:
    """A bar for ``show`` of whatever copies, downloads or loads: how much of how much, how fast, how long still.

    Parameters
    ----------
    title:
        What is going on: "Copies". Where there is no notebook, lines are shown as ever.
    unit:
        What is counted, in the plural.

    It can be used alone, too; S3 then tells it what comes::

        with notebook.progress("Download") as bar:
            bar.begin(files=1, size=size)
            s3.download_file(bucket, key, target, Callback=bar.of(key))
            bar.finished(key)
    """
    if _in_a_notebook():
        return Bar(title, unit)
    return Lines() if unit == "files" else Progress()


def _in_a_notebook() -> bool:
    return getattr(get_ipython(), "kernel", None) is not None


class Live:
    """One output, painted again when something has changed, or time has gone on; never more often than ``every`` s.

    Painting is done by a thread of its own: who reports a change only sets a flag.

    Parameters
    ----------
    paint:
        Makes HTML and text.
    """

    def __init__(self, paint: Callable[[], tuple[str, str]], every: float):
        self._paint, self._every, self._id = paint, every, uuid.uuid4().hex
        self._changed, self._over = threading.Event(), threading.Event()
        self._beat = LOOKED_AT if front_end.attended() else ON_PAPER
        self._showing = threading.Lock()
        self._last = self._picture()
        display(self._last, raw=True, display_id=self._id)
        # In the context of this cell: the kernel sends what it paints as an output of this cell.
        self._painter = threading.Thread(target=copy_context().run, args=(self._work,), daemon=True)
        self._painter.start()

    def changed(self) -> None:
        if not self._changed.is_set():
            self._changed.set()

    def end(self) -> None:
        """Paint for the last time."""
        self._over.set()
        self._changed.set()
        try:
            self._painter.join()
        finally:  # interrupted once more: what it was last is told all the same
            self._show()

    def _work(self) -> None:
        while not self._over.wait(self._pause()):
            self._changed.wait(self._beat)
            self._changed.clear()
            if not self._over.is_set():
                self._show()

    def _pause(self) -> float:
        """Seconds until the next picture: longer in proportion, if pictures are large."""
        return self._every * max(1.0, len(self._last["text/html"]) / LARGE)

    def _show(self) -> None:
        # A view that cannot be shown is no reason to stop the work, or to hide why that stopped.
        with self._showing, suppress(Exception):
            picture = self._picture()
            if picture != self._last:
                self._last = picture
                update_display(picture, raw=True, display_id=self._id)

    def _picture(self) -> dict[str, str]:
        try:
            html, plain = self._paint()
        except Exception as error:  # noqa: BLE001 - of whatever kind; not its text, which nobody has checked
            plain = f"This view cannot be drawn ({type(error).__name__}); the work is not touched by that."
            html = f"<p>{plain}</p>"
        return {"text/html": html, "text/plain": plain}


class Board(Watcher):
    """A table of what is waited for; see :func:`board`."""

    def __init__(self, title: str, live: Callable[..., Any] = Live):
        super().__init__(self._note)
        self.title, self._make, self._live, self._lock = title, live, None, threading.RLock()
        self._forget((), None)

    def _forget(self, finished: Iterable[str], deadline: float | None) -> None:
        self._finished, self._deadline = frozenset(finished), deadline
        self._changes: dict[str, list[Change]] = {}
        self._notes = deque[str](maxlen=NOTES)
        self._problem, self._how, self._began = "", "", time.monotonic()
        self._took: float | None = None
        self._ended: datetime | None = None

    def _note(self, line: str) -> None:
        with self._lock:
            self._notes.append(line)
        self._tell()

    def begin(self, finished: Iterable[str], deadline: float | None = None) -> None:
        if self._live and self._took is None:  # nobody has said how that ended
            self._finish("not followed to its end")
        with self._lock:
            self._forget(finished, deadline)
        self._live = self._make(self._paint, BOARD_EVERY)

    def expect(self, items: Iterable[str]) -> None:
        with self._lock:
            for item in items:
                self._changes.setdefault(item, [])
        self._tell()

    def changed(self, change: Change, before: str = "") -> None:
        with self._lock:
            self._changes.setdefault(change.item, []).append(change)
        self._tell()

    def looked(self, problem: str = "") -> None:
        if problem != self._problem:
            self._problem = problem
            self._tell()

    def end(self, error: BaseException | None = None) -> None:
        self._finish(_how(error))

    def _finish(self, how: str) -> None:
        with self._lock:
            self._took, self._ended = time.monotonic() - self._began, datetime.now(UTC)
            self._how = how
        if self._live:
            self._live.end()

    def _tell(self) -> None:
        if self._live:
            self._live.changed()

    # --- painting ---

    def _paint(self) -> tuple[str, str]:
        with self._lock:
            rows = {item: list(changes) for item, changes in self._changes.items()}
            notes, heading = list(self._notes), self._heading()
        rows, left = self._first(rows)
        body = "".join(self._row(item, changes) for item, changes in rows.items())
        head = "".join(f"<th scope='col' style='{LEFT}'>{name}</th>" for name in COLUMNS)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if rows else ""
        more = "".join(f"<div style='{MUTED}'>{escape(note)}</div>" for note in filter(None, (left, *notes)))
        html = (
            f"<div class='recipes-board' role='group' aria-label='{escape(self.title, quote=True)}'"
            f" style='overflow-x:auto'><div><b>{escape(self.title)}</b>: {escape(heading)}</div>{table}{more}</div>"
        )
        lines = [line for _, line in sorted((c.time, _line(c, before)) for c, before in _in_pairs(rows.values()))]
        waiting = [f"{item}: {EXPECTED}" for item, changes in rows.items() if not changes]
        return html, "\n".join(filter(None, [f"{self.title}: {heading}", *lines, *waiting, left, *notes]))

    def _first(self, rows: dict[str, list[Change]]) -> tuple[dict[str, list[Change]], str]:
        """The rows to show: all, or those that matter most, in their order; and how many there are beside them."""
        if len(rows) <= ROWS:
            return rows, ""
        states = {item: changes[-1].state if changes else EXPECTED for item, changes in rows.items()}

        def rank(item: str) -> int:
            if states[item] in self._finished:
                return 0 if _sign(states[item]) == BAD else 3
            return 2 if _sign(states[item]) == WAITS else 1

        shown = sorted(rows, key=rank)[:ROWS]
        others = Counter(_words(states[item]) for item in rows.keys() - set(shown))
        counts = ", ".join(f"{count:,} {state}" for state, count in others.most_common())
        return {item: rows[item] for item in shown}, f"... and {others.total():,} more: {counts}"

    def _heading(self) -> str:
        states = [changes[-1].state if changes else EXPECTED for changes in self._changes.values()]
        ended = [state for state in states if state in self._finished]
        others = [_words(state) for state in states if state not in self._finished]
        bad = sum(_sign(state) == BAD for state in ended)
        counts = [f"{len(ended)} of {len(states)} finished" + (f" ({bad} failed)" if bad else "")] if states else []
        counts += [f"{others.count(state)} {state}" for state in dict.fromkeys(others)]
        took = _clock(time.monotonic() - self._began if self._took is None else self._took)
        if self._took is None:
            limit = "" if self._deadline is None else f" of at most {_limit(self._deadline)}"
            when = took + limit
        else:
            when = f"{self._how} (after {took})" if self._how else f"took {took}"
        problem = f"no answer at the last look: {self._problem}" if self._problem and self._took is None else ""
        return "; ".join(filter(None, (", ".join(counts), when, problem)))

    def _row(self, item: str, changes: list[Change]) -> str:
        state = changes[-1].state if changes else EXPECTED
        sign = _sign(state)
        said = changes[-1].why if changes else ""
        why = f"<div style='{MUTED};max-width:40em'>{escape(said)}</div>" if said else ""
        so_far = ", ".join(f"{_words(change.state)} {change.time:%H:%M:%S}" for change in changes)
        cells = (
            f"<span aria-hidden='true' style='color:{COLOURS[sign]}'>{sign}</span> {escape(_words(state))}{why}",
            self._since(changes),
            escape(so_far),
        )
        rest = "".join(f"<td style='{LEFT}'>{cell}</td>" for cell in cells)
        name = f"<th scope='row' style='{LEFT};font-weight:normal;overflow-wrap:anywhere'>{escape(item)}</th>"
        return f"<tr>{name}{rest}</tr>"

    def _since(self, changes: list[Change]) -> str:
        """How long it has been in its state; what has finished, how long that took since it was first seen."""
        if not changes:
            return ""
        if changes[-1].state in self._finished:
            return f"after {_clock((changes[-1].time - changes[0].time).total_seconds())}" if changes[1:] else "-"
        return _clock(((self._ended or datetime.now(UTC)) - changes[-1].time).total_seconds())


def _in_pairs(rows: Iterable[list[Change]]) -> Iterable[tuple[Change, str]]:
    """Each change, and the state before it."""
    return [pair for row in rows if row for pair in zip(row, ["", *(c.state for c in row[:-1])], strict=True)]


def _line(change: Change, before: str) -> str:
    """The line that a terminal would have got."""
    lines: list[str] = []
    Watcher(lines.append).changed(change, before)
    return lines[0]


def _how(error: BaseException | None) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; run the cell again to carry on"
    return "" if error is None else "stopped, the message below says why"


def _sign(state: str) -> str:
    return SIGNS.get(state.lower(), WORKS)


def _words(state: str) -> str:
    return state.lower().replace("_", " ")


def _clock(seconds: float) -> str:
    """``0:42``, ``1:02:03``."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _limit(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"


class Bar(Progress):
    """How far something is; see :func:`progress`."""

    def __init__(self, title: str, unit: str = "files", live: Callable[..., Any] = Live):
        self.title, self.unit, self._make, self._live = title, unit, live, None
        super().__init__(self._note)

    def _reset(self, files: int | None, size: int | None) -> None:
        super()._reset(files, size)
        self._notes = deque[str](maxlen=NOTES)
        self._how, self._left, self._estimated, self._problem = "", None, self.began, ""
        self._seen = deque([(self.began, 0, 0)])  # when, bytes, files

    def _note(self, line: str) -> None:
        with self.lock:
            self._notes.append(line)
        self._changed()

    def detail(self, line: str) -> None:
        pass  # the counts say it

    def begin(self, files: int | None, size: int | None = None) -> None:
        if self._live and not self.ended:  # nobody has said how that ended
            self._finish("not followed to its end")
        super().begin(files, size)
        self._live = self._make(self._paint, PROGRESS_EVERY)

    def tries_again(self, name: str, why: str = "") -> None:
        self._problem = why
        super().tries_again(name, why)

    def finished(self, name: str, size: int | None = None) -> None:
        self._problem = ""
        super().finished(name, size)

    def set_position(self, moving: Moving, at: int, came: int = 0) -> None:
        super().set_position(moving, at, came)
        self._changed()

    def end(self, error: BaseException | None = None) -> None:
        if not self.ended:
            self._finish(_how(error), error)

    def _finish(self, how: str, error: BaseException | None = None) -> None:
        with self.lock:
            self._how = how
        super().end(error)
        if self._live:
            self._live.end()

    def _changed(self) -> None:
        if self._live:
            self._live.changed()

    # --- painting ---

    def _paint(self) -> tuple[str, str]:
        with self.lock:
            said = self._final() if self.ended else self._going_on()
            share, notes = self._share(), list(self._notes)
        bar = ""
        if not self.ended or self._how or self.failed:
            value = "" if share is None else f" value='{share:.3f}' max='1'"
            label = escape(f"{self.title}: how much is done", quote=True)
            bar = f"<progress{value} aria-label='{label}' style='width:100%;max-width:40em'></progress>"
        more = "".join(f"<div style='{MUTED}'>{escape(note)}</div>" for note in notes)
        html = (
            f"<div class='recipes-progress' role='group' aria-label='{escape(self.title, quote=True)}'>"
            f"<div><b>{escape(self.title)}</b>: {escape(said)}</div>{bar}{more}</div>"
        )
        return html, "\n".join([f"{self.title}: {said}", *notes])

    def _share(self) -> float | None:
        """How much of all is done, from 0 to 1; None: not known."""
        if self.bytes:
            return min(self.there / self.bytes, 1.0)
        return (self.done + self.failed) / self.files if self.files else None

    def _going_on(self) -> str:
        files, size = self._rates(now := time.monotonic())
        of = "" if self.files is None else f" of {self.files:,}"
        counted = f"{self.done:,}{of} {self.unit}"
        mine = [counted, f"{_megabytes(self.there)} of {_megabytes(self.bytes)} MB" if self.bytes else ""]
        speed = [f"{_number(files)} {self.unit}/s", f"{_number(size and size / 1e6)} MB/s" if self.bytes else ""]
        left = f"{self._time_left(now, files, size)} left" if self.files is not None else ""
        return "; ".join(filter(None, (_list(mine), _list(speed), left, *self._troubles(), self._problem)))

    def _final(self) -> str:
        seconds = max(self.ended - self.began, 0.001)
        if not self.done and not self.failed and not self.there and not self._how:
            return f"no {self.unit}: nothing was to be done"
        sized = bool(self.bytes)
        unit = self.unit.removesuffix("s") if self.done == 1 else self.unit
        amount = _list([f"{self.done:,} {unit}", f"{_megabytes(self.there)} MB" if sized else ""])
        speed = _list([
            f"{_number(self.done / seconds)} {self.unit}/s",
            f"{_number(self.came / 1e6 / seconds)} MB/s" if sized else "",
        ])  # fmt: skip
        before = self.there - self.came
        already = f"{_megabytes(before)} MB of it were there before" if sized and before > 0.005 * self.there else ""
        all_of_it = f"{amount} in {_duration(seconds)} ({speed})"
        missing = "" if self.files is None else (self.files - self.done - self.failed)
        undone = f"{missing:,} not tried" if missing else ""
        return "; ".join(filter(None, (self._how, all_of_it, already, *self._troubles(), undone)))

    def _troubles(self) -> list[str]:
        counts = ((self.failed, "failed"), (self.again, "tried again"))
        return [f"{count:,} {what}" for count, what in counts if count]

    def _rates(self, now: float) -> tuple[float | None, float | None]:
        """Files and bytes a second over the last seconds; None while it is too early to tell."""
        while len(self._seen) > 1 and now - self._seen[1][0] >= WINDOW:
            self._seen.popleft()
        since, came, done = self._seen[0]
        self._seen.append((now, self.came, self.done))
        if (span := now - since) < KNOWN:
            return None, None
        return (self.done - done) / span, (self.came - came) / span

    def _time_left(self, now: float, files: float | None, size: float | None) -> str:
        """Minutes and seconds: by bytes or by files, whichever takes longer; new estimates are believed in part."""
        to_come = [((self.files or 0) - self.done - self.failed, files), ((self.bytes or 0) - self.there, size)]
        guesses = [left / speed for left, speed in to_come if speed and left > 0]
        if not guesses or any(left > 0 and not speed for left, speed in to_come[1:] if self.bytes):
            self._left = None
            return "-"
        before = None if self._left is None else max(self._left - (now - self._estimated), 0)
        self._left = max(guesses) if before is None else (1 - TRUST) * before + TRUST * max(guesses)
        self._estimated = now
        return _clock(self._left)


def _list(parts: list[str]) -> str:
    return ", ".join(filter(None, parts))


def _number(value: float | None) -> str:
    """With the digits that matter: ``-``, ``0.4``, ``14.6``, ``530``."""
    return "-" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _megabytes(size: int | None) -> str:
    return f"{(size or 0) / 1e6:,.1f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{_clock(seconds)} min"
