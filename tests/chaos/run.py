"""One chaos run: `python -m tests.chaos.run --seed 7 --jobs 2000`. Real processes, faults by the seed, and the checker at the end.

The directory of a run that failed is kept, with all that was recorded; the command that replays it is printed.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from . import census
from .client import OVER, Clients, Watcher
from .faults import inject
from .records import Record, now
from .schedule import KINDS, NODES, Fault, schedule
from .workload import Submission, workload
from .world import World, able

PATIENCE_S = 90.0
SWEEP_S = 30.0
WHOLE = 600  # jobs of which also logs and artifacts are read through the API; the tables are looked at for all of them


def duration_of(jobs: int) -> float:
    """How long faults go on, in seconds: long enough that the jobs are not over before."""
    return 30.0 + 0.04 * jobs if jobs <= 2000 else 110.0 + 0.02 * (jobs - 2000)


async def run(
    place: Path,
    *,
    seed: int,
    jobs: int,
    duration_s: float,
    abilities: set[str],
    planted: str | None,
    only: Collection[str],
    every_s: float,
) -> None:
    """Everything but the check."""
    boxed = shutil.which("bwrap") is not None
    faults = schedule(seed, duration_s, able=abilities, only=only, every_s=every_s)
    submissions = workload(seed, jobs, duration_s, boxed=boxed)
    _write_plan(place, seed, jobs, duration_s, abilities, faults, submissions)
    world = World(place, able=abilities, jobs=jobs, planted=planted)
    applied, history, watched = (Record(place / f"{name}.jsonl") for name in ("faults", "history", "watched"))
    try:
        await world.start()
        began = now()
        history.write(op="run", event="begun")
        async with world.client() as http, world.client() as eyes:
            clients = Clients(http, history, seed=seed, place=place)
            watcher = asyncio.create_task(Watcher(eyes, watched, clients).run())
            submitting = asyncio.create_task(clients.run(submissions, began))
            try:
                await _make_trouble(world, faults, began, applied)
                history.write(op="run", event="healed")
                await submitting
                stuck = await _settle(world, http, clients, PATIENCE_S + jobs * 0.15)
                history.write(op="run", event="settled", stuck=stuck)
                watcher.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watcher
                await _read_all(http, clients, place)
                found = {"settled": await asyncio.to_thread(census.take, world)}
            finally:
                for task in (watcher, submitting):
                    task.cancel()
                await asyncio.gather(watcher, submitting, return_exceptions=True)
        before = await world.ready()
        for daemon in world.daemons.values():  # one sweep more: nothing of what is over may stay
            await daemon.stop()
            daemon.start()
        await world.ready(unlike=before)
        found["swept"] = await _swept(world)
        found["codes"] = await world.stop()
        found["after"] = await asyncio.to_thread(census.take, world)
        if world.database is not None:
            await asyncio.to_thread(world.database.copy, place / "tables.db")
        found["mounts"] = sorted(census.mounts(place))
        found["starts"] = {one.name: one.starts for one in (*world.coordinators.values(), *world.daemons.values())}
        (place / "census.json").write_text(json.dumps(found, indent=1))
    finally:
        world.clear()
        for one in (applied, history, watched):
            one.close()
        await asyncio.to_thread(world.keep_evidence)


async def _make_trouble(world: World, faults: Sequence[Fault], began: float, record: Record) -> None:
    async def one(fault: Fault) -> None:
        await asyncio.sleep(max(0.0, began + fault.at - now()))
        await inject(world, fault, record)

    async with asyncio.TaskGroup() as group:
        for fault in faults:
            group.create_task(one(fault))


async def _settle(world: World, http: httpx.AsyncClient, clients: Clients, patience_s: float) -> list[str]:
    """Wait until all that was acknowledged is over and the nodes have nothing left to deliver; answers what is not."""
    left = list(clients.acknowledged)
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        left = [job_id for job_id in left if job_id not in clients.over]
        for job_id in left[:200]:
            with contextlib.suppress(httpx.HTTPError, ValueError):
                answer = await http.get(f"/jobs/{job_id}")
                if answer.status_code == 404 or answer.json().get("state") in OVER:
                    clients.over.add(job_id)  # one that is gone is for the checker to find
        undelivered = [job for node in NODES for job in _undelivered(world, node)]
        if not left and not undelivered:
            return []
        await asyncio.sleep(0.3)
    return [*left, *undelivered]


def _undelivered(world: World, node: str) -> list[str]:
    """What a node still has, by its own journal."""
    file = world.state(node) / "journal.db"
    try:
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=1)) as db:
            return [f"{node}: {job}/{attempt}" for job, attempt in db.execute("SELECT job_id, attempt FROM attempts")]
    except sqlite3.Error as exc:
        return [f"{node}: {exc}"]


async def _read_all(http: httpx.AsyncClient, clients: Clients, place: Path) -> None:
    """What the API says of everything that was acknowledged."""
    gate = asyncio.Semaphore(8)
    record = Record(place / "served.jsonl")

    async def one(job_id: str, *, whole: bool) -> None:
        async with gate:
            answer = await _get(http, f"/jobs/{job_id}")
            if answer.status_code != 200:
                record.write(job_id=job_id, status=answer.status_code)
                return
            view = answer.json()
            logs, files = {}, {}
            for stream in ("stdout", "stderr") if whole else ():
                answer = await _get(http, f"/jobs/{job_id}/logs", params={"stream": stream})
                logs[stream] = [answer.status_code, _digest(answer.content), len(answer.content)]
            for artifact in (view.get("artifacts") or ()) if whole else ():
                answer = await _get(http, f"/jobs/{job_id}/artifacts/{artifact['path']}")
                files[artifact["path"]] = [answer.status_code, _digest(answer.content), len(answer.content)]
            record.write(
                job_id=job_id, status=200, state=view["state"], attempt=view["attempt"], tries=view["tries"],
                failure=(view.get("failure") or {}).get("code"), whole=whole, logs=logs, artifacts=files,
            )  # fmt: skip

    every = 1 + len(clients.acknowledged) // WHOLE
    await asyncio.gather(*(one(job_id, whole=not number % every) for number, job_id in enumerate(clients.acknowledged)))
    record.close()


async def _get(http: httpx.AsyncClient, path: str, **params: Any) -> httpx.Response:
    """As any client does: again where a connection ended."""
    for _ in range(20):
        with contextlib.suppress(httpx.HTTPError):
            answer = await http.get(path, **params)
            if answer.status_code < 500:
                return answer
        await asyncio.sleep(0.25)
    return httpx.Response(599)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def _swept(world: World) -> dict[str, list[str]]:
    """The workspaces that are left after the sweeper had its turn."""
    deadline = time.monotonic() + SWEEP_S
    while True:
        left = census.workspaces(world)
        if not any(left.values()) or time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.5)


def _write_plan(
    place: Path,
    seed: int,
    jobs: int,
    duration_s: float,
    abilities: set[str],
    faults: Sequence[Fault],
    submissions: Sequence[Submission],
) -> None:
    with (place / "plan.jsonl").open("w") as file:
        for one in submissions:
            file.write(json.dumps(asdict(one)) + "\n")
    with (place / "schedule.jsonl").open("w") as file:
        for fault in faults:
            file.write(json.dumps(asdict(fault)) + "\n")
    facts = {"seed": seed, "jobs": jobs, "duration_s": duration_s, "able": sorted(abilities)}
    (place / "run.json").write_text(json.dumps(facts))


def check(place: Path) -> subprocess.CompletedProcess[str]:
    """The checker, as the program of its own that it is."""
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-m", "tests.chaos.check", str(place)], cwd=root, text=True, capture_output=True, check=False
    )


def main(arguments: Sequence[str]) -> int:
    """0: everything is proven. 1: the checker found something, or the run did not come to its end."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.run", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument(
        "--duration", type=float, metavar="S", help="how long faults go on; by the number of jobs where it is not said"
    )
    parser.add_argument("--every", type=float, default=2.5, metavar="S", help="from one fault to the next, on average")
    parser.add_argument("--only", default="", metavar="KIND,…", help="these kinds of faults alone")
    parser.add_argument("--store", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--replicas", type=int, choices=(1, 2), default=1, help="coordinators on one PostgreSQL")
    parser.add_argument("--planted", metavar="BUG", help="a coordinator with this bug, which the checker must find")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work there, and keep it")
    given = parser.parse_args(arguments)
    only = [kind for kind in given.only.split(",") if kind]
    if strange := set(only) - set(KINDS):
        parser.error(f"--only: no such kind: {', '.join(sorted(strange))}; there are {', '.join(sorted(KINDS))}")
    if given.jobs < 1:
        parser.error("--jobs: must be 1 or more")
    if given.replicas > 1 and given.store != "postgresql":
        parser.error("--replicas 2 needs --store postgresql")
    place = given.keep or Path(tempfile.mkdtemp(prefix=f"ostler-chaos-{given.seed}-"))
    place.mkdir(parents=True, exist_ok=True)
    duration_s = given.duration or duration_of(given.jobs)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # both take away processes and disks
    began = time.monotonic()
    print(f"seed {given.seed}: {given.jobs} jobs, faults for {duration_s:g} s, in {place}", flush=True)
    try:
        asyncio.run(
            run(
                place, seed=given.seed, jobs=given.jobs, duration_s=duration_s, abilities=able(given.store, given.replicas),
                planted=given.planted, only=only, every_s=given.every,
            )
        )  # fmt: skip
        done = check(place)
        print(done.stdout + done.stderr, end="")
        proven = done.returncode == 0
    except KeyboardInterrupt:
        print(f"seed {given.seed}: interrupted; what was seen until then is in {place}")
        return 130
    except Exception:
        traceback.print_exc()
        proven = False
    faults = len((place / "schedule.jsonl").read_text().splitlines())
    words = "proven" if proven else f"FAILED; kept in {place}; replay: python -m tests.chaos.run {shlex.join(arguments)}"
    print(f"seed {given.seed}: {faults} faults, {time.monotonic() - began:.0f} s; {words}")
    if proven and given.keep is None:
        shutil.rmtree(place, ignore_errors=True)
    return int(not proven)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
