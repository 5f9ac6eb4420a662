"""The worker as a real process, spoken to over its socket as a daemon does."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ostler.node import worker as worker_package

PROGRAM = Path(worker_package.__file__).parent
TASKS = Path(__file__).parents[1] / "tasks"
PATIENCE_S = 20


class Daemon:
    """The other end of a worker's socket."""

    def __init__(self, folder: Path, *, task_paths=(TASKS,), python=sys.executable, **settings) -> None:
        self.folder = folder
        self.path = folder / "w.sock"
        settings = {
            "socket": str(self.path),
            "status": str(folder / "w.status"),
            "task_paths": [str(path) for path in task_paths],
            **settings,
        }
        self.log = (folder / "w.log").open("wb")
        self.process = subprocess.Popen(
            [str(python), "-I", str(PROGRAM), json.dumps(settings)],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            env={"PATH": os.environ["PATH"], "OSTLER_ATTEMPT_KEY": "worker/test"},
            cwd=folder,
        )
        self.count = 0
        self.connect()

    def connect(self):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(PATIENCE_S)
            with contextlib.suppress(OSError):
                here = os.open(self.folder, os.O_PATH)
                try:
                    self.socket.connect(f"/proc/self/fd/{here}/w.sock")
                finally:
                    os.close(here)
                break
            self.socket.close()
            assert self.process.poll() is None, (self.folder / "w.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        self.lines = self.socket.makefile("rb")

    def hello(self):
        return self.receive()["hello"]

    def receive(self):
        line = self.lines.readline()
        return json.loads(line) if line else None

    def send(self, task, params=None, *, env=None, kill_s=60.0, key=None, logs=None):
        self.count += 1
        self.root = self.folder / f"job-{self.count}"
        for name in ("input", "work", "output", "logs"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        order = {
            "key": key or f"job-{self.count}/1",
            "task": task,
            "params": params or {},
            "work": str(self.root / "work"),
            "output": str(self.root / "output"),
            "record": str(self.root / "task.json"),
            "env": {"PATH": "/usr/bin:/bin", "OSTLER_OUTPUT_DIR": str(self.root / "output"), **(env or {})},
            "stdout": logs or str(self.root / "logs/stdout.log"),
            "stderr": logs or str(self.root / "logs/stderr.log"),
            "kill_s": kill_s,
        }
        self.socket.sendall(json.dumps({"run": order}).encode() + b"\n")
        return self.root

    def run(self, task, params=None, **more):
        self.send(task, params, **more)
        while (message := self.receive()) is not None:
            if "done" in message:
                self.last = message["last"]
                return message["done"]
            if "stale" in message:
                return "stale"
        return None

    def lend(self, task, params=None, *, wants=(), key=None):
        """The record of a task that was lent its workspace."""
        self.count += 1
        self.root = self.folder / f"job-{self.count}"
        env = {"PATH": "/usr/bin:/bin", "OSTLER_OUTPUT_DIR": str(self.root / "output")}
        order = {
            "key": key or f"job-{self.count}/1", "task": task, "params": params or {}, "root": str(self.root), "wants": wants, "env": env,
        }  # fmt: skip
        self.socket.sendall(json.dumps({"run": order}).encode() + b"\n")
        return self.receive()["done"]

    def behave(self, do, **more):
        return self.run("behave", {"do": do, **more})

    def result(self):
        return json.loads((self.root / "output/result.json").read_text())

    def out(self):
        return (self.root / "logs/stdout.log").read_text()

    def err(self):
        return (self.root / "logs/stderr.log").read_text()

    def ended(self):
        return self.process.wait(PATIENCE_S)

    def close(self):
        self.lines.close()
        self.socket.close()
        self.process.kill()
        self.process.wait()
        self.log.close()


@pytest.fixture
def begin(tmp_path):
    daemons = []

    def begin(**settings):
        folder = tmp_path / f"worker-{len(daemons)}"
        folder.mkdir()
        daemons.append(Daemon(folder, **settings))
        return daemons[-1]

    yield begin
    for daemon in daemons:
        daemon.close()


@pytest.fixture
def daemon(begin):
    one = begin()
    one.hello()
    return one


def gone(pid):
    """Whether a process is gone, or only waits to be reaped; waits for it."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def test_a_task_gets_its_parameters_and_leaves_its_result(daemon):
    record = daemon.run("example", {"words": ["b", "a", "b"], "shout": True})
    assert record["outcome"] == "done"
    assert daemon.result() == {"B": 2, "A": 1}
    assert json.loads((daemon.root / "output/counts.json").read_text()) == {"B": 2, "A": 1}
    assert daemon.out() == "3 words\n"
    assert json.loads((daemon.root / "task.json").read_text()) == record


@pytest.mark.parametrize("words", [{"do": "say", "out": "theirs", "err": "theirs"}, {"do": "c_say", "text": "theirs"}])
def test_what_a_full_disk_did_not_take_is_in_no_other_tasks_log(daemon, words):
    daemon.run("behave", words, logs="/dev/full")
    assert daemon.behave("say", out="mine", err="mine")["outcome"] == "done"
    assert (daemon.out(), daemon.err()) == ("mine\n", "mine\n")


def test_a_task_whose_files_cannot_be_had_is_not_begun_and_the_worker_goes_on(daemon, tmp_path):
    done = daemon.run("behave", {"do": "nothing"}, logs=str(tmp_path / "none" / "such.log"))
    assert (done["outcome"], done["code"]) == ("refused", "E_INTERNAL")
    assert done["message"] == "opening the workspace: No such file or directory"
    assert daemon.behave("nothing")["outcome"] == "done"


def test_each_task_has_its_own_streams_folder_and_environment_and_leaves_nothing(daemon):
    daemon.run("behave", {"do": "surroundings"}, env={"COLOUR": "blue"})
    first, seen = daemon.root, daemon.result()
    assert seen["cwd"] == str(first / "work")
    assert seen["env"]["COLOUR"] == "blue"
    assert seen["env"]["OSTLER_ATTEMPT_KEY"] == "worker/test"  # by this the keeper knows what was detached
    assert seen["stdin"] == "/dev/null"
    assert str(PROGRAM) not in seen["path"]
    daemon.behave("spoil")
    daemon.behave("say", out="heard")
    assert daemon.out() == "heard\n"
    daemon.behave("umask")
    assert daemon.result() != 0
    daemon.behave("surroundings")
    again = daemon.result()
    assert again["cwd"] == str(daemon.root / "work")
    assert "COLOUR" not in again["env"]
    assert again["path"] == seen["path"]
    assert again["pid"] == seen["pid"]


def test_what_c_code_printed_ends_up_in_its_own_log(daemon):
    daemon.behave("c_say", text="from C")
    assert daemon.out() == "from C"
    daemon.behave("say", out="next")
    assert daemon.out() == "next\n"


def test_fifty_megabytes_of_output(daemon):
    assert daemon.behave("shout", mb=50)["outcome"] == "done"
    assert (daemon.root / "logs/stdout.log").stat().st_size == 50 << 20


def test_an_exception_is_told_and_its_traceback_is_the_tasks_own(daemon):
    record = daemon.behave("fail", message="no such colour")
    assert (record["outcome"], record["type"], record["message"]) == ("exception", "ValueError", "no such colour")
    assert "ValueError: no such colour" in daemon.err()
    assert "behave.py" in daemon.err()
    assert "worker/attempt.py" not in daemon.err()
    assert daemon.behave("nothing")["outcome"] == "done"


@pytest.mark.parametrize(("code", "expected"), [(None, 0), (0, 0), (7, 7), ("too late", 1), (-1, 255)])
def test_leaving_is_like_an_exit_code(daemon, code, expected):
    record = daemon.behave("leave", code=code)
    assert (record["outcome"], record["exit_code"]) == ("exit", expected)
    assert daemon.err() == ("too late\n" if code == "too late" else "")


def test_unknown_tasks_and_wrong_parameters_are_refused(daemon):
    record = daemon.run("missing")
    assert (record["outcome"], record["code"]) == ("refused", "E_DENY")
    assert daemon.run("behave.deeper")["code"] == "E_DENY"
    record = daemon.run("example", {"wrods": []})
    assert (record["outcome"], record["code"]) == ("refused", "E_SPEC")
    assert "wrods" in record["message"]


def test_a_task_whose_import_fails_says_what_is_missing(begin, tmp_path):
    (tmp_path / "bad.py").write_text("import nonexistent_library\n")
    (tmp_path / "norun.py").write_text("RUN = 1\n")
    daemon = begin(task_paths=[tmp_path])
    daemon.hello()
    record = daemon.run("bad")
    assert (record["outcome"], record["type"]) == ("exception", "ModuleNotFoundError")
    assert "nonexistent_library" in record["message"]
    assert daemon.run("norun")["code"] == "E_SPEC"


def test_a_result_is_kept_only_if_it_is_json_and_small(daemon):
    for value, kept in (([1, "ä"], True), (None, False), ("x" * (1 << 20), False)):
        assert daemon.behave("give", value=value)["outcome"] == "done"
        assert (daemon.root / "output/result.json").exists() is kept
    daemon.run("behave", {"do": "co", "value": 5})
    assert daemon.result() == 5


def test_children_are_ended_with_their_task(daemon):
    for detach in (False, True):
        path = daemon.folder / f"pid-{detach}"
        assert daemon.behave("children", path=str(path), detach=detach)["outcome"] == "done"
        assert gone(int(path.read_text()))
    assert daemon.behave("nothing")["outcome"] == "done"


def test_a_forked_child_that_returns_from_run_is_not_a_second_worker(daemon):
    record = daemon.behave("fork_and_return")
    assert record["outcome"] == "done"
    assert daemon.result() == "parent"
    assert daemon.behave("nothing")["key"] == "job-2/1"


def test_a_worker_that_a_task_left_a_thread_in_is_given_up(daemon):
    assert daemon.behave("thread")["outcome"] == "done"
    assert daemon.last is True
    assert daemon.ended() == 0
    assert not daemon.path.exists()


def test_a_worker_has_a_number_of_tasks(begin):
    daemon = begin(max_tasks=2)
    assert daemon.hello()["left"] == 2
    daemon.behave("nothing")
    assert daemon.last is False
    daemon.behave("nothing")
    assert daemon.last is True
    assert daemon.ended() == 0


def test_changed_code_is_not_run_in_an_old_process(begin, tmp_path):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "helper.py").write_text("ANSWER = 1\n")
    (tasks / "question.py").write_text("from tasks.helper import ANSWER\ndef run():\n    return ANSWER\n")
    daemon = begin(task_paths=[tmp_path])
    daemon.hello()
    assert daemon.run("question")["outcome"] == "done"
    assert daemon.result() == 1
    (tasks / "helper.py").write_text("ANSWER = 12\n")
    assert daemon.run("question") == "stale"
    assert daemon.ended() == 0


def test_tasks_in_packages_and_in_several_folders(begin, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two" / "tasks"
    (one / "deep").mkdir(parents=True)
    two.mkdir(parents=True)
    (one / "deep/inner.py").write_text("def run():\n    return 'inner'\n")
    (two / "__init__.py").write_text("SHARED = 'shared'\n")
    (two / "other.py").write_text("from tasks import SHARED\ndef run():\n    return SHARED\n")
    daemon = begin(task_paths=[one, tmp_path / "two"])
    daemon.hello()
    daemon.run("deep.inner")
    assert daemon.result() == "inner"
    daemon.run("other")
    assert daemon.result() == "shared"


def test_a_deadline_ends_even_what_no_signal_reaches(daemon):
    daemon.send("behave", {"do": "hang_in_c", "seconds": 600}, kill_s=0.3)
    assert daemon.receive() is None
    assert daemon.ended() == -signal.SIGKILL
    status = json.loads((daemon.folder / "w.status").read_text())
    assert status["key"] == "job-1/1"
    assert status["kill_s"] == 0.3


def test_a_deadline_is_over_with_its_task(daemon):
    daemon.send("behave", {"do": "nothing"}, kill_s=0.5)
    assert "done" in daemon.receive()
    daemon.send("behave", {"do": "tell", "count": 1, "pause": 0.7})
    assert "progress" in daemon.receive()
    assert "done" in daemon.receive()


@pytest.mark.parametrize(("do", "expected"), [({"do": "exit_hard", "code": 3}, 3), ({"do": "crash"}, -signal.SIGSEGV)])
def test_a_process_that_ends_under_its_task_leaves_the_tasks_name(daemon, do, expected):
    daemon.behave("nothing")
    daemon.send("behave", do)
    assert daemon.receive() is None
    assert daemon.ended() == expected
    assert json.loads((daemon.folder / "w.status").read_text())["key"] == "job-2/1"
    assert not (daemon.root / "task.json").exists()


def test_progress_is_passed_on_once_a_second(daemon):
    daemon.send("behave", {"do": "tell", "count": 1000})
    messages = []
    while "done" not in (message := daemon.receive()):
        messages.append(message["progress"])
    assert messages == [{"key": "job-1/1", "pct": 0.0, "note": "step 0"}]


def test_a_task_outlives_its_daemon_and_the_next_one_finds_its_record(daemon):
    gate = daemon.folder / "gate"
    root = daemon.send("behave", {"do": "wait_for", "path": str(gate)})
    daemon.socket.close()
    daemon.lines.close()
    daemon.connect()  # answered when the task is over
    gate.touch()
    assert daemon.hello()["busy"] is None
    assert json.loads((root / "task.json").read_text())["outcome"] == "done"
    assert daemon.behave("nothing")["outcome"] == "done"


def test_what_a_dying_daemon_sent_last_is_still_run(daemon):
    root = daemon.send("behave", {"do": "give", "value": 1})
    daemon.socket.close()
    daemon.lines.close()
    daemon.connect()
    daemon.hello()
    assert json.loads((root / "task.json").read_text())["outcome"] == "done"


def test_progress_finds_a_new_daemon(daemon):
    daemon.send("behave", {"do": "tell", "count": 100, "pause": 0.05})
    assert daemon.receive()["progress"]["note"] == "step 0"
    daemon.socket.close()
    daemon.lines.close()
    daemon.connect()
    assert daemon.hello()["busy"] == "job-1/1"
    assert "progress" in daemon.receive()


def test_an_idle_worker_without_a_daemon_ends(begin):
    daemon = begin(idle_s=0.2)
    daemon.hello()
    daemon.socket.close()
    daemon.lines.close()
    assert daemon.ended() == 0
    assert not daemon.path.exists()


def test_its_socket_is_its_users_alone(daemon):
    assert daemon.path.stat().st_mode & 0o777 == 0o600
    assert (daemon.folder / "w.status").stat().st_mode & 0o777 == 0o600


def test_usage_is_the_tasks_own(begin):
    # to the kernel what started it counts as its own: here the tests' process, whose peak may be gigabytes, so that is forgotten first
    Path("/proc/self/clear_refs").write_text("5")
    daemon = begin()
    daemon.hello()
    before = int(daemon.behave("nothing")["peak_memory_mb"])
    assert daemon.behave("use_memory", mb=before + 200)["peak_memory_mb"] > before + 200
    assert daemon.behave("nothing")["peak_memory_mb"] < before + 100


def test_an_interpreter_that_has_no_ostler(begin, tmp_path):
    other = shutil.which("python3", path="/usr/bin") or sys.executable
    venv = tmp_path / "venv"
    subprocess.run([other, "-m", "venv", "--without-pip", str(venv)], check=True)
    daemon = begin(python=venv / "bin/python")
    daemon.hello()
    assert daemon.run("example", {"words": ["x"]})["outcome"] == "done"
    daemon.behave("surroundings")
    assert daemon.result()["python"] == str(venv / "bin/python")


# --- lent workspaces ---


@pytest.fixture
def lender(begin, tmp_path):
    one = begin(spare=str(tmp_path / ".spare-x"), lasting_s=60, ledger=str(tmp_path / "w.ledger"))
    one.hello()
    return one


def ledger(tmp_path):
    return [json.loads(line)["key"] for line in (tmp_path / "w.ledger").read_text().splitlines()]


def test_a_task_that_leaves_nothing_has_had_a_workspace(lender, tmp_path):
    """It was there while the task ran, with this path, and the next one has it again under another."""
    for number in (1, 2):
        record = lender.lend("lent:where", wants=["result.json"])
        assert (record["outcome"], record["lent"]) == ("done", True)
        found = json.loads(record["files"]["result.json"])
        assert found == [str(lender.root / "work"), sorted(["input", "work", "output", "logs"]), 0]
        assert not lender.root.exists()
        assert ledger(tmp_path) == [f"job-{one}/1" for one in range(1, number + 1)]


@pytest.mark.parametrize(
    "what",
    ["print", "complain", "file", "output", "input", "logs", "beside", "mode", "replaced", "linked", "linked root", "close", "c"],
)
def test_what_a_task_leaves_stays_and_no_other_task_sees_it(lender, tmp_path, what):
    record = lender.lend("lent:leave", {"args": [what]}, wants=["result.json"])
    assert (record["outcome"], record.get("lent")) == ("done", None), what
    left = lender.root
    assert json.loads((left / "task.json").read_text())["key"] == "job-1/1"
    assert json.loads((left / "output/result.json").read_text()) == what
    assert ledger(tmp_path) == []
    if what in {"print", "complain", "c"}:
        assert {one.read_text() for one in (left / "logs").iterdir()} == {"", "left\n"}
    record = lender.lend("lent:where", wants=["result.json"])
    assert json.loads(record["files"]["result.json"])[1:] == [sorted(["input", "work", "output", "logs"]), 0]
    assert left.exists()


def test_a_failure_and_its_traceback_stay(lender):
    record = lender.lend("lent:fail", wants=["result.json", "error.json"])
    assert (record["outcome"], record["message"], record.get("lent")) == ("exception", "on purpose", None)
    assert "on purpose" in (lender.root / "logs/stderr.log").read_text()
    assert json.loads((lender.root / "output/error.json").read_text())["name"] == "ValueError"


def test_a_result_too_large_for_the_record_and_one_that_nobody_wants_are_files(lender):
    record = lender.lend("lent:echo", {"args": ["x" * 100_000]}, wants=["result.json"])
    assert record.get("lent") is None
    assert json.loads((lender.root / "output/result.json").read_text()) == "x" * 100_000
    record = lender.lend("lent:echo", {"args": ["x"]}, wants=[])
    assert record.get("lent") is None
    assert json.loads((lender.root / "output/result.json").read_text()) == "x"


def test_a_place_that_is_taken_is_the_nodes_failure_and_not_the_tasks(lender, tmp_path):
    (lender.folder / "job-1").write_text("a file")
    record = lender.lend("lent:where", wants=["result.json"])
    assert (record["outcome"], record["code"], record["lent"]) == ("refused", "E_INTERNAL", True)
    assert ledger(tmp_path) == ["job-1/1"]
    assert lender.lend("lent:where", wants=["result.json"])["outcome"] == "done"


def test_a_worker_that_rests_holds_nothing_on_the_disk_of_workspaces(lender, tmp_path):
    assert lender.lend("lent:where", wants=["result.json"])["outcome"] == "done"
    process = psutil.Process(lender.process.pid)
    deadline = time.monotonic() + PATIENCE_S
    while (tmp_path / ".spare-x").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    held = [os.readlink(one) for one in Path(f"/proc/{process.pid}/fd").iterdir() if one.exists()]
    assert not [one for one in held if ".spare" in one]
    assert process.cwd() == "/"
    assert lender.lend("lent:where", wants=["result.json"])["outcome"] == "done"
