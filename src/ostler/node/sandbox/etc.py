"""The /etc that sandboxes see: a directory made from the host's, with what programs need to run and no secret.

One directory is one mount; binding a dozen files one by one would cost each job a millisecond.
"""

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

# Looked up by the dynamic loader, libc, OpenSSL, Debian's alternatives, fontconfig, and language runtimes whose
# distribution keeps part of them here. Patterns; what is not world-readable is never taken.
_TAKEN = (
    "ld.so.cache",
    "ld.so.conf",
    "localtime",
    "timezone",
    "os-release",
    "debian_version",
    "services",
    "protocols",
    "mime.types",
    "host.conf",
    "gai.conf",
    "locale.alias",
    "magic",
    "magic.mime",
    "alternatives",
    "fonts",
    "ssl/certs",
    "ssl/openssl.cnf",
    "pki/tls/certs",
    "pki/tls/openssl.cnf",
    "pki/ca-trust/extracted",
    "crypto-policies",
    "OpenCL",
    "vulkan",
    "glvnd",
    "ImageMagick-*",
    "java-*",
    "python3*",
    "perl",
    "R",
    "texmf",
)
_KEPT = 4  # older versions may still be mounted by running attempts

_HOSTS = "127.0.0.1 localhost\n::1 localhost\n"
_NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n"


def make(state: Path, *, root: Path = Path("/"), uids: Iterable[int] = ()) -> Path:
    """The directory to show as /etc, under `state`; made anew only when the host's files have changed."""
    source = root / "etc"
    accounts = _accounts(uids)
    wanted = {path: look for path in sorted(set(_sources(source))) if (look := _look(path)) is not None}
    # A new boot makes it anew: a crash may have left files of ours empty, and syncing hundreds would be slow.
    boot = root / "proc/sys/kernel/random/boot_id"
    facts = (accounts, boot.read_text() if boot.exists() else "", [(str(path), look) for path, look in wanted.items()])
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()
    made = state / f"etc-{digest[:16]}"
    if not made.is_dir():
        fresh = Path(tempfile.mkdtemp(dir=state, prefix=".etc-"))
        try:
            _fill(fresh, source, wanted, accounts)
            fresh.rename(made)
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            if not made.is_dir():  # else another daemon of this node was faster
                raise
    _prune(state, made)
    return made


def _accounts(uids: Iterable[int]) -> tuple[str, str]:
    names = {0: "root", 65534: "nobody"} | {uid: f"job{uid}" for uid in uids if uid not in (0, 65534)}
    passwd = "".join(f"{name}:x:{uid}:{uid}:{name}:/tmp:/bin/sh\n" for uid, name in sorted(names.items()))
    group = "".join(f"{name}:x:{uid}:\n" for uid, name in sorted(names.items()))
    return passwd, group


def _sources(source: Path) -> Iterator[Path]:
    """Every file and link to take; directories are walked, and links inside them are taken as links."""
    for pattern in _TAKEN:
        for path in source.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                yield from (entry for entry in path.rglob("*") if entry.is_symlink() or _readable(entry))
            elif path.is_symlink() or _readable(path):
                yield path


def _readable(path: Path) -> bool:
    """A regular file that every user of the host may read."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) and bool(mode & stat.S_IROTH)


def _look(path: Path) -> tuple[object, ...] | None:
    """What tells a version of a file from another; None where it has gone since (packages may be upgraded meanwhile)."""
    try:
        info = path.lstat()
        return (info.st_mode, info.st_size, info.st_mtime_ns, str(path.readlink()) if path.is_symlink() else "")
    except OSError:
        return None


def _fill(fresh: Path, source: Path, wanted: Iterable[Path], accounts: tuple[str, str]) -> None:
    for path in wanted:
        target = fresh / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError, PermissionError):  # as above; the next start sees the new one
            if not path.is_symlink():
                shutil.copyfile(path, target)
            elif path.parent != source or str(path.resolve()).startswith("/usr/"):
                target.symlink_to(path.readlink())
            elif _readable(path.resolve()):  # a link out of what the sandbox shows
                shutil.copyfile(path, target)
    written = {
        "passwd": accounts[0],
        "group": accounts[1],
        "hosts": _HOSTS,
        "nsswitch.conf": _NSSWITCH,
        "resolv.conf": "",
    }
    for name, text in written.items():
        (fresh / name).write_text(text)
    for folder, _, files in os.walk(fresh):
        Path(folder).chmod(0o755)
        for name in files:
            if not Path(folder, name).is_symlink():
                Path(folder, name).chmod(0o644)


def _prune(state: Path, made: Path) -> None:
    os.utime(made)
    versions = sorted(state.glob("etc-*"), key=lambda path: path.lstat().st_mtime, reverse=True)
    for old in versions[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
