"""A private PostgreSQL with PostGIS and pgstac: from whatever binaries this machine has, gone with this process.

Migrating pgstac takes seconds, and nothing of it changes: the finished cluster is packed into the cache folder, and
unpacked for every later start.
"""

import fcntl
import os
import pwd
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from ..errors import FailedRemotely, NotConfigured, TimedOut
from . import guard

#: Changes when what is in the archive changes: an older one is not used then.
LAYOUT = 3
TEMPLATE, DATABASE, USER = "pgstac_template", "catalog", "sandbox"
#: Seconds until the server answers, at most; 0.2 are usual.
PATIENCE = 60.0
#: Oldest PostgreSQL that pgstac runs on.
OLDEST = (13,)
#: How PostGIS comes to a machine, by what the machine has.
INSTALL = {
    "apt-get": "apt-get install postgresql-postgis",
    "brew": "brew install postgis",
    "conda": "conda install -c conda-forge postgresql postgis",
}
#: For a database that nobody needs tomorrow: nothing waits for a disk, and the smallest files.
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "300",  # of a class as well
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "1GB",
    "autovacuum_naptime": "10s",
    "shared_buffers": "128MB",
    "work_mem": "16MB",
    "jit": "off",  # compiles for longer than such queries take
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "error",
    "log_min_error_statement": "panic",  # statements hold the user's data
}
#: While the archive is made: no more of the log than one must keep.
SMALL = ("-c", "min_wal_size=2MB", "-c", "max_wal_size=2MB")
#: Who may come in: by the socket only whoever may enter the server's own folder, over the network with the password.
ACCESS = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"


@dataclass(frozen=True)
class Binaries:
    """The programs of one PostgreSQL."""

    folder: Path
    version: str  #: such as "15.18"
    postgis: str  #: version of its PostGIS; "" without


@cache
def find() -> Binaries | None:
    """The newest PostgreSQL of this machine that has PostGIS; without one, the newest that has not; else None."""
    found = [binaries for folder in _folders() if (binaries := _look(folder))]
    return max(found, key=lambda b: (bool(b.postgis), _number(b.version)), default=None)


def usable() -> Binaries | None:
    """The PostgreSQL with PostGIS to use, if there is one."""
    found = find()
    return found if found and found.postgis else None


def how_to_install() -> str:
    """The one command that brings PostgreSQL with PostGIS to this machine."""
    if (Path(sys.prefix) / "conda-meta").is_dir():
        return INSTALL["conda"]
    sudo = "" if os.geteuid() == 0 else "sudo "
    return next(
        (sudo * (tool == "apt-get") + INSTALL[tool] for tool in ("apt-get", "brew") if shutil.which(tool)),
        INSTALL["conda"],
    )


def _folders() -> Iterator[Path]:
    prefixes = [sys.prefix, os.environ.get("CONDA_PREFIX", "")]
    folders = [Path(prefix, "bin") for prefix in prefixes if prefix]
    folders += [Path(entry) for entry in os.get_exec_path()]
    for pattern in (
        "usr/lib/postgresql/*/bin",  # Debian
        "usr/pgsql-*/bin",  # Red Hat
        "opt/homebrew/opt/postgresql*/bin",
        "usr/local/opt/postgresql*/bin",
    ):
        folders += sorted(Path("/").glob(pattern))
    yield from dict.fromkeys(folder.resolve() for folder in folders if os.access(folder / "initdb", os.X_OK))


def _look(folder: Path) -> Binaries | None:
    """What is in ``folder``; None when it does not run, or is too old."""
    try:
        asked = [folder / "pg_config", "--version", "--sharedir"]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    version, shared = answer.splitlines()[:2]
    if not os.access(folder / "postgres", os.X_OK) or _number(version) < OLDEST:
        return None
    with suppress(OSError):
        control = Path(shared, "extension", "postgis.control").read_text()
        if found := re.search(r"default_version\s*=\s*'([^']+)'", control):
            return Binaries(folder, version.split()[1], found[1])
    return Binaries(folder, version.split()[1], "")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


class Cluster:
    """One PostgreSQL server with databases made from a pgstac template. Use :meth:`start`; or as a context manager.

    Parameters
    ----------
    port:
        To listen on, at 127.0.0.1; a free one by default.
    cache_folder:
        Where the migrated cluster is kept; by default ``eo-cloud-recipes`` in the user's cache folder.
    """

    def __init__(self, port: int | None = None, cache_folder: Path | None = None):
        self._reserved: socket.socket | None = None if port else _reserve()
        self.port = port or self._reserved.getsockname()[1]
        self.cache = cache_folder or default_cache()
        self.from_cache = False  #: whether the cluster came out of the cache
        self._password = secrets.token_urlsafe(24)
        self._guard: subprocess.Popen | None = None
        self._no_cache: tempfile.TemporaryDirectory | None = None
        self._folder: Path
        self._log: Any

    @property
    def dsn(self) -> str:
        """How to connect to the catalogue; known before the server runs. Holds a password."""
        return self.dsn_of(DATABASE)

    def dsn_of(self, database: str) -> str:
        """How to connect to another database of this server."""
        return f"postgresql://{USER}:{self._password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> Self:
        """Start the server, with an empty catalogue; ready when this returns.

        Raises
        ------
        NotConfigured
            There is no PostgreSQL with PostGIS on this machine, or the user it has to run as cannot run it.
        FailedRemotely, TimedOut
            The server ends at once, with its last words; or does not answer.
        """
        try:
            if not (binaries := usable()):
                raise NotConfigured(f"This machine has no PostgreSQL with PostGIS. Install it: {how_to_install()}")
            self._start_from(binaries, self._folder_to_cache_in() / _archive_name(binaries))
        except BaseException:
            self.stop()
            raise
        return self

    def _folder_to_cache_in(self) -> Path:
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            if os.access(self.cache, os.W_OK):
                return self.cache
        except OSError:
            pass
        self._no_cache = tempfile.TemporaryDirectory(prefix="eo-catalog-")  # a home that is not ours to write to
        return Path(self._no_cache.name)

    def _start_from(self, binaries: Binaries, archive: Path) -> None:
        for attempt in (1, 2):
            with _only_one(archive):
                self.from_cache = archive.exists()
                if not self.from_cache:
                    _build(binaries, archive)
            try:
                self._start(binaries, archive)
                return
            except (OSError, EOFError, zlib.error, tarfile.TarError, FailedRemotely) as error:
                self._end()
                if "TCP/IP" in str(error):  # somebody else has the port
                    raise
                archive.unlink(missing_ok=True)  # broken, by a full disk for example
                if attempt == 2 or not self.from_cache:
                    raise

    def _start(self, binaries: Binaries, archive: Path) -> None:
        self._folder = folder = _new_folder()
        try:
            with tarfile.open(archive) as packed:
                packed.extractall(folder, filter=_as_it_was)  # noqa: S202, the filter is stricter than "data"
                while packed.fileobj.read(65536):
                    pass  # to the end, where the checksum is: a wrong byte may unpack well
            _hand_over(folder)
            self._run(binaries, folder)
        except BaseException:
            if not self._guard:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        with self._inside("postgres") as connection:
            connection.execute(f"ALTER ROLE {USER} PASSWORD '{self._password}'")
        self.create(DATABASE)
        self._at_first = self._relations()

    def _run(self, binaries: Binaries, folder: Path, *options: str) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, outlives the folder: it tells why a start failed
        if self._reserved:
            self._reserved.close()
            self._reserved = None
        command = [binaries.folder / "postgres", "-D", folder / "data", "-k", folder, "-p", self.port, *options]
        self._guard = guard.start(command, folder, _user(), stderr=self._log, cwd="/", env=_environment())
        end = time.monotonic() + PATIENCE
        while True:
            try:
                with self._inside("postgres"):
                    return
            except _operational_error():
                if guard.ended(self._guard):
                    raise FailedRemotely(f"PostgreSQL ended at its start: {_last_words(self._log)}") from None
                if time.monotonic() > end:
                    raise TimedOut(f"PostgreSQL does not answer: {_last_words(self._log)}") from None
                time.sleep(0.02)

    def _inside(self, database: str) -> Any:
        """A connection through the server's own folder, which needs no password; a context that closes it."""
        import psycopg

        return closing(
            psycopg.connect(host=str(self._folder), port=self.port, user=USER, dbname=database, autocommit=True)
        )

    def create(self, database: str) -> str:
        """Make an empty catalogue of that name (a plain word), 0.2 s; returns how to connect to it."""
        with self._inside("postgres") as connection:
            connection.execute(f'CREATE DATABASE "{_plain(database)}" TEMPLATE {TEMPLATE}')
        return self.dsn_of(database)

    def drop(self, database: str) -> None:
        """Remove a database, whoever is connected to it."""
        with self._inside("postgres") as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{_plain(database)}" WITH (FORCE)')

    def reset(self) -> None:
        """An empty catalogue again; open connections to it are cut, unless nobody has made anything in it."""
        if self._relations() != self._at_first:
            self.drop(DATABASE)
            self.create(DATABASE)
            self._at_first = self._relations()

    def _relations(self) -> int:
        """How many tables and the like the catalogue has; each collection adds some."""
        with self._inside(DATABASE) as connection:
            return connection.execute("SELECT count(*) FROM pg_class").fetchone()[0]

    def stop(self) -> None:
        """End the server and remove its data. Safe to call twice."""
        if self._reserved:
            self._reserved.close()
            self._reserved = None
        self._end()
        if self._no_cache:
            self._no_cache.cleanup()

    def _end(self) -> None:
        if self._guard:
            guard.stop(self._guard)
            self._guard = None
            self._log.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _plain(name: str) -> str:
    if not re.fullmatch(r"\w{1,60}", name):
        raise ValueError(f"not a plain name of a database: {name!r}")
    return name


# --- the migrated cluster ---


def default_cache() -> Path:
    """The folder for what can be made anew."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eo-cloud-recipes"


def _archive_name(binaries: Binaries) -> str:
    from pypgstac.version import __version__ as pgstac

    # The files are those of one build of PostgreSQL: another machine may share the cache folder.
    parts = (binaries.version, binaries.postgis, pgstac, os.uname().sysname, os.uname().machine, f"l{LAYOUT}")
    return re.sub(r"[^\w.-]", "_", f"pgstac-{'-'.join(parts)}.tar.gz")


@contextmanager
def _only_one(archive: Path) -> Iterator[None]:
    """Only one process at a time builds an archive; the others wait, and find it."""
    with archive.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(binaries: Binaries, archive: Path) -> None:
    """Make a cluster with a migrated template, and pack it."""
    cluster = Cluster(cache_folder=archive.parent)
    cluster._folder = folder = _new_folder()
    watch = guard.start([], folder)
    try:
        _hand_over(folder)
        _initialise(binaries, folder / "data")
        cluster._run(binaries, folder, *SMALL)
        with cluster._inside("postgres") as connection:
            connection.execute(f"CREATE DATABASE {TEMPLATE}")
            for superfluous in ("template0", "template1"):  # half of all files
                connection.execute(f"ALTER DATABASE {superfluous} IS_TEMPLATE false")
                connection.execute(f"DROP DATABASE {superfluous}")
        _migrate(f"host={folder} port={cluster.port} user={USER} dbname={TEMPLATE}")
        _end_cleanly(cluster, folder)
        with tempfile.NamedTemporaryFile(dir=archive.parent, delete=False) as part:
            try:
                with tarfile.open(fileobj=part, mode="w:gz", compresslevel=1, format=tarfile.GNU_FORMAT) as packed:
                    packed.add(folder / "data", "data")
                part.close()
                Path(part.name).replace(archive)  # whole, or not at all
            except BaseException:
                Path(part.name).unlink(missing_ok=True)
                raise
    finally:
        cluster.stop()
        guard.stop(watch)


def _initialise(binaries: Binaries, data: Path) -> None:
    options = {"--pgdata": data, "--username": USER, "--encoding": "UTF8", "--locale": "C", "--wal-segsize": 1}
    command = [binaries.folder / "initdb", "--no-sync", "--auth=trust", *(str(x) for o in options.items() for x in o)]
    who = dict(zip(("user", "group"), _user(), strict=False))
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd="/", env=_environment(), timeout=PATIENCE, **who
        )
    except PermissionError:
        raise NotConfigured(
            f"PostgreSQL does not run as root, and no other user may run the one in {binaries.folder}."
            " Do not be root, or install it where everybody may run it."
        ) from None
    if done.returncode:
        raise FailedRemotely(f"PostgreSQL's initdb failed: {done.stderr.strip()}")
    settings = dict(SETTINGS)
    shown = subprocess.run([binaries.folder / "pg_config", "--configure"], capture_output=True, text=True).stdout
    if "--with-lz4" in shown:  # half as fast again to load items, and they are larger than a page
        settings["default_toast_compression"] = "lz4"
    with (data / "postgresql.conf").open("a") as conf:
        conf.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
    (data / "pg_hba.conf").write_text(ACCESS)


def _migrate(dsn: str) -> None:
    import logging

    from pypgstac.db import PgstacDB
    from pypgstac.migrate import Migrate

    logging.getLogger("pypgstac").setLevel(logging.WARNING)
    with PgstacDB(dsn=dsn) as database:
        pool = database.get_pool()
        Migrate(database).run_migration()
    pool.close()


def _end_cleanly(cluster: Cluster, folder: Path) -> None:
    """End the server but keep its files, which are complete then."""
    os.kill(int((folder / "data" / "postmaster.pid").read_text().split()[0]), guard.SIGNALS[0])
    end = time.monotonic() + PATIENCE
    while not guard.ended(cluster._guard):
        if time.monotonic() > end:
            raise TimedOut("PostgreSQL does not end.")
        time.sleep(0.02)


# --- the machine ---


def _user() -> tuple[int, ...]:
    """Numbers of the user and group to run PostgreSQL as, which refuses root; none for anybody else."""
    if os.geteuid():
        return ()
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            user = pwd.getpwnam(name)
            return user.pw_uid, user.pw_gid
    raise NotConfigured("PostgreSQL does not run as root, and there is neither a user postgres nor nobody.")


def _new_folder() -> Path:
    usual = Path(tempfile.gettempdir())
    # Root's own may be closed to the user that the server runs as; and a socket's path has 100 characters at most.
    closed = _user() and not all(folder.stat().st_mode & 0o001 for folder in (usual, *usual.parents))
    elsewhere = "/tmp" if closed or len(str(usual)) > 60 else None  # noqa: S108 - in a new folder of its own
    return Path(tempfile.mkdtemp(prefix="eo-catalog-", dir=elsewhere))


def _hand_over(folder: Path) -> None:
    """Give everything in ``folder`` to the user that the server runs as."""
    if who := _user():
        for path, _, files in folder.walk():
            for name in (path, *(path / file for file in files)):
                os.chown(name, *who, follow_symlinks=False)


def _as_it_was(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
    """What tarfile holds for safe, with the modes that PostgreSQL insists on."""
    safe = tarfile.data_filter(member, path)
    return safe and safe.replace(mode=0o700 if member.isdir() else 0o600, deep=False)


def _environment() -> dict[str, str]:
    """Of this process's environment, what a server needs: it must not know any credentials, nor libpq's variables."""
    return {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ} | {"LC_ALL": "C"}


def _reserve() -> socket.socket:
    """A port that nobody else gets, and where nobody answers yet."""
    reserved = socket.socket()
    reserved.bind(("127.0.0.1", 0))
    return reserved


def _last_words(log: Any) -> str:
    log.seek(0)
    return " / ".join(log.read().decode(errors="replace").strip().splitlines()[-3:]) or "no reason given"


def _operational_error() -> type[Exception]:
    import psycopg

    return psycopg.OperationalError
