"""Durations as people write them (24h, 7d, 90s, 1h30m), to values and back."""

import re
from datetime import timedelta

_UNITS = {"w": 604800.0, "d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[wdhms])", re.ASCII)
_WHOLE = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)
MAX_S = 3660 * 86400.0  # ten years: what is longer was meant otherwise
FORM = "a duration with units, such as 24h, 7d, 90s or 1h30m"


def parse_duration(text: str) -> timedelta:
    """`1h30m` as a timedelta; raises ValueError whose text ends the sentence "X …"."""
    compact = text.strip().replace(" ", "")
    if not _WHOLE.fullmatch(compact):
        if re.fullmatch(r"\d+(\.\d+)?", compact, re.ASCII):
            raise ValueError(f"has no unit; write {compact}s for seconds, or m, h, d, w")
        raise ValueError(f"is not {FORM}")
    parts = _PART.findall(compact)
    units = [unit for _, unit in parts]
    if len(set(units)) != len(units):
        raise ValueError("names a unit twice")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds > MAX_S:
        raise ValueError("is longer than ten years")
    return timedelta(seconds=seconds)


def parse_seconds(text: str) -> float:
    """For command lines: a duration with units, or a bare number of seconds. Raises ValueError."""
    compact = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", compact, re.ASCII):
        compact += "s"
    elif not _WHOLE.fullmatch(compact.replace(" ", "")):
        raise ValueError("is not a duration: a number of seconds, or one with units, such as 24h, 7d, 90s or 1h30m")
    return parse_duration(compact).total_seconds()


def format_duration(value: timedelta | float) -> str:
    """The shortest exact spelling down to milliseconds: 5400 seconds are 1h30m."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    rest = round(seconds * 1000)
    sign, rest = ("-", -rest) if rest < 0 else ("", rest)
    words = []
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, rest = divmod(rest, size)
        if count:
            words.append(f"{count}{unit}")
    return sign + ("".join(words) or "0s")
