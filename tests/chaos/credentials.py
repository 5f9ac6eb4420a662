"""Faults of credentials: tokens that end in the middle of work, and a second machine with a node's key."""

import asyncio
import base64
import contextlib
import signal
import sqlite3
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from .client import insist
from .schedule import Fault
from .world import PRINCIPAL, World


async def rotate_token(world: World, fault: Fault) -> str:
    """An admin makes a second token for the submitters and revokes the first; they learn of the new one when the fault ends."""
    asked = {"kind": "api", "role": "submitter", "principal": PRINCIPAL}
    async with world.rotating, world.client() as admin:
        made = await insist(admin, "POST", "/tokens", json=asked)
        if made is None or made.status_code != 201:
            return f"no new token: {made}"
        gone = await insist(admin, "DELETE", f"/tokens/{world.submitter['token_id']}")
        await asyncio.sleep(fault.lasts)
        world.submitter = made.json()
    return f"revoked: {gone and gone.status_code}"


async def revoke_join_token(world: World, fault: Fault) -> str:
    """The token with which a node joined is revoked, and its daemon dies: the next one has nothing but its key."""
    daemon = world.daemons[fault.target]
    async with world.client() as admin:
        gone = await insist(admin, "DELETE", f"/tokens/{world.joined[fault.target]}")
    daemon.hold()
    try:
        daemon.signal(signal.SIGKILL)
        await asyncio.sleep(fault.lasts)
    finally:
        daemon.let()
    return f"revoked: {gone and gone.status_code}"


async def clone_node(world: World, fault: Fault) -> str:
    """A copy of a node's disk is started elsewhere and opens a session with its key, so that the daemon's own token opens nothing any
    more. It does no work and goes away; a person starts the daemon anew.
    """
    daemon = world.daemons[fault.target]
    said = await asyncio.to_thread(_as_the_copy, world, fault)
    if said is None:
        return "not possible: the disk cannot be read just now"
    hello, key = said
    async with world.client(fault.target) as http:
        answer = await insist(http, "POST", "/nodes/register", json=hello, auth=None)
        challenge = None if answer is None else answer.json().get("challenge")
        if challenge is not None:
            words = f"ostler-register-v1\n{challenge}\n{hello['node_id']}\n{hello['boot_epoch']}".encode()
            hello |= {"challenge": challenge, "signature": base64.b64encode(key.sign(words)).decode()}
            answer = await insist(http, "POST", "/nodes/register", json=hello, auth=None)
    await asyncio.sleep(fault.lasts)
    daemon.signal(signal.SIGCONT)
    daemon.signal(signal.SIGTERM)
    return f"registered: {answer and answer.status_code}"


def _as_the_copy(world: World, fault: Fault) -> tuple[dict[str, Any], Ed25519PrivateKey] | None:
    """What the copy says of itself: what the node last said, and the attempts in its journal."""
    hello = world.introductions.get(fault.target)
    with contextlib.suppress(OSError, ValueError, sqlite3.Error):
        key = load_pem_private_key((world.state(fault.target) / "node.key").read_bytes(), password=None)
        file = world.state(fault.target) / "journal.db"
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=1)) as db:
            held = [{"job_id": job, "attempt": number} for job, number in db.execute("SELECT job_id, attempt FROM attempts")]
        if hello is not None and isinstance(key, Ed25519PrivateKey):
            return {**hello, "boot_epoch": f"copy:{fault.at}", "held": held}, key
    return None
