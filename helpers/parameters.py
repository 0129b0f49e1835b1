"""What goes into a notebook and what comes out: its `parameters` cell with typed names, its recorded results."""

import ast
import io
import re
import tokenize
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal, Optional, Union  # noqa: F401 - for the types in `parameters` cells

import yaml
from pydantic import TypeAdapter, ValidationError

#: Of a cell's output that carries a recorded result: {"name": ..., "value": ...}.
RESULT_MIMETYPE = "application/vnd.eo-recipes.result+json"

_LITERALS = ("str", "int", "float", "bool", "list", "dict")
# In the comment of a text parameter: "one of: A (what A means), B; empty: what is taken then".
_ONE_OF = re.compile(r"\bone of: ([^;]+)")
_CHOICE = re.compile(r"([\w.-]+)(?: \(([^()]*)\))?")
_IF_EMPTY = re.compile(r'(?:\bempty|""): (.+?)(?=; one of: |$)')


@dataclass(frozen=True)
class Parameter:
    """A name in the `parameters` cell: its type as written there, and as pydantic understands it.

    A text parameter whose comment says "one of: A (what A means), B" accepts nothing else, and the empty text only if
    the comment says what that means ("empty: ..."). In the comment and not as a `Literal`: the cell has no imports,
    and papermill would not recognise the line.
    """

    annotation: str
    adapter: TypeAdapter = field(compare=False)
    comment: str = ""  #: meaning and unit, as they stand behind the value
    default: Any = None  #: the value in the cell; None if it is not a literal
    choices: tuple = ()  #: the accepted values, where there are but a few
    expression: str = ""  #: what the cell computes the value from, if that is not a literal: only the cell knows it

    @property
    def accepted(self) -> str:
        """What fits, in words."""
        if not self.choices:
            return self.annotation
        *most, last = ["empty" if choice == "" else str(choice) for choice in self.choices]
        return f"one of {', '.join(most)} or {last}"

    @property
    def if_empty(self) -> str:
        """What the empty value stands for, as the comment says; empty if it does not."""
        found = _IF_EMPTY.search(self.comment)
        return found[1].strip() if found else ""

    def meaning_of(self, choice: str) -> str:
        """What the comment says about one of the choices; empty if nothing."""
        if choice == "":
            return self.if_empty
        found = _ONE_OF.search(self.comment)
        return dict(_CHOICE.findall(found[1])).get(choice, "") if found else ""

    @classmethod
    def of(cls, kind: Any) -> "Parameter":
        """Of a type itself, as a script has it."""
        return cls(getattr(kind, "__name__", str(kind)) if isinstance(kind, type) else str(kind), TypeAdapter(kind))

    def check(self, value: Any) -> Any:
        """`value`, if it has this type already (an int will do for a float); raises ValueError."""
        try:
            return self.adapter.validate_python(value, strict=True)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
        where = ".".join(map(str, detail["loc"]))
        message = f"expected {self.accepted}, got {value!r}" + (f" (see {where})" if where else "")
        if "str" in self.annotation and isinstance(detail["input"], bool | int | float | date):
            message += "; put it in quotes: without, YAML takes it for something else than text"
        raise ValueError(message)

    def convert(self, text: str) -> Any:
        """The value that `text`, from the command line, stands for; raises ValueError."""
        with suppress(ValidationError):
            return self.adapter.validate_python(None if text == "null" else text, strict=text == "null")
        with suppress(ValidationError):
            return self.adapter.validate_python(text)
        with suppress(ValueError, yaml.YAMLError):
            return self.check(yaml.safe_load(text))  # a list or mapping, as YAML or JSON
        raise ValueError(f"expected {self.accepted}, got {text!r}")


def declared(source: str) -> dict[str, Parameter]:
    """The parameters by name that the source of a `parameters` cell declares; raises ValueError, SyntaxError."""
    known = {}
    body = ast.parse(source).body
    comments = _comments(source)
    for line in body:
        match line:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value):
                written = ast.unparse(annotation)
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                written = ""
            case _:
                continue
        default, expression = None, ""
        try:
            default = ast.literal_eval(value) if value else None
        except (ValueError, TypeError):
            expression = ast.unparse(value)
        if not written:
            kind = type(default if default is not None else value).__name__
            written = kind if kind in _LITERALS else "Any"
        comment = comments.get(line.lineno, comments.get(line.end_lineno, ""))
        known[name] = _parameter(name, written, comment, default, expression)
    return known


def _comments(source: str) -> dict[int, str]:
    """The comments of a cell by the number of their line, the first being 1."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def _parameter(name: str, annotation: str, comment: str, default: Any, expression: str) -> Parameter:
    choices: tuple = ()
    kind: Any = annotation
    if annotation == "str" and (found := _ONE_OF.search(comment)):
        empty = ("",) if _IF_EMPTY.search(comment) else ()
        choices = empty + tuple(choice for choice, _ in _CHOICE.findall(found[1]))
        kind = Literal[choices]
    try:
        adapter = TypeAdapter(kind)
        adapter.rebuild()  # or an unknown type would only show with the first value
    except (NameError, SyntaxError, TypeError, RuntimeError):
        raise ValueError(f"parameter {name}: the type {annotation} is not supported") from None
    if adapter.core_schema["type"] == "literal":
        choices = tuple(adapter.core_schema["expected"])
    return Parameter(annotation, adapter, comment, default, choices, expression)
