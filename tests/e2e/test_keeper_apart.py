"""A service manager runs keeper and daemon apart: the daemon waits for its keeper, checks itself, and leaves it alone at its end."""

import json
import signal
import socket
import subprocess

import pytest
import yaml

from e2e.fleet import OSTLER, until


@pytest.fixture
def node(own_fleet, tmp_path):
    """A joined node's configuration, and a way to start its parts; all of them end with the test."""
    started = []
    with own_fleet(slots=1) as fleet:
        file = tmp_path / "node.yaml"
        file.write_text(
            yaml.safe_dump(
                {
                    "node_id": "apart",
                    "coordinator": {"base_url": f"{fleet.url}/api/v1", "auth_token": "env:JOIN_TOKEN"},
                    "runners": {"cli": {"enable": True}},
                    "workspace": {"root": str(tmp_path / "jobs")},
                    "sandbox": {"level": "process"},
                    "health": {"listen": "off"},
                }
            )
        )
        env = {**fleet.env, "JOIN_TOKEN": fleet.cli("token", "create", "--join").stdout.strip()}

        def start(*args):
            process = subprocess.Popen([OSTLER, "node", *args, "--config", file], env=env, stderr=subprocess.PIPE, text=True)
            started.append(process)
            return process

        yield start, tmp_path / "node"
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


def test_the_daemon_waits_for_its_keeper_and_leaves_it_alone(node):
    start, state = node
    daemon = start("--await-keeper")
    keeper = start("keeper")
    until(lambda: (health(state) or {}).get("self_check") == "ok", what="a good self-check")
    assert health(state)["status"] == "ok"
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(40) == 0
    assert keeper.poll() is None
    start("--await-keeper")
    until(lambda: (health(state) or {}).get("self_check") == "ok", what="the next daemon's")
    assert keeper.poll() is None
