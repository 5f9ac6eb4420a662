"""HyperQueue through its Python bindings: server and worker are threads of one process, and nothing is on disk (they offer no journal).

The bindings look once a second whether jobs are over, so the end is taken from the tasks: they run in the order in which they were
submitted, and the last few write the clock. What it gains by that is below a thousandth of the run.
"""

import contextlib
import sys
import time
from importlib.metadata import version
from pathlib import Path

import hyperqueue.client
from driver import Contestant, read_stamp, stamp_program, tree, until
from hyperqueue import Client, Job, LocalCluster
from hyperqueue.cluster import WorkerConfig

hyperqueue.client.create_progress_callback = lambda: lambda jobs: None
LAST = 20
STAMP = 20  # bytes of one line
QUIET = {"stdout": None, "stderr": None}


def serve(place: Path, slots: int) -> None:
    """The cluster in a process of its own, until it is ended."""
    cluster = LocalCluster(server_dir=str(place / "server"), worker_config=WorkerConfig(cores=slots))
    (place / "ready.new").write_text(str(cluster.cluster.server_dir))
    (place / "ready.new").rename(place / "ready")
    while True:
        time.sleep(3600)


class HyperQueue(Contestant):
    settings = "in memory alone: no journal; tasks without output; server and worker are one process"

    def version(self) -> str:
        return f"HyperQueue {version('hyperqueue')}"

    def start(self) -> None:
        self.number, self.stamp = 0, stamp_program(self.place.parent)
        self.start_cluster()

    def start_cluster(self) -> None:
        (self.place / "ready").unlink(missing_ok=True)
        self.cluster = self.spawn([sys.executable, __file__, str(self.place), str(self.slots)])
        until((self.place / "ready").exists, "the cluster", every_s=0.001)
        self.client = Client((self.place / "ready").read_text())

    def parts(self) -> dict[str, list[int]]:
        return {"server and worker": tree([self.cluster.pid])}

    def words(self, number: int, count: int) -> list[str]:
        return ["/usr/bin/true"] if number < count - LAST else [str(self.stamp), str(self.stamps)]

    def open_stamps(self, count: int) -> None:
        self.number += 1
        self.stamps, self.stamped = self.place / f"stamps-{self.number}", min(count, LAST)

    def bulk(self, count: int) -> None:
        """One job with a task for each."""
        self.open_stamps(count)
        job = Job(max_fails=0)
        for number in range(count):
            job.program(self.words(number, count), **QUIET)
        self.open = [self.client.submit(job)]

    def singles(self, count: int) -> None:
        self.open_stamps(count)
        self.open = [self.submit(self.words(number, count)) for number in range(count)]

    def submit(self, words: list[str]) -> object:
        job = Job()
        job.program(words, **QUIET)
        return self.client.submit(job)

    def wait(self) -> None:
        def over() -> bool:
            with contextlib.suppress(FileNotFoundError):
                return self.stamps.stat().st_size >= STAMP * self.stamped
            return False

        until(over, "the last tasks", 300, 0.002)

    def program(self) -> tuple[float, float]:
        """The result is seen by a second task, which depends on the first: quicker than the bindings' own wait."""
        self.number += 1
        first, second = self.place / f"first-{self.number}", self.place / f"second-{self.number}"
        job = Job()
        before = job.program([str(self.stamp), str(first)], **QUIET)
        job.program([str(self.stamp), str(second)], deps=[before], **QUIET)
        self.client.submit(job)
        return read_stamp(first), read_stamp(second)

    def cold(self) -> float:
        """Server and worker together; no job can wait for them, as nothing is kept."""
        self.end(self.cluster)
        began = time.time()
        self.start_cluster()
        self.number += 1
        self.submit([str(self.stamp), str(self.place / f"cold-{self.number}")])
        return read_stamp(self.place / f"cold-{self.number}") - began


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
