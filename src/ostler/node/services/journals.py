"""What a unit wrote into the journal, as far as the node's user may read that."""

import re
from dataclasses import dataclass

from ostler.node.probe.command import Commands, Output

READ_S = 10.0
SAID = 600
MAX_LINES = 1000
_UNREADABLE = re.compile(r"insufficient permissions|no journal files were (found|opened)", re.IGNORECASE)
_CURSOR = "-- cursor: "


@dataclass(frozen=True, slots=True)
class Lines:
    """`readable` False: nobody knows what was written. `cursor` is where to go on."""

    text: str = ""
    cursor: str | None = None
    readable: bool = True


def tail(unit: str, lines: int) -> list[str]:
    """The last lines of a unit, and where they end."""
    return [*_ALL, f"--lines={lines}", f"--unit={unit}"]


def since(unit: str, cursor: str) -> list[str]:
    """Those after a place."""
    return [*_ALL, f"--lines={MAX_LINES}", f"--unit={unit}", f"--after-cursor={cursor}"]


_ALL = ("journalctl", "--no-pager", "--output=cat", "--show-cursor")


def read(said: Output) -> Lines:
    """What journalctl printed. It may end well and say on the side that it shows nothing of others' messages."""
    hidden = _UNREADABLE.search(said.errors) or "not seeing messages" in said.errors
    if said.code != 0 or hidden:
        return Lines(readable=False)
    lines = said.text.splitlines()
    cursor = next((line.removeprefix(_CURSOR) for line in reversed(lines) if line.startswith(_CURSOR)), None)
    return Lines("\n".join(line for line in lines if not line.startswith((_CURSOR, "-- No entries --"))), cursor)


class Journals:
    """Asks journalctl. All methods block."""

    def __init__(self) -> None:
        self._commands = Commands(patience_s=READ_S)

    def last_words(self, unit: str, lines: int = 5) -> str:
        """The last lines; empty where they cannot be read."""
        return read(self._commands.run(*tail(unit, lines))).text[-SAID:]

    def after(self, unit: str, cursor: str | None) -> Lines:
        """What was written after a place (the empty one is the beginning); with none, nothing but the place where it ends now."""
        if cursor is None:
            found = read(self._commands.run(*tail(unit, 1)))
            return Lines("", found.cursor or "") if found.readable else found
        found = read(self._commands.run(*(since(unit, cursor) if cursor else tail(unit, MAX_LINES))))
        return Lines(found.text, found.cursor or cursor, found.readable)
