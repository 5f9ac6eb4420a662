"""Observing a host, the /etc made from it, and what a command needs of it; over directories made for the purpose."""

import os
import stat
from pathlib import Path

import pytest

from ostler.node.sandbox import etc, needed, observe
from ostler.node.sandbox.binaries import base_of
from ostler.node.sandbox.host import parse_version


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small merged-usr root directory."""
    root = tmp_path / "root"
    for folder in ("usr/bin", "usr/lib", "etc/ssl/certs", "etc/ssl/private", "etc/alternatives", "lib32", "home/me"):
        (root / folder).mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    (root / "lib").symlink_to("usr/lib")
    (root / "etc/ld.so.cache").write_bytes(b"cache")
    (root / "etc/shadow").write_text("root:$6$secret")
    (root / "etc/passwd").write_text("alice:x:1000:1000:Alice:/home/alice:/bin/bash\n")
    (root / "etc/ssl/private/key.pem").write_text("KEY")
    (root / "etc/ssl/certs/ca.pem").write_text("CA")
    (root / "etc/ssl/certs/hidden.pem").write_text("KEY")
    (root / "etc/ssl/certs/hidden.pem").chmod(0o640)
    (root / "etc/ssl/certs/0a.0").symlink_to("ca.pem")
    (root / "etc/alternatives/awk").symlink_to("/usr/bin/mawk")
    (root / "etc/localtime").symlink_to("/usr/share/zoneinfo/Etc/UTC")
    for folder in ("proc/1", "proc/sys/kernel"):
        (root / folder).mkdir(parents=True)
    for name, mode in (("sysrq-trigger", 0o200), ("uptime", 0o444)):
        (root / "proc" / name).touch(mode)
    (root / "proc/net").symlink_to("self/net")
    return root


def test_the_layout_is_observed(root: Path, tmp_path: Path) -> None:
    host = observe(tmp_path / "state", root=root, search=str(tmp_path))
    assert host.places == ("/usr", "/lib32")
    assert host.links == (("/bin", "usr/bin"), ("/lib", "usr/lib"))
    assert host.kernel == ("/proc/sys", "/proc/sysrq-trigger"), "neither processes nor what nobody can write"
    assert host.bwrap is None
    assert host.bwrap_version == ()
    assert host.seccomp is not None
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o711
    assert observe(tmp_path / "state", root=root, search=str(tmp_path)) == host


def test_the_made_etc_holds_no_secret(root: Path, tmp_path: Path) -> None:
    made = etc.make(tmp_path, root=root, uids=(1500,))
    names = {str(path.relative_to(made)) for path in made.rglob("*") if not path.is_dir()}
    assert names == {
        "ld.so.cache",
        "localtime",
        "ssl/certs/ca.pem",
        "ssl/certs/0a.0",
        "alternatives/awk",
        "passwd",
        "group",
        "hosts",
        "nsswitch.conf",
        "resolv.conf",
    }
    assert (made / "passwd").read_text().splitlines() == [
        "root:x:0:0:root:/tmp:/bin/sh",
        "job1500:x:1500:1500:job1500:/tmp:/bin/sh",
        "nobody:x:65534:65534:nobody:/tmp:/bin/sh",
    ]
    assert (made / "ssl/certs/0a.0").readlink() == Path("ca.pem")
    assert str((made / "alternatives/awk").readlink()) == "/usr/bin/mawk"
    assert str((made / "localtime").readlink()) == "/usr/share/zoneinfo/Etc/UTC"


def test_the_made_etc_is_readable_by_every_user(root: Path, tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        made = etc.make(tmp_path, root=root)
    finally:
        os.umask(old)
    for path in (made, *made.rglob("*")):
        if not path.is_symlink():
            assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644)


def test_the_etc_is_made_anew_when_the_host_changes_and_old_ones_stay_a_while(root: Path, tmp_path: Path) -> None:
    first = etc.make(tmp_path, root=root)
    assert etc.make(tmp_path, root=root) == first
    made = [first]
    for turn in range(5):
        (root / "etc/ld.so.cache").write_bytes(b"x" * (turn + 10))
        made.append(etc.make(tmp_path, root=root))
    assert len(set(made)) == 6
    assert made[-1].is_dir()
    assert sum(path.is_dir() for path in made) == 4
    assert not list(tmp_path.glob(".etc-*"))


def test_a_link_out_of_the_shown_places_is_taken_as_a_file(root: Path, tmp_path: Path) -> None:
    (root / "opt").mkdir()
    (root / "opt/zone").write_text("TZif")
    (root / "etc/timezone").symlink_to(root / "opt/zone")
    made = etc.make(tmp_path, root=root)
    assert (made / "timezone").read_text() == "TZif"
    assert not (made / "timezone").is_symlink()


@pytest.mark.parametrize(("text", "version"), [("bubblewrap 0.8.0\n", (0, 8, 0)), ("bubblewrap 0.11.0", (0, 11, 0)), ("huh", ())])
def test_the_version(text: str, version: tuple[int, ...]) -> None:
    assert parse_version(text) == version


def program(path: Path, text: str = "\x7fELF") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An installation of Python with a virtual environment beside it; answers the environment."""
    base = tmp_path / "py/3.11"
    program(base / "bin/python3.11")
    program(base / "lib/python3.11/os.py")
    (base / "bin/python3").symlink_to("python3.11")
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python3").symlink_to(base / "bin/python3")
    (venv / "bin/python").symlink_to("python3")
    (venv / "pyvenv.cfg").write_text(f"home = {base}/bin\nversion = 3.11.7\n")
    return venv


def test_a_plain_binary_needs_itself(tmp_path: Path) -> None:
    ffmpeg = program(tmp_path / "opt/ffmpeg")
    assert needed(str(ffmpeg)) == (str(ffmpeg),)
    link = tmp_path / "ffmpeg"
    link.symlink_to(ffmpeg)
    assert needed(str(link)) == (str(link),)
    assert needed(str(tmp_path / "missing")) == ()


def test_a_virtual_environment_needs_its_prefixes(python: Path, tmp_path: Path) -> None:
    assert needed(f"{python}/bin/python") == (str(python), str(tmp_path / "py/3.11"))
    assert needed(f"{tmp_path}/py/3.11/bin/python3") == (str(tmp_path / "py/3.11"),)


def test_a_script_needs_its_interpreter(python: Path, tmp_path: Path) -> None:
    tool = program(tmp_path / "tools/run", f"#!{python}/bin/python -E\nprint()\n")
    assert needed(str(tool)) == (str(tool), str(python), str(tmp_path / "py/3.11"))
    inside = program(python / "bin/tool", f"#!{python}/bin/python\n")
    assert needed(str(inside)) == (str(python), str(tmp_path / "py/3.11"))
    loop = program(tmp_path / "tools/loop", f"#!{tmp_path}/tools/loop\n")
    assert needed(str(loop)) == (str(loop),)


def test_a_conda_environment_is_needed_whole(tmp_path: Path) -> None:
    (tmp_path / "env/conda-meta").mkdir(parents=True)
    tool = program(tmp_path / "env/bin/ffmpeg")
    assert needed(str(tool)) == (str(tmp_path / "env"),)


def test_a_venv_without_a_home_line() -> None:
    assert base_of("version = 3.11\n") is None
    assert base_of("home=/usr/bin\n") == Path("/usr/bin")
