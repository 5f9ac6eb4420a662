"""Files of encrypted backups: what comes out is what went in, whole and in order, or nothing is taken for it."""

import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.coordinator.upkeep import crypt
from ostler.model.errors import Forbidden, Rejected

KEY = crypt.RepositoryKey(bytes(range(32)))


def sealed(*blocks: bytes) -> bytes:
    return b"".join(KEY.encrypt(blocks))


def opened(content: bytes, key: crypt.RepositoryKey = KEY) -> bytes:
    return b"".join(key.decrypt(io.BytesIO(content), "the file"))


@given(st.lists(st.binary(max_size=200)), st.integers(1, 64))
def test_it_comes_out_as_it_went_in(blocks: list[bytes], size: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crypt, "BLOCK", size)  # many blocks without many megabytes
        assert opened(sealed(*blocks)) == b"".join(blocks)


def test_nothing_is_left_out_moved_or_added(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crypt, "BLOCK", 16)
    head, size = len(crypt.MAGIC) + 16, 16 + 16
    whole = sealed(b"0123456789abcdef" * 3 + b"end")
    blocks = [whole[head + i * size : head + (i + 1) * size] for i in range(4)]
    assert opened(whole) == b"0123456789abcdef" * 3 + b"end"
    other = sealed(b"0123456789abcdef" * 3 + b"end")
    for damaged in (
        whole[:head] + b"".join(blocks[:3]),
        whole[:head] + b"".join(blocks[:1]),
        whole[:head],
        whole[:head] + blocks[1] + blocks[0] + blocks[2] + blocks[3],
        whole[:head] + blocks[0] + blocks[2] + blocks[3],
        whole + blocks[3],
        whole[:-1],
        whole[:20] + bytes([whole[20] ^ 1]) + whole[21:],
        other[:head] + whole[head:],
        b"OSTLERB2" + whole[8:],
        b"",
    ):
        with pytest.raises(Rejected):
            opened(damaged)
    with pytest.raises(Rejected):
        opened(whole, crypt.RepositoryKey(bytes(32)))


def test_only_the_passphrase_opens_the_key():
    key, wrapped = crypt.new_key("a passphrase")
    assert crypt.unwrap(wrapped, "a passphrase") == key
    with pytest.raises(Forbidden):
        crypt.unwrap(wrapped, "another")
    with pytest.raises(Rejected):  # a file that somebody made to cost its reader hours
        crypt.unwrap(replace(wrapped, n=2**30), "a passphrase")
    assert "a passphrase" not in repr(wrapped)
    assert key.key.hex() not in repr(key)
    assert key.name_of("00") != crypt.new_key("a passphrase")[0].name_of("00")
