"""What a run writes down as it goes: JSON lines with the seconds since boot, the clock that jobs read, too."""

import json
import time
from pathlib import Path
from typing import Any


def now() -> float:
    """Seconds since boot; no fault of ours can step this clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Record:
    """One file of lines."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def write(self, **facts: Any) -> None:
        """Append one line."""
        self._file.write(json.dumps({"t": round(now(), 3), **facts}) + "\n")

    def close(self) -> None:
        """Nothing more comes."""
        self._file.close()
