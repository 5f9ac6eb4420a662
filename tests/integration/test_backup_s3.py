"""Backups in a real S3 server: the same promises as in a directory, where there is neither a rename nor a lock."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

import s3
from cli_rig import ostler
from integration.api_rig import coordinator
from integration.test_backup import PASSPHRASE, store_blob
from integration.test_backup import site as site  # noqa: PLC0414 - a fixture
from ostler.coordinator.config import BackupConfig
from ostler.coordinator.operations import uploads
from ostler.coordinator.upkeep import backing_up
from ostler.coordinator.upkeep.repository import Repository
from ostler.model.errors import Conflict
from store_rig import Rig


@pytest.fixture
def there(site: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The same with a bucket, whose files lie in `files`."""
    server = s3.shared()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = server.bucket()
    site.to, site.files = f"s3://{bucket}/backups/of-one", server.root / bucket / "backups" / "of-one"
    site.bucket = bucket
    return site


def create(there: SimpleNamespace, *more: object) -> dict:
    done = ostler("backup", "create", there.to, "--data", there.data, "--json", *more)
    assert done.returncode == 0, done.stderr
    return done.json


def begin(to: str, data: Path) -> subprocess.Popen[bytes]:
    """The same by a process of its own."""
    command = [Path(sys.executable).parent / "ostler", "backup", "create", to, "--data", data]
    return subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL)


def stored(there: SimpleNamespace) -> dict[str, bytes]:
    return {str(one.relative_to(there.files)): one.read_bytes() for one in there.files.rglob("*") if one.is_file()}


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_backup_becomes_the_same_data_again(there: SimpleNamespace, encrypted: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OSTLER_BACKUP_PASSPHRASE", PASSPHRASE)
    large = os.urandom(20 * 2**20)  # goes in parts
    await there.rig.write(uploads.note_upload, await store_blob(there.data, large), "admin")
    before = await there.rig.rows("SELECT * FROM jobs")
    first = create(there, "--with-keys", *(["--encrypt"] if encrypted else []))
    assert (first["artifacts"], first["encrypted"]) == (4, encrypted)
    objects = {name: one for name, one in stored(there).items() if name.startswith("objects/")}
    assert len(objects) == 4
    if encrypted:
        plain = [(there.data / "keys" / "signing.key").read_bytes(), b"SQLite format 3", b"artifact 0", large[:64]]
        for name, content in stored(there).items():
            assert not any(piece in content for piece in plain), name
            assert not any(one[2:] in name for one in there.contents)
    await there.rig.submit(3)
    second = create(there)
    assert {name: one for name, one in stored(there).items() if name in objects} == objects  # encrypted anew they would differ
    assert [one["backup"] for one in ostler("backup", "list", there.to, "--json").json] == [first["backup"], second["backup"]]
    for one in (first, second):
        proved = ostler("backup", "verify", there.to, one["backup"])
        assert proved.returncode == 0, proved.stderr
    done = ostler("restore", there.to, first["backup"], "--data", there.root / "elsewhere", "--json")
    assert done.returncode == 0, done.stderr
    for sha256 in there.contents:
        place = f"artifacts/objects/{sha256[:2]}/{sha256[2:]}"
        assert (there.root / "elsewhere" / place).read_bytes() == (there.data / place).read_bytes()
    for name in done.json["keys"]:
        assert (there.root / "elsewhere" / name).read_bytes() == (there.data / name).read_bytes()
    rig = Rig.open(there.root / "elsewhere" / "ostler.db", there.rig.clock)
    try:
        assert await rig.rows("SELECT * FROM jobs") == before
    finally:
        rig.close()
    pruned = ostler("backup", "prune", there.to, "--keep", 1, "--json")
    assert pruned.json == {"removed": [first["backup"]], "objects": 0}
    kept = {name.partition("/")[0] for name in stored(there)}
    assert kept == {"ostler-backups.json", "objects", second["backup"]}
    assert ostler("backup", "verify", there.to).returncode == 0


async def test_what_no_backup_has_any_more_goes(there: SimpleNamespace):
    create(there)
    await there.rig.write(lambda tx: tx.run("DELETE FROM uploads"))
    second = create(there)
    assert ostler("backup", "prune", there.to, "--keep", 1, "--json").json["objects"] == 1
    assert ostler("backup", "verify", there.to, second["backup"]).returncode == 0


async def test_two_at_once_are_two_backups(there: SimpleNamespace):
    other = there.root / "other"
    Rig.open(other / "ostler.db").close()
    create(there)
    both = [begin(there.to, data) for data in (there.data, other)]
    assert [await asyncio.to_thread(one.wait, 60) for one in both] == [0, 0]
    listed = ostler("backup", "list", there.to, "--json").json
    assert sorted(one["rows"]["jobs"] for one in listed) == [0, 5, 5]
    for one in listed:
        assert ostler("backup", "verify", there.to, one["backup"]).returncode == 0


async def test_a_prune_in_the_middle_takes_nothing_that_the_next_one_has(
    there: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):  # fmt: skip
    """The artifacts of a backup that goes are those that the new one found and did not copy."""
    first, done = create(there), []
    await there.rig.write(lambda tx: tx.run("DELETE FROM uploads"))
    create(there)  # so that only the first one has that artifact
    await there.rig.write(uploads.note_upload, there.contents[2], "admin")
    original = backing_up.sums_of

    def prune_now(connection):
        done.append(ostler("backup", "prune", there.to, "--keep", 1))
        return original(connection)

    monkeypatch.setattr(backing_up, "sums_of", prune_now)
    third = create(there)
    [pruned] = done
    assert (pruned.returncode, "removed 1 backups and 0 artifacts" in pruned.stdout) == (0, True), pruned
    assert "is being taken" in pruned.stderr
    assert first["backup"] not in {one["backup"] for one in ostler("backup", "list", there.to, "--json").json}
    assert ostler("backup", "verify", there.to, third["backup"]).returncode == 0


async def test_nothing_is_added_while_one_prunes(there: SimpleNamespace):
    create(there)
    with Repository.open(there.to).place.hold(prune=True):
        refused = ostler("backup", "create", there.to, "--data", there.data)
        assert (refused.returncode, "are being pruned" in refused.stderr) == (3, True)
        assert ostler("backup", "verify", there.to).returncode == 0
    assert len(ostler("backup", "list", there.to, "--json").json) == 1
    assert {name.partition("/")[0] for name in stored(there) if name.startswith("2")} == {
        ostler("backup", "list", there.to, "--json").json[0]["backup"]
    }


async def test_one_that_was_killed_leaves_nothing_that_is_listed(there: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    """kill -9 while a large artifact is on its way to a slow server; the next backup is taken at once."""
    slow = s3.Server("--bwlimit", "4M")
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", slow.endpoint)
        bucket = slow.bucket()
        there.to, there.files = f"s3://{bucket}/b", slow.root / bucket / "b"
        create(there)
        large = await store_blob(there.data, os.urandom(64 * 2**20))
        await there.rig.write(uploads.note_upload, large, "admin")
        process = begin(there.to, there.data)
        log = slow.home / "log"
        deadline = time.monotonic() + 60
        while not list((there.files / "locks").glob("add-*")):
            assert process.poll() is None
            assert time.monotonic() < deadline, log.read_text()
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert await asyncio.to_thread(process.wait, 20) == -signal.SIGKILL
        assert len(ostler("backup", "list", there.to, "--json").json) == 1
        assert f"objects/{large[:2]}/{large[2:]}" not in stored(there)
        await there.rig.write(lambda tx: tx.run("DELETE FROM uploads WHERE sha256 = ?", (large,)))
        made = create(there)
        assert len(ostler("backup", "list", there.to, "--json").json) == 2
        assert ostler("backup", "verify", there.to, made["backup"]).returncode == 0
        spared = ostler("backup", "prune", there.to, "--keep", 1)
        assert (spared.returncode, "was killed a moment ago" in spared.stderr) == (0, True)
        [lock] = (there.files / "locks").glob("add-*")
        old = time.time() - 3600
        os.utime(lock, (old, old))
        slow.look()
        place, deadline = Repository.open(there.to).place, time.monotonic() + 60
        while place.ages("locks")[lock.name] > old + 1:
            assert time.monotonic() < deadline
        assert ostler("backup", "prune", there.to, "--keep", 1).returncode == 0
        assert {name.partition("/")[0] for name in stored(there)} == {"ostler-backups.json", "objects", made["backup"]}
    finally:
        slow.close()


UNFINISHED = """
import os, signal, sys
from ostler.coordinator.upkeep import repository
from ostler.cli.main import app
repository.Repository.finish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
app(sys.argv[1:])
"""


async def test_what_lacks_its_manifest_is_no_backup_and_goes_in_time(there: SimpleNamespace):
    """Killed at the last moment: everything is there but the manifest."""
    command = [sys.executable, "-c", UNFINISHED, "backup", "create", there.to, "--data", str(there.data)]
    killed = await asyncio.to_thread(subprocess.run, command, check=False, capture_output=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert any(name.endswith("/ostler.db") for name in stored(there))
    assert ostler("backup", "list", there.to, "--json").json == []
    assert "no whole backup" in ostler("backup", "verify", there.to).stderr
    made = create(there)
    Repository.open(there.to).place.remove([name for name in stored(there) if name.startswith("locks/")])  # as time would
    assert ostler("backup", "prune", there.to, "--keep", 1).returncode == 0
    assert {name.partition("/")[0] for name in stored(there)} == {"ostler-backups.json", "objects", made["backup"]}


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
async def test_one_that_is_ended_takes_away_what_it_began(there: SimpleNamespace, by: signal.Signals):
    create(there)
    before = set(stored(there))
    script = (
        "import os, sys\nfrom ostler.coordinator.upkeep import repository\nfrom ostler.cli.main import main\n"
        "by = int(sys.argv.pop())\nrepository.Repository.finish = lambda *_: os.kill(os.getpid(), by)\nsys.exit(main())\n"
    )
    command = [sys.executable, "-c", script, "backup", "create", there.to, "--data", str(there.data), str(int(by))]
    done = await asyncio.to_thread(subprocess.run, command, check=False, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (128 + by, b"", b"")
    assert set(stored(there)) == before


@pytest.mark.parametrize("what", ["ostler.db", "objects.txt", "manifest.json", "artifact", "gone"])
async def test_damage_is_found(there: SimpleNamespace, what: str):
    made = create(there)
    name = made["backup"] + "/" + what
    if what in {"artifact", "gone"}:
        name = f"objects/{there.contents[0][:2]}/{there.contents[0][2:]}"
    place = Repository.open(there.to).place
    if what == "gone":
        place.remove([name])
    else:
        content = bytearray(place.read(name))
        content[len(content) // 2] ^= 1
        place.write(name, [bytes(content)], len(content))
    for command in (["backup", "verify", there.to], ["restore", there.to, "--data", there.root / "elsewhere"]):
        found = ostler(*command)
        assert (found.returncode, "Traceback" in found.stderr) == (3, False), found
    if what == "manifest.json":
        assert f"aws s3 rm --recursive {there.to}/{made['backup']}/" in found.stderr or "signed" in found.stderr
    assert not (there.root / "elsewhere" / "ostler.db").exists()


async def test_backups_that_were_begun_twice_at_once_are_not_lost_silently(there: SimpleNamespace):
    """On a server without conditions two may make the same place with two keys: who was overtaken takes no backup under a lost one."""
    overtaken = Repository.create(there.to, encrypt=True, passphrase=lambda: PASSPHRASE)
    overtaken.place.remove(["ostler-backups.json"])
    Repository.create(there.to, encrypt=True, passphrase=lambda: PASSPHRASE)
    config = backing_up.CoordinatorConfig(data=there.data)
    with pytest.raises(Conflict, match="begun anew meanwhile"):
        backing_up.back_up(config, overtaken, with_keys=False, now=datetime.now(UTC), logger=backing_up.logging.getLogger("t"))
    assert ostler("backup", "list", there.to, "--json").json == []
    assert "/manifest.json" not in " ".join(stored(there))


SECRETS = (s3.SECRET_KEY, "a-wrong-secret", "a-session-token", "Signature=", "AWS4-HMAC")


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "a-wrong-secret", "AWS_SESSION_TOKEN": "a-session-token"}, 3, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, 3, "does not take the credentials"),
        ({"AWS_SECRET_ACCESS_KEY": None}, 3, "there are no credentials"),
        (
            {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_METADATA_ENDPOINT": "http://127.0.0.1:1"}, 3,
            "there are no credentials",
        ),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, 4, "cannot be reached: Connection refused"),
        ({"AWS_ENDPOINT_URL": "http://nowhere.invalid"}, 4, "http://nowhere.invalid cannot be reached"),
        ({"AWS_ENDPOINT_URL": "not an address"}, 3, "AWS_ENDPOINT_URL is no address of a server"),
        ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}, 4, "cannot be reached"),
        ({"AWS_CA_BUNDLE": "/nonexistent.pem"}, 3, "AWS_CA_BUNDLE: /nonexistent.pem cannot be read"),
        ({"AWS_CA_BUNDLE": "/etc/hostname"}, 3, "AWS_CA_BUNDLE: there are no certificates"),
        ({"AWS_SECRET_ACCESS_KEY": "a-wrong-secret\n"}, 3, "AWS_SECRET_ACCESS_KEY has a character in it that cannot be printed"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_said_and_no_secret(
    there: SimpleNamespace, change: dict[str, str | None], code: int, said: str, monkeypatch: pytest.MonkeyPatch
):
    for name, value in change.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    for command in (["backup", "create", there.to, "--data", there.data], ["backup", "list", there.to]):
        done = ostler(*command)
        assert (done.returncode, said in done.stderr) == (code, True), done
        assert "hint: " in done.stderr or "AWS_CA" in said
        assert not any(secret in done.stderr + done.stdout for secret in ("Traceback", "Debug source", *SECRETS)), done


@pytest.mark.parametrize(
    ("address", "code", "said"),
    [
        ("s3://no-such-bucket/x", 3, "there is no bucket no-such-bucket"),
        ("s3://AKIA:the-secret@bucket/x", 2, "credentials are no part of an address"),
        ("s3://bucket/x?secret=the-secret", 2, "credentials are no part of an address"),
        ("s3://", 2, "is not s3://BUCKET/PREFIX"),
        ("s3://bucket/../x", 2, "is not s3://BUCKET/PREFIX"),
        ("gs://bucket/x", 2, "and nowhere else"),
    ],
)
async def test_what_is_no_address_is_refused(there: SimpleNamespace, address: str, code: int, said: str):
    done = ostler("backup", "create", address, "--data", there.data)
    assert (done.returncode, said in " ".join(done.stderr.replace("│", " ").split())) == (code, True), done
    assert "the-secret" not in done.stderr


async def test_what_holds_something_else_is_refused(there: SimpleNamespace):
    place = Repository.create(there.to, encrypt=False, passphrase=str).place
    place.write("photos/one.jpg", [b"x"], 1)
    place.remove(["ostler-backups.json"])
    done = ostler("backup", "create", there.to, "--data", there.data)
    assert (done.returncode, f"{there.to} is not empty, and holds no backups" in done.stderr) == (3, True)
    assert set(stored(there)) == {"photos/one.jpg"}


async def test_a_server_with_a_certificate_of_its_own(there: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    directory = there.root / "ca"
    assert ostler("ca", "init", "--dir", directory).returncode == 0
    assert ostler("ca", "issue", "s3", "--san", "127.0.0.1", "--dir", directory).returncode == 0
    server = s3.Server(tls=(directory / "s3.pem", directory / "s3.key"))
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        to = f"s3://{server.bucket()}"
        done = ostler("backup", "create", to, "--data", there.data)
        assert (done.returncode, "is not trusted" in done.stderr, "AWS_CA_BUNDLE" in done.stderr) == (3, True, True), done
        monkeypatch.setenv("AWS_CA_BUNDLE", str(directory / "ca.pem"))
        assert ostler("backup", "create", to, "--data", there.data).returncode == 0
        assert ostler("backup", "verify", to).returncode == 0
    finally:
        server.close()


async def test_a_server_that_comes_back_is_waited_for(there: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    """It is gone for a moment between two calls of one backup."""
    server = s3.Server()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        there.to = f"s3://{server.bucket()}/b"
        original, stopped = backing_up.sums_of, threading.Event()

        def stop(connection):
            server.stop()
            stopped.set()
            return original(connection)

        monkeypatch.setattr(backing_up, "sums_of", stop)
        taking = asyncio.create_task(asyncio.to_thread(create, there))
        assert await asyncio.to_thread(stopped.wait, 60)
        with socket.create_server(("127.0.0.1", server.port)) as door:  # it is tried meanwhile
            door.settimeout(30)
            (await asyncio.to_thread(door.accept))[0].close()
        server.start()
        await taking
        assert ostler("backup", "verify", there.to).returncode == 0
    finally:
        server.close()


async def test_a_coordinator_backs_itself_up(there: SimpleNamespace):
    passphrase = there.root / "passphrase"
    passphrase.write_text(f"{PASSPHRASE}\n")
    wanted = BackupConfig(to=there.to, every=timedelta(minutes=1), keep=1, passphrase_file=passphrase, with_keys=True)
    async with coordinator(there.root / "c", backup=wanted) as rig:
        await rig.submit()
        async with asyncio.timeout(60):
            while "ostler_backup_duration_seconds" not in (await rig.http.get(rig.url + "/metrics")).text:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await rig.http.get(rig.url + "/healthz")).json()["checks"]["backup_taker"] == "ok"
    [made] = ostler("backup", "list", there.to, "--json").json
    assert (made["encrypted"], "keys/signing.key" in made["keys"]) == (True, True)
    assert ostler("backup", "verify", there.to, "--passphrase-file", passphrase).returncode == 0


async def test_a_schedule_without_credentials_is_told(there: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    async with coordinator(there.root / "c", backup=BackupConfig(to=there.to)) as rig:
        async with asyncio.timeout(60):
            while (said := (await rig.http.get(rig.url + "/healthz")).json()["checks"]["backup_taker"]) == "ok":  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert "does not take the credentials" in said
    assert "a-wrong-secret" not in said


async def test_directories_never_load_the_client(site: SimpleNamespace):
    script = "import sys\nfrom ostler.cli.main import main\ntry: main()\nfinally: assert 'obstore' not in sys.modules\n"
    for command in ("create", site.to, "--data", site.data), ("list", site.to), ("verify", site.to):
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", script, "backup", *map(str, command)], check=False, capture_output=True, text=True
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), done


async def test_without_the_client_it_is_said_how_to_have_it(there: SimpleNamespace):
    script = "import sys\nsys.modules['obstore'] = None\nfrom ostler.cli.main import main\nsys.exit(main())\n"
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script, "backup", "list", there.to], check=False, capture_output=True, text=True
    )
    assert (done.returncode, "ostler[s3]" in done.stderr, "Traceback" in done.stderr) == (3, True, False)
