"""The services that a node's configuration declares, for the program that permits them to the node's user and links their programs.

`python -m ostler.assembly.declared FILE` writes them to standard output as JSON; mistakes go to standard error, with exit code 3.
"""

import json
import sys
from pathlib import Path
from typing import Any

from ostler.assembly.resolve import resolve_node
from ostler.model.errors import OstlerError
from ostler.node.config import NodeConfig


def declared(config: NodeConfig) -> list[dict[str, Any]]:
    """Name, unit and program of each; `expected` is where its unit looks for the program (None: nobody says)."""
    return [
        {
            "service": name,
            "unit": one.unit,
            "expected": None if one.binary is None else str(one.binary),
            "candidates": [str(place) for place in one.candidates],
            "version": one.version,
        }
        for name, one in config.services.items()
    ]


def main(arguments: list[str]) -> int:
    """See the module's first lines."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m ostler.assembly.declared FILE\n")
        return 2
    try:
        found = declared(resolve_node(Path(arguments[0]), env={}, need_secrets=False).value)
    except OstlerError as exc:
        sys.stderr.write(f"{exc}\n")
        return 3
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
