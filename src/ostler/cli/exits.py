"""Exit codes: the one place where errors, jobs and signals become numbers, and where errors are told to a person."""

import os
import signal
import sys
import traceback
from collections.abc import Callable

from ostler.model.errors import InvalidSpec, OstlerError, Rejected, Unavailable
from ostler.model.job import JobState

GOOD = 0
FAILED = 1  # a check that found something, a file that cannot be written, or a bug of ours
USAGE = 2
REJECTED = 3
UNREACHABLE = 4
TIMED_OUT = 124  # as timeout(1) says it
NO_CODE = 125  # the job is over and has no exit code of its own
SIGNALLED = 128
INTERRUPTED = SIGNALLED + signal.SIGINT
TERMINATED = SIGNALLED + signal.SIGTERM


class Exit(Exception):
    """Ends the command with this code; everything was said already."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def error_code(error: OstlerError) -> int:
    """Who must change something: the caller (3), or nobody but time (4)."""
    if isinstance(error, Rejected):
        return REJECTED
    return UNREACHABLE if isinstance(error, Unavailable) else FAILED


def job_code(state: JobState, exit_code: int | None, killed_by: int | None) -> int:
    """The job's own code. A job that failed although its program ended well (a missing artifact) has none."""
    if state is JobState.DONE:
        return GOOD
    if killed_by:
        return SIGNALLED + killed_by
    return exit_code or NO_CODE


def describe(error: OstlerError) -> str:
    """What a person reads: what is wrong, each mistake on its line, and what to do."""
    lines = [f"error: {error.message}"]
    if isinstance(error, InvalidSpec):
        lines += [f"  {problem}" for problem in error.problems]
    if error.hint:
        lines.append(f"hint: {error.hint}")
    return "\n".join(lines)


def guard(program: Callable[[], object]) -> int:
    """Run the program; answers its exit code and never lets a traceback out, unless OSTLER_DEBUG asks for it."""
    try:
        _fill_standard_streams()
        program()
    except SystemExit as exc:
        if isinstance(exc.__context__, BrokenPipeError):  # what parses the command line caught it, and says 1
            return SIGNALLED + signal.SIGPIPE
        return exc.code if isinstance(exc.code, int) else (GOOD if exc.code is None else FAILED)
    except Exit as exc:
        return exc.code
    except OstlerError as exc:
        _say(describe(exc))
        return error_code(exc)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Who read us has gone (`| head`): point standard output elsewhere, or Python complains while it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SIGNALLED + signal.SIGPIPE
    except OSError as exc:
        hint = "\nhint: run this as the user that it belongs to" if isinstance(exc, PermissionError) and exc.filename else ""
        _say(f"error: {exc.strerror or exc}{f': {exc.filename}' if exc.filename else ''}{hint}")
        return FAILED
    except Exception as exc:
        if os.environ.get("OSTLER_DEBUG"):
            _say("".join(traceback.format_exception(exc)).rstrip())
        else:
            _say(f"bug: {type(exc).__name__}: {exc}\nhint: OSTLER_DEBUG=1 shows where; please report it")
        return FAILED
    return GOOD


def _fill_standard_streams() -> None:
    """Put /dev/null where a standard stream is closed (`>&-`): else the next file that is opened gets its number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = (
        stream or os.fdopen(number, mode)
        for stream, number, mode in ((sys.stdin, 0, "r"), (sys.stdout, 1, "w"), (sys.stderr, 2, "w"))
    )


def _say(text: str) -> None:
    from ostler.cli.output import note

    note(text)
