"""The shape of a job: what placement needs to know of it. Jobs of one owner that need the same have the same shape and share a queue."""

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache

from ostler.model.manifest import Manifest, Policy, Requirements, Runner
from ostler.model.resources import Resources, demand
from ostler.model.sandbox import SandboxLevel
from ostler.protocol.codec import decode, encode


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Requirements, runner, least sandbox level, queue, owner, and of a command the service. Values, so that equal ones are one key."""

    runner: Runner
    queue: str
    sandbox: SandboxLevel | None
    requirements: Requirements
    owner: str | None = None
    service: str | None = None

    @cached_property
    def demand(self) -> Resources:
        """What one attempt takes from a node while it lives."""
        return demand(self.requirements, self.runner)

    @cached_property
    def takes_a_slot(self) -> bool:
        """Whether an attempt takes one of its node's slots for jobs without a GPU; a command to a service takes none."""
        return self.runner is not Runner.SERVICE and not self.demand.gpu_slots

    @cached_property
    def asks(self) -> Manifest:
        """The least manifest of this shape, for rules that are stated over manifests."""
        return Manifest(
            runner=self.runner,
            command=self.service,
            queue=self.queue,
            requirements=self.requirements,
            policy=Policy(sandbox=self.sandbox),
        )


def shape_of(manifest: Manifest, owner: str | None = None) -> Shape:
    """The shape of a job of this owner with this manifest."""
    return Shape(
        runner=manifest.runner,
        queue=manifest.queue,
        sandbox=manifest.least_sandbox,
        requirements=manifest.requirements,
        owner=owner,
        service=manifest.command if manifest.runner is Runner.SERVICE else None,
    )


@lru_cache(maxsize=1024)
def write_shape(shape: Shape) -> tuple[int, str]:
    """The shape's id and its JSON. The id is a hash of the JSON, so that every process gives the same one without asking a
    database.

    63 bits fit the integer keys of all databases. Two shapes that a submitter made to collide would only misplace that
    submitter's own jobs.
    """
    body = encode(shape)
    return int.from_bytes(hashlib.sha256(body).digest()[:8], "big") >> 1, body.decode()


def read_shape(body: str) -> Shape:
    """The shape from its JSON."""
    return decode(body, Shape, what="shape")
