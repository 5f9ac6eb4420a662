"""The host program is started once for a connection, and asked many questions: against a real SSH server on loopback."""

import asyncio
import json
import os
import signal
from dataclasses import replace
from datetime import timedelta

import pytest

from integration.test_fleet_ssh import believe, sshd
from ostler.fleet.host_steps import HostRefused, HostSteps, answer
from ostler.fleet.ssh.line import StepFailed, connected
from ostler.model.errors import MachineUnreachable
from release_rig import make, new_keys

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
__all__ = ["sshd"]
STEPS = HostSteps()


@pytest.fixture
async def line(sshd):
    believe(sshd)
    async with connected(sshd.host(), sshd.trust, local_user="x") as one:
        yield one


@pytest.fixture
def ask(line, tmp_path):
    """A verb on a host below a directory."""

    def step(verb, *words, **more):
        made = STEPS.ask("ask", verb, *words, **more)
        return replace(made, question=replace(made.question, words=("--root", str(tmp_path / "host"), *made.question.words)))

    async def asked(verb, *words, **more):
        return await line.run(step(verb, *words, **more))

    asked.step = step
    return asked


async def test_many_questions_are_one_start(sshd, ask):
    assert answer(await ask("facts"))["current"] is None
    assert (
        answer(await ask("lock", "--rollout", "r1", "--owner", "ann; rm -rf /", "--message", "$(reboot)\n"))["owner"]
        == "ann; rm -rf /"
    )
    with pytest.raises(HostRefused, match="locked by ann"):
        answer(await ask("lock", "--rollout", "r2", "--owner", "bob"))
    assert answer(await ask("facts"))["lock"]["message"] == "$(reboot)\n"
    assert len(sshd.commands) == 1


async def test_what_a_question_brings_is_its_alone(sshd, ask, tmp_path):
    """A bundle of some megabytes; one that is refused at its beginning ends the program, and the next question starts another."""
    keys = new_keys(tmp_path / "keys")
    large = make(tmp_path / "store", keys, more={"ostler/large": os.urandom(3 << 20)})
    data = large.bundle.read_bytes()
    with pytest.raises(HostRefused, match="not the one that was announced"):
        answer(await ask("install", "--digest", "0" * 64, stdin=data))
    assert answer(await ask("install", "--digest", large.manifest.digest, stdin=data))["release"] == large.release
    assert answer(await ask("facts"))["releases"] == [large.release]
    assert len(sshd.commands) == 2
    with pytest.raises(HostRefused, match="it ends too early"):
        answer(await ask("install", stdin=data[: len(data) // 2]))
    assert answer(await ask("facts"))["releases"] == [large.release]


async def test_wrong_words_and_what_ends_are_told_and_the_next_is_answered(sshd, ask):
    with pytest.raises(StepFailed, match="invalid choice: 'dance'"):
        await ask("dance")
    assert answer(await ask("facts"))["releases"] == []
    assert len(sshd.commands) == 1


async def test_one_that_is_left_in_the_middle_leaves_the_next_its_own_answer(sshd, ask, line):
    words = ("--rollout", "r1", "--wait", "30", "--seen", "None missing None")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2.0):
            await ask("observe", *words)
    assert answer(await ask("facts"))["releases"] == []
    hanging = ask.step("observe", *words)
    with pytest.raises(MachineUnreachable, match=r"ask: no end in 0\.5 s"):
        await line.run(replace(hanging, timeout=timedelta(seconds=0.5)))


async def test_a_program_that_was_ended_meanwhile_is_started_anew(sshd, ask, line):
    assert answer(await ask("facts"))["releases"] == []
    os.killpg(sshd.children[-1].pid, signal.SIGKILL)
    await line._answering[1].wait_closed()
    assert answer(await ask("facts"))["releases"] == []
    assert len(sshd.commands) == 2


async def test_what_is_no_answer_is_told(sshd, ask, line):
    made = ask.step("facts")
    noisy = replace(made, question=replace(made.question, start=("/bin/sh", "-c", "echo welcome; exit 1"), program=b""))
    with pytest.raises(HostRefused, match="did not answer: welcome"):
        answer(await line.run(noisy))
    refused = ("/bin/sh", "-c", "echo 'sudo: a password is required' >&2; exit 1")
    with pytest.raises(StepFailed, match="it asks for a password"):
        await line.run(replace(noisy, question=replace(made.question, start=refused, program=b"")))
    assert json.loads((await ask("facts")).stdout)["releases"] == []
