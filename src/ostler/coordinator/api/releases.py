"""Endpoints for releases: bundles come in, checked on their way, and go out to the nodes that are asked to run them."""

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from starlette.responses import Response

from ostler.coordinator.api.calls import Answer, Call
from ostler.coordinator.api.downloads import serve
from ostler.coordinator.artifacts.store import Staging
from ostler.coordinator.operations import releases as ops
from ostler.coordinator.operations.rollout_turns import check_free, is_asked
from ostler.coordinator.store.tx import Tx
from ostler.model.access import Role
from ostler.model.errors import Forbidden, InvalidSpec, NotFound, Outdated, Problem
from ostler.model.release import Release
from ostler.protocol import messages as m
from ostler.protocol.ports import BundleReader


async def push_release(call: Call) -> m.ReleaseView:
    """What a trusted key signed, whole, and under its own id; else nothing is kept."""
    query, name = call.query(m.ReleaseQuery), call.path["release"]
    if query.trust and call.caller.role is not Role.ADMIN:
        raise Forbidden("whose releases are believed is an admin's to say", hint="leave --trust out, or ask an admin")
    if query.trust and query.digest is None:
        raise InvalidSpec("the query is not valid", [Problem("digest", "must be told of a release whose keys are to be trusted")])
    keys = await call.read(ops.check_wanted, trust=query.trust)
    call.body.check_announced()
    staging = await call.services.artifacts.stage()
    try:
        release = await _checked(call, staging, keys)
        if name != release.release:
            raise InvalidSpec(f"this is the bundle of release {release.release}, not of {name}")
        if query.digest not in {None, release.digest}:
            raise InvalidSpec(f"the manifest of release {name} has the digest {release.digest}, not {query.digest}")
        stored = await staging.seal()
        if stored.sha256 != release.sha256:
            raise InvalidSpec(f"the bundle of {name} is not laid out as `ostler release build` does it", hint="build it anew")
        stored = await staging.commit()
    finally:
        await staging.discard()
    return await call.write(
        ops.add_release, release, sha256=stored.sha256, size=stored.size, by=call.caller.principal, trust=query.trust
    )


async def _checked(call: Call, staging: Staging, keys: Mapping[str, bytes] | None) -> Release:
    """The body goes to the disk and, through a pair of sockets, to the reader, which may refuse it long before its end."""
    here, there = socket.socketpair()
    here.setblocking(False)
    loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1, thread_name_prefix="release")
    reading = loop.run_in_executor(thread, _read, call.services.read_bundle, there, keys)
    try:
        with contextlib.suppress(ConnectionError):  # it has refused
            async for chunk in call.while_admitted(call.body.chunks()):
                await staging.write(chunk)
                await loop.sock_sendall(here, chunk)
            here.shutdown(socket.SHUT_WR)
        return await reading
    finally:
        here.close()
        await asyncio.gather(reading, return_exceptions=True)
        thread.shutdown(wait=False)


def _read(read: BundleReader, there: socket.socket, keys: Mapping[str, bytes] | None) -> Release:
    with there, there.makefile("rb") as bundle:
        return read(bundle, keys)


async def list_releases(call: Call) -> m.ReleasePage:
    """All."""
    return await call.read(ops.list_releases)


async def show_release(call: Call) -> Answer:
    """One; its ETag is that of its bundle."""
    view = await call.read(ops.show_release, call.path["release"])
    return Answer(view, headers={"ETag": f'"{view.sha256}"'})


async def get_bundle(call: Call) -> Response:
    """Its bytes."""
    if call.is_node and not await call.read(is_asked, call.node.node_id, call.path["release"]):
        raise NotFound(f"node {call.node.node_id} is not asked to run release {call.path['release']}")
    name, platform = call.path["release"], call.query(m.BundleQuery).platform
    release = await call.read(ops.show_release, name)
    if platform is None:
        return await serve(call, release.sha256, f"{name}.tar", "application/x-tar")
    excerpts = await call.read(ops.excerpts_of, name)
    if (excerpt := excerpts.get(platform)) is None:
        raise NotFound(f"release {name} has nothing for {platform}, only {', '.join(excerpts)}")
    return await serve(call, release.sha256, f"{name}.tar", "application/x-tar", excerpt=excerpt)


async def remove_release(call: Call) -> m.ReleaseView:
    """From now on nobody can be asked to run it."""
    return await call.write(_remove, call.path["release"], call.header(b"if-match"))


def _remove(tx: Tx, release: str, expected: str | None) -> m.ReleaseView:
    there = ops.show_release(tx, release).sha256
    if expected not in {None, "*", f'"{there}"'}:
        raise Outdated(f'the bundle of release {release} is another one: its ETag is "{there}"')
    check_free(tx, release)
    return ops.remove_release(tx, release)
