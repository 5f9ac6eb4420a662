"""`ostler top` in a terminal of its own: it shows the fleet, and goes on through a line that breaks and a coordinator that is killed."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import termios
import threading
from contextlib import suppress

import pytest

from e2e.fleet import OSTLER, until


class Wire:
    """A TCP line to the coordinator that can be cut, as a network is: what is open breaks, nothing new gets through."""

    def __init__(self, port):
        self._to = port
        self._open = []
        self._listener = None
        self.port = 0
        self.mend()

    def mend(self):
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self):
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    def _accept(self, listener):
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._to))
                except OSError:
                    near.close()
                    continue
                self._open += [near, far]
                for here, there in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(here, there), daemon=True).start()

    @staticmethod
    def _copy(here, there):
        with suppress(OSError):
            while data := here.recv(65536):
                there.sendall(data)
        with suppress(OSError):
            there.shutdown(socket.SHUT_RDWR)


class Terminal:
    """`ostler top` on a terminal with 120 columns and 30 lines."""

    def __init__(self, env, *words):
        self.said = ""
        self.all = ""
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execve(OSTLER, [OSTLER, "top", *words], env)
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))

    def expect(self, text, timeout=60):
        """Wait until this is drawn after what was waited for last."""

        def seen():
            if select.select([self.terminal], [], [], 0.05)[0]:
                piece = os.read(self.terminal, 65536).decode(errors="replace")
                self.said += piece
                self.all += piece
            return text in self.said

        until(seen, timeout=timeout, what=f"{text!r} on the terminal, which says {self.said[-3000:]!r}")
        self.said = self.said.partition(text)[2]

    def end(self, *, keys=b"", number=None):
        if keys:
            os.write(self.terminal, keys)
        if number is not None:
            os.kill(self.pid, number)
        with suppress(OSError):
            while piece := os.read(self.terminal, 65536):
                self.all += piece.decode(errors="replace")
        os.close(self.terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


ALTERNATE, BACK = "\x1b[?1049h", "\x1b[?1049l"


@pytest.mark.parametrize(("how", "code"), [({"keys": b"\x03"}, 0), ({"number": signal.SIGTERM}, 143)])
def test_top_goes_on_through_everything_and_gives_the_terminal_back(own_fleet, how, code):
    fleet = own_fleet().start()
    name = until(lambda: fleet.nodes() and fleet.nodes()[0]["node_id"], what="a node")
    wire = Wire(int(fleet.url.rpartition(":")[2]))
    env = fleet.env | {"OSTLER_URL": f"http://127.0.0.1:{wire.port}", "TERM": "xterm"}
    terminal = Terminal(env, "--every", "0.2")
    try:
        terminal.expect(name)
        first = fleet.sh("exit 3", retries=0)
        terminal.expect(first)  # among the newest failures
        wire.cut()
        terminal.expect("reconnecting…")
        terminal.expect(name)  # what was last seen stays
        wire.mend()
        second = fleet.sh("exit 4", retries=0)
        terminal.expect(second)
        fleet.kill("coordinator")
        third = fleet.sh("exit 5", retries=0) if until(lambda: alive(fleet), what="the coordinator") else None
        terminal.expect(third)
        fleet.cli("node", "cordon", name, "--reason", "odd noises")
        terminal.expect("cordoned")
    finally:
        ended = terminal.end(**how)
        wire.cut()
    assert ended == code
    assert terminal.all.count(ALTERNATE) == 1
    assert terminal.all.count(BACK) == 1
    assert "Traceback" not in terminal.all


def alive(fleet):
    with suppress(Exception):
        return fleet.http.get(f"{fleet.url}/readyz").status_code == 200
    return False


def test_once_json_and_without_a_terminal(fleet):
    until(lambda: fleet.nodes() and fleet.nodes()[0]["state"] == "ready", what="a node")
    name = fleet.nodes()[0]["node_id"]
    fleet.wait(fleet.sh("exit 3", retries=0))
    shown = fleet.cli("top", "--once")
    assert shown.returncode == 0, shown.stderr
    assert re.search(rf"^{name} +ready +default", shown.stdout, re.MULTILINE)
    assert "E_EXIT" in shown.stdout
    seen = json.loads(fleet.cli("top", "--json").stdout)
    assert seen["nodes"][0]["node"]["node_id"] == name
    assert seen["failures"][0]["failure"]["code"]
    assert fleet.cli("top", "--every", "0").returncode == 2
    with subprocess.Popen([OSTLER, "top", "--every", "0.1"], env=fleet.env, stdout=subprocess.PIPE, text=True) as running:
        for _ in range(2):  # one reading after the other
            next(line for line in running.stdout if line.startswith(name))
        running.send_signal(signal.SIGINT)
        rest = running.stdout.read()
        assert running.wait(30) == 0
    assert "Traceback" not in rest


def test_a_revoked_token_ends_it_with_a_word(fleet):
    made = json.loads(fleet.cli("token", "create", "--role", "viewer", "--json").stdout)
    env = fleet.env | {"OSTLER_TOKEN": made["token"]}
    with subprocess.Popen(
        [OSTLER, "top", "--every", "0.1"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        next(line for line in running.stdout if line.startswith("NODE"))
        fleet.cli("token", "revoke", made["token_id"])
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 3
    assert "revoked" in errors
