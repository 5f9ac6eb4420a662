"""Where the coordinator is and who we are: OSTLER_URL and OSTLER_TOKEN, else a profile."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from ostler.model.errors import Rejected

_FILES = ("OSTLER_CA_FILE", "OSTLER_CLIENT_CERT", "OSTLER_CLIENT_KEY")
HINT = "start one with `ostler up`, or set OSTLER_URL and OSTLER_TOKEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A coordinator to talk to; `origin` says what named it."""

    url: str
    token: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    origin: str


def find_endpoint(env: Mapping[str, str] | None = None) -> Endpoint:
    """The coordinator of this call. A profile's token never goes to another address than the profile's own."""
    found = look_for_endpoint(env)
    if found is None:
        raise Rejected("no coordinator is named", hint=HINT)
    return found


def look_for_endpoint(env: Mapping[str, str] | None = None) -> Endpoint | None:
    """The same, or None where nothing names one; raises Rejected for what cannot be used."""
    found = _look(os.environ if env is None else env)
    if found is not None:
        check_endpoint(found)
    return found


def check_endpoint(endpoint: Endpoint) -> None:
    """What could never reach a coordinator is told before anything is tried, and never with the token in the text."""
    try:
        address = urlsplit(endpoint.url)
        good = address.scheme in {"http", "https"} and bool(address.hostname) and address.port != 0
        good = good and endpoint.url.isprintable() and " " not in endpoint.url
    except ValueError:
        good = False
    if not good:
        hint = "it has the form http://HOST:PORT or https://HOST"
        raise Rejected(f"{endpoint.url!r}, named by {endpoint.origin}, is not the URL of a coordinator", hint=hint)
    if endpoint.token is not None and not (
        endpoint.token.isascii() and endpoint.token.isprintable() and " " not in endpoint.token
    ):
        raise Rejected("the token holds a character that no token has", hint="set OSTLER_TOKEN anew, as one line without spaces")
    if (endpoint.client_cert is None) != (endpoint.client_key is None):
        raise Rejected(
            "a client certificate needs its key, and a key its certificate",
            hint="set OSTLER_CLIENT_CERT and OSTLER_CLIENT_KEY, or client_cert and client_key in the profile",
        )


def _look(env: Mapping[str, str]) -> Endpoint | None:
    url, token = (env.get("OSTLER_URL") or "").rstrip("/") or None, env.get("OSTLER_TOKEN") or None
    if url is not None and token is not None:
        return _with_files(Endpoint(url=url, token=token, origin="OSTLER_URL"), env)
    # Imported late: reading a profile needs YAML and pydantic, which a call with variables does not.
    from ostler.assembly import profile

    path = profile.user_profile(env)
    if not path.exists():
        return None if url is None else _with_files(Endpoint(url=url, origin="OSTLER_URL"), env)
    found = profile.read(path, env)
    if url is not None and url != found.url.rstrip("/"):
        return _with_files(Endpoint(url=url, origin="OSTLER_URL"), env)
    own = Endpoint(
        url=found.url.rstrip("/"), token=token or found.token, ca_file=found.ca_file,
        client_cert=found.client_cert, client_key=found.client_key, origin=str(path),
    )  # fmt: skip
    return _with_files(own, env)


def _with_files(endpoint: Endpoint, env: Mapping[str, str]) -> Endpoint:
    """What OSTLER_CA_FILE, OSTLER_CLIENT_CERT and OSTLER_CLIENT_KEY name wins over a profile."""
    ca_file, cert, key = (Path(found) if (found := env.get(name)) else None for name in _FILES)
    return replace(
        endpoint,
        ca_file=ca_file or endpoint.ca_file,
        client_cert=cert or endpoint.client_cert,
        client_key=key or endpoint.client_key,
    )
