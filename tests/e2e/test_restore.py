"""A coordinator that goes away while its node works, and comes back with data from elsewhere: a backup, another engine."""

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest

import postgres
import s3
from e2e.fleet import until

OSTLER = Path(sys.executable).parent / "ostler"
ENDS = ("finish", "fail", "cancel", "expire")
FIRST_OF_AN_ERA = 28_000_000  # seconds since 2026, at the earliest when this was written


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def destroy(fleet):
    """kill -9 of the coordinator and whoever would start it anew; its database, artifacts, keys and token are gone."""
    coordinator = fleet.processes()["coordinator"]
    fleet.process.kill()
    fleet.process.wait(20)
    fleet.process.stdout.close()
    coordinator.kill()
    until(lambda: not coordinator.is_running(), what="the coordinator's end")
    for place in fleet.data.iterdir():
        if place.name.startswith("ostler."):
            place.unlink()
    shutil.rmtree(fleet.data / "artifacts")
    shutil.rmtree(fleet.data / "keys")
    (fleet.data / "admin.token").unlink()


def kill_a_backup(fleet, place, folder):
    """kill -9 of one that has begun and is not finished; `folder` is where the server keeps what it has of the place."""
    command = [OSTLER, "backup", "create", place, "--data", fleet.data, "--encrypt"]
    process = subprocess.Popen([*map(str, command)], env=fleet.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: list(folder.glob("locks/add-*")), what="a backup that is under way")
    process.kill()
    assert process.wait(20) == -signal.SIGKILL


@pytest.mark.parametrize("where", ["directory", "s3"])
def test_jobs_and_the_node_go_on(own_fleet, tmp_path, where):
    """Every job that was acknowledged before the backup ends exactly once; what the node runs is kept, ended or made again."""
    marks, backups, encrypted = tmp_path / "marks", tmp_path / "backups", ()
    marks.mkdir()
    settings = {
        "OSTLER_COORDINATOR__LEASE": "6s",
        "OSTLER_COORDINATOR__HEARTBEAT": "1s",
        "OSTLER_COORDINATOR__LEASE_MARGIN": "2s",
    }
    if where == "s3":
        server = s3.shared()
        bucket = server.bucket()
        backups, encrypted = f"s3://{bucket}/of/one", ("--encrypt",)
        settings |= {**server.environment, "OSTLER_BACKUP_PASSPHRASE": "a passphrase"}
    fleet = own_fleet(settings=settings, args=("--no-node", "--listen", f"127.0.0.1:{free_port()}"))

    def gated(name, **fields):
        params = {"marks": str(marks), "go": str(marks / f"{name}.go")}
        manifest = {"job_id": name, "runner": "python", "task": "gated", "params": params, "artifacts": [{"path": "out.txt"}]}
        return fleet.submit({**manifest, **fields})

    def pids(name, what="begun"):
        file = marks / f"{name}.{what}"
        return file.read_text().split() if file.exists() else []

    def begins(name, times=1):
        until(lambda: len(pids(name)) == times, timeout=60, what=f"the beginning of {name}")

    with fleet, fleet.join("n1", slots=6) as node:
        (marks / "early.go").touch()
        assert fleet.wait(gated("early"))["state"] == "done"
        gated("kept"), gated("ended"), gated("waiting", requirements={"pool": "other"})
        begins("kept"), begins("ended")
        fleet.wait_state("kept", "running"), fleet.wait_state("ended", "running")
        if where == "s3":
            kill_a_backup(fleet, backups, server.root / bucket / "of" / "one")
        made = fleet.cli("backup", "create", backups, "--data", fleet.data, "--with-keys", *encrypted, "--json")
        assert made.returncode == 0, made.stderr
        assert json.loads(made.stdout)["rows"]["jobs"] == 4
        [listed] = json.loads(fleet.cli("backup", "list", backups, "--json").stdout)
        assert listed["encrypted"] is (where == "s3")
        proved = fleet.cli("backup", "verify", backups)
        assert proved.returncode == 0, proved.stderr

        # what the backup does not know: a job that ended, one that began, and one that is new
        (marks / "ended.go").touch()
        assert fleet.wait("ended")["attempt"] == 1
        (marks / "ended.go").unlink()
        assert fleet.cli("node", "pool", "n1", "other").returncode == 0
        begins("waiting")
        gated("late", requirements={"pool": "other"})
        begins("late")

        destroy(fleet)
        done = fleet.cli("restore", backups, "--data", fleet.data, "--json")
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)["warnings"]) == 1, done.stdout  # that time was lost, and nothing else
        fleet.start()

        until(lambda: fleet.get("/jobs/late").status_code == 404, what="a job that does not exist any more")
        until(lambda: not psutil.pid_exists(int(pids("late")[0])), what="the end of what nobody knows", timeout=60)
        until(lambda: not psutil.pid_exists(int(pids("waiting")[0])), what="the end of what began since", timeout=60)
        begins("ended", 2)
        gated("late")
        assert fleet.cli("node", "pool", "n1", "other").returncode == 0  # of that the backup knew nothing either
        begins("waiting", 2), begins("late", 2)
        for name in ("kept", "ended", "waiting", "late"):
            (marks / f"{name}.go").touch()
        views = {name: fleet.wait(name) for name in ("early", "kept", "ended", "waiting", "late")}
        assert node.process.poll() is None

    for name, view in views.items():
        kinds = Counter(event["kind"] for event in view["timeline"])
        assert (view["state"], sum(kinds[end] for end in ENDS)) == ("done", 1), view
        assert [one["path"] for one in view["artifacts"]] == ["out.txt"], name
        numbers = [one["attempt"] for one in view["attempts"]]
        assert numbers[:-1] == ([1] if name == "ended" else []), view["attempts"]
        assert (numbers[-1] > FIRST_OF_AN_ERA) is (name not in {"early", "kept"}), name
    assert views["ended"]["attempts"][0]["failure"]["code"] == "E_LOST"
    ends = {name: len(pids(name, "ended")) for name in views}
    assert ends == {"early": 1, "kept": 1, "ended": 2, "waiting": 1, "late": 1}  # only what its node had finished was done twice


def test_an_embedded_coordinator_moves_to_postgresql(own_fleet, tmp_path):
    """A job that runs on a node is finished by the coordinator that it was not given by; what was done is there."""
    server = postgres.shared()
    url = server.url(server.create())
    settings = {
        "OSTLER_COORDINATOR__LEASE": "6s",
        "OSTLER_COORDINATOR__HEARTBEAT": "1s",
        "OSTLER_COORDINATOR__LEASE_MARGIN": "2s",
    }
    fleet = own_fleet(settings=settings, args=("--no-node", "--listen", f"127.0.0.1:{free_port()}"))

    def gated(name):
        params = {"marks": str(tmp_path), "go": str(tmp_path / f"{name}.go")}
        return fleet.submit(
            {"job_id": name, "runner": "python", "task": "gated", "params": params, "artifacts": [{"path": "out.txt"}]}
        )

    with fleet, fleet.join("n1") as node:
        (tmp_path / "before.go").touch()
        before = fleet.wait(gated("before"))
        gated("across")
        fleet.wait_state("across", "running")
        fleet.process.send_signal(signal.SIGTERM)
        fleet.process.wait(40)
        fleet.process.stdout.close()
        copied = fleet.cli("db", "copy", "--from", fleet.data / "ostler.db", "--to", url, "--json")
        assert copied.returncode == 0, copied.stderr
        (fleet.data / "ostler.db").rename(tmp_path / "put-away.db")
        (fleet.data / "coordinator.yaml").write_text(f"store: {url}\n")
        fleet.start()
        (tmp_path / "across.go").touch()
        across = fleet.wait("across")
        assert (across["state"], across["attempt"]) == ("done", 1)
        assert fleet.log("across") == "begun\nover\n"
        assert fleet.job("before") == before
        assert fleet.get("/jobs/before/artifacts/out.txt").text == "before"
        (tmp_path / "after.go").touch()
        assert fleet.wait(gated("after"))["state"] == "done"
        assert not (fleet.data / "ostler.db").exists()
        assert node.process.poll() is None
