"""The node of this host gets a new key: its own program makes it and has it accepted, and the daemon is started anew with it.

Whatever is cut off leaves a key on the disk that the coordinator knows; asked again, it goes on.
"""

import json
import subprocess
import time
from typing import Any

from ostler.fleet.host import accounts, daemon, setting_up, systemd
from ostler.fleet.host.places import NODE_UNIT, Places
from ostler.fleet.host.refusals import Refused

ASK_S = 60.0
LOOK_S = 0.5
_SAID = 400


def rotate(places: Places, *, wait_s: float) -> dict[str, Any]:
    """A new key, proven by a session within `wait_s`; answers the keys' ids. Raises Refused."""
    setting_up.require(places)
    with setting_up.alone(places):
        if not places.key.exists():
            raise Refused("missing", "this host was never enrolled: run `ostler fleet install` first")
        said = _ask(places)
        if said["proven"]:  # by a try before this one, which had no time to hear of it
            return said
        systemd.act("restart", NODE_UNIT)
        until = time.monotonic() + wait_s
        while not (_is_in_session(places) and (said := _ask(places))["proven"]):
            if time.monotonic() > until:
                why = f"the new key is not proven after {wait_s:.0f} s; both are good, and the next try goes on from here"
                raise Refused("unit", why, details=systemd.journal(NODE_UNIT))
            time.sleep(LOOK_S)
    return said


def _is_in_session(places: Places) -> bool:
    return bool((daemon.ask(places.door, "GET", "/healthz") or {}).get("session"))


def _ask(places: Places) -> dict[str, Any]:
    """The node's own program, as its own user."""
    uid, gid = accounts.identity() or (0, 0)
    argv = [str(places.current / "bin/ostler"), "node", "rotate-key", "--config", str(places.config), "--json"]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=ASK_S, check=False, stdin=subprocess.DEVNULL, user=uid,
            group=gid, extra_groups=[], umask=0o077, cwd="/", env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"},
        )  # fmt: skip
        if done.returncode == 2:
            raise Refused("unfit", f"release {places.in_force()} replaces no keys: run `ostler fleet update` first")
        if done.returncode:
            raise Refused("unit", f"the key was not replaced: {done.stderr.strip()[-_SAID:] or f'exit code {done.returncode}'}")
        said = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as exc:
        raise Refused("unit", f"the key was not replaced: {exc}") from None
    return {name: said[name] for name in ("node_id", "key_id", "previous", "proven")}
