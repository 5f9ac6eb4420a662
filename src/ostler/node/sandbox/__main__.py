"""`python -P -m ostler.node.sandbox STATE`: what sandboxes there can be where this runs, as JSON on standard output.

A daemon that may make no namespaces itself has its keeper start this.
"""

import sys
from pathlib import Path

import msgspec

from ostler.node.sandbox.abilities import abilities, observe
from ostler.node.sandbox.found import Found


def main(arguments: list[str]) -> int:
    """See the module's first lines."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -P -m ostler.node.sandbox STATE\n")
        return 2
    host = observe(Path(arguments[0]))
    sys.stdout.buffer.write(msgspec.json.encode(Found(host=host, abilities=abilities(host))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
