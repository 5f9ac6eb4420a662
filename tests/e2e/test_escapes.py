"""What hostile jobs try, through the whole product: each ends in a clear failure, and the machine is as it was.

Level `bwrap` stops all of it. Level `process` is for trusted programs: it claims limits, the filter on system calls, no new
privileges and the end of the whole tree, and is tried for these alone.
"""

import os
import shutil
import socket
import tarfile
from pathlib import Path

import psutil
import pytest

from e2e.fleet import Fleet, until

BOTH = ["bwrap", "process"]
PYTHON = "/usr/bin/python3"

pytestmark = pytest.mark.skipif(not Path(PYTHON).exists(), reason=f"no {PYTHON} (apt-get install python3)")


@pytest.fixture(scope="module")
def fleets(tmp_path_factory):
    """One running set per level, made when a test first asks for it."""
    made = {}

    def at(level):
        if level == "bwrap" and shutil.which("bwrap") is None:
            pytest.skip("bubblewrap is not installed and cannot be installed without root")
        if level not in made:
            made[level] = Fleet(tmp_path_factory.mktemp(level) / "data", level=level).start()
        return made[level]

    yield at
    for fleet in made.values():
        fleet.stop()


@pytest.fixture
def boxed(fleets):
    """A set whose node runs everything in bwrap, and which is as healthy after the test as before."""
    yield from unharmed(fleets("bwrap"))


@pytest.fixture
def either(fleets, level):
    """The same at each of both levels."""
    yield from unharmed(fleets(level))


def unharmed(fleet):
    before = {part: one.pid for part, one in fleet.processes().items()}
    yield fleet
    assert {part: one.pid for part, one in fleet.processes().items()} == before, "no part of the node died"
    assert fleet.wait(fleet.sh("echo fine"))["state"] == "done"


def python(fleet, script, **fields):
    """Submit a Python script; it says `refused` and ends with code 9 where what it tried was refused."""
    prelude = "import ctypes, os, signal, socket, sys, time\ndef refused(): print('refused', flush=True); sys.exit(9)\n"
    inputs = {"inline": {"job.py": prelude + script}}
    return fleet.submit({"command": "sh", "args": ["-c", f"exec {PYTHON} job.py"], "input": inputs, **fields})


def sh(fleet, script, **fields):
    return fleet.sh(script, **{"timeout_s": 60, **fields})


def failed(fleet, job, code, *words):
    view = fleet.wait(job)
    assert (view["state"], view["tries"]) == ("failed", 1), (view, fleet.log(job), fleet.log(job, "stderr"))
    assert view["failure"]["code"] == code, (view["failure"], fleet.log(job, "stderr"))
    for word in words:
        assert word in view["failure"]["message"], view["failure"]
    return view


def refused(fleet, job):
    """It tried, was refused, and said so itself."""
    view = failed(fleet, job, "E_EXIT", "9")
    assert fleet.log(job) == "refused\n"
    return view


def living(mark):
    """Processes that carry this word in their command line."""
    return [one for one in psutil.process_iter(["cmdline"]) if mark in (one.info["cmdline"] or [])]


# --- files outside, /proc ------------------------------------------------------------------------------------------


def test_files_of_the_host_are_not_read(boxed):
    mine = sh(boxed, "echo mine > work.txt; sleep 0.1")
    boxed.wait(mine)
    data = boxed.data
    for path in (
        data / "admin.token",
        data / "node/node.key",
        data / "ostler.db",
        data / f"jobs/{mine}/work/work.txt",
        data / "node/keeper.sock",
        "/etc/shadow",
        "/proc/1/root/etc/shadow",
        "/proc/self/root/etc/shadow",
        f"/proc/1/cwd{data}/admin.token",
        "/proc/kcore",
        "/proc/kmsg",
        "/sys/kernel/security",
    ):
        failed(boxed, sh(boxed, f"cat {path}"), "E_EXIT", "1")
    failed(boxed, sh(boxed, f"ln -s {data}/admin.token a && cat a"), "E_EXIT")


def test_files_of_the_host_are_not_written(boxed):
    before = (boxed.data / "node.yaml").read_bytes()
    for path in ("/usr/x", "/etc/x", "/x", "/dev/x", "/var/x", boxed.data / "allowlist.d/evil.yaml"):
        failed(boxed, sh(boxed, f"echo x > {path}"), "E_EXIT")
        assert not Path(path).exists()
    # In the sandbox's own /tmp there may be a folder of that name; it is not this machine's.
    boxed.wait(sh(boxed, f"echo x > {boxed.data}/node.yaml"))
    assert (boxed.data / "node.yaml").read_bytes() == before


def test_the_kernel_is_not_tuned(boxed):
    """core_pattern would run a program outside, as root."""
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    for path in (
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sysrq-trigger",
        "/proc/self/oom_score_adj",
    ):
        failed(boxed, sh(boxed, f"echo '|/tmp/evil' > {path}"), "E_EXIT")
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


# --- network -------------------------------------------------------------------------------------------------------


def test_no_socket_of_the_host_is_reached(boxed):
    """TCP, the host's abstract unix sockets, which have no file, and raw packets."""
    name = f"ostler-escape-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0{name}")
        abstract.listen()
        script = f"""
for family, address in ((socket.AF_INET, ("127.0.0.1", {tcp.getsockname()[1]})), (socket.AF_UNIX, "\\0{name}"),
                        (socket.AF_INET, ("169.254.169.254", 80)), (socket.AF_INET, ("8.8.8.8", 53))):
    try: socket.socket(family).connect(address)
    except OSError: continue
    sys.exit(3)
for family, kind in ((socket.AF_INET, socket.SOCK_RAW), (socket.AF_PACKET, socket.SOCK_RAW)):
    try: socket.socket(family, kind, 1)
    except OSError: continue
    sys.exit(4)
refused()
"""
        refused(boxed, python(boxed, script))


# --- other processes -----------------------------------------------------------------------------------------------


def test_others_are_not_signalled(boxed):
    parts = boxed.processes()
    pids = [os.getpid(), *(one.pid for one in parts.values())]
    script = f"""
for pid in {pids}:
    try: os.kill(pid, signal.SIGKILL)
    except ProcessLookupError: continue
    sys.exit(3)
refused()
"""
    refused(boxed, python(boxed, script))
    failed(boxed, sh(boxed, "kill -KILL -1; exit 9"), "E_EXIT", "9")  # all that it sees but itself: those of its own sandbox
    assert all(one.is_running() for one in parts.values())


@pytest.mark.parametrize("level", BOTH)
def test_nobody_is_traced(either):
    """Not even what is its own: with ptrace a filter on system calls could be undone."""
    script = """
libc = ctypes.CDLL(None, use_errno=True)
child = os.fork()
if not child: time.sleep(60)
tried = [libc.ptrace(16, child, 0, 0), libc.ptrace(0x4206, child, 0, 0), libc.ptrace(0, 0, 0, 0)]
buffer = ctypes.create_string_buffer(8)
class Piece(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
piece = Piece(ctypes.addressof(buffer), 8)
tried.append(libc.process_vm_readv(child, ctypes.byref(piece), 1, ctypes.byref(piece), 1, 0))
os.kill(child, signal.SIGKILL)
refused() if tried == [-1, -1, -1, -1] else sys.exit(3)
"""
    refused(either, python(either, script))


@pytest.mark.parametrize("level", BOTH)
def test_no_namespace_and_no_mount_is_made(either):
    script = """
libc = ctypes.CDLL(None, use_errno=True)
tried = [libc.unshare(flag) for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000)]
tried += [libc.mount(b"none", b"/tmp", b"tmpfs", 0, None), libc.umount2(b"/proc", 2), libc.setns(0, 0)]
refused() if set(tried) == {-1} else sys.exit(3)
"""
    refused(either, python(either, script))


# --- privileges and devices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", BOTH)
def test_setuid_gives_nothing(either):
    """no_new_privs is in force, so the bit on a file is not obeyed; and nobody outside reaches a file that a job gave the bit."""
    job = sh(
        either, "grep -q '^NoNewPrivs:.*1$' /proc/self/status && cp /usr/bin/id own && chmod 6755 own && ./own -u > said; exit 9"
    )
    view = failed(either, job, "E_EXIT", "9")
    left = either.data / "jobs" / view["job_id"] / "work"
    assert int((left / "said").read_text()) == os.getuid()
    assert any(not folder.stat().st_mode & 0o011 for folder in (left, *left.parents)), "the way to it is closed to others"


def test_no_device_is_made_or_found(boxed):
    script = """
for name, number in (("disk", os.makedev(8, 0)), ("mem", os.makedev(1, 1)), ("kmsg", os.makedev(1, 11))):
    for kind in (0o060000, 0o020000):
        try: os.mknod(name, 0o666 | kind, number)
        except OSError: continue
        try: os.open(name, os.O_RDONLY)
        except OSError: continue
        sys.exit(3)
wanted = {"mem", "kmem", "kmsg", "sda", "vda", "nvme0n1", "fuse", "kvm", "loop-control", "uinput"}
refused() if not wanted & set(os.listdir("/dev")) else sys.exit(4)
"""
    refused(boxed, python(boxed, script))


# --- bombs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", BOTH)
def test_a_fork_bomb_is_held_and_swept(either):
    """Bounded here, for machines that cannot bound it. Its parent is refused a child and says so; the children die with it."""
    mark = f"{os.getpid()}.5"
    script = f"""
try:
    for _ in range(1500):
        if not os.fork(): os.setsid(); os.execv("/bin/sleep", ["sleep", "{mark}"])
except BlockingIOError: refused()
sys.exit(3)
"""
    job = python(either, script, policy={"processes": 100})
    view = either.wait(job)
    log = (either.data / "log/node.jsonl").read_text()
    if "limits_unenforced" in log and view["exit_code"] == 3:
        pytest.skip(
            "no pids controller, and RLIMIT_NPROC does not bind root: the node's log says that nobody keeps this limit here"
        )
    refused(either, job)
    until(lambda: not living(mark), what="the end of all children")


@pytest.mark.parametrize("level", BOTH)
def test_a_memory_bomb_of_many_processes(either):
    """Each is small; together they are over the limit."""
    script = """
for _ in range(8):
    if not os.fork(): hold = bytearray(os.urandom(1 << 20)) * 24; time.sleep(60); os._exit(0)
sys.exit(9 if any(os.wait()[1] for _ in range(8)) else 0)
"""
    failed(either, python(either, script, policy={"memory_mb": 96}, retries=0), "E_OOM", "96")


def test_memory_hidden_in_files_that_lie_in_memory(boxed):
    """/tmp and /dev/shm of the sandbox are memory: charged to the job where there are cgroups, and bounded where there are none."""
    for place in ("/tmp", "/dev/shm"):
        job = sh(boxed, f"head -c 300000000 /dev/zero > {place}/x || exit 9", policy={"memory_mb": 64}, retries=0)
        view = boxed.wait(job)
        assert view["state"] == "failed"
        assert view["failure"]["code"] == "E_OOM" or "No space left" in boxed.log(job, "stderr"), view["failure"]


@pytest.mark.parametrize("level", BOTH)
@pytest.mark.parametrize(
    "fill",
    [
        "head -c 30000000 /dev/zero > a",
        "i=0; while [ $i -lt 60 ]; do head -c 500000 /dev/zero > a$i; i=$((i+1)); done",
        "head -c 30000000 /dev/zero > $OSTLER_OUTPUT_DIR/a",
        "mkdir -p d/e && head -c 30000000 /dev/zero > d/e/a && chmod 0 d/e d",
        "exec 3> a && rm a && head -c 30000000 /dev/zero >&3",
        "mkdir d && exec 3> d/a 4> b && rm -r d b && head -c 15000000 /dev/zero >&3 && head -c 15000000 /dev/zero >&4",
    ],
    ids=["one", "many", "output", "unreadable", "unlinked", "unlinked-two"],
)
def test_a_disk_bomb_however_it_hides(either, fill):
    failed(either, sh(either, f"{fill}; sleep 50", policy={"disk_mb": 8}, retries=0), "E_DISK", "quota 8")


@pytest.mark.skipif(os.getuid() != 0, reason="only root sees what another process has mapped")
@pytest.mark.parametrize("level", BOTH)
def test_a_disk_bomb_that_is_neither_named_nor_open(either):
    script = """
import mmap
with open("a", "w+b") as file:
    for _ in range(30): file.write(b"x" * 1_000_000)
    file.flush()
    held = mmap.mmap(file.fileno(), 0)
os.unlink("a")
time.sleep(50)
"""
    failed(either, python(either, script, policy={"disk_mb": 8}, retries=0), "E_DISK", "quota 8")


@pytest.mark.parametrize("level", BOTH)
def test_a_file_of_holes_is_no_bomb(either, tmp_path):
    """It takes no disk; and whoever fetches the failed workspace does not get a terabyte of zeros."""
    job = sh(either, "truncate -s 1T work.big; echo small > small; exit 9")
    failed(either, job, "E_EXIT", "9")
    done = either.cli("job", "debug", job, "--download", tmp_path)
    assert done.returncode == 0, done.stderr
    with tarfile.open(done.stdout.strip()) as archive:
        names = archive.getnames()
        assert "work/small" in names
        assert "work/work.big" not in names
        assert "work/work.big" in archive.extractfile("LEFT-OUT.txt").read().decode()


@pytest.mark.parametrize("level", BOTH)
def test_a_log_bomb(either):
    failed(either, sh(either, "yes", policy={"log_mb": 2}, retries=0), "E_OUTPUT", "2 MB")


# --- past the kill -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", BOTH)
@pytest.mark.parametrize("how", ["done", "timeout", "cancel", "daemon-gone"])
def test_what_forked_twice_does_not_outlive_its_job(fleets, level, how):
    fleet = fleets(level)
    mark = f"{os.getpid()}.{BOTH.index(level) + 10 * ['done', 'timeout', 'cancel', 'daemon-gone'].index(how) + 100}"
    script = f"""
for _ in range(3):
    if not os.fork():
        os.setsid()
        if os.fork(): os._exit(0)
        for number in range(1, 32):
            if number not in (9, 19): signal.signal(number, signal.SIG_IGN)
        os.execve("/bin/sleep", ["sleep", "{mark}"], {{}})
print("up", flush=True)
time.sleep({0 if how == "done" else 60})
"""
    job = python(fleet, script, timeout_s=3 if how == "timeout" else 60, policy={"grace_s": 0.5}, retries=0)
    until(lambda: "up" in fleet.log(job), what="its start")
    if how == "cancel":
        assert fleet.cli("job", "cancel", job).returncode == 0
    if how == "daemon-gone":
        old = fleet.kill("node")
        until(lambda: fleet.processes().get("node") and fleet.processes()["node"].pid != old, what="the next daemon")
        assert fleet.cli("job", "cancel", job).returncode == 0
    view = fleet.wait(job)
    assert view["state"] == {"done": "done", "timeout": "failed"}.get(how, "cancelled")
    assert how != "timeout" or view["failure"]["code"] == "E_TIMEOUT"
    until(lambda: not living(mark), what="the end of what it left")


# --- links in inputs and outputs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("level", BOTH)
@pytest.mark.parametrize(
    "game",
    [
        "ln -s SECRET out",
        "ln -s /proc/self/root/SECRET out",
        "mkdir d && ln -s SECRET d/x && ln -s d/x out",
        "ln -s out out",
        "mkfifo out",
        "mkdir out",
        "ln -s /dev/zero out",
        "rm -rf $OSTLER_OUTPUT_DIR; ln -s $(dirname SECRET) $OSTLER_OUTPUT_DIR 2>/dev/null; rm -f out",
    ],
)
def test_no_link_leads_an_artifact_out(either, tmp_path, game):
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    job = sh(either, game.replace("SECRET", str(secret)) + "; true", artifacts=[{"path": "out"}], retries=0)
    failed(either, job, "E_OUTPUT", "out")
    assert either.get(f"/jobs/{job}/artifacts/out").status_code == 404
    assert secret.read_text() == "of the host"


def test_a_hard_link_to_a_file_outside_cannot_be_made(boxed):
    for path in (boxed.data / "admin.token", "/usr/bin/env", "/etc/passwd"):
        failed(boxed, sh(boxed, f"ln {path} out", artifacts=[{"path": "out"}]), "E_EXIT")


@pytest.mark.parametrize("level", BOTH)
def test_standard_output_is_kept_through_no_link(either, tmp_path):
    target = tmp_path / "target"
    target.write_text("of the host")
    job = sh(either, f"ln -s {target} $OSTLER_OUTPUT_DIR/said; echo evil", stdout="said", artifacts=[{"path": "said"}], retries=0)
    failed(either, job, "E_OUTPUT", "said")
    assert target.read_text() == "of the host"


def test_inputs_are_not_changed_for_the_next_one(boxed):
    """They may be shared with a cache; a job that writes them would write another job's."""
    inputs = {"inline": {"a.txt": "given"}}
    for script in ("echo x >> $OSTLER_INPUT_DIR/a.txt", "rm $OSTLER_INPUT_DIR/a.txt", "ln -s /etc/passwd $OSTLER_INPUT_DIR/b"):
        failed(boxed, sh(boxed, script, input=inputs), "E_EXIT")


@pytest.mark.parametrize("name", ["../evil", "/etc/cron.d/evil", "a/b", "..", "-rf", "a\nb"])
def test_no_input_has_a_name_that_leads_out(fleets, name):
    fleet = fleets("process")
    answer = fleet.http.post("/jobs", json={"command": "true", "input": {"inline": {name: "x"}}})
    assert answer.status_code == 422
    assert "input.inline" in answer.text
