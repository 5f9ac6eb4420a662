"""Webhooks against a real receiver: in order, signed, retried, disabled after days, and never into a private network."""

import asyncio
import json
import socket
from datetime import timedelta

import pytest

from integration.api_rig import coordinator, until
from integration.receiver import Receiver, documented_check
from ostler.coordinator import webhooks
from ostler.coordinator.config import WebhooksConfig
from ostler.model import errors
from ostler.model.access import Role
from ostler.protocol import messages as m
from ostler.protocol import routes


@pytest.fixture
async def rig(tmp_path):
    async with coordinator(tmp_path / "c", webhooks=WebhooksConfig(allow_private=True)) as one:
        yield one


@pytest.fixture
def receiver():
    with Receiver() as one:
        yield one


async def add(client, url, *kinds):
    return await client.call(routes.ADD_WEBHOOK, m.WebhookRequest(url=url, kinds=kinds))


async def shown(rig, webhook_id):
    [one] = [one for one in (await rig.people.call(routes.LIST_WEBHOOKS)).items if one.webhook_id == webhook_id]
    return one


async def taken(receiver, count):
    async def enough():
        return len(receiver.taken) >= count

    await until(enough)
    return receiver.taken


def jobs_of(events):
    return [one["job_id"] for one in events]


async def test_events_come_in_order_and_signed(rig, receiver):
    await rig.submit()
    made = await add(rig.people, f"{receiver.url}/hook?x=1")
    jobs = [await rig.submit() for _ in range(5)]
    await rig.people.call(routes.CANCEL_JOB, m.CancelRequest(reason="no"), job_id=jobs[0])
    events = await taken(receiver, 6)
    assert jobs_of(events) == [*jobs, jobs[0]], "from the moment on in which it was made"
    assert events[-1]["message"] == "no"
    is_genuine = documented_check()
    for _, headers, body, path in receiver.got:
        assert path == "/hook?x=1"
        assert headers["Ostler-Webhook"] == json.loads(body)["webhook_id"] == made.webhook_id
        assert is_genuine(made.secret, headers["Ostler-Signature"], body)
        assert not is_genuine(made.secret, headers["Ostler-Signature"], body + b" ")
        assert not is_genuine("another", headers["Ostler-Signature"], body)
        assert not is_genuine(made.secret, headers["Ostler-Signature"], body, tolerance_s=-1)
    listed = await shown(rig, made.webhook_id)
    assert (listed.secret, listed.failures, listed.error) == (None, 0, None)
    assert made.secret.encode() not in (rig.config.data / "ostler.db").read_bytes()


async def test_kinds_and_owners(rig, receiver):
    async with rig.person(Role.SUBMITTER, "ann") as ann, rig.person(Role.SUBMITTER, "bob") as bob, rig.person(Role.VIEWER) as vic:
        mine = await add(ann, f"{receiver.url}/ann", "cancel", "submit")
        assert mine.owner == "ann"
        await rig.submit()
        job_id = (await ann.call(routes.SUBMIT, b'{"command": "true"}')).items[0].job_id
        await ann.call(routes.HOLD_JOB, job_id=job_id)
        await ann.call(routes.CANCEL_JOB, m.CancelRequest(), job_id=job_id)
        assert [(one["kind"], one["job_id"]) for one in await taken(receiver, 2)] == [("submit", job_id), ("cancel", job_id)]
        for route in (routes.REMOVE_WEBHOOK, routes.ENABLE_WEBHOOK, routes.TEST_WEBHOOK):
            with pytest.raises(errors.NotFound):
                await bob.call(route, webhook_id=mine.webhook_id)
            with pytest.raises(errors.Forbidden):
                await vic.call(route, webhook_id=mine.webhook_id)
        assert (await bob.call(routes.LIST_WEBHOOKS)).items == ()
        assert [one.webhook_id for one in (await ann.call(routes.LIST_WEBHOOKS)).items] == [mine.webhook_id]
        assert (await ann.call(routes.TEST_WEBHOOK, webhook_id=mine.webhook_id)).ok
        assert (await ann.call(routes.REMOVE_WEBHOOK, webhook_id=mine.webhook_id)).webhook_id == mine.webhook_id
        with pytest.raises(errors.NotFound):
            await ann.call(routes.TEST_WEBHOOK, webhook_id=mine.webhook_id)
    log = (await rig.people.call(routes.LIST_AUDIT, query=m.AuditQuery(principal="ann", action="add_webhook"))).items
    assert [one.detail for one in log] == [f"{mine.webhook_id} at 127.0.0.1"]


async def test_what_makes_no_sense_is_refused(rig):
    for request in ({}, {"url": "x"}, {"url": "https://e.org", "kinds": ["bogus"]}, {"url": "https://e.org", "kinds": "submit"}):
        answer = await rig.http.post("/webhooks", json=request, headers=rig.bearer())
        assert answer.status_code == 422, answer.text


async def test_a_failed_delivery_is_made_again_and_nothing_overtakes_it(rig, receiver, monkeypatch):
    monkeypatch.setattr(webhooks, "FIRST_WAIT", timedelta(milliseconds=20))
    statuses = iter([500, 302, 0, 404, 200])
    receiver.answer = lambda _: next(statuses, 200)
    receiver.more_headers = {"Location": f"{receiver.url}/elsewhere"}
    made = await add(rig.people, receiver.url)
    jobs = [await rig.submit()]

    async def tried():
        return len(receiver.got) >= 2

    await until(tried)
    jobs += [await rig.submit() for _ in range(3)]
    assert jobs_of(await taken(receiver, 4)) == jobs
    assert [status for status, *_ in receiver.got][:5] == [500, 302, 0, 404, 200]
    assert {path for *_, path in receiver.got} == {"/"}, "redirects are not followed"

    async def well():
        return (await shown(rig, made.webhook_id)).failures == 0

    await until(well)


async def test_one_that_fails_for_days_is_disabled_until_somebody_enables_it(rig, receiver, monkeypatch):
    monkeypatch.setattr(webhooks, "FIRST_WAIT", timedelta(milliseconds=10))
    monkeypatch.setattr(webhooks, "PATIENCE", timedelta(milliseconds=50))
    receiver.answer = 503
    made = await add(rig.people, receiver.url)
    job_id = await rig.submit()

    async def disabled():
        return (await shown(rig, made.webhook_id)).disabled_at is not None

    await until(disabled)
    view = await shown(rig, made.webhook_id)
    assert (view.error, view.next_try_at, view.failures >= 2) == ("answered 503", None, True)
    assert (await rig.people.call(routes.TEST_WEBHOOK, webhook_id=made.webhook_id)) == m.WebhookTest(
        ok=False, error="answered 503"
    )
    receiver.answer = 200
    later = await rig.submit()
    enabled = await rig.people.call(routes.ENABLE_WEBHOOK, webhook_id=made.webhook_id)
    assert (enabled.disabled_at, enabled.error) == (None, None)
    assert jobs_of(await taken(receiver, 2)) == [job_id, later]


async def test_one_that_hangs_holds_up_no_other(rig, receiver, monkeypatch):
    monkeypatch.setattr(webhooks, "TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        slow = await add(rig.people, f"http://127.0.0.1:{silent.getsockname()[1]}")
        await add(rig.people, receiver.url)
        jobs = [await rig.submit() for _ in range(3)]
        assert jobs_of(await taken(receiver, 3)) == jobs

        async def failed():
            return (await shown(rig, slow.webhook_id)).failures > 0

        await until(failed)
    assert (await shown(rig, slow.webhook_id)).error == "no answer within 0.5 s"


async def test_many_events_come_in_several_deliveries(rig, receiver):
    await add(rig.people, receiver.url, "submit")
    answer = await rig.people.call(routes.SUBMIT, b"[" + b",".join([b'{"command": "true"}'] * 1250) + b"]")
    assert jobs_of(await taken(receiver, 1250)) == [one.job_id for one in answer.items]
    assert max(len(json.loads(body)["events"]) for _, _, body, _ in receiver.got) == 100


async def test_what_is_none_of_its_business_moves_its_cursor_too(rig, receiver):
    made = await add(rig.people, receiver.url, "cancel")
    answer = await rig.people.call(routes.SUBMIT, b"[" + b",".join([b'{"command": "true"}'] * 600) + b"]")

    def cursor():
        import sqlite3

        connection = sqlite3.connect(rig.config.database)
        try:
            return connection.execute("SELECT cursor FROM webhooks WHERE webhook_id = ?", (made.webhook_id,)).fetchone()[0]
        finally:
            connection.close()

    async def moved():
        return cursor() >= 600

    await until(moved)
    await rig.people.call(routes.CANCEL_JOB, m.CancelRequest(), job_id=answer.items[7].job_id)
    assert jobs_of(await taken(receiver, 1)) == [answer.items[7].job_id]
    assert len(receiver.got) == 1


async def test_private_addresses_are_not_reached(tmp_path, receiver):
    """A name that leads to one is found out when the connection is made: this test's hosts file says what `localhost` is."""
    port = receiver.url.rpartition(":")[2]
    async with coordinator(tmp_path / "c") as rig:
        with pytest.raises(errors.InvalidSpec, match="loopback"):
            await add(rig.people, receiver.url)
        made = await add(rig.people, f"http://localhost:{port}/")
        tried = await rig.people.call(routes.TEST_WEBHOOK, webhook_id=made.webhook_id)
        assert not tried.ok
        assert "is a loopback address: webhooks do not go there" in tried.error
        await rig.submit()

        async def failed():
            return (await shown(rig, made.webhook_id)).failures > 0

        await until(failed)
        other = await add(rig.people, "http://name.invalid/")
        assert "has no address" in (await rig.people.call(routes.TEST_WEBHOOK, webhook_id=other.webhook_id)).error
    assert receiver.got == []


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"SSH-2.0-x\r\n\r\n", "does not speak HTTP"),
        (b"x" * 100_000, "does not speak HTTP"),
        (b"", "closed without an answer"),
        (b"HTTP/1.1 abc\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 204 No\r\n\r\n", None),
    ],
)
async def test_whatever_answers(rig, said, why):
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        if not why or "closed" in why:
            writer.close()
        else:
            await reader.read()  # until the coordinator has had enough
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        made = await add(rig.people, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        tried = await rig.people.call(routes.TEST_WEBHOOK, webhook_id=made.webhook_id)
        assert (tried.ok, tried.status) == ((True, 204) if why is None else (False, None))
        assert why is None or why in tried.error
