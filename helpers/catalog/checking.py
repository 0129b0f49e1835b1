"""What is wrong with an item, all at once and before it is sent or loaded: by STAC's schemas, and for pgstac.

One item that pgstac cannot take fails all that are loaded with it; some it takes and spoils, so that no search finds
them. Works without a network, and in AWS Lambda from one file of schemas (`helpers.schemas.save`).
"""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any

import orjson

from .. import schemas

#: Bytes of an id at most: it is in an index, whose entries PostgreSQL holds to 2,704 bytes (a third of a page).
LONGEST_ID = 2600
#: Integers that PostgreSQL's and other JSON readers keep as they are: 64 bit.
SMALLEST, LARGEST = -(2**63), 2**64 - 1
TIMES = ("datetime", "start_datetime", "end_datetime")
#: A time as `normalised` leaves it: pgstac takes the month, by which it stores, from the text.
NORMAL = re.compile(r"\d{4}-\d\d-\d\dT([01]\d|2[0-3]):\d\d:[0-5]\d(\.\d{1,6})?Z")
TIME = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d):(\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:?\d\d)")


def problems(item: Any) -> list[str]:
    """Everything that is wrong with an item; an empty list if nothing is.

    Held against STAC 1.0 or 1.1, each extension whose schema is known (:func:`known_extension`; an unknown one is no
    fault), and what pgstac cannot take or silently spoils. A link to the collection may be missing: the API
    writes its own. More than 2,000 items a second.
    """
    if not isinstance(item, dict):
        return [f"it is no JSON object, but {_kind(item)}"]
    if item.get("type") != "Feature":
        return [f"type: {item.get('type')!r}, where an item has 'Feature'"[:200]]
    unfit = _unfit_json(item)
    return list(dict.fromkeys([*_named(item), *_placed(item), *_timed(item), *unfit, *_by_schema(item, unfit)]))


def collection_problems(collection: Any) -> list[str]:
    """Everything that is wrong with a collection; an empty list if nothing is. As :func:`problems`."""
    if not isinstance(collection, dict):
        return [f"it is no JSON object, but {_kind(collection)}"]
    if collection.get("type") != "Collection":
        return [f"type: {collection.get('type')!r}, where a collection has 'Collection'"[:200]]
    unfit = _unfit_json(collection)
    return list(dict.fromkeys([*_identified(collection, "id"), *unfit, *_by_schema(collection, unfit)]))


def known_extension(uri: str) -> bool:
    """Whether items are held against the schema of this extension."""
    return schemas.known(uri)


def normalised(item: dict) -> dict:
    """The item with its times in UTC, ending in "Z", with whole seconds or microseconds; else as it is.

    pgstac cuts the month in which it stores an item from the text of its time, and PostgreSQL then reads the time: the
    two must not differ, as they do for "2024-01-01T00:30:00+02:00", a leap second or a tenth digit that rounds up.
    What is no time at all stays, for :func:`problems`.
    """
    properties = item.get("properties")
    if not isinstance(properties, dict):
        return item
    given = {key: properties[key] for key in TIMES if isinstance(properties.get(key), str)}
    mended = {key: _mended(text) for key, text in given.items() if not NORMAL.fullmatch(text)}
    return item | {"properties": properties | mended} if mended else item


def _mended(text: str) -> str:
    found = TIME.fullmatch(text.strip())
    try:
        return _utc(*found.groups()) if found else text
    except (ValueError, OverflowError):  # month 13; the year 0 or 10,000 in UTC
        return text


def _utc(minute: str, seconds: str, fraction: str | None, zone: str) -> str:
    time = datetime.fromisoformat(minute.replace(" ", "T").upper() + ":00" + zone.upper()).astimezone(UTC)
    if int(seconds) > 60:
        raise ValueError
    # A leap second is the next minute's first, as for PostgreSQL; digits beyond the sixth are cut, not rounded.
    time += timedelta(seconds=int(seconds), microseconds=int(f"{fraction or 0:0<6}"[:6]))
    return time.isoformat().replace("+00:00", "Z")


def _named(item: dict) -> Iterator[str]:
    yield from _identified(item, "id")
    if "collection" not in item or item["collection"] is None:
        yield "collection: missing; the catalogue keeps every item in a collection"
    else:
        yield from _identified(item, "collection")


def _identified(content: dict, key: str) -> Iterator[str]:
    value = content.get(key)
    if not isinstance(value, str) or not value:
        yield f"{key}: must be a text that is not empty, is {_kind(value)}"
    elif len(value.encode(errors="replace")) > LONGEST_ID:
        yield f"{key}: {len(value):,} characters are too long for the catalogue's index ({LONGEST_ID:,} bytes)"


def _placed(item: dict) -> Iterator[str]:
    geometry = item.get("geometry")
    if geometry is None:
        yield "geometry: null; pgstac keeps only items that lie somewhere"
    elif isinstance(geometry, dict):
        parts = geometry.get("geometries") if geometry.get("type") == "GeometryCollection" else [geometry]
        found = [part.get("coordinates") for part in parts or [] if isinstance(part, dict)]
        yield from _positioned(list(_positions(found)), found)
        rings = {"Polygon": [geometry.get("coordinates")], "MultiPolygon": geometry.get("coordinates")}
        yield from _closed(rings.get(str(geometry.get("type"))))


def _positioned(positions: list[list], coordinates: list) -> Iterator[str]:
    if not positions or any(_empty(part) for part in coordinates):
        yield "geometry.coordinates: empty, or without numbers"
        return
    if len(sizes := {len(position) for position in positions}) > 1:
        yield f"geometry.coordinates: positions of {' and '.join(map(str, sorted(sizes)))} numbers mixed"
    if sizes - {2, 3}:
        yield "geometry.coordinates: positions have 2 or 3 numbers"
    elif not all(abs(position[0]) <= 180 and abs(position[1]) <= 90 for position in positions):  # not so for NaN
        wrong = next(p for p in positions if not (abs(p[0]) <= 180 and abs(p[1]) <= 90))
        yield f"geometry.coordinates: {wrong[:2]} is no longitude (-180 to 180) and latitude (-90 to 90) in degrees"


def _closed(polygons: Any) -> Iterator[str]:
    """PostgreSQL takes a ring that is open, and then no search by place works any more: for nobody."""
    for polygon in polygons if isinstance(polygons, list) else []:
        for ring in polygon if isinstance(polygon, list) else []:
            if isinstance(ring, list) and ring and ring[0] != ring[-1]:
                end, began = (str(position)[:60] for position in (ring[-1], ring[0]))
                yield f"geometry.coordinates: a ring ends at {end}, not where it began: {began}"
                return


def _positions(value: Any) -> Iterator[list]:
    if isinstance(value, list | tuple):
        if value and all(isinstance(one, int | float) for one in value):
            yield value
        else:
            for inner in value:
                yield from _positions(inner)


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, list | tuple) and (not value or any(_empty(inner) for inner in value)))


def _timed(item: dict) -> Iterator[str]:
    properties = item.get("properties")
    if not isinstance(properties, dict):
        return  # the schema says so
    given = {key: properties.get(key) for key in TIMES}
    times = {key: _read(text) for key, text in given.items() if isinstance(text, str)}
    for key, time in times.items():
        if time is None:
            yield f"properties.{key}: {given[key][:40]!r} is no time like 2024-05-31T23:59:59Z"
    start, end = times.get("start_datetime"), times.get("end_datetime")
    if start and end and start > end:
        yield f"properties: start_datetime ({given['start_datetime']}) is after end_datetime ({given['end_datetime']})"
    if "datetime" not in times and not ("start_datetime" in times and "end_datetime" in times):
        yield "properties: neither a datetime, nor a start_datetime and an end_datetime"


def _read(text: str) -> datetime | None:
    """The time that PostgreSQL would read; None for what it would not, or would in a time zone of its own."""
    try:
        time = datetime.fromisoformat(_mended(text))
    except ValueError:
        return None
    return time if time.tzinfo else None


def _unfit_json(content: dict) -> list[str]:
    """What is no JSON, or what PostgreSQL's JSON cannot hold. In C if all is well, else by looking at every value."""
    try:
        json.dumps(content, allow_nan=False, check_circular=False)
        if b"\\u0000" not in orjson.dumps(content):
            return []
    except RecursionError:
        return ["it is nested too deeply"]
    except (TypeError, ValueError):
        pass
    return list(_unfit(content, ""))


def _unfit(value: Any, where: str, depth: int = 0) -> Iterator[str]:
    if depth > 200:  # orjson ends at 254
        yield f"{where[:100]} ...: nested too deeply"
    elif isinstance(value, dict):
        for key, inner in value.items():
            name = f"{where}.{key}" if where else str(key)
            if reason := _unfit_text(key) if isinstance(key, str) else f"its name is {_kind(key)}, not a text":
                yield f"{name.encode('ascii', 'backslashreplace').decode()}: {reason}"
            yield from _unfit(inner, name, depth + 1)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _unfit(inner, f"{where}.{number}", depth + 1)
    elif reason := _unfit_value(value):
        yield f"{where.encode('ascii', 'backslashreplace').decode()}: {reason}"


def _unfit_value(value: Any) -> str:
    if isinstance(value, str):
        return _unfit_text(value)
    if isinstance(value, float):
        return "" if isfinite(value) else f"{value} is no number of JSON"
    if isinstance(value, int):  # a bool is one, too
        return "" if SMALLEST <= value <= LARGEST else "an integer beyond 64 bit"
    return "" if value is None else f"{_kind(value)} is nothing of JSON"


def _unfit_text(text: str) -> str:
    if "\0" in text:
        return "has a NUL character (\\u0000), which PostgreSQL cannot hold"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "has half of a surrogate pair, which is no character"
    return ""


def _by_schema(content: dict, unfit: list[str]) -> Iterator[str]:
    if unfit:  # what is no JSON has no schema
        return
    links = content.get("links")
    linked = isinstance(links, list) and any(isinstance(o, dict) and o.get("rel") == "collection" for o in links)
    if "collection" in content and not linked:
        content = {key: value for key, value in content.items() if key != "collection"}
    for fault in schemas.faults(content):
        if fault.path[:1] != ("geometry",) or content.get("geometry") is not None:
            yield str(fault)


def _kind(value: Any) -> str:
    """A few words for what a value is, not the value: it may be large."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value)) or f"{type(value).__name__} {str(value)[:40]}"
