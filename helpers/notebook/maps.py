"""The interactive twin of a map, for those who sit in front of JupyterLab: to move, to zoom, to switch layers.

It lies below the static picture and needs no network: outlines and pictures on a grid of degrees. ipyleaflet is
imported only once somebody is there to see it, and a document that nobody looked at has no widget in it.
"""

import base64
import io
import math
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from IPython.display import display
from matplotlib.image import imsave

from . import front_end

#: Pixels of the map: its height, and the width that it can count on.
HEIGHT, WIDTH = 400, 600
#: Pixels of the whole world at zoom 0 (Leaflet's convention), and the largest zoom that is of use.
WORLD, DEEPEST = 256, 16
#: Degrees between the lines of the grid: the finest with at least so many lines is taken.
STEPS, LINES = (10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01), 3
#: Latitudes that Web Mercator can show.
MOST_NORTH = 85.0
OUTLINE, GRID = "#D55E00", "#767676"
ON_PAPER = "A map to move and zoom is shown here while the notebook runs: run this cell again to have it back."


@dataclass(frozen=True)
class Layer:
    """One thing on the map.

    Attributes
    ----------
    label:
        Its name.
    ring:
        Its outline, as (longitude, latitude), the first point again at the end.
    shades, extent:
        Its picture: (rows, columns, 4) from 0 to 1, the first row in the north, in longitude and latitude; and (west,
        east, south, north) of it. None: there is none.
    """

    label: str
    ring: list[tuple[float, float]]
    shades: Any = None
    extent: tuple[float, float, float, float] | None = None


def show_twin(layers: list[Layer], alt: str, *, tiles: bool = False) -> None:
    """Show the map below its static picture, if somebody can use it; without a front end, nothing happens.

    Parameters
    ----------
    layers:
        What to show, the last on top.
    alt:
        What is to be seen, in words.
    tiles:
        Draw OpenStreetMap below: asks its servers for every part of the world that is looked at.
    """
    if layers and front_end.attended():
        view = interactive(layers, alt, tiles=tiles)._repr_mimebundle_()
        display(view | {"text/plain": ON_PAPER, "text/html": f"<p>{escape(ON_PAPER)}</p>"}, raw=True)


def interactive(layers: list[Layer], alt: str, *, tiles: bool = False) -> Any:
    """The map, as a box of widgets of class ``recipes-map``; parameters as of :func:`show_twin`."""
    import ipyleaflet
    import ipywidgets

    points = [point for layer in layers for point in layer.ring]
    for layer in layers:
        if layer.extent:
            west, east, south, north = layer.extent
            points += [(west, south), (east, north)]
    (west, east), (south, north) = ((min(values), max(values)) for values in zip(*points, strict=True))
    south, north = max(south, -MOST_NORTH), min(north, MOST_NORTH)
    drawn: list[Any] = [] if tiles else _grid(ipyleaflet, west, east, south, north)
    for layer in layers:
        if layer.shades is not None:
            drawn.append(_overlay(ipyleaflet, layer))
    for layer in layers:
        drawn += _outline(ipyleaflet, layer)
    middle = _latitude((_mercator(south) + _mercator(north)) / 2), (west + east) / 2
    options: dict[str, Any] = {"scroll_wheel_zoom": False, "zoom_snap": 0.5, "max_zoom": DEEPEST}
    if not tiles:
        options |= {"layers": tuple(drawn), "attribution_control": False}
    plot = ipyleaflet.Map(center=middle, zoom=_zoom(west, east, south, north), **options)
    for one in drawn if tiles else ():
        plot.add(one)
    plot.add(ipyleaflet.LayersControl(position="topright"))
    plot.add(ipyleaflet.ScaleControl(position="bottomleft", imperial=False))
    plot.layout.height, plot.layout.width = f"{HEIGHT}px", "100%"
    words = ipywidgets.HTML(
        f"<style>{STYLE}</style><p>The same to move and zoom: drag it, or click on it and use the arrow keys, + and -."
        f" The button at its top right switches layers on and off. {escape(alt)}.</p>"
    )
    box = ipywidgets.VBox([words, plot], layout={"width": "100%", "overflow": "visible"})
    return box.add_class("recipes-map")


#: Leaflet's own colours are those of a light page, whatever the theme.
STYLE = """
.recipes-map .leaflet-container { background: #f7f7f4; color: #222; border: 1px solid #767676; }
.recipes-map .leaflet-container:focus-visible { outline: 3px solid var(--jp-brand-color1, #1976d2); }
.recipes-map .leaflet-bar a, .recipes-map .leaflet-control-layers, .recipes-map .leaflet-control-layers-toggle {
  background-color: #fff; color: #222; }
.recipes-map .leaflet-bar a { border-color: #767676; }
.recipes-map .leaflet-container, .recipes-map .leaflet-widgets { box-sizing: border-box; }
.recipes-map .leaflet-div-icon { background: none; border: 0; }
.recipes-map .recipes-map-label, .recipes-map .recipes-map-degrees { display: inline-block; white-space: nowrap;
  transform: translateX(-50%); padding: 0 3px; font: 11px sans-serif; }
.recipes-map .recipes-map-label { color: #222; background: rgb(255 255 255 / 85%); }
.recipes-map .recipes-map-degrees { color: #333; background: rgb(247 247 244 / 70%); }
.recipes-map .widget-html-content { line-height: 1.4; white-space: normal; }
"""


def _outline(ipyleaflet: Any, layer: Layer) -> list[Any]:
    """The outline, thicker below the pointer; and its name above it, for the keyboard as well."""
    style = {"color": OUTLINE, "weight": 2, "fillOpacity": 0.0 if layer.shades is not None else 0.15}
    feature = {
        "type": "Feature",
        "properties": {"name": layer.label, "style": style},
        "geometry": {"type": "Polygon", "coordinates": [[list(point) for point in layer.ring]]},
    }
    shape = ipyleaflet.GeoJSON(
        data={"type": "FeatureCollection", "features": [feature]},
        hover_style={"weight": 4},
        name=layer.label,
    )
    north = max(lat for _, lat in layer.ring)
    middle = sum(lon for lon, _ in layer.ring[:-1]) / max(len(layer.ring) - 1, 1)
    return [shape, _text(ipyleaflet, north, middle, layer.label, "recipes-map-label", f"{layer.label}: name")]


def _text(ipyleaflet: Any, lat: float, lon: float, text: str, kind: str, name: str = "") -> Any:
    icon = ipyleaflet.DivIcon(html=f"<span class='{kind}'>{escape(text)}</span>", icon_size=[0, 0], icon_anchor=[0, 16])
    # Nothing happens when it is pressed: it is no stop for the keyboard.
    return ipyleaflet.Marker(
        location=(lat, lon), icon=icon, draggable=False, keyboard=False, title=text, alt=text, name=name
    )


def _overlay(ipyleaflet: Any, layer: Layer) -> Any:
    west, east, south, north = layer.extent
    shades = _in_mercator(np.asarray(layer.shades), south, north)
    buffer = io.BytesIO()
    imsave(buffer, shades, format="png")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return ipyleaflet.ImageOverlay(url=url, bounds=((south, west), (north, east)), name=f"{layer.label}: picture")


def _in_mercator(shades: Any, south: float, north: float) -> Any:
    """The rows of a picture in latitude at equal distances of Web Mercator, which Leaflet shows."""
    rows = len(shades)
    heights = np.linspace(_mercator(north), _mercator(south), 2 * rows + 1)[1::2]
    latitudes = np.degrees(np.arctan(np.sinh(heights)))
    found = np.clip(((north - latitudes) / max(north - south, 1e-12) * rows).astype(int), 0, rows - 1)
    return shades[found]


def _grid(ipyleaflet: Any, west: float, east: float, south: float, north: float) -> list[Any]:
    """Lines of longitude and latitude far around, and what they are beside those that cross the place."""
    span = max(east - west, north - south, 0.02)
    step = next((step for step in STEPS if span / step >= LINES), STEPS[-1])
    lines, texts = [], []
    first, last = math.floor((west - 2 * span) / step), math.ceil((east + 2 * span) / step)
    low, high = max((south - 2 * span), -MOST_NORTH), min(north + 2 * span, MOST_NORTH)
    for n in range(first, last + 1):
        lines.append([[n * step, low], [n * step, high]])
        if west <= n * step <= east:
            text = f"{abs(n * step):g}° {'E' if n >= 0 else 'W'}"
            texts.append(_text(ipyleaflet, south, n * step, text, "recipes-map-degrees"))
    for n in range(math.ceil(low / step), math.floor(high / step) + 1):
        lines.append([[first * step, n * step], [last * step, n * step]])
        if south <= n * step <= north:
            text = f"{abs(n * step):g}° {'N' if n >= 0 else 'S'}"
            texts.append(_text(ipyleaflet, n * step, west, text, "recipes-map-degrees"))
    style = {"color": GRID, "weight": 0.5, "opacity": 0.8}
    feature = {
        "type": "Feature",
        "properties": {"style": style},
        "geometry": {"type": "MultiLineString", "coordinates": lines},
    }
    grid = ipyleaflet.GeoJSON(data={"type": "FeatureCollection", "features": [feature]}, name="degrees")
    # Together, so that one switch is enough.
    return [ipyleaflet.LayerGroup(layers=(grid, *texts), name="degrees")]


def _zoom(west: float, east: float, south: float, north: float) -> float:
    """The deepest zoom, in halves, at which all is to be seen."""
    width = max(east - west, 1e-4) / 360
    height = max(_mercator(north) - _mercator(south), 1e-6) / (2 * math.pi)
    fitting = min(math.log2(0.8 * WIDTH / WORLD / width), math.log2(0.8 * HEIGHT / WORLD / height))
    return max(0.0, min(math.floor(2 * fitting) / 2, DEEPEST))


def _mercator(lat: float) -> float:
    return math.asinh(math.tan(math.radians(max(-MOST_NORTH, min(lat, MOST_NORTH)))))


def _latitude(height: float) -> float:
    return math.degrees(math.atan(math.sinh(height)))
