"""`ostler release`: built from this checkout by the command line, the same each time, checked, shown and pruned."""

import json
import os
import shutil
from pathlib import Path

import pytest

from cli_rig import ostler
from ostler.cli import exits
from ostler.fleet.releases.store import pack
from release_rig import make, new_keys

ROOT = Path(__file__).resolve().parents[2]
PLATFORM = f"cp311-{os.uname().machine}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("releases")


def build(store, keys, *, source=ROOT):
    done = ostler("release", "build", "--source", source, "--platform", PLATFORM, "--store", store, "--keys", keys, "--json")
    if done.returncode == exits.UNREACHABLE:
        pytest.skip(f"this machine reaches no package registry, and has fetched nothing before: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def built(place):
    return build(place / "store", place / "keys")


def test_a_checkout_becomes_a_release(place, built):
    assert "made the release key" in built.stderr
    made = built.json
    assert made["release"] == f"{made['version']}-{made['digest'][:12]}"
    assert made["platforms"] == [PLATFORM]
    bundle = Path(made["bundle"])
    assert bundle == place / "store" / f"{made['release']}.tar"
    files = [
        one["path"] for one in ostler("release", "show", made["release"], "--store", place / "store", "--json").json["files"]
    ]
    assert {"units/ostler-keeper.service", "units/ostler-node.service", "units/ostler-watch.service"} <= set(files)
    wheels = [one.removeprefix("wheels/").split("-")[0] for one in files if one.startswith("wheels/")]
    assert {"ostler", "cryptography", "uvloop", "pydantic_core"} <= set(wheels)
    assert not {"hatchling", "imageio_ffmpeg", "pytest"} & set(wheels)


def test_the_same_checkout_is_the_same_release(place, built):
    again = build(place / "again", place / "keys").json
    assert again["release"] == built.json["release"]
    assert Path(again["bundle"]).read_bytes() == Path(built.json["bundle"]).read_bytes()


def test_a_release_is_checked_as_a_host_does_it(place, built, tmp_path):
    where = ("--store", place / "store", "--keys", place / "keys")
    done = ostler("release", "verify", *where)
    assert (done.returncode, f"release {built.json['release']} is whole" in done.stdout) == (0, True)
    assert built.json["digest"] in done.stdout
    damaged = tmp_path / "damaged.tar"
    shutil.copy(built.json["bundle"], damaged)
    with damaged.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"!")
    refused = ostler("release", "verify", damaged, *where)
    assert (refused.returncode, "damaged" in refused.stderr) == (exits.REJECTED, True)
    stranger = ostler("release", "verify", built.json["bundle"], "--keys", tmp_path / "none")
    assert (stranger.returncode, "signed by no key that is trusted here" in stranger.stderr) == (exits.REJECTED, True)


def test_a_link_among_the_sources_is_refused(place, tmp_path):
    source = tmp_path / "checkout"
    for name in ("src/ostler", "lock"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "hatch_build.py", "README.md"):
        shutil.copy(ROOT / name, source / name)
    (source / "src/ostler/linked.py").symlink_to("/etc/passwd")
    done = ostler("release", "build", "--source", source, "--store", place / "store", "--keys", place / "keys")
    assert (done.returncode, "linked.py is a symbolic link" in done.stderr) == (exits.REJECTED, True)
    done = ostler("release", "build", "--source", tmp_path, "--store", place / "store", "--keys", place / "keys")
    assert (done.returncode, "is not a checkout of Ostler" in done.stderr) == (exits.REJECTED, True)


def test_releases_are_listed_shown_and_pruned(tmp_path):
    keys = new_keys(tmp_path / "keys")
    made = [make(tmp_path / "store", keys, version) for version in ("1.0", "2.0", "3.0")]
    for number, one in enumerate(made):
        os.utime(one.bundle, (number, number))
    store = ("--store", tmp_path / "store")
    assert [one["version"] for one in ostler("release", "list", *store, "--json").json] == ["3.0", "2.0", "1.0"]
    listed = ostler("release", "list", *store).stdout
    assert all(one.release in listed for one in made)
    nothing = ostler("release", "list", "--store", tmp_path / "elsewhere")
    assert (nothing.returncode, str(tmp_path / "elsewhere") in nothing.stderr) == (0, True)
    shown = ostler("release", "show", "2.0", *store).stdout
    assert made[1].manifest.digest in shown
    assert "units/ostler-node.service" in shown
    assert ostler("release", "show", "4", *store).returncode == exits.REJECTED
    assert ostler("release", "prune", "--keep", 1, *store, "--json").json == {"removed": [made[1].release, made[0].release]}
    (tmp_path / "store" / "wrong.tar").write_bytes(pack([("file", b"")]))
    left = ostler("release", "list", *store)
    assert (left.returncode, "not the bundle of a release" in left.stderr) == (exits.REJECTED, True)
    assert made[2].release in left.stdout


def test_keys_are_made_listed_and_retired(tmp_path):
    where = ("--keys", tmp_path / "keys")
    first = ostler("release", "key", "new", *where, "--json").json["key"]
    assert ostler("release", "key", "retire", first, *where).returncode == exits.REJECTED
    second = ostler("release", "key", "new", *where)
    assert "retire the old one once" in second.stdout
    found = ostler("release", "key", "list", *where, "--json").json
    assert [one["signs"] for one in found] == [True, True]
    assert json.loads((tmp_path / "keys" / "trusted.json").read_text())["generation"] == 2
    assert ostler("release", "key", "retire", first, *where).returncode == 0
    assert first not in ostler("release", "key", "list", *where).stdout
