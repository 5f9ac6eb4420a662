"""Loads all that a host runs of a release, and says which version it is: `python -I -m ostler.assembly.trial [FILE
[ALLOWLIST]]`.

The host program runs it in a release that was just unpacked, before that gets its name. What does not load here would not start
there; and Python keeps the byte code of what it loads, which a daemon could not write. FILE is a node's configuration, ALLOWLIST a
folder: it also says whether this release accepts them, which the host would have to ask the next process otherwise.
"""

import gc
import importlib
import json
import os
import sys
from pathlib import Path

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


def main(arguments: list[str]) -> int:
    """Print `{"version": …, "reads": …}`; an error ends the program."""
    gc.disable()  # nothing that is loaded becomes garbage: looking for some takes an eighth of the time
    for part in PARTS:
        importlib.import_module(part)
    accepts = [accepted(Path(one)) for accepted, one in zip((_reads, _lists), arguments, strict=False)]
    said = {"version": ostler.__version__, "reads": bool(accepts) and all(accepts)}
    sys.stdout.write(json.dumps(said) + "\n")
    return 0


def _reads(file: Path) -> bool:
    from ostler.assembly.resolve import resolve_node  # loaded above, where an error in it belongs

    try:
        resolve_node(file, env=os.environ, need_secrets=False)
    except Exception:  # whatever it is: whether it starts is another question
        return False
    return True


def _lists(folder: Path) -> bool:
    from ostler.node.allowlist import load_allowlist

    try:
        load_allowlist([folder])
    except Exception:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
