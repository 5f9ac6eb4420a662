"""Endpoints for tokens."""

from ostler.coordinator.api.calls import Call
from ostler.coordinator.operations import tokens as ops
from ostler.model.access import Role
from ostler.model.errors import Forbidden
from ostler.protocol import messages as m


async def create_token(call: Call) -> m.TokenView:
    """Shown in this answer and never again. An operator lets nodes in; who else may do what is an admin's to say."""
    request = await call.json(m.TokenRequest)
    if request.kind is m.TokenKind.API and call.caller.role is not Role.ADMIN:
        raise Forbidden("only an admin makes API tokens", hint="an operator makes join tokens: `ostler token create --join`")
    return await call.write(ops.create_token, request)


async def list_tokens(call: Call) -> m.TokenPage:
    """Without their secrets."""
    return await call.services.store.read(ops.list_tokens, call.query(m.PageQuery))


async def revoke_token(call: Call) -> m.TokenView:
    """Useless from the moment of the answer on, in this process's memory too; and there also where it is not known what became of it."""
    try:
        return await call.write(ops.revoke_token, call.path["token_id"], call.caller.role or Role.VIEWER)
    finally:
        call.services.door.forget(call.path["token_id"])
