"""The keeper's socket and its one loop: clients, signals and due times, none of which can hold up another."""

import _socket  # `socket` imports `enum` and `selectors`: an eighth of this process's memory
import os
import select
import sys
import time

from ostler.node.keeper import kernel, wire
from ostler.node.keeper.attempt import NEVER
from ostler.node.keeper.keeper import Keeper
from ostler.node.keeper.requests import Fields, Kill, Refusal, Start, checked_key, checked_keys
from ostler.node.keeper.waiting import Waiting

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing and collections cost memory
    from collections.abc import Callable

PROTOCOL = 1

_LINE_BYTES = 8 * 1024 * 1024
_REPLY_BYTES = 32 * 1024 * 1024
_READ_BYTES = 64 * 1024
_CLIENTS = 64
_BACKLOG = 64
_GOODBYE_S = 1.0
_SIGNAL_RECORD = 128
_FALSE_START_S = 0.05
_BIRTH_LOOK_S = 0.001  # the least that epoll waits


class Client:
    """One connection: bytes that came in without a line end yet, and bytes that its reader has not taken."""

    __slots__ = ("inbox", "outbox", "socket", "writing")

    def __init__(self, socket: "_socket.socket") -> None:
        self.socket = socket
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.writing = False


class Server:
    """Serves a keeper until it is told to stop and nothing runs any more."""

    def __init__(
        self,
        *,
        listener: "_socket.socket",
        hello: dict[str, object],
        log: "Callable[[str, dict[str, object]], None]",
    ) -> None:
        self._listener = listener
        self._hello = wire.encode(hello).encode() + b"\n"
        self._log = log
        self._buffer = bytearray(_READ_BYTES)
        self._view = memoryview(self._buffer)
        self._clients: dict[int, Client] = {}
        self._events: list[str] = []
        self._waiting = Waiting()
        self._poll = select.epoll()
        self._signals = kernel.signal_descriptor()
        self._poll.register(self._signals, select.EPOLLIN)
        self._poll.register(listener.fileno(), select.EPOLLIN)

    def publish(self, event: str) -> None:
        """Tell all clients at the end of this turn."""
        self._events.append(event)

    def serve(self, keeper: Keeper) -> None:
        """Run until stopped."""
        keeper.reap()
        while keeper.running or not keeper.stopping:
            self._turn(keeper)
        self._say_goodbye()

    def _turn(self, keeper: Keeper) -> None:
        due = keeper.next_look
        timeout = -1.0 if due == NEVER else max(0.0, due - time.monotonic())
        if keeper.beginning:  # nothing tells when a program executes; most end before that is looked for
            timeout = _BIRTH_LOOK_S if timeout < 0 else min(timeout, _BIRTH_LOOK_S)
        for descriptor, _ in self._poll.poll(timeout):
            if descriptor == self._signals:
                self._take_signals(keeper)
            elif descriptor == self._listener.fileno():
                self._accept()
            elif descriptor in self._clients:
                self._serve_client(self._clients[descriptor], keeper)
        if keeper.beginning:
            keeper.see_births()
        now = time.monotonic()
        if now >= keeper.next_look:
            keeper.look(now)
        self._admit(keeper)
        keeper.flush()
        self._deliver()

    def _take_signals(self, keeper: Keeper) -> None:
        """SIGCHLD: a child ended; SIGTERM: stop. SIGINT and SIGHUP are taken and left."""
        try:
            records = os.read(self._signals, 16 * _SIGNAL_RECORD)
        except BlockingIOError:
            return
        numbers = {records[at] for at in range(0, len(records), _SIGNAL_RECORD)}
        if kernel.SIGCHLD in numbers:
            keeper.reap()
        if kernel.SIGTERM in numbers:
            keeper.stop()

    # clients

    def _accept(self) -> None:
        try:
            descriptor, _ = self._listener._accept()  # type: ignore[attr-defined]
        except OSError as error:
            if error.errno in (23, 24):  # no descriptors left: do not spin on a listener that stays readable
                time.sleep(_FALSE_START_S)
            return
        socket = _socket.socket(fileno=descriptor)
        socket.setblocking(False)
        peer = socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        uid = int.from_bytes(peer[4:8], sys.byteorder)
        if uid not in (0, os.getuid()):
            self._log("keeper.client_refused", {"uid": uid})
            socket.close()
            return
        if len(self._clients) >= _CLIENTS:
            self._log("keeper.too_many_clients", {"clients": len(self._clients)})
            socket.close()
            return
        client = self._clients[descriptor] = Client(socket)
        self._poll.register(descriptor, select.EPOLLIN)
        client.outbox += self._hello

    def _serve_client(self, client: Client, keeper: Keeper) -> None:
        """Carry out every whole line that has come in; the answers go out together at the end of the turn."""
        try:
            count = client.socket.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            count = 0
        if not count:
            self._drop(client)
            return
        inbox = client.inbox
        seen = len(inbox)
        inbox += self._view[:count]
        end = inbox.rfind(b"\n", seen)
        if end < 0:
            if len(inbox) > _LINE_BYTES:
                self._log("keeper.client_dropped", {"why": "a line longer than the limit"})
                self._drop(client)
            return
        lines = bytes(inbox[:end]).split(b"\n")
        del inbox[: end + 1]
        for line in lines:
            client.outbox += self._answer(client, line, keeper)

    def _answer(self, client: Client, line: bytes, keeper: Keeper) -> bytes:
        number: int | None = None
        try:
            try:
                values = wire.decode(line)
            except ValueError as error:
                raise Refusal("malformed", f"not a line of JSON: {error}") from None
            fields = Fields(values)
            number = fields.integer("id", 0, 1 << 53)
            operation = fields.text("op")
            if operation == "list":  # its records are JSON already
                return f'{{"id":{wire.encode(number)},"ok":true,"children":{keeper.children()}}}\n'.encode()
            if operation == "start":
                request = Start(fields)
                if request.room is not None:
                    self._waiting.add(client, number, request)  # answered when it begins, with the end of this turn perhaps
                    return b""
                keeper.start(request, self._answerer(client, number))
                return b""
            return _done(number, self._carry_out(operation, fields, keeper))
        except Exception as error:
            return self._failed(number, error)

    def _carry_out(self, operation: str | None, fields: Fields, keeper: Keeper) -> dict[str, object]:
        if operation == "forget":
            return keeper.forget(checked_keys(fields))
        if operation == "kill":
            return self._kill(Kill(fields), keeper)
        if operation == "withdraw":
            key = checked_key(fields)
            return {"running": not self._take_back(key, Refusal("withdrawn", f"{key} was taken back before it began"))}
        if operation == "ping":
            return {}
        if operation == "shutdown":
            keeper.stop()
            return {}
        raise Refusal("unknown_op", f"{operation!a} is not an operation of protocol {PROTOCOL}")

    def _kill(self, request: Kill, keeper: Keeper) -> dict[str, object]:
        if self._take_back(request.key, Refusal("withdrawn", f"{request.key} was ended before it began: {request.reason}")):
            return {"running": False}
        return keeper.kill(request)

    def _take_back(self, key: str, why: Refusal) -> bool:
        """Tell whoever asked for a start that waits that there will be none; whether one did."""
        waited = self._waiting.take(key)
        if waited is not None:
            client, number = waited
            client.outbox += self._failed(number, why)
        return waited is not None

    def _admit(self, keeper: Keeper) -> None:
        """Start what has waited for room, now that there is some."""
        while (one := self._waiting.next(keeper.roomed, stopping=keeper.stopping)) is not None:
            client, number, request = one
            try:
                keeper.start(request, self._answerer(client, number))
            except Exception as error:
                client.outbox += self._failed(number, error)

    def _answerer(self, client: Client, number: int | None) -> "Callable[[dict[str, object] | Exception], None]":
        """What a start is answered with, once it is known."""

        def answer(said: dict[str, object] | Exception) -> None:
            client.outbox += self._failed(number, said) if isinstance(said, Exception) else _done(number, said)

        return answer

    def _failed(self, number: int | None, error: Exception) -> bytes:
        """The answer to a request that was not carried out; for what is no refusal the log has a line too."""
        if isinstance(error, Refusal):
            said = error.as_reply()
        else:
            what = f"{type(error).__name__}: {error}"
            self._log("keeper.bug", {"error": what})
            said = {"code": "internal", "message": what}
        return wire.encode({"id": number, "error": said}).encode() + b"\n"

    def _deliver(self) -> None:
        """Hand out events and replies; a client that does not take them is dropped before it costs much memory."""
        if self._events:
            events = ("\n".join(self._events) + "\n").encode()
            self._events.clear()
            for client in self._clients.values():
                client.outbox += events
        for client in [client for client in self._clients.values() if client.outbox]:
            self._send(client)

    def _send(self, client: Client) -> None:
        try:
            sent = client.socket.send(client.outbox, _socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._drop(client)
            return
        del client.outbox[:sent]
        if len(client.outbox) > _REPLY_BYTES:
            self._log("keeper.client_dropped", {"why": "it does not read", "bytes": len(client.outbox)})
            self._drop(client)
            return
        writing = bool(client.outbox)
        if writing != client.writing:
            client.writing = writing
            # one that does not read its answers is not heard either
            self._poll.modify(client.socket.fileno(), select.EPOLLOUT if writing else select.EPOLLIN)

    def _drop(self, client: Client) -> None:
        descriptor = client.socket.fileno()
        self._poll.unregister(descriptor)
        del self._clients[descriptor]
        client.socket.close()
        self._waiting.drop(client)

    def _say_goodbye(self) -> None:
        """Let clients have the last records, but not for long."""
        deadline = time.monotonic() + _GOODBYE_S
        for client in list(self._clients.values()):
            client.socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                while client.outbox:
                    del client.outbox[: client.socket.send(client.outbox, _socket.MSG_NOSIGNAL)]
            except OSError:
                continue


def _done(number: int | None, reply: dict[str, object]) -> bytes:
    return wire.encode({"id": number, "ok": True, **reply}).encode() + b"\n"
