"""The node daemon against a scripted coordinator over real HTTP: the way of a job, and all that may go wrong on it."""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sqlite3
import tarfile
import threading
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from integration import node_rig
from integration.node_rig import FakeCoordinator, NodeRig, until
from ostler.model.attempt import AttemptState, Usage
from ostler.model.capabilities import Gpu, HealthProblem
from ostler.model.errors import KeeperUnreachable
from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import InputFile
from ostler.node import credit, leases
from ostler.node.loops import puller
from ostler.node.workspace import Workspace
from ostler.protocol import messages as m
from ostler.protocol import session_key
from ostler.protocol.ports import Ending
from ostler.runtime.service_manager import ServiceManager


@pytest.fixture
async def coordinator():
    fake = await FakeCoordinator().start()
    yield fake
    await fake.stop()


@pytest.fixture
async def rig(tmp_path, coordinator):
    one = NodeRig(tmp_path, coordinator)
    await one.start()
    yield one
    await one.stop()


def writes(text, stream="stdout"):
    def work(task):
        with task.log(stream).open("ab") as log:
            log.write(text)

    return work


# --- the way of a job ---


async def test_a_job_goes_from_pull_to_delivery(rig, coordinator):
    coordinator.offer("j1")
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert outcome.failure is None
    assert outcome.exit_code == 0
    assert outcome.sandbox == "none"
    assert outcome.logs == ()
    assert coordinator.acked == [("j1", 1)]
    await until(lambda: not rig.held(), "nothing is held any more")
    await until(lambda: rig.runner.forgotten == ["j1/1"], "the keeper may forget it")
    assert rig.daemon.health.report()[0]
    state = json.loads((rig.folder / "jobs/j1/state.json").read_text())
    assert [word for word, _ in state["history"]] == ["PULLING", "ACKED", "PREP", "RUNNING", "UPLOADING", "DONE"]


async def test_nothing_starts_before_the_ack_was_answered(rig, coordinator):
    coordinator.refuse["/jobs/ack"] = [(503, b"{}"), (503, b"{}")]
    coordinator.offer("j1")
    await until(lambda: len(coordinator.refuse["/jobs/ack"]) == 1, "a refused ack")
    assert rig.runner.started == []
    await until(lambda: rig.over("j1"), "the outcome")
    assert rig.runner.started == ["j1/1"]


async def test_a_job_that_an_old_poll_brought_is_not_given_up(tmp_path):
    """Its lease counts from when the poll was sent. The next beat would come a minute later, long after the attempt was given up."""
    coordinator = await FakeCoordinator(lease_s=2.0, heartbeat_s=60.0, pull_wait_s=60.0).start()
    rig = NodeRig(tmp_path, coordinator)
    await rig.start()
    try:
        await until(lambda: coordinator.open_pulls and coordinator.beats)
        opened = asyncio.get_running_loop().time()
        await until(lambda: asyncio.get_running_loop().time() - opened > 0.6, "a poll that is old")
        coordinator.offer("late")
        await until(lambda: "late/1" in rig.runner.started)
        await until(lambda: any(m.Held("late", 1) in beat.held for beat in coordinator.beats), "a beat that names it")
    finally:
        await rig.stop()
        await coordinator.stop()


async def test_what_its_poll_acknowledged_begins_without_another_word(rig, coordinator):
    coordinator.acks_ahead = True
    for name in ("w0", "w1", "w2"):
        coordinator.offer(name, command="wait")
    await until(lambda: {"w0/1", "w1/1"} <= rig.runner.living.keys(), "both slots are taken")
    polls = [body for name, body in coordinator.calls if name == "pull"]
    assert polls[0].begins == 2
    assert [one.number for one in polls] == list(range(1, len(polls) + 1))
    with contextlib.closing(sqlite3.connect(rig.config.state_dir / "journal.db")) as journal:
        assert {("w0", 1), ("w1", 1)} <= set(journal.execute("SELECT job_id, attempt FROM attempts")), "a next daemon finds them"
    await until(lambda: any(m.Held("w0", 1) in body.held for name, body in coordinator.calls if name == "pull"), "it is named")
    for name in ("w0", "w1"):
        rig.runner.end(f"{name}/1")
        await until(lambda name=name: rig.over(name), "the outcome")
    assert not {("w0", 1), ("w1", 1)} & set(coordinator.acked)


async def test_the_loop_writes_itself_only_where_no_lease_would_wait_for_the_disk(rig, coordinator):
    coordinator.acks_ahead = True
    journal, wrote = rig.daemon._journal, []
    commit = journal._commit

    def noted(batch, gone):
        wrote.extend((row[0], threading.current_thread() is threading.main_thread()) for one in batch for row in one.rows)
        return commit(batch, gone)

    journal._commit = noted
    coordinator.offer("alone", command="wait")
    await until(lambda: "alone/1" in rig.runner.living, "it runs")
    coordinator.offer("beside")
    await until(lambda: rig.over("beside"), "its outcome")
    coordinator.refuse["/jobs/result"] = [(503, b"{}")] * 1000
    rig.runner.end("alone/1")
    await until(rig.daemon.table.over, "an outcome that the coordinator does not take")
    coordinator.offer("later", command="wait")
    await until(lambda: "later/1" in rig.runner.living, "it runs")
    coordinator.refuse["/jobs/result"] = []
    rig.runner.end("later/1")
    await until(lambda: not rig.held(), "all are delivered")
    coordinator.offer("again")
    await until(lambda: rig.over("again"), "its outcome")
    firsts = dict(reversed(wrote))
    assert {name: firsts[name] for name in ("alone", "beside", "later", "again")} == {
        "alone": True, "beside": False, "later": False, "again": True,
    }  # fmt: skip


async def test_what_an_older_poll_acknowledged_is_asked_about(rig, coordinator):
    """The newer one may have taken it back."""
    for name in ("w0", "w1"):
        coordinator.offer(name, command="wait")
    await until(lambda: {"w0/1", "w1/1"} <= rig.runner.living.keys(), "both slots are taken")
    await until(lambda: coordinator.open_pulls == 1 and coordinator.calls[-1][0] == "pull", "a poll that asks for nothing")
    coordinator.acks_ahead = True
    for name in ("good", "gone"):
        coordinator.offer(name)
    coordinator.stale.add(("gone", 1))
    coordinator.crossing, coordinator.queue = coordinator.queue, []
    rig.runner.end("w0/1")  # a slot is free: a newer poll takes the place of the one that asks for nothing
    await until(lambda: rig.over("good"), "the outcome")
    assert ("good", 1) in coordinator.acked
    await until(lambda: rig.daemon.table.get("gone", 1) is None, "it is let go")
    assert "gone/1" not in rig.runner.started
    rig.runner.end("w1/1")


async def test_what_cannot_be_written_down_is_handed_back_though_its_poll_acknowledged_it(rig, coordinator):
    coordinator.acks_ahead = True
    await until(lambda: coordinator.open_pulls == 1, "a poll")
    with contextlib.closing(sqlite3.connect(rig.config.state_dir / "journal.db", isolation_level=None)) as journal:
        journal.execute("ALTER TABLE attempts RENAME TO lost")
        coordinator.offer("j1")
        await until(lambda: coordinator.declined, "it is handed back")
        journal.execute("ALTER TABLE lost RENAME TO attempts")
    assert rig.runner.started == []
    coordinator.offer("j2")
    await until(lambda: rig.over("j2"), "the outcome of a later one")


async def test_what_is_not_believed_is_reported_though_its_poll_acknowledged_it(rig, coordinator):
    coordinator.acks_ahead = True
    coordinator.offer("bad", signer=Ed25519PrivateKey.generate())
    outcome = await until(lambda: rig.over("bad"), "the outcome")
    assert outcome.failure.code is FailureCode.SIGNATURE
    assert ("bad", 1) in coordinator.acked
    assert rig.runner.started == []


async def test_what_another_pull_acknowledged_is_asked_about(rig, coordinator):
    """Whoever sits in between may have kept the answer to an earlier one, over for the coordinator since."""
    coordinator.acks_ahead, coordinator.says_pull = True, m.pull_name(rig.daemon.session.identity.boot_epoch, 99)
    coordinator.stale.add(("again", 1))
    coordinator.offer("again")
    await until(lambda: any(name == "ack" for name, _ in coordinator.calls), "its question")
    await until(lambda: not rig.held(), "it is let go")
    coordinator.says_pull = ""
    coordinator.offer("new")
    await until(lambda: rig.over("new"), "the other one")
    assert rig.runner.started == ["new/1"]


async def test_a_stale_ack_is_never_run(rig, coordinator):
    coordinator.stale.add(("j1", 1))
    coordinator.offer("j1")
    coordinator.offer("j2")
    await until(lambda: rig.over("j2"), "the other one")
    await until(lambda: not rig.held(), "it is let go")
    assert rig.runner.started == ["j2/1"]


async def test_many_short_jobs_are_batched_and_all_are_delivered_once(rig, coordinator, monkeypatch):
    monkeypatch.setattr(credit, "OFFER_PATIENCE_S", 300)  # this coordinator does not offer again what a slow machine hands back
    names = [f"j{i}" for i in range(200)]
    for name in names:
        coordinator.offer(name)
    await until(lambda: len(coordinator.outcomes) == 200, "all outcomes")
    assert sorted(coordinator.deliveries) == sorted((name, 1) for name in names)
    assert sum(kind == "ack" for kind, _ in coordinator.calls) < 150
    await until(lambda: not rig.held(), "nothing is held")


async def test_slots_are_kept_and_freed(rig, coordinator):
    for i in range(4):
        coordinator.offer(f"j{i}", command="wait")
    await until(lambda: len(rig.runner.started) == 2, "two run")
    await rig.beats()
    assert rig.runner.started == ["j0/1", "j1/1"]
    rig.runner.end("j0/1")
    await until(lambda: len(rig.runner.started) == 3, "the next one begins")
    assert rig.runner.started[2] == "j2/1"
    for i in (1, 2):
        rig.runner.end(f"j{i}/1")
    await until(lambda: len(rig.runner.started) == 4, "the last one begins")
    rig.runner.end("j3/1")
    await until(lambda: len(coordinator.outcomes) == 4, "all are delivered")


async def test_a_gpu_job_for_a_node_without_one_is_handed_back(rig, coordinator):
    coordinator.offer("j1", requirements={"gpu": True})
    await until(lambda: coordinator.declined, "it is declined")
    assert "can never run here" in coordinator.declined[0].decline
    assert rig.runner.started == []


async def test_a_gpu_is_looked_at_when_a_job_is_to_begin(tmp_path, coordinator):
    """Not as it was a minute ago: a program that Ostler does not know, or the job before, took memory or gave it back since."""
    rig = NodeRig(tmp_path, coordinator)
    card = Gpu(vendor="nvidia", name="a card", vram_mb=8000, vram_free_mb=7900, uuid="GPU-a")
    rig.capabilities = replace(rig.capabilities, gpu=(card,))
    await rig.start()
    rig.capabilities = replace(rig.capabilities, gpu=(replace(card, vram_free_mb=500),))
    coordinator.offer("j1", requirements={"vram_mb": 4000})
    failure = (await until(lambda: rig.over("j1"), "the outcome")).failure
    assert (failure.code, "has 500 MB free of 8000" in failure.message) == (FailureCode.NOGPU, True)
    rig.capabilities = replace(rig.capabilities, gpu=(card,))
    coordinator.offer("j2", requirements={"vram_mb": 4000})
    await until(lambda: rig.runner.started, "it begins")
    assert rig.runner.started == ["j2/1"]
    await rig.stop()


@pytest.mark.parametrize(
    ("command", "code"), [("denied", FailureCode.DENY), ("unstartable", FailureCode.START)], ids=["denied", "unstartable"]
)
async def test_failures_before_the_start_are_delivered(rig, coordinator, command, code):
    coordinator.offer("j1", command=command)
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert outcome.failure.code is code


async def test_a_runner_that_the_node_does_not_offer_is_a_bad_spec(rig, coordinator):
    coordinator.offer("j1", runner="python", task="x")
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert outcome.failure.code is FailureCode.SPEC


async def test_a_manifest_of_a_later_release_is_a_bad_spec(rig, coordinator):
    coordinator.offer("j1", spec='{"runner": "quantum"}')
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert outcome.failure.code is FailureCode.SPEC
    assert rig.runner.started == []


async def test_inputs_that_cannot_be_had_fail_the_attempt(rig, coordinator):
    rig.inputs["j1"] = Failure(FailureCode.INPUT, "404")
    coordinator.offer("j1", input={"inline": {"a.txt": "x"}})
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert outcome.failure.code is FailureCode.INPUT
    assert rig.runner.started == []


# --- whom the node believes ---


async def test_an_assignment_signed_by_another_key_is_reported_and_never_run(rig, coordinator):
    coordinator.offer("j1", signer=Ed25519PrivateKey.generate())
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert outcome.failure.code is FailureCode.SIGNATURE
    assert ("j1", 1) in coordinator.acked
    assert rig.runner.started == []


async def test_an_assignment_for_another_node_is_reported_and_never_run(rig, coordinator):
    coordinator.offer("j1", node_id="node-2")
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert outcome.failure.code is FailureCode.SIGNATURE
    assert "node-2" in outcome.failure.message
    assert rig.runner.started == []


async def test_in_a_session_with_a_key_its_mac_is_believed_and_no_other(rig, coordinator):
    coordinator.agrees, coordinator.tokens = True, set()  # its session is over, and the next one has a key
    await until(lambda: coordinator.session_key, "a session with a key")
    coordinator.offer("j1")
    assert (await until(lambda: rig.over("j1"), "the outcome")).failure is None
    assert coordinator.sealed == [coordinator.session_key.keyid]
    coordinator.forges = True
    coordinator.offer("j2")
    assert (await until(lambda: rig.over("j2"), "the outcome")).failure.code is FailureCode.SIGNATURE
    coordinator.session_key = None  # as after a start: it signs
    coordinator.offer("j3")
    assert (await until(lambda: rig.over("j3"), "the outcome")).failure is None
    assert coordinator.sealed[-1] == "k"
    assert rig.runner.started == ["j1/1", "j3/1"]


async def test_a_session_key_that_was_agreed_with_somebody_else_is_no_reason_not_to_work(rig, coordinator, monkeypatch, caplog):
    def agree(node_id, boot_epoch, node_key, signing, keyid):
        other = X25519PrivateKey.generate().public_key().public_bytes_raw()  # of whoever sits in between
        return session_key.agree(node_id, boot_epoch, other, signing, keyid)

    monkeypatch.setattr(node_rig, "agree", agree)
    coordinator.agrees, coordinator.tokens = True, set()
    await until(lambda: coordinator.session_key, "a session")
    coordinator.offer("j1")
    assert (await until(lambda: rig.over("j1"), "the outcome")).failure is None
    assert coordinator.sealed == ["k"]
    assert "session_key_not_believed" in caplog.text


async def test_a_coordinator_with_another_key_is_refused(tmp_path, coordinator):
    rig = NodeRig(tmp_path, coordinator)
    await rig.start()
    await until(lambda: coordinator.registrations, "enrolled")
    await rig.stop()
    coordinator.key = Ed25519PrivateKey.generate()
    daemon = await rig.start()
    coordinator.offer("j1")
    await until(lambda: daemon.registrar.failure and len(coordinator.registrations) > 3, "it registers in vain, again and again")
    assert not daemon.session.is_open
    assert "another signing key" in daemon.registrar.failure
    assert rig.runner.started == []
    await rig.stop()


async def test_a_restarted_daemon_needs_no_join_token(tmp_path, coordinator):
    rig = NodeRig(tmp_path, coordinator)
    await rig.start()
    await until(lambda: coordinator.registrations, "enrolled")
    await rig.stop()
    coordinator.join_token = None
    await rig.start()
    await until(lambda: len(coordinator.registrations) == 2, "it signed the challenge")
    assert coordinator.registrations[1].signature is not None
    assert [one.boot_epoch for one in coordinator.registrations] == ["boot:1", "boot:2"]
    assert (tmp_path / "state/node.key").stat().st_mode & 0o777 == 0o600
    await rig.stop()


async def test_a_token_that_is_no_longer_good_costs_one_registration(rig, coordinator):
    await until(lambda: coordinator.beats, "a session")
    coordinator.tokens.clear()
    coordinator.offer("j1")
    await until(lambda: rig.over("j1"), "the outcome")
    assert len(coordinator.registrations) == 2


async def test_a_refreshed_token_is_used(rig, coordinator):
    await until(lambda: coordinator.beats, "a session")
    coordinator.tokens.add("fresh")
    one = coordinator.tell("refresh_token", token="fresh")
    await until(lambda: rig.daemon.session._token == "fresh", "it is taken")
    coordinator.directives.remove(one)
    coordinator.tokens = {"fresh"}
    coordinator.offer("j1")
    await until(lambda: rig.over("j1"), "the outcome")
    assert len(coordinator.registrations) == 1


async def test_an_outdated_node_idles_and_keeps_its_jobs(rig, coordinator):
    coordinator.offer("j1", command="wait")
    await until(lambda: rig.runner.started, "it runs")
    body = json.dumps(
        {"title": "x", "status": 426, "code": "upgrade_required", "detail": "too old", "hint": "pip install ostler==9"}
    )
    for route in ("/nodes/register", "/nodes/heartbeat", "/jobs/pull"):
        coordinator.refuse[route] = [(426, body.encode())] * 1000
    await until(lambda: rig.daemon.session.barred, "it knows")
    assert "pip install ostler==9" in rig.daemon.health.report()[1]["problems"][0]
    assert not rig.daemon.health.report()[0]
    assert rig.held() == {("j1", 1)}
    assert rig.runner.killed == []


async def test_a_node_whose_key_is_refused_is_not_well_until_it_is_taken(rig, coordinator):
    await until(lambda: rig.daemon.session.is_open, "a session")
    detail = "no node 'n1' is enrolled with this key"
    body = json.dumps({"title": "x", "status": 401, "code": "unauthenticated", "detail": detail})
    for route in ("/nodes/register", "/nodes/heartbeat", "/jobs/pull"):
        coordinator.refuse[route] = [(401, body.encode())] * 1000
    await until(lambda: rig.daemon.session.unknown, "it knows")
    well, said = rig.daemon.health.report()
    assert (well, said["status"], said["enrolled"]) == (False, "unhealthy", False)
    assert said["problems"][0] == f"not enrolled: the coordinator refuses this node's key ({detail})"
    coordinator.refuse.clear()
    rig.daemon.registrar.wake()
    await until(lambda: rig.daemon.session.is_open, "a session again")
    assert rig.daemon.health.report()[1]["enrolled"] is True


async def test_a_retired_node_says_so_lets_go_of_everything_and_idles(rig, coordinator):
    coordinator.offer("j1", command="wait")
    await until(lambda: rig.runner.started, "it runs")
    body = json.dumps({"title": "x", "status": 403, "code": "node_retired", "detail": "node n1 was retired", "hint": "join anew"})
    for route in ("/nodes/register", "/nodes/heartbeat", "/jobs/pull", "/jobs/progress", "/jobs/result", "/jobs/ack"):
        coordinator.refuse[route] = [(403, body.encode())] * 1000
    await until(lambda: rig.runner.killed, "what it ran is ended")
    await until(lambda: not rig.held(), "nothing is held any more")
    assert rig.over("j1") is None  # and reported to nobody
    assert rig.daemon.health.report()[1]["problems"][0] == "node n1 was retired; join anew"
    calls = len(coordinator.calls)
    registrar = rig.daemon.registrar
    registrar.wake()  # its next turn, which else comes in a minute
    await until(lambda: rig.daemon.session.barred and not registrar._wake.is_set(), "it asked again")
    assert len([kind for kind, _ in coordinator.calls[calls:] if kind != "/nodes/register"]) <= 1
    coordinator.refuse.clear()  # as if its row was brought back from a backup
    registrar.wake()
    await until(lambda: rig.daemon.session.is_open, "a session")
    coordinator.offer("j2")
    await until(lambda: rig.over("j2"), "it works again")


# --- logs ---


async def test_a_short_log_travels_inside_the_outcome(rig, coordinator):
    rig.runner.work["j1"] = writes(b"hello\n")
    coordinator.offer("j1")
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    [end] = outcome.logs
    assert (end.stream, end.length, end.offset, end.tail) == ("stdout", 6, 0, b"hello\n")
    assert not [kind for kind, _ in coordinator.calls if kind == "log"]


async def test_a_running_job_is_followed(rig, coordinator):
    rig.runner.work["j1"] = writes(b"one\n")
    coordinator.offer("j1", command="wait")
    key = ("j1", 1, "stdout")
    await until(lambda: coordinator.logs[key] == b"one\n", "the first line")
    writes(b"two\n")(rig.daemon.table.get("j1", 1).task)
    await until(lambda: coordinator.logs[key] == b"one\ntwo\n", "the second line")
    writes(b"three\n")(rig.daemon.table.get("j1", 1).task)
    rig.runner.end("j1/1")
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert coordinator.logs[key] == b"one\ntwo\nthree\n"
    assert outcome.logs[0].length == 14


async def test_a_long_log_is_shipped_before_the_outcome(rig, coordinator):
    text = os.urandom(900_000)
    rig.runner.work["j1"] = writes(text)
    coordinator.offer("j1")
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert coordinator.logs["j1", 1, "stdout"] == text
    assert len(outcome.logs[0].tail) <= m.INLINE_LOG_BYTES


async def test_a_log_is_sent_from_where_the_coordinator_says(rig, coordinator):
    rig.runner.work["j1"] = writes(b"0123456789")
    coordinator.logs["j1", 1, "stdout"] = b"0123"  # as after a daemon that died with its offsets
    coordinator.offer("j1")
    await until(lambda: rig.over("j1"), "the outcome")
    assert coordinator.logs["j1", 1, "stdout"] == b"0123456789"


async def test_following_resumes_where_the_coordinator_is(rig, coordinator):
    rig.runner.work["j1"] = writes(b"0123456789")
    coordinator.logs["j1", 1, "stdout"] = b"0123"
    coordinator.offer("j1", command="wait")
    await until(lambda: coordinator.logs["j1", 1, "stdout"] == b"0123456789", "the rest")
    rig.runner.end("j1/1")
    await until(lambda: rig.over("j1"), "the outcome")


async def test_a_log_of_an_attempt_that_is_gone_ends_it(rig, coordinator):
    coordinator.offer("j1", command="wait")
    await until(lambda: rig.runner.started, "it runs")
    coordinator.stale.add(("j1", 1))
    writes(b"x")(rig.daemon.table.get("j1", 1).task)
    await until(lambda: rig.runner.killed == [("j1/1", "forgotten")], "it is killed")
    await until(lambda: not rig.held(), "it is let go")
    assert rig.over("j1") is None


# --- artifacts ---


def makes(name, content):
    return lambda task: Path(task.root, "output", name).write_bytes(content)


async def test_artifacts_are_delivered_with_the_outcome(rig, coordinator):
    content = os.urandom(3_000_000)
    rig.runner.work["j1"] = makes("a.bin", content)
    coordinator.offer("j1", artifacts=[{"path": "a.bin", "max_mb": 5}])
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert coordinator.files["j1/a.bin"] == content
    assert outcome.artifacts[0].size == len(content)


async def test_a_missing_artifact_is_the_jobs_failure(rig, coordinator):
    coordinator.offer("j1", artifacts=[{"path": "a.bin"}])
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert outcome.failure.code is FailureCode.OUTPUT


async def test_an_upload_that_breaks_is_made_again(rig, coordinator):
    coordinator.refuse["/jobs/result"] = ["drop", (503, b"{}"), "drop"]
    rig.runner.work["j1"] = makes("a.bin", b"x" * 2_000_000)
    coordinator.offer("j1", artifacts=[{"path": "a.bin", "max_mb": 5}])
    await until(lambda: rig.over("j1"), "the outcome")
    assert coordinator.files["j1/a.bin"] == b"x" * 2_000_000


async def test_an_artifact_damaged_before_its_delivery_is_never_delivered(rig, coordinator):
    coordinator.refuse["/jobs/result"] = [(503, b"{}")]
    rig.runner.work["j1"] = makes("a.bin", b"good")
    coordinator.offer("j1", artifacts=[{"path": "a.bin"}])
    live = await until(lambda: rig.daemon.table.get("j1", 1), "it is here")
    await until(lambda: live.outcome is not None and not coordinator.refuse["/jobs/result"], "a refused upload")
    (live.workspace.path / "output/a.bin").write_bytes(b"evil")
    live.outputs = ()  # as after a restart
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert outcome.failure.code is FailureCode.LOST
    assert "j1/a.bin" not in coordinator.files


async def test_small_artifacts_travel_inside_the_outcome_and_large_ones_in_a_form(tmp_path, coordinator):
    coordinator.terms["inline_bytes"] = m.INLINE_BYTES
    rig = NodeRig(tmp_path, coordinator)
    await rig.start()
    contents = {"j1": b"42", "j2": b"", "j3": b"x" * (m.INLINE_BYTES + 1)}
    for name, content in contents.items():
        rig.runner.work[name] = makes("a.bin", content)
        coordinator.offer(name, artifacts=[{"path": "a.bin"}])
    outcomes = {name: await until(lambda name=name: rig.over(name), "the outcome") for name in contents}
    assert {name: one.contents for name, one in outcomes.items()} == {"j1": {"a.bin": b"42"}, "j2": {"a.bin": b""}, "j3": {}}
    assert coordinator.files == {"j3/a.bin": contents["j3"]}
    await rig.stop()


async def test_a_small_artifact_that_changed_is_not_delivered(tmp_path, coordinator):
    coordinator.terms["inline_bytes"] = m.INLINE_BYTES
    rig = NodeRig(tmp_path, coordinator)
    await rig.start()
    coordinator.refuse["/jobs/result"] = [(503, b"{}")]
    rig.runner.work["j1"] = makes("a.bin", b"good")
    coordinator.offer("j1", artifacts=[{"path": "a.bin"}])
    live = await until(lambda: rig.daemon.table.get("j1", 1), "it is here")
    await until(lambda: live.outcome is not None and not coordinator.refuse["/jobs/result"], "a refused delivery")
    (live.workspace.path / "output/a.bin").write_bytes(b"evil")
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert (outcome.failure.code, outcome.contents) == (FailureCode.LOST, {})
    await rig.stop()


# --- workspaces that are lent ---


def lends(rig, job_id, **ending):
    """An attempt whose runner has a workspace for it, and which it leaves as `ending` says."""
    rig.runner.lending = True
    rig.coordinator.offer(job_id, command="wait", artifacts=[{"path": "r.json", "optional": True}])
    return Ending(**ending)


@pytest.mark.parametrize("inline", [0, m.INLINE_BYTES], ids=["an older coordinator", "this one"])
async def test_what_was_left_bare_has_results_and_no_workspace(tmp_path, coordinator, inline):
    coordinator.terms["inline_bytes"] = inline
    rig = NodeRig(tmp_path, coordinator)
    await rig.start()
    end = lends(rig, "j1", exit_code=0, bare=True, contents={"r.json": b"42"})
    await until(lambda: rig.runner.lent == ["j1/1"], "it runs")
    assert list(rig.config.workspace.root.iterdir()) == []
    rig.runner.end("j1/1", end)
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert [(one.path, one.size) for one in outcome.artifacts] == [("r.json", 2)]
    assert (outcome.contents, coordinator.files) == (({"r.json": b"42"}, {}) if inline else ({}, {"j1/r.json": b"42"}))
    assert list(rig.config.workspace.root.iterdir()) == []
    await rig.stop()


async def test_what_was_not_left_bare_keeps_its_workspace(rig, coordinator):
    end = lends(rig, "j1", exit_code=0)
    await until(lambda: rig.runner.lent, "it runs")
    made = Workspace.create(rig.config.workspace.root, "j1", 1)  # as the runner does when the attempt writes something
    (made.output / "r.json").write_bytes(b"[]")
    made.logs.joinpath("stdout.log").write_bytes(b"said")
    rig.runner.end("j1/1", end)
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert (coordinator.files["j1/r.json"], outcome.logs[0].tail) == (b"[]", b"said")
    state = json.loads((made.path / "state.json").read_text())
    assert (state["state"], state["node_state"]) == ("DONE", "done")


async def test_one_that_could_not_be_started_leaves_nothing(rig, coordinator):
    rig.runner.lending = True
    coordinator.offer("j1", command="unstartable")
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert outcome.failure.code is FailureCode.START
    assert list(rig.config.workspace.root.iterdir()) == []


async def test_where_something_lies_in_its_place_a_workspace_is_made_for_it(rig, coordinator):
    (rig.config.workspace.root / "j1").mkdir()
    end = lends(rig, "j1", exit_code=0)
    await until(lambda: rig.runner.started, "it runs")
    assert rig.runner.lent == []
    assert (rig.config.workspace.root / "j1/attempt-1/work").is_dir()
    rig.runner.end("j1/1", end)
    await until(lambda: rig.over("j1"), "the outcome")


async def test_an_end_that_left_nothing_and_that_no_daemon_saw_is_delivered_by_the_next(tmp_path, coordinator):
    coordinator.terms["inline_bytes"] = m.INLINE_BYTES
    rig = NodeRig(tmp_path, coordinator)
    await rig.start()
    end = lends(rig, "j1", exit_code=0, bare=True, contents={"r.json": b"42"})
    await until(lambda: rig.runner.lent, "it runs")
    await rig.crash()
    rig.runner.end("j1/1", end)
    await rig.start()
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert (outcome.failure, outcome.contents) == (None, {"r.json": b"42"})
    assert rig.runner.started == ["j1/1"], "it ran once"
    await rig.stop()


# --- delivery ---


async def test_outcomes_wait_for_a_coordinator_that_is_away(tmp_path, coordinator):
    rig = NodeRig(tmp_path, coordinator)
    await rig.start()
    coordinator.offer("j1", command="wait")
    coordinator.offer("j2", command="wait", artifacts=[{"path": "a.bin"}])
    await until(lambda: len(rig.runner.started) == 2, "both run")
    makes("a.bin", b"content")(rig.daemon.table.get("j2", 1).task)
    await coordinator.stop()
    rig.runner.end("j1/1")
    rig.runner.end("j2/1")
    await until(lambda: len(rig.daemon.table.over()) == 2, "both wait")
    await until(lambda: rig.daemon.heart.failure, "the coordinator is away")
    assert rig.held() == {("j1", 1), ("j2", 1)}
    assert rig.runner.forgotten == []
    await coordinator.start()
    await until(lambda: len(coordinator.outcomes) == 2, "both are delivered")
    assert coordinator.files["j2/a.bin"] == b"content"
    await rig.stop()


async def test_a_stale_outcome_is_discarded(rig, coordinator):
    coordinator.offer("j1", command="wait")
    await until(lambda: rig.runner.started, "it runs")
    coordinator.stale.add(("j1", 1))
    rig.runner.end("j1/1")
    await until(lambda: not rig.held(), "it is let go")
    assert rig.over("j1") is None
    assert rig.daemon.counts.discarded == 1


async def test_an_outcome_that_spoils_its_batch_does_not_hold_up_the_others(rig, coordinator):
    body = json.dumps({"title": "x", "status": 422, "code": "invalid_spec", "detail": "no"}).encode()
    for name in ("j1", "j2"):
        coordinator.offer(name, command="wait")
    await until(lambda: len(rig.runner.started) == 2, "both run")
    coordinator.refuse["/jobs/result"] = [(422, body)] * 3
    rig.runner.end("j1/1")
    rig.runner.end("j2/1")
    await until(lambda: len(coordinator.outcomes) == 2, "both are delivered")


async def test_an_outcome_that_is_refused_for_good_becomes_a_failure(rig, coordinator):
    body = json.dumps({"title": "x", "status": 413, "code": "too_large", "detail": "too much"}).encode()
    coordinator.refuse["/jobs/result"] = [(413, body)] * 2
    rig.runner.work["j1"] = makes("a.bin", b"x")
    coordinator.offer("j1", artifacts=[{"path": "a.bin"}])
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert outcome.failure.code is FailureCode.OUTPUT
    assert "too much" in outcome.failure.message


# --- directives ---


async def test_a_cancelled_job_is_reported_cancelled(rig, coordinator):
    coordinator.offer("j1", command="wait")
    await until(lambda: rig.runner.started, "it runs")
    coordinator.tell("cancel", "j1", 1, reason="changed my mind")
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert outcome.cancelled
    assert outcome.failure is None
    assert rig.runner.killed == [("j1/1", "cancel")]


async def test_a_job_is_cancelled_while_its_inputs_come(rig, coordinator):
    gate = asyncio.Event()

    async def slow(live, workspace):
        await gate.wait()

    rig.daemon.executor._prepare = slow
    coordinator.offer("j1", input={"inline": {"a": "x"}})
    await until(lambda: (live := rig.daemon.table.get("j1", 1)) and live.state is AttemptState.PREPARING, "inputs come")
    coordinator.tell("cancel", "j1", 1)
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert outcome.cancelled
    assert rig.runner.started == []


async def test_a_forgotten_attempt_is_killed_and_not_reported(rig, coordinator):
    coordinator.offer("j1", command="wait")
    await until(lambda: rig.runner.started, "it runs")
    coordinator.tell("forget", "j1", 1)
    await until(lambda: not rig.held(), "it is let go")
    assert rig.runner.killed == [("j1/1", "forgotten")]
    assert coordinator.deliveries == []


async def test_a_directive_keeps_no_work_waiting(rig, coordinator, monkeypatch):
    """An empty answer at once is answered with a pause, lest node and coordinator spin; but not one that brings news."""
    await until(lambda: coordinator.open_pulls, "a poll is open")
    monkeypatch.setattr(puller, "QUICK_S", 60.0)
    before = len(coordinator.calls)
    coordinator.tell("forget", "j9", 1)
    await until(lambda: len(coordinator.calls) > before, "it asks again")
    coordinator.offer("j1")
    await until(lambda: rig.over("j1"), "the outcome")


async def test_an_attempt_that_the_node_does_not_have_is_reported_lost(rig, coordinator):
    coordinator.acked.append(("j9", 3))
    coordinator.tell("reconcile", "j9", 3)
    outcome = await until(lambda: rig.over("j9", 3), "the outcome")
    assert outcome.failure.code is FailureCode.LOST


async def test_a_new_attempt_of_the_same_job_ends_the_older_one(rig, coordinator):
    coordinator.offer("j1", 1, command="wait")
    await until(lambda: rig.runner.started, "it runs")
    coordinator.offer("j1", 2, command="wait")
    await until(lambda: rig.runner.started == ["j1/1", "j1/2"], "the new one runs")
    assert rig.runner.killed == [("j1/1", "forgotten")]
    await until((rig.folder / "jobs/j1/attempt-2/state.json").exists, "its workspace says so")
    rig.runner.end("j1/2")
    await until(lambda: rig.over("j1", 2), "its outcome")
    assert rig.over("j1", 1) is None


async def test_the_coordinator_drains_and_resumes_the_node(rig, coordinator):
    coordinator.offer("j1", command="wait")
    await until(lambda: rig.runner.started, "it runs")
    one = coordinator.tell("drain", reason="maintenance")
    await until(lambda: not asked_last(coordinator), "it asks for nothing any more")
    coordinator.offer("j2")
    await until(lambda: coordinator.beats and coordinator.beats[-1].draining, "it says so")
    assert rig.daemon.health.report()[1]["status"] == "draining"
    rig.runner.end("j1/1")
    await until(lambda: rig.over("j1"), "what ran is finished")
    assert rig.over("j2") is None
    coordinator.directives.remove(one)
    coordinator.tell("resume")
    await until(lambda: rig.over("j2"), "it works again")


async def test_a_drain_with_a_deadline_ends_what_still_runs(rig, coordinator):
    coordinator.offer("j1", command="wait")
    await until(lambda: rig.runner.started, "it runs")
    coordinator.tell("drain", timeout_s=0.2)
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert outcome.failure.code is FailureCode.LOST
    assert "drained" in outcome.failure.message


async def test_a_workspace_is_pinned_and_uploaded_on_request(rig, coordinator):
    rig.runner.work["j1"] = lambda task: (
        Path(task.root, "work/found.txt").write_text("here"),
        Path(task.root, "work/link").symlink_to("/etc/passwd"),
        os.mkfifo(Path(task.root) / "work/fifo"),
    )
    coordinator.offer("j1")
    await until(lambda: rig.over("j1"), "the outcome")
    coordinator.tell("debug", "j1", 1)
    archive = await until(lambda: coordinator.workspaces.get(("j1", 1)), "the workspace")
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        members = {one.name: one for one in tar.getmembers()}
        assert tar.extractfile("work/found.txt").read() == b"here"
    assert members["work/link"].issym()
    assert "work/fifo" not in members
    assert (rig.folder / "jobs/j1/.pinned").exists()


# --- leases ---


async def test_the_open_poll_is_one_and_carries_what_is_held(rig, coordinator):
    coordinator.offer("j1", command="wait")
    coordinator.offer("j2", command="wait")
    await until(lambda: len(rig.runner.started) == 2, "both run")
    await until(lambda: coordinator.open_pulls == 1, "a poll is open without a free slot")
    [last] = [body for kind, body in coordinator.calls if kind == "pull"][-1:]
    assert last.slots == 0
    assert {(one.job_id, one.attempt) for one in last.held} == {("j1", 1), ("j2", 1)}
    rig.runner.end("j1/1")
    coordinator.offer("j3")
    await until(lambda: rig.over("j3"), "the freed slot is offered at once")
    assert coordinator.most_pulls <= 2


async def test_slots_that_become_free_together_replace_the_open_poll_once(rig, coordinator):
    """What the first of two polls was given would be taken back by the second, which does not hold it."""
    coordinator.offer("j1", command="wait")
    coordinator.offer("j2", command="wait")
    await until(lambda: len(rig.runner.started) == 2, "both run")
    await until(lambda: coordinator.open_pulls == 1, "a poll is open without a free slot")
    before = len(coordinator.calls)
    config = replace(rig.daemon.config, resources=replace(rig.daemon.config.resources, max_concurrent_cpu=4))
    rig.daemon.reload(config)
    rig.daemon.reload(config)
    coordinator.offer("j3", command="wait")
    await until(lambda: len(rig.runner.started) == 3, "the new slot is used")
    assert [body.slots for kind, body in coordinator.calls[before:] if kind == "pull"].count(2) == 1


async def test_an_attempt_goes_on_beyond_its_lease_and_is_given_up_after_the_ride_out(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "RIDE_OUT_S", 3.5)
    coordinator = await FakeCoordinator(lease_s=1.0, heartbeat_s=0.2).start()
    rig = NodeRig(tmp_path, coordinator)
    daemon = await rig.start()
    coordinator.offer("j1", command="wait")
    await until(lambda: rig.runner.started, "it runs")
    await coordinator.stop()
    live = daemon.table.get("j1", 1)
    await until(lambda: live.unrenewed, "the lease's end is noticed")
    assert rig.runner.killed == []
    await until(lambda: rig.runner.killed == [("j1/1", "lost")], "it is given up")
    await until(lambda: live.outcome is not None, "its outcome")
    assert live.outcome.failure.code is FailureCode.LOST
    assert rig.held() == {("j1", 1)}
    await coordinator.start()
    outcome = await until(lambda: rig.over("j1"), "it is delivered")
    assert outcome.failure.code is FailureCode.LOST
    await rig.stop()
    await coordinator.stop()


async def test_in_silence_an_attempt_is_given_up_before_its_lease_is_over(tmp_path):
    """A coordinator that is frozen accepts connections and answers nothing, like a network that swallows everything."""
    coordinator = await FakeCoordinator(lease_s=4.0, heartbeat_s=0.2).start()
    rig = NodeRig(tmp_path, coordinator)
    await rig.start()
    coordinator.offer("j1", command="wait")
    await until(lambda: rig.runner.started, "it runs")
    await coordinator.stop()
    with socket.create_server(("127.0.0.1", coordinator.port)):
        await until(lambda: rig.runner.killed == [("j1/1", "lost")], "it is given up")
        await rig.stop()


async def test_jobs_outlive_a_coordinator_that_restarts(rig, coordinator):
    coordinator.offer("j1", command="wait")
    await until(lambda: rig.runner.started, "it runs")
    await coordinator.stop()
    await until(lambda: rig.daemon.puller.failure, "a poll failed")
    await coordinator.start()
    await until(lambda: coordinator.open_pulls == 1, "a new poll")
    rig.runner.end("j1/1")
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert outcome.failure is None


# --- reports ---


async def test_stages_and_progress_are_told_of_attempts_that_last(rig, coordinator):
    coordinator.offer("j1", command="wait")
    coordinator.offer("short")
    await until(lambda: [one for one in coordinator.progress if one.job_id == "j1"], "it is told")
    assert coordinator.progress[0].state is AttemptState.RUNNING
    rig.runner.say("j1/1", 50.0, "half")
    rig.runner.say("j1/1", 60.0, "n" * 900)
    told = await until(lambda: [one for one in coordinator.progress if one.pct is not None], "progress")
    assert told[-1].pct == 60.0
    assert len(told[-1].note) == 500
    assert len(told) == 1
    assert not [one for one in coordinator.progress if one.job_id == "short"]


# --- the end and the beginning of a daemon ---


async def test_a_stopped_daemon_leaves_its_jobs_to_the_next(tmp_path, coordinator):
    rig = NodeRig(tmp_path, coordinator)
    await rig.start()
    rig.runner.work["j1"] = writes(b"before\n")
    coordinator.offer("j1", command="wait")
    await until(lambda: coordinator.logs["j1", 1, "stdout"] == b"before\n", "it runs and is followed")
    await rig.stop()
    assert coordinator.beats[-1].draining
    assert rig.runner.killed == []
    daemon = await rig.start()
    await until(lambda: len(coordinator.registrations) == 2, "it registers")
    assert coordinator.registrations[1].held == (m.Held("j1", 1),)
    live = daemon.table.get("j1", 1)
    assert live.state is AttemptState.RUNNING
    writes(b"after\n")(live.task)
    await until(lambda: coordinator.logs["j1", 1, "stdout"] == b"before\nafter\n", "the log goes on")
    rig.runner.end("j1/1")
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert outcome.failure is None
    assert rig.runner.started == ["j1/1"]
    await rig.stop()


async def test_what_ended_while_no_daemon_lived_is_delivered(tmp_path, coordinator):
    rig = NodeRig(tmp_path, coordinator)
    await rig.start()
    coordinator.offer("j1", command="wait")
    await until(lambda: rig.runner.started, "it runs")
    await rig.crash()
    rig.runner.end("j1/1", Ending(exit_code=3, failure=Failure(FailureCode.EXIT, "3")))
    await rig.start()
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert outcome.exit_code == 3
    await rig.stop()


async def test_what_died_without_a_trace_is_lost(tmp_path, coordinator):
    rig = NodeRig(tmp_path, coordinator)
    await rig.start()
    coordinator.offer("j1", command="wait")
    await until(lambda: rig.runner.started, "it runs")
    await until((rig.folder / "jobs/j1/state.json").exists, "its workspace says so")
    await rig.crash()
    rig.runner.living.clear()
    await rig.start()
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert outcome.failure.code is FailureCode.LOST
    assert rig.runner.started == ["j1/1"]
    await rig.stop()


async def test_an_outcome_survives_the_daemon(tmp_path, coordinator):
    rig = NodeRig(tmp_path, coordinator)
    await rig.start()
    coordinator.offer("j1", command="wait", artifacts=[{"path": "a.bin"}])
    rig.runner.work["j1"] = lambda task: (makes("a.bin", b"content")(task), writes(b"log\n")(task))
    await until(lambda: rig.runner.started, "it runs")
    coordinator.refuse["/jobs/result"] = [(503, b"{}")] * 1000
    rig.runner.end("j1/1")
    await until(rig.daemon.table.over, "the outcome waits")
    await rig.crash()
    rig.runner.living.clear()
    coordinator.refuse.clear()
    await rig.start()
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert outcome.failure is None
    assert coordinator.files["j1/a.bin"] == b"content"
    assert coordinator.logs["j1", 1, "stdout"] == b"log\n"
    await rig.stop()


async def test_an_attempt_that_was_accepted_and_never_begun_runs_after_a_new_ack(tmp_path, coordinator):
    rig = NodeRig(tmp_path, coordinator)
    await rig.start()
    coordinator.refuse["/jobs/ack"] = [(503, b"{}")] * 1000
    coordinator.offer("j1")
    await until(lambda: len(coordinator.refuse["/jobs/ack"]) < 1000, "an ack was tried")
    await rig.crash()
    coordinator.refuse.clear()
    await rig.start()
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert outcome.failure is None
    assert coordinator.acked == [("j1", 1)]
    await rig.stop()


HANDED = InputFile(name="in", sha256="0" * 64, size=3)
TAKES = {"depends_on": ["make"], "input": {"artifacts": [{"job": "make", "path": "out", "name": "in"}]}}


async def test_what_other_jobs_hand_on_is_among_the_inputs_also_after_a_crash(tmp_path, coordinator):
    rig = NodeRig(tmp_path, coordinator)
    await rig.start()
    coordinator.offer("j1", handed=[HANDED], **TAKES)
    await until(lambda: rig.over("j1"), "the outcome")
    coordinator.refuse["/jobs/ack"] = [(503, b"{}")] * 1000
    coordinator.offer("j2", handed=[HANDED], **TAKES)
    await until(lambda: len(coordinator.refuse["/jobs/ack"]) < 1000, "an ack was tried")
    await rig.crash()
    coordinator.refuse.clear()
    await rig.start()
    assert (await until(lambda: rig.over("j2"), "the outcome")).failure is None
    assert rig.prepared == {"j1": (HANDED,), "j2": (HANDED,)}
    await rig.stop()


async def test_an_input_that_was_not_handed_over_is_never_run_without(rig, coordinator):
    coordinator.offer("j1", **TAKES)
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert (outcome.failure.code, outcome.failure.message) == (FailureCode.INPUT, "the coordinator did not hand over in")
    assert rig.runner.started == []


async def furnished(rig, coordinator):
    """A node whose slots are taken and that has accepted `next` ahead of a free one, as short jobs let it; its workspace."""
    for number in range(20):
        coordinator.offer(f"short{number}")
    await until(lambda: len(coordinator.outcomes) == 20, "short jobs")
    for name in ("w0", "w1", "next"):
        coordinator.offer(name, command="wait")
    folder = rig.config.workspace.root / "next"
    await until((folder / "logs").exists, "the workspace is made ahead")
    await until(lambda: len(rig.runner.started) == 22, "both slots are taken")
    assert not (folder / "state.json").exists()
    return folder


@pytest.fixture
def short(monkeypatch):
    """Jobs count as short, however slow the machine."""
    for name in ("START_AHEAD_S", "ACK_AHEAD_S", "LEASE_AHEAD_S"):
        monkeypatch.setattr(credit, name, 60.0)


async def paced(rig, coordinator):
    """A node that knows that its jobs are short, with two of four that run and two that wait at the keeper."""
    rig.runner.lets_wait = True
    for i in range(8):
        coordinator.offer(f"quick{i}")
    await until(lambda: len(coordinator.outcomes) == 8, "the node knows the pace")
    for i in range(4):
        coordinator.offer(f"j{i}", command="wait")
    await until(lambda: list(rig.runner.waiting) == ["j2/1", "j3/1"], "two wait at the keeper")
    assert rig.runner.started[8:] == ["j0/1", "j1/1"]


@pytest.mark.usefixtures("short")
async def test_short_jobs_begin_with_the_end_of_others(rig, coordinator):
    rig.runner.work["j3"] = writes(b"left\n")  # so its workspace stays its own
    await paced(rig, coordinator)
    rig.runner.end("j1/1")
    assert rig.runner.waiting.keys() == {"j3/1"}, "the keeper did not ask anybody"
    for key in ("j0/1", "j2/1", "j3/1"):
        await until(lambda key=key: key in rig.runner.living, "it begins")
        rig.runner.end(key)
    await until(lambda: len(coordinator.outcomes) == 12, "all outcomes")
    await until(lambda: not rig.held(), "nothing is held any more")
    state = json.loads((rig.folder / "jobs/j3/state.json").read_text())
    assert [word for word, _ in state["history"]] == ["PULLING", "ACKED", "PREP", "RUNNING", "UPLOADING", "DONE"]


async def test_the_pace_is_what_jobs_had_their_slot_for(rig, coordinator):
    for name in ("j1", "j2"):
        coordinator.offer(name, command="wait")
    await until(lambda: len(rig.runner.started) == 2, "both run")
    for name in ("j1/1", "j2/1"):  # whatever they waited for, and however long their ends are on their way here
        rig.runner.end(name, Ending(exit_code=0, usage=Usage(prepare_s=3.0, wall_s=40.0)))
    await until(lambda: len(coordinator.outcomes) == 2, "the outcomes")
    assert rig.daemon.pace.median_s == 43.0


@pytest.mark.usefixtures("short")
async def test_one_that_waits_at_the_keeper_can_be_cancelled(rig, coordinator):
    await paced(rig, coordinator)
    coordinator.tell("cancel", "j2", 1)
    outcome = await until(lambda: rig.over("j2"), "the outcome")
    assert outcome.cancelled
    assert rig.runner.killed == []
    rig.runner.end("j0/1")
    await until(lambda: "j3/1" in rig.runner.started, "the next one begins")
    assert "j2/1" not in rig.runner.started


@pytest.mark.parametrize("prepared", [False, True], ids=["plain", "with an input"])
@pytest.mark.usefixtures("short")
async def test_a_latency_job_begins_before_what_waits_at_the_keeper(rig, coordinator, prepared):
    await paced(rig, coordinator)
    more = {"input": {"inline": {"a.txt": "a"}}} if prepared else {}
    coordinator.offer("hasty", command="wait", latency=True, **more)
    if prepared:
        await until(lambda: not rig.runner.waiting, "what waits is taken back")
    else:
        await until(lambda: "hasty/1" in rig.runner.waiting, "it waits, before the others")
    rig.runner.end("j0/1")
    await until(lambda: len(rig.runner.started) == 11, "one more begins")
    assert rig.runner.started[10] == "hasty/1"
    rig.runner.end("j1/1")
    await until(lambda: len(rig.runner.started) == 12, "and then those that waited")
    assert rig.runner.started[11] == "j2/1"


@pytest.mark.usefixtures("short")
async def test_what_waited_at_the_keeper_is_not_lost_with_the_daemon(tmp_path, coordinator):
    rig = NodeRig(tmp_path, coordinator)
    await rig.start()
    await paced(rig, coordinator)
    await rig.stop()
    rig.runner.waiting.clear()  # their client is gone
    await rig.start()
    for key in ("j0/1", "j1/1", "j2/1", "j3/1"):
        await until(lambda key=key: key in rig.runner.living, "it begins")
        rig.runner.end(key)
    await until(lambda: len(coordinator.outcomes) == 12, "all outcomes")
    assert sorted(rig.runner.started[8:]) == ["j0/1", "j1/1", "j2/1", "j3/1"], "each once"
    assert not any(one.failure for one in coordinator.outcomes.values())
    await rig.stop()


@pytest.mark.usefixtures("short")
async def test_a_workspace_made_ahead_is_used(rig, coordinator):
    rig.runner.work["short7"] = writes(b"left\n")  # so its workspace stays its own
    folder = await furnished(rig, coordinator)
    rig.runner.end("w0/1")
    await until(lambda: "next/1" in rig.runner.started, "it has its slot")
    await until((folder / "state.json").exists, "it lasts, so its state is written")
    assert json.loads((folder / "state.json").read_text())["state"] == "RUNNING"
    rig.runner.end("next/1")
    await until(lambda: rig.over("next"), "the outcome")
    words = [word for word, _ in json.loads((folder / "state.json").read_text())["history"]]
    assert words == ["PULLING", "ACKED", "PREP", "RUNNING", "UPLOADING", "DONE"]
    short = json.loads((rig.config.workspace.root / "short7" / "state.json").read_text())
    assert ([word for word, _ in short["history"]], short["runner"], short["exit_code"]) == (words, "cli", 0)


@pytest.mark.usefixtures("short")
async def test_a_workspace_made_ahead_goes_with_an_attempt_that_is_taken_away(rig, coordinator):
    folder = await furnished(rig, coordinator)
    rig.daemon.executor.forget(rig.daemon.table.get("next", 1))
    await until(lambda: not folder.exists() and rig.daemon.table.get("next", 1) is None, "nothing is left of it")


@pytest.mark.usefixtures("short")
async def test_an_attempt_cancelled_before_its_slot_was_free_leaves_a_workspace_that_says_so(rig, coordinator):
    folder = await furnished(rig, coordinator)
    rig.daemon.executor.cancel(rig.daemon.table.get("next", 1), "not wanted")
    outcome = await until(lambda: rig.over("next"), "the outcome")
    assert outcome.cancelled
    assert json.loads((folder / "state.json").read_text())["node_state"] == "cancelled"


@pytest.mark.usefixtures("short")
async def test_what_only_has_a_workspace_is_offered_again_after_a_crash(tmp_path, coordinator):
    rig = NodeRig(tmp_path, coordinator)
    await rig.start()
    folder = await furnished(rig, coordinator)
    await rig.crash()
    for name in ("w0", "w1"):
        rig.runner.end(f"{name}/1")
    before = coordinator.acked.count(("next", 1))
    await rig.start()
    await until(lambda: "next/1" in rig.runner.started, "it runs")
    assert coordinator.acked.count(("next", 1)) == before + 1
    rig.runner.end("next/1")
    assert (await until(lambda: rig.over("next"), "the outcome")).failure is None
    assert [path.name for path in folder.parent.glob("next*")] == ["next"]
    assert not list(folder.glob("attempt-*"))
    await rig.stop()


@pytest.mark.usefixtures("short")
async def test_what_is_over_for_the_coordinator_when_a_session_opens_does_not_come_back_into_the_journal(tmp_path, coordinator):
    rig = NodeRig(tmp_path, coordinator)
    await rig.start()
    await furnished(rig, coordinator)
    await rig.crash()
    coordinator.forget = (m.Held("next", 1),)
    coordinator.stale.add(("next", 1))
    before = coordinator.acked.count(("next", 1))
    await rig.start()
    for name in ("w0", "w1"):
        rig.runner.end(f"{name}/1")
        await until(lambda name=name: rig.over(name), "the outcome")
    assert rig.daemon.table.get("next", 1) is None
    await rig.stop()  # what waits is written
    with contextlib.closing(sqlite3.connect(rig.config.state_dir / "journal.db")) as journal:
        assert ("next", 1) not in journal.execute("SELECT job_id, attempt FROM attempts").fetchall()
    assert coordinator.acked.count(("next", 1)) == before


@pytest.mark.usefixtures("short")
async def test_what_was_accepted_before_a_crash_is_not_handed_back(tmp_path, coordinator, monkeypatch):
    rig = NodeRig(tmp_path, coordinator)
    await rig.start()
    await furnished(rig, coordinator)
    await rig.crash()
    monkeypatch.setattr(credit, "OFFER_PATIENCE_S", 0.0)  # the way back to the coordinator took longer
    before = coordinator.acked.count(("next", 1))
    await rig.start()
    await until(lambda: coordinator.acked.count(("next", 1)) == before + 1, "it is acknowledged again, without a free slot")
    rig.runner.end("w0/1")
    await until(lambda: "next/1" in rig.runner.started, "it has its slot")
    for name in ("w1", "next"):
        rig.runner.end(f"{name}/1")
    assert (await until(lambda: rig.over("next"), "the outcome")).failure is None
    await rig.stop()


@pytest.mark.usefixtures("short")
async def test_after_a_start_of_the_machine_nobody_says_that_an_attempt_had_not_begun(tmp_path, coordinator, monkeypatch):
    rig = NodeRig(tmp_path, coordinator)
    await rig.start()
    folder = await furnished(rig, coordinator)
    await rig.crash()
    for name in ("w0", "w1"):
        rig.runner.end(f"{name}/1")
    shutil.rmtree(folder)  # it was not flushed to the disk
    (tmp_path / "boot").write_text("another")
    monkeypatch.setattr("ostler.node.journal.BOOT_ID", tmp_path / "boot")
    await rig.start()
    outcome = await until(lambda: rig.over("next"), "the outcome")
    assert outcome.failure.code is FailureCode.LOST
    assert "next/1" not in rig.runner.started
    await rig.stop()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.usefixtures("short")
async def test_a_workspace_without_a_word_in_it_is_believed_only_until_the_machine_starts_anew(
    tmp_path, coordinator, monkeypatch, known
):
    rig = NodeRig(tmp_path, coordinator)
    await rig.start()
    await furnished(rig, coordinator)
    await rig.crash()
    for name in ("w0", "w1"):
        rig.runner.end(f"{name}/1")
    if known:  # the keeper had started it when the daemon died
        rig.runner.living["next/1"] = asyncio.get_running_loop().create_future()
        rig.runner.end("next/1")
    else:
        (tmp_path / "boot").write_text("another")
        monkeypatch.setattr("ostler.node.journal.BOOT_ID", tmp_path / "boot")
    await rig.start()
    outcome = await until(lambda: rig.over("next"), "the outcome")
    assert (outcome.failure is None) == known
    assert known or outcome.failure.code is FailureCode.LOST
    assert "next/1" not in rig.runner.started
    await rig.stop()


@pytest.mark.parametrize("lives", [True, False])
async def test_an_attempt_outlives_keepers_that_die_before_they_tell_of_it(rig, coordinator, monkeypatch, lives):
    coordinator.offer("j1", command="wait")
    await until(lambda: "j1/1" in rig.runner.living, "it runs")
    gone = KeeperUnreachable("the keeper has gone away")
    asked = []

    async def alive(task):
        asked.append(task.key)
        if len(asked) < 3:
            raise gone
        return lives

    monkeypatch.setattr(rig.runner, "alive", alive)
    ending, rig.runner.living["j1/1"] = rig.runner.living["j1/1"], asyncio.get_running_loop().create_future()
    ending.set_exception(gone)
    await until(lambda: len(asked) == 3, "the third keeper is asked")
    rig.runner.end("j1/1")
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert (outcome.failure.code if outcome.failure else None) == (None if lives else FailureCode.LOST)


async def test_what_is_over_for_the_coordinator_is_not_run_again(tmp_path, coordinator):
    rig = NodeRig(tmp_path, coordinator)
    await rig.start()
    coordinator.offer("j1", command="wait")
    await until(lambda: rig.runner.started, "it runs")
    await rig.crash()
    coordinator.forget = (m.Held("j1", 1),)
    await rig.start()
    await until(lambda: rig.runner.killed == [("j1/1", "forgotten")], "it is ended")
    await until(lambda: not rig.held(), "it is let go")
    assert coordinator.deliveries == []
    await rig.stop()


# --- health, control ---


def asked_last(coordinator):
    """For how many jobs the newest poll asks."""
    return [body.slots for kind, body in coordinator.calls if kind == "pull"][-1]


async def test_health_metrics_and_control(rig, coordinator):
    await until(lambda: coordinator.beats, "a session")
    coordinator.offer("j1", command="wait")
    await until(lambda: rig.runner.started, "it runs")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{rig.daemon.door.port}") as http:
        for path in ("/healthz", "/health"):
            answer = await http.get(path)
            assert answer.status_code == 200
            assert set(answer.json()) >= {
                "status", "version", "node_id", "machine_id", "active_vps", "running", "queued", "cpu_load", "vram_free",
                "uptime_seconds", "active_sessions", "memory_usage_mb", "last_heartbeat",
            }  # fmt: skip
        assert answer.json()["running"] == 1
        text = (await http.get("/metrics")).text
        assert 'ostler_node_attempts{state="running"} 1.0' in text
        assert (await http.post("/drain")).status_code == 405
        assert (await http.get("/nothing")).status_code == 404
    transport = httpx.AsyncHTTPTransport(uds=str(rig.config.state / "daemon.sock"))
    async with httpx.AsyncClient(transport=transport, base_url="http://node") as http:
        [shown] = (await http.get("/attempts")).json()["items"]
        assert (shown["job_id"], shown["state"]) == ("j1", "running")
        assert (await http.post("/drain", params={"timeout": "x"})).status_code == 422
        assert (await http.post("/drain")).json()["draining"]
        await until(lambda: not asked_last(coordinator), "it asks for nothing any more")
        coordinator.offer("j2")
        rig.runner.end("j1/1")
        await until(lambda: rig.over("j1"), "it ends")
        assert rig.over("j2") is None
        assert not (await http.post("/resume")).json()["draining"]
        await until(lambda: rig.over("j2"), "it works again")
    assert (rig.config.state / "daemon.sock").stat().st_mode & 0o777 == 0o600


async def test_the_service_manager_hears_of_the_daemon(tmp_path, coordinator):
    """Ready once its loops turn, alive while they do, and that it ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        rig = NodeRig(tmp_path, coordinator)
        rig.manager = ServiceManager(str(tmp_path / "notify"), watchdog_s=0.15)
        await rig.start()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(30):
            heard = [await loop.sock_recv(manager, 100) for _ in range(3)]
            assert heard == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
            await rig.stop()
            while heard[-1] != b"STOPPING=1":
                heard.append(await loop.sock_recv(manager, 100))


async def test_a_failed_self_check_makes_the_node_unhealthy(tmp_path, coordinator):
    rig = NodeRig(tmp_path, coordinator)
    rig.no_op_fails = "E_SANDBOX: bwrap is gone"
    await rig.start()
    assert rig.daemon.self_check.word == "running"
    await until(lambda: coordinator.beats and rig.daemon.self_check.word != "running", "it was checked")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{rig.daemon.door.port}") as http:
        answer = await http.get("/healthz")
        said = answer.json()
        assert (answer.status_code, said["self_check"]) == (503, "failed: E_SANDBOX: bwrap is gone")
        assert "self-check failed: E_SANDBOX: bwrap is gone" in said["problems"]
        assert said["release"] == "0.2.0-test"
    await until(lambda: not asked_last(coordinator), "it asks for nothing")
    await rig.stop()


async def test_a_taken_port_is_no_reason_not_to_work(tmp_path, coordinator):
    taken = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    rig = NodeRig(tmp_path, coordinator, config=lambda c: replace(c, health=replace(c.health, listen=f"127.0.0.1:{port}")))
    await rig.start()
    coordinator.offer("j1")
    await until(lambda: rig.over("j1"), "the outcome")
    await rig.stop()
    taken.close()


async def test_silence_makes_the_node_unhealthy(rig, coordinator):
    await until(lambda: coordinator.beats, "a session")
    await coordinator.stop()
    await until(lambda: not rig.daemon.health.report()[0], "it is unhealthy")
    assert "last contact" in rig.daemon.health.report()[1]["problems"][0]
    await coordinator.start()
    await until(lambda: rig.daemon.health.report()[0], "it is well again")


async def test_a_failed_disk_drains_the_node_until_it_is_mended(rig, coordinator):
    await until(lambda: coordinator.beats, "a session")
    problem = HealthProblem(code="disk_read_only", subject="/jobs", message="is read-only", quarantine=True)
    well = rig.capabilities
    rig.capabilities = replace(well, health=(problem,))
    rig.daemon.prober.wake()
    await until(lambda: coordinator.beats[-1].draining, "it drains itself")
    assert "read-only" in rig.daemon.readiness.refusal
    assert coordinator.beats[-1].health == ("disk_read_only /jobs: is read-only",)
    assert coordinator.beats[-1].quarantine == "/jobs: is read-only"
    assert [beat for beat in coordinator.beats if beat.capabilities is not None][-1].capabilities.health == (problem,)
    coordinator.offer("j1")
    rig.capabilities = well
    rig.daemon.prober.wake()
    await until(lambda: rig.over("j1"), "it works again")
    await until(lambda: coordinator.beats[-1].quarantine is None, "it says so")


async def test_a_job_that_fails_for_the_disk_has_the_node_look_at_it_at_once(tmp_path, coordinator, monkeypatch):
    """A minute later all that waits would have failed there."""
    monkeypatch.setattr("ostler.node.loops.prober.EVERY_S", 3600.0)
    rig = NodeRig(tmp_path, coordinator)
    await rig.start()
    await until(lambda: coordinator.beats, "a session")
    problem = HealthProblem(code="disk_read_only", subject="/jobs", message="is read-only", quarantine=True)
    rig.capabilities = replace(rig.capabilities, health=(problem,))
    rig.inputs["j1"] = Failure(FailureCode.DISK, "read-only file system")
    coordinator.offer("j1", input={"inline": {"told": "x"}})
    await until(lambda: "read-only" in (rig.daemon.readiness.refusal or ""), "it takes no more")
    assert (await until(lambda: rig.over("j1"), "its outcome")).failure.code is FailureCode.DISK
    await rig.stop()


async def test_a_reload_changes_slots_and_drops_nothing(rig, coordinator):
    for i in range(3):
        coordinator.offer(f"j{i}", command="wait")
    await until(lambda: len(rig.runner.started) == 2, "two run")
    rig.daemon.reload(replace(rig.config, resources=replace(rig.config.resources, max_concurrent_cpu=3)))
    await until(lambda: len(rig.runner.started) == 3, "the third runs")
    assert rig.runner.killed == []


async def test_heartbeats_go_on_while_the_disk_hangs(rig, coordinator):
    await until(lambda: coordinator.beats, "a session")
    stuck = threading.Event()
    rig.daemon._disk.do(stuck.wait, 10)
    coordinator.offer("j1")
    await until(lambda: coordinator.acked, "it is accepted")
    await rig.beats(3)
    assert rig.runner.started == []
    stuck.set()
    await until(lambda: rig.over("j1"), "the outcome")


async def test_a_log_that_the_coordinator_will_not_have_does_not_fail_the_job(rig, coordinator):
    body = json.dumps({"title": "x", "status": 413, "code": "too_large", "detail": "too much"}).encode()
    coordinator.refuse["log"] = [(413, body)] * 100
    rig.runner.work["j1"] = writes(b"x" * 300_000)
    coordinator.offer("j1")
    outcome = await until(lambda: rig.over("j1"), "the outcome")
    assert outcome.failure is None
    assert outcome.logs == ()
