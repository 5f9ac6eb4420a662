"""`ostler fleet update` before it reaches a host: what is wrong with the command is one line, and nothing else is looked at."""

import re
from pathlib import Path

import pytest

from cli_rig import ostler
from ostler.cli.fleet.asking import show_steps
from ostler.fleet.host_steps import HostSteps
from ostler.fleet.releases.store import Release
from ostler.fleet.rollout.journal import Journal
from ostler.model.rollout.plan import Plan
from release_rig import make, new_keys


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
        (["--window", "0s"], "'0s' is too short: what is new is watched for at least 1s"),
        (["--window", "500ms"], "'500ms' is too short"),
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


REACH = ("-i", "ostler-fleet.yml", "--known-hosts", "known", "-F", "none")


@pytest.fixture
def release(here: Path) -> Release:
    return make(here / "store", new_keys(here / "keys"))


def test_an_interrupted_rollout_is_gone_on_with_as_it_was_begun_wherever_one_stands(
    here: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an inventory that says what a host's configuration is, with everything that the command was told: nothing is to be said again."""
    (here / "ostler-fleet.yml").write_text("hosts:\n  mini-1: {address: 127.0.0.1, port: 1}\n")
    told = (*REACH, "--store", "store", "--coordinator", "http://192.0.2.1:7070", "--accept-new", "--yes", "-m", "lunch")
    first = ostler("fleet", "update", *told)
    assert first.returncode == 1
    assert "keep their configurations" not in first.stderr
    (journal,) = (here / "home/.local/state/ostler/rollouts").glob("*.jsonl")
    head, *_ = journal.read_text().splitlines()
    journal.write_text(f"{head}\n")  # as a kill at once leaves it
    assert "192.0.2.1" in head
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    resumed = ostler("fleet", "update", "--resume")
    assert (resumed.returncode, resumed.stdout) == (1, first.stdout)
    assert "keep their configurations" not in resumed.stderr
    again = re.search("try again: (.*)", resumed.stderr)
    assert again is not None
    assert again[1] == (
        f"ostler fleet update -i {here}/ostler-fleet.yml --ssh-config none --known-hosts {here}/known --accept-new --store {here}/store "
        f"--coordinator http://192.0.2.1:7070 --release {release.release} --host mini-1"
    )
    assert "no rollout was interrupted" in ostler("fleet", "update", "--resume").stderr


def test_a_rollout_of_hosts_that_were_only_named_is_gone_on_with(
    here: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here / "store")
    first = ostler("fleet", "update", "-H", "eve@127.0.0.1:1", "--store", here / "store", "--yes", "--no-coordinator")
    assert (first.returncode, release.release in first.stdout) == (1, True)
    (journal,) = (here / "home/.local/state/ostler/rollouts").glob("*.jsonl")
    journal.write_text(journal.read_text().splitlines()[0] + "\n")
    resumed = ostler("fleet", "update", "--resume")
    assert "cannot connect to 127.0.0.1:1" in resumed.stdout
    assert resumed.stderr.endswith(f"--release {release.release} --no-coordinator --host eve@127.0.0.1:1\n")


def test_a_dry_run_in_which_no_host_could_be_begun_with_is_no_success(
    here: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here / "store")
    done = ostler("fleet", "update", "-H", "eve@127.0.0.1:1", "--store", here / "store", "--dry-run", "--no-coordinator")
    assert (done.returncode, "not be reached" in done.stdout) == (1, True)


def test_what_would_be_done_is_said_once_for_all_hosts_and_exactly_if_asked(here: Path) -> None:
    """Of commands that look at no host first."""
    (here / "ostler-fleet.yml").write_text("hosts: [a, b]\n")
    for words, said in (
        (("rotate-credentials",), "1. replace the key: the node makes a new one"),
        (("prune",), "1. remove old releases: the 2 newest stay"),
        (("uninstall", "--keep-node"), "1. stop and remove: daemon and keeper end"),
    ):
        shown = ostler("fleet", *words, "--dry-run", *REACH)
        assert shown.returncode == 0
        assert said in shown.stdout
        assert "python3" not in shown.stdout
        exactly = ostler("fleet", *words, "--dry-run", "--verbose", *REACH).stdout
        assert exactly.count("/usr/bin/python3 -I -c") == 2


def test_steps_that_some_hosts_have_are_told_with_these_hosts(capsys: pytest.CaptureFixture[str]) -> None:
    steps = HostSteps()
    lock, upload, switch = steps.lock("r", "me", "w"), steps.install("d", b""), steps.switch("r", "1", window_s=1, own=None)
    show_steps({"a": [lock, switch], "b": [lock, upload, switch]}, {}, verbose=False)
    lines = [line.split(":")[0].strip() for line in capsys.readouterr().out.splitlines()[2:]]
    assert lines == ["1. take the lock", "2. upload and verify", "on b alone", "3. switch and restart"]


@pytest.mark.parametrize("words", [("update", "--yes"), ("status",), ("hosts",), ("prune",), ("logs",)])
def test_mistakes_of_the_command_are_2_and_those_of_a_file_3(here: Path, words: tuple[str, ...]) -> None:
    """As docs/reference/cli.md has it, for all commands alike."""
    assert ostler("fleet", *words, "--host", "nobody").returncode == 2
    assert ostler("fleet", *words, "-i", "missing.yml").returncode == 3
    (here / "ostler-fleet.yml").write_text("hosts: {a: {prot: 1}}\n")
    done = ostler("fleet", *words)
    assert (done.returncode, "did you mean 'port'?" in done.stderr) == (3, True)
