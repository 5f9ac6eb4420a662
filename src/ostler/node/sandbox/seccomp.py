"""The filter on system calls: which calls an attempt may not make, as a program for the kernel's seccomp machine.

It is a list of denials over a kernel that already holds the attempt back (no new privileges, no capabilities): it
takes away the calls with which sandboxes were left in the past, and leaves all that compilers, interpreters, ffmpeg
and CUDA need. A denied call answers an error, so that programs with a plan B use it; a program of a foreign
architecture is killed, since its numbers mean other calls.
"""

import errno
import os
import platform
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ostler.model.errors import InvalidSpec

# Numbers by (x86_64, aarch64); None where the architecture never had the call. The tests compare them with the
# kernel's headers.
NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "_sysctl": (156, None),
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "get_kernel_syms": (177, None),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioctl": (16, 29),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "query_module": (178, None),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "socket": (41, 198),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sysfs": (139, None),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}

# These are decided by an argument (below) and every machine has them; every other name of the table is always denied
# with EPERM.
_BY_ARGUMENT = ("clone", "clone3", "ioctl", "personality", "socket")

# CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}: threads and ordinary children set none of them.
NAMESPACE_FLAGS = 0x7E020000
# Put characters into the input of the terminal, from where they would run with another's rights.
TERMINAL_IOCTLS = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
# 0, 8 (Linux 32), their UNAME26 forms, and -1, which only asks.
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
# AF_UNIX, AF_INET, AF_INET6, AF_NETLINK. Others reach past the network namespace (AF_VSOCK: the hypervisor) or
# offer the kernel's less-walked code (AF_ALG, AF_PACKET, …).
SOCKET_FAMILIES = (1, 2, 10, 16)

_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_LEAF = 8  # so many cases are looked at one after the other: the quickest to install
_ERRNO = 0x00050000

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_RETURN = 0x06  # BPF_RET | BPF_K
_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_IF_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K

# struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6]. Both architectures are little-endian,
# and the kernel itself takes these arguments as 32 bits: comparing more would be a way around the filter.
_NR, _ARCH, _ARGS = 0, 4, 16
_X32_BIT = 0x40000000


@dataclass(frozen=True, slots=True)
class Machine:
    """An architecture that the filter can be made for: its column in `NUMBERS` and its AUDIT_ARCH value."""

    name: str
    column: int
    audit_arch: int


MACHINES = {
    "x86_64": Machine("x86_64", 0, 0xC000003E),
    "aarch64": Machine("aarch64", 1, 0xC00000B7),
}


@dataclass(frozen=True, slots=True)
class _Op:
    """One instruction; jumps name labels, and None goes on with the next instruction."""

    code: int
    k: int
    yes: str | None = None
    no: str | None = None
    label: str | None = None


def program(machine: str | None = None) -> bytes:
    """The filter for a machine (the running one by default) as an array of `struct sock_filter`.

    Raises InvalidSpec for a machine whose numbers are not known.
    """
    name = machine or platform.machine()
    if name not in MACHINES:
        raise InvalidSpec(f"no system call filter for the architecture {name!r}; known are {', '.join(MACHINES)}")
    return _assemble(_ops(MACHINES[name]))


def _ops(machine: Machine) -> list[_Op]:
    ops = [
        _Op(_LOAD, _ARCH),
        _Op(_IF_EQUAL, machine.audit_arch, no="kill"),
        _Op(_LOAD, _NR),
    ]
    if machine.name == "x86_64":
        ops.append(_Op(_IF_AT_LEAST, _X32_BIT, yes="kill"))
    listed = [(numbers[machine.column], name if name in _BY_ARGUMENT else "eperm") for name, numbers in NUMBERS.items()]
    ops.extend(_search(sorted((number, verdict) for number, verdict in listed if number is not None)))

    ops.append(_Op(_LOAD, _ARGS, label="clone"))
    ops.append(_Op(_IF_ANY_BIT, NAMESPACE_FLAGS, yes="eperm"))
    ops.append(_Op(_RETURN, _ALLOW))
    # Its flags lie behind a pointer that a filter cannot follow; at ENOSYS every libc falls back to clone.
    ops.append(_Op(_RETURN, _ERRNO | errno.ENOSYS, label="clone3"))
    ops.append(_Op(_LOAD, _ARGS + 8, label="ioctl"))
    ops.extend(_Op(_IF_EQUAL, value, yes="eperm") for value in TERMINAL_IOCTLS)
    ops.append(_Op(_RETURN, _ALLOW))
    ops.append(_Op(_LOAD, _ARGS, label="personality"))
    ops.extend(_Op(_IF_EQUAL, value, yes="allow") for value in PERSONALITIES)
    ops.append(_Op(_RETURN, _ERRNO | errno.EPERM, label="eperm"))
    ops.append(_Op(_LOAD, _ARGS, label="socket"))
    ops.extend(_Op(_IF_EQUAL, value, yes="allow") for value in SOCKET_FAMILIES)
    ops.append(_Op(_RETURN, _ERRNO | errno.EAFNOSUPPORT))
    ops.append(_Op(_RETURN, _ALLOW, label="allow"))
    ops.append(_Op(_RETURN, _KILL_PROCESS, label="kill"))
    return ops


def _search(cases: Sequence[tuple[int, str]], label: str | None = None) -> list[_Op]:
    """Where the loaded number goes on: at the verdict that its case names, or allowed. By halves: whenever a filter is installed, the
    kernel carries it out for every call that there is, to know which are always allowed."""
    if len(cases) > _LEAF:
        half = len(cases) // 2
        upper = f"from {cases[half][0]}"
        return [_Op(_IF_AT_LEAST, cases[half][0], yes=upper, label=label), *_search(cases[:half]), *_search(cases[half:], upper)]
    (first, verdict), *others = cases
    ops = [_Op(_IF_EQUAL, first, yes=verdict, label=label), *(_Op(_IF_EQUAL, number, yes=to) for number, to in others)]
    return [*ops, _Op(_RETURN, _ALLOW)]


def _assemble(ops: Sequence[_Op]) -> bytes:
    places = {op.label: index for index, op in enumerate(ops) if op.label}

    def distance(label: str | None, index: int) -> int:
        return 0 if label is None else places[label] - index - 1  # struct refuses what is not within 0..255

    return b"".join(
        struct.pack("<HBBI", op.code, distance(op.yes, index), distance(op.no, index), op.k) for index, op in enumerate(ops)
    )


def write_filter(path: Path, machine: str | None = None) -> Path:
    """Write the filter to `path` (0600), whole or not at all; an equal file is left as it is. Returns `path`."""
    code = program(machine)
    try:
        if path.read_bytes() == code:
            return path
    except FileNotFoundError:
        pass
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
    fresh = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(code)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    return path
