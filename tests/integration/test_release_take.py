"""What a daemon that somebody has taken over can have root do with its requests: nothing that a release key did not sign, nothing older.

There is no systemd here, so what is accepted ends where units would be installed (`GOOD`); real hosts go on in `tests/fleet`.
"""

import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
import time

import pytest

from ostler.fleet.host import accounts, floor, switching, taking
from ostler.fleet.host.lock import take as take_lock
from ostler.fleet.host.places import PROGRAM, Places, point, read_json, write_json
from ostler.fleet.host.refusals import Refused
from ostler.fleet.releases.keys import open_keys
from ostler.node.updates import _remove as clear
from release_rig import make, new_keys

GOOD = "lacks ostler-node.service, ostler-keeper.service|lacks ostler-keeper.service"
ITS_PROGRAM = {"ostler/fleet/host/__init__.py": b"", "ostler/fleet/host/program.py": b"def main(arguments): return 0\n"}
SECRET = b"root:$6$the-shadow:19000:0:99999:7:::\n"


class Site:
    """A host below a directory, with a first release in force, and the hand of its daemon."""

    def __init__(self, root, first):
        self.places = Places(root / "host")
        self.places.drop.mkdir(parents=True)
        self.shadow = root / "shadow"
        self.shadow.write_bytes(SECRET)
        with first.bundle.open("rb") as bundle:
            taking.installing.install(self.places, bundle, digest=first.manifest.digest)
        point(self.places.current, f"releases/{first.release}")

    def put(self, content, name=taking.BUNDLE):
        (self.places.drop / name).write_bytes(content)

    def ask(self, release, **changes):
        name = release if isinstance(release, str) else release.release
        asked = {"rollout_id": "r1", "release": name, "window_s": 5, "back": None} | changes
        self.put(json.dumps(asked).encode(), taking.REQUEST)

    def request(self, release, content=None, *, name=None, **changes):
        self.put(release.bundle.read_bytes() if content is None else content)
        self.ask(name or release, **changes)
        return self.take()

    def take(self):
        said = taking.take(self.places, b"program")
        assert not os.path.lexists(self.places.drop / taking.REQUEST)
        assert not os.path.lexists(self.places.drop / taking.BUNDLE)
        assert read_json(self.places.lock) is None
        if said["stage"] != "nothing":
            told = read_json(self.places.published)
            assert {name: told[name] for name in ("update_id", "release", "stage", "reason")} == {
                "update_id": said["update_id"], "release": said["release"], "stage": said["stage"], "reason": said["reason"]
            }  # fmt: skip
        assert self.shadow.read_bytes() == SECRET
        return said["reason"]

    def names(self):
        return {one.name for one in self.places.releases.iterdir() if one.name != ".lock"}


@pytest.fixture
def keys(tmp_path):
    return new_keys(tmp_path / "keys")


@pytest.fixture
def first(tmp_path, keys):
    return make(tmp_path / "store", keys, "1.0", made=1000)


@pytest.fixture
def site(tmp_path, first, monkeypatch):
    """The user of the daemon is whoever runs the tests: an account cannot be made for them."""
    monkeypatch.setattr(accounts, "identity", lambda: (os.getuid(), os.getgid()))
    return Site(tmp_path, first)


def accepted(why):
    return any(one in why for one in GOOD.split("|"))


def test_what_is_signed_and_newer_is_installed_with_its_own_program(site, keys, tmp_path):
    newer = make(tmp_path / "store", keys, "1.0", made=2000, more=ITS_PROGRAM)
    assert accepted(site.request(newer))
    assert newer.release in site.names()
    home = site.places.release(newer.release)
    done = subprocess.run(["/usr/bin/python3", "-I", home / PROGRAM, "take"], check=False)
    assert done.returncode == 0
    assert stat.S_IMODE(site.places.published.stat().st_mode) == 0o640
    assert accepted(site.request(newer, b""))  # it is there: the bundle is not looked at


def test_one_that_is_here_and_was_altered_is_not_put_in_force(site, keys, first):
    home = site.places.release(first.release)
    (home / "bin/ostler").write_text("by hand\n")
    why = site.request(first)
    assert why == f"release {first.release} was altered on this host (bin/ostler): `ostler fleet update` over SSH brings it anew"
    assert (home / "bin/ostler").read_text() == "by hand\n"


def test_a_request_alone_starts_nothing(site, first):
    assert taking.take(site.places, b"program") == {"stage": "nothing"}
    site.ask("1.0-999999999999")
    assert site.take() == "there is no bundle.tar beside the request"


def damaged(content):
    place = content.index(b"[Service]")
    return content[:place] + b"[Servile]" + content[place + 9 :]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(damaged, "its hash is not the manifest's", id="tampered"),
        pytest.param(lambda content: content[: len(content) // 3], "not a whole bundle", id="half"),
        pytest.param(lambda content: b"", "not a whole bundle|does not begin with", id="empty"),
    ],
)
def test_what_is_not_as_it_was_signed_is_refused(site, keys, tmp_path, change, says):
    newer = make(tmp_path / "store", keys, "1.1", made=2000)
    before = site.names()
    why = site.request(newer, change(newer.bundle.read_bytes()))
    assert any(one in why for one in says.split("|"))
    assert site.names() == before


def test_anothers_key_and_another_release_are_refused(site, keys, tmp_path):
    eves = make(tmp_path / "eve", new_keys(tmp_path / "eves-keys"), "9.9", made=9999)
    assert "signed by no key that is trusted here" in site.request(eves)
    newer = make(tmp_path / "store", keys, "1.1", made=2000)
    assert f"the bundle is of release {newer.release}, not of 1.0-000000000000" in site.request(newer, name="1.0-000000000000")
    assert len(site.names()) == 1


def test_an_older_release_is_not_played_again(site, keys, tmp_path):
    """By its version, and of the same version by its commit's time; whether its files are here still, or come with the request."""
    for older in (make(tmp_path / "store", keys, "0.9", made=9999), make(tmp_path / "store", keys, "1.0", made=999)):
        assert "is older than 1.0-" in site.request(older)
        assert older.release not in site.names()
    newer = make(tmp_path / "store", keys, "1.1", made=2000)
    assert accepted(site.request(newer))
    floor.settle(site.places, newer.release, lower=False)
    again = make(tmp_path / "store", keys, "1.0", made=1000)
    assert again.release in site.names()
    assert f"is older than {newer.release}" in site.request(again)
    floor.settle(site.places, again.release, lower=False)  # found good is not enough to lower it
    assert f"is older than {newer.release}" in site.request(again)
    floor.settle(site.places, again.release, lower=True)  # root has switched there
    assert accepted(site.request(again))


def test_one_that_is_here_and_whose_key_was_retired_is_refused(site, keys, first, tmp_path):
    both = keys.with_new()
    overlap = make(tmp_path / "store", both, "1.1", made=2000)
    assert accepted(site.request(overlap))
    gone = both.without(next(iter(keys.trusted)))
    assert accepted(site.request(make(tmp_path / "store", gone, "1.2", made=3000)))
    site.ask(first)
    assert site.take() == f"release {first.release} is signed by no key that is still trusted here"
    assert open_keys(tmp_path / "keys").generation == 3


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"\xff", b"{}", b"[" * 4000, b'{"rollout_id": "r1", "release": "1.0-0", "window_s": "5"}',
        b'{"rollout_id": "../r", "release": "1.0-0", "window_s": 5}', b'{"rollout_id": "r1", "release": 7, "window_s": 5}',
        b'{"rollout_id": "r1", "release": "1.0-0", "window_s": true}',
        b'{"rollout_id": "r1", "release": "1.0-0", "window_s": 5, "back": 1}',
    ],
)  # fmt: skip
def test_a_request_of_another_shape_is_refused_and_gone(site, content):
    site.put(content, taking.REQUEST)
    with pytest.raises(Refused, match="the request"):
        taking.take(site.places, b"program")
    assert not (site.places.drop / taking.REQUEST).exists()
    assert not site.places.published.exists()


@pytest.mark.parametrize("release", ["../../etc", "a/b", ".hidden", "1.0 0"])
def test_a_release_is_no_path(site, release):
    site.ask(release)
    assert "is not the id of a release" in site.take()


def test_windows_are_clamped() -> None:
    def window(text):
        return taking.Request.read(b'{"rollout_id": "r", "release": "1", "window_s": %s}' % text).window_s

    assert [window(one) for one in (b"0", b"-5", b"1e9", b"30", b"9" * 3900)] == [1.0, 1.0, 3600.0, 30.0, 3600.0]
    for endless in (b"NaN", b"Infinity"):
        with pytest.raises(Refused, match="window is no number"):
            window(endless)


def test_links_lead_root_nowhere(site, keys, tmp_path):
    newer = make(tmp_path / "store", keys, "1.1", made=2000)
    outside = tmp_path / "outside.tar"
    outside.write_bytes(newer.bundle.read_bytes())
    bundle, request = site.places.drop / taking.BUNDLE, site.places.drop / taking.REQUEST
    for make_it in (
        lambda: bundle.symlink_to(outside), lambda: bundle.symlink_to(site.shadow), lambda: os.link(site.shadow, bundle),
        lambda: os.mkfifo(bundle), bundle.mkdir, lambda: bundle.symlink_to("/dev/zero"),
    ):  # fmt: skip
        make_it()
        site.ask(newer)
        assert "is no plain file" in site.take()
    assert outside.exists()
    for make_it in (
        lambda: request.symlink_to(site.shadow), lambda: os.link(site.shadow, request), lambda: os.mkfifo(request),
        lambda: (request / "deep").mkdir(parents=True), lambda: request.write_bytes(b" " * 5000),
    ):  # fmt: skip
        make_it()
        with pytest.raises(Refused, match=r"request.json is no plain file"):
            taking.take(site.places, b"program")
        assert not os.path.lexists(request)
    assert site.shadow.read_bytes() == SECRET
    assert newer.release not in site.names()


def test_the_directory_itself_is_no_link_and_nobody_elses(site, keys, tmp_path, monkeypatch):
    newer = make(tmp_path / "store", keys, "1.1", made=2000)
    site.put(newer.bundle.read_bytes())
    site.ask(newer)
    site.places.drop.rename(tmp_path / "elsewhere")
    site.places.drop.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused, match=r"Not a directory|Too many levels"):
        taking.take(site.places, b"program")
    assert (tmp_path / "elsewhere" / taking.REQUEST).exists()
    site.places.drop.unlink()
    (tmp_path / "elsewhere").rename(site.places.drop)
    monkeypatch.setattr(accounts, "identity", lambda: (os.getuid() + 1, os.getgid()))
    with pytest.raises(Refused, match="is not a directory of the user ostler"):
        taking.take(site.places, b"program")


def test_a_lock_and_an_open_update_are_respected(site, keys, tmp_path):
    newer = make(tmp_path / "store", keys, "1.1", made=2000)
    take_lock(site.places, rollout="ssh", owner="ann@laptop", message="by hand")
    site.put(newer.bundle.read_bytes())
    site.ask(newer)
    assert "locked by ann@laptop" in taking.take(site.places, b"program")["reason"]
    assert (read_json(site.places.lock) or {})["owner"] == "ann@laptop"
    site.places.lock.unlink()
    write_json(site.places.update, {"update_id": "r0", "release": "1.0-1", "state": "watching"})
    assert "update r0 to 1.0-1 is still being watched" in site.request(newer)


def test_what_a_killed_run_left_locked_is_free_again(site, keys, tmp_path, monkeypatch):
    """Killed while it installs; then the daemon takes its request away, since the rollout was aborted."""
    newer = make(tmp_path / "store", keys, "1.1", made=2000)

    def killed():
        site.put(newer.bundle.read_bytes())
        site.ask(newer)
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                monkeypatch.setattr(taking.installing, "install", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
                taking.take(site.places, b"program")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert (read_json(site.places.lock) or {})["rollout_id"] == "r1"
        for one in site.places.drop.iterdir():
            one.unlink()

    killed()
    assert taking.take(site.places, b"program") == {"stage": "nothing"}
    assert read_json(site.places.lock) is None
    killed()
    take_lock(site.places, rollout="ssh", owner="ann@laptop", message="by hand")
    assert (read_json(site.places.lock) or {})["owner"] == "ann@laptop"
    assert taking.take(site.places, b"program") == {"stage": "nothing"}
    assert (read_json(site.places.lock) or {})["owner"] == "ann@laptop"


def test_a_run_that_lives_keeps_its_lock(site, keys, tmp_path, monkeypatch):
    newer = make(tmp_path / "store", keys, "1.1", made=2000)

    def meanwhile(*_, **__):
        with pytest.raises(Refused, match="locked by coordinator"):
            take_lock(site.places, rollout="r1", owner="ann@laptop", message="the same name")
        raise Refused("unfit", "seen")

    monkeypatch.setattr(taking.installing, "install", meanwhile)
    assert site.request(newer) == "seen"


def test_a_rollout_over_ssh_is_not_taken_over_by_its_name(site, keys, tmp_path, first):
    newer = make(tmp_path / "store", keys, "1.1", made=2000)
    take_lock(site.places, rollout="ssh-1", owner="ann@laptop", message="by hand")
    site.put(newer.bundle.read_bytes())
    site.ask(newer, rollout_id="ssh-1")
    assert "locked by ann@laptop" in taking.take(site.places, b"program")["reason"]
    assert (read_json(site.places.lock) or {})["owner"] == "ann@laptop"
    site.places.lock.unlink()
    for opened in ({}, {"asked": True, "release": first.release}):  # by SSH; this way, to another release
        update = {"update_id": "r1", "release": newer.release, "state": "armed"} | opened
        write_json(site.places.update, update)
        assert f"update r1 to {update['release']} is still being watched" in site.request(newer)
        assert read_json(site.places.update) == update
    write_json(site.places.update, {"update_id": "r1", "release": newer.release, "state": "armed", "asked": True})
    assert accepted(site.request(newer))  # its own goes on


def test_a_directory_of_any_depth_is_put_aside(site):
    """Root goes into none of it; the daemon can remove it."""
    folder = os.open(site.places.drop, os.O_RDONLY)
    for name in (taking.REQUEST, *["a"] * 1500):
        os.mkdir(name, dir_fd=folder)
        inner = os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    with pytest.raises(Refused, match=r"request.json is no plain file"):
        taking.take(site.places, b"program")
    assert taking.take(site.places, b"program") == {"stage": "nothing"}
    (aside,) = site.places.drop.iterdir()
    clear(aside)
    assert not aside.exists()


def test_there_is_a_last_word_whatever_happens(site, keys, tmp_path, monkeypatch):
    newer = make(tmp_path / "store", keys, "1.1", made=2000)

    def fails(*_, **__):
        raise RecursionError("x" * 1000)

    monkeypatch.setattr(taking.installing, "install", fails)
    assert site.request(newer).startswith("root's side failed at it: RecursionError('xxx")


def test_only_an_update_that_came_this_way_is_undone_and_not_for_long(site, first, tmp_path):
    def back():
        site.ask(first, back="the canary job failed")
        return site.take()

    assert "rollout r1 has made no update on this host" in back()
    last = {"update_id": "r1", "release": first.release, "previous": None, "state": "good", "ended_at": time.time()}
    write_json(site.places.last, last)  # over SSH
    assert "rollout r1 has made no update on this host" in back()
    write_json(site.places.last, last | {"asked": True, "ended_at": time.time() - 601})
    assert "was kept more than 600 s ago" in back()
    write_json(site.places.last, last | {"asked": True, "update_id": "r0"})
    assert "rollout r1 has made no update on this host" in back()
    write_json(site.places.last, last | {"asked": True})
    assert back() == "the canary job failed; there is no release before it to go back to"
    assert (read_json(site.places.published) or {})["stage"] == "stuck"


def test_a_full_disk_is_told_and_leaves_what_was_there(site, keys, tmp_path):
    large = make(tmp_path / "store", keys, "2.0", made=2000, more={"ostler/large": os.urandom(2 << 20)})
    ours = {one: one.read_bytes() for one in site.places.releases.rglob("*") if one.is_file() and not one.is_symlink()}
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(site.places.releases)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("a small file system needs root, and mounts")
    try:
        assert "no space left for release 2.0-" in site.request(large)
    finally:
        subprocess.run(["umount", str(site.places.releases)], check=True)
    assert {one: one.read_bytes() for one in ours} == ours


def test_what_the_system_refuses_is_told(site, keys, tmp_path, monkeypatch):
    """A write that fails in the middle of the switch: told, and the request is not taken up again and again."""
    newer = make(tmp_path / "store", keys, "1.1", made=2000)

    def fails(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system", "/opt/ostler/current")

    monkeypatch.setattr(switching, "switch", fails)
    assert site.request(newer) == "/opt/ostler/current: Read-only file system"
