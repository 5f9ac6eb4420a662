import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ostler.cli import exits
from ostler.fleet.host_steps import HostRefused
from ostler.model import errors
from ostler.model.errors import InvalidSpec, OstlerError, Problem, Rejected, Unavailable
from ostler.model.job import JobState


def tree(root: type[OstlerError]) -> list[type[OstlerError]]:
    """The classes of the tree itself; a part may have finer ones of its own."""
    children = [child for child in root.__subclasses__() if child.__module__ == errors.__name__]
    return [root, *(one for child in children for one in tree(child))]


@pytest.mark.parametrize("kind", tree(OstlerError))
def test_the_tree_decides_the_code(kind: type[OstlerError]) -> None:
    error = kind("x", offset=1) if kind is errors.OffsetMismatch else kind("x")
    expected = 3 if issubclass(kind, Rejected) else 4 if issubclass(kind, Unavailable) else 1
    assert exits.error_code(error) == expected


@pytest.mark.parametrize(
    ("state", "code", "killed_by", "expected"),
    [
        (JobState.DONE, 0, None, 0),
        (JobState.FAILED, 7, None, 7),
        (JobState.FAILED, None, 9, 137),
        (JobState.FAILED, None, None, 125),
        (JobState.FAILED, 0, None, 125),  # the program ended well, its artifact is missing
        (JobState.CANCELLED, None, 15, 143),
        (JobState.CANCELLED, None, None, 125),
        (JobState.EXPIRED, None, None, 125),
    ],
)
def test_a_job_s_own_code(state: JobState, code: int | None, killed_by: int | None, expected: int) -> None:
    assert exits.job_code(state, code, killed_by) == expected


def raiser(error: BaseException):
    def program() -> None:
        raise error

    return program


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (SystemExit(2), 2, ""),
        (SystemExit(None), 0, ""),
        (exits.Exit(42), 42, ""),
        (errors.NotFound("no job j", hint="ostler job list"), 3, "error: no job j\nhint: ostler job list\n"),
        (errors.CoordinatorUnreachable("gone"), 4, "error: gone\n"),
        (
            InvalidSpec("two", [Problem("a.b", "is bad", "f", 3), Problem("c", "is worse")]),
            3,
            "error: two\n  f:3: a.b: is bad\n  c: is worse\n",
        ),
        (KeyboardInterrupt(), 130, ""),
        (
            PermissionError(13, "Permission denied", "/x"),
            1,
            "error: Permission denied: /x\nhint: run this as the user that it belongs to\n",
        ),
        (ZeroDivisionError("oh"), 1, "bug: ZeroDivisionError: oh\nhint: OSTLER_DEBUG=1 shows where; please report it\n"),
    ],
)
def test_never_a_traceback(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OSTLER_DEBUG", raising=False)
    assert exits.guard(raiser(error)) == code
    assert capsys.readouterr().err == said


def test_a_reader_who_left_is_a_broken_pipe_also_where_the_parser_caught_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from ostler.cli.entry import main; sys.exit(main())", "config", "schema"],
        stdout=_without_a_reader(), stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def _without_a_reader() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def test_closed_standard_streams_are_no_bug() -> None:
    program = "import sys; from ostler.cli.entry import main; sys.exit(main())"
    command = f'"{sys.executable}" -c "{program}" config schema <&- >&- 2>&-'
    assert subprocess.run(command, shell=True, check=False).returncode == 0


ASKS = """
import asyncio, sys
from ostler.cli import exits
from ostler.cli.fleet import asking
async def ask(): asking.agree("Update 1 host?", True)
sys.exit(exits.guard(lambda: asyncio.run(ask())))
"""


@pytest.mark.parametrize("answer", [b"\x03", b"n\n", b"\x04"])
def test_a_question_is_answered_by_ctrl_c_too(answer: bytes) -> None:
    """Though an event loop waits around it."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", ASKS])
    said = b""
    with contextlib.suppress(OSError):  # what a terminal says at the end
        while True:
            if select.select([terminal], [], [], 0.2)[0]:
                if not (more := os.read(terminal, 4096)):
                    break
                said += more
            elif b"[y/N]" in said:  # as a person does: a Ctrl-C in the moment before the terminal is read is not heard
                os.write(terminal, answer)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3, said
    assert b"nothing was changed" in said


def test_unless_asked_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTLER_DEBUG", "1")
    assert exits.guard(raiser(ZeroDivisionError("oh"))) == 1
    assert "Traceback" in capsys.readouterr().err


def test_what_strangers_wrote_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert exits.guard(raiser(errors.Conflict("job \x1b[2J\x07 is taken"))) == 3
    assert capsys.readouterr().err == "error: job \\x1b[2J\\x07 is taken\n"


def test_codes_of_signals() -> None:
    assert (exits.INTERRUPTED, exits.TERMINATED) == (128 + signal.SIGINT, 143)


def test_ctrl_c_while_the_program_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    program = "import sys; from ostler.cli.entry import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, b"")


def test_what_a_host_said_beside_why_it_refuses_stands_below() -> None:
    refused = HostRefused("unit", "after 60 s the daemon does not answer", details="it began\nit ended")
    assert exits.describe(refused) == "error: after 60 s the daemon does not answer\n  it began\n  it ended"
