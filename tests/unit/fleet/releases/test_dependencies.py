"""Which libraries a release takes: by the lock file, for each platform."""

import hashlib
from pathlib import Path

import pytest

from ostler.fleet.releases.dependencies import DEFAULTS, Platform, collect, read_lock
from ostler.model.errors import InvalidSpec

LOCK = Path(__file__).resolve().parents[4] / "lock"
WHEELS = ("one-1.0-py3-none-any.whl", "one-1.0-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
          "one-1.0-cp312-cp312-manylinux_2_17_x86_64.whl", "one-1.0-cp39-abi3-manylinux_2_28_aarch64.whl",
          "one-1.0-cp311-cp311-manylinux_2_39_x86_64.whl", "one-1.0-cp311-cp311-win_amd64.whl")  # fmt: skip


def test_the_lock_of_releases_pins_what_the_program_runs_with():
    ours = {pin.name: pin.version for pin in read_lock((LOCK / "run.txt").read_text())}
    pins = read_lock((LOCK / "release.txt").read_text())
    assert pins
    assert {pin.name: pin.version for pin in pins}.items() <= ours.items()
    assert not {"imageio-ffmpeg", "hatchling"} & {pin.name for pin in pins}


@pytest.mark.parametrize("text", DEFAULTS)
def test_markers_are_of_the_platform_and_not_of_this_machine(text):
    a = f"--hash=sha256:{'a' * 64}"
    pins = read_lock(
        f"linux==1 ; sys_platform == 'linux' {a}\nwindows==1 ; sys_platform == 'win32' {a}\n"
        f"old==1 ; python_version < '3.13' \\\n    {a}\narm==1 ; platform_machine == 'aarch64' {a}\n"
    )
    wanted = {pin.name for pin in pins if pin.needed_on(Platform.parse(text))}
    assert wanted == ({"linux"} if text.startswith("cp313") else {"linux", "old"})


@pytest.mark.parametrize(
    "line", ["one==1.0", "one>=1 --hash=sha256:" + "a" * 64, "-r other.txt", "https://x/one.whl", "one @ file:///x"]
)
def test_what_is_not_pinned_is_refused(line):
    with pytest.raises(InvalidSpec, match="pins nothing"):
        read_lock(line + "\n")


@pytest.mark.parametrize(
    "text", ["cp311", "cp310-x86_64", "pp311-x86_64", "cp311-x86_64\n", "cp311-riscv64", "cp311-x86_64; true"]
)
def test_what_is_no_platform_is_refused(text):
    with pytest.raises(InvalidSpec, match="is not a platform"):
        Platform.parse(text)


@pytest.mark.parametrize(
    ("platform", "best"),
    [("cp311-x86_64", WHEELS[1]), ("cp312-x86_64", WHEELS[2]), ("cp313-x86_64", WHEELS[0]), ("cp313-aarch64", WHEELS[3])],
)
def test_the_best_wheel_that_runs_there_is_taken(tmp_path, platform, best):
    for name in WHEELS:
        (tmp_path / name).write_bytes(name.encode())
    hashes = " ".join(f"--hash=sha256:{hashlib.sha256(name.encode()).hexdigest()}" for name in WHEELS)
    wanted = Platform.parse(platform)
    found = collect(read_lock(f"one==1.0 {hashes}\n"), [wanted], tmp_path)
    assert [one.name for one in found[wanted]] == [best]


def test_a_wheel_with_another_hash_is_passed_over(tmp_path):
    for name in WHEELS[:2]:
        (tmp_path / name).write_bytes(name.encode())
    pin = f"one==1.0 --hash=sha256:{hashlib.sha256(WHEELS[0].encode()).hexdigest()}\n"
    wanted = Platform.parse("cp311-x86_64")
    assert collect(read_lock(pin), [wanted], tmp_path)[wanted][0].name == WHEELS[0]


def test_a_link_in_the_cache_is_refused(tmp_path):
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / WHEELS[0]).symlink_to(tmp_path / "real")
    with pytest.raises(InvalidSpec, match="is a symbolic link"):
        collect(read_lock(f"one==1.0 --hash=sha256:{'a' * 64}\n"), [Platform.parse("cp311-x86_64")], tmp_path)
