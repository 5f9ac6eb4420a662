"""The operator's side of a fleet of real hosts: a coordinator on this machine, releases, and the commands that a person types."""

import contextlib
import json
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path

import yaml

from e2e.fleet import OSTLER, SHELL, until
from ostler.fleet.host import bundle
from ostler.fleet.releases.keys import open_keys
from ostler.fleet.releases.store import Release, ReleaseStore, for_platform

from . import image, variants
from .engine import ROOT, Unable
from .testbed import Testbed

ALLOWED = {"sh": SHELL, "sleep": {"command": {"path": "/usr/bin/sleep"}, "args": [["[0-9]{1,4}"]]}}
NODE = {"heartbeat": {"interval_s": 2}}  # over what an installation makes of a host: the coordinator hears of a new release soon
NO_BWRAP = {
    "sandbox": {"level": "process"}
}  # the systemd of Debian 13 leaves a container no /proc that bubblewrap could mount anew
NODE_UNIT = "ostler-node.service"
LIMIT_S = 400
Done = subprocess.CompletedProcess[str]


class Operator:
    """Whoever looks after the hosts of a testbed. Everything of theirs is in `folder`: coordinator, releases, keys, journals, inventory."""

    def __init__(self, bed: Testbed, folder: Path) -> None:
        self.bed, self.folder = bed, folder
        (folder / "allow").mkdir(parents=True)
        for name, entry in ALLOWED.items():
            (folder / f"allow/{name}.yaml").write_text(yaml.safe_dump(entry))
        self.store = folder / "data/ostler/releases"
        cache = os.environ.get("XDG_CACHE_HOME") or f"{os.environ['HOME']}/.cache"  # the wheels that were fetched once
        self.env = {
            **os.environ, "HOME": str(folder), "XDG_STATE_HOME": f"{folder}/state", "XDG_DATA_HOME": f"{folder}/data",
            "XDG_CONFIG_HOME": f"{folder}/config", "XDG_CACHE_HOME": cache, "NO_COLOR": "1", "COLUMNS": "200",
        }  # fmt: skip
        self.inventory = folder / "inventory.yml"
        self.coordinator = self._start_coordinator()
        self.first: Release | None = None
        self._variants: dict[str, str] = {}

    # --- what a person types ---

    def cli(
        self, *args: object, code: int | None = None, timeout: float = LIMIT_S, stdin: str | None = None, cwd: Path | None = None
    ) -> Done:
        """One command; with `code` it must end so."""
        argv = [OSTLER, *map(str, args)]
        done = subprocess.run(
            argv, capture_output=True, text=True, env=self.env, timeout=timeout, input=stdin, cwd=cwd, check=False
        )
        assert code in {None, done.returncode}, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def fleet_words(self, command: str, *args: object, host: str = "") -> list[str]:
        """`ostler fleet …` for these hosts."""
        return [*map(str, ("fleet", *command.split(), "-i", self.inventory, "--known-hosts", self.bed.folder / "known_hosts")),
                *(["--host", host] if host else []), *map(str, args)]  # fmt: skip

    def fleet(self, command: str, *args: object, host: str = "", code: int | None = None, timeout: float = LIMIT_S) -> Done:
        """The same, carried out."""
        return self.cli(*self.fleet_words(command, *args, host=host), code=code, timeout=timeout)

    def update(self, release: str, *args: object, window: str = "2s", host: str = "", code: int | None = None) -> "Rollout":
        """Bring a release to the hosts; the canary is watched for three windows."""
        words = ("--release", release, "--yes", "--window", window, "--json", *args)
        return Rollout(self.fleet("update", *words, host=host, code=code))

    @contextlib.contextmanager
    def updating(self, release: str, *args: object, host: str = "") -> Iterator[subprocess.Popen[str]]:
        """A rollout that goes on meanwhile; its standard output has one event a line, its standard error little."""
        words = self.fleet_words("update", "--release", release, "--yes", "--window", "2s", "--json", *args, host=host)
        process = subprocess.Popen([OSTLER, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.env)
        try:
            yield process
        finally:
            process.kill()
            process.wait(30)
            process.stdout.close()
            process.stderr.close()

    @contextlib.contextmanager
    def told(self, **variables: str) -> Iterator[None]:
        """Commands meanwhile have these variables."""
        before = self.env
        self.env = {**before, **variables}
        try:
            yield
        finally:
            self.env = before

    def without_coordinator(self) -> contextlib.AbstractContextManager[None]:
        """Commands meanwhile find nobody where the coordinator should be."""
        return self.told(OSTLER_URL="http://127.0.0.1:9")

    def mend(self, command: str, *, code: int = 0) -> Done:
        """A command that was printed, as it was pasted into a terminal; only what a profile would say is added."""
        words = shlex.split(command)
        assert words[:2] == ["ostler", "fleet"], command
        at = words.index("--") if "--" in words else len(words)
        known = [] if "--known-hosts" in words else ["--known-hosts", str(self.bed.folder / "known_hosts")]
        place = [] if "-i" in words else ["-i", str(self.inventory)]
        yes = [] if words[2] in ("status", "logs") or "--yes" in words else ["--yes"]
        window = ["--window", "2s"] if words[2] == "update" else []
        return self.cli(*words[1:at], *place, *known, *yes, *window, *words[at:], code=code)

    # --- releases ---

    def build(self, *platforms: str) -> Release:
        """A release of this checkout. Raises Unable where it cannot be had here."""
        words = [word for one in platforms for word in ("--platform", one)]
        built = self.cli("release", "build", "--source", ROOT, "--json", *words, timeout=600)
        if "could not be fetched" in built.stderr:
            raise Unable(f"no release can be built here: {built.stderr.strip()}")
        assert built.returncode == 0, built.stderr
        self.first = ReleaseStore(self.store).find(json.loads(built.stdout)["release"])
        return self.first

    def variant(self, changes: Mapping[str, tuple[str, str]], *, older_s: int = 0) -> str:
        """The id of a release that differs from the first one so, of a commit that is so much older; made once."""
        what = repr((changes, older_s))
        if what not in self._variants:
            keys = open_keys(self.folder / "data/ostler/release-keys")
            self._variants[what] = variants.variant(self.first, self.store, keys, changes, older_s=older_s).release
        return self._variants[what]

    def good(self, word: str) -> str:
        """A good release of that name."""
        return self.variant({variants.NODE: (variants.MAIN, variants.MAIN + f"    # {word}\n")})

    # --- hosts ---

    def know(self, *, node: Mapping[str, object] | None = None, **more: dict[str, object]) -> None:
        """Write the inventory anew, as the testbed has it: sections of all nodes' configurations, and `more` of single hosts."""
        more = {name.replace("_", "-"): deepcopy(said) for name, said in more.items()}
        hosts = yaml.safe_load((self.bed.folder / "inventory.yml").read_text())["hosts"]
        for name, said in hosts.items():
            newer = self.bed.hosts[name].release != image.own_release()
            own = {**NODE, **(NO_BWRAP if newer else {}), **(node or {})}
            own_vars = more.get(name, {}).pop("vars", {})
            own |= own_vars.pop("node", {})
            said |= {"vars": {"node": own, **own_vars}, **more.get(name, {})}
        self.inventory.write_text(yaml.safe_dump({"hosts": hosts}, sort_keys=False))

    def install(self, *args: object, host: str = "", code: int | None = 0) -> Done:
        """`ostler fleet install` of what these hosts have in force; of the first release, where they are bare. What is returned was said
        of the last of these releases."""
        there: dict[str, list[str]] = {}
        for name in host.split(",") if host else self.bed.hosts:
            there.setdefault(self.in_force(name) or self.first.release, []).append(name)
        for release, names in there.items():
            words = ("--release", release, "--allowlist", self.folder / "allow", *args)
            done = self.fleet("install", *words, host=host if len(there) == 1 else ",".join(names), code=code)
        return done

    def settle(self) -> None:
        """The inventory as the testbed has it, on all hosts, each with its release."""
        self.know()
        self.install("--yes")
        self.good_again(*self.bed.hosts)

    def ask(self, name: str, verb: str, *args: str, more: bytes = b"") -> dict[str, object]:
        """The host program's answer, past the network and sshd."""
        program = bundle.program()
        done = subprocess.run(
            ["podman", "exec", "-i", self.bed.hosts[name].container, *bundle.command(len(program), verb, *args)],
            input=program + more, capture_output=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (name, verb, done.stdout, done.stderr)
        return json.loads(done.stdout)

    def facts(self, name: str) -> dict[str, object]:
        """What a host says of itself."""
        return self.ask(name, "facts")

    def health(self, name: str) -> dict[str, object]:
        """What its daemon says of itself; nothing while it does not answer."""
        return self.facts(name)["health"] or {}

    def in_force(self, name: str) -> str:
        """The release that a host has; nothing where it is bare."""
        return Path(self.bed.hosts[name].exec("readlink", "/opt/ostler/current", check=False).stdout.strip()).name

    def config(self, name: str) -> str:
        """The configuration that a host has."""
        return self.bed.hosts[name].exec("cat", "/etc/ostler/node.yaml").stdout

    def good_again(self, *names: str) -> None:
        """Wait until the daemons of these hosts run the release in force and can run jobs, and no update is open."""
        for name in names:
            until(lambda name=name: _is_good(self.facts(name)), timeout=120, what=f"{name} is good")

    def put(self, name: str, release: str) -> str:
        """Bring a release to a host and leave it lying there, past the network and sshd; its id."""
        found = ReleaseStore(self.store).find(release)
        facts = self.facts(name)
        content = for_platform(found.bundle, f"{facts['abi']}-{facts['arch']}")
        self.ask(name, "install", "--digest", found.manifest.digest, more=content)
        return release

    # --- jobs ---

    def submit(self, script: str, **fields: object) -> str:
        """A shell's job; its id."""
        return self.give({"command": "sh", "args": ["-c", script], **fields})

    def ran(self, manifest: Mapping[str, object]) -> str:
        """What a job wrote that ended well."""
        job_id = self.give(manifest)
        ended = self.wait(job_id)
        assert ended["state"] == "done", ended["failure"]
        return self.cli("job", "logs", job_id, code=0).stdout

    def give(self, manifest: Mapping[str, object]) -> str:
        """Any job; its id."""
        file = self.folder / "job.yaml"
        file.write_text(yaml.safe_dump(dict(manifest)))
        return json.loads(self.cli("job", "submit", file, "--json", code=0).stdout)["items"][0]["job_id"]

    def job(self, job_id: str) -> dict[str, object]:
        """What the coordinator knows of it."""
        return json.loads(self.cli("job", "show", job_id, "--json", code=0).stdout)

    def node(self, name: str) -> dict[str, object]:
        """What the coordinator knows of a host's node."""
        return json.loads(self.cli("node", "show", name, "--json", code=0).stdout)

    def wait(self, job_id: str, *states: str) -> dict[str, object]:
        """Until it is in one of these states; without any, until it is over."""
        states = states or ("done", "failed", "cancelled", "expired")
        return until(lambda: (job := self.job(job_id))["state"] in states and job, timeout=90, what=f"{job_id} {states}")

    def sleeper(self, name: str) -> tuple[str, list[str]]:
        """A job that runs on this host until it is cancelled: its id, and its process there."""
        file = self.folder / "sleep.yaml"
        file.write_text(yaml.safe_dump({"command": "sleep", "args": ["900"], "timeout_s": 2000, "requirements": {"node": name}}))
        job = self.cli("job", "submit", file, code=0).stdout.split()[0]
        return job, until(lambda: self.pids(name), timeout=60, what=f"the job on {name}")

    def pids(self, name: str) -> list[str]:
        """The processes of such jobs."""
        return self.bed.hosts[name].exec("pgrep", "-x", "sleep", check=False).stdout.split()

    def close(self) -> None:
        """The coordinator ends."""
        self.coordinator.terminate()
        self.coordinator.wait(60)

    def _start_coordinator(self) -> subprocess.Popen[bytes]:
        data, settings = self.folder / "coordinator", self.folder / "coordinator.yaml"
        settings.write_text(f"allow_insecure_listen: true\nlisten_host: {self.bed.gateway}\nlisten_port: 0\n")
        log = self.folder / "coordinator.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [OSTLER, "coordinator", "--data", data, "--config", settings], stdout=file, stderr=file, env=self.env
            )
        found = until(lambda: re.search(r"^ready (\S+)", log.read_text(), re.MULTILINE), timeout=60, what="a coordinator")
        self.url = found[1]
        self.admin = (data / "admin.token").read_text().strip()
        self.env |= {"OSTLER_URL": self.url, "OSTLER_TOKEN": self.admin}
        return process


class Rollout:
    """What a command with `--json` told: the events, and how each host ended."""

    def __init__(self, done: Done) -> None:
        assert done.stdout, done.stderr
        *events, last = map(json.loads, done.stdout.splitlines())
        self.code, self.events, self.halted, self.text = done.returncode, events, last["halted"], done.stdout + done.stderr
        self.ends = {name: one["ended"] for name, one in last["hosts"].items()}
        self.reasons = {name: one["reason"] for name, one in last["hosts"].items()}

    def details(self, host: str) -> str:
        """What was more than a line."""
        return "\n".join(one["detail"] for one in self.events if one["host"] == host and one["detail"])


def here(minor: int = 11) -> str:
    """A platform of this machine's kind."""
    return f"cp3{minor}-{platform.machine()}"


def _is_good(facts: Mapping[str, object]) -> bool:
    health = facts["health"] or {}
    return (
        facts["update"] is None and health.get("self_check") == "ok" and bool(health.get("session"))
        and health.get("release") == facts["current"]
    )  # fmt: skip
