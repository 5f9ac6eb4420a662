"""The attempts that are over and not forgotten yet: their records in the journal, for `list`, and in files.

A record gets its file where it is not forgotten soon: the daemon that heard of an end lets go of it once that is delivered, and
the journal tells until then. Thousands of short jobs would make and delete thousands of files.
"""

from ostler.node.keeper import wire
from ostler.node.keeper.journal import Journal, replace_file

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing and collections cost memory
    from collections.abc import Callable

_KEPT = 20_000
_FILE_AFTER_S = 0.5


class _Ended:
    """What `list` tells of one; `record` is JSON."""

    __slots__ = ("pid", "record", "start_time", "started_at")

    def __init__(self, record: dict[str, object], text: str) -> None:
        self.pid = record["pid"]
        self.start_time = record["start_time"]
        self.started_at = record["started_at"]
        self.record = text


class Archive:
    """Keeps records until they are forgotten, and tries again to write those that a full disk would not take."""

    def __init__(self, journal: Journal, log: "Callable[[str, dict[str, object]], None]") -> None:
        self._journal = journal
        self._log = log
        self._ended: dict[str, _Ended] = {}
        self._unwritten: dict[str, tuple[float, str, str]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._ended

    def __len__(self) -> int:
        return len(self._ended)

    def add(self, record: dict[str, object], path: str | None, now: float) -> str:
        """Take in the record of an attempt that has just ended; returns its JSON. `mend` sees to its file."""
        text = wire.encode(record)
        self.restore(record, text)
        if path is not None:
            self._unwritten[str(record["key"])] = (now + _FILE_AFTER_S, path, text)
        self._journal.later(f'{{"end":{text}}}\n')
        return text

    def restore(self, record: dict[str, object], text: str) -> None:
        """Take in a record that stands in the journal already."""
        if len(self._ended) >= _KEPT:  # nobody forgets: the record files still tell
            del self._ended[next(iter(self._ended))]
        self._ended[str(record["key"])] = _Ended(record, text)

    def drop(self, key: str) -> None:
        """Let go of a record whose key is in use again."""
        self._ended.pop(key, None)
        self._unwritten.pop(key, None)

    def forget(self, key: str) -> None:
        """Let go of a record for good; one that is unknown is forgotten already."""
        self._unwritten.pop(key, None)
        if self._ended.pop(key, None) is not None:
            self._journal.later(f'{{"forget":{wire.encode(key)}}}\n')

    def children(self) -> list[str]:
        """Entries of `list`, as JSON."""
        return [child(key, one.pid, one.start_time, one.started_at, one.record) for key, one in self._ended.items()]

    def journal_lines(self) -> list[str]:
        """What the journal must tell of them."""
        return [f'{{"end":{one.record}}}\n' for one in self._ended.values()]

    def mend(self, now: float) -> bool:
        """Write the files that are due, also those that could not be written before; True when none waits."""
        for key, (due, path, text) in list(self._unwritten.items()):
            if due <= now and self._written(path, text):
                del self._unwritten[key]
        return not self._unwritten

    def _written(self, path: str, text: str) -> bool:
        try:
            replace_file(path, text)
        except (FileNotFoundError, NotADirectoryError):
            self._log("keeper.record_homeless", {"path": path})  # the workspace is gone; `list` still tells
        except OSError as error:
            self._log("keeper.record_unwritten", {"path": path, "error": str(error)})
            return False
        return True


def child(key: str, pid: object, start_time: object, started_at: object, record: str | None) -> str:
    """One entry of `list`, with the record's JSON put in as it is; an attempt without one runs."""
    entry = {"key": key, "pid": pid, "start_time": start_time, "started_at": started_at, "running": record is None}
    return f'{wire.encode(entry)[:-1]},"record":{record or "null"}}}'
