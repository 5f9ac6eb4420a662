"""What is measured, and how: the same code for the product and for every peer, each in the Python of its own environment.

A contestant says how its system is started, given work and asked whether it is over; `main` measures it. Standard library alone.
A plan is `{"place": DIR, "slots": 2, "figures": {"bulk": 2000, …}}`: what to measure, with how many jobs.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

TICK = os.sysconf("SC_CLK_TCK")
PR_SET_CHILD_SUBREAPER = 36
LINGER_S = 0.3  # what a system still does for jobs that are over belongs to their cost
PAUSE_S = 0.02  # between two jobs of the latency run
WARM_UP = 200


class Contestant:
    """One system. `place` is an empty directory on the disk that all of them use."""

    settings = ""  # what a reader must know to compare: durability, concurrency
    share = 1.0  # of the wanted number of jobs; less for systems so slow that they would hold up all others

    def __init__(self, place: Path, slots: int) -> None:
        self.place, self.slots = place, slots
        self.processes: list[subprocess.Popen[bytes]] = []

    def version(self) -> str:
        """Of the system and of what it stores in."""
        raise NotImplementedError

    def start(self) -> None:
        """Start everything; returns when work can be given to it."""
        raise NotImplementedError

    def parts(self) -> dict[str, list[int]]:
        """Living processes by part."""
        raise NotImplementedError

    def wait(self) -> None:
        """Until all that was given is over and went well. Raises where some of it did not."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of connections. Processes are ended by `main`."""

    # What it can do; a figure whose method is missing stands as such in the table.
    bulk: Callable[[int], None]  # N external no-ops by the system's call for many
    singles: Callable[[int], None]  # N external no-ops, one call each
    tasks: Callable[[int], None]  # N Python no-ops inside the worker
    program: Callable[[], tuple[float, float]]  # one run of `stamp`: when it began and when that was known here (time.time())
    function: Callable[[], tuple[float, float]]  # one call of a function in the worker that answers the clock, likewise
    cold: Callable[[], float]  # seconds from executing the worker to the start of a job that waited for it

    def spawn(self, argv: list[str | Path], **more: Any) -> subprocess.Popen[bytes]:
        """A process of this system, with its output in a file of its place."""
        log = (self.place / f"{Path(argv[0]).name}.log").open("ab")
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **more)
        log.close()
        self.processes.append(process)
        return process

    def end(self, process: subprocess.Popen[bytes], patience_s: float = 15.0) -> None:
        """SIGTERM, then SIGKILL for it and its descendants."""
        family = tree([process.pid])
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
        kill(family)
        process.wait(5)


# --- processes ---


def tree(roots: Iterable[int], without: Iterable[int] = ()) -> list[int]:
    """The processes and their descendants, but for those of `without`."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    children.setdefault(int(fields[1]), []).append(int(name))
    found, todo, cut = [], list(roots), set(without)
    while todo:
        pid = todo.pop()
        if pid not in cut:
            found.append(pid)
            todo += children.get(pid, [])
    return found


def kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def adopt_orphans() -> None:
    """Descendants whose parents end become children of this process, so that each is found by its pid at the end."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants(patience_s: float = 15.0) -> None:
    """SIGTERM for all of this process's descendants, SIGKILL for those that stay."""
    mine = [os.getpid()]
    for pid in tree(mine)[1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while len(left := tree(mine)[1:]) > 0:
        if time.monotonic() > deadline:
            kill(left)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.02)


def cpu_s(pids: Iterable[int]) -> float:
    """User and system seconds of processes and of their children that ended."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return ticks / TICK


def pss_mb(pids: Iterable[int]) -> float:
    """Proportional memory: shared pages are divided among those who share them."""
    kb = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    kb += int(line.split()[1])
    return kb / 1024


# --- small tools for contestants ---


def until(condition: Callable[[], Any], what: str, patience_s: float = 60.0, every_s: float = 0.01) -> Any:
    """Poll until it is true."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            sys.exit(f"{what} did not come true in {patience_s:g} s")
        time.sleep(every_s)
    return value


def read_stamp(path: Path, patience_s: float = 60.0) -> float:
    """When the job began that writes the clock into this file (nanoseconds and a newline)."""

    def stamped() -> str:
        with contextlib.suppress(OSError):
            if (text := path.read_text()).endswith("\n"):
                return text
        return ""

    return int(until(stamped, f"the start of {path.name}", patience_s, 0.0005)) / 1e9


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


# --- figures ---


def throughput(one: Contestant, submit: Callable[[int], None], count: int) -> dict[str, Any]:
    """Jobs per second from the first submit until the last is over, and CPU milliseconds per job by part."""
    before, client, begin = {name: cpu_s(pids) for name, pids in one.parts().items()}, time.process_time(), time.perf_counter()
    submit(count)
    submitted = time.perf_counter()
    one.wait()
    end, client_end = time.perf_counter(), time.process_time()
    time.sleep(LINGER_S)
    used = {name: (cpu_s(pids) - before.get(name, 0.0)) / count * 1e3 for name, pids in one.parts().items()}
    used["client"] = (client_end - client) / count * 1e3
    return {"count": count, "jobs_per_s": count / (end - begin), "submit_per_s": count / (submitted - begin), "cpu_ms": used}


def latency(ask: Callable[[], tuple[float, float]], count: int) -> dict[str, Any]:
    """Milliseconds on an idle system, one job at a time."""
    started, result = [], []
    for number in range(-5, count):
        before = time.time()
        began, seen = ask()
        if number >= 0:
            started.append((began - before) * 1e3)
            result.append((seen - before) * 1e3)
        time.sleep(PAUSE_S)
    return {
        f"{name}_{what}_ms": percentile(values, share)
        for name, values in (("started", started), ("result", result))
        for what, share in (("p50", 0.5), ("p99", 0.99))
    } | {"count": count}


def footprint(one: Contestant, idle_s: float) -> dict[str, Any]:
    """Memory by part after the load, and CPU in percent of one core while nothing is to be done."""
    time.sleep(1)
    parts = one.parts()
    before, begin = {name: cpu_s(pids) for name, pids in parts.items()}, time.perf_counter()
    time.sleep(idle_s)
    wall = time.perf_counter() - begin
    return {
        name: {"pss_mb": pss_mb(pids), "idle_cpu_pct": (cpu_s(pids) - before[name]) / wall * 100, "processes": len(pids)}
        for name, pids in parts.items()
    }


def measure(one: Contestant, figures: dict[str, float], tell: Callable[[str], None]) -> dict[str, Any]:
    """All wanted figures that the system can give, in the order in which they were asked for."""
    found: dict[str, Any] = {}
    loads = [name for name in ("bulk", "singles", "tasks") if name in figures and hasattr(one, name)]
    for name in loads:  # every path once before it counts
        getattr(one, name)(max(int(min(WARM_UP, figures[name]) * one.share), 1))
        one.wait()
    for name, amount in figures.items():
        if name != "footprint" and not hasattr(one, name):
            continue
        if name in loads:
            found[name] = throughput(one, getattr(one, name), max(int(amount * one.share), 1))
            tell(f"{name} {found[name]['jobs_per_s']:.0f}/s")
        elif name in {"program", "function"}:
            found[name] = latency(getattr(one, name), int(amount))
            tell(f"{name} started {found[name]['started_p50_ms']:.1f} ms")
        elif name == "footprint":
            found[name] = footprint(one, amount)
        elif name == "cold":
            found[name] = {"s": statistics.median(one.cold() for _ in range(int(amount)))}
            tell(f"cold start {found[name]['s']:.2f} s")
        else:  # a measurement of its own
            found[name] = getattr(one, name)(int(amount))
    return found


def stop(_: int, __: Any) -> None:
    """SIGTERM ends the run through its `finally`."""
    sys.exit("stopped")


def main(kind: Callable[[Path, int], Contestant], words: str) -> None:
    """One turn of one contestant, as the plan says; prints one JSON object."""
    plan = json.loads(words)
    adopt_orphans()
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    place = Path(plan["place"]).resolve()
    place.mkdir(parents=True)
    one = kind(place, plan["slots"])
    try:
        one.start()
        found = measure(one, plan["figures"], lambda text: print(text, file=sys.stderr, end="  ", flush=True))
        answer = {"version": one.version(), "settings": one.settings, "figures": found}
    finally:
        one.close()
        end_descendants()
    print(json.dumps(answer))


def stamp_program(place: Path) -> Path:
    """The program that jobs of the latency run execute: it writes the clock to a file, or to standard output. Built once."""
    program = place / "stamp"
    if not program.exists():
        compiler = shutil.which("cc") or sys.exit("no C compiler (cc) for bench/stamp.c; on Debian: apt-get install gcc")
        subprocess.run([compiler, "-O2", "-o", program, Path(__file__).parent / "stamp.c"], check=True)
    return program
