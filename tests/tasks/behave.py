"""A task that does what a test asks of it, well or badly."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

from ostler.task import progress


def run(do: str = "nothing", **more):
    return globals()[f"_{do}"](**more)


def _nothing():
    return None


def _give(value):
    return value


def _say(out="", err=""):
    print(out)
    print(err, file=sys.stderr)


def _shout(mb):
    line = "x" * 1023
    for _ in range(mb * 1024):
        print(line)


def _c_say(text):
    """Left in C's own buffer, as a library would."""
    libc = ctypes.CDLL(None)
    libc.printf(b"%s", text.encode())


def _fail(message):
    raise ValueError(message)


def _leave(code):
    sys.exit(code)


def _exit_hard(code):
    os._exit(code)


def _crash():
    ctypes.string_at(0)


def _signal(number):
    os.kill(os.getpid(), number)


def _wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.01)
    return "seen"


def _hang_in_c(seconds):
    """A C call that holds the interpreter lock, with all the signals that may be blocked blocked."""
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
    ctypes.PyDLL(None).sleep(int(seconds))


def _ignore_term(path):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(path, "w").close()
    time.sleep(600)


def _children(path, detach=False):
    """Leave a process behind; its pid goes to a file."""
    script = f"echo $$ > {path}.new; mv {path}.new {path}; exec sleep 600"
    command = ["sh", "-c", f"setsid sh -c '{script}' &"] if detach else ["sh", "-c", script]
    child = subprocess.Popen(command)
    if detach:
        child.wait()
    while not os.path.exists(path):
        time.sleep(0.005)


def _thread():
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()


def _fork_and_return():
    """The child comes back out of run() as well."""
    if os.fork() == 0:
        return "child"
    os.wait()
    return "parent"


def _surroundings():
    return {
        "cwd": os.getcwd(),
        "env": dict(os.environ),
        "pid": os.getpid(),
        "stdin": os.readlink("/proc/self/fd/0"),
        "path": sys.path,
        "python": sys.executable,
    }


def _spoil():
    os.chdir("/")
    os.environ.clear()
    os.umask(0)
    sys.path.clear()
    sys.stdout.close()
    sys.stderr = None
    return "spoilt"


def _umask():
    old = os.umask(0)
    os.umask(old)
    return old


def _tell(count, pause=0.0):
    for number in range(count):
        progress(100 * number / count, f"step {number}")
        time.sleep(pause)


def _use_memory(mb):
    return len(bytearray(os.urandom(1024) * 1024 * mb))


def _fill(path, mb):
    with open(path, "wb") as file:
        for _ in range(mb):
            file.write(os.urandom(1 << 20))
            file.flush()
    time.sleep(600)


async def _co(value):
    return value


def _note(path, word):
    with open(path, "a") as file:
        file.write(f"{word}\n")
