"""What a STAC API answers to a search: which items fit, and which page of them."""

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from flask import request

from .. import stac
from .rspy import Refusal

CORE = "https://api.stacspec.org/v1.0.0"
CONFORMS_TO = [
    f"{CORE}/core",
    f"{CORE}/collections",
    f"{CORE}/ogcapi-features",
    f"{CORE}/item-search",
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/core",
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/geojson",
]
TRANSACTIONS = f"{CORE}/ogcapi-features/extensions/transaction"
#: Items of a page unless the client says otherwise, and at most (pgstac's).
LIMIT, MOST = 10, 10_000
#: Members of a search that are not looked at here: to ignore them would find too much.
UNKNOWN = ("filter", "query", "sortby", "fields", "q")


def parameters() -> dict[str, Any]:
    """The search of the current request, in the form of a POST; raises Refusal (400)."""
    if request.method == "POST":
        wanted = request.get_json(force=True, silent=True)
        if not isinstance(wanted, dict):
            raise Refusal(400, "The body of a search is a JSON object")
    else:
        wanted = request.args.to_dict()
        for name in ("ids", "collections", "bbox"):
            if name in wanted:
                wanted[name] = [part for part in wanted[name].split(",") if part]
        try:
            wanted |= {name: json.loads(wanted[name]) for name in ("intersects",) if name in wanted}
        except ValueError as error:
            raise Refusal(400, f"intersects is no GeoJSON: {error}") from None
    if unknown := [name for name in UNKNOWN if wanted.get(name)]:
        raise Refusal(400, f"The sandbox's catalogues do not know {', '.join(unknown)}")
    if wanted.get("bbox") and wanted.get("intersects"):
        raise Refusal(400, "intersects and bbox parameters are mutually exclusive")
    return wanted


def select(items: list[dict], wanted: dict[str, Any]) -> list[dict]:
    """The items that fit ids, collections, bbox, intersects and datetime; the latest first, as pgstac sorts."""
    try:
        area, time = stac.area(wanted.get("bbox"), wanted.get("intersects")), _interval(wanted.get("datetime"))
    except (ValueError, TypeError, KeyError) as error:
        raise Refusal(400, f"The search cannot be understood: {error}") from None
    for name, key in (("ids", "id"), ("collections", "collection")):
        if wanted.get(name) is not None:
            items = [item for item in items if item.get(key) in wanted[name]]
    if area is not None:
        from shapely.geometry import shape

        items = [item for item in items if item.get("geometry") and area.intersects(shape(item["geometry"]))]
    if time is not None:
        items = [item for item in items if _span(item)[0] <= time[1] and _span(item)[1] >= time[0]]
    return sorted(items, key=lambda item: (_span(item)[0], item["id"]), reverse=True)


def page(items: list[dict], wanted: dict[str, Any], url: str) -> dict:
    """The ItemCollection with the page of ``items`` that is wanted; ``url``: where the search was asked."""
    try:
        limit, start = int(wanted.get("limit") or LIMIT), int(str(wanted.get("token") or "next:0").partition(":")[2])
    except ValueError:
        raise Refusal(400, "limit and token are numbers") from None
    if not 1 <= limit <= MOST:
        raise Refusal(400, f"limit is a number from 1 to {MOST}")
    shown = items[start : start + limit]
    links: list[dict] = [{"rel": "self", "href": url, "type": "application/geo+json"}]
    if start + limit < len(items):
        token = f"next:{start + limit}"
        link = {"rel": "next", "type": "application/geo+json", "method": request.method, "href": url}
        if request.method == "POST":
            link |= {"body": wanted | {"limit": limit, "token": token}}
        else:
            link["href"] = f"{url}?{urlencode(request.args.to_dict() | {'limit': limit, 'token': token})}"
        links.append(link)
    return {
        "type": "FeatureCollection",
        "features": shown,
        "links": links,
        "numberMatched": len(items),
        "numberReturned": len(shown),
    }


def bbox_of(geometry: dict) -> list[float]:
    """West, south, east, north of a geometry; west is larger than east across the antimeridian."""
    positions = list(_positions(geometry["coordinates"]))
    lons, lats = [p[0] for p in positions], [p[1] for p in positions]
    west, east = min(lons), max(lons)
    if east - west > 180:
        west, east = min(lon for lon in lons if lon > 0), max(lon for lon in lons if lon < 0)
    return [west, min(lats), east, max(lats)]


def _positions(coordinates: Any) -> Any:
    if coordinates and isinstance(coordinates[0], int | float):
        yield coordinates
    else:
        for part in coordinates:
            yield from _positions(part)


def _interval(text: str | None) -> tuple[datetime, datetime] | None:
    if not text:
        return None
    first, _, last = text.partition("/")
    last = last or first
    ends = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
    return tuple(end if part in ("", "..") else _time(part) for part, end in zip((first, last), ends, strict=True))


def _span(item: dict) -> tuple[datetime, datetime]:
    about = item["properties"]
    first = about.get("start_datetime") or about.get("datetime")
    last = about.get("end_datetime") or about.get("datetime")
    return _time(first), _time(last)


def _time(text: str) -> datetime:
    when = datetime.fromisoformat(text)
    return when if when.tzinfo else when.replace(tzinfo=UTC)
