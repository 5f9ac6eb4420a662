"""Celery on Redis. The worker imports this file too, for the tasks."""

import os
import subprocess
import sys
import time
from pathlib import Path

from celery import Celery, __version__
from driver import Contestant, stamp_program, tree
from services import redis, version_of

app = Celery("bench", broker=os.environ.get("BENCH_BROKER"), backend=os.environ.get("BENCH_BROKER"))
app.conf.update(
    task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True
)


@app.task
def external() -> float:
    """One external no-op; answers when it began."""
    began = time.time()
    subprocess.run(["/usr/bin/true"], check=True)
    return began


@app.task
def stamp(program: str) -> float:
    """The clock as the program reads it."""
    return int(subprocess.run([program], check=True, stdout=subprocess.PIPE).stdout) / 1e9


@app.task
def noop() -> float:
    """Nothing; answers when it began."""
    return time.time()


class CeleryRedis(Contestant):
    fsync = "everysec"

    @property
    def settings(self) -> str:
        return f"Redis append-only, appendfsync {self.fsync}; acks_late, prefetch 1, prefork of {self.slots}; results in Redis"

    def version(self) -> str:
        return f"Celery {__version__}, {version_of(os.environ['BENCH_REDIS_SERVER'])}"

    def start(self) -> None:
        self.stamp = str(stamp_program(self.place.parent))
        self.broker, url = redis(self, self.fsync)
        os.environ["BENCH_BROKER"] = url
        app.conf.update(broker_url=url, result_backend=url)
        self.worker = self.start_worker()
        noop.delay().get(timeout=60)

    def start_worker(self) -> subprocess.Popen[bytes]:
        command = [Path(sys.executable).parent / "celery", "-A", "on_celery", "worker", "-c", str(self.slots), "-l", "WARNING"]
        return self.spawn([*command, "--without-gossip", "--without-mingle"], cwd=Path(__file__).parent)

    def parts(self) -> dict[str, list[int]]:
        return {"broker": [self.broker.pid], "worker": tree([self.worker.pid])}

    def singles(self, count: int) -> None:
        self.open = [external.delay() for _ in range(count)]

    def tasks(self, count: int) -> None:
        self.open = [noop.delay() for _ in range(count)]

    def wait(self) -> None:
        for one in self.open:
            one.get(timeout=300)

    def program(self) -> tuple[float, float]:
        return stamp.delay(self.stamp).get(timeout=30), time.time()

    def function(self) -> tuple[float, float]:
        return noop.delay().get(timeout=30), time.time()

    def cold(self) -> float:
        self.end(self.worker)
        waiting, began = noop.delay(), time.time()
        self.worker = self.start_worker()
        return waiting.get(timeout=60) - began


class Always(CeleryRedis):
    fsync = "always"
