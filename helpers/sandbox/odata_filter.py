"""What a $filter of OData v4 says about an entity.

The text is parsed by odata-query; what its syntax tree means is decided here (OData URL conventions, 5.1). Strings
compare with case, as OData wants it. Names of properties do not, unlike in OData: clients of the Hook write ``id``.
"""

from collections.abc import Iterator
from datetime import datetime
from operator import contains, eq, ge, gt, le, lt, ne
from typing import Any

from odata_query import ast
from odata_query.exceptions import ODataException
from odata_query.grammar import ODataLexer, ODataParser

from .odata import BadQuery, number, property_of

#: Properties that are numbers even where the service writes them as strings.
NUMBERS = ("id", "batchorderid", "workflowid")

COMPARE = {ast.Eq: eq, ast.NotEq: ne, ast.Lt: lt, ast.LtE: le, ast.Gt: gt, ast.GtE: ge}
LITERALS = (ast.String, ast.Integer, ast.Float, ast.Boolean, ast.Null, ast.DateTime, ast.Date, ast.GUID)
CALL = {"contains": contains, "endswith": str.endswith, "startswith": str.startswith}


def strings(text: str) -> list[str]:
    """The string literals of a filter."""
    return [token.value.val for token in _tokens(text) if token.type == "STRING"]


def parse(text: str) -> Any:
    try:
        return ODataParser().parse(iter(_tokens(text)))
    except ODataException as error:
        raise BadQuery(f"$filter: {error}") from None


def _tokens(text: str) -> list:
    try:
        return list(_with_commas(ODataLexer().tokenize(text)))
    except ODataException as error:
        raise BadQuery(f"$filter: {error}") from None


def _with_commas(tokens: Iterator) -> Iterator:
    """A list of one, ``in ('x')``, as the library wants to read it: ``in ('x',)``."""
    listing = None
    for token in tokens:
        if token.type == "IN":
            listing = 0
        elif listing is not None and token.type == ",":
            listing += 1
        elif token.type == ")":
            if listing == 0:
                comma = type(token)()
                comma.type = comma.value = ","
                comma.lineno, comma.index = token.lineno, token.index
                yield comma
            listing = None
        yield token


def check(node: Any, fields: list[str]) -> None:
    """Properties exist, and functions are known, whether or not there is an entity to try them on."""
    match node:
        case ast.Identifier():
            if node.full_name().lower() not in map(str.lower, fields):
                raise BadQuery(f"Could not find a property named '{node.full_name()}'")
        case ast.Attribute():
            check(node.owner, fields)
        case ast.BoolOp() | ast.Compare():
            check(node.left, fields)
            check(node.right, fields)
        case ast.UnaryOp(op=ast.Not()):
            check(node.operand, fields)
        case ast.Call() if node.func.full_name() in CALL:
            for argument in node.args:
                check(argument, fields)
        case ast.List():
            for value in node.val:
                check(value, fields)
        case _ if not isinstance(node, LITERALS):
            raise BadQuery(f"$filter: {type(node).__name__} is not supported")


def holds(node: Any, row: dict) -> bool:
    match node:
        case ast.BoolOp(op=ast.And()):
            return holds(node.left, row) and holds(node.right, row)
        case ast.BoolOp():
            return holds(node.left, row) or holds(node.right, row)
        case ast.UnaryOp():
            return not holds(node.operand, row)
        case ast.Call():
            whole, part = (_value(argument, row) for argument in node.args)
            return isinstance(whole, str) and isinstance(part, str) and CALL[node.func.name](whole, part)
        case ast.Compare(comparator=ast.In(), right=ast.List()):
            return any(_compare(eq, node.left, each, row) for each in node.right.val)
        case ast.Compare() if type(node.comparator) in COMPARE:
            return _compare(COMPARE[type(node.comparator)], node.left, node.right, row)
    value = _value(node, row)
    if not isinstance(value, bool):
        raise BadQuery("$filter: the expression is not a condition")
    return value


def _value(node: Any, row: dict) -> Any:
    match node:
        case ast.Identifier():
            value = property_of(row, node.full_name())
            return int(value) if node.name.lower() in NUMBERS and value is not None else value
        case ast.Attribute():
            return property_of(_value(node.owner, row) or {}, node.attr)
        case _ if isinstance(node, LITERALS):
            return node.py_val
    return holds(node, row)


def _compare(how: Any, left: Any, right: Any, row: dict) -> bool:
    one, two = _value(left, row), _value(right, row)
    if isinstance(one, int) != isinstance(two, int):  # Id eq '5' is as good as Id eq 5
        one, two = number(one), number(two)
    if isinstance(one, datetime) != isinstance(two, datetime):
        one, two = _time(one), _time(two)
    try:
        return how(one, two)
    except TypeError:  # OData: a comparison with null, or of unlike things, is false
        return False


def _time(value: Any) -> Any:
    return datetime.fromisoformat(value) if isinstance(value, str) else value
