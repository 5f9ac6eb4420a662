"""How far something is that takes its time, for whoever waits for it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """A step's name, and how many of its things are done (of how many, where that is known)."""

    step: str
    done: int = 0
    of: int | None = None


Tell = Callable[[Progress], None]
