"""WebhookSender: delivers events to webhooks, each in order and at least once, none held up by another."""

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from functools import partial

from ostler.coordinator.operations import events
from ostler.coordinator.operations import webhooks as ops
from ostler.coordinator.sealing import Sealer
from ostler.coordinator.store.store import Store
from ostler.coordinator.webhooks import PURPOSE, Courier, DeliveryFailed, Parcel
from ostler.model.errors import Gone, OstlerError
from ostler.protocol.codec import encode
from ostler.protocol.messages import FleetEvent, WebhookDelivery
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop

BATCH = 100  # events in one delivery
ABREAST = 16  # webhooks that are delivered to at the same time
GATHER_S = 0.2  # for further commits: under load a turn is begun so often
PASSED_OVER = 500  # events that are none of a webhook's business, after which its cursor is moved without a delivery


@dataclass(frozen=True, slots=True)
class _Piece:
    """What to deliver next, and where the cursor stands afterwards."""

    found: tuple[FleetEvent, ...]
    end: int
    more: bool


class WebhookSender(Loop):
    """One task for each webhook that has something to deliver. What was delivered is noted afterwards, so a crash in between repeats it."""

    name = "webhook_sender"

    def __init__(
        self, store: Store, sealer: Sealer, courier: Courier, *, clock: Clock, logger: logging.Logger, interval_s: float = 5.0
    ) -> None:
        super().__init__(clock=clock, interval_s=interval_s, logger=logger)
        self._store = store
        self._sealer = sealer
        self._courier = courier
        self._abreast = asyncio.Semaphore(ABREAST)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()  # those that were due while they were served
        self._passed: dict[str, int] = {}  # how far each was looked through, where that is further than its cursor

    async def run(self) -> None:
        """Turn also when events were committed."""
        async with self._store.wakeups.subscribe(("events",), ops.TOPIC) as event:
            waking = asyncio.create_task(self._wake_on(event))
            try:
                await super().run()
            finally:
                for task in (waking, *self._tasks.values()):
                    task.cancel()

    async def _wake_on(self, event: asyncio.Event) -> None:
        while not self._store.wakeups.closed:
            await event.wait()
            event.clear()
            self.wake()
            await asyncio.sleep(GATHER_S)

    async def turn(self) -> float | None:
        """Begin what is due and not under way."""
        due, next_s = await self._store.read(ops.due_webhooks)
        for one in due:
            if one.webhook_id in self._tasks:
                self._again.add(one.webhook_id)  # it may have looked before the latest events were there
                continue
            task = self._tasks[one.webhook_id] = asyncio.create_task(self._serve(one))
            task.add_done_callback(partial(self._ended, one.webhook_id))
        return self.interval_s if next_s is None else min(next_s, self.interval_s)

    def _ended(self, webhook_id: str, _task: "asyncio.Task[None]") -> None:
        self._tasks.pop(webhook_id, None)
        if webhook_id in self._again:
            self._again.discard(webhook_id)
            self.wake()

    async def _serve(self, one: ops.Due) -> None:
        """Deliver until nothing is left, or until a delivery fails."""
        try:
            async with self._abreast:
                secret = self._sealer.open(PURPOSE, [one.webhook_id], one.sealed).decode()
                await self._deliver_all(one, secret)
        except (DeliveryFailed, OstlerError) as exc:
            await self._note_failure(one, str(exc))
        except Exception:
            self.logger.exception("webhook_crashed", extra={"attrs": {"webhook": one.webhook_id}})
            await self._note_failure(one, "the coordinator failed at this; its log says how")

    async def _deliver_all(self, one: ops.Due, secret: str) -> None:
        stored = one.cursor
        place = max(stored, self._passed.get(one.webhook_id, 0))
        while True:
            piece = await self._next(one, place)
            if piece.found:
                body = encode(WebhookDelivery(webhook_id=one.webhook_id, events=piece.found))
                await self._courier.deliver(Parcel(url=one.url, secret=secret, webhook_id=one.webhook_id, body=body))
            if piece.found or piece.end - stored >= PASSED_OVER:
                if not await self._store.write_lazily(ops.delivered, one.webhook_id, piece.end):
                    return
                stored = piece.end
            place = self._passed[one.webhook_id] = piece.end
            if not piece.more:
                return

    async def _next(self, one: ops.Due, place: int) -> _Piece:
        wanted = events.Filter(one.owner, None, None, None, one.kinds)
        try:
            window = await self._store.read(events.window, place)
        except Gone:
            # It was behind for longer than events are kept: what is left is delivered, and the receiver sees the gap in the times.
            self.logger.warning("webhook_lost_events", extra={"attrs": {"webhook": one.webhook_id}})
            window = await self._store.read(events.window, 0)
        found = [event for event in window.found if wanted.takes(event)]
        if len(found) > BATCH:
            return _Piece(tuple(event.event for event in found[:BATCH]), found[BATCH - 1].id, True)
        return _Piece(tuple(event.event for event in found), window.end, window.more)

    async def _note_failure(self, one: ops.Due, error: str) -> None:
        with contextlib.suppress(OstlerError):
            view = await self._store.write(ops.failed, one.webhook_id, error)
            if view is not None:
                about = {"webhook": one.webhook_id, "failures": view.failures, "error": error}
                self.logger.warning("webhook_disabled" if view.disabled_at else "webhook_failed", extra={"attrs": about})
