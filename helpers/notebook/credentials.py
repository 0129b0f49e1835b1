"""Fields for credentials that a live run lacks, beneath the error that says so. Imported only in front of a front end.

What is typed there goes to :func:`helpers.settings.provide` and nowhere else: JupyterLab can save the state of widgets
into the document, and the kernel repeats what widgets receive to every front end, so a field for a secret repeats
nothing and is emptied at once.
"""

from html import escape
from typing import Any

import ipywidgets
from IPython import get_ipython
from pydantic import SecretStr
from traitlets import Unicode

from .. import settings as settings_room
from ..errors import NotConfigured
from ..redaction import reveals_secret
from ..settings import Service
from .forms import STYLE, keyboard_for_itself, show_widget

ON_PAPER = "Fields for the missing credentials: open this notebook in JupyterLab, and run this cell."


class SecretField(ipywidgets.Password):
    """A password field of which the kernel repeats nothing to the front ends."""

    value = Unicode("").tag(sync=True, echo_update=False)


def ask_after_this_cell(missing: list[str], needs: tuple[Service, ...]) -> None:
    """Show fields for what is missing as soon as the error of the running cell has been shown.

    Parameters
    ----------
    missing:
        Lines of :meth:`helpers.settings.Settings.missing`.
    needs:
        The services that they are for: once these have what they need, the form says so.
    """
    fields = settings_room.fields_of(missing)
    if not fields:
        return
    events = get_ipython().events

    def show_them(result: Any) -> None:
        events.unregister("post_run_cell", show_them)
        show_widget(Credentials(fields, needs).box, ON_PAPER)

    events.register("post_run_cell", show_them)


class Credentials:
    """A field for each missing setting."""

    def __init__(self, fields: list[str], needs: tuple[Service, ...]):
        self.needs = needs
        self.status = ipywidgets.HTML().add_class("recipes-status")
        head = ipywidgets.HTML(
            f"{STYLE}<p><b>Type in what is missing.</b> It stays in the memory of this kernel and is gone when the"
            " kernel stops; nothing of it is stored in this notebook or in a file. What is in a field is taken as you"
            " leave it, or press Enter; secrets then vanish from the field.</p>"
        )
        self.fields = {settings_room.names(field)[0]: self._field(field) for field in fields}
        rows = [self._row(*field) for field in self.fields.values()]
        self.box = (
            ipywidgets.VBox([keyboard_for_itself(), head, *rows, self.status])
            .add_class("recipes-form")
            .add_class("recipes-credentials")
        )

    def _field(self, field: str) -> tuple[Any, Any]:
        """The input for a setting, and the line below it."""
        name, told = settings_room.names(field)[0], settings_room.explained(field)
        kind = SecretField if settings_room.is_secret(field) else ipywidgets.Text
        entry = kind(description=name, continuous_update=False).add_class("recipes-input")
        text = told.text + (f" Get it: {told.get}" if told.get else "")
        meaning = f'<div class="recipes-meaning">{escape(text)}</div>'
        note = ipywidgets.HTML(meaning).add_class("recipes-note")

        def typed(change: Any) -> None:
            try:
                secret = SecretStr(change.pop("new").strip())
                misplaced = reveals_secret(secret.get_secret_value(), ())
                if isinstance(entry, SecretField) or misplaced:
                    entry.value = ""
                    if not secret:
                        return  # that was us, emptying it
                if misplaced and not isinstance(entry, SecretField):
                    raise NotConfigured(f"{name}: this looks like a secret, and {name} is none; not used")
                settings_room.provide(name, secret)
                said = f'<div class="recipes-given" role="status">&#10003; {name} is in use.</div>' if secret else ""
            except NotConfigured as error:
                said = f'<div class="recipes-problem" role="alert">&#10007; {escape(str(error))}</div>'
            except Exception as error:  # noqa: BLE001 - a traceback could show the value
                said = f'<div class="recipes-problem" role="alert">&#10007; Not used: {type(error).__name__}.</div>'
            note.value = meaning + said
            self.tell()

        entry.observe(typed, "value")
        return entry, note

    def _row(self, entry: Any, note: Any) -> Any:
        return ipywidgets.VBox([entry, note]).add_class("recipes-field")

    def tell(self) -> None:
        """Say below the fields what is still missing, or what to do now."""
        try:
            lines = settings_room.read().missing(*self.needs)
        except NotConfigured as error:
            lines = str(error).splitlines()[1:]
        if lines:
            left = "".join(f"<li>{escape(line.removeprefix('  - '))}</li>" for line in lines)
            said = f"Still missing:<ul>{left}</ul>"
        else:
            said = "&#10003; Everything is there. Run the setup cell again."
        self.status.value = f'<div role="status">{said}</div>'
