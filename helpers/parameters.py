"""What goes into a notebook and what comes out: its `parameters` cell with typed names, its recorded results."""

import ast
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, Optional, Union  # noqa: F401 - for the types in `parameters` cells

import yaml
from pydantic import TypeAdapter, ValidationError

#: Of a cell's output that carries a recorded result: {"name": ..., "value": ...}.
RESULT_MIMETYPE = "application/vnd.eo-recipes.result+json"

_LITERALS = ("str", "int", "float", "bool", "list", "dict")


@dataclass(frozen=True)
class Parameter:
    """A name in the `parameters` cell: its type as written there, and as pydantic understands it."""

    annotation: str
    adapter: TypeAdapter

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
        message = f"expected {self.annotation}, got {value!r}" + (f" (see {where})" if where else "")
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
        raise ValueError(f"expected {self.annotation}, got {text!r}")


def declared(source: str) -> dict[str, Parameter]:
    """The parameters by name that the source of a `parameters` cell declares; raises ValueError, SyntaxError."""
    known = {}
    for line in ast.parse(source).body:
        match line:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                known[name] = _parameter(name, ast.unparse(annotation))
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                with suppress(ValueError):
                    value = ast.literal_eval(value)
                kind = type(value).__name__
                known[name] = _parameter(name, kind if kind in _LITERALS else "Any")
    return known


def _parameter(name: str, annotation: str) -> Parameter:
    try:
        adapter = TypeAdapter(annotation)
        adapter.rebuild()  # or an unknown type would only show with the first value
        return Parameter(annotation, adapter)
    except (NameError, SyntaxError, TypeError, RuntimeError):
        raise ValueError(f"parameter {name}: the type {annotation} is not supported") from None
