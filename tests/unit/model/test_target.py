"""Targets: what people write, and whom it means."""

import pytest

from ostler.model.errors import InvalidSpec
from ostler.model.node import NodeState
from ostler.model.target import MAX_WORDS, Addressee, Target, address, read_target


@pytest.mark.parametrize(
    ("words", "target"),
    [
        (["any"], Target(one=True)),
        (["all"], Target()),
        (["h1"], Target(node="h1")),
        (["node=all"], Target(node="all")),
        (["pool=edge"], Target(pool="edge")),
        (["tag=a", "pool=edge", "tag=b", "tag=a"], Target(pool="edge", tags=("a", "b"))),
        (["any", "tag=a"], Target(one=True, tags=("a",))),
        (["all", "pool=edge"], Target(pool="edge")),
    ],
)
def test_what_people_write(words, target):
    assert read_target(words) == target
    assert target.selects is (words not in (["any"], ["all"]))


@pytest.mark.parametrize(
    ("words", "mistakes"),
    [
        ([], ["1 to 32 words"]),
        (["all"] * (MAX_WORDS + 1), ["1 to 32 words"]),
        (["any", "all"], ["do not go together"]),
        (["pool=a", "pool=b"], ["pool=b and a do not go together"]),
        (["rack=1", "every=any", "tag="], ["by 'rack'", "by 'every'", "'tag=' does not name a tag"]),
        (["a b"], ["'a b' does not name a node"]),
        ([""], ["'' does not name a node"]),
        (["h1", "h2"], ["h2 and h1 do not go together"]),
        (["h1", "tag=a"], ["h1 is one node already"]),
        (["any", "node=h1"], ["h1 is one node already"]),
    ],
)
def test_every_mistake_is_told(words, mistakes):
    with pytest.raises(InvalidSpec) as refused:
        read_target(words)
    assert len(refused.value.problems) == len(mistakes)
    for problem, words_of_it in zip(refused.value.problems, mistakes, strict=True):
        assert problem.path == "on"
        assert words_of_it in problem.message
    assert refused.value.hint is None or "pool=NAME" in refused.value.hint


def node(node_id: str, state: NodeState = NodeState.READY, **changes) -> Addressee:
    return Addressee(node_id=node_id, state=state, **{"pool": "default", **changes})


def test_whom_it_means():
    nodes = [
        node("a"), node("b", NodeState.DRAINED, pool="edge", tags={"x"}), node("c", NodeState.LOST), node("d", NodeState.RETIRED),
        node("e", outside=True), node("f", declares=False), node("g", NodeState.RETIRED, declares=False), node("h", NodeState.UNKNOWN),
    ]  # fmt: skip
    everybody = address(Target(), nodes)
    assert everybody.nodes == ["a", "b", "h"]
    gone = [("c", "is lost", True), ("d", "was retired", False), ("e", "speaks no protocol that the coordinator does", True)]
    assert everybody.left_out == gone
    assert address(Target(pool="default"), nodes).left_out == [*gone, ("f", "does not declare it", False)]
    assert address(Target(pool="edge"), nodes).nodes == address(Target(tags=("x",)), nodes).nodes == ["b"]
    assert address(Target(tags=("x", "y")), nodes).nodes == []
    assert address(Target(node="f"), nodes).left_out == [("f", "does not declare it", False)]
    assert address(Target(node="a"), nodes).nodes == ["a"]
