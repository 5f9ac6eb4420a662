"""Endpoints for the services of nodes: everybody looks, operators and admins command."""

import hashlib

from ostler.coordinator.api.bodies import JSON_LIMIT, decode_json
from ostler.coordinator.api.calls import Answer, Call
from ostler.coordinator.api.keyed import replayed
from ostler.coordinator.operations import services as ops
from ostler.coordinator.operations.idempotency import Mark, once
from ostler.coordinator.operations.services import Order
from ostler.model.errors import InvalidSpec
from ostler.model.manifest import Manifest, problems
from ostler.model.service import Verb
from ostler.model.target import read_target
from ostler.protocol import codec
from ostler.protocol import messages as m


async def list_services(call: Call) -> m.ServicePage:
    """Those of all nodes."""
    return await call.read(ops.list_services, call.query(m.ServiceQuery))


async def show_service(call: Call) -> m.ServicePage:
    """One on all nodes that declare it."""
    return await call.read(ops.list_services, call.query(m.ServiceQuery), call.path["name"])


async def command_service(call: Call) -> m.ServiceResponse | Answer:
    """A job for each node that it is for; with a key, once."""
    key, raw, owner = call.idempotency_key(), await call.body.whole(JSON_LIMIT), call.caller.principal
    order = _order(call.path["name"], call.path["verb"], decode_json(raw, m.ServiceRequest))
    if key is None:
        call.services.door.command(order.service, owner)
        return await call.write(ops.command_service, order, owner)
    digest = hashlib.sha256(f"{order.service}/{order.verb}\n".encode() + raw).digest()
    mark = Mark(owner or "", key, digest, call.services.config.retention.idempotency)

    async def give() -> tuple[m.ServiceResponse, bool]:
        call.services.door.command(order.service, owner)
        return await call.write(once, mark, m.ServiceResponse, ops.command_service, order, owner)

    return await replayed(call, mark, m.ServiceResponse, give)


def _order(service: str, verb: str, asked: m.ServiceRequest) -> Order:
    words = (asked.on,) if isinstance(asked.on, str) else asked.on
    order = Order(
        service=service, verb=Verb(verb), target=None if words is None else read_target(words), ttl_s=asked.ttl_s,
        timeout_s=asked.timeout_s, retries=asked.retries,
    )  # fmt: skip
    if found := problems(codec.convert(order.spec(), Manifest, what="command")):
        raise InvalidSpec("the command is not valid", found)
    return order
