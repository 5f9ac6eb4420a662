"""What every artifact store promises, run over each adapter there is."""

import asyncio
import errno
import hashlib
import logging
import os
import subprocess

import pytest

from ostler.coordinator.artifacts.store import BLOCK, DirectoryArtifacts
from ostler.model.errors import InvalidSpec, NotFound, StoreBusy

LOGGER = logging.getLogger("ostler.test")
SIZES = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7]


class Directory:
    """The adapter under test with what the suite must see of its inside."""

    def __init__(self, root):
        self.root = root

    def make(self):
        return DirectoryArtifacts(self.root, logger=LOGGER)

    @property
    def unfinished(self):
        return list((self.root / "staging").iterdir())


@pytest.fixture(params=[Directory])
def place(request, tmp_path):
    return request.param(tmp_path / "artifacts")


@pytest.fixture
async def store(place):
    made = place.make()
    await made.open()
    yield made
    await made.close()


async def put(store, data, step=100_000):
    staging = await store.stage()
    for begin in range(0, len(data), step):
        await staging.write(data[begin : begin + step])
    return await staging.commit()


async def get(store, sha256, *span):
    return b"".join([block async for block in store.read(sha256, *span)])


@pytest.mark.parametrize("size", SIZES)
async def test_what_goes_in_comes_out(store, place, size):
    data = os.urandom(size)
    stored = await put(store, data)
    assert (stored.sha256, stored.size) == (hashlib.sha256(data).hexdigest(), size)
    assert await store.size(stored.sha256) == size
    assert await get(store, stored.sha256) == data
    assert place.unfinished == []


async def test_parts(store):
    data = os.urandom(2 * BLOCK + 5)
    stored = await put(store, data)
    for start, end in ((0, 0), (0, 1), (BLOCK - 1, BLOCK + 1), (5, None), (len(data), None), (len(data) - 1, len(data) + 9)):
        assert await get(store, stored.sha256, start, end) == data[start:end]


async def test_equal_content_may_come_often_and_at_once(store):
    data = os.urandom(BLOCK + 1)
    stored = await asyncio.gather(*(put(store, data) for _ in range(8)))
    assert len(set(stored)) == 1
    assert await get(store, stored[0].sha256) == data


async def test_nothing_is_seen_before_it_is_committed(store, place):
    staging = await store.stage()
    await staging.write(b"abc")
    sealed = await staging.seal()
    assert await store.size(sealed.sha256) is None
    assert place.unfinished
    await staging.commit()
    assert await store.size(sealed.sha256) == 3
    await staging.discard()
    assert await store.size(sealed.sha256) == 3


async def test_other_bytes_than_expected_are_not_kept(store, place):
    staging = await store.stage()
    await staging.write(b"abc")
    with pytest.raises(InvalidSpec, match="sha256"):
        await staging.seal("0" * 64)
    assert place.unfinished == []
    assert await store.size(hashlib.sha256(b"abc").hexdigest()) is None


async def test_what_is_discarded_is_gone(store, place):
    staging = await store.stage()
    await staging.write(os.urandom(3 * BLOCK))
    await staging.discard()
    await staging.discard()
    assert place.unfinished == []


async def test_a_cancelled_upload_can_be_discarded_while_a_thread_still_writes(store, place):
    """The descriptor is not closed under the thread, and no later file gets its bytes."""
    for _ in range(20):
        staging = await store.stage()

        async def upload(staging=staging):
            try:
                while True:
                    await staging.write(b"x" * BLOCK)
            finally:
                await staging.discard()

        task = asyncio.create_task(upload())
        await asyncio.sleep(0)
        task.cancel()
        kept = await put(store, b"kept")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await get(store, kept.sha256) == b"kept"
    assert place.unfinished == []


async def test_what_is_not_there(store, caplog):
    unknown = "0" * 64
    assert await store.size(unknown) is None
    assert await store.delete(unknown) is False
    with pytest.raises(NotFound):
        await get(store, unknown)
    assert not caplog.records, "it is no failure of the store"


@pytest.mark.parametrize("name", ["", "x", "../" * 20, "0" * 63, "0" * 65, "A" * 64, "0" * 63 + "/", "0" * 63 + "\n"])
async def test_what_is_no_sha256_never_becomes_a_path(store, name):
    for call in (store.size(name), store.delete(name), get(store, name)):
        with pytest.raises(NotFound):
            await call


async def test_a_reader_reads_on_after_a_delete(store):
    data = os.urandom(4 * BLOCK)
    stored = await put(store, data)
    reader = store.read(stored.sha256)
    blocks = [await anext(reader)]
    assert await store.delete(stored.sha256)
    blocks += [block async for block in reader]
    assert b"".join(blocks) == data
    assert await store.size(stored.sha256) is None


async def test_a_new_process_finds_what_was_committed_and_clears_the_rest(place):
    first = place.make()
    await first.open()
    stored = await put(first, b"whole")
    staging = await first.stage()
    await staging.write(b"x" * 2 * BLOCK)
    second = place.make()
    await second.open()
    assert place.unfinished == []
    assert await get(second, stored.sha256) == b"whole"
    await staging.discard()
    await first.close()
    await second.close()


# --- of the directory alone --------------------------------------------------------------------------------------------------


async def test_others_read_nothing(store, place):
    stored = await put(store, b"secret")
    for path in [place.root / "objects", place.root / "staging", store.place(stored.sha256).parent, store.place(stored.sha256)]:
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.fixture
def small(tmp_path):
    """A file system of 4 MB of its own."""
    root = tmp_path / "small"
    root.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", root], check=False).returncode:
        pytest.skip("this needs the right to mount a file system")
    yield root
    subprocess.run(["umount", root], check=True)


async def fill(staging):
    while True:
        await staging.write(b"x" * BLOCK)


@pytest.mark.root
async def test_a_full_disk_is_said_and_leaves_nothing(small):
    store = DirectoryArtifacts(small, logger=LOGGER)
    await store.open()
    kept = await put(store, b"k" * BLOCK)
    for _ in range(3):
        staging = await store.stage()
        with pytest.raises(StoreBusy, match="full") as caught:
            await fill(staging)
        assert caught.value.__cause__.errno == errno.ENOSPC
        await staging.discard()
        assert list((small / "staging").iterdir()) == []
    assert await get(store, kept.sha256) == b"k" * BLOCK
    again = await put(store, b"y" * BLOCK)
    assert await get(store, again.sha256) == b"y" * BLOCK
    await store.close()
