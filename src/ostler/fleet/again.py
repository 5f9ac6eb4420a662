"""A command that is printed for some hosts says again what the one before was told of them: it works where it is pasted."""

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from ostler.fleet.inventory.reading import listed

_REACH = ("--inventory", "--dest", "--accessories", "--ssh-config", "--known-hosts", "--accept-new")
_RELEASE = (*_REACH, "--store", "--coordinator", "--release")
KNOWN = {
    "install": (*_RELEASE, "--allowlist"),
    "update": (*_RELEASE, "--keep-config", "--no-coordinator"),
    "uninstall": (*_REACH, "--keep-state", "--keep-node", "--end-jobs"),
    "rotate-credentials": _REACH,
    "run": _REACH,
    "trust": ("--inventory", "--dest", "--accessories", "--ssh-config", "--known-hosts"),
    "logs": _REACH,
    "firewall": _REACH,
    "lock break": ("--inventory", "--ssh-config", "--known-hosts", "--accept-new"),
}
"""The options that each command takes over, in the order in which they are printed."""
_SHORT = {"--inventory": "-i"}


def words(command: str, given: Mapping[str, Any], hosts: Iterable[str]) -> list[str]:
    """`ostler fleet COMMAND` for these hosts, each as it was named by `--host`, where it was. `given` has values by option: text, a path, a
    list of them, a flag; None and False were not given, and what the command does not know is left out."""
    said = ["ostler", "fleet", *command.split()]
    for option in KNOWN[command]:
        value = given.get(option)
        if value is True:
            said.append(option)
        elif value is not None and value is not False:
            for one in value if isinstance(value, list | tuple) else (value,):
                said += [_SHORT.get(option, option), str(one)]
    typed = _as_typed(given.get("--host") or ())
    named = ",".join(typed.get(host, host) for host in hosts)
    return [*said, "--host", named] if named else said


def line(command: str, given: Mapping[str, Any], hosts: Iterable[str]) -> str:
    """The same for a shell."""
    return shlex.join(words(command, given, hosts))


def _as_typed(texts: Iterable[str]) -> dict[str, str]:
    """How hosts were named, by their names: `USER@HOST:PORT` says more than the name."""
    words = [one.strip() for text in texts for one in text.split(",")]
    return {name: word for word in words for name in listed([word], "--host").entries}
