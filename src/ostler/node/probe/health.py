"""What is wrong with this machine, decided from what was read; the node drains itself over some of it."""

from collections.abc import Collection, Iterator
from dataclasses import replace

from ostler.model.capabilities import Disk, Gpu, HealthProblem
from ostler.node.probe.xid import Xid


def problems(*, gpus: Collection[Gpu], disks: Collection[Disk], xids: Collection[Xid]) -> tuple[HealthProblem, ...]:
    """All problems. `xids` are those since the last reboot or reset that anyone knows of."""
    return (*_of_disks(disks), *_of_gpus(gpus), *_of_xids(xids))


def with_xids(gpus: Collection[Gpu], xids: Collection[Xid]) -> tuple[Gpu, ...]:
    """The GPUs with the codes that were logged about each, in order and once."""
    return tuple(replace(gpu, xids=tuple(dict.fromkeys(xid.code for xid in xids if xid.bus_id == gpu.bus_id))) for gpu in gpus)


def _of_disks(disks: Collection[Disk]) -> Iterator[HealthProblem]:
    for disk in disks:
        if disk.read_only:
            message = f"{disk.path} is read-only: its file system may have failed; see the kernel's log"
            yield HealthProblem(code="disk_read_only", subject=disk.path, message=message, quarantine=True)
        elif disk.free_mb == 0:
            yield HealthProblem(code="disk_full", subject=disk.path, message=f"{disk.path} has no free space")
        elif disk.free_inodes == 0:
            yield HealthProblem(code="disk_full", subject=disk.path, message=f"{disk.path} has no free inodes")


def _of_gpus(gpus: Collection[Gpu]) -> Iterator[HealthProblem]:
    for gpu in gpus:
        subject = gpu.uuid or gpu.bus_id or f"{gpu.vendor} {gpu.index}"
        if gpu.fault:
            message = f"{gpu.name} ({subject}) is of no use: {gpu.fault}"
            yield HealthProblem(code="gpu_fault", subject=subject, message=message, quarantine=True)
        if gpu.ecc is None:
            continue
        if gpu.ecc.repair_failed:
            message = f"{gpu.name} ({subject}) could not repair its memory: replace the card"
            yield HealthProblem(code="gpu_memory", subject=subject, message=message, quarantine=True)
        elif gpu.ecc.repair_pending:
            message = f"{gpu.name} ({subject}) must be reset to repair its memory (nvidia-smi --gpu-reset, or reboot)"
            yield HealthProblem(code="gpu_memory", subject=subject, message=message, quarantine=True)
        elif gpu.ecc.uncorrected:
            message = f"{gpu.name} ({subject}) had {gpu.ecc.uncorrected} uncorrected memory errors since the driver started"
            yield HealthProblem(code="gpu_memory", subject=subject, message=message)


def _of_xids(xids: Collection[Xid]) -> Iterator[HealthProblem]:
    """Those that tell of the card; what a program did to itself is its attempt's matter."""
    latest = {(xid.bus_id, xid.code): xid for xid in xids if xid.fatal}
    for xid in latest.values():
        yield HealthProblem(code="gpu_xid", subject=xid.bus_id, message=str(xid), quarantine=True)
