"""The audit log over the store: a day's work verifies, and whatever is changed behind its back is found and named."""

import base64
import random
import shutil
import sqlite3
from contextlib import closing, suppress

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ostler.cli.audit import _verified_here as verified_here
from ostler.coordinator.operations import audit, jobs, tokens
from ostler.model.access import Role
from ostler.model.errors import OstlerError
from ostler.protocol import messages as m
from ostler.protocol.audit import GENESIS, Verifier
from store_rig import Rig, manifest

KEY = Ed25519PrivateKey.generate()
PUBLIC = base64.b64encode(KEY.public_key().public_bytes_raw()).decode()
PEOPLE = [
    ("ann", "t-ann", "submitter", "10.0.0.1"),
    ("bob", "t-bob", "operator", "10.0.0.2"),
    ("züri", "t-z", "admin", "fd00::1"),
]
TEXTS = ("principal", "token_id", "role", "action", "target", "peer", "request_id", "detail")
NUMBERS = ("id", "at", "status")


def entry(person, action, target=None, status=200, request="r"):
    principal, token_id, role, peer = person
    return audit.Entry(principal, token_id, role, action, target, status, peer, request)


async def work(rig, hours=24.0, seed=3):
    """People submit, cancel, hold, make tokens and are refused, every minute or so; the duty seals every ten minutes."""
    rng, ids, until = random.Random(seed), [], rig.clock.now().timestamp() + hours * 3600
    sealed_at = rig.clock.now().timestamp()
    while rig.clock.now().timestamp() < until:
        rig.clock.advance(rng.uniform(1, 120))
        person, request = rng.choice(PEOPLE), f"{rng.getrandbits(64):016x}"
        what = rng.choice(["submit", "submit", "cancel", "hold", "token", "refused"])
        if what == "submit":
            call = entry(person, "submit_jobs", status=201, request=request)
            answer = await rig.write(audit.audited, call, jobs.submit_jobs, [manifest()] * rng.randint(1, 3), person[0])
            ids += [one.job_id for one in answer.items]
        elif what == "token":
            wanted = m.TokenRequest(kind=m.TokenKind.API, role=Role.VIEWER, principal="guest")
            await rig.write(
                audit.audited, entry(person, "create_token", status=201, request=request), tokens.create_token, wanted
            )
        elif what == "refused":
            await rig.store.write_lazily(
                audit.append, entry(person, "show_node", "n-1", 403, request), "it is not for a submitter"
            )
        elif ids:
            job_id = rng.choice(ids)
            operation, args = (jobs.cancel_job, ("enough",)) if what == "cancel" else (jobs.hold_job, ())
            with suppress(OstlerError):  # over already: nothing was changed, and no row is left
                await rig.write(audit.audited, entry(person, f"{what}_job", job_id, request=request), operation, job_id, *args)
        if rig.clock.now().timestamp() - sealed_at > 600:
            sealed_at = rig.clock.now().timestamp()
            await rig.write(audit.seal, KEY.sign)


async def test_a_change_and_its_row_are_one(rig):
    await rig.write(audit.audited, entry(PEOPLE[0], "submit_jobs", status=201), jobs.submit_jobs, [manifest()] * 2, "ann")
    with pytest.raises(OstlerError):
        await rig.write(audit.audited, entry(PEOPLE[0], "hold_job", "j-none"), jobs.hold_job, "j-none")
    [row] = (await rig.read(audit.list_audit, m.AuditQuery())).items
    assert (row.principal, row.token_id, row.role, row.action, row.status, row.peer) == (
        "ann", "t-ann", "submitter", "submit_jobs", 201, "10.0.0.1"
    )  # fmt: skip
    assert row.detail.startswith("2 jobs, j-")


async def test_a_token_is_named_and_never_shown(rig):
    wanted = m.TokenRequest(kind=m.TokenKind.API, role=Role.VIEWER, principal="guest")
    made = await rig.write(audit.audited, entry(PEOPLE[2], "create_token"), tokens.create_token, wanted)
    [row] = (await rig.read(audit.list_audit, m.AuditQuery())).items
    assert row.detail == f"api {made.token_id} viewer guest"
    assert made.token not in row.detail


async def test_pages_and_filters(rig):
    await work(rig, hours=2)
    whole = (await rig.read(audit.list_audit, m.AuditQuery(limit=500))).items
    assert [one.id for one in whole] == list(range(len(whole), 0, -1))
    found, cursor = [], None
    while True:
        page = await rig.read(audit.list_audit, m.AuditQuery(limit=7, cursor=cursor))
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    assert tuple(found) == whole
    for query, takes in (
        ({"principal": "ann"}, lambda one: one.principal == "ann"),
        ({"status": 403}, lambda one: one.status == 403),
        ({"action": "submit_jobs", "principal": "züri"}, lambda one: (one.action, one.principal) == ("submit_jobs", "züri")),
        ({"since_s": 600.0}, lambda one: (rig.clock.now() - one.at).total_seconds() <= 600),
        ({"target": "nothing"}, lambda one: False),
    ):
        found = (await rig.read(audit.list_audit, m.AuditQuery(limit=500, **query))).items
        assert list(found) == [one for one in whole if takes(one)]


async def verified(rig):
    verifier, findings = Verifier([KEY.public_key()]), []
    while True:
        checked = await rig.read(audit.verify, verifier, 7)
        findings += checked.findings
        if checked.done:
            return findings, verifier, checked.unsealed


async def test_sealing_takes_batches_and_leaves_nothing(rig):
    assert await rig.write(audit.seal, KEY.sign) == 0

    def many(tx):
        for _ in range(audit.BATCH + 10):
            audit.append(tx, entry(PEOPLE[0], "cancel_job", "j-1"))

    await rig.write(many)
    assert (await verified(rig))[2] == audit.BATCH + 10
    assert [await rig.write(audit.seal, KEY.sign) for _ in range(3)] == [audit.BATCH, 10, 0]
    findings, verifier, unsealed = await verified(rig)
    assert (findings, verifier.rows, verifier.seals, unsealed) == ([], audit.BATCH + 10, 2, 0)
    assert await rig.read(audit.seal_before, audit.BATCH) != GENESIS
    assert await rig.read(audit.seal_before, 5) is None


@pytest.fixture
async def day(tmp_path):
    """The database after a day's work, closed."""
    rig = Rig.open(tmp_path / "ostler.db")
    try:
        await work(rig)
        findings, verifier, unsealed = await verified(rig)
        assert findings == []
        assert verifier.rows > 1000
        assert verifier.seals > 100
        assert unsealed > 0, "some of the last minutes"
    finally:
        rig.close()
    return tmp_path / "ostler.db"


def changed(day, tmp_path, *statements):
    """What verifying says of a copy after some statements."""
    copy = tmp_path / "copy.db"
    shutil.copy(day, copy)
    with closing(sqlite3.connect(copy)) as connection, connection:
        for sql, *params in statements:
            assert connection.execute(sql, params).rowcount > 0
    return verified_here(copy, [PUBLIC], None)


def flipped(value, rng):
    """The value with one bit of one byte changed."""
    if isinstance(value, int):
        return value ^ (1 << rng.randrange(62))
    raw = bytearray(value)
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(raw)


async def test_a_single_changed_byte_of_a_days_work_is_found(day, tmp_path):
    rng = random.Random(11)
    with closing(sqlite3.connect(day)) as connection:
        connection.text_factory = bytes
        [last] = connection.execute("SELECT max(last_id) FROM seals").fetchone()
        rows = {
            row[0]: row
            for row in connection.execute(f"SELECT id, {', '.join(TEXTS + NUMBERS)} FROM audit WHERE id <= ?", (last,))
        }
    whole = verified_here(day, [PUBLIC], None)
    assert (whole.findings, whole.rows) == ((), last)
    names = TEXTS + NUMBERS
    for _ in range(150):
        number, at = rng.choice(list(rows)), rng.randrange(len(names))
        name, value = names[at], rows[number][at + 1]
        if value is None or (new := flipped(value, rng)) in rows:
            continue
        cast = "CAST(? AS TEXT)" if name in TEXTS else "?"
        said = changed(day, tmp_path, (f"UPDATE audit SET {name} = {cast} WHERE id = ?", new, number))
        assert number in {one.row for one in said.findings}, (name, value, new)


async def test_what_was_removed_swapped_or_cut_off_is_found(day, tmp_path):
    with closing(sqlite3.connect(day)) as connection:
        seals = connection.execute("SELECT first_id, last_id, digest FROM seals ORDER BY last_id").fetchall()
    (first, last, _), (_, _, head) = seals[40], seals[-1]
    said = changed(day, tmp_path, ("DELETE FROM audit WHERE id = ?", first))
    assert [one.row for one in said.findings] == [first]
    swap = "UPDATE audit SET action = (SELECT action FROM audit WHERE id = ?), request_id = ? WHERE id = ?"
    said = changed(day, tmp_path, (swap, first, "x", first + 1), (swap, first + 1, "y", first))
    assert [one.row for one in said.findings] == [first, first + 1]
    said = changed(day, tmp_path, ("DELETE FROM seals WHERE last_id = ?", last))
    assert [one.message for one in said.findings] == [
        f"the seal of rows {first} to {last} is missing: it was removed, or one beside it was changed"
    ]
    said = changed(day, tmp_path, ("DELETE FROM seals WHERE last_id >= ?", last), ("DELETE FROM audit WHERE id >= ?", first))
    assert said.findings == (), "what was cut off is missed only by who noted a head"
    copy = tmp_path / "copy.db"
    [lost] = verified_here(copy, [PUBLIC], head.hex()).findings
    assert f"no seal has the digest {head.hex()}" in lost.message
    assert verified_here(day, [PUBLIC], head.hex()).head_found
    assert verified_here(copy, [PUBLIC], seals[10][2].hex()).findings == ()


async def test_a_row_that_is_no_text_any_more_is_listed_and_found(rig):
    """The store itself, which decodes what it reads, goes on."""
    if rig.on_postgres:
        pytest.skip("PostgreSQL takes no text that is none, not even of its superuser")
    await work(rig, hours=1)
    await rig.write(audit.seal, KEY.sign)

    def damage(tx):
        tx.run("UPDATE audit SET detail = CAST(? AS TEXT) WHERE id = 5", (b"\xff\xfe",))

    await rig.write(damage)
    findings, _, _ = await verified(rig)
    assert [one.row for one in findings] == [5]
    listed = {one.id: one.action for one in (await rig.read(audit.list_audit, m.AuditQuery(limit=500))).items}
    assert listed[5] == audit.UNREADABLE
    assert audit.UNREADABLE not in {action for number, action in listed.items() if number != 5}
