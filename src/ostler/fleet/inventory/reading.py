"""What one file says: facts about hosts, each with its place; and how two that speak of the same host become one."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ostler.fleet import names
from ostler.fleet.inventory.host import Place
from ostler.fleet.inventory.ranges import expand
from ostler.model.errors import InvalidSpec, Problem

MAX_HOSTS = 20_000
MAX_NAMED = 1_000_000  # ranges make many names of a few characters


@dataclass(frozen=True, slots=True)
class Said:
    """A value and where it was said. A `weak` one is a tool's default, and gives way to what somebody wrote."""

    value: Any
    place: Place
    weak: bool = False


@dataclass(frozen=True, slots=True)
class Hop:
    """A host on the way as it was written, `[USER@]HOST[:PORT]`: the host may be an alias of SSH's configuration."""

    host: str
    user: str | None = None
    port: int | None = None
    identity_files: tuple[str, ...] = ()


@dataclass(slots=True)
class Entry:
    """What was said of one host: `facts` by field of `Host`, the rest by name. `ssh_config`: whether SSH's configuration counts for it."""

    name: str
    place: Place
    facts: dict[str, Said] = field(default_factory=dict)
    groups: dict[str, Place] = field(default_factory=dict)
    labels: dict[str, Said] = field(default_factory=dict)
    vars: dict[str, Said] = field(default_factory=dict)
    ssh_config: bool = True


@dataclass(slots=True)
class Reading:
    """What one source says, with its mistakes, notes on what was passed over, and whether it is of the kind that has destinations."""

    entries: dict[str, Entry] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    has_destinations: bool = False
    named: int = 0

    def entry(self, name: str, place: Place) -> Entry:
        """The entry of a host, a new one where it is named for the first time."""
        found = self.entries.get(name)
        if found is None:
            if len(self.entries) >= MAX_HOSTS:
                raise InvalidSpec(f"{place} brings the inventory to more than {MAX_HOSTS} hosts")
            found = self.entries[name] = Entry(name, place)
        return found

    def hosts(self, pattern: Any, place: Place, path: str = "") -> list[str]:
        """The names that a pattern of a file stands for; mistakes are noted."""
        try:
            found = [read(names.read_host, name) for name in expand(text_of(pattern))]
        except ValueError as exc:
            self.wrong(pattern, exc, place, path)
            return []
        self.named += len(found)
        if self.named > MAX_NAMED:
            raise InvalidSpec(f"{place} is where the inventory has named hosts {MAX_NAMED} times")
        return found

    def target(self, text: Any, place: Place, path: str = "") -> Entry | None:
        """The entry that `[USER@]HOST[:PORT]` names, with user and port in it."""
        try:
            user, host, port = names.split_target(text_of(text))
            name = read(names.read_host, host)
            facts = {"user": user and read(names.read_user, user), "port": port and read(names.read_port, port)}
        except ValueError as exc:
            self.wrong(text, exc, place, path)
            return None
        entry = self.entry(name, place)
        for fact, value in facts.items():
            if value is not None:
                self.say(entry, fact, Said(value, place), path)
        return entry

    def read(self, fact: str, value: Any, place: Place, path: str = "") -> Said | None:
        """The value of a fact as its reader has it; a mistake is noted."""
        try:
            return Said(READERS[fact](value), place)
        except ValueError as exc:
            self.wrong(value, exc, place, path)
            return None

    def say(self, entry: Entry, fact: str, said: Said, path: str = "") -> None:
        """Add a fact; one that contradicts what was said before is a mistake that names both places."""
        before = entry.facts.setdefault(fact, said)
        if before.weak and not said.weak:
            entry.facts[fact] = said
        elif before.value != said.value and not said.weak:
            self.problems.append(contradiction(entry.name, fact, before, said, path))

    def wrong(self, value: Any, why: object, place: Place, path: str = "") -> None:
        """Note a mistake in a value."""
        self.problems.append(Problem(path, f"{shown(value)} {why}", place.file, place.line))


def listed(texts: Sequence[str], place: str) -> Reading:
    """Hosts of the command line: `[USER@]HOST[:PORT]`."""
    reading = Reading()
    for text in texts:
        reading.target(text, Place(place))
    return reading


def contradiction(host: str, what: str, before: Said, said: Said, path: str = "") -> Problem:
    """Two places that say different things of one host."""
    here, there = shown(said.value), shown(before.value)
    return Problem(
        path, f"{host}: {what} is {here} here, and {there} in {before.place}; leave one", said.place.file, said.place.line
    )


def shown(value: Any) -> str:
    """A value for a message: short, and on one line."""
    if isinstance(value, tuple):
        return ", ".join(map(shown, value)) or "none"
    if isinstance(value, Hop):
        return repr((f"{value.user}@" if value.user else "") + value.host + (f":{value.port}" if value.port else ""))
    text = "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def text_of(value: Any) -> str:
    """A text, or ValueError."""
    if not isinstance(value, str):
        raise ValueError("must be a text" + ("; put it in quotes" if isinstance(value, int | float) else ""))  # noqa: TRY004 - a mistake of who wrote it
    return value


def read(reader: Callable[[str], Any], value: Any) -> Any:
    """The reader's value of a text."""
    return reader(text_of(value))


def read_jumps(value: Any) -> tuple[Hop, ...]:
    """`[USER@]HOST[:PORT],…`, the first hop first; `none` for no hop at all."""
    text = text_of(value)
    if text.lower() == "none":
        return ()
    hops = []
    for part in text.removeprefix("ssh://").split(","):
        user, host, port = names.split_target(part.strip())
        hops.append(
            Hop(
                names.read_host(host),
                None if user is None else names.read_user(user),
                None if port is None else names.read_port(port),
            )
        )
    return tuple(hops)


def read_identity(value: Any) -> tuple[str, ...]:
    """A path, or several."""
    several: Iterable[Any] = value if isinstance(value, list | tuple) else [value]
    return tuple(read(names.read_path, one) for one in several)


def read_paused(value: Any) -> str | None:
    """`true`, `false`, or why."""
    if isinstance(value, bool):
        return "paused" if value else None
    text = text_of(value).strip()
    if text.lower() in {"true", "yes", "false", "no"}:
        return read_paused(text.lower() in {"true", "yes"})
    if not text or not text.isprintable():
        raise ValueError("says no reason; write true, false or one line that says why")
    return text


READERS: dict[str, Callable[[Any], Any]] = {
    "address": lambda value: read(names.read_address, value),
    "user": lambda value: read(names.read_user, value),
    "port": names.read_port,
    "identity_files": read_identity,
    "proxy_jump": read_jumps,
    "region": lambda value: read(names.read_pool, value),
    "pool": lambda value: read(names.read_pool, value),
    "paused": read_paused,
}
