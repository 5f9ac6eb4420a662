"""The network gate as the runners see it: who may have one, how it is started, what it refused."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import Manifest
from ostler.model.network import refused
from ostler.node.gate.__main__ import DOOR_FD, SYNC_FD
from ostler.node.gate.proxy import MAX_LOG_BYTES
from ostler.node.sandbox import Gate, needed

PORT = 3128
REFUSALS = "network.jsonl"
_PROXIED = ("http_proxy", "https_proxy", "all_proxy")
_PACKAGE = Path(__file__).parents[1] / "gate"
_LISTED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A host that a job asked for in vain, as it wrote it; a port of 0 belongs to `host`."""

    host: str
    port: int

    def __str__(self) -> str:
        return self.host if not self.port else f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def refuse_hosts(manifest: Manifest, allow: tuple[str, ...]) -> Failure | None:
    """E_DENY where a job asks for a host that this node grants to nobody."""
    if not manifest.policy.network or not (missing := refused(manifest.policy.network, allow)):
        return None
    message = (
        f"network.allow of this node does not grant {', '.join(missing[:_LISTED])}, for which policy.network of the job asks"
    )
    return Failure(FailureCode.DENY, message)


def gate_for(manifest: Manifest, *, log: str, allow: tuple[str, ...], seccomp: str | None) -> Gate | None:
    """The gate of an attempt, which writes what it refuses into `log`; None for a job that may reach nothing."""
    if not manifest.policy.network:
        return None
    # Not the virtual environment's: what is shown to the job is then the installation that it was made from, and no more.
    python = os.path.realpath(sys.executable)
    door = str(_PACKAGE / "door.py")
    order = {"rules": manifest.policy.network, "granted": allow, "log": log, "seccomp": seccomp}
    return Gate(
        outer=(python, "-I", "-S", str(_PACKAGE / "__main__.py"), msgspec.json.encode(order).decode(), "--"),
        inner=(python, "-I", "-S", door, str(DOOR_FD), str(PORT), "--"),
        sync=SYNC_FD,
        paths=(*needed(python), door),
    )


def proxy_environment(manifest: Manifest) -> Mapping[str, str]:
    """The variables by which programs find the gate."""
    if not manifest.policy.network:
        return {}
    return {name: f"http://127.0.0.1:{PORT}" for lower in _PROXIED for name in (lower, lower.upper())}


def refusals(log: Path, mask: Callable[[str], str] = str) -> Counter[Refusal]:
    """What the gate of an attempt refused, and how often. At most as much as it writes; a torn last line is left out."""
    found: Counter[Refusal] = Counter()
    try:
        with log.open("rb") as file:
            lines = file.read(MAX_LOG_BYTES).splitlines()
    except OSError:
        return found
    for line in lines:
        try:
            one = msgspec.json.decode(line, type=Refusal)
        except msgspec.DecodeError:
            continue
        found[replace(one, host=mask(one.host))] += 1
    return found


def told(found: Counter[Refusal]) -> str:
    """The same as the end of a sentence; empty where nothing was refused."""
    if not found:
        return ""
    parts = [f"{one} ({count} times)" if count > 1 else str(one) for one, count in found.most_common(_LISTED)]
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return f"the network gate refused {', '.join(parts)}{more}"
