"""The chain of seals: nothing can be changed, added, removed, swapped or cut off without being found."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from ostler.protocol.audit import GENESIS, Verifier, leaf, seal

KEY = Ed25519PrivateKey.generate()
ROWS = [(n, 1000 + n, "ann", None, "submitter", "submit_jobs", None, 201, "127.0.0.1", f"r{n}", "j-1") for n in range(1, 31)]


def sealed(rows=ROWS, size=10):
    found, after, previous = [], 0, GENESIS
    for at in range(0, len(rows), size):
        one = seal(rows[at : at + size], after=after, previous=previous, at=at, sign=KEY.sign)
        found.append(one)
        after, previous = one.last_id, one.digest
    return found


SEALS = sealed()


def findings(seals, rows, key=KEY):
    verifier, found = Verifier([key.public_key()]), []
    for one in seals:
        found += verifier.check(one, [row for row in rows if verifier.last_id < row[0] <= one.last_id])
    return found, verifier


def test_what_is_whole_verifies():
    found, verifier = findings(SEALS, ROWS)
    assert found == []
    assert (verifier.rows, verifier.seals, verifier.last_id) == (30, 3, 30)
    assert SEALS[1].digest in verifier.digests


values = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.text(max_size=8))


@given(st.lists(values, min_size=1, max_size=6), st.lists(values, min_size=1, max_size=6))
def test_no_two_rows_look_alike(one, other):
    assert (leaf(one) == leaf(other)) == (one == other)
    assert leaf(one) == leaf([value.encode() if isinstance(value, str) else value for value in one])


@given(st.integers(0, 29), st.integers(1, 10), st.data())
def test_a_changed_row_is_named(at, column, data):
    row = list(ROWS[at])
    row[column] = data.draw(values.filter(lambda value: value != ROWS[at][column]))
    found, _ = findings(SEALS, [*ROWS[:at], tuple(row), *ROWS[at + 1 :]])
    assert [one.row for one in found] == [at + 1]
    assert "changed" in found[0].message


def test_removed_added_and_swapped_rows_are_named():
    found, _ = findings(SEALS, ROWS[:14] + ROWS[15:])
    assert [(one.row, "removed" in one.message) for one in found] == [(15, True)]
    two = [(ROWS[3][0], *ROWS[5][1:]), (ROWS[5][0], *ROWS[3][1:])]
    found, _ = findings(SEALS, [*ROWS[:3], two[0], ROWS[4], two[1], *ROWS[6:]])
    assert [one.row for one in found] == [4, 6]
    spaced = [(2 * row[0], *row[1:]) for row in ROWS]
    found, _ = findings(sealed(spaced), [*spaced, (7, *ROWS[0][1:])])
    assert [(one.row, "added" in one.message) for one in found] == [(7, True)]


@pytest.mark.parametrize("at", [0, 1])
def test_a_removed_seal_is_found(at):
    found, _ = findings(SEALS[:at] + SEALS[at + 1 :], ROWS)
    assert [one.message for one in found] == [
        f"the seal of rows {10 * at + 1} to {10 * at + 10} is missing: it was removed, or one beside it was changed"
    ]


def test_the_last_seal_is_missed_by_who_noted_its_digest():
    found, verifier = findings(SEALS[:2], ROWS[:20])
    assert found == []
    assert SEALS[2].digest not in verifier.digests


@given(st.sampled_from(["first_id", "last_id", "at", "leaves", "digest", "signature"]), st.integers(0, 10**6), st.integers(0, 2))
def test_a_changed_seal_is_found(name, bit, at):
    value = getattr(SEALS[at], name)
    if isinstance(value, int):
        changed = value ^ (1 << (bit % 62))
    else:
        raw = bytearray(value)
        raw[(bit // 8) % len(raw)] ^= 1 << (bit % 8)
        changed = bytes(raw)
    found, _ = findings([*SEALS[:at], replace(SEALS[at], **{name: changed}), *SEALS[at + 1 :]], ROWS)
    assert found


def test_who_has_another_key_cannot_write_the_log_anew():
    found, _ = findings(SEALS, ROWS, Ed25519PrivateKey.generate())
    assert [one.message for one in found] == [
        f"the seal of rows {at} to {at + 9} is not signed by the coordinator's key" for at in (1, 11, 21)
    ]
