"""Plans carried out for real: what a command in a sandbox can and cannot do, as root and as an ordinary user."""

import errno
import os
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from ostler.model.sandbox import SandboxLevel
from ostler.node import sandbox
from ostler.node.sandbox import Host, SandboxPlan

BWRAP, PROCESS, NONE = SandboxLevel.BWRAP, SandboxLevel.PROCESS, SandboxLevel.NONE
PYTHON = "/usr/bin/python3"
NOBODY = 65534
EXECUTOR = Path(__file__).with_name("sandbox_exec.py")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="sandboxes are Linux's"),
    pytest.mark.skipif(not shutil.which("bwrap", path="/usr/bin:/bin"), reason="no bwrap (apt-get install bubblewrap)"),
    pytest.mark.skipif(not Path(PYTHON).exists(), reason=f"no {PYTHON} (apt-get install python3)"),
]


@dataclass
class Box:
    """A workspace of a user, and a way to run commands in it at a level."""

    host: Host
    base: Path
    uid: int | None
    network: bool = False

    @property
    def workspace(self) -> Path:
        return self.base / "jobs/j-1"

    @property
    def work(self) -> Path:
        return self.workspace / "work"

    @property
    def output(self) -> Path:
        return self.workspace / "output"

    def plan(self, *argv: str, level: SandboxLevel = BWRAP, **changes: Any) -> SandboxPlan:
        given: dict[str, Any] = {
            "host": self.host,
            "workspace": str(self.workspace),
            "argv": argv,
            "env": {"PATH": "/usr/bin:/bin", "HOME": str(self.work)},
            "uid": self.uid,
            "gid": self.uid,
        }
        return sandbox.plan(level, **given | changes)

    def start(self, plan: SandboxPlan, **options: Any) -> "subprocess.Popen[str]":
        plan_text = msgspec.json.encode(plan).decode()
        return subprocess.Popen(
            [PYTHON, "-I", str(EXECUTOR), plan_text],
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options,
        )

    def run(self, *argv: str, stdin: str = "", **changes: Any) -> "subprocess.CompletedProcess[str]":
        with self.start(self.plan(*argv, **changes), stdin=subprocess.PIPE) as process:
            out, err = process.communicate(stdin, timeout=60)
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def sh(self, script: str, **changes: Any) -> "subprocess.CompletedProcess[str]":
        return self.run("/bin/bash", "-c", script, **changes)

    def says(self, script: str, **changes: Any) -> str:
        done = self.sh(script, **changes)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    state = Path(tempfile.mkdtemp(prefix="ostler-sandbox-state-"))
    state.chmod(0o755)
    try:
        yield sandbox.observe(state / "sandbox")
    finally:
        shutil.rmtree(state)


@pytest.fixture(params=["root", "ordinary", "bubblewrap"])
def box(request: pytest.FixtureRequest, host: Host) -> Iterator[Box]:
    """A workspace in a world-readable place; for each kind of user that this run can be, and with bubblewrap where our own program is."""
    root = os.getuid() == 0
    if request.param == "root" and not root:
        pytest.skip("not root")
    uid = NOBODY if root and request.param == "ordinary" else None
    base = Path(tempfile.mkdtemp(prefix="ostler-sandbox-test-"))
    base.chmod(0o755)
    try:
        made = Box(host if request.param != "bubblewrap" else replace(host, own=None), base, uid)
        for job in ("j-1", "j-2"):
            for name in ("input", "work", "output", "logs"):
                (base / "jobs" / job / name).mkdir(parents=True)
            (base / "jobs" / job / "input/in.txt").write_text(f"input of {job}")
            (base / "jobs" / job / "work/in.txt").symlink_to("../input/in.txt")
            (base / "jobs" / job / "logs/exec.log").write_text("log")
        if uid is not None:
            for path in (base / "jobs").rglob("*"):
                os.chown(path, uid, uid, follow_symlinks=False)
        (base / "secret").write_text("of the host")
        yield made
    finally:
        shutil.rmtree(base)


# --- the workspace -------------------------------------------------------------------------------------------------


def test_the_workspace_lies_where_it_lies_outside(box: Box) -> None:
    assert box.says("pwd") == str(box.work)
    assert box.says("cat in.txt") == "input of j-1", "a link to ../input"
    assert box.says(f"cat {box.workspace}/input/in.txt") == "input of j-1"
    box.says(f"echo out > {box.output}/out.txt && mkdir -p a/b && echo x > a/b/c")
    assert (box.output / "out.txt").read_text() == "out\n"
    assert (box.work / "a/b/c").stat().st_uid == (box.uid or os.getuid())


def test_the_input_is_read_only_and_the_rest_of_the_attempt_unseen(box: Box) -> None:
    box.sh(f"touch {box.workspace}/new {box.base}/new")
    assert not (box.workspace / "new").exists()
    assert not (box.base / "new").exists()
    for command in ("echo x > {}/input/new", "rm {}/input/in.txt", "echo x > {}/input/in.txt"):
        done = box.sh(command.format(box.workspace))
        assert done.returncode != 0
        assert "Read-only file system" in done.stderr
    assert box.says(f"ls -A {box.workspace}").split() == ["input", "output", "work"]


def test_nothing_else_of_the_host_is_seen(box: Box) -> None:
    for path in (
        box.base / "secret",
        box.base / "jobs/j-2/input/in.txt",
        Path(box.host.seccomp or ""),
        "/etc/shadow",
        "/etc/hostname",
        "/etc/machine-id",
        Path.home(),
        "/home",
        "/sys",
        "/run",
        "/boot",
        "/var/lib",
        "/proc/sys/kernel/../../../root",
        EXECUTOR,
    ):
        assert box.sh(f"ls {shlex.quote(str(path))}").returncode != 0, path
    assert box.says(f"ls -A {box.base}/jobs") == "j-1"
    seen = set(box.says("ls -A /").split())
    assert seen - {"lib32", "lib64", "libx32", "nix", "gnu", box.base.parts[1]} <= {
        *("bin", "sbin", "lib", "usr", "etc", "proc", "dev", "tmp", "var"),
    }


def test_links_out_of_the_workspace_lead_nowhere(box: Box) -> None:
    (box.work / "out").symlink_to(box.base / "secret")
    assert box.sh("cat out").returncode != 0
    assert box.sh("ln /usr/bin/env hard").returncode != 0


def test_the_root_is_read_only_and_tmp_is_private(box: Box) -> None:
    for path in ("/x", "/etc/x", "/usr/x", "/dev/x", "/proc/x", "/var/x"):
        assert box.sh(f"touch {path}").returncode != 0, path
    before = set(Path("/tmp").iterdir())
    name = box.says("mktemp /tmp/mine.XXXXXX && touch /var/tmp/x /dev/shm/y").strip()
    assert Path(name) not in set(Path("/tmp").iterdir()) - before


def test_with_devices_processes_name_their_threads_and_write_nothing_else_of_proc(box: Box) -> None:
    """CUDA does so, and gives up where it may not. Whoever is root there has no capability, but owns the kernel's files."""
    name = "echo named > /proc/$$/task/$$/comm && read said < /proc/$$/comm && echo $said"
    others = "find /proc -regex '/proc/[0-9]+' -prune -o -type f -writable -print"
    assert box.sh(name).returncode != 0
    assert box.says(name, devices=["/dev/zero"]) == "named"
    assert box.sh(others, devices=["/dev/zero"]).stdout == ""
    bare = box.sh(others, devices=["/dev/zero"], host=replace(box.host, kernel=())).stdout.split()
    assert box.uid is not None or any(path.startswith("/proc/sys/") for path in bare), "the look would have found them"
    for entry in box.host.kernel:
        assert box.sh(f"touch {entry}/x || echo x > {entry}", devices=["/dev/zero"]).returncode != 0, entry


def test_memory_backed_places_have_a_limit(box: Box) -> None:
    for place in ("/tmp", "/dev/shm"):
        done = box.sh(f"head -c 20M /dev/zero > {place}/big", tmp_mb=8)
        assert done.returncode != 0
        assert "No space left" in done.stderr


# --- processes -----------------------------------------------------------------------------------------------------


def test_other_processes_are_neither_seen_nor_reached(box: Box) -> None:
    pids = {int(pid) for pid in box.says("cd /proc && echo [0-9]*").split()}
    assert max(pids) < 20
    assert box.sh(f"kill -0 {os.getpid()}").returncode != 0
    assert box.sh("kill -0 -1").returncode != 0 or os.getpid() > 0, "-1 means those of this namespace"
    assert box.says("cat /proc/sys/kernel/hostname", hostname="j-1") == "j-1"


def test_the_end_of_the_command_comes_through(box: Box) -> None:
    assert box.sh("exit 7").returncode == 7
    assert box.sh("kill -KILL $$").returncode == 128 + signal.SIGKILL
    assert box.sh("kill -SEGV $$").returncode == 128 + signal.SIGSEGV
    assert box.sh("exit 7", level=PROCESS).returncode == 7
    assert box.sh("kill -KILL $$", level=PROCESS).returncode == -signal.SIGKILL
    assert box.run("/usr/bin/nonexistent").returncode == 1


def test_the_streams_come_through(box: Box) -> None:
    done = box.sh("cat; echo err >&2", stdin="line\n" * 10_000)
    assert (done.stdout, done.stderr) == ("line\n" * 10_000, "err\n")


def test_the_environment_is_what_was_passed(box: Box) -> None:
    for level in (NONE, PROCESS, BWRAP):
        env = {"A": "1", "LD_LIBRARY_PATH": "/x", "EMPTY": ""}
        said = dict(line.partition("=")[::2] for line in box.run("/usr/bin/env", env=env, level=level).stdout.splitlines())
        said.pop("PWD", None)  # bwrap's
        assert said == env


def test_no_descriptor_of_the_host_stays_open(box: Box) -> None:
    assert box.says("ls /proc/self/fd").split() == ["0", "1", "2", "3"], "3 is the directory that ls reads"


def _mark(box: Box, turn: int) -> str:
    """A time to sleep by which the sleeper is found again."""
    return str(int(box.base.name.encode().hex()[-8:], 16) + turn)


def _sleepers(mark: str) -> list[psutil.Process]:
    return [one for one in psutil.process_iter(["cmdline"]) if (one.info["cmdline"] or [])[-1:] == [mark]]


def _gone(mark: str) -> bool:
    _, alive = psutil.wait_procs(_sleepers(mark), timeout=10)
    return not alive


def test_what_forked_away_ends_with_the_command(box: Box) -> None:
    mark = _mark(box, 1)
    box.says(f"(setsid sleep {mark} </dev/null >/dev/null 2>&1 &) ; (sleep {mark} >/dev/null 2>&1 &) ; true")
    assert _gone(mark)


def test_a_kill_of_bwrap_or_of_its_parent_ends_all(box: Box) -> None:
    mark = _mark(box, 2)
    script = f"sleep {mark} & setsid sleep {mark} & echo up; wait"
    process = box.start(box.plan("/bin/bash", "-c", script))
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.kill()
    assert _gone(mark)
    plan_text = shlex.quote(msgspec.json.encode(box.plan("/bin/bash", "-c", script)).decode())
    parent = f"{PYTHON} -I {shlex.quote(str(EXECUTOR))} {plan_text} & wait"
    with subprocess.Popen(["/bin/sh", "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.kill()
        assert _gone(mark)


def test_a_command_that_is_asked_to_end_may_tidy_up(box: Box) -> None:
    script = f"trap 'echo bye > {box.output}/bye; exit 3' TERM; echo up; sleep 1000 & wait"
    with box.start(box.plan("/bin/bash", "-c", script)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        monitor = psutil.Process(process.pid)
        (reaper,) = monitor.children()
        (command,) = reaper.children()
        command.terminate()
        assert process.wait(10) == 3
    assert (box.output / "bye").read_text() == "bye\n"


def test_twenty_at_once(box: Box) -> None:
    script = "echo $1 > f$1; echo up; read line; cat f$1; cd /proc; echo [0-9]*"
    plans = [box.plan("/bin/bash", "-c", script, "bash", str(n)) for n in range(20)]
    running = [box.start(plan, stdin=subprocess.PIPE) for plan in plans]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
    said = [process.communicate("go\n", timeout=60)[0].split() for process in running]
    assert [one[0] for one in said] == [str(n) for n in range(20)]
    assert all(max(map(int, one[1:])) < 20 for one in said), "each in its own namespace"


# --- network -------------------------------------------------------------------------------------------------------


def test_there_is_no_network(box: Box) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)  # who was connected waits to be accepted
        connect = f"exec 3<>/dev/tcp/127.0.0.1/{server.getsockname()[1]}"
        refused = box.sh(connect)
        assert refused.returncode != 0
        assert "Connection refused" in refused.stderr
        with pytest.raises(BlockingIOError):
            server.accept()
        assert box.sh(connect, network=True).returncode == 0
        server.accept()[0].close()  # with the network granted the same command reached it
    interfaces = box.says("tail -n +3 /proc/net/dev | cut -d: -f1").split()
    assert "lo" in interfaces
    assert interfaces == ["lo"] or set(interfaces) <= {"lo", "sit0", "tunl0", "ip6tnl0", "gre0", "gretap0", "erspan0"}
    assert box.says("tail -n +2 /proc/net/route | wc -l") == "0"


# --- privileges and system calls -----------------------------------------------------------------------------------

CALLS = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def errno_of(*args):
    ctypes.set_errno(0)
    return ctypes.get_errno() if libc.syscall(*args) == -1 else 0
x86 = os.uname().machine == "x86_64"
def nr(a, b): return a if x86 else b
calls = {
    "ptrace": (nr(101, 117), 0, 0, 0, 0),
    "process_vm_readv": (nr(310, 270), 1, 0, 0, 0, 0, 0),
    "unshare": (nr(272, 97), 0x10000000),
    "setns": (nr(308, 268), 0, 0),
    "mount": (nr(165, 40), 0, 0, 0, 0, 0),
    "umount2": (nr(166, 39), 0, 0),
    "keyctl": (nr(250, 219), 0, -3, 0),
    "bpf": (nr(321, 280), 0, 0, 0),
    "perf_event_open": (nr(298, 241), 0, 0, 0, 0, 0),
    "userfaultfd": (nr(323, 282), 0),
    "io_uring_setup": (425, 1, 0),
    "open_by_handle_at": (nr(304, 265), 0, 0, 0),
    "clone_newuser": (nr(56, 220), 0x10000011, 0, 0, 0, 0),
    "clone3": (435, 0, 0),
    "tiocsti": (nr(16, 29), 0, 0x5412, 0),
    "vsock": (nr(41, 198), 40, 1, 0),
}
print({name: errno_of(*args) for name, args in calls.items()})
"""


@pytest.mark.parametrize("level", [PROCESS, BWRAP])
def test_dangerous_calls_are_refused(box: Box, level: SandboxLevel) -> None:
    done = box.run(PYTHON, "-c", CALLS, level=level)
    assert done.returncode == 0, done.stderr
    expected = dict.fromkeys(eval(done.stdout), errno.EPERM) | {"clone3": errno.ENOSYS, "vsock": errno.EAFNOSUPPORT}
    assert eval(done.stdout) == expected


@pytest.mark.parametrize("level", [PROCESS, BWRAP])
def test_the_filter_and_no_new_privileges_are_in_force(box: Box, level: SandboxLevel) -> None:
    status = dict(line.split(":\t") for line in box.says("cat /proc/self/status", level=level).splitlines() if ":\t" in line)
    assert status["Seccomp"].strip() == "2"
    assert status["NoNewPrivs"].strip() == "1"
    if level is BWRAP:
        assert {status[f"Cap{kind}"].strip("0") for kind in ("Inh", "Prm", "Eff", "Amb")} == {""}


def test_the_kernel_cannot_be_tuned_even_as_root(box: Box) -> None:
    """/proc/sys is writable by uid 0 without any capability; core_pattern would run a program outside, as root."""
    for knob in ("kernel/core_pattern", "vm/swappiness", "kernel/hostname"):
        done = box.sh(f"v=$(cat /proc/sys/{knob}) && echo $v > /proc/sys/{knob}")
        assert done.returncode != 0, knob
    assert box.sh("echo h > /proc/sysrq-trigger").returncode != 0
    assert box.says("find /proc -writable -type f 2>/dev/null | wc -l") == "0"


def test_only_harmless_devices(box: Box) -> None:
    nodes = box.says("find /dev -type b -o -type c | sort").split()
    assert {Path(node).name for node in nodes} <= {"null", "zero", "full", "random", "urandom", "tty", "ptmx"}
    assert box.sh("mknod disk b 8 0").returncode != 0
    assert box.says("echo x > /dev/null && head -c 4 /dev/urandom | wc -c") == "4"


def test_a_device_on_request(box: Box) -> None:
    if not Path("/dev/kmsg").exists():
        pytest.skip("the host has no /dev/kmsg to show")
    assert stat.S_ISCHR(Path("/dev/kmsg").stat().st_mode)
    assert box.says("ls /dev/kmsg; ls -d /sys/devices/system", devices=["/dev/kmsg"]).split()[0] == "/dev/kmsg"


def test_setuid_programs_give_nothing(box: Box) -> None:
    su = shutil.which("su", path="/usr/bin:/bin")
    if su is None:
        pytest.skip("no setuid program to try (apt: util-linux)")
    uid = box.says("id -u")
    assert box.sh(f"{su} -c 'id -u' nobody").stdout.strip() in ("", uid, str(NOBODY))
    assert box.says("id -u") == str(box.uid or os.getuid())


@pytest.fixture
def compiler() -> str:
    found = shutil.which("gcc") or shutil.which("cc")
    if found is None:
        pytest.skip("no C compiler (apt-get install gcc)")
    return found


def test_the_32_bit_door_is_shut(box: Box, compiler: str) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("int 0x80 is x86's")
    source = box.base / "door.c"
    source.write_text('int main(void) { long r; __asm__ volatile("int $0x80" : "=a"(r) : "a"(20)); return r > 0 ? 42 : 43; }\n')
    door = box.base / "door"
    subprocess.run([compiler, "-o", door, source], check=True)
    assert box.run(str(door), level=NONE).returncode in (42, 43, -signal.SIGSEGV), "SIGSEGV: no 32-bit calls at all"
    killed = (signal.SIGSYS, signal.SIGSEGV)
    assert box.run(str(door), level=PROCESS).returncode in [-one for one in killed]
    assert box.run(str(door), read_only_paths=[str(door)]).returncode in [128 + one for one in killed]


def test_a_preload_cannot_reach_bwrap_itself(box: Box, compiler: str) -> None:
    """bwrap runs outside: a library of the job's that it loaded would be an escape."""
    source = box.base / "evil.c"
    source.write_text(
        "#include <stdio.h>\n#include <stdlib.h>\n"
        f'__attribute__((constructor)) static void go(void) {{ FILE *f = fopen("{box.base}/jobs/escaped", "w");'
        ' if (f) { fputs("x", f); fclose(f); } puts("loaded"); fflush(stdout); }\n'
    )
    library = box.workspace / "input/evil.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    done = box.run("/usr/bin/true", env={"LD_PRELOAD": str(library)})
    assert done.stdout == "loaded\n", "once: in the sandbox"
    assert not (box.base / "jobs/escaped").exists()


# --- programs work -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [NONE, PROCESS, BWRAP])
def test_ordinary_programs_work(box: Box, level: SandboxLevel) -> None:
    assert box.says("for i in 1 2 3; do echo $i | (cat) & done; wait; echo <(:) >/dev/null; awk 'BEGIN{print 1}'", level=level)
    threads = "import threading as t; w=[t.Thread(target=print,args=(n,)) for n in range(8)]; [x.start() for x in w]"
    assert len(box.run(PYTHON, "-c", threads, level=level).stdout.split()) == 8
    spawn = "import subprocess, os, pwd; print(subprocess.check_output(['id', '-un'], text=True).strip(), os.cpu_count() > 0)"
    done = box.run(PYTHON, "-c", spawn, level=level)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == "True"


@pytest.mark.parametrize("level", [PROCESS, BWRAP])
def test_git_works(box: Box, level: SandboxLevel) -> None:
    if not Path("/usr/bin/git").exists():
        pytest.skip("no git (apt-get install git)")
    commit = "git -c user.name=a -c user.email=a@b commit -qam m"
    box.says(f"git init -q r && cd r && echo x > f && git add f && {commit} && git log --oneline | grep -q m", level=level)


@pytest.mark.parametrize("level", [PROCESS, BWRAP])
def test_a_program_from_a_virtual_environment_works(box: Box, level: SandboxLevel) -> None:
    venv = box.base / "venv"
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", venv], check=True)
    tool = venv / "bin/tool"
    tool.write_text(f"#!{venv}/bin/python\nimport sys, ssl, sqlite3, ctypes\nprint(sys.prefix)\n")
    tool.chmod(0o755)
    done = box.run(str(tool), level=level, read_only_paths=sandbox.needed(str(tool)))
    assert (done.returncode, done.stdout.strip()) == (0, str(venv)), done.stderr
    assert box.run(str(tool)).returncode != 0, "without its paths it is not there"


@pytest.mark.parametrize("level", [PROCESS, BWRAP])
def test_ffmpeg_from_a_python_package_encodes(box: Box, level: SandboxLevel) -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="no ffmpeg (pip install ostler[demo])")
    carried = Path(imageio_ffmpeg.get_ffmpeg_exe())
    ffmpeg = box.base / "opt/ffmpeg"
    ffmpeg.parent.mkdir()
    shutil.copy2(carried, ffmpeg)  # the environment itself may lie where only its owner can read
    encode = ["-v", "error", "-f", "lavfi", "-i", "testsrc=duration=1:size=160x120:rate=10", "-c:v", "libx264"]
    done = box.run(str(ffmpeg), *encode, f"{box.output}/out.mp4", level=level, read_only_paths=sandbox.needed(str(ffmpeg)))
    assert done.returncode == 0, done.stderr
    assert (box.output / "out.mp4").stat().st_size > 1000


def test_the_running_interpreter_is_shown_with_its_prefixes(box: Box) -> None:
    if box.uid is not None and not os.access(sys.base_prefix, os.X_OK):
        pytest.skip("this interpreter is not readable by others")
    paths = sandbox.needed(sys.executable)
    done = box.run(sys.executable, "-c", "import msgspec, sys; print(sys.prefix)", read_only_paths=paths)
    if box.uid is not None and done.returncode != 0 and "Permission denied" in done.stderr:
        pytest.skip("this interpreter lies where an ordinary user cannot read")
    assert (done.returncode, done.stdout.strip()) == (0, sys.prefix), done.stderr


# --- the host ------------------------------------------------------------------------------------------------------


def test_a_user_namespace_as_root_works_too(box: Box) -> None:
    assert box.says("id -u", userns=True) == str(box.uid or os.getuid())


def test_abilities_are_tried_on_this_host(box: Box) -> None:
    found = sandbox.abilities(box.host)
    assert {"none", "process", "bwrap"} <= set(found.levels), found.missing
    assert found.seccomp
    assert found.bwrap is not None


def test_our_own_program_is_used_where_it_was_built(host: Host) -> None:
    assert (host.own is not None) == (Path(sandbox.__file__).with_name("_enter").exists())
    assert host.wrapper == (host.own or host.bwrap)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--share-net",), "unknown option --share-net"),
        (("--bind", "/usr"), "a value is missing after --bind"),
        (("--tmpfs", "/tmp"), "no command was given"),
        (("--ro-bind", "/nowhere", "/usr", "--", "/usr/bin/true"), "cannot find /nowhere: No such file or directory"),
        (("--ro-bind", "/usr", "/usr", "--", "/usr/bin/none"), "execvp /usr/bin/none: No such file or directory"),
    ],
)
def test_our_own_program_says_what_it_cannot_do(host: Host, options: tuple[str, ...], said: str) -> None:
    if host.own is None:
        pytest.skip("it was not built (no C compiler)")
    done = subprocess.run([host.own, "--unshare-pid", *options], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"bwrap: {said}\n")


def test_a_first_process_keeps_its_file_and_its_words_to_itself(box: Box) -> None:
    if box.host.own is None:
        pytest.skip("bubblewrap does not")
    assert box.sh("cat /proc/1/environ /proc/1/exe; readlink /proc/1/exe").returncode == 1


def fake_bwrap(box: Box, script: str) -> Host:
    path = box.base / "bwrap"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return replace(box.host, bwrap=str(path), own=None)


def test_a_bwrap_that_fails_or_hangs_is_reported_in_time(box: Box) -> None:
    (missing,) = (
        one
        for one in sandbox.abilities(fake_bwrap(box, "echo 'bwrap: No permissions' >&2; exit 1")).missing
        if one.level == "bwrap"
    )
    assert "No permissions" in missing.reason
    hanging = sandbox.abilities(fake_bwrap(box, "exec sleep 1000"))
    assert "bwrap" not in hanging.levels
    assert any("did not end within" in one.reason for one in hanging.missing)
    assert "bwrap" not in sandbox.abilities(replace(box.host, bwrap="/nonexistent", own=None)).levels
