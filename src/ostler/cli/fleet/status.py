"""`ostler fleet status`: how each host differs from what it should be, and the command that mends it."""

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
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
)
from ostler.cli.options import JsonOption
from ostler.model.errors import InvalidSpec, NotFound, OstlerError


def status(  # noqa: PLR0917 - the options of a command
    inventory: InventoryOption = None,
    dest: DestinationOption = None,
    accessories: AccessoriesOption = False,
    group: GroupOption = None,
    host: HostOption = None,
    ssh_config: SshConfigOption = None,
    known_hosts: KnownHostsOption = None,
    accept_new: AcceptNewOption = False,
    release: Annotated[
        str | None,
        typer.Option("--release", metavar="ID", help="What all hosts should have. Default: the newest that was built here."),
    ] = None,
    store: Annotated[Path | None, typer.Option("--store", metavar="DIR", help="Where the releases are.")] = None,
    coordinator: CoordinatorOption = None,
    keep_config: KeepConfigOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what differs on each host: release, daemon, units, configuration, programs of services, clock, locks.

    Configurations are compared with what the inventory makes of them, as an update would bring them; where no coordinator is named that
    the hosts reach, with what was put in force last. Each line names the command that mends it. Nothing is changed. Exit code 1 where
    anything differs.
    """
    hosts = asking.chosen(
        inventories=inventory, destination=dest, accessories=accessories, groups=group, hosts=host, ssh_config=ssh_config
    )
    wanted = _release(release, store)
    if wanted is not None:
        _tell_of_failure(wanted, newest=release is None)
    given = {
        "--inventory": inventory, "--dest": dest, "--accessories": accessories, "--ssh-config": ssh_config, "--known-hosts": known_hosts,
        "--accept-new": accept_new, "--host": host, "--store": store, "--coordinator": coordinator, "--release": release,
        "--keep-config": keep_config,
    }  # fmt: skip
    own = {} if keep_config else _own(hosts, coordinator)

    async def look(lines: Any, one: Any) -> Any:
        return await _look(lines, one, wanted, own.get(one.name), given)

    found = asyncio.run(asking.on_each(hosts, look, given))
    if as_json:
        output.print_json({"release": wanted, "hosts": {name: _plain(one) for name, one in found.items()}})
    else:
        rows = [row for name, one in found.items() for row in _rows(name, one)]
        output.table(output.columns("HOST|RELEASE?|FOUND+|MEND+?"), rows, empty="no hosts")
    raise exits.Exit(exits.FAILED if any(isinstance(one, OstlerError) or one[1] for one in found.values()) else exits.GOOD)


async def _look(lines: Any, host: Any, release: str | None, own: Any, given: dict[str, Any]) -> Any:
    from ostler.assembly.endpoint import look_for_endpoint
    from ostler.assembly.installing import allowlist_mistakes, known_as
    from ostler.assembly.rollouts import services
    from ostler.fleet.host_steps import HostSteps, read_facts
    from ostler.fleet.node_config import node_id_of
    from ostler.fleet.status import appraise, lacks_key

    asked_at = datetime.now(UTC)
    facts = read_facts(await lines.run(host, HostSteps().facts(services(host), with_config=True, thorough=True)))
    now, known = datetime.now(UTC), None
    if lacks_key(facts) and (endpoint := look_for_endpoint()) is not None:
        node_id = (facts.health or {}).get("node_id") or node_id_of(facts.config) or host.name
        known = await known_as(endpoint, str(node_id))
    found = appraise(
        host.name, facts, release=release, own=own, given=given, asked_at=asked_at, answered_at=now, known_as=known,
        mistakes=allowlist_mistakes(facts.entries),
    )  # fmt: skip
    return facts, found


def _own(hosts: dict[str, Any], coordinator: str | None) -> dict[str, Any]:
    """What the inventory makes for each host; nothing, with a word, where the coordinator's address for hosts is not known."""
    from ostler.assembly.installing import owns

    try:
        return owns(hosts, coordinator=coordinator)
    except InvalidSpec as exc:
        if exc.problems or coordinator is not None:
            raise
        output.note(f"note: configurations are compared with those put in force last: {exc.message}")
        return {}


def _release(name: str | None, store: Path | None) -> str | None:
    """The release that hosts are compared with; None where none was built here and none is named."""
    from ostler.assembly.releases import release_places
    from ostler.fleet.releases.store import ReleaseStore

    try:
        return ReleaseStore(release_places(os.environ, store=store).store).find(name).release
    except NotFound:
        if name is not None:
            raise
        return None


def _tell_of_failure(release: str, *, newest: bool) -> None:
    """Hosts are compared with a release that they may have gone back from."""
    from ostler.assembly import rollouts
    from ostler.fleet.rollout.journal import found_bad

    if (bad := found_bad(rollouts.journals(), release)) is not None:
        which = "is the newest that was built here, and was" if newest else "was"
        why = output.clean(bad.reason or "it went back")
        output.note(f"note: release {release} {which} found bad on {bad.host}: {why}; --release ID compares with another one")


def _rows(name: str, found: Any) -> list[tuple[object, ...]]:
    if isinstance(found, OstlerError):
        return [(name, None, asking.why(found), None)]
    facts, findings = found
    if not findings:
        return [(name, facts.current, "as it should be", None)]
    return [(name if first else "", facts.current if first else None, one.what, one.mend) for first, one in _first(findings)]


def _first(findings: list[Any]) -> list[tuple[bool, Any]]:
    return [(number == 0, one) for number, one in enumerate(findings)]


def _plain(found: Any) -> dict[str, Any]:
    import msgspec

    if isinstance(found, OstlerError):
        return {"error": asking.why(found)}
    facts, findings = found
    shown = {
        name: value for name, value in msgspec.to_builtins(facts).items() if name not in {"config", "entries"}
    }  # the first may hold a secret
    return {"facts": shown, "findings": [{"what": one.what, "mend": one.mend} for one in findings]}
