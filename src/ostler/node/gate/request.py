"""What a program asks of the gate, read strictly: a proxy request's head in, where to and what to send there out."""

import re
from dataclasses import dataclass

from ostler.model.network import Address, read_target

MAX_HEAD = 16 * 1024

_LINE = re.compile(rb"([A-Z]{1,20}) ([!-~]+) HTTP/1\.[01]")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([ -~\t\x80-\xff]*)")
_ABSOLUTE = re.compile(r"http://([^/?#]*)([^#]*)", re.IGNORECASE)
# Between a client and its proxy alone (RFC 9110, 7.6.1); the host is the target's, whatever the program wrote beside it.
_OWN = frozenset({"connection", "host", "keep-alive", "proxy-authorization", "proxy-connection", "te", "upgrade"})


class BadRequest(Exception):
    """Not a request that a proxy takes: `status` and a sentence. `target` is what it seems to have asked for, as written."""

    def __init__(self, status: int, message: str, target: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.target = target


@dataclass(frozen=True, slots=True)
class Ask:
    """`head` is what the target gets first: nothing after CONNECT, else the request in the form that a server takes.

    `written` is the host as the program wrote it: in a refusal it is told so, since a secret is masked only in its own letters.
    """

    written: str
    host: str | Address
    port: int
    head: bytes
    tunnel: bool


def read_request(head: bytes) -> Ask:
    """The request with this head, its empty line included. Raises BadRequest."""
    first, *rest = head[:-4].split(b"\r\n")
    line = _LINE.fullmatch(first)
    if line is None:
        raise BadRequest(400, "this is no HTTP/1 request line")
    headers = []
    for one in rest:
        header = _HEADER.fullmatch(one)
        if header is None:
            raise BadRequest(400, "a header is malformed")
        headers.append((header[1].decode().lower(), one))
    method, target = line[1], line[2].decode()
    if method == b"CONNECT":
        host, port = _target(target, None)
        return Ask(_host_of(target), host, port, b"", tunnel=True)
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        hint = "https goes through CONNECT" if target.lower().startswith("https:") else "this is a proxy, not a server"
        raise BadRequest(400, f"{hint}; ask with CONNECT HOST:PORT, or for http://HOST/PATH", target)
    authority, path = absolute[1], absolute[2]
    host, port = _target(authority, 80)
    kept = [one for name, one in headers if name not in _OWN]
    start = b"%s %s HTTP/1.1" % (method, (path if path.startswith("/") else f"/{path}").encode())
    lines = [start, b"Host: " + authority.encode(), b"Connection: close", *kept, b"", b""]
    return Ask(_host_of(authority), host, port, b"\r\n".join(lines), tunnel=False)


def _host_of(authority: str) -> str:
    """The host of an authority that was read without a mistake."""
    return authority[1:].partition("]")[0] if authority.startswith("[") else authority.partition(":")[0]


def _target(text: str, default_port: int | None) -> tuple[str | Address, int]:
    try:
        return read_target(text, default_port)
    except ValueError as exc:
        raise BadRequest(403, f"it {exc}", text) from None
