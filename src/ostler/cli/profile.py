"""Where the coordinator is and who we are: OSTLER_URL and OSTLER_TOKEN, else a profile."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ostler.model.errors import Rejected

HINT = "start one with `ostler up`, or set OSTLER_URL and OSTLER_TOKEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A coordinator to talk to; `origin` says what named it."""

    url: str
    token: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    origin: str


def find_endpoint(env: Mapping[str, str] | None = None) -> Endpoint:
    """The coordinator of this call. A profile's token never goes to another address than the profile's own."""
    found = look_for_endpoint(env)
    if found is None:
        raise Rejected("no coordinator is named", hint=HINT)
    return found


def look_for_endpoint(env: Mapping[str, str] | None = None) -> Endpoint | None:
    """The same, or None where nothing names one; raises InvalidSpec for a profile that cannot be used."""
    env = os.environ if env is None else env
    url, token = (env.get("OSTLER_URL") or "").rstrip("/") or None, env.get("OSTLER_TOKEN") or None
    if url is not None and token is not None:
        return Endpoint(url=url, token=token, ca_file=_ca_file(env), origin="OSTLER_URL")
    # Imported late: reading a profile needs YAML and pydantic, which a call with variables does not.
    from ostler.assembly import profile

    path = profile.user_profile(env)
    if not path.exists():
        return None if url is None else Endpoint(url=url, ca_file=_ca_file(env), origin="OSTLER_URL")
    found = profile.read(path, env)
    if url is not None and url != found.url.rstrip("/"):
        return Endpoint(url=url, ca_file=_ca_file(env), origin="OSTLER_URL")
    ca_file = _ca_file(env) or found.ca_file
    return Endpoint(url=found.url.rstrip("/"), token=token or found.token, ca_file=ca_file, origin=str(path))


def _ca_file(env: Mapping[str, str]) -> Path | None:
    return Path(env["OSTLER_CA_FILE"]) if env.get("OSTLER_CA_FILE") else None
