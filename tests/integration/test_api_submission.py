"""Submission over the API: keys, lost answers, and times that are refused."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from integration.api_rig import ADMIN, coordinator, sha256, until
from lossy_proxy import LossyProxy
from ostler.model import errors
from ostler.model.access import Role
from ostler.model.job import JobState
from ostler.protocol import codec, routes
from ostler.protocol import messages as m
from ostler.protocol.client import AsyncClient, Client

BODY = b'{"command": "true"}'


@pytest.fixture
async def rig(tmp_path):
    async with coordinator(tmp_path / "c") as one:
        yield one


async def post(rig, body=BODY, key=None, token=ADMIN):
    headers = rig.bearer(token)
    return await rig.http.post("/jobs", content=body, headers=headers if key is None else {**headers, "Idempotency-Key": key})


async def count(rig) -> int:
    return (await rig.people.call(routes.LIST_JOBS, query=m.JobQuery(count=True))).total


async def test_a_key_makes_one_of_two(rig):
    first = await post(rig, key="key 1")
    assert (first.status_code, first.headers.get("idempotent-replayed")) == (201, None)
    again = await post(rig, key="key 1")
    assert (again.status_code, again.headers["idempotent-replayed"]) == (201, "true")
    assert again.content == first.content
    other = await post(rig, b'{"command": "false"}', key="key 1")
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    assert "another body; nothing was submitted" in other.json()["detail"]
    assert await count(rig) == 1
    assert (await post(rig)).json() != (await post(rig)).json()  # without a key each is a job of its own
    assert await count(rig) == 3


async def test_keys_of_others_are_not_mine(rig):
    ann, bob = [(await rig.token_for(Role.SUBMITTER, name)).token for name in ("ann", "bob")]
    more = (await rig.token_for(Role.SUBMITTER, "ann")).token
    first = await post(rig, key="k", token=ann)
    assert (await post(rig, key="k", token=bob)).json() != first.json()
    assert (await post(rig, key="k", token=more)).json() == first.json()  # the principal's, whichever token it shows


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b'{"command": "true", "priority": "high", "priority": 1}', "priority"),
        (b'[{"command": "true"}, {"command": "true", "artifacts": 7, "artifacts": []}]', "[1].artifacts"),
    ],
)
async def test_what_no_node_could_read_is_refused(rig, body, path):
    """One reader looks at the last of two fields of one name, another at both."""
    refused = await post(rig, body)
    assert (refused.status_code, refused.json()["errors"][0]["path"]) == (422, path), refused.text
    assert await count(rig) == 0


async def test_twins_at_the_same_time_are_one(rig):
    answers = await asyncio.gather(*(post(rig, key="twins") for _ in range(12)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sorted(answer.headers.get("idempotent-replayed", "") for answer in answers) == [""] + ["true"] * 11
    assert await count(rig) == 1


@pytest.mark.parametrize("key", [b"", b"x" * 256, b"\xc3\xa4", b"a\tb"])
async def test_a_key_that_is_none(rig, key):
    answer = await rig.http.post(
        "/jobs", content=BODY, headers=[(b"Authorization", f"Bearer {ADMIN}".encode()), (b"Idempotency-Key", key)]
    )
    assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, "Idempotency-Key")
    assert await count(rig) == 0


async def test_a_refused_call_keeps_no_key(rig):
    assert (await post(rig, b'{"comand": "true"}', key="k")).status_code == 422
    assert (await post(rig, key="k")).status_code == 201


async def test_an_answer_stands_also_where_its_call_would_be_refused_now(rig):
    ann = rig.bearer((await rig.token_for(Role.SUBMITTER, "ann")).token, **{"Idempotency-Key": "k"})
    body = json.dumps({"command": "true", "secrets": [{"name": "pass", "env": "PASS"}]}).encode()
    assert (await rig.http.post("/jobs", content=body, headers=ann)).status_code == 422
    assert (await rig.http.put("/secrets/pass", content=b"x", headers=ann)).status_code == 200
    first = await rig.http.post("/jobs", content=body, headers=ann)
    assert first.status_code == 201, first.text
    assert (await rig.http.delete("/secrets/pass", headers=ann)).status_code == 200
    again = await rig.http.post("/jobs", content=body, headers=ann)
    assert (again.status_code, again.content, again.headers["idempotent-replayed"]) == (201, first.content, "true")
    assert (await rig.http.post("/jobs", content=body, headers={**ann, "Idempotency-Key": "l"})).status_code == 422


async def test_clients_make_a_call_again_whose_answer_was_lost(rig):
    def waiting(url):
        with Client(url, token=ADMIN) as client:
            return client.call(routes.SUBMIT, BODY, patience_s=30)

    with LossyProxy(rig.url, losses=2) as proxy:
        async with AsyncClient(proxy.url, token=ADMIN, patience_s=30) as client:
            made = await client.call(routes.SUBMIT, BODY)
        assert (proxy.submissions, await count(rig)) == (3, 1)
        proxy.losses = 1
        more = await asyncio.to_thread(waiting, proxy.url)
        assert (proxy.submissions, await count(rig)) == (5, 2)
        assert made.items != more.items
    with LossyProxy(rig.url, losses=1) as proxy:
        async with AsyncClient(proxy.url, token=ADMIN) as client:  # who has no patience is told
            with pytest.raises(errors.CoordinatorUnreachable):
                await client.call(routes.SUBMIT, BODY)
            key = {"Idempotency-Key": "mine"}
            first = await client.call(routes.SUBMIT, BODY, headers=key)
            assert await client.call(routes.SUBMIT, BODY, headers=key) == first


@pytest.mark.parametrize(
    ("fields", "path", "said"),
    [
        ({"not_before": "tomorrow"}, "not_before", "'tomorrow' is no time"),
        ({"not_before": "2030-01-31T20:00:00"}, "not_before", "with its offset from UTC"),
        ({"not_before": "2030-02-30T20:00:00Z"}, "not_before", "is no time"),
        ({"not_before": "0001-01-01T00:00:00+23:59"}, "not_before", "is no time"),
        ({"not_before": 5}, "not_before", "text"),
        ({"not_before": "9999-12-31T23:59:59Z"}, "not_before", "more than a year ahead"),
        ({"not_before": "SOON", "ttl_s": 20}, "ttl_s", "20 s count from now and are over before"),
    ],
)  # fmt: skip
async def test_times_that_are_refused(rig, fields, path, said):
    if fields.get("not_before") == "SOON":
        fields = {**fields, "not_before": soon(30)}
    answer = await post(rig, json.dumps([{"command": "true"}, {"command": "true", **fields}]).encode())
    assert answer.status_code == 422, answer.text
    (one,) = answer.json()["errors"]
    assert one["path"] == f"[1].{path}"
    assert said in one["message"]
    assert await count(rig) == 0


def soon(seconds: float) -> str:
    return f"{datetime.now(UTC) + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S.%fZ}"


async def test_a_job_begins_when_its_time_has_come(rig):
    node = await rig.enrolled()
    made = await rig.people.call(routes.SUBMIT, codec.encode({"command": "true", "not_before": soon(1.5)}))
    job_id = made.items[0].job_id
    view = await rig.show(job_id)
    assert (view.state, view.waiting) == (JobState.QUEUED, True)
    assert await node.pull() == []
    [lease] = await node.pull(wait_s=30)  # a poll that is open is told
    assert lease.job_id == job_id

    async def leased():
        return (await rig.show(job_id)).state is JobState.LEASED

    await until(leased)
    assert [event.kind for event in (await rig.show(job_id)).timeline][:2] == ["submit", "ready"]


# --- dependencies ------------------------------------------------------------------------------------------------------------


def chain(*some: dict) -> bytes:
    return json.dumps([{"command": "true", **one} for one in some]).encode()


@pytest.mark.parametrize(
    ("fields", "path", "said"),
    [
        ({"depends_on": "a"}, "depends_on", "must be a list"),
        ({"depends_on": [5]}, "depends_on[0]", "must be text or an object"),
        ({"depends_on": ["x y"]}, "depends_on[0]", "'x y' is not the id of a job, an array or a group"),
        ({"depends_on": ["a", {"job": "a"}]}, "depends_on[1]", "a stands twice"),
        ({"depends_on": [{"job": "a", "unitl": "done"}]}, "depends_on[0].unitl", "did you mean `until`?"),
        ({"depends_on": [{"job": "a", "until": "later"}]}, "depends_on[0].until", "must be 'success' or 'done'"),
        ({"depends_on": [{"job": "a", "until": "done", "otherwise": "hold"}]}, "depends_on[0].otherwise", "belongs to `until: success`"),
        ({"depends_on": [f"a{i}" for i in range(1001)]}, "depends_on", "are more than 1000"),
        ({"input": {"artifacts": [{"job": "a", "path": "../x"}]}}, "input.artifacts[0].path", "'../x' leaves the workspace"),
        ({"input": {"artifacts": [{"job": "a b", "path": "x"}]}}, "input.artifacts[0].job", "is not the id of a job"),
        ({"input": {"artifacts": [{"job": "a", "path": "x"}], "inline": {"x": ""}}}, "input.artifacts[0].name", "'x' is already the"),
        ({"depends_on": ["nobody"]}, "depends_on[0]", "there is no job, array or group nobody"),
    ],
)  # fmt: skip
async def test_dependencies_that_are_refused(rig, fields, path, said):
    answer = await post(rig, chain({"job_id": "a"}, fields))
    assert answer.status_code == 422, answer.text
    assert [(one["path"], said in one["message"]) for one in answer.json()["errors"]] == [(f"[1].{path}", True)], answer.text
    assert await count(rig) == 0


async def test_submitters_depend_on_their_own_jobs_alone(rig):
    async with (
        rig.person(Role.SUBMITTER, "ann") as ann,
        rig.person(Role.SUBMITTER, "bob") as bob,
        rig.person(Role.OPERATOR) as operator,
    ):
        await ann.call(routes.SUBMIT, chain({"job_id": "a"}))
        with pytest.raises(errors.InvalidSpec) as caught:
            await bob.call(routes.SUBMIT, chain({"job_id": "b", "depends_on": ["a"]}))
        with pytest.raises(errors.InvalidSpec) as nobody:
            await bob.call(routes.SUBMIT, chain({"job_id": "b", "depends_on": ["z"]}))
        said = [one.problems[0].message for one in (caught.value, nobody.value)]
        assert said == [f"there is no job, array or group {name}" for name in "az"]  # as if it did not exist
        await operator.call(routes.SUBMIT, chain({"job_id": "o", "depends_on": ["a"]}))
        await ann.call(routes.SUBMIT, chain({"job_id": "c", "depends_on": ["a"]}))
        assert [one.job_id for one in (await ann.call(routes.SHOW_JOB, job_id="a")).dependents] == ["c"]
        assert [one.job_id for one in (await operator.call(routes.SHOW_JOB, job_id="a")).dependents] == ["o", "c"]


async def test_a_waiting_poll_gets_what_became_free(rig):
    node = await rig.enrolled()
    await rig.people.call(routes.SUBMIT, chain({"job_id": "a"}, {"job_id": "b", "depends_on": ["a"]}))
    [lease] = await node.pull()
    held = m.Held(lease.job_id, lease.attempt)
    await node.ack(held)
    poll = asyncio.create_task(node.pull(wait_s=30, held=(held,)))
    await rig.open_calls(routes.PULL)
    await node.finish(m.Outcome(job_id="a", attempt=lease.attempt))
    assert [one.job_id for one in await poll] == ["b"]


async def test_who_waits_for_a_job_hears_that_it_fell(rig):
    await rig.people.call(
        routes.SUBMIT, chain({"job_id": "a"}, {"job_id": "b", "depends_on": ["a"]}, {"job_id": "c", "depends_on": ["b"]})
    )
    waiting = asyncio.create_task(rig.people.call(routes.AWAIT_JOB, query=m.WaitQuery(wait_s=30), job_id="c"))
    await rig.open_calls(routes.AWAIT_JOB)
    await rig.people.call(routes.CANCEL_JOB, m.CancelRequest(), job_id="a")
    view = await waiting
    assert (view.state, view.timeline[-1].message) == (JobState.CANCELLED, "it depends on the success of b, which was cancelled")


async def test_an_end_that_is_there_already_is_answered(rig):
    await rig.people.call(routes.SUBMIT, chain({"job_id": "a"}))
    await rig.people.call(routes.CANCEL_JOB, m.CancelRequest(), job_id="a")
    answer = await rig.people.call(routes.SUBMIT, chain({"job_id": "b", "depends_on": ["a"]}, {"job_id": "c"}))
    assert [(one.job_id, one.state) for one in answer.items] == [("b", JobState.CANCELLED), ("c", JobState.QUEUED)]


async def test_a_handed_artifact_is_signed_with_the_assignment_and_its_bytes_are_the_nodes(rig, tmp_path):
    node, other = await rig.enrolled(), await rig.enrolled()
    take = {"job_id": "take", "depends_on": ["make"], "input": {"artifacts": [{"job": "make", "path": "out", "name": "in"}]}}
    await rig.people.call(routes.SUBMIT, chain({"job_id": "make", "artifacts": [{"path": "out"}]}, take))
    [lease] = await node.pull()
    await node.ack(m.Held("make", lease.attempt))
    file = tmp_path / "out"
    file.write_bytes(b"made")
    entry = m.ArtifactEntry(path="out", type="text/plain", size=4, sha256=sha256(b"made"))
    await rig.nobody.deliver(m.Outcome(job_id="make", attempt=lease.attempt, artifacts=(entry,)), {"out": file}, token=node.token)
    [lease] = await node.pull()
    assert json.loads(lease.spec) == {"command": "true", **take}  # byte for byte what was submitted
    assert [(one.name, one.sha256, one.size) for one in lease.inputs] == [("in", entry.sha256, 4)]
    assert await node.call(routes.GET_BLOB, sha256=entry.sha256) == b"made"
    with pytest.raises(errors.NotFound):
        await other.call(routes.GET_BLOB, sha256=entry.sha256)


# --- groups ------------------------------------------------------------------------------------------------------------------


async def test_a_group_of_manifests(rig):
    body = {"jobs": [{"command": "true", "job_id": "a"}, {"command": "true", "depends_on": ["a"]}], "group": "film"}
    made = await rig.people.call(routes.SUBMIT, json.dumps(body).encode())
    assert {one.group_id for one in made.items} == {"film"}
    view = await rig.people.call(routes.SHOW_GROUP, group_id="film")
    assert (view.count, view.array) == (2, False)
    assert (await rig.people.call(routes.CANCEL_GROUP, m.CancelRequest(), group_id="film")).counts == {JobState.CANCELLED: 2}
    assert (await post(rig, json.dumps(body).encode())).status_code == 409


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"jobs": [{"command": "true"}], "group": 5}, "group"),
        ({"jobs": [{"command": "true"}], "group": "a b"}, "group"),
        ({"jobs": [{"command": "true"}], "group": None}, "group"),
        ({"jobs": [{"command": "true"}], "name": "x"}, "name"),
        ({"jobs": [{"command": "true"}, {"command": "true", "array": 2}], "group": "x"}, "[1].array"),
    ],
)
async def test_groups_that_are_refused(rig, body, path):
    answer = await post(rig, json.dumps(body).encode())
    assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, path), answer.text
    assert await count(rig) == 0
