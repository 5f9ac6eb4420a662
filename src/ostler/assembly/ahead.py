"""How `ostler node --config FILE` becomes the daemon at once: its configuration is checked by a child while it loads its own parts.

Nothing but the operating system is imported here: what this process imports is gone when it becomes the daemon.
"""

import os
import sys
from typing import NoReturn

NODE = "ostler.assembly.node"


def become_node(file: str, checker: str) -> NoReturn:
    """Replace this process by the daemon. The module `checker` is given FILE, writes the configuration to its standard output, or says
    what is wrong with it and ends with the exit code for that."""
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:  # a standard stream that was closed is not to be the pipe
        os.set_inheritable(spare, True)
    os.close(spare)
    read, write = os.pipe()
    os.set_inheritable(read, True)
    path = os.path.abspath(file)  # noqa: PTH100 - pathlib takes longer to load than all of this
    words = [sys.executable, "-P", "-m"]
    child = os.posix_spawn(sys.executable, [*words, checker, path], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)])
    os.close(write)
    told = ["--config-fd", str(read), "--checked-by", str(child), "--config-file", path]
    os.execv(sys.executable, [*words, NODE, *told])  # noqa: S606 - the same program, an argument list
