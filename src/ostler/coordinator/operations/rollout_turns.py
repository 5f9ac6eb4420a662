"""How rollouts come further: what nodes are asked for and report, and what follows from it, a transaction at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

from ostler.coordinator.operations import jobs, releases, rollouts
from ostler.coordinator.operations.changes import failure_of, shortened
from ostler.coordinator.operations.rollouts import Loaded
from ostler.coordinator.store.schema import IN_FLIGHT_SQL, LIVE_SQL
from ostler.coordinator.store.tx import Row, Tx
from ostler.model.errors import Conflict
from ostler.model.job import TERMINAL as TERMINAL_JOB
from ostler.model.job import JobState
from ostler.model.manifest import Manifest, Runner
from ostler.model.node import NodeState
from ostler.model.rollout import state as states
from ostler.model.rollout.observe import Moves, Seen, Trial, look
from ostler.model.rollout.progress import FAILURES, IN_FLIGHT, Phase
from ostler.model.rollout.report import Report
from ostler.model.rollout.state import RolloutEvent, RolloutState
from ostler.model.words import many
from ostler.protocol.codec import decode, encode
from ostler.protocol.messages import Directive, DirectiveKind, WantedUpdate

CANARY = {
    "runner": "cli", "command": "/usr/bin/true", "timeout_s": 30.0, "ttl_s": 90.0, "retries": 0, "queue": "interactive",
    "labels": {"ostler": "canary"},
}  # fmt: skip
MAX_DETAIL = 8000
Waited = Mapping[tuple[str, Phase], timedelta]  # by node and phase
_OPEN = f"'{RolloutState.HELD}', '{RolloutState.RUNNING}'"


# --- between coordinator and nodes -------------------------------------------------------------------------------------------


def wish(tx: Tx, node_id: str, rollout_id: str) -> Directive | None:
    """What this rollout asks of the node now. For `Store.read` or `Store.write`."""
    row = tx.row(
        f"""SELECT h.phase, h.reason, h.window_s, r.release, {tx.json_text("c.body", "updates")} FROM rollout_hosts h
            JOIN rollouts r ON r.rollout_id = h.rollout_id JOIN capabilities c ON c.node_id = h.node_id
            WHERE h.rollout_id = ? AND h.node_id = ? AND h.phase IN ({IN_FLIGHT_SQL})""",  # noqa: S608 - fragments of ours
        (rollout_id, node_id),
    )
    if row is None:
        return None
    phase, reason, window_s, release, platform = row
    if (excerpt := releases.excerpts_of(tx, release).get(platform or "")) is None:
        return None
    back = (reason or "the coordinator thinks worse of it") if phase == Phase.GOING_BACK else None
    update = WantedUpdate(
        rollout_id=rollout_id, release=release, platform=platform, sha256=excerpt.sha256, size=excerpt.size, window_s=window_s,
        back=back,
    )  # fmt: skip
    return Directive(kind=DirectiveKind.UPDATE, update=update)


def note_report(tx: Tx, node_id: str, rollout_id: str, report: Report) -> None:
    """What the node says of an update; of another one than this rollout's it is nobody's business."""
    if report.update_id != rollout_id:
        return
    report = replace(
        report,
        release=report.release[:200],
        reason=shortened(report.reason),
        detail=report.detail and report.detail[-MAX_DETAIL:],
    )
    body = encode(report).decode()
    if tx.run(
        "UPDATE rollout_hosts SET report = ? WHERE rollout_id = ? AND node_id = ? AND coalesce(report, '') <> ?",
        (body, rollout_id, node_id, body),
    ):
        tx.wake(rollouts.TOPIC)


def is_asked(tx: Tx, node_id: str, release: str) -> bool:
    """Whether a node is asked to run this release now. For `Store.read`."""
    sql = f"""SELECT 1 FROM nodes n JOIN rollouts r ON r.rollout_id = n.rollout_id
              JOIN rollout_hosts h ON h.rollout_id = n.rollout_id AND h.node_id = n.node_id
              WHERE n.node_id = ? AND r.release = ? AND h.phase IN ({IN_FLIGHT_SQL})"""  # noqa: S608 - our own constant
    return tx.row(sql, (node_id, release)) is not None


def check_free(tx: Tx, release: str) -> None:
    """Raises Conflict where a rollout that is not over brings this release."""
    sql = f"""SELECT r.rollout_id FROM rollouts r WHERE r.release = ? AND (r.state IN ({_OPEN}, '{RolloutState.PLANNED}') OR EXISTS
              (SELECT 1 FROM rollout_hosts h WHERE h.rollout_id = r.rollout_id AND h.phase IN ({IN_FLIGHT_SQL}))) ORDER BY 1 LIMIT 1"""  # noqa: S608
    if (row := tx.row(sql, (release,))) is not None:
        raise Conflict(f"rollout {row[0]} brings release {release} to nodes", hint=f"ostler rollout abort {row[0]}")


# --- for the loop that carries them on ---------------------------------------------------------------------------------------


def open_rollouts(tx: Tx) -> dict[str, list[tuple[str, Phase]]]:
    """Those that are not over, with the nodes that are under way. For `Store.read`."""
    found: dict[str, list[tuple[str, Phase]]] = {
        row[0]: []
        for row in tx.rows(f"SELECT rollout_id FROM rollouts WHERE state IN ({_OPEN})")  # noqa: S608 - our own constant
    }
    for rollout_id, node_id, phase in tx.rows(
        f"SELECT rollout_id, node_id, phase FROM rollout_hosts WHERE phase IN ({IN_FLIGHT_SQL})"  # noqa: S608
    ):
        found.setdefault(rollout_id, []).append((node_id, Phase(phase)))
    return found


def is_due(tx: Tx, rollout_id: str, waited: Waited) -> bool:
    """Whether `drive` would change anything. For `Store.read`."""
    one = rollouts.load(tx, rollout_id)
    moves = _look(tx, one, waited)
    return bool(moves.happened or moves.trials) or (moves.over and one.state not in states.TERMINAL)


def drive(tx: Tx, rollout_id: str, waited: Waited) -> Moves:
    """Carry a rollout as far as what is known lets it come; answers what happened."""
    one = rollouts.load(tx, rollout_id)
    moves = _look(tx, one, waited)
    rollouts.write_hosts(tx, rollout_id, {host: moves.progress[host] for host in {each.host for each in moves.happened}})
    for host in moves.trials:
        job_id = _submit_trial(tx, host)
        tx.run("UPDATE rollout_hosts SET job_id = ? WHERE rollout_id = ? AND node_id = ?", (job_id, rollout_id, host))
    if moves.over and one.state not in states.TERMINAL:
        left = [host.host for host in moves.progress.values() if host.phase in FAILURES or host.phase is Phase.HELD]
        event = RolloutEvent.FAIL if left else RolloutEvent.FINISH
        why = moves.halted or (f"{len(left)} of {many(len(moves.progress), 'node')} not where they should be" if left else None)
        rollouts.set_state(tx, rollout_id, states.advance(rollout_id, one.state, event), why)
    return moves


def _submit_trial(tx: Tx, node_id: str) -> str:
    spec = encode({**CANARY, "requirements": {"node": node_id}}).decode()
    answer = jobs.submit_jobs(tx, [(decode(spec, Manifest, what="manifest"), spec)])
    return answer.items[0].job_id


def _look(tx: Tx, one: Loaded, waited: Waited) -> Moves:
    held = one.state is not RolloutState.RUNNING
    return look(one.plan, one.progress, _seen(tx, one, waited), now=tx.now, held=held)


def _seen(tx: Tx, one: Loaded, waited: Waited) -> dict[str, Seen]:
    """What is known of the nodes that are under way."""
    names = [host.host for host in one.progress.values() if host.phase in IN_FLIGHT]
    if not names:
        return {}
    release, runners = tx.json_text("c.body", "release"), tx.json_text("c.body", "runners")
    rows = tx.rows(
        f"""SELECT h.node_id, h.report, h.job_id, n.state, n.draining, n.cordoned, n.cpu_slots, {release}, {runners},
                   (SELECT count(*) FROM attempts a WHERE a.node_id = h.node_id AND a.state IN ({LIVE_SQL}))
            FROM rollout_hosts h LEFT JOIN nodes n ON n.node_id = h.node_id LEFT JOIN capabilities c ON c.node_id = h.node_id
            WHERE h.rollout_id = ? AND {tx.any_of("h.node_id")}""",  # noqa: S608 - fragments of ours
        (one.rollout_id, tx.array(names)),
    )
    trials = _trials(tx, rows)
    return {
        row[0]: Seen(
            report=None if row[1] is None else decode(row[1], Report, what="report"),
            release=row[7],
            takes_work=row[3] == NodeState.READY and not row[4] and row[5] is None,
            silent=row[3] not in {NodeState.READY, NodeState.DRAINING, NodeState.DRAINED},
            trial=trials[row[0]][0],
            trial_reason=trials[row[0]][1],
            waited=waited.get((row[0], one.progress[row[0]].phase), timedelta()),
        )
        for row in rows
    }


def _trials(tx: Tx, rows: Sequence[Row]) -> dict[str, tuple[Trial, str | None]]:
    """How the canary jobs stand, by node. One that a node without a free slot did not come to says nothing of its release, and a node
    that runs no commands has none: its own self-check, which the host's watcher waited for, is what there is.
    """
    ids = [row[2] for row in rows if row[2] is not None]
    found = {
        row[0]: row[1:]
        for row in tx.rows(
            f"SELECT job_id, state, failure_code, failure_message FROM jobs WHERE {tx.any_of('job_id')}",  # noqa: S608
            (tx.array(ids),),
        )
    }
    trials: dict[str, tuple[Trial, str | None]] = {}
    for node_id, _, job_id, *_, slots, _, runners, live in rows:
        if Runner.CLI not in decode(runners or "[]", list[str], what="runners"):
            trials[node_id] = Trial.DONE, None
        elif job_id is None:
            trials[node_id] = Trial.NONE, None
        else:
            state, code, message = found.get(job_id, (JobState.FAILED, None, None))
            trials[node_id] = _trial(job_id, JobState(state), code, message, full=live >= slots)
    return trials


def _trial(job_id: str, state: JobState, code: str | None, message: str | None, *, full: bool) -> tuple[Trial, str | None]:
    if state is JobState.DONE or (state is JobState.EXPIRED and full):
        return Trial.DONE, None
    if state not in TERMINAL_JOB:
        return Trial.UNDER_WAY, None
    failure = failure_of(code, message)
    why = f"{failure.code.value}: {failure.message}" if failure is not None else f"see `ostler job show {job_id}`"
    return Trial.FAILED, f"its canary job {job_id} is {state.value} ({why})"
