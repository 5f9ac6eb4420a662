"""A coordinator's data out of a backup, and the proof that a backup can become data again."""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from ostler.coordinator.config import CoordinatorConfig
from ostler.coordinator.store import migrate
from ostler.coordinator.store.schema import SCHEMA
from ostler.coordinator.store.sqlite import SqliteDatabase
from ostler.coordinator.upkeep.backing_up import SMALL, artifact_place, keys_of
from ostler.coordinator.upkeep.checksums import differences
from ostler.coordinator.upkeep.copying import sync
from ostler.coordinator.upkeep.eras import begin_era
from ostler.coordinator.upkeep.lanes import in_lanes
from ostler.coordinator.upkeep.places.directory import write_file
from ostler.coordinator.upkeep.progress import Progress, Tell
from ostler.coordinator.upkeep.reading import driver_of, holder_of, reading, sqlite_path
from ostler.coordinator.upkeep.repository import DATABASE, Manifest, Repository
from ostler.coordinator.upkeep.standing import name_of
from ostler.coordinator.upkeep.transferring import into, refuse_used
from ostler.model.errors import Conflict, Rejected, UpgradeRequired

T = TypeVar("T")

RESTORING = "ostler.restoring"
_MANY = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was restored where. `kept` are files of the coordinator's own that were there already and stayed as they were; `moved` is
    the database that was there before."""

    backup: Manifest
    store: str
    artifacts: int
    keys: tuple[str, ...]
    kept: tuple[str, ...]
    moved: str | None
    warnings: tuple[str, ...]


def restore(
    repository: Repository, backup: Manifest, config: CoordinatorConfig, *, replace: bool, now: datetime, logger: logging.Logger,
    tell: Tell = lambda _: None,
) -> Restored:  # fmt: skip
    """Make a coordinator's data what it was when the backup was taken. Whatever happens in between, there is no database, or a whole one.

    Raises Conflict while a coordinator runs there, or where there is a database already (`replace` moves a file aside); Rejected where
    the backup is not whole; UpgradeRequired where it is of a newer release.
    """
    data, path = config.data, sqlite_path(config.database)
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path is not None and path.exists() and not replace:
        raise Conflict(
            f"there is a database already: {path}",
            hint="--replace moves it aside, and keeps it; or restore into another directory: --data DIR",
        )
    if path is None:
        refuse_used(config.database, logger=logger)
    else:
        if (holder := holder_of(path)) is not None:
            raise Conflict(
                f"a coordinator{f' (pid {holder})' if holder else ''} runs on {path}",
                hint="stop it first, or restore into another directory: --data DIR",
            )
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = data / RESTORING if path is None else path.with_suffix(".restoring")  # its lock is that of the database
    database = SqliteDatabase(part)
    try:
        _fill(repository, backup, part, tell)
        migrate.prepare(database, logger=logger)
        begin_era(database, backup.backup_id, backup.taken_at, now=now)
        artifacts = _artifacts(repository, backup, config, tell)
        keys, kept = _keys(repository, backup, data)
        _fold(database)
        moved = _move_aside(path, now) if path is not None and path.exists() else None
        if path is None:
            with reading(str(part)) as connection:
                into(connection, config.database, logger=logger, tell=tell)
        else:
            part.rename(path)
            sync(path.parent)
    finally:
        _remove(part)
        database.close()
    return Restored(
        backup=backup, store=name_of(config.database), artifacts=artifacts, keys=keys, kept=kept, moved=moved,
        warnings=tuple(_warnings(backup, config)),
    )  # fmt: skip


def _fold(database: SqliteDatabase) -> None:
    """Make the one file hold everything, so that it can be renamed alone."""
    connection = database.connect(write=True)
    try:
        connection.exec_driver_sql("PRAGMA journal_mode = DELETE")
    finally:
        connection.close()


def _fill(repository: Repository, backup: Manifest, target: Path, tell: Tell) -> None:
    """The database of the backup as a file, held against what the manifest says of it."""
    if backup.schema > SCHEMA:
        raise UpgradeRequired(
            f"the backup has schema {backup.schema}; this release knows up to {SCHEMA}",
            hint=f"run the release that made it ({backup.release}) or a newer one: pipx upgrade ostler",
        )
    tell(Progress("the database"))
    _remove(target)  # with what an earlier try left beside it
    write_file(target, repository.get(backup, DATABASE))
    tell(Progress("checking it"))
    with reading(str(target)) as connection:
        found = [row[0] for row in driver_of(connection).execute("PRAGMA quick_check(3)") if row[0] != "ok"]
        found += [f"row {row[1]} of {row[0]} names what is not there" for row in driver_of(connection).execute(_FOREIGN)]
        found += differences(backup.tables, connection)
    if found:
        raise Rejected(
            f"the backup {backup.backup_id} does not hold what it says: {'; '.join(found[:5])}",
            hint="take another one: see `ostler backup list`",
        )


def _remove(database: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        database.with_name(f"{database.name}{suffix}").unlink(missing_ok=True)


_FOREIGN = "SELECT * FROM pragma_foreign_key_check LIMIT 3"


def _artifacts(repository: Repository, backup: Manifest, config: CoordinatorConfig, tell: Tell) -> int:
    """Put the contents where the artifact store has them; those that are there already stay. How many came."""

    def fetch(content: tuple[str, int]) -> bool:
        sha256, size = content
        place = artifact_place(config, sha256)
        if place.exists() and place.stat().st_size == size:
            return False
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(place, repository.get_object(sha256))
        return True

    count = 0
    for number, (_, came) in enumerate(_each_object(repository, backup, fetch), 1):
        count += came
        if number % _MANY == 0:
            tell(Progress("artifacts", number, backup.objects))
    for shelf in (config.artifacts_directory / "objects").glob("??"):
        sync(shelf)
    return count


def _each_object(
    repository: Repository, backup: Manifest, work: Callable[[tuple[str, int]], T]
) -> Iterator[tuple[tuple[str, int], T]]:
    return in_lanes(repository.place.lanes, repository.objects_of(backup), work, large=lambda content: content[1] > SMALL)


def _keys(repository: Repository, backup: Manifest, data: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The coordinator's own files that the backup has: those written, and those that were there already."""
    written, kept = [], []
    for name in backup.keys:
        place = data / name
        if place.exists():
            kept.append(name)
            continue
        place.parent.mkdir(mode=0o700, exist_ok=True)
        write_file(place, repository.get(backup, name))
        sync(place.parent)
        written.append(name)
    return tuple(written), tuple(kept)


def _move_aside(path: Path, now: datetime) -> str:
    aside = path.with_name(f"{path.name}.before-restore-{now:%Y%m%dT%H%M%SZ}")
    for suffix in ("-wal", "-shm", ""):  # the database last: its log without it would be nobody's
        file = path.with_name(f"{path.name}{suffix}")
        if file.exists():
            os.rename(file, aside.with_name(f"{aside.name}{suffix}"))  # noqa: PTH104 - as it is said of files here
    return str(aside)


def _warnings(backup: Manifest, config: CoordinatorConfig) -> Iterator[str]:
    """What a person must do, or know, before a coordinator starts on it."""
    data = config.data
    if backup.store != ("sqlite" if sqlite_path(config.database) is not None else "postgresql"):
        yield f"the backup is of a coordinator on {backup.store}: `store` in coordinator.yaml must say where its database is now"
    signing, sealing = keys_of(data)
    if backup.signing_key is not None and (signing is None or signing.public_key().public_bytes_raw() != backup.signing_key):
        yield (
            "the keys of the coordinator that was backed up are not here: nodes obey no other one. Put them into "
            f"{data / 'keys'} before it starts, or have every node join anew"
        )
    if backup.secrets_key is not None and sealing != backup.secrets_key:
        yield "the key of its secrets is not here: secrets and webhooks must be set anew without it"
    if backup.missing:
        yield f"{backup.missing} artifacts were not there any more when the backup was taken"
    yield (
        f"what happened after {backup.taken_at:%Y-%m-%d %H:%M:%S} UTC is forgotten, revocations of tokens and retirements of nodes too: "
        "`ostler token list`, `ostler node list`"
    )


def verify(
    repository: Repository, backup: Manifest, scratch: Path, *, logger: logging.Logger, tell: Tell = lambda _: None
) -> None:
    """Restore into an empty scratch directory, migrate, open; and read every content of the repository that belongs to it.

    Raises Rejected, Forbidden with what is wrong.
    """
    repository.check_signature(backup)
    _fill(repository, backup, scratch / RESTORING, tell)
    database = SqliteDatabase(scratch / RESTORING)
    try:
        migrate.prepare(database, logger=logger)
    finally:
        database.close()
    for name in backup.keys:
        for _ in repository.get(backup, name):
            pass
    count = total = 0

    def read(content: tuple[str, int]) -> int:
        return sum(map(len, repository.get_object(content[0])))

    for count, ((sha256, size), found) in enumerate(_each_object(repository, backup, read), 1):
        if found != size:
            raise Rejected(f"the content {sha256} has {found} bytes, not {size}")
        total += size
        if count % _MANY == 0:
            tell(Progress("artifacts", count, backup.objects))
    if (count, total) != (backup.objects, backup.object_bytes):
        raise Rejected(f"{count} artifacts of {total} bytes are listed, not {backup.objects} of {backup.object_bytes}")
