"""Kamal's `config/deploy.yml`: servers, roles, tags, accessories and how SSH reaches them; what it says about containers is passed over."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ostler.fleet import names
from ostler.fleet.inventory.erb import Rendered, render
from ostler.fleet.inventory.host import SSH_PORT, Place
from ostler.fleet.inventory.proxy import hops_of_command
from ostler.fleet.inventory.reading import Entry, Reading, Said, read, read_jumps
from ostler.model.errors import Problem
from ostler.runtime.documents import Document, join, read_documents
from ostler.runtime.shapes import FieldPath, suggest

WEB = "web"  # the role of servers that stand in a list
DEFAULT_USER = "root"
DEFAULTS = Place("Kamal's default")

_SSH_KEYS = ("user", "port", "proxy", "proxy_command", "keys", "keys_only", "key_data", "config", "log_level")
_NAME = re.compile(r"deploy(\.[^.]+)?\.ya?ml")
_TELLTALE = re.compile(r"^(servers|service|accessories):", re.MULTILINE)


def is_kamal(file: Path, text: str) -> bool:
    """Whether a file is Kamal's: by its name, or by keys that no other inventory has."""
    return bool(_NAME.fullmatch(file.name) or (file.suffix in {".yml", ".yaml"} and _TELLTALE.search(text)))


def read_kamal(
    file: Path, text: str, *, destination: str | None, accessories: bool, env: Mapping[str, str],
    text_in: Callable[[Path], str | Problem], most: int,
) -> Reading:  # fmt: skip
    """What the file says, with that of its destination merged over it."""
    layers = _Layers(env=env, most=most)
    layers.add(file, text)
    if destination is not None:
        over = _file_of(file, destination, layers.problems)
        more = text_in(over) if over is not None else None
        if isinstance(more, Problem):
            layers.problems.append(replace(more, message=f"{more.message}{_known(file)}"))
        elif over is not None and more is not None:
            layers.add(over, more)
    reading = Reading(problems=layers.problems, has_destinations=True)
    if not layers.problems:
        _Reader(layers, reading, file).run(accessories=accessories, destination=destination)
        reading.problems = [layers.explained(one) for one in reading.problems]
    return reading


def _file_of(file: Path, destination: str, problems: list[Problem]) -> Path | None:
    try:
        return file.with_suffix(f".{names.read_group(destination)}.yml")
    except ValueError as exc:
        problems.append(Problem("", f"{destination!r} {exc}", "--dest"))
        return None


def _known(file: Path) -> str:
    found = sorted(one.name.removeprefix(f"{file.stem}.").removesuffix(".yml") for one in file.parent.glob(f"{file.stem}.*.yml"))
    return f"; destinations: {', '.join(found)}" if found else ""


class _Layers:
    """A file, and that of the destination over it: mappings are merged, everything else is replaced, as Kamal does."""

    def __init__(self, *, env: Mapping[str, str], most: int) -> None:
        self.data: dict[str, Any] = {}
        self.problems: list[Problem] = []
        self._env, self._most = env, most
        self._documents: list[Document] = []
        self._rendered: dict[str, Rendered] = {}

    def add(self, file: Path, text: str) -> None:
        rendered = self._rendered[str(file)] = render(text, str(file), self._env)
        documents, problems = read_documents(rendered.text, str(file), most=self._most)
        self.problems += rendered.problems or problems  # what stands where ERB was refused would only confuse
        if self.problems:
            return
        if len(documents) > 1:
            self.problems.append(Problem("", "holds several documents; Kamal reads one", str(file), documents[1].line))
        elif documents and not isinstance(documents[0].value, dict):
            self.problems.append(Problem("", "must be a mapping, such as `servers: […]`", str(file), documents[0].line))
        elif documents:
            self._documents.append(documents[0])
            self.data = _merged(self.data, documents[0].value)
        elif not self._documents:
            self.problems.append(Problem("", "is empty", str(file)))

    def place(self, path: FieldPath) -> Place:
        """Where a value stands: in the last file that has it."""
        for document in reversed(self._documents):
            if _has(document.value, path):
                return Place(document.file, document.line_of(path))
        last = self._documents[-1]
        return Place(last.file, last.line_of(path))

    def unset(self, place: Place) -> str | None:
        """The variable on a line that is not set."""
        rendered = self._rendered.get(place.file)
        return rendered.unset.get(place.line or 0) if rendered else None

    def explained(self, problem: Problem) -> Problem:
        """A problem, with the variable that may be its reason."""
        name = self.unset(Place(problem.file or "", problem.line))
        return replace(problem, message=f"{problem.message} (the variable {name} on this line is not set)") if name else problem


@dataclass(slots=True)
class _Reader:
    layers: _Layers
    reading: Reading
    file: Path

    def run(self, *, accessories: bool, destination: str | None) -> None:
        data = self.layers.data
        if data.get("require_destination") is True and destination is None:
            self._wrong(("require_destination",), f"is set: name the destination by --dest{_known(self.file)}")
            return
        facts, use_config = self._ssh()
        servers = data.get("servers")
        if not servers:
            others = "" if destination else _known(self.file)
            why = f"names no servers without --dest{others}" if others else "names no servers"
            self._wrong(("servers",), why, path="" if "servers" not in data else "servers")
        elif isinstance(servers, list):
            self._servers(servers, ("servers",), WEB)
        elif isinstance(servers, dict):
            for role, found in servers.items():
                self._role(role, found)
        else:
            self._wrong(("servers",), "must be a list of hosts, or a mapping of roles to hosts")
        for name, accessory in self._accessories() if accessories else ():
            self._accessory(name, accessory)
        for entry in self.reading.entries.values():
            entry.ssh_config = use_config
            for fact, said in facts.items():
                entry.facts.setdefault(fact, said)

    def _role(self, role: str, found: Any) -> None:
        path: FieldPath = ("servers", role)
        hosts = found
        if isinstance(found, dict):
            path = (*path, "hosts")
            hosts = found.get("hosts")
            if hosts is None and "hosts" not in found:
                self._wrong(path[:-1], f"is a role without `hosts`{suggest('hosts', found)}")
                return
        if isinstance(hosts, str):
            hosts = [hosts]
        if hosts is None or hosts == []:
            if self.layers.data.get("allow_empty_roles") is not True:
                self._wrong(path, f"names no hosts for the role {role}; leave the role out, or set allow_empty_roles: true")
        elif isinstance(hosts, list):
            self._servers(hosts, path, role)
        else:
            self._wrong(path, "must be a list of hosts")

    def _servers(self, hosts: Sequence[Any], path: FieldPath, role: str) -> None:
        for i, found in enumerate(hosts):
            at = (*path, i)
            if not isinstance(found, dict):
                self._host(found, at, [role])
            elif len(found) != 1:
                self._wrong(at, "must be one host, or one host with its tags (`HOST: TAG`)")
            else:
                ((host, tags),) = found.items()
                self._host(host, (*at, host), [role, *(tags if isinstance(tags, list) else [] if tags is None else [tags])])

    def _host(self, host: Any, path: FieldPath, groups: Sequence[Any]) -> None:
        place = self.layers.place(path)
        if host is None or host == "":
            self._wrong(path, "names no host")
            return
        entry = self.reading.target(host, place, join(path))
        for group in groups if entry is not None else ():
            self._group(entry, group, path)

    def _group(self, entry: Entry | None, group: Any, path: FieldPath) -> None:
        place = self.layers.place(path)
        try:
            if entry is not None:
                entry.groups.setdefault(read(names.read_group, group), place)
        except ValueError as exc:
            self.reading.wrong(group, exc, place, join(path))

    def _ssh(self) -> tuple[dict[str, Said], bool]:
        """What the section says of all hosts, and whether SSH's configuration counts."""
        facts = {"user": Said(DEFAULT_USER, DEFAULTS, weak=True), "port": Said(SSH_PORT, DEFAULTS, weak=True)}
        ssh = self.layers.data.get("ssh")
        if ssh is None:
            return facts, True
        if not isinstance(ssh, dict):
            self._wrong(("ssh",), "must be a mapping")
            return facts, True
        for key, value in ssh.items():
            path = ("ssh", key)
            place = self.layers.place(path)
            if key not in _SSH_KEYS and (meant := suggest(key, _SSH_KEYS)):
                self._wrong(path, f"is not a known key{meant}")
            elif value is None or value == "":
                if self.layers.unset(place):
                    self._wrong(path, "is empty")
            elif key in {"user", "port"}:
                self._keep(facts, key, self.reading.read(key, value, place, join(path)))
            elif key == "keys":
                self._keep(facts, "identity_files", self.reading.read("identity_files", value, place, join(path)))
            elif key in {"proxy", "proxy_command"} and ("proxy_jump" not in facts or key == "proxy"):
                self._keep(facts, "proxy_jump", self._proxy(key, value, place))
            elif key == "key_data":
                self.reading.notes.append(f"{place}: keys in `ssh.key_data` are not used; name files in `ssh.keys`")
            elif key == "config" and not isinstance(value, bool):
                self.reading.notes.append(f"{place}: `ssh.config` names a file; name it by --ssh-config, if it is to count")
        return facts, ssh.get("config") is not False

    def _proxy(self, key: str, value: Any, place: Place) -> Said | None:
        try:
            if key == "proxy_command":
                return Said(read(hops_of_command, value), place)
            return Said(tuple(replace(hop, user=hop.user or DEFAULT_USER) for hop in read_jumps(value)), place)
        except ValueError as exc:
            self.reading.wrong(value, exc, place, f"ssh.{key}")
            return None

    @staticmethod
    def _keep(facts: dict[str, Said], fact: str, said: Said | None) -> None:
        if said is not None:
            facts[fact] = said

    def _accessories(self) -> Iterator[tuple[str, Any]]:
        found = self.layers.data.get("accessories")
        if isinstance(found, dict):
            yield from found.items()
        elif found is not None:
            self._wrong(("accessories",), "must be a mapping of names to accessories")

    def _accessory(self, name: str, found: Any) -> None:
        path: FieldPath = ("accessories", name)
        if not isinstance(found, dict):
            self._wrong(path, "must be a mapping")
            return
        key = next((one for one in ("host", "hosts", "role", "roles", "tag", "tags") if one in found), None)
        if key is None:
            self._wrong(path, "names neither host, hosts, role, roles, tag nor tags")
            return
        value, at = found[key], (*path, key)
        if key in {"host", "hosts"}:
            for i, host in enumerate(value if isinstance(value, list) else [value]):
                self._host(host, (*at, i) if isinstance(value, list) else at, [name])
            return
        for group in value if isinstance(value, list) else [value]:
            members = [entry for entry in self.reading.entries.values() if group in entry.groups]
            if not members:
                self.reading.wrong(group, f"is no {key.removesuffix('s')} of a server", self.layers.place(at), join(at))
            for entry in members:
                self._group(entry, name, at)

    def _wrong(self, at: FieldPath, why: str, *, path: str | None = None) -> None:
        place = self.layers.place(at)
        self.reading.problems.append(Problem(join(at) if path is None else path, why, place.file, place.line))


def _merged(below: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in over.items():
        before = result.get(key)
        result[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return result


def _has(value: Any, path: FieldPath) -> bool:
    for part in path:
        if isinstance(part, int):
            if not isinstance(value, list) or part >= len(value):
                return False
        elif not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True
