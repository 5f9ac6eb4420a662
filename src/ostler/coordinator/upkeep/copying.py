"""A consistent copy of an SQLite database while others write to it."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from ostler.coordinator.upkeep.reading import driver_of, reading
from ostler.model.errors import Rejected, StoreBusy


def copy_file(source: Path, target: Path) -> None:
    """Copy a database into a new file (0600) that needs no log beside it; nothing is left where that fails.

    All pages are copied in one step, under one snapshot: writers go on, and their log cannot be cut back until it is over.
    """
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with reading(str(source)) as connection, closing(sqlite3.connect(part, isolation_level=None)) as copy:
            driver_of(connection).backup(copy, pages=-1)
            copy.execute("PRAGMA journal_mode = DELETE")
        sync(part)
        part.replace(target)
        sync(target.parent)
    except sqlite3.Error as exc:
        if exc.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise StoreBusy(f"{source} cannot be copied to {target}: {exc}", hint=f"df -h {disk_of(target)}") from exc
        raise Rejected(f"{source} cannot be copied to {target}: {exc}") from exc
    except OSError as exc:
        raise StoreBusy(
            f"{source} cannot be copied to {target}: {exc.strerror}", hint=f"look at the free space: df -h {disk_of(target)}"
        ) from exc
    finally:
        part.unlink(missing_ok=True)


def disk_of(path: Path) -> Path:
    """Where the file system is mounted that a path is on: still there when the path is not."""
    return next(one for one in path.absolute().parents if one.is_mount())


def sync(path: Path) -> None:
    """Make a file, or the names in a directory, durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
