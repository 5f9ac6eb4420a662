"""What a rollout is to do: the release, the hosts in their order, and how much may go wrong."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from ostler.model.errors import InvalidSpec

CANARY_WINDOW = timedelta(seconds=45)  # longer than the period of a crash loop with the restart delays of systemd units
WINDOW = timedelta(seconds=15)
HOST_TIMEOUT = timedelta(minutes=10)

_SHARE = re.compile(r"(?a)([0-9]{1,6})(%?)")


@dataclass(frozen=True, slots=True)
class Share:
    """A number of hosts, or a percentage of them."""

    number: int
    percent: bool = False

    @classmethod
    def parse(cls, text: str) -> "Share":
        """`3` or `25%`; raises InvalidSpec."""
        match = _SHARE.fullmatch(text.strip())
        if match is None or (match[2] and int(match[1]) > 100):
            raise InvalidSpec(f"`{text}` is neither a number of hosts (3) nor a percentage of them (25%)")
        return cls(int(match[1]), bool(match[2]))

    def of(self, hosts: int, *, least: int) -> int:
        """How many of `hosts` it is: percentages are rounded down, and never under `least`."""
        return max(least, math.floor(hosts * self.number / 100) if self.percent else self.number)

    def __str__(self) -> str:
        return f"{self.number}%" if self.percent else str(self.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A rollout as it was agreed to. `hosts` in their order, canaries first; `excluded` says why each of these is left alone.

    At most `serial` hosts are under way at once (None: all, once the canaries are good). With more than `max_failures` failed hosts nothing
    new begins; that budget is one for the whole rollout, also after it was resumed.
    """

    rollout_id: str
    release: str
    hosts: tuple[str, ...]
    excluded: Mapping[str, str] = field(default_factory=dict)
    canary: int = 1
    serial: Share | None = None
    max_failures: Share = Share(0)
    canary_window: timedelta = CANARY_WINDOW
    window: timedelta = WINDOW
    timeout: timedelta = HOST_TIMEOUT

    def __post_init__(self) -> None:
        """Raises InvalidSpec on a plan that cannot be carried out."""
        if len(set(self.hosts)) != len(self.hosts):
            raise InvalidSpec("a rollout names a host twice", hint="`ostler fleet hosts` shows where each comes from")
        if self.canary < 0:
            raise InvalidSpec("--canary must be 0 or more")
        if self.serial is not None and self.serial.number < 1:
            raise InvalidSpec("--serial must be at least 1 host, or 1%")

    @property
    def canaries(self) -> tuple[str, ...]:
        """The hosts that go first: those of the first ones that are not excluded."""
        return tuple(host for host in self.hosts if host not in self.excluded)[: self.canary]

    @property
    def width(self) -> int:
        """How many hosts may be under way at once."""
        return len(self.hosts) if self.serial is None else self.serial.of(len(self.hosts), least=1)

    @property
    def budget(self) -> int:
        """How many hosts may fail."""
        return self.max_failures.of(len(self.hosts), least=0)

    def window_for(self, host: str) -> timedelta:
        """For how long the new release must be good on this host."""
        return self.canary_window if host in self.canaries else self.window
