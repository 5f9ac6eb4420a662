"""Files that travel: uploads with a progress bar, downloads that are whole and verified before they bear their name."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ostler.cli import output

if TYPE_CHECKING:
    from rich.progress import Progress

Advance = Callable[[int], None]
BLOCK = 1 << 20
_QUIET_S = 1.0


@contextlib.contextmanager
def progress(what: str, total: int | None) -> Iterator[Advance]:
    """A bar on standard error, once it took longer than a second and where somebody sees it; the caller tells each byte count."""
    if not sys.stderr.isatty():
        yield lambda _count: None
        return
    began = time.monotonic()
    done = 0
    bar: Progress | None = None
    task = None

    def advance(count: int) -> None:
        nonlocal done, bar, task
        done += count
        if bar is None and time.monotonic() - began > _QUIET_S:
            bar = _bar()
            task = bar.add_task(output.clean(what), total=total)
            bar.start()
        if bar is not None and task is not None:
            bar.update(task, completed=done)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()


def _bar() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def blocks(file: Path, advance: Advance) -> Iterator[bytes]:
    """A file's bytes in pieces of a MiB."""
    with file.open("rb") as stream:
        while piece := stream.read(BLOCK):
            advance(len(piece))
            yield piece
