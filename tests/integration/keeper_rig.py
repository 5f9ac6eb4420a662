"""A real keeper for tests, as this user or as an ordinary one, and a bare connection to it."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PATIENCE_S = 30
SOURCE = Path(__file__).parents[2] / "src" / "ostler"
NOBODY = 65534
INTERPRETERS = (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3")


class Line:
    """One connection: requests, their answers, and the events that came between them."""

    def __init__(self, path: Path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rb")
        self.events: list[dict] = []
        self.numbers = itertools.count(1)
        self.hello = self.read()

    def read(self) -> dict:
        line = self.file.readline()
        assert line, "the keeper closed the connection"
        return json.loads(line)

    def send(self, text: bytes) -> None:
        self.socket.sendall(text)

    def answer(self, number) -> dict:
        while True:
            message = self.read()
            if "event" in message:
                self.events.append(message)
            elif message["id"] == number:
                return message

    def ask(self, op: str, **members) -> dict:
        number = next(self.numbers)
        self.send(json.dumps({"id": number, "op": op, **members}).encode() + b"\n")
        return self.answer(number)

    def start(self, **members) -> dict:
        """Start an attempt that must start."""
        answer = self.ask("start", **members)
        assert answer.get("ok"), answer
        return answer

    def record(self, key: str) -> dict:
        """The exit record of an attempt, as soon as it is over."""
        while True:
            for event in self.events:
                if event["key"] == key:
                    self.events.remove(event)
                    return event["record"]
            message = self.read()
            assert message.get("event") == "exited", message
            self.events.append(message)

    def close(self) -> None:
        self.file.close()
        self.socket.close()


class Keeper:
    """A keeper process with a state directory, started and killed at will."""

    def __init__(self, folder: Path, *, cgroup: str = "auto", fork: bool = False, ordinary: bool = False, listens=None):
        self.folder = folder
        self.options = ["--cgroup", cgroup, *(["--fork"] if fork else [])]
        self.ordinary = ordinary and os.getuid() == 0
        self.uid = NOBODY if self.ordinary else os.getuid()
        self.state = folder / "state"
        self.path = self.state / "k.sock"
        self.log = folder / "keeper.log"
        self.lines: list[Line] = []
        self.command = [sys.executable, "-m", "ostler.node.keeper"]
        self.prefix: list[str] = []
        if self.ordinary:
            self.prefix = _as_nobody()
            copy = folder / "program" / "ostler" / "node"
            shutil.copytree(SOURCE / "node" / "keeper", copy / "keeper", ignore=shutil.ignore_patterns("__pycache__"))
            for part in ("__init__.py", "node/__init__.py"):
                shutil.copy(SOURCE / part, folder / "program" / "ostler" / part)
            subprocess.run(["chmod", "-R", "a+rX", str(folder / "program")], check=True)
            self.command = [_interpreter(self.prefix), "-I", "-S", str(copy / "keeper" / "__main__.py")]
        self.work = folder / "work"
        for directory in (self.state, self.work):
            directory.mkdir(mode=0o700)
            if self.ordinary:
                os.chown(directory, NOBODY, NOBODY)
        self.listens = listens or Keeper._listens
        self.process: subprocess.Popen | None = None
        self.start()

    def spawn(self, *options: str) -> subprocess.Popen:
        """Another keeper on the same state, without a look at whether it starts."""
        command = [*self.prefix, *self.command, "--socket", str(self.path), "--state", str(self.state)]
        with self.log.open("ab") as log:
            return subprocess.Popen([*command, *self.options, *options], stdout=log, stderr=log, cwd="/")

    def start(self) -> None:
        self.process = self.spawn()
        wait_until(lambda: self.listens(self), self.said)

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.said()
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(self.path))
            return True
        return False

    def said(self) -> str:
        return self.log.read_text()

    def line(self) -> Line:
        line = Line(self.path)
        self.lines.append(line)
        return line

    def spec(self, key: str, *argv: str, limits=None, env=None, **members) -> dict:
        """The members of a start request with files of its own."""
        return {
            "key": key,
            "argv": list(argv),
            "env": {"PATH": os.defpath, **(env or {})},
            "cwd": str(self.work),
            "stdout": str(self.work / f"{key}.out"),
            "stderr": str(self.work / f"{key}.err"),
            "record": str(self.work / f"{key}.json"),
            "limits": limits or {},
            **members,
        }

    def sh(self, key: str, script: str, **members) -> dict:
        return self.spec(key, "/bin/sh", "-c", script, **members)

    def put(self, name: str, text: str) -> Path:
        """A file of the keeper's user."""
        path = self.work / name
        path.write_text(text)
        os.chown(path, self.uid, -1)
        return path

    def out(self, key: str) -> str:
        path = self.work / f"{key}.out"
        return path.read_text() if path.exists() else ""

    def written(self, key: str) -> dict:
        """The file of an attempt's record, which it gets where nobody forgets it soon."""
        path = self.work / f"{key}.json"
        wait_until(path.exists)
        return json.loads(path.read_text())

    def kill(self) -> None:
        """As the machine would: without a word."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE_S)

    def close(self) -> None:
        for line in self.lines:
            line.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            assert self.process.returncode == 0, self.said()
        assert "Traceback" not in self.said()
        assert "keeper.bug" not in self.said()


@contextlib.contextmanager
def folder():
    """A directory that other users may pass; pytest's own are closed to them anew by each run of pytest."""
    with tempfile.TemporaryDirectory(prefix="ostler-keeper-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def _as_nobody() -> list[str]:
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


def _interpreter(prefix: list[str]) -> str:
    for path in INTERPRETERS:
        check = [*prefix, path, "-I", "-S", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        if subprocess.run(check, cwd="/", capture_output=True, check=False).returncode == 0:
            return path
    raise AssertionError(f"no Python 3.11 that an ordinary user may execute: tried {', '.join(INTERPRETERS)}")


def wait_until(condition, what=lambda: "it never was so"):
    """Until something outside of this process is so; the truth that it gave."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what()
        time.sleep(0.005)
    return found


def alive(pid: int) -> bool:
    """Whether a process lives and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def pids_of(text: str) -> list[int]:
    return [int(word) for word in text.split()]
