"""`ostler fleet hosts`: which hosts there are, and where each value came from."""

from typing import Any

from ostler.cli import output
from ostler.cli.fleet import asking
from ostler.cli.fleet.options import (
    AccessoriesOption,
    DestinationOption,
    GroupOption,
    HostOption,
    InventoryOption,
    SshConfigOption,
)
from ostler.cli.options import JsonOption


def hosts(  # noqa: PLR0917 - the options of a command
    inventory: InventoryOption = None,
    dest: DestinationOption = None,
    accessories: AccessoriesOption = False,
    group: GroupOption = None,
    host: HostOption = None,
    ssh_config: SshConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the hosts of the inventories, and where each came from. Nothing is connected to, and nothing in a file is run.

    What an inventory says of a host wins over SSH's configuration. Two inventories may add to each other; where they contradict
    each other, both places are named, and no host is listed.
    """
    found = asking.found(
        inventories=inventory, destination=dest, accessories=accessories, groups=group, hosts=host, ssh_config=ssh_config
    )
    if as_json:
        output.print_json(list(found.hosts))
        return
    columns = output.columns("HOST|ADDRESS~|USER?|PORT>|VIA?~|GROUPS~?|POOL?|REGION?|PAUSED?~|FROM+")
    output.table(columns, [_row(one) for one in found.hosts], empty="no hosts")


def _row(host: Any) -> tuple[object, ...]:
    return (
        host.name, host.address, host.user, host.port, ", ".join(map(str, host.proxy_jump)), ", ".join(host.groups), host.pool,
        host.region, host.paused, _origins(host),
    )  # fmt: skip


def _origins(host: Any) -> str:
    """The files that said something of the host, its name first."""
    places = [host.origin["name"], *(place for place in host.origin.values() if ":" in place)]
    files: dict[str, str] = {}
    for place in places:
        file = place.rpartition(":")[0] or place
        files.setdefault(file, place)
    return ", ".join(files.values())
