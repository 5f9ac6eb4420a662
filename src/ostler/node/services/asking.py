"""Carries out the probes of a service: each a question to it, answered by None or by what is wrong."""

import asyncio
import contextlib
import re
from dataclasses import dataclass

import msgspec

from ostler.node.config import MetricsConfig, ProbeConfig
from ostler.node.probe.command import Commands
from ostler.node.services.journals import Journals
from ostler.node.services.paths import pick
from ostler.node.services.rules import parse_address
from ostler.node.services.web import WebTrouble, get


class Unasked(Exception):
    """The question could not be put at all, which says nothing of the service."""


@dataclass(slots=True)
class Question:
    """One probe, and what it remembers from one time to the next."""

    config: ProbeConfig
    cursor: str | None = None


class Asking:
    """Puts questions; none takes longer than its timeout."""

    def __init__(self, journals: Journals) -> None:
        self._journals = journals

    async def ask(self, unit: str, question: Question) -> str | None:
        """None, or what is wrong. Raises Unasked."""
        probe = question.config
        timeout_s = probe.timeout.total_seconds()
        if probe.http is not None:
            return await _http(probe.http, timeout_s)
        if probe.tcp is not None:
            return await _tcp(probe.tcp, timeout_s)
        if probe.command:
            return await asyncio.to_thread(_command, probe.command, timeout_s)
        return await asyncio.to_thread(self._log, unit, question)

    def _log(self, unit: str, question: Question) -> str | None:
        lines = self._journals.after(unit, question.cursor)
        if not lines.readable:
            raise Unasked(f"the journal of {unit} cannot be read: the node's user would have to be in the group systemd-journal")
        question.cursor = lines.cursor
        pattern = re.compile(question.config.log or "")
        found = next((line for line in lines.text.splitlines() if pattern.search(line)), None)
        return None if found is None else f"it wrote {found.strip()[:200]!r}"


async def metrics(config: MetricsConfig, *, timeout_s: float) -> dict[str, float]:
    """The numbers that are there, by their names; none where the service does not answer."""
    try:
        status, body = await get(config.url, timeout_s=timeout_s)
        document = msgspec.json.decode(body) if status < 400 else None
    except (WebTrouble, msgspec.DecodeError, RecursionError):
        return {}
    found = {name: pick(document, path) for name, path in config.values.items()}
    return {name: value for name, value in found.items() if value is not None}


async def _http(url: str, timeout_s: float) -> str | None:
    try:
        status, _ = await get(url, timeout_s=timeout_s)
    except WebTrouble as exc:
        return f"{url} {exc}"
    return None if status < 400 else f"{url} answers {status}"


async def _tcp(address: str, timeout_s: float) -> str | None:
    host, port = parse_address(address) or ("", 0)
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return f"{address} did not accept within {timeout_s:g} s"
    except OSError as exc:
        return f"{address} cannot be reached: {exc.strerror or exc}"
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return None


def _command(argv: tuple[str, ...], timeout_s: float) -> str | None:
    said = Commands(patience_s=timeout_s).run(*argv)
    if said.code == 0:
        return None
    words = (said.errors.strip() or said.text.strip())[-200:]
    ended = f"did not end within {timeout_s:g} s" if said.code is None else f"ended with {said.code}"
    return f"{argv[0]} {ended}" + (f": {words}" if words else "")
