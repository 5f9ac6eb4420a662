"""What a place of backups must do, of a directory and of real S3 servers, of which one knows no conditions and the other does."""

import os
import threading
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

import ceph
import s3
from ostler.coordinator.upkeep.places import s3 as adapter
from ostler.coordinator.upkeep.places.opening import open_place
from ostler.coordinator.upkeep.places.port import Place
from ostler.model.errors import OperationInFlight

MB = 2**20


@pytest.fixture(params=["directory", "s3", pytest.param("ceph", marks=[pytest.mark.long, pytest.mark.xdist_group("ceph")])])
def address(request: pytest.FixtureRequest, tmp_path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "directory":
        return str(tmp_path / "place")
    try:
        server = s3.shared() if request.param == "s3" else ceph.shared()
    except ceph.Missing as exc:
        pytest.skip(str(exc))
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{server.bucket()}/some/prefix"


@pytest.fixture
def place(address: str) -> Place:
    found = open_place(address)
    assert found.claim("mark", b"a place")
    return found


def put(place: Place, name: str, *blocks: bytes) -> None:
    place.write(name, blocks, sum(map(len, blocks)))


def test_where_nothing_is_there_is_nothing(address: str):
    place = open_place(address)
    assert (place.folders(), list(place.names()), list(place.names("folder"))) == ([], [], [])
    for read in (place.read, lambda name: next(place.stream(name))):
        with pytest.raises(FileNotFoundError):
            read("folder/one")


def test_what_was_written_is_read_and_listed(place: Place):
    put(place, "objects/ab/cd", b"one", b"two")
    put(place, "20260101T000000Z/keys/signing.key", b"key")
    put(place, "20260101T000000Z/empty")
    assert place.read("objects/ab/cd") == b"onetwo"
    assert b"".join(place.stream("20260101T000000Z/empty")) == b""
    assert sorted(place.folders()) == ["20260101T000000Z", "objects"]
    assert sorted(place.names()) == [
        "20260101T000000Z/empty", "20260101T000000Z/keys/signing.key", "mark", "objects/ab/cd",
    ]  # fmt: skip
    assert sorted(place.names("objects")) == ["objects/ab/cd"]
    put(place, "objects/ab/cd", b"another")
    assert place.read("objects/ab/cd") == b"another"


def test_a_large_content_goes_through_in_pieces(place: Place):
    blocks = [os.urandom(MB) for _ in range(20)] + [b"and a rest"]
    place.write("large", iter(blocks), 20 * MB)
    found = list(place.stream("large"))
    assert b"".join(found) == b"".join(blocks)
    assert max(map(len, found)) <= 8 * MB


@pytest.mark.parametrize("size", [0, 1, 20])
@pytest.mark.parametrize("error", [RuntimeError("mine"), FileNotFoundError("mine"), KeyboardInterrupt()])
def test_what_could_not_be_written_whole_is_not_there(place: Place, size: int, error: BaseException):
    def blocks():
        yield from (os.urandom(MB) for _ in range(size))
        raise error

    with pytest.raises(type(error)) as raised:
        place.write("folder/one", blocks(), 20 * MB)
    assert raised.value is error
    assert list(place.names()) == ["mark"]


def test_a_listing_is_whole(place: Place):
    names = [f"objects/{number % 256:02x}/{number:062x}" for number in range(1100)]  # S3 answers a thousand at once
    for name in names:
        if (path := place.local(name)) is not None:
            path.touch()
        else:
            place.write(name, [], 0)
    assert sorted(place.names("objects")) == sorted(names)
    place.remove([*names[1:], "objects/none"])
    assert list(place.names("objects")) == names[:1]


def test_one_folder_goes_and_others_stay(place: Place):
    for name in ("a/one", "a/deep/two", "ab/three", "b"):
        put(place, name, b"x")
    place.drop("a")
    place.drop("a")
    assert sorted(place.names()) == ["ab/three", "b", "mark"]


def test_what_is_claimed_is_not_claimed_again(address: str, request: pytest.FixtureRequest):
    """Where the server knows no condition the last one has it: then the others find out when they look."""
    first, second = open_place(address), open_place(address)
    assert first.claim("mark", b"first")
    if not second.claim("mark", b"second"):
        assert first.read("mark") == b"first"
    else:
        assert "[s3]" in request.node.name
        assert first.read("mark") == b"second"


def test_two_never_get_the_same_folder(place: Place):
    found = set()
    for _ in range(3):
        found.add(name := place.new_folder("20260101T000000Z"))
        assert name.startswith("20260101T000000Z")
        put(place, f"{name}/one", b"x")
    assert len(found) == 3


def test_nobody_adds_while_one_prunes(place: Place, address: str):
    with place.hold(prune=True) as hold:
        assert hold.alone
        hold.check()
        for prune in (True, False):
            with pytest.raises(OperationInFlight), open_place(address).hold(prune=prune):
                pass
    with place.hold(prune=False) as hold:
        hold.check()


def test_nobody_takes_contents_while_one_adds(place: Place, address: str):
    with place.hold(prune=False), ExitStack() as stack:
        try:
            assert not stack.enter_context(open_place(address).hold(prune=True)).alone
        except OperationInFlight:
            assert not address.startswith("s3:")
    with place.hold(prune=True) as hold:
        assert hold.alone


def test_of_many_at_once_never_one_adds_while_another_takes(place: Place, address: str):
    """Whatever the order in which they look: what somebody adds is never in danger."""
    adding, taking, wrong, tried = set(), set(), [], []
    guard = threading.Lock()

    def play(number: int) -> None:
        mine = open_place(address)
        for turn in range(6):
            prune = (number + turn) % 2 == 0
            try:
                with mine.hold(prune=prune) as hold:
                    group = taking if prune and hold.alone else set() if prune else adding
                    with guard:
                        group.add(number)
                        if adding and taking:
                            wrong.append((set(adding), set(taking)))
                    mine.read("mark")
                    with guard:
                        group.discard(number)
                        tried.append(prune)
            except OperationInFlight:
                pass

    threads = [threading.Thread(target=play, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert tried


# --- what S3 alone has ---


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> str:
    server = s3.shared()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server.bucket()


def forget(bucket: str, kind: str) -> Path:
    """Have the server tell a lock's age as if nobody had written it anew for sixteen minutes."""
    [lock] = (s3.shared().root / bucket / "locks").glob(f"{kind}-*")
    old = time.time() - 16 * 60
    os.utime(lock, (old, old))
    s3.shared().look()
    deadline = time.monotonic() + 20
    while open_place(f"s3://{bucket}").ages("locks")[lock.name] > old + 1:
        assert time.monotonic() < deadline
    return lock


@pytest.mark.parametrize("kind", ["add", "prune"])
def test_one_that_was_killed_is_in_the_way_for_so_long_and_no_longer(bucket: str, kind: str):
    place, other = open_place(f"s3://{bucket}"), open_place(f"s3://{bucket}")
    with place.hold(prune=kind == "prune") as hold:
        forget(bucket, kind)
        with other.hold(prune=True) as later:
            assert later.alone
            with pytest.raises(OperationInFlight, match="out of reach"):  # who only slept finds out
                hold.check()
    assert s3.shared().files(bucket) == []


def test_a_lock_is_written_anew_while_its_owner_lives(bucket: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(adapter, "REFRESH", timedelta(milliseconds=100))  # of two minutes
    place = open_place(f"s3://{bucket}")
    with place.hold(prune=False):
        first, deadline = place.ages("locks"), time.monotonic() + 20
        while place.ages("locks") == first:
            assert time.monotonic() < deadline
