"""Inventories of Ansible: each in `ansible/`, beside it what it must say, or which mistakes must be named."""

import json
from pathlib import Path

import pytest

from ostler.fleet.inventory.host import Host, Inventory
from ostler.fleet.inventory.load import Sources, load
from ostler.model.errors import InvalidSpec

FOLDER = Path(__file__).parent / "ansible"
CASES = sorted(one.name.removesuffix(".expected.json") for one in FOLDER.glob("*.expected.json"))


def shown(host: Host, home: Path) -> str:
    """The host as the expectations have it; what is not set is left out."""
    words = [host.target, f"[{' '.join(host.groups)}]"]
    if host.proxy_jump:
        words += ["via", ",".join(map(str, host.proxy_jump))]
    if host.identity_files:
        words += ["keys", ",".join(host.identity_files)]
    for name in ("pool", "region", "paused"):
        if getattr(host, name):
            words += [name, getattr(host, name)]
    if host.vars:
        words += [
            "vars",
            *(f"{key}={one if isinstance(one, str) else json.dumps(one)}" for key, one in sorted(host.vars.items())),
        ]
    return f"{' '.join(words)} :{host.origin['name'].rpartition(':')[2]}".replace(str(home), "HOME")


def read(file: Path, home: Path = Path("/home/me")) -> Inventory:
    return load(Sources(inventories=[str(file)], home=home, local_user="me"))


@pytest.mark.parametrize("name", CASES)
def test_an_inventory_of_ansible(name: str, tmp_path: Path) -> None:
    expected = json.loads((FOLDER / f"{name}.expected.json").read_text())
    if "mistakes" in expected:
        with pytest.raises(InvalidSpec) as caught:
            read(FOLDER / name)
        found = caught.value.problems
        assert [[one.line, one.path] for one in found] == [one[:2] for one in expected["mistakes"]], str(caught.value)
        for problem, (_, _, parts) in zip(found, expected["mistakes"], strict=True):
            assert any(part in problem.message for part in parts.split("|")), problem.message
        return
    inventory = read(FOLDER / name, tmp_path)
    assert {one.name: shown(one, tmp_path) for one in inventory.hosts} == expected["hosts"]
    assert len(inventory.notes) == len(expected.get("notes", ()))
    for note, part in zip(inventory.notes, expected.get("notes", ()), strict=True):
        assert part in note


def test_variables_beside_the_inventory_count_as_for_ansible(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(
        "lone\n[web]\nw1 ansible_port=1\nw2\n[web:vars]\nansible_user=file\nansible_port=2\n[all:vars]\nansible_user=file_all\n"
    )
    (tmp_path / "group_vars/web").mkdir(parents=True)
    (tmp_path / "group_vars/all.yml").write_text("ansible_user: beside_all\nx: 1\n")
    (tmp_path / "group_vars/web/main.yml").write_text("ansible_port: 3\nx: 2\n")
    (tmp_path / "group_vars/web/vault.yml").write_text("$ANSIBLE_VAULT;1.1;AES256\n6231\n")
    (tmp_path / "host_vars").mkdir()
    (tmp_path / "host_vars/w2").write_text("ansible_host: 10.0.0.2\nx: 3\n")
    found = read(tmp_path / "hosts")
    assert {one.name: (one.target, one.vars["x"]) for one in found.hosts} == {
        "lone": ("beside_all@lone", 1),
        "w1": ("beside_all@w1:1", 2),
        "w2": ("beside_all@10.0.0.2:3", 3),
    }
    assert found.hosts[2].origin["address"] == f"{tmp_path}/host_vars/w2:1"
    assert found.notes == (f"{tmp_path}/group_vars/web/vault.yml is encrypted by ansible-vault, and not read",)
    (tmp_path / "host_vars/w2").write_text("- a list\n")
    with pytest.raises(InvalidSpec, match="must be one mapping of variables"):
        read(tmp_path / "hosts")


def test_a_program_is_not_run(tmp_path: Path) -> None:
    file = tmp_path / "inventory.py"
    file.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    file.chmod(0o755)
    with pytest.raises(InvalidSpec, match="save what it prints"):
        read(file)
    assert not (tmp_path / "ran").exists()
