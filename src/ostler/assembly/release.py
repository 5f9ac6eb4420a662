"""Which release this program was installed as, where it was."""

import sys
from pathlib import Path

RELEASES = "releases"


def own_release() -> str | None:
    """The id of the release whose Python this is (`…/releases/ID/…`), or None for any other installation."""
    place = Path(sys.prefix).resolve()
    for folder in (place, *place.parents):
        if folder.parent.name == RELEASES:
            return folder.name
    return None
