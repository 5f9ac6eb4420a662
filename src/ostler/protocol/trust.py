"""Whom a client believes on an https:// address, what it shows of itself, and what went wrong when the two ends did not agree."""

import ssl
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from ostler.model.errors import InvalidSpec

_UNKNOWN_CA = frozenset({2, 18, 19, 20, 21})  # these and the numbers below are OpenSSL's X509_V_ERR_…
_NO_TLS = frozenset(
    {"WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}
)
_WANTS_OURS = frozenset({"TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE"})
_REFUSES_OURS = frozenset(
    {
        "TLSV1_ALERT_UNKNOWN_CA", "SSLV3_ALERT_BAD_CERTIFICATE", "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN", "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE", "TLSV1_ALERT_DECRYPT_ERROR",
    }
)  # fmt: skip
_SHOW_ONE = (
    "`ostler ca issue NAME --client` there makes one, OSTLER_CLIENT_CERT and OSTLER_CLIENT_KEY name it for commands, "
    "coordinator.client_cert and client_key for a node"
)
_OURS_MUST_BE = "it must be from the authority that the coordinator's tls.client_ca names, for a client, and not have expired"


@dataclass(frozen=True, kw_only=True)
class Trust:
    """`ca_file` is the one authority that is believed, and none of the system's beside it; without one the usual public ones are.
    `client_cert` and `client_key` are shown to a coordinator that asks for a certificate."""

    verify: bool = True
    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """(field, what is wrong) where the fields contradict each other."""
        if self.ca_file is not None and not self.verify:
            yield "ca_file", "pins an authority that is not looked at where verification is off; take one of the two away"
        if (self.client_cert is None) != (self.client_key is None):
            given, missing = ("client_key", "client_cert") if self.client_cert is None else ("client_cert", "client_key")
            yield given, f"needs {missing} beside it"

    @cached_property
    def context(self) -> ssl.SSLContext:
        """For all connections; raises InvalidSpec for a file that cannot be used."""
        context = self._verifying()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.client_cert is not None:
            self._show(context)
        return context

    def refresh(self) -> ssl.SSLContext:
        """The context; with the client's certificate as it is now, where that was renewed since."""
        context = self.context
        if self.client_cert is not None and _stamp(self.client_cert) != self.__dict__.get("_shown"):
            self._show(context)
        return context

    def _verifying(self) -> ssl.SSLContext:
        if self.ca_file is None:
            import httpx  # here: a program that only looks at a configuration, or speaks without TLS, starts without it

            return httpx.create_ssl_context(verify=self.verify)
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as exc:  # an SSLError is one
            raise InvalidSpec(
                f"the CA file {self.ca_file} cannot be used: {_why(exc)}", hint="it holds one or more certificates in PEM form"
            ) from exc

    def _show(self, context: ssl.SSLContext) -> None:
        assert self.client_cert is not None  # noqa: S101
        seen = _stamp(self.client_cert)
        try:
            context.load_cert_chain(self.client_cert, self.client_key, password=lambda: "")
        except OSError as exc:
            raise InvalidSpec(
                f"the client certificate {self.client_cert} with the key {self.client_key} cannot be used: {_why(exc)}",
                hint="both are PEM files that belong together, the key not encrypted: ostler ca issue NAME --client",
            ) from exc
        self.__dict__["_shown"] = seen

    def explain(self, exc: BaseException, url: str) -> tuple[str, str] | None:
        """What a failed call of a URL means and what mends it; None where it is nothing of TLS."""
        parts = urlsplit(url)
        for one in _chain(exc):
            if isinstance(one, ssl.SSLCertVerificationError):
                return self._explain_theirs(one, parts.hostname or "")
            if isinstance(one, ssl.SSLError) and not isinstance(one, ssl.SSLWantReadError | ssl.SSLWantWriteError):
                return self._explain_talk(one)
        return self._explain_silence(parts.scheme) if _broke_off(exc) else None

    def _explain_silence(self, scheme: str) -> tuple[str, str]:
        """Many servers that find a handshake wanting hang up and say nothing, ours among them."""
        what = "the connection was closed before an answer came"
        if scheme == "http":
            return what, "is it running? If it speaks TLS, its URL begins with https://"
        if self.client_cert is None:
            return what, f"is it running? If it asks for client certificates: {_SHOW_ONE}"
        return what, f"is it running? If so, it refuses {self.client_cert}: {_OURS_MUST_BE}"

    def _explain_theirs(self, exc: ssl.SSLCertVerificationError, host: str) -> tuple[str, str]:
        match exc.verify_code:
            case 10:  # …CERT_HAS_EXPIRED
                return (
                    "its certificate has expired, or this machine's clock is wrong",
                    "on the coordinator: ostler ca renew NAME (it is taken up without a restart)",
                )
            case 9:  # …CERT_NOT_YET_VALID
                return "its certificate is not valid yet: one of the two clocks is wrong", "timedatectl set-ntp true"
            case 62 | 64:  # …HOSTNAME_MISMATCH, …IP_ADDRESS_MISMATCH
                return (
                    f"its certificate is not for {host}",
                    f"write a URL with a name that it is for, or issue one with --san {host}; `ostler ca show FILE` lists the names",
                )
            case code if code in _UNKNOWN_CA and self.ca_file is not None:
                return (
                    f"its certificate is not from the authority in {self.ca_file}",
                    "compare the fingerprints of `ostler ca show` there and `ostler ca show FILE` here",
                )
            case code if code in _UNKNOWN_CA:
                return (
                    "its certificate is from an authority that this machine does not know",
                    "pin it by its ca.pem: OSTLER_CA_FILE for commands, coordinator.ca_file for a node",
                )
        return f"its certificate is not good: {exc.verify_message}", "see `ostler ca show FILE`"

    def _explain_talk(self, exc: ssl.SSLError) -> tuple[str, str]:
        reason = exc.reason or ""
        if reason in _NO_TLS:
            return "it does not speak TLS there", "if it is meant to be so, write http:// instead of https://"
        if reason in _WANTS_OURS and self.client_cert is None:
            return "it asks for a client certificate, and none is set here", _SHOW_ONE
        if reason in _WANTS_OURS | _REFUSES_OURS:
            return f"it refuses the client certificate {self.client_cert}", _OURS_MUST_BE
        return f"TLS failed: {reason or exc}", "does what listens there speak TLS 1.2 or later?"


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__


def _broke_off(exc: BaseException) -> bool:
    if isinstance(exc, ConnectionResetError | BrokenPipeError):
        return True
    httpx = sys.modules.get("httpx")  # where nobody has loaded it, this is none of its errors
    return httpx is not None and isinstance(exc, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns


def _why(exc: OSError) -> str:
    return exc.strerror or str(exc)
