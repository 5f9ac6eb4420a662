"""A word about the newest update that everybody on the host may read: the daemon tells the coordinator of it."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from ostler.fleet.host.places import Places, read_json, write


def publish(places: Places, update: Mapping[str, Any], stage: str, reason: str | None) -> None:
    """How an update stands. A word only: a full disk must not keep a host from going back."""
    said = {"update_id": update.get("update_id"), "release": update.get("release"), "stage": stage, "reason": reason}
    if said == read_json(places.published):
        return
    with contextlib.suppress(OSError):
        write(places.published, json.dumps(said).encode() + b"\n", mode=0o644)
