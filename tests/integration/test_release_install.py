"""A bundle becomes a release on a host, by the real host program in a process of its own; whatever cuts it off, the next try is whole."""

import base64
import hashlib
import json
import marshal
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from ostler.fleet.host import archive, fitting, installing
from ostler.fleet.host.bundle import LOADER, program
from ostler.fleet.host.places import PACKAGES, Places, point
from ostler.fleet.host.refusals import Refused
from ostler.fleet.host.told import Told
from ostler.fleet.releases.store import for_platform, pack
from ostler.model.errors import InvalidSpec
from release_rig import HERE, OTHER, TRIAL, make, new_keys, packed, wheel

PROGRAM = program()
LIBRARY = "library-2-py3-none-any.whl"
BYTES = b"many bytes" * 2000
LIBRARIES = {LIBRARY: packed("library", "2", {"library/__init__.py": b"x = 2\n", "library/data": BYTES})}


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

    def send(self, release):
        """As an updater does: without what the host says that it has."""
        there = self.run("facts")["wheels"]
        return self.run("install", data=for_platform(release.bundle, str(HERE), there))

    def tree(self, release):
        """Each file of a release that came out of its bundle, with its mode and content."""
        home = self.places.release(release.release)
        return {
            str(one.relative_to(home)): (one.lstat().st_mode, one.read_bytes().replace(bytes(home), b"HOME"))
            for one in home.rglob("*")
            if one.is_file() and one.suffix != ".pyc"
        }

    def run_python(self, release, text):
        command = [self.places.release(release.release) / "bin/python", "-I", "-B", "-c", text]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def library(self, release):
        (found,) = self.places.release(release.release).glob("lib/*/site-packages/library")
        return found

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
    for folder in (site.places.updates, site.places.compiled(made.release).parent):
        assert folder.stat().st_mode & 0o777 == 0o700
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


READS = """import json
import pathlib
import sys
import ostler
said = [pathlib.Path(one).read_text() for one in sys.argv[1:]]
print(json.dumps({"version": ostler.__version__, "reads": %s, "needs": []}))
"""


def test_a_trial_that_reads_the_configuration_is_remembered(site, keys, tmp_path):
    """By the hash of that, and of what was put in force rather than of what somebody made of it since; prune forgets it."""
    bare = make(tmp_path / "store", keys, trial=READS % "True")
    site.install(bare)
    assert not site.places.reads(bare.release).exists()  # there was none to read
    site.places.config.parent.mkdir(parents=True)
    site.places.config.write_text("edited: 1\n")
    site.places.applied.write_text("applied: 1\n")
    release = make(tmp_path / "store", keys, "1.1", trial=READS % "said == ['applied: 1\\n']")
    site.install(release)
    known = json.loads(site.places.reads(release.release).read_text())
    assert known["config_sha256"] == hashlib.sha256(b"applied: 1\n").hexdigest()
    later = make(tmp_path / "store", keys, "1.2")
    site.install(later)
    point(site.places.current, f"releases/{later.release}")
    site.run("prune", "--keep", "1")
    assert not site.places.reads(release.release).exists()


def test_a_trial_is_told_of_the_allowlist_that_the_configuration_names(site, keys, tmp_path):
    """So the switch asks nobody, as long as neither of them is another then."""
    site.places.allowlist.mkdir(parents=True)
    (site.places.allowlist / "one.yaml").write_text("command: {path: /usr/bin/true}\n")
    config = f"runners: {{cli: {{allowlist_dir: {site.places.allowlist}}}}}\n"
    site.places.config.write_text(config)
    seen = "import json, os, sys, ostler\nreads = os.listdir(sys.argv[2]) == ['one.yaml']\n"
    release = make(
        tmp_path / "store", keys, trial=seen + 'print(json.dumps({"version": ostler.__version__, "reads": reads, "needs": []}))\n'
    )
    site.install(release)
    (site.places.release(release.release) / "bin/ostler").unlink()
    fitting.check(site.places, release.release, Told(config))
    with pytest.raises(Refused, match="cannot be asked"):
        fitting.check(site.places, release.release, Told(config, files={"allowlist.d/two.yaml": ""}))


@pytest.mark.parametrize("reads", ["False", "'yes'", "1"])
def test_a_trial_that_does_not_say_so_is_not_believed_to_read_it(site, keys, tmp_path, reads):
    """And the release is installed: it may be told another configuration when it is switched to, and is asked then."""
    site.places.config.parent.mkdir(parents=True)
    site.places.config.write_text("one: 1\n")
    release = make(tmp_path / "store", keys, trial=READS % reads)
    assert site.install(release)["release"] == release.release
    assert not site.places.reads(release.release).exists()


def test_a_configuration_that_is_no_text_is_no_matter_of_an_installation(site, keys, tmp_path):
    site.places.config.parent.mkdir(parents=True)
    site.places.config.write_bytes(b"\xff\xfe")
    release = make(tmp_path / "store", keys, trial=READS % "True")
    assert site.install(release)["release"] == release.release
    assert not site.places.reads(release.release).exists()


def test_a_wheel_that_leaves_its_directory_is_refused(site, keys, tmp_path):
    """By who builds; and by the host, where somebody has built and signed it nevertheless."""
    out = {"../../../../out": b"x"}
    with pytest.raises(InvalidSpec, match="would leave its directory"):
        make(tmp_path / "store", keys, more=out)
    made = make(tmp_path / "store", keys)
    with tarfile.open(made.bundle) as bundle:
        (_, envelope), *files = [(one.name, bundle.extractfile(one).read()) for one in bundle.getmembers()]
    payload = json.loads(base64.b64decode(json.loads(envelope)["payload"]))
    bad = wheel("1.0", more=out)
    for one in payload["files"]:
        if one["path"].startswith("wheels/ostler-"):
            del one["unpacked"]
            one |= {"sha256": hashlib.sha256(bad).hexdigest(), "size": len(bad)}
    content = json.dumps(payload).encode()
    files = [(name, bad if name.startswith("wheels/ostler-") else data) for name, data in files]
    bundle = pack([(archive.MANIFEST, keys.envelope(content)), *files])
    answer = site.run("install", "--digest", hashlib.sha256(content).hexdigest(), data=bundle)
    assert (answer["error"], site.names()) == ("unfit", [])
    assert "would leave its directory" in answer["message"]
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


def loading(store, keys, version):
    """A release whose application loads the library when it is tried."""
    libraries = {
        LIBRARY: packed("library", "2", {"library/__init__.py": b"x = 2\n", "library/data": BYTES, "library/more.py": b""})
    }
    return make(store, keys, version, libraries=libraries, trial="import library\n" + TRIAL)


def byte_code(site, release):
    (found,) = site.library(release).glob("__pycache__/__init__.*.pyc")
    return found


def compile_other(there):
    """Byte code of another content, with the head of what is there."""
    return there.read_bytes()[:16] + marshal.dumps(compile("x = 3\n", "library/__init__.py", "exec"))


@pytest.fixture
def two(keys, tmp_path):
    """Releases that have a library in common."""
    return [make(tmp_path / "store", keys, version, libraries=LIBRARIES) for version in ("1.0", "1.1")]


def test_what_a_release_here_has_is_linked_and_need_not_be_sent(site, two, tmp_path):
    """And what comes of it is what comes of the whole bundle on a bare host."""
    first, later = two
    site.install(first)
    assert len(for_platform(later.bundle, str(HERE), site.run("facts")["wheels"])) < len(for_platform(later.bundle, str(HERE)))
    assert site.send(later) == {"release": later.release, "version": "1.1", "was_there": False}
    assert site.says(later) == "1.1"
    for name in ("__init__.py", "data"):
        assert (site.library(first) / name).samefile(site.library(later) / name)
    bare = Site(tmp_path / "bare")
    bare.install(later)
    assert site.tree(later) == bare.tree(later)
    assert site.send(later)["was_there"]
    assert site.run("prune", "--keep", "1")["removed"] == [first.release]
    assert site.says(later) == "1.1"
    assert (site.library(later) / "data").read_bytes() == BYTES


def test_the_whole_bundle_is_linked_to_what_is_here_too(site, two):
    first, later = two
    site.install(first)
    site.install(later)
    assert (site.library(first) / "data").samefile(site.library(later) / "data")


def edited(place):
    (place / "data").write_bytes(BYTES.upper())


def more_rights(place):
    (place / "data").chmod(0o666)


def gone(place):
    (place / "data").unlink()


def a_link(place):
    (place / "data").rename(place / "elsewhere")
    (place / "data").symlink_to("elsewhere")


def a_queue(place):
    (place / "data").unlink()
    os.mkfifo(place / "data")


def its_record(place):
    (record,) = place.parent.glob("library-2.dist-info/RECORD")
    record.write_text("library/__init__.py,,\n../../../../release.json,,\n")


def no_record(place):
    (record,) = place.parent.glob("library-2.dist-info/RECORD")
    record.unlink()


@pytest.mark.parametrize("change", [edited, more_rights, gone, a_link, a_queue, its_record, no_record])
def test_what_was_edited_here_is_never_linked(site, two, change, tmp_path):
    """It has to be sent, and comes out of the bundle; without it nothing is installed."""
    first, later = two
    site.install(first)
    change(site.library(first))
    assert site.send(later) == {"error": "missing", "message": f"the bundle lacks wheels/{LIBRARY}"}
    assert site.names() == [first.release]
    assert site.install(later) == {"release": later.release, "version": "1.1", "was_there": False}
    bare = Site(tmp_path / "bare")
    bare.install(later)
    assert site.tree(later) == bare.tree(later)
    whole = change in {its_record, no_record}  # then the file itself is what comes out of the bundle
    assert (site.library(first) / "data").exists() == (change is not gone)
    assert change is gone or (site.library(first) / "data").samefile(site.library(later) / "data") == whole
    assert (site.library(first) / "__init__.py").samefile(site.library(later) / "__init__.py")


def test_byte_code_that_was_made_here_is_linked_with_its_file(site, keys, tmp_path):
    first, later, third = (loading(tmp_path / "store", keys, version) for version in ("1.0", "1.1", "1.2"))
    site.install(first)
    site.send(later)
    one, other = byte_code(site, first), byte_code(site, later)
    assert one.samefile(other)
    one.write_bytes(compile_other(one))  # of the same file, as far as Python would see
    site.send(third)
    assert not byte_code(site, third).samefile(one)
    assert (site.library(first) / "data").samefile(site.library(third) / "data")
    found = site.run_python(third, "import library; print(library.x)")
    assert found == "2"


def changed(store, keys, version, **files):
    """A release whose application has these modules beside its own; it loads them when it is tried."""
    more = {f"ostler/{name}.py": text.encode() for name, text in files.items()}
    return make(store, keys, version, more=more, trial="".join(f"import ostler.{name}\n" for name in files) + TRIAL)


def test_of_a_wheel_that_changed_the_files_that_did_not_are_linked_with_their_byte_code(site, keys, tmp_path):
    first = changed(tmp_path / "store", keys, "1.0", same="x = 1\n", other="x = 1\n")
    later = changed(tmp_path / "store", keys, "1.1", same="x = 1\n", other="x = 2\n", fresh="x = 3\n")
    third = changed(tmp_path / "store", keys, "1.2", same="x = 1\n", other="x = 1\n")
    site.install(first)
    site.install(later, first=False)

    def place(release, name):
        (found,) = site.places.release(release.release).glob(f"lib/*/site-packages/ostler/{name}")
        return found

    def cached(release, name):
        return place(release, f"__pycache__/{name}.{sys.implementation.cache_tag}.pyc")

    assert place(first, "same.py").samefile(place(later, "same.py"))
    assert cached(first, "same").samefile(cached(later, "same"))
    assert not place(first, "other.py").samefile(place(later, "other.py"))
    assert not cached(first, "other").samefile(cached(later, "other"))
    assert site.run_python(later, "from ostler import same, other, fresh; print(same.x, other.x, fresh.x)") == "1 2 3"
    # Byte code that somebody put there, of another content and with the head of what was there, is none that was made here.
    cached(first, "same").write_bytes(cached(first, "same").read_bytes()[:16] + marshal.dumps(compile("x = 9\n", "same", "exec")))
    place(later, "same.py").chmod(0o666)
    site.install(third, first=False)
    assert site.run_python(third, "from ostler import same, other; print(same.x, other.x)") == "1 1"
    assert not place(third, "same.py").samefile(place(later, "same.py"))  # everybody may write to it
    assert place(third, "other.py").samefile(place(first, "other.py"))
    bare = Site(tmp_path / "bare")
    bare.install(third)
    assert site.tree(third) == bare.tree(third)


def test_byte_code_of_which_nobody_knows_is_not_linked(site, keys, tmp_path):
    """As what a root's command left beside a file; or the record is gone."""
    first, later, third = (loading(tmp_path / "store", keys, version) for version in ("1.0", "1.1", "1.2"))
    site.install(first)
    stray = byte_code(site, first).with_name(byte_code(site, first).name.replace("__init__", "more"))
    stray.write_bytes(byte_code(site, first).read_bytes())
    site.send(later)
    assert [one.name for one in byte_code(site, later).parent.iterdir()] == [byte_code(site, later).name]
    for one in (first, later):
        site.places.compiled(one.release).unlink()
    site.send(third)
    assert not byte_code(site, third).samefile(byte_code(site, later))
    assert site.run_python(third, "import library; print(library.x)") == "2"


def test_a_third_release_is_linked_to_whichever_is_whole(site, two, keys, tmp_path):
    first, later = two
    site.install(first)
    site.install(later)
    (site.library(later) / "data").unlink()
    (site.library(later) / "data").write_bytes(b"by hand")
    third = make(tmp_path / "store", keys, "1.2", libraries=LIBRARIES)
    assert site.send(third)["release"] == third.release
    assert (site.library(third) / "data").samefile(site.library(first) / "data")


def test_sigkill_after_wheels_were_linked(site, two, tmp_path, keys):
    first, _ = two
    once = tmp_path / "once"
    deadly = (
        f"import os, pathlib\np = pathlib.Path({str(once)!r})\nif not p.exists():\n    p.touch()\n    os.kill(os.getppid(), 9)\n"
    )
    later = make(tmp_path / "store", keys, "1.3", libraries=LIBRARIES, trial=deadly + TRIAL)
    site.install(first)
    data = for_platform(later.bundle, str(HERE), site.run("facts")["wheels"])
    with site.start("install") as process:
        process.communicate(PROGRAM + data)
    assert site.names() == [first.release, f"{later.release}.partial"]
    assert site.send(later)["release"] == later.release
    assert site.names() == [first.release, later.release]
    assert (site.library(first) / "data").read_bytes() == (site.library(later) / "data").read_bytes() == BYTES


def test_what_cannot_be_linked_is_copied(two, tmp_path):
    """Here since the release before lies on another file system."""
    first, later = two
    site, other = Site(tmp_path / "host"), Path("/dev/shm") / f"ostler-{os.getpid()}"
    site.install(first)
    home = site.places.release(first.release)
    shutil.move(home, other)
    try:
        home.symlink_to(other)
        assert site.send(later)["release"] == later.release
        assert (site.library(later) / "data").read_bytes() == BYTES
        assert not (site.library(first) / "data").samefile(site.library(later) / "data")
        bare = Site(tmp_path / "bare")
        bare.install(later)
        assert site.tree(later) == bare.tree(later)
    finally:
        shutil.rmtree(other)


MODULE, MARK = f"{PACKAGES}/ostler/cli/entry.py", b"# by hand\n"


def edit(file):
    file.write_bytes(file.read_bytes() + MARK)


def edit_with_record(file):
    """As somebody who hides it."""
    before = base64.urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).rstrip(b"=")
    edit(file)
    after = base64.urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).rstrip(b"=")
    record = file.parents[2] / "ostler-1.0.dist-info/RECORD"
    record.write_bytes(record.read_bytes().replace(before, after))


def a_fifo(file):
    file.unlink()
    os.mkfifo(file)


def moved_away(folder):
    """And a link put in its place."""
    folder.rename(folder.parents[5] / "elsewhere")
    folder.symlink_to(folder.parents[5] / "elsewhere")


def packed64(value):
    return base64.b64encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize(
    ("path", "change", "named"),
    [
        (MODULE, edit, MODULE),
        (MODULE, edit_with_record, f"{PACKAGES}/ostler-1.0.dist-info/RECORD"),
        (MODULE, Path.unlink, MODULE),
        (MODULE, lambda file: file.chmod(0o666), MODULE),
        (f"{PACKAGES}/stray.pth", Path.touch, f"{PACKAGES}/stray.pth"),
        ("units/ostler-node.service", edit, "units/ostler-node.service"),
        ("bin/ostler", edit, "bin/ostler"),
        ("release.json", lambda file: file.write_text("{}"), "release.json"),
        ("release.json", lambda file: file.write_text(json.dumps({"payload": packed64({"files": ["x"]})})), "release.json"),
        ("release.json", lambda file: file.write_text("[" * 10_000), "release.json"),
        ("release.json", a_fifo, "release.json"),
        ("pyvenv.cfg", edit, "pyvenv.cfg"),
        ("bin/python", Path.unlink, "bin/python"),
        ("bin/python", lambda file: (file.unlink(), file.symlink_to("/usr/bin/false")), "bin/python"),
        ("bin/python", lambda file: (file.unlink(), file.symlink_to("python")), "bin/python"),
        ("bin/ostler", lambda file: file.chmod(0o777), "bin/ostler"),
        ("bin/ostler", lambda file: file.chmod(0o4755), "bin/ostler"),
        ("units/ostler-node.service", lambda file: file.chmod(0o666), "units/ostler-node.service"),
        ("units/ostler-node.service", a_fifo, "units/ostler-node.service"),
        (MODULE, a_fifo, MODULE),
        (f"{PACKAGES}/ostler", lambda folder: folder.chmod(0o777), f"{PACKAGES}/ostler"),
        (f"{PACKAGES}/ostler", moved_away, f"{PACKAGES}/ostler"),
        (f"{PACKAGES}/ostler/__pycache__", lambda folder: folder.chmod(0o777), f"{PACKAGES}/ostler/__pycache__"),
        (
            f"{PACKAGES}/ostler/__pycache__/x.pyc",
            lambda file: file.touch() or file.chmod(0o666),
            f"{PACKAGES}/ostler/__pycache__/x.pyc",
        ),
        (f"{PACKAGES}/sitecustomize", lambda file: file.symlink_to("/tmp"), f"{PACKAGES}/sitecustomize"),
        (f"{PACKAGES}/namespace", Path.mkdir, f"{PACKAGES}/namespace"),
        ("stray", Path.touch, "stray"),
        (f"{PACKAGES}/stray", os.mkfifo, f"{PACKAGES}/stray"),
        (f"{PACKAGES}/\udcff\x1b.pth", Path.touch, f"{PACKAGES}/\\\\xff\\x1b.pth"),
    ],
)
def test_what_was_altered_of_a_release_is_named_and_brought_anew(site, keys, tmp_path, path, change, named):
    made = make(tmp_path / "store", keys)
    site.install(made)
    whole = site.tree(made)
    point(site.places.current, f"releases/{made.release}")
    assert site.run("facts", "--thorough")["altered"] == []
    change(site.places.release(made.release) / path)
    assert site.run("facts", "--thorough")["altered"] == [named]
    assert site.run("facts")["altered"] == []  # nobody asked
    assert not site.places.start_due.exists()
    assert not site.install(made)["was_there"]
    assert site.places.start_due.exists()  # its daemon is to be started anew
    assert site.tree(made) == whole
    assert site.run("facts", "--thorough")["altered"] == []
    assert site.names() == [made.release]


@pytest.mark.parametrize("name", ["RECORD", "entry_points.txt"])
def test_what_tells_of_a_wheel_and_cannot_be_read_says_nothing_of_the_others(site, keys, tmp_path, name):
    """Nobody waits at it."""
    made = make(tmp_path / "store", keys)
    site.install(made)
    whole = site.tree(made)
    point(site.places.current, f"releases/{made.release}")
    a_fifo(site.places.release(made.release) / f"{PACKAGES}/ostler-1.0.dist-info/{name}")
    assert {"bin/ostler", f"{PACKAGES}/ostler-1.0.dist-info/{name}"} <= set(site.run("facts", "--thorough")["altered"])
    assert not site.install(made)["was_there"]
    assert site.tree(made) == whole


def test_of_many_that_were_put_there_some_are_named_and_the_others_counted(site, keys, tmp_path):
    made = make(tmp_path / "store", keys)
    site.install(made)
    point(site.places.current, f"releases/{made.release}")
    folder = site.places.release(made.release) / "many"
    folder.mkdir()
    for number in range(20_000):
        (folder / f"{number:05}").touch()
    altered = site.run("facts", "--thorough")["altered"]
    assert altered == ["many", *(f"many/{number:05}" for number in range(99)), "19901 more"]
    assert not site.install(made)["was_there"]
    assert not folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="root gives files to others")
@pytest.mark.parametrize("path", ["bin/ostler", "units", "release.json", MODULE, f"{PACKAGES}/ostler/__pycache__", "."])
def test_what_is_not_roots_is_named_and_brought_anew(site, keys, tmp_path, path):
    made = make(tmp_path / "store", keys)
    site.install(made)
    home = site.places.release(made.release)
    point(site.places.current, f"releases/{made.release}")
    os.chown(home / path, 65534, 0)
    named = {".": made.release, MODULE: MODULE}.get(path, path)
    assert named in site.run("facts", "--thorough")["altered"]
    assert not site.install(made)["was_there"]
    assert site.run("facts", "--thorough")["altered"] == []
    assert home.stat().st_uid == (home / path).stat().st_uid == 0


def test_what_was_edited_in_two_releases_at_once_is_edited_in_none_once_both_were_brought_anew(site, two):
    """They share the file. It becomes another one: it is never linked again."""
    first, later = two
    site.install(first)
    site.send(later)
    file, other = site.library(first) / "data", site.library(later) / "data"
    edit(file)
    inode = file.stat().st_ino
    assert file.samefile(other)
    path = str(file.relative_to(site.places.release(first.release)))
    assert [site.run("altered", "--release", one.release) for one in two] == [{"altered": [path]}] * 2
    assert site.send(first) == {"error": "missing", "message": f"the bundle lacks wheels/{LIBRARY}"}
    assert not site.install(first)["was_there"]
    assert not site.send(later)["was_there"]  # linked from the one that is whole now
    assert [site.run("altered", "--release", one.release) for one in two] == [{"altered": []}] * 2
    assert file.read_bytes() == other.read_bytes() == BYTES
    assert inode not in {file.stat().st_ino, other.stat().st_ino}


@pytest.mark.parametrize("left", ["link", "file", "folder"])
def test_what_was_left_half_done_is_gone_whatever_it_is(site, two, tmp_path, left):
    """What a link refers to is somebody else's."""
    first, later = two
    site.install(first)
    partial, elsewhere = site.places.releases / "x.partial", tmp_path / "elsewhere"
    elsewhere.mkdir()
    {"link": lambda: partial.symlink_to(elsewhere), "file": partial.touch, "folder": partial.mkdir}[left]()
    assert site.send(later)["release"] == later.release
    assert site.names() == [first.release, later.release]
    assert elsewhere.is_dir()


@pytest.mark.parametrize("where", ["elsewhere", "nowhere"])
def test_a_release_that_became_a_link_is_named_and_brought_anew(site, keys, tmp_path, where):
    made = make(tmp_path / "store", keys)
    site.install(made)
    whole, home = site.tree(made), site.places.release(made.release)
    point(site.places.current, f"releases/{made.release}")
    home.rename(tmp_path / "elsewhere")
    home.symlink_to(tmp_path / where)
    assert site.run("facts", "--thorough")["altered"] == [made.release if where == "elsewhere" else "release.json"]
    assert not site.install(made)["was_there"]
    assert (home.is_symlink(), site.tree(made), site.names()) == (False, whole, [made.release])
    assert (tmp_path / "elsewhere/bin/ostler").exists()


class CutOff(BaseException):
    """As by SIGKILL."""


@pytest.mark.parametrize("exchange", [True, False])
def test_a_release_is_whole_at_any_moment_while_it_is_brought_anew(site, keys, tmp_path, monkeypatch, exchange):
    """Where two directories can take each other's names in one step."""
    made = make(tmp_path / "store", keys)
    site.install(made)
    home, half = site.places.release(made.release), site.places.releases / f"{made.release}.partial"
    shutil.copytree(home, half, symlinks=True)
    (home / "stray").touch()
    (home / MODULE).unlink()
    rename = Path.rename

    def cut_off(*_):
        monkeypatch.setattr(Path, "rename", rename)
        raise CutOff

    monkeypatch.setattr("ostler.fleet.host.installing.sync", cut_off)
    monkeypatch.setattr(Path, "rename", lambda one, to: (rename(one, to), monkeypatch.setattr(Path, "rename", cut_off)))
    if not exchange:
        monkeypatch.setattr("ostler.fleet.host.installing._exchange", lambda one, other: False)
    with pytest.raises(CutOff):
        installing._name(site.places, half, home)
    assert home.exists() == exchange
    assert site.install(made)["was_there"] == exchange
    assert site.says(made) == "1.0"
    assert site.names() == [made.release]


def test_a_release_whose_manifest_tells_nothing_of_its_wheels_is_as_whole_as_one_can_see(site, keys, tmp_path, monkeypatch):
    """As they were before."""
    monkeypatch.setattr("ostler.fleet.host.wheels.unpacked", lambda wheel, name: None)
    made = make(tmp_path / "store", keys)
    site.install(made)
    point(site.places.current, f"releases/{made.release}")
    edit(site.places.release(made.release) / MODULE)
    assert site.run("facts", "--thorough")["altered"] == []
