"""The host program's own Ed25519 against RFC 8032 and against the library."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from ostler.fleet.host.ed25519 import _ORDER, _P, _point, _times, is_public_key, verify
from ostler.protocol import dsse

# RFC 8032, section 7.1: public key, message, signature
VECTORS = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    (
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("public", "message", "signature"), VECTORS)
def test_the_vectors_of_the_rfc(public, message, signature):
    public, message, signature = map(bytes.fromhex, (public, message, signature))
    assert verify(public, message, signature)
    assert not verify(public, message + b"x", signature)
    assert not verify(public, message, signature[:-1])
    assert not verify(b"\xff" * 32, message, signature)


def test_a_second_way_to_write_a_signature_is_refused():
    key = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
    good = key.sign(b"text")
    twin = good[:32] + (int.from_bytes(good[32:], "little") + _ORDER).to_bytes(32, "little")
    public = key.public_key().public_bytes_raw()
    assert verify(public, b"text", good)
    assert not verify(public, b"text", twin)


def points_of_small_order():
    """Found, not told: a point times the order of the base point is one of the eight."""
    found = set()
    for number in range(2, 200):
        if (point := _point(number.to_bytes(32, "little"))) is not None:
            x, y, z, _ = _times(_ORDER, point)
            found.add(((y * pow(z, -1, _P) % _P) | (x * pow(z, -1, _P) % _P & 1) << 255).to_bytes(32, "little"))
    return found


def test_a_point_of_small_order_signs_nothing():
    """Anybody finds signatures that the plain equation takes: for the neutral point this one is good for every message."""
    weak = points_of_small_order()
    assert len(weak) == 8
    for public in weak:
        assert not is_public_key(public)
        assert not dsse.is_public_key(public)
        for message in range(64):
            assert not verify(public, message.to_bytes(1, "little"), b"\1" + bytes(63))
    for second in (_P, _P + 1, _P + 1 | 1 << 255, 1 | 1 << 255, _P - 1 | 1 << 255):
        assert not is_public_key(second.to_bytes(32, "little"))
        assert not dsse.is_public_key(second.to_bytes(32, "little"))


@settings(max_examples=30)
@given(st.binary(min_size=32, max_size=32))
def test_every_key_that_is_made_is_sound(seed):
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    assert is_public_key(public)
    assert dsse.is_public_key(public)
    assert not dsse.is_public_key(public[:-1])


@settings(max_examples=30)
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=200), st.integers(0, 511), st.sampled_from("krm"))
def test_it_agrees_with_the_library(seed, message, bit, where):
    key = Ed25519PrivateKey.from_private_bytes(seed)
    public, signature = key.public_key().public_bytes_raw(), key.sign(message)
    assert verify(public, message, signature)
    if where == "k":
        public = _flipped(public, bit % 256)
    elif where == "r":
        signature = _flipped(signature, bit)
    else:
        message += b"\0"
    assert not verify(public, message, signature)


def _flipped(data, bit):
    return (int.from_bytes(data, "little") ^ (1 << bit)).to_bytes(len(data), "little")
