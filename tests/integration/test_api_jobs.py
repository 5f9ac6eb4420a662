"""What people do over the API: submit in every form, wait, list, act; and how mistakes are answered."""

import asyncio
import json

import pytest

from integration.api_rig import ADMIN, coordinator
from ostler.model import errors
from ostler.model.job import JobState
from ostler.protocol import messages as m
from ostler.protocol import routes
from ostler.protocol.client import AsyncClient, Client


@pytest.fixture
async def rig(tmp_path):
    async with coordinator(tmp_path / "c") as one:
        yield one


async def post(rig, content, kind="application/json"):
    return await rig.http.post("/jobs", content=content, headers=rig.bearer(**{"Content-Type": kind}))


@pytest.mark.parametrize(
    ("body", "kind", "count"),
    [
        (b' {"command": "true"}\n', "application/json", 1),
        (b'[{"command":"true"}, {"command":"true"}]', "application/json", 2),
        (b'{"jobs": [{"command":"true"},{"command":"true","args":["jobs"]}]}', "application/json", 2),
        (b'{"command":"true","args":["\\"jobs\\""]}', "text/plain", 1),
        (b'{"command":"true"}\n\n {"command":"true"}\r\n{"command":"true"}', "application/x-ndjson", 3),
    ],
)
async def test_forms_of_submission(rig, body, kind, count):
    answer = await post(rig, body, kind)
    assert answer.status_code == 201, answer.text
    assert len(answer.json()["items"]) == count


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b"", ""), (b"[]", ""), (b"[", ""), (b"null", ""), (b"7", ""), (b'"x"', ""), (b"\xff\xfe", ""),
        (b'{"jobs": 1}', "jobs"), (b'{"jobs": [], "x": 1}', "x"), (b'{"comand": "true"}', "comand"),
        (b'[{"command":"x"},{"input":{"urls":["http://x",{"url":"http://x","nam":"a"}]}}]', "[1].input.urls[1].nam"),
        (b'{"command":"true","input":{"urls":[{"url":"http://x","name":"../a"}]}}', "input.urls[0].name"),
        (b'{"command":"true","job_id":"a\\u0000b"}', "job_id"), (b'{"command":"true","timeout_s":NaN}', ""),
        (b'{"command":"true","params":{"a":1e999}}', ""), (b'{"command":"true","priority":' + b"9" * 400 + b"}", "priority"),
        (b'{"command":"true","params":{"a":"\\ud800"}}', ""), (b'{"params":' + b"[" * 70 + b"]" * 70 + b"}", ""),
        (b'{"command":"true","params":' + b"[" * 100_000, ""), (b'{"command":"true","retries":true}', "retries"),
        (b'{"command":"true","labels":{"a":1}}', "labels.a"), (b'{"command":"tr\xff"}', ""),
    ],
)  # fmt: skip
async def test_mistakes_are_named_with_their_path(rig, body, path):
    answer = await post(rig, body)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    report = answer.json()
    assert report["code"] == "invalid_spec"
    assert path in [one["path"] for one in report.get("errors", [{"path": ""}])], report
    assert (await rig.people.call(routes.LIST_JOBS)).items == ()


async def test_all_mistakes_at_once_and_what_was_meant(rig):
    body = b'[{"command":"true"},{"comand":"x","requirements":{"gpuu":1},"timeout_s":"3"},{"command":"x","priority":5000}]'
    report = (await post(rig, body)).json()
    told = {one["path"]: one["message"] for one in report["errors"]}
    assert set(told) == {"[1].comand", "[1].requirements.gpuu", "[1].timeout_s", "[2].priority"}
    assert "did you mean `command`" in told["[1].comand"]
    assert "did you mean `gpu`" in told["[1].requirements.gpuu"]


async def test_ten_thousand_manifests_in_one_call_and_not_one_more(rig):
    one = b'{"command":"true"}'
    answer = await post(rig, b"[" + b",".join([one] * 10_000) + b"]")
    assert answer.status_code == 201, answer.text
    assert len({item["job_id"] for item in answer.json()["items"]}) == 10_000
    answer = await post(rig, b"[" + b",".join([one] * 10_001) + b"]")
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


async def test_all_or_none(rig):
    await rig.submit(job_id="taken")
    answer = await post(rig, b'[{"command":"true","job_id":"free"},{"command":"true","job_id":"taken"}]')
    assert (answer.status_code, answer.json()["code"]) == (409, "already_exists")
    with pytest.raises(errors.NotFound):
        await rig.show("free")


async def test_a_wait_ends_with_the_job_or_with_the_time(rig):
    node = await rig.enrolled()
    held = await node.take()
    answer = await rig.http.get(f"/jobs/{held.job_id}/result", headers=rig.bearer())
    assert (answer.status_code, answer.headers["retry-after"], answer.json()["state"]) == (202, "1", "acked")
    waiting = asyncio.create_task(rig.people.call(routes.AWAIT_JOB, query=m.WaitQuery(wait_s=60), job_id=held.job_id))
    await rig.open_calls(routes.AWAIT_JOB)
    await node.finish(m.Outcome(job_id=held.job_id, attempt=held.attempt, exit_code=3))
    view = await asyncio.wait_for(waiting, 5)
    assert (view.state, view.exit_code) == (JobState.DONE, 3)
    assert view.timeline


@pytest.mark.parametrize(
    "query",
    ["limit=x", "limit=-1", "limit=99999999999999999999", "limit=1e3", "stat=queued", "cursor=%00", "cursor=zzz", "state=none",
     "count=maybe", "label=%ff", "wait_s=1", "&".join(f"a{n}=1" for n in range(100)), "limit=0"],
)  # fmt: skip
async def test_bad_queries_are_refused(rig, query):
    answer = await rig.http.get(f"/jobs?{query}", headers=rig.bearer())
    assert answer.status_code == 422, answer.text


@pytest.mark.parametrize("wait", ["nan", "inf", "-1", "x", "", "1e400"])
async def test_bad_waits_are_refused(rig, wait):
    job_id = await rig.submit()
    answer = await rig.http.get(f"/jobs/{job_id}/result?wait_s={wait}", headers=rig.bearer())
    assert answer.status_code == 422, answer.text


@pytest.mark.parametrize(
    "path",
    ["/jobs/none", "/jobs/%00", "/jobs/a%2Fb", "/jobs/%FF", "/jobs/" + "a" * 200, "/nodes/%0a", "/blobs/xyz",
     "/blobs/" + "A" * 64, "/jobs/none/artifacts/..%2f..%2fkeys", "/jobs/none/artifacts/a",
     "/jobs/none/attempts/99999999999999999999/workspace",
     "/jobs/none/logs", "/nothing", "/jobs/", "//jobs"],
)  # fmt: skip
async def test_unknown_things_are_404_problems(rig, path):
    answer = await rig.http.get(rig.url + "/api/v1" + path, headers=rig.bearer())
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["ostler-version"]
    assert answer.json()["instance"].endswith(answer.headers["ostler-request-id"])


async def test_wrong_methods_name_the_right_ones(rig):
    answer = await rig.http.delete("/jobs", headers=rig.bearer())
    assert (answer.status_code, answer.headers["allow"], answer.json()["code"]) == (405, "GET, POST", "method_not_allowed")
    assert (await rig.http.head("/jobs", headers=rig.bearer())).status_code == 200


async def test_bodies_are_bounded_before_and_while_they_come(rig):
    head = f"POST /api/v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\nContent-Length: {65 * 2**20}\r\n\r\n"
    assert (await raw(rig, head.encode())).startswith(b"HTTP/1.1 413")
    answer = await rig.http.post("/tokens", content=_many(2**20 + 1), headers=rig.bearer())
    assert answer.status_code == 413
    assert (await rig.http.get("/jobs", headers=rig.bearer())).status_code == 200


async def _many(size):
    sent = 0
    while sent < size:
        yield b" " * 65536
        sent += 65536


async def raw(rig, request):
    """What comes back for bytes on a connection of their own."""
    host, port = rig.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


async def test_heads_are_bounded(rig):
    for head in (b"X-A: " + b"a" * 40_000 + b"\r\n", b"X-A: a\r\n" * 8_000, b"X-Long: " + b"a" * 300_000):
        answer = await raw(rig, b"GET /api/v1/version HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 431"), answer[:100]
    assert (await rig.http.get("/version")).status_code == 200


async def test_a_connection_carries_many_calls_after_refusals(rig):
    """A refused body is read to its end where that is near, so that the next call on the connection is understood."""
    for _ in range(3):
        assert (await rig.http.post("/jobs", content=b"x" * 100_000)).status_code == 401
        assert (await rig.http.post("/jobs", json={"command": "true"}, headers=rig.bearer())).status_code == 201


async def test_people_act(rig):
    job_id = await rig.submit(labels={"a": "b"})
    view = await rig.people.call(routes.HOLD_JOB, job_id=job_id)
    assert view.held
    assert not (await rig.people.call(routes.RELEASE_JOB, job_id=job_id)).held
    assert (await rig.people.call(routes.EXPLAIN_JOB, job_id=job_id)).job_id == job_id
    answer = await rig.http.post(f"/jobs/{job_id}/cancel", headers=rig.bearer())
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled"), "a reason is not demanded"
    with pytest.raises(errors.InvalidTransition):
        await rig.people.call(routes.HOLD_JOB, job_id=job_id)
    again = await rig.people.call(routes.RETRY_JOB, job_id=job_id)
    assert again.retry_of == job_id
    page = await rig.people.call(routes.LIST_JOBS, query=m.JobQuery(label="a=b", count=True))
    assert page.total == 2
    assert (await rig.people.call(routes.LIST_NODES)).items == ()


async def test_about_itself(rig):
    version = await rig.nobody.call(routes.VERSION)
    assert (version.protocol, version.protocol_min) == (m.PROTOCOL, m.PROTOCOL_MIN)
    health = await rig.nobody.call(routes.HEALTHZ)
    assert health.status == "ok"
    assert {"lease_rescuer", "node_watcher"} <= set(health.checks)
    assert (await rig.nobody.call(routes.READYZ)).checks == {"store": "ok"}
    await rig.submit()
    text = (await rig.http.get(rig.url + "/metrics")).text
    assert 'ostler_jobs{state="queued"} 1.0' in text
    assert 'ostler_requests_total{route="submit_jobs",status="2xx"} 1.0' in text
    assert "ostler_store_write_seconds_count" in text
    assert "job_id" not in text


async def test_the_waiting_client(rig):
    def people():
        with Client(rig.url + "/api/v1/", token=ADMIN) as client:
            job_id = client.call(routes.SUBMIT, b'{"command":"true"}').items[0].job_id
            assert client.call(routes.SHOW_JOB, job_id=job_id).state is JobState.QUEUED
            with pytest.raises(errors.NotFound, match="none"):
                client.call(routes.SHOW_JOB, job_id="none")
            with pytest.raises(errors.InvalidSpec) as caught:
                client.call(routes.SUBMIT, json.dumps({"comand": "true"}).encode())
            assert caught.value.problems[0].path == "comand"

    await asyncio.to_thread(people)


async def test_no_coordinator_is_unreachable(rig):
    async with AsyncClient("http://127.0.0.1:9", token="x") as client:
        with pytest.raises(errors.CoordinatorUnreachable, match=r"127\.0\.0\.1:9"):
            await client.call(routes.VERSION)
    async with AsyncClient(rig.url + "/metrics?", token="x") as client:
        with pytest.raises((errors.Unavailable, errors.NotFound)):
            await client.call(routes.VERSION)
