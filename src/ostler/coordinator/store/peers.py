"""Coordinators that share a database: what one publishes wakes all, and each duty is one's at a time.

Wake-ups go as notifications of the server, outside of any transaction: a transaction that notifies would hold all others' commits up
while its own is synced. So one can be lost with the process that owed it. Each coordinator numbers what it tells and says a second
later that it is still there; whoever finds a gap, or hears nothing of one any more, wakes everyone who waits here, once. A wake-up
carries nothing and does no harm. While there is no connection to listen on, that is done every second.
"""

import logging
import secrets
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import psycopg

from ostler.coordinator.store.locks import Lock, key_of
from ostler.coordinator.store.wakeups import Topic, Wakeups
from ostler.model.errors import OstlerError
from ostler.runtime.outage import Outage

CHANNEL = "ostler"
BEAT_S = 1.0
GONE_S = 3.5  # of silence: another coordinator is not there any more
HUNG = "10s"  # a process that stands still for so long loses its duties
MAX_BYTES = 7900  # of one notification; the server takes 8000
MAX_PIECES = 8  # for one beat's wishes; more of them become one that wakes everybody
EVERYTHING = "*"
FAREWELL = "."
_TOPICS = list[list[str | int]]


class SharedDuty:
    """A duty that is ours while the connection stands on which its lock was taken."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.key = key_of(Lock.DUTY, zlib.crc32(name.encode()))
        self.held = False
        self.changed: Callable[[], None] = lambda: None

    def set(self, *, held: bool) -> None:
        """From any thread."""
        if held is not self.held:
            self.held = held
            self.changed()


@dataclass(slots=True)
class _Peer:
    heard: float
    number: int


class Peers:
    """This process among the others. Two threads, each with a connection of its own: one listens, one speaks and holds the duties."""

    def __init__(
        self,
        connect: Callable[[], "psycopg.Connection[Any]"],
        wakeups: Wakeups,
        *,
        cut_silent: Callable[["psycopg.Connection[Any]"], int],
        logger: logging.Logger,
    ) -> None:
        """`cut_silent` ends this process's sessions whose answer never comes (`store.silent`)."""
        self.me = secrets.token_hex(6)
        self.listening = False
        self._connect, self._wakeups, self._cut_silent, self._logger = connect, wakeups, cut_silent, logger
        self._outage = Outage("peers_unreachable", "peers_reached", monotonic=time.monotonic, logger=logger)
        self._some = threading.Condition()
        self._topics: set[Topic] = set()
        self._all = True  # whoever was there before us may have published while nobody listened here
        self._number = 0
        self._closing = False
        self._duties: list[SharedDuty] = []
        self._others: dict[str, _Peer] = {}
        self._threads = [
            threading.Thread(target=act, name=f"store-{name}", daemon=True)
            for name, act in (("listener", self._listen), ("speaker", self._speak))
        ]
        for thread in self._threads:
            thread.start()

    def announce(self, topics: Iterable[Topic]) -> None:
        """Wake those who wait for these at other coordinators; from any thread."""
        if not self._others:  # whoever comes later begins by looking at everything
            return
        with self._some:
            self._topics.update(topics)
            self._some.notify()

    def seek(self, name: str) -> SharedDuty:
        """A duty, to be taken as soon as nobody else has it, and whenever that is so again."""
        duty = SharedDuty(name)
        with self._some:
            self._duties.append(duty)
            self._some.notify()
        return duty

    def close(self) -> None:
        """Give up the duties, end the threads."""
        with self._some:
            self._closing = True
            self._some.notify()
        for thread in self._threads:
            thread.join()

    # --- speaking and holding ---

    def _speak(self) -> None:
        connection: psycopg.Connection[Any] | None = None
        beat_at = 0.0
        while True:
            with self._some:
                if not (self._topics or self._closing or self._all):
                    self._some.wait(max(0.0, beat_at - time.monotonic()))
                closing = self._closing
                topics, self._topics = self._topics, set()
                everything, self._all = self._all, False
            if closing and connection is None:
                return
            try:
                if connection is None:
                    connection = self._connect()
                    # A process that is stopped keeps its connection: then the server ends it.
                    connection.execute(f"SET idle_session_timeout = '{HUNG}'")
                self._tell(connection, topics, everything=everything, beat=time.monotonic() >= beat_at)
                self._outage.over()
                if closing:
                    self._notify(connection, FAREWELL)  # which also wakes our own listener
                    break
                if time.monotonic() >= beat_at:
                    self._hold(connection)
                    if count := self._cut_silent(connection):
                        self._logger.warning("silent_sessions_cut", extra={"attrs": {"count": count}})
                    beat_at = time.monotonic() + BEAT_S
            except (psycopg.Error, OstlerError) as exc:
                self._lose(exc)
                if connection is not None:
                    connection.close()
                connection, self._all = None, True
                self._pause()
        for duty in self._duties:
            duty.set(held=False)
        connection.close()

    def _pause(self) -> None:
        with self._some:
            if not self._closing:
                self._some.wait(BEAT_S)

    def _tell(self, connection: "psycopg.Connection[Any]", topics: set[Topic], *, everything: bool, beat: bool) -> None:
        pieces = [EVERYTHING] if everything else _pieces(topics)
        if len(pieces) > MAX_PIECES:
            pieces = [EVERYTHING]
        for piece in pieces:
            self._number += 1
            self._notify(connection, piece)
        if beat and not pieces:
            self._notify(connection, "")

    def _notify(self, connection: "psycopg.Connection[Any]", piece: str) -> None:
        connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, f"{self.me} {self._number} {piece}"))

    def _hold(self, connection: "psycopg.Connection[Any]") -> None:
        """Try for the duties that are not ours. Those that are need no asking: they are as long as the connection is."""
        for duty in list(self._duties):
            if not duty.held:
                row = connection.execute("SELECT pg_try_advisory_lock(%s)", (duty.key,)).fetchone()
                if row is not None and row[0]:
                    self._logger.info("duty_taken", extra={"attrs": {"duty": duty.name}})
                    duty.set(held=True)

    def _lose(self, exc: BaseException) -> None:
        held = [duty.name for duty in self._duties if duty.held]
        for duty in self._duties:
            duty.set(held=False)
        self._outage.failed(error=str(exc), duties_lost=held)

    # --- listening ---

    def _listen(self) -> None:
        connection: psycopg.Connection[Any] | None = None
        while not self._closing:
            try:
                if connection is None:
                    connection = self._connect()
                    connection.execute(f"LISTEN {CHANNEL}")
                    self.listening = True
                    self._wakeups.stir()  # what was told while nobody listened here
                for notification in connection.notifies(timeout=BEAT_S, stop_after=1):
                    self._hear(notification.payload)
                self._miss()
            except (psycopg.Error, OstlerError):
                self.listening = False
                if connection is not None:
                    connection.close()
                connection = None
                self._wakeups.stir()
                self._pause()
        if connection is not None:
            connection.close()

    def _hear(self, payload: str) -> None:
        try:
            name, number, piece = payload.split(" ", 2)
            told = int(number)
            topics: list[Topic] = [tuple(topic) for topic in msgspec.json.decode(piece, type=_TOPICS)] if piece[:1] == "[" else []
        except ValueError as exc:  # msgspec's errors are such, too
            # Whoever may connect may notify, and a newer release may have more to say.
            self._logger.warning("peer_not_understood", extra={"attrs": {"said": payload[:100], "error": str(exc)}})
            self._wakeups.stir()
            return
        if name == self.me:
            return
        if piece == FAREWELL:
            self._others.pop(name, None)
            return
        known = self._others.get(name)
        self._others[name] = _Peer(time.monotonic(), told)
        if known is None:
            self._logger.info("peer_found", extra={"attrs": {"peer": name}})
            with self._some:  # it may have begun to wait for what was published before we knew of it
                self._all = True
                self._some.notify()
        if known is None or piece == EVERYTHING or told > known.number + (1 if piece else 0):
            self._wakeups.stir()
        elif topics:
            self._wakeups.publish_from_afar(topics)

    def _miss(self) -> None:
        """One that is gone may have owed us a word."""
        now = time.monotonic()
        for name in [name for name, peer in self._others.items() if now - peer.heard > GONE_S]:
            del self._others[name]
            self._logger.warning("peer_gone", extra={"attrs": {"peer": name}})
            self._wakeups.stir()


def _pieces(topics: set[Topic]) -> list[str]:
    """The topics as JSON lists, none longer than a notification may be."""
    pieces: list[str] = []
    size, some = MAX_BYTES, list[bytes]()
    for topic in topics:
        text = msgspec.json.encode(topic)
        if size + len(text) + 1 > MAX_BYTES and some:
            pieces.append(f"[{b','.join(some).decode()}]")
            some = []
        size = (size if some else 2 + 32) + len(text) + 1
        some.append(text)
    if some:
        pieces.append(f"[{b','.join(some).decode()}]")
    return pieces
