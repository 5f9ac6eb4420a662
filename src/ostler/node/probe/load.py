"""The load of this machine in a moment, cheap enough for every heartbeat."""

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import psutil

from ostler.model.capabilities import Load, idle_gpus, vram_free_mb
from ostler.node.probe import host
from ostler.node.probe.gpus import GpuReader, GpuReading

_MB = 2**20


class LoadGauge:
    """Answers at once: GPUs are read in a thread of their own, and the last reading is what is told.

    A reading by command is made far less often than one by NVML. One that does not come back makes the GPUs count
    as taken, so that a wedged driver gets no new jobs; the reader says the same as a health problem.
    """

    def __init__(
        self,
        reader: GpuReader,
        *,
        path: str,
        first: GpuReading | None = None,
        every: timedelta = timedelta(seconds=5),
        every_by_command: timedelta = timedelta(seconds=60),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`path` is the workspaces' directory; `first` the reading that the probe made."""
        self._reader = reader
        self._path = path
        self._every_s = every.total_seconds()
        self._every_by_command_s = every_by_command.total_seconds()
        self._clock = clock
        self._reading = first or GpuReading()
        self._read_at = clock() if first is not None else float("-inf")
        self._began_at = 0.0
        self._thread: threading.Thread | None = None
        psutil.cpu_percent()  # the first call only sets the mark from which the next one counts

    @property
    def reading(self) -> GpuReading:
        """The last reading of GPUs."""
        return self._reading

    def load(self) -> Load:
        """The load now; `cpu_load` covers the time since the last call."""
        self._refresh()
        gpus = () if self._overdue() else self._reading.gpus
        disk = host.disk(self._path)
        return Load(
            load=round(os.getloadavg()[0], 2),
            free_mb=psutil.virtual_memory().available // _MB,
            gpu_free=len(idle_gpus(gpus)),
            disk_free_mb=disk.free_mb if disk is not None else 0,
            cpu_load=psutil.cpu_percent(),
            vram_free_mb=vram_free_mb(gpus),
        )

    def _interval_s(self) -> float:
        return self._every_s if self._reader.cheap else self._every_by_command_s

    def _refresh(self) -> None:
        now = self._clock()
        busy = self._thread is not None and self._thread.is_alive()
        if busy or now - self._read_at < self._interval_s():
            return
        self._began_at = now
        self._thread = threading.Thread(target=self._read, name="gpu-load", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        self._reading = self._reader.read()
        self._read_at = self._clock()

    def _overdue(self) -> bool:
        reading = self._thread is not None and self._thread.is_alive()
        return reading and self._clock() - self._began_at > 2 * self._interval_s()
