"""systemd over D-Bus (source: org.freedesktop.systemd1(5)): jobs by their end, changes by signals, as this process's own user."""

import asyncio
import contextlib
from collections.abc import Callable, Collection
from typing import Any

from jeepney import DBusAddress, HeaderFields, MatchRule, Message, MessageType, new_method_call
from jeepney.io.asyncio import DBusConnection, open_dbus_connection

from ostler.model.service import Verb
from ostler.node.services.units import PROPERTIES, SERVICE_PROPERTIES, Trouble, UnitTrouble, UnitView, unit_object

SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"
ANSWER_S = 10.0
AGAIN_S = 5.0  # a bus that could not be reached is left alone for so long
KEPT = 64  # ends of jobs that nobody has asked for yet
_NAME = "org.freedesktop.systemd1"
_MANAGER = DBusAddress("/org/freedesktop/systemd1", _NAME, "org.freedesktop.systemd1.Manager")
_BUS = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
_PROPERTIES = "org.freedesktop.DBus.Properties"
_METHODS = {Verb.START: "StartUnit", Verb.STOP: "StopUnit", Verb.RESTART: "RestartUnit"}
_TROUBLES = {
    "org.freedesktop.systemd1.NoSuchUnit": Trouble.MISSING,
    "org.freedesktop.systemd1.LoadFailed": Trouble.MISSING,
    "org.freedesktop.systemd1.UnitMasked": Trouble.MASKED,
    "org.freedesktop.DBus.Error.AccessDenied": Trouble.DENIED,
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": Trouble.DENIED,
    "org.freedesktop.DBus.Error.NameHasNoOwner": Trouble.UNREACHABLE,
    "org.freedesktop.DBus.Error.ServiceUnknown": Trouble.UNREACHABLE,
    "org.freedesktop.DBus.Error.NoReply": Trouble.UNREACHABLE,
    "org.freedesktop.DBus.Error.Disconnected": Trouble.UNREACHABLE,
}


class _Line:
    """One connection: answers go to who asked, signals to who waits for them."""

    def __init__(self, connection: DBusConnection, changed: Callable[[], None], lost: Callable[["_Line"], None]) -> None:
        self._connection = connection
        self._changed = changed
        self._lost = lost
        self._asked: dict[int, asyncio.Future[Message]] = {}
        self._awaited: dict[str, asyncio.Future[str]] = {}
        self._ended: dict[str, str] = {}
        self._receiving = asyncio.get_running_loop().create_task(self._receive())

    async def call(self, address: DBusAddress, method: str, signature: str | None = None, body: tuple[Any, ...] = ()) -> Any:
        """A method's answer. Raises UnitTrouble."""
        serial = next(self._connection.outgoing_serial)
        answer = self._asked[serial] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._connection.send(new_method_call(address, method, signature, body), serial=serial)
                reply = await answer
        except (OSError, TimeoutError) as exc:
            raise UnitTrouble(Trouble.UNREACHABLE, f"the system bus does not answer: {exc or type(exc).__name__}") from exc
        finally:
            self._asked.pop(serial, None)
        if reply.header.message_type is MessageType.error:
            name = str(reply.header.fields.get(HeaderFields.error_name))
            said = str(reply.body[0]) if reply.body else name
            raise UnitTrouble(_TROUBLES.get(name, Trouble.FAILED), said)
        return reply.body

    async def end_of(self, job: str) -> str:
        """How a job of systemd's ended. Raises UnitTrouble where that will not be told."""
        if job in self._ended:
            return self._ended.pop(job)
        future = self._awaited[job] = asyncio.get_running_loop().create_future()
        try:
            result: str = await future
        finally:
            self._awaited.pop(job, None)
        return result

    async def _receive(self) -> None:
        try:
            while True:
                self._take(await self._connection.receive())
        except (OSError, EOFError) as exc:
            gone = UnitTrouble(Trouble.UNREACHABLE, f"the system bus went away: {exc or type(exc).__name__}")
        except Exception as exc:  # what the library cannot read ends the line as well
            gone = UnitTrouble(Trouble.UNREACHABLE, f"the system bus is not understood: {exc!r}")
        for future in (*self._asked.values(), *self._awaited.values()):
            if not future.done():
                future.set_exception(gone)
        self._lost(self)
        with contextlib.suppress(OSError):
            await self._connection.close()

    def _take(self, message: Message) -> None:
        fields = message.header.fields
        answered = self._asked.get(fields.get(HeaderFields.reply_serial, -1))
        if answered is not None:
            if not answered.done():
                answered.set_result(message)
        elif message.header.message_type is MessageType.signal:
            match fields.get(HeaderFields.member):
                case "JobRemoved":
                    self._removed(str(message.body[1]), str(message.body[3]))
                case "PropertiesChanged":
                    self._changed()

    def _removed(self, job: str, result: str) -> None:
        future = self._awaited.get(job)
        if future is not None and not future.done():
            future.set_result(result)
            return
        self._ended[job] = result  # it may be over before who began it has read that it began
        while len(self._ended) > KEPT:
            del self._ended[next(iter(self._ended))]

    async def close(self) -> None:
        """Hang up."""
        self._receiving.cancel()
        await asyncio.gather(self._receiving, return_exceptions=True)
        with contextlib.suppress(OSError):
            await self._connection.close()


class UnitsByBus:
    """A Units over one connection, which is made anew when it is lost."""

    def __init__(self, bus: str = SYSTEM_BUS) -> None:
        """`bus` is an address as D-Bus writes it."""
        self._bus = bus
        self._line: _Line | None = None
        self._opening = asyncio.Lock()
        self._again_at = 0.0
        self._watched: tuple[str, ...] = ()
        self._tell: Callable[[], None] = lambda: None

    async def look(self, unit: str) -> UnitView:
        """How it is now."""
        line = await self._open()
        names = [(f"{_NAME}.Unit", one) for one in PROPERTIES] + [(f"{_NAME}.Service", one) for one in SERVICE_PROPERTIES]
        where = DBusAddress(unit_object(unit), _NAME, _PROPERTIES)
        bodies = await asyncio.gather(*(line.call(where, "Get", "ss", name) for name in names))
        found = {name: body[0][1] for (_, name), body in zip(names, bodies, strict=True)}
        return UnitView(
            load=found["LoadState"],
            active=found["ActiveState"],
            sub=found["SubState"],
            pid=found["MainPID"] or None,
            result=found["Result"],
            status=found["ExecMainStatus"],
            restarts=found["NRestarts"],
            invocation=bytes(found["InvocationID"]).hex(),
        )

    async def act(self, verb: Verb, unit: str, accepted: Callable[[], None]) -> str:
        """Carry a verb out."""
        line = await self._open()
        (job,) = await line.call(_MANAGER, _METHODS[verb], "ss", (unit, "replace"))
        accepted()
        return await line.end_of(job)

    async def booted(self) -> str:
        """When systemd began."""
        line = await self._open()
        where = DBusAddress(_MANAGER.object_path, _NAME, _PROPERTIES)
        ((_, micros),) = await line.call(where, "Get", "ss", (_MANAGER.interface, "UserspaceTimestamp"))
        return f"@{micros // 1_000_000}"

    async def watch(self, units: Collection[str], changed: Callable[[], None]) -> None:
        """From now on, over this connection and each later one. Before it, no verb's end is told."""
        self._watched, self._tell = tuple(units), changed
        await self.close()

    async def close(self) -> None:
        """Hang up."""
        line, self._line = self._line, None
        if line is not None:
            await line.close()

    def _forget(self, line: _Line) -> None:
        if self._line is line:
            self._line = None
        self._tell()

    async def _open(self) -> _Line:
        async with self._opening:
            if self._line is not None:
                return self._line
            now = asyncio.get_running_loop().time()
            if now < self._again_at:
                raise UnitTrouble(Trouble.UNREACHABLE, "the system bus cannot be reached")
            try:
                async with asyncio.timeout(ANSWER_S):
                    line = _Line(await open_dbus_connection(self._bus), self._tell, self._forget)
            except Exception as exc:
                self._again_at = now + AGAIN_S
                raise UnitTrouble(Trouble.UNREACHABLE, f"the system bus cannot be reached: {exc or type(exc).__name__}") from exc
            try:
                await self._subscribe(line)
            except BaseException:
                await line.close()
                raise
            self._line = line
            return line

    async def _subscribe(self, line: _Line) -> None:
        await line.call(_MANAGER, "Subscribe")
        for unit in self._watched:
            ends = MatchRule(type="signal", sender=_NAME, interface=_MANAGER.interface, member="JobRemoved")
            ends.add_arg_condition(2, unit)
            changes = MatchRule(
                type="signal", sender=_NAME, interface=_PROPERTIES, member="PropertiesChanged",
                path=unit_object(unit),
            )  # fmt: skip
            for rule in (ends, changes):
                await line.call(_BUS, "AddMatch", "s", (rule.serialise(),))
