"""Ansible's inventories: groups and variables become facts about hosts, by Ansible's own precedence. No template is evaluated."""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ostler.fleet import names
from ostler.fleet.inventory.groups import Groups, way
from ostler.fleet.inventory.host import Place
from ostler.fleet.inventory.proxy import hops_of_command, options
from ostler.fleet.inventory.reading import Entry, Hop, Reading, Said, read, read_jumps, shown, text_of
from ostler.model.errors import Problem
from ostler.runtime.documents import Opaque, read_documents

ALL = "all"
BUILT_IN = frozenset({ALL, "ungrouped"})
OPAQUE = ("!vault", "!unsafe")
VAULT = "$ANSIBLE_VAULT;"

_FACTS = {  # of names for one fact the last that is set counts, as in Ansible
    "ansible_host": "address",
    "ansible_ssh_host": "address",
    "ansible_user": "user",
    "ansible_ssh_user": "user",
    "ansible_port": "port",
    "ansible_ssh_port": "port",
    "ansible_private_key_file": "identity_files",
    "ansible_ssh_private_key_file": "identity_files",
    "ostler_region": "region",
    "ostler_pool": "pool",
    "ostler_paused": "paused",
}
_ARGS = ("ansible_ssh_args", "ansible_ssh_common_args", "ansible_ssh_extra_args")
_SSH = frozenset({"ssh", "smart", "paramiko", "paramiko_ssh", "ansible.builtin.ssh", "ansible.builtin.paramiko_ssh"})
_SETTING = re.compile(r"\s*(\w+)(?:\s*=\s*|\s+)(.*)", re.DOTALL)  # of -o
_BRACKETS = re.compile(r"\[[^\[\]]*\]")  # a range, or an IPv6 address
_PRIORITY = "ansible_group_priority"
_SUFFIXES = ("", ".yml", ".yaml", ".json")


@dataclass(slots=True)
class Tree:
    """An inventory of Ansible as one of its forms was read; variables by the group or host that has them."""

    reading: Reading
    groups: Groups = field(default_factory=Groups)
    group_vars: dict[str, dict[str, Said]] = field(default_factory=dict)
    host_vars: dict[str, dict[str, Said]] = field(default_factory=dict)

    def group(self, name: Any, place: Place, path: str = "") -> str | None:
        """The name of a group, known from now on; a mistake is noted."""
        try:
            group: str = read(names.read_group, name)
        except ValueError as exc:
            self.reading.wrong(name, exc, place, path)
            return None
        self.groups.add(group)
        self.group_vars.setdefault(group, {})
        return group

    def hosts(self, pattern: Any, group: str, place: Place, path: str = "") -> list[str]:
        """The hosts of a pattern, `HOST[:PORT]` with ranges, known from now on and in the group."""
        port = None
        if isinstance(pattern, str):
            head, colon, tail = pattern.rpartition(":")
            if colon and tail.isdigit() and ":" not in _BRACKETS.sub("", head):
                pattern, port = head, tail
        found = self.reading.hosts(pattern, place, path)
        for name in found:
            self.reading.entry(name, place)
            held = self.host_vars.setdefault(name, {})
            if port is not None:
                held["ansible_port"] = Said(port, place)
            if group not in BUILT_IN:
                self.groups.join(group, name, place)
        return found

    def settle(self, file: Path, text_in: Callable[[Path], str | Problem]) -> Reading:
        """All facts: variables of the file and of `group_vars/` and `host_vars/` beside it."""
        for loop in self.groups.loops():
            self.reading.problems.append(Problem("", f"group {loop[0]} contains itself: {way(loop)}", str(file)))
        if self.reading.problems:
            return self.reading
        beside = _Beside(file.parent, text_in, self.reading)
        in_all = beside.vars("group_vars", ALL)
        in_groups = {group: beside.vars("group_vars", group) for group in self.group_vars if group != ALL}
        for name, entry in list(self.reading.entries.items()):
            entry.groups = self.groups.of(name)
            order = sorted(entry.groups, key=lambda group: (self.groups.depth(group), self._priority(group), group))
            merged: dict[str, Said] = dict(self.group_vars.get(ALL, {}))
            if not entry.groups:
                merged |= self.group_vars.get("ungrouped", {})
            for group in order:
                merged |= self.group_vars.get(group, {})
            merged |= in_all
            for group in order:
                merged |= in_groups.get(group, {})
            merged |= self.host_vars.get(name, {}) | beside.vars("host_vars", name)
            self._settle(entry, merged)
        return self.reading

    def _priority(self, group: str) -> int:
        said = self.group_vars.get(group, {}).get(_PRIORITY)
        try:
            return int(said.value) if said is not None else 1
        except (TypeError, ValueError):
            return 1

    def _settle(self, entry: Entry, merged: Mapping[str, Said]) -> None:
        connection = merged.get("ansible_connection")
        if connection is not None and connection.value not in _SSH:
            self.reading.notes.append(
                f"{entry.name} is left out: it is not reached over SSH (ansible_connection in {connection.place})"
            )
            del self.reading.entries[entry.name]
            return
        for name, fact in _FACTS.items():
            said = merged.get(name)
            if said is not None and self._is_plain(name, said):
                found = self.reading.read(fact, said.value, said.place, name)
                if found is not None:
                    entry.facts[fact] = found
        for name in _ARGS:
            if name in merged and self._is_plain(name, merged[name]):
                self._arguments(entry, name, merged[name])
        for name, said in merged.items():
            if not name.startswith(("ansible_", "ostler_")) and not isinstance(said.value, Opaque):
                entry.vars[name] = said

    def _is_plain(self, name: str, said: Said) -> bool:
        why = None
        if isinstance(said.value, Opaque):
            why = f"is encrypted or marked ({said.value.tag}); write it as it is"
        elif isinstance(said.value, str) and ("{{" in said.value or "{%" in said.value):
            why = f"is a template, {shown(said.value)}, and templates are not evaluated; write what it stands for"
        if why is not None:
            self.reading.problems.append(Problem(name, why, said.place.file, said.place.line))
        return why is None

    def _arguments(self, entry: Entry, name: str, said: Said) -> None:
        try:
            words = shlex.split(text_of(said.value))
            for option, value in options(words):
                setting = _SETTING.fullmatch(value) if option == "-o" else None
                key, rest = (setting[1], setting[2]) if setting else ("", "")
                hops: tuple[Hop, ...] | None = None
                if option == "-J" or key.lower() == "proxyjump":
                    hops = read_jumps(value if option == "-J" else rest)
                elif key.lower() == "proxycommand":
                    hops = () if rest.lower() == "none" else hops_of_command(rest)
                elif option == "-F":
                    self._note(f"{said.place}: -F in {name} does not count; name that file by --ssh-config")
                elif key.lower() in {"stricthostkeychecking", "userknownhostsfile"}:
                    self._note(
                        f"{said.place}: {key} in {name} does not count: keys of hosts are always verified, against known_hosts"
                    )
                elif option in {"-i", "-l", "-p"}:
                    raise ValueError(f"holds {option}; write it as a variable of its own (ansible_user, ansible_port …)")  # noqa: TRY301
                if hops is not None:
                    entry.facts["proxy_jump"] = Said(hops, said.place)
        except ValueError as exc:
            self.reading.wrong(said.value, exc, said.place, name)

    def _note(self, text: str) -> None:
        if text not in self.reading.notes:
            self.reading.notes.append(text)


@dataclass(slots=True)
class _Beside:
    """`group_vars/` and `host_vars/` beside an inventory: a file, or a folder of files, for each name."""

    folder: Path
    text_in: Callable[[Path], str | Problem]
    reading: Reading

    def vars(self, kind: str, name: str) -> dict[str, Said]:
        found: dict[str, Said] = {}
        for file in self._files(self.folder / kind, name):
            text = self.text_in(file)
            if isinstance(text, Problem):
                self.reading.problems.append(text)
            elif text.startswith(VAULT):
                self.reading.notes.append(f"{file} is encrypted by ansible-vault, and not read")
            else:
                found |= self._read(file, text)
        return found

    @staticmethod
    def _files(folder: Path, name: str) -> Iterable[Path]:
        for suffix in _SUFFIXES:
            path = folder / f"{name}{suffix}"
            if path.is_dir() and not suffix:
                yield from sorted(
                    one for one in path.rglob("*") if one.is_file() and one.suffix in _SUFFIXES and one.name[0] != "."
                )
            elif path.is_file():
                yield path

    def _read(self, file: Path, text: str) -> dict[str, Said]:
        documents, problems = read_documents(text, str(file), opaque=OPAQUE)
        self.reading.problems += problems
        if not documents:
            return {}
        if len(documents) > 1 or not isinstance(documents[0].value, dict):
            self.reading.problems.append(Problem("", "must be one mapping of variables", str(file), documents[0].line))
            return {}
        return {key: Said(value, Place(str(file), documents[0].line_of((key,)))) for key, value in documents[0].value.items()}
