"""Releases at the coordinator: who is believed, what is kept, and who gets the bytes."""

import asyncio
import hashlib
import io
import tarfile

import pytest

from cli_rig import ostler
from integration.api_rig import ADMIN, coordinator
from ostler.cli import exits
from ostler.fleet.host import archive
from ostler.fleet.releases.keys import open_keys
from ostler.model.access import Role
from ostler.protocol import routes
from release_rig import HERE, OTHER, make, new_keys


@pytest.fixture
async def rig(tmp_path):
    async with coordinator(tmp_path / "c") as one:
        yield one


@pytest.fixture
def keys(tmp_path):
    return new_keys(tmp_path / "keys")


@pytest.fixture
def release(tmp_path, keys):
    return make(tmp_path / "store", keys)


async def push(rig, release, content=None, *, token=None, name=None, **query):
    headers = rig.bearer(token) if token else rig.bearer()
    return await rig.http.put(
        f"/releases/{name or release.release}", params=query, headers=headers, content=content or release.bundle.read_bytes()
    )


async def trusting(rig, release):
    answer = await push(rig, release, trust=True, digest=release.manifest.digest)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_an_admins_first_release_says_whom_to_believe(rig, release, keys, tmp_path):
    refused = await push(rig, release)
    assert refused.status_code == 409
    assert "release push --trust" in refused.json()["hint"]
    assert (await push(rig, release, trust=True)).status_code == 422
    wrong = await push(rig, release, trust=True, digest="0" * 64)
    assert wrong.status_code == 422
    assert release.manifest.digest in wrong.json()["detail"]
    async with rig.person(Role.OPERATOR, "olga") as _:
        olga = (await rig.token_for(Role.OPERATOR, "olga")).token
        assert (await push(rig, release, trust=True, digest=release.manifest.digest, token=olga)).status_code == 403
        view = await trusting(rig, release)
        assert (view["release"], view["size"]) == (release.release, release.bundle.stat().st_size)
        assert view["sha256"] == hashlib.sha256(release.bundle.read_bytes()).hexdigest()
        later = make(tmp_path / "store", keys, "1.1")
        answer = await push(rig, later, token=olga)
        assert (answer.status_code, answer.json()["pushed_by"]) == (201, "olga")
        assert (await push(rig, later, token=olga)).json() == answer.json()
    page = await rig.people.call(routes.LIST_RELEASES)
    assert [one.release for one in page.items] == [later.release, release.release]
    assert set(page.trusted) == set(keys.trusted)


async def test_keys_change_with_overlap_and_never_back(rig, release, keys, tmp_path):
    await trusting(rig, release)
    both = keys.with_new()
    overlap = make(tmp_path / "store", both, "1.1")
    assert (await push(rig, overlap)).status_code == 201
    fresh = make(tmp_path / "store", both.without(next(iter(keys.trusted))), "1.2")
    assert (await push(rig, fresh)).status_code == 201
    old = make(tmp_path / "store", open_keys(tmp_path / "keys"), "1.3")
    assert (await push(rig, old)).status_code == 201
    stolen = make(tmp_path / "store", keys, "1.4")  # by the key that was retired
    refused = await push(rig, stolen)
    assert refused.status_code == 422
    assert "signed by no key that is trusted here" in refused.json()["detail"]


def damaged(content: bytes) -> bytes:
    place = content.index(b"[Service]")
    return content[:place] + b"[Servile]" + content[place + 9 :]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(damaged, "its hash is not the manifest's", id="tampered"),
        pytest.param(lambda content: content[: len(content) // 2], "not a whole bundle|lacks", id="half"),
        pytest.param(lambda content: b"PK" + content, "not a whole bundle|not the bundle", id="no-bundle"),
        pytest.param(lambda content: io.BytesIO(b"\0" * 100_000).read(), "not the bundle|not a whole", id="empty"),
    ],
)
async def test_what_is_not_as_it_was_signed_is_refused_and_not_kept(rig, release, change, says):
    await trusting(rig, release)
    before = len(rig.stored)
    refused = await push(rig, release, change(release.bundle.read_bytes()))
    assert refused.status_code == 422, refused.text
    assert any(one in refused.json()["detail"] for one in says.split("|"))
    assert (len(rig.stored), rig.staged) == (before, [])


async def test_anothers_key_and_another_name_are_refused(rig, release, tmp_path):
    await trusting(rig, release)
    eves = make(tmp_path / "eve", new_keys(tmp_path / "eves-keys"), "9.9")
    assert (await push(rig, eves)).status_code == 422
    named = await push(rig, release, name="1.0-000000000000")
    assert f"this is the bundle of release {release.release}" in named.json()["detail"]
    assert [one.release for one in (await rig.people.call(routes.LIST_RELEASES)).items] == [release.release]


async def test_bytes_come_back_in_ranges_and_not_to_any_node(rig, release):
    await trusting(rig, release)
    content = release.bundle.read_bytes()
    url = f"/releases/{release.release}/bundle"
    whole = await rig.http.get(url, headers=rig.bearer())
    assert whole.content == content
    part = await rig.http.get(url, headers=rig.bearer(Range="bytes=1000-"))
    assert (part.status_code, part.content) == (206, content[1000:])
    node = await rig.enrolled()
    assert (await rig.http.get(url, headers=rig.bearer(node.token))).status_code == 404


async def test_a_platform_gets_what_it_needs_and_that_is_a_bundle_in_itself(rig, release):
    """In ranges as if it were all; a host's program takes it."""
    await trusting(rig, release)
    url, content = f"/releases/{release.release}/bundle", release.bundle.read_bytes()
    excerpt = await rig.http.get(url, headers=rig.bearer(), params={"platform": str(HERE)})
    assert len(excerpt.content) < len(content) - 99 * 64
    assert excerpt.headers["etag"] == f'"{hashlib.sha256(excerpt.content).hexdigest()}"'
    for begin in (0, 1, 511, 5000, len(excerpt.content) - 1):
        part = await rig.http.get(url, headers=rig.bearer(Range=f"bytes={begin}-"), params={"platform": str(HERE)})
        assert (part.status_code, part.content) == (206, excerpt.content[begin:])
    other = await rig.http.get(url, headers=rig.bearer(), params={"platform": str(OTHER)})
    assert other.content == content  # it needs all files of this one
    with archive.opened(io.BytesIO(excerpt.content), release.manifest.keys) as (manifest, _, contents):
        names = [file.path for file, _ in contents.read(str(HERE))]
    assert manifest.release == release.release
    assert "wheels/other-1-py3-none-any.whl" not in names
    wrong = await rig.http.get(url, headers=rig.bearer(), params={"platform": "cp27-vax"})
    assert (wrong.status_code, "has nothing for cp27-vax" in wrong.json()["detail"]) == (404, True)


@pytest.mark.parametrize(
    ("form", "says"),
    [(tarfile.USTAR_FORMAT, "is not laid out as"), (tarfile.PAX_FORMAT, "of plain files alone")],
    ids=["other", "pax"],
)
async def test_another_layout_of_the_same_files_is_refused(rig, release, form, says):
    """What a platform needs is told by where it stands."""
    await trusting(rig, release)
    fresh = release.bundle.with_name("fresh")
    with tarfile.open(release.bundle) as bundle, tarfile.open(fresh, "w", format=form) as archive_:
        for member in bundle.getmembers():
            member.pax_headers, member.mtime = {"comment": "x"}, 5
            archive_.addfile(member, bundle.extractfile(member))
    refused = await push(rig, release, fresh.read_bytes())
    assert (refused.status_code, says in refused.json()["detail"]) == (422, True)
    assert rig.staged == []


async def test_a_bundle_that_is_made_to_keep_its_reader_busy_is_refused(rig, release):
    """Heads that a tar reader would follow, and JSON that no reader can follow: 422, and nothing is kept."""
    await trusting(rig, release)
    deep = b"[" * 200_000
    for kind, name, body in ((b"x", "x", b"1" * 200_000), (b"L", "x", b"a" * 200_000), (b"0", archive.MANIFEST, deep)):
        member = tarfile.TarInfo(name)
        member.type, member.size = kind, len(body)
        refused = await push(rig, release, member.tobuf(tarfile.GNU_FORMAT if kind != b"0" else tarfile.USTAR_FORMAT) + body)
        assert refused.status_code == 422, refused.text
        assert "bundle" in refused.json()["detail"]
    assert rig.staged == []


async def test_one_that_is_removed_is_gone(rig, release):
    await trusting(rig, release)
    tag = (await rig.http.get(f"/releases/{release.release}", headers=rig.bearer())).headers["etag"]
    stale = await rig.http.delete(f"/releases/{release.release}", headers=rig.bearer(**{"If-Match": '"other"'}))
    assert (stale.status_code, tag in stale.json()["detail"]) == (412, True)
    view = await rig.people.call(routes.REMOVE_RELEASE, release=release.release, headers={"If-Match": tag})
    assert view.release == release.release
    assert (await rig.http.get(f"/releases/{release.release}", headers=rig.bearer())).status_code == 404
    assert (await rig.http.delete(f"/releases/{release.release}", headers=rig.bearer())).status_code == 404


async def test_by_the_command_line(rig, release, keys, tmp_path, monkeypatch):
    monkeypatch.setenv("OSTLER_URL", rig.url)
    monkeypatch.setenv("OSTLER_TOKEN", ADMIN)

    async def cli(*args):
        return await asyncio.to_thread(ostler, "release", *args)

    store = ("--store", tmp_path / "store")
    refused = await cli("push", *store)
    assert (refused.returncode, "release push --trust" in refused.stderr) == (exits.REJECTED, True)
    assert "has release 1.0-" in (await cli("push", "--trust", *store)).stdout
    assert (await cli("push", *store)).stdout == f"the coordinator has release {release.release}\n"
    make(tmp_path / "store", keys, "1.1")
    assert (await cli("push", "1.1", *store, "--json")).json["version"] == "1.1"
    assert release.release in (await cli("list", "--pushed")).stdout
    assert release.manifest.digest in (await cli("show", "1.0", "--pushed")).stdout
    assert (await cli("prune", "--keep", 1, "--pushed", "--json")).json == {"removed": [release.release]}
    assert (await cli("show", "1.0", "--pushed")).returncode == exits.REJECTED
