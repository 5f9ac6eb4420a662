"""Files of Kamal as people write them: each in `deploy/`, beside it what it must say, or which mistakes must be named."""

import json
from pathlib import Path

import pytest

from ostler.fleet.inventory.host import Host
from ostler.fleet.inventory.load import Sources, load
from ostler.model.errors import InvalidSpec

FOLDER = Path(__file__).parent / "deploy"
CASES = sorted(one.name.removesuffix(".expected.json") for one in FOLDER.glob("*.expected.json"))


def shown(host: Host, home: Path) -> str:
    """`USER@ADDRESS:PORT [GROUPS] via JUMPS keys FILES :LINE`."""
    way = f" via {','.join(map(str, host.proxy_jump))}" if host.proxy_jump else ""
    keys = f" keys {','.join(host.identity_files)}" if host.identity_files else ""
    return f"{host.target} [{' '.join(host.groups)}]{way}{keys} :{host.origin['name'].rpartition(':')[2]}".replace(
        str(home), "HOME"
    )


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", CASES)
def test_a_file_of_kamal(name: str, tmp_path: Path) -> None:
    expected = json.loads((FOLDER / f"{name}.expected.json").read_text())
    (tmp_path / "deploy.yml").write_bytes((FOLDER / f"{name}.yml").read_bytes())
    if (FOLDER / f"{name}.staging.yml").exists():
        (tmp_path / "deploy.staging.yml").write_bytes((FOLDER / f"{name}.staging.yml").read_bytes())
    sources = Sources(
        inventories=[str(tmp_path / "deploy.yml")], destination=expected.get("dest"), accessories=expected.get("accessories", False),
        env=expected.get("env", {}), home=tmp_path / "home", local_user="me",
    )  # fmt: skip
    if "mistakes" in expected:
        with pytest.raises(InvalidSpec) as caught:
            load(sources)
        found = caught.value.problems
        assert [[one.line, one.path] for one in found] == [one[:2] for one in expected["mistakes"]], str(caught.value)
        for problem, (_, _, part) in zip(found, expected["mistakes"], strict=True):
            assert part in problem.message
        return
    inventory = load(sources)
    assert {one.name: shown(one, tmp_path / "home") for one in inventory.hosts} == expected["hosts"]
    assert len(inventory.notes) == len(expected.get("notes", ()))
    for note, part in zip(inventory.notes, expected.get("notes", ()), strict=True):
        assert part in note


def test_what_a_destination_said_has_its_place(tmp_path: Path) -> None:
    (tmp_path / "deploy.yml").write_text("service: a\nservers:\n  web: [p1]\nssh: {user: app}\n")
    (tmp_path / "deploy.staging.yml").write_text("ssh:\n  port: 2222\n")
    sources = Sources(inventories=[str(tmp_path / "deploy.yml")], destination="staging", home=tmp_path, local_user="me")
    (host,) = load(sources).hosts
    assert host.origin["name"] == f"{tmp_path}/deploy.yml:3"
    assert host.origin["user"] == f"{tmp_path}/deploy.yml:4"
    assert host.origin["port"] == f"{tmp_path}/deploy.staging.yml:2"


def test_defaults_of_kamal_give_way_to_what_another_inventory_says(tmp_path: Path) -> None:
    (tmp_path / "deploy.yml").write_text("service: a\nservers: [h1, h2]\n")
    (tmp_path / "fleet.yml").write_text("hosts:\n  h1: {user: deploy, pool: edge}\n")
    for order in (["deploy.yml", "fleet.yml"], ["fleet.yml", "deploy.yml"]):
        found = load(Sources(inventories=[str(tmp_path / one) for one in order], home=tmp_path, local_user="me"))
        assert {one.name: (one.user, one.origin["user"].partition(":")[0]) for one in found.hosts} == {
            "h1": ("deploy", str(tmp_path / "fleet.yml")),
            "h2": ("root", "Kamal's default"),
        }
