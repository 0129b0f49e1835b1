"""The query options of an OData v4 collection: $filter, $orderby, $top, $skip, $count, $expand."""

from typing import Any
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, Field

#: Most entities on one page.
PAGE = 1000


class BadQuery(ValueError):
    """A query option that cannot be understood; the message says where."""


class Options(BaseModel):
    """The query options of one request; raises pydantic's ValidationError for numbers out of range."""

    model_config = ConfigDict(extra="forbid")  # OData: an unknown $option must not be ignored
    filter: str | None = Field(None, alias="$filter")
    orderby: str | None = Field(None, alias="$orderby")
    expand: str | None = Field(None, alias="$expand")
    top: int = Field(PAGE, alias="$top", ge=0, le=PAGE)
    skip: int = Field(0, alias="$skip", ge=0)
    count: bool = Field(False, alias="$count")

    @classmethod
    def of(cls, arguments: dict[str, str]) -> "Options":
        """From the query string; what does not begin with "$" is no business of OData."""
        return cls.model_validate({name: value for name, value in arguments.items() if name.startswith("$")})


def page(rows: list[dict], fields: list[str], options: Options, url: str) -> dict[str, Any]:
    """What the options leave of ``rows``, in the form of an answer: ``value``, ``@odata.count``, ``@odata.nextLink``.

    Parameters
    ----------
    fields:
        The properties of an entity, whether or not there is one.
    url:
        Of the collection, without a query.

    Raises
    ------
    BadQuery
        Syntax error, unknown property or function, or a filter that is no condition.
    """
    if options.filter is not None:
        from . import odata_filter  # its grammar takes 0.1 s, which nobody should wait for at the start

        tree = odata_filter.parse(options.filter)
        odata_filter.check(tree, fields)
        rows = [row for row in rows if odata_filter.holds(tree, row)]
    for name, descending in reversed(_keys(options.orderby, fields)):
        rows = sorted(rows, key=lambda row: _rank(property_of(row, name)), reverse=descending)
    end = options.skip + options.top
    answer: dict[str, Any] = {"@odata.count": len(rows)} if options.count else {}
    answer["value"] = rows[options.skip : end]
    if options.top and end < len(rows):
        asked = options.model_dump(by_alias=True, exclude_unset=True) | {"$skip": end}
        asked = {name: "true" if value is True else value for name, value in asked.items()}
        answer["@odata.nextLink"] = f"{url}?{urlencode(asked, safe='$')}"
    return answer


def _keys(text: str | None, fields: list[str]) -> list[tuple[str, bool]]:
    """Properties of $orderby, and whether each goes downward."""
    keys = []
    for part in text.split(",") if text else []:
        name, *direction = part.split()[:3] or [""]
        if name.lower() not in map(str.lower, fields):
            raise BadQuery(f"Could not find a property named '{name}'")
        if direction not in ([], ["asc"], ["desc"]):
            raise BadQuery(f"$orderby: {part.strip()!r} is not a property with asc or desc")
        keys.append((name, direction == ["desc"]))
    return keys


def _rank(value: Any) -> tuple:
    """Sorts null first and numbers as numbers, also those in strings."""
    value = number(value)
    return value is not None, isinstance(value, str), 0 if value is None else value


def number(value: Any) -> Any:
    """The number in a text, and everything else as it is."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def property_of(row: dict, name: str) -> Any:
    """A property, whatever case its name is written in; ``None`` where there is none."""
    return next((value for field, value in row.items() if field.lower() == name.lower()), None)
