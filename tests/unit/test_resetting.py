"""Back to the initial state: what goes, what stays, and is it said first?"""

import subprocess

import pytest

from helpers import __main__ as command_line
from helpers import hyp3, objectstore, resetting
from helpers import settings as room
from helpers.state import RunState

SECRET = "a-token-of-nobody"  # pragma: allowlist secret


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """State and outputs of somebody without a sandbox, and no settings of the developer's."""
    monkeypatch.setenv("RECIPES_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("RECIPES_OUTPUT_DIR", str(tmp_path / "outputs"))
    monkeypatch.setattr(room, "find_env_file", lambda: None)
    monkeypatch.setattr(resetting, "_notebooks", lambda settings, restore: ([], []))  # see the last tests
    fill(tmp_path, "state/sandbox-0123/hyp3/first-run.json", "outputs/first-run/x.tif", "outputs/benchmarks/x.json")
    return tmp_path


def fill(folder, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def there(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def reset(*options: str) -> int:
    return command_line.main(["reset", *options])


def test_it_says_what_goes_and_does_nothing_unless_told(folder, capsys):
    before = there(folder)
    assert reset() == 0
    told = capsys.readouterr().out
    assert "goes" in told and "sandbox-0123" in told and "1 files, 0.0 MB" in told and "--yes" in told
    assert there(folder) == before


def test_what_runs_in_the_sandbox_left_goes(folder, capsys):
    assert reset("--yes") == 0
    assert there(folder) == {"outputs/benchmarks/x.json"}
    assert reset("--yes") == 0
    assert "initial state already" in capsys.readouterr().out


@pytest.mark.parametrize("answer, left", [("y", 1), ("no", 3), ("", 3)])
def test_at_a_terminal_it_asks(folder, monkeypatch, answer, left):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert reset() == 0
    assert len(there(folder)) == left


@pytest.mark.parametrize(
    "live",
    [
        pytest.param({"RECIPES_BACKEND": "live"}, id="the backend is live"),
        pytest.param({"EARTHDATA_TOKEN": SECRET}, id="there are credentials"),
        pytest.param({}, id="a live run left notes"),
    ],
)
def test_nothing_that_could_be_of_a_live_run_goes(folder, monkeypatch, capsys, live):
    for name, value in live.items():
        monkeypatch.setenv(name, value)
    if not live:
        fill(folder, "state/hyp3-api.asf.alaska.edu/hyp3/first-run.json")
    before = there(folder)
    assert reset("--yes") == 0
    assert before - there(folder) == {"state/sandbox-0123/hyp3/first-run.json"}
    told = capsys.readouterr().out
    assert "could be of live runs" in told and SECRET not in told


def test_the_hubs_own_token_is_no_sign_of_a_live_run(folder, monkeypatch):
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", SECRET)
    assert reset("--yes") == 0
    assert there(folder) == {"outputs/benchmarks/x.json"}


def test_settings_stay(folder, monkeypatch, capsys):
    fill(folder, ".env_tutorial")
    (folder / ".env_tutorial").write_text("HOOK_ORDER_NAME=mine\n")
    monkeypatch.setattr(room, "find_env_file", lambda: folder / ".env_tutorial")
    assert reset("--yes") == 0
    assert (folder / ".env_tutorial").exists() and "your settings" in capsys.readouterr().out


def test_unusable_settings_are_said_and_nothing_goes(folder, monkeypatch, capsys):
    monkeypatch.setenv("RECIPES_BACKEND", "nowhere")
    before = there(folder)
    assert reset("--yes") == 5
    assert there(folder) == before and "RECIPES_BACKEND" in capsys.readouterr().err


# --- a sandbox that is shared ---


@pytest.fixture
def in_a_class(folder, sandbox, monkeypatch):
    monkeypatch.setenv("RECIPES_SANDBOX_URL", sandbox.url("control"))
    for name in ("anna", "ben"):
        monkeypatch.setenv("RECIPES_SANDBOX_USER", name)
        settings = room.load()
        objectstore.ensure_bucket(
            objectstore.client("s3", settings), f"of-{name}", owner=objectstore.account_id(settings), create=True
        )
        RunState(settings, "hyp3", "first-run").save(known=True)
    return settings


def buckets(name: str, monkeypatch) -> list[str]:
    monkeypatch.setenv("RECIPES_SANDBOX_USER", name)
    return [bucket["Name"] for bucket in objectstore.client("s3", room.load()).list_buckets()["Buckets"]]


def test_in_a_shared_sandbox_one_persons_world_is_reset(in_a_class, monkeypatch, capsys):
    assert reset("--yes") == 0
    assert "what is ben's, and nobody else's" in capsys.readouterr().out
    assert (buckets("ben", monkeypatch), buckets("anna", monkeypatch)) == ([], ["of-anna"])
    monkeypatch.setenv("RECIPES_SANDBOX_USER", "ben")
    settings = room.load()
    assert not RunState(settings, "hyp3", "first-run").known
    assert hyp3.connect(settings).check_credits() == 8000


def test_whoever_has_no_name_there_resets_nobody_by_accident(in_a_class, monkeypatch, capsys):
    monkeypatch.delenv("RECIPES_SANDBOX_USER")
    assert reset("--yes") == 0
    assert "--everybody" in capsys.readouterr().out
    assert buckets("anna", monkeypatch) == ["of-anna"]
    monkeypatch.delenv("RECIPES_SANDBOX_USER")
    assert reset("--yes", "--everybody") == 0
    assert buckets("anna", monkeypatch) == buckets("ben", monkeypatch) == []


def test_a_sandbox_that_does_not_answer_is_an_error_before_anything_goes(folder, monkeypatch, capsys):
    monkeypatch.setenv("RECIPES_SANDBOX_URL", "http://127.0.0.1:9")
    before = there(folder)
    assert reset("--yes", "--everybody") == 1
    assert there(folder) == before and capsys.readouterr().err


# --- notebooks ---


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A project under git with one notebook that somebody has changed, and one of their own."""
    fill(tmp_path, "project/notebooks/1_first.ipynb", "project/notebooks/2_second.ipynb")
    git = ["git", "-C", tmp_path / "project", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *arguments], check=True)
    (tmp_path / "project/notebooks/1_first.ipynb").write_text("changed")
    fill(tmp_path, "project/notebooks/my_own.ipynb")
    for name in ("STATE", "OUTPUT"):
        monkeypatch.setenv(f"RECIPES_{name}_DIR", str(tmp_path / name))
    monkeypatch.setattr(room, "PROJECT", tmp_path / "project")
    return tmp_path / "project/notebooks"


def test_changed_notebooks_stay_and_are_named(clone, capsys):
    assert reset("--yes") == 0
    told = capsys.readouterr().out
    assert "1_first.ipynb: changed" in told and "2_second" not in told
    assert (clone / "1_first.ipynb").read_text() == "changed"


def test_told_to_it_brings_notebooks_back_and_keeps_copies(clone, tmp_path):
    assert reset("--yes", "--notebooks") == 0
    assert (clone / "1_first.ipynb").read_text() == (clone / "my_own.ipynb").read_text() == "x"
    (copy,) = (tmp_path / "STATE").rglob("1_first.ipynb")
    assert copy.read_text() == "changed"
    assert reset("--yes") == 0 and copy.exists()


def test_without_git_it_says_so(clone, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert reset("--yes", "--notebooks") == 0
    assert "without git" in capsys.readouterr().out
