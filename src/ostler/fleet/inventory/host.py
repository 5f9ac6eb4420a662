"""The hosts of a fleet as everything else sees them: each with where its values came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DEFAULT = "default"
SSH_PORT = 22


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was said: a file and a line (1-based) of it, or what else said it."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Jump:
    """A host on the way to another one. `user` None: the local user's name."""

    address: str
    user: str | None = None
    port: int = SSH_PORT
    identity_files: tuple[str, ...] = ()

    def __str__(self) -> str:
        return target(self.user, self.address, self.port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One host that is reached over SSH.

    `name` is unique, `address` what to connect to (IPv6 without brackets), by way of `proxy_jump`, the first hop first. `user` None: the
    local user's name. `identity_files` are paths, tried in order; none: agent and defaults. `paused` says why the host is to be left
    alone. `origin` has for `name` and every field that something set the place that did; `vars.KEY` and `labels.KEY` have their own.
    """

    name: str
    address: str
    user: str | None = None
    port: int = SSH_PORT
    identity_files: tuple[str, ...] = ()
    proxy_jump: tuple[Jump, ...] = ()
    groups: tuple[str, ...] = ()
    vars: Mapping[str, Any] = field(default_factory=dict)
    region: str | None = None
    pool: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    paused: str | None = None
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """`[USER@]ADDRESS[:PORT]` for people."""
        return target(self.user, self.address, self.port)


@dataclass(frozen=True, slots=True)
class Inventory:
    """Hosts in the order in which they were first named, and what should be known about the files beside that."""

    hosts: tuple[Host, ...]
    notes: tuple[str, ...] = ()


def target(user: str | None, address: str, port: int) -> str:
    """`[USER@]ADDRESS[:PORT]`, the port where it is not 22, IPv6 in brackets where there is one."""
    shown = f"[{address}]:{port}" if ":" in address and port != SSH_PORT else address if port == SSH_PORT else f"{address}:{port}"
    return f"{user}@{shown}" if user else shown
