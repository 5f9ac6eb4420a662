"""Where things are on a host. Everything below `root`, so that tests need no real one."""

import hashlib
import json
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NODE_UNIT, KEEPER_UNIT, WATCH_UNIT = "ostler-node.service", "ostler-keeper.service", "ostler-watch.service"
FIREWALL_UNIT = "ostler-firewall.service"
UNITS = (NODE_UNIT, KEEPER_UNIT)
UPDATE_PATH, UPDATE_UNIT = "ostler-update.path", "ostler-update.service"
LATER_UNITS = (UPDATE_PATH, UPDATE_UNIT)  # that releases of before did not have: a way back to one takes them away
UNIT_FILES = (*UNITS, WATCH_UNIT, *LATER_UNITS)
AT_BOOT = (*UNITS, UPDATE_PATH)  # and the watcher, while an update is open
PROGRAM = "host.pyz"
APPLICATION = "ostler"
PACKAGES = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


@dataclass(frozen=True, slots=True)
class Places:
    """The paths of an installation."""

    root: Path = Path("/")

    @property
    def ostler(self) -> Path:
        """Releases and the link to the one in force; root's."""
        return self.root / "opt/ostler"

    @property
    def releases(self) -> Path:
        """One directory for each, never changed once it has its name."""
        return self.ostler / "releases"

    @property
    def current(self) -> Path:
        """The link that units refer to."""
        return self.ostler / "current"

    @property
    def units(self) -> Path:
        """Where unit files are installed."""
        return self.root / "etc/systemd/system"

    @property
    def config(self) -> Path:
        """The node's configuration."""
        return self.root / "etc/ostler/node.yaml"

    @property
    def allowlist(self) -> Path:
        """What jobs may execute."""
        return self.root / "etc/ostler/allowlist.d"

    def entries(self) -> list[Path]:
        """Its files."""
        return sorted(one for pattern in ("*.yaml", "*.yml") for one in self.allowlist.glob(pattern) if one.is_file())

    @property
    def rules(self) -> Path:
        """Who may reach the health port, for nft."""
        return self.root / "etc/ostler/firewall.nft"

    @property
    def permits(self) -> Path:
        """What polkit permits the node's user."""
        return self.root / "etc/polkit-1/rules.d/50-ostler-services.rules"

    @property
    def permitted(self) -> Path:
        """The same as it was written last; there is none where nothing is permitted."""
        return self.updates / "permits.applied"

    @property
    def state(self) -> Path:
        """What belongs to the node's own user: key, journal, workspaces."""
        return self.root / "var/lib/ostler"

    @property
    def key(self) -> Path:
        """The node's own key, which it gets when it is enrolled."""
        return self.state / "node/node.key"

    @property
    def logs(self) -> Path:
        """For a node whose configuration wants its log in a file."""
        return self.root / "var/log/ostler"

    @property
    def updates(self) -> Path:
        """What updates write down; root's alone, 0700."""
        return self.root / "var/lib/ostler-update"

    @property
    def program(self) -> Path:
        """The host program as the watcher runs it."""
        return self.updates / "host.pyz"

    @property
    def floor(self) -> Path:
        """How old a release may be that the daemon asks for."""
        return self.updates / "floor.json"

    @property
    def published(self) -> Path:
        """How the newest update stands, for everybody to read."""
        return self.ostler / "update.json"

    @property
    def drop(self) -> Path:
        """Where the daemon, and whoever has taken it over, puts what it asks for."""
        return self.state / "update"

    @property
    def keys(self) -> Path:
        """The release keys that this host trusts."""
        return self.updates / "release-keys.json"

    def compiled(self, release: str) -> Path:
        """What byte code was made when this release was installed."""
        return self.updates / "compiled" / f"{release}.json"

    def reads(self, release: str) -> Path:
        """Which configuration this release has read."""
        return self.updates / "reads" / f"{release}.json"

    @property
    def start_due(self) -> Path:
        """There while a host is made a node, and afterwards where that was cut off; with the id of the release in force where that
        was brought anew, and its daemon was not started since."""
        return self.updates / "start.due"

    @property
    def lock(self) -> Path:
        """Who deploys."""
        return self.updates / "lock.json"

    @property
    def update(self) -> Path:
        """The open update; there is none where it is missing."""
        return self.updates / "update.json"

    @property
    def last(self) -> Path:
        """How the update before ended."""
        return self.updates / "last.json"

    @property
    def kept(self) -> Path:
        """The configuration that was in force before the open update, or the last one."""
        return self.updates / "config.before"

    @property
    def kept_files(self) -> Path:
        """What stood beside it: content by path, null for what was not there."""
        return self.updates / "files.before"

    @property
    def before(self) -> Path:
        """Where both are files again, for the release of before to look at."""
        return self.updates / "before"

    @property
    def trial(self) -> Path:
        """A configuration that a release is asked about, before it is anybody's."""
        return self.updates / "trial.yaml"

    @property
    def applied(self) -> Path:
        """The configuration that the last switch or installation put in force."""
        return self.updates / "config.applied"

    @property
    def door(self) -> Path:
        """The daemon's socket for its own user and root."""
        return self.state / "node/daemon.sock"

    def release(self, name: str) -> Path:
        """One release's directory; raises ValueError for what is no release's name."""
        if not name or name.startswith(".") or not all(char.isascii() and (char.isalnum() or char in ".-_+") for char in name):
            raise ValueError(f"{name!r} is not the id of a release")
        return self.releases / name

    def in_force(self) -> str | None:
        """The id of the release that `current` refers to."""
        try:
            return self.current.readlink().name
        except OSError:
            return None


def own_platform() -> str:
    """This host's, as releases name them: `cp311-x86_64`."""
    return f"cp{sys.version_info.major}{sys.version_info.minor}-{os.uname().machine}"


def digest(path: Path) -> str | None:
    """A file's sha256, also where a link leads to it; of a device or a queue, which is not read, that of nothing. None where there is
    none, or a directory."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            return None if stat.S_ISDIR(mode) else hashlib.sha256().hexdigest()
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
    finally:
        os.close(descriptor)


def shown(name: str) -> str:
    """A file's name as text that any reader takes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def read_json(path: Path) -> dict[str, Any] | None:
    """What stands in a file; None where there is none, or what a crash left of it."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a file whole, on the disk before this returns."""
    write(path, json.dumps(value, sort_keys=True).encode() + b"\n", mode=0o600)


def write(path: Path, content: bytes, *, mode: int) -> None:
    """Replace a file whole by another one, on the disk before this returns."""
    fresh = half(path)
    fresh.unlink(missing_ok=True)  # it may be somebody else's
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    fresh.replace(path)
    sync(path.parent)


def half(path: Path) -> Path:
    """Where something is written before it takes this path; what a crash may leave."""
    return path.with_name(f".{path.name}.new")


def point(link: Path, target: str) -> None:
    """Make a symbolic link refer to `target`, in one step that is on the disk before this returns."""
    fresh = half(link)
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)
    sync(link.parent)


def sync(directory: Path) -> None:
    """Bring a directory's entries to the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
