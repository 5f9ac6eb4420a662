"""Calls as manifests, and what comes back: a node is believed in what it computed, and given no way to run anything here."""

import functools
import json
from datetime import UTC, datetime

import pytest

from ostler.model.errors import InvalidSpec, Problem
from ostler.model.failures import Failure, FailureCode
from ostler.model.job import JobState
from ostler.model.manifest import Policy, Requirements, RetryPolicy, Runner
from ostler.protocol import codec
from ostler.protocol.messages import JobView
from ostler.sdk import calls, manifests
from ostler.sdk.calls import Call
from ostler.sdk.failed import JobFailed, RemoteError


def job(state=JobState.DONE, code=None) -> JobView:
    return JobView(
        job_id="j", state=state, runner=Runner.PYTHON, title="x", queue="default", priority=0, labels={},
        submitted_at=datetime(2026, 1, 1, tzinfo=UTC), failure=None if code is None else Failure(code, "said"),
    )  # fmt: skip


def failed_with(**error):
    found = {
        "module": "builtins",
        "name": "ValueError",
        "args": ["x"],
        "state": {},
        "text": "T: x",
        "traceback": "there",
        **error,
    }
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is what the tests ask
        calls.result_of(job(JobState.FAILED, FailureCode.TASK), {"error.json": json.dumps(found).encode()}, results="pickle")
    return caught.value


def public(number):
    return number


def test_a_call_by_name():
    made = calls.manifest_of(Call("m:f", [((1, (2,)), {"k": b"x"})]), by_value=False, results="data", extra={"priority": 3})
    assert made == {
        "runner": "python", "priority": 3, "task": "m:f",
        "params": {"args": [1, {"$tuple": [2]}], "kwargs": {"k": {"$bytes": "eA=="}}},
        "artifacts": [
            {"path": "result.json", "type": "application/json", "optional": True},
            {"path": "error.json", "type": "application/json", "optional": True, "always": True},
        ],
    }  # fmt: skip


def test_a_batch_and_a_partial():
    twice = functools.partial(functools.partial(public, 1), k=2)
    made = calls.manifest_of(Call(twice, [((3,), {}), ((), {"k": 4})], batch=True), by_value=False, results="pickle", extra={})
    assert made["task"].endswith("test_calls:public")
    assert made["params"] == {
        "results": "pickle", "batch": [{"args": [1, 3], "kwargs": {"k": 2}}, {"args": [1], "kwargs": {"k": 4}}],
    }  # fmt: skip


def test_by_value_asks_for_nodes_that_allow_it():
    extra = {"requirements": {"tags": ["garage"]}}
    made = calls.manifest_of(Call(public, [((1,), {})]), by_value=True, results="data", extra=extra)
    assert made["requirements"] == {"tags": ["garage", "python-by-value"]}
    assert extra == {"requirements": {"tags": ["garage"]}}
    assert "task" not in made
    assert "params" not in made


@pytest.mark.parametrize("results", ["data", "pickle"])
def test_a_pickle_is_opened_only_where_the_caller_said_so(results):
    import pickle

    contents = {"result.pkl": pickle.dumps({1, 2})}
    if results == "pickle":
        assert calls.result_of(job(), contents, results=results) == {1, 2}
    else:
        with pytest.raises(RemoteError, match="without a result"):
            calls.result_of(job(), contents, results=results)


@pytest.mark.parametrize("content", [b"", b"{", b'{"$odd": 1}', b'{"$int": 1}', b"\xff", b"[" * 100_000])
def test_a_result_that_cannot_be_read(content):
    with pytest.raises(RemoteError):
        calls.result_of(job(), {"result.json": content}, results="data")


def test_ends_that_are_not_the_functions_doing():
    error = {"error.json": json.dumps({"module": "builtins", "name": "ValueError", "args": []}).encode()}
    for state, code in ((JobState.FAILED, FailureCode.LOST), (JobState.FAILED, FailureCode.TASK), (JobState.EXPIRED, None)):
        contents = {} if code is FailureCode.TASK else error
        with pytest.raises(JobFailed) as caught:
            calls.result_of(job(state, code), contents, results="data")
        assert caught.value.code == (code.value if code else "expired")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"), ("builtins", "eval"), ("builtins", "SystemExit"), ("builtins", "KeyboardInterrupt"), ("builtins", "__import__"),
        ("builtins", "int"), ("antigravity", "X"), (None, "ValueError"), ("builtins", None), ("builtins", 5), ("", ""), ([], "x"),
        ("builtins", "ValueError.__init__"), ("builtins", "ValueError.__subclasses__"),
    ],
)  # fmt: skip
def test_nothing_but_a_loaded_exception_is_made_of_what_a_node_names(module, name):
    import sys

    raised = failed_with(module=module, name=name)
    assert type(raised) is RemoteError
    assert str(raised) == "T: x"
    assert "antigravity" not in sys.modules


class Strict(Exception):
    def __init__(self, one, two):
        super().__init__(one, two)


class Loud(Exception):
    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    "error",
    [
        {"module": __name__, "name": "Strict", "args": ["one"]},
        {"module": __name__, "name": "Loud"},
        {"args": None},
        {"args": {"$odd": 1}},
        {"args": [{"$odd": 1}]},
        {"state": {"$odd": 1}},
    ],
)
def test_one_that_cannot_be_made_again_is_named(error):
    assert type(failed_with(**error)) is RemoteError


def test_what_is_no_error_at_all():
    for content in (b"[]", b"null", b"5"):
        with pytest.raises(JobFailed):
            calls.result_of(job(JobState.FAILED, FailureCode.TASK), {"error.json": content}, results="data")


def test_one_that_can():
    raised = failed_with(module=__name__, name="Strict", args=["one", {"$tuple": [1]}], state={"extra": 7})
    assert (type(raised), raised.args, raised.extra) == (Strict, ("one", (1,)), 7)
    assert str(raised.__cause__) == '\n"""\nthere"""'


def test_text_of_a_node_does_not_reach_the_terminal_as_it_is():
    raised = failed_with(name="Nothing", text="a\x1b[2Jb\r\n\tc", traceback="\x9b1A")
    assert str(raised) == "a\\x1b[2Jb\\r\n\tc"
    assert "\x9b" not in str(raised.__cause__)


def test_which_of_a_batch_a_mistake_is_about():
    problems = [Problem("[3].labels.x", "bad"), Problem("[10]", "bad"), Problem("task", "bad"), Problem("[x]", "bad")]
    assert calls.problem_indices(problems) == {3, 10}


def test_manifests_say_what_was_given_and_nothing_else():
    made = manifests.draft(
        ["true", 1], inputs=None, artifacts=["a", {"path": "b", "optional": True}], requirements=Requirements(gpus=1, tags=("x",)),
        retries=RetryPolicy(max=2), policy=Policy(memory_mb=5), labels=None, timeout_s=5,
    ).manifest  # fmt: skip
    assert made.pop("job_id").startswith("job-")
    assert json.loads(codec.encode(made)) == {
        "command": "true", "args": ["1"], "artifacts": [{"path": "a"}, {"path": "b", "optional": True}],
        "requirements": {"gpus": 1, "tags": ["x"]}, "retries": {"max": 2}, "policy": {"memory_mb": 5}, "timeout_s": 5,
    }  # fmt: skip
    assert manifests.draft(None, inputs=None, artifacts=(), task="x").manifest["runner"] == "python"
    with pytest.raises(InvalidSpec, match="list of words"):
        manifests.draft("echo hi", inputs=None, artifacts=())
