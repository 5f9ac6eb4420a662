"""Submission through the installed command line: what waits for its time, and an answer that is lost with the coordinator."""

import json
import subprocess
from datetime import datetime, timedelta

from e2e.fleet import OSTLER, until
from integration.test_dependency_graph import draw, expected
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


def test_files_of_one_job_are_the_inputs_of_the_next(fleet, tmp_path):
    """Through the coordinator's store and both workspaces, whichever node had them; byte for byte."""
    make = {
        "job_id": "make", "command": "sh", "args": ["-c", "head -c 3000000 /dev/zero | tr '\\0' x > big.bin; sha256sum < big.bin"],
        "artifacts": [{"path": "big.bin"}, {"path": "perhaps", "optional": True}],
    }  # fmt: skip
    take = {
        "job_id": "take", "command": "sh", "args": ["-c", "sha256sum < in.bin"], "depends_on": ["make"],
        "input": {"artifacts": [{"job": "make", "path": "big.bin", "name": "in.bin"}], "inline": {"other": "x"}},
    }  # fmt: skip
    lacks = {**take, "job_id": "lacks", "input": {"artifacts": [{"job": "make", "path": "perhaps"}]}}
    after = {"job_id": "after", "command": "true", "depends_on": ["lacks"]}
    file = tmp_path / "film.yaml"
    file.write_text("\n---\n".join(json.dumps(one) for one in (after, lacks, take, make)))  # in any order
    done = fleet.cli("job", "submit", file)
    assert (done.returncode, done.stdout) == (0, "after\nlacks\ntake\nmake\n"), done.stderr
    assert fleet.cli("job", "wait", "take").returncode == 0
    assert fleet.log("take") == fleet.log("make")
    done = fleet.cli("job", "wait", "lacks")
    assert done.returncode == 125
    assert "lacks failed: E_INPUT: job make delivered no artifact 'perhaps', which is its input" in done.stderr
    assert fleet.cli("job", "wait", "after").returncode == 125
    page = fleet.cli("job", "show", "after").stdout
    assert "it depends on the success of lacks, which failed" in page
    assert fleet.job("lacks")["attempts"] == []


def test_run_after_other_jobs(fleet, tmp_path):
    gate = fleet.sh(f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; exit 3", retries=0, job_id="gate")
    good = subprocess.Popen(
        [OSTLER, "run", "--after-any-end", gate, "--", "echo", "any"], env=fleet.env, stdout=subprocess.PIPE, text=True
    )
    bad = subprocess.Popen(
        [OSTLER, "run", "--after", gate, "--", "echo", "success"],
        env=fleet.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: len(fleet.job(gate)["dependents"]) == 2, what="both wait")
    (tmp_path / "go").touch()
    assert (good.communicate(timeout=60)[0], good.returncode) == ("any\n", 0)
    out, err = bad.communicate(timeout=60)
    assert (out, bad.returncode) == ("", 125)
    assert "is cancelled: it depends on the success of gate, which failed" in err
    done = fleet.cli("run", "--after", "nobody", "--", "true")
    assert (done.returncode, "depends_on[0]: there is no job, array or group nobody" in done.stderr) == (3, True), done.stderr


def test_a_file_with_a_cycle_names_it_and_where_it_stands(fleet, tmp_path):
    file = tmp_path / "ring.yaml"
    file.write_text("job_id: a\ncommand: 'true'\ndepends_on: [b]\n---\njob_id: b\ncommand: 'true'\ndepends_on: [a]\n")
    done = fleet.cli("job", "submit", file)
    assert (done.returncode, done.stdout) == (3, "")
    assert f"{file}:3: depends_on: a → b → a: they depend on each other in a circle" in done.stderr
    assert fleet.cli("job", "show", "a").returncode == 3


def test_a_group_of_a_file(fleet, tmp_path):
    file = tmp_path / "group.json"
    file.write_text(json.dumps({"jobs": [{"command": "true"}, {"command": "sh", "args": ["-c", "exit 4"]}], "group": "pair"}))
    done = fleet.cli("job", "submit", "--wait", file)
    assert (done.returncode, done.stdout) == (4, "group pair: 2 jobs\n"), done.stderr
    assert "group pair is failed: 1 done, 1 failed" in done.stderr
    assert fleet.cli("job", "show", "pair").stdout.startswith("group      pair\n")
    done = fleet.cli("job", "submit", "--group", "other", file)
    assert (done.returncode, f"{file}:1: group: makes one group of all that one call submits" in done.stderr) == (3, True), (
        done.stderr
    )


def test_a_graph_ends_as_it_should_although_the_coordinator_dies_twice(own_fleet):
    """On a real node, with real files handed on: each end and what follows from it are one transaction, or neither is there."""
    items = draw(7, 120)
    for one in items:
        one.fate, one.retries, one.fails = "runs", 0, min(one.fails, 1)
    letting_go = {job for one in items if one.released for job in one.jobs}

    def manifest(one):
        words = ["cat in > /dev/null"] if one.takes else []
        words += ["echo made > out"] if one.delivers else []
        return one.manifest() | {"command": "sh", "args": ["-c", "; ".join([*words, f"exit {one.fails}"])]}

    with own_fleet(slots=4) as fleet:
        fleet.submit([manifest(one) for one in items])
        deaths = [90, 40]  # jobs that are over when it is killed

        def settled():
            if deaths and fleet.get("/jobs", state="done,failed,cancelled", count="true").json()["total"] >= deaths[-1]:
                deaths.pop()
                fleet.kill("coordinator")
            page = fleet.get("/jobs", limit=500).json()["items"]
            states = {one["job_id"]: seen(one) for one in page}
            held = [job for job, state in states.items() if state == "held" and job in letting_go]
            for job in held:
                fleet.cli("job", "release", job)
            still = {"done", "failed", "cancelled", "held", "waiting"}
            return states if not held and not deaths and set(states.values()) <= still else None

        def seen(one):
            return "held" if one["held"] and one["state"] == "queued" else "waiting" if one["waiting"] else one["state"]

        found = until(settled, timeout=180, what="the end of the graph")
        wanted = expected(items)
        assert {job: (found[job], end) for job, end in wanted.items() if found[job] != end} == {}
