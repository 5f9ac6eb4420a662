"""The whole matrix: each role at each route, with each runner, at things of their own and of others."""

import re

import pytest

from integration.api_rig import ADMIN, coordinator, sha256, url_of
from ostler.model.access import READ, RULE, RUN, RUNNERS, WORK, Reach, Role
from ostler.model.manifest import Runner
from ostler.protocol import codec, routes
from ostler.protocol import messages as m
from ostler.protocol.routes import ROUTES, Audience, Body

ROLES = list(Role)
FOR_PEOPLE = [route for route in ROUTES if route.audience in {Audience.CLIENT, Audience.MEMBER}]
OF_JOBS = [route for route in FOR_PEOPLE if "{job_id}" in route.path]
OF_GROUPS = [route for route in FOR_PEOPLE if "{group_id}" in route.path]
MANIFEST = {"command": "true"}
BODIES = {"submit_jobs": MANIFEST, "create_token": {"kind": "join"}}


@pytest.fixture
async def rig(tmp_path):
    async with coordinator(tmp_path / "c") as one:
        yield one


async def ask(rig, route, token, **named):
    content = codec.encode(BODIES.get(route.name, {})) if route.body is not Body.NONE else None
    headers = {"Authorization": f"Bearer {token}"}
    return await rig.http.request(route.method, rig.url + url_of(route, **named), headers=headers, content=content)


def test_each_route_for_people_says_who_may_call_it():
    for route in FOR_PEOPLE:
        assert route.grants, f"{route.name} is for nobody"
        assert route.grants.get(Role.ADMIN) is Reach.ALL, f"an admin cannot mend what {route.name} did"
        if route.method != "GET" and route.audience is Audience.CLIENT and route is not routes.AWAIT_JOBS:  # long for a query
            assert Role.VIEWER not in route.grants, f"a viewer changes something with {route.name}"
        if Role.SUBMITTER in route.grants:
            assert route.grants[Role.SUBMITTER] is Reach.OWN, f"a submitter reaches others with {route.name}"
    for route in ROUTES:
        assert not route.grants or route.audience not in {Audience.NODE, Audience.ENROL}


def test_the_roles_are_what_the_documentation_says():
    assert set(READ) == set(Role)
    assert set(WORK) == {Role.SUBMITTER, Role.OPERATOR, Role.ADMIN}
    assert set(RUN) == {Role.OPERATOR, Role.ADMIN}
    assert set(RULE) == {Role.ADMIN}
    assert RUNNERS[Role.VIEWER] == set()
    assert RUNNERS[Role.SUBMITTER] == set(Runner) - {Runner.SERVICE, Runner.AGENT}
    assert RUNNERS[Role.OPERATOR] == RUNNERS[Role.ADMIN] == set(Runner)


async def test_each_role_at_each_route(rig):
    tokens = {role: (await rig.token_for(role, f"p-{role}")).token for role in ROLES}
    for route in FOR_PEOPLE:
        for role in ROLES:
            answer = await ask(rig, route, tokens[role])
            assert answer.status_code != 500, (route.name, role, answer.text)
            if role in route.grants:
                assert answer.status_code not in {401, 403}, (route.name, role, answer.text)
            else:
                assert answer.status_code == 403, (route.name, role, answer.text)
                said = answer.json()
                assert said["code"] == "forbidden"
                assert role in said["detail"]
                assert all(one in said["detail"] for one in route.grants)


@pytest.mark.parametrize("runner", Runner)
async def test_each_role_with_each_runner(rig, runner):
    body = {"runner": runner} | ({"task": "t"} if runner is Runner.PYTHON else {"command": "true"})
    offered = runner in {Runner.CLI, Runner.PYTHON}
    for role in ROLES:
        token = (await rig.token_for(role)).token
        answer = await rig.http.post("/jobs", headers=rig.bearer(token), content=codec.encode(body))
        if role not in WORK or runner not in RUNNERS[role]:
            assert answer.status_code in ({403} if offered or role not in WORK else {403, 422}), (role, answer.text)
        else:
            assert answer.status_code == (201 if offered else 422), (role, answer.text)
    if offered:
        assert (await rig.people.call(routes.LIST_JOBS, query=m.JobQuery(count=True))).total == 3


def without_id(answer, name: str) -> tuple[int, str]:
    return answer.status_code, re.sub(r'"(instance|hint)":"[^"]*",?', "", answer.text.replace(name, "NAME"))


async def test_what_is_anothers_is_as_if_it_did_not_exist(rig):
    """Not only refused: the answer about somebody else's job is, to the letter, that about a job that was never there."""
    alice, bob = [(await rig.token_for(Role.SUBMITTER, name)).token for name in ("alice", "bob")]
    nobodys = "j-0123456789"
    for route in OF_JOBS:
        job_id = (await rig.http.post("/jobs", headers=rig.bearer(bob), json=MANIFEST)).json()["items"][0]["job_id"]
        theirs = await ask(rig, route, alice, job_id=job_id)
        nothing = await ask(rig, route, alice, job_id=nobodys)
        assert theirs.status_code == 404, (route.name, theirs.text)
        assert without_id(theirs, job_id) == without_id(nothing, nobodys), route.name
        assert (await rig.show(job_id)).state == "queued", route.name  # and nothing was done to it
        own = await ask(rig, route, bob, job_id=job_id)
        admins = await ask(rig, route, ADMIN, job_id=job_id)
        for answer in (own, admins):
            assert "there is no job" not in answer.text, (route.name, answer.text)
    for route in OF_GROUPS:
        made = await rig.http.post("/jobs", headers=rig.bearer(bob), json=MANIFEST | {"array": 2})
        group_id = made.json()["items"][0]["group_id"]
        theirs = await ask(rig, route, alice, group_id=group_id)
        assert theirs.status_code == 404, (route.name, theirs.text)
        assert without_id(theirs, group_id) == without_id(await ask(rig, route, alice, group_id="g-none"), "g-none")
        assert (await ask(rig, route, bob, group_id=group_id)).status_code < 300


async def test_lists_and_nodes_show_a_submitter_their_own(rig):
    node = await rig.enrolled()
    async with rig.person(Role.SUBMITTER, "alice") as alice, rig.person(Role.SUBMITTER, "bob") as bob:
        jobs = {}
        for name, person in {"alice": alice, "bob": bob}.items():
            answer = await person.call(routes.SUBMIT, codec.encode([MANIFEST, MANIFEST | {"labels": {"x": "y"}}]))
            jobs[name] = {one.job_id for one in answer.items}
        assert len(await node.pull()) == 4
        async with rig.person(Role.VIEWER) as viewer, rig.person(Role.OPERATOR) as operator:
            for person in (viewer, operator, rig.people):
                assert {one.job_id for one in (await person.call(routes.LIST_JOBS)).items} == jobs["alice"] | jobs["bob"]
                query = m.JobQuery(owner="bob")
                assert {one.job_id for one in (await person.call(routes.LIST_JOBS, query=query)).items} == jobs["bob"]
                assert len((await person.call(routes.SHOW_NODE, node_id=node.node_id)).attempts) == 4
        for name, person in {"alice": alice, "bob": bob}.items():
            for query in (m.JobQuery(), m.JobQuery(owner="alice"), m.JobQuery(owner="bob"), m.JobQuery(state="leased"),
                          m.JobQuery(state="leased,done"), m.JobQuery(queue="default"), m.JobQuery(node=node.node_id)):  # fmt: skip
                page = await person.call(routes.LIST_JOBS, query=query)
                assert {one.job_id for one in page.items} == jobs[name], query
                assert {one.owner for one in page.items} == {name}
            assert len((await person.call(routes.LIST_JOBS, query=m.JobQuery(label="x=y", count=True))).items) == 1
            seen = await person.call(routes.SHOW_NODE, node_id=node.node_id)
            assert {one.job_id for one in seen.attempts} == jobs[name]
            [listed] = (await person.call(routes.LIST_NODES)).items
            assert {one.job_id for one in listed.attempts} == jobs[name]


async def test_who_knows_a_hash_does_not_have_the_bytes(rig):
    """The store is shared and addressed by content: naming another's content must not be a way to read it."""
    data = b"bob's diary"
    digest = sha256(data)
    file = {"name": "x", "sha256": digest, "size": len(data)}
    alice, bob = [(await rig.token_for(Role.SUBMITTER, name)).token for name in ("alice", "bob")]
    assert (await rig.http.post("/blobs", headers=rig.bearer(bob), content=data)).status_code == 201
    theft = MANIFEST | {"input": {"files": [file]}}
    answer = await rig.http.post("/jobs", headers=rig.bearer(alice), json=theft)
    assert answer.status_code == 422
    assert "was not uploaded by alice" in answer.text
    assert (await rig.http.get(f"/blobs/{digest}", headers=rig.bearer(alice))).status_code == 404
    assert (await rig.http.get(f"/blobs/{digest}", headers=rig.bearer(bob))).content == data
    assert (await rig.http.post("/jobs", headers=rig.bearer(bob), json=theft)).status_code == 201
    assert (await rig.http.post("/blobs", headers=rig.bearer(alice), content=data)).status_code == 201
    assert (await rig.http.post("/jobs", headers=rig.bearer(alice), json=theft)).status_code == 201


async def test_a_retry_by_an_operator_stays_the_submitters(rig):
    async with rig.person(Role.SUBMITTER, "alice") as alice, rig.person(Role.OPERATOR) as operator:
        job_id = (await alice.call(routes.SUBMIT, codec.encode(MANIFEST))).items[0].job_id
        await operator.call(routes.CANCEL_JOB, m.CancelRequest(reason="no"), job_id=job_id)
        anew = await operator.call(routes.RETRY_JOB, job_id=job_id)
        assert (anew.owner, (await alice.call(routes.SHOW_JOB, job_id=anew.job_id)).retry_of) == ("alice", job_id)


async def test_two_tokens_of_one_name_own_the_same_jobs(rig):
    async with rig.person(Role.SUBMITTER, "alice") as old, rig.person(Role.SUBMITTER, "alice") as new:
        job_id = (await old.call(routes.SUBMIT, codec.encode(MANIFEST))).items[0].job_id
        assert (await new.call(routes.CANCEL_JOB, m.CancelRequest(), job_id=job_id)).state == "cancelled"


async def test_only_an_admin_decides_who_may_do_what(rig):
    operator = await rig.token_for(Role.OPERATOR)
    headers = rig.bearer(operator.token)
    answer = await rig.http.post("/tokens", headers=headers, json={"kind": "api", "role": "viewer"})
    assert answer.status_code == 403
    assert (await rig.http.post("/tokens", headers=headers, json={"kind": "join"})).status_code == 201
    assert (await rig.http.delete(f"/tokens/{operator.token_id}", headers=headers)).status_code == 403
    for body, path in (
        ({"kind": "api"}, "role"), ({"kind": "join", "role": "viewer"}, "role"), ({"kind": "api", "role": "x"}, "role"),
        ({"kind": "api", "role": "viewer", "pool": "p"}, "pool"), ({"kind": "join", "pool": "a b"}, "pool"),
        ({"kind": "api", "role": "viewer", "principal": "../x"}, "principal"),
    ):  # fmt: skip
        answer = await rig.http.post("/tokens", headers=rig.bearer(), json=body)
        assert answer.status_code == 422, body
        assert any(path in one["path"] for one in answer.json()["errors"]), answer.text
