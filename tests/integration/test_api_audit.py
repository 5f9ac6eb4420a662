"""The audit log over the API: every change by people leaves a row, and so does every call that was refused."""

import pytest

from integration.api_rig import ADMIN, coordinator, sha256, until
from ostler.coordinator.api import refusals
from ostler.coordinator.loops import audit_sealer
from ostler.model import errors
from ostler.model.access import Role
from ostler.protocol import messages as m
from ostler.protocol import routes


@pytest.fixture
async def rig(tmp_path, monkeypatch):
    monkeypatch.setattr(audit_sealer, "EACH_S", 0.05)  # nobody waits for ten seconds here
    async with coordinator(tmp_path / "c") as one:
        yield one


async def rows(rig, **query):
    """What the log says, oldest first."""
    return [*reversed((await rig.people.call(routes.LIST_AUDIT, query=m.AuditQuery(limit=500, **query))).items)]


async def test_who_did_what_to_what_from_where(rig):
    async with rig.person(Role.SUBMITTER, "ann") as ann:
        job_id = (await ann.call(routes.SUBMIT, b'{"command": "true"}')).items[0].job_id
        await ann.call(routes.SHOW_JOB, job_id=job_id)
        await ann.call(routes.HOLD_JOB, job_id=job_id)
        answer = await rig.http.post(
            f"/jobs/{job_id}/cancel", json={}, headers=rig.bearer(ann.token, **{"Ostler-Request-Id": "mine-1"})
        )
        assert answer.status_code == 200
        blob = await rig.http.post("/blobs", content=b"bytes", headers=rig.bearer(ann.token))
    made = (await rows(rig, action="create_token"))[0]
    assert (made.principal, made.role, made.status) == ("admin", "admin", 201)
    assert made.detail.endswith("submitter ann")
    mine = await rows(rig, principal="ann")
    assert [(one.action, one.target, one.status, one.role, one.peer) for one in mine] == [
        ("submit_jobs", None, 201, "submitter", "127.0.0.1"),
        ("hold_job", job_id, 200, "submitter", "127.0.0.1"),
        ("cancel_job", job_id, 200, "submitter", "127.0.0.1"),
        ("upload_blob", blob.json()["sha256"], 201, "submitter", "127.0.0.1"),
    ]
    assert mine[0].detail == job_id
    assert mine[2].request_id == "mine-1"
    assert {one.token_id for one in mine} == {made.detail.split()[1]}


async def test_nodes_that_join_are_in_it_and_their_work_is_not(rig):
    node = await rig.enrolled("n-one")
    before = len(await rows(rig))
    held = await node.take()
    await node.finish(m.Outcome(job_id=held.job_id, attempt=1, exit_code=0))
    await rig.people.call(routes.DRAIN_NODE, m.DrainRequest(), node_id="n-one")
    [joined] = await rows(rig, action="register_node")
    assert (joined.target, joined.principal) == ("n-one", None)
    assert joined.token_id == (await rows(rig, action="create_token"))[0].detail.split()[1]
    assert [one.action for one in (await rows(rig))[before:]] == ["submit_jobs", "drain_node"]


async def test_refused_calls_are_in_it(rig):
    async with rig.person(Role.VIEWER, "vic") as vic:
        with pytest.raises(errors.Forbidden):
            await vic.call(routes.SUBMIT, b'{"command": "true"}')
        for route in (routes.LIST_AUDIT, routes.VERIFY_AUDIT):
            with pytest.raises(errors.Forbidden):
                await vic.call(route)
    assert (await rig.http.get("/jobs/j-x", headers=rig.bearer("ostler_api_x_" + "b" * 32))).status_code == 401
    assert (await rig.http.get("/jobs")).status_code == 401
    job_id = await rig.submit()
    await rig.people.call(routes.CANCEL_JOB, m.CancelRequest(), job_id=job_id)
    with pytest.raises(errors.InvalidTransition):
        await rig.people.call(routes.HOLD_JOB, job_id=job_id)
    with pytest.raises(errors.NotFound):
        await rig.people.call(routes.HOLD_JOB, job_id="j-none")
    refused = [(one.action, one.target, one.status, one.principal) for one in await rows(rig) if one.status >= 400]
    assert refused == [
        ("submit_jobs", None, 403, "vic"), ("list_audit", None, 403, "vic"), ("verify_audit", None, 403, "vic"),
        ("show_job", "j-x", 401, None), ("list_jobs", None, 401, None), ("hold_job", job_id, 409, "admin"),
    ]  # fmt: skip
    assert not [one for one in await rows(rig) if "bbbb" in str(one)], "no part of a token"


async def test_a_flood_of_refused_calls_is_counted(rig):
    for _ in range(refusals.BURST + 15):
        assert (await rig.http.get("/jobs", headers=rig.bearer("ostler_api_x_y"))).status_code in {401, 429}
    written = [one for one in await rows(rig) if one.status in {401, 429}]
    assert len(written) == refusals.BURST

    async def counted():
        told = [int(one.detail.split()[0]) for one in await rows(rig, action="refused_calls")]
        return sum(told) == 15

    await until(counted)
    assert "of 127.0.0.1 (nobody)" in (await rows(rig, action="refused_calls"))[0].detail


async def test_it_is_sealed_and_verifies(rig):
    for _ in range(3):
        await rig.submit()

    async def sealed():
        return not (await rig.people.call(routes.VERIFY_AUDIT)).unsealed

    await until(sealed)
    check = await rig.people.call(routes.VERIFY_AUDIT)
    assert (check.findings, check.rows >= 3, check.next, check.head_found) == ((), True, None, None)
    again = await rig.people.call(routes.VERIFY_AUDIT, query=m.AuditCheckQuery(head=check.head))
    assert again.head_found
    other = await rig.people.call(routes.VERIFY_AUDIT, query=m.AuditCheckQuery(head="00" * 32))
    assert other.head_found is False
    for query, status in (("head=x", 422), ("after=-1", 404), ("after=999", 404), ("bogus=1", 422)):
        assert (await rig.http.get(f"/audit/verify?{query}", headers=rig.bearer())).status_code == status, query
    for query, status in (("limit=0", 422), ("cursor=x", 422), ("since_s=-1", 422), ("status=x", 422), ("principal=%FF", 422)):
        assert (await rig.http.get(f"/audit?{query}", headers=rig.bearer())).status_code == status, query
    assert ADMIN not in (await rig.http.get("/audit", headers=rig.bearer())).text


async def test_who_takes_what_is_anothers_is_in_it(rig, tmp_path):
    node = await rig.enrolled()
    async with rig.person(Role.SUBMITTER, "ann") as ann, rig.person(Role.OPERATOR, "olga") as olga:
        answer = await ann.call(routes.SUBMIT, b'{"command": "true", "artifacts": [{"path": "a.txt"}]}')
        job_id = answer.items[0].job_id
        [lease] = await node.pull()
        held = m.Held(lease.job_id, lease.attempt)
        await node.ack(held)
        (tmp_path / "a.txt").write_bytes(b"hers")
        entry = m.ArtifactEntry(path="a.txt", type="text/plain", size=4, sha256=sha256(b"hers"))
        outcome = m.Outcome(job_id=job_id, attempt=held.attempt, exit_code=0, artifacts=(entry,))
        assert (await rig.nobody.deliver(outcome, {"a.txt": tmp_path / "a.txt"}, token=node.token)).ok
        for person in (ann, olga):
            answer = await rig.http.get(f"/jobs/{job_id}/artifacts/a.txt", headers=rig.bearer(person.token))
            assert answer.content == b"hers"
    taken = await rows(rig, action="get_artifact")
    assert [(one.principal, one.target, one.detail) for one in taken] == [("olga", f"{job_id}/a.txt", "of ann")]


async def test_a_call_that_does_not_exist_is_no_action(rig):
    with pytest.raises(errors.InvalidSpec, match="did you mean cancel_job"):
        await rows(rig, action="cancel_jobb")
