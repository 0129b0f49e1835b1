"""The setup cell: parameters and settings checked together, the sandbox found or started, what is in force shown."""

import ast
import sys
from collections.abc import Callable, Iterable
from html import escape
from typing import Any

from IPython import get_ipython

from .. import settings as settings_room
from ..errors import NotConfigured, Rejected, bullets
from ..parameters import Parameter, declared
from ..settings import Service, Settings
from . import front_end
from .showing import show, show_table

#: In what is said of a value that is none of the few that are accepted.
NO_CHOICE = ": expected one of "


def setup(
    *needs: Service,
    problems: Iterable[str] = (),
    check: Callable[[Settings], object] = lambda settings: None,
) -> Settings:
    """Check the notebook's parameters, read the settings, find or start the sandbox, show what is in force.

    Parameters
    ----------
    needs:
        Services whose credentials a live run must have: "earthdata", "aws", "destine".
    problems:
        What the recipe itself finds wrong with the parameters; reported together with the rest.
    check:
        The same as a function of the settings, which raises one of our errors. Called if all types fit;
        what it says of a parameter replaces what its comment says.

    Raises
    ------
    Rejected
        Parameters do not fit: all problems at once.
    NotConfigured
        Settings or credentials are missing or unusable: all problems at once. Nothing was sent. In JupyterLab, fields
        to type in what is missing appear beneath the error.
    """
    values, faults = parameters_in_force()
    if front_end.attended():
        from .forms import unfit  # who typed a limit that was refused must not go on without it

        own = [found.partition(":")[0] for found in faults]
        faults += [f"{name}: in the form, {why}; correct it there" for name, why in unfit().items() if name not in own]
    faults += problems
    missing = []
    try:
        settings = settings_room.load()
        try:
            settings.require(*needs)
        except NotConfigured as error:
            missing.append(str(error))
            if front_end.attended():
                from . import credentials  # widgets: only where somebody can use them

                credentials.ask_after_this_cell(settings.missing(*needs), needs)
        if all(NO_CHOICE in found for found in faults):  # of the right type: the recipe can tell all that is wrong
            check(settings)
    except NotConfigured as error:
        missing.append(str(error))
    except Rejected as error:
        told = [line.removeprefix("  - ") for line in str(error).splitlines()[1:] or [str(error)]]
        faults = [found for found in faults if not any(one.startswith(found.partition(":")[0]) for one in told)] + told
    if missing:
        raise NotConfigured("\n".join([*missing, *bullets(faults)]))
    if faults:
        raise Rejected.because("The parameters do not fit, nothing was sent", faults)
    said = _backend(settings, needs)
    show(f"<p>{escape(said)}</p>", said)
    show_table([{"parameter": name, "value": value} for name, value in values.items()])
    return settings


def _backend(settings: Settings, needs: tuple[str, ...]) -> str:
    if settings.backend == "live":
        urls = {
            "destine": settings.hook_api_url,
            "rs-python": settings.conversion_api_url or settings.rspy_host_staging,
        }
        url = next((urls[need] for need in needs if need in urls), settings.hyp3_api_url)
        return f"Talking to the LIVE service at {url}"
    if settings_room.in_process_sandbox():
        return "Talking to the SANDBOX inside this notebook (simulated products); it is gone when the kernel stops."
    return (
        f"Talking to the SANDBOX at {settings.sandbox_url} (simulated products); it survives a restart of the kernel."
    )


def parameters_in_force() -> tuple[dict[str, Any], list[str]]:
    """The values of the notebook's parameters, and what is wrong with their types."""
    shell = get_ipython()
    if shell is None:  # the notebook as a plain script: values cannot come from outside
        main = sys.modules["__main__"]
        types = {name: Parameter.of(kind) for name, kind in getattr(main, "__annotations__", {}).items()}
        values = {name: vars(main)[name] for name in types}
    else:
        types = parameters_cell()
        values = {name: shell.user_ns[name] for name in types}
    faults = [f"{name}: {found}" for name, kind in types.items() if (found := fault(name, kind, values[name]))]
    return values, faults


def parameters_cell() -> dict[str, Parameter]:
    """The parameters that the notebook declares; empty if its parameters cell has not run yet.

    The cell that declares typed names is the parameters cell (run last, if it was edited and run again); papermill's
    own cell only assigns.
    """
    sources = reversed(get_ipython().user_ns["In"])
    return next((known for source in sources if (known := parameters_of(source))), {})


def fault(name: str, parameter: Parameter, value: Any) -> str | None:
    """What is wrong with the type of a parameter, or with one whose meaning is the same in every notebook."""
    try:
        value = parameter.check(value)
    except ValueError as error:
        return str(error)
    if name == "deadline_minutes" and not value > 0:
        return f"{value:g} is no time to wait; use a number above 0"
    return None


def parameters_of(source: str) -> dict[str, Parameter]:
    """Parameters of a cell that consists of nothing but typed assignments; empty for any other cell."""
    try:
        body = ast.parse(source).body
        return declared(source) if body and all(isinstance(line, ast.AnnAssign) for line in body) else {}
    except (SyntaxError, ValueError):
        return {}
