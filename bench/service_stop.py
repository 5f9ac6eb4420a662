"""How long after the call for it a service of a real host is stopped (Q11), and which part of that is whose.

    .venv/bin/python bench/service_stop.py [--rounds 40] [--json FILE]

A coordinator on this machine, one host of the tests' testbed with systemd and an installed node; needs what `make testbed` needs. All
clocks are one, the kernel's monotonic one: the call begins here, and systemd writes down when it begins to end the unit and when that
is over. In half of the rounds the node's slots are all taken.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]

import httpx  # noqa: E402 - behind the path

from fleet.engine import Unable  # noqa: E402
from fleet.rig import Operator, here  # noqa: E402
from fleet.testbed import Testbed  # noqa: E402

UNIT = """[Unit]
Description=A service
StartLimitIntervalSec=0
[Service]
ExecStart=/usr/bin/tail -f /dev/null
[Install]
WantedBy=multi-user.target
"""
TARGET_MS = 50.0
ASKED = ("ActiveExitTimestampMonotonic", "InactiveEnterTimestampMonotonic")


class Bench:
    """One host with a service, and whoever stops it."""

    def __init__(self, operator: Operator, bed: Testbed) -> None:
        self.operator, (self.host,) = operator, bed.hosts.values()
        token = {"Authorization": f"Bearer {operator.env['OSTLER_TOKEN']}"}
        self.http = httpx.Client(base_url=f"{operator.url}/api/v1", headers=token, timeout=60)

    def command(self, verb: str) -> tuple[float, str]:
        """When the call began (monotonic seconds), and the job."""
        began = time.monotonic()
        answer = self.http.post(f"/services/web/{verb}", json={"on": self.host.name}).raise_for_status()
        return began, answer.json()["deliveries"][0]["job_id"]

    def over(self, job: str) -> dict[str, object]:
        """The job once it is over."""
        while (answer := self.http.get(f"/jobs/{job}/result", params={"wait_s": 30})).status_code == 202:
            pass
        view = answer.raise_for_status().json()
        assert view["state"] == "done", view
        return view

    def round(self) -> dict[str, float]:
        """One stop of a service that runs, in milliseconds from the call."""
        self.over(self.command("start")[1])
        began, job = self.command("stop")
        answered = time.monotonic()
        self.over(job)
        over = time.monotonic()
        properties = [f"--property={name}" for name in ASKED]
        told = self.host.exec("systemctl", "show", *properties, "web.service").stdout
        at = {name: int(value) / 1e6 for name, _, value in (line.partition("=") for line in told.splitlines())}
        ending, stopped = (at[name] for name in ASKED)
        return {name: (moment - began) * 1000 for name, moment in (
            ("answered", answered), ("systemd begins", ending), ("stopped", stopped), ("known", over))}  # fmt: skip


def quantile(values: list[float], part: float) -> float:
    """The value below which this part lies."""
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def main() -> int:
    """See the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    os.environ["OSTLER_COORDINATOR__LIMITS__COMMANDS_PER_S"] = "1000"  # nobody else is kept from anything here
    with tempfile.TemporaryDirectory(prefix="ostler-bench-") as folder, Testbed("bench", Path(folder) / "bed") as bed:
        try:
            bed.up(1, newer=False)
            operator = Operator(bed, Path(folder) / "operator")
        except Unable as exc:
            return print(exc) or 1
        try:
            report = measure(operator, bed, asked.rounds)
        finally:
            operator.close()
    for name, steps in report.items():
        print(f"\n{name}: milliseconds from the call, {asked.rounds} stops")
        for step, values in steps.items():
            print(f"  {step:15} p50 {statistics.median(values):7.1f}   p90 {quantile(values, 0.9):7.1f}   max {max(values):7.1f}")
    worst = max(statistics.median(steps["stopped"]) for steps in report.values())
    print(f"\nQ11: p50 {worst:.1f} ms, target < {TARGET_MS:g} ms: {'met' if worst < TARGET_MS else 'missed'}")
    if asked.json:
        asked.json.write_text(json.dumps(report))
    return 0 if worst < TARGET_MS else 1


def measure(operator: Operator, bed: Testbed, rounds: int) -> dict[str, dict[str, list[float]]]:
    """For an idle and for a full node the times of each step."""
    (name,) = bed.hosts
    node = {"heartbeat": {"interval_s": 15}, "resources": {"max_concurrent_cpu": 1}}
    bed.hosts[name].exec("tee", "/etc/systemd/system/web.service", stdin=UNIT)
    bed.hosts[name].exec("systemctl", "daemon-reload")
    bed.hosts[name].exec("systemctl", "enable", "web.service")  # or systemd forgets all of it with its end
    operator.know(**{name.replace("-", "_"): {"vars": {"services": {"web": {"unit": "web.service"}}, "node": node}}})
    operator.build(here(11))
    operator.install("--yes")
    operator.good_again(name)
    bench = Bench(operator, bed)
    report = {}
    for what in ("idle node", "full node"):
        if what == "full node":
            operator.sleeper(name)
        found = [bench.round() for _ in range(rounds)]
        report[what] = {step: [one[step] for one in found] for step in found[0]}
    return report


if __name__ == "__main__":
    sys.exit(main())
