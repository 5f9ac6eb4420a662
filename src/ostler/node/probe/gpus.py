"""The GPUs of this host, from whichever source there is, in a time that has a bound."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ostler.model.capabilities import Gpu, HealthProblem, Mig, MigInstance, MigProfile
from ostler.node.probe import amd, nvidia_smi, pci
from ostler.node.probe.command import PATIENCE_S, Commands
from ostler.node.probe.nvml import Nvml, NvmlFailed

_UNRESPONSIVE = "does not answer"


@dataclass(frozen=True, slots=True)
class GpuReading:
    """GPUs as last seen, where they were read from (`nvml`, `nvidia-smi`, `amd-smi`, `rocm-smi`), and what went wrong."""

    gpus: tuple[Gpu, ...] = ()
    sources: tuple[str, ...] = ()
    problems: tuple[HealthProblem, ...] = ()


class GpuReader:
    """Reads GPUs again and again. A driver that hangs costs one thread or process, once, and never the caller."""

    def __init__(
        self,
        commands: Commands | None = None,
        *,
        open_nvml: Callable[[], Nvml] = Nvml,
        patience_s: float = PATIENCE_S,
        sys: Path = Path("/sys"),
    ) -> None:
        """`open_nvml` is called at the first reading, and again after NVML failed."""
        self._commands = commands or Commands(patience_s=patience_s)
        self._open_nvml = open_nvml
        self._patience_s = patience_s
        self._sys = sys
        self._nvml: Nvml | None = None
        self._hanging: threading.Thread | None = None
        self._known: dict[str, tuple[Gpu, ...]] = {}
        self._lock = threading.Lock()

    @property
    def cheap(self) -> bool:
        """Whether a reading takes milliseconds and starts no program: NVML is open."""
        return self._nvml is not None

    def read(self) -> GpuReading:
        """All GPUs. Takes at most the patience per program (NVML, nvidia-smi, AMD's four); never raises for a card."""
        with self._lock:
            parts = [self._nvidia(), self._amd()]
        return GpuReading(
            tuple(
                replace(gpu, numa_node=pci.numa_node(gpu.bus_id, sys=self._sys)) if gpu.numa_node is None else gpu
                for part in parts
                for gpu in part.gpus
            ),
            tuple(source for part in parts for source in part.sources),
            tuple(problem for part in parts for problem in part.problems),
        )

    def close(self) -> None:
        """End the NVML session, if there is one that answers."""
        with self._lock:
            if self._nvml is not None and self._hanging is None:
                self._nvml.close()
                self._nvml = None

    def _nvidia(self) -> GpuReading:
        by_library = self._by_nvml()
        if by_library is not None:
            return by_library
        if self._commands.find("nvidia-smi") is None:
            return GpuReading()
        return self._by_nvidia_smi()

    def _by_nvml(self) -> GpuReading | None:
        """None where NVML is of no use."""
        if self._hanging is not None and self._hanging.is_alive():
            return self._unresponsive("nvml", "NVML")
        self._hanging = None
        found: list[tuple[Gpu, ...]] = []

        def read() -> None:
            try:
                if self._nvml is None:
                    self._nvml = self._open_nvml()
                found.append(self._nvml.read())
            except NvmlFailed:
                self._nvml = None

        # Not a pool's thread: those are waited for at exit, and a wedged driver never returns.
        thread = threading.Thread(target=read, name="nvml", daemon=True)
        thread.start()
        thread.join(self._patience_s)
        if thread.is_alive():
            self._hanging = thread
            return self._unresponsive("nvml", "NVML")
        if not found:
            return None
        return self._good("nvml", found[0])

    def _by_nvidia_smi(self) -> GpuReading:
        output = self._commands.run(*nvidia_smi.QUERY)
        if output.code is None:
            return self._unresponsive("nvidia-smi", f"nvidia-smi: {output.errors}")
        try:
            gpus = nvidia_smi.parse_query(output.text)
        except ValueError:
            said = (output.text.strip() or output.errors.strip() or f"exit code {output.code}").splitlines()[0]
            problem = HealthProblem(code="gpu_driver", subject="nvidia", message=f"nvidia-smi does not work: {said}")
            return GpuReading((), ("nvidia-smi",), (problem,))
        if any(gpu.mig is not None and gpu.mig.enabled for gpu in gpus):
            names = nvidia_smi.parse_list(self._commands.run(*nvidia_smi.LIST).text)
            profiles = nvidia_smi.parse_profiles(self._commands.run(*nvidia_smi.PROFILES).text)
            gpus = tuple(with_mig(gpu, names, profiles) for gpu in gpus)
        return self._good("nvidia-smi", gpus)

    def _amd(self) -> GpuReading:
        if self._commands.find("amd-smi") is not None:
            texts = []
            for argv in (amd.LIST, amd.STATIC, amd.METRIC, amd.PROCESS):
                output = self._commands.run(*argv)
                if output.code is None:
                    return self._unresponsive("amd-smi", f"amd-smi: {output.errors}")
                texts.append(output.text if output.code == 0 else "")
            try:
                return self._good("amd-smi", amd.parse_amd_smi(*texts))
            except ValueError:
                pass  # too old for these options, or without the driver's library: rocm-smi may still do
        if self._commands.find("rocm-smi") is None:
            return GpuReading()
        output = self._commands.run(*amd.ROCM)
        if output.code is None:
            return self._unresponsive("rocm-smi", f"rocm-smi: {output.errors}")
        try:
            return self._good("rocm-smi", amd.parse_rocm_smi(output.text))
        except ValueError as error:
            problem = HealthProblem(code="gpu_driver", subject="amd", message=f"rocm-smi does not work: {error}")
            return GpuReading((), ("rocm-smi",), (problem,))

    def _good(self, source: str, gpus: tuple[Gpu, ...]) -> GpuReading:
        self._known[source] = gpus
        return GpuReading(gpus, (source,))

    def _unresponsive(self, source: str, what: str) -> GpuReading:
        """The cards known from before, none of them of use now."""
        gone = tuple(
            replace(gpu, vram_free_mb=0, processes=(), fault=gpu.fault or _UNRESPONSIVE) for gpu in self._known.get(source, ())
        )
        problem = HealthProblem(
            code="gpu_unresponsive", subject=source, message=f"the GPU driver {_UNRESPONSIVE} ({what})", quarantine=True
        )
        return GpuReading(gone, (source,), (problem,))


def with_mig(gpu: Gpu, names: dict[str, tuple[nvidia_smi.MigName, ...]], profiles: dict[int, tuple[MigProfile, ...]]) -> Gpu:
    """A card with what the XML left out: instances are told in the same order in both."""
    if gpu.mig is None or not gpu.mig.enabled:
        return gpu
    listed = names.get(gpu.uuid or "", ())
    instances = gpu.mig.instances
    if len(listed) == len(instances):
        instances = tuple(_named(one, name) for one, name in zip(instances, listed, strict=True))
    own = profiles.get(gpu.index if gpu.index is not None else -1, ())
    return replace(gpu, mig=Mig(enabled=True, pending=gpu.mig.pending, profiles=own, instances=instances))


def _named(instance: MigInstance, name: nvidia_smi.MigName) -> MigInstance:
    return replace(instance, uuid=instance.uuid or name.uuid, profile=name.profile)
