"""SAQ on Redis. The worker imports this file too, for the functions."""

import asyncio
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from driver import Contestant, stamp_program, tree
from saq import Queue
from services import redis, version_of

AT_ONCE = 16  # its client is asynchronous: so many enqueues are open at a time
COMMAND = Path(sys.executable).parent / "saq"


async def external(_: object) -> float:
    """One external no-op; answers when it began."""
    began = time.time()
    program = await asyncio.create_subprocess_exec("/usr/bin/true")
    await program.wait()
    return began


async def stamp(_: object, *, program: str) -> float:
    """The clock as the program reads it."""
    run = await asyncio.create_subprocess_exec(program, stdout=subprocess.PIPE)
    return int((await run.communicate())[0]) / 1e9


async def noop(_: object) -> float:
    """Nothing; answers when it began."""
    return time.time()


if "BENCH_SLOTS" in os.environ:  # in the worker
    worker = {
        "queue": Queue.from_url(os.environ["BENCH_BROKER"]), "functions": [external, stamp, noop],
        "concurrency": int(os.environ["BENCH_SLOTS"]),
    }  # fmt: skip


class Saq(Contestant):
    settings = f"Redis append-only, appendfsync everysec; asyncio worker; {AT_ONCE} enqueues at a time"

    def version(self) -> str:
        return f"SAQ {version('saq')}, {version_of(os.environ['BENCH_REDIS_SERVER'])}"

    def start(self) -> None:
        self.stamp = str(stamp_program(self.place.parent))
        self.loop = asyncio.new_event_loop()
        self.broker, self.url = redis(self, "everysec")
        self.queue = Queue.from_url(self.url)
        self.loop.run_until_complete(self.queue.connect())
        self.worker = self.start_worker()

    def start_worker(self) -> subprocess.Popen[bytes]:
        env = {**os.environ, "BENCH_BROKER": self.url, "BENCH_SLOTS": str(self.slots)}
        return self.spawn([COMMAND, "on_saq.worker", "--quiet"], cwd=Path(__file__).parent, env=env)

    def parts(self) -> dict[str, list[int]]:
        return {"broker": [self.broker.pid], "worker": tree([self.worker.pid])}

    async def enqueue(self, name: str, count: int) -> None:
        room = asyncio.Semaphore(AT_ONCE)

        async def one() -> None:
            async with room:
                self.last = await self.queue.enqueue(name, ttl=3600, timeout=0)

        await asyncio.gather(*(one() for _ in range(count)))

    def singles(self, count: int) -> None:
        self.loop.run_until_complete(self.enqueue("external", count))

    def tasks(self, count: int) -> None:
        self.loop.run_until_complete(self.enqueue("noop", count))

    def wait(self) -> None:
        async def over() -> None:
            while await self.queue.count("queued") or await self.queue.count("active"):  # noqa: ASYNC110  (another process works)
                await asyncio.sleep(0.02)
            await self.last.refresh()
            if self.last.status != "complete":
                sys.exit(f"the last job is {self.last.status}")

        self.loop.run_until_complete(asyncio.wait_for(over(), 300))

    async def ask(self, name: str, **more: str) -> float:
        """Enqueue one and poll for its result: the queue's own `apply` takes a second."""
        job = await self.queue.enqueue(name, ttl=3600, timeout=0, **more)
        while job.result is None:
            await asyncio.sleep(0.0005)
            await job.refresh()
        return job.result

    def program(self) -> tuple[float, float]:
        return self.loop.run_until_complete(asyncio.wait_for(self.ask("stamp", program=self.stamp), 30)), time.time()

    def function(self) -> tuple[float, float]:
        return self.loop.run_until_complete(asyncio.wait_for(self.ask("noop"), 30)), time.time()

    def close(self) -> None:
        if hasattr(self, "queue"):
            self.loop.run_until_complete(self.queue.disconnect())
            self.loop.close()
