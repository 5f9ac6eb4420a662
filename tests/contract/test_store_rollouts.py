"""Rollouts in the store: planned, begun, carried on by what nodes report, and ended by people."""

from datetime import timedelta

import pytest

from ostler.coordinator.operations import duties, nodes, releases, rollout_turns, rollouts
from ostler.model.errors import Conflict, InvalidSpec, InvalidTransition, NotFound, OperationInFlight, Outdated
from ostler.model.failures import Failure, FailureCode
from ostler.model.release import Excerpt, Release
from ostler.model.rollout.progress import Phase
from ostler.model.rollout.report import Report, Stage
from ostler.model.rollout.state import RolloutState
from ostler.protocol import messages as m
from store_rig import Rig

OLD, NEW, PLATFORM = "1.0-old", "2.0-new", "cp311-x86_64"


class Fleet:
    """Nodes that call in, and a rollout over them."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.released = dict[str, str]()

    async def join(self, *names: str, release: str = OLD, updates: str | None = PLATFORM, **more) -> None:
        for name in names:
            self.released[name] = release
            await self.rig.join(name, release=release, updates=updates, **more)
            await self.rig.beat(name)

    async def say(
        self,
        name: str,
        stage: Stage | None = None,
        reason: str | None = None,
        detail: str | None = None,
        *,
        rollout_id: str,
        **more,
    ):
        """A heartbeat with a word about the update; answers what the node is asked for."""
        report = None if stage is None else Report(update_id=rollout_id, release=NEW, stage=stage, reason=reason, detail=detail)
        asked = await self.rig.beat(name, update=report, **more)
        return next((one.update for one in asked if one.kind is m.DirectiveKind.UPDATE), None)

    async def switch(self, name: str, release: str) -> None:
        """Its new daemon opens a session."""
        self.released[name] = release
        await self.rig.register(name, f"boot:{release}", release=release, updates=PLATFORM)
        await self.rig.beat(name)

    async def plan(self, **asked) -> m.RolloutView:
        return await self.rig.write(rollouts.plan_rollout, m.RolloutRequest(release=NEW, **asked), "r1", "ada")

    async def drive(self, rollout_id: str = "r1", **waited: float) -> m.RolloutView:
        """A look of the loop at it; `waited` are seconds by node."""
        self.rig.clock.advance(1)
        found = (await self.rig.read(rollout_turns.open_rollouts)).get(rollout_id, [])
        times = {(name, phase): timedelta(seconds=waited.get(name, 0)) for name, phase in found}
        due = await self.rig.read(rollout_turns.is_due, rollout_id, times)
        moves = await self.rig.write(rollout_turns.drive, rollout_id, times)
        assert due is bool(moves.happened or moves.trials or moves.over)
        return await self.show(rollout_id)

    async def show(self, rollout_id: str = "r1") -> m.RolloutView:
        return await self.rig.read(rollouts.show_rollout, rollout_id)

    async def work(self, name: str, failure: Failure | None = None) -> None:
        """Take the canary job, and do it."""
        [lease] = await self.rig.begin(name)
        assert (await self.rig.finish(name, lease, failure=failure)).ok

    async def update(self, name: str, rollout_id: str = "r1") -> None:
        """All that a node does where all goes well."""
        await self.say(name, Stage.FETCHING, rollout_id=rollout_id)
        await self.switch(name, NEW)
        await self.say(name, Stage.WATCHING, rollout_id=rollout_id)
        await self.drive(rollout_id)
        await self.work(name)
        await self.say(name, Stage.GOOD, rollout_id=rollout_id)


@pytest.fixture
async def fleet(rig: Rig) -> Fleet:
    release = Release(
        release=NEW, digest="d" * 64, version="2.0", commit=None, made=0, protocol=(1, 1), schema=4, platforms=(PLATFORM,),
        signed_by=("a",), generation=1, keys={"a": b"a" * 32},
        excerpts={PLATFORM: Excerpt(sha256="7" * 64, size=7, pieces=((0, 7),))},
    )  # fmt: skip
    await rig.write(releases.add_release, release, sha256="5" * 64, size=7, by="ada", trust=True)
    return Fleet(rig)


def phases(view: m.RolloutView) -> dict[str, Phase]:
    return {host.node_id: host.phase for host in view.hosts}


async def begun(fleet: Fleet, **asked) -> m.RolloutView:
    await fleet.plan(**asked)
    await fleet.rig.write(rollouts.resume_rollout, "r1", None)
    return await fleet.drive()


async def test_a_plan_says_what_will_be_done_and_asks_nobody(fleet: Fleet) -> None:
    await fleet.join("a", release=NEW)
    await fleet.join("b", "c")
    await fleet.join("d", updates=None)
    await fleet.join("e", updates="cp313-x86_64")
    await fleet.join("f")
    await fleet.rig.write(nodes.cordon_node, "f", "smells")
    view = await fleet.plan()
    assert (view.state, view.revision) == (RolloutState.PLANNED, 1)
    assert [host.node_id for host in view.hosts] == ["b", "c", "a", "d", "e", "f"]
    assert [host.canary for host in view.hosts] == [True, False, False, False, False, False]
    assert phases(view) == {
        "a": Phase.CURRENT, "b": Phase.PLANNED, "c": Phase.PLANNED, "d": Phase.FAILED, "e": Phase.FAILED, "f": Phase.EXCLUDED
    }  # fmt: skip
    assert {host.node_id: host.reason for host in view.hosts}["f"] == "cordoned: smells"
    assert await fleet.say("b", rollout_id="r1") is None
    assert await fleet.rig.read(rollout_turns.open_rollouts) == {}


async def test_the_canary_then_the_others_and_the_end(fleet: Fleet) -> None:
    await fleet.join("a", "b", "c")
    view = await begun(fleet)
    assert phases(view) == {"a": Phase.LOCKING, "b": Phase.PLANNED, "c": Phase.PLANNED}
    wanted = await fleet.say("a", rollout_id="r1")
    assert wanted == m.WantedUpdate(rollout_id="r1", release=NEW, platform=PLATFORM, sha256="7" * 64, size=7, window_s=45.0)
    assert await fleet.say("b", rollout_id="r1") is None
    assert [await fleet.rig.read(rollout_turns.is_asked, name, NEW) for name in "ab"] == [True, False]
    await fleet.update("a")
    view = await fleet.drive()
    assert phases(view) == {"a": Phase.UPDATED, "b": Phase.LOCKING, "c": Phase.LOCKING}
    assert await fleet.say("a", rollout_id="r1") is None
    wanted = await fleet.say("b", rollout_id="r1")
    assert wanted is not None
    assert wanted.window_s == 15.0
    for name in ("b", "c"):
        await fleet.update(name)
    view = await fleet.drive()
    assert (view.state, set(phases(view).values()), view.reason) == (RolloutState.DONE, {Phase.UPDATED}, None)
    assert view.finished_at is not None
    assert {host.release for host in view.hosts} == {NEW}
    assert await fleet.rig.read(rollout_turns.open_rollouts) == {}
    assert await fleet.rig.rows("SELECT node_id FROM nodes WHERE rollout_id IS NOT NULL") == []
    kinds = await fleet.rig.rows("SELECT message FROM events WHERE kind = 'rollout' AND node_id = 'a' ORDER BY id")
    assert kinds[-1] == ("r1: updated",)


async def test_a_canary_that_went_back_holds_all_others(fleet: Fleet) -> None:
    await fleet.join("a", "b")
    await begun(fleet)
    await fleet.say("a", Stage.WENT_BACK, "the daemon ended 2 times", "x" * 9000 + "\0Traceback", rollout_id="r1")
    view = await fleet.drive()
    assert (view.state, view.reason) == (RolloutState.FAILED, "canary a failed")
    assert phases(view) == {"a": Phase.UNHEALTHY, "b": Phase.HELD}
    assert view.hosts[0].reason == "the daemon ended 2 times"
    assert view.hosts[0].detail is not None
    assert view.hosts[0].detail.endswith("\0Traceback")
    assert len(view.hosts[0].detail) == rollout_turns.MAX_DETAIL


async def test_a_canary_job_that_fails_has_the_node_go_back(fleet: Fleet) -> None:
    await fleet.join("a")
    await begun(fleet)
    await fleet.say("a", Stage.FETCHING, rollout_id="r1")
    await fleet.switch("a", NEW)
    await fleet.say("a", Stage.GOOD, rollout_id="r1")
    view = await fleet.drive()
    assert view.hosts[0].job_id is not None
    await fleet.work("a", Failure(FailureCode.DENY, "not on the allowlist"))
    assert phases(await fleet.drive()) == {"a": Phase.GOING_BACK}
    wanted = await fleet.say("a", Stage.GOOD, rollout_id="r1")
    assert wanted is not None
    assert "E_DENY: not on the allowlist" in (wanted.back or "")
    await fleet.say("a", Stage.WENT_BACK, "as asked", rollout_id="r1")
    view = await fleet.drive()
    assert (view.state, phases(view)) == (RolloutState.FAILED, {"a": Phase.UNHEALTHY})


async def test_a_node_without_a_free_slot_or_commands_is_judged_by_itself_alone(fleet: Fleet) -> None:
    await fleet.join("a")
    await fleet.join("b", runners=("python",))
    await fleet.rig.submit(4)
    await fleet.rig.begin("a")
    await begun(fleet, canary=2)
    for name in ("a", "b"):
        await fleet.say(name, Stage.FETCHING, rollout_id="r1")
    held = [m.Held(*row) for row in await fleet.rig.rows("SELECT job_id, attempt FROM jobs WHERE attempt > 0")]
    await fleet.rig.register("a", "boot:2", release=NEW, updates=PLATFORM, held=held)
    await fleet.rig.register("b", "boot:2", release=NEW, updates=PLATFORM, runners=("python",))
    await fleet.say("a", Stage.GOOD, rollout_id="r1", held=held)
    await fleet.say("b", Stage.GOOD, rollout_id="r1")
    assert phases(await fleet.drive()) == {"a": Phase.GATING, "b": Phase.UPDATED}
    fleet.rig.clock.advance(91)
    await fleet.rig.write(duties.expire_due)
    assert phases(await fleet.drive())["a"] is Phase.UPDATED


async def test_patience_is_told_and_what_is_silent_is_unreachable(fleet: Fleet) -> None:
    await fleet.join("a", "b")
    await begun(fleet, canary=0, max_failures="2")
    assert phases(await fleet.drive(a=10, b=10)) == {"a": Phase.LOCKING, "b": Phase.LOCKING}
    await fleet.rig.write(lambda tx: tx.run("UPDATE nodes SET state = 'unknown' WHERE node_id = 'b'"))
    view = await fleet.drive(a=601, b=601)
    assert phases(view) == {"a": Phase.FAILED, "b": Phase.UNREACHABLE}
    assert view.state is RolloutState.FAILED


async def test_paused_resumed_and_aborted(fleet: Fleet) -> None:
    await fleet.join("a", "b", "c")
    await begun(fleet)
    with pytest.raises(Outdated, match="its revision is 2, not 1"):
        await fleet.rig.write(rollouts.pause_rollout, "r1", None, 1)
    view = await fleet.rig.write(rollouts.pause_rollout, "r1", "lunch", 2)
    assert (view.state, view.reason, view.revision) == (RolloutState.HELD, "lunch", 3)
    await fleet.update("a")
    assert phases(await fleet.drive()) == {"a": Phase.UPDATED, "b": Phase.PLANNED, "c": Phase.PLANNED}
    await fleet.rig.write(rollouts.resume_rollout, "r1", None)
    assert phases(await fleet.drive())["b"] is Phase.LOCKING
    await fleet.rig.write(rollouts.abort_rollout, "r1", None, None)
    with pytest.raises(InvalidTransition, match="rollout r1 is aborted: resume is not possible"):
        await fleet.rig.write(rollouts.resume_rollout, "r1", None)
    for name in ("b", "c"):  # both were under way
        await fleet.update(name)
    view = await fleet.drive()
    assert (view.state, phases(view)["c"]) == (RolloutState.ABORTED, Phase.UPDATED)


async def test_an_abort_holds_what_has_not_begun(fleet: Fleet) -> None:
    await fleet.join("a", "b")
    await begun(fleet, serial="1")
    view = await fleet.rig.write(rollouts.abort_rollout, "r1", "wrong one", None)
    assert (phases(view), view.hosts[1].reason) == ({"a": Phase.LOCKING, "b": Phase.HELD}, "aborted: wrong one")


async def test_two_rollouts_share_no_node_and_a_release_in_use_stays(fleet: Fleet) -> None:
    await fleet.join("a", "b")
    await fleet.plan()
    await fleet.rig.write(rollouts.plan_rollout, m.RolloutRequest(release=NEW, nodes=("b",)), "r2", "bob")
    await fleet.rig.write(rollouts.resume_rollout, "r1", None)
    with pytest.raises(OperationInFlight, match="node b is in rollout r1"):
        await fleet.rig.write(rollouts.resume_rollout, "r2", None)
    assert (await fleet.show("r2")).state is RolloutState.PLANNED
    with pytest.raises(Conflict, match="rollout r1 brings release"):
        await fleet.rig.read(rollout_turns.check_free, NEW)
    page = await fleet.rig.read(rollouts.list_rollouts, m.PageQuery(limit=1))
    assert [one.rollout_id for one in page.items] == ["r2"]
    assert page.items[0].counts == {Phase.PLANNED: 1}
    page = await fleet.rig.read(rollouts.list_rollouts, m.PageQuery(limit=1, cursor=page.next_cursor))
    assert ([one.rollout_id for one in page.items], page.next_cursor) == (["r1"], None)
    view = await fleet.rig.write(rollouts.plan_rollout, m.RolloutRequest(release=NEW, nodes=("b",)), "r3", "bob")
    assert view.hosts[0].reason == "rollout r1 is not over there"


async def test_what_cannot_be_planned(fleet: Fleet) -> None:
    await fleet.join("a", tags=("edge",))
    for asked, says in (
        ({"nodes": ("a", "x")}, "x is no node"),
        ({"pool": "nowhere"}, "no node that the rollout is for"),
        ({"tags": ("cloud",)}, "no node that the rollout is for"),
    ):
        with pytest.raises(InvalidSpec, match=says):
            await fleet.plan(**asked)
    with pytest.raises(NotFound, match="has no release 9"):
        await fleet.rig.write(rollouts.plan_rollout, m.RolloutRequest(release="9"), "r1", None)
    with pytest.raises(NotFound, match="there is no rollout"):
        await fleet.show()
    assert phases(await fleet.plan(tags=("edge",))) == {"a": Phase.PLANNED}


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"window_s": 0.0}, "window_s"), ({"canary_window_s": 1e9}, "canary_window_s"), ({"timeout_s": -1.0}, "timeout_s"),
        ({"serial": "x"}, "serial"), ({"serial": "0"}, ""), ({"max_failures": "101%"}, "max_failures"), ({"canary": -1}, ""),
        ({"nodes": ()}, "nodes"), ({"nodes": ("a",), "pool": "p"}, "nodes"), ({"nodes": ("a", "a")}, ""),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_at_once(asked, field) -> None:
    with pytest.raises(InvalidSpec) as caught:
        rollouts.check_request(m.RolloutRequest(release=NEW, **asked))
    assert [problem.path for problem in caught.value.problems] == [field]


async def test_a_report_of_another_update_is_nobodys(fleet: Fleet) -> None:
    await fleet.join("a")
    await begun(fleet)
    await fleet.say("a", Stage.WENT_BACK, "last year", rollout_id="r0")
    assert phases(await fleet.drive()) == {"a": Phase.LOCKING}


async def test_a_restarted_coordinator_goes_on(fleet: Fleet) -> None:
    await fleet.join("a")
    await begun(fleet)
    fleet.rig.reopen()
    await fleet.update("a")
    assert (await fleet.drive()).state is RolloutState.DONE


async def test_a_node_that_is_gone_is_lost(fleet: Fleet) -> None:
    await fleet.join("a", "b")
    await begun(fleet, canary=0)
    await fleet.rig.write(nodes.retire_node, "a")
    view = await fleet.drive(a=700)
    assert phases(view)["a"] is Phase.UNREACHABLE


async def test_old_ones_are_forgotten_but_for_those_under_way(fleet: Fleet) -> None:
    await fleet.join("a", "b")
    await begun(fleet, nodes=("a",))
    await fleet.rig.write(rollouts.plan_rollout, m.RolloutRequest(release=NEW, nodes=("b",)), "r2", "bob")
    fleet.rig.clock.advance(91 * 86_400)
    await fleet.rig.write(rollouts.plan_rollout, m.RolloutRequest(release=NEW, nodes=("b",)), "r3", "bob")
    page = await fleet.rig.read(rollouts.list_rollouts, m.PageQuery())
    assert [one.rollout_id for one in page.items] == ["r3", "r1"]
