"""Ostler's own inventory: what it says, which place each value has, and all mistakes at once."""

from pathlib import Path

import pytest

from ostler.fleet.inventory.host import Host, Inventory, Jump
from ostler.fleet.inventory.load import Sources, load
from ostler.model.errors import InvalidSpec


def read(folder: Path, text: str, name: str = "fleet.yml", **more) -> Inventory:
    file = folder / name
    file.write_text(text)
    return load(Sources(inventories=[str(file)], home=folder, local_user="me", **more))


def hosts(folder: Path, text: str) -> dict[str, Host]:
    return {one.name: one for one in read(folder, text).hosts}


def mistakes(folder: Path, text: str) -> list[tuple[int | None, str]]:
    with pytest.raises(InvalidSpec) as caught:
        read(folder, text)
    return [(one.line, f"{one.path}: {one.message}" if one.path else one.message) for one in caught.value.problems]


WHOLE = """\
user: deploy
region: us-east-1
labels: {site: attic}
hosts:
  mini-1: {address: 10.0.0.1}
  mini-[2:3]:
  gpu-1:
    address: "[2001:db8::1]"
    port: 2222
    user: root
    identity_file: ~/.ssh/gpu
    groups: [gpu]
    labels: {gpu: "3090"}
    paused: the disk is being replaced
groups:
  miners:
    hosts: ["mini-[1:2]"]
    pool: mining
    proxy_jump: jump@bastion.lan:2200,inner
    vars: {threads: 4}
  everything:
    children: [miners, gpu-group]
    labels: {site: cellar}
  gpu-group: {hosts: [gpu-1], proxy_jump: none}
"""


def test_the_nearest_word_counts_and_has_its_place(tmp_path: Path) -> None:
    found = hosts(tmp_path, WHOLE)
    file = tmp_path / "fleet.yml"
    assert list(found) == ["mini-1", "mini-2", "mini-3", "gpu-1"]
    way = (Jump(address="bastion.lan", user="jump", port=2200), Jump(address="inner"))
    assert found["mini-1"] == Host(
        name="mini-1", address="10.0.0.1", user="deploy", proxy_jump=way, groups=("miners", "everything"), vars={"threads": 4},
        region="us-east-1", pool="mining", labels={"site": "cellar"},
        origin={
            "name": f"{file}:5", "address": f"{file}:5", "user": f"{file}:1", "port": "default", "region": f"{file}:2",
            "pool": f"{file}:18",
            "proxy_jump": f"{file}:19", "labels.site": f"{file}:23",
            "vars.threads": f"{file}:20",
            "groups.miners": f"{file}:17", "groups.everything": f"{file}:17",
        },
    )  # fmt: skip
    assert found["mini-3"].groups == ()
    assert found["mini-3"].labels == {"site": "attic"}
    gpu = found["gpu-1"]
    assert (gpu.address, gpu.port, gpu.user, gpu.paused) == ("2001:db8::1", 2222, "root", "the disk is being replaced")
    assert gpu.identity_files == (str(tmp_path / ".ssh/gpu"),)
    assert gpu.proxy_jump == ()
    assert gpu.labels == {"site": "cellar", "gpu": "3090"}
    assert gpu.groups == ("gpu-group", "gpu", "everything")
    assert gpu.target == "root@[2001:db8::1]:2222"


def test_a_list_of_hosts_is_enough(tmp_path: Path) -> None:
    found = hosts(tmp_path, "hosts: [a, 'deploy@b:2222', 10.0.0.1, 'c[1:2]']\n")
    assert [one.target for one in found.values()] == ["a", "deploy@b:2222", "10.0.0.1", "c1", "c2"]


def test_all_mistakes_at_once_with_their_lines(tmp_path: Path) -> None:
    text = "hosts:\n  a: {prot: 22}\n  b: {port: high}\ngroup: {}\n"
    assert mistakes(tmp_path, text) == [
        (2, "hosts.a.prot: is not a known key; did you mean 'port'?"),
        (3, 'hosts.b.port: must be a whole number, not "high"'),
        (4, "group: is not a known key; did you mean 'groups'?"),
    ]
    text = """\
hosts:
  "mini 1":
  a: {port: 70000, user: "x y", address: -oProxyCommand=id}
  b: {proxy_jump: "u@h;id", identity_file: "-i", region: "../x", labels: {"a b": c, d: "x\\ny"}}
  c: {groups: ["$(id)", all]}
  "x[2:1]": {paused: ""}
groups:
  g: {hosts: [nobody], children: [h, nothing]}
  h: {children: [g]}
  "a;b": {}
"""
    found = mistakes(tmp_path, text)
    assert [line for line, _ in found] == [2, 3, 3, 3, 4, 4, 4, 4, 4, 5, 5, 6, 6, 8, 8, 8, 10]
    whole = "\n".join(message for _, message in found)
    for part in ("a space", "is no port", "as an option does", "';' (character 2)", "'../x' is a path", "no key of a label",
                 "no value of a label",
                 "is every host",
                 "says no reason", "ends (1) before it begins (2)", "'nobody' is no host of this file", "'nothing' is no group",
                 "contains itself: g → h → g", "'$' (character 1)"):  # fmt: skip
        assert part in whole, part


def test_a_mistake_in_the_form_hides_no_other_and_makes_none(tmp_path: Path) -> None:
    text = """\
hosts:
  a: {prot: 22, address: -oProxyCommand=id}
  b: {port: 70000, labels: {x: 1}}
  c: {identity_file: [k, 3], user: "x y"}
groups:
  g: {hosts: [nobody], childs: [h], pool: "../x"}
"""
    found = mistakes(tmp_path, text)
    assert [line for line, _ in found] == [2, 2, 3, 3, 4, 4, 4, 6, 6, 6]
    for part in ("prot: is not a known key", "as an option does", "70000 is no port", "labels.x: must be", "identity_file", "a space",
                 "'nobody' is no host of this file", "childs: is not a known key", "'../x' is a path"):  # fmt: skip
        assert part in "\n".join(message for _, message in found), part
    misspelt = "host:\n  a:\ngroups:\n  g: {hosts: [a], children: [h], port: 0}\n  h: [a]\n"
    *two, last = [message for _, message in mistakes(tmp_path, misspelt)]
    assert two == [
        "host: is not a known key; did you mean 'hosts'?",
        "groups.g.port: 0 is no port; a port is a number from 1 to 65535",
    ]
    assert last.startswith("groups.h: must be a mapping with the keys user, ")
    assert [message for _, message in mistakes(tmp_path, "hosts: {a: {address: -x}}\nhots: 1\nuser: [1]\n")] == [
        "hosts.a.address: '-x' begins with '-', as an option does",
        "hots: is not a known key; did you mean 'hosts'?",
        "user: must be a text, not a list",
    ]


def test_groups_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    text = "hosts:\n  a:\ngroups:\n  one: {hosts: [a], user: x}\n  two:\n    hosts: [a]\n    user: y\n"
    assert mistakes(tmp_path, text) == [(7, f"a: user is 'y' here, and 'x' in {tmp_path}/fleet.yml:4; leave one")]
    assert hosts(tmp_path, text.replace("  a:\n", "  a: {user: z}\n"))["a"].user == "z"
    assert hosts(tmp_path, text.replace("user: y", "children: [one]\n    user: y"))["a"].user == "x", "the inner group is nearer"


def test_one_machine_under_two_names(tmp_path: Path) -> None:
    text = "hosts:\n  a: {address: 10.0.0.1}\n  10.0.0.1:\n"
    assert mistakes(tmp_path, text) == [
        (3, f"10.0.0.1 is the same machine as a ({tmp_path}/fleet.yml:2): 10.0.0.1 at port 22; leave one")
    ]
    assert len(hosts(tmp_path, text.replace("10.0.0.1:\n", "10.0.0.1: {proxy_jump: b}\n"))) == 2, (
        "another network, for all one knows"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("- a\n- b\n", "must be a mapping"),
        ("hosts: {a: }\n---\nhosts: {b: }\n", "several documents"),
        ("hosts: [a\n", "is not YAML"),
        ("hosts: {a: , a: }\n", "stands twice"),
        ("hosts: [a, a]\n", None),
        ("hosts: ['a', 'A']\n", None),
        ("#!/bin/sh\necho\n", "is a program; inventories are read, never run"),
        ("hosts: {mini_1: }\n", "give the host an address of its own"),
        ("hosts: {a: {address: !!python/name:os.system x}}\n", "could not determine a constructor"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, message: str | None) -> None:
    if message is None:
        assert [one.name for one in read(tmp_path, text).hosts] == ["a"]
    else:
        assert message in str(mistakes(tmp_path, text))


def test_a_hop_that_is_a_host_itself_is_reached_as_it_says(tmp_path: Path) -> None:
    text = """\
proxy_jump: gate
user: deploy
hosts:
  inner: {address: 10.0.0.2, proxy_jump: "gate,step"}
  far:
  step: {address: 10.0.0.1, port: 2201}
  gate: {address: gate.example.com, user: jump, identity_file: /k/gate}
"""
    gate = Jump(address="gate.example.com", user="jump", identity_files=("/k/gate",))
    assert {name: one.proxy_jump for name, one in hosts(tmp_path, text).items()} == {
        "inner": (gate, Jump(address="10.0.0.1", user="deploy", port=2201)),
        "far": (gate,),
        "step": (gate,),
        "gate": (),
    }
    two = text.replace("proxy_jump: gate\n", "proxy_jump: gate,step\n").replace(', proxy_jump: "gate,step"', "")
    assert [len(one.proxy_jump) for one in hosts(tmp_path, two).values()] == [2, 2, 1, 0]


def test_variables_are_what_json_can_say(tmp_path: Path) -> None:
    text = "hosts: {a: {vars: {x: .inf, y: [-.inf, 1.5], z: {n: .nan}, t: 2020-01-01}}}\n"
    assert hosts(tmp_path, text)["a"].vars == {"x": "inf", "y": ["-inf", 1.5], "z": {"n": "nan"}, "t": "2020-01-01"}
