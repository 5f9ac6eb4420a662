"""The daemon's part of an update through the coordinator: to fetch, to ask, and to pass root's word on. Root is played here."""

import hashlib
import json
import os

import pytest
from msgspec.structs import replace

from integration.node_rig import FakeCoordinator, NodeRig, until
from ostler.model.rollout.report import Stage
from ostler.node import updates
from ostler.node.updates import UpdatePlaces
from ostler.protocol import messages as m

RELEASE, CONTENT = "2.0-new", os.urandom(3 << 20)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Looks at root's word are a matter of half a second."""
    monkeypatch.setattr(updates, "LOOK_S", 0.01)


@pytest.fixture
async def coordinator():
    fake = await FakeCoordinator().start()
    fake.bundles[RELEASE] = CONTENT
    yield fake
    await fake.stop()


@pytest.fixture
async def rig(tmp_path, coordinator):
    places = UpdatePlaces(drop=tmp_path / "drop", published=tmp_path / "update.json", releases=tmp_path / "releases")
    one = NodeRig(tmp_path, coordinator, updates=places)
    await one.start()
    yield one
    await one.stop()


def wish(coordinator, **changes):
    wanted = m.WantedUpdate(
        rollout_id="r1", release=RELEASE, sha256=hashlib.sha256(CONTENT).hexdigest(), size=len(CONTENT), window_s=5.0
    )
    wanted = replace(wanted, **changes)
    coordinator.directives.clear()
    coordinator.tell("update", update=wanted)
    return wanted


def root_says(rig, stage, reason=None, update_id="r1"):
    fresh = rig.folder / "fresh"
    fresh.write_text(json.dumps({"update_id": update_id, "release": RELEASE, "stage": stage, "reason": reason}))
    fresh.replace(rig.updates.published)


async def told(coordinator, stage):
    def last():
        report = coordinator.beats[-1].update if coordinator.beats else None
        return report if report is not None and report.stage is stage else None

    return await until(last, f"a heartbeat that says {stage}")


def request(rig):
    file = rig.updates.drop / "request.json"
    return json.loads(file.read_text()) if file.exists() else None


async def test_a_release_is_fetched_over_a_broken_line_asked_for_and_told_of(rig, coordinator, monkeypatch):
    monkeypatch.setattr(updates.Backoff, "next_s", lambda self: 0.01)  # a broken line is waited for, for seconds
    coordinator.cuts = [2 << 20, 1 << 19]
    wish(coordinator)
    asked = await until(lambda: request(rig), "the request")
    assert asked == {"rollout_id": "r1", "release": RELEASE, "window_s": 5.0, "back": None}
    assert (rig.updates.drop / "bundle.tar").read_bytes() == CONTENT
    assert coordinator.served[0] is None
    assert all(one.startswith("bytes=") and one != "bytes=0-" for one in coordinator.served[1:])
    assert len(coordinator.served) == 3
    await told(coordinator, Stage.ASKED)
    for stage in ("installing", "armed", "watching"):
        root_says(rig, stage)
        await told(coordinator, Stage(stage))
    root_says(rig, "went_back", "the daemon ended 2 times")
    assert (await told(coordinator, Stage.WENT_BACK)).reason == "the daemon ended 2 times"
    coordinator.directives.clear()
    await until(lambda: not any(rig.updates.drop.iterdir()), "an empty directory")


async def test_a_wish_that_is_withdrawn_is_given_up(rig, coordinator):
    coordinator.refuse["bundle"] = [(503, b"{}")] * 1000
    wish(coordinator)
    await told(coordinator, Stage.FETCHING)
    coordinator.directives.clear()
    coordinator.refuse.clear()
    await rig.beats(3)
    assert request(rig) is None


async def test_the_next_daemon_goes_on_with_what_is_there(rig, coordinator):
    coordinator.cuts = [2 << 20]
    wish(coordinator)
    await until(lambda: coordinator.served, "the beginning")
    await rig.crash()
    await rig.start()
    await until(lambda: request(rig), "the request")
    await rig.crash()
    root_says(rig, "good")
    await rig.start()
    await told(coordinator, Stage.GOOD)


async def test_what_root_has_is_not_fetched(rig, coordinator):
    (rig.updates.releases / RELEASE).mkdir(parents=True)
    wish(coordinator)
    await until(lambda: request(rig), "the request")
    assert coordinator.served == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param({"sha256": "0" * 64}, "arrived 3 times with other bytes", id="other-bytes"),
        pytest.param({"size": 1 << 60}, "no space left for the bundle", id="no-space"),
    ],
)
async def test_what_cannot_be_brought_is_told(rig, coordinator, changes, says):
    wish(coordinator, **changes)
    assert says in (await told(coordinator, Stage.REFUSED)).reason
    assert request(rig) is None


async def test_what_the_coordinator_does_not_give_is_told(rig, coordinator):
    coordinator.refuse["bundle"] = [(404, b'{"code": "not_found", "title": "x", "status": 404, "detail": "not asked to"}')]
    wish(coordinator)
    assert (await told(coordinator, Stage.REFUSED)).reason == "not asked to"


async def test_a_root_that_does_not_look_is_told(rig, coordinator, monkeypatch):
    monkeypatch.setattr(updates, "TAKE_S", 0.05)
    wish(coordinator)
    assert "ostler-update.path has not taken the request up" in (await told(coordinator, Stage.REFUSED)).reason
    assert request(rig) is None


async def test_an_update_is_undone_on_request(rig, coordinator):
    root_says(rig, "good")
    wish(coordinator)
    await told(coordinator, Stage.GOOD)
    wish(coordinator, back="its canary job failed")
    assert (await until(lambda: request(rig), "the request"))["back"] == "its canary job failed"
    root_says(rig, "went_back", "its canary job failed")
    await told(coordinator, Stage.WENT_BACK)
    assert coordinator.served == []


async def test_roots_word_about_another_update_is_not_taken_for_this_one(rig, coordinator):
    root_says(rig, "went_back", update_id="r0")
    wish(coordinator)
    await told(coordinator, Stage.ASKED)
    rig.updates.published.write_text("{ half of")
    await rig.beats()
    assert coordinator.beats[-1].update.stage is Stage.ASKED
