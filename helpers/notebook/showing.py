"""Showing things so that they read well in a browser, on paper and in a terminal; recording results by name."""

from html import escape
from typing import Any

from IPython import get_ipython
from IPython.display import display

from ..objectstore import statements
from ..parameters import RESULT_MIMETYPE


def record(name: str, value: Any) -> None:
    """Publish a result under a name: tests and batch runs read it back from the executed notebook.

    ``value`` is anything that JSON can carry; never a secret.
    """
    plain = f"{name} = {value}"
    show(None, plain, **{RESULT_MIMETYPE: {"name": name, "value": value}})


def show(html: str | None, plain: str, **more: Any) -> None:
    """Show something as a page, as text, or in a plain script as print does."""
    if get_ipython() is None:
        print(plain)
    else:
        display({"text/plain": plain} | ({"text/html": html} if html else {}) | more, raw=True)


def show_table(rows: list[dict], empty: str = "nothing") -> None:
    """Show rows of the same keys as a table; ``empty`` when there are none."""
    if not rows:
        show(f"<p>{escape(empty)}</p>", empty)
        return
    head = "".join(f"<th style='text-align:left'>{escape(str(key))}</th>" for key in rows[0])
    # Long addresses are broken anywhere, or the columns behind them are cut off.
    cell = "<td style='text-align:left;overflow-wrap:anywhere;min-width:4em'>"
    body = "".join("<tr>" + "".join(f"{cell}{escape(text(v))}</td>" for v in row.values()) + "</tr>" for row in rows)
    plain = "\n".join("  ".join(f"{k}: {text(v)}" for k, v in row.items()) for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    show(table, plain)


def text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def show_statements(policy: dict | None, marked: list[dict] = ()) -> None:
    """Show a bucket policy, one row a statement; those in ``marked`` are called new."""
    rows = [
        ({"change": "new" if statement in marked else "none"} if marked else {})
        | {
            "statement": statement.get("Sid"),
            "effect": statement["Effect"],
            "who": _who(statement.get("Principal")),
            "may": statement.get("Action"),
            "on": statement.get("Resource"),
        }
        for statement in statements(policy)
    ]
    show_table(rows, "The bucket has no policy.")


def _who(principal: Any) -> str:
    if isinstance(principal, dict):
        return ", ".join(f"{kind} {text(names)}" for kind, names in principal.items())
    return "everybody" if principal == "*" else str(principal)
