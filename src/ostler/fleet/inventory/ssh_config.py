"""SSH's own configuration, read as OpenSSH reads it for five of its keywords, with the line of each value; nothing in it is run.

asyncssh has a reader, too; but it tells no lines, and it runs what `Match exec` names, which a listing of hosts must not.
"""

import fnmatch
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ostler.fleet.inventory.host import Place
from ostler.fleet.inventory.proxy import hops_of_command
from ostler.fleet.inventory.reading import READERS, Reading, Said, text_of
from ostler.model.errors import InvalidSpec, Problem

MAX_INCLUDES = 16  # as OpenSSH
MAX_LINES = 100_000
MAX_LOOKED_AT = 1_000_000
MAX_PATTERN = 1000

_LINE = re.compile(r"\s*([A-Za-z0-9]+)(?:\s*=\s*|\s+)(.*)", re.DOTALL)
_TOKEN = re.compile(r"%(.)|\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_USED = frozenset({"hostname", "user", "port", "identityfile", "proxyjump", "proxycommand"})
_KNOWABLE = frozenset({"host", "originalhost", "user", "localuser"})
_FACTS = {"hostname": "address", "user": "user", "port": "port", "proxyjump": "proxy_jump"}

Condition = tuple[str, tuple[str, ...]]  # `host` and patterns, or a criterion of `Match`, perhaps with `!` in front


@dataclass(frozen=True, slots=True)
class Line:
    """One line that counts: the conditions under which it does, keyword (in lower case), value, and place."""

    conditions: tuple[Condition, ...]
    keyword: str
    value: str
    place: Place


@dataclass(slots=True)
class SshConfig:
    """A configuration that was read. `aliases` are the hosts that it names without wildcards."""

    lines: list[Line] = field(default_factory=list)
    aliases: dict[str, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    home: Path = Path("~")
    env: Mapping[str, str] = field(default_factory=dict)
    local_user: str = ""
    _named: dict[str, list[int]] = field(default_factory=dict)
    _others: list[int] = field(default_factory=list)
    _looked_at: int = 0

    def add(self, line: Line) -> None:
        """The next line. Those of blocks that name their hosts without wildcards are found by name: there may be thousands."""
        if len(self.lines) >= MAX_LINES:
            raise ValueError(f"more than {MAX_LINES} lines count here")
        plain = [
            words
            for criterion, words in line.conditions
            if criterion == "originalhost" and not any(c in "".join(words) for c in "*?!")
        ]
        for held in [self._named.setdefault(word.lower(), []) for word in set(plain[0])] if plain else [self._others]:
            held.append(len(self.lines))
        self.lines.append(line)

    def lookup(self, host: str, user: str | None, port: int | None, reading: Reading) -> dict[str, Said]:
        """Facts about what would be typed behind `ssh`. The first value counts, of identity files all. Mistakes go to `reading`."""
        found: dict[str, Line] = {}
        keys: list[Line] = []
        held: set[int] = set()  # blocks that hold: that is decided where a block begins, whatever its own lines say
        for line in self._near(host):
            named = found["hostname"].value.replace("%h", host) if "hostname" in found else host
            as_user = user or (found["user"].value if "user" in found else self.local_user)
            if id(line.conditions) not in held and not self._holds(
                line, {"originalhost": host, "host": named, "user": as_user, "localuser": self.local_user}, reading
            ):
                continue
            held.add(id(line.conditions))
            if line.keyword == "identityfile":
                keys.append(line)
            elif line.keyword in {"proxyjump", "proxycommand"} and ("proxyjump" in found or "proxycommand" in found):
                continue  # whichever comes first, as in OpenSSH
            else:
                found.setdefault(line.keyword, line)
        facts = self._facts(host, found, reading)
        tokens = {"n": host, "h": _text(facts, "address") or host, "r": user or _text(facts, "user") or self.local_user}
        self._identity(facts, keys, {**tokens, "p": str(port or _text(facts, "port") or 22)}, reading)
        return facts

    def _near(self, host: str) -> Iterator[Line]:
        places = sorted([*self._named.get(host.lower(), ()), *self._others])
        self._looked_at += len(places)
        if self._looked_at > MAX_LOOKED_AT:
            raise InvalidSpec("SSH's configuration has too many blocks with wildcards for so many hosts")
        return (self.lines[i] for i in places)

    def _holds(self, line: Line, known: Mapping[str, str], reading: Reading) -> bool:
        unknown = ""
        for criterion, patterns in line.conditions:
            name = criterion.removeprefix("!")
            if name not in _KNOWABLE:
                unknown = name
            elif matches(known[name], patterns) is criterion.startswith("!"):
                return False
        if unknown:
            note = f"{line.place}: `Match {unknown}` is not evaluated, so {line.keyword} is not taken from here"
            if note not in reading.notes:
                reading.notes.append(note)
        return not unknown

    def _facts(self, host: str, found: Mapping[str, Line], reading: Reading) -> dict[str, Said]:
        facts: dict[str, Said] = {}
        for keyword, line in found.items():
            value = line.value
            try:
                if keyword == "hostname":
                    value = self._expand(value, {"h": host})
                if keyword == "proxycommand":
                    hops = None if value.lower() == "none" else hops_of_command(value)
                    if hops is not None:
                        facts["proxy_jump"] = Said(hops, line.place)
                    continue
                facts[_FACTS[keyword]] = Said(READERS[_FACTS[keyword]](value), line.place)
            except ValueError as exc:
                reading.wrong(value, exc, line.place, keyword)
        return facts

    def _identity(self, facts: dict[str, Said], lines: Sequence[Line], tokens: Mapping[str, str], reading: Reading) -> None:
        files: list[str] = []
        for line in lines:
            if line.value.lower() == "none":
                files.clear()
                continue
            try:
                path = self._expand(line.value, {**tokens, "d": str(self.home), "u": self.local_user})
                files += [one for one in READERS["identity_files"](path) if one not in files]
            except ValueError as exc:
                reading.wrong(line.value, exc, line.place, line.keyword)
        if files:
            facts["identity_files"] = Said(tuple(files), lines[0].place)

    def _expand(self, text: str, tokens: Mapping[str, str]) -> str:
        def value(found: re.Match[str]) -> str:
            if found[2]:
                if found[2] not in self.env:
                    raise ValueError(f"names the variable {found[2]}, which is not set")
                return self.env[found[2]]
            if found[1] == "%":
                return "%"
            if found[1] not in tokens:
                raise ValueError(f"holds %{found[1]}, which is not known here; write it out")
            return tokens[found[1]]

        return _TOKEN.sub(value, text)


def read_ssh_config(
    file: Path, *, home: Path, env: Mapping[str, str], local_user: str, text_in: Callable[[Path], str | Problem]
) -> SshConfig:
    """Read a configuration with all that it includes. `text_in` answers a file's content, or what is wrong with the file."""
    config = SshConfig(home=home, env=env, local_user=local_user)
    _read(file, config, (), 0, text_in)
    return config


def matches(text: str, patterns: Sequence[str]) -> bool:
    """Whether a list of patterns with `*`, `?` and `!` grants a text; case does not count."""
    good = False
    for pattern in patterns:
        wanted = pattern.removeprefix("!").lower().replace("[", "[[]")
        if fnmatch.fnmatchcase(text.lower(), wanted):
            if pattern.startswith("!"):
                return False
            good = True
    return good


def _read(
    file: Path, config: SshConfig, outer: tuple[Condition, ...], depth: int, text_in: Callable[[Path], str | Problem]
) -> None:
    text = text_in(file)
    if isinstance(text, Problem):
        config.problems.append(text)
        return
    here: tuple[Condition, ...] = ()
    for number, line in enumerate(text.split("\n"), 1):
        found = _LINE.fullmatch(line.rstrip())
        if found is None or line.lstrip().startswith("#"):
            continue
        place, keyword = Place(str(file), number), found[1].lower()
        try:
            words = shlex.split(found[2], comments=True)
            if any(len(word) > MAX_PATTERN for word in words):
                raise ValueError(f"a word has more than {MAX_PATTERN} characters")  # noqa: TRY301
            if keyword == "host":
                here = (("originalhost", tuple(words)),)
                for word in words:
                    if not any(c in word for c in "*?!"):
                        config.aliases.setdefault(word, place)
            elif keyword == "match":
                here = tuple(_criteria(words))
            elif keyword == "include":
                for path in _included(words, config.home, depth):
                    _read(path, config, outer + here, depth + 1, text_in)
            elif keyword in _USED:
                value = found[2].strip() if keyword == "proxycommand" else _one(words)
                config.add(Line(outer + here, keyword, text_of(value), place))
        except ValueError as exc:
            config.problems.append(Problem(found[1], f"cannot be read: {exc}", str(file), number))


def _one(words: Sequence[str]) -> str:
    if len(words) != 1:
        raise ValueError("it takes one value")
    return words[0]


def _criteria(words: Sequence[str]) -> Iterator[Condition]:
    rest = iter(words)
    for word in rest:
        criterion = word.lower()
        name = criterion.removeprefix("!")
        if name == "all":
            if criterion.startswith("!"):
                raise ValueError("!all matches nothing")
        elif name in {"canonical", "final"}:
            yield criterion, ()
        else:
            value = next(rest, None)
            if value is None:
                raise ValueError(f"{word} names no pattern")
            yield criterion, tuple(value.split(","))


def _included(patterns: Sequence[str], home: Path, depth: int) -> Iterator[Path]:
    if depth >= MAX_INCLUDES:
        raise ValueError("files include each other without end")
    for pattern in patterns:
        path = home / pattern[2:] if pattern.startswith("~/") else home / ".ssh" / pattern
        if not any(c in pattern for c in "*?["):
            yield from [path] if path.is_file() else []
            continue
        anchor = Path(path.anchor)
        yield from sorted(one for one in anchor.glob(str(path.relative_to(anchor))) if one.is_file())


def _text(facts: Mapping[str, Said], fact: str) -> str:
    return str(facts[fact].value) if fact in facts else ""
