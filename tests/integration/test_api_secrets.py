"""Secrets over a real socket: who may set, see and delete which, and to which node, for which attempt, a value goes."""

import base64
import sqlite3
import sys

import pytest

from integration.api_rig import coordinator
from ostler.model import errors
from ostler.model.access import Role
from ostler.protocol import codec, routes
from ostler.protocol import messages as m

VALUE = b"s3cr3t\0canary"
USES = [{"name": "db", "file": "db"}]


@pytest.fixture
async def rig(tmp_path):
    async with coordinator(tmp_path / "c") as one:
        yield one


async def put(who, name, value=VALUE, **query):
    return await who.call(routes.SET_SECRET, value, query=m.SecretQuery(**query), name=name)


async def names(who):
    return [(one.name, one.shared) for one in (await who.call(routes.LIST_SECRETS)).items]


async def values(node, held):
    return (await node.call(routes.FETCH_SECRETS, job_id=held.job_id, attempt=held.attempt)).items


async def submit(who, **manifest):
    answer = await who.call(routes.SUBMIT, codec.encode({"command": "true", "secrets": USES, **manifest}))
    return answer.items[0].job_id


async def test_a_value_goes_to_the_node_that_holds_the_attempt_and_to_nobody_else(rig):
    first = await put(rig.people, "db")
    assert (first.version, first.shared, first.updated_by) == (1, False, "admin")
    node, other = await rig.enrolled(), await rig.enrolled()
    job_id = await submit(rig.people)
    [lease] = await node.pull()
    held = m.Held(job_id, lease.attempt)
    with pytest.raises(errors.StaleAttempt):  # not before it is acknowledged
        await values(node, held)
    await node.ack(held)
    assert await values(node, held) == (m.SecretValue(name="db", value=VALUE),)
    assert (await put(rig.people, "db", b"another")).version == 2
    assert await values(node, held) == (m.SecretValue(name="db", value=b"another"),)
    url = f"/jobs/{job_id}/attempts/{lease.attempt}/secrets"
    raw = await rig.http.post(url, headers=rig.bearer(node.token))
    assert (raw.status_code, raw.headers["cache-control"]) == (200, "no-store")
    assert raw.json() == {"items": [{"name": "db", "value": base64.b64encode(b"another").decode()}]}
    with pytest.raises(errors.StaleAttempt):
        await values(other, held)
    with pytest.raises(errors.StaleAttempt):
        await values(node, m.Held(job_id, lease.attempt + 1))
    for status, headers in ((403, rig.bearer()), (401, {}), (403, rig.bearer(await rig.join_token()))):
        assert (await rig.http.post(url, headers=headers)).status_code == status
    await rig.people.call(routes.DELETE_SECRET, query=m.SecretQuery(), name="db")
    with pytest.raises(errors.NotFound, match="there is no secret db any more"):
        await values(node, held)
    await node.finish(m.Outcome(job_id=job_id, attempt=lease.attempt, exit_code=0))
    await put(rig.people, "db")
    with pytest.raises(errors.StaleAttempt):
        await values(node, held)


async def test_nothing_but_ciphertext_is_stored(rig):
    await put(rig.people, "db", b"a-value-to-be-found" * 10)
    await put(rig.people, "db", b"a-value-to-be-found" * 10)
    files = [one for one in rig.config.data.rglob("*") if one.is_file()]
    assert any(one.name == "ostler.db" for one in files)
    for one in files:
        content = one.read_bytes()
        assert b"a-value-to-be-found" not in content, one
        assert base64.b64encode(b"a-value-to-be-found" * 3) not in content, one


async def test_own_secrets_are_nobody_elses(rig):
    async with rig.person(Role.SUBMITTER, "ann") as ann, rig.person(Role.SUBMITTER, "bob") as bob:
        await put(ann, "db")
        assert await names(ann) == [("db", False)]
        assert await names(bob) == await names(rig.people) == []
        for who in (bob, rig.people):
            with pytest.raises(errors.InvalidSpec) as caught:
                await submit(who)
            assert [one.path for one in caught.value.problems] == ["secrets[0].name"]
            with pytest.raises(errors.NotFound):
                await who.call(routes.DELETE_SECRET, query=m.SecretQuery(), name="db")
        with pytest.raises(errors.Forbidden, match="of its own alone"):
            await put(ann, "db", shared=True)
        with pytest.raises(errors.Forbidden):
            await ann.call(routes.DELETE_SECRET, query=m.SecretQuery(shared=True), name="db")
        job_id = await submit(ann)
        node = await rig.enrolled()
        [lease] = await node.pull()
        held = m.Held(job_id, lease.attempt)
        await node.ack(held)
        await put(rig.people, "db", b"the admin's own")
        await put(rig.people, "db", b"shared by the admin", shared=True)
        assert (await values(node, held))[0].value == VALUE, "one's own goes before the shared one"
        await ann.call(routes.DELETE_SECRET, query=m.SecretQuery(), name="db")
        assert (await values(node, held))[0].value == b"shared by the admin"
    async with rig.person(Role.VIEWER) as viewer:
        with pytest.raises(errors.Forbidden):
            await names(viewer)


async def test_roles_say_who_may_name_a_shared_one_and_pools_where_it_goes(rig):
    await put(rig.people, "db", shared=True, roles="operator", pools="far,near")
    async with rig.person(Role.SUBMITTER) as submitter, rig.person(Role.OPERATOR, "op") as operator:
        assert await names(submitter) == []
        with pytest.raises(errors.InvalidSpec, match="there is no secret 'db' that you may name"):
            await submit(submitter, requirements={"pool": "near"})
        assert await names(operator) == [("db", True)]
        with pytest.raises(errors.InvalidSpec, match="pool far or near; this one runs in default"):
            await submit(operator)
        node = await rig.enrolled()
        job_id = await submit(operator, requirements={"node": node.node_id})
        [lease] = await node.pull()
        held = m.Held(job_id, lease.attempt)
        await node.ack(held)
        with pytest.raises(errors.Forbidden, match="pool far or near; this one is in default"):
            await values(node, held)
        await rig.people.call(routes.MOVE_NODE, m.PoolRequest(pool="near"), node_id=node.node_id)
        assert (await values(node, held))[0].value == VALUE
        await node.finish(m.Outcome(job_id=job_id, attempt=lease.attempt, exit_code=0))
        await put(rig.people, "db", shared=True, roles="admin")
        with pytest.raises(errors.InvalidSpec):
            await operator.call(routes.RETRY_JOB, job_id=job_id)


@pytest.mark.parametrize(
    ("path", "value", "status"),
    [
        ("/secrets/a%20b", b"x", 404),
        ("/secrets/-", b"x", 404),
        ("/secrets/db", b"", 422),
        ("/secrets/db", b"x" * 65537, 413),
        ("/secrets/db?value=x", b"x", 422),
        ("/secrets/db?roles=admin", b"x", 422),
        ("/secrets/db?shared=true&roles=king", b"x", 422),
        ("/secrets/db?shared=true&pools=a%20b", b"x", 422),
        ("/secrets/db?shared=perhaps", b"x", 422),
    ],
)
async def test_what_cannot_be_is_refused(rig, path, value, status):
    answer = await rig.http.put(path, content=value, headers=rig.bearer())
    assert answer.status_code == status, answer.text
    assert (await rig.people.call(routes.LIST_SECRETS)).items == ()


async def test_another_key_opens_nothing_and_says_so(tmp_path):
    command = (sys.executable, "-I", "-c", "import sys; sys.stdout.buffer.write(bytes(32))")
    async with coordinator(tmp_path / "c") as rig:
        await put(rig.people, "db")
    (tmp_path / "c" / "keys" / "secrets.key").write_bytes(bytes(range(32)))
    async with coordinator(tmp_path / "c") as rig:
        node = await rig.enrolled()
        held = await node.take(secrets=USES)
        with pytest.raises(errors.Unsealable, match="was sealed with the key"):
            await values(node, held)
    from ostler.coordinator.config import SecretsConfig

    async with coordinator(tmp_path / "d", secrets=SecretsConfig(key_command=command)) as rig:
        await put(rig.people, "db")
        node = await rig.enrolled()
        assert (await values(node, await node.take(secrets=USES)))[0].value == VALUE
        assert not (tmp_path / "d" / "keys" / "secrets.key").exists()


async def test_a_row_that_was_moved_opens_for_nobody(rig):
    await put(rig.people, "db")
    async with rig.person(Role.SUBMITTER, "eve") as eve:
        with sqlite3.connect(rig.config.data / "ostler.db") as database:
            database.execute("UPDATE secrets SET owner = 'eve'")
        node = await rig.enrolled()
        job_id = await submit(eve)
        [lease] = await node.pull()
        held = m.Held(job_id, lease.attempt)
        await node.ack(held)
        with pytest.raises(errors.Unsealable, match="damaged, or belongs to something else"):
            await values(node, held)


async def test_a_shared_secret_is_not_had_by_way_of_an_own_one_that_is_gone(rig):
    """The name of an own secret passes at submission; what it means when the job runs may be another's by then."""
    await put(rig.people, "db", b"for operators", shared=True, roles="operator")
    node = await rig.enrolled()
    async with rig.person(Role.SUBMITTER, "eve") as eve:
        await put(eve, "db", b"eve's own")
        job_id = await submit(eve, retries=0)
        await eve.call(routes.DELETE_SECRET, query=m.SecretQuery(), name="db")
        [lease] = await node.pull()
        held = m.Held(job_id, lease.attempt)
        await node.ack(held)
        with pytest.raises(errors.Forbidden, match="for jobs of the role operator; eve has no good token of that role"):
            await values(node, held)
        await node.finish(m.Outcome(job_id=job_id, attempt=lease.attempt, exit_code=0))
    async with rig.person(Role.OPERATOR, "op") as operator:  # who retries it lends it no role
        anew = await operator.call(routes.RETRY_JOB, job_id=job_id)
        [lease] = await node.pull()
        held = m.Held(anew.job_id, lease.attempt)
        await node.ack(held)
        with pytest.raises(errors.Forbidden, match="eve has no good token"):
            await values(node, held)
