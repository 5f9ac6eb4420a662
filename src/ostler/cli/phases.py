"""How far hosts are in a rollout, for people: words, colours, and a board that is drawn anew as they come further."""

import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ostler.cli import output
from ostler.model.rollout.progress import FAILURES, IN_FLIGHT, Phase, Progress
from ostler.model.words import many

WORDS = {
    Phase.PLANNED: "waits",
    Phase.LOCKING: "takes the lock",
    Phase.UPLOADING: "gets the release",
    Phase.SWITCHING: "switches and restarts",
    Phase.GATING: "is watched",
    Phase.CONFIRMING: "is good",
    Phase.GOING_BACK: "goes back",
    Phase.UNLOCKING: "gives the lock back",
    Phase.CURRENT: "unchanged",
    Phase.UPDATED: "updated",
    Phase.FAILED: "failed",
    Phase.UNHEALTHY: "unhealthy",
    Phase.UNREACHABLE: "unreachable",
    Phase.EXCLUDED: "left out",
    Phase.HELD: "not begun",
}
STYLES = {
    **dict.fromkeys(FAILURES, "red"),
    Phase.GOING_BACK: "red",
    Phase.UPDATED: "green",
    Phase.HELD: "yellow",
    Phase.EXCLUDED: "dim",
}


WAITS = {
    Phase.LOCKING: "for the host to answer",
    Phase.UPLOADING: "for the release to arrive and to be tried there",
    Phase.SWITCHING: "for the daemon to come up in the new release",
    Phase.GATING: "for host and coordinator to find it good",
    Phase.GOING_BACK: "for the daemon to come up in the release before",
}
"""What a host that is in a phase is waited for, unless more is known."""

SILENCE = timedelta(seconds=10)
AT_ONCE = 4  # hosts that are told of after a silence


class Board:
    """On a terminal one line per host that changes; else, unless it is `quiet`, one line per change, and after each silence what is waited
    for."""

    def __init__(self, hosts: Mapping[str, Progress], *, quiet: bool) -> None:
        self.hosts = dict(hosts)
        self._quiet = quiet
        self._waits: dict[str, str] = {}
        self._said_at = datetime.now(UTC)
        live = not quiet and sys.stderr.isatty()
        console = Console(stderr=True)
        self._live = Live(get_renderable=self._table, console=console, refresh_per_second=4) if live else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def change(self, after: Progress, *, at: datetime, reason: str | None) -> None:
        """A host came further."""
        self.hosts[after.host] = after
        self._waits.pop(after.host, None)
        if self._live is None and not self._quiet:
            self._say(f"{at.astimezone():%H:%M:%S} {after.host} {WORDS[after.phase]}{f': {reason}' if reason else ''}")

    def waits(self, host: str, what: str) -> None:
        """What a host is waited for in its phase: it goes on from "waits …"."""
        self._waits[host] = what

    def tick(self, now: datetime | None = None) -> None:
        """Called every second or so. Where lines are printed, and nothing was for a while, it says which hosts are under way since when."""
        now = now or datetime.now(UTC)
        if self._live is not None or self._quiet or now - self._said_at < SILENCE:
            return
        busy = [one for one in self.hosts.values() if one.phase in IN_FLIGHT]
        for one in busy[:AT_ONCE]:
            self._say(f"{now.astimezone():%H:%M:%S} {one.host} {WORDS[one.phase]} {self._since(one, now)}".rstrip())
        if busy[AT_ONCE:]:
            self._say(f"{now.astimezone():%H:%M:%S} {many(len(busy) - AT_ONCE, 'more host')} under way")
        self._said_at = now

    def _say(self, line: str) -> None:
        self._said_at = datetime.now(UTC)
        output.note(output.clean(line))

    def _since(self, one: Progress, now: datetime) -> str:
        """Since when a host is in its phase, and what it is waited for."""
        time = "" if one.since is None else f"since {one.since.astimezone():%H:%M:%S} ({(now - one.since).total_seconds():.0f} s)"
        what = self._waits.get(one.host) or WAITS.get(one.phase)
        return f"{time}: waits {what}" if what else time

    def _table(self) -> Table:
        table, now = Table(box=None, pad_edge=False, show_header=False), datetime.now(UTC)
        for name, one in list(self.hosts.items()):
            more = self._since(one, now) if one.phase in IN_FLIGHT else one.reason or ""
            table.add_row(Text(name), Text(WORDS[one.phase], style=STYLES.get(one.phase, "")), Text(more))
        return table


def took(one: Progress) -> str:
    """How long a host was under way."""
    return span(one.since - one.began_at) if one.since is not None and one.began_at is not None else ""


def span(time: timedelta) -> str:
    """Seconds, for people."""
    return f"{time.total_seconds():.1f} s"
