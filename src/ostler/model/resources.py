"""Resource arithmetic: what a node has, what jobs take, and why something does not fit."""

from collections.abc import Iterable
from dataclasses import dataclass

from ostler.model.manifest import DEFAULT_POOL, Manifest, Requirements, Runner
from ostler.model.sandbox import SandboxLevel


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """A vector of countable things; MB are 2**20 bytes. Every job takes one slot: a GPU slot if it uses a GPU, else a CPU slot."""

    cpu_slots: int = 0
    gpu_slots: int = 0
    cpu_threads: int = 0
    memory_mb: int = 0
    disk_mb: int = 0

    def __add__(self, other: "Resources") -> "Resources":
        return Resources(
            cpu_slots=self.cpu_slots + other.cpu_slots,
            gpu_slots=self.gpu_slots + other.gpu_slots,
            cpu_threads=self.cpu_threads + other.cpu_threads,
            memory_mb=self.memory_mb + other.memory_mb,
            disk_mb=self.disk_mb + other.disk_mb,
        )

    def __sub__(self, other: "Resources") -> "Resources":
        return Resources(
            cpu_slots=self.cpu_slots - other.cpu_slots,
            gpu_slots=self.gpu_slots - other.gpu_slots,
            cpu_threads=self.cpu_threads - other.cpu_threads,
            memory_mb=self.memory_mb - other.memory_mb,
            disk_mb=self.disk_mb - other.disk_mb,
        )

    def times(self, count: int) -> "Resources":
        """So many of the same."""
        return Resources(
            cpu_slots=self.cpu_slots * count,
            gpu_slots=self.gpu_slots * count,
            cpu_threads=self.cpu_threads * count,
            memory_mb=self.memory_mb * count,
            disk_mb=self.disk_mb * count,
        )

    def covers(self, other: "Resources") -> bool:
        """True where each part of `other` fits; a part that is not asked for is never in the way."""
        return (
            (other.cpu_slots <= 0 or other.cpu_slots <= self.cpu_slots)
            and (other.gpu_slots <= 0 or other.gpu_slots <= self.gpu_slots)
            and (other.cpu_threads <= 0 or other.cpu_threads <= self.cpu_threads)
            and (other.memory_mb <= 0 or other.memory_mb <= self.memory_mb)
            and (other.disk_mb <= 0 or other.disk_mb <= self.disk_mb)
        )

    @staticmethod
    def total(parts: Iterable["Resources"]) -> "Resources":
        """The sum of many."""
        result = Resources()
        for part in parts:
            result = result + part
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a node offers to placement: its capacity and what it can do. `vram_mb` lists each GPU's memory."""

    node_id: str
    capacity: Resources
    pool: str = DEFAULT_POOL
    vram_mb: tuple[int, ...] = ()
    tags: frozenset[str] = frozenset()
    runners: frozenset[Runner] = frozenset()
    services: frozenset[str] = frozenset()
    sandbox_levels: frozenset[SandboxLevel] = frozenset()


def demand(need: Requirements, runner: Runner = Runner.CLI) -> Resources:
    """What one attempt takes from a node while it lives; a command to a service takes nothing."""
    if runner is Runner.SERVICE:
        return Resources()
    gpus = need.gpu_count
    return Resources(
        cpu_slots=0 if gpus else 1,
        gpu_slots=gpus,
        cpu_threads=need.cpu_threads,
        memory_mb=need.memory_mb,
        disk_mb=need.disk_mb,
    )


def pool_of(need: Requirements) -> str | None:
    """The pool that a job must run in; None where it names a node, which may belong to any. Commands to services are no work for a pool:
    one that names none is for any node."""
    return need.pool or (DEFAULT_POOL if need.node is None else None)


def unmet(manifest: Manifest, offer: Offer) -> list[tuple[str, str]]:
    """Which requirements this node can never meet, however idle: (requirement, reason) pairs; empty when it fits."""
    need, has = manifest.requirements, offer.capacity
    found: list[tuple[str, str]] = []

    def check(name: str, wanted: int, present: int, unit: str) -> None:
        if wanted > present:
            found.append((name, f"needs {wanted} {unit}, has {present}"))

    if manifest.runner not in offer.runners:
        found.append(("runner", f"does not offer the {manifest.runner.value} runner"))
    elif manifest.runner is Runner.SERVICE and manifest.command not in offer.services:
        found.append(("service", f"declares no service {manifest.command}"))
    if need.node is not None and need.node != offer.node_id:
        found.append(("node", f"is not {need.node}"))
    if (pool := need.pool if manifest.runner is Runner.SERVICE else pool_of(need)) is not None and pool != offer.pool:
        found.append(("pool", f"is in the pool {offer.pool}, not in {pool}"))
    if missing := [tag for tag in need.tags if tag not in offer.tags]:
        found.append(("tags", f"lacks the tag {', '.join(missing)}"))
    if need.gpu_count:
        check("gpu", need.gpu_count, min(len(offer.vram_mb), has.gpu_slots), "GPU")
        fitting = sum(vram >= need.vram_mb for vram in offer.vram_mb)
        if need.vram_mb and fitting < need.gpu_count:
            largest = max(offer.vram_mb, default=0)
            found.append(("vram_mb", f"needs {need.vram_mb} MB of video memory, its largest GPU has {largest}"))
    elif manifest.runner is not Runner.SERVICE:
        check("slots", 1, has.cpu_slots, "CPU slot")
    check("cpu_threads", need.cpu_threads, has.cpu_threads, "threads")
    check("memory_mb", need.memory_mb, has.memory_mb, "MB of memory")
    check("disk_mb", need.disk_mb, has.disk_mb, "MB of free disk")
    level = manifest.least_sandbox
    if level is not None and not any(one.at_least(level) for one in offer.sandbox_levels):
        found.append(("sandbox", f"has no sandbox of level {level.value} or stronger"))
    return found
