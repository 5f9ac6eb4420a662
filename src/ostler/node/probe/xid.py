"""Xid messages: what the NVIDIA driver writes into the kernel's log when a GPU or a program on it fails."""

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ostler.node.probe.pci import bus_id

_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]+)\): (\d+)(?:, (.*))?")
_FELL = re.compile(r"NVRM: GPU (?:at PCI:)?([0-9a-fA-F:.]+?):? GPU has fallen off the bus")
# Drivers say it over several records as well, without a number: the address in one, the fact in a later one.
_FELL_WHO = re.compile(r"NVRM: The NVIDIA GPU ([0-9a-fA-F:.]+)")
_FELL_WHAT = re.compile(r"fallen off the bus")
_PID = re.compile(r"pid='?(\d+)'?")
_NAME = re.compile(r"name=([^,]+)")

FELL_OFF_THE_BUS = 79
_REMEMBERED = 1000

# After these a GPU cannot be trusted before it was reset or replaced; the rest are faults of the program that ran, or
# were dealt with by the driver. From NVIDIA's catalogue of Xid errors.
MEANINGS = {
    8: "GPU stopped processing",
    13: "exception in the graphics engine, mostly the program's",
    31: "memory page fault, mostly the program's",
    32: "invalid or corrupted push buffer",
    43: "GPU stopped processing for one program",
    45: "preemptive cleanup after an earlier error",
    48: "double-bit memory error",
    61: "internal microcontroller breakpoint",
    62: "internal microcontroller halt",
    63: "a memory row was marked for repair",
    64: "a memory row could not be marked for repair",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    92: "high rate of single-bit memory errors",
    94: "contained memory error",
    95: "uncontained memory error",
    109: "context switch timed out",
    119: "the GPU's system processor timed out",
    120: "error in the GPU's system processor",
    140: "unrecovered memory error",
    143: "GPU could not be initialised",
}
FATAL = frozenset({48, 61, 62, 64, 74, 79, 95, 119, 120, 140, 143})


@dataclass(frozen=True, slots=True)
class Xid:
    """One message: the card's address, the code, the process if it was named; `at_s` since boot, None if not told."""

    bus_id: str
    code: int
    pid: int | None = None
    name: str = ""
    at_s: float | None = None

    @property
    def fatal(self) -> bool:
        """True where the card is not to be used any more."""
        return self.code in FATAL

    def __str__(self) -> str:
        return f"Xid {self.code} on {self.bus_id}: {MEANINGS.get(self.code, 'see the catalogue of Xid errors')}"


@dataclass(frozen=True, slots=True)
class KernelLine:
    """A record of the kernel's own, without what follows it."""

    text: str
    at_s: float | None = None


def parse_log(lines: Iterable[KernelLine]) -> tuple[Xid, ...]:
    """The Xids in some lines of the kernel's log, in order."""
    return tuple(_xids(lines))


def _xids(lines: Iterable[KernelLine]) -> Iterator[Xid]:
    falling: str | None = None
    for line in lines:
        if match := _XID.search(line.text):
            address, code, rest = bus_id(match[1]), int(match[2]), match[3] or ""
            pid, name = _PID.search(rest), _NAME.search(rest)
            if address is not None:
                yield Xid(
                    address,
                    code,
                    int(pid[1]) if pid else None,
                    "" if name is None or "unknown" in name[1] else name[1].strip("' "),
                    line.at_s,
                )
        elif match := _FELL.search(line.text):
            address = bus_id(match[1])
            if address is not None:
                yield Xid(address, FELL_OFF_THE_BUS, at_s=line.at_s)
        elif match := _FELL_WHO.search(line.text):
            falling = bus_id(match[1].rstrip(":."))
        if falling and "NVRM: Xid" not in line.text and _FELL_WHAT.search(line.text):
            yield Xid(falling, FELL_OFF_THE_BUS, at_s=line.at_s)
            falling = None


def parse_record(record: str) -> KernelLine | None:
    """A record of /dev/kmsg (`priority,sequence,microseconds,flags;text`); None for what is not the kernel's own.

    Programs may write there too, under another facility: a job's words must not take a GPU out of service.
    """
    head, separator, text = record.partition(";")
    fields = head.split(",")
    if not separator or len(fields) < 3 or not (fields[0].isdigit() and fields[2].isdigit()):
        return None
    if int(fields[0]) >> 3:
        return None
    return KernelLine(text.split("\n", 1)[0].replace("\\x0a", "\n"), int(fields[2]) / 1e6)


class KernelLog:
    """Reads what is new in the kernel's log, from boot on at first, and remembers its Xids. Close it at the end."""

    def __init__(self, path: Path = Path("/dev/kmsg")) -> None:
        """Where the log may not be read (kernel.dmesg_restrict), `readable` is False and nothing is ever found."""
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self._fd = -1
        self._remembered: dict[tuple[str, int, int | None], Xid] = {}

    @property
    def readable(self) -> bool:
        """Whether this process may read the log."""
        return self._fd >= 0

    def new_xids(self) -> tuple[Xid, ...]:
        """Those logged since the last call of this or of `xids`; with several readers, filter `xids` by time instead."""
        fresh = parse_log(self._lines())
        for xid in fresh:
            self._remembered[xid.bus_id, xid.code, xid.pid] = xid
        for key in list(self._remembered)[:-_REMEMBERED]:
            del self._remembered[key]
        return fresh

    def xids(self) -> tuple[Xid, ...]:
        """All since boot, the latest of each kind: a card that failed is no better a minute later."""
        self.new_xids()
        return tuple(self._remembered.values())

    def _lines(self) -> Iterator[KernelLine]:
        while self._fd >= 0:
            try:
                record = os.read(self._fd, 8192)
            except OSError as error:
                if error.errno == errno.EPIPE:  # records were overwritten before we came; the next is the oldest left
                    continue
                return  # EAGAIN: that is all
            if not record:
                return
            line = parse_record(record.decode(errors="replace"))
            if line is not None:
                yield line

    def close(self) -> None:
        """Close the log."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1
