"""SAFE products: archives that are not trusted, manifests that are believed only as far as the files agree."""

import gzip
import hashlib
import io
import random
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import time
import tracemalloc
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import safe
from helpers.errors import Rejected
from helpers.sandbox.safe_products import product_footprint, safe_archive

GRD = "S1A_IW_GRDH_1SDV_20210119T031653_20210119T031718_036201_043ED0_8255"
L1C = "S2A_MSIL1C_20210713T032051_N0301_R032_T48LWP_20210713T054224"
L2A = "S2A_MSIL2A_20210713T032051_N0301_R032_T48LWP_20210713T054224"
EFR = "S3A_OL_1_EFR____20210820T103153_20210820T103453_20210820T124206_0179_075_222_2160_LN1_O_NR_002"
GOOD = {"X.SAFE/manifest.safe": b"<x/>", "X.SAFE/a/b.txt": b"b" * 1000, "X.SAFE/c": b"c"}


def zipped(members: dict[str, bytes] | list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip file with these members, whatever their names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, warnings.catch_warnings(action="ignore"):
        for name, content in members.items() if isinstance(members, dict) else members:
            info = zipfile.ZipInfo()
            info.filename = name  # given to ZipInfo itself, it would be made harmless
            archive.writestr(info, content, method)
    return buffer.getvalue()


def tarred(members: dict[str, bytes] | list[tuple[str | tarfile.TarInfo, bytes]], mode: str = "w") -> bytes:
    """A tar file with these members, whatever their names; compressed if ``mode`` is "w:gz"."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = info.size or len(content)
            archive.addfile(info, io.BytesIO(content + bytes(info.size - len(content))))
    return buffer.getvalue()


def packed(members: dict[str, bytes] | list[tuple[str, bytes]], name: str) -> bytes:
    """An archive of the kind that ``name`` tells."""
    return zipped(members) if name.endswith(".zip") else tarred(members, "w" if name.endswith(".tar") else "w:gz")


def declared(content: bytes, size: int) -> bytes:
    """The same zip file (of one member) with another uncompressed size in both of its headers."""
    for signature, place in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        at = content.index(signature) + place
        content = content[:at] + struct.pack("<I", size) + content[at + 4 :]
    return content


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.fixture
def archive(tmp_path):
    """Write an archive: ``archive(content)``; its path."""

    def write(content: bytes | dict[str, bytes], name: str = "x.zip") -> Path:
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else packed(content, name))
        return path

    return write


@pytest.fixture
def folder(tmp_path) -> Path:
    """Where archives are unpacked into: not there yet, and with room above for what tries to escape."""
    return tmp_path / "above" / "out"


def tree(folder: Path) -> dict[str, bytes]:
    """The files at and below a folder, by their paths."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(path: Path, folder: Path) -> str:
    """What `unpack` says about an archive that it refuses; nothing may have been written, anywhere."""
    before = tree(folder.parents[1])
    with pytest.raises(Rejected) as error:
        safe.unpack(path, folder)
    assert tree(folder.parents[1]) == before
    assert not folder.exists() or list(folder.iterdir()) == []
    return str(error.value)


# --- whole archives ---


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_whole_archive_passes(archive, method):
    safe.check_archive(archive(zipped(GOOD, method)))


@pytest.mark.parametrize("part", [0.0, 0.2, 0.5, 0.9, 0.99])
def test_a_piece_of_an_archive_is_refused_with_what_it_is(archive, part):
    content = zipped(GOOD)
    piece = content[: int(len(content) * part)]
    with pytest.raises(Rejected, match=f"not a whole zip file .*; it has {len(piece)} bytes, the first: b'"):
        safe.check_archive(archive(piece))


def test_a_page_that_asks_to_log_in_is_recognised_by_its_beginning(archive):
    with pytest.raises(Rejected, match="it has 27 bytes, the first: b'<html>Please log"):
        safe.check_archive(archive(b"<html>Please log in.</html>"))


def test_a_damaged_member_is_named(archive):
    content = zipped(GOOD, zipfile.ZIP_STORED)
    with pytest.raises(Rejected, match=r"X\.SAFE/a/b\.txt is damaged"):
        safe.check_archive(archive(flipped(content, content.index(b"bbbb") + 500)))


@pytest.mark.parametrize("how", [safe.check_archive, lambda path: safe.unpack(path, path.parent / "out")])
def test_an_archive_that_is_not_there_is_explained(tmp_path, how):
    with pytest.raises(Rejected, match=r"x\.zip cannot be read, .*No such file"):
        how(tmp_path / "x.zip")


def test_a_bomb_is_not_even_read(archive):
    path = archive(declared(zipped({"X.SAFE/a": b"a"}), 3 << 30))
    with pytest.raises(Rejected, match=r"it would unpack to 3,221,225,472 bytes; .* no more than 1,073,741,824"):
        safe.check_archive(path)


# --- unpacking ---


def test_an_archive_is_unpacked_to_the_folder_at_its_root(archive, folder):
    root = safe.unpack(archive(GOOD), folder)
    assert root == folder / "X.SAFE"
    assert tree(folder) == GOOD


@pytest.mark.parametrize(
    "members",
    [
        {"a": b"1", "b/c": b"2"},
        {"X.SAFE/a": b"1", "Y.SAFE/a": b"2"},
        {"a": b"1"},
        {"X.SAFE/a": b"1", "b": b"2"},
    ],
)
def test_an_archive_without_one_folder_at_its_root_gets_one(archive, folder, members):
    root = safe.unpack(archive(members, "S1A_x.SAFE.zip"), folder)
    assert root == folder / "S1A_x.SAFE"
    assert tree(root) == members and list(folder.iterdir()) == [root]


@pytest.mark.parametrize("name", ["./X.SAFE/a", "X.SAFE//a", "X.SAFE/./a"])
def test_roundabout_names_are_straightened(archive, folder, name):
    root = safe.unpack(archive({name: b"1"}), folder)
    assert root == folder / "X.SAFE" and tree(folder) == {"X.SAFE/a": b"1"}


def test_names_in_other_alphabets_are_kept(archive, folder):
    members = {"X.SAFE/größe.txt": b"1", "X.SAFE/地図": b"2", "X.SAFE/with space": b"3"}
    safe.unpack(archive(members), folder)
    assert tree(folder) == members


def test_folders_of_their_own_are_kept_and_may_be_listed_twice(archive, folder):
    empty = [("X.SAFE/e/", b"")] * 2
    safe.unpack(archive(zipped([*GOOD.items(), *empty])), folder)
    assert (folder / "X.SAFE/e").is_dir() and tree(folder) == GOOD


def test_a_second_time_does_nothing(archive, folder):
    path = archive(GOOD)
    root = safe.unpack(path, folder)
    (root / "c").write_text("changed since")
    inode = root.stat().st_ino
    assert safe.unpack(path, folder) == root
    assert root.stat().st_ino == inode and (root / "c").read_text() == "changed since"
    assert list(folder.iterdir()) == [root]


def test_what_lies_beside_is_left_alone(archive, folder):
    (folder / "Y.SAFE").mkdir(parents=True)
    (folder / "Y.SAFE" / "a").write_text("mine")
    safe.unpack(archive(GOOD), folder)
    assert tree(folder) == GOOD | {"Y.SAFE/a": b"mine"}


def test_what_a_killed_run_left_is_done_again(archive, folder):
    left = folder / ".X.SAFE.part" / "X.SAFE"
    left.mkdir(parents=True)
    (left / "half").write_text("half")
    (folder / ".X.SAFE.lock").touch()
    safe.unpack(archive(GOOD), folder)
    assert tree(folder) == GOOD
    assert [path.name for path in folder.iterdir()] == ["X.SAFE"]


def test_killed_at_any_moment_nothing_half_done_has_the_final_name(archive, folder):
    members = {f"X.SAFE/{n}": random.Random(n).randbytes(10_000) for n in range(100)}
    path = archive(zipped(members, zipfile.ZIP_STORED))
    code = """if True:
        import shutil, sys, time
        from pathlib import Path
        from helpers import safe
        copy = shutil.copyfileobj
        shutil.copyfileobj = lambda *files: (time.sleep(0.005), copy(*files))  # as from a slow disk
        safe.unpack(*map(Path, sys.argv[1:]))
    """
    child = subprocess.Popen([sys.executable, "-c", code, str(path), str(folder)])
    moment = random.Random().randrange(1, 80)
    while len(list(folder.glob(".X.SAFE.part/X.SAFE/*"))) < moment:
        assert child.poll() is None
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (folder / "X.SAFE").exists() and (folder / ".X.SAFE.part").is_dir()
    with pytest.raises(Rejected, match="found: none"):
        safe.root_of(folder)
    safe.unpack(path, folder)
    assert tree(folder) == members


def test_two_at_once_unpack_once(archive, folder):
    members = {f"X.SAFE/{n}": random.Random(n).randbytes(20_000) for n in range(100)}
    path = archive(zipped(members, zipfile.ZIP_STORED))
    with ThreadPoolExecutor(4) as pool:
        roots = list(pool.map(lambda n: safe.unpack(path, folder), range(4)))
    assert set(roots) == {folder / "X.SAFE"}
    assert tree(folder) == members


# --- archives that are not to be unpacked ---


OUTSIDE = ["../x", "../../x", "X.SAFE/../../x", "X.SAFE/..", "..", "/x", "//x", "C:/x", "C:x"]
OUTSIDE += ["..\\x", "\\x", "X.SAFE\\..\\..\\x", "\\\\host\\share\\x"]


@pytest.mark.parametrize("kind", ["x.zip", "x.tar", "x.tgz"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_what_would_be_written_outside_is_refused(archive, folder, name, kind):
    said = refused(archive(GOOD | {name: b"outside"}, kind), folder)
    assert said == f"{kind} was not unpacked (1 problem):\n  - {name!r} would be written outside of the folder"


@pytest.mark.parametrize("name", ["/", ".", "./"])
def test_what_has_no_name_is_refused(archive, folder, name):
    assert f"{name!r} would be written outside" in refused(archive(GOOD | {name: b"outside"}), folder)


def test_a_name_that_ends_before_its_end_is_refused(archive, folder):
    assert r"'X.SAFE/a\x00.txt' has a NUL in its name" in refused(archive(GOOD | {"X.SAFE/a\0.txt": b""}), folder)


@pytest.mark.parametrize("to", ["../../x", "manifest.safe", "/etc/passwd"])
def test_links_are_refused(archive, folder, to):
    buffer = io.BytesIO(zipped(GOOD))
    with zipfile.ZipFile(buffer, "a") as content:
        link = zipfile.ZipInfo("X.SAFE/link")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        content.writestr(link, to)
    assert "'X.SAFE/link' is a link" in refused(archive(buffer.getvalue()), folder)


@pytest.mark.parametrize("kind", ["x.zip", "x.tar"])
@pytest.mark.parametrize(
    "names",
    [
        ("X.SAFE/aa", "X.SAFE/aa"),
        ("X.SAFE/aa", "X.SAFE/Aa"),
        ("X.SAFE/aa", "X.safe/aa"),
        ("X.SAFE/aa", "X.SAFE//aa"),
        ("X.SAFE/aa", "./X.SAFE/aa"),
        ("X.SAFE/\xe4", "X.SAFE/a\u0308"),
    ],
)
def test_two_members_of_one_name_are_refused(archive, folder, names, kind):
    first, second = names
    said = refused(archive(packed([(first, b"1"), (second, b"2")], kind), kind), folder)
    assert f"{first!r} is there twice" in said and f"{second!r} is there twice" in said


@pytest.mark.parametrize("kind", ["x.zip", "x.tar"])
@pytest.mark.parametrize("names", [("X.SAFE/a", "X.SAFE/a/b"), ("X.SAFE/a", "X.SAFE/A/"), ("X.SAFE/a/b/c", "X.SAFE/a")])
def test_what_is_a_file_and_a_folder_is_refused(archive, folder, names, kind):
    folders = [
        (member(name.rstrip("/"), tarfile.DIRTYPE), b"") if name.endswith("/") else (name, b"") for name in names
    ]
    content = zipped(dict.fromkeys(names, b"")) if kind == "x.zip" else tarred(folders)
    assert "is a file and a folder" in refused(archive(content, kind), folder)


@pytest.mark.parametrize("kind", ["x.zip", "x.tgz"])
def test_all_problems_come_at_once(archive, folder, kind):
    names = ["../x", "/y", "X/a", "X/A", "..\\z"]
    assert refused(archive(dict.fromkeys(names, b""), kind), folder).startswith(
        f"{kind} was not unpacked (5 problems):"
    )


@pytest.mark.parametrize("kind", ["x.zip", "x.tar", "x.tgz"])
def test_an_empty_archive_is_refused(archive, folder, kind):
    assert "it is empty" in refused(archive({}, kind), folder)


def test_nothing_has_that_many_files(archive, folder, monkeypatch):
    monkeypatch.setattr(safe, "MOST", 2)
    for kind in ("x.zip", "x.tgz"):
        assert "it has more than 2 members: no product has" in refused(archive(GOOD, kind), folder)
        with pytest.raises(Rejected, match="more than 2 members"):
            safe.check_archive(archive(GOOD, kind))


def test_a_size_that_cannot_be_is_refused(archive, folder):
    said = refused(archive(declared(zipped({"X.SAFE/a": b"a"}), 3 << 30)), folder)
    assert "it would unpack to 3,221,225,472 bytes; from its size no more than 1,073,741,824 are believable" in said


def test_far_more_than_its_size_is_refused_and_a_little_more_is_not(archive, folder, monkeypatch):
    monkeypatch.setattr(safe, "HARMLESS", 1000)
    monkeypatch.setattr(safe, "RATIO", 10)
    assert "it would unpack to 100,000 bytes" in refused(archive({"X.SAFE/a": bytes(100_000)}), folder)
    safe.unpack(archive({"X.SAFE/a": bytes(1000), "X.SAFE/b": random.Random(1).randbytes(10_000)}), folder)


def test_no_archive_may_be_larger_than_the_largest(archive, folder, monkeypatch):
    monkeypatch.setattr(safe, "LARGEST", 1000)
    assert "no more than 1,000 are believable" in refused(archive({"X.SAFE/a": bytes(1001)}), folder)


def test_the_same_bytes_many_times_are_a_bomb_too(archive, folder, monkeypatch):
    """Each member believable for itself, all of them on top of each other in the archive."""
    monkeypatch.setattr(safe, "HARMLESS", 1000)
    monkeypatch.setattr(safe, "RATIO", 2000)
    content = zipped({"X/aa": bytes(1_000_000)})
    directory, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    entry = content[directory:end]
    entries = b"".join(entry.replace(b"X/aa", f"X/{n}".encode()) for n in range(10, 99))
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 89, 89, len(entries), directory, 0)
    assert "it would unpack to 89,000,000 bytes" in refused(archive(content[:directory] + entries + tail), folder)


def test_more_than_declared_is_not_written(archive, folder):
    content = declared(zipped({"X.SAFE/a": bytes(1_000_000)}), 10)
    assert "not a whole zip file (Bad CRC-32" in refused(archive(content), folder)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_leaves_nothing(archive, folder, method):
    content = zipped(GOOD | {"X.SAFE/z": random.Random(1).randbytes(5000)}, method)
    said = refused(archive(flipped(content, content.rindex(b"PK\3\4") + 3000)), folder)
    assert "not a whole zip file (" in said and "X.SAFE/z" in said


def test_a_truncated_archive_leaves_nothing(archive, folder):
    content = zipped(GOOD)
    for end in range(0, len(content), 20):
        assert "not a whole zip file" in refused(archive(content[:end]), folder)


def test_an_encrypted_archive_is_refused(archive, folder):
    content = zipped({"X.SAFE/a": b"1"})
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content = flipped(content, content.index(signature) + flags)
    assert "password required" in refused(archive(content), folder)


def test_a_disk_without_room_is_noticed_before_anything_is_written(archive, folder, monkeypatch):
    monkeypatch.setattr(safe.shutil, "disk_usage", lambda path: SimpleNamespace(free=1004))
    assert refused(archive(GOOD), folder) == "x.zip needs 0 MB unpacked, the disk has 0 MB"
    monkeypatch.setattr(safe.shutil, "disk_usage", lambda path: SimpleNamespace(free=1005))
    safe.unpack(archive(GOOD), folder)


def test_what_the_disk_refuses_leaves_nothing(archive, folder):
    said = refused(archive(GOOD | {"X.SAFE/" + "n" * 300: b""}), folder)
    assert said == "x.zip cannot be read, or not unpacked: File name too long"


def test_a_file_in_the_way_is_not_taken_for_the_product(archive, folder):
    path = archive({"x.zip/a": b"1"})
    with pytest.raises(Rejected, match="is in the way"):
        safe.unpack(path, path.parent)
    assert [path.name for path in path.parent.iterdir()] == ["x.zip"]


@pytest.mark.parametrize("seed", range(8))
def test_damaged_anyhow_it_is_whole_or_refused(archive, folder, seed):
    """Bits, bytes and lengths changed at random, mostly in the headers."""
    rng, outcomes = random.Random(seed), []
    whole = zipped(GOOD | {"X.SAFE/d": rng.randbytes(300)}, rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    for n in range(60):
        content = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 5])):
            at = rng.choice([rng.randrange(len(content)), rng.randrange(len(content) - 400, len(content) - 10)])
            match rng.randrange(3):
                case 0:
                    content[at] ^= 1 << rng.randrange(8)
                case 1:
                    content[at : at + 4] = rng.choice([b"\xff" * 4, bytes(4), rng.randbytes(4)])
                case 2:
                    del content[at : at + rng.choice([1, 4])]
        path = archive(bytes(content))
        try:
            root = safe.unpack(path, folder / str(n))
            outcomes.append(True)
            assert [path.name for path in root.parent.iterdir()] == [root.name]
        except Rejected:
            outcomes.append(False)
            assert tree(folder / str(n)) == {}
    assert set(outcomes) == {True, False}
    assert {path.name for path in folder.parents[1].iterdir()} == {"in", "above"}
    assert list(folder.parent.iterdir()) == [folder]


# --- tar files ---

TARS = [("x.tar", "w"), ("x.tar.gz", "w:gz"), ("x.tgz", "w:gz"), ("X.TAR.GZ", "w:gz")]


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, to: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, to
    return info


@pytest.mark.parametrize(
    ("name", "expected"),
    [(name, True) for name, _ in TARS]
    + [("a.zip", True), ("a.SAFE.ZIP", True), ("a.SAFE", False), ("a.nc", False), ("tar", False), ("a.gz", False)],
)
def test_archives_are_known_by_their_names(name, expected):
    assert safe.is_archive(name) is expected


@pytest.mark.parametrize(("name", "mode"), TARS)
def test_a_tar_file_is_checked_and_unpacked_like_a_zip_file(archive, folder, name, mode):
    path = archive(tarred(GOOD, mode), name)
    safe.check_archive(path)
    assert [safe.unpack(path, folder) for _ in range(2)] == [folder / "X.SAFE"] * 2
    assert tree(folder) == GOOD
    assert [found.name for found in folder.iterdir()] == ["X.SAFE"]


def test_an_unfinished_download_is_checked_as_what_it_will_be(archive):
    safe.check_archive(archive(tarred(GOOD, "w:gz"), "x.tar.gz.part"))
    with pytest.raises(Rejected, match="not a whole tar file"):
        safe.check_archive(archive(zipped(GOOD), "x.tgz.part"))


def test_compressed_or_not_is_seen_and_not_believed(archive, folder):
    assert safe.unpack(archive(tarred(GOOD, "w:gz"), "x.tar"), folder / "1").name == "X.SAFE"
    assert safe.unpack(archive(tarred(GOOD), "x.tgz"), folder / "2").name == "X.SAFE"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_keeps_long_and_foreign_names(archive, folder, form, monkeypatch):
    monkeypatch.setattr(tarfile.TarFile, "format", form)
    long = {f"X.SAFE/{'g' * 60}/{'h' * 70}/größe.jp2": b"1"}
    safe.unpack(archive(tarred(GOOD | long), "x.tar"), folder)
    assert tree(folder) == GOOD | long


@pytest.mark.parametrize("what", [".", "X.SAFE"])
def test_what_the_tar_program_makes_is_unpacked(tmp_path, folder, what):
    source = tmp_path / "source"
    for name, content in GOOD.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    subprocess.run(["tar", "-czf", str(tmp_path / "x.tgz"), "-C", str(source), what], check=True)
    assert safe.unpack(tmp_path / "x.tgz", folder) == folder / "X.SAFE"
    assert tree(folder) == GOOD


def test_a_tar_file_without_one_folder_at_its_root_gets_one(archive, folder):
    root = safe.unpack(archive({"a": b"1", "b/c": b"2"}, "S1A_x.SAFE.tar.gz"), folder)
    assert root == folder / "S1A_x.SAFE" and tree(root) == {"a": b"1", "b/c": b"2"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("to", ["../../x", "X.SAFE/c", "/etc/passwd"])
def test_links_in_a_tar_file_are_refused(archive, folder, kind, to):
    members = [*GOOD.items(), (member("X.SAFE/link", kind, to=to), b"")]
    assert "'X.SAFE/link' is a link" in refused(archive(tarred(members), "x.tar"), folder)


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE])
def test_what_is_no_file_is_refused(archive, folder, kind):
    members = [*GOOD.items(), (member("X.SAFE/null", kind), b"")]
    assert "'X.SAFE/null' is a special file" in refused(archive(tarred(members), "x.tar"), folder)


def test_nobody_gets_more_rights_from_a_tar_file(archive, folder):
    info = member("X.SAFE/run")
    info.mode, info.uid, info.uname = 0o6777, 0, "root"
    safe.unpack(archive(tarred([(info, b"#!/bin/sh")]), "x.tar"), folder)
    assert (folder / "X.SAFE/run").stat().st_mode & 0o7022 == 0


def test_a_tar_bomb_is_not_even_decompressed(archive, folder):
    large = member("X.SAFE/zeros", size=1 << 40)
    path = archive(tarfile_begin(large), "x.tgz")
    said = "it would unpack to 1,099,511,627,776 bytes; from its size no more than 1,073,741,824 are believable"
    assert said in refused(path, folder)
    with pytest.raises(Rejected, match="it would unpack to"):
        safe.check_archive(path)


@pytest.mark.parametrize("size", [-512, -1024, -(1 << 40)])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_member_that_leads_back_is_refused(archive, folder, size, kind):
    header = bytearray(member("X.SAFE/back", kind).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = size.to_bytes(12, signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content = tarred(GOOD)[: 512 * 7] + bytes(header) + tarred({"X.SAFE/z": b""})
    assert "not a whole tar file" in refused(archive(content, "x.tar"), folder)


def tarfile_begin(info: tarfile.TarInfo) -> bytes:
    """The header of one member, and less content than it tells; compressed."""
    return gzip.compress(info.tobuf() + bytes(1 << 20))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
@pytest.mark.parametrize("pack", [gzip.compress, bytes])
def test_a_name_of_a_gigabyte_is_not_held_in_memory(archive, folder, kind, pack):
    content = pack(member("././@Long", kind, size=1 << 30).tobuf() + bytes(1 << 20))
    tracemalloc.start()
    said = refused(archive(content, "x.tar"), folder)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "not a whole tar file (a header of 1,073,741,824 bytes)" in said and most < 50 << 20


def test_a_tar_file_that_goes_on_after_its_end_is_refused(archive, folder):
    assert "not a whole tar file (damaged at" in refused(archive(tarred(GOOD) + b"more", "x.tar"), folder)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_truncated_tar_file_leaves_nothing(archive, folder, mode):
    content = tarred(GOOD, mode)
    whole = len(content) if mode == "w:gz" else content.rindex(b"c") + 512  # then come zeros
    for end in range(0, whole, 20):
        assert "not a whole tar file" in refused(archive(content[:end], "x.tar"), folder)
        with pytest.raises(Rejected, match="not a whole tar file"):
            safe.check_archive(archive(content[:end], "x.tar"))


@pytest.mark.parametrize("at", [0, 100, 120, 156])
def test_a_damaged_header_is_not_taken_for_the_end(archive, folder, at):
    content = tarred(GOOD)
    damaged = flipped(content, content.index(b"X.SAFE/c") + at)
    assert "not a whole tar file" in refused(archive(damaged, "x.tar"), folder)


def test_damage_anywhere_in_a_compressed_tar_file_is_found(archive, folder):
    content = tarred(GOOD | {"X.SAFE/z": random.Random(1).randbytes(3000)}, "w:gz")
    for at in range(10, len(content), 97):
        path = archive(flipped(content, at), "x.tgz")
        assert "not a whole tar file" in refused(path, folder)
        with pytest.raises(Rejected, match="not a whole tar file"):
            safe.check_archive(path)


@pytest.mark.parametrize("seed", range(4))
def test_a_tar_file_damaged_anyhow_is_whole_or_refused(archive, folder, seed):
    rng, outcomes = random.Random(seed), []
    whole = tarred(GOOD | {f"X.SAFE/{'d' * 150}": rng.randbytes(300)})
    headers = [n for n in range(0, len(whole), 512) if whole[n + 257 : n + 262] == b"ustar"]
    for n in range(150):
        content = bytearray(whole)
        at = rng.choice([rng.randrange(len(content)), rng.choice(headers) + rng.randrange(512)])
        content[at : at + 4] = rng.choice([b"\xff" * 4, bytes(4), rng.randbytes(4), b"7777"])
        if rng.random() < 0.5:  # and a checksum that fits
            start = at // 512 * 512
            content[start + 148 : start + 156] = b" " * 8
            content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
        try:
            root = safe.unpack(archive(bytes(content), "x.tar"), folder / str(n))
            outcomes.append(True)
            assert [path.name for path in root.parent.iterdir()] == [root.name]
        except Rejected:
            outcomes.append(False)
            assert tree(folder / str(n)) == {}
    assert set(outcomes) == {True, False}
    assert {path.name for path in folder.parents[1].iterdir()} == {"in", "above"}


# --- products ---


@pytest.fixture(scope="module")
def products(tmp_path_factory) -> dict[str, Path]:
    """The sandbox's products, unpacked. Not to be changed."""
    folder, roots = tmp_path_factory.mktemp("products"), {}
    for name, suffix in ((GRD, ".zip"), (L1C, ".tar"), (L2A, ".tgz"), (EFR, ".tar.gz")):
        (folder / f"{name}{suffix}").write_bytes(safe_archive(name, 60, suffix))
        roots[name] = safe.unpack(folder / f"{name}{suffix}", folder)
    return roots


@pytest.mark.parametrize("name", [GRD, L1C, L2A, EFR])
def test_a_product_agrees_with_its_manifest(products, name):
    root = products[name]
    assert (
        root.name == f"{name}.{'SEN3' if name == EFR else 'SAFE'}"
        and safe.is_product(root)
        and safe.root_of(root) == root
    )
    listed = {one.path for one in safe.members(root)}
    assert listed <= set(tree(root)) and len(listed) >= 10
    assert all(one.checksum and one.size > 0 for one in safe.members(root))
    assert safe.verify(root) == []


@pytest.mark.parametrize("name", [GRD, L1C, L2A, EFR])
def test_a_product_lies_where_its_name_says(products, name):
    place = safe.footprint(products[name])
    (ring,), (wanted,) = place["coordinates"], product_footprint(name)["coordinates"]
    assert place["type"] == "Polygon" and ring[0] == ring[-1]
    for axis in (0, 1):
        for end in (min, max):
            found, expected = (end(point[axis] for point in corners) for corners in (ring, wanted))
            assert found == pytest.approx(expected, abs=0.2)
    if name.startswith("S2"):  # tile 48LWP is in Indonesia's sea
        assert all(104.9 < lon < 106.1 and -11.1 < lat < -9.9 for lon, lat in ring)


@pytest.mark.parametrize(
    ("name", "picture"),
    [(GRD, "measurement/*-grd-vv-*.tiff"), (L1C, "GRANULE/*/QI_DATA/*PVI*.jp2"), (L2A, "GRANULE/*/QI_DATA/*PVI*.jp2")],
)
def test_a_product_has_a_picture(products, name, picture):
    assert safe.picture(products[name]) in products[name].glob(picture)


def test_a_product_without_such_a_picture_has_none(products):
    assert safe.picture(products[EFR]) is None


@pytest.mark.parametrize(
    ("name", "short"), [(GRD, GRD[:32]), (L2A, "S2A_MSIL2A_20210713T032051_T48LWP"), (EFR, EFR[:31])]
)
def test_short_names_tell_products_apart(name, short):
    assert safe.short_name(name) == short


def test_the_contents_are_counted_by_kind(products):
    rows = {row["kind"]: row for row in safe.contents(products[GRD])}
    files = tree(products[GRD])
    assert rows[".tiff"]["files"] == 2 and rows[".tiff"]["such as"].endswith(".tiff")
    assert sum(row["files"] for row in rows.values()) == len(files)
    assert sum(row["bytes"] for row in rows.values()) == sum(map(len, files.values()))


def test_the_contents_of_a_single_file_are_itself(tmp_path):
    (tmp_path / "noend").write_bytes(b"12345")
    assert safe.contents(tmp_path / "noend") == [{"kind": "-", "files": 1, "bytes": 5, "such as": "noend"}]


# --- manifests ---


def manifest(files: dict[str, bytes], algorithm: str = "MD5", footprint: str = "") -> bytes:
    """A small manifest of these files, in the namespaces that real ones have."""
    digest = {"MD5": hashlib.md5, "SHA3-256": hashlib.sha3_256, "SHA-256": hashlib.sha256}.get(algorithm, hashlib.md5)
    streams = "".join(
        f'<dataObject ID="d{n}"><byteStream mimeType="text/xml" size="{len(content)}">'
        f'<fileLocation locatorType="URL" href="{path}"/>'
        f'<checksum checksumName="{algorithm}">{digest(content).hexdigest().upper()}</checksum>'
        "</byteStream></dataObject>"
        for n, (path, content) in enumerate(files.items())
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><xfdu:XFDU xmlns:xfdu="urn:ccsds:schema:xfdu:1"'
        ' xmlns:gml="http://www.opengis.net/gml" xmlns:safe="http://www.esa.int/safe/sentinel-1.0"'
        ' xmlns:sentinel-safe="http://www.esa.int/safe/sentinel/1.1">'
        f"<metadataSection>{footprint}</metadataSection><dataObjectSection>{streams}</dataObjectSection></xfdu:XFDU>"
    ).encode()


FILES = {"./a.xml": b"<a/>", "./b/c.tiff": bytes(5000), "d.nc": b"d"}


@pytest.fixture
def product(tmp_path):
    """A small product on disk: ``product(manifest)``; its root."""

    def write(content: bytes, name: str = "manifest.safe") -> Path:
        root = tmp_path / "P.SAFE"
        for path, body in {**FILES, name: content}.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(body)
        return root

    return write


@pytest.mark.parametrize("algorithm", ["MD5", "md5", "SHA3-256", "SHA-256"])
@pytest.mark.parametrize("name", safe.MANIFESTS)
def test_each_kind_of_manifest_and_of_checksum_is_understood(product, algorithm, name):
    root = product(manifest(FILES, algorithm.upper()).replace(algorithm.upper().encode(), algorithm.encode()), name)
    assert safe.is_product(root) and safe.verify(root) == []
    assert [(one.path, one.size) for one in safe.members(root)] == [("a.xml", 4), ("b/c.tiff", 5000), ("d.nc", 1)]
    (root / "b/c.tiff").write_bytes(bytes(4999) + b"1")
    assert safe.verify(root) == [f"b/c.tiff: other content ({algorithm})"]


def test_every_difference_is_told(product):
    root = product(manifest(FILES))
    (root / "a.xml").unlink()
    (root / "b/c.tiff").write_bytes(bytes(1200))
    (root / "d.nc").write_bytes(b"D")
    (root / "more.txt").write_text("more than listed is no difference")
    assert safe.verify(root) == [
        "a.xml: missing",
        "b/c.tiff: 1,200 bytes instead of 5,000",
        "d.nc: other content (MD5)",
    ]


def test_a_folder_in_place_of_a_file_is_a_missing_file(product):
    root = product(manifest(FILES))
    (root / "a.xml").unlink()
    (root / "a.xml").mkdir()
    assert safe.verify(root) == ["a.xml: missing"]


def test_what_cannot_be_checked_is_not_called_good(product):
    assert safe.verify(product(manifest({"d.nc": b"d"}, "CRC-9"))) == [
        "d.nc: not checked: its checksum is of a kind unknown here (CRC-9)"
    ]


def test_without_checksums_and_sizes_the_files_must_be_there(product):
    bare = (
        b'<x><byteStream><fileLocation href="d.nc"/></byteStream><byteStream><fileLocation href="e"/></byteStream></x>'
    )
    assert safe.listed(bare)[0] == safe.Member("d.nc", -1, "", "")
    assert safe.verify(product(bare)) == ["e: missing"]


def test_content_within_the_manifest_is_no_file():
    assert safe.listed(b'<x><byteStream size="3"><fileContent>abc</fileContent></byteStream></x>') == []


@pytest.mark.parametrize("path", ["../outside.txt", "/etc/hostname", "a/../../outside.txt"])
def test_files_outside_of_the_product_are_not_looked_at(product, path):
    root = product(manifest({path: b"outside"}))
    (root.parent / "outside.txt").write_bytes(b"outside")
    assert safe.verify(root) == [f"{path}: not in the product's folder"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>Please log in.",
        manifest(FILES)[:-100],
        b"\xff\xfe\x00",
        b'<!DOCTYPE x [<!ENTITY a "aaaa">]><x>&a;</x>',
        b'<x><byteStream size="many"><fileLocation href="a"/></byteStream></x>',
        b'<x><byteStream size="1"><fileLocation/></byteStream></x>',
        b'<?xml version="1.0" encoding="no-such"?><x/>',
    ],
)
def test_a_manifest_that_cannot_be_read_is_explained(product, content):
    for look in (safe.members, safe.verify):
        with pytest.raises(Rejected, match="manifest"):
            look(product(content))
    with pytest.raises(Rejected, match="manifest"):
        safe.footprint(product(content))


def test_a_manifest_that_lists_nothing_verifies_nothing(product):
    with pytest.raises(Rejected, match=r"P\.SAFE: its manifest lists no file"):
        safe.verify(product(manifest({})))


def test_without_a_manifest_it_is_no_product(tmp_path):
    assert not safe.is_product(tmp_path)
    for look in (safe.members, safe.verify, safe.footprint):
        with pytest.raises(Rejected, match=r"has no manifest \(manifest\.safe or xfdumanifest\.xml\)"):
            look(tmp_path)


# --- where it lies ---

S1 = "<safe:frame><safe:footPrint><gml:coordinates>{}</gml:coordinates></safe:footPrint></safe:frame>"
S3 = "<sentinel-safe:footPrint><gml:posList>{}</gml:posList></sentinel-safe:footPrint>"
RING = [[34.5, -19.25], [32.25, -18.5], [32.5, -17.0], [34.5, -19.25]]


@pytest.mark.parametrize(
    "text",
    [
        S1.format("-19.25,34.5 -18.5,32.25 -17.0,32.5"),
        S1.format("-19.25,34.5 -18.5,32.25 -17,32.5 -19.25,34.5"),
        S1.format("\n   -19.25 34.5 -18.5 32.25\n -17.0 32.5 -19.25 34.5 "),
        S3.format("-19.25 34.5 -18.5 32.25 -1.7e1 32.5 -19.25 34.5"),
        S3.format("-19.25 34.5 -18.5 32.25 -17.0 32.5"),
    ],
)
def test_every_way_of_writing_a_footprint_is_understood(product, text):
    assert safe.footprint(product(manifest(FILES, footprint=text))) == {"type": "Polygon", "coordinates": [RING]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        S1.format(""),
        S1.format("1,2 3,4"),
        S1.format("1,2 3,4 5,6 7"),
        S1.format("1,2 3,4 here,there"),
        S1.format("1,2 3,4 nan,5"),
        S1.format("1,2 3,4 91,5"),
        S3.format("1 2 3 4 5 181"),
    ],
)
def test_a_footprint_that_is_none_is_explained(product, text):
    with pytest.raises(Rejected, match=r"P\.SAFE has no footprint in its manifest"):
        safe.footprint(product(manifest(FILES, footprint=text)))


# --- which product, which picture ---


def test_the_product_is_found_at_any_depth(product):
    root = product(manifest(FILES))
    assert safe.root_of(root) == safe.root_of(root.parent) == root
    root.parent.joinpath("a/b").mkdir(parents=True)
    deep = root.rename(root.parent / "a" / "b" / "P.SAFE")
    assert safe.root_of(root.parent) == deep


def test_no_product_and_two_products_are_explained(tmp_path):
    with pytest.raises(Rejected, match="found: none"):
        safe.root_of(tmp_path)
    for name in ("A.SAFE/manifest.safe", "B.SEN3/xfdumanifest.xml"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(Rejected, match=r"found: A\.SAFE, B\.SEN3"):
        safe.root_of(tmp_path)


def test_unfinished_products_do_not_count(product):
    root = product(manifest(FILES))
    left = root.parent / ".Q.SAFE.part" / "Q.SAFE"
    left.mkdir(parents=True)
    (left / "manifest.safe").touch()
    assert safe.root_of(root.parent) == root


@pytest.mark.parametrize(
    ("files", "best"),
    [
        (["GRANULE/G/QI_DATA/T_PVI.jp2", "GRANULE/G/IMG_DATA/T_TCI.jp2"], "GRANULE/G/QI_DATA/T_PVI.jp2"),
        (["GRANULE/G/IMG_DATA/T_B02.jp2", "GRANULE/G/IMG_DATA/T_TCI.jp2"], "GRANULE/G/IMG_DATA/T_TCI.jp2"),
        (["measurement/s1a-iw-grd-vh-x.tiff", "measurement/s1a-iw-grd-vv-x.tiff"], "measurement/s1a-iw-grd-vv-x.tiff"),
        (["measurement/s1a-ew-grd-hh-x.tiff", "measurement/s1a-ew-grd-hv-x.tiff"], "measurement/s1a-ew-grd-hh-x.tiff"),
        (["measurement/s1a-iw1-slc-vv-x.tiff"], None),  # complex numbers of one sub-swath
        (["Oa01_radiance.nc"], None),
        ([], None),
    ],
)
def test_the_best_picture_is_chosen(tmp_path, files, best):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert safe.picture(tmp_path) == (best and tmp_path / best)
