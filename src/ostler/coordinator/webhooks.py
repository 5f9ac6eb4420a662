"""Deliveries to webhooks: which addresses may be called, how a delivery is signed, when it is tried again; and the call itself."""

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from urllib.parse import urlsplit

from ostler import __version__
from ostler.model.errors import InvalidSpec, Problem

PURPOSE = "webhook"  # of the secrets as they are sealed
TIMEOUT_S = 10.0
MAX_URL = 2000
MAX_HEAD = 16 * 1024
FIRST_WAIT = timedelta(seconds=5)
LONGEST_WAIT = timedelta(hours=1)
PATIENCE = timedelta(days=3)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class DeliveryFailed(Exception):
    """A delivery did not arrive, or the receiver would not have it; the message says why."""


# --- decisions ---------------------------------------------------------------------------------------------------------------


def next_try(failures: int, failing_for: timedelta) -> timedelta | None:
    """How long to wait after so many failures in a row; None where patience is at its end."""
    if failing_for >= PATIENCE:
        return None
    return min(FIRST_WAIT * 2.0 ** min(failures - 1, 20), LONGEST_WAIT)


def refusal_of(address: str) -> str | None:
    """Why this address is none that a webhook may name: it is this machine's or its network's, and no stranger's to reach through us."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return refusal_of(str(inner))
        if ip.is_site_local:
            return f"{ip} is a private address"
    if ip.is_multicast or not ip.is_global:
        kind = (
            "a loopback"
            if ip.is_loopback
            else "a link-local"
            if ip.is_link_local
            else "a private"
            if ip.is_private
            else "a reserved"
        )
        return f"{ip} is {kind} address"
    return None


def check_url(url: str, *, allow_private: bool) -> None:
    """Raises InvalidSpec for what is no address to deliver to."""
    if why := _wrong_with(url, allow_private=allow_private):
        raise InvalidSpec("the webhook is not valid", [Problem("url", why)])


def _wrong_with(url: str, *, allow_private: bool) -> str | None:
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        return f"must be at most {MAX_URL} printable ASCII characters without spaces"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as exc:
        return f"is not a URL: {exc}"
    if parts.scheme not in {"http", "https"} or not host:
        return "must begin with https:// (or http://) and name a host"
    if parts.username is not None or parts.password is not None:
        return "must not hold a name or a password; deliveries are signed instead"
    if parts.fragment:
        return "must not have a part behind '#', which is never sent"
    with contextlib.suppress(ValueError):
        if not allow_private and (why := refusal_of(host)):
            return f"{why}, and the coordinator's configuration does not have `webhooks.allow_private`"
    return None


def sign(secret: str, at: int, body: bytes) -> str:
    """The header `Ostler-Signature` of a body at a time (seconds since 1970)."""
    mac = hmac.digest(secret.encode(), b"%d." % at + body, hashlib.sha256).hex()
    return f"t={at},v1={mac}"


# --- the call ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """One delivery: `url` and `secret` are the webhook's."""

    url: str
    secret: str
    webhook_id: str
    body: bytes


class Courier:
    """Makes deliveries. A redirect is not followed, no proxy is asked, and of an answer nothing is read but its head."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private

    @cached_property
    def _context(self) -> ssl.SSLContext:
        import httpx  # 15 MB, for the authorities that it carries: only where a webhook speaks TLS

        return httpx.create_ssl_context()

    async def deliver(self, parcel: Parcel) -> int:
        """The status of a good answer; raises DeliveryFailed with the reason, after 10 s at most."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                status = await self._post(parcel)
        except TimeoutError as exc:
            raise DeliveryFailed(f"no answer within {TIMEOUT_S:g} s") from exc
        except ssl.SSLError as exc:
            raise DeliveryFailed(f"TLS failed: {getattr(exc, 'verify_message', None) or exc.reason or exc}") from exc
        except (OSError, EOFError, ValueError) as exc:
            raise DeliveryFailed(f"no connection: {getattr(exc, 'strerror', None) or exc}") from exc
        if 300 <= status < 400:
            raise DeliveryFailed(f"answered {status}: redirects are not followed; give the URL that it leads to")
        if not 200 <= status < 300:
            raise DeliveryFailed(f"answered {status}")
        return status

    async def _post(self, parcel: Parcel) -> int:
        parts = urlsplit(parcel.url)
        secure, host = parts.scheme == "https", parts.hostname or ""
        address = await self._resolve(host, parts.port or (443 if secure else 80))
        context = await asyncio.to_thread(lambda: self._context) if secure else None
        reader, writer = await asyncio.open_connection(
            *address, ssl=context, server_hostname=host if secure else None, limit=MAX_HEAD
        )
        try:
            writer.write(_head(parcel) + parcel.body)
            while True:
                status = _status(await reader.readuntil(b"\r\n\r\n"))
                if status >= 200:
                    return status
        except asyncio.IncompleteReadError as exc:
            raise DeliveryFailed("the connection was closed without an answer") from exc
        except asyncio.LimitOverrunError as exc:
            raise DeliveryFailed("what answered does not speak HTTP") from exc
        finally:
            writer.transport.abort()

    async def _resolve(self, host: str, port: int) -> tuple[str, int]:
        """The address to connect to, and to nothing else: a name that is looked up again may have become another's meanwhile."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as exc:
            raise DeliveryFailed(f"{host} has no address: {exc.strerror}") from exc
        refused = None
        for *_, address in found:
            refused = None if self._allow_private else refusal_of(str(address[0]))
            if refused is None:
                return str(address[0]), int(address[1])
        raise DeliveryFailed(f"{refused or host}: webhooks do not go there unless the coordinator has `webhooks.allow_private`")


def _head(parcel: Parcel) -> bytes:
    parts = urlsplit(parcel.url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [
        f"POST {target} HTTP/1.1",
        f"Host: {parts.netloc}",
        f"User-Agent: ostler/{__version__}",
        "Content-Type: application/json",
        f"Content-Length: {len(parcel.body)}",
        f"Ostler-Webhook: {parcel.webhook_id}",
        f"Ostler-Signature: {sign(parcel.secret, int(time.time()), parcel.body)}",
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def _status(head: bytes) -> int:
    version, _, rest = head.partition(b" ")
    code = rest[:3]
    if not version.startswith(b"HTTP/1.") or not code.isdigit() or len(code) != 3:
        raise DeliveryFailed("what answered does not speak HTTP")
    return int(code)
