"""Quotas: what a principal may have waiting and running and use in a month; the ledger of what they used; refusals and warnings.

What waits and runs is counted from rows, along an index that holds the jobs of those alone who have a quota, and never further than
the limit. What was used stands in a ledger that is written in the transaction that ends an attempt, and outlives the job.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from ostler.coordinator.operations.changes import Case
from ostler.coordinator.operations.claims import Placements
from ostler.coordinator.placement.shape import Shape
from ostler.coordinator.store.schema import LIVE_JOB_SQL, NOT_OVER_SQL, PENDING_SQL
from ostler.coordinator.store.tx import Row, Tx
from ostler.model.errors import NotFound, QuotaExceeded
from ostler.model.failures import FailureCode
from ostler.model.quota import FREE, Gauge, Month, Price, Quota, Spent, charge, crossed, gauges, month_of, queue_gauge

REFRESH_US = 60_000_000  # what is remembered is read again so often, whatever happened
MAX_LIVE = 10_000  # attempts that an estimate looks at
_COLUMNS = "principal, queued, running, cpu_us, gpu_us, money"


@dataclass(slots=True)
class Known:
    """All quotas and prices, as the writer remembers them; readers look them up."""

    quotas: dict[str, Quota] = field(default_factory=dict)
    prices: dict[str, Price] = field(default_factory=dict)
    read_at: int | None = None

    def forget(self) -> None:
        """They were changed, or may have been."""
        self.read_at = None


def known(tx: Tx) -> Known:
    """The quotas and prices; only in the writer."""
    memory = tx.memo(Known)
    if memory.read_at is None or not 0 <= tx.at - memory.read_at < REFRESH_US:
        rows = tx.rows(f"SELECT {_COLUMNS} FROM quotas")  # noqa: S608 - our own constant
        memory.quotas = {row[0]: _quota(row[1:]) for row in rows}
        memory.prices = prices(tx)
        memory.read_at = tx.at
    return memory


def _quota(row: Row) -> Quota:
    queued, running, cpu_us, gpu_us, money = row
    return Quota(queued=queued, running=running, cpu_us=cpu_us, gpu_us=gpu_us, money=money)


def prices(tx: Tx) -> dict[str, Price]:
    """What an hour costs, by pool."""
    return {pool: Price(cpu_hour=cpu, gpu_hour=gpu) for pool, cpu, gpu in tx.rows("SELECT pool, cpu_hour, gpu_hour FROM prices")}


def set_prices(tx: Tx, new: Mapping[str, Price]) -> None:
    """The prices from now on, as the configuration has them. What was used before is not charged anew."""
    tx.run("DELETE FROM prices")
    tx.many(
        "INSERT INTO prices (pool, cpu_hour, gpu_hour) VALUES (?, ?, ?)",
        [(pool, one.cpu_hour, one.gpu_hour) for pool, one in new.items()],
    )
    _forget(tx)


# --- at submission -----------------------------------------------------------------------------------------------------------


def admit(tx: Tx, owner: str | None, count: int) -> tuple[str, ...]:
    """Whether so many jobs more may be submitted, all or none: warnings where a limit is near. Raises QuotaExceeded."""
    quota = known(tx).quotas.get(owner or "")
    if quota is None or owner is None or not count:  # of commands nothing is counted
        return ()
    tx.one_by_one(f"quota {owner}")  # or each of two submissions would find room for itself
    month = month_of(tx.now)
    warnings = []
    for gauge in _monthly(tx, owner, quota, month):
        if gauge.full:
            raise QuotaExceeded(
                f"{owner} has used {gauge.text} in {month.name}; nothing was submitted",
                hint=f"the next month begins at {month.ends_at:%Y-%m-%d %H:%M} UTC; until then an admin can allow more: "
                f"`ostler quota set {owner} …`",
            )
        if gauge.warns:
            warnings.append(f"{owner} has used {gauge.text} in {month.name}, which ends at {month.ends_at:%Y-%m-%d %H:%M} UTC")
    if quota.queued is not None:
        waiting = _count(tx, owner, PENDING_SQL, quota.queued)
        if waiting + count > quota.queued:
            raise QuotaExceeded(
                f"{owner} has {waiting} of {quota.queued} jobs waiting, so {count} more "
                f"{'is' if count == 1 else 'are'} too many; nothing was submitted",
                hint=f"wait until some have begun, or cancel some: `ostler job list --state queued --owner {owner}`",
            )
        gauge_now = queue_gauge(quota, waiting + count)
        if gauge_now is not None and gauge_now.warns:
            warnings.append(f"{owner} has {gauge_now.text}")
    return tuple(warnings)


def meter(tx: Tx, owner: str | None, first: int, count: int) -> None:
    """Have jobs that were just submitted counted, where their owner has a quota. One event where the queue became nearly full."""
    quota = known(tx).quotas.get(owner or "")
    if quota is None or owner is None:
        return
    tx.run("UPDATE jobs SET metered = 1 WHERE seq >= ? AND seq < ? AND runner <> 'service'", (first, first + count))
    if quota.queued is not None:
        waiting = _count(tx, owner, PENDING_SQL, quota.queued)
        before, after = queue_gauge(quota, waiting - count), queue_gauge(quota, waiting)
        if before and after and after.warns and not before.warns:
            _warn(tx, first + count - 1, None, f"{owner} has {after.text}")


def _count(tx: Tx, owner: str, states: str, limit: int) -> int:
    """How many of the owner's jobs are in these states; it stops just beyond the limit."""
    row = tx.row(
        f"""SELECT count(*) FROM (SELECT 1 FROM jobs {tx.by_index("ix_jobs_metered")}
            WHERE owner = ? AND metered = 1 AND state IN ({states}) LIMIT ?) AS found""",  # noqa: S608 - our own constants
        (owner, limit + 1),
    )
    return int(row[0]) if row else 0


def _monthly(tx: Tx, owner: str, quota: Quota, month: Month) -> list[Gauge]:
    if quota.cpu_us is quota.gpu_us is quota.money is None:
        return []
    return gauges(quota, spent(tx, owner, month) + running_so_far(tx, owner, month))


def _warn(tx: Tx, seq: int, attempt: int | None, message: str) -> None:
    tx.run(
        "INSERT INTO events (at, kind, job_seq, attempt, message) VALUES (?, 'quota_warning', ?, ?, ?)",
        (tx.at, seq, attempt, message),
    )
    tx.wake(("events",))


# --- at a claim --------------------------------------------------------------------------------------------------------------


def spare(tx: Tx, owners: Collection[str | None]) -> dict[str | None, int]:
    """How many more attempts each of these may have; who is not in the answer is not limited. Only in the writer."""
    limits = known(tx).quotas
    found: dict[str | None, int] = {}
    for owner in sorted(owners, key=str):
        most = limits[owner].running if owner is not None and owner in limits else None
        if owner is not None and most is not None:
            tx.one_by_one(f"quota {owner}")
            found[owner] = max(0, most - _count(tx, owner, LIVE_JOB_SQL, most))
    return found


def held_back(tx: Tx, owner: str | None) -> str | None:
    """Why no job of this owner begins now, where their limit on what runs is the reason. For `Store.read`."""
    row = tx.row("SELECT running FROM quotas WHERE principal = ?", (owner,))
    if row is None or row[0] is None or owner is None:
        return None
    count = _count(tx, owner, LIVE_JOB_SQL, row[0])
    return f"it waits: {owner} runs {count} of {row[0]} jobs at once (`ostler quota`)" if count >= row[0] else None


# --- at the end of an attempt ------------------------------------------------------------------------------------------------


def bill(tx: Tx, node_id: str, ended: Iterable[Case]) -> None:
    """Write into the ledger what attempts used that this node has just told the end of: threads and GPUs asked for, from the
    acknowledgement to the end, however they ended. What was lost (E_LOST) is the fleet's own and not charged.
    """
    memory = known(tx)
    price: Price | None = None
    sums: dict[tuple[str, int], Spent] = {}
    last: dict[str, Case] = {}
    cases = [case for case in ended if _charged(case)]
    shapes = tx.memo(Placements).shapes_of(tx, {case.shape_id for case in cases})
    for case in cases:
        shape = shapes[case.shape_id]
        if shape.owner is None or shape.service is not None or case.acked_at is None:
            continue
        if price is None:
            price = _price_at(tx, memory.prices, node_id)
        last[shape.owner] = case
        for day, used in charge(*taken(shape), case.acked_at, tx.at, price):
            key = (shape.owner, day)
            sums[key] = sums[key] + used if key in sums else used
    if sums:
        tx.at_commit(_enter, (sums, last))  # rows that every end of an owner's attempt adds to


def _enter(tx: Tx, some: list[tuple[dict[tuple[str, int], Spent], dict[str, Case]]]) -> None:
    """Add to the ledger, and tell where a limit was crossed."""
    memory = known(tx)
    sums: dict[tuple[str, int], Spent] = {}
    last: dict[str, Case] = {}
    for more, cases in some:
        last |= cases
        for key, used in more.items():
            sums[key] = sums[key] + used if key in sums else used
    limited = [owner for owner in last if owner in memory.quotas]
    month = month_of(tx.now) if limited else None
    before = {owner: spent(tx, owner, month) for owner in limited if month is not None}
    if sums:
        tx.many(
            "INSERT INTO usage (principal, day, cpu_us, gpu_us, money) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (principal, day) DO UPDATE SET cpu_us = usage.cpu_us + excluded.cpu_us, "
            "gpu_us = usage.gpu_us + excluded.gpu_us, money = usage.money + excluded.money",
            [
                (owner, day, one.cpu_us, one.gpu_us, one.money)
                for (owner, day), one in sorted(sums.items(), key=lambda item: item[0])
            ],
        )
    for owner in limited:
        quota, case = memory.quotas[owner], last[owner]
        if quota.running is not None:
            tx.wake(("queue",))  # another node may take what waited for this end
        if month is not None:
            for gauge in crossed(quota, before[owner], spent(tx, owner, month)):
                _warn(tx, case.seq, case.job.attempt, f"{owner} has used {gauge.text} in {month.name}")


def _charged(case: Case) -> bool:
    attempt = case.attempt
    lost = attempt is not None and attempt.failure is not None and attempt.failure.code is FailureCode.LOST
    return case.outcome is not None and not lost and not case.live


def _price_at(tx: Tx, known_prices: Mapping[str, Price], node_id: str) -> Price:
    if not known_prices:
        return FREE
    row = tx.row("SELECT pool FROM nodes WHERE node_id = ?", (node_id,))
    return known_prices.get(row[0] if row else "", FREE)


def taken(shape: Shape) -> tuple[int, int]:
    """The threads (at least one) and the GPUs that an attempt of this shape is charged for."""
    return max(1, shape.demand.cpu_threads), shape.demand.gpu_slots


def spent(tx: Tx, owner: str, month: Month) -> Spent:
    """What the ledger has of this month."""
    row = tx.row(
        "SELECT sum(cpu_us), sum(gpu_us), sum(money) FROM usage WHERE principal = ? AND day >= ?", (owner, month.first_day)
    )
    cpu, gpu, money = row or (0, 0, 0)
    return Spent(cpu_us=cpu or 0, gpu_us=gpu or 0, money=money or 0)


def running_so_far(tx: Tx, owner: str, month: Month) -> Spent:
    """What attempts that still run would be charged for this month if they ended now."""
    rows = tx.rows(
        f"""SELECT a.acked_at, jobs.shape_id, n.pool FROM jobs {tx.by_index("ix_jobs_metered")}
            JOIN attempts a ON a.job_seq = jobs.seq AND a.attempt = jobs.attempt LEFT JOIN nodes n ON n.node_id = a.node_id
            WHERE jobs.owner = ? AND jobs.metered = 1 AND jobs.state IN ({LIVE_JOB_SQL}) AND a.acked_at IS NOT NULL LIMIT ?""",  # noqa: S608
        (owner, MAX_LIVE),
    )
    if not rows:
        return Spent()
    shapes, cost, total = tx.memo(Placements).shapes_of(tx, {row[1] for row in rows}), prices(tx), Spent()
    for acked_at, shape_id, pool in rows:
        for day, used in charge(*taken(shapes[shape_id]), acked_at, tx.at, cost.get(pool, FREE)):
            if day >= month.first_day:
                total += used
    return total


# --- what people decide and see ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A principal's limits (None: no quota), what they have waiting and running (None where that is not counted), and used."""

    principal: str
    quota: Quota | None
    queued: int | None
    running: int | None
    spent: Spent
    month: Month


def set_quota(tx: Tx, principal: str, quota: Quota) -> Standing:
    """Limit a principal from now on; what was submitted before goes on, and counts."""
    tx.run(
        f"INSERT INTO quotas ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (principal) DO UPDATE SET queued = excluded.queued, "  # noqa: S608
        "running = excluded.running, cpu_us = excluded.cpu_us, gpu_us = excluded.gpu_us, money = excluded.money",
        (principal, quota.queued, quota.running, quota.cpu_us, quota.gpu_us, quota.money),
    )
    tx.run(
        f"UPDATE jobs SET metered = 1 WHERE state IN ({NOT_OVER_SQL}) AND owner = ? AND metered = 0 AND runner <> 'service'",  # noqa: S608
        (principal,),
    )
    _changed(tx)
    return show_quota(tx, principal)


def remove_quota(tx: Tx, principal: str) -> Standing:
    """Limit a principal no longer. NotFound where there is no quota."""
    if not tx.run("DELETE FROM quotas WHERE principal = ?", (principal,)):
        raise NotFound(f"{principal} has no quota", hint="see `ostler quota list`")
    _changed(tx)
    return show_quota(tx, principal)


def _forget(tx: Tx) -> None:
    memory = tx.memo(Known)
    memory.forget()
    tx.after_commit(memory.forget)  # should this be undone, nobody goes on with what they read of it
    tx.forget_everywhere()


def _changed(tx: Tx) -> None:
    _forget(tx)
    tx.wake(("queue",))


def show_quota(tx: Tx, principal: str) -> Standing:
    """How a principal stands."""
    row = tx.row(f"SELECT {_COLUMNS} FROM quotas WHERE principal = ?", (principal,))  # noqa: S608 - our own constant
    quota = None if row is None else _quota(row[1:])
    month = month_of(tx.now)
    counts: tuple[int | None, int | None] = (None, None)
    if quota is not None:
        counts = (_count(tx, principal, PENDING_SQL, MAX_COUNT), _count(tx, principal, LIVE_JOB_SQL, MAX_COUNT))
    used = spent(tx, principal, month) + running_so_far(tx, principal, month)
    return Standing(principal=principal, quota=quota, queued=counts[0], running=counts[1], spent=used, month=month)


MAX_COUNT = 1_000_000


def list_quotas(tx: Tx, after: str, limit: int) -> list[Standing]:
    """The principals who have a quota, or used anything this month, by name."""
    rows = tx.rows(
        """SELECT principal FROM quotas WHERE principal > ?
           UNION SELECT principal FROM usage WHERE principal > ? AND day >= ? ORDER BY principal LIMIT ?""",
        (after, after, month_of(tx.now).first_day, limit),
    )
    return [show_quota(tx, row[0]) for row in rows]
