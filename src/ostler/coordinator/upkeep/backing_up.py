"""A backup of a coordinator, taken from beside it while it works: database, artifacts and, where asked for, its keys."""

import contextlib
import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection

from ostler import __version__
from ostler.coordinator.config import CoordinatorConfig
from ostler.coordinator.sealing import KEY_BYTES, Sealer
from ostler.coordinator.store import migrate
from ostler.coordinator.store.schema import SCHEMA
from ostler.coordinator.upkeep.checksums import pieces, sums_of
from ostler.coordinator.upkeep.copying import copy_file
from ostler.coordinator.upkeep.lanes import in_lanes
from ostler.coordinator.upkeep.progress import Progress, Tell
from ostler.coordinator.upkeep.reading import driver_of, reading, sqlite_path
from ostler.coordinator.upkeep.repository import (
    BLOCK,
    DATABASE,
    FORMAT,
    OBJECTS,
    OWN_DIRECTORIES,
    OWN_FILES,
    Begun,
    Manifest,
    Objects,
    Repository,
    StoredFile,
    is_own,
)
from ostler.coordinator.upkeep.standing import name_of
from ostler.coordinator.upkeep.transferring import into
from ostler.model.errors import OperationInFlight, Rejected

# Every place where a row names a content of the artifact store (`operations.removals.unnamed` asks the same). Small ones stand in
# the database itself.
NAMED = """
    SELECT sha256 FROM inputs UNION SELECT sha256 FROM handed WHERE sha256 IS NOT NULL UNION SELECT sha256 FROM artifacts
    UNION SELECT workspace FROM attempts WHERE workspace IS NOT NULL UNION SELECT sha256 FROM uploads UNION SELECT sha256 FROM releases
    EXCEPT SELECT sha256 FROM contents ORDER BY 1"""
SMALL = 2**20  # bytes: contents up to this size go side by side
_MANY = 1000


def back_up(
    config: CoordinatorConfig, repository: Repository, *, with_keys: bool, now: datetime, logger: logging.Logger,
    tell: Tell = lambda _: None,
) -> Manifest:  # fmt: skip
    """Take one backup. The coordinator may run, or not, and notices nothing.

    Artifacts come before the database as well as after it: so what retention removes in between was copied, and what arrives in
    between is. Raises Rejected where the database is damaged or of another schema, OperationInFlight, StoreBusy (the disk).
    """
    check_source(config)
    with _scratch(config.data) as scratch, repository.begin(now) as begun:
        _objects(config, repository, config.database, tell)
        # Where it can be the database is copied to its place at once.
        at_once = repository.local(begun, DATABASE) if sqlite_path(config.database) is not None else None
        plain = at_once or scratch / DATABASE
        _copy_database(config, plain, logger, tell)
        tell(Progress("checking the copy"))
        with reading(str(plain)) as connection:
            _refuse_damaged(connection)
            tables = sums_of(connection)
        with (scratch / OBJECTS).open("w+b") as listing:
            taken = _objects(config, repository, str(plain), tell, listing)
        tell(Progress("storing the copy"))
        files = {
            DATABASE: stored(plain) if at_once else _put(repository, begun, DATABASE, plain),
            OBJECTS: _put(repository, begun, OBJECTS, scratch / OBJECTS),
            **(_own_files(config.data, repository, begun) if with_keys else {}),
        }
        signing, sealing = keys_of(config.data)
        manifest = Manifest(
            format=FORMAT, backup_id=begun.backup_id, taken_at=now, release=__version__, schema=SCHEMA,
            store="postgresql" if sqlite_path(config.database) is None else "sqlite",
            tables=tables, files=files, objects=taken.count, object_bytes=taken.size, missing=len(taken.missing),
            keys=tuple(name for name in files if name not in {DATABASE, OBJECTS}),
            signing_key=None if signing is None else signing.public_key().public_bytes_raw(),
            secrets_key=sealing, encrypted=repository.encrypted,
        )  # fmt: skip
        repository.finish(begun, manifest, None if signing is None else signing.sign)
    attrs = {"backup_id": manifest.backup_id, "jobs": tables["jobs"].rows, "objects": taken.count}
    if taken.missing:
        logger.warning("contents_missing", extra={"attrs": {**attrs, "missing": sorted(taken.missing)[:20]}})
    logger.info("backed_up", extra={"attrs": attrs})
    return manifest


@contextlib.contextmanager
def _scratch(data: Path) -> Iterator[Path]:
    """A directory beside the database for one backup at a time; what a killed one left in it is gone before the next."""
    place = data / ".backup"
    place.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _empty(place)
        try:
            yield place
        finally:
            _empty(place)
    except BlockingIOError as exc:
        raise OperationInFlight(f"another backup of {data} is under way", hint="wait until it is over") from exc
    finally:
        os.close(descriptor)


def _empty(place: Path) -> None:
    for left in place.iterdir():
        left.unlink()


def check_source(config: CoordinatorConfig) -> None:
    """Raises NotFound where there is no database, Rejected where it is not of this release's schema."""
    with reading(config.database) as connection:
        found = migrate.schema_of(connection)
    if found != SCHEMA:
        raise Rejected(
            f"{name_of(config.database)} has schema {found}, and this release knows {SCHEMA}",
            hint="`ostler db status` tells what to do; a backup is taken with the release that the coordinator has",
        )


def _copy_database(config: CoordinatorConfig, target: Path, logger: logging.Logger, tell: Tell) -> None:
    tell(Progress("copying the database"))
    path = sqlite_path(config.database)
    if path is not None:
        copy_file(path, target)
        return
    with reading(config.database) as connection:
        into(connection, str(target), logger=logger, tell=tell)


def _refuse_damaged(connection: Connection) -> None:
    found = [row[0] for row in driver_of(connection).execute("PRAGMA quick_check(3)") if row[0] != "ok"]
    if found:
        raise Rejected(
            f"the database is damaged, and a backup of it would be: {'; '.join(found)}",
            hint="stop the coordinator, and restore the newest good backup: `ostler backup list`",
        )


@dataclass(frozen=True, slots=True)
class _Taken:
    count: int
    size: int
    missing: frozenset[str]


def _objects(
    config: CoordinatorConfig, repository: Repository, store: str, tell: Tell, listing: BinaryIO | None = None
) -> _Taken:  # fmt: skip
    """Store every content that the database names and that is not there yet; `listing` gets a line for each."""
    count = total = 0
    missing = set()
    there = repository.objects()

    def keep(sha256: str) -> int | None:
        try:
            return _keep(repository, there, sha256, artifact_place(config, sha256))
        except FileNotFoundError:
            return None

    def large(sha256: str) -> bool:
        place = artifact_place(config, sha256)
        return sha256 not in there and place.exists() and place.stat().st_size > SMALL

    with reading(store) as connection:
        for sha256, size in in_lanes(repository.place.lanes, named(connection), keep, large=large):
            if size is None:
                missing.add(sha256)
                continue
            count, total = count + 1, total + size
            if listing is not None:
                listing.write(f"{sha256} {size}\n".encode())
            if count % _MANY == 0:
                tell(Progress("artifacts", count))
    return _Taken(count, total, frozenset(missing))


def _keep(repository: Repository, there: Objects, sha256: str, source: Path) -> int:
    """Have a content in the repository; its size. Raises FileNotFoundError where it is in neither place."""
    if sha256 not in there:
        return repository.put_object(sha256, source)
    try:
        return source.stat().st_size
    except FileNotFoundError:  # retention took it meanwhile
        return sum(map(len, repository.get_object(sha256)))


def named(connection: Connection) -> Iterator[str]:
    """The contents that the database names, each once, in order."""
    for rows in pieces(connection, NAMED):
        yield from (row[0] for row in rows)


def artifact_place(config: CoordinatorConfig, sha256: str) -> Path:
    """Where the coordinator's artifact store has a content (`artifacts.store`)."""
    return config.artifacts_directory / "objects" / sha256[:2] / sha256[2:]


def _put(repository: Repository, begun: Begun, name: str, source: Path) -> StoredFile:
    with source.open("rb") as file:
        blocks = iter(lambda: file.read(BLOCK), b"")
        return repository.put(begun, name, blocks, source.stat().st_size)


def stored(path: Path) -> StoredFile:
    """A file as it lies there."""
    with path.open("rb") as file:
        return StoredFile(size=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _own_files(data: Path, repository: Repository, begun: Begun) -> dict[str, StoredFile]:
    """What makes this coordinator the one that nodes and people know: keys, its token, its certificates, its configuration."""
    found = [data / name for name in OWN_FILES]
    found += [file for name in OWN_DIRECTORIES for file in sorted((data / name).glob("*")) if not file.name.startswith(".")]
    files = {}
    for file in found:
        name = str(file.relative_to(data))
        if file.is_file() and is_own(name):
            files[name] = _put(repository, begun, name, file)
    return files


def keys_of(data: Path) -> tuple[Ed25519PrivateKey | None, str | None]:
    """The key that signs the manifest, and the id of the one that seals secrets; None for those that do not lie here."""
    signing, sealing = None, None
    with contextlib.suppress(FileNotFoundError, ValueError):
        signing = Ed25519PrivateKey.from_private_bytes((data / "keys" / "signing.key").read_bytes())
    with contextlib.suppress(FileNotFoundError):
        content = (data / "keys" / "secrets.key").read_bytes()
        if len(content) == KEY_BYTES:
            sealing = Sealer(content).key_id.hex()
    return signing, sealing
