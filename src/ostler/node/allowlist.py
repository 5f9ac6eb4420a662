r"""The allowlist: which programs a node runs for others, and with which arguments (source: section 15 of the node's plan).

One file of `allowlist.d/` describes one entry; several entries may name the same command, and any of them grants.

    command: {path: /usr/bin/ffmpeg, sha256: …, name: ffmpeg}   # `name` defaults to the file's name
    args:                                   # groups; each optional, at most once, in this order, unless it says otherwise
      - ["-y"]                              # one pattern per argument; each matches the whole argument
      - ["-i", ".+\\.(mp4|wav|mkv)$"]
      - {match: ["-map", "[0-9]:[0-9]"], repeat: true}          # true: any number of times; a number: at most so many
      - {match: ["frames/.+"], required: true, allow_slash: true}
    order: file                             # or any
    max_total_args_len: 4096                # bytes of all arguments and one for each
    max_runtime_s: 7200
    max_output_mb: 5000
    stdout: out.txt                         # standard output is also written to this file of `output/`
    stdin: list.txt                         # this file of the working directory is standard input
    env: [OMP_NUM_THREADS]                  # variables that a manifest may set
    sandbox: bwrap                          # the least sandbox level

What patterns may match is described in `allowlist_pattern`, how groups are tried in `allowlist_match`.
"""

import difflib
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, TypeVar

import yaml

from ostler.model.errors import InvalidSpec, Problem
from ostler.model.manifest import ENV_NAME, SHA256, unsafe_name
from ostler.model.sandbox import SandboxLevel
from ostler.node.allowlist_pattern import GRANTS, Pattern, PatternRefused

DEFAULT_TOTAL_ARGS_LEN = 4096
MAX_TOTAL_ARGS_LEN = 128 * 1024
MAX_FILE_BYTES = 256 * 1024
MAX_GROUPS = 256
UNLIMITED = 0
Word = TypeVar("Word", bound=StrEnum)
# What these set is code that runs inside the program: with them an allowed program is any program.
_CODE_ENV = re.compile(r"(LD|DYLD)_.*|PATH|IFS|BASH_ENV|ENV|PYTHON(PATH|HOME|STARTUP)|PERL5(LIB|OPT)|NODE_OPTIONS|RUBY(OPT|LIB)")


class Order(StrEnum):
    """In which order the groups of an entry may be used."""

    FILE = "file"
    ANY = "any"


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Arguments that come together, one pattern each. `repeat` is how often at most; UNLIMITED for any number."""

    parts: tuple[Pattern, ...]
    required: bool
    repeat: int
    line: int

    def __str__(self) -> str:
        return " ".join(part.text for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """One program and what it may be given. Limits in bytes, seconds and MB (2**20 bytes); None is no limit of its own."""

    name: str
    path: str
    file: str
    sha256: str | None = None
    groups: tuple[Group, ...] = ()
    order: Order = Order.FILE
    max_total_args_len: int = DEFAULT_TOTAL_ARGS_LEN
    max_runtime_s: int | None = None
    max_output_mb: int | None = None
    stdout: str | None = None
    stdin: str | None = None
    env: frozenset[str] = frozenset()
    sandbox: SandboxLevel | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Allowlist:
    """All entries of a node, by the name that a manifest's `command` uses. An empty one allows nothing."""

    entries: Mapping[str, tuple[Entry, ...]] = field(default_factory=lambda: MappingProxyType({}))

    def find(self, command: str) -> tuple[Entry, ...]:
        """The entries for a command, which is a name or the exact path of one."""
        if not command.startswith("/"):
            return self.entries.get(command, ())
        named = self.entries.get(PurePosixPath(command).name, ())
        return tuple(entry for entry in named if entry.path == command)


def load_allowlist(places: Iterable[Path]) -> Allowlist:
    """Read files and folders (their `*.yaml` and `*.yml`, by name). Raises InvalidSpec with every mistake of every file."""
    entries: dict[str, tuple[Entry, ...]] = {}
    problems: list[Problem] = []
    for file in _files(places, problems):
        text = _read(file, problems)
        if text is None:
            continue
        entry, mistakes = parse_entry(text, file=str(file))
        problems.extend(mistakes)
        if entry is not None:
            entries[entry.name] = (*entries.get(entry.name, ()), entry)
    if problems:
        raise InvalidSpec(
            f"the allowlist has {len(problems)} mistake{'s' * (len(problems) > 1)}",
            problems,
            hint="mend them and check with `ostler allowlist test FILE -- COMMAND ARG …`",
        )
    return Allowlist(MappingProxyType(entries))


def parse_entry(text: str, *, file: str) -> tuple[Entry | None, list[Problem]]:
    """One file's entry, or None and every mistake in it."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        reason = getattr(exc, "problem", None) or getattr(exc, "reason", None) or str(exc)
        return None, [Problem("", f"is not YAML: {reason}", file, mark.line + 1 if mark else None)]
    except RecursionError:
        return None, [Problem("", "is nested too deeply", file)]
    reader = _Reader(file)
    if root is None:
        reader.bad("", "is empty; write at least `command: {path: /usr/bin/…}`", line=1)
        return None, reader.problems
    entry = reader.entry(root)
    return (None if reader.problems else entry), sorted(reader.problems, key=lambda problem: problem.line or 0)


def _files(places: Iterable[Path], problems: list[Problem]) -> list[Path]:
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            try:
                found.extend(sorted(one for one in place.iterdir() if one.suffix in {".yaml", ".yml"}))
            except OSError as exc:
                problems.append(Problem("", f"cannot be read: {exc.strerror}", str(place)))
        else:
            found.append(place)
    return list(dict.fromkeys(found))


def _read(file: Path, problems: list[Problem]) -> str | None:
    try:
        mode = file.stat().st_mode
        if stat.S_ISREG(mode) and mode & stat.S_IWOTH:
            problems.append(Problem("", "is writable by everyone, who could grant themselves anything; chmod o-w", str(file)))
            return None
        with file.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            problems.append(Problem("", f"is larger than {MAX_FILE_BYTES} bytes", str(file)))
            return None
        return content.decode()
    except OSError as exc:
        problems.append(Problem("", f"cannot be read: {exc.strerror}", str(file)))
    except UnicodeDecodeError:
        problems.append(Problem("", "is not UTF-8", str(file)))
    return None


class _Reader:
    """Turns the YAML nodes of one file into an entry and notes each mistake with its line."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []

    def bad(self, path: str, message: str, *, node: yaml.Node | None = None, line: int | None = None) -> None:
        self.problems.append(Problem(path, message, self.file, node.start_mark.line + 1 if node is not None else line))

    def entry(self, root: yaml.Node) -> Entry | None:
        keys = ("command", "args", "order", "max_total_args_len", "max_runtime_s", "max_output_mb")
        fields = self._mapping(root, "", (*keys, "stdout", "stdin", "env", "sandbox"))
        if fields is None:
            return None
        path, name, sha256 = self._command(fields.get("command"), root)
        orders = self._choice(fields.get("order"), "order", Order)
        total = self._whole(fields.get("max_total_args_len"), "max_total_args_len", most=MAX_TOTAL_ARGS_LEN)
        return Entry(
            name=name,
            path=path,
            sha256=sha256,
            file=self.file,
            groups=self._groups(fields.get("args")),
            order=orders or Order.FILE,
            max_total_args_len=total or DEFAULT_TOTAL_ARGS_LEN,
            max_runtime_s=self._whole(fields.get("max_runtime_s"), "max_runtime_s"),
            max_output_mb=self._whole(fields.get("max_output_mb"), "max_output_mb"),
            stdout=self._name(fields.get("stdout"), "stdout"),
            stdin=self._name(fields.get("stdin"), "stdin"),
            env=self._env(fields.get("env")),
            sandbox=self._choice(fields.get("sandbox"), "sandbox", SandboxLevel),
        )

    def _command(self, node: yaml.Node | None, root: yaml.Node) -> tuple[str, str, str | None]:
        if node is None:
            self.bad("command", "is missing; write `command: {path: /usr/bin/…}`", node=root)
            return "", "", None
        fields = self._mapping(node, "command", ("path", "name", "sha256"))
        if fields is None:
            return "", "", None
        path = self._text(fields.get("path"), "command.path")
        if path is None:
            if "path" not in fields:
                self.bad("command.path", "is missing; give the program's absolute path", node=node)
            path = ""
        elif not path.startswith("/") or path.endswith("/") or "\0" in path or ".." in path.split("/"):
            self.bad("command.path", f"{path!r} must be an absolute path without '..'", node=fields["path"])
        name = self._text(fields.get("name"), "command.name")
        if name is not None and (why := unsafe_name(name)):
            self.bad("command.name", f"{name!r} {why}", node=fields["name"])
        sha256 = self._text(fields.get("sha256"), "command.sha256")
        if sha256 is not None and not SHA256.fullmatch(sha256):
            self.bad("command.sha256", "must be 64 lower-case hex digits", node=fields["sha256"])
        return path, name or PurePosixPath(path).name, sha256

    def _groups(self, node: yaml.Node | None) -> tuple[Group, ...]:
        if node is None:
            return ()
        if not isinstance(node, yaml.SequenceNode):
            self.bad("args", "must be a list of groups", node=node)
            return ()
        if len(node.value) > MAX_GROUPS:
            self.bad("args", f"has more than {MAX_GROUPS} groups", node=node)
            return ()
        groups = [self._group(one, f"args[{i}]") for i, one in enumerate(node.value)]
        return tuple(group for group in groups if group is not None)

    def _group(self, node: yaml.Node, path: str) -> Group | None:
        line = node.start_mark.line + 1
        required, repeat, grants = False, 1, frozenset[str]()
        match: yaml.Node | None = node
        if isinstance(node, yaml.MappingNode):
            fields = self._mapping(node, path, ("match", "required", "repeat", *GRANTS.values())) or {}
            required = self._flag(fields.get("required"), f"{path}.required")
            repeat = self._repeat(fields.get("repeat"), f"{path}.repeat")
            grants = frozenset(c for c, key in GRANTS.items() if self._flag(fields.get(key), f"{path}.{key}"))
            match = fields.get("match")
            if match is None:
                self.bad(path, 'has no `match`; write {match: ["-i", "…"], …}', node=node)
                return None
            path = f"{path}.match"
        if not isinstance(match, yaml.SequenceNode):
            self.bad(path, 'must be a list with one pattern per argument, such as ["-i", ".+\\\\.mp4"]', node=match)
            return None
        if not match.value:
            self.bad(path, "is empty; a group needs at least one pattern", node=match)
            return None
        parts = [self._pattern(one, f"{path}[{i}]", grants) for i, one in enumerate(match.value)]
        return Group(tuple(part for part in parts if part is not None), required, repeat, line)

    def _pattern(self, node: yaml.Node, path: str, grants: frozenset[str]) -> Pattern | None:
        text = self._text(node, path)
        if text is None:
            return None
        try:
            return Pattern(text, grants)
        except PatternRefused as exc:
            self.bad(path, f"{text[:80]!r} {exc}", node=node)
            return None

    def _repeat(self, node: yaml.Node | None, path: str) -> int:
        value = self._scalar(node)
        if node is None or value is False:
            return 1
        if value is True:
            return UNLIMITED
        if not isinstance(value, int) or not 1 <= value <= 1000:
            self.bad(path, "must be true (any number of times), false, or a number from 1 to 1000", node=node)
            return 1
        return value

    def _env(self, node: yaml.Node | None) -> frozenset[str]:
        if node is None:
            return frozenset()
        if not isinstance(node, yaml.SequenceNode):
            self.bad("env", "must be a list of names", node=node)
            return frozenset()
        names = set()
        for i, one in enumerate(node.value):
            name = self._text(one, f"env[{i}]")
            if name is None:
                continue
            if not ENV_NAME.fullmatch(name):
                self.bad(f"env[{i}]", f"{name!r} is not the name of an environment variable", node=one)
            elif _CODE_ENV.fullmatch(name):
                self.bad(f"env[{i}]", f"{name} can make the program run other code, so no manifest may set it", node=one)
            names.add(name)
        return frozenset(names)

    def _name(self, node: yaml.Node | None, path: str) -> str | None:
        name = self._text(node, path)
        if name is not None and (why := unsafe_name(name)):
            self.bad(path, f"{name!r} {why}", node=node)
        return name

    def _choice(self, node: yaml.Node | None, path: str, words: type[Word]) -> Word | None:
        word = self._text(node, path)
        if word is None:
            return None
        try:
            return words(word)
        except ValueError:
            self.bad(path, f"{word!r} is none of {', '.join(words)}{_suggest(word, [one.value for one in words])}", node=node)
            return None

    def _whole(self, node: yaml.Node | None, path: str, *, most: int = 2**31) -> int | None:
        value = self._scalar(node)
        if node is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            self.bad(path, f"must be a whole number from 1 to {most}", node=node)
            return None
        return value

    def _flag(self, node: yaml.Node | None, path: str) -> bool:
        value = self._scalar(node)
        if node is not None and not isinstance(value, bool):
            self.bad(path, "must be true or false", node=node)
            return False
        return bool(value)

    def _text(self, node: yaml.Node | None, path: str) -> str | None:
        value = self._scalar(node)
        if node is not None and not isinstance(value, str):
            self.bad(path, "must be a text; put it in quotes", node=node)
            return None
        return value if isinstance(value, str) else None

    def _scalar(self, node: yaml.Node | None) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            return None
        try:
            return yaml.constructor.SafeConstructor().construct_object(node)
        except (yaml.YAMLError, ValueError, OverflowError):
            return None  # a value that its explicit tag denies: of no type that a caller accepts

    def _mapping(self, node: yaml.Node, path: str, known: Sequence[str]) -> dict[str, yaml.Node] | None:
        if not isinstance(node, yaml.MappingNode):
            self.bad(path, f"must be a mapping with the keys {', '.join(known)}", node=node)
            return None
        fields: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            where = f"{path}.{name}" if path else name
            if name not in known:
                hint = _suggest(name, known) or "; known: " + ", ".join(known)
                self.bad(where, f"is not a known key{hint}", node=key)
            elif name in fields:
                self.bad(where, f"stands twice; first on line {fields[name].start_mark.line + 1}", node=key)
            else:
                fields[name] = value
        return fields


def _suggest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
