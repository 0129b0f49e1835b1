"""What there is to catalogue: the products below an address, and those that the other notebooks left behind."""

import json
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pystac

from .. import objectstore, safe
from ..errors import RecipeError, Rejected
from ..settings import PROJECT, Settings
from ..state import of_all_runs
from .places import Missing, find

#: How folders end that are a product as a whole.
WHOLE = (".SAFE", ".SEN3", ".zarr")
RASTERS = (".tif", ".tiff")


@dataclass(frozen=True)
class Product:
    """Something to make an item of."""

    address: str  #: for ``create_item``
    settings: Settings = field(repr=False, compare=False)  #: with the credentials for where it is
    origin: str = "sources"  #: which notebook left it, or "sources"

    @property
    def name(self) -> str:
        return self.address.rpartition("/")[2]


def products(address: str, settings: Settings) -> list[str]:
    """The addresses of all products at or below an address, sorted.

    A product is a SAFE or Zarr folder, an archive, the files of one HyP3 product wherever they lie together (its
    address ends in its name, whether or not there is a folder of that name), and each other GeoTIFF.

    Raises
    ------
    Rejected
        There is nothing at ``address``, or it cannot be read.
    """
    from .of_hyp3 import ANY

    address = address.rstrip("/")
    with find(address, settings) as place:
        root, name, files = place.url, place.name, list(place.files)
    if _is_product(name) or _is_product(address) or files == [name] or ANY.fullmatch(name):
        return [address] if _product_of(address.rpartition("/")[2]) else []
    return sorted(f"{root}/{path}" for path in {_product_of(file) for file in files} if path)


def _is_product(name: str) -> bool:
    return name.endswith(WHOLE) or safe.is_archive(name)


def _product_of(file: str) -> str:
    """The product that a file belongs to, as the path below the address; "" for none."""
    from .of_hyp3 import ANY

    path = PurePosixPath(file)
    for folder in reversed([path, *path.parents]):
        if folder.name.endswith(WHOLE):
            return str(folder)
    if hyp3 := ANY.match(path.name):
        folder = path.parent
        return str(folder if folder.name == hyp3[0] else folder / hyp3[0])
    return str(path) if _is_product(path.name) or path.suffix.lower() in RASTERS else ""


def wanted(sources: list[str], settings: Settings, origin: str = "sources") -> list[Product]:
    """The products at or below ``sources``, each once. Relative paths start at the project, wherever this runs.

    ``origin``: what is said of where they come from.

    Raises
    ------
    Rejected
        With every address that has nothing, or cannot be read.
    """
    found, problems = dict[str, Product](), []
    for source in sources:
        if "://" not in source:
            source = str(PROJECT / Path(source).expanduser())
        try:
            below = products(source, settings)
        except RecipeError as error:
            problems.append(str(error))
            continue
        if not below:
            problems.append(f"{source}: no product is there (.SAFE, .SEN3, .zarr, archives of these, HyP3's, GeoTIFF)")
        found |= {address: Product(address, settings, origin) for address in below}
    if problems:
        raise Rejected.because("These sources cannot be catalogued", problems)
    return list(found.values())


def distinct(made: dict[Product, pystac.Item]) -> tuple[list[pystac.Item], list[str], dict[str, str]]:
    """The items, each once: a product that lies in two places is one, two products with the same id are not.

    Returns
    -------
    The items, in the given order, of each the first; addresses of products that are the same as one before; and why
    others have no item: they have the id of another product (seen by place or time).
    """
    items, twice, clashing = dict[str, tuple[Product, pystac.Item]](), list[str](), dict[str, str]()
    for product, item in made.items():
        first, known = items.setdefault(item.id, (product, item))
        if first is product:
            continue
        if (known.geometry, _when(known)) == (item.geometry, _when(item)):
            twice.append(product.address)
        else:
            clashing[product.address] = f"its id {item.id} is that of another product, {first.address}: rename one"
    return [item for _, item in items.values()], twice, clashing


def _when(item: pystac.Item) -> tuple:
    return item.datetime, item.properties.get("start_datetime"), item.properties.get("end_datetime")


def extent(items: list[pystac.Item], known: dict | None = None) -> pystac.Extent:
    """Where and when ``items`` were observed; together with the extent of the collection ``known``, if it is given."""
    found = pystac.Extent.from_items(items)
    if known is None:
        return found
    before = pystac.Extent.from_dict(known["extent"])
    boxes = [box for box in (before.spatial.bboxes[0], found.spatial.bboxes[0]) if None not in box]
    west, south, east, north = zip(*boxes, strict=True)
    spatial = pystac.SpatialExtent([[min(west), min(south), max(east), max(north)]])
    (begin, end), (first, last) = before.temporal.intervals[0], found.temporal.intervals[0]
    times = [None if None in (begin, first) else min(begin, first), None if None in (end, last) else max(end, last)]
    return pystac.Extent(spatial, pystac.TemporalExtent([times]))


def left_here(settings: Settings) -> list[Product]:
    """What notebooks 1 to 5 made at this service and left: in buckets, on this disk, in RS-PYTHON's storage.

    Known from what their runs noted (:class:`helpers.state.RunState`, the records of archives); what is gone since is
    left out.
    """
    found: dict[str, Product] = {}
    for origin, address, where in noted(settings):
        try:
            below = products(address, where)
        except (Missing, Rejected):
            continue  # cleaned up meanwhile, or of an earlier sandbox
        found |= {one: Product(one, where, origin) for one in below if one not in found}
    return list(found.values())


def noted(settings: Settings) -> list[tuple[str, str, Settings]]:
    """Where the runs of notebooks 1 to 5 put something: notebook, address, and the settings to read it with.

    What is there now is not looked at.
    """
    noted: dict[tuple[str, str], Settings] = {}
    for written in of_all_runs(settings, "hyp3", "written"):
        for bucket, keys in written.items():
            folders = {key.rpartition("/")[0] for key in keys}
            noted |= {("notebook 1", f"s3://{bucket}/{folder}".rstrip("/")): settings for folder in folders}
    for written in of_all_runs(settings, "hook", "written"):
        noted |= {("notebook 2", path): settings for path in written.get("paths", [])}
    here = settings.service_name("hyp3")
    for summary in sorted((settings.output_dir / "archive").glob("*/*/summary.json")):
        record = json.loads(summary.read_text())
        if record.get("service", here) != here:
            continue  # of a live service, or of a sandbox that is gone
        target = record.get("target", "")
        number = 3 if target.startswith("s3://") else 4
        if target:
            noted[f"notebook {number}", target] = settings
    for items in of_all_runs(settings, "conversion", "items"):
        published = [item["published"]["zarr"] for item in items.values() if item.get("published")]
        noted |= {("notebook 5", zarr): of_rspy(settings) for zarr in published}
    for folder in of_all_runs(settings, "conversion", "folder"):
        zarrs = [zarr for zarr in sorted(Path(folder).glob("*.zarr")) if not zarr.stem.endswith("-overviews")]
        noted |= {("notebook 5", str(zarr)): settings for zarr in zarrs}
    return [(origin, address, where) for (origin, address), where in noted.items()]


def of_rspy(settings: Settings) -> Settings:
    """To read what is in the object storage of RS-PYTHON as if it were Amazon's."""
    keys = settings.rspy_s3_access_key, settings.rspy_s3_secret_key
    return objectstore.at(settings.rspy_s3_endpoint, *keys, settings, settings.rspy_s3_region)
