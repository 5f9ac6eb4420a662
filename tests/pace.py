"""Bounds of CPU time that hold on a machine of any pace: multiples of what a fixed piece of work takes at the same time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_most(times: float) -> Iterator[None]:
    """What is done inside takes at most so many times the CPU of a loop over a million numbers (0.04 s on a machine of 2024)."""
    before = _loop()
    began = time.process_time()
    yield
    spent = time.process_time() - began
    unit = max(before, _loop())
    assert spent < times * unit, f"{spent:.2f} s of CPU; a loop over a million numbers takes {unit:.3f}"


def _loop() -> float:
    began = time.process_time()
    sum(number * number for number in range(1_000_000))
    return time.process_time() - began
