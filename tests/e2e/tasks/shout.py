"""Prints many bytes."""

import sys


def run(megabytes=50):
    line = b"x" * 1023 + b"\n"
    for _ in range(megabytes * 1024):
        sys.stdout.buffer.write(line)
    sys.stdout.flush()
