"""`make bench-fleet`: releases onto many real hosts, by the product, Ansible and pyinfra in turns (bench/README.md)."""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import environment

sys.path[:0] = [str(environment.ROOT / "tests")]

from fleet.engine import Unable  # noqa: E402
from fleet.rig import Operator, here  # noqa: E402
from fleet.testbed import Testbed  # noqa: E402
from ostler.fleet.releases.store import ReleaseStore, for_platform  # noqa: E402

PLACE = environment.PLACE / "rollouts"
VENV = environment.PLACE / "venv-rollouts"
PEERS = environment.ROOT / "bench" / "peers" / "rollouts"
RESULTS = environment.ROOT / "bench" / "results"
PINNED = PEERS / "requirements.txt"
FIGURES = {
    "new": "a new release: upload, unpack, switch, restart, good",
    "there": "a release that is there: switch, restart, good",
    "unchanged": "nothing to do",
}
LIMIT_S = 900
MOST = 0.25  # of a peer's time


class Bench:
    """A fleet, and the contestants that bring releases to it."""

    def __init__(self, bed: Testbed, hosts: int) -> None:
        self.bed = bed.up(hosts, newer=False)
        self.operator = Operator(bed, PLACE / "operator")
        self.first = self.operator.build(here(11))
        self.operator.know()
        self.operator.install("--yes")
        (PLACE / "data/configs").mkdir(parents=True)
        for name in bed.hosts:
            (PLACE / f"data/configs/{name}.yaml").write_text(self.operator.config(name))
        shutil.copytree(environment.ROOT / "src/ostler/fleet/units", PLACE / "data/units")
        self.contestants: dict[str, Callable[[str], list[str | Path]]] = {
            "ostler": self.ostler, "ansible": self.ansible, "pyinfra": self.pyinfra
        }  # fmt: skip

    def facts(self, release: str) -> dict[str, str]:
        """What a peer is told of a release; its bundle for these hosts is written before anything is measured."""
        found = ReleaseStore(self.operator.store).find(release)
        content = PLACE / f"data/{release}.bundle"
        if not content.exists():
            content.write_bytes(for_platform(found.bundle, here(11)))
        return {
            "release": release, "bundle": str(content), "pip": str(pip_wheel()),
            "units": str(PLACE / "data/units"), "configs": str(PLACE / "data/configs"), "wait": str(PEERS / "wait.py"),
        }  # fmt: skip

    def ostler(self, release: str) -> list[str | Path]:
        """The same steps, and those that the peers do not have: lock, drain, a watcher on the host. Once all is good it looks on
        for a second, the shortest watch that there is; they end at once."""
        words = self.operator.fleet_words(
            "update", "--release", release, "--yes", "--canary", "0", "--window", "1s", "--no-coordinator"
        )
        return [environment.ROOT / ".venv/bin/ostler", *words]

    def ansible(self, release: str) -> list[str | Path]:
        """All hosts at once, pipelining, connections that are shared within the run."""
        control = PLACE / f"cp{time.monotonic_ns() % 10**6}"  # each run makes its own connections
        control.mkdir()
        shared = f"-o ControlMaster=auto -o ControlPersist=30s -o ControlPath={control}/%h"
        common = f"-o UserKnownHostsFile={self.bed.folder}/known_hosts {shared}"
        lines = [
            f"{host.name} ansible_host={host.address} ansible_user=deploy ansible_ssh_private_key_file={host.identity} "
            f"ansible_ssh_common_args='{common}'"
            for host in self.bed.hosts.values()
        ]
        (PLACE / "data/hosts.ini").write_text("\n".join(lines) + "\n")
        (PLACE / "data/release.json").write_text(json.dumps(self.facts(release)))
        return [
            VENV / "bin/ansible-playbook", "-i", PLACE / "data/hosts.ini", "--forks", str(len(self.bed.hosts)),
            "-e", f"@{PLACE / 'data/release.json'}", PEERS / "playbook.yml",
        ]  # fmt: skip

    def pyinfra(self, release: str) -> list[str | Path]:
        """All hosts at once, as it does by itself."""
        hosts = [
            (host.name, {
                "ssh_hostname": host.address, "ssh_user": "deploy", "ssh_key": str(host.identity), "ssh_allow_agent": False,
                "ssh_known_hosts_file": str(self.bed.folder / "known_hosts"), "ssh_strict_host_key_checking": "yes", "_sudo": True,
                **self.facts(release),
            })
            for host in self.bed.hosts.values()
        ]  # fmt: skip
        (PLACE / "data/inventory.py").write_text(f"hosts = {hosts!r}\n")
        return [VENV / "bin/pyinfra", "-y", PLACE / "data/inventory.py", PEERS / "deploy.py"]

    def turn(self, name: str, number: int) -> dict[str, dict[str, float]]:
        """One contestant: a new release, back to the one before, and that once more."""
        before, fresh = self.first.release, self.operator.good(f"{name} {number}")
        self.facts(fresh), self.facts(before)
        found = {figure: self.measure(name, release) for figure, release in
                 (("new", fresh), ("there", before), ("unchanged", before))}  # fmt: skip
        for host in self.bed.hosts.values():
            host.exec("sh", "-c", f"rm -rf /opt/ostler/releases/{fresh} /var/tmp/*.bundle /var/tmp/pip-*")
        return found

    def measure(self, name: str, release: str) -> dict[str, float]:
        """Wall seconds and the operator's machine's CPU for it; raises where a host is not as it should be afterwards."""
        command = self.contestants[name](release)
        env = {**self.operator.env, "ANSIBLE_CONFIG": str(PEERS / "ansible.cfg"), "LC_ALL": "C.UTF-8"}
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # without compiled modules each start would measure the compiler
        cpu, began = children_cpu_s(), time.monotonic()
        done = subprocess.run(
            command, env=env, cwd=PLACE, capture_output=True, text=True, timeout=LIMIT_S, check=False, stdin=subprocess.DEVNULL
        )
        wall = time.monotonic() - began
        if done.returncode:
            raise RuntimeError(f"{name}: exit {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        spent = children_cpu_s() - cpu
        self.operator.good_again(*self.bed.hosts)
        wrong = [host for host in self.bed.hosts if self.operator.in_force(host) != release]
        if wrong:
            raise RuntimeError(f"{name} said that all is well, and {', '.join(wrong)} do not have {release}")
        return {"wall_s": wall, "cpu_s": spent}


def children_cpu_s() -> float:
    """CPU seconds of all children that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def peers() -> None:
    """Their environment, made or renewed where the pinned versions are others. Raises Missing."""
    stamp = VENV / ".installed"
    if not stamp.exists() or stamp.read_text() != PINNED.read_text():
        print(
            f"==> installing the peers into {VENV.relative_to(environment.ROOT)} ({PINNED.relative_to(environment.ROOT)})",
            flush=True,
        )
        environment.run([sys.executable, "-m", "venv", "--clear", VENV])
        environment.run([VENV / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", PINNED])
        pinned = next(line for line in PINNED.read_text().split() if line.startswith("pip=="))
        environment.run([VENV / "bin/python", "-m", "pip", "download", "--quiet", "--no-deps", "-d", VENV / "wheels", pinned])
        stamp.write_text(PINNED.read_text())


def pip_wheel() -> Path:
    """What the peers install wheels with: hosts have no pip."""
    return next((VENV / "wheels").glob("pip-*.whl"))


def table(rows: list[dict], hosts: int) -> str:
    """Markdown: medians of the rounds, the product's share of each peer's time, the verdict."""
    names = list(dict.fromkeys(row["name"] for row in rows))

    def values(name: str, figure: str, key: str) -> dict[int, float]:
        return {row["round"]: row["figures"][figure][key] for row in rows if row["name"] == name}

    lines = ["| " + " | ".join(["", *names]) + " |", "|" + " --- |" * (len(names) + 1)]
    verdicts = []
    for figure, what in FIGURES.items():
        cells = []
        ours = values("ostler", figure, "wall_s")
        for name in names:
            wall, cpu = values(name, figure, "wall_s"), values(name, figure, "cpu_s")
            cell = f"{statistics.median(wall.values()):.1f} s (CPU {statistics.median(cpu.values()):.1f})"
            if name != "ostler":
                share = statistics.median(ours[number] / wall[number] for number in wall if number in ours)
                cell += f", ×{share:.2f}"
                must = f"; must ≤ {MOST} {'met' if share <= MOST else 'NOT met'}" if figure == "new" else ""
                verdicts.append(f"- Q10, {what}: {share:.2f} of {name}'s time{must}")
            cells.append(cell)
        lines.append("| " + " | ".join([what, *cells]) + " |")
    cores = os.cpu_count()
    rounds = len({row["round"] for row in rows})
    head = (
        f"{hosts} hosts on this machine's {cores} cores, {rounds} rounds. Wall seconds, the operator's CPU seconds, ×: the product's share "
        "of the peer's wall time."
    )
    return "\n".join([head, "", *lines, "", *verdicts, ""])


def main() -> int:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peers", default="ansible,pyinfra")
    args = parser.parse_args()
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(parents=True)
    rows = []
    try:
        peers()
        with Testbed(f"bench{os.getpid()}", PLACE / "testbed") as bed:
            print(f"==> {args.hosts} hosts boot and are installed", flush=True)
            bench = Bench(bed, args.hosts)
            try:
                for number in range(1, args.rounds + 1):
                    names = ["ostler", *args.peers.split(",")]
                    shift = (number - 1) % len(names)
                    for name in names[shift:] + names[:shift]:
                        print(f"[round {number}] {name}: ", end="", flush=True)
                        rows.append({"round": number, "name": name, "figures": bench.turn(name, number)})
                        print(
                            ", ".join(f"{figure} {one['wall_s']:.1f} s" for figure, one in rows[-1]["figures"].items()),
                            flush=True,
                        )
            finally:
                bench.operator.close()
    except (Unable, environment.Missing, RuntimeError) as exc:
        print(exc, file=sys.stderr)
        return 1
    RESULTS.mkdir(parents=True, exist_ok=True)
    rows.sort(key=lambda row: (row["name"] != "ostler", row["round"]))
    text = table(rows, args.hosts)
    (RESULTS / "fleet.md").write_text(text)
    (RESULTS / "fleet.json").write_text(json.dumps({"hosts": args.hosts, "turns": rows}, indent=1) + "\n")
    print(f"\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
