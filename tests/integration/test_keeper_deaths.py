"""What survives of a keeper that is killed, and what another one on the same state does about it."""

import json
import os
import signal
from pathlib import Path

import pytest

from integration.keeper_rig import Keeper, alive, folder, pids_of, wait_until

ROOT = os.getuid() == 0


@pytest.fixture(params=["none", "auto", "ordinary"] if ROOT else ["none"])
def keeper(request):
    kind = request.param
    with folder() as where:
        options = {"none": {"cgroup": "none"}, "ordinary": {"ordinary": True}}.get(kind, {})
        keeper = Keeper(where, **options)
        yield keeper
        keeper.close()


def children(line) -> dict[str, dict]:
    return {child["key"]: child for child in line.ask("list")["children"]}


def python(keeper: Keeper) -> str:
    return "/usr/bin/python3" if keeper.ordinary else os.path.realpath("/proc/self/exe")


def confided(keeper: Keeper, name: str) -> Path:
    """A folder of files that shall not outlive an attempt."""
    made = keeper.work / name
    made.mkdir(mode=0o700)
    (made / "key").write_text("s3cr3t")
    os.chown(made, keeper.uid, -1)
    return made


def test_what_only_a_living_attempt_may_read_goes_with_its_end_or_with_the_next_keeper(keeper):
    line = keeper.line()
    kept, wiped, lost = (confided(keeper, name) for name in ("kept", "wiped", "lost"))
    line.start(**keeper.sh("kept", "exec sleep 1000") | {"wipe": str(kept)})
    line.start(**keeper.sh("wiped", f"cat {wiped}/key") | {"wipe": str(wiped)})
    line.record("wiped")
    assert keeper.out("wiped") == "s3cr3t"
    assert (kept.exists(), wiped.exists()) == (True, False)
    line.start(**keeper.sh("lost", "exec sleep 1000") | {"wipe": str(lost)})
    line.ask("kill", key="kept", reason="cancel", grace_s=0)
    line.record("kept")
    assert (kept.exists(), lost.exists()) == (False, True)
    keeper.kill()
    keeper.start()
    assert not lost.exists()


def test_attempts_die_with_their_keeper_and_the_next_one_tells(keeper):
    line = keeper.line()
    line.start(**keeper.sh("over", "exit 3"))
    over = line.record("over")
    line.start(**keeper.sh("forgotten", "exit 0"))
    line.record("forgotten")
    line.ask("forget", key="forgotten")
    note = keeper.work / "pids"
    # the root, a child of it, and one that has left for a session of its own; none of them heeds signals
    script = (
        f"trap '' TERM HUP INT; echo $$ > {note}; sleep 1000 & echo $! >> {note}; setsid sleep 1000 & echo $! >> {note}; wait"
    )
    started = line.start(**keeper.sh("lost", script))
    pids = wait_until(lambda: note.exists() and len(found := pids_of(note.read_text())) == 3 and found)
    keeper.kill()
    wait_until(lambda: not alive(started["pid"]))  # its parent-death signal
    keeper.start()
    assert not any(alive(pid) for pid in pids)
    listed = children(keeper.line())
    assert set(listed) == {"over", "lost"}
    assert listed["over"]["record"] == over
    record = listed["lost"]["record"]
    assert (record["killed"], record["exit_code"], record["signal"]) == ("keeper-lost", None, None)
    assert (record["pid"], record["start_time"]) == (started["pid"], started["start_time"])
    assert record["leftovers_killed"] >= 2
    assert record == keeper.written("lost")


def test_what_emptied_its_environment_is_found_by_its_session(keeper):
    line = keeper.line()
    note = keeper.work / "pids"
    line.start(**keeper.sh("a", f"env -i sleep 1000 & echo $! > {note}; wait"))
    (pid,) = wait_until(lambda: note.exists() and pids_of(note.read_text()))
    wait_until(lambda: Path(f"/proc/{pid}/environ").read_bytes() == b"")
    keeper.kill()
    keeper.start()
    assert not alive(pid)
    assert children(keeper.line())["a"]["record"]["leftovers_killed"] >= 1


def test_what_is_listed_is_listed_until_it_is_forgotten(keeper):
    line = keeper.line()
    line.start(**keeper.sh("a", "exit 3"))
    line.record("a")
    for _ in range(2):
        keeper.kill()
        keeper.start()
        line = keeper.line()
        assert children(line)["a"]["record"]["exit_code"] == 3
    line.ask("forget", key="a")
    line.ask("forget", key="a")
    keeper.kill()
    keeper.start()
    assert children(keeper.line()) == {}


def test_nobody_needs_to_listen_for_a_record_to_be_written(keeper):
    line = keeper.line()
    line.start(**keeper.sh("a", "sleep 0.2; exit 9"))
    line.close()
    assert keeper.written("a")["exit_code"] == 9
    assert children(keeper.line())["a"]["record"] == keeper.written("a")


def test_a_record_whose_line_in_the_journal_is_missing_counts(keeper):
    """The journal was torn after the record got its file."""
    line = keeper.line()
    line.start(**keeper.sh("a", "exit 4"))
    record = line.record("a")
    assert keeper.written("a") == record
    keeper.kill()
    journal = keeper.state / "journal"
    starts = [text for text in journal.read_text().splitlines(keepends=True) if '"start"' in text]
    journal.write_text("".join(starts) + '{"end":{"key":"a","torn')
    keeper.start()
    assert children(keeper.line())["a"]["record"] == record


def test_a_journal_of_before_the_reboot_kills_nobody(keeper):
    line = keeper.line()
    line.start(**keeper.sh("a", "sleep 1000"))
    keeper.kill()
    journal = keeper.state / "journal"
    entry = json.loads(journal.read_text())
    own = os.getpid()
    start_time = int(Path(f"/proc/{own}/stat").read_text().rpartition(")")[2].split()[19])
    entry["start"] |= {"boot_id": "of another life", "pid": own, "start_time": start_time, "groups": []}
    journal.write_text(json.dumps(entry) + "\n")
    keeper.start()
    record = children(keeper.line())["a"]["record"]
    assert (record["killed"], record["boot_id"]) == ("keeper-lost", "of another life")  # and this test goes on


def test_a_pid_that_is_another_process_by_now_is_left_alone(keeper):
    keeper.kill()
    own = os.getpid()
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    start = {"key": "a", "pid": own, "start_time": 1, "boot_id": boot_id, "started_at": 1.0, "record": None, "groups": []}
    (keeper.state / "journal").write_text(json.dumps({"start": start}) + "\nrubbish\n[]\n")
    keeper.start()  # and this test goes on
    assert children(keeper.line())["a"]["record"]["leftovers_killed"] == 0


def test_a_second_keeper_on_the_same_state_is_refused(keeper):
    other = keeper.spawn()
    assert other.wait(30) == 1
    assert f"keeper: another keeper (pid {keeper.process.pid}) holds {keeper.state}" in keeper.said()
    assert keeper.line().ask("ping")["ok"]


def test_sigterm_ends_all_attempts_and_then_the_keeper(keeper):
    line = keeper.line()
    for key, script in {
        "obeys": "trap 'exit 6' TERM; echo on; sleep 1000 & wait",
        "stays": "trap '' TERM; echo on; sleep 1000",
    }.items():
        line.start(**keeper.sh(key, script, limits={"grace_s": 0.5}))
        wait_until(lambda key=key: keeper.out(key))
    for number in (signal.SIGINT, signal.SIGHUP):
        keeper.process.send_signal(number)
    assert line.ask("ping")["ok"]
    keeper.process.terminate()
    obeys, stays = line.record("obeys"), line.record("stays")
    assert (obeys["killed"], obeys["exit_code"]) == ("shutdown", 6)
    assert (stays["killed"], stays["signal"]) == ("shutdown", 9)
    assert keeper.process.wait(30) == 0
    assert not keeper.path.exists()
    assert keeper.written("stays") == stays
    keeper.start()
    assert {key: child["record"]["killed"] for key, child in children(keeper.line()).items()} == dict.fromkeys(
        ("obeys", "stays"), "shutdown"
    )


def test_while_it_stops_nothing_is_started(keeper):
    line = keeper.line()
    line.start(**keeper.sh("a", "trap '' TERM; echo on; sleep 1000", limits={"grace_s": 1000}))
    wait_until(lambda: keeper.out("a"))
    assert line.ask("shutdown")["ok"]
    assert line.ask("start", **keeper.sh("b", "true"))["error"]["code"] == "stopping"
    assert line.ask("shutdown")["ok"]  # the second one does not wait for the grace
    assert line.record("a")["signal"] == 9
    assert keeper.process.wait(30) == 0


@pytest.fixture
def only_keeper():
    with folder() as where:
        keeper = Keeper(where)
        yield keeper
        keeper.close()


@pytest.mark.skipif(not ROOT, reason="only root can freeze a process so that SIGKILL does not end it")
def test_a_process_that_cannot_be_killed_is_told_of(only_keeper):
    keeper = only_keeper
    freezer = Path(f"/sys/fs/cgroup/freezer/ostler-test-{os.getpid()}")
    if not freezer.parent.exists():
        pytest.skip("no version 1 freezer on this machine: nothing else withstands SIGKILL at will")
    line = keeper.line()
    note = keeper.work / "pid"
    line.start(**keeper.sh("a", f"sleep 1000 & echo $! > {note}; wait"))
    (pid,) = wait_until(lambda: note.exists() and pids_of(note.read_text()))
    freezer.mkdir()
    try:
        (freezer / "cgroup.procs").write_text(str(pid))
        (freezer / "freezer.state").write_text("FROZEN")
        wait_until(lambda: (freezer / "freezer.state").read_text() == "FROZEN\n")
        line.ask("kill", key="a", reason="cancel", grace_s=0)
        record = line.record("a")
        assert (record["killed"], record["signal"], record["stuck_pids"]) == ("cancel", 9, [pid])
        line.start(**keeper.sh("b", "exit 2"))
        assert line.record("b")["exit_code"] == 2
    finally:
        (freezer / "freezer.state").write_text("THAWED")
        wait_until(lambda: not alive(pid))
        wait_until(lambda: not (freezer / "cgroup.procs").read_text())
        freezer.rmdir()


def test_a_full_disk_refuses_starts_and_delays_records(tmp_path, request):
    if not ROOT:
        pytest.skip("a small file system to fill can only be mounted by root")
    small = tmp_path / "small"
    small.mkdir(mode=0o700)
    assert os.system(f"mount -t tmpfs -o size=256k,mode=700 none {small}") == 0
    request.addfinalizer(lambda: os.system(f"umount {small}"))
    keeper = Keeper(small)
    try:
        line = keeper.line()
        go = keeper.work / "go"
        os.mkfifo(go)
        line.start(**keeper.sh("a", f"read go < {go}; exit 5", stdout="/dev/null", stderr="/dev/null"))
        filler = small / "filler"
        with pytest.raises(OSError, match="No space"):
            fill(filler)
        fill_journal(keeper, line)
        go.write_text("go\n")
        record = line.record("a")  # told, though it cannot be written
        assert record["exit_code"] == 5
        assert not (keeper.work / "a.json").exists() or not (keeper.work / "a.json").read_text()
        filler.unlink()
        wait_until(lambda: (keeper.work / "a.json").exists() and (keeper.work / "a.json").read_text())
        assert keeper.written("a") == record
        line.start(**keeper.sh("c", "exit 6"))
        assert line.record("c")["exit_code"] == 6
        keeper.kill()
        keeper.start()
        assert children(keeper.line())["c"]["record"]["exit_code"] == 6
    finally:
        keeper.close()


def fill(path: Path) -> None:
    """Until the disk is full to the last byte."""
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def fill_journal(keeper, line) -> None:
    """Until a start is refused because its running record cannot be kept."""
    for number in range(100):
        answer = line.ask("start", **keeper.sh(f"b{number}", "true", stdout="/dev/null", stderr="/dev/null", record=None))
        if "error" in answer:
            assert answer["error"]["code"] in ("state", "open")
            assert answer["error"]["errno"] == 28
            return
        line.record(f"b{number}")
    raise AssertionError("the disk is full, and still all starts are taken")


def test_a_record_that_is_forgotten_at_once_never_gets_a_file(keeper):
    line = keeper.line()
    for number in range(20):
        line.start(**keeper.sh(f"k{number}", "exit 0"))
        line.record(f"k{number}")
        line.ask("forget", key=f"k{number}")
    line.start(**keeper.sh("kept", "exit 0"))
    assert keeper.written("kept")["exit_code"] == 0
    assert [path.name for path in keeper.work.glob("*.json")] == ["kept.json"]


def test_an_end_is_known_when_the_keeper_dies_before_the_record_got_its_file(keeper):
    line = keeper.line()
    line.start(**keeper.sh("a", "exit 6"))
    record = line.record("a")
    keeper.kill()
    keeper.start()
    assert children(keeper.line())["a"]["record"] == record
