"""The verdict over an attempt's end: a pure function from the keeper's exit record, and what was allowed, to an `Ending`.

Every record gives exactly one of success, cancelled and failure. Only evidence counts: a SIGKILL is a lack of memory where
the kernel's or the keeper's own record says so, and a full disk where the disk was looked at.
"""

import signal as signals
from dataclasses import dataclass

from ostler.model.attempt import Usage
from ostler.model.failures import Failure, FailureCode
from ostler.node.keeper_client import ExitRecord
from ostler.protocol.ports import Ending

# A program that failed while less than this was free is taken to have failed of it.
DISK_FULL_MB = 1.0
NO_TRACE = "its processes are gone, and neither the keeper nor its workspace has a record of their end"
_CRASHES = frozenset({"SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What the attempt was allowed (None: no limit), and what was seen right after its end.

    `wrapped`: it ran inside bwrap, which tells of a signal n as exit code 128 + n (believed of the 31 that have names). `said` is how
    standard error begins;
    `free_mb` what its disk had left (None: nobody looked); `refused` what the network gate did not let it reach.
    """

    timeout_s: float
    memory_mb: float | None = None
    log_mb: float | None = None
    file_mb: float | None = None
    wrapped: bool = False
    said: str = ""
    free_mb: float | None = None
    refused: str = ""

    def explained(self, failure: Failure | None) -> Failure | None:
        """A failure with what was refused to the job, which may be why."""
        return Failure(failure.code, f"{failure.message}; {self.refused}") if failure is not None and self.refused else failure


def ending(record: ExitRecord, about: Circumstances) -> Ending:
    """How the attempt ended. `Usage.prepare_s` and `upload_s` are not known here."""
    exit_code, signal = record.exit_code, record.signal
    # A program that exits with a code as high as those of real-time signals is likelier than one that dies of such a signal.
    if about.wrapped and exit_code is not None and 0 < exit_code - 128 < signals.SIGRTMIN and _signal_name(exit_code - 128):
        signal = exit_code - 128
        exit_code = None
    cancelled = _kind(record.killed) == "cancel"
    return Ending(
        failure=None if cancelled else about.explained(_failure(record, about, signal)),
        cancelled=cancelled,
        exit_code=exit_code,
        signal=signal,
        usage=usage(record),
    )


def usage(record: ExitRecord) -> Usage:
    """What the tree used, as the keeper measured it."""
    return Usage(
        wall_s=record.wall_s,
        cpu_user_s=record.cpu_user_s,
        cpu_system_s=record.cpu_system_s,
        peak_memory_mb=record.peak_memory_mb,
        read_bytes=record.read_bytes,
        written_bytes=record.written_bytes,
    )


def lost(why: str) -> Ending:
    """An end that nobody saw."""
    return Ending(failure=Failure(FailureCode.LOST, why))


def _kind(killed: str | None) -> str:
    """The first word of the reason that the keeper was given: `disk: 612 MB, quota 500` is of the kind `disk`."""
    return (killed or "").partition(":")[0]


def _failure(record: ExitRecord, about: Circumstances, signal: int | None) -> Failure | None:
    if record.killed is not None:
        return _killed(record, about)
    if record.exit_code == 0:
        return None
    if record.oom is not None:
        return _oom(record, about)
    if about.wrapped and signal is None and about.said.startswith("bwrap: "):
        return _not_wrapped(about.said)
    if about.free_mb is not None and about.free_mb < DISK_FULL_MB:
        how = _how(record, signal)
        return Failure(FailureCode.DISK, f"{how}, and the disk of its workspace had {about.free_mb:.1f} MB free right after")
    if signal is not None:
        return _signalled(record, about, signal)
    if record.exit_code is None:
        return Failure(FailureCode.LOST, "its end is not known: the record has neither an exit code nor a signal")
    return Failure(FailureCode.EXIT, f"ended with exit code {record.exit_code}")


def _killed(record: ExitRecord, about: Circumstances) -> Failure:
    """By Ostler itself, for the reason that stands in the record."""
    kind, _, detail = (record.killed or "").partition(":")
    match kind:
        case "timeout":
            message = f"ran {record.wall_s:.1f} s, longer than its limit of {about.timeout_s:g} s, and was ended"
            return Failure(FailureCode.TIMEOUT, message)
        case "memory":
            return _oom(record, about)
        case "log":
            cap = f"{about.log_mb:g} MB" if about.log_mb is not None else "their cap"
            return Failure(FailureCode.OUTPUT, f"its output streams grew over {cap}; raise policy.log_mb or write to a file")
        case "disk":
            how = "ended with more than it may have" if record.exit_code == 0 else "was ended for what it has"
            return Failure(FailureCode.DISK, f"{how} on the disk: {detail.strip() or 'more than its quota'}")
        case "keeper-lost":
            return Failure(FailureCode.LOST, "the node's keeper died, and the attempt with it; how far it came is not known")
        case "shutdown":
            return Failure(FailureCode.LOST, "the node's keeper was shut down while it ran")
        case _:
            return Failure(FailureCode.LOST, f"was ended by the node: {record.killed}")


def _oom(record: ExitRecord, about: Circumstances) -> Failure:
    limit = record.oom.limit_mb if record.oom and record.oom.limit_mb is not None else about.memory_mb
    peak = record.oom.peak_mb if record.oom else record.peak_memory_mb
    witness = {None: "", "watchdog": ", as the keeper measured"}.get(
        record.oom.source if record.oom else None, ", by the kernel's record"
    )
    allowed = f"its limit of {limit:g} MB" if limit is not None else "the memory that there is"
    return Failure(FailureCode.OOM, f"used more than {allowed} (at most {peak:.0f} MB) and was killed for it{witness}")


def _not_wrapped(said: str) -> Failure:
    """What bwrap says when it could not do its part; after that it writes nothing."""
    line = said.splitlines()[0][:300]
    code = FailureCode.START if line.startswith("bwrap: execvp ") else FailureCode.SANDBOX
    return Failure(code, f"the sandbox could not {'start the program' if code is FailureCode.START else 'be set up'}: {line}")


def _signalled(record: ExitRecord, about: Circumstances, signal: int) -> Failure:
    name = _signal_name(signal) or f"signal {signal}"
    if name == "SIGXFSZ" and about.file_mb is not None:
        return Failure(FailureCode.OUTPUT, f"wrote a file larger than the {about.file_mb:g} MB that it may (SIGXFSZ)")
    inside = f" (told by the sandbox as exit code {record.exit_code})" if record.signal is None else ""
    if name in _CRASHES:
        why = ": a system call that no job may make" if name == "SIGSYS" else ""
        return Failure(FailureCode.SIGNAL, f"crashed with {name}{inside}{why}")
    limit = "the memory limit" if about.memory_mb is not None else "a memory limit, since it has none"
    return Failure(FailureCode.SIGNAL, f"killed by {name} from outside{inside}; not by Ostler, and not by {limit}")


def _how(record: ExitRecord, signal: int | None) -> str:
    if signal is not None:
        return f"was killed by {_signal_name(signal) or signal}"
    return f"ended with exit code {record.exit_code}"


def _signal_name(number: int) -> str | None:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signals.SIGRTMIN}" if signals.SIGRTMIN <= number <= signals.SIGRTMAX else None
