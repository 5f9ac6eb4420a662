"""While a child is on its way to execute its program, the keeper goes on."""

import ctypes
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from integration.keeper_rig import Keeper, folder, wait_until

FAN_CLASS_CONTENT, FAN_CLOEXEC, FAN_MARK_ADD, FAN_OPEN_EXEC_PERM, AT_FDCWD = 0x4, 0x1, 0x1, 0x40000, -100  # <linux/fanotify.h>


@pytest.fixture
def keeper():
    with folder() as where:
        one = Keeper(where)
        yield one
        one.close()


@pytest.fixture
def line(keeper):
    return keeper.line()


@pytest.fixture
def hanging(keeper):
    """A program whose file system does not let anybody execute it for now: whoever tries waits for this process's word."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC, os.O_RDONLY)
    if watch < 0:
        pytest.skip(f"holding up an exec (fanotify) takes root: {os.strerror(ctypes.get_errno())}")
    program = keeper.work / "hanging"
    shutil.copy("/bin/true", program)
    program.chmod(0o755)
    marked = libc.fanotify_mark(watch, FAN_MARK_ADD, ctypes.c_uint64(FAN_OPEN_EXEC_PERM), AT_FDCWD, bytes(program)) == 0
    if not (marked and holds_up(str(program))):
        os.close(watch)
        pytest.skip("the kernel, or this file system, holds up no exec (fanotify)")
    yield str(program)
    os.close(watch)


def holds_up(program):
    """Whether an exec of it hangs."""
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(program, ["hanging"])
        finally:
            os._exit(127)
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "D":
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            break
        time.sleep(0.01)
    return ended == (0, 0)


def ask_for(line, number, **members):
    line.send(json.dumps({"id": number, "op": "start", **members}).encode() + b"\n")


def test_others_begin_and_end_while_one_cannot(keeper, line, hanging):
    ask_for(line, 1000, **keeper.spec("stuck", hanging))
    line.start(**keeper.sh("good", "exit 3"))
    assert line.record("good")["exit_code"] == 3
    assert line.ask("start", **keeper.sh("stuck", "true"))["error"]["code"] == "exists"
    assert line.ask("forget", keys=["stuck"])["error"]["code"] == "exists"
    line.start(**keeper.sh("long", "sleep 1000"))
    assert line.ask("kill", key="long", reason="cancel", grace_s=0)["running"]
    assert line.record("long")["killed"] == "cancel"
    refused = line.answer(1000)["error"]
    assert (refused["code"], refused["message"]) == (
        "exec",
        "stuck: the program's file system does not answer: Connection timed out",
    )
    assert [one["key"] for one in line.ask("list")["children"]] == ["good", "long"]
    line.start(**keeper.sh("stuck", "exit 4"))
    assert line.record("stuck")["exit_code"] == 4


def test_one_that_is_asked_to_end_before_it_executes_is_never_run(keeper, line, hanging):
    ask_for(line, 1000, **keeper.spec("stuck", hanging))
    line.send(json.dumps({"id": 1001, "op": "kill", "key": "stuck", "reason": "cancel"}).encode() + b"\n")
    assert line.answer(1000)["error"]["code"] == "exec"
    assert line.answer(1001)["error"]["code"] == "not_found"
    assert line.ask("list")["children"] == []


def test_more_than_there_are_stacks_begin_at_once(keeper, line, hanging):
    for number in range(70):
        ask_for(line, 1000 + number, **keeper.spec(f"stuck{number}", hanging))
    codes = [line.answer(1000 + number)["error"]["code"] for number in range(70)]
    assert codes == ["exec"] * 70
    line.start(**keeper.sh("good", "exit 3"))
    assert line.record("good")["exit_code"] == 3


def test_a_swarm_ends_one_by_one(keeper, line):
    requests = [{"id": 1000 + n, "op": "start", **keeper.sh(f"a{n}", f"exit {n % 7}")} for n in range(200)]
    line.send("".join(json.dumps(one) + "\n" for one in requests).encode())
    said = [line.read() for _ in range(400)]
    assert sorted(one["id"] for one in said if one.get("ok")) == [1000 + number for number in range(200)]
    ends = {one["key"]: one["record"]["exit_code"] for one in said if one.get("event") == "exited"}
    assert ends == {f"a{number}": number % 7 for number in range(200)}


def test_one_that_does_not_execute_yet_ends_with_a_keeper_that_is_killed(keeper, line, hanging):
    ask_for(line, 1000, **keeper.spec("stuck", hanging))
    line.start(**keeper.sh("good", "sleep 1000"))
    children = Path(f"/proc/{keeper.process.pid}/task/{keeper.process.pid}/children").read_text().split()
    assert len(children) == 2
    keeper.kill()
    wait_until(lambda: not [pid for pid in children if Path(f"/proc/{pid}").exists()])
    keeper.start()
    assert [(one["key"], one["record"]["killed"]) for one in keeper.line().ask("list")["children"]] == [("good", "keeper-lost")]
