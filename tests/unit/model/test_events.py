"""The kinds of events are all in the table that documents them."""

import ast
from pathlib import Path

import ostler.coordinator.operations as operations
from ostler.model.attempt import AttemptEvent
from ostler.model.events import JOB_KINDS, KINDS, NODE_KINDS
from ostler.model.job import JobEvent
from ostler.model.node import NodeEvent


def test_events_of_the_state_machines_are_kinds():
    assert {*JobEvent, *AttemptEvent} <= set(JOB_KINDS)
    assert set(NodeEvent) <= set(NODE_KINDS)
    assert not set(map(str, JOB_KINDS)) & set(map(str, NODE_KINDS)), "a kind says what it is about"


def test_every_kind_that_an_operation_notes_is_in_the_table():
    noted = set()
    for file in Path(operations.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "note":
                said = [arg for one in node.args[:2] for arg in ([one.body, one.orelse] if isinstance(one, ast.IfExp) else [one])]
                noted |= {arg.value for arg in said if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    assert {"enrol", "request_cancel", "request_debug"} <= noted <= KINDS
