"""Release keys: made, rotated with overlap, retired, and refused where others can read them."""

import base64
import json
from dataclasses import replace

import pytest

from ostler.fleet.host.archive import TYPE, pae, read_manifest
from ostler.fleet.host.refusals import Refused
from ostler.fleet.releases.keys import open_keys
from ostler.model.errors import InvalidSpec, NotFound, Rejected
from ostler.protocol import dsse
from release_rig import make, new_keys


def test_a_key_is_a_file_of_ones_own_and_comes_back(tmp_path):
    made = new_keys(tmp_path / "keys")
    (name,) = made.signing
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "keys" / f"{name}.key").stat().st_mode & 0o777 == 0o600
    again = open_keys(tmp_path / "keys")
    assert (again.generation, again.trusted) == (1, made.trusted)
    assert again.envelope(b"x") == made.envelope(b"x")


def test_the_envelope_is_dsse_as_the_protocol_has_it(tmp_path):
    assert pae(b"text") == dsse.pae(TYPE, b"text")
    keys = new_keys(tmp_path / "keys")
    outer = json.loads(keys.envelope(b"{}"))
    assert outer["payloadType"] == TYPE
    assert [one["keyid"] for one in outer["signatures"]] == [dsse.key_id(key) for key in keys.trusted.values()]


def test_rotation_overlaps(tmp_path):
    old = new_keys(tmp_path / "keys")
    both = old.with_new()
    envelope = make(tmp_path / "store", both).bundle.read_bytes()[512:]
    envelope = envelope[: envelope.index(b"\0")]
    assert len(read_manifest(envelope, None).signed_by) == 2
    assert read_manifest(envelope, old.trusted).release  # a host that knows the old key alone
    (first,) = old.trusted
    new = both.without(first)
    assert read_manifest(envelope, new.trusted).keys.keys() == both.trusted.keys()
    assert not (tmp_path / "keys" / f"{first}.key").exists()
    assert open_keys(tmp_path / "keys").generation == 3
    later = make(tmp_path / "store", new, "2.0").manifest
    assert (later.generation, later.signed_by) == (3, tuple(new.trusted))
    stranger = new_keys(tmp_path / "others")
    with pytest.raises(Refused, match="signed by no key that is trusted here"):
        read_manifest(envelope, stranger.trusted)


def test_the_last_key_stays_and_an_unknown_one_is_told(tmp_path):
    keys = new_keys(tmp_path / "keys")
    with pytest.raises(Rejected, match="the only key that signs"):
        keys.without(next(iter(keys.trusted)))
    with pytest.raises(NotFound, match="no release key 00"):
        keys.without("00")


def test_keys_that_others_read_or_that_are_damaged_are_refused(tmp_path):
    directory = tmp_path / "keys"
    (name,) = new_keys(directory).signing
    file = directory / f"{name}.key"
    file.chmod(0o640)
    with pytest.raises(InvalidSpec, match="others can read"):
        open_keys(directory)
    file.chmod(0o600)
    file.write_bytes(b"k" * 32)
    with pytest.raises(InvalidSpec, match="another key than its name says"):
        open_keys(directory)
    (directory / "trusted.json").write_text("{")
    with pytest.raises(InvalidSpec, match="is damaged"):
        open_keys(directory)
    directory.chmod(0o755)
    with pytest.raises(InvalidSpec, match="others can reach"):
        open_keys(directory)


def test_a_key_that_anybody_signs_for_is_not_trusted(tmp_path):
    weak = b"\1" + bytes(31)
    keys = new_keys(tmp_path / "keys")
    file = tmp_path / "keys" / "trusted.json"
    said = json.loads(file.read_text())
    said["trusted"].append({"id": dsse.key_id(weak), "public": base64.b64encode(weak).decode()})
    file.write_text(json.dumps(said))
    with pytest.raises(InvalidSpec, match=f"names {dsse.key_id(weak)}, which is no sound Ed25519 public key"):
        open_keys(tmp_path / "keys")
    careless = replace(keys, trusted={**keys.trusted, dsse.key_id(weak): weak})
    with pytest.raises(Refused, match=f"the key {dsse.key_id(weak)} is no sound Ed25519 public key"):
        make(tmp_path / "store", careless)


def test_nothing_is_signed_without_a_key(tmp_path):
    with pytest.raises(Rejected, match="no key that signs"):
        open_keys(tmp_path / "none").envelope(b"x")
