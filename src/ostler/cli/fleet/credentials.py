"""`ostler fleet rotate-credentials`: new keys for the nodes of hosts, with overlap."""

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
from ostler.cli.options import JsonOption, seconds
from ostler.model.errors import OstlerError
from ostler.model.words import many


def rotate_credentials(  # noqa: PLR0917 - the options of a command
    inventory: InventoryOption = None,
    dest: DestinationOption = None,
    accessories: AccessoriesOption = False,
    group: GroupOption = None,
    host: HostOption = None,
    ssh_config: SshConfigOption = None,
    known_hosts: KnownHostsOption = None,
    accept_new: AcceptNewOption = False,
    wait: Annotated[
        float, typer.Option("--wait", metavar="S", parser=seconds, help="How long a daemon may take to open a session.")
    ] = "60s",  # type: ignore[assignment]
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, change nothing.")] = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Give the nodes of hosts new keys. Each is made on its host, never leaves it, and is signed for by the one before.

    The daemon is started anew with it; running jobs go on. The one before stays good until a session was opened with the new one, so
    whatever is cut off leaves a node that is let in; the same command goes on from there. Tokens of people are for
    `ostler token create` and `ostler token revoke`.

    Exit code 0: all nodes have new keys; 1: some have not; 2: wrong usage; 3: refused as a
    whole, such as for a mistake in a file, and nothing was begun.
    """
    from ostler.fleet.again import line
    from ostler.fleet.host_steps import HostSteps, answer

    hosts = asking.chosen(
        inventories=inventory, destination=dest, accessories=accessories, groups=group, hosts=host, ssh_config=ssh_config
    )
    for name, one in hosts.items():
        if one.paused is not None:
            output.note(output.clean(f"{name}: left out, paused: {one.paused}"))
    hosts = {name: one for name, one in hosts.items() if one.paused is None}
    step = HostSteps().rotate_key(wait_s=wait)
    if dry_run:
        asking.show_steps(dict.fromkeys(hosts, (step,)), hosts, verbose=verbose)
        return
    asking.agree(f"Give {many(len(hosts), 'node')} new keys ({', '.join(hosts)})?", bool(hosts) and not yes)

    async def act(lines: Any, one: Any) -> Any:
        return answer(await lines.run(one, step))

    given = {
        "--inventory": inventory, "--dest": dest, "--accessories": accessories, "--ssh-config": ssh_config, "--known-hosts": known_hosts,
        "--host": host, "--accept-new": accept_new,
    }  # fmt: skip
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
                asking.tell_more(said)
            else:
                output.say(
                    output.clean(f"{name}: node {said['node_id']} has the key {said['key_id']}, no longer {said['previous']}")
                )
        if failed:
            output.note(f"{len(failed)} of {len(answers)} failed; again: {line('rotate-credentials', given, failed)}")
    raise exits.Exit(exits.FAILED if failed else exits.GOOD)
