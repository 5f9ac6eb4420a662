"""Masking: which bytes of an output belong to a secret, decided by position, so that a masked stream is as long as the true one.

A byte is masked if some occurrence of a value, or of one of its usual encodings, covers it. A stream comes in pieces: bytes that
may turn out to belong to an occurrence whose rest has not come yet are held back. The standard library alone: workers use it too.
"""

import base64
import contextlib
import json
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

SHORTEST = 4  # bytes; a shorter value would be masked everywhere, and be told by where
LONGEST_ENCODED = 4096  # of a longer value only the value itself and its lines are looked for
LONGEST_LINE_PART = 8  # lines of a value that has several are looked for one by one from this length on
STAR = b"*"
_COMPARED = 64


class Masker:
    """Masks some values; `longest` is the length of the longest pattern."""

    def __init__(self, values: Iterable[bytes]) -> None:
        self._patterns = sorted({pattern for value in values for pattern in patterns(value)}, key=len, reverse=True)
        self._periods = [_period(pattern) for pattern in self._patterns]
        self.longest = len(self._patterns[0]) if self._patterns else 0

    def mask(self, data: bytes) -> bytes:
        """All of it, as a stream that has ended."""
        covered: bytearray | None = None
        for pattern, period in zip(self._patterns, self._periods, strict=True):
            at = data.find(pattern)
            while at >= 0:
                end = at + len(pattern)
                # Occurrences that overlap are a whole period apart: walking over them costs no more than reading them.
                while data.startswith(pattern[-period:], end):
                    end += period
                if covered is None:
                    covered = bytearray(data)
                covered[at:end] = STAR * (end - at)
                at = data.find(pattern, end - len(pattern) + period)
        return data if covered is None else bytes(covered)

    def settled(self, data: bytes) -> int:
        """How many bytes from the beginning of `data` are decided whatever comes behind them.

        Of a long pattern only the beginning is compared: too much may be held back for a while, and the cost has a bound.
        """
        settled = len(data)
        for pattern in self._patterns:
            at = data.find(pattern[:1], max(0, len(data) - len(pattern) + 1), settled)
            while at >= 0:
                if pattern.startswith(data[at : at + _COMPARED]):
                    settled = at
                    break
                at = data.find(pattern[:1], at + 1, settled)
        return settled

    def text(self, text: str) -> str:
        """A whole text, such as a message."""
        data = text.encode("utf-8", "surrogatepass")
        masked = self.mask(data)
        return text if masked is data else masked.decode("utf-8", "replace")


def patterns(value: bytes) -> set[bytes]:
    """What is looked for on behalf of one value; empty for one that is too short."""
    value = value.strip()
    if len(value) < SHORTEST:
        return set()
    found = {value}
    lines = [line.strip() for line in value.splitlines()]
    if len(lines) > 1:
        found.update(line for line in lines if len(line) >= LONGEST_LINE_PART)
    if len(value) <= LONGEST_ENCODED:
        found.update(_encoded(value))
    return found


def _encoded(value: bytes) -> set[bytes]:
    percent = {quote(value, safe=""), quote_plus(value), quote(value)}
    forms = {value.hex(), value.hex().upper(), *percent, *(_lower_percent(one) for one in percent)}
    with contextlib.suppress(UnicodeDecodeError):
        forms |= {json.dumps(value.decode(), ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}
    found = {form.encode() for form in forms}
    for before in range(3):  # where it begins within a group of three bytes
        whole = base64.b64encode(bytes(before) + value)
        first = (before * 8 + 5) // 6  # the first character that no bit before the value is part of
        last = (before + len(value)) * 8 // 6  # the last one that no bit behind it is part of
        part = whole[first:last]
        if len(part) >= LONGEST_LINE_PART:
            found |= {part, part.translate(bytes.maketrans(b"+/", b"-_"))}
    found.add(base64.b64encode(value).rstrip(b"="))
    return {one for one in found if len(one) >= SHORTEST}


def _lower_percent(text: str) -> str:
    parts = text.split("%")
    return "%".join([parts[0], *(part[:2].lower() + part[2:] for part in parts[1:])])


def _period(pattern: bytes) -> int:
    """The least distance between two occurrences that overlap: the length less that of the longest border."""
    border = [0] * len(pattern)
    length = 0
    for at in range(1, len(pattern)):
        while length and pattern[at] != pattern[length]:
            length = border[length - 1]
        if pattern[at] == pattern[length]:
            length += 1
        border[at] = length
    return len(pattern) - border[-1]
