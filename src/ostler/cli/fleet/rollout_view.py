"""A rollout for people: the plan before it, one line for each host while it runs, the summary after it."""

import asyncio
import shlex
from collections.abc import Mapping
from typing import Any

from ostler.cli import output
from ostler.cli.phases import WORDS, Board, took
from ostler.fleet.rollout.by_ssh import Looked
from ostler.fleet.rollout.journal import Happened
from ostler.model.rollout.plan import Plan
from ostler.model.rollout.progress import FAILURES, TERMINAL, Event, Phase, Progress

JOURNAL_LINES = 12
DETAIL_LINES = 40
TICK_S = 1.0


def show_plan(plan: Plan, looked: Mapping[str, Looked]) -> None:
    """What would change on each host, and which will not be touched and why."""
    rows = [(host, *_outlook(plan, host, looked.get(host, Looked()))) for host in plan.hosts]
    output.table(output.columns("HOST|NOW?|WILL|WHY+?"), rows, empty="no hosts")
    for host in plan.hosts:
        verdict = looked.get(host, Looked()).verdict
        for warning in verdict.warnings if verdict is not None else ():
            output.note(f"warning: {host}: {warning}")


def _outlook(plan: Plan, host: str, looked: Looked) -> tuple[str | None, str, str]:
    now = looked.facts.current if looked.facts is not None else None
    if host in plan.excluded:
        return now, "be left out", plan.excluded[host]
    if looked.unreachable is not None:
        return now, "not be reached", looked.unreachable
    verdict = looked.verdict
    if verdict is None:
        return now, "be looked at", ""
    if verdict.refusal is not None:
        return now, "be refused", verdict.refusal
    if not verdict.drift:
        return now, "stay as it is", ""
    return now, "go first" if host in plan.canaries else "be updated", "; ".join(verdict.drift)


class Progressing:
    """Hears of each event. On a terminal one line per host that changes; else, and for `--json`, one line per event."""

    def __init__(self, plan: Plan, *, as_json: bool) -> None:
        self._as_json = as_json
        self._board = Board({host: Progress(host=host) for host in plan.hosts}, quiet=as_json)
        self.waits = self._board.waits
        self.details: dict[str, list[str]] = {}  # what a host said beside why it failed: its unit's journal, or all mistakes

    def __enter__(self) -> "Progressing":
        self._board.__enter__()
        self._ticking = asyncio.get_running_loop().create_task(self._tick())
        return self

    def __exit__(self, *_: object) -> None:
        self._ticking.cancel()
        self._board.__exit__(None, None, None)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._board.tick()

    def heard(self, happened: Happened, after: Progress) -> None:
        """One event."""
        if happened.detail and after.failed:
            lines = happened.detail.splitlines()
            refused = happened.event is Event.REFUSED and after.fate is Phase.FAILED
            shown = (
                ["all of it:", *lines[:DETAIL_LINES]] if refused else ["the last lines of its journal:", *lines[-JOURNAL_LINES:]]
            )
            self.details.setdefault(happened.host, shown)
        if self._as_json:
            output.print_line(happened.plain())
        self._board.change(after, at=happened.at, reason=happened.reason)


def summarise(ends: Mapping[str, Progress], *, details: Mapping[str, list[str]], halted: str | None, retry: list[str]) -> None:
    """How each host ended, why, what its unit wrote where it failed, and what to paste to try the others again."""
    rows = [(one.host, WORDS[one.phase], took(one), one.reason) for one in ends.values()]
    output.table(output.columns("HOST|ENDED|TOOK>?|WHY+?"), rows, empty="no hosts")
    counts = {phase: sum(one.phase is phase for one in ends.values()) for phase in Phase if phase in TERMINAL}
    output.say(", ".join(f"{count} {WORDS[phase]}" for phase, count in counts.items() if count))
    for host, (title, *lines) in details.items():
        output.note(f"{host}, {title}")
        for line in lines:
            output.note(f"  {output.clean(line)}")
    if halted:
        output.note(f"nothing new was begun: {halted}")
    if retry:
        output.note(f"try again: {shlex.join(retry)}")


def to_retry(ends: Mapping[str, Progress]) -> list[str]:
    """The hosts that are not where they should be."""
    return [host for host, one in ends.items() if one.phase in FAILURES or one.phase is Phase.HELD]


def plain(ends: Mapping[str, Progress], halted: str | None) -> dict[str, Any]:
    """The summary for `--json`."""
    return {
        "hosts": {host: {"ended": one.phase.value, "reason": one.reason} for host, one in ends.items()},
        "halted": halted,
    }
