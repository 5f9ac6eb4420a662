"""Endpoints for rollouts. What changes one may say which revision it means, by `If-Match`."""

import re
import secrets

from ostler.coordinator.api.calls import Answer, Call
from ostler.coordinator.operations import rollouts as ops
from ostler.model.errors import InvalidSpec, Outdated, Problem
from ostler.protocol import messages as m

_TAG = re.compile(r'(?a)"([0-9]{1,9})"')


async def plan_rollout(call: Call) -> Answer:
    """What it would do; nothing begins."""
    asked = await call.json(m.RolloutRequest)
    ops.check_request(asked)
    rollout_id = call.target = f"{call.services.clock.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    return _tagged(await call.write(ops.plan_rollout, asked, rollout_id, call.caller.principal))


async def list_rollouts(call: Call) -> m.RolloutPage:
    """Newest first."""
    return await call.read(ops.list_rollouts, call.query(m.PageQuery))


async def show_rollout(call: Call) -> Answer:
    """One."""
    return _tagged(await call.read(ops.show_rollout, call.path["rollout_id"]))


async def resume_rollout(call: Call) -> Answer:
    """Begin, or go on."""
    return _tagged(await call.write(ops.resume_rollout, call.path["rollout_id"], _expected(call)))


async def pause_rollout(call: Call) -> Answer:
    """No further node begins."""
    reason = (await call.json(m.ReasonRequest)).reason
    return _tagged(await call.write(ops.pause_rollout, call.path["rollout_id"], reason, _expected(call)))


async def abort_rollout(call: Call) -> Answer:
    """It ends."""
    reason = (await call.json(m.ReasonRequest)).reason
    return _tagged(await call.write(ops.abort_rollout, call.path["rollout_id"], reason, _expected(call)))


def _tagged(view: m.RolloutView) -> Answer:
    return Answer(view, headers={"ETag": f'"{view.revision}"'})


def _expected(call: Call) -> int | None:
    """The revision that the caller means; None where any will do (RFC 9110, section 13.1.1)."""
    header = call.header(b"if-match")
    if header is None or header == "*":
        return None
    if header.startswith("W/"):
        raise Outdated("a weak tag in If-Match fits nothing", hint="send the ETag as it came")
    match = _TAG.fullmatch(header)
    if match is None:
        raise InvalidSpec("the header If-Match is not valid", [Problem("If-Match", 'must be one ETag of a rollout, such as "3"')])
    return int(match[1])
