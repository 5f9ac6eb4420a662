"""What `ostler doctor` looks at: this host, this user, the way to the coordinator; each finding with what mends it."""

import contextlib
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from ostler.assembly.endpoint import HINT, Endpoint, look_for_endpoint
from ostler.cli import output
from ostler.model.errors import OstlerError
from ostler.model.sandbox import BUILT_IN, SandboxAbilities

OK, WARN, FAIL = "ok", "warn", "fail"
LOW_DISK_MB, NO_DISK_MB = 2048, 256
SKEW_WARN_S, SKEW_FAIL_S = 5.0, 60.0
_PATIENCE_S = 5.0
_REFUSED = (401, 403)  # by a coordinator that is alive


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: `state` is ok, warn or fail; `mend` is the command or setting that helps."""

    name: str
    state: str
    text: str
    mend: str | None = None


def findings() -> list[Finding]:
    """All looks, one after the other."""
    return [finding for look in LOOKS for finding in _safely(look)]


def _safely(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A look that breaks is a finding, and the others go on."""
    try:
        yield from look()
    except Exception as exc:
        yield Finding(look.__name__.removeprefix("look_at_"), FAIL, f"could not be looked at: {type(exc).__name__}: {exc}")


def look_at_python() -> Iterator[Finding]:
    """The interpreter that runs Ostler."""
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield Finding("python", OK if good else FAIL, f"{version} ({sys.executable})", "install Python 3.11 or newer")


def look_at_sandbox() -> Iterator[Finding]:
    """The levels that are really there, tried."""
    from ostler.node.sandbox import abilities, observe

    with tempfile.TemporaryDirectory(prefix="ostler-doctor-") as place:
        Path(place).chmod(0o711)
        yield from judge_sandbox(abilities(observe(Path(place) / "sandbox")))


def judge_sandbox(found: SandboxAbilities) -> Iterator[Finding]:
    """Findings about sandboxes, namespaces and control groups."""
    lacking = {one.level: one for one in found.missing}
    if "bwrap" in found.levels:
        yield Finding("bwrap", OK, "namespaces work" if found.bwrap == BUILT_IN else f"bubblewrap {found.bwrap} works")
    else:
        why = lacking.get("bwrap")
        text = (why.reason if why else "does not work") + "; nodes here need `sandbox: {level: process}`, a weaker one"
        yield Finding("bwrap", FAIL, text, why.mend if why else None)
    if "process" not in found.levels:
        why = lacking.get("process")
        yield Finding("seccomp", FAIL, why.reason if why else "is missing", why.mend if why else None)
    else:
        landlock = f", landlock ABI {found.landlock_abi}" if found.landlock_abi else ""
        yield Finding("seccomp", OK, f"system calls can be filtered{landlock}")
    yield Finding(
        "user namespaces",
        OK if found.userns else WARN,
        "can be made" if found.userns else "cannot be made by this user",
        "sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=15000",
    )
    yield judge_cgroup(found.cgroup, writable=os.access("/sys/fs/cgroup", os.W_OK))


def judge_cgroup(kind: str, *, writable: bool) -> Finding:
    """Whether the kernel's own accounting can limit memory here."""
    if kind == "none":
        return Finding(
            "cgroups", WARN, "none: memory limits are watched by the keeper instead", "mount -t cgroup2 none /sys/fs/cgroup"
        )
    if not writable:
        text = f"{kind}, not writable for this user: memory limits are watched by the keeper instead"
        return Finding("cgroups", WARN, text, "run the keeper as a systemd unit with Delegate=yes")
    return Finding("cgroups", OK, kind)


def look_at_disk() -> Iterator[Finding]:
    """Free space where `ostler up` keeps its data, and for temporary files."""
    from ostler.assembly.first_run import default_data

    for name, place in (("disk", default_data(os.environ)), ("tmp", Path(tempfile.gettempdir()))):
        there = next(one for one in (place, *place.parents) if one.exists())
        yield judge_disk(name, place, shutil.disk_usage(there).free)


def judge_disk(name: str, place: Path, free: int) -> Finding:
    """Enough, little or nothing; `free` in bytes."""
    free_mb = free // 2**20
    state = FAIL if free_mb < NO_DISK_MB else WARN if free_mb < LOW_DISK_MB else OK
    return Finding(
        name, state, f"{output.size(free)} free at {place}", "free space, or keep the data elsewhere: ostler up --data DIR"
    )


def look_at_ffmpeg() -> Iterator[Finding]:
    """What the allowlist of `ostler up` would name."""
    from ostler.assembly.first_run import find_ffmpeg

    found = find_ffmpeg()
    if found is None:
        yield Finding("ffmpeg", WARN, "is not here; only jobs that need it care", "apt-get install ffmpeg")
    else:
        yield Finding("ffmpeg", OK, str(found))


def look_at_gpu() -> Iterator[Finding]:
    """The tools through which a node sees GPUs."""
    tools = [tool for tool in ("nvidia-smi", "rocm-smi", "amd-smi") if shutil.which(tool)]
    devices = [str(one) for pattern in ("nvidia[0-9]*", "kfd") for one in sorted(Path("/dev").glob(pattern))]
    yield judge_gpu(tools, devices)


def judge_gpu(tools: list[str], devices: list[str]) -> Finding:
    """A device without its tools is worth a warning; no device at all is not."""
    if devices and not tools:
        return Finding("gpu", WARN, f"{', '.join(devices)} without nvidia-smi, rocm-smi or amd-smi", "install the driver's tools")
    if not devices:
        return Finding("gpu", OK, "no GPU here; this node would offer CPU slots alone")
    return Finding("gpu", OK, f"{', '.join(devices)} with {', '.join(tools)}")


def look_at_coordinator() -> Iterator[Finding]:
    """The profile, the way to the coordinator, its clock, and our token."""
    try:
        endpoint = look_for_endpoint()
    except OstlerError as exc:
        yield Finding("profile", FAIL, str(exc), exc.hint)
        return
    if endpoint is None:
        yield Finding("coordinator", WARN, "none is named", HINT)
        return
    yield Finding("profile", OK if endpoint.token else WARN, f"{endpoint.url}, named by {endpoint.origin}", "set OSTLER_TOKEN")
    yield from _reach(endpoint)


def _reach(endpoint: Endpoint) -> Iterator[Finding]:
    import httpx

    from ostler.cli.session import trust_in
    from ostler.protocol.exchange import root_of

    url, trust = root_of(endpoint.url), trust_in(endpoint)
    try:
        verify = trust.context if url.startswith("https:") else False
    except OstlerError as exc:
        yield Finding("coordinator", FAIL, exc.message, exc.hint)
        return

    def ask(path: str, *, token: str | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.get(f"{url}{path}", headers=headers, timeout=_PATIENCE_S, verify=verify)

    try:
        before = time.time()
        answer = ask("/readyz")
        took = time.time() - before
        is_ours = "ostler-version" in answer.headers
        if is_ours and answer.status_code in _REFUSED and endpoint.token:  # beyond loopback it tells those alone who have one
            answer = ask("/readyz", token=endpoint.token)
        asked = ask("/api/v1/nodes?limit=1", token=endpoint.token) if is_ours and endpoint.token else None
    except httpx.HTTPError as exc:
        usual = (str(exc) or type(exc).__name__, f"look whether it runs, and whether a firewall is between: curl {url}/readyz")
        why, mend = trust.explain(exc, url) or usual
        yield Finding("coordinator", FAIL, f"{url} does not answer: {why}", mend)
        return
    if not is_ours:
        yield Finding(
            "coordinator", FAIL, f"what answers at {url} is no coordinator", "set OSTLER_URL to a coordinator's address"
        )
        return
    state = OK if answer.status_code in {200, *_REFUSED} else FAIL
    yield Finding("coordinator", state, f"{url} answered {answer.status_code} in {took * 1000:.0f} ms", "look into its log")
    with contextlib.suppress(ValueError, TypeError):  # none, or one that a proxy made up without a zone
        yield judge_skew(parsedate_to_datetime(answer.headers.get("date")), datetime.fromtimestamp(before, UTC), took)
    if asked is not None:
        good = asked.status_code == 200
        yield Finding(
            "token", OK if good else FAIL, "is good" if good else f"was answered {asked.status_code}", "set OSTLER_TOKEN anew"
        )


def judge_skew(theirs: datetime, ours: datetime, took_s: float) -> Finding:
    """How far the clocks are apart; the other's came in whole seconds, somewhere within the time that the call took."""
    apart = (theirs - ours).total_seconds()
    skew = max(0.0, abs(apart) - 1.0 - took_s)
    state = FAIL if skew > SKEW_FAIL_S else WARN if skew > SKEW_WARN_S else OK
    text = (
        "agrees with the coordinator's"
        if state == OK
        else f"is {skew:.0f} s {'behind' if apart > 0 else 'ahead of'} the coordinator's"
    )
    return Finding("clock", state, text, "timedatectl set-ntp true")


def look_at_files() -> Iterator[Finding]:
    """Whether files with secrets are ours alone."""
    from ostler.assembly.first_run import default_data
    from ostler.assembly.profile import user_profile

    for path in (user_profile(os.environ), default_data(os.environ) / "admin.token"):
        if path.exists():
            facts = path.stat()
            yield judge_secret_file(path, facts.st_mode, ours=facts.st_uid == os.geteuid())


def judge_secret_file(path: Path, mode: int, *, ours: bool) -> Finding:
    """0600 and ours, or it failed."""
    if not ours:
        return Finding("secrets", FAIL, f"{path} belongs to someone else", f"chown $USER {path}")
    if stat.S_IMODE(mode) & 0o077:
        return Finding("secrets", FAIL, f"{path} is open to others (mode {stat.S_IMODE(mode):04o})", f"chmod 600 {path}")
    return Finding("secrets", OK, f"{path} is yours alone")


LOOKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    look_at_python,
    look_at_sandbox,
    look_at_disk,
    look_at_ffmpeg,
    look_at_gpu,
    look_at_files,
    look_at_coordinator,
)
