"""What is on the machine: processes, control groups, secret boxes and workspaces of a run, for the checker to judge."""

import contextlib
import hashlib
import os
from pathlib import Path

from .processes import seen
from .schedule import NODES
from .world import World

CGROUPS = Path("/sys/fs/cgroup")
MEMORY = (Path("/run"), Path("/dev/shm"))
SPARE = ".spare-"


def take(world: World) -> dict[str, object]:
    """A look at everything that belongs to the run."""
    own = {one.pid for one in (*world.coordinators.values(), *world.daemons.values())}
    processes = []
    for one in seen(str(world.place)):
        part = "job"
        if one.pid in own or "ostler/node/keeper" in one.command or "postgres" in one.command:
            part = "part"
        elif "ostler/node/worker" in one.command and one.job is None:
            part = "worker"  # warm, and waits for a task
        processes.append({"pid": one.pid, "part": part, "job": one.job, "command": one.command[:200], "cwd": one.cwd})
    return {"processes": processes, "groups": groups(world), "boxes": boxes(world), "workspaces": workspaces(world)}


def groups(world: World) -> list[str]:
    """The control groups of both keepers."""
    names = set()
    for node in NODES:
        with contextlib.suppress(OSError):
            names.add("ostler-" + (world.state(node) / "keeper" / "id").read_text().strip())
    return sorted(str(one) for one in CGROUPS.glob("*/**/ostler-*") if one.name in names and one.is_dir())


def boxes(world: World) -> list[str]:
    """What lies on memory file systems for attempts that name secrets."""
    found = []
    for node in NODES:
        name = f"ostler-{os.geteuid()}-{hashlib.sha256(os.fsencode(world.state(node))).hexdigest()[:12]}"
        for memory in MEMORY:
            if (memory / name).is_dir():
                found += [str(one) for one in (memory / name).iterdir()]
    return found


def workspaces(world: World) -> dict[str, list[str]]:
    """The folders of jobs on each node. What a warm worker has to spare is no job's: whatever a task left something in is."""
    return {node: sorted(one.name for one in world.root(node).iterdir() if not one.name.startswith(SPARE)) for node in NODES}


def mounts(place: Path) -> set[str]:
    """What is mounted below a directory, but the small disks of the run itself."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return {line for line in lines if str(place) in line and not line.startswith("ostler-chaos ")}
