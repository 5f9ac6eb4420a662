"""Says that it began, waits for a file, and says that it ended."""

import os
import time
from pathlib import Path

from ostler.task import job_id, output_dir


def run(marks, go):
    with (Path(marks) / f"{job_id()}.begun").open("a") as file:
        file.write(f"{os.getpid()}\n")
    print("begun", flush=True)
    while not Path(go).exists():
        time.sleep(0.02)
    (output_dir() / "out.txt").write_text(job_id())
    with (Path(marks) / f"{job_id()}.ended").open("a") as file:
        file.write(f"{os.getpid()}\n")
    print("over")
