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
    """Print `{"version": …, "reads": …, "needs": […]}`, the last the paths that must be there for that; an error ends the program."""
    gc.disable()  # nothing that is loaded becomes garbage: looking for some takes an eighth of the time
    for part in PARTS:
        importlib.import_module(part)
    file, folder = [Path(one) for one in (*arguments, "", "")[:2]]
    needs = _needs(file) if arguments else None
    reads = needs is not None and (not arguments[1:] or _lists(folder))
    said = {"version": ostler.__version__, "reads": reads, "needs": needs or []}
    sys.stdout.write(json.dumps(said) + "\n")
    return 0


def _needs(file: Path) -> list[str] | None:
    """What the configuration names and this host has; None where it is not accepted."""
    from ostler.assembly import resolve  # loaded above, where an error in it belongs

    try:
        loaded = resolve.resolve_node(file, env=os.environ, need_secrets=False)
        return None if resolve.host_problems(loaded) else resolve.needed_paths(loaded)
    except Exception:  # whatever it is: whether it starts is another question
        return None


def _lists(folder: Path) -> bool:
    from ostler.node.allowlist import load_allowlist

    try:
        load_allowlist([folder])
    except Exception:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
