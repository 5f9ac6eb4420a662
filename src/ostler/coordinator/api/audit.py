"""Endpoints for the audit log: look, and verify."""

import base64
import difflib

from ostler.coordinator.api.calls import Call
from ostler.coordinator.api.trail import LEFT_OUT
from ostler.coordinator.operations import audit as ops
from ostler.model.errors import InvalidSpec, NotFound, Problem
from ostler.protocol import messages as m
from ostler.protocol.audit import GENESIS, Verifier
from ostler.protocol.routes import ROUTES

ACTIONS = (*(route.name for route in ROUTES), LEFT_OUT)
SEALS = 20  # that one call verifies: 20,000 rows at most


async def list_audit(call: Call) -> m.AuditPage:
    """Newest first. Raises InvalidSpec for an action that no row can have."""
    query = call.query(m.AuditQuery)
    if query.action is not None and query.action not in ACTIONS:
        near = difflib.get_close_matches(query.action, ACTIONS, 1)
        meant = f"; did you mean {near[0]}?" if near else "; calls have the names that `docs/reference/access.md` lists"
        raise InvalidSpec("the query is not valid", [Problem("action", f"there is no call {query.action[:100]!r}{meant}")])
    return await call.read(ops.list_audit, query)


async def verify_audit(call: Call) -> m.AuditCheck:
    """Piece by piece: whoever asks goes on after `next`."""
    query, services = call.query(m.AuditCheckQuery), call.services
    head = _head(query.head)
    previous: bytes | None = GENESIS
    if query.after:
        previous = await call.read(ops.seal_before, query.after)
    if previous is None:
        raise NotFound(f"no seal of the audit log ends at row {query.after}", hint="begin anew, without `after`")
    verifier = Verifier([services.keys.signing.public_key()], last_id=query.after, previous=previous)
    wrong = await call.read(ops.allowed, verifier)
    checked = await call.read(ops.verify, verifier, SEALS)
    found = (*([] if query.after else wrong), *checked.findings)
    return m.AuditCheck(
        rows=verifier.rows,
        seals=verifier.seals,
        findings=tuple(m.AuditFinding(message=one.message, row=one.row) for one in found),
        head=verifier.previous.hex() if verifier.previous != GENESIS else None,
        head_found=None if head is None else head in verifier.digests,
        unsealed=checked.unsealed,
        key=base64.b64encode(services.keys.public).decode(),
        next=None if checked.done else verifier.last_id,
    )


def _head(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != len(GENESIS):
        raise InvalidSpec("the query is not valid", [Problem("head", "must be a digest of a seal: 64 hexadecimal digits")])
    return found
