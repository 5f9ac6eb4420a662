"""One testbed for a whole test run, on machines that can have one."""

import os
from pathlib import Path

import pytest

from fleet.engine import Unable
from fleet.testbed import Testbed
from ostler.assembly.releases import release_places
from ostler.fleet.releases.build import build
from ostler.fleet.releases.dependencies import Platform
from ostler.fleet.releases.keys import open_keys
from ostler.fleet.releases.store import ReleaseStore
from ostler.model.errors import Unavailable

HOSTS = 3
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def testbed(tmp_path_factory):
    """Three hosts, or TESTBED_HOSTS; the last one's Debian is newer where it can be had.

    A test that breaks a host calls `replace` on it.
    """
    hosts = int(os.environ.get("TESTBED_HOSTS", HOSTS))
    folder = tmp_path_factory.mktemp("testbed")
    try:
        with Testbed(f"t{os.getpid()}", folder) as bed:
            yield bed.up(hosts, newer=True)
    except Unable as exc:
        pytest.skip(str(exc))


@pytest.fixture
def host(testbed):
    """The first host, of this machine's own release."""
    return testbed.hosts["mini-1"]


@pytest.fixture
def newer_host(testbed):
    """The host of the newer release, with another Python."""
    if testbed.no_newer:
        pytest.skip(testbed.no_newer)
    return list(testbed.hosts.values())[-1]


@pytest.fixture(scope="session")
def release_keys(tmp_path_factory):
    """An operator's release keys, with one that signs."""
    return open_keys(tmp_path_factory.mktemp("release") / "keys").with_new()


@pytest.fixture(scope="session")
def release(testbed, release_keys, tmp_path_factory):
    """A release of this checkout for the hosts of the testbed."""
    minors = (11,) if testbed.no_newer else (11, 13)
    try:
        return build(
            ReleaseStore(tmp_path_factory.mktemp("releases")),
            release_keys,
            platforms=[Platform(minor, os.uname().machine) for minor in minors],
            cache=release_places(os.environ).cache,
            source=ROOT,
        )
    except Unavailable as exc:
        pytest.skip(f"no release can be built here: {exc}")
