"""Which schema a database has, whether this release may use it, and how it gets the newest one."""

import logging

from sqlalchemy import Connection, inspect

from ostler import __version__
from ostler.coordinator.store.database import Database
from ostler.coordinator.store.schema import SCHEMA, meta, metadata
from ostler.model.errors import Rejected, UpgradeRequired
from ostler.protocol.messages import PROTOCOL


def prepare(database: Database, *, logger: logging.Logger, on_purpose: bool = False) -> None:
    """Make the tables of a new database, migrate an older one forward, refuse what this release does not know.

    Everything happens in one transaction: a crash in the middle leaves the database as it was. One that coordinators of an earlier
    release may still use is migrated `on_purpose` alone, and otherwise refused.
    """
    connection = database.connect(write=True)
    try:
        database.begin_schema(connection)
        try:
            found = schema_of(connection)
            _refuse_newer(connection, found or 0)
            if found is None:
                metadata.create_all(connection)
                connection.exec_driver_sql(
                    "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, "
                    "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
                )
                connection.exec_driver_sql(f"INSERT INTO alembic_version VALUES ('{SCHEMA:04}')")  # noqa: S608 - a number of ours
                database.tune(connection)
                stamp(connection)
            elif found < SCHEMA:
                if not on_purpose:
                    _refuse_shared(connection, found)
                logger.info("schema_migrating", extra={"attrs": {"from": found, "to": SCHEMA}})
                upgrade(connection)
                database.tune(connection)
                stamp(connection)
            elif _value(connection, "release") != __version__:
                stamp(connection)
        except BaseException:
            database.rollback(connection)
            raise
        database.commit(connection)
    finally:
        connection.close()


def _refuse_shared(connection: Connection, found: int) -> None:
    if connection.dialect.name != "sqlite":
        raise UpgradeRequired(
            f"the database has schema {found}; this release ({__version__}) needs {SCHEMA}",
            hint="stop all coordinators that run on it, and run: ostler db upgrade --store URL",
        )


def _refuse_newer(connection: Connection, found: int) -> None:
    if found > SCHEMA:
        raise UpgradeRequired(
            f"the database has schema {found}; this release ({__version__}) knows up to {SCHEMA}",
            hint=f"run the release that made it ({_value(connection, 'release')}) or a newer one: pipx upgrade ostler",
        )


def schema_of(connection: Connection) -> int | None:
    """The schema's number; None for an empty database. Raises Rejected where the tables are not Ostler's."""
    names = inspect(connection).get_table_names()
    if not names:
        return None
    number = _value(connection, "schema") if "meta" in names and "jobs" in names else None
    if number is None or not number.isdecimal():
        raise Rejected(
            "the database holds tables, but not those of an Ostler coordinator",
            hint="point --data at another directory, or restore the right file from a backup",
        )
    return int(number)


def stamp(connection: Connection) -> None:
    """Write down what this database is made by."""
    for key, value in {"schema": str(SCHEMA), "protocol": str(PROTOCOL), "release": __version__}.items():
        if connection.execute(meta.update().where(meta.c.key == key).values(value=value)).rowcount == 0:
            connection.execute(meta.insert().values(key=key, value=value))


def _value(connection: Connection, key: str) -> str | None:
    found: str | None = connection.execute(meta.select().with_only_columns(meta.c.value).where(meta.c.key == key)).scalar()
    return found


def upgrade(connection: Connection, to: str = "head") -> None:
    """Migrate to the newest schema (or only up to a revision), inside the caller's transaction."""
    # Alembic costs 20 MB and 0.2 s that a coordinator with nothing to migrate does not pay.
    from alembic import command
    from alembic.config import Config

    if not connection.in_transaction():
        connection.begin()  # Core's own mark; the transaction was begun by `Database.begin`
    config = Config()
    config.set_main_option("script_location", "ostler.coordinator.store:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, to)
