"""The filter, judged by a small machine of the kind that the kernel runs it on, and its numbers by the kernel's headers."""

import errno
import re
import stat
import struct
from pathlib import Path

import pytest

from ostler.model.errors import InvalidSpec
from ostler.node.sandbox import seccomp

ALLOW, KILL = "allow", "kill"
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386 = 0x40000003
ARM = 0x40000028


def verdict(machine: str, nr: int, *args: int, arch: int | None = None) -> str | int:
    """Run the program on one call as the kernel's BPF machine does: allow, kill, or the error number."""
    code = list(struct.iter_unpack("<HBBI", seccomp.program(machine)))
    call = struct.pack("<IIQ6Q", nr, ARCH[machine] if arch is None else arch, 0, *args, *[0] * (6 - len(args)))
    accumulator, at = 0, 0
    while True:
        op, yes, no, k = code[at]
        at += 1
        if op == 0x20:
            (accumulator,) = struct.unpack_from("<I", call, k)
        elif op == 0x06:
            action = k & 0xFFFF0000
            return {0x7FFF0000: ALLOW, 0x80000000: KILL}.get(action, k & 0xFFFF)
        else:
            taken = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[op]
            at += yes if taken else no


def number(name: str, machine: str) -> int | None:
    return seccomp.NUMBERS[name][seccomp.MACHINES[machine].column]


@pytest.fixture(params=["x86_64", "aarch64"])
def machine(request: pytest.FixtureRequest) -> str:
    return request.param


BY_ARGUMENT = {"clone", "clone3", "ioctl", "personality", "socket"}


def test_every_listed_call_is_denied(machine: str) -> None:
    for name in seccomp.NUMBERS.keys() - BY_ARGUMENT:
        nr = number(name, machine)
        if nr is not None:
            assert verdict(machine, nr) == errno.EPERM, name


def test_every_other_call_is_allowed(machine: str) -> None:
    listed = {number(name, machine) for name in seccomp.NUMBERS}
    for nr in range(1000):
        if nr not in listed:
            assert verdict(machine, nr) == ALLOW


WAYS_OUT = """
    ptrace process_vm_readv process_vm_writev kexec_load kexec_file_load init_module finit_module delete_module bpf
    perf_event_open mount umount2 pivot_root move_mount open_tree fsopen fsmount fsconfig mount_setattr setns unshare
    keyctl add_key request_key userfaultfd reboot swapon swapoff acct quotactl settimeofday clock_settime adjtimex
    iopl ioperm io_uring_setup io_uring_enter io_uring_register syslog nfsservctl lookup_dcookie open_by_handle_at
"""


def test_the_known_ways_out_are_listed() -> None:
    assert set(WAYS_OUT.split()) <= seccomp.NUMBERS.keys()


def test_foreign_programs_are_killed() -> None:
    assert verdict("x86_64", 0, arch=I386) == KILL
    assert verdict("aarch64", 0, arch=ARM) == KILL
    assert verdict("x86_64", 0, arch=ARCH["aarch64"]) == KILL
    assert verdict("x86_64", 0x40000000) == KILL, "x32: read under another number"
    assert verdict("x86_64", 0x40000000 + 101) == KILL


def test_threads_and_children_may_be_made_and_namespaces_may_not(machine: str) -> None:
    clone = number("clone", machine)
    assert verdict(machine, clone, 0x003D0F00) == ALLOW, "glibc's pthread_create"
    assert verdict(machine, clone, 0x01200011) == ALLOW, "glibc's fork"
    assert verdict(machine, clone, 0x4111) == ALLOW, "vfork: CLONE_VM | CLONE_VFORK | SIGCHLD"
    for bit in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(machine, clone, bit | 17) == errno.EPERM
    assert verdict(machine, number("clone3", machine)) == errno.ENOSYS


def test_the_high_half_of_an_argument_is_no_way_around(machine: str) -> None:
    assert verdict(machine, number("ioctl", machine), 0, 0xFFFFFFFF_00005412) == errno.EPERM
    assert verdict(machine, number("clone", machine), 0xFFFFFFFF_10000011) == errno.EPERM
    assert verdict(machine, number("socket", machine), 0xFFFFFFFF_00000028) == errno.EAFNOSUPPORT


def test_terminal_input_cannot_be_forged(machine: str) -> None:
    ioctl = number("ioctl", machine)
    assert verdict(machine, ioctl, 0, 0x5412) == errno.EPERM
    assert verdict(machine, ioctl, 0, 0x541C) == errno.EPERM
    assert verdict(machine, ioctl, 0, 0x5401) == ALLOW, "TCGETS"


def test_socket_families(machine: str) -> None:
    socket = number("socket", machine)
    for family in (1, 2, 10, 16):
        assert verdict(machine, socket, family) == ALLOW
    for family in (17, 38, 40, 44):
        assert verdict(machine, socket, family) == errno.EAFNOSUPPORT


def test_personalities(machine: str) -> None:
    assert verdict(machine, number("personality", machine), 0xFFFFFFFF) == ALLOW
    assert verdict(machine, number("personality", machine), 0x0040000) == errno.EPERM, "no address randomisation"


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="riscv64"):
        seccomp.program("riscv64")


def test_the_file_is_private_and_written_once(tmp_path: Path) -> None:
    path = seccomp.write_filter(tmp_path / "seccomp.bpf", "x86_64")
    assert path.read_bytes() == seccomp.program("x86_64")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.stat().st_ino
    assert seccomp.write_filter(path, "x86_64").stat().st_ino == before
    path.write_bytes(b"torn")
    assert seccomp.write_filter(path, "x86_64").read_bytes() == seccomp.program("x86_64")
    assert [entry.name for entry in tmp_path.iterdir()] == ["seccomp.bpf"]


HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def test_numbers_are_the_kernel_headers(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip(f"the kernel's headers are not installed ({HEADERS[machine]}; apt: linux-libc-dev)")
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text()))
    for name in seccomp.NUMBERS:
        ours = number(name, machine)
        if name in found:
            assert ours == int(found[name]), name
        elif ours is not None:
            assert ours > 450, f"{name}: only calls newer than these headers may be missing from them"
