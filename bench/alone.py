"""What is measured of the product alone, by scripts that also run by themselves: their figures in the bench's table."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from driver import Contestant

import ostler

HERE = Path(__file__).parent
PAGES = "list"
ROUNDS = 10


class Million(Contestant):
    """`million.py`: a coordinator with many jobs queued beside one with a thousand."""

    settings = "two coordinators on SQLite; the calls of a node and of a person, in turn"

    def version(self) -> str:
        return ostler.__version__

    def start(self) -> None:
        """Nothing: the script starts what it measures."""

    def parts(self) -> dict[str, list[int]]:
        return {}

    def wait(self) -> None:
        """Nothing is left running."""

    def million(self, queued: int) -> dict[str, Any]:
        """How much dearer a claim is than with a thousand queued (CPU), and the slowest page of a list in ms."""
        report = self.place / "million.json"
        words = [
            f"--queued={queued}",
            f"--finished={queued // 10}",
            f"--rounds={ROUNDS}",
            f"--data={self.place}",
            f"--json={report}",
        ]
        subprocess.run([sys.executable, HERE / "million.py", *words], check=True, stdout=subprocess.DEVNULL)
        told = json.loads(report.read_text())
        steps = told["steps"]
        few, many = (one["cpu_ms"] for one in steps["pull: claim 4"])
        pages = {name: both[1]["wall_ms"] for name, both in steps.items() if name.startswith(PAGES) and "count" not in name}
        return {
            "queued": queued, "submit_per_s": told["big_submit_per_s"], "claim_ratio": many / few, "claim_cpu_ms": many / 4,
            "slowest_page_ms": max(pages.values()), "slowest_page": max(pages, key=pages.__getitem__),
            "explain_ms": steps["explain"][1]["wall_ms"], "cancel_ms": steps["cancel 1"][1]["wall_ms"], "pss_mb": told["pss_mb"][1],
        }  # fmt: skip
