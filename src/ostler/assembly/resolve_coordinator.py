"""The configuration of a coordinator out of its layers, checked whole; apart from that of a node, which starts on hosts that have none."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ostler.coordinator.config import CoordinatorConfig
from ostler.coordinator.tls import context
from ostler.model.errors import InvalidSpec, Problem
from ostler.runtime.settings import Flag, Loaded, load

COORDINATOR_PREFIX = "OSTLER_COORDINATOR"


def resolve_coordinator(
    file: Path | None,
    *,
    env: Mapping[str, str],
    flags: Mapping[str, Flag] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Loaded[CoordinatorConfig]:
    """A coordinator's configuration; raises InvalidSpec with every mistake."""
    return load(
        CoordinatorConfig,
        file=file,
        env=env,
        prefix=COORDINATOR_PREFIX,
        flags=flags,
        rules=coordinator_rules,
        defaults=defaults,
    )


def coordinator_rules(config: CoordinatorConfig) -> Iterator[Problem]:
    """What its own contradictions are, as problems."""
    for line in config.problems():
        path, _, message = line.partition(": ")
        yield Problem(path, message)


def coordinator_host_problems(loaded: Loaded[CoordinatorConfig]) -> list[Problem]:
    """The same for a coordinator."""
    tls = loaded.value.tls
    if tls is None:
        return []
    try:
        context.load(tls, datetime.now(UTC))
    except InvalidSpec as exc:
        return [loaded.locate(problem) for problem in exc.problems]
    return []
