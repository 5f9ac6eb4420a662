"""What a node that declares services has beside others: their watcher, the way to systemd, and the runner of commands."""

import logging

from ostler.node.config import NodeConfig
from ostler.node.loops.service_watcher import ServiceWatcher
from ostler.node.runners.service import ServiceRunner
from ostler.node.services.dbus import UnitsByBus
from ostler.node.services.journals import Journals
from ostler.node.services.systemctl import UnitsBySystemctl
from ostler.node.services.units import Either
from ostler.node.services.wishes import Wishes
from ostler.runtime.clock import Clock


def watcher_of(config: NodeConfig, clock: Clock, logger: logging.Logger) -> ServiceWatcher:
    """Watches what the configuration declares: over D-Bus, or by systemctl where that cannot be reached. Blocks."""
    return ServiceWatcher(
        config.services,
        units=Either(UnitsByBus(), UnitsBySystemctl()),
        wishes=Wishes(config.state),
        journals=Journals(),
        clock=clock,
        logger=logger,
    )


def runner_of(watcher: ServiceWatcher) -> ServiceRunner:
    """The runner of commands to these services."""
    return ServiceRunner(watcher)
