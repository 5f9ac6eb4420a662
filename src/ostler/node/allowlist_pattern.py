r"""One argument pattern of the allowlist: a regular expression, matched in linear time, that knows its wildcards.

The arguments come from strangers, so a pattern is not given to `re` to match: its parse tree becomes an automaton that is
stepped once per character, whatever the pattern (a backtracking engine takes years over `(a+)+`). Look-arounds, back-references,
possessive parts and flags have no place in such an automaton and are refused when the file is read.

The tree also tells *how* a character was matched, which makes the wildcard rule (N6) exact:

- `/` and `:` match only where the pattern spells them: as a literal or as a member of a positive class (`[\w./]`). `.`, negated
  classes and categories (`\S`, `\W`, `\D`) and ranges that merely span them (`[!-~]`) do not reach them.
- `-` as the first character matches only as a literal or in a class of nothing but single characters that is not repeated
  (`[-+]?[0-9]+`); the `-` of a name's alphabet (`[\w.-]+`) is not meant to begin an option.
- The entry lifts each of these by a grant. `..` as a whole component of a path has no grant: only literal dots match it.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from re import _constants as sre  # type: ignore[attr-defined]  # the parser that `re` itself uses; no public one exists
from re import _parser as sre_parser  # type: ignore[attr-defined]
from typing import Any

MAX_ARG_CHARS = 4096
MAX_PATTERN_CHARS = 1024
MAX_NODES = 1024
MAX_CACHED_STEPS = 8192
GRANTS = {"/": "allow_slash", ":": "allow_colon", "-": "allow_dash"}
EVERYTHING = frozenset(GRANTS)
# `..` that is a path component, also behind `=` or an option's letter: not part of a longer run of dots, and not the
# beginning of a file name such as `..a`.
PARENT = re.compile(r"(?<!\.)\.\.(?![\w.-])")

_CATEGORIES: dict[Any, Callable[[str], bool]] = {
    sre.CATEGORY_DIGIT: str.isdecimal,
    sre.CATEGORY_SPACE: str.isspace,
    sre.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
    sre.CATEGORY_NOT_DIGIT: lambda c: not c.isdecimal(),
    sre.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
    sre.CATEGORY_NOT_WORD: lambda c: not (c.isalnum() or c == "_"),
}
_REFUSED = {
    sre.ASSERT: "a look-ahead or look-behind",
    sre.ASSERT_NOT: "a look-ahead or look-behind",
    sre.GROUPREF: "a back-reference",
    sre.GROUPREF_EXISTS: "a conditional group",
    sre.ATOMIC_GROUP: "an atomic group",
    sre.POSSESSIVE_REPEAT: "a possessive repeat",
}
_START = {sre.AT_BEGINNING, sre.AT_BEGINNING_STRING}
_END = {sre.AT_END, sre.AT_END_STRING}


class PatternRefused(ValueError):
    """The text is no regular expression, or one that cannot be matched in bounded time."""


class _Atom:
    """One character of a pattern: which characters it takes, and which of `/`, `:` and leading `-` it spells."""

    __slots__ = ("categories", "chars", "negated", "ranges", "spelled")

    def __init__(
        self,
        chars: Iterable[int] = (),
        ranges: Iterable[tuple[int, int]] = (),
        categories: Iterable[Any] = (),
        *,
        negated: bool = False,
        spelled: Iterable[str] = (),
    ) -> None:
        self.chars = frozenset(map(chr, chars))
        self.ranges = tuple(ranges)
        self.categories = tuple(_CATEGORIES[c] for c in categories)
        self.negated = negated
        self.spelled = frozenset(spelled) & EVERYTHING

    def takes(self, char: str) -> bool:
        """Whether the character matches, grants aside."""
        code = ord(char)
        inside = (
            char in self.chars
            or any(low <= code <= high for low, high in self.ranges)
            or any(category(char) for category in self.categories)
        )
        return inside != self.negated


class _Nodes:
    """The automaton under construction: each node is an atom and its successor, or a fork, or an anchor.

    Built from the end: every part is told the node that follows it.
    """

    def __init__(self) -> None:
        self.atoms: list[_Atom | None] = []
        self.next: list[list[int]] = []
        self.anchors: dict[int, bool] = {}  # node -> True for the end, False for the start
        self.dots = False  # something other than a literal matches '.'
        self.final = self.add(None, [])

    def add(self, atom: _Atom | None, following: list[int]) -> int:
        if len(self.next) >= MAX_NODES:
            raise PatternRefused(f"is too large: with its repeats written out it has more than {MAX_NODES} parts")
        self.atoms.append(atom)
        self.next.append(following)
        return len(self.next) - 1

    def sequence(self, items: Sequence[tuple[Any, Any]], after: int, *, repeated: bool) -> int:
        for operation, value in reversed(items):
            after = self._one(operation, value, after, repeated=repeated)
        return after

    def _one(self, operation: Any, value: Any, after: int, *, repeated: bool) -> int:
        if operation is sre.LITERAL:
            return self.add(_Atom([value], spelled=chr(value)), [after])
        if operation is sre.NOT_LITERAL:
            return self._class(_Atom([value], negated=True), after)
        if operation is sre.ANY:
            return self._class(_Atom([ord("\n")], negated=True), after)
        if operation is sre.IN:
            return self._class(_in(value, repeated=repeated), after)
        if operation is sre.BRANCH:
            return self.add(None, [self.sequence(list(one), after, repeated=repeated) for one in value[1]])
        if operation is sre.SUBPATTERN:
            _, added, removed, inner = value
            if added or removed:
                raise PatternRefused("sets a flag; spell out what is meant, such as [Mm][Pp]4")
            return self.sequence(list(inner), after, repeated=repeated)
        if operation in (sre.MAX_REPEAT, sre.MIN_REPEAT):  # greedy or not: the same strings match as a whole
            low, high, inner = value
            return self._repeat(low, high, list(inner), after, repeated=repeated)
        if operation is sre.AT and (value in _START or value in _END):
            node = self.add(None, [after])
            self.anchors[node] = value in _END
            return node
        raise PatternRefused(f"holds {_REFUSED.get(operation, 'a word boundary')}, which is not supported here")

    def _class(self, atom: _Atom, after: int) -> int:
        self.dots = self.dots or atom.takes(".")
        return self.add(atom, [after])

    def _repeat(self, low: int, high: Any, inner: list[tuple[Any, Any]], after: int, *, repeated: bool) -> int:
        repeated = repeated or high > 1
        if high is sre.MAXREPEAT:
            loop = self.add(None, [])
            self.next[loop] = [self.sequence(inner, loop, repeated=repeated), after]
            node = loop
        else:
            node = after
            for _ in range(high - low):
                node = self.add(None, [self.sequence(inner, node, repeated=repeated), after])
        for _ in range(low):
            node = self.add(None, [self.sequence(inner, node, repeated=repeated)])
        return node


def _in(items: Sequence[tuple[Any, Any]], *, repeated: bool) -> _Atom:
    negated = any(operation is sre.NEGATE for operation, _ in items)
    chars = [value for operation, value in items if operation is sre.LITERAL]
    ranges = [value for operation, value in items if operation is sre.RANGE]
    categories = [value for operation, value in items if operation is sre.CATEGORY]
    spelled = set() if negated else set(map(chr, chars))
    if repeated or ranges or categories:
        spelled.discard("-")
    return _Atom(chars, ranges, categories, negated=negated, spelled=spelled)


class _Step:
    """A state of the deterministic automaton, made when first reached."""

    __slots__ = ("accepts", "nodes", "then")

    def __init__(self, nodes: frozenset[int], *, accepts: bool) -> None:
        self.nodes = nodes
        self.accepts = accepts
        self.then: dict[str, _Step | None] = {}


_UNKNOWN = _Step(frozenset(), accepts=False)


class _Matcher:
    """Steps through one value; remembers steps (a bounded number of them)."""

    def __init__(self, nodes: _Nodes, start: int, grants: frozenset[str]) -> None:
        self._nodes = nodes
        self._grants = grants
        self._steps: dict[frozenset[int], _Step] = {}
        self._cached = 0
        self._first = self._reach([start], first=True)

    def matches(self, value: str) -> bool:
        step = self._first
        for char in value:
            after = step.then.get(char, _UNKNOWN)
            if after is _UNKNOWN:
                after = self._follow(step, char)
            if after is None:
                return False
            step = after
        return step.accepts

    def _follow(self, step: _Step, char: str) -> _Step | None:
        first = step is self._first
        guarded = (char in "/:" or (first and char == "-")) and char not in self._grants
        reached = []
        for node in step.nodes:
            atom = self._nodes.atoms[node]
            if atom is not None and atom.takes(char) and (not guarded or char in atom.spelled):
                reached.extend(self._nodes.next[node])
        after = self._reach(reached, first=False) if reached else None
        if self._cached >= MAX_CACHED_STEPS:  # strangers choose the characters; memory must not follow
            self._cached = 0
            self._steps.clear()
            self._first.then = {}
        self._cached += 1
        step.then[char] = after
        return after

    def _reach(self, nodes: list[int], *, first: bool) -> _Step:
        """The state that holds all atoms reachable without a character; `$` lets nothing but the end follow."""
        seen: set[tuple[int, bool]] = set()
        stack = [(node, False) for node in nodes]
        atoms = set()
        accepts = False
        while stack:
            node, ended = stack.pop()
            if (node, ended) in seen:
                continue
            seen.add((node, ended))
            if node == self._nodes.final:
                accepts = True
            elif self._nodes.atoms[node] is not None:
                if not ended:
                    atoms.add(node)
            else:
                end = self._nodes.anchors.get(node)
                if end is False and not first:
                    continue
                stack.extend((after, ended or end is True) for after in self._nodes.next[node])
        key = frozenset(atoms)
        if first:  # never shared: the first character has a rule of its own
            return _Step(key, accepts=accepts)
        # The same atoms may be reached with and without the end in sight, so acceptance is part of the key.
        found = self._steps.get(key | {-1} if accepts else key)
        if found is None:
            found = self._steps[key | {-1} if accepts else key] = _Step(key, accepts=accepts)
        return found


class Pattern:
    """One pattern with the grants of its group. Immutable to its users; safe to share."""

    __slots__ = ("_matcher", "_nodes", "_start", "grants", "literal", "text")

    def __init__(self, text: str, grants: frozenset[str] = frozenset()) -> None:
        """Raises PatternRefused; `grants` holds those of `/`, `:` and `-` that wildcards may reach."""
        self.text = text
        self.grants = grants
        tree = _parse(text)
        items = list(tree)
        self._nodes = _Nodes()
        self._start = self._nodes.sequence(items, self._nodes.final, repeated=False)
        self.literal = "".join(chr(v) for _, v in items) if all(o is sre.LITERAL for o, _ in items) else None
        self._matcher = _Matcher(self._nodes, self._start, grants)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"

    def matches(self, value: str) -> bool:
        """Whether the whole value matches and no wildcard reaches further than it may. At most MAX_ARG_CHARS characters."""
        if self.literal is not None:
            return value == self.literal
        if len(value) > MAX_ARG_CHARS or not self._matcher.matches(value):
            return False
        return not (self._nodes.dots and ".." in value and PARENT.search(value))

    def refusal(self, value: str) -> str | None:
        """Why the value does not match, as the end of the sentence "argument X …"; None where it matches."""
        if self.matches(value):
            return None
        if len(value) > MAX_ARG_CHARS:
            return f"is longer than {MAX_ARG_CHARS} characters"
        if self.literal is not None or not self._matches_with(EVERYTHING, value):
            return f"does not match {self.text}"
        if self._matcher.matches(value):
            return "names a parent directory ('..'), which only literal dots of a pattern may match"
        ungranted = [c for c in GRANTS if c in value and c not in self.grants]
        missing = [c for c in ungranted if not self._matches_with(EVERYTHING - {c}, value)] or ungranted
        held = " and ".join("begins with '-'" if c == "-" else f"holds {c!r}" for c in missing)
        keys = " and ".join(f"{GRANTS[c]}: true" for c in missing)
        return f"{held}, which a wildcard of {self.text} may not match (the rule can grant it: {keys})"

    def _matches_with(self, grants: frozenset[str], value: str) -> bool:
        return _Matcher(self._nodes, self._start, grants).matches(value)


def _parse(text: str) -> Any:
    if len(text) > MAX_PATTERN_CHARS:
        raise PatternRefused(f"is longer than {MAX_PATTERN_CHARS} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what `re` only warns about is read differently by a later Python
            tree = sre_parser.parse(text)
    except re.error as exc:
        raise PatternRefused(f"is not a regular expression: {exc}") from exc
    except Warning as exc:
        raise PatternRefused(f"is ambiguous: {exc}; escape the character that is meant literally") from exc
    except (RecursionError, OverflowError) as exc:
        raise PatternRefused("is nested too deeply or repeats too often") from exc
    if tree.state.flags & ~re.UNICODE:
        raise PatternRefused("sets a flag; spell out what is meant, such as [Mm][Pp]4")
    return tree
