"""Root's side of an update that the daemon asks for. The daemon is not trusted: it runs strangers' jobs, and talks to the network.

In a directory of the daemon's lie a request, and the bundle that it is about. Both are opened without following links, read once, and
believed as far as a release key of this host signed them; what was asked for is clamped, and may not be older than the floor.
"""

import contextlib
import json
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ostler.fleet.host import accounts, floor, installing, lock, switching, trust, wholeness
from ostler.fleet.host.archive import Manifest
from ostler.fleet.host.places import Places, read_json
from ostler.fleet.host.publishing import publish
from ostler.fleet.host.refusals import Refused

REQUEST, BUNDLE = "request.json", "bundle.tar"
MAX_REQUEST, MAX_BUNDLE, MAX_REASON = 4096, 2 << 30, 300
MIN_WINDOW_S, MAX_WINDOW_S = 1.0, 3600.0
BACK_S = 600.0  # for so long after it was kept an update may be undone on request
KEEP = 3
_NAME = re.compile(r"(?a)[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class Request:
    """What the daemon wants: this release for this rollout, watched for `window_s`; or with `back`, that very update undone."""

    rollout_id: str
    release: str
    window_s: float
    back: str | None

    @classmethod
    def read(cls, content: bytes) -> "Request":
        """Raises Refused for whatever is not exactly such."""
        try:
            found = json.loads(content)
            rollout_id, release, window_s, back = (found.get(one) for one in ("rollout_id", "release", "window_s", "back"))
        except (ValueError, AttributeError, RecursionError):
            raise Refused("usage", "the request is not a JSON object") from None
        if not (isinstance(rollout_id, str) and _NAME.fullmatch(rollout_id) and isinstance(release, str) and len(release) < 200):
            raise Refused("usage", "the request names no rollout, or no release")
        if isinstance(window_s, bool) or not isinstance(window_s, int | float) or not (back is None or isinstance(back, str)):
            raise Refused("usage", "the request has a field of another kind")
        if isinstance(window_s, float) and not math.isfinite(window_s):
            raise Refused("usage", "the request's window is no number")
        return cls(rollout_id, release, float(min(max(window_s, MIN_WINDOW_S), MAX_WINDOW_S)), back)

    @property
    def named(self) -> dict[str, str]:
        """For what is published."""
        return {"update_id": self.rollout_id, "release": self.release}


def take(places: Places, program: bytes) -> dict[str, Any]:
    """Do what the daemon asks for, where it may; what came of it is published. `program` is this program's own file.

    The request goes away at the end, so one that a crash cut off is taken up again; a lock that such a one left is freed. Raises
    Refused where there is nothing to publish.
    """
    with lock.guarded(places, lock.TAKING):
        lock.free_left(places)
        return _take(places, program)


def _take(places: Places, program: bytes) -> dict[str, Any]:
    with _drop(places) as folder:
        try:
            content = _read_request(folder)
            if content is None:
                return {"stage": "nothing"}
            request = Request.read(content)
            try:
                return _go_back(places, request) if request.back is not None else _update(places, folder, request, program)
            except Refused as exc:
                stage, why, more = "refused", exc.message, exc.details
            except OSError as exc:
                stage, why, more = "refused", f"{exc.filename or places.ostler}: {exc.strerror or exc}", ""
            except Exception as exc:  # whatever it is: the daemon waits for a last word
                stage, why, more = "refused", f"root's side failed at it: {exc!r:.300}", ""
            publish(places, request.named, stage, why, more or None)
            return {**request.named, "stage": stage, "reason": why}
        finally:
            for name in (REQUEST, BUNDLE):
                _remove(folder, name)


def _update(places: Places, folder: int, request: Request, program: bytes) -> dict[str, Any]:
    home = _home(places, request.release)
    publish(places, request.named, "installing", None)
    lock.take(places, rollout=request.rollout_id, owner=lock.COORDINATOR, message=f"rollout {request.rollout_id}")
    try:
        if home.is_dir():
            manifest = floor.of_release(places, request.release)
            _believe(places, manifest)
            floor.check(places, manifest)
            if found := wholeness.altered(home):
                what = f"release {request.release} was altered on this host ({found[0]})"
                raise Refused("unfit", f"{what}: `ostler fleet update` over SSH brings it anew")
        else:
            _install(places, folder, request)
        done = switching.switch(
            places, rollout=request.rollout_id, release=request.release, window_s=request.window_s, program=program, asked=True
        )
        installing.prune(places, KEEP)
    finally:
        lock.release(places, request.rollout_id)
    return {**request.named, "stage": done["state"], "reason": done["failure"]}


def _install(places: Places, folder: int, request: Request) -> None:
    def check(manifest: Manifest) -> None:
        if manifest.release != request.release:
            raise Refused("untrusted", f"the bundle is of release {manifest.release}, not of {request.release}")
        floor.check(places, manifest)

    if not trust.read(places.keys).keys:
        raise Refused("untrusted", "this host trusts no release key yet")
    with os.fdopen(_open(folder, BUNDLE, MAX_BUNDLE), "rb") as bundle:
        installing.install(places, bundle, check=check)


def _believe(places: Places, manifest: Manifest) -> None:
    """One that is here already was signed by a key that may have been retired since."""
    if not set(manifest.signed_by) & set(trust.read(places.keys).keys):
        raise Refused("untrusted", f"release {manifest.release} is signed by no key that is still trusted here")


def _home(places: Places, release: str) -> Path:
    try:
        return places.release(release)
    except ValueError as exc:
        raise Refused("usage", str(exc)) from None


def _go_back(places: Places, request: Request) -> dict[str, Any]:
    """Undo an update that came this way; its release was not found good before by anybody but this host."""
    update = read_json(places.update) or read_json(places.last) or {}
    if update.get("update_id") != request.rollout_id or not update.get("asked"):
        raise Refused("missing", f"rollout {request.rollout_id} has made no update on this host")
    ended_at = update.get("ended_at")
    if isinstance(ended_at, int | float) and not 0 <= time.time() - ended_at <= BACK_S:
        raise Refused("unfit", f"the update was kept more than {BACK_S:.0f} s ago")
    ended = switching.go_back(places, (request.back or "")[:MAX_REASON], rollout=request.rollout_id)
    return {**request.named, "stage": ended.get("state"), "reason": ended.get("reason")}


# --- the daemon's directory --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _drop(places: Places) -> Iterator[int]:
    """A descriptor of the directory itself: its path may lead elsewhere a moment later. Raises Refused."""
    user = accounts.identity()
    try:
        folder = os.open(places.drop, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        raise Refused("missing", f"{places.drop}: {exc.strerror}") from None
    try:
        if user is None or os.fstat(folder).st_uid != user[0]:
            raise Refused("untrusted", f"{places.drop} is not a directory of the user {accounts.NAME}")
        yield folder
    finally:
        os.close(folder)


def _open(folder: int, name: str, most: int) -> int:
    """A regular file of the directory's owner, with no other name, not a link. Raises Refused."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        raise Refused("missing", f"there is no {name} beside the request") from None
    except OSError as exc:
        raise Refused("untrusted", f"{name} is no plain file: {exc.strerror}") from None
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1 or facts.st_uid != os.fstat(folder).st_uid or facts.st_size > most:
        os.close(descriptor)
        raise Refused("untrusted", f"{name} is no plain file of the user {accounts.NAME} alone, or is larger than {most} bytes")
    return descriptor


def _read_request(folder: int) -> bytes | None:
    try:
        os.stat(REQUEST, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    with os.fdopen(_open(folder, REQUEST, MAX_REQUEST), "rb") as file:
        return file.read(MAX_REQUEST)


def _remove(folder: int, name: str) -> None:
    """Whatever has this name. A directory gets another one, and is the daemon's to remove: root goes into none of it."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    except (IsADirectoryError, PermissionError):
        with contextlib.suppress(OSError):
            os.rename(name, f".{secrets.token_hex(8)}", src_dir_fd=folder, dst_dir_fd=folder)
