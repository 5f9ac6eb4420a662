"""The coordinator as a process and as a whole: how it starts, what it refuses to start as, and how it stops."""

import asyncio
import contextlib
import gc
import resource
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from integration.api_rig import LOGGER, coordinator
from ostler.assembly import handover
from ostler.coordinator.config import CoordinatorConfig
from ostler.coordinator.service import listen, run_coordinator
from ostler.fleet.releases.reading import read_bundle
from ostler.model import errors
from ostler.protocol import messages as m
from ostler.protocol import routes
from ostler.protocol.client import Client


@contextlib.contextmanager
def process(*arguments, **more):
    """The daemon as a child; yields it and its URL once it is ready."""
    command = [sys.executable, "-m", "ostler.assembly.coordinator", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more) as child:
        try:
            yield child, child.stdout.readline().strip().removeprefix("ready ")
        finally:
            if child.poll() is None:
                child.kill()


def test_it_starts_serves_and_stops_by_signal(tmp_path):
    for _ in range(2):
        with process("--data", tmp_path / "d", "--listen", "127.0.0.1:0") as (child, url):
            token = (tmp_path / "d" / "admin.token").read_text().strip()
            with Client(url, token=token) as client:
                client.call(routes.SUBMIT, b'{"command":"true"}')
                jobs = client.call(routes.LIST_JOBS, query=m.JobQuery(count=True))
                child.send_signal(signal.SIGHUP)
                assert client.call(routes.READYZ).status == "ok", "SIGHUP is no end"
            child.send_signal(signal.SIGTERM)
            assert child.wait(20) == 0, child.stderr.read()
            assert "Traceback" not in child.stderr.read()
    assert jobs.total == 2, "the same data and the same token after a restart"
    assert stat.S_IMODE((tmp_path / "d" / "admin.token").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700


def test_it_may_hold_many_connections_where_the_shell_lets_few(tmp_path):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))

    with process("--data", tmp_path / "d", "--listen", "127.0.0.1:0", preexec_fn=few) as (child, _):
        assert resource.prlimit(child.pid, resource.RLIMIT_NOFILE)[0] == min(hard, 65_536)


def test_a_call_that_outlasts_the_drain_is_told_to_come_again(tmp_path):
    """Here the database is locked by somebody else, so that a submission cannot be answered while the coordinator stops."""
    config = tmp_path / "coordinator.yaml"
    config.write_text("drain: 0.1s\n")
    command = [Path(sys.executable).parent / "ostler", "coordinator", "--data", tmp_path / "d", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command, "--config", config], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={"HOME": str(tmp_path)}
    ) as child:
        try:
            url = child.stdout.readline().strip().removeprefix("ready ")
            token = (tmp_path / "d" / "admin.token").read_text().strip()
            asyncio.run(_submit_and_stop(child, url, token, tmp_path / "d" / "ostler.db"))
            assert child.wait(30) == 0
            assert "Traceback" not in child.stderr.read()
        finally:
            if child.poll() is None:
                child.kill()


async def _submit_and_stop(child, url, token, database):
    headers = {"Authorization": f"Bearer {token}"}
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
            call = asyncio.create_task(client.post("/api/v1/jobs", json={"command": "true"}))
            while 'requests_in_flight{route="submit_jobs"} 1.0' not in (await client.get("/metrics")).text:  # noqa: ASYNC110 - in another process
                await asyncio.sleep(0.01)
            child.send_signal(signal.SIGTERM)
            answer = await call
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert answer.headers["retry-after"] == "1"


def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path):
    with process("--data", tmp_path / "d", "--listen", "127.0.0.1:0") as (child, url):
        token = (tmp_path / "d" / "admin.token").read_text().strip()
        with Client(url, token=token) as client:
            accepted = {client.call(routes.SUBMIT, b'{"command":"true"}').items[0].job_id for _ in range(20)}
            child.kill()
            child.wait()
    with process("--data", tmp_path / "d", "--listen", "127.0.0.1:0") as (child, url), Client(url, token=token) as client:
        assert {job.job_id for job in client.call(routes.LIST_JOBS).items} == accepted
        child.terminate()
        assert child.wait(20) == 0


def test_its_configuration_may_come_through_a_descriptor(tmp_path):
    fd = handover.put(CoordinatorConfig(data=tmp_path / "d", listen_port=0))
    with process("--config-fd", fd, pass_fds=[fd]) as (child, url):
        assert httpx.get(url + "/healthz").status_code == 200
        child.terminate()
        assert child.wait(20) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--data", "d", "--listen", "0.0.0.0:0"], 3, "allow_insecure_listen: true"),
        (["--data", "d", "--listen", "nowhere.invalid:1"], 3, "not an address"),
        (["--data", "d", "--listen", "127.0.0.1"], 2, "HOST:PORT"),
        (["--data", "d", "--lease", "1"], 3, "heartbeat"),
        ([], 2, "required"),
    ],
)
def test_it_says_why_it_does_not_start(tmp_path, arguments, code, said):
    with process(*arguments, cwd=tmp_path) as (child, _):
        _, stderr = child.communicate(timeout=20)
        assert (child.returncode, said in stderr) == (code, True), stderr
        assert "Traceback" not in stderr


def test_only_loopback_without_a_word(tmp_path):
    config = CoordinatorConfig(data=tmp_path, listen_port=0)
    for host in ("127.0.0.1", "127.0.0.2", "localhost"):
        sock, url = listen(replace(config, listen_host=host))
        assert url.startswith("http://")
        sock.close()
    for host in ("0.0.0.0", "::"):
        with pytest.raises(errors.InvalidSpec, match="does not listen on"):
            listen(replace(config, listen_host=host))
    sock, _ = listen(replace(config, listen_host="0.0.0.0", allow_insecure_listen=True))
    sock.close()


async def start(config: CoordinatorConfig) -> None:
    await run_coordinator(config, stop=asyncio.Event(), on_ready=lambda url: None, logger=LOGGER, read_bundle=read_bundle)


async def test_a_port_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(errors.Conflict, match="cannot listen"):
        await start(CoordinatorConfig(data=tmp_path / "d", listen_port=other.getsockname()[1]))


async def test_one_coordinator_a_directory(tmp_path):
    async with coordinator(tmp_path / "c") as rig:
        with pytest.raises(errors.Conflict):
            await start(CoordinatorConfig(data=rig.config.data, listen_port=0))
        assert (await rig.nobody.call(routes.READYZ)).status == "ok"


async def test_metrics_and_health_are_for_this_machine(tmp_path):
    """A proxy in front of it says whom it speaks for; to others these routes are what every route is."""
    async with coordinator(tmp_path / "c") as rig:
        for path in ("/metrics", "/healthz", "/readyz"):
            assert (await rig.http.get(rig.url + path)).status_code == 200
            answer = await rig.http.get(rig.url + path, headers={"X-Forwarded-For": "203.0.113.9"})
            assert answer.status_code == 401
            answer = await rig.http.get(rig.url + path, headers=rig.bearer(**{"X-Forwarded-For": "203.0.113.9"}))
            assert answer.status_code == 200


def test_data_stays_where_it_belongs(tmp_path):
    with process("--data", tmp_path / "d", "--listen", "127.0.0.1:0", cwd=tmp_path) as (child, _):
        child.terminate()
        assert child.wait(20) == 0
    assert [path.name for path in Path(tmp_path).iterdir()] == ["d"]


async def test_a_call_leaves_nothing_to_the_collector_of_cycles(tmp_path):
    """Ten thousand nodes make a thousand calls a second among a million objects: a whole collection would stop all of them."""
    async with coordinator(tmp_path / "data") as rig:
        node = await rig.enrolled("n1")
        beat = m.HeartbeatRequest(node_id="n1", held=())
        pull = m.PullRequest(node_id="n1", slots=1, protocol=m.PROTOCOL, wait_s=0.01)
        for _ in range(3):  # what is loaded and remembered at the first call is no garbage
            await node.call(routes.HEARTBEAT, beat)
            await node.call(routes.PULL, pull)
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                await node.call(routes.HEARTBEAT, beat)
                await node.call(routes.PULL, pull)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            left = [type(one).__name__ for one in gc.garbage]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert left.count("Exchange") == 0
        assert len(left) < 20, left


async def test_every_answer_bears_the_date_by_which_clients_tell_a_wrong_clock(tmp_path):
    async with coordinator(tmp_path / "c") as rig:
        for path in ("/readyz", "/api/v1/jobs", "/api/v1/none"):
            answer = await rig.http.get(rig.url + path, headers=rig.bearer())
            assert len(answer.headers.get_list("date")) == 1, path


async def test_requests_that_come_all_at_once_are_answered_in_turn_and_a_head_without_its_body(tmp_path):
    async with coordinator(tmp_path / "c") as rig:
        host, _, port = rig.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        asked = [
            ("GET", "/healthz"),
            ("HEAD", "/api/v1/jobs/none/logs"),
            ("GET", "/api/v1/none"),
            ("POST", "/api/v1/jobs"),
            ("GET", "/readyz"),
        ]
        token = rig.bearer()["Authorization"]
        for method, path in asked:
            writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nContent-Length: 0\r\n\r\n".encode())
        found = []
        for method, _ in asked:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
            body = await reader.readexactly(length if method != "HEAD" else 0)
            found.append((int(head.split()[1]), bool(length), body[:1]))
        assert found == [(200, True, b"{"), (404, True, b""), (404, True, b"{"), (422, True, b"{"), (200, True, b"{")]
        writer.close()
        await writer.wait_closed()
