"""The PostgreSQL of a run: a server of its own that can be made to fall, and a copy of all its rows for the checker."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import sys
import time
from pathlib import Path

import psycopg

sys.path.append(str(Path(__file__).parents[1]))  # this package is run as a program, too
from postgres import Missing, Server

NAME = "ostler"
START_S = 60.0


class Database:
    """One server, durable as in real life. Methods block."""

    def __init__(self) -> None:
        self._server = Server(durable=True, tcp=True)
        self._server.execute(f"CREATE ROLE {NAME} LOGIN PASSWORD '{NAME}'", f"CREATE DATABASE {NAME} OWNER {NAME}")
        self.port = self._server.port
        self.busy = asyncio.Lock()

    def start(self) -> None:
        """Start it again; what an earlier life left running keeps it from that for a moment."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                return self._server.start()
            except Missing:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def crash(self) -> None:
        """Without a checkpoint."""
        self._server.crash()

    def kill(self) -> None:
        """kill -9 of all its processes."""
        process = self._server._process
        if process is not None:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for pid in (process.pid, *map(int, children)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
            self._server._process = None

    def copy(self, path: Path) -> None:
        """All rows of all tables, under the same names, into an SQLite file."""
        with psycopg.connect(self._server.url(NAME)) as source, contextlib.closing(sqlite3.connect(path)) as sink:
            names = source.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            for (table,) in names:
                cursor = source.execute(f'SELECT * FROM "{table}"')
                columns = [one.name for one in cursor.description or ()]
                quoted = ", ".join(f'"{one}"' for one in columns)
                sink.execute(f'CREATE TABLE "{table}" ({quoted})')
                holes = ", ".join("?" * len(columns))
                sink.executemany(f'INSERT INTO "{table}" VALUES ({holes})', cursor)
            sink.commit()

    def close(self) -> None:
        """End it, and remove its files."""
        self._server.close()
