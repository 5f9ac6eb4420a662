"""Runs a loop on one coordinator at a time, where several share a database."""

import asyncio

from ostler.coordinator.store.store import Store
from ostler.runtime.loop import Loop


async def run_on_duty(loop: Loop, store: Store) -> None:
    """Run the loop while the duty of its name is ours, and end it the moment that it is not; until cancelled.

    Two may turn at the same time all the same, where one was cut off and does not know it yet: what a loop writes holds then, too, since
    each of its operations repeats what it has seen. The loop begins anew with each turn of duty (`Loop.begin`).
    """
    duty = store.seek(loop.name)
    if duty is None:
        await loop.run()
        return
    here, news = asyncio.get_running_loop(), asyncio.Event()
    task: asyncio.Task[None] | None = None
    loop.on_duty = False

    def changed() -> None:
        here.call_soon_threadsafe(news.set)

    duty.changed = changed
    try:
        while True:
            news.clear()
            if duty.held and task is None:
                loop.on_duty, task = True, asyncio.create_task(loop.run())
            elif not duty.held and task is not None:
                loop.on_duty = False
                await _end(task)
                task = None
            await news.wait()
    finally:
        duty.changed = lambda: None
        if task is not None:
            await _end(task)


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
