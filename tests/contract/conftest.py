"""The store's adapters: each contract test runs once over every one of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from store_rig import Rig

ADAPTERS = ("sqlite",)  # "postgresql" joins this tuple together with its branch in `store_url`


@pytest.fixture(params=ADAPTERS)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new, empty database of each kind."""
    assert request.param == "sqlite"
    return str(tmp_path / "data" / "ostler.db")


@pytest.fixture
def rig(store_url: str) -> Iterator[Rig]:
    rig = Rig.open(store_url)
    yield rig
    rig.close()
