"""What a node's capabilities offer to placement."""

from collections.abc import Iterable

from ostler.model.capabilities import Capabilities, usable_gpus
from ostler.model.manifest import DEFAULT_POOL, NAME, Runner
from ostler.model.resources import Offer, Resources

MAX_SERVICES = 256  # of one node
_RUNNERS = {runner.value: runner for runner in Runner}


def declared(services: Iterable[str]) -> list[str]:
    """The names of services that count, of those that a node says it declares."""
    return sorted(name for name in set(services) if NAME.fullmatch(name))[:MAX_SERVICES]


def offer_of(node_id: str, has: Capabilities | None, *, cpu_slots: int, gpu_slots: int, pool: str = DEFAULT_POOL) -> Offer:
    """The offer of a node in a pool; a newer node's runners and sandbox levels that this release does not know are left out."""
    if has is None:
        return Offer(node_id=node_id, pool=pool, capacity=Resources(cpu_slots=cpu_slots, gpu_slots=gpu_slots))
    return Offer(
        node_id=node_id,
        pool=pool,
        capacity=Resources(
            cpu_slots=cpu_slots,
            gpu_slots=gpu_slots,
            cpu_threads=has.cpu.threads or has.cpu.cores,
            memory_mb=has.memory_mb,
            disk_mb=has.disk_free_mb,
        ),
        vram_mb=tuple(gpu.vram_mb for gpu in usable_gpus(has.gpu)),
        tags=frozenset(has.tags),
        services=frozenset(declared(has.services)),
        runners=frozenset(_RUNNERS[name] for name in has.runners if name in _RUNNERS),
        sandbox_levels=frozenset(has.sandbox.known_levels()),
    )
