"""What commands print: tables that fit the terminal, JSON for programs, notes on standard error. Colour only on a terminal."""

import contextlib
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

_C1 = re.compile("[\x7f-\x9f]")

_COLOURS = {
    "done": "green",
    "ready": "green",
    "ok": "green",
    "running": "cyan",
    "uploading": "cyan",
    "preparing": "cyan",
    "acked": "cyan",
    "leased": "cyan",
    "retry_wait": "yellow",
    "warn": "yellow",
    "draining": "yellow",
    "drained": "yellow",
    "unknown": "yellow",
    "cancelled": "yellow",
    "failed": "red",
    "fail": "red",
    "expired": "red",
    "lost": "red",
    "held": "yellow",
    "quarantined": "red",
    "cordoned": "yellow",
    "retired": "dim",
    "healthy": "green",
    "unhealthy": "red",
    "stale": "yellow",
    "crashed": "red",
    "missing": "red",
}
_CODES = {"green": 32, "yellow": 33, "red": 31, "cyan": 36, "bold": 1, "dim": 2}
_GAP = 2
_LEAST = 6
_READABLE = 14  # what a column that shrinks keeps as long as others can be left out instead


@dataclass(frozen=True, slots=True)
class Column:
    """A column's title; one that may `shrink` gives way where the terminal is narrow; `right` for numbers.

    What a last column that may `wrap` holds is never cut: where it has no room it stands below its row. A `spare` column is left
    out where the terminal is too narrow for all, the last one first.
    """

    title: str
    shrink: bool = False
    right: bool = False
    wrap: bool = False
    spare: bool = False


def columns(spec: str) -> list[Column]:
    """Columns from their titles, such as `JOB|TITLE~|LOAD?>|WHY+`: `~` may shrink, `>` is to the right, `+` may wrap, `?` is spare."""
    return [
        Column(one.rstrip("~>+?"), shrink="~" in one, right=one.endswith(">"), wrap=one.endswith("+"), spare="?" in one)
        for one in spec.split("|")
    ]


def clean(text: str) -> str:
    """Text of strangers without what a terminal would obey: control characters are shown as they are written in Python."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def tell_more(limit: int, more: bool) -> None:
    """Below a list: that it was cut."""
    if more:
        note(f"there are more than {limit}: --limit shows more")


def note(text: str) -> None:
    """Something for the person, beside the command's output. Each line is cleaned."""
    with contextlib.suppress(BrokenPipeError, ValueError):
        sys.stderr.write("".join(f"{clean(line)}\n" for line in text.split("\n")))
        sys.stderr.flush()


def say(text: str = "") -> None:
    """One line of the command's output."""
    sys.stdout.write(f"{text}\n")


def print_json(value: Any) -> None:
    """One JSON value: times as RFC 3339, indented for a terminal and on one line for a program."""
    from ostler.protocol import codec

    plain = codec.to_plain(value)
    sys.stdout.write(_obeyed_by_none(json.dumps(plain, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None)) + "\n")


def print_line(value: Any) -> None:
    """One JSON value on a line of its own, for a stream of them."""
    from ostler.protocol import codec

    sys.stdout.write(_obeyed_by_none(codec.encode(value).decode()) + "\n")


def _obeyed_by_none(text: str) -> str:
    """JSON escapes control characters up to U+001F by itself; terminals obey those from U+007F to U+009F, too."""
    return _C1.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def coloured() -> bool:
    """Whether standard output is a terminal that wants colour (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, word: str) -> str:
    """The text in the colour of a state (or in `bold`, `dim`), where colour is wanted."""
    code = _CODES.get(_COLOURS.get(word, word))
    return f"\x1b[{code}m{text}\x1b[0m" if code is not None and coloured() else text


def terminal_width() -> int | None:
    """Columns of the terminal; None where standard output is none, and nothing must be cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(columns: Sequence[Column], rows: Iterable[Sequence[object]], *, empty: str = "nothing") -> None:
    """Print rows under titles; on a terminal cut to its width. A cell of None is shown as a dash."""
    cells = [["-" if cell is None or cell == "" else clean(str(cell)) for cell in row] for row in rows]
    if not cells:
        note(empty)
        return
    for line in layout(columns, cells, terminal_width()):
        say(line)


def layout(columns: Sequence[Column], cells: Sequence[Sequence[str]], width: int | None) -> Iterator[str]:
    """The lines of a table within `width`; shrinking columns share what is too much, the widest first."""
    widths = [max(len(column.title), *(len(row[i]) for row in cells)) for i, column in enumerate(columns)]
    if width is not None and columns[-1].wrap and sum(widths) + _GAP * (len(widths) - 1) > width:
        title, *lines = layout(columns[:-1], [row[:-1] for row in cells], width)
        yield title
        for line, row in zip(lines, cells, strict=True):
            yield line
            for part in textwrap.wrap(row[-1] if row[-1] != "-" else "", max(_LEAST, width - 2 * _GAP)):
                yield " " * 2 * _GAP + part
        return
    if width is not None:
        kept = _kept(columns, widths, width)
        if len(kept) < len(columns):
            yield from layout([columns[i] for i in kept], [[row[i] for i in kept] for row in cells], width)
            return
        excess = sum(widths) + _GAP * (len(widths) - 1) - width
        while excess > 0:
            fit = [i for i, column in enumerate(columns) if column.shrink and widths[i] > _LEAST]
            if not fit:
                break
            widest = max(fit, key=lambda i: widths[i])
            widths[widest] -= 1
            excess -= 1
    yield paint(_line([column.title for column in columns], columns, widths), "bold")
    for row in cells:
        yield _line(row, columns, widths, colour=True)


def _kept(columns: Sequence[Column], widths: Sequence[int], width: int) -> list[int]:
    """The places of the columns that there is room for: spare ones go, the last first, until what is left can be read."""
    kept = list(range(len(columns)))
    while True:
        needed = sum(min(widths[i], _READABLE) if columns[i].shrink else widths[i] for i in kept) + _GAP * (len(kept) - 1)
        spare = next((i for i in reversed(kept) if columns[i].spare), None)
        if needed <= width or spare is None:
            return kept
        kept.remove(spare)


def _line(row: Sequence[str], columns: Sequence[Column], widths: Sequence[int], *, colour: bool = False) -> str:
    parts = []
    for i, (cell, column, width) in enumerate(zip(row, columns, widths, strict=True)):
        shown = cell if len(cell) <= width else cell[: width - 1] + "…"
        padded = shown.rjust(width) if column.right else shown if i == len(row) - 1 else shown.ljust(width)
        parts.append(paint(padded, cell) if colour else padded)
    return (" " * _GAP).join(parts).rstrip()


def fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Print `name  value` lines; a value of None is left out."""
    shown = [(name, clean(str(value))) for name, value in pairs if value is not None and value != ""]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        say(f"{paint(name.ljust(width), 'dim')}  {paint(value, value)}")


def ago(at: datetime | None, now: datetime | None = None) -> str | None:
    """How long ago, in one or two units: `3m20s`."""
    return None if at is None else span(((now or datetime.now(UTC)) - at).total_seconds())


def span(seconds: float) -> str:
    """A duration that people read: exact below ten seconds, two units above."""
    if seconds < 0:
        return "0s"
    if seconds < 10:
        return f"{seconds:.1f}s" if seconds >= 1 else f"{seconds * 1000:.0f}ms"
    rest = round(seconds)
    sizes = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    words: list[tuple[int, str]] = []
    for unit, size in sizes:
        count, rest = divmod(rest, size)
        if count or words:
            words.append((count, unit))
    return "".join(f"{count}{unit}" for count, unit in words[:2] if count)


def tally(counts: Mapping[Any, int]) -> str:
    """How many of what: `3 done, 1 failed`."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def size(count: float) -> str:
    """Bytes as people read them, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return ""


def moment(at: datetime) -> str:
    """A time of day in the person's own zone, to the millisecond."""
    return at.astimezone().strftime("%H:%M:%S.%f")[:-3]
