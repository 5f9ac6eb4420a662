"""What the node says of itself to its own machine: `/healthz`, `/metrics`, and on the unix socket drain, resume and its
attempts."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from ostler import __version__
from ostler.model.attempt import AttemptState
from ostler.node.attempts import AttemptTable, Live
from ostler.node.counts import Counts
from ostler.node.http_door import Reply, Request
from ostler.node.identity import Identity
from ostler.node.loops.heart import Vitals
from ostler.node.readiness import Readiness
from ostler.node.session import Session
from ostler.protocol import codec
from ostler.protocol import messages as m
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop


@dataclass(frozen=True, slots=True)
class Watch:
    """A loop and how long it may be silent: twice its interval, and never less than `least_s`."""

    loop: Loop
    least_s: float = 60.0

    def overdue(self, now: float) -> float | None:
        """Seconds since it turned, where that is too long."""
        silent = now - self.loop.turned_at
        return silent if silent > max(2 * self.loop.interval_s, self.least_s) else None


class Health:
    """The verdict over the daemon, derived anew at each question."""

    def __init__(
        self,
        session: Session,
        *,
        identity: Identity,
        table: AttemptTable,
        readiness: Readiness,
        vitals: Vitals,
        counts: Counts,
        machine_id: Callable[[], str],
        drain: Callable[[float | None], None],
        resume: Callable[[], None],
        self_check: Callable[[], str],
        release: str | None,
        clock: Clock,
    ) -> None:
        self._session = session
        self._identity = identity
        self._table = table
        self._readiness = readiness
        self._vitals = vitals
        self._counts = counts
        self._machine_id = machine_id
        self._drain = drain
        self._resume = resume
        self._self_check = self_check
        self._release = release
        self._clock = clock
        self._began = clock.monotonic()
        self.watches: Sequence[Watch] = ()

    def stalled(self) -> list[str]:
        """The loops that do not turn: only a restart mends that."""
        now = self._clock.monotonic()
        return [
            f"the loop {watch.loop.name} has not turned for {silent:.0f} s"
            for watch in self.watches
            if (silent := watch.overdue(now)) is not None
        ]

    def troubles(self) -> list[str]:
        """Everything that makes the daemon unhealthy."""
        now = self._clock.monotonic()
        found = self.stalled()
        allowed = 2 * self._session.terms.heartbeat_s
        last = self._session.contact_at
        if self._session.barred:
            found.append(self._session.barred)  # and is asked for seldom, so that the last contact says nothing
        elif last is None and now - self._began > allowed:
            found.append(f"there was no contact with {self._session.address.base_url} yet")
        elif last is not None and now - last > allowed:
            found.append(f"the last contact with {self._session.address.base_url} is {now - last:.0f} s ago")
        if (word := self._self_check()).startswith("failed"):
            found.append(f"self-check {word}")
        return found

    def report(self) -> tuple[bool, dict[str, object]]:
        """Whether it is well, and the payload of `/healthz`."""
        now = self._clock.monotonic()
        troubles = self.troubles()
        load = self._vitals.load
        last = self._session.contact_at
        status = "unhealthy" if troubles else "draining" if self._readiness.draining else "ok"
        return not troubles, {
            "status": status,
            "version": __version__,
            "release": self._release,
            "protocol": m.PROTOCOL,
            "outside_window": self._session.outside,
            "enrolled": not self._session.unknown,
            "retired": self._session.retired,
            "node_id": self._identity.node_id,
            "machine_id": self._machine_id(),
            "active_vps": 0,
            "running": len(self._table.working()),
            "queued": len(self._table.offered()) + len(self._table.waiting()),
            "cpu_load": load.cpu_load if load else 0.0,
            "vram_free": load.vram_free_mb if load else 0,
            "uptime_seconds": round(now - self._began, 1),
            "active_sessions": 0,
            "memory_usage_mb": _memory_mb(),
            "last_heartbeat": None if last is None else self._at(last, now),
            "session": self._session.is_open,
            "last_contact_s": None if last is None else round(now - last, 1),
            "self_check": self._self_check(),
            "undelivered": len(self._table.over()),
            "draining": self._readiness.refusal,
            "problems": [*troubles, *self._vitals.health],
        }

    async def serve(self, request: Request) -> Reply:
        """The door that anybody on this machine may use."""
        if request.method not in {"GET", "HEAD"}:
            return _error(405, "only GET here; drain and resume are on the node's unix socket")
        match request.path:
            case "/healthz" | "/health":
                well, payload = self.report()
                return Reply(200 if well else 503, codec.encode(payload))
            case "/metrics":
                return Reply(200, self._metrics(), "text/plain; version=0.0.4; charset=utf-8")
        return _error(404, "there is /healthz and /metrics here")

    async def serve_owner(self, request: Request) -> Reply:
        """The door for the node's own user."""
        match request.method, request.path:
            case "POST", "/drain":
                try:
                    timeout_s = float(request.query["timeout"]) if "timeout" in request.query else None
                except ValueError:
                    return _error(422, "timeout is a number of seconds")
                self._drain(timeout_s)
                return Reply(202, codec.encode(self._standing()))
            case "POST", "/resume":
                self._resume()
                return Reply(200, codec.encode(self._standing()))
            case "GET", "/attempts":
                return Reply(200, codec.encode({"items": [self._attempt(live) for live in self._table]}))
        return await self.serve(request)

    def _standing(self) -> dict[str, object]:
        return {
            "draining": self._readiness.draining,
            "why": self._readiness.refusal,
            "running": len(self._table.working()),
            "waiting": len(self._table.waiting()),
            "undelivered": len(self._table.over()),
        }

    def _attempt(self, live: Live) -> dict[str, object]:
        now = self._clock.monotonic()
        return {
            "job_id": live.job_id,
            "attempt": live.attempt,
            "state": live.state.value,
            "runner": live.manifest.runner.value,
            "seconds": None if live.started_at is None else round(now - live.started_at, 3),
            "lease_age_s": round(now - live.lease.sent_at, 1),
            "workspace": None if live.workspace is None else str(live.workspace.path),
            "failure": None if live.outcome is None or live.outcome.failure is None else live.outcome.failure.code.value,
        }

    def _at(self, monotonic: float, now: float) -> str:
        return (self._clock.now() - timedelta(seconds=now - monotonic)).isoformat()

    def _metrics(self) -> bytes:
        from ostler.node import metrics  # with a library that a node nobody scrapes need not load

        now = self._clock.monotonic()
        return metrics.text(
            metrics.Facts(
                counts=self._counts,
                states=dict.fromkeys(AttemptState, 0) | _states(self._table),
                loops={watch.loop.name: now - watch.loop.turned_at for watch in self.watches},
                contact_age_s=None if self._session.contact_at is None else now - self._session.contact_at,
                draining=self._readiness.draining,
                outside=self._session.outside,
                load=self._vitals.load,
                memory_mb=_memory_mb(),
            )
        )


def _states(table: AttemptTable) -> dict[AttemptState, int]:
    found: dict[AttemptState, int] = {}
    for live in table:
        found[live.state] = found.get(live.state, 0) + 1
    return found


def _memory_mb() -> float:
    """The daemon's resident memory."""
    with Path("/proc/self/statm").open() as file:
        return round(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def _error(status: int, message: str) -> Reply:
    return Reply(status, codec.encode({"error": message}))
