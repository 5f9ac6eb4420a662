"""The capability probe: everything that a node tells of its machine when it registers."""

import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

from ostler.model.capabilities import Capabilities, Gpu
from ostler.model.sandbox import SandboxAbilities
from ostler.node.probe import health, host
from ostler.node.probe.gpus import GpuReader, GpuReading
from ostler.node.probe.xid import KernelLog, Xid


def probe(
    *,
    node_id: str,
    version: str,
    runners: Iterable[str] = (),
    tags: Iterable[str] = (),
    paths: Sequence[str] = ("/",),
    sandbox: SandboxAbilities | None = None,
    gpus: GpuReading | None = None,
    xids: Sequence[Xid] | None = None,
    release: str | None = None,
    updates: str | None = None,
    services: Iterable[str] = (),
    root: Path = Path("/"),
) -> Capabilities:
    """Look at this machine. Blocks for milliseconds, or up to the patience of a GPU's tool: call it in a thread.

    `paths` are directories whose free space matters, the workspaces' first. `gpus` and `xids` are readings made
    elsewhere (a daemon keeps a GpuReader, and a KernelLog for its `xids()`); without them fresh ones are made. `sandbox` is what
    `ostler.node.sandbox.abilities` found.
    """
    reading = gpus if gpus is not None else _read_gpus()
    logged = tuple(xids) if xids is not None else _read_xids()
    disks = host.disks(paths)
    found = health.with_xids(reading.gpus, logged)
    memory_mb, swap_mb = host.memory_mb()
    distribution = host.distribution(root=root)
    return Capabilities(
        node_id=node_id,
        version=version,
        cpu=host.cpu(root=root),
        memory_mb=memory_mb,
        disk_free_mb=disks[0].free_mb if disks else 0,
        gpu=found,
        runners=tuple(runners),
        tags=tags_of(tags, distribution.id, found),
        swap_mb=swap_mb,
        disks=disks,
        os=distribution,
        kernel=platform.release(),
        hostname=platform.node(),
        machine_id=host.machine_id(root=root),
        engines=host.engines(root=root),
        release=release,
        updates=updates,
        services=tuple(services),
        sandbox=sandbox or SandboxAbilities(),
        health=(*reading.problems, *health.problems(gpus=found, disks=disks, xids=logged)),
    )


def tags_of(given: Iterable[str], os_id: str, gpus: Iterable[Gpu]) -> tuple[str, ...]:
    """The tags that a person gave, then those that the machine gives itself: distribution, cuda or rocm, cpu."""
    makers = {gpu.vendor for gpu in gpus if not gpu.fault}
    own = [os_id, *(["cuda"] if "nvidia" in makers else []), *(["rocm"] if "amd" in makers else []), "cpu"]
    return tuple(dict.fromkeys([*given, *own]))


def _read_gpus() -> GpuReading:
    reader = GpuReader()
    try:
        return reader.read()
    finally:
        reader.close()


def _read_xids() -> tuple[Xid, ...]:
    log = KernelLog()
    try:
        return log.xids()
    finally:
        log.close()
