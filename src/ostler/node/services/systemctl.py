"""systemd by `systemctl`: argument lists and what is read from their answers."""

import asyncio
import re
from collections.abc import Callable, Collection

from ostler.model.service import Verb
from ostler.node.probe.command import Commands, Output
from ostler.node.services.units import PROPERTIES, SERVICE_PROPERTIES, Trouble, UnitTrouble, UnitView

PATIENCE_S = 10.0
JOB_S = 600.0  # systemd has deadlines of its own for each unit
_DENIED = re.compile(r"access denied|authentication|permission denied", re.IGNORECASE)
_MISSING = re.compile(r"not found|not loaded|no such file", re.IGNORECASE)
_MASKED = re.compile(r"is masked", re.IGNORECASE)
_ENDED = re.compile(r"^Job for |^A dependency job for |^Job .* canceled", re.MULTILINE)
_UNREACHABLE = re.compile(r"failed to connect to bus|has not been booted with systemd", re.IGNORECASE)


def show(unit: str) -> list[str]:
    """The question how a unit is."""
    return ["systemctl", "show", f"--property={','.join((*PROPERTIES, *SERVICE_PROPERTIES))}", "--", unit]


BEGAN = ("systemctl", "show", "--value", "--timestamp=unix", "--property=UserspaceTimestamp")


def command(verb: Verb, unit: str) -> list[str]:
    """A verb; it ends when systemd's job has ended, and asks nobody for a password."""
    return ["systemctl", "--no-ask-password", verb.value, "--", unit]


def read_view(text: str) -> UnitView:
    """What `show` printed."""
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def number(name: str) -> int:
        return int(found[name]) if found.get(name, "").isdecimal() else 0

    return UnitView(
        load=found.get("LoadState", "not-found"),
        active=found.get("ActiveState", "inactive"),
        sub=found.get("SubState", ""),
        pid=number("MainPID") or None,
        result=found.get("Result") or "success",
        status=number("ExecMainStatus"),
        restarts=number("NRestarts"),
        invocation=found.get("InvocationID", ""),
    )


def read_end(said: Output, unit: str) -> str:
    """How a verb's job ended. Raises UnitTrouble where there was none."""
    if said.code == 0:
        return "done"
    words = said.errors.strip() or said.text.strip() or f"systemctl ended with {said.code}"
    if said.code is None:
        return "timeout"
    if said.code == 127 or _UNREACHABLE.search(words):
        raise UnitTrouble(Trouble.UNREACHABLE, words)
    if _DENIED.search(words):
        raise UnitTrouble(Trouble.DENIED, words)
    if _MASKED.search(words):
        raise UnitTrouble(Trouble.MASKED, words)
    if _ENDED.search(words):
        return "dependency" if words.startswith("A dependency") else "canceled" if "canceled" in words else "failed"
    if _MISSING.search(words):
        raise UnitTrouble(Trouble.MISSING, words)
    raise UnitTrouble(Trouble.FAILED, f"{unit}: {words[-300:]}")


class UnitsBySystemctl:
    """A Units that starts a process for each question, and is told of no change."""

    def __init__(self) -> None:
        self._questions = Commands(patience_s=PATIENCE_S)
        self._orders = Commands(patience_s=JOB_S)

    async def look(self, unit: str) -> UnitView:
        """How it is now."""
        said = await asyncio.to_thread(self._questions.run, *show(unit))
        if said.code != 0:
            raise UnitTrouble(Trouble.UNREACHABLE, said.errors.strip() or "systemctl does not answer")
        return read_view(said.text)

    async def act(self, verb: Verb, unit: str, accepted: Callable[[], None]) -> str:
        """Carry a verb out."""
        end = read_end(await asyncio.to_thread(self._orders.run, *command(verb, unit)), unit)
        accepted()
        return end

    async def booted(self) -> str:
        """When systemd began."""
        said = await asyncio.to_thread(self._questions.run, *BEGAN)
        if said.code != 0 or not said.text.startswith("@"):
            raise UnitTrouble(Trouble.UNREACHABLE, said.errors.strip() or f"systemctl says {said.text.strip()!r}")
        return said.text.strip()

    async def watch(self, units: Collection[str], changed: Callable[[], None]) -> None:
        """There is no way to know."""

    async def close(self) -> None:
        """Nothing is open."""
