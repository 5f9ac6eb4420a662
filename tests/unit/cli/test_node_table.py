"""The table of nodes as it is printed."""

from datetime import UTC, datetime

from ostler.cli import node_table
from ostler.model.node import NodeState
from ostler.protocol.messages import NodeView


def node(node_id, version="1.0.0", release=None, state=NodeState.READY):
    now = datetime.now(UTC)
    return NodeView(
        node_id=node_id, state=state, version=version, protocol=1, boot_epoch="b", joined_at=now, last_seen_at=now, release=release
    )  # fmt: skip


def test_that_several_releases_are_in_force_is_said(capsys):
    nodes = [node("a", release="1.0.0-aa"), node("b", release="1.0.0-bb"), node("c", release="1.0.0-aa"), node("d")]
    node_table.show([*nodes, node("gone", "0.1.0", state=NodeState.RETIRED)], "1.0.0")
    said = capsys.readouterr()
    assert "3 releases are in force: 1.0.0-aa (2 nodes), 1.0.0-bb (1 node), 1.0.0 (1 node)" in said.err
    assert "1.0.0-bb" in said.out
    node_table.show([node("a"), node("b")], "1.0.0")
    assert "in force" not in capsys.readouterr().err
    for lost, said in ((1, "1 of 1 node is not well"), (2, "2 of 2 nodes are not well")):
        node_table.show([node(str(number), state=NodeState.LOST) for number in range(lost)], "1.0.0")
        assert said in capsys.readouterr().err
