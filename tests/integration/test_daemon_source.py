"""The node against a coordinator that speaks section 8 of the source: few routes, no signatures, no attempts."""

import asyncio
import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from integration.node_rig import NodeRig, Server, until
from ostler.model.failures import Failure, FailureCode
from ostler.protocol.ports import Ending


class Plain:
    """Hands out `jobs` one by one, then none; `optional` routes exist only where a test says so. A fake at the true seam."""

    join_token = "bootstrap"

    def __init__(self):
        self.jobs, self.pulls, self.acks, self.results, self.fails, self.files = [], [], [], [], [], []
        self.tokens = set()

    async def start(self, *optional):
        routes = {"/jobs/pull": self.pull, "/jobs/ack": self.ack, "/jobs/result": self.result}
        if "fail" in optional:
            routes["/jobs/fail"] = self.fail
        app = Starlette(routes=[Route(f"/api/v1{path}", work, methods=["POST"]) for path, work in routes.items()])
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/api/v1"
        self.server = Server(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=0))
        self.serving = asyncio.create_task(self.server.serve(sockets=[listener]))
        await until(lambda: self.server.started, "the plain coordinator")
        return self

    async def stop(self):
        self.server.should_exit = self.server.force_exit = True
        await self.serving

    async def pull(self, request: Request):
        self.tokens.add(request.headers.get("authorization"))
        self.pulls.append(await request.json())
        return JSONResponse({"job": self.jobs.pop(0) if self.jobs else None})

    async def ack(self, request: Request):
        self.acks.append(dict(request.query_params))
        return JSONResponse({"ok": True})

    async def result(self, request: Request):
        async with request.form() as form:
            self.results.append((form["job_id"], json.loads(form["metadata"])))
            self.files.append((form["artifact"].filename, await form["artifact"].read()))
        return JSONResponse({"ok": True})

    async def fail(self, request: Request):
        self.fails.append(await request.json())
        return JSONResponse({"ok": True})


@pytest.fixture
async def plain():
    one = Plain()
    yield one
    await one.stop()


@pytest.fixture
async def rig(tmp_path, plain):
    async def start(*optional):
        await plain.start(*optional)
        one = NodeRig(tmp_path, plain)
        await one.start()
        rigs.append(one)
        return one

    rigs = []
    yield start
    for one in rigs:
        await one.stop()


JOB = {"job_id": "j-local-1", "runner": "cli", "command": "do", "timeout_s": 120, "of_a_later_release": 1}


async def test_a_job_goes_its_way_with_the_bearer_token(rig, plain):
    plain.jobs = [JOB]
    one = await rig()
    one.runner.work["j-local-1"] = lambda task: task.log("stdout").write_text("hello\n")
    await until(lambda: plain.results, "a result")
    assert plain.tokens == {"Bearer bootstrap"}
    assert plain.pulls[0] == {"node_id": "node-1", "filters": None}
    assert plain.acks == [{"job_id": "j-local-1", "node_id": "node-1"}]
    assert plain.results[0][0] == "j-local-1"
    assert plain.results[0][1]["exit_code"] == 0
    assert plain.files == [("stdout.log", b"hello\n")]


async def test_the_same_job_again_is_a_new_attempt(rig, plain):
    plain.jobs = [JOB, JOB, JOB]
    one = await rig()
    await until(lambda: len(plain.results) == 3, "three results")
    assert one.runner.started == ["j-local-1/1", "j-local-1/2", "j-local-1/3"]


async def test_an_artifact_is_the_one_file(rig, plain):
    plain.jobs = [{**JOB, "artifacts": [{"path": "out/a.txt"}]}]
    one = await rig()

    def work(task):
        (Path(task.root) / "output/out").mkdir()
        (Path(task.root) / "output/out/a.txt").write_text("content")

    one.runner.work["j-local-1"] = work
    await until(lambda: plain.results, "a result")
    assert plain.files == [("a.txt", b"content")]


async def test_a_failure_is_reported_where_there_is_a_route_for_it(rig, plain):
    plain.jobs = [{**JOB, "command": "denied"}]
    await rig("fail")
    await until(lambda: plain.fails, "a failure")
    assert plain.fails[0]["error_code"] == "E_DENY"
    assert plain.results == []


async def test_a_route_that_is_missing_is_told_once_and_lived_with(rig, plain, caplog):
    plain.jobs = [{**JOB, "command": "wait", "job_id": f"j{i}"} for i in range(3)]
    one = await rig()
    for i in range(3):
        await until(lambda: f"j{i}/1" in one.runner.started, "it runs")  # noqa: B023 - awaited at once
        one.runner.end(f"j{i}/1", Ending(exit_code=1, failure=Failure(FailureCode.EXIT, "1")))
    await until(lambda: not one.held(), "all are let go")
    missing = [record.attrs["route"] for record in caplog.records if record.message == "route_missing"]
    assert missing.count("/jobs/fail") == 1
    assert len(missing) == len(set(missing))


async def test_a_manifest_that_nobody_checked_is_checked_here(rig, plain):
    plain.jobs = [{**JOB, "timeout_s": -1}, {**JOB, "job_id": "j2", "runner": "quantum"}]
    one = await rig("fail")
    await until(lambda: len(plain.fails) == 2, "both fail")
    assert {fail["error_code"] for fail in plain.fails} == {"E_SPEC"}
    assert one.runner.started == []


async def test_a_job_without_a_usable_id_is_not_taken(rig, plain):
    plain.jobs = [{**JOB, "job_id": "../../etc"}, {"runner": "cli"}]
    one = await rig()
    await until(lambda: one.daemon.puller.failure, "it is refused")
    await until(lambda: not plain.jobs, "both were handed out")
    assert one.held() == set()
    assert plain.acks == []


async def test_no_slot_no_pull(rig, plain):
    plain.jobs = [{**JOB, "command": "wait", "job_id": f"j{i}"} for i in range(5)]
    one = await rig()
    await until(lambda: len(one.runner.started) == 2, "two run")
    assert len(plain.jobs) == 3
    one.runner.end("j0/1")
    await until(lambda: len(one.runner.started) == 3, "the next is pulled")
    for key in ("j1/1", "j2/1"):
        one.runner.end(key)
    await until(lambda: len(one.runner.started) == 5, "the rest")
    for key in ("j3/1", "j4/1"):
        one.runner.end(key)
    await until(lambda: len(plain.results) == 5, "all results")


async def test_unsigned_work_is_not_taken_from_afar(tmp_path, plain, monkeypatch):
    await plain.start()
    monkeypatch.setattr("ostler.node.session.is_loopback", lambda url: False)
    plain.jobs = [JOB]
    one = NodeRig(tmp_path, plain)
    daemon = await one.start()
    await until(lambda: daemon.registrar.failure, "it is refused")
    assert "unsigned" in daemon.registrar.failure
    assert plain.pulls == []
    await one.stop()


async def test_unless_somebody_asked_for_it(tmp_path, plain, monkeypatch):
    await plain.start()
    monkeypatch.setattr("ostler.node.session.is_loopback", lambda url: False)
    plain.jobs = [JOB]
    one = NodeRig(tmp_path, plain, config=lambda c: replace(c, coordinator=replace(c.coordinator, allow_unsigned=True)))
    await one.start()
    await until(lambda: plain.results, "a result")
    await one.stop()


async def test_a_node_that_is_enrolled_never_falls_back_to_unsigned_work(tmp_path, plain):
    await plain.start()
    plain.jobs = [JOB]
    one = NodeRig(tmp_path, plain)
    daemon = await one.start()
    await until(lambda: plain.results, "a result")
    await one.stop()
    plain.jobs = [JOB]
    daemon = await one.start(pinned=True)
    await until(lambda: daemon.registrar.failure, "it is refused")
    assert "takes no unsigned work" in daemon.registrar.failure
    assert len(plain.jobs) == 1
    await one.stop()
