"""Dask distributed: a scheduler and one worker of two threads, as separate processes."""

import itertools
import subprocess
import sys
import time
from pathlib import Path

import distributed
from distributed import Client, wait
from driver import Contestant, stamp_program, tree, until
from services import answers, free_port


def external(_: int) -> float:
    """One external no-op; answers when it began."""
    began = time.time()
    subprocess.run(["/usr/bin/true"], check=True)
    return began


def stamp(_: int, program: str) -> float:
    """The clock as the program reads it."""
    return int(subprocess.run([program], check=True, stdout=subprocess.PIPE).stdout) / 1e9


def noop(_: int) -> float:
    """Nothing; answers when it began."""
    return time.time()


class Dask(Contestant):
    settings = "in memory alone; one worker process of two threads with its nanny"

    def version(self) -> str:
        return f"Dask {distributed.__version__}"

    def start(self) -> None:
        self.stamp, self.numbers = str(stamp_program(self.place.parent)), itertools.count()
        port = free_port()
        self.address = f"tcp://127.0.0.1:{port}"
        more = ["--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
        self.scheduler = self.spawn([Path(sys.executable).parent / "dask", "scheduler", *more], cwd=self.place)
        until(lambda: answers(port), "the scheduler")
        self.client = Client(self.address)
        self.worker = self.start_worker()
        self.client.wait_for_workers(1, timeout=60)

    def start_worker(self) -> subprocess.Popen[bytes]:
        more = ["--nworkers", "1", "--nthreads", str(self.slots), "--no-dashboard", "--local-directory", str(self.place)]
        return self.spawn([Path(sys.executable).parent / "dask", "worker", self.address, *more], cwd=self.place)

    def parts(self) -> dict[str, list[int]]:
        return {"scheduler": tree([self.scheduler.pid]), "worker": tree([self.worker.pid])}

    def some(self, count: int) -> list[int]:
        return list(itertools.islice(self.numbers, count))

    def bulk(self, count: int) -> None:
        """One `map`."""
        self.open = self.client.map(external, self.some(count), pure=False)

    def singles(self, count: int) -> None:
        self.open = [self.client.submit(external, number, pure=False) for number in self.some(count)]

    def tasks(self, count: int) -> None:
        self.open = self.client.map(noop, self.some(count), pure=False)

    def wait(self) -> None:
        wait(self.open, timeout=300)
        self.client.gather(self.open[-1:])

    def program(self) -> tuple[float, float]:
        return self.client.submit(stamp, next(self.numbers), self.stamp, pure=False).result(30), time.time()

    def function(self) -> tuple[float, float]:
        return self.client.submit(noop, next(self.numbers), pure=False).result(30), time.time()

    def cold(self) -> float:
        self.open = []
        self.end(self.worker)
        waiting, began = self.client.submit(noop, next(self.numbers), pure=False), time.time()
        self.worker = self.start_worker()
        return waiting.result(60) - began

    def close(self) -> None:
        if hasattr(self, "client"):
            self.client.close(timeout=5)
