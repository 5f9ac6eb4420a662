"""The engine against a scripted carrier: order, journal before everything else, and going on after an interruption at any step."""

import asyncio
import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ostler.fleet.rollout.engine import Engine, Result
from ostler.fleet.rollout.journal import Happened, Journal, found_bad, is_over, rollouts, under_way, unfinished
from ostler.model.errors import Conflict, InvalidSpec, NotFound
from ostler.model.rollout.plan import Plan, Share
from ostler.model.rollout.progress import Event, Phase, Progress

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PLAN = Plan(
    rollout_id="r1", release="0.2.0-new", hosts=("a", "b", "c"), excluded={"c": "paused"}, serial=Share(50, percent=True),
    max_failures=Share(1), window=timedelta(seconds=3),
)  # fmt: skip


class Scripted:
    """A carrier that answers as told, DONE else; `asked` is what it was asked for."""

    def __init__(self, answers: dict[tuple[str, Phase], Result] | None = None) -> None:
        self.answers = answers or {}
        self.asked: list[tuple[str, Phase, str | None]] = []

    async def carry(self, host: str, phase: Phase, reason: str | None) -> Result:
        self.asked.append((host, phase, reason))
        await asyncio.sleep(0)
        return self.answers.get((host, phase), Result(event=Event.DONE))


def engine(
    journal: Journal, carrier: Scripted, progress: dict[str, Progress] | None = None, heard: list[Happened] | None = None
) -> Engine:
    def hear(happened: Happened, after: Progress) -> None:
        assert after.phase is happened.phase
        assert json.loads(journal.path.read_bytes().splitlines()[-1])["host"] == happened.host  # written down before it is told
        if heard is not None:
            heard.append(happened)

    return Engine(PLAN, carrier, journal=journal, progress=progress, heard=hear, clock=lambda: NOW)


async def test_a_rollout_runs_to_its_end(tmp_path: Path) -> None:
    journal, carrier, heard = Journal.create(tmp_path, PLAN, extra={"digest": "d"}), Scripted(), []
    assert not is_over(tmp_path, "r1")
    ends = await engine(journal, carrier, heard=heard).run()
    assert {name: one.phase for name, one in ends.items()} == {"a": Phase.UPDATED, "b": Phase.UPDATED, "c": Phase.EXCLUDED}
    assert [phase for host, phase, _ in carrier.asked if host == "a"] == [
        Phase.LOCKING, Phase.UPLOADING, Phase.SWITCHING, Phase.GATING, Phase.CONFIRMING, Phase.UNLOCKING
    ]  # fmt: skip
    assert [host for host, phase, _ in carrier.asked if phase is Phase.LOCKING] == ["a", "b"]
    assert len(heard) == 1 + 2 * 7
    journal.close()
    assert unfinished(tmp_path) is None
    assert is_over(tmp_path, "r1")
    assert not is_over(tmp_path, "somebody-elses")


async def test_why_a_host_goes_back_reaches_it_and_the_summary(tmp_path: Path) -> None:
    sick = Result(event=Event.SICK, reason="it cannot run a job", detail="journal …")
    carrier = Scripted({("a", Phase.GATING): sick})
    journal = Journal.create(tmp_path, PLAN, extra={})
    one = engine(journal, carrier)
    ends = await one.run()
    assert ("a", Phase.GOING_BACK, "it cannot run a job") in carrier.asked
    assert (ends["a"].phase, ends["a"].reason) == (Phase.UNHEALTHY, "it cannot run a job")
    assert ends["b"].phase is Phase.HELD
    assert one.halted == "canary a failed"
    journal.close()


STEPS = [
    (host, phase) for host in ("a", "b") for phase in Phase if phase.value.endswith("ing") and phase not in (Phase.GOING_BACK,)
]


@pytest.mark.parametrize(("host", "phase"), STEPS)
async def test_cut_off_at_any_step_it_goes_on(tmp_path: Path, host: str, phase: Phase) -> None:
    carrier, journal = Scripted(), Journal.create(tmp_path, PLAN, extra={"digest": "d"})
    first = engine(journal, carrier)

    reached = asyncio.Event()

    async def cut_off() -> None:
        async def carry(name: str, where: Phase, reason: str | None) -> Result:
            if (name, where) == (host, phase):
                reached.set()
                await asyncio.Event().wait()
            return await Scripted.carry(carrier, name, where, reason)

        carrier.carry = carry  # type: ignore[method-assign]
        running = asyncio.create_task(first.run())
        await reached.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    await cut_off()
    journal.close()
    with journal.path.open("ab") as torn:
        torn.write(b'{"at": "2026-')  # and the last line was torn
    assert unfinished(tmp_path) == "r1"
    journal, plan, progress, extra = Journal.resume(tmp_path, "r1")
    assert (plan, extra) == (PLAN, {"digest": "d"})
    assert progress[host].phase is Phase.PLANNED
    ends = await engine(journal, Scripted(), progress).run()
    assert {name: one.phase for name, one in ends.items()} == {"a": Phase.UPDATED, "b": Phase.UPDATED, "c": Phase.EXCLUDED}
    journal.close()
    assert unfinished(tmp_path) is None
    assert rollouts(tmp_path) == ["r1"]


async def test_failures_before_an_interruption_count(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, PLAN, extra={})
    for number, (event, phase) in enumerate([(Event.LOST, Phase.UNREACHABLE), (Event.BEGIN, Phase.LOCKING)]):
        journal.note(Happened(at=NOW, host="ab"[number], event=event, phase=phase, reason="no SSH"))
    journal.close()
    journal, _, progress, _ = Journal.resume(tmp_path, "r1")
    assert (progress["a"].phase, progress["a"].reason, progress["b"].phase) == (Phase.UNREACHABLE, "no SSH", Phase.PLANNED)
    journal.close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, PLAN, extra={})
    with pytest.raises(Conflict, match="another process carries out"):
        Journal.resume(tmp_path, "r1")
    assert under_way(tmp_path, "r1")
    journal.close()
    assert not under_way(tmp_path, "r1")
    Journal.resume(tmp_path, "r1")[0].close()  # looking has kept nothing


def test_what_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no journal of a rollout 'r9'"):
        Journal.resume(tmp_path, "r9")
    (tmp_path / "r2.jsonl").write_text('{"plan": {}}\n')
    with pytest.raises(InvalidSpec, match="no journal that this release reads"):
        Journal.resume(tmp_path, "r2")
    (tmp_path / "r3.jsonl").write_text("")
    assert unfinished(tmp_path) is None


async def test_a_release_was_found_bad_until_its_newest_rollout_says_otherwise(tmp_path: Path) -> None:
    assert found_bad(tmp_path, PLAN.release) is None
    bad = {("a", Phase.GATING): Result(event=Event.WENT_BACK, reason="the daemon ended 2 times")}
    journal = Journal.create(tmp_path, PLAN, extra={})
    await engine(journal, Scripted(bad)).run()
    found = found_bad(tmp_path, PLAN.release)
    assert found is not None
    assert (found.host, found.reason) == ("a", "the daemon ended 2 times")
    assert found_bad(tmp_path, "0.3.0-another") is None
    later = Journal.create(tmp_path, replace(PLAN, rollout_id="r2"), extra={})
    os.utime(later.path, (2**31, 2**31))
    assert found_bad(tmp_path, PLAN.release) is None
    for one in (journal, later):
        one.close()
