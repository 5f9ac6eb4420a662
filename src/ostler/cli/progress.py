"""How far a command is that takes its time: one line on the terminal."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ostler.cli.exits import TERMINATED, Exit


@contextlib.contextmanager
def progress() -> Iterator[Callable[[Any], None]]:
    """One line that is written over, for a person who watches; nothing of it is left at the end.

    SIGTERM ends what takes its time as Ctrl-C does: it takes away what it has begun.
    """

    def tell(now: Any) -> None:
        if sys.stderr.isatty():
            done = f" {now.done}{f' of {now.of}' if now.of else ''}" if now.done else ""
            sys.stderr.write(f"\r\x1b[K{now.step}{done}")
            sys.stderr.flush()

    def terminate(*_: object) -> None:
        raise Exit(TERMINATED)

    main = threading.current_thread() is threading.main_thread()  # no other one may ask for signals
    before = signal.signal(signal.SIGTERM, terminate) if main else None
    try:
        yield tell
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
