"""Targets: which nodes a command to a service is for, as people write it, and which of the nodes that there are those are."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from ostler.model.errors import InvalidSpec, Problem
from ostler.model.manifest import NAME
from ostler.model.node import NodeState

MAX_WORDS = 32
HINT = "write any, all, the id of a node, or selectors such as pool=NAME and tag=NAME, all of which must hold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """With `one` exactly one of the nodes that match carries the command out, whichever is first; else each of them does."""

    one: bool = False
    node: str | None = None
    pool: str | None = None
    tags: tuple[str, ...] = ()

    @property
    def selects(self) -> bool:
        """Whether it leaves out nodes by what they are."""
        return self.node is not None or self.pool is not None or bool(self.tags)


@dataclass(frozen=True, slots=True, kw_only=True)
class Addressee:
    """One node as a target sees it: whether it `declares` the service, and whether it speaks a protocol that is not spoken here."""

    node_id: str
    state: NodeState
    pool: str
    tags: Collection[str] = frozenset()
    declares: bool = True
    outside: bool = False


@dataclass(slots=True)
class Addressed:
    """Who gets a command, and who does not: (node, why, whether it is one that would be meant and cannot be reached now)."""

    nodes: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str, bool]] = field(default_factory=list)


def read_target(words: Sequence[str]) -> Target:
    """The target that these words name together; raises InvalidSpec with every mistake."""
    found: dict[str, str] = {}
    tags: list[str] = []
    problems: list[Problem] = []
    if not 0 < len(words) <= MAX_WORDS:
        raise InvalidSpec("the target is not valid", [Problem("on", f"must be 1 to {MAX_WORDS} words")], hint=HINT)
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            key, value = ("every", word) if word in {"any", "all"} else ("node", word)
        elif key not in {"node", "pool", "tag"}:
            problems.append(Problem("on", f"{word[:80]!r}: nodes are not selected by {key[:80]!r}"))
            continue
        if not NAME.fullmatch(value):
            problems.append(Problem("on", f"{word[:80]!r} does not name a {key if equals else 'node'}"))
        elif key == "tag":
            tags.append(value)
        elif found.setdefault(key, value) != value:
            problems.append(Problem("on", f"{word} and {found[key]} do not go together"))
    if "node" in found and len(found) + len(tags) > 1:
        problems.append(Problem("on", f"{found['node']} is one node already; nothing else goes with it"))
    if problems:
        raise InvalidSpec("the target is not valid", problems, hint=HINT)
    return Target(
        one=found.get("every") == "any", node=found.get("node"), pool=found.get("pool"), tags=tuple(dict.fromkeys(tags))
    )


def address(target: Target, nodes: Iterable[Addressee]) -> Addressed:
    """Who of these nodes a command goes to, in their order.

    Whoever was retired, is lost or is not understood cannot carry it out. Of a target that selects, those that match and do not
    declare the service are told as well; of `all` they are not meant.
    """
    found = Addressed()
    for node in nodes:
        if not _matches(target, node):
            continue
        if not node.declares:
            if target.selects and node.state is not NodeState.RETIRED:
                found.left_out.append((node.node_id, "does not declare it", False))
        elif (why := _cannot(node)) is not None:
            found.left_out.append((node.node_id, why, node.state is not NodeState.RETIRED))
        else:
            found.nodes.append(node.node_id)
    return found


def _matches(target: Target, node: Addressee) -> bool:
    return (
        target.node in {None, node.node_id} and target.pool in {None, node.pool} and all(tag in node.tags for tag in target.tags)
    )


def _cannot(node: Addressee) -> str | None:
    if node.state is NodeState.RETIRED:
        return "was retired"
    if node.outside:
        return "speaks no protocol that the coordinator does"
    return "is lost" if node.state is NodeState.LOST else None
