import os
from pathlib import Path

import pytest

from ostler.assembly import profile
from ostler.assembly.endpoint import find_endpoint, look_for_endpoint
from ostler.assembly.profile import Profile
from ostler.assembly.up import hold, may_replace, read_facts, start_time, write_facts
from ostler.cli.session import Session
from ostler.model.errors import InvalidSpec, OperationInFlight, Rejected


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}


def test_variables_say_where(env: dict[str, str]) -> None:
    found = find_endpoint({**env, "OSTLER_URL": "http://a:1/", "OSTLER_TOKEN": "t", "OSTLER_CA_FILE": "/ca"})
    assert (found.url, found.token, found.ca_file, found.origin) == ("http://a:1", "t", Path("/ca"), "OSTLER_URL")
    assert "'t'" not in repr(found)


def test_else_a_profile(env: dict[str, str]) -> None:
    path = profile.user_profile(env)
    profile.write(path, Profile(url="http://b:2", token="secret", data=Path("/d")))
    assert path.stat().st_mode & 0o777 == 0o600
    found = find_endpoint(env)
    assert (found.url, found.token, found.origin) == ("http://b:2", "secret", str(path))
    assert find_endpoint({**env, "OSTLER_TOKEN": "mine"}).token == "mine"
    assert find_endpoint({**env, "OSTLER_URL": "http://b:2/"}).token == "secret"


def test_a_profile_s_token_goes_nowhere_else(env: dict[str, str]) -> None:
    profile.write(profile.user_profile(env), Profile(url="http://b:2", token="secret"))
    assert find_endpoint({**env, "OSTLER_URL": "http://evil:2"}).token is None


@pytest.mark.parametrize(
    "url", ["here", "ftp://a", "http://", "http://a:99999", "http://a:b", "http://a b", "http://\udcff", "http://[::1"]
)
def test_an_address_that_no_coordinator_has(env: dict[str, str], url: str) -> None:
    with pytest.raises(Rejected, match="named by OSTLER_URL, is not the URL of a coordinator"):
        find_endpoint({**env, "OSTLER_URL": url, "OSTLER_TOKEN": "t"})


@pytest.mark.parametrize("token", ["sec\nret", "sec\udcffret", "secr\u00e8t", "secret ", "sec ret"])
def test_a_token_that_no_header_can_carry_is_told_without_its_text(env: dict[str, str], token: str) -> None:
    with pytest.raises(Rejected, match="the token holds a character that no token has") as caught:
        find_endpoint({**env, "OSTLER_URL": "http://a:1", "OSTLER_TOKEN": token})
    assert "sec" not in str(caught.value)


@pytest.mark.parametrize("name", ["none", "empty", "."])
def test_a_ca_file_that_cannot_be_used_is_named(env: dict[str, str], tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(Rejected, match=f"the CA file {tmp_path / name} cannot be used: "):
        Session(find_endpoint({**env, "OSTLER_URL": "https://a:1", "OSTLER_TOKEN": "t", "OSTLER_CA_FILE": str(tmp_path / name)}))


def test_a_client_certificate_and_its_key(env: dict[str, str]) -> None:
    profile.write(
        profile.user_profile(env),
        Profile(url="https://b:2", token="t", ca_file=Path("/ca"), client_cert=Path("/c"), client_key=Path("/k")),
    )
    found = find_endpoint({**env, "OSTLER_CLIENT_KEY": "/other"})
    assert (found.ca_file, found.client_cert, found.client_key) == (Path("/ca"), Path("/c"), Path("/other"))
    with pytest.raises(Rejected, match="needs its key"):
        find_endpoint({**env, "OSTLER_URL": "https://a:1", "OSTLER_TOKEN": "t", "OSTLER_CLIENT_CERT": "/c"})


def test_nothing_named(env: dict[str, str]) -> None:
    assert look_for_endpoint(env) is None
    with pytest.raises(Rejected) as caught:
        find_endpoint(env)
    assert caught.value.hint == "start one with `ostler up`, or set OSTLER_URL and OSTLER_TOKEN"


def test_a_profile_that_others_can_read_is_not_used(env: dict[str, str]) -> None:
    path = profile.user_profile(env)
    profile.write(path, Profile(url="http://b:2", token="secret"))
    path.chmod(0o640)
    with pytest.raises(InvalidSpec, match="is not yours alone"):
        find_endpoint(env)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("url: 5\n", "url: must be a text, not 5"),
        ("url: http://a\ntokn: x\n", "tokn: is not a known key; did you mean 'token'"),
        ("token: x\n", "url: is missing"),
        ("url: [\n", "is not YAML"),
        ("[]", "must be a mapping"),
    ],
)
def test_a_damaged_profile_is_told_with_its_line(env: dict[str, str], text: str, message: str) -> None:
    path = profile.user_profile(env)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(InvalidSpec, match=message.replace("[", r"\[")):
        find_endpoint(env)


def test_whose_profile_up_may_write(env: dict[str, str], tmp_path: Path) -> None:
    users, mine = profile.user_profile(env), Profile(url="http://m:1", token="m", data=tmp_path / "mine")
    other = tmp_path / "other"
    other.mkdir()
    assert may_replace(users, mine, env)  # there is none
    profile.write(users, mine)
    assert may_replace(users, mine, env)  # its own
    profile.write(users, Profile(url="http://o:1", token="o", data=other))
    assert may_replace(users, mine, env)  # of a set that no longer runs
    with hold(other):
        assert not may_replace(users, mine, env)  # of one that does
    profile.write(users, Profile(url="http://o:1", token="o", data=tmp_path / "gone"))
    assert may_replace(users, mine, env)
    profile.write(users, Profile(url="http://person:1", token="p"))
    assert not may_replace(users, mine, env)  # a person's
    users.write_text("damaged: [")
    assert not may_replace(users, mine, env)


def test_one_set_a_directory(tmp_path: Path) -> None:
    with hold(tmp_path):
        write_facts(tmp_path, "http://127.0.0.1:5", {"node": os.getpid()})
        with pytest.raises(OperationInFlight, match=rf"at http://127.0.0.1:5 \(process {os.getpid()}\)"), hold(tmp_path):
            pass
    with hold(tmp_path):
        assert read_facts(tmp_path)["children"] == {"node": [os.getpid(), start_time(os.getpid())]}


def test_damaged_facts_are_no_facts(tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text("[")
    assert read_facts(tmp_path) == {}
    assert start_time(0) is None
