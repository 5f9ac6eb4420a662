"""How a host differs from what it should be, and the command that mends each difference."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ostler.fleet.again import line as again
from ostler.fleet.node_config import Own
from ostler.fleet.rollout.preflight import (
    ENDS,
    FIREWALL_UNIT,
    LOCK_STALE,
    NODE_UNIT,
    NOT_ENROLLED,
    SKEW,
    WATCH_UNIT,
    Facts,
    edited,
    is_retired,
    not_running,
    skew,
    strange,
    unlinked,
)
from ostler.model.words import on_one_line
from ostler.protocol import messages as m

MOST_NAMED = 3
WAIT = "wait until its window is over"


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference: what is so, and what to type."""

    what: str
    mend: str


def appraise(
    host: str,
    facts: Facts,
    *,
    release: str | None,
    own: Own | None = None,
    given: Mapping[str, Any],
    asked_at: datetime,
    answered_at: datetime,
    known_as: str | None = None,
    mistakes: Sequence[str] = (),
) -> list[Finding]:
    """All that is not as it should be. `release` is the one that all hosts should have, `own` what this one should have for itself; None:
    nobody knows. `given` are the options that the commands say again, see `again`. `known_as`: the coordinator has this node, with another
    key than the host's. `mistakes` are those of its allowlist. While an update is watched nothing else may begin: what differs then is
    waited for."""
    watched = facts.update is not None
    update = WAIT if watched else again("update", given, [host])
    run = f"{again('run', given, [host])} --"
    node = facts.units.get(NODE_UNIT)
    if facts.current is None or node is None:
        return [Finding("no daemon is installed", again("install", given, [host]))]
    found = []
    if release is not None and facts.current != release:
        found.append(Finding(f"release {facts.current}, not {release}", update))
    install = WAIT if watched else again("install", given, [host])
    enrol = install if watched or known_as is None else f"{shlex.join(('ostler', 'node', 'retire', known_as))} && {install}"
    anew = facts.altered and release in {None, facts.current}  # first: else what was altered of its units would be put in force
    written = install if facts.unfinished or anew else update
    found += [Finding(line, written) for line in (*edited(facts, own), *unlinked(facts))]
    for path, line in strange(facts).items():
        here = shlex.quote(path)
        found.append(Finding(line, f"look at it; if it is yours: chown root: {here} && chmod 644 {here}, else rm {here}"))
    if facts.altered:
        found.append(Finding(_altered(facts), written))
    entries = WAIT if watched else again("install", {**given, "--allowlist": "DIR"}, [host])
    found += [Finding(line, f"correct it there, remove it, or bring another one: {entries}") for line in mistakes]
    if facts.unfinished:
        found.append(Finding("its installation was not finished", install))
    logs = again("logs", given, [host])
    for line in not_running(facts):
        unit = line.split()[0] if line.startswith("ostler-") else NODE_UNIT
        start = logs if ENDS in line else f"{run} systemctl {'restart' if unit == NODE_UNIT else 'start'} {unit}"
        found.append(Finding(line, WAIT if watched else install if facts.unfinished else start))
    found += [*_unit_files(facts, run), *_firewall(facts, run, anew=f"{again('firewall', given, [host])} --allow …")]
    if not facts.has_key and not facts.unfinished:
        found.append(Finding("the node's key is gone from its disk", enrol))
    if is_retired(facts):
        found.append(Finding("its node was retired", f"{again('uninstall', given, [host])} && {again('install', given, [host])}"))
    found += _health(facts, logs=logs, update=update, enrol=enrol, watched=watched)
    found += [Finding(warning, f"put the program there, then: {update}") for warning in facts.warnings]
    wrong = skew(facts, asked_at, answered_at)
    if abs(wrong) > SKEW:
        side = "ahead" if wrong > timedelta() else "behind"
        found.append(Finding(f"its clock is {abs(wrong).total_seconds():.0f} s {side}", f"{run} timedatectl set-ntp true"))
    if facts.lock is not None and facts.now - facts.lock.beat_at > LOCK_STALE.total_seconds():
        why = f"{again('lock break', given, [host])} --why …"
        found.append(Finding(f"locked by {facts.lock.owner}, who is silent", why))
    if facts.update is not None:
        found.append(Finding(f"update to {facts.update.release} is being watched ({facts.update.state})", WAIT))
    return found


def lacks_key(facts: Facts) -> bool:
    """Whether a node has no key that its coordinator knows: what mends that depends on whom the coordinator knows by its name."""
    return not facts.has_key or (facts.health or {}).get("enrolled") is False


def _altered(facts: Facts) -> str:
    some, more = ", ".join(facts.altered[:MOST_NAMED]), len(facts.altered) - MOST_NAMED
    count, _, word = facts.altered[-1].partition(" ")
    if word == "more" and count.isdecimal():  # the host itself names some alone
        more += int(count) - 1
    return f"of release {facts.current} was altered on the host: {some}{f' and {more} more' if more > 0 else ''}"


def _unit_files(facts: Facts, run: str) -> list[Finding]:
    """What changes units beside the release, and a watcher that an open update lacks."""
    found = []
    for name, unit in sorted(facts.units.items()):
        for path in unit.drop_ins:
            command = shlex.join(("sh", "-c", f"rm {shlex.quote(path)} && systemctl daemon-reload"))
            found.append(Finding(f"{name} is changed by {path}", f"keep it, or: {run} {command}"))
        if unit.stale and unit.sha256 == unit.wanted:  # whatever writes its file anew has it read
            found.append(Finding(f"systemd has not read {name} as it is now", f"{run} systemctl daemon-reload"))
    watch = facts.units.get(WATCH_UNIT)
    if facts.update is not None and watch is not None and (watch.state != "active" or not watch.at_boot):
        what = f"is {watch.state}" if watch.state != "active" else "does not start with the host"
        found.append(Finding(f"{WATCH_UNIT} {what}, and an update is open", f"{run} systemctl enable --now {WATCH_UNIT}"))
    return found


def _firewall(facts: Facts, run: str, *, anew: str) -> list[Finding]:
    """Rules for the health port that are there, and not in force; `anew` writes the unit."""
    unit = facts.units.get(FIREWALL_UNIT)
    if unit is None or (unit.sha256 is not None and unit.state == "active" and unit.at_boot):
        return []
    what = (
        "is missing" if unit.sha256 is None else f"is {unit.state}" if unit.state != "active" else "does not start with the host"
    )
    mend = anew if unit.sha256 is None else f"{run} systemctl enable --now {FIREWALL_UNIT}"
    return [Finding(f"{FIREWALL_UNIT} {what}: it guards the health port", mend)]


def _health(facts: Facts, *, logs: str, update: str, enrol: str, watched: bool) -> list[Finding]:
    """What the daemon says of itself."""
    if facts.health is None:
        return (
            [Finding("the daemon does not answer", WAIT if watched else logs)] if facts.units[NODE_UNIT].state == "active" else []
        )
    protocol = facts.health.get("protocol")
    unknown = facts.health.get("enrolled") is False
    problems = facts.health.get("problems")  # the daemon's own words, whatever they are
    found = [
        Finding(on_one_line(str(problem)), enrol if unknown and str(problem).startswith(NOT_ENROLLED) else logs)
        for problem in (problems if isinstance(problems, list) else ())
        if not (is_retired(facts) and "was retired" in str(problem))
    ]
    if isinstance(protocol, int) and not m.PROTOCOL_MIN <= protocol <= m.PROTOCOL:
        found.append(Finding(f"it speaks protocol {protocol}, current are {m.PROTOCOL_MIN} to {m.PROTOCOL}", update))
    return found
