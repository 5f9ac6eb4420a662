"""Submission through the installed command line: what waits for its time, and an answer that is lost with the coordinator."""

import json
import subprocess
from datetime import datetime, timedelta

from e2e.fleet import OSTLER, until
from lossy_proxy import LossyProxy


def test_a_command_waits_for_its_time(fleet):
    done = fleet.cli("run", "--not-before", "1s", "--label", "test=later", "--", "echo", "now")
    assert (done.returncode, done.stdout) == (0, "now\n"), done.stderr
    view = fleet.get("/jobs", label="test=later").json()["items"][0]
    view = fleet.job(view["job_id"])
    leased = next(event["at"] for event in view["timeline"] if event["kind"] == "lease")
    assert datetime.fromisoformat(leased) >= datetime.fromisoformat(view["not_before"])


def test_what_waits_is_shown(fleet, tmp_path):
    file = tmp_path / "later.yaml"
    file.write_text("job_id: later\ncommand: 'true'\nnot_before: 2999-01-31T20:00:00Z\n")  # YAML reads a time there
    done = fleet.cli("job", "submit", file)
    assert done.returncode == 3
    assert f"{file}:3: not_before: 2999-01-31T20:00:00Z is more than a year ahead" in done.stderr
    done = fleet.cli("job", "submit", "-", stdin=json.dumps({"job_id": "later", "command": "true", "not_before": soon(fleet)}))
    assert (done.returncode, done.stdout) == (0, "later\n"), done.stderr
    assert "waits until" in fleet.cli("job", "show", "later").stdout
    assert "it waits until" in fleet.cli("job", "explain", "later").stdout
    assert [line.split()[:2] for line in fleet.cli("job", "list", "--state", "waiting").stdout.splitlines()[1:]] == [
        ["later", "waiting"]
    ]
    assert fleet.cli("job", "cancel", "later").stdout == "later is cancelled\n"
    assert fleet.cli("job", "list", "--state", "waiting").stdout == ""
    done = fleet.cli("run", "--not-before", "tomorrow", "--", "true")
    assert (done.returncode, "'tomorrow' is neither a time" in " ".join(done.stderr.split())) == (2, True), done.stderr


def soon(fleet):
    """An hour from now, by the coordinator's clock."""
    now = datetime.fromisoformat(fleet.job(fleet.submit({"command": "true"}))["submitted_at"])
    return (now + timedelta(hours=1)).isoformat(timespec="seconds")


def test_the_coordinator_dies_before_it_can_answer(own_fleet):
    """Its commit stands: `run` and `job submit` ask again with the same key, and one job each is what there is."""
    with own_fleet() as fleet:

        def dies():
            old = fleet.kill("coordinator")
            until(lambda: (one := fleet.processes().get("coordinator")) and one.pid != old, what="the next coordinator")

        with LossyProxy(fleet.url, losses=1, on_loss=dies) as proxy:
            env = fleet.env | {"OSTLER_URL": proxy.url}

            def cli(*words, text=None):
                return subprocess.run(
                    [OSTLER, *words], env=env, input=text, capture_output=True, text=True, timeout=90, check=False
                )

            done = cli("run", "--label", "test=lost", "--", "echo", "once")
            assert (done.returncode, done.stdout) == (0, "once\n"), done.stderr
            assert proxy.submissions >= 2
            proxy.losses = 1
            done = cli("job", "submit", "--wait", "-", text='{"command": "true", "labels": {"test": "lost"}}')
            assert done.returncode == 0, done.stderr
        assert fleet.get("/jobs", label="test=lost", count="true").json()["total"] == 2
