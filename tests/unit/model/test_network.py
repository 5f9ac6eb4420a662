"""Rules for hosts: what is read, what is refused and why, and that no rule grants more than it says."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.model.manifest import Manifest, Policy, problems
from ostler.model.network import (
    MAX_RULES,
    HostRule,
    is_public,
    may_connect,
    plain,
    read_address,
    read_host,
    read_rule,
    read_target,
    refused,
    rule_problem,
)
from ostler.model.sandbox import SandboxLevel

label = st.from_regex(r"[a-z]([a-z0-9-]{0,6}[a-z0-9])?", fullmatch=True)
names = st.lists(label, min_size=1, max_size=4).map(".".join)
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(plain)
hosts = st.one_of(names, addresses)
ports = st.integers(1, 65535)
networks = st.tuples(addresses, st.integers(0, 32)).map(lambda pair: type_of(pair[0])((pair[0], pair[1]), strict=False))
rules = st.builds(
    lambda host, port: (
        HostRule(network=host, port=port) if isinstance(host, IPv4Network | IPv6Network) else HostRule(name=host, port=port)
    ),
    st.one_of(st.just("*"), names, names.map(lambda name: f"*.{name}"), networks),
    st.one_of(st.none(), st.sampled_from([80, 443]), ports),
)


def type_of(address):
    return IPv4Network if isinstance(address, IPv4Address) else IPv6Network


def written(rule):
    """A rule as a person writes it."""
    host = rule.name or (f"[{rule.network}]" if isinstance(rule.network, IPv6Network) else str(rule.network))
    return f"{host}:{rule.port or '*'}"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("example.org", HostRule(name="example.org", port=443)),
        ("Example.ORG.:8080", HostRule(name="example.org", port=8080)),
        ("*.pkg.example:*", HostRule(name="*.pkg.example", port=None)),
        ("*", HostRule(name="*", port=443)),
        ("10.0.0.7:8080", HostRule(network=IPv4Network("10.0.0.7/32"), port=8080)),
        ("10.0.0.0/8", HostRule(network=IPv4Network("10.0.0.0/8"), port=443)),
        ("[fd00::7]:80", HostRule(network=IPv6Network("fd00::7/128"), port=80)),
        ("[fd00::/8]:*", HostRule(network=IPv6Network("fd00::/8"), port=None)),
        ("[::ffff:10.0.0.7]", HostRule(network=IPv4Network("10.0.0.7/32"), port=443)),
        ("xn--bcher-kva.example", HostRule(name="xn--bcher-kva.example", port=443)),
    ],
)
def test_rules_as_people_write_them(text, rule):
    assert read_rule(text) == rule
    assert rule_problem(text) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "names no host"),
        (":443", "names no host"),
        ("example.org:", "port"),
        ("example.org:0", "port"),
        ("example.org:65536", "port"),
        ("example.org:+1", "port"),
        ("example.org:https", "port"),
        ("example.org:٤٤٣", "port"),
        ("https://example.org", "colon|port"),
        ("example.org/path", "range"),
        ("user@example.org", "not the name"),
        ("a..b", "not the name"),
        ("-a.example", "not the name"),
        ("exa mple.org", "not the name"),
        ("a%2eb", "not the name"),
        ("a." * 130 + "a", "not the name"),
        ("*.*.example", "not the name"),
        ("ex*mple.org", "not the name"),
        ("bücher.example", "xn--"),
        ("::1", "brackets"),
        ("[::1", r"\[ADDRESS\]"),
        ("[::1]443", r"\[ADDRESS\]"),
        ("[fe80::1%eth0]", "zone"),
        ("[10.0.0.1]", "IPv6"),
        ("[*]", "IPv6"),
        ("*.10.0.0.1", r"'\*\.'"),
        ("127.1", "four numbers"),
        ("2130706433", "four numbers"),
        ("0x7f.1", "four numbers"),
        ("0x7f000001", "four numbers"),
        ("0177.0.0.1", "four numbers"),
        ("10.0.0.1/8", "bits beyond"),
        ("10.0.0.0/33", "range"),
        ("fd00::/8", "brackets"),
        ("[10.0.0.0/8]", "brackets"),
    ],
)
def test_mistakes_are_named(text, why):
    with pytest.raises(ValueError, match=why):
        read_rule(text)
    assert repr(text[:80]) in (rule_problem(text) or "")


@given(rules)
def test_a_rule_reads_as_it_was_written(rule):
    assert read_rule(written(rule)) == rule


@given(st.text())
def test_any_text_is_a_rule_or_a_mistake(text):
    why = rule_problem(text)
    assert why is None or why.startswith(repr(text[:80]))


@given(rules, rules, hosts, ports)
def test_what_covers_grants_at_least_as_much(outer, inner, host, port):
    if outer.covers(inner) and inner.matches(host, port):
        assert outer.matches(host, port)


@given(rules)
def test_a_rule_covers_itself_unless_it_hides_private_addresses(rule):
    assert rule.covers(rule)


def test_what_covers_what():
    def covers(outer, inner):
        return read_rule(outer).covers(read_rule(inner))

    assert covers("*:*", "example.org:80")
    assert covers("*", "8.8.8.8")
    assert not covers("*", "10.0.0.1"), "`*` is the public internet"
    assert not covers("*:*", "[::1]:80")
    assert not covers("*", "0.0.0.0/0")
    assert not covers("*", "example.org:80")
    assert not covers("example.org", "*")
    assert covers("*.example.org", "*.pkg.example.org")
    assert not covers("*.example.org", "example.org")
    assert not covers("*.example.org", "badexample.org")
    assert covers("10.0.0.0/8:*", "10.1.0.0/16:22")
    assert not covers("10.1.0.0/16", "10.0.0.0/8")
    assert not covers("10.0.0.0/8", "[fd00::/8]")
    assert not covers("[fd00::/8]", "10.0.0.0/8")
    assert not covers("example.org", "10.0.0.1")
    assert not covers("10.0.0.1", "example.org")


def test_what_matches_what():
    def matches(rule, target):
        return read_rule(rule).matches(*read_target(target))

    assert matches("example.org", "EXAMPLE.ORG.:443")
    assert matches("*.example.org", "a.b.example.org:443")
    assert not matches("*.example.org", "example.org:443")
    assert not matches("*.example.org", "evilexample.org:443")
    assert not matches("example.org", "example.org.evil:443")
    assert not matches("example.org", "example.org:80")
    assert matches("127.0.0.1", "[::ffff:127.0.0.1]:443")
    assert not matches("example.org", "10.0.0.1:443")
    assert not matches("10.0.0.1", "[::1]:443")
    assert not matches("10.0.0.1", "example.org:443")


@pytest.mark.parametrize("text", ["example.org", "example.org:*", "example.org:443:1", "exa\tmple:1", "[::1]", "0x7f.1:80", ""])
def test_targets_are_read_strictly(text):
    with pytest.raises(ValueError, match=r"^\w+ "):
        read_target(text)


def test_a_target_may_have_a_default_port():
    assert read_target("example.org", 80) == ("example.org", 80)
    assert read_target("[::1]:81", 80) == (IPv6Address("::1"), 81)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "240.0.0.1",
        "255.255.255.255", "::", "::1", "fe80::1", "fd00::1", "fec0::1", "ff0e::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_public(ip_address(address))
    assert not may_connect(ip_address(address), 443, [read_rule("*:*")])


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_public_addresses(address):
    assert is_public(ip_address(address))
    assert may_connect(ip_address(address), 443, [])


@given(addresses, ports, st.lists(rules, max_size=4))
def test_only_a_rule_of_addresses_opens_what_is_not_public(address, port, granted):
    literal = any(rule.network is not None and rule.matches(address, port) for rule in granted)
    assert may_connect(address, port, granted) == (is_public(address) or literal)


@given(names)
def test_hosts_are_read_the_same_however_they_are_spelt(name):
    assert read_host(name.upper() + ".") == read_host(name) == name


def test_addresses_as_a_resolver_gives_them():
    assert read_address("fe80::1%eth0") == IPv6Address("fe80::1")
    assert read_address("::ffff:10.0.0.1") == IPv4Address("10.0.0.1")


def test_what_a_node_does_not_grant():
    assert refused(["a.example", "10.0.0.1:22"], ["*", "10.0.0.0/8:22"]) == []
    assert refused(["a.example", "b.example:80"], ["a.example"]) == ["b.example:80"]
    assert refused(["a.example"], []) == ["a.example"]


def test_every_mistake_of_a_manifest_has_its_path():
    found = problems(Manifest(command="true", policy=Policy(network=("good.example", "0x7f.1", "a:b"))))
    assert [problem.path for problem in found] == ["policy.network[1]", "policy.network[2]"]
    found = problems(Manifest(command="true", policy=Policy(network=tuple(f"h{i}.example" for i in range(MAX_RULES + 1)))))
    assert [problem.path for problem in found] == ["policy.network"]


@pytest.mark.parametrize(
    ("asked", "network", "least"),
    [
        (None, (), None),
        (SandboxLevel.PROCESS, (), SandboxLevel.PROCESS),
        (None, ("a.example",), SandboxLevel.BWRAP),
        (SandboxLevel.PROCESS, ("a.example",), SandboxLevel.BWRAP),
        (SandboxLevel.CONTAINER, ("a.example",), SandboxLevel.CONTAINER),
    ],
)
def test_a_gate_needs_a_sandbox(asked, network, least):
    assert Manifest(command="true", policy=Policy(sandbox=asked, network=network)).least_sandbox is least
