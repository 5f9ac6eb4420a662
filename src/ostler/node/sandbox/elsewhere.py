"""What sandboxes there can be below the keeper, for a daemon whose own unit lets it make none: it is tried where attempts run."""

import asyncio
import contextlib
import sys
from pathlib import Path

import msgspec

from ostler.model.errors import InvalidSpec, OstlerError
from ostler.node.keeper_client import KEEPER_ENVIRONMENT, KeeperClient, Limits, StartSpec
from ostler.node.sandbox.found import Found

KEY = "ostler-sandboxes"
PATIENCE_S = 30.0
_SAID = 400


async def look_through(keeper: KeeperClient, state: Path) -> Found:
    """Ask by a program that the keeper starts; `state` is the node's state directory. Raises InvalidSpec, KeeperUnreachable."""
    told, said = state / "sandboxes.json", state / "sandboxes.err"
    await asyncio.to_thread(_remove, told, said)
    with contextlib.suppress(OstlerError):  # one that an earlier daemon left
        await keeper.kill(KEY, reason="stray", grace_s=0.0)
        await keeper.wait(KEY)
    await keeper.forget(KEY)
    await keeper.start(
        StartSpec(
            key=KEY,
            argv=(sys.executable, "-P", "-m", "ostler.node.sandbox", str(state / "sandbox")),
            env=KEEPER_ENVIRONMENT,
            cwd="/",
            stdout=str(told),
            stderr=str(said),
            limits=Limits(wall_s=PATIENCE_S, grace_s=0.0),
        )
    )
    record = await keeper.wait(KEY)
    await keeper.forget(KEY)
    try:
        return msgspec.json.decode(await asyncio.to_thread(told.read_bytes), type=Found)
    except (OSError, msgspec.DecodeError):
        words = await asyncio.to_thread(_words, said)
        raise InvalidSpec(
            f"which sandboxes this host has could not be found out (exit code {record.exit_code}, {record.killed or 'ended'}): {words}",
            hint="journalctl -u ostler-keeper",
        ) from None


def _remove(*files: Path) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _words(file: Path) -> str:
    with contextlib.suppress(OSError):
        return file.read_text(errors="replace").strip()[-_SAID:] or "nothing was said"
    return "nothing was said"
