"""Back to the initial state: what goes, what stays, and is it said first?"""

import json
import subprocess
from pathlib import Path

import pytest

from helpers import __main__ as command_line
from helpers import archive, objectstore, resetting
from helpers import hyp3 as recipe
from helpers import settings as room
from helpers.state import RunState

SECRET = "a-token-of-nobody"  # pragma: allowlist secret
ENDED, OTHER = "sandbox-0123456789ab", "sandbox-ba9876543210"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """State and outputs of somebody without a sandbox, and no settings of the developer's."""
    monkeypatch.setenv("RECIPES_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("RECIPES_OUTPUT_DIR", str(tmp_path / "outputs"))
    monkeypatch.setattr(room, "find_env_file", lambda: None)
    monkeypatch.setattr(resetting, "_notebooks", lambda settings, restore: ([], []))  # see the last tests
    fill(tmp_path, f"state/{ENDED}/hyp3/first-run.json", "outputs/first-run/x.tif", "outputs/benchmarks/x.json")
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
    assert "goes" in told and ENDED in told and "1 files, 0.0 MB" in told and "--yes" in told
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
        pytest.param({"NETRC": "netrc"}, id="an account in .netrc"),
        pytest.param({"AWS_PROFILE": "mine"}, id="a profile"),
        pytest.param({"AWS_SHARED_CREDENTIALS_FILE": "aws"}, id="the files of AWS"),
        pytest.param({"AWS_CONFIG_FILE": "netrc"}, id="files of AWS that nobody can read"),
        pytest.param({"AWS_WEB_IDENTITY_TOKEN_FILE": "token"}, id="a role"),
        pytest.param({}, id="a live run left notes"),
    ],
)
def test_nothing_that_could_be_of_a_live_run_goes(folder, monkeypatch, capsys, live):
    monkeypatch.chdir(folder)
    Path("netrc").write_text(f"machine {room.EARTHDATA_HOST} login me password {SECRET}")
    Path("aws").write_text(f"[default]\naws_access_key_id = me\naws_secret_access_key = {SECRET}")
    for name, value in live.items():
        monkeypatch.setenv(name, value)
    if not live:
        fill(folder, "state/hyp3-api.asf.alaska.edu/hyp3/first-run.json")
    before = there(folder)
    assert reset("--yes") == 0
    assert before - there(folder) == {f"state/{ENDED}/hyp3/first-run.json"}
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


# --- what is not known to be ours ---


HOMES = {"home": "~", "project": "notebooks/..", "top": "/", "above": "..", "state": "memory"}


@pytest.mark.parametrize("where", HOMES)
def test_a_folder_that_has_more_than_outputs_is_refused_before_anything_goes(folder, monkeypatch, capsys, where):
    monkeypatch.setattr(room, "PROJECT", folder / "project")
    monkeypatch.setenv("HOME", str(folder / "home"))
    if where == "state":
        monkeypatch.setenv("RECIPES_STATE_DIR", "memory/state")
    fill(folder, "home/.ssh/id", "project/.env_tutorial", "project/notebooks/first-run/x", "project/memory/first-run/x")
    fill(folder, "home/first-run/x", "project/first-run/x")
    monkeypatch.setenv("RECIPES_OUTPUT_DIR", HOMES[where])
    before = there(folder)
    assert reset() == 5  # without --yes: no mistake of ours may do here what it is about
    assert there(folder) == before
    told = capsys.readouterr().err
    assert "RECIPES_OUTPUT_DIR" in told and "nothing was removed" in told


def test_so_is_one_with_the_settings_file(folder, monkeypatch):
    monkeypatch.setattr(room, "find_env_file", lambda: folder / "outputs/mine/.env_tutorial")
    fill(folder, "outputs/mine/.env_tutorial")
    before = there(folder)
    assert reset("--yes") == 5 and there(folder) == before


def test_only_what_runs_in_a_sandbox_are_known_to_have_written_goes(folder, capsys):
    """Folders of the notebooks' own runs, and of those that a sandbox's state names."""
    fill(folder, f"state/{ENDED}/conversion/my-run.json", "outputs/my-run/x.zarr/y", "outputs/first-harvest/x.zip")
    fill(folder, "outputs/demo/mine", "outputs/site/mine", "outputs/Documents/thesis", "outputs/.git/config")
    mine = there(folder / "outputs") - {"first-run/x.tif", "my-run/x.zarr/y", "first-harvest/x.zip"}
    assert reset("--yes") == 0
    assert there(folder / "outputs") == mine
    assert ".git, Documents, demo, site, not known" in capsys.readouterr().out


def test_what_make_wrote_goes_from_the_projects_own_outputs(folder, monkeypatch):
    monkeypatch.setattr(room, "PROJECT", folder)
    for variable in ("STATE", "OUTPUT"):
        monkeypatch.delenv(f"RECIPES_{variable}_DIR")
        monkeypatch.setenv(f"RECIPES_{variable}_DIR", {"STATE": "state", "OUTPUT": "outputs"}[variable])
    fill(folder, "outputs/demo/1.ipynb", "outputs/site/index.html", "outputs/screenshots/x.png", "outputs/mine/x")
    monkeypatch.setenv("HOME", str(folder / "home"))
    assert reset("--yes") == 0
    assert there(folder / "outputs") == {"benchmarks/x.json", "mine/x"}


def test_links_are_neither_followed_nor_removed(folder):
    fill(folder, "elsewhere/precious")
    for link in ("outputs/first-harvest", "outputs/archive", "outputs/first-run/inside"):
        (folder / link).symlink_to(folder / "elsewhere")
    assert reset("--yes") == 0
    assert there(folder / "elsewhere") == {"precious"}
    links = {path.name for path in folder.rglob("*") if path.is_symlink()}
    assert links == {"first-harvest", "archive"}  # the one in a run's folder went with it
    fill(folder, "apart/hyp3/precious.json")
    (folder / "state" / OTHER).symlink_to(folder / "apart")
    assert reset("--yes") == 0
    assert (folder / "state" / OTHER).is_symlink() and there(folder / "apart") == {"hyp3/precious.json"}


def test_what_somebody_else_put_into_a_state_folder_names_no_run(folder):
    fill(folder, f"state/{ENDED}/mine/thesis.json", "outputs/thesis/x")
    before = there(folder)
    assert reset("--yes") == 0
    assert there(folder) == before  # and what runs remember there stays, with their outputs


def test_a_state_folder_goes_only_by_its_name_and_with_nothing_else_in_it(folder, capsys):
    fill(folder, "state/sandbox-notes/hyp3/x", f"state/{OTHER}/thesis/x", f"state/{OTHER}/hyp3/x.json")
    assert reset("--yes") == 0
    assert there(folder / "state") == {"sandbox-notes/hyp3/x", f"{OTHER}/thesis/x", f"{OTHER}/hyp3/x.json"}
    assert f"{OTHER}: has more than" in capsys.readouterr().out
    assert (folder / "outputs/first-run/x.tif").exists()  # sandbox-notes could be of a service of that name


# --- archives ---


def archived(folder, services: dict[str, str | None], *files: str) -> None:
    """An archive "p" on this disk, and records of the services that they were made at; ``None``: it does not say."""
    disk = folder / "outputs/archive-on-disk/p"
    fill(disk, "x.tif", "y.zip", "y/unpacked", ".archive-lock", *files)
    for run, service in services.items():
        fill(folder / "outputs/archive/p", f"{run}/manifest.csv")
        lines = [f"s,{disk / name},1,e,t,copied," for name in ("x.tif", "y.zip")]
        (folder / "outputs/archive/p" / run / "manifest.csv").write_text(
            "\n".join(["source,target,bytes,checksum,time,outcome,reason", *lines])
        )
        record = {"target": str(disk)} | ({"service": service} if service else {})
        (folder / "outputs/archive/p" / run / "summary.json").write_text(json.dumps(record))


FIRST, SECOND = "20260101T000000Z-disk", "20260102T000000Z"


def test_an_archive_whose_records_all_say_sandbox_goes(folder):
    archived(folder, {FIRST: ENDED, SECOND: OTHER})
    assert reset("--yes") == 0
    assert there(folder) == {"outputs/benchmarks/x.json"}
    assert not (folder / "outputs/archive-on-disk").exists() and not (folder / "outputs/archive").exists()


@pytest.mark.parametrize(
    "services, files, why",
    [
        pytest.param({}, [], "no record", id="no record at all"),
        pytest.param({FIRST: ENDED, SECOND: None}, [], "does not say", id="a record that does not say"),
        pytest.param(
            {FIRST: ENDED, "my-notes": ENDED}, [], "no record of a run", id="something else among the records"
        ),
        pytest.param({FIRST: ENDED}, ["z.tif"], "z.tif is in no record", id="a file that no record has"),
    ],
)
def test_an_archive_that_could_be_another_stays_as_a_whole(folder, capsys, services, files, why):
    archived(folder, services, *files)
    before = {name for name in there(folder) if name.startswith("outputs/archive")}
    assert reset("--yes") == 0
    assert before <= there(folder) and not (folder / "outputs/first-run").exists()
    assert f"archive-on-disk/p: {why}" in capsys.readouterr().out.replace(f"{SECOND} ", "").replace("my-notes is ", "")


def test_an_archive_as_it_is_made_goes_with_the_sandbox_that_it_is_of(folder, settings, hyp3, monkeypatch, capsys):
    jobs = archive.find(hyp3, "HKHwatermaps", "WATER_MAP")
    target, record = settings.output_dir / "archive-on-disk/p", settings.output_dir / "archive/p" / FIRST
    source = archive.Place(settings, archive.content_bucket(jobs), anonymous=True)
    plan = archive.plan(jobs, ["_FloodDepth.tif"], source, target)
    with archive.lock(target):
        outcomes = archive.to_disk(plan, manifest=record / "manifest.csv", show=lambda line: None)
    assert archive.summary(plan, outcomes, path=record / "summary.json")["service"] == settings.service_name("hyp3")
    before = there(folder / "outputs/archive-on-disk/p")
    assert len(before) > 5
    assert reset("--yes") == 0  # a shared sandbox, and nobody knows who we are
    assert "archive-on-disk/p: made in a sandbox that is not reset" in capsys.readouterr().out
    assert there(target) == before
    assert reset("--yes", "--everybody") == 0
    assert there(folder) == {"outputs/benchmarks/x.json"}


def test_a_live_archive_holds_everything_back(folder, capsys):
    """Its credentials were typed into a form and are forgotten, and notebooks 3 and 4 write no state."""
    archived(folder, {FIRST: "hyp3-api.asf.alaska.edu"})
    before = there(folder / "outputs")
    assert reset("--yes") == 0
    assert there(folder / "outputs") == before
    assert f"{FIRST} archived from hyp3-api.asf.alaska.edu" in capsys.readouterr().out


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
    assert recipe.connect(settings).check_credits() == 8000


def test_whoever_has_no_name_there_resets_nobody_by_accident(in_a_class, monkeypatch, capsys):
    monkeypatch.delenv("RECIPES_SANDBOX_USER")
    assert reset("--yes") == 0
    assert "--everybody" in capsys.readouterr().out
    assert buckets("anna", monkeypatch) == ["of-anna"]
    monkeypatch.delenv("RECIPES_SANDBOX_USER")
    assert reset("--yes", "--everybody") == 0
    assert buckets("anna", monkeypatch) == buckets("ben", monkeypatch) == []


def remembered(settings) -> bool:
    return RunState(settings, "hyp3", "first-run").known


def test_where_the_world_stays_what_its_runs_remember_stays_too(in_a_class, folder, monkeypatch, capsys):
    """Or the next run would submit everything again."""
    monkeypatch.delenv("RECIPES_SANDBOX_USER")
    nobody = room.load()
    RunState(nobody, "hyp3", "first-run").save(known=True)
    assert reset("--yes") == 0
    assert remembered(nobody) and not (folder / f"state/{ENDED}").exists()
    assert (folder / "outputs/first-run/x.tif").exists()
    monkeypatch.setenv("RECIPES_SANDBOX_USER", "ben")
    assert reset("--yes") == 0
    assert remembered(nobody) and not remembered(in_a_class)
    assert "could be of somebody else's runs" in capsys.readouterr().out


def test_a_sandbox_of_this_machine_that_is_not_the_one_in_use_goes_on(sandbox, folder, monkeypatch):
    (folder / "state/sandbox.json").write_text(json.dumps({"url": sandbox.url("control"), "pid": 1}))
    settings = room.load()
    RunState(settings, "hyp3", "first-run").save(known=True)
    monkeypatch.setenv("RECIPES_BACKEND", "live")
    assert reset("--yes") == 0
    assert remembered(settings) and not (folder / f"state/{ENDED}").exists()
    monkeypatch.setenv("RECIPES_BACKEND", "sandbox")
    assert reset("--yes") == 0
    assert not remembered(settings) and room.load().service_name("hyp3") != settings.service_name("hyp3")


def test_a_sandbox_that_stays_and_is_silent_could_have_any_of_the_worlds(folder, monkeypatch, capsys):
    monkeypatch.setenv("RECIPES_SANDBOX_URL", "http://127.0.0.1:9")
    before = there(folder)
    assert reset("--yes") == 0
    assert there(folder) == before and "127.0.0.1:9 does not answer, and this could be" in capsys.readouterr().out


def test_at_ones_own_address_everybody_is_everybody_and_otherwise_only_oneself(in_a_class, monkeypatch, capsys):
    monkeypatch.delenv("RECIPES_SANDBOX_USER")
    plain = in_a_class.model_copy()  # of ben
    monkeypatch.setenv("RECIPES_SANDBOX_URL", str(plain.sandbox_url))
    assert "/people/" in str(plain.sandbox_url)
    assert reset("--yes") == 0
    assert not remembered(in_a_class)
    monkeypatch.setenv("RECIPES_SANDBOX_URL", str(plain.sandbox_url).partition("people/")[0])
    assert (buckets("ben", monkeypatch), buckets("anna", monkeypatch)) == ([], ["of-anna"])
    monkeypatch.delenv("RECIPES_SANDBOX_USER")
    monkeypatch.setenv("RECIPES_SANDBOX_URL", str(plain.sandbox_url))
    assert reset("--yes", "--everybody") == 0
    assert "everything, of everybody" in capsys.readouterr().out
    monkeypatch.setenv("RECIPES_SANDBOX_URL", str(plain.sandbox_url).partition("people/")[0])
    assert buckets("anna", monkeypatch) == []


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


def test_a_notebook_that_is_new_or_was_renamed_keeps_nothing_from_coming_back(clone):
    git = ["git", "-C", clone]
    subprocess.run([*git, "mv", "2_second.ipynb", "2_renamed.ipynb"], check=True)
    subprocess.run([*git, "add", "my_own.ipynb"], check=True)
    assert reset("--yes", "--notebooks") == 0
    assert there(clone) == {"1_first.ipynb", "2_renamed.ipynb", "my_own.ipynb"}
    assert (clone / "1_first.ipynb").read_text() == (clone / "my_own.ipynb").read_text() == "x"


def test_what_is_staged_is_not_lost(clone):
    git = ["git", "-C", clone]
    subprocess.run([*git, "add", "1_first.ipynb"], check=True)
    assert reset("--yes", "--notebooks") == 0
    staged = subprocess.run([*git, "show", ":./1_first.ipynb"], check=True, capture_output=True, text=True)
    assert (clone / "1_first.ipynb").read_text() == "x" and staged.stdout == "changed"


def test_a_project_within_a_larger_repository(tmp_path, clone, monkeypatch):
    monkeypatch.setattr(room, "PROJECT", clone.parent / "within")
    fill(clone.parent, "within/notebooks/1 é*.ipynb")
    git = ["git", "-C", clone.parent, "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for arguments in (["add", "within"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *arguments], check=True)
    (clone.parent / "within/notebooks/1 é*.ipynb").write_text("changed")
    assert reset("--yes", "--notebooks") == 0
    assert (clone.parent / "within/notebooks/1 é*.ipynb").read_text() == "x"
    assert (clone / "1_first.ipynb").read_text() == "changed"  # of another project
    (copy,) = (tmp_path / "STATE").rglob("1 é*.ipynb")
    assert copy.read_text() == "changed"


def test_a_step_that_fails_keeps_nothing_else_from_going_and_is_told(clone, tmp_path, monkeypatch, capsys):
    fill(tmp_path, f"STATE/{ENDED}/hyp3/x.json", "OUTPUT/first-run/x.tif", "STATE/notebooks-before-reset")
    assert reset("--yes", "--notebooks") == 1  # no copy can be kept: a file is in the way
    told = capsys.readouterr()
    assert "1 of 3 steps failed" in told.err and "1_first.ipynb" in told.err and "Done" not in told.out
    assert (clone / "1_first.ipynb").read_text() == "changed"
    assert there(tmp_path / "OUTPUT") == set() and there(tmp_path / "STATE") == {"notebooks-before-reset"}


def test_what_runs_remember_stays_if_their_world_could_not_be_reset(in_a_class, folder, monkeypatch, capsys):
    def fails(url, user=None):
        raise room.requests.ConnectionError("gone")

    monkeypatch.setattr(room, "reset_sandbox", fails)
    assert reset("--yes") == 1
    assert remembered(in_a_class) and "a step before it failed" in capsys.readouterr().err
    assert (folder / "outputs/first-run/x.tif").exists()


def test_without_git_it_says_so(clone, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert reset("--yes", "--notebooks") == 0
    assert "without git" in capsys.readouterr().out
