"""One thing to be executed on a host, as a value: built by pure code, shown by `--dry-run`, carried out by a connection."""

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

OUTPUT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A step as it is asked of a program that answers many (`fleet.host.serving`): it is started by `start` with `program` on its standard
    input, which goes on with the words and the standard input of each question."""

    start: tuple[str, ...]
    program: bytes = field(repr=False)
    words: tuple[str, ...]
    stdin: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """`argv` with `stdin`, as root where `sudo` is set, for at most `timeout`. `title` is what a person reads; `codes` are the exit codes
    that are answers, any other one is a failure. `does` says more than the title, to whoever looks before. `stdin` are pieces, so that
    the steps of many hosts share a large one. `secret`: nobody is shown them, not even their hash. `question`: what comes to the same,
    and spares the host a start of the program."""

    title: str
    does: str = ""
    argv: tuple[str, ...]
    stdin: tuple[bytes, ...] = field(default=(), repr=False)
    sudo: bool = True
    timeout: timedelta = timedelta(seconds=60)
    codes: tuple[int, ...] = (0,)
    secret: bool = False
    question: Question | None = None

    def command(self, user: str) -> str:
        """What the host's shell is given: the one place where an argument list becomes text. Raises ValueError on a NUL."""
        return self._quoted(self.argv, user)

    def start(self, user: str) -> str:
        """The same of the program that answers its question."""
        return self._quoted(self.question.start if self.question else self.argv, user)

    def _quoted(self, argv: tuple[str, ...], user: str) -> str:
        return quoted(("sudo", "-n", "--", *argv) if self.sudo and user != "root" else argv)

    def shown(self, user: str) -> str:
        """For people: the command, and what its standard input is."""
        if not self.stdin:
            return self.command(user)
        size = sum(map(len, self.stdin))
        if self.secret:
            return f"{self.command(user)} < ({size} bytes, not shown)"
        digest = hashlib.sha256()
        for piece in self.stdin:
            digest.update(piece)
        return f"{self.command(user)} < ({size} bytes, sha256 {digest.hexdigest()[:16]}…)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a step ended; both outputs are cut at OUTPUT_BYTES."""

    code: int
    stdout: bytes
    stderr: bytes


def quoted(argv: Sequence[str]) -> str:
    """An argument list for a POSIX shell."""
    for argument in argv:
        if "\0" in argument:
            raise ValueError(f"an argument holds a NUL: {argument!r}")
    return shlex.join(argv)
