"""What people do in a run: submit, try again where no answer came, cancel, look on. Each call and its answer is written down."""

import asyncio
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from .records import Record, now
from .workload import Plan, Submission, placed

AGAIN_S = 0.25
TOGETHER = 24
OVER = {"done", "failed", "cancelled", "expired"}
ENDS = {"finish": "done", "fail": "failed", "cancel": "cancelled", "expire": "expired"}


class Clients:
    """All callers of one run, in one process."""

    def __init__(self, http: httpx.AsyncClient, record: Record, *, seed: int, place: Path) -> None:
        self._http, self._record, self._seed, self._place = http, record, seed, place
        self._gate = asyncio.Semaphore(TOGETHER)
        self._submitted: dict[int, asyncio.Future[str | None]] = {}
        self.acknowledged: list[str] = []
        self.over: set[str] = set()
        self._cancels: list[asyncio.Task[None]] = []

    async def run(self, submissions: Sequence[Submission], began: float) -> None:
        """Submit everything at its time, and cancel what is to be cancelled."""
        loop = asyncio.get_running_loop()
        for one in submissions:
            for plan in one.plans:
                self._submitted[plan.number] = loop.create_future()
        async with asyncio.TaskGroup() as group:
            for one in submissions:
                group.create_task(self._submit(one, began))
        await asyncio.gather(*self._cancels)

    async def _submit(self, one: Submission, began: float) -> None:
        await asyncio.sleep(max(0.0, began + one.at - now()))
        own = {plan.number for plan in one.plans}
        parents = {parent for plan in one.plans for parent in plan.parents}
        ids: dict[int, str] = {}
        for parent in parents - own:
            found = await self._submitted[parent]
            if found is None:  # nobody knows whether it exists, so nobody can name it
                self._drop(one, "its parent may not exist")
                return
            ids[parent] = found
        named = {plan.number for plan in one.plans if one.way != "key" or plan.number in parents}
        ids |= {number: f"chaos-{self._seed}-{number}" for number in named}
        body = json.dumps([placed(plan, self._seed, self._place, ids, named=plan.number in named) for plan in one.plans]).encode()
        headers = {"Content-Type": "application/json"}
        if one.way == "key":
            headers["Idempotency-Key"] = f"chaos-{self._seed}-{one.number}"
        tried = 0
        async with self._gate:
            while True:
                tried += 1
                answer = await self._call("POST", "/jobs", op="submit", submission=one.number, body=body, headers=headers)
                if answer is not None and answer.status_code == 201:
                    self._accepted(one, [item["job_id"] for item in answer.json()["items"]])
                    return
                if answer is not None and answer.status_code == 409 and one.way == "named" and tried > 1:
                    self._accepted(one, [ids[plan.number] for plan in one.plans])  # an earlier try was accepted
                    return
                if answer is not None and _is_final(answer):
                    self._drop(one, f"{answer.status_code} {answer.text[:300]}", refused=True)
                    return
                if one.way == "bare" and (answer is None or answer.status_code != 401):
                    self._drop(one, "no answer")
                    return
                await asyncio.sleep(AGAIN_S)

    def _accepted(self, one: Submission, ids: list[str]) -> None:
        named: dict[int, list[str]] = {}
        left = list(ids)
        for plan in one.plans:
            named[plan.number], left = left[: plan.jobs], left[plan.jobs :]
        self._record.write(op="submit", event="acknowledged", submission=one.number, jobs=named)
        self.acknowledged += ids
        for plan in one.plans:
            self._submitted[plan.number].set_result(named[plan.number][0])
            if plan.cancel_after is not None:
                task = asyncio.get_running_loop().create_task(self._cancel(plan, named[plan.number][0], plan.cancel_after))
                self._cancels.append(task)

    def _drop(self, one: Submission, why: str, *, refused: bool = False) -> None:
        event = "refused" if refused else "unknown"
        self._record.write(op="submit", event=event, submission=one.number, why=why, numbers=[plan.number for plan in one.plans])
        for plan in one.plans:
            self._submitted[plan.number].set_result(None)

    async def _cancel(self, plan: Plan, job_id: str, after: float) -> None:
        await asyncio.sleep(after)
        while True:
            answer = await self._call(
                "POST", f"/jobs/{job_id}/cancel", op="cancel", number=plan.number, job_id=job_id, body=b"{}"
            )
            if answer is not None and _is_final(answer):
                state = answer.json().get("state") if answer.status_code == 200 else None
                self._record.write(
                    op="cancel", event="acknowledged", number=plan.number, job_id=job_id, status=answer.status_code, state=state
                )
                return
            await asyncio.sleep(AGAIN_S)

    async def _call(
        self, method: str, path: str, *, body: bytes, headers: dict[str, str] | None = None, **facts: Any
    ) -> httpx.Response | None:
        self._record.write(event="sent", **facts)
        try:
            answer = await self._http.request(method, path, content=body, headers=headers or {"Content-Type": "application/json"})
        except httpx.HTTPError as exc:
            self._record.write(event="no answer", why=repr(exc)[:200], **facts)
            return None
        if answer.status_code >= 300:
            self._record.write(event="answered", status=answer.status_code, why=answer.text[:300], **facts)
        return answer


def _is_final(answer: httpx.Response) -> bool:
    """Whether asking again would change nothing: a caller who is sent away comes back, and so does one whose token has ended."""
    return answer.status_code < 500 and answer.status_code not in {401, 429}


async def insist(http: httpx.AsyncClient, method: str, path: str, **how: Any) -> httpx.Response | None:
    """A person's call, again where no answer came; None where none ever did."""
    for _ in range(40):
        with contextlib.suppress(httpx.HTTPError):
            answer = await http.request(method, path, **how)
            if answer.status_code < 500 and answer.status_code != 429:
                return answer
        await asyncio.sleep(AGAIN_S)
    return None


class Watcher:
    """Reads the events as they come, and each job that is over: what was once told must never be otherwise afterwards."""

    def __init__(self, http: httpx.AsyncClient, record: Record, clients: Clients) -> None:
        self._http, self._record, self._clients = http, record, clients

    async def run(self) -> None:
        """Until it is cancelled."""
        cursor: str | None = None
        while True:
            try:
                answer = await self._http.get("/events", params={"limit": 500, **({"after": cursor} if cursor else {})})
                page = answer.json() if answer.status_code == 200 else {"items": []}
            except (httpx.HTTPError, ValueError):
                page = {"items": []}
            items = page["items"]
            for one in items:
                self._record.write(event=one["cursor"], kind=one["kind"], job_id=one.get("job_id"), attempt=one.get("attempt"))
            cursor = page.get("next_cursor") or cursor
            ended = [one["job_id"] for one in items if one["kind"] in ENDS and one.get("job_id")]
            await asyncio.gather(*(self._look(job_id) for job_id in ended[:60]))
            self._clients.over.update(ended)
            if len(items) < 500:
                await asyncio.sleep(0.4)

    async def _look(self, job_id: str) -> None:
        try:
            answer = await self._http.get(f"/jobs/{job_id}")
            view = answer.json() if answer.status_code == 200 else None
        except (httpx.HTTPError, ValueError):
            return
        if view is not None and view["state"] in OVER:
            self._record.write(
                seen=job_id, state=view["state"], attempt=view["attempt"], tries=view["tries"],
                failure=(view.get("failure") or {}).get("code"), exit_code=view.get("exit_code"),
                artifacts={one["path"]: one["sha256"] for one in view.get("artifacts") or ()},
            )  # fmt: skip
