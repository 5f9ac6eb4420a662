"""Whom a command that waits is for: their polls look for it at once, whatever their credit is."""

from collections.abc import Collection

from ostler.coordinator.store.tx import Tx

MOST = 32  # of those who may take what any of them may


def summon(tx: Tx, service: str, target: str) -> None:
    """Wake the target; where it is empty, those who declare the service, last heard of first."""
    if target:
        tx.wake(("node", target))
        return
    for (node_id,) in tx.rows(
        """SELECT s.node_id FROM services s JOIN nodes n ON n.node_id = s.node_id
           WHERE s.name = ? AND n.state NOT IN ('lost', 'retired') ORDER BY n.last_seen_at DESC, s.node_id LIMIT ?""",
        (service, MOST),
    ):
        tx.wake(("node", node_id))


def summon_jobs(tx: Tx, seqs: Collection[int]) -> None:
    """The same for those of these jobs, by number, that are commands; they may be leased from now on."""
    rows = tx.rows(
        f"SELECT DISTINCT service, target FROM jobs WHERE {tx.any_of('seq')} AND runner = 'service'",  # noqa: S608 - a fragment of ours
        (tx.array(seqs),),
    )
    for service, target in rows:
        summon(tx, service, target)
