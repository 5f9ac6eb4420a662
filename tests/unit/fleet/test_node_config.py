"""What the inventory says of a host becomes a configuration that its daemon takes."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ostler.assembly.endpoint import Endpoint
from ostler.assembly.installing import address_for_hosts, allowlist_mistakes, own_of, owns
from ostler.assembly.rollouts import services
from ostler.fleet.installing import Looked, Wanted, look_at
from ostler.fleet.inventory.host import Host
from ostler.fleet.node_config import Own, changed_keys, differences, digest
from ostler.fleet.rollout.preflight import Facts, OpenUpdate
from ostler.model.errors import InvalidSpec

HOST = Host(name="box-1", address="10.0.0.1", region="eu", labels={"rack": "7", "spare": ""})
URL = "https://ostler.example:7070/api/v1"
FACTS = Facts(hostname="h", os="debian 12", arch="x86_64", abi="cp311", now=0.0, disk_free_mb=9999)


async def token() -> str:
    return "ostler_join_x"


WANTED = Wanted(release="r1", digest="d", platforms=("cp311-x86_64",), bundle_mb=30, bundle=lambda _: b"", token=token)


def test_region_labels_and_own_sections_are_in_it(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("PEM")
    host = replace(
        HOST, vars={"node": {"resources": {"max_concurrent_cpu": 9}, "runners": {"cli": {"allow_own_binaries": True}}}}
    )
    own = own_of(host, coordinator=URL, ca_file=ca, allowlist={"sh.yaml": "x"})
    config = yaml.safe_load(own.config or "")
    assert config["tags"] == ["region.eu", "rack.7", "spare"]
    assert config["coordinator"] == {"base_url": URL, "ca_file": "/etc/ostler/ca.pem"}
    assert config["resources"] == {"max_concurrent_cpu": 9}
    assert config["runners"]["cli"]["allowlist_dir"] == "/etc/ostler/allowlist.d"
    assert set(own.files) == {"allowlist.d/ostler-canary.yaml", "allowlist.d/sh.yaml", "ca.pem"}


def test_a_mistake_in_a_host_s_own_sections_is_told_before_anything_is_changed() -> None:
    host = replace(HOST, vars={"node": {"resorces": {}}}, origin={"vars.node": "fleet.yml:7"})
    with pytest.raises(InvalidSpec) as caught:
        own_of(host, coordinator=URL, ca_file=None, allowlist={})
    assert "for box-1" in str(caught.value)
    assert str(caught.value.problems[0]).startswith("fleet.yml:7: resorces: is not a known key")  # not the file that is checked


@pytest.mark.parametrize("wrong", [["a"], "resources", 7])
def test_what_is_no_section_is_no_configuration(wrong: object) -> None:
    host = replace(HOST, vars={"node": wrong}, origin={"vars.node": "fleet.yml:7"})
    with pytest.raises(InvalidSpec) as caught:
        own_of(host, coordinator=URL, ca_file=None, allowlist={})
    assert str(caught.value.problems[0]).startswith("fleet.yml:7: vars.node: must be sections of node.yaml, not ")


def test_an_address_that_only_this_machine_reaches_is_refused() -> None:
    here = Endpoint(url="http://127.0.0.1:7070", origin="profile")
    with pytest.raises(InvalidSpec, match="only this machine reaches"):
        address_for_hosts(here, None)
    assert address_for_hosts(here, "http://127.0.0.1:7070/") == "http://127.0.0.1:7070/api/v1"  # at the other end of a tunnel
    with pytest.raises(InvalidSpec, match="is not the URL"):
        address_for_hosts(here, "ostler.example")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"refused": {"/opt/ostler/releases": "read-only file system"}},
            "cannot write to /opt/ostler/releases: read-only file system",
        ),
        ({"current": "r0"}, "release r0 is installed here"),
        ({"abi": "cp313"}, "has nothing for cp313-x86_64"),
        ({"disk_free_mb": 50}, "50 MB are free"),
        ({"update": OpenUpdate(update_id="u", release="r", previous=None, state="watching")}, "update u is still being watched"),
    ],
)
def test_what_is_in_the_way_is_said(changes: dict[str, object], why: str) -> None:
    found = look_at(replace_facts(changes), WANTED)
    assert why in (found.refusal or "")


def test_each_mistake_in_a_hosts_allowlist_is_one_line() -> None:
    entries = {"good.yaml": "command: {path: /usr/bin/true}\n", "list.yaml": "- a\n", "none.yaml": None}
    first, second = allowlist_mistakes(entries)
    assert first.startswith("/etc/ostler/allowlist.d/list.yaml:1: ")
    assert second == "/etc/ostler/allowlist.d/none.yaml: cannot be read as UTF-8 text"


def test_only_what_a_host_lacks_is_brought() -> None:
    there = replace_facts({"releases": ("r1",), "current": "r1", "health": {"last_contact_s": 1.0}, "disk_free_mb": 1})
    assert look_at(there, WANTED) == Looked(facts=there, upload=False, enrol=False)
    altered = replace_facts({"releases": ("r1",), "current": "r1", "altered": ("bin/ostler",)})
    assert look_at(altered, WANTED).upload
    assert look_at(replace_facts({"releases": ("r1",), "altered": ("bin/ostler",)}), WANTED).upload  # before its first start
    assert look_at(FACTS, WANTED) == Looked(facts=FACTS)
    refused = replace_facts({"health": {"last_contact_s": 1.0, "enrolled": False}})  # it has a key, and contact
    assert look_at(refused, WANTED).enrol
    assert "needs a join token" in (look_at(FACTS, replace(WANTED, token=None)).refusal or "")


def replace_facts(changes: dict[str, object]) -> Facts:
    return Facts(**({name: getattr(FACTS, name) for name in Facts.__struct_fields__} | changes))


def test_what_changes_in_a_configuration_is_named_and_its_values_are_not() -> None:
    before = "coordinator: {base_url: http://a, auth_token: hush}\ntags: [a]\nlog: {level: info}\n"
    after = "coordinator: {base_url: http://b, auth_token: quiet}\ntags: [a, b]\nsandbox: {}\n"
    keys = ["coordinator.auth_token", "coordinator.base_url", "log.level", "sandbox", "tags"]
    assert changed_keys(before, after) == keys
    own = Own(config=after, files={"ca.pem": "new", "x": "y"})
    found = differences(own, config=before, applied_sha256=digest(before), beside={"ca.pem": digest("old"), "x": digest("y")})
    assert found == [f"configuration {digest(before)[:8]} → {digest(after)[:8]}: {', '.join(keys)}", "ca.pem differs"]
    assert "hush" not in str(found)


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (None, "configuration none → .*: a, b, c, d, e, f and 1 more"),
        ("{no yaml", "configuration .* → .*: a, b, c, d, e, f and 1 more"),
        ("# other words\na: 1\nb: 1\nc: 1\nd: 1\ne: 1\nf: 1\ng: 1\n", "configuration .* → .*: its form alone"),
    ],
)
def test_a_configuration_that_is_not_there_or_is_none(before: str | None, words: str) -> None:
    own = Own(config="".join(f"{name}: 1\n" for name in "abcdefg"))
    (line,) = differences(own, config=before, applied_sha256=None if before is None else digest(before), beside={})
    assert re.fullmatch(words, line)


def test_services_of_the_inventory_are_written_once() -> None:
    """They are a section of the configuration, and what an update looks for on the host before it begins."""
    xmrig = {"unit": "xmrig.service", "binary": "/usr/local/bin/xmrig", "candidates": ["/usr/bin/xmrig"], "version": "^XMRig "}
    host = replace(HOST, vars={"services": {"xmrig": xmrig, "pool": {"unit": "pool.service"}}, "node": {"tags": ["miner"]}})
    own = own_of(host, coordinator=URL, ca_file=None, allowlist={})
    assert yaml.safe_load(own.config or "")["services"]["xmrig"] == xmrig
    program = {"service": "xmrig", "expected": "/usr/local/bin/xmrig", "candidates": ["/usr/bin/xmrig"], "version": "^XMRig "}
    assert services(host) == [program]
    other = replace(host, vars={**host.vars, "node": {"services": {"xmrig": {"binary": "/opt/xmrig"}}}})
    assert services(other)[0]["expected"] == "/opt/xmrig"
    for wrong in ([xmrig], {"xmrig": {**xmrig, "unit": "ssh.socket"}}, {"xmrig": "xmrig.service"}):
        with pytest.raises(InvalidSpec, match="services"):
            own_of(replace(HOST, vars={"services": wrong}), coordinator=URL, ca_file=None, allowlist={})
        assert services(replace(HOST, vars={"services": "xmrig"})) == []


def test_hosts_that_were_only_named_keep_what_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    named, known = replace(HOST, origin={"name": "--inventory"}), replace(HOST, name="box-2", origin={"name": "fleet.yml:2"})
    for name in ("OSTLER_URL", "OSTLER_TOKEN"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert set(owns({"box-1": named, "box-2": known}, coordinator=URL)) == {"box-2"}
    assert owns({"box-2": known}, coordinator=None) == {}
