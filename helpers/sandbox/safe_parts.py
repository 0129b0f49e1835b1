"""What SAFE products of all missions are made with: files, templates, manifests' lists, the ground and the sky."""

import hashlib
import io
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml

from .products import _fields, _Grid, _Land, _landscape, _locate, _noise, _rng, _smoothstep

#: Longest side in pixels of the landscape that pictures of every size are resampled from.
LANDSCAPE = 480
TEMPLATES = Path(__file__).with_name("safe_templates")
STAMP = "%Y%m%dT%H%M%S"
TIME = r"\d{8}T\d{6}"
#: m above the ground: as far as the sun is low, so far are clouds from their shadows.
CLOUD_HEIGHT = 2745


# --- files ---


class Files:
    """A product's files by their path below its root. What is put in is on the disk at once: it need not fit in memory.

    Iterating gives the paths, sorted.
    """

    def __init__(self, root: Path):
        self.root = root

    def __setitem__(self, path: str, body: bytes) -> None:
        self.place(path).write_bytes(body)

    def __getitem__(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file()))

    def place(self, path: str) -> Path:
        """Where to write a file; its folder is made."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        return place


def members(files: Files, algorithm: str) -> list[dict]:
    """What the manifest tells of each file; ``algorithm`` is one of `hashlib`'s."""
    kinds = {"xml": "text/xml", "xsd": "text/xml", "kml": "text/xml", "html": "text/html"}
    kinds |= {"png": "image/png", "jpg": "image/jpeg", "nc": "application/x-netcdf"}
    listed = []
    for path in files:
        with (files.root / path).open("rb") as file:
            checksum = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
        mime = kinds.get(path.rpartition(".")[2], "application/octet-stream")
        size = (files.root / path).stat().st_size
        listed.append({"path": path, "id": re.sub(r"\W+", "_", path), "size": size, "checksum": checksum, "mime": mime})
    return listed


@cache
def facts() -> dict[str, Any]:
    return yaml.safe_load((TEMPLATES / "facts.yml").read_text())


@cache
def _templates() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    options = {"trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, **options)
    environment.filters |= {
        "sci": lambda value: f"{value:.15e}",
        "numbers": lambda values, digits=6: " ".join(f"{value:.{digits}e}" for value in values),
        "time": lambda moment: moment.isoformat(timespec="microseconds"),
        "utc": lambda moment: moment.isoformat(timespec="milliseconds") + "Z",
    }
    return environment


def render(template: str, **values: Any) -> bytes:
    return _templates().get_template(f"{template}.j2").render(values).strip().encode() + b"\n"


def schema(example: bytes) -> bytes:
    """XML schema that a document fits and all others of its kind do: its elements, and the types of their values.

    Converters decode the annotation by it: it tells lists from single values, and numbers from texts.
    """

    def kind(text: str) -> str:
        if re.fullmatch(r"[+-]?\d+", text):
            return "xs:integer"
        if re.fullmatch(r"[+-]?\d+\.\d+e[+-]\d+", text):
            return "xs:double"
        return "xs:boolean" if text in ("true", "false") else "xs:string"

    def element(node: ElementTree.Element, many: bool = False) -> str:
        start = f'<xs:element name="{node.tag}"' + (' minOccurs="0" maxOccurs="unbounded"' if many else "")
        count = '<xs:attribute name="count" type="xs:integer"/>' if "count" in node.attrib else ""
        text = (node.text or "").strip()
        if not (len(node) or count):
            return f'{start} type="{kind(text)}"/>'
        children = {child.tag: child for child in node}
        inside = "".join(element(child, bool(count)) for child in children.values())
        inside = f"<xs:sequence>{inside}</xs:sequence>{count}"
        if text:
            inside = f'<xs:simpleContent><xs:extension base="xs:string">{count}</xs:extension></xs:simpleContent>'
        return f"{start}><xs:complexType>{inside}</xs:complexType></xs:element>"

    root = element(ElementTree.fromstring(example))  # noqa: S314  # written here
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema">'
    return f"{head}{root}</xs:schema>\n".encode()


# --- pictures ---


def resized(
    picture: np.ndarray, height: int, width: int, smooth: bool = True, rows: tuple[int, int] | None = None
) -> np.ndarray:
    """The same picture, in colours or not, on another grid: interpolated, or the nearest value if not ``smooth``.

    With ``rows``, only those of the new grid from the first to before the second: large pictures are made in strips.
    """
    from PIL import Image

    first, end = rows or (0, height)
    if picture.shape[:2] == (height, width):
        return picture[first:end]
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    box = (0, first * picture.shape[0] / height, picture.shape[1], end * picture.shape[0] / height)
    return np.asarray(Image.fromarray(picture).resize((width, end - first), how, box))


def strips(height: int, rows: int = 512) -> Iterator[tuple[int, int]]:
    """First row and the one after the last of each strip of a picture, from the top."""
    return ((first, min(first + rows, height)) for first in range(0, height, rows))


def jpeg(rgb: np.ndarray) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=80)
    return out.getvalue()


# --- what lies on the ground, and above it ---


def coast(stem: str, shape: tuple[int, int], spacing: float, look: tuple[float, float]) -> _Land:
    """Landscape of the product's place with a sea in it, whose ``hand`` falls with the depth, to about -100."""
    row, col = np.indices(shape, dtype="f4", sparse=True)
    land = _landscape(_Grid("", (), spacing, np.ones(shape, bool), col, row, look, np.zeros(1)), [stem])
    sea = _noise(_rng("sea", _locate(stem)[0]), shape, 2.8) - 0.6
    shore = _smoothstep(-sea / 0.5)
    hand = (land.hand + 2) * shore - 2 - 40 * np.maximum(sea, 0)
    return replace(land, hand=hand, dem=np.maximum(land.dem - land.hand, 0) * shore + np.maximum(hand, 0))


@dataclass(frozen=True)
class View:
    """A place as seen on a day by an optical instrument: each is a share (0..1) of (rows, columns), if not said."""

    land: _Land
    summer: float  # from -1 to 1, and around 0 near the equator
    plots: np.ndarray  # farmland: one value from -1 to 1 for each field, 0 elsewhere
    plants: np.ndarray
    rock: np.ndarray
    snow: np.ndarray
    cloud: np.ndarray
    shadow: np.ndarray  # of clouds
    light: np.ndarray  # on slopes, 1 on level ground

    @classmethod
    def of(
        cls,
        place: tuple[str, str],
        day: np.random.Generator,
        shape: tuple[int, int],
        spacing: float,
        begin: datetime,
        latitude: float,
        sun: tuple[float, float],
    ) -> "View":
        """Place and season make plants, snow and fields; the day adds clouds and their shadows.

        ``place`` is the name that the landscape follows from and the one for its fields, ``spacing`` in m, ``sun`` its
        zenith angle and azimuth in degrees.
        """
        slope = math.tan(math.radians(min(sun[0], 80.0)))  # how far the light goes while it falls
        azimuth = math.radians(sun[1])
        shine = (-math.sin(azimuth), math.cos(azimuth))  # where to, in columns and rows
        land = coast(place[0], shape, min(spacing, 300), shine)  # the relief of coarser ones would reach into space
        year = 2 * math.pi * (begin.timetuple().tm_yday - 200) / 365.25
        summer = math.cos(year) * math.copysign(min(abs(latitude) / 40, 1), latitude)
        plots = _fields(shape, _rng("plots", place[1])) * land.plain * (land.hand > 1)
        plots *= spacing <= 300  # larger pixels hold many fields
        ripe = np.sin(3 * plots + year) * (plots != 0)  # crops sprout and are harvested at their own times
        cloud = _smoothstep((_noise(day, shape, 2.0) - day.uniform(0.6, 1.9)) / 0.9)
        away = [round(CLOUD_HEIGHT / spacing * slope * step) for step in shine]
        return cls(
            land=land,
            summer=summer,
            plots=plots,
            plants=np.clip(0.55 + 0.2 * summer + 0.16 * land.cover + 0.3 * ripe, 0.03, 1),
            rock=_smoothstep((land.dem - 2400 + 30 * abs(latitude)) / 900),
            snow=_smoothstep((land.dem - 5200 + 62 * abs(latitude) - 700 * summer + 100 * land.facing) / 250),
            cloud=cloud,
            shadow=np.roll(cloud, (away[1], away[0]), (0, 1)) * (1 - cloud),
            light=1 + 0.16 * slope * np.tanh(land.facing) * (1 - 0.8 * land.plain),
        )

    @property
    def wet(self) -> np.ndarray:
        return self.land.hand < 0

    def reflectance(self, spectrum: np.ndarray) -> np.ndarray:
        """Of one band below the air (0..1), from that of soil, plants, rock, snow, deep and turbid water, cloud."""
        soil, green, stone, white, deep, mud, bright = spectrum
        turbid = np.exp(np.minimum(self.land.hand + 2, 0) / 12)
        value = soil + (green - soil) * self.plants + 0.03 * self.plots
        value = value + (stone - value) * self.rock
        value = (value + (white - value) * self.snow) * self.light
        value = np.where(self.wet, deep + (mud - deep) * turbid, value) * (1 - 0.6 * self.shadow)
        return value + (bright - value) * self.cloud


# --- in the sky ---


def sun(moment: datetime, lon: np.ndarray, lat: np.ndarray, later: Any = 0) -> tuple[np.ndarray, np.ndarray]:
    """Zenith angle and azimuth of the sun in degrees (Spencer's series, good to some hundredths of a degree).

    ``later`` are seconds after the moment, for each place if they differ.
    """
    minutes = moment.hour * 60 + moment.minute + moment.second / 60
    day = 2 * math.pi * (moment.timetuple().tm_yday - 1 + (minutes - 720) / 1440) / 365
    terms = np.array([1, math.cos(day), math.sin(day), math.cos(2 * day), math.sin(2 * day)])
    declination = terms @ [0.006918, -0.399912, 0.070257, -0.006758, 0.000907]
    equation = 229.18 * (terms @ [0.000075, 0.001868, -0.032077, -0.014615, -0.040849])  # of time, in minutes
    hour, phi = np.radians((minutes + later / 60 + equation) / 4 + lon - 180), np.radians(lat)
    up = np.sin(phi) * np.sin(declination) + np.cos(phi) * np.cos(declination) * np.cos(hour)
    east = -np.cos(declination) * np.sin(hour)
    north = np.cos(phi) * np.sin(declination) - np.sin(phi) * np.cos(declination) * np.cos(hour)
    return np.degrees(np.arccos(up)), np.degrees(np.arctan2(east, north)) % 360


def state(track: Callable[[float], tuple[float, float]], height: float, seconds: float) -> dict[str, np.ndarray]:
    """Earth-fixed position (m) and velocity (m/s) of a satellite at a height in m above its track on the ellipsoid.

    ``track`` gives longitude and latitude in degrees for a time in s.
    """

    def position(seconds: float) -> np.ndarray:
        lon, lat = np.radians(track(seconds))
        normal = 6378137 / np.sqrt(1 - 0.00669438 * np.sin(lat) ** 2)
        flat = (normal + height) * np.cos(lat)
        return np.array([flat * np.cos(lon), flat * np.sin(lon), (0.99330562 * normal + height) * np.sin(lat)])

    return {"position": position(seconds), "velocity": position(seconds + 0.5) - position(seconds - 0.5)}
