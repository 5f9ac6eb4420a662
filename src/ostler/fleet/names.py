"""Names that hosts, users and groups may have: whatever is read here can stand in an argv or a shell's line as it is. Pure.

A reader answers the value in its one form, or raises ValueError with a message that goes on from "it …" and says why.
"""

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from ostler.model.manifest import LABEL_KEY, NAME
from ostler.model.network import plain

MAX_NAME = 253  # what the 255 octets of RFC 1035 leave for a name as text
MAX_LABEL = 63  # RFC 1123, section 2.1
MAX_USER = 32  # as useradd has it
MAX_WORD = 63

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_ALIAS = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?")
# What a name ends with is a number to every program that reads addresses as C does: 127.1, 0x7f.1, 2130706433.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT = re.compile(r"[0-9]{1,5}")
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_OBEYED = frozenset("$`;&|<>(){}!*?\"'\\~#^=%,")  # by a shell, by SSH's configuration, or as what stands between two names


def read_address(text: str) -> str:
    """Where a host answers: a name by RFC 1123 in lower case, or an IPv4 or IPv6 address, the latter without its brackets."""
    return _host(text, _LABEL)


def read_host(text: str) -> str:
    """What an inventory calls a host. Unlike an address, it may have underscores: nobody resolves it."""
    return _host(text, _ALIAS)


def read_user(text: str) -> str:
    """A user to log in as."""
    user = _word(text, _WORD, MAX_USER)
    if user.isdigit():
        raise ValueError("is a number, which programs take for a user's id; write the user's name")
    return user


def read_port(value: str | int) -> int:
    """A port from 1 to 65535, as a number or in digits."""
    port = value if isinstance(value, int) and not isinstance(value, bool) else 0
    if isinstance(value, str) and value.isascii() and _PORT.fullmatch(value):
        port = int(value)
    if not 1 <= port <= 65535:
        raise ValueError("is no port; a port is a number from 1 to 65535")
    return port


def read_group(text: str) -> str:
    """The name of a group of hosts."""
    return _word(text, _WORD, MAX_WORD)


def read_pool(text: str) -> str:
    """The name of a pool or a region, as nodes know it."""
    return _word(text, NAME, MAX_WORD)


def read_label(text: str) -> str:
    """The key of a label, as manifests know it."""
    if not LABEL_KEY.fullmatch(text):
        raise ValueError("is no key of a label; one has 1 to 63 letters, digits, '.', '_', '-' or '/'")
    return text


def read_path(text: str) -> str:
    """A file's path to hand to programs."""
    if not text:
        raise ValueError("is empty")
    if text.startswith("-"):
        raise ValueError("begins with '-', as an option does; write ./ before it")
    if not text.isprintable():
        raise ValueError(f"holds {_first(text, _unprintable)}, a control character")
    return text


def split_target(text: str) -> tuple[str | None, str, str | None]:
    """`[USER@]HOST[:PORT]` as three texts, none of them read yet. IPv6 with a port stands in brackets."""
    user, at, host = text.rpartition("@")
    port = None
    if host.startswith("["):
        inside, bracket, after = host.partition("]")
        if not bracket or (after and not after.startswith(":")):
            raise ValueError("must be [ADDRESS] or [ADDRESS]:PORT")
        host, port = inside + bracket, after[1:] if after else None
    elif host.count(":") == 1:
        host, _, port = host.partition(":")
    return (user if at else None), host, port


def _host(text: str, label: re.Pattern[str]) -> str:
    if text.startswith("[") or text.count(":") > 1:
        return _ipv6(text)
    _refuse_strange(text)
    if "@" in text:
        raise ValueError("holds '@'; a user is named apart from the host, or in front of it where USER@HOST is asked for")
    if ":" in text:
        raise ValueError("holds ':'; a port is named apart from the host, or behind it where HOST:PORT is asked for")
    name = text.removesuffix(".").lower()
    if len(name) > MAX_NAME:
        raise ValueError(f"has {len(name)} characters; names of hosts have up to {MAX_NAME}")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(name))
        except ValueError:
            raise ValueError("looks like an IPv4 address and is none; write four numbers from 0 to 255") from None
    for one in labels:
        _refuse_label(one, label)
    return name


def _refuse_label(text: str, label: re.Pattern[str]) -> None:
    if not text:
        raise ValueError("has nothing before, after or between dots")
    if len(text) > MAX_LABEL:
        raise ValueError(f"has a part of {len(text)} characters; between dots stand up to {MAX_LABEL}")
    if label.fullmatch(text):
        return
    if text.startswith("-") or text.endswith("-"):
        raise ValueError(f"has the part {text!r}, which begins or ends with '-'")
    if "_" in text and label is _LABEL:
        raise ValueError("holds '_', which no name of a host has; give the host an address of its own")
    odd = _first(text, lambda c: not (c.isalnum() or c in "-_"))
    raise ValueError(f"holds {odd}; names of hosts have letters, digits, '-' and '.'")


def _ipv6(text: str) -> str:
    if text.startswith("[") != text.endswith("]"):
        raise ValueError("has one bracket of two")
    if "%" in text:
        raise ValueError("names the zone of an address ('%'), which means another network on each machine")
    try:
        return str(plain(IPv6Address(text.removeprefix("[").removesuffix("]"))))
    except ValueError:
        raise ValueError("has colons, but is no IPv6 address") from None


def _word(text: str, pattern: re.Pattern[str], most: int) -> str:
    _refuse_strange(text)
    if len(text) > most:
        raise ValueError(f"has {len(text)} characters; {most} is the most")
    if not pattern.fullmatch(text):
        odd = _first(text, lambda c: not (c.isalnum() or c in "_.-"))
        raise ValueError(f"holds {odd}" if odd else f"begins with {text[0]!r}; write a letter or a digit first")
    return text


def _refuse_strange(text: str) -> None:
    """What no name may have, told by what it would do."""
    if not text:
        raise ValueError("is empty")
    if text.startswith("-"):
        raise ValueError("begins with '-', as an option does")
    if "\n" in text or "\r" in text:
        raise ValueError("holds a line break")
    if any(_unprintable(c) for c in text):
        raise ValueError(f"holds {_first(text, _unprintable)}, a control character")
    obeyed = _first(text, _OBEYED.__contains__)
    if obeyed:
        raise ValueError(f"holds {obeyed}, which a shell or SSH obeys")
    if " " in text:
        raise ValueError("holds a space; a name is one word")
    if "/" in text or text.startswith(".."):
        raise ValueError("is a path, not a name")
    if not text.isascii():
        raise ValueError(
            f"holds {_first(text, lambda c: not c.isascii())}, which is not ASCII; international names have an xn-- form"
        )


def _unprintable(character: str) -> bool:
    return not character.isprintable()


def _first(text: str, test: Callable[[str], bool]) -> str:
    """The first character that fits, and its place."""
    return next((f"{c!r} (character {i})" for i, c in enumerate(text, 1) if test(c)), "")
