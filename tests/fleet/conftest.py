"""One testbed and one fleet for a whole test run, on machines that can have them."""

import os

import pytest

from fleet import image
from fleet.engine import Unable
from fleet.rig import Operator, here
from fleet.testbed import Testbed

HOSTS = 3


@pytest.fixture(scope="session")
def testbed(tmp_path_factory):
    """Three hosts, or TESTBED_HOSTS. From four on the last one's Debian is newer, where that can be had."""
    hosts = int(os.environ.get("TESTBED_HOSTS", HOSTS))
    folder = tmp_path_factory.mktemp("testbed")
    try:
        with Testbed(f"t{os.getpid()}", folder) as bed:
            yield bed.up(hosts, newer=hosts > HOSTS)
    except Unable as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="session")
def operator(testbed, tmp_path_factory):
    """A coordinator that the hosts reach, a release of this checkout for each of their Pythons, and the operator's commands."""
    one = Operator(testbed, tmp_path_factory.mktemp("operator"))
    one.know()
    try:
        newer = {host.release for host in testbed.hosts.values()} - {image.own_release()}
        one.build(here(11), *([here(13)] if newer else []))
        yield one
    except Unable as exc:
        pytest.skip(str(exc))
    finally:
        one.close()


@pytest.fixture(scope="session")
def installed(operator):
    """The operator of hosts that are nodes in a first release. Each test leaves all of them on a good one, and no lock behind."""
    operator.install("--yes")
    return operator


@pytest.fixture(scope="session")
def release(operator):
    """The first release."""
    return operator.first


@pytest.fixture
def host(testbed):
    """The first host, of this machine's own release."""
    return testbed.hosts["mini-1"]


@pytest.fixture
def bare(testbed, operator):
    """A bare host of its own, to be broken."""
    one = testbed.add("bare")
    operator.know()
    yield one
    testbed.remove(one)
    operator.know()
    operator.cli("node", "retire", "bare")
