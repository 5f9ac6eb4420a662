"""A bundle becomes a release on a host, by the real host program in a process of its own; whatever cuts it off, the next try is whole."""

import json
import os
import subprocess
import sys

import pytest

from ostler.fleet.host.bundle import LOADER, program
from ostler.fleet.host.places import Places, point
from ostler.fleet.releases.store import for_platform
from release_rig import HERE, OTHER, TRIAL, make, new_keys

PROGRAM = program()


class Site:
    """A host's file system below a directory, and the host program on it."""

    def __init__(self, root):
        self.places = Places(root)

    def start(self, verb, *args):
        argv = [sys.executable, "-I", "-c", LOADER, str(len(PROGRAM)), "--root", str(self.places.root), verb, *args]
        return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, verb, *args, data=b""):
        with self.start(verb, *args) as process:
            out, err = process.communicate(PROGRAM + data)
        assert not err, err.decode()
        return json.loads(out)

    def install(self, release, *, first=True):
        digest = ("--digest", release.manifest.digest) if first else ()
        return self.run("install", *digest, data=for_platform(release.bundle, str(HERE)))

    def says(self, release):
        found = subprocess.run([self.places.release(release.release) / "bin/ostler"], capture_output=True, text=True, check=True)
        return found.stdout.strip()

    def names(self):
        return sorted(one.name for one in self.places.releases.iterdir() if one.name != ".lock")


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path / "host")


@pytest.fixture
def keys(tmp_path):
    return new_keys(tmp_path / "keys")


def test_a_bare_host_takes_the_release_whose_digest_it_is_told_and_then_what_its_keys_signed(site, keys, tmp_path):
    first, later = make(tmp_path / "store", keys), make(tmp_path / "store", keys, "1.1")
    assert site.install(first, first=False)["error"] == "untrusted"
    assert site.run("install", "--digest", later.manifest.digest, data=first.bundle.read_bytes())["error"] == "untrusted"
    assert site.names() == []
    assert site.install(first) == {"release": first.release, "version": "1.0", "was_there": False}
    assert site.says(first) == "1.0"
    assert site.install(first)["was_there"]
    assert site.install(later, first=False)["release"] == later.release
    stranger = make(tmp_path / "strange", new_keys(tmp_path / "strangers"), "9.0")
    assert site.install(stranger)["error"] == "untrusted"
    assert site.names() == sorted((first.release, later.release))


def test_what_is_installed_is_roots_and_readable(site, keys, tmp_path):
    made = make(tmp_path / "store", keys)
    site.install(made)
    home = site.places.release(made.release)
    assert sorted(one.name for one in home.iterdir()) == ["bin", "lib", "pyvenv.cfg", "release.json", "units"]
    for one in (site.places.ostler, site.places.releases, home, *home.rglob("*")):
        if not one.is_symlink():
            assert one.stat().st_mode & 0o777 == (0o755 if one.is_dir() or one.parent.name == "bin" else 0o644), one
    assert site.places.keys.stat().st_mode & 0o777 == 0o600
    assert site.places.updates.stat().st_mode & 0o777 == 0o700
    assert list(home.glob("lib/*/site-packages/ostler/__pycache__/*.pyc"))


def test_keys_rotate_with_overlap_and_an_old_release_brings_none_back(site, keys, tmp_path):
    (old,) = keys.trusted
    first = make(tmp_path / "store", keys, "1.0")
    site.install(first)
    both = keys.with_new()
    site.install(make(tmp_path / "store", both, "1.1"), first=False)
    new = both.without(old)
    site.install(make(tmp_path / "store", new, "1.2"), first=False)
    assert json.loads(site.places.keys.read_text())["keys"].keys() == new.trusted.keys()
    assert site.install(make(tmp_path / "store", keys, "1.3"), first=False)["error"] == "untrusted"  # whoever stole the old key
    again = make(tmp_path / "store", both, "1.4")
    assert not site.install(again, first=False)["was_there"]
    assert json.loads(site.places.keys.read_text())["keys"].keys() == new.trusted.keys()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 0.999])
def test_sigkill_while_the_bundle_comes(site, keys, tmp_path, share):
    made = make(tmp_path / "store", keys)
    data = PROGRAM + for_platform(made.bundle, str(HERE))
    with site.start("install", "--digest", made.manifest.digest) as process:
        process.stdin.write(data[: len(PROGRAM) + int(share * (len(data) - len(PROGRAM)))])
        process.stdin.flush()
        process.kill()
    assert not site.places.releases.exists() or made.release not in site.names()
    assert site.install(made) == {"release": made.release, "version": "1.0", "was_there": False}
    assert site.names() == [made.release]
    assert site.says(made) == "1.0"


def test_sigkill_while_a_release_is_tried(site, keys, tmp_path):
    once = tmp_path / "once"
    deadly = (
        f"import os, pathlib\np = pathlib.Path({str(once)!r})\nif not p.exists():\n    p.touch()\n    os.kill(os.getppid(), 9)\n"
    )
    made = make(tmp_path / "store", keys, trial=deadly + TRIAL)
    with site.start("install", "--digest", made.manifest.digest) as process:
        process.communicate(PROGRAM + for_platform(made.bundle, str(HERE)))
    assert once.exists()
    assert site.names() == [f"{made.release}.partial"]
    assert site.install(made)["release"] == made.release
    assert site.names() == [made.release]


@pytest.mark.parametrize("trial", ["import nothing_of_that_name\n", 'print(\'{"version": "2.0"}\')\n', "raise SystemExit(3)\n"])
def test_what_does_not_start_here_is_not_installed(site, keys, tmp_path, trial):
    answer = site.install(make(tmp_path / "store", keys, trial=trial))
    assert answer["error"] == "unfit"
    assert "does not start on this host" in answer["message"]
    assert site.names() == []


def test_a_wheel_that_leaves_its_directory_is_refused(site, keys, tmp_path):
    answer = site.install(make(tmp_path / "store", keys, more={"../../../../out": b"x"}))
    assert (answer["error"], site.names()) == ("unfit", [])
    assert not list(tmp_path.rglob("out"))


def test_a_release_for_others_is_refused(site, keys, tmp_path):
    answer = site.run("install", "--digest", "0" * 64, data=b"\0" * 10240)
    assert answer["error"] == "unfit"
    made = make(tmp_path / "store", keys, platforms=(OTHER,))
    answer = site.run("install", "--digest", made.manifest.digest, data=made.bundle.read_bytes())
    assert answer["message"] == f"release {made.release} is for {OTHER}; this host is {HERE}"


def test_a_full_disk_leaves_what_was_there(site, keys, tmp_path):
    first = make(tmp_path / "store", keys)
    large = make(tmp_path / "store", keys, "2.0", more={"ostler/large": os.urandom(2 << 20)})
    site.places.ostler.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(site.places.ostler)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("a small file system needs root, and mounts")
    try:
        site.install(first)
        answer = site.install(large, first=False)
        assert answer["error"] == "disk"
        assert "no space left for release 2.0-" in answer["message"]
        assert site.names() == [first.release]
        assert site.says(first) == "1.0"
    finally:
        subprocess.run(["umount", str(site.places.ostler)], check=True)


def test_prune_keeps_what_is_in_force_and_what_a_way_back_needs(site, keys, tmp_path):
    made = [make(tmp_path / "store", keys, f"1.{number}") for number in range(5)]
    for number, one in enumerate(made):
        site.install(one)
        os.utime(site.places.release(one.release), (number, number))
    point(site.places.current, f"releases/{made[0].release}")
    site.places.last.write_text(json.dumps({"release": made[0].release, "previous": made[1].release}))
    assert site.run("prune", "--keep", "1") == {"removed": [made[3].release, made[2].release]}
    assert site.names() == sorted(made[number].release for number in (0, 1, 4))
    assert site.run("prune", "--keep", "1") == {"removed": []}


def test_prune_keeps_what_a_process_was_started_from(site, keys, tmp_path):
    """As the keeper, which runs on over many updates, and so does what it will load yet."""
    made = [make(tmp_path / "store", keys, f"1.{number}") for number in range(3)]
    for number, one in enumerate(made):
        site.install(one)
        os.utime(site.places.release(one.release), (number, number))
    keeper = subprocess.Popen(
        [site.places.release(made[0].release) / "bin/python", "-I", "-S", "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
    )
    try:
        assert site.run("prune", "--keep", "1") == {"removed": [made[1].release]}
    finally:
        keeper.communicate()
    assert site.run("prune", "--keep", "1") == {"removed": [made[0].release]}
