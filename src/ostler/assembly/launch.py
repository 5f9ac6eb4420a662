"""How a command line becomes a daemon: checked here, then replaced by a process that knows nothing but its work."""

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from ostler.assembly import handover
from ostler.assembly.resolve import checked_node, parse_listen, resolve_node
from ostler.model.errors import InvalidSpec, Problem
from ostler.runtime.settings import Flag

COORDINATOR = "ostler.assembly.coordinator"
NODE = "ostler.assembly.node"
KEEPER = "ostler.node.keeper"


def daemon_command(module: str, descriptor: int, *more: str) -> list[str]:
    """The argument list of a daemon; -P, or whatever lies in the working directory could stand in for a module."""
    return [sys.executable, "-P", "-m", module, "--config-fd", str(descriptor), *more]


def listen_flags(listen: str | None) -> dict[str, Flag]:
    """`--listen HOST:PORT` as settings; raises InvalidSpec."""
    if listen is None:
        return {}
    address = parse_listen(listen)
    if address is None:
        raise InvalidSpec(
            "the address is not valid", [Problem("--listen", f"{listen!r} is not HOST:PORT, such as 127.0.0.1:7070")]
        )
    return {"listen_host": Flag(name="--listen", value=address[0]), "listen_port": Flag(name="--listen", value=address[1])}


def become_node(file: Path, *, await_keeper: bool = False) -> NoReturn:
    """Replace this process by the node daemon."""
    file = file.absolute()
    more = ("--await-keeper",) if await_keeper else ()
    _become(NODE, checked_node(file, env=os.environ), "--config-file", str(file), *more)


def become_keeper(file: Path) -> NoReturn:
    """Replace this process by the keeper of this configuration's node. What a job must not see is not in its environment."""
    from ostler.node.keeper_client import (
        KEEPER_ENVIRONMENT,
        SOCKET,
        STATE,
    )  # brings asyncio, which a daemon's first step needs not

    config = resolve_node(file.absolute(), env=os.environ, need_secrets=False).value
    state = config.state
    command = [sys.executable, "-P", "-m", KEEPER, "--socket", str(state / SOCKET), "--state", str(state / STATE)]
    os.execve(sys.executable, command, KEEPER_ENVIRONMENT)  # noqa: S606 - the same program, an argument list


def store_flags(store: str | None) -> dict[str, Flag]:
    """`--store` as a setting; raises InvalidSpec where a password stands in it, which every user of the machine can read."""
    from ostler.coordinator.config import refuse_password  # hosts that run a node alone need none of it

    refuse_password(store)
    return {} if store is None else {"store": Flag(name="--store", value=store)}


def become_coordinator(data: Path | None, listen: str | None, file: Path | None, store: str | None = None) -> NoReturn:
    """Replace this process by the coordinator."""
    from ostler.assembly.resolve_coordinator import resolve_coordinator

    flags = listen_flags(listen) | store_flags(store)
    if data is not None:
        flags["data"] = Flag(name="--data", value=str(data.absolute()))
    _become(COORDINATOR, resolve_coordinator(file, env=os.environ, flags=flags).value)


def _become(module: str, config: Any, *more: str) -> NoReturn:
    descriptor = handover.put(config)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, daemon_command(module, descriptor, *more))  # noqa: S606 - the same program, an argument list
