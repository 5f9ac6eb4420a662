"""What the commands over SSH have in common: the hosts that were meant, and one thing done on all of them at once."""

import asyncio
import getpass
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import typer

from ostler.cli import output
from ostler.model.errors import Conflict, MachineUnreachable, NotFound, OstlerError, Rejected
from ostler.model.words import on_one_line


def chosen(**named: Any) -> dict[str, Any]:
    """The hosts that `found` finds, by name. Raises Rejected where there are none."""
    hosts = found(**named).hosts
    if not hosts:
        raise Rejected("no hosts are left", hint="`ostler fleet hosts` shows those of the inventory")
    return {one.name: one for one in hosts}


def found(
    *,
    inventories: list[str] | None = None,
    destination: str | None = None,
    accessories: bool = False,
    groups: list[str] | None = None,
    hosts: list[str] | None = None,
    ssh_config: str | None = None,
) -> Any:
    """What the inventories say, with notes printed. Raises Rejected for a mistake in them; what they do not have is a usage error."""
    from ostler.assembly.fleet import Wanted, find_hosts

    wanted = Wanted(
        inventories=inventories or (), destination=destination, accessories=accessories, groups=groups or (), hosts=hosts or (),
        ssh_config=ssh_config,
    )  # fmt: skip
    try:
        inventory = find_hosts(wanted)
    except NotFound as exc:
        raise typer.BadParameter(f"{exc.message} ({exc.hint})" if exc.hint else exc.message) from exc
    for note in inventory.notes:
        output.note(f"note: {note}")
    return inventory


async def on_each(
    hosts: Mapping[str, Any],
    act: Callable[[Any, Any], Awaitable[Any]],
    given: Mapping[str, Any],
    *,
    verbose: bool = False,
    words: bool = False,
) -> dict[str, Any]:
    """`act(lines, host)` on all hosts at once: its answer by name, or the error that ended it there. No host waits for another. `given`
    are the options of the command. Each step is told as it is carried out, with `verbose` as it is executed, with `words` in words."""
    from ostler.assembly import rollouts
    from ostler.fleet.rollout.by_ssh import Lines

    async with Lines(
        rollouts.trust(given), local_user=getpass.getuser(), told=tell if verbose else tell_shortly if words else silent
    ) as lines:
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


def details(error: object) -> str | None:
    """What a host said beside why it does not do something, such as a unit's last words; None where there is nothing."""
    return getattr(error, "details", None) or None


def tell_more(error: object) -> None:
    """The same, line by line."""
    for line in (details(error) or "").splitlines():
        output.note(f"  {line}")


def tell(host: Any, user: str, step: Any) -> None:
    """A step that is carried out."""
    output.note(f"+ {host.name}: {step.title}: {output.clean(step.shown(user))}")


def tell_shortly(host: Any, _user: str, step: Any) -> None:
    """The same for a person who waits."""
    output.note(f"{host.name}: {step.title}")


def silent(*_: object) -> None:
    """The same for whoever does not want to hear of it."""


def show_steps(steps: Mapping[str, Sequence[Any]], hosts: Mapping[str, Any], *, verbose: bool) -> None:
    """What would be done: each kind of step once, in words, with its hosts; with `verbose` each host's commands, as they would be
    executed."""
    if verbose:
        for name, own in steps.items():
            output.say(f"\n{name} ({hosts[name].target}):")
            for step in own:
                output.say(f"  # {step.title}")
                output.say(f"  {output.clean(step.shown(hosts[name].user or ''))}")
        return
    kinds: dict[tuple[str, str], list[str]] = {}
    for own in sorted(steps.values(), key=len, reverse=True):  # the longest list has the others' order
        kinds |= {(step.title, step.does): [] for step in own if (step.title, step.does) not in kinds}
    for name, own in steps.items():
        for step in own:
            kinds[step.title, step.does].append(name)
    if kinds:
        output.say("\nto be done, in this order (each command as it would be executed: --dry-run --verbose):")
    for number, ((title, does), names) in enumerate(kinds.items(), 1):
        output.say(f"  {number}. {title}{f': {does}' if does else ''}")
        if len(names) < len(steps):
            output.say(f"     on {', '.join(names)} alone")


def agree(question: str, ask: bool) -> None:
    """Ask; raises where there is nobody to ask, or where it is not wanted."""
    if not ask:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("there is nobody to ask; say --yes", param_hint="'--yes'")
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # an event loop's own would only note it, and wait for the answer
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort:
        agreed = False
    finally:
        signal.signal(signal.SIGINT, before)
    if not agreed:
        raise Conflict("nothing was changed")
