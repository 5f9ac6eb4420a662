"""The journal on a real file: what is durable when, and what survives which end of the daemon."""

import asyncio
import logging
import sqlite3

import pytest

from ostler.model.errors import StoreBusy
from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import InputFile
from ostler.node import journal as module
from ostler.node.identity import Identity
from ostler.node.journal import Entry, Journal
from ostler.protocol.messages import Held, Outcome

LOGGER = logging.getLogger("ostler.test.journal")


def reopened(path):
    one = Journal(path, logger=LOGGER)
    entries = one.load()
    one._db.close()
    return entries


@pytest.fixture
async def journal(tmp_path):
    one = Journal(tmp_path / "state" / "journal.db", logger=LOGGER)
    one.start()
    yield one
    if one._thread.is_alive():
        await one.close()


async def test_what_was_accepted_is_there_after_a_crash(journal):
    await journal.accept([Entry("a", 1, "{}", tries=2, lease_s=45.0), Entry("b", 1, "{}")])
    assert reopened(journal.path) == [Entry("a", 1, "{}", 2, 45.0), Entry("b", 1, "{}")]


async def test_what_others_hand_on_is_kept_with_the_spec(journal):
    entry = Entry("a", 1, "{}", inputs=(InputFile(name="in", sha256="0" * 64, size=3),))
    await journal.accept([entry])
    assert reopened(journal.path) == [entry]


async def test_a_journal_of_the_release_before_is_read_on(tmp_path):
    """Schema 1, as it was: no inputs."""
    path = tmp_path / "journal.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(
        "CREATE TABLE attempts (job_id TEXT NOT NULL, attempt INTEGER NOT NULL, spec TEXT NOT NULL, tries INTEGER NOT NULL,"
        " lease_s REAL NOT NULL, outcome BLOB, PRIMARY KEY (job_id, attempt))"
    )
    db.execute("INSERT INTO attempts VALUES ('a', 1, '{}', 2, 45.0, NULL)")
    db.execute("PRAGMA user_version=1")
    db.close()
    assert reopened(path) == reopened(path) == [Entry("a", 1, "{}", 2, 45.0)]


async def test_the_file_is_the_owners_alone(journal):
    assert journal.path.stat().st_mode & 0o777 == 0o600


async def test_the_first_outcome_stands(journal):
    await journal.accept([Entry("a", 1, "{}")])
    lost = Outcome(job_id="a", attempt=1, failure=Failure(FailureCode.LOST, "gone"))
    await journal.finish(lost)
    await journal.finish(Outcome(job_id="a", attempt=1, exit_code=0))
    assert reopened(journal.path)[0].outcome == lost


async def test_an_outcome_that_is_refused_for_good_can_be_replaced(journal):
    await journal.finish(Outcome(job_id="a", attempt=1, exit_code=0))
    other = Outcome(job_id="a", attempt=1, failure=Failure(FailureCode.OUTPUT, "too large"))
    await journal.amend(other)
    assert reopened(journal.path)[0].outcome == other


async def test_an_outcome_needs_no_row_before_it(journal):
    await journal.finish(Outcome(job_id="a", attempt=7))
    [entry] = reopened(journal.path)
    assert (entry.job_id, entry.attempt, entry.spec) == ("a", 7, "")


async def test_what_is_delivered_goes_with_the_next_commit(journal):
    await journal.accept([Entry("a", 1, "{}"), Entry("b", 1, "{}")])
    journal.remove([Held("a", 1)])
    assert len(reopened(journal.path)) == 2
    await journal.accept([Entry("c", 1, "{}")])
    assert [entry.job_id for entry in reopened(journal.path)] == ["b", "c"]


async def test_what_is_delivered_goes_alone_when_nothing_else_is_written(journal, monkeypatch):
    monkeypatch.setattr(module, "LAZY_S", 0.01)
    await journal.accept([Entry("a", 1, "{}")])
    journal.remove([Held("a", 1)])
    async with asyncio.timeout(5):
        while reopened(journal.path):  # noqa: ASYNC110 - it is another thread's commit
            await asyncio.sleep(0.01)


async def test_closing_writes_what_waits(journal):
    await journal.accept([Entry("a", 1, "{}")])
    journal.remove([Held("a", 1)])
    pending = [journal.accept([Entry(f"j{i}", 1, "{}")]) for i in range(50)]
    await journal.close()
    await asyncio.gather(*pending)
    assert len(reopened(journal.path)) == 50


async def test_writes_that_wait_share_a_commit(journal):
    commits = []
    real = journal._commit
    journal._commit = lambda batch, gone: (commits.append(len(batch)), real(batch, gone))[1]
    await asyncio.gather(*(journal.accept([Entry(f"j{i}", 1, "{}")]) for i in range(100)))
    assert sum(commits) == 100
    assert len(commits) < 50


async def test_the_caller_writes_itself_where_the_writer_is_idle(journal):
    written = journal.accept([Entry("a", 1, "{}")], durable=False, here=True)
    assert written.done()
    assert [entry.job_id for entry in reopened(journal.path)] == ["a"]
    with journal._lock:  # as the writer's thread has it while it commits
        later = journal.accept([Entry("b", 1, "{}")], durable=False, here=True)
        assert not later.done()
    await later
    assert len(reopened(journal.path)) == 2
    page = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count={page}")
    refused = journal.accept([Entry("c", 1, "x" * 100_000)], durable=False, here=True)
    assert refused.done()
    with pytest.raises(StoreBusy, match="cannot be written"):
        await refused


async def test_a_journal_that_cannot_be_written_says_so_and_mends(journal, monkeypatch):
    await journal.accept([Entry("a", 1, "{}")])
    page = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count={page}")
    with pytest.raises(StoreBusy, match="cannot be written"):
        await journal.accept([Entry("b", 1, "x" * 100_000)])
    assert "cannot be written" in journal.failure
    assert [entry.job_id for entry in reopened(journal.path)] == ["a"]
    journal._db.execute("PRAGMA max_page_count=100000")
    await journal.check()
    assert journal.failure is None


async def test_what_was_delivered_is_not_forgotten_by_a_failed_commit(journal):
    await journal.accept([Entry("a", 1, "{}")])
    page = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count={page}")
    journal.remove([Held("a", 1)])
    with pytest.raises(StoreBusy):
        await journal.accept([Entry("b", 1, "x" * 100_000)])
    journal._db.execute("PRAGMA max_page_count=100000")
    await journal.accept([Entry("c", 1, "{}")])
    assert [entry.job_id for entry in reopened(journal.path)] == ["c"]


def test_a_journal_of_a_later_release_is_not_touched(tmp_path):
    with sqlite3.connect(tmp_path / "journal.db") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StoreBusy, match="schema 99"):
        Journal(tmp_path / "journal.db", logger=LOGGER)


def test_a_file_that_is_no_journal_is_refused(tmp_path):
    (tmp_path / "journal.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreBusy, match="cannot be opened"):
        Journal(tmp_path / "journal.db", logger=LOGGER)


async def test_attempts_without_numbers_are_numbered_for_good(journal):
    assert [journal.next_number("a"), journal.next_number("a"), journal.next_number("b")] == [1, 2, 1]
    await journal.close()
    again = Journal(journal.path, logger=LOGGER)
    assert again.next_number("a") == 3
    again._db.close()


async def test_writing_before_the_start_is_a_bug(tmp_path):
    one = Journal(tmp_path / "journal.db", logger=LOGGER)
    with pytest.raises(RuntimeError):
        one.accept([])
    await one.close()


def test_a_node_keeps_its_identity_and_counts_its_lives(tmp_path):
    epochs, ids, keys = [], set(), set()
    for _ in range(3):
        journal = Journal(tmp_path / "journal.db", logger=LOGGER)
        one = Identity.open(tmp_path, journal, configured=None, boot_id="boot")
        epochs.append(one.boot_epoch)
        ids.add(one.node_id)
        keys.add(one.key.public)
        journal._db.close()
    assert epochs == ["boot:1", "boot:2", "boot:3"]
    assert len(ids) == len(keys) == 1


def test_a_configured_id_wins(tmp_path):
    journal = Journal(tmp_path / "journal.db", logger=LOGGER)
    assert Identity.open(tmp_path, journal, configured="mine", boot_id="b").node_id == "mine"
    assert Identity.open(tmp_path, journal, configured=None, boot_id="b").node_id == "mine"
    assert Identity.open(tmp_path, journal, configured=None).boot_epoch.count("-") == 4
    journal._db.close()
