"""The STAC item of any raster on a grid: a cloud-optimized GeoTIFF, or another that GDAL reads."""

import re
from contextlib import ExitStack
from datetime import UTC
from datetime import datetime as Datetime
from pathlib import PurePosixPath
from typing import Any

from ..errors import Rejected
from ..settings import Settings
from . import rasters
from .generating import item, register, times
from .places import Href, find

SUFFIXES = (".tif", ".tiff", ".jp2")


def fits(source: str) -> bool:
    """Whether it is one raster, by its suffix."""
    return PurePosixPath(source).suffix.lower() in SUFFIXES


@register("cog", fits)
def create(
    source: str,
    *,
    href: str | Href | None = None,
    settings: Settings | None = None,
    datetime: str | Datetime | None = None,
) -> dict:
    """The item of one raster; its id is the file's name without the suffix.

    ``datetime`` (UTC, if it does not say) is needed if neither the file's tags nor its name have a date; of two in the
    name, the first is the start and the last the end.
    """
    with ExitStack() as opened:
        place = opened.enter_context(find(source, settings, href))
        if len(place.files) != 1:
            raise Rejected(f"{source} is {len(place.files)} files: give the address of one raster")
        (path,) = place.files
        name = PurePosixPath(path)
        dataset = opened.enter_context(place.raster(path))
        if dataset.crs is None and dataset.gcps[1] is not None:
            from rasterio.vrt import WarpedVRT

            dataset = opened.enter_context(WarpedVRT(dataset))
        if dataset.crs is None:
            raise Rejected(f"{source} says not where it lies: it has no coordinate reference system")
        about = _times(dataset, name.stem, datetime) | rasters.projection(dataset)
        said = {"href": place.href(path), "title": name.name, "type": rasters.media_type(dataset), "roles": ["data"]}
        if name.suffix.lower() == ".jp2":
            said["type"] = "image/jp2"
        return item(name.stem, rasters.footprint(dataset), about, {"data": said | rasters.bands(dataset)})


def _times(dataset: Any, name: str, given: str | Datetime | None) -> dict:
    tags = (dataset.get_tag_item("ACQUISITIONDATETIME", "IMAGERY"), dataset.get_tag_item("TIFFTAG_DATETIME"))
    for told in (given, *tags):
        if told:
            return {"datetime": _utc(told, name)}
    if not (found := times(name)):
        days = re.findall(r"(?<!\d)((?:19|20)\d\d)-?([01]\d)-?([0-3]\d)(?!\d)", name)
        found = [f"{'-'.join(day)}T00:00:00Z" for day in days]
    if not found:
        raise Rejected(
            f"{name}: neither its tags nor its name say when it was taken. Give its name a date (UTC) as YYYYMMDD,"
            " YYYY-MM-DD or YYYYMMDDTHHMMSS, like dem_20240531.tif; or set its tag TIFFTAG_DATETIME to"
            " 'YYYY:MM:DD HH:MM:SS'; or, in a script, say create_item(..., datetime='2024-05-31')."
        )
    start, end = _utc(found[0], name), _utc(found[-1], name)
    return {"datetime": start} | ({"start_datetime": start, "end_datetime": end} if start < end else {})


def _utc(told: str | Datetime, name: str) -> str:
    """RFC 3339 in UTC; TIFF writes 2024:05:31 23:59:59."""
    text = re.sub(r"^(\d{4}):(\d\d):(\d\d)", r"\1-\2-\3", str(told).strip())
    try:
        time = Datetime.fromisoformat(text)
    except ValueError:
        raise Rejected(f"{name}: {text[:40]!r} is no time like 2024-05-31T23:59:59Z") from None
    time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    return time.isoformat().replace("+00:00", "Z")
