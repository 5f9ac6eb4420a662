"""Says, in many ways, what it was told in confidence."""

import os
import sys
from pathlib import Path

from ostler.task import progress


def run(*, fail=False, name="TOKEN"):
    """Print the secret, name it in progress, and in an exception where asked."""
    value = os.environ[name]
    print("out:", value)
    print("err:", value, file=sys.stderr)
    progress(50, f"using {value}")
    for path in sorted(Path(os.environ["OSTLER_SECRETS_DIR"]).iterdir()):
        print(path.name, oct(path.stat().st_mode & 0o777), len(path.read_bytes()))
    if fail:
        raise ValueError("x" * 3990 + value)
