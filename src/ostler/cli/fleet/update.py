"""`ostler fleet update`: a release onto all hosts, looked at first, agreed to, watched, and gone on with after an interruption."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import typer

from ostler.cli import exits, output
from ostler.cli.fleet import asking
from ostler.cli.fleet.options import (
    AcceptNewOption,
    AccessoriesOption,
    CoordinatorOption,
    DestinationOption,
    GroupOption,
    HostOption,
    InventoryOption,
    KeepConfigOption,
    KnownHostsOption,
    SshConfigOption,
    VerboseOption,
    share,
    some,
)
from ostler.cli.fleet.options import (
    window as at_least_1s,
)
from ostler.cli.options import JsonOption, seconds
from ostler.model.errors import NotFound
from ostler.model.words import many

_GO_ON = "`ostler fleet update --resume` goes on"


def update(  # noqa: PLR0917 - the options of a command
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
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look, print what would be done, change nothing.")] = False,
    canary: Annotated[
        int, typer.Option("--canary", metavar="N", min=0, help="So many hosts go first, and are watched for longer.")
    ] = 1,
    serial: Annotated[
        Any, typer.Option("--serial", metavar="N|P%", parser=some, help="At most so many hosts at once. Default: all.")
    ] = None,
    max_failures: Annotated[
        Any, typer.Option("--max-failures", metavar="N|P%", parser=share, help="With more failed hosts nothing new begins.")
    ] = "0",
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="S", parser=seconds, help="How long one host may be watched.")
    ] = "10m",  # type: ignore[assignment]
    window: Annotated[
        float,
        typer.Option(
            "--window",
            metavar="S",
            parser=at_least_1s,
            help="How long a host must be good, from 1s; the canary three times that.",
        ),
    ] = "15s",  # type: ignore[assignment]
    message: Annotated[str, typer.Option("--message", "-m", help="A word for the hosts' locks.")] = "update",
    coordinator: CoordinatorOption = None,
    keep_config: KeepConfigOption = False,
    no_coordinator: Annotated[
        bool, typer.Option("--no-coordinator", help="Do not ask the coordinator for the new version and a canary job.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the newest rollout that was interrupted, with what it was told then.")
    ] = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Bring a release to the hosts. All of them are looked at first; what would change is shown, and asked about.

    Binary, units and the configuration that the inventory makes for a host travel together. The canary goes first, and if it is good all
    others. Each host drains, switches, restarts, is watched for a while, and takes work again; its running jobs go on. What is no good
    there goes back by itself, also when this command, SSH and the coordinator are gone. Hosts that have everything already are left as
    they are.

    Exit code 0: all hosts are as they should be; 1: some are not, or in a dry run, could not be begun with; 2: wrong
    usage; 3: refused as a whole, such as for a mistake in a file or a coordinator that does not answer, and nothing was begun.
    """
    asked = SimpleNamespace(
        inventory=inventory or [], dest=dest, accessories=accessories, group=group or [], host=host or [], ssh_config=ssh_config,
        known_hosts=known_hosts, accept_new=accept_new, release=release, store=store, yes=yes, dry_run=dry_run, canary=canary,
        serial=serial, max_failures=max_failures, timeout=timedelta(seconds=timeout), window=timedelta(seconds=window),
        message=message, address=coordinator, keep_config=keep_config, coordinator=not no_coordinator, resume=resume,
        verbose=verbose, as_json=as_json,
    )  # fmt: skip
    raise exits.Exit(asyncio.run(_update(asked)))


async def _update(asked: SimpleNamespace) -> int:
    from ostler.assembly import rollouts
    from ostler.assembly.releases import release_places
    from ostler.cli.fleet import rollout_view as view
    from ostler.fleet.releases.store import ReleaseStore
    from ostler.fleet.rollout.journal import Journal

    async with contextlib.AsyncExitStack() as stack:
        journal, plan, progress = None, None, None
        if asked.resume:
            journal, plan, progress = _interrupted(asked)
            stack.callback(journal.close)
        hosts = asking.chosen(
            inventories=asked.inventory, destination=asked.dest, accessories=asked.accessories, groups=asked.group, hosts=asked.host,
            ssh_config=asked.ssh_config,
        )  # fmt: skip
        if plan is not None and (missing := [name for name in plan.hosts if name not in hosts]):
            raise NotFound(
                f"the inventory does not have {', '.join(missing)}, of rollout {plan.rollout_id}",
                hint="name the inventory of then: -i FILE",
            )
        if not (asked.resume or asked.dry_run):
            _tell_of_another(rollouts.journals())
        own = _own(asked, hosts)
        release = ReleaseStore(release_places(os.environ, store=asked.store).store).find(asked.release)
        if plan is None:
            plan = _plan(asked, rollouts.new_id(), release.release, hosts)
        told = asking.tell if asked.verbose else asking.silent
        rollout = await stack.enter_async_context(
            rollouts.opened(
                plan, release, hosts, own=own, trust=rollouts.trust(_given(asked)), message=asked.message, coordinator=asked.coordinator,
                told=told,
            )
        )  # fmt: skip
        left = [name for name in plan.hosts if name not in plan.excluded and (progress is None or progress[name].reason is None)]
        _, silence = await asyncio.gather(rollout.look(left), _unanswered(asked, own))
        if not asked.as_json:
            output.say(f"release {release.release} onto {many(len(plan.hosts), 'host')} (rollout {plan.rollout_id})")
            view.show_plan(plan, rollout.looked)
        if silence is not None:
            output.note(f"warning: the hosts are told of a coordinator that does not answer this machine: {silence}")
        if asked.dry_run:
            _show_steps(rollout, verbose=asked.verbose)
            unfit = [one for one in rollout.looked.values() if one.unfit]
            return exits.FAILED if unfit else exits.GOOD
        if journal is None:
            _agree(asked, rollout)
            extra = {"digest": release.manifest.digest, "given": _for_later(asked, has_own=bool(own))}
            journal = Journal.create(rollouts.journals(), plan, extra=extra)
            stack.callback(journal.close)
        with view.Progressing(plan, as_json=asked.as_json) as progressing, _saying_how_to_go_on():
            engine = await rollout.run(journal, progress=progress, heard=progressing.heard, waits=progressing.waits)
    again = view.to_retry(engine.progress)
    if asked.as_json:
        output.print_line(view.plain(engine.progress, engine.halted))
    else:
        retry = _retry(asked, again) if again else []
        view.summarise(engine.progress, details=progressing.details, halted=engine.halted, retry=retry)
    return exits.FAILED if again else exits.GOOD


def _interrupted(asked: SimpleNamespace) -> tuple[Any, Any, Any]:
    """The journal of the newest rollout that was interrupted, its plan, and how far its hosts are. What was not said now is as it was said
    then. Raises NotFound where there is none."""
    from ostler.assembly import rollouts
    from ostler.fleet.rollout.journal import Journal, unfinished

    rollout_id = unfinished(rollouts.journals())
    if rollout_id is None:
        raise NotFound("no rollout was interrupted", hint="ostler fleet update")
    journal, plan, progress, extra = Journal.resume(rollouts.journals(), rollout_id)
    then = extra.get("given", {})
    if asked.inventory:
        then = {name: value for name, value in then.items() if name not in {"dest", "accessories", "host"}}
    for name, value in then.items():
        if name == "coordinator":
            asked.coordinator = asked.coordinator and value
        elif not getattr(asked, name) or name == "message":
            setattr(asked, name, Path(value) if name in _PATHS and value is not None else value)
    asked.release = plan.release
    return journal, plan, progress


_PATHS = ("known_hosts", "store")


def _for_later(asked: SimpleNamespace, *, has_own: bool) -> dict[str, Any]:
    """What `--resume` must know beside the plan, from whatever directory; no secret is among it."""
    from ostler.assembly.endpoint import look_for_endpoint
    from ostler.assembly.fleet import NONE, absolute

    endpoint = look_for_endpoint() if has_own and asked.address is None else None
    config = asked.ssh_config
    return {
        "inventory": absolute(asked.inventory),
        "host": asked.host,
        "dest": asked.dest,
        "accessories": asked.accessories,
        "ssh_config": config if config in {None, NONE} else str(Path(config).absolute()),
        "accept_new": asked.accept_new,
        "address": asked.address if endpoint is None else endpoint.url,
        "keep_config": asked.keep_config,
        "coordinator": asked.coordinator,
        "message": asked.message,
        **{name: None if (path := getattr(asked, name)) is None else str(path.absolute()) for name in _PATHS},
    }


@contextlib.contextmanager
def _saying_how_to_go_on() -> Iterator[None]:
    """SIGTERM ends a rollout as Ctrl-C does."""
    terminated, loop, task = [], asyncio.get_running_loop(), asyncio.current_task()

    def terminate() -> None:
        terminated.append(True)
        if task is not None:
            task.cancel()

    main = threading.current_thread() is threading.main_thread()  # no other one may ask for signals
    if main:
        loop.add_signal_handler(signal.SIGTERM, terminate)
    try:
        yield
    except asyncio.CancelledError:
        output.note(f"interrupted: hosts that were under way are locked, and judge what they have by themselves; {_GO_ON}")
        if terminated:
            raise exits.Exit(exits.TERMINATED) from None
        raise
    finally:
        if main:
            loop.remove_signal_handler(signal.SIGTERM)


def _tell_of_another(journals: Path) -> None:
    """A rollout that has not come to its end, whoever has it."""
    from ostler.fleet.rollout.journal import under_way, unfinished

    other = unfinished(journals)
    if other is not None and under_way(journals, other):
        output.note(f"note: another process carries out the rollout {other}")
    elif other is not None:
        output.note(f"note: rollout {other} was interrupted; {_GO_ON}")


def _own(asked: SimpleNamespace, hosts: Mapping[str, Any]) -> dict[str, Any]:
    """What the inventory makes for each host; nothing where that is not wanted or cannot be known."""
    from ostler.assembly.installing import owns

    if asked.keep_config:
        return {}
    own = owns({name: one for name, one in hosts.items() if one.paused is None}, coordinator=asked.address)
    if not own:
        output.note(
            "note: the hosts keep their configurations: they are in no inventory, or no coordinator is named (--coordinator)"
        )
    return own


async def _unanswered(asked: SimpleNamespace, own: Mapping[str, Any]) -> str | None:
    """Why the coordinator that the hosts are told of does not answer here, where it was named for them alone."""
    from ostler.assembly.rollouts import unanswered

    return await unanswered(asked.address) if own and asked.address is not None else None


def _plan(asked: SimpleNamespace, rollout_id: str, release: str, hosts: Mapping[str, Any]) -> Any:
    from ostler.model.rollout.plan import Plan

    return Plan(
        rollout_id=rollout_id,
        release=release,
        hosts=tuple(hosts),
        excluded={name: f"paused: {one.paused}" for name, one in hosts.items() if one.paused},
        canary=asked.canary,
        serial=asked.serial,
        max_failures=asked.max_failures,
        window=asked.window,
        canary_window=3 * asked.window,
        timeout=asked.timeout,
    )


def _agree(asked: SimpleNamespace, rollout: Any) -> None:
    """Ask, unless nothing would change or it was agreed to before. Raises Conflict where it is not wanted."""
    changes = [name for name, one in rollout.looked.items() if one.verdict is not None and one.verdict.drift]
    asking.agree(f"Update {many(len(changes), 'host')}?", bool(changes) and not asked.yes)


def _show_steps(rollout: Any, *, verbose: bool) -> None:
    """What would be done on each host that is to be changed."""
    changed = [name for name, looked in rollout.looked.items() if looked.verdict is not None and looked.verdict.drift]
    asking.show_steps({name: rollout.steps(name) for name in changed}, rollout.hosts, verbose=verbose)


def _retry(asked: SimpleNamespace, hosts: list[str]) -> list[str]:
    """The command for the hosts that are left, to be pasted."""
    from ostler.fleet.again import words

    return words("update", _given(asked), hosts)


def _given(asked: SimpleNamespace) -> dict[str, Any]:
    return {
        "--inventory": asked.inventory, "--dest": asked.dest, "--accessories": asked.accessories, "--ssh-config": asked.ssh_config,
        "--known-hosts": asked.known_hosts, "--accept-new": asked.accept_new, "--store": asked.store, "--coordinator": asked.address,
        "--host": asked.host, "--release": asked.release, "--keep-config": asked.keep_config, "--no-coordinator": not asked.coordinator,
    }  # fmt: skip
