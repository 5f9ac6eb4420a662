"""What a simulation measured: how long calls took, what went wrong, what the coordinator used."""

import re
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_PROCESS = re.compile(r"^process_(cpu_seconds_total|resident_memory_bytes|open_fds|start_time_seconds) (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFigures:
    """One kind of call: how many were answered, and milliseconds."""

    count: int
    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a process has used so far: seconds of CPU, MB of resident memory, descriptors, and when it was started (seconds since 1970);
    None where it does not tell."""

    cpu_s: float | None = None
    memory_mb: float | None = None
    descriptors: int | None = None
    started: float | None = None

    def cpu_since(self, before: "Usage") -> float | None:
        """Seconds of CPU since then; None where it is another process by now."""
        if self.cpu_s is None or before.cpu_s is None or self.started != before.started:
            return None
        return self.cpu_s - before.cpu_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The whole of it. Shares are of one core. `lost` are leases that the coordinator, or the node's own clock, gave up although the
    node lived; `killed` those whose node died by plan."""

    nodes: int
    seconds: float
    jobs_done: int
    jobs_failed: int
    jobs_cancelled: int
    jobs_per_s: float
    lost: int
    killed: int
    verified: int
    calls: dict[str, CallFigures]
    troubles: dict[str, int]
    coordinator_cpu: float | None
    coordinator_cpu_s: float | None
    coordinator_memory_mb: float | None
    coordinator_descriptors: int | None
    simulator_cpu: float
    simulator_memory_mb: float
    simulator_late_p99_ms: float
    stopped: str


@dataclass(slots=True)
class Figures:
    """What is counted while it goes on."""

    calls: dict[str, "array[float]"] = field(default_factory=dict)
    troubles: Counter[str] = field(default_factory=Counter)
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    lost: int = 0
    killed: int = 0
    verified: int = 0
    late: "array[float]" = field(default_factory=lambda: array("d"))

    def took(self, call: str, seconds: float) -> None:
        """One call was answered."""
        found = self.calls.get(call)
        if found is None:
            found = self.calls[call] = array("d")
        found.append(seconds)

    def begin(self) -> None:
        """All nodes are there: how long calls took while they came says how fast they come, and nothing of how it goes on."""
        self.calls = {name: values for name, values in self.calls.items() if name == "register"}
        self.late = array("d")

    @property
    def over(self) -> int:
        """Jobs whose outcome the coordinator has."""
        return self.done + self.failed + self.cancelled

    def of_calls(self) -> dict[str, CallFigures]:
        """Percentiles of all kinds of calls."""
        return {name: summary(values) for name, values in self.calls.items() if values}


def summary(values: "array[float]") -> CallFigures:
    """Of some seconds, at least one."""
    ordered = sorted(values)
    return CallFigures(
        count=len(ordered), p50_ms=_ms(ordered[len(ordered) // 2]), p99_ms=_ms(ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]),
        max_ms=_ms(ordered[-1]),
    )  # fmt: skip


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)


def read_usage(text: str) -> Usage:
    """What /metrics says of the coordinator's process."""
    found: dict[str, Any] = {name: float(value) for name, value in _PROCESS.findall(text)}
    memory, files = found.get("resident_memory_bytes"), found.get("open_fds")
    return Usage(
        cpu_s=found.get("cpu_seconds_total"), memory_mb=None if memory is None else memory / 2**20,
        descriptors=None if files is None else int(files), started=found.get("start_time_seconds"),
    )  # fmt: skip
