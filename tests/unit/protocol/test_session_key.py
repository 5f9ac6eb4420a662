"""A session's key: both ends have the same one, and nobody else can have made what bears its MAC."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ostler.model.failures import FailureCode
from ostler.node.signatures import judge
from ostler.protocol import codec, dsse
from ostler.protocol.messages import Assignment
from ostler.protocol.session_key import KEY_BYTES, accept, agree

SIGNING = Ed25519PrivateKey.generate()
HALF = X25519PrivateKey.generate()


def public(half):
    return half.public_key().public_bytes_raw()


def agreed(node_id="n", epoch="boot:1", half=HALF, signing=SIGNING):
    return agree(node_id, epoch, public(half), signing, "k")


def accepted(envelope, half=HALF, trusted=SIGNING, node_id="n", epoch="boot:1"):
    return accept(envelope, half, trusted.public_key(), node_id=node_id, boot_epoch=epoch)


def test_both_ends_have_the_same_key_and_no_two_sessions_have():
    (one, told), (other, _) = agreed(), agreed()
    assert accepted(told) == one
    assert len(one.secret) == KEY_BYTES
    assert one.secret != other.secret
    assert one.keyid != other.keyid
    assert repr(one.secret)[2:-1] not in repr(one)


@pytest.mark.parametrize(
    "envelope",
    [
        agreed(node_id="other")[1],
        agreed(epoch="boot:2")[1],
        agreed(half=X25519PrivateKey.generate())[1],
        agreed(signing=Ed25519PrivateKey.generate())[1],
        dsse.Envelope(agreed()[1].payload, "text/plain", agreed()[1].signatures),
        dsse.sign(b"nonsense", agreed()[1].payloadType, SIGNING, "k"),
        dsse.sign(agreed()[1].payload.replace(b'"n"', b'"m"'), agreed()[1].payloadType, SIGNING, "k"),
    ],
    ids=["another node", "another session", "another half", "another signer", "another type", "no agreement", "a changed one"],
)
def test_what_was_not_signed_for_this_session_is_no_agreement(envelope):
    assert accepted(envelope) is None


def test_a_half_of_small_order_is_none():
    with pytest.raises(ValueError, match="shared key"):
        agree("n", "boot:1", bytes(KEY_BYTES), SIGNING, "k")
    payload = codec.encode(
        {"node_id": "n", "boot_epoch": "boot:1", "node_key": public(HALF), "coordinator_key": bytes(KEY_BYTES)}
    )
    assert accepted(dsse.sign(payload, agreed()[1].payloadType, SIGNING, "k")) is None


def sealed(key, kind=dsse.ASSIGNMENT_TYPE, secret=None, keyid=None, **fields):
    one = Assignment(**{"job_id": "j", "attempt": 1, "node_id": "n", "lease_s": 45.0, "spec": "{}", **fields})
    payload = codec.encode(one) if kind == dsse.ASSIGNMENT_TYPE else codec.encode([one])
    return dsse.seal(payload, kind, secret or key.secret, keyid or key.keyid)


KEY = agreed()[0]
OTHER = agreed()[0]


@pytest.mark.parametrize("kind", [dsse.ASSIGNMENT_TYPE, dsse.ASSIGNMENTS_TYPE])
def test_what_bears_the_mac_is_believed(kind):
    [verdict] = judge(sealed(KEY, kind), SIGNING.public_key(), "n", KEY)
    assert verdict.failure is None
    assert verdict.assignment.job_id == "j"


@pytest.mark.parametrize(
    ("envelope", "session"),
    [
        (sealed(OTHER), KEY),
        (sealed(OTHER, keyid=KEY.keyid), KEY),
        (sealed(KEY, keyid="k"), KEY),
        (sealed(KEY), None),
        (sealed(KEY), OTHER),
        (sealed(KEY, node_id="m"), KEY),
        (dsse.Envelope(sealed(KEY).payload, dsse.ASSIGNMENTS_TYPE, sealed(KEY).signatures), KEY),
        (dsse.Envelope(sealed(KEY, job_id="x").payload, dsse.ASSIGNMENT_TYPE, sealed(KEY).signatures), KEY),
        (dsse.Envelope(sealed(KEY).payload, dsse.ASSIGNMENT_TYPE, ()), KEY),
        (dsse.Envelope(sealed(KEY).payload, dsse.ASSIGNMENT_TYPE, sealed(OTHER).signatures + sealed(KEY).signatures), KEY),
    ],
    ids=[
        "another session's", "another secret", "another name", "no session", "an earlier session", "another node", "another type",
        "another payload", "nothing", "two",
    ],
)  # fmt: skip
def test_nothing_else_is(envelope, session):
    verdicts = judge(envelope, SIGNING.public_key(), "n", session)
    assert [one.failure.code for one in verdicts] == [FailureCode.SIGNATURE]


def test_in_a_session_with_a_key_a_signature_is_as_good():
    payload = sealed(KEY).payload
    [verdict] = judge(dsse.sign(payload, dsse.ASSIGNMENT_TYPE, SIGNING, "k"), SIGNING.public_key(), "n", KEY)
    assert verdict.failure is None
