"""Commands to services, as jobs."""

from dataclasses import replace

import pytest

from ostler.model.manifest import SERVICE_VERBS, Artifact, Inputs, Manifest, Requirements, Runner, problems
from ostler.model.resources import Offer, Resources, demand, unmet
from ostler.model.service import Command, Desired, Verb, command_of

STOP = Manifest(runner=Runner.SERVICE, command="xmrig", args=("stop",))
HOST = Offer(node_id="n", capacity=Resources(), runners=frozenset({Runner.SERVICE}), services=frozenset({"xmrig"}))


def test_a_command_is_read_from_its_manifest():
    assert problems(STOP) == []
    assert command_of(STOP) == Command("xmrig", Verb.STOP)
    assert command_of(Manifest(command="ffmpeg")) is None
    assert tuple(Verb) == SERVICE_VERBS


@pytest.mark.parametrize(
    ("verb", "desired"),
    [("start", Desired.RUNNING), ("restart", Desired.RUNNING), ("stop", Desired.STOPPED), ("status", None)],
)
def test_what_a_person_wants_from_now_on(verb, desired):
    assert Command("xmrig", Verb(verb)).desired is desired


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"command": None}, "command"),
        ({"command": "x; rm -rf /"}, "command"),
        ({"command": "../x"}, "command"),
        ({"args": ()}, "args"),
        ({"args": ("enable",)}, "args"),
        ({"args": ("stop", "now")}, "args"),
        ({"task": "t"}, "task"),
        ({"params": {"a": 1}}, "params"),
        ({"env": {"A": "b"}}, "env"),
        ({"stdout": "out"}, "stdout"),
        ({"array": 2}, "array"),
        ({"artifacts": (Artifact(path="a"),)}, "artifacts"),
        ({"input": Inputs(inline={"a": "b"})}, "input"),
        ({"requirements": Requirements(gpus=1)}, "requirements"),
        ({"requirements": Requirements(memory_mb=1)}, "requirements"),
    ],
)
def test_every_mistake_in_a_command_is_told(changes, path):
    assert path in {one.path for one in problems(replace(STOP, **changes))}


def test_a_command_takes_nothing_of_a_node_and_meets_only_one_that_declares_the_service():
    assert demand(STOP.requirements, Runner.SERVICE) == Resources()
    assert unmet(STOP, HOST) == []  # also where it has no slot at all
    assert unmet(replace(STOP, command="tor"), HOST) == [("service", "declares no service tor")]
    assert [name for name, _ in unmet(STOP, replace(HOST, runners=frozenset()))] == ["runner"]
