"""Which GPUs an attempt gets, and what makes it see those alone. Pure but for `device_nodes`.

The emptiest card is taken first, by the video memory in use by anyone, foreign processes included (N14). Cards are named by uuid:
an index changes when a card falls off the bus.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ostler.model.capabilities import Gpu
from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import Requirements

DRIVER = Path("/proc/driver/nvidia/gpus")
_SHARED_NODES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One GPU as last observed; MB are 2**20 bytes. `used_mb` counts every process's memory. `fault` says why it is not used."""

    uuid: str
    vram_mb: int
    used_mb: int = 0
    fault: str | None = None

    @property
    def free_mb(self) -> int:
        """What nobody uses."""
        return max(0, self.vram_mb - self.used_mb)


def cards_of(gpus: Iterable[Gpu]) -> tuple[Card, ...]:
    """What can be given to attempts: a GPU without a uuid cannot be named to them; one that does not tell counts as unused."""
    return tuple(
        Card(
            uuid=gpu.uuid,
            vram_mb=gpu.vram_mb,
            used_mb=gpu.vram_mb - (gpu.vram_free_mb if gpu.vram_free_mb is not None else gpu.vram_mb),
            fault=gpu.fault or None,
        )
        for gpu in gpus
        if gpu.uuid is not None
    )


def choose(cards: Sequence[Card], need: Requirements, *, held: Collection[str] = ()) -> tuple[str, ...] | Failure:
    """The uuids for one attempt, or E_NOGPU with the reason for each card. `held` are those of living attempts.

    Of the free cards that are large enough those come first that have the least video memory in use, then the smaller (a
    large one is kept for who needs it), then by uuid, so that the same state always gives the same choice. `vram_mb` is
    asked of a card's *free* memory: what foreign processes use is not there.
    """
    if not need.gpu_count:
        return ()
    fitting = [card for card in cards if _amiss(card, need, held) is None]
    if len(fitting) >= need.gpu_count:
        fitting.sort(key=lambda card: (card.used_mb, card.vram_mb, card.uuid))
        return tuple(card.uuid for card in fitting[: need.gpu_count])
    wanted = f"{need.gpu_count} GPU{'s' * (need.gpu_count > 1)}" + (f" with {need.vram_mb} MB free" if need.vram_mb else "")
    reasons = "; ".join(f"{card.uuid}: {_amiss(card, need, held)}" for card in cards if card not in fitting)
    return Failure(FailureCode.NOGPU, f"needs {wanted}, {len(fitting)} can be had" + (f" ({reasons})" if reasons else ""))


def gpu_environment(uuids: Sequence[str]) -> dict[str, str]:
    """The variables by which CUDA and the container toolkit see these cards alone; for none, that they see none.

    An empty CUDA_VISIBLE_DEVICES hides all cards; for the toolkit the word is `void`, since empty would mean its default.
    """
    names = ",".join(uuids)
    return {"CUDA_VISIBLE_DEVICES": names, "NVIDIA_VISIBLE_DEVICES": names or "void", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def parse_driver_card(text: str) -> tuple[str, int] | None:
    """The uuid and the device minor of one `/proc/driver/nvidia/gpus/*/information`; None where it does not say."""
    facts = {name.strip(): value.strip() for name, found, value in (line.partition(":") for line in text.splitlines()) if found}
    uuid, minor = facts.get("GPU UUID"), facts.get("Device Minor")
    return (uuid, int(minor)) if uuid and minor and minor.isdigit() else None


def device_paths(uuids: Collection[str], minors: Mapping[str, int], present: Collection[str]) -> tuple[str, ...]:
    """The device nodes that a sandbox must show for these cards, of those `present` in /dev. None for no card at all."""
    if not uuids:
        return ()
    names = [*(f"nvidia{minors[uuid]}" for uuid in uuids if uuid in minors), *_SHARED_NODES]
    return tuple(f"/dev/{name}" for name in names if name in present)


def device_nodes(uuids: Collection[str], *, driver: Path = DRIVER, dev: Path = Path("/dev")) -> tuple[str, ...]:
    """`device_paths` for this host. Reads the driver's files; a card that the driver does not list has no node."""
    if not uuids:
        return ()
    minors: dict[str, int] = {}
    for file in sorted(driver.glob("*/information")):
        try:
            found = parse_driver_card(file.read_text(errors="replace"))
        except OSError:
            continue  # it fell off the bus between the two looks
        if found:
            minors[found[0]] = found[1]
    present = {path.name for path in dev.glob("nvidia*")}
    return device_paths(uuids, minors, present)


def _amiss(card: Card, need: Requirements, held: Collection[str]) -> str | None:
    if card.fault:
        return card.fault
    if card.uuid in held:
        return "held by another attempt"
    if card.vram_mb < need.vram_mb:
        return f"has {card.vram_mb} MB"
    if card.free_mb < need.vram_mb:
        return f"has {card.free_mb} MB free of {card.vram_mb}"
    return None
