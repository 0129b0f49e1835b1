"""Products of the HyP3 stand-in: small, georeferenced and deterministic, with HyP3's names and folders.

A job's granules fix the place (`granule_footprint`), the place fixes the landscape, and the dates fix what
happened there. So two jobs over one burst show the same mountains, and the same job gives the same bytes.

Sources: names and file lists are those of HyP3's product guides (hyp3-docs.asf.alaska.edu/guides) and of its
public plugins hyp3-gamma, hyp3-isce2 and hyp3-autorift; tags follow hyp3lib's rule by file name; orbit and
burst numbers follow ESA's burst ID definition (Sentinel-1 Level 1 algorithm definition, MPC-0307, table 9-7).
"""

import io
import json
import re
import struct
import zipfile
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any

import numpy as np

ORBITS, CYCLE_DAYS = 175, 12
ORBIT_SECONDS = CYCLE_DAYS * 86400 / ORBITS
BURST_SECONDS, PREAMBLE_SECONDS = 2.758273, 2.299849
INCLINATION, ECCENTRICITY = np.radians(98.18), 0.00118
GROUND_SPEED = 6.8  # km/s
NEAR_RANGE, SWATH_WIDTH = 368.0, 85.3  # km on the ground, right of the track: three sub-swaths of IW
#: Absolute orbit number that is the first of a cycle.
FIRST_ORBIT = {"S1A": 73, "S1B": 27, "S1C": 172}
#: Local mean time, in s, at the ascending node: 18:00, and the 20 s that recorded bursts show on average.
NODE_TIME = 18 * 3600 + 20
#: Names of Sentinel-1 scenes (mission, start, end, absolute orbit) and of MGRS tiles in other names.
SCENE = re.compile(r"(S1.)_.._...._...._\d{8}T(\d{6})_\d{8}T(\d{6})_(\d{6})_")
TILE = re.compile(r"_T(\d{2})([C-HJ-NP-X])([A-HJ-NP-Z])([A-HJ-NP-V])(?:_|$)")
TILE_WIDTH = 109_800  # m
#: Longitude and latitude of plains and mountains for granules that tell no place.
LAND = [(-105, 40), (-58, -15), (25, 47), (37, 38), (23, 1), (78, 25), (100, 60), (112, 30), (135, -24)]

#: Most pixels with data, along azimuth and in total: keeps a job with all its options below 3 MB.
MAX_LINES, MAX_PIXELS = 400, 160_000
SPACING = {"20x4": 80, "10x2": 40, "5x1": 20}
WAVELENGTH = 0.05546576  # m, Sentinel-1
#: Colour ramps as (position, red, green, blue).
CYCLIC = [(0, 40, 60, 190), (0.2, 30, 190, 215), (0.4, 110, 215, 90), (0.6, 250, 225, 60), (0.8, 235, 80, 60)]
CYCLIC += [(1, *CYCLIC[0][1:])]
SPEED = [
    (0, 18, 30, 90),
    (0.25, 25, 110, 170),
    (0.5, 70, 190, 170),
    (0.7, 250, 225, 100),
    (0.85, 235, 95, 40),
]
SPEED += [(1, 150, 10, 90)]
#: Layers of an INSAR_GAMMA package besides the four it always has.
GAMMA_OPTIONS = {
    "include_wrapped_phase": ["wrapped_phase"],
    "include_dem": ["dem"],
    "include_look_vectors": ["lv_theta", "lv_phi"],
    "include_los_displacement": ["los_disp"],
    "include_displacement_maps": ["los_disp", "vert_disp"],
    "include_inc_map": ["inc_map", "inc_map_ell"],
}
WATER_MASKED = {"unw_phase", "wrapped_phase", "conncomp", "los_disp", "vert_disp"}
#: Bits of mantissa for slowly changing angles, which would show steps otherwise.
SMOOTH = {"lv_theta": 12, "lv_phi": 12, "inc_map_ell": 12}
#: Parameter file of an interferogram; the satellite's values are nominal.
PARAMETERS = """\
Reference Granule: {reference}
Secondary Granule: {secondary}
Reference Pass Direction: {direction}
Reference Orbit Number: {reference_orbit}
Secondary Pass Direction: {direction}
Secondary Orbit Number: {secondary_orbit}
Baseline: {baseline}
UTC time: {seconds}
Heading: {heading:.4f}
Spacecraft height: 693000.0
Earth radius at nadir: 6337286.638938101
Slant range near: 800000.0
Slant range center: 880000.0
Slant range far: 960000.0
Range looks: {looks[0]}
Azimuth looks: {looks[1]}
INSAR phase filter: yes
Phase filter parameter: {filter}
Range bandpass filter: no
Azimuth bandpass filter: no
DEM source: GLO_30
DEM resolution (m): {dem}
Unwrapping type: {unwrapper}
Speckle filter: {speckle}
Water mask: {mask}
"""


@dataclass(frozen=True)
class Product:
    """One object of a job's prefix in S3.

    ``file_type`` is the value of HyP3's tag of that name: product, amp-browse, rgb-browse, amp-thumbnail or
    rgb-thumbnail.
    """

    name: str
    body: bytes
    file_type: str
    content_type: str


# --- where granules lie ---


def granule_footprint(granule: str) -> dict:
    """GeoJSON Polygon of a granule: longitude and latitude in degrees, a closed ring of five positions.

    Sentinel-1 bursts and scenes follow from the orbit, to within about 100 km of the real place. A burst
    number with its sub-swath is one place exactly; scenes of a pair differ as their times of day do, by 7 km
    a second. Sentinel-2 tiles (MGRS) and Landsat scenes (WRS-2) lie on their grids, any other name somewhere
    on land. Longitudes are in [-180, 180), also in rings across the antimeridian. Raises nothing.
    """
    _, ring = _locate(granule)
    closed = [[round((lon + 180) % 360 - 180, 6), round(lat, 6)] for lon, lat in [*ring, ring[0]]]
    return {"type": "Polygon", "coordinates": [closed]}


def _locate(granule: str) -> tuple[str, list[tuple[float, float]]]:
    """Name of the place and its four corners; longitudes run on across the antimeridian."""
    if burst := re.match(r"S1_(\d{6})_[IE]W([1-5])_", granule):
        number, swath = int(burst[1]), int(burst[2])
        start = (number - 1) * BURST_SECONDS + PREAMBLE_SECONDS + 0.92 * (swath - 2)
        near = NEAR_RANGE + (swath - 1) * SWATH_WIDTH
        return f"{number}_IW{swath}", _swath(start, 20.9 / GROUND_SPEED, near, near + SWATH_WIDTH + 2)
    if SCENE.match(granule):
        track, start, seconds = _scene_pass(granule)
        far = NEAR_RANGE + 3 * SWATH_WIDTH
        return f"{track}_{round(start / 25)}", _swath(start, seconds, NEAR_RANGE, far)
    if tile := TILE.search(granule):
        return tile[0], _mgrs_tile(granule)
    if scene := re.match(r"L\w{3}_\w{4}_(\d{3})(\d{3})_", granule):
        return f"{scene[1]}{scene[2]}", _wrs2_scene(int(scene[1]), int(scene[2]))
    name = re.sub(r"_\d{8}.*", "", granule)  # without its date
    number = _hash(name)
    lon, lat = LAND[number % len(LAND)]
    return name, _square(lon + number // 10 % 400 / 200 - 1, lat + number // 4000 % 400 / 200 - 1, 50)


def _scene_pass(scene: str) -> tuple[int, float, float]:
    """Track of a Sentinel-1 scene (from 0), its start in s after relative orbit 1 begins, its length in s."""
    mission, begin, end, orbit = SCENE.match(scene).groups()
    track = (int(orbit) - FIRST_ORBIT.get(mission, 73)) % ORBITS
    begin, end = (int(t[:2]) * 3600 + int(t[2:4]) * 60 + int(t[4:]) for t in (begin, end))
    node = NODE_TIME + track * ORBIT_SECONDS  # UTC: the node moves west with the sun, orbit by orbit
    since_node = (begin - node + 300) % 86400 - 300
    return track, track * ORBIT_SECONDS + since_node % ORBIT_SECONDS, min((end - begin) % 86400 or 25, 60)


def _track(seconds: float) -> tuple[float, float]:
    """Longitude and latitude below the satellite, in seconds after relative orbit 1 begins, at 0 E."""
    mean = 2 * np.pi * seconds / ORBIT_SECONDS
    angle = mean + 2 * ECCENTRICITY * (1 - np.cos(mean))  # perigee is held above the north pole
    lat = np.arctan(1.00674 * np.tan(np.arcsin(np.sin(INCLINATION) * np.sin(angle))))
    lon = np.arctan2(np.cos(INCLINATION) * np.sin(angle), np.cos(angle)) - 2 * np.pi * seconds / 86400
    return np.degrees(lon), np.degrees(lat)


def _swath(start: float, seconds: float, near: float, far: float) -> list[tuple[float, float]]:
    """Corners of what a right-looking radar sees from ``start`` on, between two ground ranges in km."""
    end = start + seconds
    return _unwrap([_seen(start, near), _seen(start, far), _seen(end, far), _seen(end, near)])


def _seen(time: float, distance: float) -> tuple[float, float]:
    """Longitude and latitude at a distance in km to the right of the track."""
    (lon, lat), (lon1, lat1) = _track(time), _track(time + 1)
    heading = np.arctan2(((lon1 - lon + 180) % 360 - 180) * np.cos(np.radians(lat)), lat1 - lat)
    return _shift(lon, lat, heading + np.pi / 2, distance)


def _shift(lon: float, lat: float, azimuth: float, km: float) -> tuple[float, float]:
    arc, phi = km / 6371, np.radians(lat)
    sin_lat = np.sin(phi) * np.cos(arc) + np.cos(phi) * np.sin(arc) * np.cos(azimuth)
    east = np.arctan2(np.sin(azimuth) * np.sin(arc) * np.cos(phi), np.cos(arc) - np.sin(phi) * sin_lat)
    return lon + np.degrees(east), np.degrees(np.arcsin(sin_lat))


def _square(lon: float, lat: float, half: float, tilt: float = 0.0) -> list[tuple[float, float]]:
    corners = np.radians([225 + tilt, 135 + tilt, 45 + tilt, 315 + tilt])
    return _unwrap([_shift(lon, lat, azimuth, half * 2**0.5) for azimuth in corners])


def _unwrap(ring: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The ring with its first longitude in [-180, 180) and the others within half a turn of it."""
    first = (ring[0][0] + 180) % 360 - 180
    return [(float(first + (lon - ring[0][0] + 180) % 360 - 180), float(lat)) for lon, lat in ring]


def _mgrs_tile(granule: str) -> list[tuple[float, float]]:
    from rasterio.warp import transform

    utm, west, north = _tile_origin(granule)
    east, south = west + TILE_WIDTH, north - TILE_WIDTH
    lonlat = transform(utm, "EPSG:4326", [west, east, east, west], [south, south, north, north])
    return _unwrap(list(zip(*lonlat, strict=True)))


def _tile_origin(granule: str) -> tuple[str, float, float]:
    """CRS and upper left corner of a Sentinel-2 tile, 109.8 km wide: that of a 100 km MGRS square."""
    tile = TILE.search(granule)
    zone, band, column, row = int(tile[1]), *tile.group(2, 3, 4)
    columns, rows, bands = "ABCDEFGHJKLMNPQRSTUVWXYZ", "ABCDEFGHJKLMNPQRSTUV", "CDEFGHJKLMNPQRSTUVWX"
    west = (columns.index(column) % 8 + 1) * 1e5
    north = ((rows.index(row) - 5 * (zone % 2 == 0)) % 20 + 1) * 1e5
    middle = (bands.index(band) * 8 - 76) * 110_900
    north += round((middle - north) / 2e6) * 2e6  # the letters repeat every 2000 km: the band tells which
    if band < "N":
        north += 1e7
    return f"EPSG:{(32600 if band >= 'N' else 32700) + zone}", west, north


def _wrs2_scene(path: int, row: int) -> list[tuple[float, float]]:
    """Corners of a Landsat scene: 233 paths, 248 rows; row 60 of path 1 crosses the equator at 64.6 W."""
    angle = 2 * np.pi * (row - 60) / 248
    lat = -np.degrees(np.arcsin(np.sin(INCLINATION) * np.sin(angle)))
    ahead = np.degrees(np.arctan2(np.cos(INCLINATION) * np.sin(angle), np.cos(angle)) - angle * 98.9 / 1440)
    return _square(-64.6 - (path - 1) * 360 / 233 + ahead, lat, 90, tilt=12)


# --- the raster's grid and what lies under it ---


@dataclass(frozen=True)
class _Grid:
    """North-up raster over the middle of the granules; ``mask`` is true where they have data."""

    crs: str
    transform: tuple  # affine, from column and row to map units
    spacing: float  # m
    mask: np.ndarray
    col: np.ndarray  # (1, width), from 0
    row: np.ndarray  # (height, 1), from 0
    look: tuple[float, float]  # direction of increasing range, as steps of column and row
    incidence: np.ndarray  # radians

    def rise(self, field: np.ndarray) -> np.ndarray:
        """What a field gains per pixel along the radar's look."""
        down, right = np.gradient(field)
        return right * self.look[0] + down * self.look[1]


def _grid(
    granules: list[str], spacing: float, pixels: int = MAX_PIXELS, polar: bool = False, max_lines: float = MAX_LINES
) -> _Grid:
    from rasterio.warp import transform

    rings = [np.array(_locate(granule)[1]) for granule in sorted(granules)]
    middle = len(rings) // 2
    crs = _crs(*rings[middle].mean(axis=0), polar)
    corners = [np.transpose(transform("EPSG:4326", crs, *ring.T)) for ring in rings]
    frames = [_frame(c) for c in corners]
    origin, axes = frames[middle]
    # The window is a part of the middle granule's frame, (0, 0) at its centre; neighbours may reach into it.
    hull = np.concatenate([(c - origin) @ np.linalg.inv(axes) for c in corners])
    sides = np.linalg.norm(axes, axis=1) / spacing
    lines = min(sides[1] * np.ptp(hull[:, 1]), max_lines)
    half = np.array([pixels / lines, lines]) / sides / 2
    low, high = np.maximum(hull.min(axis=0), -half), np.minimum(hull.max(axis=0), half)
    window = origin + np.array([low, (high[0], low[1]), high, (low[0], high[1])]) @ axes
    left, bottom = np.floor(window.min(axis=0) / spacing) * spacing
    right, top = np.ceil(window.max(axis=0) / spacing) * spacing
    col = np.arange(round((right - left) / spacing), dtype="f4")[None, :]
    row = np.arange(round((top - bottom) / spacing), dtype="f4")[:, None]
    x, y = left + (col + 0.5) * spacing, top - (row + 0.5) * spacing

    def place(frame: tuple) -> tuple[np.ndarray, np.ndarray]:
        (x0, y0), ((a, b), (c, d)) = frame[0], np.linalg.inv(frame[1])
        return ((x - x0) * a + (y - y0) * c).astype("f4"), ((x - x0) * b + (y - y0) * d).astype("f4")

    u, v = place(frames[middle])
    inside = (u > low[0]) & (u < high[0]) & (v > low[1]) & (v < high[1])
    covered = np.zeros_like(inside)
    for frame in frames:
        across, along = place(frame)
        covered |= (abs(across) < 0.495) & (abs(along) < 0.495)  # a footprint's sides bulge by less than that
    right_look, up_look = axes[0] / np.linalg.norm(axes[0])
    transformation = (spacing, 0.0, left, 0.0, -spacing, top)
    incidence = np.radians(38 + 8 * u)
    look = right_look, -up_look
    return _Grid(crs, transformation, spacing, inside & covered, col, row, look, incidence)


def _frame(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre of a footprint and the vectors along its range and azimuth sides, in map units."""
    a, b, c, d = corners
    return corners.mean(axis=0), np.array([b - a + c - d, d - a + c - b]) / 2


def _crs(lon: float, lat: float, polar: bool) -> str:
    """UTM zone; polar stereographic beyond UTM's reach and, as ITS_LIVE does, for ice at high latitudes."""
    if abs(lat) > (60 if polar else 84):
        return "EPSG:3413" if lat > 0 else "EPSG:3031"
    zone = int((lon + 180) % 360 // 6) + 1
    return f"EPSG:{(32600 if lat >= 0 else 32700) + zone}"


@dataclass(frozen=True)
class _Land:
    """The unchanging landscape of a place."""

    dem: np.ndarray  # m
    hand: np.ndarray  # m above the nearest drainage, negative in permanent water
    facing: np.ndarray  # slope towards the radar, deviation 1
    plain: np.ndarray  # 1 in the plains, 0 in the mountains
    cover: np.ndarray  # vegetation, zero mean

    @property
    def water(self) -> np.ndarray:
        return self.hand < 0


def _landscape(grid: _Grid, granules: list[str]) -> _Land:
    """Valleys along the zero lines of a smooth noise, so that heights and rivers agree by construction."""
    rng = _rng("land", _locate(min(granules))[0])
    valley, ridge, detail, cover, lake = (_noise(rng, grid.mask.shape, k) for k in (2.6, 2.2, 1.6, 1.5, 3.0))
    distance = abs(valley + 0.06 * detail)
    mountain = _smoothstep((distance - 0.25) / 0.9)
    relief = 100 * grid.spacing**0.5 * (0.6 + rng.random())
    crests = np.exp(-2 * abs(ridge)) + 0.6 * np.exp(-2 * abs(ridge - 1)) + 0.1 * detail
    hand = 45 * (distance - 0.035) + relief * mountain * (0.3 * distance + 0.6 * crests)
    hand = (hand + 2) * _smoothstep((1.75 - lake) / 0.8) - 2
    slope = grid.rise(hand) / grid.spacing
    return _Land(
        dem=(hand + rng.integers(20, 900)).astype("f4"),
        hand=hand.astype("f4"),
        facing=slope / (slope.std() + 1e-6),
        plain=1 - mountain,
        cover=cover + 0.5 * mountain,
    )


def _noise(rng: np.random.Generator, shape: tuple[int, int], slope: float) -> np.ndarray:
    """Self-similar noise, mean 0 and deviation 1: its amplitude falls with wavenumber ** -slope."""
    height, width = (-(-n // 64) * 64 for n in shape)  # lengths that the FFT is quick with
    wavenumber = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)).astype("f4")
    wavenumber[0, 0] = np.inf
    white = rng.standard_normal((height, width + 2), dtype="f4").view("c8")
    field = np.fft.irfft2(white * wavenumber**-slope, s=(height, width))[: shape[0], : shape[1]]
    return (field - field.mean()) / field.std()


def _smoothstep(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _hash(*parts: object) -> int:
    return int.from_bytes(sha256("/".join(map(str, parts)).encode()).digest()[:8])


def _rng(*parts: object) -> np.random.Generator:
    return np.random.default_rng(_hash(*parts))


# --- what the jobs are about ---


def product_name(job: dict) -> str:
    """Stem of the names of a job's products, without folder or extension, in HyP3's scheme for its type.

    The four hexadecimal digits at its end (for AUTORIFT the percentage of valid pixels) are
    derived from ``job_id``.

    Raises
    ------
    KeyError
        The job lacks ``job_id``, ``job_type`` or ``job_parameters``, or its looks are unknown.
    ValueError
        A granule's name does not have its type's parts.
    """
    kind, options, scenes = job["job_type"], job["job_parameters"], _scenes(job)
    first, last = scenes[0], scenes[-1]
    day, other_day = _stamp(first)[:8], _stamp(last)[:8]
    digits = product_id(job["job_id"])
    interferogram = f"INT{SPACING[options.get('looks', '20x4')]}"
    if kind == "INSAR_ISCE_BURST":
        _, number, swath, _, polarization, _ = first.split("_")
        return f"S1_{number}_{swath}_{day}_{other_day}_{polarization}_{interferogram}_{digits}"
    if kind == "INSAR_ISCE_MULTI_BURST":
        polarization = first.split("_")[4]
        extent = f"{_relative_orbit(first):03d}_{_burst_extent(_reference(scenes))}_IW"
        return f"S1_{extent}_{day}_{other_day}_{polarization}_{interferogram}_{digits}"
    if kind == "INSAR_GAMMA":
        masked = "w" if options.get("apply_water_mask") else "u"
        pair = f"S1{first[2]}{last[2]}_{_stamp(first)}_{_stamp(last)}_{first[15] * 2}P{_days(scenes):03d}"
        return f"{pair}_{interferogram}_G_{masked}eF_{digits}"
    if kind in ("RTC_GAMMA", "WATER_MAP"):
        radiometry, scale = options.get("radiometry", "gamma0")[0], options.get("scale", "power")[0]
        speckle = "f" if options.get("speckle_filter") else "n"
        matching = "m" if options.get("dem_matching") else "d"
        scene = f"{first[:6]}_{_stamp(first)}_{first[14:16]}P_RTC{int(options.get('resolution', 30))}"
        return f"{scene}_G_{radiometry}{scale}u{speckle}e{matching}_{digits}"
    if kind == "AUTORIFT":
        names = "_X_".join(re.sub(r"(_\d{8}).*", r"\1", scene) for scene in (first, last))
        return f"{names}_G0120V02_P{_valid_percent(job):03d}"
    return f"{kind}_{day}_{other_day}_{digits}"


def product_id(job_id: str) -> str:
    """The four hexadecimal digits at the end of a name, which tell products of one granule apart."""
    return f"{_hash(job_id):016X}"[:4]


def _scenes(job: dict) -> list[str]:
    """The job's granules, oldest first; for jobs by frame and dates, names made of these."""
    options = job["job_parameters"]
    names = [name for key in ("granules", "reference", "secondary") for name in options.get(key, [])]
    if not names:
        frame = options.get("frame_id", options.get("frames", 0))
        dates = [v for k, v in options.items() if k.endswith("_date")] or [job["request_time"][:10]]
        names = [f"FRAME {frame}_{date.replace('-', '')}" for date in dates]
    return sorted(names, key=_stamp)


def _reference(scenes: list[str]) -> list[str]:
    return [scene for scene in scenes if _stamp(scene)[:8] == _stamp(scenes[0])[:8]]


def _stamp(granule: str) -> str:
    """Time or day of acquisition as in the name: ``20200604T022312`` or ``20210107``."""
    found = re.search(r"\d{8}(T\d{6})?", granule)
    return found[0] if found else "20200101"


def _time(granule: str) -> datetime:
    return datetime.fromisoformat(_stamp(granule))


def _days(scenes: list[str]) -> int:
    return round((_time(scenes[-1]) - _time(scenes[0])).total_seconds() / 86400)


def _relative_orbit(burst: str) -> int:
    return int((int(burst.split("_")[1]) - 1) * BURST_SECONDS // ORBIT_SECONDS) + 1


def _orbit(granule: str) -> int:
    """Absolute orbit: from a scene's name, or from a burst's relative orbit and date as if Sentinel-1A's."""
    if scene := re.search(r"_(\d{6})_[0-9A-F]{6}_", granule):
        return int(scene[1])
    track = _relative_orbit(granule) - 1 if granule.startswith("S1_") else 0
    cycle = (_time(granule) - datetime(2014, 4, 8, 19)).days // CYCLE_DAYS
    return 73 + track + ORBITS * cycle


def _burst_extent(bursts: list[str]) -> str:
    """Lowest number and count of bursts of each sub-swath, as in `000000s1n00-056069s2n04-000000s3n00`."""
    numbers = {swath: [b.split("_")[1] for b in bursts if b.split("_")[2][2] == swath] for swath in "123"}
    return "-".join(f"{min(n, default='000000')}s{swath}n{len(n):02d}" for swath, n in numbers.items())


def _valid_percent(job: dict) -> int:
    return 70 + _hash(job["job_id"]) % 30


# --- what the jobs make ---


def hyp3_products(job: dict) -> list[Product]:
    """What a succeeded job leaves in its S3 prefix: package, browse images, thumbnails, loose GeoTIFFs.

    Rasters are windows of up to 160 000 pixels with data from the middle of the granules, at the spacing (m)
    that the name tells, in UTM; an AUTORIFT grid at high latitudes is polar stereographic. Units are HyP3's:
    rad, m, m/year, power. A job takes at most 3 MB. Job types without a model of their own (ARIA_S1_GUNW,
    OPERA_DISP_TMS) get the package of an interferogram.

    Raises
    ------
    KeyError
        The job lacks ``job_id``, ``job_type`` or ``job_parameters``, or these have an unknown spacing.
    ValueError
        A granule's name does not have its type's parts, or its date is none.
    """
    if job["job_type"] == "WATER_MAP":
        return water_map_products(job)
    make = {"RTC_GAMMA": _rtc, "AUTORIFT": _autorift}.get(job["job_type"], _insar)
    return make(job, product_name(job))


def water_map_products(job: dict, pixels: int = MAX_PIXELS) -> list[Product]:
    """What a WATER_MAP job leaves in its prefix, in rasters of up to ``pixels`` pixels with data.

    Each of its steps (RTC, water map, flood map if an estimator is given) packs a ZIP of its own, and puts every
    file of it beside it too: so `files` lists two or three packages, and `_VV.tif.xml` is an object.
    Source: `__main__.py` of hyp3-gamma, `hydrosar/water_map.py` and `flood_map.py` of asf_tools.

    Raises
    ------
    KeyError, ValueError
        As :func:`hyp3_products`.
    """
    stem = product_name(job)
    everything, *others = _rtc(job, stem, pixels)
    packages: dict[str, dict[str, bytes]] = {stem: {}, f"{stem}_WM": {}, f"{stem}_FM": {}}
    with zipfile.ZipFile(io.BytesIO(everything.body)) as package:
        for member in package.namelist():
            name = member.rpartition("/")[2]
            step = next((step for step in (f"{stem}_WM", f"{stem}_FM") if name.startswith(step)), stem)
            if step == stem or name.endswith(".tif"):  # only the first step describes its files
                packages[step][name] = package.read(member)
    loose = {name: body for files in packages.values() for name, body in files.items()}
    return [
        *(_product(f"{step}.zip", _zip(step, files)) for step, files in packages.items() if files),
        *(_product(name, body) for name, body in loose.items()),
        *(product for product in others if product.file_type.endswith("-thumbnail")),
    ]


def _request(job: dict) -> str:
    """What a job's rasters follow from, whoever ordered it and when: only their names have the job's digits."""
    return json.dumps({name: job[name] for name in ("job_type", "job_parameters")})


def _without_arrays(grid: _Grid) -> _Grid:
    """What the texts need of a grid, small enough to be kept."""
    nothing = np.empty(0)
    return replace(grid, mask=nothing, col=nothing, row=nothing, incidence=nothing)


def _insar(job: dict, stem: str) -> list[Product]:
    scenes, gamma = _scenes(job), job["job_type"] == "INSAR_GAMMA"
    layers, images, grid = _insar_files(_request(job), tuple(scenes))
    tifs = {f"{stem}_{name}.tif": body for name, body in layers.items()}
    pictures = {f"{stem}_{name}.png": body for name, body in images.items()}
    readme = f"{stem}{'.' if gamma else '_'}README.md.txt"
    texts = {f"{stem}.txt": _parameter_file(job, grid), readme: _readme(stem, scenes, tifs)}
    return _publish(stem, tifs, pictures, texts, ["unw_phase", "corr"] if gamma else ["unw_phase"])


@lru_cache(maxsize=32)  # a class orders the same
def _insar_files(request: str, scenes: tuple[str, ...]) -> tuple[dict[str, bytes], dict[str, bytes], _Grid]:
    """GeoTIFFs and pictures by layer, and where they lie."""
    job, scenes = json.loads(request), list(scenes)
    options, gamma = job["job_parameters"], job["job_type"] == "INSAR_GAMMA"
    grid = _grid(_reference(scenes), SPACING[options.get("looks", "20x4")])
    land = _landscape(grid, _reference(scenes))
    rng = _rng("pair", scenes[0], scenes[-1])
    coherence = _coherence(grid, land, _days(scenes), rng)
    phase = _phase(grid, land, coherence, _days(scenes), rng)
    rasters = _insar_rasters(grid, land, coherence, phase) | {
        "amp": np.sqrt(_backscatter(land, rng, 40, land.water)[0])
    }
    measured = grid.mask & ~land.water if options.get("apply_water_mask") else grid.mask
    tifs = {}
    for name in _insar_layers(job):
        valid = measured if name in WATER_MASKED else grid.mask
        tifs[name] = _geotiff(grid, rasters[name], valid, SMOOTH.get(name, 7))
    light = (0.45 + 0.55 * _smoothstep((coherence - 0.1) / 0.5)) * (0.92 + 0.08 * np.tanh(land.facing))
    # A fringe of the browse image is 6 pi, as in HyP3's, one of the wrapped phase 2 pi.
    pictures = {"unw_phase": _png(_colour(phase / (6 * np.pi) % 1, CYCLIC, light), measured)}
    if gamma:
        pictures["color_phase"] = _png(_colour(phase / (2 * np.pi) % 1, CYCLIC, light), measured)
    return tifs, pictures, _without_arrays(grid)


def _insar_rasters(grid: _Grid, land: _Land, coherence: np.ndarray, phase: np.ndarray) -> dict[str, np.ndarray]:
    displacement = -phase * WAVELENGTH / (4 * np.pi)  # positive phase: away from the sensor
    return {
        "unw_phase": phase,
        "wrapped_phase": np.angle(np.exp(1j * phase)),
        "conncomp": (coherence > 0.3).astype("u1"),
        "los_disp": displacement,
        "vert_disp": displacement / np.cos(grid.incidence),
        "corr": coherence,
        "dem": land.dem.round().astype("i2"),
        "lv_theta": np.pi / 2 - grid.incidence,
        "lv_phi": np.full_like(phase, np.arctan2(grid.look[1], -grid.look[0])),
        "inc_map": grid.incidence - 0.1 * land.facing,
        "inc_map_ell": grid.incidence,
        "water_mask": (~land.water).astype("u1"),
    }


def _insar_layers(job: dict) -> list[str]:
    options = job["job_parameters"]
    if job["job_type"] == "INSAR_GAMMA":
        optional = [name for key, names in GAMMA_OPTIONS.items() if options.get(key) for name in names]
        return list(dict.fromkeys(["unw_phase", "corr", "amp", "water_mask", *optional]))
    names = ["unw_phase", "corr", "wrapped_phase", "conncomp", "dem", "lv_theta", "lv_phi"]
    return [*names, "water_mask"] if options.get("apply_water_mask") else names


def _coherence(grid: _Grid, land: _Land, days: int, rng: np.random.Generator) -> np.ndarray:
    """Lost with time, under vegetation and on steep slopes; water never has any."""
    patches = _noise(rng, grid.mask.shape, 1.2)
    kept = 0.35 + 0.55 * np.exp(-days / 90)
    land_value = kept - 0.11 * land.cover + 0.07 * patches - 0.05 * abs(land.facing)
    return np.clip(np.where(land.water, 0.12 + 0.04 * patches, land_value), 0.05, 0.98).astype("f4")


def _phase(grid: _Grid, land: _Land, coherence: np.ndarray, days: int, rng: np.random.Generator) -> np.ndarray:
    """Unwrapped phase (rad): deformation, turbulent and stratified delay, an orbit error, and noise."""
    turbulent = 1.3 * _noise(rng, grid.mask.shape, 2.0)
    stratified = 0.8 * (land.dem - land.dem.mean()) / land.dem.std()
    orbit = 3 * rng.uniform(-1, 1) * grid.col / grid.col.size
    deviation = np.sqrt((1 - coherence**2) / 24) / coherence  # for 12 independent looks
    noise = rng.standard_normal(coherence.shape, dtype="f4") * deviation
    return (_deformation(grid, days, rng) + turbulent + stratified + orbit + noise).astype("f4")


def _deformation(grid: _Grid, days: int, rng: np.random.Generator) -> np.ndarray:
    """Phase (rad) along the line of sight: a source of pressure (Mogi's) or an earthquake's two lobes."""
    rows, cols = np.nonzero(grid.mask)
    size = min(np.ptp(rows), np.ptp(cols))
    x = grid.col - cols.mean() - rng.uniform(-0.2, 0.2) * size
    y = grid.row - rows.mean() - rng.uniform(-0.15, 0.15) * size
    peak = rng.choice([-1, 1]) * (40 + 25 * np.tanh(days / 60))
    if rng.random() < 0.5:
        depth = size * rng.uniform(0.16, 0.22)
        towards = x * grid.look[0] + y * grid.look[1]
        sight = 0.78 * depth - 0.62 * towards
        return (peak * sight * depth**2 / (x**2 + y**2 + depth**2) ** 1.5).astype("f4")
    strike = rng.uniform(0, np.pi)
    along = (x * np.cos(strike) + y * np.sin(strike)) / (0.28 * size)
    across = (y * np.cos(strike) - x * np.sin(strike)) / (0.17 * size)
    return (peak * np.exp(-(along**2) - across**2) * (across + 0.45) * 1.2).astype("f4")


def _rtc(job: dict, stem: str, pixels: int = MAX_PIXELS) -> list[Product]:
    scene = _scenes(job)[0]
    layers, images, loose, grid = _rtc_files(_request(job), scene, pixels)
    tifs = {f"{stem}_{name}.tif": body for name, body in layers.items()}
    pictures = {f"{stem}{name}.png": body for name, body in images.items()}
    texts = {f"{name}.xml": _metadata_xml(name, scene, grid) for name in (*tifs, *pictures)}
    texts[f"{stem}.README.md.txt"] = _readme(stem, [scene], tifs)
    texts[f"{stem}.log"] = _log(job, scene)
    return _publish(stem, tifs, pictures, texts, loose)


@lru_cache(maxsize=32)  # a class orders the same
def _rtc_files(request: str, scene: str, pixels: int) -> tuple[dict[str, bytes], dict[str, bytes], list[str], _Grid]:
    """GeoTIFFs by layer, pictures by the end of their names, the layers beside the package, and where they lie."""
    job = json.loads(request)
    options, water_map = job["job_parameters"], job["job_type"] == "WATER_MAP"
    if water_map:  # its first step is an RTC job with these options
        options = options | {"include_dem": True, "include_rgb": True}
    spacing = int(options.get("resolution", 30))
    grid = _grid([scene], spacing, pixels, max_lines=pixels**0.5)
    land = _landscape(grid, [scene])
    rng = _rng("scene", scene)
    stage = _stage(scene, rng)
    looks = 60 if options.get("speckle_filter") else {30: 20, 20: 12, 10: 6}[spacing]
    powers = _backscatter(land, rng, looks, land.hand < stage)
    if options.get("radiometry") == "sigma0":
        powers = [power * np.cos(grid.incidence) for power in powers]
    rasters = _rtc_rasters(options, scene, grid, land, powers)
    rgb = _false_colour(*powers)
    dual = scene[14] == "D"
    if dual and options.get("include_rgb"):
        rasters["rgb"] = np.moveaxis(rgb, 2, 0)
    grey = np.repeat(_stretch(np.sqrt(powers[0]), grid.mask)[..., None], 3, axis=2)
    if water_map:
        rasters |= _water_rasters(land, stage, options)
        grey[land.hand < stage] = (70, 200, 255)
        grey[land.water] = (25, 80, 200)
    loose = list(rasters)
    rasters["ls_map"] = 1 + (abs(land.facing) > 3).astype("u1")
    tifs = {}
    for name, raster in rasters.items():
        empty = np.nan if name.startswith(("WM", "FM")) else 0  # there, 0 is a height or a depth
        tifs[name] = _geotiff(grid, raster, grid.mask, empty=empty)
    pictures = {"": _png(grey, grid.mask)}
    if dual:
        pictures["_rgb"] = _png(rgb, grid.mask)
    return tifs, pictures, loose, _without_arrays(grid)


def _stage(scene: str, rng: np.random.Generator) -> float:
    """The rivers' height above normal (m) on that day: rains swell them for three months after midsummer."""
    north = np.mean(_locate(scene)[1], axis=0)[1] >= 0
    season = 2 * np.pi * (_time(scene).timetuple().tm_yday - (220 if north else 37)) / 365
    return rng.uniform(0.6, 1.6) + 3 * _smoothstep(1.5 * np.cos(season))


def _rtc_rasters(
    options: dict, scene: str, grid: _Grid, land: _Land, powers: list[np.ndarray]
) -> dict[str, np.ndarray]:
    channels = ("VV", "VH") if scene[15] == "V" else ("HH", "HV")
    scales = {"power": np.asarray, "amplitude": np.sqrt, "decibel": lambda power: 10 * np.log10(power)}
    scale = scales[options.get("scale", "power")]
    count = 2 if scene[14] == "D" else 1
    rasters = {name: scale(power) for name, power in zip(channels[:count], powers, strict=False)}
    optional = {
        "dem": ("include_dem", land.dem.round().astype("i2")),
        "inc_map": ("include_inc_map", grid.incidence - 0.15 * land.facing),
        "area": ("include_scattering_area", (grid.spacing**2 * (1 + 0.25 * np.tanh(land.facing))).round()),
    }
    return rasters | {name: raster for name, (option, raster) in optional.items() if options.get(option)}


def _backscatter(land: _Land, rng: np.random.Generator, looks: float, wet: np.ndarray) -> list[np.ndarray]:
    """Gamma-nought power of the co- and the cross-polarized channel, with speckle of ``looks`` looks."""
    shape = wet.shape
    fields = _fields(shape, rng) * land.plain
    relief = 3.5 * np.tanh(land.facing * 0.8) * (1 - 0.8 * land.plain)
    copol = np.where(wet, -21.0, -10.5 + relief + 1.2 * land.cover + 1.6 * fields)
    cross = np.where(wet, -28.5, -17.6 + relief + 2.0 * land.cover - 1.8 * fields)
    speckle = (_blur(rng.standard_gamma(looks / 4, shape, dtype="f4") * 4 / looks) for _ in range(2))
    powers = (np.exp(np.log(10) / 10 * decibel, dtype="f4") for decibel in (copol, cross))
    return [power * factor for power, factor in zip(powers, speckle, strict=True)]


def _blur(field: np.ndarray) -> np.ndarray:
    """Mean of four neighbours, a quarter of the variance: a resolution cell is larger than a pixel."""
    field = field + np.roll(field, 1, axis=0)
    return (field + np.roll(field, 1, axis=1)) / 4


def _fields(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Farmland: tilted rectangles of one random value each, between -1 and 1."""
    row, col = np.indices(shape, dtype="f4", sparse=True)
    a, b = ((0.95 * col + 0.31 * row) / 19).astype(int), ((0.95 * row - 0.31 * col) / 11).astype(int)
    return rng.uniform(-1, 1, (64, 64)).astype("f4")[a % 64, (b + a // 3) % 64]


def _false_colour(copol: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """Red for surface and green for volume scattering, blue for smooth water; five bits a channel."""
    red, green = np.sqrt(copol) / 0.45, np.sqrt(cross) / 0.22
    blue = 0.55 * np.exp(-copol / 0.012) + 0.45 * np.sqrt(copol) / 0.45
    # The last bits are noise, which costs bytes; 4 keeps measured pixels apart from nodata, 0.
    return (np.clip(np.stack([red, green, blue], axis=2), 0, 1) ** 0.9 * 255).astype("u1") & 0xF8 | 4


def _water_rasters(land: _Land, stage: float, options: dict) -> dict[str, np.ndarray]:
    """Water extent (1: water), height above drainage (m) and, if asked for, the depth (m) of water and of flood.

    The flood mask has permanent water in it, the flood's depth has not (asf_tools' `flood_map.py`).
    """
    hand = np.maximum(land.hand, 0)
    extent = (land.hand < stage) & (hand <= options.get("hand_threshold", 15))
    rasters = {"WM": extent.astype("u1"), "WM_HAND": hand}
    estimator = options.get("flood_depth_estimator")
    if estimator and estimator != "None":
        depth = np.where(extent, stage - land.hand, 0).astype("f4")
        rasters |= {
            f"FM_{estimator}_WaterDepth": depth,
            f"FM_{estimator}_FloodMask": extent.astype("u1"),
            f"FM_{estimator}_FloodDepth": np.where(land.water, 0, depth),
            f"FM_{estimator}_PW": land.water.astype("u1"),
        }
    return rasters


def _autorift(job: dict, stem: str) -> list[Product]:
    scenes = _scenes(job)
    grid = _grid(_reference(scenes), 120, polar=True)
    land = _landscape(grid, _reference(scenes))
    rng = _rng("ice", _locate(scenes[0])[0])
    vx, vy, texture = _glacier(grid, rng)
    noise = rng.standard_normal((2, *grid.mask.shape), dtype="f4") * 4
    vx, vy = vx + noise[0], vy + noise[1]
    speed = np.hypot(vx, vy)
    gaps = _noise(rng, grid.mask.shape, 1.6) - 0.6 * np.log(speed + 5)
    valid = grid.mask & (gaps <= np.quantile(gaps[grid.mask], _valid_percent(job) / 100))
    layers = {"v": speed, "vx": vx, "vy": vy, "v_error": 6 + 0.02 * speed}
    rock = 0.42 + 0.28 * np.tanh(land.facing)[..., None]
    ice = _colour(np.log10(speed / 15 + 1) / 2.2, SPEED, texture) / 255
    share = _smoothstep((speed - 12) / 40)[..., None]
    picture = ((ice * share + rock * (1 - share)) * 255).astype("u1")
    return [
        _product(f"{stem}.nc", _netcdf(job, grid, layers, valid)),
        *_with_thumbnail(f"{stem}.png", _png(picture, valid)),
    ]


def _glacier(grid: _Grid, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """East and north speed (m/year) of ice that narrows into a tongue, and its flow lines as brightness."""
    height, width = grid.mask.shape
    size, heading = min(height, width) / 2, rng.uniform(0, 2 * np.pi)
    x, y = (grid.col - width / 2) / size, (grid.row - height / 2) / size
    s, n = x * np.cos(heading) + y * np.sin(heading), y * np.cos(heading) - x * np.sin(heading)
    swing, phase = rng.uniform(0.1, 0.2), rng.uniform(0, 6)
    centre, bend = swing * np.sin(2.2 * s + phase), 2.2 * swing * np.cos(2.2 * s + phase)
    spread = 0.75 / (1 + np.exp(4 * s + 1.2))
    breadth = 0.16 + spread + 0.03 * _noise(rng, grid.mask.shape, 2.4)
    q = (n - centre) / breadth  # constant along a flow line
    profile = np.clip(1 - q**4, 0, 1) ** 1.5 / (1 + np.exp(25 * (s - 1.15)))
    speed = profile * rng.uniform(1500, 2600) / (1 + np.exp(-3.2 * (s + 0.1)))
    slant = bend + q * -4 * spread * (1 - spread / 0.75)
    along, across = speed / np.hypot(1, slant), speed * slant / np.hypot(1, slant)
    lines = np.interp(q, np.linspace(-1.5, 1.5, 400), _noise(rng, (1, 400), 0.6)[0])
    texture = np.clip(0.88 + 0.07 * lines + 0.03 * _noise(rng, grid.mask.shape, 0.8), 0.4, 1)
    vx = along * np.cos(heading) - across * np.sin(heading)
    return vx, -(along * np.sin(heading) + across * np.cos(heading)), texture


# --- how it is written ---


def _publish(stem: str, tifs: dict, pictures: dict, texts: dict, loose: list[str]) -> list[Product]:
    """The package (a folder named like it), every picture with its thumbnail, and the loose GeoTIFFs."""
    package = _product(f"{stem}.zip", _zip(stem, tifs | pictures | texts))
    images = [product for name, body in pictures.items() for product in _with_thumbnail(name, body)]
    return [package, *images, *(_product(name, tifs[name]) for name in (f"{stem}_{n}.tif" for n in loose))]


def _with_thumbnail(name: str, body: bytes) -> list[Product]:
    from PIL import Image

    image = Image.open(io.BytesIO(body)).convert("RGBA")
    image.thumbnail((100, 100))
    return [_product(name, body), _product(name.removesuffix(".png") + "_thumb.png", _encode(image))]


def _product(name: str, body: bytes) -> Product:
    """Tagged by name, as hyp3lib does: any picture that is not the RGB one counts as the amplitude's."""
    if not name.endswith(".png"):
        kind = "product"
    else:
        base = name.removesuffix(".png").removesuffix("_thumb")
        channel = "rgb" if base.endswith("_rgb") else "amp"
        kind = f"{channel}-thumbnail" if "_thumb." in name else f"{channel}-browse"
    types = {"png": "image/png", "tif": "image/tiff", "zip": "application/zip", "nc": "application/x-netcdf"}
    types |= {"xml": "text/xml", "txt": "text/plain", "log": "text/plain"}
    return Product(name, body, kind, types[name.rpartition(".")[2]])


def _geotiff(grid: _Grid, raster: np.ndarray, valid: np.ndarray, bits: int = 7, empty: float = 0) -> bytes:
    """GeoTIFF, tiled and deflated; nodata is ``empty`` in float32 and colours, else 255 or -32768."""
    from rasterio import Affine
    from rasterio.io import MemoryFile

    bands = raster[None] if raster.ndim == 2 else raster
    real = bands.dtype.kind == "f"
    nodata = empty if real or len(bands) == 3 else {"u1": 255, "i2": -32768}[bands.dtype.str[1:]]
    bands = np.where(valid, _rounded(bands, bits) if real else bands, bands.dtype.type(nodata))
    count, height, width = bands.shape
    profile = {"dtype": bands.dtype, "count": count, "height": height, "width": width, "nodata": nodata}
    profile |= {"crs": grid.crs, "transform": Affine(*grid.transform)}
    profile |= {"tiled": True, "compress": "deflate", "predictor": 3 if real else 2}
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", **profile) as dataset:
            dataset.write(bands)
        return memory.read()


def _rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """float32 with so many bits of mantissa, and steps of 1/32 above 4: noise below that cannot be packed."""
    unused = 23 - bits
    raw = values.astype("f4").view("u4") + np.uint32(1 << (unused - 1))
    return np.where(abs(values) < 4, (raw >> unused << unused).view("f4"), np.round(values * 32) / 32)


def _colour(value: np.ndarray, ramp: list[tuple], light: np.ndarray) -> np.ndarray:
    """RGB bytes of values in 0..1 on a ramp of (position, r, g, b), darkened by ``light`` in 0..1."""
    position, *channels = np.transpose(ramp)
    table = np.stack([np.interp(np.linspace(0, 1, 256), position, c) for c in channels], axis=1).astype("f4")
    index = (np.clip(value, 0, 1) * 255).astype("u1")
    return (table[index] * light[..., None]).astype("u1")


def _stretch(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values[mask][::7], (1, 98.5))
    return (np.clip((values - low) / (high - low), 0, 1) * 255).astype("u1")


def _png(rgb: np.ndarray, valid: np.ndarray) -> bytes:
    """Picture of at least 640 pixels, transparent where nothing was measured."""
    from PIL import Image

    image = Image.fromarray(np.dstack([rgb, np.where(valid, 255, 0).astype("u1")]))
    factor = 640 / max(image.size)
    if factor > 1:
        image = image.resize([round(side * factor) for side in image.size], Image.Resampling.BILINEAR)
    return _encode(image)


def _encode(image: Any) -> bytes:
    """PNG with a palette: a quarter of the bytes of one in true colour."""
    from PIL import Image

    out = io.BytesIO()
    image.quantize(255, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(out, "PNG")
    return out.getvalue()


def _zip(folder: str, files: dict[str, bytes]) -> bytes:
    """ZIP without times of its own; only texts gain from being deflated again."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, body in files.items():
            info = zipfile.ZipInfo(f"{folder}/{name}")
            info.external_attr = 0o644 << 16
            stored = name.endswith((".tif", ".png", ".jp2", ".jpg"))
            archive.writestr(info, body, zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _netcdf(job: dict, grid: _Grid, layers: dict[str, np.ndarray], valid: np.ndarray) -> bytes:
    """Velocities (m/year, int16, -32767 where unknown) with the variables of an ITS_LIVE image pair."""
    from rasterio.crs import CRS

    scenes, step, left, top = _scenes(job), grid.spacing, grid.transform[2], grid.transform[5]
    lon, lat = np.mean(_locate(scenes[0])[1], axis=0)
    wkt = CRS.from_string(grid.crs).to_wkt()
    projection = "transverse_mercator" if "Transverse" in wkt else "polar_stereographic"
    mapping = {"grid_mapping_name": projection, "spatial_ref": wkt, "crs_wkt": wkt}
    mapping["GeoTransform"] = f"{left} {step} 0 {top} 0 {-step}"
    pair: dict[str, object] = {"latitude": lat, "longitude": lon, "roi_valid_percentage": _valid_percent(job)}
    pair |= {"date_dt": _days(scenes), "id_img1": scenes[0], "id_img2": scenes[-1]}
    pair |= {"acquisition_date_img1": _stamp(scenes[0]), "acquisition_date_img2": _stamp(scenes[-1])}
    x = {"units": "m", "standard_name": "projection_x_coordinate"}
    y = {"units": "m", "standard_name": "projection_y_coordinate"}
    about = {"units": "meter/year", "grid_mapping": "mapping", "_FillValue": np.int16(-32767)}
    variables = [
        ("x", "x", x, left + (grid.col.ravel().astype("f8") + 0.5) * step),
        ("y", "y", y, top - (grid.row.ravel().astype("f8") + 0.5) * step),
        ("mapping", "", mapping, np.zeros((), "S1")),
        ("img_pair_info", "", pair, np.zeros((), "S1")),
        *((n, "yx", about, np.where(valid, v.round(), -32767).astype("i2")) for n, v in layers.items()),
    ]
    title = {"Conventions": "CF-1.8", "title": "autoRIFT surface velocities, simulated"}
    return _netcdf_classic({"y": valid.shape[0], "x": valid.shape[1]}, title, variables)


def _netcdf_classic(sizes: dict[str, int], attributes: dict, variables: list[tuple]) -> bytes:
    """NetCDF in the classic format "CDF-1" (NetCDF user's guide, appendix on file formats).

    Variables are (name, a letter for each dimension, attributes, array). GDAL, the one library at hand that
    writes NetCDF, cannot name the variables and stores the time of writing.
    """
    codes = {"S1": 2, "i2": 3, "i8": 6, "f8": 6}

    def padded(raw: bytes) -> bytes:
        return raw + bytes(-len(raw) % 4)

    def named(name: str) -> bytes:
        return struct.pack(">i", len(name)) + padded(name.encode())

    def listed(tag: int, entries: list[bytes]) -> bytes:
        return struct.pack(">2i", tag if entries else 0, len(entries)) + b"".join(entries)

    def data(array: np.ndarray) -> tuple[int, bytes]:
        code = codes[array.dtype.str[1:]]
        return code, padded(array.astype({2: "S1", 3: ">i2", 6: ">f8"}[code]).tobytes())

    def attribute(name: str, value: object) -> bytes:
        if isinstance(value, str):
            return named(name) + struct.pack(">2i", 2, len(value.encode())) + padded(value.encode())
        code, raw = data(np.asarray(value))
        return named(name) + struct.pack(">2i", code, 1) + raw

    def attached(values: dict) -> bytes:
        return listed(12, [attribute(*item) for item in values.items()])

    def variable(name: str, letters: str, values: dict, array: np.ndarray, begin: int) -> bytes:
        dimensions = struct.pack(f">{len(letters) + 1}i", len(letters), *map(list(sizes).index, letters))
        code, raw = data(array)
        return named(name) + dimensions + attached(values) + struct.pack(">3i", code, len(raw), begin)

    def header(begins: list[int]) -> bytes:
        dimensions = listed(10, [named(name) + struct.pack(">i", size) for name, size in sizes.items()])
        entries = [variable(*each, begin) for each, begin in zip(variables, begins, strict=True)]
        return b"CDF\x01" + bytes(4) + dimensions + attached(attributes) + listed(11, entries)

    bodies = [data(array)[1] for *_, array in variables]
    begins = np.cumsum([0, *map(len, bodies)])[:-1] + len(header([0] * len(bodies)))
    return header(begins.tolist()) + b"".join(bodies)


def _parameter_file(job: dict, grid: _Grid) -> bytes:
    options, scenes, gamma = job["job_parameters"], _scenes(job), job["job_type"] == "INSAR_GAMMA"
    first, references = _time(scenes[0]), _reference(scenes)
    heading = np.degrees(np.arctan2(grid.look[0], -grid.look[1])) - 90
    return PARAMETERS.format(
        reference=", ".join(references),
        secondary=", ".join(scenes[len(references) :]),
        direction="ASCENDING" if np.cos(np.radians(heading)) > 0 else "DESCENDING",
        reference_orbit=_orbit(scenes[0]),
        secondary_orbit=_orbit(scenes[-1]),
        baseline=_hash("baseline", scenes[0], scenes[-1]) % 24000 / 100 - 120,
        seconds=float(first.hour * 3600 + first.minute * 60 + first.second),
        heading=heading % 360,
        looks=options.get("looks", "20x4").split("x"),
        filter=options.get("phase_filter_parameter", 0.6) if gamma else 0.5,
        dem=2 * grid.spacing if gamma else 30,
        unwrapper="mcf" if gamma else "snaphu_mcf",
        speckle="no" if gamma else "yes",
        mask="yes" if options.get("apply_water_mask") else "no",
    ).encode()


def _readme(stem: str, scenes: list[str], files: dict) -> bytes:
    lists = "\n\nRasters\n- ".join("\n- ".join(names) for names in (scenes, files))
    return (
        f"{stem}\n\n"
        "Made offline by the sandbox of EO Cloud Recipes in place of ASF HyP3. Every value is simulated:\n"
        "names, formats and places are like those of a real product, but nothing here was measured.\n\n"
        f"Granules\n- {lists}\n\n"
        "The guides to the real products are at https://hyp3-docs.asf.alaska.edu.\n"
    ).encode()


def _log(job: dict, scene: str) -> bytes:
    start = job["request_time"]
    steps = "Downloading granule", "Preparing DEM", "Terrain correction", "Geocoding", "Packaging"
    return "".join(f"{start} - INFO - {step}: {scene} (simulated)\n" for step in steps).encode()


def _metadata_xml(name: str, scene: str, grid: _Grid) -> bytes:
    """The title, origin and reference system of one raster in the element names of ArcGIS metadata."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<metadata xml:lang="en">\n  <dataIdInfo>\n'
        f"    <idCitation><resTitle>{name}</resTitle></idCitation>\n"
        f"    <idAbs>Simulated from Sentinel-1 granule {scene}</idAbs>\n  </dataIdInfo>\n"
        f'  <refSysInfo><RefSystem><refSysID><identCode code="{grid.crs.removeprefix("EPSG:")}"/></refSysID>'
        f"</RefSystem></refSysInfo>\n</metadata>\n"
    ).encode()
