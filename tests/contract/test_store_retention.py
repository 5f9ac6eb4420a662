"""What retention reads and removes: the right rows, with all that hangs on them, and nothing that somebody still needs."""

import asyncio
import hashlib
import logging
import os
import time
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ostler.coordinator.artifacts.store import DirectoryArtifacts
from ostler.coordinator.config import PoolRetention, Retention
from ostler.coordinator.loops.pruner import Pruner
from ostler.coordinator.operations import audit, contents, jobs, nodes, reads, removals
from ostler.coordinator.operations.aging import Part, Removal
from ostler.coordinator.operations.groups import expand
from ostler.coordinator.operations.readers import Readers
from ostler.coordinator.operations.uploads import note_upload
from ostler.model.errors import Gone, InvalidSpec, NotFound, StoreBusy
from ostler.model.manifest import Artifact, InputFile, Inputs, Manifest
from ostler.protocol import messages as m
from ostler.protocol.audit import Verifier
from ostler.protocol.codec import decode, encode
from ostler.runtime.clock import ManualClock
from store_rig import Rig, log_end

KEY = Ed25519PrivateKey.generate()
LOGGER = logging.getLogger("ostler.tests")
DAY = 86400.0


class Setting:
    """A store, a directory of artifacts, and a pruner over both."""

    def __init__(self, rig: Rig, artifacts: DirectoryArtifacts, **policy) -> None:
        self.rig, self.artifacts, self.readers = rig, artifacts, Readers()
        self.seen: list[tuple[str, int, int]] = []
        self.policy = Retention(**policy)

    @property
    def pruner(self) -> Pruner:
        """A new one each time, as after a restart."""
        return Pruner(
            self.rig.store, self.artifacts, self.readers, policy=self.policy, clock=self.rig.clock, logger=LOGGER,
            observe=lambda *one: self.seen.append(one), sign=KEY.sign, rest=0,
        )  # fmt: skip

    async def blob(self, data: bytes, *, days_old: float = 0.5) -> str:
        staging = await self.artifacts.stage()
        await staging.write(data)
        stored = await staging.commit()
        at = self.rig.clock.now().timestamp() - days_old * DAY
        os.utime(self.artifacts.place(stored.sha256), (at, at))
        return stored.sha256

    async def done(self, *, log: bytes = b"", artifact: bytes | None = None, node: str = "n1", **manifest) -> str:
        """A job that ended well."""
        [job_id] = await self.rig.submit(**manifest)
        [lease] = await self.rig.begin(node)
        assert lease.job_id == job_id
        named = ()
        if artifact is not None:
            sha256 = await self.blob(artifact)
            named = (m.ArtifactEntry(path="out", type="text/plain", size=len(artifact), sha256=sha256),)
        logs = (log_end(log),) if log else ()
        assert (await self.rig.finish(node, lease, artifacts=named, logs=logs)).ok
        return job_id

    async def count(self, table: str) -> int:
        return (await self.rig.rows(f"SELECT count(*) FROM {table}"))[0][0]


@pytest.fixture
async def setting(store_url, tmp_path):
    rig = Rig.open(store_url, ManualClock(datetime.now(UTC)))
    artifacts = DirectoryArtifacts(tmp_path / "artifacts", logger=LOGGER)
    await artifacts.open()
    await rig.join("n1")
    yield Setting(rig, artifacts)
    await artifacts.close()
    rig.close()


async def test_logs_and_artifacts_go_before_their_job_and_say_when(setting):
    setting.policy = Retention(logs=timedelta(days=1), artifacts=timedelta(days=1))
    job_id = await setting.done(log=b"hello", artifact=b"made")
    young = await setting.done(log=b"young")
    sha256 = (await setting.rig.read(reads.find_artifact, job_id, "out")).sha256
    setting.rig.clock.advance(0.9 * DAY)
    assert (await setting.pruner.prune()).removed == {}
    setting.rig.clock.advance(0.2 * DAY)
    young = await setting.done(log=b"young", artifact=b"young")
    done = await setting.pruner.prune()
    assert done.removed == {"logs": 2, "artifacts": 1, "blob": 1}
    assert done.freed["logs"] == len(b"hello") + len(b"young")
    assert done.used == {"logs": 5, "artifacts": 5, "blobs": 5}
    for reading in (
        (reads.log_facts, job_id, "stdout"),
        (reads.list_artifacts, job_id),
        (reads.find_artifact, job_id, "out"),
        (reads.find_artifact, job_id, "other"),
    ):
        with pytest.raises(Gone, match=r"were removed at 20\d\d-.* older than 1d"):
            await setting.rig.read(*reading)
    assert await setting.artifacts.size(sha256) is None
    assert (await setting.rig.job(job_id)).state == "done"
    assert (await setting.rig.read(reads.log_facts, young, "stdout")).length == 5


async def test_a_job_takes_everything_with_it(setting):
    setting.policy = Retention(jobs=timedelta(days=1))
    sha256 = await setting.blob(b"in")
    await setting.rig.write(note_upload, sha256, "alice")
    files = Inputs(files=(InputFile(name="a", sha256=sha256, size=2),))
    job_id = await setting.done(log=b"x" * 10, artifact=b"y", labels={"a": "b"}, input=files)
    [waiting] = await setting.rig.submit()
    setting.rig.clock.advance(8 * DAY)
    done = await setting.pruner.prune()
    assert done.removed == {"logs": 1, "artifacts": 1, "job": 1, "upload": 1, "blob": 2}
    with pytest.raises(NotFound):
        await setting.rig.job(job_id)
    tables = ("attempts", "specs", "labels", "inputs", "artifacts", "logs", "log_chunks", "events", "removed")
    left = {table: await setting.count(table) for table in tables}
    nodes = await setting.rig.rows("SELECT count(*) FROM events WHERE job_seq IS NULL")
    assert left == dict.fromkeys(tables, 0) | {"specs": 1, "events": 1 + nodes[0][0]}
    assert (await setting.rig.job(waiting)).state == "queued"


async def test_what_somebody_waits_for_stays(setting):
    setting.policy = Retention(jobs=timedelta(days=1), logs=timedelta(hours=1), artifacts=timedelta(hours=1))
    first = await setting.done(log=b"x", artifact=b"y")
    [second] = await setting.rig.submit()
    await setting.rig.write(
        lambda tx: tx.run(
            "INSERT INTO dependencies SELECT a.seq, b.seq, 'success', 'cancel' FROM jobs a, jobs b WHERE a.job_id = ? AND b.job_id = ?",
            (first, second),
        )
    )
    setting.rig.clock.advance(3 * DAY)
    assert (await setting.pruner.prune()).removed == {}
    # Also where the wait began after the decision.
    seq = (await setting.rig.rows("SELECT seq FROM jobs WHERE job_id = ?", first))[0][0]
    late = [Removal(seq, first, Part.JOB, 0, "late")]
    assert await setting.rig.write(removals.remove_jobs, late) == 0
    assert await setting.rig.write(removals.remove_artifacts, late) == 0
    assert await setting.rig.write(removals.remove_logs, late) == 0
    await setting.rig.write(jobs.cancel_job, second)
    assert (await setting.pruner.prune()).removed == {"logs": 1, "artifacts": 1, "job": 1, "blob": 1}


async def test_an_array_goes_when_all_of_it_is_old(setting):
    setting.policy = Retention(jobs=timedelta(days=1))
    whole = encode({"command": "true", "array": 3}).decode()
    made = await setting.rig.write(jobs.submit_jobs, expand(decode(whole, Manifest), whole))
    group_id = made.items[0].group_id
    first, *others = await setting.rig.begin("n1")
    await setting.rig.finish("n1", first)
    setting.rig.clock.advance(5 * DAY)
    assert "job" not in (await setting.pruner.prune()).removed
    for lease in others:
        await setting.rig.finish("n1", lease)
    setting.rig.clock.advance(0.5 * DAY)
    assert "job" not in (await setting.pruner.prune()).removed
    setting.rig.clock.advance(1 * DAY)
    assert (await setting.pruner.prune()).removed["job"] == 3
    assert await setting.rig.rows("SELECT 1 FROM groups WHERE group_id = ?", group_id) == []


async def test_too_much_goes_oldest_first_also_of_one_pool(setting):
    megabyte = b"m" * 2**20
    setting.policy = Retention(artifacts_mb=2)
    made = []
    for number in range(4):
        made.append(await setting.done(artifact=megabyte + bytes([number])))
        setting.rig.clock.advance(60)
    setting.rig.clock.advance(DAY / 2)
    plan = await setting.pruner.plan(10)
    assert [(one.job_id, one.part, one.why) for one in plan.items] == [
        (job_id, "artifacts", "the artifacts were more than 2 MB") for job_id in made[:3]
    ]
    assert await setting.count("artifacts") == 4
    done = await setting.pruner.prune()
    assert done.used["artifacts"] == 2**20 + 1
    with pytest.raises(Gone, match="more than 2 MB"):
        await setting.rig.read(reads.list_artifacts, made[0])
    assert (await setting.rig.read(reads.list_artifacts, made[3])).items
    await setting.rig.write(lambda tx: tx.run("UPDATE nodes SET pool = 'lab'"))
    setting.policy = Retention(pools={"lab": PoolRetention(artifacts_mb=0)})
    await setting.pruner.prune()
    assert await setting.count("artifacts") == 0


async def test_equal_bytes_stay_until_nobody_names_them(setting):
    setting.policy = Retention(artifacts=timedelta(days=1))
    await setting.done(artifact=b"same")
    setting.rig.clock.advance(0.7 * DAY)
    second = await setting.done(artifact=b"same")
    sha256 = (await setting.rig.read(reads.find_artifact, second, "out")).sha256
    setting.rig.clock.advance(0.7 * DAY)
    assert (await setting.pruner.prune()).removed == {"artifacts": 1}
    assert await setting.artifacts.size(sha256) == 4
    setting.rig.clock.advance(0.7 * DAY)
    assert (await setting.pruner.prune()).removed == {"artifacts": 1, "blob": 1}


async def test_what_stands_in_the_database_goes_when_nobody_names_it(setting):
    setting.policy = Retention(artifacts=timedelta(days=1))
    data, (job_id,) = b"small", await setting.rig.submit(artifacts=(Artifact(path="out"),))
    [lease] = await setting.rig.begin("n1")
    entry = m.ArtifactEntry(path="out", type="x", size=len(data), sha256=hashlib.sha256(data).hexdigest())
    assert (await setting.rig.finish("n1", lease, artifacts=(entry,), contents={"out": data})).ok
    pruned = await setting.pruner.prune()
    assert (pruned.removed, pruned.used["blobs"]) == ({}, 5)
    await setting.rig.write(contents.keep, {"0" * 64: b"nobody's"})
    assert (await setting.pruner.prune()).removed == {}, "too young"
    setting.rig.clock.advance(0.5 * DAY)
    assert (await setting.pruner.prune()).removed == {"blob": 1}
    assert await setting.rig.read(contents.find_one, entry.sha256) == data
    setting.rig.clock.advance(0.7 * DAY)
    assert (await setting.pruner.prune()).removed == {"artifacts": 1, "blob": 1}
    assert await setting.rig.read(contents.find_one, entry.sha256) is None
    with pytest.raises(Gone):
        await setting.rig.read(reads.find_artifact, job_id, "out")


async def test_what_came_again_meanwhile_stays_in_the_database(setting):
    await setting.rig.write(contents.keep, {"0" * 64: b"again"})
    rows, _ = await setting.rig.read(contents.page, "")
    setting.rig.clock.advance(DAY)
    await setting.rig.write(contents.keep, {"0" * 64: b"again"})
    assert await setting.rig.write(contents.remove, rows) == []
    assert await setting.rig.read(contents.find_one, "0" * 64) == b"again"


async def test_an_upload_that_nobody_names_goes_with_its_bytes_and_can_come_again(setting):
    setting.policy = Retention(uploads=timedelta(days=1))
    sha256 = await setting.blob(b"unused")
    await setting.rig.write(note_upload, sha256, "alice")
    files = Inputs(files=(InputFile(name="a", sha256=sha256, size=6),))
    assert (await setting.pruner.prune()).removed == {}
    setting.rig.clock.advance(1.1 * DAY)
    assert (await setting.pruner.prune()).removed == {"upload": 1, "blob": 1}
    with pytest.raises(InvalidSpec, match="never uploaded, or is no longer kept"):
        await setting.rig.submit(input=files)
    await setting.blob(b"unused")
    await setting.rig.write(note_upload, sha256, "alice")
    await setting.rig.submit(input=files)
    setting.rig.clock.advance(10 * DAY)
    assert (await setting.pruner.prune()).removed == {}  # a job that is not over names it


async def test_a_file_that_came_anew_after_the_decision_stays(setting):
    """The decision saw no row and an old file; between it and the removal the same bytes were uploaded again."""
    sha256 = await setting.blob(b"again", days_old=2)
    before = time.time() - 3600
    assert await setting.rig.read(removals.unnamed, [sha256]) == [sha256]
    staging = await setting.artifacts.stage()
    await staging.write(b"again")
    await staging.commit()
    assert not await setting.artifacts.delete(sha256, before=before)
    assert await setting.artifacts.size(sha256) == 5


async def test_a_file_whose_row_is_not_written_yet_stays(setting):
    await setting.blob(b"on its way", days_old=0.5 / 24)
    assert (await setting.pruner.prune()).removed == {}


async def test_killed_between_the_row_and_the_file(setting, monkeypatch):
    """Killed after the rows went: the file is one too many, and the next pass finds it."""
    setting.policy = Retention(artifacts=timedelta(days=1))
    await setting.done(artifact=b"orphan")
    setting.rig.clock.advance(2 * DAY)
    killed = setting.pruner

    async def dies(*_args, **_more):
        raise asyncio.CancelledError

    monkeypatch.setattr(setting.artifacts, "shelf", dies)
    with pytest.raises(asyncio.CancelledError):
        await killed.prune()
    monkeypatch.undo()
    assert await setting.count("artifacts") == 0
    setting.rig.reopen()
    assert (await setting.pruner.prune()).removed == {"blob": 1}


async def test_killed_in_the_middle_of_a_long_log(setting):
    """From the first piece on nobody reads the rest; the next pass takes it."""
    setting.policy = Retention(logs=timedelta(days=1))
    await setting.rig.submit()
    [lease] = await setting.rig.begin("n1")
    pieces = removals.CHUNKS + 3
    for number in range(pieces):
        await setting.rig.append("n1", lease, number, b"x")
    await setting.rig.finish("n1", lease, logs=(log_end(b"x" * pieces, offset=pieces),))
    setting.rig.clock.advance(2 * DAY)
    page, _ = await setting.rig.read(removals.jobs_after, 0)
    assert page[0].logs == pieces
    assert await setting.rig.write(removals.remove_logs, [Removal(page[0].seq, lease.job_id, Part.LOGS, pieces, "old")]) == 32
    setting.rig.reopen()
    with pytest.raises(Gone):
        await setting.rig.read(reads.log_facts, lease.job_id, "stdout")
    assert (await setting.pruner.prune()).freed == {"logs": 3}
    assert await setting.count("log_chunks") == 0


async def test_what_is_being_read_waits_for_the_next_pass(setting):
    setting.policy = Retention(jobs=timedelta(days=1))
    job_id = await setting.done(log=b"x")
    setting.rig.clock.advance(2 * DAY)
    hold = setting.readers.hold(job_id)
    assert (await setting.pruner.prune()).removed == {}
    with setting.readers.removing({job_id, "other"}) as free:
        assert free == {"other"}
        with pytest.raises(StoreBusy):
            setting.readers.hold("other")
    del hold
    assert (await setting.pruner.prune()).removed == {"logs": 1, "job": 1}


async def test_events_and_keys_go_by_age_and_a_webhook_is_waited_for_a_while(setting):
    setting.policy = Retention(events=timedelta(days=2), jobs=timedelta(days=300))
    await setting.done()
    await setting.rig.write(lambda tx: tx.run("INSERT INTO idempotency VALUES ('alice', 'k', ?, ?, '{}')", (b"\0", tx.at)))
    await setting.rig.write(
        lambda tx: tx.run(
            "INSERT INTO webhooks (webhook_id, url, kinds, sealed, cursor, created_at, failures) "
            "VALUES ('w', 'http://x', '[]', ?, 2, ?, 0)", (b"\0", tx.at)
        )
    )  # fmt: skip
    total = await setting.count("events")
    setting.rig.clock.advance(3 * DAY)
    done = await setting.pruner.prune()
    assert done.removed == {"event": 2, "idempotency": 1}
    setting.rig.clock.advance(7 * DAY)
    assert (await setting.pruner.prune()).removed == {"event": total - 2}
    [job_id] = [row[0] for row in await setting.rig.rows("SELECT job_id FROM jobs")]
    assert (await setting.rig.job(job_id)).timeline == ()


async def test_retired_nodes_go_when_no_job_names_them(setting):
    setting.policy = Retention(nodes=timedelta(days=2), jobs=timedelta(days=5))
    for name in ("n2", "n3"):
        await setting.rig.join(name)
    job_id = await setting.done(node="n2")
    for name in ("n2", "n3"):
        await setting.rig.write(nodes.retire_node, name)
    setting.rig.clock.advance(DAY)
    assert (await setting.pruner.prune()).removed == {}
    setting.rig.clock.advance(2 * DAY)
    assert (await setting.pruner.plan(0)).counts == {"node": 1}
    assert (await setting.pruner.prune()).removed == {"node": 1}
    assert await setting.rig.rows("SELECT node_id FROM nodes ORDER BY node_id") == [("n1",), ("n2",)]
    assert (await setting.rig.job(job_id)).attempts[0].node_id == "n2"
    setting.rig.clock.advance(3 * DAY)
    assert (await setting.pruner.prune()).removed == {"job": 1, "node": 1}
    with pytest.raises(NotFound):
        await setting.rig.write(nodes.retire_node, "n2")
    await setting.rig.join("n2")  # the name is free


async def test_a_plan_changes_nothing(setting):
    setting.policy = Retention(jobs=timedelta(days=1), events=timedelta(days=1))
    job_id = await setting.done(log=b"xx")
    setting.rig.clock.advance(2 * DAY)
    before = await setting.rig.everything()
    plan = await setting.pruner.plan(1)
    assert (plan.counts["logs"], plan.sizes["logs"], plan.counts["job"]) == (1, 2, 1)
    assert [(one.job_id, one.part, one.why) for one in plan.items] == [(job_id, "logs", "older than 1d")]
    assert await setting.rig.everything() == before


async def verified(setting, keys=(KEY,)):
    verifier = Verifier([key.public_key() for key in keys])
    found = await setting.rig.read(audit.allowed, verifier)
    checked = await setting.rig.read(audit.verify, verifier, 1000)
    return [one.message for one in (*found, *checked.findings)], verifier


async def day_of_audit(setting, rows=3):
    who = audit.Entry("ann", "t", "admin", "cancel_job", "j", 200, "127.0.0.1", "r")
    for _ in range(rows):
        await setting.rig.write(audit.append, who)
    await setting.rig.write(audit.seal, KEY.sign)
    setting.rig.clock.advance(DAY)


async def test_old_rows_of_the_audit_log_go_and_the_rest_still_verifies(setting):
    setting.policy = Retention(audit=timedelta(days=5))
    for _ in range(10):
        await day_of_audit(setting)
    head = (await setting.rig.rows("SELECT digest FROM seals ORDER BY last_id"))[1][0]
    assert (await setting.pruner.prune()).removed == {"audit": 15}
    assert (await setting.pruner.prune()).removed == {}
    found, verifier = await verified(setting)
    assert (found, verifier.rows, verifier.seals) == ([], 15, 10)
    assert head in verifier.digests  # also one that was noted long ago
    await day_of_audit(setting)
    assert (await setting.pruner.prune()).removed == {"audit": 3}
    assert (await verified(setting))[0] == []


async def test_nobody_else_can_pass_a_removal_for_one_by_age(setting):
    setting.policy = Retention(audit=timedelta(days=2))
    for _ in range(5):
        await day_of_audit(setting)
    await setting.pruner.prune()
    last = (await setting.rig.rows("SELECT last_id FROM audit_cuts"))[0][0]
    await setting.rig.write(lambda tx: tx.run("DELETE FROM audit WHERE id = ?", (last + 1,)))
    assert (await verified(setting))[0] == [f"row {last + 1} was removed after it was sealed"]
    await setting.rig.write(lambda tx: tx.run("UPDATE audit_cuts SET last_id = ?", (last + 3,)))
    found, _ = await verified(setting)
    assert found[0] == f"the note that rows up to {last + 3} were removed is not signed by the coordinator's key"
    assert f"row {last + 1} was removed after it was sealed" in found
    other = Ed25519PrivateKey.generate()
    await setting.rig.write(audit.cut_off, last + 3, bytes(32), other.sign)
    assert "is not signed" in (await verified(setting))[0][0]
    await setting.rig.write(audit.cut_off, last + 3, bytes(32), KEY.sign)  # of another chain
    assert (await verified(setting))[0] == [
        f"the seal of rows {last + 1} to {last + 3} is another than the one up to which rows were removed"
    ]


async def test_a_plan_counts_what_a_pass_then_removes(setting):
    setting.policy = Retention(
        jobs=timedelta(days=1), events=timedelta(days=1), uploads=timedelta(days=1), audit=timedelta(days=1)
    )
    await setting.done(log=b"xx", artifact=b"yy")
    await setting.rig.write(note_upload, "ab" * 32, "alice")
    await setting.rig.write(lambda tx: tx.run("INSERT INTO idempotency VALUES ('alice', 'k', ?, ?, '{}')", (b"\0", tx.at)))
    await day_of_audit(setting)
    setting.rig.clock.advance(DAY)
    counts = (await setting.pruner.plan(0)).counts
    removed = (await setting.pruner.prune()).removed
    assert counts["event"] >= removed.pop("event")  # some go with their job
    assert removed.pop("blob") == 1  # of what the artifact named: not before that is gone
    assert {kind: counts[kind] for kind in removed} == removed
    assert removed == {"logs": 1, "artifacts": 1, "job": 1, "upload": 1, "idempotency": 1, "audit": 3}
    assert (await setting.pruner.plan(0)).counts == {}
