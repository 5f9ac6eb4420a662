"""How far hosts are, for people: what is waited for, and since when, also where nothing happens."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from ostler.cli.phases import SILENCE, Board
from ostler.fleet.host_steps import Said
from ostler.fleet.rollout.by_ssh import _lacks
from ostler.model.rollout.progress import Phase, Progress

LATER = timedelta(minutes=5)


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC)


def host(name: str, phase: Phase, since: datetime) -> Progress:
    return Progress(host=name, phase=phase, began_at=since - timedelta(minutes=2), since=since)


def test_after_a_silence_it_is_told_who_is_waited_for_since_when(now: datetime, capsys: pytest.CaptureFixture[str]) -> None:
    hosts = {name: Progress(host=name) for name in ("mini-1", "mini-2", "mini-3")}
    with Board(hosts, quiet=False) as board:
        board.change(host("mini-1", Phase.SWITCHING, now - timedelta(seconds=90)), at=now, reason=None)
        board.change(host("mini-2", Phase.GATING, now), at=now, reason=None)
        board.waits("mini-2", "for its window to pass without trouble (15 s)")
        board.tick(now)
        assert len(capsys.readouterr().err.splitlines()) == 2
        board.tick(now + LATER)
        board.tick(now + LATER + SILENCE / 2)
    first, second = capsys.readouterr().err.splitlines()
    since = r"since \d\d:\d\d:\d\d"
    assert re.fullmatch(
        rf"\d\d:\d\d:\d\d mini-1 switches and restarts {since} \(390 s\): waits for the daemon to come up in the new release",
        first,
    )
    assert re.fullmatch(rf"\d\d:\d\d:\d\d mini-2 is watched {since} \(300 s\): waits for its window to pass .* \(15 s\)", second)


def test_of_many_hosts_a_few_are_named(now: datetime, capsys: pytest.CaptureFixture[str]) -> None:
    board = Board({str(number): host(str(number), Phase.SWITCHING, now) for number in range(20)}, quiet=False)
    board.tick(now + LATER)
    *_, last = lines = capsys.readouterr().err.splitlines()
    assert (len(lines), last[8:]) == (5, " 16 more hosts under way")
    quiet = Board(board.hosts, quiet=True)
    quiet.tick(now + LATER)
    assert capsys.readouterr().err == ""


def test_the_live_view_tells_the_same_and_forgets_what_is_over(now: datetime) -> None:
    board = Board({"mini-1": host("mini-1", Phase.GATING, now)}, quiet=False)

    def shown() -> str:
        console = Console(width=200)
        with console.capture() as captured:
            console.print(board._table())
        return captured.get()

    assert re.search(
        r"mini-1 +is watched +since \d\d:\d\d:\d\d \(\d+ s\): waits for host and coordinator to find it good", shown()
    )
    board.waits("mini-1", "for something else")
    assert "waits for something else" in shown()
    board.change(host("mini-1", Phase.UPDATED, now), at=now, reason=None)
    assert "waits" not in shown()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"state": "watching"}, "for the daemon to be good in itself"),
        ({"state": "watching", "resumed": True}, "for its window to pass without trouble (15 s)"),
        ({"state": "holding", "reason": "no coordinator"}, "for its watcher, which says: no coordinator"),
        ({"state": "good", "resumed": True}, "for the coordinator to see the release"),
    ],
)
def test_what_a_watched_host_still_has_to_show(said: dict[str, object], words: str) -> None:
    assert _lacks(Said(**said), timedelta(seconds=15)).startswith(words)
