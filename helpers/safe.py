"""What a SAFE product is: its archive, unpacked without trusting it; its manifest; where it lies; its picture."""

import hashlib
import lzma
import re
import shutil
import stat
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
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
#: Uncompressed bytes that an archive may hold: the largest Sentinel products have 8 GB.
LARGEST = 64 << 30
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
#: What a damaged or hostile archive makes `zipfile` and the decompressors raise (found by damaging archives).
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, OverflowError)


@dataclass(frozen=True)
class Member:
    """One file that the manifest lists."""

    path: str  #: below the root
    size: int  #: bytes; -1: not said
    checksum: str  #: hexadecimal, in lower case; "" if there is none
    algorithm: str  #: of the checksum, as the manifest calls it


def check_archive(path: Path) -> None:
    """Make sure that ``path`` is a whole zip file: its table of contents is there, and every checksum is right.

    Raises
    ------
    Rejected
        It is not, and why.
    """
    with _reading(path) as archive:
        if bomb := _bomb(archive.infolist(), path):
            raise Rejected(bomb)
        if damaged := archive.testzip():
            raise Rejected(f"its member {damaged} is damaged (wrong checksum)")


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a zip file into ``folder``; return the one folder at its root, or one made and named after the archive.

    The files appear all at once, when every checksum has been found right; what is there already is not unpacked again.

    Raises
    ------
    Rejected
        The archive would write outside of ``folder``, has links, two members of one name, or unpacks to far more than
        it should: all problems at once, and nothing is written. Or it is damaged, or cannot be written (no room).
    """
    with _reading(archive) as content:
        return _unpack(content, archive, folder)


def _unpack(content: zipfile.ZipFile, archive: Path, folder: Path) -> Path:
    members = content.infolist()
    if problems := _problems(members, archive):
        raise Rejected.because(f"{archive.name} was not unpacked", problems)
    roots = {PurePosixPath(member.filename).parts[0] for member in members}
    one_folder = len(roots) == 1 and all(m.is_dir() or len(PurePosixPath(m.filename).parts) > 1 for m in members)
    root = folder / (roots.pop() if one_folder else archive.stem)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{root.name}.part"
    with alone(root):
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
        if root.is_dir():
            return root
        if root.exists():
            raise Rejected(f"{archive.name} was not unpacked: {root} is in the way. Choose another folder.")
        needed, free = sum(member.file_size for member in members), shutil.disk_usage(folder).free
        if needed > free:
            raise Rejected(f"{archive.name} needs {needed / 1e6:,.0f} MB unpacked, the disk has {free / 1e6:,.0f} MB")
        try:
            content.extractall(part)  # holds each member against its checksum
            (part / root.name if one_folder else part).replace(root)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return root


@contextmanager
def _reading(path: Path) -> Iterator[zipfile.ZipFile]:
    """The opened zip file; whatever is wrong with it while it is read is a :class:`Rejected`."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except DAMAGED as error:
        with path.open("rb") as file:
            begins = file.read(16)
        size = path.stat().st_size
        raise Rejected(f"not a whole zip file ({error}); it has {size:,} bytes, the first: {begins!r}") from None
    except OSError as error:  # of the disk; and of bz2, for damage
        raise Rejected(f"{path.name} cannot be read, or not unpacked: {error.strerror or error}") from None


def _problems(members: list[zipfile.ZipInfo], archive: Path) -> list[str]:
    problems = []
    files = Counter(_on_any_disk(member.filename) for member in members if not member.is_dir())
    folders = {_on_any_disk(member.filename) for member in members if member.is_dir()}
    folders |= {str(parent) for file in files for parent in PurePosixPath(file).parents}
    for member in members:
        name, given = member.filename, member.orig_filename
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in given or re.match(r"\w:", name):
            problems.append(f"{given!r} would be written outside of the folder")
        elif "\0" in given:
            problems.append(f"{given!r} has a NUL in its name")
        elif stat.S_ISLNK(member.external_attr >> 16):
            problems.append(f"{name!r} is a link")
        elif files[_on_any_disk(name)] > 1:
            problems.append(f"{name!r} is there twice (for a disk that does not tell upper from lower case)")
        elif not member.is_dir() and _on_any_disk(name) in folders:
            problems.append(f"{name!r} is a file and a folder")
    if bomb := _bomb(members, archive):
        problems.append(bomb)
    if not members:
        problems.append("it is empty")
    return problems


def _on_any_disk(name: str) -> str:
    """What is the same for two names that some disk takes for one."""
    return unicodedata.normalize("NFC", str(PurePosixPath(name)).casefold())


def _bomb(members: list[zipfile.ZipInfo], archive: Path) -> str:
    """Why to take the archive for one that is to fill the disk, or ""."""
    total = sum(member.file_size for member in members)
    # Of the archive itself: what it says about its members' compressed sizes may count the same bytes many times.
    limit = min(max(RATIO * archive.stat().st_size, HARMLESS), LARGEST)
    return f"it would unpack to {total:,} bytes; from its size no more than {limit:,} are believable" * (total > limit)


def short_name(name: str) -> str:
    """The part of a product's name that tells it from others: mission, type, time, and in Sentinel-2 the tile."""
    found = re.match(r"(S2._MSIL.._\d{8}T\d{6})_N\d{4}_R\d{3}_(T\w{5})_", name)
    return f"{found[1]}_{found[2]}" if found else name[:32]


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
