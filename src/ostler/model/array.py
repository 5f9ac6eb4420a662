"""Arrays: one manifest becomes a group of jobs that differ in their number."""

from collections.abc import Mapping
from typing import Any

PLACE = "{index}"


def child(manifest: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The manifest of job `index` of an array, both as plain JSON; the array's is good (`manifest.problems`).

    PLACE becomes the number in `args`, the strings of `params`, the `url`, `job`, `path` and `name` of inputs, `artifacts[].path`
    and `stdout`: what a program reads, and where it finds and leaves its files. Elsewhere it stays, and so do keys.
    """
    found = {key: _filled(value, index) if key in {"args", "params", "stdout"} else value for key, value in manifest.items()}
    count = found.pop("array")
    if found.get("job_id") is not None:
        found["job_id"] = child_id(found["job_id"], index)
    if "input" in found:
        # The other fields of an input are digests and sizes, where PLACE cannot stand.
        found["input"] = {
            key: _filled(value, index) if key in {"urls", "files", "artifacts"} else value
            for key, value in found["input"].items()
        }
    if "artifacts" in found:
        found["artifacts"] = [{**one, "path": _filled(one["path"], index)} for one in found["artifacts"]]
    return {**found, "array_index": index, "array_count": count}


def child_id(group_id: str, index: int) -> str:
    """The id of one job of an array."""
    return f"{group_id}-{index}"


def _filled(value: Any, index: int) -> Any:
    if isinstance(value, str):
        return value.replace(PLACE, str(index))
    if isinstance(value, list):
        return [_filled(one, index) for one in value]
    if isinstance(value, dict):
        return {key: _filled(one, index) for key, one in value.items()}
    return value
