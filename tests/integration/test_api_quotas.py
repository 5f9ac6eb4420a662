"""Quotas over the API: who sees and sets them, what is refused and with which words, and what waits until something ends."""

import asyncio

import pytest

from integration.api_rig import coordinator
from ostler.coordinator.config import PoolPrice
from ostler.model import errors
from ostler.model.access import Role
from ostler.protocol import codec, routes
from ostler.protocol import messages as m

JOB = codec.encode({"command": "true"})


@pytest.fixture
async def rig(tmp_path):
    async with coordinator(tmp_path / "c", prices={"default": PoolPrice(cpu_hour="0.25")}) as one:
        yield one


async def test_a_submitter_sees_their_own_and_changes_nothing(rig):
    await rig.people.call(routes.SET_QUOTA, m.QuotaRequest(queued=2, money="1.50"), principal="alice")
    await rig.people.call(routes.SET_QUOTA, m.QuotaRequest(running=1), principal="bob")
    async with rig.person(Role.SUBMITTER, "alice") as alice:
        for query in (m.QuotaQuery(), m.QuotaQuery(mine=True)):
            page = await alice.call(routes.LIST_QUOTAS, query=query)
            assert [(one.principal, one.limits.queued, one.limits.money) for one in page.items] == [("alice", 2, "1.5")]
        assert (await alice.call(routes.SHOW_QUOTA, principal="alice")).used.queued == 0
        with pytest.raises(errors.NotFound):
            await alice.call(routes.SHOW_QUOTA, principal="bob")
        for refused in (
            alice.call(routes.SET_QUOTA, m.QuotaRequest(), principal="alice"),
            alice.call(routes.REMOVE_QUOTA, principal="alice"),
        ):
            with pytest.raises(errors.Forbidden):
                await refused
    async with rig.person(Role.OPERATOR) as operator:
        first = await operator.call(routes.LIST_QUOTAS, query=m.QuotaQuery(limit=1))
        rest = await operator.call(routes.LIST_QUOTAS, query=m.QuotaQuery(limit=1, cursor=first.next_cursor))
        assert [one.principal for one in (*first.items, *rest.items)] == ["alice", "bob"]
        assert rest.next_cursor is None
        with pytest.raises(errors.Forbidden):
            await operator.call(routes.REMOVE_QUOTA, principal="bob")
    assert (await rig.people.call(routes.REMOVE_QUOTA, principal="bob")).limits is None


async def test_a_refusal_is_a_403_with_the_figures(rig):
    await rig.people.call(routes.SET_QUOTA, m.QuotaRequest(queued=2), principal="alice")
    token = (await rig.token_for(Role.SUBMITTER, "alice")).token
    answer = await rig.http.post("/jobs", content=b'{"command": "true", "array": 2}', headers=rig.bearer(token))
    assert (answer.status_code, answer.json()["warnings"]) == (201, ["alice has 2 of 2 jobs waiting"])
    answer = await rig.http.post("/jobs", content=JOB, headers=rig.bearer(token))
    assert (answer.status_code, answer.json()["code"]) == (403, "quota_exceeded")
    assert answer.json()["detail"].startswith("alice has 2 of 2 jobs waiting, so 1 more is too many")
    assert "ostler job list" in answer.json()["hint"]
    async with rig.person(Role.SUBMITTER, "alice") as alice:
        with pytest.raises(errors.QuotaExceeded):
            await alice.call(routes.SUBMIT, JOB)
        told = await alice.call(routes.EVENTS, query=m.EventQuery(kind="quota_warning"))
        assert [one.message for one in told.items] == ["alice has 2 of 2 jobs waiting"]


async def test_what_waits_for_a_limit_begins_when_something_ends_also_elsewhere(rig):
    """The other node's open poll is woken: nothing else happens there."""
    await rig.people.call(routes.SET_QUOTA, m.QuotaRequest(running=1), principal="alice")
    one, other = await rig.enrolled(), await rig.enrolled()
    async with rig.person(Role.SUBMITTER, "alice") as alice:
        made = [(await alice.call(routes.SUBMIT, JOB)).items[0].job_id for _ in range(2)]
        [lease] = await one.pull()
        held = m.Held(lease.job_id, lease.attempt)
        await one.ack(held)
        polling = asyncio.create_task(other.pull(wait_s=30))
        await rig.open_calls(routes.PULL)
        waiting = next(job_id for job_id in made if job_id != lease.job_id)
        assert "alice runs 1 of 1 jobs at once" in (await alice.call(routes.EXPLAIN_JOB, job_id=waiting)).summary
        assert not polling.done()
        assert (await one.finish(m.Outcome(job_id=held.job_id, attempt=held.attempt, exit_code=0)))[0].ok
        assert [lease.job_id for lease in await polling] == [waiting]
        view = await alice.call(routes.SHOW_QUOTA, principal="alice")
        assert (view.used.queued, view.used.running) == (0, 1)
        assert view.used.cpu_hours > 0
        assert float(view.used.money) == pytest.approx(view.used.cpu_hours / 4, rel=1e-3)


async def test_every_mistake_of_a_quota_at_once(rig):
    wrong = {"queued": -1, "running": 10**9, "cpu_hours": -2, "gpu_hours": 1e300, "money": "1e3"}
    answer = await rig.http.put("/quotas/alice", json=wrong, headers=rig.bearer())
    assert answer.status_code == 422
    assert {one["path"] for one in answer.json()["errors"]} == set(wrong)
    assert (await rig.http.put("/quotas/-", json={}, headers=rig.bearer())).status_code == 404


async def test_the_audit_log_says_what_was_decided(rig):
    await rig.people.call(routes.SET_QUOTA, m.QuotaRequest(queued=2, money="1.50"), principal="alice")
    await rig.people.call(routes.REMOVE_QUOTA, principal="alice")
    await rig.people.call(routes.APPLY_RETENTION)
    page = await rig.people.call(routes.LIST_AUDIT, query=m.AuditQuery())
    told = [(one.action, one.target, one.detail) for one in page.items][::-1]
    assert told[-3:] == [
        ("set_quota", "alice", "queued 2, money 1.5"),
        ("remove_quota", "alice", "no quota"),
        ("apply_retention", None, "removed nothing"),
    ]
