"""What a Python task may ask of the node that runs it: `from ostler.task import progress, input_dir, output_dir`.

The worker puts this very file before each interpreter that runs tasks, also one that has no Ostler installed; so it uses the
standard library alone. Outside of Ostler (a task tried by hand) progress goes nowhere and the folders are those of the working
directory.
"""

import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["attempt", "input_dir", "job_id", "output_dir", "progress"]

_report: Callable[[float | None, str | None], None] | None = None


def progress(pct: float | None = None, note: str | None = None) -> None:
    """Say how far the task is: percent from 0 to 100, and a note for people. Cheap: the worker passes on one a second at most."""
    if _report is not None:
        _report(None if pct is None else min(100.0, max(0.0, float(pct))), None if note is None else str(note))


def input_dir() -> Path:
    """Where the job's inputs are."""
    return Path(os.environ.get("OSTLER_INPUT_DIR") or "input").absolute()


def output_dir() -> Path:
    """Where artifacts are to be written."""
    return Path(os.environ.get("OSTLER_OUTPUT_DIR") or "output").absolute()


def job_id() -> str | None:
    """The id of the job; None outside of Ostler."""
    return os.environ.get("OSTLER_JOB_ID")


def attempt() -> int | None:
    """The number of this attempt; None outside of Ostler."""
    number = os.environ.get("OSTLER_ATTEMPT")
    return int(number) if number else None


def report_to(receiver: Callable[[float | None, str | None], None] | None) -> None:
    """Where progress goes from now on; the worker's own business."""
    global _report  # noqa: PLW0603 - tasks import functions of this module, not an object that could hold it
    _report = receiver
