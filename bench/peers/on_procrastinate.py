"""Procrastinate on PostgreSQL. The worker imports this file too, for the tasks."""

import asyncio
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import psycopg
from driver import Contestant, read_stamp, stamp_program, tree, until
from procrastinate import App, PsycopgConnector, SyncPsycopgConnector
from services import postgres, version_of

app = App(connector=PsycopgConnector(conninfo=os.environ.get("BENCH_DSN", ""), min_size=2, max_size=6))
COMMAND = Path(sys.executable).parent / "procrastinate"


def note(path: str | None) -> None:
    if path:
        with Path(path).open("a") as file:
            file.write(f"{time.time_ns()}\n")


@app.task(name="external")
async def external() -> None:
    """One external no-op."""
    program = await asyncio.create_subprocess_exec("/usr/bin/true")
    await program.wait()


@app.task(name="stamp")
async def run_stamp(program: str, path: str) -> None:
    """The clock as the program reads and writes it."""
    run = await asyncio.create_subprocess_exec(program, path)
    await run.wait()


@app.task(name="noop")
async def noop(path: str | None = None) -> None:
    """Nothing; writes when it began."""
    note(path)


class Procrastinate(Contestant):
    settings = "PostgreSQL with fsync and synchronous_commit on; one worker, listen/notify on"

    def version(self) -> str:
        server = version_of(Path(os.environ["BENCH_POSTGRES_BIN"]) / "postgres")
        return f"Procrastinate {version('procrastinate')}, {server}"

    def start(self) -> None:
        self.number, self.stamp = 0, str(stamp_program(self.place.parent))
        self.server, dsn = postgres(self)
        os.environ["BENCH_DSN"] = dsn
        subprocess.run([COMMAND, "--app=on_procrastinate.app", "schema", "--apply"], cwd=Path(__file__).parent, check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        self.rows = psycopg.connect(dsn, autocommit=True)
        self.app = App(connector=SyncPsycopgConnector(conninfo=dsn))
        self.app.open()
        self.worker = self.start_worker()

    def start_worker(self) -> subprocess.Popen[bytes]:
        command = [COMMAND, "--app=on_procrastinate.app", "worker", f"--concurrency={self.slots}", "--delete-jobs=never"]
        return self.spawn(command, cwd=Path(__file__).parent)

    def parts(self) -> dict[str, list[int]]:
        return {"postgres": tree([self.server.pid]), "worker": tree([self.worker.pid])}

    def task(self, name: str):  # a procrastinate deferrer
        return self.app.configure_task(name, allow_unknown=True)

    def bulk(self, count: int) -> None:
        """One `batch_defer` for each thousand."""
        for begin in range(0, count, 1000):
            self.task("external").batch_defer(*[{}] * min(1000, count - begin))

    def singles(self, count: int) -> None:
        task = self.task("external")
        for _ in range(count):
            task.defer()

    def tasks(self, count: int) -> None:
        task = self.task("noop")
        for _ in range(count):
            task.defer()

    def wait(self) -> None:
        left = "select count(*) from procrastinate_jobs where status in ('todo', 'doing')"
        until(lambda: self.rows.execute(left).fetchone()[0] == 0, "all jobs", 300, 0.02)
        failed = self.rows.execute("select count(*) from procrastinate_jobs where status <> 'succeeded'").fetchone()[0]
        if failed:
            sys.exit(f"{failed} jobs failed")

    def program(self) -> tuple[float, float]:
        return self.ask("stamp", program=self.stamp)

    def function(self) -> tuple[float, float]:
        return self.ask("noop")

    def ask(self, name: str, **more: str) -> tuple[float, float]:
        """Defer one and poll for its end; its time is in the file that it writes."""
        self.number += 1
        path = self.place / f"stamp-{self.number}"
        job = self.task(name).defer(path=str(path), **more)
        state = "select status from procrastinate_jobs where id = %s"
        until(lambda: self.rows.execute(state, (job,)).fetchone()[0] == "succeeded", "the job", every_s=0.001)
        return read_stamp(path), time.time()

    def cold(self) -> float:
        self.end(self.worker)
        self.number += 1
        path = self.place / f"stamp-{self.number}"
        self.task("noop").defer(path=str(path))
        began = time.time()
        self.worker = self.start_worker()
        return read_stamp(path) - began

    def close(self) -> None:
        if hasattr(self, "app"):
            self.app.close()
            self.rows.close()
