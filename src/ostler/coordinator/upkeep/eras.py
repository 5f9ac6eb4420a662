"""A new era of a database that was set back: numbers that were given out after its backup are never given out again.

Nodes go on while a coordinator is lost, with attempts that the restored database does not know. An attempt is fenced by its number,
a reader of events stands at an id: were either given out twice, a late result of the lost time would pass for one of now, and a
reader would wait for ids that it had. So both go on from the time of the restore, which no earlier life of the database can
have reached: attempts from its second, events from the same number times 2^20.
"""

from datetime import UTC, datetime

from ostler import __version__
from ostler.coordinator.store.database import Database
from ostler.coordinator.store.times import micros
from ostler.coordinator.store.tx import Tx
from ostler.coordinator.upkeep.numbers import last_number, set_last_number

ATTEMPTS = "attempts"  # in `counters`: no attempt is given this number or a lower one any more
SECOND_ZERO = datetime(2026, 1, 1, tzinfo=UTC)
EVENTS_EACH = 2**20  # more than a database writes in a second
MARGIN = 1000  # where a clock stands wrong, still beyond what was seen


def begin_era(database: Database, backup_id: str, taken_at: datetime, *, now: datetime) -> int:
    """Raise the numbers and write the restore into the audit log, in one transaction; the lowest number that is not used."""
    connection = database.connect(write=True)
    try:
        database.begin(connection, write=True)
        try:
            tx = Tx(connection, database, now, {})
            era = _raise_numbers(tx)
            tx.run(
                "INSERT INTO audit (at, action, target, status, detail) VALUES (?, 'restore', ?, 200, ?)",
                (micros(now), backup_id, f"as it was at {taken_at:%Y-%m-%d %H:%M:%S} UTC, by release {__version__}"),
            )
        except BaseException:
            database.rollback(connection)
            raise
        database.commit(connection)
    finally:
        connection.close()
    return era


def _raise_numbers(tx: Tx) -> int:
    [used] = tx.rows("SELECT coalesce(max(attempt), 0) FROM jobs")
    [before] = tx.rows("SELECT coalesce(max(next), 0) FROM counters WHERE name = ?", (ATTEMPTS,))
    era = max(int((tx.now - SECOND_ZERO).total_seconds()), int(used[0]) + MARGIN, int(before[0]) + MARGIN)
    tx.run("DELETE FROM counters WHERE name = ?", (ATTEMPTS,))
    tx.run("INSERT INTO counters (name, next) VALUES (?, ?)", (ATTEMPTS, era))
    set_last_number(tx.connection, "events", "id", max(era * EVENTS_EACH, last_number(tx.connection, "events", "id")))
    return era
