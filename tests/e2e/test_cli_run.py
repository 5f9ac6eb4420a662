"""The installed command line against a whole set: what comes back from a job, byte for byte and code for code."""

import hashlib
import json
import os
import re
import signal
import subprocess
import tarfile

import pytest

from e2e.fleet import OSTLER, until


def sh(fleet, script, *options, cwd=None):
    return fleet.cli("run", *options, "--", "sh", "-c", script, cwd=cwd)


def running(fleet, *words):
    # Unbuffered: `communicate` reads past a buffer that `readline` filled.
    return subprocess.Popen(
        [OSTLER, "run", *words],
        env=fleet.env,
        bufsize=0,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def labelled(fleet, value):
    listed = json.loads(fleet.cli("job", "list", "--label", f"test={value}", "--json").stdout)["items"]
    return listed[0]["job_id"] if listed else None


def test_output_comes_as_it_was_written_and_the_code_with_it(fleet):
    done = subprocess.run(
        [OSTLER, "run", "--", "sh", "-c", r"printf 'a\000\377b'; printf 'e\r\n' >&2; exit 7"],
        env=fleet.env,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 7
    assert done.stdout == b"a\x00\xffb"
    first, second = done.stderr.removeprefix(b"e\r\n").decode().splitlines()
    assert re.fullmatch(r"run-\w+ failed: E_EXIT: .*7.*", first)
    assert re.fullmatch(r"hint: Read `ostler job logs run-\w+`.", second)


def test_success_says_nothing_of_its_own(fleet):
    done = sh(fleet, "echo out; echo err >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "err\n")


@pytest.mark.parametrize(
    ("script", "options", "code", "failure"),
    [
        ("kill -9 $$", [], 137, "E_SIGNAL"),
        ("exit 125", [], 125, "E_EXIT"),
        ("true", ["--out", "never.made"], 125, "E_OUTPUT"),
        ("sleep 100", ["--timeout", "1"], None, "E_TIMEOUT"),
    ],
)
def test_how_a_job_can_end(fleet, script, options, code, failure):
    done = sh(fleet, script, *options)
    assert failure in done.stderr
    assert "hint: " in done.stderr
    assert done.returncode == code if code is not None else done.returncode > 0


def test_a_command_that_no_node_allows(fleet):
    done = fleet.cli("run", "--", "no-such-command")
    assert done.returncode == 125
    assert "E_DENY" in done.stderr
    assert "ostler allowlist test" in done.stderr


def test_files_go_there_and_come_back(fleet, tmp_path):
    content = os.urandom(3 * 2**20 + 7)
    (tmp_path / "in.bin").write_bytes(content)
    (tmp_path / "more.txt").write_text("more\n")
    (tmp_path / "all.bin").write_text("old")
    script = "cat in.bin more.txt > all.bin; mkdir -p sub; sha256sum < all.bin | cut -d' ' -f1 > sub/sum"
    done = sh(fleet, script, "--in", "in.bin", "--in", "more.txt", "--out", "all.bin", "--out", "sub/sum", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "replaced all.bin\n")
    assert (tmp_path / "all.bin").read_bytes() == content + b"more\n"
    assert (tmp_path / "sub/sum").read_text().strip() == hashlib.sha256(content + b"more\n").hexdigest()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["all.bin", "in.bin", "more.txt", "sub"]


def test_output_is_live(fleet, tmp_path):
    gate = tmp_path / "gate"
    process = running(fleet, "--", "sh", "-c", f"echo one; while ! test -e {gate}; do sleep 0.05; done; echo two")
    assert process.stdout.readline() == b"one\n"
    assert process.poll() is None
    gate.touch()
    assert process.communicate(timeout=60) == (b"two\n", b"")
    assert process.returncode == 0


def test_a_reader_who_leaves_does_not_end_the_job(fleet, tmp_path):
    gate = tmp_path / "gate"
    script = f"echo one; while ! test -e {gate}; do sleep 0.05; done; seq 100000; exit 3"
    process = running(fleet, "--", "sh", "-c", script)
    assert process.stdout.readline() == b"one\n"
    process.stdout.close()
    gate.touch()
    assert process.wait(60) == 3
    process.stderr.close()


@pytest.mark.parametrize(("ends", "code"), [(3, 3), (0, 1)])
def test_a_full_disk_behind_standard_output_is_told(fleet, ends, code):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [OSTLER, "run", "--", "sh", "-c", f"echo one; exit {ends}"], env=fleet.env, stdout=full, stderr=subprocess.PIPE, text=True,
            stdin=subprocess.DEVNULL, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == code  # a job that is good is not, for whoever wanted its output
    assert "cannot be passed on: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_signals_of_timeout_are_one_wish(fleet):
    process = running(fleet, "--label", "test=twice", "--", "sh", "-c", "echo begun; sleep 1000")
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGTERM)  # timeout(1) sends it to the process, and then to its group
    assert process.stderr.readline().startswith(b"cancelling ")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert fleet.job(labelled(fleet, "twice"))["state"] == "cancelled"


def test_a_signal_ends_the_job_on_its_node(fleet):
    process = running(fleet, "--label", "test=signal", "--", "sh", "-c", "echo begun; sleep 1000")
    assert process.stdout.readline() == b"begun\n"
    job = labelled(fleet, "signal")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert f"cancelling {job}".encode() in err
    assert fleet.job(job)["state"] == "cancelled"


def test_output_goes_on_through_a_restart_of_the_coordinator(own_fleet, tmp_path):
    fleet = own_fleet().start()
    gate = tmp_path / "gate"
    script = f"seq 1 20000; while ! test -e {gate}; do sleep 0.05; done; seq 20001 40000; echo last >&2; exit 5"
    process = running(fleet, "--", "sh", "-c", script)
    assert process.stdout.readline() == b"1\n"
    killed = fleet.kill("coordinator")
    until(lambda: (one := fleet.processes().get("coordinator")) and one.pid != killed, what="a new coordinator")
    gate.touch()
    out, err = process.communicate(timeout=90)
    assert process.returncode == 5
    assert out.decode().split() == [str(number) for number in range(2, 40001)]
    assert err.startswith(b"last\n") or b"\nlast\n" in err


def test_coming_back_to_a_job(fleet, tmp_path):
    gate = tmp_path / "gate"
    job = fleet.sh(f"echo one; echo two >&2; while ! test -e {gate}; do sleep 0.05; done; echo three; exit 4")
    fleet.wait_state(job, "running")
    follower = subprocess.Popen(
        [OSTLER, "job", "logs", "-f", job], env=fleet.env, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert follower.stdout.readline() == b"one\n"
    gate.touch()
    out, err = follower.communicate(timeout=60)
    assert (follower.returncode, out, err) == (0, b"three\n", b"two\n")
    assert fleet.cli("job", "wait", job).returncode == 4
    assert json.loads(fleet.cli("job", "wait", "--json", job).stdout)["exit_code"] == 4
    assert fleet.cli("job", "logs", job).stdout == "one\nthree\n"
    assert fleet.cli("job", "logs", "--stream", "stderr", job).stdout == "two\n"
    assert fleet.cli("job", "logs", "--stream", "stdout", "--offset", 4, job).stdout == "three\n"
    assert fleet.cli("job", "logs", "--attempt", 1, job).stdout == "one\nthree\n"


def test_submit_and_wait(fleet, tmp_path):
    file = tmp_path / "jobs.yaml"
    file.write_text("- {command: sh, args: ['-c', 'exit 0']}\n- {command: sh, args: ['-c', 'exit 9']}\n")
    done = fleet.cli("job", "submit", "--wait", file)
    assert done.returncode == 9
    good, bad = done.stdout.split()
    assert fleet.cli("job", "wait", good).returncode == 0
    assert f"{bad} failed: E_EXIT" in done.stderr
    assert fleet.cli("job", "wait", good, bad).returncode == 9


def test_artifacts_of_a_job(fleet, tmp_path):
    job = fleet.sh(
        "mkdir -p d; echo hi > d/a.txt; head -c 1000000 /dev/zero > b.bin", artifacts=[{"path": "d/a.txt"}, {"path": "b.bin"}]
    )
    assert fleet.cli("job", "wait", job).returncode == 0
    assert re.search(r"b\.bin +976\.6 KiB", fleet.cli("job", "artifacts", job).stdout)
    done = fleet.cli("job", "artifacts", "--download", tmp_path / "got", job)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "got/d/a.txt").read_text() == "hi\n"
    assert (tmp_path / "got/b.bin").read_bytes() == bytes(1000000)
    assert sorted(one.name for one in (tmp_path / "got").rglob("*")) == ["a.txt", "b.bin", "d"]


def test_the_workspace_of_a_failed_job(fleet, tmp_path):
    job = fleet.sh("echo evidence > clue.txt; exit 1")
    assert fleet.cli("job", "wait", job).returncode == 1
    done = fleet.cli("job", "debug", "--download", tmp_path, job)
    assert done.returncode == 0, done.stderr
    archive = tmp_path / f"{job}-1.tar.gz"
    assert done.stdout == f"{archive}\n"
    with tarfile.open(archive) as tar:
        (clue,) = [one for one in tar.getnames() if one.endswith("clue.txt")]
        assert tar.extractfile(clue).read() == b"evidence\n"


def test_the_page_of_a_job_tells_its_story(fleet):
    job = fleet.sh("exit 3", labels={"page": "story"})
    fleet.cli("job", "wait", job)
    page = fleet.cli("job", "show", job).stdout
    for word in ("E_EXIT", "running ", "page=story", "exit code   3", "process", "PEAK MEMORY", "what to do"):
        assert word in page, page
    assert re.search(rf"{job} +failed", fleet.cli("job", "list").stdout)


def test_a_node_is_drained_and_resumed_by_the_coordinator(fleet):
    (node,) = json.loads(fleet.cli("node", "list", "--json").stdout)["items"]
    name = node["node_id"]
    assert re.search(rf"{name} +ready", fleet.cli("node", "list").stdout)
    assert "4 CPU" in fleet.cli("node", "show", name).stdout
    assert re.fullmatch(rf"{name} is drain(ing|ed)\n", fleet.cli("node", "drain", name, "--reason", "dust").stdout)
    until(lambda: "drained" in fleet.cli("node", "show", name).stdout, what="a drained node")
    assert "dust" in fleet.cli("node", "list").stdout
    assert fleet.cli("node", "resume", name).stdout == f"{name} is ready\n"
    assert sh(fleet, "exit 0").returncode == 0


def test_a_node_is_drained_and_resumed_on_the_spot(fleet):
    local = ("--config", fleet.data / "node.yaml")
    assert fleet.cli("node", "drain", *local).stdout == "draining\n"
    job = fleet.sh("exit 0")
    until(lambda: "drain" in fleet.cli("job", "explain", job).stdout, timeout=60, what="a job that waits for a drained node")
    assert fleet.cli("node", "resume", *local).stdout == "taking work again\n"
    assert fleet.cli("job", "wait", job).returncode == 0
    none = fleet.cli("node", "drain", "--config", "/none/such.yaml")
    assert none.returncode == 3
    assert "cannot be read" in none.stderr


def test_the_probe_shows_this_machine(fleet):
    found = json.loads(fleet.cli("node", "probe", "--json").stdout)
    assert found["cpu"]["cores"] == os.cpu_count()
    assert "none" in found["sandbox"]["levels"]
    assert "cores:" in fleet.cli("node", "probe").stdout
