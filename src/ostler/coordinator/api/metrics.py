"""What the coordinator counts about itself, in the Prometheus text format; labels come from tables, never from callers."""

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Concatenate, ParamSpec, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest

from ostler import __version__
from ostler.coordinator.store.store import Store
from ostler.coordinator.store.tx import Tx
from ostler.model.job import JobState
from ostler.model.node import NodeState
from ostler.protocol.routes import Route

P = ParamSpec("P")
T = TypeVar("T")

REASONS = ("calls", "open_calls", "failures", "connections")  # why a call was too many
_DURATIONS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class MeasuredStore(Store):
    """A store that tells how long each write took from being asked for to being durable."""

    observe: Callable[[float], None] | None = None

    async def write(self, operation: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See Store."""
        began = time.perf_counter()
        try:
            return await super().write(operation, *args, **kwargs)
        finally:
            if self.observe is not None:
                self.observe(time.perf_counter() - began)

    async def write_lazily(self, operation: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See Store."""
        began = time.perf_counter()
        try:
            return await super().write_lazily(operation, *args, **kwargs)
        finally:
            if self.observe is not None:
                self.observe(time.perf_counter() - began)


class Metrics:
    """Counters of one coordinator, in a registry of its own."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.registry = CollectorRegistry()
        routes = tuple(routes)
        durations = Histogram(
            "ostler_request_duration_seconds", "Time to answer a request, long polls included", ["route"],
            buckets=_DURATIONS, registry=self.registry,
        )  # fmt: skip
        answers = Counter("ostler_requests", "Answered requests", ["route", "status"], registry=self.registry)
        open_calls = Gauge(
            "ostler_requests_in_flight", "Requests being answered, long polls included", ["route"], registry=self.registry
        )
        self._open = {route.name: open_calls.labels(route.name) for route in routes}
        self._durations = {route.name: durations.labels(route.name) for route in routes}
        self._answers = {
            (route.name, digit): answers.labels(route.name, f"{digit}xx") for route in routes for digit in (2, 3, 4, 5)
        }
        refused = Counter("ostler_refused_calls", "Calls beyond a limit of their caller", ["reason"], registry=self.registry)
        self._refused = {reason: refused.labels(reason) for reason in REASONS}
        self._jobs = Gauge("ostler_jobs", "Jobs that are not over, by state", ["state"], registry=self.registry)
        self._nodes = Gauge("ostler_nodes", "Nodes by state", ["state"], registry=self.registry)
        self._attempts = Gauge("ostler_live_attempts", "Attempts that nodes hold", registry=self.registry)
        self._loops = Gauge(
            "ostler_loop_age_seconds", "Time since a loop last came to the end of a turn", ["loop"], registry=self.registry
        )
        self._removed = Counter("ostler_retention_removed", "What retention removed", ["kind"], registry=self.registry)
        self._freed = Counter("ostler_retention_freed_bytes", "Bytes that retention freed", ["kind"], registry=self.registry)
        self._kept = Gauge(
            "ostler_kept_bytes", "Bytes kept, as the last pass of retention found them", ["kind"], registry=self.registry
        )
        self.writes = Histogram(
            "ostler_store_write_seconds", "Time until a write was durable, its wait for the writer included",
            buckets=_DURATIONS[:10], registry=self.registry,
        )  # fmt: skip
        ProcessCollector(registry=self.registry)  # CPU, memory and descriptors of this process, under their usual names
        self._backups: dict[str, Gauge] = {}
        Gauge("ostler_build_info", "The release", ["version"], registry=self.registry).labels(__version__).set(1)

    def begun(self, route: Route) -> None:
        """One request is to be answered."""
        self._open[route.name].inc()

    def answered(self, route: Route, status: int, seconds: float) -> None:
        """One request was answered."""
        self._open[route.name].dec()
        self._durations[route.name].observe(seconds)
        counter = self._answers.get((route.name, status // 100))
        if counter is not None:
            counter.inc()

    def refused(self, reason: str) -> None:
        """One call, or connection, was too many."""
        self._refused[reason].inc()

    def set_counts(self, jobs: Mapping[str, int], nodes: Mapping[str, int], live_attempts: int) -> None:
        """The store's numbers; a state that nothing is in counts 0, so that graphs have no holes."""
        for job_state in JobState:
            self._jobs.labels(job_state.value).set(jobs.get(job_state.value, 0))
        for node_state in NodeState:
            self._nodes.labels(node_state.value).set(nodes.get(node_state.value, 0))
        self._attempts.set(live_attempts)

    def pruned(self, kind: str, count: int, size: int) -> None:
        """Retention removed some of a kind."""
        self._removed.labels(kind).inc(count)
        self._freed.labels(kind).inc(size)

    def set_kept(self, sizes: Mapping[str, int]) -> None:
        """How much there is of each kind."""
        for kind, size in sizes.items():
            self._kept.labels(kind).set(size)

    def backed_up(self, at: datetime, took_s: float | None) -> None:
        """A backup was taken; how long that took, where it was this process that did."""
        self._backup("last_success_timestamp_seconds", "When the newest good backup was taken").set(at.timestamp())
        if took_s is not None:
            self._backup("duration_seconds", "How long the newest backup took").set(took_s)

    def backup_failed(self, at: datetime) -> None:
        """One could not be taken."""
        self._backup("last_failure_timestamp_seconds", "When a backup last could not be taken").set(at.timestamp())

    def _backup(self, name: str, about: str) -> Gauge:
        """Made when there is something to say: 0 would be a time, too."""
        if name not in self._backups:
            self._backups[name] = Gauge(f"ostler_backup_{name}", about, registry=self.registry)
        return self._backups[name]

    def set_loop_age(self, name: str, seconds: float) -> None:
        """How long ago a loop turned."""
        self._loops.labels(name).set(seconds)

    def text(self) -> bytes:
        """All of it as one page."""
        return generate_latest(self.registry)
