"""Releases that the coordinator wishes for: the daemon fetches the bundle and asks root, which decides, installs and switches (ADR 43).

Root believes nothing of what lies here. How it stands is told by a file that root alone writes, and that every release's daemon reads.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ostler.model.errors import CoordinatorUnreachable, OstlerError, Rejected, Unauthenticated, Unavailable
from ostler.model.rollout.report import Report, Stage
from ostler.node.session import Session
from ostler.node.trees import remove_tree
from ostler.protocol import codec, routes
from ostler.protocol.client import AsyncClient
from ostler.protocol.messages import BundleQuery, WantedUpdate
from ostler.runtime.backoff import Backoff

REQUEST, BUNDLE = "request.json", "bundle.tar"
LOOK_S = 0.5
SESSION_S = 30.0
IDLE_S = 60.0
TAKE_S = 60.0  # until root has taken a request up
SPARE = 64 << 20
BLOCK = 1 << 20
TRIES = 3  # of a bundle that arrives whole, and is another one
ENDS = frozenset({Stage.WENT_BACK, Stage.STUCK, Stage.REFUSED})


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatePlaces:
    """Where daemon and root meet: `drop` is the daemon's own directory, `published` root's word, `releases` what root has installed."""

    drop: Path
    published: Path
    releases: Path


class Updates:
    """One wish at a time. It holds for as long as heartbeats repeat it."""

    def __init__(
        self,
        session: Session,
        *,
        client: AsyncClient,
        places: UpdatePlaces,
        told: Callable[[Report | None], None],
        logger: logging.Logger,
    ) -> None:
        """`told` hears of each change; None: there is nothing to tell any more."""
        self._session = session
        self._client = client
        self._places = places
        self._told = told
        self._logger = logger
        self._wanted: WantedUpdate | None = None
        self._report: Report | None = None
        self._task: asyncio.Task[None] | None = None

    def want(self, wanted: WantedUpdate | None) -> None:
        """What the coordinator wishes for now; None: nothing (any more)."""
        if wanted == self._wanted:
            return
        before, self._wanted, self._report = self._task, wanted, None
        self._task = asyncio.get_running_loop().create_task(self._serve(wanted, before), name="update")

    async def close(self) -> None:
        """The next daemon is asked again."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _serve(self, wanted: WantedUpdate | None, before: "asyncio.Task[None] | None") -> None:
        if before is not None:
            before.cancel()
            await asyncio.gather(before, return_exceptions=True)
        if wanted is None:
            self._told(None)
            await asyncio.to_thread(self._clear)
            return
        try:
            await self._fulfil(wanted)
        except (OSError, Rejected) as exc:
            why = str(exc) if isinstance(exc, OstlerError) else f"{exc.filename or self._places.drop}: {exc.strerror or exc}"
            self._tell(wanted, Stage.REFUSED, why)

    async def _fulfil(self, wanted: WantedUpdate) -> None:
        said = await self._look(wanted)
        if wanted.back is not None:
            if said is None or said.stage not in ENDS:
                await asyncio.to_thread(self._ask, wanted)
        elif said is None:
            await self._bring(wanted)
            await asyncio.to_thread(self._ask, wanted)
            self._tell(wanted, Stage.ASKED)
            await self._await_root(wanted)
        while True:  # root's word, as it comes
            await self._look(wanted)
            await asyncio.sleep(LOOK_S)

    async def _await_root(self, wanted: WantedUpdate) -> None:
        try:
            async with asyncio.timeout(TAKE_S):
                while await self._look(wanted) is None:  # noqa: ASYNC110 - root tells by a file
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            await asyncio.to_thread(self._clear)
            raise Rejected(f"ostler-update.path has not taken the request up in {TAKE_S:.0f} s") from None

    async def _look(self, wanted: WantedUpdate) -> Report | None:
        """What root says of this update; told where it is news."""
        said = await asyncio.to_thread(read_published, self._places.published)
        if said is None or said.update_id != wanted.rollout_id:
            return None
        self._note(said)
        return said

    def _tell(self, wanted: WantedUpdate, stage: Stage, reason: str | None = None) -> None:
        self._note(Report(update_id=wanted.rollout_id, release=wanted.release, stage=stage, reason=reason))

    def _note(self, report: Report) -> None:
        if report != self._report:
            self._report = report
            attrs = {"rollout": report.update_id, "release": report.release, "stage": report.stage.value, "reason": report.reason}
            self._logger.info("update", extra={"attrs": attrs})
            self._told(report)

    # --- the bundle ---

    async def _bring(self, wanted: WantedUpdate) -> None:
        """The bundle, whole and as its sha256 says, unless root has the release already. Raises Rejected, OSError."""
        if await asyncio.to_thread((self._places.releases / wanted.release).is_dir):
            return
        self._tell(wanted, Stage.FETCHING)
        part = self._places.drop / f"{wanted.sha256}.part"
        await asyncio.to_thread(self._make_room, part, wanted)
        backoff = Backoff(min_s=1.0, max_s=30.0)
        for _ in range(TRIES):
            while True:
                try:
                    await self._fetch(wanted, part)
                    break
                except Unavailable as exc:
                    self._logger.info("bundle_broken_off", extra={"attrs": {"release": wanted.release, "error": str(exc)}})
                await asyncio.sleep(backoff.next_s())
            if await asyncio.to_thread(_is_whole, part, wanted):
                await asyncio.to_thread(part.replace, self._places.drop / BUNDLE)
                return
            await asyncio.to_thread(part.unlink)
        raise Rejected(f"the bundle of {wanted.release} arrived {TRIES} times with other bytes than the coordinator has")

    def _make_room(self, part: Path, wanted: WantedUpdate) -> None:
        drop = self._places.drop
        drop.mkdir(mode=0o700, parents=True, exist_ok=True)
        for one in drop.iterdir():
            if one != part:
                _remove(one)
        there = part.stat().st_size if part.exists() else 0
        if shutil.disk_usage(drop).free < wanted.size - there + SPARE:
            raise Rejected(f"no space left for the bundle of {wanted.release} ({wanted.size >> 20} MiB) in {drop}")

    async def _fetch(self, wanted: WantedUpdate, part: Path) -> None:
        """What is still missing. Raises Unavailable, Rejected."""
        session = self._session
        if not await session.opened(SESSION_S):
            raise CoordinatorUnreachable("there is no session with the coordinator to fetch a release in")
        done = (await asyncio.to_thread(part.stat)).st_size if await asyncio.to_thread(part.exists) else 0
        if done >= wanted.size:
            return
        token = session.token
        headers = {"Range": f"bytes={done}-", "If-Range": f'"{wanted.sha256}"'} if done else {}
        try:
            async with self._client.download(
                routes.GET_BUNDLE,
                token=token,
                headers=headers,
                timeout_s=IDLE_S,
                release=wanted.release,
                query=BundleQuery(platform=wanted.platform),
            ) as answer:
                if answer.status != 206:
                    await asyncio.to_thread(part.write_bytes, b"")
                gathered = bytearray()
                async for block in answer.blocks():
                    gathered += block
                    if len(gathered) >= BLOCK:
                        await asyncio.to_thread(_append, part, bytes(gathered))
                        gathered.clear()
                await asyncio.to_thread(_append, part, bytes(gathered))
        except Unauthenticated as exc:
            if token == session.token:
                session.close()
            raise Unavailable(f"the session ended while a release was fetched: {exc}") from exc

    # --- the request ---

    def _ask(self, wanted: WantedUpdate) -> None:
        """The request comes last, and whole: root looks as soon as it is there."""
        drop = self._places.drop
        drop.mkdir(mode=0o700, parents=True, exist_ok=True)
        asked = {"rollout_id": wanted.rollout_id, "release": wanted.release, "window_s": wanted.window_s, "back": wanted.back}
        fresh = drop / f".{REQUEST}"
        with fresh.open("w") as file:
            json.dump(asked, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(drop / REQUEST)

    def _clear(self) -> None:
        with contextlib.suppress(OSError):
            for one in self._places.drop.iterdir():
                _remove(one)


def read_published(file: Path) -> Report | None:
    """Root's word about the newest update; None where there is none that this release understands."""
    try:
        said = json.loads(file.read_bytes())
        return codec.convert(said, Report, what="word about an update")
    except (OSError, ValueError, Rejected):
        return None


def _append(part: Path, data: bytes) -> None:
    with part.open("ab") as file:
        file.write(data)


def _is_whole(part: Path, wanted: WantedUpdate) -> bool:
    with part.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == wanted.sha256


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(OSError):
            remove_tree(path)
    else:
        path.unlink(missing_ok=True)
