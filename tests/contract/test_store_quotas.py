"""Quotas at the store: nobody gets beyond a limit, whatever the order of things; the ledger is what the attempts say."""

import asyncio
import random
from collections import Counter
from datetime import UTC, datetime

import pytest

from ostler.coordinator.operations import jobs, quotas, reads, removals
from ostler.coordinator.operations.aging import Part, Removal
from ostler.model.errors import NotFound, QuotaExceeded
from ostler.model.failures import FailureCode
from ostler.model.manifest import Requirements
from ostler.model.quota import BILLION, DAY_US, HOUR_US, Price, Quota, Spent, charge
from ostler.protocol import messages as m
from store_rig import Rig, manifest

FOUR = Requirements(cpu_threads=4)


async def submit(rig: Rig, owner: str = "alice", count: int = 1, **changes) -> m.SubmitResponse:
    return await rig.write(jobs.submit_jobs, [manifest(**changes)] * count, owner)


async def limit(rig: Rig, owner: str = "alice", **limits) -> quotas.Standing:
    return await rig.write(quotas.set_quota, owner, Quota(**limits))


async def warnings(rig: Rig) -> list[str]:
    return [row[0] for row in await rig.rows("SELECT message FROM events WHERE kind = 'quota_warning' ORDER BY id")]


async def test_what_waits_is_limited_whole_calls_at_once(rig: Rig):
    await limit(rig, queued=10)
    assert (await submit(rig, count=7)).warnings == ()
    assert (await submit(rig)).warnings == ("alice has 8 of 10 jobs waiting",)
    before = await rig.everything()
    with pytest.raises(QuotaExceeded, match=r"alice has 8 of 10 jobs waiting, so 3 more are too many; nothing was submitted"):
        await submit(rig, count=3)
    assert await rig.everything() == before
    assert (await submit(rig, count=2)).warnings == ("alice has 10 of 10 jobs waiting",)
    with pytest.raises(QuotaExceeded, match="1 more is too many"):
        await submit(rig)
    await submit(rig, "bob", count=20)
    assert await warnings(rig) == ["alice has 8 of 10 jobs waiting"]


async def test_of_two_at_the_limit_one_passes(rig: Rig):
    await limit(rig, queued=1)
    answers = await asyncio.gather(*(submit(rig) for _ in range(8)), return_exceptions=True)
    assert Counter(type(one) for one in answers) == {m.SubmitResponse: 1, QuotaExceeded: 7}


async def test_a_quota_counts_what_was_submitted_before_and_leaves_it(rig: Rig):
    answer = await submit(rig, count=3)
    assert (await limit(rig, queued=2)).queued == 3
    with pytest.raises(QuotaExceeded):
        await submit(rig)
    await rig.write(jobs.cancel_job, answer.items[0].job_id)
    await rig.write(jobs.hold_job, answer.items[1].job_id)  # what is held waits, too
    with pytest.raises(QuotaExceeded):
        await submit(rig)
    await rig.write(jobs.cancel_job, answer.items[1].job_id)
    await submit(rig)
    await rig.write(quotas.remove_quota, "alice")
    await submit(rig, count=5)
    with pytest.raises(NotFound):
        await rig.write(quotas.remove_quota, "alice")


async def test_one_who_has_a_quota_may_not_retry_beyond_it(rig: Rig):
    [job_id] = [one.job_id for one in (await submit(rig)).items]
    await rig.write(jobs.cancel_job, job_id)
    await limit(rig, queued=0)
    with pytest.raises(QuotaExceeded):
        await rig.write(jobs.retry_job, job_id)


async def test_what_runs_beyond_a_limit_waits_and_says_why(rig: Rig):
    await limit(rig, running=2)
    made = (await submit(rig, count=4)).items
    await submit(rig, "bob", count=1)
    await rig.join("n1", slots=8)
    some = await rig.begin("n1", slots=8)
    owners = Counter([(await rig.job(one.job_id)).owner for one in some])
    assert owners == {"alice": 2, "bob": 1}
    waiting = next(one.job_id for one in made if one.job_id not in {lease.job_id for lease in some})
    told = await rig.read(reads.explain_job, waiting)
    assert told.summary == "it waits: alice runs 2 of 2 jobs at once (`ostler quota`)"
    assert await rig.pull("n1", slots=8, fresh=False) == []
    await rig.finish("n1", next(one for one in some if (one.job_id in {item.job_id for item in made})))
    assert len(await rig.pull("n1", slots=8, fresh=False)) == 1


async def test_used_hours_are_refused_with_the_day_on_which_they_begin_anew(rig: Rig):
    await limit(rig, cpu_us=10 * HOUR_US)
    await submit(rig, requirements=FOUR)
    await rig.join("n1")
    [lease] = await rig.begin("n1")
    rig.clock.advance(7600)  # four threads for 2.1 hours
    assert (await submit(rig)).warnings == (
        "alice has used 8.444 of 10 CPU hours in 2026-01, which ends at 2026-02-01 00:00 UTC",
    )  # what runs counts
    await rig.finish("n1", lease)
    assert await warnings(rig) == ["alice has used 8.444 of 10 CPU hours in 2026-01"]
    [second] = await rig.begin("n1", held=())
    rig.clock.advance(2 * 3600)
    with pytest.raises(QuotaExceeded, match=r"alice has used 10.444 of 10 CPU hours in 2026-01") as caught:
        await submit(rig)
    assert "the next month begins at 2026-02-01 00:00 UTC" in (caught.value.hint or "")
    await rig.finish("n1", second)
    assert await warnings(rig) == [
        "alice has used 8.444 of 10 CPU hours in 2026-01", "alice has used 10.444 of 10 CPU hours in 2026-01",
    ]  # fmt: skip
    rig.clock.advance(31 * 86400)
    await submit(rig)


async def test_money_by_the_price_of_the_pool(rig: Rig):
    await rig.write(quotas.set_prices, {"default": Price(cpu_hour=BILLION // 2), "other": Price(cpu_hour=BILLION)})
    await limit(rig, money=2 * BILLION)
    await submit(rig, requirements=FOUR)
    await rig.join("n1")
    [lease] = await rig.begin("n1")
    rig.clock.advance(1800)
    standing = await rig.read(quotas.show_quota, "alice")
    assert standing.spent == Spent(cpu_us=2 * HOUR_US, money=BILLION)
    rig.clock.advance(1800)
    await rig.finish("n1", lease)
    assert (await rig.read(quotas.show_quota, "alice")).spent.money == 2 * BILLION
    with pytest.raises(QuotaExceeded, match="alice has used 2 of 2 of its budget"):
        await submit(rig)


async def test_the_ledger_outlives_its_jobs(rig: Rig):
    await limit(rig, cpu_us=HOUR_US)
    [item] = (await submit(rig)).items
    await rig.join("n1")
    [lease] = await rig.begin("n1")
    rig.clock.advance(1800)
    await rig.finish("n1", lease)
    [(seq,)] = await rig.rows("SELECT seq FROM jobs")
    assert await rig.write(removals.remove_jobs, [Removal(seq, item.job_id, Part.JOB, 0, "old")]) == 1
    assert (await rig.read(quotas.show_quota, "alice")).spent.cpu_us == HOUR_US // 2


async def test_who_is_listed(rig: Rig):
    await limit(rig, "carol", running=1)
    await submit(rig, "bob")
    await rig.join("n1")
    [lease] = await rig.begin("n1")
    rig.clock.advance(1)
    await rig.finish("n1", lease)
    found = await rig.read(quotas.list_quotas, "", 10)
    assert [(one.principal, one.quota, one.queued) for one in found] == [("bob", None, None), ("carol", Quota(running=1), 0)]
    assert [one.principal for one in await rig.read(quotas.list_quotas, "bob", 10)] == ["carol"]


async def test_a_lost_attempt_is_not_charged_and_a_failed_one_is(rig: Rig):
    await submit(rig, count=2, requirements=FOUR)
    await rig.join("n1")
    first, second = await rig.begin("n1")
    rig.clock.advance(10)
    await rig.fail("n1", first, FailureCode.EXIT)
    await rig.fail("n1", second, FailureCode.LOST)
    assert await rig.rows("SELECT principal, cpu_us FROM usage") == [("alice", 4 * 10_000_000)]


async def ledger(rig: Rig, prices: dict[str, Price]) -> dict[tuple[str, int], Spent]:
    """What the attempts' own rows say, added up independently of the ledger."""
    sums: dict[tuple[str, int], Spent] = {}
    rows = await rig.rows(
        "SELECT j.owner, a.acked_at, a.finished_at, s.body, n.pool FROM attempts a JOIN jobs j ON j.seq = a.job_seq "
        "JOIN specs s ON s.job_seq = j.seq JOIN nodes n ON n.node_id = a.node_id "
        "WHERE a.usage IS NOT NULL AND a.acked_at IS NOT NULL AND coalesce(a.failure_code, '') <> 'E_LOST'"
    )
    for owner, began, ended, body, pool in rows:
        threads = 4 if '"cpu_threads":4' in body.replace(" ", "") else 1
        for day, used in charge(threads, 0, began, ended, prices.get(pool, Price())):
            sums[owner, day] = sums.get((owner, day), Spent()) + used
    return sums


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_no_limit_is_passed_and_the_ledger_is_right(rig: Rig, seed: int):
    dice = random.Random(seed)
    prices = {"default": Price(cpu_hour=123_456_789)}
    await rig.write(quotas.set_prices, prices)
    most = {"alice": (6, 2), "bob": (3, 5)}
    for owner, (queued, running) in most.items():
        await limit(rig, owner, queued=queued, running=running, cpu_us=10**15)
    for node in ("n1", "n2"):
        await rig.join(node, slots=4)
    rig.clock.advance(DAY_US / 1e6 - (rig.clock.now() - datetime(2026, 1, 1, tzinfo=UTC)).total_seconds() - 600)
    holds: dict[str, list] = {"n1": [], "n2": []}
    refused = 0
    for _ in range(80):
        rig.clock.advance(dice.uniform(0, 60))
        node, owner = dice.choice(["n1", "n2"]), dice.choice(["alice", "bob", "eve"])
        action = dice.randrange(6)
        if action <= 1:
            try:
                await submit(rig, owner, dice.randint(1, 3), **({"requirements": FOUR} if dice.random() < 0.3 else {}))
            except QuotaExceeded:
                refused += 1
        elif action == 2:
            some = await rig.pull(node, slots=4 - len(holds[node]), fresh=False)
            await rig.ack(node, some)
            holds[node] += some
        elif action == 3 and holds[node]:
            await rig.finish(node, holds[node].pop())
        elif action == 4 and holds[node]:
            code = dice.choice([FailureCode.EXIT, FailureCode.LOST, FailureCode.GPU])
            await rig.fail(node, holds[node].pop(), code)
        elif action == 5:
            open_jobs = await rig.rows("SELECT job_id FROM jobs WHERE state IN ('queued', 'retry_wait') ORDER BY seq")
            if open_jobs:
                await rig.write(jobs.cancel_job, dice.choice(open_jobs)[0])
        for who, (queued, running) in most.items():
            counts = Counter(dict(await rig.rows("SELECT state, count(*) FROM jobs WHERE owner = ? GROUP BY state", who)))
            live = sum(counts[state] for state in ("leased", "acked", "preparing", "running", "uploading"))
            assert live <= running
            # What came back to be tried again was admitted before.
            assert counts["queued"] + counts["retry_wait"] <= queued + running
            standing = await rig.read(quotas.show_quota, who)
            assert (standing.queued, standing.running) == (counts["queued"] + counts["retry_wait"], live)
    booked = {
        (owner, day): Spent(cpu_us=cpu, gpu_us=gpu, money=money)
        for owner, day, cpu, gpu, money in await rig.rows("SELECT principal, day, cpu_us, gpu_us, money FROM usage")
    }
    assert booked == await ledger(rig, prices)
    assert refused
    assert len({day for _, day in booked}) >= 1
