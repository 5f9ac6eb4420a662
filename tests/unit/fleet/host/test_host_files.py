"""What the host program does with files: the lock, links to programs, facts, and that all of it runs from memory on a bare Python."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ostler.fleet.host import accounts, belongings, binaries, bundle, facts, fitting, lock, setting_up, switching
from ostler.fleet.host.places import NODE_UNIT, Places, point, read_json, write_json
from ostler.fleet.host.refusals import Refused
from ostler.fleet.host.told import Told
from ostler.fleet.host.traces import Traces

XMRIG = binaries.Binary("xmrig", "/usr/local/bin/xmrig", ("/usr/local/bin/xmrig", "/usr/bin/xmrig"), r"XMRig \d")


@pytest.fixture
def places(tmp_path: Path) -> Places:
    for folder in ("opt/ostler/releases", "etc/systemd/system", "usr/bin", "usr/local/bin"):
        (tmp_path / folder).mkdir(parents=True)
    return Places(tmp_path)


def miner(place: Path, *, says: str = "XMRig 6.21.0", mode: int = 0o755) -> Path:
    place.write_text(f"#!/bin/sh\necho '{says}'\n")
    place.chmod(mode)
    return place


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="programs of services belong to root")


def test_the_lock_is_one_rollouts_alone(places: Places) -> None:
    lock.take(places, rollout="r1", owner="ann@laptop", message="update")
    lock.take(places, rollout="r1", owner="ann@laptop", message="update")  # resumed
    with pytest.raises(Refused, match=r"locked by ann@laptop since \d+ s \(update\)"):
        lock.take(places, rollout="r2", owner="bob", message="update")
    lock.release(places, "r2")
    assert (read_json(places.lock) or {})["owner"] == "ann@laptop"
    lock.release(places, "r1")
    lock.take(places, rollout="r2", owner="bob", message="update")
    with pytest.raises(Refused, match="broken by bob"):
        lock.beat(places, "r1")


def test_a_broken_lock_is_remembered(places: Places) -> None:
    lock.take(places, rollout="r1", owner="ann@laptop", message="update")
    held = lock.break_(places, why="the laptop is gone", owner="bob")
    assert held is not None
    assert held["owner"] == "ann@laptop"
    assert (read_json(places.updates / "broken.json") or {})["why"] == "the laptop is gone"
    with pytest.raises(Refused, match="the lock was broken"):
        lock.beat(places, "r1")


def test_what_a_crash_left_of_a_file_is_nothing(places: Places) -> None:
    places.updates.mkdir(parents=True)
    places.lock.write_text('{"owner": "an')
    lock.take(places, rollout="r2", owner="bob", message="")


@needs_root
def test_a_program_elsewhere_is_linked(places: Places) -> None:
    places.updates.mkdir(parents=True)
    miner(places.root / "usr/bin/xmrig")
    assert binaries.find(XMRIG, places) == binaries.Found("xmrig", link_to="/usr/bin/xmrig")
    assert not (places.root / "usr/local/bin/xmrig").exists()
    binaries.link(XMRIG, places, Traces(places))
    assert (places.root / "usr/local/bin/xmrig").readlink() == Path("/usr/bin/xmrig")


@needs_root
def test_a_program_in_its_place_is_left_alone(places: Places) -> None:
    there = miner(places.root / "usr/local/bin/xmrig")
    miner(places.root / "usr/bin/xmrig")
    assert binaries.link(XMRIG, places, Traces(places)) == binaries.Found("xmrig")
    assert not there.is_symlink()


def test_a_missing_program_is_a_warning(places: Places) -> None:
    assert binaries.link(XMRIG, places, Traces(places)).warning == "xmrig not found, its service will not work"


@needs_root
@pytest.mark.parametrize(
    ("mode", "says", "owner", "words"),
    [
        (0o777, "XMRig 6", 0, "may be written by others"),
        (0o755, "coreutils", 0, "--version says"),
        (0o755, "XMRig 6", 65534, "does not belong to root"),
        (0o644, "XMRig 6", 0, "is not executable"),
    ],
)
def test_a_program_that_root_would_not_execute(places: Places, mode: int, says: str, owner: int, words: str) -> None:
    there = miner(places.root / "usr/bin/xmrig", mode=mode, says=says)
    os.chown(there, owner, 0)
    found = binaries.link(XMRIG, places, Traces(places))
    assert found.link_to is None
    assert words in (found.warning or "")


def test_links_change_in_one_step(places: Places) -> None:
    point(places.current, "releases/a")
    point(places.current, "releases/b")
    assert places.in_force() == "b"
    assert sorted(one.name for one in places.ostler.iterdir()) == ["current", "releases"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".a", "a b", "ä", "a\n"])
def test_what_is_no_release(places: Places, name: str) -> None:
    with pytest.raises(ValueError, match="not the id of a release"):
        places.release(name)


def test_facts_change_nothing_and_say_what_cannot_be_written(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(places.root.rglob("*"))
    there = facts.gather(places, (XMRIG,))
    assert sorted(places.root.rglob("*")) == before
    assert there["refused"] == {}
    assert there["warnings"] == ["xmrig not found, its service will not work"]
    assert there["units"]["ostler-node.service"]["sha256"] is None

    def read_only(*args: object, **kwargs: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(
        facts.os, "open", read_only
    )  # a mount of its own takes rights that not each machine has; real hosts have one
    assert facts.gather(places)["refused"][str(places.releases)] == "read-only file system"


def run(*arguments: str, more: bytes = b"") -> tuple[int, dict[str, object]]:
    """As on a host: from memory, by a Python that sees none of our packages."""
    program = bundle.program()
    argv = bundle.command(len(program), *arguments)
    done = subprocess.run(
        argv, input=program + more, capture_output=True, timeout=60, check=False, env={"PATH": os.defpath}, cwd="/"
    )
    assert done.stdout, done.stderr.decode()
    return done.returncode, json.loads(done.stdout)


@pytest.fixture
def rooted(places: Places) -> tuple[str, ...]:
    return ("--root", str(places.root))


def test_facts_are_told_whatever_lies_around(places: Places) -> None:
    """An answer has a bound, its reader takes UTF-8, and pipes and huge files hold nobody up."""
    places.allowlist.mkdir(parents=True)
    for number in range(9):
        (places.allowlist / f"{number}.yaml").write_text("ü" * 30_000)
    (places.allowlist / os.fsdecode(b"caf\xe9.yaml")).write_text("x")
    with (places.allowlist / "image").open("wb") as huge:
        huge.truncate(1 << 40)
    unit = places.current / "units" / NODE_UNIT
    unit.parent.mkdir(parents=True)
    os.mkfifo(unit)
    found = facts.gather(places, thorough=True)
    assert len(json.dumps(found)) < 1 << 20
    assert sorted(found["entries"]) == ["0.yaml", "1.yaml"]
    assert "allowlist.d/caf\\xe9.yaml" in found["beside"]
    assert "allowlist.d/image" not in found["beside"]
    assert found["units"][NODE_UNIT]["wanted"] == hashlib.sha256().hexdigest()


def test_it_runs_from_memory(places: Places, rooted: tuple[str, ...]) -> None:
    code, answer = run(*rooted, "facts")
    assert (code, answer["current"]) == (0, None)
    code, answer = run(*rooted, "lock", "--rollout", "r1", "--owner", "ann; rm -rf /", "--message", "$(reboot)")
    assert (code, answer["owner"]) == (0, "ann; rm -rf /")
    code, answer = run(*rooted, "lock", "--rollout", "r2", "--owner", "bob")
    assert (code, answer["error"]) == (1, "locked")
    code, answer = run(*rooted, "switch", "--rollout", "r1", "--release", "../x", "--window", "5")
    assert (code, answer["error"]) == (1, "usage")
    code, answer = run(*rooted, "switch", "--rollout", "r1", "--release", "1.0", "--window", "5")
    assert (code, answer["message"]) == (1, "release 1.0 is not on this host")
    assert not places.update.exists()
    code, answer = run(*rooted, "observe", "--rollout", "r1")
    assert run(*rooted, "observe", "--rollout", "r1", "--wait", "0.3", "--seen", answer["seen"]) == (code, answer)
    assert run(*rooted, "observe", "--rollout", "r1", "--wait", "999", "--seen", "something else") == (code, answer)
    assert answer["state"] == "missing"


def test_what_the_release_cannot_read_changes_nothing(places: Places, rooted: tuple[str, ...]) -> None:
    """The release is this one, which is asked by its command line; each mistake is told."""
    home = places.releases / "1.0"
    for unit in ("units/ostler-node.service", "units/ostler-keeper.service"):
        (home / unit).parent.mkdir(parents=True, exist_ok=True)
        (home / unit).write_text("[Unit]\n")
    (home / "bin").mkdir()
    (home / "bin/ostler").symlink_to(Path(sys.executable).parent / "ostler")
    run(*rooted, "lock", "--rollout", "r1", "--owner", "ann")
    before = {one: one.read_bytes() for one in places.root.rglob("*") if one.is_file()}
    told = json.dumps({"config": "resorces: {}\nheartbeat: {interval_s: often}\n", "files": {"ca.pem": "PEM"}})
    code, answer = run(
        *rooted, "switch", "--rollout", "r1", "--release", "1.0", "--window", "5", "--told", "-", more=told.encode()
    )
    assert (code, answer["error"]) == (1, "unfit")
    assert "release 1.0 cannot read the configuration: " in str(answer["message"])
    assert str(answer["message"]).endswith("node.yaml:1: coordinator: is missing, and 2 more")
    assert "resorces" in str(answer["details"])
    assert "interval_s" in str(answer["details"])
    after = {one: one.read_bytes() for one in places.root.rglob("*") if one.is_file() and one.name != ".switch"}
    assert after == before
    told = json.dumps({"files": {"../passwd": "x"}})
    code, answer = run(
        *rooted, "switch", "--rollout", "r1", "--release", "1.0", "--window", "5", "--told", "-", more=told.encode()
    )
    assert (code, answer["error"]) == (1, "usage")


def test_a_release_is_asked_once_about_a_configuration(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one, another release and another Python ask anew; what it cannot read it is asked about each time."""
    program = places.releases / "1.0/bin/ostler"
    program.parent.mkdir(parents=True)
    places.updates.mkdir(parents=True)
    asked = places.root / "asked"
    program.write_text(f'#!/bin/sh\necho "$4" >>{asked}\ngrep -q good "$4" || {{ echo "error: it is bad" >&2; exit 2; }}\n')
    program.chmod(0o755)
    for _ in range(2):
        fitting.check(places, "1.0", Told("good: 1\n"))
    assert len(asked.read_text().split()) == 1
    for number in (2, 3):
        with pytest.raises(Refused, match="cannot read the configuration: it is bad"):
            fitting.check(places, "1.0", Told("bad: 1\n"))
        assert len(asked.read_text().split()) == number
    fitting.check(places, "1.0", Told("good: 1\n"))
    assert len(asked.read_text().split()) == 3
    with pytest.raises(Refused, match=r"release 1\.1 cannot be asked"):
        fitting.check(places, "1.1", Told("good: 1\n"))
    monkeypatch.setattr("sys.version", "another")
    fitting.check(places, "1.0", Told("good: 1\n"))
    assert len(asked.read_text().split()) == 4
    assert not places.trial.exists()


def test_a_watcher_loads_what_it_needs_alone(tmp_path: Path) -> None:
    """It is compiled anew with each switch."""
    (tmp_path / "host.pyz").write_bytes(bundle.program())
    code = "import sys; sys.path.insert(0, sys.argv[1]); import ostler.fleet.host.watcher; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(tmp_path / "host.pyz")], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "ostler.fleet.host.switching" in loaded
    assert not loaded & {"ostler.fleet.host.program", "ostler.fleet.host.installing", "argparse", "http.client", "ssl"}


def test_the_release_of_before_looks_with_the_configuration_of_before(places: Places) -> None:
    """And at what stood beside it: the new one may be what is wrong."""
    assert switching.config_before(places) == places.config
    beside = places.config.parent / "ca.pem"
    places.updates.mkdir(parents=True)
    places.kept.write_text(f"coordinator: {{base_url: http://before, ca_file: {beside}}}\n")
    write_json(places.kept_files, {"ca.pem": "the old one", "allowlist.d/x.yaml": None})
    before = switching.config_before(places)
    assert before.read_text() == f"coordinator: {{base_url: http://before, ca_file: {places.before / 'ca.pem'}}}\n"
    assert (places.before / "ca.pem").read_text() == "the old one"
    assert sorted(one.name for one in places.before.iterdir()) == ["ca.pem", "node.yaml"]


def test_the_program_is_the_same_bytes_each_time() -> None:
    assert bundle.program() == bundle.program()


def test_a_connection_that_ends_early_runs_nothing() -> None:
    program = bundle.program()
    argv = bundle.command(len(program), "facts")
    done = subprocess.run(argv, input=program[:-1], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


def test_json_is_replaced_whole(places: Places) -> None:
    places.updates.mkdir(parents=True)
    write_json(places.update, {"a": 1})
    write_json(places.update, {"b": 2})
    assert read_json(places.update) == {"b": 2}
    assert places.update.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in places.updates.iterdir()] == ["update.json"]


@needs_root
@pytest.mark.parametrize(
    ("user", "owner", "words"),
    [
        (None, 0, "it belongs to root, and the node runs as the user ostler"),
        (None, 64_000, "it belongs to user 64000, who has no name here"),
        ((64_000, 64_000), 0, "`chown -R ostler: {state}`"),
        (None, 0, "`useradd --system ostler && chown -R ostler: {state}`"),
        ((64_000, 64_000), 64_000, None),
    ],
)
def test_a_state_that_is_somebody_elses_is_told_before_anything_changes(
    places: Places, monkeypatch: pytest.MonkeyPatch, user: tuple[int, int] | None, owner: int, words: str | None
) -> None:
    """The accounts are patched: this machine's are not for tests to change."""
    monkeypatch.setattr(accounts, "identity", lambda: user)
    assert belongings.foreign(places) == {}
    places.state.mkdir(parents=True)
    assert belongings.foreign(places) == {}  # empty: it may be taken over
    (places.state / "node").mkdir()
    (places.state / "node/node.key").touch()
    for one in (places.state, places.state / "node", places.state / "node/node.key"):
        os.chown(one, owner, owner)
    told = facts.gather(places)["refused"]
    if words is None:
        assert told == {}
        os.chown(places.state / "node/node.key", 0, 0)
        assert facts.gather(places)["refused"].keys() == {str(places.state / "node/node.key")}
        return
    assert words.format(state=places.state) in told[str(places.state)]
    assert f"`mv {places.state} {places.state}.before`" in told[str(places.state)]
    with pytest.raises(Refused, match=f"cannot write to {places.state}: it belongs to"):
        setting_up._check(release_of(places), "r1", setting_up.Told(config="", token="t"))


def release_of(places: Places) -> Places:
    """With a release `r1` that has all files which are looked for."""
    for name in (
        "bin/ostler",
        *(f"units/{unit}" for unit in ("ostler-node.service", "ostler-keeper.service", "ostler-watch.service")),
    ):
        file = places.release("r1") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return places
