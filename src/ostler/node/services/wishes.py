"""What people last asked of each service, on the disk: it holds over restarts of the daemon and of the machine (S14)."""

import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from ostler.model.service import Desired

FILE = "services.json"


@dataclass(frozen=True, slots=True)
class Wish:
    """`desired` None: nobody asked. `restarts` and `tries` are the restart policy's, so that they outlive the daemon."""

    desired: Desired | None = None
    restarts: int = 0
    tries: int = 0


@dataclass(frozen=True, slots=True)
class _Written:
    boot: str = ""
    services: dict[str, Wish] = field(default_factory=dict)


class Wishes:
    """A small file, replaced whole and on the disk before `keep` returns. What cannot be read counts as nothing asked."""

    def __init__(self, state: Path) -> None:
        """`state` is the node's directory. Blocks."""
        self._file = state / FILE
        self._now = _Written()
        with suppress(OSError, msgspec.MsgspecError):
            self._now = msgspec.json.decode(self._file.read_bytes(), type=_Written)

    def is_new(self, boot: str) -> bool:
        """Whether another boot than this was the last that was settled."""
        return self._now.boot not in {"", boot}

    def of(self, name: str) -> Wish:
        """What is known of one service."""
        return self._now.services.get(name, Wish())

    def keep(self, name: str, wish: Wish) -> None:
        """From now on it is this. Blocks; raises OSError, and then the old one still stands."""
        if self._now.services.get(name) != wish:
            self._write(replace(self._now, services={**self._now.services, name: wish}))

    def settle(self, boot: str) -> None:
        """What a new boot asked for is done. Blocks; raises OSError."""
        if self._now.boot != boot:
            self._write(replace(self._now, boot=boot))

    def _write(self, fresh: _Written) -> None:
        half = self._file.with_name(f".{self._file.name}.new")
        descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(fresh))
            file.flush()
            os.fsync(descriptor)
        half.replace(self._file)
        folder = os.open(self._file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._now = fresh
