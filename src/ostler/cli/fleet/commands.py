"""`ostler fleet run`, `logs`, `trust` and `lock`: small things done on many hosts, each with the same safety as an update."""

import asyncio
import sys
from datetime import timedelta
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
)
from ostler.cli.options import JsonOption, seconds
from ostler.model.errors import MachineUnreachable, OstlerError
from ostler.model.words import many

lock = typer.Typer(help="Look at hosts' deploy locks, and break one whose owner is gone.", no_args_is_help=True)

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def run(  # noqa: PLR0917 - the options of a command
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND [ARG]…", help="What to execute; no shell reads it.")],
    inventory: InventoryOption = None,
    dest: DestinationOption = None,
    accessories: AccessoriesOption = False,
    group: GroupOption = None,
    host: HostOption = None,
    ssh_config: SshConfigOption = None,
    known_hosts: KnownHostsOption = None,
    accept_new: AcceptNewOption = False,
    as_user: Annotated[bool, typer.Option("--no-sudo", help="As the user of the connection, not as root.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", metavar="S", parser=seconds, help="How long it may take.")] = "60s",  # type: ignore[assignment]
    yes: YesOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be executed.")] = False,
) -> None:
    """Execute a command on all hosts at once, as root. Its words arrive as they are: no shell takes them apart.

    Exit code 1 where it failed on any host.
    """
    from ostler.fleet.ssh.step import Step

    hosts = asking.chosen(
        inventories=inventory, destination=dest, accessories=accessories, groups=group, hosts=host, ssh_config=ssh_config
    )
    step = Step(
        title=command[0], argv=tuple(command), sudo=not as_user, timeout=timedelta(seconds=timeout), codes=tuple(range(256))
    )
    if dry_run:
        for name, one in hosts.items():
            output.say(f"{name}: {output.clean(step.shown(one.user or ''))}")
        return
    asking.agree(f"Execute this on {many(len(hosts), 'host')}?", len(hosts) > 1 and not yes)

    async def act(lines: Any, one: Any) -> Any:
        return await lines.run(one, step)

    given = {
        "--inventory": inventory, "--dest": dest, "--accessories": accessories, "--ssh-config": ssh_config, "--known-hosts": known_hosts,
        "--host": host, "--accept-new": accept_new,
    }  # fmt: skip
    answers = asyncio.run(asking.on_each(hosts, act, given))
    for name, answer in answers.items():
        if isinstance(answer, OstlerError):
            output.note(f"{name}: {asking.why(answer)}")
            continue
        for line in (answer.stdout + answer.stderr).decode(errors="replace").splitlines():
            output.say(f"{name}: {output.clean(line)}")
        if answer.code:
            output.note(f"{name}: exit code {answer.code}")
    bad = [name for name, answer in answers.items() if isinstance(answer, OstlerError) or answer.code]
    raise exits.Exit(exits.FAILED if bad else exits.GOOD)


def logs(  # noqa: PLR0917 - the options of a command
    inventory: InventoryOption = None,
    dest: DestinationOption = None,
    accessories: AccessoriesOption = False,
    group: GroupOption = None,
    host: HostOption = None,
    ssh_config: SshConfigOption = None,
    known_hosts: KnownHostsOption = None,
    accept_new: AcceptNewOption = False,
    lines_: Annotated[int, typer.Option("--lines", "-n", min=1, max=10_000, help="So many of each host.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come, until Ctrl-C.")] = False,
) -> None:
    """Show what the daemons' units wrote to the journal, each line with its host's name."""
    from ostler.fleet.rollout.preflight import NODE_UNIT
    from ostler.fleet.ssh.step import Step

    hosts = asking.chosen(
        inventories=inventory, destination=dest, accessories=accessories, groups=group, hosts=host, ssh_config=ssh_config
    )
    argv = ("journalctl", "--no-pager", "--quiet", "--output", "short-iso", "--lines", str(lines_), "--unit", NODE_UNIT)
    step = Step(
        title="read the journal",
        argv=(*argv, "--follow") if follow else argv,
        timeout=timedelta(days=1 if follow else 0, seconds=60),
    )

    async def act(lines: Any, one: Any) -> Any:
        async for line in lines.read(one, step):
            output.say(f"{one.name}: {output.clean(line)}")
            sys.stdout.flush()

    given = {
        "--inventory": inventory, "--dest": dest, "--accessories": accessories, "--ssh-config": ssh_config, "--known-hosts": known_hosts,
        "--host": host, "--accept-new": accept_new,
    }  # fmt: skip
    answers = asyncio.run(asking.on_each(hosts, act, given))
    wrong = {name: answer for name, answer in answers.items() if isinstance(answer, OstlerError)}
    for name, error in wrong.items():
        output.note(f"{name}: {asking.why(error)}")
    raise exits.Exit(exits.FAILED if wrong else exits.GOOD)


def trust(  # noqa: PLR0917 - the options of a command
    inventory: InventoryOption = None,
    dest: DestinationOption = None,
    accessories: AccessoriesOption = False,
    group: GroupOption = None,
    host: HostOption = None,
    ssh_config: SshConfigOption = None,
    known_hosts: KnownHostsOption = None,
    yes: YesOption = False,
) -> None:
    """Show the keys of hosts that are not known yet, and ask once whether to believe them.

    Compare the fingerprints with what `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints on the hosts. A key that differs
    from a known one is only shown, and exit code 1 says so: `ssh-keygen -R HOST` forgets the old one.
    """
    from ostler.assembly import rollouts

    hosts = asking.chosen(
        inventories=inventory, destination=dest, accessories=accessories, groups=group, hosts=host, ssh_config=ssh_config
    )
    believed = rollouts.trust({"--known-hosts": known_hosts})
    shown = asyncio.run(_offered(hosts))
    fresh: dict[str, Any] = {}
    rows: list[tuple[object, ...]] = []
    bad = False
    for name, one in hosts.items():
        key = shown[name]
        if isinstance(key, MachineUnreachable):
            bad = True
            rows.append((name, None, asking.why(key)))
            continue
        known, revoked = believed.keys(one.address, one.port)
        word = "known" if key in known else "REVOKED" if key in revoked else "NOT the known key" if known else "new"
        bad = bad or word not in ("known", "new")
        if word == "new":
            fresh[name] = key
        rows.append((name, f"{key.get_algorithm()} {key.get_fingerprint()}", word))
    output.table(output.columns("HOST|KEY?|IS+"), rows, empty="no hosts")
    if fresh:
        asking.agree(f"Believe {many(len(fresh), 'new key')}?", not yes)
        for name, key in fresh.items():
            believed.keep(hosts[name].address, hosts[name].port, key)
        output.say(f"{many(len(fresh), 'key')} {'was' if len(fresh) == 1 else 'were'} added to {believed.files[0]}")
    raise exits.Exit(exits.FAILED if bad else exits.GOOD)


@lock.command("status")
def lock_status(  # noqa: PLR0917 - the options of a command
    inventory: InventoryOption = None,
    group: GroupOption = None,
    host: HostOption = None,
    ssh_config: SshConfigOption = None,
    known_hosts: KnownHostsOption = None,
    accept_new: AcceptNewOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show who deploys to which hosts, since when, and when they were last heard of."""
    from ostler.fleet.host_steps import HostSteps, read_facts

    steps = HostSteps()
    hosts = asking.chosen(inventories=inventory, groups=group, hosts=host, ssh_config=ssh_config)

    async def look(lines: Any, one: Any) -> Any:
        return read_facts(await lines.run(one, steps.facts([])))

    given = {
        "--inventory": inventory,
        "--ssh-config": ssh_config,
        "--known-hosts": known_hosts,
        "--host": host,
        "--accept-new": accept_new,
    }
    answers = asyncio.run(asking.on_each(hosts, look, given))
    rows: list[tuple[object, ...]] = []
    for name, facts in answers.items():
        if isinstance(facts, OstlerError):
            rows.append((name, None, None, None, asking.why(facts)))
        elif facts.lock is not None:
            held = facts.lock
            rows.append(
                (name, held.owner, output.span(facts.now - held.taken_at), output.span(facts.now - held.beat_at), held.message)
            )
    if as_json:
        output.print_json([dict(zip(("host", "owner", "age", "silent", "message"), row, strict=True)) for row in rows])
        return
    output.table(output.columns("HOST|OWNER?|AGE>?|SILENT>?|MESSAGE+?"), rows, empty="no host is locked")


@lock.command("break")
def lock_break(  # noqa: PLR0917 - the options of a command
    why: Annotated[str, typer.Option("--why", help="For whoever finds their lock gone.")],
    host: HostOption = None,
    inventory: InventoryOption = None,
    ssh_config: SshConfigOption = None,
    known_hosts: KnownHostsOption = None,
    accept_new: AcceptNewOption = False,
    yes: YesOption = False,
) -> None:
    """Remove hosts' locks, whosever they are. The rollout that held one stops at its next step there."""
    from ostler.assembly import rollouts
    from ostler.fleet.host_steps import HostSteps, answer

    if not host:
        raise typer.BadParameter("say which hosts", param_hint="'--host'")
    hosts = asking.chosen(inventories=inventory, hosts=host, ssh_config=ssh_config)
    asking.agree(f"Break the locks of {', '.join(hosts)}?", not yes)
    step = HostSteps().ask("break the lock", "break-lock", "--why", why, "--owner", rollouts.owner())

    async def act(lines: Any, one: Any) -> Any:
        return answer(await lines.run(one, step))

    given = {
        "--inventory": inventory,
        "--ssh-config": ssh_config,
        "--known-hosts": known_hosts,
        "--host": host,
        "--accept-new": accept_new,
    }
    answers = asyncio.run(asking.on_each(hosts, act, given))
    for name, said in answers.items():
        if isinstance(said, OstlerError):
            output.note(f"{name}: {asking.why(said)}")
        else:
            held = said["broken"]
            output.say(f"{name}: " + (f"the lock of {held['owner']} ({held['message']}) is broken" if held else "was not locked"))
    raise exits.Exit(exits.FAILED if any(isinstance(said, OstlerError) for said in answers.values()) else exits.GOOD)


async def _offered(hosts: dict[str, Any]) -> dict[str, Any]:
    from ostler.fleet.ssh.trust import offered_key

    async def key(one: Any) -> Any:
        if one.proxy_jump:
            raise MachineUnreachable(
                f"{one.name} is behind {one.proxy_jump[-1]}: `--accept-new` with another command takes its key"
            )
        return await offered_key(one.address, one.port)

    answers = await asyncio.gather(*(key(one) for one in hosts.values()), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, MachineUnreachable):
            raise answer
    return dict(zip(hosts, answers, strict=True))
