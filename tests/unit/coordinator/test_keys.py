"""The coordinator's keys: made once, never readable for others, refused when they could have been."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from ostler.coordinator.keys import open_keys, read_secret
from ostler.model.errors import InvalidSpec


def test_made_once_and_read_again(tmp_path):
    first = open_keys(tmp_path / "keys")
    again = open_keys(tmp_path / "keys")
    assert (first.public, first.secret, first.keyid) == (again.public, again.secret, again.keyid)
    assert first.derive("a") != first.derive("b")
    assert first.secret.hex() not in repr(first)
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == ["hmac.key", "signing.key"]


def test_nobody_else_can_read_them_whatever_the_umask(tmp_path):
    old = os.umask(0)
    try:
        open_keys(tmp_path / "keys")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "keys").iterdir()} == {0o600}


def test_keys_that_others_could_read_are_refused(tmp_path):
    open_keys(tmp_path / "keys")
    (tmp_path / "keys" / "hmac.key").chmod(0o640)
    with pytest.raises(InvalidSpec) as caught:
        open_keys(tmp_path / "keys")
    assert "chmod 600" in caught.value.hint
    (tmp_path / "keys" / "hmac.key").chmod(0o600)
    (tmp_path / "keys").chmod(0o755)
    with pytest.raises(InvalidSpec):
        open_keys(tmp_path / "keys")


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
def test_a_damaged_key_is_not_replaced(tmp_path, content):
    open_keys(tmp_path / "keys")
    (tmp_path / "keys" / "signing.key").write_bytes(content)
    with pytest.raises(InvalidSpec, match="32 bytes"):
        open_keys(tmp_path / "keys")


def test_a_link_is_not_followed(tmp_path):
    open_keys(tmp_path / "keys")
    (tmp_path / "keys" / "hmac.key").rename(tmp_path / "elsewhere")
    (tmp_path / "keys" / "hmac.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        open_keys(tmp_path / "keys")


def test_two_that_start_at_once_agree(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda n: read_secret(tmp_path / "s", lambda: b"%d" % n), range(8)))
    assert len(found) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
