"""Ansible's inventory in its INI form: sections of hosts, of groups inside (`:children`) and of variables (`:vars`)."""

import ast
import json
import re
import shlex
import warnings
from typing import Any

from ostler.fleet.inventory.ansible import ALL, BUILT_IN, Tree
from ostler.fleet.inventory.host import Place
from ostler.fleet.inventory.reading import Reading, Said

_SECTION = re.compile(r"\[([^:\]\s]+)(?::([a-z]+))?\]\s*(?:#.*)?")
_NO_SECTION = "is no section; there are [GROUP], [GROUP:children] and [GROUP:vars]"
_LONGEST_LITERAL = 1000


def read_ini(text: str, file: str) -> Tree:
    """What the file says; `settle` makes facts of it."""
    tree = Tree(Reading())
    _Reader(tree, file).run(text)
    return tree


class _Reader:
    def __init__(self, tree: Tree, file: str) -> None:
        self.tree, self.file = tree, file
        self.group: str | None = "ungrouped"
        self.kind = "hosts"
        self.defined: set[str] = set(BUILT_IN)
        self.mentioned: dict[str, Place] = {}

    def run(self, text: str) -> None:
        for number, raw in enumerate(text.split("\n"), 1):
            line, place = raw.strip(), Place(self.file, number)
            if not line or line[0] in "#;":
                continue
            try:
                if (section := _SECTION.fullmatch(line)) is not None:
                    self._section(section[1], section[2] or "hosts", place)
                elif line.startswith("[") and line.endswith("]"):
                    raise ValueError(_NO_SECTION)  # noqa: TRY301
                elif self.group is not None:
                    self._line(line, place)
            except ValueError as exc:
                self.tree.reading.wrong(line, exc, place)
        for name, place in self.mentioned.items():
            if name not in self.defined:
                self.tree.reading.wrong(name, f"is a group without a section of its own; write [{name}]", place)

    def _section(self, name: str, kind: str, place: Place) -> None:
        self.group, self.kind = self.tree.group(name, place), kind
        if kind not in {"hosts", "children", "vars"}:
            self.group = None
            raise ValueError(_NO_SECTION)
        if kind == "vars":
            self.mentioned.setdefault(name, place)
        else:
            self.defined.add(name)

    def _line(self, line: str, place: Place) -> None:
        group = self.group or ALL
        if self.kind == "vars":
            name, equals, value = line.partition("=")
            if not equals:
                raise ValueError("is no NAME=VALUE")
            self.tree.group_vars.setdefault(group, {})[name.strip()] = Said(_literal(name, value.strip()), place)
            return
        words = shlex.split(line, comments=True)
        if not words:
            return
        if self.kind == "children":
            child = self.tree.group(words[0], place)
            if child is not None:
                self.mentioned.setdefault(child, place)
                if group != ALL:
                    self.tree.groups.put(child, group)
            return
        found = self.tree.hosts(words[0], group, place)
        for word in words[1:]:
            name, equals, value = word.partition("=")
            if not equals or not name:
                self.tree.reading.wrong(word, "is no NAME=VALUE; a host stands alone or before its variables", place)
            for host in found if equals else ():
                self.tree.host_vars[host][name] = Said(_literal(name, value), place)


def _literal(name: str, text: str) -> Any:
    """A value as Ansible reads it: a Python literal where it is one that JSON can say, a text where not. Ours are texts."""
    if len(text) > _LONGEST_LITERAL:
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = json.loads(json.dumps(ast.literal_eval(text), allow_nan=False))
            return found if isinstance(found, str) or not name.strip().startswith(("ansible_", "ostler_")) else text
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def looks_like_ini(text: str) -> bool:
    """Whether the first line that says something is a section, or a host and no key of YAML."""
    first = next((line for raw in text.split("\n") if (line := raw.strip()) and line[0] not in "#;"), "")
    return not (first.startswith(("---", "{", "- ", "%YAML")) or re.fullmatch(r"""["']?[\w.-]+["']?:(\s.*)?""", first))
