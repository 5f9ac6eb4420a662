"""Who may reach a node's health port: nftables' rules as text, made here and shown before they are anywhere in force."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ostler.model.errors import InvalidSpec

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
DEFAULT_LISTEN = "127.0.0.1:7481"
TABLE = "inet ostler"
_RULES = """\
# Written by `ostler fleet firewall`, which writes it anew. The port of the node's health, and nothing else.
table {table}
delete table {table}
table {table} {{
	chain health {{
		type filter hook input priority filter - 5; policy accept;
{rules}
	}}
}}
"""


@dataclass(frozen=True, slots=True)
class Door:
    """Where a daemon's health is to be had: its TCP port, and whether this machine alone gets there anyway."""

    port: int
    is_loopback: bool


def network(text: str) -> Network:
    """A network, or one address; raises ValueError with the reason."""
    return ipaddress.ip_network(text.strip())


def rules(port: int, allowed: Sequence[Network]) -> str:
    """The file that nft reads: in force together or not at all, the same again where it is there already. The host itself always gets
    through. Policy is to accept and no rule names another port, so nobody is locked out of anything else."""
    lines = []
    for family, version in (("ip", 4), ("ip6", 6)):
        theirs = [str(one) for one in ipaddress.collapse_addresses(n for n in allowed if n.version == version)]  # type: ignore[type-var]
        whom = f"{family} saddr != {{ {', '.join(theirs)} }}" if theirs else f"meta nfproto ipv{version}"
        lines.append(f'\t\tiifname != "lo" tcp dport {port} {whom} counter drop')
    return _RULES.format(table=TABLE, rules="\n".join(lines))


def door(config: str | None) -> Door:
    """The health port of a node's configuration. Raises InvalidSpec where it has none."""
    try:
        found: Any = yaml.safe_load(config or "") or {}
    except yaml.YAMLError:
        found = {}
    health = found.get("health") if isinstance(found, dict) else None
    listen = str((health or {}).get("listen") or DEFAULT_LISTEN) if isinstance(health, dict | None) else ""
    host, _, port = listen.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise InvalidSpec(f"the node has no port for its health: health.listen is {listen!r}")
    return Door(int(port), _is_loopback(host.strip("[]")))


def may_pass(source: str, allowed: Sequence[Network]) -> bool:
    """Whether rules for these networks let an address through."""
    address = ipaddress.ip_address(source)
    return any(address in one for one in allowed if one.version == address.version)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host or "127.0.0.1").is_loopback
    except ValueError:
        return host == "localhost"
