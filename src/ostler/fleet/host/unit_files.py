"""The unit files of an installation: whether they stand as they were written, start with the host, and what else changes them."""

import os
import stat
from pathlib import Path

from ostler.fleet.host.places import FIREWALL_UNIT, UNIT_FILES, Places

WANTS = "multi-user.target.wants"
MODE = 0o644
_CHANGES = tuple(
    f"{place}/systemd/{kind}"
    for place, kind in (
        ("etc", "system.control"), ("run", "system.control"), ("etc", "system"), ("run", "system"), ("usr/local/lib", "system"),
        ("usr/lib", "system"),
    )
)  # fmt: skip
_ALL_OF_US = "ostler-.service.d"  # systemd looks there for each unit whose name begins so (source: systemd.unit(5))


def is_plain(path: Path, *, mode: int = MODE) -> bool:
    """Whether it is a file of this mode and of whoever asks, and not a link."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) == mode and found.st_uid == os.geteuid()


def is_as_written(path: Path, content: bytes, *, mode: int = MODE) -> bool:
    """The same, with this content."""
    return is_plain(path, mode=mode) and path.read_bytes() == content


def starts_at_boot(places: Places, unit: str) -> bool:
    """Whether there is the link that `systemctl enable` makes; one to elsewhere, such as /dev/null, is none."""
    link = places.units / WANTS / unit
    return link.is_symlink() and os.path.normpath(link.parent / link.readlink()) == str(places.units / unit)


def drop_ins(places: Places, unit: str) -> list[str]:
    """The files of others that change a unit."""
    folders = (f"{unit}.d", *([_ALL_OF_US] if unit.endswith(".service") else []))
    found = (file for place in _CHANGES for folder in folders for file in (places.root / place / folder).glob("*.conf"))
    return sorted(f"/{one.relative_to(places.root)}" for one in found)


def all_drop_ins(places: Places) -> list[str]:
    """Those of all units."""
    return sorted({one for unit in (*UNIT_FILES, FIREWALL_UNIT) for one in drop_ins(places, unit)})
