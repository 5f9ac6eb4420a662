"""The server's side of TLS: certificate, key and, where clients must show theirs, whose; out of files, checked before use."""

import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ostler.coordinator.config import TlsConfig
from ostler.coordinator.tls.facts import Facts
from ostler.model.errors import InvalidSpec, OstlerError, Problem

Stamp = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class ServerTls:
    """What new connections are encrypted with, and what its certificate says."""

    context: ssl.SSLContext
    facts: Facts


def load(tls: TlsConfig, now: datetime) -> ServerTls:
    """Raises InvalidSpec with what is wrong with which file."""
    # What reads certificates costs megabytes that a coordinator without TLS does not pay.
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from ostler.coordinator.tls.authority import read_certificates, read_key
    from ostler.coordinator.tls.certificates import facts_of

    certificate = _tried("tls.cert", tls.cert, lambda: read_certificates(tls.cert)[0])
    key = _tried("tls.key", tls.key, lambda: read_key(tls.key))
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise _refused("tls.key", f"{tls.key} is not the key of {tls.cert}")
    facts = facts_of(certificate)
    if facts.not_after <= now:
        raise _refused("tls.cert", f"{tls.cert} expired on {facts.not_after:%Y-%m-%d %H:%M} UTC", hint=_renew(tls.cert))
    if facts.not_before > now:
        raise _refused("tls.cert", f"{tls.cert} is not valid before {facts.not_before:%Y-%m-%d %H:%M} UTC; is the clock right?")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(tls.cert, tls.key)
    except (ssl.SSLError, OSError) as exc:
        raise _refused("tls.cert", f"{tls.cert} cannot be used: {exc}") from exc
    if tls.client_ca is not None:
        place = tls.client_ca
        _tried("tls.client_ca", place, lambda: read_certificates(place))
        context.load_verify_locations(cafile=place)
        context.verify_mode = ssl.CERT_REQUIRED
    return ServerTls(context, facts)


def stamp(tls: TlsConfig) -> Stamp:
    """Changes when one of the files does."""
    return tuple(_stamp(one) for one in (tls.cert, tls.key, tls.client_ca) if one is not None)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def url_host(bound: str, sans: Sequence[str]) -> str:
    """The host of a server's URL: the address that it listens on where its certificate is for that, else a name that it is for."""
    address = ipaddress.ip_address(bound.partition("%")[0])
    wanted = [str(address)]
    if address.is_loopback:
        wanted.append("localhost")
    elif address.is_unspecified:  # it hears all addresses, and those of this machine itself are reached in any case
        wanted = ["::1" if address.version == 6 else "127.0.0.1", "localhost"]
    found = next((one for one in wanted if one in sans), None) or next(iter(sans), wanted[0])
    return f"[{found}]" if ":" in found else found


def _tried(field: str, path: Path, act: Any) -> Any:
    try:
        return act()
    except OSError as exc:
        raise _refused(field, f"{path} cannot be read: {exc.strerror or exc}") from exc
    except OstlerError as exc:
        raise _refused(field, exc.message, hint=exc.hint) from exc


def _refused(field: str, message: str, *, hint: str | None = None) -> InvalidSpec:
    return InvalidSpec("the coordinator's certificate cannot be used", [Problem(field, message)], hint=hint)


def _renew(path: Path) -> str:
    return f"`ostler ca renew {path}`, if it is from `ostler ca`"
