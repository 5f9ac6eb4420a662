"""The end of a keeper and of what runs under it: for `ostler up`, which takes its whole set down with it."""

import asyncio
from pathlib import Path

from ostler.model.errors import KeeperUnreachable
from ostler.node.keeper_client import SOCKET, KeeperClient

PATIENCE_S = 30.0


def shut_down(state: Path) -> int:
    """Have the keeper of a node's state directory end all attempts (SIGTERM, their grace, SIGKILL) and then itself.

    Answers how many attempts ran; 0 where no keeper listens. Raises KeeperUnreachable where it does not end in time.
    """
    if not (state / SOCKET).exists():
        return 0
    return asyncio.run(_shut_down(state / SOCKET))


async def _shut_down(path: Path) -> int:
    gone = asyncio.Event()
    try:
        keeper = await KeeperClient.connect(path, on_loss=gone.set)
    except KeeperUnreachable:
        return 0
    try:
        running = [child.key for child in await keeper.list() if child.running]
        await keeper.shutdown()
        async with asyncio.timeout(PATIENCE_S):
            await gone.wait()
    except TimeoutError:
        raise KeeperUnreachable(
            f"the keeper at {path} has not ended in {PATIENCE_S:g} s", hint=f"see {path.parent}/keeper"
        ) from None
    finally:
        keeper.close()
    return sum(map(is_attempt, running))


def is_attempt(key: str) -> bool:
    """Not a warm worker that waits for a task: attempts are named JOB/NUMBER."""
    return key.rpartition("/")[2].isdigit()
