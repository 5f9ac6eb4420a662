"""The daemon's end of the keeper's socket: requests by id, exit records as they come, and a keeper where none runs."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec import structs

from ostler.model.errors import KeeperUnreachable, NotFound, Rejected
from ostler.node.keeper_values import Child, ExitRecord, Hello, Limits, OutOfMemory, Started, StartSpec, read_record

__all__ = [
    "Child",
    "ExitRecord",
    "Hello",
    "KeeperClient",
    "KeeperRefused",
    "Limits",
    "OutOfMemory",
    "StartSpec",
    "Started",
    "ensure_keeper",
    "read_record",
]

PROTOCOL = 1
SOCKET = "keeper.sock"
STATE = "keeper"
LOG = "keeper.log"

# Not the daemon's own: what runs under the same user can read it.
KEEPER_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_CALL_AGAIN_S = (0.1, 0.5, 1.0)  # pauses after calls that a new keeper did not answer
_START_S = 15.0
_LOOK_S = 0.25
_LONGEST_ADDRESS = 100
_LOG_BYTES = 4 * 1024 * 1024
_SAID_BYTES = 2000
_CREDENTIALS = struct.Struct("3i")  # pid, uid and gid of the other end


class KeeperRefused(Rejected):
    """The keeper will not carry out a request.

    `code` is its own: malformed, invalid, unknown_op, exists, not_found, open, cgroup, setup, exec, fork, state, stopping, withdrawn,
    busy or internal. `errno` is the operating system's number and `step` what the child was doing, where there are such.
    """

    code = "keeper_refused"

    def __init__(self, code: str, message: str, *, errno: int | None = None, step: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.errno = errno
        self.step = step


@dataclass(frozen=True, slots=True, kw_only=True)
class _Error:
    code: str
    message: str
    errno: int | None = None
    step: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Message:
    """Any line from the keeper: an answer (`id`), or an event."""

    id: int | None = None
    error: _Error | None = None
    event: str | None = None
    key: str = ""
    record: ExitRecord | None = None
    pid: int = 0
    start_time: int = 0
    unenforced: tuple[str, ...] = ()
    running: bool = False
    children: tuple[Child, ...] = ()


_HELLO = msgspec.json.Decoder(Hello)
_MESSAGE = msgspec.json.Decoder(_Message)


class KeeperClient(asyncio.Protocol):
    """One connection. Requests may overlap; those written in one turn of the loop travel together.

    Every call raises KeeperUnreachable once the connection is lost; a client does not connect again. `on_exit` is called with
    each exit record as it comes, and `on_loss` once.
    """

    hello: Hello

    def __init__(
        self,
        *,
        on_exit: Callable[[ExitRecord], None] | None = None,
        on_loss: Callable[[], None] | None = None,
    ) -> None:
        """Not connected yet: see `connect`."""
        self._loop = asyncio.get_running_loop()
        self._on_exit = on_exit
        self._on_loss = on_loss
        self._transport: asyncio.Transport | None = None
        self._lost: KeeperUnreachable | None = None
        self._greeted: asyncio.Future[Hello] = self._loop.create_future()
        self._received = bytearray()
        self._outgoing: list[bytes] = []
        self._serial = 0
        self._answers: dict[int, asyncio.Future[_Message]] = {}
        self._own: set[str] = set()
        self._ended: dict[str, ExitRecord] = {}
        self._waiting: dict[str, list[asyncio.Future[ExitRecord]]] = {}
        self._streams: list[asyncio.Queue[ExitRecord | None]] = []

    @classmethod
    async def connect(
        cls,
        path: Path,
        timeout: float = 5.0,  # noqa: ASYNC109 - the whole of it, not a wait around one call
        *,
        on_exit: Callable[[ExitRecord], None] | None = None,
        on_loss: Callable[[], None] | None = None,
    ) -> "KeeperClient":
        """Connect and be greeted. Raises KeeperUnreachable."""
        loop = asyncio.get_running_loop()
        client = cls(on_exit=on_exit, on_loss=on_loss)
        try:
            async with asyncio.timeout(timeout):
                with _address(path) as address:
                    await loop.create_unix_connection(lambda: client, address)
                client.hello = await client._greeted
        except TimeoutError:
            client.rouse()
            client.close()
            raise KeeperUnreachable(f"the keeper at {path} did not answer in {timeout:g} s") from None
        except OSError as exc:
            raise KeeperUnreachable(f"no keeper at {path}: {exc.strerror or exc}") from exc
        if client.hello.keeper != PROTOCOL:
            client.close()
            raise KeeperUnreachable(
                f"the keeper at {path}, release {client.hello.version}, speaks protocol {client.hello.keeper}, not {PROTOCOL}",
                hint="let its attempts end, then restart it",
            )
        return client

    # requests

    async def start(self, spec: StartSpec) -> Started:
        """Start an attempt; returns once its program executes. Raises KeeperRefused."""
        self._ended.pop(spec.key, None)
        self._own.add(spec.key)  # now: its end may come with the answer
        try:
            answer = await self._ask("start", spec)
        except KeeperRefused:
            self._own.discard(spec.key)
            raise
        return Started(pid=answer.pid, start_time=answer.start_time, unenforced=answer.unenforced)

    async def kill(self, key: str, *, reason: str, grace_s: float | None = None) -> bool:
        """Ask an attempt to end now, and kill it after the grace (None: the one it was started with).

        Returns at once: True where it ran. `reason` becomes `killed` in its record, if it is the first.
        """
        try:
            answer = await self._ask("kill", {"key": key, "reason": reason, "grace_s": grace_s})
        except KeeperRefused as exc:
            if exc.code == "not_found":
                return False
            raise
        return answer.running

    async def withdraw(self, key: str) -> None:
        """Take a start back that waits for room: it is refused (withdrawn). One that has begun goes on."""
        await self._ask("withdraw", {"key": key})

    async def list(self) -> tuple[Child, ...]:
        """All attempts that run, and those over that were not forgotten, of keepers before this one too."""
        return (await self._ask("list", {})).children

    async def wait(self, key: str, *, record: Path | None = None) -> ExitRecord:
        """Wait until an attempt is over; also one that another daemon started, or whose record this client has seen already.

        `record` is the file of its exit record: it tells where the keeper has forgotten. Raises NotFound where neither knows.
        """
        self._check()
        if key in self._ended:
            return self._ended[key]
        future: asyncio.Future[ExitRecord] = self._loop.create_future()
        waiters = self._waiting.setdefault(key, [])
        waiters.append(future)
        try:
            if key not in self._own:
                known = next((child for child in await self.list() if child.key == key), None)
                if known is None and not future.done():
                    found = read_record(record, key) if record is not None else None
                    if found is None:
                        raise NotFound(f"the keeper knows no attempt {key}, and there is no exit record of it")
                    return found
                if known is not None and known.record is not None:
                    return known.record
            return await future
        finally:
            waiters.remove(future)
            if not waiters:
                self._waiting.pop(key, None)

    async def forget(self, *keys: str) -> None:
        """Let the keeper drop attempts that are over."""
        for key in keys:
            self._ended.pop(key, None)
            self._own.discard(key)
        if self.hello.many:
            await self._ask("forget", {"keys": keys})
        else:
            await asyncio.gather(*(self._ask("forget", {"key": key}) for key in keys))

    async def ping(self) -> None:
        """Return when the keeper has answered."""
        await self._ask("ping", {})

    def rouse(self) -> None:
        """Let a keeper go on that was stopped, as a job without a sandbox can do to it; one that was not does not notice."""
        peer = self._transport.get_extra_info("socket") if self._transport is not None and self._lost is None else None
        if peer is not None:
            pid, _, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGCONT)

    async def shutdown(self) -> None:
        """Have the keeper end all attempts, then itself; `exits` and `on_loss` tell of it."""
        await self._ask("shutdown", {})

    async def exits(self) -> AsyncIterator[ExitRecord]:
        """Each exit record from now on, until the connection is lost."""
        stream: asyncio.Queue[ExitRecord | None] = asyncio.Queue()
        if self._lost is None:
            self._streams.append(stream)
        else:
            stream.put_nowait(None)
        try:
            while (record := await stream.get()) is not None:
                yield record
        finally:
            with contextlib.suppress(ValueError):
                self._streams.remove(stream)

    def close(self) -> None:
        """Leave; the keeper and its attempts go on."""
        if self._transport is not None:
            self._transport.abort()
        self._lose(KeeperUnreachable("the connection to the keeper was closed"))

    @property
    def closed(self) -> bool:
        """Whether the connection is lost."""
        return self._lost is not None

    # the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        if self._lost is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._lose(KeeperUnreachable(f"the connection to the keeper is lost: {exc}" if exc else "the keeper has gone away"))

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        lines = data.split(b"\n")
        if len(lines) == 1:
            self._received += data
            return
        lines[0] = bytes(self._received) + lines[0]
        self._received = bytearray(lines.pop())
        try:
            for line in lines:
                self._take(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            self._lose(KeeperUnreachable(f"what answers is no keeper: {exc}"))
            if self._transport is not None:
                self._transport.abort()

    def _take(self, line: bytes) -> None:
        if not self._greeted.done():
            self._greeted.set_result(_HELLO.decode(line))
            return
        message = _MESSAGE.decode(line)
        if message.event == "exited" and message.record is not None:
            self._tell(message.record)
        elif message.id is not None:
            future = self._answers.pop(message.id, None)
            if future is not None and not future.done():
                future.set_result(message)

    def _tell(self, record: ExitRecord) -> None:
        waiters = self._waiting.get(record.key, ())
        for future in waiters:
            if not future.done():
                future.set_result(record)
        if record.key in self._own:  # kept until forgotten: it may be waited for only now
            self._ended[record.key] = record
        for stream in self._streams:
            stream.put_nowait(record)
        if self._on_exit is not None:
            self._on_exit(record)

    async def _ask(self, operation: str, members: StartSpec | dict[str, Any]) -> _Message:
        self._check()
        self._serial += 1
        number = self._serial
        future: asyncio.Future[_Message] = self._loop.create_future()
        alone = not self._answers  # else more may come in this turn of the loop
        self._answers[number] = future
        if not self._outgoing and not alone:
            self._loop.call_soon(self._flush)
        self._outgoing.append(b'{"id":%d,"op":"%b"%b' % (number, operation.encode(), _encoded(members)))
        if alone:
            self._flush()
        try:
            answer = await future
        finally:
            self._answers.pop(number, None)
        if answer.error is not None:
            error = answer.error
            raise KeeperRefused(error.code, error.message, errno=error.errno, step=error.step)
        return answer

    def _flush(self) -> None:
        lines, self._outgoing = self._outgoing, []
        if self._transport is not None and self._lost is None:
            self._transport.write(b"\n".join(lines) + b"\n")

    def _check(self) -> None:
        if self._lost is not None:
            raise KeeperUnreachable(self._lost.message)

    def _lose(self, reason: KeeperUnreachable) -> None:
        if self._lost is not None:
            return
        self._lost = reason
        _fail(self._greeted, reason)
        for answer in self._answers.values():
            _fail(answer, reason)
        for waiter in [waiter for waiters in self._waiting.values() for waiter in waiters]:
            _fail(waiter, reason)
        for stream in self._streams:
            stream.put_nowait(None)
        if self._on_loss is not None:
            self._on_loss()


def _encoded(members: StartSpec | dict[str, Any]) -> bytes:
    """As the rest of a JSON object. Bytes of paths that are not UTF-8 travel as lone surrogates, which only the slower encoder takes."""
    try:
        text = msgspec.json.encode(members)
    except UnicodeEncodeError:
        text = json.dumps(structs.asdict(members) if isinstance(members, StartSpec) else members).encode()
    return b"}" if text == b"{}" else b"," + text[1:]


def _fail(future: asyncio.Future[Any], reason: KeeperUnreachable) -> None:
    if not future.done():
        future.set_exception(KeeperUnreachable(reason.message))
        future.exception()  # taken note of: perhaps nobody waits for it any more


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """The path as an address. One longer than the kernel takes is named by its directory's descriptor."""
    if len(os.fsencode(path)) <= _LONGEST_ADDRESS:
        yield str(path)
        return
    holder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{holder}/{path.name}"
    finally:
        os.close(holder)


def _open_log(folder: Path) -> int:
    """Open the keeper's own log to append to; what grew large is put aside first, one old one is kept."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / LOG
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > _LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


async def ensure_keeper(
    state_dir: Path,
    *,
    cgroup: str = "auto",
    start: bool = True,
    on_exit: Callable[[ExitRecord], None] | None = None,
    on_loss: Callable[[], None] | None = None,
) -> KeeperClient:
    """Connect to the keeper of a node's state directory, after starting one in the background where none answers (`start`).

    It listens at STATE_DIR/keeper.sock and keeps its own state, and `keeper.log`, in STATE_DIR/keeper. It has a session of its
    own and outlives this process. Raises KeeperUnreachable with what it said if it does not start.
    """
    path = state_dir / SOCKET
    with contextlib.suppress(KeeperUnreachable):
        return await KeeperClient.connect(path, on_exit=on_exit, on_loss=on_loss)
    if not start:
        return await _await_keeper(path, on_exit=on_exit, on_loss=on_loss)
    log = await asyncio.to_thread(_open_log, state_dir / STATE)
    try:
        began = os.fstat(log).st_size
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ostler.node.keeper", "--detach", "--cgroup", cgroup),
            *("--socket", str(path), "--state", str(state_dir / STATE)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=KEEPER_ENVIRONMENT,
            start_new_session=True,
        )
        async with asyncio.timeout(_START_S):
            code = await process.wait()
        said = os.pread(log, _SAID_BYTES, began).decode(errors="replace").strip()
    except TimeoutError:
        raise KeeperUnreachable(f"the keeper did not start in {_START_S:g} s; see {state_dir / STATE / LOG}") from None
    finally:
        os.close(log)
    return await _call_again(path, code, said, on_exit=on_exit, on_loss=on_loss)


async def _await_keeper(path: Path, **reports: Any) -> KeeperClient:
    """The keeper that a unit of its own starts."""
    lost = KeeperUnreachable(f"no keeper at {path}")
    for _ in range(int(_START_S / _LOOK_S)):
        try:
            return await KeeperClient.connect(path, **reports)
        except KeeperUnreachable as exc:
            lost = exc
            await asyncio.sleep(_LOOK_S)
    raise KeeperUnreachable(lost.message, hint="systemctl status ostler-keeper") from lost


async def _call_again(path: Path, code: int, said: str, **reports: Any) -> KeeperClient:
    # where it did not start because another one just did, that one answers; a machine under load may take a second call
    lost = KeeperUnreachable("nobody was asked")
    for pause in _CALL_AGAIN_S:
        try:
            return await KeeperClient.connect(path, **reports)
        except KeeperUnreachable as exc:
            lost = exc
            await asyncio.sleep(pause if code == 0 else 0.0)
    raise KeeperUnreachable(
        f"the keeper did not start (exit code {code}): {lost.message}; it said: {said or 'nothing'}"
    ) from lost
