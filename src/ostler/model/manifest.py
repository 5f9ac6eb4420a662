"""The manifest: what a person asks for, as an immutable value (source: section 8 of the coordinator contract).

The same dataclasses are the wire shape. `__pydantic_config__` is a plain mapping that the validator of human input reads: there
unknown keys are mistakes. Machines decode leniently: a field of a later release is ignored.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from ostler.model.array import PLACE
from ostler.model.calls import Code, task_problems
from ostler.model.dependencies import STRICT, Dependency, Otherwise, Until
from ostler.model.enumeration import Word
from ostler.model.errors import Problem
from ostler.model.failures import CODES, FailureCode, Retry
from ostler.model.network import MAX_RULES, rule_problem
from ostler.model.sandbox import SandboxLevel

JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
LABEL_KEY = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_PRIORITY = 1000
MAX_ARRAY = 10_000
MAX_DEPENDENCIES = 1000
MAX_JOB_ID = 128
MAX_AHEAD = timedelta(days=365)
MAX_ARGS_BYTES = 128 * 1024
MAX_SECRETS = 32
MANY = 100  # mistakes of a kind that are told
DEFAULT_TIMEOUT_S = 3600
SERVICE_VERBS = ("start", "stop", "restart", "status")
DEFAULT_POOL = "default"  # of nodes whose join token named none, and of jobs that name neither a pool nor a node
# A secret in one of these could make a program run other code, say what is not so, or come into an argument of the sandbox's.
_NO_SECRETS_ENV = re.compile(
    r"((LD|DYLD|GLIBC|MALLOC|OSTLER)_.*|NIS_PATH|GCONV_PATH|NLSPATH|GETCONF_DIR|LOCPATH|TZDIR|TMPDIR|HOSTALIASES|LOCALDOMAIN"
    r"|RES_OPTIONS|RESOLV_HOST_CONF|PATH|HOME|LANG)"
)
_EMPTY: Mapping[str, Any] = MappingProxyType({})


class Runner(Word):
    """How a job is executed. A node advertises those that it offers."""

    CLI = "cli"
    PYTHON = "python"
    SCRIPT = "script"
    CONTAINER = "container"
    SERVICE = "service"
    AGENT = "agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputUrl:
    """One input fetched by the node over http(s). `name` defaults to the last path segment of the URL."""

    __pydantic_config__ = STRICT

    url: str
    name: str | None = None
    sha256: str | None = None
    max_mb: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One input that the submitter uploaded before: a blob by its sha256 (hex); `size` in bytes."""

    __pydantic_config__ = STRICT

    name: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InputArtifact:
    """One input that another job delivers as the artifact `path`. `name` defaults to the last segment of that path."""

    __pydantic_config__ = STRICT

    job: str
    path: str
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All inputs; each becomes `input/NAME` in the workspace and is visible as NAME in the working directory."""

    __pydantic_config__ = STRICT

    urls: tuple[str | InputUrl, ...] = ()
    inline: dict[str, str] = field(default_factory=dict)
    files: tuple[InputFile, ...] = ()
    artifacts: tuple[InputArtifact, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.urls or self.inline or self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One output file, relative to the working directory or to `output/`; absent is a failure unless `optional`.

    With `always` it is also delivered from an attempt that failed by itself, where it is there.
    """

    __pydantic_config__ = STRICT

    path: str
    type: str = "application/octet-stream"
    max_mb: int = 1024
    optional: bool = False
    always: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretUse:
    """One secret of the coordinator's that the job gets, by its name: in the environment variable `env`, or as the `file` of that
    name in the directory that OSTLER_SECRETS_DIR names (on a memory file system, mode 0400).
    """

    __pydantic_config__ = STRICT

    name: str
    env: str | None = None
    file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What a node must offer. Sizes in MB (2**20 bytes); `gpu: true` means at least one GPU.

    A job runs in the `pool` that it names; one that names neither a pool nor a `node` runs in the pool `default`.
    """

    __pydantic_config__ = STRICT

    gpu: bool = False
    gpus: int = 0
    vram_mb: int = 0
    cpu_threads: int = 0
    memory_mb: int = 0
    disk_mb: int = 0
    tags: tuple[str, ...] = ()
    node: str | None = None
    pool: str | None = None

    @property
    def gpu_count(self) -> int:
        """How many GPUs the job occupies."""
        return max(self.gpus, 1 if self.gpu or self.vram_mb else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and when a failed attempt is tried again.

    `max` further attempts; the n-th waits `backoff_s * 2**(n-1)`, at most `max_backoff_s`, ± 10 % jitter. `codes` narrows or
    widens which failures count; codes that never make sense to retry stay so.
    """

    __pydantic_config__ = STRICT

    max: int = 3
    backoff_s: float = 1.0
    max_backoff_s: float = 300.0
    codes: tuple[FailureCode, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the attempt may use. `sandbox` is the least level it accepts; sizes in MB, `cpu_pct` in hundredths of a core.

    `network` lists the hosts that it may reach through the node's gate, as `HOST[:PORT]` (443 by default): names, `*.NAME`,
    `*`, addresses, ranges. It needs the level bwrap, and the node's own `network.allow` must grant each. Without it a job in
    bwrap has no network.
    """

    __pydantic_config__ = STRICT

    sandbox: SandboxLevel | None = None
    network: tuple[str, ...] = ()
    memory_mb: int | None = None
    address_space_mb: int | None = None
    disk_mb: int | None = None
    cpu_pct: int | None = None
    processes: int | None = None
    open_files: int | None = None
    log_mb: int | None = None
    grace_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One job as asked for. Defaults are what a job gets that says nothing.

    `array: N` makes N jobs of it, in whose `args`, `params`, inputs, `artifacts` and `stdout` the text `{index}` is the job's number.
    Each of them has that number in `array_index` and N in `array_count`, which the coordinator alone sets.

    `task: NAME` runs `run(**params)` of a module that the node trusts. `task: NAME:FUNCTION` calls one of its public functions:
    `params` are then `{args: [...], kwargs: {...}}`, or `{batch: [...]}` of those for a list of results; `results: pickle` in them lets
    a result that is no data become the artifact `result.pkl`. `code` is such a call by value.
    """

    __pydantic_config__ = STRICT

    runner: Runner = Runner.CLI
    job_id: str | None = None
    command: str | None = None
    args: tuple[str, ...] = ()
    task: str | None = None
    code: Code | None = None
    params: dict[str, Any] = field(default_factory=dict)
    requirements: Requirements = Requirements()
    timeout_s: float = DEFAULT_TIMEOUT_S
    input: Inputs = Inputs()
    artifacts: tuple[Artifact, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    priority: int = 0
    queue: str = "default"
    retries: int | RetryPolicy | None = None
    ttl_s: float | None = None
    not_before: str | None = None
    depends_on: tuple[str | Dependency, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    policy: Policy = Policy()
    secrets: tuple[SecretUse, ...] = ()
    stdout: str | None = None
    array: int | None = None
    array_index: int | None = None
    array_count: int | None = None

    def named(self, job_id: str) -> "Manifest":
        """The same under this id. `dataclasses.replace` takes five times as long, and each submission does it."""
        return Manifest(**dict(zip(_NAMES, _VALUES(self), strict=True), job_id=job_id))

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        """What it depends on, each in its long form."""
        return tuple(Dependency(job=one) if isinstance(one, str) else one for one in self.depends_on)

    @property
    def start(self) -> datetime | None:
        """The time before which no node gets the job."""
        return None if self.not_before is None else datetime.fromisoformat(self.not_before)

    @property
    def timeout(self) -> timedelta:
        """The wall-clock limit of one attempt."""
        return timedelta(seconds=self.timeout_s)

    @property
    def least_sandbox(self) -> SandboxLevel | None:
        """The least level that the job runs at: what it asks for, and bwrap where its network is to be gated."""
        asked = self.policy.sandbox
        if self.policy.network and (asked is None or not asked.at_least(SandboxLevel.BWRAP)):
            return SandboxLevel.BWRAP
        return asked


def artifact_name(artifact: InputArtifact) -> str:
    """The name under which a job finds another one's artifact."""
    return artifact.path.rpartition("/")[2] if artifact.name is None else artifact.name


_NAMES = tuple(one.name for one in fields(Manifest))
_VALUES = attrgetter(*_NAMES)


def with_inputs(manifest: Manifest, inputs: Sequence[InputFile]) -> tuple[Manifest, list[str]]:
    """A manifest with the artifacts that it names as inputs, as the coordinator found them; and the names of those that lack."""
    if not manifest.input.artifacts:
        return manifest, []
    given = {one.name for one in inputs}
    lacking = [name for name in map(artifact_name, manifest.input.artifacts) if name not in given]
    return replace(manifest, input=replace(manifest.input, files=(*manifest.input.files, *inputs))), lacking


def unsafe_name(name: str) -> str | None:
    """Why `name` cannot be a file of a workspace, or None. Holds for inputs, outputs and `stdout`."""
    if not name or name in {".", ".."}:
        return "is empty or a dot"
    if not is_unicode(name):
        return "is not valid Unicode"
    if len(name.encode()) > 255:
        return "is longer than 255 bytes"
    if "/" in name or "\\" in name:
        return "holds a path separator; name a file, not a path"
    if name.startswith("-"):
        return "starts with '-', which programs take for an option"
    if any(ord(c) < 32 or ord(c) == 127 for c in name):
        return "holds a control character"
    return None


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can say it: a lone surrogate, which stands for a byte that was none in an argument, cannot be sent."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def unsafe_path(path: str) -> str | None:
    """Why `path` cannot be a relative path inside a workspace, or None."""
    if path.startswith("/"):
        return "is absolute; give it relative to the working directory"
    if not is_unicode(path):
        return "is not valid Unicode"
    if len(path.encode()) > 1024:
        return "is longer than 1024 bytes"
    for part in path.split("/"):
        if part == "..":
            return "leaves the workspace"
        if why := unsafe_name(part):
            return why
    return None


def retry_policy(manifest: Manifest) -> RetryPolicy:
    """The policy in force: absent means 3 tries for the machine's failures; a number also covers the program's own."""
    asked = manifest.retries
    if asked is None:
        codes = tuple(code for code, info in CODES.items() if info.retry is Retry.ALWAYS)
        return RetryPolicy(codes=codes)
    return RetryPolicy(max=asked) if isinstance(asked, int) else asked


def problems_as_written(manifest: Manifest) -> list[Problem]:
    """Every mistake in a manifest that somebody submits, who may not set what the coordinator sets."""
    ours = {"array_index": manifest.array_index, "array_count": manifest.array_count}
    mistakes = [
        Problem(name, "is set by the coordinator alone; write `array: N` for N jobs") for name in ours if ours[name] is not None
    ]
    return problems(manifest) + mistakes


def problems_at(manifest: Manifest, now: datetime) -> Iterator[Problem]:
    """The mistakes in a good manifest's times, where it is submitted now."""
    start = manifest.start
    if start is None:
        return
    if start - now > MAX_AHEAD:
        yield Problem("not_before", f"{manifest.not_before} is more than a year ahead")
    elif manifest.ttl_s is not None and start >= now + timedelta(seconds=manifest.ttl_s):
        yield Problem(
            "ttl_s", f"{manifest.ttl_s:g} s count from now and are over before {manifest.not_before}, when the job may begin"
        )


def _dependency_problems(manifest: Manifest) -> Iterator[Problem]:
    if len(manifest.depends_on) > MAX_DEPENDENCIES:
        yield Problem("depends_on", f"are more than {MAX_DEPENDENCIES}; an array or a group stands for all its jobs")
        return
    seen: set[str] = set()
    for i, one in enumerate(manifest.dependencies):
        if not JOB_ID.fullmatch(one.job):
            yield Problem(f"depends_on[{i}]", f"{one.job[:80]!r} is not the id of a job, an array or a group")
        elif one.job in seen:
            yield Problem(f"depends_on[{i}]", f"{one.job} stands twice")
        if one.until is Until.DONE and one.otherwise is not Otherwise.CANCEL:
            yield Problem(f"depends_on[{i}].otherwise", "belongs to `until: success`: any end is as good as another here")
        seen.add(one.job)


def _moment_problems(manifest: Manifest) -> Iterator[Problem]:
    text = manifest.not_before
    if text is not None and not _is_moment(text):
        yield Problem("not_before", f"{text[:80]!r} is no time; write one with its offset from UTC, such as 2030-01-31T20:00:00Z")


def _is_moment(text: str) -> bool:
    try:
        return bool(MOMENT.fullmatch(text) and datetime.fromisoformat(text).astimezone(UTC))
    except (ValueError, OverflowError):  # the 31st of February, or an offset that leaves the calendar
        return False


def problems(manifest: Manifest) -> list[Problem]:  # noqa: PLR0912 - one flat list of rules, read top to bottom
    """Every mistake in a manifest whose types are right, of each kind the first ones; empty when it is good."""
    found: list[Problem] = []

    def bad(path: str, message: str) -> None:
        found.append(Problem(path, message))

    if manifest.job_id is not None and not JOB_ID.fullmatch(manifest.job_id):
        bad("job_id", "must be 1 to 128 letters, digits, '.', '_' or '-', starting with a letter or digit")
    match manifest.runner:
        case Runner.CLI:
            if not manifest.command:
                bad("command", "is missing: the cli runner needs the name of an allowlisted command")
            for name in ("task", "code"):
                if getattr(manifest, name) is not None:
                    bad(name, "belongs to the python runner; the cli runner takes `command` and `args`")
        case Runner.PYTHON:
            found.extend(islice(task_problems(manifest.task, manifest.code, manifest.params, manifest.requirements.tags), MANY))
            if manifest.command is not None or manifest.args:
                bad("command", "belongs to the cli runner; the python runner takes `task` and `params`")
        case Runner.SERVICE:
            found.extend(_service_problems(manifest))
        case other:
            bad("runner", f"{other.value!r} is not offered by this release; use cli, python or service")
    if not 0 < manifest.timeout_s <= 30 * 86400:
        bad("timeout_s", "must be more than 0 and at most 2592000 (30 days)")
    if manifest.ttl_s is not None and not 0 < manifest.ttl_s <= 365 * 86400:
        bad("ttl_s", "must be more than 0 and at most 31536000 (a year)")
    if abs(manifest.priority) > MAX_PRIORITY:
        bad("priority", f"must be from -{MAX_PRIORITY} to {MAX_PRIORITY}")
    if not NAME.fullmatch(manifest.queue):
        bad("queue", "must be 1 to 63 letters, digits, '.', '_' or '-'")
    if manifest.stdout is not None and (why := unsafe_name(manifest.stdout)):
        bad("stdout", f"{manifest.stdout!r} {why}")
    for rules in (
        _retry_problems, _command_problems, _moment_problems, _dependency_problems, _array_problems, _number_problems, _label_problems,
        _file_problems, _secret_problems,
    ):  # fmt: skip
        found.extend(islice(rules(manifest), MANY))
    return found


def _service_problems(manifest: Manifest) -> Iterator[Problem]:
    if not NAME.fullmatch(manifest.command or ""):
        yield Problem("command", "must be the name of a service: 1 to 63 letters, digits, '.', '_' or '-'")
    if len(manifest.args) != 1 or manifest.args[0] not in SERVICE_VERBS:
        yield Problem("args", f"must be one of {', '.join(SERVICE_VERBS)}")
    for name in ("task", "code", "params", "input", "artifacts", "env", "secrets", "stdout", "array"):
        if getattr(manifest, name):
            yield Problem(name, "is nothing that a command to a service takes")
    need = manifest.requirements
    if (need.gpu_count, need.cpu_threads, need.memory_mb, need.disk_mb) != (0, 0, 0, 0):
        yield Problem(
            "requirements", "of a command to a service are `node`, `pool` and `tags` alone: it takes nothing of its node"
        )


def _retry_problems(manifest: Manifest) -> Iterator[Problem]:
    policy = retry_policy(manifest)
    if not 0 <= policy.max <= 100:
        yield Problem("retries", "must be from 0 to 100")
    if not 0 <= policy.backoff_s <= policy.max_backoff_s <= 86400:
        yield Problem("retries.backoff_s", "must be from 0 to max_backoff_s, and that at most 86400")
    for code in policy.codes or ():
        if CODES[code].retry is Retry.NEVER:
            yield Problem("retries.codes", f"{code.value} is never retried: the same thing would happen again")


def _command_problems(manifest: Manifest) -> Iterator[Problem]:
    command = manifest.command or ""
    if len(command) > 255 or "\0" in command:
        yield Problem("command", "must be at most 255 characters without NUL")
    if not is_unicode(command):
        yield Problem("command", f"{command[:80]!r} is not valid Unicode")
    if sum(len(a.encode("utf-8", "surrogatepass")) + 1 for a in manifest.args) > MAX_ARGS_BYTES:
        yield Problem("args", f"are longer than {MAX_ARGS_BYTES} bytes in all; pass long input as a file")
    for i, arg in enumerate(manifest.args):
        if "\0" in arg:
            yield Problem(f"args[{i}]", "holds a NUL character")
        if not is_unicode(arg):
            yield Problem(f"args[{i}]", f"{arg[:80]!r} is not valid Unicode")


def _array_problems(manifest: Manifest) -> Iterator[Problem]:
    if manifest.array is None:
        return
    if not 1 <= manifest.array <= MAX_ARRAY:
        yield Problem("array", f"must be from 1 to {MAX_ARRAY}")
    elif manifest.job_id is not None:
        room = MAX_JOB_ID - len(f"-{manifest.array - 1}")
        if room < len(manifest.job_id) <= MAX_JOB_ID:
            yield Problem("job_id", f"must be at most {room} characters: the array's jobs are called JOB_ID-{manifest.array - 1}")


def _number_problems(manifest: Manifest) -> Iterator[Problem]:
    need = manifest.requirements
    for name in ("gpus", "vram_mb", "cpu_threads", "memory_mb", "disk_mb"):
        if not 0 <= getattr(need, name) <= 2**31:
            yield Problem(f"requirements.{name}", f"must be from 0 to {2**31}")
    for i, tag in enumerate(need.tags):
        if not NAME.fullmatch(tag):
            yield Problem(f"requirements.tags[{i}]", "must be 1 to 63 letters, digits, '.', '_' or '-'")
    if need.node is not None and not NAME.fullmatch(need.node):
        yield Problem("requirements.node", "is not a node id")
    if need.pool is not None and not NAME.fullmatch(need.pool):
        yield Problem("requirements.pool", "must be 1 to 63 letters, digits, '.', '_' or '-'")
    for name in ("memory_mb", "address_space_mb", "disk_mb", "cpu_pct", "processes", "open_files", "log_mb", "grace_s"):
        value = getattr(manifest.policy, name)
        if value is not None and not 0 < value <= 2**31:
            yield Problem(f"policy.{name}", f"must be more than 0 and at most {2**31}")
    if len(manifest.policy.network) > MAX_RULES:
        yield Problem("policy.network", f"names more than {MAX_RULES} hosts")
    for i, rule in enumerate(manifest.policy.network[:MAX_RULES]):
        if why := rule_problem(rule):
            yield Problem(f"policy.network[{i}]", why)


def _label_problems(manifest: Manifest) -> Iterator[Problem]:
    if len(manifest.labels) > 64:
        yield Problem("labels", "are more than 64")
    for key, value in manifest.labels.items():
        if not LABEL_KEY.fullmatch(key):
            yield Problem(f"labels.{key}", "must be 1 to 63 letters, digits, '.', '_', '-' or '/'")
        if len(value) > 255:
            yield Problem(f"labels.{key}", "has a value longer than 255 characters")
        if not is_unicode(value):
            yield Problem(f"labels.{key}", f"{value[:80]!r} is not valid Unicode")
    for key, value in manifest.env.items():
        if not ENV_NAME.fullmatch(key):
            yield Problem(f"env.{key}", "is not the name of an environment variable")
        if "\0" in value:
            yield Problem(f"env.{key}", "holds a NUL character")


def _file_problems(manifest: Manifest) -> Iterator[Problem]:  # noqa: PLR0912 - one flat list of rules
    names: dict[str, str] = {}

    def taken(name: str, path: str) -> Iterator[Problem]:
        if why := unsafe_name(name):
            yield Problem(path, f"{name!r} {why}")
        elif name in names:
            yield Problem(path, f"{name!r} is already the name of {names[name]}")
        names[name] = path

    for i, entry in enumerate(manifest.input.urls):
        one = InputUrl(url=entry) if isinstance(entry, str) else entry
        path = f"input.urls[{i}]"
        if not one.url.startswith(("http://", "https://")):
            yield Problem(path, f"{one.url[:80]!r} must start with http:// or https://")
        if one.name is not None:
            yield from taken(one.name, f"{path}.name")
        if one.sha256 is not None and not SHA256.fullmatch(one.sha256):
            yield Problem(f"{path}.sha256", "must be 64 lower-case hex digits")
        if one.max_mb is not None and one.max_mb <= 0:
            yield Problem(f"{path}.max_mb", "must be more than 0")
    for name in manifest.input.inline:
        yield from taken(name, f"input.inline.{name}")
    for i, file in enumerate(manifest.input.files):
        yield from taken(file.name, f"input.files[{i}].name")
        if not SHA256.fullmatch(file.sha256):
            yield Problem(f"input.files[{i}].sha256", "must be 64 lower-case hex digits")
        if file.size < 0:
            yield Problem(f"input.files[{i}].size", "must be 0 or more")
    if len(manifest.input.artifacts) > MAX_DEPENDENCIES:
        yield Problem("input.artifacts", f"are more than {MAX_DEPENDENCIES}")
    for i, handed in enumerate(manifest.input.artifacts[: MAX_DEPENDENCIES + 1]):
        # In an array the number may be a part of the other job's id.
        if not JOB_ID.fullmatch(handed.job if manifest.array is None else handed.job.replace(PLACE, "0")):
            yield Problem(f"input.artifacts[{i}].job", f"{handed.job[:80]!r} is not the id of a job")
        if why := unsafe_path(handed.path):
            yield Problem(f"input.artifacts[{i}].path", f"{handed.path!r} {why}")
        else:
            yield from taken(artifact_name(handed), f"input.artifacts[{i}].name")
    seen: set[str] = set()
    for i, artifact in enumerate(manifest.artifacts):
        if why := unsafe_path(artifact.path):
            yield Problem(f"artifacts[{i}].path", f"{artifact.path!r} {why}")
        if artifact.path in seen:
            yield Problem(f"artifacts[{i}].path", f"{artifact.path!r} stands twice")
        seen.add(artifact.path)
        if artifact.max_mb <= 0:
            yield Problem(f"artifacts[{i}].max_mb", "must be more than 0")


def _secret_problems(manifest: Manifest) -> Iterator[Problem]:
    if len(manifest.secrets) > MAX_SECRETS:
        yield Problem("secrets", f"are more than {MAX_SECRETS}")
    seen: set[tuple[str, str]] = set()
    for i, use in enumerate(manifest.secrets):
        path = f"secrets[{i}]"
        if not NAME.fullmatch(use.name):
            yield Problem(f"{path}.name", "must be 1 to 63 letters, digits, '.', '_' or '-'")
        if (use.env is None) == (use.file is None):
            yield Problem(path, "says how it is delivered by exactly one of `env` and `file`")
            continue
        kind, name = ("env", use.env) if use.env is not None else ("file", use.file or "")
        path = f"{path}.{kind}"
        if use.env is not None:
            yield from _secret_env_problems(manifest, use.env, path)
        elif why := unsafe_name(name):
            yield Problem(path, f"{name!r} {why}")
        if (kind, name) in seen:
            yield Problem(path, f"{name!r} stands twice")
        seen.add((kind, name))


def _secret_env_problems(manifest: Manifest, name: str, path: str) -> Iterator[Problem]:
    if not ENV_NAME.fullmatch(name):
        yield Problem(path, f"{name[:80]!r} is not the name of an environment variable")
    elif _NO_SECRETS_ENV.fullmatch(name):
        yield Problem(path, f"{name} cannot hold a secret; take another name")
    elif name in manifest.env:
        yield Problem(path, f"{name} is set by `env` too")
