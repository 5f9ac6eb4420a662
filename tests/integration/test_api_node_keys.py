"""A node's key at the coordinator: asked about without a session, and replaced by another one so that one of the two is always good."""

import asyncio

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from integration.api_rig import coordinator
from ostler.model import errors
from ostler.protocol import messages as m
from ostler.protocol import routes
from ostler.protocol.dsse import key_id


@pytest.fixture
async def rig(tmp_path):
    async with coordinator(tmp_path / "c") as one:
        yield one


def raw(key):
    return key.public_key().public_bytes_raw()


async def challenge(rig, node):
    with pytest.raises(errors.Unauthenticated, match="sign the challenge") as caught:
        await rig.nobody.call(routes.PROVE_NODE, m.ProveRequest(node_id=node.node_id, protocol=m.PROTOCOL, public_key=b""))
    return caught.value.challenge


async def prove(rig, node, key=None, **changes):
    key, text = key or node.key, await challenge(rig, node)
    asked = m.ProveRequest(
        node_id=node.node_id, protocol=m.PROTOCOL, public_key=raw(key), challenge=text,
        signature=key.sign(m.prove_message(text, node.node_id)),
    )  # fmt: skip
    return await rig.nobody.call(routes.PROVE_NODE, replace(asked, **changes))


async def proposal(rig, node, new, key=None):
    key, text = key or node.key, await challenge(rig, node)
    message = m.key_message(text, node.node_id, raw(new))
    return m.KeyRequest(
        node_id=node.node_id, public_key=raw(key), new_key=raw(new), challenge=text, signature=key.sign(message),
        new_signature=new.sign(message),
    )  # fmt: skip


async def replace_key(rig, node, new, key=None):
    return await rig.nobody.call(routes.REPLACE_KEY, await proposal(rig, node, new, key))


async def register(rig, node, key, epoch):
    node.key, node.epoch = key, epoch
    with pytest.raises(errors.Unauthenticated) as caught:
        await node.register()
    text = caught.value.challenge
    return await node.register(challenge=text, signature=key.sign(m.register_message(text, node.node_id, epoch)))


async def test_whether_a_key_is_known_is_asked_without_touching_the_session(rig):
    node = await rig.enrolled()
    before = await rig.people.call(routes.SHOW_NODE, node_id=node.node_id)
    assert await prove(rig, node) == m.KeyStanding(node_id=node.node_id, key_id=key_id(raw(node.key)))
    assert await rig.people.call(routes.SHOW_NODE, node_id=node.node_id) == before
    await node.pull()


async def test_what_proves_nothing(rig):
    node, other = await rig.enrolled(), await rig.enrolled()
    text = await challenge(rig, node)
    register_signature = node.key.sign(m.register_message(text, node.node_id, node.epoch))
    for wrong in (
        {"signature": other.key.sign(b"x")},
        {"signature": None},
        {"challenge": "a.b.c"},
        {"public_key": raw(other.key)},
        {"node_id": other.node_id},
        {"node_id": "n-nobody"},
        {"challenge": text, "signature": register_signature},  # what opens a session proves nothing else, nor the other way round
    ):
        with pytest.raises(errors.Unauthenticated):
            await prove(rig, node, **wrong)
    with pytest.raises(errors.UpgradeRequired):
        await prove(rig, node, protocol=99)
    proof = node.key.sign(m.prove_message(text, node.node_id))
    with pytest.raises(errors.Unauthenticated):
        await node.register(challenge=text, signature=proof)
    await rig.people.call(routes.RETIRE_NODE, m.ReasonRequest(), node_id=node.node_id)
    with pytest.raises(errors.NodeRetired):
        await prove(rig, node)


async def test_a_proof_is_good_once(rig):
    node, text = await rig.enrolled(), None
    text = await challenge(rig, node)
    same = {"challenge": text, "signature": node.key.sign(m.prove_message(text, node.node_id))}
    await prove(rig, node, **same)
    with pytest.raises(errors.Unauthenticated):
        await prove(rig, node, **same)


async def outcomes(*calls):
    """How many of calls made at once were answered, and the class of each refusal."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    refused = {type(one) for one in answers if isinstance(one, BaseException)}
    return sum(not isinstance(one, BaseException) for one in answers), refused


async def test_of_answers_to_one_challenge_that_come_at_once_one_is_good(rig):
    node, new = await rig.enrolled(), Ed25519PrivateKey.generate()
    text = await challenge(rig, node)
    same = m.ProveRequest(
        node_id=node.node_id, protocol=m.PROTOCOL, public_key=raw(node.key), challenge=text,
        signature=node.key.sign(m.prove_message(text, node.node_id)),
    )  # fmt: skip
    once = (1, {errors.Unauthenticated})
    assert await outcomes(*(rig.nobody.call(routes.PROVE_NODE, same) for _ in range(8))) == once
    same = await proposal(rig, node, new)
    assert await outcomes(*(rig.nobody.call(routes.REPLACE_KEY, same) for _ in range(8))) == once
    with pytest.raises(errors.Unauthenticated) as caught:
        await node.register()
    text = caught.value.challenge
    signed = {"challenge": text, "signature": node.key.sign(m.register_message(text, node.node_id, node.epoch))}
    assert await outcomes(*(node.register(**signed) for _ in range(8))) == once
    with pytest.raises(errors.UpgradeRequired) as outside:
        await node.register(protocol=99)
    text = outside.value.challenge
    signed = {"challenge": text, "signature": node.key.sign(m.register_message(text, node.node_id, node.epoch)), "protocol": 99}
    assert await outcomes(*(node.register(**signed) for _ in range(8))) == (0, {errors.UpgradeRequired, errors.Unauthenticated})


P = 2**255 - 19
Y8 = 2707385501144840649318225287225658788936804267575313519463743609750303402022
WEAK = [(y | sign << 255).to_bytes(32, "little") for y in (0, 1, P - 1, Y8, P - Y8, P, P + 1) for sign in (0, 1)]
FORGED = b"\1" + bytes(63)  # good for every message, for the library too, where the key is the neutral point


async def test_a_key_that_anybody_signs_for_is_not_taken(rig):
    """The eight points of small order, and second ways to write one."""
    node, token = await rig.enrolled(), await rig.join_token()
    for weak in WEAK:
        with pytest.raises(errors.InvalidSpec) as caught:
            await rig.node("weak").register(token, public_key=weak)
        [problem] = caught.value.problems
        assert problem.path == "public_key"
        assert "no sound Ed25519 public key" in problem.message
        text = await challenge(rig, node)
        asked = m.KeyRequest(
            node_id=node.node_id, public_key=raw(node.key), new_key=weak, challenge=text,
            signature=node.key.sign(m.key_message(text, node.node_id, weak)), new_signature=FORGED,
        )  # fmt: skip
        with pytest.raises(errors.InvalidSpec) as caught:
            await rig.nobody.call(routes.REPLACE_KEY, asked)
        assert [one.path for one in caught.value.problems] == ["new_key"]


async def test_both_keys_are_good_until_the_new_one_opened_a_session(rig):
    node, new = await rig.enrolled(), Ed25519PrivateKey.generate()
    old = node.key
    standing = m.KeyStanding(node_id=node.node_id, key_id=key_id(raw(old)), next_key_id=key_id(raw(new)))
    assert await replace_key(rig, node, new) == standing
    assert await replace_key(rig, node, new) == standing  # the answer was lost, and it was asked again
    await node.pull()
    assert await prove(rig, node, new) == await prove(rig, node, old) == standing
    await register(rig, node, old, "boot:2")
    assert await prove(rig, node, new) == standing
    await register(rig, node, new, "boot:3")
    await node.pull()
    assert await prove(rig, node, new) == m.KeyStanding(node_id=node.node_id, key_id=key_id(raw(new)))
    with pytest.raises(errors.Unauthenticated, match="is enrolled with this key"):
        await prove(rig, node, old)
    with pytest.raises(errors.Unauthenticated, match="is enrolled with this key"):
        await register(rig, node, old, "boot:4")
    events = await rig.people.call(routes.EVENTS, query=m.EventQuery(limit=100))
    assert [one.message for one in events.items if one.kind == "new_key"] == [key_id(raw(new))]


async def test_a_key_that_never_opened_a_session_is_replaced_or_dropped(rig):
    node, first, second = await rig.enrolled(), Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    await replace_key(rig, node, first)
    await replace_key(rig, node, second)
    with pytest.raises(errors.Unauthenticated):
        await prove(rig, node, first)
    assert (await replace_key(rig, node, node.key, second)).next_key_id is None
    with pytest.raises(errors.Unauthenticated):
        await prove(rig, node, second)


async def test_who_has_not_both_keys_replaces_none(rig):
    node, other, new = await rig.enrolled(), await rig.enrolled(), Ed25519PrivateKey.generate()
    good = await proposal(rig, node, new)
    for wrong in (
        {"signature": other.key.sign(b"x")},
        {"public_key": raw(other.key)},
        {"node_id": other.node_id},
        {"new_key": raw(other.key)},
        {"new_signature": node.key.sign(m.key_message(good.challenge, node.node_id, raw(new)))},
        {"challenge": "a.b.c"},
    ):
        with pytest.raises(errors.Unauthenticated):
            await rig.nobody.call(routes.REPLACE_KEY, replace(good, **wrong))
    with pytest.raises(errors.InvalidSpec):
        await rig.nobody.call(routes.REPLACE_KEY, replace(good, new_key=b"short"))
    assert (await prove(rig, node)).next_key_id is None
    await rig.nobody.call(routes.REPLACE_KEY, good)
    with pytest.raises(errors.Unauthenticated):
        await rig.nobody.call(routes.REPLACE_KEY, good)
    await rig.people.call(routes.RETIRE_NODE, m.ReasonRequest(), node_id=node.node_id)
    with pytest.raises(errors.NodeRetired):
        await replace_key(rig, node, Ed25519PrivateKey.generate())


async def test_a_join_token_does_not_bring_the_key_in_that_waits_to_be_proven(rig):
    """It is known as the node's: whoever shows it must sign."""
    node, new = await rig.enrolled(), Ed25519PrivateKey.generate()
    await replace_key(rig, node, new)
    node.key = new
    with pytest.raises(errors.Unauthenticated, match="sign the challenge"):
        await node.register(await rig.join_token())


async def test_a_new_key_is_in_the_audit_log(rig):
    node, new = await rig.enrolled("n-one"), Ed25519PrivateKey.generate()
    await replace_key(rig, node, new)
    page = await rig.people.call(routes.LIST_AUDIT, query=m.AuditQuery(action="replace_key"))
    [row] = page.items
    assert (row.principal, row.target, row.status) == ("node n-one", "n-one", 200)
    assert row.detail == f"key {key_id(raw(node.key))}, to be replaced by {key_id(raw(new))}"


async def test_two_who_would_replace_it_leave_a_key_that_one_of_them_has(rig):
    node, keys = await rig.enrolled(), [Ed25519PrivateKey.generate() for _ in range(4)]
    asked = [await proposal(rig, node, key) for key in keys]
    await asyncio.gather(*(rig.nobody.call(routes.REPLACE_KEY, one) for one in asked))
    assert (await prove(rig, node)).next_key_id in {key_id(raw(key)) for key in keys}
