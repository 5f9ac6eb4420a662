"""A node gets a new key at a real coordinator, is cut off at each step of it, and is let in at each moment with a key on its disk."""

import asyncio
import os
from pathlib import Path

import pytest

from integration.api_rig import coordinator
from ostler.assembly import enrolment, rekeying
from ostler.assembly.enrolment import client_of, prove
from ostler.assembly.resolve import resolve_node
from ostler.model import errors
from ostler.node.signatures import NodeKey
from ostler.protocol import messages as m
from ostler.protocol import routes


class Node:
    """The files of a node without its daemon, and its program's commands."""

    def __init__(self, folder: Path, url: str) -> None:
        self.state, self.file = folder / "state", folder / "node.yaml"
        self.state.mkdir(mode=0o700)
        self.file.write_text(f"node_id: n-one\ncoordinator: {{base_url: '{url}/api/v1'}}\nstate_dir: {self.state}\n")
        self.key = self.state / "node.key"

    async def enrol(self, token: str) -> enrolment.Enrolled:
        """Opens a session, as a daemon does at its start."""
        return await asyncio.to_thread(enrolment.enrol, self.file, token, env={})

    async def rotate(self) -> rekeying.Rekeyed:
        return await asyncio.to_thread(rekeying.rotate, self.file, env={})

    async def reach(self) -> enrolment.Enrolled:
        return await asyncio.to_thread(enrolment.reach, self.file, env={})

    async def knows(self, name: str = "node.key") -> bool:
        """Whether the coordinator lets in who has this key."""
        config = resolve_node(self.file, env={}, need_secrets=False).value
        async with client_of(config) as client:
            try:
                await prove(client, "n-one", NodeKey.open(self.state / name))
            except errors.Unauthenticated:
                return False
        return True

    def keys(self) -> set[str]:
        return {one.name for one in self.state.glob("node.key*")}


@pytest.fixture
async def rig(tmp_path):
    async with coordinator(tmp_path / "c") as one:
        yield one


@pytest.fixture
async def node(rig, tmp_path):
    one = Node(tmp_path, rig.url)
    await one.enrol(await rig.join_token())
    return one


async def test_an_unknown_key_is_not_reached(rig, node):
    assert (await node.reach()).node_id == "n-one"
    node.key.rename(node.state / "kept")
    NodeKey.open(node.key)
    with pytest.raises(errors.Unauthenticated, match="no node 'n-one' is enrolled with this key"):
        await node.reach()
    (node.state / "kept").rename(node.key)
    await rig.people.call(routes.RETIRE_NODE, m.ReasonRequest(), node_id="n-one")
    with pytest.raises(errors.NodeRetired):
        await node.reach()


async def test_a_node_gets_a_new_key(rig, node):
    before = node.key.read_bytes()
    begun = await node.rotate()
    assert not begun.proven
    assert node.keys() == {"node.key", "node.key.old"}
    assert await node.knows()
    assert await node.knows("node.key.old")
    assert await node.rotate() == begun  # no session yet
    await node.enrol("not-needed")
    done = await node.rotate()
    assert (done.proven, done.key_id, done.previous) == (True, begun.key_id, begun.previous)
    assert node.keys() == {"node.key"}
    assert node.key.read_bytes() != before
    assert node.key.stat().st_mode & 0o777 == 0o600
    assert (await node.rotate()).previous == done.key_id  # the next one


@pytest.mark.parametrize("at", ["sent", "link", "replace", "fsync"])
async def test_cut_off_anywhere_a_key_on_the_disk_is_good_and_the_next_try_goes_on(rig, node, at, monkeypatch):
    """Where the answer is on its way, and at each change on the disk; from within, since a kill that hits just there is luck."""

    class Cut(BaseException):
        pass

    def cut(*_: object, **__: object) -> None:
        raise Cut

    with monkeypatch.context() as patched:
        if at == "sent":
            call = rekeying.AsyncClient.call

            async def lost(self, route, *args, **more):
                answer = await call(self, route, *args, **more)
                return cut() if route is routes.REPLACE_KEY else answer

            patched.setattr(rekeying.AsyncClient, "call", lost)
        elif at == "replace":
            patched.setattr(Path, "replace", cut)
        else:
            patched.setattr(os, at, cut)
        with pytest.raises(Cut):
            await node.rotate()
    assert await node.knows()
    await node.enrol("not-needed")  # its daemon is started anew in between
    assert await node.knows()
    done = await node.rotate()
    if not done.proven:
        await node.enrol("not-needed")
        done = await node.rotate()
    assert done.proven
    assert node.keys() == {"node.key"}
    assert await node.knows()


async def test_a_coordinator_that_forgot_the_new_key_gets_another(rig, node):
    """As one that was restored from a backup of before."""
    await node.rotate()
    node.key.write_bytes(node.key.read_bytes())  # what is in use stays a file of its own
    (node.state / "node.key").unlink()
    NodeKey.open(node.key)  # one that the coordinator never heard of
    assert not await node.knows()
    assert not (await node.rotate()).proven
    assert await node.knows()
    await node.enrol("not-needed")
    assert (await node.rotate()).proven


async def test_where_no_key_is_known_nothing_is_changed(rig, node):
    await node.rotate()
    await rig.people.call(routes.RETIRE_NODE, m.ReasonRequest(), node_id="n-one")
    before = {one.name: one.read_bytes() for one in node.state.glob("node.key*")}
    with pytest.raises(errors.NodeRetired):
        await node.rotate()
    assert {one.name: one.read_bytes() for one in node.state.glob("node.key*")} == before


async def test_a_node_that_never_joined_has_no_key_to_replace(rig, tmp_path):
    (tmp_path / "other").mkdir()
    stranger = Node(tmp_path / "other", rig.url)
    with pytest.raises(errors.NotFound, match="never enrolled"):
        await stranger.rotate()
    assert stranger.keys() == set()
