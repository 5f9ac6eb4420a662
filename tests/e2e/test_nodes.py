"""What an operator decides about nodes, through the command line and against a real daemon."""

import json
import os
import pty
import shlex
import sqlite3
import subprocess
from contextlib import closing

import psutil

from e2e.fleet import OSTLER, until


def one(fleet):
    return json.loads(fleet.cli("node", "list", "--json").stdout)["items"][0]


def said(fleet, *words):
    done = fleet.cli(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_daemon_gives_way_as_its_jobs_do(own_fleet):
    fleet = own_fleet().start()
    until(lambda: fleet.nodes() and fleet.nodes()[0]["state"] == "ready", what="a node")
    parts = fleet.processes()
    assert parts["node"].nice() == max(10, os.getpriority(os.PRIO_PROCESS, 0))
    assert parts["coordinator"].nice() == parts["keeper"].nice() == os.getpriority(os.PRIO_PROCESS, 0)
    assert fleet.cli("run", "--", "sh", "-c", "nice").stdout == f"{parts['node'].nice()}\n"


def test_a_daemon_runs_without_standard_streams(own_fleet):
    fleet = own_fleet().start()
    with fleet.join("other") as node:
        node.kill()
        command = shlex.join([str(OSTLER), "node", "--config", str(node.config)])
        node.process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command} <&- >&- 2>&-"], env={**fleet.env, "JOIN_TOKEN": node.token}
        )
        until(psutil.Process(node.process.pid).net_connections, what="a session")
        node.process.terminate()
        assert node.process.wait(30) == 0  # closed ones became files of its own, and the interpreter's end an abort


def test_cordon_pool_and_retire(own_fleet):
    fleet = own_fleet().start()
    until(lambda: fleet.nodes() and fleet.nodes()[0]["state"] == "ready", what="a node")
    name = one(fleet)["node_id"]
    fleet.wait(fleet.sh("true"))

    assert said(fleet, "node", "cordon", name, "--reason", "odd noises") == f"{name} is cordoned\n"
    listed = said(fleet, "node", "list")
    assert "cordoned" in listed
    assert f"odd noises: `ostler node uncordon {name}`" in listed
    waiting = fleet.sh("true")
    assert "1 is cordoned" in said(fleet, "job", "explain", waiting)
    assert said(fleet, "node", "uncordon", name) == f"{name} is ready\n"
    assert fleet.wait(waiting)["state"] == "done"

    assert said(fleet, "node", "pool", name, "lab") == f"{name} is ready (pool lab)\n"
    elsewhere = fleet.sh("true")
    assert "no node is in the pool default" in said(fleet, "job", "explain", elsewhere)
    assert fleet.cli("run", "--pool", "lab", "--", "echo", "here").stdout == "here\n"
    assert "pool: must be 1 to 63" in fleet.cli("node", "pool", name, "a b").stderr

    running = fleet.sh("sleep 600", requirements={"pool": "lab"})
    fleet.wait_state(running, "running")
    daemon = fleet.processes()["node"]
    assert said(fleet, "node", "retire", name, "--reason", "sold") == f"{name} is retired\n"
    job = fleet.wait_state(running, "retry_wait", "queued")
    assert job["failure"]["code"] == "E_LOST"
    log = fleet.data / "log" / "node.jsonl"
    until(lambda: "node_retired" in log.read_text(), what="the daemon's word that it was retired")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    [told] = [line for line in lines if line["event"] == "node_retired"]
    assert "remove the node's state directory and let it join anew" in told["attrs"]["message"]
    assert "no nodes" in fleet.cli("node", "list").stderr
    assert "retired" in said(fleet, "node", "list", "--all")
    until(lambda: not [p for p in daemon.children(recursive=True) if "sleep" in p.name()], what="the end of what it ran")
    assert daemon.is_running()  # it idles: nothing restarts it, and it does not crash
    assert fleet.processes()["node"].pid == daemon.pid
    assert fleet.cli("node", "retire", name).returncode == 3


def test_of_two_daemons_with_one_state_the_second_is_refused(own_fleet):
    """Each would take the other one's session."""
    fleet = own_fleet().start()
    until(lambda: fleet.nodes() and fleet.nodes()[0]["state"] == "ready", what="a node")
    epoch = one(fleet)["boot_epoch"]
    second = fleet.cli("node", "--config", str(fleet.data / "node.yaml"))
    assert second.returncode == 3
    daemon = fleet.processes()["node"].pid
    assert second.stderr.startswith(f"error: another node daemon (pid {daemon}) has the state in {fleet.data}/node\nhint: ")
    assert fleet.wait(fleet.sh("true"))["state"] == "done"
    assert one(fleet)["boot_epoch"] == epoch


def test_on_a_terminal_it_is_asked_whether_to_retire(own_fleet):
    fleet = own_fleet().start()
    until(lambda: fleet.nodes() and fleet.nodes()[0]["state"] == "ready", what="a node")
    name = one(fleet)["node_id"]
    for answer, code in ((b"n\n", 3), (b"y\n", 0)):
        ours, theirs = pty.openpty()
        asking = subprocess.Popen(
            [OSTLER, "node", "retire", name], stdin=theirs, stderr=theirs, env=fleet.env, start_new_session=True
        )
        os.close(theirs)
        said = b""
        while b"for good? [y/N]" not in said:
            said += os.read(ours, 1000)
        os.write(ours, answer)
        assert asking.wait(30) == code
        os.close(ours)
    [view] = fleet.nodes()
    assert view["state"] == "retired"


def test_a_node_is_found_behind_hundreds_that_are_retired(own_fleet):
    """As many as a simulation leaves: `ostler up` waits for its own node, whose name comes after all of theirs."""
    fleet = own_fleet().start()
    until(lambda: fleet.nodes() and fleet.nodes()[0]["state"] == "ready", what="a node")
    fleet.stop()
    with closing(sqlite3.connect(fleet.data / "ostler.db")) as connection, connection:
        found = connection.execute("SELECT * FROM nodes")
        columns, row = [one[0] for one in found.description], found.fetchone()
        many = [
            tuple({**dict(zip(columns, row, strict=True)), "node_id": f"!{number:04}", "state": "retired"}.values())
            for number in range(1100)
        ]
        connection.executemany(f"INSERT INTO nodes VALUES ({', '.join('?' * len(columns))})", many)
    fleet.start()
    fleet.wait(fleet.sh("true"))
