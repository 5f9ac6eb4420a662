"""`python -m ostler.cli.checked FILE` writes a node's configuration, checked, to standard output, which is a pipe to the daemon: it
holds secrets. Mistakes are told as by any command."""

import os
import sys
from pathlib import Path

from ostler.assembly import handover
from ostler.assembly.resolve import checked_node
from ostler.cli.exits import guard


def tell(file: Path, into: int) -> int:
    """Check the file as a node that starts here, and write what it says into that descriptor; the exit code."""

    def check() -> None:
        content = memoryview(handover.encode(checked_node(file, env=os.environ)))
        while content:
            content = content[os.write(into, content) :]

    return guard(check)


if __name__ == "__main__":
    sys.exit(tell(Path(sys.argv[1]), sys.stdout.fileno()))
