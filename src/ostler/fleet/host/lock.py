"""The deploy lock of a host: one rollout at a time, with a name, an age and a word why."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from typing import Any

from ostler.fleet.host.places import Places, read_json, write_json
from ostler.fleet.host.refusals import Refused

COORDINATOR = "coordinator"  # the owner of a lock that root's side of an update takes (`taking`)
AGAIN_S = 0.1
TAKING = "taking"  # the guard that it holds for as long as it lives: such a lock without it was left by a process that was killed


def take(places: Places, *, rollout: str, owner: str, message: str) -> dict[str, Any]:
    """Take the lock, or take it again for the same rollout, unless one is the coordinator's and the other is not. Raises Refused (locked)
    with whose it is.
    """
    with guarded(places):
        held, now = read_json(places.lock), time.time()
        if held is not None and _is_left(places, held):
            held = None
        ours = held is None or (
            held.get("rollout_id") == rollout and (held.get("owner") == COORDINATOR) == (owner == COORDINATOR)
        )
        if held is not None and not ours:
            raise Refused("locked", f"locked by {held.get('owner')} since {_age(held, now)} ({held.get('message')})")
        lock = {
            "owner": owner,
            "rollout_id": rollout,
            "message": message,
            "taken_at": (held or {}).get("taken_at", now),
            "beat_at": now,
        }
        write_json(places.lock, lock)
    return lock


def beat(places: Places, rollout: str) -> None:
    """The rollout lives. Raises Refused (locked) where the lock is not its any more."""
    with guarded(places):
        held = read_json(places.lock)
        if held is None or held.get("rollout_id") != rollout:
            raise Refused("locked", "the lock was broken" + (f" by {held.get('owner')}" if held else ""))
        write_json(places.lock, held | {"beat_at": time.time()})


def release(places: Places, rollout: str) -> None:
    """Give the lock back; another's stays."""
    with guarded(places):
        held = read_json(places.lock)
        if held is not None and held.get("rollout_id") == rollout:
            places.lock.unlink(missing_ok=True)


def free_left(places: Places) -> None:
    """Remove a lock that a killed run of `taking` left. The caller holds the guard TAKING."""
    with guarded(places):
        if (read_json(places.lock) or {}).get("owner") == COORDINATOR:
            places.lock.unlink(missing_ok=True)


def break_(places: Places, *, why: str, owner: str) -> dict[str, Any] | None:
    """Remove whosever lock; answers whose it was."""
    with guarded(places):
        held = read_json(places.lock)
        places.lock.unlink(missing_ok=True)
        if held is not None:
            write_json(places.updates / "broken.json", {"lock": held, "why": why, "by": owner, "at": time.time()})
    return held


@contextlib.contextmanager
def guarded(places: Places, name: str = "guard", *, wait_s: float | None = None) -> Iterator[None]:
    """Alone with what stands in the updates' directory, among all processes of the host; waits for another one for `wait_s` (None: as
    long as it takes) and raises Refused (busy) then."""
    places.updates.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(places.updates / f".{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        until = time.monotonic() + (wait_s or 0.0)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait_s is None else fcntl.LOCK_NB))
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise Refused("busy", "a switch is being made on this host at this moment") from None
            time.sleep(AGAIN_S)
        yield
    finally:
        os.close(descriptor)


def _is_left(places: Places, held: dict[str, Any]) -> bool:
    if held.get("owner") != COORDINATOR:
        return False
    try:
        with guarded(places, TAKING, wait_s=0.0):
            return True
    except Refused:
        return False


def _age(held: dict[str, Any], now: float) -> str:
    taken = held.get("taken_at")
    return f"{max(0.0, now - taken):.0f} s" if isinstance(taken, int | float) else "some time"
