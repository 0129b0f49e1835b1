"""The form of the parameters, and the fields for missing credentials: what a person sees, types, and gets."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from pydantic import SecretStr

from helpers import redaction
from helpers import settings as settings_room
from helpers.errors import NotConfigured
from helpers.parameters import declared

CELL = """\
name: str = "first"  # a name of yours; empty: none
credits: float = 50  # refuse to spend more
workers: int = 4  # copies at the same time
dry_run: bool = True  # show the plan only
clash: str = "newest"  # which of two, one of: newest, first (the oldest); empty: as the archive says
inputs: list[str] = []  # what to convert; empty: a sample
pairs: list[list[str]] = [["a", "b"]]  # pairs of scenes
options: dict[str, str | int] = {}  # more
deadline_minutes: float = 180  # stop waiting after this long
"""
SECRET = "canary-of-a-form-0000000001"


@pytest.fixture
def here(monkeypatch):
    """A session in this process with the parameters cell run, in front of somebody: ``here(source)`` runs a cell."""
    import ipywidgets
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from traitlets.config import Config

    from helpers.notebook import front_end

    monkeypatch.setattr(front_end, "attended", lambda: True)
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))

    def run(source: str, *, fails: bool = False):
        with capture_output() as captured:
            result = shell.run_cell(source, store_history=True)
        assert fails == (not result.success), captured.stdout
        return captured

    run.shell = shell
    run(CELL)
    yield run
    ipywidgets.Widget.close_all()
    InteractiveShell.clear_instance()


SHOW = "from helpers import notebook\n\nnotebook.form()"


@pytest.fixture
def form(here):
    from helpers.notebook import forms

    here(SHOW)
    return forms._forms[here.shell]


def type_in(form, name: str, typed) -> None:
    """As the front end does it."""
    form.fields[name].input.set_state({"value": typed})


def value(here, name: str):
    return here.shell.user_ns[name]


# --- what is there ---


def test_a_row_a_parameter_in_the_order_of_the_cell_with_an_input_that_fits(form):
    kinds = {name: field.input._model_name.removesuffix("Model") for name, field in form.fields.items()}
    assert kinds == {
        "name": "Text",
        "credits": "Text",
        "workers": "Text",
        "dry_run": "Checkbox",
        "clash": "Dropdown",
        "inputs": "Textarea",
        "pairs": "Textarea",
        "options": "Textarea",
        "deadline_minutes": "Text",
    }
    assert [field.input.description for field in form.fields.values()] == list(kinds)  # a label, tied to its input
    assert "number: refuse to spend more" in form.fields["credits"].note.value
    assert form.fields["pairs"].input.value == "- [a, b]"
    assert form.fields["inputs"].input.placeholder == "empty: a sample"
    assert form.fields["clash"].input.options == (
        ("(empty): as the archive says", ""),
        ("newest", "newest"),
        ("first: the oldest", "first"),
    )


@pytest.mark.parametrize(
    ("name", "typed", "wanted"),
    [
        ("name", "", ""),
        ("credits", "12.5", 12.5),
        ("workers", " 8", 8),
        ("dry_run", False, False),
        ("inputs", "- a\n- 'b: c'", ["a", "b: c"]),
        ("inputs", "", []),
        ("pairs", "- [a, b]\n- [c, d]", [["a", "b"], ["c", "d"]]),
        ("options", "timespan: 3\nmode: fast", {"timespan": 3, "mode": "fast"}),
    ],
)
def test_what_is_typed_and_fits_is_the_value_at_once(here, form, name, typed, wanted):
    type_in(form, name, "-" if isinstance(typed, str) else typed)
    type_in(form, name, typed)
    assert value(here, name) == wanted and type(value(here, name)) is type(wanted)
    assert "recipes-problem" not in form.fields[name].note.value


@pytest.mark.parametrize(
    ("name", "typed", "said"),
    [
        ("credits", "much", "expected float, got 'much'"),
        ("workers", "1.5", "expected int, got '1.5'"),
        ("inputs", "a", "expected list[str], got 'a'"),
        ("inputs", "- 007", "put it in quotes"),
        ("pairs", "- [a", "as YAML"),
        ("deadline_minutes", "0", "0 is no time to wait"),
        ("name", "https://x.example/?X-Amz-Signature=0123456789abcdef", "looks like a secret"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason_and_the_last_that_fitted_stays(here, form, name, typed, said):
    before = value(here, name)
    type_in(form, name, typed)
    note = form.fields[name].note.value
    assert value(here, name) == before
    assert said.replace("'", "&#x27;") in note and "&#10007;" in note and "Not used; in force is:" in note
    assert f"Does not fit, and the setup cell will stop: {name}" in form.status.value


def test_setup_stops_while_the_form_has_what_does_not_fit(here, form, settings):
    """Who typed a limit that was refused must not go on without one; and it is not left out of the YAML unsaid."""
    type_in(form, "credits", "1,5")
    form.copying.copy()
    assert "# NOT in here, as what was typed does not fit: credits" in form.copying.as_yaml()
    stopped = here("notebook.setup()", fails=True)
    assert "credits: in the form, expected float, got '1,5'; correct it there" in stopped.stdout
    type_in(form, "credits", "1.5")
    here("notebook.setup()")


JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ5b3UifQ.c2lnbmF0dXJlLW9mLWl0"


@pytest.mark.parametrize("name", ["name", "workers", "credits", "inputs", "options"])
@pytest.mark.parametrize("typed", [JWT, f"- {JWT}", f"- [{SECRET}", f'- "{SECRET[:-1]}\\x31"'])
def test_a_secret_that_is_typed_stays_nowhere(here, form, monkeypatch, name, typed):
    """Refused before it is parsed, by a reason that does not repeat it; the field is emptied, and nothing echoed."""
    monkeypatch.setattr(settings_room, "_provided", {"EARTHDATA_TOKEN": SecretStr(SECRET)})
    before, field, sent = value(here, name), form.fields[name], []
    for widget in (field.input, field.note, form.status):
        monkeypatch.setattr(widget, "_send", lambda message, buffers=None: sent.append(message))
    type_in(form, name, typed)
    if typed.startswith('- "') and name in ("name", "workers", "credits"):
        return  # no text of YAML here, so there is no secret in it
    assert value(here, name) == before and "looks like a secret" in field.note.value
    assert field.input.value == "" and {"value": ""} in [message.get("state") for message in sent]
    told = str([sent, [widget.get_state() for widget in (field.input, field.note, form.status)]])
    assert JWT not in told and SECRET not in told and typed not in told


def test_a_secret_that_became_one_only_now_is_known_at_once(here, form, monkeypatch):
    monkeypatch.setattr(settings_room, "_provided", {})
    type_in(form, "workers", "3")
    settings_room.provide("EARTHDATA_TOKEN", SecretStr(SECRET))
    type_in(form, "name", SECRET)
    assert value(here, "name") == "first" and form.fields["name"].input.value == ""
    here(f"name = {SECRET!r}")  # nor does the form tell what a cell has made of it
    assert "a later cell has made of it" in form.fields["name"].note.value
    assert SECRET not in form.fields["name"].note.value


def test_numbers_are_read_as_a_person_writes_them():
    from helpers.notebook import forms

    known = declared("a: list[float] = []\nb: dict[str, float] = {}\nc: list[str] = []\nd: list[int] = []")
    assert forms._value(known["a"], "- 1e-3\n- -.5E2\n- 2") == [0.001, -50.0, 2]
    assert forms._value(known["b"], "x: 1e-3") == {"x": 0.001}
    assert forms._value(known["c"], "- 1e-3") == ["1e-3"]
    for wrong in ("- 1e-3", "- true", "- '7'"):
        with pytest.raises(ValueError, match=r"expected list\[int\]"):
            forms._value(known["d"], wrong)


def test_what_the_empty_value_means_is_told_to_its_end():
    known = declared(
        'a: list[str] = []  # names; empty: HOOK_ID; in the sandbox, else, a tile\nb: str = ""  # empty: x; one of: y'
    )
    assert known["a"].if_empty == "HOOK_ID; in the sandbox, else, a tile" and known["b"].if_empty == "x"


def test_every_choice_can_be_chosen_and_nothing_else(here, form):
    form.fields["clash"].input.set_state({"index": 2})
    assert value(here, "clash") == "first"
    form.fields["clash"].input.set_state({"index": 0})
    assert value(here, "clash") == ""


def test_nothing_is_left_in_the_namespace(here, form):
    type_in(form, "credits", "7")
    mine = {name for name in here.shell.user_ns if not name.startswith("_")}
    assert mine - {"In", "Out", "get_ipython", "exit", "quit", "open", "notebook"} == set(declared(CELL))
    assert here.shell.user_ns["Out"] == {}


# --- the cell, the form, and Run All ---


def test_edits_outlast_run_all(here, form):
    type_in(form, "credits", "7")
    type_in(form, "inputs", "- a")
    here(CELL)
    assert (value(here, "credits"), value(here, "inputs")) == (7, ["a"])  # before the form's cell runs, too
    here(SHOW)
    assert (value(here, "credits"), value(here, "inputs")) == (7, ["a"])
    assert "changed; in the cell: 50" in form.fields["credits"].note.value
    assert "2 values changed" in form.status.value


def test_a_changed_cell_wins_but_only_where_it_was_changed(here, form):
    type_in(form, "credits", "7")
    type_in(form, "workers", "9")
    here(CELL.replace("= 50 ", "= 60 "))
    assert (value(here, "credits"), value(here, "workers")) == (60, 9)
    assert form.fields["credits"].input.value == "60"
    assert "recipes-changed" not in form.fields["credits"].note.value
    here(CELL)  # and back again: what was typed long ago does not come back
    assert value(here, "credits") == 50


def test_a_cell_with_other_parameters_gets_another_form(here, form):
    from helpers.notebook import forms

    type_in(form, "workers", "9")
    here(CELL + "extra: int = 1  # one more\n")
    assert "run this cell again" in form.status.value
    here(SHOW)
    again = forms._forms[here.shell]
    assert list(again.fields) == [*form.fields, "extra"]
    assert value(here, "workers") == 9 and again.fields["workers"].input.value == "9"
    type_in(again, "workers", "10")
    here(CELL)
    assert value(here, "workers") == 10


def test_what_a_later_cell_makes_of_a_parameter_is_told_and_not_kept(here, form):
    """Notebook 1 fills in the bucket's name: the next run must not take that for what the person wants."""
    here('name = name + "-of-an-account"')
    assert "a later cell has made of it: &quot;first-of-an-account&quot;" in form.fields["name"].note.value
    here(CELL)
    assert value(here, "name") == "first"
    assert "recipes-later" not in form.fields["name"].note.value


def test_a_list_that_a_cell_adds_to_does_not_grow_with_every_run(here, form):
    type_in(form, "inputs", "- a")
    for _ in range(2):
        here(CELL)
        here('inputs.append("b")')
        assert value(here, "inputs") == ["a", "b"]


COMPUTED = """\
number: int = 1 + next(counter)  # another with each run
kind: str = "a"
"""


@pytest.fixture
def computed(here):
    """A form of a cell that computes a value: 1, 2, 3, ..."""
    from helpers.notebook import forms

    here("import itertools; counter = itertools.count()")
    here(COMPUTED)
    here(SHOW)
    return forms._forms[here.shell]


def test_what_the_cell_computes_is_no_edit(here, computed):
    assert computed.fields["number"].input.value == "1" and computed.edits == {}
    here(COMPUTED)
    assert value(here, "number") == 2 and computed.fields["number"].input.value == "2"
    note = computed.fields["number"].note.value
    assert note == '<div class="recipes-meaning">whole number: another with each run</div>'
    assert "# number: as the notebook computes it" in computed.copying.as_yaml()
    computed.back()
    assert value(here, "number") == 2
    here(COMPUTED + "more: int = 1\n")
    here(SHOW)
    assert value(here, "number") == 3, "nor for the next form"


def test_what_is_typed_over_it_lasts_until_it_is_taken_back_or_the_expression_changed(here, computed):
    type_in(computed, "number", "70")
    here(COMPUTED)
    assert value(here, "number") == 70 and "changed; in the cell: 2" in computed.fields["number"].note.value
    computed.back()
    assert value(here, "number") == 2 and computed.edits == {}
    type_in(computed, "number", "70")
    here(COMPUTED.replace("1 +", "10 +"))
    assert value(here, "number") == 12 and "recipes-changed" not in computed.fields["number"].note.value


@pytest.mark.parametrize(
    "made",
    [
        "import numpy; name = numpy.arange(3)",
        "import pandas; inputs = pandas.DataFrame({'a': [1, 2]})",
        "class Odd:\n    __eq__ = __repr__ = __str__ = lambda *_: 1 / 0\nname = credits = Odd()",
        "options = {(1, 2): 3}",
    ],
)
def test_whatever_a_later_cell_makes_of_it_no_cell_complains(here, form, made):
    """IPython would print "Error in callback" with a traceback below every cell from then on."""
    shown = here(made)
    assert (shown.stdout, shown.stderr) == ("", "")
    assert any("a later cell has made of it" in field.note.value for field in form.fields.values())
    here(SHOW)
    here(CELL)
    assert not any("recipes-later" in field.note.value for field in form.fields.values())


def test_a_form_that_comes_after_it_takes_no_table_for_an_edit(here):
    from helpers.notebook import forms

    here("import numpy; inputs = numpy.arange(3); dry_run = 1")
    here(SHOW)
    assert forms._forms[here.shell].edits == {}


def test_an_error_in_the_form_itself_is_told_there_and_not_below_the_cell(here, form, monkeypatch):
    monkeypatch.setattr(form, "follow", lambda: 1 / 0)
    shown = here("1")
    assert shown.stderr == "" and "Error" not in shown.stdout
    assert "cannot follow this cell (ZeroDivisionError)" in form.status.value


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [(1, True, False), ([1], [True], False), ({1: 2}, {True: 2}, False), ({"a": [0]}, {"a": [False]}, False),
     (50, 50.0, True), ("a", "a", True), ([], {}, False), ({"a": 1}, {"a": 1}, True)],
)  # fmt: skip
def test_values_are_the_same_if_their_types_are(one, other, same):
    from helpers.notebook import forms

    assert forms._same(one, other) is same


def test_back_to_the_cells_values(here, form):
    type_in(form, "credits", "7")
    type_in(form, "workers", "many")
    form.back()
    assert (value(here, "credits"), value(here, "workers")) == (50, 4)
    assert (form.fields["credits"].input.value, form.fields["workers"].input.value) == ("50", "4")
    assert "No values changed" in form.status.value and "All values fit" in form.status.value
    here(CELL)
    assert value(here, "credits") == 50


def test_what_the_form_says_is_what_setup_finds(here, form, environment, monkeypatch):
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    type_in(form, "credits", "7")
    here(CELL)
    shown = here("notebook.setup()")
    assert "credits" in shown.outputs[1].data["text/html"] and ">7.0<" in shown.outputs[1].data["text/html"]


def test_without_the_parameters_cell_it_says_what_to_do(here):
    here.shell.user_ns["In"][:] = [""]
    assert "Run the parameters cell first" in str(here(SHOW).outputs[0].data)


# --- as YAML ---


def test_as_yaml_it_is_a_parameter_file_with_what_was_changed(here, form, monkeypatch, tmp_path):
    from helpers import runner

    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "3_archive.ipynb"))
    type_in(form, "credits", "7")
    type_in(form, "pairs", "- [a, b]\n- [c, 'd: e']")
    form.copying.copy()
    text = form.copying.as_yaml()
    assert "python -m helpers run notebooks/3_archive.ipynb -f my-parameters.yaml" in text
    file = tmp_path / "my-parameters.yaml"
    file.write_text(text)
    problems = []
    assert runner._documents(file, problems)[0][2] == {"credits": 7.0, "pairs": [["a", "b"], ["c", "d: e"]]}
    assert problems == []
    # With the comments taken away it is everything.
    everything = yaml.safe_load(re.sub("^# (?=[a-z ]+)(?!.*run |.*notebook:)", "", text, flags=re.MULTILINE))
    assert everything == {name: value(here, name) for name in form.parameters}
    (script,) = form.copying.script.outputs
    assert json.dumps(text) in script["data"]["application/javascript"]
    assert "readonly" in form.copying.text.value


def test_what_does_not_fit_gets_into_no_file(here, form):
    type_in(form, "credits", "much")
    assert "much" not in form.copying.as_yaml() and "# credits: 50" in form.copying.as_yaml()


# --- choices in the comment ---


def test_a_choice_is_checked_wherever_parameters_come_from():
    clash = declared(CELL)["clash"]
    assert clash.check("newest") == clash.convert("newest") == "newest" and clash.convert("") == ""
    for wrong in (clash.check, clash.convert):
        with pytest.raises(ValueError, match="expected one of empty, newest or first, got 'latest'"):
            wrong("latest")


# --- with a kernel: who is there, and what goes over the wire ---


@pytest.fixture(scope="module")
def kernel():
    """A kernel and its client, as JupyterLab has them."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3", env=os.environ | {"RECIPES_BACKEND": "live"})
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def ask(client, source: str, *, cell: str | None = "a-cell") -> list[dict]:
    """Run a cell as JupyterLab asks for it (or, without ``cell``, as papermill does); every message that came back."""
    content = {"code": source, "silent": False, "store_history": True, "allow_stdin": False, "stop_on_error": True}
    message = client.session.msg("execute_request", content | {"user_expressions": {}})
    message["metadata"] = {"cellId": cell} if cell else {}
    client.shell_channel.send(message)
    return answers(client, message)


def answers(client, message) -> list[dict]:
    found = []
    while True:
        answer = client.get_iopub_msg(timeout=60)
        if answer["parent_header"].get("msg_id") != message["header"]["msg_id"]:
            continue
        found.append(answer)
        if answer["msg_type"] == "status" and answer["content"]["execution_state"] == "idle":
            return found


def kinds(messages) -> list[str]:
    return [message["msg_type"] for message in messages if message["msg_type"] not in ("status", "execute_input")]


def test_without_a_front_end_nothing_is_shown_and_no_widget_is_made(kernel):
    ask(kernel, CELL, cell=None)
    assert kinds(ask(kernel, SHOW, cell=None)) == []
    said = ask(kernel, "import sys; print('ipywidgets' in sys.modules, credits)", cell=None)
    assert next(m["content"]["text"] for m in said if m["msg_type"] == "stream") == "False 50\n"


def test_with_one_there_is_a_form_and_on_paper_a_sentence(kernel):
    ask(kernel, CELL)
    above, data = [m["content"]["data"] for m in ask(kernel, SHOW) if m["msg_type"] == "display_data"]
    assert set(above) == {"text/plain", "text/html"} and "If you see no form below, run this cell." in str(above)
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "text/plain", "text/html"}
    assert data["text/plain"] == "Form of the parameters: open this notebook in JupyterLab, and run this cell."


def test_a_secret_goes_to_the_kernel_and_nothing_of_it_comes_back(kernel):
    """Fields beneath the error; what is typed is in use and known to redaction, and no message has it."""
    ask(kernel, CELL)
    shown = ask(kernel, "from helpers import notebook\nnotebook.setup('earthdata', 'rs-python')")
    assert kinds(shown)[-1] == "display_data" and "error" in kinds(shown), "beneath the error"
    opened = {m["content"]["comm_id"]: m["content"]["data"]["state"] for m in shown if m["msg_type"] == "comm_open"}
    inputs = {state["description"]: (comm, state["_model_name"]) for comm, state in opened.items()
              if state.get("description")}  # fmt: skip
    assert {name: kind for name, (_, kind) in inputs.items()} == {
        "EARTHDATA_TOKEN": "PasswordModel",
        "RSPY_WEBSITE": "TextModel",
        "RSPY_OWNER_ID": "TextModel",
        "S3_ENDPOINT": "TextModel",
        "S3_ACCESSKEY": "PasswordModel",
        "S3_SECRETKEY": "PasswordModel",
    }

    def typed(name: str, text: str) -> list[dict]:
        data = {"method": "update", "state": {"value": text}, "buffer_paths": []}
        message = kernel.session.msg("comm_msg", {"comm_id": inputs[name][0], "data": data})
        kernel.shell_channel.send(message)
        return answers(kernel, message)

    back = typed("EARTHDATA_TOKEN", SECRET)
    emptied = [m["content"] for m in back if m["msg_type"] == "comm_msg"
               and m["content"]["comm_id"] == inputs["EARTHDATA_TOKEN"][0]]  # fmt: skip
    assert [content["data"]["state"] for content in emptied] == [{"value": ""}]
    assert "EARTHDATA_TOKEN is in use" in str(back) and "Still missing" in str(back)
    misplaced = typed("RSPY_WEBSITE", f"https://me:{SECRET}@rs.example.org")  # it was sent there, and goes no further
    states = [m["content"]["data"]["state"] for m in misplaced if m["msg_type"] == "comm_msg"
              and m["content"]["data"]["method"] == "update"]  # fmt: skip
    assert {"value": ""} in states and "looks like a secret" in str(states) and SECRET not in str(states)
    bad = typed("S3_ENDPOINT", "not-an-address")
    assert "S3_ENDPOINT: found" in str(bad) and "✗" in str(bad).replace("&#10007;", "✗")
    for name, text in {
        "S3_ENDPOINT": "https://s3.example.org", "RSPY_WEBSITE": "https://rs.example.org", "RSPY_OWNER_ID": "me",
        "S3_ACCESSKEY": SECRET, "S3_SECRETKEY": SECRET,
    }.items():  # fmt: skip
        back += typed(name, text)
    assert "Everything is there. Run the setup cell again." in str(back)
    everything = shown + back + bad
    everything += ask(kernel, "settings = notebook.setup('earthdata', 'rs-python'); settings")
    everything += ask(kernel, "%xmode Verbose\n1 / 0")
    everything += ask(kernel, "import ipywidgets; print(ipywidgets.Widget.get_manager_state())")
    assert SECRET not in str(everything)
    same = f"settings.earthdata_token.get_secret_value() == {SECRET!r}"
    used = ask(kernel, f"from helpers import redaction\nprint({same}, redaction.redact({SECRET!r}))")
    assert [m["content"]["text"] for m in used if m["msg_type"] == "stream"] == ["True [redacted]\n"]


# --- given by hand ---


@pytest.fixture
def given(monkeypatch):
    monkeypatch.setattr(settings_room, "_provided", {})
    monkeypatch.setenv("RECIPES_BACKEND", "live")


def test_what_is_given_wins_over_the_environment_and_is_masked(given, monkeypatch):
    monkeypatch.setenv("EARTHDATA_TOKEN", "of-the-environment")
    settings_room.provide("EARTHDATA_TOKEN", SecretStr(f" {SECRET}\n"))
    settings = settings_room.read()
    assert settings.earthdata_token.get_secret_value() == SECRET and SECRET not in repr(settings)
    assert redaction.redact(f"token {SECRET}") == "token [redacted]"
    settings_room.provide("EARTHDATA_TOKEN", SecretStr(""))
    assert settings_room.read().earthdata_token.get_secret_value() == "of-the-environment"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("CATALOG_DSN", f"host=db password={SECRET}", "must begin with one of postgresql://"),
        ("EARTHDATA_TOKEN", "your-token", "placeholder"),
        ("NO_SUCH_SETTING", "x", "There is no setting NO_SUCH_SETTING"),
    ],
)
def test_what_does_not_fit_is_refused_without_repeating_it(given, name, text, said):
    with pytest.raises(NotConfigured, match=said) as error:
        settings_room.provide(name, SecretStr(text))
    assert text not in str(error.value)
    assert settings_room._provided == {}


def test_the_sandbox_never_sees_what_was_given_for_a_live_run(given, settings, monkeypatch):
    monkeypatch.setenv("RECIPES_BACKEND", "sandbox")
    settings_room.provide("EARTHDATA_TOKEN", SecretStr(SECRET))
    settings_room.provide("AWS_SESSION_TOKEN", SecretStr(SECRET))
    loaded = settings_room.load()
    assert loaded.earthdata_token == settings.earthdata_token and loaded.aws_session_token is None


def test_every_notebook_declares_choices_that_its_own_value_is_one_of():
    import nbformat

    files = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
    found = {}
    for file in files:
        cells = nbformat.read(file, as_version=4).cells
        source = next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", ()))
        found |= {(file.stem[0], name): kind for name, kind in declared(source).items() if kind.choices}
    assert {name for _, name in found} >= {"clash", "converter", "storage", "source_type"}
    assert [key for key, kind in found.items() if kind.default not in kind.choices] == []
