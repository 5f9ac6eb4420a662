"""A short run with a fixed seed, and runs in which a planted bug must be found. `make chaos` makes the long ones."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(900)

THERE, PROMISED = "acknowledged jobs are there once", "what nodes were promised stands"
BELONG, TRUE, WHOLE = "executions belong to attempts", "outcomes are true", "logs are whole"


def chaos(place, *words):
    command = [sys.executable, "-m", "tests.chaos.run", "--keep", str(place), *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.xdist_group("chaos")
def test_a_short_run_is_proven(tmp_path):
    done = chaos(tmp_path, "--seed", 20, "--jobs", 200, "--duration", 25, "--every", 1.5)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "proven" in done.stdout


@pytest.mark.xdist_group("chaos")
@pytest.mark.parametrize(
    ("bug", "broken", "seeds", "words"),
    [
        pytest.param(
            "no-fencing",
            {PROMISED, TRUE},
            (2, 1, 3),  # it shows where an attempt that was given up answers while the next one runs: many jobs, many faults
            ("--only", "stop_daemon_long,partition_long", "--jobs", 400, "--every", 2.5, "--duration", 30),
            marks=pytest.mark.long,
        ),
        (
            "early-answers",
            {THERE, PROMISED, BELONG},
            (1, 2, 3),
            ("--only", "kill_coordinator", "--jobs", 150, "--every", 2, "--duration", 18),
        ),
        pytest.param(
            "log-offsets",
            {WHOLE},
            (1, 2, 3),
            ("--only", "lose_answers", "--jobs", 120, "--every", 0.7, "--duration", 15),
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_planted_bug_is_found(tmp_path, bug, broken, seeds, words):
    said = []
    for seed in seeds:
        done = chaos(tmp_path / str(seed), "--seed", seed, "--planted", bug, *words)
        said.append(done.stdout + done.stderr)
        if done.returncode == 1 and any(f"VIOLATED  {rule}:" in done.stdout for rule in broken):
            return
    pytest.fail("\n".join(said))
