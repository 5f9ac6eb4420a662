"""Ostler's own inventory: hosts, groups, and settings that may stand at the top (for all), in a group or in a host; the nearest wins."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ostler.fleet import names
from ostler.fleet.inventory.groups import Groups, way
from ostler.fleet.inventory.host import Place
from ostler.fleet.inventory.reading import Reading, Said, contradiction, read
from ostler.runtime.documents import Document, join
from ostler.runtime.settings import check_parts
from ostler.runtime.shapes import FieldPath

ALL = "all"
MAX_LABEL_VALUE = 255  # as in manifests
_FACTS = {"address": "address", "user": "user", "port": "port", "identity_file": "identity_files", "proxy_jump": "proxy_jump",
          "region": "region", "pool": "pool", "paused": "paused"}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What may be said for all hosts, for those of a group, or for one."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic's own convention

    user: str | None = None
    port: int | None = None
    identity_file: str | tuple[str, ...] | None = None
    proxy_jump: str | None = None
    region: str | None = None
    pool: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    vars: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings(Settings):
    """One host. `paused` leaves it alone: true, or why."""

    address: str | None = None
    groups: tuple[str, ...] = ()
    paused: bool | str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSettings(Settings):
    """A group: its hosts by name, and the groups inside it."""

    hosts: tuple[str, ...] = ()
    children: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetFile(Settings):
    """An inventory: `hosts` are a list of names, or a mapping of names (`mini-[1:4]` are four) to their settings."""

    hosts: tuple[str, ...] | dict[str, HostSettings | None] = ()
    groups: dict[str, GroupSettings | None] = field(default_factory=dict)


def read_own(document: Document) -> Reading:
    """What such a file says, with every mistake in it."""
    reading = Reading()
    rest, left_out, reading.problems = check_parts(FleetFile, document)
    if rest is not None:
        _Reader(rest, reading, whole=all(len(path) > 2 for path in left_out)).run()
    return reading


class _Reader:
    """`whole`: no host and no group was left out for its form, so that what names one that is not there is a mistake of its own."""

    def __init__(self, document: Document, reading: Reading, *, whole: bool) -> None:
        self.document, self.reading, self.whole = document, reading, whole
        self.data: Mapping[str, Any] = document.value
        self.groups = Groups()

    def run(self) -> None:
        layers = {ALL: self._layer(())}
        for name, settings in (self.data.get("groups") or {}).items():
            if self._is_group(name, ("groups", name)):
                self.groups.add(name)
                layers[name] = self._layer(("groups", name))
                self._members(name, settings or {})
        own = dict(self._hosts())
        for name, path in self._named_by_groups():
            if self.whole and name not in self.reading.entries:
                self.reading.wrong(name, "is no host of this file; write it under `hosts`", self._place(path), join(path))
        for problem in self.groups.loops():
            place = self._place(("groups", problem[0], "children"))
            self.reading.wrong(problem[0], f"contains itself: {way(problem)}", place, f"groups.{problem[0]}.children")
        if not self.reading.problems:
            for name, layer in own.items():
                self._settle(name, layer, layers)

    def _hosts(self) -> Iterator[tuple[str, dict[tuple[str, str], Said]]]:
        hosts: Any = self.data.get("hosts") or ()
        listed = not isinstance(hosts, dict)
        rows = [(i, one, None) for i, one in enumerate(hosts)] if listed else [(key, key, one) for key, one in hosts.items()]
        for key, pattern, settings in rows:
            path: FieldPath = ("hosts", key)
            place = self._place(path)
            layer = self._layer(path) if settings else {}
            if listed and ("@" in pattern or pattern.count(":") == 1) and "[" not in pattern:
                entry = self.reading.target(pattern, place, join(path))
                found = [] if entry is None else [entry.name]
            else:
                found = self.reading.hosts(pattern, place, join(path))
            for name in found:
                entry = self.reading.entry(name, place)
                if entry.place != place:
                    self.reading.wrong(name, f"is named twice; first in {entry.place}", place, join(path))
                for i, group in enumerate((settings or {}).get("groups") or ()):
                    if self._is_group(group, (*path, "groups", i)):
                        self.groups.add(group)
                        self.groups.join(group, name, self._place((*path, "groups", i)))
                yield name, layer

    def _members(self, group: str, settings: Mapping[str, Any]) -> None:
        for i, pattern in enumerate(settings.get("hosts") or ()):
            path = ("groups", group, "hosts", i)
            for name in self.reading.hosts(pattern, self._place(path), join(path)):
                self.groups.join(group, name, self._place(path))
        for i, child in enumerate(settings.get("children") or ()):
            path = ("groups", group, "children", i)
            if child not in (self.data.get("groups") or {}):
                if self.whole:
                    self.reading.wrong(child, "is no group of this file; write it under `groups`", self._place(path), join(path))
            else:
                self.groups.put(child, group)

    def _named_by_groups(self) -> Iterator[tuple[str, FieldPath]]:
        for group, settings in (self.data.get("groups") or {}).items():
            for i, pattern in enumerate((settings or {}).get("hosts") or ()):
                yield from ((name, ("groups", group, "hosts", i)) for name in self._quiet(pattern))

    def _quiet(self, pattern: str) -> list[str]:
        return Reading().hosts(pattern, Place(""))

    def _is_group(self, name: str, path: FieldPath) -> bool:
        try:
            if read(names.read_group, name) == ALL:
                raise ValueError("is every host; what holds for all stands at the top of the file")  # noqa: TRY301
        except ValueError as exc:
            self.reading.wrong(name, exc, self._place(path), join(path))
            return False
        return True

    def _layer(self, path: FieldPath) -> dict[tuple[str, str], Said]:
        """What the settings at a path say: facts, labels and vars by (kind, name)."""
        settings: Any = self.data
        for part in path:
            settings = settings[part]
        layer: dict[tuple[str, str], Said] = {}
        for key, value in (settings or {}).items():
            at = (*path, key)
            if key in _FACTS and value is not None:
                said = self.reading.read(_FACTS[key], value, self._place(at), join(at))
                if said is not None:
                    layer["facts", _FACTS[key]] = said
            elif key in {"labels", "vars"}:
                for name, one in (value or {}).items():
                    if key == "vars" or self._is_label(name, one, (*at, name)):
                        layer[key, name] = Said(one, self._place((*at, name)))
        return layer

    def _is_label(self, name: str, value: str, path: FieldPath) -> bool:
        try:
            names.read_label(name)
        except ValueError as exc:
            self.reading.wrong(name, exc, self._place(path), join(path[:-1]))
            return False
        if len(value) > MAX_LABEL_VALUE or not value.isprintable():
            why = f"is no value of a label; one has up to {MAX_LABEL_VALUE} characters on one line"
            self.reading.wrong(value, why, self._place(path), join(path))
            return False
        return True

    def _settle(self, name: str, own: dict[tuple[str, str], Said], layers: dict[str, dict[tuple[str, str], Said]]) -> None:
        """The host's own word, else that of its groups, the inner ones first, else that of the top."""
        entry = self.reading.entries[name]
        entry.groups = self.groups.of(name)
        found = dict(layers[ALL])
        said_by: dict[tuple[str, str], list[str]] = {}
        for group in entry.groups:
            for what in layers.get(group, ()):
                said_by.setdefault(what, []).append(group)
        for what, groups in said_by.items():
            inner = [one for one in groups if not any(self.groups.inside(other, one) for other in groups if other != one)]
            found[what] = layers[inner[0]][what]
            for other in inner[1:] if what not in own else ():
                if layers[other][what].value != found[what].value:
                    shown = what[1] if what[0] == "facts" else ".".join(what)
                    self.reading.problems.append(contradiction(name, shown, found[what], layers[other][what]))
        for (kind, key), said in (found | own).items():
            held: dict[str, Said] = getattr(entry, kind)
            held.setdefault(key, said)

    def _place(self, path: FieldPath) -> Place:
        return Place(self.document.file, self.document.line_of(path))
