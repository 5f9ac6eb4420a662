"""Inputs of a job (N5): fetched, checked, put into `input/` under safe names, and linked into the working directory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from ostler.model.errors import Rejected, Unavailable
from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import InputFile, Inputs, InputUrl, unsafe_name
from ostler.node.input_cache import InputCache
from ostler.node.input_download import Download, DownloadLimits, shown
from ostler.node.input_sink import MB, Budget, InputRefused, Sink, in_thread, refuse
from ostler.node.workspace import Workspace, disk_failure
from ostler.runtime.backoff import Backoff
from ostler.runtime.later import later

if TYPE_CHECKING:
    import httpx
else:
    httpx = later("httpx")

# An async generator function: the bytes of an uploaded file by its sha256. Raises Rejected when there is none, and
# Unavailable (or an OSError or an httpx error) when the same call may succeed later.
Fetch = Callable[[str], AsyncGenerator[bytes, None]]
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLimits:
    """What the inputs of one attempt may take: MB (2**20 bytes) in all, seconds in all, MB of disk that must stay free."""

    max_mb: int = 16384
    total_s: float = 3600.0
    keep_free_mb: int = 0
    parallel: int = 4
    download: DownloadLimits = field(default_factory=DownloadLimits)


@dataclass(frozen=True, slots=True)
class InputFact:
    """One input as it lies in `input/NAME`; `source` is url, inline or file; `size` in bytes."""

    name: str
    sha256: str
    size: int
    source: str
    cached: bool = False


@dataclass(frozen=True, slots=True)
class InputReport:
    """All inputs, in the order of the manifest: URLs, inline texts, uploaded files."""

    inputs: tuple[InputFact, ...] = ()


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One input before it is there."""

    name: str
    source: str
    url: str = ""
    text: str = ""
    sha256: str | None = None
    max_bytes: int | None = None


async def materialise(
    inputs: Inputs,
    workspace: Workspace,
    *,
    fetch: Fetch,
    client: httpx.AsyncClient,
    limits: InputLimits | None = None,
    cache: InputCache | None = None,
    sleep: Sleep = asyncio.sleep,
) -> Failure | InputReport:
    """Bring all inputs into the workspace, or say why not (E_INPUT, E_DISK). `input/` never holds half a file.

    `client` must carry no credentials: it talks to whatever the manifest names.
    """
    if not inputs:
        return InputReport()
    limits = limits or InputLimits()
    try:
        wanted = _wanted(inputs)
        async with asyncio.timeout(limits.total_s):
            fetching = _Fetching(workspace, fetch=fetch, client=client, limits=limits, cache=cache, sleep=sleep)
            return InputReport(await fetching.run(wanted))
    except InputRefused as exc:
        return exc.failure
    except TimeoutError:
        return Failure(FailureCode.INPUT, f"the inputs took longer than {limits.total_s:g} s")


def _wanted(inputs: Inputs) -> list[_Wanted]:
    wanted = [_url(InputUrl(url=one) if isinstance(one, str) else one) for one in inputs.urls]
    wanted.extend(_Wanted(name, "inline", text=text) for name, text in inputs.inline.items())
    wanted.extend(_file(one) for one in inputs.files)
    seen: set[str] = set()
    for one in wanted:
        origin = f" of {shown(one.url)}" if one.url else ""
        if why := _unsafe(one.name):
            raise refuse(f"the input name {one.name[:200]!r}{origin} {why}; give it a `name`")
        if one.name in seen:
            raise refuse(f"two inputs have the name {one.name!r}; give one of them another `name`")
        seen.add(one.name)
    return wanted


def _unsafe(name: str) -> str | None:
    try:
        name.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"
    return unsafe_name(name)


def _url(one: InputUrl) -> _Wanted:
    name = one.name
    if name is None:
        try:
            # Taken apart before it is decoded: an encoded slash belongs to the name, and is then refused.
            name = unquote(urlsplit(one.url).path.rpartition("/")[2], errors="strict")
        except ValueError as exc:
            raise refuse(f"{shown(one.url)}: no file name can be taken from this URL; give the input a `name`") from exc
    return _Wanted(name, "url", url=one.url, sha256=one.sha256, max_bytes=one.max_mb * MB if one.max_mb else None)


def _file(one: InputFile) -> _Wanted:
    return _Wanted(one.name, "file", sha256=one.sha256, max_bytes=one.size)


class _Fetching:
    """The inputs of one attempt on their way."""

    def __init__(
        self,
        workspace: Workspace,
        *,
        fetch: Fetch,
        client: httpx.AsyncClient,
        limits: InputLimits,
        cache: InputCache | None,
        sleep: Sleep,
    ) -> None:
        self._workspace = workspace
        self._fetch = fetch
        self._client = client
        self._limits = limits
        self._cache = cache
        self._sleep = sleep
        self._budget = Budget(limits.max_mb * MB)
        self._gate = asyncio.Semaphore(limits.parallel)

    async def run(self, wanted: Sequence[_Wanted]) -> tuple[InputFact, ...]:
        parts = [(one, self._sink(i, one)) for i, one in enumerate(wanted)]
        inline = [part for part in parts if part[0].source == "inline"]
        remote = [part for part in parts if part[0].source != "inline"]
        try:
            facts = await in_thread(_write_all, inline) if inline else {}
            if remote:
                facts |= await self._fetch_all(remote)
            await in_thread(self._place, [sink for _, sink in parts])
        finally:
            await in_thread(_clean, [sink for _, sink in parts])
        return tuple(facts[one.name] for one in wanted)

    async def _fetch_all(self, parts: Sequence[tuple[_Wanted, Sink]]) -> dict[str, InputFact]:
        """All at once; the first failure ends the others. By hand: until Python 3.11.4 a TaskGroup that failed left its task
        marked as being cancelled, and the next timeout in that task went wrong.
        """
        tasks = [asyncio.ensure_future(self._one(one, sink)) for one, sink in parts]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for failure in ended:
            if isinstance(failure, BaseException) and not isinstance(failure, asyncio.CancelledError):
                raise failure
        return {fact.name: fact for fact in ended if isinstance(fact, InputFact)}

    def _sink(self, index: int, one: _Wanted) -> Sink:
        limit = self._budget.limit
        return Sink(
            self._workspace.path / f"part-{index}",  # beside input/, where no input's name can be the same
            name=one.name,
            max_bytes=limit if one.max_bytes is None else min(one.max_bytes, limit),
            budget=self._budget,
            keep_free=self._limits.keep_free_mb * MB,
        )

    async def _one(self, one: _Wanted, sink: Sink) -> InputFact:
        async with self._gate:
            cached = one.sha256 is not None and self._cache is not None and await in_thread(self._cached, one.sha256, sink)
            if not cached and one.source == "url":
                limits = self._limits.download
                await Download(self._client, one.url, sink, limits, checked=one.sha256 is not None, sleep=self._sleep).run()
            elif not cached:
                await self._uploaded(one, sink)
            sha256 = one.sha256 if cached and one.sha256 else await sink.finish()
            what = shown(one.url) if one.url else f"the uploaded file {one.name!r}"
            if one.sha256 is not None and sha256 != one.sha256:
                raise refuse(f"{what} has sha256 {sha256}, not {one.sha256} as declared")
            if one.source == "file" and sink.size != one.max_bytes:
                raise refuse(f"{what} has {sink.size} bytes, not {one.max_bytes} as declared")
            if one.sha256 is not None and self._cache is not None and not cached:
                await in_thread(self._cache.put, sha256, sink.handle)
            await in_thread(sink.close)
            return InputFact(one.name, sha256, sink.size, one.source, cached)

    def _cached(self, sha256: str, sink: Sink) -> bool:
        cache = self._cache
        return cache is not None and sink.copy_now(lambda target: cache.copy_out(sha256, target))

    async def _uploaded(self, one: _Wanted, sink: Sink) -> None:
        waits = Backoff(min_s=self._limits.download.backoff_s, max_s=30.0)
        while True:
            try:
                async with aclosing(self._fetch(one.sha256 or "")) as chunks:
                    async for chunk in chunks:
                        await sink.write(chunk)
            except Rejected as exc:
                raise refuse(f"the uploaded file {one.name!r} ({one.sha256}) cannot be had: {exc.message}") from exc
            except (Unavailable, OSError, httpx.TransportError) as exc:
                wait_s = waits.next_s()
                if waits.failures >= self._limits.download.tries:
                    reason = f"the uploaded file {one.name!r} ({one.sha256}) cannot be had: {exc}"
                    raise refuse(f"{reason}; gave up after {waits.failures} tries") from exc
                await self._sleep(wait_s)
                await sink.restart()
            else:
                return

    def _place(self, sinks: Sequence[Sink]) -> None:
        """Give the files their names and make the links, in one go."""
        owner = self._workspace.owner
        try:
            for sink in sinks:
                if owner is not None:
                    os.chown(sink.path, owner.uid, owner.gid, follow_symlinks=False)
                sink.path.rename(self._workspace.input / sink.name)
                _link(self._workspace.work / sink.name, Path("..") / "input" / sink.name)
        except OSError as exc:
            raise InputRefused(disk_failure(exc, "placing the inputs")) from exc


def _write_all(parts: Sequence[tuple[_Wanted, Sink]]) -> dict[str, InputFact]:
    facts = {}
    for one, sink in parts:
        try:
            content = one.text.encode()
        except UnicodeEncodeError as exc:
            raise refuse(f"the inline input {one.name!r} is not valid Unicode") from exc
        sink.write_now(content)
        sink.close()
        facts[one.name] = InputFact(one.name, sink.digest(), sink.size, one.source)
    return facts


def _clean(sinks: Sequence[Sink]) -> None:
    for sink in sinks:
        sink.close()
        with suppress(OSError):  # after success they have their names and are not here
            sink.path.unlink()


def _link(place: Path, target: Path) -> None:
    try:
        place.symlink_to(target)
    except FileExistsError:
        # Prepared before, by a daemon that was killed on the way.
        if not place.is_symlink() or place.readlink() != target:
            raise
