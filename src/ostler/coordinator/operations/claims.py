"""The claim: which queued jobs a node gets. Its cost depends on how many *shapes* are queued, never on how many jobs.

A loose scan of the claim's index names the shapes that have queued jobs, each submitter's apart; of those that the node can ever
meet (remembered per node and shape) the heads are read, and `placement.choose` picks from them.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ostler.coordinator.placement.choose import Candidate, Credit, Room, choose
from ostler.coordinator.placement.fair import FairShare, Owner
from ostler.coordinator.placement.offer import offer_of
from ostler.coordinator.placement.shape import Shape, read_shape
from ostler.coordinator.store.schema import QUEUED_SQL
from ostler.coordinator.store.tx import Tx
from ostler.model.capabilities import Capabilities
from ostler.model.manifest import DEFAULT_POOL
from ostler.model.resources import Offer, unmet
from ostler.protocol.codec import decode

MAX_CLAIM = 1000  # leases in one answer
MAX_RANK = 2**63 - 1
FEW = 16  # queued jobs that are read whole
MAX_REMEMBERED = 50_000  # shapes, and nodes
DECLINE_REST_US = 5_000_000  # a job is not offered again at once to the node that just handed it back


def queued_shapes_sql(tx: Tx) -> str:
    """The shapes that have queued jobs: a loose scan, one step down the index per shape and none per job."""
    jobs = f"jobs {tx.by_index('ix_jobs_claim')}"
    return f"""
        WITH RECURSIVE queued(shape_id) AS (
            SELECT min(shape_id) FROM {jobs} WHERE {QUEUED_SQL}
            UNION ALL
            SELECT (SELECT min(shape_id) FROM {jobs} WHERE {QUEUED_SQL} AND shape_id > queued.shape_id)
            FROM queued WHERE shape_id IS NOT NULL
        )
        SELECT shape_id FROM queued WHERE shape_id IS NOT NULL"""  # noqa: S608 - fragments of ours


def any_queued(tx: Tx, queues: Collection[str]) -> bool:
    """Whether a job waits in one of these queues."""
    shapes = tx.memo(Placements).shapes_of(tx, [row[0] for row in tx.rows(queued_shapes_sql(tx))])
    return any(shape.queue in queues for shape in shapes.values())


def heads_sql(tx: Tx, unless: str = "", *, take: bool = False) -> str:
    """The first jobs of one shape's queue; `unless` is a further condition. `take` passes over those that another coordinator takes."""
    return f"""
        SELECT seq, job_id, rank, attempt, tries FROM jobs {tx.by_index("ix_jobs_claim")}
        WHERE shape_id = ? AND {QUEUED_SQL} {unless} ORDER BY rank, seq LIMIT ? {tx.passing_over() if take else ""}"""  # noqa: S608 - fragments of ours


def first_sql(tx: Tx) -> str:
    """The first jobs of all queues, shape by shape: where they are few, this one step says what the two above say."""
    return f"""
        SELECT shape_id, seq, job_id, rank, attempt, tries FROM jobs {tx.by_index("ix_jobs_claim")}
        WHERE {QUEUED_SQL} ORDER BY shape_id, rank, seq LIMIT {FEW}"""  # noqa: S608 - fragments of ours


@dataclass(slots=True)
class Placements:
    """What this process remembers of shapes, offers, and which meet. Everything here can be computed again from rows.

    Reading threads use it too: each step is a single look-up or assignment, and two threads at worst compute the same value
    twice.
    """

    shapes: dict[int, Shape] = field(default_factory=dict)
    offers: dict[str, tuple[int, Offer]] = field(default_factory=dict)
    meets: dict[str, tuple[int, dict[int, bool]]] = field(default_factory=dict)
    resting: dict[tuple[str, str, int], int] = field(
        default_factory=dict
    )  # (node, boot epoch, job) -> when it may be offered again
    fair: FairShare = field(default_factory=FairShare)  # the writer's thread alone uses it, and this:
    many: bool = False  # whether more than a few jobs were queued at the last claim

    def shapes_of(self, tx: Tx, shape_ids: Iterable[int]) -> dict[int, Shape]:
        """The shapes with these ids."""
        wanted = set(shape_ids)
        if missing := wanted - self.shapes.keys():
            _make_room(self.shapes)
            for shape_id, body in tx.rows(
                f"SELECT shape_id, body FROM shapes WHERE {tx.any_of('shape_id')}",  # noqa: S608 - a fragment of ours
                (tx.array(missing),),
            ):
                self.shapes[shape_id] = read_shape(body)
        return {shape_id: self.shapes[shape_id] for shape_id in wanted}

    def offer_of(self, tx: Tx, node_id: str, number: int, slots: tuple[int, int]) -> Offer:
        """What a node offers; `number` is its row's `offer`, which grows whenever the offer changes."""
        known = self.offers.get(node_id)
        if known is None or known[0] != number:
            row = tx.row(
                "SELECT n.pool, c.body FROM nodes n LEFT JOIN capabilities c ON c.node_id = n.node_id WHERE n.node_id = ?",
                (node_id,),
            )
            pool, body = row or (DEFAULT_POOL, None)
            has = decode(body, Capabilities, what="capabilities") if body is not None else None
            known = (number, offer_of(node_id, has, cpu_slots=slots[0], gpu_slots=slots[1], pool=pool))
            _make_room(self.offers)
            self.offers[node_id] = known
        return known[1]

    def met_by(self, offer: Offer, number: int, shapes: Mapping[int, Shape]) -> list[int]:
        """Those of the shapes that this offer could ever meet."""
        known = self.meets.get(offer.node_id)
        if known is None or known[0] != number:
            _make_room(self.meets)
            known = self.meets[offer.node_id] = (number, {})
        verdicts = known[1]
        if len(verdicts) > MAX_REMEMBERED:
            verdicts.clear()
        for shape_id, shape in shapes.items():
            if shape_id not in verdicts:
                verdicts[shape_id] = not unmet(shape.asks, offer)
        return [shape_id for shape_id in shapes if verdicts[shape_id]]

    def rest(self, key: tuple[str, str, int], until: int) -> None:
        """Do not offer this job to this session of the node before `until`."""
        _make_room(self.resting)
        self.resting[key] = until

    def resting_for(self, node_id: str, boot_epoch: str, now: int) -> set[int]:
        """The jobs that are not to be offered to this session yet; what has rested enough is forgotten."""
        if not self.resting:
            return set()
        for key in [key for key, until in self.resting.items() if until <= now or until > now + DECLINE_REST_US]:
            del self.resting[key]
        return {seq for node, epoch, seq in self.resting if node == node_id and epoch == boot_epoch}


def _make_room(memory: dict[Any, Any]) -> None:
    if len(memory) >= MAX_REMEMBERED:
        memory.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Who asks: the node with its offer, what lives there, its credit, and what it would rather not get."""

    node_id: str
    boot_epoch: str
    offer: Offer
    offer_number: int
    live: tuple[Shape, ...]
    disk_free_mb: int | None
    credit: Credit
    runners: frozenset[str] | None = None
    queues: frozenset[str] | None = None
    latency: frozenset[str] = frozenset()  # queues whose jobs never wait behind others that were leased ahead
    spread: bool = False  # other nodes ask for work, too
    once: bool = False  # never a second attempt of a job within one boot epoch (callers that know no attempt numbers)


# How many more attempts each of these submitters may have; those that are not in the answer are not bounded.
Spare = Callable[[Tx, Collection[Owner]], Mapping[Owner, int]]


def claim(tx: Tx, wish: Claim, spare: Spare | None = None) -> list[Candidate]:
    """The jobs that the node gets now, in the order in which they should begin; nothing is changed yet."""
    places = tx.memo(Placements)
    few = _few(tx, places)
    queued = list(few) if few is not None else [row[0] for row in tx.rows(queued_shapes_sql(tx))]
    if not queued:
        places.many = False
        return []
    known = places.shapes_of(tx, queued)
    places.fair.admit([shape.owner for shape in known.values()])
    shapes = {
        shape_id: shape
        for shape_id, shape in known.items()
        if (wish.runners is None or shape.runner.value in wish.runners) and (wish.queues is None or shape.queue in wish.queues)
    }
    room = Room(wish.offer, wish.live, disk_free_mb=wish.disk_free_mb)
    resting = places.resting_for(wish.node_id, wish.boot_epoch, tx.at)
    fitting = []
    for shape_id in places.met_by(wish.offer, wish.offer_number, shapes):
        wanted = _at_most(shapes[shape_id], wish)
        if wanted and room.fits(shapes[shape_id]):
            fitting.append((shape_id, wanted))
    owners = {shapes[shape_id].owner for shape_id, _ in fitting}
    share = max(
        1, len(owners)
    )  # among many submitters each gets so much less: most heads that one alone would get need not be read
    at_most = spare(tx, owners) if spare is not None and owners else {}

    def heads_of(shape_id: int, wanted: int, *, take: bool) -> Iterator[Candidate]:
        if few is not None and not take and not wish.once:
            return islice((one for one in few[shape_id] if one.seq not in resting), wanted)
        return _heads(tx, wish, shape_id, (min(wanted, wanted // share + 2), wanted), resting, take=take)

    def pick(room: Room, *, take: bool) -> list[Candidate]:
        heads = [(shapes[shape_id], heads_of(shape_id, wanted, take=take)) for shape_id, wanted in fitting]
        return choose(room, wish.credit, heads, fair=places.fair, latency=wish.latency, spread=wish.spread, spare=at_most)

    chosen = pick(room, take=False)
    if tx.is_alone or not chosen or _take(tx, chosen):
        return chosen
    # Another coordinator is at the same heads. What it has taken is passed over, and what is read now is taken, needed or not: whoever
    # found nothing for that reason looks again.
    tx.wake(("queue",))
    return pick(Room(wish.offer, wish.live, disk_free_mb=wish.disk_free_mb), take=True)


def _few(tx: Tx, places: Placements) -> dict[int, list[Candidate]] | None:
    """All queued jobs by shape, in order, where they are few; else None, which is then known until nothing is queued."""
    if places.many:
        return None
    rows = tx.rows(first_sql(tx))
    if len(rows) == FEW:
        places.many = True
        return None
    found: dict[int, list[Candidate]] = {}
    for shape_id, *row in rows:
        found.setdefault(shape_id, []).append(Candidate(*row))
    return found


def _take(tx: Tx, chosen: Sequence[Candidate]) -> bool:
    """Take all of these for this transaction; False where another one has some, or has had them meanwhile."""
    rows = tx.rows(
        f"SELECT seq, attempt FROM jobs WHERE {tx.any_of('seq')} AND {QUEUED_SQL} {tx.passing_over()}",  # noqa: S608 - fragments of ours
        (tx.array([one.seq for one in chosen]),),
    )
    return {(one.seq, one.attempt) for one in chosen} == set(rows)


def _at_most(shape: Shape, wish: Claim) -> int:
    gpus, credit = shape.demand.gpu_slots, wish.credit
    cpu = credit.cpu if credit.now is None or shape.queue not in wish.latency else credit.now
    return min(MAX_CLAIM, max(0, credit.gpu // gpus if gpus else cpu))


def _heads(
    tx: Tx, wish: Claim, shape_id: int, portions: tuple[int, int], resting: set[int], *, take: bool
) -> Iterator[Candidate]:  # fmt: skip
    """The first jobs of a shape that this node may get, read as they are asked for: so many at once, then all that it can use."""
    unless = ""
    params: tuple[object, ...] = (shape_id,)
    if wish.once:  # rare (callers of the source's section 8): walk on past those that this session had before
        unless = "AND NOT EXISTS (SELECT 1 FROM attempts a WHERE a.job_seq = jobs.seq AND a.node_id = ? AND a.boot_epoch = ?)"
        params = (shape_id, wish.node_id, wish.boot_epoch)
    given = 0
    for limit in portions:
        if given < limit:
            rows = tx.rows(heads_sql(tx, unless, take=take), (*params, limit + len(resting)))
            found = [Candidate(*row) for row in rows if row[0] not in resting][given:limit]
            yield from found
            given += len(found)
            if given < limit:
                return


def rivals(tx: Tx, shape: Shape, offers: Iterable[tuple[Offer, int]]) -> int:
    """How many other submitters have jobs queued for any of the nodes that could run this shape; each offer with its number."""
    places = tx.memo(Placements)
    queued = places.shapes_of(tx, [row[0] for row in tx.rows(queued_shapes_sql(tx))])
    others = {shape_id: other for shape_id, other in queued.items() if other.owner != shape.owner}
    found: set[Owner] = set()
    for offer, number in offers:
        if others and not unmet(shape.asks, offer):
            found.update(others[shape_id].owner for shape_id in places.met_by(offer, number, others))
            others = {shape_id: other for shape_id, other in others.items() if other.owner not in found}
    return len(found)


def ahead_of(tx: Tx, shape: Shape, *, rank: int, seq: int, limit: int, latency: Collection[str] = ()) -> int:
    """How many queued jobs of the same submitter go before this one, which is of this shape; stops counting at `limit`."""
    total, jobs, hasty = 0, f"jobs {tx.by_index('ix_jobs_claim')}", shape.queue in latency
    shapes = tx.memo(Placements).shapes_of(tx, [row[0] for row in tx.rows(queued_shapes_sql(tx))])
    for shape_id, other in shapes.items():
        if other.owner != shape.owner or (hasty and other.queue not in latency):
            continue
        before = rank if hasty == (other.queue in latency) else MAX_RANK  # all of a latency queue go before all others
        found = tx.row(
            f"""SELECT (SELECT count(*) FROM (
                    SELECT 1 FROM {jobs} WHERE shape_id = ? AND {QUEUED_SQL} AND rank < ? LIMIT ?) AS higher)
                + (SELECT count(*) FROM (
                    SELECT 1 FROM {jobs} WHERE shape_id = ? AND {QUEUED_SQL} AND rank = ? AND seq < ? LIMIT ?) AS earlier)""",  # noqa: S608
            (shape_id, before, limit, shape_id, before, seq, limit),
        )
        total += found[0] if found else 0
        if total >= limit:
            return limit
    return total
