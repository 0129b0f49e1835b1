"""One SAFE product made into a Zarr, inside a worker: EOPF reads it and knows its structure, and writes it.

Sentinel-1 GRD pictures are copied here instead, a strip at a time, while EOPF still reads the annotation: the same
numbers in the same chunks, in a third of the memory.
"""

import hashlib
import json
import shutil
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from .. import objectstore, safe, stac
from ..download import alone, in_parallel
from ..errors import FailedRemotely, RecipeError, Rejected
from ..settings import Settings
from .services import storage
from .storing import TRANSFERS, Missing, Store

CONVERTED, PRESENT, FAILED = "converted", "present", "failed"
#: Root attribute that says what a Zarr was made of: ``name`` of the product, ``manifest`` (its SHA-256).
ORIGIN = "converted_from"
SUFFIXES = (".SAFE", ".SEN3")
#: Bytes of a manifest that are read; real ones have 100 kB.
MANIFEST_LIMIT = 32 << 20


@dataclass(frozen=True)
class Converted:
    """What became of one product."""

    source: str
    id: str  #: of the item: the Zarr's name without ".zarr"; "" if the source could not be read
    zarr: str  #: folder or s3:// URL
    outcome: str  #: "converted", "present" (the same product was there, whole) or "failed"
    item: dict = field(default_factory=dict, repr=False)  #: the STAC item beside the Zarr; empty if it failed
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    steps: dict[str, float] = field(default_factory=dict)  #: seconds of each: fetch, read, write, mend, check, store
    mended: tuple[str, ...] = ()  #: what EOPF had wrong, and was put right
    reason: str = ""  #: why it failed


@dataclass(frozen=True)
class Order:
    """A product to convert."""

    source: str  #: folder, archive, or s3:// URL of one
    target: str  #: folder or s3:// URL in which the Zarr will be
    settings: Settings  #: for what is in S3; masked in a repr
    overwrite: bool = False
    threads: int = 1  #: for decoding pictures; 0: as many as the Dask worker has


def storage_options(settings: Settings) -> dict[str, Any]:
    """What s3fs needs for the storage that ``settings`` name: that of RS-PYTHON if there are keys, else Amazon's.

    Has the keys in it: never show it.
    """
    if settings.rspy_s3_access_key and settings.rspy_s3_secret_key:
        endpoint, region = settings.rspy_s3_endpoint, settings.rspy_s3_region
        keys = {"key": settings.rspy_s3_access_key, "secret": settings.rspy_s3_secret_key}
    else:
        endpoint, region = settings.aws_endpoint_url, settings.aws_region
        keys = {"key": settings.aws_access_key_id, "secret": settings.aws_secret_access_key}
        keys |= {"token": settings.aws_session_token}
    options: dict[str, Any] = {name: key.get_secret_value() for name, key in keys.items() if key}
    if not options and settings.aws_profile:
        options = {"profile": settings.aws_profile}
    when_required = dict.fromkeys(("request_checksum_calculation", "response_checksum_validation"), "when_required")
    return options | {
        "client_kwargs": {"region_name": region} | ({"endpoint_url": str(endpoint)} if endpoint else {}),
        "config_kwargs": {"s3": {"addressing_style": "path" if endpoint else "auto"}} | when_required,
    }


def store_of(settings: Settings) -> Store:
    """The same storage as :func:`storage_options`, for whole trees of objects."""
    rspy = settings.rspy_s3_access_key and settings.rspy_s3_secret_key
    return Store(storage(settings) if rspy else objectstore.client("s3", settings, max_pool_connections=32))


class _Clock:
    def __init__(self) -> None:
        self.began, self.steps = time.perf_counter(), dict[str, float]()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.steps[name] = round(self.steps.get(name, 0.0) + time.perf_counter() - began, 3)


def look(order: Order) -> Converted | None:
    """The product if it was converted already, with its item beside it; None if there is something to do.

    Raises
    ------
    Rejected
        There is no such product, or something else is in the Zarr's place.
    """
    origin = _origin(order)
    place = _place(order, origin["name"])
    if order.overwrite or place.interrupted() or not place.holds(origin) or (item := place.noted()) is None:
        return None
    return Converted(order.source, origin["name"], place.zarr, PRESENT, item=item, bytes_out=place.size())


def convert(order: Order) -> Converted:
    """Make the Zarr and its item, unless they are there; whatever goes wrong is the reason of a failed one."""
    clock = _Clock()
    done = Converted(order.source, "", "", FAILED)
    try:
        done = _convert(order, clock)
    except RecipeError as error:
        done = replace(done, reason=str(error))
    except OSError as error:  # of the disk
        done = replace(done, reason=f"{error.filename or order.target}: {error.strerror or type(error).__name__}")
    return replace(done, seconds=round(time.perf_counter() - clock.began, 3), steps=clock.steps)


def _convert(order: Order, clock: _Clock) -> Converted:
    origin = _origin(order)
    name = origin["name"]
    place = _place(order, name)
    done = Converted(order.source, name, place.zarr, PRESENT)
    with place.workspace() as work:
        if order.overwrite or not place.holds(origin):
            with clock.step("fetch"):
                root = _fetch(order, work)
            zarr = work / f"{name}.zarr"
            mended = _make(root, zarr, origin, order.threads or _threads(), clock)
            with clock.step("store"):
                place.take(zarr)
            size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
            done = replace(done, outcome=CONVERTED, mended=tuple(mended), bytes_in=size)
        attributes = stac.read_attributes(place.zarr, place.options)
        item = stac.item_of(
            attributes,
            place.zarr,
            product_type=attributes["stac_discovery"]["properties"]["product:type"],
            derived_from=_link(order.source),
        ).to_dict(include_self_link=False)
        place.note(item)
        return replace(done, item=item, bytes_out=place.size())


def _threads() -> int:
    from distributed import get_worker

    return get_worker().state.nthreads


def _link(source: str) -> str:
    return source if source.startswith("s3://") else Path(source).resolve().as_uri()


def _make(root: Path, zarr: Path, origin: dict, threads: int, clock: _Clock) -> list[str]:
    """Write the product at ``root`` as ``zarr``, mended; what was mended."""
    from . import eopf_product, mending

    with ThreadPoolExecutor(1) as aside:
        # The checksums cost seconds: they are looked at beside the work, and must be right before it gets its name.
        checked = aside.submit(safe.verify, root)
        try:
            eopf_product.write(root, zarr, threads=threads, step=clock.step, attributes={ORIGIN: origin})
            with clock.step("mend"):
                mended = mending.mend(str(zarr), str(root))
        finally:
            with clock.step("check"):
                damage = checked.result()
            if damage:  # also the better reason where EOPF failed
                raise Rejected.because(f"{root.name} is damaged: it was not converted", damage)
    return mended


# --- where it comes from ---


def _origin(order: Order) -> dict:
    """Name and manifest of the product, without unpacking or downloading more than these."""
    source = order.source.rstrip("/")
    remote = source.startswith("s3://")
    if safe.is_archive(source):
        files, path = fsspec.core.url_to_fs(source, **(storage_options(order.settings) if remote else {}))
        if not files.isfile(path):
            raise Rejected(f"{source}: there is no such file")
        with files.open(path, "rb") as file:
            name, manifest = _of_archive(source.rpartition("/")[2], file)
    elif remote:
        store = store_of(order.settings)
        place = store.manifest(store.objects(source))
        name, manifest = place.split("/")[-2], store.read(place)
    elif (folder := Path(source)).is_dir():
        root = safe.root_of(folder)
        name = root.name
        manifest = next((root / m).read_bytes() for m in safe.MANIFESTS if (root / m).is_file())
    else:
        raise Rejected(f"{source}: no folder, no archive (.zip, .tar, .tgz, .tar.gz), and no s3:// URL of one")
    return {"name": safe.name_of(name), "manifest": f"sha256:{hashlib.sha256(manifest).hexdigest()}"}


def _of_archive(archive: str, file: Any) -> tuple[str, bytes]:
    try:
        path, manifest = (_in_tar if safe.ARCHIVE.search(archive)[1] else _in_zip)(file)
    except (*safe.DAMAGED, StopIteration):
        raise Rejected(f"{archive}: no manifest ({' or '.join(safe.MANIFESTS)}) can be read from it") from None
    return path.parent.name or safe.ARCHIVE.sub("", archive), manifest


def _in_zip(file: Any) -> tuple[PurePosixPath, bytes]:
    with zipfile.ZipFile(file) as content:
        path = next(name for name in content.namelist() if PurePosixPath(name).name in safe.MANIFESTS)
        with content.open(path) as manifest:
            return PurePosixPath(path), manifest.read(MANIFEST_LIMIT)


def _in_tar(file: Any) -> tuple[PurePosixPath, bytes]:
    with tarfile.open(fileobj=file, mode="r|*") as content:
        member = next(m for m in content if m.isfile() and PurePosixPath(m.name).name in safe.MANIFESTS)
        return PurePosixPath(member.name), content.extractfile(member).read(MANIFEST_LIMIT)


def _fetch(order: Order, work: Path) -> Path:
    """The product as a local folder, in which every file is that its manifest lists."""
    source = order.source.rstrip("/")
    if source.startswith("s3://"):
        store = store_of(order.settings)
        if safe.is_archive(source):
            local = store.download(source, work / "archive" / source.rpartition("/")[2])
        else:
            local = _download(store, source, work / "safe")
    else:
        local = Path(source)
    root = safe.root_of(local if local.is_dir() else safe.unpack(local, work / "safe"))
    if root.suffix not in SUFFIXES:
        raise Rejected(f"{root}: EOPF takes folders of products only if their names end in {' or '.join(SUFFIXES)}")
    if wrong := [problem for member in safe.members(root) if (problem := _lacks(root, member))]:
        raise Rejected.because(f"{root.name} is not what its manifest says", wrong)
    return root


def _lacks(root: Path, member: safe.Member) -> str:
    """What can be seen to be wrong with a file without reading it."""
    path = root / member.path
    if not path.is_file():
        return f"{member.path}: missing"
    size = path.stat().st_size
    return "" if member.size in (-1, size) else f"{member.path}: {size:,} bytes instead of {member.size:,}"


def _download(store: Store, source: str, folder: Path) -> Path:
    found = store.objects(source)
    root = store.manifest(found).rpartition("/")[0]
    local = folder / root.rpartition("/")[2]
    wanted = {uri: local / uri.removeprefix(f"{root}/") for uri in found if uri.startswith(f"{root}/")}
    _, failures = in_parallel({uri: partial(store.download, uri, path) for uri, path in wanted.items()}, TRANSFERS)
    if failures:
        raise FailedRemotely(f"{len(failures)} of {len(wanted)} files did not arrive: {next(iter(failures.values()))}")
    return local


# --- where it goes ---


class _Place:
    """Where a Zarr and its item will be, and where it is made until then."""

    zarr: str
    options: dict | None = None

    def holds(self, origin: dict) -> bool:
        """Whether the Zarr of this very product is there, whole.

        Raises
        ------
        Rejected
            Another Zarr is: it is not overwritten unless asked to.
        """
        if not self.exists():
            return False
        if stac.read_attributes(self.zarr, self.options).get(ORIGIN) == origin:
            return True
        raise Rejected(f"{self.zarr} is there already, made of something else. Choose another target, or overwrite it.")


def _place(order: Order, name: str) -> "_Disk | _Bucket":
    return _Bucket(order, name) if order.target.startswith("s3://") else _Disk(order, name)


class _Disk(_Place):
    def __init__(self, order: Order, name: str):
        self.folder = Path(order.target).expanduser().resolve()
        self.zarr = str(self.folder / f"{name}.zarr")
        self._item = self.folder / f"{name}.json"
        self._part = self.folder / f".{name}.zarr.part"

    def interrupted(self) -> bool:
        """Whether a run that was killed has left its workspace."""
        return self._part.exists()

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder beside the Zarr, so that moving it there costs nothing; nobody else makes the same meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with alone(Path(self.zarr)), _emptied(self._part) as work:
            yield work

    def exists(self) -> bool:
        return Path(self.zarr).exists()

    def take(self, made: Path) -> None:
        if self.exists():
            Path(self.zarr).replace(made.with_name("replaced"))
        made.replace(self.zarr)

    def noted(self) -> dict | None:
        return json.loads(self._item.read_text()) if self._item.exists() else None

    def note(self, item: dict) -> None:
        part = self._item.with_suffix(".json.part")
        part.write_text(json.dumps(item, indent=1))
        part.replace(self._item)

    def size(self) -> int:
        return sum(path.stat().st_size for path in Path(self.zarr).rglob("*") if path.is_file())


class _Bucket(_Place):
    def __init__(self, order: Order, name: str):
        self.zarr = f"{order.target.rstrip('/')}/{name}.zarr"
        self.options, self._store = storage_options(order.settings), store_of(order.settings)
        self._item = f"{order.target.rstrip('/')}/{name}.json"

    def interrupted(self) -> bool:
        return False  # its workspace is elsewhere, perhaps on another machine

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder for temporary files of this user; the same for the same Zarr, so that a killed run leaves none."""
        key = hashlib.sha256(self.zarr.encode()).hexdigest()[:16]
        place = Path(tempfile.gettempdir()) / f"eo-cloud-recipes-{_user()}"
        place.mkdir(mode=0o700, exist_ok=True)
        with alone(place / key), _emptied(place / f"{key}.part") as work:
            yield work

    def exists(self) -> bool:
        return self._store.has_zarr(self.zarr)

    def take(self, made: Path) -> None:
        """Upload everything, and at the end what makes a Zarr of it: the metadata of its root."""
        with suppress(Missing):
            self._store.remove(f"{self.zarr}/zarr.json")
        (made / "zarr.json").rename(last := made.with_name("zarr.json"))
        self._store.upload(made, self.zarr)
        self._store.put(last, f"{self.zarr}/zarr.json")

    def noted(self) -> dict | None:
        try:
            return json.loads(self._store.read(self._item))
        except Missing:
            return None

    def note(self, item: dict) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(item, file, indent=1)
            file.flush()
            self._store.put(Path(file.name), self._item)

    def size(self) -> int:
        return sum(self._store.objects(self.zarr).values())


def _user() -> str:
    import getpass

    return getpass.getuser()


@contextmanager
def _emptied(folder: Path) -> Iterator[Path]:
    """An empty folder, whatever a run that was killed has left there; it is removed in the end."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
