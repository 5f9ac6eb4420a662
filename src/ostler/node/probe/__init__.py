"""The capability probe of a node: what its machine is, how it fares, and what is wrong with it."""

from ostler.node.probe.gpus import GpuReader, GpuReading
from ostler.node.probe.load import LoadGauge
from ostler.node.probe.probe import probe
from ostler.node.probe.xid import KernelLog, Xid

__all__ = ["GpuReader", "GpuReading", "KernelLog", "LoadGauge", "Xid", "probe"]
