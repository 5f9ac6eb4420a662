"""What the commands over SSH have in common: the hosts that were meant, and one thing done on all of them at once."""

import asyncio
import getpass
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import typer

from ostler.cli import output
from ostler.model.errors import Conflict, MachineUnreachable, NotFound, OstlerError, Rejected
from ostler.model.words import on_one_line


def chosen(
    *,
    inventories: list[str] | None = None,
    destination: str | None = None,
    accessories: bool = False,
    groups: list[str] | None = None,
    hosts: list[str] | None = None,
    ssh_config: str | None = None,
) -> dict[str, Any]:
    """The hosts of the inventories by name. Raises Rejected for a mistake in them; what they do not have is a usage error."""
    from ostler.assembly.fleet import Wanted, find_hosts

    wanted = Wanted(
        inventories=inventories or (), destination=destination, accessories=accessories, groups=groups or (), hosts=hosts or (),
        ssh_config=ssh_config,
    )  # fmt: skip
    try:
        found = find_hosts(wanted)
    except NotFound as exc:
        raise typer.BadParameter(f"{exc.message} ({exc.hint})" if exc.hint else exc.message) from exc
    for note in found.notes:
        output.note(f"note: {note}")
    if not found.hosts:
        raise Rejected("no hosts are left", hint="`ostler fleet hosts` shows those of the inventory")
    return {one.name: one for one in found.hosts}


async def on_each(
    hosts: Mapping[str, Any], act: Callable[[Any, Any], Awaitable[Any]], *, accept_new: bool, known_hosts: Path | None
) -> dict[str, Any]:
    """`act(lines, host)` on all hosts at once: its answer by name, or the error that ended it there. No host waits for another."""
    from ostler.assembly import rollouts
    from ostler.fleet.rollout.by_ssh import Lines

    trust = rollouts.trust(accept_new=accept_new, known_hosts=known_hosts)
    async with Lines(trust, local_user=getpass.getuser()) as lines:
        answers = await asyncio.gather(*(act(lines, host) for host in hosts.values()), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, OstlerError):
            raise answer
    return dict(zip(hosts, answers, strict=True))


def why(error: OstlerError) -> str:
    """One line of an error, with what to do."""
    message = on_one_line(error.message)
    said = message if error.hint is None else f"{message} ({error.hint})"
    return f"unreachable: {said}" if isinstance(error, MachineUnreachable) else said


def show_steps(host: Any, steps: list[Any]) -> None:
    """What would be executed on a host, in its order."""
    output.say(f"\n{host.name} ({host.target}):")
    for step in steps:
        shown = " ".join(step.shown(host.user or "").split())
        output.say(f"  {step.title}: {output.clean(shown if len(shown) < 400 else f'{shown[:120]} … {shown[-160:]}')}")


def agree(question: str, ask: bool) -> None:
    """Ask; raises where there is nobody to ask, or where it is not wanted."""
    if not ask:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("there is nobody to ask; say --yes, or --dry-run to look", param_hint="'--yes'")
    if not typer.confirm(question, err=True):
        raise Conflict("nothing was changed")
