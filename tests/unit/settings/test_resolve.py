import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from ostler.assembly import handover
from ostler.assembly.resolve import host_problems, parse_listen, resolve_node
from ostler.assembly.resolve_coordinator import resolve_coordinator
from ostler.coordinator.config import CoordinatorConfig
from ostler.model.errors import InvalidSpec
from ostler.node.config import NodeConfig
from ostler.runtime.settings import Flag
from unit.settings.section4 import SECTION_4


@pytest.fixture
def section_4(tmp_path: Path) -> Path:
    file = tmp_path / "node.yaml"
    file.write_text(SECTION_4)
    return file


def test_section_4_is_accepted_as_printed(section_4: Path) -> None:
    loaded = resolve_node(section_4, env={"MINER_AUTH": "join me"})
    config = loaded.value
    assert config.coordinator.auth_token == "join me"
    assert config.node_id is None  # the placeholder asks for one to be made
    assert (config.workspace.keep_success, config.workspace.keep_failed) == (timedelta(hours=24), timedelta(days=7))
    assert config.runners.cli.allowlist_files[1] == Path("/etc/aitbc/miner/allowlist.d/whisper.yaml")
    assert config.resources.mem_soft_mb == 16384
    assert loaded.origins["workspace.keep_failed"] == f"{section_4}:38"


def test_what_the_host_lacks_is_told_apart(section_4: Path) -> None:
    lacking = host_problems(resolve_node(section_4, env={"MINER_AUTH": "x"}))
    assert [(one.path, one.line) for one in lacking] == [
        ("runners.cli.allowlist_files[0]", 19),
        ("runners.cli.allowlist_files[1]", 20),
        ("runners.python.task_paths[0]", 24),
        ("runners.python.venv", 25),
    ]


def test_functions_by_value_need_cloudpickle_in_the_venv(tmp_path: Path) -> None:
    python = {"enable": True, "by_value": True, "venv": str(tmp_path)}
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").touch()
    file = tmp_path / "node.yaml"
    file.write_text(json.dumps({"coordinator": {"base_url": "http://127.0.0.1:1"}, "runners": {"python": python}}))
    [lacking] = host_problems(resolve_node(file, env={}))
    assert (lacking.path, "needs cloudpickle" in lacking.message) == ("runners.python.by_value", True)
    (tmp_path / "lib/python3.11/site-packages/cloudpickle").mkdir(parents=True)
    assert host_problems(resolve_node(file, env={})) == []


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("node_id: 'a b'", "node_id"),
        ("coordinator: {base_url: 'ftp://x'}", "coordinator.base_url"),
        ("coordinator: {base_url: 'http://x:99999'}", "coordinator.base_url"),
        ("coordinator: {base_url: 'http://x:0'}", "coordinator.base_url"),
        ("coordinator: {base_url: 'http://[::1'}", "coordinator.base_url"),
        ("coordinator: {base_url: 'http://:80/api/v1'}", "coordinator.base_url"),
        ("heartbeat: {interval_s: 0}", "heartbeat.interval_s"),
        ("heartbeat: {interval_s: .nan}", "heartbeat.interval_s"),
        ("heartbeat: {backoff: {min_s: 50, max_s: 5}}", "heartbeat.backoff.min_s"),
        ("resources: {cpu_nice: 40}", "resources.cpu_nice"),
        ("resources: {io_class: fast}", "resources.io_class"),
        ("resources: {mem_soft_mb: 0}", "resources.mem_soft_mb"),
        ("logging: {level: chatty}", "logging.level"),
        ("health: {listen: here}", "health.listen"),
        ("tags: ['a b']", "tags[0]"),
        ("workspace: {root: jobs}", "workspace.root"),
        ("state_dir: state", "state_dir"),
    ],
)
def test_rules_beyond_types_name_the_line(tmp_path: Path, line: str, path: str) -> None:
    file = tmp_path / "node.yaml"
    first = "" if line.startswith("coordinator") else "coordinator: {base_url: 'http://127.0.0.1:7070'}"
    file.write_text(f"{first}\n{line}\n")
    with pytest.raises(InvalidSpec) as caught:
        resolve_node(file, env={})
    assert [(one.path, one.line) for one in caught.value.problems] == [(path, 2)]


def test_the_coordinator_has_layers_too(tmp_path: Path) -> None:
    file = tmp_path / "coordinator.yaml"
    file.write_text("lease: 1m\nlisten_port: 1\n")
    loaded = resolve_coordinator(
        file,
        env={"OSTLER_COORDINATOR__HEARTBEAT": "10s", "OSTLER_COORDINATOR__LISTEN_PORT": "2"},
        flags={"data": Flag(name="--data", value=str(tmp_path)), "listen_port": Flag(name="--listen", value=3)},
    )
    assert loaded.value == CoordinatorConfig(
        data=tmp_path, lease=timedelta(minutes=1), heartbeat=timedelta(seconds=10), listen_port=3
    )
    assert loaded.origins["lease"] == f"{file}:1"


def test_a_contradiction_of_the_coordinator_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data: /x\n\nheartbeat: 1m\n")
    with pytest.raises(InvalidSpec) as caught:
        resolve_coordinator(file, env={})
    assert [(one.path, one.line) for one in caught.value.problems] == [("heartbeat", 3)]


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("/srv/backups", None),
        ("s3://backups/of-one/coordinator/", None),
        ("s3://backups", None),
        ("backups", "must be an absolute path, or s3://BUCKET/PREFIX"),
        ("gs://backups/x", "must be an absolute path, or s3://BUCKET/PREFIX"),
        ("s3://b", "is not s3://BUCKET/PREFIX"),
        ("s3://backups/a/../b", "is not s3://BUCKET/PREFIX"),
        ("s3://backups/a//b", "is not s3://BUCKET/PREFIX"),
        ("s3://AKIA:secret@backups/x", "credentials are no part of an address"),
        ("s3://backups/x?X-Amz-Signature=secret", "credentials are no part of an address"),
    ],
)
def test_where_backups_may_go(tmp_path: Path, to: str, said: str | None) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"data: /x\nbackup:\n  to: {to}\n")
    if said is None:
        assert resolve_coordinator(file, env={}).value.backup.to == to
        return
    with pytest.raises(InvalidSpec) as caught:
        resolve_coordinator(file, env={})
    [problem] = caught.value.problems
    assert (problem.path, problem.line, said in problem.message, "secret" in str(caught.value)) == ("backup.to", 3, True, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:7070", ("127.0.0.1", 7070)),
        ("[::1]:0", ("::1", 0)),
        ("::1:7070", None),
        ("localhost", None),
        (":7070", None),
        ("a:70000", None),
        ("a:٣", None),
    ],
)
def test_addresses(text: str, expected: tuple[str, int] | None) -> None:
    assert parse_listen(text) == expected


def test_a_configuration_survives_the_handover(section_4: Path, tmp_path: Path) -> None:
    config = resolve_node(section_4, env={"MINER_AUTH": "s3cret"}).value
    assert handover.take(handover.put(config), NodeConfig) == config
    coordinator = CoordinatorConfig(data=tmp_path, lease=timedelta(seconds=1.5))
    assert handover.decode(handover.encode(coordinator), CoordinatorConfig) == coordinator


def test_a_taken_descriptor_is_closed(tmp_path: Path) -> None:
    descriptor = handover.put(CoordinatorConfig(data=tmp_path))
    assert os.get_inheritable(descriptor)
    handover.take(descriptor, CoordinatorConfig)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)


def test_what_is_no_configuration_is_a_bug() -> None:
    with pytest.raises(TypeError, match="has no place"):
        handover.encode({"a": object()})


def test_reload_by_a_process_of_its_own(section_4: Path, tmp_path: Path) -> None:
    """The daemon starts this on SIGHUP, so that it need not keep YAML and pydantic itself."""
    section_4.write_text(f"coordinator: {{base_url: 'http://c', auth_token: 'env:T'}}\nworkspace: {{root: {tmp_path}/jobs}}\n")
    command = [sys.executable, "-m", "ostler.assembly.resolve", "node", str(section_4)]
    done = subprocess.run(command, env={"T": "s3cret"}, capture_output=True, check=True)
    config = handover.decode(done.stdout, NodeConfig)
    assert config.coordinator.auth_token == "s3cret"
    assert replace(config.coordinator, auth_token=None).base_url == "http://c"
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "which is not set; export T=" in done.stderr
    assert not done.stdout
