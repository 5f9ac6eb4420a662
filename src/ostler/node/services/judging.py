"""What a service is, from what was seen of it: pure."""

from dataclasses import dataclass

from ostler.model.service import Desired, Health, ServiceState, Verb
from ostler.node.services.restarts import Condition
from ostler.node.services.units import UnitView

_ENDS = {
    "exit-code": "it ended with exit code {status}",
    "signal": "it was killed by signal {status}",
    "core-dump": "it crashed with signal {status}",
    "oom-kill": "the kernel killed it for a lack of memory",
    "timeout": "it did not start or end in the time that its unit allows",
    "watchdog": "it stopped answering its watchdog",
    "start-limit-hit": "it failed so often that systemd does not start it any more",
    "resources": "systemd could not give it what its unit asks for",
    "exec-condition": "a condition of its unit does not hold",
    "protocol": "it did not do what its unit's type promises",
}
_GONE = {
    "not-found": "there is no unit {unit} on this host",
    "masked": "{unit} is masked",
    "bad-setting": "{unit} has a mistake in its file",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """All that a verdict stands on. `absent` says why the program is of no use, `ill` why the service is unhealthy, `doing` what it was
    told to do just now."""

    unit: str
    view: UnitView
    health: Health = Health.UNKNOWN
    ill: str = ""
    absent: str | None = None
    desired: Desired | None = None
    doing: Verb | None = None


def judge(seen: Seen) -> tuple[ServiceState, str]:
    """The state, and what a person should know of it."""
    view = seen.view
    if view.load in _GONE:
        return ServiceState.MISSING, _GONE[view.load].format(unit=seen.unit)
    match view.active:
        case "active" | "reloading":
            if seen.health is Health.UNHEALTHY:
                return ServiceState.UNHEALTHY, seen.ill
            return ServiceState.RUNNING, ""
        case "activating":
            again = seen.doing is Verb.RESTART or view.sub == "auto-restart"
            return (ServiceState.RESTARTING if again else ServiceState.STARTING), ""
        case "deactivating":
            return (ServiceState.RESTARTING if seen.doing is Verb.RESTART else ServiceState.STOPPING), ""
        case _ if seen.absent is not None:
            return ServiceState.MISSING, seen.absent
        case "failed" if seen.desired is Desired.STOPPED:
            return ServiceState.STOPPED, why_it_ended(view)
        case "failed":
            return ServiceState.CRASHED, why_it_ended(view)
        case _ if seen.desired is Desired.RUNNING:
            return ServiceState.STOPPED, "it was asked to run, and ended by itself or was stopped on the host"
    return ServiceState.STOPPED, ""


def why_it_ended(view: UnitView) -> str:
    """systemd's word for it as a sentence."""
    return _ENDS.get(view.result, f"systemd says: {view.result}").format(status=view.status)


def condition(state: ServiceState, *, restart_sick: bool) -> Condition:
    """What the restart policy makes of a state."""
    match state:
        case ServiceState.RUNNING:
            return Condition.WELL
        case ServiceState.CRASHED:
            return Condition.DOWN
        case ServiceState.UNHEALTHY if restart_sick:
            return Condition.SICK
    return Condition.OTHER
