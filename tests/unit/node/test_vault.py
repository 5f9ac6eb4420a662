"""The vault: boxes in memory that only we can enter; masked copies that go on where an earlier life of the daemon stopped."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import Manifest, SecretUse
from ostler.node.vault import Vault
from ostler.protocol.messages import SecretValue
from ostler.protocol.ports import Confidence

KEY = "job/1"
VALUE = b"s3cr3t-canary"
STARS = b"*" * len(VALUE)
BOTH = Manifest(command="true", secrets=(SecretUse(name="a", env="TOKEN"), SecretUse(name="b", file="key")))


@pytest.fixture
def vault(tmp_path):
    vault = Vault(tmp_path)
    yield vault
    vault.sweep(())


def filled(vault: Vault) -> Confidence:
    told = vault.fill(KEY, BOTH, [SecretValue(name="a", value=VALUE), SecretValue(name="b", value=b"other-canary")])
    assert isinstance(told, Confidence)
    return told


def say(vault: Vault, text: bytes, stream: str = "stdout") -> None:
    with open(vault.raw(KEY, stream), "ab") as raw:
        raw.write(text)


def test_a_box_is_ours_alone_and_gone_after_its_wipe(vault):
    told = filled(vault)
    assert told.env == {"TOKEN": VALUE.decode()}
    assert "canary" not in repr(told)
    assert Path(told.files, "key").read_bytes() == b"other-canary"
    assert Path(told.files, "key").stat().st_mode & 0o777 == 0o400
    for folder in (Path(told.folder), Path(told.folder).parent):
        assert folder.stat().st_mode & 0o777 == 0o700
    vault.wipe(KEY)
    vault.wipe(KEY)
    assert not Path(told.folder).exists()


def test_it_is_filled_anew_and_swept(vault, tmp_path):
    first = filled(vault)
    say(vault, b"left by an earlier life")
    assert filled(vault).folder == first.folder
    assert not Path(vault.raw(KEY, "stdout")).exists()
    later = Vault(tmp_path)
    assert later.sweep({KEY}) == []
    assert later.sweep({"other/1"}) == ["job.1"]
    assert not Path(first.folder).exists()


def test_copies_are_masked_and_a_new_life_goes_on_where_the_last_one_stopped(vault, tmp_path):
    filled(vault)
    say(vault, b"one " + VALUE[:5])
    vault.copy(KEY, tmp_path, whole=False)
    assert (tmp_path / "stdout.log").read_bytes() == b"one "
    say(vault, VALUE[5:] + b" two\n" + VALUE[:3])
    later = Vault(tmp_path)
    later.copy(KEY, tmp_path, whole=False)
    assert (tmp_path / "stdout.log").read_bytes() == b"one " + STARS + b" two\n"
    later.copy(KEY, tmp_path, whole=True)
    assert (tmp_path / "stdout.log").read_bytes() == b"one " + STARS + b" two\n" + VALUE[:3]
    assert not (tmp_path / "stderr.log").exists()
    assert later.text(KEY, f"no {VALUE.decode()}") == f"no {STARS.decode()}"


def test_a_value_in_whose_middle_the_stream_ends_is_masked(vault, tmp_path):
    filled(vault)
    say(vault, b"killed: " + VALUE[:10])
    vault.copy(KEY, tmp_path, whole=False)
    vault.copy(KEY, tmp_path, whole=True)
    assert (tmp_path / "stdout.log").read_bytes() == b"killed: " + STARS[:10]


def test_chunk_borders_do_not_matter_and_memory_is_given_back(vault, tmp_path):
    filled(vault)
    for at in range(0, 40):
        say(vault, b"x" * (65536 - 20 + at) + VALUE)
        vault.copy(KEY, tmp_path, whole=False)
    vault.copy(KEY, tmp_path, whole=True)
    content = (tmp_path / "stdout.log").read_bytes()
    assert content == b"".join(b"x" * (65536 - 20 + at) + STARS for at in range(40))
    raw = os.stat(vault.raw(KEY, "stdout"))
    assert raw.st_size == len(content)
    assert raw.st_blocks * 512 < 200_000


def test_copies_that_are_made_at_once_do_not_meet(vault, tmp_path):
    filled(vault)
    text = (b"y" * 100_000 + VALUE) * 30
    say(vault, text)
    with ThreadPoolExecutor(4) as pool:
        made = [pool.submit(vault.copy, KEY, tmp_path, whole=number > 1) for number in range(4)]
        for one in made:
            one.result()
    assert (tmp_path / "stdout.log").read_bytes() == text.replace(VALUE, STARS)


def test_without_the_values_nothing_is_copied_and_nothing_said(vault, tmp_path):
    told = filled(vault)
    say(vault, VALUE)
    Path(told.folder, "values").unlink()
    later = Vault(tmp_path)
    later.copy(KEY, tmp_path, whole=True)
    assert not (tmp_path / "stdout.log").exists()
    assert later.text(KEY, VALUE.decode()) is None


@pytest.mark.parametrize("value", [b"a\0b-canary", b"\xff\xfe-canary"])
def test_what_is_no_text_is_for_files(vault, value):
    found = vault.fill(KEY, BOTH, [SecretValue(name="a", value=value), SecretValue(name="b", value=b"x")])
    assert isinstance(found, Failure)
    assert found.code is FailureCode.SECRET
    assert "canary" not in found.message


def test_other_answers_than_asked_for_are_refused(vault):
    found = vault.fill(KEY, BOTH, [SecretValue(name="a", value=VALUE)])
    assert isinstance(found, Failure)


def test_a_disk_is_no_vault_and_a_foreign_folder_is_not_entered(tmp_path):
    on_disk = Vault(tmp_path, places=[Path(__file__).parent])
    found = on_disk.fill(KEY, BOTH, [SecretValue(name="a", value=VALUE), SecretValue(name="b", value=b"x")])
    assert isinstance(found, Failure)
    assert found.code is FailureCode.SANDBOX
    name = Path(filled(Vault(tmp_path)).folder).parent.name
    Vault(tmp_path).sweep(())
    Path("/dev/shm", name).chmod(0o755)
    try:
        assert isinstance(
            Vault(tmp_path, places=[Path("/dev/shm")]).fill(
                KEY, BOTH, [SecretValue(name="a", value=VALUE), SecretValue(name="b", value=b"x")]
            ),
            Failure,
        )
    finally:
        Path("/dev/shm", name).rmdir()


def test_output_that_is_holes_is_copied_in_pieces_while_its_writer_lives(vault, tmp_path):
    filled(vault)
    say(vault, b"one\n")
    os.truncate(vault.raw(KEY, "stdout"), 1 << 38)
    vault.copy(KEY, tmp_path, whole=False)
    assert (tmp_path / "stdout.log").stat().st_size < 1 << 27
