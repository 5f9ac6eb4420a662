"""The keeper's socket: who may connect, what is answered to nonsense, and that no client can hold it up."""

import json
import os
import random
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from integration.keeper_rig import NOBODY, Keeper, folder, wait_until

ROOT = os.getuid() == 0


@pytest.fixture
def keeper():
    with folder() as where:
        keeper = Keeper(where, cgroup="none")
        yield keeper
        keeper.close()


@pytest.fixture
def line(keeper):
    return keeper.line()


def test_it_says_what_it_is(keeper, line):
    assert line.hello == {
        "keeper": 1,
        "version": "0.1.0",
        "pid": keeper.process.pid,
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "cgroup": "none",
        "cgroup_controllers": [],
        "waits": True,
        "many": True,
    }


def test_socket_and_state_are_its_user_s_alone(keeper):
    assert stat.S_IMODE(keeper.path.stat().st_mode) == 0o600
    for path in keeper.state.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", "malformed"),
        (b"{", "malformed"),
        (b"\xff\xfe", "malformed"),
        (b"{} {}", "malformed"),
        (b'{"id":NaN}', "malformed"),
        (b"[" * 100_000, "malformed"),
        (b"1" * 5000, "malformed"),
        (b"[]", "invalid"),
        (b'"start"', "invalid"),
        (b"{}", "invalid"),
        (b'{"id":-1,"op":"ping"}', "invalid"),
        (b'{"id":true,"op":"ping"}', "invalid"),
        (b'{"id":1,"op":7}', "invalid"),
        (b'{"id":1,"op":"dance"}', "unknown_op"),
        (b'{"id":1,"op":"kill"}', "invalid"),
        (b'{"id":1,"op":"kill","key":"a","reason":""}', "invalid"),
        (b'{"id":1,"op":"forget","key":"a b"}', "invalid"),
        (b'{"id":1,"op":"start"}', "invalid"),
    ],
)
def test_nonsense_is_answered(line, text, code):
    line.send(text + b"\n")
    answer = line.read()
    assert answer["error"]["code"] == code
    assert answer["error"]["message"]
    assert line.ask("ping")["ok"]


def test_any_bytes_at_all(keeper, line):
    chance = random.Random(20261121)
    for _ in range(300):
        line.send(bytes(chance.choices(b'{}[]":,\\ \n0123456789aeiou\x00\xff', k=chance.randrange(1, 200))))
    line.send(b"\n" + json.dumps({"id": 777, "op": "ping"}).encode() + b"\n")
    while (answer := line.read())["id"] != 777:
        assert answer["error"]["code"] in ("malformed", "invalid")
    assert answer["ok"]


def test_many_requests_in_one_read_are_answered_in_order_and_starts_once_they_are_made(keeper, line):
    requests = [{"id": 1, "op": "start", **keeper.sh("a", "true")}, {"id": 2, "op": "nothing"}, {"id": 3, "op": "list"}]
    requests += [{"id": number, "op": "ping"} for number in range(4, 500)]
    line.send("".join(json.dumps(request) + "\n" for request in requests).encode())
    said = [line.read() for _ in range(len(requests) + 1)]
    answers = [one for one in said if "id" in one]
    assert [one["id"] for one in answers if one["id"] != 1] == list(range(2, 500))
    found = {one["id"]: one for one in answers}
    assert [found[number].get("ok", False) for number in (1, 2, 3)] == [True, False, True]
    assert [one["key"] for one in found[3]["children"]] == ["a"]
    assert said.index(found[1]) < next(at for at, one in enumerate(said) if one.get("event") == "exited")


def test_a_request_in_many_pieces(line):
    text = json.dumps({"id": 5, "op": "ping", "padding": "x" * 300_000}).encode() + b"\n"
    for at in range(0, len(text), 9000):
        line.send(text[at : at + 9000])
    assert line.answer(5)["ok"]


def send_for_ever(line, text: bytes) -> None:
    while True:
        line.send(text)


def test_a_line_without_an_end_is_not_kept(keeper, line):
    endless = keeper.line()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        send_for_ever(endless, b"x" * 65536)
    assert line.ask("ping")["ok"]
    assert "keeper.client_dropped" in keeper.said()


def test_a_client_that_does_not_read_is_dropped_and_holds_up_nobody(keeper, line):
    deaf = keeper.line()
    request = b'{"id":1,"op":"forget","key":"' + b"k" * 300 + b'"}\n'
    deaf.socket.settimeout(0.5)
    with pytest.raises((BrokenPipeError, ConnectionResetError, TimeoutError)):
        send_for_ever(deaf, request * 1000)
    assert line.ask("ping")["ok"]
    line.start(**keeper.sh("a", "exit 3"))
    assert line.record("a")["exit_code"] == 3


def test_a_client_that_leaves_in_the_middle(keeper, line):
    for cut in (1, 30, 200):
        other = keeper.line()
        other.send(json.dumps({"id": 1, "op": "start", **keeper.sh("never", "true")}).encode()[:cut])
        other.close()
    other = keeper.line()
    requests = [{"id": number, "op": "start", **keeper.sh(f"k{number}", "exit 2")} for number in range(20)]
    other.send("".join(json.dumps(request) + "\n" for request in requests).encode())
    other.close()
    listed = wait_until(lambda: len(found := [c for c in line.ask("list")["children"] if c["record"]]) == 20 and found)
    assert {child["record"]["exit_code"] for child in listed} == {2}
    assert all(keeper.written(child["key"]) == child["record"] for child in listed)


def test_events_go_to_all_clients(keeper, line):
    other = keeper.line()
    line.start(**keeper.sh("a", "exit 1"))
    assert line.record("a") == other.record("a")


def test_many_are_forgotten_at_once(keeper, line):
    for key in ("a", "b"):
        line.start(**keeper.sh(key, "true"))
        line.record(key)
    line.start(**keeper.sh("c", "read x < /dev/zero"))
    answer = line.ask("forget", keys=["a", "c", "b", "unknown"])
    assert (answer["error"]["code"], "c is still running" in answer["error"]["message"]) == ("exists", True)
    assert [child["key"] for child in line.ask("list")["children"]] == ["c"]
    line.ask("kill", key="c", reason="cancel", grace_s=0)
    line.record("c")
    assert "error" not in line.ask("forget", keys=["c"])
    assert line.ask("list")["children"] == []
    assert line.ask("forget", keys=["a b"])["error"]["code"] == "invalid"


def test_a_key_can_be_used_again_once_it_is_over(keeper, line):
    line.start(**keeper.sh("a", "read x < /dev/zero"))
    assert line.ask("start", **keeper.sh("a", "true"))["error"]["code"] == "exists"
    assert line.ask("forget", key="a")["error"]["code"] == "exists"
    line.ask("kill", key="a", reason="cancel", grace_s=0)
    line.record("a")
    line.start(**keeper.sh("a", "exit 8"))
    assert line.record("a")["exit_code"] == 8
    (child,) = line.ask("list")["children"]
    assert child["record"]["exit_code"] == 8


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"key": "a b"}, "key"),
        ({"key": "x" * 201}, "key"),
        ({"key": "a=b"}, "key"),
        ({"argv": []}, "argv"),
        ({"argv": ["a\0b"]}, "argv"),
        ({"argv": "true"}, "argv"),
        ({"argv": [1]}, "argv"),
        ({"argv": ["\ud800"]}, "argv"),
        ({"env": {"A=B": "1"}}, "env"),
        ({"env": {"A": 1}}, "env.A"),
        ({"env": []}, "env"),
        ({"cwd": "work"}, "cwd"),
        ({"cwd": None}, "cwd"),
        ({"stdout": None}, "stdout"),
        ({"stdin": "in"}, "stdin"),
        ({"record": "r"}, "record"),
        ({"open": {"2": "/dev/null"}}, "open"),
        ({"open": {"nine": "/dev/null"}}, "open"),
        ({"open": {"9": "file"}}, "open"),
        ({"limits": []}, "limits"),
        ({"limits": {"nice": 20}}, "limits.nice"),
        ({"limits": {"nice": 1.5}}, "limits.nice"),
        ({"limits": {"memory_mb": 0}}, "limits.memory_mb"),
        ({"limits": {"memory_mb": True}}, "limits.memory_mb"),
        ({"limits": {"wall_s": -1}}, "limits.wall_s"),
        ({"limits": {"wall_s": "1"}}, "limits.wall_s"),
        ({"limits": {"cpus": [-1]}}, "limits.cpus"),
        ({"limits": {"io_class": "fast"}}, "limits.io_class"),
        ({"limits": {"io_level": 8}}, "limits.io_level"),
        ({"no_new_privs": 1}, "no_new_privs"),
        ({"seccomp": 5}, "seccomp"),
        ({"uid": -1}, "uid"),
        ({"wrapper": "yes"}, "wrapper"),
    ],
)
def test_a_start_with_a_mistake_names_the_field(keeper, line, members, field):
    error = line.ask("start", **{**keeper.sh("a", "true"), **members})["error"]
    assert error["code"] == "invalid"
    assert error["message"].startswith(f"{field}: ")
    assert line.ask("list")["children"] == []


def test_names_that_are_no_text_travel(keeper, line):
    odd = os.fsdecode(b"\xff\xfe odd")
    line.start(**keeper.spec("a", "printf", "%s", odd))
    line.record("a")
    assert os.fsencode(odd) == (keeper.work / "a.out").read_bytes()


@pytest.mark.skipif(not ROOT, reason="only root can try as somebody else")
def test_another_user_is_sent_away(keeper):
    for path in (keeper.state, keeper.path):
        path.chmod(0o777)
    program = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({str(keeper.path)!r}); print(len(s.recv(100)))"
    command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "/usr/bin/python3", "-I", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.stdout == "0\n", done.stderr
    assert "keeper.client_refused" in keeper.said()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "usage: python -m ostler.node.keeper"),
        ([], 2, "keeper: --socket and --state must be given"),
        (["--socket", "k", "--state", "s"], 2, "as absolute paths"),
        (["--socket"], 2, "keeper: --socket and --state must be given"),
        (["--cgroup", "v3"], 2, "keeper: --cgroup v3: not an option"),
        (["--loud"], 2, "keeper: --loud: not an option"),
        (["--socket", "/dev/null/k", "--state", "/dev/null"], 1, "keeper: /dev/null"),
    ],
)
def test_the_command_line(arguments, code, said):
    done = subprocess.run([sys.executable, "-m", "ostler.node.keeper", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert said in done.stdout + done.stderr


def test_a_directory_open_to_others_is_refused(tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o755)
    command = [sys.executable, "-m", "ostler.node.keeper", "--socket", str(tmp_path / "s" / "k"), "--state", str(state)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"keeper: {state} is open to others; make it this user's alone: chmod 700 {state}" in done.stderr


def test_a_path_longer_than_the_kernel_takes(tmp_path):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    keeper = Keeper(deep, cgroup="none", listens=lambda keeper: "keeper.started" in keeper.said())
    try:
        holder = os.open(keeper.path.parent, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(f"/proc/self/fd/{holder}/{keeper.path.name}")
            assert json.loads(connection.recv(1000))["keeper"] == 1
        os.close(holder)
    finally:
        keeper.close()


def test_it_stays_small(keeper, line):
    """Measured alone, so that nothing is shared: an upper bound of what it costs beside other Pythons."""
    for number in range(50):
        line.start(**keeper.sh(f"k{number}", "true"))
        line.record(f"k{number}")
        line.ask("forget", key=f"k{number}")
    rows = dict(row.split(":") for row in Path(f"/proc/{keeper.process.pid}/smaps_rollup").read_text().splitlines()[1:])
    assert int(rows["Pss"].split()[0]) <= 9 * 1024
    modules = Path(f"/proc/{keeper.process.pid}/maps").read_text()
    assert "_asyncio" not in modules
    assert "_pickle" not in modules
    assert len(os.listdir(f"/proc/{keeper.process.pid}/fd")) < 16
