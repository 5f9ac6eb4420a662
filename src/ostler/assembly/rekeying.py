"""A node's key is replaced by the node itself, so that at each moment one that it has on its disk is known to the coordinator (ADR 42)."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ostler.assembly.enrolment import KEY, challenge_of, client_of, prove, who_am_i
from ostler.assembly.resolve import resolve_node
from ostler.model.errors import NotFound, Unauthenticated
from ostler.node.config import NodeConfig
from ostler.node.signatures import NodeKey
from ostler.protocol import messages as m
from ostler.protocol import routes
from ostler.protocol.client import AsyncClient
from ostler.protocol.dsse import key_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Rekeyed:
    """The ids of the key that the node has now, and of the one before where that is known. `proven`: a session was opened with the new one,
    so the one before is gone; until then, both are good."""

    node_id: str
    key_id: str
    previous: str | None
    proven: bool


class _Files:
    """The key in use, the one that is to be, and the one that was until a session was opened with its successor."""

    def __init__(self, state: Path) -> None:
        self.state, self.key = state, state / KEY
        self.next, self.old = state / f"{KEY}.next", state / f"{KEY}.old"

    def swap(self) -> None:
        """The next key is in use from the next start of the daemon on; cut off anywhere, each key is in one of the files."""
        os.link(self.key, self.old)
        self.next.replace(self.key)
        self.sync()

    def swap_back(self) -> None:
        """The key that was is in use again."""
        self.old.replace(self.key)
        self.sync()

    def sync(self) -> None:
        folder = os.open(self.state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def rotate(file: Path, *, env: Mapping[str, str]) -> Rekeyed:
    """Give the node a new key; asked again after its daemon was started anew, say whether that is proven. Raises the error tree.

    Whatever was cut off before is brought to its end first. One at a time, as the daemon's user.
    """
    config = resolve_node(file, env=env, need_secrets=False).value
    return asyncio.run(_rotate(config))


async def _rotate(config: NodeConfig) -> Rekeyed:
    node_id, files = who_am_i(config), _Files(config.state)
    async with client_of(config) as client:
        try:
            found = await _begun_before(client, node_id, files)
            return found or await _replace(client, node_id, files)
        except NotFound as exc:
            raise NotFound(
                f"{config.coordinator.base_url} replaces no keys: it is older than this release, or enrols no nodes at all",
                hint="update the coordinator first; the token of a plain one is part of the node's configuration",
            ) from exc


async def _begun_before(client: AsyncClient, node_id: str, files: _Files) -> Rekeyed | None:
    """How a replacement stands that is not proven yet; None where there is none."""
    if not files.old.exists():
        return None
    if files.next.exists():  # cut off in the middle of the swap: the key in use is still the one that was
        files.old.unlink()
        return None
    key, old = NodeKey.open(files.key), NodeKey.open(files.old)
    try:
        standing = await prove(client, node_id, key)
    except Unauthenticated:
        await prove(client, node_id, old)  # raises, where neither is known
        files.swap_back()  # the coordinator forgot the new one, as one that was restored from a backup
        return None
    proven = standing.key_id == key_id(key.public)
    if proven:
        files.old.unlink()
        files.sync()
    return Rekeyed(node_id=node_id, key_id=key_id(key.public), previous=key_id(old.public), proven=proven)


async def _replace(client: AsyncClient, node_id: str, files: _Files) -> Rekeyed:
    key, new = NodeKey.open(files.key), NodeKey.open(files.next)
    asked = m.ProveRequest(node_id=node_id, protocol=m.PROTOCOL, public_key=key.public)
    challenge = await challenge_of(client, asked)
    message = m.key_message(challenge, node_id, new.public)
    request = m.KeyRequest(
        node_id=node_id, public_key=key.public, new_key=new.public, challenge=challenge, signature=key.sign(message),
        new_signature=new.sign(message),
    )  # fmt: skip
    await client.call(routes.REPLACE_KEY, request)
    files.swap()
    return Rekeyed(node_id=node_id, key_id=key_id(new.public), previous=key_id(key.public), proven=False)
