"""Services of nodes: what each declares and how it was found, and a command to one, which becomes a job for each node that it is for."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from ostler.coordinator.operations.claims import Placements
from ostler.coordinator.operations.jobs import new_job_ids, submit_jobs
from ostler.coordinator.operations.views import check_limit, read_cursor, write_cursor
from ostler.coordinator.placement.offer import declared
from ostler.coordinator.store.times import when_or_none
from ostler.coordinator.store.tx import Row, Tx
from ostler.model.errors import Conflict, InvalidSpec, NodeRetired, NotFound, Problem
from ostler.model.manifest import Manifest
from ostler.model.node import NodeState
from ostler.model.service import STALE, Health, Observation, Verb
from ostler.model.target import HINT, Addressed, Addressee, Target, address
from ostler.protocol.codec import decode, encode
from ostler.protocol.messages import (
    Delivery,
    LeftOut,
    ServicePage,
    ServiceQuery,
    ServiceResponse,
    ServiceView,
    outside,
)

MAX_METRICS = 32  # of one service
MAX_EVENTS = 32  # of one report
MAX_TEXT = 500
MAX_NAMED = 100
METRIC = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,63}")


# --- what nodes say ----------------------------------------------------------------------------------------------------------


def declare(tx: Tx, node_id: str, names: Iterable[str]) -> None:
    """What a node declares from now on; what was seen of the others is forgotten."""
    wanted = set(declared(names))
    there = {row[0] for row in tx.rows("SELECT name FROM services WHERE node_id = ?", (node_id,))}
    if gone := there - wanted:
        tx.many("DELETE FROM services WHERE node_id = ? AND name = ?", [(node_id, name) for name in sorted(gone)])
    if new := wanted - there:
        tx.many("INSERT INTO services (node_id, name) VALUES (?, ?)", [(node_id, name) for name in sorted(new)])


def observe(tx: Tx, node_id: str, seen: Sequence[Observation]) -> None:
    """How a node found the services that it declares; what it says of others is passed over. An event tells of each that changed."""
    known: dict[str, str | None] = dict(tx.rows("SELECT name, body FROM services WHERE node_id = ?", (node_id,)))
    told = {one.name: cleaned(one) for one in seen if one.name in known}
    events = []
    for name, now in told.items():
        body = known[name]
        before = None if body is None else decode(body, Observation, what="observation")
        if before is None or (before.state, before.health) != (now.state, now.health):
            events.append((tx.at, node_id, _change(before, now)))
    tx.many(
        "UPDATE services SET told_at = ?, body = ? WHERE node_id = ? AND name = ?",
        [(tx.at, encode(one).decode(), node_id, name) for name, one in told.items()],
    )
    if events:
        tx.many("INSERT INTO events (at, kind, node_id, message) VALUES (?, 'service', ?, ?)", events[:MAX_EVENTS])
        tx.wake(("events",))


def cleaned(one: Observation) -> Observation:
    """The same as far as it may be stored and shown: texts of some length, times that are some, numbers that are numbers."""
    metrics = sorted(
        (name, float(value)) for name, value in one.metrics.items() if METRIC.fullmatch(name) and math.isfinite(value)
    )
    return replace(
        one,
        unit=one.unit[:MAX_TEXT],
        message=one.message[:MAX_TEXT],
        since=one.since if _moment(one.since) is not None else None,
        retry_s=one.retry_s if one.retry_s is not None and math.isfinite(one.retry_s) else None,
        metrics=dict(metrics[:MAX_METRICS]),
    )


def _moment(text: str | None) -> datetime | None:
    try:
        moment = None if text is None or len(text) > MAX_TEXT else datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if moment is None or moment.tzinfo is None else moment


def _change(before: Observation | None, now: Observation) -> str:
    was = "" if before is None else f"{_words(before)}, now "
    return f"{now.name}: {was}{_words(now)}{f' ({now.message})' if now.message else ''}"[:MAX_TEXT]


def _words(one: Observation) -> str:
    return one.state.value if one.health is Health.UNKNOWN else f"{one.state.value} and {one.health.value}"


# --- what people see ---------------------------------------------------------------------------------------------------------

_COLUMNS = "s.name, s.node_id, n.state, n.pool, n.last_seen_at, s.told_at, s.body"
_FROM = "FROM services s JOIN nodes n ON n.node_id = s.node_id"


def list_services(tx: Tx, query: ServiceQuery, name: str | None = None) -> ServicePage:
    """One page of the services of all nodes that are not retired, or of those of this name. NotFound, InvalidSpec."""
    check_limit(query.limit)
    place = read_cursor(query.cursor, (str, str)) or ["", ""]
    more, params = "", list[Any]()
    if name is not None:
        _check_declared(tx, name)
        more, params = "AND s.name = ?", [name]
    if query.node is not None:
        _check_known(tx, query.node)
        more, params = f"{more} AND s.node_id = ?", [*params, query.node]
    rows = tx.rows(
        f"""SELECT {_COLUMNS} {_FROM} WHERE n.state <> 'retired' AND (s.name > ? OR (s.name = ? AND s.node_id > ?)) {more}
            ORDER BY s.name, s.node_id LIMIT ?""",
        (place[0], place[0], place[1], *params, query.limit + 1),
    )
    page = rows[: query.limit]
    cursor = write_cursor(page[-1][0], page[-1][1]) if len(rows) > query.limit else None
    return ServicePage(items=tuple(_view(tx, row) for row in page), next_cursor=cursor)


def services_of(tx: Tx, node_id: str) -> tuple[ServiceView, ...]:
    """Those of one node."""
    rows = tx.rows(f"SELECT {_COLUMNS} {_FROM} WHERE s.node_id = ? ORDER BY s.name", (node_id,))
    return tuple(_view(tx, row) for row in rows)


def told_services(tx: Tx, limit: int) -> tuple[ServiceView, ...]:
    """Those of all nodes that are not retired of which something is known, for /metrics."""
    rows = tx.rows(
        f"SELECT {_COLUMNS} {_FROM} WHERE n.state <> 'retired' AND s.body IS NOT NULL ORDER BY s.name, s.node_id LIMIT ?",
        (limit,),
    )
    return tuple(_view(tx, row) for row in rows)


def _view(tx: Tx, row: Row) -> ServiceView:
    name, node_id, node_state, pool, last_seen_at, told_at, body = row
    state, told = NodeState(node_state), when_or_none(told_at)
    if body is None:
        return ServiceView(name=name, node_id=node_id, node_state=state, pool=pool)
    seen = decode(body, Observation, what="observation")
    # A node tells of what changed; while it is heard of, whatever it said last is so.
    heard = max(filter(None, (when_or_none(last_seen_at), told)), default=None)
    stale = heard is None or tx.now - heard > STALE
    return ServiceView(
        name=name, node_id=node_id, node_state=state, pool=pool, state=seen.state, health=Health.STALE if stale else seen.health,
        desired=seen.desired, unit=seen.unit, since=_moment(seen.since), pid=seen.pid, restarts=seen.restarts, retry_s=seen.retry_s,
        message=seen.message, metrics=dict(seen.metrics), told_at=told,
    )  # fmt: skip


def _check_known(tx: Tx, node_id: str) -> None:
    if tx.row("SELECT 1 FROM nodes WHERE node_id = ?", (node_id,)) is None:
        raise NotFound(f"there is no node {node_id}", hint="see `ostler node list`")


def _check_declared(tx: Tx, name: str) -> None:
    if tx.row("SELECT 1 FROM services WHERE name = ? LIMIT 1", (name,)) is None:
        known = [row[0] for row in tx.rows("SELECT DISTINCT name FROM services ORDER BY name LIMIT ?", (MAX_NAMED,))]
        there = f"there are: {', '.join(known)}" if known else "declare services in the configuration of a node, under `services`"
        raise NotFound(f"no node declares a service {name}", hint=there)


# --- what people ask for -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A command before it is known whom it goes to; `target` None: whoever is meant where nobody is named."""

    service: str
    verb: Verb
    target: Target | None
    ttl_s: float
    timeout_s: float
    retries: int | None = None

    def spec(self, node_id: str | None = None) -> dict[str, Any]:
        """The manifest of one delivery."""
        target, need = self.target, dict[str, Any]()
        if node_id is not None:
            need = {"node": node_id}
        elif target is not None:
            need = ({"pool": target.pool} if target.pool else {}) | ({"tags": target.tags} if target.tags else {})
        retries = {} if self.retries is None else {"retries": self.retries}
        return {
            "runner": "service", "command": self.service, "args": [self.verb.value], "requirements": need,
            "ttl_s": self.ttl_s, "timeout_s": self.timeout_s, **retries,
        }  # fmt: skip


def command_service(tx: Tx, order: Order, owner: str | None) -> ServiceResponse:
    """Give a command: a job for each node that it is for, or one for any of them. Raises NotFound (no such service, or nobody who is
    meant declares it), InvalidSpec (it is open who is meant), Conflict (all who are meant are gone), NodeRetired.
    """
    _check_declared(tx, order.service)
    nodes = _nodes(tx, order)
    order = replace(order, target=_meant(order, nodes))
    target = order.target or Target()
    found = address(target, nodes)
    if not found.nodes:
        raise _nobody(tx, order, target, found)
    each: list[str | None] = [None] if target.one else list(found.nodes)
    texts = [encode(order.spec(node_id)).decode() for node_id in each]
    accepted = [(decode(text, Manifest, what="manifest"), text) for text in texts]
    group = None if target.one or target.node is not None else new_job_ids(tx.now, 1)[0]
    made = submit_jobs(tx, accepted, owner, group=group)
    left_out = sorted(found.left_out, key=lambda one: not one[2])  # those that should worry somebody first
    return ServiceResponse(
        service=order.service, verb=order.verb, group_id=group,
        deliveries=tuple(
            Delivery(job_id=one.job_id, node_id=node_id, state=one.state) for one, node_id in zip(made.items, each, strict=True)
        ),
        left_out=tuple(LeftOut(node_id=node_id, reason=reason, unreached=unreached) for node_id, reason, unreached in left_out[:MAX_NAMED]),
        left_out_count=len(found.left_out),
    )  # fmt: skip


def _nodes(tx: Tx, order: Order) -> list[Addressee]:
    """All that the command might be for, those that do not declare the service last. What an offer says of tags is remembered."""
    places, target = tx.memo(Placements), order.target
    which, params = (
        ("", [order.service]) if target is None or target.node is None else ("WHERE n.node_id = ?", [order.service, target.node])
    )
    rows = tx.rows(
        f"""SELECT n.node_id, n.state, n.pool, n.protocol, n.offer, n.cpu_slots, n.gpu_slots, s.name
            FROM nodes n LEFT JOIN services s ON s.node_id = n.node_id AND s.name = ? {which} ORDER BY n.node_id""",  # noqa: S608
        params,
    )
    tagged = target is not None and bool(target.tags)
    found = [
        Addressee(
            node_id=node_id, state=NodeState(state), pool=pool, declares=name is not None, outside=outside(protocol) is not None,
            tags=places.offer_of(tx, node_id, number, (cpu, gpu)).tags if tagged else (),
        )
        for node_id, state, pool, protocol, number, cpu, gpu, name in rows
    ]  # fmt: skip
    return sorted(found, key=lambda node: not node.declares)


def _meant(order: Order, nodes: Sequence[Addressee]) -> Target:
    """Whom a command without a target is for: the only one that declares the service; who only asks, asks all."""
    if order.target is not None:
        return order.target
    there = [node.node_id for node in nodes if node.declares and node.state is not NodeState.RETIRED]
    if order.verb is Verb.STATUS or not there:
        return Target()
    if len(there) > 1:
        some = ", ".join(there[:5]) + (", …" if len(there) > 5 else "")
        raise InvalidSpec(
            f"{len(there)} nodes declare the service {order.service} ({some}): it is open which one is meant",
            [Problem("on", "is missing")], hint=HINT,
        )  # fmt: skip
    return Target(node=there[0])


def _nobody(tx: Tx, order: Order, target: Target, found: Addressed) -> Exception:
    what, why = f"{order.verb.value} {order.service}", {node_id: reason for node_id, reason, _ in found.left_out}
    if target.node is not None:
        row = tx.row("SELECT state FROM nodes WHERE node_id = ?", (target.node,))
        if row is None:
            return NotFound(f"there is no node {target.node}", hint="see `ostler node list`, or `ostler service list`")
        if NodeState(row[0]) is NodeState.RETIRED:
            return NodeRetired(f"node {target.node} was retired: nobody is there to {what}", hint="see `ostler node list`")
        if why.get(target.node) == "does not declare it":
            has = [row[0] for row in tx.rows("SELECT name FROM services WHERE node_id = ? ORDER BY name", (target.node,))]
            there = f"it declares {', '.join(has[:MAX_NAMED])}" if has else "it declares none"
            return NotFound(f"node {target.node} declares no service {order.service}", hint=there)
    gone = [f"{node_id} {reason}" for node_id, reason, _ in found.left_out if reason != "does not declare it"]
    if gone:
        return Conflict(
            f"nobody is there to {what}: {', '.join(gone[:5])}{', …' if len(gone) > 5 else ''}",
            hint="nothing was kept for later: give the command again once they are back",
        )
    rows = tx.rows("SELECT node_id FROM services WHERE name = ? ORDER BY node_id LIMIT 6", (order.service,))
    who = ", ".join([row[0] for row in rows[:5]] + (["…"] if len(rows) > 5 else []))
    return NotFound(f"none of the nodes that are selected declares the service {order.service}", hint=f"it is declared by {who}")
