"""One testbed for a whole test run, on machines that can have one."""

import os

import pytest

from fleet.engine import Unable
from fleet.testbed import Testbed

HOSTS = 3


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
