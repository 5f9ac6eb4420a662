"""The store contract: what bears a key is submitted once, for a day, whatever else happens."""

import asyncio
from datetime import timedelta

import pytest

from ostler.coordinator.operations import groups
from ostler.coordinator.operations.idempotency import Mark, submit_once
from ostler.model.errors import AlreadyExists, Conflict
from store_rig import Rig, manifest

DAY = 24 * 3600


def mark(key="k", body=b"body", principal="ann") -> Mark:
    return Mark(principal, key, body)


async def once(rig: Rig, one: Mark, *, owner: str = "ann", array: int | None = None, **changes):
    accepted = groups.expand(*manifest(array=array, **changes)) if array else [manifest(**changes)]
    return await rig.write(submit_once, one, accepted, owner)


async def jobs_of(rig: Rig) -> list[str]:
    return [row[0] for row in await rig.rows("SELECT job_id FROM jobs ORDER BY seq")]


async def test_the_same_again_is_answered_alike(rig: Rig):
    first, again = await once(rig, mark(), array=3)
    assert not again
    await rig.join()
    for lease in await rig.begin():
        await rig.finish("n1", lease)  # what became of the jobs meanwhile changes nothing
    assert await once(rig, mark(), array=3) == (first, True)
    rig.reopen()
    assert await once(rig, mark(), array=3) == (first, True)
    assert await jobs_of(rig) == [one.job_id for one in first.items]


async def test_another_body_is_refused(rig: Rig):
    first, _ = await once(rig, mark())
    with pytest.raises(Conflict, match=r"'k' stands for another submission.*another body; nothing was submitted"):
        await once(rig, mark(body=b"other"))
    assert await jobs_of(rig) == [first.items[0].job_id]


async def test_keys_are_each_principals_own(rig: Rig):
    for principal in ("ann", "bob"):
        for key in ("k", "l"):
            assert not (await once(rig, mark(key, principal=principal), owner=principal))[1]
    assert len(await jobs_of(rig)) == 4


async def test_twins_at_the_same_time(rig: Rig):
    answers = await asyncio.gather(*(once(rig, mark()) for _ in range(20)))
    assert sorted(again for _, again in answers) == [False] + [True] * 19
    assert len({made.items for made, _ in answers}) == 1
    assert len(await jobs_of(rig)) == 1


async def test_what_was_refused_may_be_sent_again(rig: Rig):
    await rig.submit(job_id="taken")
    with pytest.raises(AlreadyExists):
        await once(rig, mark(), job_id="taken")
    assert not (await once(rig, mark(body=b"corrected"), job_id="free"))[1]


async def test_a_key_is_honoured_for_a_day(rig: Rig):
    await once(rig, mark(), job_id="a")
    rig.clock.advance(DAY - 1)
    assert (await once(rig, mark(), job_id="a"))[1]
    rig.clock.advance(1)
    assert not (await once(rig, mark(body=b"other"), job_id="b"))[1]  # whether it was deleted yet or not
    assert (await once(rig, mark(body=b"other"), job_id="b"))[1]
    assert await jobs_of(rig) == ["a", "b"]


async def test_the_configuration_says_for_how_long(rig: Rig):
    short = Mark("ann", "k", b"body", timedelta(seconds=10))
    first, _ = await once(rig, short)
    rig.clock.advance(9)
    assert await once(rig, short) == (first, True)
    rig.clock.advance(2)
    assert (await once(rig, short))[1] is False
