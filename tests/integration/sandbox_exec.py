"""Carries a sandbox plan (JSON in argv[1]) out in this very process, as its docstring says; the standard library alone.

It stands in for the node's keeper in the sandbox tests, so that these need neither keeper nor daemon.
"""

import ctypes
import json
import os
import sys

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, MODE_FILTER = 22, 38, 2


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


plan = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
code = b""
if plan["seccomp"]:
    with open(plan["seccomp"], "rb") as file:
        code = file.read()
for fd, path in plan["open_fds"].items():
    os.dup2(os.open(path, os.O_RDONLY), int(fd), inheritable=True)
os.chdir(plan["cwd"])
if plan["new_session"] and os.getpid() != os.getsid(0):
    os.setsid()
if plan["gid"] is not None:
    os.setgroups([])
    os.setgid(plan["gid"])
if plan["uid"] is not None:
    os.setuid(plan["uid"])
if plan["no_new_privs"] and libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
    raise OSError(ctypes.get_errno(), "no_new_privs")
if code and libc.prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.byref(Program(len(code) // 8, code)), 0, 0):
    raise OSError(ctypes.get_errno(), "seccomp")
os.execve(plan["argv"][0], plan["argv"], plan["env"])
