"""A coordinator is replaced by one that speaks another protocol than its node: nothing that runs is lost, and everybody says so.

The other release is this one with another number, which a `sitecustomize` of the test's gives to each process that is told to.
"""

import json
import signal
from contextlib import suppress
from datetime import datetime

import httpx
import psutil
import yaml

from e2e.fleet import until

OTHER = """
import os
if "SPEAKS" in os.environ:
    from ostler.protocol import messages
    from ostler.protocol.messages import leases
    for one in (messages, leases):
        one.PROTOCOL = one.PROTOCOL_MIN = int(os.environ["SPEAKS"])
"""
LEASE_S = 8.0


def ask(node, path):
    """What the daemon says on its own socket."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(node.home / "node" / "daemon.sock"))) as http:
        return http.get(f"http://daemon{path}")


def end(process):
    process.send_signal(signal.SIGTERM)
    process.wait(40)
    if process.stdout is not None:
        process.stdout.close()


def replaced(fleet, speaks):
    """The coordinator ends, and one of another release starts in its place."""
    end(fleet.process)
    fleet.env["SPEAKS"] = speaks
    fleet.args = ["--no-node", "--listen", fleet.url.removeprefix("http://")]
    fleet.start()


def settle(fleet, lease_s):
    """How long the next coordinator's leases last."""
    times = {"lease": f"{lease_s:g}s", "lease_margin": "1.5s", "heartbeat": "1s"}
    (fleet.data / "coordinator.yaml").write_text(yaml.safe_dump(times))


def node_of(fleet):
    [node] = fleet.nodes()
    return node


def test_a_node_that_speaks_another_protocol_keeps_its_jobs_and_everybody_says_so(own_fleet, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(OTHER)
    fleet = own_fleet(args=["--no-node"], settings={"PYTHONPATH": str(tmp_path / "site"), "SPEAKS": "1"})
    settle(fleet, LEASE_S)
    fleet.start()
    gate = tmp_path / "gate"
    (tmp_path / "marks").mkdir()
    gated = {"runner": "python", "task": "gated", "params": {"marks": str(tmp_path / "marks"), "go": str(gate)}}
    with fleet.join("n1") as node:
        job = fleet.submit(gated)
        fleet.wait_state(job, "running")

        replaced(fleet, "2")
        began = until(lambda: node_of(fleet)["outside"] and node_of(fleet), what="the node's place in the list")
        assert began["outside"] == "older"
        began_at = datetime.fromisoformat(began["last_seen_at"])
        # It is the node's registrations that are refused which renew its lease: it must live for longer than one.
        until(
            lambda: (datetime.fromisoformat(node_of(fleet)["last_seen_at"]) - began_at).total_seconds() > 1.5 * LEASE_S,
            timeout=90, what="more than a lease",
        )  # fmt: skip
        assert (fleet.job(job)["state"], fleet.job(job)["attempt"]) == ("running", 1)
        waits = fleet.submit(gated)
        assert "1 is outside the protocol window" in fleet.cli("job", "explain", waits).stdout
        listed = fleet.cli("node", "list").stdout
        assert "outside" in listed
        assert "`ostler fleet update --host n1`" in listed
        assert "1 node, 1 not well" in fleet.cli("top", "--once").stdout
        told = json.loads(fleet.cli("events", "--kind", "outside", "--json").stdout.splitlines()[0])
        assert told["node_id"] == "n1"
        numbers = httpx.get(f"{fleet.url}/metrics").text
        assert "ostler_nodes_outside_window 1.0" in numbers
        assert 'ostler_node_info{node="n1",protocol="1"' in numbers

        health = ask(node, "/healthz")
        assert (health.status_code, health.json()["outside_window"]) == (503, True)
        assert "`ostler fleet update --host n1`" in health.json()["problems"][0]
        assert "ostler_node_outside_window 1.0" in ask(node, "/metrics").text
        gate.touch()
        until(lambda: ask(node, "/healthz").json()["undelivered"] == 1, what="an outcome that waits")
        assert (fleet.job(job)["state"], fleet.job(waits)["state"]) == ("running", "queued")

        assert psutil.Process(node.process.pid).is_running()  # the daemon that was there from the beginning: it never crashed
        settle(fleet, 60.0)  # on a slow machine a daemon is not there again within a short lease
        replaced(fleet, "2")
        end(node.process)
        node.start()  # of the release that speaks with the coordinator
        ended = fleet.wait(job)
        assert (ended["state"], len(ended["attempts"])) == ("done", 1), ended["failure"]
        assert fleet.wait(waits)["state"] == "done"
        assert node_of(fleet)["outside"] is None
        assert ask(node, "/healthz").json()["outside_window"] is False
    with suppress(psutil.Error):
        end(fleet.process)
