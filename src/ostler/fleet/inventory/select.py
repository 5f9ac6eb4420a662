"""Some of the hosts: by group, and by name as on the command line."""

from collections.abc import Sequence
from dataclasses import replace

from ostler.fleet.inventory.host import Host, Inventory
from ostler.fleet.inventory.reading import Entry, Reading, listed
from ostler.model.errors import NotFound
from ostler.runtime.settings import invalid
from ostler.runtime.shapes import suggest

COMMAND_LINE = "--host"
ALL = "all"


def select(inventory: Inventory, *, groups: Sequence[str] = (), hosts: Sequence[Entry] = ()) -> Inventory:
    """The hosts in any of `groups` that `hosts` name, where either is given; what `hosts` say of user and port wins.

    Raises NotFound for a group or a host that the inventory does not have, or if nothing is left.
    """
    known = {group for host in inventory.hosts for group in host.groups} | {ALL}
    for group in groups:
        if group not in known:
            raise NotFound(f"no host is in a group {group!r}{suggest(group, known)}", hint=f"groups: {', '.join(sorted(known))}")
    wanted = {entry.name: entry for entry in hosts}
    by_name = {host.name: host for host in inventory.hosts}
    for name in wanted:
        if name not in by_name:
            hint = "`ostler fleet hosts` lists them; a host of no inventory is named by `--inventory HOST,`"
            raise NotFound(f"the inventory has no host {name!r}{suggest(name, by_name)}", hint=hint)
    chosen = [
        _with(host, wanted.get(host.name))
        for host in inventory.hosts
        if (not groups or ALL in groups or set(groups) & set(host.groups)) and (not wanted or host.name in wanted)
    ]
    if not chosen and (groups or wanted):
        raise NotFound(f"none of the hosts named is in {', '.join(groups)}")
    return replace(inventory, hosts=tuple(chosen))


def read_hosts(texts: Sequence[str]) -> Reading:
    """`--host a,b` and `--host user@host:port`; raises InvalidSpec."""
    reading = listed([one.strip() for text in texts for one in text.split(",")], COMMAND_LINE)
    if reading.problems:
        raise invalid(COMMAND_LINE, reading.problems)
    return reading


def _with(host: Host, entry: Entry | None) -> Host:
    if entry is None or not entry.facts:
        return host
    facts = {fact: said.value for fact, said in entry.facts.items()}
    return replace(host, **facts, origin={**host.origin, **{fact: str(said.place) for fact, said in entry.facts.items()}})
