"""What a host may be refused for before anything is changed, and what counts as drift."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from ostler.fleet.host.access import STRANGE
from ostler.fleet.node_config import Own, digest
from ostler.fleet.rollout.preflight import (
    KEEPER_UNIT,
    NODE_UNIT,
    UPDATE_PATH,
    WATCH_UNIT,
    Facts,
    Lock,
    OpenUpdate,
    Unit,
    Wanted,
    judge,
    skew,
)
from ostler.fleet.status import Finding, appraise, lacks_key
from ostler.protocol.messages import PROTOCOL

ASKED = datetime(2026, 1, 1, 12, tzinfo=UTC)
ANSWERED = ASKED + timedelta(seconds=2)
UNITS = {NODE_UNIT: "n" * 64, KEEPER_UNIT: "k" * 64}
CONFIG = "node_id: mini-1\nheartbeat: {interval_s: 15}\n"
WANTED = Wanted(
    rollout_id="r1",
    release="0.2.0-new",
    platforms=("cp311-x86_64", "cp313-x86_64"),
    bundle_mb=20,
    own=Own(config=CONFIG, files={"ca.pem": "PEM"}),
)


def facts(**changes: Any) -> Facts:
    there = Facts(
        hostname="mini-1",
        os="debian 12",
        arch="x86_64",
        abi="cp311",
        now=ASKED.timestamp() + 1,
        disk_free_mb=10_000,
        current="0.1.0-old",
        units={name: Unit(state="active", sha256=sha256, wanted=sha256) for name, sha256 in UNITS.items()},
        config=CONFIG,
        config_sha256=digest(CONFIG),
        applied_sha256=digest(CONFIG),
        beside={"ca.pem": digest("PEM")},
    )
    return msgspec.structs.replace(there, **changes)


def refusal(**changes: Any) -> str | None:
    return judge(facts(**changes), WANTED, asked_at=ASKED, answered_at=ANSWERED).refusal


def test_a_host_that_has_all_of_it_has_no_drift() -> None:
    verdict = judge(facts(current="0.2.0-new"), WANTED, asked_at=ASKED, answered_at=ANSWERED)
    assert verdict.refusal is None
    assert verdict.drift == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"refused": {"/opt/ostler": "read-only file system"}}, "cannot write to /opt/ostler: read-only file system"),
        ({"units": {}}, "run `ostler fleet install` first"),
        ({"units": {NODE_UNIT: Unit(state="inactive")}}, "run `ostler fleet install` first"),
        ({"health": {"node_id": "mini-9"}}, "its node is mini-9, and the inventory makes it mini-1"),
        ({"config": "node_id: mini-9\n"}, "its node is mini-9, and the inventory makes it mini-1"),
        ({"abi": "cp312"}, "has nothing for cp312-x86_64"),
        ({"disk_free_mb": 79}, "79 MB are free for releases, 80 are needed"),
        ({"now": ASKED.timestamp() + 3600}, "its clock is 60 min ahead"),
        ({"now": ASKED.timestamp() - 7300}, "its clock is 2 h behind"),
        (
            {
                "lock": Lock(
                    owner="eve@laptop",
                    rollout_id="r0",
                    message="update",
                    taken_at=ASKED.timestamp() - 60,
                    beat_at=ASKED.timestamp(),
                )
            },
            "locked by eve@laptop for 61 s (update); after 5 min of silence it is stale, see `ostler fleet lock status` and `lock break`",
        ),
        (
            {
                "lock": Lock(
                    owner="eve@laptop",
                    rollout_id="r0",
                    message="update",
                    taken_at=ASKED.timestamp() - 900,
                    beat_at=ASKED.timestamp() - 800,
                )
            },
            "silent for 13 min: `ostler fleet lock break",
        ),
        (
            {"update": OpenUpdate(update_id="r0", release="x", previous=None, state="watching")},
            "update r0 to x is still being watched",
        ),
    ],
)
def test_refused_with_one_line(changes: dict[str, Any], words: str) -> None:
    line = refusal(**changes)
    assert line is not None
    assert words in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"releases": ("0.2.0-new",), "disk_free_mb": 1},  # it is there already
        {"now": ASKED.timestamp() + 20},
        {"lock": Lock(owner="me", rollout_id="r1", message="update", taken_at=0.0, beat_at=0.0)},  # ours: the rollout is resumed
        {"update": OpenUpdate(update_id="r1", release="0.2.0-new", previous=None, state="watching")},
    ],
)
def test_may_begin(changes: dict[str, Any]) -> None:
    assert refusal(**changes) is None


def test_a_node_that_the_coordinator_refuses_is_wrong_and_is_to_be_installed() -> None:
    problem = "not enrolled: the coordinator refuses this node's key (no node 'mini-1' is enrolled with this key)"
    health = {"enrolled": False, "last_contact_s": 1.0, "problems": [problem, "disk is full"]}
    there = facts(health=health)
    found = appraise("mini-1", there, release=None, given={}, asked_at=ASKED, answered_at=ANSWERED)
    install, logs = "ostler fleet install --host mini-1", "ostler fleet logs --host mini-1"
    assert found == [Finding(problem, install), Finding("disk is full", logs)]
    assert "fleet install" in (refusal(current=WANTED.release, health=health) or "")
    assert refusal(health=health) is None  # another release comes first: an installation brings none


@pytest.mark.parametrize("nonsense", [7, {"a": 1}, None, "disk"])
def test_a_daemon_that_talks_nonsense_stops_no_status(nonsense: object) -> None:
    there = facts(health={"problems": nonsense})
    assert appraise("mini-1", there, release=None, given={}, asked_at=ASKED, answered_at=ANSWERED) == []


def test_a_node_whose_key_was_lost_is_to_be_retired_before_it_is_installed_again() -> None:
    problem = "not enrolled: the coordinator refuses this node's key (node mini-1 is enrolled with another key)"
    anew = facts(health={"enrolled": False, "node_id": "mini-1", "problems": [problem]})
    gone = facts(has_key=False)
    mend = "ostler node retire mini-1 && ostler fleet install --host mini-1"
    for there, what in ((anew, problem), (gone, "the node's key is gone from its disk")):
        assert lacks_key(there)
        found = appraise("mini-1", there, release=None, given={}, asked_at=ASKED, answered_at=ANSWERED, known_as="mini-1")
        assert found == [Finding(what, mend), *found[1:]]
        found = appraise("mini-1", there, release=None, given={}, asked_at=ASKED, answered_at=ANSWERED)
        assert found[0].mend == "ostler fleet install --host mini-1"
    assert not lacks_key(facts())


def test_a_host_that_was_half_installed_is_not_just_started() -> None:
    units = {name: Unit(state="inactive", sha256=sha256, wanted=sha256) for name, sha256 in UNITS.items()}
    found = appraise("mini-1", facts(unfinished=True, units=units), release=None, given={}, asked_at=ASKED, answered_at=ANSWERED)
    assert [one.what for one in found] == [
        "its installation was not finished",
        *(f"{name} is inactive" for name in (NODE_UNIT, KEEPER_UNIT)),
    ]
    assert {one.mend for one in found} == {"ostler fleet install --host mini-1"}


def test_a_daemon_without_a_keeper_is_not_as_it_should_be() -> None:
    states = {NODE_UNIT: "active", KEEPER_UNIT: "inactive"}
    units = {name: Unit(state=states[name], sha256=sha256, wanted=sha256) for name, sha256 in UNITS.items()}
    found = appraise("mini-1", facts(units=units), release=None, given={}, asked_at=ASKED, answered_at=ANSWERED)
    mend = "ostler fleet run --host mini-1 -- systemctl start ostler-keeper.service"
    assert found[0] == Finding("ostler-keeper.service is inactive", mend)


def test_a_daemon_that_ends_again_and_again_is_told_as_that() -> None:
    """Most of the time it waits to be started anew, which is `activating` as a start is."""
    for restarts, what in ((0, "is activating"), (7, "ends again and again: systemd has restarted it 7 times")):
        node = Unit(state="activating", sha256="n" * 64, wanted="n" * 64, restarts=restarts)
        there = facts(current=WANTED.release, units={NODE_UNIT: node, KEEPER_UNIT: facts().units[KEEPER_UNIT]})
        assert judge(there, WANTED, asked_at=ASKED, answered_at=ANSWERED).drift == (f"{NODE_UNIT} {what}",)


def test_drift_is_told_line_by_line() -> None:
    there = facts(
        current="0.2.0-new",
        units={NODE_UNIT: Unit(state="failed", sha256="other", wanted="n"), KEEPER_UNIT: Unit(state="active")},
        config=(edited := CONFIG + "tags: [a]\n"),
        config_sha256=digest(edited),
        beside={"other": "o"},
        links={"/usr/local/bin/xmrig": "/usr/bin/xmrig"},
        health={"release": "0.1.0-old"},
    )
    assert judge(there, WANTED, asked_at=ASKED, answered_at=ANSWERED).drift == (
        "ostler-keeper.service is missing",
        "ostler-node.service was edited",
        f"configuration, edited on the host, {digest(edited)[:8]} → {digest(CONFIG)[:8]}: tags",
        "ca.pem is missing",
        "/usr/local/bin/xmrig is missing, the program is at /usr/bin/xmrig",
        "the daemon still runs 0.1.0-old",
        "ostler-node.service is failed",
    )


def test_an_own_that_nobody_knows_is_judged_by_what_was_put_in_force() -> None:
    there = facts(current="0.2.0-new", config_sha256="edited", beside={})
    verdict = judge(there, replace(WANTED, own=None), asked_at=ASKED, answered_at=ANSWERED)
    assert verdict.drift == ("the configuration was edited",)


def test_another_release_has_other_units() -> None:
    """What differs because the release differs is not drift of its own."""
    there = facts(units={name: Unit(state="active", sha256="older", wanted="older") for name in UNITS})
    assert judge(there, WANTED, asked_at=ASKED, answered_at=ANSWERED).drift == ("release 0.1.0-old → 0.2.0-new",)


@pytest.mark.parametrize(("offset", "wrong"), [(0, 0), (2, 0), (1, 0), (5, 3), (-4, -4)])
def test_skew_is_what_the_way_cannot_explain(offset: int, wrong: int) -> None:
    assert skew(facts(now=ASKED.timestamp() + offset), ASKED, ANSWERED) == timedelta(seconds=wrong)


@pytest.mark.parametrize(
    ("there", "written", "words"),
    [
        ("a", "a", ()),
        (None, None, ()),
        ("theirs", None, ()),  # where nothing is permitted, what stands there is somebody else's
        ("b", "a", ("what polkit permits was edited",)),
        (None, "a", ("what polkit permits is missing",)),
    ],
)
def test_what_polkit_permits_is_looked_at(there: str | None, written: str | None, words: tuple[str, ...]) -> None:
    edited = facts(current="0.2.0-new", permits_sha256=there, permitted_sha256=written)
    assert judge(edited, WANTED, asked_at=ASKED, answered_at=ANSWERED).drift == words


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("services: {xmrig: {unit: xmrig.service}}\n", ("what polkit permits is missing",)),
        ("services: {}\n", ()),
        ("services: [\n", ()),
        ("", ()),
    ],
)
def test_what_is_declared_and_was_never_permitted_is_missing(config: str, words: tuple[str, ...]) -> None:
    there = facts(current="0.2.0-new", config=config, config_sha256=digest(config), applied_sha256=digest(config))
    assert judge(there, replace(WANTED, own=None), asked_at=ASKED, answered_at=ANSWERED).drift == words


def test_what_mends_a_host_says_again_what_was_given() -> None:
    given = {"--inventory": ["f.yml"], "--coordinator": "https://c"}
    wrong = (facts(), facts(units={}), facts(current="0.2.0-new", health={"protocol": 99}, refused={}))
    found = [
        [one.mend for one in appraise("mini-1", one, release="0.2.0-new", given=given, asked_at=ASKED, answered_at=ANSWERED)]
        for one in wrong
    ]
    update = "ostler fleet update -i f.yml --coordinator https://c --host mini-1"
    assert update in found[0]
    assert found[1] == ["ostler fleet install -i f.yml --coordinator https://c --host mini-1"]
    assert update in found[2]
    silent = appraise("mini-1", facts(), release=None, given=given, asked_at=ASKED, answered_at=ANSWERED)
    assert [one.mend for one in silent] == ["ostler fleet logs -i f.yml --host mini-1"]


def found(there: Facts, **known: Any) -> dict[str, str]:
    known = {"release": None, "given": {}} | known
    return {one.what: one.mend for one in appraise("mini-1", there, asked_at=ASKED, answered_at=ANSWERED, **known)}


def units(**changed: dict[str, Any]) -> dict[str, Unit]:
    """All that a release brings, as they should be but for what changed, by the word in a unit's name."""
    names = {"node": NODE_UNIT, "keeper": KEEPER_UNIT, "watch": WATCH_UNIT, "update": UPDATE_PATH}
    idle = {"watch": {"state": "inactive", "at_boot": False}}
    as_it_should_be = {"state": "active", "sha256": "u", "wanted": "u"}
    return {name: Unit(**as_it_should_be | idle.get(word, {}) | changed.get(word, {})) for word, name in names.items()}


HEALTHY = {"protocol": PROTOCOL}
UPDATE, RUN = "ostler fleet update --host mini-1", "ostler fleet run --host mini-1 --"


@pytest.mark.parametrize(
    ("changes", "what", "mend"),
    [
        ({"units": units(node={"at_boot": False})}, "ostler-node.service does not start with the host", UPDATE),
        ({"units": units(update={"at_boot": False})}, "ostler-update.path does not start with the host", UPDATE),
        ({"units": units(watch={"sha256": "other"})}, "ostler-watch.service was edited", UPDATE),
        ({"access": {"/etc/ostler/node.yaml": "belongs to eve, not to root"}}, "/etc/ostler/node.yaml belongs to eve, not to root", UPDATE),
    ],
)  # fmt: skip
def test_what_an_update_writes_anew_is_drift_in_its_plan_too(changes: dict[str, Any], what: str, mend: str) -> None:
    there = facts(**{"current": WANTED.release, "health": HEALTHY, "units": units(), **changes})
    assert found(there) == {what: mend}
    assert judge(there, WANTED, asked_at=ASKED, answered_at=ANSWERED).drift == (what,)


def test_what_an_update_leaves_alone_has_its_own_mend() -> None:
    path = "/etc/systemd/system/ostler-node.service.d/my own.conf"
    there = facts(current=WANTED.release, health=HEALTHY, units=units(node={"drop_ins": (path,), "stale": True}))
    remove = "sh -c 'rm '\"'\"'" + path + "'\"'\"' && systemctl daemon-reload'"
    assert found(there) == {
        f"ostler-node.service is changed by {path}": f"keep it, or: {RUN} {remove}",
        "systemd has not read ostler-node.service as it is now": f"{RUN} systemctl daemon-reload",
    }
    assert judge(there, WANTED, asked_at=ASKED, answered_at=ANSWERED).drift == ()


@pytest.mark.parametrize(
    ("changed", "words", "mend"),
    [
        ({}, "is inactive", f"{RUN} systemctl enable --now ostler-firewall.service"),
        (
            {"state": "active", "at_boot": False},
            "does not start with the host",
            f"{RUN} systemctl enable --now ostler-firewall.service",
        ),
        ({"sha256": None}, "is missing", "ostler fleet firewall --host mini-1 --allow …"),
    ],
)
def test_rules_for_the_health_port_that_are_not_in_force_are_named(changed: dict[str, Any], words: str, mend: str) -> None:
    guard = Unit(**{"state": "inactive", "sha256": "f", **changed})
    there = facts(current=WANTED.release, health=HEALTHY, units={**units(), "ostler-firewall.service": guard})
    assert found(there) == {f"ostler-firewall.service {words}: it guards the health port": mend}
    assert judge(there, WANTED, asked_at=ASKED, answered_at=ANSWERED).drift == ()  # no update mends it


def test_a_path_unit_that_was_stopped_is_started() -> None:
    there = facts(health=HEALTHY, units=units(update={"state": "inactive"}))
    assert found(there) == {"ostler-update.path is inactive": f"{RUN} systemctl start ostler-update.path"}


def test_what_differs_while_an_update_is_watched_is_waited_for() -> None:
    update = OpenUpdate(update_id="r0", release="x", previous=None, state="watching")
    watched = {"watch": {"state": "active", "at_boot": True}}
    there = facts(update=update, units=units(node={"state": "activating", "sha256": "other"}, **watched), has_key=False)
    assert set(found(there, release="0.2.0-new", known_as="mini-1").values()) == {"wait until its window is over"}
    unwatched = found(facts(update=update, health=HEALTHY, units=units()))
    assert (
        unwatched["ostler-watch.service is inactive, and an update is open"]
        == f"{RUN} systemctl enable --now ostler-watch.service"
    )


@pytest.mark.parametrize(("release", "command"), [(WANTED.release, "install"), (None, "install"), ("0.3.0-newer", "update")])
def test_an_altered_release_is_brought_anew_and_replaced_where_another_one_is_due(release: str | None, command: str) -> None:
    """An installation brings no other release than the one in force."""
    changed = units(node={"sha256": "other"})
    there = facts(current=WANTED.release, health=HEALTHY, units=changed, altered=("a", "b", "c", "d", "e"))
    said = found(there, release=release)
    for what in (f"of release {WANTED.release} was altered on the host: a, b, c and 2 more", "ostler-node.service was edited"):
        assert said[what] == f"ostler fleet {command} --host mini-1"


def test_what_no_installation_wrote_is_made_nobodys_by_a_command() -> None:
    path = "/etc/ostler/allowlist.d/e vil.yaml"
    there = facts(current=WANTED.release, health=HEALTHY, units=units(), access={path: f"belongs to eve, not to root, {STRANGE}"})
    line, quoted = f"{path} belongs to eve, not to root, {STRANGE}", f"'{path}'"
    assert found(there) == {line: f"look at it; if it is yours: chown root: {quoted} && chmod 644 {quoted}, else rm {quoted}"}
    verdict = judge(there, WANTED, asked_at=ASKED, answered_at=ANSWERED)
    assert (verdict.drift, verdict.warnings) == ((), (line,))


def test_of_very_many_altered_files_all_are_counted() -> None:
    there = facts(current=WANTED.release, health=HEALTHY, units=units(), altered=("a", "b", "c", "d", "20 more"))
    assert f"of release {WANTED.release} was altered on the host: a, b, c and 21 more" in found(there)


def test_a_mistake_in_an_allowlist_is_told_with_what_brings_another_one() -> None:
    mend = "correct it there, remove it, or bring another one: ostler fleet install --allowlist DIR --host mini-1"
    assert found(facts(health=HEALTHY, units=units()), mistakes=["/etc/ostler/allowlist.d/x.yaml:1: is empty"]) == {
        "/etc/ostler/allowlist.d/x.yaml:1: is empty": mend
    }


def test_a_unit_that_was_edited_is_not_told_to_be_read_as_well() -> None:
    there = facts(health=HEALTHY, units=units(node={"sha256": "other", "stale": True}))
    assert found(there) == {"ostler-node.service was edited": UPDATE}
