"""The node against the mock coordinator of the source's section 16, unchanged but for counting, served by uvicorn."""

import json
import subprocess
import sys
import threading

import pytest
import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from e2e.fleet import OSTLER, Fleet, until
from unit.settings.section4 import SECTION_4

JOB = {
    "job_id": "j-local-1",
    "runner": "cli",
    "requirements": {"gpu": False},
    "timeout_s": 120,
    "command": "echo",
    "args": ["hello", "world"],
    "artifacts": [{"path": "output.txt", "type": "text/plain", "max_mb": 1}],
}


class SectionSixteen:
    """The three routes with the parameters that the source gives them; other calls get 422, as FastAPI would answer."""

    def __init__(self):
        self.acks, self.results, self.bodies = [], [], []
        app = Starlette(routes=[
            Route("/api/v1/jobs/pull", self.pull, methods=["POST"]),
            Route("/api/v1/jobs/ack", self.ack, methods=["POST"]),
            Route("/api/v1/jobs/result", self.result, methods=["POST"]),
        ])  # fmt: skip
        self.server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))

    async def pull(self, request: Request):
        body = await request.json()
        if not isinstance(body.get("node_id"), str):
            return JSONResponse({"detail": "node_id"}, 422)
        return JSONResponse({"job": JOB})

    async def ack(self, request: Request):
        if not {"job_id", "node_id"} <= set(request.query_params):
            return JSONResponse({"detail": "query"}, 422)
        self.acks.append(dict(request.query_params))
        return JSONResponse({"ok": True})

    async def result(self, request: Request):
        async with request.form() as form:
            if not {"job_id", "metadata", "artifact"} <= set(form) or not hasattr(form["artifact"], "read"):
                return JSONResponse({"detail": "form"}, 422)
            self.bodies.append(await form["artifact"].read())
            self.results.append((form["job_id"], json.loads(form["metadata"])))
        return JSONResponse({"ok": True})


@pytest.fixture
def mock():
    one = SectionSixteen()
    thread = threading.Thread(target=one.server.run, daemon=True)
    thread.start()
    until(lambda: one.server.started, what="the mock")
    one.url = f"http://127.0.0.1:{one.server.servers[0].sockets[0].getsockname()[1]}"
    yield one
    one.server.should_exit = True
    thread.join(10)


def test_the_node_runs_against_the_mock_of_the_source(mock, tmp_path):
    (tmp_path / "echo.yaml").write_text(
        yaml.safe_dump({"command": {"path": "/bin/echo"}, "args": [["[a-z]+"], ["[a-z]+"]], "stdout": "output.txt"})
    )
    config = {
        "node_id": "node-mock",
        "coordinator": {"base_url": f"{mock.url}/api/v1", "auth_token": "env:MINER_AUTH"},
        "runners": {"cli": {"enable": True, "allowlist_files": [str(tmp_path / "echo.yaml")]}},
        "workspace": {"root": str(tmp_path / "jobs")},
        "logging": {"path": str(tmp_path / "miner.jsonl")},
        "sandbox": {"level": "process"},
        "health": {"listen": "off"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    env = Fleet(tmp_path / "unused").env | {"MINER_AUTH": "bootstrap"}
    for name in list(env):
        if name.startswith("OSTLER_NODE__"):
            del env[name]
    node = subprocess.Popen([OSTLER, "node", "--config", tmp_path / "config.yaml"], env=env, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: len(mock.results) >= 3 or node.poll() is not None, what="three results")
        assert node.poll() is None, node.stderr.read()
    finally:
        node.terminate()
        node.wait(20)
        node.stderr.close()
        for line in subprocess.run(
            ["pgrep", "-f", f"ostler/node/keeper.*{tmp_path}"], capture_output=True, text=True, check=False
        ).stdout.split():
            subprocess.run(["kill", line], check=False)
    assert mock.acks[0]["job_id"] == "j-local-1"
    assert mock.acks[0]["node_id"] == "node-mock"
    assert set(mock.bodies) == {b"hello world\n"}
    events = [json.loads(line) for line in (tmp_path / "miner.jsonl").read_text().splitlines()]
    for event in events:
        assert {"ts", "level", "node_id", "job_id", "event", "attrs"} <= set(event)
    missing = [event for event in events if "404" in json.dumps(event) or "missing" in event["event"]]
    assert len(missing) == len({json.dumps(event["attrs"]) for event in missing}), "a missing route costs one line"
    walked = list((tmp_path / "jobs").rglob("state.json"))
    assert walked
    words = {word for path in walked for word, *_ in json.loads(path.read_text())["history"]}
    assert words <= {"IDLE", "PULLING", "ACKED", "PREP", "RUNNING", "UPLOADING", "DONE", "FAILED", "RETRY_WAIT"}
    assert {"ACKED", "RUNNING", "DONE"} <= words


# The paths that section 4 prints, and where they lie here.
PLACES = {
    "/usr/local/lib/aitbc/miner/.venv": sys.prefix,
    "/etc/aitbc/miner": "{here}",
    "/usr/local/lib/aitbc/miner": "{here}",
    "/var/lib/aitbc/miner": "{here}",
    "/var/log/aitbc/miner": "{here}",
}

SECTION_15 = """\
command:
  path: "/usr/bin/ffmpeg"
args:
  - ["-y"]
  - ["-i", ".+\\\\.(mp4|wav|mkv)$"]
  - ["-c:v", "(libx264|copy)"]
  - ["-c:a", "(aac|copy)"]
  - ["-b:v", "[1-9][0-9]{2,5}k"]
  - ["output\\\\.(mp4|mkv)"]
max_total_args_len: 4096
max_runtime_s: 7200
max_output_mb: 5000
"""


def test_the_sources_config_and_allowlist_are_accepted_as_printed(tmp_path):
    (tmp_path / "allowlist.d").mkdir()
    (tmp_path / "tasks").mkdir()
    for name in ("ffmpeg", "whisper"):
        (tmp_path / "allowlist.d" / f"{name}.yaml").write_text(SECTION_15)
    config = tmp_path / "config.yaml"
    text = SECTION_4
    for printed, place in PLACES.items():
        assert printed in text
        text = text.replace(printed, place.format(here=tmp_path))
    config.write_text(text)
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "MINER_AUTH": "secret-value"}
    checked = subprocess.run([OSTLER, "config", "check", config], env=env, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    shown = subprocess.run([OSTLER, "config", "show", config, "--origin"], env=env, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "secret-value" not in shown.stdout
    good = ["ffmpeg", "-y", "-i", "input1.mp4", "-c:v", "libx264", "output.mp4"]
    bad = ["ffmpeg", "-i", "http://evil/x.mp4", "output.mp4"]
    entry = tmp_path / "allowlist.d" / "ffmpeg.yaml"
    verdict = subprocess.run(
        [OSTLER, "allowlist", "test", entry, "--", *good], env=env, capture_output=True, text=True, check=False
    )
    assert "argument 6: 'output.mp4'" in verdict.stdout + verdict.stderr  # whether ffmpeg itself is there is another question
    verdict = subprocess.run(
        [OSTLER, "allowlist", "test", entry, "--", *bad], env=env, capture_output=True, text=True, check=False
    )
    assert verdict.returncode == 3
    assert "http://evil/x.mp4" in verdict.stdout + verdict.stderr
