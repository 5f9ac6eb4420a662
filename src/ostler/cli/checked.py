"""`python -m ostler.cli.checked FILE` writes a node's configuration, checked, to standard output, which is a pipe to the daemon: it
holds secrets. Mistakes are told as by any command."""

import os
import sys
from pathlib import Path

from ostler.assembly import handover, launch
from ostler.cli.exits import guard


def main() -> None:
    """Check the file that is named, as a node that starts here."""
    content = memoryview(handover.encode(launch.checked_node(Path(sys.argv[1]), env=os.environ)))
    while content:
        content = content[os.write(1, content) :]


if __name__ == "__main__":
    sys.exit(guard(main))
