"""`ostler fleet prune`: room on hosts, by removing releases that nothing needs any more."""

import asyncio
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
from ostler.model.errors import OstlerError


def prune(  # noqa: PLR0917 - the options of a command
    inventory: InventoryOption = None,
    dest: DestinationOption = None,
    accessories: AccessoriesOption = False,
    group: GroupOption = None,
    host: HostOption = None,
    ssh_config: SshConfigOption = None,
    known_hosts: KnownHostsOption = None,
    accept_new: AcceptNewOption = False,
    keep: Annotated[int, typer.Option("--keep", metavar="N", min=1, help="So many of the newest stay in any case.")] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, change nothing.")] = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove old releases from hosts. The one in force, the one before it, and those that a process was started from always stay.

    Exit code 1 where it failed on any host.
    """
    from ostler.fleet.host_steps import HostSteps, answer

    hosts = asking.chosen(
        inventories=inventory, destination=dest, accessories=accessories, groups=group, hosts=host, ssh_config=ssh_config
    )
    step = HostSteps().prune(keep=keep)
    if dry_run:
        asking.show_steps(dict.fromkeys(hosts, (step,)), hosts, verbose=verbose)
        return
    given = {
        "--inventory": inventory, "--dest": dest, "--accessories": accessories, "--ssh-config": ssh_config, "--known-hosts": known_hosts,
        "--host": host, "--accept-new": accept_new,
    }  # fmt: skip

    async def act(lines: Any, one: Any) -> Any:
        return answer(await lines.run(one, step))

    answers = asyncio.run(asking.on_each(hosts, act, given, verbose=verbose))
    failed = {name: asking.why(said) for name, said in answers.items() if isinstance(said, OstlerError)}
    if as_json:
        output.print_json(
            [{"host": name, "error": failed.get(name), **({} if name in failed else said)} for name, said in answers.items()]
        )
    else:
        for name, said in answers.items():
            if name in failed:
                output.note(output.clean(f"{name}: {failed[name]}"))
            else:
                output.say(output.clean(f"{name}: removed {', '.join(said['removed']) or 'nothing'}"))
    raise exits.Exit(exits.FAILED if failed else exits.GOOD)
