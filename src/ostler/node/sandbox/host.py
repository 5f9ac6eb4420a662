"""What plans need to know of the host: what makes its sandboxes, how its root is laid out, and the files made for sandboxes.

It is observed once when the daemon starts, so that building a plan touches no file.
"""

import os
import platform
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ostler.node.sandbox import etc, seccomp

# Programs and libraries; /nix and /gnu are where NixOS and Guix keep theirs.
_PROGRAM_PLACES = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store")
_SEARCH = "/usr/local/bin:/usr/bin:/bin"
_WRITES = 0o222
_OWN = Path(__file__).with_name("_enter")  # built from `_enter.c` where a compiler was


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The host as plans see it.

    `places` are directories that sandboxes see read-only; `links` are (name, target) of top-level symbolic links;
    `kernel` is what lies in /proc beside the processes and can be written to or holds what can;
    `etc` is the directory shown as /etc and `seccomp` the file with the filter (None on an architecture without one),
    both made by `observe`. `own` is this release's own program in the place of bwrap, None where it was not built or does not
    work here.
    """

    bwrap: str | None
    bwrap_version: tuple[int, ...] = ()
    places: tuple[str, ...] = ("/usr",)
    links: tuple[tuple[str, str], ...] = ()
    kernel: tuple[str, ...] = ()
    etc: str | None = None
    seccomp: str | None = None
    resolv_conf: str | None = None
    own: str | None = None

    @property
    def wrapper(self) -> str | None:
        """The program that makes a sandbox of level bwrap."""
        return self.own or self.bwrap


def look(state: Path, *, root: Path = Path("/"), search: str = _SEARCH, uids: tuple[int, ...] = ()) -> Host:
    """Look at the host and make the files that sandboxes need under `state` (created, 0711; safe to call again).

    `uids` are users beside the caller and nobody whose names a sandbox shall know. `search` is where bwrap is looked
    for: fixed, since the first thing in a job's path must not become the node's jailer.
    """
    state.mkdir(mode=0o711, parents=True, exist_ok=True)
    bwrap = shutil.which("bwrap", path=search)
    places = [place for place in _PROGRAM_PLACES if (root / place[1:]).is_dir()]
    links = [(place, str((root / place[1:]).readlink())) for place in places if (root / place[1:]).is_symlink()]
    linked = {name for name, _ in links}
    resolv = root / "etc/resolv.conf"
    return Host(
        bwrap=bwrap,
        bwrap_version=version_of(bwrap) if bwrap else (),
        places=tuple(place for place in places if place not in linked),
        links=tuple(links),
        kernel=tuple(_kernel(root)),
        etc=str(etc.make(state, root=root, uids=(os.getuid(), *uids))),
        seccomp=str(seccomp.write_filter(state / "seccomp.bpf")) if platform.machine() in seccomp.MACHINES else None,
        resolv_conf=str(resolv.resolve()) if resolv.exists() else None,
        own=_copied(_OWN, state / "ostler-sandbox") if os.access(_OWN, os.X_OK) else None,
    )


def _kernel(root: Path) -> Iterator[str]:
    for path in sorted((root / "proc").glob("[!0-9]*")):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode) or (stat.S_ISREG(mode) and mode & _WRITES):
            yield f"/proc/{path.name}"


def _copied(program: Path, target: Path) -> str:
    """Beside the other files of sandboxes: there every user that a job may run as can reach it, where an installation may lie anywhere."""
    if not target.is_file() or target.read_bytes() != program.read_bytes():
        handle, fresh = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(program.read_bytes())
        Path(fresh).chmod(0o755)
        Path(fresh).replace(target)
    return str(target)


def version_of(bwrap: str) -> tuple[int, ...]:
    """The version of bwrap as numbers; empty where it does not say."""
    try:
        done = subprocess.run([bwrap, "--version"], capture_output=True, text=True, timeout=2, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return parse_version(done.stdout)


def parse_version(text: str) -> tuple[int, ...]:
    """`bubblewrap 0.8.0` as (0, 8, 0)."""
    found = re.search(r"(\d+(?:\.\d+)+)", text)
    return tuple(int(part) for part in found[1].split(".")) if found else ()
