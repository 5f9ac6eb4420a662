"""A bundle is what was signed, or it is refused: by its maker and by the host alike."""

import base64
import contextlib
import hashlib
import io
import json
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostler.fleet.host import archive
from ostler.fleet.host.members import ZEROS, Members
from ostler.fleet.host.refusals import Refused
from ostler.fleet.releases.reading import _Layout, read_bundle
from ostler.fleet.releases.sources import copy_tree, regular_bytes
from ostler.fleet.releases.store import ReleaseStore, for_platform, pack, verify
from ostler.model.errors import InvalidSpec, NotFound
from release_rig import HERE, OTHER, make, new_keys


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return new_keys(tmp_path_factory.mktemp("made") / "keys")


@pytest.fixture(scope="module")
def made(tmp_path_factory, keys):
    return make(tmp_path_factory.mktemp("store"), keys)


def read(data, trusted, platform=None):
    """All that is in a bundle, as a host reads it."""
    with archive.opened(io.BytesIO(data), trusted) as (manifest, _, contents):
        return manifest, {file.path: b"".join(checked) for file, checked in contents.read(platform)}


def unpacked(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(one.name, tar.extractfile(one).read()) for one in tar.getmembers()]


def test_the_same_input_is_the_same_release(tmp_path, keys, made):
    again = make(tmp_path, keys)
    assert again.release == made.release == f"1.0-{made.manifest.digest[:12]}"
    assert again.bundle.read_bytes() == made.bundle.read_bytes()
    assert make(tmp_path, keys, "1.1").release != made.release


def test_what_was_signed_is_read(keys, made):
    manifest, files = read(made.bundle.read_bytes(), keys.trusted)
    assert files.keys() == manifest.files.keys()
    assert verify(made.bundle, keys.trusted) == manifest


def test_a_host_is_sent_what_its_platform_needs(keys, made):
    data = for_platform(made.bundle, str(HERE))
    manifest, files = read(data, keys.trusted, str(HERE))
    assert manifest.release == made.release
    assert manifest.files.keys() - files.keys() == {"wheels/other-1-py3-none-any.whl"}
    for platform in (None, str(OTHER)):
        with pytest.raises(Refused, match="lacks wheels/other-1"):
            read(data, keys.trusted, platform)


CHANGES = {
    "a file more": lambda files: [*files, ("more", b"")],
    "a file twice": lambda files: [*files, files[1]],
    "a file less": lambda files: files[:-1],
    "another file": lambda files: [*files[:1], (files[1][0], files[1][1][:-1] + b"!"), *files[2:]],
    "a longer file": lambda files: [*files[:1], (files[1][0], files[1][1] + b"!"), *files[2:]],
    "a path out of it": lambda files: [*files[:1], ("../" + files[1][0], files[1][1]), *files[2:]],
    "an absolute path": lambda files: [*files[:1], ("/" + files[1][0], files[1][1]), *files[2:]],
    "no manifest": lambda files: files[1:],
    "the manifest last": lambda files: [*files[1:], files[0]],
    "nothing": lambda files: [],
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_what_was_signed_is_refused(tmp_path, keys, made, change):
    data = pack(CHANGES[change](unpacked(made.bundle.read_bytes())))
    with pytest.raises(Refused):
        read(data, keys.trusted)
    changed = tmp_path / made.bundle.name
    changed.write_bytes(data)
    with pytest.raises(InvalidSpec, match="bundle"):
        verify(changed, keys.trusted)


def test_an_archive_ends_in_zeros_and_nothing_follows(tmp_path, keys, made):
    """As many as a platform's part of a whole archive can have, whose length fits no record of its own; for each reader."""
    bare = made.bundle.read_bytes().rstrip(b"\0")
    bare += bytes(-len(bare) % 512)
    for zeros in (512, 1000, 1024, 10_240, ZEROS):
        assert read(bare + bytes(zeros), keys.trusted)[0] == made.manifest
    longer = tmp_path / made.bundle.name
    for after in (bytes(ZEROS + 1), bytes(100_000), bytes(1024) + b"x", bytes(ZEROS - 1) + b"x", bytes(1024) + bare):
        with pytest.raises(Refused, match="more follows behind its end"):
            read(bare + after, keys.trusted)
        longer.write_bytes(bare + after)
        with pytest.raises(InvalidSpec, match="more follows behind its end"):
            verify(longer, keys.trusted)
        with pytest.raises(InvalidSpec, match="more follows behind its end"):
            read_bundle(io.BytesIO(bare + after), keys.trusted)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(0, 30_000), st.booleans()), max_size=12))
def test_each_part_of_a_bundle_ends_within_the_bound(sizes):
    layout = _Layout(["a", "b"])
    for number, (size, both) in enumerate(sizes):
        layout.add(f"f{number}", size, ["a", "b"] if both else ["a"])
        layout.data(bytes(size))
    sha256, excerpts = layout.end()
    files = [(f"f{number}", bytes(size)) for number, (size, _) in enumerate(sizes)]
    whole = pack(files)
    assert hashlib.sha256(whole).hexdigest() == sha256
    for one in excerpts.values():
        part = b"".join(whole[begin:end] for begin, end in one.pieces)
        members = Members(io.BytesIO(part))
        while members.next() is not None:
            pass
        members.end()


def test_a_link_in_an_archive_is_refused(keys, made):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in unpacked(made.bundle.read_bytes()):
            member = tarfile.TarInfo(name)
            if name.startswith("units/"):
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/shadow"
                tar.addfile(member)
            else:
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    with pytest.raises(Refused, match="member of the kind b'2'"):
        read(content.getvalue(), keys.trusted)


def head(kind, size, name="x", form=tarfile.GNU_FORMAT):
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(form)


def padded(data):
    return data + bytes(-len(data) % 512)


def enveloped(payload, **changes):
    outer = {"payload": base64.b64encode(payload).decode(), "payloadType": archive.TYPE, "signatures": []} | changes
    return json.dumps(outer).encode()


class Watched(io.BytesIO):
    """Says how much was read of it."""

    def __init__(self, data):
        super().__init__(data)
        self.taken = 0

    def read(self, most=-1):
        piece = super().read(most)
        self.taken += len(piece)
        return piece


@pytest.mark.parametrize(
    "bomb",
    [
        pytest.param(lambda: head(b"x", 200_001) + padded(b"1" * 200_000 + b"\n"), id="extended head of digits"),
        pytest.param(lambda: (head(b"L", 10) + padded(b"aaaaaaaaa\0")) * 3000, id="chain of long names"),
        pytest.param(lambda: head(b"L", 4 << 20) + bytes(4 << 20), id="large name"),
        pytest.param(lambda: head(b"S", 512, archive.MANIFEST) + bytes(512), id="sparse"),
        pytest.param(lambda: head(b"0", 8 << 33, archive.MANIFEST), id="size that is not octal"),
        pytest.param(lambda: head(b"0", archive.MAX_MANIFEST + 1, archive.MANIFEST, tarfile.USTAR_FORMAT), id="large manifest"),
        pytest.param(lambda: b"\xff" + head(b"0", 5, archive.MANIFEST, tarfile.USTAR_FORMAT)[1:], id="wrong sum"),
    ],
)
def test_no_head_is_followed_before_a_signature(bomb):
    content = Watched(bomb() + bytes(10240))
    with pytest.raises(Refused, match="bundle"), archive.opened(content, {}):
        pass
    assert content.taken == 512


@pytest.mark.parametrize(
    "envelope",
    [
        b"[" * 200_000, enveloped(b"[" * 100_000), enveloped(b"1" * 5000), b'{"payload":"\xff"}',
        enveloped(b'{"format": 1}', signatures=5), enveloped(b"{}", payloadType="x" * 100_000),
    ],
)  # fmt: skip
def test_a_manifest_that_no_reader_can_read_is_refused(envelope):
    data = head(b"0", len(envelope), archive.MANIFEST, tarfile.USTAR_FORMAT) + padded(envelope) + bytes(1024)
    with pytest.raises(Refused, match="manifest is") as refused, archive.opened(io.BytesIO(data), {}):
        pass
    assert len(refused.value.message) < 500


@settings(max_examples=60)
@given(data=st.data())
def test_no_flipped_bit_is_read_as_what_was_signed(keys, made, data):
    good = made.bundle.read_bytes()
    manifest, files = read(good, keys.trusted)
    place = data.draw(st.integers(0, len(good) - 1))
    bad = good[:place] + bytes([good[place] ^ (1 << data.draw(st.integers(0, 7)))]) + good[place + 1 :]
    with contextlib.suppress(Refused):
        assert read(bad, keys.trusted) == (manifest, files)  # the bit is one that nobody reads


@settings(max_examples=20)
@given(data=st.data())
def test_a_bundle_that_was_cut_off_is_refused(keys, made, data):
    good = made.bundle.read_bytes()
    end = len(good.rstrip(b"\0"))
    with pytest.raises(Refused):
        read(good[: data.draw(st.integers(0, end - 1))], keys.trusted)


def signed(keys, made, /, **changes):
    """The release's manifest with changes, signed again by a key that is trusted."""
    envelope = json.loads(unpacked(made.bundle.read_bytes())[0][1])
    inner = json.loads(base64.b64decode(envelope["payload"])) | changes
    return keys.envelope(json.dumps(inner).encode())


@pytest.mark.parametrize(
    "path", ["../x", "/x", "a//b", "a/../b", ".hidden", "a/", "", "release.json", "a\0b", "a/" * 9 + "b", "x" * 300, "a b", "-x"]
)
def test_a_signed_path_that_leaves_is_refused_nevertheless(keys, made, path):
    files = [{"path": path, "sha256": "0" * 64, "size": 0}]
    with pytest.raises(Refused, match="cannot be part of a release"):
        archive.read_manifest(signed(keys, made, files=files), keys.trusted)


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"format": 2}, "has format 2; this program reads 1"), ({"version": "../../x"}, "damaged"), ({"platforms": ["x;y"]}, "damaged"),
     ({"protocol": [1]}, "damaged"), ({"files": 3}, "damaged"),
     ({"keys": {"generation": 1, "trusted": [{"id": "a", "public": "AAAA"}]}}, "damaged"),
     ({"commit": {"a": 1}}, "damaged"), ({"schema": float("inf")}, "damaged"),
     ({"keys": {"generation": 1, "trusted": [{"id": "a", "public": "AAAA"}] * 65}}, "more than 64 keys"),
     ({"files": [{"path": "a", "sha256": "", "size": -1}]}, "cannot be part")],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(keys, made, changes, why):
    with pytest.raises(Refused, match=why):
        archive.read_manifest(signed(keys, made, **changes), keys.trusted)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"payload": "", "payloadType": "x", "signatures": []}', b"\xff"])
def test_an_envelope_that_is_none_is_refused(keys, text):
    with pytest.raises(Refused):
        archive.read_manifest(text, keys.trusted)


def test_a_release_is_found_by_the_beginning_of_its_id_and_pruned(tmp_path, keys):
    store = ReleaseStore(tmp_path)
    with pytest.raises(NotFound, match="no releases"):
        store.find(None)
    made = [make(tmp_path, keys, version) for version in ("1.0", "1.1", "2.0")]
    assert store.find("2").release == made[2].release
    with pytest.raises(NotFound, match="2 releases begin with 1"):
        store.find("1.")
    with pytest.raises(NotFound, match="no release 3"):
        store.find("3")
    assert len(store.prune(1)) == 2
    assert len(store.releases()[0]) == 1
    (tmp_path / "damaged.tar").write_bytes(b"x")
    found, wrong = store.releases()
    assert (len(found), len(wrong)) == (1, 1)


def test_a_release_is_made_of_regular_files(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("text")
    copy_tree(source, tmp_path / "good", without=())
    assert (tmp_path / "good" / "file").read_text() == "text"
    (source / "link").symlink_to("file")
    with pytest.raises(InvalidSpec, match="is a symbolic link"):
        copy_tree(source, tmp_path / "bad", without=())
    with pytest.raises(InvalidSpec, match="cannot be read"):
        regular_bytes(tmp_path / "missing")
    with pytest.raises(InvalidSpec, match="not a regular file"):
        regular_bytes(tmp_path)
