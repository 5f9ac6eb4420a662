"""What a configuration's services make on a host: a rule for polkit, links to programs, and nothing that cannot be taken back."""

import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.fleet.host import facts, services
from ostler.fleet.host.places import Places
from ostler.fleet.host.traces import Traces
from ostler.node.services import rules

CONFIG = """
coordinator: {base_url: "http://127.0.0.1:1"}
services:
  xmrig: {unit: xmrig.service, binary: /usr/local/bin/xmrig, candidates: [/usr/bin/xmrig], version: "^XMRig "}
  pool: {unit: pool.service}
"""
BARE = "coordinator: {base_url: 'http://127.0.0.1:1'}\n"


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """A host with a release whose Python is this one."""
    found = Places(tmp_path / "host")
    for folder in (found.updates, found.config.parent, found.root / "usr/bin"):
        folder.mkdir(parents=True)
    python = found.release("r1") / "bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return found


def apply(places: Places, config: str) -> services.Outcome:
    places.config.write_text(config)
    return services.apply(places, Traces(places), places.release("r1"), user="ostler")


@pytest.mark.skipif(os.geteuid() != 0, reason="programs of services belong to root")
def test_the_rule_and_the_links_follow_the_configuration_and_are_taken_back(places: Places) -> None:
    program = places.root / "usr/bin/xmrig"
    program.write_text("#!/bin/sh\necho XMRig 6.21.0\n")
    program.chmod(0o755)
    first = apply(places, CONFIG)
    assert (first.changed, first.warnings, first.units) == (
        ["50-ostler-services.rules", "/usr/local/bin/xmrig"],
        [],
        ("xmrig.service", "pool.service"),
    )
    assert places.permits.read_text() == services.rule("ostler", ["pool.service", "xmrig.service"])
    assert (places.root / "usr/local/bin/xmrig").readlink() == Path("/usr/bin/xmrig")
    assert apply(places, CONFIG).changed == []
    places.permits.write_text("polkit.addRule(() => polkit.Result.YES);\n")
    said = facts.gather(places)
    assert said["permits_sha256"] != said["permitted_sha256"] == facts.digest(places.permitted)
    assert apply(places, CONFIG).changed == ["50-ostler-services.rules"]
    assert apply(places, BARE).changed == ["50-ostler-services.rules"]
    assert not places.permits.exists()
    assert facts.gather(places)["permitted_sha256"] is None
    apply(places, CONFIG)
    Traces(places).take_back()
    assert not (places.root / "etc/polkit-1").exists()
    assert not (places.root / "usr/local").exists()
    assert program.exists()


def test_a_missing_program_is_a_warning_and_permits_its_unit_all_the_same(places: Places) -> None:
    found = apply(places, CONFIG)
    assert found.warnings == ["xmrig not found, its service will not work"]
    assert '"xmrig.service"' in places.permits.read_text()


def test_a_configuration_that_the_release_cannot_read_permits_nothing(places: Places) -> None:
    apply(places, CONFIG)
    for broken in ("services: {xmrig: {unit: ../x.service}}\n" + BARE, "services: [\n"):
        found = apply(places, broken)
        assert found.units == ()
        assert "no service is permitted" in found.warnings[0]
        assert not places.permits.exists()
    (places.release("r1") / "bin/python").write_text("#!/bin/sh\necho No module named ostler.assembly.declared >&2; exit 1\n")
    assert "No module named" in apply(places, CONFIG).warnings[0]


def test_what_somebody_else_wrote_is_left_alone(places: Places) -> None:
    places.permits.parent.mkdir(parents=True)
    places.permits.write_text("// mine\n")
    assert apply(places, BARE).changed == []
    apply(places, CONFIG)
    Traces(places).take_back()
    assert places.permits.read_text() == "// mine\n"


@given(st.text(max_size=40) | st.from_regex(r"[a-zA-Z0-9_.@\\\-\"'\]\n;/ ]{1,20}\.service"))
def test_no_name_becomes_code(name: str) -> None:
    """Whatever the rule takes stands in it as one plain text, and a configuration takes no other names."""
    try:
        text = services.rule("ostler", [name])
    except ValueError:
        assert not rules.UNIT.fullmatch(name) or rules.OWN.fullmatch(name)
        return
    assert rules.UNIT.fullmatch(name)
    assert re.search(r"var units = (.*);", text)[1] == f'["{name}"]'  # type: ignore[index]


@pytest.mark.parametrize(
    "name", ['a"];x();["b.service', "a.service\n", "ostler-node.service", "a@b.service", "a.socket", "../a.service"]
)
def test_a_rule_names_plain_units_alone(name: str) -> None:
    with pytest.raises(ValueError, match="nothing that a rule may name"):
        services.rule("ostler", ["xmrig.service", name])
