"""What a watched host and the coordinator say together becomes: hosts and coordinator are scripted, the steps between are real."""

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from ostler.fleet.inventory.host import Host
from ostler.fleet.rollout.by_ssh import Content, SshCarrier
from ostler.fleet.rollout.preflight import NODE_UNIT, Wanted
from ostler.fleet.ssh.step import Outcome, Step
from ostler.model.errors import InvalidSpec, Unauthenticated
from ostler.model.rollout.plan import Plan
from ostler.model.rollout.progress import Event, Phase

PLAN = Plan(rollout_id="r1", release="0.2.0-new", hosts=("a",), window=timedelta(seconds=1), timeout=timedelta(seconds=30))
GOOD = {"update_id": "r1", "state": "good", "reason": None, "resumed": True, "seen": "r1 good True"}

FACTS = {"hostname": "a", "os": "debian 12", "arch": "x86_64", "abi": "cp311", "now": 0.0, "disk_free_mb": 9999}


class Hosts:
    """In the place of connections: each verb of the host program has its answer."""

    def __init__(self, **answers: dict[str, Any]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def run(self, host: Host, step: Step) -> Outcome:
        assert step.question is not None
        await asyncio.sleep(0)
        self.asked.append(step.question.words[0])
        return Outcome(code=0, stdout=json.dumps(self.answers[step.question.words[0]]).encode(), stderr=b"")


def carrier(hosts: Hosts, gate: Any = None) -> SshCarrier:
    content = Content(bundle=lambda platform, there: b"", digest="d", own={}, services={})
    host = Host(name="a", address="192.0.2.1")
    return SshCarrier(hosts, {"a": host}, plan=PLAN, content=content, owner="me", message="", gate=gate)  # type: ignore[arg-type]


FACTS = {
    "hostname": "a", "os": "debian 12", "arch": "x86_64", "abi": "cp311", "now": 0.0, "disk_free_mb": 9999, "wheels": ["w"],
    "units": {NODE_UNIT: {"state": "active", "sha256": "u", "wanted": "u"}},
}  # fmt: skip


@pytest.mark.parametrize(("there", "altered", "sent"), [(True, [], False), (True, ["bin/ostler"], True), (False, None, True)])
async def test_a_release_that_is_there_is_sent_where_it_was_altered(there: bool, altered: list[str] | None, sent: bool) -> None:
    """One that is not is not looked at."""
    hosts = Hosts(facts=FACTS | {"releases": [PLAN.release] if there else []}, install={}, altered={"altered": altered})
    one = carrier(hosts)
    await one.look("a", Wanted(rollout_id="r1", release=PLAN.release, platforms=["cp311-x86_64"], bundle_mb=1))
    assert ("compare what is there" in [step.title for step in one.steps("a")]) == there
    assert (await one.carry("a", Phase.UPLOADING, None)).event is Event.DONE
    assert hosts.asked == ["facts", *(["altered"] if there else []), *(["install"] if sent else [])]


async def test_a_coordinator_that_refuses_to_be_asked_ends_no_rollout_and_rolls_nothing_back() -> None:
    async def gate(host: Host, facts: Any) -> str | None:
        raise Unauthenticated("the token was revoked", hint="make another one")

    result = await carrier(Hosts(observe=GOOD), gate).carry("a", Phase.GATING, None)
    assert result.event is Event.REFUSED
    assert result.reason == "good by its own watcher, not judged by the coordinator: the token was revoked (make another one)"


@pytest.mark.parametrize(("wrong", "event"), [(None, Event.DONE), ("its canary job failed", Event.SICK)])
async def test_the_coordinator_s_word_counts(wrong: str | None, event: Event) -> None:
    async def gate(host: Host, facts: Any) -> str | None:
        return wrong

    result = await carrier(Hosts(observe=GOOD), gate).carry("a", Phase.GATING, None)
    assert (result.event, result.reason) == (event, wrong)


@pytest.mark.parametrize(
    ("phase", "answers"),
    [
        (Phase.SWITCHING, {"switch": {"failure": {"x": 1}, "details": [1, 2]}}),
        (Phase.SWITCHING, {"switch": {"warnings": [1]}}),
        (Phase.GATING, {"observe": {"state": {"a": 1}}}),
        (Phase.GATING, {"observe": {"state": "went_back", "reason": {"a": 1}, "journal": 5}}),
        (Phase.GOING_BACK, {"go-back": {"state": "went_back", "journal": [1]}}),
        (Phase.LOCKING, {"lock": {"seen": 7}}),
    ],
)
async def test_a_host_that_talks_nonsense_is_refused_and_stops_no_other(phase: Phase, answers: dict[str, Any]) -> None:
    result = await carrier(Hosts(**answers)).carry("a", phase, None)
    assert result.event is Event.REFUSED
    assert result.reason is not None
    assert result.reason.startswith("the host's answer is not understood: ")


async def test_a_bundle_that_is_damaged_here_is_the_end_of_a_host_s_update_and_not_of_the_command() -> None:
    def damaged(platform: str, there: frozenset[str]) -> bytes:
        raise InvalidSpec("release 0.2.0-new is damaged")

    one = carrier(Hosts(facts=FACTS))
    one._content = replace(one._content, bundle=damaged)
    await one.look("a", Wanted(rollout_id="r1", release="0.2.0-new", platforms=("cp311-x86_64",), bundle_mb=1))
    result = await one.carry("a", Phase.UPLOADING, None)
    assert (result.event, result.reason) == (Event.REFUSED, "release 0.2.0-new is damaged")
