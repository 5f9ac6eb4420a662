"""The node's numbers in the Prometheus text format, made when they are asked for. Labels are from closed sets."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from ostler import __version__
from ostler.model.attempt import AttemptState
from ostler.model.capabilities import Load
from ostler.node.counts import Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What there is to tell at this moment."""

    counts: Counts
    states: Mapping[AttemptState, int]
    loops: Mapping[str, float]
    contact_age_s: float | None
    draining: bool
    outside: bool
    load: Load | None
    memory_mb: float


class _Numbers(Collector):
    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def collect(self) -> Iterator[Metric]:
        """All families."""
        facts, counts = self._facts, self._facts.counts
        yield _gauge("ostler_node_build_info", "The release", ["version"], {__version__: 1})
        states = {state.value: count for state, count in facts.states.items()}
        yield _gauge("ostler_node_attempts", "Attempts that the node has, by state", ["state"], states)
        ended = CounterMetricFamily("ostler_node_attempts_ended", "Attempts that ended, by verdict", labels=["verdict"])
        for verdict, count in sorted(counts.ended.items()):
            ended.add_metric([verdict], count)
        yield ended
        yield CounterMetricFamily("ostler_node_attempts_started", "Attempts that were started", value=counts.started)
        yield CounterMetricFamily(
            "ostler_node_attempts_adopted", "Attempts taken over from an earlier daemon", value=counts.adopted
        )
        yield CounterMetricFamily("ostler_node_outcomes_delivered", "Outcomes that the coordinator has", value=counts.delivered)
        yield CounterMetricFamily(
            "ostler_node_attempts_discarded", "Attempts that the coordinator took away", value=counts.discarded
        )
        yield CounterMetricFamily("ostler_node_attempt_seconds", "Time that ended attempts took", value=counts.seconds)
        yield _gauge("ostler_node_loop_age_seconds", "Time since a loop last came to the end of a turn", ["loop"], facts.loops)
        yield GaugeMetricFamily("ostler_node_draining", "1 while the node takes no new work", value=int(facts.draining))
        yield GaugeMetricFamily(
            "ostler_node_outside_window",
            "1 while the coordinator speaks no protocol that this node does",
            value=int(facts.outside),
        )
        yield GaugeMetricFamily("ostler_node_resident_bytes", "Resident memory of the daemon", value=facts.memory_mb * 2**20)
        if facts.contact_age_s is not None:
            yield GaugeMetricFamily(
                "ostler_node_contact_age_seconds", "Time since the coordinator last answered", value=facts.contact_age_s
            )
        if facts.load is not None:
            yield GaugeMetricFamily("ostler_node_load1", "One-minute load average", value=facts.load.load)
            yield GaugeMetricFamily(
                "ostler_node_disk_free_bytes", "Free disk of the workspaces", value=facts.load.disk_free_mb * 2**20
            )
            yield GaugeMetricFamily(
                "ostler_node_vram_free_bytes", "Free memory of good GPUs", value=facts.load.vram_free_mb * 2**20
            )


def text(facts: Facts) -> bytes:
    """All of it as one page."""
    registry = CollectorRegistry()
    registry.register(_Numbers(facts))
    return generate_latest(registry)


def _gauge(name: str, meaning: str, labels: list[str], values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, meaning, labels=labels)
    for label, value in values.items():
        family.add_metric([label], value)
    return family
