"""What is asked of the host program, as steps; and its answers as values."""

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TypeVar

import msgspec

from ostler.fleet.host import bundle
from ostler.fleet.node_config import Own
from ostler.fleet.rollout.preflight import Facts
from ostler.fleet.ssh.step import Outcome, Question, Step
from ostler.model.errors import Rejected

ANSWERS = (0, 1)
T = TypeVar("T")


class HostRefused(Rejected):
    """The host program does not do it, and changed nothing. `code` is its own: locked, busy, missing, unfit, disk, unit or usage; `details`
    are lines that say more than the message."""

    code = "host_refused"

    def __init__(self, code: str, message: str, *, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.details = details


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What the steps of a rollout answer, each some of it: how an update stands, what of it the host has `seen` last, whether a daemon has
    `resumed` under it; what failed in a switch, with lines that say more, and what it warns of; what was `altered` of a release."""

    state: str | None = None
    reason: str | None = None
    journal: str | None = None
    seen: str = ""
    resumed: bool | None = None
    failure: str | None = None
    details: str | None = None
    warnings: tuple[str, ...] = ()
    altered: tuple[str, ...] = ()


class HostSteps:
    """Builds steps around one copy of the host program."""

    def __init__(self) -> None:
        self._program = bundle.program()

    def ask(
        self,
        title: str,
        verb: str,
        *arguments: str,
        does: str = "",
        stdin: bytes = b"",
        timeout_s: float = 30.0,
        secret: bool = False,
    ) -> Step:
        """One verb as a step; `stdin` is what the verb reads."""
        start = tuple(bundle.command(len(self._program), "serve"))
        return Step(
            title=title,
            does=does,
            argv=tuple(bundle.command(len(self._program), verb, *arguments)),
            stdin=(self._program, stdin),
            timeout=timedelta(seconds=timeout_s),
            codes=ANSWERS,
            secret=secret,
            question=Question(start=start, program=self._program, words=(verb, *arguments), stdin=stdin),
        )

    def facts(self, services: list[dict[str, Any]], *, with_config: bool = False, thorough: bool = False) -> Step:
        """What the host is like; changes nothing."""
        words = [*(["--with-config"] if with_config else []), *(["--thorough"] if thorough else [])]
        return self.ask("look at the host", "facts", "--services", json.dumps(services), *words)

    def lock(self, rollout: str, owner: str, message: str) -> Step:
        """Take the host's deploy lock, or take it again."""
        return self.ask("take the lock", "lock", "--rollout", rollout, "--owner", owner, "--message", message,
                        does="nobody else's update begins there meanwhile")  # fmt: skip

    def unlock(self, rollout: str) -> Step:
        """Give it back."""
        return self.ask("give the lock back", "unlock", "--rollout", rollout)

    def switch(self, rollout: str, release: str, *, window_s: float, own: Own | None) -> Step:
        """Drain, switch, restart; the host's watcher is armed before. Without `own`, the configuration stays as it is."""
        words = ["--rollout", rollout, "--release", release, "--window", f"{window_s:g}"]
        told = b""
        if own is not None:
            words += ["--told", "-"]
            told = json.dumps({"config": own.config, "files": dict(own.files)}).encode()
        what = "release and units" if own is None else "release, units and configuration"
        does = f"no new work; {what} are exchanged together, and the daemon is restarted. Jobs go on; the host's watcher is armed"
        return self.ask("switch and restart", "switch", *words, does=does, stdin=told, timeout_s=240.0)

    def install(self, digest: str, bundle: bytes) -> Step:
        """Verify a bundle, whose manifest has this sha256, and unpack it beside the others."""
        return self.ask("upload and verify", "install", "--digest", digest, stdin=bundle, timeout_s=300.0,
                        does="the release comes to lie beside the others, once its signature and its files' hashes are good")  # fmt: skip

    def altered(self, release: str) -> Step:
        """Compare a release that is there with its manifest."""
        return self.ask("compare what is there", "altered", "--release", release,
                        does="the release is on the host already; it is sent again where anybody has altered it")  # fmt: skip

    def set_up(
        self, release: str, *, config: str | None, token: str | None, files: Mapping[str, str], wait_s: float = 60.0
    ) -> Step:
        """Make a bare host that has the release a node: user, directories, configuration, units, enrolment."""
        told = json.dumps({"config": config, "token": token, "files": dict(files)}).encode()
        words = ("--release", release, "--wait", f"{wait_s:g}")
        enrol = ", enrolment with a join token" if token is not None else ""
        return self.ask(
            "set up and start", "set-up", *words, stdin=told, timeout_s=240.0 + wait_s, secret=token is not None,
            does=f"user, directories, configuration, units{enrol}; then the daemon must run a job and reach the coordinator",
        )  # fmt: skip

    def uninstall(self, *, keep_state: bool, end_jobs: bool) -> Step:
        """Stop everything and take back what was made."""
        words = [*(["--keep-state"] if keep_state else []), *(["--end-jobs"] if end_jobs else [])]
        return self.ask("stop and remove", "uninstall", *words, timeout_s=300.0,
                        does="daemon and keeper end, what was made is removed" + (", but for user and state" if keep_state else "")
                        + "; what was there before is put back")  # fmt: skip

    def firewall(self, port: int, *, ssh_port: int, rules: str) -> Step:
        """Let these rules of nftables guard the daemon's health port, now and after each boot."""
        words = ("--port", str(port), "--ssh-port", str(ssh_port))
        does = f"rules for port {port} alone, now and after each boot"
        return self.ask("guard the health port", "firewall", *words, does=does, stdin=rules.encode())

    def no_firewall(self) -> Step:
        """Take such rules away."""
        return self.ask("leave the health port unguarded", "firewall", "--remove", does="the rules and their unit go")

    def rotate_key(self, *, wait_s: float = 60.0) -> Step:
        """A new key for the node, proven by a session of its daemon."""
        return self.ask("replace the key", "rotate-key", "--wait", f"{wait_s:g}", timeout_s=180.0 + wait_s,
                        does="the node makes a new one, the daemon is restarted with it, and the old one is forgotten")  # fmt: skip

    def prune(self, *, keep: int) -> Step:
        """Remove old releases, never one that runs or could be gone back to."""
        return self.ask("remove old releases", "prune", "--keep", str(keep),
                        does=f"the {keep} newest stay, and what is in force, could be gone back to or runs")  # fmt: skip

    def observe(self, rollout: str, *, seen: str = "", wait_s: float = 0.0) -> Step:
        """How the watcher judges. The host answers as soon as that is not what was `seen` before, after `wait_s` at the latest."""
        words = ["--rollout", rollout, *(["--wait", f"{wait_s:g}", "--seen", seen] if wait_s else [])]
        return self.ask("watch", "observe", *words, timeout_s=30.0 + wait_s,
                        does="until host and coordinator find the release good, or the host has gone back by itself")  # fmt: skip

    def go_back(self, rollout: str, reason: str) -> Step:
        """Put back what was in force before."""
        return self.ask("go back", "go-back", "--rollout", rollout, "--reason", reason, timeout_s=180.0)


def answer(outcome: Outcome) -> dict[str, Any]:
    """The host program's answer. Raises HostRefused."""
    try:
        said = json.loads(outcome.stdout)
    except ValueError:
        words = (outcome.stderr or outcome.stdout).decode(errors="replace").strip()[-400:]
        raise HostRefused("usage", f"the host program did not answer: {words or f'exit code {outcome.code}'}") from None
    if not isinstance(said, dict):
        raise HostRefused("usage", "the host program answered with something else than an object")
    if "error" in said:
        raise HostRefused(str(said["error"]), str(said.get("message", "no reason given")), details=str(said.get("details", "")))
    return said


def read_facts(outcome: Outcome) -> Facts:
    """The answer of `facts`. Raises HostRefused."""
    return _read(outcome, Facts)


def read_said(outcome: Outcome) -> Said:
    """The answer of a rollout's step. Raises HostRefused."""
    return _read(outcome, Said)


def _read(outcome: Outcome, kind: type[T]) -> T:
    try:
        return msgspec.convert(answer(outcome), kind)
    except msgspec.ValidationError as exc:
        raise HostRefused("usage", f"the host's answer is not understood: {exc}") from exc
