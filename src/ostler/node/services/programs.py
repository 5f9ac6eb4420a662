"""Whether the program that a unit expects is there and is the one that is meant (S4). It is only looked at here: links are root's."""

import re
from pathlib import Path

from ostler.node.allowlist import Entry
from ostler.node.allowlist_binary import BinaryCheck
from ostler.node.config import ServiceConfig
from ostler.node.probe.command import Commands

VERSION_S = 5.0

_Identity = tuple[int, int, int, int]


class Programs:
    """Looks; what a program says of its version is asked once for each file. Blocks."""

    def __init__(self) -> None:
        self._check = BinaryCheck()
        self._commands = Commands(patience_s=VERSION_S)
        self._said: dict[str, tuple[_Identity, str | None]] = {}

    def absent(self, name: str, config: ServiceConfig) -> str | None:
        """Why the service cannot work; None where it can, or nothing is declared."""
        if config.binary is None:
            return None
        path = str(config.binary)
        try:
            found = config.binary.stat()
        except OSError:
            elsewhere = [str(one) for one in config.candidates if one != config.binary and one.exists()]
            if elsewhere:
                return f"{path} is missing; {elsewhere[0]} is there: `ostler node install` or `ostler fleet update` links it"
            return f"{name} not found, its service will not work"
        if amiss := self._check.verify(Entry(name=name, path=path, file="services")):
            return f"{amiss.message}; its service will not work"
        if config.version is None:
            return None
        identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        known = self._said.get(path)
        if known is None or known[0] != identity:
            known = self._said[path] = (identity, self._wrong_version(config.binary, config.version))
        return known[1]

    def _wrong_version(self, path: Path, pattern: str) -> str | None:
        said = self._commands.run(str(path), "--version")
        text = (said.text + said.errors)[:4096]
        if said.code is None:
            return f"{path} --version did not end within {VERSION_S:g} s; its service will not work"
        if re.search(pattern, text):
            return None
        return f"{path} --version says {(text.strip().splitlines() or ['nothing'])[0]!r:.80}, not {pattern}; its service will not work"
