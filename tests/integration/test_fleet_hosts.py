"""`ostler fleet hosts`: which inventory counts, what is chosen, and what a person is told."""

from pathlib import Path

import pytest

from cli_rig import ostler

FLEET = "hosts:\n  mini-1: {address: 10.0.0.1, groups: [miners]}\n  mini-2: {user: root}\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and a home that hold nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OSTLER_INVENTORY", raising=False)
    return tmp_path


def names(*args: str) -> list[str]:
    done = ostler("fleet", "hosts", *args, "--json")
    assert done.returncode == 0, done.stderr
    return [one["name"] for one in done.json]


def test_the_table_says_where_each_host_came_from(here: Path) -> None:
    (here / "ostler-fleet.yml").write_text(FLEET)
    done = ostler("fleet", "hosts")
    assert done.stdout == (
        "HOST    ADDRESS   USER  PORT  VIA  GROUPS  POOL  REGION  PAUSED  FROM\n"
        "mini-1  10.0.0.1  -       22  -    miners  -     -       -       ostler-fleet.yml:2\n"
        "mini-2  mini-2    root    22  -    -       -     -       -       ostler-fleet.yml:3\n"
    )


def test_what_is_named_goes_before_the_variable_and_that_before_what_lies_here(here: Path, monkeypatch) -> None:
    assert "write ostler-fleet.yml" in ostler("fleet", "hosts").stderr
    (here / "ostler-fleet.yml").write_text("hosts: [lies-here]\n")
    assert names() == ["lies-here"]
    (here / "a.yml").write_text("hosts: [a]\n")
    (here / "b.yml").write_text("hosts: [b]\n")
    monkeypatch.setenv("OSTLER_INVENTORY", "a.yml:b.yml")
    assert names() == ["a", "b"]
    assert names("-i", "b.yml") == ["b"]
    assert names("-i", "x,root@y:2200") == ["x", "y"]


def test_hosts_without_an_inventory() -> None:
    done = ostler("fleet", "hosts", "--host", "a,deploy@[::1]:2222", "--json")
    assert [(one["address"], one["user"], one["port"], one["origin"]["port"]) for one in done.json] == [
        ("a", None, 22, "default"),
        ("::1", "deploy", 2222, "--host"),
    ]


def test_some_of_the_hosts(here: Path) -> None:
    (here / "ostler-fleet.yml").write_text(FLEET)
    assert names("-g", "miners") == ["mini-1"]
    assert names("-g", "all") == names() == names("-H", "mini-2,mini-1") == ["mini-1", "mini-2"]
    done = ostler("fleet", "hosts", "-H", "deploy@mini-2:2022", "--json")
    assert [(one["user"], one["port"], one["origin"]["user"]) for one in done.json] == [("deploy", 2022, "--host")]
    for args, said in (
        (["-g", "miner"], "no host is in a group 'miner'; did you mean 'miners'?"),
        (["-H", "mimi-2"], "has no host 'mimi-2'; did you mean 'mini-2'?"),
        (["-g", "miners", "-H", "mini-2"], "none of the hosts named is in miners"),
    ):
        done = ostler("fleet", "hosts", *args)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr


def test_two_inventories_add_to_each_other_and_must_not_contradict(here: Path) -> None:
    (here / "a.yml").write_text(FLEET)
    (here / "b.yml").write_text("hosts:\n  mini-2: {port: 2222, groups: [edge]}\n  mini-3:\n")
    done = ostler("fleet", "hosts", "-i", "a.yml", "-i", "b.yml", "--json")
    assert [(one["name"], one["user"], one["port"], one["groups"]) for one in done.json][1:] == [
        ("mini-2", "root", 2222, ["edge"]),
        ("mini-3", None, 22, []),
    ]
    assert done.json[1]["origin"] | {"address": ""} == {
        "name": "a.yml:3", "address": "", "user": "a.yml:3", "port": "b.yml:2", "groups.edge": "b.yml:2",
    }  # fmt: skip
    (here / "b.yml").write_text("hosts:\n  mini-2:\n    user: deploy\n  mini-1: {address: 10.0.0.9}\n")
    done = ostler("fleet", "hosts", "-i", "a.yml", "-i", "b.yml")
    assert done.returncode == 3
    assert "b.yml:3: mini-2: user is 'deploy' here, and 'root' in a.yml:3; leave one" in done.stderr
    assert "b.yml:4: mini-1: address is '10.0.0.9' here, and '10.0.0.1' in a.yml:2; leave one" in done.stderr


@pytest.mark.parametrize(
    "name", ["mini-1; rm -rf /", "../../../etc/passwd", "mini 1", "-oProxyCommand=id", "a\nb", "$(id)", "`id`", ""]
)
def test_strange_names_on_the_command_line(name: str) -> None:
    done = ostler("fleet", "hosts", "--host=" + name)
    assert done.returncode == 3
    assert "--host" in done.stderr
    assert "Traceback" not in done.stderr


def test_files_that_cannot_be_read(here: Path) -> None:
    for path, said in (
        ("nowhere.yml", "No such file"),
        (".", "is a folder; name its files"),
        ("/dev/zero", "is no regular file"),
        ("a\x00b", "null byte"),
    ):
        done = ostler("fleet", "hosts", "-i", path)
        assert done.returncode == 3, path
        assert said in done.stderr


def test_kamals_file_is_found_with_its_destinations_and_accessories(here: Path, monkeypatch) -> None:
    (here / "config").mkdir()
    (here / "config/deploy.yml").write_text(
        "service: shop\nservers:\n  web: [<%= ENV['WEB'] %>]\naccessories:\n  db: {host: db1}\nssh: {user: app}\n"
    )
    (here / "config/deploy.staging.yml").write_text("servers:\n  web: [s1]\n")
    monkeypatch.setenv("WEB", "w1")
    assert names() == ["w1"]
    assert names("--accessories") == ["w1", "db1"]
    assert names("--dest", "staging") == ["s1"]
    assert "config/deploy.staging.yml:2, config/deploy.yml:6" in ostler("fleet", "hosts", "-d", "staging").stdout
    assert "destinations: staging" in ostler("fleet", "hosts", "-d", "prod").stderr
    (here / "ostler-fleet.yml").write_text("hosts: [a]\n")
    done = ostler("fleet", "hosts", "-d", "staging")
    assert (done.returncode, "no inventory is one" in done.stderr) == (3, True)
