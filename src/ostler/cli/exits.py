"""Exit codes: the one place where errors, jobs and signals become numbers, and where errors are told to a person."""

import os
import signal
import sys
import traceback
from collections.abc import Callable

from ostler.assembly.endings import FAILED, REJECTED, UNREACHABLE, describe, describe_os, error_code
from ostler.model.errors import OstlerError
from ostler.model.job import JobState

__all__ = ["FAILED", "REJECTED", "UNREACHABLE", "describe", "error_code"]

GOOD = 0
USAGE = 2
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


def job_code(state: JobState, exit_code: int | None, killed_by: int | None) -> int:
    """The job's own code. A job that failed although its program ended well (a missing artifact) has none."""
    if state is JobState.DONE:
        return GOOD
    if killed_by:
        return SIGNALLED + killed_by
    return exit_code or NO_CODE


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
        _say(describe_os(exc))
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
