"""Releases in the store: whose keys are believed, what is listed, and that their bytes are kept."""

import pytest

from ostler.coordinator.operations import releases as ops
from ostler.coordinator.operations.removals import unnamed
from ostler.model.errors import Conflict, NotFound
from ostler.model.release import Release
from store_rig import Rig


def release(name: str = "1.0-aaaaaaaaaaaa", *, generation: int = 1, keys: str = "a", made: int = 0) -> Release:
    return Release(
        release=name, digest="d" * 64, version="1.0", commit=None, made=made, protocol=(1, 1), schema=4, platforms=("cp311-x86_64",),
        signed_by=tuple(keys), generation=generation, keys={key: key.encode() * 32 for key in keys},
    )  # fmt: skip


async def add(rig: Rig, one: Release, *, sha256: str = "5" * 64, trust: bool = False):
    return await rig.write(ops.add_release, one, sha256=sha256, size=7, by="ada", trust=trust)


async def test_nobody_is_believed_before_an_admin_says_so(rig: Rig) -> None:
    with pytest.raises(Conflict, match="trusts no release key yet"):
        await rig.read(ops.check_wanted, trust=False)
    assert await rig.read(ops.check_wanted, trust=True) is None
    await add(rig, release(), trust=True)
    assert await rig.read(ops.check_wanted, trust=False) == {"a": b"a" * 32}


async def test_a_later_set_of_keys_replaces_an_earlier_one_and_never_the_other_way_round(rig: Rig) -> None:
    await add(rig, release(), trust=True)
    await add(rig, release("1.1-b", generation=3, keys="bc"))
    await add(rig, release("1.2-c", generation=2, keys="ab"))
    assert await rig.read(ops.trusted) == ops.Trusted(3, {"b": b"b" * 32, "c": b"c" * 32})
    await add(rig, release("1.3-d", generation=1, keys="d"), trust=True)
    assert set((await rig.read(ops.trusted)).keys) == {"d"}


async def test_they_are_listed_with_the_nodes_that_run_them(rig: Rig) -> None:
    await add(rig, release(made=1_700_000_000), trust=True)
    rig.clock.advance(1)
    await add(rig, release("1.1-b"))
    await rig.join("n1", release="1.1-b")
    await rig.join("n2", release="1.1-b")
    page = await rig.read(ops.list_releases)
    assert [(one.release, one.nodes) for one in page.items] == [("1.1-b", 2), ("1.0-aaaaaaaaaaaa", 0)]
    assert page.trusted == ("a",)
    assert page.items[1].made_at is not None
    assert page.items[1].made_at.timestamp() == 1_700_000_000


async def test_one_that_is_there_stays_as_it_is(rig: Rig) -> None:
    first = await add(rig, release(), trust=True)
    assert await add(rig, release(keys="ab"), sha256="6" * 64) == first


async def test_its_bytes_are_kept_for_as_long_as_it_is(rig: Rig) -> None:
    await add(rig, release(), trust=True)
    assert await rig.read(unnamed, ["5" * 64, "6" * 64]) == ["6" * 64]
    await rig.write(ops.remove_release, release().release)
    assert await rig.read(unnamed, ["5" * 64]) == ["5" * 64]
    with pytest.raises(NotFound, match="has no release"):
        await rig.read(ops.show_release, release().release)
