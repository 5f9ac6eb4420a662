"""Which hosts a job may reach: rules as people write them (`example.org:443`), and what they match. Pure: nothing is resolved here.

Manifest, node and gate read the same rules, and a program's own words (`0x7f.1`, `EXAMPLE.org.`) the same way as a rule's.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

MAX_RULES = 64
DEFAULT_PORT = 443
ANY = "*"

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
# What a name ends with is a number to every program that reads addresses as C does: 127.1, 0x7f.1, 2130706433.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT = re.compile(r"[0-9]{1,5}")
_NAT64 = IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRule:
    """Some hosts at one port (None: at any). `name` is a name in lower case, `*.NAME` for all below it, or `*` for all hosts;
    for addresses it is empty, and `network` holds them."""

    name: str = ""
    network: Network | None = None
    port: int | None = DEFAULT_PORT

    def matches(self, host: str | Address, port: int) -> bool:
        """Whether this rule grants a host, as `read_host` gives it, at a port."""
        if self.port not in (None, port):
            return False
        if self.name == ANY:
            return True
        if isinstance(host, str):
            return host.endswith(self.name[1:]) if self.name.startswith("*.") else host == self.name
        return self.network is not None and host in self.network

    def covers(self, other: "HostRule") -> bool:
        """Whether it grants whatever `other` grants. `*` speaks of the public internet: it covers no other addresses."""
        if self.port not in (None, other.port):
            return False
        if other.network is not None:
            if self.name == ANY:
                return is_public(other.network.network_address) and is_public(other.network.broadcast_address)
            return self.network is not None and _within(other.network, self.network)
        if self.name == ANY:
            return True
        return self.name == other.name or (self.name.startswith("*.") and other.name.endswith(self.name[1:]))


def read_rule(text: str) -> HostRule:
    """`HOST[:PORT]` as a rule: a name, `*.NAME`, `*`, an address, or a range such as 10.0.0.0/8; IPv6 stands in brackets.

    The port is 443 where none is named; `*` is any. Raises ValueError, whose message goes on from "it …".
    """
    host, port_text, bracketed = _split(text)
    port = DEFAULT_PORT if port_text is None else None if port_text == ANY else _port(port_text)
    if "/" in host:
        return HostRule(network=_network(host, bracketed=bracketed), port=port)
    if host == ANY and not bracketed:
        return HostRule(name=ANY, port=port)
    below = host.startswith("*.") and not bracketed
    found = read_host(f"[{host}]" if bracketed else host.removeprefix("*."))
    if isinstance(found, str):
        return HostRule(name=f"*.{found}" if below else found, port=port)
    if below:
        raise ValueError("puts '*.' before an address; it goes before a name")
    return HostRule(network=ip_network(found), port=port)


def read_host(text: str) -> str | Address:
    """A host as a program names it: a name in lower case without its last dot, or an address; IPv6 stands in brackets.

    An IPv4 address inside an IPv6 one is that IPv4 address. Raises ValueError for what programs read differently.
    """
    if text.startswith("[") and text.endswith("]"):
        if "%" in text:
            raise ValueError("names the zone of an address, which is the host's own")
        try:
            return plain(IPv6Address(text[1:-1]))
        except ValueError:
            raise ValueError("is no IPv6 address in its brackets") from None
    name = text.removesuffix(".").lower()
    if not text.isascii():
        raise ValueError("is not ASCII; write an international name in its xn-- form")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return IPv4Address(name)
        except ValueError:
            raise ValueError("looks like an IPv4 address and is none; write four numbers from 0 to 255") from None
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("is not the name of a host")
    return name


def read_target(text: str, default_port: int | None = None) -> tuple[str | Address, int]:
    """`HOST:PORT` as a request names it. Raises ValueError."""
    host, port_text, bracketed = _split(text)
    if port_text is None and default_port is None:
        raise ValueError("names no port")
    port = default_port if port_text is None else _port(port_text)
    return read_host(f"[{host}]" if bracketed else host), port or 0


def rule_problem(text: str) -> str | None:
    """What is wrong with a rule as somebody wrote it, or None."""
    try:
        read_rule(text)
    except ValueError as exc:
        return f"{text[:80]!r} {exc}"
    return None


def refused(wanted: Iterable[str], allowed: Iterable[str]) -> list[str]:
    """Those of some rules that none of the allowed ones covers. Both are good: `rule_problem` found nothing."""
    rules = [read_rule(text) for text in allowed]
    return [text for text in wanted if not any(rule.covers(read_rule(text)) for rule in rules)]


def may_connect(address: Address, port: int, granted: Iterable[HostRule]) -> bool:
    """Whether an address that a granted host turned out to have may be connected to.

    A public one may. Any other (this host's, its network's, a cloud's metadata) only where a rule of the node names it as an
    address: whoever rules over a name says what it resolves to.
    """
    return is_public(address) or any(rule.network is not None and rule.matches(address, port) for rule in granted)


def is_public(address: Address) -> bool:
    """Whether it is a single host's on the public internet, also where an IPv4 address is hidden inside."""
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
        if address.sixtofour is not None or address.teredo is not None or address.is_site_local:
            return False  # old ways to carry other addresses; nobody needs them
    address = plain(address)
    return address.is_global and not address.is_multicast


def plain(address: Address) -> Address:
    """An IPv4 address in its IPv6 form as itself; all others as they are, without a zone."""
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or IPv6Address(int(address))
    return address


def _split(text: str) -> tuple[str, str | None, bool]:
    """Host, port where there is one, and whether the host stood in brackets."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("must be [ADDRESS]:PORT")
        return host, rest[1:] if rest else None, True
    host, colon, port = text.partition(":")
    if ":" in port:
        raise ValueError("has more than one colon; an IPv6 address stands in brackets")
    if not host:
        raise ValueError("names no host")
    return host, port if colon else None, False


def _port(text: str) -> int:
    if not _PORT.fullmatch(text) or not 1 <= int(text) <= 65535:
        raise ValueError("has a port that is no number from 1 to 65535")
    return int(text)


def _network(text: str, *, bracketed: bool) -> Network:
    try:
        network = ip_network(text)
    except ValueError as exc:
        host_bits = " (its address has bits beyond the prefix)" if "host bits" in str(exc) else ""
        raise ValueError(f"is no range of addresses{host_bits}; write it like 10.0.0.0/8") from None
    if bracketed is not isinstance(network, IPv6Network):
        raise ValueError("must have an IPv6 range, and no other, in brackets")
    return network


def _within(inner: Network, outer: Network) -> bool:
    if isinstance(inner, IPv4Network):
        return isinstance(outer, IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, IPv6Network) and inner.subnet_of(outer)


def read_address(text: str) -> Address:
    """An address as the resolver gives it; a zone (`%eth0`) is dropped."""
    return plain(ip_address(text.partition("%")[0]))
