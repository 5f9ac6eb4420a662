"""Ranges in names of hosts, as Ansible has them: `web[01:16]`, `db-[a:f]`, `n[0:10:2]`. Pure."""

import re
from itertools import product

MAX_NAMES = 10_000

_RANGE = re.compile(r"\[([0-9]{1,9}|[a-z]|[A-Z]):([0-9]{1,9}|[a-z]|[A-Z])(?::([0-9]{1,9}))?\]")


def expand(pattern: str) -> list[str]:
    """The names that a pattern stands for; itself where it has no range. Raises ValueError, whose message goes on from "it …"."""
    parts: list[list[str]] = []
    end, count = 0, 1
    for found in _RANGE.finditer(pattern):
        steps = _steps(found[1], found[2], int(found[3] or 1))
        count *= len(steps)
        if count > MAX_NAMES:
            raise ValueError(f"stands for more than {MAX_NAMES} hosts")
        parts += [[pattern[end : found.start()]], [found[0]] if not len(steps) else steps.words()]
        end = found.end()
    if not parts:
        return [pattern]
    return ["".join(words) for words in product(*parts, [pattern[end:]])]


class _Steps:
    """The words of one range, counted before any is made."""

    def __init__(self, numbers: range, width: int) -> None:
        self._numbers, self._width = numbers, width

    def __len__(self) -> int:
        return len(self._numbers)

    def words(self) -> list[str]:
        return [chr(one) if self._width < 0 else str(one).zfill(self._width) for one in self._numbers]


def _steps(first: str, last: str, step: int) -> _Steps:
    if step < 1:
        raise ValueError("has a range whose step is 0")
    if first.isdigit() and last.isdigit():
        if first.startswith("0") and len(first) > 1 and len(first) != len(last):
            raise ValueError(f"has a range from {first} to {last}, which are not of the same width")
        width, low, high = (len(first) if first.startswith("0") else 0), int(first), int(last)
    elif first.isdigit() or last.isdigit() or first.islower() != last.islower():
        raise ValueError(f"has a range from {first} to {last}, which are not of one kind")
    else:
        width, low, high = -1, ord(first), ord(last)
    if low > high:
        raise ValueError(f"has a range that ends ({last}) before it begins ({first})")
    return _Steps(range(low, high + 1, step), width)
