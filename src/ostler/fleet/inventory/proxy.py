"""Ways to a host that were written as options or commands of `ssh`: read as hops where they are that, and never run. Pure."""

import shlex
from collections.abc import Iterator

from ostler.fleet import names
from ostler.fleet.inventory.reading import Hop, read_jumps

_FLAGS = frozenset("46AaCfGgKkMNnqsTtVvXxYy")  # options of `ssh` that have no value, and change nothing about the way
_FORWARD = {"%h:%p", "[%h]:%p"}
_ASIDE = frozenset({  # what may stand beside, in `-o`: nothing about the way either
    "batchmode", "connecttimeout", "controlmaster", "controlpath", "controlpersist", "forwardagent", "identitiesonly", "loglevel",
    "serveralivecountmax", "serveraliveinterval", "stricthostkeychecking", "userknownhostsfile",
})  # fmt: skip


def hops_of_command(text: str) -> tuple[Hop, ...]:
    """The hop of `ssh … -W %h:%p [USER@]HOST`; ValueError for any other command, whose message goes on from "it …"."""
    other = "is a command to run, which is not done; name the hosts on the way as ProxyJump (proxy_jump) instead"
    try:
        words = shlex.split(text)
    except ValueError:
        words = []
    if not words or words[0].rpartition("/")[2] != "ssh":
        raise ValueError(other)
    user = port = forward = target = None
    files: list[str] = []
    jump: tuple[Hop, ...] = ()
    for option, value in options(words[1:]):
        if option == "-W":
            forward = value
        elif option == "-l":
            user = names.read_user(value)
        elif option == "-p":
            port = names.read_port(value)
        elif option == "-i":
            files.append(names.read_path(value))
        elif option == "-J":
            jump = read_jumps(value)
        elif option == "" and target is None:
            target = value
        elif option != "-o" or value.partition("=")[0].lower() not in _ASIDE:
            raise ValueError(other)
    if target is None or forward not in _FORWARD:
        raise ValueError(other)
    found = read_jumps(target)[0]
    return (*jump, Hop(found.host, found.user or user, found.port or port, tuple(files)))


def options(words: list[str]) -> Iterator[tuple[str, str]]:
    """(`-x`, value) of each option of `ssh`, and ("", word) of what is none. Raises ValueError."""
    rest = iter(words)
    for word in rest:
        if not word.startswith("-") or word == "-":
            yield "", word
            continue
        flags = word[1:]
        while flags[:1] in _FLAGS and flags:
            flags = flags[1:]
        if flags:
            value = flags[1:] or next(rest, None)
            if value is None:
                raise ValueError(f"names the option -{flags} without a value")
            yield f"-{flags[0]}", value
