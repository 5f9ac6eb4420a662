"""What becomes of a command, from what systemd answered: pure."""

from ostler.model.failures import Failure, FailureCode
from ostler.model.service import Verb
from ostler.node.services.judging import why_it_ended
from ostler.node.services.units import Trouble, UnitTrouble, UnitView

PERMIT = "run `ostler node install` or `ostler fleet update`, which permit the node's user exactly its declared units"


def refused(unit: str, verb: Verb, exc: UnitTrouble) -> Failure:
    """systemd did not take it."""
    match exc.trouble:
        case Trouble.DENIED:
            return Failure(FailureCode.DENY, f"this node's user may not {verb.value} {unit}; {PERMIT}")
        case Trouble.MISSING:
            return Failure(FailureCode.SERVICE, f"there is no unit {unit} on this host: {exc}")
        case Trouble.MASKED:
            return Failure(FailureCode.SERVICE, f"{unit} is masked on this host: `systemctl unmask {unit}` there")
        case Trouble.UNREACHABLE:
            return Failure(FailureCode.LOST, f"systemd went away while {unit} was to {verb.value}: {exc}")
    return Failure(FailureCode.SERVICE, f"{unit} did not {verb.value}: {exc}")


def verdict(unit: str, verb: Verb, end: str, view: UnitView | None, absent: str | None) -> Failure | None:
    """systemd took it, and its job ended with the word `end`; `view` is the unit afterwards, `absent` what is wrong with its program."""
    match end:
        case "done" if verb is Verb.STOP or view is None or view.active != "failed":
            return None
        case "skipped" if verb is Verb.START and view is not None and view.active == "active":
            return None
        case "canceled":
            return Failure(FailureCode.SERVICE, f"something else was asked of {unit} meanwhile")
        case "timeout":
            return Failure(FailureCode.TIMEOUT, f"{unit} did not {verb.value} in the time that systemd gives it")
        case "dependency":
            why = "what it depends on did not start"
        case _:
            why = f"systemd says: {end}" if view is None or view.result == "success" else why_it_ended(view)
    return Failure(FailureCode.SERVICE, f"{unit} did not {verb.value}: {why}" + (f"\n{absent}" if absent else ""))
