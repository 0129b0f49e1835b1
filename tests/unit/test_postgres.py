"""The private PostgreSQL: made once and then unpacked, never as root, and gone with the process that started it."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from helpers import checking
from helpers.errors import FailedRemotely, NotConfigured
from helpers.sandbox import guard, postgres

pytestmark = pytest.mark.skipif(not postgres.usable(), reason=f"no PostGIS: {postgres.how_to_install()}")


@pytest.fixture
def cache(catalog_cluster, tmp_path) -> Path:
    """A cache folder of the test's own, with the cluster of the others in it."""
    (archive,) = [path for path in catalog_cluster.cache.glob(f"*-l{postgres.LAYOUT}.tar.gz") if _current(path)]
    (tmp_path / "cache").mkdir()
    shutil.copy(archive, tmp_path / "cache")
    return tmp_path / "cache"


def _current(archive: Path) -> bool:
    return archive.name == postgres._archive_name(postgres.usable())


def version(dsn: str) -> str:
    with psycopg.connect(dsn) as connection:
        return connection.execute("SELECT pgstac.get_version()").fetchone()[0]


def processes(mark: str) -> list[int]:
    """The processes of this machine whose command line holds ``mark``."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found += [int(folder.name)] if mark.encode() in (folder / "cmdline").read_bytes() else []
        except OSError:  # gone meanwhile
            continue
    return found


def eventually(what, seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(what())


def test_a_cluster_is_made_once_and_then_comes_out_of_the_cache(tmp_path):
    with postgres.Cluster(cache_folder=tmp_path / "cache") as first:
        assert not first.from_cache
        assert version(first.dsn) == "0.10.0"
    began = time.monotonic()
    with postgres.Cluster(cache_folder=tmp_path / "cache") as second:
        assert time.monotonic() - began < 5  # 0.8 s; generous, for a busy machine
        assert second.from_cache
        assert version(second.dsn) == "0.10.0"
        assert not first._folder.exists()
    assert not second._folder.exists()
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".gz", ".lock"}


@pytest.mark.parametrize("damage", ["flipped", "not an archive", "files missing"])
def test_a_broken_cache_is_thrown_away_and_made_anew(cache, monkeypatch, damage):
    (archive,) = cache.glob("*.gz")
    whole = archive.read_bytes()
    if damage == "files missing":
        subprocess.run(["tar", "-czf", archive, "-T", "/dev/null"], check=True)
    else:
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :]
        archive.write_bytes({"flipped": flipped, "not an archive": b"?"}[damage])
    # Making one takes seconds, and is another test's matter.
    monkeypatch.setattr(postgres, "_build", lambda binaries, archive: archive.write_bytes(whole))
    with postgres.Cluster(cache_folder=cache) as cluster:
        assert version(cluster.dsn) == "0.10.0"
        assert not cluster.from_cache
    assert archive.read_bytes() == whole


def test_root_drops_its_privileges(catalog_cluster):
    pid = int((catalog_cluster._folder / "data/postmaster.pid").read_text().split()[0])
    owner = Path(f"/proc/{pid}").stat().st_uid
    assert owner != 0
    assert os.geteuid() in (0, owner)
    assert (catalog_cluster._folder / "data").stat().st_uid == owner


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
def test_root_without_anybody_to_become_is_told(monkeypatch):
    monkeypatch.setattr(pwd, "getpwnam", {}.__getitem__)
    with pytest.raises(NotConfigured, match="neither a user postgres nor nobody"):
        postgres._user()


def test_it_listens_on_the_loopback_only_and_asks_for_the_password(catalog_cluster):
    with psycopg.connect(catalog_cluster.dsn) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("127.0.0.1",)
    wrong = catalog_cluster.dsn.replace(catalog_cluster._password, "wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong)
    assert catalog_cluster._folder.stat().st_mode & 0o077 == 0


def test_reset_empties_the_catalogue_and_cuts_who_is_connected(catalog_cluster):
    with psycopg.connect(catalog_cluster.dsn, autocommit=True) as left_open:
        left_open.execute("CREATE TABLE mine ()")
        began = time.monotonic()
        catalog_cluster.reset()
        assert time.monotonic() - began < 3  # 0.1 s
        with pytest.raises(psycopg.OperationalError):
            left_open.execute("SELECT 1")
    with psycopg.connect(catalog_cluster.dsn, autocommit=True) as connection:
        assert connection.execute("SELECT to_regclass('mine')").fetchone() == (None,)
        catalog_cluster.reset()
        connection.execute("SELECT 1")  # nothing was there to be emptied


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_a_killed_parent_leaves_nothing(cache):
    lines = [
        "import os, sys, time; from pathlib import Path",
        "from helpers.sandbox import postgres",
        f"cluster = postgres.Cluster(cache_folder=Path({str(cache)!r})).start()",
        # A forked child holds every pipe of ours open, and lives longer.
        "if not (child := os.fork()): time.sleep(60); os._exit(0)",
        "print(child, cluster._folder, flush=True); time.sleep(60)",
    ]
    parent = subprocess.Popen([sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE, text=True)
    child, folder = parent.stdout.readline().split()
    assert len(processes(folder)) >= 2  # the server, and its guard
    parent.kill()
    parent.wait()
    parent.stdout.close()
    try:
        assert eventually(lambda: not processes(folder) and not Path(folder).exists())
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_a_server_that_cannot_start_says_why(cache, monkeypatch):
    monkeypatch.setitem(postgres.SETTINGS, "shared_buffers", "nonsense")
    with pytest.raises(Exception, match="shared_buffers"):
        postgres._build(postgres.usable(), cache / "x.tar.gz")
    assert not (cache / "x.tar.gz").exists()


def test_the_guard_ends_a_program_that_does_not_listen(tmp_path):
    folder, ready = tmp_path / "data", tmp_path / "ready"
    folder.mkdir()
    program = "from pathlib import Path; import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    program += f"Path({str(ready)!r}).touch(); time.sleep(60)"
    stubborn = guard.start([sys.executable, "-I", "-S", "-c", program], folder, patience=0.3)
    assert eventually(ready.exists)
    assert not guard.ended(stubborn)
    guard.stop(stubborn)
    assert not folder.exists()
    assert not processes(str(ready))


def test_a_home_that_cannot_be_written_to_only_costs_the_cache(monkeypatch, cache):
    whole = next(cache.glob("*.gz")).read_bytes()
    monkeypatch.setattr(postgres, "_build", lambda binaries, archive: archive.write_bytes(whole))
    with postgres.Cluster(cache_folder=Path("/proc/none")) as cluster:
        assert version(cluster.dsn) == "0.10.0"
        assert Path(cluster._no_cache.name).exists()
    assert not Path(cluster._no_cache.name).exists()


def test_a_machine_without_postgis_is_told_the_command(monkeypatch):
    monkeypatch.setattr(postgres, "usable", lambda: None)
    with pytest.raises(NotConfigured, match="Install it: "):
        postgres.Cluster().start()


def test_a_postgresql_with_postgis_is_preferred_to_a_newer_one_without(tmp_path, monkeypatch):
    for version, postgis in {"15.4": "3.3.2", "17.1": "3.5.0", "18.0": "", "12.1": "3.0.0"}.items():
        folder, share = tmp_path / version / "bin", tmp_path / version / "share"
        folder.mkdir(parents=True)
        (share / "extension").mkdir(parents=True)
        if postgis:
            (share / "extension/postgis.control").write_text(f"default_version = '{postgis}'\n")
        for name in ("initdb", "postgres", "pg_config"):
            (folder / name).write_text(f"#!/bin/sh\necho 'PostgreSQL {version}'; echo '{share}'\n")
            (folder / name).chmod(0o755)
    monkeypatch.setattr(postgres, "_folders", lambda: sorted(tmp_path.glob("*/bin")))
    found = postgres.find.__wrapped__()
    assert (found.version, found.postgis) == ("17.1", "3.5.0")


def test_a_port_that_somebody_has_is_no_reason_to_throw_the_cache_away(catalog_cluster, cache):
    with pytest.raises(FailedRemotely, match="TCP/IP"):
        postgres.Cluster(port=catalog_cluster.port, cache_folder=cache).start()
    assert list(cache.glob("*.gz"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs it as somebody else")
def test_roots_own_temporary_folder_is_not_used(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir(mode=0o700)
    monkeypatch.setattr(postgres.tempfile, "tempdir", str(tmp_path / "mine"))
    folder = postgres._new_folder()
    folder.rmdir()
    assert folder.parent == Path("/tmp")


def test_check_says_whether_it_is_here(monkeypatch):
    assert checking._database()[0] == "ok"
    monkeypatch.setattr(postgres, "find", lambda: postgres.Binaries(Path("/x"), "17.1", ""))
    state, _, detail = checking._database()
    assert state == "note" and "17.1, but no PostGIS" in detail and "embedded store" in detail
    monkeypatch.setattr(postgres, "find", lambda: None)
    assert "install" in checking._database()[2]
