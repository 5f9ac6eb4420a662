"""The node's key, and which assignments it believes."""

import stat

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ostler.model.errors import InvalidSpec
from ostler.model.failures import FailureCode
from ostler.node.session import is_loopback
from ostler.node.signatures import NodeKey, judge
from ostler.protocol import codec, dsse
from ostler.protocol.messages import Assignment, register_message

KEY = Ed25519PrivateKey.generate()


def envelope(signer=KEY, kind=dsse.ASSIGNMENT_TYPE, payload=None, **fields):
    one = Assignment(**{"job_id": "j", "attempt": 1, "node_id": "n", "lease_s": 45.0, "spec": "{}", **fields})
    return dsse.sign(codec.encode(one) if payload is None else payload, kind, signer, "k")


def test_a_good_assignment_is_believed():
    [verdict] = judge(envelope(), KEY.public_key(), "n")
    assert verdict.failure is None
    assert verdict.assignment.job_id == "j"


@pytest.mark.parametrize(
    ("one", "word"),
    [
        (envelope(Ed25519PrivateKey.generate()), "not signed"),
        (envelope(kind="text/plain"), "not signed"),
        (envelope(node_id="other"), "for node other"),
    ],
    ids=["another key", "another type", "another node"],
)
def test_others_are_not_and_can_be_reported(one, word):
    [verdict] = judge(one, KEY.public_key(), "n")
    assert verdict.failure.code is FailureCode.SIGNATURE
    assert word in verdict.failure.message
    assert verdict.assignment.job_id == "j"


def test_a_changed_payload_is_not_believed():
    good = envelope()
    changed = dsse.Envelope(good.payload.replace(b'"j"', b'"x"'), good.payloadType, good.signatures)
    [verdict] = judge(changed, KEY.public_key(), "n")
    assert verdict.failure.code is FailureCode.SIGNATURE


def test_what_cannot_be_read_cannot_be_reported():
    [verdict] = judge(envelope(payload=b"nonsense"), KEY.public_key(), "n")
    assert verdict.assignment is None
    assert verdict.failure.code is FailureCode.SIGNATURE


def together(*payloads, signer=KEY, kind=dsse.ASSIGNMENTS_TYPE):
    return dsse.sign(b"[" + b",".join(payloads) + b"]", kind, signer, "k")


def test_many_under_one_signature_are_judged_one_by_one():
    payloads = [envelope(job_id="a").payload, envelope(job_id="b", node_id="other").payload, b"{}", envelope(job_id="c").payload]
    verdicts = judge(together(*payloads), KEY.public_key(), "n")
    assert [one.assignment and one.assignment.job_id for one in verdicts] == ["a", "b", None, "c"]
    assert [one.failure and one.failure.code for one in verdicts] == [None, FailureCode.SIGNATURE, FailureCode.SIGNATURE, None]


@pytest.mark.parametrize(
    "one",
    [
        together(envelope().payload, signer=Ed25519PrivateKey.generate()),
        together(envelope().payload, kind=dsse.ASSIGNMENT_TYPE),
        envelope(kind=dsse.ASSIGNMENTS_TYPE),
        dsse.Envelope(b"[", dsse.ASSIGNMENTS_TYPE, together().signatures),
    ],
    ids=["another key", "signed as one", "one signed as many", "torn"],
)
def test_nothing_of_a_list_that_was_not_signed_as_one_is_believed(one):
    assert all(verdict.failure.code is FailureCode.SIGNATURE for verdict in judge(one, KEY.public_key(), "n"))


def test_the_key_is_made_once_and_is_the_owners_alone(tmp_path):
    path = tmp_path / "state" / "node.key"
    first, second = NodeKey.open(path), NodeKey.open(path)
    assert first.public == second.public
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    message = register_message("c", "n", "e")
    Ed25519PublicKey.from_public_bytes(first.public).verify(first.prove("c", "n", "e"), message)


def test_a_key_that_others_may_read_is_refused(tmp_path):
    NodeKey.open(tmp_path / "node.key")
    (tmp_path / "node.key").chmod(0o644)
    with pytest.raises(InvalidSpec, match="can be read by others"):
        NodeKey.open(tmp_path / "node.key")


def test_a_damaged_or_other_key_is_refused(tmp_path):
    path = tmp_path / "node.key"
    path.write_text("nonsense")
    path.chmod(0o600)
    with pytest.raises(InvalidSpec, match="cannot be read"):
        NodeKey.open(path)
    other = generate_private_key(SECP256R1())
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(InvalidSpec, match="not an Ed25519 key"):
        NodeKey.open(path)


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:7070/api/v1", True),
        ("http://127.8.8.8", True),
        ("http://[::1]:1", True),
        ("http://localhost", True),
        ("http://10.0.0.1", False),
        ("https://coordinator.local/api/v1", False),
        ("http://localhost.evil.example", False),
        ("http://127.0.0.1.evil.example", False),
    ],
)
def test_what_is_loopback(url, here):
    assert is_loopback(url) is here
