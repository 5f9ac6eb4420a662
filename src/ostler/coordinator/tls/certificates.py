"""A private certificate authority as values: which certificates it makes and what they hold. No files and no clock."""

import contextlib
import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ostler.coordinator.tls.facts import Facts
from ostler.model.errors import Conflict, InvalidSpec, Problem
from ostler.model.manifest import NAME

CA_DAYS = 3650
DAYS = 365
SKEW = timedelta(minutes=5)  # clocks that are a little behind must not find a certificate that is not valid yet
MAX_HOST = 253
MAX_SANS = 100
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_RESERVED = frozenset({"ca"})


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate that signs others, and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a certificate shall be: `sans` are the host names and addresses of a server, `client` is for one that shows itself to a
    server."""

    name: str
    sans: tuple[str, ...] = ()
    client: bool = False
    life: timedelta = timedelta(days=DAYS)


def wish(name: str, sans: Iterable[str], *, client: bool, life: timedelta = timedelta(days=DAYS)) -> Wish:
    """A checked wish; raises InvalidSpec with every mistake."""
    problems = [] if NAME.fullmatch(name) else [Problem("NAME", f"{name!r} must be 1 to 63 letters, digits, '.', '_' or '-'")]
    if name in _RESERVED:
        problems.append(Problem("NAME", f"{name!r} is the name of the authority's own files"))
    hosts, found = [], list(sans)
    for text in found[:MAX_SANS]:
        try:
            hosts.append(host(text))
        except ValueError as exc:
            problems.append(Problem("--san", str(exc)))
    if len(found) > MAX_SANS:
        problems.append(Problem("--san", f"there are {len(found)}; a certificate holds at most {MAX_SANS}"))
    if not found and not client:
        problems.append(
            Problem("--san", "a server needs at least one: the name or address that stands in its URL; --client is for a client")
        )
    if problems:
        raise InvalidSpec("this certificate cannot be made", problems)
    return Wish(name=name, sans=tuple(dict.fromkeys(hosts)), client=client, life=life)


def host(text: str) -> str:
    """A host name (RFC 1123) or an IP address in its usual form; raises ValueError with what is wrong."""
    if "%" not in text:  # a zone means something on one machine alone
        with contextlib.suppress(ValueError):
            return str(ipaddress.ip_address(text))
    lower = text.lower()
    labels = lower.split(".")
    if "*" in text:
        raise ValueError(f"{text!r} is a wildcard; name each host")
    if not lower.isascii():
        raise ValueError(f"{text!r} is not ASCII; write the name in its xn-- form")
    if len(lower) > MAX_HOST or not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        raise ValueError(f"{text[:80]!r} is neither a host name nor an IP address")
    return lower


def found_authority(now: datetime, *, life: timedelta = timedelta(days=CA_DAYS)) -> Authority:
    """A new authority. It signs certificates, and none that sign others."""
    key = new_key()
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    name = _named(f"Ostler CA {identifier.digest.hex()[:8]}")  # two authorities of one name are easily taken for each other
    certificate = (
        _builder(name, name, key.public_key(), now - SKEW, now + life)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def issue(authority: Authority, wanted: Wish, public_key: ec.EllipticCurvePublicKey, now: datetime) -> x509.Certificate:
    """A certificate for a key. It never outlives its authority; raises Conflict where that is over."""
    ends = authority.certificate.not_valid_after_utc
    if ends <= now:
        raise Conflict(
            f"the authority's own certificate expired on {ends:%Y-%m-%d}",
            hint="make another with `ostler ca init --dir DIR`, and give its ca.pem to whoever pins the old one",
        )
    signer = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    uses = [ExtendedKeyUsageOID.SERVER_AUTH] * bool(wanted.sans) + [ExtendedKeyUsageOID.CLIENT_AUTH] * wanted.client
    builder = (
        _builder(_named(wanted.name), authority.certificate.subject, public_key, now - SKEW, min(now + wanted.life, ends))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer), critical=False)
    )
    if wanted.sans:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general(one) for one in wanted.sans]), critical=False)
    return builder.sign(authority.key, hashes.SHA256())


def wish_of(certificate: x509.Certificate) -> Wish:
    """The wish that would make this certificate again."""
    facts = facts_of(certificate)
    life = facts.not_after - facts.not_before - SKEW
    return Wish(name=facts.name, sans=facts.sans, client="client" in facts.uses, life=life)


def is_issued_by(certificate: x509.Certificate, authority: Authority) -> bool:
    """Whether this authority signed it."""
    try:
        certificate.verify_directly_issued_by(authority.certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def facts_of(certificate: x509.Certificate) -> Facts:
    """What it says of itself; raises InvalidSpec where its extensions cannot be read."""
    try:
        uses = []
        extensions = certificate.extensions
        for kind in (x509.BasicConstraints, x509.ExtendedKeyUsage):
            found = next((one.value for one in extensions if isinstance(one.value, kind)), None)
            if isinstance(found, x509.BasicConstraints) and found.ca:
                uses.append("ca")
            elif isinstance(found, x509.ExtendedKeyUsage):
                uses += [word for oid, word in _USES if oid in found]
        names = next((one.value for one in extensions if isinstance(one.value, x509.SubjectAlternativeName)), ())
        sans = tuple(str(one.value) for one in names if isinstance(one, x509.DNSName | x509.IPAddress))
    except ValueError as exc:
        raise InvalidSpec(f"the certificate cannot be read: {exc}") from exc
    return Facts(
        name=_common_name(certificate.subject),
        issuer=_common_name(certificate.issuer),
        uses=tuple(uses),
        sans=sans,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        sha256=certificate.fingerprint(hashes.SHA256()).hex(),
    )


_USES = ((ExtendedKeyUsageOID.SERVER_AUTH, "server"), (ExtendedKeyUsageOID.CLIENT_AUTH, "client"))


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key on P-256, which every TLS library knows."""
    return ec.generate_private_key(ec.SECP256R1())


def pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS 8, not encrypted: the file's mode protects it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def pem_of(certificates: Sequence[x509.Certificate]) -> bytes:
    """A chain, the one that is shown first."""
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, since: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
    )


def _named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else name.rfc4514_string()


def _general(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
