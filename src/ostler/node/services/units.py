"""How a node speaks with systemd: the port, what is known of a unit, and what may go wrong."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from ostler.model.service import Verb


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitView:
    """A unit as systemd shows it, in systemd's words. `pid` is its main process, `status` what the last one ended with (an exit code or
    a signal), `restarts` how often systemd itself started it anew, `invocation` another text for each start."""

    load: str
    active: str
    sub: str = ""
    pid: int | None = None
    result: str = "success"
    status: int = 0
    restarts: int = 0
    invocation: str = ""


PROPERTIES = ("LoadState", "ActiveState", "SubState", "InvocationID")  # of any unit
SERVICE_PROPERTIES = ("MainPID", "Result", "ExecMainStatus", "NRestarts")  # of a service


class Trouble(Enum):
    """What kept systemd from doing it."""

    MISSING = "missing"
    MASKED = "masked"
    DENIED = "denied"
    FAILED = "failed"
    UNREACHABLE = "unreachable"


class UnitTrouble(Exception):
    """`trouble` says what kind, the text what systemd said."""

    def __init__(self, trouble: Trouble, message: str) -> None:
        super().__init__(message)
        self.trouble = trouble


class Units(Protocol):
    """Units by their names. Verbs are start, stop and restart."""

    async def look(self, unit: str) -> UnitView:
        """How it is now; one that is not there has `load` "not-found". Raises UnitTrouble."""
        ...

    async def act(self, verb: Verb, unit: str, accepted: Callable[[], None]) -> str:
        """Carry a verb out; `accepted` is called as soon as systemd has taken it. Answers how systemd's job ended ("done", "failed",
        "timeout", "canceled", "dependency", "skipped", …). Raises UnitTrouble where systemd did not take it."""
        ...

    async def booted(self) -> str:
        """When systemd began, in whole seconds: another text after each boot. Raises UnitTrouble."""
        ...

    async def watch(self, units: Collection[str], changed: Callable[[], None]) -> None:
        """From now on `changed` is called when one of them does, where there is a way to know."""
        ...

    async def close(self) -> None:
        """No more calls."""
        ...


def unit_object(unit: str) -> str:
    """The D-Bus path of a unit, as systemd makes it of its name (source: sd_bus_path_encode): all but letters and digits in hex."""
    name = "".join(
        char if char.isascii() and (char.isalpha() or (char.isdigit() and i)) else f"_{ord(char):02x}"
        for i, char in enumerate(unit)
    )
    return f"/org/freedesktop/systemd1/unit/{name}"


class Either:
    """One way to systemd, and another one for the time when the first leads nowhere."""

    def __init__(self, first: Units, second: Units) -> None:
        self._first, self._second = first, second

    async def look(self, unit: str) -> UnitView:
        """By the first way that leads there."""
        try:
            return await self._first.look(unit)
        except UnitTrouble as exc:
            if exc.trouble is not Trouble.UNREACHABLE:
                raise
            return await self._second.look(unit)

    async def act(self, verb: Verb, unit: str, accepted: Callable[[], None]) -> str:
        """By the first way that leads there; what one of them took goes no second way."""
        taken = False

        def took() -> None:
            nonlocal taken
            taken = True
            accepted()

        try:
            return await self._first.act(verb, unit, took)
        except UnitTrouble as exc:
            if exc.trouble is not Trouble.UNREACHABLE or taken:
                raise
            return await self._second.act(verb, unit, accepted)

    async def booted(self) -> str:
        """By the first way that leads there."""
        try:
            return await self._first.booted()
        except UnitTrouble as exc:
            if exc.trouble is not Trouble.UNREACHABLE:
                raise
            return await self._second.booted()

    async def watch(self, units: Collection[str], changed: Callable[[], None]) -> None:
        """By the first way; the second has none."""
        await self._first.watch(units, changed)

    async def close(self) -> None:
        """Both."""
        await self._first.close()
        await self._second.close()
