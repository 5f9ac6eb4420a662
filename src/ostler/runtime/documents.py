"""Files that people write, YAML or JSON, read so that each value's line is still known."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from ostler.model.errors import Problem
from ostler.runtime.shapes import FieldPath

MAX_DEPTH = 64
MAX_NODES = 5_000_000  # aliases can make a small file expand without end
MAX_BITS = 4096  # of a whole number
_TOO_DEEP = f"is nested deeper than {MAX_DEPTH} levels"
_MERGE = "tag:yaml.org,2002:merge"
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def join(path: Sequence[str | int]) -> str:
    """`("input", "urls", 0, "name")` as `input.urls[0].name`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


@dataclass(frozen=True, slots=True)
class Document:
    """One value of a file. `line_of` answers the line (1-based) where a field stands, or the nearest thing around it."""

    value: Any
    file: str
    line: int = 1
    _root: Callable[[], yaml.Node | None] = field(default=lambda: None, repr=False, compare=False)
    _below: dict[int, dict[str | int, tuple[int, yaml.Node]]] = field(default_factory=dict, repr=False, compare=False)

    def line_of(self, path: FieldPath) -> int:
        """The line of the field's key; of an absent one, the line of what should hold it."""
        node, line = self._root(), self.line
        for part in path:
            found = self._children(node).get(part)
            if found is None:
                break
            line, node = found
        return line

    def _children(self, node: yaml.Node | None) -> dict[str | int, tuple[int, yaml.Node]]:
        found = self._below.get(id(node))
        if found is None:
            found = self._below[id(node)] = {key: (line, value) for key, line, value in _children(node)}
        return found

    def problem(self, path: FieldPath, message: str, *, shown: FieldPath | None = None) -> Problem:
        """A mistake at `path`, with file and line; `shown` is the path that people see, where it is another."""
        return Problem(join(path if shown is None else shown), message, self.file, self.line_of(path))


@dataclass(frozen=True, slots=True)
class Opaque:
    """A scalar under a tag that only another program understands."""

    tag: str


def read_documents(
    text: str, file: str, *, most: int = MAX_NODES, opaque: Sequence[str] = ()
) -> tuple[list[Document], list[Problem]]:
    """Every document of a file: one JSON value, JSON lines, or YAML (several after `---`). Empty YAML documents are left out.

    YAML may expand to `most` values. Scalars under one of the `opaque` tags are `Opaque`; other strange tags are mistakes.
    """
    start = text.lstrip()[:1]
    if start in {"{", "["}:
        try:
            return _json(text, file)
        except ValueError as exc:
            lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
            if len(lines) > 1 and all(line.lstrip()[0] == "{" for _, line in lines):
                found = _json_lines(lines, file)
                if found is not None:
                    return found
            if file.endswith((".json", ".jsonl", ".ndjson")):
                return [], [_broken_json(exc, file)]
    return _yaml(text, file, most, opaque)


class _Twice(Exception):
    """A JSON object that names a key twice."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _Twice
    return result


def _json(text: str, file: str, line: int = 1) -> tuple[list[Document], list[Problem]]:
    root: list[yaml.Node | None] = []

    def lazily() -> yaml.Node | None:
        # JSON is YAML: composed only when a mistake needs its line, for it is a hundred times slower than json.
        if not root:
            root.append(_compose_quietly("\n" * (line - 1) + text))
        return root[0]

    try:
        return [Document(json.loads(text, object_pairs_hook=_pairs), file, line, lazily)], []
    except _Twice:
        return _yaml("\n" * (line - 1) + text, file)
    except RecursionError:
        return [], [Problem("", _TOO_DEEP, file, line)]


def _json_lines(lines: list[tuple[int, str]], file: str) -> tuple[list[Document], list[Problem]] | None:
    """None where most lines are not JSON by themselves: then the file is something else."""
    documents: list[Document] = []
    problems: list[Problem] = []
    for number, line in lines:
        try:
            found, mistakes = _json(line, file, number)
        except ValueError as exc:
            found, mistakes = [], [_broken_json(exc, file, number)]
        documents += found
        problems += mistakes
    return (documents, problems) if len(documents) * 2 >= len(lines) else None


def _broken_json(exc: ValueError, file: str, line: int = 1) -> Problem:
    if isinstance(exc, json.JSONDecodeError):
        return Problem("", f"is not JSON: {exc.msg} (column {exc.colno})", file, line + exc.lineno - 1)
    return Problem("", f"is not JSON: {exc}", file, line)


def _compose_quietly(text: str) -> yaml.Node | None:
    try:
        _guard_depth(text)
        node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError, _TooMuch):
        return None
    return node


def _yaml(text: str, file: str, most: int = MAX_NODES, opaque: Sequence[str] = ()) -> tuple[list[Document], list[Problem]]:
    reader = _Reader(file, most, opaque)
    documents = []
    try:
        _guard_depth(text)
        for root in yaml.compose_all(text, Loader=_Loader):
            value = reader.plain(root, ())
            if value is not None or len(reader.problems):
                documents.append(Document(value, file, root.start_mark.line + 1, lambda root=root: root))  # type: ignore[misc]
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        reason = getattr(exc, "problem", None) or getattr(exc, "reason", None) or str(exc)
        return [], [*reader.problems, Problem("", f"is not YAML: {reason}", file, mark.line + 1 if mark else None)]
    except RecursionError:
        return [], [Problem("", _TOO_DEEP, file)]
    except _TooMuch as exc:
        return [], [Problem("", str(exc), file)]
    return documents, reader.problems


class _TooMuch(Exception):
    """The file expands beyond all measure."""


def _guard_depth(text: str) -> None:
    """Libyaml's composer recurses in C and takes the process with it, so depth is measured on the events, which do not nest."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise _TooMuch(_TOO_DEEP)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Reader:
    """Turns YAML nodes into plain values and notes keys that stand twice, which YAML would pass over in silence."""

    def __init__(self, file: str, most: int, opaque: Sequence[str]) -> None:
        self.file = file
        self.most = most
        self.opaque = opaque
        self.problems: list[Problem] = []
        self._seen = 0
        self._scalars = yaml.constructor.SafeConstructor()  # remembers every node: never shared

    def plain(self, node: yaml.Node, path: FieldPath) -> Any:
        self._seen += 1
        if self._seen > self.most:
            raise _TooMuch(f"expands to more than {self.most} values")
        if len(path) > MAX_DEPTH:
            raise _TooMuch(_TOO_DEEP)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, (*path, i)) for i, item in enumerate(node.value)]
        if node.tag in self.opaque:
            return Opaque(node.tag)
        try:
            # JSON has no times, and what YAML makes of one may lack its offset: it stays as it was written.
            value = node.value if node.tag == _TIMESTAMP else self._scalars.construct_object(node)
            if isinstance(value, int) and value.bit_length() > MAX_BITS:
                raise ValueError(f"a number of more than {MAX_BITS} bits")  # noqa: TRY301 - Python would not print one of 15,000
        except (yaml.YAMLError, ValueError, OverflowError) as exc:
            reason = getattr(exc, "problem", None) or str(exc)
        except LookupError:  # PyYAML's way with `!!bool maybe` and `!!int ""`
            reason = f"{node.value[:40]!r} is no {node.tag.rpartition(':')[2]}"
        else:
            return value
        self.problems.append(Problem(join(path), f"cannot be read: {reason}", self.file, node.start_mark.line + 1))
        return None

    def _mapping(self, node: yaml.MappingNode, path: FieldPath) -> dict[str, Any]:
        first: dict[Any, int] = {}
        for key, _ in node.value:
            if key.tag == _MERGE:
                continue
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append(Problem(join(path), "has a key that is not a word", self.file, line))
            elif key.value in first:
                message = f"stands twice; first on line {first[key.value]}"
                self.problems.append(Problem(join((*path, key.value)), message, self.file, line))
            else:
                first[key.value] = line
        self._merge(node, path)
        pairs = ((key.value, value) for key, value in node.value if isinstance(key, yaml.ScalarNode))
        return {key: self.plain(value, (*path, key)) for key, value in pairs}

    def _merge(self, node: yaml.MappingNode, path: FieldPath) -> None:
        """Put what `<<` names into the mapping, each key once: PyYAML's own way doubles a small file's keys without end."""
        merges = [value for key, value in node.value if key.tag == _MERGE]
        if not merges:
            return
        node.value = own = [(key, value) for key, value in node.value if key.tag != _MERGE]
        taken = {key.value for key, _ in own if isinstance(key, yaml.ScalarNode)}
        merged: list[tuple[yaml.Node, yaml.Node]] = []
        for source in [one for value in merges for one in (value.value if isinstance(value, yaml.SequenceNode) else [value])]:
            if not isinstance(source, yaml.MappingNode):
                line = source.start_mark.line + 1
                self.problems.append(Problem(join(path), "merges (`<<`) something that is no mapping", self.file, line))
                continue
            self._merge(source, path)
            for key, value in source.value:
                if isinstance(key, yaml.ScalarNode) and key.value not in taken:
                    taken.add(key.value)
                    merged.append((key, value))
        node.value = merged + own


def _children(node: yaml.Node | None) -> Iterator[tuple[str | int, int, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:  # where one stands twice the last one counts, as it does for the value
            if isinstance(key, yaml.ScalarNode):
                yield key.value, key.start_mark.line + 1, value
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield i, value.start_mark.line + 1, value
