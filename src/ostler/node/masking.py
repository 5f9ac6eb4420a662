"""Masking: which bytes of an output belong to a secret, decided by position, so that a masked stream is as long as the true one.

A byte is masked if some occurrence of a value, or of one of its usual encodings, covers it. A stream comes in pieces: bytes that
may turn out to belong to an occurrence whose rest has not come yet are held back. The standard library alone: workers use it too.
"""

import base64
import contextlib
import json
from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus

SHORTEST = 4  # bytes; a shorter value would be masked everywhere, and be told by where
LONGEST_ENCODED = 4096  # of a longer value only the value itself and its lines are looked for
SHORTEST_PART = 8  # bytes of a line, or of an encoding without its edges, that are looked for alone
STAR = b"*"
_COMPARED = 64
_LINE_ENDS = b"\r\n"


class Masker:
    """Masks some values; `longest` is how many bytes an occurrence may span."""

    def __init__(self, values: Iterable[bytes]) -> None:
        values = tuple(values)
        self._plain = [_Pattern(one) for one in {one for value in values for one in patterns(value)}]
        self._wrapped = [_Pattern(one) for one in {one for value in values for one in wrapped(value)}]
        # Twice for those that may be broken into lines: enough for a line end after each character.
        self.longest = max([len(one.text) for one in self._plain] + [2 * len(one.text) for one in self._wrapped], default=0)

    def mask(self, data: bytes) -> bytes:
        """All of it, as a stream that has ended."""
        covered = bytearray(data)
        found = False
        for start, end in _spans(self._plain, data):
            covered[start:end] = STAR * (end - start)
            found = True
        flat = _flat(data)
        where: list[int] | None = None
        for start, end in _spans(self._wrapped, flat):
            where = _places(data) if where is None else where
            for at in where[start:end]:
                covered[at : at + 1] = STAR
            found = True
        return bytes(covered) if found else data

    def mask_end(self, data: bytes) -> bytes:
        """The same for the end of a stream, whose writer may have been killed in the middle of a value."""
        begun = self.settled(data)
        masked = self.mask(data)
        return masked if len(data) - begun < SHORTEST_PART else masked[:begun] + STAR * (len(data) - begun)

    def settled(self, data: bytes) -> int:
        """How many bytes from the beginning of `data` are decided whatever comes behind them.

        Of a long pattern only the beginning is compared: too much may be held back for a while, and the cost has a bound.
        """
        settled = _undecided(self._plain, data)
        tail = data[-self.longest :] if self.longest else b""
        flat = _flat(tail)
        open_at = _undecided(self._wrapped, flat)
        return settled if open_at == len(flat) else min(settled, len(data) - len(tail) + _places(tail)[open_at])

    def text(self, text: str) -> str:
        """A whole text, such as a message."""
        data = text.encode("utf-8", "surrogatepass")
        masked = self.mask(data)
        return text if masked is data else masked.decode("utf-8", "replace")


class _Pattern:
    """What is looked for, and the least distance between two occurrences that overlap."""

    __slots__ = ("period", "text")

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.period = _period(text)


def _spans(looked_for: Iterable[_Pattern], data: bytes) -> Iterator[tuple[int, int]]:
    """From where to where occurrences go; those that overlap each other in one piece."""
    for one in looked_for:
        at = data.find(one.text)
        while at >= 0:
            end = at + len(one.text)
            # Walking over overlaps period by period costs no more than reading them.
            while data.startswith(one.text[-one.period :], end):
                end += one.period
            yield at, end
            at = data.find(one.text, end - len(one.text) + one.period)


def _undecided(looked_for: Iterable[_Pattern], data: bytes) -> int:
    """Where the first occurrence may begin whose rest has not come; the length of `data` where none may."""
    settled = len(data)
    for one in looked_for:
        at = data.find(one.text[:1], max(0, len(data) - len(one.text) + 1), settled)
        while at >= 0:
            if one.text.startswith(data[at : at + _COMPARED]):
                settled = at
                break
            at = data.find(one.text[:1], at + 1, settled)
    return settled


def _flat(data: bytes) -> bytes:
    return data.translate(None, _LINE_ENDS) if b"\n" in data else data


def _places(data: bytes) -> list[int]:
    """Where in `data` each byte of the flat one stands."""
    if b"\n" not in data:
        return list(range(len(data)))
    return [at for at, byte in enumerate(data) if byte not in _LINE_ENDS]


def patterns(value: bytes) -> set[bytes]:
    """What is looked for on behalf of one value; empty for one that is too short."""
    value = value.strip()
    if len(value) < SHORTEST:
        return set()
    found = {value}
    lines = [line.strip() for line in value.splitlines()]
    if len(lines) > 1:
        found.update(line for line in lines if len(line) >= SHORTEST_PART)
    if len(value) <= LONGEST_ENCODED:
        found.update(_encoded(value))
    return found


def _encoded(value: bytes) -> set[bytes]:
    percent = {quote(value, safe=""), quote_plus(value), quote(value)}
    forms = {*percent, *(_lower_percent(one) for one in percent)}
    with contextlib.suppress(UnicodeDecodeError):
        forms |= {json.dumps(value.decode(), ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}
    return {form.encode() for form in forms}


def wrapped(value: bytes) -> set[bytes]:
    """What is looked for on behalf of one value also where it is broken into lines: base64 and hexadecimal."""
    value = value.strip()
    if not SHORTEST <= len(value) <= LONGEST_ENCODED:
        return set()
    found = {value.hex().encode(), value.hex().upper().encode(), base64.b64encode(value).rstrip(b"=")}
    for before in range(3):  # where it begins within a group of three bytes
        whole = base64.b64encode(bytes(before) + value)
        first = (before * 8 + 5) // 6  # the first character that no bit before the value is part of
        last = (before + len(value)) * 8 // 6  # the last one that no bit behind it is part of
        if last - first >= SHORTEST_PART:
            found |= {whole[first:last], whole[first:last].translate(bytes.maketrans(b"+/", b"-_"))}
    return found


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
