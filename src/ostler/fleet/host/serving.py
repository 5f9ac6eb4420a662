"""One run of the host program that answers questions one after another: each is a verb, in a child of its own that has all loaded already.

A question is a line of JSON (`words`, as on a command line, and `size`, the bytes of standard input that follow it); so is the answer
(`code`, the sizes of `stdout` and `stderr`, which follow it, and whether it is the `last`). Whatever ends the connection ends this, and no
verb that is at work.
"""

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence

_PIECE = 1 << 18


def serve(main: Callable[[Sequence[str]], int]) -> int:
    """Until standard input ends. `main` carries out the words of a question."""
    with open(0, "rb", buffering=0, closefd=False) as questions:  # what is read ahead would be no child's
        while head := questions.readline():
            asked = json.loads(head)
            if not _answer(main, asked["words"], asked["size"]):
                break
    return 0


def _answer(main: Callable[[Sequence[str]], int], words: Sequence[str], size: int) -> bool:
    """Whether the next question can be read: the child may have ended without all of its standard input."""
    said = [os.memfd_create(name) for name in ("stdout", "stderr")]
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.close(write)
        for descriptor, stream in zip((read, *said), (0, 1, 2), strict=True):
            os.dup2(descriptor, stream)
        _carry_out(main, words)
    os.close(read)
    left = _feed(write, size)
    os.close(write)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sizes = [os.lseek(one, 0, os.SEEK_END) for one in said]
    _say(json.dumps({"code": code, "stdout": sizes[0], "stderr": sizes[1], "last": left > 0}).encode() + b"\n")
    for one, length in zip(said, sizes, strict=True):
        _say(os.pread(one, length, 0))
        os.close(one)
    return left == 0


def _carry_out(main: Callable[[Sequence[str]], int], words: Sequence[str]) -> None:
    """In the child, which ends here."""
    code = 1
    try:
        code = main(words)
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)


def _feed(into: int, size: int) -> int:
    """Hand on so many bytes of standard input; answers how many were left where nobody reads them any more."""
    left = size
    while left and (piece := os.read(0, min(_PIECE, left))):
        left -= len(piece)
        try:
            while piece:
                piece = piece[os.write(into, piece) :]
        except BrokenPipeError:
            return left + len(piece)
    return left


def _say(content: bytes) -> None:
    while content:
        content = content[os.write(1, content) :]
