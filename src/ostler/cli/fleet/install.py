"""`ostler fleet install` and `uninstall`: bare hosts become nodes under systemd, and bare hosts again."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
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

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Look, print what would be done, change nothing.")]
KeepStateOption = Annotated[
    bool, typer.Option("--keep-state", help="Leave user, key, journal and workspaces, for an installation that comes later.")
]
KeepNodeOption = Annotated[bool, typer.Option("--keep-node", help="The coordinator goes on knowing the nodes.")]
EndJobsOption = Annotated[
    bool, typer.Option("--end-jobs", help="End the jobs that run. Without it, a host that has any is refused.")
]


def install(  # noqa: PLR0917 - the options of a command
    inventory: InventoryOption = None,
    dest: DestinationOption = None,
    accessories: AccessoriesOption = False,
    group: GroupOption = None,
    host: HostOption = None,
    ssh_config: SshConfigOption = None,
    known_hosts: KnownHostsOption = None,
    accept_new: AcceptNewOption = False,
    release: Annotated[
        str | None, typer.Option("--release", metavar="ID", help="Its id or a beginning. Default: the newest.")
    ] = None,
    store: Annotated[Path | None, typer.Option("--store", metavar="DIR", help="Where the releases are.")] = None,
    coordinator: Annotated[
        str | None, typer.Option("--coordinator", metavar="URL", help="As the hosts reach it. Default: as this machine does.")
    ] = None,
    allowlist: Annotated[
        Path | None, typer.Option("--allowlist", metavar="DIR", help="What jobs may execute there: a folder of *.yaml.")
    ] = None,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make bare hosts nodes: release, user, directories, configuration, units, enrolment. On a node, what is not so is put right.

    The coordinator makes a join token for each host, good for one node and a quarter of an hour. It travels on standard input and is
    stored nowhere. A host is done when its daemon has proven that it can run a job and is in contact with the coordinator.

    Exit code 0: all hosts are nodes; 1: some are not; 2: wrong usage; 3: refused as a
    whole, such as for a mistake in a file, and nothing was begun.
    """
    from ostler.assembly import installing as bring
    from ostler.assembly.endpoint import find_endpoint
    from ostler.assembly.releases import release_places
    from ostler.fleet.again import line
    from ostler.fleet.installing import Installation
    from ostler.fleet.releases.store import ReleaseStore

    hosts = asking.chosen(
        inventories=inventory, destination=dest, accessories=accessories, groups=group, hosts=host, ssh_config=ssh_config
    )
    endpoint = find_endpoint()
    address = bring.address_for_hosts(endpoint, coordinator)
    chosen = ReleaseStore(release_places(os.environ, store=store).store).find(release)
    entries = bring.read_allowlist(allowlist)
    wanted = bring.wanted(chosen, token=None)
    own = {
        name: bring.own_of(one, coordinator=address, ca_file=endpoint.ca_file, allowlist=entries) for name, one in hosts.items()
    }

    def installation(lines: Any, one: Any) -> Any:
        mine = replace(wanted, token=lambda: bring.join_token(endpoint, one))
        return Installation(lambda step: lines.run(one, step), mine, own[one.name])

    async def look(lines: Any, one: Any) -> Any:
        return await installation(lines, one).look()

    async def act(lines: Any, one: Any) -> Any:
        return await installation(lines, one).carry_out(looked[one.name])

    left_alone = {name: one for name, one in hosts.items() if one.paused is not None}
    hosts = {name: one for name, one in hosts.items() if name not in left_alone}
    given = {
        "--inventory": inventory, "--dest": dest, "--accessories": accessories, "--ssh-config": ssh_config, "--known-hosts": known_hosts,
        "--host": host, "--accept-new": accept_new, "--store": store, "--coordinator": coordinator, "--release": release,
        "--allowlist": allowlist,
    }  # fmt: skip
    looked = asyncio.run(asking.on_each(hosts, look, given))
    wrong = {name: asking.why(one) if isinstance(one, OstlerError) else one.refusal for name, one in looked.items()}
    wrong = {name: why for name, why in wrong.items() if why is not None}
    ready = {name: one for name, one in hosts.items() if name not in wrong}
    if not as_json:
        output.say(f"release {chosen.release} onto {many(len(hosts), 'host')}, for the coordinator at {address}")
        for name, one in left_alone.items():
            output.say(f"{name}: paused: {output.clean(str(one.paused))}")
        for name in ready:
            output.say(f"{name}: {output.clean(_needs(looked[name]))}")
        for name, why in wrong.items():
            output.note(f"{name}: {output.clean(why)}")
    if dry_run:
        steps = {
            name: asyncio.run(installation(None, one).steps(looked[name], token=_placeholder if looked[name].enrol else None))
            for name, one in ready.items()
        }
        asking.show_steps(steps, hosts, verbose=verbose)
        raise exits.Exit(exits.FAILED if wrong else exits.GOOD)
    asking.agree(f"Install on {many(len(ready), 'host')}?", bool(ready) and not yes)
    answers = asyncio.run(asking.on_each(ready, act, given, verbose=verbose, words=not as_json))
    _summarise(answers, wrong, done="is a node", again=partial(line, "install", given), as_json=as_json)


def uninstall(  # noqa: PLR0917 - the options of a command
    inventory: InventoryOption = None,
    dest: DestinationOption = None,
    accessories: AccessoriesOption = False,
    group: GroupOption = None,
    host: HostOption = None,
    ssh_config: SshConfigOption = None,
    known_hosts: KnownHostsOption = None,
    accept_new: AcceptNewOption = False,
    keep_state: KeepStateOption = False,
    keep_node: KeepNodeOption = False,
    end_jobs: EndJobsOption = False,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Stop daemon and keeper on hosts and take back all that was installed; what stays (logs) is named.

    Then the coordinator retires their nodes, which makes the names free for other machines; not with `--keep-node`, or where the state,
    and with it the node's key, is kept.

    Exit code 0: all hosts are bare and retired; 1: some are not; 2: wrong usage; 3: refused as a
    whole, such as for a mistake in a file, and nothing was begun.
    """
    from ostler.assembly import installing as bring
    from ostler.assembly.endpoint import look_for_endpoint
    from ostler.fleet import installing
    from ostler.fleet.again import line
    from ostler.fleet.host_steps import HostSteps

    hosts = asking.chosen(
        inventories=inventory, destination=dest, accessories=accessories, groups=group, hosts=host, ssh_config=ssh_config
    )
    endpoint = None if keep_node or keep_state else look_for_endpoint()
    if endpoint is None and not (keep_node or keep_state):
        output.note("note: no coordinator is named that could retire the nodes; later: ostler node retire NODE")
    if dry_run:
        step = HostSteps().uninstall(keep_state=keep_state, end_jobs=end_jobs)
        asking.show_steps(dict.fromkeys(hosts, (step,)), hosts, verbose=verbose)
        if endpoint is not None:
            output.say(f"  then the coordinator at {endpoint.url} retires the nodes")
        return
    asking.agree(f"Uninstall Ostler from {many(len(hosts), 'host')} ({', '.join(hosts)})?", not yes)

    async def act(lines: Any, one: Any) -> Any:
        done = await installing.uninstall(lambda step: lines.run(one, step), keep_state=keep_state, end_jobs=end_jobs)
        node_id = str(done["node_id"] or one.name)
        try:
            return done | {"retired": endpoint is not None and await bring.retire(endpoint, node_id)}
        except OstlerError as exc:
            why = f"the host is bare, but the coordinator still knows node {node_id}: {asking.why(exc)}"
            raise Conflict(why, hint=f"later: ostler node retire {node_id}") from exc

    given = {
        "--inventory": inventory, "--dest": dest, "--accessories": accessories, "--ssh-config": ssh_config, "--known-hosts": known_hosts,
        "--host": host, "--accept-new": accept_new, "--keep-state": keep_state, "--keep-node": keep_node, "--end-jobs": end_jobs,
    }  # fmt: skip
    answers = asyncio.run(asking.on_each(hosts, act, given, verbose=verbose, words=not as_json))
    _summarise(answers, {}, done="has no Ostler any more", again=partial(line, "uninstall", given), as_json=as_json)


async def _placeholder() -> str:
    from ostler.fleet.installing import TOKEN

    return TOKEN


def _needs(looked: Any) -> str:
    parts = [*(["upload"] if looked.upload else []), *(["join"] if looked.enrol else []), "set up and start"]
    return f"{looked.facts.os}, {looked.facts.abi}-{looked.facts.arch}: {', '.join(parts)}"


def _summarise(
    answers: dict[str, Any], wrong: dict[str, str], *, done: str, again: Callable[[list[str]], str], as_json: bool
) -> None:
    failed = dict(wrong)
    for name, answer in answers.items():
        if isinstance(answer, OstlerError):
            failed[name] = asking.why(answer)
    if as_json:
        output.print_json(
            [{"host": name, "error": why, "details": asking.details(answers.get(name))} for name, why in failed.items()]
            + [{"host": name, "error": None, **answer} for name, answer in answers.items() if name not in failed]
        )
    else:
        for name, answer in answers.items():
            if name in failed:
                output.note(output.clean(f"{name}: {failed[name]}"))
                asking.tell_more(answer)
                continue
            what = ", ".join(answer.get("changed") or answer.get("removed") or ()) or "nothing had to be changed"
            if answer.get("retired"):
                what += ", node retired"
            left = f"; left: {', '.join(answer['left'])}" if answer.get("left") else ""
            output.say(output.clean(f"{name} {done} ({what}{left})"))
            for warning in answer.get("warnings") or ():
                output.note(output.clean(f"{name}: warning: {warning}"))
        if failed:
            output.note(
                f"{len(failed)} of {many(len(failed.keys() | answers.keys()), 'host')} failed; again: {again(list(failed))}"
            )
    raise exits.Exit(exits.FAILED if failed else exits.GOOD)
