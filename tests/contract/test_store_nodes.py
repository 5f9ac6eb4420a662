"""The store contract: enrolment, sessions, heartbeats, directives, draining, tokens."""

from datetime import timedelta

import pytest

from ostler.coordinator.operations import duties, explanations, jobs, nodes, reads, tokens
from ostler.model.access import Role
from ostler.model.attempt import AttemptState
from ostler.model.errors import (
    AlreadyExists,
    Conflict,
    InvalidSpec,
    InvalidTransition,
    NodeRetired,
    NotFound,
    StaleAttempt,
    Unauthenticated,
)
from ostler.model.failures import FailureCode
from ostler.model.job import JobState
from ostler.model.manifest import Requirements
from ostler.model.node import NodeState
from ostler.protocol import messages as m
from store_rig import Rig, capabilities, held, registration

K = m.DirectiveKind


async def test_enrolment_is_by_key(rig: Rig):
    await rig.join()
    await rig.join()
    assert await rig.read(nodes.node_keys, "n1") == (registration().public_key,)
    with pytest.raises(AlreadyExists, match="another key"):
        await rig.write(nodes.enrol_node, registration(key=b"x" * 32), "join")
    assert await rig.read(nodes.node_keys, "nobody") == ()


async def test_a_key_takes_anothers_place_with_the_first_session_that_it_opens(rig: Rig):
    await rig.join()
    old, new = registration().public_key, b"z" * 32
    for _ in range(2):
        await rig.write(nodes.replace_key, "n1", new)
        assert await rig.read(nodes.node_keys, "n1") == (old, new)
        assert await rig.read(nodes.is_enrolled, "n1", new)
    await rig.write(nodes.open_session, registration(epoch="boot:2"))
    assert await rig.read(nodes.node_keys, "n1") == (old, new)
    await rig.write(nodes.open_session, registration(epoch="boot:3", key=new))
    assert await rig.read(nodes.node_keys, "n1") == (new,)
    assert not await rig.read(nodes.is_enrolled, "n1", old)
    await rig.write(nodes.replace_key, "n1", old)
    await rig.write(nodes.replace_key, "n1", new)  # with its own key, none waits any more
    assert await rig.read(nodes.node_keys, "n1") == (new,)
    with pytest.raises(NotFound):
        await rig.write(nodes.replace_key, "nobody", new)
    await rig.write(nodes.retire_node, "n1")
    with pytest.raises(NodeRetired):
        await rig.write(nodes.replace_key, "n1", old)


async def test_a_retired_id_is_free_again(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    await rig.begin()
    view = await rig.write(nodes.retire_node, "n1", "sold")
    assert (view.state, view.reason) == (NodeState.RETIRED, "sold")
    assert (await rig.job(job_id)).state is JobState.RETRY_WAIT
    for call in (rig.pull, rig.beat, lambda: rig.register(epoch="boot:9")):
        with pytest.raises(NodeRetired, match="was retired"):
            await call()
    with pytest.raises(NodeRetired):  # whoever still has a join token: the key that was retired stays so
        await rig.join()
    assert await rig.read(nodes.retired_nodes) == ["n1"]
    with pytest.raises(InvalidTransition):
        await rig.write(nodes.retire_node, "n1")
    await rig.join(key=b"y" * 32)
    assert await rig.read(nodes.node_keys, "n1") == (b"y" * 32,)
    assert (await rig.read(reads.show_node, "n1")).state is NodeState.JOINING


async def test_a_session_is_idempotent_and_needs_enrolment(rig: Rig):
    with pytest.raises(NotFound, match="no node n1"):
        await rig.register()
    await rig.join()
    await rig.submit()
    some = await rig.begin()
    assert await rig.register(held=held(some)) == nodes.Session((), False)
    assert await rig.register(held=[*held(some), m.Held("gone", 3)]) == nodes.Session((m.Held("gone", 3),), False)
    view = await rig.read(reads.show_node, "n1")
    assert view.attempts == held(some)
    assert view.capabilities == capabilities("n1")


async def test_a_new_session_adopts_what_it_holds_and_loses_the_rest(rig: Rig):
    kept, lost, offered = await rig.submit(3)
    await rig.join()
    begun = await rig.begin(slots=2)
    await rig.pull(slots=1, held=held(begun))
    session = await rig.register(epoch="boot:2", held=[m.Held(kept, 1), m.Held("elsewhere", 1)])
    assert session.forget == (m.Held("elsewhere", 1),)
    assert (await rig.job(kept)).state is JobState.ACKED
    job = await rig.job(lost)
    assert job.state is JobState.RETRY_WAIT
    assert job.failure is not None
    assert job.failure.code is FailureCode.LOST
    assert (await rig.job(offered)).state is JobState.QUEUED
    view = await rig.read(reads.show_node, "n1")
    assert (view.boot_epoch, view.attempts, view.state) == ("boot:2", (m.Held(kept, 1),), NodeState.JOINING)
    with pytest.raises(StaleAttempt):
        await rig.register(epoch="boot:1")


async def test_the_first_sign_of_life_makes_a_node_ready(rig: Rig):
    await rig.join()
    await rig.join("n2")
    assert (await rig.read(reads.show_node, "n1")).state is NodeState.JOINING
    await rig.beat("n1")
    await rig.pull("n2")
    page = await rig.read(reads.list_nodes, m.PageQuery(count=True))
    assert [(one.node_id, one.state) for one in page.items] == [("n1", NodeState.READY), ("n2", NodeState.READY)]
    assert page.total == 2


async def test_a_heartbeat_keeps_what_it_says(rig: Rig):
    await rig.join()
    rig.clock.advance(3)
    await rig.beat(load=1.5, free_mb=100, gpu_free=1, disk_free_mb=7, health=("disk nearly full",), version="0.2.0")
    await rig.beat(load=2.5, free_mb=90, gpu_free=0)
    view = await rig.read(reads.show_node, "n1")
    assert (view.load, view.free_mb, view.gpu_free, view.disk_free_mb, view.version) == (2.5, 90, 0, 7, "0.2.0")
    assert view.health == ()
    assert view.last_seen_at == rig.clock.now()
    await rig.beat(capabilities=capabilities("n1", memory_mb=1))
    view = await rig.read(reads.show_node, "n1")
    assert view.capabilities is not None
    assert view.capabilities.memory_mb == 1


async def test_an_unknown_node_is_told_to_register(rig: Rig):
    assert [one.kind for one in await rig.beat("ghost")] == [K.REGISTER]
    assert [one.kind for one in await rig.read(nodes.directives, "ghost")] == [K.REGISTER]


async def test_directives_follow_from_rows_and_from_what_is_held(rig: Rig):
    first, second = await rig.submit(2)
    await rig.join()
    begun = await rig.begin(slots=1)
    await rig.pull(slots=1, held=held(begun))
    found = await rig.read(nodes.directives, "n1", [m.Held("over", 4)])
    assert [(one.kind, one.job_id, one.attempt) for one in found] == [(K.RECONCILE, first, 1), (K.FORGET, "over", 4)]
    assert await rig.read(nodes.directives, "n1") == []
    await rig.write(jobs.cancel_job, first)
    found = await rig.read(nodes.directives, "n1", held(begun))
    assert [(one.kind, one.job_id) for one in found] == [(K.CANCEL, first)]
    assert (await rig.job(second)).state is JobState.LEASED


async def test_drain_empty_resume(rig: Rig):
    await rig.submit(2)
    await rig.join()
    (lease,) = await rig.begin(slots=1)
    view = await rig.write(nodes.drain_node, "n1", m.DrainRequest(reason="new disk", timeout_s=300.0))
    assert (view.state, view.reason) == (NodeState.DRAINING, "new disk")
    (directive,) = await rig.beat(held=held([lease]))
    assert (directive.kind, directive.reason, directive.timeout_s) == (K.DRAIN, "new disk", 300.0)
    assert await rig.pull(held=held([lease])) == []
    assert not await rig.write(duties.drain_ended, "n1")
    await rig.finish("n1", lease)
    assert await rig.write(duties.drain_ended, "n1")
    assert (await rig.register(epoch="boot:2")).draining
    assert await rig.pull() == []
    view = await rig.write(nodes.resume_node, "n1")
    assert view.state is NodeState.READY
    assert [one.kind for one in await rig.beat(draining=True)] == [K.RESUME]
    assert await rig.beat(draining=False) == []
    assert await rig.beat(draining=True) == []  # its own wish now, which nobody contradicts
    assert await rig.pull() == []
    await rig.beat(draining=False)
    assert len(await rig.pull()) == 1
    with pytest.raises(NotFound):
        await rig.write(nodes.drain_node, "nobody", m.DrainRequest())


async def test_a_cordoned_node_gets_nothing_new_and_is_not_told(rig: Rig):
    await rig.submit(3)
    await rig.join()
    (lease,) = await rig.begin(slots=1)
    view = await rig.write(nodes.cordon_node, "n1", "odd noises")
    assert (view.state, view.cordoned, view.cordon_reason) == (NodeState.READY, True, "odd noises")
    assert await rig.beat(held=held([lease])) == []
    assert await rig.pull(held=held([lease])) == []
    assert (await rig.finish("n1", lease)).ok
    session = await rig.register(epoch="boot:2")  # a new daemon changes nothing
    assert not session.draining
    assert await rig.pull() == []
    why = await rig.read(explanations.explain_job, (await rig.submit())[0])
    assert why.summary == "1 node could run it, but 1 is cordoned"
    await rig.write(nodes.resume_node, "n1")  # ends a drain, not a cordon
    assert await rig.pull() == []
    view = await rig.write(nodes.uncordon_node, "n1")
    assert (view.cordoned, view.cordon_reason) == (False, None)
    assert len(await rig.pull()) == 3
    assert [row[0] for row in await rig.rows("SELECT kind FROM events WHERE kind LIKE '%cordon'")] == ["cordon", "uncordon"]
    with pytest.raises(NotFound):
        await rig.write(nodes.cordon_node, "nobody")
    await rig.write(nodes.retire_node, "n1")
    with pytest.raises(NodeRetired):
        await rig.write(nodes.uncordon_node, "n1")


async def test_pools_keep_jobs_apart(rig: Rig):
    anywhere, lab, named, nowhere = [
        (await rig.submit(requirements=need))[0]
        for need in (Requirements(), Requirements(pool="lab"), Requirements(node="n2"), Requirements(pool="moon"))
    ]
    await rig.join()
    await rig.join("n2")
    view = await rig.write(nodes.move_node, "n2", "lab")
    assert view.pool == "lab"
    assert [one.job_id for one in await rig.pull("n1")] == [anywhere]
    assert [one.job_id for one in await rig.pull("n2")] == [lab, named]
    why = await rig.read(explanations.explain_job, nowhere)
    assert why.summary == "no node is in the pool moon: 2 of 2 nodes fail `pool`"
    assert [(one.requirement, one.nodes) for one in why.blockers] == [("pool", 2)]
    assert why.blockers[0].examples == ("n1 is in the pool default, not in moon", "n2 is in the pool lab, not in moon")
    (homeless,) = await rig.submit()
    await rig.write(nodes.move_node, "n1", "moon")
    assert "no node is in the pool default; name another with requirements.pool" in (
        (await rig.read(explanations.explain_job, homeless)).summary
    )
    assert [one.job_id for one in await rig.pull("n1", held=[m.Held(anywhere, 1)])] == [nowhere]
    assert (await rig.job(anywhere)).state is JobState.LEASED  # what it has stays
    with pytest.raises(InvalidSpec):
        await rig.write(nodes.move_node, "n1", "a b")


async def test_what_a_node_finds_wrong_with_itself_is_told(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    await rig.beat(draining=True, quarantine="/jobs: is mounted read-only")
    view = await rig.read(reads.show_node, "n1")
    assert (view.draining, view.quarantine) == (True, "/jobs: is mounted read-only")
    assert await rig.pull() == []
    assert (await rig.read(explanations.explain_job, job_id)).summary == "1 node could run it, but 1 is quarantined"
    await rig.beat()
    assert (await rig.read(reads.show_node, "n1")).quarantine is None
    assert len(await rig.pull()) == 1


async def test_an_idle_node_is_drained_at_once(rig: Rig):
    await rig.join()
    await rig.beat()
    assert (await rig.write(nodes.drain_node, "n1", m.DrainRequest())).state is NodeState.DRAINED
    assert (await rig.write(nodes.drain_node, "n1", m.DrainRequest())).state is NodeState.DRAINED


async def test_nodes_are_paged_by_id(rig: Rig):
    for number in range(5):
        await rig.join(f"n{number}")
    seen: list[str] = []
    cursor = None
    while True:
        page = await rig.read(reads.list_nodes, m.PageQuery(limit=2, cursor=cursor))
        seen += [one.node_id for one in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == [f"n{number}" for number in range(5)]
    for wrong in (m.PageQuery(limit=0), m.PageQuery(limit=501), m.PageQuery(cursor="?")):
        with pytest.raises(InvalidSpec):
            await rig.read(reads.list_nodes, wrong)


async def test_counts(rig: Rig):
    await rig.submit(3)
    await rig.join()
    await rig.begin(slots=1)
    found = await rig.read(reads.counts)
    (running,) = found.running
    assert (running.node_id, running.version) == ("n1", registration("n1").version)
    counted = reads.Counts(jobs={"queued": 2, "acked": 1}, nodes={"ready": 1}, live_attempts=1, running=found.running)
    assert found == counted


# --- tokens ------------------------------------------------------------------------------------------------------------------


async def test_a_join_token_has_so_many_uses(rig: Rig):
    view = await rig.write(tokens.create_token, m.TokenRequest(uses=2, note="lab"))
    assert view.token is not None
    assert view.token.startswith(f"ostler_join_{view.token_id}_")
    assert view.expires_at == rig.clock.now() + timedelta(hours=1)
    for node in ("n1", "n2"):
        assert await rig.write(tokens.use_join_token, view.token, registration(node)) == view.token_id
        await rig.write(nodes.enrol_node, registration(node), view.token_id)
    assert await rig.write(tokens.use_join_token, view.token, registration("n1")) == view.token_id  # its first answer was lost
    with pytest.raises(Unauthenticated, match="used up"):
        await rig.write(tokens.use_join_token, view.token, registration("n3"))
    (listed,) = (await rig.read(tokens.list_tokens, m.PageQuery())).items
    assert (listed.token, listed.uses_left, listed.note) == (None, 0, "lab")


async def test_a_failed_enrolment_takes_no_use(rig: Rig):
    view = await rig.write(tokens.create_token, m.TokenRequest())
    await rig.join()

    def enrol(tx):
        tokens.use_join_token(tx, view.token, registration(key=b"z" * 32))
        nodes.enrol_node(tx, registration(key=b"z" * 32), view.token_id)

    with pytest.raises(AlreadyExists):
        await rig.write(enrol)
    assert (await rig.read(tokens.list_tokens, m.PageQuery())).items[0].uses_left == 1


async def test_tokens_end(rig: Rig):
    view = await rig.write(tokens.create_token, m.TokenRequest(expires_s=10))
    other = await rig.write(tokens.create_token, m.TokenRequest())
    rig.clock.advance(10)
    with pytest.raises(Unauthenticated, match="expired"):
        await rig.write(tokens.use_join_token, view.token)
    assert (await rig.write(tokens.revoke_token, other.token_id)).revoked_at == rig.clock.now()
    rig.clock.advance(1)
    assert (await rig.write(tokens.revoke_token, other.token_id)).revoked_at == rig.clock.now() - timedelta(seconds=1)
    with pytest.raises(Unauthenticated, match="revoked"):
        await rig.write(tokens.use_join_token, other.token)
    with pytest.raises(Unauthenticated, match="not known"):
        await rig.write(tokens.use_join_token, "ostler_join_a_b")
    with pytest.raises(NotFound):
        await rig.write(tokens.revoke_token, "nothing")


async def test_api_tokens(rig: Rig):
    admin = "chosen by the assembly"
    token_id = await rig.write(tokens.ensure_admin_token, admin)
    assert await rig.write(tokens.ensure_admin_token, admin) == token_id
    assert await rig.read(tokens.check_api_token, admin) == (token_id, Role.ADMIN, "admin", None)
    with pytest.raises(Conflict, match="last good"):
        await rig.write(tokens.revoke_token, token_id)
    view = await rig.write(tokens.create_token, m.TokenRequest(kind=m.TokenKind.API, role=Role.ADMIN, expires_s=60))
    assert view.uses_left is None
    said = await rig.read(tokens.check_api_token, view.token)
    assert said[:3] == (view.token_id, Role.ADMIN, view.token_id)  # without a name it is a principal of its own
    await rig.write(tokens.revoke_token, token_id)
    with pytest.raises(Unauthenticated):
        await rig.read(tokens.check_api_token, admin)
    with pytest.raises(Unauthenticated, match=r"used up|not known"):
        await rig.write(tokens.use_join_token, view.token)
    rig.clock.advance(61)
    with pytest.raises(Unauthenticated, match="expired"):
        await rig.read(tokens.check_api_token, view.token)
    assert await rig.write(tokens.ensure_admin_token, admin) == token_id
    assert await rig.read(tokens.check_api_token, admin) == (token_id, Role.ADMIN, "admin", None)
    assert not await rig.rows("SELECT 1 FROM tokens WHERE CAST(digest AS TEXT) LIKE '%chosen%'")


async def test_token_requests_are_checked_whole(rig: Rig):
    with pytest.raises(InvalidSpec) as caught:
        await rig.write(tokens.create_token, m.TokenRequest(uses=0, expires_s=0, note="n" * 300))
    assert [one.path for one in caught.value.problems] == ["uses", "expires_s", "note"]


async def test_tokens_are_paged_newest_first(rig: Rig):
    made = []
    for _ in range(5):
        made.append((await rig.write(tokens.create_token, m.TokenRequest())).token_id)
        rig.clock.advance(1)
    first = await rig.read(tokens.list_tokens, m.PageQuery(limit=3, count=True))
    second = await rig.read(tokens.list_tokens, m.PageQuery(limit=3, cursor=first.next_cursor))
    assert [one.token_id for one in (*first.items, *second.items)] == made[::-1]
    assert (first.total, second.next_cursor) == (5, None)


async def test_attempts_of_a_lost_node_are_lost(rig: Rig):
    (job_id,) = await rig.submit(requirements=Requirements(node="n1"))
    await rig.join()
    await rig.begin()
    (seen,) = await rig.read(duties.watch_nodes, ["n1"])
    assert await rig.write(duties.miss_node, "n1", seen.renewals, "no sign of life")
    assert not await rig.write(duties.miss_node, "n1", seen.renewals, "no sign of life")
    assert (await rig.job(job_id)).state is JobState.ACKED
    assert await rig.write(duties.lose_node, "n1", seen.renewals, "silent") == [m.Held(job_id, 1)]
    assert (await rig.read(reads.show_node, "n1")).state is NodeState.LOST
    assert (await rig.job(job_id)).attempts[0].state is AttemptState.FAILED
    await rig.beat()
    assert (await rig.read(reads.show_node, "n1")).state is NodeState.READY


async def test_which_release_each_node_was_installed_in(rig):
    await rig.join("n1")
    await rig.join("n2")
    body = '{"node_id": "n2", "release": "1.0.0-ab", "cpu": {"cores": 1, "arch": "x"}, "version": "1", "memory_mb": 1, "disk_free_mb": 1}'
    await rig.write(lambda tx: tx.run("UPDATE capabilities SET body = ? WHERE node_id = 'n2'", (body,)))
    page = await rig.read(reads.list_nodes, m.PageQuery())
    assert [one.release for one in page.items] == [None, "1.0.0-ab"]
    assert (await rig.read(reads.show_node, "n2")).release == "1.0.0-ab"
    running = (await rig.read(reads.counts)).running
    assert running == (("n1", "0.1.0", 1, ""), ("n2", "0.1.0", 1, "1.0.0-ab"))
