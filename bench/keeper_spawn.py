"""How many attempts the keeper starts and ends per second, and what it costs.

    python bench/keeper_spawn.py [--seconds 3] [--cgroup auto|v1|v2|none] [--one-core] [--memory-mb N] [--directory DIR]

Each attempt is /bin/true with its output in files, a running record, an exit record and, where there are cgroups, one
of its own: all that a job at level `process` has. `--one-core` binds the keeper and its attempts to one CPU.
Files lie in memory by default: ext4 takes up to 0.6 ms to make one of the four of an attempt when thousands were deleted
in the last minutes (it passes over inodes just freed), which measures the last benchmark and not this one.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path


class Line:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        for _ in range(500):
            try:
                self.socket.connect(path)
                break
            except OSError:
                time.sleep(0.01)
        self.file = self.socket.makefile("rb")
        self.hello = json.loads(self.file.readline())

    def send(self, *requests):
        self.socket.sendall("".join(json.dumps(request) + "\n" for request in requests).encode())

    def receive(self):
        return json.loads(self.file.readline())


def start(number, root, limits):
    root = root / f"{number}"
    root.mkdir()
    return {
        "id": number,
        "op": "start",
        "key": f"job-{number}/1",
        "argv": ["/bin/true"],
        "env": {"PATH": "/usr/bin:/bin", "HOME": str(root), "LANG": "C.UTF-8"},
        "cwd": str(root),
        "stdout": f"{root}/stdout.log",
        "stderr": f"{root}/stderr.log",
        "record": f"{root}/exit.json",
        "no_new_privs": True,
        "limits": limits,
    }


def spent(pid):
    """Page faults of the process and of its children, then user and system seconds of both."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [int(fields[7]), int(fields[8]), *(int(ticks) / os.sysconf("SC_CLK_TCK") for ticks in fields[11:15])]


def measure(line, root, width, seconds, limits):
    ready = [start(f"{width}-{seconds}-{number}", root, limits) | {"id": number} for number in range(1, int(seconds * 1500))]
    ready.reverse()
    pid = line.hello["pid"]
    number = running = done = 0
    latencies = []
    sent_at = {}
    before, began = spent(pid), time.perf_counter()
    while True:
        now = time.perf_counter()
        fresh = []
        while running < width and ready and now - began < seconds:
            number += 1
            running += 1
            fresh.append(ready.pop())
            sent_at[number] = now
        if fresh:
            line.send(*fresh)
        if not running:
            break
        message = line.receive()
        if message.get("event") == "exited":
            assert message["record"]["exit_code"] == 0, message
            running -= 1
            done += 1
            line.send({"id": 0, "op": "forget", "key": message["key"]})
        elif message["id"]:
            assert message.get("ok"), message
            latencies.append(time.perf_counter() - sent_at[message["id"]])
    wall = time.perf_counter() - began
    own_faults, their_faults, own_user, own_system, their_user, their_system = (
        (after - earlier) / done for earlier, after in zip(before, spent(pid), strict=True)
    )
    latencies.sort()
    print(
        f"{width:3} at a time: {done / wall:6.0f}/s   request → executing p50 {latencies[len(latencies) // 2] * 1e3:.2f} ms"
        f"   CPU per attempt: keeper {(own_user + own_system) * 1e3:.2f} ms,"
        f" attempt with its fork {(their_user + their_system) * 1e3:.2f} ms"
        f"   page faults: {own_faults:.0f}, {their_faults:.0f}"
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--cgroup", default="auto")
    parser.add_argument("--one-core", action="store_true")
    parser.add_argument("--memory-mb", type=int)
    parser.add_argument("--directory", default="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    options = parser.parse_args()
    limits = {"wall_s": 600, "log_mb": 10, "open_files": 1024}
    if options.memory_mb:
        limits["memory_mb"] = options.memory_mb
    with tempfile.TemporaryDirectory(prefix="ostler-bench-", dir=options.directory) as directory:
        root = Path(directory)
        path = str(root / "state" / "keeper.sock")
        command = [sys.executable, "-m", "ostler.node.keeper", "--socket", path, "--state", str(root / "state")]
        keeper = subprocess.Popen([*command, "--cgroup", options.cgroup], stderr=subprocess.DEVNULL)
        try:
            line = Line(path)
            if options.one_core:
                cpus = os.sched_getaffinity(0)
                os.sched_setaffinity(keeper.pid, {max(cpus)})
                os.sched_setaffinity(0, cpus - {max(cpus)} or cpus)
            print(f"cgroup {line.hello['cgroup']}, limits {limits}")
            measure(line, root, 1, 0.3, limits)
            for width in (1, 4, 16):
                measure(line, root, width, options.seconds, limits)
            pss = [row.split()[1] for row in Path(f"/proc/{keeper.pid}/smaps_rollup").read_text().splitlines() if "Pss:" in row]
            print(f"memory of the keeper (PSS): {int(pss[0]) / 1024:.1f} MB")
            line.send({"id": 1, "op": "shutdown"})
            keeper.wait(10)
        finally:
            keeper.kill()


if __name__ == "__main__":
    main()
