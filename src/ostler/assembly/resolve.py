"""The configuration of a node out of its layers, checked whole: types, rules, and what this host must have.

`python -m ostler.assembly.resolve node FILE` writes the result to standard output, for a daemon that reloads: it holds secrets,
so standard output must be a pipe. Mistakes go to standard error, with exit code 3.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from ostler.assembly import handover
from ostler.model.errors import InvalidSpec, OstlerError, Problem
from ostler.model.manifest import NAME
from ostler.model.network import rule_problem
from ostler.node.config import NodeConfig
from ostler.node.services.rules import service_problems
from ostler.runtime.settings import Flag, Loaded, invalid, load

NODE_PREFIX = "OSTLER_NODE"
PLACEHOLDER = "<shortid>"  # as section 4 of the source prints it
LEVELS = ("debug", "info", "warning", "error", "critical")
IO_CLASSES = ("none", "realtime", "best-effort", "idle")


def resolve_node(
    file: Path, *, env: Mapping[str, str], flags: Mapping[str, Flag] | None = None, need_secrets: bool = True
) -> Loaded[NodeConfig]:
    """A node's configuration; raises InvalidSpec with every mistake. What the host lacks is for `host_problems`."""
    loaded = load(NodeConfig, file=file, env=env, prefix=NODE_PREFIX, flags=flags, rules=node_rules, need_secrets=need_secrets)
    if PLACEHOLDER in (loaded.value.node_id or ""):
        return replace(loaded, value=replace(loaded.value, node_id=None))
    return loaded


def checked_node(file: Path, *, env: Mapping[str, str], flags: Mapping[str, Flag] | None = None) -> NodeConfig:
    """A node's configuration, ready to start on this host. Raises InvalidSpec with every mistake."""
    loaded = resolve_node(file, env=env, flags=flags)
    if lacking := host_problems(loaded):
        raise invalid(str(file), lacking)
    return loaded.value


def node_rules(config: NodeConfig) -> Iterator[Problem]:
    """Mistakes that types cannot express."""
    if config.node_id is not None and PLACEHOLDER not in config.node_id and not NAME.fullmatch(config.node_id):
        yield Problem("node_id", "must be 1 to 63 letters, digits, '.', '_' or '-'; leave it out to have one made")
    if not config.coordinator.base_url.startswith(("http://", "https://")):
        yield Problem("coordinator.base_url", "must start with http:// or https://")
    elif not _names_a_host(config.coordinator.base_url):
        yield Problem("coordinator.base_url", "must name a host, and where there is one a port from 1 to 65535")
    for name, why in config.coordinator.trust.problems():
        yield Problem(f"coordinator.{name}", why)
    yield from _numbers(config)
    if config.resources.io_class not in IO_CLASSES:
        yield Problem("resources.io_class", f"must be one of {', '.join(IO_CLASSES)}")
    if config.logging.level not in LEVELS:
        yield Problem("logging.level", f"must be one of {', '.join(LEVELS)}")
    if config.health.listen != "off" and parse_listen(config.health.listen) is None:
        yield Problem("health.listen", 'must be HOST:PORT, or "off"')
    yield from _lists(config)
    yield from service_problems(config.services)
    if not config.workspace.root.is_absolute():
        yield Problem("workspace.root", "must be an absolute path")
    if config.state_dir is not None and not config.state_dir.is_absolute():
        yield Problem("state_dir", "must be an absolute path")


def _lists(config: NodeConfig) -> Iterator[Problem]:
    for i, tag in enumerate(config.tags):
        if not NAME.fullmatch(tag):
            yield Problem(f"tags[{i}]", f"{tag!r} must be 1 to 63 letters, digits, '.', '_' or '-'")
    for i, rule in enumerate(config.network.allow):
        if why := rule_problem(rule):
            yield Problem(f"network.allow[{i}]", why)


def _names_a_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _numbers(config: NodeConfig) -> Iterator[Problem]:
    def within(path: str, value: float | None, least: float, most: float) -> Iterator[Problem]:
        if value is not None and not least <= value <= most:
            yield Problem(path, f"must be from {least:g} to {most:g}, not {value:g}")

    beat, own, space, python = config.heartbeat, config.resources, config.workspace, config.runners.python
    yield from within("coordinator.timeout_s", config.coordinator.timeout_s, 0.1, 3600)
    yield from within("heartbeat.interval_s", beat.interval_s, 0.1, 3600)
    yield from within("heartbeat.jitter_pct", beat.jitter_pct, 0, 50)
    yield from within("heartbeat.backoff.min_s", beat.backoff.min_s, 0.01, 3600)
    yield from within("heartbeat.backoff.max_s", beat.backoff.max_s, 0.01, 86400)
    if beat.backoff.min_s > beat.backoff.max_s:
        yield Problem("heartbeat.backoff.min_s", f"must not be more than max_s, which is {beat.backoff.max_s:g}")
    yield from within("resources.max_concurrent_cpu", own.max_concurrent_cpu, 0, 4096)
    yield from within("resources.max_concurrent_gpu", own.max_concurrent_gpu, 0, 256)
    yield from within("resources.cpu_nice", own.cpu_nice, -20, 19)
    yield from within("resources.io_level", own.io_level, 0, 7)
    yield from within("resources.grace_s", own.grace_s, 0, 3600)
    yield from within("resources.prefetch", own.prefetch, 0, 10_000)
    for name in ("mem_soft_mb", "processes", "open_files", "disk_mb", "log_mb"):
        yield from within(f"resources.{name}", getattr(own, name), 1, 2**31)
    yield from within("workspace.min_free_mb", space.min_free_mb, 0, 2**31)
    yield from within("workspace.cache_mb", space.cache_mb, 0, 2**31)
    yield from within("workspace.max_input_mb", space.max_input_mb, 1, 2**31)
    yield from within("runners.python.max_tasks_per_worker", python.max_tasks_per_worker, 1, 2**31)


def host_problems(loaded: Loaded[NodeConfig]) -> list[Problem]:
    """What the configuration names and this host does not have: mistakes for a node that starts, else warnings."""
    python = loaded.value.runners.python
    found = [Problem(field, why) for field, there, is_there, why in _named(loaded.value) if not is_there(there)]
    venv = python.venv if python.enable and python.by_value else None
    if venv is not None and (venv / "bin/python").exists() and not any(venv.glob("lib/python*/site-packages/cloudpickle")):
        found.append(Problem("runners.python.by_value", f"needs cloudpickle, which {venv} lacks: install it there"))
    return [loaded.locate(problem) for problem in found]


def needed_paths(loaded: Loaded[NodeConfig]) -> list[str]:
    """All that `host_problems` looks for: while these are there, it finds what it found before."""
    return [str(there) for _, there, _, _ in _named(loaded.value)]


def _named(config: NodeConfig) -> Iterator[tuple[str, Path, Callable[[Path], bool], str]]:
    """A field, what must be there for it, as what, and the words where it is not."""
    cli, python = config.runners.cli, config.runners.python
    if cli.enable:
        for i, file in enumerate(cli.allowlist_files):
            yield f"runners.cli.allowlist_files[{i}]", file, Path.exists, f"{file} does not exist"
        if cli.allowlist_dir is not None:
            yield "runners.cli.allowlist_dir", cli.allowlist_dir, Path.is_dir, f"{cli.allowlist_dir} is not a directory"
    if python.enable:
        for i, place in enumerate(python.task_paths):
            yield f"runners.python.task_paths[{i}]", place, Path.is_dir, f"{place} is not a directory"
        if python.venv is not None:
            yield "runners.python.venv", python.venv / "bin/python", Path.exists, f"{python.venv} holds no bin/python"
    for name in ("ca_file", "client_cert", "client_key"):
        place = getattr(config.coordinator, name)
        if place is not None:
            yield f"coordinator.{name}", place, Path.is_file, f"{place} does not exist"


def parse_listen(text: str) -> tuple[str, int] | None:
    """`127.0.0.1:7070` or `[::1]:7070` as (host, port); None where it is neither."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return None
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        return None
    return host, int(port)


def main(arguments: list[str]) -> int:
    """See the module's first lines."""
    if len(arguments) != 2 or arguments[0] != "node":
        sys.stderr.write("usage: python -m ostler.assembly.resolve node FILE\n")
        return 2
    file = Path(arguments[1])
    try:
        node = resolve_node(file, env=os.environ)
        if lacking := host_problems(node):
            raise InvalidSpec(f"{file} names what this host does not have", lacking)
    except OstlerError as exc:
        sys.stderr.write(f"{exc}\n")
        return 3
    sys.stdout.buffer.write(handover.encode(node.value))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
