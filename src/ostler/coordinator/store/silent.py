"""Sessions whose answer never comes: what stands between lost it, and keeps the connection.

A server that is gone is noticed by the kernel, and one that works may take its time. But a proxy, or a firewall that was reloaded, can
keep a connection open on which nothing will ever come. Whoever waits there would wait for ever, a writer with the coordinator's duties
in its hands. So the server is asked, on another connection: a session that waits for us while we wait for it is cut.
"""

import contextlib
import os
import socket
import threading
import time
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg.pq import TransactionStatus

SILENT_S = 10.0  # of waiting for each other
_NOT_THEIRS = "SELECT pid FROM pg_stat_activity WHERE pid = ANY(%s) AND state NOT LIKE 'idle%%'"
_Connection = psycopg.Connection[Any]


class Sessions:
    """The connections of this process. `add` is for any thread, `cut_silent` for one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pids: WeakKeyDictionary[_Connection, int] = WeakKeyDictionary()
        self._since: WeakKeyDictionary[_Connection, float] = WeakKeyDictionary()

    def add(self, connection: _Connection, pid: int) -> None:
        """One more, and its process at the server."""
        with self._lock:
            self._pids[connection] = pid

    def cut_silent(self, by: _Connection) -> int:
        """Ask the server, `by` this connection, and end those that waited for nothing all the time; how many."""
        with self._lock:
            waiting = {one: pid for one, pid in self._pids.items() if one is not by and _waits(one)}
        busy: set[int] = set()
        if waiting:
            busy = {pid for (pid,) in by.execute(_NOT_THEIRS, [[*waiting.values()]])}
        now, count = time.monotonic(), 0
        before, self._since = self._since, WeakKeyDictionary()
        for one, pid in waiting.items():
            if pid in busy or not _waits(one):
                continue
            self._since[one] = before.get(one, now)
            if now - self._since[one] >= SILENT_S:
                count += 1
                _cut(one)
        return count


def _waits(connection: _Connection) -> bool:
    """Whether something was asked and not answered yet."""
    return not connection.closed and connection.pgconn.transaction_status == TransactionStatus.ACTIVE


def _cut(connection: _Connection) -> None:
    """The thread that waits there finds its connection lost, as when a server ends it."""
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)
