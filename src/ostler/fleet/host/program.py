"""The host program's verbs: what an updater asks of a host, each answered by one JSON object on standard output.

Every verb may be cut off anywhere and asked again. Exit codes: 0 done, 1 refused (`{"error": code, "message": …}`), 2 wrong usage.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ostler.fleet.host import (
    facts,
    firewall,
    installing,
    lock,
    rekeying,
    serving,
    setting_up,
    switching,
    systemd,
    taking,
    wholeness,
)
from ostler.fleet.host.places import NODE_UNIT, Places, read_json
from ostler.fleet.host.refusals import Refused
from ostler.fleet.host.told import Told

Answer = dict[str, Any]
LOOK_S = 0.2


def _facts(places: Places, given: argparse.Namespace) -> Answer:
    return facts.gather(places, switching.read_services(given.services), with_config=given.with_config, thorough=given.thorough)


def _lock(places: Places, given: argparse.Namespace) -> Answer:
    return lock.take(places, rollout=given.rollout, owner=given.owner, message=given.message)


def _beat(places: Places, given: argparse.Namespace) -> Answer:
    lock.beat(places, given.rollout)
    return {}


def _unlock(places: Places, given: argparse.Namespace) -> Answer:
    lock.release(places, given.rollout)
    return {}


def _break_lock(places: Places, given: argparse.Namespace) -> Answer:
    return {"broken": lock.break_(places, why=given.why, owner=given.owner)}


def _install(places: Places, given: argparse.Namespace) -> Answer:
    if given.bundle == "-":
        return installing.install(places, sys.stdin.buffer, digest=given.digest)
    with open(given.bundle, "rb") as bundle:  # noqa: PTH123
        return installing.install(places, bundle, digest=given.digest)


def _altered(places: Places, given: argparse.Namespace) -> Answer:
    return {"altered": wholeness.altered(places.release(given.release))}


def _prune(places: Places, given: argparse.Namespace) -> Answer:
    return installing.prune(places, given.keep)


def _set_up(places: Places, given: argparse.Namespace) -> Answer:
    told = Told.read(sys.stdin.buffer.read())
    return setting_up.set_up(places, given.release, told, wait_s=given.wait)


def _uninstall(places: Places, given: argparse.Namespace) -> Answer:
    return setting_up.uninstall(places, keep_state=given.keep_state, end_jobs=given.end_jobs)


def _firewall(places: Places, given: argparse.Namespace) -> Answer:
    if given.remove:
        return firewall.open_again(places)
    return firewall.close(places, port=given.port, ssh_port=given.ssh_port, rules=sys.stdin.read())


def _rotate_key(places: Places, given: argparse.Namespace) -> Answer:
    return rekeying.rotate(places, wait_s=given.wait)


def _switch(places: Places, given: argparse.Namespace) -> Answer:
    return switching.switch(
        places,
        rollout=given.rollout,
        release=given.release,
        window_s=given.window,
        program=Path(sys.argv[0]).read_bytes(),
        told=Told.read(sys.stdin.buffer.read()) if given.told == "-" else Told(),
    )


def _observe(places: Places, given: argparse.Namespace) -> Answer:
    """How the update of this rollout stands; it tells the lock that the rollout lives. It waits until that is not what was seen before."""
    with contextlib.suppress(Refused):
        lock.beat(places, given.rollout)
    until = time.monotonic() + given.wait
    while (answer := _standing(places))["seen"] == given.seen and time.monotonic() < until:
        time.sleep(LOOK_S)
    return answer


def _standing(places: Places) -> Answer:
    update = read_json(places.update)
    if update is None:
        update = read_json(places.last) or {"update_id": None, "state": "missing", "reason": "there is no update on this host"}
    answer: Answer = {name: update.get(name) for name in ("update_id", "release", "previous", "state", "reason", "resumed")}
    answer["journal"] = update.get("journal")
    return answer | {"seen": f"{answer['update_id']} {answer['state']} {answer['resumed']}"}


def _go_back(places: Places, given: argparse.Namespace) -> Answer:
    return switching.go_back(places, given.reason, rollout=given.rollout)


def _journal(places: Places, given: argparse.Namespace) -> Answer:
    return {"journal": systemd.journal(NODE_UNIT, given.lines)}


def _take(places: Places, given: argparse.Namespace) -> Answer:
    return taking.take(places, Path(sys.argv[0]).read_bytes())


_ROLLOUT = ("--rollout", {"required": True})
_SERVICES = ("--services", {"default": "[]", "help": "programs of services, as JSON"})
VERBS: dict[str, tuple[Callable[[Places, argparse.Namespace], Answer], tuple[tuple[str, dict[str, Any]], ...]]] = {
    "facts": (
        _facts,
        (
            _SERVICES,
            ("--with-config", {"action": "store_true", "help": "the node's configuration, too"}),
            ("--thorough", {"action": "store_true", "help": "the allowlist, and what was altered of the release in force, too"}),
        ),
    ),
    "lock": (_lock, (_ROLLOUT, ("--owner", {"required": True}), ("--message", {"default": ""}))),
    "beat": (_beat, (_ROLLOUT,)),
    "unlock": (_unlock, (_ROLLOUT,)),
    "break-lock": (_break_lock, (("--why", {"required": True}), ("--owner", {"required": True}))),
    "install": (
        _install,
        (
            ("--bundle", {"default": "-", "help": "its file; left out, the bundle is on standard input"}),
            ("--digest", {"help": "of its manifest, sha256 in hex; a host's first release needs it"}),
        ),
    ),
    "altered": (_altered, (("--release", {"required": True}),)),
    "prune": (_prune, (("--keep", {"type": int, "required": True}),)),
    "set-up": (_set_up, (("--release", {"required": True}), ("--wait", {"type": float, "default": 60.0}))),
    "uninstall": (_uninstall, (("--keep-state", {"action": "store_true"}), ("--end-jobs", {"action": "store_true"}))),
    "firewall": (
        _firewall,
        (
            ("--port", {"type": int, "default": 0}),
            ("--ssh-port", {"type": int, "default": 22}),
            ("--remove", {"action": "store_true"}),
        ),
    ),
    "rotate-key": (_rotate_key, (("--wait", {"type": float, "default": 60.0}),)),
    "switch": (
        _switch,
        (
            _ROLLOUT,
            ("--release", {"required": True}),
            ("--window", {"type": float, "required": True}),
            ("--told", {"help": "- for configuration and files on standard input, as JSON; left out, they stay as they are"}),
        ),
    ),
    "observe": (_observe, (_ROLLOUT, ("--wait", {"type": float, "default": 0.0}), ("--seen", {"default": ""}))),
    "go-back": (_go_back, (_ROLLOUT, ("--reason", {"required": True}))),
    "journal": (_journal, (("--lines", {"type": int, "default": 30}),)),
    "take": (_take, ()),
}


def main(arguments: Sequence[str]) -> int:
    """Carry out one verb; or, as `serve`, those that standard input asks for."""
    if list(arguments) == ["serve"]:
        return serving.serve(main)
    parser = argparse.ArgumentParser(prog="ostler-host", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (_, options) in VERBS.items():
        verb = verbs.add_parser(name)
        for option, settings in options:
            verb.add_argument(option, **settings)
    given = parser.parse_args(arguments)
    os.umask(0o077)
    try:
        answer = VERBS[given.verb][0](Places(given.root), given)
    except Refused as exc:
        answer = {"error": exc.code, "message": exc.message} | ({"details": exc.details} if exc.details else {})
    except OSError as exc:
        answer = {"error": "disk", "message": f"{exc.filename or given.verb}: {exc.strerror or exc}"}
    except (ValueError, KeyError) as exc:
        answer = {"error": "usage", "message": f"{given.verb}: {exc}"}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 1 if "error" in answer else 0
