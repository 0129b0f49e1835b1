"""What a run remembers: never half written, never another run's, never used by two at once."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from helpers.errors import Rejected
from helpers.settings import Settings
from helpers.state import RunState

CHECKOUT = Path(__file__).resolve().parents[2]
#: Holds the run "one" alone until its input ends, and says when it does.
HOLDER = """
import sys
from pathlib import Path
from helpers.settings import Settings
from helpers.state import RunState
with RunState(Settings(RECIPES_STATE_DIR=sys.argv[1]), "hyp3", "one").alone():
    print("alone", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(RECIPES_STATE_DIR=str(tmp_path))


@pytest.fixture
def state(settings) -> RunState:
    return RunState(settings, "hyp3", "one")


# --- remembering ---


def test_what_is_saved_is_there_for_the_next_process(settings, state):
    state.save(a=1, b={"x": [None, "ä"]})
    state.save(a=2, c=3)
    again = RunState(settings, "hyp3", "one")
    assert (again.get("a"), again.get("b"), again.get("c")) == (2, {"x": [None, "ä"]}, 3)
    assert again.get("d") is None and again.get("d", "default") == "default"


def test_a_file_is_written_only_when_there_is_something_to_remember(tmp_path, state):
    assert list(tmp_path.rglob("*.json")) == []
    state.save(a=1)
    assert list(tmp_path.rglob("*.json")) == [state.path]


def test_killed_between_writing_and_renaming_the_old_content_stays(settings, state, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    state.save(a="old", b="old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(Killed):
            state.save(a="new")
    again = RunState(settings, "hyp3", "one")
    assert (again.get("a"), again.get("b")) == ("old", "old")
    assert again.of_all_runs("a") == ["old"]  # the half-way file counts for nothing
    again.save(a="new")
    assert RunState(settings, "hyp3", "one").get("a") == "new"


def test_what_cannot_be_written_leaves_the_old_content(settings, state):
    state.save(a="old")
    with pytest.raises(TypeError):
        state.save(a="new", b=object())
    assert RunState(settings, "hyp3", "one").get("a") == "old"


def test_readers_never_see_half_a_file(settings, state):
    state.save(a=["x" * 1000] * 200)
    done = threading.Event()

    def write() -> None:
        for n in range(60):
            state.save(a=[f"{n}" * 500] * 400)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    reads = 0
    while not done.is_set():
        assert len(json.loads(state.path.read_text())["a"]) in (200, 400)
        reads += 1
    thread.join()
    assert reads > 20


# --- whose memory it is ---


@pytest.mark.parametrize("run_id", ["a", "9", "first-run", "first-run.retry", "A_b.c-d", "x" * 64])
def test_good_run_ids_have_files_of_their_own(settings, run_id):
    RunState(settings, "hyp3", "one").save(a="other")
    state = RunState(settings, "hyp3", run_id)
    state.save(a=run_id)
    assert state.path.name == f"{run_id}.json"
    assert RunState(settings, "hyp3", "one").get("a") == "other"
    with state.alone():
        pass


@pytest.mark.parametrize(
    "run_id", ["", "x" * 65, "no spaces", "a/b", "../a", "..", ".hidden", "-dash", "_under", "ä", "a\n", "a:b"]
)
def test_bad_run_ids_are_refused_and_leave_nothing(settings, tmp_path, run_id):
    with pytest.raises(Rejected, match="use 1 to 64 letters"):
        RunState(settings, "hyp3", run_id)
    assert list(tmp_path.iterdir()) == []


def test_every_recipe_service_and_sandbox_has_its_own_memory(tmp_path, state):
    def settings(**more) -> Settings:
        return Settings(RECIPES_STATE_DIR=str(tmp_path), **more)

    another_sandbox = settings()
    another_sandbox._sandbox_id = "0123"
    live = [
        settings(RECIPES_BACKEND="live", HYP3_API_URL=url) for url in ("https://a.example.org", "https://b.example.org")
    ]
    states = [state, RunState(settings(), "hook", "one"), RunState(another_sandbox, "hyp3", "one")]
    states += [RunState(each, "hyp3", "one") for each in live]
    for n, each in enumerate(states):
        each.save(n=n)
    assert [each.get("n") for each in states] == [0, 1, 2, 3, 4]
    assert states[3].path == tmp_path / "a.example.org/hyp3/one.json"


def test_what_all_runs_of_a_recipe_remember(settings, state):
    state.save(jobs=[1])
    RunState(settings, "hyp3", "two").save(jobs=[2])
    RunState(settings, "hyp3", "three").save(other=3)
    RunState(settings, "hook", "one").save(jobs=[4])
    with state.alone():
        assert sorted(state.of_all_runs("jobs")) == [[1], [2]]


# --- the end of a run ---


def test_a_cleaned_up_run_is_refused(settings, state):
    state.save(cleaning=True, cleaned=True)
    with pytest.raises(Rejected, match=r"Run one was cleaned up.*Choose another run_id"):
        RunState(settings, "hyp3", "one")
    assert RunState(settings, "hyp3", "one", cleaning=True).get("cleaned")
    RunState(settings, "hyp3", "two")


def test_a_half_cleaned_run_is_refused_and_says_how_to_finish(settings, state):
    state.save(cleaning=True)
    with pytest.raises(Rejected, match=r"interrupted\. Finish it: python -m helpers cleanup one"):
        RunState(settings, "hyp3", "one")


# --- alone ---


@pytest.fixture
def holder(settings, state, tmp_path):
    """Another process that holds the run "one" alone."""
    # The same folder: the service of these settings is a sandbox without an id.
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout.readline() == "alone\n"
        yield process
        process.kill()


def in_background(state: RunState) -> tuple[threading.Thread, threading.Event]:
    inside = threading.Event()

    def enter() -> None:
        with state.alone():
            inside.set()

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    return thread, inside


@pytest.mark.parametrize("end", ["leaves", "is killed"])
def test_another_process_waits_until_the_first_leaves_or_is_killed(holder, state, end):
    thread, inside = in_background(state)
    assert not inside.wait(0.3)
    if end == "leaves":
        holder.stdin.close()
    else:
        holder.kill()
    assert inside.wait(5)
    thread.join(5)


def test_another_run_waits_too(state, settings):
    """Who looks for his lost jobs must not find the new ones of a run that has not noted them yet."""
    with state.alone():
        _, inside = in_background(RunState(settings, "hyp3", "two"))
        assert not inside.wait(0.2)
    assert inside.wait(5)


def test_another_recipe_does_not_wait(state, settings):
    with state.alone():
        _, inside = in_background(RunState(settings, "hook", "one"))
        assert inside.wait(5)


def test_threads_wait_for_each_other_too(settings, state):
    with state.alone():
        _, inside = in_background(RunState(settings, "hyp3", "one"))
        assert not inside.wait(0.2)
    assert inside.wait(5)


def test_an_error_inside_lets_the_next_in(state):
    with pytest.raises(ZeroDivisionError), state.alone():
        1 / 0  # noqa: B018
    with state.alone():
        pass
