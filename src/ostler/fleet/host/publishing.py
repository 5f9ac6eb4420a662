"""A word about the newest update that the daemon may read, and tells the coordinator of."""

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any

from ostler.fleet.host import accounts
from ostler.fleet.host.places import Places, read_json, write

MAX_DETAIL = 6000


def publish(places: Places, update: Mapping[str, Any], stage: str, reason: str | None, detail: str | None = None) -> None:
    """How an update stands; `detail` is what its unit wrote, which not everybody may read. A word only: a full disk must not keep a host
    from going back.
    """
    said = {
        "update_id": update.get("update_id"), "release": update.get("release"), "stage": stage, "reason": reason,
        "detail": detail and detail[-MAX_DETAIL:],
    }  # fmt: skip
    if said == read_json(places.published):
        return
    with contextlib.suppress(OSError):
        write(places.published, json.dumps(said).encode() + b"\n", mode=0o640)
        if (user := accounts.identity()) is not None:
            os.chown(places.published, 0, user[1])
