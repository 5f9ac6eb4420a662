"""What a program that could not do its work says to a person, and the exit code that goes with it: commands and daemons alike."""

import os
import sys
import traceback
from collections.abc import Callable

from ostler.model.errors import InvalidSpec, OstlerError, Rejected, Unavailable

FAILED = 1  # a check that found something, a file that cannot be written, or a bug of ours
REJECTED = 3
UNREACHABLE = 4


def error_code(error: OstlerError) -> int:
    """Who must change something: the caller (3), or nobody but time (4)."""
    if isinstance(error, Rejected):
        return REJECTED
    return UNREACHABLE if isinstance(error, Unavailable) else FAILED


def describe(error: OstlerError) -> str:
    """What a person reads: what is wrong, each mistake on its line, and what to do."""
    lines = [f"error: {error.message}"]
    if isinstance(error, InvalidSpec):
        lines += [f"  {problem}" for problem in error.problems]
    lines += [f"  {line}" for line in getattr(error, "details", "").splitlines()]  # of a host that refuses
    if error.hint:
        lines.append(f"hint: {error.hint}")
    return "\n".join(lines)


def describe_os(error: OSError) -> str:
    """The same for what the system says."""
    hint = "\nhint: run this as the user that it belongs to" if isinstance(error, PermissionError) and error.filename else ""
    return f"error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}{hint}"


def guard_daemon(run: Callable[[], None]) -> int:
    """Run a daemon until it is stopped; answers its exit code. What is no error of ours and names no file is a bug: it says where."""
    try:
        run()
    except OstlerError as exc:
        sys.stderr.write(f"{describe(exc)}\n")
        return error_code(exc)
    except OSError as exc:
        if not isinstance(exc.filename, str):
            raise
        if os.environ.get("OSTLER_DEBUG"):
            traceback.print_exc()
        sys.stderr.write(f"{describe_os(exc)}\n")
        return FAILED
    return 0
