"""Paths into JSON: `hashrate.total[0]`."""

import math
import re
from collections.abc import Mapping
from typing import Any

_STEP = re.compile(r"(?:^|\.)([^.\[\]]+)|\[(\d{1,6})\]")


def steps(path: str) -> tuple[str | int, ...]:
    """A path's keys and places in lists; raises ValueError."""
    found: list[str | int] = []
    at = 0
    while at < len(path):
        step = _STEP.match(path, at)
        if step is None or (at > 0 and path[at] not in ".["):
            raise ValueError(f"{path!r} is no path like hashrate.total[0]")
        found.append(step[1] if step[1] is not None else int(step[2]))
        at = step.end()
    if not found:
        raise ValueError("is empty; write a path like hashrate.total[0]")
    return tuple(found)


def pick(document: Any, path: str) -> float | None:
    """The number there; None for anything else, and for nothing."""
    for step in steps(path):
        inside = document if isinstance(document, Mapping if isinstance(step, str) else list) else {}
        try:
            document = inside[step]  # type: ignore[index]
        except LookupError:
            return None
    if not isinstance(document, int | float) or isinstance(document, bool):
        return None
    try:
        number = float(document)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
