"""How a unit starts the node's daemon, whose keeper is a unit of its own: this process becomes it, and a child that parts from it before
checks the configuration, so that what that takes (YAML, the validator, the terminal) never is in this one's memory.

What both need is loaded here, once: to load it is most of what a start costs. Nothing of the command line is.
"""

import os
from pathlib import Path

from ostler.assembly import handover
from ostler.node.config import NodeConfig

__all__ = ["NodeConfig", "handover", "start"]


def start(file: str) -> int:
    """Run the daemon; its exit code, or that of a configuration which is no good, whose mistakes are told as by any command."""
    path = Path(file).absolute()
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:  # a standard stream that was closed is not to be the pipe
        os.set_inheritable(spare, True)
    os.close(spare)
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.close(read)  # or it would never hear that nobody reads
        from ostler.cli import checked

        os._exit(checked.tell(path, write))
    os.close(write)
    from ostler.assembly import node

    return node.main(["--config-fd", str(read), "--checked-by", str(child), "--config-file", str(path), "--await-keeper"])
