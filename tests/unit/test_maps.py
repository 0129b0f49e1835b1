"""The interactive twin of a map: what is on it, where it asks nobody, and that no document is left with a widget."""

import base64
import io
import json
import math
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

from helpers.notebook import front_end, maps, pictures

RING = [(53.2, 27.4), (53.8, 27.3), (53.9, 27.7), (53.3, 27.8), (53.2, 27.4)]


def everything(widget, seen=None):
    """All widgets below one."""
    seen = {} if seen is None else seen
    if widget.model_id not in seen:
        seen[widget.model_id] = widget
        for name in ("children", "layers", "controls", "icon"):
            below = getattr(widget, name, None)
            for one in below if isinstance(below, tuple | list) else [below]:
                if hasattr(one, "model_id"):
                    everything(one, seen)
    return list(seen.values())


def of_kind(box, kind):
    return [one for one in everything(box) if type(one).__name__ == kind]


@pytest.fixture
def layer():
    shades = np.zeros((40, 60, 4))
    shades[:20, :, 0] = shades[..., 3] = 1  # the northern half is red
    return maps.Layer("a & b", RING, shades, (53.2, 53.9, 27.3, 27.8))


def test_outline_name_and_picture_are_on_it(layer):
    box = maps.interactive([layer], "Map of a & b")
    assert "recipes-map" in box._dom_classes
    names = [one.name for one in of_kind(box, "GeoJSON")]
    assert names == ["degrees", "a & b"]
    (feature,) = of_kind(box, "GeoJSON")[1].data["features"]
    assert feature["geometry"]["coordinates"] == [[list(point) for point in RING]]
    labels = {one.title: one for one in of_kind(box, "Marker")}
    assert "a &amp; b" in labels["a & b"].icon.html and {"27.4° N", "53.4° E"} <= set(labels)
    (picture,) = of_kind(box, "ImageOverlay")
    assert [list(corner) for corner in picture.bounds] == [[27.3, 53.2], [27.8, 53.9]]
    png = base64.b64decode(picture.url.removeprefix("data:image/png;base64,"))
    shown = matplotlib.image.imread(io.BytesIO(png))
    assert shown[0, 0, 0] == 1 and shown[-1, 0, 0] == 0
    (plot,) = of_kind(box, "Map")
    assert plot.layout.height == "400px" and plot.layout.width == "100%" and plot.keyboard
    assert of_kind(box, "LayersControl")


def test_it_asks_nobody_for_anything_unless_it_is_told_to(layer):
    sent = json.dumps([one.get_state() for one in everything(maps.interactive([layer], "x"))], default=str)
    assert "http" not in sent.replace("http://127.0.0.1", "") and not of_kind(
        maps.interactive([layer], "x"), "TileLayer"
    )
    assert of_kind(maps.interactive([layer], "x", tiles=True), "TileLayer")


@pytest.mark.parametrize("ring", [
    RING,
    [(-180, -90), (180, -90), (180, 90), (-180, 90), (-180, -90)],
    [(10, 46), (10.0001, 46), (10.0001, 46.0001), (10, 46)],
    [(10, 46), (10, 46), (10, 46)],
], ids=["burst", "world", "tiny", "point"])  # fmt: skip
def test_all_of_it_is_in_sight(ring):
    (plot,) = of_kind(maps.interactive([maps.Layer("x", ring)], "x"), "Map")
    assert 0 <= plot.zoom <= maps.DEEPEST and all(map(math.isfinite, plot.center))
    scale = maps.WORLD * 2**plot.zoom
    lons, lats = zip(*ring, strict=True)
    height = (maps._mercator(max(lats)) - maps._mercator(min(lats))) / (2 * math.pi) * scale
    assert (max(lons) - min(lons)) / 360 * scale <= maps.WIDTH
    assert height <= maps.HEIGHT


def test_rows_lie_where_their_latitudes_are():
    """A picture of 20 degrees: linear in latitude it would be displaced by half a degree."""
    rows = 2000
    latitudes = 70 - (np.arange(rows) + 0.5) * 20 / rows
    shown = maps._in_mercator(np.repeat(latitudes[:, None], 1, axis=1), 50.0, 70.0)[:, 0]
    heights = np.linspace(maps._mercator(70), maps._mercator(50), 2 * rows + 1)[1::2]
    assert np.abs(shown - np.degrees(np.arctan(np.sinh(heights)))).max() < 0.02


@pytest.mark.parametrize("there", [True, False])
def test_the_picture_is_always_there_and_the_map_only_for_somebody(there, monkeypatch):
    shown = []
    monkeypatch.setattr(front_end, "attended", lambda: there)
    monkeypatch.setattr(pictures, "show_image", lambda png, alt, width=None: shown.append(png[:4]))
    monkeypatch.setattr(maps, "display", lambda data, raw: shown.append(data))
    pictures.show_products({"x": ({"type": "Polygon", "coordinates": [RING]}, None)})
    picture, *rest = shown
    assert picture == b"\x89PNG" and len(rest) == there
    for view in rest:
        assert view["application/vnd.jupyter.widget-view+json"]["model_id"]
        assert view["text/plain"] == maps.ON_PAPER and maps.ON_PAPER in view["text/html"]


def test_nobody_waits_for_it_where_it_is_not_shown():
    code = "import sys, helpers.notebook; print([m for m in sys.modules if m in ('ipyleaflet', 'ipywidgets')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
