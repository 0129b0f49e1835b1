"""What a SAFE product is: its archive, unpacked without trusting it; its manifest; where it lies; its picture."""

import gzip
import hashlib
import io
import lzma
import re
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from defusedxml import ElementTree

from .download import alone
from .errors import Rejected

#: Names of the manifest: Sentinel-1 and -2, Sentinel-3.
MANIFESTS = ("manifest.safe", "xfdumanifest.xml")
#: Checksums by their names in manifests: Sentinel-2 changed from MD5 to SHA3-256 in 2021 (baseline 03.01).
CHECKSUMS = {"MD5": "md5", "SHA-256": "sha256", "SHA256": "sha256", "SHA3-256": "sha3_256"}
#: What archives of products are called; the first group tells a tar file from a zip file.
ARCHIVE = re.compile(r"\.(?:zip|(tar|tgz|tar\.gz))$", re.IGNORECASE)
#: How folders of products end.
SUFFIX = re.compile(r"\.(?:SAFE|SEN3)$")
#: Uncompressed bytes and members that an archive may hold: the largest Sentinel products have 8 GB, in 600 files.
LARGEST, MOST = 64 << 30, 100_000
#: How many times its own size an archive beyond a GiB may unpack to: products reach 10, a "bomb" 1,000.
RATIO, HARMLESS = 100, 1 << 30
#: Rasters that show the whole product and know their place, the best at the beginning: Sentinel-2's preview and true
#: colours, Sentinel-1's like-polarised picture (not an SLC's, which is complex and of one sub-swath).
PICTURES = (
    "GRANULE/*/QI_DATA/*PVI*.jp2",
    "GRANULE/*/IMG_DATA/*_TCI.jp2",
    "measurement/*-grd-vv-*.tiff",
    "measurement/*-grd-hh-*.tiff",
)
#: What a damaged or hostile archive makes `zipfile`, `tarfile`, decompressors raise (found by damaging archives).
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)
DAMAGED += (EOFError, RuntimeError, ValueError, OverflowError)


@dataclass(frozen=True)
class Member:
    """One file that the manifest lists."""

    path: str  #: below the root
    size: int  #: bytes; -1: not said
    checksum: str  #: hexadecimal, in lower case; "" if there is none
    algorithm: str  #: of the checksum, as the manifest calls it


def name_of(place: str) -> str:
    """A product's name, from that of its folder or archive, or from the address of one."""
    return SUFFIX.sub("", ARCHIVE.sub("", place.rstrip("/").rpartition("/")[2]))


def is_archive(name: str) -> bool:
    """Whether a file of that name is an archive that `unpack` takes: .zip, .tar, .tgz or .tar.gz, in any case."""
    return ARCHIVE.search(name) is not None


def check_archive(path: Path) -> None:
    """Make sure that ``path`` is a whole archive: its table of contents is there, and every checksum is right.

    A tar file has checksums of its table only, and if compressed one of everything; `verify` knows the product's own.

    Raises
    ------
    Rejected
        It is not, and why.
    """
    with _reading(path) as archive:
        if bomb := _bomb(archive.entries(), path):
            raise Rejected(bomb)
        if damaged := archive.damaged():
            raise Rejected(f"its member {damaged} is damaged (wrong checksum)")


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack an archive into ``folder``; return the one folder at its root, or one made and named after the archive.

    What ends in .tar, .tgz or .tar.gz is taken for a tar file, anything else for a zip file. The files appear all at
    once, when every checksum has been found right; what is there already is not unpacked again.

    Raises
    ------
    Rejected
        The archive would write outside of ``folder``, has links, two members of one name, or unpacks to far more than
        it should: all problems at once, and nothing is written. Or it is damaged, or cannot be written (no room).
    """
    with _reading(archive) as content:
        return _unpack(content, archive, folder)


def _unpack(content: "_Zip | _Tar", archive: Path, folder: Path) -> Path:
    entries = content.entries()
    if problems := _problems(entries, archive):
        raise Rejected.because(f"{archive.name} was not unpacked", problems)
    roots = {PurePosixPath(entry.name).parts[0] for entry in entries}
    one_folder = len(roots) == 1 and all(e.kind == "folder" or len(PurePosixPath(e.name).parts) > 1 for e in entries)
    root = folder / (roots.pop() if one_folder else ARCHIVE.sub("", archive.name))
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{root.name}.part"
    with alone(root):
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
        if root.is_dir():
            return root
        if root.exists():
            raise Rejected(f"{archive.name} was not unpacked: {root} is in the way. Choose another folder.")
        needed, free = sum(entry.size for entry in entries), shutil.disk_usage(folder).free
        if needed > free:
            raise Rejected(f"{archive.name} needs {needed / 1e6:,.0f} MB unpacked, the disk has {free / 1e6:,.0f} MB")
        try:
            content.write_to(part)
            (part / root.name if one_folder else part).replace(root)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return root


@contextmanager
def _reading(path: Path) -> Iterator["_Zip | _Tar"]:
    """The opened archive; whatever is wrong with it while it is read is a :class:`Rejected`."""
    found = ARCHIVE.search(path.name.removesuffix(".part"))  # of a download that is checked before it gets its name
    kind = "tar" if found and found[1] else "zip"
    try:
        with _Tar(path) if kind == "tar" else _Zip(path) as archive:
            yield archive
    except DAMAGED as error:
        with path.open("rb") as file:
            begins = file.read(16)
        size = path.stat().st_size
        raise Rejected(f"not a whole {kind} file ({error}); it has {size:,} bytes, the first: {begins!r}") from None
    except OSError as error:  # of the disk; and of bz2, for damage
        raise Rejected(f"{path.name} cannot be read, or not unpacked: {error.strerror or error}") from None


@dataclass(frozen=True)
class _Entry:
    """What an archive says about one of its members; nothing of it is believed."""

    name: str
    given: str  #: the name as it is written in the archive
    size: int  #: bytes, uncompressed
    kind: str  #: "file", "folder", "link"; or "special file": a device, a pipe and the like


class _Zip(zipfile.ZipFile):
    def entries(self) -> list[_Entry]:
        return [_Entry(m.filename, m.orig_filename, m.file_size, self._kind(m)) for m in self.infolist()]

    @staticmethod
    def _kind(member: zipfile.ZipInfo) -> str:
        return "link" if stat.S_ISLNK(member.external_attr >> 16) else "folder" if member.is_dir() else "file"

    def damaged(self) -> str:
        """Name of the first member whose content does not have its checksum, or ""."""
        return self.testzip() or ""

    def write_to(self, folder: Path) -> None:
        self.extractall(folder)  # noqa: S202  # our checks passed; this holds each member against its checksum


class _Tar:
    """A tar file, compressed with gzip or not. Its table of contents is spread over it: listing reads it all."""

    def __init__(self, path: Path):
        with ExitStack() as opened:
            file: _Plain | _Gzip = opened.enter_context(_Plain(io.FileIO(path)))
            if file.peek(2)[:2] == b"\x1f\x8b":  # whatever it is called
                file = opened.enter_context(_Gzip(fileobj=file))
            self._limit, self._file = _believable(path), file
            self._tar = opened.enter_context(tarfile.open(fileobj=file, mode="r:"))
            self._opened = opened.pop_all()

    def __enter__(self) -> "_Tar":
        return self

    def __exit__(self, *why: object) -> None:
        self._opened.close()

    def entries(self) -> list[_Entry]:
        """The members; of one that holds more than is believable, only as many as tell so."""
        entries, total = [], 0
        for member in self._tar:
            if member.isdir() and not PurePosixPath(member.name).parts:
                continue  # "./", which `tar -C folder .` begins with
            entries.append(_Entry(member.name, member.name, member.size, self._kind(member)))
            if member.size < 0:  # would lead back, and lower the sum
                raise tarfile.ReadError(f"a member of {member.size:,} bytes")
            total += member.size
            if total > self._limit or len(entries) > MOST:
                return entries
        self._check_end()
        return entries

    @staticmethod
    def _kind(member: tarfile.TarInfo) -> str:
        if member.issym() or member.islnk():
            return "link"
        regular = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
        return "file" if regular else "folder" if member.isdir() else "special file"

    def _check_end(self) -> None:
        """`tarfile` takes damage for the end; where this is, there are zeros and then nothing."""
        self._file.seek(self._tar.offset)
        length = 0
        while block := self._file.read(1 << 16):  # to the very end, where gzip has its checksum
            length += len(block)
            if block.strip(b"\0") or length > 64 << 20:
                raise tarfile.ReadError(f"damaged at or before byte {self._tar.offset:,}")
        if length < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it ends too early")

    def damaged(self) -> str:
        return ""  # listing has read everything that has a checksum

    def write_to(self, folder: Path) -> None:
        self._tar.extractall(folder, filter="data")


class _InPieces:
    """Refuses to hold in memory what a header says is long: `tarfile` reads long names and the like in one piece."""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 16 << 20:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return super().read(size)  # type: ignore[misc]


class _Plain(_InPieces, io.BufferedReader):
    pass


class _Gzip(_InPieces, gzip.GzipFile):
    pass


def _problems(entries: list[_Entry], archive: Path) -> list[str]:
    problems = []
    files = Counter(_on_any_disk(entry.name) for entry in entries if entry.kind != "folder")
    folders = {_on_any_disk(entry.name) for entry in entries if entry.kind == "folder"}
    folders |= {str(parent) for file in files for parent in PurePosixPath(file).parents}
    for entry in entries:
        name, given = entry.name, entry.given
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in given or re.match(r"\w:", name):
            problems.append(f"{given!r} would be written outside of the folder")
        elif "\0" in given:
            problems.append(f"{given!r} has a NUL in its name")
        elif entry.kind in ("link", "special file"):
            problems.append(f"{name!r} is a {entry.kind}")
        elif files[_on_any_disk(name)] > 1:
            problems.append(f"{name!r} is there twice (for a disk that does not tell upper from lower case)")
        elif entry.kind == "file" and _on_any_disk(name) in folders:
            problems.append(f"{name!r} is a file and a folder")
    if bomb := _bomb(entries, archive):
        problems.append(bomb)
    if not entries:
        problems.append("it is empty")
    return problems


def _on_any_disk(name: str) -> str:
    """What is the same for two names that some disk takes for one."""
    return unicodedata.normalize("NFC", str(PurePosixPath(name)).casefold())


def _bomb(entries: list[_Entry], archive: Path) -> str:
    """Why to take the archive for one that is to fill the disk, or ""."""
    total, limit = sum(entry.size for entry in entries), _believable(archive)
    if total > limit:
        return f"it would unpack to {total:,} bytes; from its size no more than {limit:,} are believable"
    return f"it has more than {MOST:,} members: no product has" * (len(entries) > MOST)


def _believable(archive: Path) -> int:
    """Bytes that an archive may unpack to.

    Of the archive itself: what it says about its members' compressed sizes may count the same bytes many times.
    """
    return min(max(RATIO * archive.stat().st_size, HARMLESS), LARGEST)


def short_name(name: str) -> str:
    """The part of a product's name that tells it from others: mission, type, time, and in Sentinel-2 the tile."""
    found = re.match(r"(S2._MSIL.._\d{8}T\d{6})_N\d{4}_R\d{3}_(T\w{5})_", name)
    return f"{found[1]}_{found[2]}" if found else name[:32].rstrip("_")


def contents(root: Path) -> list[dict]:
    """What is in a product, one row for each kind of file: ``kind``, ``files``, ``bytes``, ``such as``."""
    rows: dict[str, dict] = {}
    for file in sorted(root.rglob("*")) if root.is_dir() else [root]:
        if file.is_file():
            row = rows.setdefault(
                file.suffix, {"kind": file.suffix or "-", "files": 0, "bytes": 0, "such as": file.name}
            )
            row["files"] += 1
            row["bytes"] += file.stat().st_size
    return list(rows.values())


def is_product(root: Path) -> bool:
    """Whether ``root`` is the folder of a SAFE product: it has a manifest."""
    return any((root / name).is_file() for name in MANIFESTS)


def root_of(folder: Path) -> Path:
    """The folder of a product at or below ``folder``: where its manifest is.

    Folders whose name begins with a dot do not count: among them are those of an unpacking that was killed.

    Raises
    ------
    Rejected
        There is none, or more than one.
    """
    found = {path.parent for name in MANIFESTS for path in folder.rglob(name)}
    found = sorted(path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise Rejected(f"{folder} should hold one product, recognised by {' or '.join(MANIFESTS)}; found: {names}")
    return found[0]


def members(root: Path) -> list[Member]:
    """The files that the product's manifest lists.

    Raises
    ------
    Rejected
        It has no manifest, or one that cannot be read.
    """
    return listed(_manifest(root))


def listed(manifest: bytes) -> list[Member]:
    """The files that a manifest lists.

    Raises
    ------
    Rejected
        It cannot be read.
    """
    streams = _parsed(manifest).iterfind(".//{*}byteStream")
    return [_member(stream, place) for stream in streams if (place := stream.find("{*}fileLocation")) is not None]


def _member(stream: Any, place: Any) -> Member:
    size, checksum = stream.get("size", "-1"), stream.find("{*}checksum")
    if not place.get("href") or not re.fullmatch(r"-1|\d+", size):
        raise Rejected("the manifest lists a file without a name, or with a size that is no number")
    return Member(
        path=str(PurePosixPath(place.get("href"))),
        size=int(size),
        checksum=(checksum.text or "").strip().lower() if checksum is not None else "",
        algorithm=checksum.get("checksumName", "MD5") if checksum is not None else "",
    )


def verify(root: Path) -> list[str]:
    """Hold the product's files against its manifest; one line for each that is missing or differs.

    Raises
    ------
    Rejected
        It has no manifest, or one that cannot be read or lists nothing.
    """
    wanted = members(root)
    if not wanted:
        raise Rejected(f"{root.name}: its manifest lists no file")
    return [f"{one.path}: {problem}" for one in wanted if (problem := _differs(root, one))]


def _differs(root: Path, member: Member) -> str:
    path = root / member.path
    if ".." in PurePosixPath(member.path).parts or not path.is_relative_to(root):
        return "not in the product's folder"
    if not path.is_file():
        return "missing"
    if member.size not in (-1, size := path.stat().st_size):
        return f"{size:,} bytes instead of {member.size:,}"
    if member.checksum:
        if (algorithm := CHECKSUMS.get(member.algorithm.upper())) is None:
            return f"not checked: its checksum is of a kind unknown here ({member.algorithm})"
        with path.open("rb") as file:
            if hashlib.file_digest(file, algorithm).hexdigest() != member.checksum:
                return f"other content ({member.algorithm})"
    return ""


def footprint(root: Path) -> dict:
    """Where the product lies: GeoJSON Polygon, longitude and latitude in degrees, from the manifest.

    Raises
    ------
    Rejected
        The manifest has no footprint, or one that is none.
    """
    manifest = _parsed(_manifest(root))
    # "lat,lon lat,lon ..." in Sentinel-1, "lat lon lat lon ..." in Sentinel-2 and -3.
    text = manifest.findtext(".//{*}footPrint/{*}coordinates") or manifest.findtext(".//{*}footPrint//{*}posList")
    try:
        numbers = [float(number) for number in re.split(r"[\s,]+", (text or "").strip()) if number]
        ring = [[lon, lat] for lat, lon in zip(numbers[::2], numbers[1::2], strict=True)]
    except ValueError:
        ring = []
    if len(ring) < 3 or not all(abs(lon) <= 180 and abs(lat) <= 90 for lon, lat in ring):
        raise Rejected(f"{root.name} has no footprint in its manifest, or one that is no polygon")
    return {"type": "Polygon", "coordinates": [ring if ring[0] == ring[-1] else [*ring, ring[0]]]}


def picture(root: Path) -> Path | None:
    """A raster of the product to look at first, if it has one."""
    return next((path for pattern in PICTURES for path in sorted(root.glob(pattern))), None)


def _manifest(root: Path) -> bytes:
    path = next((root / name for name in MANIFESTS if (root / name).is_file()), None)
    if path is None:
        raise Rejected(f"{root.name} has no manifest ({' or '.join(MANIFESTS)}): it is no SAFE product")
    return path.read_bytes()


def _parsed(manifest: bytes) -> Any:
    try:
        return ElementTree.fromstring(manifest)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # broken, forbidden, of an unknown encoding
        raise Rejected(f"the manifest cannot be read ({type(error).__name__}: {error})") from None
