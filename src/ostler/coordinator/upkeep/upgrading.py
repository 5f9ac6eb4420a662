"""A database of an earlier release becomes one of this release: explicitly, with a copy of it as it was, in one transaction."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection

from ostler import __version__
from ostler.coordinator.store import migrate
from ostler.coordinator.store.database import Database
from ostler.coordinator.store.schema import SCHEMA
from ostler.coordinator.store.sqlite import SqliteDatabase
from ostler.coordinator.upkeep.copying import copy_file
from ostler.coordinator.upkeep.reading import coordinators_on, driver_of, open_shared, reading, sqlite_path
from ostler.coordinator.upkeep.standing import Behind, name_of, nodes_behind
from ostler.model.errors import Conflict, OstlerError, Rejected
from ostler.protocol.messages import PROTOCOL, PROTOCOL_MIN

MOST_NAMED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgraded:
    """From which schema to which; `copy` is the database as it was before. Both are equal where nothing was to be done."""

    store: str
    before: int
    after: int
    copy: str | None = None


def upgrade(store: str, *, keep_copy: bool, now: datetime, logger: logging.Logger, leave_behind: bool = False) -> Upgraded:
    """Bring a database to this release's schema; nothing where it is there. A crash in the middle leaves it as it was.

    Raises Conflict where living nodes speak no protocol of this release's, unless they are to be left behind, and while a coordinator
    runs on it; UpgradeRequired where it is newer than this release, NotFound, Rejected.
    """
    path = sqlite_path(store)
    with reading(store) as connection:
        before = migrate.schema_of(connection)
        if path is None and before != SCHEMA:
            refuse_running(connection, store)
        if before is not None and not leave_behind:
            _refuse_leaving(nodes_behind(connection, now=now))
    done = Upgraded(store=name_of(store), before=before or 0, after=SCHEMA)
    if before == SCHEMA:
        return done
    database: Database = open_shared(store) if path is None else SqliteDatabase(path)
    try:
        copy = None
        if keep_copy and path is not None and before is not None and before < SCHEMA:
            copy = path.with_name(f"{path.name}.schema-{before}-{now:%Y%m%dT%H%M%SZ}")
            copy_file(path, copy)
        migrate.prepare(database, logger=logger, on_purpose=True)
    except Exception as exc:
        error = exc if isinstance(exc, OstlerError) else database.translate(exc)
        if error is None or error is exc:
            raise
        raise error from exc
    finally:
        database.close()
    if path is not None:
        _check(path, copy)
    return replace(done, copy=None if copy is None else str(copy))


def refuse_running(connection: Connection, store: str) -> None:
    """Raises Conflict where coordinators use this database of a server."""
    if coordinators_on(connection):
        raise Conflict(f"a coordinator runs on the database {name_of(store)}", hint="stop all of them first")


def _refuse_leaving(behind: Sequence[Behind]) -> None:
    if not behind:
        return
    named = [f"{one.node_id} (protocol {one.protocol}, release {one.version})" for one in behind[:MOST_NAMED]]
    more = f" and {len(behind) - MOST_NAMED} more" if len(behind) > MOST_NAMED else ""
    spoken = f"{PROTOCOL}" if PROTOCOL_MIN == PROTOCOL else f"{PROTOCOL_MIN} to {PROTOCOL}"
    hosts = " ".join(f"--host {one.node_id}" for one in behind[:MOST_NAMED])
    raise Conflict(
        f"a coordinator of this release ({__version__}, protocol {spoken}) would get no work done by nodes that live: "
        f"{', '.join(named)}{more}",
        hint=f"update them first: `ostler fleet update {hosts}`; or let them keep what they run and get nothing new until "
        "they are updated: `ostler db upgrade --leave-nodes-behind`",
    )


def _check(path: Path, copy: Path | None) -> None:
    with reading(str(path)) as connection:
        driver = driver_of(connection)
        found = [str(row) for row in driver.execute("PRAGMA foreign_key_check").fetchmany(3)]
        found += [row[0] for row in driver.execute("PRAGMA quick_check(3)") if row[0] != "ok"]
    if found:
        raise Rejected(
            f"{path} was upgraded, and is damaged: {'; '.join(found)}",
            hint=f"the database as it was before: {copy}" if copy is not None else "restore it from a backup",
        )
