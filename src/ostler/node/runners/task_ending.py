"""The verdict over a Python task's end: from what its worker wrote down, and from what the keeper saw of the process."""

import contextlib
import os
import stat
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from msgspec import structs

from ostler.model.attempt import Usage
from ostler.model.failures import Failure, FailureCode
from ostler.node.keeper_client import ExitRecord
from ostler.node.runners.ending import DISK_FULL_MB, Circumstances, ending
from ostler.protocol.ports import Ending

MAX_RECORD_BYTES = 1 << 18
# The backstop in the worker kills this much before or after it was meant to, at most.
_TIMER_SLACK_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """What a worker says of a task: `outcome` is done, exception (`type`, `message`), exit (`exit_code`) or refused (`code`,
    `message`). One that was `lent` a workspace left nothing in it, but for `files` that were never made.

    Written in the task's own process, so it is believed in what it says against the task, and of its own use.
    """

    key: str
    outcome: str
    type: str = ""
    message: str = ""
    code: str = ""
    exit_code: int | None = None
    wall_s: float = 0.0
    cpu_user_s: float = 0.0
    cpu_system_s: float = 0.0
    peak_memory_mb: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0
    lent: bool = False
    files: dict[str, str] = field(default_factory=dict)


def read_task_record(path: str, key: str) -> TaskRecord | None:
    """The record of this attempt, or None where there is none that can be believed: it lies where the task may write."""
    content = None
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:  # noqa: PTH123
            if stat.S_ISREG(os.fstat(handle).st_mode):
                content = file.read(MAX_RECORD_BYTES + 1)
    return parse_task_record(content, key) if content is not None else None


def parse_task_record(content: bytes | dict[str, Any], key: str) -> TaskRecord | None:
    """The same from bytes, or from what a message held."""
    try:
        record = (
            msgspec.convert(content, TaskRecord) if isinstance(content, dict) else msgspec.json.decode(content, type=TaskRecord)
        )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return record if record.key == key else None


def task_ending(task: TaskRecord | None, process: ExitRecord | None, about: Circumstances) -> Ending:
    """How a task ended. `process` is None for a task after which its warm worker lived on.

    What the keeper did to the process comes before what the task said; a crash after a task said that it is done counts too.
    """
    if process is None:
        return _told(task, about) if task is not None else Ending(failure=_no_word())
    seen = ending(process, about)
    if seen.cancelled or process.killed is not None or process.oom is not None or task is None:
        if seen.failure is None and not seen.cancelled:
            return replace(seen, failure=Failure(FailureCode.TASK, "its process ended with exit code 0 before run() returned"))
        return seen
    told = _told(task, about)
    if told.failure is None:
        return seen  # what the process did after run() counts too
    return replace(told, usage=seen.usage, signal=seen.signal)


def died_of_backstop(process: ExitRecord, *, kill_s: float) -> ExitRecord:
    """The record of a worker that its own timer killed, when no daemon was there to ask the keeper for it: a timeout."""
    late = kill_s > 0 and process.wall_s >= kill_s - _TIMER_SLACK_S
    if process.signal == 9 and process.killed is None and process.oom is None and late:
        return structs.replace(process, killed="timeout")
    return process


def _told(task: TaskRecord, about: Circumstances) -> Ending:
    usage = Usage(
        wall_s=task.wall_s,
        cpu_user_s=task.cpu_user_s,
        cpu_system_s=task.cpu_system_s,
        peak_memory_mb=task.peak_memory_mb,
        read_bytes=task.read_bytes,
        written_bytes=task.written_bytes,
    )
    failure, exit_code = _verdict(task)
    if failure is not None and task.outcome != "refused" and about.free_mb is not None and about.free_mb < DISK_FULL_MB:
        message = f"{failure.message}, and the disk of its workspace had {about.free_mb:.1f} MB free right after"
        failure = Failure(FailureCode.DISK, message)
    return Ending(failure=about.explained(failure), exit_code=exit_code, usage=usage)


def _verdict(task: TaskRecord) -> tuple[Failure | None, int | None]:
    match task.outcome:
        case "done":
            return None, 0
        case "exit" if task.exit_code == 0:
            return None, 0
        case "exit":
            return Failure(FailureCode.EXIT, f"the task left with exit code {task.exit_code}"), task.exit_code
        case "exception":
            what = f"{task.type}: {task.message}" if task.message else task.type
            return Failure(FailureCode.TASK, what), 1
        case "refused" if task.code in set(FailureCode):
            return Failure(FailureCode(task.code), task.message), None
    return Failure(FailureCode.INTERNAL, f"the worker told of an outcome that this release does not know: {task.outcome}"), None


def _no_word() -> Failure:
    return Failure(FailureCode.LOST, "neither the task's record nor its process's is there")
