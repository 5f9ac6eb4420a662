"""The cache of inputs: copies in, copies out, and the least recently used goes first."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ostler.node.input_cache import InputCache, copy_file


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put(cache: InputCache, folder: Path, content: bytes) -> bool:
    source = folder / "source"
    source.write_bytes(content)
    with source.open("rb") as stream:
        return cache.put(sha(content), stream.fileno())


def out(cache: InputCache, folder: Path, content: bytes) -> bytes | None:
    target = folder / "target"
    with target.open("w+b") as stream:
        size = cache.copy_out(sha(content), stream.fileno())
    assert size is None or size == target.stat().st_size
    return target.read_bytes() if size is not None else None


def test_what_was_put_comes_out_as_a_copy(tmp_path):
    cache = InputCache(tmp_path / "cache", max_bytes=1000)
    assert out(cache, tmp_path, b"abc") is None
    assert put(cache, tmp_path, b"abc")
    assert put(cache, tmp_path, b"abc")
    assert out(cache, tmp_path, b"abc") == b"abc"
    assert out(cache, tmp_path, b"") is None
    assert put(cache, tmp_path, b"")
    assert out(cache, tmp_path, b"") == b""
    kept = tmp_path / "cache" / sha(b"abc")
    (tmp_path / "target").write_bytes(b"changed")
    assert kept.read_bytes() == b"abc"
    assert kept.stat().st_nlink == 1
    assert (cache.hits, cache.misses, cache.bytes) == (2, 2, 3)


def test_the_least_recently_used_goes_first(tmp_path):
    cache = InputCache(tmp_path / "cache", max_bytes=10)
    for content in (b"aaaa", b"bbbb"):
        assert put(cache, tmp_path, content)
    assert out(cache, tmp_path, b"aaaa")
    assert put(cache, tmp_path, b"cccc")
    assert [out(cache, tmp_path, x * 4) is not None for x in (b"a", b"b", b"c")] == [True, False, True]
    assert not put(cache, tmp_path, b"x" * 11)
    assert cache.bytes == 8
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_order_and_nothing_half_done_outlives_the_daemon(tmp_path):
    cache = InputCache(tmp_path / "cache", max_bytes=10)
    for i, content in enumerate((b"aaaa", b"bbbb")):
        assert put(cache, tmp_path, content)
        os.utime(tmp_path / "cache" / sha(content), (i, i))
    assert out(cache, tmp_path, b"aaaa")
    (tmp_path / "cache" / ".fresh-x").write_bytes(b"half")
    (tmp_path / "cache" / "notes").write_text("not mine")
    again = InputCache(tmp_path / "cache", max_bytes=10)
    assert again.bytes == 8
    assert not (tmp_path / "cache" / ".fresh-x").exists()
    assert put(again, tmp_path, b"cccc")
    assert [out(again, tmp_path, x * 4) is not None for x in (b"a", b"b", b"c")] == [True, False, True]
    assert (tmp_path / "cache" / "notes").exists()


def test_a_smaller_limit_after_a_restart_is_kept(tmp_path):
    assert put(InputCache(tmp_path / "cache", max_bytes=10), tmp_path, b"aaaa")
    cache = InputCache(tmp_path / "cache", max_bytes=5)
    assert put(cache, tmp_path, b"bbb")
    assert cache.bytes == 3


def test_what_somebody_deleted_or_cut_is_a_miss(tmp_path):
    cache = InputCache(tmp_path / "cache", max_bytes=100)
    for content in (b"aaaa", b"bbbb"):
        put(cache, tmp_path, content)
    (tmp_path / "cache" / sha(b"aaaa")).unlink()
    os.truncate(tmp_path / "cache" / sha(b"bbbb"), 1)
    assert out(cache, tmp_path, b"aaaa") is None
    assert out(cache, tmp_path, b"bbbb") is None
    assert cache.bytes == 0


def test_a_cache_that_cannot_be_written_fails_no_job(tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    cache = InputCache(tmp_path / "cache", max_bytes=100)
    assert not put(cache, tmp_path, b"a")
    assert out(cache, tmp_path, b"a") is None
    assert not InputCache(tmp_path / "other", max_bytes=100).put("../escape", 0)


def test_many_threads(tmp_path):
    cache = InputCache(tmp_path / "cache", max_bytes=4000)

    def work(i: int) -> None:
        content = bytes([i % 16]) * (i % 16 * 50)
        folder = tmp_path / str(i)
        folder.mkdir()
        put(cache, folder, content)
        assert out(cache, folder, content) in {None, content}

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(200)))
    assert cache.bytes <= 4000
    kept = list((tmp_path / "cache").iterdir())
    assert all(sha(file.read_bytes()) == file.name for file in kept)
    assert sum(file.stat().st_size for file in kept) == cache.bytes


@pytest.mark.parametrize("where", ["/dev/shm", "."])
def test_copies_within_and_across_file_systems(tmp_path, where):
    content = os.urandom(3_000_001)
    source, target = tmp_path / "source", Path(where) / f"ostler-test-{os.getpid()}"
    source.write_bytes(content)
    try:
        with source.open("rb") as a, target.open("w+b") as b:
            copy_file(a.fileno(), b.fileno())
        assert target.read_bytes() == content
    finally:
        target.unlink()
