"""The private authority: what it makes is believed by OpenSSL in real handshakes, and by nobody who trusts another."""

import shutil
import ssl
import stat
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from ostler.coordinator.tls import authority, certificates
from ostler.coordinator.tls.context import url_host
from ostler.model.errors import AlreadyExists, Conflict, InvalidSpec, NotFound

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@pytest.fixture
def ca(tmp_path):
    return authority.create(tmp_path / "ca", NOW, life=100 * DAY)


def make(ca, tmp_path, name="box", sans=("box.example", "127.0.0.1"), *, client=False, life=DAY, now=NOW, force=False):
    return authority.issue(ca, certificates.wish(name, sans, client=client, life=life), tmp_path / "ca", now, force=force)


def server_side(pair, client_ca=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    if client_ca:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_side(ca_file, pair=None):
    context = ssl.create_default_context(cafile=ca_file)
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT  # what later Pythons demand by themselves
    if pair:
        context.load_cert_chain(pair.cert, pair.key)
    return context


def shake_hands(server, client, host):
    """A whole handshake in memory; raises what either end would."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_hostname=host),
    ]
    for _ in range(10):
        waiting = False
        for end in reversed(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                waiting = True
        if not waiting:
            return ends[1].getpeercert()
    raise AssertionError("the handshake came to no end")


@pytest.mark.parametrize("host", ["box.example", "127.0.0.1"])
def test_a_server_is_believed_under_each_of_its_names(ca, tmp_path, host):
    pair = make(ca, tmp_path)
    assert shake_hands(server_side(pair), client_side(tmp_path / "ca/ca.pem"), host)["subject"] == ((("commonName", "box"),),)


def test_it_is_not_believed_under_another_name_nor_with_another_authority(ca, tmp_path):
    pair = make(ca, tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(server_side(pair), client_side(tmp_path / "ca/ca.pem"), "other.example")
    authority.create(tmp_path / "other", NOW, life=DAY)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server_side(pair), client_side(tmp_path / "other/ca.pem"), "box.example")


def test_a_client_is_no_server_and_a_server_no_client(ca, tmp_path):
    server, client = make(ca, tmp_path), make(ca, tmp_path, "node-1", (), client=True)
    root = tmp_path / "ca/ca.pem"
    shake_hands(server_side(server, root), client_side(root, client), "box.example")
    with pytest.raises(ssl.SSLError, match="certificate verify failed"):
        shake_hands(server_side(server, root), client_side(root, server), "box.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server_side(client), client_side(root), "node-1")
    both = make(ca, tmp_path, "both", client=True)
    shake_hands(server_side(both, root), client_side(root, both), "box.example")


def test_an_expired_one_is_refused(ca, tmp_path):
    pair = make(ca, tmp_path, now=NOW - 2 * DAY)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        shake_hands(server_side(pair), client_side(tmp_path / "ca/ca.pem"), "box.example")


def test_what_it_signed_signs_nothing(ca, tmp_path):
    """Path length 0 and no right to sign: a stolen server key makes no certificates."""
    pair = make(ca, tmp_path)
    stolen = certificates.Authority(authority.read_certificates(pair.cert)[0], authority.read_key(pair.key))
    forged = certificates.issue(stolen, certificates.wish("x", ["victim.example"], client=False), stolen.key.public_key(), NOW)
    pair.cert.write_bytes(certificates.pem_of([forged, stolen.certificate]))
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server_side(pair), client_side(tmp_path / "ca/ca.pem"), "victim.example")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not installed")
def test_openssl_finds_nothing_wrong(ca, tmp_path):
    server, client = make(ca, tmp_path), make(ca, tmp_path, "me", (), client=True)
    for purpose, pair in (("sslserver", server), ("sslclient", client)):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", tmp_path / "ca/ca.pem", pair.cert]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_files_are_ours_alone_and_never_replaced_by_accident(ca, tmp_path):
    pair = make(ca, tmp_path)
    for key in (pair.key, tmp_path / "ca/ca.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = pair.cert.read_bytes()
    with pytest.raises(AlreadyExists):
        make(ca, tmp_path)
    assert pair.cert.read_bytes() == before
    make(ca, tmp_path, force=True)
    assert pair.cert.read_bytes() != before
    with pytest.raises(AlreadyExists):
        authority.create(tmp_path / "ca", NOW, life=DAY)
    assert sorted(path.name for path in (tmp_path / "ca").iterdir()) == ["box.key", "box.pem", "ca.key", "ca.pem"]


@pytest.mark.parametrize("rekey", [False, True])
def test_renewal_keeps_names_and_use(ca, tmp_path, rekey):
    pair = make(ca, tmp_path, client=True, now=NOW - DAY / 2)
    key = pair.key.read_bytes()
    again, made = authority.renew(ca, pair.cert, NOW, rekey=rekey)
    facts = certificates.facts_of(made)
    assert (again, facts.name, facts.sans, facts.uses) == (pair, "box", ("box.example", "127.0.0.1"), ("server", "client"))
    assert facts.not_after == (NOW + DAY).replace(microsecond=0)
    assert (pair.key.read_bytes() == key) is not rekey
    shake_hands(server_side(pair), client_side(tmp_path / "ca/ca.pem"), "box.example")


def test_only_ones_own_are_renewed(ca, tmp_path):
    other = authority.create(tmp_path / "other", NOW, life=DAY)
    pair = make(ca, tmp_path)
    with pytest.raises(InvalidSpec, match="not from this authority"):
        authority.renew(other, pair.cert, NOW)
    pair.key.write_bytes(certificates.pem_of_key(certificates.new_key()))
    with pytest.raises(InvalidSpec, match="is not the key"):
        authority.renew(ca, pair.cert, NOW)
    pair.key.unlink()
    with pytest.raises(NotFound, match=r"box\.key"):
        authority.renew(ca, pair.cert, NOW)


def test_none_outlives_its_authority(ca, tmp_path):
    pair = make(ca, tmp_path, life=1000 * DAY)
    assert authority.read_certificates(pair.cert)[0].not_valid_after_utc == ca.certificate.not_valid_after_utc
    with pytest.raises(Conflict, match="expired"):
        make(ca, tmp_path, "late", now=NOW + 101 * DAY)


def test_an_authority_that_cannot_be_used(ca, tmp_path):
    place = tmp_path / "ca"
    assert authority.open_authority(place).certificate == ca.certificate
    (place / "ca.key").chmod(0o644)
    with pytest.raises(InvalidSpec, match="others can read"):
        authority.open_authority(place)
    (place / "ca.key").chmod(0o600)
    place.chmod(0o777)
    with pytest.raises(InvalidSpec, match="others can write"):
        authority.open_authority(place)
    place.chmod(0o700)
    encrypted = ca.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (place / "ca.key").write_bytes(encrypted)
    with pytest.raises(InvalidSpec, match="is encrypted"):
        authority.open_authority(place)
    (place / "ca.key").write_bytes(certificates.pem_of_key(certificates.new_key()))
    with pytest.raises(InvalidSpec, match="is not the key"):
        authority.open_authority(place)
    (place / "ca.pem").write_bytes(b"nothing")
    with pytest.raises(InvalidSpec, match="no certificate"):
        authority.open_authority(place)
    with pytest.raises(NotFound, match="no authority"):
        authority.open_authority(tmp_path)


BAD_HOSTS = [
    "", "-a", "a-", "a_b", "a b", "a\n", "a\nb", "$(id)", "`id`", "a;b", "../x", "*.example", "1.2.3", "256.1.1.1", "::g",
    "fe80::1%eth0", "a..b", ".a", "a.", "é.example", "x" * 64, ".".join(["x" * 60] * 5), "http://a", "a:7070", "\0", "a\0b",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD_HOSTS)
def test_what_is_no_host_is_refused(text):
    with pytest.raises(InvalidSpec, match="--san"):
        certificates.wish("box", [text], client=False)


def test_hosts_in_their_usual_form():
    wanted = certificates.wish(
        "box", ["Box.Example", "2001:0DB8::0001", "127.0.0.1", "box.example", "a1", "xn--caf-dma.fr"], client=False
    )
    assert wanted.sans == ("box.example", "2001:db8::1", "127.0.0.1", "a1", "xn--caf-dma.fr")


@pytest.mark.parametrize("name", ["", "-x", "../x", "a/b", "a\nb", "$(id)", "x" * 64, "ca"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(InvalidSpec, match="NAME"):
        certificates.wish(name, ["a"], client=False)


def test_a_server_needs_a_name_and_not_too_many():
    with pytest.raises(InvalidSpec, match="at least one"):
        certificates.wish("box", [], client=False)
    with pytest.raises(InvalidSpec, match="at most 100"):
        certificates.wish("box", [f"h{i}" for i in range(101)], client=False)


@pytest.mark.parametrize(
    ("bound", "sans", "host"),
    [
        ("127.0.0.1", ("box.example", "127.0.0.1"), "127.0.0.1"),
        ("127.0.0.1", ("box.example", "localhost"), "localhost"),
        ("127.0.0.1", ("box.example",), "box.example"),
        ("0.0.0.0", ("box.example", "127.0.0.1"), "127.0.0.1"),
        ("0.0.0.0", ("box.example", "10.0.0.1"), "box.example"),
        ("::", ("box.example", "::1"), "[::1]"),
        ("10.0.0.1", ("box.example", "10.0.0.1"), "10.0.0.1"),
        ("10.0.0.1", (), "10.0.0.1"),
        ("fe80::1%eth0", ("fe80::1",), "[fe80::1]"),
    ],
)
def test_the_url_names_what_the_certificate_is_for(bound, sans, host):
    assert url_host(bound, sans) == host
