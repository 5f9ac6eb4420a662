"""The store contract: fair share between submitters, and queues of the two classes."""

from collections import Counter

import pytest

from ostler.coordinator.operations import claims, jobs, reads
from ostler.coordinator.operations.claims import Placements
from ostler.model.attempt import AttemptState
from ostler.model.job import JobState
from ostler.model.manifest import Requirements
from ostler.protocol import messages as m
from store_rig import Rig, held, manifest

LATENCY = frozenset({"interactive"})


async def submit(rig: Rig, owner: str, count: int = 1, **changes) -> list[str]:
    answer = await rig.write(jobs.submit_jobs, [manifest(**changes)] * count, owner)
    return [one.job_id for one in answer.items]


async def owners_of(rig: Rig, leases) -> list[str]:
    return [(await rig.job(one.job_id)).owner for one in leases]


async def one_by_one(rig: Rig, count: int) -> list[str]:
    """Whose jobs a node with one slot gets."""
    found = []
    for _ in range(count):
        (lease,) = await rig.begin(slots=1)
        await rig.finish("n1", lease)
        found += await owners_of(rig, [lease])
    return found


async def test_with_one_slot_submitters_alternate(rig: Rig):
    await submit(rig, "many", 300)
    await submit(rig, "few", 5)
    await submit(rig, "few", 5, requirements=Requirements(memory_mb=1))  # another shape is no second turn
    await rig.join(slots=1)
    assert await one_by_one(rig, 24) == ["many", "few"] * 10 + ["many"] * 4
    await submit(rig, "late", 3, priority=1000)  # not before anybody's turn, however important to its own submitter
    assert Counter(await one_by_one(rig, 6)) == {"many": 3, "late": 3}
    rig.reopen()  # what was given is forgotten, and everybody is level again
    await submit(rig, "few", 5)
    assert Counter(await one_by_one(rig, 10)) == {"many": 5, "few": 5}


async def test_a_batch_is_shared_too_and_every_job_of_it_is_leased_once(rig: Rig):
    few = await submit(rig, "few", 10)
    await submit(rig, "many", 300)
    await rig.join(slots=4)
    some = await rig.pull(slots=64)
    assert Counter(await owners_of(rig, some)) == {"few": 10, "many": 54}
    assert {one.job_id for one in some} >= set(few)
    rest = await rig.pull(slots=400, held=held(some))
    assert len({one.job_id for one in [*some, *rest]}) == 310


async def test_heads_are_read_as_they_are_needed(rig: Rig):
    """With many submitters a claim reads about as many rows as it leases, and still leases all that it may."""
    for number in range(20):
        await submit(rig, f"p{number}", 60)
    await submit(rig, "many", 100)
    await rig.join(slots=4)
    read: list[int] = []

    def watch(tx):
        rows = tx.rows

        class Watched:
            def __getattr__(self, name):
                return getattr(tx, name)

            def rows(self, sql, params=()):
                found = rows(sql, params)
                if "ORDER BY rank, seq" in sql:
                    read.append(len(found))
                return found

        return claims.claim(Watched(), wish(tx))

    def wish(tx):
        offer = tx.memo(Placements).offer_of(tx, "n1", 1, (4, 0))
        return claims.Claim(
            node_id="n1", boot_epoch="boot:1", offer=offer, offer_number=1, live=(), disk_free_mb=None,
            credit=claims.Credit(cpu=42, gpu=0),
        )  # fmt: skip

    assert len(await rig.write(watch)) == 42
    assert sum(read) == 21 * 4  # two that each gets, and two to look ahead; not 21 times 42


async def test_who_is_at_a_limit_is_not_offered_more(rig: Rig):
    await submit(rig, "a", 5)
    await submit(rig, "b", 5)
    await rig.join(slots=4)

    def limited(tx):
        offer = tx.memo(Placements).offer_of(tx, "n1", 1, (4, 0))
        asks = claims.Claim(
            node_id="n1", boot_epoch="boot:1", offer=offer, offer_number=1, live=(), disk_free_mb=None,
            credit=claims.Credit(cpu=8, gpu=0),
        )  # fmt: skip
        return claims.claim(tx, asks, lambda tx, owners: {"a": 1} if "a" in owners else {})

    chosen = await rig.write(limited)
    assert Counter([(await rig.job(one.job_id)).owner for one in chosen]) == {"a": 1, "b": 5}


async def test_explain_tells_of_others_without_naming_them(rig: Rig):
    first, *_, last = await submit(rig, "me", 13)
    await submit(rig, "neighbour", 500)
    await submit(rig, "stranger")
    await submit(rig, "elsewhere", requirements=Requirements(pool="lab"))
    await rig.join()
    found = await rig.read(reads.explain_job, last)
    assert (found.ahead, found.others) == (12, 2)
    assert found.summary == (
        "12 jobs of the same submitter are ahead; 2 other submitters share the nodes; 1 node with room could run it"
    )
    assert (await rig.read(reads.explain_job, first)).summary.startswith("no job of the same submitter is ahead; 2 other")
    for secret in ("neighbour", "stranger", "elsewhere"):
        assert secret not in str(found)


async def test_explain_knows_that_latency_goes_first(rig: Rig):
    await submit(rig, "me", 7)
    (last,) = await submit(rig, "me")
    (first,) = await submit(rig, "me", queue="interactive")
    await rig.join()
    assert (await rig.read(reads.explain_job, first, LATENCY)).ahead == 0
    assert (await rig.read(reads.explain_job, last, LATENCY)).ahead == 8
    assert (await rig.read(reads.explain_job, last)).ahead == 7


# --- latency and throughput --------------------------------------------------------------------------------------------------


async def test_a_latency_job_overtakes_a_batch_and_takes_only_a_free_slot(rig: Rig):
    await submit(rig, "a", 100)
    await rig.join(slots=2)
    batch = await rig.begin(slots=30)  # two run, the rest is leased ahead
    assert len(batch) == 30
    assert not any(one.latency for one in batch)
    hasty = await submit(rig, "a", 3, queue="interactive")
    (lease,) = await rig.pull(slots=0, held=held(batch), latency=LATENCY)  # it asks for nothing, enough lies there
    assert (lease.job_id, lease.latency) == (hasty[0], True)
    both = [*batch, lease]
    assert await rig.pull(slots=0, held=held(both), latency=LATENCY) == []  # one is next already
    await rig.ack("n1", [lease])
    await rig.progress("n1", lease, AttemptState.RUNNING)
    (second,) = await rig.pull(slots=0, held=held(both), latency=LATENCY)
    assert second.job_id == hasty[1]
    assert (await rig.job(hasty[2])).state is JobState.QUEUED


@pytest.mark.parametrize(
    ("slots", "live", "asked", "leased"), [(4, 0, 10, 4), (4, 3, 1, 1), (4, 4, 0, 0), (4, 0, 0, 0), (1, 0, 9, 1)]
)
async def test_latency_jobs_fill_free_slots_and_no_more(rig: Rig, slots: int, live: int, asked: int, leased: int):
    await submit(rig, "a", live)
    await rig.join(slots=slots)
    before = await rig.begin(slots=live) if live else []
    await submit(rig, "a", 9, queue="interactive")
    some = await rig.pull(slots=asked, held=held(before), latency=LATENCY)
    assert len(some) == leased
    assert await rig.pull(slots=asked, held=held([*before, *some]), latency=LATENCY, fresh=False) == [] or leased < slots - live


async def test_latency_jobs_are_spread_over_the_nodes_that_ask(rig: Rig):
    await submit(rig, "a", 3, queue="interactive")
    await submit(rig, "a", 20)
    await rig.join("n1", slots=4)
    await rig.join("n2", slots=4)
    for node in ("n1", "n2"):
        some = await rig.pull(node, slots=4, latency=LATENCY, spread=True)
        assert [one.latency for one in some if one.latency] == [True]
    (_,) = [
        one
        for one in await rig.pull("n1", slots=4, latency=LATENCY, held=m_held(await rig.read(reads.show_node, "n1")))
        if one.latency
    ]


def m_held(view: m.NodeView) -> tuple[m.Held, ...]:
    return view.attempts
