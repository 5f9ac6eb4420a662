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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from . import census
from .client import OVER, Clients, Watcher
from .faults import inject
from .records import Record, now
from .schedule import KINDS, NODES, Fault, outage, schedule
from .workload import Submission, workload
from .world import HASTY, World, able

PATIENCE_S = 90.0
SWEEP_S = 30.0
OUTAGE_LEASE_S = 45.0  # the lease of a coordinator whose configuration does not say
WHOLE = 600  # jobs of which also logs and artifacts are read through the API; the tables are looked at for all of them


def duration_of(jobs: int) -> float:
    """How long faults go on, in seconds: long enough that the jobs are not over before."""
    return 30.0 + 0.04 * jobs if jobs <= 2000 else 110.0 + 0.02 * (jobs - 2000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One run, decided before it begins. With `longest_stall_s`, nobody may stand still for so long: coordinators keep their own
    settings, and each fault waits until they are there again.
    """

    seed: int
    jobs: int
    duration_s: float
    able: frozenset[str]
    faults: Sequence[Fault]
    submissions: Sequence[Submission]
    longest_stall_s: float | None = None

    def write(self, place: Path) -> None:
        """For replays and for the checker."""
        for name, items in (("plan", self.submissions), ("schedule", self.faults)):
            (place / f"{name}.jsonl").write_text("".join(json.dumps(asdict(one)) + "\n" for one in items))
        facts = {"seed": self.seed, "jobs": self.jobs, "duration_s": self.duration_s, "able": sorted(self.able)}
        (place / "run.json").write_text(json.dumps(facts | {"longest_stall_s": self.longest_stall_s}))


def ordered(given: argparse.Namespace) -> Order:
    """What the command line asks for, as far as this machine can do it."""
    abilities = able(given.store, given.replicas)
    duration_s = given.duration or duration_of(given.jobs)
    only = [kind for kind in given.only.split(",") if kind]
    faults = schedule(given.seed, duration_s, able=abilities, only=only, every_s=given.every)
    submissions = workload(given.seed, given.jobs, duration_s, boxed=shutil.which("bwrap") is not None)
    longest: float | None = None
    if given.outage:
        faults, longest = outage(duration_s), OUTAGE_LEASE_S
        submissions = workload(given.seed, given.jobs, duration_s, only=("instant",))
    return Order(
        seed=given.seed, jobs=given.jobs, duration_s=duration_s, able=frozenset(abilities), faults=faults,
        submissions=submissions, longest_stall_s=longest,
    )  # fmt: skip


async def run(place: Path, order: Order, planted: str | None) -> None:
    """Everything but the check."""
    faults, submissions, seed, jobs = order.faults, order.submissions, order.seed, order.jobs
    order.write(place)
    steady = order.longest_stall_s is not None
    world = World(place, able=order.able, jobs=jobs, planted=planted, settings={} if steady else HASTY)
    applied, history, watched = (Record(place / f"{name}.jsonl") for name in ("faults", "history", "watched"))
    try:
        await world.start()
        began = now()
        history.write(op="run", event="begun")
        async with world.people() as http, world.client() as eyes:
            clients = Clients(http, history, seed=seed, place=place)
            watcher = asyncio.create_task(Watcher(eyes, watched, clients).run())
            submitting = asyncio.create_task(clients.run(submissions, began))
            try:
                await _make_trouble(world, faults, began, applied, steady=steady)
                history.write(op="run", event="healed")
                async with asyncio.timeout(PATIENCE_S + jobs * 0.15):
                    await submitting
                stuck = await _settle(world, http, clients)
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


async def _make_trouble(world: World, faults: Sequence[Fault], began: float, record: Record, *, steady: bool) -> None:
    async def one(fault: Fault) -> None:
        await asyncio.sleep(max(0.0, began + fault.at - now()))
        if steady:
            await world.whole()
        await inject(world, fault, record)

    async with asyncio.TaskGroup() as group:
        for fault in faults:
            group.create_task(one(fault))


async def _settle(world: World, http: httpx.AsyncClient, clients: Clients) -> list[str]:
    """Wait until all that was acknowledged is over and the nodes have nothing left to deliver; answers what is not, once nothing of it
    has moved for a long time. A slow machine may take as long as it likes.
    """
    left: list[str] = [*clients.acknowledged]
    before = ([""], time.monotonic())
    while True:
        left = [job_id for job_id in left if job_id not in clients.over]
        for job_id in left[:200]:
            with contextlib.suppress(httpx.HTTPError, ValueError):
                answer = await http.get(f"/jobs/{job_id}")
                if answer.status_code == 404 or answer.json().get("state") in OVER:
                    clients.over.add(job_id)  # one that is gone is for the checker to find
        waiting = [*left, *(job for node in NODES for job in _undelivered(world, node))]
        if not waiting:
            return []
        if waiting != before[0]:
            before = (waiting, time.monotonic())
        elif time.monotonic() > before[1] + PATIENCE_S:
            return waiting
        await asyncio.sleep(0.3)


def _undelivered(world: World, node: str) -> list[str]:
    """What a node still has, by its own journal."""
    file = world.state(node) / "journal.db"
    try:
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=1)) as db:
            return [f"{node}: {job}/{attempt}" for job, attempt in db.execute("SELECT job_id, attempt FROM attempts")]
    except sqlite3.Error as exc:
        return [f"{node}: {exc}"]


async def _read_all(http: httpx.AsyncClient, clients: Clients, place: Path) -> None:
    """What the API says of everything that was acknowledged: of all of it in lists, of some with logs and artifacts."""
    gate = asyncio.Semaphore(8)
    record = Record(place / "served.jsonl")

    def note(job_id: str, view: dict[str, Any], **more: Any) -> None:
        record.write(
            job_id=job_id, status=200, state=view["state"], attempt=view["attempt"], tries=view["tries"],
            failure=(view.get("failure") or {}).get("code"), **more,
        )  # fmt: skip

    async def whole(job_id: str) -> None:
        async with gate:
            answer = await _get(http, f"/jobs/{job_id}")
            if answer.status_code != 200:
                record.write(job_id=job_id, status=answer.status_code)
                return
            view = answer.json()
            logs, files = {}, {}
            for stream in ("stdout", "stderr"):
                answer = await _get(http, f"/jobs/{job_id}/logs", params={"stream": stream})
                logs[stream] = [answer.status_code, _digest(answer.content), len(answer.content)]
            for artifact in view.get("artifacts") or ():
                answer = await _get(http, f"/jobs/{job_id}/artifacts/{artifact['path']}")
                files[artifact["path"]] = [answer.status_code, _digest(answer.content), len(answer.content)]
            note(job_id, view, whole=True, logs=logs, artifacts=files)

    every = 1 + len(clients.acknowledged) // WHOLE
    looked_at = set(clients.acknowledged[::every])
    listed, cursor = dict[str, dict[str, Any]](), None
    while True:
        page = (await _get(http, "/jobs", params={"limit": 500, **({"cursor": cursor} if cursor else {})})).json()
        listed |= {view["job_id"]: view for view in page["items"]}
        cursor = page["next_cursor"]
        if cursor is None:
            break
    for job_id in clients.acknowledged:
        if job_id in looked_at:
            continue
        if job_id in listed:
            note(job_id, listed[job_id], whole=False)
        else:
            record.write(job_id=job_id, status=404)
    await asyncio.gather(*map(whole, looked_at))
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
    parser.add_argument(
        "--outage", action="store_true", help="two kills of a replica and two of the database, and nobody may stall for a lease"
    )
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
    if given.outage and given.replicas < 2:
        parser.error("--outage needs --store postgresql --replicas 2")
    place = given.keep or Path(tempfile.mkdtemp(prefix=f"ostler-chaos-{given.seed}-"))
    place.mkdir(parents=True, exist_ok=True)
    order = ordered(given)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # both take away processes and disks
    began = time.monotonic()
    print(f"seed {given.seed}: {given.jobs} jobs, faults for {order.duration_s:g} s, in {place}", flush=True)
    try:
        asyncio.run(run(place, order, given.planted))
        done = check(place)
        print(done.stdout + done.stderr, end="")
        proven = done.returncode == 0
    except KeyboardInterrupt:
        print(f"seed {given.seed}: interrupted; what was seen until then is in {place}")
        return 130
    except Exception:
        traceback.print_exc()
        proven = False
    words = "proven" if proven else f"FAILED; kept in {place}; replay: python -m tests.chaos.run {shlex.join(arguments)}"
    print(f"seed {given.seed}: {len(order.faults)} faults, {time.monotonic() - began:.0f} s; {words}")
    if proven and given.keep is None:
        shutil.rmtree(place, ignore_errors=True)
    return int(not proven)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
