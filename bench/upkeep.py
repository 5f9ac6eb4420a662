"""What it takes to copy, back up, prove and restore a database of many jobs: seconds, CPU seconds and memory of each command.

bench/upkeep.py [--jobs 100000] [--data DIR]     four fifths of the jobs are over, with two kilobytes of log each
"""

import argparse
import asyncio
import json
import logging
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench")]

import million  # noqa: E402 - of this folder

import postgres  # noqa: E402 - the tests' server
from ostler.coordinator.keys import open_keys  # noqa: E402
from ostler.coordinator.store.store import Store  # noqa: E402

OSTLER = Path(sys.executable).parent / "ostler"
LOG = b"a line of a log that was printed by a job\n" * 50


def print_logs(tx):
    """Each attempt that is over has printed something."""
    rows = tx.rows("SELECT job_seq, attempt FROM attempts WHERE state = 'done'")
    tx.many(
        "INSERT INTO log_chunks (job_seq, attempt, stream, start, size, data) VALUES (?, ?, 'stdout', 0, ?, ?)",
        [(*row, len(LOG), LOG) for row in rows],
    )


async def fill(data, count):
    """The database; what stands there already is used as it is."""
    if (data / "ostler.db").exists():
        return
    open_keys(data / "keys")
    await million.fill(data, count // 5, count * 4 // 5)
    store = Store.open(data / "ostler.db", logger=logging.getLogger("bench"))
    await store.write(print_logs)
    store.close()
    for number in range(1000):  # artifacts, as the artifact store has them
        name = secrets.token_hex(32)
        place = data / "artifacts" / "objects" / name[:2] / name[2:]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(number.to_bytes(4, "big") * 4096)


def run(title, *arguments):
    """One command; prints what it took."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen([OSTLER, *map(str, arguments), "--json"], stdout=out, env=os.environ)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        took = time.perf_counter() - began
        if process.returncode:
            sys.exit(f"{title} ended with {process.returncode}")
        out.seek(0)
        answer = json.load(out)
    cpu = usage.ru_utime + usage.ru_stime
    print(f"| {title} | {took:.1f} | {cpu:.1f} | {usage.ru_maxrss / 1024:.0f} |", flush=True)
    return answer


def main():
    """See the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ostler-upkeep-", dir=ROOT / "var" if (ROOT / "var").exists() else None) as place:
        room = Path(place)
        data = (given.data or room / "data").absolute()
        asyncio.run(fill(data, given.jobs))
        size = (data / "ostler.db").stat().st_size
        server = postgres.Server(durable=True)
        try:
            url = server.url(server.create())
            print("| | s | CPU s | MiB |\n|---|---|---|---|")
            told = run("copy to PostgreSQL", "db", "copy", "--from", data / "ostler.db", "--to", url)
            run("copy back to SQLite", "db", "copy", "--from", url, "--to", room / "back.db")
        finally:
            server.close()
        run("backup", "backup", "create", room / "backups", "--data", data)
        run("the next one", "backup", "create", room / "backups", "--data", data)
        run("verify", "backup", "verify", room / "backups")
        run("restore", "restore", room / "backups", "--data", room / "restored")
        rows = sum(one["rows"] for one in told["tables"].values())
        print(f"\n{told['tables']['jobs']['rows']} jobs, {rows} rows, {size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
