"""`python -m helpers run`: parameters, endings, redaction, results. Every kernel in here is a real one."""

import base64
import html
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from helpers import redaction, runner, settings
from helpers.redaction import redact
from helpers.runner import UsageError, main, read_results, run

SECRET = 'canary/7Hq+ä "x" 9&Lw'  # with everything that some escaping changes
RECORD = """
from IPython.display import display
def record(name, value):
    display({"application/vnd.eo-recipes.result+json": {"name": name, "value": value}}, raw=True)
"""


def write_notebook(folder: Path, name: str, *cells: str, parameters: str = "days: int = 1") -> Path:
    """A notebook with a `parameters` cell and these code cells after it (`# ...` alone: a heading)."""
    node = new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    node.cells = [
        new_markdown_cell(f"# {name}"),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
    ]
    node.cells += [
        new_markdown_cell(cell) if cell.startswith("# ") and "\n" not in cell else new_code_cell(cell) for cell in cells
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ipynb"
    nbformat.write(node, path)
    return path


def everything_in(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.rglob("*")) if path.is_file())


def spellings(secret: str) -> set[str]:
    escaped = {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1]}
    escaped |= {html.escape(secret), html.escape(secret, quote=False), quote(secret, safe=""), quote(secret)}
    return escaped | {secret, base64.b64encode(secret.encode()).decode(), secret.encode().hex()}


def inside_base64(secret: str, before: str) -> str:
    """The middle of what a secret looks like in the base64 of a longer text."""
    text = base64.b64encode(f"{before}{secret}!".encode()).decode()
    return text[len(before) * 4 // 3 + 2 : -6]


# --- how a run can end ---

ENDINGS = {
    # name: (cells, deadline in seconds, outcome, exit code, type of the error, states of the code cells)
    "finishes": (["'fine'"], 60, "ok", 0, None, "cc"),
    "raises": (["# Divide\n1 / 0", "'never'"], 60, "failed", 1, "ZeroDivisionError", "cfp"),
    "lacks settings": (
        ["from helpers.errors import NotConfigured\nraise NotConfigured('set EARTHDATA_TOKEN')"],
        60, "not configured", 5, "NotConfigured", "cf",
    ),
    "leaves by sys.exit(0)": (["import sys\nsys.exit(0)", "'never'"], 60, "failed", 1, "SystemExit", "cfp"),
    "leaves by exit()": (["exit()"], 60, "failed", 1, "SystemExit", "cf"),
    "kernel exits": (["import os\nos._exit(9)", "'never'"], 60, "kernel died", 3, "KernelDied", "cfp"),
    "kernel is killed": (["import os\nos.kill(os.getpid(), 9)"], 60, "kernel died", 3, "KernelDied", "cf"),
    "gives up waiting": (
        ["from helpers.errors import TimedOut\nraise TimedOut('later')"], 60, "timed out", 4, "TimedOut", "cf"
    ),
    "takes too long": (["import time\ntime.sleep(60)", "'never'"], 5, "deadline", 4, "Deadline", "cfp"),
    "takes too long in two cells": (
        ["import time\ntime.sleep(3)", "time.sleep(5)", "'never'"], 7, "deadline", 4, "Deadline", "ccfp",
    ),
    "swallows the interrupt": (
        ["import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: pass", "'never'"],
        5, "deadline", 4, "Deadline", "ccf",
    ),
    "ignores the interrupt": (
        ["import time\nwhile True:\n    try: time.sleep(60)\n    except KeyboardInterrupt: pass"],
        5, "deadline", 4, "Deadline", "cf",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def endings(tmp_path_factory):
    """Each of ENDINGS, executed: {name: (result, executed notebook)}."""
    folder = tmp_path_factory.mktemp("endings")

    def execute(item):
        name, (cells, deadline, *_) = item
        started = "import os\n" + RECORD + "record('pid', os.getpid())"
        source = write_notebook(folder, name.replace(" ", "_"), *cells, parameters=f"days: int = 1\n{started}")
        result = run(source, output=folder / "out" / source.name, deadline=deadline)
        return name, (result, nbformat.read(result.output, as_version=4))

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as pool:
        patch.setattr(runner, "GRACE", 1.0)
        longest_first = sorted(ENDINGS.items(), key=lambda item: item[1][1])
        return dict(pool.map(execute, longest_first))


@pytest.mark.parametrize("name", ENDINGS)
def test_a_run_tells_how_it_ended(endings, name):
    result, _ = endings[name]
    _, _, outcome, code, error, states = ENDINGS[name]
    assert (result.outcome, result.exit_code) == (outcome, code)
    assert (result.error or {}).get("type") == error
    if error:
        assert result.error["cell"] == states.index("f") + 1


@pytest.mark.parametrize("name", ENDINGS)
def test_the_saved_notebook_does_not_lie(endings, name):
    _, node = endings[name]
    states = "".join(cell.metadata.papermill.status[0] for cell in node.cells if cell.cell_type == "code")
    assert states == ENDINGS[name][5]
    assert bool(node.metadata.papermill.exception) == ("f" in states)


@pytest.mark.parametrize("name", ENDINGS)
def test_no_kernel_outlives_its_run(endings, name):
    result, _ = endings[name]
    assert not psutil.pid_exists(result.results["pid"])


@pytest.mark.parametrize("name", ENDINGS)
def test_a_deadline_is_for_the_whole_notebook(endings, name):
    result, _ = endings[name]
    assert result.seconds < ENDINGS[name][1] + 4  # the interrupt, GRACE, and a busy machine


def test_an_error_says_where_and_what(endings):
    result, _ = endings["raises"]
    assert result.error == {
        "type": "ZeroDivisionError",
        "message": "division by zero",
        "cell": 2,
        "title": "Divide",
    }


def test_results_are_written_beside_the_notebook_even_on_failure(endings):
    result, _ = endings["kernel exits"]
    record = json.loads(result.output.with_suffix(".results.json").read_text())
    assert (record["notebook"], record["outcome"], record["parameters"]) == (
        "kernel_exits.ipynb",
        "kernel died",
        {},
    )
    assert record["results"] == result.results == read_results(result.output)
    assert record["error"]["message"] == "exit code 9"
    assert record["started"] < record["finished"] and record["finished"].endswith("+00:00")
    assert 0 < record["seconds"] == result.seconds


def test_the_saved_notebook_names_no_folder_of_this_machine(endings):
    result, node = endings["finishes"]
    assert str(result.output.parent.parent) not in json.dumps(node)
    assert node.metadata.papermill.input_path == node.metadata.papermill.output_path == "finishes.ipynb"
    assert node.metadata.kernelspec.name == "python3"


def test_a_kernel_that_does_not_start_is_a_dead_kernel_and_says_why(tmp_path):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "ipykernel_launcher.py").write_text("raise SystemExit('broken installation')")
    source = write_notebook(tmp_path, "a")
    result = run(source, output=tmp_path / "out.ipynb", env={"PYTHONPATH": str(tmp_path / "path")})
    assert (result.outcome, result.error["cell"]) == ("kernel died", None)
    assert "broken installation" in result.error["message"]
    assert [c.metadata.papermill.status for c in nbformat.read(result.output, 4).cells] == ["pending"] * 2


# --- parameters ---

TYPED = """\
name: str = "x"
days: int = 1  # how many
share: float = 0.5
dry: bool = False
ids: list[str] = []
options: dict = {}
limit: int | None = None
mode: Literal["fast", "slow"] = "fast"
plain = 3
"""


@pytest.fixture
def typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_notebook(tmp_path, "typed", parameters="from typing import Literal\n" + TYPED)


def test_parameters_arrive_with_the_annotated_type(tmp_path, monkeypatch):
    names = ["name", "days", "share", "dry", "ids", "options", "limit", "mode", "plain"]
    recording = RECORD + "".join(f"record({name!r}, {name})\n" for name in names)
    write_notebook(tmp_path, "typed", recording, parameters="from typing import Literal\n" + TYPED)
    (tmp_path / "file.yaml").write_text('name: "no"\nshare: 2\nids: [a, "007"]\noptions: {a: [1, null]}\nlimit: 5\n')
    monkeypatch.chdir(tmp_path)
    line = "-f file.yaml -p name 007 -p days 007 -p dry no -p limit null -p mode slow -p plain 4"
    assert main(["typed.ipynb", "--no-html", *line.split()]) == 0
    assert read_results(tmp_path / "outputs/executed/typed--file.ipynb") == {
        "name": "007", "days": 7, "share": 2.0, "dry": False, "ids": ["a", "007"],
        "options": {"a": [1, None]}, "limit": None, "mode": "slow", "plain": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name: no", "name: expected str, got False; put it in quotes"),
        ("name: 007", "name: expected str, got 7; put it in quotes"),
        ("name: 2024-01-31", "name: expected str, got datetime.date(2024, 1, 31); put it in quotes"),
        ("days: '7'", "days: expected int, got '7'"),
        ("days: 1.5", "days: expected int, got 1.5"),
        ("days: yes", "days: expected int, got True"),
        ("share: true", "share: expected float, got True"),
        ("dry: 1", "dry: expected bool, got 1"),
        ("ids: a", "ids: expected list[str], got 'a'"),
        ("ids: [a, no]", "ids: expected list[str], got ['a', False] (see 1); put it in quotes"),
        ("mode: swift", "mode: expected one of fast or slow, got 'swift'"),
        ("limit: x", "limit: expected int | None, got 'x'"),
        ("day: 1", "day: unknown; did you mean days? known are name, days"),
        ("days: 1\ndays: 2", "given more than once: days"),
        ("- days", "must consist of lines `name: value`"),
        ("days: [", "while parsing"),
        ("name: https://b.example/k?X-Amz-Signature=00ff", "name: looks like a secret"),
        ("ids: [ok, eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.c2ln]", "ids: looks like a secret"),
        ("options: {password: hunter2}", "options: looks like a secret"),
    ],
)
def test_parameters_of_a_file_that_do_not_fit_are_refused(typed, text, complaint, capsys, monkeypatch):
    monkeypatch.setattr(runner, "_execute", lambda job: pytest.fail("a kernel was started"))
    Path("file.yaml").write_text(text)
    assert main(["typed.ipynb", "-f", "file.yaml"]) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("days", "1.5", "-p days: expected int, got '1.5'"),
        ("dry", "perhaps", "-p dry: expected bool, got 'perhaps'"),
        ("ids", "[a, no]", "-p ids: expected list[str], got '[a, no]'"),
        ("ids", "[a", "-p ids: expected list[str], got '[a'"),
        ("Days", "1", "-p Days: unknown; did you mean days?"),
        ("name", "AKIAIOSFODNN7EXAMPLE", "-p name: looks like a secret"),
    ],
)
def test_parameters_of_the_command_line_that_do_not_fit_are_refused(typed, name, text, complaint, capsys):
    assert main(["typed.ipynb", "-p", name, text]) == 2
    assert complaint in capsys.readouterr().err


def test_a_known_secret_is_refused_as_a_parameter_and_not_shown(typed, monkeypatch, capsys):
    monkeypatch.setattr(settings, "secret_values", lambda: {"open-sesame"})
    assert main(["typed.ipynb", "-p", "name", "open-sesame", "-p", "days", "open-sesame"]) == 2
    told = capsys.readouterr().err
    assert "-p name: looks like a secret" in told and "-p days" in told and "open-sesame" not in told


def test_all_problems_are_told_at_once(typed, tmp_path, capsys):
    write_notebook(tmp_path, "other", parameters="region: str = ''")
    nbformat.write(new_notebook(cells=[new_code_cell("1")]), tmp_path / "bare.ipynb")
    write_notebook(tmp_path, "odd", parameters="days: Pendulum = 1")
    (tmp_path / "a.yaml").write_text("days: x\nname: 1\n")
    arguments = [
        "typed.ipynb",
        "other.ipynb",
        "bare.ipynb",
        "odd.ipynb",
        "gone.ipynb",
        "-f",
        "a.yaml",
        "-f",
        "b.yaml",
    ]
    assert main(arguments) == 2
    told = capsys.readouterr().err.splitlines()
    for beginning in (
        "typed.ipynb: a.yaml: days: expected int", "typed.ipynb: a.yaml: name: expected str",
        "other.ipynb: a.yaml: days: unknown", "other.ipynb: a.yaml: name: unknown",
        "bare.ipynb: needs exactly one cell tagged 'parameters', has 0",
        "odd.ipynb: parameter days: the type Pendulum is not supported",
        "gone.ipynb: ", "b.yaml: ",
    ):  # fmt: skip
        assert len([line for line in told if line.startswith(beginning)]) == 1, beginning
    assert not (tmp_path / "outputs").exists()


def test_files_after_one_f_are_all_taken_and_a_notebook_among_them_is_one(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    write_notebook(tmp_path, "n", "1")
    for name in ("a", "b"):
        Path(f"{name}.yaml").write_text("hours: 1\n")
    assert main(["-f", "a.yaml", "b.yaml", "n.ipynb"]) == 2
    said = capfd.readouterr().err
    assert "n.ipynb: a.yaml: hours: unknown" in said and "n.ipynb: b.yaml: hours: unknown" in said
    assert main(["-f", "a.yaml"]) == 2
    assert "name a notebook" in capfd.readouterr().err


def test_python_callers_get_the_same_checks(typed):
    with pytest.raises(UsageError, match="dayz: unknown; did you mean days"):
        run(typed, {"dayz": 1})


@pytest.mark.parametrize(
    "options", [["--deadline", "0"], ["--deadline", "soon"], ["--jobs", "0"], ["--quick"], ["-o", "."]]
)
def test_options_that_make_no_sense_are_usage_errors(typed, options, capsys):
    assert main(["typed.ipynb", *options]) == 2
    assert capsys.readouterr().err


def test_help_tells_all_exit_codes(capsys):
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"\n  {code}" in told for code in (0, 1, 2, 3, 4, 5, 130))


# --- redaction ---


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://h/k?a=1&X-Amz-Signature=0f&b=2", "https://h/k?a=1&X-Amz-Signature=[redacted]&b=2"),
        ("?X-Amz-Credential=AK%2F20&amp;x=1", "?X-Amz-Credential=[redacted]&amp;x=1"),
        ("{'X-Amz-Security-Token': 'Fw//'}", "{'X-Amz-Security-Token': '[redacted]'}"),
        ("next=https%3A%2F%2Fh%3Fsig%3Dab%26z%3D1", "next=https%3A%2F%2Fh%3Fsig%3D[redacted]%26z%3D1"),
        ("h/k?Expires=1&Signature=ab%2Bc%3D", "h/k?Expires=1&Signature=[redacted]"),
        ("h/k?temp_url_sig=ab&temp_url_expires=1", "h/k?temp_url_sig=[redacted]&temp_url_expires=1"),
        ("h/cb#access_token=ab", "h/cb#access_token=[redacted]"),
        ("h?token=ab", "h?token=[redacted]"),
        ("Authorization: Bearer ab.cd", "Authorization: Bearer [redacted]"),
        ("{'Authorization': 'Basic dTpw'}", "{'Authorization': 'Basic [redacted]'}"),
        ('{"access_token": "ab", "expires_in": 3600}', '{"access_token": "[redacted]", "expires_in": 3600}'),
        ("postgresql://user:pw@host/db", "postgresql://user:[redacted]@host/db"),
        ("key AKIAIOSFODNN7EXAMPLE.", "key [redacted]."),
        ("eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.c2ln", "[redacted]"),
    ],
)  # fmt: skip
def test_what_looks_like_a_secret_is_redacted(text, clean):
    assert redact(text, ()) == clean
    assert redact(clean, ()) == clean


@pytest.mark.parametrize(
    "text",
    [
        'session.headers["Authorization"] = f"Bearer {token}"',
        "hyp3 = HyP3(api_url=url, token=settings.token)",
        'url = f"{base}?token={token}"',
        "s3://bucket/key@2024:01 at http://127.0.0.1:5000/x",
        "12:03 PENDING -> RUNNING",
        "password: str = field()",
    ],
)
def test_what_does_not_is_left_alone(text):
    assert redact(text, ()) == text


@pytest.mark.parametrize("form", sorted(spellings(SECRET)))
def test_known_secrets_are_found_in_every_spelling(form):
    assert redact(f"<{form}>", {SECRET}) == "<[redacted]>"


@pytest.mark.parametrize("before", ["", "u", "us", "user:"])
def test_known_secrets_are_found_inside_of_base64(before):
    text = base64.b64encode(f"{before}{SECRET}!".encode()).decode()
    assert inside_base64(SECRET, before) in text
    assert inside_base64(SECRET, before) not in redact(text, {SECRET})


def test_short_secrets_are_only_found_as_words():
    assert redact("pass passport pass", {"pass"}) == "[redacted] passport [redacted]"
    assert redact("abc", {"abc"}) == "abc"


def test_a_secret_behind_terminal_colours_is_found():
    assert redact("\x1b[31mcanary-\x1b[0m12345", {"canary-12345"}) == "[redacted]"


def test_dictionaries_and_lists_are_redacted_too():
    value = {"Authorization": "anything", "n": [1, None, {"url": "h?sig=ab"}], "canary-1": "canary-1!"}
    clean = {
        "Authorization": "[redacted]",
        "n": [1, None, {"url": "h?sig=[redacted]"}],
        "[redacted]": "[redacted]!",
    }
    assert redact(value, {"canary-1"}) == clean


def test_a_secret_cut_in_two_by_the_kernel_is_found():
    halves = [nbformat.v4.new_output("stream", name="stdout", text=text) for text in ("canary-", "12345\n")]
    node = new_notebook(cells=[new_code_cell("x", outputs=halves)])
    assert redaction.redact_notebook(node, {"canary-12345"}).cells[0].outputs[0].text == "[redacted]\n"


def test_secrets_are_those_of_the_settings_and_of_telling_variables(monkeypatch):
    monkeypatch.setattr(settings, "secret_values", lambda: {"from-settings"})
    variables = {"CDSE_PASSWORD": "from-variable", "TOKEN_URL": "https://h/token", "PASSWORD": "short"}
    assert redaction.known_secrets(variables) == {"from-settings", "from-variable"}


# --- the canary: secrets go in through the environment, and nothing that comes out has them ---

LEAKS = (
    RECORD
    + """
import base64, os, sys
from urllib.parse import quote
from IPython.display import HTML, JSON
secret = os.environ["CANARY"]
print(secret, repr(secret), base64.b64encode(f"user:{secret}!".encode()).decode(), flush=True)
print(quote(secret, safe=""), file=sys.stderr, flush=True)
display(HTML(f"<a href='https://h/k?X-Amz-Signature=badcafe'>{secret}</a>"), JSON({"deep": [secret]}))
record("leak", {"secret": secret})
"""
)
CANARIES = {  # name: (last cell, deadline, outcome)
    "raises": ("# Ask h?token=badcafe\nraise ValueError(f'401 for {secret}')", 60, "failed"),
    "deadline": ("import time; time.sleep(60)", 5, "deadline"),
    "dies": ("import time; time.sleep(0.5); os._exit(1)", 60, "kernel died"),
}


@pytest.fixture(scope="module")
def canaries(tmp_path_factory):
    """The folder where all CANARIES were executed by the command line, and what that printed."""
    folder = tmp_path_factory.mktemp("canaries")
    printed = []
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(3) as pool:
        patch.setattr(settings, "secret_values", lambda: {SECRET})
        patch.setenv("CANARY", SECRET)
        patch.setattr(runner, "_to_stderr", printed.append)

        def execute(item):
            name, (last, deadline, _) = item
            source = write_notebook(folder / "sources", name, LEAKS, last)
            return name, main([f"{source}", "-o", f"{folder / 'out'}", "--deadline", f"{deadline}"])

        codes = dict(pool.map(execute, CANARIES.items()))
    assert codes == {name: runner.EXIT_CODES[outcome] for name, (*_, outcome) in CANARIES.items()}
    return folder / "out", "\n".join(printed)


@pytest.mark.parametrize("form", sorted({*spellings(SECRET), inside_base64(SECRET, "user:"), "badcafe"}))
def test_no_file_and_no_message_has_the_canary(canaries, form):
    folder, printed = canaries
    assert len(list(folder.iterdir())) == 3 * len(CANARIES)  # notebook, results and page of each
    assert form not in everything_in(folder)
    assert form not in printed


def test_what_was_around_the_canary_is_still_there(canaries):
    folder, printed = canaries
    for name in CANARIES:
        assert read_results(folder / f"{name}.ipynb") == {"leak": {"secret": "[redacted]"}}
    assert "ValueError: 401 for [redacted]" in printed
    assert "401 for [redacted]" in (folder / "raises.html").read_text()


def test_the_canary_test_can_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "secret_values", set)
    source = write_notebook(tmp_path / "source", "leaky", LEAKS)
    run(source, output=tmp_path / "out" / "leaky.ipynb", env={"CANARY": SECRET}, html=True)
    found = everything_in(tmp_path / "out")
    assert len([form for form in spellings(SECRET) if form in found]) >= 4
    assert inside_base64(SECRET, "user:") in found
    assert "badcafe" not in found  # what looks like a secret goes even when none is known


# --- the kernel's surroundings ---


def test_a_kernel_is_this_python_in_the_notebooks_folder_with_its_own_environment(tmp_path, monkeypatch):
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text('{"argv": ["/nowhere/python"], "display_name": "x", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(spec.parent.parent))
    cell = RECORD + "import os, sys\nrecord('seen', [sys.executable, os.getcwd(), os.environ['WHO'], days])"
    source = write_notebook(tmp_path / "here", "where", cell)

    def execute(number):
        output = tmp_path / f"{number}.ipynb"
        return run(source, {"days": number}, output=output, env={"WHO": f"run {number}"}).results["seen"]

    with ThreadPoolExecutor(2) as pool:
        seen = list(pool.map(execute, (1, 2)))
    assert seen == [[sys.executable, str(tmp_path / "here"), f"run {number}", number] for number in (1, 2)]
    assert "WHO" not in os.environ


# --- the command line ---


def test_each_notebook_runs_once_for_each_document_and_the_worst_ending_counts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "night.yaml").write_text("days: 1\n---\ndays: 0\n" if folder == "a" else "days: 2\n")
    write_notebook(tmp_path, "divide", "# Divide {days}", "1 / days")
    arguments = "divide.ipynb -f a/night.yaml -f b/night.yaml -o out --jobs 3 --no-html"
    assert main(arguments.split()) == 1
    names = {"divide--night-1", "divide--night-2", "divide--night"}
    assert {path.name for path in Path("out").iterdir()} == {n + s for n in names for s in (".ipynb", ".results.json")}
    told = capsys.readouterr().err.splitlines()
    assert any(line.startswith("[divide--night-1 3/3] ") and line.endswith(" s  ok  Divide {days}") for line in told)
    assert "[divide--night-2] failed in cell 3 (Divide {days}): ZeroDivisionError: division by zero" in told
    assert any(
        line.startswith("[divide--night-2] failed after ") and line.endswith("see out/divide--night-2.ipynb")
        for line in told
    )
    assert len(told) == 3 * 3 + 3 + 1  # nothing else: no chatter of libraries


def test_outputs_never_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planned = []
    monkeypatch.setattr(runner, "_run_all", lambda runs, jobs: planned.extend(runs) or [])
    paths = [
        write_notebook(tmp_path / folder, name)
        for folder, name in (("x", "a"), ("y", "A"), ("x", "a--f"), ("x", "{days}"))
    ]
    Path("f.yaml").write_text("{}")
    with pytest.raises(StopIteration):
        main([*map(str, paths), "-f", "f.yaml"])
    with pytest.raises(StopIteration):
        main([*map(str, paths)])
    names = [job.output.name for job in planned]
    assert names[:4] == ["a--f.ipynb", "A--f-2.ipynb", "a--f--f.ipynb", "{days}--f.ipynb"]
    assert names[4:] == ["a.ipynb", "A-2.ipynb", "a--f.ipynb", "{days}.ipynb"]


def test_the_page_is_complete_in_itself(canaries):
    page = (canaries[0] / "raises.html").read_text()
    assert "<script src=" not in page and "import(" not in page and "<link" not in page


def test_a_page_that_fails_is_only_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "_html", lambda node, title: 1 / 0)
    write_notebook(tmp_path, "a")
    Path("out").mkdir()
    Path("out/a.html").write_text("of an earlier run")
    assert main(["a.ipynb", "-o", "out"]) == 0
    assert "[a] no web page: ZeroDivisionError" in capsys.readouterr().err
    assert {path.name for path in Path("out").iterdir()} == {"a.ipynb", "a.results.json"}


def test_files_are_written_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(self, text, encoding):
        self.write_bytes(text.encode()[:5])
        raise OSError(28, "No space left on device")

    source = write_notebook(tmp_path / "source", "a")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.ipynb").write_text("an earlier result")
    monkeypatch.setattr(Path, "write_text", full)
    result = run(source, output=tmp_path / "out" / "a.ipynb")
    assert (result.outcome, result.exit_code, result.error["type"]) == ("failed", 1, "OSError")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.ipynb"]
    assert (tmp_path / "out" / "a.ipynb").read_text() == "an earlier result"


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Three notebooks, two at a time, interrupted: {signal: (exit code, stderr, folder of the results)}."""
    first = f"{RECORD}import os\nrecord('pid', os.getpid())\nprint('h?token=badcafe', flush=True)"
    second = "open(f'{os.getpid()}.started', 'w').close()\nimport time\ntime.sleep(60)"
    code = "import sys; from helpers.runner import main; sys.exit(main())"
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", code]
    options = ["-p", "days", "2", "-o", "out", "--jobs", "2", "--no-html"]

    def interrupt(number):
        folder = tmp_path_factory.mktemp(number.name)
        for name in ("a", "b", "c"):
            write_notebook(folder, name, first, second, parameters="days: int | None = 1")
        arguments = [*command, "a.ipynb", "b.ipynb", "c.ipynb", *options]
        with subprocess.Popen(arguments, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
            until = time.monotonic() + 30
            while len(list(folder.glob("*.started"))) < 2 and time.monotonic() < until:
                time.sleep(0.05)
            process.send_signal(number)
            _, stderr = process.communicate(timeout=20)
        return number, (process.returncode, stderr, folder / "out")

    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(interrupt, (signal.SIGINT, signal.SIGTERM)))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_saves_what_had_run_and_leaves_nothing_behind(interrupted, number, code):
    exit_code, _, folder = interrupted[number]
    assert exit_code == code
    saved = {path.name for path in folder.iterdir()}
    assert saved == {"a.ipynb", "a.results.json", "b.ipynb", "b.results.json"}  # c had not begun
    for name in ("a", "b"):
        record = json.loads((folder / f"{name}.results.json").read_text())
        assert record["outcome"] == "interrupted"
        assert not psutil.pid_exists(record["results"]["pid"])
    assert "[redacted]" in everything_in(folder)
    assert "badcafe" not in everything_in(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_libraries_do_not_chatter(interrupted, number):
    _, stderr, _ = interrupted[number]
    assert "interrupted in cell 4" in stderr  # after the injected parameters
    assert [line for line in stderr.splitlines() if not line.startswith(("[a", "[b"))] == []
