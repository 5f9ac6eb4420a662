"""`make bench`: product and peers in turns on one machine; table, plot and verdicts. bench/README.md says what is measured."""

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import environment
import report
from driver import adopt_orphans, end_descendants

RESULTS = environment.ROOT / "bench" / "results"
LIMIT_S = 900  # of one turn


@dataclass(frozen=True)
class Entry:
    """One contestant: its name in the table, its class, what it needs beside Python packages, and which figures are taken of it."""

    name: str
    target: str
    needs: tuple[str, ...] = ()
    section: str = "systems"


OSTLER = Entry("ostler", "product:Ostler")
SANDBOXED = Entry("ostler in bubblewrap", "product:Sandboxed", section="sandbox")
MILLION = Entry("a million queued", "alone:Million", section="alone")
NODES = Entry("ten thousand nodes", "fleets:Simulated", section="alone")
REPLICAS = tuple(
    Entry(name, f"fleets:{kind}", ("postgres",), section="replicas")
    for name, kind in (
        ("one coordinator", "OneReplica"), ("two coordinators", "TwoReplicas"), ("one, held", "OneHeld"), ("two, held", "TwoHeld"),
    )
)  # fmt: skip
PEERS = (
    Entry("hyperqueue", "on_hyperqueue:HyperQueue"),
    Entry("procrastinate", "on_procrastinate:Procrastinate", ("postgres",)),
    Entry("celery", "on_celery:CeleryRedis", ("redis",)),
    Entry("celery-always", "on_celery:Always", ("redis",)),
    Entry("saq", "on_saq:Saq", ("redis",)),
    Entry("rq", "on_rq:Rq", ("redis",)),
    Entry("dask", "on_dask:Dask"),
)
QUICK_PEERS = ("hyperqueue", "procrastinate", "celery", "saq")
QUICK = ["q1", "q2", "q3", "q4", "q5"]
# Which figures answer which target of the product.
FIGURES = {"q1": ("bulk", "singles"), "q2": ("program", "function"), "q3": ("tasks",), "q5": ("footprint", "cold")}
ROUNDS_OF_REPLICAS = 2
LAST_ROUND = ("footprint", "cold")


@dataclass(frozen=True)
class Turn:
    """One contestant measured once."""

    round: int
    entry: Entry
    figures: dict[str, float]

    @property
    def key(self) -> str:
        """The same turn of an earlier run that is resumed."""
        return json.dumps([self.round, self.entry.name, self.figures])


def amounts(args: argparse.Namespace) -> dict[str, float]:
    """How much of each figure: jobs, or seconds for the footprint, or repetitions for the cold start."""
    return {
        "bulk": args.jobs, "singles": args.jobs // 2, "tasks": args.tasks, "program": args.latency,
        "function": args.latency, "footprint": args.idle, "cold": args.cold,
    }  # fmt: skip


def schedule(args: argparse.Namespace) -> list[Turn]:
    """All turns in order; each round begins with another contestant, so that no one is always first after a pause."""
    entries = [OSTLER, *(one for one in PEERS if one.name in args.peers)]
    size = amounts(args)
    wanted = [name for question, names in FIGURES.items() if question in args.only for name in names]
    turns = []
    for number in range(1, args.rounds + 1):
        figures = {name: size[name] for name in size if name in wanted and (name not in LAST_ROUND or number == args.rounds)}
        shift = (number - 1) % len(entries)
        if figures:
            turns += [Turn(number, one, figures) for one in entries[shift:] + entries[:shift]]
        if "q9" in args.only and number <= ROUNDS_OF_REPLICAS:
            turns += [Turn(number, one, {"jobs": args.jobs}) for one in REPLICAS]
        if number == args.rounds and "q8" in args.only:
            turns.append(Turn(number, NODES, {"nodes": args.nodes}))
        if number == args.rounds and "q7" in args.only:
            turns.append(Turn(number, MILLION, {"million": args.queued}))
        if "q4" in args.only:
            turns.append(Turn(number, SANDBOXED, {"bulk": args.jobs // 4, "program": args.latency // 2}))
    return turns


def others_cpu_s() -> float:
    """CPU seconds of the whole machine, less those of this run's processes that ended."""
    user, nice, system, _, _, irq, soft, steal = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    whole = (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
    return whole - sum(one.ru_utime + one.ru_stime for one in own)


class Runner:
    """Takes turns, one process each, and keeps what they say."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.missing: dict[str, str] = {}
        environment.PLACE.mkdir(parents=True, exist_ok=True)
        # On the disk of the checkout, and removed only when all is measured: ext4 passes over inodes that were freed in the last
        # minutes, one by one, which makes each new file cost up to 0.4 ms and measures the last turn, not this one.
        self.place = Path(tempfile.mkdtemp(prefix="run-", dir=environment.PLACE))
        self.place.chmod(0o711)
        self.count = 0

    def take(self, turn: Turn) -> dict:
        """Measure; what went wrong is data too."""
        row = {"key": turn.key, "round": turn.round, "name": turn.entry.name, "section": turn.entry.section}
        if turn.entry.name in self.missing:
            return row | {"missing": self.missing[turn.entry.name]}
        try:
            env = environment.environment(turn.entry.needs)
            python = environment.python_of_peers() if turn.entry.target.startswith("on_") else Path(sys.executable)
        except environment.Missing as exc:
            self.missing[turn.entry.name] = str(exc)
            print(f"not to be had: {exc}", flush=True)
            return row | {"missing": str(exc)}
        self.count += 1
        plan = {"place": str(self.place / f"{self.count}-{turn.entry.name.replace(' ', '-')}"), "slots": self.args.slots}
        os.sync()  # nobody pays for what another one left unwritten
        others, begin = others_cpu_s(), time.monotonic()
        process = subprocess.Popen(
            [python, "-m", "turn", turn.entry.target, json.dumps(plan | {"figures": turn.figures})],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=env, start_new_session=True,
        )  # fmt: skip
        try:
            out, _ = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            process.terminate()
            out, _ = process.communicate(timeout=60)
        finally:
            end_descendants()  # also what a turn that was killed left behind
        wall = time.monotonic() - begin
        row |= {"wall_s": wall, "others_cores": max(others_cpu_s() - others, 0) / wall}
        return row | (
            json.loads(out) if process.returncode == 0 else {"failed": f"exit {process.returncode}; its words are above"}
        )

    def close(self) -> None:
        """End what lives, and only now remove files."""
        end_descendants()
        shutil.rmtree(self.place, ignore_errors=True)


def arguments() -> argparse.Namespace:
    """What the command line says; `--quick` changes the defaults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer jobs, rounds and peers: under three minutes")
    parser.add_argument("--only", default="", help="targets, as q1,q4 (default: all)")
    parser.add_argument("--peers", help=f"of {', '.join(one.name for one in PEERS)}; or none")
    parser.add_argument("--rounds", type=int, help="turns of each contestant; medians count (3, quick 2)")
    parser.add_argument("--jobs", type=int, help="external no-ops in bulk, half as many one by one (2000, quick 600)")
    parser.add_argument("--tasks", type=int, help="Python no-ops (4000, quick 1000)")
    parser.add_argument("--latency", type=int, help="jobs of the latency run (100, quick 40)")
    parser.add_argument("--idle", type=float, help="seconds of the idle measurement (15, quick 5)")
    parser.add_argument("--cold", type=int, help="cold starts (5, quick 1)")
    parser.add_argument("--queued", type=int, default=1_000_000, help="jobs queued for q7 (1000000)")
    parser.add_argument("--nodes", type=int, default=10_000, help="simulated nodes for q8 (10000)")
    parser.add_argument("--slots", type=int, default=2, help="slots of the worker, of each system the same (2)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the tables go (bench/results)")
    parser.add_argument("--resume", action="store_true", help="go on with the turns of a run that was interrupted")
    args = parser.parse_args()
    whole = {"rounds": 3, "jobs": 2000, "tasks": 4000, "latency": 100, "idle": 15.0, "cold": 5}
    quick = {"rounds": 2, "jobs": 600, "tasks": 1000, "latency": 40, "idle": 5.0, "cold": 1}
    for name, value in (quick if args.quick else whole).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    known = sorted([*FIGURES, "q4", "q7", "q8", "q9"])
    args.only = [one.strip() for one in args.only.lower().split(",") if one.strip()] or (QUICK if args.quick else known)
    peers = args.peers.split(",") if args.peers is not None else QUICK_PEERS if args.quick else [one.name for one in PEERS]
    args.peers = [] if list(peers) == ["none"] else list(peers)
    for what, given, possible in (("--only", args.only, known), ("--peers", args.peers, [one.name for one in PEERS])):
        if strange := set(given) - set(possible):
            parser.error(f"{what}: {', '.join(sorted(strange))} is none of {', '.join(possible)}")
    return args


def interrupted(_: int, __: FrameType | None) -> None:
    """SIGTERM ends as Ctrl-C does: what was measured is told, what was started is ended."""
    raise KeyboardInterrupt


def main() -> None:
    """Measure and tell."""
    args = arguments()
    signal.signal(signal.SIGTERM, interrupted)
    adopt_orphans()
    args.results.mkdir(parents=True, exist_ok=True)
    log = args.results / "turns.jsonl"
    rows = {row["key"]: row for row in map(json.loads, log.read_text().splitlines())} if args.resume and log.exists() else {}
    log.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    turns, begin = schedule(args), time.monotonic()
    runner = Runner(args)
    try:
        for number, turn in enumerate(turns, 1):
            if turn.key in rows:
                continue
            print(f"[{number}/{len(turns)}] round {turn.round} {turn.entry.name}: ", end="", flush=True)
            row = rows[turn.key] = runner.take(turn)
            print(f"({row.get('wall_s', 0):.0f} s)", flush=True)
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
    except KeyboardInterrupt:
        print("\ninterrupted; `--resume` goes on from here", flush=True)
    finally:
        runner.close()
    chosen = [rows[turn.key] for turn in turns if turn.key in rows]
    print(
        report.write(args.results, chosen, {"slots": args.slots, "minutes": (time.monotonic() - begin) / 60}, environment.PLACE)
    )


if __name__ == "__main__":
    main()
