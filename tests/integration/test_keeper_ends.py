"""How attempts end under a real keeper, and what its records say of it: with each kind of cgroup, as root and not."""

import contextlib
import os
import resource
import shutil
import signal
import struct
import subprocess
from pathlib import Path

import pytest

from integration.keeper_rig import NOBODY, Keeper, alive, folder, pids_of, wait_until

ROOT = os.getuid() == 0
KINDS = ["none", "auto", "v2", "fork", "ordinary"] if ROOT else ["none", "fork"]

# Forks, leaves the session, forks again and empties its environment: nothing of its ancestry is left to see. The one in between
# has ended before the note is written, so that it is never taken for a leftover.
DAEMON = r"""
import os, sys
if os.fork(): sys.exit(0)
os.setsid()
between = os.getpid()
if os.fork(): os._exit(0)
while os.getppid() == between: pass
os.execve("/bin/sh", ["sh", "-c", "echo $$ >> %s; exec sleep 1000"], {"PATH": os.defpath})
"""
HUNGRY = "import os\nheld = []\nwhile True: held.append(bytearray(os.urandom(1) * (4 << 20)))"


@pytest.fixture(params=KINDS)
def keeper(request):
    kind = request.param
    with folder() as where:
        options = {
            "none": {"cgroup": "none"},
            "v2": {"cgroup": "v2"},
            "fork": {"fork": True},
            "ordinary": {"ordinary": True},
        }.get(kind, {})
        keeper = Keeper(where, **options)
        yield keeper
        keeper.close()


@pytest.fixture
def line(keeper):
    return keeper.line()


def python(keeper: Keeper) -> str:
    return "/usr/bin/python3" if keeper.ordinary else os.path.realpath("/proc/self/exe")


@pytest.mark.parametrize(
    ("script", "exit_code", "killer"),
    [("exit 0", 0, None), ("exit 7", 7, None), ("kill -TERM $$", None, 15), ("kill -SEGV $$", None, 11)],
)
def test_exit_codes_and_signals(keeper, line, script, exit_code, killer):
    started = line.start(**keeper.sh("a", script))
    record = line.record("a")
    assert (record["exit_code"], record["signal"], record["killed"], record["oom"]) == (exit_code, killer, None, None)
    assert (record["pid"], record["start_time"]) == (started["pid"], started["start_time"])
    assert record["leftovers_killed"] == 0
    assert 0 <= record["wall_s"] <= record["ended_at"] - record["started_at"] + 1
    assert record == keeper.written("a")


def test_a_kill_from_outside_is_no_lack_of_memory(keeper, line):
    started = line.start(**keeper.spec("a", "sleep", "1000", limits={"memory_mb": 200}))
    os.kill(started["pid"], signal.SIGKILL)
    record = line.record("a")
    assert (record["signal"], record["killed"], record["oom"]) == (9, None, None)


def test_arguments_that_do_not_fit_into_the_memory_limit_end_nobody_else(keeper, line):
    """The kernel copies them inside the cgroup, before the child has a memory of its own."""
    line.start(**keeper.spec("other", "sleep", "1000"))
    answer = line.ask("start", **keeper.spec("a", "true", *["x" * 100_000] * 15, limits={"memory_mb": 1}))
    if answer.get("ok"):
        assert line.record("a")["key"] == "a"
    assert line.ask("kill", key="other", reason="test", grace_s=0)["running"] is True
    assert line.record("other")["killed"] == "test"


def test_what_cannot_be_executed_is_told_with_its_reason(keeper, line):
    (keeper.work / "text").write_text("no program")
    (keeper.work / "text").chmod(0o755)
    cases = {
        "/nowhere/at/all": ("exec", 2),
        "not-to-be-found-anywhere": ("exec", 2),
        "/etc/passwd": ("exec", 13),
        str(keeper.work / "text"): ("exec", 8),
    }
    for program, (code, number) in cases.items():
        error = line.ask("start", **keeper.spec("a", program))["error"]
        assert (error["code"], error["errno"], error["step"]) == (code, number, "exec"), program
    error = line.ask("start", **keeper.spec("a", "true", cwd="/nowhere"))["error"]
    assert (error["code"], error["errno"], error["step"]) == ("setup", 2, "cwd")
    error = line.ask("start", **keeper.spec("a", "true", stdout="/nowhere/out"))["error"]
    assert (error["code"], error["errno"]) == ("open", 2)
    assert line.ask("list")["children"] == []


def test_timeout_ends_a_program_that_obeys_with_its_own_word(keeper, line):
    script = "trap 'echo bye; exit 3' TERM; echo on; while :; do sleep 1000 & wait; done"
    line.start(**keeper.sh("a", script, limits={"wall_s": 0.3, "grace_s": 20}))
    record = line.record("a")
    assert (record["killed"], record["exit_code"]) == ("timeout", 3)
    assert keeper.out("a") == "on\nbye\n"


def test_timeout_kills_one_that_does_not_obey(keeper, line):
    script = "trap '' TERM; echo $$; sleep 1000; sleep 1000; echo never"
    line.start(**keeper.sh("a", script, limits={"wall_s": 0.3, "grace_s": 0.3}))
    record = line.record("a")
    assert (record["killed"], record["signal"]) == ("timeout", 9)
    assert record["wall_s"] >= 0.6


def test_kill_takes_the_first_reason_and_the_shortest_grace(keeper, line):
    line.start(**keeper.sh("a", "trap '' TERM; echo on; sleep 1000"))
    wait_until(lambda: keeper.out("a"))
    assert line.ask("kill", key="a", reason="cancel", grace_s=1000)["running"] is True
    assert line.ask("kill", key="a", reason="another", grace_s=0)["running"] is True
    record = line.record("a")
    assert (record["killed"], record["signal"]) == ("cancel", 9)
    assert line.ask("kill", key="a", reason="late")["running"] is False
    assert line.ask("kill", key="b", reason="late")["error"]["code"] == "not_found"


def test_a_stopped_program_can_be_ended(keeper, line):
    line.start(**keeper.sh("a", "trap 'exit 5' TERM; kill -STOP $$; echo woken"))
    pid = line.ask("list")["children"][0]["pid"]
    wait_until(lambda: " T " in Path(f"/proc/{pid}/stat").read_text())
    line.ask("kill", key="a", reason="cancel", grace_s=1000)
    assert line.record("a")["exit_code"] == 5


def test_what_detaches_itself_dies_with_its_attempt(keeper, line):
    note = keeper.work / "pids"
    script = f"{python(keeper)} -I -S -c '{DAEMON % note}'; while [ ! -s {note} ]; do :; done"
    line.start(**keeper.sh("a", script))
    record = line.record("a")
    assert record["exit_code"] == 0
    assert record["leftovers_killed"] == 1
    assert not alive(*pids_of(note.read_text()))


def test_what_detaches_itself_dies_with_its_own_attempt_and_not_with_another(keeper, line):
    notes = {key: keeper.work / f"pids-{key}" for key in "abc"}
    for key, note in notes.items():
        # seen for a moment before it detaches, as any long-lived one is
        script = f"{python(keeper)} -I -S -c '{DAEMON % note}'; read go < {keeper.work}/go-{key}"
        os.mkfifo(keeper.work / f"go-{key}", 0o666)
        (keeper.work / f"go-{key}").chmod(0o666)
        line.start(**keeper.sh(key, script))
    pids = {key: wait_until(lambda note=note: note.exists() and pids_of(note.read_text())) for key, note in notes.items()}
    tracked = line.hello["cgroup"] != "none"
    for count, key in enumerate("bca", 1):
        (keeper.work / f"go-{key}").write_text("go\n")
        line.record(key)
        if tracked:  # without a cgroup it may take until the last one that could own it
            assert not any(alive(pid) for pid in pids[key])
            assert sum(alive(pid) for group in pids.values() for pid in group) == 3 - count
    wait_until(lambda: not any(alive(pid) for group in pids.values() for pid in group))


def test_what_detaches_itself_while_it_executes_another_program_dies_though_others_run(keeper, line):
    line.start(**keeper.sh("other", "sleep 1000"))
    escaped = []
    for number in range(20):
        note = keeper.work / f"pid-{number}"
        script = f"(setsid sh -c 'echo $$ > {note}; exec sleep 1000' &); while [ ! -s {note} ]; do :; done"
        line.start(**keeper.sh(f"k{number}", script))
        line.record(f"k{number}")
        escaped += pids_of(note.read_text())
    wait_until(lambda: not any(alive(pid) for pid in escaped))
    line.ask("kill", key="other", reason="cancel", grace_s=0)
    assert line.record("other")["killed"] == "cancel"


# 127 processes, if nobody holds it; each begets two and stays. A shell that cannot fork exits, so the first one is none by then.
BOMB = "grow() { [ $1 -gt 0 ] && { grow $(($1-1)) & grow $(($1-1)) & }; echo . >&2; sleep 1000; }; grow 6 & exec sleep 1000"
# Ever another process: each lives for a moment, in a session of its own, and leaves one behind.
HOPPER = """
import os
while True:
    if os.fork(): os._exit(0)
    os.setsid()
"""


def marked(keeper: Keeper, key: str) -> list[int]:
    """The living processes that this keeper marked as an attempt's."""
    wanted = {f"OSTLER_ATTEMPT_KEY={key}".encode(), b"OSTLER_KEEPER=" + (keeper.state / "id").read_bytes().strip()}
    found = []
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        with contextlib.suppress(OSError):
            if wanted <= set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")) and alive(pid):
                found.append(pid)
    return found


def test_a_fork_bomb_is_held_and_killed(keeper, line):
    answer = line.start(**keeper.sh("a", BOMB, limits={"processes": 40}))
    held = "processes" not in answer.get("unenforced", [])
    assert held == ("pids" in line.hello["cgroup_controllers"] or keeper.uid != 0)
    if held:
        wait_until(lambda: "fork" in (keeper.work / "a.err").read_text())  # sh: Cannot fork
        if keeper.uid == 0:  # an ordinary user's count is of all that the user runs
            assert len(marked(keeper, "a")) <= 40
    else:
        wait_until(lambda: len(marked(keeper, "a")) >= 127)
    line.ask("kill", key="a", reason="cancel", grace_s=0)
    assert line.record("a")["killed"] == "cancel"
    assert marked(keeper, "a") == []


def test_one_that_forks_faster_than_anyone_can_look_is_killed(keeper, line):
    line.start(**keeper.spec("a", python(keeper), "-I", "-S", "-c", HOPPER))
    record = line.record("a")
    assert record["exit_code"] == 0
    wait_until(lambda: marked(keeper, "a") == [])
    assert "stuck_pids" not in record
    assert line.ask("ping")["ok"]


def test_using_more_memory_than_allowed(keeper, line):
    limits = {"memory_mb": 64}
    line.start(**keeper.spec("a", python(keeper), "-I", "-S", "-c", HUNGRY, limits=limits))
    record = line.record("a")
    assert record["signal"] == 9
    limited_by_kernel = "memory" in line.hello["cgroup_controllers"]
    assert record["oom"]["source"] == ("cgroup-" + line.hello["cgroup"] if limited_by_kernel else "watchdog")
    assert record["killed"] == (None if limited_by_kernel else "memory")
    assert record["oom"]["limit_mb"] == 64
    assert record["oom"]["peak_mb"] >= 60
    assert record["peak_memory_mb"] >= 60


def test_memory_shared_by_forks_is_counted_once(keeper, line):
    family = (
        "import os, time\nheld = bytearray(os.urandom(1) * (40 << 20))\n"
        "for _ in range(5):\n  if not os.fork(): time.sleep(1.2); os._exit(0)\n"
        "for _ in range(5): os.wait()"
    )
    line.start(**keeper.spec("a", python(keeper), "-I", "-S", "-c", family, limits={"memory_mb": 120}))
    record = line.record("a")
    assert (record["exit_code"], record["killed"], record["oom"]) == (0, None, None)


def test_the_log_cap(keeper, line):
    line.start(**keeper.sh("a", "yes; sleep 1000", limits={"log_mb": 1, "grace_s": 20}))
    record = line.record("a")
    assert record["killed"] == "log"
    line.start(**keeper.sh("b", "head -c 1000000 /dev/zero; head -c 40000 /dev/zero >&2; sleep 0.7", limits={"log_mb": 1}))
    assert line.record("b")["killed"] is None


def test_a_log_of_holes_is_cut_off(keeper, line):
    """Over before the first look, and a terabyte long for whoever would copy it."""
    start = keeper.sh("a", "echo begin; truncate -s 1T /dev/stdout", limits={"log_mb": 1})
    line.start(**start)
    assert line.record("a")["exit_code"] == 0
    assert Path(start["stdout"]).stat().st_size == 1 << 20
    assert Path(start["stdout"]).read_bytes()[:6] == b"begin\n"


def without_libc_signals(told):
    """Signals 32 and 33 belong to the C library, which lets nobody set them; whoever started the tests may ignore them."""
    name, tab, mask = told.partition(":\t")
    return f"{name}{tab}{int(mask, 16) & ~(3 << 31):016x}" if name.startswith("Sig") else told


def test_limits_that_a_program_finds_set(keeper, line):
    script = (
        "ulimit -n; ulimit -Hn; ulimit -f; nice; "
        "grep -E 'NoNewPrivs|SigIgn|SigBlk|Cpus_allowed_list' /proc/self/status; ionice; umask; tty; pwd"
    )
    cpu = min(os.sched_getaffinity(0))
    nice = max(5, os.getpriority(os.PRIO_PROCESS, 0))
    limits = {"open_files": 64, "file_mb": 8, "nice": nice, "io_class": "best-effort", "io_level": 6, "cpus": [cpu]}
    line.start(**keeper.sh("a", script, limits=limits, no_new_privs=True))
    line.record("a")
    assert [without_libc_signals(told) for told in keeper.out("a").splitlines()] == [
        *("64", "64", str(8 * 2048 if "dash" in os.path.realpath("/bin/sh") else 8 * 1024), str(nice)),
        *("SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000", "NoNewPrivs:\t1", f"Cpus_allowed_list:\t{cpu}"),
        *("best-effort: prio 6", "0022", "not a tty", str(keeper.work)),
    ]
    line.start(**keeper.sh("b", "ulimit -n; nice; grep NoNewPrivs /proc/self/status"))
    line.record("b")
    assert keeper.out("b").split() == [str(resource.getrlimit(resource.RLIMIT_NOFILE)[0]), str(os.nice(0)), "NoNewPrivs:", "0"]


def test_a_keeper_without_privileges_gives_nobody_more_than_it_has(keeper, line):
    """The program starts all the same: a daemon that was started with `nice` would else fail each job that is to have 10."""
    less = os.getpriority(os.PRIO_PROCESS, 0) - 5
    may = subprocess.run([*keeper.prefix, "nice", "-n", "-5", "nice"], capture_output=True, text=True, check=True)
    line.start(**keeper.sh("a", "nice", limits={"nice": less}))
    assert line.record("a")["exit_code"] == 0
    assert keeper.out("a") == may.stdout


def test_a_file_larger_than_allowed_ends_the_program_by_its_signal(keeper, line):
    line.start(**keeper.spec("a", "head", "-c", "2000000", "/dev/zero", limits={"file_mb": 1}))
    assert line.record("a")["signal"] == signal.SIGXFSZ


def test_standard_streams_and_files_handed_over(keeper, line):
    words = str(keeper.put("words", "one two "))
    keeper.put("a.out", "before ")
    script = "import os\nfor n in (0, 9, 10): print(os.read(n, 99).decode(), end='')\nprint(os.write(2, b'err'))"
    request = keeper.spec("a", python(keeper), "-I", "-S", "-c", script, stdin=words, open={"9": words, "10": words})
    line.start(**request)
    line.record("a")
    assert keeper.out("a").split() == ["before", *["one", "two"] * 3, "3"]
    assert (keeper.work / "a.err").read_text() == "err"
    line.start(**keeper.sh("b", "wc -c; ls -l /proc/self/fd | grep -c socket"))
    line.record("b")
    assert keeper.out("b").split() == ["0", "0"]


def test_a_log_that_is_a_link_or_a_pipe_is_refused(keeper, line):
    (keeper.work / "a.out").symlink_to("/etc/passwd")
    assert line.ask("start", **keeper.sh("a", "true"))["error"]["code"] == "open"
    os.mkfifo(keeper.work / "b.out")
    assert line.ask("start", **keeper.sh("b", "true"))["error"]["code"] == "open"


def test_use_is_measured(keeper, line):
    script = (
        "import os\nheld = bytearray(os.urandom(1) * (50 << 20))\nwith open('big', 'wb') as f:\n"
        "  f.write(held[:8 << 20]); f.flush(); os.fsync(f.fileno())\n"
        "os.wait() if os.fork() else os._exit(sum(range(10 ** 6)) & 0)\n"
        "print(open('/proc/self/io').read().split()[11], os.times().user + os.times().children_user)"
    )
    line.start(**keeper.spec("a", python(keeper), "-I", "-S", "-c", script))
    record = line.record("a")
    written, user = keeper.out("a").split()
    assert record["written_bytes"] >= int(written)  # what the kernel counts depends on the file system
    assert record["cpu_user_s"] >= float(user) - 0.02
    assert 50 <= record["peak_memory_mb"] < 150


def test_two_hundred_at_once(keeper, line):
    for number in range(200):
        script = "sleep 0.3; exit 3" if number % 2 else "exit 4"
        answer = line.start(**keeper.sh(f"k{number}", script))
        assert answer.get("ok"), answer
    codes = {line.record(f"k{number}")["exit_code"] for number in range(200)}
    assert codes == {3, 4}
    assert not [child for child in line.ask("list")["children"] if child["running"]]


def test_nothing_of_an_attempt_is_left_in_the_cgroups(keeper, line):
    line.start(**keeper.sh("a", "sleep 1000", limits={"memory_mb": 100, "cpu_pct": 50, "processes": 10}))
    line.ask("kill", key="a", reason="cancel", grace_s=0)
    line.record("a")
    name = "ostler-" + (keeper.state / "id").read_text().strip()
    # not by glob, which minds that other keepers' groups come and go beside this one
    found = [Path(folder) / name for folder, below, _ in os.walk("/sys/fs/cgroup") if name in below]
    assert bool(found) == (line.hello["cgroup"] != "none")
    assert [child for path in found for child in path.iterdir() if child.is_dir()] == []
    for path in found:  # somebody tidies up
        path.rmdir()
    line.start(**keeper.sh("b", "exit 3", limits={"memory_mb": 100}))
    assert line.record("b")["exit_code"] == 3


def test_limits_that_nobody_keeps_here_are_named(keeper, line):
    answer = line.start(**keeper.sh("a", "true", limits={"cpu_pct": 50, "of_tomorrow": 3}))
    expected = ["of_tomorrow"] if "cpu" in line.hello["cgroup_controllers"] else ["of_tomorrow", "cpu_pct"]
    assert answer["unenforced"] == expected
    line.record("a")


def bpf(*instructions: tuple[int, int, int, int]) -> bytes:
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def test_a_filter_of_system_calls_is_in_force_from_the_start(keeper, line):
    getppid = {"x86_64": 110, "aarch64": 173}[os.uname().machine]
    path = keeper.work / "filter"
    # load the number; if it is getppid's, answer errno 1; else allow
    path.write_bytes(bpf((0x20, 0, 0, 0), (0x15, 0, 1, getppid), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)))
    path.chmod(0o644)
    script = "import os; print(os.getppid()); print(open('/proc/self/status').read())"
    request = keeper.spec("a", python(keeper), "-I", "-S", "-c", script, seccomp=str(path), no_new_privs=True)
    line.start(**request)
    assert line.record("a")["exit_code"] == 0
    assert keeper.out("a").splitlines()[0] == "-1"
    assert "Seccomp:\t2" in keeper.out("a")
    if keeper.uid:
        error = line.ask("start", **{**request, "no_new_privs": False})["error"]
        assert (error["code"], error["step"], error["errno"]) == ("setup", "seccomp", 13)
    path.write_bytes(b"odd")
    assert "seccomp" in line.ask("start", **request)["error"]["message"]


def test_another_user(keeper, line):
    request = keeper.spec("a", "id", "-u", cwd="/", uid=NOBODY, gid=NOBODY)
    if keeper.uid:
        request["uid"] = 12345
        error = line.ask("start", **request)["error"]
        assert (error["code"], error["step"], error["errno"]) == ("setup", "user", 1)
        return
    line.start(**request)
    line.record("a")
    assert keeper.out("a") == f"{NOBODY}\n"
    line.start(**keeper.spec("b", "id", "-G", cwd="/", uid=NOBODY, gid=NOBODY))
    line.record("b")
    assert keeper.out("b") == f"{NOBODY}\n"
    line.start(**keeper.sh("c", "trap '' TERM; echo on; sleep 1000", cwd="/", uid=NOBODY, limits={"grace_s": 0.2}))
    wait_until(lambda: keeper.out("c"))
    keeper_dies = line.ask("list")["children"]
    line.ask("kill", key="c", reason="cancel")
    assert line.record("c")["signal"] == 9
    assert any(child["running"] for child in keeper_dies)


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed on this machine")
def test_a_sandboxed_program_hears_sigterm_itself(keeper, line):
    """bwrap does not pass signals on: it would end, and take the program with it before its last word."""
    script = "trap 'echo bye; exit 3' TERM; echo on; while :; do sleep 1000 & wait; done"
    argv = [
        "bwrap",
        "--unshare-pid",
        "--unshare-ipc",
        "--ro-bind",
        "/",
        "/",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--die-with-parent",
    ]
    line.start(**keeper.spec("a", *argv, "/bin/sh", "-c", script))
    wait_until(lambda: keeper.out("a"))
    line.ask("kill", key="a", reason="cancel", grace_s=1000)
    record = line.record("a")
    assert (record["killed"], record["exit_code"], record["leftovers_killed"]) == ("cancel", 3, 0)
    assert keeper.out("a") == "on\nbye\n"


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed on this machine")
def test_what_a_sandbox_used_is_its_attempt_s(keeper, line):
    """bwrap ends without waiting for its first process, which has the account of all below it."""
    burn = "import os; end = 0.3\nwhile os.times().user < end: sum(range(10000))"
    argv = [
        "bwrap",
        "--unshare-pid",
        "--ro-bind",
        "/",
        "/",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--die-with-parent",
        "--new-session",
    ]
    for key in "abc":
        line.start(**keeper.spec(key, *argv, python(keeper), "-I", "-S", "-c", burn))
    for key in "abc":
        record = line.record(key)
        assert (record["exit_code"], record["leftovers_killed"]) == (0, 0)
        assert 0.3 <= record["cpu_user_s"] < 0.6, key


SLOW_TO_LEAVE = """
import signal, time
def leave(*_):
    time.sleep(0.3)
    print("saved")
    raise SystemExit
signal.signal(signal.SIGTERM, leave)
print("on", flush=True)
signal.pause()
"""


def test_what_still_ends_by_itself_within_the_grace_may(keeper, line):
    """The root obeys at once; the grace is its child's too."""
    keeper.put("slow", SLOW_TO_LEAVE)
    line.start(**keeper.sh("a", f"trap 'exit 0' TERM; {python(keeper)} -I -S slow & wait"))
    wait_until(lambda: keeper.out("a"))
    line.ask("kill", key="a", reason="cancel", grace_s=1000)
    record = line.record("a")
    assert (record["exit_code"], record["leftovers_killed"]) == (0, 0)
    assert keeper.out("a") == "on\nsaved\n"
