"""Rules for the health port: what they say, and which port it is."""

import pytest

from ostler.fleet.firewall import Door, door, may_pass, network, rules
from ostler.model.errors import InvalidSpec

NETWORKS = [network(one) for one in ("10.0.0.0/8", "10.1.0.0/16", "192.0.2.7", "2001:db8::/32")]


def test_one_port_two_families_and_no_other_rule() -> None:
    lines = [line.strip() for line in rules(7481, NETWORKS).splitlines() if "drop" in line]
    assert lines == [
        'iifname != "lo" tcp dport 7481 ip saddr != { 10.0.0.0/8, 192.0.2.7/32 } counter drop',
        'iifname != "lo" tcp dport 7481 ip6 saddr != { 2001:db8::/32 } counter drop',
    ]
    assert "policy accept" in rules(7481, NETWORKS)
    only = [line.strip() for line in rules(80, NETWORKS[:1]).splitlines() if "drop" in line]
    assert only[1] == 'iifname != "lo" tcp dport 80 meta nfproto ipv6 counter drop'


@pytest.mark.parametrize(
    ("source", "passes"), [("10.9.9.9", True), ("192.0.2.8", False), ("2001:db8::1", True), ("fe80::1", False)]
)
def test_who_gets_through(source: str, passes: bool) -> None:
    assert may_pass(source, NETWORKS) is passes


@pytest.mark.parametrize("text", ["10.0.0.1/8", "x", "", "10.0.0.0/33", "10.0.0.0/8; flush ruleset", "::1/8"])
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(ValueError, match=r"network|host bits"):
        network(text)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (None, Door(7481, is_loopback=True)),
        ("node_id: x\n", Door(7481, is_loopback=True)),
        ("health: {listen: '0.0.0.0:9000'}\n", Door(9000, is_loopback=False)),
        ("health: {listen: '[::1]:9000'}\n", Door(9000, is_loopback=True)),
        ("health: {listen: 'localhost:9000'}\n", Door(9000, is_loopback=True)),
        ("health: {listen: 'box.example:9000'}\n", Door(9000, is_loopback=False)),
        ("{ no yaml", Door(7481, is_loopback=True)),
    ],
)
def test_where_a_daemon_listens(config: str | None, found: Door) -> None:
    assert door(config) == found


@pytest.mark.parametrize("listen", ["'off'", "'0.0.0.0:0'", "'x:99999'", "[1]"])
def test_a_daemon_without_a_port(listen: str) -> None:
    with pytest.raises(InvalidSpec, match="no port for its health"):
        door(f"health: {{listen: {listen}}}\n")
