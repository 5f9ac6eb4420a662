"""`ostler up`: what it makes, keeps alive, survives and leaves behind."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess

import psutil
import pytest
import yaml

from e2e.fleet import OSTLER, until


def kept_alive(fleet, part, pid):
    return until(lambda: (one := fleet.processes().get(part)) and one.pid != pid and one, what=f"another {part}")


def keeper_of(fleet):
    """The keeper of this data directory: its command names the directory, whichever way it is started."""
    found = psutil.process_iter(["cmdline"])
    (keeper,) = [
        one for one in found if "keeper" in (line := " ".join(one.info["cmdline"] or [])) and f"--state {fleet.data}/" in line
    ]
    return keeper


def said(fleet):
    return (fleet.data / "up.err").read_text()


def node_of(fleet):
    (node,) = json.loads(fleet.cli("node", "list", "--json").stdout)["items"]
    return node["node_id"]


def start_fresh(tmp_path, name, *words, env=None):
    """`ostler up` on a directory that nobody prepared; the process, once it is ready, and its URL."""
    data = tmp_path / name
    env = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config"), "NO_COLOR": "1", **(env or {})}
    env.pop("OSTLER_URL", None)
    env.pop("OSTLER_TOKEN", None)
    with (tmp_path / f"{name}.err").open("wb") as errors:
        process = subprocess.Popen(
            [OSTLER, "up", "--data", data, "--listen", "127.0.0.1:0", *words],
            env=env,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    line = process.stdout.readline()
    assert line.startswith("ready http://127.0.0.1:"), (tmp_path / f"{name}.err").read_text()
    return process, data, line.split()[1], env


def stop(process):
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(60)
    finally:
        process.stdout.close()


def test_a_new_data_directory(tmp_path):
    process, data, _, env = start_fresh(tmp_path, "data")
    try:
        assert {one.stem for one in (data / "allowlist.d").iterdir()} >= {"true", "echo", "sleep", "sha256sum"}
        config = yaml.safe_load((data / "node.yaml").read_text())
        assert config["resources"]["max_concurrent_cpu"] == os.cpu_count()
        assert config["sandbox"]["level"] == ("bwrap" if shutil.which("bwrap") else "process")
        assert "auth_token" not in config["coordinator"]
        for path in (data / "admin.token", data / "profile.yaml", tmp_path / "config/ostler/profile.yaml"):
            assert path.stat().st_mode & 0o777 == 0o600
        done = subprocess.run(
            [OSTLER, "run", "--", "echo", "hello", "world"], env=env, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, "hello world\n"), done.stderr
        tokens = json.loads(subprocess.run([OSTLER, "token", "list", "--json"], env=env, capture_output=True, check=True).stdout)
        assert all(one["kind"] == "api" or one["uses_left"] == 0 or one["revoked_at"] for one in tokens["items"])
        check = subprocess.run([OSTLER, "config", "check", data / "node.yaml"], env=env, capture_output=True, check=False)
        assert check.returncode == 0
    finally:
        assert stop(process) == 0
    assert not [one for one in psutil.process_iter(["cmdline"]) if str(data) in " ".join(one.info["cmdline"] or [])]


def test_a_second_start_on_the_same_data(own_fleet):
    fleet = own_fleet().start()
    job, node = fleet.sh("echo kept"), node_of(fleet)
    fleet.wait(job)
    fleet.stop()
    fleet.start()
    assert node_of(fleet) == node
    assert fleet.log(job) == "kept\n"
    fleet.wait(fleet.sh("exit 0"))


def test_what_crashes_is_started_again_and_the_keeper_is_left_alone(own_fleet, tmp_path):
    fleet = own_fleet().start()
    gate = tmp_path / "gate"
    job = fleet.sh(f"while ! test -e {gate}; do sleep 0.05; done; echo survived")
    fleet.wait_state(job, "running")
    keeper = keeper_of(fleet)
    node = fleet.kill("node")
    kept_alive(fleet, "node", node)
    assert keeper_of(fleet) == keeper
    gate.touch()
    assert fleet.wait(job)["state"] == "done"
    assert fleet.log(job) == "survived\n"
    assert "node ended with code -9; it is started again" in said(fleet)
    coordinator = fleet.kill("coordinator")
    kept_alive(fleet, "coordinator", coordinator)
    fleet.get("/version")  # it answers
    assert fleet.wait(fleet.sh("exit 0"))["state"] == "done"  # at the same address


def test_the_end_kills_what_runs_and_says_how_many(own_fleet):
    fleet = own_fleet().start()
    jobs = [fleet.sh("sleep 1000") for _ in range(2)]
    for job in jobs:
        fleet.wait_state(job, "running")
    mine = {**fleet.processes(), "keeper": keeper_of(fleet)}
    fleet.stop()
    assert "killed 2 running attempts" in said(fleet)
    assert not [one for one in mine.values() if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def has_ended(process):
    """Also where nobody has reaped it yet: an orphan's zombie is the init process's to take away, in its own time."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_after_kill_9_the_next_one_takes_over_and_jobs_go_on(own_fleet, tmp_path):
    fleet = own_fleet().start()
    gate = tmp_path / "gate"
    job = fleet.sh(f"while ! test -e {gate}; do sleep 0.05; done; echo survived")
    fleet.wait_state(job, "running")
    left, keeper = fleet.processes(), keeper_of(fleet)
    fleet.process.kill()
    fleet.process.wait()
    fleet.process.stdout.close()
    fleet.http.close()
    fleet.start()
    assert "ending the coordinator that an earlier `ostler up` left behind" in said(fleet)
    assert has_ended(left["coordinator"])
    assert has_ended(left["node"])
    assert keeper_of(fleet) == keeper
    gate.touch()
    assert fleet.wait(job)["state"] == "done"
    assert fleet.log(job) == "survived\n"
    assert fleet.job(job)["attempt"] == 1


def test_a_profile_of_another_set_that_lives_is_left_alone(tmp_path):
    first, _, url, env = start_fresh(tmp_path, "first", "--no-node")
    second = None
    try:
        users = tmp_path / "config/ostler/profile.yaml"
        assert yaml.safe_load(users.read_text())["url"] == url
        second, data, other, _ = start_fresh(tmp_path, "second", "--no-node")
        assert yaml.safe_load(users.read_text())["url"] == url
        assert f"export OSTLER_PROFILE={data}/profile.yaml" in (tmp_path / "second.err").read_text()
        for more, expected in (({}, url), ({"OSTLER_PROFILE": str(data / "profile.yaml")}, other)):
            shown = subprocess.run([OSTLER, "version"], env={**env, **more}, capture_output=True, text=True, check=True).stdout
            assert expected in shown
    finally:
        stop(first)
        if second is not None:
            stop(second)


def test_slots_may_be_said_anew(own_fleet):
    fleet = own_fleet(slots=1).start()
    fleet.stop()
    fleet.slots = 3
    fleet.start()
    assert json.loads(fleet.cli("node", "show", node_of(fleet), "--json").stdout)["cpu_slots"] == 3


def refused(tmp_path, *words, env=None):
    return subprocess.run(
        [OSTLER, *words], env={**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "c"), **(env or {})},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_an_address_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = refused(tmp_path, "up", "--data", str(tmp_path / "d"), "--listen", address)
    assert done.returncode == 3
    assert "cannot listen" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("listen", ["here", "127.0.0.1", "0.0.0.0:0"])
def test_an_address_that_is_none(tmp_path, listen):
    done = refused(tmp_path, "up", "--data", str(tmp_path / "d"), "--listen", listen)
    assert done.returncode == 3
    assert "listen" in done.stderr


def test_only_the_latest_failure_is_told(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused(tmp_path, "up", "--data", str(tmp_path / "d"), "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    done = refused(tmp_path, "up", "--data", str(tmp_path / "d"), "--listen", "0.0.0.0:0")
    assert "`allow_insecure_listen: true`" in done.stderr
    assert "cannot listen" not in done.stderr


@pytest.mark.parametrize(
    ("name", "why"),
    [("file", "it is not a directory"), ("file/below", "Not a directory"), ("\udcff", "its name is not valid Unicode")],
)
def test_a_data_directory_that_cannot_be_one(tmp_path, name, why):
    (tmp_path / "file").touch()
    done = refused(tmp_path, "up", "--data", str(tmp_path / name), "--listen", "127.0.0.1:0")
    assert done.returncode == 3
    assert re.match(rf"error: the data directory {tmp_path}/\S+ cannot be used: {why}\nhint: ", done.stderr)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems")
def test_a_disk_that_is_full_from_the_start_is_told(tmp_path):
    """Not even the reason finds its way into a log then."""
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", full], check=True)
    try:
        done = refused(tmp_path, "up", "--data", str(full / "d"), "--listen", "127.0.0.1:0")
    finally:
        subprocess.run(["umount", "-l", full], check=True)
    assert done.returncode == 3
    assert f"the disk is full (df -h {full}" in done.stderr


def test_a_coordinator_alone_without_a_directory_to_write(tmp_path):
    (tmp_path / "file").touch()
    done = refused(tmp_path, "coordinator", "--data", str(tmp_path / "file"), "--listen", "127.0.0.1:0")
    assert done.returncode == 3
    assert done.stderr.startswith(f"error: the data directory {tmp_path}/file cannot be used: File exists\nhint: ")
    assert "say --data DIR" in refused(tmp_path, "coordinator").stderr


def test_daemons_that_cannot_start_say_so_as_commands_do(tmp_path):
    data, listen = str(tmp_path / "c"), ("--listen", "127.0.0.1:0")
    done = refused(tmp_path, "coordinator", "--data", data, *listen, "--store", "postgresql://nobody@127.0.0.1:1/none")
    assert (done.returncode, done.stderr.count("\nhint: start the server")) == (4, 1)
    assert done.stderr.startswith("error: the database none at 127.0.0.1:1 cannot be reached: ")
    data = str(tmp_path / "k")
    (tmp_path / "k" / "keys").mkdir(mode=0o700, parents=True)
    (tmp_path / "k" / "keys" / "signing.key").symlink_to(__file__)
    done = refused(tmp_path, "coordinator", "--data", data, *listen)
    assert (done.returncode, done.stderr) == (1, f"error: Too many levels of symbolic links: {data}/keys/signing.key\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = refused(tmp_path, "coordinator", "--data", str(tmp_path / "d"), "--listen", address)
    assert (done.returncode, done.stderr.startswith(f"error: cannot listen on {address}: ")) == (3, True)
    node = tmp_path / "node.yaml"
    (tmp_path / "file").touch()
    (tmp_path / "state" / "node.key").mkdir(parents=True)
    for state, code, said in (
        (tmp_path / "file" / "below", 3, r"error: the node cannot start here\n  state_dir: "),
        (tmp_path / "state", 1, r"error: Is a directory: .*/state/node\.key$"),
    ):
        node.write_text(
            f"coordinator: {{base_url: 'http://127.0.0.1:1'}}\nstate_dir: {state}\nworkspace: {{root: {tmp_path}/work}}\n"
        )
        done = refused(tmp_path, "node", "--config", str(node))
        assert (done.returncode, "Traceback" in done.stderr) == (code, False)
        assert re.search(f"^{said}", done.stderr, re.MULTILINE), done.stderr


def test_a_broken_node_yaml_is_told_with_its_lines(tmp_path):
    data = tmp_path / "d"
    data.mkdir()
    (data / "node.yaml").write_text("coordinator: {base_url: 'http://x'}\nresources:\n  max_concurent_cpu: 3\n")
    done = refused(tmp_path, "up", "--data", str(data), "--listen", "127.0.0.1:0")
    assert done.returncode == 3
    assert (
        f"{data}/node.yaml:3: resources.max_concurent_cpu: is not a known key; did you mean 'max_concurrent_cpu'?" in done.stderr
    )


def test_daemons_alone_are_checked_before_they_start(tmp_path):
    file = tmp_path / "node.yaml"
    file.write_text("coordinator: {base_url: 'http://x', auth_token: 'env:GONE'}\nrunners:\n  cli: {allowlist_files: [/none]}\n")
    done = refused(tmp_path, "node", "--config", str(file))
    assert done.returncode == 3
    assert re.search(r"node.yaml:1: coordinator.auth_token: is taken from the variable GONE, which is not set", done.stderr)
    done = refused(tmp_path, "node", "--config", str(file), env={"GONE": "x"})
    assert done.returncode == 3
    assert f"{file}:3: runners.cli.allowlist_files[0]: /none does not exist" in done.stderr
    file.write_text("lease: 10s\nheartbeat: 1m\n")
    done = refused(tmp_path, "coordinator", "--data", str(tmp_path / "d"), "--config", str(file))
    assert done.returncode == 3
    assert f"{file}:2: heartbeat: 60 s must be less than half of the lease" in done.stderr
    file.write_text("limitz: {calls_per_s: 1}\nlimits: {burst: x}\n")
    done = refused(tmp_path, "coordinator", "--data", str(tmp_path / "d"), "--config", str(file))
    assert done.returncode == 3
    assert f"{file}:1: limitz: is not a known key; did you mean 'limits'?" in done.stderr
    assert f"{file}:2: limits.burst: " in done.stderr


def test_a_node_without_a_directory_to_write(tmp_path):
    (tmp_path / "taken").touch()
    file = tmp_path / "node.yaml"
    file.write_text(
        f"coordinator: {{base_url: 'http://127.0.0.1:1', auth_token: x}}\nstate_dir: {tmp_path}/state\n"
        f"workspace: {{root: {tmp_path}/taken}}\nsandbox: {{level: process}}\n"
    )
    done = refused(tmp_path, "node", "--config", str(file))
    assert done.returncode == 3
    assert f"workspace.root: {tmp_path}/taken cannot be made: File exists" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_coordinator_alone_replaces_the_command_line(tmp_path):
    process = subprocess.Popen(
        [OSTLER, "coordinator", "--data", tmp_path / "d", "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline().startswith("ready http://127.0.0.1:")
        assert "ostler.assembly.coordinator" in psutil.Process(process.pid).cmdline()
        maps = {os.path.basename(one.path) for one in psutil.Process(process.pid).memory_maps()}
        assert not [name for name in maps if name.startswith("_yaml")]
    finally:
        assert stop(process) == 0
