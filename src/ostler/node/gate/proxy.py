"""The gate itself: an HTTP proxy that connects to granted hosts, and refuses, counts and names all others.

It serves one attempt, as one process in one thread, with the attempt's own limits. All that it reads comes from a job, so each
number of connections, bytes and seconds has a bound; and it filters its own system calls as those of jobs are filtered.
"""

import asyncio
import contextlib
import json
import os
import resource
import socket
from concurrent.futures.thread import ThreadPoolExecutor
from dataclasses import dataclass, field

from ostler.model.network import Address, HostRule, may_connect, read_address, read_rule
from ostler.node.gate.request import MAX_HEAD, Ask, BadRequest, read_request
from ostler.node.keeper.kernel import NO_NEW_PRIVILEGES, SeccompProgram, failed

MAX_CONNECTIONS = 256
MAX_LOG_BYTES = 64 * 1024
MAX_TOLD = 20
HEAD_S = 10.0
CONNECT_S = 10.0
IDLE_S = 900.0
LINGER_S = 1.0
_CHUNK = 32 * 1024
_LOOKUPS = 4
_TEXT = 300
_REASONS = {400: "Bad Request", 403: "Forbidden", 408: "Request Timeout", 431: "Request Header Fields Too Large",
            502: "Bad Gateway", 503: "Service Unavailable"}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a gate is started with: the job's rules, the node's (for addresses that are not public), the file for refusals, and
    the filter on its own system calls."""

    rules: list[str]
    granted: list[str]
    log: str
    seccomp: str | None = None


class Refused(Exception):
    """A host that the job may not reach."""

    def __init__(self, host: str, port: int, why: str) -> None:
        super().__init__(why)
        self.host = host
        self.port = port
        self.why = why


class Unreachable(Exception):
    """A granted host that does not answer."""


def run(order_text: str, channel: socket.socket) -> None:
    """Serve until the sandbox is gone."""
    order = Order(**json.loads(order_text))
    log = os.open(order.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    if not descriptors:
        return  # there was no sandbox
    _lock_down(order.seccomp)
    gate = Gate([read_rule(text) for text in order.rules], [read_rule(text) for text in order.granted], log)
    asyncio.run(gate.serve(socket.socket(fileno=descriptors[0]), channel))


def _lock_down(filter_file: str | None) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    program = None  # its bytes must live until they are installed
    if filter_file is not None:
        with open(filter_file, "rb") as file:
            program = SeccompProgram(file.read())
    for step in (NO_NEW_PRIVILEGES, program.install if program is not None else None):
        if step is not None and step[0](*step[1:]) == -1:
            raise failed()


@dataclass(slots=True)
class Gate:
    """The proxy of one attempt; `log` is an open file, to which each refusal is appended as a line of JSON."""

    rules: list[HostRule]
    granted: list[HostRule]
    log: int
    _open: int = 0
    _logged: int = 0
    _told: set[tuple[str, int]] = field(default_factory=set)

    async def serve(self, listener: socket.socket, channel: socket.socket) -> None:
        """Until the channel ends."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(_LOOKUPS))
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = max(1, min(MAX_CONNECTIONS, (files - 32) // 2))
        over = asyncio.Event()
        channel.setblocking(False)
        loop.add_reader(channel, _at_its_end, channel, over)

        async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._open += 1
            try:
                if self._open > most:
                    await _answer(reader, writer, 503, f"this job has {most} connections already")
                else:
                    await self._serve(reader, writer)
            except OSError:
                writer.transport.abort()  # the program went away, or was too slow
            finally:
                await _close(writer)
                self._open -= 1

        await asyncio.start_server(client, sock=listener, limit=MAX_HEAD, backlog=128)
        await over.wait()
        os._exit(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HEAD_S):
                ask = read_request(await reader.readuntil(b"\r\n\r\n"))
        except TimeoutError:
            return await _answer(reader, writer, 408, "the request did not come in time")
        except asyncio.LimitOverrunError:
            return await _answer(reader, writer, 431, f"the request's head is longer than {MAX_HEAD} bytes")
        except asyncio.IncompleteReadError:
            return None
        except BadRequest as exc:
            if exc.status == 403:
                return await self._refuse(reader, writer, Refused(exc.target, 0, exc.message))
            return await _answer(reader, writer, exc.status, exc.message)
        try:
            upstream, onward = await self._connect(ask)
        except Refused as exc:
            return await self._refuse(reader, writer, exc)
        except Unreachable as exc:
            return await _answer(reader, writer, 502, str(exc))
        try:
            if ask.tunnel:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            onward.write(ask.head)
            await _relay((reader, onward), (upstream, writer))
        except OSError:
            onward.transport.abort()  # and so is the other side: a transfer that broke must not look like one that ended
            raise
        finally:
            await _close(onward)

    async def _connect(self, ask: Ask) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = ask.written, ask.port
        if not any(rule.matches(ask.host, port) for rule in self.rules):
            raise Refused(host, port, "policy.network of this job does not name it")
        found = await _resolve(ask.host, port)
        addresses = [one for one in found if may_connect(one, port, self.granted)]
        if not addresses:
            which = "it is" if not isinstance(ask.host, str) else f"it resolves to {found[0]},"
            raise Refused(host, port, f"{which} an address that is not public, and network.allow of this node does not name it")
        error = ""
        for address in addresses:
            try:
                async with asyncio.timeout(CONNECT_S):
                    reader, writer = await asyncio.open_connection(str(address), port, limit=_CHUNK)
            except OSError as exc:
                error = os.strerror(exc.errno) if exc.errno else "no answer in time"
                continue
            # A public address may be this host's own, and its services may trust whoever comes from here.
            own = writer.get_extra_info("sockname")[0] == writer.get_extra_info("peername")[0]
            if own and not any(rule.network is not None and rule.matches(address, port) for rule in self.granted):
                writer.transport.abort()
                raise Refused(host, port, "it is this node itself, and network.allow of this node does not name its address")
            return reader, writer
        raise Unreachable(f"{_shown(host, port)} cannot be reached: {error}")

    async def _refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, refused: Refused) -> None:
        """Into the file that the node reads at the end; the first ones also, for people, into the job's standard error."""
        # Whole or not at all: half a secret in it would not be masked.
        host = refused.host if len(refused.host) <= _TEXT else f"a text of {len(refused.host)} characters"
        told = f"the network gate refused {_shown(host, refused.port)}: {refused.why}"
        line = json.dumps({"host": host, "port": refused.port}).encode() + b"\n"
        with contextlib.suppress(OSError):
            if self._logged + len(line) <= MAX_LOG_BYTES:
                self._logged += os.write(self.log, line)
            if (host, refused.port) not in self._told and len(self._told) < MAX_TOLD:
                self._told.add((host, refused.port))
                os.write(2, f"ostler: {told}\n".encode())
        await _answer(reader, writer, 403, told)


def _at_its_end(channel: socket.socket, over: asyncio.Event) -> None:
    """See whether the channel has ended; what comes through it after the listener means nothing."""
    with contextlib.suppress(BlockingIOError):
        if not channel.recv(4096):
            over.set()


async def _resolve(host: str | Address, port: int) -> list[Address]:
    if not isinstance(host, str):
        return [host]
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_S):
            found = await loop.getaddrinfo(host.encode(), port, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise Unreachable(f"{host} cannot be resolved: {exc.strerror or 'no answer in time'}") from None
    return [read_address(str(one[4][0])) for one in found[:8]]


async def _relay(
    forth: tuple[asyncio.StreamReader, asyncio.StreamWriter], back: tuple[asyncio.StreamReader, asyncio.StreamWriter]
) -> None:
    """Bytes both ways until both sides have ended. Raises OSError where one of them broke, or nothing has moved for a while."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(IDLE_S) as limit:

        async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(_CHUNK):
                writer.write(data)
                await writer.drain()
                limit.reschedule(loop.time() + IDLE_S)
            writer.write_eof()

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(copy(*forth))
                group.create_task(copy(*back))
        except* OSError as broken:
            raise ConnectionAbortedError from broken


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, status: int, message: str) -> None:
    """A refusal. What the program is still sending is read for a moment: closed upon it, the answer would be lost."""
    body = f"ostler: {message}\n".encode("ascii", "backslashreplace")
    head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + body)
    writer.write_eof()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while await reader.read(_CHUNK):
                pass


async def _close(writer: asyncio.StreamWriter) -> None:
    """Send what waits and close; at once where the connection broke or takes nothing."""
    writer.close()
    try:
        async with asyncio.timeout(HEAD_S):
            await writer.wait_closed()
    except OSError:
        writer.transport.abort()


def _shown(host: str, port: int) -> str:
    if not port:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
