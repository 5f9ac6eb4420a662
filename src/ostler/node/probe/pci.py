"""PCI addresses, of which each tool has its own spelling."""

import re
from pathlib import Path

_ADDRESS = re.compile(r"^(?:PCI:)?(?:([0-9a-f]{1,8}):)?([0-9a-f]{2}):([0-9a-f]{2})(?:\.([0-7]))?$", re.IGNORECASE)


def bus_id(text: str) -> str | None:
    """`00000000:65:00.0`, `PCI:0000:65:00` or `65:00.0` as `0000:65:00.0`; None for what is no address."""
    found = _ADDRESS.match(text.strip())
    if not found:
        return None
    domain, bus, device, function = found.groups()
    return f"{int(domain or '0', 16):04x}:{bus}:{device}.{function or '0'}".lower()


def numa_node(bus: str | None, *, sys: Path = Path("/sys")) -> int | None:
    """The NUMA node that a device hangs on; None on machines with one node or where the kernel does not tell."""
    if bus is None:
        return None
    try:
        node = int((sys / "bus/pci/devices" / bus / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None
