"""What a place of backups must do: keep named contents, and let those that change it know of each other."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Hold:
    """One that changes a place, while it does. `alone`: nobody adds to it meanwhile, so what no backup names may go. `check` raises
    OperationInFlight where others may believe by now that this one is over."""

    alone: bool
    check: Callable[[], None] = _nothing


class Place(Protocol):
    """Contents by their names, which are relative and have slashes: `FOLDER/NAME`, or a NAME alone.

    A content is there whole or not at all, for whoever asks after it was written. What is missing raises FileNotFoundError; what
    the place does not let us do, an OstlerError that says so.
    """

    lanes: int  # how many small contents to move at once

    @property
    def shown(self) -> str:
        """Its address, for people."""
        ...

    def folders(self) -> list[str]:
        """The folders in it; none where it does not exist."""
        ...

    def names(self, folder: str = "") -> Iterator[str]:
        """The names of all contents in a folder and in those below it, or in the whole place, in no order."""
        ...

    def read(self, name: str) -> bytes:
        """A small content."""
        ...

    def stream(self, name: str) -> Iterator[bytes]:
        """One of any size, in blocks."""
        ...

    def claim(self, name: str, content: bytes) -> bool:
        """Write a small content unless one is there, and make the place where there is none; whether it is ours that stands there."""
        ...

    def write(self, name: str, blocks: Iterable[bytes], size: int) -> None:
        """Write a content of about so many bytes. What `blocks` raises is raised, and nothing was written then."""
        ...

    def local(self, name: str) -> Path | None:
        """The file on this machine that such a content is, where it is one; its folder exists then."""
        ...

    def new_folder(self, stem: str) -> str:
        """The name of a folder that nobody else writes to: `stem`, or one that begins with it."""
        ...

    def settle(self, folder: str) -> None:
        """Make sure that everything in a folder outlives a crash of the machine that keeps it."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Remove contents; those that are not there are no error."""
        ...

    def drop(self, folder: str) -> None:
        """Remove a folder with everything in it."""
        ...

    def hold(self, *, prune: bool) -> AbstractContextManager[Hold]:
        """In here this one adds to the place, or takes from it. Raises OperationInFlight where that cannot be done now."""
        ...

    def removal(self, folder: str) -> str:
        """The command by which a person removes a folder."""
        ...
