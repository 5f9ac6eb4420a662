"""Endpoints for secrets. A value comes in a body and leaves in one answer alone: to the node that runs an attempt."""

from ostler.coordinator.api.calls import Answer, Call
from ostler.coordinator.operations import secrets as ops
from ostler.model.access import Reach, Role
from ostler.model.errors import Forbidden, InvalidSpec, Problem
from ostler.protocol import messages as m

_NO_STORE = {"Cache-Control": "no-store"}


async def set_secret(call: Call) -> m.SecretView:
    """The value is the body, as it is."""
    query = call.query(m.SecretQuery)
    _check_reach(call, query)
    value = await call.body.whole()
    if not value:
        raise InvalidSpec("the secret has no value", [Problem("", "the body is empty")])
    return await call.write(
        ops.set_secret, call.services.sealer, call.path["name"], value, query=query, principal=_principal(call)
    )


async def list_secrets(call: Call) -> m.SecretPage:
    """Names, versions and times."""
    return await call.read(ops.list_secrets, _principal(call), call.caller.role or Role.VIEWER)


async def delete_secret(call: Call) -> m.SecretView:
    """From the moment of the answer on no job gets it any more."""
    query = call.query(m.SecretQuery)
    _check_reach(call, query)
    return await call.write(ops.delete_secret, call.path["name"], query, _principal(call))


async def fetch_secrets(call: Call) -> Answer:
    """For a node, just before it starts an attempt."""
    node = call.node
    values = await call.read(
        ops.values_for, call.services.sealer, node.node_id, call.path["job_id"], int(call.path["attempt"]),
        boot_epoch=node.boot_epoch,
    )  # fmt: skip
    return Answer(values, headers=_NO_STORE)


def _check_reach(call: Call, query: m.SecretQuery) -> None:
    role = call.caller.role or Role.VIEWER
    if query.shared and call.route.grants.get(role) is not Reach.ALL:
        raise Forbidden(
            f"the role {role} has secrets of its own alone", hint="an operator shares one: `ostler secret set --shared`"
        )


def _principal(call: Call) -> str:
    if not call.caller.principal:
        raise Forbidden("this token is nobody's, so it has no secrets")
    return call.caller.principal
