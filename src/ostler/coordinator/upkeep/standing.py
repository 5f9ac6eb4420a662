"""How a coordinator's database stands: its schema beside what this release knows, what made it, how much it holds, who has it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Connection, inspect, select

from ostler.coordinator.store import migrate
from ostler.coordinator.store.schema import SCHEMA, meta, metadata, nodes
from ostler.coordinator.store.times import micros
from ostler.coordinator.upkeep.reading import coordinators_on, holder_of, reading, sqlite_path
from ostler.model.node import NodeState
from ostler.protocol.messages import outside

CURRENT, PENDING, NEWER = "current", "pending", "newer"
ALIVE = timedelta(days=1)  # whoever was heard of since is expected back


class Behind(NamedTuple):
    """A node, what it runs, and which protocol it speaks."""

    node_id: str
    version: str
    protocol: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """`schema` is None for an empty database; `known` the newest that this release knows. `state` is `current`, `pending` (an
    upgrade is to be made) or `newer` (than this release). `coordinator` is the process id of whoever runs on it, 0 where that is not
    known, None where nobody does. `behind` are the nodes, heard of in the last day, that speak no protocol of this release's.
    """

    store: str
    schema: int | None
    known: int
    state: str
    release: str | None
    coordinator: int | None = None
    size: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    behind: tuple[Behind, ...] = ()


def standing_of(store: str, *, now: datetime) -> Standing:
    """Look. Raises NotFound; Rejected where it is not a coordinator's database."""
    with reading(store) as connection:
        found = migrate.schema_of(connection)
        path = sqlite_path(store)
        return Standing(
            store=name_of(store),
            schema=found,
            known=SCHEMA,
            state=NEWER if (found or 0) > SCHEMA else CURRENT if found == SCHEMA else PENDING,
            release=None if found is None else _meta(connection, "release"),
            coordinator=_coordinator(connection) if path is None else holder_of(path),
            size=_shared_size(connection) if path is None else _size(path),
            counts=counts_of(connection),
            behind=() if found is None else nodes_behind(connection, now=now),
        )


def nodes_behind(connection: Connection, *, now: datetime) -> tuple[Behind, ...]:
    """The nodes that a coordinator of this release would find outside its window, by id; of any schema."""
    wanted = (
        select(nodes.c.node_id, nodes.c.version, nodes.c.protocol)
        .where(nodes.c.state != NodeState.RETIRED.value, nodes.c.last_seen_at >= micros(now - ALIVE))
        .order_by(nodes.c.node_id)
    )
    return tuple(Behind(*row) for row in connection.execute(wanted) if outside(row.protocol) is not None)


def counts_of(connection: Connection) -> dict[str, int]:
    """How many rows each table has, of those that this release knows and that are there."""
    there = set(inspect(connection).get_table_names())
    return {table.name: count_of(connection, table.name) for table in metadata.sorted_tables if table.name in there}


def count_of(connection: Connection, table: str) -> int:
    """How many rows one table has."""
    return int(connection.exec_driver_sql(f'SELECT count(*) FROM "{table}"').scalar() or 0)  # noqa: S608 - a table of ours


def _meta(connection: Connection, key: str) -> str | None:
    found: str | None = connection.execute(meta.select().with_only_columns(meta.c.value).where(meta.c.key == key)).scalar()
    return found


def name_of(store: str) -> str:
    """A database in words that tell no password."""
    path = sqlite_path(store)
    if path is not None:
        return str(path)
    from ostler.coordinator.store.postgres import describe

    return f"postgresql: {describe(store)}"


def _coordinator(connection: Connection) -> int | None:
    return 0 if coordinators_on(connection) else None


def _shared_size(connection: Connection) -> int:
    return int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar() or 0)


def _size(path: Path) -> int:
    """With what stands in its log."""
    files = (path, path.with_name(f"{path.name}-wal"))
    return sum(file.stat().st_size for file in files if file.exists())
