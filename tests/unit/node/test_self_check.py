"""While the daemon cannot run a no-op, it takes no work and says so; as soon as it can, it does."""

import asyncio
import logging

from ostler.node.readiness import Readiness, Reason
from ostler.node.self_check import SelfCheck

LOGGER = logging.getLogger("test")


async def test_it_holds_work_until_a_no_op_succeeds() -> None:
    readiness, answers = Readiness(logger=LOGGER), ["E_SANDBOX: bwrap is gone", None]
    seen: list[tuple[str, bool]] = []

    async def no_op() -> str | None:
        seen.append((check.word, readiness.is_held(Reason.SELF_CHECK)))
        return answers.pop(0)

    check = SelfCheck(no_op, readiness=readiness, logger=LOGGER, after_s=0, again_s=0)
    async with asyncio.timeout(10):
        await check.run()
    assert seen == [("running", False), ("failed: E_SANDBOX: bwrap is gone", True)]
    assert check.word == "ok"
    assert not readiness.draining
