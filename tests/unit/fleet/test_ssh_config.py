"""SSH's configuration: the values that OpenSSH would take, each with its line; nothing in it is run."""

import shutil
import subprocess
from pathlib import Path

import asyncssh.config
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ostler.fleet.inventory.host import Host, Inventory, Jump
from ostler.fleet.inventory.load import Sources, load, text_in
from ostler.fleet.inventory.reading import Reading
from ostler.fleet.inventory.ssh_config import matches, read_ssh_config
from ostler.model.errors import InvalidSpec

CONFIG = """\
# what comes first counts
Host mini-1 mini-2
    HostName %h.lan
    Port 2222
    IdentityFile ~/.ssh/mini_%n
    IdentityFile "/keys/with space"
Host gpu
  hostname=10.0.0.9
  User = root
  ProxyJump bastion,inner:2200
Host old
    HostName 10.0.0.8
    ProxyCommand ssh -q -W %h:%p jump@bastion
Host bastion
    HostName bastion.example.com
    User jump
    ProxyJump outer
Host *.lan !no.lan
    User lan
Match host mini-1.lan user me
    IdentityFile ~/.ssh/matched
Host *
    User deploy
    Port 22
    ServerAliveInterval 5
"""


def home(folder: Path, text: str = CONFIG) -> Path:
    (folder / ".ssh").mkdir(exist_ok=True)
    (folder / ".ssh/config").write_text(text)
    return folder


def read(folder: Path, inventory: str, **more) -> Inventory:
    return load(Sources(inventories=[inventory], ssh_config=folder / ".ssh/config", home=folder, local_user="me", **more))


def hosts(folder: Path, inventory: str, **more) -> dict[str, Host]:
    return {one.name: one for one in read(folder, inventory, **more).hosts}


def test_an_inventorys_hosts_are_looked_up_as_ssh_would(tmp_path: Path) -> None:
    found = hosts(home(tmp_path), "mini-1,gpu,old,x.lan,no.lan,root@mini-2:22")
    file = f"{tmp_path}/.ssh/config"
    one = found["mini-1"]
    assert (one.target, one.proxy_jump) == ("deploy@mini-1.lan:2222", ())
    assert one.identity_files == (f"{tmp_path}/.ssh/mini_mini-1", "/keys/with space", f"{tmp_path}/.ssh/matched")
    assert one.origin == {
        "name": "--inventory", "address": f"{file}:3", "port": f"{file}:4", "user": f"{file}:23", "identity_files": f"{file}:5",
    }  # fmt: skip
    outer = Jump(address="outer", user="deploy")
    bastion = Jump(address="bastion.example.com", user="jump")
    assert found["gpu"].target == "root@10.0.0.9"
    assert found["gpu"].proxy_jump == (outer, bastion, Jump(address="inner", user="deploy", port=2200))
    assert found["old"].proxy_jump == (outer, bastion)
    assert found["x.lan"].user == "lan"
    assert found["no.lan"].user == "deploy"
    assert found["mini-2"].target == "root@mini-2.lan", "what an inventory says goes before"


def test_its_aliases_are_an_inventory_themselves(tmp_path: Path) -> None:
    found = hosts(home(tmp_path), str(tmp_path / ".ssh/config"))
    assert {name: one.target for name, one in found.items()} == {
        "mini-1": "deploy@mini-1.lan:2222", "mini-2": "deploy@mini-2.lan:2222", "gpu": "root@10.0.0.9", "old": "deploy@10.0.0.8",
        "bastion": "jump@bastion.example.com",
    }  # fmt: skip
    assert found["gpu"].origin["name"] == f"{tmp_path}/.ssh/config:7"
    (tmp_path / "my-hosts").write_text("Host box\n  HostName 10.0.0.1\n")
    assert hosts(tmp_path, str(tmp_path / "my-hosts"))["box"].address == "10.0.0.1"


def test_files_that_it_includes_count_where_they_are_included(tmp_path: Path) -> None:
    home(tmp_path, "Include conf.d/*.conf\nHost a\n  Include inner\n  Port 3\nHost *\n  Port 4\n")
    (tmp_path / ".ssh/conf.d").mkdir()
    (tmp_path / ".ssh/conf.d/1.conf").write_text("Host b\n  Port 1\n")
    (tmp_path / ".ssh/inner").write_text("User inner\nHost c\n  Port 9\n")
    found = hosts(tmp_path, "a,b,c")
    assert [(one.user, one.port) for one in found.values()] == [("inner", 3), (None, 1), (None, 4)]
    assert found["b"].origin["port"] == f"{tmp_path}/.ssh/conf.d/1.conf:2"
    home(tmp_path, "Include config\n")
    with pytest.raises(InvalidSpec, match="include each other without end"):
        hosts(tmp_path, "a")


def test_what_would_have_to_be_run_is_passed_over_and_told(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    text = f'Match host a exec "touch {ran}"\n  User x\nMatch final\n  Port 7\nHost *\n  User y\n'
    found = read(home(tmp_path, text), "a,b")
    assert [(one.user, one.port) for one in found.hosts] == [("y", 22), ("y", 22)]
    assert not ran.exists()
    file = f"{tmp_path}/.ssh/config"
    assert found.notes == (
        f"{file}:2: `Match exec` is not evaluated, so user is not taken from here",
        f"{file}:4: `Match final` is not evaluated, so port is not taken from here",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Host a\n  User -oProxyCommand=id\n", "config:2: user: '-oProxyCommand=id' begins with '-'"),
        ("Host a\n  HostName $(id)\n", "which a shell or SSH obeys"),
        ("Host a\n  HostName %p\n", "holds %p, which is not known here"),
        ("Host a\n  Port high\n", "is no port"),
        ("Host a\n  IdentityFile ${NOWHERE}/id\n", "names the variable NOWHERE, which is not set"),
        ("Host a\n  ProxyCommand nc %h %p\n", "is a command to run"),
        ("Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n", "is reached by way of itself: b → a → b"),
        ("Host a\n  ProxyJump b_1\n", "give the host an address of its own"),
        ("Host a\n  User x y\n", "it takes one value"),
        ("Host 'a\n", "No closing quotation"),
        ("Match host\n", "names no pattern"),
    ],
)
def test_mistakes_that_matter_to_a_host(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        read(home(tmp_path, text), "a,")
    assert said in str(caught.value)


def test_a_mistake_about_another_host_is_nobodys_business(tmp_path: Path) -> None:
    assert hosts(home(tmp_path, "Host other\n  ProxyCommand aws ssm %h\n  User $x\n"), "a,")["a"].user is None


def test_a_file_of_kamal_may_say_that_it_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "deploy.yml").write_text("service: a\nservers: [mini-1]\nssh: {config: false}\n")
    assert hosts(home(tmp_path), str(tmp_path / "deploy.yml"))["mini-1"].target == "root@mini-1"


def test_variables_in_paths_of_keys(tmp_path: Path) -> None:
    found = hosts(home(tmp_path, "Host a\n  IdentityFile ${KEYS}/%r@%h:%p-%u%%\n"), "me2@a:1,", env={"KEYS": "/k"})
    assert found["a"].identity_files == ("/k/me2@a:1-me%",)


def test_patterns() -> None:
    assert matches("web1.lan", ["web?.lan"])
    assert matches("WEB1", ["web*"])
    assert not matches("web[1]", ["web1"])
    assert matches("web[1]", ["web[1]"])
    assert not matches("web1", ["web*", "!web1"])
    assert not matches("a" * 250, ["*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b"])


# --- the same answers as others give ---------------------------------------------------------------------------------------------

WORDS = st.sampled_from(["a", "b", "a.lan", "b.lan", "c-1"])
PATTERNS = st.lists(st.sampled_from(["a", "b", "*.lan", "a*", "c-?", "!a.lan", "*"]), min_size=1, max_size=3).map(" ".join)
SETTINGS = st.one_of(
    st.sampled_from(
        ["User u1", "user=u2", "User u3", "Port 1001", "PORT = 1002", "HostName %h.example.com", "HostName 10.0.0.1"]
    ),
    st.sampled_from(
        ["ProxyJump j1", "ProxyJump u@j2:2200,j1", "ProxyJump none", "IdentityFile /k/1", 'IdentityFile "/k/2"', "LogLevel QUIET"]
    ),
)
HEADS = st.one_of(
    st.sampled_from(["", "Match all"]),
    PATTERNS.map("Host {}".format),
    st.tuples(st.sampled_from(["originalhost", "host"]), PATTERNS).map(lambda one: f"Match {one[0]} {one[1].replace(' ', ',')}"),
)
BLOCKS = st.lists(st.tuples(HEADS, st.lists(SETTINGS, max_size=4)), max_size=5)
TEXTS = BLOCKS.map(lambda blocks: "".join(f"{head}\n" + "".join(f"  {one}\n" for one in lines) for head, lines in blocks))


def answered(file: Path, host: str) -> dict[str, object]:
    config = read_ssh_config(file, home=Path("/home/me"), env={}, local_user="me", text_in=text_in)
    reading = Reading()
    facts = config.lookup(host, None, None, reading)
    assert not [*config.problems, *reading.problems]
    return {fact: said.value for fact, said in facts.items()}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS, host=WORDS)
@example(text="Match host a\n  HostName %h.example.com\n  User u1\n", host="a")
def test_the_same_as_asyncssh(tmp_path: Path, text: str, host: str) -> None:
    file = tmp_path / "config"
    file.write_text(text)
    ours = answered(file, host)
    theirs = asyncssh.config.SSHClientConfig.load(None, [file], False, False, False, "me", (), host, ())
    assert ours.get("address", host) == theirs.get("Hostname", host)
    assert ours.get("user") == theirs.get("User")
    assert ours.get("port") == theirs.get("Port")
    assert list(ours.get("identity_files", ())) == list(dict.fromkeys(theirs.get("IdentityFile", ())))
    jump = theirs.get("ProxyJump")
    hops = [
        f"{hop.user + '@' if hop.user else ''}{hop.host}{':' + str(hop.port) if hop.port else ''}"
        for hop in ours.get("proxy_jump", ())
    ]
    assert ",".join(hops) == (jump or "")


@pytest.mark.skipif(shutil.which("ssh") is None, reason="OpenSSH's client is not installed on this machine")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS, host=WORDS)
def test_the_same_as_openssh(tmp_path: Path, text: str, host: str) -> None:
    file = tmp_path / "config"
    file.write_text(text)
    ours = answered(file, host)
    lines = subprocess.run(["ssh", "-G", "-F", str(file), host], capture_output=True, text=True, check=True).stdout.splitlines()
    theirs = dict(line.split(" ", 1) for line in reversed(lines) if " " in line)
    assert ours.get("address", host) == theirs["hostname"]
    assert ours.get("port", 22) == int(theirs["port"])
    if "user" in ours:
        assert ours["user"] == theirs["user"]
    keys = [
        line.split(" ", 1)[1] for line in lines if line.startswith("identityfile ") and line.split(" ", 1)[1].startswith("/k/")
    ]
    assert list(ours.get("identity_files", ())) == list(dict.fromkeys(keys))
    assert len(ours.get("proxy_jump", ())) == len([one for one in theirs.get("proxyjump", "").split(",") if one])
