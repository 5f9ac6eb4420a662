"""`ostler fleet update` before it reaches a host: what is wrong with the command is one line, and nothing else is looked at."""

from pathlib import Path

import pytest

from cli_rig import ostler
from ostler.fleet.rollout.journal import Journal
from ostler.model.rollout.plan import Plan


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An inventory, no release, no coordinator."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("OSTLER_INVENTORY", "OSTLER_URL", "OSTLER_TOKEN", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "ostler-fleet.yml").write_text("hosts:\n  mini-1: {address: 127.0.0.1, groups: [miners]}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--serial", "x"], "`x` is neither a number of hosts (3) nor a percentage of them (25%)"),
        (["--serial", "0"], "it must be at least 1 host, or 1%"),
        (["--canary", "-1"], "greater than or equal to 0"),
        (["--canary", "all"], "unable to parse string as an integer"),
        (["--max-failures", "200%"], "`200%` is neither a number of hosts"),
        (["--timeout", "soon"], "'soon'"),
        (["--host", "mimi-1"], "the inventory has no host 'mimi-1'; did you mean 'mini-1'?"),
        (["--group", "miner"], "no host is in a group 'miner'; did you mean 'miners'?"),
        (["--serail", "3"], "No such option: --serail"),
    ],
)
def test_a_mistake_in_the_command_is_told_before_anything_is_looked_for(args: list[str], said: str) -> None:
    done = ostler("fleet", "update", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert "release" not in done.stderr
    assert "Traceback" not in done.stderr


def test_where_all_is_well_with_the_command_the_release_is_looked_for() -> None:
    done = ostler("fleet", "update", "--serial", "25%", "--max-failures", "1", "--canary", "0")
    assert done.returncode == 3
    assert "ostler release build" in done.stderr


def test_an_address_that_hosts_do_not_reach_is_told_before_anything_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTLER_URL", "http://127.0.0.1:7070")
    monkeypatch.setenv("OSTLER_TOKEN", "x")
    done = ostler("fleet", "update")
    assert "only this machine reaches" in done.stderr
    assert "say --coordinator URL" in done.stderr
    assert "ostler release build" in ostler("fleet", "update", "--keep-config").stderr


def test_a_rollout_that_lives_is_not_called_interrupted(here: Path) -> None:
    plan = Plan(rollout_id="r1", release="0.2.0-new", hosts=("mini-1",))
    journal = Journal.create(here / "home/.local/state/ostler/rollouts", plan, extra={})
    said = ostler("fleet", "update").stderr
    assert "note: another process carries out the rollout r1" in said
    assert "--resume" not in said
    journal.close()
    assert "rollout r1 was interrupted; `ostler fleet update --resume` goes on" in ostler("fleet", "update").stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "say either who gets through, or --remove"),
        (["--allow", "10.0.0.0/8", "--remove"], "say either who gets through, or --remove"),
        (["--allow", "10.0.0.1/8"], "10.0.0.1/8 has host bits set"),
        (["--allow", "10.0.0.0/8; flush ruleset"], "say it as 10.0.0.0/8, 192.0.2.7 or fd00::/8"),
    ],
)
def test_mistakes_in_whom_to_let_through(args: list[str], said: str) -> None:
    done = ostler("fleet", "firewall", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in " ".join(done.stderr.replace("│", " ").split())
