"""Services: the long-lived things that a node's host runs. What is asked of one, what is seen of it, and commands as jobs.

A command is a job of the runner `service`: its `command` names the service as the node's configuration does, its `args` are one verb.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from ostler.model.enumeration import Word
from ostler.model.manifest import Manifest, Runner

COMMAND_TTL = timedelta(minutes=5)  # a command that found no node for so long is not carried out any more
STALE = timedelta(minutes=5)  # what was seen so long ago says nothing of now (source: S5)


class Verb(Word):
    """What a command may ask of a service."""

    START = "start"
    STOP = "stop"
    RESTART = "restart"
    STATUS = "status"


class ServiceState(Word):
    """How a service was found."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    UNHEALTHY = "unhealthy"
    STOPPING = "stopping"
    RESTARTING = "restarting"
    INSTALLING = "installing"
    UPDATING = "updating"
    REMOVING = "removing"
    CRASHED = "crashed"
    MISSING = "missing"  # its unit, or the program that the unit needs, is not there


class Health(Word):
    """What its probes say."""

    UNKNOWN = "unknown"  # not running, or still in its start grace
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    STALE = "stale"  # the coordinator's word for news that is older than STALE


class Desired(Word):
    """What a person last asked for; a node keeps it."""

    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One service as its node saw it. `since` is when it came into this state (ISO 8601 with its offset), `restarts` how often the
    node started it anew after a crash since a person last asked for something, `retry_s` how long until it does so again.

    `metrics` are numbers that the service tells of itself, by name. `message` says what is wrong, for a person.
    """

    name: str
    state: ServiceState
    health: Health = Health.UNKNOWN
    desired: Desired | None = None
    unit: str = ""
    since: str | None = None
    pid: int | None = None
    restarts: int = 0
    retry_s: float | None = None
    message: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Command:
    """What one delivery asks for."""

    service: str
    verb: Verb

    @property
    def desired(self) -> Desired | None:
        """What a person wants of the service from now on; None where the command only asks."""
        return {Verb.START: Desired.RUNNING, Verb.RESTART: Desired.RUNNING, Verb.STOP: Desired.STOPPED}.get(self.verb)


def command_of(manifest: Manifest) -> Command | None:
    """The command that a good manifest of the runner `service` is; None for jobs of other runners."""
    if manifest.runner is not Runner.SERVICE:
        return None
    return Command(manifest.command or "", Verb(manifest.args[0]))
