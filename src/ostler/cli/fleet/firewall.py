"""`ostler fleet firewall`: the nodes' health ports for given networks alone."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from ostler.cli import exits, output
from ostler.cli.fleet import asking
from ostler.cli.fleet.options import (
    AcceptNewOption,
    AccessoriesOption,
    DestinationOption,
    GroupOption,
    HostOption,
    InventoryOption,
    KnownHostsOption,
    SshConfigOption,
    VerboseOption,
)
from ostler.cli.options import JsonOption
from ostler.model.errors import Conflict, OstlerError
from ostler.model.words import many

CONNECT_S = 3.0


def _network(text: str) -> Any:
    from ostler.fleet.firewall import network

    try:
        return network(text)
    except ValueError as exc:
        raise typer.BadParameter(f"{exc}; say it as 10.0.0.0/8, 192.0.2.7 or fd00::/8") from exc


def firewall(  # noqa: PLR0917 - the options of a command
    inventory: InventoryOption = None,
    dest: DestinationOption = None,
    accessories: AccessoriesOption = False,
    group: GroupOption = None,
    host: HostOption = None,
    ssh_config: SshConfigOption = None,
    known_hosts: KnownHostsOption = None,
    accept_new: AcceptNewOption = False,
    allow: Annotated[
        list[Any] | None,
        typer.Option("--allow", metavar="CIDR", parser=_network, help="Who gets through: a network; may be repeated."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the rules away again.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look, print the rules, change nothing.")] = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Let given networks alone reach the port of the nodes' health and metrics, now and after each boot.

    The rules stand in a table of nftables of their own (`inet ostler`), name that port and no other, and let the host itself through.
    Afterwards the port is tried from here: it must be open for this machine where its address is allowed, and closed where it is not.

    Exit code 0: it is so on all hosts; 1: not on some; 2: wrong usage; 3: refused as a
    whole, such as for a mistake in a file, and nothing was begun.
    """
    if bool(allow) == remove:
        raise typer.BadParameter("say either who gets through, or --remove", param_hint="'--allow'")
    hosts = asking.chosen(
        inventories=inventory, destination=dest, accessories=accessories, groups=group, hosts=host, ssh_config=ssh_config
    )
    hosts = {name: one for name, one in hosts.items() if one.paused is None}
    given = {
        "--inventory": inventory, "--dest": dest, "--accessories": accessories, "--ssh-config": ssh_config, "--known-hosts": known_hosts,
        "--host": host, "--accept-new": accept_new,
    }  # fmt: skip

    async def look(lines: Any, one: Any) -> Any:
        return await _step(lines, one, allow or [], given)

    async def act(lines: Any, one: Any) -> Any:
        from ostler.fleet.host_steps import answer

        step, door = planned[one.name]
        done = answer(await lines.run(one, step))
        return done | {"seen": None if door is None else await _seen_from_here(one, door, allow or [])}

    planned = asyncio.run(asking.on_each(hosts, look, given))
    ready = {name: one for name, one in hosts.items() if not isinstance(planned[name], OstlerError)}
    if dry_run:
        asking.show_steps({name: [planned[name][0]] for name in ready}, hosts, verbose=verbose)
        _show_rules({name: planned[name][1] for name in ready}, allow or [])
    else:
        what = "Take the rules for the health port away from" if remove else "Guard the health port of"
        asking.agree(f"{what} {many(len(ready), 'host')} ({', '.join(ready)})?", bool(ready) and not yes)
    done = {} if dry_run else asyncio.run(asking.on_each(ready, act, given, verbose=verbose))
    answers = {name: done.get(name, planned[name]) for name in hosts}
    failed = {name: asking.why(one) for name, one in answers.items() if isinstance(one, OstlerError)}
    if as_json and not dry_run:
        output.print_json(
            [{"host": name, "error": failed.get(name), **({} if name in failed else one)} for name, one in answers.items()]
        )
    else:
        for name, one in answers.items():
            if name in failed:
                output.note(output.clean(f"{name}: {failed[name]}"))
            elif not dry_run:
                what = ", ".join(one["changed"]) or "nothing had to be changed"
                output.say(output.clean(f"{name}: {what}" + (f"; {one['seen']}" if one["seen"] else "")))
    raise exits.Exit(exits.FAILED if failed else exits.GOOD)


async def _step(lines: Any, host: Any, allowed: list[Any], given: Mapping[str, Any]) -> tuple[Any, Any]:
    """What is to be done on a host, and its health port; none where rules are taken away. Raises Conflict where there is no node."""
    from ostler.fleet.again import line
    from ostler.fleet.firewall import door, rules
    from ostler.fleet.host_steps import HostSteps, read_facts

    steps = HostSteps()
    facts = read_facts(await lines.run(host, steps.facts([], with_config=True)))
    if facts.current is None or facts.config is None:
        raise Conflict("no daemon is installed there, whose health port it could be", hint=line("install", given, [host.name]))
    if not allowed:
        return steps.no_firewall(), None
    found = door(facts.config)
    return steps.firewall(found.port, ssh_port=host.port, rules=rules(found.port, allowed)), found


def _show_rules(doors: dict[str, Any], allowed: list[Any]) -> None:
    """Each text of rules once, with its hosts."""
    from ostler.fleet.firewall import rules

    for port in sorted({door.port for door in doors.values() if door is not None}):
        names = [name for name, door in doors.items() if door.port == port]
        output.say(f"\nthe rules for {', '.join(names)}:")
        output.say("".join(f"    {line}\n" for line in rules(port, allowed).expandtabs(4).splitlines()).rstrip())


async def _seen_from_here(host: Any, door: Any, allowed: list[Any]) -> str:
    """Whether the port is as it should be, seen from this machine. Raises Conflict where it is not."""
    from ostler.fleet.firewall import may_pass

    if host.proxy_jump:
        return f"not tried from here: it is behind {host.proxy_jump[-1]}"
    source, state = await _try(host.address, door.port)
    if source is None:
        return "not tried from here: there is no way to it but SSH's"
    if door.is_loopback:
        return "the daemon listens for its own host alone (health.listen)"
    passes = may_pass(source, allowed)
    if passes and state == "open":
        return f"open for {source}, as it should be"
    if not passes and state == "silent":
        return f"closed for {source}, as it should be"
    if state == "refused":
        raise Conflict(f"the rules are in force, but nobody listens on port {door.port}", hint="ostler fleet logs")
    should = "allowed, and does not get through: another firewall is in between" if passes else "not allowed, and gets through"
    raise Conflict(f"the rules are in force, but {source} is {should} to port {door.port}")


async def _try(address: str, port: int) -> tuple[str | None, str]:
    """The address of this machine as the host sees it, and what a connection met: `open`, `refused` or `silent`."""
    import socket

    try:
        family, _, _, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing: only the way is looked up
            source = str(probe.getsockname()[0])
    except OSError:
        return None, "silent"
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(address, port)
    except TimeoutError:
        return source, "silent"
    except OSError:
        return source, "refused"
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return source, "open"
