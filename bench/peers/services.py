"""Own instances of Redis and PostgreSQL for one turn: a free port on loopback, data in the turn's directory, ended with the turn."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from driver import Contestant, until


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def redis(one: Contestant, appendfsync: str) -> tuple[subprocess.Popen[bytes], str]:
    """A server with an append-only file, synced each second (`everysec`) or before each answer (`always`); its process and URL."""
    port = free_port()
    argv = [os.environ["BENCH_REDIS_SERVER"], "--port", port, "--bind", "127.0.0.1", "--dir", one.place, "--save", ""]
    process = one.spawn([*map(str, argv), "--appendonly", "yes", "--appendfsync", appendfsync])
    until(lambda: answers(port), "redis-server")
    return process, f"redis://127.0.0.1:{port}"


def postgres(one: Contestant) -> tuple[subprocess.Popen[bytes], str]:
    """A server with fsync and synchronous_commit on, 256 MB of shared buffers; its process and DSN."""
    binaries, data, port = Path(os.environ["BENCH_POSTGRES_BIN"]), one.place / "pg", free_port()
    data.mkdir()
    as_user: list[str] = []
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        user = next(name for name in ("nobody", "postgres") if has_user(name))
        shutil.chown(data, user)
        as_user = ["setpriv", f"--reuid={user}", "--clear-groups"]
    made = subprocess.run(
        [*as_user, binaries / "initdb", "-D", data, "-A", "trust", "-U", "bench", "--no-instructions"],
        capture_output=True,
        check=False,
        cwd="/",
    )
    if made.returncode:
        sys.exit(f"initdb: {made.stderr.decode().strip()}")
    settings = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "shared_buffers": "256MB",
        "max_connections": "100",
    }
    more = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    process = one.spawn([*as_user, binaries / "postgres", "-D", data, "-p", str(port), *more], cwd="/")
    ready = [binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
    until(lambda: subprocess.run(ready, check=False).returncode == 0, "postgres", 180, 0.05)
    return process, f"postgresql://bench@127.0.0.1:{port}/postgres"


def has_user(name: str) -> bool:
    """Whether this machine knows that user."""
    return any(line.startswith(f"{name}:") for line in Path("/etc/passwd").read_text().splitlines())


def version_of(program: str | Path) -> str:
    """Its own words."""
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout.split(" sha=")[0].strip()
