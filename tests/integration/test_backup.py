"""Backups: taken while others write, proved, restored; what is damaged, foreign or unfinished is told; keys and encryption."""

import asyncio
import base64
import hashlib
import io
import json
import logging
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import postgres
from cli_rig import ostler
from ostler.coordinator.artifacts.store import DirectoryArtifacts
from ostler.coordinator.config import CoordinatorConfig
from ostler.coordinator.keys import open_keys
from ostler.coordinator.operations import uploads
from ostler.coordinator.sealing import open_sealer
from ostler.coordinator.upkeep.backing_up import back_up
from ostler.coordinator.upkeep.repository import Repository
from ostler.coordinator.upkeep.restoring import restore as restore_backup
from ostler.model.failures import FailureCode
from ostler.protocol.messages import ArtifactEntry
from store_rig import Rig

LOGGER = logging.getLogger("ostler.tests")
PASSPHRASE = "correct horse battery staple"


async def store_blob(data: Path, content: bytes) -> str:
    artifacts = DirectoryArtifacts(data / "artifacts", logger=LOGGER)
    await artifacts.open()
    staging = await artifacts.stage()
    await staging.write(content)
    stored = await staging.commit()
    await artifacts.close()
    return stored.sha256


@pytest.fixture
async def site(tmp_path: Path):
    """A coordinator's data with jobs in every state that matters, artifacts and keys; its store is open, as in a running one."""
    data = tmp_path / "data"
    rig = Rig.open(data / "ostler.db")
    open_keys(data / "keys")
    open_sealer(data / "keys")
    (data / "admin.token").write_text("ostler_api_admin_x")
    (data / "admin.token").chmod(0o600)
    contents = [await store_blob(data, f"artifact {i}".encode() * 1000) for i in range(3)]
    await rig.join("n1", slots=8)
    await rig.submit(5)
    done, failed, *_ = await rig.begin("n1", slots=3)
    await rig.append("n1", done, 0, b"hello\n")
    entries = tuple(ArtifactEntry(path=f"out{i}", type="file", size=10_000, sha256=one) for i, one in enumerate(contents[:2]))
    assert (await rig.finish("n1", done, artifacts=entries)).ok
    assert (await rig.fail("n1", failed, FailureCode.EXIT)).ok
    await rig.write(uploads.note_upload, contents[2], "admin")
    yield SimpleNamespace(data=data, rig=rig, contents=contents, to=tmp_path / "backups", root=tmp_path)
    rig.close()


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def create(site: SimpleNamespace, *more: object) -> dict:
    done = ostler("backup", "create", site.to, "--data", site.data, "--json", *more)
    assert done.returncode == 0, done.stderr
    return done.json


def restore(site: SimpleNamespace, *more: object, where: str = "elsewhere"):
    return ostler("restore", site.to, "--data", site.root / where, "--json", *more)


async def test_a_backup_becomes_the_same_data_again(site: SimpleNamespace):
    made = create(site, "--with-keys")
    assert (made["rows"]["jobs"], made["artifacts"], made["missing"], made["encrypted"]) == (5, 3, 0, False)
    before = {
        table: await site.rig.rows(f"SELECT * FROM {table}") for table in ("jobs", "attempts", "specs", "log_chunks", "nodes")
    }
    await site.rig.submit(7)  # is not in it
    proved = ostler("backup", "verify", site.to)
    assert proved.returncode == 0, proved.stderr
    done = restore(site)
    assert done.returncode == 0, done.stderr
    there = site.root / "elsewhere"
    assert {"keys/signing.key", "keys/hmac.key", "keys/secrets.key", "admin.token"} == set(done.json["keys"])
    for name in done.json["keys"]:
        assert (there / name).read_bytes() == (site.data / name).read_bytes()
        assert (there / name).stat().st_mode & 0o777 == 0o600
    for sha256 in site.contents:
        place = f"artifacts/objects/{sha256[:2]}/{sha256[2:]}"
        assert (there / place).read_bytes() == (site.data / place).read_bytes()
    assert {file.name for file in there.iterdir()} == {"ostler.db", "ostler.lock", "keys", "admin.token", "artifacts"}
    rig = Rig.open(there / "ostler.db", site.rig.clock)
    try:
        for table, rows in before.items():
            assert await rig.rows(f"SELECT * FROM {table}") == rows
        assert await rig.rows("PRAGMA integrity_check") == [("ok",)]
        assert await rig.rows("SELECT action, target FROM audit") == [("restore", made["backup"])]
    finally:
        rig.close()


async def test_a_second_backup_stores_only_what_is_new(site: SimpleNamespace):
    first = create(site)
    fourth = await store_blob(site.data, b"a fourth")
    await site.rig.write(uploads.note_upload, fourth, "admin")
    inodes = {path: path.stat().st_ino for path in (site.to / "objects").rglob("*") if path.is_file()}
    second = create(site)
    assert second["artifacts"] == 4
    assert {path: path.stat().st_ino for path in inodes} == inodes
    listed = ostler("backup", "list", site.to, "--json").json
    assert [one["backup"] for one in listed] == [first["backup"], second["backup"]]
    # retention takes it from the coordinator; the newest backup goes, and what only it had
    with closing(sqlite3.connect(site.data / "ostler.db")) as connection, connection:
        connection.execute("DELETE FROM uploads WHERE sha256 = ?", (fourth,))
    third = create(site)
    pruned = ostler("backup", "prune", site.to, "--keep", 1, "--json").json
    assert pruned == {"removed": [first["backup"], second["backup"]], "objects": 1}
    assert [one["backup"] for one in ostler("backup", "list", site.to, "--json").json] == [third["backup"]]
    assert ostler("backup", "verify", site.to).returncode == 0


async def test_writers_go_on_meanwhile_and_each_backup_is_of_one_moment(site: SimpleNamespace):
    """A job's row, its spec and its event come in one transaction: no backup has one without the others."""
    over, made = threading.Event(), []

    def take() -> None:
        try:
            made.extend(create(site) for _ in range(3))
        finally:
            over.set()

    thread = threading.Thread(target=take)
    thread.start()
    count = 5
    while not over.is_set():
        await site.rig.submit(20)
        count += 20
    thread.join()
    assert len(made) == 3
    assert made[-1]["rows"]["jobs"] > 5
    for one in made:
        assert one["rows"]["jobs"] == one["rows"]["specs"]
        assert ostler("backup", "verify", site.to, one["backup"]).returncode == 0
    assert len(await site.rig.rows("SELECT 1 FROM jobs")) == count


@pytest.mark.parametrize("what", ["database", "artifact", "list", "manifest", "gone"])
async def test_damage_is_found(site: SimpleNamespace, what: str):
    made = create(site)
    place = site.to / made["backup"]
    content = site.to / "objects" / site.contents[0][:2] / site.contents[0][2:]
    target = {
        "database": place / "ostler.db", "artifact": content, "list": place / "objects.txt", "manifest": place / "manifest.json",
        "gone": content,
    }[what]  # fmt: skip
    changed = bytearray(target.read_bytes())
    changed[len(changed) // 2] ^= 1
    target.unlink()  # an artifact is a second name of the coordinator's own file
    if what != "gone":
        target.write_bytes(changed)
    found = ostler("backup", "verify", site.to)
    assert found.returncode == 3
    assert "Traceback" not in found.stderr
    again = restore(site)
    assert again.returncode == 3
    assert not (site.root / "elsewhere" / "ostler.db").exists()


async def test_a_damaged_database_is_not_backed_up(site: SimpleNamespace):
    create(site)
    site.rig.close()
    path = site.data / "ostler.db"
    content = bytearray(path.read_bytes())
    for page in range(3, len(content) // 4096):
        content[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(content)
    done = ostler("backup", "create", site.to, "--data", site.data)
    assert (done.returncode, "Traceback" in done.stderr) == (3, False)
    assert len(ostler("backup", "list", site.to, "--json").json) == 1


async def test_encrypted_backups_tell_nothing_without_the_passphrase(site: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    file = site.root / "passphrase"
    file.write_text(f"{PASSPHRASE}\n")
    made = create(site, "--with-keys", "--encrypt", "--passphrase-file", file)
    assert made["encrypted"]
    create(site, "--passphrase-file", file)
    plain = [(site.data / "keys" / "signing.key").read_bytes(), b"SQLite format 3", b"artifact 0", site.contents[0].encode()]
    for path in (one for one in site.to.rglob("*") if one.is_file()):
        stored = path.read_bytes()
        assert not any(piece in stored for piece in plain), path
        assert site.contents[0][2:] not in path.name
    assert ostler("backup", "list", site.to).returncode == 0
    monkeypatch.setattr("sys.stdin", io.StringIO())  # no terminal
    assert "no passphrase" in ostler("backup", "verify", site.to).stderr
    monkeypatch.setenv("OSTLER_BACKUP_PASSPHRASE", "another")
    assert "does not open" in ostler("backup", "verify", site.to).stderr
    monkeypatch.setenv("OSTLER_BACKUP_PASSPHRASE", PASSPHRASE)
    assert ostler("backup", "verify", site.to).returncode == 0
    assert ostler("backup", "prune", site.to, "--keep", 1, "--json").json["objects"] == 0
    done = restore(site)
    assert done.returncode == 0, done.stderr
    for sha256 in site.contents:
        place = f"artifacts/objects/{sha256[:2]}/{sha256[2:]}"
        assert (site.root / "elsewhere" / place).read_bytes() == (site.data / place).read_bytes()


async def test_no_number_is_given_twice(site: SimpleNamespace):
    """What nodes and readers saw after the backup: the same job, attempt and event under those numbers never come again."""
    create(site)
    again = await site.rig.begin("n1", slots=8)
    assert await site.rig.submit(1, job_id="chosen") == ["chosen"]
    seen = {(one.job_id, one.attempt) for one in [*again, *await site.rig.begin("n1", slots=8)]}
    [(event,)] = await site.rig.rows("SELECT max(id) FROM events")
    repository = Repository.open(site.to)
    for number, place in enumerate(("first", "second")):  # from the same backup: two lives that know nothing of each other
        now = datetime.now(UTC) + timedelta(seconds=number)
        restore_backup(
            repository,
            repository.find(None, now),
            CoordinatorConfig(data=site.root / place),
            replace=False,
            now=now,
            logger=LOGGER,
        )
        rig = Rig.open(site.root / place / "ostler.db", site.rig.clock)
        try:
            live = await rig.rows("SELECT j.job_id, a.attempt FROM attempts a JOIN jobs j ON j.seq = a.job_seq")
            assert all(attempt == 1 for _, attempt in live)  # what a node may still hold keeps its number
            await rig.submit(1, job_id="chosen")
            given = await rig.begin("n1", slots=8)
            assert "chosen" in {one.job_id for one in given}
            assert not seen & {(one.job_id, one.attempt) for one in given}
            seen |= {(one.job_id, one.attempt) for one in given}
            [(first,)] = await rig.rows("SELECT min(id) FROM events WHERE kind = 'lease' AND attempt > 1")
            assert first > event
            [(event,)] = await rig.rows("SELECT max(id) FROM events")
            assert (await rig.finish("n1", given[0])).ok
            assert (await rig.job(given[0].job_id)).tries == 1
        finally:
            rig.close()


async def test_nobody_s_database_is_overwritten(site: SimpleNamespace):
    create(site)
    running = ostler("restore", site.to, "--data", site.data, "--replace")
    assert (running.returncode, "a coordinator (pid" in running.stderr) == (3, True)
    site.rig.close()
    refused = ostler("restore", site.to, "--data", site.data)
    assert (refused.returncode, "--replace" in refused.stderr) == (3, True)
    before = dump(site.data / "ostler.db")
    done = ostler("restore", site.to, "--data", site.data, "--replace", "--json")
    assert done.returncode == 0, done.stderr
    assert dump(Path(done.json["moved"])) == before
    assert (done.json["keys"], done.json["kept"]) == ([], [])
    assert not any("keys of the coordinator" in one for one in done.json["warnings"])


async def test_without_its_keys_a_restored_coordinator_is_told_so(site: SimpleNamespace):
    create(site)
    done = restore(site)
    assert any("nodes obey no other one" in one for one in done.json["warnings"])
    assert any("secrets" in one for one in done.json["warnings"])


async def test_what_is_no_backup_is_refused(site: SimpleNamespace):
    assert "no backups" in ostler("backup", "verify", site.root / "nothing").stderr
    (site.root / "full").mkdir()
    (site.root / "full" / "photo.jpg").write_text("x")
    assert ostler("backup", "create", site.root / "full", "--data", site.data).returncode == 3
    assert "no database" in ostler("backup", "create", site.to, "--data", site.root / "nothing").stderr
    assert ostler("backup", "verify", site.to, "../data").returncode == 3


@pytest.mark.parametrize("content", [b"{", b"of another", b"of no time zone"])
async def test_one_that_is_damaged_does_not_hide_the_others(site: SimpleNamespace, content: bytes):
    whole, damaged = create(site)["backup"], create(site)["backup"]
    place = site.to / damaged / "manifest.json"
    if content == b"of another":
        content = (site.to / whole / "manifest.json").read_bytes()
    elif content == b"of no time zone":
        said = json.loads(place.read_text())
        content = json.dumps({**said, "taken_at": "2030-01-01T00:00:00"}).encode()
    place.write_bytes(content)
    listed = ostler("backup", "list", site.to, "--json")
    assert (listed.returncode, [one["backup"] for one in listed.json]) == (3, [whole])
    assert f"rm -r {site.to / damaged}" in listed.stderr
    assert ostler("backup", "verify", site.to, whole).returncode == 0
    for command in ("verify", site.to), ("prune", site.to, "--keep", "1"):  # the newest one is not silently another
        done = ostler("backup", *command)
        assert (done.returncode, f"{site.to / damaged} " in done.stderr) == (3, True), done
    assert (site.to / whole).is_dir()


async def test_one_of_a_time_to_come_is_taken_only_where_it_is_named(site: SimpleNamespace):
    """A clock was wrong, there or here: which one is the newest is not guessed."""
    now = datetime.now(UTC)

    def taken(after: timedelta) -> str:
        repository = Repository.open(site.to)
        return back_up(CoordinatorConfig(data=site.data), repository, with_keys=False, now=now + after, logger=LOGGER).backup_id

    good = create(site)["backup"]
    near, ahead = taken(timedelta(minutes=2)), taken(timedelta(days=400))
    assert len({good, near, ahead}) == 3
    for command in ("restore", site.to, "--data", site.root / "elsewhere"), ("backup", "verify", site.to):
        done = ostler(*command)
        assert (done.returncode, f"error: the backup {ahead} was taken at" in done.stderr) == (3, True), done.stderr
        assert f"the newest of the others is {near}" in done.stderr
    assert not (site.root / "elsewhere").exists()
    assert ostler("backup", "verify", site.to, ahead).returncode == 0
    shutil.rmtree(site.to / ahead)
    assert restore(site).json["backup"] == near  # by a clock that goes a little ahead of this one


async def test_what_was_killed_is_no_backup_and_in_nobody_s_way(site: SimpleNamespace):
    """Killed at the last moment: everything is there but the name."""
    script = (
        "import os, signal, sys\n"
        "from ostler.coordinator.upkeep import repository\n"
        "from ostler.cli.main import app\n"
        "repository.Repository.finish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"  # no other way to die right there
        "app(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", script, "backup", "create", str(site.to), "--data", str(site.data)]
    killed = await asyncio.to_thread(subprocess.run, command, check=False, capture_output=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert ostler("backup", "list", site.to, "--json").json == []
    made = create(site)
    assert [one["backup"] for one in ostler("backup", "list", site.to, "--json").json] == [made["backup"]]
    assert not list(site.to.glob(".part*"))
    assert not list((site.data / ".backup").iterdir())


ENDED = """
import os, signal, sys
from ostler.coordinator.upkeep import backing_up, restoring
from ostler.cli.main import main
by = int(sys.argv.pop())
backing_up.sums_of = restoring.differences = lambda *_: os.kill(os.getpid(), by)  # a copy of the database stands there
sys.exit(main())
"""


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
async def test_what_is_ended_takes_away_what_it_began(site: SimpleNamespace, by: signal.Signals, tmp_path: Path):
    create(site)
    (scratch := tmp_path / "scratch").mkdir()
    kept = sorted(site.to.rglob("*"))
    for command in (
        ["backup", "create", site.to, "--data", site.data],
        ["backup", "verify", site.to, "--scratch", scratch],
        ["restore", site.to, "--data", site.root / "elsewhere"],
    ):
        arguments = [sys.executable, "-c", ENDED, *map(str, command), str(int(by))]
        done = await asyncio.to_thread(subprocess.run, arguments, check=False, capture_output=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (128 + by, b"", b"")
    assert sorted(site.to.rglob("*")) == kept
    assert not list((site.data / ".backup").iterdir())
    assert not list(scratch.iterdir())
    assert [one.name for one in (site.root / "elsewhere").iterdir()] == ["ostler.lock"]


async def test_a_restore_onto_a_running_coordinator_is_refused_at_once(site: SimpleNamespace):
    create(site)
    there = sorted(site.data.iterdir())
    done = ostler("restore", site.to, "--data", site.data, "--replace")
    assert (done.returncode, f"runs on {site.data / 'ostler.db'}" in done.stderr) == (3, True), done
    assert sorted(site.data.iterdir()) == there


async def test_a_passphrase_file_that_is_none_is_told(site: SimpleNamespace):
    (noise := site.root / "noise").write_bytes(b"\xff\xfe\n")
    for file, why in ((site.root / "nothing", "No such file"), (noise, "not text"), (site.root, "directory")):
        done = ostler("backup", "create", site.to, "--data", site.data, "--encrypt", "--passphrase-file", file)
        assert (done.returncode, f"{file} cannot be read" in done.stderr, why in done.stderr) == (3, True, True), done


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("keys", "../../outside"),
        ("keys", "keys/../../outside"),
        ("keys", "/etc/outside"),
        ("backup_id", "../x"),
        ("list", "../" * 20),
    ],
)
async def test_a_forged_manifest_leads_nowhere(site: SimpleNamespace, what: str, name: str):
    """Whoever can write to the backups can also sign anew, with a key of their own."""
    made = create(site, "--with-keys")
    place = site.to / made["backup"]
    manifest = json.loads((place / "manifest.json").read_text())
    if what == "keys":
        manifest["files"][name] = manifest["files"].pop("admin.token")
        manifest["keys"] = [name if one == "admin.token" else one for one in manifest["keys"]]
    elif what == "backup_id":
        manifest["backup_id"] = name
    else:
        content = f"{name}{'a' * 64}"[:64] + " 10000\n"
        (place / "objects.txt").write_text(content)
        digest = hashlib.sha256(content.encode()).hexdigest()
        manifest["files"]["objects.txt"] = {"size": len(content), "sha256": digest}
    forger = Ed25519PrivateKey.generate()
    manifest["signing_key"] = base64.b64encode(forger.public_key().public_bytes_raw()).decode()
    text = json.dumps(manifest).encode()
    (place / "manifest.json").write_bytes(text)
    (place / "manifest.sig").write_bytes(base64.b64encode(forger.sign(text)))
    for done in (restore(site), ostler("backup", "verify", site.to)):
        assert (done.returncode, "Traceback" in done.stderr) == (3, False), done.stderr
    assert not (site.root / "elsewhere" / "ostler.db").exists()
    assert not list(site.root.rglob("outside"))


async def test_only_what_the_coordinator_signed_is_taken_where_its_key_is_given(site: SimpleNamespace):
    create(site)
    key = base64.b64encode(open_keys(site.data / "keys").public).decode()
    assert ostler("backup", "verify", site.to, "--key", key).returncode == 0
    other = base64.b64encode(Ed25519PrivateKey.generate().public_key().public_bytes_raw()).decode()
    for done in (ostler("backup", "verify", site.to, "--key", other), restore(site, "--key", other)):
        assert (done.returncode, "signed" in done.stderr) == (3, True)
    anybodys = base64.b64encode(bytes(32)).decode()
    for done in (ostler("backup", "verify", site.to, "--key", anybodys), restore(site, "--key", anybodys)):
        assert (done.returncode, "Ed25519" in done.stderr) == (2, True)
    next(site.to.glob("*/manifest.sig")).unlink()
    assert "is not signed" in restore(site, "--key", key).stderr
    assert ostler("backup", "verify", site.to, "--key", "x").returncode == 2
    assert restore(site, "--key", key).returncode == 3
    assert restore(site).returncode == 0


async def test_a_restore_that_was_killed_is_made_again(site: SimpleNamespace):
    create(site, "--with-keys")
    script = (
        "import os, signal, sys\n"
        "from ostler.coordinator.upkeep import restoring\n"
        "from ostler.cli.main import app\n"
        "restoring._fold = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"  # all is there but the name
        "app(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", script, "restore", str(site.to), "--data", str(site.root / "elsewhere")]
    killed = await asyncio.to_thread(subprocess.run, command, check=False, capture_output=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert not (site.root / "elsewhere" / "ostler.db").exists()
    assert restore(site).returncode == 0
    rig = Rig.open(site.root / "elsewhere" / "ostler.db", site.rig.clock)
    try:
        assert len(await rig.rows("SELECT 1 FROM jobs")) == 5
        assert len(await rig.rows("SELECT 1 FROM audit WHERE action = 'restore'")) == 1
    finally:
        rig.close()


@pytest.mark.parametrize("encrypted", [False, True])
async def test_one_of_postgresql_goes_back_to_either_engine(tmp_path: Path, encrypted: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OSTLER_BACKUP_PASSPHRASE", PASSPHRASE)
    server = postgres.shared()
    names = [server.create(), server.create()]
    url, other = map(server.url, names)
    data, backups = tmp_path / "data", tmp_path / "backups"
    data.mkdir()
    open_keys(data / "keys")
    (data / "coordinator.yaml").write_text(f"store: {url}\n")
    rig = Rig.open(url)
    try:
        await rig.join("n1", slots=8)
        await rig.submit(3)
        done, *_ = await rig.begin("n1", slots=2)
        sha256 = await store_blob(data, b"artifact" * 100)
        await rig.finish("n1", done, artifacts=(ArtifactEntry(path="out", type="file", size=800, sha256=sha256),))
        made = ostler("backup", "create", backups, "--data", data, "--json", "--with-keys", *(["--encrypt"] if encrypted else []))
        assert made.returncode == 0, made.stderr  # a coordinator runs on it
        assert not list((data / ".backup").iterdir())
        before = {one.job_id: (await rig.job(one.job_id)).timeline for one in [done]}
        await rig.submit(2)
        refused = ostler("restore", backups, "--data", tmp_path / "x", "--store", url)
        assert (refused.returncode, "a coordinator runs" in refused.stderr) == (3, True)
    finally:
        rig.close()
    refused = ostler("restore", backups, "--data", tmp_path / "x", "--store", url)
    assert (refused.returncode, "is not empty" in refused.stderr) == (3, True)
    assert ostler("backup", "verify", backups).returncode == 0
    for place, store in ((tmp_path / "one", None), (tmp_path / "two", other)):
        restored = ostler("restore", backups, "--data", place, "--json", *(["--store", store] if store else []))
        assert restored.returncode == 0, restored.stderr
        assert any("coordinator.yaml" in one for one in restored.json["warnings"]) is (store is None)
        assert (place / "artifacts" / "objects" / sha256[:2] / sha256[2:]).read_bytes() == b"artifact" * 100
        assert (place / "ostler.db").exists() is (store is None)
        there = Rig.open(store or place / "ostler.db", rig.clock)
        try:
            assert len(await there.rows("SELECT 1 FROM jobs")) == 3
            assert {name: (await there.job(name)).timeline for name in before} == before
            assert all(one.attempt > 1 for one in await there.begin("n1", slots=8))
            [(first,)] = await there.rows("SELECT min(id) FROM events WHERE kind = 'lease' AND attempt > 1")
            assert first > 2**40
        finally:
            there.close()
    for name in names:
        server.drop(name)
