"""Fleets that tests share, one per sandbox level and module, so that xdist workers can split the modules."""

import shutil

import pytest

from e2e.fleet import Fleet


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """A running set at level `process`."""
    with Fleet(tmp_path_factory.mktemp("fleet") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def sandboxed(tmp_path_factory):
    """A running set at level `bwrap`."""
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed and cannot be installed without root")
    with Fleet(tmp_path_factory.mktemp("sandboxed") / "data", level="bwrap") as running:
        yield running


@pytest.fixture
def own_fleet(tmp_path):
    """A function that makes fleets for one test alone, to be killed and restarted at will."""
    made = []

    def make(**options):
        one = Fleet(tmp_path / f"data{len(made)}", **options)
        made.append(one)
        return one

    yield make
    for one in made:
        one.stop()
