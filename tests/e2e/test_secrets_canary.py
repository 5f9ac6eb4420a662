"""The canary: secrets are planted everywhere they may legally be, work is done and parts are killed, and then everything is searched.

Whatever is found outside of the places that may hold it is a leak: files of the data directory (the database and its write-ahead log,
journals, logs, artifacts, workspaces), what commands and routes show, the command lines and environments of processes, core files.
"""

import base64
import gzip
import json
import re
import resource
import secrets
import shutil
import signal
import zlib
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from e2e.fleet import Fleet, until

TOKENS = re.compile(rb"ostler_(?:api|join|node)_[A-Za-z0-9_.-]{24,}")
WINDOW = 12  # bytes of a secret that nobody may find in one piece
MAY_HOLD = {
    "token": {"admin.token", "profile.yaml"},
    "ca": {"ca.key"},
    "keys/signing.key": {"keys/signing.key"},
    "keys/hmac.key": {"keys/hmac.key"},
    "keys/secrets.key": {"keys/secrets.key"},
}
ALLOW = {
    "sh": {
        "command": {"path": "/bin/sh"},
        "args": [{"match": ["-c", ".*"], "required": True, "allow_slash": True, "allow_colon": True, "allow_dash": True}],
        "env": ["TOKEN"],
    }
}
SETTINGS = {"OSTLER_COORDINATOR__WEBHOOKS__ALLOW_PRIVATE": "true"}
USES = [{"name": "canary", "env": "TOKEN"}, {"name": "chick", "file": "chick"}, {"name": "chick", "file": "again"}]
ALL = 'echo "out $TOKEN"; echo "err $TOKEN" >&2; cat "$OSTLER_SECRETS_DIR/chick"; '
SCRIPTS = {
    "whole": ALL
    + 'printf %s "$TOKEN" | base64; printf "a%s" "$TOKEN" | base64 -w0; printf %s "$TOKEN" | od -An -tx1 | tr -d " \\n"',
    "bytewise": 'printf %s "$TOKEN" | while IFS= read -r c; do echo "$c" | fold -w1 | tr -d "\\n"; done; '
    'i=1; while [ $i -le 60 ]; do printf %s "$TOKEN" | cut -c$i | tr -d "\\n"; i=$((i+1)); done',
    "borders": 'for n in 65515 65530 131050 262120 262140; do head -c $n /dev/zero | tr "\\0" x; printf %s "$TOKEN"; done',
    "fails": ALL + "exit 3",
    "crashes": ALL + "kill -SEGV $$",
}
WAITS = ALL + 'printf "%.20s" "$TOKEN"; until [ -e go ]; do sleep 0.1; done; printf "%s" "$TOKEN" | cut -c21-; ' + ALL


class Nest:
    """What must not be found, and the search for it."""

    def __init__(self, fleet, values):
        self.fleet = fleet
        self.needles = {}
        for name, value in values.items():
            raw = value.encode()
            forms = [raw, base64.b64encode(raw), base64.b64encode(b"a" + raw)[4:], raw.hex().encode()]
            windows = {form[at : at + WINDOW] for form in forms for at in range(0, len(form) - WINDOW + 1)}
            self.needles[name] = (re.compile(b"|".join(map(re.escape, sorted(windows)))), set())
        self.needles["token"] = (TOKENS, MAY_HOLD["token"])
        for name, needle in self._keys():
            self.needles[name] = (re.compile(b"|".join(map(re.escape, needle))), MAY_HOLD[name])

    def _keys(self):
        key = (self.fleet.data / "ca" / "ca.key").read_bytes()
        yield "ca", [line for line in key.splitlines() if b"-----" not in line]
        for path in (self.fleet.data / "keys").iterdir():
            raw = path.read_bytes()
            yield f"keys/{path.name}", [raw, base64.b64encode(raw).rstrip(b"="), raw.hex().encode()]

    def leaks(self, content, where):
        """What of it is found in some bytes, as sentences."""
        place = "/".join(Path(where).parts[-2:])
        for name, (pattern, allowed) in self.needles.items():
            if (found := pattern.search(content)) and place not in allowed and Path(where).name not in allowed:
                around = content[max(0, found.start() - 60) : found.end() + 30]
                yield f"{name} in {where} at {found.start()}: {around!r}"

    def on_disk(self):
        for path in self.fleet.data.rglob("*"):
            with suppress(FileNotFoundError):
                if path.is_file() and not path.is_symlink():
                    content = path.read_bytes()
                    yield from self.leaks(content, path)
                    if content.startswith(b"\x1f\x8b"):
                        with suppress(OSError, EOFError, zlib.error):
                            yield from self.leaks(gzip.decompress(content), f"{path} (unpacked)")
            assert not re.fullmatch(r"core(\.\d+)?", path.name), f"a core file: {path}"

    def in_processes(self):
        """Command lines of all, environments of all but the jobs' own."""
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                folder = Path(f"/proc/{process.pid}")
                line, environ = ((folder / name).read_bytes() for name in ("cmdline", "environ"))
                ours = str(self.fleet.data).encode() in environ + line
                where = f"the command line of {process.pid} {process.name()}"
                # Tokens are known by their form alone, and what else runs on this machine may show its own.
                yield from (leak for leak in self.leaks(line, where) if ours or not leak.startswith("token"))
                if ours and b"OSTLER_ATTEMPT_KEY=" not in environ and b"OSTLER_TOKEN=" not in environ:
                    yield from self.leaks(environ, f"the environment of {process.pid} {process.name()}")

    def in_answers(self, jobs):
        for path in ("/jobs", "/nodes", "/events", "/audit", "/tokens", "/secrets", "/webhooks", "/openapi.json"):
            yield from self.leaks(self.fleet.get(path).content, path)
        for job in jobs:
            for path in ("", "/explain", "/artifacts"):
                yield from self.leaks(self.fleet.get(f"/jobs/{job}{path}").content, f"/jobs/{job}{path}")
            for stream in ("stdout", "stderr"):
                log = self.fleet.get(f"/jobs/{job}/logs", stream=stream)
                yield from self.leaks(log.content, f"{stream} of {job}")
        for words in (
            ("job", "list"),
            ("job", "show", jobs[0]),
            ("secret", "list"),
            ("events",),
            ("audit", "list"),
            ("node", "list"),
        ):
            shown = self.fleet.cli(*words)
            yield from self.leaks((shown.stdout + shown.stderr).encode(), f"ostler {' '.join(words)}")
        for config in self.fleet.data.glob("*.yaml"):
            if config.name != "profile.yaml":
                shown = self.fleet.cli("config", "show", "--origin", config)
                yield from self.leaks((shown.stdout + shown.stderr).encode(), f"ostler config show {config.name}")


@pytest.fixture(scope="module", params=["process", "bwrap"])
def nest(request, tmp_path_factory):
    if request.param == "bwrap" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed and cannot be installed without root")
    # Random, with what encodings change, and long enough for its parts to be nobody else's.
    values = {name: f'{name}+/={secrets.token_hex(12)}&"{secrets.token_urlsafe(18)}' for name in ("canary", "chick")}
    _, most = limits = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))
    fleet = Fleet(tmp_path_factory.mktemp("canary") / "data", level=request.param, allow=ALLOW, settings=SETTINGS)
    try:
        with fleet:
            resource.setrlimit(resource.RLIMIT_CORE, limits)
            assert fleet.cli("ca", "init", "--dir", fleet.data / "ca").returncode == 0
            for name in ("canary", "chick"):
                shared = ["--shared"] if name == "chick" else []
                assert fleet.cli("secret", "set", name, *shared, stdin=f"{values[name]}\n").returncode == 0
            hook = fleet.cli("webhook", "add", "https://127.0.0.1:9/nowhere", "--json")
            assert hook.returncode == 0, hook.stderr
            values["webhook"] = json.loads(hook.stdout)["secret"].rpartition("_")[2]
            for kind in (("--join",), ("--role", "submitter", "--name", "ann")):
                assert fleet.cli("token", "create", *kind).returncode == 0
            yield Nest(fleet, values)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, limits)


def work_of(fleet, job):
    """Where a running job works."""
    found = [*fleet.data.rglob(f"{job}/work"), *fleet.data.rglob(f"{job}/attempt-*/work")]
    assert len(found) == 1, (found, fleet.job(job)["attempts"])
    return found[0]


def test_no_canary_is_heard(nest):
    fleet = nest.fleet
    assert list(nest.leaks(b"x" + next(iter(nest.needles)).encode() + b"+/=", "nowhere")) == []
    jobs = {
        name: fleet.submit({"command": "sh", "args": ["-c", script], "secrets": USES, "stdout": "kept", "retries": 0})
        for name, script in SCRIPTS.items()
    }
    for fail in (False, True):
        jobs[f"task{fail}"] = fleet.submit({"runner": "python", "task": "confide", "params": {"fail": fail}, "secrets": USES})
    waiting = {
        name: fleet.submit({"command": "sh", "args": ["-c", WAITS], "secrets": USES})
        for name in ("outlives", "aborted", "cancelled")
    }
    ended = {name: fleet.wait(job) for name, job in jobs.items()}
    codes = {name: view["failure"] and view["failure"]["code"] for name, view in ended.items()}
    expected = {"fails": "E_EXIT", "crashes": "E_SIGNAL", "taskTrue": "E_TASK"}
    assert codes == {name: expected.get(name) for name in codes}, codes
    for job in waiting.values():
        until(lambda job=job: fleet.job(job)["state"] == "running" and "out " in fleet.log(job), what=f"the first words of {job}")
    assert list(nest.in_processes()) == []
    assert list(nest.on_disk()) == []

    # The daemon dies, once by what would write a core, and the coordinator; the jobs go on talking meanwhile.
    daemon = fleet.processes()["node"]
    soft, _ = resource.prlimit(daemon.pid, resource.RLIMIT_CORE)
    assert soft == 0
    daemon.send_signal(signal.SIGABRT)
    until(lambda: not daemon.is_running() or daemon.status() == psutil.STATUS_ZOMBIE, what="the end of the daemon")
    (work_of(fleet, waiting["aborted"]) / "go").touch()
    fleet.kill("coordinator")
    until(lambda: {"node", "coordinator"} <= set(fleet.processes()), what="their return")
    assert fleet.wait(waiting["aborted"])["state"] == "done"
    fleet.kill("node")
    (work_of(fleet, waiting["outlives"]) / "go").touch()
    assert fleet.wait(waiting["outlives"])["state"] == "done"
    assert fleet.cli("job", "cancel", waiting["cancelled"]).returncode == 0
    assert fleet.wait(waiting["cancelled"])["state"] == "cancelled"

    # A workspace goes over as a whole.
    fetched = fleet.cli("job", "debug", jobs["fails"], cwd=fleet.data)
    assert fetched.returncode == 0, fetched.stderr

    assert list(nest.on_disk()) == []
    assert list(nest.in_processes()) == []
    assert list(nest.in_answers([*jobs.values(), *waiting.values()])) == []
    until(lambda: not boxes(fleet), what="the wiping of what was kept in memory")
    check_what_was_printed(fleet)


def check_what_was_printed(fleet):
    """The search is worth something only if the jobs' words arrived, as long as they were."""
    listed = fleet.get("/jobs", limit=100).json()["items"]
    logs = {one["job_id"]: fleet.log(one["job_id"]) for one in listed}
    assert sum("out ***" in log for log in logs.values()) >= 6
    long = next(log for log in logs.values() if len(log) > 700_000)
    length = (len(long) - 65515 - 65530 - 131050 - 262120 - 262140) // 5
    assert long == "".join("x" * n + "*" * length for n in (65515, 65530, 131050, 262120, 262140))


def boxes(fleet):
    """What is kept in memory for attempts of this node."""
    from ostler.node.vault import Vault

    state = next(fleet.data.rglob("journal.db")).parent
    root = Vault(state)._open_root()
    return [box.name for box in root.iterdir()] if root is not None else []
