"""Options that say which hosts a command is about, the same for all commands of `ostler fleet`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ostler.cli.options import seconds

LEAST_WINDOW_S = 1.0
InventoryOption = Annotated[
    list[str] | None,
    typer.Option(
        "--inventory", "-i", metavar="FILE",
        help="An inventory of Ostler, Kamal, Ansible or SSH, or `HOST,HOST`; may be repeated. "
        "Default: $OSTLER_INVENTORY, ostler-fleet.yml, config/deploy.yml.",
    ),
]  # fmt: skip
DestinationOption = Annotated[
    str | None, typer.Option("--dest", "-d", metavar="NAME", help="Kamal's destination: deploy.NAME.yml, too.")
]
AccessoriesOption = Annotated[bool, typer.Option("--accessories", help="Hosts of Kamal's accessories, too.")]
GroupOption = Annotated[
    list[str] | None, typer.Option("--group", "-g", metavar="GROUP", help="Hosts of this group; may be repeated.")
]
HostOption = Annotated[
    list[str] | None,
    typer.Option("--host", "-H", metavar="HOST", help="This host, or `A,B`, or USER@HOST:PORT; may be repeated."),
]
SshConfigOption = Annotated[
    str | None, typer.Option("--ssh-config", "-F", metavar="FILE", help="In place of ~/.ssh/config; `none`: do not read any.")
]
AcceptNewOption = Annotated[
    bool,
    typer.Option(
        "--accept-new", help="Believe hosts that no known_hosts file names, and keep their keys; never one that changed."
    ),
]
CoordinatorOption = Annotated[
    str | None,
    typer.Option("--coordinator", metavar="URL", help="The coordinator as the hosts reach it. Default: as this machine does."),
]
KeepConfigOption = Annotated[
    bool, typer.Option("--keep-config", help="Leave out the hosts' configurations: they are written by another hand.")
]
KnownHostsOption = Annotated[
    Path | None, typer.Option("--known-hosts", metavar="FILE", help="In place of ~/.ssh/known_hosts and the system's.")
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print each command as it is executed, or with --dry-run as it would be.")
]


def window(text: str) -> float:
    """For how long a new release is watched: a duration of at least a second, as the coordinator's own rollouts have it; a usage error
    where it is less."""
    found = seconds(text)
    if found < LEAST_WINDOW_S:
        raise typer.BadParameter(f"{text!r} is too short: what is new is watched for at least {LEAST_WINDOW_S:g}s")
    return found


def share(text: str) -> Any:
    """`3` or `25%` of the hosts; a usage error where it is neither."""
    from ostler.model.errors import InvalidSpec
    from ostler.model.rollout.plan import Share

    try:
        return Share.parse(text)
    except InvalidSpec as exc:
        raise typer.BadParameter(exc.message) from exc


def some(text: str) -> Any:
    """The same, of at least one host."""
    found = share(text)
    if found.number < 1:
        raise typer.BadParameter("it must be at least 1 host, or 1%")
    return found
