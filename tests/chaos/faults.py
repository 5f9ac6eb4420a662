"""What each kind of fault does: begins it, waits, and heals it. One coroutine a kind."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from . import credentials
from .client import insist
from .records import Record
from .schedule import Fault
from .world import World

Act = Callable[[World, Fault], Awaitable[str | None]]


async def inject(world: World, fault: Fault, record: Record) -> None:
    """Do it, from its beginning to its end, and write both down. What cannot be done here and now says so in the record."""
    facts = {"kind": fault.kind, "target": fault.target, "at": fault.at, "amount": fault.amount}
    record.write(fault="begin", lasts=fault.lasts, **facts)
    note = await ACTS[fault.kind](world, fault)
    record.write(fault="end", note=note, **facts)


# --- processes ---


async def kill_daemon(world: World, fault: Fault) -> None:
    daemon = world.daemons[fault.target]
    async with _down(daemon):
        daemon.signal(signal.SIGKILL)
        await asyncio.sleep(fault.lasts)


async def kill_keeper(world: World, fault: Fault) -> str | None:
    keeper = await asyncio.to_thread(world.keeper, fault.target)
    if keeper is None:
        return "there is none just now"
    with contextlib.suppress(ProcessLookupError):
        os.kill(keeper.pid, signal.SIGKILL)
    return None


async def kill_machine(world: World, fault: Fault) -> None:
    daemon = world.daemons[fault.target]
    async with _down(daemon):
        daemon.signal(signal.SIGKILL)
        await daemon.ended()
        for _ in range(3):  # what is being started meanwhile
            for one in await asyncio.to_thread(world.of_node, fault.target):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one.pid, signal.SIGKILL)
        await asyncio.sleep(fault.lasts)


async def kill_coordinator(world: World, fault: Fault) -> None:
    coordinator = world.coordinators[fault.target]
    async with _down(coordinator):
        coordinator.signal(signal.SIGKILL)
        await asyncio.sleep(fault.lasts)


async def kill_everything(world: World, fault: Fault) -> None:
    parts = [*world.coordinators.values(), *world.daemons.values()]
    async with contextlib.AsyncExitStack() as stack:
        for one in parts:
            await stack.enter_async_context(_down(one))
        for one in parts:
            one.signal(signal.SIGKILL)
        for node in world.daemons:
            for one in await asyncio.to_thread(world.of_node, node):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one.pid, signal.SIGKILL)
        await asyncio.sleep(fault.lasts)


async def restart(world: World, fault: Fault) -> None:
    """SIGTERM, and patience until it has ended."""
    kept = world.daemons.get(fault.target) or world.coordinators[fault.target]
    async with _down(kept):
        kept.signal(signal.SIGCONT)  # systemd does so, too
        kept.signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(20):
                await kept.ended()
        kept.signal(signal.SIGKILL)
        await asyncio.sleep(fault.lasts)


async def stop(world: World, fault: Fault) -> None:
    kept = world.daemons.get(fault.target) or world.coordinators[fault.target]
    kept.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(fault.lasts)
    finally:
        kept.signal(signal.SIGCONT)


async def stop_keeper(world: World, fault: Fault) -> str | None:
    keeper = await asyncio.to_thread(world.keeper, fault.target)
    if keeper is None:
        return "there is none just now"
    with contextlib.suppress(ProcessLookupError):
        os.kill(keeper.pid, signal.SIGSTOP)
        await asyncio.sleep(fault.lasts)
        os.kill(keeper.pid, signal.SIGCONT)
    return None


@asynccontextmanager
async def _down(kept) -> AsyncIterator[None]:
    """Nobody starts it meanwhile."""
    kept.hold()
    try:
        yield
    finally:
        kept.let()


def database(how: str) -> Act:
    """It ends as in `pg_ctl stop -m immediate`, or all its processes are killed; it recovers when it is started."""

    async def act(world: World, fault: Fault) -> None:
        assert world.database is not None
        async with world.database.busy:
            await asyncio.to_thread(getattr(world.database, how))
            await asyncio.sleep(fault.lasts)
            await asyncio.to_thread(world.database.start)

    return act


async def stop_replica_in_crash(world: World, fault: Fault) -> None:
    """One coordinator stands still; the database falls and comes back meanwhile, and the other one carries on."""
    third = fault.lasts / 3
    kept = world.coordinators[fault.target]
    kept.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(third)
        await database("crash")(world, replace(fault, lasts=third))
        await asyncio.sleep(third)
    finally:
        kept.signal(signal.SIGCONT)


# --- lines ---


def hold(*ways: str, cut: bool = False) -> Act:
    async def act(world: World, fault: Fault) -> None:
        line = world.line(fault.target)
        await line.hold(*ways)
        try:
            await asyncio.sleep(fault.lasts)
            if cut:
                line.cut()
        finally:
            await line.let(*ways)

    return act


async def cut(world: World, fault: Fault) -> None:
    world.line(fault.target).cut()


async def lose_answers(world: World, fault: Fault) -> str:
    line = world.line(fault.target)
    before = line.lost
    line.losing += round(fault.amount)
    await asyncio.sleep(fault.lasts)
    line.losing = 0
    return f"{line.lost - before} lost"


async def slow_line(world: World, fault: Fault) -> None:
    line = world.line(fault.target)
    line.late_s = fault.amount
    await asyncio.sleep(fault.lasts)
    line.late_s = 0.0


# --- disks and clocks ---


def spoil(how: str) -> Act:
    async def act(world: World, fault: Fault) -> str | None:
        disk = world.disks[fault.target]
        deadline = asyncio.get_running_loop().time() + fault.lasts
        while not await asyncio.to_thread(disk.spoil, how):  # a file that is being written keeps the kernel from it
            if asyncio.get_running_loop().time() > deadline:
                return await _spoil_after_a_kill(world, fault, how)
            await asyncio.sleep(0.05)
        try:
            await asyncio.sleep(fault.lasts)
        finally:
            await asyncio.to_thread(disk.mend, how)
        return None

    return act


async def _spoil_after_a_kill(world: World, fault: Fault, how: str) -> str | None:
    """The disk of a database is never without a file that is being written: its process falls, and finds it so afterwards."""
    part = fault.target.partition(".")[0]
    kept = world.daemons.get(part) or world.coordinators[part]
    disk = world.disks[fault.target]
    async with _down(kept):
        kept.signal(signal.SIGKILL)
        await kept.ended()
        if part in world.daemons:
            for one in await asyncio.to_thread(world.of_node, part):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one.pid, signal.SIGKILL)
        for _ in range(20):
            if await asyncio.to_thread(disk.spoil, how):
                break
            await asyncio.sleep(0.05)
        else:
            return "not possible: something still writes there"
    try:
        await asyncio.sleep(fault.lasts)
    finally:
        await asyncio.to_thread(disk.mend, how)
    return "after a kill"


async def slow_disk(world: World, fault: Fault) -> None:
    world.set_sync_delay(fault.target, fault.amount)
    await asyncio.sleep(fault.lasts)
    world.set_sync_delay(fault.target, 0)


async def clock_step(world: World, fault: Fault) -> None:
    world.set_clock(fault.target, fault.amount)
    await asyncio.sleep(fault.lasts)
    world.set_clock(fault.target, 0)


async def drain(world: World, fault: Fault) -> str:
    """A person drains the node, with a limit on what runs, and resumes it."""
    said = []
    async with world.client() as client:
        for wait_s, verb, body in ((fault.lasts, "drain", {"timeout_s": fault.amount}), (0.0, "resume", {})):
            answer = await insist(client, "POST", f"/nodes/{fault.target}/{verb}", json=body)
            while answer is None and verb == "resume":  # nobody leaves it drained because he was not heard
                answer = await insist(client, "POST", f"/nodes/{fault.target}/{verb}", json=body)
            said.append(f"{verb} {answer and answer.status_code}")
            await asyncio.sleep(wait_s)
    return ", ".join(said)


ACTS: dict[str, Act] = {
    "kill_daemon": kill_daemon,
    "kill_daemon_long": kill_daemon,
    "kill_keeper": kill_keeper,
    "kill_machine": kill_machine,
    "kill_coordinator": kill_coordinator,
    "kill_coordinator_long": kill_coordinator,
    "kill_everything": kill_everything,
    "kill_replica": kill_coordinator,
    "stop_replica": stop,
    "restart_replica": restart,
    "stop_replica_in_crash": stop_replica_in_crash,
    "restart_database": database("crash"),
    "kill_database": database("kill"),
    "restart_daemon": restart,
    "restart_coordinator": restart,
    "stop_daemon": stop,
    "stop_daemon_long": stop,
    "stop_keeper": stop_keeper,
    "stop_coordinator": stop,
    "stop_coordinator_long": stop,
    "partition": hold("up", "down"),
    "partition_long": hold("up", "down"),
    "partition_cut": hold("up", "down", cut=True),
    "deaf": hold("down"),
    "mute": hold("up"),
    "cut": cut,
    "cut_database": cut,
    "partition_database": hold("up", "down"),
    "lose_answers": lose_answers,
    "slow_line": slow_line,
    "full_disk": spoil("full"),
    "no_inodes": spoil("inodes"),
    "read_only": spoil("read_only"),
    "slow_disk": slow_disk,
    "clock_step": clock_step,
    "drain": drain,
    "rotate_token": credentials.rotate_token,
    "revoke_join_token": credentials.revoke_join_token,
    "clone_node": credentials.clone_node,
}
