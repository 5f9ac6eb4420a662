"""A connection to one host: opened within seconds, its key verified always, steps carried out one after another."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import asyncssh

from ostler.fleet.again import line as again
from ostler.fleet.inventory.host import Host, Jump
from ostler.fleet.ssh.step import OUTPUT_BYTES, Outcome, Question, Step
from ostler.fleet.ssh.trust import Trust, fingerprints, offered_key
from ostler.model.errors import MachineUnreachable, Rejected

CONNECT = timedelta(seconds=5)
_KEEPALIVE_S = 5.0
_BLOCK = 1 << 18
_SAID = 600
_REFUSALS = ("a password is required", "a terminal is required", "must have a tty", "sudoers", "not allowed to")  # of sudo itself


class StepFailed(Rejected):
    """A step ended with an exit code that is no answer; the message says what it wrote."""

    code = "step_failed"

    def __init__(self, message: str, outcome: Outcome, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.outcome = outcome


class Line:
    """An open connection. After MachineUnreachable it is of no more use."""

    def __init__(self, connection: asyncssh.SSHClientConnection, host: Host, user: str) -> None:
        self._connection = connection
        self._answering: tuple[str, asyncssh.SSHClientProcess[bytes]] | None = None  # what started it, and the program
        self._turn = asyncio.Lock()
        self.host = host
        self.user = user

    async def run(self, step: Step) -> Outcome:
        """Carry out a step. Raises StepFailed, or MachineUnreachable where the line breaks or the time is over."""
        try:
            async with asyncio.timeout(step.timeout.total_seconds()):
                outcome = await (self._execute(step) if step.question is None else self._ask(step, step.question))
        except TimeoutError:
            raise MachineUnreachable(f"{step.title}: no end in {step.timeout.total_seconds():g} s") from None
        except (OSError, asyncssh.Error) as exc:
            raise MachineUnreachable(f"{step.title}: the connection was lost ({exc or type(exc).__name__})") from exc
        if outcome.code not in step.codes or _said_by_sudo(step, outcome):
            raise _failure(step, outcome, self.user, self.host.name)
        return outcome

    async def read(self, step: Step) -> AsyncIterator[str]:
        """The lines of its output as they come, errors among them. Raises as `run` does."""
        try:
            async with asyncio.timeout(step.timeout.total_seconds()):
                process = await self._connection.create_process(step.command(self.user), stderr=asyncssh.STDOUT, errors="replace")
                async with process:
                    async for line in process.stdout:
                        yield line.rstrip("\n")
                    await process.wait_closed()
        except TimeoutError:
            return
        except (OSError, asyncssh.Error) as exc:
            raise MachineUnreachable(f"{step.title}: the connection was lost ({exc or type(exc).__name__})") from exc
        if process.returncode not in step.codes:
            raise _failure(step, Outcome(code=process.returncode or 255, stdout=b"", stderr=b""), self.user, self.host.name)

    async def _ask(self, step: Step, question: Question) -> Outcome:
        """A question to the program that this connection keeps running; one that did not get to its end ends the program."""
        async with self._turn:
            process, self._answering = await self._program(step, question), None
            try:
                feeding = asyncio.ensure_future(_feed(process, *_framed(question)))
                try:
                    outcome, goes_on = await _answer(process)
                finally:
                    feeding.cancel()
                    await asyncio.gather(feeding, return_exceptions=True)
            except BaseException:
                process.close()
                raise
            if goes_on:
                self._answering = (step.start(self.user), process)
            else:
                process.close()
            return outcome

    async def _program(self, step: Step, question: Question) -> "asyncssh.SSHClientProcess[bytes]":
        if self._answering is not None:
            start, process = self._answering
            if start == step.start(self.user) and not process.stdout.at_eof():
                return process
            process.close()
        process = await self._connection.create_process(step.start(self.user), encoding=None)
        try:
            await _feed(process, question.program)
        except BaseException:
            process.close()
            raise
        return process

    async def _execute(self, step: Step) -> Outcome:
        process: asyncssh.SSHClientProcess[bytes] = await self._connection.create_process(step.command(self.user), encoding=None)
        async with process:
            outcome, _ = await asyncio.gather(_ended(process), _feed(process, *step.stdin, end=True))
        return outcome


@contextlib.asynccontextmanager
async def connected(host: Host, trust: Trust, *, local_user: str, connect: timedelta = CONNECT) -> AsyncIterator[Line]:
    """Connect to a host, by way of its jump hosts. Raises MachineUnreachable with one line that says what to do."""
    async with contextlib.AsyncExitStack() as stack:
        tunnel: asyncssh.SSHClientConnection | None = None
        for hop in host.proxy_jump:
            tunnel = await stack.enter_async_context(await _connect(hop, trust, local_user, connect, tunnel))
        user = host.user or local_user
        connection = await stack.enter_async_context(await _connect(host, trust, local_user, connect, tunnel))
        try:
            yield Line(connection, host, user)
        finally:
            connection.abort()  # what runs there is not waited for


async def _connect(
    hop: Host | Jump, trust: Trust, local_user: str, connect: timedelta, tunnel: asyncssh.SSHClientConnection | None
) -> asyncssh.SSHClientConnection:
    user, seconds = hop.user or local_user, connect.total_seconds()
    options: dict[str, Any] = {"client_keys": list(hop.identity_files)} if hop.identity_files else {}
    try:
        async with asyncio.timeout(2 * seconds):
            if trust.accept_new and not any(trust.keys(hop.address, hop.port)):
                trust.keep(hop.address, hop.port, await offered_key(hop.address, hop.port, via=tunnel))
            return await asyncssh.connect(
                hop.address, hop.port, username=user, known_hosts=trust.known(), tunnel=tunnel or (), config=None,
                connect_timeout=seconds, login_timeout=seconds, keepalive_interval=_KEEPALIVE_S, agent_forwarding=False, **options,
            )  # fmt: skip
    except (TimeoutError, asyncssh.TimeoutError):
        raise MachineUnreachable(f"no SSH at {hop.address}:{hop.port} within {seconds:g} s") from None
    except asyncssh.HostKeyNotVerifiable as exc:
        raise MachineUnreachable(await _about_key(hop, trust, tunnel), hint=_to_trust(hop, trust)) from exc
    except asyncssh.PermissionDenied as exc:
        raise MachineUnreachable(
            f"{hop.address} does not let {user} in: {exc.reason}",
            hint="see `ssh-add -l`, or name a key: `identity_file` in the inventory",
        ) from exc
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as exc:
        raise MachineUnreachable(
            f"the key for {hop.address} cannot be used: {exc}", hint="unlock it into an agent: ssh-add FILE"
        ) from exc
    except (OSError, asyncssh.Error) as exc:
        if isinstance(exc, OSError) and exc.filename is not None and str(exc.filename) in hop.identity_files:
            hint = "the inventory or the SSH configuration names it as identity file"
            raise MachineUnreachable(f"the SSH key {exc.filename} cannot be read: {_words(exc)}", hint=hint) from exc
        raise MachineUnreachable(f"cannot connect to {hop.address}:{hop.port}: {_words(exc)}") from exc


def _to_trust(hop: Host | Jump, trust: Trust) -> str:
    """What to type for a host of an inventory, or for one on the way that is in none."""
    if isinstance(hop, Host):
        return again("trust", trust.given, [hop.name])
    return again("trust", {**trust.given, "--inventory": f"{hop},"}, [])


async def _about_key(hop: Host | Jump, trust: Trust, tunnel: asyncssh.SSHClientConnection | None) -> str:
    """Whether the host is not known, or shows another key than the one that is."""
    known, revoked = trust.keys(hop.address, hop.port)
    with contextlib.suppress(MachineUnreachable):
        shown = await offered_key(hop.address, hop.port, via=tunnel)
        if shown in revoked:
            return f"{hop.address} shows a revoked host key ({fingerprints([shown])[0]})"
        if known:
            return (
                f"the host key of {hop.address} is not the known one: it shows {fingerprints([shown])[0]}, "
                f"known is {', '.join(fingerprints(known))}; somebody may be in between"
            )
        return f"the host key of {hop.address} is not known: {fingerprints([shown])[0]}"
    return f"the host key of {hop.address} cannot be verified"


async def _feed(process: "asyncssh.SSHClientProcess[bytes]", *pieces: bytes, end: bool = False) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it ended without reading all of it: its exit code tells
        for piece in pieces:
            for at in range(0, len(piece), _BLOCK):
                process.stdin.write(piece[at : at + _BLOCK])
                await process.stdin.drain()
        if end:
            process.stdin.write_eof()


def _framed(question: Question) -> tuple[bytes, bytes]:
    return json.dumps({"words": question.words, "size": len(question.stdin)}).encode() + b"\n", question.stdin


async def _answer(process: "asyncssh.SSHClientProcess[bytes]") -> tuple[Outcome, bool]:
    """What it answers, and whether it can be asked more; where it says something else, that and how it ends."""
    said = b""
    try:
        said = await process.stdout.readuntil(b"\n")
        head = json.loads(said)
        sizes = (int(head["stdout"]), int(head["stderr"]))
        if max(sizes) <= OUTPUT_BYTES:
            stdout, stderr = [await process.stdout.readexactly(size) for size in sizes]
            return Outcome(code=int(head["code"]), stdout=stdout, stderr=stderr), not head["last"]
    except asyncio.IncompleteReadError as exc:
        said += exc.partial
    except (ValueError, KeyError, TypeError):
        pass
    with contextlib.suppress(OSError):
        process.stdin.write_eof()
    outcome = await _ended(process)
    return replace(outcome, stdout=said + outcome.stdout), False


async def _ended(process: "asyncssh.SSHClientProcess[bytes]") -> Outcome:
    """How it ends, and all that it writes until then."""
    stdout, stderr = await asyncio.gather(_read(process.stdout), _read(process.stderr))
    await process.wait_closed()
    if process.returncode is None:
        raise asyncssh.ConnectionLost("it ended without an exit code")
    return Outcome(code=process.returncode, stdout=stdout, stderr=stderr)


async def _read(stream: "asyncssh.SSHReader[bytes]") -> bytes:
    """Up to OUTPUT_BYTES; what is more is taken and dropped."""
    kept = bytearray()
    while block := await stream.read(_BLOCK):
        kept += block[: OUTPUT_BYTES - len(kept)]
    return bytes(kept)


def _said_by_sudo(step: Step, outcome: Outcome) -> bool:
    """That sudo refuses, or finds no such program: its exit code may be an answer of what it was to execute."""
    if not step.sudo or outcome.code != 1 or outcome.stdout:
        return False
    said = outcome.stderr.decode(errors="replace").strip()
    return _refused(said) or _not_found(step, said)


def _refused(said: str) -> bool:
    """Whether these are sudo's words for: this user may not."""
    first = said.partition("\n")[0]
    by_sudo = first.startswith(("sudo:", "Sorry, user ")) or "is not in the sudoers file" in first
    return by_sudo and any(words in said for words in _REFUSALS)


def _not_found(step: Step, said: str) -> bool:
    return said == f"sudo: {step.argv[0]}: command not found"


def _failure(step: Step, outcome: Outcome, user: str, host: str) -> StepFailed:
    said = outcome.stderr.decode(errors="replace").strip()
    if step.sudo and _not_found(step, said):
        return StepFailed(f"{step.argv[0]}: not found on {host}", outcome)
    if step.sudo and _refused(said):
        why = "it asks for a password" if "password" in said else said.removeprefix("sudo:").strip()
        hint = f"as root on the host: echo '{user} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/{user}"
        return StepFailed(f"{user} cannot use sudo there: {why}", outcome, hint=hint)
    said = said or outcome.stdout.decode(errors="replace").strip()
    return StepFailed(f"{step.title}: exit code {outcome.code}" + (f": {said[-_SAID:]}" if said else ""), outcome)


def _words(exc: Exception) -> str:
    return getattr(exc, "strerror", None) or getattr(exc, "reason", None) or str(exc) or type(exc).__name__
