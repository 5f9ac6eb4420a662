"""One reading of `ostler top` as lines."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from ostler.cli.top_page import page
from ostler.model.failures import Failure, FailureCode
from ostler.model.job import JobState
from ostler.model.manifest import Runner
from ostler.model.node import NodeState
from ostler.protocol.messages import JobView, NodeLoad, NodeView, Overview, QueueLoad

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def load(name: str, state: NodeState = NodeState.READY, **facts) -> NodeLoad:
    view = NodeView(
        node_id=name, state=state, version="0.1.0", protocol=1, boot_epoch="b", joined_at=NOW, last_seen_at=NOW, **facts
    )
    return NodeLoad(node=view, jobs=2)


def failed(name: str) -> JobView:
    return JobView(
        job_id=name, state=JobState.FAILED, runner=Runner.CLI, title="t", queue="default", priority=0, labels={},
        submitted_at=NOW, finished_at=NOW - timedelta(seconds=90), owner="a",
        failure=Failure(FailureCode.DENY, "it is\x1b[2J not allowed"),
    )  # fmt: skip


SEEN = Overview(
    at=NOW,
    nodes=(load("n1"), load("n2", NodeState.LOST), load("n3", cordoned=True), load("n4", gpu_slots=4, gpu_free=1)),
    queues=(QueueLoad(owner="a", queue="default", queued=10_000, more=True), QueueLoad(owner="b", queue="slow", running=3)),
    failures=(failed("j1"),),
)


def test_what_is_wrong_comes_first_and_what_runs_before_what_waits():
    lines = page(SEEN, release="0.1.0")
    assert lines[0].endswith("4 nodes, 1 not well  3 running, 10000+ queued")
    assert [line.split()[0] for line in lines if line.startswith("n")] == ["n2", "n3", "n1", "n4"]
    assert "3/4" in next(line for line in lines if line.startswith("n4"))
    assert [line.split() for line in lines if line.startswith(("a ", "b "))] == [
        ["b", "slow", "3", "0"], ["a", "default", "0", "10000+"],
    ]  # fmt: skip
    [failure] = [line for line in lines if line.startswith("j1")]
    assert failure.split()[:4] == ["j1", "a", "E_DENY", "1m30s"]
    assert "\x1b" not in failure  # a stranger's words do not steer the terminal


def test_what_is_wrong_with_the_line_is_said_above_what_was_seen():
    lines = page(SEEN, release="0.1.0", trouble="cannot connect")
    assert lines[1] == "reconnecting… cannot connect"
    assert len(lines) == len(page(SEEN, release="0.1.0"))


def test_a_narrow_terminal_still_says_which_and_why():
    lines = page(SEEN, release="0.1.0", width=60, height=40)
    assert max(map(len, lines)) <= 60
    assert next(line for line in lines if line.startswith("NODE")).split() == [
        "NODE",
        "STATE",
        "POOL",
        "JOBS",
        "SLOTS",
        "SEEN",
        "WHY",
    ]


@given(nodes=st.integers(0, 60), queues=st.integers(0, 30), width=st.integers(80, 200), height=st.integers(10, 60))
def test_it_fits_the_terminal_and_says_what_it_left_out(nodes, queues, width, height):
    seen = Overview(
        at=NOW,
        nodes=tuple(load(f"n{i}") for i in range(nodes)),
        queues=tuple(QueueLoad(owner=f"p{i}", queue="q", queued=1) for i in range(queues)),
        failures=tuple(failed(f"j{i}") for i in range(8)),
    )
    lines = page(seen, release="0.1.0", width=width, height=height)
    assert len(lines) <= height
    shown = sum(line.startswith("n") for line in lines) - lines.count("no nodes")
    if height >= 24 and shown < nodes:
        assert f"… and {nodes - shown} more" in lines
