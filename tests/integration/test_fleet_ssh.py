"""Connections to hosts, against a real SSH server on loopback: whose key is believed, what a step brings back, how trouble is told.

The server is asyncssh's; OpenSSH's is met in tests/fleet.
"""

import asyncio
import contextlib
import os
import shlex
import signal
import socket
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from cli_rig import ostler
from ostler.fleet.host.places import Places
from ostler.fleet.inventory.host import Host, Jump
from ostler.fleet.ssh.line import StepFailed, connected
from ostler.fleet.ssh.step import OUTPUT_BYTES, Step, quoted
from ostler.fleet.ssh.trust import Trust, fingerprints, offered_key
from ostler.model.errors import InvalidSpec, MachineUnreachable

# asyncssh 2.24 drops a coroutine unawaited where a connection ends before its authentication is over.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

HARD = ["", " ", "a b", "$(reboot)", "`id`", ";id", "'", '"', "\\", "*", "~", "-rf", "\n", "ä", "!x", "&&", ">x", "#"]


class Sshd:
    """A server whose users run real shells; `key` is its host key, `user` the key that it lets in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key, self.user = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
        self.user.write_private_key(folder / "id")
        self.commands: list[str] = []
        self.children: list[asyncio.subprocess.Process] = []
        self.trust = Trust(files=(folder / "known_hosts",))

    async def start(self) -> "Sshd":
        accepted = asyncssh.import_authorized_keys(self.user.export_public_key().decode())
        self.server = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[self.key],
            authorized_client_keys=accepted,
            process_factory=self._process,
            encoding=None,
        )
        self.port = self.server.get_port()
        return self

    def host(self, **changes: object) -> Host:
        return Host(
            **{
                "name": "h",
                "address": "127.0.0.1",
                "user": "root",
                "port": self.port,
                "identity_files": (str(self.folder / "id"),),
            }
            | changes
        )

    async def stop(self) -> None:
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child._transport.close()  # nobody reads any more what a killed child left in its pipes
            await child.wait()
        self.server.close()
        await self.server.wait_closed()

    async def _process(self, process: "asyncssh.SSHServerProcess[bytes]") -> None:
        self.commands.append(process.command or "")
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_shell(
            process.command or "", stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
        self.children.append(child)
        feeding = asyncio.ensure_future(_pump(process.stdin, child.stdin))
        with contextlib.suppress(OSError, asyncssh.Error):  # whoever asked has left
            await asyncio.gather(_pump(child.stdout, process.stdout), _pump(child.stderr, process.stderr))
        code = await child.wait()
        feeding.cancel()  # as with OpenSSH, what has ended has no standard input that anybody could wait for
        await asyncio.gather(feeding, return_exceptions=True)
        process.exit(code)


async def _pump(source: Any, sink: Any) -> None:
    while block := await source.read(1 << 16):
        sink.write(block)
        await sink.drain()
    if isinstance(sink, asyncio.StreamWriter):
        sink.close()


@pytest.fixture
async def sshd(tmp_path):
    server = await Sshd(tmp_path).start()
    yield server
    await server.stop()


def step(*argv: str, stdin: bytes = b"", **more) -> Step:
    pieces = (stdin[:1], stdin[1:]) if stdin else ()
    return Step(title="a step", argv=argv, stdin=pieces, **more)


def believe(sshd):
    sshd.trust.keep("127.0.0.1", sshd.port, sshd.key)


async def test_every_argument_arrives_as_it_was(sshd):
    believe(sshd)
    async with connected(sshd.host(), sshd.trust, local_user="x") as line:
        outcome = await line.run(step("/usr/bin/printf", "%s\\0", *HARD))
    assert outcome.stdout.decode().split("\0")[:-1] == HARD


async def test_standard_input_goes_in_whole_and_output_is_cut(sshd):
    believe(sshd)
    content = bytes(range(256)) * 20_000  # 5 MB
    async with connected(sshd.host(), sshd.trust, local_user="x") as line:
        counted = await line.run(step("/usr/bin/wc", "-c", stdin=content))
        echoed = await line.run(step("/bin/cat", stdin=content))
    assert int(counted.stdout) == len(content)
    assert echoed.stdout == content[:OUTPUT_BYTES]


async def test_a_failed_step_says_what_it_wrote(sshd):
    believe(sshd)
    async with connected(sshd.host(), sshd.trust, local_user="x") as line:
        with pytest.raises(StepFailed, match="a step: exit code 3: no such thing") as failed:
            await line.run(step("/bin/sh", "-c", "echo no such thing >&2; exit 3"))
        assert failed.value.outcome.code == 3
        assert (await line.run(step("/bin/sh", "-c", "exit 3", codes=(0, 3)))).code == 3


async def test_a_step_that_hangs_is_left(sshd):
    believe(sshd)
    async with connected(sshd.host(), sshd.trust, local_user="x") as line:
        with pytest.raises(MachineUnreachable, match=r"a step: no end in 0\.2 s"):
            await line.run(step("/bin/sleep", "600", timeout=timedelta(seconds=0.2)))


async def test_an_unknown_host_is_not_believed_and_a_command_is_named(sshd):
    with pytest.raises(MachineUnreachable, match="is not known: ssh-ed25519 SHA256:") as told:
        async with connected(sshd.host(), sshd.trust, local_user="x"):
            pass
    assert told.value.hint == f"ostler fleet trust --host {sshd.host().name}"
    given = {"--inventory": ["my fleet.yml"], "--known-hosts": sshd.trust.files[0], "--ssh-config": "none", "--accept-new": False}
    with pytest.raises(MachineUnreachable) as told:
        async with connected(sshd.host(), replace(sshd.trust, given=given), local_user="x"):
            pass
    options = f"--ssh-config none --known-hosts {sshd.trust.files[0]}"
    assert told.value.hint == f"ostler fleet trust -i 'my fleet.yml' {options} --host h"
    hop = Jump(address="127.0.0.1", user="j", port=sshd.port)
    with pytest.raises(MachineUnreachable) as told:
        async with connected(sshd.host(proxy_jump=(hop,)), replace(sshd.trust, given=given), local_user="x"):
            pass
    assert told.value.hint == f"ostler fleet trust -i j@127.0.0.1:{sshd.port}, {options}"
    assert not sshd.commands


@pytest.mark.skipif(Path("/opt/ostler").exists(), reason="this machine, which is the host here, has Ostler")
async def test_a_bare_host_is_trusted_by_the_command_that_is_printed_and_has_no_port_to_guard(sshd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, traces = tmp_path / "my fleet.yml", Places().updates
    file.write_text(f"hosts: {{h: {{address: 127.0.0.1, port: {sshd.port}, user: root, identity_file: {tmp_path}/id}}}}")
    reach = ("-i", file.name, "--known-hosts", "known", "-F", "none")

    async def firewall(*words):
        return await asyncio.to_thread(ostler, "fleet", "firewall", *reach, *words)

    unknown = await firewall("--allow", "10.0.0.0/8", "--yes")
    assert unknown.returncode == 1
    _, _, hint = unknown.stderr.strip().removesuffix(")").rpartition("(")
    trusted = await asyncio.to_thread(ostler, *shlex.split(hint)[1:], "--yes")
    assert (trusted.returncode, "1 key was added to known" in trusted.stdout) == (0, True)
    options = "-i 'my fleet.yml' --ssh-config none --known-hosts known --host h"
    for words in (("--allow", "10.0.0.0/8", "--yes"), ("--remove", "--yes"), ("--allow", "10.0.0.0/8", "--dry-run")):
        refused = await firewall(*words)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert (
            refused.stderr == f"h: no daemon is installed there, whose health port it could be (ostler fleet install {options})\n"
        )
    assert not traces.exists()


async def test_a_new_host_is_believed_once_where_that_was_asked_for(sshd):
    trust = Trust(files=sshd.trust.files, accept_new=True)
    for _ in range(2):
        async with connected(sshd.host(), trust, local_user="x") as line:
            await line.run(step("true"))
    assert trust.files[0].read_text().count("\n") == 1


async def test_another_key_is_never_believed(sshd):
    believe(sshd)
    sshd.key = asyncssh.generate_private_key("ssh-ed25519")
    await sshd.stop()
    port = sshd.port
    sshd.server = await asyncssh.listen("127.0.0.1", port, server_host_keys=[sshd.key], process_factory=sshd._process)
    for trust in (sshd.trust, Trust(files=sshd.trust.files, accept_new=True)):
        with pytest.raises(
            MachineUnreachable, match=r"is not the known one: it shows ssh-ed25519 SHA256.*somebody may be in between"
        ):
            async with connected(sshd.host(), trust, local_user="x"):
                pass


async def test_hashed_names_of_known_hosts(sshd):
    believe(sshd)
    done = await asyncio.create_subprocess_exec(
        "ssh-keygen", "-H", "-f", str(sshd.trust.files[0]), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    assert await done.wait() == 0
    assert "127.0.0.1" not in sshd.trust.files[0].read_text()
    async with connected(sshd.host(), sshd.trust, local_user="x") as line:
        assert (await line.run(step("true"))).code == 0


async def test_who_is_not_let_in(sshd, tmp_path):
    believe(sshd)
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(tmp_path / "other")
    with pytest.raises(MachineUnreachable, match=r"127\.0\.0\.1 does not let deploy in"):
        async with connected(sshd.host(user="deploy", identity_files=(str(tmp_path / "other"),)), sshd.trust, local_user="x"):
            pass


async def test_nobody_listens(sshd):
    await sshd.stop()
    with pytest.raises(MachineUnreachable, match="cannot connect to 127"):
        async with connected(sshd.host(), sshd.trust, local_user="x"):
            pass


async def test_one_that_accepts_and_says_nothing(sshd):
    believe(sshd)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(MachineUnreachable, match=rf"no SSH at 127\.0\.0\.1:{port} within 0\.2 s"):
            async with connected(sshd.host(port=port), sshd.trust, local_user="x", connect=timedelta(seconds=0.2)):
                pass


async def test_by_way_of_another_host(sshd, tmp_path):
    """Both keys are verified; the jump host lets through and runs nothing."""
    believe(sshd)

    class Through(asyncssh.SSHServer):
        def connection_requested(self, *_):
            return True

    key = asyncssh.generate_private_key("ssh-ed25519")
    jump = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=Through, server_host_keys=[key],
        authorized_client_keys=asyncssh.import_authorized_keys(sshd.user.export_public_key().decode()),
    )  # fmt: skip
    hop = Jump(address="127.0.0.1", user="j", port=jump.get_port(), identity_files=(str(tmp_path / "id"),))
    with pytest.raises(MachineUnreachable, match="is not known"):
        async with connected(sshd.host(proxy_jump=(hop,)), sshd.trust, local_user="x"):
            pass
    sshd.trust.keep("127.0.0.1", hop.port, key)
    async with connected(sshd.host(proxy_jump=(hop,)), sshd.trust, local_user="x") as line:
        assert (await line.run(step("/bin/echo", "through"))).stdout == b"through\n"
    jump.close()


async def test_what_a_host_shows(sshd):
    assert fingerprints([await offered_key("127.0.0.1", sshd.port)]) == [f"ssh-ed25519 {sshd.key.get_fingerprint()}"]


def test_a_file_that_is_no_list_of_hosts(tmp_path):
    (tmp_path / "known_hosts").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidSpec, match="cannot be read"):
        Trust(files=(tmp_path / "known_hosts",)).known()


@pytest.mark.parametrize(("user", "begins"), [("root", "/usr/bin/id"), ("deploy", "sudo -n -- /usr/bin/id")])
def test_root_needs_no_sudo(user, begins):
    assert step("/usr/bin/id").command(user) == begins
    assert step("/usr/bin/id", sudo=False).command(user) == "/usr/bin/id"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("sudo: nosuch: command not found", "^nosuch: not found on h$"),
        ("sudo: a password is required", "^deploy cannot use sudo there: it asks for a password"),
        ("sudo: a terminal is required to read the password", "^deploy cannot use sudo there"),
        ("deploy is not in the sudoers file.", "^deploy cannot use sudo there"),
        ("Sorry, user deploy is not allowed to execute '/bin/x' as root on h.", "^deploy cannot use sudo there"),
        ("sudo: something else that a program wrote", None),
        ("x: a password is required", None),
    ],
)
async def test_only_a_refusal_of_sudo_is_told_as_one(sshd, tmp_path, monkeypatch, said, words):
    believe(sshd)
    sudo = tmp_path / "sudo"  # so that the host's answer is known
    sudo.write_text(f'#!/bin/sh\necho "{said}" >&2\nexit 1\n')
    sudo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    async with connected(sshd.host(user="deploy"), sshd.trust, local_user="x") as line:
        if words is None:
            assert (await line.run(step("nosuch", codes=(0, 1)))).code == 1
        else:
            with pytest.raises(StepFailed, match=words):
                await line.run(step("nosuch", codes=(0, 1)))


def test_what_a_person_is_shown_of_a_step():
    assert step("a", "b c", stdin=b"x").shown("root") == "a 'b c' < (1 bytes, sha256 2d711642b726b044…)"
    assert step("a", stdin=b"x", secret=True).shown("root") == "a < (1 bytes, not shown)"
    assert "x" not in repr(step("a", stdin=b"x"))
    with pytest.raises(ValueError, match="NUL"):
        quoted(["a\0b"])


async def test_a_key_that_cannot_be_read_is_no_fault_of_the_network(sshd, tmp_path):
    believe(sshd)
    for file, why in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(MachineUnreachable, match=f"the SSH key {file} cannot be read: {why}"):
            async with connected(sshd.host(identity_files=(str(file),)), sshd.trust, local_user="x"):
                pass
