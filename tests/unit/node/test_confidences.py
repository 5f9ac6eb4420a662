"""What is told in confidence is asked for until there is an answer, masked in what an attempt says, and gone with its end."""

import asyncio
import logging
import threading
from pathlib import Path

import pytest

from ostler.model.attempt import AttemptState
from ostler.model.errors import CoordinatorUnreachable, Forbidden, NotFound, StaleAttempt, Unsealable
from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import Manifest, SecretUse
from ostler.node.attempts import Live
from ostler.node.confidences import Confidences
from ostler.node.leases import Lease
from ostler.node.vault import Vault
from ostler.node.workspace import Workspace
from ostler.protocol.messages import SecretValue
from ostler.protocol.ports import Confidence, Ending, Progress

VALUE = "s3cr3t-canary"
STARS = "*" * len(VALUE)
LOGGER = logging.getLogger("ostler.test")


@pytest.fixture
def vault(tmp_path):
    vault = Vault(tmp_path)
    yield vault
    vault.sweep(())


def live(tmp_path: Path) -> Live:
    manifest = Manifest(command="true", secrets=(SecretUse(name="db", env="TOKEN"),))
    one = Live(job_id="job", attempt=1, manifest=manifest, lease=Lease(0.0, 45.0), offered_at=0.0)
    one.workspace = Workspace.create(tmp_path, "job", 1)
    return one


def answering(*answers):
    left = list(answers)

    async def ask(held):
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ask


GOOD = (SecretValue(name="db", value=VALUE.encode()),)


def say(vault: Vault) -> None:
    Path(vault.raw("job/1", "stdout")).write_text(f"said {VALUE}")


async def test_from_the_first_question_to_the_wiped_box(vault, tmp_path):
    one = live(tmp_path)
    told = Confidences(vault, ask=answering(CoordinatorUnreachable("away"), GOOD), logger=LOGGER)
    found = await told.fetch(one)
    assert isinstance(found, Confidence)
    assert found.env == {"TOKEN": VALUE}
    one.state = AttemptState.RUNNING
    assert told.news(one, Progress(pct=1.0, note=f"with {VALUE}")) == Progress(pct=1.0, note=f"with {STARS}")
    say(vault)
    ending = await told.end(one, Ending(failure=Failure(FailureCode.TASK, f"not {VALUE}")))
    assert ending.failure == Failure(FailureCode.TASK, f"not {STARS}")
    assert (one.workspace.logs / "stdout.log").read_text() == f"said {STARS}"
    assert vault.sweep(()) == []
    again = await told.end(one, Ending(failure=Failure(FailureCode.TASK, f"not {VALUE}")))
    assert VALUE not in again.failure.message, "what cannot be masked any more is not said"
    lost = await told.end(one, Ending(failure=Failure(FailureCode.LOST, "the node's own words")))
    assert lost.failure.message == "the node's own words"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound("gone"), FailureCode.SECRET),
        (Forbidden("not in this pool"), FailureCode.SECRET),
        (Unsealable("another key"), FailureCode.SECRET),
        (StaleAttempt("another's now"), FailureCode.LOST),
    ],
)
async def test_a_refusal_is_the_attempts_failure(vault, tmp_path, error, code):
    found = await Confidences(vault, ask=answering(error), logger=LOGGER).fetch(live(tmp_path))
    assert isinstance(found, Failure)
    assert found.code is code


async def test_an_end_while_the_box_is_being_filled_leaves_nothing(tmp_path):
    begun, go_on, filled = threading.Event(), threading.Event(), threading.Event()

    class Slow(Vault):
        def fill(self, *args):
            begun.set()
            assert go_on.wait(30)
            try:
                return super().fill(*args)
            finally:
                filled.set()

    vault = Slow(tmp_path)
    one, told = live(tmp_path), Confidences(vault, ask=answering(GOOD), logger=LOGGER)
    fetching = asyncio.create_task(told.fetch(one))
    assert await asyncio.to_thread(begun.wait, 30)
    fetching.cancel()
    asyncio.get_running_loop().call_later(0.2, go_on.set)  # an end that does not wait has long wiped what is not there yet
    with pytest.raises(asyncio.CancelledError):
        await fetching
    await told.end(one, Ending())
    assert await asyncio.to_thread(filled.wait, 30)
    assert vault.sweep(()) == []
