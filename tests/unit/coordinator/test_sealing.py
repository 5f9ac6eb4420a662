"""Sealed values open for what they belong to alone; a key comes from a file that nobody else can read, or from a command."""

import base64
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from ostler.coordinator.sealing import KEY_BYTES, Sealer, open_sealer
from ostler.model.errors import InvalidSpec, Unsealable

KEY = bytes(range(KEY_BYTES))
CONTEXT = ("alice", "db", "1")


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-c", code)


@pytest.mark.parametrize("plaintext", [b"", b"\0", b"hunter2-hunter2", bytes(65536)])
def test_what_is_sealed_opens_again_and_shows_nothing(plaintext: bytes) -> None:
    sealer = Sealer(KEY)
    sealed, again = (sealer.seal("secret", CONTEXT, plaintext) for _ in range(2))
    assert sealer.open("secret", CONTEXT, sealed) == sealer.open("secret", CONTEXT, again) == plaintext
    assert sealed != again, "two sealings of one value must differ"
    assert len(plaintext) < 8 or plaintext not in sealed
    assert KEY.hex() not in repr(sealer)
    assert repr(KEY) not in repr(sealer)


@pytest.mark.parametrize(
    ("purpose", "context"),
    [
        ("webhook", CONTEXT), ("secret", ("bob", "db", "1")), ("secret", ("alice", "db", "2")), ("secret", ("alice", "db")),
        ("secret", ("alicedb", "", "1")), ("secret", ("alice", "db", "1", "")),
    ],
)  # fmt: skip
def test_it_opens_for_nothing_else(purpose: str, context: tuple[str, ...]) -> None:
    sealer = Sealer(KEY)
    sealed = sealer.seal("secret", CONTEXT, b"hunter2-hunter2")
    with pytest.raises(Unsealable, match="damaged, or belongs to something else"):
        sealer.open(purpose, context, sealed)


def test_any_changed_byte_is_noticed() -> None:
    sealer = Sealer(KEY)
    sealed = sealer.seal("secret", CONTEXT, b"hunter2")
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(Unsealable):
            sealer.open("secret", CONTEXT, bytes(changed))
    for length in range(len(sealed)):
        with pytest.raises(Unsealable):
            sealer.open("secret", CONTEXT, sealed[:length])


def test_another_key_is_told_apart_from_damage() -> None:
    one, other = Sealer(KEY), Sealer(bytes(KEY_BYTES))
    with pytest.raises(Unsealable, match=f"sealed with the key {one.key_id.hex()}; this coordinator has {other.key_id.hex()}"):
        other.open("secret", CONTEXT, one.seal("secret", CONTEXT, b"hunter2"))


def test_the_key_file_is_made_once_and_is_ours_alone(tmp_path: Path) -> None:
    sealer = open_sealer(tmp_path)
    path = tmp_path / "secrets.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_bytes()) == KEY_BYTES
    assert open_sealer(tmp_path).key_id == sealer.key_id
    path.chmod(0o640)
    with pytest.raises(InvalidSpec, match="others can read"):
        open_sealer(tmp_path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(InvalidSpec, match="does not hold 32 bytes"):
        open_sealer(tmp_path)


@pytest.mark.parametrize("printed", [KEY, base64.b64encode(KEY), base64.urlsafe_b64encode(bytes([255] * 32)) + b"\n"])
def test_a_command_tells_the_key_raw_or_as_base64(tmp_path: Path, printed: bytes) -> None:
    command = python(f"import sys; sys.stdout.buffer.write({printed!r})")
    expected = KEY if printed != base64.urlsafe_b64encode(bytes([255] * 32)) + b"\n" else bytes([255] * 32)
    assert open_sealer(tmp_path, command).key_id == Sealer(expected).key_id
    assert not (tmp_path / "secrets.key").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("/does/not/exist",), "cannot be started: No such file or directory"),
        (python("raise SystemExit('the vault is sealed')"), "failed with exit code 1: the vault is sealed"),
        (python("import os; os.kill(os.getpid(), 9)"), "failed with signal 9: it said nothing"),
        (python("print('c2hvcnQ=')"), "printed 9 bytes that are no key"),
        (python("print('kein Schlüssel, aber geheim')"), "bytes that are no key"),
        (python("import time; time.sleep(600)"), "did not end within 0.3 s and was killed"),
    ],
)
def test_a_command_that_fails_says_why_and_not_what_it_printed(tmp_path: Path, command: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidSpec, match=message) as caught:
        open_sealer(tmp_path, command, timeout=timedelta(seconds=0.3 if "sleep" in command[-1] else 30))
    assert "geheim" not in str(caught.value)
