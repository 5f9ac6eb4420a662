"""As a service manager runs a node: enrolled first, then keeper and daemon apart; the daemon has no token and makes no sandbox itself."""

import json
import signal
import socket
import subprocess
from types import SimpleNamespace

import pytest
import yaml

from e2e.fleet import OSTLER, until


@pytest.fixture
def node(own_fleet, tmp_path):
    """A node's configuration, a token to join with, and a way to start its parts; all of them end with the test."""
    started = []
    with own_fleet(slots=1) as fleet:
        file = tmp_path / "node.yaml"
        file.write_text(
            yaml.safe_dump(
                {
                    "node_id": "apart",
                    "coordinator": {"base_url": f"{fleet.url}/api/v1"},
                    "runners": {"cli": {"enable": True}},
                    "workspace": {"root": str(tmp_path / "jobs")},
                    "sandbox": {"level": "bwrap"},
                    "health": {"listen": "off"},
                }
            )
        )

        def ostler(*args, stdin=None):
            return fleet.cli(*args, "--config", file, stdin=stdin)

        def start(*args):
            command = [OSTLER, "node", *args, "--config", file]
            process = subprocess.Popen(command, env=fleet.env, stderr=subprocess.PIPE, text=True)
            started.append(process)
            return process

        token = fleet.cli("token", "create", "--join").stdout
        yield SimpleNamespace(start=start, cli=ostler, token=token, state=tmp_path / "node", fleet=fleet, file=file)
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=40)


def health(state):
    """What the daemon says of itself, None while it does not answer."""
    try:
        with socket.socket(socket.AF_UNIX) as door:
            door.connect(str(state / "daemon.sock"))
            door.sendall(b"GET /healthz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
            return json.loads(b"".join(iter(lambda: door.recv(65536), b"")).partition(b"\r\n\r\n")[2])
    except OSError:
        return None


def test_a_node_is_enrolled_and_its_daemon_has_no_token_and_makes_no_sandbox_itself(node):
    nobody = node.cli("node", "reach")
    assert nobody.returncode == 3
    assert "was never enrolled" in nobody.stderr
    enrolled = node.cli("node", "enrol", stdin=node.token)
    assert (enrolled.returncode, enrolled.stdout) == (0, f"apart is enrolled at {node.fleet.url}/api/v1\n")
    assert node.cli("node", "enrol", stdin=node.token).returncode == 0  # it proves itself by its key; the token had one use
    assert node.cli("node", "reach").stdout == f"{node.fleet.url}/api/v1 answers apart\n"

    daemon = node.start("--await-keeper")
    keeper = node.start("keeper")
    until(lambda: (health(node.state) or {}).get("self_check") == "ok", what="a good self-check")
    assert health(node.state)["status"] == "ok"
    assert json.loads((node.state / "sandboxes.json").read_text())["abilities"]["levels"][-1] == "bwrap"
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(40) == 0
    assert keeper.poll() is None
    node.start("--await-keeper")
    until(lambda: (health(node.state) or {}).get("self_check") == "ok", what="the next daemon's")
    assert keeper.poll() is None


@pytest.mark.parametrize(
    ("args", "stdin", "code", "said"),
    [
        (("--token", "ostler_join_secret"), "", 2, "env:NAME"),
        (("--token", "env:NOT_SET_AT_ALL"), "", 3, "NOT_SET_AT_ALL holds no token"),
        ((), "", 3, "no join token on standard input"),
        ((), "two words", 3, "is no join token"),
        ((), "ostler_join_" + "x" * 43, 3, "ostler token create --join"),
    ],
)
def test_a_token_that_is_none_is_refused_and_not_shown(node, args, stdin, code, said):
    done = node.cli("node", "enrol", *args, stdin=stdin)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "secret" not in done.stderr
    assert "xxx" not in done.stderr
