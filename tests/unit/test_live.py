"""Boards and bars: what they tell, how often, and what of them stays in an executed notebook."""

import re
import threading
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import nbclient
import nbformat
import pytest

from helpers import download, progress
from helpers.errors import FailedRemotely, TimedOut
from helpers.notebook import live
from helpers.waiting import Change, Watcher, until_finished, watched

FINISHED = ("SUCCEEDED", "FAILED")
NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)


class Clock:
    """Time as the test says."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(live.time, "monotonic", lambda: self.now)

    def after(self, seconds: float) -> None:
        self.now += seconds


class Picture:
    """Stands for the output: painted when the test wants to look."""

    def __init__(self, paint, every):
        self.paint, self.flagged = paint, 0

    def changed(self):
        self.flagged += 1

    def end(self):
        pass


class Words(HTMLParser):
    def __init__(self):
        super().__init__()
        self.words = []

    def handle_data(self, data):
        self.words.append(data)


def words(html: str) -> str:
    parser = Words()
    parser.feed(html)
    return " ".join(" ".join(parser.words).split())


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def board():
    return live.Board("Jobs", Picture)


@pytest.fixture
def bar(clock):
    return live.Bar("Copies", live=Picture)


def said(thing) -> str:
    """The text of it, of which the first line is also in its HTML."""
    html, plain = thing._paint()
    assert plain.splitlines()[0] in words(html).replace(" : ", ": ")
    return plain


# --- boards ---


def test_a_board_says_what_the_lines_say_and_how_it_stands(board):
    lines = []
    for watcher in (board, Watcher(lines.append)):
        watcher.begin(FINISHED, deadline=180 * 60)
        watcher.changed(Change(NOON, "a", "PENDING"))
        watcher.changed(Change(NOON, "b", "PENDING"))
        watcher.changed(Change(NOON + timedelta(seconds=62), "b", "FAILED", "no room"), before="PENDING")
    heading, *rest = said(board).splitlines()
    assert heading == "Jobs: 1 of 2 finished (1 failed), 1 pending; 0:00 of at most 180 min"
    assert rest == lines
    assert lines[-1] == "12:01:02  b: PENDING -> FAILED: no room"
    html, _ = board._paint()
    assert words(html).endswith(
        "name state for so far (UTC)"
        f" a ○ pending {re.search(r'pending (\S+)', words(html).partition('so far')[2])[1]} pending 12:00:00"
        " b ✗ failed no room after 1:02 pending 12:00:00, failed 12:01:02"
    )
    assert html.count("scope='col'") == 4 and html.count("scope='row'") == 2


def test_what_is_announced_is_on_the_board_before_it_begins(board):
    board.begin(FINISHED)
    board.expect(["a", "b"])
    board.changed(Change(NOON, "a", "RUNNING"))
    assert said(board).splitlines() == [
        "Jobs: 0 of 2 finished, 1 running, 1 expected; 0:00",
        "12:00:00  a: RUNNING",
        "b: expected",
    ]


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (KeyboardInterrupt(), "interrupted; run the cell again to carry on (after 0:42)"),
        (TimedOut("no answer"), "stopped, the message below says why (after 0:42)"),
    ],
)
def test_a_wait_that_is_cut_short_says_so(board, clock, error, how):
    with pytest.raises(type(error)), watched(board, FINISHED, 60):
        board.changed(Change(datetime.now(UTC), "a", "RUNNING"))
        clock.after(42)
        raise error
    assert said(board).splitlines()[0] == f"Jobs: 0 of 1 finished, 1 running; {how}"


def test_a_service_that_does_not_answer_is_told_until_it_does(board):
    board.begin(FINISHED)
    board.looked("answered 500")
    assert "no answer at the last look: answered 500" in said(board)
    board.looked()
    assert "no answer" not in said(board)


def test_what_services_say_is_no_html(board):
    board.begin(FINISHED)
    board.changed(Change(NOON, "<b>x</b>", "<script>", "<i>"))
    html, _ = board._paint()
    assert not re.search("<script>|<i>|<b>x", html)


def test_signs_and_words_tell_states_apart_without_colours(board):
    board.begin(FINISHED)
    for state in ("queued", "in_progress", "completed", "cancelled"):
        board.changed(Change(NOON, state, state))
    text = words(board._paint()[0])
    for pair in ("○ queued", "● in progress", "✓ completed", "✗ cancelled"):
        assert pair in text


def test_of_a_thousand_those_that_matter_are_shown_and_the_others_counted(board):
    board.begin(FINISHED)
    board.expect(f"later-{n}" for n in range(300))
    for n in range(700):
        state = "FAILED" if n in (5, 600) else "RUNNING" if n == 699 else "SUCCEEDED"
        board.changed(Change(NOON, f"item-{n}", state))
    html, plain = board._paint()
    rows = re.findall(r"<th scope='row'[^>]*>([^<]*)", html)
    assert rows == ["item-5", "item-600", "item-699", *(f"later-{n}" for n in range(97))]
    assert len(html) < 60_000
    more = "... and 900 more: 697 succeeded, 203 expected"
    assert more in words(html) and plain.splitlines()[-1] == more and len(plain.splitlines()) == 102
    assert "699 of 1000 finished (2 failed)" in plain


@pytest.mark.parametrize(
    "make", [lambda: (live.Board("Jobs", Picture), FINISHED), lambda: (live.Bar("Copies", live=Picture), 2)]
)
def test_what_is_begun_again_without_an_end_leaves_nothing_behind(make, monkeypatch):
    ended = []
    monkeypatch.setattr(Picture, "end", lambda self: ended.append(self.paint()[1]))
    thing, argument = make()
    thing.begin(argument)
    first = thing._live
    thing.begin(argument)
    assert thing._live is not first and len(ended) == 1 and "not followed to its end" in ended[0]
    thing.end()
    thing.begin(argument)
    assert len(ended) == 2


def test_who_is_interrupted_while_beginning_is_told_of_the_end(board, bar):
    for thing, following in ((board, watched(board, FINISHED)), (bar, progress.told(bar, 1))):
        ended, begin = [], thing.begin

        def interrupted(*arguments, begin=begin):
            begin(*arguments)
            raise KeyboardInterrupt

        thing.begin, thing._make = interrupted, lambda paint, every, ended=ended: Recorded(ended)
        with pytest.raises(KeyboardInterrupt), following:
            pass
        assert ended == [True]


class Recorded(Picture):
    def __init__(self, ended):
        super().__init__(None, 0)
        self.ended = ended

    def end(self):
        self.ended.append(True)


# --- bars ---


def test_a_bar_tells_how_much_how_fast_and_how_long_still(bar, clock):
    bar.begin(100, 100_000_000)
    assert said(bar) == "Copies: 0 of 100 files, 0.0 of 100.0 MB; - files/s, - MB/s; - left"
    for number in range(20):
        bar.finished(str(number), 1_000_000)
    clock.after(2)
    assert said(bar) == "Copies: 20 of 100 files, 20.0 of 100.0 MB; 10.0 files/s, 10.0 MB/s; 0:08 left"
    assert "<progress value='0.200' max='1' aria-label='Copies: how much is done'" in bar._paint()[0]
    clock.after(1.1)
    bar.end()
    assert said(bar) == "Copies: 20 files, 20.0 MB in 3.1 s (6.5 files/s, 6.5 MB/s); 80 not tried"


def test_the_speed_is_that_of_the_last_seconds_and_the_time_left_does_not_jump(bar, clock):
    bar.begin(1000, 1000_000_000)
    for number in range(300):
        if number % 10 == 0:
            clock.after(1)
            bar._paint()
        bar.finished(str(number), 1_000_000)
    clock.after(1)
    assert "10.0 files/s, 10.0 MB/s; 1:10 left" in said(bar)
    clock.after(9)  # a gap: the speed falls, and the estimate follows slowly
    text = said(bar)
    seconds = int(re.search(r"(\d+):(\d\d) left", text)[1]) * 60 + int(re.search(r"(\d+):(\d\d) left", text)[2])
    assert re.search(r"; 1\.0 files/s", text) and 61 < seconds < 700


def test_what_was_there_before_makes_no_speed(bar, clock):
    bar.begin(1, 100_000_000)
    moving = bar.of("a")
    moving.start(80_000_000, 100_000_000)
    clock.after(1)
    moving(10_000_000)
    assert said(bar) == "Copies: 0 of 1 files, 90.0 of 100.0 MB; 0.0 files/s, 10.0 MB/s; 0:01 left"
    moving.start(0)  # the server has another version: from the beginning
    assert "0.0 of 100.0 MB" in said(bar)
    moving.start(80_000_000)
    moving(20_000_000)
    bar.finished("a", 100_000_000)
    clock.after(1)
    bar.end()
    assert said(bar) == ("Copies: 1 file, 100.0 MB in 2.0 s (0.5 files/s, 15.0 MB/s); 70.0 MB of it were there before")


def test_files_whose_length_only_the_server_knows(bar, clock):
    bar.begin(2)
    assert said(bar) == "Copies: 0 of 2 files; - files/s; - left"
    bar.of("a").start(0, 30_000_000)
    clock.after(1)
    bar.of("a")(10_000_000)
    assert "0 of 2 files, 10.0 of 30.0 MB" in said(bar)
    bar.gave_up("a", "no")
    assert "0.0 of 30.0 MB" in said(bar) and "1 failed" in said(bar)


def test_nothing_to_do_and_nothing_in_it_is_no_nonsense(bar, clock):
    bar.begin(0, 0)
    assert said(bar) == "Copies: 0 of 0 files; - files/s; - left"
    bar.end()
    assert said(bar) == "Copies: no files: nothing was to be done"
    bar.begin(1, 0)
    bar.finished("empty", 0)
    clock.after(0.5)
    bar.end()
    assert said(bar) == "Copies: 1 file in 0.5 s (2.0 files/s)"


def test_a_bar_that_is_cut_short_says_so(bar, clock):
    with pytest.raises(KeyboardInterrupt), progress.told(bar, 2, 2_000_000):
        bar.finished("a", 1_000_000)
        bar.tries_again("b", "S3 asks for fewer requests")
        assert "1 tried again; S3 asks for fewer requests" in said(bar)
        clock.after(1)
        raise KeyboardInterrupt
    assert said(bar) == (
        "Copies: interrupted; run the cell again to carry on;"
        " 1 file, 1.0 MB in 1.0 s (1.0 files/s, 1.0 MB/s); 1 tried again; 1 not tried"
    )


def test_counts_are_right_whoever_tells(bar):
    bar.begin(800, 800_000)

    def tell(thread):
        for number in range(100):
            moving = bar.of(f"{thread} {number}")
            moving.start(0)
            for _ in range(10):
                moving(100)
            bar.finished(f"{thread} {number}", 1000)

    threads = [threading.Thread(target=tell, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (bar.done, bar.there, bar.came, bar._moving) == (800, 800_000, 800_000, {})


def test_work_says_how_it_ended(bar):
    bar.begin(2)

    def fail():
        raise FailedRemotely("no")

    work = {"good": lambda: 1, "bad": fail}
    results, failures = download.in_parallel({name: progress.tracked(bar, name, do) for name, do in work.items()})
    assert (results, failures) == ({"good": 1}, {"bad": "no"})
    assert (bar.done, bar.failed) == (1, 1)


# --- the output ---


def test_an_output_is_painted_seldom_however_much_happens_and_its_last_state_at_once(monkeypatch):
    shown, counted, ready = [], [0], threading.Event()
    monkeypatch.setattr(live, "display", lambda data, **more: shown.append(data["text/plain"]))

    def update(data, **more):
        shown.append(data["text/plain"])
        if len(shown) == 3:
            ready.set()

    monkeypatch.setattr(live, "update_display", update)
    output = live.Live(lambda: (f"<p>{counted[0]}</p>", str(counted[0])), every=0.02)
    began = live.time.monotonic()
    while not ready.is_set() and live.time.monotonic() - began < 20:
        counted[0] += 1
        output.changed()
    took = live.time.monotonic() - began
    counted[0] = -1
    output.end()
    output.changed()
    assert shown[0] == "0" and shown[-1] == "-1"
    assert len(shown) <= 3 + took / 0.02


@pytest.fixture
def shown(monkeypatch):
    """What an output has shown, as text."""
    shown = []
    for name in ("display", "update_display"):
        monkeypatch.setattr(live, name, lambda data, **more: shown.append(data["text/plain"]))
    return shown


def test_a_large_picture_is_painted_less_often(shown):
    small, large = (live.Live(lambda size=size: ("x" * size, ""), every=0.5) for size in (2000, 80_000))
    assert (small._pause(), large._pause()) == (0.5, 4.0)
    began = live.time.monotonic()
    small.end()
    large.end()
    assert live.time.monotonic() - began < 0.4, "the end does not wait for it"


def test_a_view_that_cannot_be_painted_stops_nothing_and_hides_no_error(shown):
    board = live.Board("Jobs", lambda paint, every: live.Live(paint, 0.001))
    with pytest.raises(TimedOut, match="the real one"), watched(board, FINISHED):
        board._heading = lambda: 1 / 0
        board("a line")
        while len(shown) < 2:
            assert board._live._painter.is_alive()
        del board._heading
        board("another")
        while len(shown) < 3:
            assert board._live._painter.is_alive()
        board._heading = lambda: 1 / 0
        raise TimedOut("the real one")
    cannot = "This view cannot be drawn (ZeroDivisionError); the work is not touched by that."
    assert shown[1] == shown[-1] == cannot and shown[2].startswith("Jobs: ")


def test_an_interrupt_while_the_end_is_painted_leaves_the_last_state(shown):
    told = ["first"]
    output = live.Live(lambda: ("", told[0]), every=60)
    painter = output._painter

    class Interrupted:
        def join(self):
            painter.join()
            raise KeyboardInterrupt

    output._painter, told[0] = Interrupted(), "last"
    with pytest.raises(KeyboardInterrupt):
        output.end()
    assert shown == ["first", "last"]


def test_without_a_notebook_there_are_lines_as_ever(capsys):
    states = [{"a": "RUNNING"}, {"a": "SUCCEEDED"}]
    until_finished(lambda: states.pop(0), FINISHED, deadline=5, longest=0.01, show=live.board("Jobs"))
    with progress.told(live.progress("Copies"), 1, 1_000_000) as bar:
        bar.finished("a", 1_000_000)
    lines = capsys.readouterr().out.splitlines()
    assert [line[8:] for line in lines[:2]] == ["  a: RUNNING", "  a: RUNNING -> SUCCEEDED"]
    assert lines[2].startswith("1 of 1 files, 1.0 MB, ") and len(lines) == 3


EXECUTED = """
import itertools
from helpers import notebook, progress, waiting
""", """
states = iter([{"a": "PENDING"}, {"a": "RUNNING"}, {"a": "SUCCEEDED"}])
show = notebook.board("Jobs")
_ = waiting.until_finished(lambda: next(states), ("SUCCEEDED",), deadline=5, longest=0.01, show=show)
""", """
with progress.told(notebook.progress("Copies"), 2, 2_000_000) as bar:
    for name in "ab":
        bar.finished(name, 1_000_000)
""", """
waiting.until_finished(lambda: {"a": "RUNNING"}, ("SUCCEEDED",), deadline=0.01, show=notebook.board("Jobs"))
"""  # fmt: skip


def test_an_executed_notebook_has_one_output_of_each_with_its_last_state():
    cells = [nbformat.v4.new_code_cell(source) for source in EXECUTED]
    document = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(document, allow_errors=True, kernel_name="python3").execute()
    (jobs,), (copies,), (late, error) = (cell.outputs for cell in document.cells[1:])
    assert re.fullmatch(
        r"Jobs: 1 of 1 finished; took 0:00\n\S+  a: PENDING\n\S+  a: PENDING -> RUNNING\n\S+  a: RUNNING -> SUCCEEDED",
        jobs.data["text/plain"],
    )
    assert "class='recipes-board'" in jobs.data["text/html"]
    assert copies.data["text/plain"].startswith("Copies: 2 files, 2.0 MB in 0.0 s (")
    assert "class='recipes-progress'" in copies.data["text/html"] and "<progress" not in copies.data["text/html"]
    assert "stopped, the message below says why" in late.data["text/plain"] and error.ename == "TimedOut"
