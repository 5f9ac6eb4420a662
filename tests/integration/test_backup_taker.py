"""Backups on a schedule: taken by a running coordinator, kept in number, and told of where they fail."""

import asyncio
import logging
from datetime import timedelta
from pathlib import Path

from cli_rig import ostler
from integration.api_rig import coordinator
from ostler.coordinator.config import BackupConfig, CoordinatorConfig
from ostler.coordinator.loops.backup_taker import BackupTaker
from ostler.runtime.clock import ManualClock
from store_rig import Rig

LOGGER = logging.getLogger("ostler.tests")


async def until(condition):
    async with asyncio.timeout(60):
        while not (found := await condition()):  # noqa: ASYNC110 - what is waited for is another process
            await asyncio.sleep(0.05)
    return found


async def test_a_coordinator_backs_itself_up(tmp_path):
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("a passphrase\n")
    wanted = BackupConfig(to=tmp_path / "b", passphrase_file=passphrase, with_keys=True)
    async with coordinator(tmp_path / "c", backup=wanted) as rig:
        job_id = await rig.submit()

        async def told():
            metrics = (await rig.http.get(rig.url + "/metrics")).text
            return "ostler_backup_last_success_timestamp_seconds" in metrics and metrics

        assert "ostler_backup_duration_seconds" in await until(told)
        assert (await rig.http.get(rig.url + "/healthz")).json()["checks"]["backup_taker"] == "ok"
        assert job_id
    [made] = ostler("backup", "list", wanted.to, "--json").json
    assert (made["encrypted"], "keys/signing.key" in made["keys"]) == (True, True)
    assert ostler("backup", "verify", wanted.to, "--passphrase-file", passphrase).returncode == 0
    async with coordinator(tmp_path / "c", backup=wanted) as rig:  # it is not time yet, and the time of the last one is known
        assert "ostler_backup_duration_seconds" not in await until(lambda: _metrics(rig))
    assert len(ostler("backup", "list", wanted.to, "--json").json) == 1


async def _metrics(rig):
    metrics = (await rig.http.get(rig.url + "/metrics")).text
    return "ostler_backup_last_success" in metrics and metrics


async def test_a_backup_that_fails_is_told(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "somebody's").write_text("file")
    async with coordinator(tmp_path / "c", backup=BackupConfig(to=tmp_path / "b")) as rig:

        async def told():
            health = await rig.http.get(rig.url + "/healthz")
            said = health.json()["checks"]["backup_taker"]
            return said != "ok" and (health.status_code, said)

        status, said = await until(told)
        assert (status, "is not empty" in said) == (503, True)
        assert "ostler_backup_last_failure_timestamp_seconds" in (await rig.http.get(rig.url + "/metrics")).text


async def test_when_it_is_time_and_how_many_are_kept(tmp_path: Path):
    clock, done, failed = ManualClock(), [], []
    data, to = tmp_path / "data", tmp_path / "b"
    Rig.open(data / "ostler.db").close()
    wanted = BackupConfig(to=to, every=timedelta(hours=6), keep=2)
    taker = BackupTaker(
        CoordinatorConfig(data=data),
        wanted,
        done=lambda *told: done.append(told),
        failed=failed.append,
        clock=clock,
        logger=LOGGER,
    )
    for _ in range(3):
        assert await taker.turn() == 3600
        assert await taker.turn() == 3600  # nothing to do
        clock.advance(6 * 3600 - 60)
        assert await taker.turn() == 60
        clock.advance(60)
    assert [took is None for _, took in done] == [False, True, True] * 3
    assert failed == []
    found = ostler("backup", "list", to, "--json").json
    assert [one["backup"] for one in found] == ["20260101T060000Z", "20260101T120000Z"]


async def test_what_cannot_be_read_and_what_a_clock_ahead_made_put_nothing_off(tmp_path: Path):
    """A damaged manifest, and as many backups of next year as are kept."""
    clock, done = ManualClock(), []
    data, to = tmp_path / "data", tmp_path / "b"
    Rig.open(data / "ostler.db").close()
    wanted = BackupConfig(to=to, every=timedelta(hours=6), keep=2)
    taker = BackupTaker(
        CoordinatorConfig(data=data), wanted, done=lambda *told: done.append(told), failed=done.append, clock=clock, logger=LOGGER
    )  # fmt: skip
    await taker.turn()
    [first] = to.glob("2026*")
    (first / "manifest.json").write_bytes(b"\x00damaged")
    clock.step(365 * 86400)
    for _ in range(2):
        await taker.turn()
        clock.advance(6 * 3600)
    clock.step(-365 * 86400)
    await taker.turn()
    assert [took is None for _, took in done] == [False] * 4
    listed = ostler("backup", "list", to, "--json")
    assert [one["backup"][:6] for one in listed.json] == ["202601", "202701"]
    assert first.name in listed.stderr
    assert first.is_dir(), "what cannot be read is nobody's to remove"
