"""Start of an attempt with a network gate: `python -I -S …/gate/__main__.py ORDER -- BWRAP…`, ORDER being JSON (see `proxy.Order`).

It leaves the gate behind and becomes bwrap, so that to the keeper the attempt is bwrap's. The gate is an orphan in the
attempt's session and cgroup: it lives and dies under the keeper, whatever becomes of the node's daemon. The channel between
the two is a pair of sockets. `door` sends the listening socket through it from inside; bwrap keeps a copy open while there is
a sandbox (`--sync-fd`, which it closes for the command), so its end of file is the gate's word to end.
"""

import os
import signal
import socket
import sys

SYNC_FD, DOOR_FD = 6, 7


def main(arguments: list[str]) -> None:
    """Never returns."""
    order, command = arguments[0], arguments[2:]
    here, there = socket.socketpair()
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            there.close()
            _become_gate(order, here)
        os._exit(0)
    os.waitpid(child, 0)  # bwrap must not have a child that it does not know
    here.close()
    for descriptor in (SYNC_FD, DOOR_FD):
        os.dup2(there.fileno(), descriptor, inheritable=True)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and what it executes would too
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execv(command[0], command)  # noqa: S606
    except OSError as exc:
        sys.stderr.write(f"bwrap: {command[0]}: {exc.strerror}\n")
        os._exit(1)


def _become_gate(order: str, channel: socket.socket) -> None:
    """What belongs to the job or to bwrap is let go of first: its variables would act on resolver and libraries here."""
    os.environ.clear()
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != channel.fileno():
            try:
                os.close(int(name))
            except OSError:  # the listing's own
                pass
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # a job that is asked to end may still send its last
        signal.signal(number, signal.SIG_IGN)
    sys.modules["ssl"] = None  # type: ignore[assignment]  # asyncio would load it: megabytes that nothing here uses
    try:
        from ostler.node.gate import proxy

        proxy.run(order, channel)
    except Exception as exc:  # a bug; the job, which finds its network gone, shall see why
        os.write(2, f"ostler: the network gate broke: {exc!r}\n".encode("ascii", "backslashreplace"))
    finally:
        os._exit(1)


if __name__ == "__main__":
    package = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, os.path.normpath(os.path.join(package, *[os.pardir] * 3)))
    main(sys.argv[1:])
