"""Services of a node: the watcher on a systemd that a test plays, real probes and programs, and commands through a whole daemon."""

import asyncio
import contextlib
import json
import logging
import os
from dataclasses import replace
from datetime import timedelta

import pytest

from integration.node_rig import FakeCoordinator, NodeRig, until
from ostler.model.failures import FailureCode
from ostler.model.service import Command, Desired, Health, ServiceState, Verb
from ostler.node.config import MetricsConfig, ProbeConfig, RestartConfig, ServiceConfig
from ostler.node.loops.service_watcher import ServiceWatcher
from ostler.node.probe.command import Output
from ostler.node.services.asking import Asking, Question, Unasked
from ostler.node.services.journals import Journals, Lines
from ostler.node.services.programs import Programs
from ostler.node.services.units import Either, Trouble, UnitTrouble, UnitView
from ostler.node.services.web import WebTrouble, get
from ostler.node.services.wishes import Wishes
from ostler.runtime.clock import ManualClock, SystemClock

LOGGER = logging.getLogger("ostler.test.services")
UNIT = "xmrig.service"


class PlayedUnits:
    """systemd as a test wants it: `fails` are verbs whose job fails, `refuses` what is refused, `gate` holds jobs up."""

    def __init__(self):
        self.view = UnitView(load="loaded", active="inactive", sub="dead")
        self.asked: list[Verb] = []
        self.fails: set[Verb] = set()
        self.refuses: Trouble | None = None
        self.gate: asyncio.Event | None = None
        self.starts = 0
        self.boot = "@1"
        self.ends = "done"
        self.changed = lambda: None

    def set(self, **fields):
        self.view = replace(self.view, **fields)
        self.changed()

    async def look(self, unit):
        assert unit == UNIT
        if self.refuses is Trouble.UNREACHABLE:
            raise UnitTrouble(Trouble.UNREACHABLE, "no bus")
        return self.view

    async def act(self, verb, unit, accepted):
        self.asked.append(verb)
        if self.refuses is not None:
            raise UnitTrouble(self.refuses, "as the test says")
        accepted()
        if self.gate is not None:
            await self.gate.wait()
        if self.ends != "done":
            return self.ends
        if verb in self.fails:
            self.set(active="failed", sub="failed", result="exit-code", status=203)
            return "failed"
        self.starts += 1
        if verb is Verb.STOP:
            self.set(active="inactive", sub="dead", pid=None, result="success")
        else:
            self.set(active="active", sub="running", pid=100 + self.starts, invocation=str(self.starts), result="success")
        return "done"

    def crash(self):
        self.set(active="failed", sub="failed", pid=None, result="signal", status=11)

    async def booted(self):
        return self.boot

    async def watch(self, units, changed):
        self.changed = changed

    async def close(self):
        pass


class Silent(Journals):
    """A journal that nobody may read, but for the lines that a test gives."""

    def __init__(self, *lines):
        self.lines = list(lines)

    def last_words(self, unit, lines=5):
        return "\n".join(self.lines)


def watcher(folder, units, clock, config=None):
    one = ServiceWatcher(
        {"xmrig": config or ServiceConfig(unit=UNIT)},
        units=units,
        wishes=Wishes(folder),
        journals=Silent("its last words"),
        clock=clock,
        logger=LOGGER,
    )
    one.news = []
    one.tell = lambda seen, soon: one.news.append((seen[0], soon))
    return one


@pytest.fixture
def units():
    return PlayedUnits()


@pytest.fixture
def clock():
    return ManualClock()


async def turned(one, clock=None, seconds=0.0):
    """One pass of the watcher after some time, and what it started meanwhile."""
    if clock is not None:
        clock.advance(seconds)
    wait_s = await one.turn()
    await asyncio.gather(*one._tasks)
    return wait_s


async def do(one, verb):
    return await one.carry_out(Command("xmrig", verb))


# --- commands and wishes ---


async def test_a_command_is_carried_out_twice_with_the_same_end(tmp_path, units, clock):
    one = watcher(tmp_path, units, clock)
    for _ in range(2):
        done = await do(one, Verb.START)
        assert (done.failure, done.seen.state, done.seen.desired) == (None, ServiceState.RUNNING, Desired.RUNNING)
    assert (await do(one, Verb.STATUS)).seen.pid == units.view.pid
    for _ in range(2):
        assert (await do(one, Verb.STOP)).seen.state is ServiceState.STOPPED
    assert units.asked == [Verb.START, Verb.START, Verb.STOP, Verb.STOP]
    assert Wishes(tmp_path).of("xmrig").desired is Desired.STOPPED


@pytest.mark.parametrize(
    ("trouble", "code", "word"),
    [
        (Trouble.DENIED, FailureCode.DENY, "ostler node install"),
        (Trouble.MISSING, FailureCode.SERVICE, "no unit xmrig.service"),
        (Trouble.MASKED, FailureCode.SERVICE, "unmask"),
        (Trouble.FAILED, FailureCode.SERVICE, "as the test says"),
        (Trouble.UNREACHABLE, FailureCode.LOST, "went away"),
    ],
)
async def test_what_was_refused_changes_nothing_that_is_wanted(tmp_path, units, clock, trouble, code, word):
    one = watcher(tmp_path, units, clock)
    units.refuses = trouble
    done = await do(one, Verb.START)
    assert done.failure.code is code
    assert word in done.failure.message
    assert Wishes(tmp_path).of("xmrig").desired is None
    other = await one.carry_out(Command("other", Verb.STOP))
    assert (other.failure.code, other.seen) == (FailureCode.DENY, None)


async def test_a_start_that_fails_says_why_and_is_wanted_all_the_same(tmp_path, units, clock):
    one = watcher(tmp_path, units, clock, ServiceConfig(unit=UNIT, binary=tmp_path / "xmrig"))
    units.fails = {Verb.START}
    done = await do(one, Verb.START)
    assert done.failure.code is FailureCode.SERVICE
    assert "exit code 203" in done.failure.message
    assert "xmrig not found" in done.failure.message
    assert "its last words" in done.failure.message
    assert Wishes(tmp_path).of("xmrig").desired is Desired.RUNNING


async def test_a_crash_is_mended_after_a_wait_that_grows(tmp_path, units, clock):
    one = watcher(tmp_path, units, clock)
    await do(one, Verb.START)
    await turned(one)
    for wait_s, count in ((10.0, 1), (20.0, 2), (40.0, 3)):
        units.crash()
        await turned(one, clock, 5.0)
        seen = one.news[-1][0]
        assert (seen.state, seen.retry_s, seen.restarts) == (ServiceState.CRASHED, wait_s, count - 1)
        assert "signal 11" in seen.message
        asked = len(units.asked)
        assert await turned(one, clock, wait_s - 1.0) <= 1.0  # it wakes when that is due
        assert len(units.asked) == asked
        await turned(one, clock, 1.0)
        assert units.asked[asked:] == [Verb.START]
        await turned(one, clock, 5.0)
        assert (one.news[-1][0].state, one.news[-1][0].restarts) == (ServiceState.RUNNING, count)
    units.crash()
    await turned(one, clock, 5.0)
    again = watcher(tmp_path, units, clock)  # the backoff outlives the daemon
    await turned(again)
    assert again.news[-1][0].retry_s == 80.0


async def test_what_a_person_stopped_stays_stopped(tmp_path, units, clock):
    one = watcher(tmp_path, units, clock, ServiceConfig(unit=UNIT, restart=RestartConfig(keep=Desired.RUNNING)))
    await do(one, Verb.STOP)
    units.crash()
    for _ in range(20):
        await turned(one, clock, 60.0)
    units.boot = "@2"
    later = watcher(tmp_path, units, clock, ServiceConfig(unit=UNIT, restart=RestartConfig(keep=Desired.RUNNING)))
    for _ in range(20):
        await turned(later, clock, 60.0)
    assert units.asked == [Verb.STOP]
    assert later.news[-1][0].state is ServiceState.STOPPED


async def test_one_that_was_stopped_on_the_host_is_left_alone(tmp_path, units, clock):
    one = watcher(tmp_path, units, clock)
    await do(one, Verb.START)
    units.set(active="inactive", sub="dead", pid=None)
    for _ in range(20):
        await turned(one, clock, 60.0)
    assert units.asked == [Verb.START]
    assert "stopped on the host" in one.news[-1][0].message


async def test_what_is_wanted_is_started_once_after_the_machine_was(tmp_path, units, clock):
    first = watcher(tmp_path, units, clock)
    await do(first, Verb.START)
    await turned(first)
    units.set(active="inactive", sub="dead", pid=None)
    units.boot, units.refuses = "@2", Trouble.UNREACHABLE
    one = watcher(tmp_path, units, clock)
    await turned(one)
    assert one.news[-1][0].state is ServiceState.MISSING
    assert "systemd cannot be asked" in one.news[-1][0].message
    units.refuses = None
    for _ in range(3):
        await turned(one, clock, 5.0)
    assert units.asked == [Verb.START, Verb.START]
    units.set(active="inactive", sub="dead", pid=None)
    await turned(watcher(tmp_path, units, clock))
    assert len(units.asked) == 2


async def test_it_gives_up_until_a_person_asks(tmp_path, units, clock):
    one = watcher(tmp_path, units, clock, ServiceConfig(unit=UNIT, restart=RestartConfig(limit=2)))
    await do(one, Verb.START)
    units.fails = {Verb.START}
    units.crash()
    for _ in range(40):
        await turned(one, clock, 60.0)
    assert units.asked == [Verb.START] * 3
    assert "started anew 2 times in vain" in one.news[-1][0].message
    units.fails = set()
    assert (await do(one, Verb.START)).failure is None
    assert (await do(one, Verb.STATUS)).seen.restarts == 0


async def test_one_that_may_not_be_started_anew_says_so(tmp_path, units, clock):
    one = watcher(tmp_path, units, clock)
    await do(one, Verb.START)
    units.crash()
    units.refuses = Trouble.DENIED
    await turned(one)
    await turned(one, clock, 11.0)
    await turned(one, clock, 5.0)
    assert "ostler node install" in one.news[-1][0].message


async def test_changes_are_told_soon_and_without_a_storm(tmp_path, units, clock):
    one = watcher(tmp_path, units, clock)
    await turned(one)
    assert [soon for _, soon in one.news] == [True]
    await turned(one, clock, 5.0)
    assert len(one.news) == 1  # nothing changed
    units.set(active="active", sub="running", pid=1)
    await turned(one, clock, 5.0)
    units.set(active="inactive", sub="dead", pid=None)
    assert await turned(one, clock, 0.2) == pytest.approx(0.8)
    units.set(active="active", sub="running", pid=2)
    await turned(one, clock, 0.8)
    assert [seen.pid for seen, _ in one.news] == [None, 1, 2]


async def test_a_newer_wish_does_not_wait_for_an_older_one(tmp_path, units, clock):
    """A start that hangs is dropped by systemd when somebody wants a stop; what is kept is the last wish."""
    one = watcher(tmp_path, units, clock)
    units.gate = asyncio.Event()
    starting = asyncio.ensure_future(do(one, Verb.START))
    await until(lambda: units.asked == [Verb.START])
    hanging, units.gate = units.gate, None
    stopped = await do(one, Verb.STOP)
    assert (stopped.failure, stopped.seen.state, stopped.seen.desired) == (None, ServiceState.STOPPED, Desired.STOPPED)
    units.ends = "canceled"
    hanging.set()
    failure = (await starting).failure
    assert (failure.code, "something else was asked" in failure.message) == (FailureCode.SERVICE, True)
    assert Wishes(tmp_path).of("xmrig").desired is Desired.STOPPED


async def test_wishes_of_several_services_are_all_kept(tmp_path, units, clock):
    names = [f"s{n}" for n in range(8)]
    one = ServiceWatcher(
        {name: ServiceConfig(unit=UNIT) for name in names}, units=units, wishes=Wishes(tmp_path), journals=Silent(), clock=clock,
        logger=LOGGER,
    )  # fmt: skip
    await asyncio.gather(*(one.carry_out(Command(name, Verb.STOP)) for name in names))
    assert {Wishes(tmp_path).of(name).desired for name in names} == {Desired.STOPPED}


# --- probes ---


@contextlib.asynccontextmanager
async def answering(answer):
    """A server that writes these bytes to whoever has asked."""

    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def said(status, body, *more):
    head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status} X", *more))
    return f"{head}\r\n".encode() + body


async def test_an_ill_service_is_told_and_where_wanted_started_anew(tmp_path, units, clock):
    state = {"status": 200, "hashrate": 1000.0}

    def answer():
        body = json.dumps({"hashrate": {"total": [state["hashrate"]]}}).encode()
        return said(state["status"], body, f"Content-Length: {len(body)}")

    async with answering(answer) as port:
        url = f"http://127.0.0.1:{port}/2/summary"
        config = ServiceConfig(
            unit=UNIT,
            health=(ProbeConfig(http=url, failures=2),),
            metrics=MetricsConfig(url=url, values={"hashrate": "hashrate.total[0]", "none": "x"}),
            restart=RestartConfig(unhealthy=True),
        )
        one = watcher(tmp_path, units, clock, config)
        done = await do(one, Verb.START)
        assert done.seen.health is Health.UNKNOWN
        await turned(one)
        await turned(one, clock, 5.0)
        seen = one.news[-1][0]
        assert (seen.health, seen.metrics) == (Health.HEALTHY, {"hashrate": 1000.0})
        state.update(status=500, hashrate=0.5)
        for _ in range(4):  # within its start grace
            await turned(one, clock, 5.0)
        for _ in range(6):
            await turned(one, clock, 10.0)
            if one.news[-1][0].state is ServiceState.UNHEALTHY:
                break
        seen = one.news[-1][0]
        assert (seen.state, seen.health, seen.message) == (ServiceState.UNHEALTHY, Health.UNHEALTHY, f"{url} answers 500")
        assert seen.retry_s is not None
        await turned(one, clock, 10.0)
        assert units.asked == [Verb.START, Verb.RESTART]


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (said(200, b"ab", "Content-Length: 2"), (200, b"ab")),
        (said(404, b"2\r\nab\r\n0\r\n\r\n", "Transfer-Encoding: chunked"), (404, b"ab")),
        (said(200, b"until the end"), (200, b"until the end")),
        (said(200, b"x" * 200_000), "more than 64 KiB"),
        (b"SSH-2.0-x\r\n", "in HTTP"),
        (b"", "in HTTP"),
    ],
)
async def test_an_answer_of_a_service_is_read_within_bounds(answer, result):
    async with answering(lambda: answer) as port:
        if isinstance(result, tuple):
            assert await get(f"http://127.0.0.1:{port}/", timeout_s=20, most=1 << 16) == result
        else:
            with pytest.raises(WebTrouble, match=result):
                await get(f"http://127.0.0.1:{port}/", timeout_s=20, most=1 << 16)


async def test_questions_that_fail_say_what_is_wrong(tmp_path):
    asking = Asking(Silent())

    async def ask(**probe):
        return await asking.ask(UNIT, Question(ProbeConfig(**probe)))

    async with answering(lambda: b"") as port:
        assert await ask(tcp=f"127.0.0.1:{port}") is None
    assert "cannot be reached" in await ask(tcp=f"127.0.0.1:{port}")
    assert "cannot be reached" in await ask(http=f"http://127.0.0.1:{port}/")
    assert await ask(command=("/bin/true",)) is None
    assert await ask(command=("/bin/sh", "-c", "echo no pool >&2; exit 3")) == "/bin/sh ended with 3: no pool"
    assert "did not end within 0.2 s" in await ask(command=("/bin/sleep", "60"), timeout=timedelta(seconds=0.2))
    with pytest.raises(WebTrouble, match="of this machine"):
        await get("http://192.0.2.1/", timeout_s=1)


async def test_a_line_of_the_journal_is_trouble_once_and_an_unreadable_one_says_nothing():
    class Played(Journals):
        def __init__(self):
            self._commands = self
            first, second = "FATAL of yesterday\n-- cursor: a\n", "fine\nFATAL: no pool\n-- cursor: b\n"
            self.said = [Output(0, first), Output(0, second), Output(0, "")]

        def run(self, *argv):
            return (
                self.said.pop(0) if self.said else Output(1, "", "No journal files were opened due to insufficient permissions.")
            )

    asking, question = Asking(Played()), Question(ProbeConfig(log="FATAL"))
    assert await asking.ask(UNIT, question) is None
    assert question.cursor == "a"
    assert await asking.ask(UNIT, question) == "it wrote 'FATAL: no pool'"
    assert await asking.ask(UNIT, question) is None
    with pytest.raises(Unasked, match="systemd-journal"):
        await asking.ask(UNIT, question)


async def test_the_first_lines_of_a_unit_that_had_written_nothing_are_not_missed():
    class Fresh(Journals):
        def __init__(self):
            self._commands, self.said = self, [Output(0, "-- No entries --\n"), Output(0, "FATAL: no pool\n-- cursor: a\n")]

        def run(self, *argv):
            return self.said.pop(0)

    asking, question = Asking(Fresh()), Question(ProbeConfig(log="FATAL"))
    assert await asking.ask(UNIT, question) is None
    assert await asking.ask(UNIT, question) == "it wrote 'FATAL: no pool'"
    assert question.cursor == "a"


async def test_a_journal_that_may_not_be_read_is_told_until_it_may(tmp_path, units, clock):
    one = watcher(tmp_path, units, clock, ServiceConfig(unit=UNIT, health=(ProbeConfig(log="FATAL"),)))
    one._asking = Asking(readable := Played("unreadable"))
    await do(one, Verb.START)
    await turned(one)
    await turned(one, clock, 5.0)
    assert (one.news[-1][0].health, "systemd-journal" in one.news[-1][0].message) == (Health.UNKNOWN, True)
    readable.unreadable = False
    await turned(one, clock, 10.0)
    await turned(one, clock, 5.0)
    assert (one.news[-1][0].health, one.news[-1][0].message) == (Health.HEALTHY, "")


class Played(Journals):
    """A journal without lines, at first unreadable."""

    def __init__(self, unreadable):
        self.unreadable = bool(unreadable)

    def after(self, unit, cursor):
        return Lines(readable=not self.unreadable)


# --- programs ---


@pytest.mark.skipif(os.geteuid() != 0, reason="programs of services belong to root")
def test_a_program_is_looked_at_and_only_looked_at(tmp_path):
    programs, place, other = Programs(), tmp_path / "local/xmrig", tmp_path / "xmrig"
    config = ServiceConfig(unit=UNIT, binary=place, candidates=(place, other), version="^XMRig 6")
    place.parent.mkdir()
    assert programs.absent("xmrig", config) == "xmrig not found, its service will not work"
    other.write_text("#!/bin/sh\necho XMRig 6.21.0\n")
    other.chmod(0o755)
    assert f"{other} is there: `ostler node install`" in programs.absent("xmrig", config)
    assert not place.exists()
    place.symlink_to(other)
    assert programs.absent("xmrig", config) is None
    other.write_text("#!/bin/sh\necho XMRig 5\n")
    assert "says 'XMRig 5', not ^XMRig 6" in programs.absent("xmrig", config)
    other.chmod(0o777)
    assert "written to by others" in programs.absent("xmrig", config)
    other.chmod(0o755)
    os.chown(other, 65534, -1)
    assert "belongs to user 65534" in programs.absent("xmrig", config)
    assert Programs().absent("x", ServiceConfig(unit=UNIT)) is None


async def test_the_second_way_is_taken_where_the_first_leads_nowhere(units):
    first, second = PlayedUnits(), units
    both = Either(first, second)
    second.view = replace(second.view, active="failed")
    assert (await both.look(UNIT)).active == "inactive"
    first.refuses = Trouble.UNREACHABLE
    assert (await both.look(UNIT)).active == "failed"
    assert await both.act(Verb.START, UNIT, lambda: None) == "done"
    assert (first.asked, second.asked) == ([Verb.START], [Verb.START])
    first.refuses = Trouble.DENIED
    with pytest.raises(UnitTrouble):
        await both.act(Verb.START, UNIT, lambda: None)
    assert second.asked == [Verb.START]


# --- through a daemon ---


@pytest.fixture
async def coordinator():
    fake = await FakeCoordinator().start()
    yield fake
    await fake.stop()


@pytest.fixture
async def rig(tmp_path, coordinator, units):
    def services(config):
        return ServiceWatcher(
            {"xmrig": ServiceConfig(unit=UNIT)}, units=units, wishes=Wishes(config.state),
            journals=Silent(), clock=SystemClock(), logger=LOGGER,
        )  # fmt: skip

    one = NodeRig(tmp_path, coordinator, services=services, slots=1)
    await one.start()
    yield one
    await one.stop()


def command(coordinator, job_id, verb, **more):
    coordinator.offer(job_id, runner="service", command=more.pop("service", "xmrig"), args=[verb], **more)


async def test_a_command_begins_beside_full_slots_and_is_told_with_what_was_seen(rig, coordinator, units):
    coordinator.offer("long", command="wait")
    await until(lambda: rig.runner.started)
    command(coordinator, "c1", "start")
    outcome = await until(lambda: rig.over("c1"), "the command")
    assert (outcome.failure, outcome.cancelled, outcome.sandbox) == (None, False, None)
    seen = json.loads(coordinator.logs["c1", 1, "stdout"])
    assert (seen["name"], seen["state"], seen["desired"]) == ("xmrig", "running", "running")
    told = await until(lambda: [b.services for b in coordinator.beats if b.services and b.services[0].pid], "a heartbeat")
    assert told[0][0].state is ServiceState.RUNNING
    assert not (rig.config.workspace.root / "c1").exists()
    assert rig.daemon.pace.median_s is None  # it says nothing of how long jobs take
    rig.runner.end("long/1")


async def test_a_drained_node_takes_commands_and_refuses_what_it_does_not_declare(rig, coordinator, units):
    await until(lambda: rig.daemon.session.is_open)
    rig.daemon.drains.drain(None)
    command(coordinator, "c1", "status")
    assert (await until(lambda: rig.over("c1"), "status")).failure is None
    command(coordinator, "c2", "stop", service="sshd")
    failure = (await until(lambda: rig.over("c2"), "a refusal")).failure
    assert (failure.code, "declares no service sshd" in failure.message) == (FailureCode.DENY, True)
    units.fails = {Verb.START}
    command(coordinator, "c3", "start")
    assert (await until(lambda: rig.over("c3"), "a failure")).failure.code is FailureCode.SERVICE
    assert json.loads(coordinator.logs["c3", 1, "stdout"])["state"] == "crashed"
    assert coordinator.declined == []


@pytest.mark.parametrize("attempt", [1, 2])
async def test_a_command_that_a_crash_cut_off_ends_and_nothing_hangs(rig, coordinator, units, attempt):
    """A first attempt is carried out anew once the coordinator says so; a later one, which has a workspace, is reported lost."""
    units.gate = asyncio.Event()
    command(coordinator, "c1", "stop", attempt=attempt)
    await until(lambda: units.asked)
    await rig.crash()
    units.gate.set()
    await rig.start()
    outcome = await until(lambda: rig.over("c1", attempt), "its end")
    if attempt == 1:
        assert outcome.failure is None
        assert units.asked == [Verb.STOP, Verb.STOP]
    else:
        assert outcome.failure.code is FailureCode.LOST


async def test_a_command_can_be_cancelled_and_has_its_time(rig, coordinator, units):
    units.gate = asyncio.Event()
    command(coordinator, "c1", "stop", timeout_s=0.2)
    failure = (await until(lambda: rig.over("c1"), "its end")).failure
    assert (failure.code, "within 0.2 s" in failure.message) == (FailureCode.TIMEOUT, True)
    command(coordinator, "c2", "stop")
    await until(lambda: len(units.asked) == 2)
    directive = coordinator.tell("cancel", "c2", 1)
    assert (await until(lambda: rig.over("c2"), "its end")).cancelled
    coordinator.directives.remove(directive)
    units.gate.set()


async def test_the_coordinator_is_told_all_in_each_session(rig, coordinator):
    await until(lambda: any(b.services for b in coordinator.beats))
    count = sum(bool(b.services) for b in coordinator.beats)
    coordinator.tokens.clear()
    await until(lambda: sum(bool(b.services) for b in coordinator.beats) > count, "observations in the new session")
