"""Which release this program was installed as, where it was, and whether its host takes others from the coordinator."""

import platform
import sys
from pathlib import Path

from ostler.node.updates import UpdatePlaces

RELEASES = "releases"
UNIT = Path("/etc/systemd/system/ostler-update.path")
DROP = Path("/var/lib/ostler/update")


def _home() -> Path | None:
    """The directory of the release whose Python this is (`…/releases/ID/…`), or None for any other installation."""
    place = Path(sys.prefix).resolve()
    return next((one for one in (place, *place.parents) if one.parent.name == RELEASES), None)


def own_release() -> str | None:
    """The id of the release that this program is."""
    home = _home()
    return None if home is None else home.name


def update_places() -> UpdatePlaces | None:
    """Where releases are asked for; None where no unit of root's would look."""
    home = _home()
    if home is None or not UNIT.exists():
        return None
    return UpdatePlaces(drop=DROP, published=home.parent.parent / "update.json", releases=home.parent)


def own_platform() -> str:
    """This host's, as releases name them (`cp311-x86_64`): a release's Python is the system's."""
    return f"cp{sys.version_info.major}{sys.version_info.minor}-{platform.machine()}"
