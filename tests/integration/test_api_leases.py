"""The hot routes over a real socket: who gets what, when, and what a stale word changes (nothing)."""

import asyncio
import contextlib
import json
import sqlite3

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from msgspec import structs

from integration.api_rig import coordinator
from ostler.coordinator.api import pulls
from ostler.model import errors
from ostler.model.attempt import AttemptState
from ostler.model.failures import Failure, FailureCode
from ostler.model.job import JobState
from ostler.protocol import codec, dsse, routes, session_key
from ostler.protocol import messages as m


@pytest.fixture
async def rig(tmp_path):
    async with coordinator(tmp_path / "c") as one:
        yield one


def outcome(held, **more):
    return m.Outcome(job_id=held.job_id, attempt=held.attempt, exit_code=0, **more)


async def test_a_job_goes_all_the_way(rig):
    node = await rig.enrolled()
    text = '{"command":"echo",  "args":["h\\u00e4"], "labels": {"a":"b"}}'
    job_id = (await rig.people.call(routes.SUBMIT, text.encode())).items[0].job_id
    [lease] = await node.pull()
    assert (lease.job_id, lease.attempt, lease.node_id, lease.spec, lease.tries) == (job_id, 1, node.node_id, text, 0)
    held = m.Held(lease.job_id, lease.attempt)
    assert [one.ok for one in await node.ack(held)] == [True]
    item = m.ProgressItem(job_id=job_id, attempt=1, state=AttemptState.RUNNING, pct=50.0, note="half")
    answer = await node.call(routes.PROGRESS, m.ProgressBatch(items=(item,)))
    assert answer.items[0].ok
    view = await rig.show(job_id)
    assert (view.state, view.pct, view.note) == (JobState.RUNNING, 50.0, "half")
    assert [one.ok for one in await node.finish(outcome(held))] == [True]
    assert [one.ok for one in await node.finish(outcome(held))] == [True], "the same outcome again is no mistake"
    view = await rig.people.call(routes.AWAIT_JOB, job_id=job_id)
    assert (view.state, view.exit_code) == (JobState.DONE, 0)


async def test_a_node_that_reads_a_list_gets_all_under_one_signature(rig):
    node = await rig.enrolled()
    jobs = [await rig.submit() for _ in range(3)]
    request = m.PullRequest(node_id=node.node_id, slots=8, protocol=m.PROTOCOL, together=True)
    answer = await node.call(routes.PULL, request)
    [envelope] = answer.jobs
    payload = dsse.verify(envelope, dsse.ASSIGNMENTS_TYPE, Ed25519PublicKey.from_public_bytes(node.coordinator_key))
    assert [one.job_id for one in codec.decode(payload, tuple[m.Assignment, ...])] == jobs
    await node.pull_raw()  # what it does not hold is offered again, one by one to who did not ask for a list
    assert len(node.open(await node.pull_raw())) == 3


async def test_who_names_the_key_of_its_session_gets_a_mac_and_everybody_else_a_signature(rig):
    node = await rig.enrolled()
    trusted, half = Ed25519PublicKey.from_public_bytes(node.coordinator_key), X25519PrivateKey.generate()

    async def agreed(key):
        answer = await node.register_again(session_key=half.public_key().public_bytes_raw() if key is None else key)
        return answer.session_key

    async def pulled(keyid):
        job_id = await rig.submit()
        [envelope] = (await node.pull_raw(session_key=keyid)).jobs
        held = m.Held(job_id, codec.decode(envelope.payload, m.Assignment).attempt)
        await node.ack(held)
        await node.finish(outcome(held))
        return envelope

    key = session_key.accept(await agreed(None), half, trusted, node_id=node.node_id, boot_epoch=node.epoch)
    assert key.secret.hex() not in repr(key)
    sealed = await pulled(key.keyid)
    assert dsse.is_sealed(sealed, dsse.ASSIGNMENT_TYPE, key.secret, key.keyid)
    assert dsse.verify(sealed, dsse.ASSIGNMENT_TYPE, trusted) is None
    for name in (None, "session-0", ""):
        assert dsse.verify(await pulled(name), dsse.ASSIGNMENT_TYPE, trusted) is not None
    await agreed(None)
    assert dsse.verify(await pulled(key.keyid), dsse.ASSIGNMENT_TYPE, trusted) is not None, "it is the key of an earlier session"
    assert await agreed(bytes(32)) is None, "a key of small order is none"
    with pytest.raises(errors.InvalidSpec, match="session_key"):
        await agreed(b"short")


async def test_submit_wakes_an_open_pull(rig):
    node = await rig.enrolled()
    pulling = asyncio.create_task(node.pull(wait_s=30))
    await rig.open_calls(routes.PULL)
    job_id = await rig.submit()
    [lease] = await asyncio.wait_for(pulling, 5)
    assert lease.job_id == job_id


async def test_the_newest_pull_wins(rig):
    node = await rig.enrolled()
    older = asyncio.create_task(node.pull(wait_s=30))
    await rig.open_calls(routes.PULL)
    newer = asyncio.create_task(node.pull(wait_s=30))
    assert await asyncio.wait_for(older, 5) == []
    assert not newer.done()
    job_id = await rig.submit()
    assert [one.job_id for one in await asyncio.wait_for(newer, 5)] == [job_id]


async def test_a_pull_that_was_replaced_before_its_turn_to_write_claims_nothing(rig):
    """Else each newer one of a node takes back what the one before leased, and on a slow disk that never ends."""
    node = await rig.enrolled()
    job_id = await rig.submit()
    with contextlib.closing(sqlite3.connect(rig.config.data / "ostler.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        older = asyncio.create_task(node.pull(wait_s=30))
        await rig.open_calls(routes.PULL)
        newer = asyncio.create_task(node.pull(wait_s=30))
        await rig.open_calls(routes.PULL, 2)
        other.execute("ROLLBACK")
    assert await asyncio.wait_for(older, 20) == []
    assert [one.job_id for one in await asyncio.wait_for(newer, 20)] == [job_id]
    assert [one.kind for one in (await rig.show(job_id)).timeline] == ["submit", "lease"]


async def test_an_offer_that_a_later_pull_does_not_hold_is_offered_anew(rig):
    node = await rig.enrolled()
    await rig.submit()
    [first] = await node.pull()
    [second] = await node.pull(wait_s=30)
    assert (second.job_id, second.attempt, second.tries) == (first.job_id, 2, 0)
    [stale] = await node.ack(m.Held(first.job_id, first.attempt))
    assert (stale.ok, stale.code) == (False, "stale_attempt")


async def test_a_pull_acknowledges_as_many_as_it_says(rig):
    node = await rig.enrolled()
    first, second = await rig.submit(), await rig.submit()
    leases = await node.pull(begins=1, number=1)
    assert [(one.job_id, one.attempt, one.acked) for one in leases] == [(first, 1, True), (second, 1, False)]
    assert [(await rig.show(one)).state for one in (first, second)] == [JobState.ACKED, JobState.LEASED]
    assert [one.kind for one in (await rig.show(first)).timeline] == ["submit", "lease", "ack"]
    assert [one.ok for one in await node.finish(outcome(m.Held(first, 1)))] == [True], "without another word"
    assert [one.ok for one in await node.ack(m.Held(second, 1))] == [True]


async def test_so_does_one_that_waits(rig):
    node = await rig.enrolled()
    pulling = asyncio.create_task(node.pull(wait_s=30, begins=1, number=1))
    await rig.open_calls(routes.PULL)
    job_id = await rig.submit()
    [lease] = await asyncio.wait_for(pulling, 5)
    assert (lease.job_id, lease.acked) == (job_id, True)
    assert (await rig.show(job_id)).tries == 1


async def test_what_a_pull_acknowledged_and_did_not_bring_costs_no_try(rig):
    node = await rig.enrolled()
    job_id = await rig.submit(retries=0)
    assert [one.acked for one in await node.pull(begins=1, number=1)] == [True]
    early = await node.call(routes.HEARTBEAT, m.HeartbeatRequest(node_id=node.node_id, held=()))
    assert early.directives == (), "it was sent before what it does not name had come"
    [again] = await node.pull(begins=1, number=2)
    assert (again.job_id, again.attempt, again.tries) == (job_id, 2, 0)
    [stale] = await node.finish(outcome(m.Held(job_id, 1)))
    assert stale.code == "stale_attempt"


async def test_what_the_node_has_named_once_is_asked_about(rig):
    node = await rig.enrolled()
    job_id = await rig.submit(retries=0)
    held = m.Held(job_id, 1)
    assert [one.acked for one in await node.pull(begins=1, number=1)] == [True]
    assert await node.pull(begins=1, number=2, held=(held,)) == []
    answer = await node.call(routes.PULL, m.PullRequest(node_id=node.node_id, protocol=m.PROTOCOL, number=3))
    assert [(one.kind, one.job_id) for one in answer.directives] == [(m.DirectiveKind.RECONCILE, job_id)]


async def test_a_pull_that_comes_late_takes_nothing_back(rig):
    node = await rig.enrolled()
    job_id = await rig.submit()
    assert [one.acked for one in await node.pull(begins=1, number=7)] == [True]
    assert await node.pull(begins=1, number=6) == []
    assert (await rig.show(job_id)).state is JobState.ACKED


async def test_a_pull_with_numbers_that_are_none_is_refused(rig):
    node = await rig.enrolled()
    for wrong in ({"begins": -1}, {"number": -1}, {"number": 2**60}):
        with pytest.raises(errors.InvalidSpec):
            await node.pull(**wrong)


async def test_a_node_that_was_just_given_work_is_given_urgent_work_alone_for_a_moment(rig, monkeypatch):
    monkeypatch.setattr(pulls, "GATHER_S", 20.0)
    monkeypatch.setattr(pulls, "AT_ONCE", 1)
    node, other = await rig.enrolled(), await rig.enrolled()
    await rig.submit()
    [first] = await node.pull(wait_s=30)
    pulling = asyncio.create_task(node.pull(wait_s=30, held=(m.Held(first.job_id, 1),)))
    await rig.open_calls(routes.PULL)
    later = await rig.submit()
    urgent = await rig.submit(queue="interactive")
    assert {one.job_id for one in await asyncio.wait_for(pulling, 5)} == {later, urgent}, "what has gathered comes with it"
    pulling = asyncio.create_task(node.pull(wait_s=30, held=(m.Held(first.job_id, 1), m.Held(later, 1), m.Held(urgent, 1))))
    await rig.open_calls(routes.PULL)
    last = await rig.submit()
    assert [one.job_id for one in await other.pull(wait_s=30)] == [last], "somebody else need not wait"
    pulling.cancel()


async def test_what_comes_now_and_then_does_not_wait(rig, monkeypatch):
    monkeypatch.setattr(pulls, "GATHER_S", 20.0)
    node, held = await rig.enrolled(), []
    for _ in range(pulls.AT_ONCE):
        pulling = asyncio.create_task(node.pull(wait_s=30, held=tuple(held)))
        await rig.open_calls(routes.PULL)
        job_id = await rig.submit()
        assert [one.job_id for one in await asyncio.wait_for(pulling, 5)] == [job_id]
        held.append(m.Held(job_id, 1))
    pulling = asyncio.create_task(node.pull(wait_s=30, held=tuple(held)))
    await rig.open_calls(routes.PULL)
    await rig.submit()
    await rig.show(job_id)
    assert not pulling.done()
    pulling.cancel()


async def test_a_stream_gathers_until_it_ends_and_not_for_ever(monkeypatch):
    clock = 100.0
    monkeypatch.setattr(pulls.time, "monotonic", lambda: clock)
    pull = pulls.Pull("n", asyncio.Event(), 2)
    assert not pull.rests, "nothing says that it should"
    pull.rests_until, last = 100.008, 0.0
    while pull.rests:
        last, clock = clock, clock + pulls.SLACK_S / 2
        assert clock < 101, "it goes on for as long as the stream does"
        assert pull.rested() > 0 or clock >= 100.008 + pulls.STREAM_S
    assert last >= 100.008 + pulls.STREAM_S - pulls.SLACK_S
    pull.rests_until = clock + 0.008
    assert pull.rests
    clock += 0.009 + pulls.SLACK_S
    assert pull.rested() == 0.0
    assert pull.wake.is_set(), "what was let pass is looked for"
    assert not pull.rests


async def test_what_gathers_is_given_when_the_moment_is_over(rig, monkeypatch):
    monkeypatch.setattr(pulls, "GATHER_S", 0.3)
    monkeypatch.setattr(pulls, "AT_ONCE", 1)
    node = await rig.enrolled()
    await rig.submit()
    [first] = await node.pull(wait_s=30)
    held = [m.Held(first.job_id, 1)]
    pulling = asyncio.create_task(node.pull(wait_s=30, held=tuple(held)))
    await rig.open_calls(routes.PULL)
    some = [await rig.submit() for _ in range(3)]
    held += [m.Held(one.job_id, 1) for one in await asyncio.wait_for(pulling, 20)]
    while len(held) < 4:  # here it took longer than that to submit them
        held += [m.Held(one.job_id, 1) for one in await node.pull(wait_s=30, held=tuple(held))]
    assert {one.job_id for one in held} == {first.job_id, *some}


async def test_a_pull_whose_caller_went_away_claims_nothing(rig):
    node, other = await rig.enrolled(), await rig.enrolled()
    pulling = asyncio.create_task(node.pull(wait_s=30))
    await rig.open_calls(routes.PULL)
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    await rig.open_calls(routes.PULL, 0)
    job_id = await rig.submit()
    assert [one.job_id for one in await other.pull()] == [job_id]
    assert (await rig.show(job_id)).attempt == 1


async def test_one_job_wakes_many_and_goes_to_one(rig):
    nodes = [await rig.enrolled() for _ in range(20)]
    pulls = [asyncio.create_task(node.pull(wait_s=30)) for node in nodes]
    await rig.open_calls(routes.PULL, 20)
    job_id = await rig.submit()
    done, _ = await asyncio.wait(pulls, return_when=asyncio.FIRST_COMPLETED, timeout=5)
    assert [one.job_id for task in done for one in task.result()] == [job_id]
    for _ in range(19):
        await rig.submit()
    leases = [lease for pull in pulls for lease in await asyncio.wait_for(pull, 5)]
    assert len({lease.job_id for lease in leases}) == 20


async def test_a_heartbeat_raises_the_credit_of_an_open_pull(rig):
    node = await rig.enrolled()
    await rig.submit()
    pulling = asyncio.create_task(node.pull(slots=0, wait_s=30))
    await rig.open_calls(routes.PULL)
    await node.call(routes.HEARTBEAT, m.HeartbeatRequest(node_id=node.node_id, held=(), slots=2))
    assert len(await asyncio.wait_for(pulling, 5)) == 1


async def test_a_node_that_takes_work_again_gets_it_by_the_pull_that_came_before_its_word(rig):
    node = await rig.enrolled()
    await node.call(routes.HEARTBEAT, m.HeartbeatRequest(node_id=node.node_id, held=(), draining=True))
    job_id = await rig.submit()
    poll = asyncio.create_task(node.pull(wait_s=20))
    await rig.open_calls(routes.PULL)
    await node.call(routes.HEARTBEAT, m.HeartbeatRequest(node_id=node.node_id, held=(), draining=False))
    assert [one.job_id for one in await asyncio.wait_for(poll, 10)] == [job_id]


async def test_a_cancel_reaches_an_open_pull_at_once_and_only_once(rig):
    node = await rig.enrolled()
    held = await node.take()
    pulling = asyncio.create_task(node.pull_raw(wait_s=30, held=(held,)))
    await rig.open_calls(routes.PULL)
    await rig.people.call(routes.CANCEL_JOB, m.CancelRequest(reason="enough"), job_id=held.job_id)
    answer = await asyncio.wait_for(pulling, 5)
    assert [(one.kind, one.job_id, one.attempt) for one in answer.directives] == [(m.DirectiveKind.CANCEL, held.job_id, 1)]
    again = asyncio.create_task(node.pull_raw(wait_s=30, held=(held,)))
    await rig.open_calls(routes.PULL)
    [result] = await node.finish(m.Outcome(job_id=held.job_id, attempt=1, cancelled=True))
    assert result.ok
    assert (await rig.show(held.job_id)).state is JobState.CANCELLED
    again.cancel()


async def test_shutdown_ends_long_polls_at_once(tmp_path):
    async with coordinator(tmp_path / "c") as rig:
        node = await rig.enrolled()
        job_id = await rig.submit(requirements={"node": "elsewhere"})
        pulling = asyncio.create_task(node.pull(wait_s=30))
        waiting = asyncio.create_task(rig.people.call(routes.AWAIT_JOB, query=m.WaitQuery(wait_s=60), job_id=job_id))
        await rig.open_calls(routes.PULL)
        await rig.open_calls(routes.AWAIT_JOB)
        rig.stop.set()
        assert await asyncio.wait_for(pulling, 5) == []
        assert (await asyncio.wait_for(waiting, 5)).state is JobState.QUEUED
        await asyncio.wait_for(rig.task, 10)


# --- stale and foreign words ---------------------------------------------------------------------------------------------------


async def _facts(rig, job_id):
    view = await rig.show(job_id)
    return structs.replace(view, timeline=()), len(view.timeline)


async def _hot_calls(node, job_id, attempt):
    """Every word that a node can say about an attempt, as (route, what came of it)."""
    failure = Failure(FailureCode.EXIT, "no")
    said = [
        (routes.ACK, m.AckBatch(items=(m.AckItem(job_id=job_id, attempt=attempt),))),
        (routes.ACK, m.AckBatch(items=(m.AckItem(job_id=job_id, attempt=attempt, decline="no"),))),
        (routes.PROGRESS, m.ProgressBatch(items=(m.ProgressItem(job_id=job_id, attempt=attempt, pct=99.0, note="stale"),))),
        (routes.RESULT, m.OutcomeBatch(items=(m.Outcome(job_id=job_id, attempt=attempt, exit_code=7),))),
        (routes.FAIL, m.OutcomeBatch(items=(m.Outcome(job_id=job_id, attempt=attempt, failure=failure),))),
    ]
    found = []
    for route, message in said:
        [item] = (await node.call(route, message)).items
        found.append((route.name, item.ok, item.code))
    single = {"job_id": job_id, "attempt": attempt, "pct": 3, "error_code": "E_EXIT", "error_msg": "no", "exit_code": 1}
    for route in (routes.ACK, routes.PROGRESS, routes.RESULT, routes.FAIL):
        with pytest.raises(errors.StaleAttempt):
            await node.call(route, codec.encode(single), shape=dict)
    metadata = codec.encode(m.Outcome(job_id=job_id, attempt=attempt, exit_code=7))
    form = {"metadata": (None, metadata)}
    answer = await node.rig.http.post("/jobs/result", files=form, headers=node.rig.bearer(node.token))
    assert (answer.status_code, answer.json()["code"]) == (409, "stale_attempt")
    with pytest.raises((errors.Gone, errors.NotFound)):
        await node.rig.nobody.append_log(m.Held(job_id, attempt), "stdout", 0, b"stale", token=node.token)
    answer = await node.rig.http.put(
        f"/jobs/{job_id}/attempts/{attempt}/workspace", content=b"stale", headers=node.rig.bearer(node.token)
    )
    assert answer.status_code == 404
    return found


async def test_a_stale_attempt_changes_nothing(rig):
    node = await rig.enrolled()
    await rig.submit()
    [first] = await node.pull()
    [second] = await node.pull(wait_s=30)
    assert (await node.ack(m.Held(second.job_id, second.attempt)))[0].ok
    before = await _facts(rig, first.job_id)
    for name, ok, code in await _hot_calls(node, first.job_id, first.attempt):
        assert (ok, code) == (False, "stale_attempt"), name
    assert await _facts(rig, first.job_id) == before
    assert rig.stored == []


async def test_another_nodes_attempt_is_not_reached(rig):
    node, other = await rig.enrolled(), await rig.enrolled()
    held = await node.take()
    before = await _facts(rig, held.job_id)
    for name, ok, code in await _hot_calls(other, held.job_id, held.attempt):
        assert (ok, code) == (False, "stale_attempt"), name
    assert await _facts(rig, held.job_id) == before
    assert rig.stored == []


async def test_a_batch_answers_per_item(rig):
    node = await rig.enrolled()
    held = await node.take()
    good, bad = outcome(held), m.Outcome(job_id="j-none", attempt=1, exit_code=0)
    results = await node.finish(bad, good, bad)
    assert [one.ok for one in results] == [False, True, False]


async def test_artifacts_come_with_bytes_or_not_at_all(rig):
    """A batch that only names a sha256 could otherwise claim content that somebody else delivered."""
    node = await rig.enrolled()
    held = await node.take(artifacts=[{"path": "out"}])
    blob = await rig.http.post("/blobs", content=b"somebody else's", headers=rig.bearer())
    entry = m.ArtifactEntry(path="out", type="text/plain", size=15, sha256=blob.json()["sha256"])
    [result] = await node.finish(outcome(held, artifacts=(entry,)))
    assert (result.ok, result.code) == (False, "not_found")


async def test_failures_only_on_the_route_for_failures(rig):
    node = await rig.enrolled()
    held = await node.take()
    with pytest.raises(errors.InvalidSpec, match="failure"):
        await node.call(routes.FAIL, m.OutcomeBatch(items=(outcome(held),)))


# --- the source's section 8 ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def plain(rig):
    """A node that knows no more than section 8: it registers with its capabilities and names no attempt or protocol anywhere."""
    body = {
        "node_id": "node-abc123", "version": "0.1.0", "cpu": {"cores": 16, "arch": "x86_64"}, "memory_mb": 64000,
        "disk_free_mb": 250000,
        "gpu": [{"vendor": "nvidia", "name": "RTX", "vram_mb": 16384, "cuda": {"version": "12.3", "driver": "545.23.06"}}],
        "runners": ["cli", "python"], "tags": ["debian", "cuda", "cpu"],
    }  # fmt: skip
    answer = await rig.http.post("/nodes/register", json=body, headers=rig.bearer(await rig.join_token()))
    assert answer.status_code == 200, answer.text
    headers = rig.bearer(answer.json()["node_token"])
    beat = {"node_id": "node-abc123", "load": 0.5, "free_mb": 1000, "gpu_free": 1}
    assert (await rig.http.post("/nodes/heartbeat", json=beat, headers=headers)).status_code == 200
    return headers


async def _plain_pull(rig, headers):
    answer = await rig.http.post("/jobs/pull", json={"node_id": "node-abc123", "filters": None}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_section_8_all_the_way(rig, plain):
    assert await _plain_pull(rig, plain) == {"job": None}
    job_id = await rig.submit(command="echo", args=["hi"], artifacts=[{"path": "output.txt", "type": "text/plain", "max_mb": 1}])
    job = (await _plain_pull(rig, plain))["job"]
    assert (job["job_id"], job["command"], job["args"]) == (job_id, "echo", ["hi"])
    query = {"job_id": job_id, "node_id": "node-abc123"}
    assert (await rig.http.post("/jobs/ack", params=query, headers=plain)).json()["ok"] is True
    body = {"job_id": job_id, "pct": 40, "note": "going"}
    assert (await rig.http.post("/jobs/progress", json=body, headers=plain)).status_code == 200
    assert (await rig.show(job_id)).pct == 40
    answer = await rig.http.post(
        "/jobs/result", data={"job_id": job_id, "metadata": json.dumps({"exit_code": 0, "anything": [1]})},
        files={"artifact": ("output.txt", b"hi\n", "text/plain")}, headers=plain,
    )  # fmt: skip
    assert (answer.status_code, answer.json()["ok"]) == (200, True), answer.text
    view = await rig.show(job_id)
    assert (view.state, view.exit_code, [one.path for one in view.artifacts]) == (JobState.DONE, 0, ["output.txt"])
    got = await rig.http.get(f"/jobs/{job_id}/artifacts/output.txt", headers=rig.bearer())
    assert (got.content, got.headers["content-type"]) == (b"hi\n", "text/plain")


async def test_section_8_gpu_job_ack_in_json_and_failure(rig, plain):
    job_id = await rig.submit(requirements={"gpu": True, "vram_mb": 12000}, retries=0)
    assert (await _plain_pull(rig, plain))["job"]["job_id"] == job_id
    body = {"job_id": job_id, "node_id": "node-abc123"}
    assert (await rig.http.post("/jobs/ack", json=body, headers=plain)).status_code == 200
    body = {"job_id": job_id, "error_code": "E_MADE_UP", "error_msg": "it broke", "logs_ref": None}
    assert (await rig.http.post("/jobs/fail", json=body, headers=plain)).status_code == 200
    view = await rig.show(job_id)
    assert (view.state, view.failure.message) == (JobState.FAILED, "E_MADE_UP: it broke")


async def test_section_8_without_a_live_lease_is_a_conflict(rig, plain):
    job_id = await rig.submit()
    for path, body in {
        "/jobs/ack": {"job_id": job_id, "node_id": "node-abc123"},
        "/jobs/progress": {"job_id": job_id, "pct": 1},
        "/jobs/fail": {"job_id": job_id, "error_code": "E_EXIT", "error_msg": ""},
    }.items():
        answer = await rig.http.post(path, json=body, headers=plain)
        assert answer.status_code == 409, path
    answer = await rig.http.post(
        "/jobs/result", data={"job_id": job_id, "metadata": "{}"}, files={"artifact": ("a", b"")}, headers=plain
    )
    assert answer.status_code == 409
    assert (await rig.show(job_id)).state is JobState.QUEUED


async def test_section_8_names_its_own_node_alone(rig, plain):
    answer = await rig.http.post("/jobs/pull", json={"node_id": "another"}, headers=plain)
    assert answer.status_code == 404
    answer = await rig.http.post("/jobs/ack", params={"job_id": "x", "node_id": "another"}, headers=plain)
    assert answer.status_code == 404


async def test_section_8_a_form_must_hold_a_file_and_its_job_may_declare_none(rig, plain):
    job_id = await rig.submit()
    await _plain_pull(rig, plain)
    await rig.http.post("/jobs/ack", params={"job_id": job_id, "node_id": "node-abc123"}, headers=plain)
    answer = await rig.http.post(
        "/jobs/result", data={"job_id": job_id, "metadata": "{}"}, files={"artifact": ("exec.log", b"log")}, headers=plain
    )
    assert answer.status_code == 200, answer.text
    assert (await rig.show(job_id)).artifacts == ()
    assert rig.stored == []
