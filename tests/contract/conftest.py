"""The store's adapters: each contract test runs once over every one of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import postgres
from store_rig import Rig

ADAPTERS = ("sqlite", "postgresql")


@pytest.fixture(params=ADAPTERS)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A new database of each kind, without jobs."""
    if request.param == "sqlite":
        yield str(tmp_path / "data" / "ostler.db")
        return
    server = postgres.shared()
    with server.borrowed() as name:
        yield server.url(name)


@pytest.fixture
def rig(store_url: str) -> Iterator[Rig]:
    rig = Rig.open(store_url)
    yield rig
    rig.close()
