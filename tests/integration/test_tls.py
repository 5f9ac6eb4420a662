"""A coordinator that speaks TLS, over real sockets: who is let in, what both sides say when not, and what else must go on as before."""

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from integration.api_rig import LOGGER, Rig, sha256, until
from ostler.coordinator.config import CoordinatorConfig, TlsConfig
from ostler.coordinator.loops.certificate_watcher import CertificateWatcher
from ostler.coordinator.service import run_coordinator
from ostler.coordinator.tls import authority, certificates, context
from ostler.fleet.releases.reading import read_bundle
from ostler.model.errors import CoordinatorUnreachable, InvalidSpec
from ostler.protocol import messages as m
from ostler.protocol import routes
from ostler.protocol.client import AsyncClient, Client
from ostler.protocol.trust import Trust
from ostler.runtime.clock import ManualClock

DAY = timedelta(days=1)


class Pki:
    """An authority, the coordinator's certificate and a client's."""

    def __init__(self, place):
        self.place, self.now = place, datetime.now(UTC)
        self.ca = authority.create(place, self.now, life=100 * DAY)
        self.root = place / "ca.pem"
        self.server = self.make("coordinator", "127.0.0.1")
        self.client = self.make("me", client=True)

    def make(self, name, *sans, client=False, force=False, now=None, life=30 * DAY):
        wanted = certificates.wish(name, sans, client=client, life=life)
        return authority.issue(self.ca, wanted, self.place, now or self.now, force=force)

    def tls(self, *, mutual=False):
        return TlsConfig(cert=self.server.cert, key=self.server.key, client_ca=self.root if mutual else None)

    def trust(self, *, shown=None):
        return Trust(ca_file=self.root, **({"client_cert": shown.cert, "client_key": shown.key} if shown else {}))


@pytest.fixture
def pki(tmp_path):
    return Pki(tmp_path / "ca")


@pytest.fixture
def other(tmp_path):
    return Pki(tmp_path / "other")


@contextlib.asynccontextmanager
async def serving(tmp_path, tls, trust, **settings):
    """The API rig over TLS; its clients believe `trust`."""
    async with Rig(tmp_path / "c", trust=trust, tls=tls, **settings).running() as rig:
        assert rig.url.startswith("https://127.0.0.1:")
        yield rig


def ready(url, trust):
    """The two clients that there are, one after the other."""
    with Client(url, trust=trust) as client:
        return client.call(routes.READYZ).status


async def both_say(url, trust):
    """The error of the waiting client and of the direct calls; they agree."""
    with pytest.raises(CoordinatorUnreachable) as waiting:
        await asyncio.to_thread(ready, url, trust)
    async with AsyncClient(url, trust=trust) as client:
        with pytest.raises(CoordinatorUnreachable) as direct:
            await client.call(routes.READYZ)
    assert (str(waiting.value), waiting.value.hint) == (str(direct.value), direct.value.hint)
    assert "\n" not in str(direct.value)
    return str(direct.value), direct.value.hint


async def test_everything_goes_on_over_tls(tmp_path, pki):
    """A job's way: long poll, streamed upload, log, result, followed log."""
    async with serving(tmp_path, pki.tls(), pki.trust()) as rig:
        node = await rig.enrolled("box")
        poll = asyncio.create_task(node.pull(wait_s=20))
        await rig.open_calls(routes.PULL)
        job_id = await rig.submit(retries=0)
        [lease] = await poll
        assert lease.job_id == job_id
        held = m.Held(job_id, lease.attempt)
        await node.ack(held)
        big = tmp_path / "big"
        big.write_bytes(os.urandom(5 * 2**20))
        blob = await rig.people.upload(routes.UPLOAD_BLOB, big)
        assert blob.size == 5 * 2**20
        async with rig.people.download(routes.GET_BLOB, sha256=blob.sha256) as answer:
            assert b"".join([block async for block in answer.blocks()]) == big.read_bytes()
        events = []

        async def follow():
            async for event in rig.people.follow_log(job_id, m.LogQuery(stream="stdout")):
                events.append(event.kind)

        following = asyncio.create_task(follow())
        await rig.open_calls(routes.READ_LOG)
        assert await rig.nobody.append_log(held, "stdout", 0, b"hello\n", token=node.token) == 6
        log = m.LogEnd(stream="stdout", length=6, sha256=sha256(b"hello\n"))
        await node.finish(m.Outcome(job_id=job_id, attempt=held.attempt, exit_code=0, logs=(log,)))
        await asyncio.wait_for(following, 20)
        assert events[-1] == "end"
        assert await asyncio.to_thread(ready, rig.url, pki.trust()) == "ok"


async def test_heads_are_bounded_over_tls(tmp_path, pki):
    async with serving(tmp_path, pki.tls(), pki.trust()) as rig:
        for headers in ({"X-Long": "x" * 40_000}, {f"X-{i}": "x" * 1000 for i in range(40)}):
            assert (await rig.http.get(rig.url + "/readyz", headers=headers)).status_code == 431
        answer = await rig.http.post("/jobs", content=b"{" * 100, headers=rig.bearer())
        assert answer.status_code == 422


async def test_a_pin_is_the_only_one_believed(tmp_path, pki, other):
    async with serving(tmp_path, pki.tls(), pki.trust()) as rig:
        said, hint = await both_say(rig.url, other.trust())
        assert f"not from the authority in {other.root}" in said
        assert "ostler ca show" in hint
        said, hint = await both_say(rig.url, Trust())
        assert "does not know" in said
        assert "OSTLER_CA_FILE" in hint
    assert len(Trust(ca_file=pki.root).context.get_ca_certs()) == 1, "no root of the system beside it"


async def test_another_name_and_an_end(tmp_path, pki):
    async with serving(tmp_path, pki.tls(), pki.trust()) as rig:
        said, hint = await both_say(rig.url.replace("127.0.0.1", "localhost"), pki.trust())
        assert "not for localhost" in said
        assert "--san localhost" in hint
    expired = pki.make("old", "127.0.0.1", now=pki.now - 2 * DAY, life=DAY)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(expired.cert, expired.key)
    async with await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=server) as listening:
        said, hint = await both_say(f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}", pki.trust())
        assert "expired" in said
        assert "ostler ca renew" in hint


async def test_tls_and_no_tls(tmp_path, pki, caplog):
    async with serving(tmp_path, pki.tls(), pki.trust()) as rig:
        with caplog.at_level(logging.INFO):
            _, hint = await both_say(rig.url.replace("https", "http"), Trust())
            assert "https://" in hint
            reader, writer = await asyncio.open_connection(*rig.url.removeprefix("https://").split(":"))
            writer.write(b"\x16\x03\x01\x00\x05hello")
            assert b"HTTP" not in await reader.read()
            writer.close()
            assert (await rig.nobody.call(routes.READYZ)).status == "ok"
        assert [record for record in caplog.records if record.name != "httpx"] == []
    async with Rig(tmp_path / "plain").running() as rig:
        said, hint = await both_say(rig.url.replace("http", "https"), pki.trust())
        assert "does not speak TLS" in said
        assert "http://" in hint


async def test_slow_handshakes_hold_nobody_up(tmp_path, pki, monkeypatch):
    monkeypatch.setattr("ostler.coordinator.api.server.HANDSHAKE_S", 0.5)  # nobody waits ten seconds for a test
    async with serving(tmp_path, pki.tls(), pki.trust()) as rig:
        host, port = rig.url.removeprefix("https://").split(":")
        silent = [await asyncio.open_connection(host, port) for _ in range(100)]
        assert (await rig.nobody.call(routes.READYZ)).status == "ok"
        for reader, writer in silent:
            assert await reader.read() == b"", "hung up on"
            writer.close()


async def test_clients_show_a_certificate(tmp_path, pki, other):
    async with serving(tmp_path, pki.tls(mutual=True), pki.trust(shown=pki.client)) as rig:
        assert await rig.submit()
        assert await asyncio.to_thread(ready, rig.url, pki.trust(shown=pki.client)) == "ok"
        _, hint = await both_say(rig.url, pki.trust())
        assert "OSTLER_CLIENT_CERT" in hint
        foreign = Trust(ca_file=pki.root, client_cert=other.client.cert, client_key=other.client.key)
        _, hint = await both_say(rig.url, foreign)
        assert "tls.client_ca" in hint
        server_only = pki.trust(shown=pki.server)
        await both_say(rig.url, server_only)
        # A certificate is shown beside the token, never in its place.
        async with AsyncClient(rig.url, trust=pki.trust(shown=pki.client)) as nobody:
            with pytest.raises(Exception, match="API token"):
                await nobody.call(routes.LIST_JOBS)


async def test_a_clients_renewed_certificate_is_shown_without_a_restart(tmp_path, pki, other):
    async with serving(tmp_path, pki.tls(mutual=True), pki.trust(shown=pki.client)) as rig:
        mine = pki.make("soon", client=True, now=pki.now - 2 * DAY, life=DAY)
        async with AsyncClient(rig.url, trust=pki.trust(shown=mine)) as client:
            with pytest.raises(CoordinatorUnreachable):
                await client.call(routes.READYZ)
            authority.renew(pki.ca, mine.cert, pki.now)
            assert (await client.call(routes.READYZ)).status == "ok"


def serial(url):
    host, port = url.removeprefix("https://").split(":")
    unchecked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((host, int(port)), timeout=10) as raw, unchecked.wrap_socket(raw) as shown:
        return shown.getpeercert(binary_form=True)


async def test_renewal_without_a_restart_and_a_broken_file_changes_nothing(tmp_path, pki, monkeypatch, caplog):
    monkeypatch.setattr("ostler.coordinator.loops.certificate_watcher.INTERVAL_S", 0.05)
    async with serving(tmp_path, pki.tls(), pki.trust()) as rig:
        node = await rig.enrolled("box")
        poll = asyncio.create_task(node.pull(wait_s=60))
        await rig.open_calls(routes.PULL)
        first = await asyncio.to_thread(serial, rig.url)

        async def is_new():
            try:  # asyncio (not uvloop) drops what it accepted in the very moment in which its server is closed
                return await asyncio.to_thread(serial, rig.url) != first
            except OSError:
                return False

        async def health():
            answer = await rig.http.get(rig.url + "/healthz")
            return answer.status_code, answer.json()["checks"]["certificate_watcher"]

        assert await health() == (200, "ok")
        pki.server.cert.write_bytes(b"broken")

        async def is_told():
            return (await health())[0] == 503

        await until(is_told)
        assert "tls.cert" in (await health())[1]
        assert "holds no certificate" in (await health())[1]
        assert any("holds no certificate" in str(record.attrs) for record in caplog.records if hasattr(record, "attrs"))
        assert await asyncio.to_thread(serial, rig.url) == first
        pki.make("coordinator", "127.0.0.1", force=True)
        await until(is_new)
        # one that is accepted in the moment in which its server is closed is dropped (see above), and made again
        assert (await rig.nobody.call(routes.READYZ, patience_s=10.0)).status == "ok"
        assert await asyncio.to_thread(ready, rig.url, pki.trust()) == "ok", "a new connection"

        async def is_well():
            return await health() == (200, "ok")

        await until(is_well)
        assert not poll.done(), "the connection that was open goes on"
        job_id = await rig.submit()
        assert [lease.job_id for lease in await poll] == [job_id]


async def test_a_hangup_is_as_good_as_waiting(tmp_path, pki, monkeypatch):
    monkeypatch.setattr("ostler.coordinator.loops.certificate_watcher.INTERVAL_S", 3600)
    async with serving(tmp_path, pki.tls(), pki.trust()) as rig:
        first = await asyncio.to_thread(serial, rig.url)
        pki.make("coordinator", "127.0.0.1", force=True)
        rig.hangup.set()

        async def is_new():
            return await asyncio.to_thread(serial, rig.url) != first

        await until(is_new)


async def test_an_authority_of_clients_that_is_exchanged(tmp_path, pki, other, monkeypatch):
    """Whoever the new one does not know is out, with new connections."""
    monkeypatch.setattr("ostler.coordinator.loops.certificate_watcher.INTERVAL_S", 0.05)
    clients = tmp_path / "clients.pem"
    clients.write_bytes(pki.root.read_bytes())
    tls = TlsConfig(cert=pki.server.cert, key=pki.server.key, client_ca=clients)
    theirs = Trust(ca_file=pki.root, client_cert=other.client.cert, client_key=other.client.key)
    async with serving(tmp_path, tls, pki.trust(shown=pki.client)) as rig:
        clients.write_bytes(other.root.read_bytes())

        async def is_known():
            with contextlib.suppress(CoordinatorUnreachable):
                return await asyncio.to_thread(ready, rig.url, theirs) == "ok"

        await until(is_known)
        await both_say(rig.url, pki.trust(shown=pki.client))


async def test_an_end_that_comes_near_is_told_once_a_day(pki, caplog):
    tls, clock = pki.tls(), ManualClock(pki.now)
    watcher = CertificateWatcher(tls, context.load(tls, pki.now), clock=clock, logger=LOGGER)

    async def told(days):
        clock.advance(days * 86400)
        caplog.clear()
        await watcher.turn()
        return [record.message for record in caplog.records]

    assert await told(10) == []
    assert await told(6.5) == ["certificate_ends_soon"]
    assert await told(0.5) == []
    assert await told(0.6) == ["certificate_ends_soon"]
    with pytest.raises(InvalidSpec, match="expired on"):
        await told(13)


@pytest.mark.parametrize("what", ["no cert", "no key", "not pem", "another key", "open key", "expired", "early", "no client ca"])
async def test_what_it_does_not_start_with(tmp_path, pki, other, what):
    tls, said = pki.tls(), "tls.cert"
    match what:
        case "no cert":
            pki.server.cert.unlink()
        case "no key":
            pki.server.key.unlink()
            said = "tls.key"
        case "not pem":
            pki.server.cert.write_bytes(os.urandom(100))
        case "another key":
            pki.server.key.write_bytes(other.server.key.read_bytes())
            said = "is not the key"
        case "open key":
            pki.server.key.chmod(0o644)
            said = "chmod 600"
        case "expired":
            pki.make("coordinator", "127.0.0.1", force=True, now=pki.now - 2 * DAY, life=DAY)
            said = "ostler ca renew"
        case "early":
            pki.make("coordinator", "127.0.0.1", force=True, now=pki.now + 2 * DAY)
            said = "not valid before"
        case "no client ca":
            tls = TlsConfig(cert=tls.cert, key=tls.key, client_ca=tmp_path / "none.pem")
            said = "tls.client_ca"
    config = CoordinatorConfig(data=tmp_path / "d", listen_port=0, tls=tls)
    with pytest.raises(InvalidSpec) as refused:
        await run_coordinator(config, stop=asyncio.Event(), on_ready=lambda url: None, logger=LOGGER, read_bundle=read_bundle)
    assert said in f"{refused.value} {refused.value.hint}"


async def test_beyond_loopback(tmp_path, pki):
    config = CoordinatorConfig(data=tmp_path / "d", listen_host="0.0.0.0", listen_port=0)
    with pytest.raises(InvalidSpec) as refused:
        await run_coordinator(config, stop=asyncio.Event(), on_ready=lambda url: None, logger=LOGGER, read_bundle=read_bundle)
    for word in ("ostler ca init", "ostler ca issue coordinator", "tls: {cert:", "allow_insecure_listen"):
        assert word in refused.value.hint
    async with Rig(tmp_path / "c", trust=pki.trust(), tls=pki.tls(), listen_host="0.0.0.0").running() as rig:
        assert rig.url.startswith("https://127.0.0.1:"), "the address that the certificate is for"
        assert await rig.submit()


async def test_old_versions_of_tls_are_refused(tmp_path, pki):
    async with serving(tmp_path, pki.tls(), pki.trust()) as rig:
        host, port = rig.url.removeprefix("https://").split(":")
        old = ssl.create_default_context(cafile=pki.root)
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(host, port, ssl=old)
        twelve = ssl.create_default_context(cafile=pki.root)
        twelve.maximum_version = ssl.TLSVersion.TLSv1_2
        async with httpx.AsyncClient(verify=twelve, trust_env=False) as http:
            assert (await http.get(rig.url + "/readyz")).status_code == 200


def test_a_trust_that_contradicts_itself(pki):
    assert [name for name, _ in Trust(verify=False, ca_file=pki.root).problems()] == ["ca_file"]
    assert [name for name, _ in Trust(client_cert=pki.client.cert).problems()] == ["client_cert"]
    assert [name for name, _ in Trust(client_key=pki.client.key).problems()] == ["client_key"]
    assert not list(pki.trust(shown=pki.client).problems())
    with pytest.raises(InvalidSpec, match="CA file"):
        _ = Trust(ca_file=pki.client.key).context
    with pytest.raises(InvalidSpec, match="client certificate"):
        _ = Trust(client_cert=pki.client.cert, client_key=pki.server.key).context
