"""RQ on Redis: a pool of workers that fork for each job. The workers import this file too, for the functions."""

import os
import subprocess
import sys
import time
from pathlib import Path

import rq
from driver import Contestant, stamp_program, tree, until
from redis import Redis
from services import redis, version_of


def external() -> float:
    """One external no-op; answers when it began."""
    began = time.time()
    subprocess.run(["/usr/bin/true"], check=True)
    return began


def stamp(program: str) -> float:
    """The clock as the program reads it."""
    return int(subprocess.run([program], check=True, stdout=subprocess.PIPE).stdout) / 1e9


def noop() -> float:
    """Nothing; answers when it began."""
    return time.time()


class Rq(Contestant):
    settings = "Redis append-only, appendfsync everysec; worker-pool; a fork for each job"
    share = 0.2

    def version(self) -> str:
        return f"RQ {rq.__version__}, {version_of(os.environ['BENCH_REDIS_SERVER'])}"

    def start(self) -> None:
        self.stamp = str(stamp_program(self.place.parent))
        self.broker, self.url = redis(self, "everysec")
        self.queue = rq.Queue(connection=Redis.from_url(self.url))
        self.given = 0
        self.worker = self.start_worker()

    def start_worker(self) -> subprocess.Popen[bytes]:
        command = [Path(sys.executable).parent / "rq", "worker-pool", "-n", str(self.slots), "-q", "-u", self.url]
        return self.spawn(command, cwd=Path(__file__).parent)

    def parts(self) -> dict[str, list[int]]:
        return {"broker": [self.broker.pid], "worker": tree([self.worker.pid])}

    def enqueue(self, function, count: int) -> None:
        for _ in range(count):
            self.queue.enqueue(function, result_ttl=3600)
        self.given += count

    def bulk(self, count: int) -> None:
        """`enqueue_many`, a thousand at a time."""
        for begin in range(0, count, 1000):
            wanted = [self.queue.prepare_data(external, result_ttl=3600) for _ in range(min(1000, count - begin))]
            self.queue.enqueue_many(wanted)
        self.given += count

    def singles(self, count: int) -> None:
        self.enqueue(external, count)

    def tasks(self, count: int) -> None:
        self.enqueue(noop, count)

    def wait(self) -> None:
        done = self.queue.finished_job_registry
        until(lambda: done.get_job_count(cleanup=False) == self.given, "all jobs", 300, 0.02)

    def ask(self, function, *args: str) -> float:
        self.given += 1
        return self.queue.enqueue(function, *args, result_ttl=3600).latest_result(timeout=30).return_value

    def program(self) -> tuple[float, float]:
        return self.ask(stamp, self.stamp), time.time()

    def function(self) -> tuple[float, float]:
        return self.ask(noop), time.time()

    def cold(self) -> float:
        self.end(self.worker)
        waiting, began = self.queue.enqueue(noop, result_ttl=3600), time.time()
        self.given += 1
        self.worker = self.start_worker()
        return waiting.latest_result(timeout=60).return_value - began
