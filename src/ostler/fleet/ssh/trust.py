"""Whom to believe that it is the host: OpenSSH's own files of known host keys, read by asyncssh, added to by `ostler fleet trust`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

from ostler.model.errors import InvalidSpec, MachineUnreachable

SYSTEM = Path("/etc/ssh/ssh_known_hosts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Files of known host keys, hashed names included; a key that is new is appended to the first. `accept_new`: a host that no file names
    is believed the first time, and its key kept; a key that differs from a known one never is. `given` are options that a printed command
    says again, see `again`."""

    files: tuple[Path, ...]
    accept_new: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)

    def known(self) -> asyncssh.SSHKnownHosts:
        """All that the files say. Raises InvalidSpec where one cannot be read."""
        texts = []
        for file in self.files:
            try:
                texts.append(file.read_text())
            except FileNotFoundError:
                continue
            except (OSError, UnicodeDecodeError) as exc:
                raise InvalidSpec(f"{file} cannot be read: {exc}") from exc
        try:
            return asyncssh.import_known_hosts("\n".join(texts))
        except ValueError as exc:
            raise InvalidSpec(f"a line of {', '.join(map(str, self.files))} is no known host: {exc}") from exc

    def keys(self, address: str, port: int) -> tuple[list[asyncssh.SSHKey], list[asyncssh.SSHKey]]:
        """What is known for a host: its keys, and those that are revoked."""
        found = self.known().match(address, address if _is_ip(address) else "", port if port != asyncssh.DEFAULT_PORT else None)
        return list(found[0]), list(found[2])

    def keep(self, address: str, port: int, key: asyncssh.SSHKey) -> None:
        """Append a host's key to the first file, on the disk before this returns."""
        name = address if port == asyncssh.DEFAULT_PORT else f"[{address}]:{port}"
        line = f"{name} {key.export_public_key('openssh').decode().split(' #')[0].strip()}\n"
        file = self.files[0]
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with file.open("a+b") as end:
            if end.tell() and not _ends_with_newline(file):
                end.write(b"\n")
            end.write(line.encode())
            end.flush()
            os.fsync(end.fileno())


async def offered_key(address: str, port: int, *, via: asyncssh.SSHClientConnection | None = None) -> asyncssh.SSHKey:
    """The key that a host shows now. Raises MachineUnreachable."""
    try:
        key = await asyncssh.get_server_host_key(address, port, tunnel=via or (), config=None)
    except (OSError, asyncssh.Error) as exc:
        raise MachineUnreachable(f"{address}:{port} shows no host key: {exc}") from exc
    if key is None:
        raise MachineUnreachable(f"{address}:{port} shows no host key")
    return key


def fingerprints(keys: Sequence[asyncssh.SSHKey]) -> list[str]:
    """As `ssh-keygen -l` prints them: algorithm and SHA256."""
    return [f"{key.get_algorithm()} {key.get_fingerprint()}" for key in keys]


def _is_ip(address: str) -> bool:
    import ipaddress

    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def _ends_with_newline(file: Path) -> bool:
    with file.open("rb") as content:
        content.seek(-1, os.SEEK_END)
        return content.read(1) == b"\n"
