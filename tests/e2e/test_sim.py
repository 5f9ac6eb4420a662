"""`ostler sim nodes` against a real coordinator: everything but the work is real, and other people's jobs are left alone."""

import json
import signal
import subprocess

import pytest

from e2e.fleet import OSTLER, Fleet, until


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    with Fleet(tmp_path_factory.mktemp("sim"), args=["--no-node"]) as fleet:
        yield fleet


def simulate(fleet, *args, env=None, **how):
    return subprocess.run(
        [OSTLER, "sim", "nodes", *args], env=env or fleet.env, capture_output=True, text=True, timeout=120, check=False, **how
    )


def jobs(fleet, **query):
    return fleet.http.get("/jobs", params={"limit": 500, "count": "true", **query}).json()


def test_fifty_nodes_bring_five_hundred_jobs_to_one_end_each(fleet):
    theirs = fleet.http.post("/jobs", json={"command": "true"}).json()["items"][0]["job_id"]
    done = simulate(
        fleet, "50", "--jobs", "500", "--job-time", "50ms", "--slots", "2", "--verify", "1", "--log-bytes", "20", "--json"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["jobs_done"], report["jobs_failed"], report["lost"]) == (500, 0, 0)
    assert set(report["troubles"]) <= {"ack: taken back before it was acknowledged"}
    assert report["calls"]["result"]["count"] <= 500
    assert report["calls"]["register"]["count"] == 50
    assert report["verified"] > 0
    assert report["coordinator_cpu_s"] > 0
    ended = jobs(fleet, state="done")
    assert ended["total"] == 500
    for view in ended["items"][:5]:
        one = fleet.http.get(f"/jobs/{view['job_id']}").json()
        assert [attempt["state"] for attempt in one["attempts"] if attempt["state"] != "returned"] == ["done"]
        assert fleet.http.get(f"/jobs/{view['job_id']}/logs").text == "simulated\n" * 2
    assert {view["tries"] for view in ended["items"]} == {1}
    assert fleet.http.get(f"/jobs/{theirs}").json()["state"] == "queued"
    assert {node["state"] for node in fleet.http.get("/nodes").json()["items"]} == {"retired"}


def test_nodes_that_die_cost_no_job(fleet):
    done = simulate(fleet, "20", "--jobs", "100", "--job-time", "100ms", "--churn", "6", "--fail", "0.2", "--share", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["jobs_done"] + report["jobs_failed"] == 100
    assert 0 < report["jobs_failed"] < 60
    assert report["lost"] == 0


def test_ctrl_c_gives_what_was_measured_so_far(fleet):
    process = subprocess.Popen(
        [OSTLER, "sim", "nodes", "5", "--rate", "50", "--job-time", "10ms", "--for", "1h"], env=fleet.env, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    before = jobs(fleet, state="done", limit=1)["total"]
    until(lambda: jobs(fleet, state="done", limit=1)["total"] >= before + 20, what="twenty jobs")
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "(interrupted)" in shown
    assert "result" in shown
    assert "leases lost: 0" in shown


def test_ctrl_c_leaves_no_job_that_waits_for_ever(fleet):
    process = subprocess.Popen(
        [OSTLER, "sim", "nodes", "2", "--jobs", "600", "--job-time", "60s"], env=fleet.env, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: jobs(fleet, state="running", limit=1)["total"] >= 2, what="two jobs running")
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate(timeout=60)
    assert (process.returncode, "(interrupted)" in shown) == (0, True), errors
    waiting = jobs(fleet, state="queued")["items"]
    assert [job for job in waiting if job["queue"].startswith("sim-")] == []


def test_a_plan_that_cannot_be_is_told_before_anything_begins(fleet):
    wrong = simulate(fleet, "0", "--fail", "2")
    assert wrong.returncode == 3
    assert "nodes: must be from 1 to 10000" in wrong.stderr
    assert "fail: is a share, from 0 to 1" in wrong.stderr
    assert "for: say how long" in wrong.stderr
    narrow = simulate(fleet, "3000", "--jobs", "1", preexec_fn=lambda: _limit(2000))
    assert narrow.returncode == 3
    assert "3000 nodes need 6256 file descriptors, and this process may have 2000" in narrow.stderr
    assert "--share" in narrow.stderr
    stranger = simulate(fleet, "1", "--jobs", "1", env={**fleet.env, "OSTLER_TOKEN": "ostler_api_x"})
    assert stranger.returncode == 3
    assert "Traceback" not in stranger.stderr


def _limit(files):
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))


def test_a_coordinator_that_lets_few_in_is_named(tmp_path):
    with Fleet(tmp_path / "few", args=["--no-node"], settings={"OSTLER_COORDINATOR__LIMITS__CONNECTIONS": "10"}) as few:
        done = simulate(few, "30", "--jobs", "1")
    assert done.returncode == 4, done.stderr
    assert "takes no more connections from this address" in done.stderr
    assert "limits.connections" in done.stderr
