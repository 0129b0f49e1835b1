"""What EOPF 3.0.0 gets wrong in the Zarr that it writes, put right there: metadata and small arrays, never the pixels.

Works on a Zarr of version 3 or 2, on a disk or in S3, whoever had it written; again and again, with the same result.

What is put right, and why (each seen with EOPF 3.0.0, whose sources are named):

- *Polarisations.* Sentinel-1's pictures are put together in the alphabetical order of their names, and labelled in that
  of the manifest (``store/product_specific/S01.py``, ``group_products_for_swath``): pixels of VH come out as VV, and so
  do noise, calibration and all the rest. The labels follow from the values: those of the measurement TIFFs.
- *Bounding boxes* in ``stac_discovery``: [east, south, west, north] instead of west first (RFC 7946, section 5).
- *Ids* in ``stac_discovery``: a title ("SAR Standard L1 Product"), or a name that is not the Zarr's.
- *Grid mapping.* Sentinel-2's grids have coordinates and no CRS; each gets the variable that the CF conventions ask
  for, ``spatial_ref`` (https://cfconventions.org, section 5.6): GDAL and rioxarray find it. Sentinel-1 GRD lies in no
  map projection: it has ground control points (``conditions/gcp``), and gets none. Sentinel-3 has a latitude and a
  longitude for each pixel.
"""

import json
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype

from ..errors import Rejected
from ..stac import bounds, name_of

GRID_MAPPING = "spatial_ref"
#: Groups that are written at a time: in S3, each of their arrays costs a request.
WRITERS = 8
#: Where in a picture (as parts of its height and width) it is compared with the files: the border may be empty.
PLACES = ((0.5, 0.5), (0.25, 0.25), (0.75, 0.75), (0.25, 0.75), (0.75, 0.25), (0.4, 0.6))
#: Lines and samples that are compared at each place.
WINDOW = (16, 512)


def mend(zarr_uri: str, safe_uri: str, storage_options: dict | None = None) -> list[str]:
    """Put right what is wrong in the Zarr at ``zarr_uri``; say in words what was, nothing if all was right.

    Parameters
    ----------
    zarr_uri, safe_uri:
        The Zarr and the folder of the product that it was made of: local paths or s3:// URLs.
    storage_options:
        Of s3fs, for those that are in S3.

    Raises
    ------
    Rejected
        There is no Zarr, or its values are not those of the product.
    """
    with _quiet():
        # The metadata of all nodes is in the root's, if that is consolidated: one request instead of hundreds. It is
        # also what is written last, so that an interrupted mending is seen there, and done again.
        root = _open(zarr_uri, storage_options)
        name = name_of(zarr_uri)
        nodes = dict(sorted(root.members(max_depth=None)))
        groups = {"": root} | {path: node for path, node in nodes.items() if isinstance(node, zarr.Group)}
        done = [
            *_polarizations(groups, nodes, safe_uri, storage_options),
            *_grid_mappings(root, groups, nodes),
            *_boxes_and_ids(groups, name),
        ]
        if root.metadata.consolidated_metadata is None or (done and root.metadata.zarr_format == 2):
            zarr.consolidate_metadata(root.store, zarr_format=root.metadata.zarr_format)
        elif done:
            _write_root(zarr_uri, storage_options, root, nodes)
        return done


@contextmanager
def _quiet() -> Iterator[None]:
    """Without zarr's warnings that consolidated metadata, and texts of a fixed length, are not in its specification."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(uri: str, storage_options: dict | None) -> zarr.Group:
    options = storage_options if "://" in str(uri) else None
    try:
        return zarr.open_group(str(uri), mode="r+", storage_options=options)
    except FileNotFoundError:
        raise Rejected(f"There is no Zarr at {uri}") from None


def _write_root(uri: str, storage_options: dict | None, root: zarr.Group, nodes: dict[str, Any]) -> None:
    """Bring the root's copy of all metadata (version 3) up to date, without reading each node again."""
    remote = "://" in str(uri)
    files, folder = fsspec.core.url_to_fs(str(uri), **((storage_options or {}) if remote else {}))
    content = json.loads(files.cat_file(f"{folder}/zarr.json"))
    copies = content["consolidated_metadata"]["metadata"]
    for path, node in nodes.items():
        if path not in copies:
            (body,) = node.metadata.to_buffer_dict(default_buffer_prototype()).values()
            copies[path] = json.loads(body.to_bytes())
        copies[path]["attributes"] = node.attrs.asdict()
    content["attributes"] = root.attrs.asdict()
    content["consolidated_metadata"]["metadata"] = dict(sorted(copies.items()))
    body = json.dumps(content, indent=2).encode()
    if remote:
        files.pipe_file(f"{folder}/zarr.json", body)
    else:
        part = Path(folder, ".zarr.json.part")
        part.write_bytes(body)
        part.replace(Path(folder, "zarr.json"))


# --- polarisations ---


def _polarizations(
    groups: dict[str, zarr.Group], nodes: dict[str, Any], safe_uri: str, storage_options: dict | None
) -> list[str]:
    done = []
    for path in groups:
        product, _, last = path.rpartition("/")
        picture = nodes.get(f"{path}/grd") or nodes.get(f"{path}/slc")
        labels = nodes.get(f"{path}/polarization")
        if last != "measurements" or picture is None or labels is None:
            continue
        if (order := _order(picture, safe_uri, storage_options)) is None:
            continue
        wrong = {
            of: array
            for of, array in nodes.items()
            if of.startswith(f"{product}/" if product else "")
            and of.endswith("/polarization")
            and list(map(str, array[:])) != order
        }
        # This group's at the end: as long as it is wrong, an interrupted mending is taken up again.
        for of in sorted(wrong, key=lambda of: of == f"{path}/polarization"):
            wrong[of][:] = np.array(order, dtype=labels.dtype)
        if wrong:
            done.append(f"{picture.path}: polarisations are {', '.join(order)}, as its values are in the TIFFs")
    return done


def _order(picture: zarr.Array, safe_uri: str, storage_options: dict | None) -> list[str] | None:
    """The polarisation of each part of the picture, from the values of the TIFFs; None if these do not differ.

    A burst of an SLC product is a part of the lines of one of its TIFFs.
    """
    files, root = fsspec.core.url_to_fs(str(safe_uri), **((storage_options or {}) if "://" in str(safe_uri) else {}))
    count, height, width = picture.shape
    with ExitStack() as opened:
        tiffs: dict[str, list[Any]] = {}
        for path in sorted(files.glob(f"{root}/measurement/*.tiff")):
            tiff = opened.enter_context(_opened(files, path))
            if tiff.width == width and tiff.height % height == 0:
                tiffs.setdefault(path.rpartition("/")[2].split("-")[3].upper(), []).append(tiff)
        for down, right in PLACES:
            rows = slice(int(down * height), min(int(down * height) + WINDOW[0], height))
            columns = slice(int(right * width), min(int(right * width) + WINDOW[1], width))
            fits = [_fitting(part, rows, columns, height, tiffs) for part in picture[:, rows, columns]]
            if not all(fits) or len(tiffs) < count:
                raise Rejected(f"{picture.path} has other values than the TIFFs of {safe_uri}: made of something else")
            if all(len(names) == 1 for names in fits):
                return [name for names in fits for name in names]
    return None


def _opened(files: Any, path: str) -> Any:
    """A TIFF on a disk or in S3, of which only what is needed is read (given an open file, rasterio reads it all)."""
    import rasterio

    return rasterio.open(path, opener=files.open)


def _fitting(part: np.ndarray, rows: slice, columns: slice, height: int, tiffs: dict[str, list[Any]]) -> set[str]:
    """The polarisations whose TIFFs have these numbers in these lines, or in those of another burst."""
    from rasterio.windows import Window

    across, down = columns.stop - columns.start, rows.stop - rows.start
    return {
        name
        for name, those in tiffs.items()
        for tiff in those
        for first in range(0, tiff.height, height)
        if np.array_equal(tiff.read(1, window=Window(columns.start, first + rows.start, across, down)), part)
    }


# --- the grid mapping ---


def _grid_mappings(root: zarr.Group, groups: dict[str, zarr.Group], nodes: dict[str, Any]) -> list[str]:
    code = _code(root.attrs.asdict())
    if code is None:
        return []
    wanted = _crs(code, root.metadata.zarr_format)
    inside: dict[str, dict[str, Any]] = {path: {} for path in groups}
    for path, node in nodes.items():
        folder, _, name = path.rpartition("/")
        inside[folder][name] = node
    grids = [path for path in groups if _is_grid(inside[path])]
    with ThreadPoolExecutor(WRITERS) as pool:
        changed = list(pool.map(lambda path: _give_mapping(groups[path], inside[path], wanted), grids))
    nodes |= {f"{path}/{GRID_MAPPING}".lstrip("/"): inside[path][GRID_MAPPING] for path in grids}
    return [f"{path}: its grid is in {code}" for path, new in zip(grids, changed, strict=True) if new]


def _is_grid(inside: dict[str, Any]) -> bool:
    """Whether these nodes of a group are pictures on a grid in metres."""
    axes = [inside.get(axis) for axis in ("x", "y")]
    return all(axis is not None and axis.attrs.get("units") == "m" for axis in axes) and any(
        _dimensions(node)[-2:] == ("y", "x") for node in inside.values()
    )


def _give_mapping(group: zarr.Group, inside: dict[str, Any], wanted: dict) -> bool:
    """Add the grid mapping to a group, and a reference to it to each picture; whether anything was missing."""
    changed = False
    mapping = inside.get(GRID_MAPPING)
    if mapping is None:
        mapping = inside[GRID_MAPPING] = group.create_array(
            GRID_MAPPING, shape=(), dtype="i4", fill_value=0, overwrite=True
        )
    if mapping.attrs.asdict() != wanted:
        mapping.attrs.put(wanted)
        changed = True
    for node in list(inside.values()):
        if _dimensions(node)[-2:] == ("y", "x") and node.attrs.get("grid_mapping") != GRID_MAPPING:
            # "coordinates" too: without it, xarray takes the mapping for data unless it is told otherwise.
            others = [name for name in node.attrs.get("coordinates", "").split() if name != GRID_MAPPING]
            node.attrs.update({"grid_mapping": GRID_MAPPING, "coordinates": " ".join([*others, GRID_MAPPING])})
            changed = True
    return changed


def _dimensions(node: Any) -> tuple[str, ...]:
    if not isinstance(node, zarr.Array):
        return ()
    if node.metadata.zarr_format == 2:
        return tuple(node.attrs.get("_ARRAY_DIMENSIONS", ()))
    return tuple(node.metadata.dimension_names or ())


def _code(attributes: dict) -> str | None:
    """The EPSG code that EOPF noted, in the form of its release: "EPSG:32633"."""
    properties = (attributes.get("stac_discovery") or {}).get("properties") or {}
    metadata = attributes.get("other_metadata") or {}
    code = properties.get("proj:code") or properties.get("proj:epsg") or metadata.get("horizontal_crs_code")
    return f"EPSG:{code}" if isinstance(code, int) else code


def _crs(code: str, zarr_format: int) -> dict:
    from pyproj import CRS

    # rioxarray and older releases of GDAL look for "spatial_ref".
    attributes = CRS.from_user_input(code).to_cf()
    return attributes | {"spatial_ref": attributes["crs_wkt"]} | ({"_ARRAY_DIMENSIONS": []} if zarr_format == 2 else {})


# --- stac_discovery ---


def _boxes_and_ids(groups: dict[str, zarr.Group], name: str) -> list[str]:
    done = []
    for path, group in groups.items():
        noted = group.attrs.get("stac_discovery")
        if not isinstance(noted, dict):
            continue
        right = dict(noted) | {"id": path.rpartition("/")[2] or name}
        if noted.get("geometry"):
            right["bbox"] = bounds(noted["geometry"])
        if different := [key for key in ("id", "bbox") if right.get(key) != noted.get(key)]:
            group.attrs["stac_discovery"] = right
            done += [f"{path or '/'}: {key} is {right[key]}, it was {noted.get(key)}" for key in different]
    return done
