"""Plans are values: what each level makes of a command."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from ostler.model.errors import InvalidSpec
from ostler.model.sandbox import SandboxLevel, strongest
from ostler.node.sandbox import Gate, Host, SandboxPlan, plan

HOST = Host(
    bwrap="/usr/bin/bwrap",
    bwrap_version=(0, 8, 0),
    places=("/usr", "/nix/store"),
    links=(("/bin", "usr/bin"), ("/lib", "usr/lib")),
    etc="/var/lib/ostler/sandbox/etc-1",
    seccomp="/var/lib/ostler/sandbox/seccomp.bpf",
    resolv_conf="/run/resolv.conf",
    kernel=("/proc/bus", "/proc/sys"),
)
WORKSPACE = "/var/lib/ostler/jobs/j-1"


def made(level: SandboxLevel = SandboxLevel.BWRAP, **changes: Any) -> SandboxPlan:
    given: dict[str, Any] = {
        "host": HOST,
        "workspace": WORKSPACE,
        "argv": ["/usr/bin/ffmpeg", "-y"],
        "env": {"PATH": "/usr/bin", "SECRET": "s3cret"},
    }
    return plan(level, **given | changes)


def has(argv: Sequence[str], *run: str) -> bool:
    return any(tuple(argv[at : at + len(run)]) == run for at in range(len(argv)))


def place(argv: Sequence[str], *run: str) -> int:
    return next(at for at in range(len(argv)) if tuple(argv[at : at + len(run)]) == run)


def test_levels_are_ordered_by_strength() -> None:
    assert [level.value for level in sorted(SandboxLevel, key=lambda level: level.rank)] == [
        "none",
        "process",
        "bwrap",
        "unit",
        "container",
    ]
    assert SandboxLevel.BWRAP.at_least(SandboxLevel.PROCESS)
    assert SandboxLevel.BWRAP.at_least(SandboxLevel.BWRAP)
    assert not SandboxLevel.PROCESS.at_least(SandboxLevel.BWRAP)
    assert strongest(SandboxLevel.PROCESS, SandboxLevel.BWRAP, None, SandboxLevel.NONE) is SandboxLevel.BWRAP
    assert strongest() is SandboxLevel.NONE


def test_none_runs_the_command_as_it_is() -> None:
    assert made(SandboxLevel.NONE) == SandboxPlan(
        level=SandboxLevel.NONE,
        argv=("/usr/bin/ffmpeg", "-y"),
        env={"PATH": "/usr/bin", "SECRET": "s3cret"},
        cwd=f"{WORKSPACE}/work",
    )


def test_process_adds_the_filter_and_takes_privileges() -> None:
    assert made(SandboxLevel.PROCESS, uid=1500, gid=1500) == SandboxPlan(
        level=SandboxLevel.PROCESS,
        argv=("/usr/bin/ffmpeg", "-y"),
        env={"PATH": "/usr/bin", "SECRET": "s3cret"},
        cwd=f"{WORKSPACE}/work",
        seccomp="/var/lib/ostler/sandbox/seccomp.bpf",
        no_new_privs=True,
        uid=1500,
        gid=1500,
    )


def test_bwrap_shows_the_workspace_and_nothing_beside_it() -> None:
    argv = made().argv
    assert argv[0] == "/usr/bin/bwrap"
    assert argv[-3:] == ("--", "/usr/bin/ffmpeg", "-y")
    assert has(argv, "--ro-bind", f"{WORKSPACE}/input", f"{WORKSPACE}/input")
    assert has(argv, "--bind", f"{WORKSPACE}/work", f"{WORKSPACE}/work")
    assert has(argv, "--bind", f"{WORKSPACE}/output", f"{WORKSPACE}/output")
    mounts = {argv[at + 2] for at, option in enumerate(argv) if option in ("--bind", "--ro-bind", "--dev-bind")}
    assert mounts == {"/usr", "/nix/store", "/etc", *(f"{WORKSPACE}/{name}" for name in ("input", "work", "output"))}
    assert has(argv, "--symlink", "usr/bin", "/bin")


def test_bwrap_separates_namespaces_and_drops_capabilities() -> None:
    argv = made().argv
    for option in ("pid", "ipc", "uts", "net", "cgroup-try"):
        assert f"--unshare-{option}" in argv
    assert has(argv, "--cap-drop", "ALL")
    assert "--die-with-parent" in argv
    assert "--new-session" in argv
    assert "--unshare-user" not in argv
    assert "--unshare-user" in made(userns=True).argv


def test_bwrap_leaves_nothing_writable_but_work_output_and_tmp() -> None:
    argv = made(tmp_mb=64).argv
    assert place(argv, "--proc", "/proc") < place(argv, "--remount-ro", "/proc")
    assert has(argv, "--size", str(64 * 2**20), "--tmpfs", "/tmp")
    assert has(argv, "--size", str(64 * 2**20), "--tmpfs", "/dev/shm")
    assert place(argv, "--dev", "/dev") < place(argv, "--tmpfs", "/dev/shm") < place(argv, "--remount-ro", "/dev")
    assert place(argv, "--tmpfs", "/tmp") < place(argv, "--bind", f"{WORKSPACE}/work"), "a workspace may lie in /tmp"
    assert place(argv, "--bind", f"{WORKSPACE}/output") < place(argv, "--remount-ro", "/")


def test_an_old_bwrap_gets_no_option_that_it_does_not_know() -> None:
    assert "--size" not in made(host=replace(HOST, bwrap_version=(0, 6, 1))).argv


def test_the_filter_reaches_bwrap_over_a_descriptor() -> None:
    made_plan = made()
    assert has(made_plan.argv, "--seccomp", "9")
    assert made_plan.open_fds == {"9": "/var/lib/ostler/sandbox/seccomp.bpf"}
    assert made_plan.seccomp is None
    assert not made_plan.no_new_privs


def test_secrets_stay_out_of_the_process_list() -> None:
    made_plan = made()
    assert not any("s3cret" in word for word in made_plan.argv)
    assert made_plan.env["SECRET"] == "s3cret"


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "GLIBC_TUNABLES", "GCONV_PATH", "LOCPATH", "HOSTALIASES"]
)
def test_variables_that_act_on_bwrap_itself_are_set_inside_only(name: str) -> None:
    made_plan = made(env={name: "/x/evil.so", "A": "1"})
    assert made_plan.env == {"A": "1"}
    assert has(made_plan.argv, "--setenv", name, "/x/evil.so")


def test_network_only_on_request() -> None:
    assert "--unshare-net" in made().argv
    open_plan = made(network=True)
    assert "--unshare-net" not in open_plan.argv
    assert has(open_plan.argv, "--ro-bind", "/run/resolv.conf", "/etc/resolv.conf")
    assert "/etc/resolv.conf" not in made().argv


def test_devices_come_with_the_topology_that_their_libraries_read() -> None:
    argv = made(devices=["/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia0"]).argv
    assert has(argv, "--dev-bind", "/dev/nvidia0", "/dev/nvidia0", "--dev-bind", "/dev/nvidiactl", "/dev/nvidiactl")
    assert has(argv, "--ro-bind", "/sys/devices", "/sys/devices")
    assert "/sys" not in argv
    assert not any(word.startswith("/sys") for word in made().argv)
    with pytest.raises(InvalidSpec, match="not a device"):
        made(devices=["/etc/shadow"])


def test_who_has_devices_may_name_its_threads() -> None:
    argv = made(devices=["/dev/nvidia0"]).argv
    assert not has(argv, "--remount-ro", "/proc"), "CUDA writes /proc/self/task/N/comm, and gives up where it may not"
    for covered in ("/proc/bus", "/proc/sys"):
        assert place(argv, "--proc", "/proc") < place(argv, "--ro-bind", covered, covered)
    assert not has(made().argv, "--ro-bind", "/proc/sys", "/proc/sys"), "nobody else pays for these mounts"


def test_paths_that_are_shown_anyway_cost_no_mount() -> None:
    argv = made(read_only_paths=["/opt/tool/lib/x", "/opt/tool", "/usr/bin/ffmpeg", "/nix/store/abc", "/opt/tool"]).argv
    assert has(argv, "--ro-bind", "/opt/tool", "/opt/tool")
    assert "/opt/tool/lib/x" not in argv
    assert "/nix/store/abc" not in argv
    assert argv.count("/usr/bin/ffmpeg") == 1, "as the command only"


def test_writable_paths() -> None:
    assert has(made(writable_paths=["/run/ostler/gate.sock"]).argv, "--bind", "/run/ostler/gate.sock")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/proc",
        "/proc/1/root",
        "/etc",
        "/etc/shadow",
        "/root",
        "/home",
        "/var",
        "/var/lib/ostler",
        "/var/lib/ostler/jobs",
        WORKSPACE,
        "/opt/../root",
        "relative",
        "/opt//../..",
        "/a\0b",
    ],
)
def test_paths_that_would_undo_the_sandbox_are_refused(path: str) -> None:
    with pytest.raises(InvalidSpec):
        made(read_only_paths=[path])
    with pytest.raises(InvalidSpec):
        made(writable_paths=[path])


@pytest.mark.parametrize("workspace", ["/", "/proc/1", "/etc/x", "relative", "/var/lib/../../etc"])
def test_workspaces_that_make_no_sense_are_refused(workspace: str) -> None:
    with pytest.raises(InvalidSpec):
        made(workspace=workspace)


def test_the_command_is_an_absolute_path() -> None:
    with pytest.raises(InvalidSpec, match="absolute"):
        made(argv=["ffmpeg"])
    with pytest.raises(InvalidSpec, match="absolute"):
        made(argv=[])


@pytest.mark.parametrize("level", [SandboxLevel.UNIT, SandboxLevel.CONTAINER])
def test_levels_that_do_not_wrap_a_command_are_refused(level: SandboxLevel) -> None:
    with pytest.raises(InvalidSpec, match=level.value):
        made(level)


def test_a_host_without_the_means_is_refused_before_anything_runs() -> None:
    for missing in ("bwrap", "etc", "seccomp"):
        with pytest.raises(InvalidSpec):
            made(host=replace(HOST, **{missing: None}))
    with pytest.raises(InvalidSpec):
        made(SandboxLevel.PROCESS, host=replace(HOST, seccomp=None))


def test_a_long_host_name_is_cut_to_what_the_kernel_takes() -> None:
    assert has(made(hostname="j" * 90).argv, "--hostname", "j" * 64)


def test_a_plan_travels_as_json() -> None:
    made_plan = made()
    assert msgspec.json.decode(msgspec.json.encode(made_plan), type=SandboxPlan) == made_plan


GATE = Gate(outer=("/py", "gate", "--"), inner=("/py", "door", "--"), sync=6, paths=("/opt/py",))


def test_a_gate_stands_around_bwrap_and_around_the_command() -> None:
    argv = made(gate=GATE).argv
    assert argv[:4] == ("/py", "gate", "--", "/usr/bin/bwrap")
    assert argv[-6:] == ("--", "/py", "door", "--", "/usr/bin/ffmpeg", "-y")
    assert has(argv, "--unshare-net")
    assert has(argv, "--sync-fd", "6")
    assert has(argv, "--ro-bind", "/opt/py", "/opt/py")


@pytest.mark.parametrize("level", [SandboxLevel.NONE, SandboxLevel.PROCESS])
def test_only_a_network_of_its_own_can_be_gated(level: SandboxLevel) -> None:
    with pytest.raises(InvalidSpec, match="gated"):
        made(level, gate=GATE)
