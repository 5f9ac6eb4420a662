"""kill -9 of each part while jobs run: what was running goes on or ends as what it is, and every job ends exactly once."""

from collections import Counter

import psutil

from e2e.fleet import until


def counting(marks, name, *, seconds):
    """A shell line that writes its pid, prints a line each 20 ms, and ends with a checksum of what it printed."""
    loop = f"i=0; while [ $i -lt {int(seconds * 50)} ]; do echo line $i; i=$((i+1)); sleep 0.02; done"
    return f"echo $$ > {marks}/{name}; {loop}; echo end"


def whole(log, seconds):
    """The log that `counting` prints when no byte is lost or doubled."""
    return log == "".join(f"line {i}\n" for i in range(int(seconds * 50))) + "end\n"


def pid_of(marks, name):
    path = marks / name
    return until(lambda: path.exists() and path.read_text().strip() and int(path.read_text()), what=f"the pid of {name}")


def kinds(view):
    return Counter(event["kind"] for event in view["timeline"])


def test_jobs_survive_the_daemon(own_fleet, tmp_path):
    """Three jobs run on with the same pids, the next daemon adopts them, their logs are whole, each ends once."""
    with own_fleet(slots=3) as fleet:
        jobs = [fleet.sh(counting(tmp_path, f"m{i}", seconds=6)) for i in range(3)]
        pids = [pid_of(tmp_path, f"m{i}") for i in range(3)]
        born = [psutil.Process(pid).create_time() for pid in pids]
        old = fleet.kill("node")
        until(lambda: fleet.processes().get("node") and fleet.processes()["node"].pid != old, what="the next daemon")
        assert [psutil.Process(pid).create_time() for pid in pids] == born
        for job in jobs:
            view = fleet.wait(job)
            assert (view["state"], view["attempt"], view["tries"]) == ("done", 1, 1), view
            assert kinds(view)["finish"] == 1
            assert whole(fleet.log(job), 6)


def test_a_job_that_ends_while_no_daemon_lives(own_fleet, tmp_path):
    """Its end is known to the keeper, and the next daemon delivers it."""
    with own_fleet(slots=2) as fleet:
        job = fleet.sh(f"echo $$ > {tmp_path}/m; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; echo over; exit 7")
        pid = pid_of(tmp_path, "m")
        node = fleet.processes()["node"]
        supervisor = psutil.Process(fleet.process.pid)
        supervisor.suspend()  # so that no next daemon is started yet
        try:
            node.kill()
            until(lambda: not node.is_running() or node.status() == psutil.STATUS_ZOMBIE, what="the daemon's death")
            (tmp_path / "go").touch()
            until(lambda: not psutil.pid_exists(pid), what="the job's end")
        finally:
            supervisor.resume()
        view = fleet.wait(job)
        assert (view["state"], view["failure"]["code"], view["exit_code"]) == ("failed", "E_EXIT", 7)
        assert fleet.log(job) == "over\n"


def test_the_keeper_dies(own_fleet, tmp_path):
    """Its jobs die with it and are E_LOST; they are tried again only where that is allowed."""
    with own_fleet(slots=2) as fleet:
        once = fleet.sh(f"echo $$ >> {tmp_path}/once; exec sleep 60", retries=0)
        again = fleet.sh(
            f"echo $$ >> {tmp_path}/again; [ $(wc -l < {tmp_path}/again) -gt 1 ] || exec sleep 60; echo second",
            retries={"max": 2, "backoff_s": 0.1},
        )
        first = [pid_of(tmp_path, "once"), pid_of(tmp_path, "again")]
        fleet.kill("keeper")
        until(lambda: not any(psutil.pid_exists(pid) for pid in first), what="the end of the keeper's children")
        view = fleet.wait(once)
        assert (view["state"], view["failure"]["code"], view["tries"]) == ("failed", "E_LOST", 1)
        view = fleet.wait(again)
        assert (view["state"], view["tries"]) == ("done", 2), view
        assert view["attempts"][0]["failure"]["code"] == "E_LOST"
        assert fleet.log(again) == "second\n"


def test_an_upload_rides_out_the_coordinator(own_fleet):
    """The coordinator dies in the middle of an upload; the artifact arrives whole."""
    with own_fleet(slots=1) as fleet:
        job = fleet.sh("head -c 400000000 /dev/urandom > big; sha256sum < big", artifacts=[{"path": "big", "max_mb": 500}])
        staging = fleet.data / "artifacts"
        until(
            lambda: any(f.is_file() and f.stat().st_size > 1 << 20 for f in staging.rglob("*")),
            timeout=60,
            what="a growing upload",
        )
        fleet.kill("coordinator")
        view = fleet.wait(job, timeout=120)
        assert view["state"] == "done", view
        listed = fleet.get(f"/jobs/{job}/artifacts").json()["items"]
        assert listed[0]["sha256"] == fleet.log(job).split()[0]
        assert listed[0]["size"] == 400_000_000


def test_everything_dies_at_once(own_fleet, tmp_path):
    """The plug is pulled: what was acknowledged is there after the next start, and lost attempts are tried again."""
    fleet = own_fleet(slots=2)
    fleet.start()
    running = fleet.sh(f"echo $$ >> {tmp_path}/m; [ $(wc -l < {tmp_path}/m) -gt 1 ] || exec sleep 60; echo second")
    waiting = [fleet.sh("echo fine", requirements={"tags": ["later"]}) for _ in range(3)]
    pid_of(tmp_path, "m")
    parts = fleet.processes()
    fleet.process.kill()
    for one in parts.values():
        one.kill()
    fleet.process.wait()
    fleet.process.stdout.close()
    fleet.start()
    view = fleet.wait(running)
    assert (view["state"], view["tries"]) == ("done", 2), view
    assert {fleet.job(job)["state"] for job in waiting} == {"queued"}
