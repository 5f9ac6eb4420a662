"""AMD cards by `amd-smi` (its successor) or `rocm-smi`: commands and the parsers of their JSON."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ostler.model.capabilities import Ecc, Gpu, GpuProcess
from ostler.node.probe.pci import bus_id

LIST = ("amd-smi", "list", "--json")
STATIC = ("amd-smi", "static", "--asic", "--bus", "--vram", "--driver", "--numa", "--json")
METRIC = ("amd-smi", "metric", "--mem-usage", "--usage", "--temperature", "--ecc", "--json")
PROCESS = ("amd-smi", "process", "--json")
ROCM = (
    "rocm-smi",
    "--showproductname",
    "--showuniqueid",
    "--showbus",
    "--showmeminfo",
    "vram",
    "--showuse",
    "--showtemp",
    "--showdriverversion",
    "--showpids",
    "--json",
)

_TO_MB = {"B": 2**20, "KB": 2**10, "MB": 1, "GB": 1 / 2**10}


def parse_amd_smi(list_text: str, static_text: str, metric_text: str, process_text: str = "") -> tuple[Gpu, ...]:
    """The cards as amd-smi's four commands tell them; any but the first may be empty. Raises ValueError.

    ROCm 7 wraps the arrays that ROCm 6 printed bare; values are numbers, `{value, unit}` or "N/A".
    """
    cards = _by_gpu(list_text)
    if not cards:
        raise ValueError("amd-smi lists no card")
    static, metric, processes = (_by_gpu(text) if text else {} for text in (static_text, metric_text, process_text))
    return tuple(
        _amd_gpu(number, card, static.get(number, {}), metric.get(number, {}), processes.get(number, {}))
        for number, card in sorted(cards.items())
    )


def _by_gpu(text: str) -> dict[int, Mapping[str, Any]]:
    document = _json(text)
    rows = document.get("gpu_data", []) if isinstance(document, dict) else document
    return {row["gpu"]: row for row in rows if isinstance(row, dict) and isinstance(row.get("gpu"), int)}


def _amd_gpu(
    number: int,
    card: Mapping[str, Any],
    static: Mapping[str, Any],
    metric: Mapping[str, Any],
    processes: Mapping[str, Any],
) -> Gpu:
    total = _mb(_at(metric, "mem_usage", "total_vram")) or _mb(_at(static, "vram", "size"))
    used, free = _mb(_at(metric, "mem_usage", "used_vram")), _mb(_at(metric, "mem_usage", "free_vram"))
    if free is None and total is not None and used is not None:
        free = total - used
    temperatures = [_value(_at(metric, "temperature", sensor)) for sensor in ("hotspot", "edge")]
    node = _value(_at(static, "numa", "node"))
    return Gpu(
        vendor="amd",
        name=_word(_at(static, "asic", "market_name")) or "AMD GPU",
        vram_mb=total or 0,
        uuid=_word(card.get("uuid")),
        index=number,
        bus_id=bus_id(_word(card.get("bdf")) or _word(_at(static, "bus", "bdf")) or ""),
        driver=_word(_at(static, "driver", "version")) or _word(_at(static, "driver", "driver_version")) or "",
        vram_free_mb=free,
        utilisation_pct=_whole(_value(_at(metric, "usage", "gfx_activity"))),
        temperature_c=next((_whole(one) for one in temperatures if one is not None), None),
        numa_node=_whole(node) if node is not None and node >= 0 else None,
        ecc=_ecc(metric.get("ecc")),
        processes=tuple(_amd_processes(processes)),
        fault="" if total else "its memory cannot be read",
    )


def _ecc(found: object) -> Ecc | None:
    if not isinstance(found, dict):
        return None
    corrected, uncorrected = (_value(found.get(f"total_{kind}_count")) for kind in ("correctable", "uncorrectable"))
    if corrected is None and uncorrected is None:
        return None
    return Ecc(enabled=True, corrected=_whole(corrected), uncorrected=_whole(uncorrected))


def _amd_processes(row: Mapping[str, Any]) -> Iterator[GpuProcess]:
    for entry in row.get("process_list") or ():
        found = entry.get("process_info") if isinstance(entry, dict) else None
        if not isinstance(found, dict):  # a sentence: none are running
            continue
        pid = _value(found.get("pid"))
        used = _at(found, "memory_usage", "vram_mem")
        if pid is not None:
            yield GpuProcess(
                pid=int(pid),
                used_mb=_mb(used if used is not None else found.get("mem_usage")),
                name=_word(found.get("name")) or "",
            )


def parse_rocm_smi(text: str) -> tuple[Gpu, ...]:
    """The cards as rocm-smi tells them: all values are strings, and the spelling of keys differs between releases.

    It does not say on which card a process runs: with several cards processes are left out. Raises ValueError.
    """
    document = _json(text)
    if not isinstance(document, dict):
        raise ValueError("rocm-smi printed no object")  # noqa: TRY004  # about output, like every other error here
    cards = {key: value for key, value in document.items() if re.fullmatch(r"card\d+", key) and isinstance(value, dict)}
    system = {key.lower(): value for key, value in (document.get("system") or {}).items()}
    if not cards:
        raise ValueError("rocm-smi lists no card")
    found = tuple(
        _rocm_gpu(int(key[4:]), {name.lower(): value for name, value in card.items()}, system)
        for key, card in sorted(cards.items(), key=lambda item: int(item[0][4:]))
    )
    if len(found) == 1:
        return (replace(found[0], processes=tuple(_rocm_processes(system))),)
    return found


def _rocm_gpu(number: int, card: Mapping[str, Any], system: Mapping[str, Any]) -> Gpu:
    total, used = (_value(card.get(f"vram total {word}(b)")) for word in ("memory ", "used memory "))
    temperatures = [_value(card.get(f"temperature (sensor {sensor}) (c)")) for sensor in ("junction", "edge")]
    return Gpu(
        vendor="amd",
        name=_word(card.get("card series")) or _word(card.get("card model")) or "AMD GPU",
        vram_mb=int(total // 2**20) if total else 0,
        uuid=_word(card.get("unique id")),
        index=number,
        bus_id=bus_id(_word(card.get("pci bus")) or ""),
        driver=_word(system.get("driver version")) or "",
        vram_free_mb=int((total - used) // 2**20) if total and used is not None else None,
        utilisation_pct=_whole(_value(card.get("gpu use (%)"))),
        temperature_c=next((_whole(one) for one in temperatures if one is not None), None),
        fault="" if total else "its memory cannot be read",
    )


def _rocm_processes(system: Mapping[str, Any]) -> Iterator[GpuProcess]:
    """Entries like `"PID4711": "python3, 1, 2353860608, 11011, 0"`: name, cards, bytes of VRAM, SDMA, occupancy."""
    for key, value in system.items():
        parts = [part.strip() for part in str(value).split(",")]
        if re.fullmatch(r"pid\d+", key) and len(parts) >= 3:
            used = _value(parts[2])
            yield GpuProcess(pid=int(key[3:]), used_mb=None if used is None else int(used // 2**20), name=parts[0])


def _json(text: str) -> Any:
    """The document in a text that may begin with warnings."""
    start = re.search(r"^\s*[\[{]", text, re.MULTILINE)
    if start is None:
        raise ValueError(f"no JSON in: {text.strip()[:200] or 'empty output'}")
    return json.JSONDecoder().raw_decode(text[start.start() :].lstrip())[0]


def _at(document: object, *path: str) -> Any:
    for key in path:
        if not isinstance(document, dict):
            return None
        document = document.get(key)
    return document


def _value(found: object) -> float | None:
    if isinstance(found, dict):
        found = found.get("value")
    if isinstance(found, bool) or not isinstance(found, int | float | str):
        return None
    try:
        return float(found)
    except ValueError:
        return None


def _mb(found: object) -> int | None:
    """A size in MB, of a number with a unit; a bare one is taken for MB."""
    value = _value(found)
    if value is None:
        return None
    unit = found.get("unit", "MB") if isinstance(found, dict) else "MB"
    return int(value / _TO_MB.get(str(unit).upper(), 1))


def _word(found: object) -> str | None:
    text = str(found).strip() if isinstance(found, str | int) else ""
    return text if text and text not in ("N/A", "None") else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
