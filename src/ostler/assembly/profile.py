"""Profiles: small files of mode 0600 that say where a coordinator is and with which token; `ostler up` writes them.

`up` puts one into its data directory, always. The user's own, which commands read when nothing else is said, it writes only
where there is none, or where the one that stands there was written by an `up` on the same data, or by one that no longer runs. A
profile that a person made is never touched, and neither is that of another set that lives.
"""

import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ostler.model.errors import InvalidSpec

NAME = "profile.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One coordinator: its address, a token, the CA that signed its certificate where it is a private one, and the certificate to
    show where it asks for one.

    `data` is the data directory of the `ostler up` that wrote it; absent in a profile that a person made.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by the validator of human input

    url: str
    token: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    data: Path | None = None


_PLACES = ("ca_file", "client_cert", "client_key", "data")
_KEYS = frozenset({"url", "token", *_PLACES})


def user_profile(env: Mapping[str, str]) -> Path:
    """The profile that commands read: $OSTLER_PROFILE, or `ostler/profile.yaml` in the XDG configuration directory."""
    if env.get("OSTLER_PROFILE"):
        return Path(env["OSTLER_PROFILE"])
    home = env.get("XDG_CONFIG_HOME") or f"{env.get('HOME') or '~'}/.config"
    return Path(home).expanduser() / "ostler" / NAME


def read(path: Path, env: Mapping[str, str]) -> Profile:
    """Raises InvalidSpec where it is damaged, or where others could read the token."""
    facts = path.stat()
    if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o077:
        raise InvalidSpec(f"{path} holds a token and is not yours alone", hint=f"chown $USER {path} && chmod 600 {path}")
    try:
        found = yaml.safe_load(path.read_text())
        if isinstance(found, dict) and found.keys() <= _KEYS and all(isinstance(one, str) for one in found.values()):
            places = {key: Path(found[key]) for key in _PLACES if key in found}
            return Profile(**{**found, **places})
    except (yaml.YAMLError, TypeError, UnicodeDecodeError):
        pass  # what is wrong with it is said below
    # Only a profile that needs a complaint is worth loading the validator, which takes longer than most commands.
    from ostler.runtime.settings import load

    return load(Profile, file=path, env=env).value


def write(path: Path, profile: Profile) -> None:
    """The whole file or the one before, never readable for others."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = {key: getattr(profile, key) for key in _KEYS if getattr(profile, key) is not None}
    text = yaml.safe_dump({key: str(value) for key, value in known.items()})
    part = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(f"# Written by `ostler up`; made anew at each start.\n{text}")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
