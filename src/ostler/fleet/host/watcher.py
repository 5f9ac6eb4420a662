"""The watcher's process: looks each few seconds, and as soon as the daemon says something else or its window is over, decides by
`watch.judge`, and does what that says."""

import contextlib
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ostler.fleet.host import daemon, switching, systemd
from ostler.fleet.host import watch as judging
from ostler.fleet.host.lock import guarded
from ostler.fleet.host.places import NODE_UNIT, Places, read_json, write_json
from ostler.fleet.host.publishing import publish
from ostler.fleet.host.refusals import Refused

LOOK_S = 3.0  # a daemon that ends is started anew after five
ARMED_S = 0.5
GLANCE_S = 0.2  # between two questions to the daemon alone, which cost a hundredth of a look
TELLING = ("release", "self_check", "session")  # what of its answer may be judged differently from one moment to the next
ASK_AGAIN_S = 30.0
REACH_S = 20.0


class Watcher:
    """One open update. `run` returns when it is over."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._said: list[Any] | None = []
        self._reaches: bool | None = None
        self._asked = -ASK_AGAIN_S

    def run(self) -> None:
        """Until there is no open update."""
        while (update := read_json(self._places.update)) is not None:
            if update["state"] == "armed":
                if switching.is_abandoned(self._places):
                    self._leave("the switch was cut off before it was done")
                time.sleep(ARMED_S)
            else:
                self._rest(self._turn(update))

    def _turn(self, update: dict[str, Any]) -> float:
        """One look; answers after how many seconds the next one is due."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        before = _watch(update, now)
        after, verdict = judging.judge(before, self._look(now), now)
        match verdict:
            case judging.Verdict.GO_BACK:
                self._leave(after.reason or "it is no good")
            case judging.Verdict.KEEP:
                self._resume(update)
                switching.keep(self._places, after.reason)
            case judging.Verdict.RESUME:
                if not self._resume(update):
                    after = replace(after, resumed=False)
            case judging.Verdict.ASK_PREDECESSOR:
                self._ask(after, now)
            case judging.Verdict.TRY_ANEW:
                with contextlib.suppress(Refused):  # one that does not come up is judged for that
                    systemd.act("restart", NODE_UNIT)
        if after != before and verdict not in (judging.Verdict.GO_BACK, judging.Verdict.KEEP):
            self._note(after)
        if verdict is judging.Verdict.KEEP:
            return 0.0
        left = LOOK_S if after.good_since is None else after.good_since + after.window_s - now
        return min(LOOK_S, max(GLANCE_S, left))

    def _rest(self, most_s: float) -> None:
        """Until the next look."""
        until = time.monotonic() + most_s
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(GLANCE_S, left))
            if _telling(daemon.ask(self._places.door, "GET", "/healthz")) != self._said:
                return

    def _look(self, now: float) -> judging.Sight:
        health = daemon.ask(self._places.door, "GET", "/healthz")
        shown = systemd.show(NODE_UNIT, "ActiveState", "NRestarts")
        self._said = (
            _telling(health) if health is None or shown["ActiveState"] == "active" else None
        )  # its unit is about to be up, too
        restarts = shown["NRestarts"]
        return judging.Sight(
            active=shown["ActiveState"],
            restarts=int(restarts) if restarts.isdecimal() else 0,
            health=health,
            predecessor_reaches=self._reaches if now - self._asked < ASK_AGAIN_S else None,
        )

    def _ask(self, seen: judging.Watch, now: float) -> None:
        """Let the release before call the coordinator, with the configuration of before: the new one may be what is wrong."""
        program = self._places.release(seen.previous or "") / "bin/ostler"
        try:
            done = subprocess.run(
                [str(program), "node", "reach", "--config", str(switching.config_before(self._places))],
                capture_output=True, timeout=REACH_S, check=False, env={"PATH": "/usr/bin:/bin"}, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            self._reaches = done.returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            self._reaches = False
        self._asked = now

    def _resume(self, update: dict[str, Any]) -> bool:
        return bool(update.get("drained")) or switching.resume(self._places, patience_s=0.0)

    def _leave(self, reason: str) -> None:
        try:
            switching.go_back(self._places, reason)
        except (Refused, OSError) as exc:  # such as a full disk: tried again with the next look
            os.write(2, f"cannot go back yet: {exc}\n".encode())

    def _note(self, seen: judging.Watch) -> None:
        """Keep what was seen: a watcher that is started anew goes on from it."""
        with guarded(self._places, switching.SWITCH):
            update = read_json(self._places.update)
            if update is None or update["update_id"] != seen.update_id:
                return
            fields = {
                name: getattr(seen, name)
                for name in ("restarts", "ended", "bad_since", "alone_since", "good_since", "resumed", "retried", "reason")
            }
            publish(self._places, update, seen.state.value, seen.reason)
            try:
                write_json(self._places.update, update | fields | {"state": seen.state.value, "boot_id": switching.boot_id()})
            except OSError:
                return  # a full disk: judged by what is in memory until the next look


def _telling(health: dict[str, Any] | None) -> list[Any]:
    return [] if health is None else [health.get(name) for name in TELLING]


def _watch(update: dict[str, Any], now: float) -> judging.Watch:
    """The watch as it was written down. In another boot all times begin anew: the daemon was started then."""
    same = update.get("boot_id") == switching.boot_id()
    began = update.get("began", now) if same else now
    return judging.Watch(
        update_id=update["update_id"],
        release=update["release"],
        previous=update.get("previous"),
        window_s=update["window_s"],
        began=began,
        restarts=update.get("restarts", 0) if same else 0,
        ended=update.get("ended", 0) if same else 0,
        bad_since=update.get("bad_since", began) if same else now,
        alone_since=update.get("alone_since") if same else None,
        good_since=update.get("good_since") if same else None,
        resumed=update.get("resumed", False),
        retried=update.get("retried", False),
        state=judging.State(update["state"]),
        reason=update.get("reason"),
    )


def watch() -> None:
    """The watch unit's process: until there is no open update."""
    os.umask(0o077)
    Watcher(Places(Path("/"))).run()
