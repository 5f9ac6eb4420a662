"""A trusted task of chaos runs: what `body.sh` does, as a Python function in a warm worker."""

import os
import sys
import time
from pathlib import Path

from ostler.task import attempt, job_id


def run(number, lines, errors, place):
    """Writes its journal and its lines."""
    turn = attempt()
    nonce = f"{os.getpid()}-{time.monotonic_ns()}"
    journal = os.open(Path(place) / "journals" / str(number), os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(word, what):
        up = time.clock_gettime(time.CLOCK_BOOTTIME)
        os.write(journal, f"{word} {job_id()} {turn} {nonce} {up:.2f} {what}\n".encode())

    note("begin", os.getcwd())
    try:
        for i in range(lines):
            print(f"line {i} of {number} {turn} {nonce}")
        for i in range(errors):
            print(f"error {i} of {number} {turn} {nonce}", file=sys.stderr)
        sys.stdout.flush()
        note("end", "0")
    finally:
        os.close(journal)
    return number
