"""NVIDIA cards by NVML, the driver's own library, through nvidia-ml-py.

One session stays open: without it, drivers not in persistence mode would be started and stopped at each reading.
Nothing here is loaded on a host without the driver.
"""

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ostler.model.capabilities import Cuda, Ecc, Gpu, GpuProcess, Mig, MigInstance, MigProfile
from ostler.node.probe.pci import bus_id

LIBRARY = "libnvidia-ml.so.1"

_MB = 2**20
_LOST, _RESET_REQUIRED, _UNKNOWN = 15, 16, 999  # NVML_ERROR_GPU_IS_LOST, …
_GONE = {_LOST: "GPU is lost", _RESET_REQUIRED: "GPU requires reset", _UNKNOWN: "Unknown Error"}


class NvmlFailed(Exception):
    """The library is of no use now: no driver, another version of it, or not permitted. The message says which."""


class _Gone(Exception):
    """A single card that does not answer any more."""


class Nvml:
    """A session. Calls block as long as the driver likes: make them where that is bearable."""

    def __init__(self) -> None:
        """Raises NvmlFailed where library, binding or driver are missing or do not fit."""
        try:
            ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise NvmlFailed(f"no {LIBRARY}") from error
        try:
            import pynvml
        except ImportError as error:
            raise NvmlFailed("nvidia-ml-py is not installed") from error
        self._lib: Any = pynvml
        self._error: type[Exception] = pynvml.NVMLError
        self._seen: dict[int, Gpu] = {}
        self._whole("nvmlInit")

    def close(self) -> None:
        """End the session."""
        with contextlib.suppress(self._error):  # the driver may be gone already
            self._lib.nvmlShutdown()

    def read(self) -> tuple[Gpu, ...]:
        """All cards. One that stopped answering is told with its fault and what was known of it.

        Raises NvmlFailed where the driver itself fails.
        """
        cuda = Cuda(version=self._cuda_version(), driver=_word(self._whole("nvmlSystemGetDriverVersion")))
        count = self._whole("nvmlDeviceGetCount")
        found = tuple(self._card(index, cuda) for index in range(count))
        self._seen.update((index, gpu) for index, gpu in enumerate(found) if not gpu.fault)
        return found

    def _card(self, index: int, cuda: Cuda) -> Gpu:
        try:
            return self._answering(index, cuda)
        except _Gone as gone:
            unknown = Gpu(vendor="nvidia", name="unknown", vram_mb=0, cuda=cuda, index=index, driver=cuda.driver)
            known = self._seen.get(index, unknown)
            return replace(known, vram_free_mb=0, utilisation_pct=None, processes=(), fault=str(gone))

    def _answering(self, index: int, cuda: Cuda) -> Gpu:
        handle = self._need("nvmlDeviceGetHandleByIndex", index)
        memory = self._ask("nvmlDeviceGetMemoryInfo", handle, self._lib.nvmlMemory_v2)
        if memory is None:  # drivers before 510
            memory = self._need("nvmlDeviceGetMemoryInfo", handle)
        pci = self._ask("nvmlDeviceGetPciInfo", handle)
        rates = self._ask("nvmlDeviceGetUtilizationRates", handle)
        return Gpu(
            vendor="nvidia",
            name=_word(self._need("nvmlDeviceGetName", handle)),
            vram_mb=memory.total // _MB,
            cuda=cuda,
            uuid=_word(self._need("nvmlDeviceGetUUID", handle)),
            index=index,
            minor=self._ask("nvmlDeviceGetMinorNumber", handle),
            bus_id=None if pci is None else bus_id(_word(pci.busId)),
            driver=cuda.driver,
            vram_free_mb=memory.free // _MB,
            utilisation_pct=None if rates is None else int(rates.gpu),
            temperature_c=self._temperature(handle),
            mig=self._mig(handle),
            ecc=self._ecc(handle),
            processes=tuple(self._processes(handle)),
        )

    def _temperature(self, handle: Any) -> int | None:
        sensor = self._lib.NVML_TEMPERATURE_GPU
        for name in ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"):  # new drivers, and all but the newest
            value = self._ask(name, handle, sensor)
            if value is not None:
                return int(value)
        return None

    def _ecc(self, handle: Any) -> Ecc | None:
        mode = self._ask("nvmlDeviceGetEccMode", handle)
        if mode is None:
            return None
        lib = self._lib
        rows = self._ask("nvmlDeviceGetRemappedRows", handle)
        pages = self._ask("nvmlDeviceGetRetiredPagesPendingStatus", handle)
        return Ecc(
            enabled=bool(mode[0]),
            corrected=self._ask(
                "nvmlDeviceGetTotalEccErrors", handle, lib.NVML_MEMORY_ERROR_TYPE_CORRECTED, lib.NVML_VOLATILE_ECC
            ),
            uncorrected=self._ask(
                "nvmlDeviceGetTotalEccErrors", handle, lib.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, lib.NVML_VOLATILE_ECC
            ),
            repair_pending=bool(pages) or (rows is not None and bool(rows[2])),
            repair_failed=rows is not None and bool(rows[3]),
        )

    def _mig(self, handle: Any) -> Mig | None:
        mode = self._ask("nvmlDeviceGetMigMode", handle)
        if mode is None:
            return None
        enabled = bool(mode[0])
        return Mig(
            enabled=enabled,
            pending=bool(mode[1]),
            profiles=tuple(self._profiles(handle)) if enabled else (),
            instances=tuple(self._instances(handle)) if enabled else (),
        )

    def _profiles(self, handle: Any) -> Iterator[MigProfile]:
        for number in range(self._lib.NVML_GPU_INSTANCE_PROFILE_COUNT):
            profile = self._ask("nvmlDeviceGetGpuInstanceProfileInfo", handle, number)
            if profile is not None and profile.instanceCount:
                yield MigProfile(
                    name=_word(profile.name).removeprefix("MIG "),
                    vram_mb=int(profile.memorySizeMB),
                    total=int(profile.instanceCount),
                    free=self._ask("nvmlDeviceGetGpuInstanceRemainingCapacity", handle, profile.id),
                )

    def _instances(self, handle: Any) -> Iterator[MigInstance]:
        for number in range(self._ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
            device = self._ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
            if device is None:  # places that no instance takes
                continue
            memory = self._ask("nvmlDeviceGetMemoryInfo", device)
            name = _word(self._ask("nvmlDeviceGetName", device) or "")  # "NVIDIA A100-SXM4-40GB MIG 3g.20gb"
            yield MigInstance(
                uuid=_word(self._ask("nvmlDeviceGetUUID", device) or "") or None,
                profile=name.rpartition("MIG ")[2] if "MIG " in name else "",
                vram_mb=memory.total // _MB if memory is not None else 0,
                vram_free_mb=memory.free // _MB if memory is not None else None,
                gpu_instance=self._ask("nvmlDeviceGetGpuInstanceId", device),
                compute_instance=self._ask("nvmlDeviceGetComputeInstanceId", device),
            )

    def _processes(self, handle: Any) -> Iterator[GpuProcess]:
        seen: set[int] = set()
        for kind in ("Compute", "Graphics"):  # a process that does both is told twice
            found = None
            for version in ("_v3", "_v2"):  # by name: the binding's unversioned call breaks on drivers before 510
                found = self._ask(f"nvmlDeviceGet{kind}RunningProcesses{version}", handle) if found is None else found
            for process in found or ():
                if process.pid not in seen:
                    seen.add(process.pid)
                    used = process.usedGpuMemory
                    yield GpuProcess(pid=int(process.pid), used_mb=None if used is None else used // _MB, kind=kind.lower())

    def _cuda_version(self) -> str:
        number = self._ask("nvmlSystemGetCudaDriverVersion_v2")  # 12030 for 12.3
        return "" if number is None else f"{number // 1000}.{number % 1000 // 10}"

    def _whole(self, name: str, *args: Any) -> Any:
        """A call about the driver as a whole."""
        try:
            return getattr(self._lib, name)(*args)
        except self._error as error:
            raise NvmlFailed(str(error)) from error

    def _need(self, name: str, *args: Any) -> Any:
        """A call that a good card always answers."""
        try:
            return getattr(self._lib, name)(*args)
        except self._error as error:
            raise _Gone(_GONE.get(_code(error), str(error))) from error

    def _ask(self, name: str, *args: Any) -> Any:
        """A call that not every card or driver knows: None then."""
        function = getattr(self._lib, name, None)
        if function is None:
            return None
        try:
            return function(*args)
        except self._error as error:
            if _code(error) in (_LOST, _RESET_REQUIRED):
                raise _Gone(_GONE[_code(error)]) from error
            return None


def _code(error: Exception) -> int:
    return int(getattr(error, "value", _UNKNOWN))


def _word(found: Any) -> str:
    """Releases of the binding answer bytes or text."""
    return found.decode(errors="replace") if isinstance(found, bytes) else str(found)
