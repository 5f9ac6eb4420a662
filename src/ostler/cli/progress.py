"""How far a command is that takes its time: one line on the terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def progress() -> Iterator[Callable[[Any], None]]:
    """One line that is written over, for a person who watches; nothing of it is left at the end."""

    def tell(now: Any) -> None:
        if sys.stderr.isatty():
            done = f" {now.done}{f' of {now.of}' if now.of else ''}" if now.done else ""
            sys.stderr.write(f"\r\x1b[K{now.step}{done}")
            sys.stderr.flush()

    try:
        yield tell
    finally:
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
