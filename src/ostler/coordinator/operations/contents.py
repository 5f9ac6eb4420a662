"""Small artifacts, which came inside an outcome and stand in the database: stored with it in one transaction, and as durable.

They are named by their sha256 like the files of the artifact store, and kept as long as a row names them.
"""

from collections.abc import Iterable, Mapping, Sequence

from ostler.coordinator.operations.removals import unnamed
from ostler.coordinator.store.tx import Row, Tx

PAGE = 500


def keep(tx: Tx, contents: Mapping[str, bytes]) -> None:
    """Store bytes by their sha256. What is there already is as young as what is new: whoever removes old ones passes over it."""
    tx.at_commit(_keep, contents)  # many jobs may bring the same bytes


def _keep(tx: Tx, some: list[Mapping[str, bytes]]) -> None:
    contents = {sha256: data for one in some for sha256, data in one.items()}
    tx.many(
        "INSERT INTO contents (sha256, stored_at, data) VALUES (?, ?, ?) "
        "ON CONFLICT (sha256) DO UPDATE SET stored_at = excluded.stored_at",
        [(sha256, tx.at, contents[sha256]) for sha256 in sorted(contents)],
    )


def find(tx: Tx, digests: Iterable[str]) -> dict[str, bytes]:
    """Those of them that stand here. For `Store.read`."""
    some = tx.rows(f"SELECT sha256, data FROM contents WHERE {tx.any_of('sha256')}", (tx.array(digests),))  # noqa: S608 - a fragment of ours
    return {sha256: bytes(data) for sha256, data in some}


def find_one(tx: Tx, sha256: str) -> bytes | None:
    """The bytes, where they stand here. For `Store.read`."""
    return find(tx, [sha256]).get(sha256)


def page(tx: Tx, after: str) -> tuple[list[Row], str | None]:
    """The next (sha256, stored_at, size in bytes), and where to go on; None at the end. For `Store.read`."""
    rows = tx.rows("SELECT sha256, stored_at, length(data) FROM contents WHERE sha256 > ? ORDER BY sha256 LIMIT ?", (after, PAGE))
    return rows, rows[-1][0] if len(rows) == PAGE else None


def remove(tx: Tx, some: Sequence[Row]) -> list[Row]:
    """Take those that no row names and that did not come again since they were looked at; which ones."""
    free = set(unnamed(tx, [row[0] for row in some]))
    going = [row for row in some if row[0] in free]
    return [row for row in going if tx.run("DELETE FROM contents WHERE sha256 = ? AND stored_at = ?", row[:2])]
