"""`make fleet-demo`: bare hosts become a fleet that runs jobs, is updated under load, goes back from a bad release, drifts and is mended.

The hosts are containers with systemd, sshd and an address of their own. Each command is shown as an operator would type it, with what it
printed. Whatever does not come out as it should ends the demo with exit code 1; nothing of it is left either way.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import yaml

from e2e.fleet import OSTLER

from . import variants
from .engine import ROOT, Unable
from .rig import Operator, here
from .testbed import FIRST, LAST, Testbed

FOLDER = ROOT / "var" / "fleet-demo"
WINDOW = "5s"
BAD = variants.DOES_NOT_START
EDITS = {  # what somebody does to hosts by hand, and what `fleet status` calls it
    "a unit is edited": ("echo '# by hand' >> /etc/systemd/system/ostler-node.service", "was edited"),
    "the configuration is edited": ("sed -i 's/interval_s: 2/interval_s: 7/' /etc/ostler/node.yaml", "edited on the host"),
    "the daemon is stopped": ("systemctl stop ostler-node", "ostler-node.service is inactive"),
}


class Wrong(Exception):
    """Something did not come out as it should."""


class Demo:
    """One run on so many hosts."""

    def __init__(self, bed: Testbed, hosts: int) -> None:
        self.bed, self.hosts, self.times = bed, hosts, {}

    @contextmanager
    def chapter(self, title: str) -> Iterator[None]:
        """A part of the story, with its time."""
        print(f"\n==> {title}", flush=True)
        began = time.monotonic()
        yield
        self.times[title] = time.monotonic() - began

    def run(self) -> None:
        """The whole story."""
        with self.chapter(f"{self.hosts} bare hosts boot"):
            self.bed.up(self.hosts, newer=self.hosts >= 4)
            kinds = sorted({host.release for host in self.bed.hosts.values()})
            print(f"    {', '.join(self.bed.hosts)}: Debian {' and '.join(kinds)}, with systemd and sshd and nothing of Ostler")
        self.operator = Operator(self.bed, FOLDER / "operator")
        try:
            self._tell()
        finally:
            self.operator.close()

    def _tell(self) -> None:
        with self.chapter("a release is built: one signed file, all that a host needs"):
            platforms = [here(11), *([here(13)] if self.hosts >= 4 and not self.bed.no_newer else [])]
            self.operator.build(*platforms)
            self.type("release", "list")
        self.operator.know()
        self.operator.inventory.rename(FOLDER / "operator/ostler-fleet.yml")
        with self.chapter("the hosts' keys are believed once, then they become nodes"):
            self.type("fleet", "trust", "--yes", show=4)
            self.type("fleet", "install", "--allowlist", "allow", "--yes", show=8)
            self.type("node", "list", show=8)
        with self.chapter("each runs a job"):
            jobs = self._jobs()
            before = self._processes()
            self.type("job", "list", "--state", "running", show=6)
        good = self.operator.good("the second release")
        with self.chapter(f"an update under load: the canary first, then {self.hosts - 1} together"):
            self.type("fleet", "update", "--release", good, "--yes", "--window", WINDOW, show=26, last=5)
            self.expect(self._processes() == before, "all jobs go on with the processes that they had")
            self.expect(self._releases() == {good}, "all hosts run the second release")
        with self.chapter("nothing to do is done quickly"):
            self.type("fleet", "update", "--release", good, "--yes", show=0, last=1)
        bad = self.operator.variant(BAD)
        with self.chapter("a release that does not start: the canary goes back by itself, nobody else is touched"):
            self.type("fleet", "update", "--release", bad, "--yes", "--window", WINDOW, code=1, show=30)
            self.expect(self._releases() == {good}, "all hosts run the second release")
            self.expect(self._processes() == before, "all jobs go on with the processes that they had")
        with self.chapter("hosts drift, and each difference is shown with the command that mends it"):
            self._drift(good)
        with self.chapter("all of it is taken down"):
            self.type("job", "cancel", *jobs, show=2)
            self.type("fleet", "uninstall", "--yes", "--end-jobs", show=4)
            left = self.bed.hosts["mini-1"].exec("sh", "-c", "ls -d /opt/ostler /etc/ostler /var/lib/ostler*", check=False).stdout
            self.expect(not left, "nothing is left on mini-1")

    def _drift(self, good: str) -> None:
        for (what, (command, _)), host in zip(EDITS.items(), self.bed.hosts.values(), strict=False):
            print(f"    on {host.name}, {what}: {command}")
            host.exec("sh", "-c", command)
        self.type("fleet", "status", "--release", good, code=1, show=30)
        status = json.loads(
            self.operator.cli("fleet", "status", "--release", good, "--json", code=1, cwd=FOLDER / "operator").stdout
        )
        mends = {one["mend"] for host in status["hosts"].values() for one in host.get("findings", ())}
        for mend in sorted(mends):
            words = mend.split()[1:]
            at = words.index("--") if "--" in words else len(words)
            more = ["--window", WINDOW] if "update" in words else []
            self.type(*words[:at], *more, "--yes", *words[at:], show=0, last=2)
        self.type("fleet", "status", "--release", good, show=4)

    def _jobs(self) -> list[str]:
        manifest = [
            {"command": "sleep", "args": ["900"], "timeout_s": 2000, "requirements": {"node": one}} for one in self.bed.hosts
        ]
        (FOLDER / "operator/jobs.yaml").write_text(yaml.safe_dump(manifest))
        jobs = self.type("job", "submit", "jobs.yaml", show=3).split()
        for name in self.bed.hosts:
            while not self.operator.pids(name):
                time.sleep(0.1)
        return jobs

    def _processes(self) -> dict[str, list[str]]:
        return {name: self.operator.pids(name) for name in self.bed.hosts}

    def _releases(self) -> set[str]:
        return {self.operator.in_force(name) for name in self.bed.hosts}

    def type(self, *words: str, code: int = 0, show: int = 12, last: int = 0) -> str:
        """A command and what it printed: the first lines, and the last ones."""
        shown = " ".join(word if " " not in word else f"'{word}'" for word in words)
        print(f"\n    $ ostler {shown}", flush=True)
        began = time.monotonic()
        done = subprocess.run(
            [OSTLER, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.operator.env,
            cwd=FOLDER / "operator", check=False,
        )  # fmt: skip
        lines = done.stdout.splitlines()
        tail = lines[max(show, len(lines) - last) :] if last else []
        for line in lines[:show]:
            print(f"    {line}"[:180])
        if len(lines) > show + len(tail):
            print(f"    … ({len(lines) - show - len(tail)} more lines)")
        for line in tail:
            print(f"    {line}"[:180])
        print(f"    ({time.monotonic() - began:.1f} s{f', exit code {done.returncode}' if done.returncode else ''})", flush=True)
        if done.returncode != code:
            raise Wrong(f"`ostler {shown}` ended with {done.returncode}, not {code}:\n{done.stdout}")
        return done.stdout

    def expect(self, so: bool, what: str) -> None:
        """Say that it is so."""
        if not so:
            raise Wrong(f"it is not so that {what}")
        print(f"    ✓ {what}", flush=True)


def main() -> int:
    """From bare hosts to bare hosts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=16)
    args = parser.parse_args()
    if not len(EDITS) <= args.hosts <= LAST - FIRST:
        parser.error(f"--hosts: {len(EDITS)} to {LAST - FIRST}")
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    began = time.monotonic()
    try:
        with Testbed(f"demo{os.getpid()}", FOLDER / "testbed") as bed:
            demo = Demo(bed, args.hosts)
            demo.run()
    except (Unable, Wrong, RuntimeError, AssertionError) as exc:
        print(f"\n{exc}", file=sys.stderr)
        return 1
    print(f"\n==> {args.hosts} hosts, all of it in {time.monotonic() - began:.0f} s; nothing is left")
    for title, spent in demo.times.items():
        print(f"    {spent:6.1f} s  {title}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
