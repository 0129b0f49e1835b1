"""Where a product is: a folder, a zip file, a prefix or an object in S3, one file; all are read in the same way.

Only what is asked for is read: of an object in S3 by ranges, of a zip file there its table and the members.
"""

import io
import re
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import quote

from .. import objectstore, safe
from ..errors import NotConfigured, Rejected
from ..settings import Settings

#: Bytes of an object that are read at a time, at least: what a TIFF's header has.
BLOCK = 1 << 16
Href = Callable[[str], str]


class Missing(Rejected):
    """There is nothing at the address."""


class Place(ABC):
    """The files of one product, by their path below its root."""

    url: str  #: of the root: of the folder, the zip file, or the one file
    name: str  #: of the folder, or of the file without ".zip"

    def __init__(self, href: str | Href | None = None):
        self._wanted, self._opened = href, ExitStack()

    def __enter__(self) -> "Place":
        return self

    def __exit__(self, *why: object) -> None:
        self._opened.close()

    @cached_property
    @abstractmethod
    def files(self) -> dict[str, int]:
        """The size in bytes of every file, by its path."""

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """A file to read and to seek in."""

    @abstractmethod
    def _href(self, base: str, path: str) -> str: ...

    def href(self, path: str) -> str:
        """The address of a file: where it is, or where the caller says that it will be."""
        if callable(self._wanted):
            return self._wanted(path)
        return as_iri(self._href((self._wanted or self.url).rstrip("/"), path))

    @property
    def archive(self) -> str:
        """The address of the zip file that the files are in, or ""."""
        return ""

    def read(self, path: str) -> bytes:
        """The content of a small file."""
        with self.open(path) as file:
            return file.read()

    @contextmanager
    def raster(self, path: str) -> Iterator[Any]:
        """The opened `rasterio` dataset of a file.

        Raises
        ------
        Rejected
            It is no raster.
        """
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning, RasterioError

        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), self.open(path) as file:
            try:
                with warnings.catch_warnings():
                    # Whoever needs to know where it lies looks, and says so.
                    warnings.simplefilter("ignore", NotGeoreferencedWarning)
                    dataset = rasterio.open(self._on_disk(path) or file)
                with dataset:
                    yield dataset
            except RasterioError as error:
                raise Rejected(f"{self.url}: {path} cannot be read as a raster ({error})") from None

    def _on_disk(self, path: str) -> str | None:
        return None

    def unzipped(self, path: str) -> "InZip":
        """What is in one of the files, a zip file; it is closed with this place."""
        return self._opened.enter_context(InZip(self.open(path), self.href(path)))  # type: ignore[return-value]

    # What `helpers.safe` asks of the root of a product.

    def __truediv__(self, path: str) -> "_File":
        return _File(self, path)


class _File:
    def __init__(self, place: Place, path: str):
        self._place, self._path = place, path

    def is_file(self) -> bool:
        return self._path in self._place.files

    def read_bytes(self) -> bytes:
        return self._place.read(self._path)


class OnDisk(Place):
    """A folder, one file, or the files beside each other whose names begin alike."""

    def __init__(self, path: Path, href: str | Href | None = None):
        super().__init__(href)
        self._one = path.name if path.is_file() else None
        self._beside = not path.exists()
        self._root = path.parent if self._one or self._beside else path
        self.url, self.name = path.resolve().as_posix(), path.name

    @cached_property
    def files(self) -> dict[str, int]:
        if self._beside:
            found = sorted(path for path in self._root.glob("*") if belongs(path.name, self.name))
        else:
            found = [self._root / self._one] if self._one else sorted(self._root.rglob("*"))
        return {p.relative_to(self._root).as_posix(): p.stat().st_size for p in found if p.is_file()}

    def open(self, path: str) -> BinaryIO:
        return (self._root / path).open("rb")

    def _href(self, base: str, path: str) -> str:
        return base if self._one else f"{base.rpartition('/')[0] if self._beside else base}/{path}"

    def _on_disk(self, path: str) -> str:
        return str(self._root / path)


class InBucket(Place):
    """What lies under a prefix in S3, one object there, or objects beside each other whose names begin alike."""

    def __init__(self, url: str, settings: Settings, href: str | Href | None = None):
        super().__init__(href)
        self.url = url.rstrip("/")
        bucket, _, self._key = self.url.removeprefix("s3://").partition("/")
        self.name = PurePosixPath(self._key).name or bucket
        self._store = objectstore.store(bucket, settings)

    @cached_property
    def _all(self) -> dict[str, int]:
        """Sizes by key: of the object of this very name, of those below it, or of those whose names begin with it."""
        import obstore

        try:
            try:
                return {self._key: obstore.head(self._store, self._key)["size"]} if self._key else self._below("")
            except FileNotFoundError:
                return self._below(f"{self._key}/") or self._beside()
        except obstore.exceptions.BaseError as error:
            raise Rejected(f"{self.url} cannot be read: {_reason(error)}") from None

    def _below(self, prefix: str) -> dict[str, int]:
        import obstore

        return {found["path"]: found["size"] for page in obstore.list(self._store, prefix or None) for found in page}

    def _beside(self) -> dict[str, int]:
        import obstore

        folder, _, name = self._key.rpartition("/")
        found = {}
        for page in obstore.list(self._store, folder or None, offset=self._key):
            for one in page:
                if not one["path"].startswith(self._key):
                    return found  # S3 lists in order: nothing of that name follows
                if belongs(one["path"].rpartition("/")[2], name) and one["path"].rpartition("/")[0] == folder:
                    found[one["path"]] = one["size"]
        return found

    @cached_property
    def _root(self) -> str:
        below = any(key.startswith(f"{self._key}/") for key in self._all) or not self._key
        return self._key if below else self._key.rpartition("/")[0]

    @cached_property
    def files(self) -> dict[str, int]:
        start = f"{self._root}/" if self._root else ""
        return {key.removeprefix(start): size for key, size in sorted(self._all.items())}

    def open(self, path: str) -> BinaryIO:
        if path not in self.files:
            raise Rejected(f"{self.url}: there is no {path}")
        key = f"{self._root}/{path}" if self._root else path
        return io.BufferedReader(_Ranges(self._store, key, self.files[path]), BLOCK)

    def _href(self, base: str, path: str) -> str:
        if self._key in self._all:
            return base
        return f"{base if self._root == self._key else base.rpartition('/')[0]}/{path}"


class InZip(Place):
    """The members of a zip file, below the one folder at its root if there is one."""

    def __init__(self, file: BinaryIO, url: str, href: str | Href | None = None):
        super().__init__(href)
        self.url, self.name = url, PurePosixPath(url).name.removesuffix(".zip")
        self._opened.enter_context(file)
        try:
            self._archive = self._opened.enter_context(zipfile.ZipFile(file))
        except safe.DAMAGED as error:
            self._opened.close()
            raise Rejected(f"{url} is no whole zip file ({error})") from None
        members = {m.filename: m.file_size for m in self._archive.infolist() if not m.is_dir()}
        roots = {PurePosixPath(name).parts[0] for name in members}
        self._folder = f"{roots.pop()}/" if len(roots) == 1 and all("/" in name for name in members) else ""
        self.name = self._folder.rstrip("/") or self.name
        self._members = {name.removeprefix(self._folder): size for name, size in sorted(members.items())}

    @property
    def files(self) -> dict[str, int]:
        return self._members

    @property
    def archive(self) -> str:
        return self._wanted("") if callable(self._wanted) else as_iri((self._wanted or self.url).rstrip("/"))

    def open(self, path: str) -> BinaryIO:
        return self._archive.open(self._folder + path)  # type: ignore[return-value]

    def read(self, path: str) -> bytes:
        try:
            return super().read(path)
        except safe.DAMAGED as error:
            raise Rejected(f"{self.url}: its member {path} is damaged ({error})") from None

    def _href(self, base: str, path: str) -> str:
        return in_archive(base, self._folder + path)


def belongs(file: str, product: str) -> bool:
    """Whether a file is one of a product that has no folder of its own: its name goes on with "_" or "."."""
    return file.startswith(product) and file[len(product) : len(product) + 1] in ("_", ".")


def in_archive(archive: str, member: str) -> str:
    """The address of a member of a zip file, as rasterio and what is built on it open it: ``zip+s3://...!member``."""
    return f"zip+{archive}!{member}" if "://" in archive else f"zip://{archive}!{member}"


def as_iri(address: str) -> str:
    """The address with what an IRI must not have, like spaces, written as %20; of a path, as ``file://`` then."""
    quoted = re.sub(r'[\s<>"{}|\\^`%#?]', lambda found: quote(found[0]), address)
    return f"file://{quoted}" if quoted != address and quoted.startswith("/") else quoted


def find(source: str, settings: Settings | None = None, href: str | Href | None = None) -> Place:
    """The place of a product: a path, or an ``s3://`` URL; of a zip file, what is in it.

    Raises
    ------
    NotConfigured
        It is in S3, and there are no settings.
    Missing
        There is nothing.
    Rejected
        It cannot be read here, or is a zip file that is broken.
    """
    if source.startswith("s3://"):
        if settings is None:
            raise NotConfigured(f"{source} is in S3: give the settings as well, which have the credentials")
        place: Place = InBucket(source, settings, href)
    elif "://" in source:
        raise Rejected(f"{source.partition('?')[0]}: only paths and s3:// can be read here. Download it first.")
    else:
        place = OnDisk(Path(source), href)
    if not place.files:
        raise Missing(f"There is {'nothing' if isinstance(place, OnDisk) and place._beside else 'no file'} at {source}")
    if safe.is_archive(place.name) and not place.name.lower().endswith(".zip") and len(place.files) == 1:
        raise Rejected(f"{source}: a tar file has no table of contents. Unpack it first: helpers.safe.unpack")
    if place.name.lower().endswith(".zip") and len(place.files) == 1:
        return InZip(place.open(next(iter(place.files))), place.url, href)  # has nothing else to close
    return place


class _Ranges(io.RawIOBase):
    """An object in S3, of which each `readinto` reads a range."""

    def __init__(self, store: Any, key: str, size: int):
        self._store, self._key, self._size, self._at = store, key, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        import obstore

        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        try:
            got = obstore.get_range(self._store, self._key, start=self._at, end=end)
        except (obstore.exceptions.BaseError, FileNotFoundError) as error:
            raise Rejected(f"{self._key} cannot be read: {_reason(error)}") from None
        buffer[: len(got)] = bytes(got)
        self._at += len(got)
        return len(got)


def _reason(error: Exception) -> str:
    """What S3 answered, in its own word; not the error's text, which may have a signed URL in it."""
    if code := re.search(r"<Code>(\w+)</Code>", str(error)):
        return code[1]
    names = {"PermissionDeniedError": "access denied", "UnauthenticatedError": "the credentials are refused"}
    return names.get(type(error).__name__, type(error).__name__)
