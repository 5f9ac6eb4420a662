"""How a checked configuration reaches a daemon: as JSON in a memory file whose descriptor the daemon inherits.

The one who checks it knows YAML, pydantic and the terminal; the daemon keeps none of them in memory. The text may hold a secret,
so it stands in no argument, no environment and no directory; only the number of the descriptor does.
"""

import os
from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def encode(config: Any) -> bytes:
    """A configuration as JSON, secrets included: for a pipe or a memory file, never for a disk."""
    return msgspec.json.encode(config, enc_hook=_plain)


def decode(content: bytes, shape: type[T]) -> T:
    """The configuration of `encode`; it was checked before, so anything that does not fit is a bug."""
    return msgspec.json.decode(content, type=shape, dec_hook=_typed)


def put(config: Any) -> int:
    """A descriptor that a program started by `exec` inherits, at its beginning."""
    descriptor = os.memfd_create("ostler-config", 0)
    content = memoryview(encode(config))
    while content:
        content = content[os.write(descriptor, content) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def read(descriptor: int) -> bytes:
    """All that an inherited descriptor holds; it is closed, so that no child of the daemon has it."""
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read()


def take(descriptor: int, shape: type[T]) -> T:
    """Read the configuration from an inherited descriptor."""
    return decode(read(descriptor), shape)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no place in a configuration")


def _typed(shape: type[Any], value: Any) -> Any:
    if shape is Path:
        return Path(value)
    raise TypeError(f"{shape.__name__} has no place in a configuration")
