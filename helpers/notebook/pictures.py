"""Pictures with a text for those who cannot see them: timelines, maps, figures."""

import io
import math
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from IPython import get_ipython
from IPython.display import Image, display
from matplotlib import colormaps
from matplotlib.figure import Figure
from rasterio.control import GroundControlPoint
from rasterio.enums import Resampling
from rasterio.features import shapes
from rasterio.transform import Affine, array_bounds
from rasterio.vrt import WarpedVRT
from rasterio.warp import reproject, transform_geom

from ..waiting import Change
from . import maps
from .showing import show

#: Colour-blind safe (Okabe and Ito), and told apart by the text beside them.
STATE_COLOURS = {
    **dict.fromkeys(("PENDING", "queued"), "#999999"),
    **dict.fromkeys(("RUNNING", "in_progress"), "#56B4E9"),
    **dict.fromkeys(("SUCCEEDED", "completed", "converted", "present"), "#009E73"),
    **dict.fromkeys(("FAILED", "failed"), "#D55E00"),
    # the steps of a conversion
    **{"look": "#999999", "stage": "#E69F00", "unpack": "#F0E442", "convert": "#56B4E9"},
    **{"describe": "#0072B2", "publish": "#CC79A7", "clean up": "#999999"},
}
NOTHING_CHANGED = "Nothing changed its state while we looked."


def show_timeline(changes: list[Change]) -> None:
    """Show how long each item stayed in each state, as seen from here."""
    if len({change.item for change in changes}) == len(changes):
        show(f"<p>{NOTHING_CHANGED}</p>", NOTHING_CHANGED)
        return
    items = list(dict.fromkeys(change.item for change in changes))
    start, end = changes[0].time, changes[-1].time
    figure = Figure(figsize=(8, 0.6 + 0.45 * len(items)), layout="constrained")
    axes = figure.subplots()
    for row, item in enumerate(items):
        own = [change for change in changes if change.item == item]
        bars = []
        for change, following in zip(own, [*own[1:], None], strict=True):
            begin = (change.time - start).total_seconds()
            width = ((following.time if following else end) - change.time).total_seconds()
            colour = STATE_COLOURS.get(change.state, "#CC79A7")
            axes.barh(row, max(width, 0.01), left=begin, color=colour, height=0.55)
            bars.append((width if following else math.inf, begin, f" {change.state.lower()}"))
        # The last state has no length of its own: a sign at its begin, filled for a good end, a cross for a bad one.
        bad = own[-1].state.lower() in ("failed", "cancelled")
        look = {"color": colour, "edgecolor": "black", "linewidth": 0.8, "s": 70, "zorder": 3, "clip_on": False}
        axes.scatter([begin], [row], marker="X" if bad else "o", **look)
        for begin, label in _without_overlap(bars, (end - start).total_seconds()):
            axes.text(begin, row - 0.42, label, va="center", fontsize=7)
    axes.set(yticks=range(len(items)), yticklabels=items, xlabel="seconds since the first look")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    told = "; ".join(f"{c.item} {c.state.lower()} at {(c.time - start).total_seconds():.0f} s" for c in changes)
    show_figure(figure, f"Timeline: {told}")


def _without_overlap(bars: list[tuple[float, float, str]], span: float) -> list[tuple[float, str]]:
    """Begin and label of those bars (width, begin, label) whose labels find room; the widest go first."""
    taken: list[tuple[float, float]] = []
    placed = []
    for _, begin, label in sorted(bars, key=lambda bar: -bar[0]):
        there = begin + 0.013 * span * len(label)  # of a letter of that size in a figure of that width
        if all(there <= left or begin >= right for left, right in taken):
            taken.append((begin, there))
            placed.append((begin, label))
    return placed


def show_map(rasters: dict[str, Path], title: str = "", *, tiles: bool = False) -> None:
    """Show single-band rasters on one map in longitude and latitude, each with the outline of its data.

    In JupyterLab, a map to move and zoom follows below.

    Parameters
    ----------
    rasters:
        GeoTIFF files in any projection, by the label to print beside them. NoData is transparent.
    tiles:
        In JupyterLab, OpenStreetMap below the map: needs the network.
    """
    layers = [(label, *_geographic(path)) for label, path in rasters.items()]
    low, high = min(v.min() for _, v, *_ in layers), max(v.max() for _, v, *_ in layers)
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    axes = figure.subplots()
    for label, values, box, outline in layers:
        extent = (box.left, box.right, box.bottom, box.top)
        image = axes.imshow(values, extent=extent, cmap="viridis", vmin=low, vmax=high)
        axes.plot(*zip(*outline, strict=True), color="black", linewidth=1)
        _label(axes, label, (box.left + box.right) / 2, box.top)
    boxes = [box for *_, box, _ in layers]
    _frame(axes, [(box.left, box.bottom) for box in boxes] + [(box.right, box.top) for box in boxes])
    axes.set(xlabel="longitude (degrees east)", ylabel="latitude (degrees north)", title=title)
    axes.grid(linewidth=0.3)
    figure.colorbar(image, ax=axes, shrink=0.7)
    west, east, south, north = (*axes.get_xlim(), *axes.get_ylim())
    corners = f"from {west:.1f} to {east:.1f} degrees east, {south:.1f} to {north:.1f} degrees north"
    show_figure(figure, alt := f"Map of {', '.join(rasters)}, {corners}")
    maps.show_twin([_layer(*layer, low, high) for layer in layers], alt, tiles=tiles)


def _layer(label: str, values: Any, box: Any, outline: list, low: float, high: float) -> maps.Layer:
    shades = colormaps["viridis"]((np.ma.filled(values, low) - low) / max(high - low, 1e-9))
    shades[..., 3] = ~np.ma.getmaskarray(values)
    return maps.Layer(label, outline, shades, (box.left, box.right, box.bottom, box.top))


def _geographic(path: Path) -> tuple[Any, Any, list]:
    """Values, bounds and outline of a raster in longitude and latitude."""
    with (
        rasterio.open(path) as source,
        WarpedVRT(source, crs="EPSG:4326", resampling=Resampling.bilinear) as geographic,
    ):
        shape = _fitting(geographic.height, geographic.width)
        values = geographic.read(1, out_shape=shape, masked=True)
        return values, geographic.bounds, _outline(source)


def _fitting(height: int, width: int, longest: int = 900) -> tuple[int, int]:
    scale = max(height, width, longest) / longest
    return round(height / scale), round(width / scale)


def _outline(source: Any) -> list[tuple[float, float]]:
    """The largest outline of valid data, in longitude and latitude."""
    height, width = _fitting(source.height, source.width, 200)
    mask = source.read_masks(1, out_shape=(height, width))
    transform = source.transform @ source.transform.scale(source.width / width, source.height / height)
    areas = [area for area, value in shapes(mask, mask=mask > 0, transform=transform)]
    largest = max(areas, key=lambda area: len(area["coordinates"][0]))
    return transform_geom(source.crs, "EPSG:4326", largest)["coordinates"][0]


def show_products(products: dict[str, tuple[dict, Path | None]], title: str = "", *, tiles: bool = False) -> None:
    """Show where products lie, in longitude and latitude: the outline of each and, where there is one, its picture.

    In JupyterLab, a map to move and zoom follows below.

    Parameters
    ----------
    products:
        By the label to print beside it: a GeoJSON Polygon, and a raster that knows its place (by a projection or by
        ground control points), of which the first band, or the first three as red, green and blue, is shown; only the
        outline if it cannot be opened (any more).
    tiles:
        In JupyterLab, OpenStreetMap below the map: needs the network.
    """
    if not products:
        show("<p>There is nothing to show on a map.</p>", "There is nothing to show on a map.")
        return
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    axes = figure.subplots()
    places: list[tuple[float, float]] = []
    layers = []
    for label, (outline, picture) in products.items():
        ring = outline["coordinates"][0]
        values = extent = None
        if picture:
            with suppress(rasterio.errors.RasterioIOError):
                values, extent = _picture(picture)
                axes.imshow(values, extent=extent)
        axes.plot(*zip(*ring, strict=True), color="#D55E00", linewidth=1.5)
        place = sum(lon for lon, _ in ring[:-1]) / (len(ring) - 1), max(lat for _, lat in ring)
        width = max(lon for lon, _ in ring) - min(lon for lon, _ in ring)
        before = sum(abs(place[0] - x) < width and abs(place[1] - y) < width / 4 for x, y in places)
        _label(axes, label, *place, above=before)
        places.append(place)
        layers.append(maps.Layer(label, [(lon, lat) for lon, lat, *_ in ring], values, extent))
    _frame(axes, [corner for outline, _ in products.values() for corner in outline["coordinates"][0]])
    middle = sum(axes.get_ylim()) / 2
    axes.set_aspect(1 / max(math.cos(math.radians(middle)), 0.1))  # a degree of longitude is that much shorter
    axes.set(xlabel="longitude (degrees east)", ylabel="latitude (degrees north)", title=title)
    axes.grid(linewidth=0.3)
    west, east, south, north = (*axes.get_xlim(), *axes.get_ylim())
    extent = f"from {west:.1f} to {east:.1f} degrees east, {south:.1f} to {north:.1f} degrees north"
    show_figure(figure, alt := f"Map of {', '.join(products)}, {extent}")
    maps.show_twin(layers, alt, tiles=tiles)


def _label(axes: Any, text: str, x: float, y: float, above: int = 0) -> None:
    """Write ``text`` just above a place, so that it hides nothing of it, and above so many others there."""
    box = {"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1}
    axes.annotate(text, (x, y), (0, 4 + 12 * above), textcoords="offset points", fontsize=8, ha="center", bbox=box)


def _frame(axes: Any, points: Iterable[tuple[float, float]]) -> None:
    """Let the axes reach a tenth beyond ``points`` (longitude, latitude) on each side."""
    for set_limits, values in zip((axes.set_xlim, axes.set_ylim), zip(*points, strict=True), strict=True):
        margin = 0.1 * (max(values) - min(values))
        set_limits(min(values) - margin, max(values) + margin)


def _picture(path: Path) -> tuple[Any, tuple[float, float, float, float]]:
    """A raster for ``imshow``, reduced and warped to longitude and latitude: shades with transparency, and extent."""
    with rasterio.open(path) as source:
        height, width = _fitting(source.height, source.width)
        shown = [1, 2, 3] if source.count >= 3 else [1, 1, 1]
        values = source.read(shown, out_shape=(3, height, width), masked=True).astype("f4").filled(np.nan)
        down, across = height / source.height, width / source.width
        if source.crs:
            place = {"src_crs": source.crs, "src_transform": source.transform @ Affine.scale(1 / across, 1 / down)}
        else:
            points, crs = source.gcps
            points = [GroundControlPoint(p.row * down, p.col * across, p.x, p.y, p.z) for p in points]
            place = {"src_crs": crs, "gcps": points}
    # Nothing was measured where all bands are zero, in Sentinel-1 and -2 alike; NaN is that for the warp.
    values[:, (values == 0).all(axis=0)] = np.nan
    warped, transform = reproject(values, dst_crs="EPSG:4326", src_nodata=np.nan, dst_nodata=np.nan, **place)
    seen = np.isfinite(warped).all(axis=0)
    low, high = np.percentile(warped[:, seen], (1, 98)) if seen.any() else (0, 1)
    shades = np.nan_to_num(np.clip((warped - low) / max(high - low, 1e-9), 0, 1))
    left, bottom, right, top = array_bounds(*seen.shape, transform)
    return np.dstack([*shades, seen]), (left, right, bottom, top)


def show_figure(figure: Figure, alt: str) -> None:
    """Show a matplotlib figure as a picture with a text for those who cannot see it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    show_image(buffer.getvalue(), alt)


def show_image(png: bytes, alt: str, width: int | None = None) -> None:
    """Show a PNG (``width`` in pixels, its own by default) with a text for those who cannot see it."""
    if get_ipython() is None:
        print(f"[picture: {alt}]")
    else:
        display(Image(data=png, format="png", alt=alt, width=width))
