"""The client of the keeper against a real one: overlapping requests, exit records, and keepers that come and go."""

import asyncio
import logging
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from integration.keeper_rig import Keeper, alive, wait_until
from ostler.assembly import node
from ostler.model.errors import KeeperUnreachable, NotFound
from ostler.node.keeper_client import (
    SOCKET,
    ExitRecord,
    KeeperClient,
    KeeperRefused,
    Limits,
    StartSpec,
    ensure_keeper,
    read_record,
)
from ostler.node.readiness import Readiness, Reason


@pytest.fixture
def keeper(tmp_path):
    keeper = Keeper(tmp_path)
    yield keeper
    keeper.close()


@pytest.fixture
async def client(keeper):
    client = await KeeperClient.connect(keeper.path)
    yield client
    client.close()


def spec(keeper: Keeper, key: str, script: str, **members) -> StartSpec:
    return StartSpec(
        key=key,
        argv=("/bin/sh", "-c", script),
        env={"PATH": os.defpath},
        cwd=str(keeper.work),
        stdout=str(keeper.work / "out"),
        stderr=str(keeper.work / "err"),
        record=str(keeper.work / f"{key}.json"),
        **members,
    )


async def test_from_start_to_record(keeper, client):
    assert (client.hello.keeper, client.hello.pid) == (1, keeper.process.pid)
    started = await client.start(spec(keeper, "a", "exit 3", limits=Limits(wall_s=60, open_files=64, nice=1)))
    record = await client.wait("a")
    assert (record.exit_code, record.signal, record.killed, record.oom) == (3, None, None, None)
    assert (record.pid, record.start_time) == (started.pid, started.start_time)
    await asyncio.to_thread(keeper.written, "a")
    assert read_record(keeper.work / "a.json", "a") == record
    assert read_record(keeper.work / "a.json", "b") is None
    (child,) = await client.list()
    assert (child.key, child.running, child.record) == ("a", False, record)
    assert await client.wait("a") == record
    await client.forget("a")
    assert await client.list() == ()


async def test_many_at_the_same_time(keeper, client):
    numbers = range(60)
    await asyncio.gather(*(client.start(spec(keeper, f"k{number}", f"exit {number}")) for number in numbers))
    records = await asyncio.gather(*(client.wait(f"k{number}") for number in numbers))
    assert [record.exit_code for record in records] == list(numbers)


async def test_refusals_carry_code_errno_and_step(keeper, client):
    with pytest.raises(KeeperRefused, match="cannot be executed: No such file") as refused:
        await client.start(StartSpec(key="a", argv=("/nowhere",), env={}, cwd="/", stdout="/dev/null", stderr="/dev/null"))
    assert (refused.value.code, refused.value.errno, refused.value.step) == ("exec", 2, "exec")
    await client.start(spec(keeper, "a", "sleep 1000"))
    with pytest.raises(KeeperRefused) as refused:
        await client.start(spec(keeper, "a", "true"))
    assert refused.value.code == "exists"
    assert await client.kill("a", reason="cancel", grace_s=0) is True
    assert (await client.wait("a")).killed == "cancel"
    assert await client.kill("a", reason="cancel") is False
    assert await client.kill("unknown", reason="cancel") is False


async def test_records_come_by_call_and_by_stream(keeper):
    called: list[ExitRecord] = []
    client = await KeeperClient.connect(keeper.path, on_exit=called.append)
    streamed: list[ExitRecord] = []

    async def listen() -> None:
        async for record in client.exits():
            streamed.append(record)

    listener = asyncio.create_task(listen())
    await asyncio.sleep(0)
    for key in "abc":
        await client.start(spec(keeper, key, "true"))
        await client.wait(key)
    client.close()
    await listener
    assert [record.key for record in called] == [record.key for record in streamed] == ["a", "b", "c"]


async def test_another_daemon_waits_for_what_the_first_one_started(keeper, client):
    go = keeper.work / "go"
    os.mkfifo(go)
    await client.start(spec(keeper, "a", f"read x < {go}; exit 4"))
    await client.start(spec(keeper, "b", "exit 5"))
    await client.wait("b")
    client.close()
    with pytest.raises(KeeperUnreachable):
        await client.ping()
    second = await KeeperClient.connect(keeper.path)
    assert (await second.wait("b")).exit_code == 5
    waiting = asyncio.create_task(second.wait("a", record=keeper.work / "a.json"))
    await second.ping()
    await asyncio.to_thread(go.write_text, "go\n")
    assert (await waiting).exit_code == 4
    await asyncio.to_thread(keeper.written, "a")
    for key in "ab":
        await second.forget(key)
    assert (await second.wait("a", record=keeper.work / "a.json")).exit_code == 4
    with pytest.raises(NotFound, match="no attempt b"):
        await second.wait("b")
    second.close()


async def test_the_loss_of_the_keeper_is_told_to_everybody_who_waits(keeper):
    losses: list[None] = []
    client = await KeeperClient.connect(keeper.path, on_loss=lambda: losses.append(None))
    await client.start(spec(keeper, "a", "sleep 1000"))
    waiting = asyncio.create_task(client.wait("a"))
    await client.ping()
    keeper.process.send_signal(signal.SIGSTOP)
    asked = asyncio.create_task(client.ping())
    await asyncio.sleep(0)
    keeper.kill()
    for task in (waiting, asked):
        with pytest.raises(KeeperUnreachable):
            await task
    with pytest.raises(KeeperUnreachable):
        await client.list()
    assert client.closed
    assert losses == [None]
    keeper.start()
    client = await KeeperClient.connect(keeper.path)
    assert (await client.wait("a", record=keeper.work / "a.json")).killed == "keeper-lost"
    client.close()


async def test_nobody_there_and_nobody_answering(tmp_path, keeper):
    with pytest.raises(KeeperUnreachable, match="no keeper at"):
        await KeeperClient.connect(tmp_path / "nowhere.sock")
    keeper.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(KeeperUnreachable, match=r"did not answer in 0\.2 s"):
            await KeeperClient.connect(keeper.path, timeout=0.2)
    finally:
        keeper.process.send_signal(signal.SIGCONT)


async def test_what_is_no_keeper_is_found_out(tmp_path):
    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail ready\n")
        await writer.drain()
        writer.close()

    async def from_tomorrow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"keeper":2,"version":"9.0","pid":1,"boot_id":"b","cgroup":"v2","news":1}\n')
        await writer.drain()
        writer.close()

    for number, (answer, said) in enumerate([(babble, "no keeper"), (from_tomorrow, "release 9.0, speaks protocol 2, not 1")]):
        server = await asyncio.start_unix_server(answer, tmp_path / f"s{number}")
        with pytest.raises(KeeperUnreachable, match=said):
            await KeeperClient.connect(tmp_path / f"s{number}")
        server.close()
        await server.wait_closed()


def said(state: Path) -> str:
    return (state / "keeper" / "keeper.log").read_text()


async def test_a_keeper_is_started_where_none_runs(tmp_path):
    state = tmp_path / "node"
    first = await ensure_keeper(state, cgroup="none")
    second, third = await asyncio.gather(ensure_keeper(state), ensure_keeper(state))
    pid = first.hello.pid
    assert [client.hello.pid for client in (second, third)] == [pid, pid]
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert said(state).count("keeper.started") == 1
    ended = asyncio.Event()
    last = await ensure_keeper(state, on_loss=ended.set)
    await last.shutdown()
    await ended.wait()
    for client in (first, second, third, last):
        client.close()


async def test_two_at_once_start_one(tmp_path):
    state = tmp_path / ("node" + "x" * 100)  # longer than a socket's address may be
    clients = await asyncio.gather(*(ensure_keeper(state, cgroup="none") for _ in range(3)))
    pids = {client.hello.pid for client in clients}
    assert len(pids) == 1
    await clients[0].shutdown()
    for client in clients:
        async for _ in client.exits():
            pass
        client.close()
    await asyncio.to_thread(wait_until, lambda: not any(alive(pid) for pid in pids))


async def test_a_keeper_that_cannot_start_says_why(tmp_path):
    state = tmp_path / "node"
    state.mkdir()
    state.chmod(0o755)
    with pytest.raises(KeeperUnreachable, match=r"exit code 1.*open to others.*chmod 700"):
        await ensure_keeper(state)


async def test_a_keeper_in_the_background_kills_what_detached_itself(tmp_path):
    client = await ensure_keeper(tmp_path / "state", cgroup="none")
    note = tmp_path / "pid"
    script = f"(setsid sh -c 'echo $$ > {note}; exec sleep 1000' &); while [ ! -s {note} ]; do :; done"
    started = StartSpec(
        key="a", argv=("/bin/sh", "-c", script), env={"PATH": os.defpath}, cwd=str(tmp_path),
        stdout=str(tmp_path / "out"), stderr=str(tmp_path / "err"), record=str(tmp_path / "a.json"),
    )  # fmt: skip
    await client.start(started)
    record = await client.wait("a")
    pid = int(note.read_text())
    await asyncio.to_thread(wait_until, lambda: not alive(pid))
    assert record.leftovers_killed == 1
    await client.shutdown()
    client.close()


@pytest.fixture
async def stopped(tmp_path):
    """A client of a keeper that somebody stopped."""
    client = await ensure_keeper(tmp_path / "state", cgroup="none")
    os.kill(client.hello.pid, signal.SIGSTOP)
    await asyncio.to_thread(wait_until, lambda: ") T " in Path(f"/proc/{client.hello.pid}/stat").read_text())
    yield client
    os.kill(client.hello.pid, signal.SIGCONT)
    await client.shutdown()
    client.close()


async def test_a_keeper_that_was_stopped_is_roused_by_who_calls_it(tmp_path, stopped):
    with pytest.raises(KeeperUnreachable, match="did not answer"):
        await KeeperClient.connect(tmp_path / "state" / SOCKET, 0.2)
    async with asyncio.timeout(10):
        await stopped.ping()


async def test_a_keeper_that_was_stopped_is_roused_by_its_daemon(stopped, monkeypatch, caplog):
    monkeypatch.setattr(node, "PULSE_S", 0.1)
    processes, logger = SimpleNamespace(keeper=stopped), logging.getLogger("ostler.test")
    watch = asyncio.create_task(node.Keepers(Path("/nowhere"), processes, logger, start=True).watch(Readiness(logger=logger)))
    async with asyncio.timeout(10):
        await stopped.ping()
    watch.cancel()
    assert "keeper_silent" in caplog.messages


async def test_a_node_without_a_keeper_takes_no_work_until_there_is_one(keeper, client, monkeypatch):
    """Where a unit of its own starts it, the daemon can only wait; and whoever asks the node must learn of it."""
    logger = logging.getLogger("ostler.test")
    processes, readiness = SimpleNamespace(keeper=client), Readiness(logger=logger)
    processes.use = lambda fresh: setattr(processes, "keeper", fresh)
    changed = asyncio.Event()
    readiness.changed = changed.set
    monkeypatch.setattr(node, "PULSE_S", 0.1)
    monkeypatch.setattr(node, "ensure_keeper", lambda state, *, start: KeeperClient.connect(keeper.path, 0.2))
    watch = asyncio.create_task(node.Keepers(keeper.state, processes, logger, start=False).watch(readiness))
    async with asyncio.timeout(30):
        await asyncio.sleep(0.3)
        assert not readiness.draining
        keeper.kill()
        await changed.wait()
        assert readiness.is_held(Reason.KEEPER)
        assert "no keeper answers" in readiness.refusal
        changed.clear()
        await asyncio.to_thread(keeper.start)
        await changed.wait()
        assert not readiness.draining
        await processes.keeper.ping()
    watch.cancel()
    processes.keeper.close()
