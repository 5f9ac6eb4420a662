"""The coordinator's word in a rollout over SSH: whether it can be asked is known before anything begins."""

import pytest

from integration.api_rig import coordinator
from ostler.fleet.gate import CoordinatorGate
from ostler.model.access import Role
from ostler.model.errors import Rejected
from ostler.protocol.client import AsyncClient
from ostler.runtime.clock import SystemClock


@pytest.fixture
async def rig(tmp_path):
    async with coordinator(tmp_path / "c") as one:
        yield one


async def test_whoever_may_submit_jobs_may_ask(rig):
    for role in (Role.SUBMITTER, Role.OPERATOR, Role.ADMIN):
        async with rig.person(role) as client:
            await CoordinatorGate(client, SystemClock()).ready()


async def test_a_stale_token_one_that_may_not_submit_and_silence_are_told_before_anything_begins(rig):
    async with (
        rig.person(Role.VIEWER) as viewer,
        AsyncClient(rig.url, token="ostler_api_stale") as stale,
        AsyncClient("http://127.0.0.1:9", token="x") as nobody,
    ):
        for client, why in ((viewer, "viewer"), (stale, "token"), (nobody, "no answer from the coordinator")):
            with pytest.raises(Rejected, match=f"cannot be asked: .*{why}") as refused:
                await CoordinatorGate(client, SystemClock()).ready()
            assert "--no-coordinator" in refused.value.hint
