"""The authority's directory: `ca.key`, `ca.pem` and the pairs that it made; each file whole or not there, keys 0600."""

import contextlib
import os
import secrets
import stat
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from ostler.coordinator.tls import certificates
from ostler.coordinator.tls.certificates import Authority, Wish
from ostler.model.errors import AlreadyExists, InvalidSpec, NotFound, Problem

CA_CERT, CA_KEY = "ca.pem", "ca.key"
MAX_PEM = 2**20


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate's file (the chain without the authority's own) and that of its key."""

    cert: Path
    key: Path


def create(directory: Path, now: datetime, *, life: timedelta) -> Authority:
    """Make an authority; raises AlreadyExists where one is, since what it signed would be worth nothing without it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_directory(directory)
    for name in (CA_KEY, CA_CERT):
        if (directory / name).exists():
            raise AlreadyExists(
                f"there is an authority already: {directory / name}", hint="use it, or give another directory with --dir"
            )
    made = certificates.found_authority(now, life=life)
    _write(directory / CA_KEY, certificates.pem_of_key(made.key), 0o600)
    _write(directory / CA_CERT, certificates.pem_of([made.certificate]), 0o644)
    return made


def open_authority(directory: Path) -> Authority:
    """The authority of a directory; raises NotFound, or InvalidSpec where it is damaged or open to others."""
    try:
        certificate = read_certificates(directory / CA_CERT)[0]
        key = read_key(directory / CA_KEY)
    except FileNotFoundError as exc:
        raise NotFound(
            f"there is no authority in {directory}: {exc.filename} is missing", hint="make one with `ostler ca init`"
        ) from exc
    _check_directory(directory)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise InvalidSpec(f"{directory / CA_KEY} is not the key of {directory / CA_CERT}", hint="restore both from a backup")
    return Authority(certificate, key)


def issue(authority: Authority, wanted: Wish, out: Path, now: datetime, *, force: bool) -> Pair:
    """A new pair in a directory; raises AlreadyExists for a file that is there, unless told to replace it, InvalidSpec for no directory."""
    pair = Pair(out / f"{wanted.name}.pem", out / f"{wanted.name}.key")
    for place in (pair.key, pair.cert):
        if place.exists() and not force:
            raise AlreadyExists(
                f"{place} is there already", hint="`ostler ca renew` makes it new; --force replaces it by another"
            )
    key = certificates.new_key()
    made = certificates.issue(authority, wanted, key.public_key(), now)
    try:
        out.mkdir(mode=0o755, parents=True, exist_ok=True)
    except FileExistsError:
        raise InvalidSpec(f"{out} is a file", hint="--out names the directory for the certificate and its key") from None
    _write(pair.key, certificates.pem_of_key(key), 0o600, replace_it=force)
    _write(pair.cert, certificates.pem_of([made]), 0o644, replace_it=force)
    return pair


def renew(
    authority: Authority, cert: Path, now: datetime, *, rekey: bool = False, life: timedelta | None = None
) -> tuple[Pair, x509.Certificate]:
    """The same certificate with a new life; its key stays, or is made anew. Raises InvalidSpec for one of another authority."""
    pair = Pair(cert, cert.with_suffix(".key"))
    try:
        old = read_certificates(cert)[0]
        key = certificates.new_key() if rekey else read_key(pair.key)
    except FileNotFoundError as exc:
        raise NotFound(f"there is no {exc.filename}", hint="`ostler ca issue` makes certificates") from exc
    if not certificates.is_issued_by(old, authority):
        raise InvalidSpec(
            f"{cert} is not from this authority", hint="say whose it is with --dir, or issue another with `ostler ca issue`"
        )
    if not isinstance(key, ec.EllipticCurvePrivateKey) or (not rekey and key.public_key() != old.public_key()):
        raise InvalidSpec(f"{pair.key} is not the key of {cert}", hint="--rekey makes another")
    wanted = certificates.wish_of(old)
    made = certificates.issue(authority, wanted if life is None else replace(wanted, life=life), key.public_key(), now)
    if rekey:
        _write(pair.key, certificates.pem_of_key(key), 0o600, replace_it=True)
    _write(pair.cert, certificates.pem_of([made]), 0o644, replace_it=True)
    return pair, made


def read_certificates(path: Path) -> list[x509.Certificate]:
    """All certificates of a PEM file; raises InvalidSpec where it holds none, and OSError."""
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError as exc:
        raise InvalidSpec(f"{path} holds no certificate in PEM form") from exc


def read_key(path: Path) -> object:
    """The private key of a PEM file; raises InvalidSpec where others can read it or it is none, and OSError."""
    facts = path.stat()
    mode = stat.S_IMODE(facts.st_mode)
    # Root's keys may have a group that reads them, as distributions do it.
    if mode & (0o037 if facts.st_uid == 0 else 0o077):
        raise InvalidSpec(f"others can read the key {path} (mode {mode:04o})", hint=f"chmod 600 {path}")
    try:
        return load_pem_private_key(_read(path), password=None)
    except TypeError as exc:
        raise InvalidSpec(
            f"the key {path} is encrypted, and there is nobody to ask", hint=f"openssl pkey -in {path} -out FILE writes it plain"
        ) from exc
    except ValueError as exc:
        raise InvalidSpec(f"{path} holds no private key in PEM form") from exc


def _check_directory(directory: Path) -> None:
    """Who may write there may put another authority in the place of this one."""
    mode = stat.S_IMODE(directory.stat().st_mode)
    if mode & 0o022:
        raise InvalidSpec(f"others can write to {directory} (mode {mode:04o})", hint=f"chmod go-w {directory}")


def _read(path: Path) -> bytes:
    with path.open("rb") as stream:
        content = stream.read(MAX_PEM + 1)
    if len(content) > MAX_PEM:
        raise InvalidSpec("a file is too large", [Problem(str(path), f"is larger than {MAX_PEM} bytes")])
    return content


def _write(path: Path, content: bytes, mode: int, *, replace_it: bool = False) -> None:
    """A whole file or none, with its mode from the first byte; what is there stays unless it is to be replaced."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(descriptor, mode)
            stream.write(content)
            stream.flush()
            os.fsync(descriptor)
        if replace_it:
            part.replace(path)
        else:
            os.link(part, path)
    except FileExistsError as exc:
        raise AlreadyExists(f"{path} is there already", hint="--force replaces it") from exc
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
