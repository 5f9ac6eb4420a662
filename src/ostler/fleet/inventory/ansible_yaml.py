"""Ansible's inventory in its YAML form, and what `ansible-inventory --list` and programs of inventories print."""

from collections.abc import Mapping, Sequence
from typing import Any

from ostler.fleet.inventory.ansible import ALL, BUILT_IN, Tree
from ostler.fleet.inventory.host import Place
from ostler.fleet.inventory.reading import Reading, Said
from ostler.model.errors import Problem
from ostler.runtime.documents import Document, join
from ostler.runtime.shapes import FieldPath, suggest

META = "_meta"
_KEYS = ("hosts", "vars", "children")


def is_ansible(data: Mapping[str, Any]) -> bool:
    """Whether a mapping is such an inventory: groups by name, each with hosts, vars or children."""
    groups = [one for name, one in data.items() if name != META]
    return META in data or ALL in data or any(isinstance(one, dict) and any(key in one for key in _KEYS) for one in groups)


def read_yaml(document: Document) -> Tree:
    """What the file says; `settle` makes facts of it."""
    tree = Tree(Reading())
    reader = _Reader(tree, document)
    for name, group in document.value.items():
        if name == META:
            reader.meta(group)
        else:
            reader.group(name, group, None, (name,))
    return tree


class _Reader:
    def __init__(self, tree: Tree, document: Document) -> None:
        self.tree, self.document = tree, document

    def group(self, name: str, found: Any, parent: str | None, path: FieldPath) -> None:
        group = self.tree.group(name, self._place(path), join(path))
        if group is None:
            return
        if parent is not None and parent != ALL and group not in BUILT_IN:
            self.tree.groups.put(group, parent)
        if isinstance(found, list):  # a program's short form
            found = {"hosts": found}
        if found is None:
            return
        if not isinstance(found, dict):
            self._wrong(path, f"must be a group with {', '.join(_KEYS)}")
            return
        for key, value in found.items():
            at = (*path, key)
            if key == "hosts":
                self._hosts(value, group, at)
            elif key == "vars":
                self._vars(value, self.tree.group_vars.setdefault(group, {}), at)
            elif key == "children":
                self._children(value, group, at)
            else:
                self._wrong(at, f"is not a key of a group{suggest(key, _KEYS) or '; known: ' + ', '.join(_KEYS)}")

    def meta(self, found: Any) -> None:
        """`_meta: {hostvars: {HOST: {…}}}`."""
        hosts = found.get("hostvars") if isinstance(found, dict) else None
        for name, values in (hosts if isinstance(hosts, dict) else {}).items():
            path = (META, "hostvars", name)
            for host in self.tree.reading.hosts(name, self._place(path), join(path)):
                self._vars(values, self.tree.host_vars.setdefault(host, {}), path)

    def _hosts(self, found: Any, group: str, path: FieldPath) -> None:
        if isinstance(found, str):
            found = [found]
        if isinstance(found, list):
            for i, pattern in enumerate(found):
                self.tree.hosts(pattern, group, self._place((*path, i)), join((*path, i)))
        elif isinstance(found, dict):
            for pattern, values in found.items():
                at = (*path, pattern)
                for name in self.tree.hosts(pattern, group, self._place(at), join(at)):
                    self._vars(values, self.tree.host_vars[name], at)
        elif found is not None:
            self._wrong(path, "must be a mapping of hosts to their variables, such as `mini-1:`")

    def _children(self, found: Any, group: str, path: FieldPath) -> None:
        if isinstance(found, dict):
            for name, child in found.items():
                self.group(name, child, group, (*path, name))
        elif isinstance(found, list):
            for i, name in enumerate(found):
                self.group(name, None, group, (*path, i))
        elif found is not None:
            self._wrong(path, "must be a mapping of groups")

    def _vars(self, found: Any, held: dict[str, Said], path: FieldPath) -> None:
        if isinstance(found, dict):
            for name, value in found.items():
                held[name] = Said(value, self._place((*path, name)))
        elif found is not None:
            self._wrong(path, "must be a mapping of variables")

    def _place(self, path: Sequence[str | int]) -> Place:
        return Place(self.document.file, self.document.line_of(tuple(path)))

    def _wrong(self, path: FieldPath, why: str) -> None:
        place = self._place(path)
        self.tree.reading.problems.append(Problem(join(path), why, place.file, place.line))
