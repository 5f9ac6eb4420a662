"""How much an attempt may use: the least of what its manifest, its allowlist entry and the node's configuration say."""

from collections.abc import Iterable
from typing import TypeVar

from ostler.model.manifest import Manifest
from ostler.node.config import ResourceLimits

Number = TypeVar("Number", int, float)


def least(values: Iterable[Number | None]) -> Number | None:
    """The smallest of those that are limits at all."""
    return min([value for value in values if value is not None], default=None)


def memory_mb(manifest: Manifest, node: ResourceLimits) -> int | None:
    """The memory of the whole tree. What a job requires of a node is also what it may use of it."""
    return least((manifest.policy.memory_mb, manifest.requirements.memory_mb or None, node.mem_soft_mb))


def disk_mb(manifest: Manifest, node: ResourceLimits) -> int | None:
    """The workspace's quota."""
    return least((manifest.policy.disk_mb, node.disk_mb))


def log_mb(manifest: Manifest, node: ResourceLimits) -> int:
    """The cap of both log streams together."""
    return least((manifest.policy.log_mb, node.log_mb)) or node.log_mb


def grace_s(manifest: Manifest, node: ResourceLimits) -> float:
    """The time between asking a tree to end and killing it; a manifest may ask for less than the node grants."""
    return least((manifest.policy.grace_s, node.grace_s)) or node.grace_s
