"""The bench's own machinery: a tiny run of the product alone gives every figure, tells them, and leaves nothing behind."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = ["--peers", "none", "--rounds", "1", "--jobs", "20", "--tasks", "10", "--latency", "3", "--idle", "0.2", "--cold", "1"]


def bench(results, *more):
    """Run it; what it printed."""
    command = [sys.executable, ROOT / "bench" / "run.py", *TINY, "--results", results, *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("cc") is None, reason="bench/stamp.c needs a C compiler")
def test_a_tiny_run(tmp_path):
    places = set((ROOT / "var" / "bench").glob("run-*"))
    shown = bench(tmp_path, "--only", "q1,q2,q3,q5")
    (turn,) = json.loads((tmp_path / "latest.json").read_text())["turns"]
    figures = turn["figures"]
    assert set(figures) == {"bulk", "singles", "tasks", "program", "function", "footprint", "cold"}
    for name in ("bulk", "singles", "tasks"):
        assert figures[name]["jobs_per_s"] > 0
        assert {"coordinator", "node", "keeper", "client"} <= set(figures[name]["cpu_ms"])
    for name in ("program", "function"):
        assert 0 < figures[name]["started_p50_ms"] <= figures[name]["result_p50_ms"]
    assert all(figures["footprint"][part]["pss_mb"] > 1 for part in ("coordinator", "node", "keeper"))
    assert figures["cold"]["s"] > 0
    assert "| Q5 | coordinator, PSS MB |" in shown
    assert (tmp_path / "latest.md").read_text().strip() in shown
    assert "<svg" in (tmp_path / "latest.svg").read_text()
    assert set((ROOT / "var" / "bench").glob("run-*")) <= places
    ours = [one.pid for one in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(one.info["cmdline"] or [])]
    assert not ours
    again = bench(tmp_path, "--only", "q1,q2,q3,q5", "--resume")
    assert "[1/1]" not in again  # the turn was taken before
    assert json.loads((tmp_path / "latest.json").read_text())["turns"] == [turn]


def test_a_strange_word_is_refused(tmp_path):
    command = [sys.executable, ROOT / "bench" / "run.py", "--only", "q77", "--results", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "q77 is none of q1, q2" in done.stderr
