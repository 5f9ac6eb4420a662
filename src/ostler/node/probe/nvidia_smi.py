"""NVIDIA cards by `nvidia-smi -q -x`, for hosts whose NVML cannot be loaded: commands and their parsers.

The XML leaves out two things about MIG: names and uuids of instances (`nvidia-smi -L` has them; newest drivers write
the uuid into the XML too) and the profiles that a card can be cut into (`nvidia-smi mig -lgip`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ostler.model.capabilities import Cuda, Ecc, Gpu, GpuProcess, Mig, MigInstance, MigProfile
from ostler.node.probe.pci import bus_id

if TYPE_CHECKING:  # a machine without such a card loads no parser
    from xml.etree import ElementTree as ET

QUERY = ("nvidia-smi", "-q", "-x")
LIST = ("nvidia-smi", "-L")
PROFILES = ("nvidia-smi", "mig", "-lgip")

# What stands in place of a value, or of a card's name, when the card does not answer.
_FAULTS = re.compile(r"GPU is lost|Unknown Error|GPU requires reset|ERR!", re.IGNORECASE)
_NO_HANDLE = re.compile(
    r"Unable to determine the device handle for gpu ?(?:at )?(?:PCI:)?([0-9a-f:.]+): (.+?)\s*$", re.IGNORECASE | re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class MigName:
    """A line of `nvidia-smi -L` about an instance."""

    profile: str
    uuid: str


def parse_query(text: str) -> tuple[Gpu, ...]:
    """The cards in the output of QUERY, faulty ones included. Raises ValueError for output that is nothing of the kind.

    The program writes warnings before and after the document, and lines for cards that it cannot open.
    """
    start, end = text.find("<nvidia_smi_log"), text.rfind("</nvidia_smi_log>")
    lost = [_lost(address, reason) for address, reason in _NO_HANDLE.findall(text)]
    if start < 0 or end < 0:
        if lost or "No devices were found" in text:
            return tuple(lost)
        raise ValueError(f"no nvidia_smi_log in: {text.strip()[:200] or 'empty output'}")
    from xml.etree import ElementTree as ET

    try:
        log = ET.fromstring(text[start : end + len("</nvidia_smi_log>")])  # noqa: S314  # the driver's own output
    except ET.ParseError as error:
        raise ValueError(f"not XML: {error}") from error
    driver = _text(log, "driver_version") or ""
    version = _text(log, "cuda_version") or ""
    cuda = Cuda(version=version, driver=driver)
    found = [_gpu(index, element, cuda) for index, element in enumerate(log.findall("gpu"))]
    known = {gpu.bus_id for gpu in found}
    return (*found, *(gpu for gpu in lost if gpu.bus_id not in known))


def _gpu(index: int, element: "ET.Element", cuda: Cuda) -> Gpu:
    memory = _mb(element, "fb_memory_usage/total")
    fault = _fault(element)
    return Gpu(
        vendor="nvidia",
        name=_text(element, "product_name") or "unknown",
        vram_mb=memory or 0,
        cuda=cuda,
        uuid=_text(element, "uuid"),
        index=index,
        minor=_number(element, "minor_number"),
        bus_id=bus_id(_text(element, "pci/pci_bus_id") or element.get("id") or ""),
        driver=cuda.driver,
        vram_free_mb=_mb(element, "fb_memory_usage/free"),
        utilisation_pct=_number(element, "utilization/gpu_util"),
        temperature_c=_number(element, "temperature/gpu_temp"),
        mig=_mig(element),
        ecc=_ecc(element),
        processes=tuple(_processes(element)),
        fault=fault or ("" if memory else "its memory cannot be read"),
    )


def _lost(address: str, reason: str) -> Gpu:
    return Gpu(vendor="nvidia", name="unknown", vram_mb=0, bus_id=bus_id(address), fault=reason.rstrip("."))


def _fault(element: "ET.Element") -> str:
    """A card that is gone answers so for everything; one odd field alone is a quirk of the driver."""
    places = ("product_name", "uuid", "fb_memory_usage/total", "temperature/gpu_temp", "performance_state")
    words = [match[0] for place in places if (match := _FAULTS.search(element.findtext(place) or ""))]
    return words[0] if len(words) > 1 else ""


def _mig(element: "ET.Element") -> Mig | None:
    mode = _text(element, "mig_mode/current_mig")
    if mode is None:
        return None
    pending = _text(element, "mig_mode/pending_mig")
    return Mig(
        enabled=mode == "Enabled",
        pending=None if pending is None else pending == "Enabled",
        instances=tuple(
            MigInstance(
                uuid=_text(device, "uuid"),
                profile="",
                vram_mb=_mb(device, "fb_memory_usage/total") or 0,
                vram_free_mb=_mb(device, "fb_memory_usage/free"),
                gpu_instance=_number(device, "gpu_instance_id"),
                compute_instance=_number(device, "compute_instance_id"),
            )
            for device in sorted(element.findall("mig_devices/mig_device"), key=lambda one: _number(one, "index") or 0)
        ),
    )


def _ecc(element: "ET.Element") -> Ecc | None:
    mode = _text(element, "ecc_mode/current_ecc")
    if mode is None:
        return None
    volatile = element.find("ecc_errors/volatile")
    counts = {} if volatile is None else {child.tag: _integer(child.text) for child in volatile if len(child) == 0}
    old = {} if volatile is None else {group.tag: _number(group, "total") for group in volatile if len(group)}
    return Ecc(
        enabled=mode == "Enabled",
        corrected=_sum([*_matching(counts, "_correctable"), *_matching(old, "single_bit")]),
        uncorrected=_sum([*_matching(counts, "_uncorrectable"), *_matching(old, "double_bit")]),
        repair_pending="Yes"
        in (_text(element, "remapped_rows/remapped_row_pending"), _text(element, "retired_pages/pending_retirement")),
        repair_failed=_text(element, "remapped_rows/remapped_row_failure") == "Yes",
    )


def _processes(element: "ET.Element") -> Iterator[GpuProcess]:
    for process in element.findall("processes/process_info"):
        pid = _number(process, "pid")
        if pid is not None:
            yield GpuProcess(
                pid=pid,
                used_mb=_mb(process, "used_memory"),
                kind="graphics" if _text(process, "type") == "G" else "compute",
                name=_text(process, "process_name") or "",
            )


def _matching(counts: Mapping[str, int | None], word: str) -> list[int | None]:
    return [value for name, value in counts.items() if word in name]


def _sum(values: Sequence[int | None]) -> int | None:
    told = [value for value in values if value is not None]
    return sum(told) if told else None


def _text(element: "ET.Element", path: str) -> str | None:
    """The text, or None for the many ways in which the tool says that there is none."""
    text = (element.findtext(path) or "").strip()
    absent = not text or text.strip("[]") in ("N/A", "None", "Not Supported", "Insufficient Permissions")
    return None if absent or "deprecated" in text or _FAULTS.search(text) else text


def _number(element: "ET.Element", path: str) -> int | None:
    return _integer(_text(element, path))


def _integer(text: str | None) -> int | None:
    found = re.match(r"\s*(-?\d+)", text or "")
    return int(found[1]) if found else None


_mb = _number  # "16380 MiB"


def parse_list(text: str) -> dict[str, tuple[MigName, ...]]:
    """The instances in the output of LIST by their card's uuid, in the order of their device numbers."""
    found: dict[str, list[MigName]] = {}
    card: str | None = None
    for line in text.splitlines():
        if match := re.match(r"GPU \d+: .*\(UUID: (GPU-[^)]+)\)", line):
            card = match[1]
        elif line.startswith("GPU "):
            card = None
        elif card and (match := re.match(r"\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (MIG-[^)]+)\)", line)):
            found.setdefault(card, []).append(MigName(match[1], match[2]))
    return {uuid: tuple(names) for uuid, names in found.items()}


def parse_profiles(text: str) -> dict[int, tuple[MigProfile, ...]]:
    """The profiles in the table that PROFILES prints, by the card's index; memory is told in GiB there."""
    found: dict[int, list[MigProfile]] = {}
    for match in re.finditer(r"^\|\s+(\d+)\s+MIG (\S+)\s+\d+\s+(\d+)/(\d+)\s+([\d.]+)", text, re.MULTILINE):
        index, name, free, total, gib = match.groups()
        profile = MigProfile(name=name, vram_mb=round(float(gib) * 1024), total=int(total), free=int(free))
        found.setdefault(int(index), []).append(profile)
    return {index: tuple(profiles) for index, profiles in found.items()}
