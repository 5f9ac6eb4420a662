"""What is to be simulated: numbers and their rules, and the draws that follow from them by a seed."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from ostler.protocol.messages import INLINE_LOG_BYTES

SHARED = 1000  # connections for the short calls of all nodes, where they share: as many as calls are under way at once
AWAY_S = 10.0  # how long a node that died stays away, on average
MAX_NODES = 10_000  # in one process, and by one join token; several may run side by side


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`nodes` with `slots` each. `jobs` are submitted at once, then `rate` a second; a job takes `job_s` on average (exponentially
    distributed, a tenth of it at least), and the share `fail` of them fails. The share `churn` of the nodes dies in a minute and comes
    back. `log_bytes` is what a job prints. It ends when `jobs` are over, or after `for_s`.

    The share `verify` of all leases is checked for the coordinator's signature. With `share` all nodes' short calls go over a few
    connections; else each node has two of its own, as a real one.
    """

    nodes: int
    slots: int = 1
    jobs: int = 0
    rate: float = 0.0
    job_s: float = 1.0
    for_s: float | None = None
    fail: float = 0.0
    churn: float = 0.0
    log_bytes: int = 0
    verify: float = 0.01
    share: bool = False
    seed: int = 1

    def problems(self) -> Iterator[tuple[str, str]]:
        """(option, what is wrong)."""
        if not 1 <= self.nodes <= MAX_NODES:
            yield "nodes", f"must be from 1 to {MAX_NODES}"
        for name in ("fail", "verify"):
            if not 0 <= getattr(self, name) <= 1:
                yield name, "is a share, from 0 to 1"
        if not 0 <= self.churn <= 60:
            yield "churn", "is the share of the nodes that dies in a minute, from 0 to 60"
        if not 0 <= self.log_bytes <= INLINE_LOG_BYTES:
            yield "log-bytes", f"must be from 0 to {INLINE_LOG_BYTES}"
        if not math.isfinite(self.rate):
            yield "rate", "must be a number of jobs a second"
        if self.for_s is not None and self.for_s <= 0:
            yield "for", "must be longer than 0 s"
        if self.for_s is None and (self.rate or not self.jobs):
            yield "for", "say how long, or how many jobs (and no rate) shall come to their end"

    @property
    def descriptors(self) -> int:
        """Connections that it has open, and what a program needs besides."""
        return (self.nodes + SHARED if self.share else 2 * self.nodes) + 256


class Draws:
    """What chance decides, the same for the same seed as long as it is asked in the same order."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._random = random.Random(plan.seed)  # noqa: S311 - a simulation

    def seconds(self) -> float:
        """How long a job takes."""
        return max(self._plan.job_s / 10, self._random.expovariate(1 / self._plan.job_s)) if self._plan.job_s else 0.0

    def fails(self) -> bool:
        """Whether it fails."""
        return self._random.random() < self._plan.fail

    def verifies(self) -> bool:
        """Whether a lease's signature is checked."""
        return self._random.random() < self._plan.verify

    def life_s(self) -> float:
        """How long a node lives before it dies."""
        return self._random.expovariate(self._plan.churn / 60) if self._plan.churn else float("inf")

    def away_s(self) -> float:
        """How long it is away then."""
        return self._random.uniform(0.5, 1.5) * AWAY_S

    def part(self) -> float:
        """From 0 to 1."""
        return self._random.random()
