"""Inventories from files: which tool wrote one, and what it says."""

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ostler.fleet.inventory.ansible import OPAQUE
from ostler.fleet.inventory.ansible_ini import looks_like_ini, read_ini
from ostler.fleet.inventory.ansible_yaml import is_ansible, read_yaml
from ostler.fleet.inventory.host import Inventory
from ostler.fleet.inventory.kamal import is_kamal, read_kamal
from ostler.fleet.inventory.merge import merge
from ostler.fleet.inventory.own import read_own
from ostler.fleet.inventory.reading import Reading, listed
from ostler.fleet.inventory.ssh_config import SshConfig, read_ssh_config
from ostler.model.errors import Problem, Rejected
from ostler.runtime.documents import Document, read_documents

YAML = (".yml", ".yaml", ".json")
MAX_BYTES = 4 * 2**20
MAX_VALUES = 500_000
COMMAND_LINE = "--inventory"

_SSH = re.compile(r"^[ \t]*(?:Host|Match)[ \t]+[^=\s][^=\n]*$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What to read: paths, or lists of hosts (`a,b` as for Ansible: one alone ends with a comma). `destination` and `accessories` are
    for Kamal's files. `ssh_config` None: none is read."""

    inventories: Sequence[str]
    destination: str | None = None
    accessories: bool = False
    ssh_config: Path | None = None
    home: Path
    local_user: str
    env: Mapping[str, str] = field(default_factory=dict)


def load(sources: Sources) -> Inventory:
    """All inventories as one; raises InvalidSpec with every mistake in any of them."""
    ssh = _ssh_config(sources.ssh_config, sources) if sources.ssh_config else SshConfig(home=sources.home)
    readings = [read(text, sources) for text in sources.inventories]
    if sources.destination and not any(one.has_destinations for one in readings):
        raise Rejected(
            "--dest is for files of Kamal, and no inventory is one", hint="leave it out, or name config/deploy.yml by --inventory"
        )
    return merge(readings, ssh, sources.home)


def read(inventory: str, sources: Sources) -> Reading:
    """What one inventory says."""
    if "," in inventory and not Path(inventory).exists():
        return listed([one.strip() for one in inventory.split(",") if one.strip()], COMMAND_LINE)
    file = Path(inventory)
    text = text_in(file)
    if isinstance(text, Problem):
        return Reading(problems=[text])
    if _is_ssh_config(file, text):
        return _aliases(_ssh_config(file, sources))
    if is_kamal(file, text):
        return read_kamal(
            file, text, destination=sources.destination, accessories=sources.accessories, env=sources.env, text_in=text_in, most=MAX_VALUES,
        )  # fmt: skip
    if file.suffix not in YAML and looks_like_ini(text):
        return read_ini(text, str(file)).settle(file, text_in)
    documents, problems = read_documents(text, str(file), most=MAX_VALUES, opaque=OPAQUE)
    if problems:
        return Reading(problems=problems)
    return _read_document(documents, file)


def text_in(file: Path) -> str | Problem:
    """The text of a file that a person wrote, or what is wrong with the file."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would be waited for
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return Problem("", "is no regular file", str(file))
            content = stream.read(MAX_BYTES + 1)
    except IsADirectoryError:
        return Problem("", "is a folder; name its files, each by an --inventory", str(file))
    except OSError as exc:
        return Problem("", f"cannot be read: {exc.strerror or exc}", str(file))
    except ValueError as exc:
        return Problem("", f"cannot be read: {exc}", str(file))
    if len(content) > MAX_BYTES:
        return Problem("", f"is larger than {MAX_BYTES} bytes", str(file))
    if content.startswith(b"#!"):
        return Problem("", "is a program; inventories are read, never run: save what it prints and name that", str(file), 1)
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as exc:
        return Problem("", "is not UTF-8", str(file), content.count(b"\n", 0, exc.start) + 1)


def _read_document(documents: Sequence[Document], file: Path) -> Reading:
    if len(documents) != 1:
        problem = "is empty" if not documents else "holds several documents; an inventory is one"
        return Reading(problems=[Problem("", problem, str(file), documents[1].line if documents else None)])
    document = documents[0]
    if not isinstance(document.value, dict):
        playbook = isinstance(document.value, list) and any(isinstance(one, dict) and "hosts" in one for one in document.value)
        problem = "is a playbook, which names hosts of an inventory" if playbook else "must be a mapping, such as `hosts: {…}`"
        return Reading(problems=[Problem("", problem, str(file), document.line)])
    if not {"hosts", "groups"} & document.value.keys() and is_ansible(document.value):
        return read_yaml(document).settle(file, text_in)
    return read_own(document)


def _ssh_config(file: Path, sources: Sources) -> SshConfig:
    return read_ssh_config(file, home=sources.home, env=sources.env, local_user=sources.local_user, text_in=text_in)


def _is_ssh_config(file: Path, text: str) -> bool:
    return file.parent.name == ".ssh" or bool(file.suffix not in {*YAML, ".ini"} and _SSH.search(text))


def _aliases(config: SshConfig) -> Reading:
    """The hosts that a configuration of SSH names; the values come by looking them up in it."""
    reading = Reading(problems=config.problems)
    for alias, place in config.aliases.items():
        for name in reading.hosts(alias, place):
            entry = reading.entry(name, place)
            for fact, said in config.lookup(alias, None, None, reading).items():
                reading.say(entry, fact, said)
    return reading
