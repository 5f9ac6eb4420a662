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


class Board:
    """On a terminal one line per host that changes; else, unless it is `quiet`, one line per change."""

    def __init__(self, hosts: Mapping[str, Progress], *, quiet: bool) -> None:
        self.hosts = dict(hosts)
        self._quiet = quiet
        live = not quiet and sys.stderr.isatty()
        self._live = Live(self._table(), console=Console(stderr=True), refresh_per_second=4) if live else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def change(self, after: Progress, *, at: datetime, reason: str | None) -> None:
        """A host came further."""
        self.hosts[after.host] = after
        if self._live is not None:
            self._live.update(self._table())
        elif not self._quiet:
            output.note(output.clean(f"{at:%H:%M:%S} {after.host} {WORDS[after.phase]}{f': {reason}' if reason else ''}"))

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, show_header=False)
        for name, one in self.hosts.items():
            spent = span(datetime.now(UTC) - one.began_at) if one.began_at is not None and one.phase in IN_FLIGHT else ""
            table.add_row(
                Text(name), Text(WORDS[one.phase], style=STYLES.get(one.phase, "")), Text(spent), Text(one.reason or "")
            )
        return table


def took(one: Progress) -> str:
    """How long a host was under way."""
    return span(one.since - one.began_at) if one.since is not None and one.began_at is not None else ""


def span(time: timedelta) -> str:
    """Seconds, for people."""
    return f"{time.total_seconds():.1f} s"
