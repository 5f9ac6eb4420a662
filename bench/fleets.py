"""Simulated fleets (`ostler sim nodes`: the real protocol, no work).

Ten thousand nodes of one coordinator; and what one coordinator on PostgreSQL carries beside two of them.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from driver import Contestant, cpu_s, tree
from product import COMMAND, serve
from services import postgres

import ostler

CGROUPS = Path("/sys/fs/cgroup")
PERIOD_US = 100_000


class Simulated(Contestant):
    """One coordinator on SQLite and a simulated fleet."""

    settings = "SQLite; heartbeats 15 s; one process simulates all nodes, on the same cores"
    minutes = 1.5  # of simulation

    def version(self) -> str:
        return ostler.__version__

    def start(self) -> None:
        os.environ |= {"OSTLER_COORDINATOR__LIMITS__CONNECTIONS": "20000", "OSTLER_COORDINATOR__LIMITS__CALLS_PER_S": "100000"}
        os.environ |= {"OSTLER_COORDINATOR__LIMITS__BURST": "100000"}
        self.coordinators = [serve(self, self.place / "coordinator")]

    def parts(self) -> dict[str, list[int]]:
        return {"coordinator": [pid for process, _ in self.coordinators for pid in tree([process.pid])]}

    def wait(self) -> None:
        """Nothing is left running."""

    def simulate(self, number: int, nodes: int, *words: str) -> subprocess.Popen[str]:
        """A simulator at one of the coordinators; it prints its report as JSON."""
        token = (self.place / "coordinator" / "admin.token").read_text().strip()
        env = {**os.environ, "OSTLER_URL": self.coordinators[number % len(self.coordinators)][1], "OSTLER_TOKEN": token}
        argv = [COMMAND, "sim", "nodes", str(nodes), "--json", *words]
        with (self.place / "simulators.log").open("ab") as log:
            return subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True)

    def report(self, simulator: subprocess.Popen[str]) -> dict[str, Any]:
        """What it measured."""
        out, _ = simulator.communicate(timeout=600)
        return json.loads(out) if simulator.returncode == 0 else sys.exit((self.place / "simulators.log").read_text())

    def nodes(self, count: int) -> dict[str, Any]:
        """A fleet with a little work: how long calls took, which leases were lost, what it cost."""
        words = ["--rate", "20", "--job-time", "5s", "--for", f"{self.minutes * 60:.0f}s", "--share"]
        told = self.report(self.simulate(0, count, *words))
        return {
            "nodes": count, "seconds": told["seconds"], "heartbeat_p99_ms": told["calls"]["heartbeat"]["p99_ms"],
            "slowest_p99_ms": max(one["p99_ms"] for one in told["calls"].values()), "lost": told["lost"], "troubles": told["troubles"],
            "coordinator_cpu": told["coordinator_cpu"], "coordinator_mb": told["coordinator_memory_mb"], "calls": told["calls"],
            "late_p99_ms": told["simulator_late_p99_ms"],
        }  # fmt: skip


class OneReplica(Simulated):
    """Coordinators on one PostgreSQL, two simulated fleets with jobs that take no time: what the coordinators carry."""

    settings = "PostgreSQL with fsync and synchronous_commit on; two simulators with 20 nodes each; jobs take no time"
    replicas = 1
    cores: float | None = None  # of a processor that each coordinator may use

    def __init__(self, place: Path, slots: int) -> None:
        super().__init__(place, slots)
        self.coordinators: list[tuple[subprocess.Popen[bytes], str]] = []
        self.groups: list[Path] = []

    def start(self) -> None:
        self.server, dsn = postgres(self)
        os.environ |= {
            "OSTLER_COORDINATOR__ARTIFACTS": str(self.place / "artifacts"),
            "OSTLER_COORDINATOR__LIMITS__CALLS_PER_S": "100000",
        }
        os.environ |= {"OSTLER_COORDINATOR__LIMITS__BURST": "100000"}
        for number in range(self.replicas):
            data = self.place / ("coordinator" if number == 0 else f"coordinator-{number}")
            if number:  # replicas share their keys
                data.mkdir(mode=0o700)
                shutil.copytree(self.place / "coordinator" / "keys", data / "keys")
                shutil.copy(self.place / "coordinator" / "admin.token", data)
            self.coordinators.append(serve(self, data, "--store", dsn))
            self.hold(self.coordinators[-1][0].pid)

    def hold(self, pid: int) -> None:
        """Keep a coordinator within its share of a core, so that two need not fight for the cores of this machine."""
        if self.cores is None:
            return
        quota = int(PERIOD_US * self.cores)
        group = (CGROUPS / "cpu" if (CGROUPS / "cpu").exists() else CGROUPS) / f"ostler-bench-{pid}"
        try:
            group.mkdir()
            self.groups.append(group)
            if (group / "cpu.cfs_quota_us").exists():
                (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (group / "cpu.cfs_quota_us").write_text(str(quota))
            else:
                (group / "cpu.max").write_text(f"{quota} {PERIOD_US}")
            (group / "cgroup.procs").write_text(str(pid))
        except OSError as exc:
            sys.exit(f"a coordinator's share of a core cannot be limited here: {exc}")

    def parts(self) -> dict[str, list[int]]:
        return {**super().parts(), "postgres": tree([self.server.pid])}

    def jobs(self, count: int) -> dict[str, Any]:
        """Jobs per second of both fleets together, and CPU milliseconds per job by part."""
        before = {name: cpu_s(pids) for name, pids in self.parts().items()}
        words = ["--jobs", str(count // 2), "--job-time", "0s", "--slots", "16"]
        running = [self.simulate(number, 20, *words) for number in range(2)]
        told = [self.report(one) for one in running]
        used = {name: (cpu_s(pids) - before[name]) / count * 1e3 for name, pids in self.parts().items()}
        return {"jobs_per_s": sum(one["jobs_per_s"] for one in told), "lost": sum(one["lost"] for one in told), "cpu_ms": used}

    def close(self) -> None:
        for process, _ in self.coordinators:
            process.terminate()
        for process, _ in self.coordinators:
            process.wait(30)
        for group in self.groups:
            group.rmdir()


class TwoReplicas(OneReplica):
    replicas = 2


class OneHeld(OneReplica):
    cores = 0.2


class TwoHeld(TwoReplicas):
    cores = 0.2
