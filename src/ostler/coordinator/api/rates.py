"""How much one caller may ask: calls a second, calls open at once, and failed authentications of one address."""

import hashlib
import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from ostler.coordinator.config import LimitsConfig
from ostler.model.errors import NoCapacity
from ostler.runtime.clock import Clock

KEPT = 100_000  # callers and addresses that are remembered; who was forgotten begins with a full bucket
FAILURES_AT_ONCE_S = 4.0  # so many seconds' worth of failures are forgiven at once: a fleet whose tokens all ended together

COMMANDS_AT_ONCE_S = 4.0


class Bucket(NamedTuple):
    """What was left at a time (monotonic seconds)."""

    left: float
    at: float


def take(bucket: Bucket | None, now: float, *, per_s: float, burst: float) -> tuple[Bucket, float]:
    """The bucket after one was taken and 0, or as it is and after how many seconds there will be one. None is a full bucket."""
    left = burst if bucket is None else min(burst, bucket.left + (now - bucket.at) * per_s)
    if left < 1.0:
        return Bucket(left, now), (1.0 - left) / per_s
    return Bucket(left - 1.0, now), 0.0


class Buckets:
    """A bucket for each key, `KEPT` at most; the one that was used least recently is forgotten first."""

    def __init__(self, *, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._of: OrderedDict[str, Bucket] = OrderedDict()  # a plain one would look for its first key among all that are gone

    def __len__(self) -> int:
        return len(self._of)

    def take(self, key: str, now: float) -> float:
        """0, or after how many seconds to come back."""
        bucket, wait_s = take(self._of.pop(key, None), now, per_s=self._per_s, burst=self._burst)
        if len(self._of) >= KEPT:
            self._of.popitem(last=False)
        self._of[key] = bucket
        return wait_s

    def wait_s(self, key: str, now: float) -> float:
        """The same, without taking one."""
        bucket = self._of.get(key)
        return 0.0 if bucket is None else take(bucket, now, per_s=self._per_s, burst=self._burst)[1]


class Rates:
    """The limits in force. Each refusal is NoCapacity with a time to come back, and is counted by its reason."""

    def __init__(self, limits: LimitsConfig, *, clock: Clock, refused: Callable[[str], None] = lambda reason: None) -> None:
        self._limits = limits
        self._clock = clock
        self._refused = refused
        self._calls = Buckets(per_s=limits.calls_per_s, burst=limits.burst)
        per_s = limits.failures_per_s
        self._failures = Buckets(per_s=per_s, burst=max(1.0, per_s * FAILURES_AT_ONCE_S))
        per_s = limits.commands_per_s
        self._commands = Buckets(per_s=per_s, burst=max(1.0, per_s * COMMANDS_AT_ONCE_S))
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._open: dict[str, int] = {}

    def check_address(self, address: str, credential: bytes, spared: Callable[[bytes], bool] = lambda credential: False) -> None:
        """Before a credential is looked at. An address that failed too often is not heard, but for credentials that were good
        before, or that are spared: whoever guesses must not lock out those who share the address."""
        if not self._failures:
            return
        wait_s = self._failures.wait_s(network_of(address), self._clock.monotonic())
        if wait_s and hashlib.sha256(credential).digest() not in self._known and not spared(credential):
            raise self._no("failures", wait_s, f"too many failed authentications from {address}")

    def know(self, digest: bytes) -> None:
        """The SHA-256 of a credential that was found good."""
        if digest not in self._known and len(self._known) >= KEPT:
            self._known.popitem(last=False)
        self._known[digest] = None

    def failed(self, address: str) -> None:
        """A credential that was shown is not good."""
        self._failures.take(network_of(address), self._clock.monotonic())

    def command(self, service: str, principal: str) -> None:
        """A command is given to a service by somebody: what restarts all the time does nothing else."""
        if wait_s := self._commands.take(f"{service} {principal}", self._clock.monotonic()):
            most = f"{self._limits.commands_per_s:g} a second"
            raise self._no("commands", wait_s, f"{principal} gives more commands to the service {service} than {most}")

    def enter(self, key: str) -> None:
        """A call of an admitted caller begins; `leave` follows where this does not raise."""
        if wait_s := self._calls.take(key, self._clock.monotonic()):
            raise self._no("calls", wait_s, f"this caller makes more than {self._limits.calls_per_s:g} calls a second")
        count = self._open.get(key, 0)
        if count >= self._limits.open_calls:
            raise self._no(
                "open_calls", 1.0, f"this caller has {count} calls open, long polls among them, and no more are allowed"
            )
        self._open[key] = count + 1

    def leave(self, key: str) -> None:
        """The call is over."""
        count = self._open[key] - 1
        if count:
            self._open[key] = count
        else:
            del self._open[key]

    def _no(self, reason: str, wait_s: float, message: str) -> NoCapacity:
        self._refused(reason)
        return NoCapacity(
            message, retry_after=wait_s, hint="come back after Retry-After; the limits stand in the coordinator's configuration"
        )


@lru_cache(maxsize=1024)
def network_of(address: str) -> str:
    """What counts as one address: of IPv6 the /64 that one host has to itself."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "local"  # a unix socket
    if found.version == 6:
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
