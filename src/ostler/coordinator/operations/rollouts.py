"""Rollouts as people see and change them. Each function is one transaction's worth.

What was asked for stands in `plan`, each node's way in `rollout_hosts`; `nodes.rollout_id` names the one rollout that may ask a node for
a release. `rollout_turns` carries them on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from ostler.coordinator.operations import releases, sessions
from ostler.coordinator.operations.changes import shortened
from ostler.coordinator.operations.views import check_limit, read_cursor, write_cursor
from ostler.coordinator.store.schema import IN_FLIGHT_SQL, listed
from ostler.coordinator.store.times import micros, span, when, when_or_none
from ostler.coordinator.store.tx import Row, Tx
from ostler.model.errors import Conflict, InvalidSpec, NotFound, OperationInFlight, Outdated, Problem
from ostler.model.node import NodeState
from ostler.model.release import Age, is_older
from ostler.model.rollout import state as states
from ostler.model.rollout.observe import Candidate, Outlook, outlook
from ostler.model.rollout.plan import Plan, Share
from ostler.model.rollout.progress import TERMINAL, Event, Phase, Progress, advance
from ostler.model.rollout.report import Report
from ostler.model.rollout.state import RolloutEvent, RolloutState
from ostler.model.words import many
from ostler.protocol.codec import decode, encode
from ostler.protocol.messages import PageQuery, RolloutHost, RolloutPage, RolloutRequest, RolloutView, mend_outside, outside

TOPIC = ("rollouts",)
KEPT = timedelta(days=90)
MAX_WINDOW_S, MAX_TIMEOUT_S, MAX_NODES, MAX_SHOWN = 3600.0, 86_400.0, 10_000, 20
_COLUMNS = "rollout_id, state, release, plan, revision, reason, created_at, created_by, started_at, finished_at"
_OVER = listed(TERMINAL)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A rollout with its plan and its hosts, in the plan's order; `jobs` are their canary jobs."""

    rollout_id: str
    state: RolloutState
    revision: int
    asked: RolloutRequest
    plan: Plan
    progress: Mapping[str, Progress]
    jobs: Mapping[str, str]
    row: Row


def plan_rollout(tx: Tx, asked: RolloutRequest, rollout_id: str, by: str | None) -> RolloutView:
    """Write down what a rollout would do, in the state `planned`. Nodes that cannot get the release have come to their end already. Raises
    InvalidSpec, NotFound (no such release), Conflict where it is for none, being older than what nodes run.
    """
    _forget_old(tx)
    release = releases.show_release(tx, asked.release)
    ages = releases.ages(tx)
    candidates = [replace(one, newer=_is_newer(one, release.release, ages)) for one in _candidates(tx, asked)]
    found = [(one, outlook(one, release.release, release.platforms)) for one in candidates]
    _refuse_older(release.release, found)
    found.sort(key=lambda pair: pair[1].event is not None)  # canaries are of those that can begin
    plan = _plan(
        rollout_id, asked, [one.host for one, _ in found],
        {one.host: look.reason or "" for one, look in found if look.event is Event.EXCLUDE},
    )  # fmt: skip
    tx.run(
        f"INSERT INTO rollouts ({_COLUMNS}) VALUES (?, ?, ?, ?, 1, NULL, ?, ?, NULL, NULL)",  # noqa: S608 - our own constant
        (rollout_id, RolloutState.PLANNED.value, release.release, encode(asked).decode(), tx.at, by),
    )
    rows = []
    for place, (one, look) in enumerate(found):
        host = Progress(host=one.host)
        if look.event is not None:
            host = advance(host, look.event, now=tx.now, reason=look.reason)
        window_s = plan.window_for(one.host).total_seconds()
        rows.append((rollout_id, one.host, place, *_cells(host), plan.excluded.get(one.host), window_s))
    tx.many(
        "INSERT INTO rollout_hosts (rollout_id, node_id, place, phase, fate, reason, began_at, since, excluded, window_s) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        rows,
    )
    return show_rollout(tx, rollout_id)


def _is_newer(node: Candidate, release: str, ages: Mapping[str, Age]) -> bool:
    return node.release not in {None, release} and is_older(ages[release], str(node.release), ages)


def _refuse_older(release: str, found: Sequence[tuple[Candidate, Outlook]]) -> None:
    """Where it could begin nowhere and some node runs something newer, that is what is to be told."""
    newer = [one for one, _ in found if one.newer]
    if newer and all(look.event is not None for _, look in found):
        others = f" and {many(len(newer) - 1, 'other node')} something newer" if newer[1:] else ""
        raise Conflict(
            f"release {release} is older than {newer[0].release}, which node {newer[0].host} runs{others}: hosts take no older release "
            "from the coordinator",
            hint=f"who has root may go back: `ostler fleet update --release {release}` over SSH; or build the old content as a new commit",
        )


def _forget_old(tx: Tx) -> None:
    """What was over, or never begun, three months ago."""
    tx.run(
        f"""DELETE FROM rollouts WHERE created_at < ? AND state NOT IN ('{RolloutState.RUNNING}', '{RolloutState.HELD}')
            AND NOT EXISTS (SELECT 1 FROM rollout_hosts h WHERE h.rollout_id = rollouts.rollout_id AND h.phase IN ({IN_FLIGHT_SQL}))""",  # noqa: S608
        (tx.at - span(KEPT),),
    )


def _plan(rollout_id: str, asked: RolloutRequest, hosts: Sequence[str], excluded: Mapping[str, str]) -> Plan:
    window = timedelta(seconds=asked.window_s)
    return Plan(
        rollout_id=rollout_id, release=asked.release, hosts=tuple(hosts), excluded=excluded, canary=asked.canary,
        serial=None if asked.serial is None else Share.parse(asked.serial), max_failures=Share.parse(asked.max_failures),
        window=window, timeout=timedelta(seconds=asked.timeout_s),
        canary_window=3 * window if asked.canary_window_s is None else timedelta(seconds=asked.canary_window_s),
    )  # fmt: skip


def check_request(asked: RolloutRequest) -> None:
    """What can be told without looking at anything else. Raises InvalidSpec with every mistake."""
    windows = {"window_s": asked.window_s, "canary_window_s": 1.0 if asked.canary_window_s is None else asked.canary_window_s}
    problems = [
        Problem(name, f"must be from 1 to {MAX_WINDOW_S:g} seconds")
        for name, value in windows.items()
        if not 1.0 <= value <= MAX_WINDOW_S
    ]
    if not 1.0 <= asked.timeout_s <= MAX_TIMEOUT_S:
        problems.append(Problem("timeout_s", f"must be from 1 to {MAX_TIMEOUT_S:g} seconds"))
    if asked.nodes is not None and (asked.pool is not None or asked.tags):
        problems.append(Problem("nodes", "are named one by one, or chosen by pool and tags, not both"))
    if asked.nodes is not None and not 1 <= len(asked.nodes) <= MAX_NODES:
        problems.append(Problem("nodes", f"must be from 1 to {MAX_NODES}"))
    for name, text in (("serial", asked.serial), ("max_failures", asked.max_failures)):
        try:
            _ = text is None or Share.parse(text)
        except InvalidSpec as exc:
            problems.append(Problem(name, exc.message))
    if not problems:
        try:
            _plan("", asked, asked.nodes or (), {})
        except InvalidSpec as exc:
            problems.append(Problem("", exc.message))
    if problems:
        raise InvalidSpec("the rollout is not valid", problems)


def _candidates(tx: Tx, asked: RolloutRequest) -> list[Candidate]:
    body = {name: tx.json_text("c.body", name) for name in ("release", "updates", "tags")}
    where, params = "", []
    if asked.nodes is not None:
        where, params = f"AND {tx.any_of('n.node_id')}", [tx.array(asked.nodes)]
    elif asked.pool is not None:
        where, params = "AND n.pool = ?", [asked.pool]
    rows = tx.rows(
        f"""SELECT n.node_id, n.state, n.cordoned, n.protocol, n.rollout_id, {body["release"]}, {body["updates"]}, {body["tags"]}
            FROM nodes n LEFT JOIN capabilities c ON c.node_id = n.node_id
            WHERE n.state <> 'retired' {where} ORDER BY n.node_id LIMIT ?""",  # noqa: S608 - fragments of ours
        (*params, MAX_NODES + 1),
    )
    wanted = set(asked.tags)
    found = [_candidate(row) for row in rows if not wanted or wanted <= set(decode(row[7] or "[]", list[str], what="tags"))]
    if asked.nodes is not None:
        order = {name: place for place, name in enumerate(asked.nodes)}
        if strange := [name for name in asked.nodes if name not in {one.host for one in found}]:
            raise InvalidSpec(
                "the rollout names nodes that there are not",
                [Problem("nodes", f"{name} is no node, or was retired") for name in strange[:MAX_SHOWN]],
                hint="see `ostler node list`",
            )
        found.sort(key=lambda one: order[one.host])
    if not found:
        raise InvalidSpec("there is no node that the rollout is for", [Problem("pool", "and tags fit no node")])
    if len(found) > MAX_NODES:
        raise InvalidSpec("the rollout is for too many nodes", [Problem("nodes", f"can be {MAX_NODES} at most: choose by pool")])
    return found


def _candidate(row: Row) -> Candidate:
    node_id, state, cordoned, protocol, rollout_id, release, updates, _ = row
    side = outside(protocol)
    why = None if side is None else f"it speaks protocol {protocol} and has no session here; {mend_outside(side, node_id)}"
    return Candidate(
        host=node_id, release=release, platform=updates, silent=state in {NodeState.UNKNOWN, NodeState.LOST}, cordoned=cordoned,
        outside=why, busy=rollout_id,
    )  # fmt: skip


# --- what people decide ------------------------------------------------------------------------------------------------------


def resume_rollout(tx: Tx, rollout_id: str, expected: int | None) -> RolloutView:
    """Begin it, or go on. Raises NotFound, InvalidTransition, Outdated, OperationInFlight (another rollout has one of its nodes)."""
    one = load(tx, rollout_id)
    _changed(tx, one, RolloutEvent.RESUME, expected, None)
    if one.state is RolloutState.PLANNED:
        _claim(tx, rollout_id)
        tx.run("UPDATE rollouts SET started_at = ? WHERE rollout_id = ?", (tx.at, rollout_id))
    return show_rollout(tx, rollout_id)


def _claim(tx: Tx, rollout_id: str) -> None:
    ours = f"SELECT node_id FROM rollout_hosts WHERE rollout_id = ? AND phase NOT IN ({_OVER})"  # noqa: S608 - our own constant
    taken = tx.row(
        f"SELECT node_id, rollout_id FROM nodes WHERE rollout_id IS NOT NULL AND node_id IN ({ours}) ORDER BY node_id LIMIT 1",  # noqa: S608
        (rollout_id,),
    )
    if taken is not None:
        raise OperationInFlight(
            f"node {taken[0]} is in rollout {taken[1]}, which is not over", hint=f"see `ostler rollout show {taken[1]}`"
        )
    tx.run(f"UPDATE nodes SET rollout_id = ? WHERE node_id IN ({ours})", (rollout_id, rollout_id))  # noqa: S608


def pause_rollout(tx: Tx, rollout_id: str, reason: str | None, expected: int | None) -> RolloutView:
    """Begin no further node. Raises NotFound, InvalidTransition, Outdated."""
    _changed(tx, load(tx, rollout_id), RolloutEvent.PAUSE, expected, shortened(reason) or "asked to")
    return show_rollout(tx, rollout_id)


def abort_rollout(tx: Tx, rollout_id: str, reason: str | None, expected: int | None) -> RolloutView:
    """The end: nodes that have not begun are held. Raises NotFound, InvalidTransition, Outdated."""
    one, why = load(tx, rollout_id), shortened(reason) or "asked to"
    _changed(tx, one, RolloutEvent.ABORT, expected, why)
    held = {
        host: advance(progress, Event.HOLD, now=tx.now, reason=f"aborted: {why}")
        for host, progress in one.progress.items()
        if progress.phase is Phase.PLANNED
    }
    write_hosts(tx, rollout_id, held)
    return show_rollout(tx, rollout_id)


def _changed(tx: Tx, one: Loaded, event: RolloutEvent, expected: int | None, reason: str | None) -> None:
    if expected is not None and expected != one.revision:
        raise Outdated(
            f"rollout {one.rollout_id} has changed since: its revision is {one.revision}, not {expected}",
            hint=f"look again: `ostler rollout show {one.rollout_id}`",
        )
    set_state(tx, one.rollout_id, states.advance(one.rollout_id, one.state, event), reason)


def set_state(tx: Tx, rollout_id: str, state: RolloutState, reason: str | None) -> None:
    """Write a decision about a rollout, which is a new revision of it."""
    over = tx.at if state in states.TERMINAL else None
    tx.run(
        "UPDATE rollouts SET state = ?, reason = ?, finished_at = ?, revision = revision + 1 WHERE rollout_id = ?",
        (state.value, reason, over, rollout_id),
    )
    tx.wake(TOPIC)


def write_hosts(tx: Tx, rollout_id: str, hosts: Mapping[str, Progress]) -> None:
    """Write how far hosts are; those that have come to an end are free for other rollouts."""
    tx.many(
        "UPDATE rollout_hosts SET phase = ?, fate = ?, reason = ?, began_at = ?, since = ? WHERE rollout_id = ? AND node_id = ?",
        [(*_cells(host), rollout_id, name) for name, host in hosts.items()],
    )
    free = [name for name, host in hosts.items() if host.phase in TERMINAL]
    tx.many("UPDATE nodes SET rollout_id = NULL WHERE node_id = ? AND rollout_id = ?", [(name, rollout_id) for name in free])
    for name, host in hosts.items():
        why = f": {host.reason}" if host.reason and host.failed else ""
        sessions.note(tx, "rollout", name, shortened(f"{rollout_id}: {host.phase}{why}"))
        tx.wake(("node", name))


def _cells(host: Progress) -> tuple[object, ...]:
    times = (None if at is None else micros(at) for at in (host.began_at, host.since))
    return (host.phase.value, host.fate.value, host.reason, *times)


# --- reading -----------------------------------------------------------------------------------------------------------------


def load(tx: Tx, rollout_id: str) -> Loaded:
    """A rollout whole; raises NotFound."""
    row = tx.row(f"SELECT {_COLUMNS} FROM rollouts WHERE rollout_id = ?", (rollout_id,))  # noqa: S608 - our own constant
    if row is None:
        raise NotFound(f"there is no rollout {rollout_id}", hint="see `ostler rollout list`")
    hosts = tx.rows(
        "SELECT node_id, phase, fate, reason, began_at, since, excluded, job_id FROM rollout_hosts WHERE rollout_id = ? ORDER BY place",
        (rollout_id,),
    )
    asked = decode(row[3], RolloutRequest, what="plan")
    plan = _plan(rollout_id, asked, [host[0] for host in hosts], {host[0]: host[6] for host in hosts if host[6] is not None})
    progress = {
        name: Progress(
            host=name,
            phase=Phase(phase),
            fate=Phase(fate),
            reason=reason,
            began_at=when_or_none(began_at),
            since=when_or_none(since),
        )
        for name, phase, fate, reason, began_at, since, _, _ in hosts
    }
    jobs = {host[0]: host[7] for host in hosts if host[7] is not None}
    return Loaded(rollout_id, RolloutState(row[1]), row[4], asked, plan, progress, jobs, row)


def show_rollout(tx: Tx, rollout_id: str) -> RolloutView:
    """One rollout with its hosts; raises NotFound."""
    one = load(tx, rollout_id)
    told = {
        name: (release, report)
        for name, release, report in tx.rows(
            f"""SELECT h.node_id, {tx.json_text("c.body", "release")}, h.report FROM rollout_hosts h
                LEFT JOIN capabilities c ON c.node_id = h.node_id WHERE h.rollout_id = ?""",  # noqa: S608 - fragments of ours
            (rollout_id,),
        )
    }
    counts: dict[Phase, int] = {}
    for host in one.progress.values():
        counts[host.phase] = counts.get(host.phase, 0) + 1
    hosts = tuple(
        RolloutHost(
            node_id=name, phase=host.phase, reason=host.reason, release=told[name][0], canary=name in one.plan.canaries,
            began_at=host.began_at, since=host.since, job_id=one.jobs.get(name), detail=_detail(told[name][1]) if host.failed else None,
        )
        for name, host in one.progress.items()
    )  # fmt: skip
    return _view(one.row, one.asked, counts, hosts)


def _detail(report: str | None) -> str | None:
    return None if report is None else decode(report, Report, what="report").detail


def list_rollouts(tx: Tx, query: PageQuery) -> RolloutPage:
    """One page, newest first. For `Store.read`."""
    check_limit(query.limit)
    place = read_cursor(query.cursor, (int, str))
    below = "" if place is None else "WHERE (created_at, rollout_id) < (?, ?)"
    rows = tx.rows(
        f"SELECT {_COLUMNS} FROM rollouts {below} ORDER BY created_at DESC, rollout_id DESC LIMIT ?",  # noqa: S608 - our own constants
        (*(place or ()), query.limit + 1),
    )
    page = rows[: query.limit]
    counts: dict[str, dict[Phase, int]] = {}
    for rollout_id, phase, count in tx.rows(
        f"SELECT rollout_id, phase, count(*) FROM rollout_hosts WHERE {tx.any_of('rollout_id')} GROUP BY rollout_id, phase",  # noqa: S608
        (tx.array(row[0] for row in page),),
    ):
        counts.setdefault(rollout_id, {})[Phase(phase)] = count
    views = tuple(_view(row, decode(row[3], RolloutRequest, what="plan"), counts.get(row[0], {}), ()) for row in page)
    last = page[-1] if len(rows) > query.limit else None
    return RolloutPage(items=views, next_cursor=None if last is None else write_cursor(last[6], last[0]))


def _view(row: Row, asked: RolloutRequest, counts: Mapping[Phase, int], hosts: tuple[RolloutHost, ...]) -> RolloutView:
    rollout_id, state, release, _, revision, reason, created_at, created_by, started_at, finished_at = row
    canary_window_s = 3 * asked.window_s if asked.canary_window_s is None else asked.canary_window_s
    return RolloutView(
        rollout_id=rollout_id, release=release, state=RolloutState(state), revision=revision, canary=asked.canary, serial=asked.serial,
        max_failures=asked.max_failures, window_s=asked.window_s, canary_window_s=canary_window_s, timeout_s=asked.timeout_s,
        created_at=when(created_at), created_by=created_by, started_at=when_or_none(started_at), finished_at=when_or_none(finished_at),
        reason=reason, message=asked.message, counts=counts, hosts=hosts,
    )  # fmt: skip
