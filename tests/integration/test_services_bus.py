"""Units over D-Bus: a real bus, and on it a systemd that a test plays, which loses connections and ends jobs at will."""

import asyncio
import shutil
import subprocess

import pytest
from jeepney import DBusAddress, HeaderFields, Message, MessageType, new_error, new_method_call, new_method_return, new_signal
from jeepney.io.asyncio import open_dbus_connection

from integration.node_rig import until
from ostler.model.service import Verb
from ostler.node.services import dbus
from ostler.node.services.dbus import UnitsByBus
from ostler.node.services.units import Trouble, UnitTrouble, unit_object

UNIT = "xmrig.service"
NAME = "org.freedesktop.systemd1"
MANAGER = "org.freedesktop.systemd1.Manager"
CONFIG = """<busconfig><type>custom</type><listen>unix:path={socket}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>"""
VALUES = {
    "LoadState": ("s", "loaded"), "ActiveState": ("s", "active"), "SubState": ("s", "running"), "InvocationID": ("ay", b"\xab\xcd"),
    "MainPID": ("u", 42), "Result": ("s", "success"), "ExecMainStatus": ("i", 0), "NRestarts": ("u", 3),
    "UserspaceTimestamp": ("t", 1_700_000_000_123_456),
}  # fmt: skip


class PlayedSystemd:
    """Answers as systemd does. `error` is what verbs get, `hasty` ends a job before its answer, `hold` never ends one."""

    def __init__(self, connection):
        self._connection = connection
        self.error = None
        self.hasty = self.hold = False
        self.calls = []
        self._job = 0
        self._serving = asyncio.get_running_loop().create_task(self._serve())

    @classmethod
    async def on(cls, bus):
        connection = await open_dbus_connection(bus)
        one = cls(connection)
        await connection.send(_to_bus("RequestName", "su", (NAME, 4)))
        return one

    async def changed(self):
        address = DBusAddress(unit_object(UNIT), interface="org.freedesktop.DBus.Properties")
        await self._connection.send(new_signal(address, "PropertiesChanged", "sa{sv}as", (f"{NAME}.Unit", {}, [])))

    async def close(self):
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)
        await self._connection.close()

    async def _serve(self):
        while True:
            message = await self._connection.receive()
            if message.header.message_type is MessageType.method_call:
                await self._answer(message, message.header.fields[HeaderFields.member])

    async def _answer(self, call: Message, member):
        self.calls.append((member, call.body))
        if member == "Get":
            await self._connection.send(new_method_return(call, "v", (VALUES[call.body[1]],)))
        elif member == "Subscribe":
            await self._connection.send(new_method_return(call))
        elif self.error is not None:
            await self._connection.send(new_error(call, self.error, "s", ("as the test says",)))
        else:
            self._job += 1
            job = f"/org/freedesktop/systemd1/job/{self._job}"
            answer = new_method_return(call, "o", (job,))
            ended = new_signal(
                DBusAddress("/org/freedesktop/systemd1", interface=MANAGER), "JobRemoved", "uoss", (1, job, UNIT, "done")
            )
            for one in [ended, answer] if self.hasty else [answer] if self.hold else [answer, ended]:
                await self._connection.send(one)


def _to_bus(method, signature, body):
    return new_method_call(
        DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus"), method, signature, body
    )


class Bus:
    """A dbus-daemon, and connections to it that are closed at the end."""

    def __init__(self, folder):
        self.folder, self.address = folder, f"unix:path={folder}/bus"
        (folder / "bus.conf").write_text(CONFIG.format(socket=folder / "bus"))
        self.process = None

    async def start(self):
        (self.folder / "bus").unlink(missing_ok=True)
        argv = [shutil.which("dbus-daemon"), f"--config-file={self.folder}/bus.conf", "--nofork"]
        self.process = subprocess.Popen(argv)  # noqa: ASYNC220 - it returns at once
        await until((self.folder / "bus").exists, "a bus")

    def stop(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
async def bus(tmp_path):
    if shutil.which("dbus-daemon") is None:
        pytest.skip("there is no dbus-daemon: apt-get install dbus")
    one = Bus(tmp_path)
    await one.start()
    yield one
    one.stop()


@pytest.fixture
async def systemd(bus):
    one = await PlayedSystemd.on(bus.address)
    yield one
    await one.close()


@pytest.fixture
async def units(bus, systemd):
    one = UnitsByBus(bus.address)
    one.changes = 0

    def changed():
        one.changes += 1

    await one.watch([UNIT], changed)
    yield one
    await one.close()


async def test_a_unit_is_seen_and_commanded_and_its_changes_are_told(units, systemd):
    view = await units.look(UNIT)
    assert (view.load, view.active, view.sub, view.pid, view.restarts, view.invocation) == (
        "loaded",
        "active",
        "running",
        42,
        3,
        "abcd",
    )
    assert await units.booted() == "@1700000000"
    accepted = []
    for systemd.hasty in (False, True):  # a job may be over before its number is known here
        for verb in (Verb.START, Verb.STOP, Verb.RESTART):
            assert await units.act(verb, UNIT, lambda: accepted.append(1)) == "done"
    assert len(accepted) == 6
    assert [member for member, _ in systemd.calls if member.endswith("Unit")] == ["StartUnit", "StopUnit", "RestartUnit"] * 2
    assert {body for member, body in systemd.calls if member == "StopUnit"} == {(UNIT, "replace")}
    await systemd.changed()
    await until(lambda: units.changes, "a signal")


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        ("org.freedesktop.DBus.Error.AccessDenied", Trouble.DENIED),
        ("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", Trouble.DENIED),
        ("org.freedesktop.systemd1.NoSuchUnit", Trouble.MISSING),
        ("org.freedesktop.systemd1.UnitMasked", Trouble.MASKED),
        ("org.freedesktop.DBus.Error.Failed", Trouble.FAILED),
    ],
)
async def test_what_systemd_refuses_is_told_apart(units, systemd, error, trouble):
    systemd.error = error
    with pytest.raises(UnitTrouble, match="as the test says") as caught:
        await units.act(Verb.START, UNIT, lambda: None)
    assert caught.value.trouble is trouble


async def test_a_bus_that_goes_away_leaves_nobody_waiting_and_is_found_again(bus, units, systemd, monkeypatch):
    monkeypatch.setattr(dbus, "AGAIN_S", 0.0)
    systemd.hold = True
    accepted = []
    acting = asyncio.ensure_future(units.act(Verb.STOP, UNIT, lambda: accepted.append(1)))
    await until(lambda: accepted, "that it was taken")
    before = units.changes
    bus.stop()
    with pytest.raises(UnitTrouble, match="went away") as caught:
        await acting
    assert caught.value.trouble is Trouble.UNREACHABLE
    assert units.changes > before  # so that the watcher looks
    with pytest.raises(UnitTrouble) as caught:
        await units.look(UNIT)
    assert caught.value.trouble is Trouble.UNREACHABLE
    await bus.start()
    again = await PlayedSystemd.on(bus.address)
    try:
        assert (await units.look(UNIT)).pid == 42
        assert await units.act(Verb.START, UNIT, lambda: None) == "done"
        seen = units.changes
        await again.changed()
        await until(lambda: units.changes > seen, "a signal of the new bus")
    finally:
        await again.close()


async def test_one_that_does_not_answer_is_given_up(bus, monkeypatch):
    monkeypatch.setattr(dbus, "ANSWER_S", 0.2)
    deaf = await open_dbus_connection(bus.address)
    await deaf.send(_to_bus("RequestName", "su", (NAME, 4)))
    with pytest.raises(UnitTrouble, match="does not answer"):
        await UnitsByBus(bus.address).look(UNIT)
    await deaf.close()
    nowhere = UnitsByBus("unix:path=/nonexistent")
    for _ in range(2):  # after the first time it is left alone for a while
        with pytest.raises(UnitTrouble, match="cannot be reached"):
            await nowhere.look(UNIT)
