"""The command line in this process: what the installed program does, without the second that starting Python takes."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

from ostler.cli import exits
from ostler.cli.main import app


@dataclass(frozen=True)
class Done:
    """What a command said, and its exit code."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """Standard output as a value."""
        return json.loads(self.stdout)


def ostler(*args: object) -> Done:
    """Run `ostler ARGS`."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = exits.guard(lambda: app([str(one) for one in args]))
    return Done(code, out.getvalue(), err.getvalue())
