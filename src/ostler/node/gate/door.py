"""The gate's door inside a sandbox: `python -I -S door.py DESCRIPTOR PORT -- COMMAND…`.

It listens on the sandbox's own loopback, hands the listening socket out through the descriptor to the gate, which runs in the
host's network, and becomes the command. Nothing of it stays: no process, no file, no descriptor.
"""

import os
import signal
import socket
import sys

# More than a program opens before the gate has begun to accept.
_BACKLOG = 128


def main(arguments: list[str]) -> None:
    """Never returns. What goes wrong is told as bwrap tells it: the node knows that form."""
    descriptor, port, command = int(arguments[0]), int(arguments[1]), arguments[3:]
    try:
        with socket.socket(fileno=descriptor) as channel, socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            listener.listen(_BACKLOG)
            socket.send_fds(channel, [b"+"], [listener.fileno()])
    except OSError as exc:
        sys.exit(f"bwrap: the door of the network gate: {exc.strerror}")
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and what it executes would too
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execv(command[0], command)  # noqa: S606
    except OSError as exc:
        sys.exit(f"bwrap: execvp {command[0]}: {exc.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
