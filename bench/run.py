"""Throughput, latency and footprint of the embedded set, measured from outside through the API and the processes' own figures."""

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil
import yaml

ROOT = Path(__file__).resolve().parent.parent
PARTS = {"coordinator": "ostler.assembly.coordinator", "node": "ostler.assembly.node", "keeper": "ostler/node/keeper"}
LIVE = "queued,leased,acked,preparing,running,uploading,retry_wait"
PLACE = ROOT / "var" / "bench"
OSTLER = Path(sys.executable).parent / "ostler"


def percentile(values, share):
    """The value below which `share` of the sorted values lie."""
    values = sorted(values)
    return values[min(len(values) - 1, round(share * (len(values) - 1)))]


class Embedded:
    """`ostler up` in a fresh directory with the wanted sandbox level; stopped and removed at the end."""

    def __init__(self, level, slots):
        # On the disk of the checkout, and removed only when all is measured: ext4 passes over inodes that were freed in the last
        # minutes, one by one, which makes each new file cost up to 0.4 ms and measures the last benchmark, or the last tests.
        PLACE.mkdir(parents=True, exist_ok=True)
        self.data = Path(tempfile.mkdtemp(prefix="data-", dir=PLACE))
        self.level, self.slots = level, slots
        self.env = {**os.environ, "OSTLER_NODE__SANDBOX__LEVEL": level, "XDG_CONFIG_HOME": str(self.data / "config")}

    def __enter__(self):
        allow = self.data / "allowlist.d"
        allow.mkdir()
        (allow / "date.yaml").write_text(yaml.safe_dump({"command": {"path": "/usr/bin/date"}, "args": [["\\+%s\\.%N"]]}))
        (allow / "true.yaml").write_text(yaml.safe_dump({"command": {"path": "/usr/bin/true"}}))
        self.process = subprocess.Popen(
            [OSTLER, "up", "--data", self.data, "--listen", "127.0.0.1:0", "--slots", str(self.slots)],
            stdout=subprocess.PIPE, stderr=(self.data / "up.err").open("wb"), text=True, env=self.env,
        )  # fmt: skip
        for line in self.process.stdout:
            if line.startswith("ready "):
                self.url = line.split()[1]
                break
        else:
            sys.exit((self.data / "up.err").read_text())
        token = (self.data / "admin.token").read_text().strip()
        self.http = httpx.Client(base_url=f"{self.url}/api/v1", headers={"Authorization": f"Bearer {token}"}, timeout=120)
        return self

    def __exit__(self, *_):
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def processes(self):
        """The set's processes by part: the descendants of `ostler up`, and the keeper of this data directory."""
        ours = {one.pid for one in psutil.Process(self.process.pid).children(recursive=True)}
        found = {}
        for one in psutil.process_iter(["cmdline"]):
            line = " ".join(one.info["cmdline"] or [])
            for part, mark in PARTS.items():
                if mark in line and (one.pid in ours or str(self.data) in line):
                    found.setdefault(part, one)
        return found


def bulk(system, jobs):
    """Jobs per second for one bulk submit of `jobs` times /bin/true."""
    manifests = [{"command": "true", "args": []}] * jobs
    begin = time.perf_counter()
    answer = system.http.post("/jobs", json=manifests)
    answer.raise_for_status()
    submitted = time.perf_counter()
    while True:
        live = system.http.get(
            "/jobs", params={"state": "queued,leased,acked,preparing,running,uploading,retry_wait", "count": "true", "limit": 1}
        )
        if live.json()["total"] == 0:
            break
        time.sleep(0.02)
    wall = time.perf_counter() - begin
    done = system.http.get("/jobs", params={"state": "done", "count": "true", "limit": 1}).json()["total"]
    return {"jobs_per_s": jobs / wall, "submit_per_s": jobs / (submitted - begin), "done": done}


def latency(system, jobs):
    """Milliseconds from submit to the job's own first instruction, and to its result, one job at a time."""
    started, result = [], []
    for _ in range(jobs):
        before = time.time()
        job = system.http.post("/jobs", json={"command": "date", "args": ["+%s.%N"]}).json()["items"][0]["job_id"]
        view = system.http.get(f"/jobs/{job}/result", params={"wait_s": 30}).json()
        result.append((time.time() - before) * 1e3)
        if view["state"] != "done":
            sys.exit(f"a latency job ended as {view['state']}: {view.get('failure')}")
        stamp = float(system.http.get(f"/jobs/{job}/logs").text)
        started.append((stamp - before) * 1e3)
        time.sleep(0.02)
    return {
        "started_p50_ms": statistics.median(started), "started_p99_ms": percentile(started, 0.99),
        "result_p50_ms": statistics.median(result), "result_p99_ms": percentile(result, 0.99),
    }  # fmt: skip


def footprint(system, idle_s):
    """PSS in MB and idle CPU in percent of one core, by part."""
    parts = system.processes()
    before = {name: one.cpu_times() for name, one in parts.items()}
    time.sleep(idle_s)
    figures = {}
    for name, one in parts.items():
        now = one.cpu_times()
        cpu = (now.user + now.system - before[name].user - before[name].system) / idle_s * 100
        figures[name] = {"pss_mb": one.memory_full_info().pss / 2**20, "idle_cpu_pct": cpu}
    return figures


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000, help="jobs of one bulk submit")
    parser.add_argument("--singles", type=int, default=100, help="jobs of the latency run")
    parser.add_argument("--runs", type=int, default=3, help="bulk submits; the median counts")
    parser.add_argument("--slots", type=int, default=os.cpu_count(), help="slots of the node")
    parser.add_argument("--levels", default="process,bwrap", help="sandbox levels, comma-separated")
    parser.add_argument("--idle", type=float, default=10, help="seconds of the idle measurement")
    args = parser.parse_args()
    report = {
        "machine": {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        "levels": {},
    }
    print(f"{args.jobs} jobs per bulk submit, {args.slots} slots, {os.cpu_count()} cores\n")
    print(
        "| level | bulk jobs/s (median of runs) | submit → started p50 / p99 ms | submit → result p50 / p99 ms |\n|---|---|---|---|"
    )
    for level in args.levels.split(","):
        count = args.jobs if level == "process" else max(args.jobs // 4, 1)
        with Embedded(level, args.slots) as system:
            bulk(system, 50)
            runs = [bulk(system, count)["jobs_per_s"] for _ in range(args.runs)]
            late = latency(system, args.singles)
            foot = footprint(system, args.idle) if level == "process" else {}
        report["levels"][level] = {"bulk": runs, "latency": late, "footprint": foot}
        shown = ", ".join(f"{run:.0f}" for run in runs)
        print(f"| {level} | **{statistics.median(runs):.0f}** ({shown}) | {late['started_p50_ms']:.1f} / {late['started_p99_ms']:.1f} "
              f"| {late['result_p50_ms']:.1f} / {late['result_p99_ms']:.1f} |", flush=True)  # fmt: skip
        for name, one in foot.items():
            report["levels"][level].setdefault("lines", []).append(
                f"{name}: {one['pss_mb']:.1f} MB PSS, idle {one['idle_cpu_pct']:.2f} % of a core"
            )
    for level in report["levels"].values():
        for line in level.get("lines", []):
            print(line)
    shutil.rmtree(PLACE, ignore_errors=True)
    results = ROOT / "bench" / "results"
    results.mkdir(exist_ok=True)
    (results / "latest.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
