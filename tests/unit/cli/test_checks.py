from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ostler.cli import checks
from ostler.model.sandbox import BUILT_IN, MissingLevel, SandboxAbilities


def states(found: SandboxAbilities) -> dict[str, str]:
    return {one.name: one.state for one in checks.judge_sandbox(found)}


def test_a_host_with_everything() -> None:
    found = SandboxAbilities(levels=("none", "process", "bwrap"), bwrap="0.8.0", userns=True, seccomp=True, cgroup="v2")
    assert {"bwrap": "ok", "seccomp": "ok", "user namespaces": "ok"}.items() <= states(found).items()


def test_a_host_without_bubblewrap_whose_sandboxes_are_our_own() -> None:
    found = SandboxAbilities(levels=("none", "process", "bwrap"), bwrap=BUILT_IN, seccomp=True)
    assert [one.text for one in checks.judge_sandbox(found) if one.name == "bwrap"] == ["namespaces work"]


def test_a_host_with_little_says_what_mends_it() -> None:
    missing = (
        MissingLevel(level="bwrap", reason="bubblewrap is not installed", mend="apt-get install bubblewrap"),
        MissingLevel(level="process", reason="no seccomp", mend="another kernel"),
    )
    found = list(checks.judge_sandbox(SandboxAbilities(levels=("none",), missing=missing)))
    assert {one.name: one.state for one in found} == {
        "bwrap": "fail",
        "seccomp": "fail",
        "user namespaces": "warn",
        "cgroups": "warn",
    }
    assert found[0].mend == "apt-get install bubblewrap"
    assert all(one.mend for one in found)


@pytest.mark.parametrize(("free_mb", "state"), [(100, "fail"), (1000, "warn"), (5000, "ok")])
def test_disk(free_mb: int, state: str) -> None:
    assert checks.judge_disk("disk", Path("/x"), free_mb * 2**20).state == state


@pytest.mark.parametrize(
    ("tools", "devices", "state"),
    [([], [], "ok"), (["nvidia-smi"], ["/dev/nvidia0"], "ok"), ([], ["/dev/nvidia0"], "warn"), (["nvidia-smi"], [], "ok")],
)
def test_gpu(tools: list[str], devices: list[str], state: str) -> None:
    assert checks.judge_gpu(tools, devices).state == state


@pytest.mark.parametrize(
    ("ahead_s", "took_s", "state", "text"),
    [
        (0, 0.1, "ok", "agrees"),
        (4, 0.1, "ok", "agrees"),
        (20, 0.1, "warn", "is 19 s behind"),
        (-20, 0.1, "warn", "is 19 s ahead of"),
        (600, 0.1, "fail", "is 599 s behind"),
        (6, 3.0, "ok", "agrees"),
    ],
)
def test_clock(ahead_s: float, took_s: float, state: str, text: str) -> None:
    ours = datetime(2026, 1, 1, tzinfo=UTC)
    found = checks.judge_skew(ours + timedelta(seconds=ahead_s), ours, took_s)
    assert found.state == state
    assert found.text.startswith(text)


@pytest.mark.parametrize(
    ("mode", "ours", "state"), [(0o600, True, "ok"), (0o400, True, "ok"), (0o640, True, "fail"), (0o600, False, "fail")]
)
def test_secret_files(mode: int, ours: bool, state: str) -> None:
    assert checks.judge_secret_file(Path("/t"), mode, ours=ours).state == state


def test_a_look_that_breaks_is_a_finding() -> None:
    def look_at_trouble():
        raise RuntimeError("oh")
        yield

    (found,) = checks._safely(look_at_trouble)
    assert (found.name, found.state, found.text) == ("trouble", "fail", "could not be looked at: RuntimeError: oh")


def test_each_warning_has_a_way_out() -> None:
    for kind in ("none", "v1", "v2", "hybrid"):
        for writable in (True, False):
            found = checks.judge_cgroup(kind, writable=writable)
            assert found.state == "ok" or found.mend
