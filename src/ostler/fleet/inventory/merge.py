"""Several readings become one list of hosts: what somebody wrote in an inventory, then SSH's configuration, then defaults."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ostler.fleet import names
from ostler.fleet.inventory.host import DEFAULT, SSH_PORT, Host, Inventory, Jump
from ostler.fleet.inventory.reading import Entry, Hop, Reading, Said, contradiction
from ostler.fleet.inventory.ssh_config import SshConfig
from ostler.model.errors import Problem
from ostler.runtime.documents import Opaque
from ostler.runtime.settings import invalid

MAX_HOPS = 8
MAX_SHOWN = 100  # mistakes; their number is told


def merge(readings: Iterable[Reading], ssh: SshConfig, home: Path) -> Inventory:
    """One inventory out of several; raises InvalidSpec with every mistake."""
    whole = Reading()
    for reading in readings:
        whole.problems += reading.problems
        whole.notes += reading.notes
        for entry in reading.entries.values():
            _add(entry, whole)
    whole.problems += ssh.problems
    settler = _Settler(ssh, home, whole)
    hosts = [host for entry in whole.entries.values() if (host := settler.settle(entry)) is not None]
    whole.problems += _twice(hosts, whole.entries)
    if whole.problems:
        found = invalid("the inventory", whole.problems)
        found.problems = found.problems[:MAX_SHOWN]
        raise found
    return Inventory(tuple(hosts), tuple(dict.fromkeys(whole.notes)))


def _add(entry: Entry, whole: Reading) -> None:
    known = whole.entries.setdefault(entry.name, entry)
    if known is entry:
        return
    for fact, said in entry.facts.items():
        whole.say(known, fact, said)
    known.ssh_config = known.ssh_config and entry.ssh_config
    for group, place in entry.groups.items():
        known.groups.setdefault(group, place)
    for kind in ("labels", "vars"):
        held: dict[str, Said] = getattr(known, kind)
        for key, said in getattr(entry, kind).items():
            before = held.setdefault(key, said)
            if before.value != said.value:
                whole.problems.append(contradiction(entry.name, f"{kind}.{key}", before, said))


def _twice(hosts: Iterable[Host], entries: Mapping[str, Entry]) -> Iterable[Problem]:
    """Two names of one machine: it would be worked on twice at once."""
    seen: dict[tuple[Any, ...], Host] = {}
    for host in hosts:
        first = seen.setdefault((host.address, host.port, host.proxy_jump), host)
        if first is not host:
            place = entries[host.name].place
            where = f"{host.address} at port {host.port}"
            message = f"{host.name} is the same machine as {first.name} ({first.origin['name']}): {where}; leave one"
            yield Problem("", message, place.file, place.line)


@dataclass(frozen=True, slots=True)
class _Settler:
    ssh: SshConfig
    home: Path
    reading: Reading

    def settle(self, entry: Entry) -> Host | None:
        facts = self._facts(entry.name, _value(entry.facts, "user"), _value(entry.facts, "port"), ssh=entry.ssh_config)
        origin = {"name": str(entry.place), "user": DEFAULT, "port": DEFAULT}
        if "address" not in facts:
            named = self.reading.read("address", entry.name, entry.place)
            if named is None:
                return None
            facts["address"] = named
        origin |= {fact: str(said.place) for fact, said in facts.items() if said.value is not None}
        origin |= {f"labels.{key}": str(said.place) for key, said in entry.labels.items()}
        origin |= {f"vars.{key}": str(said.place) for key, said in entry.vars.items()}
        origin |= {f"groups.{group}": str(place) for group, place in entry.groups.items()}
        return Host(
            name=entry.name,
            address=facts["address"].value,
            user=_value(facts, "user"),
            port=_value(facts, "port") or SSH_PORT,
            identity_files=self._files(_value(facts, "identity_files") or ()),
            proxy_jump=self._way(entry, facts["proxy_jump"]) if "proxy_jump" in facts else (),
            groups=tuple(entry.groups),
            vars={key: _plain(said.value) for key, said in entry.vars.items()},
            region=_value(facts, "region"),
            pool=_value(facts, "pool"),
            labels={key: said.value for key, said in entry.labels.items()},
            paused=_value(facts, "paused"),
            origin=origin,
        )

    def _facts(self, name: str, user: str | None, port: int | None, *, ssh: bool) -> dict[str, Said]:
        """What the inventory says of a host, and SSH's configuration of the name that would be typed behind `ssh`."""
        facts = dict(self.reading.entries[name].facts) if name in self.reading.entries else {}
        typed = facts["address"].value if "address" in facts else name
        for fact, said in (self.ssh.lookup(typed, user, port, self.reading) if ssh else {}).items():
            if fact == "address" or fact not in facts:
                facts[fact] = said
        return facts

    def _way(self, entry: Entry, said: Said) -> tuple[Jump, ...]:
        jumps: list[Jump] = []
        for i, hop in enumerate(_before(entry.name, said.value)):
            jumps += self._hop(hop, said, first=i == 0, trail=(), ssh=entry.ssh_config)
        return tuple(jumps)

    def _hop(self, hop: Hop, said: Said, *, first: bool, trail: tuple[str, ...], ssh: bool) -> list[Jump]:
        """A hop as the inventory and SSH's configuration have it, with the way to it where it is the first."""
        if hop.host in trail or len(trail) >= MAX_HOPS:
            self.reading.wrong(hop, f"is reached by way of itself: {' → '.join((*trail, hop.host))}", said.place, "proxy_jump")
            return []
        facts = self._facts(hop.host, hop.user, hop.port, ssh=ssh)
        before: list[Jump] = []
        if first and "proxy_jump" in facts:
            for i, one in enumerate(_before(hop.host, facts["proxy_jump"].value)):
                before += self._hop(one, facts["proxy_jump"], first=i == 0, trail=(*trail, hop.host), ssh=ssh)
        address = _value(facts, "address")
        if address is None:
            try:
                address = names.read_address(hop.host)
            except ValueError as exc:
                self.reading.wrong(hop.host, exc, said.place, "proxy_jump")
                return []
        return [
            *before,
            Jump(
                address=address,
                user=hop.user or _value(facts, "user"),
                port=hop.port or _value(facts, "port") or SSH_PORT,
                identity_files=self._files(hop.identity_files or _value(facts, "identity_files") or ()),
            ),
        ]

    def _files(self, paths: Iterable[str]) -> tuple[str, ...]:
        return tuple(str(self.home / path[2:]) if path.startswith("~/") else path for path in paths)


def _value(facts: Mapping[str, Said], fact: str) -> Any:
    return facts[fact].value if fact in facts else None


def _before(name: str, hops: tuple[Hop, ...]) -> tuple[Hop, ...]:
    """The way to a host: what is said of all hosts holds for those on the way too, up to themselves."""
    return next((hops[:i] for i, hop in enumerate(hops) if hop.host == name), hops)


def _plain(value: Any) -> Any:
    """A variable as JSON can say it."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return None if isinstance(value, Opaque) else value
