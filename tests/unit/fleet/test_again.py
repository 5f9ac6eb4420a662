"""Commands that are printed for some hosts: with all that the one before was told of them, and with nothing that they do not know."""

import shlex
from pathlib import Path

import pytest

from cli_rig import ostler
from ostler.cli.fleet import asking
from ostler.fleet.again import KNOWN, line
from ostler.model.errors import MachineUnreachable, Rejected

GIVEN = {
    "--inventory": ["a b.yml", "c.yml"], "--dest": None, "--accessories": False, "--known-hosts": Path("/k"), "--accept-new": True,
    "--coordinator": "https://c", "--allowlist": Path("allow"), "--release": None, "--keep-state": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("install", "-i 'a b.yml' -i c.yml --known-hosts /k --accept-new --coordinator https://c --allowlist allow --host x,y"),
        ("update", "-i 'a b.yml' -i c.yml --known-hosts /k --accept-new --coordinator https://c --host x,y"),
        ("uninstall", "-i 'a b.yml' -i c.yml --known-hosts /k --accept-new --keep-state --host x,y"),
        ("lock break", "-i 'a b.yml' -i c.yml --known-hosts /k --accept-new --host x,y"),
    ],
)
def test_what_was_given_is_said_again(command: str, said: str) -> None:
    assert line(command, GIVEN, ["x", "y"]) == f"ostler fleet {command} {said}"


def test_a_host_is_named_again_as_it_was_named() -> None:
    given = {"--host": ["deploy@x:2222, y", "root@fd00::1"]}
    assert line("update", given, ["x", "y"]) == "ostler fleet update --host deploy@x:2222,y"
    assert line("update", given, ["fd00::1", "z"]) == "ostler fleet update --host root@fd00::1,z"


@pytest.mark.parametrize("command", KNOWN)
def test_each_command_knows_the_options_that_it_is_given(command: str) -> None:
    help_text = ostler("fleet", *command.split(), "--help").stdout
    assert [option for option in KNOWN[command] if option not in help_text] == []


def test_the_command_for_a_host_that_failed_is_parsed_and_comes_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my fleet.yml").write_text("hosts:\n  mini-1: {address: 127.0.0.1, port: 1}\n")
    args = ("fleet", "uninstall", "-i", "my fleet.yml", "--known-hosts", "known", "--keep-state", "--yes")
    first = ostler(*args)
    note, again = first.stderr.splitlines()[-1].split("; again: ")
    assert (first.returncode, note) == (1, "1 of 1 host failed")
    second = ostler(*shlex.split(again)[1:], "--yes")
    assert (second.returncode, second.stderr) == (1, first.stderr)
    assert "--keep-state --host mini-1" in again


def test_lines_of_an_error_become_one() -> None:
    error = Rejected("the node was not enrolled: error: no answer\nhint: is it running?\n")
    assert asking.why(error) == "the node was not enrolled: error: no answer; is it running?"
    assert asking.why(MachineUnreachable("gone", hint="wait")) == "unreachable: gone (wait)"
