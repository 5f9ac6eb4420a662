"""The failure codes of attempts, and whether trying again makes sense.

A failed job is data, not an exception: runners and loops pass `Failure` values around.
"""

from dataclasses import dataclass

from ostler.model.enumeration import Word


class Retry(Word):
    """When a failure with some code is tried again, while the job has retries left."""

    NEVER = "never"  # the same thing would happen again
    ASKED = "asked"  # the program's own doing: only where the manifest sets `retries`
    ALWAYS = "always"  # the machine's doing: by default


class FailureCode(Word):
    """Stable codes; they are written into databases and scripts and never change their meaning."""

    DENY = "E_DENY"
    SIGNATURE = "E_SIGNATURE"
    SPEC = "E_SPEC"
    INPUT = "E_INPUT"
    OUTPUT = "E_OUTPUT"
    SECRET = "E_SECRET"  # noqa: S105 - a code
    SANDBOX = "E_SANDBOX"
    START = "E_START"
    EXIT = "E_EXIT"
    SIGNAL = "E_SIGNAL"
    TASK = "E_TASK"
    TIMEOUT = "E_TIMEOUT"
    OOM = "E_OOM"
    DISK = "E_DISK"
    NOGPU = "E_NOGPU"
    GPU = "E_GPU"
    SERVICE = "E_SERVICE"
    LOST = "E_LOST"
    INTERNAL = "E_INTERNAL"


@dataclass(frozen=True, slots=True)
class CodeInfo:
    """What a code means (one sentence), when it is retried, and what a person does about it."""

    meaning: str
    retry: Retry
    advice: str


CODES: dict[FailureCode, CodeInfo] = {
    FailureCode.DENY: CodeInfo(
        "The node's allowlist or policy does not permit the command, an argument or the runner.",
        Retry.NEVER,
        "The message names what is allowed; for a command, `ostler allowlist test FILE -- COMMAND ARG …` on the node tells more.",
    ),
    FailureCode.SIGNATURE: CodeInfo(
        "The assignment was not signed by the coordinator that the node trusts, or names another node.",
        Retry.NEVER,
        "Check that nothing rewrites traffic; if the coordinator's key was replaced, join the node anew.",
    ),
    FailureCode.SPEC: CodeInfo(
        "The manifest cannot be run by this node's release.",
        Retry.NEVER,
        "Correct the manifest, or upgrade the node.",
    ),
    FailureCode.INPUT: CodeInfo(
        "An input could not be had as declared: not found, too large, wrong sha256, or a refused name.",
        Retry.NEVER,
        "Correct the URL, the limit or the checksum that the message names.",
    ),
    FailureCode.OUTPUT: CodeInfo(
        "A declared artifact is missing, too large or not a regular file of the workspace, or the log outgrew its cap.",
        Retry.NEVER,
        "`ostler job debug JOB` fetches the workspace as it was left.",
    ),
    FailureCode.SECRET: CodeInfo(
        "A secret that the manifest names was not given to the node: deleted, not for its pool, or not fit for the environment.",
        Retry.NEVER,
        "`ostler secret list` shows which there are; the message names the one and the reason.",
    ),
    FailureCode.SANDBOX: CodeInfo(
        "The sandbox level that the job demands could not be set up on this node.",
        Retry.ALWAYS,
        "`ostler doctor` on the node says what is missing.",
    ),
    FailureCode.START: CodeInfo(
        "The program could not be started at all.",
        Retry.NEVER,
        "The message carries the operating system's reason.",
    ),
    FailureCode.EXIT: CodeInfo(
        "The program ended with an exit code other than 0.",
        Retry.ASKED,
        "Read `ostler job logs JOB`.",
    ),
    FailureCode.SIGNAL: CodeInfo(
        "The program was killed by a signal that Ostler did not send.",
        Retry.ASKED,
        "Read `ostler job logs JOB`; a kill from outside is not taken for a lack of memory.",
    ),
    FailureCode.TASK: CodeInfo(
        "The Python task raised an exception.",
        Retry.ASKED,
        "The traceback stands in the job's stderr.",
    ),
    FailureCode.TIMEOUT: CodeInfo(
        "The attempt ran longer than its wall-clock limit.",
        Retry.ASKED,
        "Raise `timeout_s`, or the allowlist entry's `max_runtime_s`.",
    ),
    FailureCode.OOM: CodeInfo(
        "The attempt was killed for using more memory than its limit, by the kernel's or the keeper's own record.",
        Retry.ASKED,
        "Raise `policy.memory_mb` or `requirements.memory_mb`.",
    ),
    FailureCode.DISK: CodeInfo(
        "The node's disk, or the job's quota of it, is full.",
        Retry.ALWAYS,
        "Free space on the node, or raise `policy.disk_mb`.",
    ),
    FailureCode.NOGPU: CodeInfo(
        "The node no longer has the GPU that the job needs.",
        Retry.ALWAYS,
        "`ostler node probe` on the node shows what it has.",
    ),
    FailureCode.GPU: CodeInfo(
        "The GPU reported a fault (Xid) while the attempt ran.",
        Retry.ALWAYS,
        "Look at the node's kernel log for Xid messages.",
    ),
    FailureCode.SERVICE: CodeInfo(
        "systemd did not do what a command to a service asked for: no such unit, or it failed.",
        Retry.NEVER,
        "The message carries systemd's reason and, where the node may read them, the unit's last lines.",
    ),
    FailureCode.LOST: CodeInfo(
        "The node, its keeper or the attempt's processes went away before the end was known.",
        Retry.ALWAYS,
        "`ostler node show NODE` tells what is known of the machine.",
    ),
    FailureCode.INTERNAL: CodeInfo(
        "A bug in Ostler itself on the node.",
        Retry.ALWAYS,
        "Report it with the node's log lines about this job.",
    ),
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed: a stable code and a sentence for people (what, which, what to do)."""

    code: FailureCode
    message: str
