"""A coordinator with a bug: `python -m chaos.planted BUG CONFIG`. It shows that the checker can fail.

The bug is put into the product from outside, so the product knows no switch for it.
"""

import functools
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ostler.assembly import coordinator, handover
from ostler.assembly.resolve_coordinator import resolve_coordinator
from ostler.coordinator.operations import jobs, logs
from ostler.coordinator.operations.changes import Case
from ostler.coordinator.store import writer

LATE_S = 0.2


def no_fencing() -> None:
    """Whoever writes about a job is believed, whichever attempt it speaks of."""
    Case.is_held_by = lambda case, node_id, attempt: case.live


def early_answers() -> None:
    """Answers are given before the commit, which takes its time; from the first job on, so that the installation itself comes up."""
    execute, commit, submit = writer.Writer._execute, writer.Writer._commit, jobs.submit_jobs
    began = threading.Event()

    @functools.wraps(submit)
    def submitted(*args: Any, **how: Any) -> Any:
        began.set()
        return submit(*args, **how)

    def answered(self: Any, connection: Any, pending: Any, *more: Any, **how: Any) -> bool:
        done = execute(self, connection, pending, *more, **how)
        if done and began.is_set():
            pending.future.get_loop().call_soon_threadsafe(self._settle, [pending])
        return done

    def late(self: Any, first: Any) -> Any:
        database = self._database
        if not hasattr(database, "in_time"):
            database.in_time = database.commit

            def after_a_while(connection: Any) -> None:
                time.sleep(LATE_S if began.is_set() else 0)
                database.in_time(connection)

            database.commit = after_a_while
        return commit(self, first)

    writer.Writer._execute, writer.Writer._commit = answered, late
    _replace(submit, submitted)


def log_offsets() -> None:
    """Log bytes are taken wherever they say they belong, and what the end says is not compared with them."""
    append, check_end = logs.append_log, logs.check_end

    def anywhere(
        tx: Any, node_id: str, job_id: str, attempt: int, stream: str, offset: int, data: bytes, *more: Any, **how: Any
    ) -> int:
        case = logs.load(tx, [job_id]).get(job_id)
        stored = offset if case is None else logs.stored_length(tx, case.seq, attempt, stream)
        append(tx, node_id, job_id, attempt, stream, stored, data, *more, **how)
        return offset + len(data)

    def whole(tx: Any, case: Any, end: Any, *, some_stored: bool) -> Any:
        found = check_end(tx, case, end, some_stored=some_stored)
        if isinstance(found, logs.Missing):
            stored = logs.stored_length(tx, case.seq, case.job.attempt, end.stream)
            return logs.Rest(end, stored, end.tail)
        return found

    _replace(append, anywhere)
    _replace(check_end, whole)


def _replace(one: Callable[..., Any], other: Callable[..., Any]) -> None:
    for module in [module for name, module in sys.modules.items() if name.startswith("ostler.coordinator")]:
        for name, value in list(vars(module).items()):
            if value is one:
                setattr(module, name, other)


BUGS: dict[str, Callable[[], None]] = {"no-fencing": no_fencing, "early-answers": early_answers, "log-offsets": log_offsets}


def main(arguments: Sequence[str]) -> int:
    """Plants the bug, then is the coordinator."""
    bug, file = arguments
    config = resolve_coordinator(Path(file), env={}, flags={}).value
    BUGS[bug]()
    return coordinator.main(["--config-fd", str(handover.put(config))])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
