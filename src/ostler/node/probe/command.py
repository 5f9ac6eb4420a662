"""Runs the programs of probes: with a deadline that holds, whatever becomes of the program."""

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from dataclasses import dataclass

# Where drivers put their tools; not the caller's PATH, which a job's author may have had a hand in.
SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/nvidia/bin:/opt/rocm/bin:/usr/lib/wsl/lib"
PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Output:
    """What a program said. `code` is None when it did not end in time, or an earlier run of it still has not."""

    code: int | None
    text: str = ""
    errors: str = ""


class Commands:
    """Runs programs one at a time each; a program that even SIGKILL cannot end is not started a second time."""

    def __init__(self, *, search: str = SEARCH, patience_s: float = PATIENCE_S) -> None:
        self._search = search
        self._patience_s = patience_s
        self._stuck: dict[str, subprocess.Popen[str]] = {}
        self._lock = threading.Lock()

    def find(self, name: str) -> str | None:
        """The program's path, or None."""
        return shutil.which(name, path=self._search)

    def run(self, *argv: str) -> Output:
        """Run it with the patience given; never raises for what the program does."""
        program = self.find(argv[0])
        if program is None:
            return Output(127, errors=f"{argv[0]}: not found")
        with self._lock:
            stuck = self._stuck.get(program)
            if stuck is not None and stuck.poll() is None:
                return Output(None, errors="an earlier run of it still hangs")
            self._stuck.pop(program, None)
        try:
            process = subprocess.Popen(
                [program, *argv[1:]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env={"PATH": self._search, "LC_ALL": "C"},
                start_new_session=True,
            )
        except OSError as error:
            return Output(126, errors=str(error))
        try:
            text, errors = process.communicate(timeout=self._patience_s)
        except subprocess.TimeoutExpired:
            self._give_up(program, process)
            return Output(None, errors=f"no end within {self._patience_s:g} s")
        return Output(process.returncode, text, errors)

    def _give_up(self, program: str, process: "subprocess.Popen[str]") -> None:
        """Kill it without waiting: in a wedged driver a process cannot even die, and `run` of subprocess waits."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        if process.returncode is None:
            with self._lock:
                self._stuck[program] = process
