"""The keeper's command line: `--socket PATH --state DIR [--cgroup auto|v1|v2|none] [--detach] [--fork]`."""

import _socket
import fcntl
import gc
import os
import resource
import stat
import sys
import time

from ostler import __version__
from ostler.node.keeper import cgroups, kernel, proc, recovery, spawn, wire
from ostler.node.keeper.attempt import wipe
from ostler.node.keeper.journal import Journal, replace_file
from ostler.node.keeper.keeper import Keeper
from ostler.node.keeper.server import PROTOCOL, Server

_USAGE = """\
usage: python -m ostler.node.keeper --socket PATH --state DIR [--cgroup auto|v1|v2|none] [--detach] [--fork]

The parent of all attempts of one node. It must not be restarted when the daemon is.
  --socket PATH   where to listen; its directory must be this user's alone (0700) and is made if missing
  --state DIR     where it keeps what it must remember; one keeper per directory
  --cgroup KIND   which cgroups to use for attempts; auto takes version 1, else 2, else none
  --detach        go into the background once the socket listens
  --fork          start programs by forking, as where the helper in C was not built
"""
_LOCK_WAIT_S = 0.5
_LOCK_POLL_S = 0.02
_LONGEST_ADDRESS = 100


class Refused(Exception):
    """The keeper cannot start; the message says why and what to do."""


class Options:
    """The command line."""

    __slots__ = ("cgroup", "detach", "fork", "socket", "state")

    def __init__(self, arguments: list[str]) -> None:
        self.socket = self.state = ""
        self.cgroup = "auto"
        self.detach = self.fork = False
        waiting = iter(arguments)
        for argument in waiting:
            if argument == "--detach":
                self.detach = True
                continue
            if argument == "--fork":
                self.fork = True
                continue
            value = next(waiting, "")
            if argument == "--socket":
                self.socket = value
            elif argument == "--state":
                self.state = value
            elif argument == "--cgroup" and value in ("auto", "v1", "v2", "none"):
                self.cgroup = value
            else:
                raise Refused(f"{argument} {value}".strip() + ": not an option; see --help")
        if not self.socket.startswith("/") or not self.state.startswith("/"):
            raise Refused("--socket and --state must be given, as absolute paths; see --help")


def main(arguments: list[str]) -> int:
    """Run the keeper; returns the exit code: 0 after a shutdown, 1 when it cannot start, 2 for a wrong command line."""
    if "--help" in arguments or "-h" in arguments:
        sys.stdout.write(_USAGE)
        return 0
    try:
        options = Options(arguments)
    except Refused as error:
        sys.stderr.write(f"keeper: {error}\n")
        return 2
    try:
        return _run(options)
    except (Refused, OSError) as error:
        sys.stderr.write(f"keeper: {error}\n")
        return 1


def _run(options: Options) -> int:
    _close_what_was_inherited()
    _occupy_standard_streams()
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))  # a start request may hold secrets; an attempt may ask for its own back
    os.umask(0o022)  # what attempts inherit; the keeper names the mode of each file that it makes
    own_directory(os.path.dirname(options.socket))  # first: it may be the parent of the other, which gets no mode of its own
    own_directory(options.state)
    lock = _lock(options.state)
    ready = _detach() if options.detach else -1
    if options.detach:
        lock = _lock(options.state, holding=lock)
    os.chdir("/")
    kernel.become_subreaper()
    kernel.block_signals()
    if options.fork:
        spawn.fork_only()
    boot_id = proc.read("/proc/sys/kernel/random/boot_id", 64).decode().strip()
    keeper_id = _identity(options.state)
    journal = Journal(options.state + "/journal")
    groups = cgroups.detect(f"ostler-{keeper_id}", options.cgroup)
    records, new = _recover(journal, groups, keeper_id=keeper_id, boot_id=boot_id)
    listener = listen(options.socket)
    hello = {
        "keeper": PROTOCOL,
        "version": __version__,
        "pid": os.getpid(),
        "boot_id": boot_id,
        "cgroup": groups.version,
        "cgroup_controllers": groups.controllers,
        "waits": True,  # a start may wait for room
        "many": True,  # several attempts may be forgotten at once
    }
    server = Server(listener=listener, hello=hello, log=log)
    keeper = Keeper(boot_id=boot_id, keeper_id=keeper_id, journal=journal, cgroups=groups, publish=server.publish, log=log)
    keeper.take_over(records, new)
    log("keeper.started", {"pid": os.getpid(), "cgroup": groups.version, "lost": len(new), "ended": len(records)})
    if ready >= 0:
        os.write(ready, b"+")
        os.close(ready)
    # No cycles are made in the loop; frozen objects keep their pages shared with children between fork and exec.
    gc.collect()
    gc.freeze()
    gc.disable()
    server.serve(keeper)
    keeper.close()
    os.unlink(options.socket)
    log("keeper.stopped", {"pid": os.getpid()})
    os.close(lock)
    return 0


def log(event: str, attrs: dict[str, object]) -> None:
    """Write one line in the shape of the daemon's log to standard error; a full disk there must not matter."""
    now = time.time()
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}+00:00"
    line = wire.encode({"ts": at, "level": "info", "node_id": None, "job_id": None, "event": event, "attrs": attrs})
    try:
        os.write(2, line.encode() + b"\n")
    except OSError:
        pass


def _close_what_was_inherited() -> None:
    """Close all but the standard streams: every program would inherit it too, whatever its sandbox.

    uvloop leaves copies of a child's standard streams open in it, and of these one is the keeper's log.
    """
    for name in os.listdir("/proc/self/fd"):
        try:
            if int(name) > 2:
                os.close(int(name))
        except OSError:  # the listing's own
            pass


def _occupy_standard_streams() -> None:
    """Make sure that 0, 1 and 2 are taken: a file opened there would be mistaken for a standard stream."""
    while True:
        descriptor = os.open("/dev/null", os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            return
        os.set_inheritable(descriptor, True)


def own_directory(path: str) -> None:
    """Make a directory for this user alone, or see that it is one; raises Refused."""
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        found = os.stat(path)
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from None
    if found.st_uid != os.getuid():
        raise Refused(f"{path} belongs to user {found.st_uid}, not to this one ({os.getuid()})")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise Refused(f"{path} is open to others; make it this user's alone: chmod 700 {path}")


def _lock(state: str, holding: int = -1) -> int:
    """Hold the state directory; raises Refused when another keeper does.

    A keeper that was just killed may hold it for a moment more, through a child between fork and exec.
    """
    path = state + "/lock"
    descriptor = holding if holding >= 0 else os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
                raise Refused(f"another keeper (pid {owner}) holds {state}; there is one per state directory") from None
            time.sleep(_LOCK_POLL_S)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    return descriptor


def _detach() -> int:
    """Go on in a child with a session of its own; the parent waits for its word, then exits with 0, or 1 without one."""
    hear, say = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid:
        os.close(say)
        os._exit(0 if os.read(hear, 1) else 1)
    os.close(hear)
    os.setsid()
    return say


def _identity(state: str) -> str:
    """A random name for this state directory; it marks the processes and names the cgroups of its keepers."""
    path = state + "/id"
    known = proc.read(path, 64).decode("ascii", "replace").strip()
    if len(known) == 16 and known.isalnum():
        return known
    fresh = os.urandom(8).hex()
    replace_file(path, fresh + "\n")
    return fresh


def _recover(
    journal: Journal, groups: cgroups.Cgroups, *, keeper_id: str, boot_id: str
) -> tuple[list[dict[str, object]], dict[str, str]]:
    """See to what a killed keeper left; returns exit records, and key → record file of those not written yet."""
    started, ended = recovery.replay(journal.entries)
    journal.entries = []
    for key, start in list(started.items()):
        record = recovery.written_record(start)
        if record is not None:
            ended[key] = record
    starts = list(started.values())
    leftovers = recovery.Leftovers(keeper_id=keeper_id, boot_id=boot_id, starts=starts, groups=groups.leftovers())
    counts = leftovers.kill()
    for start in starts:
        wipe(start.get("wipe"))
    lost = [start for start in starts if start["key"] not in ended]
    new = {str(start["key"]): str(start["record"]) for start in lost if isinstance(start.get("record"), str)}
    return [*ended.values(), *recovery.lost_records(lost, counts)], new


def listen(path: str) -> "_socket.socket":
    """Listen at a path that only this user can reach. A longer one than the kernel takes is named by its directory."""
    directory, _, name = path.rpartition("/")
    holder = os.open(directory or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        address = path if len(os.fsencode(path)) <= _LONGEST_ADDRESS else f"/proc/self/fd/{holder}/{name}"
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            os.unlink(path)  # whoever listened there is dead: the lock is ours
        except FileNotFoundError:
            pass
        listener.bind(address)
        os.chmod(path, 0o600)
        listener.listen(64)
        listener.setblocking(False)
        return listener
    finally:
        os.close(holder)
