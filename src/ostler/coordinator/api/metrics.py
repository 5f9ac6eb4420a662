"""What the coordinator counts about itself, in the Prometheus text format; labels come from tables, never from strangers."""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate
from typing import Concatenate, ParamSpec, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from ostler import __version__
from ostler.coordinator.operations.reads import NodeRelease
from ostler.coordinator.store.store import Store
from ostler.coordinator.store.tx import Tx
from ostler.model.job import JobState
from ostler.model.node import NodeState
from ostler.protocol.messages import ServiceView, outside
from ostler.protocol.routes import Route

P = ParamSpec("P")
T = TypeVar("T")

MAX_NODES = 1000  # that have a line of their own
REASONS = ("calls", "open_calls", "failures", "commands", "connections")  # why a call was too many
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


class Durations:
    """A histogram of seconds: what is counted at each call is a list of whole numbers, and becomes text when somebody looks."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """One more."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """As Prometheus has it: how many were at most so long."""
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        family.add_metric(labels, list(zip(names, accumulate(self._counts), strict=True)), self._sum)


@dataclass(slots=True)
class _Tally:
    """What is counted of one route."""

    open: int = 0
    answers: dict[int, int] = field(default_factory=lambda: dict.fromkeys((2, 3, 4, 5), 0))  # by the status's first digit
    durations: Durations = field(default_factory=lambda: Durations(_DURATIONS))


class _Counted(Collector):
    """What is counted at each call and each write, in the library's terms."""

    def __init__(self, routes: Mapping[str, _Tally], writes: Durations) -> None:
        self._routes = routes
        self._writes = writes

    def collect(self) -> Iterator[Metric]:
        """The numbers as they are now."""
        took = HistogramMetricFamily(
            "ostler_request_duration_seconds", "Time to answer a request, long polls included", labels=["route"]
        )
        answers = CounterMetricFamily("ostler_requests", "Answered requests", labels=["route", "status"])
        open_calls = GaugeMetricFamily(
            "ostler_requests_in_flight", "Requests being answered, long polls included", labels=["route"]
        )
        for name, tally in self._routes.items():
            tally.durations.add_to(took, [name])
            open_calls.add_metric([name], tally.open)
            for digit, count in tally.answers.items():
                answers.add_metric([name, f"{digit}xx"], count)
        writes = HistogramMetricFamily(
            "ostler_store_write_seconds", "Time until a write was durable, its wait for the writer included", labels=[]
        )
        self._writes.add_to(writes, [])
        return iter((took, answers, open_calls, writes))


class Metrics:
    """Counters of one coordinator, in a registry of its own."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.registry = CollectorRegistry()
        self._routes = {route.name: _Tally() for route in routes}
        self.writes = Durations(_DURATIONS[:10])
        self.registry.register(_Counted(self._routes, self.writes))
        refused = Counter("ostler_refused_calls", "Calls beyond a limit of their caller", ["reason"], registry=self.registry)
        self._refused = {reason: refused.labels(reason) for reason in REASONS}
        self._jobs = Gauge("ostler_jobs", "Jobs that are not over, by state", ["state"], registry=self.registry)
        self._nodes = Gauge("ostler_nodes", "Nodes by state", ["state"], registry=self.registry)
        self._outside = Gauge(
            "ostler_nodes_outside_window", "Nodes that speak no protocol of this coordinator's", registry=self.registry
        )
        self._releases = Gauge("ostler_node_releases", "Different releases that nodes run", registry=self.registry)
        self._running = Gauge(
            "ostler_node_info", "What a node runs and speaks", ["node", "version", "release", "protocol"], registry=self.registry
        )
        self._attempts = Gauge("ostler_live_attempts", "Attempts that nodes hold", registry=self.registry)
        place = ["node", "service"]
        self._service_state = Gauge("ostler_service_state", "How a service was found", [*place, "state"], registry=self.registry)
        self._service_health = Gauge(
            "ostler_service_health",
            "What the probes of a service say; stale without news of its node",
            [*place, "health"],
            registry=self.registry,
        )
        self._service_restarts = Gauge(
            "ostler_service_restarts", "How often its node started a service anew after crashes", place, registry=self.registry
        )
        self._service_numbers = Gauge(
            "ostler_service_metric", "A number that a service tells of itself", [*place, "name"], registry=self.registry
        )
        self._loops = Gauge(
            "ostler_loop_age_seconds", "Time since a loop last came to the end of a turn", ["loop"], registry=self.registry
        )
        self._removed = Counter("ostler_retention_removed", "What retention removed", ["kind"], registry=self.registry)
        self._freed = Counter("ostler_retention_freed_bytes", "Bytes that retention freed", ["kind"], registry=self.registry)
        self._kept = Gauge(
            "ostler_kept_bytes", "Bytes kept, as the last pass of retention found them", ["kind"], registry=self.registry
        )
        ProcessCollector(registry=self.registry)  # CPU, memory and descriptors of this process, under their usual names
        self._backups: dict[str, Gauge] = {}
        Gauge("ostler_build_info", "The release", ["version"], registry=self.registry).labels(__version__).set(1)

    def begun(self, route: Route) -> None:
        """One request is to be answered."""
        self._routes[route.name].open += 1

    def answered(self, route: Route, status: int, seconds: float) -> None:
        """One request was answered."""
        tally = self._routes[route.name]
        tally.open -= 1
        tally.durations.observe(seconds)
        if (kind := status // 100) in tally.answers:
            tally.answers[kind] += 1

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

    def set_running(self, nodes: Sequence[NodeRelease]) -> None:
        """What nodes run; of a fleet of more than `MAX_NODES` the sums alone."""
        self._outside.set(sum(outside(one.protocol) is not None for one in nodes))
        self._releases.set(len({(one.version, one.release) for one in nodes}))
        self._running.clear()
        for one in nodes[:MAX_NODES]:
            self._running.labels(one.node_id, one.version, one.release, str(one.protocol)).set(1)

    def set_services(self, services: Iterable[ServiceView]) -> None:
        """What nodes told of their services; names are those of their configurations, of a shape that was checked."""
        for gauge in (self._service_state, self._service_health, self._service_restarts, self._service_numbers):
            gauge.clear()
        for one in services:
            place = (one.node_id, one.name)
            if one.state is not None:
                self._service_state.labels(*place, one.state.value).set(1)
            self._service_health.labels(*place, one.health.value).set(1)
            self._service_restarts.labels(*place).set(one.restarts)
            for name, value in one.metrics.items():
                self._service_numbers.labels(*place, name).set(value)

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
