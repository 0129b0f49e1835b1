"""The parameters as a form, for those who sit in front of JupyterLab: made from the parameters cell itself.

Widgets are imported only once somebody is there to see them. What is typed changes the variables of the notebook at
once, if it fits. Running the parameters cell again would undo that, and "Run All" does just so; therefore edits are
remembered by what stood in the cell: as long as that is the same, they are applied after the cell has run, and as soon
as the cell is changed, the cell wins.
"""

import json
import re
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from functools import cache
from html import escape
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import yaml
from IPython import get_ipython
from IPython.display import Javascript, display

from .. import settings as settings_room
from ..parameters import Parameter
from ..redaction import known_secrets, redact, reveals_secret
from . import front_end
from .setting_up import fault, parameters_cell, parameters_of
from .showing import show

#: What a reader on paper sees in place of the form.
ON_PAPER = "Form of the parameters: open this notebook in JupyterLab, and run this cell."
INTRODUCTION = (
    "What you change here is what the cells below use, also after Run All; change the cell above, and the cell wins. It"
    " is kept until the kernel stops. If you see no form below, run this cell."
)
#: Types as a newcomer would call them.
KINDS = {"str": "text", "int": "whole number", "float": "number", "bool": "yes or no"}

#: How a form looks: JupyterLab's own colours, so that it is right in every theme.
STYLE = """<style>
.recipes-form { color: var(--jp-ui-font-color1); max-width: 60em; overflow: visible; }
.recipes-form .recipes-field { border-top: 1px solid var(--jp-border-color2); padding: 4px 0; overflow: visible; }
.recipes-form .widget-inline-hbox, .recipes-form .jupyter-widgets.widget-checkbox { width: auto; height: auto; }
.recipes-form .recipes-input { display: flex; flex-wrap: wrap; width: 100%; max-width: 100%; margin: 0; }
.recipes-form .recipes-input > .widget-label { flex: 0 0 auto; min-width: 12em; width: auto; height: auto;
  text-align: left; white-space: normal; overflow-wrap: anywhere;
  font-family: var(--jp-code-font-family); color: var(--jp-ui-font-color1); }
.recipes-form .recipes-input > :is(input, select, textarea) { flex: 1 1 16em; min-width: 0; max-width: 100%; }
.recipes-form .recipes-input > select { min-height: var(--jp-widgets-inline-height); }
.recipes-form .recipes-input textarea { font-family: var(--jp-code-font-family); resize: vertical; }
.recipes-form .recipes-input .widget-label-basic { font-family: var(--jp-code-font-family); margin: 0; }
.recipes-form .recipes-note { width: auto; max-width: 100%; margin: 0; }
.recipes-form .recipes-note .widget-html-content, .recipes-form .recipes-status .widget-html-content {
  line-height: 1.4; overflow-wrap: anywhere; white-space: normal; }
.recipes-form .recipes-meaning { color: var(--jp-ui-font-color1); }
.recipes-form .recipes-changed { font-weight: 600; }
.recipes-form .recipes-problem { font-weight: 600; border-left: 4px solid var(--jp-error-color1); padding-left: 6px; }
.recipes-form .recipes-yaml, .recipes-form .recipes-yaml .widget-html-content { width: auto; max-width: 100%; }
.recipes-form .recipes-yaml textarea { width: 100%; box-sizing: border-box; resize: vertical;
  font-family: var(--jp-code-font-family); color: var(--jp-ui-font-color1); background: var(--jp-layout-color1);
  border: 1px solid var(--jp-border-color1); }
.recipes-form .recipes-buttons { flex-wrap: wrap; overflow: visible; }
.recipes-form .recipes-buttons button { width: auto; }
.recipes-form :is(input, select, textarea, button):focus-visible { outline: 2px solid var(--jp-brand-color1);
  outline-offset: 1px; }
</style>"""


def form() -> None:
    """Show the parameters as a form, if somebody can use it; without a front end, nothing happens.

    What is typed there and fits is the value of the variable from then on; anything else is refused with the reason,
    and the value before stays. Edits outlast "Run All", until the parameters cell itself is changed or the kernel ends.
    """
    if not front_end.attended():
        return
    parameters = parameters_cell()
    if not parameters:
        show(None, "Run the parameters cell first, then this one: the form is made from it.")
        return
    shell = get_ipython()
    known = _forms.get(shell)
    if known is None or known.parameters != parameters:
        _forms[shell] = _Form(shell, parameters, known)
    _forms[shell].show()


def unfit() -> dict[str, str]:
    """What stands in the form of this notebook and is not used, as it does not fit: the reason by name."""
    known = _forms.get(get_ipython())
    return {name: field.problem for name, field in known.fields.items() if field.problem} if known else {}


def show_widget(widget: Any, on_paper: str) -> None:
    """Show a widget, and where it cannot be shown (any more), a sentence."""
    view = widget._repr_mimebundle_()
    display(view | {"text/plain": on_paper, "text/html": f"<p>{escape(on_paper)}</p>"}, raw=True)


#: JupyterLab takes keys for commands wherever one cannot write: "x" on a checkbox of ours would cut the cell. It leaves
#: an element with this attribute alone; with Ctrl it may have its way. On the window: JupyterLab listens on the page.
_KEYBOARD = """
if (!window.recipesKeyboard) {
  window.recipesKeyboard = true;
  window.addEventListener("keydown", (event) => {
    if (event.target.closest?.(".recipes-form")) {
      const ours = !(event.ctrlKey || event.metaKey || event.altKey);
      event.target.toggleAttribute("data-lm-suppress-shortcuts", ours);
    }
  }, true);
}
"""


def keyboard_for_itself() -> Any:
    """A part of a form, without a picture, that keeps JupyterLab's keyboard commands out of it."""
    import ipywidgets

    script = ipywidgets.Output()
    script.append_display_data(Javascript(_KEYBOARD))
    return script


@cache
def _text_fields() -> tuple[type, type]:
    """Inputs for one line and for several, of which the kernel repeats nothing: a secret may be typed by mistake."""
    import ipywidgets
    from traitlets import Unicode

    class Line(ipywidgets.Text):
        value = Unicode("").tag(sync=True, echo_update=False)

    class Lines(ipywidgets.Textarea):
        value = Unicode("").tag(sync=True, echo_update=False)

    return Line, Lines


class _Form:
    """The widgets, and what was typed into them."""

    def __init__(self, shell: Any, parameters: dict[str, Parameter], before: "_Form | None"):
        import ipywidgets

        self.shell, self.parameters, self.outdated = shell, dict(parameters), False
        #: What the cell made of the parameters whose value it computes: as of its last run, or of now.
        self.given = {name: _copy(shell.user_ns.get(name)) for name, kind in parameters.items() if kind.expression}
        #: Values that differ from the cell and came through the form, or from outside before it was there.
        self.edits = {}
        for name, kind in parameters.items():
            if not kind.expression and self._differs(name) and not fault(name, kind, shell.user_ns.get(name)):
                self.edits[name] = _copy(shell.user_ns[name])
        if before:
            before.close()
            for name in self.given.keys() & before.given.keys():
                self.given[name] = before.given[name]
                if name in before.edits:
                    self.edits[name] = before.edits[name]
        self.fields = {name: _Field(name, parameter, self) for name, parameter in parameters.items()}
        self.status = ipywidgets.HTML().add_class("recipes-status")
        self.copying = _Copying(self)
        back = ipywidgets.Button(description="Back to the cell's values").add_class("recipes-back")
        back.on_click(lambda _: self.back())
        buttons = ipywidgets.HBox([self.copying.button, back]).add_class("recipes-buttons")
        style = ipywidgets.HTML(STYLE, layout={"display": "none"})
        rows = [keyboard_for_itself(), style, *(field.box for field in self.fields.values())]
        rows += [self.status, buttons, self.copying.box]
        self.box = ipywidgets.VBox(rows).add_class("recipes-form")
        shell.events.register("post_run_cell", self._after_cell)
        self.follow()

    def close(self) -> None:
        """Take the form away; another one replaces it."""
        self.shell.events.unregister("post_run_cell", self._after_cell)
        _close(self.box)

    def show(self) -> None:
        self.follow()
        # A document that is opened without its kernel has no widget any more, only this.
        show(f"<p><b>The parameters as a form.</b> {INTRODUCTION}</p>", f"The parameters as a form. {INTRODUCTION}")
        show_widget(self.box, ON_PAPER)

    def set(self, name: str, value: Any) -> None:
        """Put a value that fits into the variable of the notebook."""
        self.shell.user_ns[name] = _copy(value)
        if self._differs(name):
            self.edits[name] = value
        else:
            self.edits.pop(name, None)
        self.tell()

    def back(self) -> None:
        """Forget all edits: the variables and the fields have the cell's values again."""
        for name, parameter in self.parameters.items():
            if name in self.edits or not parameter.expression:
                self.shell.user_ns[name] = _copy(self.in_cell(name))
        self.edits.clear()
        for name, field in self.fields.items():
            field.show(self.in_cell(name))
        self.tell()

    def in_cell(self, name: str) -> Any:
        """What the cell has for a parameter or, if it is computed there, what came of it."""
        parameter = self.parameters[name]
        return self.given.get(name) if parameter.expression else parameter.default

    def in_force(self, name: str) -> Any:
        """What the form has for a parameter: typed here or, if nothing was, in the cell."""
        return self.edits.get(name, self.in_cell(name))

    def follow(self) -> None:
        """Let the fields show what is in force."""
        for name, field in self.fields.items():
            if not field.problem:
                field.show(self.in_force(name))
        self.tell()

    def tell(self) -> None:
        """Explain below each field, and below all of them, how things stand."""
        for field in self.fields.values():
            field.tell()
        unfit = [name for name, field in self.fields.items() if field.problem]
        said = f"{len(self.edits) or 'No'} value{'s' * (len(self.edits) != 1)} changed."
        said += " &#10003; All values fit, each by itself; the setup cell checks them together." * (not unfit)
        said += f" &#10007; Does not fit, and the setup cell will stop: {', '.join(unfit)}." if unfit else ""
        if self.outdated:
            said += (
                " &#8594; The parameters cell is no longer the one that this form was made from: run this cell again."
            )
        self.status.value = f'<div role="status">{said}</div>'

    def _differs(self, name: str) -> bool:
        return not _same(self.shell.user_ns.get(name), self.in_cell(name))

    def _after_cell(self, result: Any) -> None:
        try:
            self._follow_cell(result)
        except Exception as error:  # noqa: BLE001 - IPython would print a traceback below every cell, for ever
            self.status.value = (
                f'<div role="status">&#10007; The form cannot follow this cell ({type(error).__name__}):'
                " run the parameters cell and the form's cell again.</div>"
            )

    def _follow_cell(self, result: Any) -> None:
        """After the parameters cell: apply the edits again, unless the cell has changed. After any cell: follow it."""
        cell = parameters_of(result.info.raw_cell) if result.info and result.info.raw_cell else {}
        if cell.keys() & self.parameters.keys():
            for name in cell.keys() & self.parameters.keys():
                now, known = cell[name], self.parameters[name]
                if now.expression:
                    self.given[name] = _copy(self.shell.user_ns.get(name))
                if (now.expression, _text(now, now.default)) != (known.expression, _text(known, known.default)):
                    self.edits.pop(name, None)
                    self.fields[name].problem = ""
                elif name in self.edits:
                    self.shell.user_ns[name] = _copy(self.edits[name])
                if replace(known, default=now.default, expression=now.expression) == now:
                    self.parameters[name] = self.fields[name].parameter = now
            self.outdated = cell != self.parameters  # other names, types or comments: these need other fields
        self.follow()


class _Field:
    """One row: name, input, meaning, and what is wrong with what was typed."""

    def __init__(self, name: str, parameter: Parameter, form: _Form):
        import ipywidgets

        self.name, self.parameter, self.form = name, parameter, form
        self.problem = ""
        self._filling = False
        self.input = self._widget()
        self.input.observe(self._typed, "value")
        self.note = ipywidgets.HTML().add_class("recipes-note")
        self.box = ipywidgets.VBox([self.input.add_class("recipes-input"), self.note]).add_class("recipes-field")
        self.show(form.in_force(name))

    def _widget(self) -> Any:
        import ipywidgets

        parameter, name = self.parameter, self.name
        if parameter.choices:
            options = [(_label(parameter, choice), choice) for choice in parameter.choices]
            return ipywidgets.Dropdown(options=options, value=None, description=name)
        if parameter.annotation == "bool":
            return ipywidgets.Checkbox(description=name, indent=False)
        hint = f"empty: {parameter.if_empty}" if parameter.if_empty else ""
        if parameter.annotation in KINDS and "\n" not in str(parameter.default):
            return _text_fields()[0](description=name, placeholder=hint)
        lines = _text(parameter, parameter.default).splitlines()
        rows = min(max(2, 1 + sum(1 + len(line) // 70 for line in lines)), 12)  # long ones are wrapped
        return _text_fields()[1](description=name, placeholder=hint, rows=rows)

    def show(self, value: Any) -> None:
        """Put a value into the input, and take back what was wrong with the one before."""
        self._filling = True
        try:
            if self.parameter.choices:
                self.input.value = next((choice for choice in self.parameter.choices if _same(choice, value)), None)
            elif self.parameter.annotation == "bool":
                self.input.value = value is True
            elif self.problem or not self._means(value):
                self.input.value = _text(self.parameter, value)
        finally:
            self._filling = False
        self.problem = fault(self.name, self.parameter, value) or ""

    def _means(self, value: Any) -> bool:
        """Whether the input stands for this value already: nobody's way of writing it is changed then."""
        try:
            return _same(_value(self.parameter, self.input.value), value)
        except ValueError:
            return False

    def _typed(self, change: Any) -> None:
        if self._filling:
            return
        value, self.problem = self._read(change["new"])
        if self.problem is NOT_STORED:
            self._filling = True
            try:
                self.input.value = ""
            finally:
                self._filling = False
        if self.problem:
            self.form.tell()
        else:
            self.form.set(self.name, value)

    def _read(self, typed: Any) -> tuple[Any, str]:
        """What an input stands for, and what is wrong with it; of a secret nothing is said but that it is one."""
        secrets = known_secrets()
        if isinstance(typed, str) and not self.parameter.choices and _holds_secret(typed, secrets):
            return None, NOT_STORED
        try:
            value = _value(self.parameter, typed)
        except ValueError as error:
            said = str(error)
            return None, NOT_STORED if _holds_secret(said, secrets) else said
        if reveals_secret(value, secrets):  # written so that only YAML sees it
            return None, NOT_STORED
        return value, fault(self.name, self.parameter, value) or ""

    def tell(self) -> None:
        """Say below the input what the parameter means, whether it was changed, and what is wrong."""
        meaning = ": ".join(filter(None, [_kind(self.parameter), self.parameter.comment]))
        lines = [f'<div class="recipes-meaning">{escape(meaning)}</div>']
        in_cell, in_force = self.form.in_cell(self.name), self.form.in_force(self.name)
        now = self.form.shell.user_ns.get(self.name)
        if self.name in self.form.edits:
            said = f"&#9998; changed; in the cell: {_short(in_cell)}"
            lines.append(f'<div class="recipes-changed">{said}</div>')
        if not _same(now, in_force):
            said = f"&#8594; a later cell has made of it: {_short(now)}"
            lines.append(f'<div class="recipes-later">{said}</div>')
        if self.problem:
            said = f"&#10007; {escape(self.problem)}. Not used; in force is: {_short(now)}"
            lines.append(f'<div class="recipes-problem" role="alert">{said}</div>')
        self.note.value = "".join(lines)


class _Copying:
    """The button "Copy as YAML", and the text that it copies."""

    def __init__(self, form: _Form):
        import ipywidgets

        self.form = form
        self.button = ipywidgets.Button(description="Copy as YAML").add_class("recipes-copy")
        self.button.on_click(lambda _: self.copy())
        # Not a Textarea of ipywidgets: that can only be disabled, and then nobody selects in it with the keyboard.
        self.text = ipywidgets.HTML().add_class("recipes-yaml")
        self.said = ipywidgets.HTML().add_class("recipes-note")
        self.script = ipywidgets.Output()
        self.box = ipywidgets.VBox([self.text, self.said, self.script], layout={"display": "none"})

    def copy(self) -> None:
        """Show the text, and have the browser copy it."""
        text = self.as_yaml()
        rows = min(text.count("\n") + 1, 24)
        self.text.value = f'<textarea readonly rows="{rows}" aria-label="As YAML">{escape(text)}</textarea>'
        self.box.layout.display = None
        self.said.value = f'<div role="status" id="copied-{self.said.model_id}">Copying ...</div>'
        script = _COPY % (json.dumps(text), json.dumps(f"copied-{self.said.model_id}"))
        self.script.outputs = ()
        self.script.append_display_data(Javascript(script))

    def as_yaml(self) -> str:
        """A parameter file: what was changed; the rest as comments, so that the file tells all that a run used."""
        notebook = settings_room.notebook_path() or Path("NOTEBOOK.ipynb")
        lines = [f"# Parameters of {notebook.name}. Save this as my-parameters.yaml, then run in batch:"]
        lines += [f"#   python -m helpers run notebooks/{notebook.name} -f my-parameters.yaml"]
        edits = self.form.edits
        unfit = [name for name, field in self.form.fields.items() if field.problem]
        lines += [f"# NOT in here, as what was typed does not fit: {', '.join(unfit)}"] if unfit else []
        lines += [_as_yaml({name: value}) for name, value in edits.items()]
        rest = {name: known for name, known in self.form.parameters.items() if name not in edits}
        lines += ["# As in the notebook:"] if rest else []
        for name, known in rest.items():
            text = f"{name}: as the notebook computes it" if known.expression else _as_yaml({name: known.default})
            lines += [f"# {line}" for line in text.splitlines()]
        return "\n".join(lines) + "\n"


#: Copies a text, and says so in an element. The clipboard is there only on https and on this machine; the second way
#: works everywhere, but needs the text in the page.
_COPY = """
(async () => {
  const text = %s, said = document.getElementById(%s);
  let copied = false;
  try { await navigator.clipboard.writeText(text); copied = true; } catch (refused) {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    copied = document.execCommand("copy");
    area.remove();
  }
  if (said) said.textContent = copied ? "\\u2713 Copied to the clipboard."
    : "Your browser does not let a page copy: select the text above and press Ctrl+C.";
})();
"""

_forms: WeakKeyDictionary[Any, _Form] = WeakKeyDictionary()


#: Of what was typed, if it must not be stored.
NOT_STORED = "looks like a secret, and parameters are stored; put it into .env_tutorial"
#: A number that YAML 1.1 takes for a text: it wants a point before, and a sign after the "e".
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def _holds_secret(text: str, secrets: frozenset[str]) -> bool:
    """Whether there is a secret in a text; a short one only if it is all of it: it may be a common word."""
    return reveals_secret(text.strip(), secrets) or any(len(known) >= 8 and known in text for known in secrets)


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same to who types them: 1 and 1.0 are, 1 and True are not. Never raises."""
    try:
        numbers = [type(each) in (int, float) for each in (one, other)]
        if not all(numbers) and type(one) is not type(other):
            return False
        if isinstance(one, list | tuple):
            return len(one) == len(other) and all(map(_same, one, other))
        if isinstance(one, dict):
            return _same(list(one), list(other)) and all(_same(one[name], other[name]) for name in one)
        return one is other or bool(one == other)
    except Exception:  # noqa: BLE001 - arrays and tables compare as they like
        with suppress(Exception):
            return repr(one) == repr(other)
        return False


def _copy(value: Any) -> Any:
    """A copy, where there can be one: what a cell computes may be anything."""
    try:
        return deepcopy(value)
    except Exception:  # noqa: BLE001 - of whatever kind
        return value


def _kind(parameter: Parameter) -> str:
    if parameter.choices:
        return ""
    kind = parameter.annotation.partition("[")[0]
    entries = {"list": 'list, one entry a line, each after "- "', "dict": 'names and values, one "name: value" a line'}
    return KINDS.get(parameter.annotation) or entries.get(kind) or f"{parameter.annotation}, as YAML"


def _label(parameter: Parameter, choice: Any) -> str:
    meaning = parameter.meaning_of(choice)
    shown = "(empty)" if choice == "" else str(choice)
    return f"{shown}: {meaning}" if meaning else shown


def _value(parameter: Parameter, typed: Any) -> Any:
    """What was typed, as a value; raises ValueError with what is accepted."""
    if parameter.annotation in ("str", "bool") or parameter.choices:
        return typed
    if parameter.annotation in KINDS:
        return parameter.convert(typed.strip())
    if not typed.strip():
        typed = {"list": "[]", "dict": "{}"}.get(parameter.annotation.partition("[")[0], "null")
    try:
        value = yaml.safe_load(typed)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"expected {parameter.accepted} as YAML, {getattr(error, 'problem', '')}{where}") from None
    try:
        return parameter.check(value)
    except ValueError:
        with suppress(ValueError):
            return parameter.check(_with_numbers(value))
        raise


def _with_numbers(value: Any) -> Any:
    """A value of YAML in which texts such as 1e-3 are numbers."""
    if isinstance(value, list):
        return [_with_numbers(entry) for entry in value]
    if isinstance(value, dict):
        return {name: _with_numbers(entry) for name, entry in value.items()}
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def _text(parameter: Parameter, value: Any) -> str:
    """A value as one types it."""
    if parameter.annotation in KINDS:
        return str(value)
    if value is None or (isinstance(value, list | dict) and not value):
        return ""
    return _as_yaml(value) if isinstance(value, list | dict) else _in_line(value)


def _as_yaml(value: Any) -> str:
    """A list or a mapping as YAML: one line an entry, however much is in it."""
    if isinstance(value, list):
        return "\n".join(f"- {_in_line(entry)}" for entry in value)
    lines = []
    for name, entry in value.items():
        if isinstance(entry, list) and entry:
            lines += [f"{name}:", *(f"  {line}" for line in _as_yaml(entry).splitlines())]
        else:
            lines.append(f"{_in_line(name)}: {_in_line(entry)}")
    return "\n".join(lines)


def _in_line(value: Any) -> str:
    try:
        dumped = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=float("inf"))
    except yaml.YAMLError:  # what a cell computes may be anything
        return str(value)
    return dumped.removesuffix("\n").removesuffix("\n...")


def _close(widget: Any) -> None:
    """Close a widget with all that is in it."""
    for child in getattr(widget, "children", ()):
        _close(child)
    widget.close()


def _short(value: Any) -> str:
    try:
        shown = json.dumps(value, ensure_ascii=False, default=str)
    except Exception:  # noqa: BLE001 - whatever a cell has made of it
        shown = f"({type(value).__name__})"
    shown = redact(shown)  # a later cell may have used the name for anything
    return escape(shown if len(shown) <= 80 else f"{shown[:77]}...")
