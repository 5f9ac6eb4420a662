"""Loads all that a host runs of a release, and says which version it is: `python -I -m ostler.assembly.trial`.

The host program runs it in a release that was just unpacked, before that gets its name. What does not load here would not start
there; and Python keeps the byte code of what it loads, which a daemon could not write.
"""

import importlib
import json
import sys

import ostler

PARTS = (
    "ostler.assembly.launch",
    "ostler.assembly.node",
    "ostler.cli.main",
    "ostler.cli.nodes",
    "ostler.fleet.host.program",
    "ostler.node.daemon",
    "ostler.node.gate.proxy",
    "ostler.node.keeper.main",
    "ostler.node.self_check",
    "ostler.node.worker.serve",
)


def main() -> int:
    """Print `{"version": …}`; an error ends the program."""
    for part in PARTS:
        importlib.import_module(part)
    sys.stdout.write(json.dumps({"version": ostler.__version__}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
